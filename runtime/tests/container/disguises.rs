//! Things that pretend to be others: a null device, a `/proc`, a working directory, a password file, a file with rights.

use crate::Test;
use crate::helper::{
    As, Dir, Order, STORE, busybox, each, fingerprint, give, is_root, launch, node_usr, request, script, uid,
};
use crate::options::mount;
use berth_model::ByteStr;
use berth_runtime::{Rootfs, Workdir};
use rustix::fs::{FileType, Mode, XattrFlags};
use std::os::unix::fs::symlink;
use std::path::Path;

pub const TESTS: &[Test] = &[
    ("disguises::a_false_null_device_is_refused", a_false_null_device_is_refused),
    ("disguises::a_false_proc_is_not_written_to", a_false_proc_is_not_written_to),
    ("disguises::no_descriptor_is_a_working_directory", no_descriptor_is_a_working_directory),
    ("disguises::device_paths_are_taken_by_component", device_paths_are_taken_by_component),
    ("disguises::devices_and_sockets_in_etc", devices_and_sockets_in_etc),
    ("disguises::overlay_attributes_of_a_root_mean_nothing", overlay_attributes_of_a_root_mean_nothing),
    ("disguises::rights_of_a_file_mean_nothing", rights_of_a_file_mean_nothing),
];

/// The node's `/dev/null` is what a nested container's user made of it.
fn a_false_null_device_is_refused() {
    if !is_root() {
        return; // Nobody else can mount over the node's.
    }
    each(|mode| {
        let dir = Dir::new();
        let layer = busybox(&dir, mode);
        let file = dir.at("false-null");
        std::fs::write(&file, "").unwrap();
        give(&file, uid());
        let mut order = Order::new(request(&layer, mode), "echo collected > /dev/null; echo ran");
        order.null = Some(file.clone());
        let outcome = launch(&order, mode);
        if mode == As::Root {
            // Root makes the container one of its own.
            assert!(outcome.code == 0 && outcome.out == "ran\n", "{outcome:?}");
        } else {
            let text = "cannot bring in /dev/null";
            assert!(outcome.code == 125 && outcome.err.contains(text), "{mode:?}: {outcome:?}");
            assert!(outcome.err.contains("something else there"), "{mode:?}: {outcome:?}");
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"", "{mode:?}");
        // What an image has in /dev is not even seen.
        std::fs::create_dir(layer.join("dev")).unwrap();
        symlink("/etc/passwd", layer.join("dev/null")).unwrap();
        std::fs::write(layer.join("dev/zero"), "").unwrap();
        give(&layer, if mode == As::Root { STORE } else { uid() });
        let look = "stat -c '%F %t,%T' /dev/null /dev/zero; head -c1 /dev/zero | od -An -tx1";
        let out = script(request(&layer, mode), mode, look);
        assert_eq!(out, "character special file 1,3\ncharacter special file 1,5\n 00\n", "{mode:?}");
    });
}

/// The user mounts a directory over `/proc`. What is written to `/proc` while the container is made must go to the
/// kernel all the same: else ids would not be mapped, and nobody would know.
fn a_false_proc_is_not_written_to() {
    each(|mode| {
        let dir = Dir::new();
        let fake = dir.at("fake");
        for sub in ["self/fd", "self/attr", "self/ns", "1", "thread-self", "sys/kernel"] {
            std::fs::create_dir_all(fake.join(sub)).unwrap();
        }
        for name in ["setgroups", "uid_map", "gid_map", "oom_score_adj", "attr/exec", "loginuid"] {
            std::fs::write(fake.join("self").join(name), "").unwrap();
        }
        give(&fake, uid());
        let before = fingerprint(&fake);
        for (remap, in_job) in [(false, false), (false, true), (true, false), (true, true)] {
            let layer = Dir::new();
            let mut r = request(&busybox(&layer, mode), mode);
            (r.remap_root, r.in_job) = (remap, in_job);
            r.mounts = vec![mount(fake.to_str().unwrap(), "/proc", &[])];
            let mut order = Order::new(r, "id -u; touch /made && stat -c %u /made");
            if in_job {
                order.steps = vec!["id -u; touch /made && stat -c %u /made".into()];
            }
            let outcome = launch(&order, mode);
            assert_eq!(fingerprint(&fake), before, "{mode:?} {remap} {in_job}: {outcome:?}");
            let id = if remap { 0 } else { uid() };
            assert_eq!(outcome.out, format!("{id}\n{id}\n"), "{mode:?} {remap} {in_job}: {outcome:?}");
        }
    });
}

/// A directory of the node is left open by whoever starts the container, and the working directory names it by number.
fn no_descriptor_is_a_working_directory() {
    each(|mode| {
        let dir = Dir::new();
        let layer = busybox(&dir, mode);
        let secret = dir.at("secret");
        std::fs::create_dir(&secret).unwrap();
        std::fs::write(secret.join("key"), "secret").unwrap();
        give(&secret, uid());
        for process in ["self", "1"] {
            for number in 3..12 {
                let mut r = request(&layer, mode);
                let path = format!("/proc/{process}/fd/{number}");
                r.workdir =
                    Some(Workdir { path: path.as_str().into(), origin: "--container-workdir".into() });
                let mut order = Order::new(
                    r,
                    "cat key ../secret/key 2>/dev/null; ls -d /proc/self/cwd/ >/dev/null && pwd",
                );
                order.leak = Some(secret.clone());
                let outcome = launch(&order, mode);
                assert!(!outcome.out.contains("secret"), "{mode:?} {path}: {outcome:?}");
                assert!(outcome.code == 125 && outcome.err.contains(&path), "{mode:?} {path}: {outcome:?}");
            }
        }
    });
}

