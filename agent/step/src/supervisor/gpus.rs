//! Tells each task of a step which of its GPUs are meant for it: `--gpu-bind`.

use super::environment::{devices, joined};
use super::step::LaunchFailure;
use crate::spool::LaunchFile;
use berth_model::ByteStr;
use berth_model::bind::gpu::places;
use berth_model::bind::hex;
use berth_model::devices::near;
use berth_model::env::gpus::{of_share, per_task, visible};
use berth_runtime::TaskSpec;

/// What one task is told.
pub struct Told {
    env: Vec<ByteStr>,
    says: Option<[String; 2]>,
}

impl Told {
    /// Has the task told.
    pub fn put(self, task: &mut TaskSpec) {
        task.env.extend(self.env);
        task.says.extend(self.says);
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
    Ok(all
        .iter()
        .map(|places| {
            let list = |numbers: &[u32]| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            // As Slurm writes it, and the process id behind it.
            let says = bind.verbose.then(|| {
                let line = format!(
                    "gpu-bind: usable_gres={}; bit_alloc={}; local_inx={}; global_list={}; local_list={}; pid=",
                    hex(places),
                    hex(&step),
                    own.len(),
                    list(&indices(places)),
                    list(places),
                );
                [line, String::new()]
            });
            Told { env: joined(visible(launch, devices(file), places)).collect(), says }
        })
        .collect())
}
