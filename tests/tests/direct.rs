//! Streams that go straight to the nodes: the controller is not on their way, who cannot be reached is reached through it, and a
//! grant opens nothing for anybody but whom it names.

use berth_model::direct::StreamWay;
use berth_model::{Attempt, JobId, StepId, StepKey};
use berth_tests::processes::{Watched, of_step};
use berth_tests::sandbox::wait;
use berth_tests::stolen::{copy, identity, say};
use berth_tests::{Cmd, Hosts, Running};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// n1 with the controller, n2 and n3, and a login node; all of them take streams.
fn site() -> Hosts {
    let hosts = Hosts::new(&["n1", "n2", "n3", "front"]);
    hosts.up("n1", "");
    let token = hosts.token("n1", &["--uses", "2"]);
    hosts.join("n2", &token);
    hosts.join("n3", &token);
    hosts.join("front", &hosts.token("n1", &["--role", "login"]));
    for name in ["n1", "n2", "n3"] {
        hosts.wait_node(name, "idle", 60);
        let ready = || log(&hosts, name).contains("streams of steps are taken there").then_some(());
        assert!(wait(20, ready).is_some(), "{}", log(&hosts, name));
    }
    hosts
}

fn log(hosts: &Hosts, host: &str) -> String {
    std::fs::read_to_string(hosts.state(host).join("log/agent.log")).unwrap_or_default()
}

/// Has a host treat what comes to its port so.
fn filter(hosts: &Hosts, host: &str, words: &str) {
    let rule = format!("-p tcp --dport 7818 -j {words}");
    hosts.root(host, "iptables").args(["-w", "-I", "INPUT"]).args(rule.split(' ')).ok();
}

fn lines(text: &str, of: &str) -> usize {
    text.lines().filter(|line| *line == of).count()
}

#[test]
fn streams_go_straight_to_nodes_whatever_the_controller_does_as_root() {
    let hosts = site();
    let script = "echo before; while [ ! -e go ]; do sleep 0.1; done; echo after; read x; echo $x; exit $((4 + SLURM_NODEID))";
    // From a login node, from a node, and from the controller's own machine, which is one of the nodes in the first two.
    for (from, nodes) in [("front", "n[1-3]"), ("n2", "n[1-3]"), ("n1", "n[2-3]")] {
        let count = if nodes == "n[1-3]" { 3 } else { 2 };
        if from == "n2" {
            // A compute node speaks for its jobs alone.
            let batch = format!("#!/bin/sh\nsrun sh -c '{script}' < in > out\n");
            std::fs::write(hosts.work().join("job.sh"), batch).unwrap();
            std::fs::write(hosts.work().join("in"), "input\n").unwrap();
            std::fs::write(hosts.work().join("out"), "").unwrap();
            berth_tests::machine::give(&hosts.work().join("out"), hosts.user());
            let mut job =
                hosts.cmd("n1", "sbatch").args(["-N3", "-w", nodes, "--wait", "job.sh"]).limit(90).spawn();
            let out = || std::fs::read_to_string(hosts.work().join("out")).unwrap();
            assert!(wait(30, || (lines(&out(), "before") == count).then_some(())).is_some(), "{}", out());
            stopped(&hosts, || {
                std::fs::write(hosts.work().join("go"), "").unwrap();
                assert!(wait(20, || (lines(&out(), "after") == count).then_some(())).is_some(), "{}", out());
            });
            assert!(job.alive() || wait(20, || (!job.alive()).then_some(())).is_some());
            let ended = job.finish();
            assert_eq!((ended.rc, lines(&out(), "input")), (6, count), "{ended}{}", out());
        } else {
            let options = ["-w", nodes, "sh", "-c", script];
            let mut step = hosts.cmd(from, "srun").args(options).stdin_open().limit(90).spawn();
            let heard = |step: &Running, word| {
                let text = String::from_utf8_lossy(&step.stdout()).into_owned();
                wait(30, || (lines(&String::from_utf8_lossy(&step.stdout()), word) == count).then_some(()))
                    .unwrap_or_else(|| panic!("{from}: {word}: {text}"));
            };
            heard(&step, "before");
            stopped(&hosts, || {
                std::fs::write(hosts.work().join("go"), "").unwrap();
                heard(&step, "after");
                step.write(b"input\n");
                heard(&step, "input");
            });
            let ended = step.finish();
            assert_eq!(ended.rc, 3 + i32::try_from(count).unwrap(), "{ended}");
        }
        std::fs::remove_file(hosts.work().join("go")).unwrap();
    }
}

