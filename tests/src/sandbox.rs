//! A cluster of its own for one test: started as root or as an ordinary user, stopped at the end, with nothing left behind.

use crate::{Cmd, Output, Who, leftovers, machine};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A directory with a cluster's state, a working directory for jobs and the commands.
pub struct Sandbox {
    who: Who,
    directory: PathBuf,
    started: bool,
}

impl Sandbox {
    /// Starts a cluster without a configuration file.
    pub fn start(who: Who) -> Sandbox {
        Sandbox::with_config(who, "")
    }

    /// Starts a cluster with this `berth.toml`.
    pub fn with_config(who: Who, config: &str) -> Sandbox {
        let mut sandbox = Sandbox::empty(who);
        if !config.is_empty() {
            let path = sandbox.state().join("berth.toml");
            std::fs::write(&path, config).unwrap();
            machine::give(&path, &sandbox.who);
        }
        sandbox.up();
        sandbox
    }

    /// Directories and commands, but no cluster yet.
    pub fn empty(who: Who) -> Sandbox {
        let directory = tempfile::Builder::new().prefix("bt-").tempdir_in("/tmp").unwrap().keep();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&directory, open.clone()).unwrap();
        machine::give(&directory, &who);
        for name in ["state", "work", "bin"] {
            std::fs::create_dir(directory.join(name)).unwrap();
            std::fs::set_permissions(directory.join(name), open.clone()).unwrap();
            machine::give(&directory.join(name), &who);
        }
        let sandbox = Sandbox { who, directory, started: false };
        sandbox
            .cmd(machine::programs().join("berth"))
            .arg("install-links")
            .arg(sandbox.directory.join("bin"))
            .ok();
        sandbox
    }

    /// Runs `berth up --detach`.
    pub fn up(&mut self) {
        self.started = true;
        self.cmd("berth").args(["up", "--detach"]).ok();
    }

    /// As [`Sandbox::up`], by a shell that lowered its limits with these `ulimit` words.
    pub fn up_with_limits(&mut self, limits: &str) {
        self.up_by("sh", &["-c".to_string(), format!("ulimit {limits} && exec berth up --detach")]);
    }

    /// As [`Sandbox::up`], by a program with these arguments that comes to `berth up --detach`.
    pub fn up_by(&mut self, program: &str, arguments: &[String]) {
        self.started = true;
        self.cmd(program).args(arguments).ok();
    }

    /// Runs `berth down`.
    pub fn down(&mut self) -> Output {
        self.started = false;
        self.cmd("berth").arg("down").limit(60).run()
    }

    /// Whose cluster it is.
    pub fn who(&self) -> &Who {
        &self.who
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// The working directory of every command, owned by the cluster's user.
    pub fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// A command of this cluster, run by its user in the working directory.
    pub fn cmd(&self, program: impl AsRef<std::ffi::OsStr>) -> Cmd {
        self.cmd_as(&self.who, program)
    }

    /// A command of this cluster, run by somebody else.
    pub fn cmd_as(&self, who: &Who, program: impl AsRef<std::ffi::OsStr>) -> Cmd {
        let path = format!(
            "{}:{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            self.directory.join("bin").display(),
            machine::programs().display()
        );
        // Found here, because the caller of exec looks in its own PATH.
        let program = program.as_ref();
        let found = path.split(':').map(|d| Path::new(d).join(program)).find(|p| p.exists());
        let found = found.map_or_else(|| program.to_owned(), PathBuf::into_os_string);
        Cmd::new(found).who(who).env("PATH", path).env("BERTH_STATE", self.state()).dir(self.work())
    }

    /// `srun` with these arguments.
    pub fn srun<A: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Cmd {
        self.cmd("srun").args(arguments)
    }

    /// `srun --container-image=IMAGE` with these arguments.
    pub fn srun_in<A: AsRef<std::ffi::OsStr>>(
        &self,
        image: impl AsRef<std::ffi::OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Cmd {
        self.cmd("srun").arg("--container-image").arg(image).args(arguments)
    }

    /// Submits a script with `sbatch --parsable` and returns the job's id.
    pub fn sbatch(&self, options: &[&str], script: &str) -> u64 {
        let path = self.write("job.sh", script);
        let output = self.cmd("sbatch").arg("--parsable").args(options).arg(path).ok();
        output.text().parse().unwrap_or_else(|_| panic!("no job id\n{output}"))
    }

    /// Writes a file of the user's in the working directory, executable when it starts with `#!`.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.work().join(name);
        std::fs::write(&path, &content).unwrap();
        let mode = if content.as_ref().starts_with(b"#!") { 0o755 } else { 0o644 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        machine::give(&path, &self.who);
        path
    }

    /// Reads a file of the working directory.
    pub fn read(&self, name: &str) -> String {
        let path = self.work().join(name);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the file exists and holds the text.
    pub fn wait_file(&self, name: &str, text: &str, seconds: u64) {
        let path = self.work().join(name);
        let seen = wait(seconds, || {
            let content = std::fs::read(&path).unwrap_or_default();
            String::from_utf8_lossy(&content).contains(text).then_some(())
        });
        let content = || String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).into_owned();
        assert!(
            seen.is_some(),
            "{} does not say `{text}` after {seconds} s; it says: {}",
            path.display(),
            content()
        );
    }

    /// Fields of a job's rows in `sacct`, without a header.
    pub fn sacct(&self, job: u64, fields: &str) -> Vec<Vec<String>> {
        let output = self.cmd("sacct").args(["-n", "-P", "-o", fields, "-j", &job.to_string()]).ok();
        output.text().lines().map(|l| l.split('|').map(str::to_string).collect()).collect()
    }

    /// State of the job itself in `sacct`, its first word.
    pub fn job_state(&self, job: u64) -> String {
        let rows = self.sacct(job, "State");
        rows.first().map(|r| r[0].split(' ').next().unwrap_or("").to_string()).unwrap_or_default()
    }

    /// Waits until the job is in this state.
    pub fn wait_state(&self, job: u64, state: &str, seconds: u64) {
        let seen = wait(seconds, || (self.job_state(job) == state).then_some(()));
        if seen.is_none() {
            let show = self.cmd("scontrol").args(["show", "job", &job.to_string()]).run();
            panic!("job {job} is {} and not {state} after {seconds} s\n{show}", self.job_state(job));
        }
    }

    /// `berth status --json`.
    pub fn status(&self) -> Value {
        let output = self.cmd("berth").args(["status", "--json"]).ok();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}\n{output}"))
    }

    /// Process id of the controller.
    pub fn controller(&self) -> i32 {
        i32::try_from(self.status()["controller"]["pid"].as_i64().unwrap()).unwrap()
    }

    /// Process id of the agent.
    pub fn agent(&self) -> i32 {
        i32::try_from(self.status()["agents"][0]["pid"].as_i64().unwrap()).unwrap()
    }

    /// Name of the only node.
    pub fn node(&self) -> String {
        self.cmd("sinfo").args(["-h", "-N", "-o", "%N"]).ok().text().trim().to_string()
    }

    /// Kills a process of the cluster's without warning and waits until it is gone.
    pub fn kill_9(&self, pid: i32) {
        kill_9(pid);
    }
}

