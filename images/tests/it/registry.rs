//! Registries: a real one, with and without login, and one that misbehaves.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_model::login::Login;

use berth_images::{
    Algorithm, Credentials, Digest, ErrorKind, Manifests, Mirror, ProgressEvent, Reference, Registries,
    ResolveOptions, open_source, resolve,
};

use crate::support::fake::{Behaviour, FakeRegistry};
use crate::support::registry::{Authority, PASSWORD, RealRegistry, USER};
use crate::support::{Bench, Compression, ImageBuilder, Tar, ensure_text, only_layer, resolve_text};

fn image() -> ImageBuilder {
    let layer =
        Tar::new().dir("etc/", 0o755).file("etc/hostname", b"berth\n").file("big", &pattern(3 << 20)).end();
    ImageBuilder::new(vec![layer]).compressed(Compression::Gzip)
}

/// Bytes that do not compress away.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 12345u64;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

#[test]
fn a_real_registry_gives_gzip_zstd_and_plain_layers() {
    let registry = RealRegistry::open();
    for (n, compression) in [Compression::Plain, Compression::Gzip, Compression::Zstd].into_iter().enumerate()
    {
        let bench = Bench::new();
        let layout = bench.layout();
        let digest = ImageBuilder::new(vec![Tar::new().file("hello", format!("{n}").as_bytes()).end()])
            .compressed(compression)
            .write(&layout);
        registry.push(&layout.display().to_string(), &format!("x/y{n}:tag"));
        let image = ensure_text(
            &bench.store(),
            &registry.name(&format!("x/y{n}:tag")),
            &Credentials::anonymous(),
            true,
        )
        .unwrap();
        assert_eq!(image.digest, digest);
        assert_eq!(std::fs::read_to_string(only_layer(&image).join("hello")).unwrap(), format!("{n}"));
        assert_eq!(image.config.env, ["PATH=/bin"]);
        // By digest, too, in both spellings.
        let pinned = registry.name(&format!("x/y{n}@{digest}"));
        assert_eq!(resolve_text(&pinned, &Credentials::anonymous(), true).unwrap().digest, digest);
        let enroot = format!("docker://{}#x/y{n}:tag", registry.address);
        assert_eq!(resolve_text(&enroot, &Credentials::anonymous(), true).unwrap().digest, digest);
    }
}

#[test]
fn docker_manifests_are_read() {
    let registry = RealRegistry::open();
    let bench = Bench::new();
    let layout = bench.layout();
    image().write(&layout);
    let source = format!("oci:{}", layout.display());
    let target = format!("docker://{}/docker:1", registry.address);
    crate::support::tool(
        "skopeo",
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "--quiet",
            "--format",
            "v2s2",
            "--dest-tls-verify=false",
            &source,
            &target,
        ],
    );
    let image = ensure_text(&bench.store(), &target, &Credentials::anonymous(), true).unwrap();
    assert_eq!(std::fs::read(only_layer(&image).join("etc/hostname")).unwrap(), b"berth\n");
}

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
fn unreachable_registries_are_named() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = resolve_text(&format!("127.0.0.1:{port}/x"), &Credentials::anonymous(), true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("connection refused"), "{error}");
    let error = resolve_text("no-such-host.invalid/x", &Credentials::anonymous(), true).unwrap_err();
    assert!(error.to_string().contains("no-such-host.invalid"), "{error}");
    // TLS is spoken unless allowed otherwise, and the message says how to allow it.
    let registry = RealRegistry::open();
    let error = resolve_text(&registry.name("x"), &Credentials::anonymous(), false).unwrap_err().to_string();
    assert!(error.contains("it answers without TLS") && error.contains("--insecure"), "{error}");
    assert!(error.contains("images.insecure_registries"), "{error}");
}

