//! Registries that answer as the standards let them and few do, or as nobody should.

use std::sync::{Arc, Mutex};

use berth_images::{
    Credentials, ProgressEvent, Reference, Registries, ResolveOptions, Resolved, ResolvedManifest, resolve,
};

use crate::support::fake::{Behaviour, FakeRegistry};
use crate::support::{Bench, Compression, ImageBuilder, Tar, ensure_text, resolve_text};

/// A bench with an image in its layout.
fn bench() -> Bench {
    let bench = Bench::new();
    let layer = Tar::new().file("big", &vec![7; 300_000]).end();
    ImageBuilder::new(vec![layer]).compressed(Compression::Gzip).write(&bench.layout());
    bench
}

#[test]
fn redirects_lead_beside_what_was_asked_and_those_that_lead_nowhere_are_told() {
    let bench = bench();
    let anybody = Credentials::anonymous();
    let behaviour = Behaviour { token: Some(String::new()), beside: true, ..Behaviour::default() };
    let fake = FakeRegistry::new(bench.layout(), behaviour);
    ensure_text(&bench.store(), &format!("{}/x:1", fake.address), &anybody, true).unwrap();
    let kept = fake.count("GET /v2/x/kept/sha256:");
    assert!(kept >= 2, "{:?}", fake.log());
    // It is the registry still.
    let shown = fake.log().iter().filter(|line| line.contains("/kept/") && line.ends_with(" auth")).count();
    assert_eq!(shown, kept, "{:?}", fake.log());
    for (to, said) in [
        ("ftp://storage.example", "redirected to \"ftp://storage.example/v2/x/manifests/1\""),
        ("http://", "redirected to \"http:///v2/x/manifests/1\""),
    ] {
        let redirect = Some(to.to_owned());
        let behaviour = Behaviour { redirect, redirect_all: true, no_head: true, ..Behaviour::default() };
        let fake = FakeRegistry::new(bench.layout(), behaviour);
        let error = resolve_text(&format!("{}/x:1", fake.address), &anybody, true).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains(&fake.address), "{error}");
        assert!(error.contains("administrator") && !error.contains("check the network"), "{error}");
        assert_eq!(fake.count("GET"), 1, "{:?}", fake.log());
    }
    // One that leads back to itself.
    let fake = FakeRegistry::new(
        bench.layout(),
        Behaviour { redirect: Some(String::new()), redirect_all: true, ..Behaviour::default() },
    );
    let error = resolve_text(&format!("{}/x:1", fake.address), &anybody, true).unwrap_err().to_string();
    assert!(error.contains("redirects on and on"), "{error}");
}

#[test]
fn a_login_in_enroots_file_is_shown_to_its_registry_alone() {
    let bench = bench();
    // "$oauthtoken:secret", as NVIDIA's registry has it.
    let behaviour = Behaviour { token: Some("JG9hdXRodG9rZW46c2VjcmV0".to_owned()), ..Behaviour::default() };
    let fake = FakeRegistry::new(bench.layout(), behaviour);
    let name = format!("{}/x:1", fake.address);
    let home = bench.path().join("home");
    let directory = home.join(".config/enroot");
    std::fs::create_dir_all(&directory).unwrap();
    let with = |text: &str| {
        std::fs::write(directory.join(".credentials"), text).unwrap();
        Credentials::from_parts(None, None, None, Some(&home))
    };
    let login = "login $oauthtoken password secret";
    // Machines have no port there.
    ensure_text(&bench.store(), &name, &with(&format!("machine 127.0.0.1 {login}\n")), true).unwrap();
    assert!(fake.count("/token?scope=repository%3Ax%3Apull&service=fake auth") > 0, "{:?}", fake.log());
    let shown = fake.count("service=fake auth");
    for others in ["machine other.io", "machine 127.0.0.10", "default"] {
        let error = resolve_text(&name, &with(&format!("{others} {login}\n")), true).unwrap_err().to_string();
        assert!(error.contains("anonymous"), "{others}: {error}");
    }
    let by_shell = with("machine 127.0.0.1 login $oauthtoken password $(cat key)\n");
    let error = resolve_text(&name, &by_shell, true).unwrap_err().to_string();
    assert!(error.contains("made by a shell") && error.contains("enroot/.credentials"), "{error}");
    assert!(error.contains("127.0.0.1") && !error.contains("cat key"), "{error}");
    assert_eq!(fake.count("service=fake auth"), shown, "{:?}", fake.log());
}

/// What a name means at a registry without TLS.
fn pinned(name: &str, credentials: &Credentials) -> ResolvedManifest {
    let reference: Reference = name.parse().unwrap();
    let registries = Registries::default().without_tls_of(&reference);
    let options = ResolveOptions { registries, ..ResolveOptions::default() };
    match resolve(&reference, credentials, &options).unwrap() {
        Resolved::Manifest(manifest) => manifest,
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn who_waits_for_a_registry_that_wants_to_be_left_alone_is_told() {
    let bench = bench();
    let throttles = |busy: u32, busy_tokens: u32, wait: &str| Behaviour {
        busy,
        busy_tokens,
        token: Some(String::new()),
        busy_with: Some(("429 Too Many Requests", wait.to_owned())),
        ..Behaviour::default()
    };
    let heard = Arc::new(Mutex::new(Vec::<String>::new()));
    let take = || std::mem::take(&mut *heard.lock().unwrap());
    let hears = Arc::clone(&heard);
    let told = Credentials::anonymous().telling(move |text| hears.lock().unwrap().push(text.to_owned()));
    let said = |texts: &[String], who: &str| {
        assert_eq!(texts.len(), 1, "{texts:?}");
        let (start, end) = (format!("{who}, which answered 429 Too Many Requests"), "and is asked again in ");
        assert!(texts[0].starts_with(&start) && texts[0].contains(end), "{texts:?}");
    };
    let fake = FakeRegistry::new(bench.layout(), throttles(1, 0, "2"));
    let image = pinned(&format!("{}/x:1", fake.address), &told);
    said(&take(), &format!("registry {}", fake.address));
    let tokens = FakeRegistry::new(bench.layout(), throttles(0, 1, "2"));
    pinned(&format!("{}/x:1", tokens.address), &told);
    said(&take(), &format!("token server http://{}/token", tokens.address));
    // A moment is no matter.
    let quick = FakeRegistry::new(bench.layout(), throttles(2, 0, "0"));
    pinned(&format!("{}/x:1", quick.address), &told);
    assert_eq!(take(), Vec::<String>::new());

    // By the process that fetches for another one, too.
    let fake = FakeRegistry::new(bench.layout(), throttles(1, 0, "2"));
    let source = format!("docker://{}/x", fake.address);
    let image = ResolvedManifest { source, ..image };
    let registries = Registries::default().without_tls(&fake.address);
    let helpers = crate::mirrors::helpers(&bench, &registries, None, None);
    let events = Mutex::new(Vec::new());
    let progress = |event: ProgressEvent| {
        if let ProgressEvent::Delayed { what } = event {
            events.lock().unwrap().push(what);
        }
    };
    helpers.ensure(&bench.store(), &image, &progress).unwrap();
    said(&events.into_inner().unwrap(), &format!("registry {}", fake.address));
}
