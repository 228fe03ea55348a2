//! The agent's start and its loop.

use crate::around::{Around, Kind};
use crate::cgroups::Cgroups;
use crate::clients::{self, Service};
use crate::direct::{Descriptors, Direct};
use crate::drift::Drift;
use crate::driver::{Driver, Input, Node, SETTLE, wall_clock};
use crate::full_name::FullName;
use crate::gpus::{Configured, Gpus};
use crate::holders::Holders;
use crate::hooks::Hooks;
use crate::images::{Images, STORE_ID};
use crate::jobs::{self, listen_at};
use crate::kept::KeptContainers;
use crate::link::{self, Aside};
use crate::memory;
use crate::paths::Paths;
use crate::peers::{FindIdentity, Keeping, Peers};
use crate::place::{self, StoreMemory};
use crate::places::Connections;
use crate::pmix::Pmix;
use crate::probe::{self, ProbeError};
use crate::registry::Registry;
use crate::room::{self, Room};
use crate::scope::Scope;
use crate::sessions::{self, Sessions};
use crate::standby::Slots;
use crate::term::{self, Terms};
use crate::used::Used;
use crate::zygote::Zygote;
use crate::{adopt, dial, gres, mine, programs};
use berth_agent_core::{AdoptedJob, AdoptedPhase, AgentConfig, AgentCore, HealthPlan, SupervisorEvent};
use berth_model::config::{Config, Understood};
use berth_model::hardware::Hardware;
use berth_model::ids::{JobId, NodeName, StepKey};
use berth_model::programs::CheckedNodes;
use berth_model::time::Span;
use berth_rpc::Uplink;
use berth_runtime::cgroup::CgroupFacts;
use berth_step::deadlines::boot_clock;
use berth_step::spool::{ContainerDefaults, StepDir, read_json};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The state directory; absolute.
    pub state_dir: PathBuf,
    /// The node's name; absent means what the machine calls itself.
    pub node: Option<NodeName>,
    /// Root acts for users. Without it the agent runs its own user's jobs, unprivileged.
    pub system: bool,
    /// The cluster's configuration.
    pub config: Config,
    /// Keys of it, as the controller has it, that this version does not know.
    pub unknown: Vec<String>,
    /// Reads it again from where it came from.
    pub read_again: ReadAgain,
    /// The controller's machine, where it is another one; absent: the private socket in the state directory.
    pub uplink: Option<Uplink>,
    /// Tells who this node is to other nodes, for images.
    pub identity: FindIdentity,
    /// The `berth` program: its sub-commands `internal-fetch` and `internal-unpack` fill the image store in
    /// system mode.
    pub program: PathBuf,
    /// The `berth-step` program.
    pub step_program: PathBuf,
    /// It is a service of systemd: where control groups are v2 alone, what jobs have is in a scope of its own, which outlives
    /// the service.
    pub service: bool,
    /// Is called once it serves.
    pub ready: fn(),
}

/// Why an agent cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A file or directory.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Another agent runs there.
    #[error("another agent runs on {}: 'berth status' shows it, 'berth down' stops it", .0.display())]
    Running(PathBuf),
    /// System mode without root.
    #[error("system mode needs root: start it as root, or without it for a cluster of your own")]
    NotRoot,
    /// Hardware.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// Control groups.
    #[error(transparent)]
    Cgroup(#[from] berth_runtime::cgroup::CgroupError),
    /// The image store.
    #[error("{0}")]
    Images(String),
    /// The administrator's hooks.
    #[error("container.hooks_dirs: {0}")]
    Hooks(String),
    /// The administrator's programs around jobs.
    #[error("{0}")]
    Programs(String),
    /// systemd gives no scope for steps.
    #[error("no scope for steps: {0}; without --service they have the agent's own control group")]
    Scope(String),
    /// Limits cannot be enforced in system mode.
    #[error("system mode enforces limits by control groups, and these cannot be used here: {0}")]
    NoLimits(String),
}

pub(crate) fn doing(what: impl Into<String>) -> impl FnOnce(io::Error) -> AgentError {
    let what = what.into();
    move |source| AgentError::Io { what, source }
}

