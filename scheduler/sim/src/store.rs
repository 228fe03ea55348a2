//! A store that keeps rows in the form that the real one has, and fails when it is told to.

use berth_model::ids::{JobId, NodeName, StepKey};
use berth_model::request::Payload;
use berth_model::time::Time;
use berth_sched_core::{
    BootClock, CommitError, JobRow, Mark, MemberRow, MetaRow, NodeRow, PayloadKey, SpecRow, StepRow, Store,
    Stored, TokenRow, Write,
};
use berth_store::Content;
use std::collections::{BTreeMap, BTreeSet};

/// What happens to the next commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    #[default]
    Fine,
    /// Nothing is written, and that is known.
    Fails,
    /// Written, but nobody learns of it.
    UnknownWritten,
    /// Not written, and nobody learns of it.
    UnknownLost,
}

/// Rows as bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelStore {
    meta: Option<Vec<u8>>,
    specs: BTreeMap<JobId, Vec<u8>>,
    jobs: BTreeMap<JobId, Vec<u8>>,
    steps: BTreeMap<StepKey, Vec<u8>>,
    nodes: BTreeMap<String, Vec<u8>>,
    members: BTreeMap<String, Vec<u8>>,
    tokens: BTreeMap<String, Vec<u8>>,
    log: BTreeMap<u64, Vec<u8>>,
    /// The boot of each node, as its row has it.
    boots: BTreeMap<NodeName, String>,
    payloads: BTreeMap<PayloadKey, Vec<u8>>,
    parts: BTreeMap<(StepKey, usize), Vec<u8>>,
    left: BTreeSet<(JobId, NodeName)>,
    retired: BTreeSet<JobId>,
    /// The highest cluster time on record, and that which the next commit records.
    pub(crate) clock: Time,
    pub(crate) next: Mark,
    /// By what the highest cluster time on record was read.
    read_by: Option<BootClock>,
    pub(crate) mood: Mood,
}

fn write(row: &impl Content) -> Result<Vec<u8>, CommitError> {
    row.to_bytes().map_err(CommitError::Failed)
}

fn read<T: Content>(what: &str, bytes: &[u8]) -> Result<T, String> {
    T::from_bytes(bytes).map_err(|e| {
        format!("{what} does not come back from its bytes: {e}: {}", String::from_utf8_lossy(bytes))
    })
}

impl Store for ModelStore {
    fn apply(&mut self, writes: &[Write]) -> Result<(), CommitError> {
        match std::mem::take(&mut self.mood) {
            Mood::Fine => {}
            Mood::Fails => return Err(CommitError::Failed("as asked".into())),
            Mood::UnknownLost => return Err(CommitError::Unknown("as asked".into())),
            Mood::UnknownWritten => {
                self.write_all(writes)?;
                return Err(CommitError::Unknown("as asked".into()));
            }
        }
        self.write_all(writes)
    }
}

impl ModelStore {
    fn write_all(&mut self, writes: &[Write]) -> Result<(), CommitError> {
        if self.clock <= self.next.time {
            (self.clock, self.read_by) = (self.next.time, self.next.clock.clone());
        }
        for w in writes {
            match w {
                Write::PutSpec(row) => drop(self.specs.insert(row.job, write(&**row)?)),
                Write::PutJob(row) => {
                    if row.may_have_departures() {
                        self.left.retain(|(job, _)| *job != row.job);
                    }
                    self.jobs.insert(row.job, write(&**row)?);
                }
                Write::LeaveNode { job, node } => drop(self.left.insert((*job, node.clone()))),
                Write::PutPart { key, at, part } => drop(self.parts.insert((*key, *at), write(&**part)?)),
                Write::DeleteJob(id) => drop(self.jobs.remove(id)),
                Write::PutStep(row) => {
                    self.parts.retain(|(key, _), _| *key != row.key);
                    self.steps.insert(row.key, write(&**row)?);
                }
                Write::PutPayload { key, payload } => drop(self.payloads.insert(*key, write(&**payload)?)),
                Write::DeletePayload(key) => drop(self.payloads.remove(key)),
                Write::PutNode(row) => {
                    self.boots.insert(row.name.clone(), row.boot_id.clone());
                    self.nodes.insert(row.name.0.clone(), write(&**row)?);
                }
                Write::DeleteNode(name) => drop(self.nodes.remove(&name.0)),
                Write::PutMember(row) => drop(self.members.insert(row.name.0.clone(), write(&**row)?)),
                Write::DeleteMember(name) => drop(self.members.remove(&name.0)),
                Write::PutToken(row) => drop(self.tokens.insert(row.id.clone(), write(&**row)?)),
                Write::DeleteToken(id) => drop(self.tokens.remove(id)),
                Write::AddAudit(row) => {
                    // The real one refuses it for ever.
                    let old = self.log.insert(row.number, write(&**row)?);
                    assert!(old.is_none(), "entry {} of the audit log is written over", row.number);
                }
                Write::PutMeta(row) => self.meta = Some(write(row)?),
                Write::Retire(id) => drop(self.retired.insert(*id)),
            }
        }
        Ok(())
    }

