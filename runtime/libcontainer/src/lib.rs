//! youki's libcontainer behind [`Engine`]: a second opinion on what a `config.json` means.
//!
//! The tests run the same cases with it and with Berth's own engine; where they differ, a clause of the runtime
//! specification decides (tests/oci/engines.tsv). No artefact that is released contains it.
#![forbid(unsafe_code)]
#![cfg(feature = "libcontainer")]

mod refuse;

use berth_runtime::oci::{
    CreateOptions, Created, Engine, ExecOptions, OciError, Result, Started, Store, read_json,
};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::error::LibcontainerError;
use libcontainer::signal::Signal;
use libcontainer::syscall::syscall::SyscallType;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Containers that libcontainer makes and remembers.
#[derive(Clone, Debug)]
pub struct Libcontainer {
    store: Store,
}

impl Libcontainer {
    /// The engine with its containers at `root`, or at the default place.
    ///
    /// # Errors
    /// There is no default place for this user.
    pub fn open(root: Option<&Path>) -> Result<Libcontainer> {
        Ok(Libcontainer { store: Store::open_as("berth-oci-libcontainer", root)? })
    }

    /// A container that exists.
    fn load(&self, id: &str) -> Result<Container> {
        let dir = self.store.dir(id)?;
        if !dir.is_dir() {
            return Err(OciError::NoContainer(id.into()));
        }
        Container::load(dir).map_err(|e| refused("read the state of the container", &e))
    }

    fn builder(&self, id: &str, preserve: &[i32]) -> Result<ContainerBuilder> {
        let action = "describe the container";
        ContainerBuilder::new(id.into(), SyscallType::default())
            .with_preserved_fds(refuse::preserved(preserve)?)
            .with_root_path(self.store.root())
            .and_then(ContainerBuilder::validate_id)
            .map_err(|e| refused(action, &e))
    }
}

/// An error with all its reasons.
fn refused(action: &str, e: &LibcontainerError) -> OciError {
    let mut what = format!("libcontainer cannot {action}: {e}");
    let mut reason = std::error::Error::source(e);
    while let Some(e) = reason {
        // Some errors have their source in their own words.
        let text = e.to_string();
        if !what.contains(&text) {
            what = format!("{what}: {text}");
        }
        reason = e.source();
    }
    OciError::Invalid { what, next: "see whether --engine own takes it".into() }
}

fn wrong_state(action: &str, id: &str, status: ContainerStatus) -> OciError {
    OciError::Status {
        action: action.into(),
        id: id.into(),
        status: status.to_string().to_lowercase(),
        hint: String::new(),
    }
}

/// What an operation on an existing container failed with.
fn failed(action: &str, id: &str, e: &LibcontainerError) -> OciError {
    match e {
        LibcontainerError::IncorrectStatus(status) => wrong_state(action, id, *status),
        e => refused(&format!("{action} the container"), e),
    }
}

fn open_process(pid: i32) -> Result<OwnedFd> {
    Pid::from_raw(pid)
        .ok_or(rustix::io::Errno::SRCH)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
        .map_err(|e| OciError::Invalid {
            what: format!("cannot open process {pid} that libcontainer made: {e}"),
            next: "look whether it was killed".into(),
        })
}

impl Engine for Libcontainer {
    fn create(&self, o: &CreateOptions, _warnings: &mut Vec<String>) -> Result<Created> {
        refuse::threads()?;
        refuse::creation(o)?;
        let bundle = std::fs::canonicalize(&o.bundle).map_err(|e| OciError::Invalid {
            what: format!("cannot find the bundle {}: {e}", o.bundle.display()),
            next: "give its directory with --bundle".into(),
        })?;
        refuse::configuration(&read_json(&bundle.join("config.json"))?)?;
        self.store.prepare()?;
        if self.store.dir(&o.id)?.exists() {
            return Err(OciError::Invalid {
                what: format!("container {} exists already", o.id),
                next: "delete it, or choose another id".into(),
            });
        }
        let container = self
            .builder(&o.id, &o.preserve_fds)?
            .with_pid_file(o.pid_file.as_ref())
            .map_err(|e| refused("use the file for the pid", &e))?
            .with_console_socket(o.console_socket.as_ref())
            .as_init(bundle)
            .with_systemd(false)
            .with_no_pivot(o.no_pivot)
            .with_detach(true)
            // Its first process is then a child of this one, which can wait for it.
            .as_sibling(false)
            .build()
            .map_err(|e| refused("create the container", &e));
        // What it leaves when it refuses a configuration late would take the id for good.
        let container = container.inspect_err(|_| {
            let _ = self.store.discard(&o.id);
        })?;
        let pid = container.pid().map_or(0, |pid| pid.as_raw());
        Ok(Created { pidfd: open_process(pid)?, pid, notes: vec![format!("first process: {pid}")] })
    }