/// How a configuration is read: from the file that was named, or from that of the state directory. An error says why it
/// cannot be used.
#[derive(Clone, Debug)]
pub struct ReadAgain {
    /// The file that was named.
    pub file: Option<PathBuf>,
    /// What reads and judges it.
    pub read: fn(&Path, Option<&Path>) -> Result<Config, String>,
}

/// Why an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Asked,
    /// Its configuration has changed: it is to be started again.
    Reconfigured,
}

/// Runs the agent until `shutdown` is done, or until there is another configuration. Steps live on; the next agent adopts
/// them.
pub fn run(options: AgentOptions, shutdown: Shutdown) -> Running {
    Box::pin(serve(options, shutdown))
}

/// Completes when the agent is to stop.
pub type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An agent's life. Boxed, so that all that serves is compiled in this package and optimised as its settings say, not
/// once more where it is awaited.
pub type Running = Pin<Box<dyn Future<Output = Result<Ended, AgentError>> + Send>>;

async fn serve(options: AgentOptions, mut shutdown: Shutdown) -> Result<Ended, AgentError> {
    if options.system && !nix::unistd::geteuid().is_root() {
        return Err(AgentError::NotRoot);
    }
    let paths = Paths::new(&options.state_dir);
    make_directories(&paths)?;
    let _lock = lock(&paths)?;
    let term::Found { terms, term, unkept } = Terms::open(&paths).map_err(doing(format!(
        "an earlier controller cannot be told from the present one; if none runs any more, remove {} and {}, and start again",
        paths.term_slots().display(),
        paths.term().display()
    )))?;
    let short_lived = [(paths.spool(), 0o700), (paths.jobs(), 0o711)];
    if options.system {
        short_lived.iter().for_each(|(dir, mode)| memory::take(dir, *mode));
    }
    for (dir, mode) in &short_lived {
        make(dir, *mode)?;
    }
    let name = options.node.clone().unwrap_or_else(host_name);
    let (devices, wrong) = gres::devices(&options.config, &name);
    wrong.iter().for_each(|w| tracing::warn!("configuration: {w}"));
    let looked = options.program.clone();
    let (left, logged) = (paths.gpus_left(), paths.gpus_logged());
    let (named, devices): (Vec<_>, Vec<_>) = devices.into_iter().partition(|d| d.cdi.is_some());
    let mps = options.config.gpus.mps_pipes().to_string();
    let configured = Configured { named, by_file: devices.clone(), mps };
    let gpus = tokio::task::block_in_place(move || Gpus::look(&looked, left, logged, configured));
    let gpus = Arc::new(gpus);
    let mut files: Vec<String> =
        devices.iter().flat_map(|d| &d.files).map(|f| f.display().into_owned()).collect();
    let more: Vec<String> = gpus.files().filter(|file| !files.contains(file)).collect();
    files.extend(more);
    // A CDI file that cannot be read just now says nothing of devices that jobs still have.
    if !jobs_left(&paths).is_empty()
        && let Some(earlier) = Cgroups::recorded(&options.state_dir, &paths.cgroups())
    {
        let kept: Vec<String> =
            earlier.device_files().filter(|file| !files.contains(file)).cloned().collect();
        files.extend(kept);
    }
    let scope = if options.service { Scope::take(&options)? } else { None };
    let facts = scope.as_ref().map_or_else(CgroupFacts::detect, |scope| scope.facts.clone());
    let cgroups = Cgroups::detect(&options.state_dir, &files, facts, scope.is_none())?;
    let cgroups = Arc::new(cgroups.with_channels(gpus.imex()));
    say_what_is_enforced(&cgroups, options.system)?;
    let sessions = keep_from_sessions(&options, &cgroups, &gpus);
    protect(options.system);
    let mut hardware = probe::hardware(cgroups.enforces())?;
    if let Some(reserved) = gres::memory_reserved(&options.config, &name) {
        hardware.memory_reserved = reserved.min(hardware.memory);
    }
    hardware.gres = gpus.devices().to_vec();
    hardware.imex_channels = gpus.imex_channels();
    hardware.memory_reserved = hold_images(&paths, &options, &hardware)?;
    hardware.memory = beside_images(&paths, &options, &hardware)?;
    let boot = probe::boot()?;
    programs::install(&options.step_program, &paths.client_programs())
        .map_err(doing(format!("cannot install {} for containers", options.step_program.display())))?;
    let kept = Arc::new(KeptContainers::new(paths.clone()));
    kept.sweep();
    let (room, wants) = Room::new();
    let uplink = options.uplink.clone().unwrap_or_else(|| Uplink::Local(paths.node_socket()));
    let peers = Arc::new(Peers::new(name.clone(), &uplink));
    let images = Images::open(
        &paths,
        (options.program.clone(), options.system),
        &options.config.images,
        Arc::clone(&kept),
        room,
        (Arc::clone(&peers), Arc::clone(&cgroups)),
    )
    .map_err(AgentError::Images)?;
    let images = Arc::new(images);
    let hooks = Hooks::load(&options.config.container.hooks_dirs, rustix::process::geteuid().as_raw());
    let hooks = hooks.map_err(AgentError::Hooks)?;
    let around = Around::load(&options.config, rustix::process::geteuid().as_raw());
    let around = Arc::new(around.map_err(AgentError::Programs)?);
    let zygote = Arc::new(start_zygote(&options.step_program, &cgroups)?);
    let pmix = Pmix::ask(&options.program, options.system);
    let _descriptors = Descriptors::take();
    let registry = Registry::default();
    let me = Arc::clone(&peers);
    let direct = Direct::new(uplink.clone(), Box::new(move || me.identity()));
    let service = Arc::new(Service {
        registry: registry.clone(),
        direct,
        uplink: uplink.clone(),
        kept: Arc::clone(&kept),
        images: Arc::clone(&images),
        connections: Connections::new(),
        asking: mine::Asking::default(),
        paths: paths.clone(),
        node: name.clone(),
    });

    let (supervised, mut from_supervisors) = mpsc::unbounded_channel::<(StepKey, SupervisorEvent)>();
    let found = adopt::adopt(&paths, &boot.id, &registry, &supervised)
        .await
        .map_err(doing("cannot look through the spool"))?;
    let used = Used::new(
        &options.program,
        vec!["internal-gpus".into(), "--watch".into()],
        options.config.gpus.sample_seconds,
    );
    for step in
        found.steps.iter().filter(|s| matches!(s.phase, AdoptedPhase::Starting | AdoptedPhase::Running))
    {
        let key = step.launch.key;
        let group = found.groups.get(&key).cloned();
        used.begin(key, &step.launch.share, group, &StepDir::of(&paths.spool(), key));
    }
    let cores = hardware.cores.clone();
    // A check of an earlier agent that was killed.
    crate::around::end_left(&paths, None);
    let config = AgentConfig {
        node: name.clone(),
        boot_id: boot.id.clone(),
        boot_time: boot.time,
        agent_start: wall_clock(),
        version: env!("CARGO_PKG_VERSION").to_string(),
        hardware,
        term,
        unkept,
        prolog: around.has(Kind::Prolog),
        unkillable: Span::from_secs(options.config.unkillable_seconds.into()),
        health: around.checks_health().then(|| HealthPlan {
            interval: Span::from_secs(options.config.programs.health_check_interval_seconds.into()),
            busy: match options.config.programs.health_check_nodes {
                CheckedNodes::Any => None,
                CheckedNodes::Idle => Some(false),
                CheckedNodes::Allocated => Some(true),
            },
        }),
        unhealthy: read_json(&paths.unhealthy()).unwrap_or_default(),
        unfit: gpus.mismatch().filter(|_| !options.config.gpus.serve_mismatched).map(str::to_string),
        unknown: options.unknown.clone(),
        features: berth_model::feature::Feature::known(),
        highest: crate::highest::remembered(&paths),
    };
    let living: Vec<JobId> = found.jobs.iter().map(|j| j.job).collect();
    if let Some(earlier) = Cgroups::recorded(&options.state_dir, &paths.cgroups()) {
        earlier.sweep(&living);
    }
    cgroups.record(&paths.cgroups()).map_err(doing(format!("cannot write {}", paths.cgroups().display())))?;
    keep_later_devices(&cgroups, &found);
    let slots = Arc::new(Slots::new(Arc::clone(&cgroups), Arc::clone(&zygote), options.system));
    let holders = Holders::new(Arc::clone(&zygote));
    let adopted = |j: &jobs::JobRecord| AdoptedJob {
        job: j.job,
        attempt: j.attempt,
        prolog_done: j.prolog_done,
        until: adopt::deadline(j.job, &paths.job(j.job)),
    };
    let jobs = found.jobs.iter().map(adopted).collect();
    let start = options.config.start_seconds().map(|seconds| Span::from_secs(seconds.into()));
    let prolog = Span::from_secs(options.config.programs.task_prolog_seconds.into());
    let core = AgentCore::new(config, found.steps, jobs, boot_clock());
    let core = core.starting_within(start).task_prologs_within(prolog);
    let container = &options.config.container;
    let full_name = Arc::new(FullName::of(host_name().0));
    let node = Arc::new(Node {
        name: name.clone(),
        full_name: Arc::clone(&full_name),
        cores,
        boot_id: boot.id,
        system: options.system,
        defaults: ContainerDefaults {
            mount_home: container.mount_home,
            remap_root: container.remap_root,
            entrypoint: container.entrypoint,
        },
        hooks,
        around,
        gpus: Arc::clone(&gpus),
        used: Arc::clone(&used),
        cgroups,
        images,
        file_limit: (options.config.start_timeout_seconds > 0)
            .then(|| Duration::from_secs(options.config.start_timeout_seconds.into())),
        program: options.program.clone(),
        pmix,
        drift: options.uplink.is_some().then(|| Arc::new(Drift::default())),
        zygote,
        slots,
        holders,
        registry,
        service: Arc::clone(&service),
        paths: paths.clone(),
    });
    let (inputs, mut from_tasks) = mpsc::unbounded_channel();
    let parts = Arc::clone(&node);
    // Ends with this function, however that ends.
    let mut standing_by = JoinSet::new();
    standing_by.spawn(Arc::clone(&node.slots).keep());
    if options.config.container.keep_days > 0 {
        standing_by.spawn(expire(kept, options.config.container.keep_days));
    }
    if let Some(drift) = &node.drift {
        standing_by.spawn(Arc::clone(drift).keep());
    }
    if let Some(sessions) = sessions {
        standing_by.spawn(sessions.keep());
    }
    let rules = room::rules(&options.config.images);
    standing_by.spawn(room::keep(Arc::clone(&node.images), rules, wants, inputs.clone()));
    let keeping = Keeping {
        state: options.state_dir.clone(),
        find: options.identity,
        uplink: uplink.clone(),
        port: options.config.images.peer_port(),
        images: Arc::clone(&node.images),
        service: Arc::clone(&service),
        inputs: inputs.clone(),
    };
    let (admitted, carrier) = (peers.admitted(), Arc::clone(&peers));
    standing_by.spawn(peers.keep(keeping));
    let filled = Arc::clone(&node);
    tokio::task::spawn_blocking(move || filled.holders.fill());
    let mut driver = Driver::new(node, core, terms, inputs, supervised, found.jobs, found.groups);

    let listener = listen_at(&paths.agent_socket(), 0o666)
        .map_err(doing(format!("cannot listen on {}", paths.agent_socket().display())))?;
    let clients = tokio::spawn(clients::serve(listener, None, Arc::clone(&service)));
    let (link_events, mut from_link) = mpsc::unbounded_channel();
    let aside = move |said| match said {
        Aside::Dial(number) => dial::answer(Arc::clone(&service), number),
        Aside::Admit(admission) => admitted.add(admission),
        Aside::Carry(carry) => carrier.carry(carry),
    };
    let link =
        tokio::spawn(link::keep(uplink, (name.clone(), full_name), link_events, aside, paths.connected()));
    tracing::info!("agent of node {name} started, state in {}", options.state_dir.display());
    (options.ready)();

    let mut watched = tokio::spawn(Gpus::until_changed(gpus, Arc::clone(&used)));
    let mut leave_at: Option<tokio::time::Instant> = None;
    let mut ended = Ended::Asked;
    // A job whose end is on record leaves nothing behind: its acknowledgement is waited for, for a moment.
    while leave_at.is_none() || driver.awaits_acknowledgement() {
        let wake = driver.wake().unwrap_or(Duration::from_secs(3600));
        tokio::select! {
            biased;
            () = &mut shutdown, if leave_at.is_none() || ended == Ended::Reconfigured => {
                ended = Ended::Asked;
                leave_at.get_or_insert(tokio::time::Instant::now() + SETTLE);
            }
            () = async { tokio::time::sleep_until(leave_at.unwrap_or_else(tokio::time::Instant::now)).await },
                if leave_at.is_some() => break,
            Some((key, event)) = from_supervisors.recv() => driver.supervisor(key, event),
            Some(input) = from_tasks.recv() => driver.take(input),
            Some(event) = from_link.recv() => driver.take(Input::Link(event)),
            _ = &mut watched, if leave_at.is_none() => {
                tracing::info!("what was found of GPUs has changed: the agent starts anew with it");
                ended = Ended::Reconfigured;
                leave_at = Some(tokio::time::Instant::now() + SETTLE);
            }
            () = tokio::time::sleep(wake) => driver.tick(),
        }
        if let Some(told) = driver.told_configuration().filter(|_| leave_at.is_none())
            && is_new(&options, &told)
        {
            ended = Ended::Reconfigured;
            leave_at = Some(tokio::time::Instant::now() + SETTLE);
        }
    }
    link.abort();
    watched.abort();
    clients.abort();
    standing_by.abort_all();
    let _ = fs::remove_file(paths.agent_socket());
    let _ = fs::remove_file(paths.connected());
    driver.settle().await;
    drop(driver);
    used.close();
    parts.slots.close();
    parts.holders.close();
    parts.zygote.end();
    parts.cgroups.leave(&jobs_left(&paths), Duration::from_secs(1));
    drop(scope);
    tracing::info!("agent of node {name} stopped; its steps run on");
    if ended == Ended::Reconfigured {
        // Whoever asked for the end meanwhile does not ask the next program.
        ended = tokio::select! {
            biased;
            () = &mut shutdown => Ended::Asked,
            () = std::future::ready(()) => ended,
        };
    }
    Ok(ended)
}

