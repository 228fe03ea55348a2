//! What the planner must know of the node: gathered once, then passed in.

use crate::request::{ContainerRequest, Rootfs};
use crate::subids::SubIds;
use berth_model::ByteStr;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Facts of the node and of the calling process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostFacts {
    /// Root of the initial user namespace, with CAP_SYS_ADMIN.
    pub privileged: bool,
    /// Effective uid of the caller.
    pub uid: u32,
    /// Kernel version.
    pub kernel: (u32, u32),
    /// The node's host name.
    pub hostname: String,
    /// `/etc/resolv.conf`.
    pub resolv_conf: Option<ByteStr>,
    /// `/etc/hosts`.
    pub hosts: Option<ByteStr>,
    /// `/etc/localtime`: the node's time zone.
    pub localtime: Option<ByteStr>,
    /// Names in `/etc/group` of the node.
    pub group_names: BTreeMap<u32, String>,
    /// Absolute mount sources of the request that do not exist.
    pub missing_sources: BTreeSet<ByteStr>,
    /// The user's subordinate ids, where the request wants them, or why there are none.
    pub subids: Option<Result<SubIds, String>>,
}

/// A configuration file of the node is at most this long; what is longer is not one.
const MAX_ETC_FILE: u64 = 1 << 20;

impl HostFacts {
    /// Looks at the node.
    ///
    /// A privileged caller looks at no mount source: they are the user's, and are opened with the user's
    /// rights when the container is made.
    pub fn gather(request: &ContainerRequest) -> HostFacts {
        let privileged = is_privileged();
        HostFacts::look(request, privileged, !privileged)
    }

    /// As [`HostFacts::gather`] by a process that is privileged or not, whatever this one is, for a plan that is
    /// shown and not carried out: the caller's own process looks at the mount sources.
    pub fn gather_as(request: &ContainerRequest, privileged: bool) -> HostFacts {
        HostFacts::look(request, privileged, true)
    }

    fn look(request: &ContainerRequest, privileged: bool, at_sources: bool) -> HostFacts {
        let mut facts = HostFacts {
            privileged,
            uid: rustix::process::geteuid().as_raw(),
            hostname: hostname(),
            kernel: running_kernel(),
            ..HostFacts::default()
        };
        if request.root == Rootfs::Host {
            return facts;
        }
        if request.subids && request.root != Rootfs::Joined {
            facts.subids = Some(SubIds::of(&request.identity));
        }
        facts.resolv_conf = etc_file("/etc/resolv.conf");
        facts.hosts = etc_file("/etc/hosts");
        facts.localtime = etc_file("/etc/localtime");
        if privileged && request.identity.groups.iter().any(|g| !request.group_names.contains_key(&g.0)) {
            facts.group_names = etc_file("/etc/group").map(|t| group_names(&t.display())).unwrap_or_default();
        }
        if at_sources {
            for spec in &request.mounts {
                let source = match spec.source.0.first() {
                    Some(b'/') => spec.source.as_path().to_path_buf(),
                    Some(b'.') => request.base_dir.as_path().join(spec.source.as_path()),
                    _ => continue,
                };
                let missing = std::fs::symlink_metadata(&source)
                    .is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
                if missing {
                    let text = ByteStr::from(source.as_path());
                    facts.missing_sources.insert(crate::plan::lexical_source(&text));
                }
            }
        }
        facts
    }
}

/// Whether this process is root of the initial user namespace with the right to mount.
pub fn is_privileged() -> bool {
    if !rustix::process::geteuid().is_root() {
        return false;
    }
    let full_map = std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|m| m.split_whitespace().eq(["0", "0", "4294967295"]));
    let admin = rustix::thread::capabilities(None)
        .is_ok_and(|c| c.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN));
    full_map && admin
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Version of the kernel that runs.
pub(crate) fn running_kernel() -> (u32, u32) {
    kernel_version(&rustix::system::uname().release().to_string_lossy())
}

/// `6.1.0-18-amd64` is (6, 1).
fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(['.', '-']).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn etc_file(path: &str) -> Option<ByteStr> {
    let meta = std::fs::metadata(Path::new(path)).ok()?;
    if !meta.is_file() || meta.len() > MAX_ETC_FILE {
        return None;
    }
    std::fs::read(path).ok().map(ByteStr)
}

fn group_names(text: &str) -> BTreeMap<u32, String> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some((gid, name.to_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(kernel_version("6.1.0-18-amd64"), (6, 1));
        assert_eq!(kernel_version("5.15-rc1"), (5, 15));
        assert_eq!(kernel_version(""), (0, 0));
    }
}
