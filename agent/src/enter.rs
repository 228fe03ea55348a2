//! Entering a step that runs (`berth exec`): where it is and with what it was started, from what its supervisor left.

use crate::registry::{Registry, StepStage};
use berth_model::ByteStr;
use berth_model::ids::{StepId, StepKey};
use berth_model::launch::{StepLaunch, StepPhase};
use berth_model::spec::{ContainerSpec, NameFlag, NamedSpec, ResolvedImage};
use berth_step::kept::Member;
use berth_step::spool::{CarriedDisplay, LaunchFile, StepDir, read_json};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a step may take to come up until one that is to enter it gives up.
const STARTING: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// A step as it is started when it enters another one.
pub struct Entered {
    /// What the entered step has, and over it what was asked for.
    pub launch: StepLaunch,
    /// How the container is entered; absent where there is none, and for one that is kept under a name.
    pub join: Option<Member>,
    /// The display that its client carries here, where it does.
    pub display: Option<CarriedDisplay>,
}

/// Finds the step that is to be entered; waits for one that is starting. Blocks.
///
/// # Errors
/// It does not run here, or cannot be entered: which, why, and what to do.
pub fn find(spool: &Path, registry: &Registry, own: &StepLaunch, step: StepId) -> Result<Entered, String> {
    let key = StepKey { step, ..own.key };
    let dir = StepDir::of(spool, key);
    let unreadable =
        |e: std::io::Error| format!("step {key} cannot be entered: {}: {e}", dir.path().display());
    let over = || format!("step {key} is over: only a step that runs can be entered");
    let deadline = Instant::now() + STARTING;
    let state = loop {
        match dir.read_state().map_err(unreadable)? {
            Some(state) if state.phase == StepPhase::Running => break state,
            Some(state) if matches!(state.phase, StepPhase::Exited(_)) => return Err(over()),
            _ => {}
        }
        // What is starting is known; what ended is known as such, or not any more.
        if !matches!(registry.get(key), Some((_, StepStage::Preparing | StepStage::Live(_)))) {
            return Err(over());
        }
        if Instant::now() > deadline {
            return Err(format!(
                "step {key} has not started its tasks yet: try again when 'squeue --steps' and its output show that it runs"
            ));
        }
        std::thread::sleep(PAUSE);
    };
    let file: LaunchFile = read_json(&dir.launch()).map_err(unreadable)?;
    let launch = merged(own.clone(), file.launch);
    // One that was entered itself has it of the step that it is in.
    let display = state.display.or(file.node.display);
    let join = match &launch.container {
        None => None,
        Some(container) if container.named.is_some() => None,
        Some(container) if container.image.resolved == Some(ResolvedImage::Host) => None,
        Some(_) => Some(state.member.ok_or_else(|| {
            format!(
                "the container of step {key} cannot be entered: it was started by an earlier version of Berth, or where jobs \
                 have no namespaces of their own ('berth doctor' on the node says why)"
            )
        })?),
    };
    Ok(Entered { launch, join, display })
}

/// What the entered step has, and over it what the entering one says itself.
fn merged(own: StepLaunch, entered: StepLaunch) -> StepLaunch {
    let name = |text: &ByteStr| text.0.split(|b| *b == b'=').next().unwrap_or_default().to_vec();
    let names: Vec<Vec<u8>> = own.env.iter().map(name).collect();
    let mut env: Vec<ByteStr> = entered.env.into_iter().filter(|text| !names.contains(&name(text))).collect();
    env.extend(own.env);
    let (work_dir, work_dir_explicit) = match own.work_dir_explicit {
        true => (own.work_dir, true),
        false => (entered.work_dir, entered.work_dir_explicit),
    };
    let container = entered.container.map(|container| {
        let mut container = ContainerSpec {
            // It stands: what it writes goes where it goes, and its entrypoint has been run.
            layer: None,
            entrypoint: Some(false),
            save: None,
            ..container
        };
        if let Some(named) = container.named.take() {
            container.named = Some(NamedSpec { flag: NameFlag::Exec, ..named });
            container.image.resolved = Some(ResolvedImage::Kept);
        }
        if own.work_dir_explicit {
            container.workdir = Some(work_dir.clone());
        }
        // What is set for this command counts more than what the image sets.
        container.env.extend(names.into_iter().filter_map(|name| String::from_utf8(name).ok()));
        container
    });
    StepLaunch {
        env,
        user_env: entered.user_env,
        work_dir,
        work_dir_explicit,
        container,
        limits: entered.limits,
        umask: entered.umask,
        x11: entered.x11,
        fabric: entered.fabric,
        ..own
    }
}
