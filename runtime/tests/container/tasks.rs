//! Tasks: identity, environment, several at once, terminals, signals, exits, errors of exec.

use crate::Test;
use crate::helper::{As, Dir, Order, busybox, each, give, is_root, launch, request, script, uid};
use berth_model::ByteStr;
use berth_runtime::SignalTarget;
use std::os::unix::fs::PermissionsExt;

pub const TESTS: &[Test] = &[
    ("tasks::the_user_is_who_they_are", the_user_is_who_they_are),
    ("tasks::environment_by_precedence", environment_by_precedence),
    ("tasks::bytes_survive", bytes_survive),
    ("tasks::several_tasks_in_one_container", several_tasks_in_one_container),
    ("tasks::a_terminal_of_the_container", a_terminal_of_the_container),
    ("tasks::signals_reach_the_group", signals_reach_the_group),
    ("tasks::nothing_outlives_the_container", nothing_outlives_the_container),
    ("tasks::nothing_outlives_the_supervisor", nothing_outlives_the_supervisor),
    ("tasks::why_a_program_does_not_run", why_a_program_does_not_run),
    ("tasks::a_parked_process_forks_init", a_parked_process_forks_init),
    ("tasks::host_runs_on_the_node", host_runs_on_the_node),
    ("tasks::many_tasks_with_long_environments", many_tasks_with_long_environments),
    ("tasks::a_script_by_descriptor", a_script_by_descriptor),
    ("tasks::asked_for_at_once", asked_for_at_once),
    ("tasks::the_doctor_agrees", the_doctor_agrees),
    (
        "tasks::a_devices_group_opens_its_files_and_is_given_none",
        a_devices_group_opens_its_files_and_is_given_none,
    ),
];

fn the_user_is_who_they_are() {
    each(|mode| {
        let dir = Dir::new();
        let mut r = request(&busybox(&dir, mode), mode);
        if mode == As::Root {
            r.identity.groups = vec![berth_model::Gid(777_001), berth_model::Gid(777_002)];
            r.group_names.insert(777_001, "proj".into());
        }
        let out = script(
            r,
            mode,
            "id -u; id -un; id -gn; echo $HOME; echo ~ann; id -G; touch /f; stat -c %u /f; pwd; ps -o pid,comm | grep -c .",
        );
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[0], uid().to_string());
        assert_eq!(&lines[1..5], ["ann", "ann", "/home/ann", "/home/ann"]);
        if mode == As::Root {
            assert!(lines[5].contains("777001") && lines[5].contains("777002"), "{out}");
        }
        assert_eq!(lines[6], uid().to_string());
        assert_eq!(lines[7], "/");
    });
}

/// Of root's clusters alone, and not with `id`, which would give the user's groups numbers and this one none.
fn a_devices_group_opens_its_files_and_is_given_none() {
    if !is_root() {
        return;
    }
    let (own, devices) = (777_001, 777_003);
    let dir = Dir::new();
    let file = dir.at("theirs");
    std::fs::write(&file, "opened\n").unwrap();
    std::os::unix::fs::chown(&file, Some(0), Some(devices)).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    let layer = busybox(&dir, As::Root);
    let tells = |groups: &[u32]| {
        let mut r = request(&layer, As::Root);
        r.identity.groups = vec![berth_model::Gid(own)];
        r.device_groups = groups.to_vec();
        r.extra_mounts = vec![berth_runtime::ExtraMount {
            source: file.as_path().into(),
            target: "/mnt/theirs".into(),
            read_only: true,
        }];
        let give = |gid: u32| format!("chgrp {gid} /f 2>/dev/null && echo given {gid};");
        script(
            r,
            As::Root,
            &format!("cat /mnt/theirs 2>/dev/null; touch /f; {} {} true", give(own), give(devices)),
        )
    };
    assert_eq!(tells(&[devices]), "opened\ngiven 777001\n");
    assert_eq!(tells(&[]), "given 777001\n");
}

