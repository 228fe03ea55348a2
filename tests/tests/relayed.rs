//! Streams that go by the controller: whatever breaks on the way, nothing of them is lost and nothing comes twice.

use berth_tests::Hosts;
use berth_tests::processes::{Watched, of_step};
use berth_tests::sandbox::wait;
use std::path::Path;

/// A hundred pieces of a megabyte, no two alike, with a pause behind each: what breaks in between breaks in the middle.
const PIECES: &str =
    "i=0; while [ $i -lt 100 ]; do i=$((i+1)); seq $((i*1000000)) $((i*1000000+124999)); sleep 0.05; done";

fn sum(work: &Path, command: &str) -> String {
    let sum = berth_tests::Cmd::new("sh").args(["-c", command]).dir(work).limit(120).ok().text();
    sum.split_whitespace().next().unwrap().to_string()
}

#[test]
fn a_hundred_megabytes_each_way_outlive_relay_and_agent_as_root() {
    let hosts = Hosts::new(&["head", "n1"]);
    // By the controller, and not by the node's own port.
    hosts.up("head", "[images]\npeers = \"off\"\n");
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.wait_node("n1", "idle", 60);
    let work = hosts.work();
    std::fs::write(work.join("pieces"), PIECES).unwrap();
    let small = "srun -w n1 -c1 --mem=64M";
    let out = format!("exec {small} sh {}/pieces > out", work.display());
    let out = hosts.cmd("head", "sh").args(["-c", &out]).limit(240).spawn();
    let into = format!("sh pieces | {small} sha256sum > in");
    let into = hosts.cmd("head", "sh").args(["-c", &into]).limit(240).spawn();
    let size = || std::fs::metadata(work.join("out")).map_or(0, |file| file.len());
    assert!(wait(60, || (size() > 1 << 20).then_some(())).is_some(), "{} bytes came", size());
    let names = hosts.cmd("head", "squeue").args(["-h", "--steps", "-o", "%i %j"]).ok().text();
    let sh = names.lines().find_map(|line| line.trim().strip_suffix(" sh")).unwrap().to_string();
    // A terminal that nobody types on.
    let beside = format!("exec sattach {sh} > beside 2> said");
    let beside = hosts.cmd("head", "sh").args(["-c", &beside]).stdin_open().limit(240).spawn();
    for (daemon, host, at) in
        [("controller", "head", 10), ("agent", "n1", 25), ("agent", "head", 40), ("controller", "head", 55)]
    {
        assert!(wait(60, || (size() > at << 20).then_some(())).is_some(), "{} bytes came", size());
        hosts.kill_9(host, daemon);
        hosts.root(host, "berth").args(["up", "--detach"]).ok();
        assert!(size() < 90 << 20, "it is nearly over: nothing broke in the middle");
    }
    for step in [out, into, beside] {
        let ended = step.finish();
        assert_eq!(ended.rc, 0, "{ended}");
    }
    let wanted = sum(&work, "sh pieces | sha256sum");
    assert_eq!(sum(&work, "sha256sum out"), wanted, "{} bytes came out", size());
    assert_eq!(sum(&work, "cat in"), wanted);
    // Who came later heard all that was said from then on.
    let heard = std::fs::metadata(work.join("beside")).unwrap().len();
    assert!(heard > 80 << 20, "{heard} bytes were heard beside it");
    let rest = sum(&work, &format!("tail -c {heard} out | sha256sum"));
    assert_eq!(sum(&work, "sha256sum beside"), rest, "of {heard} bytes");
    assert_eq!(std::fs::read_to_string(work.join("said")).unwrap(), "");
}

#[test]
fn who_does_not_read_holds_up_nobody_else_and_fills_no_memory_as_root() {
    let hosts = Hosts::new(&["head", "n1"]);
    hosts.up("head", "[images]\npeers = \"off\"\n");
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.wait_node("n1", "idle", 60);
    let small = "srun -w n1 -c1 --mem=64M";
    // A reader that reads nothing: its own step waits, and another one of the same node goes the same way.
    let full = format!("{small} sh -c 'echo $SLURM_JOB_ID > held; yes' | sleep 120");
    let mut held = hosts.cmd("head", "sh").args(["-c", &full]).limit(180).spawn();
    let job = || std::fs::read_to_string(hosts.work().join("held")).ok().filter(|id| id.ends_with('\n'));
    let job = wait(30, job).unwrap();
    let daemons = [("head", "controller"), ("head", "agent"), ("n1", "agent")];
    let mut all =
        daemons.map(|(host, daemon)| (format!("the {daemon} of {host}"), hosts.pid(host, daemon))).to_vec();
    // Who waits for the reader, and who waits for that.
    all.extend(of_step(&hosts, &held, "n1", &format!("{}.0.0", job.trim())));
    let watched = Watched::begin(all);
    let flood = format!("{small} head -c 512M /dev/zero | cmp -n 536870912 - /dev/zero && echo all");
    let told = hosts.cmd("head", "sh").args(["-c", &flood]).limit(120).ok();
    assert_eq!(told.text(), "all", "{told}");
    assert!(held.alive());
    watched.have_not_grown_by(64);
    hosts.cmd("head", "scancel").arg(job.trim()).ok();
    hosts.wait_node("n1", "idle", 30);
    // What it wrote is still for its reader, which is ours to end.
    berth_tests::Cmd::new("kill").args(["-TERM", "--", &format!("-{}", held.pid())]).ok();
    held.finish();
}
