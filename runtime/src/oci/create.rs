//! `create` and `start`: a container is made completely, waits, and then becomes its program.

use super::cgroup::{Group, Hierarchies};
use super::channel::{Channel, FromChild, ToChild};
use super::error::{Naming, OciError, Result, invalid, unsupported};
use super::finish::{self, Listener};
use super::plan::resources::Changes;
use super::plan::{self, ContainerPlan, Facts, maps, resources};
use super::procfs::Procfs;
use super::stage::{self, Inherited};
use super::store::{Container, Record, Status, Store, process_times};
use super::unit::Unit;
use super::{config, console, rootfs};
use crate::hooks::{self, HookRun, Hooks};
use crate::sys::fork::{CloneOptions, Forked, fork};
use crate::sys::{signals, wait};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::CapabilitySet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a container is created.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Its id.
    pub id: String,
    /// The bundle.
    pub bundle: PathBuf,
    /// Where the terminal goes.
    pub console_socket: Option<PathBuf>,
    /// A terminal's other end that the caller holds itself.
    pub console_fd: Option<OwnedFdBox>,
    /// Where the pid is written.
    pub pid_file: Option<PathBuf>,
    /// Descriptors that the program shall have.
    pub preserve_fds: Vec<i32>,
    /// No session keyring.
    pub no_new_keyring: bool,
    /// The node's root is covered, not taken away.
    pub no_pivot: bool,
    /// The control group is a scope that systemd makes.
    pub systemd: bool,
}

/// A descriptor in a cloneable place.
pub type OwnedFdBox = std::sync::Arc<OwnedFd>;

/// A created container.
#[derive(Debug)]
pub struct Created {
    /// Its first process; a child of this one.
    pub pidfd: OwnedFd,
    /// Pid of it.
    pub pid: i32,
    /// What was made, in words.
    pub notes: Vec<String>,
}

/// Whether the calling process has a capability in its own user namespace.
pub fn has(capability: CapabilitySet) -> bool {
    rustix::thread::capabilities(None).is_ok_and(|c| c.effective.contains(capability))
}

/// Reads and plans a bundle.
pub fn read_bundle(bundle: &Path, warnings: &mut Vec<String>) -> Result<(ContainerPlan, serde_json::Value)> {
    let bundle = std::fs::canonicalize(bundle).named_at("find the bundle", bundle)?;
    let json = config::read_json(&bundle.join("config.json"))?;
    let spec = config::spec(json.clone(), warnings)?;
    let facts = Facts {
        bundle,
        privileged: has(CapabilitySet::SYS_ADMIN),
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        apparmor: finish::apparmor(),
    };
    let mut plan = plan::plan(&spec, &facts)?;
    // What is mounted on it is found there again, whatever links led to it.
    plan.root = std::fs::canonicalize(&plan.root).named_at("find the root", &plan.root)?;
    let labelled = |l: &oci_spec::runtime::Linux| l.mount_label().as_ref().is_some_and(|l| !l.is_empty());
    if !facts.selinux && spec.linux().as_ref().is_some_and(labelled) {
        warnings.push("linux.mountLabel has no effect: this node runs without SELinux".into());
    }
    Ok((plan, json))
}

/// What a plan comes to, in words.
fn notes(plan: &ContainerPlan) -> Vec<String> {
    let named = |chosen: &dyn Fn(i32) -> bool| {
        let names = plan::NAMESPACES.iter().filter(|(_, flag, _)| chosen(*flag)).map(|(_, _, name)| *name);
        names.collect::<Vec<_>>().join(" ")
    };
    let joined = |flag: i32| plan.join.iter().any(|(f, _)| *f == flag);
    vec![
        format!("root: {}; mounts: {}", plan.root.display(), plan.mounts.len()),
        format!("new namespaces: {}; joined: {}", named(&|f| plan.new & f != 0), named(&joined)),
    ]
}

