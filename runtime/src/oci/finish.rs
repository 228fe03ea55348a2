//! The last steps of a process into its program: limits, identity, capabilities, filter, exec.

use super::error::{Naming, OciError, Result, invalid};
use super::plan::process::{Caps, ProcessPlan};
use super::plan::seccomp::SeccompPlan;
use super::procfs::Procfs;
use crate::exec::{candidates, diagnose, execute};
use crate::setup::{SetupFailure, enter};
use crate::sys::exec::{ExecVectors, close_on_exec_from};
use crate::sys::{Errno, limits, process, schedule, seccomp};
use berth_model::ByteStr;
use rustix::fs::Mode;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, CpuSet};
use std::ffi::CString;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// Where the descriptor of notified calls goes, connected before the root was changed.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: OwnedFd,
    /// What is sent beside the descriptor.
    pub message: serde_json::Value,
}

/// How readily the program is ended when memory runs out. Before the process is closed to those who trace: then the file
/// is root's. What is forked has it, too.
///
/// # Errors
/// The kernel's: lowering it needs CAP_SYS_RESOURCE.
pub fn score(p: &ProcessPlan, proc: &Procfs) -> Result<()> {
    let Some(score) = p.oom_score_adj.map(|score| score.to_string()) else { return Ok(()) };
    // What is so already needs no right to set.
    if proc.read("self/oom_score_adj").ok().as_deref().map(str::trim) == Some(&score) {
        return Ok(());
    }
    proc.write("self/oom_score_adj", &score)
}

/// What needs no waiting for `start`: limits, and which descriptors the program gets.
///
/// # Errors
/// A value that the kernel refuses, by name.
pub fn prepare(p: &ProcessPlan, preserve: &[RawFd]) -> Result<()> {
    run_as_planned(p)?;
    for limit in &p.rlimits {
        limits::set(limit.number, limit.pair).map_err(|e| {
            let f = SetupFailure::new(
                &format!("set {} to {}:{}", limit.name, limit.pair.soft, limit.pair.hard),
                e,
            );
            OciError::System(f.hint("only a process with CAP_SYS_RESOURCE may raise a hard limit"))
        })?;
    }
    // Before any filter, which need not allow it. Every descriptor that is opened later closes on exec, too.
    close_on_exec_from(3).named("close descriptors")?;
    for n in preserve {
        crate::sys::exec::keep_open(*n).named(&format!("pass the descriptor {n} on"))?;
    }
    super::console::own_streams(p.uid);
    Ok(())
}

/// Whether AppArmor is in force on the node.
pub fn apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.first() == Some(&b'Y'))
}

/// Has the next program run under its profile; the hooks in the container too, which have no more rights than that.
fn profile(p: &ProcessPlan, proc: &Procfs) -> Result<()> {
    let Some(name) = &p.apparmor else { return Ok(()) };
    let word = format!("exec {name}");
    let written = match proc.try_write("self/attr/apparmor/exec", &word) {
        // Kernels before 5.8 have one place for whichever module is in force.
        Err(Errno::NOENT) if proc.read("self/attr/apparmor/current").is_err() => {
            proc.try_write("self/attr/exec", &word)
        }
        written => written,
    };
    written.map_err(|e| {
        let failure = SetupFailure::new(&format!("set process.apparmorProfile {name}"), e);
        OciError::System(match e {
            Errno::NOENT => failure.hint("load the profile first: apparmor_parser -r FILE"),
            Errno::ACCESS | Errno::PERM => failure.hint("the runtime's own profile has to allow the change"),
            _ => failure,
        })
    })
}

