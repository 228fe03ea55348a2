//! Whose is what GPUs do: samples, as shares of the steps that have the GPUs, and what these come to while a step lives.
//!
//! A process counts for the step that it belongs to. Where the driver does not say which processes there are, or numbers them as nobody here does,
//! a GPU counts for the step that has it: one with a number before the batch script, whose job's GPUs it uses.

use crate::sample::{Account, DeviceSample, Sample};
use berth_model::hardware::GresDevice;
use berth_model::ids::{StepId, StepKey};
use berth_model::usage::GpuUsage;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A step that has GPUs.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Which.
    pub key: StepKey,
    /// Its GPUs.
    pub devices: Vec<GresDevice>,
}

/// What one step does at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// How many of its GPUs were seen.
    pub devices: u32,
    /// Of how many of these is known how busy they are: not of all parts of GPUs it is.
    pub told: u32,
    /// How busy it keeps them, in per cent of one: two that are busy are 200.
    pub busy: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// What of `busy` is of single processes, where that is known.
    pub of: Vec<(u32, u32)>,
}

/// Shares of a sample. `owner` says to which step a process belongs.
pub fn parts(
    sample: &Sample,
    holders: &[Holder],
    owner: impl Fn(u32) -> Option<StepKey>,
) -> BTreeMap<StepKey, Part> {
    let mut parts = BTreeMap::new();
    for seen in &sample.devices {
        let here: Vec<&StepKey> = holders
            .iter()
            .filter(|holder| holder.devices.iter().any(|device| seen.is_of(device)))
            .map(|holder| &holder.key)
            .collect();
        if here.is_empty() {
            continue;
        }
        let device = one(seen, &here, &owner);
        for key in here {
            let part: &mut Part = parts.entry(*key).or_default();
            part.devices += 1;
            part.told += u32::from(busy(seen).is_some());
            if let Some((busy, memory)) = device.steps.get(key) {
                part.busy = part.busy.saturating_add(*busy);
                part.memory = part.memory.saturating_add(*memory);
            }
            part.of
                .extend(device.processes.iter().filter(|(of, ..)| of == key).map(|(_, pid, n)| (*pid, *n)));
        }
    }
    parts
}

/// What one GPU does, by step.
struct Device {
    steps: BTreeMap<StepKey, (u32, u64)>,
    processes: Vec<(StepKey, u32, u32)>,
}

fn one(seen: &DeviceSample, here: &[&StepKey], owner: &impl Fn(u32) -> Option<StepKey>) -> Device {
    let mut steps: BTreeMap<StepKey, (u32, u64)> = BTreeMap::new();
    let processes = seen.processes.as_deref().unwrap_or_default();
    let owned: Vec<_> = processes
        .iter()
        .filter_map(|process| Some((owner(process.pid).filter(|key| here.contains(&key))?, process)))
        .collect();
    if owned.is_empty() {
        let nobody = seen.processes.as_ref().is_some_and(Vec::is_empty);
        let (busy, used) = if nobody { (0, 0) } else { (seen.busy.unwrap_or(0), seen.used.unwrap_or(0)) };
        let innermost = innermost(here);
        let count = innermost.len().max(1);
        for key in &innermost {
            let (busy, used) = (busy / u32::try_from(count).unwrap_or(1), used / count as u64);
            steps.insert(**key, (busy, used));
        }
        return Device { steps, processes: Vec::new() };
    }
    let keys: BTreeSet<StepKey> = owned.iter().map(|(key, _)| *key).collect();
    let known: Option<u32> = owned.iter().map(|(_, process)| process.busy).sum();
    // A driver that counts nothing of processes says that all of them do nothing.
    let known = known.filter(|sum| *sum > 0 || seen.busy.unwrap_or(0) == 0);
    for key in &keys {
        let own = || owned.iter().filter(|(of, _)| of == key).map(|(_, process)| process);
        let memory: Option<u64> = own().map(|process| process.memory).sum();
        let memory = memory.unwrap_or(seen.used.unwrap_or(0) / keys.len() as u64);
        let busy = match known {
            Some(_) => own().filter_map(|process| process.busy).fold(0, u32::saturating_add).min(100),
            None => seen.busy.unwrap_or(0) / u32::try_from(keys.len()).unwrap_or(1),
        };
        steps.insert(*key, (busy, memory));
    }
    let processes = owned.iter().map(|(key, process)| {
        let busy = known.and(process.busy).or(seen.busy.filter(|_| owned.len() == 1));
        (*key, process.pid, busy.unwrap_or(0))
    });
    Device { processes: processes.collect(), steps }
}