/// Creates a container. On failure nothing is left of it; what the specification wants to be warned of is said all
/// the same.
pub fn create(store: &Store, options: &CreateOptions, warnings: &mut Vec<String>) -> Result<Created> {
    let (plan, json) = read_bundle(&options.bundle, warnings)?;
    let terminal = plan.process.as_ref().is_some_and(|p| p.terminal);
    let given = options.console_socket.is_some() || options.console_fd.is_some();
    match (terminal, given) {
        (true, false) => {
            return Err(invalid("process.terminal is set and there is no --console-socket", "give one"));
        }
        (false, true) => {
            return Err(invalid(
                "--console-socket without process.terminal",
                "set it in config.json, or leave the option out",
            ));
        }
        _ => {}
    }
    if !plan.root.is_dir() {
        return Err(invalid(
            format!("the root {} is not a directory", plan.root.display()),
            "correct root.path",
        ));
    }
    let container = store.reserve(&options.id)?;
    let h = Hierarchies::detect();
    let place = match options.systemd {
        false => Group::of(&h, plan.cgroup.as_deref(), &options.id).map(Place::Group),
        true => {
            Unit::of(plan.cgroup.as_deref(), &plan.annotations, &options.id, h.pure_v2()).map(Place::Unit)
        }
    };
    let record = Record {
        version: plan.version.clone(),
        id: options.id.clone(),
        bundle: plan.bundle.clone(),
        rootfs: plan.root.clone(),
        created: jiff::Timestamp::now().to_string(),
        pid: None,
        start_time: 0,
        started: false,
        annotations: plan.annotations.clone(),
        group: Group::default(),
        hooks: plan.hooks.clone(),
        namespaces: plan.new | plan.join.iter().fold(0, |all, (flag, _)| all | flag),
        node_mount: None,
        config: json,
    };
    let mut notes = notes(&plan);
    let made = place.and_then(|place| make(&container, plan, record, place, &h, options));
    match made {
        Ok((pid, pidfd)) => {
            drop(container);
            notes.push(format!("first process: {pid}"));
            Ok(Created { pidfd, pid, notes })
        }
        Err(e) => {
            let _ = container.remove();
            Err(e)
        }
    }
}

/// Where a container's processes are put.
enum Place {
    /// In a group that is made here.
    Group(Group),
    /// In a unit that systemd makes.
    Unit(Unit),
}

fn make(
    container: &Container,
    mut plan: ContainerPlan,
    mut record: Record,
    place: Place,
    h: &Hierarchies,
    options: &CreateOptions,
) -> Result<(i32, OwnedFd)> {
    let (mut group, unit) = match place {
        Place::Group(group) => (group, None),
        Place::Unit(unit) => (Group::default(), Some(unit)),
    };
    if group.in_use() {
        return Err(invalid(
            "the container's control group has processes in it",
            "choose another linux.cgroupsPath",
        ));
    }
    let made_group = group.create(h)? || unit.is_some();
    let shared = !plan.own(libc::CLONE_NEWNS);
    let before = rootfs::mount_id(&record.rootfs);
    let done = (|| {
        let changes = limits(&plan, h, made_group)?;
        let shown = if made_group { group.clone() } else { show_own(&mut plan, h) };
        let unit = match unit {
            Some(unit) => Some((unit, changes, h)),
            None => {
                group.apply(&changes, true)?;
                None
            }
        };
        launch(container, plan, &mut record, &mut group, unit, shown, options)
    })();
    if done.is_err() {
        let left = rootfs::mount_id(&record.rootfs);
        if let Some(mount) = left.filter(|_| shared && left != before) {
            let _ = rootfs::detach_from_node(&record.rootfs, mount);
        }
        let _ = group.remove(Duration::from_secs(5));
    }
    done
}

/// The caller's own groups, for a container that has none: to look at alone.
fn show_own(plan: &mut ContainerPlan, h: &Hierarchies) -> Group {
    for m in plan.mounts.iter_mut().filter(|m| m.source == plan::mounts::Source::Cgroup) {
        m.set |= crate::sys::mountattr::RDONLY;
    }
    Group { v1: h.own.clone(), v2: h.own_v2.clone(), unit: None }
}

/// Limits of the group; a user without groups can have none.
fn limits(plan: &ContainerPlan, h: &Hierarchies, made: bool) -> Result<Changes> {
    let Some(r) = &plan.resources else { return Ok(Changes::default()) };
    let mut changes = resources::plan(r, &h.controllers())?;
    if !made || !crate::facts::is_privileged() {
        // Devices are closed to an ordinary user by the file system, and no program can be loaded for them.
        changes.devices = None;
    }
    Ok(changes)
}