/// Becomes the program's user, under its profile, and under its filter where that can only be loaded with rights.
///
/// # Errors
/// A profile, an id, a capability or a directory that cannot be had.
pub fn become_user(
    p: &ProcessPlan,
    proc: &Procfs,
    may_set_groups: bool,
    listener: Option<&Listener>,
) -> Result<()> {
    profile(p, proc)?;
    if p.no_new_privs {
        rustix::thread::set_no_new_privs(true).named("set no_new_privs")?;
    }
    identity(p, may_set_groups)?;
    if let Some(mask) = p.umask {
        rustix::process::umask(Mode::from_raw_mode(mask));
    }
    match p.seccomp.as_ref().filter(|_| !p.no_new_privs) {
        None => capabilities(&p.caps).and_then(|()| enter_cwd(p))?,
        Some(filter) => {
            // One right more than the program will have, to load the filter as late as can be: it need not
            // allow what is done before.
            effective(p.caps.effective | CapabilitySet::SYS_ADMIN.bits())?;
            enter_cwd(p)?;
            load(filter, listener)?;
            capabilities(&p.caps)?;
        }
    }
    // The change of identity made the process traceable again.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .named("protect the runtime")
}

/// Execution domain, memory, scheduling: what the program inherits of this process.
fn run_as_planned(p: &ProcessPlan) -> Result<()> {
    if let Some(domain) = p.personality {
        process::personality(domain).named("set the execution domain")?;
    }
    if let Some(memory) = &p.memory {
        schedule::set_memory_policy(memory.mode, &memory.nodes).named("set linux.memoryPolicy")?;
    }
    if let Some((class, level)) = p.io_priority {
        schedule::set_io_priority(class, level).named("set process.ioPriority")?;
    }
    match &p.scheduler {
        Some(attributes) => schedule::set_scheduler(attributes).named("set process.scheduler"),
        None => Ok(()),
    }
}

/// Runs this process on these CPUs alone; on those of its control group where none are named.
pub fn run_on(cpus: &[u32], what: &str) -> Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    cpus.iter().for_each(|n| set.set(*n as usize));
    rustix::thread::sched_setaffinity(None, &set).named(&format!("set process.execCPUAffinity.{what}"))
}

fn enter_cwd(p: &ProcessPlan) -> Result<()> {
    enter::enter_directory(&p.cwd.as_path().into()).map_err(|e| {
        let f = SetupFailure::at("enter the working directory", &p.cwd.as_path().into(), e);
        OciError::System(if e == Errno::XDEV { f.hint("it is not in the container's root") } else { f })
    })
}

fn sets(bits: u64) -> CapabilitySet {
    CapabilitySet::from_bits_retain(bits)
}

/// Single capabilities of a set, as far as the kernel knows them.
fn each(bits: u64) -> impl Iterator<Item = CapabilitySet> {
    (0..64).map(|n| sets(1 << n)).filter(move |c| bits & c.bits() != 0)
}

/// Becomes the user, with every capability still at hand but above the bounding set.
fn identity(p: &ProcessPlan, may_set_groups: bool) -> Result<()> {
    for cap in (0..64).map(|n| sets(1 << n)) {
        let Ok(has) = rustix::thread::capability_is_in_bounding_set(cap) else { break };
        if has && p.caps.bounding & cap.bits() == 0 {
            rustix::thread::remove_capability_from_bounding_set(cap).named("limit capabilities")?;
        }
    }
    rustix::thread::set_keep_capabilities(true).named("keep capabilities")?;
    if may_set_groups {
        enter::set_groups(&p.groups)?;
    } else if !p.groups.is_empty() {
        return Err(invalid(
            "process.user.additionalGids cannot be set by a user with one mapped id",
            "leave them out, or map a range of ids (newuidmap, newgidmap)",
        ));
    }
    let (uid, gid) = (Uid::from_raw(p.uid), Gid::from_raw(p.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).named("become the container's group")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).named("become the container's user")?;
    rustix::thread::set_keep_capabilities(false).named("keep capabilities")
}

/// Puts those of the capabilities that this process has in force, and gives none up.
fn effective(bits: u64) -> Result<()> {
    let now = rustix::thread::capabilities(None).named("read capabilities")?;
    let want = CapabilitySets { effective: sets(bits & now.permitted.bits()), ..now };
    rustix::thread::set_capabilities(None, want).named("set capabilities")
}

