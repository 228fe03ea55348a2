//! What this machine can do for containers, tried rather than guessed, with what to do where it cannot.

use crate::cgroup::{CgroupFacts, Controller};
use crate::facts::{HostFacts, is_privileged};
use crate::request::{ContainerRequest, Rootfs, StoreOwner};
use crate::{LaunchError, StartOptions, plan, start_init};
use berth_model::spec::Identity;
use berth_model::{ByteStr, Gid, Uid};
use rustix::process::Resource;
use rustix::thread::CapabilitySet;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Works.
    Good,
    /// Works with less than it could.
    Less,
    /// Containers do not start.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Such as `containers` or `memory limits`.
    pub name: String,
    /// How much it matters.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; absent where there is nothing to do.
    pub advice: Option<String>,
}

fn finding(name: &str, verdict: Verdict, found: impl Into<String>, advice: Option<String>) -> Finding {
    Finding { name: name.into(), verdict, found: found.into(), advice }
}

/// Looks at everything. The caller must have one thread: a container is really started.
pub fn examine() -> Vec<Finding> {
    let mut all = vec![kernel(), container()];
    all.extend(restrictions(Path::new("/proc/sys")));
    all.extend(groups(&CgroupFacts::detect()));
    all.extend(limits());
    all
}

/// The oldest kernel whose calls the launcher uses: idmapped mounts, and overlays for ordinary users.
const OLDEST_KERNEL: (u32, u32) = (5, 12);

fn kernel() -> Finding {
    let request = ContainerRequest::new(Rootfs::Host, caller(), "/".into());
    let (major, minor) = HostFacts::gather(&request).kernel;
    let found = format!("Linux {major}.{minor}");
    if (major, minor) >= OLDEST_KERNEL {
        return finding("kernel", Verdict::Good, found, None);
    }
    let advice = format!("containers need Linux {}.{} or later", OLDEST_KERNEL.0, OLDEST_KERNEL.1);
    finding("kernel", Verdict::Bad, found, Some(advice))
}

fn caller() -> Identity {
    Identity {
        uid: Uid(rustix::process::getuid().as_raw()),
        gid: Gid(rustix::process::getgid().as_raw()),
        groups: Vec::new(),
        user: "doctor".into(),
        group: "doctor".into(),
        home: "/".into(),
        shell: "/bin/sh".into(),
    }
}

/// A directory for the trial, removed afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> std::io::Result<Scratch> {
        let path = std::env::temp_dir().join(format!("berth-doctor-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Starts a container with an empty layer, which exercises every call of a real start.
fn container() -> Finding {
    let privileged = is_privileged();
    let name = if privileged { "containers (system mode)" } else { "containers (user mode)" };
    let scratch = match Scratch::new() {
        Ok(scratch) => scratch,
        Err(e) => {
            let advice = "set TMPDIR to a directory that can be written".to_string();
            return finding(name, Verdict::Bad, format!("no temporary directory: {e}"), Some(advice));
        }
    };
    // In system mode layers belong to the store and are mapped: that is tried too.
    let owner = privileged.then_some(StoreOwner { uid: 65534, gid: 65534 });
    if let Some(owner) = owner
        && let Err(e) = std::os::unix::fs::chown(&scratch.0, Some(owner.uid), Some(owner.gid))
    {
        return finding(name, Verdict::Bad, format!("cannot give a directory to the store: {e}"), None);
    }
    let layers = vec![ByteStr::from(scratch.0.as_path())];
    let mut request = ContainerRequest::new(Rootfs::Overlay { layers, owner }, caller(), "/".into());
    if privileged {
        (request.identity.uid, request.identity.gid) = (Uid(65533), Gid(65533));
    }
    let facts = HostFacts::gather(&request);
    let tried = plan(&request, &facts).map_err(|e| e.to_string()).and_then(|plan| {
        start_init(&plan, StartOptions::default()).and_then(crate::InitHandle::finish).map_err(|e| match e {
            LaunchError::Setup(f) => f.to_string(),
            other => other.to_string(),
        })
    });
    match tried {
        Ok(()) => finding(name, Verdict::Good, "a trial container started and ended", None),
        Err(e) => {
            let advice = "the findings below name what is in the way; if none does, this error is it";
            finding(name, Verdict::Bad, e, Some(advice.into()))
        }
    }
}

fn number(root: &Path, file: &str) -> Option<u64> {
    std::fs::read_to_string(root.join(file)).ok()?.trim().parse().ok()
}

/// Settings by which distributions forbid user namespaces. `root` is `/proc/sys`.
fn restrictions(root: &Path) -> Vec<Finding> {
    let mut all = Vec::new();
    let name = "user namespaces";
    if number(root, "user/max_user_namespaces") == Some(0) {
        all.push(finding(
            name,
            Verdict::Bad,
            "user.max_user_namespaces is 0: nobody may make one",
            Some("as root: sysctl -w user.max_user_namespaces=15000 (and a file in /etc/sysctl.d)".into()),
        ));
    }
    let root_is_free = is_privileged();
    let verdict = if root_is_free { Verdict::Less } else { Verdict::Bad };
    if number(root, "kernel/unprivileged_userns_clone") == Some(0) {
        all.push(finding(
            name,
            verdict,
            "kernel.unprivileged_userns_clone is 0: ordinary users may not make one",
            Some(
                "as root: sysctl -w kernel.unprivileged_userns_clone=1 (and a file in /etc/sysctl.d)".into(),
            ),
        ));
    }
    if number(root, "kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        all.push(finding(
            name,
            verdict,
            "AppArmor takes the capabilities of user namespaces that ordinary users make (Ubuntu 23.10 and later)",
            Some(
                "as root: an AppArmor profile for berth with `userns,`, or sysctl -w \
                 kernel.apparmor_restrict_unprivileged_userns=0 (and a file in /etc/sysctl.d)"
                    .into(),
            ),
        ));
    }
    if all.is_empty() {
        all.push(finding(name, Verdict::Good, "not restricted; no range in /etc/subuid is needed", None));
    }
    all
}