#[test]
fn an_index_gives_the_image_of_this_machine_or_says_what_there_is() {
    let registry = RealRegistry::open();
    let bench = Bench::new();
    let layout = bench.layout();
    let digest = image().write(&layout);
    let ours = std::fs::read(crate::support::blob_path(&layout, &digest)).unwrap();
    let index = |arches: &[&str]| {
        let entries: Vec<_> = arches
            .iter()
            .map(|arch| {
                serde_json::json!({
                    "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": ours.len(),
                    "platform": {"os": "linux", "architecture": arch},
                })
            })
            .collect();
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}).to_string();
        let index_digest = berth_images::Digest::of(berth_images::Algorithm::Sha256, index.as_bytes());
        crate::support::put_blob(&layout, &index_digest, index.as_bytes());
        crate::support::write_layout(
            &layout,
            &serde_json::json!({"schemaVersion": 2, "manifests": [
                {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": index_digest.to_string(), "size": index.len()}]}),
        );
        index_digest
    };
    let index_digest = index(&["sparc64", crate::support::arch()]);
    registry.push_with(&layout.display().to_string(), "multi:1", &["--dest-no-creds"], true);
    let name = registry.name("multi:1");
    assert_eq!(resolve_text(&name, &Credentials::anonymous(), true).unwrap().digest, digest);
    let pinned = registry.name(&format!("multi@{index_digest}"));
    assert_eq!(resolve_text(&pinned, &Credentials::anonymous(), true).unwrap().digest, digest);

    index(&["sparc64", "mips"]);
    let error = resolve_text(&format!("oci:{}", layout.display()), &Credentials::anonymous(), true)
        .unwrap_err()
        .to_string();
    assert!(error.contains("linux/mips, linux/sparc64") && error.contains(crate::support::arch()), "{error}");
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
fn busy_registries_and_cut_connections_are_survived() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let fake = FakeRegistry::new(
        bench.layout(),
        Behaviour { busy: 2, cut_after: Some(1 << 20), ..Behaviour::default() },
    );
    let image =
        ensure_text(&bench.store(), &format!("{}/x:1", fake.address), &Credentials::anonymous(), true)
            .unwrap();
    assert_eq!(std::fs::read(only_layer(&image).join("big")).unwrap(), pattern(3 << 20));
    assert!(fake.count(" range") >= 2, "{:?}", fake.log());
}

/// Hands requests on to a registry, one after the other. In the middle of the first answer of more than `most` bytes it goes away, and comes
/// back where it was; then it is true.
fn restarting(to: String, most: usize) -> (String, Arc<AtomicBool>) {
    let mut listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (place, back) = (address.clone(), Arc::new(AtomicBool::new(false)));
    let is_back = Arc::clone(&back);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let most = if is_back.load(Ordering::SeqCst) { usize::MAX } else { most };
            let Some(answer) = asked(&stream, &to) else { continue };
            let _ = stream.write_all(&answer[..most.min(answer.len())]);
            drop(stream);
            if answer.len() > most {
                drop(listener);
                // For longer than who does not wait for it takes to give it up.
                std::thread::sleep(Duration::from_millis(1500));
                listener = loop {
                    match TcpListener::bind(&place) {
                        Ok(again) => break again,
                        Err(_) => std::thread::sleep(Duration::from_millis(20)),
                    }
                };
                is_back.store(true, Ordering::SeqCst);
            }
        }
    });
    (address, back)
}

/// What a registry answers to the one request of a connection.
fn asked(stream: &TcpStream, to: &str) -> Option<Vec<u8>> {
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let mut other = TcpStream::connect(to).ok()?;
    other.write_all(format!("{}\r\n\r\n", head.join("\r\n")).as_bytes()).ok()?;
    other.shutdown(Shutdown::Write).ok()?;
    let mut answer = Vec::new();
    other.read_to_end(&mut answer).ok()?;
    let end = answer.windows(2).position(|two| two == b"\r\n")? + 2;
    drop(answer.splice(end..end, *b"Connection: close\r\n"));
    Some(answer)
}

#[test]
fn a_registry_that_begins_anew_in_the_middle_of_a_blob_is_waited_for() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let fake = FakeRegistry::new(bench.layout(), Behaviour::default());
    let (address, back) = restarting(fake.address.clone(), 1 << 20);
    let image =
        ensure_text(&bench.store(), &format!("{address}/x:1"), &Credentials::anonymous(), true).unwrap();
    assert_eq!(std::fs::read(only_layer(&image).join("big")).unwrap(), pattern(3 << 20));
    assert!(back.load(Ordering::SeqCst), "it was not away");
    assert_eq!(fake.count(" range"), 1, "{:?}", fake.log());
}

