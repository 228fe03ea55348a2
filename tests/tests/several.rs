//! Steps over several nodes: hosts that reach each other by the network alone, one command over all of them.

use berth_tests::sandbox::wait;
use berth_tests::{Hosts, Running, images};
use nix::sys::signal::Signal;

/// Nodes n1, n2, ...; the first has the controller.
fn nodes(count: usize) -> Hosts {
    let names: Vec<String> = (1..=count).map(|n| format!("n{n}")).collect();
    let hosts = Hosts::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    hosts.up("n1", "");
    let token = hosts.token("n1", &["--uses", &count.to_string()]);
    for name in &names[1..] {
        hosts.join(name, &token);
    }
    for name in &names {
        hosts.wait_node(name, "idle", 60);
    }
    hosts
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(|l| l.trim().to_string()).collect();
    lines.sort();
    lines
}

/// From the fewest on, and no more than asked for.
#[test]
fn a_step_takes_as_many_of_its_jobs_nodes_as_its_tasks_need_as_root() {
    let hosts = nodes(2);
    let script = "cpus=${SLURM_JOB_CPUS_PER_NODE%%(*}; srun -N1-2 -n $((2 * cpus)) hostname | sort -u; \
                  srun -N1-2 -n1 hostname; srun -N1-1 -n $((2 * cpus)) hostname";
    let told = hosts.cmd("n1", "salloc").args(["-N2", "--exclusive", "sh", "-c", script]).limit(60).fails();
    assert_eq!(told.text(), "n1\nn2\nn1", "{told}");
    told.says(&["1 nodes were asked for"]);
}

#[test]
fn one_step_runs_on_all_of_its_nodes_as_root() {
    let hosts = nodes(3);
    let told = hosts.cmd("n1", "srun").args(["-N3", "hostname"]).limit(60).ok();
    assert_eq!(sorted(&told.text()), ["n1", "n2", "n3"]);
    // In a container on each; the command's own variables say who is where.
    let image = images::debian();
    let show =
        "echo $SLURM_PROCID $SLURM_NODEID $SLURMD_NODENAME $(hostname) $SLURM_NNODES $SLURM_STEP_NODELIST";
    let told = hosts
        .cmd("n1", "srun")
        .args(["-w", "n[1-2]", "-l", "--container-image"])
        .arg(&image)
        .args(["sh", "-c", show])
        .limit(60)
        .ok();
    assert_eq!(sorted(&told.text()), ["0: 0 0 n1 n1 2 n[1-2]", "1: 1 1 n2 n2 2 n[1-2]"]);
    // Input goes to all, or to one.
    let told = hosts.cmd("n1", "srun").args(["-N2", "-l", "cat"]).stdin(b"a\nb\n").limit(60).ok();
    assert_eq!(sorted(&told.text()), ["0: a", "0: b", "1: a", "1: b"]);
    let told = hosts.cmd("n1", "srun").args(["-N2", "-l", "-i1", "cat"]).stdin(b"a\n").limit(60).ok();
    assert_eq!(sorted(&told.text()), ["1: a"]);
    // The highest exit code, and whose it was.
    let failing = ["-N3", "sh", "-c", "exit $SLURM_PROCID"];
    let failed = hosts.cmd("n1", "srun").args(failing).limit(60).run();
    assert_eq!(failed.rc, 2, "{failed}");
    failed.says(&["n2: task 1: Exited with exit code 1", "n3: task 2: Exited with exit code 2"]);
    // One that fails ends all, where that is asked for: it is named once, and none of those that end by it.
    let task = "[ $SLURM_NODEID = 1 ] || { echo up > up.$SLURM_NODEID; exec sleep 300; }; \
                while [ ! -e up.0 ] || [ ! -e up.2 ]; do sleep 0.1; done; exit 3";
    let failed = hosts.cmd("n1", "srun").args(["-N3", "-K", "sh", "-c", task]).limit(60).run();
    assert!(failed.rc != 0, "{failed}");
    let err = failed.err();
    let causes: Vec<&str> = err.lines().filter(|line| line.contains("Terminating")).collect();
    assert!(matches!(causes[..], [cause] if cause.ends_with("task 1 exited with 3")), "{failed}");
    failed.says(&["n2: task 1: Exited with exit code 3"]);
    // A batch script's own steps, from a node without a controller.
    std::fs::write(
        hosts.work().join("job.sh"),
        "#!/bin/sh\nsrun -l hostname\nsrun -N1 hostname\nsrun -l sh -c 'exit $SLURM_NODEID'\necho $?\n",
    )
    .unwrap();
    hosts.cmd("n1", "sbatch").args(["-N3", "-o", "out", "--wait", "job.sh"]).limit(60).ok();
    let text = std::fs::read_to_string(hosts.work().join("out")).unwrap();
    for line in ["0: n1", "1: n2", "2: n3", "2"] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
    let idle = wait(20, || hosts.cmd("n1", "squeue").arg("-h").run().text().is_empty().then_some(()));
    assert!(idle.is_some(), "jobs are left");
}

