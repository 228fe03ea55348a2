//! Entering a container that runs: its namespaces, kept at hand by whoever supervises it, for further steps of its job.

use crate::launch::LaunchError;
use crate::plan::{Mode, Ns, Plan};
use crate::setup::SetupFailure;
use crate::sys::Errno;
use rustix::fs::{CWD, Mode as FileMode, OFlags};
use rustix::thread::LinkNameSpaceType;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// A namespace in which a container's processes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Entered {
    /// Host name.
    Uts,
    /// Network.
    Net,
    /// IPC.
    Ipc,
    /// Mounts.
    Mnt,
    /// Ids and capabilities.
    User,
}

impl Entered {
    /// In the order in which they are entered: with the rights over the earlier ones.
    const ALL: [Entered; 5] = [Entered::Uts, Entered::Net, Entered::Ipc, Entered::Mnt, Entered::User];

    /// Its name in `/proc/PID/ns`.
    fn name(self) -> &'static str {
        match self {
            Entered::Uts => "uts",
            Entered::Net => "net",
            Entered::Ipc => "ipc",
            Entered::Mnt => "mnt",
            Entered::User => "user",
        }
    }

    pub(crate) fn kind(self) -> LinkNameSpaceType {
        match self {
            Entered::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
            Entered::Net => LinkNameSpaceType::Network,
            Entered::Ipc => LinkNameSpaceType::InterProcessCommunication,
            Entered::Mnt => LinkNameSpaceType::Mount,
            Entered::User => LinkNameSpaceType::User,
        }
    }

    /// Whether a container of this plan is in one that processes of its job are not in anyway.
    fn is_apart(self, plan: &Plan) -> bool {
        let ns = &plan.namespaces;
        match self {
            Entered::Uts => ns.uts,
            Entered::Net => ns.net,
            Entered::Ipc => ns.ipc == Ns::Own,
            Entered::Mnt => ns.mount,
            Entered::User => ns.user == Ns::Own,
        }
    }
}

/// Namespaces by what they are.
pub(crate) type Open = Vec<(Entered, OwnedFd)>;

/// Where the namespaces of a running container are found: the process that keeps them open, and under which numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerNamespaces {
    /// Its pid on the node.
    pub pid: i32,
    /// When it started, in the kernel's ticks since boot: tells it from a later process of that pid.
    pub start_ticks: u64,
    /// Numbers of its descriptors.
    pub open: Vec<(Entered, RawFd)>,
}

/// Opens those of `/proc/WHO/ns` that are apart from the job's.
///
/// `who` is a pid as the node's `/proc` has it, or `self` for a process that asks in its own container: there what is
/// found is only believed to be a namespace by whoever has no more rights than the container's user.
pub(crate) fn open(plan: &Plan, who: &str) -> Result<Open, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Entered::ALL
        .into_iter()
        .filter(|ns| ns.is_apart(plan))
        .map(|ns| {
            let path = format!("/proc/{who}/ns/{}", ns.name());
            rustix::fs::openat(CWD, path, flags, FileMode::empty()).map(|fd| (ns, fd))
        })
        .collect()
}

/// What [`ContainerNamespaces`] says of these, held by the calling process.
pub(crate) fn held(open: &Open) -> Option<ContainerNamespaces> {
    let pid = std::process::id().cast_signed();
    let numbers = open.iter().map(|(ns, fd)| (*ns, fd.as_raw_fd())).collect();
    Some(ContainerNamespaces { pid, start_ticks: crate::procfs::start_ticks(pid)?, open: numbers })
}

impl ContainerNamespaces {
    /// Whether the process that keeps them open lives.
    pub fn alive(&self) -> bool {
        crate::procfs::start_ticks(self.pid) == Some(self.start_ticks)
    }

    /// Opens them.
    ///
    /// # Errors
    /// The process that kept them is gone, or the kernel's.
    pub fn open(&self) -> Result<JoinedNamespaces, LaunchError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mut open = Open::new();
        for (ns, number) in &self.open {
            let path = format!("/proc/{}/fd/{number}", self.pid);
            let fd = rustix::fs::open(path, flags, FileMode::empty()).map_err(|e| match e {
                Errno::NOENT | Errno::SRCH => gone(),
                e => LaunchError::System {
                    action: "open the running container's namespaces",
                    errno: e.raw_os_error(),
                },
            })?;
            open.push((*ns, fd));
        }
        // Only now that they are held can they not become another process's.
        if self.alive() { Ok(JoinedNamespaces(open)) } else { Err(gone()) }
    }
}

fn gone() -> LaunchError {
    LaunchError::InitLost("the container to be joined has ended".into())
}

/// The namespaces of a running container, open.
#[derive(Debug, Default)]
pub struct JoinedNamespaces(pub(crate) Open);

/// Enters all but the user namespace, which comes last. Nothing in the container is looked at.
pub(crate) fn enter(plan: &Plan, open: &Open) -> Result<(), SetupFailure> {
    let here = |ns: &Entered| open.iter().any(|(o, _)| o == ns);
    let missing = Entered::ALL.into_iter().find(|ns| *ns != Entered::User && ns.is_apart(plan) && !here(ns));
    if let Some(ns) = missing {
        return Err(SetupFailure::new(
            &format!("enter the running container: its {} namespace is not at hand", ns.name()),
            Errno::NOENT,
        ));
    }
    for (ns, fd) in open.iter().filter(|(ns, _)| *ns != Entered::User) {
        // The kernel checks that it is of this kind.
        rustix::thread::move_into_link_name_space(fd.as_fd(), Some(ns.kind())).map_err(|e| {
            SetupFailure::new(&format!("enter the running container's {} namespace", ns.name()), e)
        })?;
    }
    Ok(())
}

/// Who opens a container's namespaces for its supervisor: root does it by the node's `/proc`; an ordinary user's
/// supervisor may not look at init, which then does it itself.
pub(crate) fn init_opens(plan: &Plan) -> bool {
    plan.joinable && plan.mode == Mode::User
}
