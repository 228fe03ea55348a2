//! Mistakes that a rival made, each shown not to be made here.

use berth_model::options::{Command, SECTIONS, ValueKind};
use berth_tests::{Registry, Sandbox, Who, each_user, images, layout, sandbox::wait};
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::{Duration, Instant};

/// Whoever waits for a registry that says nothing any more has the image's lock; a cancelled job waits for nothing.
#[test]
fn a_cancelled_job_gives_up_its_image_and_others_go_on_as_root() {
    let registry = Registry::open();
    let sandbox = Sandbox::with_config(Who::root(), &registry.without_tls());
    let layout = sandbox.work().join("large");
    let content: Vec<u8> =
        (0..16u32 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let layers = vec![layout::busybox(), layout::Layer::default().file("large", 0o644, &content)];
    layout::write(&layout, layers, json!({}));
    let option = format!("--container-image={}", registry.push(&layout, "large:1", &["--preserve-digests"]));
    let slow = sandbox.sbatch(&["-c1", "--mem=64M", &option], "#!/bin/sh\n:\n");
    // What is fetched is locked; from then on nothing more comes.
    let locks = sandbox.state().join("images/locks");
    let locked = || {
        let mut names = std::fs::read_dir(&locks).into_iter().flatten().flatten();
        names.any(|name| name.file_name().to_string_lossy().starts_with("fetch-"))
    };
    let begun = Instant::now();
    while !locked() {
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing is fetched");
        std::thread::sleep(Duration::from_millis(1));
    }
    registry.freeze();
    // The same image from elsewhere.
    let other = sandbox
        .srun_in(&layout, ["-c1", "--mem=64M", "/bin/busybox", "wc", "-c", "/large"])
        .limit(30)
        .spawn();
    let both = || sandbox.cmd("squeue").args(["-h", "-t", "CF,R"]).ok().text().lines().count() == 2;
    assert!(wait(20, || both().then_some(())).is_some(), "one of the two jobs has no node, or is over");
    sandbox.cmd("scancel").arg(slow.to_string()).ok();
    let other = other.finish();
    assert_eq!((other.rc, other.text()), (0, format!("{} /large", content.len())), "{other}");
    registry.thaw();
}

/// When memory runs out the kernel is to end a pull, and neither jobs in its place nor the agent.
#[test]
fn what_brings_an_image_has_none_of_the_agents_protection_as_root() {
    let registry = Registry::open();
    let option = format!("--container-image={}", registry.push(&images::layers(), "slow:1", &[]));
    let sandbox = Sandbox::with_config(Who::root(), &registry.without_tls());
    let slow = sandbox.sbatch(&["--hold", "-c1", "--mem=64M", &option], "#!/bin/sh\n:\n");
    registry.freeze();
    sandbox.cmd("scontrol").args(["release", &slow.to_string()]).ok();
    let read = |pid: i32, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
    let score = |pid: i32| read(pid, "oom_score_adj").ok().and_then(|score| score.trim().parse::<i32>().ok());
    let parent = |pid: i32| -> Option<i32> {
        read(pid, "status").ok()?.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
    };
    let running = |word: &str| -> Vec<i32> {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| read(*pid, "cmdline").is_ok_and(|line| line.contains(word))).collect()
    };
    let state = sandbox.state().display().to_string();
    let both = || {
        let ours = |pid: &i32| read(*pid, "cmdline").is_ok_and(|line| line.contains(&state));
        let unpacker = running("internal-unpack").into_iter().find(ours)?;
        let agent = parent(unpacker)?;
        let fetcher = running("internal-fetch").into_iter().find(|pid| parent(*pid) == Some(agent))?;
        let [agent, fetcher, unpacker] = [agent, fetcher, unpacker].map(score);
        // They have the agent's until they have begun. Jobs have 0.
        (fetcher > Some(0) && unpacker > Some(0)).then_some(agent)
    };
    // A machine that lets root lower nothing has no agent that is protected.
    let agent = wait(20, both).flatten();
    assert!(matches!(agent, Some(-900 | 0)), "what fetches and unpacks, and the agent: {agent:?}");
    sandbox.cmd("scancel").arg(slow.to_string()).ok();
    registry.thaw();
}

