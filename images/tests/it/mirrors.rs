//! Mirrors and caches that are asked before a registry, and all that they may do wrong.

use std::path::Path;
use std::sync::Mutex;

use berth_images::{
    Credentials, Digest, Error, ErrorKind, Helpers, Mirror, PreparedImage, ProgressEvent, Reference,
    Registries, ResolveOptions, Resolved, ResolvedManifest, RunAs, Store, open_source, resolve,
};

use crate::support::fake::{Behaviour, FakeRegistry};
use crate::support::registry::RealRegistry;
use crate::support::{Bench, Compression, ImageBuilder, Tar, only_layer};

/// More than is judged whole before it is handed on, in one layer that does not compress.
const LARGE: usize = 6 << 20;

/// "alice:secret"
const ALICE: &str = "YWxpY2U6c2VjcmV0";

fn pattern(length: usize) -> Vec<u8> {
    let mut state = 9_u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(next).collect()
}

/// A bench with an image of one large layer in its layout.
fn bench() -> Bench {
    let bench = Bench::new();
    ImageBuilder::new(vec![Tar::new().file("big", &pattern(LARGE)).end()])
        .compressed(Compression::Gzip)
        .write(&bench.layout());
    bench
}

fn fake(bench: &Bench, behaviour: Behaviour) -> FakeRegistry {
    FakeRegistry::new(bench.layout(), behaviour)
}

/// As a configuration says it that names these mirrors of the registry.
fn mirrored(registry: &str, mirrors: &[&str]) -> Registries {
    let urls = mirrors.iter().map(|address| format!("http://{address}/cache")).collect();
    let mirror = Mirror { registry: registry.to_owned(), urls, grants: false };
    Registries { mirrors: vec![mirror], ..Registries::default() }.without_tls(registry)
}

fn pin(name: &str, registries: &Registries, credentials: &Credentials) -> Result<ResolvedManifest, Error> {
    let options = ResolveOptions { registries: registries.clone(), ..ResolveOptions::default() };
    match resolve(&name.parse::<Reference>()?, credentials, &options)? {
        Resolved::Manifest(manifest) => Ok(manifest),
        other => panic!("{other:?}"),
    }
}

/// Pulls an image; gives the notes, too.
fn pull(
    store: &Store,
    name: &str,
    registries: &Registries,
    credentials: &Credentials,
) -> Result<(PreparedImage, Vec<String>), Error> {
    let image = pin(name, registries, credentials)?;
    let source = open_source(&image, registries, credentials)?;
    let notes = Mutex::new(Vec::new());
    let prepared = store.ensure(&image, source.as_ref(), &|event| {
        if let ProgressEvent::Note { text } = event {
            notes.lock().unwrap().push(text);
        }
    })?;
    Ok((prepared, notes.into_inner().unwrap()))
}

fn anonymous() -> Credentials {
    Credentials::anonymous()
}

fn whole(image: &PreparedImage) {
    assert!(std::fs::read(only_layer(image).join("big")).unwrap() == pattern(LARGE));
}

#[test]
fn what_a_mirror_has_is_not_asked_of_the_registry() {
    let bench = bench();
    let (mirror, registry) = (fake(&bench, Behaviour::default()), fake(&bench, Behaviour::default()));
    let name = format!("{}/x:1", registry.address);
    let (image, notes) =
        pull(&bench.store(), &name, &mirrored(&registry.address, &[&mirror.address]), &anonymous()).unwrap();
    whole(&image);
    assert_eq!((notes, registry.log()), (vec![], vec![]));
    // The path of the mirror stands before the repository's.
    assert!(mirror.log().iter().all(|line| line.contains("/v2/cache/x/")), "{:?}", mirror.log());
    assert_eq!(mirror.count("/blobs/"), 2);
    // Others' mirrors are nobody's.
    let other = mirrored("r.io", &[&mirror.address]).without_tls(&registry.address);
    pin(&name, &other, &anonymous()).unwrap();
    assert!(registry.count("/manifests/") >= 1);
}

#[test]
fn what_a_mirror_gives_without_its_length_is_judged_too() {
    let bench = bench();
    for (corrupt, asked) in [(Some(0), true), (None, false)] {
        let mirror =
            fake(&bench, Behaviour { corrupt, no_length: true, no_ranges: true, ..Behaviour::default() });
        let registry = fake(&bench, Behaviour::default());
        let name = format!("{}/x:1", registry.address);
        let own = Store::open(&bench.path().join(format!("store-{asked}"))).unwrap();
        let (image, _) =
            pull(&own, &name, &mirrored(&registry.address, &[&mirror.address]), &anonymous()).unwrap();
        whole(&image);
        assert_eq!(registry.count("/blobs/") > 0, asked, "{:?}", registry.log());
        assert!(mirror.count("/blobs/") > 0);
    }
}

