//! From stored rows back to a cluster; rows that cannot be are refused by name.

use super::Cluster;
use super::timers::Timer;
use crate::config::CoreConfig;
use crate::job::{Job, Progress};
use crate::node::Node;
use crate::rows::{Phase, ROW_VERSION, Run};
use crate::spec::Spec;
use crate::store::Stored;
use crate::tasks::Tasks;
use berth_model::ids::{JobId, Term};
use berth_model::time::Time;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is stored cannot be the state of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the stored {row} is not usable: {why}")]
pub struct RestoreError {
    /// Which row.
    pub row: String,
    /// What is wrong with it.
    pub why: String,
}

pub(super) fn bad<T>(row: impl Into<String>, why: impl Into<String>) -> Result<T, RestoreError> {
    Err(RestoreError { row: row.into(), why: why.into() })
}

pub(super) fn check_version(row: impl Fn() -> String, version: u32) -> Result<(), RestoreError> {
    if version > ROW_VERSION {
        return bad(
            row(),
            format!(
                "it has version {version}, this controller reads up to {ROW_VERSION}; use the newer program"
            ),
        );
    }
    Ok(())
}

impl Cluster {
    /// The cluster that `stored` describes, led under `term`. Effects that were lost with the last controller
    /// are derived again when the agents connect.
    ///
    /// # Errors
    /// Names the row that is of a later version, or that contradicts the others.
    pub fn restore(
        config: CoreConfig,
        term: Term,
        stored: Stored,
        now: Time,
    ) -> Result<Cluster, RestoreError> {
        let mut cluster = Cluster::new(config, term);
        cluster.clock = now;
        if let Some(meta) = &stored.meta {
            check_version(|| "counters".into(), meta.version)?;
            cluster.next_job = meta.next_job.max(1);
            cluster.clock = now.max(meta.clock);
            cluster.next_audit = meta.next_audit.max(1);
            cluster.restored = meta.restored.clone().unwrap_or_default();
            cluster.leaps.clone_from(&meta.leaps);
            cluster.sluids.go_on_after(meta.sluid);
        }
        for row in stored.nodes {
            let name = row.name.clone();
            check_version(|| format!("node {name}"), row.version)?;
            if let Err(why) = super::agents::check_hardware(&row.hardware) {
                return bad(format!("node {name}"), why);
            }
            cluster.watch_reboot(&row);
            let node = Node::new(row, &cluster.config, cluster.clock);
            cluster.nodes.insert(name.clone(), Arc::new(node));
            cluster.watch_silence(&name);
            // Whatever was granted before was asked for before now.
            cluster.timers.insert((cluster.clock, super::timers::Timer::Lost(name)));
        }
        cluster.restore_members(stored.members, stored.tokens)?;
        for name in cluster.nodes.keys().filter(|name| !cluster.members.contains_key(*name)) {
            cluster.strange.add_own(name);
        }
        let mut specs: BTreeMap<JobId, Arc<Spec>> = BTreeMap::new();
        for mut spec in stored.specs {
            check_version(|| format!("specification of job {}", spec.job), spec.version)?;
            spec.identity = cluster.identity(&spec.identity);
            if let Some(rules) = cluster.config.partition(&spec.partition) {
                spec.partition = rules.name.clone();
            }
            specs.insert(spec.job, Arc::new(Spec::new(spec, &mut cluster.common)));
        }
        for mut row in stored.jobs {
            if matches!(row.phase, Phase::Pending) {
                row.attempt = cluster.restored.attempt(row.job, row.attempt);
            }
            let name = format!("job {}", row.job);
            check_version(|| name.clone(), row.version)?;
            if row.job.0 >= cluster.next_job {
                return bad(
                    name,
                    format!("the next id would be {}, which is not above it", cluster.next_job),
                );
            }
            let Some(spec) = specs.get(&row.spec_of) else {
                return bad(name, format!("the specification of job {} is missing", row.spec_of));
            };
            if let Tasks::Range(set) = &row.tasks {
                let own = row.spec_of == row.job;
                let waits = matches!(row.phase, Phase::Pending | Phase::Ended { run: None, .. });
                if !set.is_valid() || (set.is_empty() && !own) || !waits {
                    return bad(name, "its array indices or its phase contradict each other");
                }
            }
            let job = Job {
                spec: spec.clone(),
                row,
                steps: imbl::OrdMap::new(),
                progress: imbl::OrdMap::new(),
                wait: None,
                idle: None,
            };
            cluster.restore_job(job)?;
        }
        for row in stored.steps {
            let name = format!("step {}", row.key);
            check_version(|| name.clone(), row.version)?;
            let Some(job) = cluster.jobs.get_mut(&row.key.job) else { continue };
            if job.row.attempt != row.key.attempt {
                continue; // of an earlier run
            }
            let job = Arc::make_mut(job);
            let Some(run) = job.run() else {
                return bad(name, "its job never had an allocation");
            };
            if let Some(part) = row.nodes.iter().find(|p| !run.on(&p.node)) {
                return bad(name, format!("its job has nothing on node {}", part.node));
            }
            let open = row.result.is_none() && row.nodes.open() > 0;
            if open && matches!(job.row.phase, Phase::Ended { .. }) {
                return bad(name, "it has not ended, but its job has");
            }
            if open {
                let sent = std::iter::repeat_n(Progress::Sent(cluster.clock), row.nodes.len());
                job.progress.insert(row.key.step, sent.collect());
            }
            job.steps.insert(row.key.step, Arc::new(row));
        }
        cluster.forget_leaps();
        cluster.arm_all();
        cluster.restore_leaving();
        cluster.watch_given_up();
        cluster.out = super::Changes::default();
        cluster.let_them_come();
        Ok(cluster)
    }

