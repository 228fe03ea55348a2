//! Programs that keep logins outside of files: the docker-credential-helpers protocol.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::credentials::Identity;
use crate::error::{Error, ErrorKind, Result, printable};
use crate::reference::DEFAULT_REGISTRY;

/// How long a helper may take to say a login: a keyring that is locked may ask for its password.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most bytes that are read of what it says.
const MOST: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(rename = "ServerURL")]
    server: &'a str,
    #[serde(rename = "Username")]
    user: &'a str,
    #[serde(rename = "Secret")]
    secret: &'a str,
}

/// Docker's helpers know Docker Hub by its first address.
pub(super) fn address(login: &str) -> &str {
    if login == DEFAULT_REGISTRY { "https://index.docker.io/v1/" } else { login }
}

/// Asks `docker-credential-NAME` for a login; `None` when it has none.
pub(super) fn get(name: &str, login: &str) -> Result<Option<Identity>> {
    let Some(answer) = run(name, "get", login, address(login).as_bytes())? else { return Ok(None) };
    let answer: Answer = serde_json::from_slice(&answer)
        .map_err(|e| failed(name, login, format!("gave no valid answer: {e}")))?;
    Ok(Some(if answer.username == "<token>" {
        Identity::Token { token: answer.secret }
    } else {
        Identity::Basic { user: answer.username, password: answer.secret }
    }))
}

/// Has it keep a login.
pub(super) fn store(name: &str, login: &str, user: &str, secret: &str) -> Result<()> {
    let entry = serde_json::to_vec(&Entry { server: address(login), user, secret })
        .map_err(|e| failed(name, login, e.to_string()))?;
    match run(name, "store", login, &entry)? {
        Some(_) => Ok(()),
        None => Err(failed(name, login, "failed: it says that something was not found".to_owned())),
    }
}

/// Has it forget a login; false when it had none.
pub(super) fn erase(name: &str, login: &str) -> Result<bool> {
    // Some erase what is not there with success.
    Ok(get(name, login)?.is_some() && run(name, "erase", login, address(login).as_bytes())?.is_some())
}

/// Runs it with one of its verbs; `None` when it says that it has no such login.
fn run(name: &str, verb: &str, login: &str, input: &[u8]) -> Result<Option<Vec<u8>>> {
    if name.is_empty() || name.contains('/') {
        return Err(failed(name, login, "is not the name of a program".to_owned()));
    }
    // To keep or forget a login it may have to ask the person at the keyboard.
    let patience = if verb == "get" { PATIENCE } else { 10 * PATIENCE };
    let mut command = Command::new(program(name));
    command.arg(verb);
    let answered = answer(command, input, patience)
        .map_err(|e| failed(name, login, format!("cannot be run: {e}")))?
        .ok_or_else(|| failed(name, login, format!("gave no answer in {} s", patience.as_secs())))?;
    let (succeeded, [out, err]) = answered;
    if succeeded {
        return Ok(Some(out));
    }
    let said = format!("{}{}", String::from_utf8_lossy(&out), String::from_utf8_lossy(&err));
    if said.contains("not found") {
        return Ok(None);
    }
    Err(failed(name, login, format!("failed: {}", printable(said.trim(), 300))))
}

/// Whether a program succeeded, and what it said on both of its outputs; nothing where it does not end in time, and then it is killed.
fn answer(
    mut command: Command,
    input: &[u8],
    patience: Duration,
) -> std::io::Result<Option<(bool, [Vec<u8>; 2])>> {
    let until = Instant::now() + patience;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that ends without reading is judged by its answer.
        let _ = stdin.write_all(input);
    }
    let (sender, said) = channel();
    let out = child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
    let err = child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
    for (which, pipe) in [out, err].into_iter().enumerate() {
        let (Some(pipe), sender) = (pipe, sender.clone()) else { continue };
        std::thread::Builder::new().spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.take(MOST).read_to_end(&mut bytes);
            let _ = sender.send((which, bytes));
        })?;
    }
    drop(sender);
    let mut all = [Vec::new(), Vec::new()];
    let mut left = all.len();
    loop {
        let over = Instant::now() >= until;
        if left > 0 {
            match said.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((which, bytes)) => (all[which], left) = (bytes, left - 1),
                Err(RecvTimeoutError::Disconnected) => left = 0,
                Err(RecvTimeoutError::Timeout) => {}
            }
        } else if let Some(status) = child.try_wait()? {
            return Ok(Some((status.success(), all)));
        } else {
            std::thread::sleep(Duration::from_millis(2));
        }
        if over {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
    }
}

fn program(name: &str) -> String {
    format!("docker-credential-{name}")
}

fn failed(name: &str, login: &str, reason: String) -> Error {
    Error::new(ErrorKind::Denied, format!("login helper {}", program(name)), reason).next(format!(
        "your login file names this helper; install or repair it, or log in to {login} without it"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(text: &str, patience: Duration) -> Option<(bool, [Vec<u8>; 2])> {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        answer(command, b"registry", patience).unwrap()
    }

    #[test]
    fn who_answers_is_heard_and_who_does_not_is_given_up() {
        let long = Duration::from_secs(60);
        let both = [b"registry".to_vec(), b"note".to_vec()];
        assert_eq!(shell("cat; printf note >&2", long), Some((true, both)));
        assert_eq!(shell("exit 3", long), Some((false, [vec![], vec![]])));
        // Also where it says something and then nothing, or closes what it speaks by.
        for hangs in ["sleep 600", "echo half; exec sleep 600", "exec >/dev/null 2>&1; sleep 600"] {
            assert_eq!(shell(hangs, Duration::from_millis(200)), None, "{hangs}");
        }
        // What never ends is read to a bound.
        let much = shell("exec head -c 3000000 /dev/zero", long).unwrap().1;
        assert_eq!(much[0].len() as u64, MOST);
    }
}
