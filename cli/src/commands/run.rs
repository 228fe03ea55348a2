//! `berth run` and `berth shell`: a command or a shell in an image, without a cluster.

use crate::local::{self, Container, Entry, Pull, RootInside, Tty};
use berth_client::error::{Failure, Outcome};
use berth_model::ByteStr;
use berth_model::options::Explain;
use berth_model::spec::{LayerKind, MountSpec};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Run a command in an image, without a cluster
///
/// The image is fetched into the caller's own store when it is not there yet. Without a command, the image's own runs.
/// The exit code is the command's, 128 and the signal's number when a signal ended it. Nothing of the container stays.
#[derive(Debug, Default, clap::Args)]
#[command(override_usage = "berth run [OPTIONS] IMAGE [COMMAND] [ARG]...")]
pub struct Args {
    #[command(flatten)]
    shared: Shared,
    /// Run the image's entrypoint before the command
    #[arg(long)]
    container_entrypoint: bool,
    /// Run this program in place of the image's entrypoint
    #[arg(long, value_name = "PROGRAM", conflicts_with = "container_entrypoint")]
    entrypoint: Option<OsString>,
    /// Image, such as debian:12, ghcr.io/team/app:1, a path, or host:; then command and arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "IMAGE")]
    words: Vec<OsString>,
}

/// Open a shell in an image, without a cluster
///
/// It is the image's bash where there is one, else its sh. Options are those of 'berth run'.
#[derive(Debug, clap::Args)]
pub struct Shell {
    #[command(flatten)]
    shared: Shared,
    /// The shell, as a path in the image
    #[arg(short, long, value_name = "PATH")]
    shell: Option<OsString>,
    /// Image, such as debian:12, ghcr.io/team/app:1, or a path
    image: String,
}

/// What both take.
#[derive(Debug, Default, clap::Args)]
struct Shared {
    /// Mounts: SRC:DST[:FLAGS],...; also of docker's form, once for each
    #[arg(short = 'v', long, visible_aliases = ["mounts", "volume", "bind"], value_name = "LIST")]
    container_mounts: Vec<OsString>,
    /// Working directory in the container
    #[arg(short = 'w', long, visible_alias = "workdir", value_name = "DIR")]
    container_workdir: Option<OsString>,
    /// Mount the home directory
    #[arg(long)]
    container_mount_home: bool,
    /// Appear as root inside
    #[arg(long)]
    container_remap_root: bool,
    /// Be root inside with 65536 ids that are real there, of your ranges in /etc/subuid and /etc/subgid
    #[arg(long, visible_alias = "subids")]
    container_subids: bool,
    /// Let the container write to its root; what it writes is gone afterwards
    #[arg(long, conflicts_with = "container_readonly")]
    container_writable: bool,
    /// Make the container's root read-only
    #[arg(long, visible_alias = "read-only")]
    container_readonly: bool,
    /// Bound what may be written to the root: tmpfs:SIZE, in MiB or with K, M, G or T
    #[arg(long, value_name = "tmpfs[:SIZE]", conflicts_with = "container_readonly")]
    container_writable_layer: Option<String>,
    /// Variables whose value outside wins over the image's
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    container_env: Vec<String>,
    /// Set a variable, over all others; without a value, the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Set the variables of a file with NAME=VALUE lines
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// A host name of its own
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Size of /dev/shm, such as 2g [default: half of the memory]
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// Show a device file in the container, under its own path, or a device by the name that a CDI file of the administrator gives it, such
    /// as vendor.com/class=name
    #[arg(long, value_name = "PATH")]
    device: Vec<OsString>,
    /// Show the GPUs of the job in which this runs; outside of jobs those of a machine whose GPUs no cluster gives to jobs
    #[arg(long)]
    gpus: bool,
    /// Name in the list of running containers
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Remove the container when it ends: it always is
    #[arg(long)]
    rm: bool,
    /// Pass standard input on, also where there is no terminal: it always is
    #[arg(short, long)]
    interactive: bool,
    /// Look whether the registry has a newer image of that name
    #[arg(long)]
    pull: bool,
    /// Speak HTTP to the registry, without TLS. A certificate of your site's own needs its authority in place of this, in
    /// ~/.config/containers/certs.d/HOST:PORT/ca.crt
    #[arg(long)]
    insecure: bool,
    /// A terminal of its own even where standard input or output is none
    #[arg(short = 't', long, visible_alias = "tty")]
    pty: bool,
    /// Say nothing of fetching, and no notes
    #[arg(short, long)]
    quiet: bool,
    /// Print what would be done, and do nothing: as text, or as JSON
    #[arg(long, value_name = "text|json", num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    explain: Option<Format>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Args {
    /// Of words without any option before the image, which need no definition of the options to be understood: to build it
    /// is a tenth of a container's start. `None`: there are options, or nothing.
    pub fn plain(words: &[OsString]) -> Option<Args> {
        let image = words.first()?;
        let plain = !image.is_empty() && !image.as_bytes().starts_with(b"-");
        plain.then(|| Args { words: words.to_vec(), ..Args::default() })
    }
}

pub fn run(args: Args, state: Option<&Path>) -> Outcome {
    let (image, command) = image_and_command(args.words)?;
    let mut container = args.shared.container(image, state)?;
    container.entry = match (args.entrypoint, args.container_entrypoint) {
        (Some(program), _) => Entry::Own(program),
        (None, true) => Entry::Image,
        (None, false) => Entry::Command,
    };
    container.command = command;
    local::run(container)
}

