//! The user's login environment (`--get-user-env`): what the login shell exports, asked of the shell itself.

use super::step::LaunchFailure;
use berth_model::ByteStr;
use berth_model::spec::Identity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the user's profile may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// What comes before the environment: profiles may print, too.
const MARK: &[u8] = b"\0berth-login-environment\0";
/// More than any environment that a program could be started with.
const MOST: usize = 8 << 20;

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
    let (name, options) = identity.login_shell();
    let mut command = Command::new(identity.shell.as_os());
    command
        .arg0(name.as_os())
        .args(options)
        .arg("printf '\\0berth-login-environment\\0'; exec env -0")
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
    let at =
        text.windows(MARK.len()).position(|w| w == MARK).ok_or_else(|| failed("it printed none".into()))?;
    let variables = text[at + MARK.len()..].split(|b| *b == 0);
    Ok(variables.filter(|v| v.contains(&b'=')).map(ByteStr::from).collect())
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
            n if text.len() + n > MOST => return Err(io::Error::other("it is far too long")),
            n => text.extend_from_slice(&piece[..n]),
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
