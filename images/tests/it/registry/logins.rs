//! Logins: needed, used, refused with a reason, exchanged for tokens, and sent nowhere but to the registry that they are for.

use super::image;
use crate::support::fake::{Behaviour, FakeRegistry};
use crate::support::registry::{PASSWORD, RealRegistry, USER};
use crate::support::{Bench, ensure_text, resolve_text};
use berth_images::{Credentials, ErrorKind, Registries};
use berth_model::login::Login;

#[test]
fn a_login_is_needed_used_and_its_refusal_explained() {
    let registry = RealRegistry::with_login();
    let bench = Bench::new();
    let layout = bench.layout();
    image().write(&layout);
    registry.push_as_user(&layout.display().to_string(), "private:1");
    let name = registry.name("private:1");

    let error = resolve_text(&name, &Credentials::anonymous(), true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    let text = error.to_string();
    assert!(
        text.contains(&registry.address) && text.contains("anonymous") && text.contains("berth image login"),
        "{text}"
    );

    let wrong = registry.login(USER, "wrong");
    let text = resolve_text(&name, &wrong, true).unwrap_err().to_string();
    assert!(text.contains(USER) && text.contains("401") && text.contains("login"), "{text}");
    assert!(!text.contains("wrong\""), "{text}");

    let right = registry.login(USER, PASSWORD);
    ensure_text(&bench.store(), &name, &right, true).unwrap();
    let text = resolve_text(&format!("docker://bob@{}#private:1", registry.address), &right, true)
        .unwrap_err()
        .to_string();
    assert!(text.contains("bob"), "{text}");
    resolve_text(&format!("docker://{USER}@{}#private:1", registry.address), &right, true).unwrap();

    let text = resolve_text(&registry.name("private:none"), &right, true).unwrap_err().to_string();
    assert!(text.contains("there is no image \"none\"") && text.contains("check the spelling"), "{text}");
}

#[test]
fn tokens_are_fetched_renewed_and_refused() {
    let bench = Bench::new();
    image().write(&bench.layout());
    // "alice:secret"
    let auth = "YWxpY2U6c2VjcmV0";
    let fake = FakeRegistry::new(
        bench.layout(),
        Behaviour { token: Some(auth.to_owned()), token_uses: Some(1), ..Behaviour::default() },
    );
    let home = bench.path().join("docker");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(
        home.join("config.json"),
        format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, fake.address),
    )
    .unwrap();
    let credentials = Credentials::from_parts(Some(&home), None, None, None);
    ensure_text(&bench.store(), &format!("{}/x:1", fake.address), &credentials, true).unwrap();
    // Each token works once, so that each of manifest (twice), configuration and layer needed its own.
    assert!(fake.count("/token?scope=repository%3Ax%3Apull&service=fake auth") >= 3, "{:?}", fake.log());
    let error = resolve_text(&format!("{}/x:1", fake.address), &Credentials::anonymous(), true)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("token server")
            && error.contains("incorrect username or password")
            && error.contains("anonymous"),
        "{error}"
    );
}

#[test]
fn an_identity_token_is_exchanged_for_tokens_and_goes_nowhere_else() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let fake = FakeRegistry::new(
        bench.layout(),
        Behaviour {
            token: Some(String::new()),
            identity: Some("its-own-secret"),
            token_uses: Some(1),
            ..Behaviour::default()
        },
    );
    let name = format!("{}/x:1", fake.address);
    let with = |token: &str| {
        let home = bench.path().join("docker");
        std::fs::create_dir_all(&home).unwrap();
        // As docker keeps one: the user beside it says nothing.
        let entry = serde_json::json!({"auth": "MDAwMDo=", "identitytoken": token});
        let config = serde_json::json!({"auths": {&fake.address: entry}}).to_string();
        std::fs::write(home.join("config.json"), config).unwrap();
        Credentials::from_parts(Some(&home), None, None, None)
    };
    ensure_text(&bench.store(), &name, &with("its-own-secret"), true).unwrap();
    assert!(fake.count("POST /token") >= 3, "{:?}", fake.log());
    assert_eq!(fake.count("GET /token"), 0, "{:?}", fake.log());
    assert_eq!(fake.count("its-own-secret"), 0, "no address has it: {:?}", fake.log());
    let error = resolve_text(&name, &with("another-secret"), true).unwrap_err().to_string();
    assert!(error.contains("a stored identity token") && error.contains("no such identity token"), "{error}");
    assert!(!error.contains("another-secret"), "{error}");
}

