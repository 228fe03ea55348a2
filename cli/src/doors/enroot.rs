//! `enroot import`, `create`, `load`, `start`, `export`, `list`, `remove` and `digest` over Berth's engine.

use super::Door;
use super::refused::ENROOT;
use crate::commands::run::image_and_command;
use crate::images;
use crate::local::{self, Container, Entry, Kept, RootInside, named, records};
use berth_client::error::{Failure, Outcome};
use berth_client::out;
use berth_images::{Resolved, ResolvedManifest, SaveForm};
use berth_model::spec::MountSpec;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

pub const DOOR: Door = Door { name: "enroot", definition: Enroot::command, refused: ENROOT, run };

/// The enroot commands that scripts use, over Berth's own engine
///
/// 'import' writes an image as squashfs, 'create' keeps a container of an image under a name, 'start' runs it, 'export' writes
/// what it holds. A container runs as you, or as root inside with --root; it is read-only unless --rw. Inside a job it has
/// the job's cores, memory and devices.
#[derive(Debug, Parser)]
#[command(name = "enroot", version, disable_help_subcommand = true, max_term_width = 100)]
struct Enroot {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    Import(Import),
    Create(Create),
    Load(Create),
    Start(Start),
    Exec(Exec),
    Export(Export),
    List(List),
    Remove(Remove),
    /// Print the digest of an image
    Digest {
        /// docker://[USER@][REGISTRY#]IMAGE[:TAG], podman://IMAGE[:TAG] or dockerd://IMAGE[:TAG]
        image: String,
    },
    /// Print the version
    Version,
}

/// Write an image into a file, as squashfs
#[derive(Debug, Args)]
struct Import {
    /// The file [default: IMAGE+TAG.sqsh]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// docker://[USER@][REGISTRY#]IMAGE[:TAG], podman://IMAGE[:TAG] or dockerd://IMAGE[:TAG]
    image: String,
}

/// Make a container of an image and keep it
#[derive(Debug, Args)]
struct Create {
    /// Name [default: the image's file name]
    #[arg(short, long)]
    name: Option<String>,
    /// Replace one of that name
    #[arg(short, long)]
    force: bool,
    /// What import wrote, another archive or layout, or docker://IMAGE, podman://IMAGE or dockerd://IMAGE
    image: String,
}

/// Run a command in a container that is kept, or in one of an image that is not
#[derive(Debug, Args)]
#[command(override_usage = "enroot start [OPTIONS] NAME|IMAGE [COMMAND] [ARG]...")]
struct Start {
    /// Set a variable; without a value, the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Mount: SRC:DST[:FLAGS]
    #[arg(short, long, value_name = "SRC:DST")]
    mount: Vec<String>,
    /// Appear as root inside
    #[arg(short, long)]
    root: bool,
    /// Let it write to its root
    #[arg(short = 'w', long)]
    rw: bool,
    /// Name or image, command and arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "NAME")]
    words: Vec<OsString>,
}

/// Run a command in a running container
#[derive(Debug, Args)]
#[command(override_usage = "enroot exec [OPTIONS] PID|NAME COMMAND [ARG]...")]
struct Exec {
    /// Set a variable; without a value, the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// The container, by the pid that 'enroot list -f' shows or by name; then command and arguments
    #[arg(trailing_var_arg = true, required = true, num_args = 2.., value_name = "PID")]
    words: Vec<OsString>,
}

/// Write a container that is kept into a file, as squashfs
#[derive(Debug, Args)]
struct Export {
    /// The file [default: NAME.sqsh]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace a file that is there
    #[arg(short, long)]
    force: bool,
    /// Name
    name: String,
}

/// List the containers that are kept
#[derive(Debug, Args)]
struct List {
    /// With the running process of each
    #[arg(short, long)]
    fancy: bool,
}

/// Remove containers with all that was written in them
#[derive(Debug, Args)]
struct Remove {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Names
    #[arg(required = true)]
    names: Vec<String>,
}

fn run(_: &'static str, matches: &ArgMatches) -> Outcome {
    let all = Enroot::from_arg_matches(matches).map_err(|e| Failure::usage(e.to_string()))?;
    match all.command {
        Cmd::Import(args) => import(&args),
        Cmd::Create(args) | Cmd::Load(args) => create(&args),
        Cmd::Start(args) => start(args),
        Cmd::Exec(args) => super::exec("enroot", args.words, &args.env, None, local::has_terminal()),
        Cmd::Export(args) => export(&args),
        Cmd::List(args) => list(&args),
        Cmd::Remove(args) => remove(&args),
        Cmd::Digest { image } => out::print(&format!("{}\n", manifest(&image)?.digest)).map(|()| 0),
        Cmd::Version => {
            out::print(&format!("enroot front door of berth {}\n", berth_client::VERSION)).map(|()| 0)
        }
    }
}

