//! Several processes, killed processes, and privilege separation.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use berth_images::{
    Credentials, ErrorKind, Helpers, LayerForm, ProgressEvent, Registries, ResolveOptions, Resolved,
    ResolvedManifest, RunAs, Store,
};

use crate::support::fake::{Behaviour, FakeRegistry};
use crate::support::registry::{Authority, RealRegistry};
use crate::support::{Bench, Compression, ImageBuilder, Tar, resolve_text};

/// The example program, which is built together with the tests.
pub(crate) fn program() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    let path = path.join("examples/import");
    assert!(
        path.exists(),
        "{} is missing; build it with `cargo build -p berth-images --examples`",
        path.display()
    );
    path
}

fn import(bench: &Bench, name: &str) -> Child {
    import_as(bench, name, "directory")
}

fn import_as(bench: &Bench, name: &str, form: &str) -> Child {
    Command::new(program())
        .args(["--insecure", "--form", form, "--store"])
        .arg(bench.path().join("store"))
        .arg(name)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn many_files(count: usize) -> Vec<u8> {
    let mut tar = Tar::new();
    for n in 0..count {
        tar = tar.file(&format!("d{}/f{n}", n % 50), format!("{n}").repeat(200).as_bytes());
    }
    tar.end()
}

#[test]
fn processes_that_want_the_same_image_fetch_it_once() {
    let bench = Bench::new();
    let builder = ImageBuilder::new(vec![many_files(500), Tar::new().file("b", b"x").end()])
        .compressed(Compression::Gzip);
    builder.write(&bench.layout());
    let fake = FakeRegistry::new(
        bench.layout(),
        Behaviour { slow: Duration::from_millis(100), ..Behaviour::default() },
    );
    let name = format!("{}/x:1", fake.address);
    let children: Vec<Child> = (0..40).map(|_| import(&bench, &name)).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    // Configuration and two layers, each once; every process asked for the manifest to resolve the tag.
    assert_eq!(fake.count("/blobs/"), 3, "{:?}", fake.log());
    assert_eq!(bench.store().verify(&[]).unwrap().problems(), Vec::<String>::new());
}

#[test]
fn images_that_share_a_layer_fetch_it_once() {
    let bench = Bench::new();
    let shared = many_files(800);
    let layouts: Vec<PathBuf> = ["one", "two"].iter().map(|n| bench.path().join(n)).collect();
    let names: Vec<(FakeRegistry, String)> = layouts
        .iter()
        .map(|layout| {
            std::fs::create_dir(layout).unwrap();
            let own = Tar::new().file("own", layout.display().to_string().as_bytes()).end();
            ImageBuilder::new(vec![shared.clone(), own]).write(layout);
            let fake = FakeRegistry::new(
                layout.clone(),
                Behaviour { slow: Duration::from_millis(50), ..Behaviour::default() },
            );
            let name = format!("{}/x:1", fake.address);
            (fake, name)
        })
        .collect();
    let children: Vec<Child> = names.iter().map(|(_, name)| import(&bench, name)).collect();
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    let blobs: usize = names.iter().map(|(fake, _)| fake.count("/blobs/")).sum();
    assert_eq!(blobs, 2 + 2 + 1, "two configurations, two own layers, one shared");
    assert_eq!(bench.store().df().unwrap().layers, 3);
}

#[test]
fn a_killed_import_leaves_nothing_that_counts() {
    let bench = Bench::new();
    ImageBuilder::new(vec![many_files(6000), many_files(3000)])
        .compressed(Compression::Gzip)
        .write(&bench.layout());
    let text = format!("oci:{}", bench.layout().display());
    let store = bench.store();
    let tmp = store.root().join("tmp");
    let mut killed_within = 0;
    for round in 0..6u64 {
        let mut child = import(&bench, &text);
        let deadline = Instant::now() + Duration::from_secs(20);
        // Until it unpacks, then a little further each time.
        while std::fs::read_dir(&tmp).unwrap().count() < 2
            && child.try_wait().unwrap().is_none()
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(round * 25));
        let running = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        child.wait().unwrap();
        if running {
            killed_within += 1;
        }
        // Nothing half made is visible.
        for info in store.list().unwrap() {
            assert!(store.prepared(&info.digest).unwrap().is_some());
        }
        assert_eq!(store.verify(&[]).unwrap().problems(), Vec::<String>::new());
        if round == 2 {
            // Collecting after a kill removes all that the dead process left.
            store.prune(&berth_images::PruneOptions { all: true, ..Default::default() }).unwrap();
            bench.assert_empty();
        }
    }
    assert!(killed_within >= 1, "the import was never interrupted");
    let image = bench.import_text(&text).unwrap();
    assert_eq!(std::fs::read_dir(image.layers[1].join("d0")).unwrap().count(), 120);
    assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 0, "work of dead processes is swept");
    assert_eq!(bench.records("images").len(), 1);
    assert_eq!(store.verify(&[]).unwrap().problems(), Vec::<String>::new());
}

