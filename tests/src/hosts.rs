//! Hosts that are none: network namespaces of this machine, joined by a bridge, each with its own name and state directory. What
//! runs on them are real processes that reach each other by the network alone; users and filesystem are the machine's.

use crate::sandbox::{end_what_is_left, kill_9, print_logs, wait};
use crate::{Cmd, Who, leftovers, machine};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Sets the host's name and becomes the program.
const AS_HOST: &str = "hostname \"$0\" && exec \"$@\"";

/// Some hosts and the wire between them. Needs root.
pub struct Hosts {
    directory: PathBuf,
    names: Vec<String>,
    user: Who,
    disks: Vec<PathBuf>,
}

fn ip(words: &str) {
    Cmd::new("ip").args(words.split(' ')).ok();
}

impl Hosts {
    /// Hosts with these names; the first has the address 10.77.0.1, and so on.
    pub fn new(names: &[&str]) -> Hosts {
        let user = Who::user();
        let directory = tempfile::Builder::new().prefix("bt-").tempdir_in("/tmp").unwrap().keep();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&directory, open.clone()).unwrap();
        for name in ["bin", "work"] {
            std::fs::create_dir(directory.join(name)).unwrap();
            std::fs::set_permissions(directory.join(name), open.clone()).unwrap();
        }
        machine::give(&directory.join("work"), &user);
        let names = names.iter().map(|name| (*name).to_string()).collect();
        let hosts = Hosts { directory, names, user, disks: Vec::new() };
        Cmd::new(machine::programs().join("berth"))
            .arg("install-links")
            .arg(hosts.directory.join("bin"))
            .ok();
        // The bridge has a namespace of its own, so that the machine's network is as it was, and tests side by side have the
        // same addresses.
        let switch = hosts.space("switch");
        ip(&format!("netns add {switch}"));
        ip(&format!("-n {switch} link add wire type bridge"));
        ip(&format!("-n {switch} link set wire up"));
        for (at, name) in hosts.names.iter().enumerate() {
            let space = hosts.space(name);
            ip(&format!("netns add {space}"));
            ip(&format!("-n {switch} link add p{at} type veth peer name eth0 netns {space}"));
            ip(&format!("-n {switch} link set p{at} master wire up"));
            ip(&format!("-n {space} addr add 10.77.0.{}/24 dev eth0", at + 1));
            ip(&format!("-n {space} link set lo up"));
            ip(&format!("-n {space} link set eth0 up"));
            std::fs::create_dir(hosts.state(name)).unwrap();
            std::fs::set_permissions(hosts.state(name), open.clone()).unwrap();
        }
        hosts
    }

    fn space(&self, host: &str) -> String {
        let id = self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        format!("{id}-{host}")
    }

    /// The network namespace of a host.
    pub fn network(&self, host: &str) -> PathBuf {
        PathBuf::from("/run/netns").join(self.space(host))
    }

    /// The address of a host.
    pub fn address(&self, host: &str) -> String {
        let at = self.names.iter().position(|name| name == host).unwrap();
        format!("10.77.0.{}", at + 1)
    }

    /// The state directory of a host.
    pub fn state(&self, host: &str) -> PathBuf {
        self.directory.join(host)
    }

    /// Gives a host's state, which is still empty, a filesystem of its own of this size (`96m`).
    pub fn disk(&mut self, host: &str, size: &str) {
        let at = self.state(host);
        let options = format!("size={size},mode=755");
        Cmd::new("mount").args(["-t", "tmpfs", "-o", &options, "disk"]).arg(&at).ok();
        self.disks.push(at);
    }

    /// The working directory of every command, the user's.
    pub fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// The ordinary user who works on them.
    pub fn user(&self) -> &Who {
        &self.user
    }

    /// A command of root's on a host.
    pub fn root(&self, host: &str, program: impl AsRef<std::ffi::OsStr>) -> Cmd {
        self.on(host, &Who::root(), program)
    }

    /// A command of the ordinary user's on a host.
    pub fn cmd(&self, host: &str, program: impl AsRef<std::ffi::OsStr>) -> Cmd {
        self.on(host, &self.user, program)
    }

    /// A command of somebody's on a host.
    pub fn on(&self, host: &str, who: &Who, program: impl AsRef<std::ffi::OsStr>) -> Cmd {
        let own = self.directory.join(format!("programs-{host}"));
        let (links, programs) = match own.is_dir() {
            true => (own.join("bin"), own),
            false => (self.directory.join("bin"), machine::programs().to_path_buf()),
        };
        let path = format!(
            "{}:{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            links.display(),
            programs.display()
        );
        let cmd = Cmd::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.space(host)))
            .args(["unshare", "--uts", "sh", "-c", AS_HOST, host])
            .env("PATH", path)
            .env("HOME", &who.home)
            .env("BERTH_STATE", self.state(host))
            .dir(self.work());
        let cmd = if who.is_root() {
            cmd
        } else {
            let (uid, gid) = (format!("--reuid={}", who.uid), format!("--regid={}", who.gid));
            cmd.args(["setpriv", &uid, &gid, "--init-groups"])
        };
        cmd.arg(program)
    }

    /// Starts a cluster on a host.
    pub fn up(&self, host: &str, config: &str) {
        if !config.is_empty() {
            std::fs::write(self.state(host).join("berth.toml"), config).unwrap();
        }
        self.root(host, "berth").args(["up", "--detach"]).ok();
    }

    /// Puts other programs on a host, as packages do: each file is replaced whole, and what runs goes on with what it has.
    pub fn install(&self, host: &str, from: &Path) {
        let to = self.directory.join(format!("programs-{host}"));
        let (first, open) = (!to.is_dir(), std::fs::Permissions::from_mode(0o755));
        std::fs::create_dir_all(to.join("bin")).unwrap();
        for path in [&to, &to.join("bin")] {
            std::fs::set_permissions(path, open.clone()).unwrap();
        }
        for program in ["berth", "berth-step"] {
            let fresh = to.join("fresh");
            std::fs::copy(from.join(program), &fresh).unwrap();
            std::fs::set_permissions(&fresh, open.clone()).unwrap();
            std::fs::rename(&fresh, to.join(program)).unwrap();
        }
        if first {
            Cmd::new(to.join("berth")).arg("install-links").arg(to.join("bin")).ok();
        }
    }

    /// Puts other programs on a host and starts its daemons again, over what runs.
    pub fn upgrade(&self, host: &str, from: &Path) {
        self.install(host, from);
        self.root(host, "berth").args(["down", "--keep-jobs"]).limit(60).ok();
        self.root(host, "berth").args(["up", "--detach"]).limit(60).ok();
    }

    /// A token of the cluster on a host.
    pub fn token(&self, host: &str, options: &[&str]) -> String {
        self.root(host, "berth").args(["token", "create"]).args(options).ok().text().trim().to_string()
    }

    /// Has a host join the cluster of the first one.
    pub fn join(&self, host: &str, token: &str) {
        self.root(host, "berth").args(["join", "10.77.0.1", token, "--detach"]).ok();
    }

    /// Makes a cluster of as many hosts (`n1`, `n2`, ...), whose first one has the controller, with this configuration; all are idle.
    pub fn cluster(count: usize, config: &str) -> Hosts {
        let names: Vec<String> = (1..=count).map(|n| format!("n{n}")).collect();
        let hosts = Hosts::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
        hosts.up("n1", config);
        let token = hosts.token("n1", &["--uses", &(count - 1).to_string()]);
        names[1..].iter().for_each(|name| hosts.join(name, &token));
        names.iter().for_each(|name| hosts.wait_node(name, "idle", 20));
        hosts
    }

    /// Cuts a host off, or connects it again.
    pub fn link(&self, host: &str, up: bool) {
        let at = self.names.iter().position(|name| name == host).unwrap();
        ip(&format!("-n {} link set p{at} {}", self.space("switch"), if up { "up" } else { "down" }));
    }

    /// Process id of a daemon of a host: `agent` or `controller`.
    pub fn pid(&self, host: &str, daemon: &str) -> i32 {
        let text = std::fs::read(self.state(host).join("run").join(format!("{daemon}.json"))).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        i32::try_from(value["pid"].as_i64().unwrap()).unwrap()
    }

    /// Holds a daemon of a host up, as a machine does that swaps, until [`Hosts::resume`].
    pub fn pause(&self, host: &str, daemon: &str) {
        self.signal(host, daemon, Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self, host: &str, daemon: &str) {
        self.signal(host, daemon, Signal::SIGCONT);
    }

    fn signal(&self, host: &str, daemon: &str, signal: Signal) {
        kill(Pid::from_raw(self.pid(host, daemon)), signal).unwrap();
    }

    /// Kills a daemon of a host without warning and waits until it is gone.
    pub fn kill_9(&self, host: &str, daemon: &str) {
        kill_9(self.pid(host, daemon));
    }

    /// Waits until `sinfo` on the first host shows a node in a state that begins so.
    pub fn wait_node(&self, node: &str, state: &str, seconds: u64) {
        let head = self.names[0].clone();
        let show = || self.root(&head, "sinfo").args(["-h", "-n", node, "-o", "%T"]).run().text();
        let seen = wait(seconds, || show().trim().starts_with(state).then_some(()));
        assert!(seen.is_some(), "{node} is '{}' and not {state} after {seconds} s", show().trim());
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        if failing {
            self.names.iter().for_each(|name| print_logs(&self.state(name)));
        }
        let mut complaints = Vec::new();
        // Jobs are the controller's to end: it goes last, and while all are in reach.
        let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for name in &self.names {
                self.link(name, true);
            }
            let cancelled = self.root(&self.names[0], "scancel").args(["--state=RUNNING"]).limit(30).run();
            let mut said = Vec::new();
            if failing {
                eprintln!("{cancelled}");
            }
            for name in self.names.iter().rev() {
                let down = || self.root(name, "berth").arg("down").limit(60).run();
                // What was cancelled takes a moment.
                let stopped = wait(20, || Some(down()).filter(|output| output.rc == 0));
                if stopped.is_none() {
                    said.push(down().to_string());
                    let _ = self.root(name, "berth").args(["down", "--keep-jobs"]).limit(60).run();
                }
            }
            said
        }));
        match work {
            Ok(said) => complaints.extend(said),
            Err(_) => complaints.push("the hosts cannot be stopped".to_string()),
        }
        for disk in &self.disks {
            let _ = Cmd::new("umount").arg("-l").arg(disk).run();
        }
        end_what_is_left(&self.directory, &mut complaints);
        for name in &self.names {
            complaints.extend(leftovers::of_control_groups(&self.state(name)));
        }
        if !failing && !complaints.is_empty() {
            self.names.iter().for_each(|name| print_logs(&self.state(name)));
        }
        for name in self.names.iter().map(String::as_str).chain(["switch"]) {
            let _ = Cmd::new("ip").args(["netns", "delete", &self.space(name)]).run();
        }
        let _ = Cmd::new("rm").arg("-rf").arg(&self.directory).run();
        if complaints.is_empty() {
            return;
        }
        if failing {
            eprintln!("also: {}", complaints.join("\nalso: "));
        } else {
            panic!("the hosts left something behind:\n{}", complaints.join("\n"));
        }
    }
}
