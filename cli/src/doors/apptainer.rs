//! `apptainer` and `singularity`: `exec`, `run`, `shell`, `pull`, `inspect` and `registry` over Berth's engine.

use super::refused::APPTAINER;
use super::{Door, refusal};
use crate::commands::run::{image_and_command, shell_command};
use crate::images::{self, Bar};
use crate::local::allocation::{Gpus, given, gpus};
use crate::local::{self, Container, Entry, Inherit, RootInside};
use crate::logins;
use berth_client::error::{Failure, Outcome};
use berth_client::out;
use berth_images::{Resolved, describe, save_archive};
use berth_model::ByteStr;
use berth_model::spec::MountSpec;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

pub const DOOR: Door = Door { name: "apptainer", definition: Apptainer::command, refused: APPTAINER, run };
pub const SINGULARITY: Door = Door {
    name: "singularity",
    definition: || Apptainer::command().name("singularity"),
    refused: APPTAINER,
    run,
};

/// The apptainer commands that scripts use, over Berth's own engine: no setuid program, no image to convert
///
/// An image is docker://NAME, a SIF or squashfs file, an OCI layout or archive, what 'docker save' wrote, a root directory, or
/// what 'pull' wrote. A container runs as you, with your home, working directory, /tmp and environment, read-only unless
/// --writable-tmpfs. Inside a job it has the job's cores, memory and devices.
#[derive(Debug, Parser)]
#[command(name = "apptainer", version, disable_help_subcommand = true, max_term_width = 100)]
struct Apptainer {
    /// Say nothing of fetching
    #[arg(short, long)]
    quiet: bool,
    /// As --quiet
    #[arg(short, long)]
    silent: bool,
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    Exec(Exec),
    Run(RunArgs),
    Shell(Shell),
    Pull(Pull),
    Inspect(Inspect),
    /// Look after logins
    #[command(subcommand)]
    Registry(Registry),
    /// Print the version
    Version,
}

/// Run a command in an image
#[derive(Debug, Args)]
#[command(override_usage = "apptainer exec [OPTIONS] IMAGE COMMAND [ARG]...")]
struct Exec {
    #[command(flatten)]
    shared: Shared,
    /// Image, command and arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "IMAGE")]
    words: Vec<OsString>,
}

/// Run what the image itself runs, with arguments
#[derive(Debug, Args)]
#[command(override_usage = "apptainer run [OPTIONS] IMAGE [ARG]...")]
struct RunArgs {
    #[command(flatten)]
    shared: Shared,
    /// Image and arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "IMAGE")]
    words: Vec<OsString>,
}

/// Open a shell in an image: its bash where there is one, else its sh
#[derive(Debug, Args)]
struct Shell {
    #[command(flatten)]
    shared: Shared,
    /// The shell, as a path in the image
    #[arg(short, long, value_name = "PATH")]
    shell: Option<OsString>,
    /// Image
    image: String,
}

/// What exec, run and shell take.
#[derive(Debug, Args)]
struct Shared {
    /// Mounts: SRC[:DST[:ro|rw]],...; APPTAINER_BIND and SINGULARITY_BIND add to them
    #[arg(short = 'B', long, value_name = "LIST", value_delimiter = ',')]
    bind: Vec<OsString>,
    /// Mount: type=bind,src=SRC,dst=DST[,ro]
    #[arg(long, value_name = "FIELDS")]
    mount: Vec<String>,
    /// Variables: NAME=VALUE,...; APPTAINERENV_NAME and SINGULARITYENV_NAME set NAME, too
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    env: Vec<OsString>,
    /// Set the variables of a file
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Take none of your environment but the job's own variables
    #[arg(short = 'e', long)]
    cleanenv: bool,
    /// Mount neither home nor /tmp nor the working directory
    #[arg(short, long)]
    contain: bool,
    /// As --contain and --cleanenv
    #[arg(short = 'C', long)]
    containall: bool,
    /// As --containall and --writable-tmpfs
    #[arg(long)]
    compat: bool,
    /// Another home directory: SRC[:DST]
    #[arg(short = 'H', long, value_name = "SRC[:DST]")]
    home: Option<OsString>,
    /// Do not mount the home directory
    #[arg(long)]
    no_home: bool,
    /// Do not mount these: home, tmp, cwd
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    no_mount: Vec<String>,
    /// Working directory in the container
    #[arg(long, visible_alias = "cwd", value_name = "DIR")]
    pwd: Option<OsString>,
    /// Empty directories in memory
    #[arg(short = 'S', long, value_name = "LIST", value_delimiter = ',')]
    scratch: Vec<String>,
    /// Be root inside, with real ids where you have ranges in /etc/subuid and /etc/subgid
    #[arg(short, long)]
    fakeroot: bool,
    /// Write to a root directory in place
    #[arg(short, long)]
    writable: bool,
    /// Let the root be written; what is written is lost
    #[arg(long)]
    writable_tmpfs: bool,
    /// Show the NVIDIA devices that the job has; outside of a job there are none
    #[arg(long)]
    nv: bool,
    /// Show the AMD devices that the job has; outside of a job there are none
    #[arg(long)]
    rocm: bool,
    /// A host name of its own
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// A process namespace of its own: it always has one
    #[arg(short, long)]
    pid: bool,
    /// An IPC namespace of its own: it always has one
    #[arg(short, long)]
    ipc: bool,
    /// A user namespace: it always has one
    #[arg(short, long)]
    userns: bool,
    /// No privileges: it never has any
    #[arg(long)]
    no_privs: bool,
    /// Take values of variables as they are: they always are
    #[arg(long)]
    no_eval: bool,
    /// Speak to the registry without TLS
    #[arg(long, visible_alias = "nohttps")]
    no_https: bool,
}

