//! What a task finds in its environment, its limits and its arguments: bytes from end to end.

use berth_tests::{Hosts, Sandbox, each_user, images};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

each_user! {
    fn bytes_that_are_no_text_survive(who) {
        let sandbox = Sandbox::start(who);
        let odd = OsStr::from_bytes(b"caf\xe9 \xff\x01 line\nbreak");
        for image in [None, Some(images::busybox())] {
            let step = match &image {
                None => sandbox.cmd("srun"),
                Some(path) => sandbox.cmd("srun").arg("--container-image").arg(path),
            };
            let output = step.arg("sh").arg("-c").arg("printf '%s|%s' \"$ODD\" \"$1\"").arg("sh").arg(odd).env("ODD", odd).ok();
            let expected = [odd.as_bytes(), b"|", odd.as_bytes()].concat();
            assert_eq!(output.stdout, expected, "{output}");
        }
        let path = sandbox.write("job.sh", b"#!/bin/sh\nprintf '%s|%s|caf\xe9' \"$ODD\" \"$1\" > got\n");
        sandbox.cmd("sbatch").arg("--wait").arg(path).arg(odd).env("ODD", odd).ok();
        let got = std::fs::read(sandbox.work().join("got")).unwrap();
        assert_eq!(got, [odd.as_bytes(), b"|", odd.as_bytes(), b"|caf\xe9"].concat());
        // Files of odd names, and exported shell functions, which span lines.
        let name = OsStr::from_bytes(b"out-\xff");
        sandbox.cmd("sbatch").arg("--wait").arg("-o").arg(name).args(["--wrap", "echo fine"]).ok();
        assert_eq!(std::fs::read(sandbox.work().join(name)).unwrap(), b"fine\n");
        let line = "f() { echo one; echo two; }; export -f f; srun bash -c f";
        assert_eq!(sandbox.cmd("bash").args(["-c", line]).ok().text(), "one\ntwo");
    }

    fn slurm_variables_are_set(who) {
        let sandbox = Sandbox::start(who.clone());
        let script = "#!/bin/sh\nenv | grep ^SLURM > batch.env\nsrun -n2 sh -c 'env | grep ^SLURM > step.$SLURM_PROCID.env'\n";
        let job = sandbox.sbatch(&["--wait", "-J", "vars", "-n2"], script);
        let batch = sandbox.read("batch.env");
        let node = sandbox.node();
        for line in [
            format!("SLURM_JOB_ID={job}"), format!("SLURM_JOBID={job}"), "SLURM_JOB_NAME=vars".into(),
            "SLURM_JOB_PARTITION=main".into(), "SLURM_NTASKS=2".into(), "SLURM_NPROCS=2".into(),
            format!("SLURM_JOB_NODELIST={node}"), "SLURM_JOB_NUM_NODES=1".into(), format!("SLURM_JOB_USER={}", who.name),
            format!("SLURM_SUBMIT_DIR={}", sandbox.work().display()), format!("SLURMD_NODENAME={node}"),
        ] {
            assert!(batch.lines().any(|l| l == line), "{line} is not in\n{batch}");
        }
        for rank in 0..2 {
            let step = sandbox.read(&format!("step.{rank}.env"));
            for line in [
                format!("SLURM_PROCID={rank}"), format!("SLURM_LOCALID={rank}"), "SLURM_STEP_ID=0".into(),
                "SLURM_NODEID=0".into(), "SLURM_STEP_NUM_TASKS=2".into(), format!("SLURM_JOB_ID={job}"),
            ] {
                assert!(step.lines().any(|l| l == line), "{line} is not in\n{step}");
            }
        }
        let array = sandbox.sbatch(&["--array=3,7", "-o", "a.%a"], "#!/bin/sh\nenv | grep ^SLURM_ARRAY\n");
        sandbox.wait_file("a.7", "SLURM_ARRAY_TASK_ID=7", 30);
        sandbox.wait_file("a.3", &format!("SLURM_ARRAY_JOB_ID={array}"), 30);
        sandbox.wait_file("a.3", "SLURM_ARRAY_TASK_COUNT=2", 30);
        sandbox.wait_file("a.3", "SLURM_ARRAY_TASK_MAX=7", 30);
    }

    fn layout_and_devices_of_tasks_are_told_in_the_job_and_followed_there(who) {
        // Devices that are only counted: every user's cluster may have them.
        let sandbox = Sandbox::with_config(who, "[[node]]\nname = \"ALL\"\ngres = [{ name = \"gpu\", count = 2 }]\n");
        let say = "$SLURM_TRES_PER_TASK $SLURM_DISTRIBUTION $SLURM_DIST_PLANESIZE";
        let none = "${SLURM_TRES_PER_TASK-none} ${SLURM_DISTRIBUTION-none} ${SLURM_DIST_PLANESIZE-none}";
        let script = format!(
            "#!/bin/sh\nexec > told\necho {say}\n\
             srun sh -c 'echo $SLURM_PROCID {say} [$CUDA_VISIBLE_DEVICES]' | sort\n\
             srun -m cyclic sh -c 'echo other $SLURM_DISTRIBUTION ${{SLURM_DIST_PLANESIZE-none}}' | sort -u\n\
             srun -n1 --tres-per-task=gres/gpu=2 sh -c 'echo own $SLURM_TRES_PER_TASK [$CUDA_VISIBLE_DEVICES]'\n\
             sbatch --mem=50M -o nested --wrap 'echo {none}'\n"
        );
        sandbox.sbatch(&["--wait", "-N1", "-n2", "--mem=100M", "-m", "plane=2", "--tres-per-task=gres/gpu=1", "-o", "log"], &script);
        let told = sandbox.read("told");
        let lines: Vec<&str> = told.lines().collect();
        let log = sandbox.read("log");
        assert_eq!(lines[0], "gres/gpu=1 plane=2 2", "{told}{log}");
        // Each task has a GPU of its own, as the job said.
        for (task, line) in lines[1..3].iter().enumerate() {
            assert!(line.starts_with(&format!("{task} gres/gpu=1 plane=2 2 [")) && !line.contains(','), "{told}{log}");
        }
        assert_eq!(lines[3..5], ["other cyclic none", "own gres/gpu=2 [0,1]"], "{told}{log}");
        sandbox.wait_file("nested", "none none none", 60);
    }

    fn the_size_of_a_terminal_is_told(who) {
        let sandbox = Sandbox::start(who);
        let line = "stty rows 30 cols 90; srun --pty sh -c 'echo size $SLURM_PTY_WIN_ROW $SLURM_PTY_WIN_COL ${SLURM_PTY_PORT-none}'";
        let mut srun = sandbox.cmd("script").args(["-qec", line, "/dev/null"]).stdin_open().spawn();
        srun.wait_for("size 30 90 none", 60);
        assert_eq!(srun.finish().rc, 0);
        assert_eq!(sandbox.srun(["sh", "-c", "echo ${SLURM_PTY_WIN_ROW-none}"]).ok().text(), "none");
    }

    fn a_terminal_may_be_another_than_standard_input(who) {
        let sandbox = Sandbox::start(who);
        let line = "stty rows 31 cols 91; srun --pty=7 sh -c 'stty size; tty -s && read x && echo got $x' 7<>/dev/tty < /dev/null > out";
        let mut srun = sandbox.cmd("script").args(["-qec", line, "/dev/null"]).stdin_open().spawn();
        srun.wait_for("31 91", 60);
        srun.write(b"typed\n");
        srun.wait_for("got typed", 60);
        assert_eq!(srun.finish().rc, 0);
        assert_eq!(sandbox.read("out"), "", "it went to the terminal");
        // What is no terminal is named, before anything is made.
        let refused = |redirection: &str| {
            let line = format!("srun --pty=7 true {redirection}");
            sandbox.cmd("sh").args(["-c", &line]).fails()
        };
        refused("").says(&["--pty=7", "no such descriptor is open"]);
        refused("7</dev/null").says(&["--pty=7", "/dev/null is no terminal"]);
        refused("7<>out").says(&["--pty=7", "out is no terminal"]);
        assert_eq!(sandbox.cmd("squeue").args(["-h", "-t", "all", "-o", "%i"]).ok().text().trim(), "1");
    }

    fn export_decides_what_travels(who) {
        let sandbox = Sandbox::start(who);
        let get = |options: &[&str]| {
            sandbox.cmd("srun").args(options).args(["sh", "-c", "echo ${A-none} ${B-none}"]).env("A", "a").env("B", "b").ok().text()
        };
        assert_eq!(get(&[]), "a b");
        assert_eq!(get(&["--export=A"]), "a none");
        assert_eq!(get(&["--export=ALL,B=changed"]), "a changed");
        assert_eq!(get(&["--export=NONE"]), "none none");
        sandbox.cmd("sbatch").args(["--export=NONE", "--wait", "--wrap", "echo ${A-none} > got"]).env("A", "a").ok();
        assert_eq!(sandbox.read("got"), "none\n");
    }

    fn soft_limits_travel_into_the_container(who) {
        let sandbox = Sandbox::start(who);
        let image = format!("--container-image={}", images::busybox().display());
        let script = format!("#!/bin/bash\nulimit -S -s 4096\nulimit -S -c 0\nsrun {image} sh -c 'ulimit -s; ulimit -c' > got\n");
        sandbox.sbatch(&["--wait", "-o", "log"], &script);
        assert_eq!(sandbox.read("got"), "4096\n0\n", "log: {}", sandbox.read("log"));
    }
}