fn launch(
    container: &Container,
    plan: ContainerPlan,
    record: &mut Record,
    group: &mut Group,
    unit: Option<(Unit, Changes, &Hierarchies)>,
    shown: Group,
    options: &CreateOptions,
) -> Result<(i32, OwnedFd)> {
    let proc = Procfs::open()?;
    let privileged = has(CapabilitySet::SYS_ADMIN);
    let prepared = if privileged { rootfs::prepare(&plan)? } else { rootfs::Prepared::default() };
    let join = plan.join.iter().map(|(flag, path)| {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        Ok((*flag, fd.named_at("open the namespace", path)?))
    });
    let join = join.collect::<Result<Vec<_>>>()?;
    let console = match (&options.console_fd, &options.console_socket) {
        (Some(fd), _) => Some(rustix::io::fcntl_dupfd_cloexec(fd, 3).named("pass the terminal on")?),
        (None, Some(path)) => Some(console::connect(path)?),
        (None, None) => None,
    };
    let listener = match plan.process.as_ref().and_then(|p| p.seccomp.as_ref()?.listener.as_ref()) {
        None => None,
        Some((path, metadata)) => Some(Listener {
            socket: console::connect(path)?,
            message: serde_json::json!({
                "ociVersion": record.version, "fds": ["seccompFd"], "metadata": metadata,
            }),
        }),
    };
    let (uids, gids) = (plan.uids.clone(), plan.gids.clone());
    let plan_hooks = plan.hooks.clone();
    let cgroup = group.v2_dir();
    let (mut here, there) = Channel::pair()?;
    let inherited = Inherited {
        plan,
        record: record.clone(),
        group: shown,
        proc,
        prepared,
        join,
        console,
        knock: listen(container)?,
        listener,
        preserve: options.preserve_fds.clone(),
        keyring: !options.no_new_keyring,
        pivot: !options.no_pivot,
        groups: false,
    };
    let clone = CloneOptions { cgroup: cgroup.as_ref().map(AsFd::as_fd), ..CloneOptions::default() };
    let (middle, middle_fd) = match fork(clone).named("start the container's first process")? {
        Forked::Child => {
            drop(here);
            stage::middle(there, inherited)
        }
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(there);
    let proc = Procfs::open()?;
    drop(inherited);
    let made = (|| {
        let shown = match unit {
            None => {
                group.join(middle)?;
                None
            }
            Some((unit, changes, h)) => {
                group.create_unit(h, &unit, middle, &changes)?;
                group.apply(&changes, true)?;
                Some(Box::new(group.clone()))
            }
        };
        record.group = group.clone();
        here.tell(&ToChild::Go(shown))?;
        let mut message = here.answer()?;
        if let FromChild::NeedMaps = message {
            let groups = write_maps(&proc, middle, &uids, &gids)?;
            here.tell(&ToChild::Mapped { groups })?;
            message = here.answer()?;
        }
        let FromChild::Child(pid) = message else {
            return Err(invalid("the runtime's processes do not understand each other", "report this"));
        };
        Ok(pid)
    })();
    if made.is_err() {
        let _ = signals::kill(middle, libc::SIGKILL);
    }
    let _ = wait::wait_pidfd(&middle_fd);
    let pid = made?;
    let pidfd = Pid::from_raw(pid)
        .ok_or(rustix::io::Errno::SRCH)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
        .named("open the container's first process")?;
    let done = introduce(container, record, &plan_hooks, &mut here, pid, options);
    if let Err(e) = done {
        let _ = signals::kill(pid, libc::SIGKILL);
        let _ = wait::wait_pidfd(&pidfd);
        return Err(e);
    }
    Ok((pid, pidfd))
}

/// The rest of the first process's way to being created.
fn introduce(
    container: &Container,
    record: &mut Record,
    plan_hooks: &Hooks,
    here: &mut Channel,
    pid: i32,
    options: &CreateOptions,
) -> Result<()> {
    here.tell(&ToChild::Pid(pid))?;
    let FromChild::Mounted = here.answer()? else {
        return Err(invalid("the runtime's processes do not understand each other", "report this"));
    };
    if record.namespaces & libc::CLONE_NEWNS == 0 {
        record.node_mount = rootfs::mount_id(&record.rootfs);
    }
    record.pid = Some(pid);
    record.start_time = process_times(pid).map_or(0, |(start, _)| start);
    // The environment is made: what the specification calls created, while the operation goes on.
    let state = record.state(Status::Created).to_string();
    hooks::run("prestart", &plan_hooks.prestart, &state, HookRun::default(), &mut hooks::Alone)?;
    hooks::run("createRuntime", &plan_hooks.create_runtime, &state, HookRun::default(), &mut hooks::Alone)?;
    here.tell(&ToChild::HooksDone)?;
    here.answer()?;
    container.write(record)?;
    if let Some(path) = &options.pid_file {
        write_pid(path, pid)?;
    }
    Ok(())
}

/// Writes a pid, atomically.
pub fn write_pid(path: &Path, pid: i32) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let new = path.with_file_name(format!(".{name}.new"));
    std::fs::write(&new, pid.to_string()).named_at("write", &new)?;
    std::fs::rename(&new, path).named_at("write", path)
}

