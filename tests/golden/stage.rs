//! The cluster that commands are replayed on. `tests/golden.sh` has set the scene around it: host name, users, homes.

use crate::compare::Said;
use crate::transcript::Block;
use berth_tests::sandbox::wait;
use berth_tests::{Cmd, Running, Who, machine};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// As little as the recorded cluster's own configuration: the names, the limits and the devices of its partitions.
const CONFIG: &str = r#"cluster = "golden"
kill_wait_seconds = 5
min_job_age_seconds = 3600

[[partition]]
name = "debug"
default = true
max_time = "1-00:00:00"
default_time = "00:30:00"
default_mem_per_cpu = 500

[[partition]]
name = "gpu"
nodes = "GPU_NODES"
max_nodes = 2
default_mem_per_cpu = 500

[[node]]
name = "ALL"
memory_reserved = 0
gres = [{ name = "gpu", type = "test", files = ["/dev/tty[0-1]"] }]
"#;

/// Seconds after which a command is taken for one that waits for ever.
const PATIENCE: u64 = 100;

/// A cluster and the directories of its users.
pub struct Stage {
    directory: PathBuf,
    up: bool,
    others: Vec<Running>,
}

impl Stage {
    /// Directories and commands below `directory`.
    pub fn new(directory: &Path) -> Stage {
        let bin = directory.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        let berth = machine::programs().join("berth");
        Cmd::new(berth).arg("install-links").arg(&bin).ok();
        Stage { directory: directory.to_owned(), up: false, others: Vec::new() }
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Cmd {
        let own = [self.directory.join("bin"), machine::programs().to_owned()];
        let path = own.map(|p| p.display().to_string()).join(":");
        let path = format!("{path}:/usr/local/bin:/usr/bin:/bin");
        Cmd::new(program)
            .env("PATH", path)
            .env("BERTH_STATE", self.state())
            .env("TERM", "dumb")
            .env("SHELL", "/bin/bash")
    }

    /// Ends the cluster that is there, and starts one with nothing in it. All nodes but the first are agents under another
    /// host name on this machine: batch jobs run on them, but `srun` can only follow what runs on the first. Without a node, nothing runs.
    pub fn fresh(&mut self, nodes: u32) {
        self.down();
        std::fs::create_dir_all(self.state()).unwrap();
        let gpu = if nodes < 2 { "ALL".to_string() } else { format!("n[5-{nodes}]") };
        let config = self.state().join("berth.toml");
        std::fs::write(&config, CONFIG.replace("GPU_NODES", &gpu)).unwrap();
        for who in ["alice", "bob"].map(person) {
            let work = who.home.join("work");
            let _ = std::fs::remove_dir_all(&work);
            std::fs::create_dir_all(&work).unwrap();
            machine::give(&work, &who);
        }
        if nodes == 0 {
            return;
        }
        self.command(machine::programs().join("berth")).args(["up", "--detach"]).ok();
        self.up = true;
        for node in 2..=nodes {
            let state = self.directory.join(format!("n{node}"));
            let private = state.join("private");
            std::fs::create_dir_all(&private).unwrap();
            std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o700)).unwrap();
            std::fs::create_dir(state.join("run")).unwrap();
            for socket in ["private/node.sock", "run/controller.sock"] {
                std::os::unix::fs::symlink(self.state().join(socket), state.join(socket)).unwrap();
            }
            let agent = format!(
                "hostname n{node}; exec berth --state {} agent --config {}",
                state.display(),
                config.display()
            );
            self.others
                .push(self.command("unshare").args(["--uts", "sh", "-c", &agent]).limit(36_000).spawn());
        }
        let count = || {
            self.command(self.directory.join("bin/sinfo"))
                .args(["-h", "-p", "debug", "-o", "%D"])
                .run()
                .text()
        };
        assert!(
            wait(30, || (count().trim() == nodes.to_string()).then_some(())).is_some(),
            "{} of {nodes} nodes",
            count()
        );
    }

    /// Ends the cluster.
    pub fn down(&mut self) {
        if std::mem::take(&mut self.up) {
            // The first ends the jobs of all, each its own node's agent.
            for state in self.others_states().filter(|state| state.is_dir()) {
                self.command(machine::programs().join("berth"))
                    .arg("--state")
                    .arg(&state)
                    .arg("down")
                    .limit(60)
                    .ok();
            }
            self.others.clear();
            self.command(machine::programs().join("berth")).arg("down").limit(60).ok();
            std::fs::remove_dir_all(self.state()).unwrap();
            for state in self.others_states() {
                let _ = std::fs::remove_dir_all(state);
            }
        }
    }

    fn others_states(&self) -> impl Iterator<Item = PathBuf> + use<> {
        let directory = self.directory.clone();
        (2..=8).map(move |node| directory.join(format!("n{node}")))
    }

    /// Puts a file of the transcript where the next commands look for it.
    pub fn file(&self, name: &str, mode: u32, data: &[u8]) {
        let alice = person("alice");
        let path = alice.home.join("work").join(name);
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, data).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        machine::give(&path, &alice);
    }

    /// Runs a block's command, in our words.
    pub fn run(&self, block: &Block, command: &str) -> Said {
        let who = person(block.user.as_deref().unwrap_or("alice"));
        let home = if who.is_root() { person("alice").home } else { who.home.clone() };
        let directory = block.cwd.as_ref().map_or_else(|| home.join("work"), PathBuf::from);
        let directory = if directory.is_dir() { directory } else { PathBuf::from("/") };
        let limit = format!("{PATIENCE}");
        let mut cmd =
            self.command("timeout").args(["-k", "2", &limit, "bash", "-c", command]).who(&who).dir(directory);
        for (name, value) in &block.env {
            cmd = cmd.env(name, value);
        }
        let output = cmd.stdin(&block.stdin).limit(PATIENCE + 20).run();
        let rc = if output.rc == 124 { "TIMEOUT".to_string() } else { output.rc.to_string() };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { rc, out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.down();
    }
}

/// A user of the scene.
fn person(name: &str) -> Who {
    let user = nix::unistd::User::from_name(name).unwrap();
    Who::from(
        user.unwrap_or_else(|| panic!("there is no user {name}: run tests/golden.sh, which sets the scene")),
    )
}
