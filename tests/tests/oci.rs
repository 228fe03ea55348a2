//! `berth oci`: lifecycle, confinement and refusals of containers from a config.json, and attacks on them.

use berth_tests::{Bundle, Cmd, Who, bundle::give_all, each_user, machine, sandbox};
use serde_json::{Value, json};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

each_user! {
    fn a_container_goes_through_its_life(who) {
        let mut b = Bundle::new(who);
        b.script("echo started > /tmp/mark; exec sleep 1000");
        let pid_file = b.path("pid");
        b.oci(&["create", "--pid-file", pid_file.to_str().unwrap(), "c"]).ok();
        assert_eq!(b.status(), "created");
        assert!(!b.path("rootfs/tmp/mark").exists(), "the program ran before start");
        let pid: i32 = b.sandbox.read("pid").parse().unwrap();
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        b.oci(&["create", "c"]).fails().says(&["container c exists already"]);
        b.oci(&["start", "c"]).ok();
        b.sandbox.wait_file("rootfs/tmp/mark", "started", 20);
        assert_eq!(b.status(), "running");
        b.oci(&["start", "c"]).fails().says(&["cannot start container c: it is running"]);
        b.oci(&["delete", "c"]).fails().says(&["cannot delete container c", "running", "--force"]);
        assert_eq!(b.oci(&["exec", "c", "sh", "-c", "echo $$; cat /proc/1/cmdline | tr '\\0' ' '; exit 7"]).run().rc, 7);
        b.oci(&["kill", "c", "NOSUCH"]).fails().says(&["there is no signal"]);
        b.oci(&["kill", "c", "KILL"]).ok();
        sandbox::wait(20, || (b.status() == "stopped").then_some(())).expect("it did not stop");
        b.oci(&["kill", "c", "KILL"]).fails().says(&["cannot kill container c: it is stopped"]);
        b.oci(&["exec", "c", "true"]).fails().says(&["it is stopped"]);
        b.oci(&["delete", "c"]).ok();
        b.oci(&["state", "c"]).fails().says(&["container c does not exist"]);
        b.oci(&["delete", "--force", "c"]).ok();
    }

    fn without_systemd_nothing_is_asked_of_it(who) {
        if std::path::Path::new("/run/systemd/system").exists() {
            // `tests/vm` has what systemd does.
            return;
        }
        let mut b = Bundle::new(who);
        b.script("true").set(|c| c["linux"]["cgroupsPath"] = json!("a.slice:b:c"));
        b.oci(&["--systemd-cgroup", "run", "c"]).fails().says(&[
            "--systemd-cgroup cannot be had: systemd does not run this node",
            "--cgroup-manager cgroupfs",
        ]);
        b.oci(&["state", "c"]).fails().says(&["container c does not exist"]);
    }

    fn namespaces_identity_and_confinement(who) {
        let mut b = Bundle::new(who);
        b.script("id -u; hostname; echo $$; grep -E 'NoNewPrivs|CapEff|CapInh|CapBnd|CapAmb|Seccomp:' /proc/self/status; umask; pwd")
            .set(|c| {
                c["process"]["user"]["umask"] = json!(0o27);
                c["process"]["cwd"] = json!("/tmp/made");
                c["hostname"] = json!("inside");
                c["process"]["capabilities"]["inheritable"] = json!(["CAP_KILL"]);
                c["process"]["capabilities"]["ambient"] = json!(["CAP_KILL", "CAP_SYS_BOOT"]);
                c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chroot"], "action": "SCMP_ACT_ERRNO"}]});
            });
        let said = b.says();
        for line in ["0", "inside", "1", "CapInh:\t0000000000000020", "CapEff:\t0000000020000420", "CapBnd:\t0000000020000420", "CapAmb:\t0000000000000020", "NoNewPrivs:\t1", "Seccomp:\t2", "0027", "/tmp/made"] {
            assert!(said.lines().any(|l| l == line), "{line} is missing in {said}");
        }
    }

    fn masks_read_only_paths_and_devices(who) {
        let mut b = Bundle::new(who);
        std::fs::create_dir(b.path("rootfs/secret")).unwrap();
        std::fs::write(b.path("rootfs/secret/a"), "hidden").unwrap();
        std::fs::write(b.path("rootfs/plain"), "hidden").unwrap();
        std::fs::create_dir(b.path("rootfs/fixed")).unwrap();
        b.script(
            "ls /secret | grep -c a; cat /plain; stat -c %t:%T /dev/null /dev/zero /dev/tty; echo x > /dev/null && echo null; \
             touch /fixed/x 2>/dev/null || echo fixed; (echo 1 > /proc/sys/kernel/sysrq) 2>/dev/null || echo protected; \
             touch /x 2>/dev/null || echo readonly; ls -l /dev/fd | grep -o '/proc.*'",
        )
        .set(|c| {
            c["linux"]["maskedPaths"] = json!(["/secret", "/plain", "/missing/x"]);
            c["linux"]["readonlyPaths"] = json!(["/fixed", "/proc/sys", "/missing"]);
            c["root"]["readonly"] = json!(true);
        });
        assert_eq!(b.says(), "0\n1:3\n1:5\n5:0\nnull\nfixed\nprotected\nreadonly\n/proc/self/fd");
    }

    fn hooks_of_all_kinds_run_in_their_order_with_the_state(who) {
        let mut b = Bundle::new(who);
        let log = b.path("log");
        let hook = |name: &str, fail: bool| {
            let script = format!(
                "s=$(cat); case \"$s\" in *'\"id\":\"c\"'*) echo {name}:$(echo \"$s\" | grep -o '\"status\":\"[a-z]*\"') >> {}; esac; {}",
                log.display(),
                if fail { "exit 3" } else { "true" }
            );
            json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], "timeout": 20}])
        };
        let hooks = json!({
            "prestart": hook("prestart", false), "createRuntime": hook("createRuntime", false),
            "createContainer": hook("createContainer", false), "poststart": hook("poststart", false), "poststop": hook("poststop", false),
            "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/state; echo ran > /tmp/startContainer"], "env": ["PATH=/bin"]}],
        });
        b.script("cat /tmp/startContainer; grep -c '\"status\":\"created\"' /tmp/state").set(|c| c["hooks"] = hooks);
        assert_eq!(b.says(), "ran\n1");
        let lines: Vec<String> = b.sandbox.read("log").lines().map(String::from).collect();
        let running = "poststart:\"status\":\"running\"";
        assert_eq!(
            lines,
            ["prestart:\"status\":\"created\"", "createRuntime:\"status\":\"created\"", "createContainer:\"status\":\"created\"", running, "poststop:\"status\":\"stopped\""]
        );
        // One that fails in the container: `run` fails, and what runs on the node runs all the same.
        std::fs::write(&log, "").unwrap();
        b.set(|c| c["hooks"]["startContainer"] = hook("none", true));
        b.oci(&["run", "c"]).fails().says(&["the startContainer hook /bin/sh failed: exit code 3"]);
        let after: Vec<String> = b.sandbox.read("log").lines().skip(3).map(String::from).collect();
        assert_eq!(after, ["poststart:\"status\":\"stopped\"", "poststop:\"status\":\"stopped\""]);
    }

    fn a_hook_that_fails_or_hangs_leaves_nothing(who) {
        let mut b = Bundle::new(who);
        for (kind, args, word) in [
            ("createRuntime", json!(["sh", "-c", "exit 9"]), "the createRuntime hook /bin/sh failed: exit code 9"),
            ("createContainer", json!(["sh", "-c", "sleep 1000"]), "longer than its timeout of 1 s"),
            ("startContainer", json!(["sh", "-c", "kill -9 $$"]), "killed by signal 9"),
            ("poststart", json!(["sh", "-c", "exit 3"]), "the poststart hook /bin/sh failed: exit code 3"),
        ] {
            b.set(|c| c["hooks"] = json!({kind: [{"path": "/bin/sh", "args": args, "env": ["PATH=/bin:/usr/bin"], "timeout": 1}]}));
            b.run().says(&[word]);
            b.oci(&["state", "c"]).fails().says(&["does not exist"]);
        }
    }

    fn what_is_wrong_is_named(who) {
        let b = Bundle::new(who);
        let changes: [(&str, Value, &str); 10] = [
            ("/process/args", json!(["nothing-here"]), "cannot run nothing-here: executable file not found in $PATH"),
            ("/process/args", json!(["/none"]), "cannot run /none: no such file or directory"),
            ("/process/args", json!(["/etc"]), "cannot run /etc: permission denied"),
            ("/process/cwd", json!("bin"), "process.cwd bin is not absolute"),
            ("/process/scheduler", json!({"policy": "SCHED_FIFO"}), "process.scheduler.priority is 0"),
            ("/process/apparmorProfile", json!("x"), "process.apparmorProfile x is not supported"),
            ("/linux/intelRdt", json!({}), "linux.intelRdt is not supported"),
            ("/ociVersion", json!("3.0.0"), "ociVersion"),
            ("/mounts", json!([{"destination": "/proc", "source": "/none", "options": ["bind"]}]), "cannot open the mount source /none"),
            ("/linux/sysctl", json!({"kernel.core_pattern": "|/bin/sh"}), "linux.sysctl kernel.core_pattern is not supported"),
        ];
        for (pointer, value, word) in changes {
            let mut config = b.config.clone();
            let (above, key) = pointer.rsplit_once('/').unwrap();
            config.pointer_mut(above).unwrap()[key] = value;
            b.sandbox.write("config.json", config.to_string());
            let root = b.path("containers");
            let output = b.sandbox.cmd("berth").arg("oci").arg("--root").arg(root).args(["run", "c"]).fails();
            output.says(&[word]);
        }
        b.oci(&["run", "../c"]).fails().says(&["is no container id"]);
        let log = b.path("log.json");
        b.oci(&["--log", log.to_str().unwrap(), "--log-format", "json", "start", "none"]).fails();
        let line: Value = serde_json::from_str(b.sandbox.read("log.json").trim()).unwrap();
        assert_eq!((line["level"].as_str(), line["msg"].as_str().map(|m| m.contains("none does not exist"))), (Some("error"), Some(true)));
    }

    fn no_link_in_the_root_leads_a_mount_or_a_device_outside(who) {
        let mut b = Bundle::new(who);
        let outside = b.path("outside");
        std::fs::create_dir_all(outside.join("dev")).unwrap();
        machine::give(&outside, b.sandbox.who());
        machine::give(&outside.join("dev"), b.sandbox.who());
        let deep = "../../../../../../..";
        symlink(format!("{deep}{}", outside.display()), b.path("rootfs/out")).unwrap();
        std::fs::remove_dir(b.path("rootfs/dev")).unwrap();
        symlink(format!("{deep}{}/dev", outside.display()), b.path("rootfs/dev")).unwrap();
        std::fs::create_dir(b.path("source")).unwrap();
        b.script("true").set(|c| {
            let mounts = c["mounts"].as_array_mut().unwrap();
            mounts.push(json!({"destination": "/out/made/here", "source": "source", "options": ["bind"]}));
            mounts.push(json!({"destination": "/out/tmpfs", "type": "tmpfs", "source": "tmpfs"}));
        });
        b.run();
        let left: Vec<_> = std::fs::read_dir(&outside).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["dev"], "something was made outside the root");
        assert_eq!(std::fs::read_dir(outside.join("dev")).unwrap().count(), 0, "a device was made outside the root");
        // The kernel's own files are mounted through no link at all.
        std::fs::remove_dir(b.path("rootfs/proc")).unwrap();
        symlink("tmp", b.path("rootfs/proc")).unwrap();
        b.run().says(&["/proc must be mounted on ordinary directory"]);
    }

    fn the_working_directory_is_no_descriptor_of_the_node(who) {
        let mut b = Bundle::new(who);
        let open = std::fs::File::open("/").unwrap();
        b.script("pwd; ls /proc/self/fd").set(|c| c["process"]["cwd"] = json!("/proc/self/fd/9"));
        let line = format!("exec 9</; exec {} oci --root {} run c", machine::programs().join("berth").display(), b.path("containers").display());
        b.oci(&["features"]).ok();
        let output = b.sandbox.cmd("sh").args(["-c", &line]).fails();
        output.says(&["working directory"]);
        drop(open);
        // And none is there for the program.
        b.script("ls /proc/self/fd | grep -v 3; true").set(|c| c["process"]["cwd"] = json!("/"));
        b.oci(&["features"]).ok();
        let output = b.sandbox.cmd("sh").args(["-c", &line]).ok();
        assert_eq!(output.text(), "0\n1\n2");
    }

    fn the_runtimes_own_program_cannot_be_written_from_a_container(who) {
        let mut b = Bundle::new(who);
        let copy = b.path("berth-oci");
        std::fs::copy(machine::programs().join("berth"), &copy).unwrap();
        machine::give(&copy, b.sandbox.who());
        let before = std::fs::metadata(&copy).unwrap();
        // The program is a script whose interpreter is whatever runs it: the runtime.
        std::fs::write(b.path("rootfs/attack"), "#!/proc/self/exe\n").unwrap();
        std::fs::set_permissions(b.path("rootfs/attack"), std::fs::Permissions::from_mode(0o755)).unwrap();
        b.set(|c| c["process"]["args"] = json!(["/attack"]));
        let root = b.path("containers");
        b.oci(&["features"]).ok();
        let _ = b.sandbox.cmd(&copy).arg("--root").arg(&root).args(["run", "c"]).run();
        // And a program of the container that looks for the runtime among the processes that join it.
        b.script(
            "n=0; while [ $n -lt 3000 ]; do n=$((n+1)); for p in /proc/[0-9]*; do \
             case $p in /proc/1|/proc/self|/proc/$$) continue;; esac; \
             head -c 4 $p/exe > /tmp/seen 2>/dev/null && (echo x >> $p/exe) 2>/dev/null && echo WROTE > /tmp/wrote; done; done",
        )
        .set(|c| c["process"]["capabilities"] = json!({}));
        b.sandbox.write("config.json", b.config.to_string());
        b.sandbox.cmd(&copy).arg("--root").arg(&root).args(["run", "--detach", "c"]).ok();
        for _ in 0..10 {
            let _ = b.sandbox.cmd(&copy).arg("--root").arg(&root).args(["exec", "c", "/bin/true"]).run();
            let _ = b.sandbox.cmd(&copy).arg("--root").arg(&root).args(["exec", "c", "/attack"]).run();
        }
        assert!(!b.path("rootfs/tmp/wrote").exists(), "the runtime's program was written to");
        let after = std::fs::metadata(&copy).unwrap();
        assert_eq!((before.len(), before.ino()), (after.len(), after.ino()));
        let same = Cmd::new("cmp").arg(&copy).arg(machine::programs().join("berth")).run();
        assert!(same.rc == 0, "the runtime's program was changed");
    }

    fn exec_is_strict_about_users_and_gives_no_inheritable_capability(who) {
        let mut b = Bundle::new(who);
        b.script("exec sleep 1000");
        b.oci(&["run", "--detach", "c"]).ok();
        for user in ["-1", "4294967295", "4294967296", "root", "0x0", "1:"] {
            b.oci(&["exec", &format!("--user={user}"), "c", "id"]).fails().says(&["--user"]);
        }
        let caps = b.oci(&["exec", "--cap", "CAP_SYS_BOOT", "c", "grep", "-E", "CapInh|CapEff|CapAmb", "/proc/self/status"]).ok().text();
        assert_eq!(caps, "CapInh:\t0000000000000000\nCapEff:\t0000000020400420\nCapAmb:\t0000000000000000");
        b.oci(&["exec", "--cap", "cap_all", "c", "true"]).fails().says(&["there is no capability"]);
        assert_eq!(b.oci(&["exec", "--env", "A=b", "--cwd", "/tmp", "c", "sh", "-c", "echo $A; pwd"]).ok().text(), "b\n/tmp");
        let twice = b.oci(&["exec", "--env", "PATH=/bin:/none", "c", "env"]).ok().text();
        assert_eq!(twice.lines().filter(|l| l.starts_with("PATH=")).collect::<Vec<_>>(), ["PATH=/bin:/none"]);
        b.oci(&["exec", "c", "nothing"]).fails().says(&["cannot run nothing: executable file not found"]);
        // Those of the caller that are open, and none of the runtime's own in place of one that is not.
        let line = format!("exec 3<&- 4</dev/null; exec {} oci --root {} exec --preserve-fds 2 c ls /proc/self/fd", machine::programs().join("berth").display(), b.path("containers").display());
        let open = b.sandbox.cmd("sh").args(["-c", &line]).ok().text();
        assert_eq!(open.lines().collect::<Vec<_>>(), ["0", "1", "2", "3", "4"], "3 is the directory that ls reads");
    }

    fn seccomp_rules_act_as_written(who) {
        let mut b = Bundle::new(who);
        b.script("mkdir /tmp/d; echo made $?; hostname x 2>&1 | grep -o 'Operation not permitted'; stat -c %n /tmp >/dev/null; echo on")
            .set(|c| {
                c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
                    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"],
                    "syscalls": [
                        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
                        {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO"}]});
            });
        let output = b.run();
        output.clone().says(&["No space left on device"]);
        assert_eq!(output.text(), "made 1\nOperation not permitted\non");
        b.script("sleep 0; echo not reached").set(|c| {
            c["linux"]["seccomp"]["syscalls"] = json!([{"names": ["nanosleep", "clock_nanosleep"], "action": "SCMP_ACT_KILL_PROCESS"}]);
        });
        b.script("sleep 1; echo status $?");
        assert_eq!(b.run().text(), "status 159");
    }

    fn a_filter_need_not_allow_what_the_runtime_does(who) {
        let mut b = Bundle::new(who);
        b.script("echo ran").set(|c| {
            c["process"]["noNewPrivileges"] = json!(false);
            c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["getcwd", "chdir", "fchdir", "setgroups", "setresuid", "umask"], "action": "SCMP_ACT_ERRNO"}]});
        });
        assert_eq!(b.says(), "ran");
    }

    fn scheduling_of_the_program_and_of_added_ones(who) {
        let mut b = Bundle::new(who);
        b.script("exec sleep 1000").set(|c| {
            c["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 3});
            c["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
            c["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
            c["linux"]["memoryPolicy"] = json!({"mode": "MPOL_INTERLEAVE", "nodes": "0"});
            c["linux"]["personality"] = json!({"domain": "LINUX32"});
        });
        symlink("busybox", b.path("rootfs/bin/uname")).unwrap();
        b.oci(&["run", "--detach", "c"]).ok();
        let state: Value = serde_json::from_str(&b.oci(&["state", "c"]).ok().text()).unwrap();
        let pid = state["pid"].to_string();
        let seen = Cmd::new("chrt").args(["--pid", &pid]).ok().text();
        assert!(seen.contains("SCHED_BATCH"), "{seen}");
        assert_eq!(Cmd::new("ps").args(["-o", "ni=", "-p", &pid]).ok().text().trim(), "3");
        assert_eq!(Cmd::new("ionice").args(["-p", &pid]).ok().text(), "idle");
        let maps = std::fs::read_to_string(format!("/proc/{pid}/numa_maps"));
        assert!(maps.is_err() || maps.unwrap().contains("interleave:0"), "no memory policy is in force");
        let added = b.oci(&["--debug", "exec", "c", "sh", "-c", "uname -m; grep Cpus_allowed_list /proc/self/status"]).ok();
        added.clone().says(&["initial CPU affinity: 0x1"]);
        let said = added.text();
        assert!(said.ends_with("Cpus_allowed_list:\t0"), "{said}");
        if cfg!(target_arch = "x86_64") {
            assert!(said.starts_with("i686"), "{said}");
        }
    }

    fn the_nodes_root_is_covered_where_it_may_not_be_left(who) {
        let mut b = Bundle::new(who);
        b.script("ls / | grep -c -E '^(home|usr|var)$'; cd /; cd ../../..; ls bin | grep -x busybox");
        assert_eq!(b.oci(&["run", "--no-pivot", "c"]).run().text(), "0\nbusybox");
    }

    fn who_ends_first_when_memory_runs_out(who) {
        let mut b = Bundle::new(who);
        b.script("cat /proc/self/oom_score_adj").set(|c| c["process"]["oomScoreAdj"] = json!(500));
        assert_eq!(b.says(), "500");
        b.script("exec sleep 1000");
        b.oci(&["run", "--detach", "c"]).ok();
        assert_eq!(b.oci(&["exec", "c", "cat", "/proc/self/oom_score_adj"]).ok().text(), "500");
    }

    fn a_terminal_of_its_own(who) {
        let mut b = Bundle::new(who);
        b.script("tty; test -c /dev/console && echo console; ls -l /proc/self/fd/0 | grep -o '/dev/.*'").set(|c| c["process"]["terminal"] = json!(true));
        b.oci(&["create", "c"]).fails().says(&["--console-socket"]);
        let said = b.run().text();
        let lines: Vec<&str> = said.lines().map(str::trim).collect();
        assert_eq!(lines, ["/dev/pts/0", "console", "/dev/pts/0"]);
    }

    fn mounts_with_their_options(who) {
        let mut b = Bundle::new(who);
        std::fs::create_dir_all(b.path("source/below")).unwrap();
        std::fs::write(b.path("source/file"), "content").unwrap();
        std::fs::write(b.path("rootfs/tmp/kept"), "kept").unwrap();
        give_all(&b.path("source"), b.sandbox.who());
        b.script(
            "cat /bound/file; touch /bound/x 2>/dev/null || echo ro; cat /one/file.txt; touch /writable/made && echo rw; \
             grep ' /bound ' /proc/self/mountinfo | grep -o 'ro,nosuid,nodev,noexec'; cat /tmp/kept; stat -c %a /small; \
             dd if=/dev/zero of=/small/x bs=1k count=100 2>&1 | grep -o 'No space left'",
        )
        .set(|c| {
            let mounts = c["mounts"].as_array_mut().unwrap();
            mounts.push(json!({"destination": "/bound", "source": "source", "options": ["rbind", "rro", "nosuid", "nodev", "noexec"]}));
            mounts.push(json!({"destination": "/one/file.txt", "source": "source/file", "options": ["bind", "ro"]}));
            mounts.push(json!({"destination": "/writable", "source": "source", "options": ["bind"]}));
            mounts.push(json!({"destination": "/small", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "mode=711"]}));
            mounts.push(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}));
        });
        assert_eq!(b.says(), "contentro\ncontentrw\nro,nosuid,nodev,noexec\nkept711\nNo space left");
        assert!(b.path("source/made").exists());
    }
}

