//! `berth node rotate-key` that is killed in the middle: the controller has the new key, the machine goes by the old one, and comes back.

use berth_tests::Hosts;
use berth_tests::sandbox::wait;
use serde_json::Value;
use std::path::PathBuf;

fn private(hosts: &Hosts, name: &str) -> PathBuf {
    hosts.state("n1").join("private").join(name)
}

/// By which key the machine goes.
fn key(hosts: &Hosts) -> String {
    let joined = std::fs::read(private(hosts, "joined.json")).unwrap();
    serde_json::from_slice::<Value>(&joined).unwrap()["key"].as_str().unwrap().to_string()
}

/// How often the controller exchanged it.
fn exchanges(hosts: &Hosts) -> usize {
    let audit = hosts.root("head", "berth").args(["audit", "-n", "0"]).ok().text();
    audit.matches("n1 exchanged its key").count()
}

/// The command is killed as it writes the new certificate, which is the largest of its files: at most so many bytes go into one.
fn cut_off(hosts: &Hosts) {
    let certificate = private(hosts, &format!("node-{}.crt", &key(hosts)[..16]));
    let most = std::fs::metadata(certificate).unwrap().len() - 40;
    assert!(most > 300, "a certificate is not the largest file: {most}");
    let before = exchanges(hosts);
    let limit = format!("--fsize={most}");
    let told =
        hosts.root("n1", "prlimit").args([limit.as_str(), "--core=0", "berth", "node", "rotate-key"]).fails();
    assert_eq!(exchanges(hosts), before + 1, "the controller heard nothing of it: {told}");
}

fn works(hosts: &Hosts) {
    let run = || hosts.cmd("head", "srun").args(["-w", "n1", "-t", "1", "hostname"]).limit(20).run();
    let told = wait(60, || Some(run()).filter(|told| told.rc == 0 && told.text().trim() == "n1"));
    let log = || std::fs::read_to_string(hosts.state("n1").join("log/agent.log")).unwrap();
    assert!(told.is_some(), "n1 does not come back: {}", log());
    assert!(!private(hosts, "rotating").exists());
}

#[test]
fn a_machine_whose_exchange_of_keys_was_killed_comes_back_as_root() {
    let hosts = Hosts::new(&["head", "n1"]);
    hosts.up("head", "");
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.wait_node("n1", "idle", 60);
    let first = key(&hosts);
    // Its agent sees to it.
    cut_off(&hosts);
    assert!(wait(30, || (key(&hosts) != first).then_some(())).is_some(), "it goes by the old key");
    works(&hosts);
    // One that starts does, too.
    let second = key(&hosts);
    hosts.kill_9("n1", "agent");
    cut_off(&hosts);
    assert_eq!(key(&hosts), second);
    hosts.root("n1", "berth").args(["up", "--detach"]).limit(60).ok();
    works(&hosts);
    assert_ne!(key(&hosts), second);
    // And so does who asks for an exchange: there is one more behind it.
    let third = key(&hosts);
    hosts.kill_9("n1", "agent");
    cut_off(&hosts);
    hosts.root("n1", "berth").args(["node", "rotate-key"]).ok();
    assert_eq!(exchanges(&hosts), 4);
    assert_ne!(key(&hosts), third);
    hosts.root("n1", "berth").args(["up", "--detach"]).limit(60).ok();
    works(&hosts);
}

#[test]
fn a_machine_that_was_removed_in_the_middle_of_an_exchange_is_told_what_to_do_as_root() {
    let hosts = Hosts::new(&["head", "n1"]);
    hosts.up("head", "");
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.wait_node("n1", "idle", 60);
    hosts.kill_9("n1", "agent");
    cut_off(&hosts);
    hosts.root("head", "berth").args(["node", "remove", "n1"]).ok();
    assert!(private(&hosts, "rotating").exists());
    // Its agent ends it, and says why.
    let agent = hosts.root("n1", "berth").args(["agent"]).limit(120).spawn();
    let gone = wait(60, || (!private(&hosts, "rotating").exists()).then_some(()));
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    let said = agent.finish();
    assert!(gone.is_some(), "it asks for ever: {said}");
    // So does the command, and does not begin another one.
    let rotate = || hosts.root("n1", "berth").args(["node", "rotate-key"]).fails();
    rotate().says(&["not (any more)", "berth leave", "berth join"]);
    assert!(!private(&hosts, "rotating").exists());
    // What it says helps.
    hosts.root("n1", "berth").args(["leave"]).ok();
    hosts.join("n1", &hosts.token("head", &[]));
    hosts.wait_node("n1", "idle", 60);
    works(&hosts);
}
