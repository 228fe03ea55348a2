//! The plan of a container: every mount, variable, id and filter, decided before anything is done.
//!
//! [`plan`] is pure: from a [`ContainerRequest`] and [`HostFacts`] it makes a [`Plan`], which the launcher
//! executes as it stands and `--explain` prints.

mod command;
mod env;
mod error;
mod identity;
mod mounts;
mod paths;
mod print;
#[cfg(test)]
mod tests;
mod user_mounts;

pub use env::{EnvVar, Origin};
pub use error::PlanError;
pub(crate) use identity::job_maps;
pub use identity::{IdMap, ProcessIdentity, UserSpec};
pub use mounts::{Attrs, MountKind, PlannedMount};
pub use paths::clean_absolute;
pub(crate) use paths::lexical as lexical_source;

use crate::facts::HostFacts;
use crate::hooks::ContainerHooks;
use crate::request::{ContainerRequest, Rootfs, StoreOwner, WritableLayer};
use berth_model::ByteStr;
use berth_model::elf::NeedsGlibc;
use berth_model::limits::Limits;
use berth_model::spec::Unshared;
use serde::{Deserialize, Serialize};

/// How much privilege the launcher has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// An ordinary user: one uid and one gid are mapped.
    User,
    /// Root acts for the user: layers may be shared, all groups work.
    System,
}

/// How the root filesystem is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootPlan {
    /// Read-only layers, topmost first, under a writable one.
    Overlay {
        /// Absolute paths.
        layers: Vec<ByteStr>,
        /// On-disk owner that is to appear as the user (system mode).
        owner: Option<StoreOwner>,
        /// The layers are the user's own files and are opened with the user's credentials.
        as_user: bool,
        /// Where writes go.
        upper: WritableLayer,
        /// At most so many bytes of them.
        #[serde(default)]
        size: Option<u64>,
        /// Made read-only once everything is mounted.
        read_only: bool,
        /// By mount(2): kernels before 6.8 take no layer by itself through `fsconfig`.
        #[serde(default)]
        one_string: bool,
    },
    /// A directory, written in place.
    InPlace(ByteStr),
    /// The node's own root.
    Host,
    /// The root of a running container, with all that is mounted in it.
    Joined,
}

/// Whose a namespace is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ns {
    /// The node's.
    #[default]
    Node,
    /// The job's: every step of the job on the node has it.
    Job,
    /// Made for this container.
    Own,
}

/// Namespaces of the container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespaces {
    /// User namespace. In user mode one of its own lies within the job's, where there is one.
    pub user: Ns,
    /// Mount namespace.
    pub mount: bool,
    /// Process ids.
    pub pid: Ns,
    /// System V IPC and POSIX message queues.
    pub ipc: Ns,
    /// View of cgroups.
    pub cgroup: bool,
    /// Host name.
    pub uts: bool,
    /// Network: the loopback device alone.
    pub net: bool,
}

impl Namespaces {
    /// Whether processes of the container are among those of its job.
    pub fn in_job(&self) -> bool {
        self.pid == Ns::Job
    }
}

/// What the task's process may not do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Confinement {
    /// setuid files and file capabilities gain nothing.
    pub no_new_privs: bool,
    /// The default deny-list of system calls.
    pub seccomp: bool,
    /// Calls that change ids or owners, or make devices, answer with success and do nothing.
    pub fake_ids: bool,
}

/// A file written or mounted in the container's `/etc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EtcFile {
    /// The user's line is put first; lines of that name go.
    Passwd {
        /// The line, without a line end.
        line: String,
        /// Login name.
        name: String,
        /// Used instead of a shell that the image lacks.
        fallback_line: String,
        /// The shell to look for.
        shell: ByteStr,
    },
    /// Lines for groups whose id the image does not know.
    Group {
        /// `(gid, name)`.
        groups: Vec<(u32, String)>,
    },
    /// The loader's cache, with these libraries in front of the image's own; no program of the image runs for it.
    LoaderCache {
        /// Paths in the container.
        libraries: Vec<ByteStr>,
    },
    /// Content copied from the node.
    Copy {
        /// Name in `/etc`.
        name: String,
        /// Content.
        content: ByteStr,
    },
}

