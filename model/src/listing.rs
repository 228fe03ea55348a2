//! Lists of jobs as they travel: waiting jobs have most of what they are in common, and it is said once.

use crate::bytes::ByteStr;
use crate::ids::{Attempt, JobId, SubmissionId};
use crate::record::JobInfo;
use crate::sluid::Sluid;
use crate::state::Reason;
use crate::time::Time;
use serde::Serialize;
use std::io::{self, Write};

/// From this size a page of an answer is sent: far below what a message may hold, for the last record may be large.
pub const PAGE_BYTES: usize = 1 << 20;

/// Bytes of a record as it is stored: somewhat more than it takes in a message.
pub fn size(record: &impl Serialize) -> usize {
    struct Counted(usize);
    impl Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counted = Counted(0);
    match serde_json::to_writer(&mut counted, record) {
        Ok(()) => counted.0,
        // What cannot be stored has no place in a message either.
        Err(_) => usize::MAX,
    }
}

/// A part of a list of jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobList {
    /// Records as they are.
    pub jobs: Vec<JobInfo>,
    /// Jobs that wait.
    pub waiting: WaitingJobs,
}

/// Waiting jobs in columns: the n-th job has the n-th value of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitingJobs {
    /// What several jobs have in common. What follows here is empty in these records.
    pub kinds: Vec<JobInfo>,
    /// Names.
    pub names: Vec<String>,
    /// Reasons.
    pub reasons: Vec<Reason>,
    /// Ids.
    pub id: Vec<JobId>,
    /// Places in `kinds`.
    pub kind: Vec<u32>,
    /// Places in `names`.
    pub name: Vec<u32>,
    /// Places in `reasons`.
    pub reason: Vec<u32>,
    /// Which run.
    pub attempt: Vec<Attempt>,
    /// Order in the queue.
    pub priority: Vec<u32>,
    /// When they were submitted.
    pub submitted: Vec<Time>,
    /// When they can first start.
    pub eligible: Vec<Time>,
    /// Places in the columns of those jobs that have a `--begin`.
    pub begin_of: Vec<u32>,
    /// Their times.
    pub begin: Vec<Time>,
    /// How they were submitted. Left out of brief lists.
    pub origin: Vec<Origin>,
    /// Their SLUIDs, 0 where there is none. Left out of brief lists, and by controllers of earlier versions.
    pub sluid: Vec<Sluid>,
}

/// How a job was submitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The client's id of the submission.
    pub submission: SubmissionId,
    /// The command for records.
    pub command: ByteStr,
    /// The command line as typed.
    pub submit_line: ByteStr,
}

impl From<Vec<JobInfo>> for JobList {
    fn from(jobs: Vec<JobInfo>) -> JobList {
        JobList { jobs, waiting: WaitingJobs::default() }
    }
}

impl JobList {
    /// All records, waiting ones last; `None` when the columns contradict each other.
    pub fn records(self) -> Option<Vec<JobInfo>> {
        let JobList { mut jobs, waiting } = self;
        waiting.append_to(&mut jobs)?;
        Some(jobs)
    }
}

impl JobList {
    /// Takes out of records that are not the reader's own (`of`) what only their owners may know.
    pub fn hide(&mut self, of: impl Fn(&JobInfo) -> bool) {
        self.jobs.iter_mut().filter(|job| of(job)).for_each(JobInfo::hide);
        let WaitingJobs { kinds, kind, origin, .. } = &mut self.waiting;
        for (origin, kind) in origin.iter_mut().zip(kind) {
            let kind = kinds.get(*kind as usize);
            if kind.is_some_and(|kind| of(kind) && kind.names_a_container()) {
                origin.submit_line = ByteStr::default();
            }
        }
        kinds.iter_mut().filter(|kind| of(kind)).for_each(JobInfo::hide);
    }
}

impl WaitingJobs {
    fn append_to(self, jobs: &mut Vec<JobInfo>) -> Option<()> {
        let count = self.id.len();
        let columns = [
            self.kind.len(),
            self.name.len(),
            self.reason.len(),
            self.attempt.len(),
            self.priority.len(),
            self.submitted.len(),
            self.eligible.len(),
        ];
        let told = !self.origin.is_empty();
        let named = [0, count].contains(&self.sluid.len());
        let matching =
            self.begin.len() == self.begin_of.len() && (!told || self.origin.len() == count) && named;
        if columns.iter().any(|len| *len != count) || !matching {
            return None;
        }
        let first = jobs.len();
        jobs.reserve(count);
        for at in 0..count {
            let kind = self.kinds.get(self.kind[at] as usize)?;
            let mut job = kind.clone();
            job.id = self.id[at];
            job.spec.name.clone_from(self.names.get(self.name[at] as usize)?);
            job.reason.clone_from(self.reasons.get(self.reason[at] as usize)?);
            job.attempt = self.attempt[at];
            job.priority = self.priority[at];
            job.submitted = self.submitted[at];
            job.eligible = self.eligible[at];
            jobs.push(job);
        }
        for (at, begin) in self.begin_of.into_iter().zip(self.begin) {
            jobs.get_mut(first + at as usize)?.spec.begin = Some(begin);
        }
        for (job, origin) in jobs[first..].iter_mut().zip(self.origin) {
            job.spec.submission = origin.submission;
            job.spec.command = origin.command;
            job.spec.submit_line = origin.submit_line;
        }
        for (job, sluid) in jobs[first..].iter_mut().zip(self.sluid) {
            job.sluid = Some(sluid).filter(|sluid| sluid.0 != 0);
        }
        Some(())
    }
}
