//! The step's container and its tasks, as the runtime makes them.

use super::around::Around;
use super::display;
use super::environment::{self, is_host};
use super::files::{TaskFiles, errno_text, nonblocking};
use super::layers;
use super::memlock;
use super::pmi::PMI_FD;
use super::saving::Saving;
use super::script;
use super::step::LaunchFailure;
use super::streams::Streams;
use super::x11;
use super::{binding, gpus};
use crate::kept::{KeptPart, Member, StartedWith, Told};
use crate::receive;
use crate::spool::{LaunchFile, NodePart, SCRIPT_FD, shm_size};
use berth_client::login;
use berth_model::ByteStr;
use berth_model::env::gpus::of_share;
use berth_model::launch::{Program, StepLaunch, Usage};
use berth_model::multiprog;
use berth_model::receive::Receive;
use berth_model::spec::{ResolvedImage, TermSize};
use berth_model::state::ExitStatus;
use berth_runtime::cgroup::{Cgroup, CgroupUsage};
use berth_runtime::hooks::{Attend, ContainerHooks, make_bundle};
use berth_runtime::{
    ContainerNamespaces, ContainerRequest, Event, ExecError, ExtraMount, HostFacts, ImageConfig, InitHandle,
    JoinedNamespaces, LaunchError, Parked, Prepared, Rootfs, SignalTarget, StartOptions, StoreOwner,
    TaskSpec, TaskStdio, Workdir, WritableLayer, plan, start_attended,
};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::io;

/// Signals that end a task from outside: SIGKILL and SIGTERM.
const ENDING: [u8; 2] = [9, 15];

/// Whether this signal is sent to end what gets it.
pub fn ends(signal: i32) -> bool {
    ENDING.iter().any(|ending| i32::from(*ending) == signal)
}

const NOT_SAVED: &str = "--container-save: the step was ended before its container was saved";

/// Where containers see the job's socket and the client programs.
pub const CLIENT_DIR: &str = "/run/berth";

/// What happened to the tasks. Tasks are counted as they stand in this node's part of the layout.
#[derive(Debug)]
pub enum TaskEvent {
    /// Every task was started, or could not be.
    Running,
    /// A task's program could not be started.
    NotStarted {
        /// Which.
        task: usize,
        /// What counts as its exit.
        status: ExitStatus,
        /// What, why, and what to do.
        why: String,
    },
    /// Something that the user should know.
    Note(String),
    /// A task ended.
    Exited {
        /// Which.
        task: usize,
        /// How.
        status: ExitStatus,
    },
    /// The container's files were saved there, or not, and why.
    Saved(Result<String, String>),
    /// No process of the step is left.
    AllGone {
        /// What they used.
        usage: Usage,
        /// How many of them were killed because memory ran out.
        oom_kills: u64,
    },
}

/// The step's processes.
pub struct Processes {
    init: Option<InitHandle>,
    cgroup: Option<Cgroup>,
    layer: Option<layers::OnDisk>,
    told: Option<Told>,
    authority: Option<x11::Authority>,
    member: Option<Member>,
    /// A command that cannot be started ends as a shell would have it, and not as Slurm has it.
    as_shell: bool,
    saving: Option<Saving>,
    terminal: Option<OwnedFd>,
    /// Tasks that were neither started nor refused yet.
    starting: usize,
    /// Tasks that did not end yet.
    living: usize,
    usage: Usage,
    hooks: Option<ContainerHooks>,
}

