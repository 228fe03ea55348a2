//! Lists say of every job what its record says, however they travel.

use crate::common::*;
use berth_model::config::Config;
use berth_model::listing::{PAGE_BYTES, size};
use berth_model::query::JobQuery;
use berth_model::record::JobInfo;
use berth_model::request::Request;
use berth_model::spec::{ArraySpec, JobKind, JobSelector};
use berth_model::state::{ExitStatus, JobState};
use berth_model::{ByteStr, JobId, Uid};

/// Jobs of many kinds: running, ended, held, with a begin, in an array, of several names and users.
fn world() -> World {
    let mut w = World::small();
    let ran = w.batch("ran", |s| s.name = "ran".into());
    let key = w.starts()[0];
    w.exited("n1", key, ExitStatus { code: 3, signal: 0 });
    w.gone("n1", ran, 0);
    w.submit(job(JobKind::Run, "interactive")).unwrap();
    for i in 0..600_u32 {
        w.batch(&format!("waits-{i}"), |s| {
            s.name = format!("name-{}", i % 7);
            s.hold = i % 3 != 0;
            s.begin = (i % 5 == 0).then_some(far());
            s.command = ByteStr::from(format!("/job-{i}.sh"));
            s.resources.tasks = Some(1 + i % 2);
            s.nice = i32::try_from(i % 2).unwrap();
        });
    }
    w.batch("array", |s| s.array = Some(ArraySpec { ranges: vec![(1, 9, 2)], max_running: Some(2) }));
    let owner = Request::Hold(vec![JobSelector::Job(JobId(5))]);
    w.request(actor(0), owner).unwrap();
    w
}

fn far() -> berth_model::Time {
    berth_model::Time::from_secs(10_000_000_000)
}

fn listed(w: &World, query: &JobQuery) -> Vec<JobInfo> {
    let mut all: Vec<JobInfo> =
        w.core.snapshot().list(query).flat_map(|page| page.records().unwrap()).collect();
    all.sort_by_key(|job| job.id);
    all
}

#[test]
fn a_list_says_what_the_records_say() {
    let w = world();
    let query = JobQuery { include_finished: true, ..JobQuery::default() };
    let records: Vec<JobInfo> = w.core.snapshot().jobs().collect();
    assert!(records.len() > 600);
    assert_eq!(listed(&w, &query), records);
    let brief = |mut job: JobInfo| {
        job.spec = job.spec.brief();
        (job.steps, job.shares, job.sluid) = (vec![], vec![], None);
        (job.identity.groups, job.identity.home, job.identity.shell) = Default::default();
        job
    };
    let expected: Vec<JobInfo> = records.into_iter().map(brief).collect();
    assert_eq!(listed(&w, &JobQuery { brief: true, ..query }), expected);
}

#[test]
fn a_list_holds_what_was_asked_for() {
    let w = world();
    let count = |query: JobQuery| {
        let found = listed(&w, &query);
        assert!(found.iter().all(|job| query.matches(job)));
        found.len()
    };
    let all = w.core.snapshot().job_count();
    assert_eq!(count(JobQuery::default()), all - 1, "the one that is over");
    assert_eq!(count(JobQuery { users: vec![Uid(1000)], ..JobQuery::default() }), all - 1);
    assert_eq!(count(JobQuery { users: vec![Uid(7)], ..JobQuery::default() }), 0);
    assert_eq!(count(JobQuery { states: vec![JobState::Failed], ..JobQuery::default() }), 1);
    let pending = count(JobQuery { states: vec![JobState::Pending], ..JobQuery::default() });
    let running = count(JobQuery { states: vec![JobState::Running], ..JobQuery::default() });
    assert!(pending > 500 && running > 0 && pending + running == all - 1);
}

#[test]
fn columns_that_contradict_each_other_are_no_list() {
    let w = world();
    let query = JobQuery::default();
    let page = || w.core.snapshot().list(&query).next().unwrap();
    assert!(page().records().is_some());
    let mut short = page();
    short.waiting.name.pop();
    let mut astray = page();
    astray.waiting.kind[0] = 1_000_000;
    let mut begins = page();
    begins.waiting.begin_of[0] = 1_000_000;
    let mut unnamed = page();
    unnamed.waiting.sluid.pop();
    // A controller of an earlier version says nothing of them.
    let mut silent = page();
    silent.waiting.sluid.clear();
    assert!(silent.records().unwrap().iter().any(|job| job.sluid.is_none()));
    for list in [short, astray, begins, unnamed] {
        assert_eq!(list.records(), None);
    }
}

#[test]
fn no_page_is_large_whatever_its_jobs_are_called_and_ask_for() {
    let mut w = World::new(&Config::default());
    for i in 0..400_u32 {
        w.batch(&format!("{i}"), |s| {
            s.name = format!("{i:01000}");
            s.comment = Some("c".repeat(1000));
            // Each a kind of its own.
            s.account = Some(format!("{i:01000}"));
            s.submit_line = "l".repeat(20_000).into();
        });
    }
    for brief in [false, true] {
        let (query, mut jobs) = (JobQuery { brief, ..JobQuery::default() }, 0);
        for page in w.core.snapshot().list(&query) {
            let records: usize = page.jobs.iter().chain(&page.waiting.kinds).map(size).sum();
            let typed: usize = page.waiting.origin.iter().map(|o| o.submit_line.0.len()).sum();
            let names: usize = page.waiting.names.iter().map(String::len).sum();
            assert!(records + typed + names < PAGE_BYTES + (64 << 10), "{records} {typed} {names}");
            jobs += page.records().unwrap().len();
        }
        assert_eq!(jobs, 400);
    }
}
