//! Attacks, run for real: each must change nothing outside the container.

use crate::Test;
use crate::helper::{
    As, Dir, Order, STORE, busybox, each, fifo, fingerprint, give, launch, node_usr, request, script, uid,
};
use crate::options::mount;
use berth_runtime::Rootfs;
use std::os::unix::fs::symlink;

pub const TESTS: &[Test] = &[
    ("escape::the_store_cannot_be_written", the_store_cannot_be_written),
    ("escape::the_nodes_root_is_gone", the_nodes_root_is_gone),
    ("escape::no_descriptor_leaks", no_descriptor_leaks),
    ("escape::init_cannot_be_traced_or_overwritten", init_cannot_be_traced_or_overwritten),
    ("escape::mounts_are_locked", mounts_are_locked),
    ("escape::no_capability_is_left", no_capability_is_left),
    ("escape::links_in_the_image_lead_nowhere", links_in_the_image_lead_nowhere),
    ("escape::strange_files_in_etc", strange_files_in_etc),
    ("escape::devices_that_were_not_allocated", devices_that_were_not_allocated),
    ("escape::denied_system_calls", denied_system_calls),
    ("escape::the_users_rights_open_the_sources", the_users_rights_open_the_sources),
    ("escape::roots_container_does_not_command_the_node", roots_container_does_not_command_the_node),
];

