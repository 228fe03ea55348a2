//! The processes that become the container: one that makes its namespaces, and its first one.

use super::cgroup::Group;
use super::channel::{Channel, FromChild, ToChild};
use super::console;
use super::error::{Naming, OciError, Result, invalid};
use super::finish::{self, Listener};
use super::plan::ContainerPlan;
use super::plan::process::ProcessPlan;
use super::procfs::Procfs;
use super::rootfs::{self, Prepared};
use super::store::{Record, Status};
use crate::hooks::{self, HookRun};
use crate::setup::enter;
use crate::sys::fork::{CloneOptions, Forked, exit_now, fork, unshare};
use crate::sys::{Errno, SysResult, process, signals};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{DumpableBehavior, Gid, Uid, set_dumpable_behavior};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

/// Everything that the container's processes inherit of the runtime.
pub struct Inherited {
    /// The plan.
    pub plan: ContainerPlan,
    /// What is remembered, for hooks.
    pub record: Record,
    /// The control group that it sees.
    pub group: Group,
    /// The runtime's procfs.
    pub proc: Procfs,
    /// Trees taken with the runtime's rights.
    pub prepared: Prepared,
    /// Namespaces to join.
    pub join: Vec<(libc::c_int, OwnedFd)>,
    /// The console socket.
    pub console: Option<OwnedFd>,
    /// Where `start` will knock.
    pub knock: OwnedFd,
    /// Where the seccomp descriptor goes.
    pub listener: Option<Listener>,
    /// Descriptors of the caller that the program shall have.
    pub preserve: Vec<i32>,
    /// A session keyring is made.
    pub keyring: bool,
    /// The node's root is taken away, not covered.
    pub pivot: bool,
    /// Supplementary groups can be set.
    pub groups: bool,
}

/// What setns wants for a `CLONE_NEW*` flag: the descriptor must be of this kind.
pub fn link(flag: libc::c_int) -> Option<LinkNameSpaceType> {
    Some(match flag {
        libc::CLONE_NEWUSER => LinkNameSpaceType::User,
        libc::CLONE_NEWNS => LinkNameSpaceType::Mount,
        libc::CLONE_NEWPID => LinkNameSpaceType::ProcessID,
        libc::CLONE_NEWNET => LinkNameSpaceType::Network,
        libc::CLONE_NEWIPC => LinkNameSpaceType::InterProcessCommunication,
        libc::CLONE_NEWUTS => LinkNameSpaceType::HostNameAndNISDomainName,
        libc::CLONE_NEWCGROUP => LinkNameSpaceType::ControlGroup,
        libc::CLONE_NEWTIME => LinkNameSpaceType::Time,
        _ => return None,
    })
}

/// The process that makes namespaces and then the container's first process, as its sibling.
pub fn middle(mut channel: Channel, mut inherited: Inherited) -> ! {
    match make_namespaces(&mut channel, &mut inherited) {
        Ok(Some(pid)) => {
            let _ = channel.tell(&FromChild::Child(pid));
            exit_now(0)
        }
        Ok(None) => first(channel, inherited),
        Err(e) => {
            let _ = channel.tell(&FromChild::Failed(e));
            exit_now(1)
        }
    }
}