/// Write an image into a file, as an OCI archive
#[derive(Debug, Args)]
#[command(override_usage = "apptainer pull [OPTIONS] [FILE] IMAGE")]
struct Pull {
    /// Replace a file that is there
    #[arg(short = 'F', long)]
    force: bool,
    /// Name of the file
    #[arg(long, value_name = "FILE")]
    name: Option<PathBuf>,
    /// Directory of the file
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep nothing in the store: nothing is kept there
    #[arg(long)]
    disable_cache: bool,
    /// Speak to the registry without TLS
    #[arg(long, visible_alias = "nohttps")]
    no_https: bool,
    /// File [default: NAME_TAG.sif] and image
    #[arg(required = true, num_args = 1..=2, value_name = "IMAGE")]
    words: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Registry {
    /// Log in to a registry
    Login {
        /// Who logs in
        #[arg(short, long, value_name = "NAME")]
        username: Option<String>,
        /// Read the password, or a token, from standard input
        #[arg(long)]
        password_stdin: bool,
        /// Registry, such as docker://ghcr.io
        uri: String,
    },
    /// Forget the login of a registry
    Logout {
        /// Registry
        uri: String,
    },
}

/// Show what an image says of itself: by default its labels
#[derive(Debug, Args)]
struct Inspect {
    /// Labels
    #[arg(short, long)]
    labels: bool,
    /// Environment
    #[arg(short, long)]
    environment: bool,
    /// What it runs
    #[arg(short, long)]
    runscript: bool,
    /// As JSON
    #[arg(short, long)]
    json: bool,
    /// Image
    image: String,
}

fn run(name: &'static str, matches: &ArgMatches) -> Outcome {
    let all = Apptainer::from_arg_matches(matches).map_err(|e| Failure::usage(e.to_string()))?;
    let quiet = all.quiet || all.silent;
    match all.command {
        Cmd::Exec(args) => {
            let (image, command) = image_and_command(args.words)?;
            if command.is_empty() {
                return Err(Failure::user(format!(
                    "exec: no command is given: write it behind the image, or use '{name} run {image}'"
                )));
            }
            let container = args.shared.container(name, &image, quiet)?;
            local::run(Container { command, ..container })
        }
        Cmd::Run(args) => {
            let (image, command) = image_and_command(args.words)?;
            let container = args.shared.container(name, &image, quiet)?;
            local::run(Container { command, entry: Entry::Image, ..container })
        }
        Cmd::Shell(args) => {
            let container = args.shared.container(name, &args.image, quiet)?;
            local::run(Container { command: shell_command(args.shell), ..container })
        }
        Cmd::Pull(args) => pull(name, &args, quiet),
        Cmd::Inspect(args) => inspect(&args),
        Cmd::Registry(Registry::Login { username, password_stdin, uri }) => {
            let username = username.as_deref();
            let asked = logins::Asked { registry: Some(&uri), username, password_stdin, insecure: false };
            logins::log_in(&asked, None)?;
            Ok(0)
        }
        Cmd::Registry(Registry::Logout { uri }) => {
            logins::log_out(&logins::target(Some(&uri))?).map_err(|e| images::failed(&e))?;
            Ok(0)
        }
        Cmd::Version => {
            out::print(&format!("{name} front door of berth {}\n", berth_client::VERSION)).map(|()| 0)
        }
    }
}

/// A word without a scheme is a path for apptainer, and a registry's image for everybody else.
fn reference(image: &str) -> Result<String, Failure> {
    if image.starts_with("instance://") {
        return Err(refusal(
            image,
            "instances are not kept: run the command with exec, or submit it with sbatch",
        ));
    }
    if let Some(path) = image.strip_prefix("sif:").filter(|_| !image.contains("://")) {
        return Ok(path.to_string());
    }
    let scheme = image.contains("://") || image.split_once(':').is_some_and(|(s, _)| SCHEMES.contains(&s));
    if scheme || image.starts_with(['/', '.', '~']) {
        return Ok(image.to_string());
    }
    Ok(format!("./{image}"))
}

const SCHEMES: &[&str] =
    &["oci", "oci-archive", "docker-archive", "docker-daemon", "containers-storage", "host"];

impl Shared {
    fn container(mut self, door: &'static str, image: &str, quiet: bool) -> Result<Container, Failure> {
        let image = reference(image)?;
        self.containall |= self.compat;
        self.writable_tmpfs |= self.compat;
        let contain = self.contain || self.containall;
        let cwd = std::env::current_dir()
            .map_err(|e| Failure::user(format!("the current directory cannot be read: {e}")))?;
        let mut without = [false; 3];
        for what in &self.no_mount {
            match what.as_str() {
                "home" => without[0] = true,
                "tmp" => without[1] = true,
                "cwd" => without[2] = true,
                other => {
                    return Err(refusal(
                        &format!("--no-mount {other}"),
                        "home, tmp and cwd can be left out; the rest is what every container has",
                    ));
                }
            }
        }
        let mut env = prefixed(std::env::vars_os());
        if let Some(file) = &self.env_file {
            env.extend(local::variables_of("--env-file", file)?);
        }
        for text in &self.env {
            env.extend(local::variable("--env", text)?);
        }
        let mut mounts = Vec::new();
        let home = PathBuf::from(berth_client::users::own_identity()?.home.as_os());
        let mount_home = !contain && !self.no_home && !without[0] && self.home.is_none();
        let mut shown: Vec<PathBuf> = Vec::new();
        if !contain && !without[1] {
            for dir in ["/tmp", "/var/tmp"] {
                mounts.push(local::bind("/tmp", OsStr::new(dir), OsStr::new(dir), Vec::new())?);
                shown.push(dir.into());
            }
        }
        if mount_home {
            shown.push(home);
        }
        let mut workdir = None;
        if !contain && !without[2] && is_data(&cwd) {
            if !shown.iter().any(|dir| cwd.starts_with(dir)) {
                mounts.push(local::bind(
                    "the working directory",
                    cwd.as_os_str(),
                    cwd.as_os_str(),
                    Vec::new(),
                )?);
            }
            workdir = Some((cwd.clone().into_os_string(), "the current directory"));
        }
        if let Some(text) = &self.home {
            let (source, target) = halves(text);
            mounts.push(local::bind("--home", source, target, Vec::new())?);
            env.push(("HOME".into(), target.to_os_string()));
        }
        for text in self.bind.iter().cloned().chain(from_environment()) {
            mounts.push(bind(&text)?);
        }
        for text in &self.mount {
            mounts.push(mount(text)?);
        }
        for dir in &self.scratch {
            mounts.push(MountSpec { source: "tmpfs".into(), target: dir.as_str().into(), flags: Vec::new() });
        }
        let devices = if self.nv || self.rocm { self.devices(door, &mut env)? } else { Vec::new() };
        let is_dir = Path::new(&image).is_dir() && !Path::new(&image).join("oci-layout").exists();
        if self.writable && !is_dir {
            return Err(refusal(
                "--writable",
                "an image is never changed: use --writable-tmpfs, or a root directory of yours",
            ));
        }
        Ok(Container {
            door,
            image,
            insecure: self.no_https,
            quiet,
            inherit: if self.cleanenv || self.containall { Inherit::Job } else { Inherit::All },
            env,
            mounts,
            workdir: self.pwd.map(|d| (d, "--pwd")).or(workdir),
            mount_home,
            root: if self.fakeroot { RootInside::Yes } else { RootInside::No },
            // As there: with ids of the user's ranges where there are some.
            subids: self.fakeroot && local::has_subids()?,
            writable: match (self.writable, self.writable_tmpfs) {
                (true, _) => Some(true),
                (_, true) => None,
                _ => Some(false),
            },
            input: true,
            hostname: self.hostname,
            ..Container { devices, ..Container::default() }
        })
    }

