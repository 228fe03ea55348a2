//! What the options about devices come to together: on each node, for the whole job, for tasks; and what follows from them for
//! the number of tasks and nodes.

use super::resolve::{INVALID_RESOURCES, OptionError, Source};
use super::submit::SubmitOptions;
use crate::bind::gpu::{GpuBind, GpuHow};
use crate::count::NodeCount;
use crate::devices::{DeviceRequest, GPU, gpus, is_share, sum};
use crate::gres::{Wanted, print};
use crate::tres::GresKey;

/// What a job or step asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// On each node; absent where nothing was said of it.
    pub(super) per_node: Option<Wanted>,
    pub(super) devices: DeviceRequest,
    pub(super) ntasks: Option<u32>,
    pub(super) tasks_per_node: Option<u32>,
    pub(super) cpus_per_task: Option<u32>,
    pub(super) nodes: Option<NodeCount>,
    pub(super) bind: Option<GpuBind>,
}

/// The options that say how many GPUs there are, on each node first.
const NAMING: [&str; 6] =
    ["gres", "gpus-per-node", "gpus", "gpus-per-socket", "gpus-per-task", "tres-per-task"];

impl SubmitOptions {
    fn rank(&self, long: &str) -> Option<u8> {
        self.source(long).map(Source::rank)
    }

    /// The GPUs that an option names; `None` where it was not given or says nothing of them.
    fn gpus_of(&self, long: &str) -> Option<Wanted> {
        let wanted = match long {
            "gres" => self.gres.as_ref(),
            "gpus-per-node" => self.gpus_per_node.as_ref(),
            "gpus" => self.gpus.as_ref(),
            "gpus-per-socket" => self.devices.gpus_per_socket.as_ref(),
            "gpus-per-task" => self.devices.gpus_per_task.as_ref(),
            _ => Some(&self.devices.tres_per_task).filter(|wanted| !wanted.is_empty()),
        }?;
        let own = only_gpus(wanted);
        // `--gres=none` and `--gpus=0` decide that there are none; `--gres=nic:1` decides nothing of GPUs.
        (!own.is_empty() || wanted.is_empty()).then_some(own)
    }

    /// Whether an option is of the greatest source that names GPUs: what lesser ones say of them does not count.
    fn counts(&self, long: &str) -> bool {
        let naming = NAMING.iter().filter(|long| self.gpus_of(long).is_some());
        let greatest = naming.filter_map(|long| self.rank(long)).max();
        self.rank(long) == greatest && !self.is_overruled(long)
    }

    /// The CPUs of a task: of `--cpus-per-task` and `--tres-per-task` the one from the greater source, and neither where a
    /// greater source gives them with GPUs.
    fn task_cpus(&self) -> Option<u32> {
        let own = self.cpus_per_task.map(|n| (self.rank("cpus-per-task"), n));
        let tres = self.devices.cpus_by_tres.map(|n| (self.rank("tres-per-task"), n));
        let (rank, cpus) = own.into_iter().chain(tres).max_by_key(|(rank, _)| *rank)?;
        (self.devices.cpus_per_gpu.is_none() || rank > self.rank("cpus-per-gpu")).then_some(cpus)
    }