/// Whether the agent would run with another configuration if it were started again, now that the controller has told its own.
fn is_new(options: &AgentOptions, told: &Understood) -> bool {
    let own = options.config.for_agents();
    if options.uplink.is_some() {
        // It has no file of its own: it will ask the controller, and say anew what it does not know.
        let new = told.config != own || told.unknown != options.unknown;
        if new {
            tracing::info!("the configuration has changed: the agent starts again, its steps run on");
        }
        return new;
    }
    if told.config == own {
        return false;
    }
    let again = &options.read_again;
    match (again.read)(&options.state_dir, again.file.as_deref()) {
        Ok(config) if config.for_agents() == own => {
            // The controller was started with another file.
            tracing::debug!("the controller has another configuration than the file of this agent");
            false
        }
        Ok(_) => {
            tracing::info!("the configuration has changed: the agent starts again, its steps run on");
            true
        }
        Err(why) => {
            tracing::error!("the configuration has changed, and what is read here cannot be used: {why}");
            false
        }
    }
}

/// Has images kept in memory where the configuration says so, and nowhere else; gives all MiB that jobs cannot have.
fn hold_images(paths: &Paths, options: &AgentOptions, hardware: &Hardware) -> Result<u64, AgentError> {
    let (place, mib) = (paths.images_in_memory(), options.config.images.memory_mib());
    let reserved = hardware.memory_reserved;
    if mib == 0 {
        if options.system {
            // Of an agent that was configured otherwise.
            memory::give_back_store(&place).map_err(doing(format!("cannot unmount {}", place.display())))?;
        }
        return Ok(reserved);
    }
    if !options.system {
        return Err(AgentError::Images(
            "images.memory: an ordinary user's node mounts no tmpfs: leave it out, and write images.path = \
             \"/dev/shm/NAME\" where there is no disk"
                .into(),
        ));
    }
    let reserved = reserved.saturating_add(mib);
    if reserved >= hardware.memory {
        let memory = hardware.memory;
        return Err(AgentError::Images(format!(
            "images.memory: {mib} MiB leave jobs nothing of the node's {memory} MiB: write less"
        )));
    }
    memory::take_store(&place, mib, STORE_ID).map_err(AgentError::Images)?;
    Ok(reserved)
}

