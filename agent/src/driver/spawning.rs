//! A step's supervisor: what it is told of the node, how it is started and attended to, and when it is forgotten.

use super::Driver;
use crate::registry::Registry;
use crate::{fabrics, gpus, jobs, supervisors};
use berth_agent_core::{StepTimers, SupervisorEvent};
use berth_model::ByteStr;
use berth_model::ids::{StepId, StepKey};
use berth_model::launch::{ImagePull, StepLaunch};
use berth_step::spool::{FORMAT, FabricPart, LaunchFile, NodePart, StepDir, write_json};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// For how long the end of a step without a supervisor is kept for a client that still comes.
const KEEP_END: Duration = Duration::from_secs(60);

impl Driver {
    pub(super) fn spawn(&mut self, key: StepKey, mut launch: StepLaunch, kept: &Kept) -> Result<(), String> {
        let node = Arc::clone(&self.node);
        let mut ready = self.ready.remove(&key).ok_or("its image was not made ready")?;
        let (mut join, mut display) = (None, None);
        if let Some(entered) = ready.entered.take() {
            (launch, join, display) = (entered.launch, entered.join, entered.display);
        }
        let job = self.jobs.get_mut(&key.job).ok_or("its job has no directory on the node")?;
        if let Some(why) = &job.failure {
            return Err(why.clone());
        }
        if !self.outlast.is_kept(key.job) {
            return Err(
                "until when its job goes on cannot be written down (lost_after_seconds, --lost-after); see the node's log"
                    .into(),
            );
        }
        if let (Some(container), Some(resolved)) = (&mut launch.container, ready.resolved) {
            container.image.resolved = Some(resolved);
        }
        launch.master = node.images.peers().reached(launch.master);
        launch.client_address = node.images.peers().client_reached(launch.client_address);
        let owner = (launch.identity.uid, launch.identity.gid);
        let standby = job.next.take();
        let mut fabric = fabrics::of_step(&launch, node.cgroups.limit_devices())?;
        ready.notes.append(&mut fabric.notes);
        node.gpus.channel(&launch, &mut fabric)?;
        gpus::narrow(&mut launch, ready.image.as_ref());
        let cgroup = node.cgroups.step(&launch, &fabric, standby.is_some()).map_err(|e| e.to_string())?;
        if let Some(group) = &cgroup {
            self.groups.insert(key, group.clone());
        }
        let dir = StepDir::of(&node.paths.spool(), key);
        let joins = join.is_some() || ready.kept.as_ref().is_some_and(|claim| claim.part.join.is_some());
        let hooks = match joins {
            // It was made with its own.
            true => None,
            false => node.hooks.of_step(&launch, ready.image.as_ref(), node.defaults, dir.path()),
        };
        match node.gpus.find_mps(&mut launch, ready.image.as_mut()) {
            // What it joins runs without.
            Err(why) if !joins => return Err(why),
            _ => {}
        }
        let (mut injected, glibc) = match joins {
            true => Default::default(),
            false => node.gpus.inject(&launch, ready.image.as_mut(), &mut ready.notes)?,
        };
        let by_files = match node.gpus.by_files(&launch, node.system) {
            // A container that is there needs nothing more of a file that is gone by now.
            Err(_) if joins => Default::default(),
            found => found?,
        };
        // It has its mounts and variables, too.
        let (mounts, device_env) = if joins { Default::default() } else { (by_files.mounts, by_files.env) };
        injected.extend(mounts);
        if matches!(key.step, StepId::Batch | StepId::Number(0)) {
            let line = node.drift.as_ref().and_then(|drift| drift.line(launch.identity.uid));
            ready.notes.extend(line);
        }
        let part = NodePart {
            hooks,
            injected,
            device_env,
            device_groups: by_files.groups,
            glibc,
            boot_id: node.boot_id.clone(),
            program: Some(ByteStr::from(node.program.as_path())),
            pmix: if launch.mpi_is_open() { node.pmix.pattern() } else { Vec::new() },
            kept: ready.kept.as_ref().map(|claim| claim.part.clone()),
            join,
            display,
            image: ready.image,
            root_without_links: node.images.rules().judges_paths(),
            notes: ready.notes,
            lease: kept.timers.lease,
            task_programs: node.around.of_tasks(),
            cores: if launch.binds() { node.cores.clone() } else { Vec::new() },
            cgroup,
            fabric: FabricPart { files: fabric.files, names: fabric.names },
            namespaces: job.record.namespaces,
            ..node.paths.part(key.job, node.system, node.defaults)
        };
        jobs::note_hosts(&node.paths, key.job, &launch.job.layout)
            .map_err(|e| format!("cannot write which nodes the job has: {e}"))?;
        let (share, group) = (launch.share.clone(), part.cgroup.clone());
        let start = || -> io::Result<supervisors::Link> {
            dir.create()?;
            write_json(&dir.path().join(KEPT), kept)?;
            dir.write_launch(&LaunchFile { format: FORMAT, launch, node: part })?;
            let held: Vec<BorrowedFd<'_>> =
                ready.guard.iter().map(AsFd::as_fd).chain(ready.kept.iter().map(AsFd::as_fd)).collect();
            supervisors::spawn(&node.zygote, &dir, node.images.mounted(), &held, standby)
        };
        let link = start().map_err(|e| format!("cannot start its supervisor: {e}"))?;
        if let Some(claim) = ready.kept {
            claim.hand_over();
        }
        node.used.begin(key, &share, group, &dir);
        supervise(&node.registry, key, owner, dir, link, self.supervised.clone());
        self.want_next(key.job, key.attempt, 0);
        Ok(())
    }

    pub(super) fn forget(&mut self, key: StepKey) {
        let dir = StepDir::of(&self.node.paths.spool(), key);
        if let Err(e) = dir.remove() {
            tracing::error!("{}: {e}", dir.path().display());
        }
        let registry = self.node.registry.clone();
        tokio::spawn(async move {
            // A client may still be on its way, and a supervisor may still serve one.
            tokio::time::sleep(KEEP_END).await;
            while registry.served(key) {
                tokio::time::sleep(KEEP_END).await;
            }
            registry.forget(key);
        });
    }
}

/// Name of the file in a step's directory that holds what the core wants back ([`Kept`]).
pub const KEPT: &str = "timers.json";

/// What the core wants back of a step when the agent starts again.
#[derive(Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Kept {
    /// When things are due.
    #[serde(flatten)]
    pub timers: StepTimers,
    /// What its image took.
    pub pull: Option<ImagePull>,
    /// Renewals are written here before the supervisor hears of them; agents of earlier versions did not.
    pub renewals: bool,
}

/// Attends to a step's supervisor in a task of its own.
pub fn supervise(
    registry: &Registry,
    key: StepKey,
    owner: (berth_model::Uid, berth_model::Gid),
    dir: StepDir,
    link: supervisors::Link,
    events: mpsc::UnboundedSender<(StepKey, SupervisorEvent)>,
) {
    let (commands, inbox) = mpsc::unbounded_channel();
    registry.live(key, owner, commands);
    tokio::spawn(async move {
        if let Err(e) = supervisors::attend(key, dir, link, inbox, events.clone()).await {
            tracing::error!("step {key}: its supervisor cannot be attended to: {e}");
            let _ = events.send((key, SupervisorEvent::Gone));
        }
    });
}
