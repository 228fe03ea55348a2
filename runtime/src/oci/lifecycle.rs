//! What is done with a container that exists: state, kill, delete, pause, resume, ps, update.

use super::cgroup::Hierarchies;
use super::error::{Naming, OciError, Result, invalid, unsupported};
use super::plan::resources;
use super::store::{Record, Status, Store};
use super::{config, rootfs};
use crate::hooks::{self, HookRun};
use crate::sys::{Errno, signals};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::time::Duration;

/// The state as the specification has it, with what runc adds.
pub fn state(store: &Store, id: &str) -> Result<serde_json::Value> {
    let record = store.look(id)?;
    let mut state = record.state(record.status());
    state["rootfs"] = serde_json::json!(record.rootfs);
    state["created"] = record.created.clone().into();
    state["owner"] = "".into();
    Ok(state)
}

/// A signal by number, or by name with `SIG` in front or without.
///
/// # Errors
/// There is no such signal.
pub fn signal_number(text: &str) -> Result<i32> {
    if let Ok(n) = text.parse::<i32>() {
        return match n {
            1..=64 => Ok(n),
            n => Err(invalid(format!("there is no signal {n}"), "1 to 64 exist")),
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let names = SIGNALS.iter().find(|(n, _)| *n == name).map(|(_, number)| *number);
    let real_time = || {
        let (base, sign, rest) = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
            (Some(rest), _) => (34, 1, rest.strip_prefix('+')),
            (_, Some(rest)) => (64, -1, rest.strip_prefix('-')),
            _ => return None,
        };
        let offset: i32 = match rest {
            None if name.len() == 5 => 0,
            rest => rest?.parse().ok()?,
        };
        Some(base + sign * offset).filter(|n| (34..=64).contains(n))
    };
    names
        .or_else(real_time)
        .ok_or_else(|| invalid(format!("there is no signal {text:?}"), "kill -l lists them"))
}

const SIGNALS: [(&str, i32); 33] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// Sends a signal to the first process, or to all.
pub fn kill(store: &Store, id: &str, signal: i32, all: bool) -> Result<()> {
    let (_container, record) = store.find(id)?;
    let shares_pids = shares_pids(&record);
    if all {
        let status = record.status();
        if status == Status::Stopped && !shares_pids {
            record.require("kill", &[Status::Created, Status::Running, Status::Paused], "")?;
        }
        record.group.signal(signal)?;
        return Ok(());
    }
    record.require("kill", &[Status::Created, Status::Running, Status::Paused], "")?;
    send(&record, signal)?;
    if signal == libc::SIGKILL {
        end_rest(&record)?;
        // A frozen process of version 1 does not die before it is thawed.
        if record.group.frozen() {
            record.group.freeze(false)?;
        }
    }
    Ok(())
}

/// Signals the first process through a descriptor that cannot come to mean another.
fn send(record: &Record, signal: i32) -> Result<()> {
    let Some(pid) = record.pid.and_then(Pid::from_raw) else { return Ok(()) };
    let action = "signal the container's first process";
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).named(action)?;
    if record.status() == Status::Stopped {
        return Ok(());
    }
    match Signal::from_named_raw(signal) {
        Some(signal) => pidfd_send_signal(&pidfd, signal).named(action),
        // Real-time signals have no name there.
        None => signals::kill(pid.as_raw_nonzero().get(), signal).named(action),
    }
}

/// Deletes a container: its control group, its directory; then its poststop hooks run.
pub fn delete(store: &Store, id: &str, force: bool) -> Result<Vec<OciError>> {
    let (container, record) = match store.find(id) {
        Ok(found) => found,
        Err(OciError::NoContainer(_)) if force => {
            // Nothing to delete is what was wanted; the rest of a creation that was cut off goes too.
            return match store.discard(id) {
                Ok(()) | Err(OciError::NoContainer(_)) => Ok(Vec::new()),
                Err(e) => Err(e),
            };
        }
        Err(e) => return Err(e),
    };
    match record.status() {
        Status::Stopped => {}
        // Nothing of its program runs: as runc and crun have it, there is nothing to lose.
        Status::Created => end(&record)?,
        _ if force => end(&record)?,
        _ => {
            record.require("delete", &[Status::Stopped], "kill it first, or delete it with --force")?;
        }
    }
    record.group.remove(Duration::from_secs(10))?;
    if let Some(mount) = record.node_mount {
        rootfs::detach_from_node(&record.rootfs, mount)?;
    }
    container.remove()?;
    let state = record.state(Status::Stopped).to_string();
    let failed =
        hooks::run_all("poststop", &record.hooks.poststop, &state, HookRun::default(), &mut hooks::Alone);
    Ok(failed.into_iter().map(OciError::Hook).collect())
}

fn shares_pids(record: &Record) -> bool {
    record.namespaces & libc::CLONE_NEWPID == 0
}

/// Kills what would outlive the first process, where no pid namespace ends with that.
fn end_rest(record: &Record) -> Result<()> {
    if shares_pids(record) { record.group.signal(libc::SIGKILL) } else { Ok(()) }
}

/// Kills the container's processes, and waits for the first.
pub fn end(record: &Record) -> Result<()> {
    end_rest(record)?;
    if record.status() == Status::Stopped {
        return Ok(());
    }
    let Some(pid) = record.pid.and_then(Pid::from_raw) else { return Ok(()) };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        other => other.named("kill the container")?,
    };
    send(record, libc::SIGKILL)?;
    if record.group.frozen() {
        record.group.freeze(false)?;
    }
    let patience = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
    match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)) {
        Ok(0) => Err(invalid(
            format!("process {pid} of container {} does not die", record.id),
            "it waits in the kernel (state D): look at /proc/PID/stack",
        )),
        _ => Ok(()),
    }
}

/// Freezes all processes.
pub fn pause(store: &Store, id: &str) -> Result<()> {
    let (_container, record) = store.find(id)?;
    record.require("pause", &[Status::Created, Status::Running], "")?;
    record.group.freeze(true)
}

/// Thaws them.
pub fn resume(store: &Store, id: &str) -> Result<()> {
    let (_container, record) = store.find(id)?;
    record.require("resume", &[Status::Paused], "")?;
    record.group.freeze(false)
}

/// Pids of all processes, as this pid namespace has them.
pub fn processes(store: &Store, id: &str) -> Result<Vec<i32>> {
    let record = store.look(id)?;
    let all = record.group.processes();
    if all.is_empty()
        && record.status() != Status::Stopped
        && record.group.v1.is_empty()
        && record.group.v2.is_none()
    {
        return Err(unsupported(
            "listing the processes of this container",
            "it has no control group: this user may make none",
        ));
    }
    Ok(all)
}

/// Changes limits.
pub fn update(store: &Store, id: &str, resources: &serde_json::Value) -> Result<()> {
    let (_container, record) = store.find(id)?;
    record.require("update", &[Status::Created, Status::Running, Status::Paused], "")?;
    let resources = config::typed(berth_oci_json::resources(resources), "the resources")?;
    if resources.devices().is_some() {
        return Err(unsupported(
            "changing devices of a container",
            "create it anew with other linux.resources.devices",
        ));
    }
    let changes = resources::plan(&resources, &Hierarchies::detect().controllers())?;
    record.group.apply(&changes, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigusr1", 10),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
            ("RTMIN", 34),
        ] {
            assert_eq!(signal_number(text).unwrap(), number, "{text}");
        }
        for text in ["0", "65", "-1", "", "SIG", "NOPE", "RTMIN+99", "RTMINX", "RTMIN+-1"] {
            assert!(signal_number(text).is_err(), "{text}");
        }
    }
}