fn environment_by_precedence() {
    each(|mode| {
        let dir = Dir::new();
        let mut r = request(&busybox(&dir, mode), mode);
        r.image.env =
            vec!["A=image".into(), "B=image".into(), "SLURM_JOB_ID=image".into(), "PATH=/bin".into()];
        r.env = [
            "A=mine",
            "B=mine",
            "C=mine",
            "SLURM_JOB_ID=7",
            "LANG=xx",
            "PATH=/host",
            "HOME=/h",
            "XDG_RUNTIME_DIR=/run/user/1",
        ]
        .map(Into::into)
        .to_vec();
        r.container_env = vec!["B".into()];
        r.append_path = vec!["/run/berth/bin".into()];
        let out = script(
            r,
            mode,
            "echo $A $B $C $SLURM_JOB_ID ${LANG-none} $PATH $HOME ${XDG_RUNTIME_DIR-none}; test $TASK_PID = $$ && echo pid",
        );
        assert_eq!(out, "image mine mine 7 none /bin:/run/berth/bin /home/ann none\npid\n");
    });
}

fn bytes_survive() {
    each(|mode| {
        let dir = Dir::new();
        let mut r = request(&busybox(&dir, mode), mode);
        r.env = vec![berth_model::ByteStr(b"RAW=\xff\xfe\n x".to_vec())];
        let out = script(r, mode, "printf %s \"$RAW\" | od -An -tx1");
        assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["ff", "fe", "0a", "20", "78"]);
    });
}

fn several_tasks_in_one_container() {
    each(|mode| {
        let dir = Dir::new();
        let r = request(&busybox(&dir, mode), mode);
        let mut order = Order::new(r, "");
        order.tasks = (0..4)
            .map(|n| vec!["sh".to_string(), "-c".into(), format!("echo {n} >> /tmp/seen; exit {n}")])
            .collect();
        let outcome = launch(&order, mode);
        assert_eq!(outcome.code, 3, "{outcome:?}");
        for n in 0..4 {
            assert!(outcome.err.contains(&format!("task {n} {n}:0 ")), "{outcome:?}");
        }
    });
}

fn a_terminal_of_the_container() {
    each(|mode| {
        let dir = Dir::new();
        let r = request(&busybox(&dir, mode), mode);
        let mut order =
            Order::new(r, "tty; stty size; test -t 0 && test -t 2 && echo all; echo x > /dev/tty");
        order.pty = true;
        let outcome = launch(&order, mode);
        assert_eq!(outcome.out.replace('\r', ""), "/dev/pts/0\n33 77\nall\nx\n", "{outcome:?}");
    });
}

fn signals_reach_the_group() {
    each(|mode| {
        let dir = Dir::new();
        let r = request(&busybox(&dir, mode), mode);
        let mut order = Order::new(r, "trap 'echo caught; exit 9' TERM; sleep 30 & wait");
        order.signal = Some((SignalTarget::AllTasks, 15));
        let outcome = launch(&order, mode);
        assert_eq!((outcome.code, outcome.out.trim()), (9, "caught"), "{outcome:?}");
        let dir = Dir::new();
        let mut order = Order::new(request(&busybox(&dir, mode), mode), "sleep 30");
        order.signal = Some((SignalTarget::Task(0), 9));
        assert_eq!(launch(&order, mode).code, 137);
    });
}

/// Processes on the node whose command line holds this text.
fn alive(mark: &str) -> usize {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .filter(|e| {
            std::fs::read(e.path().join("cmdline"))
                .is_ok_and(|c| c.split(|b| *b == 0).any(|a| a == mark.as_bytes()))
        })
        .count()
}

