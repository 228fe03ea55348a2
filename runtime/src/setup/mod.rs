//! Makes the container around the calling process: namespaces, root, mounts, identity, confinement.
//!
//! Runs in the freshly cloned, single-threaded process that becomes the container's init. In system mode
//! the order is what keeps the shared layers safe: everything is mounted by root, the root is pivoted, and
//! only then is the user namespace entered and the mount namespace unshared again, which locks each mount.

mod c_library;
pub(crate) mod dev;
pub(crate) mod enter;
mod etc;
pub(crate) mod image;
pub(crate) mod mounts;
pub(crate) mod overlay;
mod rights;
mod shm;
pub(crate) mod target;
#[cfg(test)]
mod tests;

pub(crate) use enter::{enter_directory, map_own_ids, map_text, open_procfs, workdir_hint};
pub(crate) use shm::hold as hold_shm;

use crate::hooks::{ContainerHooks, HookFailure};
use crate::init::{Pause, unblocked};
use crate::plan::{Mode, Ns, Plan, RootPlan};
use crate::sys::{Errno, fork, mountattr};
use berth_model::ByteStr;
use rustix::fs::{CWD, Mode as FileMode, OFlags, ResolveFlags};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use target::Root;

/// Why a container could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupFailure {
    /// What was tried, as in "cannot ...".
    pub action: String,
    /// The file concerned.
    pub path: Option<ByteStr>,
    /// The kernel's error number; 0 when the refusal is our own.
    pub errno: i32,
    /// What to do.
    pub hint: Option<String>,
}

impl fmt::Display for SetupFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.action)?;
        if let Some(path) = &self.path {
            write!(f, " {}", path.display())?;
        }
        if self.errno != 0 {
            write!(f, ": {}", errno_text(self.errno))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

/// The system's text for an error number, without Rust's "(os error N)".
pub(crate) fn errno_text(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_string(),
        None => text,
    }
}

impl SetupFailure {
    pub(crate) fn new(action: &str, errno: Errno) -> Self {
        SetupFailure { action: action.into(), path: None, errno: errno.raw_os_error(), hint: None }
    }

    pub(crate) fn at(action: &str, path: &ByteStr, errno: Errno) -> Self {
        SetupFailure { path: Some(path.clone()), ..Self::new(action, errno) }
    }

