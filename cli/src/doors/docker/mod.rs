//! `docker run`, `pull`, `images`, `rmi`, `ps`, `login`, `push`, `save` and `system prune` over Berth's engine and image store.

mod moved;
mod start;
mod store;

use super::Door;
use super::refused::DOCKER;
use berth_client::error::{Failure, Outcome};
use berth_client::out;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

pub const DOOR: Door = Door { name: "docker", definition: Docker::command, refused: DOCKER, run };

/// The docker commands that scripts use, without a daemon and without privilege, over Berth's own engine
///
/// Images lie in your own store, the one of 'berth image'. A container runs as you; where the image says root, it is
/// root inside and you outside. Inside a job it has the job's cores, memory and devices. The network is the node's.
#[derive(Debug, Parser)]
#[command(name = "docker", version, disable_help_subcommand = true, max_term_width = 100)]
struct Docker {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    Run(Box<Run>),
    Exec(Exec),
    Pull(PullArgs),
    Images(Images),
    Rmi(Rmi),
    Ps(Ps),
    Push(Push),
    Save(Save),
    History(History),
    Login(Login),
    /// Forget the login of a registry
    Logout {
        /// Registry [default: docker.io]
        server: Option<String>,
    },
    /// Look after images
    #[command(subcommand)]
    Image(ImageCmd),
    /// Look after containers
    #[command(subcommand)]
    Container(ContainerCmd),
    /// Look after the store
    #[command(subcommand)]
    System(System),
    /// Print the version
    Version,
}

#[derive(Debug, Subcommand)]
enum ImageCmd {
    Ls(Images),
    Pull(PullArgs),
    Push(Push),
    Save(Save),
    History(History),
    Rm(Rmi),
    Prune(Prune),
}

#[derive(Debug, Subcommand)]
enum ContainerCmd {
    Ls(Ps),
    Run(Box<Run>),
}

#[derive(Debug, Subcommand)]
enum System {
    Prune(Prune),
    /// Show what the store takes on disk
    Df,
}

/// Run a command in a new container, which is removed when it ends
#[derive(Debug, Args)]
#[command(override_usage = "docker run [OPTIONS] IMAGE [COMMAND] [ARG...]", disable_help_flag = true)]
struct Run {
    /// Set a variable; without a value, the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Set the variables of a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Mount a directory or file: SRC:DST[:ro|rw]; a source that does not exist is an error
    #[arg(short, long, value_name = "SRC:DST[:FLAGS]")]
    volume: Vec<OsString>,
    /// Mount: type=bind,src=SRC,dst=DST[,readonly] or type=tmpfs,dst=DST[,tmpfs-size=N]
    #[arg(long, value_name = "FIELDS")]
    mount: Vec<String>,
    /// An empty directory in memory: DST[:size=N,mode=N]
    #[arg(long, value_name = "DST")]
    tmpfs: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<OsString>,
    /// Who runs inside: your own uid[:gid], or 0 for root mapped to you
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Remove the container when it ends: it always is
    #[arg(long)]
    rm: bool,
    /// Reap processes that lost their parent: it always is done
    #[arg(long)]
    init: bool,
    /// Make the root directory read-only
    #[arg(long)]
    read_only: bool,
    /// Program in place of the image's entrypoint; empty for none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<OsString>,
    /// GPUs of the job: all, a number, or device=0,1 of those that the job has
    #[arg(long, value_name = "WHICH")]
    gpus: Option<String>,
    /// Show a device file, under its own path, or a device by its name in /etc/cdi, such as vendor.com/class=name
    #[arg(long, value_name = "PATH")]
    device: Vec<String>,
    /// Size of /dev/shm, such as 2g [default: half of the memory]
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// Limit: NAME=SOFT[:HARD], such as memlock=-1 or nofile=4096
    #[arg(long, value_name = "LIMIT")]
    ulimit: Vec<String>,
    /// host, which is the only network
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    network: Option<String>,
    /// A port that the container listens on; it is the node's, so both numbers must be the same
    #[arg(short, long, value_name = "PORT:PORT")]
    publish: Vec<String>,
    /// host, private or shareable: /dev/shm is never cut to docker's 64 MiB
    #[arg(long, value_name = "MODE")]
    ipc: Option<String>,
    /// Host name
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// Name in 'docker ps'
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// always, missing or never
    #[arg(long, value_name = "WHEN", num_args = 0..=1, default_missing_value = "always")]
    pull: Option<String>,
    /// linux/ and this machine's architecture
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// nvidia is as --gpus all; runc is as nothing
    #[arg(long, value_name = "RUNTIME")]
    runtime: Option<String>,
    /// no-new-privileges, which always holds
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Say nothing of fetching
    #[arg(short, long)]
    quiet: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Image, command and arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "IMAGE")]
    words: Vec<OsString>,
}