#[test]
fn a_registry_without_ranges_that_cuts_is_given_up_with_a_message() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let fake = FakeRegistry::new(
        bench.layout(),
        Behaviour { no_ranges: true, cut_after: Some(1 << 20), ..Behaviour::default() },
    );
    let error =
        ensure_text(&bench.store(), &format!("{}/x:1", fake.address), &Credentials::anonymous(), true)
            .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("broke at byte 1048576"), "{error}");
    assert!(fake.log().len() < 30, "{:?}", fake.log());
    bench.assert_empty();
}

#[test]
fn a_registry_that_stays_busy_is_reported() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let fake = FakeRegistry::new(bench.layout(), Behaviour { busy: 1000, ..Behaviour::default() });
    let error = resolve_text(&format!("{}/x:1", fake.address), &Credentials::anonymous(), true)
        .unwrap_err()
        .to_string();
    assert!(error.contains("503") && error.contains("try again later"), "{error}");
    assert_eq!(fake.log().len(), 5);
}

#[test]
fn words_of_a_refusal_are_told_whatever_they_are_written_in() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let refusal = |says| {
        let behaviour = Behaviour { answers: Some("403 Forbidden"), says, ..Behaviour::default() };
        let fake = FakeRegistry::new(bench.layout(), behaviour);
        let name = format!("{}/x:1", fake.address);
        resolve_text(&name, &Credentials::anonymous(), true).unwrap_err().to_string()
    };
    for (says, told) in [
        ("closed until noon\n", "403 Forbidden (closed until noon) to"),
        ("<html><head><title>x</title></head><body><h1>Kept</h1>back</body></html>", "(Kept back)"),
        (
            r#"{"errors":[{"code":"DENIED","message":"no"},{"code":"UNKNOWN","message":"quota is used up"}]}"#,
            "(denied: no; unknown: quota is used up)",
        ),
        ("Forbidden", "403 Forbidden to anonymous"),
        ("", "403 Forbidden to anonymous"),
    ] {
        let text = refusal(says);
        assert!(text.contains(told), "{text}");
    }
}

#[test]
fn a_registry_that_throttles_is_left_alone_for_as_long_as_it_says() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let soon = || httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(3));
    let waits: [&dyn Fn() -> String; 2] = [&|| "2".to_owned(), &soon];
    for wait in waits {
        let wait = wait();
        let busy_with = Some(("429 Too Many Requests", wait.clone()));
        let fake =
            FakeRegistry::new(bench.layout(), Behaviour { busy: 1, busy_with, ..Behaviour::default() });
        let begun = std::time::Instant::now();
        resolve_text(&format!("{}/x:1", fake.address), &Credentials::anonymous(), true).unwrap();
        // A date has whole seconds.
        assert!(begun.elapsed() >= Duration::from_secs(1), "{wait}: {:?}", begun.elapsed());
        assert!(wait != "2" || begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(fake.log().len(), 2);
    }
    // Nobody waits for an hour, and nobody asks before.
    let busy_with = Some(("429 Too Many Requests", "3600".to_owned()));
    let fake = FakeRegistry::new(bench.layout(), Behaviour { busy: 1, busy_with, ..Behaviour::default() });
    let error = resolve_text(&format!("{}/x:1", fake.address), &Credentials::anonymous(), true)
        .unwrap_err()
        .to_string();
    assert!(error.contains("429") && error.contains("left alone for 3600 s"), "{error}");
    assert_eq!(fake.log().len(), 1);
}

