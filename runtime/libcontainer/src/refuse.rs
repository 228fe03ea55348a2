//! What this engine does not do, refused by name: libcontainer would hang, or leave it out without a word.

use berth_runtime::oci::{CreateOptions, ExecOptions, OciError, Result};
use serde_json::Value;

fn unsupported(what: &str, instead: &str) -> OciError {
    OciError::Unsupported { what: format!("{what} with --engine libcontainer"), instead: instead.into() }
}

/// It changes the working directory and the process's dumpable flag, and forks: with other threads alive it hangs.
///
/// # Errors
/// There is more than one thread.
pub fn threads() -> Result<()> {
    let count = std::fs::read_dir("/proc/self/task").map(Iterator::count).map_err(|e| OciError::Invalid {
        what: format!("cannot count this process's threads: {e}"),
        next: "mount /proc".into(),
    })?;
    match count {
        1 => Ok(()),
        n => Err(unsupported(&format!("a process of {n} threads"), "call it in a process of one thread")),
    }
}

/// # Errors
/// A terminal of the caller's own, or a unit of systemd's: libcontainer is built without D-Bus.
pub fn creation(o: &CreateOptions) -> Result<()> {
    if o.systemd {
        return Err(unsupported("--systemd-cgroup", "leave it out, and control groups are made directly"));
    }
    match o.console_fd {
        None => Ok(()),
        Some(_) => Err(unsupported("a terminal in the foreground", "give --console-socket")),
    }
}

/// # Errors
/// A filter: libcontainer is built without libseccomp, and would run the program without one.
pub fn configuration(config: &Value) -> Result<()> {
    if config["linux"]["seccomp"].is_null() {
        return Ok(());
    }
    Err(unsupported("linux.seccomp", "it is built without libseccomp here; leave it out"))
}

/// How many descriptors from 3 on the program shall have: libcontainer leaves open all below a number, its own, too.
///
/// # Errors
/// There is a gap between them.
pub fn preserved(fds: &[i32]) -> Result<i32> {
    match (3..).zip(fds).find(|(wanted, fd)| wanted != *fd) {
        None => Ok(i32::try_from(fds.len()).unwrap_or(i32::MAX)),
        Some((gap, _)) => Err(unsupported(
            "--preserve-fds with a gap",
            &format!("open descriptor {gap}, too, or give fewer"),
        )),
    }
}

/// # Errors
/// A terminal, a control group, or words that are no process.
pub fn execution(o: &ExecOptions) -> Result<()> {
    if !o.cgroups.is_empty() {
        return Err(unsupported("exec with --cgroup", "leave it out"));
    }
    if o.terminal {
        return Err(unsupported("exec with a terminal", "leave --tty out"));
    }
    match o.env.iter().find(|v| v.find('=').is_none_or(|at| at == 0)) {
        None => Ok(()),
        Some(wrong) => {
            Err(OciError::Invalid { what: format!("--env {wrong:?}"), next: "each is NAME=value".into() })
        }
    }
}

/// `UID[:GID]`.
///
/// # Errors
/// Other words.
pub fn user(text: &str) -> Result<(Option<u32>, Option<u32>)> {
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid.parse().ok(), gid.parse().ok().map(Some)),
        None => (text.parse().ok(), Some(None)),
    };
    match (uid, gid) {
        (Some(uid), Some(gid)) => Ok((Some(uid), gid)),
        _ => Err(OciError::Invalid { what: format!("--user {text:?}"), next: "it is UID[:GID]".into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_process_with_other_threads_is_refused() {
        // The harness itself has a thread for this test beside the main one.
        let said = threads().unwrap_err().to_string();
        assert!(said.starts_with("a process of ") && said.contains("in a process of one thread"), "{said}");
    }

    #[test]
    fn descriptors() {
        assert_eq!(preserved(&[]).unwrap(), 0);
        assert_eq!(preserved(&[3, 4]).unwrap(), 2);
        for (wrong, gap) in [(&[4][..], 3), (&[3, 5], 4)] {
            let said = preserved(wrong).unwrap_err().to_string();
            assert!(said.contains(&format!("open descriptor {gap}, too")), "{said}");
        }
    }

    #[test]
    fn users_and_filters() {
        assert_eq!(user("5").unwrap(), (Some(5), None));
        assert_eq!(user("5:6").unwrap(), (Some(5), Some(6)));
        for wrong in ["", "root", "-1", "5:", ":5", "4294967296"] {
            assert!(user(wrong).is_err(), "{wrong}");
        }
        assert!(configuration(&json!({"linux": {}})).is_ok());
        assert!(configuration(&json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}})).is_err());
    }
}
