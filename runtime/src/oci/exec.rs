//! `exec`: another process in a running container.

use super::channel::{Channel, FromChild, ToChild};
use super::config;
use super::console;
use super::create::{OwnedFdBox, write_pid};
use super::error::{Naming, OciError, Result, invalid};
use super::finish;
use super::plan::process::{self, Caps, ProcessPlan, capability};
use super::procfs::Procfs;
use super::stage::link;
use super::store::{Record, Status, Store};
use crate::sys::Errno;
use crate::sys::fork::{CloneOptions, Forked, exit_now, fork};
use crate::sys::{signals, wait};
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, pidfd_open, set_dumpable_behavior};
use rustix::thread::{ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// What is run, and how.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    /// A process of its own, instead of the container's with what follows changed.
    pub process: Option<serde_json::Value>,
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Further variables.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// `uid[:gid]`.
    pub user: Option<String>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Further capabilities.
    pub caps: Vec<String>,
    /// A terminal.
    pub terminal: bool,
    /// Its size.
    pub size: Option<(u16, u16)>,
    /// Nothing can be gained by a program file.
    pub no_new_privs: bool,
    /// Where the terminal goes.
    pub console_socket: Option<PathBuf>,
    /// A terminal's other end that the caller holds itself.
    pub console_fd: Option<OwnedFdBox>,
    /// Where the pid is written.
    pub pid_file: Option<PathBuf>,
    /// Descriptors that the program shall have.
    pub preserve_fds: Vec<i32>,
    /// Also into a paused container; it runs when that is resumed.
    pub ignore_paused: bool,
    /// Groups below the container's.
    pub cgroups: Vec<String>,
}

/// Plans the process.
///
/// # Errors
/// What cannot be honoured, by name.
pub fn plan(record: &Record, o: &ExecOptions, warnings: &mut Vec<String>) -> Result<ProcessPlan> {
    let spec = config::spec(record.config.clone(), warnings)?;
    let linux = spec.linux().as_ref();
    let mut p = match (&o.process, spec.process()) {
        (Some(json), _) => {
            let mut json = json.clone();
            config::clean_capabilities(&mut json, warnings);
            process::plan(
                &config::typed(berth_oci_json::process(&json), "the process")?,
                linux,
                finish::apparmor(),
            )?
        }
        (None, Some(own)) => {
            let mut p = process::plan(own, linux, finish::apparmor())?;
            p.args.clone_from(&o.args);
            p.terminal = o.terminal;
            p
        }
        (None, None) => {
            return Err(invalid("the container's config.json has no process", "give one with --process"));
        }
    };
    if p.args.is_empty() {
        return Err(invalid("no program to run", "name it after the container's id"));
    }
    if let Some(wrong) = o.env.iter().find(|v| v.find('=').is_none_or(|at| at == 0)) {
        return Err(invalid(format!("--env {wrong:?}"), "each is NAME=value"));
    }
    let name = |v: &str| v.split('=').next().unwrap_or_default().to_string();
    for v in &o.env {
        p.env.retain(|old| name(old) != name(v));
        p.env.push(v.clone());
    }
    if let Some(cwd) = &o.cwd {
        p.cwd = PathBuf::from(cwd);
        if !p.cwd.is_absolute() {
            return Err(invalid(format!("--cwd {cwd} is not absolute"), "start it with a slash"));
        }
    }
    if let Some(user) = &o.user {
        (p.uid, p.gid) = parse_user(user)?;
    }
    p.groups.extend(&o.groups);
    for name in &o.caps {
        let number = capability(name).ok_or_else(|| {
            invalid(format!("there is no capability {name:?}"), "capabilities(7) lists them")
        })?;
        let bit = 1u64 << number;
        // Not inheritable: a program with file capabilities would gain it back after giving it up.
        let c = &mut p.caps;
        *c = Caps {
            bounding: c.bounding | bit,
            effective: c.effective | bit,
            permitted: c.permitted | bit,
            ..*c
        };
    }
    p.no_new_privs |= o.no_new_privs;
    p.size = o.size.or(p.size);
    if let Some(s) = p.seccomp.as_ref().filter(|s| s.listener.is_some()) {
        let (path, _) = s.listener.clone().unwrap_or_default();
        return Err(invalid(
            format!("the container's seccomp filter notifies {}", path.display()),
            "processes can only be added to a container without SCMP_ACT_NOTIFY",
        ));
    }
    Ok(p)
}