/// MiB of memory that are left where images are in it without the configuration saying so, as on a machine that runs from the
/// network: else jobs were promised what the store takes.
fn beside_images(paths: &Paths, options: &AgentOptions, hardware: &Hardware) -> Result<u64, AgentError> {
    let (images, memory) = (&options.config.images, hardware.memory);
    if images.memory_mib() > 0 {
        // It is counted, and there is none anywhere else.
        return Ok(memory);
    }
    let place = place::store_place(images, paths.state()).map_err(AgentError::Images)?;
    let Some(StoreMemory { kind, mib }) = place::store_memory(images, &place) else { return Ok(memory) };
    let place = place.display();
    let most = mib.map_or_else(|| "without a bound".to_owned(), |mib| format!("{mib} MiB at most"));
    if !options.system {
        tracing::warn!(
            "the image store {place} is in memory ({kind}): images take from what programs have, {most}; name a disk \
             (images.path), or bound it (images.max_size)"
        );
        return Ok(memory);
    }
    let Some(left) =
        mib.and_then(|mib| memory.checked_sub(mib)).filter(|left| *left > hardware.memory_reserved)
    else {
        return Err(AgentError::Images(format!(
            "the image store {place} is in memory ({kind}), {most}, which leaves jobs nothing of the node's {memory} MiB: write \
             images.memory or images.max_size with what images may have, or name a disk (images.path)"
        )));
    };
    tracing::warn!(
        "the image store {place} is in memory ({kind}), {most}: jobs have {left} MiB of the node's {memory} MiB; write images.memory \
         or images.max_size for another share"
    );
    Ok(left)
}

