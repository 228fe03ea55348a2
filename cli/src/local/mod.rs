//! A container on this machine without a cluster, or within the allocation of the job that it is started in: what
//! `berth run`, `berth shell` and the front doors have in common.

pub mod allocation;
pub mod cdi;
pub mod exec;
mod follow;
mod gpus;
mod image;
mod listing;
pub mod named;
pub mod records;
pub mod removals;
pub mod room;
mod save;
mod terminal;

pub use follow::Streams;
pub use image::{Pull, ensure, fetch, pinned, pinned_with_login};
pub use save::save;

use crate::{explain, images};
use berth_client::error::{Failure, Outcome};
use berth_client::out;
use berth_model::ByteStr;
use berth_model::limits::Limits;
use berth_model::options::Explain;
use berth_model::spec::MountSpec;
use berth_runtime::{
    ContainerRequest, HostFacts, Rootfs, StartOptions, Workdir, WritableLayer, plan, start_init,
};
use listing::Listing;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Which of the caller's variables enter before the image's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inherit {
    /// All but those that describe the caller's machine (`docs/containers.md`).
    #[default]
    All,
    /// Those of the job alone.
    Job,
}

/// What runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Entry {
    /// The command alone; without one, as [`Entry::Image`].
    #[default]
    Command,
    /// The image's entrypoint with the command as its arguments.
    Image,
    /// This program in place of the image's entrypoint; the image's CMD is not used.
    Own(OsString),
}

/// Whether there is a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tty {
    /// Where standard input and output are terminals.
    #[default]
    Auto,
    /// Always.
    Yes,
    /// Never.
    No,
}

/// A container to be run.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// The program's name, for messages.
    pub door: &'static str,
    /// The state directory named on the command line.
    pub state: Option<PathBuf>,
    /// Image as typed.
    pub image: String,
    /// Where what it writes is kept; absent: it is lost.
    pub kept: Option<Kept>,
    /// The image is named by its digest and is in the store.
    pub known: bool,
    /// Whether the registry is spoken to without TLS.
    pub insecure: bool,
    /// When the image is fetched.
    pub pull: Pull,
    /// Whether a terminal shows the fetching.
    pub quiet: bool,
    /// Whether is said what the image asks for and does not get.
    pub notes: bool,
    /// Command and arguments.
    pub command: Vec<OsString>,
    /// What runs.
    pub entry: Entry,
    /// Which of the caller's variables enter.
    pub inherit: Inherit,
    /// Variables that win over all others.
    pub env: Vec<(OsString, OsString)>,
    /// Variables whose value outside wins over the image's.
    pub env_names: Vec<String>,
    /// Mounts.
    pub mounts: Vec<MountSpec>,
    /// Working directory and the option that set it.
    pub workdir: Option<(OsString, &'static str)>,
    /// The home directory is mounted.
    pub mount_home: bool,
    /// The user appears as root.
    pub root: RootInside,
    /// As root, with the user's subordinate ids.
    pub subids: bool,
    /// Whether the root directory can be written; `None`: yes, and what was written is lost.
    pub writable: Option<bool>,
    /// How much may be written to the root, in bytes.
    pub writable_size: Option<u64>,
    /// Terminal.
    pub tty: Tty,
    /// Standard input is passed on.
    pub input: bool,
    /// Size of /dev/shm in bytes.
    pub shm_size: Option<u64>,
    /// Host name.
    pub hostname: Option<String>,
    /// Device files.
    pub devices: Vec<ByteStr>,
    /// Limits.
    pub limits: Limits,
    /// Name in the list of running containers.
    pub name: Option<String>,
    /// Print the plan and do nothing.
    pub explain: Option<Explain>,
}

/// Who the user is inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootInside {
    /// Oneself.
    #[default]
    No,
    /// Root, mapped to oneself.
    Yes,
    /// Root where the image's USER is root or absent, else oneself.
    AsImage,
}

/// A container that outlives its run.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Directory of what it writes.
    pub upper: PathBuf,
}