    /// `--nv`: what the job has. Without a GPU the real tool says so and goes on, too.
    fn devices(&self, door: &str, env: &mut Vec<(OsString, OsString)>) -> Result<Vec<ByteStr>, Failure> {
        let option = if self.nv { "--nv" } else { "--rocm" };
        let found = match gpus(None)? {
            Gpus::Outside(_) => {
                out::complain(&format!(
                    "{door}: note: {option}: outside of a job no GPU is given; run it with 'srun --gres=gpu:1 …'"
                ));
                return Ok(Vec::new());
            }
            Gpus::Machine(Err(why)) => {
                out::complain(&format!("{door}: note: {option}: {why}"));
                return Ok(Vec::new());
            }
            Gpus::Machine(Ok(found)) | Gpus::Job(found) => found,
        };
        if found.is_empty() {
            out::complain(&format!(
                "{door}: note: {option}: this job has no GPU; ask for one with --gres=gpu:1 when you submit it"
            ));
            return Ok(Vec::new());
        }
        let (files, names) = given(&found);
        env.splice(0..0, names);
        Ok(files)
    }
}

/// A directory of data, and not one that a container has its own of.
fn is_data(dir: &Path) -> bool {
    dir != Path::new("/") && !["/proc", "/sys", "/dev", "/run/berth"].iter().any(|own| dir.starts_with(own))
}

/// `APPTAINERENV_NAME=VALUE` sets NAME; the newer prefix wins.
fn prefixed(all: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let all: Vec<_> = all.collect();
    let mut found: Vec<(OsString, OsString)> = Vec::new();
    for prefix in ["SINGULARITYENV_", "APPTAINERENV_"] {
        for (name, value) in &all {
            if let Some(name) = name.as_bytes().strip_prefix(prefix.as_bytes()).filter(|n| !n.is_empty()) {
                found.retain(|(n, _)| n.as_bytes() != name);
                found.push((OsString::from_vec(name.to_vec()), value.clone()));
            }
        }
    }
    found
}

fn from_environment() -> Vec<OsString> {
    let names = ["APPTAINER_BIND", "APPTAINER_BINDPATH", "SINGULARITY_BIND", "SINGULARITY_BINDPATH"];
    let Some(list) = names.iter().find_map(|n| std::env::var_os(n).filter(|v| !v.is_empty())) else {
        return Vec::new();
    };
    let parts = list.as_bytes().split(|b| *b == b',').filter(|p| !p.is_empty());
    parts.map(|p| OsString::from_vec(p.to_vec())).collect()
}

/// `SRC[:DST]`.
fn halves(text: &OsStr) -> (&OsStr, &OsStr) {
    match text.as_bytes().iter().position(|b| *b == b':') {
        Some(at) => {
            (OsStr::from_bytes(&text.as_bytes()[..at]), OsStr::from_bytes(&text.as_bytes()[at + 1..]))
        }
        None => (text, text),
    }
}

/// `SRC[:DST[:OPTION]]`.
fn bind(text: &OsStr) -> Result<MountSpec, Failure> {
    let parts: Vec<&[u8]> = text.as_bytes().splitn(3, |b| *b == b':').collect();
    let source = OsStr::from_bytes(parts[0]);
    let target = parts.get(1).filter(|t| !t.is_empty()).map_or(source, |t| OsStr::from_bytes(t));
    let flags = match parts.get(2).copied() {
        None | Some(b"rw") => Vec::new(),
        Some(b"ro") => vec!["ro".to_string()],
        Some(other) => {
            return Err(refusal(
                &format!("--bind {}", text.to_string_lossy()),
                &format!("the option '{}' is unknown; known are ro and rw", String::from_utf8_lossy(other)),
            ));
        }
    };
    local::bind("--bind", source, target, flags)
}

/// `type=bind,src=…,dst=…[,ro]`.
fn mount(text: &str) -> Result<MountSpec, Failure> {
    let (mut source, mut target, mut flags) = (None, None, Vec::new());
    for field in text.split(',') {
        match field.split_once('=').unwrap_or((field, "")) {
            ("type", "bind") => {}
            ("src" | "source", value) => source = Some(value),
            ("dst" | "destination" | "target", value) => target = Some(value),
            ("ro" | "readonly", _) => flags.push("ro".to_string()),
            _ => {
                return Err(refusal(
                    &format!("--mount …,{field}"),
                    "known fields are type=bind, src, dst and ro",
                ));
            }
        }
    }
    let source = source.ok_or_else(|| Failure::usage(format!("--mount {text}: add src=PATH")))?;
    local::bind("--mount", OsStr::new(source), OsStr::new(target.unwrap_or(source)), flags)
}

fn pull(door: &str, args: &Pull, quiet: bool) -> Outcome {
    let (file, image) = match &args.words[..] {
        [image] => (None, image),
        [file, image, ..] => (Some(PathBuf::from(file)), image),
        [] => return Err(Failure::usage("pull: no image is given")),
    };
    let typed = reference(image)?;
    let Resolved::Manifest(pinned) = local::pinned(&typed, args.no_https, None)? else {
        return Err(Failure::user(format!("{image} is a root directory: it is used where it is")));
    };
    let name = file.or_else(|| args.name.clone()).unwrap_or_else(|| PathBuf::from(default_name(image)));
    let path = args.dir.as_ref().map_or_else(|| name.clone(), |dir| dir.join(&name));
    if path.exists() && !args.force {
        return Err(Failure::user(format!(
            "{} exists already: --force replaces it, another name keeps it",
            path.display()
        )));
    }
    write_archive(&pinned, image, &path, quiet)?;
    out::complain(&format!(
        "{door}: note: {} is an OCI archive and no SIF: this {door}, srun and skopeo take it; a real apptainer takes \
         it as oci-archive:{}",
        path.display(),
        path.display()
    ));
    Ok(0)
}

/// Writes an image into an OCI archive.
fn write_archive(
    pinned: &berth_images::ResolvedManifest,
    name: &str,
    path: &Path,
    quiet: bool,
) -> Result<(), Failure> {
    let bar = Bar::new(name, quiet);
    let written =
        images::open(pinned, None).and_then(|source| save_archive(pinned, source.as_ref(), name, path, &bar));
    bar.finish();
    written.map_err(|e| images::failed(&e))
}

/// `debian_12.sif` for `docker://library/debian:12`.
fn default_name(image: &str) -> String {
    let last = image.trim_end_matches('/').rsplit('/').next().unwrap_or(image);
    let last = last.split('@').next().unwrap_or(last);
    let (name, tag) = last.split_once(':').unwrap_or((last, "latest"));
    format!("{name}_{tag}.sif")
}

fn inspect(args: &Inspect) -> Outcome {
    let typed = reference(&args.image)?;
    let config = match local::pinned(&typed, false, None)? {
        Resolved::Manifest(pinned) => {
            images::open(&pinned, None)
                .and_then(|source| describe(&pinned, source.as_ref()))
                .map_err(|e| images::failed(&e))?
                .0
        }
        _ => {
            return Err(Failure::user(format!(
                "{} is a root directory, which says nothing of itself; name an image",
                args.image
            )));
        }
    };
    let runs: Vec<&str> = config.entrypoint.iter().chain(&config.cmd).map(String::as_str).collect();
    let labels = args.labels || !(args.environment || args.runscript);
    if args.json {
        let mut attributes = serde_json::Map::new();
        if labels {
            attributes.insert("labels".into(), serde_json::json!(config.labels));
        }
        if args.environment {
            attributes.insert("environment".into(), serde_json::json!(config.env));
        }
        if args.runscript {
            attributes.insert("runscript".into(), runs.join(" ").into());
        }
        let document = serde_json::json!({"data": {"attributes": attributes}, "type": "container"});
        let text = serde_json::to_string_pretty(&document).unwrap_or_default();
        return out::print(&(text + "\n")).map(|()| 0);
    }
    let mut text = String::new();
    if labels {
        config.labels.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\n")));
    }
    if args.environment {
        config.env.iter().for_each(|v| text.push_str(&format!("{v}\n")));
    }
    if args.runscript {
        text.push_str(&format!("{}\n", runs.join(" ")));
    }
    out::print(&text).map(|()| 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_word_is_a_path() {
        assert_eq!(reference("x.sif").unwrap(), "./x.sif");
        assert_eq!(reference("images/x.sif").unwrap(), "./images/x.sif");
        for same in ["docker://debian:12", "/a/b", "./c", "oci:/x", "oci-archive:/y.tar"] {
            assert_eq!(reference(same).unwrap(), same);
        }
        assert!(reference("instance://x").is_err());
    }

    #[test]
    fn names_of_pulled_files() {
        assert_eq!(default_name("docker://library/debian:12"), "debian_12.sif");
        assert_eq!(default_name("docker://busybox"), "busybox_latest.sif");
        assert_eq!(default_name("docker://x/y@sha256:00"), "y_latest.sif");
    }

    #[test]
    fn prefixed_variables() {
        let all =
            [("SINGULARITYENV_A", "old"), ("APPTAINERENV_A", "new"), ("B", "x"), ("APPTAINERENV_", "y")];
        let found = prefixed(all.into_iter().map(|(n, v)| (n.into(), v.into())));
        assert_eq!(found, [("A".into(), "new".into())]);
    }
}