/// Keeps devices that jobs are given from the sessions of users, where the configuration says so.
fn keep_from_sessions(options: &AgentOptions, cgroups: &Cgroups, gpus: &Gpus) -> Option<Arc<Sessions>> {
    let groups = &options.config.gpus.kept_from;
    if options.system {
        let rules = sessions::rules(cgroups.device_rules(), gpus.imex().map(|imex| imex.major));
        let sessions = Sessions::begin(&options.state_dir, groups, rules, cgroups.facts());
        return Some(sessions).filter(|sessions| sessions.is_any());
    }
    if !groups.is_empty() {
        tracing::warn!(
            "gpus.kept_from is for clusters of root's: an ordinary user keeps nothing from others"
        );
    }
    None
}

/// Keeps devices that have come since from steps and logins that an earlier agent began. A login from now on is kept from them anyway: it
/// goes by what is written down of them.
fn keep_later_devices(cgroups: &Cgroups, found: &adopt::Found) {
    for step in &found.steps {
        let Some(group) = found.groups.get(&step.launch.key) else { continue };
        if let Err(e) = cgroups.keep_from_step(&step.launch, group) {
            tracing::error!("step {}: devices that came after its begin open in it: {e}", step.launch.key);
        }
    }
    for record in &found.jobs {
        if let Err(e) = cgroups.keep_from_visitors(record.job, &record.devices) {
            tracing::error!("job {}: devices that came after them open in logins: {e}", record.job);
        }
    }
}

