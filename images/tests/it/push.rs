//! Pushing to registries that misbehave, and archives that are made again.

use berth_images::{Credentials, Error, ErrorKind, Pushed, Reference, Registries, Store};

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

use crate::hostile::sparse_file;
use crate::support::fake::{Behaviour, FakeRegistry};
use crate::support::registry::RealRegistry;
use crate::support::{Bench, Compression, ImageBuilder, Tar, ensure_text};

fn layer() -> Vec<u8> {
    Tar::new().dir("etc/", 0o755).file("etc/hostname", b"berth\n").file("big", &vec![7; 300_000]).end()
}

fn push(store: &Store, bench: &Bench, registry: &FakeRegistry) -> Result<Pushed, Error> {
    push_to(store, bench, &registry.address)
}

fn push_to(store: &Store, bench: &Bench, address: &str) -> Result<Pushed, Error> {
    let digest = store.find(&format!("oci:{}", bench.layout().display())).unwrap();
    let Reference::Registry(to) = format!("{address}/x:1").parse().unwrap() else { panic!() };
    store.push(&digest, &to, &Credentials::anonymous(), &Registries::default().without_tls(&to.registry), &())
}

/// An image in a store, and a registry that has nothing yet.
fn start(behaviour: Behaviour) -> (Bench, Store, FakeRegistry) {
    let bench = Bench::new();
    bench.import_built(&ImageBuilder::new(vec![layer()]).compressed(Compression::Zstd)).unwrap();
    let empty = bench.path().join("registry");
    std::fs::create_dir(&empty).unwrap();
    let store = bench.store();
    (bench, store, FakeRegistry::new(empty, behaviour))
}

#[test]
fn a_busy_registry_is_asked_again() {
    let (bench, store, fake) = start(Behaviour { busy: 3, ..Behaviour::default() });
    let pushed = push(&store, &bench, &fake).unwrap();
    assert!(pushed.anew && pushed.uploaded == 1);
    assert_eq!(fake.count("PUT /v2/x/manifests/1"), 1);
}

#[test]
fn an_upload_that_is_cut_is_begun_again() {
    let (bench, store, fake) = start(Behaviour { cut_uploads: 2, ..Behaviour::default() });
    push(&store, &bench, &fake).unwrap();
    // The layer three times, the configuration once.
    assert_eq!((fake.count("POST /v2/x/blobs/uploads/"), fake.count("PUT /v2/x/blobs/")), (4, 4));
    // What came is what was sent: the registry compares digests.
    let again = push(&store, &bench, &fake).unwrap();
    assert_eq!((again.uploaded, fake.count("POST")), (0, 4));
    let (bench, store, fake) = start(Behaviour { cut_uploads: 100, ..Behaviour::default() });
    let error = push(&store, &bench, &fake).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains(&fake.address), "{error}");
    bench.assert_no_work();
}

/// A layer that no compressor makes smaller.
fn large(bench: &Bench) -> Store {
    let mut state = 1_u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    })
    .take(6 << 20)
    .collect();
    bench.import(vec![Tar::new().file("large", &content).end()]).unwrap();
    bench.store()
}