/// How often a pull is killed, on its way, that one process makes, and how often a process of those who make one for somebody: 200 times in
/// all, and more by BERTH_KILL_ROUNDS.
const KILLS: u64 = 140;
const KILLS_OF_HELPERS: u64 = 60;

fn kills(usual: u64) -> u64 {
    std::env::var("BERTH_KILL_ROUNDS").map_or(usual, |text| text.parse().unwrap())
}

/// Moments of a pull, by chance, counted from when it first asks the registry for something.
struct Moments {
    seed: u64,
    /// Microseconds. How long a pull takes is learnt on the way: the machine has other things to do, now more and now less of them.
    span: u64,
    within: u64,
    rounds: u64,
}

impl Moments {
    fn of(whole: Duration) -> Self {
        let span = u64::try_from(whole.as_micros()).unwrap().max(1000);
        Self { seed: u64::from(std::process::id()), span, within: 0, rounds: 0 }
    }

    fn next(&mut self) -> Duration {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_micros((self.seed >> 33) % self.span)
    }

    /// Whether the pull was still on its way then. Of eleven moments one comes when it is over, so that the last ones have their turn.
    fn was(&mut self, within: bool) {
        self.rounds += 1;
        self.within += u64::from(within);
        self.span = if within { self.span + self.span / 100 } else { self.span - self.span / 10 }.max(1000);
    }

    /// Whether it was killed on its way as often as wanted.
    fn enough(&self, wanted: u64) -> bool {
        assert!(
            self.rounds <= wanted * 2,
            "{} of {} pulls were killed on their way",
            self.within,
            self.rounds
        );
        if self.within < wanted {
            return false;
        }
        let (within, rounds) = (self.within, self.rounds);
        assert!(within * 10 >= rounds * 7, "{within} of {rounds} pulls were killed on their way");
        true
    }
}