fn capabilities(caps: &Caps) -> Result<()> {
    let now = rustix::thread::capabilities(None).named("read capabilities")?;
    // What this process does not have it cannot give: the specification wants the rest all the same.
    let held = now.permitted.bits();
    let want = CapabilitySets {
        effective: sets(caps.effective & caps.permitted & held),
        permitted: sets(caps.permitted & held),
        inheritable: sets(caps.inheritable & held),
    };
    rustix::thread::clear_ambient_capability_set().named("clear ambient capabilities")?;
    rustix::thread::set_capabilities(None, want).named("set capabilities")?;
    let possible = want.permitted.bits() & want.inheritable.bits();
    for cap in each(caps.ambient & possible) {
        rustix::thread::configure_capability_in_ambient_set(cap, true).named("set ambient capabilities")?;
    }
    Ok(())
}

fn load(s: &SeccompPlan, listener: Option<&Listener>) -> Result<()> {
    let fd = seccomp::load_with(&s.program, s.flags).named("load the seccomp filter")?;
    let (Some(fd), Some(listener)) = (fd, listener) else { return Ok(()) };
    let text = listener.message.to_string();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(
        &listener.socket,
        &[IoSlice::new(text.as_bytes())],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
    .named("send the seccomp listener")
}

/// A program ready to run.
pub struct Program {
    files: Vec<CString>,
    found: Vec<ByteStr>,
    path: Option<Vec<u8>>,
    vectors: ExecVectors,
    command: String,
}

/// Finds the program in the container as its user, and prepares its arguments.
///
/// # Errors
/// Nothing of that name is there.
pub fn find(p: &ProcessPlan) -> Result<Program> {
    let Some(command) = p.args.first().filter(|c| !c.is_empty()) else {
        return Err(invalid("config.json has no process.args", "name the program to run"));
    };
    let path = p.env.iter().rev().find_map(|v| v.strip_prefix("PATH=")).map(|v| v.as_bytes().to_vec());
    let found = candidates(&ByteStr::from(command.as_str()), path.as_deref());
    let present = |f: &ByteStr| rustix::fs::stat(f.as_os()).is_ok();
    if !found.iter().any(present) {
        return Err(missing(command, path.as_deref()));
    }
    let c = |s: &str| CString::new(s).map_err(|_| invalid("a zero byte in process.args", "take it out"));
    let args = p.args.iter().map(|a| c(a)).collect::<Result<Vec<_>>>()?;
    let env = p.env.iter().map(|a| c(a)).collect::<Result<Vec<_>>>()?;
    let files = found.iter().map(|f| CString::new(f.0.clone()).map_err(|_| missing(command, None)));
    Ok(Program {
        files: files.collect::<Result<_>>()?,
        found,
        path,
        vectors: ExecVectors::new(args, env),
        command: command.clone(),
    })
}

/// In words that engines above know, to tell it from other failures.
fn missing(command: &str, path: Option<&[u8]>) -> OciError {
    if command.contains('/') {
        return invalid(
            format!("cannot run {command}: no such file or directory"),
            "name a program of the container",
        );
    }
    let path = String::from_utf8_lossy(path.unwrap_or(b"/usr/bin:/bin")).into_owned();
    invalid(
        format!("cannot run {command}: executable file not found in $PATH ({path})"),
        "name a program of the container",
    )
}

/// Loads the filter of a program that can gain nothing: that needs no rights, and comes last.
///
/// # Errors
/// The kernel does not take it, or nobody takes its listener.
pub fn confine(p: &ProcessPlan, listener: Option<&Listener>) -> Result<()> {
    match p.seccomp.as_ref().filter(|_| p.no_new_privs) {
        Some(filter) => load(filter, listener),
        None => Ok(()),
    }
}

/// Becomes the program; returns only to say why not.
pub fn exec(program: &Program) -> OciError {
    let refused = execute(&program.files, &program.vectors, program.command.contains('/'));
    let command = ByteStr::from(program.command.as_str());
    let why = diagnose(&command, None, &program.found, program.path.as_deref(), refused);
    let kernel = crate::setup::errno_text(refused.errno.raw_os_error()).to_lowercase();
    invalid(format!("cannot run {}: {kernel}", program.command), why.to_string())
}