#[test]
fn tasks_are_laid_out_over_nodes_as_asked_as_root() {
    let hosts = nodes(3);
    let layout = |words: &[&str]| {
        let show = ["sh", "-c", "echo $SLURM_PROCID $SLURM_LOCALID $(hostname) $SLURM_DISTRIBUTION"];
        let told = hosts.cmd("n1", "srun").args(["-N3"]).args(words).args(show).limit(60).ok();
        sorted(&told.text())
    };
    if hosts.cmd("n1", "nproc").ok().text().trim().parse::<u32>().is_ok_and(|n| n >= 2) {
        let turns = ["0 0 n1 cyclic", "1 0 n2 cyclic", "2 0 n3 cyclic", "3 1 n1 cyclic", "4 1 n2 cyclic"];
        assert_eq!(layout(&["-n5", "-m", "cyclic"]), turns);
        let planes =
            ["0 0 n1 plane=2", "1 1 n1 plane=2", "2 0 n2 plane=2", "3 1 n2 plane=2", "4 0 n3 plane=2"];
        assert_eq!(layout(&["-n5", "-m", "plane=2"]), planes);
    }
    // Task by task, from a file; and parts of an allocation.
    std::fs::write(hosts.work().join("hosts.txt"), "n3 # first\nn1,n2\n").unwrap();
    let script = "#!/bin/sh\n\
        SLURM_HOSTFILE=$PWD/hosts.txt srun -l -m arbitrary hostname | sort\n\
        srun -N1 -n1 -w n2 hostname\n\
        srun -N1 -n1 -r2 hostname\n\
        srun -N2 -n2 -x n1 hostname | sort\n\
        srun -N1 -n1 -F ./hosts.txt hostname 2>&1 | tail -n1\n\
        srun -N1 -n1 -w n9 hostname 2>&1 | tail -n1\n";
    std::fs::write(hosts.work().join("job.sh"), script).unwrap();
    hosts.cmd("n1", "sbatch").args(["-N3", "-o", "out", "--wait", "job.sh"]).limit(60).ok();
    let text = std::fs::read_to_string(hosts.work().join("out")).unwrap();
    // However late a node of a busy machine is with the end of the step before: nothing is said of that.
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(&lines[..7], ["0: n3", "1: n1", "2: n2", "n2", "n3", "n2", "n3"], "{text}");
    assert!(lines[7].contains("1 tasks cannot be on the 3 nodes"), "{text}");
    assert!(lines[8].contains("n9 is none of the job's nodes (n[1-3])"), "{text}");
    // Jobs of their own go by such a file as by --nodelist: in whatever order, and however often a node is named.
    std::fs::write(hosts.work().join("nodes.txt"), "# two of three\n\nn3*2 n2 # and again\nn[2-3]\n")
        .unwrap();
    let told = hosts.cmd("n1", "srun").args(["-F", "nodes.txt", "-l", "hostname"]).limit(60).ok();
    assert_eq!(sorted(&told.text()), ["0: n2", "1: n3"], "{told}");
    let told = hosts.cmd("n1", "salloc").args([
        "-Q",
        "--nodefile=nodes.txt",
        "sh",
        "-c",
        "echo $SLURM_JOB_NODELIST",
    ]);
    assert_eq!(told.limit(60).ok().text(), "n[2-3]");
    let batch =
        ["-F", "nodes.txt", "-o", "listed", "--wait", "--wrap", "echo $SLURM_JOB_NODELIST $SLURM_NNODES"];
    hosts.cmd("n1", "sbatch").args(batch).limit(60).ok();
    assert_eq!(std::fs::read_to_string(hosts.work().join("listed")).unwrap(), "n[2-3] 2\n");
    let told =
        hosts.cmd("n1", "srun").args(["-F", "nodes.txt", "-m", "arbitrary", "-n4", "-O", "-l", "hostname"]);
    assert_eq!(sorted(&told.limit(60).ok().text()), ["0: n3", "1: n3", "2: n2", "3: n2"]);
    for (list, why) in [("n[1", "nodes.txt"), ("n1*0", "how often"), ("# none\n", "it names no node")] {
        std::fs::write(hosts.work().join("nodes.txt"), list).unwrap();
        let told = hosts.cmd("n1", "srun").args(["-F", "nodes.txt", "hostname"]).fails();
        told.says(&["Invalid node list specified: nodes.txt", why]);
    }
    hosts
        .cmd("n1", "srun")
        .args(["-F", "no.txt", "true"])
        .fails()
        .says(&["cannot read the list of nodes no.txt"]);
    // What to leave out may stand in a file, too, for jobs and for steps.
    std::fs::write(hosts.work().join("bad.txt"), "n1 # slow\nn3*2\n").unwrap();
    let told = hosts.cmd("n1", "srun").args(["-x", "./bad.txt", "hostname"]).limit(60).ok();
    assert_eq!(told.text(), "n2");
    let batch = ["-N3", "-x", "none/there.txt", "--wrap", "true"];
    hosts.cmd("n1", "sbatch").args(batch).fails().says(&["cannot read the list of nodes none/there.txt"]);
    let told =
        hosts.cmd("n1", "salloc").args(["-Q", "-N3", "srun", "-N1", "-n1", "-x", "./bad.txt", "hostname"]);
    assert_eq!(told.limit(60).ok().text(), "n2");
    let told = hosts.cmd("n1", "srun").args(["-w", "n1", "-x", "./bad.txt", "true"]).fails();
    told.says(&["a node stands both in --nodelist and in --exclude"]);
}

