//! The pure planner: from config.json to everything that will be done, or to the name of what cannot be.

pub mod maps;
pub mod mounts;
pub mod process;
pub mod resources;
pub mod schedule;
pub mod seccomp;

use super::error::{Result, invalid, unsupported};
use crate::hooks::{HookPlan, Hooks};
use berth_model::ByteStr;
use maps::IdRange;
use mounts::MountPlan;
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, LinuxNamespaceType, Spec};
use process::ProcessPlan;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A kind of namespace with the kernel's flag for it.
pub const NAMESPACES: [(LinuxNamespaceType, libc::c_int, &str); 8] = [
    (LinuxNamespaceType::User, libc::CLONE_NEWUSER, "user"),
    (LinuxNamespaceType::Mount, libc::CLONE_NEWNS, "mount"),
    (LinuxNamespaceType::Pid, libc::CLONE_NEWPID, "pid"),
    (LinuxNamespaceType::Network, libc::CLONE_NEWNET, "network"),
    (LinuxNamespaceType::Ipc, libc::CLONE_NEWIPC, "ipc"),
    (LinuxNamespaceType::Uts, libc::CLONE_NEWUTS, "uts"),
    (LinuxNamespaceType::Cgroup, libc::CLONE_NEWCGROUP, "cgroup"),
    (LinuxNamespaceType::Time, libc::CLONE_NEWTIME, "time"),
];

/// What the planner must know beside the configuration.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The bundle's directory, absolute.
    pub bundle: PathBuf,
    /// The caller may mount in its own namespaces.
    pub privileged: bool,
    /// SELinux is in force on the node: labels mean something.
    pub selinux: bool,
    /// AppArmor is in force on the node.
    pub apparmor: bool,
}

/// A device file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePlan {
    /// Absolute path in the container.
    pub path: ByteStr,
    /// What it is.
    pub kind: DeviceFile,
    /// Permissions.
    pub mode: u32,
    /// Owner in the container.
    pub uid: u32,
    /// Group in the container.
    pub gid: u32,
}

/// What a device file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceFile {
    /// Character device of this number.
    Char(u32, u32),
    /// Block device of this number.
    Block(u32, u32),
    /// A FIFO.
    Fifo,
}

/// Everything that is done for a container.
#[derive(Clone, Debug)]
pub struct ContainerPlan {
    /// Version of the configuration.
    pub version: String,
    /// The bundle.
    pub bundle: PathBuf,
    /// `CLONE_NEW*` of new namespaces.
    pub new: libc::c_int,
    /// Namespaces that are joined, with the kernel's flag.
    pub join: Vec<(libc::c_int, PathBuf)>,
    /// Mapping of users in a new user namespace.
    pub uids: Vec<IdRange>,
    /// Mapping of groups.
    pub gids: Vec<IdRange>,
    /// Lines for `/proc/self/timens_offsets`.
    pub time_offsets: String,
    /// Name in a new uts namespace.
    pub hostname: Option<String>,
    /// Domain name in a new uts namespace.
    pub domainname: Option<String>,
    /// The root directory, absolute.
    pub root: PathBuf,
    /// The root is read-only.
    pub read_only: bool,
    /// Propagation of the root.
    pub propagation: Option<(u64, bool)>,
    /// In order.
    pub mounts: Vec<MountPlan>,
    /// The standard devices are made.
    pub standard_devices: bool,
    /// Further devices.
    pub devices: Vec<DevicePlan>,
    /// Covered.
    pub masked: Vec<ByteStr>,
    /// Read-only.
    pub read_only_paths: Vec<ByteStr>,
    /// Names below `/proc/sys` with slashes, and values.
    pub sysctl: Vec<(String, String)>,
    /// The program.
    pub process: Option<ProcessPlan>,
    /// Hooks.
    pub hooks: Hooks,
    /// Control group.
    pub cgroup: Option<PathBuf>,
    /// As in the configuration.
    pub resources: Option<oci_spec::runtime::LinuxResources>,
    /// As in the configuration.
    pub annotations: BTreeMap<String, String>,
}

impl ContainerPlan {
    /// Whether it has a namespace of this kind that is not the runtime's.
    pub fn own(&self, flag: libc::c_int) -> bool {
        self.new & flag != 0 || self.join.iter().any(|(f, _)| *f == flag)
    }
}

