//! From typed options to the job and step specifications that go to the controller.

use super::check::{container_needs_image, not_of_host};
use super::resolve::{OptionError, Source};
use super::row::Command;
use super::submit::{ContainerOptions, Propagate, SubmitOptions};
use crate::bytes::ByteStr;
use crate::count::NodeCount;
use crate::distribution::Distribution;
use crate::ids::SubmissionId;
use crate::limits::{Limits, OF_A_LOGIN, Resource};
use crate::spec::{
    ContainerSpec, ImageRef, IoSpec, JobKind, JobSpec, MemoryRequest, MountSpec, NamedSpec, ResolvedImage,
    ResourceRequest, SrunProlog, StepSpec, TermSize,
};

/// The circumstances of a submission that are no options.
#[derive(Clone, Debug)]
pub struct Submitter {
    /// Made anew for each submission.
    pub submission: SubmissionId,
    /// The name of a job or step that is given none.
    pub default_name: String,
    /// Absolute working directory of the command.
    pub cwd: ByteStr,
    /// umask of the command.
    pub umask: u32,
    /// Its nice value.
    pub nice: i32,
    /// Soft limits of the command.
    pub limits: Limits,
    /// The command runs in a job, on its node: its limits are the job's.
    pub in_job: bool,
    /// Its host.
    pub host: String,
    /// Its session.
    pub sid: u32,
    /// The script's path, or the program.
    pub command: ByteStr,
    /// The whole command line.
    pub submit_line: ByteStr,
}

/// A specification, and what the user should be told about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted<T> {
    /// The specification.
    pub spec: T,
    /// Warnings, one line each.
    pub notes: Vec<String>,
}

/// Where one of srun's streams goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stream {
    /// To and from srun, for all tasks.
    All,
    /// Nowhere.
    None,
    /// To and from srun, for one task.
    Task(u32),
    /// A file on the node, by pattern.
    File(ByteStr),
}

impl Stream {
    /// What `--input`, `--output` or `--error` means for a step of `tasks` tasks: the number of a task that does
    /// not exist is a file name.
    pub fn of(option: Option<&ByteStr>, tasks: u32) -> Stream {
        match option.map(|name| name.0.as_slice()) {
            None | Some(b"all") => Stream::All,
            Some(b"none") => Stream::None,
            Some(name) => {
                let text = std::str::from_utf8(name).unwrap_or_default();
                match crate::count::number(text) {
                    Ok(n) if n < tasks => Stream::Task(n),
                    _ => Stream::File(ByteStr::from(name)),
                }
            }
        }
    }

    /// The file that the node opens; `None` where the stream goes to the client.
    pub fn file(self) -> Option<ByteStr> {
        match self {
            Stream::All | Stream::Task(_) => None,
            Stream::None => Some(ByteStr::from("/dev/null")),
            Stream::File(name) => Some(name),
        }
    }
}

impl SubmitOptions {
    /// The working directory: `--chdir` against `cwd`, else `cwd`.
    pub fn work_dir(&self, cwd: &ByteStr) -> ByteStr {
        self.chdir.as_ref().map_or_else(|| cwd.clone(), |dir| absolute(cwd, dir))
    }

    /// The job's specification. `image` is the resolved `--container-image`.
    ///
    /// # Errors
    /// Container options without an image; options about GPUs that contradict one another.
    pub fn job_spec(
        &self,
        by: &Submitter,
        image: Option<ImageRef>,
    ) -> Result<Converted<JobSpec>, OptionError> {
        let mut notes = Vec::new();
        let work_dir = self.work_dir(&by.cwd);
        let container = self.job_container(image, &work_dir)?;
        let resources = self.resources(&mut notes)?;
        let kind = match self.command {
            Command::Srun => JobKind::Run,
            Command::Sbatch => JobKind::Batch,
            Command::Salloc => JobKind::Alloc,
        };
        let io = match kind {
            // srun's streams are its step's.
            JobKind::Run | JobKind::Alloc => IoSpec { open_mode: self.open_mode, ..IoSpec::default() },
            JobKind::Batch => IoSpec {
                stdin: self.input.clone(),
                stdout: self.output.clone(),
                stderr: self.error.clone(),
                open_mode: self.open_mode,
                client_writes: false,
                labelled: false,
            },
        };
        let spec = JobSpec {
            submission: by.submission.clone(),
            kind,
            name: self.job_name.clone().unwrap_or_else(|| by.default_name.clone()),
            partition: self.partition.clone(),
            account: self.account.clone(),
            resources,
            time_limit: self.time,
            begin: self.begin,
            hold: self.hold,
            nice: self.nice,
            requeue: self.requeue,
            array: self.array.clone(),
            immediate: self.immediate,
            comment: self.comment.clone(),
            work_dir,
            submit_dir: by.cwd.clone(),
            io,
            container,
            limits: self.limits(by),
            umask: by.umask,
            warn_signal: self.signal,
            lost_after: self.lost_after,
            clientless: self.no_shell,
            user_env: self.get_user_env || (kind == JobKind::Batch && self.export.wants_login_environment()),
            command: by.command.clone(),
            submit_line: by.submit_line.clone(),
            submit_host: by.host.clone(),
            submit_sid: by.sid,
            het: None,
        };
        Ok(Converted { spec, notes })
    }