/// Runs it to its end; the exit code is the command's.
pub fn run(container: Container) -> Outcome {
    let request_of = image::prepare_for(&container)?;
    let request = request(&container, request_of.0, request_of.1)?;
    let facts = HostFacts::gather(&request);
    let mut plan = plan(&request, &facts).map_err(|e| Failure::user(e.to_string()))?;
    if let Some(format) = container.explain {
        let text = match format {
            Explain::Json => explain::json(&plan)?,
            Explain::Text => plan.to_string(),
        };
        return out::print(&text).map(|()| 0);
    }
    // The entrypoint is in the container's own command, and is no part of what is run in it later.
    plan.argv_prefix.clear();
    let terminal = match container.tty {
        Tty::Yes => true,
        Tty::No => false,
        Tty::Auto => has_terminal(),
    };
    let streams = Streams { terminal, input: container.input };
    let task = follow::own_task(streams);
    // A name can be another's: the task has to wait until it is known to be free.
    let (tasks, later) = if container.name.is_none() { (vec![task], None) } else { (Vec::new(), Some(task)) };
    // What can still fail does before it runs.
    let state = images::local_dir(container.state.as_deref())?;
    let options = StartOptions { tasks, ..StartOptions::default() };
    let mut init = start_init(&plan, options).map_err(|e| follow::launch(&e))?;
    if container.notes && !container.quiet {
        for note in plan.notes.iter().chain(init.notes()) {
            out::complain(&format!("{}: note: {note}", container.door));
        }
    }
    let record = record(&container, &plan.argv, init.pid())?;
    let listing = match container.name {
        Some(_) => Listing::named(state, record)?,
        None => Listing::later(state, record),
    };
    if let Some(task) = later {
        init.spawn(task).map_err(|e| follow::launch(&e))?;
    }
    let code = follow::follow(init, listing, container.door, streams);
    drop(request_of.2);
    code
}

/// Whether the caller sits before a terminal: what is typed and what is written both go by one.
pub fn has_terminal() -> bool {
    berth_client::step::terminal::is_terminal() && rustix::termios::isatty(rustix::stdio::stdout())
}

fn record(container: &Container, argv: &[ByteStr], init: i32) -> Result<records::Record, Failure> {
    let pid = std::process::id().cast_signed();
    let words: Vec<_> = argv.iter().map(|a| a.display().into_owned()).collect();
    let name = match &container.name {
        Some(name) if records::is_name(name) => name.clone(),
        Some(name) => {
            return Err(Failure::user(format!(
                "'{name}' cannot be a container's name: use letters, digits, '_', '-' and '.', a letter or digit first"
            )));
        }
        None => format!("{}-{pid}", container.door),
    };
    Ok(records::Record {
        name,
        image: container.image.clone(),
        command: words.join(" "),
        pid,
        ticks: berth_step::spool::start_ticks(pid).unwrap_or(0),
        init,
        created: berth_client::now().secs(),
        job: std::env::var("SLURM_JOB_ID").ok(),
    })
}

