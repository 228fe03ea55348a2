//! The words of the command line, with their help.

use crate::engine;
use clap::{Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// Run containers from OCI bundles: the command line of OCI runtimes, as podman calls it
///
/// The program also behaves so when it is called by the name berth-oci.
#[derive(Debug, clap::Args)]
#[command(disable_version_flag = true)]
pub struct Args {
    /// Directory for the state of containers [default: /run/berth-oci for root, else berth-oci in XDG_RUNTIME_DIR]
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// File for errors and warnings, beside standard error
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// How they are written there
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,
    /// Also write what is made, for looking into a failure
    #[arg(long)]
    pub(crate) debug: bool,
    /// create and run have systemd make the control group: linux.cgroupsPath is slice:prefix:name
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    #[cfg_attr(
        feature = "libcontainer",
        doc = "Which engine makes the containers; each needs a --root of its own"
    )]
    #[cfg_attr(
        not(feature = "libcontainer"),
        doc = "Refused: this program was built with Berth's own engine alone"
    )]
    #[arg(long, value_enum, value_name = "ENGINE")]
    pub(crate) engine: Option<engine::Choice>,
    /// Print name and version
    #[arg(long, short = 'v')]
    pub(crate) version: bool,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// What is done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a container, which then waits for start
    Create(Create),
    /// Start the program of a created container
    Start { id: String },
    /// Create a container, start it, and wait for its end
    Run {
        #[command(flatten)]
        create: Create,
        /// Do not wait
        #[arg(long, short)]
        detach: bool,
        /// Do not delete the container when it has ended
        #[arg(long)]
        keep: bool,
    },
    /// Print the state of a container as JSON
    State { id: String },
    /// Send a signal to a container's first process
    Kill {
        /// To all its processes
        #[arg(long, short)]
        all: bool,
        id: String,
        /// Name or number
        #[arg(default_value = "TERM", allow_hyphen_values = true)]
        signal: String,
    },
    /// Delete a stopped container
    Delete {
        /// Kill it first; it is no error when there is none
        #[arg(long, short)]
        force: bool,
        id: String,
    },
    /// Run another process in a container
    Exec(Exec),
    /// List the processes of a container
    Ps {
        /// table or json
        #[arg(long, short, value_enum, default_value = "table")]
        format: PsFormat,
        id: String,
        /// Options of ps(1) for the table
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
    /// Freeze all processes of a container
    Pause { id: String },
    /// Let them go on
    Resume { id: String },
    /// Change the limits of a container
    Update(Box<Update>),
    /// Print what a container uses, and when its memory ran out
    Events {
        /// Once
        #[arg(long)]
        stats: bool,
        /// How often, such as 5s or 500ms
        #[arg(long, default_value = "5s", value_name = "TIME")]
        interval: String,
        id: String,
    },
    /// Print what this runtime can do, as JSON
    Features,
    /// Write a config.json to start from
    Spec {
        /// Directory of the bundle
        #[arg(long, short, default_value = ".", value_name = "DIR")]
        bundle: PathBuf,
        /// For an ordinary user, with the own ids as root
        #[arg(long)]
        rootless: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PsFormat {
    Table,
    Json,
}

/// What a process gets from the caller, and tells.
#[derive(Debug, clap::Args)]
pub(crate) struct Handed {
    /// Socket that the terminal's outer end is sent to
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// File for the pid of the process
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Give the program those of the N descriptors from 3 on that are open
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) preserve_fds: u32,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Directory with config.json
    #[arg(long, short, default_value = ".", value_name = "DIR")]
    pub(crate) bundle: PathBuf,
    #[command(flatten)]
    pub(crate) handed: Handed,
    /// Keep the caller's session keyring
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// Cover the node's root with the container's instead of taking it away: for a root that cannot be left
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Name of the container
    pub(crate) id: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Exec {
    /// File with the process, as config.json has it
    #[arg(long, short, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,
    /// Set a variable
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,
    /// User
    #[arg(long, short, value_name = "UID[:GID]")]
    pub(crate) user: Option<String>,
    /// Further group
    #[arg(long, short = 'g', value_name = "GID")]
    pub(crate) additional_gids: Vec<u32>,
    /// Further capability
    #[arg(long, short, value_name = "CAP")]
    pub(crate) cap: Vec<String>,
    /// Give it a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// Let it gain nothing by a program file
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// Do not wait
    #[arg(long, short)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) handed: Handed,
    /// Also into a paused container; the process runs when that is resumed
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    /// Put it into a control group below the container's
    #[arg(long, value_name = "[CONTROLLER,...:]PATH")]
    pub(crate) cgroup: Vec<String>,
    /// Name of the container
    pub(crate) id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Update {
    /// File with linux.resources as JSON; - is standard input
    #[arg(long, short, value_name = "FILE")]
    pub(crate) resources: Option<PathBuf>,
    /// Memory limit in bytes; -1 is none
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory: Option<i64>,
    /// Memory that is kept free of reclaim, in bytes
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<i64>,
    /// Memory and swap together, in bytes; -1 is no limit
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<i64>,
    /// Length of a CPU period in microseconds
    #[arg(long)]
    pub(crate) cpu_period: Option<u64>,
    /// CPU time in each period in microseconds; -1 is no limit
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// CPU time that can be saved up, in microseconds
    #[arg(long)]
    pub(crate) cpu_burst: Option<u64>,
    /// Relative weight of CPU time
    #[arg(long, visible_alias = "cpu-shares")]
    pub(crate) cpu_share: Option<u64>,
    /// 1: only CPU time that nobody else wants
    #[arg(long)]
    pub(crate) cpu_idle: Option<i64>,
    /// CPUs, such as 0-2,5
    #[arg(long)]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes
    #[arg(long)]
    pub(crate) cpuset_mems: Option<String>,
    /// Processes; -1 is no limit
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
    /// Relative weight of block I/O
    #[arg(long)]
    pub(crate) blkio_weight: Option<u16>,
    /// Name of the container
    pub(crate) id: String,
}
