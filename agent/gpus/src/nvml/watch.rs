//! What the process does that is asked again and again what GPUs do: a line in, a line out, until nobody asks.

use super::ask::whole_bus;
use crate::sample::{Account, DeviceSample, ProcessSample, Sample};
use crate::{Tree, others};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use std::collections::BTreeMap;
use std::io::{BufRead, Write};

/// First word of the lines that carry samples.
pub const WORD: &str = "use ";

/// Answers each line of `ask` with a sample.
///
/// # Errors
/// Nobody asks any more, or nobody reads.
pub fn main(tree: &Tree, mut ask: impl BufRead, mut out: impl Write) -> std::io::Result<()> {
    let mut nvml = None;
    let mut seen = Seen::new();
    let mut line = String::new();
    loop {
        line.clear();
        if ask.read_line(&mut line)? == 0 {
            // What the process has is the kernel's to clear up; a library that hangs in its own end is not waited for.
            std::mem::forget(nvml);
            return Ok(());
        }
        let mut sample = Sample { devices: others::amd_samples(tree), ..Sample::default() };
        if crate::nvidia::is_loaded(tree) {
            if nvml.is_none() {
                match Nvml::init() {
                    Ok(opened) => nvml = Some(opened),
                    Err(e) => sample.trouble = Some(e.to_string()),
                }
            }
            if let Some(nvml) = &nvml {
                nvidia(nvml, &mut seen, &mut sample);
            }
        }
        writeln!(out, "{WORD}{}", serde_json::to_string(&sample)?)?;
        out.flush()?;
    }
}

/// The latest moment of which each GPU has told what processes did, by its UUID.
type Seen = BTreeMap<String, u64>;

fn nvidia(nvml: &Nvml, seen: &mut Seen, sample: &mut Sample) {
    let count = match nvml.device_count() {
        Ok(count) => count,
        Err(e) => {
            sample.trouble = Some(e.to_string());
            return;
        }
    };
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
            for part in (0..most).filter_map(|n| device.mig_device_by_index(n).ok()) {
                let one = one(&part, bus.clone(), seen);
                sample.devices.push(one);
            }
        } else {
            let one = one(&device, bus, seen);
            sample.devices.push(one);
        }
    }
}

fn one(device: &Device<'_>, bus: String, seen: &mut Seen) -> DeviceSample {
    let uuid = device.uuid().ok();
    let since = seen.entry(uuid.clone().unwrap_or_default()).or_default();
    let accounting = device.is_accounting_enabled().unwrap_or(false);
    DeviceSample {
        accounting,
        bus,
        busy: device.utilization_rates().ok().map(|rates| rates.gpu.min(100)),
        used: device.memory_info().ok().map(|memory| memory.used),
        processes: processes(device, since),
        ended: if accounting { ended(device) } else { Vec::new() },
        uuid,
    }
}

/// Who computes on it, how much memory each has, and how busy each kept it since the last time.
fn processes(device: &Device<'_>, since: &mut u64) -> Option<Vec<ProcessSample>> {
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
    match device.process_utilization_stats(*since) {
        Ok(stats) => {
            let mut sums: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
            for stat in stats.iter().filter(|stat| stat.timestamp > *since) {
                let (sum, count) = sums.entry(stat.pid).or_default();
                *sum += u64::from(stat.sm_util.min(100));
                *count += 1;
            }
            *since = stats.iter().map(|stat| stat.timestamp).fold(*since, u64::max);
            for process in &mut found {
                let (sum, count) = sums.get(&process.pid).copied().unwrap_or((0, 1));
                process.busy = u32::try_from(sum / count.max(1)).ok();
            }
        }
        // Nothing ran since.
        Err(NvmlError::NotFound) => found.iter_mut().for_each(|process| process.busy = Some(0)),
        Err(_) => {}
    }
    Some(found)
}

/// Those that are over, where the administrator has switched accounting on (`nvidia-smi -am 1`).
fn ended(device: &Device<'_>) -> Vec<Account> {
    let pids = device.accounting_pids().unwrap_or_default();
    pids.into_iter()
        .filter(|pid| *pid > 0)
        .filter_map(|pid| Some((pid, device.accounting_stats_for(pid).ok()?)))
        .filter(|(_, stats)| !stats.is_running)
        .map(|(pid, stats)| Account {
            pid,
            began_us: stats.start_time,
            took_us: stats.time.saturating_mul(1000),
            busy: stats.gpu_utilization.unwrap_or(0).min(100),
            memory: stats.max_memory_usage.unwrap_or(0),
        })
        .collect()
}
