//! Options: mounts, working directory, read-only and writable roots, mapped root, limits, layers.

use crate::Test;
use crate::helper::{
    As, Dir, Order, busybox, each, fingerprint, give, launch, node_usr, request, script, uid,
};
use berth_model::ByteStr;
use berth_model::limits::{LimitValue, Limits, Resource};
use berth_model::spec::MountSpec;
use berth_runtime::{Rootfs, Workdir, WritableLayer};

pub const TESTS: &[Test] = &[
    ("options::mounts", mounts),
    ("options::mounts_that_cannot_be", mounts_that_cannot_be),
    ("options::mounts_that_need_not_be", mounts_that_need_not_be),
    ("options::mounts_over_each_other", mounts_over_each_other),
    ("options::working_directory", working_directory),
    ("options::read_only_root", read_only_root),
    ("options::root_directory_in_place", root_directory_in_place),
    ("options::writable_layer_on_disk", writable_layer_on_disk),
    ("options::writable_layer_with_a_limit", writable_layer_with_a_limit),
    ("options::layers_and_whiteouts", layers_and_whiteouts),
    ("options::layers_by_mount2", layers_by_mount2),
    ("options::layers_as_images", layers_as_images),
    ("options::images_that_others_can_write", images_that_others_can_write),
    ("options::mapped_root", mapped_root),
    ("options::limits_travel", limits_travel),
    ("options::shared_memory_and_host_name", shared_memory_and_host_name),
    ("options::entrypoint", entrypoint),
    ("options::mount_home", mount_home),
];

pub fn mount(source: &str, target: &str, flags: &[&str]) -> MountSpec {
    MountSpec {
        source: source.into(),
        target: target.into(),
        flags: flags.iter().map(|f| (*f).to_string()).collect(),
    }
}

fn mounts() {
    each(|mode| {
        let dir = Dir::new();
        let data = dir.at("data");
        std::fs::create_dir_all(data.join("sub")).unwrap();
        std::fs::write(data.join("file"), "content\n").unwrap();
        give(&data, uid());
        let text = data.to_str().unwrap();
        let mut r = request(&busybox(&dir, mode), mode);
        r.base_dir = ByteStr::from(data.as_path());
        r.mounts = vec![
            mount(text, "/data", &[]),
            mount(text, "/made/deep/ro", &["ro"]),
            mount("./file", "/made/one", &[]),
            mount("tmpfs", "/scratch", &["size=1m"]),
            mount(text, "/gone", &[]),
            mount("umount", "/gone", &["x-detach"]),
        ];
        let out = script(
            r,
            mode,
            "cat /made/one; echo new > /data/new; touch /made/deep/ro/x 2>/dev/null || echo ro; \
            df /scratch | tail -1 | awk '{print $2}'; ls /gone | wc -l; ls /data/sub | wc -l",
        );
        assert_eq!(out, "content\nro\n1024\n0\n0\n", "{mode:?}");
        assert_eq!(std::fs::read_to_string(data.join("new")).unwrap(), "new\n");
    });
}

fn mounts_that_cannot_be() {
    each(|mode| {
        let dir = Dir::new();
        let layer = busybox(&dir, mode);
        let cases = [
            (mount("/no/such", "/x", &[]), "source path does not exist"),
            (mount("relative", "/x", &[]), "must be an absolute path"),
            (mount("/etc", "x", &[]), "not an absolute path in the container"),
            (mount("/etc", "/a/../b", &[]), "not an absolute path in the container"),
            (mount("/etc", "/x", &["sticky"]), "'sticky' is unknown"),
            (mount("/etc", "/x", &["rshared"]), "never reaches the node"),
            (mount("/etc", "/x", &["ro", "rw"]), "both ro and rw"),
            (mount("/etc", "/x", &["size=4"]), "none of a path of the node"),
            (mount("tmpfs", "/x", &["size=lots"]), "expected a number"),
            (mount("/etc/passwd", "/x", &["x-create=dir"]), "x-create=dir, but the source is a file"),
            (mount("/etc", "/x", &["x-create=file"]), "x-create=file, but the source is a directory"),
            (mount("/etc", "/", &[]), "the root cannot be mounted over"),
            (mount("/etc", "/bin/sh", &[]), "the container has a file there"),
            (mount("/etc/passwd", "/bin", &[]), "the container has a directory there"),
            (mount("umount", "/bin", &[]), "nothing is mounted there"),
            (mount("umount", "/nosuch", &[]), "cannot unmount /nosuch"),
        ];
        for (m, text) in cases {
            let mut r = request(&layer, mode);
            r.mounts = vec![m];
            let outcome = launch(&Order::new(r, "echo ran"), mode);
            assert!(outcome.code == 125 && outcome.err.contains(text), "{text}: {outcome:?}");
            assert!(outcome.out.is_empty());
        }
    });
}

