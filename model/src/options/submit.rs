//! What the submit options of one command line, its environment and its script come to.

use super::resolve::Source;
use super::row::Command;
use crate::bind::gpu::GpuBind;
use crate::bytes::ByteStr;
use crate::count::NodeCount;
use crate::devices::Nearness;
use crate::distribution::Distribution;
use crate::export::ExportSpec;
use crate::gres::Wanted;
use crate::ids::NodeName;
use crate::limits::Resource;
use crate::spec::{
    ArraySpec, JobSelector, LayerSpec, MountSpec, NameFlag, NameScope, OpenMode, TimeLimit, Unshared,
    WarnSignal,
};
use crate::time::{Span, Time};
use std::collections::BTreeMap;

/// Which of the submitter's limits travel with the job (`--propagate`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Propagate {
    /// Those that say something of the job, lowered where a node allows less (the default).
    #[default]
    Inherit,
    /// All of them, and the node must be able to give them.
    All,
    /// None.
    None,
    /// These, and the node must be able to give them.
    Only(Vec<Resource>),
}

impl Propagate {
    /// By which `salloc` tells the steps in its allocation what it was asked for.
    pub const CARRIED: &'static str = "SLURM_PROPAGATE";

    /// As the option takes it; nothing where nobody said.
    pub fn text(&self) -> Option<String> {
        match self {
            Propagate::Inherit => None,
            Propagate::All => Some("ALL".to_string()),
            Propagate::None => Some("NONE".to_string()),
            Propagate::Only(names) => Some(names.iter().map(|r| r.name()).collect::<Vec<_>>().join(",")),
        }
    }
}

/// How `--explain` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explain {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// The container options as given. What is absent is the site's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerOptions {
    /// `--container-image`, as typed.
    pub image: Option<String>,
    /// `--container-mounts`; a relative source or target is not yet absolute.
    pub mounts: Vec<MountSpec>,
    /// `--container-workdir`.
    pub workdir: Option<ByteStr>,
    /// `--container-mount-home`.
    pub mount_home: Option<bool>,
    /// `--container-remap-root`.
    pub remap_root: Option<bool>,
    /// `--container-subids`.
    pub subids: Option<bool>,
    /// `--container-writable` or `--container-readonly`.
    pub writable: Option<bool>,
    /// `--container-env`.
    pub env: Vec<String>,
    /// `--container-entrypoint`.
    pub entrypoint: Option<bool>,
    /// `--container-writable-layer`.
    pub layer: Option<LayerSpec>,
    /// `--container-name`: the name, and what is there already.
    pub name: Option<(String, NameFlag)>,
    /// `--container-scope`.
    pub scope: Option<NameScope>,
    /// `--container-unshare`.
    pub unshare: Vec<Unshared>,
    /// `--container-save`, not yet absolute.
    pub save: Option<ByteStr>,
    /// `--no-container-login`.
    pub no_login: bool,
}

/// The options about devices as given, but for those of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// `--cpus-per-gpu`.
    pub cpus_per_gpu: Option<u32>,
    /// `--mem-per-gpu`, in MiB.
    pub mem_per_gpu: Option<u64>,
    /// `--gpus-per-socket`.
    pub gpus_per_socket: Option<Wanted>,
    /// `--gpus-per-task`.
    pub gpus_per_task: Option<Wanted>,
    /// `--ntasks-per-gpu`.
    pub tasks_per_gpu: Option<u32>,
    /// `--tres-per-task`: its CPUs.
    pub cpus_by_tres: Option<u32>,
    /// `--tres-per-task`: its devices.
    pub tres_per_task: Wanted,
    /// `--gpu-bind`, `--tres-bind`.
    pub bind: Option<GpuBind>,
    /// `--gres-flags`.
    pub nearness: Nearness,
}