/// Plans a container.
///
/// # Errors
/// The first property that is wrong or cannot be honoured, by name.
pub fn plan(spec: &Spec, facts: &Facts) -> Result<ContainerPlan> {
    refuse_elsewhere(spec, facts)?;
    let Some(root) = spec.root() else {
        return Err(invalid("config.json has no root", "name the root directory in root.path"));
    };
    let linux = spec.linux().clone().unwrap_or_default();
    let mut p = ContainerPlan {
        version: spec.version().clone(),
        bundle: facts.bundle.clone(),
        new: 0,
        join: Vec::new(),
        uids: maps::ranges(linux.uid_mappings().as_deref().unwrap_or_default())?,
        gids: maps::ranges(linux.gid_mappings().as_deref().unwrap_or_default())?,
        time_offsets: String::new(),
        hostname: spec.hostname().clone().filter(|n| !n.is_empty()),
        domainname: spec.domainname().clone().filter(|n| !n.is_empty()),
        root: facts.bundle.join(root.path()),
        read_only: root.readonly().unwrap_or(false),
        propagation: None,
        mounts: Vec::new(),
        standard_devices: true,
        devices: Vec::new(),
        masked: paths(linux.masked_paths().as_deref())?,
        read_only_paths: paths(linux.readonly_paths().as_deref())?,
        sysctl: Vec::new(),
        process: None,
        hooks: hooks(spec)?,
        cgroup: linux.cgroups_path().clone().filter(|p| !p.as_os_str().is_empty()),
        resources: linux.resources().clone(),
        annotations: spec.annotations().clone().unwrap_or_default().into_iter().collect(),
    };
    namespaces(&linux, facts, &mut p)?;
    if let Some(word) = linux.rootfs_propagation().as_deref().filter(|w| !w.is_empty()) {
        let found = mounts::propagation(word);
        p.propagation = Some(found.ok_or_else(|| {
            invalid(
                format!("linux.rootfsPropagation is {word:?}"),
                "it is shared, slave, private or unbindable",
            )
        })?);
    }
    for m in spec.mounts().iter().flatten() {
        p.mounts.push(mounts::plan(m, &facts.bundle)?);
    }
    let bound_dev = |m: &MountPlan| m.target.0 == b"/dev" && matches!(m.source, mounts::Source::Bind { .. });
    p.standard_devices = !p.mounts.iter().any(bound_dev);
    p.devices = linux.devices().iter().flatten().map(device).collect::<Result<_>>()?;
    sysctl(&linux, &mut p)?;
    p.process =
        spec.process().as_ref().map(|q| process::plan(q, Some(&linux), facts.apparmor)).transpose()?;
    identity(&p)?;
    Ok(p)
}

/// What a Linux container of Berth has no use for, or does not do.
fn refuse_elsewhere(spec: &Spec, facts: &Facts) -> Result<()> {
    let version = spec.version();
    let known = version.strip_prefix("1.").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if !known {
        return Err(invalid(
            format!("config.json has the ociVersion {version:?}"),
            "versions 1.0 to 1.3 are known",
        ));
    }
    let none = "leave it out";
    if spec.vm().is_some() {
        return Err(unsupported("vm", "containers run on the node's own kernel: leave it out"));
    }
    let Some(linux) = spec.linux() else { return Ok(()) };
    if linux.intel_rdt().is_some() {
        return Err(unsupported("linux.intelRdt", none));
    }
    if linux.net_devices().as_ref().is_some_and(|d| !d.is_empty()) {
        return Err(unsupported(
            "linux.netDevices",
            "move the device into a network namespace and join that by path",
        ));
    }
    if facts.selinux && linux.mount_label().as_ref().is_some_and(|l| !l.is_empty()) {
        return Err(unsupported("linux.mountLabel", "leave it out: Berth confines without SELinux"));
    }
    Ok(())
}

/// As everywhere, what does not start with a slash counts from the root.
fn paths(list: Option<&[String]>) -> Result<Vec<ByteStr>> {
    list.unwrap_or_default().iter().map(|p| mounts::target(Path::new(p))).collect()
}

