//! Registries that answer as the standards let them and few do, or as nobody should.

use berth_images::Credentials;

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
