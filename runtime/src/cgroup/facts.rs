//! Which controllers this process may use, where, and why not.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Of v1's filesystem, from `statfs(2)`.
const CGROUP_SUPER_MAGIC: i64 = 0x0027_e0eb;
/// Of v2's.
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// What can be limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Controller {
    /// CPU time.
    Cpu,
    /// CPU time accounting (v1 alone; part of `cpu` in v2).
    Cpuacct,
    /// Which CPUs.
    Cpuset,
    /// Memory.
    Memory,
    /// Number of processes.
    Pids,
    /// Device files (an eBPF program in v2).
    Devices,
}

impl Controller {
    /// All of them.
    pub const ALL: [Controller; 6] = [
        Controller::Cpu,
        Controller::Cpuacct,
        Controller::Cpuset,
        Controller::Memory,
        Controller::Pids,
        Controller::Devices,
    ];

    /// The kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Controller::Cpu => "cpu",
            Controller::Cpuacct => "cpuacct",
            Controller::Cpuset => "cpuset",
            Controller::Memory => "memory",
            Controller::Pids => "pids",
            Controller::Devices => "devices",
        }
    }
}

/// The control groups of a node, as this process may use them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CgroupFacts {
    /// v1: this process's own group in each usable hierarchy.
    pub v1: BTreeMap<Controller, PathBuf>,
    /// v2: this process's own group, where groups can be made in it.
    pub v2: Option<PathBuf>,
    /// Controllers of v2 that can be used below it.
    pub v2_controllers: Vec<Controller>,
    /// What cannot be limited, and why.
    pub missing: BTreeMap<Controller, String>,
}

impl CgroupFacts {
    /// Looks at `/proc/self/mountinfo`, `/proc/self/cgroup` and the groups' permissions.
    pub fn detect() -> CgroupFacts {
        CgroupFacts::of("self")
    }

    /// The same by the groups of another process, as `/proc` calls it.
    pub fn of(process: &str) -> CgroupFacts {
        let mounts = mounted();
        let own = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
        let usable = |dir: &Path| {
            rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
        };
        let listed = |dir: &Path| fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
        let bpf = rustix::process::geteuid().is_root();
        from_texts(&mounts, &own, usable, listed, bpf)
    }

    /// Whether it can be limited.
    pub fn has(&self, controller: Controller) -> bool {
        self.v1.contains_key(&controller) || self.v2_controllers.contains(&controller)
    }
}

/// Where the node has all of its control groups: v2 alone, as systemd of these years mounts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unified {
    /// The hierarchy's mount point.
    pub mount: PathBuf,
    /// This process's own group; where it is the leaf of [`super::vacate`], the group above.
    pub own: PathBuf,
}

impl Unified {
    /// Looks at `/proc/self/mountinfo` and `/proc/self/cgroup`. `None` on nodes that have v1 controllers.
    pub fn detect() -> Option<Unified> {
        let mounts = mounted();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        unified(&mounts, &own)
    }

    /// Whether systemd gave the own group to those in it, to divide as they like (`Delegate=`).
    pub fn is_delegated(&self) -> bool {
        // The second is older, and can be read by root alone.
        let marked = ["user.delegate", "trusted.delegate"].iter().any(|name| {
            let mut value = [0u8; 1];
            rustix::fs::getxattr(&self.own, *name, &mut value[..]).is_ok_and(|n| n == 1 && value == *b"1")
        });
        marked || self.unit_is_delegated()
    }

    /// Asks the manager of the own unit: that of a user, in Debian 12, marks no group.
    fn unit_is_delegated(&self) -> bool {
        let Some(unit) = self.own.file_name() else { return false };
        let mut command = Command::new("/usr/bin/systemctl");
        command.env_clear().stdin(Stdio::null()).stderr(Stdio::null());
        let uid = rustix::process::geteuid();
        if !uid.is_root() {
            command.env("XDG_RUNTIME_DIR", format!("/run/user/{}", uid.as_raw())).arg("--user");
        }
        let answer = command.args(["show", "--property=Delegate", "--value", "--"]).arg(unit).output();
        answer.is_ok_and(|o| o.stdout == b"yes\n")
    }