/// Kills a process without warning and waits until it is gone.
pub fn kill_9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    assert!(wait(30, || gone(pid).then_some(())).is_some(), "process {pid} survives SIGKILL");
}

/// Prints the ends of a state directory's logs, for a test that failed.
pub fn print_logs(state: &Path) {
    for log in std::fs::read_dir(state.join("log")).into_iter().flatten().flatten() {
        let text = std::fs::read(log.path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("--- {}\n{}", log.path().display(), lines[lines.len().saturating_sub(40)..].join("\n"));
    }
}

/// What is left of a test below its directory; processes are ended.
pub fn end_what_is_left(directory: &Path, complaints: &mut Vec<String>) {
    if wait(20, || leftovers::processes(directory).is_empty().then_some(())).is_none() {
        for (pid, line) in leftovers::processes(directory) {
            complaints.push(format!("process {pid} is left: {line}"));
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    for mount in leftovers::mounts(directory) {
        complaints.push(format!("a mount is left: {mount}"));
    }
}

/// Whether a process has ended; that its new parent has not asked for its exit status yet does not matter.
pub fn gone(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

/// Asks again and again until there is an answer or the time is up: less often the longer it takes, since most who ask start a
/// command, and those who wait for a minute would take a processor from all others.
pub fn wait<T>(seconds: u64, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        let waited = begun.elapsed();
        if waited > Duration::from_secs(seconds) {
            return None;
        }
        std::thread::sleep((waited / 20).clamp(Duration::from_millis(20), Duration::from_millis(250)));
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        if failing {
            eprintln!("state of the failed test's cluster:");
            print_logs(&self.state());
        }
        let mut complaints = Vec::new();
        if self.started {
            // A command of its own: a panic in here would hide the test's.
            let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.down()));
            match stopped {
                Ok(output) if output.rc == 0 => {}
                Ok(output) => complaints.push(output.to_string()),
                Err(_) => complaints.push("berth down hangs".to_string()),
            }
        }
        end_what_is_left(&self.directory, &mut complaints);
        complaints.extend(leftovers::of_control_groups(&self.state()));
        for name in ["spool", "jobs", "scratch"] {
            for entry in std::fs::read_dir(self.state().join(name)).into_iter().flatten().flatten() {
                complaints.push(format!("the state directory still has {}", entry.path().display()));
            }
        }
        if !failing && !complaints.is_empty() {
            print_logs(&self.state());
        }
        let _ = Cmd::new("chmod").args(["-R", "u+rwX"]).arg(&self.directory).run();
        let removed = Cmd::new("rm").arg("-rf").arg(&self.directory).run();
        if removed.rc != 0 {
            complaints.push(removed.to_string());
        }
        if complaints.is_empty() {
            return;
        }
        if failing {
            eprintln!("also: {}", complaints.join("\nalso: "));
        } else {
            panic!("the cluster left something behind:\n{}", complaints.join("\n"));
        }
    }
}