fn request(
    container: &Container,
    root: Rootfs,
    image: berth_runtime::ImageConfig,
) -> Result<ContainerRequest, Failure> {
    let host = root == Rootfs::Host;
    let cwd = std::env::current_dir()
        .map_err(|e| Failure::user(format!("the current directory cannot be read: {e}")))?;
    let mut request =
        ContainerRequest::new(root, berth_client::users::own_identity()?, ByteStr::from(cwd.as_path()));
    let image_root =
        image.user.as_deref().is_none_or(|u| matches!(u.split(':').next(), Some("" | "0" | "root")));
    request.image = image;
    request.mounts.clone_from(&container.mounts);
    request.workdir = container
        .workdir
        .as_ref()
        .map(|(dir, origin)| Workdir { path: ByteStr::from(dir.as_os_str()), origin: (*origin).to_string() });
    if host && request.workdir.is_none() {
        request.workdir =
            Some(Workdir { path: ByteStr::from(cwd.as_path()), origin: "the current directory".to_string() });
    }
    request.mount_home = container.mount_home;
    request.remap_root = match container.root {
        RootInside::No => false,
        RootInside::Yes => true,
        RootInside::AsImage => image_root && !host,
    };
    request.subids = container.subids;
    request.remap_root |= container.subids;
    request.writable = container.writable;
    request.writable_size = container.writable_size;
    if let Some(kept) = &container.kept {
        request.writable_layer = WritableLayer::Dir(ByteStr::from(kept.upper.as_path()));
    }
    let words = container.command.iter().map(|w| ByteStr::from(w.as_os_str()));
    match &container.entry {
        Entry::Own(program) => {
            request.command = std::iter::once(ByteStr::from(program.as_os_str())).chain(words).collect();
        }
        Entry::Image => {
            request.command = words.collect();
            request.entrypoint = true;
        }
        Entry::Command => {
            request.command = words.collect();
            request.entrypoint = container.command.is_empty();
        }
    }
    request.env = std::env::vars_os()
        .filter(|(name, _)| container.inherit == Inherit::All || allocation::is_of_job(name))
        // The path of a state directory means nothing in a container.
        .filter(|(name, _)| host || name != "BERTH_STATE")
        .filter(|(name, _)| !container.env.iter().any(|(own, _)| own == name))
        .chain(container.env.iter().cloned())
        .map(|(name, value)| ByteStr([name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect();
    request.container_env.clone_from(&container.env_names);
    for (name, _) in &container.env {
        let name = name.to_str().ok_or_else(|| {
            Failure::user(format!("the variable's name '{}' is not text", name.to_string_lossy()))
        })?;
        request.container_env.push(name.to_string());
    }
    request.shm_size = container.shm_size;
    request.hostname.clone_from(&container.hostname);
    let is_name = |device: &ByteStr| std::str::from_utf8(&device.0).is_ok_and(cdi::is_name);
    let (names, files): (Vec<ByteStr>, Vec<ByteStr>) = container.devices.iter().cloned().partition(is_name);
    request.devices = files;
    if host && !names.is_empty() {
        return Err(Failure::user(
            "--device: on the node's own filesystem nothing is brought in: name an image as well",
        ));
    }
    let names: Vec<String> = names.iter().map(|name| name.display().into_owned()).collect();
    cdi::inject(&mut request, &names)?;
    request.limits = container.limits.clone();
    if let Some(note) = gpus::inject(&mut request)?
        && container.notes
        && !container.quiet
    {
        out::complain(&format!("{}: note: {note}", container.door));
    }
    Ok(request)
}

/// Whether the caller can have containers with subordinate ids.
pub fn has_subids() -> Result<bool, Failure> {
    Ok(berth_runtime::subids::available(&berth_client::users::own_identity()?).is_ok())
}

/// A mount of a path here, as an option of the user's says it: the source must exist, and is made absolute.
pub fn bind(option: &str, source: &OsStr, target: &OsStr, flags: Vec<String>) -> Result<MountSpec, Failure> {
    let path = std::path::absolute(Path::new(source))
        .map_err(|e| Failure::user(format!("{option}: '{}': {e}", source.to_string_lossy())))?;
    if std::fs::symlink_metadata(&path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        return Err(Failure::user(format!(
            "{option}: {} does not exist: make it first, or name another path",
            path.display()
        )));
    }
    if !target.as_bytes().starts_with(b"/") {
        return Err(Failure::user(format!(
            "{option}: '{}' is not an absolute path in the container",
            target.to_string_lossy()
        )));
    }
    Ok(MountSpec { source: ByteStr::from(path.as_path()), target: ByteStr::from(target), flags })
}

/// `NAME=value`, or `NAME` with the caller's value; a name that the caller does not have is left out, as docker
/// does it.
pub fn variable(option: &str, text: &OsStr) -> Result<Option<(OsString, OsString)>, Failure> {
    let bytes = text.as_bytes();
    let (name, value) = match bytes.iter().position(|b| *b == b'=') {
        Some(at) => (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..]).to_os_string())),
        None => (bytes, std::env::var_os(text)),
    };
    if name.is_empty() || name.contains(&b',') || std::str::from_utf8(name).is_err() {
        return Err(Failure::user(format!(
            "{option}: '{}' is not of the form NAME=value or NAME",
            text.to_string_lossy()
        )));
    }
    Ok(value.map(|value| (OsStr::from_bytes(name).to_os_string(), value)))
}

/// The variables of a file: one `NAME=value` a line; empty lines and those that start with `#` are left out.
pub fn variables_of(option: &str, path: &Path) -> Result<Vec<(OsString, OsString)>, Failure> {
    let text = std::fs::read(path).map_err(|e| {
        Failure::user(format!("{option}: {}: {}", path.display(), berth_client::error::io_text(&e)))
    })?;
    let mut all = Vec::new();
    for line in text.split(|b| *b == b'\n') {
        let line = line.trim_ascii_start();
        if !line.is_empty() && !line.starts_with(b"#") {
            all.extend(variable(option, OsStr::from_bytes(line))?);
        }
    }
    Ok(all)
}

/// A size as docker writes it: bytes, or with b, k, m or g.
pub fn size(option: &str, text: &str) -> Result<u64, Failure> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches('b').trim_end_matches(['k', 'm', 'g']);
    let factor = match lower[digits.len()..].trim_end_matches('b') {
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => 1,
    };
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).filter(|n| *n > 0).ok_or_else(|| {
        Failure::user(format!("{option}: '{text}' is no size: write a number and b, k, m or g, such as 2g"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_docker_writes_them() {
        let of = |text| size("--shm-size", text);
        assert_eq!(of("2g").unwrap(), 2 << 30);
        assert_eq!(of("64M").unwrap(), 64 << 20);
        assert_eq!(of("1gb").unwrap(), 1 << 30);
        assert_eq!(of("4096").unwrap(), 4096);
        for bad in ["", "g", "-1", "0", "1.5g", "99999999999g", "1t"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn variables() {
        let of = |text: &str| variable("-e", OsStr::new(text));
        assert_eq!(of("A=b=c").unwrap(), Some(("A".into(), "b=c".into())));
        assert_eq!(of("SURELY_NOT_SET_ANYWHERE").unwrap(), None);
        assert!(of("=x").is_err());
    }
}
