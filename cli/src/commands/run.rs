//! `berth run`: runs a command in an image, without a cluster.

use crate::images::{self, Bar};
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::out;
use berth_client::step::terminal::{self, Raw};
use berth_images::{
    Credentials, Error, PreparedImage, Reference, ResolveOptions, Resolved, Store, open_source, resolve,
};
use berth_model::spec::{Identity, LayerKind, MountSpec};
use berth_model::{ByteStr, Gid, Uid};
use berth_runtime::{
    ContainerRequest, Event, HostFacts, ImageConfig, InitHandle, LaunchError, Rootfs, SignalTarget,
    StartOptions, StoreOwner, TaskSpec, TaskStdio, Workdir, plan, start_init,
};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Group, User};
use rustix::event::{PollFd, PollFlags, poll};
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Run a command in an image, without a cluster
///
/// The image is fetched into the caller's own store when it is not there yet. Without a command, the image's own runs.
/// The exit code is the command's, 128 and the signal's number when a signal ended it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Mounts: SRC:DST[:FLAGS],...
    #[arg(long, visible_alias = "mounts", value_name = "LIST")]
    container_mounts: Vec<OsString>,
    /// Working directory in the container
    #[arg(long, visible_alias = "workdir", value_name = "DIR")]
    container_workdir: Option<OsString>,
    /// Mount the home directory
    #[arg(long)]
    container_mount_home: bool,
    /// Appear as root inside
    #[arg(long)]
    container_remap_root: bool,
    /// Let the container write to its root; what it writes is gone afterwards
    #[arg(long, conflicts_with = "container_readonly")]
    container_writable: bool,
    /// Make the container's root read-only
    #[arg(long)]
    container_readonly: bool,
    /// Bound what may be written to the root: tmpfs:SIZE, in MiB or with K, M, G or T
    #[arg(long, value_name = "tmpfs[:SIZE]", conflicts_with = "container_readonly")]
    container_writable_layer: Option<String>,
    /// Variables whose value outside wins over the image's
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    container_env: Vec<String>,
    /// Run the image's entrypoint before the command
    #[arg(long)]
    container_entrypoint: bool,
    /// Look whether the registry has a newer image of that name
    #[arg(long)]
    pull: bool,
    /// Speak to the registry without TLS, or without checking its certificate
    #[arg(long)]
    insecure: bool,
    /// A terminal of its own even where standard input or output is none
    #[arg(long)]
    pty: bool,
    /// Print what would be done, and do nothing
    #[arg(long)]
    explain: bool,
    /// Image, such as debian:12, ghcr.io/team/app:1, a path, or host:
    image: String,
    /// Command and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

pub fn run(args: Args, state: Option<&Path>) -> Outcome {
    let reference: Reference = args.image.parse().map_err(|e: Error| images::failed(&e))?;
    let (root, config, guard) = root(&args, &reference, state)?;
    let request = request(&args, root, config)?;
    let facts = HostFacts::gather(&request);
    let plan = plan(&request, &facts).map_err(|e| Failure::user(e.to_string()))?;
    if args.explain {
        let text = serde_json::to_string_pretty(&plan)
            .map_err(|e| Failure::new(Kind::Internal, format!("cannot print the plan: {e}")))?;
        return out::print(&(text + "\n")).map(|()| 0);
    }
    let init = start_init(&plan, StartOptions::default()).map_err(|e| launch(&e))?;
    for note in plan.notes.iter().chain(init.notes()) {
        out::complain(&format!("berth: note: {note}"));
    }
    let wants_pty = args.pty || (terminal::is_terminal() && rustix::termios::isatty(rustix::stdio::stdout()));
    let code = follow(init, wants_pty);
    drop(guard);
    code
}

fn launch(e: &LaunchError) -> Failure {
    Failure::user(format!("the container did not start: {e}"))
}

