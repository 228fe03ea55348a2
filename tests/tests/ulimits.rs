//! Resource limits (ulimit) on their way from a shell to the tasks, and what is said of them.

use berth_tests::sandbox::wait;
use berth_tests::{Cmd, Sandbox, Who, each_user, images};

/// A command run by a shell that lowered its limits with these `ulimit` words first.
fn limited(sandbox: &Sandbox, limits: &[&str], command: &[&str]) -> Cmd {
    let set: Vec<String> = limits.iter().map(|l| format!("ulimit {l} && ")).collect();
    sandbox.cmd("sh").args(["-c", &format!("{} exec \"$@\"", set.concat()), "sh"]).args(command)
}

/// Soft limit of the node's: of its agent, by its name in `/proc/PID/limits`.
fn of_agent(sandbox: &Sandbox, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{}/limits", sandbox.agent())).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().to_string()
}

/// How many files what an agent starts may open: as many as whoever started the agent, which takes more for itself alone.
fn of_node() -> String {
    Cmd::new("sh").args(["-c", "ulimit -Sn"]).ok().text()
}

each_user! {
    fn limits_travel_with_the_job_and_its_steps(who) {
        let sandbox = Sandbox::start(who);
        let image = format!("--container-image={}", images::busybox().display());
        let look = "echo $(ulimit -n) $(ulimit -s) $(ulimit -c)";
        // The login shell's stack and core go with the job; its limit on open files is the login node's affair.
        let files = of_node();
        let login = ["-Sn 321", "-Ss 4096", "-Sc 0"];
        // Inside the job every limit is the job's, and reaches its steps, on the node and in containers.
        let script = format!(
            "#!/bin/sh\n{look}\nulimit -Sn 222; ulimit -Ss 2048; ulimit -Sl 32\n\
             srun sh -c '{look}; ulimit -l'\nsrun {image} sh -c '{look}; ulimit -l'\n"
        );
        sandbox.write("job.sh", script);
        limited(&sandbox, &login, &["sbatch", "--wait", "-o", "out", "job.sh"]).ok();
        assert_eq!(sandbox.read("out"), format!("{files} 4096 0\n222 2048 0\n32\n222 2048 0\n32\n"));
        // The same with a script in a container.
        let script = format!("#!/bin/sh\n{look}\nulimit -Sn 222; ulimit -Ss 2048; ulimit -Sl 32\nsrun sh -c '{look}; ulimit -l'\n");
        sandbox.write("job.sh", script);
        limited(&sandbox, &login, &["sbatch", &image, "--wait", "-o", "out", "job.sh"]).ok();
        assert_eq!(sandbox.read("out"), format!("{files} 4096 0\n222 2048 0\n32\n"));
    }

    fn propagate_says_which(who) {
        let sandbox = Sandbox::start(who);
        let image = format!("--container-image={}", images::busybox().display());
        let look = "echo $(ulimit -n) $(ulimit -s)";
        let (files, stack) = (of_node(), of_agent(&sandbox, "Max stack size"));
        let stack = stack.parse::<u64>().map_or(stack, |bytes| (bytes / 1024).to_string());
        let cases = [
            (&[][..], format!("{files} 4096")),
            (&["--propagate"], "321 4096".to_string()),
            (&["--propagate=ALL"], "321 4096".to_string()),
            (&["--propagate=NOFILE"], format!("321 {stack}")),
            (&["--propagate=stack,RLIMIT_NOFILE"], "321 4096".to_string()),
            (&["--propagate=NONE"], format!("{files} {stack}")),
        ];
        for (options, expected) in cases {
            for container in [None, Some(image.as_str())] {
                let mut words = vec!["srun"];
                words.extend(options);
                words.extend(container);
                words.extend(["sh", "-c", look]);
                let output = limited(&sandbox, &["-Sn 321", "-Ss 4096"], &words).ok();
                assert_eq!(output.text(), expected, "{options:?} {container:?}");
            }
        }
        // What salloc is asked goes with the steps of its allocation, unless they say otherwise; no task is told of it.
        let inside = "srun sh -c \"$LOOK\"; srun --propagate=NONE sh -c \"$LOOK\"; srun sh -c 'echo ${SLURM_PROPAGATE-none}'";
        for (option, expected) in [("-n1", format!("{files} 4096")), ("--propagate=NOFILE", format!("321 {stack}")), ("--propagate", "321 4096".into())] {
            let words = ["salloc", "-Q", "-n1", option, "sh", "-c", inside];
            let output = limited(&sandbox, &["-Sn 321", "-Ss 4096"], &words).env("LOOK", look).ok();
            assert_eq!(output.text(), format!("{expected}\n{files} {stack}\nnone"), "{option}");
        }
        sandbox.srun(["--propagate=FILES", "true"]).fails().says(&["FILES", "NOFILE"]);
    }

    fn what_the_node_cannot_give_is_lowered_or_refused(who) {
        let mut sandbox = Sandbox::empty(who);
        // The node has less than the shell of whoever submits.
        sandbox.up_with_limits("-s 4096");
        let image = format!("--container-image={}", images::busybox().display());
        let raised = |text: &str| text.trim() == "6144";
        for container in [&["-n1"][..], &[&image]] {
            let run = |propagate: &[&str]| {
                let mut words = vec!["srun"];
                words.extend(container);
                words.extend(propagate);
                words.extend(["sh", "-c", "ulimit -s"]);
                limited(&sandbox, &["-Ss 6144"], &words).run()
            };
            let inherited = run(&[]);
            // Root may raise it on most machines: there the request is simply met.
            if raised(&inherited.text()) && sandbox.who().is_root() {
                continue;
            }
            assert_eq!((inherited.rc, inherited.text().as_str()), (0, "4096"), "{inherited}");
            inherited.says(&["limit stack: 6291456 asked for, 4194304 given"]);
            let refused = run(&["--propagate=STACK"]);
            assert_ne!(refused.rc, 0, "{refused}");
            refused.says(&["stack", "6291456", "4194304", "--propagate"]);
            assert_eq!(run(&["--propagate=NONE"]).text(), "4096");
        }
    }

    fn locked_memory_that_a_node_cannot_give_is_clamped_with_a_note_or_refused_with_both_figures(who) {
        let mut sandbox = Sandbox::start(who);
        let image = format!("--container-image={}", images::busybox().display());
        // The job begins while its node allows more than it does when steps follow.
        let script = format!(
            "#!/bin/sh\nulimit -Sl 128 || exit 9\necho begun\nwhile [ ! -e go ]; do sleep 0.1; done\n\
             srun sh -c 'ulimit -l'\nsrun {image} sh -c 'ulimit -l'\n\
             srun --propagate=MEMLOCK echo had\nsrun {image} --propagate=MEMLOCK echo had\n\
             srun --propagate=NONE sh -c 'ulimit -l'\n"
        );
        let job = sandbox.sbatch(&["-o", "out", "-e", "err"], &script);
        sandbox.wait_file("out", "begun", 30);
        sandbox.kill_9(sandbox.agent());
        sandbox.up_with_limits("-l 64");
        sandbox.write("go", "");
        sandbox.wait_state(job, "COMPLETED", 60);
        let (out, err) = (sandbox.read("out"), sandbox.read("err"));
        // Root may raise it on most machines: there the request is simply met.
        if out.starts_with("begun\n128\n") && sandbox.who().is_root() {
            return;
        }
        assert_eq!(out, "begun\n64\n64\n64\n", "{err}");
        assert!(err.matches("limit memlock: 131072 asked for, 65536 given").count() >= 2, "{err}");
        let refused = "the limit memlock of 131072 that --propagate asks for: this node allows 65536";
        assert!(err.matches(refused).count() >= 2, "{err}");
        // A login's limit is the login node's affair, unless it is named.
        let run = |words: &[&str]| limited(&sandbox, &["-Sl 128"], words).run();
        let own = run(&["srun", "sh", "-c", "ulimit -l"]);
        assert_eq!((own.rc, own.text().as_str()), (0, "64"), "{own}");
        assert!(!own.err().contains("memlock"), "{own}");
        let named = run(&["srun", "--propagate=MEMLOCK", "true"]);
        assert_ne!(named.rc, 0, "{named}");
        named.says(&[refused]);
    }

    fn scontrol_shows_what_a_step_has(who) {
        let sandbox = Sandbox::start(who.clone());
        let image = format!("--container-image={}", images::busybox().display());
        let look = "for n in user mnt pid ipc cgroup uts net; do readlink /proc/self/ns/$n; done; grep -E 'open files|stack' /proc/self/limits; echo ready; read x";
        let words = ["srun", "--mem=64M", "--propagate=NOFILE,STACK", &image, "sh", "-c", look];
        let mut step = limited(&sandbox, &["-Sn 222", "-Ss 2048"], &words).stdin_open().spawn();
        step.wait_for("ready", 60);
        let seen = String::from_utf8(step.stdout()).unwrap();
        let show = |options: &[&str]| sandbox.cmd("scontrol").args(options).args(["show", "step"]).ok();
        // The node tells what the image took a moment later.
        assert!(wait(20, || show(&[]).text().contains("ImagePull=").then_some(())).is_some());
        let (plain, details) = (show(&[]).text(), show(&["-d"]).text());
        // What is shown without -d stays as it is, line by line, but for the job's SLUID, which Slurm has among the first.
        let others = |text: &str| text.split_inclusive('\n').filter(|line| !line.contains(" SLUID=")).collect::<String>();
        assert!(others(&details).starts_with(plain.trim_end()), "{details}\n{plain}");
        let field = |name: &str| {
            let words = details.split_whitespace();
            words.filter_map(|w| w.strip_prefix(name)?.strip_prefix('=')).collect::<Vec<_>>()
        };
        let soft: Vec<&str> = field("SoftLimits")[0].split(',').collect();
        assert!(soft.contains(&"nofile:222") && soft.contains(&"stack:2097152"), "{details}");
        let hard: Vec<&str> = field("HardLimits")[0].split(',').collect();
        assert_eq!((soft.len(), hard.len()), (16, 16), "{details}");
        let files = seen.lines().find(|l| l.contains("open files")).unwrap().split_whitespace().nth(4).unwrap();
        assert!(hard.contains(&format!("nofile:{files}").as_str()), "{details}\n{seen}");
        for pair in field("Namespaces")[0].split(',') {
            let (kind, number) = pair.split_once(':').unwrap();
            assert!(seen.lines().any(|l| l == format!("{kind}:[{number}]")), "{pair} is not in {seen}");
        }
        assert_eq!(field("Namespaces")[0].split(',').count(), 7);
        // As JSON, too.
        let json = |options: &[&str]| {
            let value: serde_json::Value = serde_json::from_str(&show(options).text()).unwrap();
            value["steps"][0].clone()
        };
        assert!(json(&["--json"]).get("details").is_none());
        let details = json(&["-d", "--json"])["details"].clone();
        assert_eq!(details["namespaces"].as_array().map(Vec::len), Some(7), "{details}");
        assert_eq!(details["limits"].as_array().map(Vec::len), Some(16), "{details}");
        if who.is_root() {
            let groups = field("ControlGroup");
            let memory = groups.iter().any(|g| g.contains("memory") && g.ends_with(&format!(":{}", 64 << 20)));
            assert!(memory && groups.iter().any(|g| g.contains("cpuset.cpus:")), "{details}");
            // Of another user's step nothing is told, and why is said.
            let other = sandbox.cmd_as(&Who::user(), "scontrol").dir("/").args(["-d", "show", "step"]).ok();
            assert_eq!(others(&other.text()), plain);
            other.says(&["belongs to uid 0"]);
        }
        step.write(b"x\n");
        assert_eq!(step.finish().rc, 0);
    }

    fn the_doctor_looks_at_limits(who) {
        let sandbox = Sandbox::empty(who);
        let say = |limits: &[&str]| limited(&sandbox, limits, &["berth", "doctor", "--json"]).run().text();
        let text = say(&["-n 512", "-l 64", "-s 1024"]);
        for name in ["locked memory", "open files", "stack", "processes"] {
            assert!(text.contains(&format!("limit: {name}")), "{text}");
        }
        if !text.contains("raised where a job asks") {
            for advice in ["at most 512 files", "LimitNOFILE", "at most 65536 bytes", "LimitMEMLOCK", "at most 1048576 bytes", "LimitSTACK"] {
                assert!(text.contains(advice), "{advice} is not in {text}");
            }
        }
    }
}
