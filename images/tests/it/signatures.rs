//! Signatures by cosign's formats, in a real registry, made with openssl: which count, and which do not whatever a registry says.

use std::io::{Cursor, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use berth_images::{
    Algorithm, BlobKind, BlobSource, Credentials, Digest, Error, ErrorKind, Helpers, ProgressEvent,
    Registries, ResolvedManifest, SignerKey, Signers, Store, Verdict, look_for_signature, open_source,
};
use serde_json::{Value, json};

use crate::support::registry::RealRegistry;
use crate::support::{Bench, ImageBuilder, Tar, arch, blob_path, put_blob, resolve_text, tool, write_layout};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// A key pair of openssl's.
struct Pair {
    directory: tempfile::TempDir,
    edwards: bool,
}

impl Pair {
    fn new(options: &[&str]) -> Pair {
        let directory = tempfile::tempdir().unwrap();
        let (private, public) = (directory.path().join("key"), directory.path().join("pub"));
        let mut words = vec!["genpkey"];
        words.extend(options);
        words.extend(["-out", private.to_str().unwrap()]);
        tool("openssl", "openssl", &words);
        let words = ["pkey", "-in", private.to_str().unwrap(), "-pubout", "-out", public.to_str().unwrap()];
        tool("openssl", "openssl", &words);
        Pair { directory, edwards: options.contains(&"ED25519") }
    }

    fn p256() -> Pair {
        Pair::new(&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])
    }

    fn public(&self, name: &str) -> SignerKey {
        let pem = std::fs::read_to_string(self.directory.path().join("pub")).unwrap();
        SignerKey { name: name.to_owned(), pem }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        std::fs::write(at("message"), message).unwrap();
        let (key, message, out) = (at("key"), at("message"), at("signature"));
        if self.edwards {
            let words = ["pkeyutl", "-sign", "-rawin", "-inkey", &key, "-in", &message, "-out", &out];
            tool("openssl", "openssl", &words);
        } else {
            tool("openssl", "openssl", &["dgst", "-sha256", "-sign", &key, "-out", &out, &message]);
        }
        std::fs::read(out).unwrap()
    }
}

/// A repository of a real registry with an image that two tags name, one by an index.
struct Site {
    registry: RealRegistry,
    bench: Bench,
}

impl Site {
    fn new() -> Site {
        let site = Site { registry: RealRegistry::open(), bench: Bench::new() };
        site.image("team/app", b"good");
        site
    }

