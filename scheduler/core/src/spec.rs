//! A submission in memory: what a user's jobs have in common is kept once, so that a waiting job is small.

use crate::rows::{ROW_VERSION, SpecRow};
use berth_model::ids::{JobId, SubmissionId, Uid};
use berth_model::listing::Origin;
use berth_model::spec::{Identity, JobSpec, StepSpec, TimeLimit};
use berth_model::time::Time;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A submission. Its own texts are beside the specification, in which they are empty.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) job: JobId,
    /// What is asked for, without name, submission id, command, command line and begin.
    pub(crate) spec: Arc<JobSpec>,
    submission: Box<str>,
    name: Box<str>,
    command: Box<[u8]>,
    submit_line: Box<[u8]>,
    begin: Option<Time>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) partition: Arc<str>,
    pub(crate) time_limit: TimeLimit,
    pub(crate) submitted: Time,
    pub(crate) first_step: Option<Arc<StepSpec>>,
    pub(crate) login: bool,
}

impl Spec {
    pub(crate) fn new(row: SpecRow, common: &mut Common) -> Spec {
        let SpecRow { job, mut spec, identity, partition, time_limit, submitted, first_step, login, .. } =
            row;
        Spec {
            job,
            submission: std::mem::take(&mut spec.submission.0).into(),
            name: std::mem::take(&mut spec.name).into(),
            command: std::mem::take(&mut spec.command.0).into(),
            submit_line: std::mem::take(&mut spec.submit_line.0).into(),
            begin: spec.begin.take(),
            spec: common.share(identity.uid, spec),
            identity,
            partition,
            time_limit,
            submitted,
            first_step,
            login,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn submission(&self) -> &str {
        &self.submission
    }

    pub(crate) fn begin(&self) -> Option<Time> {
        self.begin
    }

    /// How it was submitted.
    pub(crate) fn origin(&self) -> Origin {
        Origin {
            submission: SubmissionId(self.submission.to_string()),
            command: self.command.to_vec().into(),
            submit_line: self.submit_line.to_vec().into(),
        }
    }

    /// What lists show of it.
    pub(crate) fn brief(&self) -> SpecRow {
        SpecRow {
            version: ROW_VERSION,
            job: self.job,
            spec: JobSpec { name: self.name.to_string(), begin: self.begin, ..self.spec.brief() },
            identity: self.identity.clone(),
            partition: self.partition.clone(),
            time_limit: self.time_limit,
            submitted: self.submitted,
            first_step: None,
            login: self.login,
        }
    }

    /// The whole of it again, as it is stored and shown.
    pub(crate) fn row(&self) -> SpecRow {
        SpecRow {
            version: ROW_VERSION,
            job: self.job,
            spec: JobSpec {
                submission: SubmissionId(self.submission.to_string()),
                name: self.name.to_string(),
                command: self.command.to_vec().into(),
                submit_line: self.submit_line.to_vec().into(),
                begin: self.begin,
                ..(*self.spec).clone()
            },
            identity: self.identity.clone(),
            partition: self.partition.clone(),
            time_limit: self.time_limit,
            submitted: self.submitted,
            first_step: self.first_step.clone(),
            login: self.login,
        }
    }
}

/// The last specifications of each user.
#[derive(Debug, Default)]
pub(crate) struct Common(BTreeMap<Uid, VecDeque<Arc<JobSpec>>>);

impl Common {
    /// How many are looked through: a user's campaign is a few kinds of job.
    const KINDS: usize = 16;

    fn share(&mut self, uid: Uid, spec: JobSpec) -> Arc<JobSpec> {
        let known = self.0.entry(uid).or_default();
        if let Some(at) = known.iter().position(|k| **k == spec) {
            return known[at].clone();
        }
        let shared = Arc::new(spec);
        known.push_front(shared.clone());
        known.truncate(Self::KINDS);
        shared
    }
}
