//! A full disk under a store of images: what does not fit is refused by name and leaves nothing there, and what fits runs.

use berth_tests::disk::{Disk, store_owner};
use berth_tests::layout::{self, Layer};
use berth_tests::sandbox::wait;
use berth_tests::{Cmd, Sandbox, Who, leftovers};
use serde_json::json;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Size of the disk in MiB; it has room for 4096 files.
const DISK: u64 = 64;

/// An image of one layer, so that no complete one of it is kept for another try.
fn image(sandbox: &Sandbox, name: &str, layer: Layer) -> PathBuf {
    let place = sandbox.work().join(name);
    layout::write(&place, vec![layer.file("name", 0o644, name.as_bytes())], json!({}));
    place
}

/// So many MiB that neither compress nor have holes.
fn noise(mib: usize) -> Layer {
    let mut noise = vec![0; mib << 20];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    layout::busybox().file("noise", 0o644, &noise)
}

/// Everything in a store, but for the files that are locked: they are empty.
fn entries(store: &Path) -> BTreeSet<PathBuf> {
    let (mut found, mut left) = (BTreeSet::new(), vec![store.to_path_buf()]);
    while let Some(directory) = left.pop() {
        // What the agent just writes may be gone again.
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != "locks" {
                left.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// Whether a failed import may leave it: manifest and configuration, which are whole, and the note that somebody wanted the image.
fn may_stay(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    let parent = path.parent().unwrap();
    name.starts_with("sha256-")
        && (parent.ends_with("blobs") || parent.ends_with("images") && name.ends_with(".partial"))
}

/// A command fails for want of room, says so with the image and the entry of it that did not fit, and leaves nothing on the disk.
fn refused(sandbox: &Sandbox, disk: &Disk, command: Cmd, image: &Path, entry: &str) {
    let store = sandbox.state().join("images");
    let (there, before) = (entries(&store), disk.free());
    let place = image.display().to_string();
    let said = command.limit(60).fails();
    let kept = format!("images are kept in {}", store.display());
    said.says(&["No space left on device", place.as_str(), entry, kept.as_str(), "berth image prune"]);
    let left = || -> Vec<PathBuf> {
        entries(&store).difference(&there).filter(|path| !may_stay(path)).cloned().collect()
    };
    let nothing = wait(30, || left().is_empty().then_some(()));
    assert!(nothing.is_some(), "{:?} are left of {place}", left());
    let back = || {
        let now = disk.free();
        (now.bytes + (1 << 20) >= before.bytes && now.files + 16 >= before.files).then_some(())
    };
    assert!(wait(30, back).is_some(), "free were {before:?}, and now {:?} are", disk.free());
}

fn full(who: Who, form: &str) {
    let mut sandbox = Sandbox::empty(who);
    let disk = Disk::in_file(&sandbox.state().join("images"), store_owner(sandbox.who()), DISK);
    sandbox.write("../state/berth.toml", format!("[images]\nlayer_form = \"{form}\"\n"));
    sandbox.up();
    let pull = |image: &Path| sandbox.cmd("berth").args(["image", "pull"]).arg(image);
    let look = |image: &Path| sandbox.srun_in(image, ["cat", "/name"]).limit(60);
    let large = image(&sandbox, "large", noise(70));
    for command in [look(&large), pull(&large)] {
        refused(&sandbox, &disk, command, &large, "entry \"noise\"");
    }
    // More files than the disk takes, which is nothing to an image.
    let files = (0..5000).fold(layout::busybox(), |layer, n| layer.file(&format!("n{n}"), 0o644, b""));
    let many = image(&sandbox, "many", files);
    match form {
        "erofs" => assert_eq!(look(&many).ok().text(), "many"),
        _ => refused(&sandbox, &disk, look(&many), &many, "entry \"n"),
    }
    let small = image(&sandbox, "small", noise(8));
    assert_eq!(look(&small).ok().text(), "small");
    // It costs nobody anything that somebody tries again.
    refused(&sandbox, &disk, pull(&large), &large, "entry \"noise\"");
    assert_eq!(look(&small).ok().text(), "small");
    sandbox.cmd("berth").args(["image", "verify"]).limit(60).ok();
    assert_eq!(sandbox.down().rc, 0);
    assert_eq!(leftovers::mounts(&sandbox.state()).len(), 1, "the store's own");
    disk.unmount();
    assert_eq!(leftovers::mounts(&sandbox.state()), Vec::<String>::new());
}

#[test]
fn a_full_disk_is_told_and_its_space_given_back_as_root() {
    full(Who::root(), "directory");
}

#[test]
fn a_full_disk_is_told_and_its_space_given_back_file_backed_as_root() {
    full(Who::root(), "erofs");
}

/// Only root mounts the user's small disk.
#[test]
fn a_users_full_disk_is_told_and_its_space_given_back_as_root() {
    full(Who::user(), "directory");
}
