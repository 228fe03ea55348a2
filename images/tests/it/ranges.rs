//! A large blob by several connections at once.

use berth_images::{
    Credentials, ErrorKind, Mirror, PreparedImage, Registries, ResolveOptions, Resolved, ResolvedManifest,
    open_source, resolve,
};

use crate::support::fake::{Behaviour, FakeRegistry};
use crate::support::registry::RealRegistry;
use crate::support::{Bench, ImageBuilder, Tar, ensure_text, only_layer};

/// Enough for a first part and eight ranges.
const LARGE: usize = 40 << 20;

fn pattern() -> Vec<u8> {
    let mut state = 3_u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..LARGE).map(next).collect()
}

fn bench() -> Bench {
    let bench = Bench::new();
    ImageBuilder::new(vec![Tar::new().file("big", &pattern()).end()]).write(&bench.layout());
    bench
}

fn whole(image: &PreparedImage) {
    assert!(std::fs::read(only_layer(image).join("big")).unwrap() == pattern());
}

fn pull(bench: &Bench, fake: &FakeRegistry) -> Result<PreparedImage, berth_images::Error> {
    ensure_text(&bench.store(), &format!("{}/x:1", fake.address), &Credentials::anonymous(), true)
}

fn pin(name: &str, registries: &Registries) -> ResolvedManifest {
    let options = ResolveOptions { registries: registries.clone(), ..ResolveOptions::default() };
    match resolve(&name.parse().unwrap(), &Credentials::anonymous(), &options).unwrap() {
        Resolved::Manifest(manifest) => manifest,
        other => panic!("{other:?}"),
    }
}

#[test]
fn several_ranges_of_a_large_blob_are_fetched_at_once() {
    let bench = bench();
    // None of them is answered before three are asked for.
    let fake = FakeRegistry::new(bench.layout(), Behaviour { together: 3, ..Behaviour::default() });
    whole(&pull(&bench, &fake).unwrap());
    assert_eq!(fake.count(" range"), 9, "{:?}", fake.log());
}

#[test]
fn the_fetching_process_does_so_too() {
    let bench = bench();
    let fake = FakeRegistry::new(bench.layout(), Behaviour { together: 3, ..Behaviour::default() });
    let registries = Registries::default().without_tls(&fake.address);
    let image = pin(&format!("{}/x:1", fake.address), &registries);
    let helpers = crate::mirrors::helpers(&bench, &registries, None, None);
    whole(&helpers.ensure(&bench.store(), &image, &()).unwrap());
    assert_eq!(fake.count(" range"), 9, "{:?}", fake.log());
}

#[test]
fn ranges_that_break_are_gone_on_with_and_tokens_renewed() {
    let bench = bench();
    let behaviour = Behaviour {
        cut_after: Some(3 << 20),
        token: Some(String::new()),
        // Enough that whoever renewed it finds it good, although other ranges use it meanwhile.
        token_uses: Some(8),
        ..Behaviour::default()
    };
    let fake = FakeRegistry::new(bench.layout(), behaviour);
    whole(&pull(&bench, &fake).unwrap());
    // Each of nine was cut once or twice.
    assert!(fake.count(" range") >= 18, "{:?}", fake.log());
}

#[test]
fn a_registry_without_ranges_gives_one_stream() {
    let bench = bench();
    let fake = FakeRegistry::new(bench.layout(), Behaviour { no_ranges: true, ..Behaviour::default() });
    whole(&pull(&bench, &fake).unwrap());
    assert_eq!(fake.count("/blobs/"), 2, "{:?}", fake.log());
}

#[test]
fn a_registry_that_stops_giving_ranges_is_not_asked_for_each_from_the_start() {
    let bench = bench();
    let behaviour = Behaviour { first_range_only: true, ..Behaviour::default() };
    let fake = FakeRegistry::new(bench.layout(), behaviour);
    whole(&pull(&bench, &fake).unwrap());
    // By each connection once, and then all of the rest by one.
    assert!(fake.count(" range") <= 5, "{:?}", fake.log());
}

#[test]
fn ranges_that_are_shorter_than_asked_are_asked_on() {
    let bench = bench();
    let behaviour = Behaviour { short_ranges: Some(3 << 20), ..Behaviour::default() };
    let fake = FakeRegistry::new(bench.layout(), behaviour);
    whole(&pull(&bench, &fake).unwrap());
}

#[test]
fn answers_with_next_to_nothing_in_them_are_not_asked_for_without_end() {
    let bench = bench();
    // A small blob, and a large one whose parts are fetched at once.
    let cases = [
        Behaviour { short_ranges: Some(1), ..Behaviour::default() },
        Behaviour { short_later: Some(1), ..Behaviour::default() },
    ];
    for behaviour in cases {
        let fake = FakeRegistry::new(bench.layout(), behaviour);
        let error = pull(&bench, &fake).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        let text = error.to_string();
        assert!(
            text.contains("less than 65536 bytes in one answer") && text.contains(&fake.address),
            "{text}"
        );
        // Of each part six times at most.
        assert!(fake.count("/blobs/") <= 40, "{:?}", fake.log());
        bench.assert_no_work();
    }
    // A few of them are none the worse.
    let bench = Bench::new();
    let builder = ImageBuilder::new(vec![Tar::new().file("a", &[7; 5000]).end()]);
    builder.write(&bench.layout());
    let few = Behaviour { short_ranges: Some(3000), ..Behaviour::default() };
    let fake = FakeRegistry::new(bench.layout(), few);
    pull(&bench, &fake).unwrap();
    assert!(fake.count(" range") >= 1, "{:?}", fake.log());
}

#[test]
fn redirected_ranges_and_a_real_registry() {
    let bench = bench();
    let storage = FakeRegistry::new(bench.layout(), Behaviour::default());
    let front = Behaviour {
        token: Some(String::new()),
        redirect: Some(format!("http://{}", storage.address)),
        ..Behaviour::default()
    };
    let fake = FakeRegistry::new(bench.layout(), front);
    whole(&pull(&bench, &fake).unwrap());
    assert_eq!((storage.count(" range"), storage.count(" auth")), (9, 0), "{:?}", storage.log());

    let real = RealRegistry::open();
    real.push(&bench.layout().display().to_string(), "large:1");
    let other = self::bench();
    whole(&ensure_text(&other.store(), &real.name("large:1"), &Credentials::anonymous(), true).unwrap());
}

#[test]
fn wrong_bytes_of_a_range_are_refused_and_those_of_a_mirror_fetched_elsewhere() {
    let bench = bench();
    let corrupt = || Behaviour { corrupt: Some(1 << 20), ..Behaviour::default() };
    let fake = FakeRegistry::new(bench.layout(), corrupt());
    assert_eq!(pull(&bench, &fake).unwrap_err().kind(), ErrorKind::Corrupt);
    bench.assert_empty();
    let registry = FakeRegistry::new(bench.layout(), Behaviour::default());
    let mirror = Mirror {
        registry: registry.address.clone(),
        urls: vec![format!("http://{}", fake.address)],
        grants: false,
    };
    let registries =
        Registries { mirrors: vec![mirror], ..Registries::default() }.without_tls(&registry.address);
    let image = pin(&format!("{}/x:1", registry.address), &registries);
    let source = open_source(&image, &registries, &Credentials::anonymous()).unwrap();
    whole(&bench.store().ensure(&image, source.as_ref(), &()).unwrap());
    assert_eq!(registry.count(" range"), 9);
}
