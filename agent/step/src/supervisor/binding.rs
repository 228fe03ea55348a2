//! Binds a step's tasks to CPUs and NUMA nodes of the node: `--cpu-bind` and `--mem-bind`.

use super::step::LaunchFailure;
use berth_model::ByteStr;
use berth_model::bind::plan::{self, CannotBind, Here, MemoryNodes};
use berth_model::bind::{CpuBind, CpuHow, MemBind, MemHow, hex, loudness};
use berth_model::hardware::Core;
use berth_model::launch::StepLaunch;
use berth_runtime::TaskSpec;

/// What one task is bound to.
pub struct Bound {
    /// CPUs, where `--cpu-bind` says so.
    pub(super) cpus: Option<Vec<u32>>,
    memory: Option<MemoryNodes>,
    env: Vec<ByteStr>,
    says: Vec<[String; 2]>,
}

impl Bound {
    /// Has the task bound.
    pub fn put(self, task: &mut TaskSpec) {
        if let Some(cpus) = self.cpus {
            task.cpus = cpus;
        }
        task.memory = self.memory;
        task.env.extend(self.env);
        task.says = self.says;
    }
}

/// What each task of the step on this node is bound to; nothing where nobody asked.
pub fn of_tasks(launch: &StepLaunch, cores: &[Core]) -> Result<Vec<Bound>, LaunchFailure> {
    if !launch.binds() {
        return Ok(Vec::new());
    }
    let memory = if launch.mem_bind.is_some() { with_memory() } else { Vec::new() };
    of_tasks_with(launch, cores, &memory)
}

fn of_tasks_with(
    launch: &StepLaunch,
    cores: &[Core],
    memory_here: &[u32],
) -> Result<Vec<Bound>, LaunchFailure> {
    let tasks = launch.layout.tasks.get(launch.node_index as usize).map(Vec::as_slice).unwrap_or_default();
    let here = Here {
        cores,
        cpus: &launch.share.cpus,
        memory: memory_here,
        tasks: u32::try_from(tasks.len()).unwrap_or(u32::MAX),
        per_task: launch.cpus_per_task,
        sockets: launch.sockets.unwrap_or_default(),
    };
    let cannot = |option: String| {
        move |e: CannotBind| {
            let task = tasks.get(e.local as usize).copied().unwrap_or(e.local);
            // Whoever tells of it puts the node before it.
            LaunchFailure::new(format!("task {task} cannot be bound by {option}: {}", e.why))
        }
    };
    let cpu_bind = launch.cpu_binding();
    let cpus = match &cpu_bind {
        Some(bind) => plan::cpus(bind, here).map_err(cannot(format!("--cpu-bind={bind}")))?,
        None => vec![launch.share.cpus.clone(); tasks.len()],
    };
    let nodes = match &launch.mem_bind {
        Some(bind) => plan::memory(bind, here, &cpus).map_err(cannot(format!("--mem-bind={bind}")))?,
        None => vec![None; tasks.len()],
    };
    let mut env = Vec::new();
    if let Some(bind) = &cpu_bind {
        env.extend(cpu_variables(bind, &cpus));
    }
    if let Some(bind) = &launch.mem_bind {
        env.extend(memory_variables(bind, &nodes));
    }
    let each = tasks.iter().zip(0_u32..).zip(cpus).zip(nodes);
    Ok(each
        .map(|(((task, local), cpus), memory)| {
            // As Slurm writes it.
            let head = |what: &str| format!("{what} - {}, task {task:2} {local:2} [", launch.node.0);
            let mut says = Vec::new();
            if let Some(bind) = cpu_bind.as_ref().filter(|bind| bind.verbose) {
                let set = if bind.how == CpuHow::None { "" } else { " set" };
                says.push([head(cpu_head(&bind.how)), format!("]: mask {}{set}", hex(&cpus))]);
            }
            if let Some(bind) = launch.mem_bind.as_ref().filter(|bind| bind.verbose) {
                let (mask, set) = match &memory {
                    Some(memory) => (hex(&memory.nodes), " set"),
                    None => (hex(memory_here), ""),
                };
                says.push([head(memory_head(&bind.how)), format!("]: mask {mask}{set}")]);
            }
            let cpus = cpu_bind.is_some().then_some(cpus);
            Bound { cpus, memory, env: env.clone(), says }
        })
        .collect())
}

