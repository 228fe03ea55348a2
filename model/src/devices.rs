//! What is asked of devices beyond so many on each node: GPUs of a whole job, of tasks and sockets, and what comes with each.

use crate::gres::Wanted;
use crate::hardware::GresDevice;
use crate::tres::GresKey;
use serde::{Deserialize, Serialize};

/// The name of devices that the options about GPUs mean.
pub const GPU: &str = "gpu";

/// Whether devices are near the cores of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nearness {
    /// Where that is possible.
    #[default]
    Preferred,
    /// All of them, or the job waits (`--gres-flags=enforce-binding`).
    Enforced,
    /// It does not matter (`--gres-flags=disable-binding`).
    Ignored,
}

/// What is asked of devices beyond so many on each node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceRequest {
    /// `--gpus`: of the whole job or step, on as many of its nodes as it has, one at least on each.
    #[serde(skip_serializing_if = "Wanted::is_empty")]
    pub total: Wanted,
    /// `--gpus-per-task`, `--tres-per-task`: for each task.
    #[serde(skip_serializing_if = "Wanted::is_empty")]
    pub per_task: Wanted,
    /// `--gpus-per-socket`: for each socket of which the job has cores, near it.
    #[serde(skip_serializing_if = "Wanted::is_empty")]
    pub per_socket: Wanted,
    /// `--cpus-per-gpu`.
    pub cpus_per_gpu: Option<u32>,
    /// `--ntasks-per-gpu`, where the number of tasks decides that of GPUs.
    pub tasks_per_gpu: Option<u32>,
    /// `--gres-flags`.
    pub nearness: Nearness,
}

impl DeviceRequest {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == DeviceRequest::default()
    }

    /// Whether it names devices at all; the rest only says what comes with them.
    pub fn names_devices(&self) -> bool {
        !(self.total.is_empty() && self.per_task.is_empty() && self.per_socket.is_empty())
            || self.tasks_per_gpu.is_some()
    }

    /// What a node with so many tasks needs, apart from its part of the total and from what sockets bring.
    pub fn for_tasks(&self, tasks: u32) -> Wanted {
        let mut wanted: Wanted = self
            .per_task
            .iter()
            .map(|(key, n)| (key.clone(), n.saturating_mul(u64::from(tasks))))
            .filter(|(_, n)| *n > 0)
            .collect();
        if let Some(each) = self.tasks_per_gpu {
            let gpus = u64::from(tasks.div_ceil(each.max(1)));
            add(&mut wanted, GresKey { name: GPU.to_string(), kind: None }, gpus);
        }
        wanted
    }
}

/// Adds to a request.
pub fn add(wanted: &mut Wanted, key: GresKey, count: u64) {
    if count > 0 {
        let slot = wanted.entry(key).or_default();
        *slot = slot.saturating_add(count);
    }
}

/// Both requests together.
pub fn sum(a: &Wanted, b: &Wanted) -> Wanted {
    let mut all = a.clone();
    for (key, count) in b {
        add(&mut all, key.clone(), *count);
    }
    all
}

/// GPUs of a request, of whatever type.
pub fn gpus(wanted: &Wanted) -> u64 {
    wanted.iter().filter(|(key, _)| key.name == GPU).fold(0, |sum, (_, n)| sum.saturating_add(*n))
}

/// Whether a device is what a request's key means.
pub fn fits(device: &GresDevice, key: &GresKey) -> bool {
    device.name == key.name && (key.kind.is_none() || device.kind == key.kind)
}

/// Shares of a device that several jobs may have at once; 1 where it is given whole.
pub fn shares(device: &GresDevice) -> u32 {
    device.shares.max(1)
}

/// CPUs near a device; none where all are, or nothing is known.
pub fn near(device: &GresDevice) -> &[u32] {
    &device.cpus
}

/// Slices of a device's time, as Slurm names them.
pub const SHARD: &str = "shard";
/// Hundredths of what a device computes, which NVIDIA's Multi-Process Service keeps apart.
pub const MPS: &str = "mps";

