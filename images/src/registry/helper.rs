//! Programs that keep logins outside of files: the docker-credential-helpers protocol.

use std::io::Write;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::credentials::Identity;
use crate::error::{Error, ErrorKind, Result, printable};
use crate::reference::DEFAULT_REGISTRY;

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
    let mut child = Command::new(program(name))
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(name, login, format!("cannot be run: {e}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that ends without reading is judged by its answer.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().map_err(|e| failed(name, login, e.to_string()))?;
    if output.status.success() {
        return Ok(Some(output.stdout));
    }
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if said.contains("not found") {
        return Ok(None);
    }
    Err(failed(name, login, format!("failed: {}", printable(said.trim(), 300))))
}

fn program(name: &str) -> String {
    format!("docker-credential-{name}")
}

fn failed(name: &str, login: &str, reason: String) -> Error {
    Error::new(ErrorKind::Denied, format!("login helper {}", program(name)), reason).next(format!(
        "your login file names this helper; install or repair it, or log in to {login} without it"
    ))
}
