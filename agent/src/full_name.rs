//! The machine's full name, as its name service says it: told beside the node's own name, so that people can use both. Nothing hangs on it.
//!
//! A name service may hang, and nobody can end a call of it: a process of its own asks, which is killed, or left behind where even that does nothing,
//! and no second one is started while it is there.

use berth_model::called::is_full_name;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// How long a registration waits for the first answer.
const MOMENT: Duration = Duration::from_secs(1);
/// After how long the question is given up.
const MOST: Duration = Duration::from_secs(30);
/// Most bytes of an answer: a machine has some tens of addresses.
const LONGEST: u64 = 64 << 10;

/// What is known of it.
#[derive(Debug)]
pub struct FullName {
    /// What `hostname` prints.
    host: String,
    /// `getent ahosts` asks for the canonical name (`AI_CANONNAME` of getaddrinfo(3)).
    program: PathBuf,
    known: Mutex<Option<String>>,
    asking: AtomicBool,
}

impl FullName {
    /// Of the machine that calls itself so.
    pub(crate) fn of(host: String) -> FullName {
        FullName::by(host, "getent".into())
    }

    fn by(host: String, program: PathBuf) -> FullName {
        FullName { host, program, known: Mutex::new(None), asking: AtomicBool::new(false) }
    }

    /// What was last said.
    pub(crate) fn known(&self) -> Option<String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks, unless an earlier question still hangs. While nothing is known the answer is waited for, for a moment: what comes later is told with the
    /// next registration.
    pub(crate) async fn ask(self: &Arc<FullName>) {
        if self.asking.swap(true, Ordering::AcqRel) {
            return;
        }
        let own = Arc::clone(self);
        let asked = tokio::spawn(async move {
            if let Some(name) = own.canonical().await {
                *own.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(name);
            }
            own.asking.store(false, Ordering::Release);
        });
        if self.known().is_none() {
            // Which of both it is makes no difference.
            let _ = tokio::time::timeout(MOMENT, asked).await;
        }
    }

    async fn canonical(&self) -> Option<String> {
        if !is_full_name(&self.host) {
            return None;
        }
        let mut command = Command::new(&self.program);
        command
            .args(["ahosts", &self.host])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = match command.kill_on_drop(true).spawn() {
            Ok(child) => child,
            Err(e) => {
                tracing::debug!(
                    "{} cannot be run, and the machine's full name is not known: {e}",
                    self.program.display()
                );
                return None;
            }
        };
        let stdout = child.stdout.take()?;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(MOST, stdout.take(LONGEST).read_to_end(&mut answer)).await;
        if read.is_err() {
            tracing::warn!(
                "the name service does not say what this machine's full name is: nothing waits for it"
            );
        }
        // Where it does not even end by that, nobody asks again before it is gone.
        let _ = child.start_kill();
        let _ = child.wait().await;
        read.ok()?.ok()?;
        said(&String::from_utf8_lossy(&answer))
    }
}

/// The canonical name: it stands in the first line, behind address and kind.
fn said(answer: &str) -> Option<String> {
    let name = answer.lines().next()?.split_ascii_whitespace().nth(2)?;
    let name = name.strip_suffix('.').unwrap_or(name);
    is_full_name(name).then(|| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_canonical_name_is_read() {
        let two = "10.77.0.2       STREAM n1.example.org\n10.77.0.2       DGRAM  \n";
        assert_eq!(said(two).as_deref(), Some("n1.example.org"));
        assert_eq!(said("fe80::1%eth0 STREAM n1.example.org.\n").as_deref(), Some("n1.example.org"));
        for none in ["", "10.77.0.2 STREAM\n", "127.0.0.1 STREAM localhost\n", "10.77.0.2 STREAM 10.77.0.2\n"]
        {
            assert_eq!(said(none), None, "{none}");
        }
    }

    fn asked_by(script: &str) -> (tempfile::TempDir, Arc<FullName>) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("getent");
        std::fs::write(
            &program,
            format!("#!/bin/sh\necho \"$@\" >> {}/asked\n{script}\n", dir.path().display()),
        )
        .unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        (dir, Arc::new(FullName::by("n1".into(), program)))
    }

    fn questions(dir: &tempfile::TempDir) -> Vec<String> {
        let asked = std::fs::read_to_string(dir.path().join("asked")).unwrap_or_default();
        asked.lines().map(str::to_string).collect()
    }

    #[tokio::test]
    async fn each_registration_asks_once_and_an_answer_that_fails_takes_nothing_back() {
        let (dir, name) = asked_by("[ -e \"$0.fails\" ] && exit 2\necho 10.77.0.2 STREAM n1.example.org");
        name.ask().await;
        assert_eq!(name.known().as_deref(), Some("n1.example.org"));
        std::fs::write(dir.path().join("getent.fails"), "").unwrap();
        name.ask().await;
        while name.asking.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
        assert_eq!(name.known().as_deref(), Some("n1.example.org"));
        assert_eq!(questions(&dir), ["ahosts n1"; 2]);
    }

    #[tokio::test]
    async fn one_that_hangs_is_not_waited_for_and_not_asked_again() {
        let (dir, name) = asked_by("exec sleep 1000");
        name.ask().await;
        name.ask().await;
        assert_eq!((name.known(), name.asking.load(Ordering::Acquire)), (None, true));
        assert!(questions(&dir).len() <= 1);
    }
}