fn the_store_cannot_be_written() {
    each(|mode| {
        let dir = Dir::new();
        let layer = busybox(&dir, mode);
        let before = fingerprint(&layer);
        for remap in [false, true] {
            let mut r = request(&layer, mode);
            r.remap_root = remap;
            // By path, through the overlay; by clone, in nested namespaces with every mount flag lifted; and by
            // whatever descriptor a process of the container can reach.
            let attack = "
                echo evil > /bin/busybox 2>/dev/null; chmod 4777 /bin/sh; rm -f /etc/passwd; echo evil > /bin/evil
                unshare -Urm sh -c '
                    mount -o remount,rw / 2>/dev/null; mkdir -p /m; mount --bind / /m 2>/dev/null
                    mount -o remount,bind,rw /m 2>/dev/null; echo evil > /m/bin/evil2 2>/dev/null
                    umount -l /m 2>/dev/null; umount -l / 2>/dev/null; true' 2>/dev/null
                for p in /proc/[0-9]*; do for d in $p/fd/* $p/root $p/cwd; do
                    for f in bin/busybox bin/evil3; do echo evil > $d/$f; done; done; done 2>/dev/null
                cp /bin/true /tmp/x 2>/dev/null; exit 0";
            let outcome = launch(&Order::new(r, attack), mode);
            assert_eq!(outcome.code, 0, "{mode:?} {outcome:?}");
            assert_eq!(fingerprint(&layer), before, "{mode:?}: the store was changed");
        }
    });
}

fn the_nodes_root_is_gone() {
    each(|mode| {
        let dir = Dir::new();
        let layer = busybox(&dir, mode);
        for remap in [false, true] {
            let mut r = request(&layer, mode);
            r.remap_root = remap;
            let out = script(
                r,
                mode,
                "ls -di / /.. /../../.. | awk '{print $1}' | sort -u | wc -l; \
                grep -c ' /proc/[a-z]' /proc/self/mountinfo; awk '$5 == \"/\" {print $9}' /proc/self/mountinfo | sort -u; \
                mkdir -p /j && chroot /j /bin/true 2>/dev/null; cd /..; ls -di . | awk '{print $1}' > /a; ls -di / | awk '{print $1}' > /b; cmp /a /b && echo same",
            );
            let lines: Vec<&str> = out.lines().collect();
            assert_eq!(lines, ["1", "0", "berth", "same"], "{mode:?}");
        }
    });
}

fn no_descriptor_leaks() {
    each(|mode| {
        let dir = Dir::new();
        for host in [false, true] {
            let layer = Dir::new();
            let mut r = request(&busybox(&layer, mode), mode);
            if host {
                r.root = Rootfs::Host;
            }
            let mut order = Order::new(r, "").argv(&["/bin/ls", "/proc/self/fd"]);
            let secret = dir.at("secret");
            std::fs::write(&secret, "s").unwrap();
            order.leak = Some(secret);
            let outcome = launch(&order, mode);
            // 3 is the directory that ls reads.
            let numbers: Vec<&str> = outcome.out.split_whitespace().collect();
            assert_eq!(numbers, ["0", "1", "2", "3"], "{mode:?} {outcome:?}");
        }
    });
}

fn init_cannot_be_traced_or_overwritten() {
    each(|mode| {
        let dir = Dir::new();
        let layer = busybox(&dir, mode);
        for remap in [false, true] {
            let mut r = request(&layer, mode);
            r.remap_root = remap;
            let out = script(
                r,
                mode,
                "readlink /proc/1/exe 2>/dev/null || echo hidden; ls /proc/1/fd 2>/dev/null || echo hidden; \
                (echo evil > /proc/1/exe) 2>/dev/null || echo kept; cat /proc/1/environ 2>/dev/null || echo hidden; \
                (: < /proc/1/mem) 2>/dev/null || echo hidden; \
                kill -9 1; kill -STOP 1; echo alive",
            );
            assert_eq!(out, "hidden\nhidden\nkept\nhidden\nhidden\nalive\n", "{mode:?} {remap}");
        }
    });
}

fn mounts_are_locked() {
    if !crate::helper::is_root() {
        return; // In user mode the mounts are the user's own.
    }
    let dir = Dir::new();
    let data = dir.at("data");
    std::fs::create_dir(&data).unwrap();
    give(&data, uid());
    for remap in [false, true] {
        let layer = Dir::new();
        let mut r = request(&busybox(&layer, As::Root), As::Root);
        r.remap_root = remap;
        r.mounts = vec![mount(data.to_str().unwrap(), "/data", &["ro"])];
        let out = script(r, As::Root, "
            umount -l /data 2>/dev/null; umount -l /sys 2>/dev/null; umount -l /proc 2>/dev/null
            mount -o remount,bind,rw /data 2>/dev/null; mount -o remount,rw /sys 2>/dev/null
            unshare -Urm sh -c 'mount -o remount,bind,rw /data; umount -l /data; umount -l /dev/null' 2>/dev/null
            touch /data/x 2>/dev/null || echo ro; test -d /proc/1 && echo proc; test -d /sys/kernel && echo sys");
        assert_eq!(out, "ro\nproc\nsys\n");
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
    }
}

fn no_capability_is_left() {
    each(|mode| {
        let dir = Dir::new();
        let out = script(
            request(&busybox(&dir, mode), mode),
            mode,
            "for pid in self 1; do grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs|Seccomp):' /proc/$pid/status; done | tr -d '\\t'",
        );
        let zero = "0000000000000000";
        let none =
            format!("CapInh:{zero}\nCapPrm:{zero}\nCapEff:{zero}\nCapAmb:{zero}\nNoNewPrivs:1\nSeccomp:2\n");
        // From a user's program the kernel takes them when it starts; init starts none in its own place.
        assert_eq!(out, format!("{none}{none}"));
        let layer = Dir::new();
        let mut r = request(&busybox(&layer, mode), mode);
        r.remap_root = true;
        let out = script(r, mode, "grep -E '^Cap(Inh|Amb):' /proc/self/status | tr -d '\\t'");
        assert_eq!(out, format!("CapInh:{zero}\nCapAmb:{zero}\n"));
    });
}

fn links_in_the_image_lead_nowhere() {
    each(|mode| {
        let dir = Dir::new();
        let outside = dir.at("outside");
        for name in ["dev", "proc", "etc", "data"] {
            std::fs::create_dir_all(outside.join(name)).unwrap();
        }
        give(&outside, uid());
        let layer = busybox(&dir, mode);
        let to = outside.to_str().unwrap();
        symlink(format!("{to}/dev"), layer.join("dev")).unwrap();
        symlink(format!("../../../../../../{to}/proc"), layer.join("proc")).unwrap();
        symlink(format!("{to}/data"), layer.join("mnt/data")).unwrap();
        symlink(format!("{to}/etc/victim"), layer.join("etc/hosts")).unwrap();
        give(&layer, if mode == As::Root { STORE } else { uid() });
        let before = fingerprint(&outside);
        for target in ["/mnt/data", "/mnt/data/deeper/file", "/mnt/data/../data"] {
            let mut r = request(&layer, mode);
            r.mounts = vec![mount("/tmp", target, &[])];
            let outcome = launch(&Order::new(r, "true"), mode);
            assert!(outcome.code == 125, "{mode:?} {target}: {outcome:?}");
            assert_eq!(fingerprint(&outside), before, "{mode:?} {target}");
        }
        // With the directories there, the links lead to the container's own copies of those names.
        let inner = layer.join(to.trim_start_matches('/'));
        for name in ["dev", "proc", "data"] {
            std::fs::create_dir_all(inner.join(name)).unwrap();
        }
        give(&layer, if mode == As::Root { STORE } else { uid() });
        let mut r = request(&layer, mode);
        r.mounts = vec![mount("tmpfs", "/mnt/data", &[])];
        let out = script(
            r,
            mode,
            &format!(
                "test -c {to}/dev/null && echo dev; test -d {to}/proc/1 && echo proc; \
            echo x > /mnt/data/f; cat {to}/data/f; test -f /etc/hosts && ! test -L /etc/hosts && echo hosts"
            ),
        );
        assert_eq!(out, "dev\nproc\nx\nhosts\n", "{mode:?}");
        assert_eq!(fingerprint(&outside), before);
    });
}

fn strange_files_in_etc() {
    each(|mode| {
        let dir = Dir::new();
        let layer = busybox(&dir, mode);
        let outside = dir.at("outside");
        std::fs::write(&outside, "untouched").unwrap();
        give(&outside, uid());
        std::fs::remove_file(layer.join("etc/passwd")).unwrap();
        fifo(&layer.join("etc/passwd"));
        symlink(&outside, layer.join("etc/group")).unwrap();
        symlink("/proc/self/fd/1", layer.join("etc/resolv.conf")).unwrap();
        std::fs::create_dir(layer.join("etc/hosts")).unwrap();
        symlink(&outside, layer.join("etc/localtime")).unwrap();
        fifo(&layer.join("etc/hostname"));
        give(&layer, if mode == As::Root { STORE } else { uid() });
        for remap in [false, true] {
            let mut r = request(&layer, mode);
            r.remap_root = remap;
            let name = if remap { "root" } else { "ann" };
            let look = "id -un; grep untouched /etc/group; test -f /etc/group && test -d /etc/hosts && echo files; \
                        test -f /etc/hostname && ! test -L /etc/localtime && cat /etc/localtime";
            let order = Order { zone: Some("zone".into()), ..Order::new(r, look) };
            let outcome = launch(&order, mode);
            assert_eq!(outcome.out, format!("{name}\nfiles\nzone"), "{mode:?}: {outcome:?}");
            assert!(outcome.err.contains("left as it is: /etc/hosts"), "{outcome:?}");
        }
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "untouched");
    });
}

fn devices_that_were_not_allocated() {
    each(|mode| {
        let dir = Dir::new();
        let layer = busybox(&dir, mode);
        let list = "cd /dev && find . -type b -o -type c | sort | tr '\\n' ' '";
        let out = script(request(&layer, mode), mode, list);
        assert_eq!(out, "./full ./null ./pts/ptmx ./random ./tty ./urandom ./zero ");
        let out = script(
            request(&layer, mode),
            mode,
            "mknod /tmp/kmsg c 1 11 2>/dev/null; head -c1 /tmp/kmsg 2>/dev/null || echo refused; \
            mknod /dev/mem c 1 1 2>/dev/null; head -c1 /dev/mem 2>/dev/null || echo refused; head -c2 /dev/zero | od -An -tx1",
        );
        assert_eq!(out, "refused\nrefused\n 00 00\n");
        let mut r = request(&layer, mode);
        r.devices = vec!["/dev/kmsg".into()];
        assert_eq!(script(r, mode, "test -c /dev/kmsg && echo here"), "here\n");
        for (device, text) in
            [("/etc/passwd", "below /dev"), ("/dev/fd", "is no device"), ("/dev/nosuch9", "/dev/nosuch9")]
        {
            let mut r = request(&layer, mode);
            r.devices = vec![device.into()];
            let outcome = launch(&Order::new(r, "true"), mode);
            assert!(outcome.code == 125 && outcome.err.contains(text), "{device}: {outcome:?}");
        }
    });
}

fn denied_system_calls() {
    each(|mode| {
        let dir = Dir::new();
        let mut r = request(&node_usr(&dir, mode), mode);
        r.mounts = vec![mount("/usr", "/usr", &["ro"])];
        // x86-64: keyctl 250, bpf 321, open_by_handle_at 304, kexec_load 246; ptrace 101 with PTRACE_TRACEME.
        // aarch64 has other numbers.
        let numbers =
            if cfg!(target_arch = "x86_64") { [250, 321, 304, 104, 117] } else { [219, 280, 265, 104, 117] };
        let [keyctl, bpf, handle, ..] = numbers;
        let text = format!(
            "perl -e 'for ({keyctl},{bpf},{handle}) {{ $! = 0; syscall($_, 0, 0, 0, 0, 0); print $!+0, \" \" }}'; \
             unshare -Urmpf --mount-proc sh -c 'echo $$; test -d /proc/1 && echo nested'"
        );
        let out = script(r, mode, &text);
        assert_eq!(out, "1 1 1 1\nnested\n", "{mode:?}");
    });
}

fn the_users_rights_open_the_sources() {
    if !crate::helper::is_root() {
        return; // There is nobody else's right to borrow.
    }
    let dir = Dir::new();
    let closed = dir.at("closed");
    std::fs::create_dir_all(closed.join("inner")).unwrap();
    std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let inner = closed.join("inner");
    let layer = busybox(&dir, As::Root);
    let mut r = request(&layer, As::Root);
    r.mounts = vec![mount(inner.to_str().unwrap(), "/x", &[])];
    let outcome = launch(&Order::new(r.clone(), "true"), As::Root);
    assert!(outcome.code == 125 && outcome.err.contains("Permission denied"), "{outcome:?}");
    r.mounts.clear();
    r.root = Rootfs::Dir(inner.as_path().into());
    let outcome = launch(&Order::new(r, "true"), As::Root);
    assert!(outcome.code == 125 && outcome.err.contains("Permission denied"), "{outcome:?}");
}

fn roots_container_does_not_command_the_node() {
    if !crate::helper::is_root() {
        return; // Only root has containers of root.
    }
    let dir = Dir::new();
    let mut r = request(&busybox(&dir, As::Root), As::Root);
    (r.identity.uid, r.identity.gid) = (berth_model::Uid(0), berth_model::Gid(0));
    r.identity.user = "root".into();
    let out = script(
        r,
        As::Root,
        "id -u; grep CapEff /proc/self/status | tr -d '\\t'; \
        for f in kernel/core_pattern vm/drop_caches kernel/hostname; do (echo 1 > /proc/sys/$f) 2>/dev/null || echo kept; done; \
        (echo x > /proc/sysrq-trigger) 2>/dev/null || echo kept; test -s /proc/keys || echo masked; \
        (echo 1 > /sys/kernel/mm/ksm/run) 2>/dev/null || echo kept; \
        unshare -Urmpf sh -c 'mount -t proc proc /proc && echo 1 > /proc/sys/vm/drop_caches' 2>/dev/null || echo kept",
    );
    assert_eq!(out, "0\nCapEff:0000000000000000\nkept\nkept\nkept\nkept\nmasked\nkept\nkept\n");
}
