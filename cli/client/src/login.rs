//! The environment that a user gets at login (`--get-user-env`): what the login shell exports on this machine, asked of the shell itself, by
//! `salloc` for its command and by a step's supervisor for the tasks. The shell and its profile are the user's, and may do anything.

use berth_model::ByteStr;
use berth_model::login_shell;
use berth_model::spec::Identity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the user's profile may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// `NAME=value` strings. Waits for the shell, and starts no thread.
///
/// # Errors
/// One line: the shell is not there, takes too long, says too much, or exports nothing.
pub fn environment(identity: &Identity) -> Result<Vec<ByteStr>, String> {
    asked(identity, PATIENCE).map_err(|why| {
        format!(
            "--get-user-env: the login shell {} of {} gave no environment: {why}: look at the profile, or leave \
             --get-user-env out",
            identity.shell.display(),
            identity.user
        )
    })
}

fn asked(identity: &Identity, patience: Duration) -> io::Result<Vec<ByteStr>> {
    let mut child = command(identity).spawn()?;
    let said = match child.stdout.take() {
        Some(stdout) => read(stdout, patience),
        None => Ok(Vec::new()),
    };
    end(&mut child);
    login_shell::variables(&said?).ok_or_else(|| io::Error::other("it printed none"))
}

fn command(identity: &Identity) -> Command {
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
    // Who is somebody's root, in a namespace of theirs, may be nobody else; and need not.
    if nix::unistd::geteuid().is_root() && identity.uid.0 != 0 {
        command.uid(identity.uid.0).gid(identity.gid.0);
    }
    command
}

/// What it says, up to the end of the environment: the profile may have left something behind that has the pipe open for ever.
fn read(mut stdout: ChildStdout, patience: Duration) -> io::Result<Vec<u8>> {
    let (mut said, deadline) = (Vec::new(), Instant::now() + patience);
    let mut piece = [0u8; 16384];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Whoever always has another byte ready never lets a wait run out.
        if left.is_zero() {
            return Err(io::Error::other(format!("it took longer than {} s", patience.as_secs())));
        }
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&left)) {
            Ok(0) | Err(Errno::INTR) => continue,
            ready => ready?,
        };
        let known = said.len();
        match stdout.read(&mut piece) {
            Ok(0) => return Ok(said),
            Ok(n) if known + n > login_shell::MOST => return Err(io::Error::other("it is far too long")),
            Ok(n) => said.extend_from_slice(&piece[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if login_shell::is_whole(&said, known) {
            return Ok(said);
        }
    }
}

/// Whatever the profile started goes with the shell; which itself may have left its group, and would be waited for.
fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::users;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn of(home: &Path, shell: &Path) -> Identity {
        let identity = users::own_identity().unwrap();
        Identity { home: ByteStr::from(home), shell: ByteStr::from(shell), ..identity }
    }

    /// A login shell of these lines, which has its own name.
    fn shell(home: &Path, name: &str, lines: &str) -> Identity {
        let shell = home.join(name);
        std::fs::write(&shell, format!("#!/bin/sh\n{lines}\n")).unwrap();
        std::fs::set_permissions(&shell, std::fs::Permissions::from_mode(0o755)).unwrap();
        of(home, &shell)
    }

    fn has(all: &[ByteStr], text: &str) -> bool {
        all.contains(&text.into())
    }

    #[test]
    fn what_the_profile_exports_is_there_and_what_it_prints_is_not() {
        let home = tempfile::tempdir().unwrap();
        let profile = "echo welcome=1; BY_PROFILE='a b'; export BY_PROFILE\n";
        std::fs::write(home.path().join(".profile"), profile).unwrap();
        let all = environment(&of(home.path(), Path::new("/bin/sh"))).unwrap();
        assert!(has(&all, "BY_PROFILE=a b"), "{all:?}");
        assert!(!all.iter().any(|text| text.0.starts_with(b"welcome")), "{all:?}");
    }

    #[test]
    fn a_shell_that_takes_no_option_beside_a_command_gives_its_environment_too() {
        let home = tempfile::tempdir().unwrap();
        let lines = "[ \"$1\" = -c ] || exit 1\nOWN=1; export OWN\nexec /bin/sh \"$@\"";
        let all = environment(&shell(home.path(), "tcsh", lines)).unwrap();
        assert!(has(&all, "OWN=1"), "{all:?}");
    }

    #[test]
    fn what_the_profile_leaves_behind_is_not_waited_for() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join(".profile"), "sleep 600 &\nLEFT=$!; export LEFT\n").unwrap();
        let all = environment(&of(home.path(), Path::new("/bin/sh"))).unwrap();
        let left = all.iter().find_map(|text| text.display().strip_prefix("LEFT=").map(str::to_string));
        // It went with the shell.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", left.unwrap())).unwrap_or_default();
        assert!(!stat.contains("(sleep) S"), "{stat}");
    }

    #[test]
    fn a_shell_that_does_as_it_likes_gives_its_environment_or_a_reason_and_is_gone() {
        let home = tempfile::tempdir().unwrap();
        let begin = "printf '\\0berth-login-environment\\0A=1\\0'";
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(300));
        for (what, lines, patience, why) in [
            ("endless", "exec cat /dev/zero".to_string(), long, "it is far too long"),
            ("endless, and begun", format!("{begin}; exec yes A=1"), long, "it is far too long"),
            ("without an end", begin.to_string(), long, "it printed none"),
            (
                "that begins at the end",
                "printf '\\0berth-login-environment ends\\0'".into(),
                long,
                "it printed none",
            ),
            ("that says nothing", "exit 0".into(), long, "it printed none"),
            ("that hangs", "sleep 600".into(), short, "it took longer than"),
            ("that drips", "while :; do printf '\\0'; sleep 0.01; done".into(), short, "it took longer than"),
            (
                "whose child has the pipe",
                format!("{begin}; sleep 600 & exit 0"),
                short,
                "it took longer than",
            ),
        ] {
            let pid = home.path().join("pid");
            let _ = std::fs::remove_file(&pid);
            let identity = shell(home.path(), "sh", &format!("echo $$ > {}\n{lines}", pid.display()));
            let told = asked(&identity, patience).unwrap_err().to_string();
            assert!(told.starts_with(why), "a shell {what}: {told}");
            // It may not have come to that, where it was given up.
            let pid = std::fs::read_to_string(&pid).unwrap_or_default();
            let left = pid.trim().parse().is_ok_and(|pid: u32| Path::new(&format!("/proc/{pid}")).exists());
            assert!(!left, "a shell {what} is left");
        }
        // What stands before the environment, be it as hostile, is none of it; and what keeps the pipe open behind it keeps nobody.
        for before in
            ["head -c 100000 /dev/zero", "printf 'B=1\\0\\0B=1'", "printf '\\0berth-login-environment ends'"]
        {
            let lines = format!("{before}; sleep 600 &\nexec /bin/sh \"$@\"");
            let all = asked(&shell(home.path(), "sh", &lines), long).unwrap();
            assert!(all.iter().any(|text| text.0.starts_with(b"HOME=")), "{before}: {all:?}");
            assert!(!has(&all, "B=1"), "{before}: {all:?}");
        }
    }

    #[test]
    fn a_shell_that_gives_none_is_named() {
        for shell in ["/bin/false", "/nonexistent/shell"] {
            let why = environment(&of(Path::new("/"), Path::new(shell))).unwrap_err();
            assert!(why.contains("--get-user-env") && why.contains(shell), "{why}");
        }
    }
}