    /// The step's specification: the first step of srun's own allocation (`inside` absent), or one of the job
    /// that srun runs in. `image` is the resolved `--container-image`; container options without it change the
    /// container of the job.
    ///
    /// # Errors
    /// Options of a job typed for a step of a running one; container options where neither step nor job has an
    /// image; options about GPUs that contradict one another.
    pub fn step_spec(
        &self,
        by: &Submitter,
        argv: Vec<ByteStr>,
        env: Vec<ByteStr>,
        image: Option<ImageRef>,
        terminal: Option<TermSize>,
        inside: Option<&JobSpec>,
    ) -> Result<Converted<StepSpec>, OptionError> {
        if inside.is_some() {
            self.only_step_options()?;
        }
        let mut notes = Vec::new();
        let work_dir = self.work_dir(&by.cwd);
        not_of_host(&self.container, image.as_ref())?;
        let container = match (image, inside.and_then(|job| job.container.as_ref())) {
            (Some(image), _) => Some(self.container.spec(image, &work_dir)),
            (None, Some(job)) if self.container.name.is_some() || !self.container.given().is_empty() => {
                Some(self.container.over(job, &work_dir))
            }
            (None, Some(_)) => None,
            (None, None) => match self.container.kept() {
                Some(kept) => Some(self.container.spec(kept, &work_dir)),
                None => {
                    container_needs_image(self)?;
                    None
                }
            },
        };
        // A job's environment tells of a layout by a list, and not the list, which is the job's own: nodes that a step names are
        // another one where there is one for each task.
        let told = inside.is_some() && matches!(self.source("distribution"), Some(Source::Environment(_)));
        let short = self.node_order.is_empty() || self.node_order.len() < self.ntasks.unwrap_or(1) as usize;
        let distribution = match &self.distribution {
            Some(Distribution::Arbitrary(_)) if told && short => None,
            _ => self.layout()?,
        };
        let listed = match &distribution {
            Some(Distribution::Arbitrary(list)) => u32::try_from(list.len()).ok(),
            _ => None,
        };
        if self.relative.is_some() && !self.nodelist.is_empty() {
            return Err(OptionError::error(
                255,
                vec![
                    "both --relative and --nodelist say on which of the job's nodes the step is".to_string(),
                    "give one of them".to_string(),
                ],
            ));
        }
        let mut asked = self.asked(inside.is_some())?;
        if inside.is_some() {
            self.leave_job_gpus(&mut asked);
        }
        let ntasks = asked.ntasks.or(listed);
        let tasks = ntasks.or_else(|| self.nodes.map(|n| n.min)).unwrap_or(1);
        let file = |option: &Option<ByteStr>| Stream::of(option.as_ref(), tasks).file();
        // A job of its own may have got more than the fewest nodes: the step has all of them.
        let nodes = self.nodes_for_tasks(asked.nodes, asked.ntasks, &mut notes);
        let nodes = nodes.filter(|n| listed.is_none() && (inside.is_some() || n.min == n.max));
        // A job's --ntasks-per-node, which its environment carries, yields to the step's own --ntasks.
        let tasks_per_node = asked.tasks_per_node.filter(|_| {
            let rank = |long| self.source(long).map(|source| source.rank());
            self.ntasks.is_none() || rank("ntasks") <= rank("ntasks-per-node")
        });
        // The memory in a job's environment is the job's: a step that asks for none itself shares it.
        let inherited = |long| matches!(self.source(long), None | Some(Source::Environment(_)));
        let memory = match inside {
            Some(_) if ["mem", "mem-per-cpu", "mem-per-gpu"].into_iter().all(inherited) => {
                MemoryRequest::Default
            }
            _ => self.memory(),
        };
        let own_name = self.job_name.clone().filter(|_| inside.is_none() || self.typed("job-name"));
        let spec = StepSpec {
            submission: by.submission.clone(),
            name: own_name.unwrap_or_else(|| by.default_name.clone()),
            tasks: ntasks,
            nodes: nodes.map(|n| n.min),
            max_nodes: nodes.filter(|n| n.max > n.min).map(|n| n.max),
            tasks_per_node,
            node_list: self.nodelist.clone(),
            exclude: self.exclude.clone(),
            relative: self.relative,
            distribution,
            cpus_per_task: asked.cpus_per_task,
            memory,
            gres: asked.per_node,
            devices: asked.devices,
            gpu_bind: asked.bind,
            overlap: self.overlap,
            exact: self.exact || (inside.is_some() && self.exclusive),
            immediate: self.immediate,
            argv,
            env,
            work_dir,
            work_dir_explicit: self.chdir.is_some(),
            io: IoSpec {
                stdin: file(&self.input),
                stdout: file(&self.output),
                stderr: file(&self.error),
                open_mode: self.open_mode,
                // Of a terminal's task everything is for the client's own output.
                client_writes: !self.pty,
                labelled: self.label && !self.pty,
            },
            container,
            limits: self.limits(by),
            umask: by.umask,
            pty: terminal.filter(|_| self.pty),
            kill_on_bad_exit: self.kill_on_bad_exit,
            wait_after_first_exit: self
                .wait_seconds
                .filter(|s| *s > 0)
                .map(|s| crate::time::Span::from_secs(i64::from(s))),
            time_limit: self.time,
            attached: true,
            enter: None,
            x11: None,
            mpi: self.mpi,
            login: None,
            client_address: None,
            prolog: self.srun_prolog(),
            task_prolog: self.task_prolog.clone(),
            pytorch: self.pytorch,
            task_epilog: self.task_epilog.clone(),
            cpu_bind: self.cpu_bind.clone(),
            mem_bind: self.mem_bind.clone(),
            programs: Vec::new(),
            overcommit: self.overcommit,
            sockets: self.sockets,
            receive: None,
            fabric: self.fabric,
        };
        Ok(Converted { spec, notes })
    }