/// How busy the busiest of these GPUs is, in per cent, whoever keeps it so; absent where of one of them nobody says it.
pub fn busiest(sample: &Sample, devices: &[GresDevice]) -> Option<u32> {
    devices.iter().try_fold(0, |most: u32, device| Some(busy(sample.of(device)?)?.max(most)))
}

/// What a GPU says of itself, or all of its processes together where that is more: these are of the whole time since the last sample, but
/// leave out who draws. A driver that counts nothing of processes says that all of them do nothing.
fn busy(seen: &DeviceSample) -> Option<u32> {
    let processes: Option<u32> = seen.processes.iter().flatten().map(|process| process.busy).sum();
    seen.busy.max(processes.filter(|sum| *sum > 0).map(|sum| sum.min(100)))
}

/// Who uses a GPU that several steps of a job have: one that was started within the job, if there is one.
fn innermost<'a>(here: &[&'a StepKey]) -> Vec<&'a StepKey> {
    let inner = |key: &&&StepKey| matches!(key.step, StepId::Number(_));
    match here.iter().any(|key| inner(&key)) {
        true => here.iter().filter(inner).copied().collect(),
        false => here.to_vec(),
    }
}

/// What a step has used so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// It.
    pub usage: GpuUsage,
    /// What of it was counted of processes that live, or of which no account was seen: microseconds.
    processes: BTreeMap<u32, u64>,
    /// Accounts that are in it.
    accounts: BTreeSet<(u32, u64)>,
}

/// Most processes whose accounts are told apart of one step.
const MOST: usize = 4096;

impl Tally {
    /// Adds what was seen, for so long.
    pub fn add(&mut self, part: &Part, micros: u64) {
        let of = |percent: u32| micros.saturating_mul(percent.into()) / 100;
        let usage = &mut self.usage;
        usage.watched_us = usage.watched_us.saturating_add(micros.saturating_mul(part.told.into()));
        usage.busy_us = usage.busy_us.saturating_add(of(part.busy));
        usage.peak = usage.peak.max(part.busy);
        usage.max_memory = usage.max_memory.max(part.memory);
        for (pid, busy) in &part.of {
            if self.processes.len() < MOST || self.processes.contains_key(pid) {
                let sum = self.processes.entry(*pid).or_default();
                *sum = sum.saturating_add(of(*busy));
            }
        }
    }

    /// Takes in what the driver counted of a process of the step, in the place of what was sampled of it.
    pub fn settle(&mut self, account: &Account) {
        if self.accounts.len() >= MOST || !self.accounts.insert((account.pid, account.began_us)) {
            return;
        }
        let sampled = self.processes.remove(&account.pid).unwrap_or(0);
        let counted = account.took_us.saturating_mul(account.busy.into()) / 100;
        let usage = &mut self.usage;
        usage.busy_us = usage.busy_us.saturating_sub(sampled).saturating_add(counted);
        usage.watched_us = usage.watched_us.max(usage.busy_us);
        usage.peak = usage.peak.max(account.busy);
        usage.max_memory = usage.max_memory.max(account.memory);
    }

    /// Whether it has seen a process.
    pub fn knows(&self, pid: u32) -> bool {
        self.processes.contains_key(&pid)
    }
}

/// To which steps accounts belong: those that saw the process; else the one that has the GPU, where it began there while that step had it.
/// `began`: since when each step has its GPUs, in microseconds since 1970.
pub fn accounts<'a>(
    sample: &'a Sample,
    holders: &[Holder],
    began: impl Fn(StepKey) -> u64,
    knows: impl Fn(StepKey, u32) -> bool,
) -> Vec<(StepKey, &'a Account)> {
    let mut found = Vec::new();
    for seen in sample.devices.iter().filter(|seen| !seen.ended.is_empty()) {
        let here: Vec<&StepKey> = holders
            .iter()
            .filter(|holder| holder.devices.iter().any(|device| seen.is_of(device)))
            .map(|holder| &holder.key)
            .collect();
        let innermost = innermost(&here);
        for account in &seen.ended {
            let saw = here.iter().find(|key| knows(***key, account.pid));
            let alone = || match innermost.as_slice() {
                [only] if account.began_us >= began(**only) => Some(only),
                _ => None,
            };
            if let Some(key) = saw.or_else(alone) {
                found.push((**key, account));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests;
