//! A task: one program in a container, as the supervisor asks init to start it.

use crate::around::TaskProgram;
use berth_model::ByteStr;
use berth_model::bind::plan::MemoryNodes;
use berth_model::spec::TermSize;
use std::os::fd::OwnedFd;

/// Standard streams of a task.
#[derive(Debug, Default)]
pub enum TaskStdio {
    /// `/dev/null` for all three.
    #[default]
    Null,
    /// Descriptors; what is absent is `/dev/null`.
    Fds {
        /// Standard input.
        stdin: Option<OwnedFd>,
        /// Standard output.
        stdout: Option<OwnedFd>,
        /// Standard error.
        stderr: Option<OwnedFd>,
    },
    /// A terminal from the container's own devpts; its master comes with [`crate::Event::Started`].
    Pty(TermSize),
}

/// One program to start.
#[derive(Debug, Default)]
pub struct TaskSpec {
    /// Number by which events speak of it.
    pub id: u32,
    /// Program and arguments; empty runs the plan's own command.
    pub argv: Vec<ByteStr>,
    /// `NAME=value` strings over the plan's environment.
    pub env: Vec<ByteStr>,
    /// Working directory and what named it; absent means the plan's.
    pub cwd: Option<(ByteStr, String)>,
    /// Standard streams.
    pub stdio: TaskStdio,
    /// CPUs it is bound to; empty leaves it free within the cgroup's.
    pub cpus: Vec<u32>,
    /// NUMA nodes from which it has its memory; absent leaves that to the kernel.
    pub memory: Option<MemoryNodes>,
    /// The list of processes of a control group that it enters first ([`crate::cgroup::Cgroup::without`]).
    pub group: Option<OwnedFd>,
    /// Lines that it writes to its standard error before its program runs: what stands before its pid, and what behind.
    pub says: Vec<[String; 2]>,
    /// File mode creation mask; absent means 022.
    pub umask: Option<u32>,
    /// A variable that receives the task's pid as its processes see it (`SLURM_TASK_PID`).
    pub pid_env: Option<String>,
    /// What messages call the program, where its path means nothing to the user (a script in a memory file).
    pub name: Option<String>,
    /// Further descriptors and the numbers they have in the task, such as a script's.
    pub extra_fds: Vec<(i32, OwnedFd)>,
    /// Programs that run before it, in order: what they say changes its environment ([`TaskProgram`]).
    pub before: Vec<TaskProgram>,
    /// Programs that run when it has ended, in order. Its end is told after them.
    pub after: Vec<TaskProgram>,
    /// The container ends with this task, without being told to.
    pub last: bool,
}