#[test]
fn control_groups_limit_freeze_and_go_as_root() {
    let mut b = Bundle::new(Who::root());
    b.script("exec sleep 1000").set(|c| {
        c["linux"]["cgroupsPath"] = json!(format!("/bt-oci-{}", std::process::id()));
        c["linux"]["resources"]["memory"] = json!({"limit": 67_108_864});
        c["linux"]["resources"]["pids"] = json!({"limit": 20});
    });
    b.oci(&["run", "--detach", "c"]).ok();
    let stats: Value = serde_json::from_str(&b.oci(&["events", "--stats", "c"]).ok().text()).unwrap();
    assert_eq!(
        (stats["type"].as_str(), stats["data"]["memory"]["usage"]["limit"].as_u64()),
        (Some("stats"), Some(67_108_864))
    );
    assert_eq!(stats["data"]["pids"]["limit"], 20);
    b.oci(&["update", "--memory", "134217728", "--pids-limit", "30", "c"]).ok();
    let stats: Value = serde_json::from_str(&b.oci(&["events", "--stats", "c"]).ok().text()).unwrap();
    assert_eq!(
        (stats["data"]["memory"]["usage"]["limit"].as_u64(), stats["data"]["pids"]["limit"].as_u64()),
        (Some(134_217_728), Some(30))
    );
    for wrong in ["../x", "nothing", "nothing:x"] {
        b.oci(&["exec", "--cgroup", wrong, "c", "true"]).fails().says(&["--cgroup", wrong]);
    }
    let own = format!("bt-oci-{}", std::process::id());
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = std::fs::create_dir(hierarchy.path().join(&own).join("below"));
    }
    let said = b.oci(&["exec", "--cgroup", "pids:below", "c", "cat", "/proc/self/cgroup"]).run().text();
    assert!(
        said.lines().any(|l| l.ends_with(":pids:/below"))
            || !std::path::Path::new("/sys/fs/cgroup/pids").exists(),
        "{said}"
    );
    b.oci(&["pause", "c"]).ok();
    assert_eq!(b.status(), "paused");
    b.oci(&["exec", "c", "true"]).fails().says(&["it is paused"]);
    b.oci(&["resume", "c"]).ok();
    assert_eq!(b.status(), "running");
    let pids: Value = serde_json::from_str(&b.oci(&["ps", "--format", "json", "c"]).ok().text()).unwrap();
    assert_eq!(pids.as_array().unwrap().len(), 1);
    assert!(b.oci(&["ps", "c"]).ok().text().contains("sleep 1000"));
    b.oci(&["update", "--pids-limit", "x", "c"]).fails();
    b.oci(&["pause", "c"]).ok();
    b.oci(&["delete", "--force", "c"]).ok();
    let left = Cmd::new("find")
        .args(["/sys/fs/cgroup", "-maxdepth", "2", "-name", &format!("bt-oci-{}", std::process::id())])
        .ok();
    assert_eq!(left.text(), "");
}