#[test]
fn a_mirror_that_fails_leaves_it_to_the_next_and_is_not_asked_again() {
    for (behaviour, asked) in [
        // Busy: tried a second time, once and for all.
        (Behaviour { answers: Some("503 Service Unavailable"), ..Behaviour::default() }, 2),
        (Behaviour { answers: Some("429 Too Many Requests"), ..Behaviour::default() }, 2),
        (Behaviour { answers: Some("403 Forbidden"), ..Behaviour::default() }, 1),
        (Behaviour { wrong_header: true, ..Behaviour::default() }, 1),
    ] {
        let bench = bench();
        let status = behaviour.answers.unwrap_or("wrong bytes");
        let (bad, good) = (fake(&bench, behaviour), fake(&bench, Behaviour::default()));
        let registry = fake(&bench, Behaviour::default());
        let registries = mirrored(&registry.address, &[&bad.address, &good.address]);
        let name = format!("{}/x:1", registry.address);
        let image = pin(&name, &registries, &anonymous()).unwrap();
        assert_eq!(bad.log().len(), asked, "{status}: {:?}", bad.log());
        let source = open_source(&image, &registries, &anonymous()).unwrap();
        whole(&bench.store().ensure(&image, source.as_ref(), &()).unwrap());
        // Another import asks it anew, and once.
        assert!(bad.log().len() <= 2 * asked + 3, "{status}: {:?}", bad.log());
        assert_eq!(registry.log(), Vec::<String>::new(), "{status}");
        assert_eq!(good.count("/blobs/") + bad.count("/blobs/"), 2, "{status}");
    }
}

