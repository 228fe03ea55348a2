//! Runs the short-lived process that asks the library, until a deadline. One that hangs in the kernel, or has started one that does, cannot
//! be ended by anybody: it is left alone, and no other is started while anything of it is there.

use super::Answer;
use super::ask::WORD;
use super::group::Group;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// An answer is a few hundred bytes for each GPU.
const MOST: usize = 1 << 20;

/// What is run, and what is left of it.
#[derive(Debug)]
pub struct Helper {
    program: PathBuf,
    words: Vec<String>,
    deadline: Duration,
    hanging: Option<Group>,
}

impl Helper {
    /// `program words…` asks and answers within `deadline`.
    pub fn new(program: PathBuf, words: Vec<String>, deadline: Duration) -> Helper {
        Helper { program, words, deadline, hanging: None }
    }

    /// Asks.
    ///
    /// # Errors
    /// In words, why there is no answer.
    pub fn ask(&mut self) -> Result<Answer, String> {
        if let Some(mut group) = self.hanging.take()
            && !group.is_gone()
        {
            self.hanging = Some(group);
            return Err("a call of the driver that was made before still hangs in the kernel".into());
        }
        let mut command = Command::new(&self.program);
        command.args(&self.words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut group =
            Group::spawn(&mut command).map_err(|e| format!("cannot run {}: {e}", self.program.display()))?;
        let end = Instant::now() + self.deadline;
        let line = group.leader().stdout.take().and_then(|out| read(out, end, WORD));
        let Some(line) = line else {
            return Err(self.ended(group, end));
        };
        // It has said what there was to say.
        group.kill();
        if !group.gone(Instant::now() + Duration::from_secs(1)) {
            self.hanging = Some(group);
        }
        serde_json::from_str(&line).map_err(|e| format!("the answer cannot be read: {e}"))
    }

    /// Why a process that gave no answer did not.
    fn ended(&mut self, mut group: Group, end: Instant) -> String {
        if Instant::now() < end && group.gone(end) {
            return match group.status() {
                Some(status) => format!("asking the driver ended with {status}"),
                None => "asking the driver ended without an answer".into(),
            };
        }
        group.kill();
        if !group.gone(Instant::now() + Duration::from_secs(1)) {
            self.hanging = Some(group);
        }
        format!("the driver did not answer within {} s", self.deadline.as_secs_f32())
    }
}

/// What the line says that begins with `word`, if it comes before the end and the deadline.
pub(super) fn read(mut out: impl Read + std::os::fd::AsFd, end: Instant, word: &str) -> Option<String> {
    let mut text = Vec::new();
    let mut buffer = [0; 8192];
    while text.len() < MOST {
        if let Some(line) = answer(&text, word) {
            return Some(line.to_string());
        }
        let left = end.saturating_duration_since(Instant::now());
        let left = rustix::time::Timespec::try_from(left).ok()?;
        match poll(&mut [PollFd::new(&out, PollFlags::IN)], Some(&left)) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return None,
        }
        match out.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(n) => text.extend_from_slice(&buffer[..n]),
        }
    }
    None
}

/// The whole line that carries the answer.
fn answer<'a>(text: &'a [u8], word: &str) -> Option<&'a str> {
    let text = std::str::from_utf8(text).ok()?;
    let whole = &text[..=text.rfind('\n')?];
    whole.lines().find_map(|line| line.strip_prefix(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, deadline: u64) -> Helper {
        let words = vec!["-c".to_string(), script.to_string()];
        Helper::new("/bin/sh".into(), words, Duration::from_millis(deadline))
    }

    #[test]
    fn an_answer_is_read_whatever_else_is_said_and_whatever_comes_after() {
        let answer =
            shell("echo hello; echo 'gpus {\"driver\":\"550.1\"}'; sleep 100", 60_000).ask().unwrap();
        assert_eq!(answer.driver.as_deref(), Some("550.1"));
    }

    #[test]
    fn what_the_process_has_started_does_not_outlive_it() {
        // As `nvidia-smi` in a driver that hangs: whoever waits for it is ended, and it is, too.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("started");
        let script = format!("sleep 1000 & echo $! > {}; echo 'gpus {{}}'; wait", file.display());
        let mut helper = shell(&script, 60_000);
        helper.ask().unwrap();
        assert!(helper.hanging.is_none());
        let pid = std::fs::read_to_string(&file).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z"), "{stat}");
    }

    #[test]
    fn what_hangs_or_crashes_is_told() {
        let hung = shell("exec sleep 100", 50).ask().unwrap_err();
        assert!(hung.contains("did not answer within"), "{hung}");
        let crashed = shell("kill -SEGV $$", 60_000).ask().unwrap_err();
        assert!(crashed.contains("signal: 11"), "{crashed}");
        let odd = shell("echo 'gpus {'", 60_000).ask().unwrap_err();
        assert!(odd.contains("cannot be read"), "{odd}");
        let absent = Helper::new("/no/such".into(), Vec::new(), Duration::from_secs(1)).ask().unwrap_err();
        assert!(absent.contains("/no/such"), "{absent}");
    }
}
