//! Sockets of ours: none is abstract, because abstract ones are reached from every container that shares the node's network; and no
//! user has all of their connections.

use berth_tests::{Cmd, Sandbox, Who, each_user, images, leftovers, sandbox::wait};
use std::collections::BTreeMap;

/// Unix sockets of the node by inode: `@name` for abstract ones, a path, or nothing.
fn unix_sockets() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string("/proc/net/unix").unwrap();
    let fields = text.lines().skip(1).map(|l| l.split_whitespace().collect::<Vec<_>>());
    fields.map(|f| (f[6].to_string(), f.get(7).unwrap_or(&"").to_string())).collect()
}

fn of_process(pid: i32) -> Vec<String> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = links.filter_map(|e| std::fs::read_link(e.path()).ok()?.to_str().map(str::to_string));
    links.filter_map(|l| Some(l.strip_prefix("socket:[")?.strip_suffix(']')?.to_string())).collect()
}

each_user! {
    fn no_part_of_ours_has_an_abstract_one(who) {
        let sandbox = Sandbox::start(who);
        let option = format!("--container-image={}", images::busybox().display());
        let job = sandbox.sbatch(&["-o", "/dev/null"], "#!/bin/sh\nsleep 1000\n");
        let mut step = sandbox.srun([&option, "sh", "-c", "echo ready; exec sleep 1000"]).spawn();
        step.wait_for("ready", 60);
        let ours = leftovers::processes(&sandbox.state());
        let known = unix_sockets();
        let mut paths = 0;
        for (pid, line) in &ours {
            for inode in of_process(*pid) {
                let name = known.get(&inode).cloned().unwrap_or_default();
                assert!(!name.starts_with('@'), "{line} has the abstract socket {name}");
                paths += usize::from(name.contains(".sock"));
            }
        }
        // The named ones were seen, so an abstract one would have been.
        assert!(paths >= 3, "only {paths} sockets of {} processes were found", ours.len());
        step.signal(nix::sys::signal::Signal::SIGINT);
        step.signal(nix::sys::signal::Signal::SIGINT);
        sandbox.cmd("scancel").arg(job.to_string()).ok();
        drop(step);
    }
}

/// Holds so many connections to a socket and asks by one more, prints the answer, and asks again after a line.
const CROWD: &str = r#"
use IO::Socket::UNIX;
my ($path, $query, $many) = @ARGV;
$| = 1;
sub ask {
    my $s = IO::Socket::UNIX->new(Peer => $path) or die "$!";
    print $s pack("CVV", 21, 0xffffffff, length $query), $query;
    $s->flush; $s->shutdown(1);
    local $/;
    print <$s>, "\n";
}
my @held = map { IO::Socket::UNIX->new(Peer => $path) or die "$!" } 1 .. $many;
ask();
print "asked\n";
<STDIN>;
ask();
"#;

#[test]
fn no_user_can_take_all_connections_of_a_node_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let (crowd, other) = (Who::user(), Who::stranger());
    // One user may have an eighth of the descriptors.
    Cmd::new("prlimit").args(["--pid", &sandbox.agent().to_string(), "--nofile=400:400"]).ok();
    let socket = sandbox.state().join("run/agent.sock").display().to_string();
    let words = ["-e", CROWD, &socket, r#"{"inspect":"none"}"#, "50"];
    let step = |who: &Who| sandbox.cmd_as(who, "srun").dir("/").args(["-n1", "echo", "here"]);
    // Who says nothing has ten seconds: where a step takes longer, the crowd is gone before it is over.
    let was_there = (0..5).any(|_| {
        let mut held = Cmd::new("perl").who(&crowd).dir("/").args(words).stdin_open().spawn();
        held.wait_for("asked", 20);
        assert_eq!(step(&other).ok().text().trim(), "here");
        held.write(b"\n");
        let told = held.finish().text();
        let refusals = told.matches("as many as one user may have").count();
        assert!(refusals > 0, "{told}");
        // The daemon sees that they are gone a moment later.
        let here = wait(20, || (step(&crowd).run().text().trim() == "here").then_some(()));
        assert!(here.is_some(), "the crowd has no place again");
        refusals == 2
    });
    assert!(was_there, "no step was faster than the crowd's time");
}
