//! What `/proc` says of processes: their start, their children.

/// When a process started, in the kernel's ticks since boot: with its pid it names the process for ever.
pub fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, parentheses included: fields are counted after the last.
    let after = stat.iter().rposition(|b| *b == b')')? + 1;
    let text = std::str::from_utf8(stat.get(after..)?).ok()?;
    text.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Pids of a process's children, whichever of its threads made them.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = threads.filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("children")).ok());
    lists
        .flat_map(|text| text.split_whitespace().filter_map(|t| t.parse().ok()).collect::<Vec<i32>>())
        .collect()
}

/// Pids of all live descendants of the calling process.
pub(crate) fn descendants() -> Vec<i32> {
    below(rustix::process::getpid().as_raw_nonzero().get())
}

/// Pids of all live descendants of a process.
pub(crate) fn below(pid: i32) -> Vec<i32> {
    let mut all: Vec<i32> = Vec::new();
    let mut next = vec![pid];
    while let Some(pid) = next.pop() {
        for child in children(pid) {
            if !all.contains(&child) {
                all.push(child);
                next.push(child);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn children_of_every_thread_are_found() {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let started = std::thread::spawn(|| Command::new("sleep").arg("60").spawn()).join();
        let Ok(Ok(mut child)) = started else { unreachable!("sleep runs everywhere") };
        let pid = child.id().cast_signed();
        let found = (children(me).contains(&pid), descendants().contains(&pid), start_ticks(pid).is_some());
        let _ = child.kill();
        let _ = child.wait();
        assert_eq!(found, (true, true, true));
        assert_eq!((children(pid), start_ticks(pid)), (Vec::new(), None));
    }
}