    /// All of it. `step`: of a step in a job that is there, whose tasks are known without a word.
    ///
    /// # Errors
    /// Options that contradict one another.
    pub(super) fn asked(&self, step: bool) -> Result<Asked, OptionError> {
        let mut out = Asked {
            ntasks: self.ntasks,
            tasks_per_node: self.ntasks_per_node,
            cpus_per_task: self.task_cpus(),
            nodes: self.nodes,
            ..Asked::default()
        };
        out.devices.nearness = self.devices.nearness;
        let of = |long: &str| self.gpus_of(long).filter(|_| self.counts(long));
        let given = |long: &str| of(long).map(|gpus| (long.to_string(), gpus));
        let per_node = agreed(given("gres"), given("gpus-per-node"))?;
        let per_task = agreed(given("gpus-per-task"), given("tres-per-task"))?;
        let (mut total, per_socket) = (of("gpus"), of("gpus-per-socket"));
        if let (Some(_), Some((other, _))) = (&per_socket, per_node.as_ref().or(per_task.as_ref())) {
            return Err(twice(&format!("--gpus-per-socket and --{other} both say how many GPUs there are")));
        }
        if let (Some(all), Some((long, each))) = (&total, &per_node)
            && let Some(nodes) = quotient(("gpus", all), (long.as_str(), each), PARTS_OF_NODES)?
        {
            match out.nodes {
                Some(n) if !(n.min..=n.max).contains(&nodes) => {
                    return Err(invalid(&format!(
                        ": --gpus={} with --{long}={} is {nodes} nodes, which --nodes does not allow",
                        amount(all),
                        amount(each)
                    )));
                }
                _ => out.nodes = Some(NodeCount { min: nodes, max: nodes }),
            }
            total = None;
        }
        if let (Some(all), Some((long, each))) = (&total, &per_task)
            && let Some(tasks) = quotient(("gpus", all), (long.as_str(), each), PARTS_OF_TASKS)?
        {
            match out.ntasks {
                Some(n) if n != tasks && self.rank("ntasks") == self.rank("gpus") => {
                    return Err(invalid(&format!(
                        ": {n} tasks with --{long}={} are {} GPUs, and --gpus={} was given",
                        amount(each),
                        u64::from(n).saturating_mul(gpus(each)),
                        amount(all)
                    )));
                }
                // Within a job its GPUs are known from its environment, and the step says how many tasks it has.
                Some(n) if n != tasks => {}
                _ if out.tasks_per_node.is_some() => {}
                _ => out.ntasks = Some(tasks),
            }
            total = None;
        }
        let mut each_task = per_task.as_ref().map(|(_, gpus)| gpus.clone());
        if let (Some((node_long, node)), Some((long, each))) = (&per_node, &per_task)
            && let Some(tasks) = quotient((node_long.as_str(), node), (long.as_str(), each), NODES_OF_TASKS)?
        {
            match out.tasks_per_node {
                // As above, of a step within a job.
                Some(n) if n != tasks && self.rank("ntasks-per-node") > self.rank(node_long) => {}
                Some(n) if n != tasks => {
                    return Err(invalid(&format!(
                        ": {n} tasks on a node with --{long}={} are {} GPUs, and --{node_long} gives {}",
                        amount(each),
                        u64::from(n).saturating_mul(gpus(each)),
                        amount(node)
                    )));
                }
                _ => out.tasks_per_node = Some(tasks),
            }
            each_task = None;
        }
        let per_task_wanted = per_task.as_ref().is_some_and(|(_, each)| !each.is_empty());
        if (per_task_wanted || !self.devices.tres_per_task.is_empty()) && !step {
            needs_tasks(&mut out, per_task_wanted)?;
        }
        let implied = per_task.as_ref().map(|(_, each)| gpus(each)).filter(|n| *n > 0);
        self.tasks_per_gpu(&mut out, total.as_ref(), per_node.as_ref().map(|(_, gpus)| gpus), step)?;
        out.devices.total = total.clone().unwrap_or_default();
        out.devices.per_socket = per_socket.clone().unwrap_or_default();
        let decided = NAMING.iter().any(|long| self.gpus_of(long).is_some());
        // What a job's environment says of other devices alone does not take from a step what else the job has.
        let told = matches!(self.source("tres-per-task"), Some(Source::Environment(_)));
        let others = match step && told && !decided {
            true => Wanted::new(),
            false => not_gpus(&self.devices.tres_per_task),
        };
        out.devices.per_task = sum(&each_task.unwrap_or_default(), &others);
        let plain = self.gres.as_ref().map(not_gpus);
        out.per_node = match (per_node, plain) {
            (Some((_, gpus)), plain) => Some(sum(&plain.unwrap_or_default(), &gpus)),
            (None, Some(plain))
                if decided || !plain.is_empty() || self.gres.as_ref().is_some_and(Wanted::is_empty) =>
            {
                Some(plain)
            }
            // GPUs of tasks, sockets or the whole are all that there is: no others of the job's.
            (None, _) if decided => Some(Wanted::new()),
            _ => out.devices.names_devices().then(Wanted::new),
        };
        out.devices.cpus_per_gpu = self
            .devices
            .cpus_per_gpu
            .filter(|_| out.cpus_per_task.is_none())
            .filter(|_| decided || out.devices.tasks_per_gpu.is_some());
        self.needs_gpus(decided || out.devices.tasks_per_gpu.is_some(), step)?;
        let implied = match (implied, self.each_gpu_has()) {
            (Some(n), _) => u32::try_from(n).ok().map(GpuHow::PerTask),
            (None, Some(n)) => Some(GpuHow::Single(n)),
            (None, None) => None,
        };
        out.bind = self.devices.bind.clone().or_else(|| implied.map(GpuBind::quiet));
        Ok(out)
    }

