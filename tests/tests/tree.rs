//! Steps that are launched by a tree, on real hosts: heads carry to their branches, what they cannot carry comes directly, and nobody is
//! believed but the controller.

use berth_tests::sandbox::wait;
use berth_tests::stolen::{copy, say_of, signed_start, silent};
use berth_tests::{Hosts, Running};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// n1, n4 and n7 are the heads of n[1-3], n[4-6] and n[7-8]: in the order of the step, three nodes each.
const CONFIG: &str = "launch_tree_from = 4\nlaunch_tree_width = 3\nkill_wait_seconds = 2\n";
const HEADS: [(&str, usize); 3] = [("n1", 2), ("n4", 2), ("n7", 1)];
const OTHERS: [&str; 5] = ["n2", "n3", "n5", "n6", "n8"];

fn names() -> Vec<String> {
    (1..=8).map(|n| format!("n{n}")).collect()
}

fn log(hosts: &Hosts, host: &str, daemon: &str) -> String {
    std::fs::read_to_string(hosts.state(host).join(format!("log/{daemon}.log"))).unwrap_or_default()
}

/// Whether the Start of a step came to a node by another one.
fn brought(hosts: &Hosts, step: &str, node: &str) -> bool {
    log(hosts, node, "agent").contains(&format!("step {step}: its start came by another node"))
}

/// How many others the Start of a step was to be carried to by this node.
fn carries(hosts: &Hosts, step: &str, head: &str, others: usize) -> bool {
    let words = format!("step {step}: {head} carries its start to {others} others");
    log(hosts, "n1", "controller").contains(&words)
}

/// Eight nodes, all of which have a port that the controller knows: steps are launched by a tree.
fn eight() -> Hosts {
    let hosts = Hosts::cluster(8, CONFIG);
    let whole = || {
        let step = format!("{}.0", over_all(&hosts));
        HEADS.iter().all(|(head, others)| carries(&hosts, &step, head, *others)).then_some(())
    };
    assert!(wait(60, whole).is_some(), "{}", log(&hosts, "n1", "controller"));
    idle(&hosts);
    hosts
}

/// Runs a step over all nodes, once on each, and gives its job.
fn over_all(hosts: &Hosts) -> String {
    let told = hosts.cmd("n1", "srun").args(["-N8", "sh", "-c", "echo $(hostname) $SLURM_JOB_ID"]).ok();
    let text = told.text();
    let mut lines: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    lines.sort_unstable();
    assert_eq!(lines.iter().map(|(host, _)| *host).collect::<Vec<_>>(), names(), "{told}");
    lines[0].1.to_string()
}

/// Waits until no node has anything to do, or a file of a step.
fn idle(hosts: &Hosts) {
    for name in names() {
        hosts.wait_node(&name, "idle", 60);
        let spool = hosts.state(&name).join("spool");
        let left =
            || std::fs::read_dir(&spool).map_or(0, |d| d.flatten().filter(|e| e.path().is_dir()).count());
        assert!(wait(30, || (left() == 0).then_some(())).is_some(), "{name}: {} in its spool", left());
    }
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    lines.sort();
    lines
}

#[test]
fn heads_carry_the_starts_of_a_wide_step_to_their_branches_as_root() {
    let hosts = eight();
    // On a busy machine a node may be told directly before another one is there: then the next step shows it.
    let carried = || {
        let step = format!("{}.0", over_all(&hosts));
        let all = || OTHERS.iter().all(|node| brought(&hosts, &step, node)).then_some(());
        wait(5, all).map(|()| step)
    };
    let step = wait(90, carried).expect("no step came to all by others");
    for (head, others) in HEADS {
        assert!(carries(&hosts, &step, head, others), "{}", log(&hosts, "n1", "controller"));
        assert!(!brought(&hosts, &step, head), "{head} is told by the controller");
    }
    // A narrow step is launched as ever.
    let told = hosts.cmd("n1", "srun").args(["-N3", "sh", "-c", "echo $SLURM_JOB_ID"]).ok();
    let narrow = format!("step {}.0: ", told.text().lines().next().unwrap());
    assert!(!log(&hosts, "n1", "controller").contains(&narrow), "{narrow}");
    // Steps of a job beside each other, and one behind them.
    let script = "#!/bin/sh\n\
        srun --overlap -N8 sh -c 'echo one $(hostname)' > one &\n\
        srun --overlap -N8 sh -c 'echo two $(hostname)' > two &\n\
        wait\n\
        srun -N8 sh -c 'echo three $(hostname); exit $SLURM_PROCID' > three; echo $? > code\n";
    std::fs::write(hosts.work().join("job.sh"), script).unwrap();
    let options = ["-N8", "--exclusive", "-o", "out", "--wait", "job.sh"];
    hosts.cmd("n1", "sbatch").args(options).limit(120).ok();
    let read = |name: &str| std::fs::read_to_string(hosts.work().join(name)).unwrap_or_default();
    for name in ["one", "two", "three"] {
        let all: Vec<String> = names().into_iter().map(|host| format!("{name} {host}")).collect();
        assert_eq!(sorted(&read(name)), all, "{}", read("out"));
    }
    assert_eq!(read("code").trim(), "7");
    // Components of one job, with a tree each.
    let words = ["-N4", "-n4", "echo", "first", ":", "-N4", "-n4", "echo", "second"];
    let told = hosts.cmd("n1", "srun").args(words).limit(120).ok();
    let first = vec!["first".to_string(); 4];
    assert_eq!(sorted(&told.text()), [first, vec!["second".to_string(); 4]].concat(), "{told}");
    idle(&hosts);
}