each_user! {
    fn a_container_request_never_runs_on_the_host(who) {
        let sandbox = Sandbox::start(who);
        sandbox.write("host-only", "x");
        let look = format!("ls {} 2>/dev/null || echo not here", sandbox.work().join("host-only").display());
        assert_eq!(sandbox.srun_in(images::busybox(), ["sh", "-c", &look]).ok().text(), "not here");
        let output = sandbox.srun_in("/nonexistent/image", ["touch", &sandbox.work().join("ran").display().to_string()]).fails();
        assert!(!sandbox.work().join("ran").exists(), "the command ran without its image: {output}");
    }

    fn a_container_option_without_an_image_is_an_error(who) {
        let sandbox = Sandbox::start(who);
        let container = SECTIONS.iter().find(|section| section.title == "Container").unwrap();
        // An image is what is missing, and a name stands in for one.
        let needing = container.rows.iter().filter(|row| !["container-image", "container-name"].contains(&row.long));
        for row in needing {
            let value = match (row.long, row.value) {
                (_, ValueKind::Flag | ValueKind::Switch) => "",
                ("container-mounts", _) => "=/tmp:/mnt",
                ("container-workdir", _) => "=/",
                ("container-env", _) => "=X",
                ("container-writable-layer", _) => "=disk",
                ("container-scope", _) => "=user",
                ("container-save", _) => "=saved.sqsh",
                ("container-unshare", _) => "=net",
                (other, _) => panic!("--{other} takes a value: give it one here"),
            };
            let (name, option) = (format!("--{}", row.long), format!("--{}{value}", row.long));
            let next = if row.long == "container-scope" { "--container-name" } else { "--container-image" };
            for command in Command::ALL.into_iter().filter(|command| row.commands.contains(*command)) {
                let words: &[&str] = if command == Command::Sbatch { &["--wrap", "true"] } else { &["true"] };
                sandbox.cmd(command.name()).arg(&option).args(words).fails().says(&[&name, next]);
            }
        }
        assert_eq!(sandbox.cmd("sacct").args(["-n", "-X"]).ok().text(), "", "nothing was submitted");
    }

    fn a_failed_task_fails_srun(who) {
        let sandbox = Sandbox::start(who);
        for rank in 0..2 {
            let script = format!("[ $SLURM_PROCID != {rank} ] || exit 3");
            assert_eq!(sandbox.srun(["-n2", "sh", "-c", &script]).run().rc, 3);
        }
    }

    fn a_working_directory_that_is_missing_is_said(who) {
        let sandbox = Sandbox::start(who);
        let output = sandbox.srun(["-D", "/nonexistent", "touch", "made-elsewhere"]).fails();
        output.says(&["/nonexistent"]);
        let output = sandbox.srun_in(images::busybox(), ["--container-workdir=/nonexistent", "true"]).fails();
        output.says(&["/nonexistent"]);
        let job = sandbox.cmd("sbatch").args(["--parsable", "-D", "/nonexistent", "--wrap", "pwd"]).run();
        if job.rc == 0 {
            sandbox.wait_state(job.text().parse().unwrap(), "FAILED", 20);
        } else {
            job.says(&["/nonexistent"]);
        }
    }

    fn a_start_does_not_unpack_the_image_again_undisturbed(who) {
        let sandbox = Sandbox::start(who);
        let image = images::debian();
        sandbox.srun_in(&image, ["true"]).limit(120).ok();
        let start = Instant::now();
        sandbox.srun_in(&image, ["true"]).ok();
        assert!(start.elapsed() < Duration::from_secs(1), "a warm start took {:?}", start.elapsed());
        // Nor does it when many start, and nothing grows with each.
        let size = |s: &Sandbox| {
            let output = berth_tests::Cmd::new("du").args(["-s", "--inodes"]).arg(s.state()).run().text();
            output.split('\t').next().unwrap().parse::<u64>().unwrap()
        };
        let before = size(&sandbox);
        for _ in 0..5 {
            sandbox.srun_in(&image, ["touch", "/tmp/x"]).ok();
        }
        let grown = wait(30, || (size(&sandbox) <= before + 10).then_some(()));
        assert!(grown.is_some(), "{before} files in the state directory became {}", size(&sandbox));
    }

    fn an_image_that_loads_delays_nobody_else(who) {
        let registry = Registry::open();
        let option = format!("--container-image={}", registry.push(&images::layers(), "slow:1", &[]));
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        let slow = sandbox.sbatch(&["--hold", "-c1", "--mem=64M", "--output=slow", &option], "#!/bin/sh\ncat /data/kept\n");
        // The image is resolved and not fetched; from now on its registry takes connections and says nothing.
        registry.freeze();
        sandbox.cmd("scontrol").args(["release", &slow.to_string()]).ok();
        let state = || sandbox.cmd("squeue").args(["-h", "-o", "%t", "-j", &slow.to_string()]).ok().text();
        assert!(wait(20, || (state().trim() != "PD").then_some(())).is_some(), "the job got no node: {}", state());
        let other = ["-c1", "--mem=64M", "echo", "not delayed"];
        assert_eq!(sandbox.srun(other).ok().text(), "not delayed");
        assert_eq!(sandbox.srun_in(images::busybox(), other).ok().text(), "not delayed");
        assert!(["CF", "R"].contains(&state().trim()), "{}", state());
        let written = std::fs::read_to_string(sandbox.work().join("slow")).unwrap_or_default();
        assert!(!written.contains("kept"), "the image was there already");
        registry.thaw();
        sandbox.wait_state(slow, "COMPLETED", 60);
        assert_eq!(sandbox.read("slow"), "kept\n");
    }

    fn who_ends_an_srun_waits_for_no_image(who) {
        let registry = Registry::open();
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        sandbox.write("prolog", "#!/bin/sh\nuntil [ -e bad ]; do sleep 0.1; done\nexit 3\n");
        let queue = |format: &str| sandbox.cmd("squeue").args(["-h", "-o", format]).ok().text().trim().to_string();
        // Somebody ends it, or what runs before its tasks fails.
        for (layout, signal) in [(images::layers(), Some(Signal::SIGTERM)), (images::busybox(), None)] {
            let image = registry.push(&layout, if signal.is_some() { "slow:1" } else { "slow:2" }, &[]);
            let before: &[&str] = if signal.is_some() { &[] } else { &["--prolog=./prolog"] };
            let options = [before, &["--hold", "--mem=64M", "sh", "-c", "echo ran > ran"]].concat();
            let step = sandbox.srun_in(&image, options).limit(90).spawn();
            let held = wait(20, || Some(queue("%A")).filter(|id| !id.is_empty())).expect("no job is held");
            registry.freeze();
            sandbox.cmd("scontrol").args(["release", &held]).ok();
            let fetches = wait(30, || queue("%r").contains("ImagePull").then_some(()));
            assert!(fetches.is_some(), "nothing is fetched: {}", queue("%t %r"));
            let begun = Instant::now();
            match signal {
                Some(signal) => step.signal(signal),
                None => _ = sandbox.write("bad", ""),
            }
            let told = step.finish();
            let took = begun.elapsed();
            registry.thaw();
            assert!(told.rc != 0 && took < Duration::from_secs(40), "it took {took:?}: {told}");
            let why = if signal.is_some() { "forcing job termination" } else { "prolog failed: exit code 3; the step is not run" };
            told.says(&[why]);
            assert!(wait(20, || queue("%A").is_empty().then_some(())).is_some(), "the job is left: {}", queue("%A %t %r"));
        }
        assert!(!sandbox.work().join("ran").exists());
    }

    fn a_torn_file_does_not_keep_the_controller_from_starting(who) {
        let mut sandbox = Sandbox::start(who);
        let job = sandbox.sbatch(&["--hold"], "#!/bin/sh\n:\n");
        let pid = sandbox.controller();
        sandbox.kill_9(pid);
        // What a crash may leave: half of a pid file, half of a journal page behind the last commit, a temporary file.
        for name in ["run/controller.json", "run/agent.json.tmp", "spool/.tmp-1"] {
            let path = sandbox.state().join(name);
            if path.parent().unwrap().exists() {
                std::fs::write(path, b"{\"pid\": 12").unwrap();
            }
        }
        for entry in std::fs::read_dir(sandbox.state().join("db")).unwrap().flatten() {
            if entry.file_name().to_string_lossy().ends_with("-wal") {
                use std::io::Write;
                let mut file = std::fs::OpenOptions::new().append(true).open(entry.path()).unwrap();
                file.write_all(&[0xA5; 1000]).unwrap();
            }
        }
        sandbox.up();
        assert_eq!(sandbox.job_state(job), "PENDING");
        let _ = std::fs::remove_file(sandbox.state().join("spool/.tmp-1"));
    }

    fn nothing_is_left_in_tmp_after_jobs(who) {
        let sandbox = Sandbox::start(who);
        let list = || {
            let mut names: Vec<_> = std::fs::read_dir("/tmp").unwrap().flatten().map(|e| e.file_name()).collect();
            // Other tests have directories of their own there, which come and go.
            names.retain(|n| n.to_string_lossy().contains("berth") && !n.to_string_lossy().starts_with("berth-test-"));
            names
        };
        let before = list();
        for _ in 0..3 {
            sandbox.srun_in(images::busybox(), ["sh", "-c", "echo x > /tmp/berth-left; echo x > /dev/shm/berth-left"]).ok();
            sandbox.srun(["sh", "-c", "echo x > $TMPDIR/berth-left"]).ok();
        }
        let after: Vec<_> = list().into_iter().filter(|n| !before.contains(n)).collect();
        assert!(after.is_empty(), "{after:?}");
        assert!(!std::path::Path::new("/dev/shm/berth-left").exists());
    }

    fn layers_do_not_reach_outside_of_the_image(who) {
        let sandbox = Sandbox::start(who);
        let victim = sandbox.write("victim", "untouched");
        let target = victim.display().to_string();
        let outside = sandbox.work().display().to_string();
        let climb = format!("../../../../../../../../../../..{target}");
        let hide = |path: &str| {
            let (directory, name) = path.rsplit_once('/').unwrap();
            format!("{directory}/.wh.{name}")
        };
        let attacks = [
            ("dots", layout::Layer::default().file(&climb, 0o644, b"owned")),
            ("absolute", layout::Layer::default().file(&target, 0o644, b"owned")),
            ("link", layout::Layer::default().symlink("out", &outside).file("out/victim", 0o644, b"owned")),
            ("hard", layout::Layer::default().hardlink("inside", &climb).file("inside", 0o644, b"owned")),
            ("whiteout", layout::Layer::default().file(&hide(&climb), 0o644, b"")),
            ("whiteout-link", layout::Layer::default().symlink("out", &outside).file("out/.wh.victim", 0o644, b"")),
            ("opaque-link", layout::Layer::default().symlink("out", &outside).file("out/.wh..wh..opq", 0o644, b"")),
        ];
        for (name, attack) in attacks {
            let image = sandbox.work().join(name);
            layout::write(&image, vec![layout::busybox(), attack], json!({}));
            let output = sandbox.srun_in(&image, ["true"]).run();
            assert_eq!(sandbox.read("victim"), "untouched", "{name}: {output}");
            assert!(!output.err().contains("panicked"), "{name}: {output}");
        }
        assert_eq!(sandbox.srun_in(images::busybox(), ["echo", "still works"]).ok().text(), "still works");
    }

    fn files_of_the_image_that_are_no_files_are_not_followed(who) {
        let sandbox = Sandbox::start(who);
        let victim = sandbox.write("victim", "untouched");
        let target = victim.display().to_string();
        for name in ["etc/passwd", "etc/group", "etc/resolv.conf", "etc/hosts", "etc/hostname"] {
            for kind in ["link", "fifo"] {
                let layer = match kind {
                    "link" => layout::Layer::default().symlink(name, &target),
                    _ => layout::Layer::default().fifo(name),
                };
                let image = sandbox.work().join(format!("{}-{kind}", name.replace('/', "-")));
                layout::write(&image, vec![layout::busybox(), layer], json!({}));
                let output = sandbox.srun_in(&image, ["true"]).limit(20).run();
                assert_eq!(sandbox.read("victim"), "untouched", "{name} as {kind}: {output}");
            }
        }
        // A script is not written through what the image has in its way either.
        let layer = layout::Layer::default().symlink("run", &sandbox.work().display().to_string());
        let image = sandbox.work().join("run-link");
        layout::write(&image, vec![layout::busybox(), layer], json!({}));
        let before = std::fs::read_dir(sandbox.work()).unwrap().count();
        let option = format!("--container-image={}", image.display());
        sandbox.cmd("sbatch").args([&option, "--wait", "-o", "/dev/null", "--wrap", "true"]).limit(30).run();
        assert_eq!(std::fs::read_dir(sandbox.work()).unwrap().count(), before, "something was written through a link");
    }
}

#[test]
fn the_uid_that_a_client_claims_is_not_believed_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let user = Who::user();
    // Variables in which clients carry identity elsewhere have no effect, nor has --uid of an ordinary user.
    let output = sandbox
        .cmd_as(&user, "srun")
        .dir("/")
        .env("USER", "root")
        .env("SLURM_JOB_UID", "0")
        .env("LOGNAME", "root");
    assert_eq!(output.args(["id", "-u"]).ok().text(), user.uid.to_string());
    sandbox.cmd_as(&user, "sbatch").dir("/tmp").args(["--uid=0", "--wrap", "id"]).fails();
    // The agents' own door is closed to users.
    let door = sandbox.state().join("private/node.sock");
    let output = berth_tests::Cmd::new("test").arg("-e").arg(&door).who(&user).run();
    assert_ne!(output.rc, 0, "a user can reach {}", door.display());
}
