//! What a container is asked to be: the planner's input.

use crate::hooks::ContainerHooks;
use berth_model::ByteStr;
use berth_model::elf::NeedsGlibc;
use berth_model::limits::Limits;
use berth_model::spec::{Identity, MountSpec, Unshared};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where the root filesystem comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rootfs {
    /// Unpacked layers of an image, the topmost first.
    Overlay {
        /// Absolute paths of the layers.
        layers: Vec<ByteStr>,
        /// Who owns the files on disk, where that is not the user: the shared store's identity.
        owner: Option<StoreOwner>,
    },
    /// An unpacked root directory of the user's.
    Dir(ByteStr),
    /// The node's own filesystem (`host:`).
    Host,
    /// That of a container of the same job, which runs: its mount namespace is entered.
    Joined,
}

/// Owner of the files of a shared store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreOwner {
    /// User id on disk.
    pub uid: u32,
    /// Group id on disk.
    pub gid: u32,
}

/// The part of an image's configuration that says how to run it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `ENV`: `NAME=value` strings.
    pub env: Vec<ByteStr>,
    /// `ENTRYPOINT`.
    pub entrypoint: Vec<ByteStr>,
    /// `CMD`.
    pub cmd: Vec<ByteStr>,
    /// `WORKDIR`.
    pub workdir: Option<ByteStr>,
    /// `USER`.
    pub user: Option<String>,
}

impl ImageConfig {
    /// As it is kept in an image that is made of the container (`berth-images`, `ImageConfig`): text, and empty where
    /// there is nothing.
    pub fn saved(&self) -> serde_json::Value {
        let list = |words: &[ByteStr]| words.iter().map(|w| w.display().into_owned()).collect::<Vec<_>>();
        serde_json::json!({
            "env": list(&self.env),
            "entrypoint": list(&self.entrypoint),
            "cmd": list(&self.cmd),
            "workdir": self.workdir.as_ref().map(|w| w.display().into_owned()).unwrap_or_default(),
            "user": self.user.clone().unwrap_or_default(),
        })
    }
}

/// Where what a container writes to its root goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WritableLayer {
    /// Memory, charged to the container.
    #[default]
    Tmpfs,
    /// A directory of the user's on a disk; `upper` and `work` are made in it, so that both lie on one mount.
    Dir(ByteStr),
    /// A file in a directory of root's, which holds a filesystem of its own and so has a limit (system mode). It is made
    /// for this container and goes with it.
    Image(ByteStr),
}

/// A mount that Berth itself adds, such as the job's `/tmp`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraMount {
    /// Absolute path on the node.
    pub source: ByteStr,
    /// Absolute path in the container.
    pub target: ByteStr,
    /// Not writable.
    #[serde(default)]
    pub read_only: bool,
}

/// A working directory and the option that set it, for messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workdir {
    /// Absolute path in the container.
    pub path: ByteStr,
    /// Such as `--container-workdir` or `--chdir`.
    pub origin: String,
}