    /// Controllers that a group has for the groups below.
    pub fn controllers(group: &Path) -> Vec<Controller> {
        let listed = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
        listed_in(&listed)
    }
}

fn unified(mountinfo: &str, own: &str) -> Option<Unified> {
    let mounts = parse_mounts(mountinfo);
    if mounts.iter().any(|m| !m.v2 && Controller::ALL.iter().any(|c| m.options.contains(&c.name()))) {
        return None;
    }
    let path = own.lines().find_map(|l| l.strip_prefix("0::"))?;
    mounts
        .iter()
        .filter(|m| m.v2)
        .find_map(|m| Some(Unified { mount: m.point.clone(), own: locate(m, above_leaf(path))? }))
}

/// The path of a group, or of the one that was divided when its processes went into a leaf.
fn above_leaf(path: &str) -> &str {
    match path.strip_suffix(super::LEAF).and_then(|above| above.strip_suffix('/')) {
        Some("") => "/",
        Some(above) => above,
        None => path,
    }
}

fn listed_in(text: &str) -> Vec<Controller> {
    let has = |c: &Controller| text.split_whitespace().any(|n| n == c.name());
    Controller::ALL.into_iter().filter(has).collect()
}

/// A hierarchy's mount point with the subtree it shows.
pub(crate) struct Mount<'a> {
    root: &'a str,
    pub(crate) point: PathBuf,
    /// Controllers, or empty for v2.
    pub(crate) options: Vec<&'a str>,
    pub(crate) v2: bool,
}

/// mountinfo escapes blanks as octal.
fn unescape(text: &str) -> PathBuf {
    PathBuf::from(text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
}

/// `/proc/self/mountinfo`, without hierarchies that something is mounted over: in a namespace of its own that hides one from
/// tools which are made for the other version.
pub(crate) fn mounted() -> String {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let shown = |mount: &Mount<'_>| {
        let kind = if mount.v2 { CGROUP2_SUPER_MAGIC } else { CGROUP_SUPER_MAGIC };
        rustix::fs::statfs(&mount.point).is_ok_and(|found| found.f_type == kind)
    };
    uncovered(&text, shown)
}

fn uncovered(mountinfo: &str, shown: impl Fn(&Mount<'_>) -> bool) -> String {
    let lines = mountinfo.lines().filter(|line| parse_mounts(line).iter().all(&shown));
    lines.flat_map(|line| [line, "\n"]).collect()
}

pub(crate) fn parse_mounts(text: &str) -> Vec<Mount<'_>> {
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ');
            let (root, point) = (left.nth(3)?, left.next()?);
            let mut right = right.split(' ');
            let kind = right.next()?;
            let options = right.nth(1)?.split(',').collect();
            let v2 = kind == "cgroup2";
            (v2 || kind == "cgroup").then(|| Mount { root, point: unescape(point), options, v2 })
        })
        .collect()
}

/// The directory of a group, given its path in the hierarchy and a mount that may show a part of it.
pub(crate) fn locate(mount: &Mount<'_>, path: &str) -> Option<PathBuf> {
    let below = if mount.root == "/" { path } else { path.strip_prefix(mount.root)? };
    Some(mount.point.join(below.trim_start_matches('/')))
}