    /// Pushes an image by tag `1`, and as an index by tag `all`.
    fn image(&self, repository: &str, content: &[u8]) -> Digest {
        let layout = self.bench.path().join(repository.replace('/', "-"));
        std::fs::create_dir_all(&layout).unwrap();
        let digest = ImageBuilder::new(vec![Tar::new().file("a", content).end()]).write(&layout);
        self.registry.push(&layout.display().to_string(), &format!("{repository}:1"));
        let size = std::fs::metadata(blob_path(&layout, &digest)).unwrap().len();
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": MANIFEST, "digest": digest.to_string(), "size": size,
                "platform": {"architecture": arch(), "os": "linux"},
            }],
        });
        self.put(repository, "all", index["mediaType"].as_str().unwrap(), index.to_string().as_bytes());
        digest
    }

    fn url(&self, rest: &str) -> String {
        format!("http://{}/v2/{rest}", self.registry.address)
    }

    /// Stores a manifest; gives its digest.
    fn put(&self, repository: &str, tag: &str, kind: &str, bytes: &[u8]) -> Digest {
        let url = self.url(&format!("{repository}/manifests/{tag}"));
        let sent = ureq::put(url).header("content-type", kind).send(bytes).unwrap();
        assert!(sent.status().is_success());
        Digest::of(Algorithm::Sha256, bytes)
    }

    /// Stores a blob; gives its descriptor.
    fn blob(&self, repository: &str, kind: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(Algorithm::Sha256, bytes).to_string();
        let begun = ureq::post(self.url(&format!("{repository}/blobs/uploads/"))).send_empty().unwrap();
        let place = begun.headers().get("location").unwrap().to_str().unwrap();
        let mark = if place.contains('?') { '&' } else { '?' };
        let sent = ureq::put(format!("{place}{mark}digest={digest}"))
            .header("content-type", "application/octet-stream")
            .send(bytes)
            .unwrap();
        assert!(sent.status().is_success());
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    }

    /// Stores a manifest with these layers where cosign puts signatures of `subject`.
    fn attach(&self, repository: &str, subject: &Digest, layers: &[Value]) {
        let config = self.blob(repository, "application/vnd.oci.image.config.v1+json", b"{}");
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let tag = format!("sha256-{}.sig", subject.hex());
        self.put(repository, &tag, MANIFEST, manifest.to_string().as_bytes());
    }

    /// A layer as cosign signs.
    fn signature(&self, repository: &str, by: &Pair, payload: &[u8]) -> Value {
        let mut layer = self.blob(repository, SIMPLE, payload);
        layer["annotations"] =
            json!({"dev.cosignproject.cosign/signature": STANDARD.encode(by.sign(payload))});
        layer
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.registry.address)
    }

    fn resolve(&self, rest: &str) -> ResolvedManifest {
        resolve_text(&self.name(rest), &Credentials::anonymous(), true).unwrap()
    }

    fn registries(&self) -> Registries {
        Registries::default().without_tls(&self.registry.address)
    }

    fn look(&self, image: &ResolvedManifest, keys: Vec<SignerKey>) -> Verdict {
        let signers = Signers { required: true, keys, identity: image.place() };
        let source = open_source(image, &self.registries(), &Credentials::anonymous()).unwrap();
        look_for_signature(image, source.as_ref(), &signers).unwrap()
    }

    /// Why an image does not count as signed by a key.
    fn refusal(&self, image: &ResolvedManifest, by: &Pair) -> String {
        let verdict = self.look(image, vec![by.public("team.pub")]);
        assert_eq!(verdict.signed_by, None, "{verdict:?}");
        verdict.why
    }
}

fn payload(digest: &Digest, name: &str) -> Vec<u8> {
    json!({
        "critical": {
            "identity": {"docker-reference": name},
            "image": {"docker-manifest-digest": digest.to_string()},
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string()
    .into_bytes()
}

fn bundle(by: &Pair, predicate: &str, digest: &Digest) -> Vec<u8> {
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1", "predicateType": predicate, "predicate": {},
        "subject": [{"name": "", "digest": {"sha256": digest.hex()}}],
    })
    .to_string();
    let kind = "application/vnd.in-toto+json";
    let signed = by.sign(format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len()).as_bytes());
    json!({
        "mediaType": BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": "x"}},
        "dsseEnvelope": {
            "payload": STANDARD.encode(statement), "payloadType": kind,
            "signatures": [{"sig": STANDARD.encode(signed)}],
        },
    })
    .to_string()
    .into_bytes()
}

const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";

#[test]
fn every_kind_of_key_counts() {
    let site = Site::new();
    let image = site.resolve("team/app:1");
    for options in [
        &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"][..],
        &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
        &["-algorithm", "ED25519"],
        &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    ] {
        let (pair, other) = (Pair::new(options), Pair::p256());
        let layer = site.signature("team/app", &pair, &payload(&image.digest, &site.name("team/app")));
        let stranger =
            site.signature("team/app", &Pair::p256(), &payload(&image.digest, &site.name("team/app")));
        site.attach("team/app", &image.digest, &[stranger, layer]);
        let verdict = site.look(&image, vec![other.public("other.pub"), pair.public("team.pub")]);
        assert_eq!(verdict.signed_by.as_ref(), verdict.keys.get(1), "{options:?}: {verdict:?}");
        assert!(verdict.signed_by.is_some());
        assert_eq!(verdict.subject.as_ref(), Some(&image.digest));
        assert_eq!(site.refusal(&image, &other), "2 by other keys");
    }
    let weak = Pair::new(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]);
    let layer = site.signature("team/app", &weak, &payload(&image.digest, &site.name("team/app")));
    site.attach("team/app", &image.digest, &[layer]);
    assert_eq!(site.refusal(&image, &weak), "1 by other keys", "a key that is too short signs nothing");
}

