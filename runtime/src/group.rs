//! Ends a program that runs beside a container's own (a hook, a program around a task) with what it started.

use rustix::process::{Pid, Signal};
use std::process::Child;
use std::time::{Duration, Instant};

/// For how long the end of a program that was killed is waited for: in the kernel it may hang for ever.
const DYING: Duration = Duration::from_secs(5);

/// Kills a program that leads a process group, and the group.
pub(crate) fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // One that ended meanwhile is no error.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let begun = Instant::now();
    while matches!(child.try_wait(), Ok(None)) && begun.elapsed() < DYING {
        std::thread::sleep(Duration::from_millis(2));
    }
}