/// What stands before the node in the line of `verbose`.
fn cpu_head(how: &CpuHow) -> &'static str {
    match how {
        CpuHow::None => "cpu-bind=NONE",
        CpuHow::Rank => "cpu-bind=RANK",
        CpuHow::Map(_) => "cpu-bind=MAP",
        CpuHow::RankLdom => "cpu-bind=LDRANK",
        CpuHow::MapLdom(_) => "cpu-bind=LDMAP",
        CpuHow::MaskLdom(_) => "cpu-bind=LDMASK",
        CpuHow::Mask(_)
        | CpuHow::Threads
        | CpuHow::Cores
        | CpuHow::Sockets
        | CpuHow::Ldoms
        | CpuHow::Boards => "cpu-bind=MASK",
    }
}

fn memory_head(how: &MemHow) -> &'static str {
    match how {
        MemHow::None => "mem-bind=NONE",
        MemHow::Local => "mem-bind=LOC",
        MemHow::Rank => "mem-bind=RANK",
        MemHow::Map(_) => "mem-bind=MAP",
        MemHow::Mask(_) => "mem-bind=MASK",
    }
}

/// What was made of the option on this node: of sockets, cores and threads the masks of all tasks here, as Slurm has it.
fn cpu_variables(bind: &CpuBind, cpus: &[Vec<u32>]) -> [ByteStr; 4] {
    let masks = || cpus.iter().map(|cpus| hex(cpus)).collect::<Vec<_>>().join(",");
    let (word, list) = match &bind.how {
        CpuHow::Threads | CpuHow::Cores | CpuHow::Sockets | CpuHow::Ldoms => ("mask_cpu:", masks()),
        how => how.words(),
    };
    let loudness = loudness(bind.verbose);
    [
        format!("SLURM_CPU_BIND={loudness},{word}{list}").into(),
        format!("SLURM_CPU_BIND_LIST={list}").into(),
        format!("SLURM_CPU_BIND_TYPE={word}").into(),
        format!("SLURM_CPU_BIND_VERBOSE={loudness}").into(),
    ]
}

fn memory_variables(bind: &MemBind, nodes: &[Option<MemoryNodes>]) -> [ByteStr; 6] {
    let masks = || nodes.iter().flatten().map(|memory| hex(&memory.nodes)).collect::<Vec<_>>().join(",");
    let (word, mut list) = bind.how.words();
    if matches!(bind.how, MemHow::Local) {
        list = masks();
    }
    let loudness = loudness(bind.verbose);
    let prefer = if bind.prefer { "prefer" } else { "" };
    [
        format!("SLURM_MEM_BIND={bind}").into(),
        format!("SLURM_MEM_BIND_LIST={list}").into(),
        format!("SLURM_MEM_BIND_PREFER={prefer}").into(),
        "SLURM_MEM_BIND_SORT=".into(),
        format!("SLURM_MEM_BIND_TYPE={word}").into(),
        format!("SLURM_MEM_BIND_VERBOSE={loudness}").into(),
    ]
}

