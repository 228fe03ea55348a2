//! What steps use while they run: processors and memory by their control groups, GPUs by a process that samples them.
//!
//! What was sampled of a step lies beside its spool entry, so that a later agent goes on with it, and goes into its exit. GPUs are looked at
//! only while a step has some.

use berth_gpus::nvml::sampler::Sampler;
use berth_gpus::sample::{DeviceSample, Sample};
use berth_gpus::share::{Holder, Tally, accounts, busiest, parts};
use berth_model::env::gpus::is_gpu;
use berth_model::hardware::{GresDevice, Vendor};
use berth_model::ids::{Attempt, JobId, StepKey};
use berth_model::launch::{GpuUsage, NodeShare, Usage};
use berth_model::link::GpusBusy;
use berth_runtime::cgroup::Cgroup;
use berth_step::spool::{StepDir, read_json, write_json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// How long a driver may take to answer.
const DEADLINE: Duration = Duration::from_secs(20);
/// Looks after a step's begin before those of every period: what is short is seen, too.
const FIRST: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(6)];
/// For how long the process stays without a step with GPUs: waking a driver up takes seconds.
const LINGER: Duration = Duration::from_secs(60);
/// Between two attempts to ask while somebody else does.
const SOON: Duration = Duration::from_millis(10);
/// What lies beside a step's spool entry.
const FILE: &str = "gpus.json";

/// Steps and what they use.
pub struct Used {
    period: Option<Duration>,
    sampler: Mutex<Sampler>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    steps: BTreeMap<StepKey, Watched>,
    /// The busiest GPU of each run since somebody asked.
    busy: BTreeMap<(JobId, Attempt), u32>,
    /// Drivers keep account of processes.
    accounting: bool,
    /// Why there was no sample the last time.
    failed: Option<String>,
    /// Why it is not measured how busy parts of GPUs are, by their names, as it was said last.
    unmeasured: BTreeMap<String, String>,
    running: bool,
    over: bool,
}

impl State {
    /// Says once of each part of a GPU that a step has why it is not measured how busy it is.
    fn tell_unmeasured(&mut self, sample: &Sample, holders: &[Holder]) {
        let held = |seen: &&DeviceSample| {
            holders.iter().any(|holder| holder.devices.iter().any(|device| seen.is_of(device)))
        };
        for seen in sample.devices.iter().filter(held) {
            let (Some(name), Some(why)) = (&seen.uuid, &seen.unmeasured) else { continue };
            if self.unmeasured.get(name) != Some(why) {
                tracing::info!("how busy {name} is, is not measured and counts as busy: {why}");
                self.unmeasured.insert(name.clone(), why.clone());
            }
        }
    }
}

struct Watched {
    devices: Vec<GresDevice>,
    /// It has GPUs beside these, of which nobody can be asked what they do.
    blind: bool,
    cgroup: Option<Cgroup>,
    file: PathBuf,
    tally: Tally,
    began: Instant,
    began_us: u64,
    last: Instant,
}

impl Watched {
    /// When it is looked at next.
    fn due(&self, period: Duration) -> Instant {
        let early = FIRST.iter().map(|after| self.began + *after).find(|at| *at > self.last);
        early.unwrap_or(self.last + period).min(self.last + period)
    }
}

