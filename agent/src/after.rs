//! What a run leaves on its GPUs: looked at when its last process is gone, before anybody else gets them.
//!
//! A GPU that is sick by then is fenced before the next job has it. One on which a process is left, or whose memory is not free, would fail the
//! next job for a reason that nobody there can see: a process that says itself to be the job's is ended; what then still holds the GPU
//! fences it, until it is free again. What was there when the run began is not its affair: a desktop's, or that of somebody who works on the
//! machine without a job.

use crate::gpus::Gpus;
use crate::jobs::{self, JobRecord};
use crate::paths::Paths;
use crate::used::{Used, is_sampled};
use berth_gpus::sample::{DeviceSample, ProcessSample};
use berth_model::devices::GPU;
use berth_model::hardware::GresDevice;
use berth_model::link::GpuFault;
use berth_step::spool::{read_json, write_json};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the driver may take to say what there is at a run's begin: waking it up takes seconds.
const WAKING: Duration = Duration::from_secs(20);
/// For how long memory that is being freed is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Memory that a GPU may have in use without anybody on it, in MiB: what the driver itself needs.
const FREE: u64 = 1024;
/// Most processes that are named.
const MOST: usize = 4;

/// What was on a GPU when a run began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Before {
    /// Memory in use, in bytes.
    used: u64,
    /// Processes.
    processes: BTreeSet<u32>,
}

impl Before {
    /// `own`: whether a process is the run's.
    fn of(seen: &DeviceSample, own: impl Fn(u32) -> bool) -> Before {
        let (own, others): (Vec<&ProcessSample>, Vec<&ProcessSample>) =
            seen.processes.iter().flatten().partition(|process| own(process.pid));
        // A run that was faster is not excused for what it has itself.
        let memory: Option<u64> = own.iter().map(|process| process.memory).sum();
        Before {
            used: seen.used.zip(memory).map_or(0, |(used, own)| used.saturating_sub(own)),
            processes: others.iter().map(|process| process.pid).collect(),
        }
    }
}

/// Keeps what is on a run's GPUs at its begin, beside its record. Blocks.
pub fn note(used: &Used, paths: &Paths, record: &JobRecord) {
    if unshared(record).next().is_none() {
        return;
    }
    let sample = used.glance(WAKING);
    if !used.looks() {
        used.let_go();
    }
    // Without one the run has to leave everything free.
    let Ok(sample) = sample else { return };
    let of_job = jobs::processes(record);
    let own = |pid: u32| {
        let gone = !Path::new("/proc").join(pid.to_string()).exists();
        gone || is_of(pid, record) || i32::try_from(pid).is_ok_and(|pid| of_job.contains(&pid))
    };
    let before: BTreeMap<u32, Before> = unshared(record)
        .filter_map(|device| Some((device.index, Before::of(sample.of(device)?, own))))
        .collect();
    if let Err(e) = write_json(&noted(paths, record), &before)
        && paths.job(record.job).is_dir()
    {
        tracing::warn!("job {}: what was on its GPUs before it cannot be kept: {e}", record.job);
    }
}

/// Where that is kept.
fn noted(paths: &Paths, record: &JobRecord) -> PathBuf {
    paths.job(record.job).join(format!("gpus-before-{}.json", record.attempt.0))
}

/// GPUs that a run has for itself: others may be on what is shared.
fn unshared(record: &JobRecord) -> impl Iterator<Item = &GresDevice> {
    record.gpus.iter().filter(|device| is_sampled(device) && device.name == GPU && device.shares <= 1)
}

/// Looks at a run's GPUs; what is wrong with them. Blocks.
pub fn check(gpus: &Gpus, used: &Used, paths: &Paths, record: &JobRecord) -> Vec<GpuFault> {
    let (own, others): (Vec<&GresDevice>, Vec<&GresDevice>) =
        record.gpus.iter().partition(|device| is_sampled(device));
    // Of others nobody but the kernel can be asked.
    let mut faults = gpus.faults_by_kernel(&others);
    if !own.is_empty() {
        faults.extend(gpus.new_faults(&own));
        let well = |d: &&GresDevice| !faults.iter().any(|fault| fault.index == d.index);
        let alone: Vec<&GresDevice> = unshared(record).filter(well).collect();
        let (left, before) = left_on(used, paths, record, &alone);
        used.let_go();
        if !left.is_empty() {
            gpus.remember(&alone, &left, &before);
            faults.extend(left);
        }
    }
    for fault in &faults {
        tracing::error!("job {}: it leaves GPU {} unfit: {}", record.job, fault.index, fault.why);
    }
    faults
}

