//! Where the cluster is: the state directory, and the sockets in it.

use crate::error::{Failure, Kind};
use berth_model::member::MemberRole;
use berth_rpc::{Client, Endpoint};
use serde::Deserialize;
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

    /// The system cluster's.
    pub fn system() -> StateDir {
        StateDir(PathBuf::from(SYSTEM))
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

    /// The controller's socket for streams of steps on other machines.
    pub fn streams_socket(&self) -> PathBuf {
        self.run().join("streams.sock")
    }

    /// The socket of a login node.
    pub fn login_socket(&self) -> PathBuf {
        self.run().join("login.sock")
    }

    /// In a job on the filesystem of a node whose controller is elsewhere: the job's own socket.
    fn own_job_socket(&self) -> Option<PathBuf> {
        if self.controller_socket().exists() {
            return None;
        }
        let job: u32 = std::env::var("SLURM_JOB_ID").ok()?.parse().ok()?;
        let socket = self.0.join("jobs").join(job.to_string()).join("client/job.sock");
        socket.exists().then_some(socket)
    }

    /// Whether users may ask a cluster here, up or not.
    fn is_open(&self) -> bool {
        self.controller_socket().exists() || self.login_socket().exists()
    }

    /// What this machine is of a cluster elsewhere, and its name there, if it joined one.
    fn joined(&self) -> Option<(MemberRole, String)> {
        let text = std::fs::read(self.run().join("joined.json")).ok()?;
        let value: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let role = value.get("role").and_then(|role| MemberRole::deserialize(role).ok());
        let role = role.unwrap_or(MemberRole::Compute);
        let (name, address) = (value.get("name")?.as_str()?, value.get("address")?.as_str()?);
        Some((role, format!("{name} of the cluster at {address}")))
    }

    /// What this machine is of a cluster elsewhere, if it runs jobs for one.
    fn compute_node_of(&self) -> Option<String> {
        self.joined().filter(|(role, _)| *role == MemberRole::Compute).map(|(_, what)| what)
    }

    /// Whether users work here with a cluster elsewhere. Its agent may be about to start: what it is, this machine stays.
    fn is_login_node(&self) -> bool {
        self.login_socket().exists() || self.joined().is_some_and(|(role, _)| role == MemberRole::Login)
    }

    /// Logs of the daemons.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }
}

fn compute_node(what: &str) -> Failure {
    Failure::user(format!(
        "this machine is the compute node {what}: use the commands on the controller's machine, on a login node ('berth join' with \
         a token of --role login makes one), or inside a job"
    ))
}

/// The way to a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Where requests go.
    pub endpoint: Endpoint,
    /// The node's agent, for what is kept on this machine.
    pub streams: PathBuf,
    /// Where streams of steps are attached, on whichever machine they run.
    pub attach: PathBuf,
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
                attach: inside.to_path_buf(),
                state: None,
            });
        }
        if let Some(dir) = StateDir::named(option)? {
            let site = Site::of(dir.clone());
            return match dir.compute_node_of() {
                Some(what) if !site.endpoint.path().exists() => Err(compute_node(&what)),
                _ => Ok(site),
            };
        }
        let system = StateDir(PathBuf::from(SYSTEM));
        let own = StateDir::own().ok();
        let candidates: Vec<StateDir> = own.into_iter().chain([system]).collect();
        let open = candidates.iter().find(|dir| dir.is_open());
        match open.or_else(|| candidates.iter().find(|dir| dir.is_login_node())) {
            Some(dir) => Ok(Site::of(dir.clone())),
            None => {
                if let Some(what) = candidates.iter().find_map(StateDir::compute_node_of) {
                    return Err(compute_node(&what));
                }
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
        if dir.is_login_node() {
            let socket = dir.login_socket();
            return Site {
                endpoint: Endpoint::Job(socket.clone()),
                streams: dir.agent_socket(),
                attach: socket,
                state: Some(dir),
            };
        }
        if let Some(socket) = dir.own_job_socket() {
            return Site {
                endpoint: Endpoint::Job(socket.clone()),
                streams: dir.agent_socket(),
                attach: socket,
                state: Some(dir),
            };
        }
        // A machine with the controller alone has no agent.
        let agent = dir.agent_socket();
        let attach =
            if agent.exists() || !dir.streams_socket().exists() { agent } else { dir.streams_socket() };
        Site {
            endpoint: Endpoint::Unix(dir.controller_socket()),
            streams: dir.agent_socket(),
            attach,
            state: Some(dir),
        }
    }

    /// Connects to the controller.
    pub async fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect(&self.endpoint).await?)
    }

    /// Connects, and waits a while for a controller that restarts; `command` says so when that takes longer than a moment.
    /// Where no cluster ever was nothing is waited for.
    pub async fn connect_patiently(&self, command: &str) -> Result<Client, Failure> {
        let (moment, all) = (Duration::from_secs(1), Duration::from_secs(10));
        if self.endpoint.path().parent().is_some_and(|run| !run.exists()) {
            return self.connect().await;
        }
        match Client::connect_patiently(&self.endpoint, moment).await {
            Err(e) if e.is_transient() => {
                crate::out::complain(&format!("{command}: {e}; trying again for {} s", all.as_secs()));
                Ok(Client::connect_patiently(&self.endpoint, all).await?)
            }
            done => Ok(done?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Between two agents there is no socket: whoever asks then is to wait for the next one, and not to be sent elsewhere.
    #[test]
    fn a_login_node_is_one_while_its_agent_is_away() {
        let state = tempfile::tempdir().unwrap();
        let dir = StateDir(state.path().to_path_buf());
        let joined = |role: &str| {
            let text = serde_json::json!({"address": "head:7817", "name": "front", "role": role}).to_string();
            std::fs::write(dir.run().join("joined.json"), text).unwrap();
        };
        std::fs::create_dir(dir.run()).unwrap();
        joined("login");
        assert_eq!(dir.compute_node_of(), None);
        let site = Site::of(dir.clone());
        assert_eq!((site.endpoint, site.attach), (Endpoint::Job(dir.login_socket()), dir.login_socket()));
        joined("compute");
        assert_eq!(dir.compute_node_of().as_deref(), Some("front of the cluster at head:7817"));
        assert_eq!(Site::of(dir.clone()).endpoint, Endpoint::Unix(dir.controller_socket()));
    }
}