/// The first word and the others: what stands behind the image is the command's, options included.
pub fn image_and_command(words: Vec<OsString>) -> Result<(String, Vec<OsString>), Failure> {
    let mut words = words.into_iter();
    let image = words.next().unwrap_or_default().into_string().map_err(|i| {
        Failure::user(format!(
            "'{}' is no image's name: it is not UTF-8 text; make a link to the file with a name that is",
            i.to_string_lossy()
        ))
    })?;
    Ok((image, words.collect()))
}

pub fn shell(args: Shell, state: Option<&Path>) -> Outcome {
    let mut container = args.shared.container(args.image, state)?;
    container.command = shell_command(args.shell);
    local::run(container)
}

/// The command of a shell: the one that was named, else bash where the image has it, else sh.
pub fn shell_command(named: Option<OsString>) -> Vec<OsString> {
    match named {
        Some(path) => vec![path],
        // Only the image's own shell can look for the better one.
        None => ["/bin/sh", "-c", "if command -v bash >/dev/null 2>&1; then exec bash; else exec sh; fi"]
            .map(OsString::from)
            .to_vec(),
    }
}

impl Shared {
    fn container(self, image: String, state: Option<&Path>) -> Result<Container, Failure> {
        let mut env = Vec::new();
        for file in &self.env_file {
            env.extend(local::variables_of("--env-file", file)?);
        }
        for text in &self.env {
            env.extend(local::variable("--env", text)?);
        }
        let mut devices = Vec::new();
        for path in &self.device {
            devices.push(device("--device", path)?);
        }
        if self.gpus {
            let (files, names) = own_gpus("--gpus", state)?;
            devices.extend(files);
            env.extend(names);
        }
        let mut mounts: Vec<MountSpec> = Vec::new();
        for list in &self.container_mounts {
            mounts.extend(
                berth_model::options::parse_mounts(list.as_bytes())
                    .map_err(|e| Failure::user(e.to_string()))?,
            );
        }
        Ok(Container {
            door: "berth",
            state: state.map(Path::to_path_buf),
            image,
            insecure: self.insecure,
            pull: if self.pull { Pull::Always } else { Pull::Missing },
            quiet: self.quiet,
            notes: true,
            env,
            env_names: self.container_env,
            mounts,
            workdir: self.container_workdir.map(|d| (d, "--container-workdir")),
            mount_home: self.container_mount_home,
            root: if self.container_remap_root { RootInside::Yes } else { RootInside::No },
            subids: self.container_subids,
            writable: match (self.container_writable, self.container_readonly) {
                (true, _) => Some(true),
                (_, true) => Some(false),
                _ => None,
            },
            writable_size: self.container_writable_layer.as_deref().map(layer).transpose()?.flatten(),
            tty: if self.pty { Tty::Yes } else { Tty::Auto },
            input: true,
            shm_size: self.shm_size.as_deref().map(|s| local::size("--shm-size", s)).transpose()?,
            hostname: self.hostname,
            devices,
            name: self.name,
            explain: self.explain.map(|f| match f {
                Format::Text => Explain::Text,
                Format::Json => Explain::Json,
            }),
            ..Container::default()
        })
    }
}

/// `--container-writable-layer`: the size in bytes.
fn layer(text: &str) -> Result<Option<u64>, Failure> {
    let refused = |why: &str| Failure::user(format!("--container-writable-layer: '{text}': {why}"));
    let layer = berth_model::options::parse_layer(text).map_err(|why| refused(&why))?;
    if layer.kind == LayerKind::Disk {
        return Err(refused("berth run keeps what is written in memory: write tmpfs or tmpfs:SIZE"));
    }
    Ok(layer.size.map(|mib| mib << 20))
}

/// A device file that exists.
pub fn device(option: &str, path: &OsStr) -> Result<ByteStr, Failure> {
    use std::os::unix::fs::FileTypeExt;
    if path.to_str().is_some_and(local::cdi::is_name) {
        return Ok(ByteStr::from(path));
    }
    let shown = Path::new(path).display();
    match std::fs::metadata(path) {
        Ok(meta) if meta.file_type().is_char_device() || meta.file_type().is_block_device() => {
            Ok(ByteStr::from(path))
        }
        Ok(_) => Err(Failure::user(format!("{option}: {shown} is no device file: mount it instead"))),
        Err(e) => Err(Failure::user(format!("{option}: {shown}: {}", berth_client::error::io_text(&e)))),
    }
}

/// All GPUs of the job, or of a machine that belongs to no cluster; or why there are none.
pub fn own_gpus(option: &str, state: Option<&Path>) -> Result<local::allocation::Given, Failure> {
    match local::allocation::gpus(state)? {
        local::allocation::Gpus::Outside(dir) => Err(Failure::user(format!(
            "{option}: outside of a job no GPU is given, because the node agent of {} gives this machine's GPUs to jobs: run it in one, by \
             'srun --gres=gpu:1 …' or in a batch script",
            dir.display()
        ))),
        local::allocation::Gpus::Machine(Err(why)) => {
            Err(Failure::user(format!("{option}: {why}; 'berth doctor' says more")))
        }
        local::allocation::Gpus::Machine(Ok(gpus)) => Ok(local::allocation::given(&gpus)),
        local::allocation::Gpus::Job(gpus) if gpus.is_empty() => Err(Failure::user(format!(
            "{option}: this job has no GPU: ask for one with --gres=gpu:1 when you submit it"
        ))),
        local::allocation::Gpus::Job(gpus) => Ok(local::allocation::given(&gpus)),
    }
}