#[test]
fn a_signed_index_counts_for_what_it_lists_alone() {
    let site = Site::new();
    let pair = Pair::p256();
    let image = site.resolve("team/app:all");
    let [index] = &image.indexes[..] else { panic!("{image:?}") };
    let layer = site.signature("team/app", &pair, &payload(index, &site.name("team/app")));
    site.attach("team/app", index, std::slice::from_ref(&layer));
    let verdict = site.look(&image, vec![pair.public("team.pub")]);
    assert_eq!(verdict.subject.as_ref(), Some(index), "{verdict:?}");
    // Named without the index, nothing leads to its signature.
    assert!(site.refusal(&site.resolve("team/app:1"), &pair).contains("has no signature"));
    // Another image does not become signed by saying that the index lists it.
    let layout = site.bench.layout();
    let other = ImageBuilder::new(vec![Tar::new().file("a", b"evil").end()]).write(&layout);
    site.registry.push(&layout.display().to_string(), "team/app:evil");
    let claimed = ResolvedManifest { indexes: vec![index.clone()], ..site.resolve("team/app:evil") };
    let why = site.refusal(&claimed, &pair);
    assert!(why.contains(&format!("does not list {other}")), "{why}");
}

#[test]
fn what_is_signed_is_this_image_by_this_name() {
    let site = Site::new();
    let (pair, own) = (Pair::p256(), site.name("team/app"));
    let image = site.resolve("team/app:1");
    let other = site.image("team/other", b"other");
    let refused = |payload: Vec<u8>| {
        site.attach("team/app", &image.digest, &[site.signature("team/app", &pair, &payload)]);
        site.refusal(&image, &pair)
    };
    // Of another image, moved here.
    assert!(refused(payload(&other, &own)).contains(&format!("team.pub signed another image {other}")));
    // By another name.
    for name in ["team/app-evil", "team", "team/app/x"] {
        let why = refused(payload(&image.digest, &site.name(name)));
        assert!(why.contains("team.pub signed it as") && why.contains(&own), "{name}: {why}");
    }
    assert!(refused(payload(&image.digest, "no name at all!")).contains("signed it as"));
    // Something else that the key signed.
    let atomic = String::from_utf8(payload(&image.digest, &own))
        .unwrap()
        .replace("cosign container image", "atomic container");
    assert!(refused(atomic.into_bytes()).contains("signed something that is no image"));
    assert!(refused(b"{}".to_vec()).contains("signed something that is no image"));
    let twice = format!(
        r#"{{"critical":{{"identity":{{}},"image":{{"docker-manifest-digest":"{}","docker-manifest-digest":"{other}"}},"type":"cosign container image signature"}}}}"#,
        image.digest
    );
    assert!(refused(twice.into_bytes()).contains("signed something that is no image"));
    // With a tag, and without a name, it counts.
    for name in [format!("{own}:1"), own.clone(), String::new()] {
        site.attach(
            "team/app",
            &image.digest,
            &[site.signature("team/app", &pair, &payload(&image.digest, &name))],
        );
        assert!(site.look(&image, vec![pair.public("team.pub")]).signed_by.is_some(), "{name}");
    }
}