/// Makes the container and asks for its tasks. Returns notes for the user too.
/// `standing`: a process that was parked in the step's cgroups before the step was known, and images of layers that are
/// mounted. `attend`: for the time of hooks.
pub fn start(
    file: &LaunchFile,
    io: Vec<TaskFiles>,
    (standing, images): (Option<Parked>, Option<OwnedFd>),
    attend: &mut dyn Attend,
) -> Result<(Processes, Vec<String>), LaunchFailure> {
    let (argv, script) = command(file)?;
    let interpreter = argv.first().map_or_else(String::new, |program| program.display().into_owned());
    let request = ContainerRequest { command: argv, ..request(file)? };
    let unlocked = memlock::check(file)?;
    layers::make(file, &request)?;
    let layer = layers::OnDisk::of(file, &request);
    let saving = Saving::of(file, &request)?;
    let facts = HostFacts::gather(&request);
    let plan = plan(&request, &facts).map_err(|e| LaunchFailure::new(e.to_string()))?;
    let cgroup = file.node.cgroup.as_ref();
    let group = cgroup.and_then(Cgroup::v2_dir);
    let authority = x11::Authority::of(file)?;
    let kept = file.node.kept.as_ref();
    let joined = match file.node.joined() {
        Some(member) => member.namespaces.open().map_err(|e| LaunchFailure::new(e.to_string()))?,
        None => JoinedNamespaces::default(),
    };
    let around = Around::of(file)?;
    let bound = binding::of_tasks(&file.launch, &file.node.cores)?;
    let cpus: Vec<Option<Vec<u32>>> = bound.iter().map(|bound| bound.cpus.clone()).collect();
    let mut told = gpus::of_tasks(file, &cpus)?.into_iter();
    let mut bound = bound.into_iter();
    let mut tasks = Vec::with_capacity(io.len());
    for (index, files) in io.into_iter().enumerate() {
        let mut task = task(file, index, files)?;
        if let Some(bound) = bound.next() {
            bound.put(&mut task);
        }
        if let Some(told) = told.next() {
            told.put(&mut task);
        }
        if file.launch.receive.is_none() {
            (task.before, task.after) = around.of_task()?;
        }
        if let Some(script) = &script {
            let copy = rustix::io::fcntl_dupfd_cloexec(script, 3)
                .map_err(|e| LaunchFailure::new(format!("cannot pass the script on: {}", errno_text(e))))?;
            task.extra_fds.push((SCRIPT_FD, copy));
            task.name = Some(format!("the batch script's interpreter {interpreter}"));
        }
        tasks.push(task);
    }
    let number = tasks.len();
    // Later steps may look for a container that is kept as soon as its tasks run: they are told of it first.
    let (tasks, later) = if kept.is_some() { (Vec::new(), tasks) } else { (tasks, Vec::new()) };
    let options = StartOptions {
        tasks,
        joined,
        images,
        cgroup: group.as_ref().map(AsFd::as_fd),
        parked: match standing.filter(Parked::waits) {
            None => parked(cgroup)?,
            found => found,
        },
        namespaces: match file.node.namespaces.filter(|_| plan.namespaces.in_job()) {
            Some(job) => job.open(plan.mode).map_err(|e| LaunchFailure::new(e.to_string()))?,
            None => Prepared::default(),
        },
    };
    if let Some(hooks) = &plan.hooks {
        make_bundle(hooks, &plan)
            .map_err(|e| LaunchFailure::new(format!("cannot make the hooks' bundle: {e}")))?;
    }
    let mut init = start_attended(&plan, options, attend).map_err(|e| {
        let failure = LaunchFailure::new(e.to_string());
        let status = match e {
            LaunchError::GivenUp(_) => ExitStatus { code: 0, signal: 15 },
            _ => failure.status,
        };
        LaunchFailure { status, begun: plan.hooks.clone().map(Box::new), ..failure }
    })?;
    if file.node.system {
        // Only now: tasks inherit what their ancestor had when it was forked. Where this is not allowed, the
        // supervisor is small enough not to be the kernel's first choice.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    }
    let member = init.namespaces().map(|namespaces| member(file, namespaces, &request));
    let told = match (kept, &member) {
        (Some(kept), Some(member)) => Some(tell(file, kept, member)?),
        _ => None,
    };
    // What a step on the node's own filesystem does without is the same for all of them, and is said when the
    // agent starts; of a container that is entered it was said before.
    let said = is_host(&file.launch) || file.launch.enter.is_some();
    let mut notes = if said { Vec::new() } else { plan.notes.clone() };
    notes.extend_from_slice(init.notes());
    notes.extend(unlocked);
    for task in later {
        init.spawn(task).map_err(|e| LaunchFailure::new(e.to_string()))?;
    }
    let processes = Processes {
        init: Some(init),
        cgroup: file.node.cgroup.clone(),
        layer,
        told,
        authority,
        member,
        as_shell: file.launch.enter.is_some(),
        saving,
        terminal: None,
        starting: number,
        living: number,
        usage: Usage::default(),
        hooks: plan.hooks,
    };
    Ok((processes, notes))
}

/// How later steps of the job enter the container.
fn member(file: &LaunchFile, namespaces: ContainerNamespaces, request: &ContainerRequest) -> Member {
    let started = match file.node.joined() {
        Some(member) => member.started.clone(),
        None => StartedWith {
            mounts: file.launch.container.as_ref().map(|c| c.mounts.clone()).unwrap_or_default(),
            mount_home: request.mount_home,
            remap_root: request.remap_root,
            subids: request.subids,
            read_only: request.writable == Some(false),
            unshare: request.unshare.clone(),
            display: x11::display_name(file),
        },
    };
    Member { job: file.launch.key.job, namespaces, started }
}

/// Tells them.
fn tell(file: &LaunchFile, kept: &KeptPart, member: &Member) -> Result<Told, LaunchFailure> {
    Told::of(kept.record.as_path(), file.launch.key, member).map_err(|e| {
        LaunchFailure::new(format!(
            "cannot tell of the container '{}' in {}: {e}",
            kept.name,
            kept.record.display()
        ))
    })
}

/// The container that the step asks for.
pub fn asked(file: &LaunchFile) -> Result<ContainerRequest, LaunchFailure> {
    let (argv, _) = command(file)?;
    let request = match display::foreseen(file)? {
        None => request(file)?,
        Some(display) => {
            let node = NodePart { display: Some(display), ..file.node.clone() };
            request(&LaunchFile { node, ..file.clone() })?
        }
    };
    Ok(ContainerRequest { command: argv, ..request })
}

/// What the tasks run, and the sealed script for it.
fn command(file: &LaunchFile) -> Result<(Vec<ByteStr>, Option<OwnedFd>), LaunchFailure> {
    if let Some(receive) = &file.launch.receive {
        return Ok((receiver(file, receive)?, None));
    }
    match &file.launch.program {
        Program::Argv(_) if !file.launch.programs.is_empty() => Ok((own_program(&file.launch, 0)?, None)),
        Program::Argv(argv) => Ok((argv.clone(), None)),
        Program::LoginShell => Ok((vec![file.launch.identity.shell.clone(), "-l".into()], None)),
        Program::Script { text, args } => {
            let mut argv = script::interpreter(&text.0).map_err(|e| LaunchFailure::new(e.to_string()))?;
            argv.push(script_name(file));
            argv.extend(args.iter().cloned());
            let fd = script::sealed(&text.0)
                .map_err(|e| LaunchFailure::new(format!("cannot hold the batch script in memory: {e}")))?;
            Ok((argv, Some(fd)))
        }
    }
}

/// What receives a file: our own small program, where the step sees it.
fn receiver(file: &LaunchFile, receive: &Receive) -> Result<Vec<ByteStr>, LaunchFailure> {
    let host = is_host(&file.launch);
    let mut program = match (&file.node.client_programs, host) {
        (Some(dir), true) => dir.clone(),
        (Some(_), false) => ByteStr::from(format!("{CLIENT_DIR}/bin")),
        (None, _) => {
            return Err(LaunchFailure::new(
                "a file cannot be received: the agent did not find the program berth-step when it was started",
            ));
        }
    };
    program.0.extend_from_slice(b"/berth-step");
    // What is written to a container that nobody keeps goes with it.
    let passing = !host && file.node.joined().is_none() && file.node.kept.is_none();
    let arguments = receive::arguments(receive, passing);
    Ok([program, "receive".into()].into_iter().chain(arguments).collect())
}

/// With `--multi-prog`: what the task of this place on the node runs.
fn own_program(launch: &StepLaunch, index: usize) -> Result<Vec<ByteStr>, LaunchFailure> {
    let here = launch.layout.tasks.get(launch.node_index as usize);
    let task = here.and_then(|tasks| tasks.get(index)).copied().unwrap_or_default();
    multiprog::argv(&launch.programs, task).map_err(|e| LaunchFailure::new(format!("--multi-prog: {e}")))
}

/// What the script sees as `$0`: a link beside the job's socket that leads to the script's descriptor.
fn script_name(file: &LaunchFile) -> ByteStr {
    let dir = match (&file.node.client_dir, is_host(&file.launch)) {
        (Some(dir), true) => dir.clone(),
        (Some(_), false) => CLIENT_DIR.into(),
        (None, _) => return ByteStr::from(format!("/dev/fd/{SCRIPT_FD}")),
    };
    let mut name = dir.0;
    name.extend_from_slice(b"/slurm_script");
    ByteStr(name)
}

fn request(file: &LaunchFile) -> Result<ContainerRequest, LaunchFailure> {
    let (launch, node) = (&file.launch, &file.node);
    let host = is_host(launch);
    let (root, image) = match launch.container.as_ref().map(|c| (&c.image.resolved, &node.image)) {
        None | Some((Some(ResolvedImage::Host), _)) => (Rootfs::Host, ImageConfig::default()),
        Some((Some(ResolvedImage::RootDir { path }), _)) => {
            (Rootfs::Dir(path.clone()), ImageConfig::default())
        }
        Some((_, Some(image))) => {
            let owner = image.owner.map(|(uid, gid)| StoreOwner { uid, gid });
            let config = ImageConfig {
                env: image.env.clone(),
                entrypoint: image.entrypoint.clone(),
                cmd: image.cmd.clone(),
                workdir: image.workdir.clone(),
                user: image.user.clone(),
            };
            (Rootfs::Overlay { layers: image.layers.clone(), owner }, config)
        }
        Some((Some(ResolvedImage::Kept), None)) => {
            return Err(LaunchFailure::new(
                "what a container of --container-name holds is known when the step starts: name its image as well",
            ));
        }
        Some((_, None)) => {
            return Err(LaunchFailure::new("the step's image was not made ready before its start"));
        }
    };
    let mut request = ContainerRequest::new(root, launch.identity.clone(), launch.work_dir.clone());
    request.image = image;
    request.root_without_links = node.root_without_links;
    request.group_names.clone_from(&node.group_names);
    request.hooks.clone_from(&node.hooks);
    // The login environment is the ground; what was submitted stands over it.
    let mut submitted = match launch.user_env {
        true => login::environment(&launch.identity).map_err(LaunchFailure::new)?,
        false => Vec::new(),
    };
    submitted.extend(launch.env.iter().cloned());
    request.env = environment::of_step(file, &submitted);
    request.limits = launch.limits.clone();
    request.devices = launch.share.gres.iter().flat_map(|g| g.files.iter().cloned()).collect();
    request.devices.extend(node.fabric.files.iter().cloned());
    // What an image says of GPUs is about no machine: tools that go by it are to find none where the step has none.
    let said = |name: &[u8]| request.image.env.iter().any(|text| text.0.starts_with(name));
    if !host && of_share(&launch.share).is_empty() && said(b"NVIDIA_VISIBLE_DEVICES=") {
        request.env.push("NVIDIA_VISIBLE_DEVICES=void".into());
    }
    request.in_job = node.namespaces.is_some();
    request.shm_size = shm_size(node.system, &launch.job.share);
    let chdir = || Workdir { path: launch.work_dir.clone(), origin: "--chdir".into() };
    if host {
        let origin = if launch.work_dir_explicit { "--chdir" } else { "the directory of submission" };
        request.workdir = Some(Workdir { path: launch.work_dir.clone(), origin: origin.into() });
        return Ok(request);
    }
    if let Some(container) = &launch.container {
        request.mounts.clone_from(&container.mounts);
        request.workdir = match &container.workdir {
            Some(path) if launch.enter.is_some() => {
                Some(Workdir { path: path.clone(), origin: "--workdir".into() })
            }
            Some(path) => Some(Workdir { path: path.clone(), origin: "--container-workdir".into() }),
            None if launch.work_dir_explicit => Some(chdir()),
            None => None,
        };
        request.mount_home = container.mount_home.unwrap_or(node.container.mount_home);
        request.subids = container.subids == Some(true) || node.kept.as_ref().is_some_and(|k| k.subids);
        request.remap_root = request.subids || container.remap_root.unwrap_or(node.container.remap_root);
        request.entrypoint =
            launch.receive.is_none() && container.entrypoint.unwrap_or(node.container.entrypoint);
        request.writable = container.writable;
        request.container_env.clone_from(&container.env);
        request.unshare.clone_from(&container.unshare);
        layers::ask(file, container, &mut request)?;
    }
    let saves = launch.container.as_ref().is_some_and(|c| c.save.is_some());
    request.export = saves && launch.node_index == 0;
    request.joinable = request.in_job;
    if node.kept.is_some() {
        // What is written is kept, in whatever directory the root comes from.
        request.writable = request.writable.filter(|writable| !writable);
    }
    if let Some(member) = node.joined() {
        let started = &member.started;
        request.root = Rootfs::Joined;
        request.export = false;
        request.mounts = Vec::new();
        request.writable = None;
        request.writable_layer = WritableLayer::Tmpfs;
        request.mount_home = started.mount_home;
        request.remap_root = started.remap_root;
        request.subids = started.subids;
        request.unshare.clone_from(&started.unshare);
    }
    if request.subids && request.in_job && !node.system && !launch.job.subids {
        return Err(LaunchFailure::new(
            "--container-subids: the job was submitted without it, and what its steps share has one id: give it to sbatch, \
             salloc or the srun that makes the job (only root's cluster gives it to single steps)",
        ));
    }
    x11::ask(file, &mut request)?;
    // Before what is mounted below it, as the directory of MPS is.
    if let Some(scratch) = &node.scratch {
        let mut source = scratch.0.clone();
        source.extend_from_slice(b"/tmp");
        request.extra_mounts.push(ExtraMount {
            source: ByteStr(source),
            target: "/tmp".into(),
            read_only: false,
        });
    }
    request.extra_mounts.extend(node.injected.iter().cloned());
    request.image.env.extend(node.device_env.iter().cloned());
    request.device_groups.clone_from(&node.device_groups);
    request.glibc.clone_from(&node.glibc);
    let is_library = |target: &ByteStr| target.0.windows(4).any(|part| part == b".so.");
    let targets = node.injected.iter().map(|m| m.target.clone());
    request.libraries = targets.filter(|t| is_library(t) || t.0.ends_with(b".so")).collect();
    if let Some(dir) = &node.client_dir {
        request.extra_mounts.push(ExtraMount {
            source: dir.clone(),
            target: CLIENT_DIR.into(),
            read_only: true,
        });
    }
    if let Some(programs) = &node.client_programs {
        let target = ByteStr::from(format!("{CLIENT_DIR}/bin"));
        request.extra_mounts.push(ExtraMount {
            source: programs.clone(),
            target: target.clone(),
            read_only: true,
        });
        request.append_path.push(target);
    }
    Ok(request)
}

fn task(file: &LaunchFile, index: usize, files: TaskFiles) -> Result<TaskSpec, LaunchFailure> {
    let launch = &file.launch;
    let number = u32::try_from(index).map_err(|_| LaunchFailure::new("too many tasks"))?;
    let stdio = match (files.terminal, launch.pty) {
        (true, Some(size)) => TaskStdio::Pty(size),
        _ => TaskStdio::Fds { stdin: files.stdin, stdout: files.stdout, stderr: files.stderr },
    };
    let argv = match launch.programs.is_empty() {
        true => Vec::new(),
        false => own_program(launch, index)?,
    };
    Ok(TaskSpec {
        id: number,
        argv,
        env: [environment::of_task(file, number), files.env].concat(),
        cwd: None,
        stdio,
        cpus: launch.share.cpus.clone(),
        memory: None,
        group: None,
        says: Vec::new(),
        umask: Some(launch.umask),
        pid_env: Some("SLURM_TASK_PID".into()),
        name: None,
        extra_fds: files.pmi.map(|fd| (PMI_FD, fd)).into_iter().collect(),
        before: Vec::new(),
        after: Vec::new(),
        last: false,
    })
}

/// A process parked in the step's cgroups, from which init is forked, where the first version's hold limits.
fn parked(cgroup: Option<&Cgroup>) -> Result<Option<Parked>, LaunchFailure> {
    let Some(group) = cgroup.filter(|g| g.needs_join()) else { return Ok(None) };
    let parked = Parked::new().map_err(|e| LaunchFailure::new(e.to_string()))?;
    group.join(parked.pid()).map_err(|e| LaunchFailure::new(e.to_string()))?;
    Ok(Some(parked))
}

impl Processes {
    /// How further steps enter the container.
    pub fn member(&self) -> Option<&Member> {
        self.member.as_ref()
    }

    /// Readable when [`Processes::events`] has something to say.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.init.as_ref().map(InitHandle::fd)
    }

    /// What happened since the last call. After `AllGone` nothing more comes; where hooks follow on `Running`, nothing
    /// comes with it either, and it is asked again when they have run.
    pub fn events(&mut self, streams: &mut Streams) -> Vec<TaskEvent> {
        let mut told = Vec::new();
        loop {
            if self.living == 0 {
                self.tasks_ended(&mut told);
            }
            let Some(init) = &mut self.init else { return told };
            match init.next_event(false) {
                Ok(Some(event)) => self.note(event, streams, &mut told),
                Ok(None) => return told,
                Err(e) => {
                    // Killed, most likely: by the kernel for want of memory, or with the whole step.
                    crate::log::say(&e.to_string());
                    self.all_gone(&mut told);
                    return told;
                }
            }
            if self.hooks.is_some() && matches!(told.last(), Some(TaskEvent::Running)) {
                return told;
            }
        }
    }

    fn note(&mut self, event: Event, streams: &mut Streams, told: &mut Vec<TaskEvent>) {
        match event {
            Event::Started { task, pty, .. } => {
                if let Some(master) = pty {
                    self.adopt_terminal(task, master, streams);
                }
                self.started(told);
            }
            Event::ExecFailed { task, error } => {
                let code = if self.as_shell { error.exit_code() } else { exec_code(&error).into() };
                let status = ExitStatus { code: code.try_into().unwrap_or(1), signal: 0 };
                told.push(TaskEvent::NotStarted { task: task as usize, status, why: error.to_string() });
                self.living = self.living.saturating_sub(1);
                self.started(told);
            }
            Event::Note(text) => told.push(TaskEvent::Note(text)),
            Event::Exited { task, status, usage } => {
                self.usage.merge(&usage);
                if ENDING.contains(&status.signal) && self.saving.as_ref().is_some_and(|s| !s.begun()) {
                    // By scancel, a limit or want of memory: whatever it was about to do is half done.
                    self.saving = None;
                    told.push(TaskEvent::Note(NOT_SAVED.to_string()));
                }
                self.living = self.living.saturating_sub(1);
                told.push(TaskEvent::Exited { task: task as usize, status });
            }
        }
    }

    fn started(&mut self, told: &mut Vec<TaskEvent>) {
        self.starting = self.starting.saturating_sub(1);
        if self.starting > 0 {
            return;
        }
        told.push(TaskEvent::Running);
    }

    /// The container's hooks, with the pid of its init.
    pub fn hooks(&self) -> Option<(&ContainerHooks, i32)> {
        self.hooks.as_ref().zip(self.init.as_ref().map(InitHandle::pid))
    }

    /// What is left to be run when all is gone.
    pub fn into_hooks(self) -> Option<ContainerHooks> {
        self.hooks
    }

    fn adopt_terminal(&mut self, task: u32, master: OwnedFd, streams: &mut Streams) {
        let result = nonblocking(&master)
            .map_err(|e| io::Error::other(e.text))
            .and_then(|()| Ok(rustix::io::fcntl_dupfd_cloexec(&master, 3)?))
            .and_then(|copy| streams.add_terminal(task, copy));
        match result {
            Ok(()) => self.terminal = Some(master),
            Err(e) => crate::log::say(&format!("the terminal of task {task}: {e}")),
        }
    }

    /// No task is left: the container's files are saved where that was asked for, and then everything ends.
    fn tasks_ended(&mut self, told: &mut Vec<TaskEvent>) {
        match (&mut self.saving, &mut self.init) {
            (Some(saving), Some(_)) if saving.begun() => {}
            (Some(saving), Some(init)) => {
                if let Err(why) = saving.begin(init, self.cgroup.as_ref()) {
                    told.push(TaskEvent::Saved(Err(why)));
                    let saving = self.saving.take();
                    self.all_gone(told);
                    // Only now has its input ended.
                    drop(saving);
                }
            }
            _ => self.all_gone(told),
        }
    }

    /// Readable when [`Processes::advance`] has something to do.
    pub fn saving_fd(&self) -> Option<BorrowedFd<'_>> {
        self.saving.as_ref().and_then(Saving::fd)
    }

    /// Goes on with saving the container's files.
    pub fn advance(&mut self) -> Vec<TaskEvent> {
        let mut told = Vec::new();
        if let Some(result) = self.saving.as_mut().and_then(Saving::advance) {
            self.saving = None;
            told.push(TaskEvent::Saved(result));
            self.all_gone(&mut told);
        }
        told
    }

    /// The step is ended from outside: what it leaves is nothing to be kept.
    pub fn give_up_saving(&mut self) -> Vec<TaskEvent> {
        let mut told = Vec::new();
        if self.saving.is_some() && self.living == 0 {
            self.all_gone(&mut told);
        } else if self.saving.take().is_some() {
            told.push(TaskEvent::Saved(Err(NOT_SAVED.to_string())));
        }
        told
    }

    /// A signal that ends, when no task is left that it could end: then it is the saving that is not wanted.
    pub fn signalled_while_saving(&mut self, signal: i32) -> Vec<TaskEvent> {
        let begun = self.saving.as_ref().is_some_and(Saving::begun);
        if begun && self.living == 0 && ends(signal) { self.give_up_saving() } else { Vec::new() }
    }

    /// Ends what is left, and reads what all of it used.
    fn all_gone(&mut self, told: &mut Vec<TaskEvent>) {
        if let Some(init) = self.init.take()
            && let Err(e) = init.finish()
        {
            crate::log::say(&e.to_string());
        }
        self.terminal = None;
        // After init: with it the writer's input has ended.
        if self.saving.take().is_some() {
            told.push(TaskEvent::Saved(Err(NOT_SAVED.to_string())));
        }
        drop(self.told.take());
        drop(self.layer.take());
        drop(self.authority.take());
        let (usage, oom_kills) = match &self.cgroup {
            Some(group) => counted(group.usage(), self.usage),
            None => (self.usage, 0),
        };
        told.push(TaskEvent::AllGone { usage, oom_kills });
    }

    /// Sends a signal to every process of the step, or to the tasks' first processes alone.
    pub fn signal(&mut self, signal: i32, leaders_only: bool) {
        let Some(init) = &mut self.init else { return };
        let result = if leaders_only {
            init.signal(SignalTarget::Process(0), signal)
        } else {
            init.signal(SignalTarget::Everything, signal)
        };
        if let Err(e) = result {
            crate::log::say(&format!("signal {signal}: {e}"));
        }
    }

    /// Ends every process at once.
    pub fn kill(&mut self) -> Vec<TaskEvent> {
        let mut told = Vec::new();
        if self.init.is_some() {
            self.all_gone(&mut told);
        }
        told
    }

    /// Gives the terminal its new size.
    pub fn resize(&self, size: TermSize) {
        if let Some(master) = &self.terminal {
            let size =
                rustix::termios::Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
            let _ = rustix::termios::tcsetwinsize(master, size);
        }
    }
}

/// What the group counted, and the processes' own accounts for what it did not.
fn counted(group: CgroupUsage, tasks: Usage) -> (Usage, u64) {
    let usage = Usage {
        user_us: group.user_us.unwrap_or(tasks.user_us),
        system_us: group.system_us.unwrap_or(tasks.system_us),
        max_rss: group.peak_memory.unwrap_or(tasks.max_rss),
        ..Usage::default()
    };
    (usage, group.oom_kills.unwrap_or(0))
}

/// The exit code of a task whose program could not be started: the kernel's error number, as Slurm has it.
fn exec_code(error: &ExecError) -> u8 {
    let errno = match error {
        ExecError::NoCommand | ExecError::NotFound { .. } | ExecError::NoInterpreter { .. } => 2,
        ExecError::DosLineEnds(_) => 2,
        ExecError::TooLong => 7,
        ExecError::BadFormat { .. } => 8,
        ExecError::NotExecutable(_) | ExecError::IsDirectory(_) => 13,
        ExecError::Around { code, .. } => (*code).into(),
        ExecError::Workdir { errno, .. } | ExecError::Other { errno, .. } => *errno,
    };
    u8::try_from(errno).unwrap_or(1).max(1)
}