fn nothing_outlives_the_container() {
    each(|mode| {
        let dir = Dir::new();
        let r = request(&busybox(&dir, mode), mode);
        let mark = format!("10{:05}.25", std::process::id() % 100_000);
        let text = format!(
            "setsid sleep {mark} </dev/null >/dev/null 2>&1 & sleep 0.2; ps -o args | grep -q \"[s]leep {mark}\" && echo runs"
        );
        let outcome = launch(&Order::new(r, &text), mode);
        assert_eq!(outcome.out.trim(), "runs", "{outcome:?}");
        assert_eq!(alive(&mark), 0);
    });
}

fn nothing_outlives_the_supervisor() {
    each(|mode| {
        let dir = Dir::new();
        let r = request(&busybox(&dir, mode), mode);
        let mark = format!("20{:05}.25", std::process::id() % 100_000);
        let text =
            format!("trap '' TERM HUP; setsid sleep {mark} >/dev/null 2>&1 & sleep {mark} >/dev/null 2>&1");
        let mut order = Order::new(r, &text);
        order.die = true;
        launch(&order, mode);
        for _ in 0..100 {
            if alive(&mark) == 0 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("{mode:?}: processes outlived their supervisor");
    });
}

fn why_a_program_does_not_run() {
    each(|mode| {
        let dir = Dir::new();
        let layer = busybox(&dir, mode);
        let file = |name: &str, text: &str, bits: u32| {
            let path = layer.join("mnt").join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(bits)).unwrap();
        };
        file("plain", "#!/bin/sh\n", 0o644);
        file("bare", "echo hi\n", 0o755);
        file("dos", "#!/bin/sh\r\necho hi\r\n", 0o755);
        file("lost", "#!/opt/python9 -u\n", 0o755);
        file("blob", "\u{0}\u{1}\u{2}", 0o755);
        give(&layer, if mode == As::Root { crate::helper::STORE } else { uid() });
        let cases = [
            ("nosuch", 127, "command not found: nosuch: no such program in PATH ("),
            ("/no/such", 127, "command not found: /no/such: no such file"),
            ("/mnt", 126, "/mnt: is a directory"),
            ("/mnt/plain", 126, "/mnt/plain: not executable"),
            ("/mnt/bare", 126, "/mnt/bare: no #! line"),
            ("/mnt/dos", 126, "/mnt/dos: its first line ends in a carriage return"),
            ("/mnt/lost", 126, "/mnt/lost: its interpreter /opt/python9 does not exist"),
            ("/mnt/blob", 126, "/mnt/blob: not a program for this machine"),
        ];
        for (command, code, text) in cases {
            let outcome = launch(&Order::new(request(&layer, mode), "").argv(&[command]), mode);
            assert!(outcome.code == code && outcome.err.contains(text), "{command}: {outcome:?}");
        }
        let mut order = Order::new(request(&layer, mode), "");
        order.tasks = vec![vec![]];
        let outcome = launch(&order, mode);
        assert!(outcome.err.contains("no command: the image names none"), "{outcome:?}");
    });
}

fn a_parked_process_forks_init() {
    each(|mode| {
        let dir = Dir::new();
        let mut order = Order::new(request(&busybox(&dir, mode), mode), "echo here; exit 4");
        order.parked = true;
        let outcome = launch(&order, mode);
        assert_eq!((outcome.code, outcome.out.trim()), (4, "here"), "{outcome:?}");
    });
}