fn make_namespaces(channel: &mut Channel, inherited: &mut Inherited) -> Result<Option<i32>> {
    let ToChild::Go(group) = channel.told()? else { return Err(out_of_order()) };
    if let Some(group) = group {
        inherited.group = *group;
    }
    if let Some(process) = &inherited.plan.process {
        finish::score(process, &inherited.proc)?;
    }
    // No process of the container may trace this one or reach its program file through it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).named("protect the runtime")?;
    let plan = &inherited.plan;
    let (mut early, mut user, mut late) = (Vec::new(), None, Vec::new());
    for (flag, fd) in &inherited.join {
        match *flag {
            libc::CLONE_NEWUSER => user = Some(fd),
            // The mount namespace last of all: what is needed of the node's is still to be found till then.
            libc::CLONE_NEWNS => {}
            flag => early.push((flag, fd)),
        }
    }
    let join = |flag: libc::c_int, fd: &OwnedFd| move_into_link_name_space(fd.as_fd(), link(flag));
    for (flag, fd) in early {
        match join(flag, fd) {
            Ok(()) => {}
            // It may belong to the user namespace that is joined next.
            Err(Errno::PERM) if user.is_some() || plan.new & libc::CLONE_NEWUSER != 0 => {
                late.push((flag, fd))
            }
            Err(e) => return Err(not_joined(plan, flag, e)),
        }
    }
    if let Some(fd) = user {
        join(libc::CLONE_NEWUSER, fd).map_err(|e| not_joined(plan, libc::CLONE_NEWUSER, e))?;
        become_root()?;
    } else if plan.new & libc::CLONE_NEWUSER != 0 {
        // Its owner must be able to write the maps of it.
        set_dumpable_behavior(DumpableBehavior::Dumpable).named("make a user namespace")?;
        unshare(libc::CLONE_NEWUSER).map_err(|e| {
            OciError::System(
                crate::setup::SetupFailure::new("make a user namespace", e).hint(enter::USERNS_HINT),
            )
        })?;
        channel.tell(&FromChild::NeedMaps)?;
        let ToChild::Mapped { groups } = channel.told()? else { return Err(out_of_order()) };
        set_dumpable_behavior(DumpableBehavior::NotDumpable).named("protect the runtime")?;
        if super::plan::maps::outside(&plan.uids, 0).is_some()
            && super::plan::maps::outside(&plan.gids, 0).is_some()
        {
            become_root()?;
        }
        if groups {
            enter::set_groups(&[])?;
        }
        set_dumpable_behavior(DumpableBehavior::NotDumpable).named("protect the runtime")?;
    }
    for (flag, fd) in late {
        join(flag, fd).map_err(|e| not_joined(plan, flag, e))?;
    }
    if plan.new & libc::CLONE_NEWTIME != 0 {
        unshare(libc::CLONE_NEWTIME).named("make a time namespace")?;
        if !plan.time_offsets.is_empty() {
            // As with the maps: in a user namespace the file belongs to who may be traced.
            set_dumpable_behavior(DumpableBehavior::Dumpable).named("make a time namespace")?;
            inherited.proc.write("self/timens_offsets", &plan.time_offsets)?;
            set_dumpable_behavior(DumpableBehavior::NotDumpable).named("protect the runtime")?;
        }
    }
    // The others of these need the process to be inside already.
    let apart = libc::CLONE_NEWUSER | libc::CLONE_NEWTIME | libc::CLONE_NEWCGROUP;
    let namespaces = u64::from((plan.new & !apart).cast_unsigned());
    match fork(CloneOptions { namespaces, cgroup: None, sibling: true })
        .named("make the container's namespaces")?
    {
        Forked::Child => Ok(None),
        Forked::Parent { pid, .. } => Ok(Some(pid)),
    }
}

/// The ids of the user namespace's root, for what is made in it.
fn become_root() -> Result<()> {
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    let set = || -> SysResult<()> {
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)
    };
    set().named("become root of the user namespace")
}

fn not_joined(plan: &ContainerPlan, flag: libc::c_int, e: Errno) -> OciError {
    let path = plan.join.iter().find(|(f, _)| *f == flag).map(|(_, p)| p.as_path().into());
    let failure =
        crate::setup::SetupFailure { path, ..crate::setup::SetupFailure::new("join the namespace", e) };
    OciError::System(if e == Errno::INVAL { failure.hint("it is of another kind") } else { failure })
}

fn out_of_order() -> OciError {
    invalid("the runtime's processes do not understand each other", "report this")
}

/// The container's first process.
fn first(mut channel: Channel, mut inherited: Inherited) -> ! {
    let result = make(&mut channel, &mut inherited);
    let failed = match result {
        Ok(None) => exit_now(0),
        Ok(Some((mut start, program))) => {
            let e = become_program(&inherited, program);
            let _ = start.tell(&FromChild::Failed(e));
            // The end of the connection is the end of the program's start: never before the message.
            let _ = start.hear::<ToChild>();
            exit_now(127)
        }
        Err(e) => e,
    };
    let _ = channel.tell(&FromChild::Failed(failed));
    exit_now(1)
}

fn become_program(inherited: &Inherited, program: Option<finish::Program>) -> OciError {
    let (Some(process), Some(program)) = (&inherited.plan.process, program) else {
        return invalid(
            "config.json has no process.args",
            "name the program to run, and create the container again",
        );
    };
    signals::reset();
    let listener = inherited.listener.as_ref();
    // The hooks run what the image has there: with no more rights than its program.
    let ready = match late(process, listener) {
        true => finish::become_user(process, &inherited.proc, inherited.groups, None),
        false => Ok(()),
    };
    let ready = ready
        .and_then(|()| {
            let hooks = &inherited.plan.hooks.start_container;
            let how = HookRun { env: &process.env, ..HookRun::default() };
            Ok(hooks::run("startContainer", hooks, &state(inherited), how, &mut hooks::Alone)?)
        })
        .and_then(|()| if listener.is_some() { Ok(()) } else { finish::confine(process, None) });
    match ready {
        Ok(()) => finish::exec(&program),
        Err(e) => e,
    }
}

/// Whether the program's user can only be become at `start`: with its rights a filter goes, that need not allow the
/// wait for `start`. A filter with a listener is loaded before, for whoever listens expects it when the container is
/// created.
fn late(process: &ProcessPlan, listener: Option<&Listener>) -> bool {
    process.seccomp.is_some() && !process.no_new_privs && listener.is_none()
}

fn state(inherited: &Inherited) -> String {
    let status = if inherited.record.pid.is_some() { Status::Created } else { Status::Creating };
    inherited.record.state(status).to_string()
}