/// What each controller is for, in a user's words.
fn purpose(controller: Controller) -> &'static str {
    match controller {
        Controller::Cpu => "CPU time limits",
        Controller::Cpuacct => "CPU time accounting",
        Controller::Cpuset => "binding to CPUs",
        Controller::Memory => "memory limits",
        Controller::Pids => "limits on processes",
        Controller::Devices => "device limits",
    }
}

fn groups(facts: &CgroupFacts) -> Vec<Finding> {
    Controller::ALL
        .into_iter()
        .map(|c| match facts.missing.get(&c) {
            None => {
                let version = if facts.v1.contains_key(&c) { "v1" } else { "v2" };
                finding(purpose(c), Verdict::Good, format!("control groups {version}"), None)
            }
            Some(reason) => {
                let advice = "jobs run, and this is not enforced on them".to_string();
                finding(purpose(c), Verdict::Less, reason, Some(advice))
            }
        })
        .collect()
}

/// A limit up to which jobs can go on this node: how much is enough, and for what.
struct Ceiling {
    name: &'static str,
    of: Resource,
    unit: &'static str,
    enough: u64,
    advice: &'static str,
}

const CEILINGS: [Ceiling; 4] = [
    Ceiling {
        name: "limit: locked memory",
        of: Resource::Memlock,
        unit: "bytes",
        enough: 1 << 30,
        advice: "InfiniBand and GPU programs want more: LimitMEMLOCK=infinity in the agent's service",
    },
    Ceiling {
        name: "limit: open files",
        of: Resource::Nofile,
        unit: "files",
        enough: 1 << 16,
        advice: "programs with many ranks or data loaders want more: LimitNOFILE=1048576 in the agent's service",
    },
    Ceiling {
        name: "limit: stack",
        of: Resource::Stack,
        unit: "bytes",
        enough: 64 << 20,
        advice: "Fortran and OpenMP programs want more: LimitSTACK=infinity in the agent's service",
    },
    Ceiling {
        name: "limit: processes",
        of: Resource::Nproc,
        unit: "processes",
        enough: 1 << 12,
        advice: "jobs of many processes want more: LimitNPROC=infinity in the agent's service",
    },
];

/// Hard limits of this process, which are those of the jobs that it or its agent starts.
pub fn limits() -> Vec<Finding> {
    let raises =
        rustix::thread::capabilities(None).is_ok_and(|c| c.effective.contains(CapabilitySet::SYS_RESOURCE));
    let judged = |c: &Ceiling| match rustix::process::getrlimit(c.of).maximum {
        None => finding(c.name, Verdict::Good, "unlimited", None),
        Some(n) if raises => {
            let found = format!("{n} {}, and raised where a job asks for more", c.unit);
            finding(c.name, Verdict::Good, found, None)
        }
        Some(n) if n >= c.enough => finding(c.name, Verdict::Good, format!("{n} {}", c.unit), None),
        Some(n) => {
            finding(c.name, Verdict::Less, format!("at most {n} {}", c.unit), Some(c.advice.to_string()))
        }
    };
    CEILINGS.iter().map(judged).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysctl(pairs: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (file, value) in pairs {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value).unwrap();
        }
        dir
    }

    #[test]
    fn each_restriction_is_named_with_its_remedy() {
        let cases = [
            ("user/max_user_namespaces", "0\n"),
            ("kernel/unprivileged_userns_clone", "0\n"),
            ("kernel/apparmor_restrict_unprivileged_userns", "1\n"),
        ];
        for (file, value) in cases {
            let dir = sysctl(&[(file, value)]);
            let found = restrictions(dir.path());
            assert_eq!(found.len(), 1);
            assert_ne!(found[0].verdict, Verdict::Good);
            assert!(found[0].advice.as_ref().unwrap().contains(&file.replace('/', ".")), "{found:?}");
        }
        let free = sysctl(&[("user/max_user_namespaces", "96365\n")]);
        assert_eq!(restrictions(free.path())[0].verdict, Verdict::Good);
    }

    #[test]
    fn a_missing_controller_is_less_and_says_why() {
        let mut facts = CgroupFacts::default();
        facts.missing.insert(Controller::Memory, "because".into());
        let found = groups(&facts);
        let memory = found.iter().find(|f| f.name == "memory limits").unwrap();
        assert_eq!((memory.verdict, memory.found.as_str()), (Verdict::Less, "because"));
    }
}
