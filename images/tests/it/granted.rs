//! Images as users of one store have them: each their own, by their own names, and gone when nobody has them.

use std::collections::BTreeSet;

use berth_images::{GrantedImage, ResolvedManifest, Store, find_granted};

use crate::support::{Bench, Tar};

const ANN: u32 = 54_001;
const BOB: u32 = 54_002;

fn layer(name: &str, bytes: usize) -> Vec<u8> {
    Tar::new().file(name, &vec![7; bytes]).end()
}

/// An image of its own layer above a shared one, as `name` means it.
fn image(bench: &Bench, content: &str, name: &str) -> ResolvedManifest {
    let made = bench.import(vec![layer("shared", 1000), layer(content, 500)]).unwrap();
    ResolvedManifest {
        source: format!("docker://registry.test/{name}"),
        digest: made.digest,
        insecure: false,
        name: Some(format!("registry.test/{name}:1")),
        indexes: Vec::new(),
        pin: None,
    }
}

fn names(store: &Store, uid: u32) -> Vec<String> {
    let mut all: Vec<String> =
        store.granted(uid).unwrap().into_iter().flat_map(|image| image.names).collect();
    all.sort();
    all
}

#[test]
fn each_user_has_their_own_names_sources_and_sizes() {
    let bench = Bench::new();
    let store = bench.store();
    let (first, second) = (image(&bench, "first", "ann"), image(&bench, "second", "second"));
    let as_bob = ResolvedManifest {
        source: "docker://registry.test/bob".into(),
        name: Some("registry.test/bob:1".into()),
        ..first.clone()
    };
    store.grant(&first, ANN).unwrap();
    store.grant(&second, ANN).unwrap();
    store.grant(&as_bob, BOB).unwrap();
    assert_eq!(names(&store, ANN), ["registry.test/ann:1", "registry.test/second:1"]);
    assert_eq!(names(&store, BOB), ["registry.test/bob:1"]);
    // Who removes one learns whose it was.
    let of_others = |uid: u32| -> Vec<(berth_images::Digest, Vec<u32>)> {
        let all = store.of_others(uid).unwrap().into_iter().map(|(digest, (_, users))| (digest, users));
        all.collect()
    };
    assert_eq!(of_others(ANN), [(first.digest.clone(), vec![BOB])]);
    let mut roots = of_others(0);
    roots.iter_mut().for_each(|(_, users)| users.sort_unstable());
    let mut both = vec![ANN, BOB];
    both.sort_unstable();
    let mut expected = vec![(first.digest.clone(), both), (second.digest.clone(), vec![ANN])];
    expected.sort();
    assert_eq!(roots, expected);
    assert!(store.is_granted(&first, ANN).unwrap() && !store.is_granted(&as_bob, ANN).unwrap());
    // The shared layer once. Each has as many blocks: a directory, a file, and what is beside them.
    let [ann, bob] = [ANN, BOB].map(|uid| store.usage(uid).unwrap());
    assert_eq!((ann.images, ann.layers, bob.images, bob.layers), (2, 3, 1, 2));
    assert!(bob.bytes > 1500 && 2 * ann.bytes == 3 * bob.bytes, "{ann:?} {bob:?}");
    assert_eq!(store.users().unwrap(), [ANN, BOB]);
    let images: Vec<GrantedImage> = store.granted(BOB).unwrap();
    let found = |text: &str| find_granted(&images, text).unwrap().map(|image| image.digest.clone());
    assert_eq!(found("registry.test/bob:1"), Some(first.digest.clone()));
    assert_eq!(found(&first.digest.hex()[..12]), Some(first.digest.clone()));
    assert_eq!(found("registry.test/ann:1"), None);
    assert_eq!(found(&second.digest.to_string()), None);
    // A name means what its user asked for last; what others call so stays.
    store.grant(&ResolvedManifest { name: first.name.clone(), ..second.clone() }, ANN).unwrap();
    store.grant(&ResolvedManifest { name: second.name.clone(), ..second.clone() }, BOB).unwrap();
    let of = |image: &ResolvedManifest, uid| {
        let all = store.granted(uid).unwrap();
        all.into_iter().find(|granted| granted.digest == image.digest).unwrap().names
    };
    assert!(of(&first, ANN).is_empty());
    assert_eq!(of(&second, ANN), ["registry.test/second:1", "registry.test/ann:1"]);
    assert_eq!(of(&second, BOB), ["registry.test/second:1"]);
}

#[test]
fn what_nobody_has_any_more_goes_unless_it_is_used() {
    let bench = Bench::new();
    let store = bench.store();
    let image = image(&bench, "first", "ann");
    let none = BTreeSet::new();
    store.grant(&image, ANN).unwrap();
    store.grant(&image, BOB).unwrap();
    assert!(store.take_back(&image.digest, ANN).unwrap());
    assert!(!store.take_back(&image.digest, ANN).unwrap());
    assert_eq!(store.released().unwrap(), []);
    assert!(store.take_back(&image.digest, BOB).unwrap());
    let released = store.released().unwrap();
    assert_eq!(released, std::slice::from_ref(&image.digest));
    // What a job needs stays, and what is in use.
    let needed = BTreeSet::from([image.digest.clone()]);
    assert!(store.drop_released(&released, &needed).unwrap().images.is_empty());
    let prepared = store.prepared(&image.digest).unwrap().unwrap();
    assert!(store.drop_released(&released, &none).unwrap().images.is_empty());
    drop(prepared);
    // Who takes it again has it.
    store.grant(&image, BOB).unwrap();
    assert_eq!(store.released().unwrap(), []);
    assert!(store.drop_released(&released, &none).unwrap().images.is_empty());
    store.take_back(&image.digest, BOB).unwrap();
    let removed = store.drop_released(&released, &none).unwrap();
    assert_eq!((removed.images, removed.layers, removed.bytes), (released, 2, 1500));
    assert!(store.list().unwrap().is_empty());
    assert_eq!(std::fs::read_dir(store.root().join("images")).unwrap().count(), 0);
    // Images that never were anybody's are not given back.
    let alone = bench.import(vec![layer("alone", 10)]).unwrap().digest;
    assert!(store.drop_released(std::slice::from_ref(&alone), &none).unwrap().images.is_empty());
    assert_eq!(store.list().unwrap()[0].digest, alone);
}

#[test]
fn damaged_grants_are_none_and_those_of_images_that_are_gone_go() {
    let bench = Bench::new();
    let store = bench.store();
    let image = image(&bench, "first", "ann");
    store.grant(&image, ANN).unwrap();
    let file = |name: String| store.root().join("images").join(name);
    let base = format!("sha256-{}", image.digest.hex());
    std::fs::write(file(format!("{base}.grant-{ANN}")), b"{").unwrap();
    assert!(!store.is_granted(&image, ANN).unwrap());
    store.grant(&image, ANN).unwrap();
    assert!(store.is_granted(&image, ANN).unwrap());
    // As an earlier version wrote them; and of an image that a killed process removed.
    std::fs::write(file(format!("{base}.grants")), format!("{BOB} docker://x\n")).unwrap();
    let gone = file(format!("sha256-{}.grant-{ANN}", "0".repeat(64)));
    std::fs::write(&gone, b"{}").unwrap();
    store.prune(&berth_images::PruneOptions::default()).unwrap();
    assert!(!gone.exists() && !file(format!("{base}.grants")).exists());
}