    /// What srun runs before the step's tasks.
    fn srun_prolog(&self) -> Option<SrunProlog> {
        match &self.prolog {
            None => Some(SrunProlog::Site),
            Some(name) if name.0.is_empty() || name.0.eq_ignore_ascii_case(b"none") => None,
            Some(_) => Some(SrunProlog::Own),
        }
    }

    fn job_container(
        &self,
        image: Option<ImageRef>,
        work_dir: &ByteStr,
    ) -> Result<Option<ContainerSpec>, OptionError> {
        not_of_host(&self.container, image.as_ref())?;
        match image.or_else(|| self.container.kept()) {
            Some(image) => Ok(Some(self.container.spec(image, work_dir))),
            None => container_needs_image(self).map(|()| None),
        }
    }

    /// Refuses what is about a job when the step is one of a running job. Only what was typed: variables of the
    /// environment are the user's defaults for jobs.
    fn only_step_options(&self) -> Result<(), OptionError> {
        const OF_JOBS: &[&str] = &[
            "account",
            "begin",
            "comment",
            "hold",
            "lost-after",
            "nice",
            "partition",
            "signal",
            "test-only",
        ];
        match OF_JOBS.iter().find(|long| self.typed(long)) {
            None => Ok(()),
            Some(long) => Err(OptionError::error(
                255,
                vec![
                    format!("--{long} is about a job and has no meaning for a step of a running one"),
                    "leave it out; to make a job of its own from inside one, unset SLURM_JOB_ID and SLURM_JOBID"
                        .to_string(),
                ],
            )),
        }
    }

