//! Logging in to registries and out: the name and the secret asked for, and what became of them told.

use crate::images;
use berth_client::error::{Failure, Kind};
use berth_client::out;
use berth_client::step::terminal::{Raw, is_terminal};
use berth_images::{Credentials, Login, LoginTarget};
use std::io::{BufRead, Read, Write};
use std::path::{Path, PathBuf};

/// Who logs in, and how the password comes.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The registry, perhaps with a user; without one, docker's.
    pub registry: Option<&'a str>,
    /// The user, who is asked for where there is none.
    pub username: Option<&'a str>,
    /// The password is all of standard input, but for a line's end.
    pub password_stdin: bool,
    /// Without TLS.
    pub insecure: bool,
}

/// A login that is kept.
#[derive(Debug)]
pub struct Kept {
    /// Where.
    pub target: LoginTarget,
    /// Who.
    pub user: String,
    /// What became of it.
    pub login: Login,
}

/// The registry that is meant.
pub fn target(registry: Option<&str>) -> Result<LoginTarget, Failure> {
    let target = registry.map(str::parse).transpose().map_err(|e| images::failed(&e))?;
    Ok(target.unwrap_or_default())
}

/// Logs in.
pub fn log_in(asked: &Asked<'_>, state: Option<&Path>) -> Result<Kept, Failure> {
    let target = target(asked.registry)?;
    let named = asked.username.or(target.user.as_deref());
    if !is_terminal() && (named.is_none() || !asked.password_stdin) {
        return Err(Failure::usage(
            "standard input is no terminal to ask for a login: give the name with --username and the password with \
             --password-stdin",
        ));
    }
    if asked.password_stdin && named.is_none() {
        return Err(Failure::usage(
            "--password-stdin needs --username: standard input has the password alone",
        ));
    }
    let user = match named {
        Some(user) => user.to_string(),
        None => ask_name(&target.registry)?,
    };
    let password = if asked.password_stdin {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| Failure::user(format!("cannot read the password from standard input: {e}")))?;
        text.trim_end_matches(['\r', '\n']).to_string()
    } else {
        ask_secret(&format!("Password of {user} at {}: ", target.registry))?
    };
    let registries = images::registries(state);
    let registries = if asked.insecure { registries.without_tls(&target.registry) } else { registries };
    let login = images::credentials().login(&target, &user, &password, &registries);
    let login = login.map_err(|e| images::failed(&e))?;
    tell(&target, &login);
    Ok(Kept { target, user, login })
}

/// Says what is not as one might think.
fn tell(target: &LoginTarget, login: &Login) {
    let note = |text: String| out::complain(&format!("berth: note: {text}"));
    if !login.checked {
        note(format!(
            "registry {} asks nobody for a login, so this one could not be checked; it is kept",
            target.registry
        ));
    }
    if let Some(before) = &login.hidden_by {
        note(format!(
            "{} has another login for {}, which is used before this one: remove it with 'podman logout {}'",
            before.display(),
            target.registry,
            target.registry
        ));
    }
    if login.helper.is_none() {
        note(format!(
            "the password is in {}, which only you can read, and not encrypted; a credential helper (credsStore) keeps it elsewhere",
            login.file.display()
        ));
    }
}

/// Logs out, and says what other tools still have: gives the files that have it.
pub fn log_out(target: &LoginTarget) -> Result<Vec<PathBuf>, berth_images::Error> {
    let others = Credentials::from_env().logout(target)?;
    for other in &others {
        out::complain(&format!(
            "berth: note: {} still has a login for {}: {}",
            other.display(),
            target.registry,
            target.removal(other)
        ));
    }
    Ok(others)
}

fn prompt(text: &str) {
    // Who does not see the question sees no answer to it either.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn ask_name(registry: &str) -> Result<String, Failure> {
    prompt(&format!("User name at {registry}: "));
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(|e| Failure::user(format!("cannot read the user name: {e}")))?;
    Ok(line.trim().to_string())
}

/// Reads a line of the terminal that is not shown. The terminal is raw meanwhile, so that nothing ends this program before
/// it gave the terminal back.
fn ask_secret(text: &str) -> Result<String, Failure> {
    let raw =
        Raw::enter().ok_or_else(|| Failure::user("the terminal cannot be asked; use --password-stdin"))?;
    // Who sees the question can answer it unseen.
    prompt(text);
    let mut secret = Vec::new();
    let read = read_secret(&mut secret);
    drop(raw);
    prompt("\n");
    read?;
    String::from_utf8(secret)
        .map_err(|_| Failure::user("the password is not UTF-8; use --password-stdin with a file"))
}

fn read_secret(secret: &mut Vec<u8>) -> Result<(), Failure> {
    const INTERRUPT: u8 = 3;
    const END: u8 = 4;
    const KILL: u8 = 21;
    loop {
        let mut byte = [0_u8];
        match rustix::io::read(rustix::stdio::stdin(), &mut byte) {
            Ok(0) => return Err(Failure::new(Kind::User, "the terminal is gone; nobody is logged in")),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(Failure::user(format!("cannot read the password: {e}"))),
        }
        match byte[0] {
            b'\r' | b'\n' => return Ok(()),
            INTERRUPT => return Err(Failure::exit(130)),
            END if secret.is_empty() => {
                return Err(Failure::user("no password was given; nobody is logged in"));
            }
            END => return Ok(()),
            KILL => secret.clear(),
            8 | 127 => {
                // The last character, however many bytes it has.
                while secret.pop().is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000) {}
            }
            other => secret.push(other),
        }
    }
}
