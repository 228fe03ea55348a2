//! Races against what a container is made of: a mutator swaps names as fast as it can while mounts are made.
//!
//! `BERTH_RACE_ROUNDS` sets the number of rounds; the default takes seconds.

use super::mounts::{Source, one};
use super::target::Root;
use super::{dev, open_path};
use crate::plan::{Attrs, MountKind, PlannedMount};
use berth_model::ByteStr;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, StatxFlags};
use rustix::mount::UnmountFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

const ROUNDS: &str = "BERTH_RACE_ROUNDS";
/// Set in the process that races: it is in namespaces of its own.
const INSIDE: &str = "BERTH_RACE_INSIDE";

fn rounds(usual: u32) -> u32 {
    std::env::var(ROUNDS).map_or(usual, |n| n.parse().unwrap())
}

/// Swaps two names of a directory until the other is done.
fn while_swapping(dir: &Path, [a, b]: [&str; 2], body: impl FnOnce()) {
    let dir = open_path(&ByteStr::from(dir)).unwrap();
    let stop = AtomicBool::new(false);
    /// A failed assertion must end the mutator too, or the scope would wait for it.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(&dir, a, &dir, b, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let done = Done(&stop);
        body();
        drop(done);
    });
}

fn mount_id(fd: impl AsFd) -> u64 {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).unwrap().stx_mnt_id
}

fn below(dir: &OwnedFd, name: &str) -> Option<OwnedFd> {
    rustix::fs::openat(dir, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()
}

#[test]
fn no_swap_while_mounts_are_made_leads_one_outside() {
    if std::env::var_os(INSIDE).is_some() {
        return race_for_mounts();
    }
    let name = "setup::tests::no_swap_while_mounts_are_made_leads_one_outside";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("rounds:"), "{text}");
    println!("{text}");
}

/// Unmounting waits for the kernel, however little is unmounted: so many rounds share one.
const BATCH: u32 = 500;

/// `swap` is a directory of the root and `link` leads outside, and the two change places all the time. What is
/// mounted on `/swap/there` or made as `/swap/made` must be in the one directory whatever its name.
fn race_for_mounts() {
    let dir = tempfile::tempdir().unwrap();
    let (inside, outside) = (dir.path().join("root"), dir.path().join("outside"));
    for d in [inside.join("swap/there"), outside.join("there"), dir.path().join("source")] {
        std::fs::create_dir_all(d).unwrap();
    }
    std::fs::write(dir.path().join("file"), "").unwrap();
    std::os::unix::fs::symlink("../outside", inside.join("link")).unwrap();
    let open = |p: &Path| open_path(&ByteStr::from(p)).unwrap();
    let sources = ["source", "file"].map(|name| open(&dir.path().join(name)));
    let mut race = Race { far: open(&outside), sources, made: 0, refused: 0 };
    let rounds = rounds(10_000);
    while_swapping(&inside, ["swap", "link"], || {
        for first in (0..rounds).step_by(BATCH as usize) {
            // A mount of the root's own, with which all that was mounted in it goes at once.
            rustix::mount::mount_bind(&inside, &inside).unwrap();
            let root = open(&inside);
            let real = real_directory(&root);
            let root = Root::new(root, false).unwrap();
            for n in first..rounds.min(first + BATCH) {
                race.round(n, &root, &real);
            }
            drop((root, real));
            rustix::mount::unmount(&inside, UnmountFlags::DETACH).unwrap();
            let real = real_directory(&open(&inside));
            for n in first..first + BATCH {
                // Refused rounds made none.
                let _ = rustix::fs::unlinkat(&real, format!("made{n}"), AtFlags::empty());
            }
        }
    });
    let Race { made, refused, .. } = race;
    println!("{rounds} rounds: {made} mounted in the root, {refused} refused, 0 outside");
    // Both must have happened, or nothing was raced.
    assert!(made > 0 && refused > 0, "{made} mounted, {refused} refused");
}

/// The directory that is called `swap` or `link` at this moment.
fn real_directory(root: &OwnedFd) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let find =
        || ["swap", "link"].iter().find_map(|n| rustix::fs::openat(root, *n, flags, Mode::empty()).ok());
    std::iter::repeat_with(find).flatten().next().unwrap()
}

struct Race {
    /// The directory outside.
    far: OwnedFd,
    /// A directory and a file to be mounted.
    sources: [OwnedFd; 2],
    made: u32,
    refused: u32,
}

impl Race {
    /// A directory on one that is there, and a file on a target that has to be made.
    fn round(&mut self, n: u32, root: &Root, real: &OwnedFd) {
        let (name, source) =
            if n.is_multiple_of(2) { ("there".to_string(), 0) } else { (format!("made{n}"), 1) };
        let m = PlannedMount {
            kind: MountKind::Bind { source: "/".into(), recursive: false, slave: false },
            target: format!("/swap/{name}").into(),
            attrs: Attrs { nosuid: true, ..Attrs::default() },
            create_dir: None,
            required: true,
            silent: false,
            origin: "--container-mounts".into(),
        };
        let before = below(real, &name).map(mount_id);
        let result = one(root, &m, Source::Open(self.sources[source].try_clone().unwrap()));
        let far = &self.far;
        assert_eq!(below(far, "there").map(mount_id), Some(mount_id(far)), "round {n}: mounted outside");
        assert!(below(far, &name).is_none_or(|_| n.is_multiple_of(2)), "round {n}: made outside");
        match result {
            Ok(()) => {
                self.made += 1;
                let now = below(real, &name).map(mount_id);
                assert!(
                    now.is_some() && now != before && now != Some(mount_id(real)),
                    "round {n}: it is nowhere"
                );
            }
            Err(_) => self.refused += 1,
        }
    }
}

#[test]
fn no_swap_makes_another_device_of_the_null_device() {
    let dir = tempfile::tempdir().unwrap();
    let (null, other) = (dir.path().join("null"), dir.path().join("other"));
    std::os::unix::fs::symlink("/dev/null", &null).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &other).unwrap();
    let (mut right, mut refused) = (0u32, 0u32);
    while_swapping(dir.path(), ["null", "other"], || {
        for n in 0..rounds(10_000) {
            match dev::open_device(&null, Some((1, 3))) {
                Ok(fd) => {
                    let stat = rustix::fs::statat(&fd, "", AtFlags::EMPTY_PATH).unwrap();
                    let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
                    assert!(FileType::from_raw_mode(stat.st_mode).is_char_device(), "round {n}");
                    assert_eq!(number, (1, 3), "round {n}");
                    right += 1;
                }
                Err(_) => refused += 1,
            }
        }
    });
    assert!(right > 0 && refused > 0, "{right} right, {refused} refused");
}