type Started = (Channel, Option<finish::Program>);

/// Makes the container around this process, and waits for `start`.
fn make(channel: &mut Channel, inherited: &mut Inherited) -> Result<Option<Started>> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).named("protect the runtime")?;
    let ToChild::Pid(pid) = channel.told()? else { return Err(out_of_order()) };
    rustix::process::setsid().named("start a session")?;
    if inherited.keyring {
        let name = CString::new(format!("_ses.{}", inherited.record.id)).unwrap_or_default();
        match process::join_session_keyring(&name) {
            // A kernel without keyrings, or with the caller's quota of them used up.
            Ok(()) | Err(Errno::NOSYS | Errno::DQUOT | Errno::PERM) => {}
            Err(e) => return Err(e).named("make a session keyring"),
        }
    }
    let plan = &inherited.plan;
    if plan.new & libc::CLONE_NEWCGROUP != 0 {
        // Here and not in clone3: the namespace's root is the group that the process is in by now.
        unshare(libc::CLONE_NEWCGROUP).named("make a cgroup namespace")?;
    }
    if plan.new & libc::CLONE_NEWNET != 0 {
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
                .named("bring the loopback device up")?;
        process::loopback_up(socket.as_fd()).named("bring the loopback device up")?;
    }
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).named("set the host name")?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes()).named("set the domain name")?;
    }
    if let Some((flag, fd)) = inherited.join.iter().find(|(flag, _)| *flag == libc::CLONE_NEWNS) {
        move_into_link_name_space(fd.as_fd(), link(*flag)).map_err(|e| not_joined(plan, *flag, e))?;
    }
    let root = rootfs::build(plan, &mut inherited.prepared, &inherited.group, inherited.pivot)?;
    for (path, value) in &plan.sysctl {
        inherited.proc.write(&format!("sys/{path}"), value)?;
    }
    inherited.record.pid = Some(pid);
    channel.tell(&FromChild::Mounted)?;
    let ToChild::HooksDone = channel.told()? else { return Err(out_of_order()) };
    let created = inherited.record.state(Status::Created).to_string();
    hooks::run(
        "createContainer",
        &plan.hooks.create_container,
        &created,
        HookRun::default(),
        &mut hooks::Alone,
    )?;
    rootfs::protect(plan, &root.fd)?;
    let terminal = match plan.process.as_ref().filter(|p| p.terminal) {
        None => None,
        Some(p) => {
            let terminal = console::open(&root.fd, p.size)?;
            console::bind(&root.fd, &terminal.slave)?;
            Some(terminal)
        }
    };
    if inherited.pivot && plan.own(libc::CLONE_NEWNS) {
        enter::pivot_from(&root.fd, root.over_root)?;
    } else {
        enter::cover(&root.fd)?;
    }
    // Only now: nothing can be pivoted to a shared mount.
    rootfs::propagate(plan, &root.fd)?;
    drop(root);
    if let (Some(terminal), Some(socket)) = (terminal, inherited.console.take()) {
        console::send(socket.as_fd(), &terminal.master)?;
        console::take(&terminal.slave)?;
    }
    let mut program = None;
    if let Some(process) = &plan.process {
        let groups = inherited.proc.read("self/setgroups").is_ok_and(|t| t.trim() == "allow");
        if let Some(listener) = &mut inherited.listener {
            listener.message["pid"] = pid.into();
            listener.message["state"] = inherited.record.state(Status::Creating);
        }
        inherited.groups = groups;
        finish::prepare(process, &inherited.preserve)?;
        if !process.args.is_empty() {
            program = Some(finish::find(process)?);
        }
        let listener = inherited.listener.as_ref();
        if !late(process, listener) {
            finish::become_user(process, &inherited.proc, groups, listener)?;
        }
        if listener.is_some() {
            finish::confine(process, listener)?;
        }
    }
    channel.tell(&FromChild::Ready)?;
    Ok(wait_for_start(&inherited.knock)?.map(|start| (start, program)))
}

/// Waits for `start`, or for a signal that asks the waiting process to end.
fn wait_for_start(knock: &OwnedFd) -> Result<Option<Channel>> {
    let action = "wait for start";
    let end = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2];
    let mask = end.iter().fold(0, |mask, signal| mask | signals::bit(*signal));
    signals::set_mask(mask);
    let asked = signals::signalfd(mask).named(action)?;
    loop {
        let mut polled = [PollFd::new(knock, PollFlags::IN), PollFd::new(&asked, PollFlags::IN)];
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).named(action),
        }
        if !polled[1].revents().is_empty() {
            return Ok(None);
        }
        if polled[0].revents().is_empty() {
            continue;
        }
        let socket = rustix::net::accept_with(knock, SocketFlags::CLOEXEC).named(action)?;
        let mut start = Channel::new(socket);
        if let Ok(Some(ToChild::Start)) = start.hear() {
            return Ok(Some(start));
        }
    }
}
