//! The mounts of a container, in order: the standard ones, Berth's, the user's.

use super::paths::clean_absolute;
use super::user_mounts::{missing, user_mount};
use super::{Mode, PlanError, RootPlan};
use crate::facts::HostFacts;
use crate::request::{ContainerRequest, Rootfs};
use berth_model::ByteStr;
use berth_model::spec::Unshared;
use serde::{Deserialize, Serialize};

/// Flags of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attrs {
    /// `ro`.
    pub read_only: bool,
    /// `nosuid`.
    pub nosuid: bool,
    /// `nodev`.
    pub nodev: bool,
    /// `noexec`.
    pub noexec: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// A new `/proc` of the container's processes.
    Proc,
    /// Something of the node.
    Bind {
        /// Absolute path on the node.
        source: ByteStr,
        /// With everything mounted below it.
        recursive: bool,
        /// Later mounts on the node below it appear too.
        slave: bool,
    },
    /// An empty filesystem in memory.
    Tmpfs {
        /// Bytes, or the kernel's default.
        size: Option<u64>,
        /// Permission bits of its root.
        mode: u32,
    },
    /// The job's `/dev/shm`, which all its containers share.
    JobShm,
    /// `/dev` with the standard devices, and those of the allocation.
    Dev {
        /// Absolute paths below `/dev` on the node.
        devices: Vec<ByteStr>,
    },
    /// Terminals of the container's own.
    Devpts,
    /// POSIX message queues of the container's own.
    Mqueue,
    /// What is mounted at the target is taken away.
    Umount,
    /// The target becomes read-only, with what it holds.
    ReadOnly,
    /// The target appears empty: a directory, or a device that reads as nothing.
    Mask,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedMount {
    /// What.
    pub kind: MountKind,
    /// Where: an absolute path in the container.
    pub target: ByteStr,
    /// With which flags.
    pub attrs: Attrs,
    /// A target that does not exist is made; `Some(true)` as a directory, `Some(false)` as a file,
    /// `None` as what the source is.
    pub create_dir: Option<bool>,
    /// Going on without it is an error.
    pub required: bool,
    /// Nothing is said where the container goes on without it.
    #[serde(default)]
    pub silent: bool,
    /// Who asked for it: `berth`, or the option.
    pub origin: String,
}

pub(super) const NONE: Attrs = Attrs { read_only: false, nosuid: false, nodev: false, noexec: false };
const SAFE: Attrs = Attrs { read_only: false, nosuid: true, nodev: true, noexec: true };

fn own(kind: MountKind, target: &str, attrs: Attrs) -> PlannedMount {
    PlannedMount {
        kind,
        target: target.into(),
        attrs,
        create_dir: Some(true),
        required: true,
        silent: false,
        origin: "berth".into(),
    }
}

pub(super) fn plan(
    request: &ContainerRequest,
    facts: &HostFacts,
    mode: Mode,
    home: &ByteStr,
    root: &RootPlan,
    notes: &mut Vec<String>,
) -> Result<Vec<PlannedMount>, PlanError> {
    let mut mounts = Vec::new();
    let host = request.root == Rootfs::Host;
    if host {
        if mode == Mode::User {
            return Ok(mounts);
        }
        mounts.push(own(MountKind::Proc, "/proc", SAFE));
    } else {
        standard(request, &mut mounts)?;
        if mode == Mode::System && request.identity.uid.0 == 0 {
            protect_from_root(&mut mounts);
        }
    }
    let has_tmp = request.extra_mounts.iter().any(|extra| extra.target.0 == b"/tmp");
    if !host && !has_tmp && matches!(root, RootPlan::Overlay { read_only: true, .. }) {
        // Before what is mounted below it.
        let kind = MountKind::Tmpfs { size: None, mode: 0o1777 };
        mounts.push(own(kind, "/tmp", Attrs { nosuid: true, nodev: true, ..NONE }));
    }
    for extra in &request.extra_mounts {
        let source = clean_absolute(&extra.source, "a mount source")?;
        let attrs = Attrs { read_only: extra.read_only, nosuid: !host, nodev: true, noexec: false };
        let kind = MountKind::Bind { source, recursive: false, slave: false };
        let target = clean_absolute(&extra.target, "a mount target")?;
        mounts.push(PlannedMount { target, create_dir: None, ..own(kind, "/", attrs) });
    }
    if host {
        return Ok(mounts);
    }
    self::home(request, home, root, &mut mounts)?;
    for spec in &request.mounts {
        let mount = user_mount(request, spec)?;
        match missing(facts, &mount) {
            Some(source) if mount.required => return Err(PlanError::MountSourceMissing(source)),
            Some(_) if mount.silent => {}
            Some(source) => {
                notes.push(format!("left out: --container-mounts: source path does not exist: {source}"));
            }
            None if mounts.contains(&mount) => {}
            None => mounts.push(mount),
        }
    }
    Ok(mounts)
}

