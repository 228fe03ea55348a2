//! Programs that were killed and do not end: they wait in the kernel, for a file server as a rule. Each is noted until it is gone, for later
//! agents too, so that it is named, and that none of its kind joins it.

use crate::left;
use berth_runtime::JobNamespaces;
use berth_step::spool::{read_json, write_json};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The directory of the notes, in the one that is the cluster's alone.
const NOTES: &str = "hanging";

/// How long what was killed may take to be gone, and how often it is looked.
const DYING: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// What the programs are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of<'a> {
    /// Prologs and epilogs.
    Jobs,
    /// The node's health.
    Health,
    /// Rebooting the machine.
    Reboot,
    /// Powering off this node.
    Fence(&'a str),
}

impl Of<'_> {
    fn word(self) -> String {
        match self {
            Of::Jobs => "job".into(),
            Of::Health => "health_check".into(),
            Of::Reboot => "reboot".into(),
            Of::Fence(node) => format!("fence.{node}"),
        }
    }

    /// Whether a file has a note about what is for the same: its name is the word and the number of the group. Names of nodes have dots.
    fn has(self, file: &str) -> bool {
        let number = file.strip_prefix(&self.word()).and_then(|rest| rest.strip_prefix('.'));
        let number = number.and_then(|rest| rest.strip_suffix(".json"));
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    }
}

/// Waits until the group of a program that was killed is gone, but not for long. What is left of it is noted in `private`, and named.
pub(super) fn note(private: &Path, of: Of<'_>, leader: i32) -> Option<String> {
    let begun = Instant::now();
    let mut group = left::group(leader);
    while !group.is_empty() && begun.elapsed() < DYING {
        std::thread::sleep(PAUSE);
        group = left::group(leader);
    }
    keep(private, of, leader, group)
}

/// Notes and names what a program left behind that is gone itself: of the group of its `leader` those that wait where no signal reaches
/// them. Nothing is killed: a number that others had meanwhile may name them.
pub(super) fn note_waiting(private: &Path, of: Of<'_>, leader: i32) -> Option<String> {
    let waits = left::group(leader).into_iter().filter(|pid| left::hangs(*pid)).collect();
    keep(private, of, leader, waits)
}

/// Notes processes of a group, and names them.
pub(super) fn keep(private: &Path, of: Of<'_>, leader: i32, group: Vec<i32>) -> Option<String> {
    // By pid and start, so that they are no other processes.
    let hang: Vec<JobNamespaces> = group.iter().filter_map(|pid| JobNamespaces::of(*pid).ok()).collect();
    if hang.is_empty() {
        return None;
    }
    let dir = private.join(NOTES);
    let path = dir.join(format!("{}.{leader}.json", of.word()));
    if let Err(e) = fs::create_dir_all(&dir).and_then(|()| write_json(&path, &hang)) {
        tracing::warn!("cannot write {}: {e}", path.display());
    }
    left::describe(group)
}

/// Names those that are noted in `private` and still there. Those that are gone are forgotten.
pub(super) fn named(private: &Path, of: Of<'_>) -> Option<String> {
    let mut hang = Vec::new();
    for entry in fs::read_dir(private.join(NOTES)).ok()?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !of.has(&name) {
            continue;
        }
        let noted: Vec<JobNamespaces> = read_json(&entry.path()).unwrap_or_default();
        let there: Vec<i32> = noted.iter().filter(|p| p.are_held()).map(|p| p.pid).collect();
        if there.is_empty() {
            let _ = fs::remove_file(entry.path());
        }
        hang.extend(there);
    }
    left::describe(hang)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    #[test]
    fn what_is_left_of_a_group_is_named_until_it_is_gone_and_by_its_own_kind_alone() {
        let private = tempfile::tempdir().unwrap();
        let at = private.path();
        assert_eq!(named(at, Of::Jobs), None);
        // Nobody kills it: it is there, as one that hangs.
        let mut child = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let told = keep(at, Of::Jobs, pid, left::group(pid)).unwrap();
        assert!(told.starts_with(&format!("pid {pid} (sleep), state ")), "{told}");
        assert!(named(at, Of::Jobs).unwrap().starts_with(&format!("pid {pid} (sleep)")));
        assert_eq!(named(at, Of::Health), None);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(named(at, Of::Jobs), None);
        assert_eq!(fs::read_dir(at.join(NOTES)).unwrap().count(), 0);
        // Of one that is gone nothing is noted.
        assert_eq!(note(at, Of::Health, pid), None);
    }

    #[test]
    fn what_its_leader_left_behind_is_of_the_group() {
        let private = tempfile::tempdir().unwrap();
        let script = "sleep 600 > /dev/null 2>&1 & echo $!";
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).process_group(0).stdout(Stdio::piped());
        let shell = shell.spawn().unwrap();
        let leader = i32::try_from(shell.id()).unwrap();
        let said = shell.wait_with_output().unwrap();
        let pid: i32 = String::from_utf8_lossy(&said.stdout).trim().parse().unwrap();
        let told = keep(private.path(), Of::Health, leader, left::group(leader)).unwrap();
        assert!(told.starts_with(&format!("pid {pid} (")), "{told}");
        // One that can be ended is nobody's to wait for.
        assert_eq!(note_waiting(private.path(), Of::Jobs, leader), None);
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
}