#[test]
fn bundles_count_at_the_list_of_referrers() {
    let site = Site::new();
    let pair = Pair::p256();
    let image = site.resolve("team/app:1");
    let attach = |bundle: &[u8]| {
        let layer = site.blob("team/app", BUNDLE, bundle);
        let config = site.blob("team/app", "application/vnd.oci.empty.v1+json", b"{}");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BUNDLE, "config": config, "layers": [layer],
        })
        .to_string();
        let digest = site.put("team/app", "bundle", MANIFEST, manifest.as_bytes());
        // This registry keeps no list; clients do, at a tag.
        let list = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": MANIFEST, "digest": digest.to_string(), "size": manifest.len(), "artifactType": BUNDLE,
            }],
        });
        let tag = format!("sha256-{}", image.digest.hex());
        site.put("team/app", &tag, list["mediaType"].as_str().unwrap(), list.to_string().as_bytes());
    };
    attach(&bundle(&pair, SIGN, &image.digest));
    assert!(site.look(&image, vec![pair.public("team.pub")]).signed_by.is_some());
    assert_eq!(site.refusal(&image, &Pair::p256()), "1 by other keys");
    // What the key says about an image is not that the image may run.
    attach(&bundle(&pair, "https://slsa.dev/provenance/v1", &image.digest));
    assert!(site.refusal(&image, &pair).contains("signed something that is no image"));
    attach(&bundle(&pair, SIGN, &Digest::of(Algorithm::Sha256, b"other")));
    assert!(site.refusal(&image, &pair).contains("signed another image"));
    // Keyless ones are named.
    let mut keyless: Value = serde_json::from_slice(&bundle(&pair, SIGN, &image.digest)).unwrap();
    keyless["verificationMaterial"] = json!({"certificate": {"rawBytes": ""}});
    attach(keyless.to_string().as_bytes());
    assert!(site.refusal(&image, &Pair::p256()).contains("keyless"));
    attach(b"[[[[");
    assert!(site.refusal(&image, &pair).contains("malformed"));
}

#[test]
fn nothing_that_a_registry_says_hurts() {
    let site = Site::new();
    let pair = Pair::p256();
    let image = site.resolve("team/app:1");
    assert!(site.refusal(&image, &pair).contains("has no signature"));
    let good = site.signature("team/app", &pair, &payload(&image.digest, &site.name("team/app")));
    let with = |field: &str, value: Value| {
        let mut layer = good.clone();
        layer[field] = value;
        layer
    };
    let big = site.blob("team/app", SIMPLE, &vec![b' '; 300 << 10]);
    let lying = with("size", json!(1u64 << 60));
    let annotated = |text: String| with("annotations", json!({"dev.cosignproject.cosign/signature": text}));
    for (layer, says) in [
        (big, "too large"),
        (lying, "too large"),
        (annotated("A".repeat(20 << 10)), "too large"),
        (annotated("no base64!".into()), "malformed"),
        (annotated(String::new()), "by other keys"),
        (with("digest", json!("md5:d41d8cd98f00b204e9800998ecf8427e")), "malformed"),
        (with("digest", json!(format!("sha256:{}", "0".repeat(64)))), "missing"),
    ] {
        // A registry that judges what it takes refuses some of them; a hostile one would not.
        let mut image = image.clone();
        let layout = self::served(&site, &mut image, &[layer]);
        let why = layout.refusal(&image, &pair);
        assert!(why.contains(says), "wanted {says}: {why}");
    }
}

/// The same image in a registry that takes everything, with these signatures.
fn served(site: &Site, image: &mut ResolvedManifest, layers: &[Value]) -> Hostile {
    use crate::support::fake::{Behaviour, FakeRegistry};
    let directory = tempfile::tempdir().unwrap();
    let layout = directory.path().to_path_buf();
    for layer in layers {
        if let Ok(digest) = layer["digest"].as_str().unwrap().parse::<Digest>()
            && let Some(bytes) = site.fetched("team/app", &digest)
        {
            put_blob(&layout, &digest, &bytes);
        }
    }
    // It has one image for every tag: that of signatures.
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": {}, "layers": layers}).to_string();
    let digest = Digest::of(Algorithm::Sha256, manifest.as_bytes());
    put_blob(&layout, &digest, manifest.as_bytes());
    let entry = json!({"mediaType": MANIFEST, "digest": digest.to_string(), "size": manifest.len()});
    write_layout(&layout, &json!({"schemaVersion": 2, "manifests": [entry]}));
    let fake = FakeRegistry::new(layout, Behaviour::default());
    image.source = format!("docker://{}/team/app", fake.address);
    Hostile { fake, _directory: directory }
}

struct Hostile {
    fake: crate::support::fake::FakeRegistry,
    _directory: tempfile::TempDir,
}

