//! Lists of many jobs: waiting ones in columns, so that a list of 100,000 costs the controller milliseconds.

use crate::job::Job;
use crate::rows::Leap;
use crate::snapshot::Snapshot;
use crate::tasks::Tasks;
use berth_model::ids::{Attempt, JobId, SubmissionId};
use berth_model::listing::{JobList, PAGE_BYTES, WaitingJobs, size};
use berth_model::query::JobQuery;
use berth_model::record::JobInfo;
use berth_model::spec::TimeLimit;
use berth_model::state::{JobState, Reason};
use berth_model::time::Time;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most records in a page, not counting waiting jobs in columns.
const RECORDS: usize = 256;
/// Most waiting jobs in a page.
const ROWS: usize = 4096;

/// What waiting jobs of one kind share: addresses of the shared parts, and the limit in force.
type KindKey = (usize, usize, usize, TimeLimit);

/// The pages of a list, in the order of ids.
struct Pages<'a, I: Iterator> {
    jobs: std::iter::Peekable<I>,
    query: &'a JobQuery,
    leaps: &'a [Leap],
}

impl Snapshot {
    /// The records that a query without ids asks for, in pages.
    pub fn list<'a>(&'a self, query: &'a JobQuery) -> impl Iterator<Item = JobList> + 'a {
        let owned = |job: &&Arc<Job>| query.users.is_empty() || query.users.contains(&job.spec.identity.uid);
        let jobs = self.jobs.values().filter(|job| !job.row.is_empty_array()).filter(owned).peekable();
        Pages { jobs, query, leaps: &self.leaps }
    }
}

impl<'a, I: Iterator<Item = &'a Arc<Job>>> Iterator for Pages<'a, I> {
    type Item = JobList;

    fn next(&mut self) -> Option<JobList> {
        self.jobs.peek()?;
        let mut page = Page::new(self.query, self.leaps);
        while let Some(job) = self.jobs.next_if(|_| page.has_room()) {
            page.add(job);
        }
        Some(page.list)
    }
}

/// A page in the making.
struct Page<'a> {
    query: &'a JobQuery,
    leaps: &'a [Leap],
    /// Whether waiting jobs are wanted.
    waiting: bool,
    list: JobList,
    kinds: BTreeMap<KindKey, u32>,
    names: BTreeMap<&'a str, u32>,
    /// The last kind and name: neighbours are mostly alike.
    last_kind: Option<(KindKey, u32)>,
    last_name: Option<(&'a str, u32)>,
    /// Of records, kinds, names, reasons and what was typed; the columns of numbers are small.
    bytes: usize,
}

fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

impl<'a> Page<'a> {
    fn new(query: &'a JobQuery, leaps: &'a [Leap]) -> Page<'a> {
        Page {
            query,
            leaps,
            waiting: query.states.is_empty() || query.states.contains(&JobState::Pending),
            list: JobList::default(),
            kinds: BTreeMap::new(),
            names: BTreeMap::new(),
            last_kind: None,
            last_name: None,
            bytes: 0,
        }
    }

    fn has_room(&self) -> bool {
        let WaitingJobs { kinds, id, .. } = &self.list.waiting;
        self.list.jobs.len() + kinds.len() < RECORDS && id.len() < ROWS && self.bytes < PAGE_BYTES
    }

    fn add(&mut self, job: &'a Job) {
        if !job.is_pending() || !matches!(job.row.tasks, Tasks::None) || !job.steps.is_empty() {
            let mut info = if self.query.brief { job.brief() } else { job.info() };
            info.leapt = job.leapt(self.leaps);
            if self.query.matches(&info) {
                self.bytes += size(&info);
                self.list.jobs.push(info);
            }
            return;
        }
        if !self.waiting {
            return;
        }
        let (kind, name) = (self.kind(job), self.name(job.spec.name()));
        let columns = &mut self.list.waiting;
        let wait = job.waits_for();
        let reason = columns.reasons.iter().position(|known| *known == wait).unwrap_or_else(|| {
            self.bytes += size(&wait);
            columns.reasons.push(wait);
            columns.reasons.len() - 1
        });
        if let Some(begin) = job.spec.begin() {
            columns.begin_of.push(place(columns.id.len()));
            columns.begin.push(begin);
        }
        columns.id.push(job.row.job);
        columns.kind.push(kind);
        columns.name.push(name);
        columns.reason.push(place(reason));
        columns.attempt.push(job.row.attempt);
        columns.priority.push(if job.row.hold.is_some() { 0 } else { job.row.priority });
        columns.submitted.push(job.spec.submitted);
        columns.eligible.push(job.row.eligible);
        if !self.query.brief {
            let origin = job.spec.origin();
            self.bytes += origin.submission.0.len() + origin.command.0.len() + origin.submit_line.0.len();
            columns.origin.push(origin);
            columns.sluid.push(job.row.sluid.unwrap_or_default());
        }
    }

    fn kind(&mut self, job: &Job) -> u32 {
        let spec = &job.spec;
        let key = (
            Arc::as_ptr(&spec.spec) as usize,
            Arc::as_ptr(&spec.identity) as usize,
            Arc::as_ptr(&spec.partition).cast::<u8>() as usize,
            spec.time_limit,
        );
        if let Some((_, kind)) = self.last_kind.filter(|(last, _)| *last == key) {
            return kind;
        }
        let kinds = &mut self.list.waiting.kinds;
        let kind = *self.kinds.entry(key).or_insert_with(|| {
            let common = in_common(job, self.query.brief);
            self.bytes += size(&common);
            kinds.push(common);
            place(kinds.len() - 1)
        });
        self.last_kind = Some((key, kind));
        kind
    }

    fn name(&mut self, name: &'a str) -> u32 {
        if let Some((_, at)) = self.last_name.filter(|(last, _)| *last == name) {
            return at;
        }
        let names = &mut self.list.waiting.names;
        let at = *self.names.entry(name).or_insert_with(|| {
            self.bytes += name.len();
            names.push(name.to_string());
            place(names.len() - 1)
        });
        self.last_name = Some((name, at));
        at
    }
}

/// The job's record without what is its own.
fn in_common(job: &Job, brief: bool) -> JobInfo {
    let mut info = if brief { job.brief() } else { job.info() };
    info.id = JobId(0);
    info.reason = Reason::None;
    info.attempt = Attempt(0);
    info.priority = 0;
    (info.submitted, info.eligible) = (Time::default(), Time::default());
    info.spec.submission = SubmissionId(String::new());
    info.spec.begin = None;
    info.spec.name.clear();
    (info.spec.command, info.spec.submit_line) = Default::default();
    info.sluid = None;
    info
}
