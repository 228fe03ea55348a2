//! The controller: the core and its store behind the cluster's services.
//!
//! One thread owns the core and the store ([`driver`]); everything around it is asynchronous: sockets,
//! queries, agents' links, leases. Nothing leaves before it is durable.
#![forbid(unsafe_code)]

mod agents;
pub mod backup;
mod certificates;
mod clock;
mod driver;
mod ends;
mod fencing;
mod group;
mod identity;
mod leases;
mod logins;
mod machines;
mod queries;
mod relay;
mod service;
mod settings;
mod shared;
mod state;
mod streams;
mod tokens;
mod trace;
mod turns;
mod unreadable;
mod watchers;
mod ways;

use crate::driver::{Driver, Input, Started};
use crate::identity::Identities;
use crate::logins::Logins;
use crate::machines::Machines;
use crate::service::{Controller, Source};
use crate::state::{PidFile, StateDir};
use berth_model::config::Config;
use berth_model::rights::Roles;
use berth_model::{ByteStr, NodeName};
use berth_rpc::Listeners;
use berth_sched_core::CoreConfig;
use berth_store::SqliteStore;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The file with a cluster's records, in `db` of its state directory.
pub use berth_store::DATABASE as RECORDS;
pub use settings::load_config;

/// How a controller is started.
#[derive(Debug, Clone)]
pub struct ControllerOptions {
    /// Where all of the cluster's state lies.
    pub state_dir: PathBuf,
    /// The configuration; by default `berth.toml` in the state directory, if it is there.
    pub config_path: Option<PathBuf>,
    /// Whether jobs run as their users (root) or all as this user.
    pub system: bool,
    /// Reads and judges the configuration when it is to be put in force anew.
    pub read: ReadConfig,
    /// Is called with the configuration whenever another one is in force.
    pub in_force: fn(&Config),
    /// Is called once it serves.
    pub ready: fn(),
    /// Powers a node off.
    pub power_off: PowerOff,
}

/// A node that is to be powered off by the site's program.
#[derive(Debug, Clone)]
pub struct Fence {
    /// The program, of the configuration.
    pub program: ByteStr,
    /// Which has so many seconds.
    pub seconds: u32,
    /// Name of the cluster.
    pub cluster: String,
    /// The node.
    pub node: NodeName,
    /// A directory that is the controller's alone, to note in it what runs and what does not end.
    pub private: PathBuf,
}

/// Runs the program, and comes back when the node is off; or with the reason why nobody knows that.
pub type PowerOff = fn(&Fence) -> Result<(), String>;

/// Reads and judges the configuration of a state directory: from the file that is named, else from its own. An error names
/// file and key.
pub type ReadConfig = fn(&Path, Option<&Path>) -> Result<Config, String>;

/// Why a controller did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The configuration is not usable.
    #[error("{0}")]
    Config(String),
    /// The stored state is not usable.
    #[error(transparent)]
    Store(#[from] berth_store::StoreError),
    /// What is stored cannot be the state of a cluster.
    #[error("{}: {error}; restore a backup, or move the directory away to begin with an empty cluster", path.display())]
    Restore {
        /// The database.
        path: PathBuf,
        /// Which row, and why.
        error: berth_sched_core::RestoreError,
    },
    /// A directory, socket or file of the state directory.
    #[error("{}: {why}", path.display())]
    State {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The machine refuses something basic.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: std::io::Error,
    },
}

/// Whether a state directory has the records of a cluster.
pub fn has_records(state_dir: &Path) -> bool {
    state_dir.join("db").join(RECORDS).exists()
}

/// Whether the records in a state directory, if there are any, have jobs that are not over: of a cluster that is down.
///
/// # Errors
/// They cannot be read.
pub fn has_unfinished_jobs(state_dir: &Path) -> Result<bool, ControllerError> {
    Ok(berth_store::has_unfinished_jobs(&state_dir.join("db"))?)
}

/// Runs a controller until `shutdown` completes, an administrator asks for it, or SIGTERM or SIGINT comes.
/// Steps run on without it.
///
/// # Errors
/// Names what is in the way of a start, or what made it stop.
pub fn run(options: ControllerOptions, shutdown: Shutdown) -> Running {
    Box::pin(serve(options, shutdown))
}

/// Completes when the controller is to stop.
pub type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A controller's life. Boxed, so that all that serves is compiled in this package and optimised as its settings say, not
/// once more where it is awaited.
pub type Running = Pin<Box<dyn Future<Output = Result<(), ControllerError>> + Send>>;

