//! The allocation of the job that a command runs in: which devices its containers get.

use crate::daemon::{self, Part};
use berth_client::error::{Failure, Kind};
use berth_client::site::{Site, StateDir};
use berth_model::ByteStr;
use berth_model::query::JobQuery;
use berth_model::spec::JobSelector;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Prefixes and names of variables that belong to a job.
const PREFIXES: &[&str] = &["SLURM_", "SLURMD_", "SRUN_", "BERTH_", "PMI_", "PMIX_"];
/// Variables by which libraries of GPUs are told what they may use.
const DEVICES: &[&str] =
    &["CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"];

/// Those by which programs with a part of a GPU find who holds them to it.
const MPS: &[&str] = &["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUDA_MPS_PIPE_DIRECTORY"];

/// Whether a variable belongs to the job. The path of a state directory does not: it means nothing in a container.
pub fn is_of_job(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name != b"BERTH_STATE"
        && (PREFIXES.iter().any(|p| name.starts_with(p.as_bytes()))
            || DEVICES.iter().chain(MPS).any(|n| n.as_bytes() == name))
}

/// Device files, and variables that go with them.
pub type Given = (Vec<ByteStr>, Vec<(OsString, OsString)>);

/// Where a command runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gpus {
    /// In no job, on a machine whose GPUs the agent of a cluster gives to jobs: the one of this state directory.
    Outside(PathBuf),
    /// In no job, and the machine's GPUs are nobody's but those who use it: these, or why there are none.
    Machine(Result<Vec<(u32, Vec<ByteStr>)>, String>),
    /// In a job with these, each with its index on the node and its device files.
    Job(Vec<(u32, Vec<ByteStr>)>),
}

/// The GPUs of the step that we run in, else of its job.
pub fn gpus(state: Option<&Path>) -> Result<Gpus, Failure> {
    let Some(text) = std::env::var("SLURM_JOB_ID").ok().filter(|t| !t.is_empty()) else {
        return Ok(match agent_here(state)? {
            Some(dir) => Gpus::Outside(dir),
            None => Gpus::Machine(super::gpus::of_machine()),
        });
    };
    let id = match text.parse() {
        Ok(JobSelector::Job(id)) => id,
        _ => return Err(Failure::user(format!("SLURM_JOB_ID is '{text}', which is no job: unset it"))),
    };
    let query = JobQuery { ids: vec![id], ..JobQuery::default() };
    let site = Site::find(state)?;
    let jobs = berth_client::block_on(async { Ok(site.connect().await?.jobs(&query).await?) })?;
    let Some(job) = jobs.into_iter().find(|j| j.id == id) else {
        return Err(Failure::new(
            Kind::User,
            format!(
                "the cluster does not know job {id}, which SLURM_JOB_ID names: unset it outside of a job"
            ),
        ));
    };
    let here = std::env::var("SLURMD_NODENAME").unwrap_or_default();
    let at = job.layout.nodes.iter().position(|n| n.0 == here).unwrap_or(0);
    let step: Option<Vec<u32>> =
        std::env::var("SLURM_STEP_GPUS").ok().map(|t| t.split(',').filter_map(|n| n.parse().ok()).collect());
    let mut share = job.shares.get(at).cloned().unwrap_or_default();
    // Those by which they draw come where the container wants them.
    berth_gpus::drm::narrow(&mut share.gres, &BTreeSet::new());
    let found = share.gres.into_iter().filter(|g| g.name == "gpu");
    let found = found.filter(|g| step.as_ref().is_none_or(|own| own.contains(&g.index)));
    Ok(Gpus::Job(found.map(|g| (g.index, g.files)).collect()))
}

/// The state directory of an agent that runs on this machine: the one that is named or the user's own, and the system's.
fn agent_here(state: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
    let dirs = [StateDir::named_or_own(state)?, StateDir::system()];
    let lives = |dir: &StateDir| {
        // What cannot be looked at may be anything.
        let hidden =
            matches!(std::fs::read_dir(dir.run()), Err(e) if e.kind() == ErrorKind::PermissionDenied);
        hidden || daemon::pid_file(dir, Part::Agent).is_some()
    };
    Ok(dirs.into_iter().find(lives).map(|dir| dir.0))
}

/// Device files of some GPUs, and the variables that tell libraries of them: a container sees its own alone, so they
/// are counted from 0.
pub fn given(gpus: &[(u32, Vec<ByteStr>)]) -> Given {
    let files = gpus.iter().flat_map(|(_, files)| files.iter().cloned()).collect();
    let visible: Vec<String> = (0..gpus.len()).map(|n| n.to_string()).collect();
    let visible = OsString::from(visible.join(","));
    (files, DEVICES.iter().map(|name| (OsString::from(name), visible.clone())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_the_job() {
        for name in ["SLURM_JOB_ID", "PMIX_RANK", "CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY"] {
            assert!(is_of_job(OsStr::new(name)), "{name}");
        }
        for name in ["BERTH_STATE", "HOME", "SLURM"] {
            assert!(!is_of_job(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn given_gpus_are_counted_from_zero() {
        let (files, env) = given(&[(2, vec!["/dev/a".into()]), (5, vec!["/dev/b".into(), "/dev/c".into()])]);
        assert_eq!(files.len(), 3);
        assert_eq!(env[0], ("CUDA_VISIBLE_DEVICES".into(), "0,1".into()));
    }
}