#[test]
fn a_process_added_to_a_paused_container_waits_and_keeps_nobody_out_as_root() {
    let mut b = Bundle::new(Who::root());
    b.script("exec sleep 1000");
    let added = |b: &Bundle| {
        let exec = b.oci(&["exec", "--ignore-paused", "c", "echo", "ran"]).spawn();
        let both = || {
            let pids: Value =
                serde_json::from_str(&b.oci(&["ps", "--format", "json", "c"]).ok().text()).unwrap();
            (pids.as_array().unwrap().len() == 2).then_some(())
        };
        assert!(sandbox::wait(20, both).is_some(), "the added process is in the container's group");
        exec
    };
    b.oci(&["run", "--detach", "c"]).ok();
    b.oci(&["pause", "c"]).ok();
    let exec = added(&b);
    b.oci(&["resume", "c"]).ok();
    let output = exec.finish();
    assert_eq!((output.rc, output.text().as_str()), (0, "ran"), "{output}");
    b.oci(&["pause", "c"]).ok();
    let exec = added(&b);
    b.oci(&["delete", "--force", "c"]).ok();
    let output = exec.finish();
    assert!(output.rc != 0 && output.text().is_empty(), "{output}");
}

#[test]
fn namespaces_are_joined_by_path_and_checked_as_root() {
    let mut b = Bundle::new(Who::root());
    b.script("exec sleep 1000");
    b.oci(&["run", "--detach", "c"]).ok();
    let state: Value = serde_json::from_str(&b.oci(&["state", "c"]).ok().text()).unwrap();
    let pid = state["pid"].as_i64().unwrap();
    let mut joined = Bundle::new(Who::root());
    let types = [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup")];
    joined.script("for n in pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done").set(|c| {
        let all =
            types.iter().map(|(kind, file)| json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}));
        c["linux"]["namespaces"] = all.chain([json!({"type": "mount"})]).collect();
        c.as_object_mut().unwrap().remove("hostname");
    });
    symlink("busybox", joined.path("rootfs/bin/readlink")).unwrap();
    let want: Vec<String> = types
        .iter()
        .map(|(_, file)| std::fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap().display().to_string())
        .collect();
    assert_eq!(joined.says().lines().collect::<Vec<_>>(), want);
    joined.set(|c| c["linux"]["namespaces"][0]["path"] = json!(format!("/proc/{pid}/ns/net")));
    joined.run().says(&["cannot join the namespace", "of another kind"]);
    joined.set(|c| c["linux"]["namespaces"][0]["path"] = json!("/etc/passwd"));
    joined.run().says(&["cannot join the namespace"]);
}

