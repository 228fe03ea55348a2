//! Eight hosts at once: where tasks are, what they are bound to, what they know and how they end, in forty combinations that were worked
//! out by hand from the manual pages of srun and sbatch; a registry that is asked once; a gibibyte out of them and an input into all; nodes
//! that lack something, hang or fail as a step begins.

use berth_tests::sandbox::wait;
use berth_tests::{Cmd, Hanging, Hosts, Output, Registry, images, leftovers};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Nodes n1 to n8; the first has the controller.
fn eight(config: impl FnOnce(&Hosts) -> String) -> Hosts {
    joined(8, config, Hosts::join)
}

/// So many nodes, of which each but the first comes into the cluster by this.
fn joined(count: usize, config: impl FnOnce(&Hosts) -> String, join: impl Fn(&Hosts, &str, &str)) -> Hosts {
    let names: Vec<String> = (1..=count).map(|n| format!("n{n}")).collect();
    let hosts = Hosts::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let config = config(&hosts);
    hosts.up("n1", &config);
    let token = hosts.token("n1", &["--uses", &(count - 1).to_string()]);
    names[1..].iter().for_each(|name| join(&hosts, name, &token));
    names.iter().for_each(|name| hosts.wait_node(name, "idle", 60));
    hosts
}

/// Has a host join that has mounts of its own, among them what this command makes.
fn join_apart(hosts: &Hosts, host: &str, token: &str, mounts: &str) {
    let join = format!("{mounts} && exec berth join {} {token} --detach", hosts.address("n1"));
    hosts.root(host, "unshare").args(["--mount", "sh", "-c", &join]).ok();
}

/// Waits until these nodes have nothing to do, and no file of a step.
fn idle(hosts: &Hosts, count: usize) {
    for name in (1..=count).map(|n| format!("n{n}")) {
        hosts.wait_node(&name, "idle", 40);
        // As its agent sees it, whose mounts may be its own.
        let left = || {
            let root = PathBuf::from(format!("/proc/{}/root", hosts.pid(&name, "agent")));
            let spool = root.join(hosts.state(&name).strip_prefix("/").unwrap()).join("spool");
            std::fs::read_dir(spool).map_or(0, |d| d.flatten().filter(|e| e.path().is_dir()).count())
        };
        let none = wait(20, || (left() == 0).then_some(()));
        assert!(none.is_some(), "{name}: {} in its spool", left());
    }
}

/// One step of all nodes or some: its options, what each task does, and what comes of it.
struct Case {
    options: &'static str,
    task: &'static str,
    /// Exit code.
    code: i32,
    /// What the tasks printed, see [`shown`].
    shows: &'static str,
}

/// Where each task is: `NODE=` and the global numbers there, in the order of the local numbers.
const WHERE: &str = "echo $(hostname) $SLURM_LOCALID $SLURM_PROCID";
/// The CPUs that a task may use.
const CPUS: &str =
    "echo $(hostname) $SLURM_LOCALID $(sed -n 's/^Cpus_allowed_list:[^0-9]*//p' /proc/self/status)";

const fn case(options: &'static str, task: &'static str, code: i32, shows: &'static str) -> Case {
    Case { options, task, code, shows }
}

/// Lines of node, local number and a word, as `n1=word,word n2=word`: or what is no such line, sorted, once each.
fn shown(output: &Output) -> String {
    let mut nodes: BTreeMap<String, BTreeMap<u32, String>> = BTreeMap::new();
    let mut others: Vec<String> = Vec::new();
    for line in output.text().lines() {
        let mut words = line.splitn(3, ' ');
        let parsed = (words.next(), words.next().and_then(|w| w.parse().ok()), words.next());
        if let (Some(node), Some(local), Some(word)) = parsed
            && node.len() == 2
            && node.starts_with('n')
        {
            let before = nodes.entry(node.to_string()).or_default().insert(local, word.to_string());
            assert!(before.is_none(), "two tasks have the local number {local} on {node}:\n{output}");
        } else {
            others.push(line.to_string());
        }
    }
    others.sort();
    others.dedup();
    let of = |(node, tasks): (String, BTreeMap<u32, String>)| {
        assert!(tasks.keys().copied().eq(0..u32::try_from(tasks.len()).unwrap()), "{node}: {tasks:?}");
        format!("{node}={}", tasks.into_values().collect::<Vec<_>>().join(","))
    };
    nodes.into_iter().map(of).chain(others).collect::<Vec<_>>().join(" ")
}