#[test]
fn a_busy_token_server_is_asked_again_and_reported_after_five_times() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let anybody = Some(String::new());
    let busy = |busy_tokens, status: &'static str| Behaviour {
        token: anybody.clone(),
        busy_tokens,
        busy_with: Some((status, "0".into())),
        ..Behaviour::default()
    };
    for status in ["429 Too Many Requests", "503 Service Unavailable"] {
        let fake = FakeRegistry::new(bench.layout(), busy(3, status));
        resolve_text(&format!("{}/x:1", fake.address), &Credentials::anonymous(), true).unwrap();
        assert_eq!(fake.count("/token"), 4, "{:?}", fake.log());
    }
    let fake = FakeRegistry::new(bench.layout(), busy(1000, "503 Service Unavailable"));
    let error = resolve_text(&format!("{}/x:1", fake.address), &Credentials::anonymous(), true)
        .unwrap_err()
        .to_string();
    assert!(error.contains("token server") && error.contains("503"), "{error}");
    assert_eq!(fake.count("/token"), 5, "{:?}", fake.log());
}

#[test]
fn corrupt_blobs_are_refused_and_nothing_is_visible() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let fake = FakeRegistry::new(bench.layout(), Behaviour { corrupt: Some(1024), ..Behaviour::default() });
    let error =
        ensure_text(&bench.store(), &format!("{}/x:1", fake.address), &Credentials::anonymous(), true)
            .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let text = error.to_string();
    assert!(
        text.contains("layer sha256:") && text.contains("have digest") && text.contains("nothing was kept"),
        "{text}"
    );
    bench.assert_empty();
}

#[test]
fn a_lying_digest_header_is_refused() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let fake = FakeRegistry::new(bench.layout(), Behaviour { wrong_header: true, ..Behaviour::default() });
    let error = resolve_text(&format!("{}/x:1", fake.address), &Credentials::anonymous(), true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
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

#[test]
fn progress_adds_up() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let fake = FakeRegistry::new(
        bench.layout(),
        Behaviour { slow: Duration::from_millis(5), ..Behaviour::default() },
    );
    let reference: Reference = format!("{}/x:1", fake.address).parse().unwrap();
    let registries = Registries::default().without_tls_of(&reference);
    let options = ResolveOptions { registries, ..ResolveOptions::default() };
    let berth_images::Resolved::Manifest(resolved) =
        resolve(&reference, &Credentials::anonymous(), &options).unwrap()
    else {
        panic!()
    };
    let source = open_source(&resolved, &Registries::default(), &Credentials::anonymous()).unwrap();
    let events = Mutex::new(Vec::new());
    bench.store().ensure(&resolved, source.as_ref(), &|e| events.lock().unwrap().push(e)).unwrap();
    let events = events.into_inner().unwrap();
    let total = events
        .iter()
        .find_map(|e| {
            if let ProgressEvent::Start { layers: 1, cached: 0, bytes } = e { Some(*bytes) } else { None }
        })
        .unwrap();
    let fetched: u64 =
        events.iter().map(|e| if let ProgressEvent::Fetched { bytes } = e { *bytes } else { 0 }).sum();
    assert_eq!(fetched, total);
    assert!(events.iter().any(|e| matches!(e, ProgressEvent::LayerDone { .. })));
    assert!(events.contains(&ProgressEvent::Syncing));
}

#[test]
fn a_large_layer_holds_up_none_of_the_small_ones() {
    let bench = Bench::new();
    let large = Tar::new().file("large", &pattern(3 << 20)).end();
    let small = (0..4).map(|n| Tar::new().file(&format!("small{n}"), b"x").end());
    // It is the first that is fetched, and comes when the others are done.
    ImageBuilder::new(std::iter::once(large.clone()).chain(small).collect()).write(&bench.layout());
    let others = Arc::new(AtomicBool::new(false));
    let fake = FakeRegistry::new(
        bench.layout(),
        Behaviour { held: Some((1 << 20, Arc::clone(&others))), ..Behaviour::default() },
    );
    let name = format!("{}/x:1", fake.address);
    let resolved = resolve_text(&name, &Credentials::anonymous(), true).unwrap();
    let source = open_source(&resolved, &Registries::default(), &Credentials::anonymous()).unwrap();
    let done = Mutex::new(Vec::new());
    let told = |event: ProgressEvent| {
        if let ProgressEvent::LayerDone { diff_id } = event {
            let mut done = done.lock().unwrap();
            done.push(diff_id);
            others.store(done.len() >= 4, Ordering::SeqCst);
        }
    };
    bench.store().ensure(&resolved, source.as_ref(), &told).unwrap();
    let done = done.into_inner().unwrap();
    let large = Digest::of(Algorithm::Sha256, &large);
    assert_eq!((done.len(), done.last()), (5, Some(&large)), "the large layer is not the last: {done:?}");
}

