//! What a run leaves on its GPUs: looked at when its last process is gone, before anybody else gets them.
//!
//! A GPU that is sick by then is fenced before the next job has it. One on which a process is left, or whose memory is not free, would fail the
//! next job for a reason that nobody there can see: a process that says itself to be the job's is ended; what then still holds the GPU
//! fences it, until it is free again.

use crate::gpus::Gpus;
use crate::jobs::JobRecord;
use crate::used::{Used, is_sampled};
use berth_gpus::sample::DeviceSample;
use berth_model::devices::GPU;
use berth_model::hardware::GresDevice;
use berth_model::link::GpuFault;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// For how long memory that is being freed is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Memory that a GPU may have in use without anybody on it, in MiB: what the driver itself needs.
const FREE: u64 = 1024;
/// Most processes that are named.
const MOST: usize = 4;

/// Looks at a run's GPUs; what is wrong with them. Blocks.
pub fn check(gpus: &Gpus, used: &Used, record: &JobRecord) -> Vec<GpuFault> {
    let own: Vec<&GresDevice> = record.gpus.iter().filter(|device| is_sampled(device)).collect();
    if own.is_empty() {
        return Vec::new();
    }
    let mut faults = gpus.new_faults(&own);
    // Others may be on what is shared.
    let alone: Vec<&GresDevice> = own
        .into_iter()
        .filter(|d| d.name == GPU && d.shares <= 1 && !faults.iter().any(|fault| fault.index == d.index))
        .collect();
    let left = left_on(used, record, &alone);
    used.let_go();
    if !left.is_empty() {
        gpus.remember(&alone, &left);
        faults.extend(left);
    }
    for fault in &faults {
        tracing::error!("job {}: it leaves GPU {} unfit: {}", record.job, fault.index, fault.why);
    }
    faults
}

fn left_on(used: &Used, record: &JobRecord, devices: &[&GresDevice]) -> Vec<GpuFault> {
    let end = Instant::now() + PATIENCE;
    let mut killed = BTreeSet::new();
    loop {
        // A driver that does not answer is found by the look at the GPUs themselves.
        let Ok(sample) = used.sample(PATIENCE) else { return Vec::new() };
        let seen: Vec<(&GresDevice, &DeviceSample)> =
            devices.iter().filter_map(|device| Some((*device, sample.of(device)?))).collect();
        let pids = seen.iter().flat_map(|(_, seen)| seen.processes.iter().flatten().map(|p| p.pid));
        for pid in pids.filter(|pid| is_of(*pid, record)).collect::<BTreeSet<u32>>() {
            if killed.insert(pid) && end_own(pid, record) {
                tracing::warn!("job {}: ending process {pid}, which is left on a GPU", record.job);
            }
        }
        let faults: Vec<GpuFault> = seen
            .iter()
            .filter_map(|(device, seen)| Some(GpuFault { index: device.index, why: busy(device, seen)? }))
            .collect();
        if faults.is_empty() || Instant::now() >= end {
            return faults;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Why a GPU that nobody has is not free.
pub fn busy(device: &GresDevice, seen: &DeviceSample) -> Option<String> {
    let on_it: Vec<String> = seen
        .processes
        .iter()
        .flatten()
        // The number of a process that is gone, or that another container's processes have.
        .filter_map(|process| Some(format!("{} ({})", process.pid, name(process.pid)?)))
        .take(MOST)
        .collect();
    if !on_it.is_empty() {
        return Some(format!(
            "no job has it, and processes are on it: {}; end them, or reboot the node",
            on_it.join(", ")
        ));
    }
    let used = seen.used? >> 20;
    let most = if device.memory > 0 { FREE.min(device.memory / 10) } else { FREE };
    (used > most).then(|| {
        format!("no job has it, and {used} MiB of its memory are not free: reset the GPU (nvidia-smi --gpu-reset), or reboot the node")
    })
}

/// What a process runs; nothing of a service that computes for nobody of its own.
fn name(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // One that has ended and that its parent has not asked for has nothing any more.
    stat.rsplit_once(") ").filter(|(_, rest)| !rest.starts_with(['Z', 'X']))?;
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let plain: String = comm.trim().chars().filter(|c| !c.is_control()).collect();
    (!plain.starts_with("nvidia-cuda-mps")).then_some(plain)
}

/// Ends a process of the run's, and never another one that has its number by now.
fn end_own(pid: u32, record: &JobRecord) -> bool {
    let Some(target) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    let Ok(process) = pidfd_open(target, PidfdFlags::empty()) else { return false };
    is_of(pid, record) && pidfd_send_signal(&process, Signal::KILL).is_ok()
}

/// Whether a process is of the run's user and says itself that it is of the job: the user's other work on the node is not ours to end.
fn is_of(pid: u32, record: &JobRecord) -> bool {
    let owner = std::fs::metadata(format!("/proc/{pid}")).map(|meta| meta.uid());
    let says = || {
        let word = format!("SLURM_JOB_ID={}", record.job);
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|pair| pair == word.as_bytes())
    };
    owner.is_ok_and(|uid| uid == record.uid.0) && says()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_gpus::sample::ProcessSample;

    #[test]
    fn a_gpu_with_processes_or_memory_in_use_is_not_free() {
        let device = GresDevice { memory: 40960, ..GresDevice::default() };
        let seen = |used: u64, pids: &[u32]| DeviceSample {
            used: Some(used << 20),
            processes: Some(
                pids.iter().map(|pid| ProcessSample { pid: *pid, ..ProcessSample::default() }).collect(),
            ),
            ..DeviceSample::default()
        };
        assert_eq!(busy(&device, &seen(900, &[])), None, "the driver's own");
        assert!(busy(&device, &seen(1100, &[])).unwrap().contains("1100 MiB"));
        let small = GresDevice { memory: 4864, ..GresDevice::default() };
        assert!(busy(&small, &seen(900, &[])).is_some(), "much of a part");
        let me = std::process::id();
        assert!(busy(&device, &seen(0, &[me])).unwrap().contains(&format!("{me} (")));
        assert_eq!(busy(&device, &seen(0, &[u32::MAX])), None, "it is gone");
        assert_eq!(busy(&device, &DeviceSample::default()), None, "nobody says it");
    }
}
