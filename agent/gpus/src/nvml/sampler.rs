//! Runs the process that is asked again and again what GPUs do. It is a process of its own for the reason for which [`super::helper`]
//! has one: a driver that hangs or crashes takes nobody else with it.

use super::group::Group;
use super::helper::read;
use super::watch::{GLANCE, WORD};
use crate::sample::Sample;
use std::io::Write;
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// What is run, and what runs.
#[derive(Debug)]
pub struct Sampler {
    program: PathBuf,
    words: Vec<String>,
    running: Option<(Group, ChildStdin, ChildStdout)>,
    hanging: Option<Group>,
}

impl Sampler {
    /// `program words…` answers each line with a sample.
    pub fn new(program: PathBuf, words: Vec<String>) -> Sampler {
        Sampler { program, words, running: None, hanging: None }
    }

    /// A sample as of now, with all that has happened since the one before.
    ///
    /// # Errors
    /// In words, why there is none until the deadline has passed.
    pub fn sample(&mut self, deadline: Duration) -> Result<Sample, String> {
        self.answer("\n", deadline)
    }

    /// Memory and processes as of now. The next sample lacks nothing for it.
    ///
    /// # Errors
    /// As of [`Sampler::sample`].
    pub fn glance(&mut self, deadline: Duration) -> Result<Sample, String> {
        self.answer(GLANCE, deadline)
    }

    fn answer(&mut self, line: &str, deadline: Duration) -> Result<Sample, String> {
        let end = Instant::now() + deadline;
        let (mut group, mut ask, mut out) = match self.running.take() {
            Some(running) => running,
            None => self.start()?,
        };
        let text = match ask.write_all(line.as_bytes()) {
            Ok(()) => read(&mut out, end, WORD),
            Err(_) => None,
        };
        if let Some(text) = text {
            self.running = Some((group, ask, out));
            return serde_json::from_str(&text).map_err(|e| format!("a sample of GPUs cannot be read: {e}"));
        }
        let late = Instant::now() >= end;
        group.kill();
        if !group.gone(Instant::now() + Duration::from_secs(1)) {
            self.hanging = Some(group);
        } else if !late {
            return Err("the process that samples GPUs ended".into());
        }
        Err(format!("the driver gave no sample within {:.0} s", deadline.as_secs_f32()))
    }

    /// Lets the process go: nobody needs samples for now.
    pub fn stop(&mut self) {
        if let Some((mut group, ask, _)) = self.running.take() {
            // It ends when nobody can ask it any more.
            drop(ask);
            if !group.gone(Instant::now() + Duration::from_secs(1)) {
                group.kill();
                self.hanging = Some(group);
            }
        }
    }

    fn start(&mut self) -> Result<(Group, ChildStdin, ChildStdout), String> {
        if let Some(mut group) = self.hanging.take()
            && !group.is_gone()
        {
            self.hanging = Some(group);
            return Err("a call of the driver that was made before still hangs in the kernel".into());
        }
        let failed = |e: std::io::Error| format!("cannot run {}: {e}", self.program.display());
        let mut command = Command::new(&self.program);
        command.args(&self.words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut group = Group::spawn(&mut command).map_err(failed)?;
        let pipes = (group.leader().stdin.take(), group.leader().stdout.take());
        match pipes {
            (Some(ask), Some(out)) => Ok((group, ask, out)),
            _ => Err("the process that samples GPUs has no pipes".into()),
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENT: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Sampler {
        Sampler::new("/bin/sh".into(), vec!["-c".into(), script.into()])
    }

    #[test]
    fn one_process_answers_again_and_again_and_ends_when_nobody_asks() {
        let script = "n=0; while read -r line; do n=$((n+1)); echo noise; \
                      echo \"use {\\\"trouble\\\":\\\"$n\\\"}\"; done";
        let mut sampler = shell(script);
        for n in ["1", "2", "3"] {
            assert_eq!(sampler.sample(PATIENT).unwrap().trouble.as_deref(), Some(n));
        }
        sampler.stop();
        assert!(sampler.hanging.is_none());
        assert_eq!(sampler.sample(PATIENT).unwrap().trouble.as_deref(), Some("1"), "another one");
    }

    #[test]
    fn what_hangs_or_ends_is_told_and_begun_anew() {
        let mut hung = shell("exec sleep 100");
        let why = hung.sample(Duration::from_millis(50)).unwrap_err();
        assert!(why.contains("no sample within"), "{why}");
        let mut crashed = shell("read -r line; kill -SEGV $$");
        let why = crashed.sample(PATIENT).unwrap_err();
        assert!(why.contains("ended"), "{why}");
        let mut odd = shell("while read -r line; do echo 'use {'; done");
        assert!(odd.sample(PATIENT).unwrap_err().contains("cannot be read"));
        let why = Sampler::new("/no/such".into(), Vec::new()).sample(PATIENT).unwrap_err();
        assert!(why.contains("/no/such"), "{why}");
    }
}