/// What `name` means where registries are reached so, by somebody with this home directory.
fn resolve_so(name: &str, registries: Registries, home: &std::path::Path) -> berth_images::Result<()> {
    let options = ResolveOptions { registries, ..ResolveOptions::default() };
    let credentials = Credentials::from_parts(None, None, None, Some(home));
    resolve(&name.parse::<Reference>()?, &credentials, &options).map(|_| ())
}

#[test]
fn authorities_are_the_configurations_and_those_of_docker_and_podman() {
    let bench = Bench::new();
    let authority = Authority::new(bench.path());
    let registry = RealRegistry::with_tls(&authority.sign("server"), None);
    let layout = bench.layout();
    image().write(&layout);
    registry.push(&layout.display().to_string(), "tls:1");
    let name = registry.name("tls:1");
    let home = bench.path().join("home");

    let error = resolve_so(&name, Registries::default(), &home).unwrap_err().to_string();
    assert!(error.contains("certificate") && error.contains("images.certificate_authorities"), "{error}");
    // Of another authority of the same name it is not taken either.
    let other = bench.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let error = resolve_so(&name, Authority::new(&other).registries(), &home).unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    resolve_so(&name, authority.registries(), &home).unwrap();
    // Several in one file.
    let both = bench.path().join("both.pem");
    let text = [other.join("ca.pem"), authority.pem()].map(|f| std::fs::read_to_string(f).unwrap()).concat();
    std::fs::write(&both, text).unwrap();
    resolve_so(&name, Registries { certificate_authorities: vec![both], ..Registries::default() }, &home)
        .unwrap();

    // As podman keeps it, for this registry alone.
    let directory = home.join(".config/containers/certs.d").join(&registry.address);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::copy(authority.pem(), directory.join("ca.crt")).unwrap();
    resolve_so(&name, Registries::default(), &home).unwrap();
}

#[test]
fn a_clients_certificate_is_shown_to_its_registry() {
    let bench = Bench::new();
    let authority = Authority::new(bench.path());
    let registry = RealRegistry::with_tls(&authority.sign("server"), Some(&authority));
    let name = registry.name("none:1");
    let home = bench.path().join("home");
    let directory = home.join(".config/containers/certs.d").join(&registry.address);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::copy(authority.pem(), directory.join("ca.crt")).unwrap();
    let refused = resolve_so(&name, Registries::default(), &home).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unreachable, "{refused}");
    let (certificate, key) = authority.sign("client");
    std::fs::copy(certificate, directory.join("me.cert")).unwrap();
    let error = resolve_so(&name, Registries::default(), &home).unwrap_err().to_string();
    assert!(error.contains("me.key"), "{error}");
    std::fs::copy(authority.sign("another").1, directory.join("me.key")).unwrap();
    let error = resolve_so(&name, Registries::default(), &home).unwrap_err().to_string();
    assert!(error.contains("me.key") && error.contains("is not the key of"), "{error}");
    std::fs::copy(key, directory.join("me.key")).unwrap();
    // It answers: there is no such image.
    let answered = resolve_so(&name, Registries::default(), &home).unwrap_err();
    assert_eq!(answered.kind(), ErrorKind::NotFound, "{answered}");
}

