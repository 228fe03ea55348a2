//! What a job has on the node for as long as it is there: made before its first step, a prolog, a supervisor that waits for the
//! next step, a socket inside, and its removal with the epilog.

use super::{Driver, Input, Job, LEFT, MOST_PUT_OFF, Node};
use crate::around::{Ended, Kind};
use crate::gpus::Sick;
use crate::jobs::{self, JobRecord, REMOVAL};
use crate::standby::PAUSE;
use crate::used::{is_known_to_kernel, is_sampled};
use crate::{after, clients};
use berth_agent_core::AgentEvent;
use berth_model::ids::{Attempt, JobId, StepKey};
use berth_model::launch::StepLaunch;
use berth_model::spec::JobKind;
use berth_runtime::cgroup::Cgroup;
use std::io::PipeReader;
use std::sync::Arc;
use tokio::task::AbortHandle;

impl Driver {
    pub(super) fn make_job(&mut self, job: JobId, attempt: Attempt, launch: &StepLaunch) {
        let identity = &launch.identity;
        let gpus = launch.job.share.gres.iter().filter(|d| is_sampled(d) || is_known_to_kernel(d));
        let mut record = JobRecord {
            job,
            attempt,
            uid: identity.uid,
            gid: identity.gid,
            user: identity.user.clone(),
            devices: jobs::devices(launch),
            gpus: gpus.cloned().collect(),
            boot_id: self.node.boot_id.clone(),
            cgroup: None,
            namespaces: None,
            programs_env: self.node.around.environment(launch),
            prolog_done: false,
            over: false,
            epilog_done: false,
            epilog_failure: None,
        };
        let (mut next, mut sick) = (None, None);
        let clearing = self.clearing.remove(&job);
        let made = tokio::task::block_in_place(|| -> Result<(), String> {
            if let Some((_, earlier)) = clearing {
                // The run before had its files under the same name.
                let _ = tokio::runtime::Handle::current().block_on(earlier);
            }
            let node = &self.node;
            if let Some(found) = node.gpus.sick(&launch.job.share) {
                return Err(sick.insert(found).why.clone());
            }
            // They are made while the rest is.
            let holder = node.holders.begin(launch)?;
            next = node.slots.take(job);
            let share = &launch.job.share;
            record.cgroup = node.cgroups.job(job, share, next.is_some()).map_err(|e| e.to_string())?;
            record.namespaces = holder.as_ref().map(|h| h.namespaces);
            jobs::make(&node.paths, &record).map_err(|e| {
                format!("cannot make the job's directory {}: {e}", node.paths.job(job).display())
            })?;
            if !node.holders.stay(holder)? && record.namespaces.take().is_some() {
                let again = jobs::rewrite(&node.paths, &record);
                again.map_err(|e| format!("cannot write the job's record: {e}"))?;
            }
            Ok(())
        });
        let failure = made.err();
        if let Some(why) = &failure {
            tracing::error!("job {job}: {why}");
        }
        if let Some(Sick { why, faults }) = sick {
            // A batch job may go back to the queue, and it is the controller that knows whether this one does.
            let hint = if launch.job.kind == JobKind::Batch { "" } else { ": submit this one again" };
            let event = AgentEvent::Unfit { job, attempt, why: format!("{why}{hint}"), faults };
            let _ = self.inputs.send(Input::Core(event));
        }
        if failure.is_none() && !record.gpus.is_empty() {
            let (node, record) = (Arc::clone(&self.node), record.clone());
            tokio::task::spawn_blocking(move || after::note(&node.used, &node.paths, &record));
        }
        let listener = if failure.is_none() { self.listen(&record) } else { None };
        self.jobs.insert(job, Job { next, ..Job::new(record, listener, failure) });
    }

