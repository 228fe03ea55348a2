//! Options of Slurm's that this release does not have. Each is refused by name with what to do instead; none is
//! accepted and ignored.

use crate::options::row::{Commands, OptionRow, refused};

const ABR: Commands = Commands::ABR;
const AB: Commands = Commands::AB;
const A: Commands = Commands::A;
const B: Commands = Commands::B;
const R: Commands = Commands::R;

const CORES: &str = "cores are always given whole; ask with --ntasks, --cpus-per-task and --exclusive";
const LAYOUT: &str = "lay tasks out with --nodes, --ntasks and --ntasks-per-node";
const NODES: &str = "name partitions and nodes with --partition, --nodelist and --exclude";
const COPY: &str = "put the program where all nodes see it, or into the image";
const ONE_CLUSTER: &str = "choose the cluster by its state directory: BERTH_STATE";
const MAIL: &str = "send mail at the end of the script, or wait with 'sbatch --wait' and send it then";
const UNUSED: &str = "leave it out";
const CONTAINER: &str = "use --container-image, which takes OCI layouts, archives and root directories";
const NAMED: &str = "use --container-name";

pub(super) static ROWS: &[OptionRow] = &[
    refused("accel-bind", R, "bind tasks to GPUs with --gpu-bind").takes("FLAGS"),
    refused("acctg-freq", ABR, "the usage of each step is recorded when it ends; see sacct")
        .takes("SECONDS")
        .env(&["SLURM_ACCTG_FREQ", "SBATCH_ACCTG_FREQ", "SALLOC_ACCTG_FREQ"]),
    refused("async", R, "put srun in the background with '&' and wait for it with the shell's 'wait'"),
    refused("batch", B, NODES).takes("FEATURES").env(&["SBATCH_BATCH"]),
    refused("bb", ABR, COPY).takes("SPEC").env(&["SALLOC_BURST_BUFFER"]),
    refused("bbf", ABR, COPY).takes("FILE").env(&["SLURM_BURST_BUFFER"]),
    refused("bcast-exclude", R, COPY).takes("PATHS"),
    refused("cluster-constraint", B, ONE_CLUSTER).takes("LIST"),
    refused("clusters", ABR, ONE_CLUSTER).short(b'M').takes("NAMES").env(&[
        "SLURM_CLUSTERS",
        "SBATCH_CLUSTERS",
        "SALLOC_CLUSTERS",
    ]),
    refused("compress", R, COPY).may_take("TYPE"),
    refused("consolidate-segments", ABR, NODES),
    refused("constraint", ABR, NODES).short(b'C').takes("FEATURES").env(&[
        "SLURM_CONSTRAINT",
        "SBATCH_CONSTRAINT",
        "SALLOC_CONSTRAINT",
    ]),
    refused("container", ABR, CONTAINER).takes("BUNDLE").env(&[
        "SRUN_CONTAINER",
        "SBATCH_CONTAINER",
        "SALLOC_CONTAINER",
    ]),
    refused("container-id", ABR, NAMED).takes("ID").env(&[
        "SRUN_CONTAINER_ID",
        "SBATCH_CONTAINER_ID",
        "SALLOC_CONTAINER_ID",
    ]),
    refused("container-save", A, "give it to srun or sbatch: salloc itself runs nothing in a container")
        .takes("PATH")
        .env(&["PYXIS_CONTAINER_SAVE"]),
    refused(
        "container-entrypoint-log",
        ABR,
        "an entrypoint's output is always shown, with the task's own; leave it out",
    )
    .env(&["PYXIS_CONTAINER_ENTRYPOINT_LOG"]),
    refused("context", ABR, "leave it out: tasks run in the security context of their container")
        .takes("LABEL"),
    refused("contiguous", ABR, NODES),
    refused("core-spec", ABR, "reserve cores in the program, or ask for fewer with --cpus-per-task")
        .short(b'S')
        .takes("CORES")
        .env(&["SLURM_CORE_SPEC", "SBATCH_CORE_SPEC", "SALLOC_CORE_SPEC"]),
    refused("cores-per-socket", ABR, CORES).takes("CORES"),
    refused("cpu-freq", ABR, "set the frequency on the node with cpupower")
        .takes("FREQUENCY")
        .env(&["SLURM_CPU_FREQ_REQ"]),
    refused("deadline", ABR, "bound the run with --time and the start with --begin").takes("TIME"),
    refused("debugger-test", R, UNUSED),
    refused("delay-boot", ABR, "nodes are not powered by the scheduler; leave it out")
        .takes("MINUTES")
        .env(&["SLURM_DELAY_BOOT", "SBATCH_DELAY_BOOT", "SALLOC_DELAY_BOOT"]),
    refused("dependency", ABR, "wait for the first job with 'sbatch --wait', or run both from one script")
        .short(b'd')
        .takes("LIST")
        .env(&["SLURM_DEPENDENCY"]),
    refused("export-file", B, "set the variables in the script, or write --export=ALL,NAME=VALUE,...")
        .takes("FILE"),
    refused(
        "external",
        A,
        "submit 'sbatch --wrap \"sleep infinity\"' and run steps in it with 'srun --jobid'",
    ),
    refused("external-launcher", R, "start the launcher as the step's program: srun -n1 --overlap LAUNCHER")
        .may_take("TYPE"),
    refused("extra", ABR, "use --comment").takes("TEXT"),
    refused("extra-node-info", ABR, CORES).short(b'B').takes("SOCKETS[:CORES[:THREADS]]"),
    refused("gid", AB, "submit as that user, with 'sudo -u USER -g GROUP'").takes("GROUP"),
    refused("gpu-freq", ABR, "have an administrator set it in the prolog with the vendor's tool (nvidia-smi -lgc): no user may change the clocks of a node").takes("FREQUENCY").env(&[
        "SLURM_GPU_FREQ",
        "SBATCH_GPU_FREQ",
        "SALLOC_GPU_FREQ",
    ]),
    refused("hint", ABR, CORES).takes("TYPE").env(&["SLURM_HINT", "SBATCH_HINT", "SALLOC_HINT"]),
    refused("ignore-signals", R, "catch signals in the program, or with the shell's trap").takes("SIGNALS"),
    refused("interactive", R, "use 'srun --pty' with a shell as the program"),
    refused("kill-on-invalid-dep", B, "jobs do not depend on one another in this release; leave it out")
        .takes("yes|no"),
    refused("licenses", ABR, "limit how many run at once with an array's %N")
        .short(b'L')
        .takes("NAME[:COUNT],..."),
    refused("mail-type", ABR, MAIL).takes("EVENTS"),
    refused("mail-user", ABR, MAIL).takes("ADDRESS"),
    refused("mcs-label", ABR, UNUSED).takes("LABEL"),
    refused("mem-bind", AB, "give it to the srun that starts the step")
        .takes("TYPE")
        .env(&["SBATCH_MEM_BIND", "SALLOC_MEM_BIND"]),
    refused("mem-update", ABR, "ask for the most that the job needs with --mem").takes("SIZE"),
    refused("mincpus", ABR, "use --cpus-per-task, or --ntasks-per-node").takes("CPUS"),
    refused("msg-timeout", R, UNUSED).takes("SECONDS"),
    refused("network", ABR, "leave it out: all of the node's interfaces can be used").takes("TYPE").env(&[
        "SLURM_NETWORK",
        "SBATCH_NETWORK",
        "SALLOC_NETWORK",
    ]),
    refused("no-allocate", R, "every step has an allocation; leave it out").short(b'Z'),
    refused("no-kill", ABR, "a job ends with its nodes; use --requeue to run it again")
        .short(b'k')
        .may_take("off")
        .env(&["SLURM_NO_KILL", "SBATCH_NO_KILL", "SALLOC_NO_KILL"]),
    refused("ntasks-per-core", ABR, LAYOUT).takes("TASKS").env(&["SLURM_NTASKS_PER_CORE"]),
    refused("ntasks-per-socket", ABR, LAYOUT).takes("TASKS"),
    refused("ntasks-per-tres", ABR, LAYOUT).takes("TASKS"),
    refused(
        "oom-kill-step",
        ABR,
        "the kernel kills what exceeds the memory and the step's state says so; leave it out",
    )
    .may_take("0|1"),
    refused(
        "oversubscribe",
        ABR,
        "nodes are shared unless --exclusive is given, and cores are not; leave it out",
    )
    .short(b's'),
    refused("prefer", ABR, NODES).takes("FEATURES"),
    refused("preserve-env", R, "name what is wanted: --nodes, --ntasks").short(b'E'),
    refused("priority", ABR, "use --nice, or 'scontrol hold' and 'scontrol release'").takes("VALUE"),
    refused("profile", ABR, "run the profiler as the step's program").takes("TYPE").env(&[
        "SLURM_PROFILE",
        "SBATCH_PROFILE",
        "SALLOC_PROFILE",
    ]),
    refused("qos", ABR, "choose with --partition and --nice").short(b'q').takes("NAME").env(&[
        "SLURM_QOS",
        "SBATCH_QOS",
        "SALLOC_QOS",
    ]),
    refused("reboot", AB, "ask an administrator to drain and reboot the node"),
    refused("reservation", ABR, "start at a time with --begin; there are no reservations")
        .takes("NAMES")
        .env(&["SLURM_RESERVATION", "SBATCH_RESERVATION", "SALLOC_RESERVATION"]),
    refused("resources", ABR, "use --ntasks, --cpus-per-task, --mem and --gres").takes("LIST"),
    refused("resv-ports", R, "let the program choose free ports")
        .may_take("COUNT")
        .env(&["SLURM_RESV_PORTS"]),
    refused("runtime", R, CONTAINER).takes("NAME").env(&["SRUN_RUNTIME"]),
    refused("segment", ABR, NODES).takes("SIZE").env(&["SRUN_SEGMENT_SIZE"]),
    refused("spread-segments", ABR, NODES),
    refused("send-libs", R, COPY).may_take("yes|no").env(&["SLURM_SEND_LIBS"]),
    refused("slurmd-debug", R, "read the agent's log: 'berth status' names it").takes("LEVEL"),
    refused("sockets-per-node", ABR, CORES).takes("SOCKETS"),
    refused("spread-job", ABR, LAYOUT).env(&["SLURM_SPREAD_JOB", "SBATCH_SPREAD_JOB", "SALLOC_SPREAD_JOB"]),
    refused("stepmgr", AB, UNUSED),
    refused("switches", ABR, NODES).takes("COUNT[@TIME]").env(&[
        "SLURM_REQ_SWITCH",
        "SBATCH_REQ_SWITCH",
        "SALLOC_REQ_SWITCH",
        "SLURM_WAIT4SWITCH",
        "SBATCH_WAIT4SWITCH",
        "SALLOC_WAIT4SWITCH",
    ]),
    refused("thread-spec", ABR, "reserve threads in the program, or ask for fewer with --cpus-per-task")
        .takes("THREADS")
        .env(&["SBATCH_THREAD_SPEC", "SALLOC_THREAD_SPEC"]),
    refused("threads", R, UNUSED).short(b'T').takes("COUNT").env(&["SLURM_THREADS"]),
    refused("threads-per-core", ABR, CORES).takes("THREADS").env(&[
        "SLURM_THREADS_PER_CORE",
        "SBATCH_THREADS_PER_CORE",
        "SALLOC_THREADS_PER_CORE",
    ]),
    refused("time-min", ABR, "give one limit with --time").takes("LIMIT"),
    refused("tmp", ABR, "use --nodelist for a node with enough space").takes("SIZE"),
    refused("treewidth", R, UNUSED).takes("WIDTH"),
    refused("uid", AB, "submit as that user, with 'sudo -u USER'").takes("USER"),
    refused("use-min-nodes", ABR, "write --nodes with one number").env(&[
        "SLURM_USE_MIN_NODES",
        "SBATCH_USE_MIN_NODES",
        "SALLOC_USE_MIN_NODES",
    ]),
    refused("wait-all-nodes", AB, "a job starts when all of its nodes are ready; leave it out")
        .takes("0|1")
        .env(&["SBATCH_WAIT_ALL_NODES", "SALLOC_WAIT_ALL_NODES"]),
    refused("wait-for-children", R, "wait for the children in the program; a step ends with its tasks"),
    refused("wckey", ABR, "use --comment or --account").takes("KEY").env(&[
        "SLURM_WCKEY",
        "SBATCH_WCKEY",
        "SALLOC_WCKEY",
    ]),
    refused("whole", R, "a step has all of the job's CPUs unless --exact is given; leave it out"),
];

#[cfg(test)]
mod tests {
    #[test]
    fn each_refusal_says_what_to_do_instead() {
        use crate::options::row::Action;
        for row in super::ROWS {
            assert!(matches!(row.action, Action::Refused(text) if text.len() > 8), "{}", row.long);
        }
    }
}
