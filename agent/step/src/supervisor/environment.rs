//! The environment of a step's tasks: what the submitter had, and what Berth says of job, step and task.

use berth_model::ByteStr;
use berth_model::launch::StepLaunch;

/// Variables that belong to the submitter's own session and mean nothing in a job.
const NEVER: &[&[u8]] = &[b"XDG_RUNTIME_DIR", b"XDG_SESSION_ID", b"DBUS_SESSION_BUS_ADDRESS"];

/// What every task of the step has.
pub fn of_step(launch: &StepLaunch) -> Vec<ByteStr> {
    let name = |text: &ByteStr| text.0.split(|b| *b == b'=').next().unwrap_or_default().to_vec();
    launch.env.iter().filter(|text| !NEVER.contains(&name(text).as_slice())).cloned().collect()
}

/// What only this task has, by its place among this node's.
pub fn of_task(launch: &StepLaunch, local: u32) -> Vec<ByteStr> {
    let here = launch.layout.tasks.get(launch.node_index as usize).map(Vec::as_slice).unwrap_or_default();
    let global = here.get(local as usize).copied().unwrap_or(local);
    let gtids: Vec<String> = here.iter().map(u32::to_string).collect();
    vec![
        ByteStr::from(format!("SLURM_PROCID={global}")),
        ByteStr::from(format!("SLURM_LOCALID={local}")),
        ByteStr::from(format!("SLURM_NODEID={}", launch.node_index)),
        ByteStr::from(format!("SLURM_GTIDS={}", gtids.join(","))),
    ]
}