/// Steps of a job with all eight nodes. Each node has two CPUs or more.
const CASES: [Case; 40] = [
    // Distribution. Without a word, and by blocks: as even as it goes, the first nodes with one more.
    case("", WHERE, 0, "n1=0 n2=1 n3=2 n4=3 n5=4 n6=5 n7=6 n8=7"),
    case("-n16 -O", WHERE, 0, "n1=0,1 n2=2,3 n3=4,5 n4=6,7 n5=8,9 n6=10,11 n7=12,13 n8=14,15"),
    case("-n12 -O -m block", WHERE, 0, "n1=0,1 n2=2,3 n3=4,5 n4=6,7 n5=8 n6=9 n7=10 n8=11"),
    case("-n16 -O -m cyclic", WHERE, 0, "n1=0,8 n2=1,9 n3=2,10 n4=3,11 n5=4,12 n6=5,13 n7=6,14 n8=7,15"),
    case("-n12 -O -m cyclic", WHERE, 0, "n1=0,8 n2=1,9 n3=2,10 n4=3,11 n5=4 n6=5 n7=6 n8=7"),
    case("-n16 -O -m plane=2", WHERE, 0, "n1=0,1 n2=2,3 n3=4,5 n4=6,7 n5=8,9 n6=10,11 n7=12,13 n8=14,15"),
    case(
        "-n24 -O -m plane=2",
        WHERE,
        0,
        "n1=0,1,16,17 n2=2,3,18,19 n3=4,5,20,21 n4=6,7,22,23 n5=8,9 n6=10,11 n7=12,13 n8=14,15",
    ),
    case("-N4 -n10 -O -m plane=3", WHERE, 0, "n1=0,1,2 n2=3,4,5 n3=6,7,8 n4=9"),
    case("--ntasks-per-node=2 -O", WHERE, 0, "n1=0,1 n2=2,3 n3=4,5 n4=6,7 n5=8,9 n6=10,11 n7=12,13 n8=14,15"),
    case("-N3", WHERE, 0, "n1=0 n2=1 n3=2"),
    // Which nodes: by name, without some, from the how manieth on.
    case("-N2 -w n8,n3", WHERE, 0, "n3=0 n8=1"),
    case("-N3 -x n[1-5]", WHERE, 0, "n6=0 n7=1 n8=2"),
    case("-N2 -r3", WHERE, 0, "n4=0 n5=1"),
    case("-N4 -n8 -O -w n[5-8] -m cyclic", WHERE, 0, "n5=0,4 n6=1,5 n7=2,6 n8=3,7"),
    case("-n6 -O -m arbitrary", WHERE, 0, "n1=3 n2=5 n5=2 n7=4 n8=0,1"),
    // What tasks are bound to.
    case("--cpu-bind=map_cpu:0", CPUS, 0, "n1=0 n2=0 n3=0 n4=0 n5=0 n6=0 n7=0 n8=0"),
    case("--cpu-bind=map_cpu:1", CPUS, 0, "n1=1 n2=1 n3=1 n4=1 n5=1 n6=1 n7=1 n8=1"),
    case(
        "-n16 -O --cpu-bind=map_cpu:1,0",
        CPUS,
        0,
        "n1=1,0 n2=1,0 n3=1,0 n4=1,0 n5=1,0 n6=1,0 n7=1,0 n8=1,0",
    ),
    case("--cpu-bind=mask_cpu:0x2", CPUS, 0, "n1=1 n2=1 n3=1 n4=1 n5=1 n6=1 n7=1 n8=1"),
    case(
        "-n16 -O --cpu-bind=mask_cpu:0x1,0x3",
        CPUS,
        0,
        "n1=0,0-1 n2=0,0-1 n3=0,0-1 n4=0,0-1 n5=0,0-1 n6=0,0-1 n7=0,0-1 n8=0,0-1",
    ),
    case("-n16 -O --cpu-bind=rank", CPUS, 0, "n1=0,1 n2=0,1 n3=0,1 n4=0,1 n5=0,1 n6=0,1 n7=0,1 n8=0,1"),
    case("-N2 -n4 -O -m cyclic --cpu-bind=rank", CPUS, 0, "n1=0,1 n2=0,1"),
    case("-N2 --cpu-bind=map_cpu:999", CPUS, 1, ""),
    // What tasks know.
    case(
        "-n12 -O",
        "echo $SLURM_NTASKS $SLURM_STEP_NUM_TASKS $SLURM_STEP_NUM_NODES $SLURM_STEP_TASKS_PER_NODE",
        0,
        "12 12 8 2(x4),1(x4)",
    ),
    case("", "echo $SLURM_NNODES $SLURM_JOB_NUM_NODES $SLURM_JOB_NODELIST", 0, "8 8 n[1-8]"),
    case("-N3 -x n[1-2],n5", "echo $SLURM_STEP_NODELIST $SLURM_STEP_NUM_NODES", 0, "n[3-4,6] 3"),
    case("-N3 -w n[2-4]", "echo $(hostname) 0 $SLURM_NODEID:$SLURMD_NODENAME", 0, "n2=0:n2 n3=1:n3 n4=2:n4"),
    case("-N2 -n4 -O", "echo $(hostname) $SLURM_LOCALID [$SLURM_GTIDS]", 0, "n1=[0,1],[0,1] n2=[2,3],[2,3]"),
    case(
        "-N2 -n4 -O -m cyclic",
        "echo $(hostname) $SLURM_LOCALID [$SLURM_GTIDS]",
        0,
        "n1=[0,2],[0,2] n2=[1,3],[1,3]",
    ),
    case("-N2 --export=ALL,MINE=given", "echo $MINE $OUTSIDE", 0, "given outside"),
    case("-N2 --export=MINE=given", "echo $MINE ${OUTSIDE-unset}", 0, "given unset"),
    case("-m cyclic -n16 -O", "echo $SLURM_DISTRIBUTION", 0, "cyclic"),
    case(
        "-N4 -r1 --pytorch",
        "echo $(hostname) 0 $RANK/$WORLD_SIZE@$MASTER_ADDR",
        0,
        "n2=0/4@10.77.0.2 n3=1/4@10.77.0.2 n4=2/4@10.77.0.2 n5=3/4@10.77.0.2",
    ),
    // How it ends: the highest exit code, a signal, programs that are not there.
    case("", "exit $SLURM_PROCID", 7, ""),
    case("", "[ $SLURM_PROCID != 4 ] || exit 9", 9, ""),
    case("", "[ $SLURM_PROCID != 5 ] || kill -9 $$", 137, ""),
    case("-K", "[ $SLURM_PROCID != 6 ] || exit 11; sleep 300", 143, ""),
    case("-W1", "[ $SLURM_PROCID != 7 ] || exit 0; exec sleep 300", 143, ""),
    case(
        "--multi-prog",
        "programs",
        5,
        "first n1 last n8 others 1 others 2 others 3 others 4 others 5 others 6",
    ),
    case("-N2 -O -n4 --mpi=none", "exit $((SLURM_NODEID * 2 + SLURM_LOCALID))", 3, ""),
];