#[test]
fn a_head_that_is_silent_or_cut_off_keeps_no_other_node_from_its_start_as_root() {
    let hosts = eight();
    let stopped = Pid::from_raw(hosts.pid("n4", "agent"));
    kill(stopped, Signal::SIGSTOP).unwrap();
    hosts.link("n7", false);
    let task = "echo $(hostname) $SLURM_JOB_ID; exec sleep 600";
    let mut step = hosts.cmd("n1", "srun").args(["-N8", "sh", "-c", task]).limit(200).spawn();
    for node in ["n1", "n2", "n3", "n5", "n6", "n8"] {
        step.wait_for(&format!("{node} "), 50);
    }
    let said = String::from_utf8_lossy(&step.stdout()).into_owned();
    let key = format!("{}.0", said.lines().next().unwrap().split_once(' ').unwrap().1);
    assert!(carries(&hosts, &key, "n4", 2) && carries(&hosts, &key, "n7", 1), "they were to carry");
    for node in ["n5", "n6", "n8"] {
        assert!(!brought(&hosts, &key, node), "{node} had its start from somebody who says nothing");
    }
    // What the heads carry now comes too late, if it comes, and changes nothing.
    kill(stopped, Signal::SIGCONT).unwrap();
    hosts.link("n7", true);
    for node in ["n4", "n7"] {
        step.wait_for(&format!("{node} "), 100);
    }
    let late = || ["n5", "n6", "n8"].iter().find(|node| brought(&hosts, &key, node)).copied();
    assert_eq!(wait(5, late), None, "it began by what came too late");
    step.signal(Signal::SIGTERM);
    let told = step.finish();
    let text = told.text();
    let mut lines: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once(' ')?.0)).collect();
    lines.sort_unstable();
    assert_eq!(lines, names(), "once on each: {told}");
    idle(&hosts);
}

/// What the controller says of nodes that were sent their Starts of a step directly, as they had not confirmed what was carried to them.
fn told_directly(hosts: &Hosts, step: &str) -> Option<String> {
    let words = format!("step {step}: what is carried to ");
    let log = log(hosts, "n1", "controller");
    log.lines().find(|line| line.contains(&words) && line.contains("5-6")).map(str::to_string)
}

