//! Gives each task of a step the GPUs that are meant for it: `--gpu-bind`. The others' device files do not open for it where the step's
//! control group limits devices, as with Slurm's ConstrainDevices; everywhere it is told by variables.

use super::environment::{devices, joined};
use super::step::LaunchFailure;
use crate::spool::LaunchFile;
use berth_model::ByteStr;
use berth_model::bind::gpu::places;
use berth_model::bind::hex;
use berth_model::devices::near;
use berth_model::env::Devices;
use berth_model::env::gpus::{of_share, per_task, visible};
use berth_model::hardware::GresDevice;
use berth_runtime::TaskSpec;
use berth_runtime::cgroup::{DeviceRule, device_of};
use rustix::fd::OwnedFd;
use std::collections::BTreeSet;

/// What one task is told, and the group in which the other GPUs do not open.
pub struct Told {
    env: Vec<ByteStr>,
    says: Option<[String; 2]>,
    group: Option<OwnedFd>,
}

impl Told {
    /// Has the task told.
    pub fn put(self, task: &mut TaskSpec) {
        task.env.extend(self.env);
        task.says.extend(self.says);
        task.group = self.group;
    }
}

/// What each task of the step on this node is told; nothing where all are told of all. `cpus`: what each task is bound to,
/// where it is.
pub fn of_tasks(file: &LaunchFile, cpus: &[Option<Vec<u32>>]) -> Result<Vec<Told>, LaunchFailure> {
    let launch = &file.launch;
    let Some(bind) = launch.gpu_bind.as_ref().filter(|_| per_task(launch)) else { return Ok(Vec::new()) };
    let tasks = launch.layout.tasks.get(launch.node_index as usize).map(Vec::as_slice).unwrap_or_default();
    let own = of_share(&launch.share);
    let near: Vec<&[u32]> = own.iter().map(|gpu| near(gpu)).collect();
    let of_task = |task: u32| match cpus.get(task as usize) {
        Some(Some(cpus)) => cpus.as_slice(),
        _ => launch.share.cpus.as_slice(),
    };
    let count = u32::try_from(tasks.len()).unwrap_or(u32::MAX);
    let all = places(&bind.how, &near, count, of_task).map_err(|(local, why)| {
        let task = tasks.get(local as usize).copied().unwrap_or(local);
        LaunchFailure::new(format!("task {task} cannot be bound by --gpu-bind={bind}: {why}"))
    })?;
    let indices = |places: &[u32]| -> Vec<u32> {
        places.iter().filter_map(|at| own.get(*at as usize).map(|gpu| gpu.index)).collect()
    };
    let step: Vec<u32> = own.iter().map(|gpu| gpu.index).collect();
    (0..)
        .zip(&all)
        .map(|(local, places): (u32, &Vec<u32>)| {
            let denied = others(&own, places);
            let group = match &file.node.cgroup {
                Some(step) => step.without(&format!("task_{local}"), denied).map_err(|e| {
                    LaunchFailure::new(format!("the GPUs of other tasks cannot be kept from task {local} of this node: {e}"))
                })?,
                None => None,
            };
            let seen = if group.is_some() { Devices::OfTask } else { devices(file) };
            // As the task's own libraries count them.
            let counted: Vec<u32> = match seen {
                Devices::OfTask => (0..u32::try_from(places.len()).unwrap_or(u32::MAX)).collect(),
                _ => places.clone(),
            };
            let list = |numbers: &[u32]| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            // As Slurm writes it, and the process id behind it.
            let says = bind.verbose.then(|| {
                let line = format!(
                    "gpu-bind: usable_gres={}; bit_alloc={}; local_inx={}; global_list={}; local_list={}; pid=",
                    hex(places),
                    hex(&step),
                    own.len(),
                    list(&indices(places)),
                    list(&counted),
                );
                [line, String::new()]
            });
            Ok(Told { env: joined(visible(launch, seen, places)).collect(), says, group })
        })
        .collect()
}

/// The device files of the step's GPUs that a task with those at these places does without.
fn others(gpus: &[&GresDevice], places: &[u32]) -> Vec<DeviceRule> {
    let files = |own: bool| {
        let all = (0..).zip(gpus).filter(move |(at, _)| places.contains(at) == own);
        all.flat_map(|(_, gpu)| &gpu.files).collect::<BTreeSet<&ByteStr>>()
    };
    // What all programs need belongs to each GPU.
    let denied: Vec<&ByteStr> = files(false).difference(&files(true)).copied().collect();
    // A file that is gone opens for nobody.
    denied.into_iter().filter_map(|file| device_of(file.as_path()).ok()).collect()
}
