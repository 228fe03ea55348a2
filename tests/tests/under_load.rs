//! Clusters of four or five machines that are never idle, while networks are cut, daemons are killed and disks fill up: every job that was
//! acknowledged runs once, and is on record with its own exit code; its output is whole.
//!
//! `tests/under-load.sh` does the same for as long as one likes, with other seeds.

use berth_tests::{
    Hosts, Running,
    sandbox::{kill_9, wait},
};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// Runs long enough to be under way when something breaks, and to need all nodes also where the machine is slow to submit. That
/// it began and ended is appended to a file, so that a second run would be seen.
const JOB: &str = r#"#!/bin/sh
echo "begun $(hostname)" >> ran/$SLURM_JOB_ID
echo "job $SLURM_JOB_ID says this"
sleep $((SLURM_JOB_ID % 6)).$((SLURM_JOB_ID % 5 * 2))
echo "job $SLURM_JOB_ID says more" >&2
echo ended >> ran/$SLURM_JOB_ID
exit $((SLURM_JOB_ID % 3))
"#;

/// Submits as fast as it gets an answer, up to 16 jobs ahead of those that ended. What was answered is in `acknowledged`.
const SUBMIT: &str = r#"
while [ ! -e stop ]; do
    job=$(sbatch --parsable -c1 --mem=16M -t1 -o out/%j job.sh 2>> told) && echo $job >> acknowledged
    while [ ! -e stop ] && [ $(cat acknowledged | wc -l) -gt $(($(cat ran/* 2>/dev/null | grep -c ended) + 16)) ]; do sleep 0.1; done
done
"#;

/// Moments and victims that one number gives.
struct Dice(u64);

impl Dice {
    /// From `BERTH_SEED`, or the same each time.
    fn new() -> Dice {
        let seed = std::env::var("BERTH_SEED").ok().map_or(7_u64, |seed| seed.parse().unwrap());
        eprintln!("BERTH_SEED={seed}");
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Below this bound.
    fn roll(&mut self, below: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    fn pause(&mut self, most: u64) {
        std::thread::sleep(Duration::from_millis(self.roll(most)));
    }
}

/// A cluster at work.
struct Busy {
    submit: Option<Running>,
    hosts: Hosts,
}

impl Busy {
    /// A controller's machine and three nodes; jobs are submitted from now on, and run on all of them.
    fn begin(hosts: Hosts, config: &str) -> Busy {
        Busy::idle(hosts, config).work("head")
    }

    /// A controller's machine and three nodes.
    fn idle(hosts: Hosts, config: &str) -> Busy {
        hosts.up("head", config);
        let token = hosts.token("head", &["--uses", "3"]);
        for node in NODES {
            hosts.join(node, &token);
        }
        for node in NODES {
            hosts.wait_node(node, "idle", 60);
        }
        Busy { hosts, submit: None }
    }

    /// Jobs are submitted on this host from now on, and run on all nodes.
    fn work(mut self, from: &str) -> Busy {
        std::fs::write(self.hosts.work().join("job.sh"), JOB).unwrap();
        self.hosts.cmd("head", "sh").args(["-c", "mkdir ran out && : > acknowledged"]).ok();
        self.submit = Some(self.hosts.cmd(from, "sh").args(["-c", SUBMIT]).limit(3600).spawn());
        self.wait_for_all(20);
        self
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.hosts.work().join(path)).unwrap_or_default()
    }

    fn acknowledged(&self) -> Vec<u64> {
        self.read("acknowledged").lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Waits until every node began a job that it had not begun when this was called.
    fn wait_for_all(&self, seconds: u64) {
        let begun = || {
            let mut nodes = BTreeMap::<String, usize>::new();
            for entry in std::fs::read_dir(self.hosts.work().join("ran")).unwrap().flatten() {
                let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                for node in text.lines().filter_map(|line| line.strip_prefix("begun ")) {
                    *nodes.entry(node.to_string()).or_default() += 1;
                }
            }
            nodes
        };
        let before = begun();
        let more =
            |now: &BTreeMap<String, usize>| NODES.iter().all(|node| now.get(*node) > before.get(*node));
        if wait(seconds, || more(&begun()).then_some(())).is_none() {
            let show = self.hosts.cmd("head", "sinfo").args(["-N", "-l"]).run();
            let queue = self.hosts.cmd("head", "squeue").run();
            panic!("not every node begins jobs: {before:?}, then {:?}\n{show}\n{queue}", begun());
        }
    }

    /// Waits until the controller knows that a node does not answer.
    fn wait_silent(&self, node: &str) {
        let show = || self.hosts.cmd("head", "sinfo").args(["-h", "-n", node, "-o", "%T"]).ok().text();
        assert!(wait(30, || show().trim().ends_with('*').then_some(())).is_some(), "{node} is {}", show());
    }

    fn up(&self, host: &str) {
        self.hosts.root(host, "berth").args(["up", "--detach"]).ok();
    }

    /// Submits no more, waits until everything has ended, and looks at each acknowledged job.
    fn end(mut self, at_least: usize) {
        // Who was refused for a while submits again when its pause is over.
        let _ = wait(60, || (self.acknowledged().len() >= at_least).then_some(()));
        std::fs::write(self.hosts.work().join("stop"), "").unwrap();
        let submitted = self.submit.take().unwrap().finish();
        let told = self.read("told");
        assert_eq!(submitted.rc, 0, "{submitted}{told}");
        let acknowledged = self.acknowledged();
        assert!(acknowledged.len() >= at_least, "{} jobs are not much of a load\n{told}", acknowledged.len());
        let queued = || self.hosts.cmd("head", "squeue").args(["-h", "-o", "%i %T %R"]).ok().text();
        let empty = wait(90, || queued().trim().is_empty().then_some(()));
        assert!(empty.is_some(), "jobs do not end:\n{}", queued());
        let rows = self
            .hosts
            .cmd("head", "sacct")
            .args(["-n", "-X", "-P", "-o", "JobID,State,ExitCode", "--name=job.sh"])
            .ok();
        let mut records = BTreeMap::new();
        for row in rows.text().lines() {
            let (job, rest) = row.split_once('|').unwrap();
            let twice = records.insert(job.parse::<u64>().unwrap(), rest.to_string());
            assert!(twice.is_none(), "job {job} has two records: {rest} and {twice:?}");
        }
        for job in acknowledged {
            let code = job % 3;
            let state = if code == 0 { "COMPLETED" } else { "FAILED" };
            if records.get(&job) != Some(&format!("{state}|{code}:0")) {
                let told = self.hosts.cmd("head", "sacct").args(["-P", "-j", &job.to_string()]);
                let told = told.args(["-o", "JobID,NodeList,State,ExitCode,Start,End,Reason"]).run();
                let [ran, out] = ["ran", "out"].map(|part| self.read(&format!("{part}/{job}")));
                panic!("job {job} is not {state} with {code}:0:\n{told}\nit ran:\n{ran}and said:\n{out}");
            }
            let said = format!("job {job} says this\njob {job} says more\n");
            assert_eq!(self.read(&format!("out/{job}")), said, "job {job}");
        }
        // Also of jobs whose acknowledgement was lost on its way none ran twice.
        for job in records.keys() {
            let ran = self.read(&format!("ran/{job}"));
            let lines: Vec<&str> = ran.lines().map(|line| line.split(' ').next().unwrap_or("")).collect();
            assert_eq!(lines, ["begun", "ended"], "job {job}");
        }
        for node in NODES {
            self.hosts.wait_node(node, "idle", 60);
            for part in ["spool", "jobs", "scratch"] {
                let left =
                    || std::fs::read_dir(self.hosts.state(node).join(part)).into_iter().flatten().flatten();
                let names =
                    || left().map(|entry| entry.file_name()).filter(|n| of_a_job(n)).collect::<Vec<_>>();
                assert!(
                    wait(20, || names().is_empty().then_some(())).is_some(),
                    "{node} keeps {:?}",
                    names()
                );
            }
        }
    }
}

/// Whether an entry of a state directory is of a job: what waits for the next ones is not.
fn of_a_job(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with(|c: char| c.is_ascii_digit())
}

fn four() -> Hosts {
    Hosts::new(&["head", "n1", "n2", "n3"])
}

#[test]
fn nodes_that_are_cut_off_keep_their_jobs_and_tell_of_them_when_they_are_back_as_root() {
    let busy = Busy::begin(four(), "node_timeout_seconds = 5\n");
    let hosts = &busy.hosts;
    // One for longer than it takes to be given up, two for a moment.
    hosts.link("n1", false);
    busy.wait_silent("n1");
    hosts.link("n2", false);
    hosts.link("n3", false);
    std::thread::sleep(Duration::from_millis(800));
    hosts.link("n2", true);
    hosts.link("n3", true);
    hosts.link("n1", true);
    busy.wait_for_all(60);
    // The controller's own: nobody is in reach.
    hosts.link("head", false);
    for node in NODES {
        busy.wait_silent(node);
    }
    hosts.link("head", true);
    busy.wait_for_all(60);
    busy.end(20);
}

/// Counts until it may end.
const COUNTS: &str = "i=0; until [ -e quiet ]; do echo $i; i=$((i + 1)); sleep 0.1; done; exit 5";

/// Who works on a login node whose agent is killed, too, is answered by the next one.
#[test]
fn daemons_killed_at_any_moment_under_load_lose_no_job_and_run_none_twice_as_root() {
    let mut dice = Dice::new();
    let rounds = std::env::var("BERTH_ROUNDS").ok().map_or(6, |rounds| rounds.parse::<u64>().unwrap());
    let busy = Busy::idle(Hosts::new(&["head", "n1", "n2", "n3", "front"]), "");
    busy.hosts.join("front", &busy.hosts.token("head", &["--role", "login"]));
    busy.hosts.wait_node("head", "idle", 60);
    // On the node of the four that need not begin any job: it may have one core.
    let counts = ["-w", "head", "-c1", "--mem=16M", "sh", "-c", COUNTS];
    let mut stream = busy.hosts.cmd("front", "srun").args(counts).limit(3600).spawn();
    stream.wait_for("3\n", 20);
    let busy = busy.work("front");
    let hosts = &busy.hosts;
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        dice.pause(600);
        let killed = Instant::now();
        // Beside the others, and in the first round in any case.
        let front = dice.roll(2) == 0 || round == 0;
        if front {
            hosts.kill_9("front", "agent");
        }
        let node = NODES[usize::try_from(dice.roll(3)).unwrap()];
        match dice.roll(4) {
            0 => hosts.kill_9("head", "controller"),
            1 => hosts.kill_9(node, "agent"),
            2 => {
                hosts.kill_9("head", "controller");
                hosts.kill_9(node, "agent");
            }
            _ => {
                hosts.link(node, false);
                hosts.kill_9(node, "agent");
            }
        }
        dice.pause(300);
        hosts.link(node, true);
        busy.up("head");
        if front {
            busy.up("front");
        }
        longest = longest.max(killed.elapsed());
        busy.up(node);
    }
    busy.wait_for_all(60);
    std::fs::write(hosts.work().join("quiet"), "").unwrap();
    let counted = stream.finish();
    assert_eq!(counted.rc, 5, "{counted}");
    for (at, line) in counted.text().lines().enumerate() {
        assert_eq!(line, at.to_string(), "the stream has a gap, or something twice:\n{counted}");
    }
    let told = busy.read("told");
    // It waits ten seconds; on a busy machine two daemons may take longer to come back.
    let waited = !told.contains("sbatch: error");
    assert!(
        waited || longest > Duration::from_secs(8),
        "sbatch did not wait for a daemon that came back:\n{told}"
    );
    busy.end(20);
}

/// Goes on until it may end. That it began and ended is appended to a file.
const STAYS: &str = r#"#!/bin/sh
echo begun >> stays/$SLURM_JOB_ID
until [ -e go ]; do : > stays/$SLURM_JOB_ID.beat; sleep 0.05; done
echo ended >> stays/$SLURM_JOB_ID
"#;

/// Processes of which this holds, by their directories in /proc.
fn processes(is: impl Fn(&Path) -> bool) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let all = entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
    all.filter(|(_, path)| is(path)).map(|(pid, _)| pid).collect()
}

/// From which a host's supervisors are forked: a child of its agent.
fn zygote(hosts: &Hosts, host: &str) -> Option<i32> {
    let agent = hosts.pid(host, "agent");
    let is = |path: &Path| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
        let words = stat.rsplit(')').next().unwrap_or_default();
        let parent = words.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        line.ends_with(b"\0zygote\0") && parent == Some(agent)
    };
    processes(is).first().copied()
}

/// Who keeps the deadlines of a host's jobs: its words are for the agent's log.
fn keeper(hosts: &Hosts, host: &str) -> Option<i32> {
    let is = |path: &Path| {
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        let log = std::fs::read_link(path.join("fd/2")).unwrap_or_default();
        name.trim() == "berth-deadlines" && log.starts_with(hosts.state(host))
    };
    processes(is).first().copied()
}

/// A number in a file that a host's agent or a supervisor writes.
fn written(hosts: &Hosts, host: &str, file: &str, at: &str) -> i32 {
    let path = hosts.state(host).join(file);
    let read = || {
        let value: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        i32::try_from(value.pointer(at)?.as_i64()?).ok()
    };
    wait(20, read).unwrap_or_else(|| panic!("{} has no {at}", path.display()))
}

/// What is killed is not the daemons, but what each node has behind its steps.
#[test]
fn what_is_behind_steps_killed_under_load_ends_its_own_job_and_nothing_else_as_root() {
    let mut dice = Dice::new();
    // Where jobs have deadlines there is a process that keeps them.
    let busy = Busy::begin(four(), "node_timeout_seconds = 10\nlost_after_seconds = 60\n");
    let hosts = &busy.hosts;
    std::fs::write(hosts.work().join("stays.sh"), STAYS).unwrap();
    hosts.cmd("head", "mkdir").arg("stays").ok();
    let jobs = NODES.map(|node| {
        let words = ["--parsable", "--requeue", "-c1", "--mem=16M", "-t5", "-o", "/dev/null", "-w", node];
        hosts.cmd("head", "sbatch").args(words).arg("stays.sh").ok().text().trim().to_string()
    });
    let said = |job: &str| busy.read(&format!("stays/{job}"));
    for job in &jobs {
        assert!(wait(30, || (said(job) == "begun\n").then_some(())).is_some(), "job {job} does not begin");
    }
    let [first, second, third] = &jobs;
    // The supervisor of a step: nobody knows any more how it ends, and it is ended.
    dice.pause(300);
    kill_9(written(hosts, "n1", &format!("spool/{first}.0.batch/state.json"), "/pid"));
    // The first of a job's processes: with it they are all gone.
    dice.pause(300);
    kill_9(written(hosts, "n2", &format!("jobs/{second}/job.json"), "/namespaces/pid"));
    for (job, node) in [(first, "n1"), (second, "n2")] {
        let state = || {
            let rows = hosts.cmd("head", "sacct").args(["-n", "-X", "-P", "-o", "State,ExitCode", "-j", job]);
            rows.ok().text().trim().to_string()
        };
        assert!(wait(30, || (state() == "FAILED|0:9").then_some(())).is_some(), "job {job}: {}", state());
        let quiet = || {
            let beat = std::fs::metadata(hosts.work().join(format!("stays/{job}.beat"))).unwrap();
            // A busy machine may keep it from beating for a second.
            beat.modified().unwrap().elapsed().is_ok_and(|since| since > Duration::from_secs(3))
        };
        assert!(wait(30, || quiet().then_some(())).is_some(), "job {job} lives on {node}");
    }
    // What is the node's own is there again, and no job notices.
    type Find = fn(&Hosts, &str) -> Option<i32>;
    let own: [(&str, Find); 2] = [("zygote", zygote), ("keeper of deadlines", keeper)];
    for node in NODES {
        for (what, find) in own {
            dice.pause(100);
            let pid = wait(30, || find(hosts, node)).unwrap_or_else(|| panic!("{node} has no {what}"));
            kill_9(pid);
            let again = wait(30, || find(hosts, node).filter(|now| *now != pid));
            assert!(again.is_some(), "{node} has no other {what}");
        }
    }
    busy.wait_for_all(60);
    std::fs::write(hosts.work().join("go"), "").unwrap();
    assert!(wait(30, || (said(third) == "begun\nended\n").then_some(())).is_some(), "{}", said(third));
    for job in [first, second] {
        assert_eq!(said(job), "begun\n", "job {job} ran twice, or to its end");
    }
    busy.end(20);
}

#[test]
fn a_full_disk_under_the_records_refuses_new_jobs_and_keeps_the_ends_of_others_as_root() {
    let mut hosts = four();
    hosts.disk("head", "96m");
    let busy = Busy::begin(hosts, "");
    let hosts = &busy.hosts;
    let filler = hosts.state("head").join("filler");
    hosts.root("head", "sh").args(["-c", "cat /dev/zero >> \"$0\"; :"]).arg(&filler).run();
    let mut waits = hosts.cmd("head", "sh").args(["-c", "sbatch --wrap true 2>&1"]).limit(300).spawn();
    waits.wait_for("takes no new jobs until its disk has room", 60);
    let status = hosts.root("head", "berth").arg("status").run();
    assert!(status.text().contains("is full"), "{status}");
    // What was acknowledged goes on to its end, which is on record.
    let running = || hosts.cmd("head", "squeue").args(["-h", "-o", "%i"]).ok().text();
    assert!(wait(90, || running().trim().is_empty().then_some(())).is_some(), "{}", running());
    let before = busy.acknowledged().len();
    hosts.kill_9("head", "controller");
    busy.up("head");
    let rows = hosts.cmd("head", "sacct").args(["-n", "-X", "-P", "-o", "State"]).ok().text();
    let ended = rows.lines().filter(|state| ["COMPLETED", "FAILED"].contains(state)).count();
    assert!(ended >= before, "{before} were acknowledged, {ended} ended:\n{rows}");
    // Room again: without a restart, and without another word from who waits.
    std::fs::remove_file(&filler).unwrap();
    let taken = waits.finish();
    assert!(taken.rc == 0 && taken.text().contains("Submitted batch job"), "{taken}");
    busy.wait_for_all(60);
    busy.end(20);
}