    /// `--ntasks-per-gpu`, where no greater source says it otherwise.
    fn each_gpu_has(&self) -> Option<u32> {
        let own = self.rank("ntasks-per-gpu");
        let others = ["gpus-per-task", "gpus-per-socket", "ntasks-per-node"];
        self.devices.tasks_per_gpu.filter(|_| !others.iter().any(|long| self.rank(long) > own))
    }

    /// Whether `--ntasks-per-gpu` of a greater source takes the place of the GPUs of tasks and sockets.
    fn is_overruled(&self, long: &str) -> bool {
        let excluded = ["gpus-per-task", "gpus-per-socket", "tres-per-task"].contains(&long);
        excluded && self.devices.tasks_per_gpu.is_some() && self.rank("ntasks-per-gpu") > self.rank(long)
    }

    /// What follows from `--ntasks-per-gpu`: the GPUs where the tasks are known, else the tasks.
    fn tasks_per_gpu(
        &self,
        out: &mut Asked,
        total: Option<&Wanted>,
        per_node: Option<&Wanted>,
        step: bool,
    ) -> Result<(), OptionError> {
        let Some(each) = self.each_gpu_has() else { return Ok(()) };
        let tasks =
            |wanted: &Wanted| u32::try_from(gpus(wanted).saturating_mul(u64::from(each))).unwrap_or(u32::MAX);
        match (out.ntasks, total.filter(|w| !w.is_empty()), per_node.filter(|w| !w.is_empty())) {
            (Some(_), None, None) => out.devices.tasks_per_gpu = Some(each),
            (Some(_), ..) => {}
            (None, Some(total), _) => out.ntasks = Some(tasks(total)),
            (None, None, Some(node)) => out.tasks_per_node = Some(tasks(node)),
            (None, None, None) => match so_many_nodes(out) {
                _ if step => out.devices.tasks_per_gpu = Some(each),
                // One GPU on each of the nodes.
                Some(nodes) => {
                    out.ntasks = Some(nodes.saturating_mul(each));
                    out.devices.tasks_per_gpu = Some(each);
                }
                None => {
                    return Err(refused(
                        "--ntasks-per-tres needs either a GRES GPU specification or a node/ntask specification",
                        "--ntasks-per-gpu alone counts nothing: add --gpus, --gpus-per-node, --nodes or --ntasks",
                    ));
                }
            },
        }
        Ok(())
    }

    /// Refuses what comes with GPUs where there are none.
    fn needs_gpus(&self, there: bool, step: bool) -> Result<(), OptionError> {
        let typed = |long: &&str| self.source(long).is_some_and(|s| !matches!(s, Source::Environment(_)));
        // To bind to none is to leave all as it is.
        let shares = || self.gres.iter().flat_map(Wanted::keys).any(|key| is_share(&key.name));
        let binds = self.devices.bind.as_ref().is_some_and(|bind| bind.how != GpuHow::None && !shares());
        let of_binding = ["gpu-bind", "tres-bind"].into_iter().filter(|_| binds);
        let Some(long) = ["mem-per-gpu", "cpus-per-gpu"].into_iter().chain(of_binding).find(typed) else {
            return Ok(());
        };
        if there || step {
            return Ok(());
        }
        let each = |name: &str, amount: String| {
            format!("Requested {name}_per_tres=gres/gpu:{amount} but did not request any GPU.")
        };
        let what = match (long, self.devices.mem_per_gpu, self.devices.cpus_per_gpu) {
            ("mem-per-gpu", Some(mib), _) => each("mem", mib.to_string()),
            ("cpus-per-gpu", _, Some(cpus)) => each("cpus", cpus.to_string()),
            _ => format!("--{long} was given, and no GPU was asked for"),
        };
        Err(refused(&what, "ask for GPUs with --gpus, --gpus-per-node, --gpus-per-task or --gres"))
    }

    /// Whether who looks at the job is told of a way to bind tasks to GPUs: one that was asked for, or that follows from GPUs of tasks.
    pub(super) fn tells_binding(&self, bind: &GpuBind) -> bool {
        self.devices.bind.is_some() || matches!(bind.how, GpuHow::PerTask(_))
    }