/// All submit options, typed. Members are `None`, empty or `false` where nothing was given.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // a member has the name of its option, whose help stands in the table
pub struct SubmitOptions {
    pub command: Command,
    pub account: Option<String>,
    pub array: Option<ArraySpec>,
    pub begin: Option<Time>,
    /// `--bell` and `--no-bell`.
    pub bell: Option<bool>,
    /// `--bcast`: the name of the copy; empty where none was given.
    pub bcast: Option<ByteStr>,
    pub chdir: Option<ByteStr>,
    pub comment: Option<String>,
    pub container: ContainerOptions,
    pub cpu_bind: Option<crate::bind::CpuBind>,
    pub cpus_per_task: Option<u32>,
    pub devices: DeviceOptions,
    pub disable_status: bool,
    pub distribution: Option<Distribution>,
    /// How tasks are laid out over the sockets of a node.
    pub sockets: Option<crate::bind::plan::Sockets>,
    pub error: Option<ByteStr>,
    pub exact: bool,
    pub exclude: Vec<NodeName>,
    /// A file name given to `--exclude`: read as that of `--nodelist` is.
    pub exclude_file: Option<ByteStr>,
    pub exclusive: bool,
    pub explain: Option<Explain>,
    pub export: ExportSpec,
    pub get_user_env: bool,
    pub gpus: Option<Wanted>,
    pub gpus_per_node: Option<Wanted>,
    pub gres: Option<Wanted>,
    pub hold: bool,
    pub ignore_pbs: bool,
    pub immediate: Option<Span>,
    pub input: Option<ByteStr>,
    pub job_name: Option<String>,
    pub jobid: Option<JobSelector>,
    /// `--kill-command`: what the command gets when the allocation is gone.
    pub kill_command: Option<i32>,
    pub kill_on_bad_exit: bool,
    pub label: bool,
    pub lost_after: Option<Span>,
    pub mem: Option<u64>,
    pub mem_bind: Option<crate::bind::MemBind>,
    pub mem_per_cpu: Option<u64>,
    pub mpi: Option<crate::mpi::MpiType>,
    /// `--mpi=list`.
    pub mpi_list: bool,
    pub multi_prog: bool,
    pub nice: i32,
    pub no_shell: bool,
    /// `--nodefile`, or a file name given to `--nodelist`: whoever resolves the options reads it.
    pub nodefile: Option<ByteStr>,
    /// `--nodelist`, each node once.
    pub nodelist: Vec<NodeName>,
    /// The same as it was written: for `--distribution=arbitrary`.
    pub node_order: Vec<NodeName>,
    pub nodes: Option<NodeCount>,
    pub ntasks: Option<u32>,
    pub ntasks_per_node: Option<u32>,
    pub open_mode: Option<OpenMode>,
    pub output: Option<ByteStr>,
    pub overcommit: bool,
    /// `--fabric`.
    pub fabric: Option<crate::fabric::FabricChoice>,
    pub overlap: bool,
    pub parsable: bool,
    pub partition: Option<String>,
    pub propagate: Propagate,
    pub pty: bool,
    /// `--pty=FD`: the descriptor of the terminal to use.
    pub pty_from: Option<u32>,
    /// `--het-group`: components that the step is in; empty where nobody said.
    pub het_group: Vec<u32>,
    pub pytorch: bool,
    /// `--x11`.
    pub x11: Option<crate::x11::X11Nodes>,
    pub quiet: bool,
    pub quit_on_interrupt: bool,
    pub relative: Option<u32>,
    pub requeue: Option<bool>,
    pub signal: Option<WarnSignal>,
    /// `srun --prolog`: `none`, or a program in the place of the site's.
    pub prolog: Option<ByteStr>,
    /// `srun --epilog`.
    pub epilog: Option<ByteStr>,
    /// `--task-prolog`; empty means none.
    pub task_prolog: ByteStr,
    /// `--task-epilog`.
    pub task_epilog: ByteStr,
    pub test_only: bool,
    pub time: Option<TimeLimit>,
    pub unbuffered: bool,
    pub verbose: u32,
    /// `sbatch --wait`.
    pub wait: bool,
    /// `srun --wait`: 0 seconds wait for ever.
    pub wait_seconds: Option<u32>,
    pub wrap: Option<ByteStr>,
    pub(super) sources: BTreeMap<&'static str, Source>,
}

impl SubmitOptions {
    /// The options of `command` with nothing given.
    pub fn new(command: Command) -> SubmitOptions {
        SubmitOptions {
            command,
            account: None,
            array: None,
            begin: None,
            bell: None,
            bcast: None,
            chdir: None,
            comment: None,
            container: ContainerOptions::default(),
            cpu_bind: None,
            cpus_per_task: None,
            devices: DeviceOptions::default(),
            disable_status: false,
            distribution: None,
            sockets: None,
            error: None,
            exact: false,
            exclude: Vec::new(),
            exclude_file: None,
            exclusive: false,
            explain: None,
            export: ExportSpec::default(),
            get_user_env: false,
            gpus: None,
            gpus_per_node: None,
            gres: None,
            hold: false,
            ignore_pbs: false,
            immediate: None,
            input: None,
            job_name: None,
            jobid: None,
            kill_command: None,
            kill_on_bad_exit: false,
            label: false,
            lost_after: None,
            mem: None,
            mem_bind: None,
            mem_per_cpu: None,
            mpi: None,
            mpi_list: false,
            multi_prog: false,
            nice: 0,
            no_shell: false,
            nodefile: None,
            nodelist: Vec::new(),
            node_order: Vec::new(),
            nodes: None,
            ntasks: None,
            ntasks_per_node: None,
            open_mode: None,
            output: None,
            overcommit: false,
            fabric: None,
            overlap: false,
            parsable: false,
            partition: None,
            propagate: Propagate::Inherit,
            pty: false,
            pty_from: None,
            het_group: Vec::new(),
            pytorch: false,
            x11: None,
            quiet: false,
            quit_on_interrupt: false,
            relative: None,
            requeue: None,
            signal: None,
            prolog: None,
            epilog: None,
            task_prolog: ByteStr::default(),
            task_epilog: ByteStr::default(),
            test_only: false,
            time: None,
            unbuffered: false,
            verbose: 0,
            wait: false,
            wait_seconds: None,
            wrap: None,
            sources: BTreeMap::new(),
        }
    }

    /// Where the value of an option (by its long name) came from, if it was given at all.
    pub fn source(&self, long: &str) -> Option<Source> {
        self.sources.get(long).copied()
    }

    /// Takes `--nodelist` as it was written.
    pub fn name_nodes(&mut self, nodes: Vec<NodeName>) {
        let mut seen = std::collections::BTreeSet::new();
        self.nodelist = nodes.iter().filter(|name| seen.insert((*name).clone())).cloned().collect();
        self.node_order = nodes;
    }

    /// Takes `--exclude`, in the place of what it was before.
    pub fn leave_out(&mut self, mut nodes: Vec<NodeName>) {
        nodes.sort();
        nodes.dedup();
        self.exclude = nodes;
        self.exclude_file = None;
    }

    /// Whether an option was given on the command line.
    pub fn typed(&self, long: &str) -> bool {
        self.source(long) == Some(Source::CommandLine)
    }
}