/// Strictly numbers: `uid` or `uid:gid`. What is too large must never come to mean another user.
pub fn parse_user(text: &str) -> Result<(u32, u32)> {
    let number = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        part.parse::<u32>().ok().filter(|n| digits && *n != u32::MAX)
    };
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    match (number(uid), number(gid)) {
        (Some(uid), Some(gid)) => Ok((uid, gid)),
        _ => Err(invalid(format!("--user {text:?}"), "it is UID or UID:GID, each from 0 to 4294967294")),
    }
}

/// A started process.
#[derive(Debug)]
pub struct Started {
    /// A child of this process.
    pub pidfd: OwnedFd,
    /// Its pid.
    pub pid: i32,
    /// What the specification wants to be warned of.
    pub warnings: Vec<String>,
    /// What was made, in words.
    pub notes: Vec<String>,
}

/// Everything that the new process inherits.
struct Inherited {
    process: ProcessPlan,
    proc: Procfs,
    target: OwnedFd,
    mount: OwnedFd,
    /// The container's root, where its mount namespace is the runtime's.
    root: Option<OwnedFd>,
    namespaces: libc::c_int,
    console: Option<OwnedFd>,
    preserve: Vec<i32>,
}

/// Runs a process in a container.
pub fn exec(store: &Store, id: &str, o: &ExecOptions) -> Result<Started> {
    let (container, record) = store.find(id)?;
    let mut warnings = Vec::new();
    let mut allowed = vec![Status::Created, Status::Running];
    if o.ignore_paused {
        allowed.push(Status::Paused);
    }
    record.require("add a process to", &allowed, "")?;
    let process = plan(&record, o, &mut warnings)?;
    let given = o.console_socket.is_some() || o.console_fd.is_some();
    if process.terminal != given {
        return Err(invalid(
            if given { "--console-socket without a terminal" } else { "a terminal without --console-socket" },
            "give both, or none",
        ));
    }
    let target = record.pid.and_then(Pid::from_raw).ok_or_else(|| OciError::NoContainer(id.into()))?;
    let action = "open the container's first process";
    let pidfd = pidfd_open(target, PidfdFlags::empty()).named(action)?;
    let of = |name: &str| {
        let path = format!("/proc/{target}/ns/{name}");
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).named(action)
    };
    let mount = of("mnt")?;
    let root = if record.namespaces & libc::CLONE_NEWNS == 0 {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Some(rustix::fs::open(format!("/proc/{target}/root"), flags, Mode::empty()).named(action)?)
    } else {
        None
    };
    // The pid could have come to mean another process while it was looked at.
    let status = record.require("add a process to", &allowed, "")?;
    // What joins a frozen group is frozen with it: who resumes, kills or deletes the container meanwhile must get at it.
    let container = (status != Status::Paused).then_some(container);
    let console = match (&o.console_fd, &o.console_socket) {
        (Some(fd), _) => Some(rustix::io::fcntl_dupfd_cloexec(fd, 3).named("pass the terminal on")?),
        (None, Some(path)) => Some(console::connect(path)?),
        (None, None) => None,
    };
    // This process itself: the new one is there before it is in the container's control group.
    finish::run_on(&process.affinity.initial, "initial")?;
    let affinity = cpu_mask();
    let inherited = Inherited {
        process,
        proc: Procfs::open()?,
        target: pidfd,
        mount,
        root,
        namespaces: other_namespaces(target.as_raw_nonzero().get(), record.namespaces),
        console,
        preserve: o.preserve_fds.clone(),
    };
    let (mut here, there) = Channel::pair()?;
    let group = record.group.below(&o.cgroups)?;
    let cgroup = group.v2_dir();
    let clone = CloneOptions { cgroup: cgroup.as_ref().map(AsFd::as_fd), ..CloneOptions::default() };
    let (middle, middle_fd) = match fork(clone).named("start a process")? {
        Forked::Child => {
            drop(here);
            enter(there, inherited)
        }
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop((there, inherited));
    let made = (|| {
        group.join(middle)?;
        here.tell(&ToChild::Go(None))?;
        match here.hear()? {
            Some(FromChild::Child(pid)) => Ok(pid),
            Some(FromChild::Failed(e)) => Err(e),
            Some(_) => Err(invalid("the runtime's processes do not understand each other", "report this")),
            None => Err(invalid(
                "the new process was ended before it was in the container",
                "look at the container's state, and at its memory limit",
            )),
        }
    })();
    if made.is_err() {
        let _ = signals::kill(middle, libc::SIGKILL);
    }
    let _ = wait::wait_pidfd(&middle_fd);
    let pid = made?;
    let pidfd = Pid::from_raw(pid)
        .ok_or(Errno::SRCH)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
        .named("open the new process")?;
    let done = (|| {
        here.tell(&ToChild::Go(None))?;
        // Its end is the program's beginning.
        match here.hear::<FromChild>()? {
            None => {}
            Some(FromChild::Failed(e)) => return Err(e),
            Some(_) => {
                return Err(invalid("the runtime's processes do not understand each other", "report this"));
            }
        }
        match &o.pid_file {
            Some(path) => write_pid(path, pid),
            None => Ok(()),
        }
    })();
    if let Err(e) = done {
        let _ = signals::kill(pid, libc::SIGKILL);
        let _ = wait::wait_pidfd(&pidfd);
        return Err(e);
    }
    drop(container);
    let notes = vec![format!("process: {pid}"), format!("initial CPU affinity: {affinity}")];
    Ok(Started { pidfd, pid, warnings, notes })
}