#[test]
fn large_blobs_go_in_chunks_where_one_request_does_not_do() {
    let cases: [(&str, Behaviour); 6] = [
        (
            "the registry says how long chunks are",
            Behaviour { least_chunk: Some(2 << 20), ..Behaviour::default() },
        ),
        ("a proxy takes no more", Behaviour { largest_body: Some(1 << 20), ..Behaviour::default() }),
        ("the request breaks", Behaviour { cut_uploads: 1, ..Behaviour::default() }),
        ("chunks break, too", Behaviour { cut_uploads: 1, cut_chunks: 3, ..Behaviour::default() }),
        ("the upload is forgotten", Behaviour { cut_uploads: 1, lost_uploads: 2, ..Behaviour::default() }),
        (
            "tokens run out",
            Behaviour {
                least_chunk: Some(1 << 20),
                token: Some(String::new()),
                token_uses: Some(2),
                cut_chunks: 1,
                ..Behaviour::default()
            },
        ),
    ];
    let bench = Bench::new();
    let store = large(&bench);
    for (number, (what, behaviour)) in cases.into_iter().enumerate() {
        let place = bench.path().join(format!("registry{number}"));
        std::fs::create_dir(&place).unwrap();
        let (cut, lost) = (behaviour.cut_chunks, behaviour.lost_uploads);
        let fake = FakeRegistry::new(place.clone(), behaviour);
        // What came is what was sent: the registry compares digests.
        let pushed = push(&store, &bench, &fake).unwrap_or_else(|e| panic!("{what}: {e}\n{:?}", fake.log()));
        assert_eq!(pushed.uploaded, 1, "{what}");
        let patches = fake.count("PATCH");
        assert!(patches >= 3, "{what}: {:?}", fake.log());
        if cut > 0 {
            // It goes on after the half that came.
            assert!(
                fake.count("GET /v2/x/blobs/uploads/session") >= cut as usize,
                "{what}: {:?}",
                fake.log()
            );
            assert!(patches < 16, "{what}: {:?}", fake.log());
        }
        if lost > 0 {
            assert_eq!(fake.count("POST"), 2 + 2 + 1, "{what}: {:?}", fake.log());
        }
        let again = push(&store, &bench, &fake).unwrap();
        assert_eq!(again.uploaded, 0, "{what}");
        bench.assert_no_work();
    }
    for (behaviour, said) in [
        (Behaviour { largest_body: Some(1 << 19), ..Behaviour::default() }, "413"),
        (Behaviour { cut_uploads: 1, lost_uploads: 100, ..Behaviour::default() }, "lost the upload"),
        (Behaviour { cut_uploads: 1, empty_uploads: true, ..Behaviour::default() }, "it had 0 of"),
        (Behaviour { cut_uploads: 1, cut_chunks: 100, ..Behaviour::default() }, "127.0.0.1"),
    ] {
        let place = tempfile::tempdir().unwrap();
        let fake = FakeRegistry::new(place.path().to_path_buf(), behaviour);
        let error = push(&store, &bench, &fake).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains(&fake.address), "{error}");
        bench.assert_no_work();
    }
}

/// What stands before a registry and takes no body of more than a MiB, and breaks one request, the third chunk, in its middle.
fn front(to: String) -> (String, Arc<Mutex<Vec<String>>>) {
    crate::support::front(move |stream, log| hand_on(stream, &to, log))
}

/// One request of a connection.
fn hand_on(stream: &TcpStream, to: &str, log: &Mutex<Vec<String>>) -> Option<()> {
    let mut input = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        input.read_line(&mut line).ok().filter(|read| *read > 0)?;
        if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = text.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
        head += &line;
    }
    head += "Connection: close\r\n\r\n";
    let chunks = {
        let mut log = log.lock().unwrap();
        log.push(head.lines().next()?.to_owned());
        log.iter().filter(|line| line.starts_with("PATCH")).count()
    };
    let mut body = vec![0; length];
    input.read_exact(&mut body).ok()?;
    let mut out = stream;
    if length > 1 << 20 {
        out.write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .ok()?;
        return None;
    }
    let mut other = TcpStream::connect(to).ok()?;
    other.write_all(head.as_bytes()).ok()?;
    if head.starts_with("PATCH") && chunks == 3 {
        other.write_all(&body[..length / 2]).ok()?;
        let _ = (other.shutdown(Shutdown::Both), out.shutdown(Shutdown::Both));
        return None;
    }
    other.write_all(&body).ok()?;
    std::io::copy(&mut other, &mut out).ok()?;
    let _ = out.shutdown(Shutdown::Both);
    None
}

#[test]
fn a_real_registry_behind_a_proxy_that_takes_little_gets_chunks() {
    let bench = Bench::new();
    let store = large(&bench);
    let registry = RealRegistry::open();
    let (address, log) = front(registry.address.clone());
    let pushed = push_to(&store, &bench, &address).unwrap_or_else(|e| panic!("{e}\n{:?}", log.lock()));
    assert_eq!(pushed.uploaded, 1);
    let log = log.lock().unwrap();
    assert!(log.iter().filter(|line| line.starts_with("PATCH")).count() > 6, "{log:?}");
    let other = Bench::new();
    let name = format!("{}/x:1", registry.address);
    let image = ensure_text(&other.store(), &name, &Credentials::anonymous(), true).unwrap();
    assert_eq!(image.digest, pushed.digest);
    bench.assert_no_work();
}