impl EtcFile {
    /// Its path in the container.
    fn path(&self) -> Vec<u8> {
        let name = match self {
            EtcFile::Passwd { .. } => "passwd",
            EtcFile::Group { .. } => "group",
            EtcFile::LoaderCache { .. } => "ld.so.cache",
            EtcFile::Copy { name, .. } => name,
        };
        [b"/etc/", name.as_bytes()].concat()
    }
}

/// The directory in which tasks start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkdirPlan {
    /// Absolute path in the container.
    pub path: ByteStr,
    /// What set it, for messages.
    pub origin: String,
    /// Make it when it does not exist (an image's WORKDIR).
    pub create: bool,
}

/// One container, complete and in the order in which it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// How much privilege the launcher has.
    pub mode: Mode,
    /// Root filesystem.
    pub root: RootPlan,
    /// The user's root directory is opened through no symbolic link.
    #[serde(default)]
    pub root_without_links: bool,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// Ids of the user on the node.
    pub identity: ProcessIdentity,
    /// uid map of the user namespace.
    pub uid_map: Vec<IdMap>,
    /// gid map of the user namespace.
    pub gid_map: Vec<IdMap>,
    /// The maps hold a range of the user's subordinate ids (`--container-subids`).
    #[serde(default)]
    pub subids: bool,
    /// Mounts in order.
    pub mounts: Vec<PlannedMount>,
    /// Files of `/etc`.
    pub etc: Vec<EtcFile>,
    /// What the root's C library has to be, where it is glibc at all.
    #[serde(default)]
    pub glibc: Option<NeedsGlibc>,
    /// The environment of every task, with the origin of each variable.
    pub env: Vec<EnvVar>,
    /// Where tasks start.
    pub workdir: WorkdirPlan,
    /// What to run: entrypoint, command and arguments. Empty when tasks bring their own.
    pub argv: Vec<ByteStr>,
    /// The image's entrypoint where it is to run before a task's own command.
    pub argv_prefix: Vec<ByteStr>,
    /// Host name of the container's own.
    pub hostname: Option<String>,
    /// Its root's files can be read as an archive when its tasks have ended.
    #[serde(default)]
    pub export: bool,
    /// Its namespaces are kept at hand for other steps that enter it.
    #[serde(default)]
    pub joinable: bool,
    /// The administrator's hooks.
    #[serde(default)]
    pub hooks: Option<ContainerHooks>,
    /// What the processes may not do.
    pub confinement: Confinement,
    /// Limits, applied before privilege is dropped.
    pub limits: Limits,
    /// What the reader should know: what was asked for in the image and is not done.
    pub notes: Vec<String>,
}

