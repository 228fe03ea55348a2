//! A store that several users share: what one of them says or does is not to hinder, deceive or expose the others.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use berth_images::{
    Algorithm, Confine, Confined, Credentials, Digest, Error, ErrorKind, Helpers, ProgressEvent,
    PruneOptions, Registries, ResolvedManifest, RunAs, Store, open_source,
};

use crate::concurrency::{helpers, program};
use crate::support::fake::{Behaviour, FakeRegistry};
use crate::support::registry::{Authority, RealRegistry};
use crate::support::watched::Watched;
use crate::support::{
    Bench, Compression, ImageBuilder, Tar, arch, blob_path, gzip, put_blob, resolve_text, write_layout,
};

/// A store of an identity of its own, and users that fetch into it with a copy of the program that they can read.
struct Shared {
    bench: Bench,
    store: Store,
    copy: PathBuf,
}

impl Shared {
    /// Root alone can act for several users.
    fn new() -> Shared {
        use std::os::unix::fs::PermissionsExt;
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let dir = tempfile::Builder::new().prefix("berth-test-").tempdir_in("/var/tmp").unwrap();
        let bench = Bench { dir, form: berth_images::LayerForm::Directory };
        std::fs::set_permissions(bench.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let copy = bench.path().join("import");
        std::fs::copy(program(), &copy).unwrap();
        let store = Store::open_for(&bench.path().join("store"), Some((54_321, 54_321))).unwrap();
        Shared { bench, store, copy }
    }

    /// How the user fetches; root with `None`.
    fn user(
        &self,
        uid: Option<u32>,
        registries: &Registries,
        environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    ) -> Helpers {
        let id = |uid| RunAs { uid, gid: uid, groups: vec![uid] };
        Helpers {
            program: self.copy.clone(),
            registries: registries.clone(),
            ..helpers(uid.map(id), Some(id(54_321)), environment)
        }
    }

    /// A layout that everybody can read, with one image of these layers; gives the image.
    fn layout(&self, name: &str, layers: Vec<Vec<u8>>) -> ResolvedManifest {
        let layout = self.bench.path().join(name);
        ImageBuilder::new(layers).compressed(Compression::Gzip).write(&layout);
        resolve_text(&format!("oci:{}", layout.display()), &Credentials::anonymous(), false).unwrap()
    }
}

#[test]
fn what_one_user_has_noted_of_an_image_hinders_nobody_and_forges_nothing() {
    let bench = Bench::new();
    let image = ResolvedManifest {
        source: "oci:/home/u/l\n1002 docker://r.example/x\nx y".to_owned(),
        digest: ImageBuilder::new(vec![Tar::new().file("b", b"x").end()]).write(&bench.layout()),
        insecure: false,
        name: None,
        indexes: Vec::new(),
        pin: None,
    };
    let other = ResolvedManifest { source: "docker://r.example/x".to_owned(), ..image.clone() };
    let store = bench.store();
    store.grant(&image, 1001).unwrap();
    assert!(!store.is_granted(&other, 1002).unwrap());
    store.grant(&other, 1003).unwrap();
    assert!(store.is_granted(&other, 1003).unwrap() && store.is_granted(&image, 1001).unwrap());
    // What is damaged grants nothing, and is written anew.
    for entry in std::fs::read_dir(store.root().join("images")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().contains(".grant") {
            std::fs::write(path, "1003 docker://r.example/x\nx y\n").unwrap();
        }
    }
    assert!(!store.is_granted(&other, 1003).unwrap());
    store.grant(&other, 1003).unwrap();
    assert!(store.is_granted(&other, 1003).unwrap());
    // Such a source is not opened, nor one that no path is as long as.
    let long = ResolvedManifest { source: format!("oci:/{}", "x".repeat(4096)), ..image.clone() };
    for image in [image, long] {
        let error = open_source(&image, &Registries::default(), &Credentials::anonymous()).err().unwrap();
        assert!(
            error.to_string().contains("control characters") && !error.to_string().contains('\n'),
            "{error}"
        );
    }
}

#[test]
fn users_name_images_for_people_to_read_and_not_for_root_to_run_as_root() {
    let shared = Shared::new();
    let store = &shared.store;
    let ubuntu = "docker://docker.io/library/ubuntu:24.04";
    let bob = |registries: &Registries| shared.user(Some(54_002), registries, vec![]);
    // Bob's own image by the name of a well-known one, as a client that he wrote himself may say.
    let evil = shared.layout("evil", vec![Tar::new().file("b", b"evil").end()]);
    let evil = ResolvedManifest { name: Some(ubuntu.to_owned()), ..evil };
    bob(&Registries::default()).ensure(store, &evil, &()).unwrap();
    assert_eq!(store.find(ubuntu).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.list().unwrap()[0].names, std::slice::from_ref(&evil.source), "it is called what it is");

    // An older image of the repository, by the name of the newer one that root has.
    let layout = shared.bench.layout();
    let write = |text: &[u8]| ImageBuilder::new(vec![Tar::new().file("b", text).end()]).write(&layout);
    let (old, new) = (write(b"old"), write(b"new"));
    let fake = FakeRegistry::new(layout.clone(), Behaviour::default());
    let registries = Registries::default().without_tls(&fake.address);
    let (source, name) = (format!("docker://{}/x", fake.address), format!("docker://{}/x:1", fake.address));
    let of = |digest: &Digest, name: &str| ResolvedManifest {
        source: source.clone(),
        digest: digest.clone(),
        insecure: true,
        name: Some(name.to_owned()),
        indexes: Vec::new(),
        pin: None,
    };
    bob(&registries).ensure(store, &of(&old, &name), &()).unwrap();
    assert_eq!(store.find(&name).unwrap(), old, "root finds what a user fetched");
    assert_eq!(
        store.find_own(&name).unwrap_err().kind(),
        ErrorKind::NotFound,
        "and does not run it by that name"
    );
    assert_eq!(store.find_own(old.hex()).unwrap(), old, "but by its digest");
    let root = shared.user(None, &registries, vec![]);
    root.ensure(store, &of(&new, &name), &()).unwrap();
    let claimed = of(&old, ubuntu);
    bob(&registries).ensure(store, &claimed, &()).unwrap();
    assert_eq!(store.find(ubuntu).unwrap_err().kind(), ErrorKind::NotFound);
    for again in [&old, &new, &old] {
        bob(&registries).ensure(store, &of(again, &name), &()).unwrap();
        assert_eq!((store.find_own(&name).unwrap(), store.find(&name).unwrap()), (new.clone(), new.clone()));
    }
    // One user's names do not make the record grow for ever.
    for n in 0..100 {
        bob(&registries).ensure(store, &of(&old, &format!("docker://{}/x:t{n}", fake.address)), &()).unwrap();
    }
    let names = store.list().unwrap().into_iter().find(|image| image.digest == old).unwrap().names;
    assert_eq!(names.len(), 64);
    assert!(names.last().unwrap().ends_with(":t99"));
}

/// What an attacker knows of a victim's image: its manifest and configuration, but no layer.
fn without_layers(shared: &Shared, image: &ResolvedManifest, name: &str) -> ResolvedManifest {
    let (from, to) = (PathBuf::from(&image.source[4..]), shared.bench.path().join(name));
    for file in ["oci-layout", "index.json"] {
        std::fs::create_dir_all(&to).unwrap();
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let manifest = std::fs::read(blob_path(&from, &image.digest)).unwrap();
    let parsed: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let config: Digest = parsed["config"]["digest"].as_str().unwrap().parse().unwrap();
    put_blob(&to, &image.digest, &manifest);
    put_blob(&to, &config, &std::fs::read(blob_path(&from, &config)).unwrap());
    ResolvedManifest { source: format!("oci:{}", to.display()), ..image.clone() }
}

/// An image of one blob that says it has the content of the layer `diff_id`, in a layout.
fn claiming(shared: &Shared, name: &str, blob: &Digest, size: u64, diff_id: &str) -> ResolvedManifest {
    let to = shared.bench.path().join(name);
    let config = serde_json::json!({
        "architecture": arch(), "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let config_digest = Digest::of(Algorithm::Sha256, &config);
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest.to_string(), "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": blob.to_string(), "size": size,
        }],
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let digest = Digest::of(Algorithm::Sha256, &manifest);
    put_blob(&to, &config_digest, &config);
    put_blob(&to, &digest, &manifest);
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest.to_string(), "size": manifest.len(),
    }]});
    write_layout(&to, &index);
    ResolvedManifest {
        source: format!("oci:{}", to.display()),
        digest,
        insecure: false,
        name: None,
        indexes: Vec::new(),
        pin: None,
    }
}