/// Removes kept containers that were not used for so many days, now and every hour.
async fn expire(kept: Arc<KeptContainers>, days: u32) {
    let unused = Duration::from_secs(u64::from(days) * 24 * 3600);
    loop {
        let kept = Arc::clone(&kept);
        let removed = tokio::task::spawn_blocking(move || kept.prune(None, unused)).await.unwrap_or_default();
        for name in removed {
            tracing::info!("the container '{name}' was not used for {days} days and was removed");
        }
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}

/// Removes the control groups that an agent which is gone left for this state directory, but for those of jobs
/// that still have processes; where no job is left, gives groups of others what it kept from them.
pub fn remove_groups(state_dir: &Path) {
    let jobs = jobs_left(&Paths::new(state_dir));
    if jobs.is_empty() {
        sessions::undo(state_dir);
    }
    let Some(cgroups) = Cgroups::recorded(state_dir, &Paths::new(state_dir).cgroups()) else { return };
    let living: Vec<_> = jobs.into_iter().filter(|job| cgroups.lives(*job)).collect();
    // A supervisor whose client is on another machine takes a moment longer to hear that it has read everything.
    cgroups.leave(&living, Duration::from_secs(20));
}

/// Whether steps of this state directory run, or ended and were not yet reported.
pub fn holds_steps(state_dir: &Path) -> bool {
    std::fs::read_dir(Paths::new(state_dir).spool()).is_ok_and(|mut entries| entries.next().is_some())
}

/// Gives back the memory in which an agent that is gone kept what its steps and jobs had, where none is left, and `images` if
/// the store was there.
pub fn release_memory(state_dir: &Path, images: bool) -> io::Result<()> {
    let paths = Paths::new(state_dir);
    memory::give_back(&paths.spool())?;
    memory::give_back(&paths.jobs())?;
    if images { memory::give_back_store(&paths.images_in_memory()) } else { Ok(()) }
}

/// Whether the agent of this state directory is in touch with its controller.
pub fn is_connected(state_dir: &Path) -> bool {
    Paths::new(state_dir).connected().exists()
}

/// Whether nothing of a step or of a job is there any more.
pub fn is_swept(state_dir: &Path) -> bool {
    let paths = Paths::new(state_dir);
    !holds_steps(state_dir)
        && jobs_left(&paths).is_empty()
        && jobs::all_scratch(&paths).unwrap_or_default().is_empty()
}

fn jobs_left(paths: &Paths) -> Vec<JobId> {
    jobs::scan(paths).unwrap_or_default().iter().map(|record| record.job).collect()
}

/// What the machine calls itself, whole. No name service is asked for a domain that is not in it: its answer may change, or not come, and the
/// name is who the machine is.
pub fn host_name() -> NodeName {
    NodeName(rustix::system::uname().nodename().to_string_lossy().into_owned())
}

/// Directories that the agent needs; those that exist keep their owner.
fn make_directories(paths: &Paths) -> Result<(), AgentError> {
    fs::create_dir_all(paths.state())
        .map_err(doing(format!("cannot make the directory {}", paths.state().display())))?;
    make(&paths.run(), 0o755)?;
    make(&paths.private(), 0o700)?;
    make(&paths.all_scratch(), 0o711)
}

fn make(path: &Path, mode: u32) -> Result<(), AgentError> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(doing(format!("cannot make the directory {}", path.display())))
}