/// The CPUs of this process, as taskset(1) writes them.
fn cpu_mask() -> String {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return "unknown".into() };
    let digit = |n: usize| (0..4).fold(0u32, |d, bit| d | u32::from(set.is_set(4 * n + bit)) << bit);
    let digits = (0..256).rev().map(digit).skip_while(|d| *d == 0).filter_map(|d| char::from_digit(d, 16));
    format!("0x{}", digits.collect::<String>())
}

/// Those of the container's namespaces that this process is not in already.
fn other_namespaces(pid: i32, of_container: libc::c_int) -> libc::c_int {
    let names = super::plan::NAMESPACES.iter().map(|(_, flag, name)| {
        let file = match *name {
            "mount" => "mnt",
            "network" => "net",
            name => name,
        };
        (*flag, file)
    });
    let same = |file: &str| {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{file}")).ok();
        of("self").is_some_and(|own| of(&pid.to_string()) == Some(own))
    };
    names.filter(|(flag, file)| of_container & flag != 0 && !same(file)).fold(0, |all, (flag, _)| all | flag)
}

/// The process between: enters the namespaces, then forks into the pid namespace.
fn enter(mut channel: Channel, inherited: Inherited) -> ! {
    let result = (|| -> Result<Option<i32>> {
        let Some(ToChild::Go(_)) = channel.hear()? else { return Ok(Some(0)) };
        finish::score(&inherited.process, &inherited.proc)?;
        // Nobody in the container may trace this process or reach its program file through it.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).named("protect the runtime")?;
        // The mount namespace comes last, in the child: till then the node's /proc is at hand.
        let flags = inherited.namespaces & !libc::CLONE_NEWNS;
        if flags != 0 {
            let flags = ThreadNameSpaceType::from_bits_retain(flags.cast_unsigned());
            move_into_thread_name_spaces(inherited.target.as_fd(), flags)
                .named("enter the container's namespaces")?;
        }
        set_dumpable_behavior(DumpableBehavior::NotDumpable).named("protect the runtime")?;
        match fork(CloneOptions { sibling: true, ..CloneOptions::default() }).named("start a process")? {
            Forked::Child => Ok(None),
            Forked::Parent { pid, .. } => Ok(Some(pid)),
        }
    })();
    match result {
        Ok(Some(pid)) => {
            let _ = channel.tell(&FromChild::Child(pid));
            exit_now(0)
        }
        Ok(None) => {
            let e = become_process(&mut channel, &inherited);
            let _ = channel.tell(&FromChild::Failed(e));
            exit_now(127)
        }
        Err(e) => {
            let _ = channel.tell(&FromChild::Failed(e));
            exit_now(1)
        }
    }
}

