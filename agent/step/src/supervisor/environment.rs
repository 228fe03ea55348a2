//! The environment of a step's tasks: what the submitter had, and over it what Berth says of job, step and
//! task. The image's own comes between the two, and is the runtime's matter.

use super::pmi;
use super::processes::CLIENT_DIR;
use crate::spool::LaunchFile;
use berth_model::ByteStr;
use berth_model::env::{Devices, TaskPlace, gpus, step_variables, task_variables};
use berth_model::launch::StepLaunch;
use berth_model::mpirun;
use berth_model::options::Propagate;
use berth_model::x11;

/// Variables that belong to the submitter's own session and mean nothing in a job.
const NEVER: &[&[u8]] = &[
    b"XDG_RUNTIME_DIR",
    b"XDG_SESSION_ID",
    b"DBUS_SESSION_BUS_ADDRESS",
    // The supervisor's, for a file that only the user can read.
    x11::COOKIE.as_bytes(),
    x11::CARRIED.as_bytes(),
    x11::WANTED.as_bytes(),
    // It is about steps of salloc's command: inside of a step all of its limits go with those that it starts.
    Propagate::CARRIED.as_bytes(),
];

/// Names our own program for what an MPI that knows no Slurm would do by ssh, and the file with the job's nodes: as the step sees them.
fn remote_shells(env: &mut Vec<ByteStr>, file: &LaunchFile, host: bool) {
    let below = |dir: &[u8], name: &str| ByteStr([dir, b"/", name.as_bytes()].concat());
    let node = &file.node;
    let shell = node.client_programs.as_ref().map(|dir| match host {
        true => below(&dir.0, mpirun::PROGRAM),
        false => below(format!("{CLIENT_DIR}/bin").as_bytes(), mpirun::PROGRAM),
    });
    let hosts = node.client_dir.as_ref().map(|dir| match host {
        true => below(&dir.0, mpirun::HOSTS),
        false => below(CLIENT_DIR.as_bytes(), mpirun::HOSTS),
    });
    mpirun::tell(env, shell.as_ref(), hosts.as_ref().filter(|_| shell.is_some()));
}

/// What every task of the step has. `submitter`: the environment that the step was submitted with.
pub fn of_step(file: &LaunchFile, submitter: &[ByteStr]) -> Vec<ByteStr> {
    let name = |text: &ByteStr| text.0.split(|b| *b == b'=').next().unwrap_or_default().to_vec();
    let host = is_host(&file.launch);
    // A container has the job's own socket, and no path of the node's state directory means anything in it.
    // The GPUs of the job's script are not those of a step that has none.
    let (of_job, own) = (gpus::of_share(&file.launch.job.share), gpus::of_share(&file.launch.share));
    let stale = |name: &[u8]| gpus::VISIBLE.iter().any(|gpu| gpu.as_bytes() == name);
    let none = own.is_empty() && !of_job.is_empty();
    let enters = |name: &[u8]| {
        !NEVER.contains(&name)
            && !pmi::foreign(name)
            && (host || name != b"BERTH_STATE")
            && !(none && stale(name))
    };
    let mut env: Vec<ByteStr> = submitter.iter().filter(|text| enters(&name(text))).cloned().collect();
    let own_tmp = host && !env.iter().any(|text| name(text) == b"TMPDIR");
    env.extend(joined(step_variables(&file.launch, devices(file))));
    if let (Some(scratch), true) = (&file.node.scratch, own_tmp) {
        // The node's /tmp stays in sight of a step on its own filesystem, so its private one has another place.
        env.retain(|text| name(text) != b"TMPDIR");
        env.push(ByteStr([b"TMPDIR=".as_slice(), scratch.0.as_slice(), b"/tmp"].concat()));
    }
    if let (Some(dir), true) = (&file.node.state_dir, host) {
        env.push(ByteStr([b"BERTH_STATE=".as_slice(), dir.0.as_slice()].concat()));
    }
    remote_shells(&mut env, file, host);
    for (own, value) in super::x11::variables(file) {
        env.retain(|text| name(text) != own.as_bytes());
        env.push(ByteStr([own.as_bytes(), b"=", &value.0].concat()));
    }
    env
}

/// What only this task has, by its place among this node's.
pub fn of_task(file: &LaunchFile, local: u32) -> Vec<ByteStr> {
    let place = TaskPlace { local, pid: None, devices: devices(file) };
    let mut env: Vec<ByteStr> = joined(task_variables(&file.launch, place)).collect();
    env.extend(pmi::variables(&file.launch, local));
    env
}

/// Where nothing confines a step on the node's own filesystem, it sees every device.
pub(super) fn devices(file: &LaunchFile) -> Devices {
    match file.node.cgroup.is_some() || !is_host(&file.launch) {
        true => Devices::Confined,
        false => Devices::Open,
    }
}

/// Whether the step runs on the node's own filesystem.
pub fn is_host(launch: &StepLaunch) -> bool {
    use berth_model::spec::ResolvedImage;
    launch.container.as_ref().is_none_or(|c| c.image.resolved == Some(ResolvedImage::Host))
}

pub(super) fn joined(variables: Vec<(String, ByteStr)>) -> impl Iterator<Item = ByteStr> {
    variables.into_iter().map(|(name, value)| {
        let mut text = name.into_bytes();
        text.push(b'=');
        text.extend_from_slice(&value.0);
        ByteStr(text)
    })
}