fn standard(request: &ContainerRequest, mounts: &mut Vec<PlannedMount>) -> Result<(), PlanError> {
    let mut devices = Vec::new();
    for device in &request.devices {
        let path = clean_absolute(device, "a device")?;
        if !path.0.starts_with(b"/dev/") {
            return Err(PlanError::DevicePath(path.display().into_owned()));
        }
        if !devices.contains(&path) {
            devices.push(path);
        }
    }
    mounts.push(own(MountKind::Proc, "/proc", SAFE));
    let sys = MountKind::Bind { source: "/sys".into(), recursive: true, slave: false };
    mounts.push(own(sys, "/sys", Attrs { read_only: true, ..SAFE }));
    mounts.push(own(MountKind::Dev { devices }, "/dev", Attrs { nosuid: true, noexec: true, ..NONE }));
    mounts.push(own(MountKind::Devpts, "/dev/pts", Attrs { nosuid: true, noexec: true, ..NONE }));
    let shm = if request.in_job && !request.unshare.contains(&Unshared::Ipc) {
        MountKind::JobShm
    } else {
        MountKind::Tmpfs { size: request.shm_size, mode: 0o1777 }
    };
    mounts.push(own(shm, "/dev/shm", Attrs { nosuid: true, nodev: true, ..NONE }));
    mounts.push(PlannedMount { required: false, ..own(MountKind::Mqueue, "/dev/mqueue", SAFE) });
    Ok(())
}

/// Root of the node is root for the files of `/proc` even without a capability: what changes the node is
/// made read-only, what shows its memory or keys is masked.
fn protect_from_root(mounts: &mut Vec<PlannedMount>) {
    for path in ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi"] {
        mounts.push(PlannedMount {
            create_dir: None,
            required: false,
            ..own(MountKind::ReadOnly, path, Attrs { read_only: true, ..NONE })
        });
    }
    for path in [
        "/proc/kcore",
        "/proc/keys",
        "/proc/kmsg",
        "/proc/kpagecount",
        "/proc/kpageflags",
        "/proc/timer_list",
        "/proc/scsi",
    ] {
        mounts.push(PlannedMount { create_dir: None, required: false, ..own(MountKind::Mask, path, NONE) });
    }
}

fn home(
    request: &ContainerRequest,
    home: &ByteStr,
    root: &RootPlan,
    mounts: &mut Vec<PlannedMount>,
) -> Result<(), PlanError> {
    if request.mount_home {
        let source = clean_absolute(&request.identity.home, "the home directory")?;
        mounts.push(PlannedMount {
            kind: MountKind::Bind { source: source.clone(), recursive: true, slave: true },
            target: source,
            attrs: Attrs { nosuid: true, nodev: true, ..NONE },
            create_dir: Some(true),
            required: true,
            silent: false,
            origin: "--container-mount-home".into(),
        });
    } else if matches!(root, RootPlan::Overlay { read_only: true, .. }) && home.0 != b"/" && !home.is_empty()
    {
        // Programs that write below HOME work in a read-only container too.
        if let Ok(target) = clean_absolute(home, "HOME") {
            let kind = MountKind::Tmpfs { size: None, mode: 0o700 };
            let attrs = Attrs { nosuid: true, nodev: true, ..NONE };
            mounts.push(PlannedMount { target, ..own(kind, "/", attrs) });
        }
    }
    Ok(())
}