/// Everything the planner needs to know of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRequest {
    /// Root filesystem.
    pub root: Rootfs,
    /// A root directory is opened through no symbolic link: it was judged by its path.
    #[serde(default)]
    pub root_without_links: bool,
    /// Image configuration; empty for a root directory and for `host:`.
    #[serde(default)]
    pub image: ImageConfig,
    /// Who runs it.
    pub identity: Identity,
    /// Names of supplementary groups, where known.
    #[serde(default)]
    pub group_names: BTreeMap<u32, String>,
    /// `--container-mounts`.
    #[serde(default)]
    pub mounts: Vec<MountSpec>,
    /// What relative mount sources are relative to.
    pub base_dir: ByteStr,
    /// Mounts of Berth's own.
    #[serde(default)]
    pub extra_mounts: Vec<ExtraMount>,
    /// An explicit working directory.
    #[serde(default)]
    pub workdir: Option<Workdir>,
    /// `--container-mount-home`.
    #[serde(default)]
    pub mount_home: bool,
    /// `--container-remap-root`.
    #[serde(default)]
    pub remap_root: bool,
    /// `--container-subids`: root inside, as with [`ContainerRequest::remap_root`], which is then set as well; the other
    /// ids are of the user's subordinate ones.
    #[serde(default)]
    pub subids: bool,
    /// `--container-writable` or `--container-readonly`; neither means writable, and gone afterwards.
    #[serde(default)]
    pub writable: Option<bool>,
    /// Where writes go.
    #[serde(default)]
    pub writable_layer: WritableLayer,
    /// How much of it, in bytes.
    #[serde(default)]
    pub writable_size: Option<u64>,
    /// `--container-entrypoint`: run the image's entrypoint before the command.
    #[serde(default)]
    pub entrypoint: bool,
    /// `--container-env`: names whose value outside wins over the image's.
    #[serde(default)]
    pub container_env: Vec<String>,
    /// The job's environment: the submitter's, and what Berth set for the job.
    #[serde(default)]
    pub env: Vec<ByteStr>,
    /// Directories appended to PATH, such as `/run/berth/bin`.
    #[serde(default)]
    pub append_path: Vec<ByteStr>,
    /// Command and arguments; empty runs the image's own.
    #[serde(default)]
    pub command: Vec<ByteStr>,
    /// Device files of the allocation, by their path on the node.
    #[serde(default)]
    pub devices: Vec<ByteStr>,
    /// Groups beside the user's that its processes are in, as the administrator's file of a device says (system mode): on the node, and
    /// without a number in the container.
    #[serde(default)]
    pub device_groups: Vec<u32>,
    /// Libraries, by their path in the container, that its loader is to find by their names: those of a device's driver, among
    /// [`ContainerRequest::extra_mounts`].
    #[serde(default)]
    pub libraries: Vec<ByteStr>,
    /// The glibc that those need, to be looked for before anything runs.
    #[serde(default)]
    pub glibc: Option<NeedsGlibc>,
    /// Size of `/dev/shm` in bytes; absent means the kernel's default, half of the memory.
    #[serde(default)]
    pub shm_size: Option<u64>,
    /// The container is one of a job's: it joins the job's user, pid and ipc namespace and its `/dev/shm`
    /// instead of making its own.
    #[serde(default)]
    pub in_job: bool,
    /// Namespaces of its own that it would share otherwise (`--container-unshare`); of one that is joined, those that it
    /// has.
    #[serde(default)]
    pub unshare: Vec<Unshared>,
    /// Its files will be read when its tasks have ended (`--container-save`).
    #[serde(default)]
    pub export: bool,
    /// Other steps of the job may enter it.
    #[serde(default)]
    pub joinable: bool,
    /// A host name of the container's own; absent shares the node's.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The administrator's hooks.
    #[serde(default)]
    pub hooks: Option<ContainerHooks>,
    /// The default seccomp filter.
    #[serde(default = "yes")]
    pub seccomp: bool,
    /// The submitter's limits.
    #[serde(default)]
    pub limits: Limits,
}

fn yes() -> bool {
    true
}

impl ContainerRequest {
    /// A request with nothing but a root, a user and a directory for relative mount sources.
    pub fn new(root: Rootfs, identity: Identity, base_dir: ByteStr) -> Self {
        ContainerRequest {
            root,
            root_without_links: false,
            image: ImageConfig::default(),
            identity,
            group_names: BTreeMap::new(),
            mounts: Vec::new(),
            base_dir,
            extra_mounts: Vec::new(),
            workdir: None,
            mount_home: false,
            remap_root: false,
            subids: false,
            writable: None,
            writable_layer: WritableLayer::Tmpfs,
            writable_size: None,
            entrypoint: false,
            container_env: Vec::new(),
            env: Vec::new(),
            append_path: Vec::new(),
            command: Vec::new(),
            devices: Vec::new(),
            device_groups: Vec::new(),
            libraries: Vec::new(),
            glibc: None,
            shm_size: None,
            in_job: false,
            unshare: Vec::new(),
            export: false,
            joinable: false,
            hostname: None,
            hooks: None,
            seccomp: true,
            limits: Limits::default(),
        }
    }
}
