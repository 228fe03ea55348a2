//! Connections to machines' ports that say nothing, as any user can make them: nobody waits for them.

use berth_tests::Hosts;
use berth_tests::sandbox::wait;
use nix::sys::signal::Signal;

/// Holds so many connections, and goes on making new ones in place of the oldest.
const HOLD: &str = r#"
use IO::Socket::INET;
my ($port, $many) = @ARGV;
$| = 1;
alarm 150;
sub one { IO::Socket::INET->new(PeerAddr => $port) }
my @held = map { one() or die "$!" } 1 .. $many;
print "held\n";
while (1) {
    select undef, undef, undef, 0.01;
    my $next = one() or next;
    push @held, $next;
    shift @held;
}
"#;

#[test]
fn idle_connections_of_users_keep_neither_agents_nor_streams_out_as_root() {
    let hosts = Hosts::new(&["head", "n1", "front"]);
    hosts.up("head", "");
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.join("front", &hosts.token("head", &["--role", "login"]));
    hosts.wait_node("n1", "idle", 20);
    let log =
        |host: &str| std::fs::read_to_string(hosts.state(host).join("log/agent.log")).unwrap_or_default();
    let ready = || log("n1").contains("streams of steps are taken there").then_some(());
    assert!(wait(20, ready).is_some(), "{}", log("n1"));
    // From the addresses of the very machines whose daemons are to get through.
    let holders = [("front", "10.77.0.2:7818"), ("n1", "10.77.0.1:7817")].map(|(host, port)| {
        let hold = hosts.cmd(host, "perl").args(["-e", HOLD, port, "700"]).limit(160);
        let mut holder = hold.spawn();
        holder.wait_for("held", 60);
        holder
    });
    let runs = || {
        let told = hosts.cmd("front", "srun").args(["-w", "n1", "hostname"]).limit(60).ok();
        assert_eq!(told.text().trim(), "n1", "{told}");
    };
    runs();
    hosts.kill_9("n1", "agent");
    hosts.root("n1", "berth").args(["up", "--detach"]).limit(60).ok();
    hosts.wait_node("n1", "idle", 30);
    runs();
    let away = "n1 is not reached for streams";
    assert!(!log("front").contains(away), "{}", log("front"));
    for mut holder in holders {
        assert!(holder.alive());
        holder.signal(Signal::SIGTERM);
        holder.finish();
    }
    // It would have been seen: the login node goes straight to the node.
    let drop = ["-w", "-I", "INPUT", "-p", "tcp", "--dport", "7818", "-j", "DROP"];
    hosts.root("n1", "iptables").args(drop).ok();
    runs();
    assert!(log("front").contains(away), "{}", log("front"));
}