/// A word without a scheme is a file.
fn reference(image: &str) -> String {
    if image.contains("://") || image.starts_with(['/', '.', '~']) {
        image.to_string()
    } else {
        format!("./{image}")
    }
}

fn manifest(image: &str) -> Result<ResolvedManifest, Failure> {
    match local::pinned(&reference(image), false, None)? {
        Resolved::Manifest(pinned) => Ok(pinned),
        _ => Err(Failure::user(format!("{image} is a root directory: it is used where it is"))),
    }
}

/// `library+debian+12.sqsh`, as enroot calls its files.
fn file_name(image: &str) -> String {
    let text = image.split_once("://").map_or(image, |(_, rest)| rest);
    let text = text.rsplit_once('#').map_or(text, |(_, rest)| rest);
    format!("{}.sqsh", text.replace(['/', ':'], "+"))
}

fn import(args: &Import) -> Outcome {
    if !args.image.contains("://") {
        return Err(Failure::user(format!(
            "{}: the image to import is named as docker://[USER@][REGISTRY#]IMAGE[:TAG], podman://IMAGE or dockerd://IMAGE",
            args.image
        )));
    }
    // All that can be told of the place, before anything is fetched.
    let path = squashfs(args.output.clone().unwrap_or_else(|| PathBuf::from(file_name(&args.image))))?;
    if path.exists() {
        return Err(Failure::user(format!("{} exists already: remove it, or use --output", path.display())));
    }
    let pinned = manifest(&args.image)?;
    let prepared = local::fetch(&images::store(None)?, &args.image, &pinned, false, None)?;
    let image = pinned.digest.to_string();
    local::save(
        &Container { door: "enroot", image, known: true, ..Container::default() },
        &path,
        SaveForm::Squashfs,
    )?;
    // Until then another pull cannot have it removed.
    drop(prepared);
    Ok(0)
}

