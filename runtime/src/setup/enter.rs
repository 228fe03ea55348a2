//! The last steps into the container: pivot, identity, working directory, confinement.

use super::target::{self, Kind, Root};
use super::{Doing, Setup, SetupFailure, SetupFds};
use crate::join::Entered;
use crate::plan::{IdMap, Mode, Ns, Plan, RootPlan};
use crate::sys::{Errno, fork, userns};
use berth_model::ByteStr;
use rustix::mount::UnmountFlags;
use rustix::process::{DumpableBehavior, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType};
use std::fmt::Write;
use std::os::fd::{AsFd, OwnedFd};

pub(crate) const USERNS_HINT: &str = "user namespaces may be restricted here: `berth doctor` says how to allow them \
    (on Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0)";

/// A map as the kernel reads it.
pub(crate) fn map_text(map: &[IdMap]) -> String {
    map.iter().fold(String::new(), |mut text, m| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {} {}", m.inside, m.outside, m.count);
        text
    })
}

/// The `/proc` of the node, through which ids are mapped even when the container has another.
pub(crate) fn open_procfs() -> Setup<OwnedFd> {
    userns::open_procfs().doing_at("use as the kernel's process table", &"/proc".into())
}

/// User mode: maps the caller's one uid and gid in the namespace it is in.
pub(crate) fn map_own_ids(proc: &OwnedFd, uid_map: &[IdMap], gid_map: &[IdMap]) -> Setup<()> {
    let map = |file: &str, text: &str| {
        let named = ByteStr::from(format!("/proc/self/{file}"));
        userns::write_own(proc, file, text).doing_at("write", &named).map_err(|f| f.hint(USERNS_HINT))
    };
    // Required before an unprivileged gid map: else a process could drop a group that denies it access.
    map("setgroups", "deny")?;
    map("uid_map", &map_text(uid_map))?;
    map("gid_map", &map_text(gid_map))
}

/// Makes the container's root the root of this mount namespace and takes the node's away.
pub(crate) fn pivot(root: &Root) -> Setup<()> {
    pivot_from(root, true)
}

/// As [`pivot`]; only a root that is mounted over `/` may be changed to where it cannot be pivoted to.
pub(crate) fn pivot_from(root: &Root, over_root: bool) -> Setup<()> {
    rustix::process::fchdir(root).doing("enter the container's root")?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => take_away_old_root(root)?,
        // The node runs from its initramfs, whose root cannot be pivoted. The container's root is mounted
        // over `/` already; after chroot nothing below it can be named, and `..` from outside the chroot
        // ends at the topmost mount on `/`, which is the container's root again.
        Err(Errno::INVAL) if over_root => return cover(root),
        Err(e) => return Err(SetupFailure::new("pivot to the container's root", e)),
    }
    rustix::process::chdir("/").doing("enter the container's root")
}

/// Changes to the container's root, and leaves the node's where it is: below it, where it is mounted over `/`.
pub(crate) fn cover(root: &Root) -> Setup<()> {
    rustix::process::fchdir(root).doing("enter the container's root")?;
    rustix::process::chroot(".").doing("change to the container's root")?;
    rustix::process::chdir("/").doing("enter the container's root")
}

/// The node's root now lies over the container's, perhaps with more on top of it. `/..` follows whatever
/// lies over the root, so it shows when the last of them is gone.
fn take_away_old_root(root: &Root) -> Setup<()> {
    let what = "take the node's root away";
    let same = |a: &rustix::fs::Stat, b: &rustix::fs::Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
    let own = rustix::fs::fstat(root).doing(what)?;
    for _ in 0..STACKED_MOUNTS {
        rustix::mount::unmount(".", UnmountFlags::DETACH).doing(what)?;
        if same(&rustix::fs::stat("/..").doing(what)?, &own) {
            return Ok(());
        }
    }
    Err(SetupFailure::new(what, Errno::BUSY))
}

/// At most this many mounts lie over the new root: the old root, and what was stacked on it.
const STACKED_MOUNTS: usize = 16;

pub(crate) fn set_groups(groups: &[u32]) -> Setup<()> {
    let groups: Vec<_> = groups.iter().map(|g| rustix::process::Gid::from_raw(*g)).collect();
    rustix::thread::set_thread_groups(&groups).doing("set supplementary groups")
}