/// What is left on GPUs, and what was there before by their indices.
fn left_on(
    used: &Used,
    paths: &Paths,
    record: &JobRecord,
    devices: &[&GresDevice],
) -> (Vec<GpuFault>, BTreeMap<u32, Before>) {
    let mut end = None;
    let mut killed = BTreeSet::new();
    loop {
        // The first look may have to wake the driver up. One that does not answer is found by the look at the GPUs themselves.
        let Ok(sample) = used.glance(if end.is_none() { WAKING } else { PATIENCE }) else {
            return Default::default();
        };
        let end = *end.get_or_insert_with(|| Instant::now() + PATIENCE);
        // A run may be over before what was there is written.
        let before: BTreeMap<u32, Before> = read_json(&noted(paths, record)).unwrap_or_default();
        let nothing = Before::default();
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
            .filter_map(|(device, seen)| {
                let before = before.get(&device.index).unwrap_or(&nothing);
                Some(GpuFault { index: device.index, why: busy(device, seen, before)? })
            })
            .collect();
        if faults.is_empty() || Instant::now() >= end {
            return (faults, before);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Why a GPU that nobody has is not free. `before`: what was on it before the run that had it.
pub fn busy(device: &GresDevice, seen: &DeviceSample, before: &Before) -> Option<String> {
    let on_it: Vec<String> = seen
        .processes
        .iter()
        .flatten()
        .filter(|process| !before.processes.contains(&process.pid))
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
    let used = seen.used?.saturating_sub(before.used) >> 20;
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
    use berth_model::hardware::Vendor;
    use berth_model::ids::{Attempt, Gid, JobId, Uid};

    fn seen(used: u64, pids: &[u32]) -> DeviceSample {
        let process = |pid: &u32| ProcessSample { pid: *pid, ..ProcessSample::default() };
        DeviceSample {
            used: Some(used << 20),
            processes: Some(pids.iter().map(process).collect()),
            ..DeviceSample::default()
        }
    }

    #[test]
    fn a_gpu_with_processes_or_memory_in_use_is_not_free() {
        let busy = |device: &GresDevice, seen: &DeviceSample| busy(device, seen, &Before::default());
        let device = GresDevice { memory: 40960, ..GresDevice::default() };
        assert_eq!(busy(&device, &seen(900, &[])), None, "the driver's own");
        assert!(busy(&device, &seen(1100, &[])).unwrap().contains("1100 MiB"));
        let small = GresDevice { memory: 4864, ..GresDevice::default() };
        assert!(busy(&small, &seen(900, &[])).is_some(), "much of a part");
        let me = std::process::id();
        assert!(busy(&device, &seen(0, &[me])).unwrap().contains(&format!("{me} (")));
        assert_eq!(busy(&device, &seen(0, &[u32::MAX])), None, "it is gone");
        assert_eq!(busy(&device, &DeviceSample::default()), None, "nobody says it");
    }

    #[test]
    fn what_was_there_before_a_run_is_not_its_affair() {
        let me = std::process::id();
        let device = GresDevice { memory: 40960, ..GresDevice::default() };
        let before = Before::of(&seen(3000, &[me]), |_| false);
        assert_eq!(busy(&device, &seen(3900, &[me]), &before), None);
        assert!(busy(&device, &seen(4100, &[me]), &before).unwrap().contains("1100 MiB"));
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = busy(&device, &seen(3000, &[me, other.id()]), &before);
        assert!(found.unwrap().contains(&format!("on it: {} (", other.id())));
        other.kill().unwrap();
        other.wait().unwrap();
        // The run was faster than the look at its begin.
        let mut early = seen(3000, &[me]);
        assert_eq!(Before::of(&early, |pid| pid == me), Before::default(), "nobody says how much is its own");
        if let Some(processes) = &mut early.processes {
            processes[0].memory = Some(2000 << 20);
        }
        let own = Before::of(&early, |pid| pid == me);
        assert_eq!(own, Before { used: 1000 << 20, processes: BTreeSet::new() });
    }

    #[test]
    fn what_was_there_is_kept_for_the_agent_that_sees_the_end() {
        let state = tempfile::tempdir().unwrap();
        let paths = Paths::new(state.path());
        let record = JobRecord {
            job: JobId(7),
            attempt: Attempt(1),
            uid: Uid(nix::unistd::getuid().as_raw()),
            gid: Gid(nix::unistd::getgid().as_raw()),
            user: "ann".into(),
            devices: Vec::new(),
            gpus: vec![GresDevice {
                name: GPU.into(),
                index: 3,
                uuid: Some("GPU-1".into()),
                vendor: Vendor::Nvidia,
                ..GresDevice::default()
            }],
            boot_id: "boot".into(),
            cgroup: None,
            namespaces: None,
            programs_env: Vec::new(),
            prolog_done: false,
            over: false,
            epilog_done: false,
            epilog_failure: None,
        };
        let me = std::process::id();
        let desktop = format!(
            r#"{{"devices":[{{"uuid":"GPU-1","used":{},"processes":[{{"pid":{me}}}]}}]}}"#,
            3000u64 << 20
        );
        // Each agent has one of its own.
        let used = || {
            let script = format!("while read -r line; do echo 'use {desktop}'; done");
            Used::new(Path::new("/bin/sh"), vec!["-c".into(), script], 0)
        };
        note(&used(), &paths, &record);
        assert!(!noted(&paths, &record).exists(), "its directory is gone, and stays so");
        std::fs::create_dir_all(paths.job(record.job)).unwrap();
        note(&used(), &paths, &record);
        let own: Vec<&GresDevice> = unshared(&record).collect();
        let (left, before) = left_on(&used(), &paths, &record, &own);
        assert_eq!(left, []);
        assert_eq!(before[&3], Before { used: 3000 << 20, processes: BTreeSet::from([me]) });
    }
}
