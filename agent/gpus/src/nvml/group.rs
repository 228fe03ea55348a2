//! A process that asks the driver, with all that it starts, which may hang as it does: ended together, and watched until all of it is gone.

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process_group, test_kill_process_group, waitid,
};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// A process and its process group.
#[derive(Debug)]
pub(super) struct Group {
    leader: Child,
    id: Pid,
    /// The leader was waited for: from then on its number may be another group's.
    waited: bool,
    status: Option<ExitStatus>,
}

impl Group {
    /// Starts a process in a group of its own.
    pub(super) fn spawn(command: &mut Command) -> io::Result<Group> {
        let leader = command.process_group(0).spawn()?;
        Ok(Group { id: Pid::from_child(&leader), leader, waited: false, status: None })
    }

    /// The process, for its pipes.
    pub(super) fn leader(&mut self) -> &mut Child {
        &mut self.leader
    }

    /// How it ended; nothing while it runs.
    pub(super) fn status(&self) -> Option<ExitStatus> {
        self.status
    }

    /// Kills all of it.
    pub(super) fn kill(&mut self) {
        if !self.waited {
            let _ = kill_process_group(self.id, Signal::KILL);
        }
    }

    /// Whether nothing of it is left. What the process leaves behind is killed with its end.
    pub(super) fn is_gone(&mut self) -> bool {
        if !self.waited {
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            match waitid(WaitId::Pid(self.id), look) {
                Ok(None) => return false,
                Ok(Some(_)) => self.kill(),
                Err(_) => {}
            }
            self.waited = true;
            self.status = self.leader.wait().ok();
        }
        !lives(self.id)
    }

    /// The same, waiting until then.
    pub(super) fn gone(&mut self, end: Instant) -> bool {
        loop {
            if self.is_gone() {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether a group has a process that is not over. Who is over may stay in it for ever, where nobody waits for the children of the dead.
fn lives(group: Pid) -> bool {
    if test_kill_process_group(group) == Err(rustix::io::Errno::SRCH) {
        return false;
    }
    let Ok(entries) = std::fs::read_dir("/proc") else { return true };
    let number = group.as_raw_nonzero().to_string();
    entries.flatten().any(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // Number, name in parentheses, state, parent, group: proc_pid_stat(5).
        let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let state = fields.next();
        fields.nth(1) == Some(number.as_str()) && !matches!(state, Some("Z" | "X"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    /// Starts a script that says a line when all of it is there.
    fn begun(script: &str) -> (Group, u32) {
        let mut command = Command::new("/bin/sh");
        let mut group = Group::spawn(command.args(["-c", script]).stdout(Stdio::piped())).unwrap();
        let mut line = String::new();
        BufReader::new(group.leader().stdout.take().unwrap()).read_line(&mut line).unwrap();
        (group, line.trim().parse().unwrap())
    }

    fn runs(pid: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    const PATIENT: Duration = Duration::from_secs(60);

    #[test]
    fn what_a_process_has_started_ends_with_it() {
        let (mut group, child) = begun("sleep 1000 & echo $!; wait");
        assert!(!group.is_gone() && runs(child));
        group.kill();
        assert!(group.gone(Instant::now() + PATIENT) && !runs(child));
        // And when it ends by itself.
        let (mut group, child) = begun("sleep 1000 & echo $!; exit 7");
        assert!(group.gone(Instant::now() + PATIENT) && !runs(child));
        assert_eq!(group.status().and_then(|status| status.code()), Some(7));
    }

    #[test]
    fn a_group_is_there_as_long_as_one_of_its_processes_is() {
        let (mut group, child) = begun("sleep 1000 & echo $!; wait");
        // As one that was waited for, and left behind what cannot be ended.
        group.leader.kill().unwrap();
        group.leader.wait().unwrap();
        group.waited = true;
        assert!(!group.is_gone());
        assert!(!group.gone(Instant::now()));
        let pid = Pid::from_raw(i32::try_from(child).unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
        assert!(group.gone(Instant::now() + PATIENT));
    }
}