/// Waits until a pull asks the registry, which was asked so often before; false where it has ended.
fn has_begun(fake: &FakeRegistry, before: usize, is_over: &mut dyn FnMut() -> bool) -> bool {
    while fake.log().len() <= before {
        if is_over() {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    true
}

fn to_be_killed(bench: &Bench) -> FakeRegistry {
    ImageBuilder::new(vec![many_files(100), many_files(50), Tar::new().file("b", b"x").end()])
        .compressed(Compression::Gzip)
        .write(&bench.layout());
    FakeRegistry::new(bench.layout(), Behaviour::default())
}

#[test]
fn a_pull_that_was_killed_at_any_moment_is_made_good_by_the_next() {
    let forms = [("directory", LayerForm::Directory), ("erofs", LayerForm::Erofs)];
    // With two layers at once the lowest of the three are made one.
    for ((form, of), stacking) in forms.into_iter().flat_map(|form| [(form, "99"), (form, "2")]) {
        let bench = Bench::of(of);
        let fake = to_be_killed(&bench);
        let name = format!("{}/x:1", fake.address);
        let store = bench.store();
        let collect =
            || store.prune(&berth_images::PruneOptions { all: true, ..Default::default() }).unwrap();
        let import = || {
            Command::new(program())
                .args(["--insecure", "--form", form, "--stacking", stacking, "--store"])
                .arg(bench.path().join("store"))
                .arg(&name)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let before = fake.log().len();
        let mut child = import();
        assert!(has_begun(&fake, before, &mut || child.try_wait().unwrap().is_some()));
        let whole = Instant::now();
        assert!(child.wait().unwrap().success());
        let mut moments = Moments::of(whole.elapsed());
        let merged = || bench.records("layers").iter().any(|name| name.starts_with("merged-"));
        assert_eq!(merged(), stacking == "2", "{form}");
        collect();
        while !moments.enough(kills(KILLS) / 4) {
            let before = fake.log().len();
            let mut child = import();
            let begun = has_begun(&fake, before, &mut || child.try_wait().unwrap().is_some());
            let moment = moments.next();
            std::thread::sleep(moment);
            moments.was(begun && child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
            // What is there is whole, and the next pull succeeds.
            let round = format!("{form}, {stacking} at once, round {}, {moment:?}", moments.rounds);
            let whole = || {
                assert_eq!(store.verify(&[]).unwrap().problems(), Vec::<String>::new(), "{round}");
            };
            whole();
            let output = import().wait_with_output().unwrap();
            let err = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{round}: {err}");
            whole();
            assert_eq!(merged(), stacking == "2", "{round}");
            collect();
            bench.assert_empty();
        }
    }
}

/// Where users' images come by processes of their own, any of these may be killed.
#[test]
fn a_pull_whose_fetcher_or_unpacker_was_killed_is_made_good_by_the_next() {
    let bench = Bench::new();
    let fake = to_be_killed(&bench);
    let store = bench.store();
    let name = format!("{}/x:1", fake.address);
    let image = resolve_text(&name, &Credentials::anonymous(), true).unwrap();
    let registries = Registries::default().without_tls(&fake.address);
    let all = Helpers { registries, ..helpers(None, None, vec![]) };
    let collect = || store.prune(&berth_images::PruneOptions { all: true, ..Default::default() }).unwrap();
    let whole = Instant::now();
    all.ensure(&store, &image, &()).unwrap();
    let mut moments = Moments::of(whole.elapsed());
    collect();
    let mut failed = 0;
    while !moments.enough(kills(KILLS_OF_HELPERS)) {
        let (moment, round, before) = (moments.next(), moments.rounds, fake.log().len());
        let (pulled, killed) = std::thread::scope(|scope| {
            let pull = scope.spawn(|| all.ensure(&store, &image, &()));
            let begun = has_begun(&fake, before, &mut || pull.is_finished());
            std::thread::sleep(moment);
            let mut killed = 0;
            // The one, the other, or both.
            for (pid, what) in children() {
                let wanted =
                    ["internal-fetch", "internal-unpack", "internal-"][usize::try_from(round % 3).unwrap()];
                if what.contains(wanted) {
                    // One that has ended has no command line any more.
                    killed +=
                        u64::from(rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok());
                }
            }
            (pull.join().unwrap(), begun && killed > 0)
        });
        moments.was(killed);
        failed += u64::from(pulled.is_err());
        // What is in use stays.
        drop(pulled);
        let whole = || {
            assert_eq!(
                store.verify(&[]).unwrap().problems(),
                Vec::<String>::new(),
                "round {round}, {moment:?}"
            )
        };
        whole();
        let prepared =
            all.ensure(&store, &image, &()).unwrap_or_else(|e| panic!("round {round}, {moment:?}: {e}"));
        assert_eq!(std::fs::read(prepared.layers[0].join("b")).unwrap(), b"x");
        drop(prepared);
        whole();
        collect();
        bench.assert_empty();
    }
    // One whose fetcher goes when everything was read of it, or whose unpacker when all is done, succeeds.
    let Moments { within, rounds, .. } = moments;
    assert!(failed >= within / 3, "of {rounds} pulls {within} were killed on their way, and {failed} failed");
}

/// Processes of this one, with their command lines.
fn children() -> Vec<(rustix::process::Pid, String)> {
    let mut found = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let pids = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for pid in pids.split_ascii_whitespace() {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let pid = pid.parse().ok().and_then(rustix::process::Pid::from_raw).unwrap();
            found.push((pid, String::from_utf8_lossy(&line).into_owned()));
        }
    }
    found
}

#[test]
fn removal_and_import_at_the_same_time() {
    let bench = Bench::new();
    ImageBuilder::new(vec![Tar::new().file("a", b"x").end(), Tar::new().file("b", b"y").end()])
        .write(&bench.layout());
    let text = format!("oci:{}", bench.layout().display());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let remover = scope.spawn(|| {
            let store = bench.store();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                store.prune(&berth_images::PruneOptions { all: true, ..Default::default() }).unwrap();
            }
        });
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..25 {
                    let image = bench.import_text(&text).unwrap();
                    assert!(image.layers[0].join("b").exists() && image.layers[1].join("a").exists());
                }
            });
        }
        std::thread::sleep(Duration::from_secs(2));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        remover.join().unwrap();
    });
}

