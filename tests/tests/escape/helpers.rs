//! No part of ours that has more rights than the user runs or loads anything of the image's or of the user's.

use berth_tests::{Cmd, Sandbox, Who, each_user, images, layout, machine};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;

/// What a careless engine runs in a container, or with a container's files, while it makes one.
const TEMPTING: &[&str] = &[
    "sbin/ldconfig",
    "usr/sbin/ldconfig",
    "sbin/ldconfig.real",
    "lib64/ld-linux-x86-64.so.2",
    "bin/sh",
    "bin/bash",
    "bin/mount",
    "usr/bin/mount",
    "bin/umount",
    "sbin/init",
    "usr/bin/env",
    "bin/login",
    "bin/su",
    "bin/mkdir",
    "bin/ls",
    "usr/bin/newuidmap",
    "usr/bin/newgidmap",
    "sbin/mkfs.ext4",
    "usr/sbin/mkfs.ext4",
    "usr/bin/nvidia-container-cli",
    "usr/bin/nvidia-smi",
    "usr/bin/getent",
    "usr/sbin/useradd",
    "usr/bin/id",
    "etc/oci/hooks.d/hook",
    "usr/share/containers/oci/hooks.d/hook",
    ".singularity.d/actions/exec",
    ".singularity.d/env/90-environment.sh",
    "etc/profile.d/x.sh",
    "etc/rc",
];

each_user! {
    fn nothing_of_an_image_runs_before_the_command(who) {
        let config = "[[node]]\nname = \"ALL\"\n[[node.gres]]\nname = \"gpu\"\nfiles = [\"/dev/fuse\"]\n";
        let sandbox = Sandbox::with_config(who.clone(), config);
        let mark = b"#!/bin/busybox sh\necho ran: $0 >> /marks\n";
        let mut layer = layout::Layer::default();
        for directory in ["etc/oci", "etc/oci/hooks.d", "usr", "usr/bin", "usr/sbin", "sbin", "lib64", ".singularity.d"] {
            layer = layer.directory(directory);
        }
        for path in TEMPTING {
            layer = layer.file(path, 0o755, mark);
        }
        layer = layer.file("etc/ld.so.preload", 0o644, b"/evil.so\n").file("marks", 0o666, b"");
        let image = sandbox.work().join("tempting");
        layout::write(&image, vec![layout::busybox(), layer], json!({"Env": ["LD_PRELOAD=/evil.so", "BASH_ENV=/etc/rc", "ENV=/etc/rc"]}));
        let look = ["/bin/busybox", "cat", "/marks"];
        let mut cases = vec![
            vec![], vec!["--container-remap-root"], vec!["--container-readonly"], vec!["--container-mount-home"],
            vec!["--gres=gpu:1"], vec!["--container-writable-layer=disk"],
        ];
        if who.is_root() {
            cases.push(vec!["--container-writable-layer=disk:8M"]);
        }
        for options in &cases {
            let output = sandbox.srun_in(&image, options.iter().chain(&look)).ok();
            assert_eq!(output.text(), "", "{options:?}");
        }
        let direct = sandbox.cmd("berth").args(["run"]).arg(&image).args(look).ok();
        assert_eq!(direct.text(), "");
        // They do leave their mark when somebody runs them.
        let words = ["/bin/busybox", "sh", "-c", "/sbin/ldconfig; /bin/busybox cat /marks"];
        assert_eq!(sandbox.srun_in(&image, words).ok().text(), "ran: /sbin/ldconfig");
    }
}

/// The user's own programs, library and variables, in the environment that travels with a job: whoever loads or runs
/// them leaves a file named by its uid.
#[test]
fn nothing_of_the_users_environment_reaches_a_part_of_roots_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let user = Who::user();
    let evil = tempfile::Builder::new().prefix("bt-evil-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(evil.path(), PermissionsExt::from_mode(0o1777)).unwrap();
    let dir = evil.path().display();
    let source = format!(
        "#include <stdio.h>\n#include <unistd.h>\n__attribute__((constructor)) static void mark(void) {{ char n[200]; \
         snprintf(n, sizeof n, \"{dir}/by-%d\", (int)geteuid()); FILE *f = fopen(n, \"a\"); if (f) fclose(f); }}\n"
    );
    std::fs::write(evil.path().join("evil.c"), source).unwrap();
    let library = evil.path().join("evil.so");
    Cmd::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(evil.path().join("evil.c")).ok();
    let bin = evil.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    for program in
        ["mkfs.ext4", "mount", "umount", "newuidmap", "newgidmap", "getent", "id", "losetup", "nvidia-smi"]
    {
        let path = bin.join(program);
        std::fs::write(&path, format!("#!/bin/sh\n: > {dir}/by-$(/usr/bin/id -u)\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    machine::give(&bin, &user);
    let image = format!("--container-image={}", images::busybox().display());
    let path = format!("{}:{}:/usr/bin:/bin:/usr/sbin:/sbin", bin.display(), machine::programs().display());
    let variables = [
        format!("LD_PRELOAD={}", library.display()),
        format!("LD_AUDIT={}", library.display()),
        format!("LD_LIBRARY_PATH={dir}"),
        format!("BASH_ENV={dir}/evil.c"),
        format!("PATH={path}"),
    ];
    let srun = sandbox.state().parent().unwrap().join("bin/srun");
    for options in [
        &["-n1"][..],
        &[&image],
        &[&image, "--container-writable-layer=disk:8M"],
        &[&image, "--container-remap-root"],
    ] {
        // By env, so that the program that changes to the user is not the one that loads it.
        let line = sandbox.cmd_as(&user, "env").dir("/").args(&variables).arg(&srun).args(options);
        line.arg("/bin/true").ok();
    }
    let left = |uid: u32| evil.path().join(format!("by-{uid}")).exists();
    assert!(left(user.uid), "the attack is none: not even the user's own programs load it");
    assert!(!left(0), "a process of root loaded or ran what the user named");
}