#[test]
fn steps_with_cpus_of_their_own_wait_for_them_and_others_do_not_as_root() {
    let hosts = nodes(3);
    // A core on each node: one step has those of two, and the third is free.
    let script = "#!/bin/sh\n\
        srun --exclusive -N2 -n2 sh -c 'hostname >> held; until [ -e go ]; do sleep 0.1; done; touch gone' &\n\
        until [ \"$(cat held 2>/dev/null | wc -l)\" = 2 ]; do sleep 0.1; done\n\
        srun --exclusive -N1 -n1 sh -c 'hostname > free'\n\
        srun --exact --immediate=1 -N2 -n2 touch ran 2> busy; echo $? >> busy\n\
        srun --overlap -N3 -n3 hostname > shared\n\
        srun --exact -N2 -n2 sh -c 'ls gone; hostname' > late 2> waits &\n\
        until grep -q 'temporarily disabled' waits 2>/dev/null; do sleep 0.1; done\n\
        sort late > early\n\
        touch go\n\
        wait\n";
    std::fs::write(hosts.work().join("job.sh"), script).unwrap();
    hosts.cmd("n1", "sbatch").args(["-N3", "-n3", "-o", "out", "--wait", "job.sh"]).limit(120).ok();
    let read = |name: &str| std::fs::read_to_string(hosts.work().join(name)).unwrap_or_default();
    assert_eq!(sorted(&read("held")), ["n1", "n2"], "{}", read("out"));
    assert_eq!(read("free"), "n3\n", "{}", read("out"));
    let busy = read("busy");
    assert!(busy.contains("Requested nodes are busy") && busy.ends_with("\n1\n"), "{busy}");
    assert!(!hosts.work().join("ran").exists(), "{busy}");
    assert_eq!(sorted(&read("shared")), ["n1", "n2", "n3"], "{}", read("out"));
    assert_eq!(read("early"), "", "it did not wait");
    // On two nodes, once one of those of the first step is free beside the third.
    let late = sorted(&read("late"));
    let on_two = late.len() == 4 && late[..2] == ["gone", "gone"] && late[2] != late[3];
    assert!(on_two, "{late:?}{}{}", read("waits"), read("out"));
    assert!(read("waits").contains("srun: Step created for StepId="), "{}", read("waits"));
}