    /// The memory asked for: of `--mem`, `--mem-per-cpu` and `--mem-per-gpu` the one from the greatest source.
    pub fn memory(&self) -> MemoryRequest {
        let rank = |long| self.source(long).map(Source::rank);
        let given = [
            (rank("mem"), self.mem.map(MemoryRequest::PerNode)),
            (rank("mem-per-cpu"), self.mem_per_cpu.map(MemoryRequest::PerCpu)),
            (rank("mem-per-gpu"), self.devices.mem_per_gpu.map(MemoryRequest::PerGpu)),
        ];
        let greatest = given
            .into_iter()
            .filter_map(|(rank, memory)| Some((rank, memory?)))
            .max_by_key(|(rank, _)| *rank);
        match greatest {
            // No memory for a CPU is all of the node's, as with --mem=0.
            Some((_, MemoryRequest::PerCpu(0) | MemoryRequest::PerGpu(0))) => MemoryRequest::PerNode(0),
            Some((_, memory)) => memory,
            None => MemoryRequest::Default,
        }
    }

    fn resources(&self, notes: &mut Vec<String>) -> Result<ResourceRequest, OptionError> {
        let distribution = self.layout()?;
        let asked = self.asked(false)?;
        let nodes = self.nodes_for_tasks(asked.nodes, asked.ntasks, notes);
        let named = u32::try_from(self.nodelist.len()).unwrap_or(u32::MAX);
        Ok(ResourceRequest {
            min_nodes: nodes.map_or(1, |n| n.min).max(named),
            max_nodes: nodes.map(|n| n.max.max(named)),
            tasks: match &distribution {
                Some(Distribution::Arbitrary(list)) => asked.ntasks.or(u32::try_from(list.len()).ok()),
                _ => asked.ntasks,
            },
            tasks_per_node: asked.tasks_per_node,
            cpus_per_task: asked.cpus_per_task,
            memory: self.memory(),
            gres: asked.per_node.unwrap_or_default(),
            devices: asked.devices,
            exclusive: self.exclusive,
            node_list: self.nodelist.clone(),
            exclude: self.exclude.clone(),
            distribution: distribution.unwrap_or_default(),
            overcommit: self.overcommit,
            sockets: self.sockets,
            fabric: self.fabric,
            gpu_bind: asked.bind.filter(|bind| self.tells_binding(bind)),
            ntasks_per_gpu: self.devices.tasks_per_gpu,
        })
    }

    /// `--distribution`, with its list where it goes by one.
    fn layout(&self) -> Result<Option<Distribution>, OptionError> {
        if !matches!(self.distribution, Some(Distribution::Arbitrary(_))) {
            return Ok(self.distribution.clone());
        }
        let (listed, tasks) = (self.node_order.len(), self.ntasks.unwrap_or(1) as usize);
        if listed == 0 {
            return Err(OptionError::error(
                255,
                vec![
                    "--distribution=arbitrary goes by a list of nodes, and there is none".to_string(),
                    "name a node for each task with --nodelist, --nodefile, or a file that SLURM_HOSTFILE names"
                        .to_string(),
                ],
            ));
        }
        if tasks > listed {
            return Err(OptionError::error(
                255,
                vec![
                    format!(
                        "{tasks} tasks were asked for, and --distribution=arbitrary has nodes for {listed}"
                    ),
                    "name a node for each task, or ask for fewer tasks".to_string(),
                ],
            ));
        }
        Ok(Some(Distribution::Arbitrary(self.node_order.clone())))
    }

    /// The file that says where nodes are listed, where one is to be read: `--nodefile`, or what SLURM_HOSTFILE names
    /// (`hostfile`), which means something to an arbitrary layout alone.
    pub fn node_file(&self, hostfile: Option<ByteStr>) -> Option<ByteStr> {
        let arbitrary = matches!(self.distribution, Some(Distribution::Arbitrary(_)));
        self.nodefile.clone().or_else(|| hostfile.filter(|_| arbitrary && self.node_order.is_empty()))
    }

    /// Takes the nodes that the file lists.
    ///
    /// # Errors
    /// It lists none, what is no list, or a node that `--exclude` leaves out.
    pub fn take_node_file(&mut self, name: &ByteStr, text: &str) -> Result<(), OptionError> {
        self.name_nodes(listed(name, text)?);
        super::check::nodes(self)
    }

    /// Leaves out the nodes that the file of `--exclude` lists.
    ///
    /// # Errors
    /// It lists none, what is no list, or a node that `--nodelist` asks for.
    pub fn take_exclude_file(&mut self, name: &ByteStr, text: &str) -> Result<(), OptionError> {
        self.leave_out(listed(name, text)?);
        super::check::nodes(self)
    }