fn mounts_that_need_not_be() {
    each(|mode| {
        let dir = Dir::new();
        let layer = busybox(&dir, mode);
        let closed = dir.at("closed");
        std::fs::create_dir(&closed).unwrap();
        give(&closed, if mode == As::Root { 0 } else { uid() });
        std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let inner = closed.join("inner");
        std::fs::create_dir(&inner).unwrap();
        let mut r = request(&layer, mode);
        r.mounts = vec![
            mount("/no/such/thing", "/x", &["nofail"]),
            mount("/no/such/either", "/y", &["nofail", "silent"]),
            mount("/etc", "/bin/sh", &["nofail"]),
            mount("umount", "/bin", &["nofail", "silent"]),
            mount(inner.to_str().unwrap(), "/inner", &["nofail"]),
        ];
        let outcome = launch(&Order::new(r, "ls -d /x /y /inner 2>/dev/null; echo ran"), mode);
        // Root's rights are not tried where the user's do not suffice.
        let sees = if mode == As::Root { "ran\n" } else { "/inner\nran\n" };
        assert_eq!(outcome.out, sees, "{outcome:?}");
        for (text, said) in
            [("/no/such/thing", true), ("/bin/sh", true), ("either", false), ("unmount", false)]
        {
            assert_eq!(outcome.err.contains(text), said, "{text}: {outcome:?}");
        }
        assert_eq!(outcome.err.contains("Permission denied"), mode == As::Root, "{outcome:?}");
    });
}

fn mounts_over_each_other() {
    each(|mode| {
        let dir = Dir::new();
        let data = dir.at("data");
        std::fs::create_dir_all(data.join("sub")).unwrap();
        std::fs::write(data.join("file"), "content\n").unwrap();
        give(&data, uid());
        let text = data.to_str().unwrap();
        let mut r = request(&busybox(&dir, mode), mode);
        r.mounts = vec![
            mount(text, "/a/b", &["ro", "noexec", "bind", "rslave"]),
            mount("tmpfs", "/a/b/sub", &["size=64k", "mode=1777"]),
            mount(&format!("{text}/file"), "/etc/deep/file", &["ro", "x-create=file"]),
            mount("umount", "/sys", &[]),
        ];
        let out = script(
            r,
            mode,
            "cat /etc/deep/file; echo x 2>/dev/null >> /etc/deep/file || echo ro; stat -c %a /a/b/sub; \
            head -c 100000 /dev/zero > /a/b/sub/f 2>/dev/null || echo full; ls /sys | wc -l; \
            awk '$5 == \"/a/b\" {print $6}' /proc/self/mountinfo | tr , '\n' | grep -c -E '^(ro|noexec|nosuid|nodev)$'",
        );
        assert_eq!(out, "content\nro\n1777\nfull\n0\n4\n", "{mode:?}");
        assert!(std::fs::read_dir(data.join("sub")).unwrap().next().is_none());
    });
}

