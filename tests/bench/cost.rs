//! What long commands cost: wall time, processor time of all their processes, and the memory that these have together.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};

/// Between two looks at the memory of a command's processes.
const LOOKS: Duration = Duration::from_millis(20);

/// Takes triples of a name, a command line that prepares each run and is not measured, and the one that is. Gives the most memory that was
/// seen in a first run of each, and medians of wall and processor time over `rounds` further ones of each in turn, at which nobody looks: that
/// takes a part of a processor, and longest of who has the most processes. One that fails is named and left out, for a peer may not run on
/// this machine.
pub fn measure(rounds: usize, commands: &[&str]) -> Result<(), String> {
    let mut peaks = vec![0; commands.len() / 3];
    let mut runs = vec![Vec::new(); commands.len() / 3];
    for round in 0..=rounds {
        for ((command, peak), runs) in commands.chunks(3).zip(&mut peaks).zip(&mut runs) {
            super::once(command[1])?;
            let before = processor_time()?;
            let result = match round {
                0 => memory_while(command[2]).map(|most| *peak = most),
                _ => super::once(command[2])
                    .and_then(|wall| Ok((wall.as_micros(), processor_time()? - before)))
                    .map(|run| runs.push(run)),
            };
            if let Err(reason) = result {
                eprintln!("bench-alternate: {} is left out: {reason}", command[0]);
            }
        }
    }
    for ((command, peak), runs) in commands.chunks(3).zip(&peaks).zip(&runs) {
        let middle = |of: fn(&(u128, u128)) -> u128| {
            let mut all: Vec<_> = runs.iter().map(of).collect();
            all.sort_unstable();
            let (low, high) = (all.get(all.len().saturating_sub(1) / 2), all.get(all.len() / 2));
            low.zip(high).map_or(0, |(low, high)| (low + high) / 2)
        };
        if !runs.is_empty() {
            println!("{} {} {} {peak}", command[0], middle(|run| run.0), middle(|run| run.1));
        }
    }
    Ok(())
}

/// Of all children so far that were waited for, and of theirs, in microseconds.
fn processor_time() -> Result<u128, String> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|e| format!("getrusage: {e}"))?;
    let micros = |t: nix::sys::time::TimeVal| t.tv_sec() as u128 * 1_000_000 + t.tv_usec() as u128;
    Ok(micros(usage.user_time()) + micros(usage.system_time()))
}

/// The most memory, in KiB, that the processes of one run had at the same time; a page that several of them map counts once.
fn memory_while(line: &str) -> Result<u64, String> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(descendants(std::process::id()).into_iter().filter_map(memory_of).sum());
                std::thread::sleep(LOOKS);
            }
            most
        });
        let result = super::once(line);
        done.store(true, Ordering::Relaxed);
        let most = watch.join().map_err(|_| "the watch over memory panicked".to_string())?;
        result.map(|_| most)
    })
}

/// Processes below `root`; those whose parent ended before them are not found any more.
fn descendants(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The program's name may contain anything, but ends at the last bracket.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![root];
    while let Some(pid) = next.pop() {
        let of = children.remove(&pid).unwrap_or_default();
        next.extend(&of);
        found.extend(of);
    }
    found
}

/// Shared pages in proportion; all resident ones where the kernel does not let us see the proportion.
fn memory_of(pid: u32) -> Option<u64> {
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
    };
    field("smaps_rollup", "Pss:").or_else(|| field("status", "VmRSS:"))
}