/// Plans a container.
///
/// # Errors
/// [`PlanError`] names the option or the part of the image at fault, the reason and what to do.
pub fn plan(request: &ContainerRequest, facts: &HostFacts) -> Result<Plan, PlanError> {
    let mode = if facts.privileged { Mode::System } else { Mode::User };
    let host = request.root == Rootfs::Host;
    let joined = request.root == Rootfs::Joined;
    if mode == Mode::User && request.identity.uid.0 != facts.uid {
        return Err(PlanError::OtherUser { uid: facts.uid, wanted: request.identity.uid.0 });
    }
    if host {
        refuse_container_options(request)?;
    }
    let mut notes = Vec::new();
    if request.subids && !request.remap_root && !host {
        return Err(PlanError::SubIds(
            "only root in the container can use other ids: add --container-remap-root".into(),
        ));
    }
    let subids = match &facts.subids {
        // One that runs has the ids that it was started with.
        _ if !request.subids || host || joined => None,
        Some(found) => Some(found.as_ref().map_err(|why| PlanError::SubIds(why.clone()))?),
        None => return Err(PlanError::SubIds("the user's ranges of ids were not looked up".into())),
    };
    let ids = identity::plan(request, mode, host, subids, &mut notes)?;
    let root = root(request, facts, mode)?;
    let home = identity::home(request, host);
    let env = env::plan(request, &home, host, facts)?;
    let workdir = workdir(request, host)?;
    if joined && !request.in_job {
        return Err(PlanError::NotOfOneJob);
    }
    let mounts =
        if joined { Vec::new() } else { mounts::plan(request, facts, mode, &home, &root, &mut notes)? };
    let (argv, argv_prefix) = command::plan(request);
    let namespaced = mode == Mode::System || !host;
    let shared = if request.in_job { Ns::Job } else { Ns::Own };
    if !namespaced {
        notes.push(
            "host: in user mode runs as plain processes: no namespace can be made without \
                    a user namespace, which would break sudo and newgrp"
                .into(),
        );
    }
    let own = |which| request.unshare.contains(&which);
    let mut etc = if host || joined { Vec::new() } else { identity::etc_files(request, mode, &home, facts)? };
    if !request.libraries.is_empty() && !host && !joined {
        etc.push(EtcFile::LoaderCache { libraries: request.libraries.clone() });
    }
    // What the user mounts over a file of /etc is what the user wants to see there.
    etc.retain(|file| !mounts.iter().any(|m| m.target.0 == b"/etc" || m.target.0 == file.path()));
    Ok(Plan {
        mode,
        root,
        root_without_links: request.root_without_links,
        namespaces: Namespaces {
            user: match (host, request.remap_root) {
                (true, _) => Ns::Node,
                (false, true) => Ns::Own,
                (false, false) => shared,
            },
            mount: namespaced,
            pid: if namespaced { shared } else { Ns::Node },
            ipc: match (host, own(Unshared::Ipc)) {
                (true, _) => Ns::Node,
                (false, true) => Ns::Own,
                (false, false) => shared,
            },
            cgroup: namespaced,
            uts: namespaced && (request.hostname.is_some() || own(Unshared::Uts)),
            net: own(Unshared::Net),
        },
        identity: ids.process,
        uid_map: ids.uid_map,
        gid_map: ids.gid_map,
        subids: !host && request.subids,
        mounts,
        etc,
        glibc: request.glibc.clone().filter(|_| !host && !joined),
        env,
        workdir,
        argv,
        argv_prefix,
        hostname: request.hostname.clone(),
        export: request.export && !host && !joined,
        joinable: request.joinable,
        // A container that runs was made with its own, and the node's filesystem is none.
        hooks: request.hooks.clone().filter(|hooks| !host && !joined && !hooks.hooks.is_empty()),
        confinement: Confinement {
            no_new_privs: !host,
            seccomp: !host && request.seccomp,
            fake_ids: !host && request.remap_root && !request.subids,
        },
        limits: request.limits.clone(),
        notes,
    })
}

fn refuse_container_options(request: &ContainerRequest) -> Result<(), PlanError> {
    let option = if !request.mounts.is_empty() {
        "--container-mounts"
    } else if request.mount_home {
        "--container-mount-home"
    } else if request.subids {
        "--container-subids"
    } else if request.remap_root {
        "--container-remap-root"
    } else if request.writable == Some(true) {
        "--container-writable"
    } else if request.writable == Some(false) {
        "--container-readonly"
    } else if request.writable_layer != WritableLayer::Tmpfs || request.writable_size.is_some() {
        "--container-writable-layer"
    } else if !request.unshare.is_empty() {
        "--container-unshare"
    } else if request.entrypoint {
        "--container-entrypoint"
    } else if !request.container_env.is_empty() {
        "--container-env"
    } else {
        return Ok(());
    };
    Err(PlanError::NeedsImage { option })
}