impl Hostile {
    fn refusal(&self, image: &ResolvedManifest, by: &Pair) -> String {
        let registries = Registries::default().without_tls(&self.fake.address);
        let keys = vec![by.public("team.pub")];
        let signers = Signers { required: true, keys, identity: image.place() };
        let source = open_source(image, &registries, &Credentials::anonymous()).unwrap();
        let verdict = look_for_signature(image, source.as_ref(), &signers).unwrap();
        assert_eq!(verdict.signed_by, None, "{verdict:?}");
        verdict.why
    }
}

impl Site {
    fn fetched(&self, repository: &str, digest: &Digest) -> Option<Vec<u8>> {
        let got = ureq::get(self.url(&format!("{repository}/blobs/{digest}"))).call().ok()?;
        got.into_body().into_with_config().limit(1 << 20).read_to_vec().ok()
    }
}

#[test]
fn the_unpacker_refuses_before_a_layer_comes_and_remembers_what_it_saw() {
    let site = Site::new();
    let (pair, later) = (Pair::p256(), Pair::p256());
    let image = site.resolve("team/app:1");
    let signers = |required, by: &Pair| {
        Some(Signers { required, keys: vec![by.public("team.pub")], identity: image.place() })
    };
    let helpers = |signers| helpers_of(site.registries(), signers);
    let store = site.bench.store();
    let error = helpers(signers(true, &pair)).ensure(&store, &image, &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let text = error.to_string();
    for part in ["requires a signature by team.pub", "has no signature", "team/app:1", "cosign sign"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    site.bench.assert_empty();
    // One that is there from before does not count for more.
    drop(helpers(None).ensure(&store, &image, &()).unwrap());
    assert!(helpers(signers(true, &pair)).ensure(&store, &image, &()).is_err());
    // Where people are only told, they are told each time.
    for _ in 0..2 {
        let told = std::sync::Mutex::new(Vec::new());
        let hear = |event: ProgressEvent| {
            if let ProgressEvent::Unsigned { text } = event {
                told.lock().unwrap().push(text);
            }
        };
        helpers(signers(false, &pair)).ensure(&store, &image, &hear).unwrap();
        let told = told.into_inner().unwrap();
        assert!(matches!(&told[..], [text] if text.contains("has no signature")), "{told:?}");
    }
    // Having looked in vain is no reason not to look again where it is required.
    let layer = site.signature("team/app", &pair, &payload(&image.digest, &site.name("team/app")));
    site.attach("team/app", &image.digest, &[layer]);
    drop(helpers(signers(true, &pair)).ensure(&store, &image, &()).unwrap());
    let verdicts = store.inspect(&image.digest).unwrap().signatures;
    assert_eq!(verdicts.iter().filter(|v| v.signed_by.is_some()).count(), 1, "{verdicts:?}");
    // Another key, another look; and by another name it is not signed.
    assert!(helpers(signers(true, &later)).ensure(&store, &image, &()).is_err());
    let elsewhere = signers(true, &pair).map(|s| Signers { identity: "ghcr.io/team/app".into(), ..s });
    assert!(helpers(elsewhere).ensure(&store, &image, &()).is_err());
    // What was seen is enough without the registry, for these keys alone.
    drop(site.registry);
    let helpers = |signers| helpers_of(Registries::default(), signers);
    drop(helpers(signers(true, &pair)).ensure(&store, &image, &()).unwrap());
    assert!(helpers(signers(true, &later)).ensure(&store, &image, &()).is_err());
    drop(helpers(signers(false, &later)).ensure(&store, &image, &()).unwrap());
    store.remove(&image.digest).unwrap();
    site.bench.assert_empty();
}

/// Another node: it gives what its store has of signatures, and nothing else.
struct Giving<'a> {
    store: &'a Store,
    image: &'a ResolvedManifest,
}

impl BlobSource for Giving<'_> {
    fn describe(&self) -> String {
        "another node".to_owned()
    }

    fn open(&self, kind: BlobKind, digest: &Digest, _: u64) -> Result<Box<dyn Read + Send>, Error> {
        let offer = self.store.offer(&self.image.digest, &self.image.source, None)?;
        let part = match kind {
            BlobKind::Signatures => offer.signatures(digest)?.map(|(_, part)| part),
            BlobKind::Manifest => offer.index(digest)?,
            _ => None,
        };
        let missing =
            || Error::new(ErrorKind::NotFound, digest.to_string(), "another node has nothing of it");
        let part = part.ok_or_else(missing)?;
        let mut bytes: Vec<u8> = Vec::new();
        part.copy((0, part.length()), &mut bytes)?;
        Ok(Box::new(Cursor::new(bytes)))
    }

    fn is_peers(&self) -> bool {
        true
    }
}

