//! What the process does that is asked again and again what GPUs do: a line in, a line out, until nobody asks.

use super::InstanceOf;
use super::ask::{open, whole_bus};
use super::counters::{Counters, Divided};
use crate::sample::{Account, DeviceSample, ProcessSample, Sample};
use crate::{Tree, others};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Write};

/// First word of the lines that carry samples.
pub const WORD: &str = "use ";
/// The line that asks for memory and processes alone. What is told once, of time that has passed and of processes that have ended, waits for
/// another line.
pub const GLANCE: &str = "glance\n";

/// Most accounts in one sample, of all GPUs: some hundred KiB of what is read ([`super::helper`]).
const MOST_ENDED: usize = 2048;

/// Answers each line of `ask` with a sample. `instance_of`: asks the library of one part.
///
/// # Errors
/// Nobody asks any more, or nobody reads.
pub fn main(
    tree: &Tree,
    instance_of: InstanceOf,
    mut ask: impl BufRead,
    mut out: impl Write,
) -> std::io::Result<()> {
    let mut nvml: Option<&'static Nvml> = None;
    let mut told = Told::default();
    let mut line = String::new();
    loop {
        line.clear();
        if ask.read_line(&mut line)? == 0 {
            // What the process has is the kernel's to clear up; a library that hangs in its own end is not waited for.
            std::mem::forget(told);
            return Ok(());
        }
        let mut sample = Sample { devices: others::amd_samples(tree), ..Sample::default() };
        if crate::nvidia::is_loaded(tree) {
            if nvml.is_none() {
                match open(tree) {
                    // For as long as the process: what it counts is kept from one line to the next.
                    Ok(opened) => nvml = Some(Box::leak(Box::new(opened))),
                    Err(e) => sample.trouble = Some(e.to_string()),
                }
            }
            if let Some(nvml) = nvml {
                nvidia(nvml, instance_of, (line != GLANCE).then_some(&mut told), &mut sample);
            }
        }
        writeln!(out, "{WORD}{}", serde_json::to_string(&sample)?)?;
        out.flush()?;
    }
}

/// What was told.
#[derive(Default)]
struct Told {
    /// By each GPU, by its UUID.
    gpus: BTreeMap<String, Seen>,
    /// Of parts.
    counters: Counters,
}

/// What one GPU has told.
#[derive(Default)]
struct Seen {
    /// The latest moment of which it said what processes did.
    since: u64,
    /// Processes whose accounts it gave: of those of which the driver keeps some, and so no more than it keeps (4000).
    ended: BTreeSet<u32>,
}

impl Seen {
    /// Accounts that were not told yet, the newest first. `kept`: the processes of which the driver keeps some; `account` asks for
    /// one, and says whether its process still runs.
    fn ended(
        &mut self,
        kept: Vec<u32>,
        running: &[ProcessSample],
        account: impl Fn(u32) -> Option<(Account, bool)>,
    ) -> Vec<Account> {
        // A number that another process has by now has another account when that one ends.
        let runs = |pid: &u32| running.iter().any(|process| process.pid == *pid);
        let kept: BTreeSet<u32> = kept.into_iter().filter(|pid| *pid > 0 && !runs(pid)).collect();
        self.ended.retain(|pid| kept.contains(pid));
        let mut ended = Vec::new();
        for pid in kept {
            if self.ended.contains(&pid) {
                continue;
            }
            match account(pid) {
                Some((_, true)) => continue,
                Some((account, false)) => ended.push(account),
                // It will not be given the next time either.
                None => {}
            }
            self.ended.insert(pid);
        }
        ended.sort_by_key(|account| Reverse(account.began_us.saturating_add(account.took_us)));
        ended
    }
}

/// Samples of all GPUs; with `told`, of what was not told yet, too.
fn nvidia(nvml: &'static Nvml, instance_of: InstanceOf, mut told: Option<&mut Told>, sample: &mut Sample) {
    let count = match nvml.device_count() {
        Ok(count) => count,
        Err(e) => {
            sample.trouble = Some(e.to_string());
            return;
        }
    };
    let mut divided = Vec::new();
    for index in 0..count {
        let device = match nvml.device_by_index(index) {
            Ok(device) => device,
            Err(e) => {
                sample.trouble = Some(format!("GPU {index}: {e}"));
                continue;
            }
        };
        let bus = whole_bus(&device);
        if device.mig_mode().is_ok_and(|mode| mode.current == 1) {
            let most = device.mig_device_count().unwrap_or(0);
            let mut parts = Vec::new();
            for (n, part) in (0..most).filter_map(|n| Some((n, device.mig_device_by_index(n).ok()?))) {
                parts.push((n, sample.devices.len()));
                let one = one(&part, bus.clone(), told.as_deref_mut());
                sample.devices.push(one);
            }
            divided.push(Divided { gpu: device, bus, parts });
        } else {
            let one = one(&device, bus, told.as_deref_mut());
            sample.devices.push(one);
        }
    }
    if let Some(told) = told {
        told.counters.fill(nvml, instance_of, &divided, &mut sample.devices);
    }
    // What is too much is of the oldest.
    let most = MOST_ENDED / sample.devices.len().max(1);
    sample.devices.iter_mut().for_each(|device| device.ended.truncate(most));
}