fn lock(paths: &Paths) -> Result<File, AgentError> {
    let path = paths.lock();
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(doing(format!("cannot open {}", path.display())))?;
    let begun = std::time::Instant::now();
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            // One that was killed a moment ago holds it until the last of its threads is gone.
            Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < DYING => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(AgentError::Running(paths.state().to_path_buf()));
            }
            Err(e) => return Err(doing(format!("cannot lock {}", path.display()))(e.into())),
        }
    }
}

/// How long a killed agent may take to let go of its lock.
const DYING: std::time::Duration = std::time::Duration::from_secs(2);

fn say_what_is_enforced(cgroups: &Cgroups, system: bool) -> Result<(), AgentError> {
    let missing = cgroups.missing();
    if system && !cgroups.enforces() {
        return Err(AgentError::NoLimits(missing.join("; ")));
    }
    if cgroups.usable() {
        missing.iter().for_each(|m| tracing::warn!("not enforced: {m}"));
        return Ok(());
    }
    tracing::warn!(
        "user mode: limits on memory, CPU time and devices are not enforced, because control groups cannot be \
         used ({}); CPUs are bound by affinity",
        missing.join("; ")
    );
    Ok(())
}

/// The kernel is not to choose the agent when memory runs out.
fn protect(system: bool) {
    if system && let Err(e) = fs::write("/proc/self/oom_score_adj", "-900") {
        tracing::warn!("the agent is not protected from the OOM killer: {e}");
    }
}

fn start_zygote(program: &Path, cgroups: &Cgroups) -> Result<Zygote, AgentError> {
    let leaf = cgroups.supervisors()?;
    let settle = move |pid: u32| match &leaf {
        Some(group) => {
            let pid = i32::try_from(pid).map_err(io::Error::other)?;
            group.join(pid).map_err(io::Error::other)
        }
        None => Ok(()),
    };
    Zygote::start(program.to_path_buf(), Box::new(settle)).map_err(doing("cannot start the zygote"))
}
