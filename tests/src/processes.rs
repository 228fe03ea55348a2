//! Processes of a cluster, found from outside of it, and how much memory they have.

use crate::{Hosts, Running, leftovers};
use std::path::Path;

/// MiB that a process has in memory.
pub fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Processes of a process group with this name.
pub fn of_group(group: i32, name: &str) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    let is_one = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name is in parentheses, and may have some itself.
        let Some((before, after)) = stat.rsplit_once(')') else { return false };
        let called = before.split_once('(').map(|(_, called)| called);
        called == Some(name) && after.split_whitespace().nth(2) == Some(group.to_string().as_str())
    };
    pids.filter(is_one).collect()
}

/// Supervisors of a step (`7.0.0`: job, run and step) on the node with this state directory. One that stands by has no log of a step's open.
pub fn supervisors(state: &Path, step: &str) -> Vec<i32> {
    let log = format!("/{step}/");
    let has_log = |pid: &i32| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .any(|file| file.display().to_string().contains(&log))
    };
    let mut found = Vec::new();
    for group in leftovers::control_groups(state) {
        let pids = std::fs::read_to_string(group.join("supervisors/cgroup.procs")).unwrap_or_default();
        found.extend(pids.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(has_log));
    }
    found.sort_unstable();
    // On a machine with the first version of control groups it is in several.
    found.dedup();
    found
}

/// The `srun` in the group of this command, and the supervisors of its step on this node: each with what it is.
pub fn of_step(hosts: &Hosts, command: &Running, node: &str, step: &str) -> Vec<(String, i32)> {
    let client = of_group(command.pid(), "srun");
    let supervisors = supervisors(&hosts.state(node), step);
    assert!(!client.is_empty() && !supervisors.is_empty(), "srun: {client:?}, supervisors: {supervisors:?}");
    let named =
        |what: &str, pids: Vec<i32>| pids.into_iter().map(|pid| (what.to_string(), pid)).collect::<Vec<_>>();
    [named("srun", client), named("the supervisor", supervisors)].concat()
}

/// Processes whose memory is not to grow, and what they had.
pub struct Watched(Vec<(String, i32, u64)>);

impl Watched {
    /// Looks at processes, each with what it is.
    pub fn begin(all: impl IntoIterator<Item = (String, i32)>) -> Watched {
        let all = all.into_iter();
        Watched(all.map(|(what, pid)| (what, pid, resident(pid))).collect())
    }

    /// Fails where one has so many MiB more than it had.
    pub fn have_not_grown_by(&self, most: u64) {
        for (what, pid, before) in &self.0 {
            let now = resident(*pid);
            assert!(now < before + most, "{what} had {before} MiB and has {now}");
        }
    }
}