/// Run a command in a running container of this machine
#[derive(Debug, Args)]
#[command(override_usage = "docker exec [OPTIONS] CONTAINER COMMAND [ARG...]")]
struct Exec {
    /// Set a variable; without a value, the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<OsString>,
    /// Pass standard input on: it always is
    #[arg(short, long)]
    interactive: bool,
    /// A terminal of its own
    #[arg(short, long)]
    tty: bool,
    /// Container, command and arguments
    #[arg(trailing_var_arg = true, required = true, num_args = 2.., value_name = "CONTAINER")]
    words: Vec<OsString>,
}

/// Fetch an image into your store
#[derive(Debug, Args)]
struct PullArgs {
    /// Print the image's name alone
    #[arg(short, long)]
    quiet: bool,
    /// linux/ and this machine's architecture
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Image
    image: String,
}

/// List the images of your store
#[derive(Debug, Args)]
struct Images {
    /// Digests alone
    #[arg(short, long)]
    quiet: bool,
    /// All: there are no hidden ones
    #[arg(short, long)]
    all: bool,
    /// Whole digests
    #[arg(long)]
    no_trunc: bool,
    /// A column of digests
    #[arg(long)]
    digests: bool,
    /// json, or a template of {{.Repository}}, {{.Tag}}, {{.ID}}, {{.Digest}}, {{.Size}} and {{.CreatedSince}}
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Only images of this repository, or repository:tag
    repository: Option<String>,
}

/// Remove images from your store
#[derive(Debug, Args)]
struct Rmi {
    /// Images that are not there are no error; one in use stays
    #[arg(short, long)]
    force: bool,
    /// Names or digests
    #[arg(required = true)]
    images: Vec<String>,
}

/// Push an image of your store to the registry that its name has
#[derive(Debug, Args)]
struct Push {
    /// Print the digest alone
    #[arg(short, long)]
    quiet: bool,
    /// Image, as REGISTRY/NAME:TAG
    image: String,
}

/// Write an image of your store to a tar file, which is a docker-archive and an OCI layout at once
#[derive(Debug, Args)]
struct Save {
    /// File to write
    #[arg(short, long, value_name = "FILE", required = true)]
    output: PathBuf,
    /// Image
    image: String,
}

/// Show in which steps an image of your store was made, the last first
#[derive(Debug, Args)]
struct History {
    /// Digests alone
    #[arg(short, long)]
    quiet: bool,
    /// Whole commands
    #[arg(long)]
    no_trunc: bool,
    /// json, or a template of {{.ID}}, {{.CreatedAt}}, {{.CreatedBy}}, {{.Size}} and {{.Comment}}
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Image
    image: String,
}

/// Log in to a registry
#[derive(Debug, Args)]
struct Login {
    /// Who logs in
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// Read the password, or a token, from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Registry [default: docker.io]
    server: Option<String>,
}

/// List your running containers: those of this machine, and the steps of your jobs
#[derive(Debug, Args)]
struct Ps {
    /// Names alone
    #[arg(short, long)]
    quiet: bool,
    /// Whole commands
    #[arg(long)]
    no_trunc: bool,
    /// json, or a template of {{.ID}}, {{.Image}}, {{.Command}}, {{.Status}} and {{.Names}}
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
}

/// Remove what no name needs
#[derive(Debug, Args)]
struct Prune {
    /// All images that are not in use
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

fn run(_: &'static str, matches: &ArgMatches) -> Outcome {
    let docker = Docker::from_arg_matches(matches).map_err(|e| Failure::usage(e.to_string()))?;
    match docker.command {
        Cmd::Run(args) | Cmd::Container(ContainerCmd::Run(args)) => start::run(*args),
        Cmd::Exec(args) => start::exec(args),
        Cmd::Pull(args) | Cmd::Image(ImageCmd::Pull(args)) => store::pull(&args),
        Cmd::Images(args) | Cmd::Image(ImageCmd::Ls(args)) => store::list(&args),
        Cmd::Rmi(args) | Cmd::Image(ImageCmd::Rm(args)) => store::remove(&args),
        Cmd::Ps(args) | Cmd::Container(ContainerCmd::Ls(args)) => store::ps(&args),
        Cmd::System(System::Prune(args)) => {
            store::prune(&args, "all images without a name and all unused layers")
        }
        Cmd::Image(ImageCmd::Prune(args)) => store::prune(&args, "all images without a name"),
        Cmd::System(System::Df) => store::df(),
        Cmd::Push(args) | Cmd::Image(ImageCmd::Push(args)) => moved::push(args),
        Cmd::Save(args) | Cmd::Image(ImageCmd::Save(args)) => moved::save(&args),
        Cmd::History(args) | Cmd::Image(ImageCmd::History(args)) => moved::history(&args),
        Cmd::Login(args) => store::log_in(&args),
        Cmd::Logout { server } => store::log_out(server.as_deref()),
        Cmd::Version => {
            out::print(&format!("docker front door of berth {}\n", berth_client::VERSION)).map(|()| 0)
        }
    }
}