    /// As many nodes as were asked for, but no more than there are tasks.
    fn nodes_for_tasks(
        &self,
        nodes: Option<NodeCount>,
        ntasks: Option<u32>,
        notes: &mut Vec<String>,
    ) -> Option<NodeCount> {
        let nodes = nodes?;
        match ntasks {
            Some(tasks) if tasks < nodes.min => {
                if self.source("nodes").is_some_and(|s| !matches!(s, Source::Environment(_))) {
                    notes.push(format!(
                        "can't run {tasks} processes on {} nodes, setting nnodes to {tasks}",
                        nodes.min
                    ));
                }
                Some(NodeCount { min: tasks, max: tasks })
            }
            _ => Some(nodes),
        }
    }

    fn limits(&self, by: &Submitter) -> Limits {
        let those = |wanted: &dyn Fn(Resource) -> bool| {
            by.limits.soft.iter().filter(|(r, _)| wanted(**r)).map(|(r, v)| (*r, *v)).collect()
        };
        match &self.propagate {
            Propagate::Inherit => {
                let travels = |r: Resource| by.in_job || !OF_A_LOGIN.contains(&r);
                Limits { soft: those(&travels), required: Vec::new() }
            }
            Propagate::All => {
                Limits { soft: by.limits.soft.clone(), required: by.limits.soft.keys().copied().collect() }
            }
            Propagate::None => Limits::default(),
            Propagate::Only(names) => {
                Limits { soft: those(&|r| names.contains(&r)), required: names.clone() }
            }
        }
    }

    /// The environment that goes with a submission or step, as `NAME=VALUE`: what `--export` lets through of
    /// `environ`, and what was asked for. A new job made from inside another leaves the other's variables out.
    pub fn environment(&self, environ: &[(ByteStr, ByteStr)], by: &Submitter, inside: bool) -> Vec<ByteStr> {
        let of_a_job = |name: &[u8]| environ.iter().any(|(n, _)| n.0 == name);
        let nested = !inside && (of_a_job(b"SLURM_JOB_ID") || of_a_job(b"SLURM_JOBID"));
        let carried = self.carried_variables(by, inside);
        let own: Vec<(ByteStr, ByteStr)> = environ
            .iter()
            .filter(|(name, _)| !(nested && crate::env::is_job_variable(&name.0)))
            .filter(|(name, _)| !(inside && crate::env::is_of_one_step(&name.0)))
            // It is that of the command which sends this, and not of the one that made the job.
            .filter(|(name, _)| name.0 != b"SLURM_PRIO_PROCESS")
            .filter(|(name, _)| !carried.iter().any(|(n, _)| n.as_bytes() == name.0))
            .cloned()
            .collect();
        let mut out = self.export.apply(&own);
        out.extend(carried.iter().map(|(n, v)| crate::export::assignment(&ByteStr::from(n.as_str()), v)));
        out
    }

    /// What was asked for, for `srun` inside the job to find, where the allocation itself does not say it.
    fn carried_variables(&self, by: &Submitter, inside: bool) -> Vec<(String, ByteStr)> {
        let mut out: Vec<(String, ByteStr)> = Vec::new();
        let mut add = |name: &str, value: String| out.push((name.to_string(), ByteStr::from(value)));
        if self.label {
            add("SLURM_LABELIO", "1".to_string());
        }
        // Without one it is 0.
        if by.nice != 0 {
            add("SLURM_PRIO_PROCESS", by.nice.to_string());
        }
        if inside {
            if let Some(name) = self.job_name.as_ref().filter(|_| self.typed("job-name")) {
                add("SLURM_JOB_NAME", name.clone());
            }
            if let Some(list) = self.each_task_has().filter(|_| self.typed("tres-per-task")) {
                add("SLURM_TRES_PER_TASK", list);
            }
            return out;
        }
        if self.source("export").is_some() {
            add("SLURM_EXPORT_ENV", self.export.to_string());
        }
        if self.get_user_env {
            add("SLURM_GET_USER_ENV", "1".to_string());
        }
        if let Some(mode) = self.open_mode {
            let letter = if mode == crate::spec::OpenMode::Append { "a" } else { "t" };
            add("SLURM_OPEN_MODE", letter.to_string());
        }
        for (name, value) in self.device_variables() {
            add(name, value);
        }
        if let Some(distribution) = &self.distribution {
            let sockets = self.sockets.map_or(String::new(), |sockets| format!(":{sockets}"));
            add("SLURM_DISTRIBUTION", format!("{distribution}{sockets}"));
            if let Distribution::Plane(size) = distribution {
                add("SLURM_DIST_PLANESIZE", size.to_string());
            }
        }
        if let Some(text) = self.propagate.text().filter(|_| self.command == Command::Salloc) {
            add(Propagate::CARRIED, text);
        }
        if self.command == Command::Sbatch {
            add("SLURM_JOB_EXCLUSIVE", if self.exclusive { "NODE" } else { "NO" }.to_string());
            add("SLURM_JOB_OVERSUBSCRIBE", "NO".to_string());
        }
        out.push(("SLURM_SUBMIT_DIR".to_string(), by.cwd.clone()));
        out
    }
}