#[test]
fn a_node_that_cannot_start_its_part_is_named_and_the_others_end_as_root() {
    let hosts = nodes(3);
    for name in ["n1", "n2"] {
        std::fs::create_dir(hosts.work().join(name)).unwrap();
        berth_tests::machine::give(&hosts.work().join(name), hosts.user());
    }
    let begun = std::time::Instant::now();
    let told = hosts.cmd("n1", "srun").args(["-N3", "-o", "%N/out", "sleep", "600"]).limit(90).fails();
    told.says(&["n3", "n3/out", "No such file"]);
    assert!(begun.elapsed().as_secs() < 60, "it took {:?}", begun.elapsed());
    // Nothing is left of it.
    for name in ["n1", "n2", "n3"] {
        hosts.wait_node(name, "idle", 30);
    }
    // Each node writes its own file.
    std::fs::create_dir(hosts.work().join("n3")).unwrap();
    berth_tests::machine::give(&hosts.work().join("n3"), hosts.user());
    hosts.cmd("n1", "srun").args(["-N3", "-o", "%N/out.%t", "hostname"]).limit(60).ok();
    for (task, name) in ["n1", "n2", "n3"].iter().enumerate() {
        let file = hosts.work().join(name).join(format!("out.{task}"));
        assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), *name);
    }
}

#[test]
fn much_output_of_many_nodes_keeps_its_lines_and_input_reaches_all_as_root() {
    let hosts = nodes(4);
    let each = 30_000;
    let script = format!("seq -f 'line %.0f of a task that prints without end' {each}");
    let told = hosts.cmd("n1", "srun").args(["-N4", "-l", "sh", "-c", &script]).limit(120).ok().text();
    let mut next = [1; 4];
    for line in told.lines() {
        let (task, rest) = line.split_once(": ").unwrap();
        let at: usize = task.trim().parse().unwrap();
        assert_eq!(rest, format!("line {} of a task that prints without end", next[at]));
        next[at] += 1;
    }
    assert_eq!(next, [each + 1; 4]);
    // The same input for all, more than any buffer holds.
    let mut bytes = Vec::with_capacity(48 << 20);
    let mut state = 88_172_645_463_325_252_u64;
    while bytes.len() < 48 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    std::fs::write(hosts.work().join("bytes"), &bytes).unwrap();
    let sum = hosts.cmd("n1", "sha256sum").arg("bytes").ok().text();
    let sum = sum.split_whitespace().next().unwrap().to_string();
    let told = hosts.cmd("n1", "sh").args(["-c", "srun -N4 sha256sum < bytes"]).limit(120).ok().text();
    assert_eq!(told.lines().filter(|l| l.starts_with(&sum)).count(), 4, "{told}");
    // Variables for torch.distributed: one port, and the place of the first task, for all.
    let show = "echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $GROUP_RANK $MASTER_ADDR $MASTER_PORT";
    let told = hosts.cmd("n1", "srun").args(["-N4", "--pytorch", "sh", "-c", show]).limit(60).ok().text();
    let lines = sorted(&told);
    let port = lines[0].rsplit(' ').next().unwrap().to_string();
    assert!(port.parse::<u16>().is_ok_and(|p| p >= 15_000), "{told}");
    // There is no name service: the first node is found by its address, and by itself as every machine is.
    let address = |rank| if rank == 0 { "127.0.0.1".to_string() } else { hosts.address("n1") };
    let expected: Vec<String> = (0..4).map(|r| format!("{r} 4 0 1 {r} {} {port}", address(r))).collect();
    assert_eq!(lines, expected);
}

#[test]
fn a_thousand_tasks_that_print_at_once_keep_their_lines_whole_as_root() {
    let hosts = nodes(8);
    let (tasks, each) = (1_000, 20);
    // Lines in pieces, so that those of others have every chance to come in between.
    let script = format!(
        "n=0; while [ $n -lt {each} ]; do printf 'line '; printf \"$n of \"; echo $SLURM_PROCID; n=$((n+1)); done"
    );
    let options = ["-N8", "-O", "-n", &tasks.to_string(), "-l", "sh", "-c", &script];
    let told = hosts.cmd("n1", "srun").args(options).limit(120).ok().text();
    let mut next = vec![0; tasks];
    for line in told.lines() {
        let (task, rest) = line.split_once(": ").unwrap();
        let task: usize = task.trim().parse().unwrap();
        assert_eq!(rest, format!("line {} of {task}", next[task]));
        next[task] += 1;
    }
    assert_eq!(next, vec![each; tasks]);
}

/// The task of a terminal: says where it is and what it reads, and goes on until the terminal has another size.
const ON_A_TERMINAL: &str = "hostname; stty size\ntrap 'echo interrupted' INT\ntrap 'stty size; exit 7' WINCH\n\
    read x; echo got $x\nwhile :; do sleep 0.1; done\n";

