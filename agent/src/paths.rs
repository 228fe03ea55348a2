//! Where the agent keeps what, below the state directory.

use berth_model::ByteStr;
use berth_model::ids::{JobId, Uid};
use berth_model::spec::NameScope;
use berth_step::spool::{ContainerDefaults, NodePart};
use std::path::{Path, PathBuf};

/// The state directory.
#[derive(Clone, Debug)]
pub struct Paths {
    state: PathBuf,
}

impl Paths {
    /// What every step of a job finds prepared on the node, but for its image and its control groups.
    pub fn part(&self, job: JobId, system: bool, container: ContainerDefaults) -> NodePart {
        let path = |p: PathBuf| Some(ByteStr::from(p.as_path()));
        NodePart {
            system,
            scratch: path(self.scratch(job)),
            client_dir: path(self.client_dir(job)),
            client_programs: path(self.client_programs()),
            state_dir: path(self.state.clone()),
            container,
            ..NodePart::default()
        }
    }

    /// Paths below `state`.
    pub fn new(state: &Path) -> Paths {
        Paths { state: state.to_path_buf() }
    }

    /// The state directory itself.
    pub fn state(&self) -> &Path {
        &self.state
    }
    /// Public sockets and pid files.
    pub fn run(&self) -> PathBuf {
        self.state.join("run")
    }
    /// The socket for clients on the node.
    pub fn agent_socket(&self) -> PathBuf {
        self.run().join("agent.sock")
    }
    /// Is there while the controller answers.
    pub fn connected(&self) -> PathBuf {
        self.run().join("connected")
    }
    /// The socket of a login node.
    pub fn login_socket(&self) -> PathBuf {
        self.run().join("login.sock")
    }
    /// What only the cluster's own processes may enter.
    pub fn private(&self) -> PathBuf {
        self.state.join("private")
    }
    /// The controller's socket for agents.
    pub fn node_socket(&self) -> PathBuf {
        self.private().join("node.sock")
    }
    /// Held while an agent runs on this state directory.
    pub fn lock(&self) -> PathBuf {
        self.private().join("agent.lock")
    }
    /// What the last check of the node's health found wrong.
    pub fn unhealthy(&self) -> PathBuf {
        self.private().join("unhealthy.json")
    }
    /// The highest term accepted.
    pub fn term_slots(&self) -> PathBuf {
        self.private().join("agent-term.slots")
    }
    /// A copy of it, as earlier versions read it.
    pub fn term(&self) -> PathBuf {
        self.private().join("agent-term.json")
    }
    /// The highest numbers that were given out, as far as is known here.
    pub fn highest(&self) -> PathBuf {
        self.private().join("agent-highest.json")
    }
    /// GPUs that runs left unfit for others.
    pub fn gpus_left(&self) -> PathBuf {
        self.private().join("gpus-left.json")
    }
    /// What the kernel's log has said of GPUs.
    pub fn gpus_logged(&self) -> PathBuf {
        self.private().join("gpus-logged.json")
    }
    /// Where the agent's control groups are.
    pub fn cgroups(&self) -> PathBuf {
        self.private().join("agent-cgroups.json")
    }
    /// What is kept from groups that are not the agent's.
    pub fn sessions(&self) -> PathBuf {
        self.private().join("kept-from.json")
    }
    /// Step directories; in system mode in memory.
    pub fn spool(&self) -> PathBuf {
        self.state.join("spool")
    }
    /// Job directories; in system mode in memory.
    pub fn jobs(&self) -> PathBuf {
        self.state.join("jobs")
    }
    /// What jobs write while they run, on the disk.
    pub fn all_scratch(&self) -> PathBuf {
        self.state.join("scratch")
    }
    /// A job's directory.
    pub fn job(&self, job: JobId) -> PathBuf {
        self.jobs().join(job.to_string())
    }
    /// What the job's containers see as `/run/berth`.
    pub fn client_dir(&self, job: JobId) -> PathBuf {
        self.job(job).join("client")
    }
    /// The job's listener.
    pub fn job_socket(&self, job: JobId) -> PathBuf {
        self.client_dir(job).join("job.sock")
    }
    /// The job's place on the disk, which is its user's.
    pub fn scratch(&self, job: JobId) -> PathBuf {
        self.all_scratch().join(job.to_string())
    }
    /// What is known of containers that are kept for their users' later jobs; the cluster's alone.
    pub fn kept_records(&self) -> PathBuf {
        self.private().join("kept")
    }
    /// What was written to them: a directory for each user.
    pub fn kept_written(&self) -> PathBuf {
        self.state.join("kept")
    }
    /// What was written to containers that are being removed.
    pub fn kept_trash(&self) -> PathBuf {
        self.kept_written().join("trash")
    }
    /// A container of `--container-name`: where it is recorded, and where what is written to it is kept.
    pub fn kept(&self, scope: NameScope, job: JobId, uid: Uid, name: &str) -> (PathBuf, PathBuf) {
        match scope {
            NameScope::Job => {
                (self.job(job).join("kept").join(name), self.scratch(job).join(format!("kept-{name}")))
            }
            NameScope::User => {
                let uid = uid.to_string();
                (self.kept_records().join(&uid).join(name), self.kept_written().join(&uid).join(name))
            }
        }
    }
    /// The client programs for containers.
    pub fn client_programs(&self) -> PathBuf {
        self.state.join("client-bin")
    }
    /// The image store, where it is in memory.
    pub fn images_in_memory(&self) -> PathBuf {
        self.state.join("images-memory")
    }
    /// The image store, where the configuration names no place for it.
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }
}
