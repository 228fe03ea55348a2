//! A node's resources: what is free, what each run of a job holds, asserted at every take and release.

use crate::config::{CoreConfig, PartitionRules};
use crate::rows::NodeRow;
use crate::shrunk::Entered;
use berth_model::devices::{GPU, is_share, share_name, shares};
use berth_model::feature::{Feature, GATEWAY};
use berth_model::hardware::{GresDevice, Hardware, Vendor};
use berth_model::ids::{Attempt, JobId, NodeName, Session, StepKey};
use berth_model::launch::{NodeShare, Usage};
use berth_model::record::NodeInfo;
use berth_model::state::{Cause, NodeCondition};
use berth_model::time::Time;
use berth_model::tres::{GresKey, Tres};
use imbl::{OrdMap, OrdSet};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Who a reason is from that no person gave.
pub(crate) const CLUSTER: &str = "berth";

/// The registration of a connected agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) connection: u64,
    pub(crate) session: Session,
}

/// A node as the core holds it. Snapshots share it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) row: NodeRow,
    /// Detected and configured hardware.
    pub(crate) hardware: Arc<Hardware>,
    /// Indexes of free cores in `hardware.cores`.
    pub(crate) free_cores: Vec<bool>,
    /// CPUs of the free cores.
    pub(crate) free_cpus: u64,
    pub(crate) free_memory: u64,
    /// How many shares of each device of `hardware.gres` are free.
    pub(crate) free_gres: Vec<u32>,
    /// What each run holds.
    pub(crate) held: OrdMap<(JobId, Attempt), Arc<NodeShare>>,
    /// Runs that the agent still has and the cluster no longer counts here: nothing new starts on the node
    /// until each of them is gone.
    pub(crate) settling: OrdSet<(JobId, Attempt)>,
    pub(crate) link: Option<Link>,
    /// The latest connection of its agent: what an earlier one still says is old.
    pub(crate) last_connection: u64,
    pub(crate) last_heard: Time,
    /// The latest time by the node's own clock at which its agent asked for renewals, and when that was heard here: no run with a
    /// deadline goes on there longer than counted from the former, and the former was not after the latter.
    pub(crate) asked: Option<Time>,
    pub(crate) asked_at: Time,
    /// Since when a program powers it off.
    pub(crate) fencing: Option<Time>,
    /// When the next may, after one that has ended.
    pub(crate) fence_again: Option<Time>,
    /// It was found silent for long enough to be powered off, and is looked at once more then.
    pub(crate) fence_look: Option<Time>,
    /// Why it was not powered off the last time, and when it had been heard of last then: said once.
    pub(crate) unfenced: Option<(Time, String)>,
    /// The registration that was told that its fenced devices are well, and whether it was heard on once since.
    pub(crate) told_resumed: Option<(Session, bool)>,
    /// It was given up while it was connected: when what it had counts as lost at the latest.
    pub(crate) given_up: Option<Time>,
    /// What is in the log of hardware that it lacks.
    pub(crate) entered: Entered,
    pub(crate) last_busy: Option<Time>,
    pub(crate) load: u32,
    pub(crate) reported_free_memory: u64,
    /// Users whom it knows otherwise than we do, as its agent last said.
    pub(crate) drift: Vec<String>,
    /// Keys of the configuration that its agent does not know.
    pub(crate) unknown_settings: Vec<String>,
    /// What its agent knows of what jobs may ask for, as it last said.
    pub(crate) features: Vec<String>,
    /// What the steps that run there have used, as its agent last said.
    pub(crate) used: Arc<BTreeMap<StepKey, Usage>>,
    /// The configuration says other things of it than when it was made fit: it is made so again when it has no work.
    pub(crate) unfit: bool,
}

impl Node {
    /// A node without work.
    pub(crate) fn new(row: NodeRow, config: &CoreConfig, now: Time) -> Node {
        let mut node = Node {
            row,
            hardware: Arc::default(),
            free_cores: Vec::new(),
            free_cpus: 0,
            free_memory: 0,
            free_gres: Vec::new(),
            held: OrdMap::new(),
            settling: OrdSet::new(),
            link: None,
            last_connection: 0,
            last_heard: now,
            asked: None,
            asked_at: now,
            fencing: None,
            fence_again: None,
            fence_look: None,
            unfenced: None,
            told_resumed: None,
            given_up: None,
            entered: Entered::default(),
            last_busy: None,
            load: 0,
            reported_free_memory: 0,
            drift: Vec::new(),
            unknown_settings: Vec::new(),
            features: Vec::new(),
            used: Arc::default(),
            unfit: false,
        };
        node.refit(config);
        node
    }