/// Bytes that an import asked its source for, and that the importing user has the image.
fn brought(helpers: &Helpers, store: &Store, image: &ResolvedManifest) -> u64 {
    let bytes = AtomicU64::new(0);
    let count = |event| {
        if let ProgressEvent::Fetched { bytes: more } = event {
            bytes.fetch_add(more, Ordering::Relaxed);
        }
    };
    helpers.ensure(store, image, &count).unwrap();
    bytes.into_inner()
}

#[test]
fn a_private_layer_goes_to_nobody_who_only_knows_what_it_is_called_as_root() {
    let shared = Shared::new();
    let store = &shared.store;
    let (alice, bob) = (54_001, 54_002);
    let user = |uid| shared.user(Some(uid), &Registries::default(), vec![]);
    let tar = Tar::new().file("secret", b"of Alice").end();
    let diff_id = Digest::of(Algorithm::Sha256, &tar);
    let image = shared.layout("private", vec![tar.clone()]);
    let prepared = user(alice).ensure(store, &image, &()).unwrap();
    let blob = gzip(&tar);
    let digest = Digest::of(Algorithm::Sha256, &blob);
    // The same manifest and configuration, and no layer.
    let hollow = without_layers(&shared, &image, "hollow");
    let error = user(bob).ensure(store, &hollow, &()).err().unwrap();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("no blob"), "{error}");
    assert!(!store.is_granted(&hollow, bob).unwrap());
    // An image of his own that says it has that content, with the blob's name and without its bytes, or with other bytes.
    let named = claiming(&shared, "named", &digest, blob.len() as u64, &diff_id.to_string());
    let other = gzip(&Tar::new().file("secret", b"of Bob").end());
    let own = Digest::of(Algorithm::Sha256, &other);
    let forged = claiming(&shared, "forged", &own, other.len() as u64, &diff_id.to_string());
    put_blob(&shared.bench.path().join("forged"), &own, &other);
    for (image, word) in [(&named, "no blob"), (&forged, "have digest")] {
        let error = user(bob).ensure(store, image, &()).err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
        assert!(!store.is_granted(image, bob).unwrap());
    }
    assert_eq!(store.list().unwrap().len(), 1, "of what was refused no image is left");
    // A registry of his own says yes to everything, and has nothing.
    let fake = FakeRegistry::new(
        shared.bench.path().join("named"),
        Behaviour { has_all: true, ..Behaviour::default() },
    );
    let registries = Registries::default().without_tls(&fake.address);
    let lying =
        ResolvedManifest { source: format!("docker://{}/x", fake.address), insecure: true, ..named.clone() };
    let error = shared.user(Some(bob), &registries, vec![]).ensure(store, &lying, &()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(!store.is_granted(&lying, bob).unwrap());
    // Who has the content gets the layer that is there, whatever image it is in; and is asked for it once.
    put_blob(&shared.bench.path().join("named"), &digest, &blob);
    let (first, layers) = (brought(&user(bob), store, &named), store.df().unwrap().layers);
    assert_eq!((first, layers), (blob.len() as u64, 1));
    let again = claiming(&shared, "again", &digest, blob.len() as u64, &diff_id.to_string());
    assert_eq!(again.digest, named.digest);
    assert_eq!(brought(&user(bob), store, &again), 0);
    // Root reads the store anyhow.
    shared.user(None, &Registries::default(), vec![]).ensure(store, &hollow, &()).unwrap();
    drop(prepared);
}

