//! Every variable that Slurm sets in batch scripts and tasks is set here, too, or is excused by name.

use super::*;
use crate::devices::SHARD;
use crate::ids::SubmissionId;
use crate::options::{self, Command, Context, Source, Submitter, resolve, rows};
use std::collections::BTreeSet;

/// As the reference lists what was seen in batch scripts of Slurm 26.05, always and under conditions; of a family of the same name
/// with other numbers the first.
const OF_SCRIPTS: &str = "ENVIRONMENT HOSTNAME TMPDIR SLURMD_NODENAME SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_ARRAY_TASK_COUNT \
    SLURM_ARRAY_TASK_MAX SLURM_ARRAY_TASK_MIN SLURM_ARRAY_TASK_STEP SLURM_CLUSTER_NAME SLURM_CONF SLURM_CPUS_ON_NODE \
    SLURM_CPUS_PER_TASK SLURM_GTIDS SLURM_JOBID SLURM_JOB_ID SLURM_JOB_ACCOUNT SLURM_JOB_CPUS_PER_NODE SLURM_JOB_END_TIME \
    SLURM_JOB_START_TIME SLURM_JOB_GID SLURM_JOB_UID SLURM_JOB_USER SLURM_JOB_NAME SLURM_JOB_NODELIST SLURM_JOB_NUM_NODES \
    SLURM_JOB_PARTITION SLURM_JOB_QOS SLURM_LOCALID SLURM_MEM_PER_NODE SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_NNODES SLURM_NODEID \
    SLURM_NODELIST SLURM_NPROCS SLURM_NTASKS SLURM_PRIO_PROCESS SLURM_PROCID SLURM_SUBMIT_DIR SLURM_SUBMIT_HOST \
    SLURM_TASKS_PER_NODE SLURM_TASK_PID SLURM_TOPOLOGY_ADDR SLURM_TOPOLOGY_ADDR_PATTERN SLURM_JOB_SLUID SLURM_JOB_EXCLUSIVE \
    SLURM_JOB_OVERSUBSCRIBE SLURM_OOM_KILL_STEP SLURM_STEP_ID SLURM_TRES_PER_TASK SLURM_CONTAINER SLURM_CONTAINER_ID \
    SLURM_CPUS_PER_GPU SLURM_DIST_PLANESIZE SLURM_DISTRIBUTION SLURM_EXPORT_ENV SLURM_GPUS SLURM_GPUS_ON_NODE SLURM_GPUS_PER_NODE \
    SLURM_GPUS_PER_SOCKET SLURM_GPUS_PER_TASK SLURM_GPU_BIND SLURM_GPU_FREQ SLURM_JOB_GPUS CUDA_VISIBLE_DEVICES \
    ROCR_VISIBLE_DEVICES ZE_AFFINITY_MASK SLURM_JOB_DEPENDENCY SLURM_JOB_LICENSES SLURM_JOB_RESERVATION SLURM_JOB_SEGMENT_SIZE \
    SLURM_HET_SIZE SLURM_JOB_ID_HET_GROUP_0 SLURM_NETWORK SLURM_NTASKS_PER_CORE SLURM_NTASKS_PER_GPU SLURM_NTASKS_PER_NODE \
    SLURM_NTASKS_PER_SOCKET SLURM_OVERCOMMIT SLURM_PROFILE SLURM_RESTART_COUNT SLURM_SHARDS_ON_NODE SLURM_THREADS_PER_CORE \
    SLURM_RUNTIME";

/// Likewise what is added or is another in the tasks of steps.
const OF_TASKS: &str = "SLURM_PROCID SLURM_LOCALID SLURM_NODEID SLURM_GTIDS SLURM_TASK_PID SLURM_STEPID SLURM_STEP_ID \
    SLURM_STEP_NODELIST SLURM_STEP_NUM_NODES SLURM_STEP_NUM_TASKS SLURM_STEP_TASKS_PER_NODE SLURM_STEP_LAUNCHER_PORT \
    SLURM_SRUN_COMM_HOST SLURM_SRUN_COMM_PORT SLURM_LAUNCH_NODE_IPADDR SLURM_CPU_BIND SLURM_CPU_BIND_TYPE SLURM_CPU_BIND_LIST \
    SLURM_CPU_BIND_VERBOSE SLURM_DISTRIBUTION SLURM_DIST_PLANESIZE SLURM_UMASK SLURM_JOB_GROUP SLURM_STEP_GPUS SLURM_NTASKS \
    SLURM_NPROCS SLURM_TASKS_PER_NODE SLURM_CPUS_ON_NODE PMI_RANK PMIX_RANK OMPI_MCA_plm_slurm_args SLURM_PTY_PORT \
    SLURM_PTY_WIN_COL SLURM_PTY_WIN_ROW";