    fn refuse(action: &str, path: &ByteStr, hint: &str) -> Self {
        SetupFailure { action: action.into(), path: Some(path.clone()), errno: 0, hint: Some(hint.into()) }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

pub(crate) type Setup<T> = Result<T, SetupFailure>;

/// What keeps a container from being made.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The system.
    Setup(SetupFailure),
    /// A hook of the administrator's.
    Hook(HookFailure),
}

impl From<SetupFailure> for Refused {
    fn from(failure: SetupFailure) -> Self {
        Refused::Setup(failure)
    }
}

/// Names what failed.
trait Doing<T> {
    fn doing(self, action: &str) -> Setup<T>;
    fn doing_at(self, action: &str, path: &ByteStr) -> Setup<T>;
}

impl<T> Doing<T> for Result<T, Errno> {
    fn doing(self, action: &str) -> Setup<T> {
        self.map_err(|e| SetupFailure::new(action, e))
    }
    fn doing_at(self, action: &str, path: &ByteStr) -> Setup<T> {
        self.map_err(|e| SetupFailure::at(action, path, e))
    }
}

/// Namespaces made beforehand that the container enters.
#[derive(Debug, Default)]
pub(crate) struct SetupFds {
    /// The job's or the container's own user namespace, owned by root (system mode). With subordinate ids in user mode:
    /// the container's own, within the job's where there is one.
    pub user_ns: Option<OwnedFd>,
    /// A user namespace whose map makes the store's owner appear as the user.
    pub idmap_ns: Option<OwnedFd>,
    /// The mounted filesystem of a writable layer with a limit on disk.
    pub layer: Option<OwnedFd>,
    /// Images of layers that are mounted already ([`image::MountedImages`]).
    pub images: Option<OwnedFd>,
    /// The process that holds the job's namespaces.
    pub holder: Option<OwnedFd>,
    /// Layers that are images and are mounted by loop devices, by their numbers in the plan.
    pub loops: Vec<(usize, OwnedFd)>,
    /// The namespaces of the running container that is entered.
    pub join: crate::join::Open,
}

impl SetupFds {
    /// Those that are there, in this order.
    pub fn all(&self) -> impl Iterator<Item = &OwnedFd> {
        let join = self.join.iter().map(|(_, fd)| fd);
        [&self.user_ns, &self.idmap_ns, &self.layer, &self.images, &self.holder]
            .into_iter()
            .flatten()
            .chain(join)
            .chain(self.loops.iter().map(|(_, fd)| fd))
    }
}

/// What was made.
#[derive(Debug, Default)]
pub(crate) struct Made {
    /// For the user.
    pub notes: Vec<String>,
    /// The root's mount alone, where its files are to be read.
    pub root: Option<OwnedFd>,
    /// The own pid as the node sees it, where hooks were told of it.
    pub pid: Option<i32>,
}

/// Makes the container around this process.
pub(crate) fn run(plan: &Plan, fds: &SetupFds, pause: &Pause<'_>) -> Result<Made, Refused> {
    let mut made = Made::default();
    let notes = &mut made.notes;
    // Whoever maps the own ids may have mounted anything over `/proc` by the time it is done.
    let own_ids = plan.mode == Mode::User && plan.namespaces.user == Ns::Own;
    let mapped = plan.subids && plan.root != RootPlan::Joined;
    let proc = own_ids.then(open_procfs).transpose()?;
    if let Some(proc) = proc.as_ref().filter(|_| !plan.namespaces.in_job() && !mapped) {
        map_own_ids(proc, &plan.uid_map, &plan.gid_map)?;
    }
    if plan.namespaces.cgroup {
        // Here and not in clone3: the namespace's root is the cgroup the process is in by now.
        fork::unshare(libc::CLONE_NEWCGROUP).doing("make a cgroup namespace")?;
    }
    if let Some(name) =
        plan.hostname.as_deref().filter(|_| plan.namespaces.uts && plan.root != RootPlan::Joined)
    {
        rustix::system::sethostname(name.as_bytes()).doing("set the host name")?;
    }
    if plan.root == RootPlan::Joined {
        crate::join::enter(plan, &fds.join)?;
    } else if plan.namespaces.net {
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
        socket
            .and_then(|socket| crate::sys::process::loopback_up(socket.as_fd()))
            .doing("bring the loopback device up")?;
    }
    if plan.namespaces.mount && plan.root != RootPlan::Joined {
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .doing("detach the mounts from the node's")?;
        if plan.root == RootPlan::Host {
            host(plan, notes)?;
        } else {
            (made.root, made.pid) = container(plan, fds, pause, notes)?;
        }
    }
    // With the privilege to raise them, and not earlier: a low limit on open files or on file size is
    // meant for the tasks, not for what is made here.
    crate::limits::apply(&plan.limits, &mut made.notes).map_err(|e| SetupFailure {
        action: e.to_string(),
        path: None,
        errno: 0,
        hint: None,
    })?;
    enter::take_identity(plan, fds, proc.as_ref())?;
    enter::workdir(plan)?;
    enter::confine(plan)?;
    Ok(made)
}

fn host(plan: &Plan, notes: &mut Vec<String>) -> Setup<()> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, FileMode::empty()).doing("open /")?;
    let root = Root::new(root, false)?;
    let sources = mounts::open_sources(plan)?;
    mounts::perform(plan, &root, sources, None, notes)
}