    /// A step that says for itself how many tasks or which nodes it has does not mean all of the job's GPUs, of which the job's
    /// environment tells: it has those of its nodes.
    pub(super) fn leave_job_gpus(&self, asked: &mut Asked) {
        let told = matches!(self.source("gpus"), Some(Source::Environment(_)));
        let smaller =
            ["ntasks", "nodes", "nodelist", "exclude", "relative"].iter().any(|long| self.typed(long));
        if told && smaller && !asked.devices.total.is_empty() {
            asked.devices.total = Wanted::new();
            asked.per_node = None;
        }
    }

    /// `--tres-per-task`, with the CPUs of a task however they were given; `None` without that option.
    pub(super) fn each_task_has(&self) -> Option<String> {
        self.source("tres-per-task")?;
        let counts = self.counts("tres-per-task");
        let devices = self.devices.tres_per_task.iter().filter(|(key, _)| key.name != "gpu" || counts);
        let devices = devices.map(|(key, n)| format!("gres/{key}={n}"));
        let all: Vec<String> =
            self.task_cpus().map(|n| format!("cpu={n}")).into_iter().chain(devices).collect();
        (!all.is_empty()).then(|| all.join(","))
    }

    /// What was asked for, for `srun` inside the job to find.
    pub(super) fn device_variables(&self) -> Vec<(&'static str, String)> {
        let d = &self.devices;
        let counts = [
            ("SLURM_GPUS", &self.gpus),
            ("SLURM_GPUS_PER_NODE", &self.gpus_per_node),
            ("SLURM_GPUS_PER_SOCKET", &d.gpus_per_socket),
        ];
        let mut out: Vec<(&'static str, String)> =
            counts.into_iter().filter_map(|(name, wanted)| Some((name, amount(wanted.as_ref()?)))).collect();
        // In the job both would be of one source, and contradict each other.
        let of_task = d.gpus_per_task.as_ref().filter(|_| self.counts("gpus-per-task"));
        out.extend(of_task.map(|wanted| ("SLURM_GPUS_PER_TASK", amount(wanted))));
        // Where a greater source says what a task has, that is told, and both would contradict each other.
        let by_gpu = d.cpus_per_gpu.filter(|_| self.task_cpus().is_none());
        out.extend(by_gpu.map(|n| ("SLURM_CPUS_PER_GPU", n.to_string())));
        out.extend(d.tasks_per_gpu.map(|n| ("SLURM_NTASKS_PER_GPU", n.to_string())));
        out.extend(self.each_task_has().map(|list| ("SLURM_TRES_PER_TASK", list)));
        out.extend(d.bind.as_ref().map(|bind| ("SLURM_GPU_BIND", bind.to_string())));
        out
    }
}

/// Refuses what no source alone shows.
pub(super) fn contradictions(options: &SubmitOptions) -> Result<(), OptionError> {
    let same = |a: &str, b: &str| options.rank(a).is_some() && options.rank(a) == options.rank(b);
    let d = &options.devices;
    // A job's environment says the CPUs of a task in both ways.
    let env = |long: &str| matches!(options.source(long), Some(Source::Environment(_)));
    if d.cpus_by_tres.is_some() && same("cpus-per-task", "tres-per-task") && !env("cpus-per-task") {
        return Err(OptionError::fatal(
            "You can not have --tres-per-task=cpu= and --cpus-per-task please use one or the other",
        ));
    }
    let by_tres = d.cpus_by_tres.is_some() && same("cpus-per-gpu", "tres-per-task");
    if same("cpus-per-gpu", "cpus-per-task") || by_tres {
        return Err(OptionError::fatal(
            "--cpus-per-task, --tres-per-task=cpu:#, and --cpus-per-gpu are mutually exclusive",
        ));
    }
    if d.tasks_per_gpu.is_some() {
        for long in ["tres-per-task", "gpus-per-task", "gpus-per-socket", "ntasks-per-node"] {
            // What the environment says of CPUs alone says nothing of GPUs.
            let empty = long == "tres-per-task" && d.tres_per_task.is_empty();
            // Of two sources the greater one is followed; a job's environment says what both came to.
            if same(long, "ntasks-per-gpu") && !empty && !(env(long) && long == "ntasks-per-node") {
                let name = match options.source(long) {
                    Some(Source::Environment(name)) => name.to_string(),
                    _ => format!("--{long}"),
                };
                return Err(OptionError::fatal(&format!(
                    "{name} is mutually exclusive with --ntasks-per-gpu and SLURM_NTASKS_PER_GPU"
                )));
            }
        }
    }
    Ok(())
}

/// `a100:2,1` as `--gpus` takes it.
fn amount(wanted: &Wanted) -> String {
    let items = wanted.iter().map(|(key, n)| match &key.kind {
        Some(kind) => format!("{kind}:{n}"),
        None => n.to_string(),
    });
    let list = items.collect::<Vec<_>>().join(",");
    if list.is_empty() { "0".to_string() } else { list }
}

fn only_gpus(wanted: &Wanted) -> Wanted {
    wanted.iter().filter(|(key, _)| key.name == GPU).map(|(key, n)| (key.clone(), *n)).collect()
}

fn not_gpus(wanted: &Wanted) -> Wanted {
    wanted.iter().filter(|(key, _)| key.name != GPU).map(|(key, n)| (key.clone(), *n)).collect()
}

/// The GPUs that two options for the same name, with the option.
fn agreed(
    a: Option<(String, Wanted)>,
    b: Option<(String, Wanted)>,
) -> Result<Option<(String, Wanted)>, OptionError> {
    match (a, b) {
        (Some((long, gpus)), Some((other, there))) if gpus != there => Err(twice(&format!(
            "--{other} asks for {} where --{long} asks for {}",
            print(&there),
            print(&gpus)
        ))),
        (a, b) => Ok(a.or(b)),
    }
}

/// What Slurm says of two amounts that do not go into each other.
const PARTS_OF_NODES: &str = "--gpus is not multiple of --gres=gpu/--gpus-per-node";
const PARTS_OF_TASKS: &str = "--gpus not multiple of --gpus-per-task";
const NODES_OF_TASKS: &str = "--gres=gpu/--gpus-per-node not multiple of --gpus-per-task";

/// How often what one option asks for is in what another one does, each with its name; `None` where one of them is nothing.
fn quotient(
    (whole, all): (&str, &Wanted),
    (long, each): (&str, &Wanted),
    rule: &str,
) -> Result<Option<u32>, OptionError> {
    let (sum, part) = (gpus(all), gpus(each));
    if sum == 0 || part == 0 {
        return Ok(None);
    }
    let kinds =
        |wanted: &Wanted| wanted.keys().filter(|key| key.kind.is_some()).cloned().collect::<Vec<GresKey>>();
    let (whole_kinds, part_kinds) = (kinds(all), kinds(each));
    let given = format!("--{whole}={} and --{long}={}", amount(all), amount(each));
    if !whole_kinds.is_empty() && !part_kinds.is_empty() && whole_kinds != part_kinds {
        return Err(invalid(&format!(": {given} name different types")));
    }
    if sum % part != 0 {
        return Err(invalid(&format!(", {rule}: {given} were given")));
    }
    Ok(u32::try_from(sum / part).ok())
}

/// The number of nodes, where it is a single one.
fn so_many_nodes(asked: &Asked) -> Option<u32> {
    asked.nodes.filter(|nodes| nodes.min == nodes.max).map(|nodes| nodes.min)
}

/// Sees to it that it is known how many tasks a job has: as Slurm does, one on each node where these are counted and CPUs are not.
fn needs_tasks(asked: &mut Asked, of_gpus: bool) -> Result<(), OptionError> {
    if asked.ntasks.is_some() || asked.tasks_per_node.is_some() {
        return Ok(());
    }
    if let Some(nodes) = so_many_nodes(asked).filter(|_| asked.cpus_per_task.is_none()) {
        asked.ntasks = Some(nodes);
        return Ok(());
    }
    Err(match of_gpus {
        true => refused(
            "Failed to validate job spec. --gpus-per-task or --tres-per-task used without either --gpus or -n/--ntasks is \
             not allowed.",
            "say how many tasks there are with --ntasks, or how many GPUs with --gpus",
        ),
        false => refused(
            "Failed to validate job spec. --tres-per-task used without -n/--ntasks is not allowed.",
            "say how many tasks there are with --ntasks",
        ),
    })
}

fn twice(line: &str) -> OptionError {
    refused(line, "give the GPUs by one option")
}

fn invalid(why: &str) -> OptionError {
    refused(&format!("Failed to validate job spec{why}"), "give the GPUs by one option")
}

/// Options about devices that cannot be followed: what is wrong, and Slurm's last word on it with what to do.
fn refused(what: &str, next: &str) -> OptionError {
    OptionError::error(1, vec![what.to_string(), format!("{INVALID_RESOURCES}: {next}")])
}