    pub(super) fn run_prolog(&mut self, id: JobId, attempt: Attempt) {
        let Some(job) = self.jobs.get(&id).filter(|j| j.record.attempt == attempt && j.failure.is_none())
        else {
            // What is wrong with the job's parts is told by its steps.
            let event = AgentEvent::Prolog { job: id, attempt, result: Ok(()) };
            let _ = self.inputs.send(Input::Core(event));
            return;
        };
        let (stop, stopped) = match std::io::pipe() {
            Ok((reader, writer)) => (writer, reader),
            Err(e) => {
                let why = format!("the prolog cannot be run: {e}");
                let _ = self.inputs.send(Input::Prolog(id, attempt, Err(why)));
                return;
            }
        };
        let (node, inputs, record) = (Arc::clone(&self.node), self.inputs.clone(), job.record.clone());
        let runs = tokio::task::spawn_blocking(move || {
            let result = match node.around.run(Kind::Prolog, &record, &node.paths, &stopped) {
                Ended::Well => Ok(()),
                Ended::Failed(why) => Err(why),
                Ended::GivenUp => return,
            };
            let _ = inputs.send(Input::Prolog(id, attempt, result));
        });
        self.prologs.insert(id, (stop, runs));
    }

    pub(super) fn prolog_ended(&mut self, id: JobId, attempt: Attempt, result: Result<(), String>) {
        if let Some(job) = self.jobs.get_mut(&id).filter(|j| j.record.attempt == attempt && result.is_ok()) {
            job.record.prolog_done = true;
            if let Err(e) = jobs::rewrite(&self.node.paths, &job.record) {
                tracing::warn!("job {id}: cannot note that its prolog ran: {e}");
            }
        }
        self.feed(AgentEvent::Prolog { job: id, attempt, result });
    }

    /// Makes a place for the next step of a job that lives, beside everything else.
    pub(super) fn make_next(&mut self, id: JobId, attempt: Attempt, put_off: u32) {
        let lives = self.groups.keys().any(|key| key.job == id);
        let Some(job) = self.jobs.get_mut(&id).filter(|j| j.record.attempt == attempt) else { return };
        if !lives || job.next.is_some() || job.making_next.is_some() {
            return;
        }
        if put_off < MOST_PUT_OFF && self.node.slots.are_wanted() {
            // Jobs that start come first.
            return self.want_next(id, attempt, put_off + 1);
        }
        let (node, inputs) = (Arc::clone(&self.node), self.inputs.clone());
        job.making_next = Some(tokio::task::spawn_blocking(move || match node.slots.next_step(id) {
            Ok(Some(standby)) => {
                let _ = inputs.send(Input::Next(id, attempt, standby));
            }
            Ok(None) => {}
            Err(e) => tracing::warn!("job {id}: no supervisor can stand by for its next step: {e}"),
        }));
    }

    /// Has a process made that holds the next job's namespaces, and a place for this job's next step, when the start
    /// of this one is past: a job that is over by then needs none.
    pub(super) fn want_next(&self, job: JobId, attempt: Attempt, put_off: u32) {
        let (node, inputs) = (Arc::clone(&self.node), self.inputs.clone());
        tokio::spawn(async move {
            tokio::time::sleep(PAUSE).await;
            if node.cgroups.parks() {
                let _ = inputs.send(Input::WantNext(job, attempt, put_off));
            }
            let _ = tokio::task::spawn_blocking(move || node.holders.fill()).await;
        });
    }

    pub(super) fn listen(&self, record: &JobRecord) -> Option<AbortHandle> {
        match jobs::listen(&self.node.paths, record.job) {
            Ok(listener) => {
                let service = Arc::clone(&self.node.service);
                let served = clients::serve(listener, Some((record.job, record.uid)), service);
                Some(tokio::spawn(served).abort_handle())
            }
            Err(e) => {
                tracing::error!("job {}: no client can reach it from inside: {e}", record.job);
                None
            }
        }
    }