fn from_texts(
    mountinfo: &str,
    own: &str,
    usable: impl Fn(&Path) -> bool,
    listed: impl Fn(&Path) -> String,
    bpf: bool,
) -> CgroupFacts {
    let mounts = parse_mounts(mountinfo);
    let mut facts = CgroupFacts::default();
    let mut not_writable: BTreeMap<Controller, PathBuf> = BTreeMap::new();
    let mut v2_denied = None;
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(names), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        if names.is_empty() {
            let path = above_leaf(path);
            let Some(dir) = mounts.iter().filter(|m| m.v2).find_map(|m| locate(m, path)) else { continue };
            if !usable(&dir) {
                v2_denied = Some(dir);
                continue;
            }
            facts.v2_controllers = listed_in(&listed(&dir));
            if facts.v2_controllers.contains(&Controller::Cpu) {
                facts.v2_controllers.push(Controller::Cpuacct);
            }
            if bpf {
                facts.v2_controllers.push(Controller::Devices);
            }
            facts.v2 = Some(dir);
            continue;
        }
        for controller in Controller::ALL {
            if !names.split(',').any(|n| n == controller.name()) {
                continue;
            }
            let mount = mounts.iter().find(|m| !m.v2 && m.options.contains(&controller.name()));
            if let Some(dir) = mount.and_then(|m| locate(m, path)) {
                if usable(&dir) {
                    facts.v1.insert(controller, dir);
                } else {
                    not_writable.insert(controller, dir);
                }
            }
        }
    }
    // A hybrid node keeps devices where their v1 controller is.
    if facts.v1.contains_key(&Controller::Devices) {
        facts.v2_controllers.retain(|c| *c != Controller::Devices);
    }
    for controller in Controller::ALL {
        if facts.has(controller) {
            continue;
        }
        let dir = not_writable.get(&controller).or(v2_denied.as_ref());
        let reason = match (dir, controller, &facts.v2) {
            (Some(dir), _, _) => {
                format!("{} is not writable: no control group is delegated to this user there", dir.display())
            }
            (None, Controller::Devices, Some(_)) => "a device program can only be loaded by root".into(),
            (None, _, Some(dir)) => {
                format!("the {} controller is not delegated to {}", controller.name(), dir.display())
            }
            (None, _, None) => format!("the node has no {} controller mounted", controller.name()),
        };
        facts.missing.insert(controller, reason);
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 23 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 23 0:28 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices
33 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hierarchy_that_something_covers_is_left_out() {
        let shown = |mount: &Mount<'_>| !mount.v2;
        let text = uncovered(&format!("1 0 8:1 / / rw - ext4 /dev/a rw\n{HYBRID}"), shown);
        assert_eq!(text.lines().count(), 4);
        assert!(!text.contains("unified") && text.contains("ext4"), "{text}");
        assert!(mounted().lines().count() > 0);
    }

    #[test]
    fn hybrid() {
        let own = "4:devices:/\n3:memory:/a/b\n2:cpu,cpuacct:/\n0::/x\n";
        let facts = from_texts(HYBRID, own, |_| true, |_| "hugetlb".into(), true);
        assert_eq!(facts.v1[&Controller::Memory], PathBuf::from("/sys/fs/cgroup/memory/a/b"));
        assert_eq!(facts.v1[&Controller::Cpuacct], PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(facts.v2, Some(PathBuf::from("/sys/fs/cgroup/unified/x")));
        assert!(facts.v2_controllers.is_empty());
        let missing: Vec<_> = facts.missing.keys().copied().collect();
        assert_eq!(missing, [Controller::Cpuset, Controller::Pids]);
    }

    #[test]
    fn unified_and_a_part_of_the_tree() {
        let mounts = "40 23 0:29 /kube/pod1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let facts =
            from_texts(mounts, "0::/kube/pod1/c\n", |_| true, |_| "cpuset cpu memory pids".into(), true);
        assert_eq!(facts.v2, Some(PathBuf::from("/sys/fs/cgroup/c")));
        assert!(facts.missing.is_empty(), "{:?}", facts.missing);
    }

    #[test]
    fn a_process_in_the_leaf_has_the_group_above() {
        let mounts = "40 23 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let own = "0::/system.slice/b.scope/berth-agent\n";
        let facts = from_texts(mounts, own, |_| true, |_| "memory".into(), true);
        assert_eq!(facts.v2, Some(PathBuf::from("/sys/fs/cgroup/system.slice/b.scope")));
        let found = unified(mounts, own).unwrap();
        assert_eq!((found.mount, Some(found.own)), ("/sys/fs/cgroup".into(), facts.v2));
        assert_eq!(unified(mounts, "0::/berth-agent\n").unwrap().own, Path::new("/sys/fs/cgroup/"));
        assert_eq!(
            unified(mounts, "0::/my-berth-agent\n").unwrap().own,
            Path::new("/sys/fs/cgroup/my-berth-agent")
        );
        assert_eq!(unified(HYBRID, own), None);
    }

    #[test]
    fn an_ordinary_user_is_told_why() {
        let facts = from_texts(HYBRID, "3:memory:/\n0::/\n", |_| false, |_| String::new(), false);
        assert!(facts.v2.is_none() && facts.v1.is_empty());
        assert!(facts.missing[&Controller::Memory].contains("not writable"));
    }
}