fn become_process(channel: &mut Channel, inherited: &Inherited) -> OciError {
    let prepared = (|| -> Result<finish::Program> {
        let _ = channel.told()?;
        rustix::process::setsid().named("start a session")?;
        if inherited.namespaces & libc::CLONE_NEWNS != 0 {
            move_into_link_name_space(inherited.mount.as_fd(), link(libc::CLONE_NEWNS))
                .named("enter the container's mount namespace")?;
        }
        if let Some(root) = &inherited.root {
            let enter = || {
                rustix::process::fchdir(root)?;
                rustix::process::chroot(".")?;
                rustix::process::chdir("/")
            };
            enter().named("enter the container's root")?;
        }
        if inherited.namespaces & libc::CLONE_NEWUSER != 0 {
            let set = || {
                rustix::thread::set_thread_res_gid(
                    rustix::process::Gid::ROOT,
                    rustix::process::Gid::ROOT,
                    rustix::process::Gid::ROOT,
                )?;
                rustix::thread::set_thread_res_uid(
                    rustix::process::Uid::ROOT,
                    rustix::process::Uid::ROOT,
                    rustix::process::Uid::ROOT,
                )
            };
            // A namespace in which root is not mapped has only other users.
            let _ = set();
            set_dumpable_behavior(DumpableBehavior::NotDumpable).named("protect the runtime")?;
        }
        if let Some(socket) = &inherited.console {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open("/", flags, Mode::empty()).named("open the container's root")?;
            let root = crate::setup::target::Root::new(root, false)?;
            let terminal = console::open(&root, inherited.process.size)?;
            console::send(socket.as_fd(), &terminal.master)?;
            console::take(&terminal.slave)?;
        }
        let groups = inherited.proc.read("self/setgroups").is_ok_and(|t| t.trim() == "allow");
        finish::prepare(&inherited.process, &inherited.preserve)?;
        finish::run_on(&inherited.process.affinity.later, "final")?;
        let program = finish::find(&inherited.process)?;
        signals::reset();
        finish::become_user(&inherited.process, &inherited.proc, groups, None)?;
        finish::confine(&inherited.process, None)?;
        Ok(program)
    })();
    match prepared {
        Ok(program) => finish::exec(&program),
        Err(e) => e,
    }
}

#[cfg(test)]
mod tests {
    use super::parse_user;

    #[test]
    fn users_are_numbers_and_nothing_else() {
        assert_eq!(parse_user("0").unwrap(), (0, 0));
        assert_eq!(parse_user("1000:100").unwrap(), (1000, 100));
        for wrong in [
            "",
            ":",
            "1:",
            ":1",
            "-1",
            "+1",
            " 1",
            "4294967295",
            "4294967296",
            "1:4294967296",
            "0x0",
            "root",
            "1:1:1",
            "1e3",
        ] {
            assert!(parse_user(wrong).is_err(), "{wrong}");
        }
    }
}