#[test]
fn a_terminal_on_another_node_is_typed_at_and_has_the_size_of_ones_own_as_root() {
    let hosts = nodes(2);
    std::fs::write(hosts.work().join("task"), ON_A_TERMINAL).unwrap();
    // The shell of the terminal gives it another size while srun is in its foreground.
    let line = "stty rows 31 cols 77; (until [ -e resize ]; do sleep 0.05; done; stty rows 43 cols 99 < /dev/tty) & \
                srun -w n2 --pty sh ./task";
    let mut step = hosts.cmd("n1", "script").args(["-qec", line, "/dev/null"]).stdin_open().spawn();
    step.wait_for("31 77", 60);
    step.write(b"one\r");
    step.wait_for("got one", 20);
    step.write(b"\x03");
    step.wait_for("interrupted", 20);
    std::fs::write(hosts.work().join("resize"), "").unwrap();
    step.wait_for("43 99", 20);
    let told = step.finish();
    assert_eq!(told.rc, 7, "{told}");
    assert!(told.text().lines().any(|line| line.trim() == "n2"), "{told}");
}

/// The task of a signal: says on which node it was caught, and ends with the last.
const CAUGHT: &str = "on=$(hostname)\nfor s in INT USR1; do trap \"echo $s on $on\" $s; done\n\
    trap \"echo TERM on $on; exit 5\" TERM\necho ready on $on\nwhile :; do sleep 0.1; done\n";

/// Waits until a text was said so often.
fn heard(step: &Running, text: &str, times: usize) {
    let said = || String::from_utf8_lossy(&step.stdout()).matches(text).count();
    let all = wait(20, || (said() >= times).then_some(()));
    assert!(all.is_some(), "'{text}' was said {} times and not {times}:\n{}", said(), shown(step));
}

const ASKS: &str = "one more within 1 sec to abort";
const SENDS: &str = "sending Ctrl-C to StepId=";

/// Interrupts once more, until a text was said so often: on a busy machine a second may be over, and srun asks anew.
fn again(step: &Running, text: &str, times: usize) {
    let said = |step: &Running, text: &str| shown(step).matches(text).count();
    for _ in 0..10 {
        let asked = said(step, ASKS);
        step.signal(Signal::SIGINT);
        let _ = wait(20, || (said(step, text) >= times || said(step, ASKS) > asked).then_some(()));
        if said(step, text) >= times {
            return;
        }
    }
    panic!("'{text}' was not said {times} times:\n{}", shown(step));
}

fn shown(step: &Running) -> String {
    String::from_utf8_lossy(&step.stdout()).into_owned()
}

#[test]
fn signals_reach_the_tasks_of_all_nodes_and_ctrl_c_asks_before_it_interrupts_and_kills_as_root() {
    let hosts = nodes(3);
    std::fs::write(hosts.work().join("task"), CAUGHT).unwrap();
    // What srun says comes where tasks speak: it is waited for.
    let begin = || {
        let step = hosts.cmd("n1", "sh").args(["-c", "exec srun -N3 sh ./task 2>&1"]).limit(120).spawn();
        heard(&step, "ready on n", 3);
        step
    };
    let step = begin();
    step.signal(Signal::SIGUSR1);
    (1..=3).for_each(|n| heard(&step, &format!("USR1 on n{n}"), 1));
    step.signal(Signal::SIGTERM);
    (1..=3).for_each(|n| heard(&step, &format!("TERM on n{n}"), 1));
    let told = step.finish();
    assert_eq!(told.rc, 5, "{told}");
    // Once: how the tasks are. Twice within a second: they have it. Three times: the end.
    let step = begin();
    step.signal(Signal::SIGINT);
    heard(&step, ASKS, 1);
    heard(&step, "tasks 0-2: running", 1);
    again(&step, SENDS, 1);
    (1..=3).for_each(|n| heard(&step, &format!("INT on n{n}"), 1));
    // A second later it is the first again.
    std::thread::sleep(std::time::Duration::from_millis(1200));
    let asked = shown(&step).matches(ASKS).count();
    step.signal(Signal::SIGINT);
    heard(&step, ASKS, asked + 1);
    assert!(!shown(&step).contains("forcing"), "{}", shown(&step));
    again(&step, SENDS, 2);
    again(&step, "srun: forcing job termination", 1);
    let told = step.finish();
    assert_eq!(told.rc, 137, "{told}");
    assert!(told.text().contains("srun: forcing job termination"), "{told}");
    for name in ["n1", "n2", "n3"] {
        hosts.wait_node(name, "idle", 30);
    }
}