fn working_directory() {
    each(|mode| {
        let dir = Dir::new();
        let layer = busybox(&dir, mode);
        let mut r = request(&layer, mode);
        r.image.workdir = Some("/made/by/image".into());
        assert_eq!(script(r.clone(), mode, "pwd"), "/made/by/image\n");
        r.workdir = Some(Workdir { path: "/etc".into(), origin: "--container-workdir".into() });
        assert_eq!(script(r.clone(), mode, "pwd"), "/etc\n");
        r.workdir = Some(Workdir { path: "/scratch/me".into(), origin: "--chdir".into() });
        let outcome = launch(&Order::new(r, "pwd"), mode);
        assert!(outcome.code == 125 && outcome.out.is_empty());
        for part in ["/scratch/me", "--chdir", "--container-mounts=/scratch/me"] {
            assert!(outcome.err.contains(part), "{outcome:?}");
        }
    });
}

fn read_only_root() {
    each(|mode| {
        let dir = Dir::new();
        let mut r = request(&busybox(&dir, mode), mode);
        r.writable = Some(false);
        let out = script(
            r,
            mode,
            "touch /x 2>/dev/null || echo ro; touch /etc/x 2>/dev/null || echo ro; \
            touch /tmp/x && echo tmp; touch ~/x && echo home; id -un",
        );
        assert_eq!(out, "ro\nro\ntmp\nhome\nann\n");
    });
}

fn root_directory_in_place() {
    each(|mode| {
        let dir = Dir::new();
        let root = busybox(&dir, As::User);
        let mut r = request(&root, mode);
        r.root = Rootfs::Dir(ByteStr::from(root.as_path()));
        let before = fingerprint(&root);
        assert_eq!(script(r.clone(), mode, "echo lost > /lost; cat /lost"), "lost\n");
        assert_eq!(fingerprint(&root), before, "an ephemeral layer keeps the directory as it was");
        r.writable = Some(true);
        script(r, mode, "echo kept > /kept");
        assert_eq!(std::fs::read_to_string(root.join("kept")).unwrap(), "kept\n");
        // Judged by its path, and by then reached by another one.
        let link = dir.at("link");
        std::os::unix::fs::symlink(&root, &link).unwrap();
        for (place, without_links, runs) in [(&root, true, true), (&link, false, true), (&link, true, false)]
        {
            for writable in [None, Some(true)] {
                let mut r = request(&root, mode);
                r.root = Rootfs::Dir(ByteStr::from(place.as_path()));
                (r.root_without_links, r.writable) = (without_links, writable);
                let made = launch(&Order::new(r, "true"), mode);
                let refused = made.err.contains("without links");
                assert_eq!(
                    (refused, made.code == 0),
                    (!runs, runs),
                    "{} {without_links} {writable:?}: {}",
                    place.display(),
                    made.err
                );
            }
        }
        let mut r = request(&root, mode);
        r.root = Rootfs::Dir("/".into());
        assert!(launch(&Order::new(r, "true"), mode).err.contains("use host:"));
    });
}

fn writable_layer_on_disk() {
    each(|mode| {
        let dir = Dir::new();
        let place = dir.at("writable");
        std::fs::create_dir(&place).unwrap();
        give(&place, uid());
        let mut r = request(&busybox(&dir, mode), mode);
        r.writable_layer = WritableLayer::Dir(ByteStr::from(place.as_path()));
        script(
            r.clone(),
            mode,
            "mkdir /made && echo here > /made/file; rm /etc/passwd 2>/dev/null; rm /bin/vi",
        );
        assert_eq!(std::fs::read_to_string(place.join("upper/made/file")).unwrap(), "here\n");
        // The same directory serves a second start: nothing is lost, nothing in the way.
        assert_eq!(script(r, mode, "cat /made/file; test -e /bin/vi || echo gone"), "here\ngone\n");
    });
}