#[test]
fn what_one_node_was_told_of_a_signature_others_judge_by_their_own_keys_and_ask_nobody() {
    let site = Site::new();
    let (pair, other) = (Pair::p256(), Pair::p256());
    let image = site.resolve("team/app:all");
    let [index] = &image.indexes[..] else { panic!("{image:?}") };
    let layer = site.signature("team/app", &pair, &payload(index, &site.name("team/app")));
    site.attach("team/app", index, std::slice::from_ref(&layer));
    let signers =
        |by: &Pair| Signers { required: true, keys: vec![by.public("team.pub")], identity: image.place() };
    let first = site.bench.store();
    let source = open_source(&image, &site.registries(), &Credentials::anonymous()).unwrap();
    drop(first.ensure_signed(&image, source.as_ref(), Some(&signers(&pair)), &()).unwrap());
    // From here on nobody can be asked but the node that has it.
    let (registries, giving) = (site.registries(), Giving { store: &first, image: &image });
    drop(site.registry);
    let place = tempfile::tempdir().unwrap();
    let second = Store::open(&place.path().join("store")).unwrap();
    let refused = second.look_signed(&image, &giving, &signers(&other), &()).unwrap_err();
    assert!(refused.to_string().contains("by other keys"), "{refused}");
    assert!(second.verdicts(&image.digest).unwrap().is_empty());
    let elsewhere = Signers { identity: "ghcr.io/team/app".into(), ..signers(&pair) };
    second.look_signed(&image, &giving, &elsewhere, &()).unwrap_err();
    second.look_signed(&image, &giving, &signers(&pair), &()).unwrap();
    assert!(second.is_admitted(&image, Some(&signers(&pair)), &()).unwrap());
    // An index that another node makes up lists nothing.
    let forged = ResolvedManifest { indexes: vec![image.digest.clone()], ..image.clone() };
    let place = tempfile::tempdir().unwrap();
    let third = Store::open(&place.path().join("store")).unwrap();
    third.look_signed(&forged, &giving, &signers(&pair), &()).unwrap_err();
    // A verdict that is not known, as for keys that come later, is made again of what is kept.
    for file in std::fs::read_dir(site.bench.path().join("store/images")).unwrap().flatten() {
        if file.file_name().to_string_lossy().ends_with(".signatures") {
            std::fs::remove_file(file.path()).unwrap();
        }
    }
    let nobody = open_source(&image, &registries, &Credentials::anonymous()).unwrap();
    first.look_signed(&image, nobody.as_ref(), &signers(&other), &()).unwrap_err();
    first.look_signed(&image, nobody.as_ref(), &signers(&pair), &()).unwrap();
    first.remove(&image.digest).unwrap();
    site.bench.assert_empty();
}

/// A source that has an image, and nothing that was said of its signatures.
struct Silent {
    inner: Box<dyn BlobSource>,
    peers: bool,
}

impl BlobSource for Silent {
    fn describe(&self) -> String {
        "silent".to_owned()
    }