fn one(device: &Device<'_>, bus: String, told: Option<&mut Told>) -> DeviceSample {
    let mut sample = DeviceSample {
        uuid: device.uuid().ok(),
        bus,
        busy: device.utilization_rates().ok().map(|rates| rates.gpu.min(100)),
        used: device.memory_info().ok().map(|memory| memory.used),
        processes: processes(device),
        ..DeviceSample::default()
    };
    if let Some(told) = told {
        let seen = told.gpus.entry(sample.uuid.clone().unwrap_or_default()).or_default();
        if let Some(processes) = &mut sample.processes {
            keep_busy(device, &mut seen.since, processes);
        }
        sample.accounting = device.is_accounting_enabled().unwrap_or(false);
        if sample.accounting {
            sample.ended = ended(device, seen, sample.processes.as_deref().unwrap_or_default());
        }
    }
    sample
}

/// Who computes on it, and how much memory each has.
fn processes(device: &Device<'_>) -> Option<Vec<ProcessSample>> {
    // Drivers before 510 do not have the call: then the GPU counts for the step that has it.
    let running = device.running_compute_processes().ok()?;
    let mut found: Vec<ProcessSample> = running
        .into_iter()
        .map(|process| ProcessSample {
            pid: process.pid,
            memory: match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            },
            busy: None,
        })
        .collect();
    // One may be there with two contexts.
    found.sort_by_key(|process| process.pid);
    found.dedup_by(|next, kept| {
        let same = next.pid == kept.pid;
        if same {
            kept.memory = kept.memory.zip(next.memory).map(|(a, b)| a.saturating_add(b));
        }
        same
    });
    Some(found)
}

/// How busy each of its processes kept it since the last time.
fn keep_busy(device: &Device<'_>, since: &mut u64, processes: &mut [ProcessSample]) {
    match device.process_utilization_stats(*since) {
        Ok(stats) => {
            let mut sums: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
            for stat in stats.iter().filter(|stat| stat.timestamp > *since) {
                let (sum, count) = sums.entry(stat.pid).or_default();
                *sum += u64::from(stat.sm_util.min(100));
                *count += 1;
            }
            *since = stats.iter().map(|stat| stat.timestamp).fold(*since, u64::max);
            for process in processes {
                let (sum, count) = sums.get(&process.pid).copied().unwrap_or((0, 1));
                process.busy = u32::try_from(sum / count.max(1)).ok();
            }
        }
        // Nothing ran since.
        Err(NvmlError::NotFound) => processes.iter_mut().for_each(|process| process.busy = Some(0)),
        Err(_) => {}
    }
}

/// Those that are over and were not told yet, where the administrator has switched accounting on (`nvidia-smi -am 1`).
fn ended(device: &Device<'_>, seen: &mut Seen, running: &[ProcessSample]) -> Vec<Account> {
    // Their number may grow between two calls that ask for it and for them: then they come with the next sample.
    let Ok(kept) = device.accounting_pids() else { return Vec::new() };
    seen.ended(kept, running, |pid| {
        let stats = device.accounting_stats_for(pid).ok()?;
        let account = Account {
            pid,
            began_us: stats.start_time,
            took_us: stats.time.saturating_mul(1000),
            busy: stats.gpu_utilization.unwrap_or(0).min(100),
            memory: stats.max_memory_usage.unwrap_or(0),
        };
        Some((account, stats.is_running))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn accounts_are_asked_for_once_and_again_when_a_number_is_used_again() {
        let mut seen = Seen::default();
        let asked = RefCell::new(Vec::new());
        let mut told = |kept: &[u32], running: &[u32], still: u32| -> Vec<u32> {
            asked.borrow_mut().clear();
            let running: Vec<ProcessSample> =
                running.iter().map(|pid| ProcessSample { pid: *pid, ..ProcessSample::default() }).collect();
            let ended = seen.ended(kept.to_vec(), &running, |pid| {
                asked.borrow_mut().push(pid);
                let account = Account { pid, began_us: pid.into(), ..Account::default() };
                (pid != 9).then_some((account, pid == still))
            });
            ended.iter().map(|account| account.pid).collect()
        };
        assert_eq!(told(&[0, 1, 2, 3, 9], &[3], 2), [1]);
        assert_eq!(*asked.borrow(), [1, 2, 9]);
        assert_eq!(told(&[1, 2, 3, 9], &[], 0), [3, 2], "the newest first");
        assert_eq!(*asked.borrow(), [2, 3]);
        assert_eq!(told(&[1, 2, 3, 9], &[], 0), Vec::<u32>::new());
        assert!(asked.borrow().is_empty());
        // The first one's account made room for others', and its number came again; the second one's is in use again.
        assert_eq!(told(&[2, 3, 9], &[2], 0), Vec::<u32>::new());
        assert_eq!(told(&[1, 2, 3, 9], &[], 0), [2, 1]);
        assert_eq!(*asked.borrow(), [1, 2]);
    }
}