fn namespaces(linux: &Linux, facts: &Facts, p: &mut ContainerPlan) -> Result<()> {
    let mut seen = 0;
    for ns in linux.namespaces().iter().flatten() {
        let Some((_, flag, name)) = NAMESPACES.iter().find(|(kind, ..)| *kind == ns.typ()) else {
            return Err(unsupported("a kind of linux.namespaces", "leave it out"));
        };
        if seen & flag != 0 {
            return Err(invalid(format!("linux.namespaces has {name} twice"), "give it once"));
        }
        seen |= flag;
        match ns.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
            None => p.new |= flag,
            Some(path) if !path.is_absolute() => {
                let what = format!("the path {} of the {name} namespace is not absolute", path.display());
                return Err(invalid(what, "start it with a slash"));
            }
            Some(path) => p.join.push((*flag, path.clone())),
        }
    }
    if !p.own(libc::CLONE_NEWNS) && p.own(libc::CLONE_NEWUSER) {
        // Its mounts would be the runtime's, which root of another user namespace cannot make.
        return Err(unsupported(
            "a container with a user namespace and without a mount namespace of its own",
            "add one to linux.namespaces",
        ));
    }
    let maps = !p.uids.is_empty() || !p.gids.is_empty();
    let user_new = p.new & libc::CLONE_NEWUSER != 0;
    if maps && !p.own(libc::CLONE_NEWUSER) {
        return Err(invalid(
            "linux.uidMappings or gidMappings without a user namespace",
            "add one to linux.namespaces",
        ));
    }
    if maps && !user_new {
        return Err(invalid(
            "linux.uidMappings or gidMappings with a user namespace that is joined",
            "leave them out: it has its own",
        ));
    }
    if user_new && (p.uids.is_empty() || p.gids.is_empty()) {
        return Err(invalid("a new user namespace without linux.uidMappings and gidMappings", "give both"));
    }
    if !facts.privileged && !p.own(libc::CLONE_NEWUSER) {
        return Err(invalid(
            "an ordinary user's container without a user namespace",
            "add one with linux.uidMappings and gidMappings (berth oci spec --rootless)",
        ));
    }
    for (what, given, flag) in [
        ("hostname", p.hostname.is_some(), libc::CLONE_NEWUTS),
        ("domainname", p.domainname.is_some(), libc::CLONE_NEWUTS),
    ] {
        if given && !p.own(flag) {
            return Err(invalid(format!("{what} without a uts namespace"), "add one to linux.namespaces"));
        }
    }
    if let Some(offsets) = linux.time_offsets().as_ref().filter(|o| !o.is_empty()) {
        if p.new & libc::CLONE_NEWTIME == 0 {
            return Err(invalid(
                "linux.timeOffsets without a new time namespace",
                "add one to linux.namespaces",
            ));
        }
        let sorted: BTreeMap<_, _> = offsets.iter().collect();
        for (clock, offset) in sorted {
            if !["monotonic", "boottime"].contains(&clock.as_str()) {
                return Err(invalid(
                    format!("linux.timeOffsets has the clock {clock:?}"),
                    "monotonic and boottime exist",
                ));
            }
            let line = format!("{clock} {} {}\n", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
            p.time_offsets.push_str(&line);
        }
    }
    Ok(())
}

fn device(d: &LinuxDevice) -> Result<DevicePlan> {
    let path = mounts::target(d.path())?;
    let number = |n: i64| {
        u32::try_from(n).map_err(|_| {
            invalid(format!("the device {} has the number {n}", path.display()), "give 0 or more")
        })
    };
    let kind = match d.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceFile::Char(number(d.major())?, number(d.minor())?),
        LinuxDeviceType::B => DeviceFile::Block(number(d.major())?, number(d.minor())?),
        LinuxDeviceType::P => DeviceFile::Fifo,
        LinuxDeviceType::A => {
            return Err(invalid(
                format!("the device {} has the type a", path.display()),
                "give b, c, u or p",
            ));
        }
    };
    let mode = d.file_mode().unwrap_or(0o666) & 0o7777;
    Ok(DevicePlan { kind, mode, uid: d.uid().unwrap_or(0), gid: d.gid().unwrap_or(0), path })
}