#[test]
fn a_host_to_which_uploads_are_sent_gets_no_login_by_asking_for_one() {
    let lure = FakeRegistry::new("/nonexistent".into(), Behaviour { lures: true, ..Behaviour::default() });
    let behaviour = Behaviour {
        token: Some(String::new()),
        uploads_to: Some(format!("http://{}", lure.address)),
        ..Behaviour::default()
    };
    let (bench, store, fake) = start(behaviour);
    let digest = store.find(&format!("oci:{}", bench.layout().display())).unwrap();
    let Reference::Registry(to) = format!("{}/x:1", fake.address).parse().unwrap() else { panic!() };
    let home = bench.path().join("docker");
    std::fs::create_dir(&home).unwrap();
    // "alice:secret"
    let login = format!(r#"{{"auths":{{"{}":{{"auth":"YWxpY2U6c2VjcmV0"}}}}}}"#, fake.address);
    std::fs::write(home.join("config.json"), login).unwrap();
    let credentials = Credentials::from_parts(Some(&home), None, None, None);
    let registries = Registries::default().without_tls(&to.registry);
    let error = store.push(&digest, &to, &credentials, &registries, &()).unwrap_err().to_string();
    assert!(error.contains(&lure.address) && error.contains("401"), "{error}");
    assert_eq!((lure.count("PUT"), lure.count("/token"), lure.count(" auth")), (1, 0, 0), "{:?}", lure.log());
}

#[test]
fn where_uploads_are_sent_to_the_same_registry_by_another_address_the_login_goes_along_as_root() {
    assert!(rustix::process::geteuid().is_root(), "only root can listen at the port that HTTP has anyway");
    let (bench, store, _) = start(Behaviour::default());
    let place = bench.path().join("at-80");
    std::fs::create_dir(&place).unwrap();
    let behaviour = Behaviour {
        token: Some(String::new()),
        uploads_to: Some("HTTP://127.80.80.80:80".to_owned()),
        ..Behaviour::default()
    };
    let fake = FakeRegistry::at("127.80.80.80:80", place, behaviour);
    let pushed = push_to(&store, &bench, "127.80.80.80").unwrap_or_else(|e| panic!("{e}\n{:?}", fake.log()));
    assert_eq!(pushed.uploaded, 1);
    let uploads: Vec<String> =
        fake.log().into_iter().filter(|line| line.starts_with("PUT /v2/x/blobs/")).collect();
    assert_eq!(uploads.len(), 2, "{uploads:?}");
    assert!(uploads.iter().all(|line| line.ends_with(" auth")), "{uploads:?}");
}

#[test]
fn uploads_go_where_an_address_without_a_server_leads_and_one_that_leads_nowhere_is_told() {
    let (bench, store, fake) = start(Behaviour { beside: true, ..Behaviour::default() });
    push(&store, &bench, &fake).unwrap_or_else(|e| panic!("{e}\n{:?}", fake.log()));
    assert_eq!(fake.count("PUT /v2/x/blobs/uploads/session"), 2, "{:?}", fake.log());
    let nowhere = Behaviour { uploads_to: Some("ftp://storage.example".to_owned()), ..Behaviour::default() };
    let (bench, store, fake) = start(nowhere);
    let error = push(&store, &bench, &fake).unwrap_err().to_string();
    assert!(error.contains("wants an upload sent to \"ftp://storage.example/v2/"), "{error}");
    assert!(error.contains(&fake.address) && !error.contains("check the network"), "{error}");
    assert_eq!(fake.count("POST"), 1, "it is not asked again for that: {:?}", fake.log());
}

#[test]
fn a_token_is_asked_for_that_allows_pushing_and_renewed_while_pushing() {
    let behaviour = Behaviour { token: Some(String::new()), token_uses: Some(2), ..Behaviour::default() };
    let (bench, store, fake) = start(behaviour);
    push(&store, &bench, &fake).unwrap();
    let tokens = fake.count("/token?");
    assert!(tokens > 1, "{tokens}");
    assert_eq!(fake.count("/token?scope=repository%3Ax%3Apull%2Cpush&"), tokens, "{:?}", fake.log());
}

#[test]
fn what_a_registry_only_names_a_place_of_is_there_where_that_place_has_it() {
    let (bench, store, full) = start(Behaviour::default());
    push(&store, &bench, &full).unwrap();
    let nothing = || tempfile::tempdir().unwrap();
    let full = bench.path().join("registry");
    let places = [nothing(), nothing()];
    let gone = Behaviour { answers: Some("403 Forbidden"), ..Behaviour::default() };
    for (storage, behaviour, uploaded) in [
        (places[0].path(), Behaviour::default(), Some(1)),
        (&*full, Behaviour::default(), Some(0)),
        // An address that is signed for reading alone.
        (&*full, Behaviour { no_head: true, ..Behaviour::default() }, Some(0)),
        (places[1].path(), Behaviour { no_head: true, ..Behaviour::default() }, Some(1)),
        (&*full, gone, None),
    ] {
        let storage = FakeRegistry::new(storage.to_path_buf(), behaviour);
        let redirect = Some(format!("http://{}", storage.address));
        let own = nothing();
        let front = Behaviour { redirect, redirect_head: true, ..Behaviour::default() };
        let front = FakeRegistry::new(own.path().to_path_buf(), front);
        match (push(&store, &bench, &front), uploaded) {
            (Ok(pushed), Some(uploaded)) => assert_eq!(pushed.uploaded, uploaded, "{:?}", storage.log()),
            (Err(error), None) => assert!(error.to_string().contains(&storage.address), "{error}"),
            (found, wanted) => panic!("{found:?} where {wanted:?} is right: {:?}", storage.log()),
        }
        assert!(storage.count("HEAD ") > 0, "{:?}", front.log());
    }
}

#[test]
fn what_a_registry_does_not_mount_is_uploaded() {
    let bench = Bench::new();
    let layout = bench.layout();
    ImageBuilder::new(vec![layer()]).compressed(Compression::Gzip).write(&layout);
    let behaviour = Behaviour { apart: Some("x"), token: Some(String::new()), ..Behaviour::default() };
    let fake = FakeRegistry::new(layout, behaviour);
    let name = format!("{}/y:1", fake.address);
    let image = ensure_text(&bench.store(), &name, &Credentials::anonymous(), true).unwrap();
    let Reference::Registry(to) = format!("{}/x:1", fake.address).parse().unwrap() else { panic!() };
    let registries = Registries::default().without_tls(&to.registry);
    let pushed = bench.store().push(&image.digest, &to, &Credentials::anonymous(), &registries, &()).unwrap();
    assert_eq!((pushed.uploaded, pushed.mounted), (1, 0), "{:?}", fake.log());
    assert_eq!(fake.count("mount="), 2, "{:?}", fake.log());
}

#[test]
fn what_cannot_be_made_again_is_not_pushed() {
    let (bench, store, fake) = start(Behaviour::default());
    let digest = store.find(&format!("oci:{}", bench.layout().display())).unwrap();
    let path = store.inspect(&digest).unwrap().layers[0].path.clone();
    std::fs::write(path.join("etc/hostname"), "other\n").unwrap();
    let error = push(&store, &bench, &fake).unwrap_err().to_string();
    assert!(error.contains("etc/hostname") && error.contains("--repair"), "{error}");
    let bench = Bench::new();
    // What took its place is kept in vain where it is longer than all of the archive: its zeros are in no file any more.
    bench.import(vec![sparse_file(1 << 20).file("sparse", b"2").end()]).unwrap();
    let error = push(&bench.store(), &bench, &fake).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("skopeo copy"), "{error}");
    assert_eq!(fake.count("PUT"), 0);
    bench.assert_no_work();
}