/// The root filesystem, and what keeps the image from being removed meanwhile.
fn root(
    args: &Args,
    reference: &Reference,
    state: Option<&Path>,
) -> Result<(Rootfs, ImageConfig, Option<PreparedImage>), Failure> {
    let failed = |e: Error| images::failed(&e);
    if *reference == Reference::Host {
        return Ok((Rootfs::Host, ImageConfig::default(), None));
    }
    let store = images::store(state)?;
    let known = if args.pull { None } else { store.find(&args.image).ok() };
    let present = match known {
        Some(digest) => store.prepared(&digest).map_err(failed)?,
        None => None,
    };
    let prepared = match present {
        Some(prepared) => prepared,
        None => {
            let credentials = Credentials::from_env();
            let options = ResolveOptions { insecure: args.insecure, ..ResolveOptions::default() };
            match resolve(reference, &credentials, &options).map_err(failed)? {
                Resolved::Host => return Ok((Rootfs::Host, ImageConfig::default(), None)),
                Resolved::RootDir(path) => {
                    return Ok((Rootfs::Dir(ByteStr::from(path.as_path())), ImageConfig::default(), None));
                }
                Resolved::Manifest(pinned) => fetch(&store, &args.image, &pinned, &credentials)?,
            }
        }
    };
    let owner = nix::unistd::geteuid()
        .is_root()
        .then_some(StoreOwner { uid: berth_agent::STORE_ID.0, gid: berth_agent::STORE_ID.1 });
    let layers = prepared.layers.iter().map(|l| ByteStr::from(l.as_path())).collect();
    let bytes = |list: &[String]| list.iter().map(|s| ByteStr::from(s.as_str())).collect();
    let c = &prepared.config;
    let config = ImageConfig {
        env: bytes(&c.env),
        entrypoint: bytes(&c.entrypoint),
        cmd: bytes(&c.cmd),
        workdir: (!c.workdir.is_empty()).then(|| ByteStr::from(c.workdir.as_str())),
        user: (!c.user.is_empty()).then(|| c.user.clone()),
    };
    Ok((Rootfs::Overlay { layers, owner }, config, Some(prepared)))
}

/// Makes an image present.
pub fn fetch(
    store: &Store,
    name: &str,
    pinned: &berth_images::ResolvedManifest,
    credentials: &Credentials,
) -> Result<PreparedImage, Failure> {
    let bar = Bar::new(name, false);
    let prepared = match images::helpers()? {
        Some(helpers) => helpers.ensure(store, pinned, &bar),
        None => open_source(&pinned.source, pinned.insecure, credentials)
            .and_then(|source| store.ensure(pinned, source.as_ref(), &bar)),
    };
    bar.finish();
    prepared.map_err(|e| images::failed(&e))
}

