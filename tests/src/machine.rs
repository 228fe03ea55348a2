//! Who runs the tests, as whom the parts run, and where the programs and caches of this machine are.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// As whom a cluster and its clients run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Home directory.
    pub home: PathBuf,
}

/// The ordinary user that root's test runs make and use.
const TEST_USER: &str = "berthtest";

impl Who {
    /// Whether the tests made this user, whose files no person misses.
    pub fn is_tests_own(&self) -> bool {
        self.name.starts_with(TEST_USER)
    }

    /// Root: a cluster in system mode.
    pub fn root() -> Who {
        assert!(
            is_root(),
            "this test needs root; run it as root, or run tests/run.sh, which leaves it out by name"
        );
        Who::named("root")
    }

    /// An ordinary user: ourselves, or the test user when root runs the tests.
    pub fn user() -> Who {
        if !is_root() {
            return Who::of_uid(nix::unistd::getuid());
        }
        if nix::unistd::User::from_name(TEST_USER).unwrap().is_none() {
            // Another test may make it at the same moment; whether it exists afterwards is what counts.
            let _ = Command::new("useradd").args(["-m", "-s", "/bin/bash", TEST_USER]).output();
        }
        Who::named(TEST_USER)
    }

    /// A second ordinary user, for tests about other people's jobs; needs root.
    pub fn stranger() -> Who {
        assert!(is_root(), "a second user can only be made by root");
        if nix::unistd::User::from_name("berthtest2").unwrap().is_none() {
            let _ = Command::new("useradd").args(["-m", "-s", "/bin/bash", "berthtest2"]).output();
        }
        Who::named("berthtest2")
    }

    fn named(name: &str) -> Who {
        let user = nix::unistd::User::from_name(name).unwrap();
        Who::from(user.unwrap_or_else(|| panic!("there is no user {name}")))
    }

    fn of_uid(uid: nix::unistd::Uid) -> Who {
        Who::from(
            nix::unistd::User::from_uid(uid)
                .unwrap()
                .expect("our own user has an entry in the password file"),
        )
    }

    /// Whether this is root.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }
}

impl From<nix::unistd::User> for Who {
    fn from(user: nix::unistd::User) -> Who {
        Who { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), home: user.dir }
    }
}

/// Whether the tests themselves run as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Root of the checkout.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(path) => workspace().join(path),
        None => workspace().join("target"),
    }
}

/// A directory for what is built once per machine; everyone can read it.
pub fn cache() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let ours = target().join("test-cache");
        let path = if reachable_by_all(&target()) {
            ours
        } else {
            PathBuf::from(format!("/var/tmp/berth-test-cache-{}", nix::unistd::getuid()))
        };
        std::fs::create_dir_all(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().uid(),
            nix::unistd::getuid().as_raw(),
            "{} is someone else's",
            path.display()
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    })
}

fn reachable_by_all(path: &Path) -> bool {
    path.ancestors().all(|p| std::fs::metadata(p).is_ok_and(|m| m.mode() & 0o005 == 0o005))
}

/// Holds an exclusive lock on a file of the cache; the tests are many processes.
pub fn lock(name: &str) -> nix::fcntl::Flock<std::fs::File> {
    let file = std::fs::File::create(cache().join(name)).unwrap();
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).map_err(|(_, e)| e).unwrap()
}

/// Directory with `berth` and `berth-step`, readable by every user. `BERTH_TEST_BIN` names another one than cargo's.
pub fn programs() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let built = match std::env::var_os("BERTH_TEST_BIN").map(PathBuf::from) {
            Some(path) => [path.join("berth"), path.join("berth-step")],
            None => ["debug/berth", "debug/static/berth-step"].map(|file| target().join(file)),
        };
        let stamps: Vec<String> = built
            .iter()
            .map(|file| {
                let meta = std::fs::metadata(file).unwrap_or_else(|e| {
                    panic!("{}: {e}; build it with `cargo xtask build --debug`", file.display())
                });
                format!("{:x}.{:x}", meta.mtime(), meta.mtime_nsec())
            })
            .collect();
        // A copy: the checkout may lie where the test user cannot go, and a build may replace the files under a test.
        let path = cache().join(format!("bin-{}", stamps.join("-")));
        let _guard = lock("bin.lock");
        if !path.exists() {
            remove_old(cache(), "bin-", HOUR);
            let fresh = cache().join("bin.new");
            let _ = std::fs::remove_dir_all(&fresh);
            std::fs::create_dir(&fresh).unwrap();
            for file in &built {
                std::fs::copy(file, fresh.join(file.file_name().unwrap())).unwrap();
            }
            std::fs::rename(&fresh, &path).unwrap();
        }
        path
    })
}

/// Longer than a run of the tests, which may still use what another run has replaced.
const HOUR: Duration = Duration::from_secs(3600);

/// Removes directories whose names begin so, if they were made this long ago.
pub(crate) fn remove_old(directory: &Path, prefix: &str, age: Duration) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let name = entry.file_name();
        let made = entry.metadata().and_then(|m| m.modified());
        let old = made.is_ok_and(|t| t.elapsed().is_ok_and(|since| since > age));
        if name.to_string_lossy().starts_with(prefix) && old {
            let _ = std::fs::remove_dir_all(entry.path()).or_else(|_| std::fs::remove_file(entry.path()));
        }
    }
}

/// Gives a file or directory to someone; nothing to do unless root runs the tests.
pub fn give(path: &Path, who: &Who) {
    if is_root() {
        chown(path, Some(who.uid), Some(who.gid)).unwrap();
    }
}