/// A path whose form is squashfs, whatever else its ending means to `--container-save`, in a directory where a file can
/// be made.
fn squashfs(path: PathBuf) -> Result<PathBuf, Failure> {
    if SaveForm::of(&path) != SaveForm::Squashfs {
        return Err(Failure::user(format!(
            "{}: enroot writes squashfs: name a file that ends in .sqsh",
            path.display()
        )));
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let wanted = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::accessat(rustix::fs::CWD, parent, wanted, rustix::fs::AtFlags::EACCESS).map_err(|e| {
        Failure::user(format!(
            "{}: {}; make the directory first, or name one that you may write to",
            parent.display(),
            berth_client::error::io_text(&e.into())
        ))
    })?;
    Ok(path)
}

fn export(args: &Export) -> Outcome {
    let state = images::local_dir(None)?;
    let Some(kept) = named::find(&state, &args.name)? else {
        return Err(Failure::user(format!(
            "there is no container named '{}': 'enroot list' shows those that there are",
            args.name
        )));
    };
    let path = squashfs(args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}.sqsh", args.name))))?;
    if path.exists() && !args.force {
        return Err(Failure::user(format!("{} exists already: --force replaces it", path.display())));
    }
    let hold = named::hold(&state, &args.name)?;
    let store = images::store(None)?;
    if store.prepared(&kept.pinned.digest).map_err(|e| images::failed(&e))?.is_none() {
        local::fetch(&store, &kept.image, &kept.pinned, false, None)?;
    }
    let upper = Some(Kept { upper: hold.upper.clone() });
    let image = kept.pinned.digest.to_string();
    local::save(
        &Container { door: "enroot", image, kept: upper, known: true, ..Container::default() },
        &path,
        SaveForm::Squashfs,
    )?;
    drop(hold);
    Ok(0)
}

fn create(args: &Create) -> Outcome {
    let pinned = manifest(&args.image)?;
    let stem = || {
        let last = args.image.trim_end_matches('/').rsplit('/').next().unwrap_or(&args.image);
        let last = last.strip_suffix(".sqsh").or_else(|| last.strip_suffix(".tar")).unwrap_or(last);
        last.replace([':', '#', '@'], "+")
    };
    let name = args.name.clone().unwrap_or_else(stem).replace('+', "_");
    let state = images::local_dir(None)?;
    if args.force && named::find(&state, &name)?.is_some() {
        named::remove(&state, &name)?;
    }
    let prepared = local::fetch(&images::store(None)?, &args.image, &pinned, false, None)?;
    let container = named::Named { image: args.image.clone(), pinned, created: berth_client::now().secs() };
    named::create(&state, &name, &container)?;
    // From then on the container keeps it.
    drop(prepared);
    out::print(&format!("{name}\n")).map(|()| 0)
}

fn start(args: Start) -> Outcome {
    let (name, command) = image_and_command(args.words)?;
    let state = images::local_dir(None)?;
    let mut env = Vec::new();
    for text in &args.env {
        env.extend(local::variable("--env", text)?);
    }
    let mut mounts = Vec::new();
    for text in &args.mount {
        mounts.push(mount(text)?);
    }
    let yes = |name: &str| {
        std::env::var(name).is_ok_and(|v| {
            let v = v.to_ascii_lowercase();
            !matches!(v.as_str(), "" | "n" | "no" | "f" | "false")
        })
    };
    let rw = args.rw || yes("ENROOT_ROOTFS_WRITABLE");
    let container = Container {
        door: "enroot",
        command,
        entry: Entry::Image,
        env,
        mounts,
        mount_home: yes("ENROOT_MOUNT_HOME"),
        root: if args.root || yes("ENROOT_REMAP_ROOT") { RootInside::Yes } else { RootInside::No },
        writable: if rw { None } else { Some(false) },
        input: true,
        ..Container::default()
    };
    if let Some(kept) = named::find(&state, &name)? {
        let hold = named::hold(&state, &name)?;
        let store = images::store(None)?;
        if store.prepared(&kept.pinned.digest).map_err(|e| images::failed(&e))?.is_none() {
            local::fetch(&store, &kept.image, &kept.pinned, false, None)?;
        }
        let image = kept.pinned.digest.to_string();
        let upper = Some(Kept { upper: hold.upper.clone() });
        let name = Some(name);
        let code = local::run(Container { image, kept: upper, name, known: true, ..container });
        drop(hold);
        return code;
    }
    let image = reference(&name);
    if !image.contains("://") && !Path::new(&image).exists() {
        return Err(Failure::user(format!(
            "there is neither a container nor a file named '{name}': 'enroot list' shows the containers, 'enroot create' \
             makes one"
        )));
    }
    local::run(Container { image, ..container })
}

/// `SRC:DST[:FLAGS]`, or a line of fstab.
fn mount(text: &str) -> Result<MountSpec, Failure> {
    let parts: Vec<&str> = if text.contains(char::is_whitespace) {
        text.split_whitespace().collect()
    } else {
        text.split(':').collect()
    };
    let (source, target) = (parts[0], parts.get(1).copied().unwrap_or(parts[0]));
    let flags = parts.get(if text.contains(char::is_whitespace) { 3 } else { 2 });
    let flags =
        flags.iter().flat_map(|f| f.split(',')).filter(|f| !f.is_empty()).map(str::to_string).collect();
    if source == "tmpfs" {
        return Ok(MountSpec { source: "tmpfs".into(), target: target.into(), flags });
    }
    local::bind("--mount", OsStr::new(source), OsStr::new(target), flags)
}

fn list(args: &List) -> Outcome {
    let state = images::local_dir(None)?;
    let running = records::list(&state)?;
    let mut text = String::new();
    if args.fancy {
        text.push_str(&format!("{:<24} {:>8}  {:<8} {}\n", "NAME", "PID", "STATE", "IMAGE"));
    }
    for (name, kept) in named::list(&state)? {
        let process = running.iter().find(|r| r.name == name);
        if args.fancy {
            let (pid, how) = process.map_or(("-".into(), "stopped"), |r| (r.init.to_string(), "running"));
            text.push_str(&format!("{name:<24} {pid:>8}  {how:<8} {}\n", kept.image));
        } else {
            text.push_str(&format!("{name}\n"));
        }
    }
    out::print(&text).map(|()| 0)
}

fn remove(args: &Remove) -> Outcome {
    let state = images::local_dir(None)?;
    let mut code = 0;
    for name in &args.names {
        if !args.force {
            out::print(&format!("Delete root filesystem: {name}? [y/N] "))?;
            let mut answer = String::new();
            let read = std::io::BufRead::read_line(&mut std::io::stdin().lock(), &mut answer);
            if read.is_err() || !matches!(answer.trim(), "y" | "Y" | "yes") {
                out::complain(&format!("enroot: '{name}' was not removed; -f answers the question"));
                code = 1;
                continue;
            }
        }
        if let Err(e) = named::remove(&state, name) {
            out::complain(e.report("enroot").trim_end());
            code = 1;
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_imported_files() {
        assert_eq!(file_name("docker://debian:12"), "debian+12.sqsh");
        assert_eq!(file_name("docker://nvcr.io#nvidia/cuda:12"), "nvidia+cuda+12.sqsh");
    }

    #[test]
    fn mounts_of_both_forms() {
        assert_eq!(mount("/tmp:/x:ro").unwrap().flags, ["ro"]);
        let line = mount("/tmp /x none ro,rbind").unwrap();
        assert_eq!((line.target, line.flags), ("/x".into(), vec!["ro".to_string(), "rbind".to_string()]));
        assert_eq!(mount("/tmp").unwrap().target, "/tmp".into());
    }
}
