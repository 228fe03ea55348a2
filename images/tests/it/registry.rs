//! Registries: a real one, with and without login, and one that misbehaves.

mod busy;
mod logins;

use crate::support::fake::{Behaviour, FakeRegistry};
use crate::support::registry::{Authority, RealRegistry};
use crate::support::{Bench, Compression, ImageBuilder, Tar, ensure_text, only_layer, resolve_text};
use berth_images::{
    Algorithm, Credentials, Digest, ErrorKind, Manifests, Mirror, ProgressEvent, Reference, Registries,
    ResolveOptions, open_source, resolve,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
