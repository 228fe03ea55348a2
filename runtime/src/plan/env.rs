//! The environment of a container's tasks, and where each variable comes from.
//!
//! From weakest to strongest (`docs/containers.md`): the submitter's environment, the image's, what Berth
//! sets (HOME, USER, LOGNAME, TMPDIR, PATH), the job's own variables, `--container-env`.

use super::PlanError;
use crate::facts::HostFacts;
use crate::request::ContainerRequest;
use berth_model::ByteStr;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a variable's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The submitter's environment.
    Submitter,
    /// The image's `ENV`.
    Image,
    /// Berth's own, such as HOME.
    Berth,
    /// The job's own, such as `SLURM_JOB_ID` and device variables.
    Job,
    /// `--container-env`.
    ContainerEnv,
}

/// One variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Name.
    pub name: ByteStr,
    /// Value.
    pub value: ByteStr,
    /// Where it comes from.
    pub origin: Origin,
}

/// What a container has as PATH when its image says nothing.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables of the submitter that describe the submitter's machine and mean nothing, or harm, in an image.
pub(super) const NOT_INHERITED: &[&str] = &[
    "_",
    "DBUS_SESSION_BUS_ADDRESS",
    "HOME",
    "HOSTNAME",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LD_AUDIT",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "LOGNAME",
    "OLDPWD",
    "PATH",
    "PWD",
    "SHLVL",
    "TMPDIR",
    "USER",
    "XDG_RUNTIME_DIR",
];

/// Names and prefixes of variables that belong to the job and win over the image's.
pub(super) const JOB_PREFIXES: &[&str] = &["SLURM_", "SLURMD_", "SRUN_", "BERTH_", "PMI_", "PMIX_"];
pub(super) const JOB_NAMES: &[&str] = &[
    "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
    "CUDA_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "HIP_VISIBLE_DEVICES",
    "NVIDIA_IMEX_CHANNELS",
    "NVIDIA_VISIBLE_DEVICES",
    "NV_GPU",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
];

fn is_job_variable(name: &[u8]) -> bool {
    JOB_PREFIXES.iter().any(|p| name.starts_with(p.as_bytes()))
        || JOB_NAMES.iter().any(|n| n.as_bytes() == name)
}

struct Builder(BTreeMap<Vec<u8>, EnvVar>);

impl Builder {
    fn set(&mut self, name: &[u8], value: &[u8], origin: Origin) {
        let var = EnvVar { name: name.into(), value: value.into(), origin };
        self.0.insert(name.to_vec(), var);
    }
}

/// Splits `NAME=value`; a name is not empty and holds no zero byte.
fn split(text: &ByteStr) -> Option<(&[u8], &[u8])> {
    let at = text.0.iter().position(|b| *b == b'=').filter(|at| *at > 0)?;
    let (name, value) = (&text.0[..at], &text.0[at + 1..]);
    if text.0.contains(&0) { None } else { Some((name, value)) }
}

pub(super) fn plan(
    request: &ContainerRequest,
    home: &ByteStr,
    host: bool,
    facts: &HostFacts,
) -> Result<Vec<EnvVar>, PlanError> {
    let mut env = Builder(BTreeMap::new());
    let inherited: Vec<(&[u8], &[u8])> = request.env.iter().filter_map(split).collect();
    for (name, value) in &inherited {
        if host || !NOT_INHERITED.iter().any(|n| n.as_bytes() == *name) {
            let origin = if is_job_variable(name) { Origin::Job } else { Origin::Submitter };
            env.set(name, value, origin);
        }
    }
    if !host {
        image(request, &mut env)?;
    }
    own(request, home, host, facts, &mut env);
    for (name, value) in inherited.iter().filter(|(name, _)| is_job_variable(name)) {
        env.set(name, value, Origin::Job);
    }
    for name in &request.container_env {
        if name.is_empty() || name.contains(['=', '\0', ',']) {
            return Err(PlanError::EnvName(name.clone()));
        }
        if let Some((n, value)) = inherited.iter().rfind(|(n, _)| *n == name.as_bytes()) {
            env.set(n, value, Origin::ContainerEnv);
        }
    }
    append_path(request, &mut env);
    Ok(env.0.into_values().collect())
}

fn image(request: &ContainerRequest, env: &mut Builder) -> Result<(), PlanError> {
    for text in &request.image.env {
        let (name, value) = split(text).ok_or_else(|| PlanError::EnvFormat {
            origin: "the image's ENV".into(),
            text: text.display().into_owned(),
        })?;
        env.set(name, value, Origin::Image);
    }
    if !env.0.contains_key(&b"PATH"[..]) {
        env.set(b"PATH", DEFAULT_PATH.as_bytes(), Origin::Berth);
    }
    Ok(())
}

fn own(request: &ContainerRequest, home: &ByteStr, host: bool, facts: &HostFacts, env: &mut Builder) {
    if request.extra_mounts.iter().any(|m| m.target.0 == b"/tmp") {
        env.set(b"TMPDIR", b"/tmp", Origin::Berth);
    }
    if host {
        // The submitter's own values stand, as over ssh; what is missing is filled in.
        for (name, value) in [("HOME", &home.0[..]), ("USER", request.identity.user.as_bytes())] {
            if !env.0.contains_key(name.as_bytes()) {
                env.set(name.as_bytes(), value, Origin::Berth);
            }
        }
        if !env.0.contains_key(&b"PATH"[..]) {
            env.set(b"PATH", DEFAULT_PATH.as_bytes(), Origin::Berth);
        }
        return;
    }
    let user = if request.remap_root { "root" } else { &request.identity.user };
    env.set(b"HOME", &home.0, Origin::Berth);
    env.set(b"USER", user.as_bytes(), Origin::Berth);
    env.set(b"LOGNAME", user.as_bytes(), Origin::Berth);
    let hostname = request.hostname.as_deref().unwrap_or(&facts.hostname);
    if !hostname.is_empty() {
        env.set(b"HOSTNAME", hostname.as_bytes(), Origin::Berth);
    }
}

fn append_path(request: &ContainerRequest, env: &mut Builder) {
    if request.append_path.is_empty() {
        return;
    }
    if let Some(path) = env.0.get_mut(&b"PATH"[..]) {
        for dir in &request.append_path {
            if !path.value.0.split(|b| *b == b':').any(|d| d == dir.0.as_slice()) {
                path.value.0.push(b':');
                path.value.0.extend_from_slice(&dir.0);
            }
        }
    }
}
