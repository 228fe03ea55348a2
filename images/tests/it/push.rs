//! Pushing to registries that misbehave, and archives that are made again.

use berth_images::{Credentials, Error, ErrorKind, Pushed, Reference, Registries, Store};

use crate::support::fake::{Behaviour, FakeRegistry};
use crate::support::{Bench, Compression, ImageBuilder, Tar, ensure_text};

fn layer() -> Vec<u8> {
    Tar::new().dir("etc/", 0o755).file("etc/hostname", b"berth\n").file("big", &vec![7; 300_000]).end()
}

fn push(store: &Store, bench: &Bench, registry: &FakeRegistry) -> Result<Pushed, Error> {
    let digest = store.find(&format!("oci:{}", bench.layout().display())).unwrap();
    let Reference::Registry(to) = format!("{}/x:1", registry.address).parse().unwrap() else { panic!() };
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
    bench.import(vec![Tar::new().file("a", b"1").file("a", b"2").end()]).unwrap();
    let error = push(&bench.store(), &bench, &fake).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("skopeo copy"), "{error}");
    assert_eq!(fake.count("PUT"), 0);
    bench.assert_no_work();
}
