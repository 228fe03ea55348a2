//! Where the cluster is: the state directory, and the sockets in it.

use crate::error::{Failure, Kind};
use berth_rpc::{Client, Endpoint};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The directory that a client inside a container finds its job's socket in.
const INSIDE: &str = "/run/berth/job.sock";
/// The system cluster's state directory.
const SYSTEM: &str = "/var/lib/berth";

/// A state directory, by its layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir(pub PathBuf);

impl StateDir {
    /// The directory to use when none is named and a cluster, or a store, is to be made.
    pub fn own() -> Result<StateDir, Failure> {
        if nix::unistd::geteuid().is_root() {
            return Ok(StateDir(PathBuf::from(SYSTEM)));
        }
        let base = match std::env::var_os("XDG_STATE_HOME").filter(|v| !v.is_empty()) {
            Some(dir) => PathBuf::from(dir),
            None => match std::env::var_os("HOME").filter(|v| !v.is_empty()) {
                Some(home) => PathBuf::from(home).join(".local/state"),
                None => {
                    return Err(Failure::new(
                        Kind::Configuration,
                        "no state directory: neither HOME nor XDG_STATE_HOME is set; set one of them, or name a \
                         directory with --state or BERTH_STATE",
                    ));
                }
            },
        };
        Ok(StateDir(base.join("berth")))
    }

    /// The directory that is named, by option or by `BERTH_STATE`; absolute.
    pub fn named(option: Option<&Path>) -> Result<Option<StateDir>, Failure> {
        let named = match option {
            Some(path) => Some(path.to_path_buf()),
            None => std::env::var_os("BERTH_STATE").filter(|v| !v.is_empty()).map(PathBuf::from),
        };
        let Some(path) = named else { return Ok(None) };
        std::path::absolute(&path).map(|p| Some(StateDir(p))).map_err(|e| {
            Failure::new(
                Kind::Configuration,
                format!("state directory '{}': {e}; name an absolute path", path.display()),
            )
        })
    }

    /// The named directory, else the own one.
    pub fn named_or_own(option: Option<&Path>) -> Result<StateDir, Failure> {
        match StateDir::named(option)? {
            Some(dir) => Ok(dir),
            None => StateDir::own(),
        }
    }

    /// Public sockets and pid files.
    pub fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// The controller's public socket.
    pub fn controller_socket(&self) -> PathBuf {
        self.run().join("controller.sock")
    }

    /// The agent's public socket.
    pub fn agent_socket(&self) -> PathBuf {
        self.run().join("agent.sock")
    }

    /// Logs of the daemons.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }
}

/// The way to a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Where requests go.
    pub endpoint: Endpoint,
    /// Where streams of steps are attached.
    pub streams: PathBuf,
    /// The state directory; none inside a container.
    pub state: Option<StateDir>,
}

impl Site {
    /// Finds the cluster: of the directory named by option, else of the container we are in, else of the directory in
    /// `BERTH_STATE`, else the user's own if it runs, else the machine's.
    pub fn find(option: Option<&Path>) -> Result<Site, Failure> {
        let inside = Path::new(INSIDE);
        // A job's environment may name a directory of the node, which means nothing in its container.
        if option.is_none() && inside.exists() {
            return Ok(Site {
                endpoint: Endpoint::Job(inside.to_path_buf()),
                streams: inside.to_path_buf(),
                state: None,
            });
        }
        if let Some(dir) = StateDir::named(option)? {
            return Ok(Site::of(dir));
        }
        let system = StateDir(PathBuf::from(SYSTEM));
        let own = StateDir::own().ok();
        let candidates: Vec<StateDir> = own.into_iter().chain([system]).collect();
        match candidates.iter().find(|dir| dir.controller_socket().exists()) {
            Some(dir) => Ok(Site::of(dir.clone())),
            None => {
                let mut looked: Vec<String> =
                    candidates.iter().map(|d| d.controller_socket().display().to_string()).collect();
                looked.dedup();
                Err(Failure::new(
                    Kind::Unreachable,
                    format!(
                        "no cluster runs here (looked for {}); start one with 'berth up', or name its state directory \
                         with BERTH_STATE",
                        looked.join(" and ")
                    ),
                ))
            }
        }
    }

    /// The cluster of a state directory, whether it is up or not.
    pub fn of(dir: StateDir) -> Site {
        Site {
            endpoint: Endpoint::Unix(dir.controller_socket()),
            streams: dir.agent_socket(),
            state: Some(dir),
        }
    }

    /// Connects to the controller.
    pub async fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect(&self.endpoint).await?)
    }

    /// Connects, and waits a while for a controller that restarts.
    pub async fn connect_patiently(&self) -> Result<Client, Failure> {
        Ok(Client::connect_patiently(&self.endpoint, Duration::from_secs(10)).await?)
    }
}
