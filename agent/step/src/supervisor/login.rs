//! The user's login environment (`--get-user-env`): what the login shell exports, asked of the shell itself.

use super::step::LaunchFailure;
use berth_model::ByteStr;
use berth_model::login_shell;
use berth_model::spec::Identity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the user's profile may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// `NAME=value` strings.
pub fn environment(identity: &Identity) -> Result<Vec<ByteStr>, LaunchFailure> {
    let shell = identity.shell.display();
    let failed = |why: String| {
        LaunchFailure::new(format!(
            "--get-user-env: the login shell {shell} of {} gave no environment: {why}: look at the profile, or \
             leave --get-user-env out",
            identity.user
        ))
    };
    let (name, options) = login_shell::called(identity);
    let mut command = Command::new(identity.shell.as_os());
    command
        .arg0(name.as_os())
        .args(options)
        .arg(login_shell::ASK)
        .env_clear()
        .env("HOME", identity.home.as_os())
        .env("USER", &identity.user)
        .env("LOGNAME", &identity.user)
        .env("SHELL", identity.shell.as_os())
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if nix::unistd::geteuid().is_root() {
        command.uid(identity.uid.0).gid(identity.gid.0);
    }
    let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
    let text = match child.stdout.take() {
        Some(stdout) => read(stdout),
        None => Ok(Vec::new()),
    };
    end(&mut child);
    let text = text.map_err(|e| failed(e.to_string()))?;
    login_shell::variables(&text).ok_or_else(|| failed("it printed none".into()))
}

fn read(mut stdout: ChildStdout) -> io::Result<Vec<u8>> {
    let (mut text, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    let mut piece = [0u8; 16384];
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))
            .map_err(io::Error::other)?;
        if poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&left))? == 0 {
            return Err(io::Error::other(format!("it took longer than {} s", PATIENCE.as_secs())));
        }
        match stdout.read(&mut piece)? {
            0 => return Ok(text),
            n if text.len() + n > login_shell::MOST => return Err(io::Error::other("it is far too long")),
            n => text.extend_from_slice(&piece[..n]),
        }
        // What the profile left in the background may have the pipe open for ever.
        if login_shell::is_whole(&text) {
            return Ok(text);
        }
    }
}

/// Whatever the profile started goes with the shell.
fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.wait();
}