#[test]
fn helpers_give_logins() {
    use std::os::unix::fs::PermissionsExt;
    let registry = RealRegistry::with_login();
    let bench = Bench::new();
    let layout = bench.layout();
    image().write(&layout);
    registry.push_as_user(&layout.display().to_string(), "private:1");
    // Helpers are found by name in PATH, which the test may not change for itself: a process of its own has one with the helper.
    let programs = bench.path().join("bin");
    std::fs::create_dir(&programs).unwrap();
    let helper = programs.join("docker-credential-berth-test");
    let script = format!(
        "#!/bin/sh\nread -r server\n[ \"$1 $server\" = \"get {}\" ] || {{ echo credentials not found; exit 1; }}\necho '{{\"ServerURL\":\"\",\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n",
        registry.address
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let usual = std::env::var("PATH").unwrap();
    let import = |config: &serde_json::Value, path: &str| {
        let home = bench.path().join("docker");
        std::fs::create_dir_all(&home).unwrap();
        std::fs::write(home.join("config.json"), config.to_string()).unwrap();
        let mut command = std::process::Command::new(crate::concurrency::program());
        command
            .args(["--insecure", "--store"])
            .arg(bench.path().join("store"))
            .arg(registry.name("private:1"));
        command.env("DOCKER_CONFIG", &home).env("HOME", bench.path()).env("PATH", path);
        command.env_remove("REGISTRY_AUTH_FILE").env_remove("XDG_RUNTIME_DIR").output().unwrap()
    };
    let with_helper = format!("{}:{usual}", programs.display());
    for config in [
        serde_json::json!({"credHelpers": {&registry.address: "berth-test"}}),
        serde_json::json!({"credsStore": "berth-test", "auths": {&registry.address: {}}}),
    ] {
        let output = import(&config, &with_helper);
        assert!(output.status.success(), "{config}: {}", String::from_utf8_lossy(&output.stderr));
        // Nothing else gave the login.
        let output = import(&config, &usual);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains("docker-credential-berth-test"),
            "{config}: {said}"
        );
    }
}

#[test]
fn logins_do_not_follow_redirects() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let storage = FakeRegistry::new(bench.layout(), Behaviour::default());
    let front = Behaviour {
        token: Some(String::new()),
        redirect: Some(format!("http://{}", storage.address)),
        ..Behaviour::default()
    };
    let fake = FakeRegistry::new(bench.layout(), front);
    ensure_text(&bench.store(), &format!("{}/x:1", fake.address), &Credentials::anonymous(), true).unwrap();
    assert!(
        fake.count("/blobs/") >= 2 && fake.log().iter().any(|l| l.contains("/blobs/") && l.contains("auth"))
    );
    assert!(storage.count("/blobs/") == 2 && storage.count("auth") == 0, "{:?}", storage.log());
}

/// "alice:secret"
const ALICE: &str = "YWxpY2U6c2VjcmV0";