/// What a name is pinned to by who knows these manifests.
fn pin(name: &str, registries: &Registries, manifests: &Manifests) -> Result<Digest, berth_images::Error> {
    let options = ResolveOptions {
        registries: registries.clone(),
        manifests: manifests.clone(),
        ..ResolveOptions::default()
    };
    match resolve(&name.parse()?, &Credentials::anonymous(), &options)? {
        berth_images::Resolved::Manifest(manifest) => Ok(manifest.digest),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_by_digest_is_that_image_whatever_is_said_to_head() {
    let bench = Bench::new();
    let write =
        |text: &[u8]| ImageBuilder::new(vec![Tar::new().file("a", text).end()]).write(&bench.layout());
    let (wanted, other) = (write(b"wanted"), write(b"other"));
    let honest = FakeRegistry::new(bench.layout(), Behaviour::default());
    let lies = Behaviour { head_says: Some(other.clone()), ..Behaviour::default() };
    let liar = FakeRegistry::new(bench.layout(), lies);
    let directly = Registries::default().without_tls(&liar.address);
    let urls = vec![format!("http://{}", liar.address)];
    let mirror = Mirror { registry: honest.address.clone(), urls, grants: false };
    let mirrors = vec![mirror];
    let mirrored = Registries { mirrors, ..Registries::default() }.without_tls(&honest.address);
    let plain = Registries::default().without_tls(&honest.address);
    for known in [false, true] {
        for (host, registries) in [(&liar.address, &directly), (&honest.address, &mirrored)] {
            let manifests = Manifests::at(&bench.path().join(format!("cache-{known}-{host}")));
            if known {
                let tag = format!("{}/x:1", honest.address);
                assert_eq!(pin(&tag, &plain, &manifests).unwrap(), other);
            }
            let found = pin(&format!("{host}/x@{wanted}"), registries, &manifests);
            assert_eq!(found.unwrap(), wanted, "known: {known}, {host}");
        }
    }
    assert_eq!(liar.count("HEAD "), 4, "{:?}", liar.log());
}

#[test]
fn a_tag_that_means_the_same_is_asked_for_by_head_alone() {
    let bench = Bench::new();
    image().write(&bench.layout());
    let fake = FakeRegistry::new(bench.layout(), Behaviour::default());
    let place = bench.path().join("cache/manifests");
    let pin = |address: &str, manifests: &Manifests| {
        pin(&format!("{address}/x:1"), &Registries::default().without_tls(address), manifests)
    };
    let known = Manifests::at(&place);
    let counts = || (fake.count("HEAD "), fake.count("GET "));
    let digest = pin(&fake.address, &known).unwrap();
    assert_eq!(counts(), (1, 1));
    for n in 2..5 {
        assert_eq!(pin(&fake.address, &Manifests::at(&place)).unwrap(), digest);
        assert_eq!(counts(), (n, 1));
    }
    // Where it is damaged or gone, the registry is asked, and it is made good.
    let file = std::fs::read_dir(&place).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&file, "{}").unwrap();
    assert_eq!(pin(&fake.address, &known).unwrap(), digest);
    assert_eq!(counts(), (5, 2));
    assert_eq!(pin(&fake.address, &known).unwrap(), digest);
    assert_eq!(counts(), (6, 2));
    // A tag that was moved.
    let moved = ImageBuilder::new(vec![Tar::new().file("other", b"x").end()]).write(&bench.layout());
    assert_eq!(pin(&fake.address, &known).unwrap(), moved);
    assert_eq!(counts(), (7, 3));

    // A registry that knows no HEAD is asked for the whole.
    let mute = FakeRegistry::new(bench.layout(), Behaviour { no_head: true, ..Behaviour::default() });
    assert_eq!(pin(&mute.address, &known).unwrap(), moved);
    assert_eq!(pin(&mute.address, &known).unwrap(), moved);
    assert_eq!((mute.count("HEAD "), mute.count("GET ")), (2, 2));
    // What is known opens nothing: a registry that refuses, refuses.
    let closed = Behaviour { token: Some("nobody".to_owned()), ..Behaviour::default() };
    let closed = FakeRegistry::new(bench.layout(), closed);
    let error = pin(&closed.address, &known).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    // One that is busy is not asked twice as often for it.
    let busy = FakeRegistry::new(bench.layout(), Behaviour { busy: 1000, ..Behaviour::default() });
    assert!(pin(&busy.address, &known).unwrap_err().to_string().contains("503"));
    assert_eq!(busy.log().len(), 5);
}