#[test]
fn forty_combinations_on_eight_nodes_are_as_by_hand_as_root() {
    let hosts = eight(|_| String::new());
    let two = hosts.cmd("n1", "nproc").ok().text().trim().parse::<u32>().is_ok_and(|n| n >= 2);
    assert!(two, "the expectations are for nodes with two CPUs or more");
    std::fs::write(hosts.work().join("hosts.txt"), "n8\nn8\nn5\nn1 # by its place\nn7\nn2\n").unwrap();
    let programs =
        "0 sh -c 'echo first $(hostname)'\n7 sh -c 'echo last $(hostname); exit 5'\n* echo others %t\n";
    std::fs::write(hosts.work().join("programs"), programs).unwrap();
    // One job for all of them: what a step is within its job is what is shown here, and it takes less time.
    let mut script = String::from("#!/bin/bash\nexport SLURM_HOSTFILE=$PWD/hosts.txt OUTSIDE=outside\n");
    for (at, case) in CASES.iter().enumerate() {
        let arbitrary = if case.options.contains("arbitrary") { "" } else { "env -u SLURM_HOSTFILE " };
        let words = if case.options.contains("--multi-prog") {
            case.task.to_string()
        } else {
            format!("sh -c '{}'", case.task.replace('\'', "'\\''"))
        };
        let nodes = if case.options.contains("-N") || arbitrary.is_empty() { "" } else { "-N8" };
        script += &format!(
            "{arbitrary}srun {nodes} {} {words} > out.{at} 2> err.{at}; echo $? > code.{at}\n",
            case.options
        );
    }
    std::fs::write(hosts.work().join("job.sh"), script).unwrap();
    let options = ["-N8", "--exclusive", "-o", "out", "-e", "err", "--wait", "job.sh"];
    hosts.cmd("n1", "sbatch").args(options).limit(180).ok();
    let read = |name: &str, at: usize| {
        std::fs::read_to_string(hosts.work().join(format!("{name}.{at}"))).unwrap_or_default()
    };
    let mut wrong = Vec::new();
    for (at, case) in CASES.iter().enumerate() {
        let told = Cmd::new("cat").arg(hosts.work().join(format!("out.{at}"))).ok();
        let code = read("code", at).trim().parse::<i32>().unwrap_or(-1);
        if (code, shown(&told).as_str()) != (case.code, case.shows) {
            wrong.push(format!(
                "{at}: srun {} sh -c '{}'\n  expected {} {}\n  and not  {code} {}\n{}",
                case.options,
                case.task,
                case.code,
                case.shows,
                shown(&told),
                read("err", at)
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    (1..=8).for_each(|n| hosts.wait_node(&format!("n{n}"), "idle", 30));
}

#[test]
fn eight_nodes_that_start_at_once_ask_the_registry_once_and_stream_a_gibibyte_as_root() {
    let mut registry = None;
    let hosts = eight(|hosts| {
        let made = Registry::on(hosts, "n1", &hosts.address("n1"), false);
        registry.insert(made).without_tls()
    });
    let registry = registry.unwrap();
    for n in 1..=8 {
        let log = || std::fs::read_to_string(hosts.state(&format!("n{n}")).join("log/agent.log")).unwrap();
        let gives = || log().contains("images are given to other nodes at").then_some(());
        assert!(wait(20, gives).is_some(), "{}", log());
    }
    let image = registry.push(&images::layers(), "team/eight:1", &[]);
    let container = format!("--container-image={image}");
    let told = hosts.cmd("n1", "srun").args(["-N8", &container, "cat", "/data/kept"]).limit(120).ok();
    assert_eq!(told.text().lines().count(), 8, "{told}");
    let mut asked: BTreeMap<String, usize> = BTreeMap::new();
    registry.fetched().into_iter().for_each(|path| *asked.entry(path).or_default() += 1);
    assert!(!asked.is_empty() && asked.values().all(|times| *times == 1), "{asked:?}");
    // And for what the name means, and the image's manifest, as often as for one node, or once more.
    let container = format!("--container-image={}", registry.push(&images::busybox(), "team/one:1", &[]));
    hosts.cmd("n1", "srun").args(["-N1", &container, "true"]).limit(60).ok();
    let (of_eight, of_one) = (registry.manifests("team/eight"), registry.manifests("team/one"));
    let close = of_eight.iter().zip(&of_one).all(|(eight, one)| *eight <= one + 1);
    assert!(of_one[1] > 0 && close, "HEAD and GET: {of_eight:?} for eight, {of_one:?} for one");
    stream_both_ways(&hosts);
}

/// Lines of 65,000 characters that a seed decides, each another one: what is lost, doubled or exchanged makes another sum.
/// Seed and number of lines are its arguments.
const STREAM: &str = r#"export LC_ALL=C
exec awk -v x="$1" -v lines="$2" 'BEGIN {
    x += 1
    for (row = 0; row < 256; row++) {
        some = ""
        for (n = 0; n < 256; n++) { x = x * 16807 % 2147483647; some = some sprintf("%c", 33 + x % 94) }
        all = all some
    }
    for (n = 0; n < lines; n++) print n " " substr(all, 1 + n % 499, 65000)
}'
"#;
/// What each node does: tells the sums of what it has read and of what it writes, in files, and does both at once.
const BOTH_WAYS: &str = "exec 3<&0\ncksum <&3 > in.$SLURM_PROCID &\n\
    sh ./stream $SLURM_PROCID $1 | cksum > sent.$SLURM_PROCID\nsh ./stream $SLURM_PROCID $1\nwait\n";
/// Takes the lines of all apart by their labels.
const SUMS: &str = r#"LC_ALL=C awk '{ print substr($0, 4) | ("cksum > got." substr($0, 1, 1)) }
    END { for (task = 0; task < 8; task++) close("cksum > got." task) }'"#;

/// A gibibyte out of eight nodes, each its own part, and at the same time an input to all of them: all sums are right.
fn stream_both_ways(hosts: &Hosts) {
    // An eighth of a gibibyte and a bit more.
    const LINES: u32 = 2066;
    std::fs::write(hosts.work().join("stream"), STREAM).unwrap();
    std::fs::write(hosts.work().join("task"), BOTH_WAYS).unwrap();
    let all = format!(
        "set -o pipefail\nsh ./stream 1000 500 > bytes && srun -N8 -l sh ./task {LINES} < bytes | {SUMS}"
    );
    hosts.cmd("n1", "bash").args(["-c", &all]).limit(150).ok();
    let sum = |name: String| std::fs::read_to_string(hosts.work().join(name)).unwrap();
    let input = hosts.cmd("n1", "sh").args(["-c", "cksum < bytes"]).ok().text();
    let mut parts = BTreeMap::new();
    for task in 0..8 {
        let (sent, got) = (sum(format!("sent.{task}")), sum(format!("got.{task}")));
        assert_eq!(got, sent, "what came of task {task}");
        assert_eq!(sum(format!("in.{task}")).trim(), input, "the input of task {task}");
        let (_, length) = got.trim().split_once(' ').unwrap();
        assert!(length.parse::<u64>().unwrap() >= (1 << 30) / 8, "{got}");
        parts.insert(sent, task);
    }
    assert_eq!(parts.len(), 8, "each has its own: {parts:?}");
}

#[test]
fn what_one_node_lacks_is_named_with_that_node_and_nothing_is_left_as_root() {
    // A directory that is shared by all but one, which has an empty one in its place.
    let hosts = joined(
        8,
        |_| String::new(),
        |hosts, name, token| match name {
            "n6" => {
                let only = hosts.work().join("only");
                std::fs::create_dir(&only).unwrap();
                let cover = format!("mount -t tmpfs -o mode=755 none {}", only.display());
                join_apart(hosts, name, token, &cover);
            }
            _ => hosts.join(name, token),
        },
    );
    let layout = images::busybox();
    let (data, archive) = (hosts.work().join("only/data"), hosts.work().join("only/image.tar"));
    std::fs::create_dir(&data).unwrap();
    let tar = Cmd::new("tar").arg("-C").arg(&layout).arg("-cf").arg(&archive);
    tar.args(["oci-layout", "index.json", "blobs"]).ok();
    let srun = |words: &[&str]| hosts.cmd("n1", "srun").arg("-N8").args(words).limit(60);
    // Of that node it is said, and of no other.
    let named = |words: &[&str], what: &str, why: &[&str]| {
        let told = srun(words).fails();
        let err = told.err();
        let lines: Vec<&str> = err.lines().filter(|line| line.contains(what)).collect();
        assert!(!lines.is_empty() && lines.iter().all(|line| line.contains(" n6: ")), "{told}");
        told.says(why);
    };
    let (data, archive) = (data.display().to_string(), archive.display().to_string());
    let container = format!("--container-image={}", layout.display());
    let mounts = format!("--container-mounts={data}:/mnt");
    named(&[&container, &mounts, "sleep", "600"], &data, &["source path does not exist"]);
    idle(&hosts, 8);
    let container = format!("--container-image={archive}");
    named(&[&container, "sleep", "600"], &archive, &["no such file or directory"]);
    idle(&hosts, 8);
    for n in (1..=8).filter(|n| *n != 6) {
        std::fs::create_dir(hosts.work().join(format!("n{n}"))).unwrap();
        berth_tests::machine::give(&hosts.work().join(format!("n{n}")), hosts.user());
    }
    named(&["-o", "%N/out", "sleep", "600"], "n6/out", &["no such file or directory"]);
    idle(&hosts, 8);
    // A CPU that is another job's there.
    let hold = format!("{CPUS}; exec sleep 600");
    let alone = ["-w", "n6", "-n1", "-c1", "--mem=64M", "sh", "-c", &hold];
    let mut other = hosts.cmd("n1", "srun").args(alone).limit(120).spawn();
    other.wait_for("\n", 30);
    let said = String::from_utf8_lossy(&other.stdout()).into_owned();
    let cpus = said.split_whitespace().nth(2).unwrap();
    let cpu = cpus.split([',', '-']).next().unwrap();
    let bind = format!("--cpu-bind=map_cpu:{cpu}");
    let why = ["task 5 cannot be bound by --cpu-bind", &format!("CPU {cpu} is not the step's")];
    named(&["-n8", "-c1", "--mem=64M", &bind, "sleep", "600"], "cannot be bound", &why);
    other.signal(Signal::SIGTERM);
    assert_ne!(other.finish().rc, 0);
    idle(&hosts, 8);
}

/// Three hosts, of which the last one has mounts of its own, that soon give up a start.
fn with_one_apart() -> Hosts {
    let config = "start_timeout_seconds = 5\nunkillable_seconds = 2\nkill_wait_seconds = 2\n";
    joined(
        3,
        |_| config.into(),
        |hosts, name, token| match name {
            "n3" => join_apart(hosts, name, token, "true"),
            _ => hosts.join(name, token),
        },
    )
}

#[test]
fn a_start_that_hangs_on_a_node_is_given_up_in_time_with_what_it_waits_for_as_root() {
    let hosts = with_one_apart();
    // One of them has a filesystem there whose server does not answer. Its agent is well, and is heard of all the time.
    let place = hosts.work().join("data");
    std::fs::create_dir_all(place.join("set")).unwrap();
    let mut hanging = Hanging::mounted_for(place.clone(), hosts.pid("n3", "agent"));
    let container = format!("--container-image={}", images::busybox().display());
    let mounts = format!("--container-mounts={}:/mnt", place.join("set").display());
    let begun = Instant::now();
    let words = ["-N3", &container, &mounts, "sleep", "600"];
    let told = hosts.cmd("n1", "srun").args(words).limit(60).fails();
    let took = begun.elapsed();
    let waits = format!("on {} (fuse.hanging)", place.display());
    let told = told.says(&["n3: step ", "did not start within 5 s (start_timeout_seconds)", &waits]);
    assert!(!told.err().contains("n2: step") && !told.err().contains("n1: step"), "{told}");
    assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(40), "it took {took:?}");
    // What cannot even be killed keeps the node until the server is back.
    hanging.let_go();
    idle(&hosts, 3);
}

#[test]
fn an_image_file_that_hangs_on_a_node_is_given_up_in_time_with_what_it_waits_for_as_root() {
    let hosts = with_one_apart();
    let place = hosts.work().join("data");
    std::fs::create_dir(&place).unwrap();
    let archive = place.join("image.tar");
    let tar = Cmd::new("tar").arg("-C").arg(images::busybox()).arg("-cf").arg(&archive);
    tar.args(["oci-layout", "index.json", "blobs"]).ok();
    // Where the step is asked for the file is well: it is named, and pinned.
    let mut hanging = Hanging::mounted_for(place.clone(), hosts.pid("n3", "agent"));
    let container = format!("--container-image={}", archive.display());
    let begun = Instant::now();
    let told = hosts.cmd("n1", "srun").args(["-N3", &container, "sleep", "600"]).limit(60).fails();
    let took = begun.elapsed();
    let image = format!("n3: the image {} is not waited for any more", archive.display());
    let waits = format!("on {} (fuse.hanging)", place.display());
    let told = told.says(&[&image, "for 5 s (start_timeout_seconds)", "(berth), state", &waits]);
    assert!(!told.err().contains("n2: the image") && !told.err().contains("n1: the image"), "{told}");
    assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(40), "it took {took:?}");
    // No job waits for the processes that are still there, and no step that does not go there.
    idle(&hosts, 3);
    hosts.cmd("n1", "srun").args(["-N3", "true"]).limit(30).ok();
    hanging.let_go();
    hosts.wait_node("n3", "idle", 60);
}

#[test]
fn nodes_that_fail_refuse_or_hang_as_a_step_begins_are_named_and_nothing_is_left_as_root() {
    let mut refuses = PathBuf::new();
    let mut prolog = PathBuf::new();
    let hosts = eight(|hosts| {
        let place = hosts.state("n1");
        (refuses, prolog) = (place.join("n4-refuses"), place.join("prolog"));
        let lines = format!(
            "#!/bin/sh\n[ \"$SLURMD_NODENAME\" = n4 ] && [ -e {} ] || exit 0\necho no disk left\nexit 3\n",
            refuses.display()
        );
        std::fs::write(&prolog, lines).unwrap();
        std::fs::set_permissions(&prolog, Permissions::from_mode(0o755)).unwrap();
        format!("node_timeout_seconds = 5\n[programs]\nprolog = {prolog:?}\n")
    });
    // One hangs as the step begins, one is killed before it has done its part, one is cut off: nobody knows how they are, and the step
    // does not wait for them.
    let agent = |name: &str| Pid::from_raw(hosts.pid(name, "agent"));
    let hung = agent("n5");
    kill(hung, Signal::SIGSTOP).unwrap();
    kill(agent("n6"), Signal::SIGSTOP).unwrap();
    hosts.link("n7", false);
    let begun = Instant::now();
    let words = ["-N8", "sh", "-c", "hostname; exec sleep 600"];
    let mut step = hosts.cmd("n1", "srun").args(words).limit(90).spawn();
    step.wait_for("n8", 30);
    hosts.kill_9("n6", "agent");
    let told = step.finish();
    kill(hung, Signal::SIGCONT).unwrap();
    hosts.link("n7", true);
    hosts.root("n6", "berth").args(["up", "--detach"]).limit(60).ok();
    assert_eq!(told.text().lines().count(), 5, "{told}");
    let lost = ["n5", "n6", "n7"].map(|name| format!("{name}: the node has not answered"));
    let told = told.says(&[&lost[0], &lost[1], &lost[2]]);
    assert!(told.rc != 0 && !told.err().contains("n4: the node"), "{told}");
    // What the guide says: node_timeout_seconds, and half a minute at most. The rest is for the step's own beginning and end.
    assert!(begun.elapsed() < Duration::from_secs(5 + 30 + 10), "it took {:?}", begun.elapsed());
    idle(&hosts, 8);
    // What the step did there is kept for a client that may still come, for a minute: that is not waited for here.
    for name in ["n5", "n7"] {
        hosts.root(name, "berth").arg("down").limit(60).ok();
        for group in leftovers::control_groups(&hosts.state(name)) {
            let processes =
                std::fs::read_to_string(group.join("supervisors/cgroup.procs")).unwrap_or_default();
            let processes = processes.lines().filter_map(|pid| pid.parse().ok());
            for pid in processes {
                // It may be gone by now.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        hosts.root(name, "berth").args(["up", "--detach"]).limit(60).ok();
        hosts.wait_node(name, "idle", 60);
    }
    // One that refuses: nothing begins there, and the step of the others ends. It alone takes no more jobs until somebody has looked.
    std::fs::write(&refuses, "").unwrap();
    let told = hosts.cmd("n1", "srun").args(words).limit(60).fails();
    let why = format!("prolog {} failed: exit code 3: no disk left", prolog.display());
    let told = told.says(&["n4: ", &why]);
    let named =
        |n: &u32| told.err().lines().any(|line| line.contains(&format!("n{n}: ")) && line.contains(&why));
    assert_eq!((1..=8).filter(named).collect::<Vec<u32>>(), [4], "{told}");
    assert!(!told.text().lines().any(|line| line == "n4"), "{told}");
    let drained = hosts.root("n1", "sinfo").args(["-h", "-R", "-o", "%N %E"]).ok().text();
    assert_eq!(drained.trim(), format!("n4 {why}"));
    std::fs::remove_file(&refuses).unwrap();
    hosts.root("n1", "scontrol").args(["update", "nodename=n4", "state=resume"]).ok();
    idle(&hosts, 8);
    let told = hosts.cmd("n1", "srun").args(["-N8", "hostname"]).limit(60).ok();
    assert_eq!(told.text().lines().count(), 8, "{told}");
}

#[test]
fn one_step_runs_over_thirty_two_agents_as_root() {
    const COUNT: usize = 32;
    let names: Vec<String> = (1..=COUNT).map(|n| format!("n{n}")).collect();
    let hosts = Hosts::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    hosts.up("n1", "");
    let token = hosts.token("n1", &["--uses", &COUNT.to_string()]);
    std::thread::scope(|scope| {
        for some in names[1..].chunks(8) {
            let (hosts, token) = (&hosts, &token);
            scope.spawn(move || some.iter().for_each(|name| hosts.join(name, token)));
        }
    });
    names.iter().for_each(|name| hosts.wait_node(name, "idle", 30));
    // Nodes are in the order in which people count, and so are the tasks on them.
    let told = hosts.cmd("n1", "srun").args(["-N32", "-l", "hostname"]).limit(120).ok();
    let mut lines: Vec<(usize, String)> = Vec::new();
    for line in told.text().lines() {
        let (task, host) = line.split_once(": ").unwrap();
        lines.push((task.trim().parse().unwrap(), host.to_string()));
    }
    lines.sort();
    let expected: Vec<(usize, String)> = names.iter().cloned().enumerate().collect();
    assert_eq!(lines, expected, "{told}");
    let failing = "[ $SLURM_PROCID != 30 ] || exit 7";
    let told = hosts.cmd("n1", "srun").args(["-N32", "sh", "-c", failing]).limit(120).run();
    assert_eq!(told.rc, 7, "{told}");
    told.says(&["n31: task 30: Exited with exit code 7"]);
    let listed = hosts.cmd("n1", "sinfo").args(["-h", "-o", "%N"]).ok().text();
    assert_eq!(listed.trim(), "n[1-32]");
    names.iter().for_each(|name| hosts.wait_node(name, "idle", 60));
}