fn writable_layer_with_a_limit() {
    each(|mode| {
        let dir = Dir::new();
        let mut r = request(&busybox(&dir, mode), mode);
        r.writable_size = Some(4 << 20);
        let fill =
            "echo small > /small && dd if=/dev/zero of=/large bs=1M count=9; rc=$?; cat /small; exit $rc";
        let full = |r: &berth_runtime::ContainerRequest| {
            let outcome = launch(&Order::new(r.clone(), fill), mode);
            assert_eq!((outcome.out.as_str(), outcome.code), ("small\n", 1), "{mode:?}: {outcome:?}");
            for text in ["No space left on device", "writable layer is full: ", "--container-writable-layer"]
            {
                assert!(outcome.err.contains(text), "{mode:?}: {text}: {outcome:?}");
            }
        };
        full(&r);
        assert!(!launch(&Order::new(r.clone(), "exit 3"), mode).err.contains("full"));
        let file = dir.at("layer.img");
        r.writable_layer = WritableLayer::Image(ByteStr::from(file.as_path()));
        if mode == As::User {
            let refused = launch(&Order::new(r.clone(), "true"), mode);
            assert!(refused.code == 125 && refused.err.contains("write tmpfs:SIZE"), "{refused:?}");
            r.writable_layer = WritableLayer::Dir(ByteStr::from(dir.path()));
            let refused = launch(&Order::new(r, "true"), mode);
            assert!(refused.code == 125 && refused.err.contains("write tmpfs:SIZE"), "{refused:?}");
            return;
        }
        r.writable_size = Some(8 << 20);
        full(&r);
        // The file went when it was mounted; what is in it cannot be reached by its name.
        assert!(!file.exists());
        r.writable = Some(false);
        assert!(launch(&Order::new(r.clone(), "true"), mode).err.contains("nothing to write to"));
        // A file that is there already is nobody's layer.
        std::fs::write(&file, "mine").unwrap();
        r.writable = None;
        let refused = launch(&Order::new(r, "true"), mode);
        assert!(refused.code == 125 && refused.err.contains("exists"), "{refused:?}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    });
}

fn two_layers(dir: &Dir, mode: As) -> berth_runtime::ContainerRequest {
    let base = busybox(dir, mode);
    std::fs::create_dir_all(base.join("opt/tree/old")).unwrap();
    std::fs::write(base.join("opt/gone"), "x").unwrap();
    let top = dir.at("top");
    std::fs::create_dir_all(top.join("opt")).unwrap();
    std::fs::write(top.join("opt/new"), "new\n").unwrap();
    std::fs::write(top.join("opt/gone"), "").unwrap();
    xattr(&top.join("opt/gone"), "user.overlay.whiteout");
    // A directory that holds whiteouts of the extended-attribute kind must say so.
    let status = std::process::Command::new("setfattr")
        .args(["-n", "user.overlay.opaque", "-v", "x"])
        .arg(top.join("opt"))
        .status();
    assert!(status.is_ok_and(|s| s.success()), "the tests need attr: apt-get install attr");
    std::fs::create_dir_all(top.join("opt/tree")).unwrap();
    let status = std::process::Command::new("setfattr")
        .args(["-n", "user.overlay.opaque", "-v", "y"])
        .arg(top.join("opt/tree"))
        .status();
    assert!(status.unwrap().success());
    let owner = if mode == As::Root { crate::helper::STORE } else { uid() };
    give(&base, owner);
    give(&top, owner);
    let mut r = request(&base, mode);
    if let Rootfs::Overlay { layers, .. } = &mut r.root {
        layers.insert(0, ByteStr::from(top.as_path()));
    }
    r
}

fn xattr(path: &std::path::Path, name: &str) {
    let status = std::process::Command::new("setfattr").args(["-n", name, "-v", "y"]).arg(path).status();
    assert!(status.is_ok_and(|s| s.success()), "the tests need attr: apt-get install attr");
}

const LAYERS: &str = "cat /opt/new; test -e /opt/gone || echo gone; ls /opt/tree | wc -l; mkdir /opt/tree/old && rmdir /opt/tree/old && echo ok";

fn layers_and_whiteouts() {
    each(|mode| {
        let dir = Dir::new();
        assert_eq!(script(two_layers(&dir, mode), mode, LAYERS), "new\ngone\n0\nok\n", "{mode:?}");
    });
}

fn layers_by_mount2() {
    each(|mode| {
        let dir = Dir::new();
        let mut order = Order::new(two_layers(&dir, mode), LAYERS);
        order.kernel = Some((6, 1));
        let outcome = launch(&order, mode);
        assert_eq!(outcome.out, "new\ngone\n0\nok\n", "{mode:?}: {outcome:?}");
    });
}

/// The layers of a request as EROFS images of mkfs.erofs's making, owned as the store's. `None` where this kernel mounts no
/// image from a file, or we may not.
fn as_images(
    dir: &Dir,
    mut request: berth_runtime::ContainerRequest,
) -> Option<berth_runtime::ContainerRequest> {
    use std::os::unix::fs::PermissionsExt;
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut version = kernel.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    if !crate::helper::is_root() || (version.next(), version.next()) < (Some(6), Some(12)) {
        return None;
    }
    let Rootfs::Overlay { layers, .. } = &mut request.root else { return None };
    for (number, layer) in layers.iter_mut().enumerate() {
        let image = dir.at(&format!("{number}.erofs"));
        let made = std::process::Command::new("mkfs.erofs").arg(&image).arg(layer.as_path()).output();
        let made =
            made.unwrap_or_else(|e| panic!("the tests need erofs-utils: apt-get install erofs-utils: {e}"));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        std::fs::set_permissions(&image, PermissionsExt::from_mode(0o600)).unwrap();
        give(&image, crate::helper::STORE);
        *layer = ByteStr::from(image.as_path());
    }
    Some(request)
}

fn layers_as_images() {
    let dir = Dir::new();
    let Some(r) = as_images(&dir, two_layers(&dir, As::Root)) else { return };
    let whose = "ls -ln /opt | grep new | tr -s ' ' | cut -d' ' -f3,4; ls /proc/self/fd | tr '\\n' ' '";
    let expected = format!("new\ngone\n0\nok\n{uid} {uid}\n0 1 2 3 ", uid = uid());
    for (images, parked, kernel) in
        [(false, false, None), (true, false, None), (true, true, None), (true, false, Some((6, 1)))]
    {
        let mut order = Order::new(r.clone(), &format!("{LAYERS}; {whose}"));
        (order.images, order.parked, order.kernel) = (images, parked, kernel);
        let outcome = launch(&order, As::Root);
        assert_eq!(outcome.out, expected, "mounted beforehand: {images}, parked: {parked}: {outcome:?}");
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("erofs"), "{mounts}");
}

fn images_that_others_can_write() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Dir::new();
    let Some(r) = as_images(&dir, request(&busybox(&dir, As::Root), As::Root)) else { return };
    let image = dir.at("0.erofs");
    assert_eq!(script(r.clone(), As::Root, "echo fine"), "fine\n");
    let refused = || {
        let outcome = launch(&Order::new(r.clone(), "echo ran"), As::Root);
        assert!(outcome.code == 125 && outcome.err.contains("store's owner"), "{outcome:?}");
    };
    std::fs::set_permissions(&image, PermissionsExt::from_mode(0o620)).unwrap();
    refused();
    std::fs::set_permissions(&image, PermissionsExt::from_mode(0o600)).unwrap();
    give(&image, crate::helper::USER);
    refused();
    give(&image, crate::helper::STORE);
    // A link leads to a file that is as it must be.
    let real = dir.at("real");
    std::fs::rename(&image, &real).unwrap();
    std::os::unix::fs::symlink(&real, &image).unwrap();
    let outcome = launch(&Order::new(r.clone(), "echo ran"), As::Root);
    assert_eq!((outcome.code, outcome.out.as_str()), (125, ""), "{outcome:?}");
    // What is no image is the kernel's to refuse.
    std::fs::remove_file(&image).unwrap();
    std::fs::write(&image, vec![7; 1 << 20]).unwrap();
    std::fs::set_permissions(&image, PermissionsExt::from_mode(0o600)).unwrap();
    give(&image, crate::helper::STORE);
    let outcome = launch(&Order::new(r, "echo ran"), As::Root);
    assert!(outcome.code == 125 && outcome.err.contains("layer_form"), "{outcome:?}");
}

fn mapped_root() {
    each(|mode| {
        let dir = Dir::new();
        let mut r = request(&busybox(&dir, mode), mode);
        r.remap_root = true;
        let out = script(
            r,
            mode,
            "id -u; id -un; echo $HOME; touch /f && chown 7:7 /f && chgrp 9 /f && echo chown; \
            mknod /null c 1 3 && echo mknod; echo x:x:5:5::/:/bin/sh > /etc/passwd+ && mv /etc/passwd+ /etc/passwd && echo renamed",
        );
        assert_eq!(out, "0\nroot\n/root\nchown\nmknod\nrenamed\n", "{mode:?}");
        // Package managers change ids in ways that only a real program shows.
        let mut r = request(&node_usr(&dir, mode), mode);
        r.remap_root = true;
        r.mounts = vec![mount("/usr", "/usr", &["ro"])];
        let out = script(
            r,
            mode,
            "perl -e '$) = \"1 1\"; $> = 1; print \"$!\\n\"'; setpriv --reuid 3 --clear-groups true && echo setpriv",
        );
        assert!(out.ends_with("setpriv\n"), "{mode:?}: {out}");
    });
}

fn limits_travel() {
    each(|mode| {
        let dir = Dir::new();
        let layer = busybox(&dir, mode);
        let mut r = request(&layer, mode);
        r.limits.soft.insert(Resource::Nofile, LimitValue::At(123));
        r.limits.soft.insert(Resource::Core, LimitValue::At(0));
        assert_eq!(script(r, mode, "ulimit -n; ulimit -c"), "123\n0\n");
        let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        let Some(hard) = hard else { return };
        // Root may raise limits on most machines: there the request is simply met.
        let more = hard + 7;
        let mut limits = Limits::default();
        limits.soft.insert(Resource::Nofile, LimitValue::At(more));
        let mut r = request(&layer, mode);
        r.limits = limits.clone();
        let clamped = launch(&Order::new(r.clone(), "ulimit -n"), mode);
        let got: u64 = clamped.out.trim().parse().unwrap();
        assert!(got == more || (got == hard && clamped.err.contains("limit nofile")), "{clamped:?}");
        r.limits.required.push(Resource::Nofile);
        let refused = launch(&Order::new(r, "ulimit -n"), mode);
        let both = refused.err.contains(&more.to_string()) && refused.err.contains(&hard.to_string());
        assert!(got == more || (refused.code == 125 && both), "{refused:?}");
    });
}

fn shared_memory_and_host_name() {
    each(|mode| {
        let dir = Dir::new();
        let mut r = request(&busybox(&dir, mode), mode);
        r.shm_size = Some(2 << 20);
        r.hostname = Some("inside".into());
        let out = script(
            r,
            mode,
            "df /dev/shm | tail -1 | awk '{print $2}'; hostname; cat /etc/hostname; \
            dd if=/dev/zero of=/dev/shm/f bs=1M count=1 2>/dev/null && echo written; test -d /dev/mqueue && echo mq",
        );
        assert_eq!(out, "2048\ninside\ninside\nwritten\nmq\n");
    });
}

fn entrypoint() {
    each(|mode| {
        let dir = Dir::new();
        let mut r = request(&busybox(&dir, mode), mode);
        r.image.entrypoint = vec!["/bin/echo".into(), "entry".into()];
        r.image.cmd = vec!["cmd".into()];
        let run = |r: &berth_runtime::ContainerRequest, argv: &[&str]| {
            launch(&Order::new(r.clone(), "").argv(argv), mode).out
        };
        assert_eq!(run(&r, &[]), "entry cmd\n");
        assert_eq!(run(&r, &["echo", "mine"]), "mine\n");
        r.entrypoint = true;
        assert_eq!(run(&r, &["mine"]), "entry mine\n");
    });
}

fn mount_home() {
    each(|mode| {
        let dir = Dir::new();
        let home = dir.at("home");
        std::fs::create_dir(&home).unwrap();
        std::fs::write(home.join(".profile"), "mine\n").unwrap();
        give(&home, uid());
        let mut r = request(&busybox(&dir, mode), mode);
        r.identity.home = ByteStr::from(home.as_path());
        assert_eq!(script(r.clone(), mode, "cat ~/.profile 2>/dev/null; touch ~/x && echo own"), "own\n");
        r.mount_home = true;
        assert_eq!(script(r, mode, "cat ~/.profile"), "mine\n");
    });
}