/// Kernel settings of a namespace: a prefix, and which namespace has them.
const SYSCTLS: [(&str, libc::c_int, &str); 8] = [
    ("kernel/msg", libc::CLONE_NEWIPC, "ipc"),
    ("kernel/sem", libc::CLONE_NEWIPC, "ipc"),
    ("kernel/shm", libc::CLONE_NEWIPC, "ipc"),
    ("kernel/auto_msgmni", libc::CLONE_NEWIPC, "ipc"),
    ("fs/mqueue/", libc::CLONE_NEWIPC, "ipc"),
    ("net/", libc::CLONE_NEWNET, "network"),
    ("kernel/domainname", libc::CLONE_NEWUTS, "uts"),
    ("kernel/hostname", libc::CLONE_NEWUTS, "uts"),
];

fn sysctl(linux: &Linux, p: &mut ContainerPlan) -> Result<()> {
    let sorted: BTreeMap<_, _> = linux.sysctl().iter().flatten().collect();
    for (name, value) in sorted {
        // As sysctl(8): the first separator decides, and the other one is part of a name.
        let slashes = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'/');
        let path: String = match slashes {
            true => name.clone(),
            false => name
                .chars()
                .map(|c| {
                    if c == '.' {
                        '/'
                    } else if c == '/' {
                        '.'
                    } else {
                        c
                    }
                })
                .collect(),
        };
        let plain = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        let known = SYSCTLS.iter().find(|(prefix, ..)| path.starts_with(prefix));
        let Some((_, flag, ns)) = known.filter(|_| plain) else {
            return Err(unsupported(
                format!("linux.sysctl {name}"),
                "only settings of a namespace can be set: kernel.msg*, kernel.sem, kernel.shm*, fs.mqueue.*, net.*",
            ));
        };
        if !p.own(*flag) {
            return Err(invalid(
                format!("linux.sysctl {name} without a {ns} namespace"),
                "add one to linux.namespaces",
            ));
        }
        if path == "kernel/hostname" && p.hostname.as_ref().is_some_and(|h| h != value) {
            return Err(invalid("linux.sysctl kernel.hostname differs from hostname", "give one of them"));
        }
        p.sysctl.push((path, value.clone()));
    }
    Ok(())
}

fn hooks(spec: &Spec) -> Result<Hooks> {
    let Some(h) = spec.hooks() else { return Ok(Hooks::default()) };
    let list = |hooks: &Option<Vec<oci_spec::runtime::Hook>>| -> Result<Vec<HookPlan>> {
        hooks
            .iter()
            .flatten()
            .map(|hook| {
                let path = hook.path().clone();
                if !path.is_absolute() {
                    let what = format!("the path {} of a hook is not absolute", path.display());
                    return Err(invalid(what, "start it with a slash"));
                }
                let timeout = match hook.timeout() {
                    None => None,
                    Some(n) => Some(u32::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| {
                        invalid(
                            format!("the hook {} has a timeout of {n}", path.display()),
                            "give 1 second or more",
                        )
                    })?),
                };
                let own = || vec![path.to_string_lossy().into_owned()];
                let args = hook.args().clone().filter(|a| !a.is_empty()).unwrap_or_else(own);
                Ok(HookPlan { args, env: hook.env().clone(), timeout, path, file: None })
            })
            .collect()
    };
    #[allow(deprecated, reason = "the specification still has them")]
    let prestart = list(h.prestart())?;
    Ok(Hooks {
        prestart,
        create_runtime: list(h.create_runtime())?,
        create_container: list(h.create_container())?,
        start_container: list(h.start_container())?,
        poststart: list(h.poststart())?,
        poststop: list(h.poststop())?,
    })
}

/// The process's ids must exist in a new user namespace.
fn identity(p: &ContainerPlan) -> Result<()> {
    let Some(process) = p.process.as_ref().filter(|_| p.new & libc::CLONE_NEWUSER != 0) else {
        return Ok(());
    };
    let missing = |what: &str, id: u32| {
        Err(invalid(format!("{what} {id} is not mapped"), "map it in linux.uidMappings and gidMappings"))
    };
    if maps::outside(&p.uids, process.uid).is_none() {
        return missing("process.user.uid", process.uid);
    }
    for gid in process.groups.iter().chain([&process.gid]) {
        if maps::outside(&p.gids, *gid).is_none() {
            return missing("the group", *gid);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