#[test]
fn what_a_mirror_does_not_have_comes_from_elsewhere() {
    let bench = bench();
    let nothing = fake(&bench, Behaviour { answers: Some("404 Not Found"), ..Behaviour::default() });
    let registry = fake(&bench, Behaviour::default());
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let registries = mirrored(&registry.address, &[&nothing.address, &closed]);
    let (image, _) =
        pull(&bench.store(), &format!("{}/x:1", registry.address), &registries, &anonymous()).unwrap();
    whole(&image);
    // It may have other things.
    assert_eq!(nothing.count("/blobs/"), 2, "{:?}", nothing.log());

    // Nobody has it: all are named.
    let registry = fake(&bench, Behaviour { answers: Some("404 Not Found"), ..Behaviour::default() });
    let registries = mirrored(&registry.address, &[&nothing.address, &closed]);
    let error = pin(&format!("{}/x:1", registry.address), &registries, &anonymous()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let text = error.to_string();
    for part in [
        format!("registry {} answered 404 Not Found to anonymous", registry.address),
        format!("mirror http://{} answered 404 Not Found to anonymous", nothing.address),
        format!("mirror http://{closed} cannot be reached: nothing listens there"),
    ] {
        assert!(text.contains(&part), "{part} is not in {text}");
    }
}

#[test]
fn a_blob_that_a_mirror_cuts_is_gone_on_with_elsewhere() {
    let bench = bench();
    let mirror = fake(&bench, Behaviour { cut_after: Some(5 << 20), ..Behaviour::default() });
    let registry = fake(&bench, Behaviour::default());
    let registries = mirrored(&registry.address, &[&mirror.address]);
    let (image, notes) =
        pull(&bench.store(), &format!("{}/x:1", registry.address), &registries, &anonymous()).unwrap();
    whole(&image);
    assert_eq!(notes, Vec::<String>::new());
    assert_eq!((registry.log().len(), registry.count(" range")), (1, 1), "{:?}", registry.log());
    assert_eq!(mirror.count(" range"), 0);
}

#[test]
fn wrong_bytes_of_a_mirror_come_from_elsewhere() {
    // Those of a small blob before anybody has seen them; those of a large one by fetching it anew.
    for (above, notes) in [(0, 0), (1 << 20, 1)] {
        let bench = bench();
        let mirror = fake(&bench, Behaviour { corrupt: Some(above), ..Behaviour::default() });
        let registry = fake(&bench, Behaviour::default());
        let registries = mirrored(&registry.address, &[&mirror.address]);
        let name = format!("{}/x:1", registry.address);
        let (image, told) = pull(&bench.store(), &name, &registries, &anonymous()).unwrap();
        whole(&image);
        assert_eq!(told.len(), notes, "{told:?}");
        assert!(told.iter().all(|t| t.contains(&format!("mirror http://{}", mirror.address))), "{told:?}");
        assert!(registry.count("/blobs/") >= 1, "{:?}", registry.log());
        // And where the registry itself has no better ones, nothing is kept.
        let bench = self::bench();
        let registry = fake(&bench, Behaviour { corrupt: Some(above), ..Behaviour::default() });
        let registries = mirrored(&registry.address, &[&mirror.address]);
        let error = pull(&bench.store(), &format!("{}/x:1", registry.address), &registries, &anonymous())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        bench.assert_empty();
    }
}

fn docker_config(directory: &Path, address: &str) -> std::path::PathBuf {
    std::fs::create_dir_all(directory).unwrap();
    let text = format!(r#"{{"auths":{{"{address}":{{"auth":"{ALICE}"}}}}}}"#);
    std::fs::write(directory.join("config.json"), text).unwrap();
    directory.to_path_buf()
}

#[test]
fn each_place_is_shown_its_own_login() {
    let bench = bench();
    let login = || Behaviour { token: Some(ALICE.to_owned()), ..Behaviour::default() };
    let (mirror, registry) = (fake(&bench, login()), fake(&bench, login()));
    let registries = mirrored(&registry.address, &[&mirror.address]);
    let name = format!("{}/x:1", registry.address);
    let of = |address: &str| {
        let home = docker_config(&bench.path().join(address), address);
        Credentials::from_parts(Some(&home), None, None, None)
    };
    // The mirror's token server refuses nobody, that is anonymous, and the registry is asked.
    pin(&name, &registries, &of(&registry.address)).unwrap();
    assert_eq!(mirror.count(" auth"), 0, "{:?}", mirror.log());
    assert!(registry.count(" auth") >= 2);
    // And the other way round.
    let asked = registry.log().len();
    pin(&name, &registries, &of(&mirror.address)).unwrap();
    assert!(mirror.count(" auth") >= 2);
    assert_eq!(registry.log().len(), asked);
}

pub(crate) fn helpers(
    bench: &Bench,
    registries: &Registries,
    uid: Option<u32>,
    login: Option<&Path>,
) -> Helpers {
    // The program must be readable by the users it becomes.
    let program = bench.path().join("import");
    if !program.exists() {
        std::fs::copy(crate::concurrency::program(), &program).unwrap();
    }
    let id = |uid| RunAs { uid, gid: uid, groups: vec![uid] };
    Helpers {
        user: uid.map(id),
        environment: login.map(|home| ("DOCKER_CONFIG".into(), home.into())).into_iter().collect(),
        store: uid.map(|_| id(54_321)),
        ..Helpers::new(program, registries.clone())
    }
}

#[test]
fn wrong_bytes_of_a_mirror_come_from_elsewhere_through_the_fetching_process() {
    let bench = bench();
    let mirror = fake(&bench, Behaviour { corrupt: Some(1 << 20), ..Behaviour::default() });
    let registry = fake(&bench, Behaviour::default());
    let registries = mirrored(&registry.address, &[&mirror.address]);
    let image = pin(&format!("{}/x:1", registry.address), &registries, &anonymous()).unwrap();
    whole(&helpers(&bench, &registries, None, None).ensure(&bench.store(), &image, &()).unwrap());
}

#[test]
fn a_mirror_gives_nobody_what_the_registry_would_not_as_root() {
    assert!(rustix::process::geteuid().is_root(), "only root can act for several users");
    let bench = bench();
    // A cache with a login of its own, as they are, that gives what it has to everyone.
    let mirror = fake(&bench, Behaviour::default());
    let registry = fake(&bench, Behaviour { token: Some(ALICE.to_owned()), ..Behaviour::default() });
    let mut registries = mirrored(&registry.address, &[&mirror.address]);
    let image = pin(&format!("{}/x:1", registry.address), &registries, &anonymous()).unwrap();
    let home = docker_config(&bench.path().join("docker"), &registry.address);
    let store = Store::open_for(&bench.path().join("store"), Some((54_321, 54_321))).unwrap();
    let alice = |registries: &Registries| helpers(&bench, registries, Some(54_001), Some(&home));
    let bob = |registries: &Registries| helpers(&bench, registries, Some(54_002), None);

    let error = bob(&registries).ensure(&store, &image, &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    drop(alice(&registries).ensure(&store, &image, &()).unwrap());
    // She showed it to the registry, which gave nothing else.
    assert_eq!((registry.count("/blobs/"), mirror.count("/blobs/")), (0, 2), "{:?}", registry.log());
    let error = bob(&registries).ensure(&store, &image, &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");

    // Where the registry cannot be asked, nobody knows, unless the mirror may say it.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let image = ResolvedManifest { source: format!("docker://{closed}/x"), ..image };
    registries = mirrored(&closed, &[&mirror.address]);
    let error = bob(&registries).ensure(&store, &image, &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("grants = true"), "{error}");
    registries.mirrors[0].grants = true;
    whole(&bob(&registries).ensure(&store, &image, &()).unwrap());
}

#[test]
fn a_real_cache_is_filled_and_serves_when_its_registry_is_gone() {
    let bench = bench();
    let registry = RealRegistry::open();
    registry.push(&bench.layout().display().to_string(), "team/app:1");
    let cache = RealRegistry::cache_of(&registry);
    let mirror = Mirror {
        registry: registry.address.clone(),
        urls: vec![format!("http://{}", cache.address)],
        grants: false,
    };
    let registries =
        Registries { mirrors: vec![mirror], ..Registries::default() }.without_tls(&registry.address);
    let name = registry.name("team/app:1");
    let (image, _) = pull(&bench.store(), &name, &registries, &anonymous()).unwrap();
    whole(&image);
    let digest: Digest = image.digest.clone();
    drop(registry);
    let again = Store::open(&bench.path().join("again")).unwrap();
    let pinned = name.replace(":1", &format!("@{digest}"));
    let (image, _) = pull(&again, &pinned, &registries, &anonymous()).unwrap();
    whole(&image);
}