#[test]
fn a_poststart_hook_that_fails_leaves_no_process_as_root() {
    let mut b = Bundle::new(Who::root());
    b.script("sleep 987654 & exec sleep 987654").set(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "pid");
        c["hooks"] = json!({"poststart": [{"path": "/bin/sh", "args": ["sh", "-c", "sleep 0.3; exit 1"]}]});
    });
    b.oci(&["create", "c"]).ok();
    let group = b.config["linux"]["cgroupsPath"].as_str().unwrap().to_string();
    b.oci(&["start", "c"]).fails().says(&["poststart"]);
    let left = || {
        let groups =
            ["pids", "memory", "unified", ""].map(|c| format!("/sys/fs/cgroup/{c}{group}/cgroup.procs"));
        groups.iter().filter_map(|f| std::fs::read_to_string(f).ok()).collect::<String>()
    };
    assert!(berth_tests::sandbox::wait(30, || left().is_empty().then_some(())).is_some(), "left: {}", left());
}

#[test]
fn a_hierarchy_that_something_covers_is_not_used_as_root() {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of = |kind: &str| {
        let line = mounts.lines().find(|line| line.contains(&format!(" - {kind} ")))?;
        line.split(' ').nth(4).map(String::from)
    };
    // On nodes with v2 alone nothing would be left.
    let (Some(_), Some(unified)) = (of("cgroup"), of("cgroup2")) else { return };
    // As tools have it that are made for v1 alone.
    let cover = "mount -t tmpfs none \"$0\" && exec \"$@\"";
    let words = ["unshare", "--mount", "--propagation=private", "sh", "-c", cover, &unified, "berth", "oci"];
    let mut b = Bundle::of(Who::root(), &words.map(Into::into));
    b.script("echo runs");
    assert_eq!(b.says(), "runs");
}

