//! Root makes a container of places that its user chose: nothing may come about there that the user could not
//! have done without root. Each attack names directories of root's as parts of a container.

use crate::Test;
use crate::helper::{As, Dir, Order, STORE, busybox, fingerprint, give, is_root, launch, request};
use crate::options::mount;
use berth_model::ByteStr;
use berth_runtime::{ContainerRequest, Rootfs};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

pub const TESTS: &[Test] = &[
    (
        "rights::no_mount_target_is_made_in_a_directory_of_roots",
        no_mount_target_is_made_in_a_directory_of_roots,
    ),
    ("rights::a_mounted_etc_is_left_alone", a_mounted_etc_is_left_alone),
    ("rights::an_images_link_to_a_mount_is_left_alone", an_images_link_to_a_mount_is_left_alone),
    ("rights::no_working_directory_is_made_in_a_mount", no_working_directory_is_made_in_a_mount),
    ("rights::a_root_directory_of_roots_is_left_alone", a_root_directory_of_roots_is_left_alone),
    ("rights::a_closed_passwd_file_is_not_shown", a_closed_passwd_file_is_not_shown),
];

/// A directory that everyone may read and only root may write, with what `/etc` has in it.
fn closed(dir: &Dir) -> PathBuf {
    let closed = dir.at("closed");
    std::fs::create_dir_all(closed.join("cron.d")).unwrap();
    std::fs::create_dir_all(closed.join("apt/apt.conf.d")).unwrap();
    std::fs::write(closed.join("passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    std::fs::write(closed.join("group"), "root:x:0:\n").unwrap();
    symlink("/run/elsewhere/resolv.conf", closed.join("resolv.conf")).unwrap();
    closed
}

/// Runs the container, whatever comes of it, and sees that the directory is what it was.
fn unchanged(r: ContainerRequest, closed: &Path) -> crate::helper::Outcome {
    let before = fingerprint(closed);
    let outcome = launch(&Order::new(r, "cat /etc/passwd; echo ran"), As::Root);
    assert_eq!(fingerprint(closed), before, "{outcome:?}");
    outcome
}

fn at(closed: &Path, target: &str) -> berth_model::spec::MountSpec {
    mount(closed.to_str().unwrap(), target, &[])
}

fn no_mount_target_is_made_in_a_directory_of_roots() {
    if !is_root() {
        return; // There is nobody else's right to borrow.
    }
    let dir = Dir::new();
    let (closed, layer) = (closed(&dir), busybox(&dir, As::Root));
    let file = dir.at("file");
    std::fs::write(&file, "x").unwrap();
    for source in
        [mount(file.to_str().unwrap(), "/mnt/cron.d/job", &[]), mount("tmpfs", "/mnt/made/deep", &[])]
    {
        let mut r = request(&layer, As::Root);
        r.mounts = vec![at(&closed, "/mnt"), source];
        let outcome = unchanged(r, &closed);
        assert!(outcome.code == 125 && outcome.err.contains("cannot make the mount target"), "{outcome:?}");
    }
}

fn a_mounted_etc_is_left_alone() {
    if !is_root() {
        return; // There is nobody else's right to borrow.
    }
    let dir = Dir::new();
    let (closed, layer) = (closed(&dir), busybox(&dir, As::Root));
    for remap in [false, true] {
        let mut r = request(&layer, As::Root);
        r.remap_root = remap;
        r.mounts = vec![at(&closed, "/etc")];
        let outcome = unchanged(r, &closed);
        assert_eq!(
            outcome.out, "root:x:0:0:root:/root:/bin/sh\nran\n",
            "the user's own mount is what counts: {outcome:?}"
        );
        // One file of it, mounted by name, is what the user wants to see as well.
        let mut r = request(&layer, As::Root);
        r.remap_root = remap;
        r.mounts = vec![at(&closed.join("passwd"), "/etc/passwd")];
        let outcome = unchanged(r, &closed);
        assert_eq!(outcome.out, "root:x:0:0:root:/root:/bin/sh\nran\n", "{outcome:?}");
    }
}

fn an_images_link_to_a_mount_is_left_alone() {
    if !is_root() {
        return; // There is nobody else's right to borrow.
    }
    let dir = Dir::new();
    let (closed, layer) = (closed(&dir), busybox(&dir, As::Root));
    std::fs::remove_dir_all(layer.join("etc")).unwrap();
    symlink("mnt", layer.join("etc")).unwrap();
    give(&layer, STORE);
    for remap in [false, true] {
        let mut r = request(&layer, As::Root);
        r.remap_root = remap;
        r.mounts = vec![at(&closed, "/mnt")];
        unchanged(r, &closed);
    }
    std::fs::remove_file(layer.join("etc")).unwrap();
    std::fs::create_dir_all(layer.join("etc")).unwrap();
    symlink("/mnt/apt", layer.join("etc/apt")).unwrap();
    give(&layer, STORE);
    let mut r = request(&layer, As::Root);
    r.remap_root = true;
    r.mounts = vec![at(&closed, "/mnt")];
    unchanged(r, &closed);
}

fn no_working_directory_is_made_in_a_mount() {
    if !is_root() {
        return; // There is nobody else's right to borrow.
    }
    let dir = Dir::new();
    let (closed, layer) = (closed(&dir), busybox(&dir, As::Root));
    let mut r = request(&layer, As::Root);
    r.mounts = vec![at(&closed, "/mnt")];
    r.identity.home = "/mnt/home/ann".into();
    unchanged(r.clone(), &closed);
    r.image.workdir = Some("/mnt/work".into());
    unchanged(r, &closed);
}

fn a_root_directory_of_roots_is_left_alone() {
    if !is_root() {
        return; // There is nobody else's right to borrow.
    }
    let dir = Dir::new();
    let closed = closed(&dir);
    for remap in [false, true] {
        let mut r = request(&closed, As::Root);
        r.remap_root = remap;
        r.root = Rootfs::Dir(ByteStr::from(closed.as_path()));
        r.writable = Some(true);
        r.mounts = vec![mount("tmpfs", "/cron.d/job", &[])];
        let outcome = unchanged(r, &closed);
        assert_eq!(outcome.code, 125, "{outcome:?}");
    }
}

fn a_closed_passwd_file_is_not_shown() {
    if !is_root() {
        return; // There is nobody else's right to borrow.
    }
    let dir = Dir::new();
    let root = busybox(&dir, As::User);
    std::fs::write(root.join("etc/passwd"), "secret:x:9:9::/:/bin/sh\n").unwrap();
    give(&root, 0);
    std::fs::set_permissions(root.join("etc/passwd"), PermissionsExt::from_mode(0o600)).unwrap();
    let mut r = request(&root, As::Root);
    r.root = Rootfs::Dir(ByteStr::from(root.as_path()));
    let outcome = unchanged(r, &root);
    assert!(!outcome.out.contains("secret"), "{outcome:?}");
}
