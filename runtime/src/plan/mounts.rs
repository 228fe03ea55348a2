//! The mounts of a container, in order: the standard ones, Berth's, the user's.

use super::paths::{clean_absolute, join, lexical};
use super::{Mode, PlanError, RootPlan};
use crate::facts::HostFacts;
use crate::request::{ContainerRequest, Rootfs};
use berth_model::ByteStr;
use berth_model::spec::MountSpec;
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
    /// Who asked for it: `berth`, or the option.
    pub origin: String,
}

const NONE: Attrs = Attrs { read_only: false, nosuid: false, nodev: false, noexec: false };
const SAFE: Attrs = Attrs { read_only: false, nosuid: true, nodev: true, noexec: true };

fn own(kind: MountKind, target: &str, attrs: Attrs) -> PlannedMount {
    PlannedMount {
        kind,
        target: target.into(),
        attrs,
        create_dir: Some(true),
        required: true,
        origin: "berth".into(),
    }
}

pub(super) fn plan(
    request: &ContainerRequest,
    facts: &HostFacts,
    mode: Mode,
    home: &ByteStr,
    root: &RootPlan,
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
    for extra in &request.extra_mounts {
        let source = clean_absolute(&extra.source, "a mount source")?;
        let attrs = Attrs { read_only: extra.read_only, nosuid: !host, nodev: true, noexec: false };
        let kind = MountKind::Bind { source, recursive: false, slave: false };
        let target = clean_absolute(&extra.target, "a mount target")?;
        let mount =
            PlannedMount { kind, target, attrs, create_dir: None, required: true, origin: "berth".into() };
        mounts.push(mount);
    }
    if host {
        return Ok(mounts);
    }
    let tmp = |m: &PlannedMount| m.target.0 == b"/tmp";
    if matches!(root, RootPlan::Overlay { read_only: true, .. }) && !mounts.iter().any(tmp) {
        let kind = MountKind::Tmpfs { size: None, mode: 0o1777 };
        mounts.push(own(kind, "/tmp", Attrs { nosuid: true, nodev: true, ..NONE }));
    }
    self::home(request, home, root, &mut mounts)?;
    for spec in &request.mounts {
        let mount = user_mount(request, facts, spec)?;
        if !mounts.contains(&mount) {
            mounts.push(mount);
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
    let shm = MountKind::Tmpfs { size: request.shm_size, mode: 0o1777 };
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

/// Flags as they were read.
#[derive(Default)]
struct Flags {
    read_only: Option<(bool, String)>,
    suid: Option<bool>,
    dev: Option<bool>,
    exec: Option<bool>,
    recursive: Option<bool>,
    slave: bool,
    create_dir: Option<bool>,
    size: Option<u64>,
    mode: Option<u32>,
}

fn user_mount(
    request: &ContainerRequest,
    facts: &HostFacts,
    spec: &MountSpec,
) -> Result<PlannedMount, PlanError> {
    let source = &spec.source.0;
    let special = source == b"tmpfs" || source == b"umount";
    let origin = "--container-mounts".to_string();
    if !special && source.first() != Some(&b'/') && source.first() != Some(&b'.') {
        return Err(PlanError::MountSource(spec.source.display().into_owned()));
    }
    let shown = spec.target.display().into_owned();
    let target = match spec.target.0.first() {
        Some(b'/') => clean_absolute(&spec.target, "the mount target"),
        Some(b'.') if !special => {
            clean_absolute(&lexical(&join(&request.base_dir, &spec.target.0)), "the mount target")
        }
        _ => return Err(PlanError::MountTarget(shown)),
    }
    .map_err(|_| PlanError::MountTarget(shown.clone()))?;
    if target.0 == b"/" {
        return Err(PlanError::MountFlagValue {
            flag: "target".into(),
            target: "/".into(),
            reason: "the root cannot be mounted over; give the directory as the image instead".into(),
        });
    }
    let flags = read_flags(spec, &shown)?;
    let read_only = flags.read_only.as_ref().is_some_and(|(ro, _)| *ro);
    let attrs = Attrs {
        read_only,
        nosuid: flags.suid != Some(true),
        nodev: flags.dev == Some(false),
        noexec: flags.exec == Some(false),
    };
    let mount = |kind, attrs, create_dir| PlannedMount {
        kind,
        target: target.clone(),
        attrs,
        create_dir,
        required: true,
        origin: origin.clone(),
    };
    if source == b"umount" {
        return Ok(mount(MountKind::Umount, NONE, None));
    }
    if source == b"tmpfs" {
        let kind = MountKind::Tmpfs { size: flags.size, mode: flags.mode.unwrap_or(0o755) };
        return Ok(mount(kind, Attrs { nodev: true, ..attrs }, Some(true)));
    }
    if flags.size.is_some() || flags.mode.is_some() {
        return Err(PlanError::MountFlagValue {
            flag: if flags.size.is_some() { "size" } else { "mode" }.into(),
            target: shown,
            reason: "only a tmpfs has one".into(),
        });
    }
    let absolute = if source[0] == b'/' { spec.source.clone() } else { join(&request.base_dir, source) };
    let source = lexical(&absolute);
    if facts.missing_sources.contains(&source) {
        return Err(PlanError::MountSourceMissing(source.display().into_owned()));
    }
    // Devices come in through the allocation; only a mount from /dev itself is meant to bring one.
    let from_dev = source.0 == b"/dev" || source.0.starts_with(b"/dev/");
    let attrs =
        Attrs { nodev: if flags.dev == Some(true) { false } else { attrs.nodev || !from_dev }, ..attrs };
    let kind = MountKind::Bind { source, recursive: flags.recursive.unwrap_or(true), slave: flags.slave };
    Ok(mount(kind, attrs, flags.create_dir))
}

fn read_flags(spec: &MountSpec, target: &str) -> Result<Flags, PlanError> {
    let mut flags = Flags::default();
    for flag in &spec.flags {
        let value = |reason: &str| PlanError::MountFlagValue {
            flag: flag.clone(),
            target: target.into(),
            reason: reason.into(),
        };
        match flag.as_str() {
            "ro" | "rw" => {
                let ro = flag == "ro";
                if let Some((other, first)) = &flags.read_only
                    && *other != ro
                {
                    return Err(PlanError::MountFlagConflict {
                        first: first.clone(),
                        second: flag.clone(),
                        target: target.into(),
                    });
                }
                flags.read_only = Some((ro, flag.clone()));
            }
            "suid" => flags.suid = Some(true),
            "nosuid" => flags.suid = Some(false),
            "dev" => flags.dev = Some(true),
            "nodev" => flags.dev = Some(false),
            "exec" => flags.exec = Some(true),
            "noexec" => flags.exec = Some(false),
            "rbind" => flags.recursive = Some(true),
            "bind" => flags.recursive = Some(false),
            "slave" | "rslave" => flags.slave = true,
            "private" | "rprivate" => flags.slave = false,
            "x-create=auto" => flags.create_dir = None,
            "x-create=dir" => flags.create_dir = Some(true),
            "x-create=file" => flags.create_dir = Some(false),
            "x-detach" if spec.source.0 == b"umount" => {}
            _ => match flag.split_once('=') {
                Some(("size", n)) => {
                    flags.size = Some(size(n).ok_or_else(|| value("expected a number with k, m or g"))?);
                }
                Some(("mode", n)) => {
                    let mode = u32::from_str_radix(n, 8).ok().filter(|m| *m <= 0o7777);
                    flags.mode = Some(mode.ok_or_else(|| value("expected an octal number up to 7777"))?);
                }
                _ => return Err(PlanError::MountFlag { flag: flag.clone(), target: target.into() }),
            },
        }
    }
    Ok(flags)
}

/// A size as tmpfs(5) reads it: bytes, or with `k`, `m` or `g`.
fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.char_indices().next_back()? {
        (at, 'k' | 'K') => (&text[..at], 1 << 10),
        (at, 'm' | 'M') => (&text[..at], 1 << 20),
        (at, 'g' | 'G') => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(unit)
}
