//! What the system's libpmix tells the tasks of a step, asked once as the agent starts: so a step whose tasks may speak PMIx is told
//! it without the library, which is loaded when one of them does.

use crate::threads;
use berth_step::pmix_server::understood;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The library's answer takes some hundredths of a second; one that has not come by then is none.
const LONGEST: Duration = Duration::from_secs(10);
/// `nobody`: asking needs no rights.
const NOBODY: &str = "65534:65534:";

/// The answer, as soon as it is there.
#[derive(Clone, Debug, Default)]
pub struct Pmix {
    answer: Arc<(Mutex<Option<Vec<String>>>, Condvar)>,
}

impl Pmix {
    /// Asks, in the background.
    pub fn ask(program: &Path, system: bool) -> Pmix {
        let pmix = Pmix::default();
        let mut command = Command::new(program);
        command.args(["internal-pmix", "--pattern"]);
        if system {
            command.args(["--as", NOBODY]);
        }
        let answer = Arc::clone(&pmix.answer);
        let started = threads::start("pmix", move || {
            let found = asked(command).unwrap_or_else(|why| {
                tracing::info!("steps are served PMIx only where they ask for it: {why}");
                Vec::new()
            });
            tell(&answer, found);
        });
        if started.is_err() {
            tell(&pmix.answer, Vec::new());
        }
        pmix
    }

    /// What tasks are told; nothing where there is no library. Waits for the answer, which only the first steps of an agent have to.
    pub fn pattern(&self) -> Vec<String> {
        let (answer, came) = &*self.answer;
        let answer = answer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = &*answer {
            return found.clone();
        }
        tokio::task::block_in_place(|| {
            let waited = came.wait_timeout_while(answer, LONGEST, |answer| answer.is_none());
            let (answer, _) = waited.unwrap_or_else(PoisonError::into_inner);
            answer.clone().unwrap_or_default()
        })
    }
}

fn tell((answer, came): &(Mutex<Option<Vec<String>>>, Condvar), found: Vec<String>) {
    *answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    came.notify_all();
}

/// What the process says.
fn asked(mut command: Command) -> Result<Vec<String>, String> {
    let mut child = command
        .env_clear()
        .env("PMIX_MCA_gds", "hash")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("its process cannot be started: {e}"))?;
    let end = Instant::now() + LONGEST;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it did not answer within {} s", LONGEST.as_secs()));
            }
            Err(e) => return Err(format!("its process cannot be waited for: {e}")),
        }
    };
    let (said, complained) = said(child);
    if !status.success() {
        let why = complained.lines().last().unwrap_or_default();
        return Err(format!("{} ({status})", why.trim_start_matches("berth: error: ")));
    }
    let lines: Vec<String> = said.lines().map(str::to_string).collect();
    understood(&lines).map_err(|why| format!("what libpmix tells tasks is not understood: {why}"))?;
    Ok(lines)
}

/// What is in its pipes, which hold more than it has to say.
fn said(child: Child) -> (String, String) {
    let mut texts = (Vec::new(), Vec::new());
    let _ = child.stdout.map(|mut out| out.read_to_end(&mut texts.0));
    let _ = child.stderr.map(|mut err| err.read_to_end(&mut texts.1));
    (String::from_utf8_lossy(&texts.0).into_owned(), String::from_utf8_lossy(&texts.1).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<Vec<String>, String> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        asked(command)
    }

    #[test]
    fn an_answer_is_taken_whole_and_what_is_none_is_said() {
        let uri = "PMIX_SERVER_URI4='berth.pattern.0.0;tcp4://127.0.0.1:7'";
        let good = shell(&format!("printf '%s\\n' PMIX_NAMESPACE=pattern.0 PMIX_RANK=0 {uri}")).unwrap();
        assert_eq!(good.len(), 3);
        for (script, says) in [
            ("echo 'berth: error: no libpmix' >&2; exit 1", "no libpmix"),
            ("echo PMIX_RANK=0", "not understood"),
            ("kill -9 $$", "signal: 9"),
        ] {
            let why = shell(script).unwrap_err();
            assert!(why.contains(says), "{why}");
        }
    }
}