fn request(args: &Args, root: Rootfs, image: ImageConfig) -> Result<ContainerRequest, Failure> {
    let host = root == Rootfs::Host;
    let cwd = std::env::current_dir()
        .map_err(|e| Failure::user(format!("the current directory cannot be read: {e}")))?;
    let mut mounts: Vec<MountSpec> = Vec::new();
    for list in &args.container_mounts {
        mounts.extend(
            berth_model::options::parse_mounts(list.as_bytes()).map_err(|e| Failure::user(e.to_string()))?,
        );
    }
    let mut request = ContainerRequest::new(root, identity()?, ByteStr::from(cwd.as_path()));
    request.image = image;
    request.mounts = mounts;
    request.workdir = args
        .container_workdir
        .as_ref()
        .map(|d| Workdir { path: ByteStr::from(d.as_os_str()), origin: "--container-workdir".to_string() });
    if host && request.workdir.is_none() {
        request.workdir =
            Some(Workdir { path: ByteStr::from(cwd.as_path()), origin: "the current directory".to_string() });
    }
    request.mount_home = args.container_mount_home;
    request.remap_root = args.container_remap_root;
    request.writable = match (args.container_writable, args.container_readonly) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    if let Some(text) = &args.container_writable_layer {
        let refused = |why: &str| Failure::user(format!("--container-writable-layer: '{text}': {why}"));
        let layer = berth_model::options::parse_layer(text).map_err(|why| refused(&why))?;
        if layer.kind == LayerKind::Disk {
            return Err(refused("berth run keeps what is written in memory: write tmpfs or tmpfs:SIZE"));
        }
        request.writable_size = layer.size.map(|mib| mib << 20);
    }
    request.entrypoint = args.container_entrypoint || args.command.is_empty();
    request.container_env = args.container_env.clone();
    request.env = std::env::vars_os()
        .map(|(name, value)| ByteStr([name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect();
    request.command = args.command.iter().map(|w| ByteStr::from(w.as_os_str())).collect();
    Ok(request)
}

/// Who we are.
fn identity() -> Result<Identity, Failure> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let user = User::from_uid(uid).ok().flatten();
    let group = Group::from_gid(gid).ok().flatten();
    let groups = nix::unistd::getgroups()
        .map_err(|e| Failure::new(Kind::Internal, format!("cannot read the supplementary groups: {e}")))?;
    let home = std::env::var_os("HOME").map(ByteStr::from);
    Ok(Identity {
        uid: Uid(uid.as_raw()),
        gid: Gid(gid.as_raw()),
        groups: groups.into_iter().map(|g| Gid(g.as_raw())).collect(),
        user: user.as_ref().map_or_else(|| uid.to_string(), |u| u.name.clone()),
        group: group.map_or_else(|| gid.to_string(), |g| g.name),
        home: user.as_ref().map(|u| ByteStr::from(u.dir.as_path())).or(home).unwrap_or_else(|| "/".into()),
        shell: user.map_or_else(|| "/bin/sh".into(), |u| ByteStr::from(u.shell.as_path())),
    })
}

/// Starts the one task and follows it to its end.
fn follow(mut init: InitHandle, wants_pty: bool) -> Outcome {
    let fault = |e: nix::errno::Errno| Failure::new(Kind::Internal, format!("cannot handle signals: {e}"));
    let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().ok();
    let stdio = if wants_pty {
        TaskStdio::Pty(terminal::size().unwrap_or(berth_model::spec::TermSize { rows: 24, cols: 80 }))
    } else {
        TaskStdio::Fds {
            stdin: copy(rustix::stdio::stdin()),
            stdout: copy(rustix::stdio::stdout()),
            stderr: copy(rustix::stdio::stderr()),
        }
    };
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(umask);
    init.spawn(TaskSpec { stdio, umask: Some(umask.bits()), ..TaskSpec::default() })
        .map_err(|e| launch(&e))?;
    let mut set = SigSet::empty();
    for signal in FORWARDED.iter().chain(&[Signal::SIGWINCH]) {
        set.add(*signal);
    }
    set.thread_block().map_err(fault)?;
    let signals =
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(fault)?;
    let mut pty: Option<OwnedFd> = None;
    let mut raw: Option<Raw> = None;
    let mut input = true;
    let status = loop {
        while let Some(event) = init.next_event(false).map_err(|e| launch(&e))? {
            match event {
                Event::Started { pty: master, .. } => {
                    raw = if master.is_some() { Raw::enter() } else { None };
                    pty = master;
                }
                Event::ExecFailed { error, .. } => {
                    out::complain(&format!("berth: error: {error}"));
                    return Ok(u8::try_from(error.exit_code()).unwrap_or(1));
                }
                Event::Note(text) => out::complain(&format!("berth: note: {text}")),
                Event::Exited { status, .. } => {
                    if let Some(master) = &pty {
                        drain(master);
                    }
                    drop(raw.take());
                    // What is left of the container goes with it; the task's exit code is known.
                    let _ = init.finish();
                    return Ok(u8::try_from(status.shell_code()).unwrap_or(u8::MAX));
                }
            }
        }
        let stdin = rustix::stdio::stdin();
        let mut fds = vec![PollFd::from_borrowed_fd(init.fd(), PollFlags::IN)];
        fds.push(PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN));
        if let Some(master) = &pty {
            fds.push(PollFd::new(master, PollFlags::IN));
            if input {
                fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
            }
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => break e,
        }
        let ready: Vec<bool> = fds.iter().map(|f| !f.revents().is_empty()).collect();
        if ready[1] {
            while let Ok(Some(info)) = signals.read_signal() {
                pass_on(&mut init, i32::try_from(info.ssi_signo).unwrap_or(0), pty.as_ref())?;
            }
        }
        if let Some(master) = &pty {
            if ready[2] {
                copy_some(master.as_fd(), rustix::stdio::stdout());
            }
            if ready.get(3) == Some(&true) {
                input = copy_some(stdin, master.as_fd());
            }
        }
    };
    Err(Failure::new(Kind::Internal, format!("cannot wait for the container: {status}")))
}

const FORWARDED: &[Signal] =
    &[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

fn pass_on(init: &mut InitHandle, number: i32, pty: Option<&OwnedFd>) -> Result<(), Failure> {
    if number == Signal::SIGWINCH as i32 {
        if let (Some(master), Some(size)) = (pty, terminal::size()) {
            let size =
                rustix::termios::Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
            // A terminal that is gone has no size.
            let _ = rustix::termios::tcsetwinsize(master, size);
        }
        return Ok(());
    }
    init.signal(SignalTarget::AllTasks, number).map_err(|e| launch(&e))
}

/// Copies what is there; false at the end of the source.
fn copy_some(from: impl AsFd, to: impl AsFd) -> bool {
    let mut buffer = [0_u8; 16 * 1024];
    match rustix::io::read(&from, &mut buffer) {
        Ok(0) => false,
        Ok(n) => {
            let mut rest = &buffer[..n];
            while !rest.is_empty() {
                match rustix::io::write(&to, rest) {
                    Ok(n) => rest = &rest[n..],
                    Err(rustix::io::Errno::INTR) => {}
                    Err(_) => return false,
                }
            }
            true
        }
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => true,
        Err(_) => false,
    }
}

/// What the task wrote last is still in its terminal.
fn drain(master: &OwnedFd) {
    loop {
        let mut fds = [PollFd::new(master, PollFlags::IN)];
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut fds, Some(&zero)) {
            Ok(n) if n > 0 && fds[0].revents().contains(PollFlags::IN) => {
                if !copy_some(master, rustix::stdio::stdout()) {
                    return;
                }
            }
            _ => return,
        }
    }
}