/// NUMA nodes with memory; none where the kernel says nothing of them.
fn with_memory() -> Vec<u32> {
    let list = std::fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default();
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?.min(1023))
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::ids::{Attempt, JobId, StepId, StepKey};

    fn launch(cpu: &str) -> (StepLaunch, Vec<Core>) {
        let key = StepKey { job: JobId(1), attempt: Attempt(0), step: StepId::Number(0) };
        let mut launch = berth_samples::launch(key);
        std::sync::Arc::make_mut(&mut launch.layout).tasks = vec![vec![0, 1], vec![2, 3]];
        launch.node_index = 1;
        launch.node = "n2".into();
        launch.share.cpus = vec![0, 1, 4, 5];
        launch.cpu_bind = Some(cpu.parse().unwrap());
        let cores = [0, 1].map(|n| Core { socket: n, numa: n, cpus: vec![n, n + 4] });
        (launch, cores.to_vec())
    }

    fn texts(bound: &Bound) -> Vec<String> {
        bound.env.iter().map(|e| e.display().into_owned()).collect()
    }

    #[test]
    fn tasks_say_and_know_what_they_are_bound_to() {
        let (mut launch, cores) = launch("verbose,cores");
        launch.mem_bind = Some("verbose,prefer,local".parse().unwrap());
        let bound = of_tasks_with(&launch, &cores, &[0, 1]).unwrap();
        assert_eq!(bound[1].cpus, Some(vec![1, 5]));
        assert_eq!(bound[1].memory, Some(MemoryNodes { nodes: vec![1], prefer: true }));
        assert_eq!(
            bound[1].says.iter().map(|s| s.join("77")).collect::<Vec<_>>(),
            [
                "cpu-bind=MASK - n2, task  3  1 [77]: mask 0x22 set",
                "mem-bind=LOC - n2, task  3  1 [77]: mask 0x2 set"
            ]
        );
        assert_eq!(
            texts(&bound[0]),
            [
                "SLURM_CPU_BIND=verbose,mask_cpu:0x11,0x22",
                "SLURM_CPU_BIND_LIST=0x11,0x22",
                "SLURM_CPU_BIND_TYPE=mask_cpu:",
                "SLURM_CPU_BIND_VERBOSE=verbose",
                "SLURM_MEM_BIND=verbose,prefer,local",
                "SLURM_MEM_BIND_LIST=0x1,0x2",
                "SLURM_MEM_BIND_PREFER=prefer",
                "SLURM_MEM_BIND_SORT=",
                "SLURM_MEM_BIND_TYPE=local",
                "SLURM_MEM_BIND_VERBOSE=verbose",
            ]
        );
    }

    #[test]
    fn a_layout_over_sockets_binds_to_cores_unless_another_way_is_asked_for() {
        let (mut launch, cores) = launch("cores");
        (launch.cpus_per_task, launch.share.cpus) = (1, vec![0, 1, 2, 3]);
        let cores: Vec<Core> = cores
            .into_iter()
            .chain([2, 3].map(|n| Core { socket: n % 2, numa: n % 2, cpus: vec![n] }))
            .collect();
        let bound = |launch: &StepLaunch| {
            of_tasks_with(launch, &cores, &[]).unwrap().into_iter().map(|b| b.cpus).collect::<Vec<_>>()
        };
        launch.cpu_bind = None;
        launch.sockets = Some(plan::Sockets::Block);
        assert!(launch.binds());
        assert_eq!(bound(&launch), [Some(vec![0]), Some(vec![2])]);
        launch.sockets = Some(plan::Sockets::Cyclic);
        assert_eq!(bound(&launch), [Some(vec![0]), Some(vec![1])]);
        launch.cpu_bind = Some("sockets".parse().unwrap());
        assert_eq!(bound(&launch), [Some(vec![0, 2]), Some(vec![1, 3])]);
        launch.cpu_bind = None;
        launch.key.step = StepId::Batch;
        assert!(!launch.binds(), "a script is not bound");
    }

    #[test]
    fn a_task_that_cannot_be_bound_is_named() {
        let (launch, cores) = launch("map_cpu:0,2");
        let why = of_tasks_with(&launch, &cores, &[]).map(|_| ()).unwrap_err().text;
        assert!(
            why.starts_with(
                "task 3 cannot be bound by --cpu-bind=quiet,map_cpu:0,2: CPU 2 is not the step's, which has CPUs 0-1,4-5"
            ),
            "{why}"
        );
    }
}