impl Used {
    /// Nothing yet. `program words…` samples; `seconds` lie between two samples, and 0 takes none.
    pub fn new(program: &Path, words: Vec<String>, seconds: u32) -> Arc<Used> {
        Arc::new(Used {
            period: Some(Duration::from_secs(seconds.into())).filter(|period| !period.is_zero()),
            sampler: Mutex::new(Sampler::new(program.to_path_buf(), words)),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step runs; one that an earlier agent began goes on with what that saw.
    pub fn begin(self: &Arc<Self>, key: StepKey, share: &NodeShare, cgroup: Option<Cgroup>, dir: &StepDir) {
        let devices: Vec<GresDevice> =
            share.gres.iter().filter(|device| is_sampled(device)).cloned().collect();
        let now = Instant::now();
        let watched = Watched {
            tally: read_json(&dir.path().join(FILE)).unwrap_or_default(),
            file: dir.path().join(FILE),
            cgroup,
            began: now,
            began_us: u64::try_from(crate::driver::wall_clock().0).unwrap_or(0),
            last: now,
            blind: share.gres.iter().any(|device| is_gpu(device) && !is_sampled(device)),
            devices,
        };
        let sampled = !watched.devices.is_empty() && self.period.is_some();
        let mut state = self.state();
        state.steps.insert(key, watched);
        if sampled && !state.running {
            let this = Arc::clone(self);
            match std::thread::Builder::new().name("gpu-use".into()).spawn(move || this.keep()) {
                Ok(_) => state.running = true,
                Err(e) => tracing::error!("the use of GPUs is not recorded: no thread for it: {e}"),
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Whether something of a step that ended can still be learnt by another look: where the driver keeps account of processes.
    pub fn looks_again(&self, key: StepKey) -> bool {
        let state = self.state();
        state.accounting && state.steps.get(&key).is_some_and(|step| !step.devices.is_empty())
    }

    /// A step ended: what it used of GPUs.
    pub fn end(&self, key: StepKey) -> Option<GpuUsage> {
        let step = self.state().steps.remove(&key)?;
        (step.tally != Tally::default()).then_some(step.tally.usage)
    }

    /// What an earlier agent saw of a step that has ended since.
    pub fn kept(dir: &StepDir) -> Option<GpuUsage> {
        read_json::<Tally>(&dir.path().join(FILE)).ok().map(|tally| tally.usage)
    }

    /// What steps that run have used so far, as far as somebody counts.
    pub fn live(&self) -> Vec<(StepKey, Usage)> {
        let steps: Vec<(StepKey, Option<Cgroup>, Option<GpuUsage>)> = self
            .state()
            .steps
            .iter()
            .map(|(key, step)| {
                let gpu = (step.tally != Tally::default()).then_some(step.tally.usage);
                (*key, step.cgroup.clone(), gpu)
            })
            .collect();
        let usage = |(key, cgroup, gpu): (StepKey, Option<Cgroup>, Option<GpuUsage>)| {
            let counted = cgroup.as_ref().map(Cgroup::usage);
            if counted.is_none() && gpu.is_none() {
                return None;
            }
            let counted = counted.unwrap_or_default();
            let usage = Usage {
                user_us: counted.user_us.unwrap_or(0),
                system_us: counted.system_us.unwrap_or(0),
                max_rss: counted.peak_memory.or(counted.memory).unwrap_or(0),
                gpu,
                ..Usage::default()
            };
            Some((key, usage))
        };
        steps.into_iter().filter_map(usage).collect()
    }

    /// How busy the GPUs of runs were since this was asked last, where somebody looked.
    pub fn busy(&self) -> Vec<GpusBusy> {
        let busy = std::mem::take(&mut self.state().busy);
        busy.into_iter().map(|((job, attempt), percent)| GpusBusy { job, attempt, percent }).collect()
    }

    /// Ends the thread, and the process that it asks.
    pub fn close(&self) {
        self.state().over = true;
        self.changed.notify_all();
    }

    /// Memory and processes as of now; steps miss nothing for it. Blocks for as long as the driver may take, and for whoever asks it.
    ///
    /// # Errors
    /// In words, why there is none.
    pub fn glance(&self, deadline: Duration) -> Result<Sample, String> {
        self.sampler.lock().unwrap_or_else(PoisonError::into_inner).glance(deadline)
    }

    /// Whether steps with GPUs are looked at.
    pub fn looks(&self) -> bool {
        self.period.is_some()
    }

    /// Lets the process go where nobody will ask it soon.
    pub fn let_go(&self) {
        if !self.state().running {
            self.sampler.lock().unwrap_or_else(PoisonError::into_inner).stop();
        }
    }

    fn keep(&self) {
        let period = self.period.unwrap_or(DEADLINE);
        let mut idle_since = Instant::now();
        loop {
            let state = self.state();
            if state.over {
                break;
            }
            let now = Instant::now();
            let due = state.steps.values().filter(|s| !s.devices.is_empty()).map(|s| s.due(period)).min();
            let wait = match due {
                Some(due) => {
                    idle_since = now;
                    due.saturating_duration_since(now)
                }
                None if now.duration_since(idle_since) >= LINGER => {
                    drop(state);
                    self.sampler.lock().unwrap_or_else(PoisonError::into_inner).stop();
                    idle_since = now;
                    continue;
                }
                None => LINGER,
            };
            if !wait.is_zero() {
                drop(self.changed.wait_timeout(state, wait));
                continue;
            }
            drop(state);
            self.look(DEADLINE);
        }
        self.sampler.lock().unwrap_or_else(PoisonError::into_inner).stop();
    }

    /// What samples, unless somebody else has it until then.
    fn sampler_until(&self, end: Instant) -> Option<MutexGuard<'_, Sampler>> {
        loop {
            match self.sampler.try_lock() {
                Ok(sampler) => return Some(sampler),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= end => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(SOON),
            }
        }
    }

    /// Looks at the GPUs of all steps once; not at all where another look hangs for half of the deadline.
    pub fn look(&self, deadline: Duration) {
        let begin = Instant::now();
        let Some(mut sampler) = self.sampler_until(begin + deadline / 2) else { return };
        let sampled = sampler.sample(deadline.saturating_sub(begin.elapsed()));
        drop(sampler);
        let sample = match sampled {
            Ok(sample) => sample,
            Err(why) => {
                let mut state = self.state();
                if state.failed.as_ref() != Some(&why) {
                    tracing::warn!("the use of GPUs is not recorded for now: {why}");
                }
                state.failed = Some(why);
                // Nobody knows what they did meanwhile.
                state.steps.values_mut().for_each(|step| step.last = Instant::now());
                return;
            }
        };
        let owners = self.owners(&sample);
        let mut state = self.state();
        let trouble = sample.trouble.clone();
        if trouble.is_some() && state.failed != trouble {
            tracing::warn!(
                "the use of some GPUs is not recorded: {}",
                trouble.as_deref().unwrap_or_default()
            );
        }
        state.failed = trouble;
        state.accounting = sample.devices.iter().any(|device| device.accounting);
        let holders: Vec<Holder> = state
            .steps
            .iter()
            .filter(|(_, step)| !step.devices.is_empty())
            .map(|(key, step)| Holder { key: *key, devices: step.devices.clone() })
            .collect();
        state.tell_unmeasured(&sample, &holders);
        let now = Instant::now();
        let settled: Vec<_> = accounts(
            &sample,
            &holders,
            |key| state.steps.get(&key).map_or(u64::MAX, |step| step.began_us),
            |key, pid| state.steps.get(&key).is_some_and(|step| step.tally.knows(pid)),
        )
        .into_iter()
        .map(|(key, account)| (key, *account))
        .collect();
        for holder in &holders {
            let key = holder.key;
            let blind = state.steps.get(&key).is_some_and(|step| step.blind);
            // What nobody says counts as busy.
            let percent = busiest(&sample, &holder.devices).filter(|_| !blind).unwrap_or(100);
            let busy = state.busy.entry((key.job, key.attempt)).or_default();
            *busy = (*busy).max(percent);
        }
        for (key, part) in parts(&sample, &holders, |pid| owners.get(&pid).copied()) {
            if let Some(step) = state.steps.get_mut(&key) {
                let passed = now.duration_since(step.last);
                step.tally.add(&part, u64::try_from(passed.as_micros()).unwrap_or(0));
            }
        }
        for (key, account) in settled {
            if let Some(step) = state.steps.get_mut(&key) {
                step.tally.settle(&account);
            }
        }
        for (key, step) in state.steps.iter_mut().filter(|(_, step)| !step.devices.is_empty()) {
            step.last = now;
            if let Err(e) = write_json(&step.file, &step.tally)
                && step.file.parent().is_some_and(Path::is_dir)
            {
                tracing::warn!("step {key}: what it used of GPUs cannot be kept: {e}");
            }
        }
    }

    /// To which steps the processes on GPUs belong.
    fn owners(&self, sample: &Sample) -> BTreeMap<u32, StepKey> {
        let pids: BTreeSet<u32> = sample
            .devices
            .iter()
            .flat_map(|device| device.processes.iter().flatten())
            .map(|process| process.pid)
            .collect();
        if pids.is_empty() {
            return BTreeMap::new();
        }
        let steps: Vec<(StepKey, Option<Cgroup>, PathBuf)> = self
            .state()
            .steps
            .iter()
            .filter(|(_, step)| !step.devices.is_empty())
            .map(|(key, step)| (*key, step.cgroup.clone(), step.file.clone()))
            .collect();
        let mut owners = BTreeMap::new();
        let mut supervisors = BTreeMap::new();
        for (key, cgroup, file) in steps {
            match cgroup {
                Some(group) => {
                    let own = group.processes().into_iter().filter_map(|pid| u32::try_from(pid).ok());
                    owners.extend(own.filter(|pid| pids.contains(pid)).map(|pid| (pid, key)));
                }
                None => {
                    let dir = file.parent().map(|dir| StepDir::at(dir.to_path_buf()));
                    let state = dir.and_then(|dir| dir.read_state().ok().flatten());
                    let pid = state.and_then(|state| u32::try_from(state.pid).ok());
                    supervisors.extend(pid.map(|pid| (pid, key)));
                }
            }
        }
        for pid in pids.iter().filter(|_| !supervisors.is_empty()) {
            let mut ancestors = std::iter::successors(Some(*pid), |pid| parent(*pid)).take(64);
            if let Some(key) = ancestors.find_map(|pid| supervisors.get(&pid)) {
                owners.entry(*pid).or_insert(*key);
            }
        }
        owners
    }
}

/// Whether somebody can be asked what it does.
pub fn is_sampled(device: &GresDevice) -> bool {
    is_gpu(device) && matches!(device.vendor, Vendor::Nvidia | Vendor::Amd)
}

/// Whether the kernel can say of it that it does not work any more.
pub fn is_known_to_kernel(device: &GresDevice) -> bool {
    is_gpu(device) && device.bus.is_some()
}

/// Of which process it is a child.
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may have whatever is in names of files.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok().filter(|parent| *parent > 1)
}

#[cfg(test)]
mod tests;