    /// What is on record of time.
    pub(crate) fn mark(&self) -> Mark {
        Mark { time: self.clock, clock: self.read_by.clone() }
    }

    /// Numbers of the audit log's entries that are missing before its last.
    pub(crate) fn gaps_in_log(&self) -> u64 {
        self.log.last_key_value().map_or(0, |(last, _)| *last) - self.log.len() as u64
    }

    /// What a controller reads at its start.
    pub(crate) fn load(&self) -> Result<Stored, String> {
        let live = |id: &JobId| !self.retired.contains(id);
        let mut stored = Stored {
            meta: self.meta.as_deref().map(|t| read::<MetaRow>("the counters", t)).transpose()?,
            specs: self.all(&self.specs, live)?,
            jobs: self.all(&self.jobs, live)?,
            steps: self.all(&self.steps, |key: &StepKey| live(&key.job))?,
            nodes: self.all::<String, NodeRow>(&self.nodes, |_| true)?,
            members: self.all::<String, MemberRow>(&self.members, |_| true)?,
            tokens: self.all::<String, TokenRow>(&self.tokens, |_| true)?,
        };
        let parts = self.parts.iter().map(|((key, at), bytes)| Ok((*key, *at, read("a part", bytes)?)));
        stored.bring_up_to_date(parts.collect::<Result<Vec<_>, String>>()?, self.left.iter().cloned());
        Ok(stored)
    }

    fn all<K: Ord + std::fmt::Debug, T: Content>(
        &self,
        rows: &BTreeMap<K, Vec<u8>>,
        wanted: impl Fn(&K) -> bool,
    ) -> Result<Vec<T>, String> {
        let wanted = rows.iter().filter(|(k, _)| wanted(k));
        wanted.map(|(k, text)| read(&format!("row {k:?}"), text)).collect()
    }

    pub(crate) fn payload(&self, key: PayloadKey) -> Result<Payload, String> {
        let text = self.payloads.get(&key).ok_or_else(|| format!("the payload {key:?} is gone"))?;
        read("a payload", text)
    }

    /// What is on record of a machine.
    pub(crate) fn member(&self, node: &NodeName) -> Result<Option<MemberRow>, String> {
        self.members.get(&node.0).map(|t| read("a member", t)).transpose()
    }

    /// In which boot a node registered last.
    pub(crate) fn boot(&self, node: &NodeName) -> Option<&String> {
        self.boots.get(node)
    }

    /// Whether a controller that starts knows the job no more.
    pub(crate) fn is_retired(&self, job: JobId) -> bool {
        self.retired.contains(&job)
    }

    /// Logins that are still there.
    pub(crate) fn logins(&self) -> impl Iterator<Item = &PayloadKey> {
        self.payloads.keys().filter(|key| key.is_login())
    }

    pub(crate) fn job(&self, id: JobId) -> Result<Option<JobRow>, String> {
        self.jobs.get(&id).map(|t| read("a job", t)).transpose()
    }

    pub(crate) fn spec(&self, id: JobId) -> Result<Option<SpecRow>, String> {
        self.specs.get(&id).map(|t| read("a specification", t)).transpose()
    }

    /// Every job ever, retired ones included.
    pub(crate) fn every_job(&self) -> Result<Vec<JobRow>, String> {
        self.all(&self.jobs, |_| true)
    }

    /// Every step ever.
    pub(crate) fn every_step(&self) -> Result<Vec<StepRow>, String> {
        self.all(&self.steps, |_| true)
    }
}