/// The socket on which the first process waits. Bound by descriptor: its path may be long.
fn listen(container: &Container) -> Result<OwnedFd> {
    let action = "make the socket for start";
    let dir =
        rustix::fs::open(&container.dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).named(action)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .named(action)?;
    rustix::net::bind(&socket, &address(&dir)?).named(action)?;
    rustix::net::listen(&socket, 1).named(action)?;
    Ok(socket)
}

fn address(dir: &OwnedFd) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/start.sock", dir.as_raw_fd()))
        .named("name the socket for start")
}

/// Writes the maps of a new user namespace. Whether its processes may set groups.
fn write_maps(proc: &Procfs, pid: i32, uids: &[maps::IdRange], gids: &[maps::IdRange]) -> Result<bool> {
    let (uid_text, gid_text) = (maps::text(uids), maps::text(gids));
    if has(CapabilitySet::SETUID) && has(CapabilitySet::SETGID) {
        proc.write(&format!("{pid}/uid_map"), &uid_text)?;
        proc.write(&format!("{pid}/gid_map"), &gid_text)?;
        return Ok(true);
    }
    let own = |ranges: &[maps::IdRange], id: u32| matches!(ranges, [r] if r.count == 1 && r.outside == id);
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if own(uids, uid) && own(gids, gid) {
        // Required before an unprivileged gid map: else a process could drop a group that denies it access.
        proc.write(&format!("{pid}/setgroups"), "deny")?;
        proc.write(&format!("{pid}/uid_map"), &uid_text)?;
        proc.write(&format!("{pid}/gid_map"), &gid_text)?;
        return Ok(false);
    }
    crate::subids::map(pid, uids, gids).map_err(|why| {
        invalid(
            format!("the id mapping was refused: {why}"),
            "a user may map the own id, and ranges of /etc/subuid and /etc/subgid",
        )
    })?;
    Ok(true)
}

/// Starts a created container's program.
pub fn start(store: &Store, id: &str) -> Result<()> {
    let (container, mut record) = store.find(id)?;
    record.require("start", &[Status::Created], "only a created container can be started")?;
    let action = "reach the container's first process";
    let dir =
        rustix::fs::open(&container.dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).named(action)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .named(action)?;
    rustix::net::connect(&socket, &address(&dir)?).named(action)?;
    let mut channel = Channel::new(socket);
    channel.tell(&ToChild::Start)?;
    // It ends without a word when the program has taken over.
    match channel.hear::<FromChild>()? {
        None => {}
        Some(FromChild::Failed(e)) => {
            // Here the specification goes on with the container's end. With runc, though, poststart hooks have run by now, in
            // `create`: whoever pairs them with poststop hooks gets both. `start` fails already, whatever becomes of them.
            if matches!(e, OciError::Hook(_)) {
                let state = record.state(Status::Stopped).to_string();
                let all = &record.hooks.poststart;
                hooks::run_all("poststart", all, &state, HookRun::default(), &mut hooks::Alone);
            }
            return Err(e);
        }
        Some(_) => return Err(unsupported("what the container's first process said", "report this")),
    }
    let _ = std::fs::remove_file(container.start_socket());
    record.started = true;
    container.write(&record)?;
    let state = record.state(Status::Running).to_string();
    let Err(failed) =
        hooks::run("poststart", &record.hooks.poststart, &state, HookRun::default(), &mut hooks::Alone)
    else {
        return Ok(());
    };
    // As the specification has it since 1.3: an error, and the container is stopped.
    super::lifecycle::end(&record)?;
    Err(failed.into())
}