    /// Takes the registered hardware as it is now. Only for a node without work.
    pub(crate) fn refit(&mut self, config: &CoreConfig) {
        assert!(self.held.is_empty(), "hardware of {} changed under its jobs", self.row.name);
        let hw = self.completed(config);
        self.free_cores = vec![true; hw.cores.len()];
        self.free_cpus = hw.cpus();
        self.free_memory = usable_memory(&hw);
        self.free_gres = hw.gres.iter().map(shares).collect();
        self.hardware = Arc::new(hw);
        self.unfit = false;
    }

    /// What was registered, with what the configuration says, and what the agent has said since of files that it did not name then.
    fn completed(&self, config: &CoreConfig) -> Hardware {
        let mut hardware = config.complete(&self.row.name, &self.row.hardware);
        for device in hardware.gres.iter_mut().filter(|device| is_by_file(device)) {
            if !self.row.hardware.gres.iter().any(|known| is_same_file(known, device)) {
                let known = self.hardware.gres.iter().find(|known| is_same_file(known, device));
                device.fault = known.and_then(|known| known.fault.clone());
            }
        }
        hardware
    }

    /// Takes what was registered of devices that do not work: they are given no more. Who has them keeps them. `now`: what the agent says
    /// at this moment, which may be of files that it did not name when the node was registered, as it names those alone that cannot be given.
    pub(crate) fn take_faults(&mut self, config: &CoreConfig, now: Option<&Hardware>) {
        let said = self.completed(config);
        let mut hardware = (*self.hardware).clone();
        for device in &mut hardware.gres {
            if let Some(now) = now.filter(|_| is_by_file(device)) {
                let found = now.gres.iter().find(|found| is_same_file(found, device));
                device.fault = found.and_then(|found| found.fault.clone());
            } else if let Some(found) =
                said.gres.iter().find(|d| d.name == device.name && d.index == device.index)
            {
                device.fault.clone_from(&found.fault);
            }
        }
        if hardware != *self.hardware {
            self.hardware = Arc::new(hardware);
        }
    }

    /// Takes what the configuration says of it, now or when it has no work.
    pub(crate) fn refit_when_free(&mut self, config: &CoreConfig) {
        self.unfit = self.completed(config) != *self.hardware;
        self.refit_if_free(config);
    }

    /// Does what was put off.
    pub(crate) fn refit_if_free(&mut self, config: &CoreConfig) {
        if self.unfit && self.held.is_empty() {
            self.refit(config);
        }
    }

    /// Whether it is meant to take work at all, now or when its agent is back.
    pub(crate) fn in_service(&self) -> bool {
        let c = &self.row.condition;
        !(c.down || c.drain || c.fail || c.not_responding)
            && self.row.causes.is_empty()
            && !c.reboot.as_ref().is_some_and(|reboot| reboot.asap || reboot.issued.is_some())
    }

    /// Its condition as everybody sees it: what the cluster itself keeps new work from is drained, with the cause as the reason
    /// where no administrator gave one, and behind the reason of its reboot. A reboot that is overdue is told beside any reason.
    pub(crate) fn condition(&self) -> NodeCondition {
        let mut shown = self.row.condition.clone();
        if let Some(reboot) = &self.row.condition.reboot {
            shown.drain |= reboot.asap;
            let asap = || reboot.asap.then(|| "Reboot ASAP".to_string());
            if let Some(reason) = reboot.reason.clone().or_else(asap).filter(|_| shown.reason.is_none()) {
                shown.reason = Some(reason);
                shown.reason_user = Some(reboot.user.clone());
                shown.reason_time = Some(reboot.since);
            }
        }
        if shown.not_responding && shown.reason.is_none() && self.row.causes.is_empty() {
            shown.reason = Some("Not responding".to_string());
            shown.reason_user = Some(CLUSTER.to_string());
            shown.reason_time = Some(self.last_heard);
        }
        let Some(first) = self.row.causes.values().next() else { return shown };
        shown.drain = true;
        if self.row.condition.reason.is_none() {
            let causes = self.row.causes.values().map(|cause| cause.why.as_str());
            let all: Vec<&str> = shown.reason.as_deref().into_iter().chain(causes).collect();
            shown.reason = Some(all.join("; "));
            shown.reason_user = Some(CLUSTER.to_string());
            shown.reason_time = Some(first.since);
        } else if let (Some(given), Some(overdue)) = (&mut shown.reason, self.row.causes.get(&Cause::Reboot))
        {
            given.push_str("; ");
            given.push_str(&overdue.why);
        }
        shown
    }