async fn serve(options: ControllerOptions, shutdown: Shutdown) -> Result<(), ControllerError> {
    let system = |what| move |error| ControllerError::System { what, error };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("SIGINT"))?;

    raise_descriptors();
    backup::finish_interrupted(&options.state_dir)?;
    let config = load_config(&options.state_dir, options.config_path.as_deref())?;
    (options.in_force)(&config);
    let core_config = CoreConfig::new(&config).map_err(|e| ControllerError::Config(e.to_string()))?;
    let core_config = core_config.in_user_mode(!options.system);
    let dir = StateDir::prepare(&options.state_dir)?;
    let store = SqliteStore::open(&dir.database())?;
    let logins = Logins::open(&dir.login_key())?;
    let reader = store.reader();

    // From here on, this process alone has the directory: a socket that is still there is a dead one's.
    // The public one last: who sees it finds the other.
    let nodes = dir.bind_private()?;
    let streams = dir.bind_streams()?;
    let machines = Arc::new(Machines::new(dir.private(), &config));
    let listeners = Listeners { clients: dir.bind_public()?, nodes, machines: machines.port() };
    let (power_off, keep_days) = (options.power_off, config.keep_records_days);
    let Started { mut driver, inputs, shared, interactive } =
        Driver::start(core_config, store, keep_days, power_off, dir.private())?;
    let since = driver.now();
    let core = std::thread::Builder::new()
        .name("core".to_string())
        .spawn(move || driver.run())
        .map_err(system("starting the core's thread"))?;

    let (stop, mut stopped) = watch::channel(false);
    let identities = Identities::new(Roles::of(&config));
    let source = Source {
        file: options.config_path.clone(),
        system: options.system,
        read: options.read,
        in_force: options.in_force,
    };
    let controller = Arc::new(Controller::new(
        config,
        source,
        options.state_dir.clone(),
        since,
        identities,
        inputs.clone(),
        reader,
        Arc::clone(&shared),
        logins,
        Arc::clone(&machines),
        stop,
    ));
    let leases = controller.leases();
    leases.begin(interactive);
    let keeper = tokio::spawn(leases::keep(leases, inputs.clone(), Arc::clone(&shared)));
    let streams = tokio::spawn(streams::serve(streams, controller.relay()));
    let watch = tokio::spawn(Arc::clone(&machines).watch(Arc::clone(&shared)));
    let noting = tokio::spawn(Arc::clone(&controller).enter_backups(dir.private()));
    let (mut port, told) = (machines.port(), inputs.clone());
    let listening = tokio::spawn(async move {
        if port.wait_for(Option::is_some).await.is_ok() {
            // An error means that the core has ended.
            let _ = told.send(Input::Listening);
        }
    });
    let snapshot = shared.snapshot();
    let has_machines = snapshot.members().next().is_some() || snapshot.tokens().next().is_some();
    let opening = if has_machines { machines.open_in_time(&shared).await } else { None };

    let pid_file = PidFile::write(&dir, since)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        system = options.system,
        "controller serves {}",
        options.state_dir.display()
    );
    (options.ready)();
    let core_ended = Arc::clone(&shared);
    let until = async move {
        tokio::select! {
            () = shutdown => {}
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            _ = stopped.wait_for(|stop| *stop) => tracing::info!("stopping on request"),
            () = core_ended.ended() => tracing::error!("the core has ended"),
        }
    };
    let served = berth_rpc::serve(controller, listeners, nix::unistd::geteuid().as_raw(), until).await;
    keeper.abort();
    streams.abort();
    watch.abort();
    noting.abort();
    listening.abort();
    if let Some(opening) = opening {
        opening.abort();
    }
    // The driver ends after what it has in hand; an error means that it ended before.
    let _ = inputs.send(Input::Stop);
    let ended = tokio::task::spawn_blocking(move || core.join()).await;
    dir.remove_sockets();
    drop(pid_file);
    match ended {
        Ok(Ok(result)) => result?,
        Ok(Err(_)) | Err(_) => {
            let error = std::io::Error::other("it ended with a panic");
            return Err(ControllerError::System { what: "the core's thread", error });
        }
    }
    served.map_err(system("serving"))?;
    tracing::info!("controller stopped");
    Ok(())
}

/// Each client and agent costs a descriptor, and login shells give 1024.
fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard.min(1 << 20), hard));
    if let Err(e) = raised {
        tracing::warn!("the number of open files cannot be raised: {e}");
    }
}