/// The way to n5 and n6 leads by somebody who stands still, and the first task ends its step, or its job, before they are told directly. On a
/// busy machine it may come later than that: then the next one shows it, and nothing is left of any.
#[test]
fn a_step_that_is_cancelled_on_its_way_leaves_nothing_as_root() {
    let hosts = eight();
    let stopped = Pid::from_raw(hosts.pid("n4", "agent"));
    let task = |what: &str| format!("[ $SLURM_PROCID != 0 ] || scancel {what}; exec sleep 600");
    let script = format!(
        "#!/bin/sh\nsrun -N8 sh -c '{}'\necho $? > code.$SLURM_JOB_ID\nexec sleep 600\n",
        task("$SLURM_JOB_ID.0")
    );
    std::fs::write(hosts.work().join("job.sh"), script).unwrap();
    let steps = || hosts.cmd("n1", "squeue").args(["-s", "-h", "-o", "%i"]).ok().text();
    let step_in_time = || {
        kill(stopped, Signal::SIGSTOP).unwrap();
        let options = ["--parsable", "-N8", "--exclusive", "-o", "out", "job.sh"];
        let job = hosts.cmd("n1", "sbatch").args(options).ok().text().trim().to_string();
        let step = format!("{job}.0");
        let told = wait(60, || told_directly(&hosts, &step));
        kill(stopped, Signal::SIGCONT).unwrap();
        let told =
            told.unwrap_or_else(|| panic!("n5 and n6 are not told\n{}", log(&hosts, "n1", "controller")));
        let code = hosts.work().join(format!("code.{job}"));
        let code = || std::fs::read_to_string(&code).ok().filter(|code| !code.is_empty());
        let code = wait(60, code);
        assert!(code.as_ref().is_some_and(|code| code.trim() != "0"), "{code:?}");
        let left = || (!steps().lines().any(|line| line.trim() == step)).then_some(());
        assert!(wait(30, left).is_some(), "{}", steps());
        hosts.cmd("n1", "scancel").arg(&job).ok();
        idle(&hosts);
        told.contains("is not confirmed before more is said of the step")
    };
    assert!((0..10).any(|_| step_in_time()), "no step was cancelled on its way");
    // The same of a job: nobody is told of it any more.
    // The first task alone: one that is ended as it writes leaves the file empty.
    let ends = format!("[ $SLURM_PROCID != 0 ] || echo $SLURM_JOB_ID > id; {}", task("$SLURM_JOB_ID"));
    let job_in_time = || {
        kill(stopped, Signal::SIGSTOP).unwrap();
        let step = hosts.cmd("n1", "srun").args(["-N8", "sh", "-c", &ends]).limit(120).spawn();
        let ended = wait(60, || {
            let states = hosts.cmd("n1", "squeue").args(["-h", "-o", "%T"]).ok().text();
            let over = states.lines().all(|state| state.trim() == "COMPLETING");
            (over && hosts.work().join("id").exists()).then_some(())
        });
        kill(stopped, Signal::SIGCONT).unwrap();
        assert!(ended.is_some(), "the job does not end");
        assert_ne!(step.finish().rc, 0);
        idle(&hosts);
        let id = std::fs::read_to_string(hosts.work().join("id")).unwrap();
        std::fs::remove_file(hosts.work().join("id")).unwrap();
        let key = format!("{}.0", id.trim());
        assert!(carries(&hosts, &key, "n4", 2), "it was to be carried");
        told_directly(&hosts, &key).is_none()
    };
    assert!((0..10).any(|_| job_in_time()), "no job was cancelled on its way");
}

#[test]
fn what_a_node_brings_that_the_controller_did_not_sign_starts_nothing_as_root() {
    let hosts = Hosts::cluster(4, CONFIG);
    let listens = || log(&hosts, "n3", "agent").contains("images are given to other nodes at").then_some(());
    assert!(wait(20, listens).is_some(), "{}", log(&hosts, "n3", "agent"));
    // Who has the key of a node, with its certificate, signs as the controller does, and comes as a node does.
    let shows = copy(&hosts, "n2", "n1");
    let port = format!("{}:7818", hosts.address("n3"));
    let forged = signed_start(&hosts, "n1", &shows, "n3");
    assert_eq!(say_of(&hosts, "n1", &shows, &port, "berth-starts/1", &forged), "", "nobody is answered");
    let refused = || {
        let log = log(&hosts, "n3", "agent");
        let told = log
            .lines()
            .find(|line| line.contains("the start of a step that it brings counts for nothing"))?;
        Some(told.to_string())
    };
    let told = wait(20, refused).expect("it is not said that it counts for nothing");
    assert!(told.contains("is no controller of this cluster"), "{told}");
    // What is no such message at all, and one that stops in the middle.
    say_of(&hosts, "n1", &shows, &port, "berth-starts/1", b"\xff\xff\xff\xffnonsense");
    say_of(&hosts, "n1", &shows, &port, "berth-starts/1", &forged[..40]);
    assert!(!brought_anything(&hosts, "n3"));
    // As many as find a place come and say nothing: what n1 brings may find none, and n3 starts its part all the same.
    let silent = (0..10).map(|_| silent(&hosts, "n1", &shows, &port, "berth-starts/1"));
    let silent: Vec<Running> = silent.collect();
    let told = hosts.cmd("n1", "srun").args(["-N4", "hostname"]).ok();
    assert_eq!(sorted(&told.text()), ["n1", "n2", "n3", "n4"], "{told}");
    drop(silent);
    ["n1", "n2", "n3", "n4"].iter().for_each(|node| hosts.wait_node(node, "idle", 60));
}

fn brought_anything(hosts: &Hosts, node: &str) -> bool {
    log(hosts, node, "agent").contains("its start came by another node")
}