    fn restore_job(&mut self, job: Job) -> Result<(), RestoreError> {
        let (id, attempt) = (job.row.job, job.row.attempt);
        let name = || format!("job {id}");
        let holds: Vec<_> = match &job.row.phase {
            Phase::Running(run) => run.allocation.nodes.clone(),
            Phase::Ending { left, .. } => left.iter().cloned().collect(),
            Phase::Pending | Phase::Ended { .. } => Vec::new(),
        };
        if let Some(run) = job.run() {
            let a = &run.allocation;
            if a.nodes.is_empty() || a.nodes.len() != a.shares.len() || a.nodes.len() != a.tasks.len() {
                return bad(name(), "its allocation names nodes, shares and tasks in different numbers");
            }
        }
        if matches!(&job.row.phase, Phase::Ending { left, .. } if left.is_empty()) {
            return bad(name(), "it is ending on no node");
        }
        for node in holds {
            let share = job.run().and_then(|r: &Run| r.share(&node)).cloned();
            let (Some(share), Some(record)) = (share, self.node_mut(&node)) else {
                return bad(
                    name(),
                    format!("it holds something on node {node}, which is not in its allocation or not known"),
                );
            };
            if let Err(why) = record.take((id, attempt), &Arc::new(share)) {
                return bad(name(), why);
            }
        }
        if job.row.spec_of == id {
            let spec = &job.spec;
            let digest = super::submit::digest(spec.submission());
            self.submissions.insert((spec.identity.uid, digest, id));
        }
        self.sluids.enter(&job.row);
        let job = Arc::new(job);
        self.active += usize::from(super::ending::is_active(&job));
        if self.jobs.insert(id, job).is_some() {
            return bad(name(), "it is stored twice");
        }
        self.join_array(id);
        Ok(())
    }

    /// Puts waiting jobs into the queue and everything that will be due under its timer.
    fn arm_all(&mut self) {
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in ids {
            let Some(job) = self.job(id).cloned() else { continue };
            match &job.row.phase {
                Phase::Pending => {
                    if let Some(patience) = job.spec.spec.immediate {
                        self.timers.insert((job.spec.submitted + patience, Timer::Immediate(id)));
                    }
                    if job.row.is_empty_array() {
                        self.timers.insert((self.clock, Timer::Purge(id)));
                    }
                    self.enqueue(id);
                }
                Phase::Running(_) => {
                    self.arm_limit(id);
                    self.arm_resend(id);
                }
                Phase::Ending { .. } => self.arm_resend(id),
                Phase::Ended { result, .. } => {
                    let at = result.ended + self.config.min_job_age;
                    self.timers.insert((at, Timer::Purge(id)));
                }
            }
        }
    }
}