pub(crate) fn helpers(
    user: Option<RunAs>,
    store: Option<RunAs>,
    environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
) -> Helpers {
    Helpers { user, environment, store, ..Helpers::new(program(), Registries::default()) }
}

#[test]
fn fetcher_and_unpacker_import_with_the_users_own_login() {
    let bench = Bench::new();
    ImageBuilder::new(vec![many_files(300), Tar::new().file("b", b"x").end()])
        .compressed(Compression::Gzip)
        .write(&bench.layout());
    let auth = "YWxpY2U6c2VjcmV0";
    let fake =
        FakeRegistry::new(bench.layout(), Behaviour { token: Some(auth.to_owned()), ..Behaviour::default() });
    let home = bench.path().join("docker");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(
        home.join("config.json"),
        format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, fake.address),
    )
    .unwrap();
    let store = bench.store();
    let name = format!("{}/x:1", fake.address);
    let registries = Registries::default().without_tls(&fake.address);
    let make = |environment| Helpers { registries: registries.clone(), ..helpers(None, None, environment) };
    let with_login = make(vec![("DOCKER_CONFIG".into(), home.clone().into())]);
    let without = make(vec![]);

    let reference = name.parse().unwrap();
    let error = without.resolve(&reference, bench.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    let Resolved::Manifest(image) = with_login.resolve(&reference, bench.path()).unwrap() else { panic!() };
    assert_eq!(
        image,
        resolve_text(&name, &Credentials::from_parts(Some(&home), None, None, None), true).unwrap()
    );

    let error = without.ensure(&store, &image, &()).unwrap_err();
    assert!(error.kind() == ErrorKind::Denied && error.to_string().contains("anonymous"), "{error}");
    bench.assert_empty();
    let events = Mutex::new(Vec::new());
    let prepared = with_login.ensure(&store, &image, &|e| events.lock().unwrap().push(e)).unwrap();
    assert_eq!(std::fs::read(prepared.layers[0].join("b")).unwrap(), b"x");
    assert!(events.into_inner().unwrap().iter().any(|e| matches!(e, ProgressEvent::Start { layers: 2, .. })));
    let requests = fake.log().len();
    with_login.ensure(&store, &image, &()).unwrap();
    assert_eq!(fake.log().len(), requests, "who has shown their right once is not asked again");
}

