//! The container's root: every mount on a descriptor opened beneath it.

use super::error::{Naming, OciError, Result, invalid, unsupported};
use super::plan::maps::{self, IdRange};
use super::plan::mounts::{Idmap, MountPlan, Source};
use super::plan::{ContainerPlan, DeviceFile, DevicePlan};
use super::{cgroup::Group, copy};
use crate::setup::dev::{LINKS, STANDARD, open_device};
use crate::setup::target::{self, Kind, Root as Target};
use crate::setup::{attach, mounts as tools, open_path, overlay};
use crate::sys::{Errno, mountattr, userns};
use berth_model::ByteStr;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Gid, Uid};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Trees that were taken from the runtime's mount namespace with its rights, not yet attached anywhere.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The root directory.
    pub root: Option<OwnedFd>,
    /// Sources of binds, in the order of the mounts.
    pub binds: Vec<Option<OwnedFd>>,
}

/// Takes the trees. What is not taken here is taken inside, with the container's rights.
pub fn prepare(plan: &ContainerPlan) -> Result<Prepared> {
    let root = take_root(plan)?;
    // Elsewhere they are taken in turn, and the container's list of mounts has the order of the configuration. In a
    // user namespace they cannot all be; and what is mounted in them must reach the node where the root is shared.
    let early = plan.own(libc::CLONE_NEWUSER)
        || plan.propagation.is_some_and(|(propagation, _)| propagation == libc::MS_SHARED);
    let mut binds = Vec::new();
    for m in &plan.mounts {
        binds.push(match &m.source {
            Source::Bind { path, recursive } if early => Some(take_bind(plan, m, path, *recursive)?),
            _ => None,
        });
    }
    Ok(Prepared { root: Some(root), binds })
}