fn device_paths_are_taken_by_component() {
    each(|mode| {
        let dir = Dir::new();
        let layer = busybox(&dir, mode);
        for device in
            ["/dev/../etc/passwd", "/devil", "/dev", "dev/null", "/dev/shm/../../etc/passwd", "/dev/.."]
        {
            let mut r = request(&layer, mode);
            r.devices = vec![device.into()];
            let outcome = launch(&Order::new(r, "true"), mode);
            // Not because there is no such device: one could be there.
            let named = outcome.err.contains("device") && !outcome.err.contains("No such file");
            assert!(outcome.code == 125 && named, "{mode:?} {device}: {outcome:?}");
        }
    });
}

/// Files of `/etc` that never end, or block whoever opens them. Only root can make some of them; an image's layers hold
/// none, but a root directory may.
fn devices_and_sockets_in_etc() {
    each(|mode| {
        let dir = Dir::new();
        let root = busybox(&dir, As::User);
        std::fs::remove_file(root.join("etc/passwd")).unwrap();
        if is_root() {
            let make = |name: &str, kind, major, minor| {
                let device = rustix::fs::makedev(major, minor);
                let at = root.join("etc").join(name);
                rustix::fs::mknodat(rustix::fs::CWD, &at, kind, Mode::from_raw_mode(0o666), device).unwrap();
            };
            make("passwd", FileType::CharacterDevice, 1, 5);
            make("group", FileType::CharacterDevice, 5, 0);
            make("hosts", FileType::BlockDevice, 7, 0);
        } else {
            symlink("/dev/zero", root.join("etc/passwd")).unwrap();
        }
        drop(std::os::unix::net::UnixListener::bind(root.join("etc/resolv.conf")).unwrap());
        give(&root, uid());
        for in_place in [false, true] {
            let mut r = request(&root, mode);
            r.root = Rootfs::Dir(ByteStr::from(root.as_path()));
            r.writable = Some(in_place);
            let outcome = launch(&Order::new(r, "test -c /etc/passwd || id -un"), mode);
            // In place nothing of the user's is replaced: said, and gone on without.
            let left = in_place && outcome.err.contains("left as it is: /etc/passwd is no regular file");
            assert!(
                outcome.code == 0 && (outcome.out == "ann\n" || left),
                "{mode:?} {in_place}: {outcome:?}"
            );
        }
    });
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// Overlayfs reads attributes of its lower directories; a user can write those in a directory of the own.
fn overlay_attributes_of_a_root_mean_nothing() {
    each(|mode| {
        let dir = Dir::new();
        let root = busybox(&dir, As::User);
        for name in ["moved", "meta", "secret"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        std::fs::write(root.join("secret/key"), "secret\n").unwrap();
        std::fs::write(root.join("meta/file"), "own\n").unwrap();
        give(&root, uid());
        for kind in if is_root() { &["user", "trusted"][..] } else { &["user"][..] } {
            set(&root.join("moved"), &format!("{kind}.overlay.redirect"), b"/secret");
            set(&root.join("meta/file"), &format!("{kind}.overlay.redirect"), b"/secret/key");
            set(&root.join("meta/file"), &format!("{kind}.overlay.metacopy"), b"");
            set(&root.join("meta"), &format!("{kind}.overlay.origin"), b"\0\xfb\x1d");
        }
        let mut r = request(&root, mode);
        r.root = Rootfs::Dir(ByteStr::from(root.as_path()));
        let out = launch(&Order::new(r, "ls /moved; cat /meta/file"), mode).out;
        assert!(!out.contains("secret") && !out.contains("key"), "{mode:?}: {out}");
    });
}

/// File capabilities and set-user-id bits, in a layer as the store has it and in a directory of the user's.
fn rights_of_a_file_mean_nothing() {
    if !is_root() {
        return; // Only root can give a file rights.
    }
    each(|mode| {
        let dir = Dir::new();
        // Not busybox, which gives up what it gained before it does anything.
        let layer = node_usr(&dir, mode);
        // VFS_CAP_REVISION_2, effective, every capability; capabilities(7).
        let mut all = vec![1, 0, 0, 2];
        all.extend([0xff; 4]);
        all.extend([0; 4]);
        all.extend([0xff, 1, 0, 0]);
        all.extend([0; 4]);
        let (caps, set_id) = (layer.join("grep-caps"), layer.join("grep-setuid"));
        for copy in [&caps, &set_id] {
            std::fs::copy("/usr/bin/grep", copy).unwrap();
        }
        give(&layer, if mode == As::Root { STORE } else { uid() });
        set(&caps, "security.capability", &all);
        std::os::unix::fs::chown(&set_id, Some(0), Some(0)).unwrap();
        std::fs::set_permissions(&set_id, std::os::unix::fs::PermissionsExt::from_mode(0o6755)).unwrap();
        let look = "/grep-caps -E '^Cap(Eff|Prm|Inh|Amb):' /proc/self/status | cut -f2 | sort -u; \
                    /grep-setuid -E '^([UG]id|CapEff):' /proc/self/status | tr '\\t' ' '";
        for overlay in [true, false] {
            let mut r = request(&layer, mode);
            r.mounts = vec![mount("/usr", "/usr", &["ro"])];
            if !overlay {
                r.root = Rootfs::Dir(ByteStr::from(layer.as_path()));
            }
            let out = script(r, mode, look);
            let (id, none) = (uid(), "0000000000000000");
            // Or it does not even start: where nosuid does not hide the capabilities, the kernel refuses a program that cannot have them.
            let set_id = out.strip_prefix(&format!("{none}\n")).unwrap_or(&out);
            let expected = format!("Uid: {id} {id} {id} {id}\nGid: {id} {id} {id} {id}\nCapEff: {none}\n");
            assert_eq!(set_id, expected, "{mode:?} {overlay}");
        }
    });
}