    fn start(&self, id: &str) -> Result<()> {
        self.load(id)?.start().map_err(|e| failed("start", id, &e))
    }

    fn state(&self, id: &str) -> Result<Value> {
        serde_json::to_value(self.load(id)?.state).map_err(|e| OciError::Invalid {
            what: format!("the state cannot be written: {e}"),
            next: "report this".into(),
        })
    }

    fn kill(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        let signal = Signal::try_from(signal).map_err(|_| OciError::Unsupported {
            what: format!("signal {signal} with --engine libcontainer"),
            instead: "it sends 1 to 31".into(),
        })?;
        self.load(id)?.kill(signal, all).map_err(|e| failed("kill", id, &e))
    }

    fn delete(&self, id: &str, force: bool) -> Result<Vec<OciError>> {
        let mut container = match self.load(id) {
            Err(OciError::NoContainer(_)) if force => return Ok(Vec::new()),
            found => found?,
        };
        container.delete(force).map_err(|e| failed("delete", id, &e))?;
        Ok(Vec::new())
    }

    fn exec(&self, id: &str, o: &ExecOptions) -> Result<Started> {
        refuse::threads()?;
        refuse::execution(o)?;
        let process = o.process.as_ref().map(|json| self.note(id, json)).transpose()?;
        let (uid, gid) = o.user.as_deref().map(refuse::user).transpose()?.unwrap_or_default();
        let variables: HashMap<String, String> = o
            .env
            .iter()
            .filter_map(|v| v.split_once('='))
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        let action = "run a process in the container";
        let built = self
            .builder(id, &o.preserve_fds)?
            .with_pid_file(o.pid_file.as_ref())
            .map_err(|e| refused("use the file for the pid", &e))?
            .with_console_socket(o.console_socket.as_ref())
            .as_tenant()
            .with_process(process.as_ref())
            .with_container_args(o.args.clone())
            .with_env(variables)
            .with_cwd(o.cwd.as_ref())
            .with_user(uid)
            .with_group(gid)
            .with_additional_gids(o.groups.clone())
            .with_capabilities(o.caps.clone())
            .with_no_new_privs(o.no_new_privs)
            .with_ignore_paused(o.ignore_paused)
            .with_detach(true)
            .as_sibling(false)
            .build();
        if let Some(path) = process {
            let _ = std::fs::remove_file(path);
        }
        let pid = match built {
            Ok(pid) => pid.as_raw(),
            Err(LibcontainerError::NoDirectory) => return Err(OciError::NoContainer(id.into())),
            Err(LibcontainerError::IncorrectStatus(status)) => {
                return Err(wrong_state("run a process in", id, status));
            }
            Err(e) => return Err(refused(action, &e)),
        };
        let notes = vec![format!("process: {pid}")];
        Ok(Started { pidfd: open_process(pid)?, pid, warnings: Vec::new(), notes })
    }

    fn pause(&self, id: &str) -> Result<()> {
        self.load(id)?.pause().map_err(|e| failed("pause", id, &e))
    }

    fn resume(&self, id: &str) -> Result<()> {
        self.load(id)?.resume().map_err(|e| failed("resume", id, &e))
    }
}

impl Libcontainer {
    /// Writes a process where libcontainer can read it.
    fn note(&self, id: &str, process: &Value) -> Result<PathBuf> {
        let dir = self.store.dir(id)?;
        if !dir.is_dir() {
            return Err(OciError::NoContainer(id.into()));
        }
        let path = dir.join(format!("process-{}.json", std::process::id()));
        std::fs::write(&path, process.to_string()).map_err(|e| OciError::Invalid {
            what: format!("cannot write {}: {e}", path.display()),
            next: "make room for it".into(),
        })?;
        Ok(path)
    }
}