    pub(super) fn remove_job(&mut self, job: JobId, attempt: Attempt) {
        let (node, inputs) = (Arc::clone(&self.node), self.inputs.clone());
        let (mut gone, mut making) = (None, None);
        self.forget_deadline(job);
        self.node.registry.run_over(job, attempt);
        if let Some(j) = self.jobs.remove(&job) {
            if let Some(listener) = j.listener {
                listener.abort();
            }
            self.leaving.insert(job, (attempt, j.record.clone()));
            (gone, making) = (Some(j.record), j.making_next);
        }
        // From the inside out, so that nothing has to be looked for.
        let steps: Vec<StepKey> = self.groups.keys().filter(|key| key.job == job).copied().collect();
        let steps: Vec<Cgroup> = steps.iter().filter_map(|key| self.groups.remove(key)).collect();
        let handle = tokio::runtime::Handle::current();
        let prolog = self.prologs.remove(&job);
        let mut stopped = None;
        if node.around.has(Kind::Epilog) {
            match std::io::pipe() {
                Ok((reader, writer)) => {
                    stopped = Some(reader);
                    self.epilogs.insert(job, writer);
                }
                Err(e) => tracing::error!("job {job}: the epilog cannot be run: {e}"),
            }
        }
        let cleared = tokio::task::spawn_blocking(move || {
            // Before anybody hears that it is over, and gives its channel to another job.
            gone.iter().for_each(|record| crate::imex::take_back(&record.devices));
            if let Some(making) = making {
                // It makes groups in the one that is about to be removed.
                let _ = handle.block_on(making);
            }
            if let Some((stop, runs)) = prolog {
                drop(stop);
                let _ = handle.block_on(runs);
            }
            // False when the agent ends: the next one goes on.
            let over = |record: Option<&JobRecord>| {
                let epilog = match (record, &stopped) {
                    (Some(record), Some(stopped)) => epilog(&node, record, stopped)?,
                    _ => None,
                };
                let check = |r| after::check(&node.gpus, &node.used, &node.paths, r);
                let faults = record.map(check).unwrap_or_default();
                // Nobody listens where the agent ends.
                let _ = inputs.send(Input::Core(AgentEvent::JobRemoved { job, attempt, epilog, faults }));
                Some(())
            };
            // Where nothing of it lives its share of the node is free; the controller need wait neither for groups, whose
            // removal waits for that of others, nor for files.
            let told = gone.as_ref().is_some_and(jobs::end);
            if told && over(gone.as_ref()).is_none() {
                return;
            }
            for step in steps {
                // What does not go shows below.
                let _ = step.kill_and_remove(REMOVAL);
            }
            // What cannot die is named by the core's word.
            if let Some(group) = gone.as_ref().and_then(|record| record.cgroup.as_ref()) {
                while let Err(e) = group.kill_and_remove(REMOVAL) {
                    tracing::debug!("job {job}: {e}; processes left: {:?}", group.processes());
                }
            }
            while gone.as_ref().is_some_and(|record| !jobs::processes(record).is_empty()) {
                std::thread::sleep(LEFT);
            }
            if !told && over(gone.as_ref()).is_none() {
                return;
            }
            if let Err(e) = jobs::remove(&node.paths, job) {
                tracing::error!("job {job}: cannot remove {}: {e}", node.paths.job(job).display());
            }
            let _ = inputs.send(Input::Cleared(job, attempt));
        });
        self.clearing.insert(job, (attempt, cleared));
    }
}

/// Runs the epilog of a run of which no process is left, unless it ended before. What it failed of; `None` when it was
/// given up.
fn epilog(node: &Node, record: &JobRecord, stopped: &PipeReader) -> Option<Option<String>> {
    if record.epilog_done {
        return Some(record.epilog_failure.clone());
    }
    let mut record = JobRecord { over: true, ..record.clone() };
    let note = |record: &JobRecord| {
        if let Err(e) = jobs::rewrite(&node.paths, record) {
            tracing::warn!("job {}: cannot note how far its epilog is: {e}", record.job);
        }
    };
    note(&record);
    let failure = match node.around.run(Kind::Epilog, &record, &node.paths, stopped) {
        Ended::Well => None,
        Ended::Failed(why) => Some(why),
        Ended::GivenUp => return None,
    };
    record.epilog_done = true;
    record.epilog_failure.clone_from(&failure);
    note(&record);
    Some(failure)
}