#[test]
fn who_a_registry_gives_an_image_gets_what_it_gave_others_without_its_bytes_as_root() {
    let shared = Shared::new();
    let store = &shared.store;
    let authority = Authority::new(shared.bench.path());
    let registry = RealRegistry::with_tls(&authority.sign("server"), None);
    std::os::unix::fs::chown(authority.pem(), Some(54_001), None).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(authority.pem(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let layers = vec![Tar::new().file("a", b"one").end(), Tar::new().file("b", b"two").end()];
    let secret = layers[0].clone();
    let image = shared.layout("layout", layers);
    registry.push(&image.source[4..], "team/app:1");
    let registries = authority.registries();
    let user = |uid| shared.user(Some(uid), &registries, vec![]);
    let at = |repository: &str| ResolvedManifest {
        source: format!("docker://{}/{repository}", registry.address),
        ..image.clone()
    };
    assert!(brought(&user(54_001), store, &at("team/app")) > 0);
    assert_eq!(brought(&user(54_002), store, &at("team/app")), 0, "the registry's word is enough");
    // Another repository, whose manifest names a blob that is not in it.
    let blob = gzip(&secret);
    let (digest, diff_id) = (Digest::of(Algorithm::Sha256, &blob), Digest::of(Algorithm::Sha256, &secret));
    let claimed = claiming(&shared, "claimed", &digest, blob.len() as u64, &diff_id.to_string());
    let fake = FakeRegistry::new(shared.bench.path().join("claimed"), Behaviour::default());
    let lying =
        ResolvedManifest { source: format!("docker://{}/x", fake.address), insecure: true, ..claimed };
    let error = shared
        .user(Some(54_003), &registries.clone().without_tls(&fake.address), vec![])
        .ensure(store, &lying, &())
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[test]
fn an_authority_of_a_users_own_vouches_for_no_registry_before_others_as_root() {
    use std::os::unix::fs::PermissionsExt;
    let shared = Shared::new();
    let store = &shared.store;
    let authority = Authority::new(shared.bench.path());
    let registry = RealRegistry::with_tls(&authority.sign("server"), None);
    std::fs::set_permissions(authority.pem(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let image = shared.layout("layout", vec![Tar::new().file("a", b"of Alice").end()]);
    registry.push(&image.source[4..], "team/app:1");
    let image = ResolvedManifest { source: format!("docker://{}/team/app", registry.address), ..image };
    let home = shared.bench.path().join("home");
    let own = home.join(".config/containers/certs.d").join(&registry.address);
    std::fs::create_dir_all(&own).unwrap();
    std::fs::copy(authority.pem(), own.join("ca.crt")).unwrap();
    let environment = vec![("HOME".into(), home.into_os_string())];
    let (site, nothing) = (authority.registries(), Registries::default());
    assert!(brought(&shared.user(Some(54_001), &site, vec![]), store, &image) > 0);
    // Who answers there may be anybody to whom the user gave a certificate.
    let of_user = brought(&shared.user(Some(54_002), &nothing, environment.clone()), store, &image);
    assert!(of_user > 0, "they had nothing of it, and the word of a server of their own");
    // By the site's authority its word is enough, whatever the user believes besides.
    assert_eq!(brought(&shared.user(Some(54_003), &site, environment), store, &image), 0);
}

/// Places for fetchers, of which it is counted how many there are and how many were taken.
#[derive(Debug, Default)]
struct Places {
    lists: Vec<PathBuf>,
    own_memory: Option<u64>,
    taken: AtomicU64,
    held: Arc<AtomicU64>,
}

struct Place {
    lists: Vec<PathBuf>,
    own_memory: Option<u64>,
    held: Arc<AtomicU64>,
}

impl Confine for Places {
    fn place(&self) -> Result<Box<dyn Confined>, Error> {
        self.taken.fetch_add(1, Ordering::SeqCst);
        self.held.fetch_add(1, Ordering::SeqCst);
        let Places { lists, own_memory, held, .. } = self;
        Ok(Box::new(Place { lists: lists.clone(), own_memory: *own_memory, held: Arc::clone(held) }))
    }
}

impl Confined for Place {
    fn lists(&self) -> Vec<PathBuf> {
        self.lists.clone()
    }

    fn own_memory(&self) -> Option<u64> {
        self.own_memory
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.held.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn a_fetcher_goes_where_it_is_confined_before_it_is_the_users_and_an_image_that_is_there_needs_none_as_root()
{
    use std::os::unix::fs::PermissionsExt;
    let shared = Shared::new();
    let image = shared.layout("good", vec![Tar::new().file("a", b"x").end()]);
    // As the kernel has them: root's alone.
    let lists = ["one", "two"].map(|name| shared.bench.path().join(name));
    for list in &lists {
        std::fs::write(list, "").unwrap();
        std::fs::set_permissions(list, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let places = Arc::new(Places { lists: lists.to_vec(), ..Places::default() });
    let confine: Arc<dyn Confine> = places.clone();
    let alice =
        Helpers { confine: Some(confine), ..shared.user(Some(54_001), &Registries::default(), vec![]) };
    let counts = || (places.taken.load(Ordering::SeqCst), places.held.load(Ordering::SeqCst));
    let prepared = alice.ensure(&shared.store, &image, &()).unwrap();
    assert_eq!(lists.each_ref().map(|list| std::fs::read_to_string(list).unwrap()), ["0", "0"]);
    assert_eq!(counts(), (1, 0));
    drop(prepared);
    alice.ensure(&shared.store, &image, &()).unwrap();
    assert_eq!(counts(), (1, 0), "it is there");
    let reference = image.source.parse().unwrap();
    alice.resolve(&reference, std::path::Path::new("/")).unwrap();
    assert_eq!(counts(), (2, 0));
    // Nothing runs outside of where it is to be.
    std::fs::remove_file(&lists[0]).unwrap();
    assert!(alice.resolve(&reference, std::path::Path::new("/")).is_err());
    assert_eq!(counts(), (3, 0));
}

/// What it has in memory is bounded nowhere else: each import has an unpacker of its own.
#[test]
fn an_unpacker_goes_where_it_is_confined_and_an_image_that_is_there_needs_none_as_root() {
    use std::os::unix::fs::PermissionsExt;
    let shared = Shared::new();
    let image = shared.layout("good", vec![Tar::new().file("a", b"x").end()]);
    let list = shared.bench.path().join("list");
    std::fs::write(&list, "").unwrap();
    std::fs::set_permissions(&list, std::fs::Permissions::from_mode(0o600)).unwrap();
    let places = Arc::new(Places { lists: vec![list.clone()], ..Places::default() });
    let confine: Arc<dyn Confine> = places.clone();
    let alice =
        Helpers { unpack_in: Some(confine), ..shared.user(Some(54_001), &Registries::default(), vec![]) };
    let counts = || (places.taken.load(Ordering::SeqCst), places.held.load(Ordering::SeqCst));
    drop(alice.ensure(&shared.store, &image, &()).unwrap());
    assert_eq!((std::fs::read_to_string(&list).unwrap().as_str(), counts()), ("0", (1, 0)));
    drop(alice.ensure(&shared.store, &image, &()).unwrap());
    assert_eq!(counts(), (1, 0), "it is there");
    // Nothing is unpacked outside of where it is to be.
    std::fs::remove_file(&list).unwrap();
    let other = shared.layout("other", vec![Tar::new().file("b", b"y").end()]);
    let error = alice.ensure(&shared.store, &other, &()).unwrap_err().to_string();
    assert!(error.contains("control group of what brings an image"), "{error}");
    assert!(shared.store.prepared(&other.digest).unwrap().is_none());
    assert_eq!(counts(), (2, 0));
}

/// Where files are memory, too, its control group does not tell what it has for itself.
#[test]
fn an_unpacker_has_no_more_memory_for_itself_than_it_is_given_as_root() {
    let shared = Shared::new();
    let image = shared.layout("good", vec![Tar::new().file("a", b"x").end()]);
    let with = |own_memory| {
        let confine: Arc<dyn Confine> = Arc::new(Places { own_memory, ..Places::default() });
        Helpers { unpack_in: Some(confine), ..shared.user(Some(54_001), &Registries::default(), vec![]) }
    };
    with(Some(4096)).ensure(&shared.store, &image, &()).unwrap_err();
    assert!(shared.store.prepared(&image.digest).unwrap().is_none());
    drop(with(Some(1 << 30)).ensure(&shared.store, &image, &()).unwrap());
}

/// A source of one user's that does not go on, in the place where a layer that others want is made, or an image.
#[test]
fn nobody_waits_for_what_another_users_registry_does_not_bring_as_root() {
    for same_image in [false, true] {
        let shared = Shared::new();
        let store = &shared.store;
        let (alice, mallory) = (54_001, 54_002);
        let mut state = 1u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        let mut bytes = |count| (0..count).map(|_| noise()).collect::<Vec<u8>>();
        let tar = Tar::new().file("popular", &bytes(16 << 10)).end();
        let image = shared.layout("good", vec![tar.clone()]);
        let (layout, digest) = if same_image {
            ("good", image.digest.clone())
        } else {
            let other = gzip(&Tar::new().file("popular", &bytes(16 << 10)).end());
            let own = Digest::of(Algorithm::Sha256, &other);
            let diff_id = Digest::of(Algorithm::Sha256, &tar).to_string();
            let claimed = claiming(&shared, "claimed", &own, other.len() as u64, &diff_id);
            put_blob(&shared.bench.path().join("claimed"), &own, &other);
            ("claimed", claimed.digest)
        };
        // All but the layer is given.
        let go = Arc::new(AtomicBool::new(false));
        let fake = FakeRegistry::new(
            shared.bench.path().join(layout),
            Behaviour { held: Some((4 << 10, Arc::clone(&go))), ..Behaviour::default() },
        );
        let slow = ResolvedManifest {
            source: format!("docker://{}/x", fake.address),
            digest,
            insecure: true,
            ..image.clone()
        };
        let registries = Registries::default().without_tls(&fake.address);
        let patient = |uid| {
            let unpack = ["internal-unpack", "--patience", "200"].map(Into::into).to_vec();
            Helpers { unpack, ..shared.user(Some(uid), &registries, vec![]) }
        };
        std::thread::scope(|scope| {
            let held = scope.spawn(|| patient(mallory).ensure(store, &slow, &()));
            let begun = Instant::now();
            // The manifest's configuration, and then the layer, whose lock is held by then.
            while fake.count("/blobs/") < 2 {
                assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", fake.log());
                std::thread::sleep(Duration::from_millis(5));
            }
            let waited = AtomicBool::new(false);
            let told = |event| {
                if let ProgressEvent::Waiting { .. } = event {
                    waited.store(true, Ordering::Relaxed);
                }
            };
            let prepared = patient(alice).ensure(store, &image, &told).unwrap();
            assert!(!held.is_finished(), "she waited for him");
            assert!(waited.into_inner(), "she did not find his lock");
            assert!(prepared.layers[0].join("popular").exists());
            // Neither does anybody who looks at the store.
            assert_eq!(store.verify(&[]).unwrap().problems(), Vec::<String>::new());
            assert!(!held.is_finished());
            go.store(true, Ordering::SeqCst);
            // Who brings the content has the image, too; what he claimed of other content is nothing.
            let ended = held.join().unwrap();
            match same_image {
                true => drop(ended.unwrap()),
                false => assert!(ended.unwrap_err().to_string().contains("have digest")),
            }
            drop(prepared);
        });
        assert_eq!(store.is_granted(&slow, mallory).unwrap(), same_image);
        let known = store.list().unwrap();
        assert_eq!(known.len(), 1);
        assert_eq!(
            store.origin(&image.digest).unwrap().source,
            image.source,
            "it is as the first one had it"
        );
        assert_eq!(store.verify(&[]).unwrap().problems(), Vec::<String>::new());
        assert_eq!(shared.bench.records("tmp"), Vec::<String>::new());
    }
}

/// Whoever removes an image collects what nothing names yet, such as the manifest of one whose configuration is slow to come.
#[test]
fn a_source_is_asked_for_nothing_while_everybody_waits() {
    let bench = Bench::new();
    let digest = ImageBuilder::new(vec![Tar::new().file("b", b"x").end()]).write(&bench.layout());
    let size = |path: PathBuf| usize::try_from(std::fs::metadata(path).unwrap().len()).unwrap();
    let manifest = size(blob_path(&bench.layout(), &digest));
    let lock = bench.path().join("store/locks/store");
    let is_free = || match std::fs::File::open(&lock) {
        Ok(file) => rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    let (opened, manifests) = (AtomicU64::new(0), AtomicU64::new(0));
    let (image, source) = Watched::new(&bench, |size, blob| {
        assert!(is_free(), "whoever uses the store waits for this source");
        if size == manifest {
            manifests.fetch_add(1, Ordering::SeqCst);
        }
        // The manifest is there by now, and its configuration comes.
        if opened.fetch_add(1, Ordering::SeqCst) == 1 {
            bench.store().prune(&PruneOptions::default()).unwrap();
            assert_eq!(bench.records("blobs"), Vec::<String>::new());
        }
        Ok(blob)
    });
    bench.store().ensure(&image, &source, &()).unwrap();
    assert_eq!(manifests.load(Ordering::SeqCst), 1);
    assert_eq!(bench.records("blobs").len(), 2);
    assert_eq!(bench.store().verify(&[]).unwrap().problems(), Vec::<String>::new());
}

/// An image in one file that everybody can read.
fn in_a_file(shared: &Shared, layout: &ResolvedManifest, name: &str) -> ResolvedManifest {
    let file = shared.bench.path().join(name);
    let packed = std::process::Command::new("tar")
        .arg("-cf")
        .arg(&file)
        .args(["-C", &layout.source[4..], "oci-layout", "index.json", "blobs"])
        .status();
    assert!(packed.unwrap().success());
    ResolvedManifest { source: format!("oci-archive:{}", file.display()), ..layout.clone() }
}

/// Whether the kernel calls mounts by numbers that it never gives again (Linux 6.8).
fn tells_mounts() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut parts = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    (parts.next(), parts.next()) >= (Some(6), Some(8))
}

/// Until a file has been as it is for long enough to be believed.
fn settle() {
    std::thread::sleep(std::time::Duration::from_secs(3));
}

#[test]
fn a_file_that_is_as_it_was_when_it_was_read_is_not_read_again_for_the_next_user_as_root() {
    let shared = Shared::new();
    let store = &shared.store;
    let user = |uid| shared.user(Some(uid), &Registries::default(), vec![]);
    let tar = Tar::new().file("data", &[7; 100_000]).end();
    let layout = shared.layout("layout", vec![tar]);
    let image = in_a_file(&shared, &layout, "image.tar");
    let path = PathBuf::from(image.source.strip_prefix("oci-archive:").unwrap());
    settle();
    assert!(brought(&user(54_001), store, &image) > 0);
    let again = brought(&user(54_002), store, &image);
    assert_eq!(again == 0, tells_mounts(), "{again} bytes were read again");
    assert!(store.is_granted(&image, 54_002).unwrap());
    // A copy, be its times the same, is another file: whoever made it may have made anything.
    let copy = shared.bench.path().join("copy.tar");
    std::fs::copy(&path, &copy).unwrap();
    let time = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::File::options().write(true).open(&copy).unwrap().set_modified(time).unwrap();
    let copied = ResolvedManifest { source: format!("oci-archive:{}", copy.display()), ..image.clone() };
    assert!(brought(&user(54_003), store, &copied) > 0);
    // Who cannot read it does not have it; and to look at what one cannot read shows nothing.
    use std::os::unix::fs::PermissionsExt;
    let close = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    close(0o600);
    let error = user(54_004).ensure(store, &image, &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    // Other content with the same size and time of writing is found out.
    close(0o644);
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::write(&path, vec![0; usize::try_from(length).unwrap()]).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    user(54_004).ensure(store, &image, &()).unwrap_err();
    assert!(!store.is_granted(&image, 54_004).unwrap());
}

/// A link that leads to one file while an image is read, and to another one before and after.
#[derive(Clone, Debug)]
struct Swapped {
    link: PathBuf,
    shown: PathBuf,
    read: PathBuf,
}

impl Swapped {
    fn lead(&self, to: &std::path::Path) {
        let next = self.link.with_extension("next");
        std::os::unix::fs::symlink(to, &next).unwrap();
        std::fs::rename(&next, &self.link).unwrap();
    }
}

impl Confine for Swapped {
    fn place(&self) -> Result<Box<dyn Confined>, Error> {
        self.lead(&self.read);
        Ok(Box::new(self.clone()))
    }
}

impl Confined for Swapped {
    fn lists(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

impl Drop for Swapped {
    fn drop(&mut self) {
        self.lead(&self.shown);
    }
}

/// Where somebody else may rename, a path need not lead to the file that was read, be it looked at before and after.
#[test]
fn a_file_that_stands_in_for_the_one_that_is_read_gives_nobody_what_was_read_as_root() {
    let shared = Shared::new();
    let store = &shared.store;
    let private = shared.layout("private", vec![Tar::new().file("secret", b"of Alice").end()]);
    let whole = in_a_file(&shared, &private, "whole.tar");
    let hollow = in_a_file(&shared, &without_layers(&shared, &private, "hollow"), "hollow.tar");
    settle();
    let path = |image: &ResolvedManifest| PathBuf::from(image.source.strip_prefix("oci-archive:").unwrap());
    let swapped =
        Swapped { link: shared.bench.path().join("link.tar"), shown: path(&hollow), read: path(&whole) };
    swapped.lead(&swapped.shown);
    let linked = ResolvedManifest { source: format!("oci-archive:{}", swapped.link.display()), ..whole };
    let confine: Arc<dyn Confine> = Arc::new(swapped);
    let alice =
        Helpers { confine: Some(confine), ..shared.user(Some(54_001), &Registries::default(), vec![]) };
    alice.ensure(store, &linked, &()).unwrap();
    assert!(store.is_granted(&linked, 54_001).unwrap());
    let mallory = shared.user(Some(54_002), &Registries::default(), vec![]);
    let error = mallory.ensure(store, &hollow, &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(!store.is_granted(&hollow, 54_002).unwrap());
}

/// Who has a layer by another way is not asked for it again, so that a file without it passes for them, and shows nothing.
#[test]
fn a_hollow_file_gives_nobody_what_others_have_as_root() {
    let shared = Shared::new();
    let store = &shared.store;
    let user = |uid| shared.user(Some(uid), &Registries::default(), vec![]);
    let private = shared.layout("private", vec![Tar::new().file("secret", b"of Alice").end()]);
    user(54_001).ensure(store, &private, &()).unwrap();
    let hollow = in_a_file(&shared, &without_layers(&shared, &private, "hollow"), "hollow.tar");
    settle();
    // As somebody might talk her into.
    user(54_001).ensure(store, &hollow, &()).unwrap();
    let error = user(54_002).ensure(store, &hollow, &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(!store.is_granted(&hollow, 54_002).unwrap());
    // A layout is many files, of which some may be closed: each user reads all of it.
    assert!(brought(&user(54_002), store, &private) > 0);
}