    /// What of this its agent does not know. One that is not there may be another one when it is.
    pub(crate) fn lacks(&self, needs: &[Feature]) -> Option<Feature> {
        self.link?;
        needs.iter().copied().find(|feature| !self.features.iter().any(|known| known == feature.name()))
    }

    /// Whether its agent is there and can be asked, as a gateway's, what a name means, and to fetch an image without a job.
    pub(crate) fn answers_as_gateway(&self) -> bool {
        self.link.is_some() && self.features.iter().any(|known| known == GATEWAY)
    }

    /// Whether a device of it is given to nobody.
    pub(crate) fn has_fenced(&self) -> bool {
        self.row.hardware.gres.iter().chain(&self.hardware.gres).any(|device| device.fault.is_some())
    }

    /// Whether new work may start now.
    pub(crate) fn available(&self) -> bool {
        self.in_service() && self.link.is_some() && self.settling.is_empty()
    }

    /// Gives `share` to a run.
    ///
    /// # Errors
    /// Changes nothing and says what of it is not free. In a running core that is a fault of ours; in stored
    /// rows it is nonsense to be refused.
    pub(crate) fn take(&mut self, run: (JobId, Attempt), share: &Arc<NodeShare>) -> Result<(), String> {
        let cores = self.cores_of(share)?;
        if self.held.contains_key(&run) {
            return Err(format!("job {} has its share of {} already", run.0, self.row.name));
        }
        if let Some(core) = cores.iter().find(|c| !self.free_cores[**c]) {
            return Err(format!("core {core} of {} is given twice", self.row.name));
        }
        if share.memory > self.free_memory {
            return Err(format!(
                "{} MiB of {} are given, {} are free",
                share.memory, self.row.name, self.free_memory
            ));
        }
        let devices = self.devices_of(&share.gres)?;
        if let Some((d, _)) = devices.iter().find(|(d, part)| self.free_gres[**d] < **part) {
            let device = &self.hardware.gres[*d];
            return Err(format!("{} {} of {} is given twice", device.name, device.index, self.row.name));
        }
        for core in &cores {
            self.free_cores[*core] = false;
        }
        self.free_cpus -= share.cpus.len() as u64;
        self.free_memory -= share.memory;
        for (d, part) in devices {
            self.free_gres[d] -= part;
        }
        self.held.insert(run, share.clone());
        Ok(())
    }

    /// Takes a run's share back; whether it had one.
    pub(crate) fn release(&mut self, run: (JobId, Attempt)) -> bool {
        let Some(share) = self.held.remove(&run) else { return false };
        let (cores, devices) = match (self.cores_of(&share), self.devices_of(&share.gres)) {
            (Ok(cores), Ok(devices)) => (cores, devices),
            (Err(why), _) | (_, Err(why)) => unreachable!("a share that was taken cannot go back: {why}"),
        };
        for core in &cores {
            assert!(!self.free_cores[*core], "core {core} of {} was free already", self.row.name);
            self.free_cores[*core] = true;
        }
        self.free_cpus += share.cpus.len() as u64;
        self.free_memory += share.memory;
        for (d, part) in devices {
            let free = self.free_gres[d] + part;
            assert!(
                free <= shares(&self.hardware.gres[d]),
                "device {d} of {} was free already",
                self.row.name
            );
            self.free_gres[d] = free;
        }
        assert!(
            self.free_memory <= usable_memory(&self.hardware) && self.free_cpus <= self.hardware.cpus(),
            "more is free on {} than it has",
            self.row.name
        );
        true
    }

    fn cores_of(&self, share: &NodeShare) -> Result<Vec<usize>, String> {
        let mut cores = Vec::new();
        let mut rest: std::collections::BTreeSet<u32> = share.cpus.iter().copied().collect();
        for (i, core) in self.hardware.cores.iter().enumerate() {
            let had = core.cpus.iter().filter(|c| rest.remove(c)).count();
            if had == core.cpus.len() && had > 0 {
                cores.push(i);
            } else if had > 0 {
                return Err(format!("only a part of core {i} of {} is given", self.row.name));
            }
        }
        let sum: usize = cores.iter().map(|c| self.hardware.cores[*c].cpus.len()).sum();
        match rest.first() {
            Some(cpu) => Err(format!("{} has no CPU {cpu}", self.row.name)),
            None if sum != share.cpus.len() => Err(format!("a CPU of {} is named twice", self.row.name)),
            None => Ok(cores),
        }
    }