/// A directory with alice's login for the registry.
fn alice(bench: &Bench, registry: &str) -> Credentials {
    let home = bench.path().join("alice");
    std::fs::create_dir(&home).unwrap();
    let entry = format!(r#"{{"auths":{{"{registry}":{{"auth":"{ALICE}"}}}}}}"#);
    std::fs::write(home.join("config.json"), entry).unwrap();
    Credentials::from_parts(Some(&home), None, None, None)
}

/// As a job brings it: a login with password `secret`.
fn brought(credentials: Credentials, registry: &str, user: &str) -> Credentials {
    let secret = format!(r#"{{"basic":{{"user":"{user}","password":"secret"}}}}"#);
    let login = Login { registry: registry.to_owned(), secret: secret.as_str().into() };
    credentials.with_login(&login).unwrap()
}

#[test]
fn a_host_that_a_registry_redirects_to_gets_no_login_by_asking_for_one() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let lure = FakeRegistry::new(bench.layout(), Behaviour { lures: true, ..Behaviour::default() });
    let redirect = Some(format!("http://{}", lure.address));
    let unlured = |error: berth_images::Error| {
        let text = error.to_string();
        assert!(text.contains(&lure.address) && text.contains("401") && text.contains("anonymous"), "{text}");
        assert_eq!((lure.count("/token"), lure.count(" auth")), (0, 0), "{:?}", lure.log());
    };
    // Of a blob, behind a registry that wants a login itself.
    let front =
        Behaviour { token: Some(ALICE.to_owned()), redirect: redirect.clone(), ..Behaviour::default() };
    let front = FakeRegistry::new(bench.layout(), front);
    let credentials = alice(&bench, &front.address);
    let name = format!("{}/x:1", front.address);
    unlured(ensure_text(&bench.store(), &name, &credentials, true).unwrap_err());
    assert!(lure.count("/blobs/") > 0);
    // Of a manifest, and when logging in.
    let open = Behaviour { redirect: redirect.clone(), redirect_all: true, ..Behaviour::default() };
    let open = FakeRegistry::new(bench.layout(), open);
    let credentials = brought(Credentials::anonymous(), &open.address, "alice");
    unlured(resolve_text(&format!("{}/x:1", open.address), &credentials, true).unwrap_err());
    let home = bench.path().join("new");
    std::fs::create_dir(&home).unwrap();
    let registries = Registries::default().without_tls(&open.address);
    let new = Credentials::from_parts(Some(&home), None, None, None);
    unlured(new.login(&open.address.parse().unwrap(), "alice", "secret", &registries).unwrap_err());
    assert!(!home.join("config.json").exists());
}

#[test]
fn a_jobs_login_is_kept_whatever_storage_behind_its_registry_says() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let closed = Behaviour { answers: Some("403 Forbidden"), ..Behaviour::default() };
    let storage = FakeRegistry::new(bench.layout(), closed);
    let front = Behaviour {
        token: Some(ALICE.to_owned()),
        redirect: Some(format!("http://{}", storage.address)),
        ..Behaviour::default()
    };
    let fake = FakeRegistry::new(bench.layout(), front);
    let credentials = brought(Credentials::anonymous(), &fake.address, "alice");
    let name = format!("{}/x:1", fake.address);
    let error = ensure_text(&bench.store(), &name, &credentials, true).unwrap_err().to_string();
    assert!(error.contains(&storage.address) && error.contains("403"), "{error}");
    let log = fake.log();
    assert!(log.iter().filter(|line| line.contains("/token")).all(|line| line.ends_with(" auth")), "{log:?}");
}

#[test]
fn a_jobs_login_that_does_not_see_the_image_gives_way_to_an_own_one() {
    let bench = Bench::new();
    image().write(&bench.layout());
    // "bob:secret"
    let hiding = Behaviour {
        token: Some(String::new()),
        hides_from: Some("Ym9iOnNlY3JldA==".to_owned()),
        ..Behaviour::default()
    };
    let fake = FakeRegistry::new(bench.layout(), hiding);
    let name = format!("{}/x:1", fake.address);
    let credentials = brought(alice(&bench, &fake.address), &fake.address, "bob");
    ensure_text(&bench.store(), &name, &credentials, true).unwrap();
    // Where there is no other one, it is not there.
    let alone = brought(Credentials::anonymous(), &fake.address, "bob");
    let error = resolve_text(&name, &alone, true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("bob"), "{error}");
}