#[test]
fn a_private_image_serves_only_those_who_could_pull_it_as_root() {
    assert!(rustix::process::geteuid().is_root(), "only root can act for several users");
    let dir = tempfile::Builder::new().prefix("berth-test-").tempdir_in("/var/tmp").unwrap();
    let bench = Bench { dir, form: berth_images::LayerForm::Directory };
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(bench.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    ImageBuilder::new(vec![Tar::new().entry("su", b'0', 0o4755, "", b"x").dir("locked", 0).end()])
        .write(&bench.layout());
    let auth = "YWxpY2U6c2VjcmV0";
    let slow = Duration::from_millis(100);
    let fake = FakeRegistry::new(
        bench.layout(),
        Behaviour { token: Some(auth.to_owned()), slow, ..Behaviour::default() },
    );
    // The program must be readable by the users it becomes.
    let copy = bench.path().join("import");
    std::fs::copy(program(), &copy).unwrap();
    let home = bench.path().join("docker");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(
        home.join("config.json"),
        format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, fake.address),
    )
    .unwrap();
    let id = |uid| Some(RunAs { uid, gid: uid, groups: vec![uid] });
    let owner = 54_321;
    let store = Store::open_for(&bench.path().join("store"), Some((owner, owner))).unwrap();
    let registries = Registries::default().without_tls(&fake.address);
    let make = |uid, environment| Helpers {
        program: copy.clone(),
        registries: registries.clone(),
        ..helpers(id(uid), id(owner), environment)
    };
    let alice = make(54_001, vec![("DOCKER_CONFIG".into(), home.into())]);
    let bob = make(54_002, vec![]);
    let Resolved::Manifest(image) =
        alice.resolve(&format!("{}/x:1", fake.address).parse().unwrap(), bench.path()).unwrap()
    else {
        panic!()
    };

    // Neither does Bob get it by asking while Alice's import is under way.
    let prepared = std::thread::scope(|scope| {
        let bob = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(150));
            bob.ensure(&store, &image, &())
        });
        let prepared = alice.ensure(&store, &image, &()).unwrap();
        assert_eq!(bob.join().unwrap().unwrap_err().kind(), ErrorKind::Denied);
        prepared
    });
    use std::os::unix::fs::MetadataExt;
    let su = std::fs::metadata(prepared.layers[0].join("su")).unwrap();
    assert_eq!((su.uid(), su.mode() & 0o7777), (owner, 0o4755));
    assert_eq!(std::fs::metadata(prepared.layers[0].join("locked")).unwrap().uid(), owner);
    // It is there, but Bob cannot have it: he cannot pull it.
    let error = bob.ensure(&store, &image, &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    alice.ensure(&store, &image, &()).unwrap();
    // Root's own work in the store stays usable for its owner.
    let digest = prepared.digest.clone();
    drop(prepared);
    store.remove(&digest).unwrap();
    assert!(!store.is_granted(&image, 54_001).unwrap());
    alice.ensure(&store, &image, &()).unwrap();
}