/// The nodes that the text of a file lists.
fn listed(name: &ByteStr, text: &str) -> Result<Vec<crate::NodeName>, OptionError> {
    let invalid = |why: String| {
        let what = format!("Invalid node list specified: {}: {why}", name.display());
        OptionError::error(255, vec![what])
    };
    let nodes = crate::hostlist::file(text).map_err(|e| invalid(e.to_string()))?;
    if nodes.is_empty() {
        return Err(invalid("it names no node".to_string()));
    }
    Ok(nodes.into_iter().map(crate::NodeName).collect())
}

impl ContainerOptions {
    /// The image of a container that is named alone: it must be there.
    fn kept(&self) -> Option<ImageRef> {
        let (name, _) = self.name.as_ref()?;
        Some(ImageRef { typed: format!("--container-name={name}"), resolved: Some(ResolvedImage::Kept) })
    }

    fn named(&self) -> Option<NamedSpec> {
        let (name, flag) = self.name.clone()?;
        Some(NamedSpec { name, flag, scope: self.scope.unwrap_or_default() })
    }

    /// The specification with an image of its own.
    fn spec(&self, image: ImageRef, work_dir: &ByteStr) -> ContainerSpec {
        ContainerSpec {
            image,
            mounts: self.mounts.iter().map(|mount| absolute_mount(work_dir, mount)).collect(),
            workdir: self.workdir.clone(),
            mount_home: self.mount_home,
            // Only root inside can use the other ids.
            remap_root: self.remap_root.or(self.subids.filter(|on| *on)),
            subids: self.subids,
            writable: self.writable,
            env: self.env.clone(),
            entrypoint: self.entrypoint,
            layer: self.layer,
            named: self.named(),
            unshare: self.unshare.clone(),
            save: self.save.as_ref().map(|path| {
                let mut place = absolute(work_dir, path);
                // A slash at the end says that a directory is meant.
                if path.0.ends_with(b"/") && !place.0.ends_with(b"/") {
                    place.0.push(b'/');
                }
                place
            }),
        }
    }

    /// The job's container with these options over it.
    fn over(&self, job: &ContainerSpec, work_dir: &ByteStr) -> ContainerSpec {
        let job = job.of_a_step();
        let own = self.spec(job.image, work_dir);
        ContainerSpec {
            image: own.image,
            mounts: if own.mounts.is_empty() { job.mounts } else { own.mounts },
            workdir: own.workdir.or(job.workdir),
            mount_home: own.mount_home.or(job.mount_home),
            remap_root: own.remap_root.or(job.remap_root),
            subids: own.subids.or(job.subids.filter(|_| own.remap_root != Some(false))),
            writable: own.writable.or(job.writable),
            env: if own.env.is_empty() { job.env } else { own.env },
            entrypoint: own.entrypoint.or(job.entrypoint),
            layer: own.layer.or(job.layer),
            named: own.named.or(job.named),
            unshare: if own.unshare.is_empty() { job.unshare } else { own.unshare },
            save: own.save,
        }
    }
}

fn absolute_mount(work_dir: &ByteStr, mount: &MountSpec) -> MountSpec {
    let path = |p: &ByteStr| if p.0.starts_with(b".") { absolute(work_dir, p) } else { p.clone() };
    MountSpec { source: path(&mount.source), target: path(&mount.target), flags: mount.flags.clone() }
}

/// `path` against `base`, without `.` components; `..` stays, for it may follow a symbolic link.
fn absolute(base: &ByteStr, path: &ByteStr) -> ByteStr {
    if path.0.starts_with(b"/") {
        return path.clone();
    }
    let mut out = base.0.clone();
    for part in path.0.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".") {
        if out.last() != Some(&b'/') {
            out.push(b'/');
        }
        out.extend_from_slice(part);
    }
    ByteStr(out)
}
