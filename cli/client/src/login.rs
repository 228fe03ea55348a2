//! The environment that a user gets at login (`salloc --get-user-env`): what the login shell exports on this machine, where the command runs.

use crate::error::Failure;
use berth_model::ByteStr;
use berth_model::login_shell;
use berth_model::spec::Identity;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;

/// How long the user's profile may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// `NAME=value` strings.
///
/// # Errors
/// The shell is not there, takes too long, or exports nothing.
pub(crate) async fn environment(identity: &Identity) -> Result<Vec<ByteStr>, Failure> {
    let shell = identity.shell.display();
    let failed = |why: String| {
        Failure::user(format!(
            "--get-user-env: the login shell {shell} of {} gave no environment: {why}: look at the profile, or \
             leave --get-user-env out",
            identity.user
        ))
    };
    let (name, options) = login_shell::called(identity);
    let mut command = std::process::Command::new(identity.shell.as_os());
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
    let mut child = tokio::process::Command::from(command).spawn().map_err(|e| failed(e.to_string()))?;
    let mut text = Vec::new();
    let read = async {
        let Some(mut stdout) = child.stdout.take() else { return Ok(()) };
        while !login_shell::is_whole(&text) && text.len() <= login_shell::MOST {
            if stdout.read_buf(&mut text).await? == 0 {
                break;
            }
        }
        Ok::<(), std::io::Error>(())
    };
    let read = tokio::time::timeout(PATIENCE, read).await;
    // Whatever the profile started goes with the shell.
    if let Some(group) = child.id().and_then(|id| i32::try_from(id).ok()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait().await;
    match read {
        Err(_) => return Err(failed(format!("it took longer than {} s", PATIENCE.as_secs()))),
        Ok(Err(e)) => return Err(failed(e.to_string())),
        Ok(Ok(())) if text.len() > login_shell::MOST => return Err(failed("it is far too long".into())),
        Ok(Ok(())) => {}
    }
    login_shell::variables(&text).ok_or_else(|| failed("it printed none".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::users;
    use std::os::unix::fs::PermissionsExt;

    fn asked(home: &std::path::Path, shell: &str) -> Result<Vec<ByteStr>, Failure> {
        let identity = users::own_identity().unwrap();
        let identity = Identity { home: ByteStr::from(home), shell: shell.into(), ..identity };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(environment(&identity))
    }

    #[test]
    fn what_the_profile_exports_is_there_and_what_it_prints_is_not() {
        let home = tempfile::tempdir().unwrap();
        let profile = "echo welcome=1; BY_PROFILE='a b'; export BY_PROFILE\n";
        std::fs::write(home.path().join(".profile"), profile).unwrap();
        let all = asked(home.path(), "/bin/sh").unwrap();
        assert!(all.contains(&"BY_PROFILE=a b".into()), "{all:?}");
        assert!(!all.iter().any(|text| text.0.starts_with(b"welcome")), "{all:?}");
    }

    #[test]
    fn a_shell_that_takes_no_option_beside_a_command_gives_its_environment_too() {
        let home = tempfile::tempdir().unwrap();
        let shell = home.path().join("tcsh");
        let script = "#!/bin/sh\n[ \"$1\" = -c ] || exit 1\nOWN=1; export OWN\nexec /bin/sh \"$@\"\n";
        std::fs::write(&shell, script).unwrap();
        std::fs::set_permissions(&shell, std::fs::Permissions::from_mode(0o755)).unwrap();
        let all = asked(home.path(), shell.to_str().unwrap()).unwrap();
        assert!(all.contains(&"OWN=1".into()), "{all:?}");
    }

    #[test]
    fn what_the_profile_leaves_behind_is_not_waited_for() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join(".profile"), "sleep 600 &\nLEFT=$!; export LEFT\n").unwrap();
        let all = asked(home.path(), "/bin/sh").unwrap();
        let left = all.iter().find_map(|text| text.display().strip_prefix("LEFT=").map(str::to_string));
        // It went with the shell.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", left.unwrap())).unwrap_or_default();
        assert!(!stat.contains("(sleep) S"), "{stat}");
    }

    #[test]
    fn a_shell_that_gives_none_is_named() {
        let why = asked(std::path::Path::new("/"), "/bin/false").unwrap_err().to_string();
        assert!(why.contains("--get-user-env") && why.contains("/bin/false"), "{why}");
    }
}