/// Becomes the user.
///
/// `proc`: of [`open_procfs`], where the user's own ids are to be mapped. By now `/proc` is the container's.
pub(super) fn take_identity(plan: &Plan, fds: &SetupFds, proc: Option<&OwnedFd>) -> Setup<()> {
    let id = &plan.identity;
    let (host, joined) = (plan.root == RootPlan::Host, plan.root == RootPlan::Joined);
    if plan.mode == Mode::System {
        // A range has the user's groups' numbers inside, and a device's group has none: they are taken along from outside. Whoever is in
        // a group without a number uses what it may use, and can give no file to it.
        let taken_along = !host && (plan.subids || !id.device_groups.is_empty());
        let (uid, gid, groups) = if host {
            (id.uid, id.gid, &id.groups)
        } else {
            let ns = fds
                .user_ns
                .as_ref()
                .ok_or_else(|| SetupFailure::new("enter the user namespace", Errno::INVAL))?;
            if taken_along {
                set_groups(&[id.groups.as_slice(), &id.device_groups].concat())?;
            }
            rustix::thread::move_into_link_name_space(ns.as_fd(), Some(LinkNameSpaceType::User))
                .doing("enter the user namespace")?;
            if !joined {
                // A copy owned by the user namespace: every mount in it is locked.
                fork::unshare(libc::CLONE_NEWNS).doing("lock the mounts")?;
            }
            (id.inside_uid, id.inside_gid, &id.inside_groups)
        };
        if !taken_along {
            set_groups(groups)?;
        }
        let gid = rustix::process::Gid::from_raw(gid);
        let uid = rustix::process::Uid::from_raw(uid);
        rustix::thread::set_thread_res_gid(gid, gid, gid).doing("become the user's group")?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).doing("become the user")?;
    }
    let within_jobs = proc.filter(|_| plan.namespaces.in_job());
    if within_jobs.is_some() && joined {
        let ns =
            fds.join.iter().find(|(ns, _)| *ns == Entered::User).ok_or_else(|| {
                SetupFailure::new("enter the running container's user namespace", Errno::INVAL)
            })?;
        rustix::thread::move_into_link_name_space(ns.1.as_fd(), Some(LinkNameSpaceType::User))
            .doing("enter the running container's user namespace")?;
    } else if let Some(ns) = fds.user_ns.as_ref().filter(|_| plan.mode == Mode::User && plan.subids) {
        // As below, made by whoever has the right to map more than one id in the job's.
        rustix::thread::move_into_link_name_space(ns.as_fd(), Some(LinkNameSpaceType::User))
            .doing("enter the user namespace")?;
        fork::unshare(libc::CLONE_NEWNS).doing("lock the mounts")?;
    } else if let Some(proc) = within_jobs {
        // Within the job's, and only now: what is mounted belongs to the job's user namespace, which alone
        // may show its processes in /proc. As above, the copy locks the mounts.
        fork::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)
            .doing("make a user namespace")
            .map_err(|f| f.hint(USERNS_HINT))?;
        let within = |map: &[IdMap], job: u32| -> Vec<IdMap> {
            map.iter().map(|m| IdMap::of_one(m.inside, job)).collect()
        };
        map_own_ids(proc, &within(&plan.uid_map, id.uid), &within(&plan.gid_map, id.gid))?;
    }
    if plan.namespaces.user == Ns::Node {
        // The ids say it all: setresuid took root's capabilities, and root keeps them.
        let caps = rustix::thread::capabilities(None).doing("read capabilities")?;
        let sets = CapabilitySets { inheritable: CapabilitySet::empty(), ..caps };
        return rustix::thread::set_capabilities(None, sets).doing("clear inheritable capabilities");
    }
    let held = rustix::thread::capabilities(None).doing("read capabilities")?.permitted;
    let keep = match (id.keep_caps, plan.export) {
        (true, _) => held,
        // Of init alone, which the user's processes neither trace nor become: to read what the user has closed.
        (false, true) => held & CapabilitySet::DAC_READ_SEARCH,
        (false, false) => CapabilitySet::empty(),
    };
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).doing("drop capabilities")
}

/// Makes an image's WORKDIR and the user's HOME where the image lacks them.
pub(super) fn make_workdir(plan: &Plan, root: &Root) -> Setup<()> {
    if plan.workdir.create {
        target::ensure(root, &plan.workdir.path, Kind::Directory)?;
    }
    if matches!(plan.root, RootPlan::Overlay { read_only: false, .. })
        && let Some(home) = plan.env.iter().find(|v| v.name.0 == b"HOME")
        && let Ok(path) = crate::plan::clean_absolute(&home.value, "HOME")
    {
        // A home that cannot be made (a file is in the way) is the image's business.
        let _ = target::ensure(root, &path, Kind::Directory);
    }
    Ok(())
}

/// Enters the working directory and checks that it lies in the container.
pub(super) fn workdir(plan: &Plan) -> Setup<()> {
    if !plan.namespaces.mount && plan.workdir.origin == "default" {
        return Ok(());
    }
    enter_directory(&plan.workdir.path).map_err(|e| {
        let origin = &plan.workdir.origin;
        let mut failure = SetupFailure::at("enter the working directory", &plan.workdir.path, e);
        failure.hint = Some(workdir_hint(&plan.workdir.path, origin, plan.root == RootPlan::Host, e));
        failure
    })
}

/// What to do about a working directory that cannot be entered.
pub(crate) fn workdir_hint(path: &ByteStr, origin: &str, host: bool, errno: Errno) -> String {
    let path = path.display();
    match (host, errno) {
        (false, Errno::NOENT) => format!(
            "{origin} names it and the container has none: add --container-mounts={path} to bring it in, or \
             choose another with --container-workdir"
        ),
        _ => format!("{origin} names it"),
    }
}

/// Changes directory; what is not below the root is refused.
pub(crate) fn enter_directory(path: &ByteStr) -> Result<(), Errno> {
    rustix::process::chdir(path.as_os())?;
    // The kernel answers "(unreachable)/..." for a directory outside the root.
    let now = rustix::process::getcwd(Vec::new())?;
    if now.as_bytes().first() == Some(&b'/') { Ok(()) } else { Err(Errno::XDEV) }
}

/// Nothing of the node is left to gain after this.
pub(super) fn confine(plan: &Plan) -> Setup<()> {
    // After the change of ids, which would clear both. Not dumpable: the user's processes cannot trace
    // init, read its memory or reach its program file.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).doing("tie init to its parent")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).doing("protect init")?;
    if plan.namespaces.pid != Ns::Own {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).doing("adopt orphans")?;
    }
    if plan.confinement.no_new_privs {
        rustix::thread::set_no_new_privs(true).doing("set no_new_privs")?;
    }
    if plan.confinement.seccomp || plan.confinement.fake_ids {
        let filter = crate::seccomp::compile(plan.confinement.seccomp, plan.confinement.fake_ids);
        crate::sys::seccomp::load(&filter).doing("load the seccomp filter")?;
    }
    Ok(())
}