fn host_runs_on_the_node() {
    each(|mode| {
        let mut r = request(std::path::Path::new("/none"), mode);
        r.root = berth_runtime::Rootfs::Host;
        let mark = format!("30{:05}.25", std::process::id() % 100_000);
        let text = format!(
            "id -u; grep -E '^(NoNewPrivs|Seccomp|CapEff):' /proc/self/status | tr -d '\\t\\n'; echo; \
             cat /etc/hostname >/dev/null && echo etc; setsid sleep {mark} >/dev/null 2>&1 & sleep 0.2; echo $$"
        );
        let outcome = launch(&Order::new(r.clone(), &text), mode);
        let lines: Vec<&str> = outcome.out.lines().collect();
        assert_eq!(lines[0], uid().to_string(), "{outcome:?}");
        assert_eq!(lines[1], "CapEff:0000000000000000NoNewPrivs:0Seccomp:0");
        assert_eq!(lines[2], "etc");
        if mode == As::Root {
            assert!(lines[3].parse::<u32>().unwrap() < 100, "pids of its own: {outcome:?}");
        }
        assert_eq!(alive(&mark), 0, "{mode:?}: a process outlived its host step");
        r.remap_root = true;
        let outcome = launch(&Order::new(r, "true"), mode);
        assert!(outcome.err.contains("--container-remap-root has no effect without --container-image"));
    });
    assert!(is_root() || uid() != 0);
}

fn the_doctor_agrees() {
    // Containers start here (every other test says so), and the doctor's own trial must find the same.
    each(|mode| {
        let text = crate::helper::examine(mode);
        let findings: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let trial = findings.iter().find(|f| f["name"].as_str().unwrap().starts_with("containers")).unwrap();
        assert_eq!(trial["verdict"], "good", "{mode:?}: {trial}");
        for f in &findings {
            assert_eq!(f["verdict"] == "good", f["advice"].is_null(), "{f}");
        }
    });
}

fn a_script_by_descriptor() {
    each(|mode| {
        let dir = Dir::new();
        let layer = busybox(&dir, mode);
        let run = |text: &str| {
            let mut order =
                Order::new(request(&layer, mode), "").argv(&["/proc/self/fd/9", "one", "two three"]);
            order.script = Some(text.into());
            launch(&order, mode)
        };
        let outcome = run("#!/bin/sh\necho $# \"$2\"; exit 6\n");
        assert_eq!((outcome.code, outcome.out.as_str()), (6, "2 two three\n"), "{outcome:?}");
        for (text, why) in [
            ("#!/opt/lost\n", "the batch script: its interpreter /opt/lost does not exist"),
            ("#!/bin/sh\r\n", "the batch script: its first line ends in a carriage return"),
            ("echo hi\n", "the batch script: no #! line"),
        ] {
            let outcome = run(text);
            assert!(outcome.code == 126 && outcome.err.contains(why), "{text}: {outcome:?}");
        }
    });
}

fn many_tasks_with_long_environments() {
    // More than the sockets' buffers hold in either direction: neither side may wait for the other.
    each(|mode| {
        let dir = Dir::new();
        let mut order = Order::new(request(&busybox(&dir, mode), mode), "");
        order.env = vec![format!("LONG={}", "x".repeat(100_000)).into()];
        order.tasks = (0..400).map(|_| vec!["/bin/true".to_string()]).collect();
        let outcome = launch(&order, mode);
        assert_eq!((outcome.code, outcome.err.matches(" 0:0 ").count()), (0, 400), "{mode:?}");
    });
}

/// Tasks that are asked for before the container stands, and a container that ends with its task although others run in it.
fn asked_for_at_once() {
    each(|mode| {
        let dir = Dir::new();
        let mut order = Order::new(request(&busybox(&dir, mode), mode), "sleep 1000 & echo first; exit 3");
        order.at_once = true;
        for parked in [false, true] {
            order.parked = parked;
            let outcome = launch(&order, mode);
            assert_eq!(
                (outcome.out.as_str(), outcome.code),
                ("first\nended by itself\n", 3),
                "{mode:?}: {outcome:?}"
            );
        }
        // What the container fails by is said all the same, and no task runs.
        order.request.mounts = vec![crate::options::mount("/nonexistent-source", "/mnt", &[])];
        order.env = vec![ByteStr(vec![b'x'; 300_000])];
        let outcome = launch(&order, mode);
        assert!(outcome.code == 125 && outcome.err.contains("/nonexistent-source"), "{mode:?}: {outcome:?}");
        assert_eq!(outcome.out, "");
    });
}
