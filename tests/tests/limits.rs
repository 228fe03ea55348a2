//! What a step was given is what it has: cores, memory, devices, for batch scripts and steps alike.

use berth_tests::{Sandbox, Who, each_user, images};

/// Cores this machine has, to know whether a limit can be seen at all.
fn cores() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

each_user! {
    fn a_step_of_one_core_sees_one(who) {
        assert!(cores() > 1, "on a machine of one core this test shows nothing");
        let sandbox = Sandbox::start(who);
        let threads: usize = one_core_threads();
        assert!(threads < cores());
        let text = sandbox.srun(["-n1", "-c1", "nproc"]).ok().text();
        assert_eq!(text, threads.to_string(), "host: step");
        let text = sandbox.srun_in(images::debian(), ["-n1", "-c1", "nproc"]).ok().text();
        assert_eq!(text, threads.to_string(), "step in a container");
        let job = sandbox.sbatch(&["-n1", "-c1", "-o", "out", "--wait"], "#!/bin/sh\nnproc\ntaskset -pc 0-63 $$ >/dev/null 2>&1\nsrun nproc\n");
        assert_eq!(sandbox.read("out"), format!("{threads}\n{threads}\n"), "batch script and its step, job {job}");
    }

    fn usage_is_recorded(who) {
        let sandbox = Sandbox::start(who);
        let script = "#!/bin/bash\nx=$(head -c 40000000 /dev/zero | tr '\\0' x)\n(ulimit -t 2; while :; do :; done) 2>/dev/null\nexit 0\n";
        let job = sandbox.sbatch(&["--wait"], script);
        let rows = sandbox.sacct(job, "JobID,TotalCPU,MaxRSS,ElapsedRaw");
        let batch = rows.iter().find(|r| r[0].ends_with(".batch")).unwrap();
        assert!(batch[1].starts_with("00:0") && !batch[1].starts_with("00:00."), "TotalCPU of two busy seconds: {batch:?}");
        assert!(batch[2].ends_with('K') || batch[2].ends_with('M'), "MaxRSS: {batch:?}");
    }
}

fn one_core_threads() -> usize {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")
        .unwrap_or("0".into());
    list.trim()
        .split(',')
        .map(|part| match part.split_once('-') {
            Some((low, high)) => high.parse::<usize>().unwrap() - low.parse::<usize>().unwrap() + 1,
            None => 1,
        })
        .sum()
}

#[test]
fn too_much_memory_ends_in_out_of_memory_and_nothing_else_dies_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let bystander =
        sandbox.sbatch(&["--mem=64M", "-c1", "--output=bystander"], "#!/bin/sh\necho begun\nsleep 60\n");
    sandbox.wait_file("bystander", "begun", 20);
    let (controller, agent) = (sandbox.controller(), sandbox.agent());
    let eat = "head -c 800M /dev/zero | tail | wc -c";
    let image = format!("--container-image={}", images::debian().display());
    for options in [vec!["--mem=64M"], vec!["--mem=64M", &image]] {
        let job = sandbox.sbatch(&options, &format!("#!/bin/bash\nset -o pipefail\n{eat}\n"));
        sandbox.wait_state(job, "OUT_OF_MEMORY", 60);
        // For steps as for batch scripts.
        let mut words = options.clone();
        words.extend(["sh", "-c", eat]);
        let output = sandbox.srun(&words).run();
        assert_ne!(output.rc, 0, "{output}");
        assert!(
            output.err().to_lowercase().contains("out of memory") || output.err().contains("oom"),
            "{output}"
        );
    }
    assert_eq!((sandbox.controller(), sandbox.agent()), (controller, agent));
    assert_eq!(sandbox.job_state(bystander), "RUNNING");
    assert_eq!(sandbox.srun(["--mem=64M", "echo", "alive"]).ok().text(), "alive");
    sandbox.cmd("scancel").arg(bystander.to_string()).ok();
}

#[test]
fn a_device_that_was_not_allocated_is_absent_and_refused_as_root() {
    // Two devices of the kernel stand in for accelerators; neither is in a container by default.
    let config = "[[node]]\nname = \"ALL\"\n[[node.gres]]\nname = \"gpu\"\nfiles = [\"/dev/fuse\", \"/dev/loop-control\"]\n";
    let sandbox = Sandbox::with_config(Who::root(), config);
    let user = Who::user();
    let image = images::debian();
    let look = "for d in /dev/fuse /dev/loop-control; do [ -e $d ] && echo $d; done; echo end";
    let srun = |words: &[&str]| sandbox.cmd_as(&user, "srun").dir("/").args(words);
    let image = format!("--container-image={}", image.display());
    assert_eq!(srun(&[&image, "sh", "-c", look]).ok().text(), "end");
    let with = srun(&["--gres=gpu:1", &image, "sh", "-c", look]).ok().text();
    assert_eq!(with.lines().count(), 2, "exactly one device: {with}");
    // The kernel refuses it too, where the file can be seen: root's own step on the node's filesystem.
    let open = "for d in /dev/fuse /dev/loop-control; do (exec 3<$d) 2>/dev/null && echo opens; done; (exec 3</dev/null) && echo end";
    assert_eq!(sandbox.srun(["sh", "-c", open]).ok().text(), "end");
    assert_eq!(sandbox.srun(["--gres=gpu:1", "sh", "-c", open]).ok().text(), "opens\nend");
    assert_eq!(sandbox.srun(["--gres=gpu:2", "sh", "-c", open]).ok().text(), "opens\nopens\nend");
    srun(&["--gres=gpu:3", "true"]).fails().says(&["Requested node configuration is not available"]);
    srun(&["--gres=nosuch:1", "true"]).fails().says(&["1 x nosuch"]);
}

#[test]
fn a_fork_bomb_stays_in_its_job_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let before = sandbox.agent();
    let script = "#!/bin/bash\nfor i in $(seq 300); do sleep 100 & done 2>/dev/null\necho many\n";
    let job = sandbox.sbatch(&["--output=out", "--mem=256M"], script);
    sandbox.wait_file("out", "many", 30);
    sandbox.wait_state(job, "COMPLETED", 30);
    assert_eq!(sandbox.agent(), before);
    let left = berth_tests::sandbox::wait(30, || {
        let all = berth_tests::leftovers::processes(&sandbox.work());
        all.iter().all(|(_, line)| !line.starts_with("sleep 100")).then_some(())
    });
    assert!(left.is_some(), "background processes of an ended job live on");
}