#[test]
fn a_container_shares_the_mount_namespace_where_it_has_none_of_its_own_as_root() {
    let mut b = Bundle::new(Who::root());
    b.script("exec sleep 1000").set(|c| {
        c["linux"]["namespaces"] = json!([{"type": "pid"}]);
        c.as_object_mut().unwrap().remove("hostname");
        c["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "sysfs" && m["type"] != "cgroup");
    });
    let mounted = |b: &Bundle| {
        std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(b.path("rootfs").to_str().unwrap())
    };
    symlink("busybox", b.path("rootfs/bin/readlink")).unwrap();
    b.oci(&["run", "--detach", "c"]).ok();
    assert!(mounted(&b), "the root is not mounted on the node");
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap().display().to_string();
    let said =
        b.oci(&["exec", "c", "sh", "-c", "readlink /proc/self/ns/mnt; ls / | grep -c usr; pwd"]).ok().text();
    assert_eq!(said, format!("{own}\n0\n/"), "a process that is added is not in the container's root");
    b.oci(&["delete", "--force", "c"]).ok();
    assert!(!mounted(&b), "a mount was left on the node");
    // A root that is named by a link is found again, too.
    symlink("rootfs", b.path("link")).unwrap();
    b.set(|c| c["root"]["path"] = json!("link"));
    b.oci(&["run", "--detach", "c"]).ok();
    assert!(mounted(&b));
    b.oci(&["delete", "--force", "c"]).ok();
    assert!(!mounted(&b), "a mount was left on the node behind a link");
    b.set(|c| {
        c["mounts"]
            .as_array_mut()
            .unwrap()
            .push(json!({"destination": "/x", "type": "nosuchfs", "source": "x"}))
    });
    b.run().says(&["nosuchfs"]);
    assert!(!mounted(&b), "a container that could not be made left a mount on the node");
}