#[test]
fn what_one_source_gave_is_not_given_as_another_sources() {
    let bench = Bench::new();
    ImageBuilder::new(vec![Tar::new().file("b", b"x").end()]).write(&bench.layout());
    let text = format!("oci:{}", bench.layout().display());
    let image = resolve_text(&text, &Credentials::anonymous(), false).unwrap();
    let helpers = helpers(None, None, vec![]);
    helpers.ensure(&bench.store(), &image, &()).unwrap();
    // A site's rules go by names: whoever may not have it by one name does not get it by saying another.
    let other = bench.path().join("allowed");
    std::fs::create_dir(&other).unwrap();
    ImageBuilder::new(vec![Tar::new().file("b", b"y").end()]).write(&other);
    let claimed = ResolvedManifest { source: format!("oci:{}", other.display()), ..image.clone() };
    let error = helpers.ensure(&bench.store(), &claimed, &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    // Where it is, it is fetched for.
    std::fs::remove_dir_all(&other).unwrap();
    std::fs::rename(bench.layout(), &other).unwrap();
    helpers.ensure(&bench.store(), &claimed, &()).unwrap();
    // Both are known now, and nobody is asked any more.
    std::fs::remove_dir_all(&other).unwrap();
    helpers.ensure(&bench.store(), &image, &()).unwrap();
    helpers.ensure(&bench.store(), &claimed, &()).unwrap();
}

#[test]
fn a_helper_that_dies_is_an_error() {
    let bench = Bench::new();
    ImageBuilder::new(vec![Tar::new().file("b", b"x").end()]).write(&bench.layout());
    let image =
        resolve_text(&format!("oci:{}", bench.layout().display()), &Credentials::anonymous(), false).unwrap();
    let mut broken = helpers(None, None, vec![]);
    broken.unpack = vec!["no-such-command".into()];
    let error = broken.ensure(&bench.store(), &image, &()).unwrap_err().to_string();
    assert!(error.contains("ended without a result"), "{error}");
    broken.program = "/no/such/program".into();
    assert!(broken.ensure(&bench.store(), &image, &()).unwrap_err().to_string().contains("/no/such/program"));
    // A fetcher that fails to open its source says why.
    let mut gone = image.clone();
    gone.source = "oci:/no/such/layout".to_owned();
    let error = helpers(None, None, vec![]).ensure(&bench.store(), &gone, &()).unwrap_err().to_string();
    assert!(error.contains("/no/such/layout"), "{error}");
    let options = ResolveOptions { directory: Some(bench.path().to_path_buf()), ..ResolveOptions::default() };
    let relative: berth_images::Reference = "./layout".parse().unwrap();
    assert_eq!(
        helpers(None, None, vec![]).resolve(&relative, bench.path()).unwrap(),
        berth_images::resolve(&relative, &Credentials::anonymous(), &options).unwrap()
    );
}

#[test]
fn tls_is_checked_against_the_systems_authorities() {
    let bench = Bench::new();
    let authority = Authority::new(bench.path());
    let ca = authority.pem();
    let registry = RealRegistry::with_tls(&authority.sign("server"), None);
    ImageBuilder::new(vec![Tar::new().file("a", b"x").end()]).write(&bench.layout());
    registry.push(&bench.layout().display().to_string(), "tls:1");
    let name = registry.name("tls:1");
    // The authority is an environment variable, which only another process can have.
    let run = |trusted: bool| {
        let mut command = Command::new(program());
        command.arg("--store").arg(bench.path().join("store")).arg(&name).env_remove("SSL_CERT_FILE");
        if trusted {
            command.env("SSL_CERT_FILE", &ca);
        }
        command.output().unwrap()
    };
    let refused = run(false);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("certificate"), "{text}");
    let taken = run(true);
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
}

#[test]
fn a_full_disk_is_named_and_nothing_half_made_stays() {
    let bench = Bench::new();
    ImageBuilder::new(vec![
        Tar::new().file("small", b"x").end(),
        Tar::new().file("big", &vec![7; 8 << 20]).end(),
    ])
    .compressed(Compression::Gzip)
    .write(&bench.layout());
    let disk = bench.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    for form in ["directory", "erofs"] {
        let script = format!(
        "mount -t tmpfs -o size=4m disk {disk} && {program} --store {disk}/store --form {form} {image}; echo \"exit $?\"
        find {disk}/store/tmp {disk}/store/images -mindepth 1 ! -name '*.partial'",
        disk = disk.display(),
        program = program().display(),
        image = bench.layout().display()
    );
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .output()
            .unwrap_or_else(|e| panic!("cannot run unshare: {e}; install the Debian package util-linux"));
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(out, "exit 1\n", "{form}: {err}");
        assert!(err.contains("No space left") && err.contains("berth image prune"), "{form}: {err}");
    }
}