    fn open(&self, kind: BlobKind, digest: &Digest, offset: u64) -> Result<Box<dyn Read + Send>, Error> {
        match kind {
            BlobKind::Signatures => Ok(Box::new(Cursor::new(br#"{"found":[],"passed":[]}"#.to_vec()))),
            _ => self.inner.open(kind, digest, offset),
        }
    }

    fn is_peers(&self) -> bool {
        self.peers
    }
}

#[test]
fn that_another_node_knows_of_no_signature_is_not_remembered_as_the_registrys_word() {
    let bench = Bench::new();
    ImageBuilder::new(vec![Tar::new().file("a", b"good").end()]).write(&bench.layout());
    let anonymous = Credentials::anonymous();
    let layout = resolve_text(&format!("oci:{}", bench.layout().display()), &anonymous, false).unwrap();
    let image =
        ResolvedManifest { source: "docker://registry.example/team/app".to_owned(), ..layout.clone() };
    let signers = Signers {
        required: false,
        keys: vec![Pair::p256().public("team.pub")],
        identity: "registry.example/team/app".to_owned(),
    };
    let store = bench.store();
    for (peers, known) in [(true, 0), (false, 1)] {
        let inner = open_source(&layout, &Registries::default(), &anonymous).unwrap();
        let source = Silent { inner, peers };
        drop(store.ensure_signed(&image, &source, Some(&signers), &()).unwrap());
        assert_eq!(store.verdicts(&image.digest).unwrap().len(), known);
    }
}

fn helpers_of(registries: Registries, signers: Option<Signers>) -> Helpers {
    Helpers { signers, ..Helpers::new(program(), registries) }
}

/// The example program, which is built together with the tests.
fn program() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.join("examples/import")
}

#[test]
fn a_file_has_no_signature() {
    let bench = Bench::new();
    ImageBuilder::new(vec![Tar::new().file("b", b"x").end()]).write(&bench.layout());
    let text = format!("oci:{}", bench.layout().display());
    let image = resolve_text(&text, &Credentials::anonymous(), false).unwrap();
    assert_eq!(Path::new(&image.place()), bench.layout());
    let signers = Signers { required: true, keys: vec![Pair::p256().public("k")], identity: image.place() };
    let source = open_source(&image, &Registries::default(), &Credentials::anonymous()).unwrap();
    let error = bench.store().ensure_signed(&image, source.as_ref(), Some(&signers), &()).unwrap_err();
    assert!(error.to_string().contains("no image of a registry"), "{error}");
    bench.assert_empty();
}

/// Answers everything but the one manifest with 404, and counts what it was asked.
fn flooding(tag: String, manifest: Vec<u8>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::Relaxed);
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read_exact(&mut byte).is_err() {
                    break;
                }
                head.push(byte[0]);
            }
            let (status, body): (_, &[u8]) = match String::from_utf8_lossy(&head).contains(&tag) {
                true => ("200 OK", &manifest),
                false => ("404 Not Found", b""),
            };
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    (address, asked)
}

#[test]
fn a_repository_with_thousands_of_signatures_that_are_not_there_is_asked_for_few() {
    let bench = Bench::new();
    let layout = bench.layout();
    let digest = ImageBuilder::new(vec![Tar::new().file("a", b"x").end()]).write(&layout);
    let mut image =
        resolve_text(&format!("oci:{}", layout.display()), &Credentials::anonymous(), true).unwrap();
    let missing = |n: usize| json!({"mediaType": SIMPLE, "digest": Digest::of(Algorithm::Sha256, n.to_string().as_bytes()).to_string(), "size": 0});
    // Neither those that are missing nor those that are none may be as many as they like.
    let layers: Vec<Value> = (0..4000).map(|n| if n % 2 == 0 { missing(n) } else { json!({}) }).collect();
    let manifest = json!({"schemaVersion": 2, "layers": layers}).to_string();
    let (address, asked) = flooding(format!("sha256-{}.sig", digest.hex()), manifest.into_bytes());
    image.source = format!("docker://{address}/x");
    let registries = Registries::default().without_tls(&address);
    let source = open_source(&image, &registries, &Credentials::anonymous()).unwrap();
    let mut told = String::new();
    source.open(BlobKind::Signatures, &digest, 0).unwrap().read_to_string(&mut told).unwrap();
    assert!(asked.load(Ordering::Relaxed) < 100, "{}", asked.load(Ordering::Relaxed));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert!(told["passed"].as_array().unwrap().len() < 200, "{told}");
}