/// What scripts, their steps, `srun` and `salloc` on two nodes know, as it was recorded of Slurm 26.05 on two nodes of such names: each variable
/// that was seen there and has the same value wherever it runs.
#[test]
fn what_is_known_on_several_nodes_is_as_slurm_has_it_as_root() {
    let hosts = Hosts::cluster(2, "");
    let host = hosts.cmd("n1", "cat").arg("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list").ok();
    let one_thread = host.text().trim() == "0";
    let read = |name: &str| std::fs::read_to_string(hosts.work().join(name)).unwrap_or_default();
    let mut wrong = Vec::new();
    let mut expect = |name: &str, lines: &str, none: &str| {
        let text = read(name);
        let has = |line: &str| text.lines().any(|l| l == line);
        for line in lines.split_whitespace() {
            // Jobs have whole cores.
            if (one_thread || !line.contains("_CPUS_")) && !has(line) {
                let variable = line.split_once('=').map_or(line, |(variable, _)| variable);
                let is = text.lines().find(|l| l.starts_with(&format!("{variable}="))).unwrap_or("not there");
                wrong.push(format!("{name}: {line} is {is}"));
            }
        }
        let named = |variable: &str| text.lines().any(|l| l.starts_with(&format!("{variable}=")));
        let surplus = none.split_whitespace().filter(|variable| named(variable));
        wrong.extend(surplus.map(|variable| format!("{name}: {variable} is there")));
        for variable in ["SLURM_JOB_ID", "SLURM_JOBID", "SLURM_JOB_PARTITION", "SLURM_CLUSTER_NAME"] {
            if !named(variable) {
                wrong.push(format!("{name}: {variable} is not there"));
            }
        }
    };
    // What the tasks 0 and 1 on n1 and 2 on n2 have in every one of these steps.
    let places = [("n1", 0, 0, "0,1", 2), ("n1", 0, 1, "0,1", 2), ("n2", 1, 0, "2", 1)];
    let of_tasks = |task: usize| {
        let (node, index, local, all, cpus) = places[task];
        // Each of these has its srun on n1, which has the controller.
        let client = if node == "n1" { "127.0.0.1" } else { "10.77.0.1" };
        format!(
            "SLURMD_NODENAME={node} SLURM_CPUS_ON_NODE={cpus} SLURM_DISTRIBUTION=block SLURM_GTIDS={all} SLURM_LOCALID={local} \
             SLURM_NODEID={index} SLURM_PROCID={task} SLURM_TOPOLOGY_ADDR={node} SLURM_TOPOLOGY_ADDR_PATTERN=node \
             SLURM_JOB_CPUS_PER_NODE=2,1 SLURM_JOB_NODELIST=n[1-2] SLURM_JOB_NUM_NODES=2 SLURM_NNODES=2 SLURM_NODELIST=n[1-2] \
             SLURM_NPROCS=3 SLURM_NTASKS=3 SLURM_OOM_KILL_STEP=0 SLURM_PRIO_PROCESS=0 SLURM_STEPID=0 SLURM_STEP_ID=0 \
             SLURM_STEP_NODELIST=n[1-2] SLURM_STEP_NUM_NODES=2 SLURM_STEP_NUM_TASKS=3 SLURM_STEP_TASKS_PER_NODE=2,1 \
             SLURM_TASKS_PER_NODE=2,1 SLURM_SUBMIT_HOST=n1 SLURM_JOB_QOS=normal SLURM_SRUN_COMM_HOST={client} \
             SLURM_LAUNCH_NODE_IPADDR={client} SLURM_SUBMIT_DIR={} SLURM_JOB_USER={} SLURM_JOB_UID={} SLURM_JOB_GID={}",
            hosts.work().display(),
            hosts.user().name,
            hosts.user().uid,
            hosts.user().gid
        )
    };
    let say = |file: &str| format!("env > {file}.$SLURM_PROCID");
    let script = format!("#!/bin/sh\nenv > batch\nsrun sh -c '{}'\n", say("step"));
    std::fs::write(hosts.work().join("job.sh"), script).unwrap();
    let options = ["-N2", "-n3", "-t10", "-o", "out", "--wait", "job.sh"];
    hosts.cmd("n1", "sbatch").args(options).limit(60).ok();
    expect(
        "batch",
        "ENVIRONMENT=BATCH HOSTNAME=n1 SLURMD_NODENAME=n1 SLURM_CPUS_ON_NODE=2 SLURM_GTIDS=0 SLURM_JOB_CPUS_PER_NODE=2,1 \
         SLURM_JOB_EXCLUSIVE=NO SLURM_JOB_NAME=job.sh SLURM_JOB_NODELIST=n[1-2] SLURM_JOB_NUM_NODES=2 SLURM_JOB_OVERSUBSCRIBE=NO \
         SLURM_LOCALID=0 SLURM_NNODES=2 SLURM_NODEID=0 SLURM_NODELIST=n[1-2] SLURM_NPROCS=3 SLURM_NTASKS=3 SLURM_OOM_KILL_STEP=0 \
         SLURM_PRIO_PROCESS=0 SLURM_PROCID=0 SLURM_STEPID=-5 SLURM_STEP_ID=-5 SLURM_SUBMIT_HOST=n1 SLURM_TASKS_PER_NODE=2,1 SLURM_JOB_QOS=normal \
         SLURM_TOPOLOGY_ADDR=n1 SLURM_TOPOLOGY_ADDR_PATTERN=node",
        "SLURM_CPUS_PER_TASK SLURM_DISTRIBUTION SLURM_STEP_NODELIST SLURM_LABELIO",
    );
    for task in 0..3 {
        let name = format!("step.{task}");
        expect(
            &name,
            &format!("{} SLURM_JOB_NAME=job.sh", of_tasks(task)),
            "SLURM_CPUS_PER_TASK SLURM_LABELIO",
        );
    }
    // What the job before is just leaving would decide where tasks are.
    let idle = || ["n1", "n2"].iter().for_each(|node| hosts.wait_node(node, "idle", 30));
    idle();
    let task = say("bare");
    let bare = ["-N2", "-n3", "-c1", "-t5", "-J", "nm", "--mem-per-cpu=50", "-l", "sh", "-c", &task];
    hosts.cmd("n1", "srun").args(bare).limit(60).ok();
    for task in 0..3 {
        let own = "SLURM_JOB_NAME=nm SLURM_LABELIO=1 SLURM_CPUS_PER_TASK=1 SLURM_TRES_PER_TASK=cpu=1 SLURM_MEM_PER_CPU=50";
        let none = "ENVIRONMENT SLURM_JOB_EXCLUSIVE SLURM_JOB_OVERSUBSCRIBE SLURM_MEM_PER_NODE";
        expect(&format!("bare.{task}"), &format!("{} {own}", of_tasks(task)), none);
    }
    idle();
    let command = format!("env > alloc; srun sh -c '{}'", say("inside"));
    hosts.cmd("n1", "salloc").args(["-Q", "-N2", "-n3", "sh", "-c", &command]).limit(60).ok();
    expect(
        "alloc",
        "SLURM_JOB_CPUS_PER_NODE=2,1 SLURM_JOB_NAME=interactive SLURM_JOB_NODELIST=n[1-2] SLURM_JOB_NUM_NODES=2 SLURM_NNODES=2 \
         SLURM_NODELIST=n[1-2] SLURM_NPROCS=3 SLURM_NTASKS=3 SLURM_SUBMIT_HOST=n1 SLURM_TASKS_PER_NODE=2,1 SLURM_JOB_QOS=normal",
        "ENVIRONMENT SLURMD_NODENAME SLURM_PROCID SLURM_LOCALID SLURM_NODEID SLURM_GTIDS SLURM_STEP_ID SLURM_TASK_PID SLURM_CPUS_ON_NODE",
    );
    for task in 0..3 {
        expect(
            &format!("inside.{task}"),
            &format!("{} SLURM_JOB_NAME=interactive", of_tasks(task)),
            "ENVIRONMENT SLURM_LABELIO",
        );
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), read("out"));
    // One on another machine than the controller's; what is submitted from its task has none of it.
    idle();
    let place = "echo $SLURMD_NODENAME $SLURM_SRUN_COMM_HOST $SLURM_LAUNCH_NODE_IPADDR";
    let none = "#!/bin/sh\necho ${SLURM_SRUN_COMM_HOST-none} ${SLURM_LAUNCH_NODE_IPADDR-none}\n";
    std::fs::write(hosts.work().join("none.sh"), none).unwrap();
    let script = format!("#!/bin/sh\nsrun sh -c '{place}'\nsrun sbatch --wait -w n1 -o nested none.sh\n");
    std::fs::write(hosts.work().join("there.sh"), script).unwrap();
    let options = ["-N1", "-n1", "-t10", "-w", "n2", "-o", "there", "--wait", "there.sh"];
    hosts.cmd("n1", "sbatch").args(options).limit(90).ok();
    let there = read("there");
    assert!(there.starts_with("n2 10.77.0.2 10.77.0.2\n"), "{there}");
    assert_eq!(read("nested"), "none none\n", "{there}");
}