/// Why one is not set here.
enum Excuse {
    /// It tells of an option that is refused by name.
    Refused(&'static str),
    /// The supervisor sets it, which knows the node. Its tests show it.
    BySupervisor(&'static str),
    /// There is nothing that it could tell; the list of differences says so.
    Nothing(&'static str),
}

use Excuse::{BySupervisor, Nothing, Refused};

const EXCUSED: &[(&str, Excuse)] = &[
    ("OMPI_MCA_plm_slurm_args", Nothing("mpirun's own srun needs no option: it is an ordinary step here")),
    ("PMIX_RANK", BySupervisor("agent/step/src/supervisor/pmix.rs; mpi")),
    ("PMI_RANK", BySupervisor("agent/step/src/supervisor/pmi.rs; mpi")),
    ("SLURM_CONF", Nothing("there is no slurm.conf")),
    ("SLURM_CONTAINER", Refused("container")),
    ("SLURM_CONTAINER_ID", Refused("container-id")),
    ("SLURM_CPU_BIND", BySupervisor("agent/step/src/supervisor/binding.rs; binding")),
    ("SLURM_CPU_BIND_LIST", BySupervisor("agent/step/src/supervisor/binding.rs; binding")),
    ("SLURM_CPU_BIND_TYPE", BySupervisor("agent/step/src/supervisor/binding.rs; binding")),
    ("SLURM_CPU_BIND_VERBOSE", BySupervisor("agent/step/src/supervisor/binding.rs; binding")),
    ("SLURM_GPU_FREQ", Refused("gpu-freq")),
    ("SLURM_JOB_DEPENDENCY", Refused("dependency")),
    ("SLURM_JOB_LICENSES", Refused("licenses")),
    ("SLURM_JOB_RESERVATION", Refused("reservation")),
    ("SLURM_JOB_SEGMENT_SIZE", Refused("segment")),
    ("SLURM_NETWORK", Refused("network")),
    ("SLURM_NTASKS_PER_CORE", Refused("ntasks-per-core")),
    ("SLURM_NTASKS_PER_SOCKET", Refused("ntasks-per-socket")),
    ("SLURM_PROFILE", Refused("profile")),
    ("SLURM_PTY_PORT", Nothing("srun listens on no port: a window's size goes by the step's stream")),
    ("SLURM_RUNTIME", Refused("runtime")),
    ("SLURM_SRUN_COMM_PORT", Nothing("srun listens on no port")),
    ("SLURM_STEP_LAUNCHER_PORT", Nothing("srun listens on no port")),
    ("SLURM_THREADS_PER_CORE", Refused("threads-per-core")),
];

/// Names of what a command with these options sends with the job or step.
fn sent_by(command: Command, line: &str, inside: bool) -> BTreeSet<String> {
    let words: Vec<ByteStr> = line.split_whitespace().map(ByteStr::from).collect();
    let settings = options::parse(command, &words, Source::CommandLine).unwrap().settings;
    let context = Context { now: Time(0), zone: jiff::tz::TimeZone::UTC };
    let by = Submitter {
        submission: SubmissionId("s".into()),
        default_name: "name".into(),
        cwd: ByteStr::from("/home/alice/work"),
        umask: 0o22,
        nice: 0,
        limits: Limits::default(),
        in_job: inside,
        host: "node0".into(),
        sid: 7,
        command: ByteStr::from("true"),
        submit_line: ByteStr::from("true"),
    };
    let sent = resolve(command, settings, &context).unwrap().environment(&[], &by, inside);
    let text = sent.iter().map(|variable| variable.display().into_owned());
    text.filter_map(|text| Some(text.split_once('=')?.0.to_string())).collect()
}

/// Names of what is set for a task, whatever may be about the job and the step.
fn set_for(step: StepId) -> BTreeSet<String> {
    let mut plain = minimal();
    plain.key.step = step;
    let gpu = GresDevice { name: "gpu".into(), ..GresDevice::default() };
    let mut rich = plain.clone();
    rich.job.array = Some(ArrayPlace { array: JobId(1), task: 1, count: 1, min: 1, max: 1, step: 1 });
    rich.job.restarts = 1;
    rich.job.sluid = Some(Sluid(1));
    (rich.job.tasks, rich.job.tasks_per_node, rich.job.cpus_per_task) = (Some(1), Some(1), Some(1));
    rich.overcommit = true;
    rich.share.gres = vec![gpu.clone()];
    rich.job.share.gres = vec![gpu.clone()];
    rich.distribution = Distribution::Plane(2);
    rich.pty = Some(TermSize { rows: 24, cols: 80 });
    rich.pytorch = true;
    rich.client_address = Some("10.0.0.1".into());
    let mut by_node = plain.clone();
    by_node.job.mem_per_cpu = None;
    let mut by_gpu = by_node.clone();
    by_gpu.job.mem_per_gpu = Some(100);
    by_gpu.share.gres = vec![GresDevice { name: SHARD.into(), shares: 2, ..gpu }];
    let mut parts = plain.clone();
    let group = HetGroup {
        job: JobId(355),
        partition: "debug".into(),
        layout: (*plain.layout).clone(),
        tasks: None,
        tasks_per_node: None,
        cpus_per_task: None,
        mem_per_node: None,
        mem_per_cpu: None,
    };
    parts.job.het = Some(HetFacts { leader: JobId(355), offset: 0, groups: vec![group] });
    let place = TaskPlace { local: 0, pid: Some(1), devices: Devices::Confined };
    let all = [plain, rich, by_node, by_gpu, parts];
    all.iter().flat_map(|launch| step_environment(launch, place)).map(|(name, _)| name).collect()
}

/// All that scripts have, and all that tasks have.
fn told() -> [BTreeSet<String>; 2] {
    let mut scripts = set_for(StepId::Batch);
    for line in [
        "-n2 -m plane=2 --export=ALL --get-user-env --open-mode=append --gpus=4 --gpus-per-node=2 --cpus-per-gpu=2 \
         --gpu-bind=closest",
        "-n2 --gpus-per-task=1",
        "-n2 --tres-per-task=gres/gpu=1",
        "--gpus-per-socket=1",
        "-n2 --ntasks-per-gpu=2",
    ] {
        scripts.extend(sent_by(Command::Sbatch, line, false));
    }
    let mut tasks = set_for(StepId::Number(0));
    tasks.extend(sent_by(Command::Srun, "--label --tres-per-task=gres/gpu=1", true));
    [scripts, tasks]
}

#[test]
fn all_of_slurms_variables_are_set_or_excused() {
    let [scripts, tasks] = told();
    let mut listed = BTreeSet::new();
    for (who, list, set) in [("scripts", OF_SCRIPTS, &scripts), ("tasks", OF_TASKS, &tasks)] {
        for name in list.split_whitespace() {
            listed.insert(name);
            let excused = EXCUSED.iter().any(|(excused, _)| *excused == name);
            assert!(set.contains(name) || excused, "{name} is not set for {who}, and nobody says why");
            assert!(!(set.contains(name) && excused), "{name} is set for {who}: it needs no excuse");
        }
    }
    assert!(listed.len() > 100, "{}", listed.len());
    let differences = include_str!("../../../../docs/slurm-differences.md");
    for (name, excuse) in EXCUSED {
        assert!(listed.contains(name), "{name} is no variable of Slurm's");
        match excuse {
            Refused(option) => {
                let refused = |row: &options::OptionRow| row.long == *option && !row.works();
                let is = Command::ALL.iter().any(|command| rows(*command).any(refused));
                assert!(is, "{name}: --{option} is there, so tell of it");
            }
            Nothing(why) => {
                assert!(differences.contains(&format!("`{name}`")), "{name} is not in the list: {why}");
            }
            BySupervisor(place) => assert!(place.starts_with("agent/step/"), "{name}: {place}"),
        }
    }
}

#[test]
fn nothing_of_it_is_left_to_a_job_that_is_submitted_from_inside() {
    let own = ["TMPDIR", "HOSTNAME"];
    // A user may have these of his own, for other programs of torch's.
    let torch = ["MASTER_", "RANK", "LOCAL_", "GROUP_RANK", "WORLD_SIZE"];
    for name in told().into_iter().flatten() {
        let not_slurms = own.contains(&name.as_str()) || torch.iter().any(|word| name.starts_with(word));
        assert!(not_slurms || is_job_variable(name.as_bytes()), "{name}");
    }
}