/// Whether a name is that of shares, and not of devices.
pub fn is_share(name: &str) -> bool {
    name == SHARD || name == MPS
}

/// What shares of a device are called.
pub fn share_name(device: &GresDevice) -> &str {
    match device.mps {
        _ if is_share(&device.name) => &device.name,
        true => MPS,
        false => SHARD,
    }
}

/// Whether a device is kept from new work.
pub fn is_fenced(device: &GresDevice) -> bool {
    device.fault.is_some()
}

/// For each device the first one of its island: devices of one name that fast links join, directly or by others.
pub fn islands(devices: &[GresDevice]) -> Vec<usize> {
    let mut first: Vec<usize> = (0..devices.len()).collect();
    // Labels only sink; as many rounds as there are devices in a chain are enough.
    loop {
        let mut changed = false;
        for (at, device) in devices.iter().enumerate() {
            for (other, neighbour) in devices.iter().enumerate() {
                let joined =
                    device.links.contains(&neighbour.index) || neighbour.links.contains(&device.index);
                if joined && device.name == neighbour.name && first[other] > first[at] {
                    first[other] = first[at];
                    changed = true;
                }
            }
        }
        if !changed {
            return first;
        }
    }
}

/// `--tres-per-task`: what it says of CPUs and of devices.
///
/// # Errors
/// A resource that no task can be given.
pub fn parse_per_task(text: &str) -> Result<(Option<u32>, Wanted), crate::grammar::BadText> {
    const WHAT: &str = "resources of a task";
    let (mut cpus, mut wanted) = (None, Wanted::new());
    for item in text.split(',') {
        let bad = |why: &str| crate::grammar::BadText::new(item, WHAT, why);
        let (head, count) = item.split_once(['=', ':']).unwrap_or((item, ""));
        match head {
            "cpu" => {
                let count =
                    crate::count::positive(count).map_err(|_| bad("behind cpu= stands a number from 1"))?;
                if cpus.replace(count).is_some() {
                    return Err(bad("cpu stands there twice"));
                }
            }
            _ if head.starts_with("gres") => {
                for (key, count) in crate::gres::parse(item)? {
                    add(&mut wanted, key, count);
                }
            }
            "mem" => return Err(bad("ask for memory with --mem, --mem-per-cpu or --mem-per-gpu")),
            _ => return Err(bad("write cpu=COUNT and gres/NAME[:TYPE]=COUNT, such as cpu=4,gres/gpu=1")),
        }
    }
    Ok((cpus, wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> Wanted {
        crate::gres::parse(text).unwrap()
    }

    #[test]
    fn tasks_bring_their_devices() {
        let per_task = DeviceRequest { per_task: wanted("gpu:a100:2,nic:1"), ..DeviceRequest::default() };
        assert_eq!(per_task.for_tasks(3), wanted("gpu:a100:6,nic:3"));
        assert_eq!(per_task.for_tasks(0), Wanted::new());
        let per_gpu = DeviceRequest { tasks_per_gpu: Some(2), ..DeviceRequest::default() };
        assert_eq!(per_gpu.for_tasks(5), wanted("gpu:3"));
        assert!(per_gpu.names_devices() && !per_gpu.is_empty());
        let cpus = DeviceRequest { cpus_per_gpu: Some(4), ..DeviceRequest::default() };
        assert!(!cpus.names_devices() && !cpus.is_empty());
    }

    #[test]
    fn what_a_task_has_is_read() {
        assert_eq!(parse_per_task("cpu=4,gres/gpu=1").unwrap(), (Some(4), wanted("gpu:1")));
        assert_eq!(parse_per_task("gres/gpu:a100:2").unwrap(), (None, wanted("gpu:a100:2")));
        for text in ["", "cpu=0", "cpu=1,cpu=2", "mem=1G", "license/x=1", "gpu=x", "gres/gpu=x"] {
            assert!(parse_per_task(text).is_err(), "{text}");
        }
    }
}