fn take_root(plan: &ContainerPlan) -> Result<OwnedFd> {
    let fd = rustix::fs::open(&plan.root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .named_at("open the root directory", &plan.root)?;
    let tree = tools::clone_tree(&fd, true).named_at("use as root", &plan.root)?;
    // Nothing that is mounted in it may show outside.
    let change =
        mountattr::Change { propagation: libc::MS_PRIVATE, recursive: true, ..mountattr::Change::default() };
    mountattr::mount_setattr(tree.as_fd(), change).named_at("use as root", &plan.root)?;
    Ok(tree)
}

fn take_bind(plan: &ContainerPlan, m: &MountPlan, path: &ByteStr, recursive: bool) -> Result<OwnedFd> {
    let source = open_path(path).named_at("open the mount source", path.as_path())?;
    let tree = tools::clone_tree(&source, recursive).named_at("bind", path.as_path())?;
    change(tree.as_fd(), m, recursive)?;
    if let Some(idmap) = &m.idmap {
        map_ids(plan, idmap, &tree).map_err(|e| match e {
            OciError::System(f) => OciError::System(f.hint("its filesystem may not be able to map ids")),
            other => other,
        })?;
    }
    Ok(tree)
}

/// Flags of the mount, of the tree, and propagation: private where nothing is said, so that no mount made in
/// the container shows outside.
fn change(tree: std::os::fd::BorrowedFd<'_>, m: &MountPlan, recursive: bool) -> Result<()> {
    let at = m.target.as_path();
    let private = (libc::MS_PRIVATE, recursive);
    let (flag, below) = m.propagation.unwrap_or(private);
    let apply = |set: u64, clear: u64, propagation: u64, recursive: bool| {
        // The kernel changes how access times are kept only as a whole; without a choice, to relatime.
        let clear = if (set | clear) & mountattr::ATIME != 0 { clear | mountattr::ATIME } else { clear };
        let change = mountattr::Change { set, clear, propagation, recursive, idmap: None };
        mountattr::mount_setattr(tree, change).named_at("set the flags of the mount on", at)
    };
    if m.propagation.is_some_and(|(flag, _)| flag != libc::MS_PRIVATE) {
        // First away from the node's own groups of mounts, unless they are what is asked for.
        if !below || flag == libc::MS_UNBINDABLE {
            apply(0, 0, libc::MS_PRIVATE, recursive)?;
        }
    }
    apply(m.set, 0, 0, false)?;
    if m.set_below != 0 || m.clear_below != 0 {
        apply(m.set_below, m.clear_below, 0, true)?;
    }
    apply(0, 0, flag, below)
}

fn map_ids(plan: &ContainerPlan, idmap: &Idmap, tree: &OwnedFd) -> Result<()> {
    let or_own =
        |list: &Vec<IdRange>, own: &Vec<IdRange>| if list.is_empty() { own.clone() } else { list.clone() };
    let (uids, gids) = (or_own(&idmap.uids, &plan.uids), or_own(&idmap.gids, &plan.gids));
    if uids.is_empty() || gids.is_empty() {
        return Err(invalid(
            "an idmap mount without mappings",
            "give uidMappings and gidMappings on the mount",
        ));
    }
    let ns = userns::create(&maps::text(&uids), &maps::text(&gids)).named("make an id mapping")?;
    let change = mountattr::Change {
        idmap: Some(ns.as_fd()),
        recursive: idmap.recursive,
        ..mountattr::Change::default()
    };
    mountattr::mount_setattr(tree.as_fd(), change).named("map the ids of a mount")
}

/// The container's root, attached.
pub struct Root {
    /// Its top.
    pub fd: Target,
    /// It lies over `/`, not at its own place.
    pub over_root: bool,
}

/// Attaches the root in this mount namespace, at its own place where that can be reached: hooks look there.
fn attach_root(plan: &ContainerPlan, prepared: &mut Prepared, pivot: bool) -> Result<Root> {
    if !plan.own(libc::CLONE_NEWNS) {
        return attach_on_node(plan, prepared);
    }
    let all = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", all).named("detach the mounts from the node's")?;
    let tree = match prepared.root.take() {
        Some(tree) => tree,
        None => take_root(plan)?,
    };
    // linux/magic.h: a root in memory cannot be pivoted away from, and must be covered.
    let in_memory = rustix::fs::statfs("/").is_ok_and(|s| [0x8584_58f6, 0x0102_1994].contains(&s.f_type));
    let place =
        rustix::fs::open(&plan.root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    if let Ok(place) = place
        && !in_memory
        && pivot
        && attach(tree.as_fd(), &place, "").is_ok()
    {
        return Ok(Root { fd: Target::new(tree, false)?, over_root: false });
    }
    attach(tree.as_fd(), CWD, "/").named("mount the root")?;
    Ok(Root { fd: Target::new(tree, false)?, over_root: true })
}

/// Attaches the root at its own place in the runtime's mount namespace, which the container shares.
fn attach_on_node(plan: &ContainerPlan, prepared: &mut Prepared) -> Result<Root> {
    let action = "mount the root on";
    let tree = match prepared.root.take() {
        Some(tree) => tree,
        None => take_root(plan)?,
    };
    let place =
        rustix::fs::open(&plan.root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .named_at(action, &plan.root)?;
    attach(tree.as_fd(), &place, "").named_at(action, &plan.root)?;
    // On a shared mount it became shared itself.
    let change =
        mountattr::Change { propagation: libc::MS_PRIVATE, recursive: true, ..mountattr::Change::default() };
    mountattr::mount_setattr(tree.as_fd(), change).named_at(action, &plan.root)?;
    Ok(Root { fd: Target::new(tree, false)?, over_root: false })
}

/// The mount that is seen at a path.
pub fn mount_id(path: &std::path::Path) -> Option<u64> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let found = rustix::fs::statx(CWD, path, flags, StatxFlags::MNT_ID).ok()?;
    (found.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(found.stx_mnt_id)
}

/// Takes the root and all that is mounted in it off the node, where a container without a mount namespace of its
/// own left them; and nothing else that is mounted there.
pub fn detach_from_node(path: &std::path::Path, mount: u64) -> Result<()> {
    if mount_id(path) != Some(mount) {
        return Ok(());
    }
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    rustix::mount::unmount(path, flags).named_at("unmount the root from", path)
}

/// Mounts everything that the plan has, and makes the devices.
pub fn build(plan: &ContainerPlan, prepared: &mut Prepared, group: &Group, pivot: bool) -> Result<Root> {
    let root = attach_root(plan, prepared, pivot)?;
    // Modes are as they are asked for.
    rustix::process::umask(Mode::empty());
    let mut binds = std::mem::take(&mut prepared.binds);
    binds.resize_with(plan.mounts.len(), || None);
    for (m, tree) in plan.mounts.iter().zip(binds) {
        mount(plan, &root.fd, m, tree, group)?;
    }
    if plan.standard_devices {
        standard_devices(plan, &root.fd)?;
    }
    for device in &plan.devices {
        make_device(plan, &root.fd, device)?;
    }
    if let Some(process) = &plan.process {
        let cwd = super::plan::mounts::target(&process.cwd)?;
        // What is in the way is found when the directory is entered.
        let _ = target::ensure(&root.fd, &cwd, Kind::Directory);
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(root)
}

/// Covers and protects, after the hooks have had their turn.
pub fn protect(plan: &ContainerPlan, root: &Target) -> Result<()> {
    let absent = |f: &crate::setup::SetupFailure| [libc::ENOENT, libc::ENOTDIR].contains(&f.errno);
    for path in &plan.read_only_paths {
        tools::read_only(root, path).or_else(|f| if absent(&f) { Ok(()) } else { Err(f) })?;
    }
    for path in &plan.masked {
        tools::mask(root, path).or_else(|f| if absent(&f) { Ok(()) } else { Err(f) })?;
    }
    if plan.read_only {
        let change = mountattr::Change { set: mountattr::RDONLY, ..mountattr::Change::default() };
        mountattr::mount_setattr(root.as_fd(), change).named("make the root read-only")?;
    }
    Ok(())
}

/// The root's own propagation, last: nothing is mounted by Berth any more.
pub fn propagate(plan: &ContainerPlan, root: &Target) -> Result<()> {
    let Some((propagation, recursive)) = plan.propagation else { return Ok(()) };
    if propagation == libc::MS_SLAVE {
        // A slave of nothing is private: it becomes one of a group of its own, as it would be of the node's.
        let shared =
            mountattr::Change { propagation: libc::MS_SHARED, recursive, ..mountattr::Change::default() };
        mountattr::mount_setattr(root.as_fd(), shared).named("set the propagation of the root")?;
    }
    let change = mountattr::Change { propagation, recursive, ..mountattr::Change::default() };
    mountattr::mount_setattr(root.as_fd(), change).named("set the propagation of the root")
}

fn mount(
    plan: &ContainerPlan,
    root: &Target,
    m: &MountPlan,
    tree: Option<OwnedFd>,
    group: &Group,
) -> Result<()> {
    let at = m.target.as_path();
    match &m.source {
        Source::Bind { path, recursive } => {
            let tree = match tree {
                Some(tree) => tree,
                None => take_bind(plan, m, path, *recursive)?,
            };
            let directory = target::is_directory(&tree).named_at("look at the source of", at)?;
            let kind = if directory { Kind::Directory } else { Kind::File };
            let place = target::ensure(root, &m.target, kind)?;
            attach(tree.as_fd(), &place, "").named_at("mount on", at)
        }
        Source::Filesystem { kind, source, options } => {
            if m.idmap.is_some() {
                return Err(unsupported(format!("an idmap mount of type {kind}"), "map a bind mount"));
            }
            // A link in the image could lead these elsewhere, and with them all that trusts the paths.
            let place = match kind.as_str() {
                "proc" | "sysfs" => plain_directory(root, &m.target)?,
                _ => target::ensure(root, &m.target, Kind::Directory)?,
            };
            let fs = filesystem(kind, source, options, m).map_err(|e| hint(e, plan, kind))?;
            if m.copy_up {
                copy::tree(&place, &fs).named_at("copy into the tmpfs on", at)?;
            }
            attach(fs.as_fd(), &place, "").named_at("mount on", at)?;
            if m.propagation.is_some() || m.set_below != 0 || m.clear_below != 0 {
                change(fs.as_fd(), m, false)?;
            }
            Ok(())
        }
        Source::Cgroup => cgroups(root, m, group),
    }
}

fn hint(e: OciError, plan: &ContainerPlan, kind: &str) -> OciError {
    match (e, kind) {
        (OciError::System(f), "sysfs") if f.errno == libc::EPERM && !plan.own(libc::CLONE_NEWNET) => {
            OciError::System(f.hint("a new sysfs needs a network namespace of its own: bind /sys instead"))
        }
        (OciError::System(f), "proc") if f.errno == libc::EPERM => OciError::System(
            f.hint("if this is itself a container, its /proc is masked: start it with an unmasked /proc"),
        ),
        (e, _) => e,
    }
}

fn filesystem(
    kind: &str,
    source: &str,
    options: &[(String, Option<String>)],
    m: &MountPlan,
) -> Result<OwnedFd> {
    let action = format!("make a filesystem of type {kind} for");
    let at = m.target.as_path();
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).named_at(&action, at)?;
    rustix::mount::fsconfig_set_string(&fs, "source", source).named_at(&action, at)?;
    for (key, value) in options {
        let done = match value {
            Some(value) => rustix::mount::fsconfig_set_string(&fs, key.as_str(), value.as_str()),
            None => rustix::mount::fsconfig_set_flag(&fs, key.as_str()),
        };
        done.named_at(&format!("set the option {key} of the mount on"), at)?;
    }
    rustix::mount::fsconfig_create(&fs).named_at(&action, at)?;
    let flags = u32::try_from(m.set).map(MountAttrFlags::from_bits_retain).unwrap_or(MountAttrFlags::empty());
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags).named_at(&action, at)
}

/// A directory to which no link leads, made where it is missing.
fn plain_directory(root: &Target, path: &ByteStr) -> Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let relative = OsStr::from_bytes(path.0.strip_prefix(b"/").unwrap_or(&path.0));
    let open = || rustix::fs::openat2(root, relative, flags, Mode::empty(), resolve);
    let refuse = |e: Errno| match e {
        Errno::LOOP | Errno::NOTDIR => invalid(
            format!("{} must be mounted on ordinary directory, and the root has none there", path.display()),
            "the kernel's files are mounted through no link: make it a directory",
        ),
        e => Err::<(), _>(e)
            .named_at("open the mount target", path.as_path())
            .err()
            .unwrap_or_else(|| invalid("a mount target cannot be opened", "look at the root directory")),
    };
    match open() {
        Err(Errno::NOENT) => {
            target::ensure(root, path, Kind::Directory)?;
            open().map_err(refuse)
        }
        other => other.map_err(refuse),
    }
}

/// The container's groups, as its `/sys/fs/cgroup`.
fn cgroups(root: &Target, m: &MountPlan, group: &Group) -> Result<()> {
    let at = m.target.as_path();
    let bind = |dir: &std::path::Path, place: &OwnedFd| -> Result<()> {
        let source = open_path(&dir.into()).named_at("open the control group", dir)?;
        let tree = tools::clone_tree(&source, false).named_at("bind the control group", dir)?;
        let change = mountattr::Change {
            set: m.set | m.set_below,
            propagation: libc::MS_PRIVATE,
            ..mountattr::Change::default()
        };
        mountattr::mount_setattr(tree.as_fd(), change).named_at("bind the control group", dir)?;
        attach(tree.as_fd(), place, "").named_at("mount on", at)
    };
    let place = target::ensure(root, &m.target, Kind::Directory)?;
    if group.v1.is_empty() {
        let Some(dir) = &group.v2 else {
            return Err(unsupported(
                format!("the cgroup mount on {}", m.target.display()),
                "no control groups are mounted here: leave the mount out",
            ));
        };
        return bind(dir, &place);
    }
    let set = u32::try_from(m.set & !mountattr::RDONLY)
        .map(MountAttrFlags::from_bits_retain)
        .unwrap_or(MountAttrFlags::empty());
    let cover = overlay::tmpfs(&[("mode", "755"), ("size", "1m")], set)
        .named_at("make a filesystem in memory for", at)?;
    attach(cover.as_fd(), &place, "").named_at("mount on", at)?;
    for (controller, dir) in &group.v1 {
        let name = controller.strip_prefix("name=").unwrap_or(controller);
        rustix::fs::mkdirat(&cover, name, Mode::from_raw_mode(0o755)).named_at("mount on", at)?;
        let below = rustix::fs::openat(&cover, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .named_at("mount on", at)?;
        bind(dir, &below)?;
    }
    if m.set & mountattr::RDONLY != 0 {
        let change = mountattr::Change { set: mountattr::RDONLY, ..mountattr::Change::default() };
        mountattr::mount_setattr(cover.as_fd(), change).named_at("mount on", at)?;
    }
    Ok(())
}

/// The devices and links that the specification gives each container.
fn standard_devices(plan: &ContainerPlan, root: &Target) -> Result<()> {
    for (name, (major, minor)) in STANDARD {
        let device = DevicePlan {
            path: format!("/dev/{name}").into(),
            kind: DeviceFile::Char(major, minor),
            mode: 0o666,
            uid: 0,
            gid: 0,
        };
        make_device(plan, root, &device)?;
    }
    let dev = target::ensure(root, &"/dev".into(), Kind::Directory)?;
    for (name, to) in LINKS {
        match rustix::fs::symlinkat(to, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e).named_at("make the link", format!("/dev/{name}")),
        }
    }
    Ok(())
}

/// Makes a device file; where that is forbidden, brings in the node's, checked by its number.
fn make_device(plan: &ContainerPlan, root: &Target, d: &DevicePlan) -> Result<()> {
    let at = d.path.as_path();
    let split = d.path.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
    let (above, name) =
        (ByteStr(d.path.0[..split.max(1)].to_vec()), OsStr::from_bytes(&d.path.0[split + 1..]));
    let dir = target::ensure(root, &above, Kind::Directory)?;
    let (kind, number) = match d.kind {
        DeviceFile::Char(major, minor) => (FileType::CharacterDevice, (major, minor)),
        DeviceFile::Block(major, minor) => (FileType::BlockDevice, (major, minor)),
        DeviceFile::Fifo => (FileType::Fifo, (0, 0)),
    };
    let is_it = |stat: &rustix::fs::Stat| {
        FileType::from_raw_mode(stat.st_mode) == kind
            && (kind == FileType::Fifo
                || (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == number)
    };
    if rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| is_it(&stat)) {
        return Ok(());
    }
    if !plan.own(libc::CLONE_NEWUSER) || kind == FileType::Fifo {
        let rdev = rustix::fs::makedev(number.0, number.1);
        match rustix::fs::mknodat(&dir, name, kind, Mode::from_raw_mode(d.mode), rdev) {
            Ok(()) => {
                let (uid, gid) = (Uid::from_raw(d.uid), Gid::from_raw(d.gid));
                return rustix::fs::chownat(&dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                    .named_at("give the device to its owner", at);
            }
            // Something else is there: it is covered. Not allowed here: the node's own is brought in.
            Err(Errno::EXIST | Errno::PERM) if kind != FileType::Fifo => {}
            Err(e) => return Err(e).named_at("make the device", at),
        }
    }
    // The node's file of the same name is the one that can be meant, if it is this device.
    let source = open_device(d.path.as_os(), None)
        .ok()
        .filter(|fd| rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH).is_ok_and(|stat| is_it(&stat)));
    let Some(source) = source else {
        return Err(invalid(
            format!("the node's {} is not the device {}:{}", d.path.display(), number.0, number.1),
            "in a user namespace a device can only be brought in from the node",
        ));
    };
    let place = target::ensure(root, &d.path, Kind::File)?;
    let tree = tools::clone_tree(&source, false).named_at("bring in the device", at)?;
    attach(tree.as_fd(), &place, "").named_at("bring in the device", at)
}