fn container(
    plan: &Plan,
    fds: &SetupFds,
    pause: &Pause<'_>,
    notes: &mut Vec<String>,
) -> Result<(Option<OwnedFd>, Option<i32>), Refused> {
    // Before anything lies over the node's root, by which the way back is found.
    let shm = shm::take(plan, fds)?;
    let staging = overlay::staging(plan)?;
    let root = match &plan.root {
        RootPlan::Overlay { .. } => Root::new(overlay::mount(plan, &staging, fds)?, true)?,
        RootPlan::InPlace(dir) => Root::new(in_place(plan, dir)?, false)?,
        RootPlan::Host | RootPlan::Joined => {
            return Err(SetupFailure::new("make a container of a root that is there", Errno::INVAL).into());
        }
    };
    // From here on nothing is done with root's rights that is not done by name.
    rights::act_as_user(plan)?;
    let sources = mounts::open_sources(plan)?;
    mounts::perform(plan, &root, sources, shm, notes)?;
    c_library::check(plan, &root)?;
    etc::write(plan, &root, staging.as_fd(), notes)?;
    enter::make_workdir(plan, &root)?;
    let pid = match &plan.hooks {
        Some(hooks) => run_hooks(plan, hooks, pause)?,
        None => None,
    };
    if matches!(plan.root, RootPlan::Overlay { read_only: true, .. }) {
        let change = mountattr::Change { set: mountattr::RDONLY, ..mountattr::Change::default() };
        mountattr::mount_setattr(root.as_fd(), change).doing("make the root read-only")?;
    }
    // Before mounts are locked, and without what is mounted in it.
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let alone = match plan.export {
        true => Some(rustix::mount::open_tree(&root, "", flags).doing("hold the root for --container-save")?),
        false => None,
    };
    enter::pivot_from(&root, plan.hooks.is_none())?;
    Ok((alone, pid))
}

/// Runs what is to run before the root is changed: by the supervisor on the node, and then here, with the rights of root
/// where root makes the container.
fn run_hooks(plan: &Plan, hooks: &ContainerHooks, pause: &Pause<'_>) -> Result<Option<i32>, Refused> {
    let pid = pause.mounted().doing("hear from the supervisor that hooks have run")?;
    if !hooks.hooks.create_container.is_empty() {
        rights::act_as_root(plan)?;
        if plan.mode == Mode::System {
            enter::set_groups(&[])?;
        }
        unblocked(|| hooks.within(pid)).map_err(Refused::Hook)?;
        rights::act_as_user(plan)?;
    }
    Ok(Some(pid))
}

/// Mounts the root where it is till it becomes the root: over the node's, or where hooks find it by its path.
fn place_root(plan: &Plan, root: BorrowedFd<'_>) -> Result<(), Errno> {
    match &plan.hooks {
        None => attach(root, CWD, "/"),
        // The directory is closed to the user, as whom much of this is done.
        Some(hooks) => rights::with_roots(|| {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let place = rustix::fs::open(hooks.rootfs().as_os(), flags, FileMode::empty())?;
            attach(root, &place, "")
        })?,
    }
}

fn in_place(plan: &Plan, dir: &ByteStr) -> Setup<OwnedFd> {
    rights::act_as_user(plan)?;
    let source = open_root_dir(plan, dir)?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(&source, "", flags).doing_at("use as root", dir)?;
    let change =
        mountattr::Change { set: mountattr::NOSUID | mountattr::NODEV, ..mountattr::Change::default() };
    mountattr::mount_setattr(tree.as_fd(), change).doing_at("use as root", dir)?;
    place_root(plan, tree.as_fd()).doing_at("mount the root", dir)?;
    Ok(tree)
}

/// Opens the user's root directory.
fn open_root_dir(plan: &Plan, dir: &ByteStr) -> Setup<OwnedFd> {
    if !plan.root_without_links {
        return open_path(dir).map_err(|e| root_dir_failure(dir, e));
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = rustix::fs::openat2(CWD, dir.as_os(), flags, FileMode::empty(), ResolveFlags::NO_SYMLINKS);
    opened.map_err(|e| match e {
        Errno::LOOP => root_dir_failure(dir, e)
            .hint("a link is on the way, and this cluster's rules judge images by paths without links"),
        e => root_dir_failure(dir, e),
    })
}

fn root_dir_failure(dir: &ByteStr, errno: Errno) -> SetupFailure {
    SetupFailure::at("open the root directory", dir, errno)
}

/// Opens a place in the filesystem without reading it.
pub(crate) fn open_path(path: &ByteStr) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path.as_os(), OFlags::PATH | OFlags::CLOEXEC, FileMode::empty())
}

/// Attaches a detached mount. An empty `path` means the descriptor itself.
pub(crate) fn attach<D: AsFd>(mount: BorrowedFd<'_>, dir: D, path: &str) -> Result<(), Errno> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    if path.is_empty() {
        flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    }
    rustix::mount::move_mount(mount, "", dir, path, flags)
}