fn root(request: &ContainerRequest, facts: &HostFacts, mode: Mode) -> Result<RootPlan, PlanError> {
    let read_only = request.writable == Some(false);
    let upper = match &request.writable_layer {
        WritableLayer::Tmpfs => WritableLayer::Tmpfs,
        WritableLayer::Dir(d) => WritableLayer::Dir(clean_absolute(d, "the writable layer")?),
        WritableLayer::Image(file) => WritableLayer::Image(clean_absolute(file, "the writable layer")?),
    };
    let size = request.writable_size;
    let layered = upper != WritableLayer::Tmpfs || size.is_some();
    match (&upper, size) {
        // A directory may hold what an earlier run wrote, for this one to read.
        (WritableLayer::Image(_), _) | (_, Some(_)) if read_only => {
            return Err(PlanError::Layer(
                "a read-only container has nothing to write to: leave one option out",
            ));
        }
        (WritableLayer::Dir(_), Some(_)) => return Err(PlanError::Layer(NO_LIMIT_ON_DISK)),
        (WritableLayer::Image(_), _) if mode == Mode::User => return Err(PlanError::Layer(NO_LIMIT_ON_DISK)),
        (WritableLayer::Image(_), None) => {
            return Err(PlanError::Layer("a filesystem of its own needs a size"));
        }
        _ => {}
    }
    let one_string = one_string(facts.kernel);
    Ok(match &request.root {
        Rootfs::Host => RootPlan::Host,
        Rootfs::Joined => RootPlan::Joined,
        Rootfs::Dir(dir) => {
            let dir = clean_absolute(dir, "the root directory")?;
            if dir.0 == b"/" {
                return Err(PlanError::RootIsHost);
            }
            if request.writable == Some(true) {
                if layered {
                    return Err(PlanError::Layer(
                        "a root directory with --container-writable is written where it is: leave one option out",
                    ));
                }
                RootPlan::InPlace(dir)
            } else {
                RootPlan::Overlay {
                    layers: vec![dir],
                    owner: None,
                    as_user: true,
                    upper,
                    size,
                    read_only,
                    one_string,
                }
            }
        }
        Rootfs::Overlay { layers, owner } => {
            if layers.is_empty() {
                return Err(PlanError::NoLayers);
            }
            let most = most_layers(facts.kernel);
            if layers.len() > most {
                return Err(PlanError::TooManyLayers { count: layers.len(), most });
            }
            let layers = layers.iter().map(|l| clean_absolute(l, "a layer")).collect::<Result<_, _>>()?;
            let owner = owner.filter(|_| mode == Mode::System);
            RootPlan::Overlay { layers, owner, as_user: false, upper, size, read_only, one_string }
        }
    })
}

const NO_LIMIT_ON_DISK: &str = "only root can bound what is written on disk, with a filesystem of its own: leave the size out, \
     or write tmpfs:SIZE";

/// Whether a kernel of this version takes an overlay's layers in one string alone.
fn one_string(kernel: (u32, u32)) -> bool {
    kernel < (6, 8)
}

/// Layers of which a container can be mounted on a kernel of this version: in two overlays, one on the other.
pub fn most_layers(kernel: (u32, u32)) -> usize {
    2 * most_in_one(one_string(kernel)) - 1
}

/// Layers that one overlay takes (`OVL_MAX_STACK`), or whose descriptors' paths go into one string of a page.
pub(crate) fn most_in_one(one_string: bool) -> usize {
    if one_string { 200 } else { 500 }
}

fn workdir(request: &ContainerRequest, host: bool) -> Result<WorkdirPlan, PlanError> {
    if let Some(w) = &request.workdir {
        let path = clean_absolute(&w.path, &w.origin)?;
        return Ok(WorkdirPlan { path, origin: w.origin.clone(), create: false });
    }
    match &request.image.workdir {
        Some(dir) if !host && !dir.is_empty() => {
            // The specification wants an absolute path; docker reads a relative one from the root.
            let mut bytes = dir.0.clone();
            if bytes.first() != Some(&b'/') {
                bytes.insert(0, b'/');
            }
            let path = clean_absolute(&ByteStr(bytes), "the image's WORKDIR")?;
            // In a container that runs nothing is made by anyone but its tasks.
            Ok(WorkdirPlan {
                path,
                origin: "the image's WORKDIR".into(),
                create: request.root != Rootfs::Joined,
            })
        }
        _ => Ok(WorkdirPlan { path: "/".into(), origin: "default".into(), create: false }),
    }
}