/// Does something while the controller does nothing.
fn stopped(hosts: &Hosts, work: impl FnOnce()) {
    let controller = Pid::from_raw(hosts.pid("n1", "controller"));
    kill(controller, Signal::SIGSTOP).unwrap();
    let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    kill(controller, Signal::SIGCONT).unwrap();
    if let Err(panic) = worked {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_node_that_is_not_reached_is_reached_through_the_controller_as_root() {
    let hosts = site();
    // What comes to the port vanishes, as behind many a firewall.
    filter(&hosts, "n3", "DROP");
    let told = hosts.cmd("front", "srun").args(["-l", "-w", "n[2-3]", "hostname"]).limit(60).ok();
    let mut all: Vec<String> = told.text().lines().map(str::to_string).collect();
    all.sort();
    assert_eq!(all, ["0: n2", "1: n3"], "{told}");
    let away = || log(&hosts, "front").matches("n3 is not reached for streams").count();
    assert_eq!(away(), 1, "{}", log(&hosts, "front"));
    // It is known from then on.
    hosts.cmd("front", "srun").args(["-w", "n3", "hostname"]).limit(60).ok();
    assert_eq!(away(), 1, "{}", log(&hosts, "front"));
    assert!(!log(&hosts, "front").contains("n2 is not reached"), "{}", log(&hosts, "front"));
    // A connection that breaks in the middle: the step goes on, and ends as it ends.
    let script = "echo before; while [ ! -e go ]; do sleep 0.1; done; echo after; exit 7";
    let mut step = hosts.cmd("front", "srun").args(["-w", "n2", "sh", "-c", script]).limit(60).spawn();
    step.wait_for("before", 30);
    filter(&hosts, "n2", "REJECT --reject-with tcp-reset");
    // The end of the connection is noticed when something is sent.
    step.signal(Signal::SIGWINCH);
    std::fs::write(hosts.work().join("go"), "").unwrap();
    let ended = step.finish();
    assert_eq!((ended.rc, lines(&ended.text(), "after")), (7, 1), "{ended}");
}

#[test]
fn a_gibibyte_comes_over_a_direct_stream_and_who_does_not_read_holds_up_nobody_else_as_root() {
    let hosts = site();
    // A reader that reads nothing: its own step waits, on n2.
    let full = "srun -w n2 sh -c 'echo $SLURM_JOB_ID > held; yes' | sleep 120";
    let mut held = hosts.cmd("front", "sh").args(["-c", full]).limit(180).spawn();
    let job = || std::fs::read_to_string(hosts.work().join("held")).ok().filter(|id| id.ends_with('\n'));
    let job = wait(30, job).unwrap();
    // Nobody on the way takes it in instead: not srun, which waits for the reader, nor the supervisor, which waits for srun, nor who carries it.
    let daemons = [("n1", "controller"), ("front", "agent"), ("n2", "agent")];
    let mut all =
        daemons.map(|(host, daemon)| (format!("the {daemon} of {host}"), hosts.pid(host, daemon))).to_vec();
    all.extend(of_step(&hosts, &held, "n2", &format!("{}.0.0", job.trim())));
    let watched = Watched::begin(all);
    let flood = "srun -w n3 head -c 1G /dev/zero | cmp -n 1073741824 - /dev/zero && echo all";
    let told = hosts.cmd("front", "sh").args(["-c", flood]).limit(120).ok();
    assert_eq!(told.text(), "all", "{told}");
    assert!(held.alive());
    watched.have_not_grown_by(64);
    hosts.cmd("front", "scancel").arg(job.trim()).ok();
    hosts.wait_node("n2", "idle", 30);
    // What it wrote is still for its reader, which is ours to end.
    Cmd::new("kill").args(["-TERM", "--", &format!("-{}", held.pid())]).ok();
    held.finish();
}

/// A step that says something all the time: whoever has a stream of it hears that.
const TALKS: &str = "srun sh -c 'while sleep 0.2; do echo still here; done'";

/// Waits until the step of such a job talks.
fn wait_until_it_talks(hosts: &Hosts, job: u32) {
    let file = hosts.work().join(format!("slurm-{job}.out"));
    let said = || std::fs::read_to_string(&file).unwrap_or_default();
    assert!(wait(30, || said().contains("still here").then_some(())).is_some(), "{}", said());
}

fn frame(kind: u8, what: &serde_json::Value) -> Vec<u8> {
    let json = what.to_string();
    let mut frame = vec![kind, 255, 255, 255, 255];
    frame.extend(u32::try_from(json.len()).unwrap().to_le_bytes());
    frame.extend(json.as_bytes());
    frame
}

fn named(step: StepKey) -> serde_json::Value {
    let StepKey { job, attempt, step } = step;
    serde_json::json!({ "job": job, "attempt": attempt, "step": step })
}

/// To be the client of a step. Where it has one, which is there, another is refused, and its connection ends.
fn attach(step: StepKey) -> Vec<u8> {
    frame(1, &named(step))
}

/// To hear a step beside its client.
fn watch(step: StepKey) -> Vec<u8> {
    frame(30, &serde_json::json!({ "step": named(step) }))
}

/// A stream is there, and something comes by it.
fn hears(stream: &mut Running, else_why: &str) {
    let before = stream.stdout().len();
    let more = wait(20, || (stream.stdout().len() > before).then_some(()));
    assert!(more.is_some() && stream.alive(), "{else_why}: {}", stream.stderr());
}

/// Streams that a node has cut, as its log says.
fn cuts(hosts: &Hosts, host: &str) -> usize {
    log(hosts, host).matches("is cut: the key of that machine").count()
}

#[test]
fn a_grant_is_good_for_one_connection_of_one_machine_to_one_step_as_root() {
    let hosts = site();
    let user = hosts.user().clone();
    let sleeper = |node: &str| {
        let words = ["--parsable", "-w", node, "--wrap", TALKS];
        hosts.cmd("front", "sbatch").args(words).ok().text().trim().parse::<u32>().unwrap()
    };
    let (first, second) = (sleeper("n2"), sleeper("n3"));
    let key = |job| StepKey { job: JobId(job), attempt: Attempt(0), step: StepId::Number(0) };
    let steps = || hosts.root("n1", "squeue").args(["-h", "--steps", "-o", "%i"]).run().text();
    let both = || [first, second].iter().all(|j| steps().contains(&format!("{j}.0"))).then_some(());
    assert!(wait(30, both).is_some(), "{}", steps());
    wait_until_it_talks(&hosts, first);
    let front = identity(&hosts, "front");
    let n3 = identity(&hosts, "n3");
    let n2_port = "10.77.0.2:7818";
    // A login node asks for its user, as it does for each srun; what is answered is in the attacker's hands from here on.
    let ask = |host: &str, shows: &[String], uid: u32, step: StepKey| {
        let peer = serde_json::json!({ "uid": uid, "gid": user.gid, "job": null });
        let line = serde_json::json!({ "ways": step, "peer": peer, "only": null, "key": "of somebody else" });
        say(&hosts, host, shows, "10.77.0.1:7817", format!("{line}\n").as_bytes())
    };
    let way = || -> StreamWay {
        let told = ask("front", &front, user.uid, key(first));
        let value: serde_json::Value = serde_json::from_str(&told).unwrap_or_else(|e| panic!("{e}: {told}"));
        let ways: Vec<StreamWay> =
            serde_json::from_value(value["ways"].clone()).unwrap_or_else(|e| panic!("{e}: {told}"));
        let [way] = <[StreamWay; 1]>::try_from(ways).unwrap();
        assert_eq!((way.node.0.as_str(), way.address.as_str()), ("n2", n2_port));
        way
    };
    let opening = |way: &StreamWay, then: &[u8]| {
        let mut bytes = format!("{}\n", serde_json::json!({ "grant": way.grant })).into_bytes();
        bytes.extend(then);
        bytes
    };
    // Nobody asks for a step of others: not a login node for another user, not for root, not a compute node on which the job is not.
    let stranger = ask("front", &front, user.uid + 1, key(first));
    assert!(stranger.contains("refused") && stranger.contains("belongs to"), "{stranger}");
    let root = ask("front", &front, 0, key(first));
    assert!(root.contains("refused") && root.contains("root of the login node"), "{root}");
    let node = ask("n3", &n3, user.uid, key(first));
    assert!(node.contains("refused") && node.contains("speaks for its jobs alone"), "{node}");
    let none = ask("front", &front, user.uid, key(first + 100));
    assert!(none.contains("refused"), "{none}");
    // A grant in the hands of a machine with another key, in those of nobody, and one that was guessed.
    let granted = way();
    let refusal = "named this machine for no such stream";
    let said = say(&hosts, "n3", &n3, n2_port, &opening(&granted, &attach(key(first))));
    assert!(said.contains(refusal), "{said}");
    let said = say(&hosts, "front", &[], n2_port, &opening(&granted, &attach(key(first))));
    assert!(said.is_empty(), "{said}");
    let guessed = StreamWay { grant: "0".repeat(32), ..granted.clone() };
    let said = say(&hosts, "front", &front, n2_port, &opening(&guessed, &attach(key(first))));
    assert!(said.contains(refusal), "{said}");
    // It is used for another step, or for what is no step's: and is used up by that.
    let said = say(&hosts, "front", &front, n2_port, &opening(&granted, &attach(key(second))));
    assert!(said.contains("welcome") && said.contains(&format!("granted for step {first}.0")), "{said}");
    let said = say(&hosts, "front", &front, n2_port, &opening(&granted, &attach(key(first))));
    assert!(said.contains(refusal), "a replay: {said}");
    let granted = way();
    let images = [&[21, 255, 255, 255, 255, 6, 0, 0, 0][..], b"\"list\""].concat();
    let said = say(&hosts, "front", &front, n2_port, &opening(&granted, &images));
    assert!(said.contains("and for nothing else"), "{said}");
    // A login node comes for streams alone: there are no images for it.
    let url = "https://10.77.0.2:7818/v2/";
    let [_, cert, _, private] = &front;
    let curl = ["-k", "-s", "-o", "/dev/null", "--max-time", "10", "--cert", cert, "--key", private, url];
    assert_ne!(hosts.root("front", "curl").args(curl).run().rc, 0);
    // A stolen grant and its machine, once the machine is removed: what is open is cut, and nothing opens.
    let (open, unused) = (way(), way());
    let mut stolen = connected(&hosts, "front", &front, n2_port);
    stolen.write(&opening(&open, &watch(key(first))));
    stolen.wait_for("still here", 20);
    hears(&mut stolen, "nothing has cut it off yet");
    hosts.root("n1", "berth").args(["node", "remove", "front"]).ok();
    assert!(wait(20, || (!stolen.alive()).then_some(())).is_some(), "it is not cut off");
    stolen.finish();
    assert!(wait(20, || (cuts(&hosts, "n2") == 1).then_some(())).is_some(), "{}", log(&hosts, "n2"));
    let said = say(&hosts, "front", &front, n2_port, &opening(&unused, &attach(key(first))));
    assert!(said.contains(refusal), "{said}");
    hosts.root("n1", "scancel").args([first.to_string(), second.to_string()]).ok();
}

/// A connection to a node's port with somebody's key, which stays.
fn connected(hosts: &Hosts, from: &str, shows: &[String], port: &str) -> Running {
    Cmd::new("nsenter")
        .arg(format!("--net={}", hosts.network(from).display()))
        .args(["openssl", "s_client", "-quiet", "-tls1_3", "-alpn", "berth-streams/1", "-connect", port])
        .args(shows)
        .stdin_open()
        .limit(240)
        .spawn()
}

/// With a key that a login node had before, or of one that was removed: also on a node that nobody could tell.
#[test]
fn streams_of_a_key_that_is_nobodys_any_more_are_cut_on_every_node_as_root() {
    let hosts = site();
    let user = hosts.user().clone();
    let words = ["--parsable", "-w", "n2", "--wrap", TALKS];
    let job = hosts.cmd("front", "sbatch").args(words).ok().text().trim().parse::<u32>().unwrap();
    let steps = || hosts.root("n1", "squeue").args(["-h", "--steps", "-o", "%i"]).run().text();
    assert!(wait(30, || steps().contains(&format!("{job}.0")).then_some(())).is_some(), "{}", steps());
    wait_until_it_talks(&hosts, job);
    let step = StepKey { job: JobId(job), attempt: Attempt(0), step: StepId::Number(0) };
    let n2_port = "10.77.0.2:7818";
    let grant = |shows: &[String]| -> String {
        let peer = serde_json::json!({ "uid": user.uid, "gid": user.gid, "job": null });
        let line = serde_json::json!({ "ways": step, "peer": peer, "only": null, "key": "" });
        let told = say(&hosts, "n3", shows, "10.77.0.1:7817", format!("{line}\n").as_bytes());
        let value: serde_json::Value = serde_json::from_str(&told).unwrap_or_else(|e| panic!("{e}: {told}"));
        value["ways"][0]["grant"].as_str().unwrap_or_else(|| panic!("{told}")).to_string()
    };
    let opening = |grant: &str| {
        let mut bytes = format!("{}\n", serde_json::json!({ "grant": grant })).into_bytes();
        // The step has its client, the srun of the script: another one would be refused.
        bytes.extend(watch(step));
        bytes
    };
    let open = |shows: &[String]| {
        let mut stream = connected(&hosts, "n3", shows, n2_port);
        stream.write(&opening(&grant(shows)));
        stream.wait_for("still here", 20);
        hears(&mut stream, "nothing has cut it off yet");
        stream
    };
    let cut_off = |mut stream: Running, seconds: u64, cut: usize| {
        assert!(wait(seconds, || (!stream.alive()).then_some(())).is_some(), "{}", log(&hosts, "n2"));
        stream.finish();
        assert!(wait(20, || (cuts(&hosts, "n2") == cut).then_some(())).is_some(), "{}", log(&hosts, "n2"));
    };

    // All that the login node keeps to itself is n3's, too; then the login node has another key.
    let stolen = copy(&hosts, "front", "n3");
    let (stream, unused) = (open(&stolen), grant(&stolen));
    hosts.root("front", "berth").args(["node", "rotate-key"]).ok();
    cut_off(stream, 20, 1);
    let said = say(&hosts, "n3", &stolen, n2_port, &opening(&unused));
    assert!(said.contains("named this machine for no such stream"), "{said}");

    // That one, too, is stolen, and while the machine is removed n2 hears nothing of the controller, which was started anew meanwhile.
    std::fs::remove_dir_all(hosts.state("n3").join("of-front")).unwrap();
    let stolen = copy(&hosts, "front", "n3");
    let mut stream = open(&stolen);
    let cut = |what: &str| {
        hosts.root("n2", "iptables").args(["-w", what, "INPUT", "-s", "10.77.0.1", "-j", "DROP"]).ok();
    };
    cut("-I");
    hosts.kill_9("n1", "controller");
    hosts.root("n1", "berth").args(["up", "--detach"]).limit(60).ok();
    hosts.root("n1", "berth").args(["node", "remove", "front"]).ok();
    hears(&mut stream, "nobody can have told n2");
    cut("-D");
    cut_off(stream, 120, 2);
    hosts.root("n1", "scancel").arg(job.to_string()).ok();
}

/// Whoever has a compute node's key is that node: it speaks for the jobs that run there, each as its user, and for as long as it runs.
#[test]
fn a_compute_nodes_key_is_of_use_for_the_jobs_that_run_on_it_alone_as_root() {
    let hosts = Hosts::cluster(3, "");
    let user = hosts.user().clone();
    let words = ["--parsable", "-w", "n2", "--wrap", "srun sleep 300"];
    let job = hosts.cmd("n1", "sbatch").args(words).ok().text().trim().parse::<u32>().unwrap();
    let steps = || hosts.root("n1", "squeue").args(["-h", "--steps", "-o", "%i"]).run().text();
    assert!(wait(30, || steps().contains(&format!("{job}.0")).then_some(())).is_some(), "{}", steps());
    let (n2, n3) = (identity(&hosts, "n2"), identity(&hosts, "n3"));
    let step = StepKey { job: JobId(job), attempt: Attempt(0), step: StepId::Number(0) };
    // A client's connection, a stream to a node, and the ways to the nodes of a step.
    let prefaces = |uid: u32| {
        let peer = serde_json::json!({ "uid": uid, "gid": user.gid, "job": job });
        [
            peer.clone(),
            serde_json::json!({ "to": "n2", "peer": peer }),
            serde_json::json!({ "ways": step, "peer": peer, "only": null, "key": "" }),
        ]
    };
    let ask = |host: &str, shows: &[String], line: &serde_json::Value| {
        say(&hosts, host, shows, "10.77.0.1:7817", format!("{line}\n").as_bytes())
    };
    let refused = |host: &str, shows: &[String], uid: u32| {
        let why =
            format!("{host} speaks for the jobs that run on it, and job {job} of uid {uid} is none of them");
        for line in prefaces(uid) {
            // What was said may be lost with a connection that is closed before it was read.
            let told = wait(30, || ask(host, shows, &line).contains(&why).then_some(()));
            assert!(told.is_some(), "{host} for uid {uid}: {line}: {}", ask(host, shows, &line));
        }
    };
    // It is of use: nothing else is what refuses the others.
    for (line, answer) in prefaces(user.uid).iter().zip(["\"welcome\"", "\"welcome\"", "{\"ways\":[]}"]) {
        let said = ask("n2", &n2, line);
        assert!(said.starts_with(answer), "{line}: {said}");
    }
    // Of the node on which the job is not; for another user, and root.
    refused("n3", &n3, user.uid);
    refused("n2", &n2, user.uid + 1);
    refused("n2", &n2, 0);
    // Once it is over; the controller knows it still.
    hosts.cmd("n1", "scancel").arg(job.to_string()).ok();
    let shown = || hosts.cmd("n1", "scontrol").args(["show", "job", &job.to_string()]).run();
    let over = wait(30, || shown().text().contains("JobState=CANCELLED").then_some(()));
    assert!(over.is_some(), "{}", shown());
    refused("n2", &n2, user.uid);
}