    /// Which devices they are, and how many shares of each.
    fn devices_of(&self, gres: &[GresDevice]) -> Result<BTreeMap<usize, u32>, String> {
        let mut devices = BTreeMap::new();
        for g in gres {
            let name = if is_share(&g.name) { GPU } else { g.name.as_str() };
            let at = self.hardware.gres.iter().position(|d| d.name == name && d.index == g.index);
            let at =
                at.ok_or_else(|| format!("{} has no {} with index {}", self.row.name, g.name, g.index))?;
            // One whose shares are counted otherwise than when it was given is still given whole.
            let part = if is_share(&g.name) { shares(g) } else { shares(&self.hardware.gres[at]) };
            *devices.entry(at).or_default() += part;
        }
        Ok(devices)
    }

    /// Everything that can be allocated.
    pub(crate) fn total(&self) -> Tres {
        let hw = &self.hardware;
        let mut total = Tres { cpu: hw.cpus(), mem: usable_memory(hw), node: 1, gres: BTreeMap::new() };
        count_gres(&mut total, hw.gres.iter());
        total
    }

    pub(crate) fn info(&self, partitions: &[PartitionRules]) -> NodeInfo {
        let mut allocated = crate::job::total(self.held.values().map(|s| &**s));
        allocated.node = u64::from(!self.held.is_empty());
        let named = |d: &GresDevice| GresDevice {
            name: d.name.clone(),
            kind: d.kind.clone(),
            index: d.index,
            shares: d.shares,
            ..GresDevice::default()
        };
        let mut hardware = (*self.hardware).clone();
        let faults = hardware.gres.iter_mut().filter_map(|device| device.fault.as_mut());
        for fault in faults.filter(|_| self.row.resumed) {
            fault.push_str(" (State=RESUME was said: its agent is told when it is here)");
        }
        NodeInfo {
            name: self.row.name.clone(),
            hardware,
            condition: self.condition(),
            partitions: partitions
                .iter()
                .filter(|p| p.has(&self.row.name))
                .map(|p| p.name.to_string())
                .collect(),
            total: self.total(),
            allocated,
            completing: !self.settling.is_empty(),
            version: self.row.agent_version.clone(),
            boot_time: Some(self.row.boot_time),
            agent_start: Some(self.row.agent_start),
            last_busy: self.last_busy,
            load: self.load,
            free_memory: self.reported_free_memory,
            drift: self.drift.clone(),
            unknown_settings: self.unknown_settings.clone(),
            hardware_drift: self.less(),
            used: self.held.values().flat_map(|share| &share.gres).map(named).collect(),
            host_name: self.row.host_name.clone(),
        }
    }

    /// What it has less of than it was registered with, a line each.
    pub(crate) fn less(&self) -> Vec<String> {
        crate::shrunk::missing(self.row.registered, &self.row.hardware)
    }
}

/// Memory that jobs can have.
pub(crate) fn usable_memory(hw: &Hardware) -> u64 {
    hw.memory.saturating_sub(hw.memory_reserved)
}

/// Whether a device is one of the configuration's `files`, and none that its node found.
pub(crate) fn is_by_file(device: &GresDevice) -> bool {
    device.vendor == Vendor::Generic && device.cdi.is_none() && !device.files.is_empty()
}

/// Whether both are the same of the configuration's `files`.
pub(crate) fn is_same_file(one: &GresDevice, other: &GresDevice) -> bool {
    is_by_file(one) && is_by_file(other) && (&one.name, &one.files) == (&other.name, &other.files)
}

fn count_gres<'a>(total: &mut Tres, devices: impl Iterator<Item = &'a GresDevice>) {
    for d in devices {
        *total.gres.entry(GresKey { name: d.name.clone(), kind: None }).or_default() += 1;
        if d.kind.is_some() {
            *total.gres.entry(GresKey { name: d.name.clone(), kind: d.kind.clone() }).or_default() += 1;
        }
        if d.name == GPU && shares(d) > 1 {
            *total.gres.entry(GresKey { name: share_name(d).to_string(), kind: None }).or_default() +=
                u64::from(shares(d));
        }
    }
}

/// Nodes in messages, as a hostlist.
pub(crate) fn names<'a>(nodes: impl IntoIterator<Item = &'a NodeName>) -> String {
    let names: Vec<&str> = nodes.into_iter().map(|n| n.0.as_str()).collect();
    berth_model::hostlist::compress(&names)
}
