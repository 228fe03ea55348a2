//! SLUIDs: one for each record, kept for its life, never given out twice, and as good as an id.

use crate::common::*;
use berth_model::config::Config;
use berth_model::ids::*;
use berth_model::request::*;
use berth_model::sluid::Sluid;
use berth_model::spec::*;
use berth_model::state::{ExitStatus, JobState};
use berth_sched_core::{Cluster, CoreConfig, Write};
use std::collections::BTreeSet;

fn sluid(w: &World, id: JobId) -> Sluid {
    w.info(id).sluid.expect("it has none")
}

fn cancel(w: &mut World, uid: u32, selector: JobSelector) -> Vec<(String, Refusal)> {
    let body = Request::Cancel(CancelRequest { jobs: vec![(selector, None)], ..CancelRequest::default() });
    match w.request(actor(uid), body).unwrap() {
        Response::Acted { refused, .. } => refused,
        other => panic!("{other:?}"),
    }
}

/// An array whose tasks run one after another, each on the whole node.
fn array(w: &mut World) -> JobId {
    w.batch("array", |s| {
        s.array = Some(ArraySpec { ranges: vec![(1, 3, 1)], max_running: None });
        s.resources.tasks = Some(4);
    })
}

/// The record of a task that runs.
fn running(w: &World, array: JobId) -> JobId {
    let snapshot = w.core.snapshot();
    let found: Vec<JobId> =
        snapshot.array(array).filter(|job| job.state == JobState::Running).map(|job| job.id).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

fn end(w: &mut World, id: JobId) {
    w.exited("n1", batch_key(id, 0), ExitStatus::OK);
    w.gone("n1", id, 0);
}

#[test]
fn jobs_of_one_moment_have_sluids_of_their_own_in_the_order_of_their_ids() {
    let mut w = World::small();
    let ids: Vec<JobId> = (0..1500).map(|i| w.batch(&format!("{i}"), |s| s.hold = true)).collect();
    let all: Vec<Sluid> = ids.iter().map(|id| sluid(&w, *id)).collect();
    assert!(all.windows(2).all(|two| two[0] < two[1]), "{all:?}");
    let snapshot = w.core.snapshot();
    assert!(ids.iter().zip(&all).all(|(id, sluid)| snapshot.job_of(*sluid).unwrap().id == *id));
}

#[test]
fn a_task_gets_its_own_when_it_starts_and_the_last_one_that_of_the_array() {
    let mut w = World::small();
    let id = array(&mut w);
    let of_array = sluid(&w, id);
    let first = running(&w, id);
    let of_first = sluid(&w, first);
    assert_ne!(of_array, of_first);
    end(&mut w, first);
    let second = running(&w, id);
    assert_eq!(sluid(&w, id), of_array, "the waiting rest");
    end(&mut w, second);
    let last = running(&w, id);
    assert!(last != id && w.core.snapshot().job(id).is_none());
    assert_eq!(w.core.snapshot().job_of(of_array).unwrap().id, last);
    let three: BTreeSet<Sluid> = [first, second, last].map(|id| sluid(&w, id)).into();
    assert_eq!((three.len(), sluid(&w, first)), (3, of_first));
    // What names the array names its last task now, also for another controller.
    let config = CoreConfig::new(&Config::default()).unwrap();
    w.core = Cluster::restore(config, Term(2), stored(&w.writes), w.now).unwrap();
    w.core.audit().unwrap();
    assert_eq!(cancel(&mut w, 1000, JobSelector::Sluid(of_array)), []);
    assert_eq!(w.state(last), JobState::Completing);
}

#[test]
fn a_job_keeps_it_over_requeues_and_restarts_of_the_controller() {
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    let before = sluid(&w, id);
    w.starts();
    w.request(actor(1000), Request::Requeue(vec![JobSelector::Sluid(before)])).unwrap();
    w.gone("n1", id, 0);
    assert_eq!(w.starts(), [batch_key(id, 1)]);
    assert_eq!(sluid(&w, id), before);
    let config = CoreConfig::new(&Config::default()).unwrap();
    w.core = Cluster::restore(config, Term(2), stored(&w.writes), w.now).unwrap();
    // Another random number changes nothing: the realm is on record.
    w.core.draw_realm(12345);
    assert_eq!(sluid(&w, id), before);
    w.node("n1", hardware(4, 1, 4000, 2));
    let next = w.batch("b", |_| {});
    assert!(sluid(&w, next) > before);
    assert_eq!(sluid(&w, next).realm(), before.realm());
}

#[test]
fn the_steps_of_a_job_are_told_its_sluid() {
    use berth_model::link::ToAgent;
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    let told: Vec<Option<Sluid>> = std::mem::take(&mut w.sent)
        .into_iter()
        .filter_map(|m| if let ToAgent::Start(s) = m { Some(s.launch.job.sluid) } else { None })
        .collect();
    assert_eq!(told, [Some(sluid(&w, id))]);
}

#[test]
fn what_a_backup_does_not_have_is_not_given_out_again() {
    let mut w = World::small();
    w.core.draw_realm(1);
    let kept = w.batch("kept", |s| s.hold = true);
    let backup = w.writes.len();
    let lost: BTreeSet<Sluid> = (0..20)
        .map(|i| {
            let id = w.batch(&format!("lost-{i}"), |s| s.hold = true);
            sluid(&w, id)
        })
        .collect();
    // Cluster time goes on where the backup was made: the same milliseconds come again.
    let mut back = w.of_backup(backup);
    back.core.draw_realm(2);
    assert_eq!(sluid(&back, kept), sluid(&w, kept));
    for i in 0..40 {
        let id = back.batch(&format!("new-{i}"), |s| s.hold = true);
        let new = sluid(&back, id);
        assert!(!lost.contains(&new) && new != sluid(&w, kept), "{new}");
        assert!(new.without_realm() > sluid(&w, kept).without_realm(), "{new}");
    }
}

#[test]
fn clusters_that_draw_differently_give_out_different_ones() {
    let of = |random: u64| {
        let mut w = World::small();
        w.core.draw_realm(random);
        let id = w.batch("a", |s| s.hold = true);
        sluid(&w, id)
    };
    assert_ne!(of(1), of(2));
    assert_eq!(of(1), of(1), "nothing else decides");
}

#[test]
fn a_sluid_names_one_record_and_an_unknown_one_is_refused_as_an_unknown_id() {
    let mut w = World::small();
    let id = array(&mut w);
    let (waits, runs) = (sluid(&w, id), running(&w, id));
    let hold = |selector| Request::Hold(vec![selector]);
    w.request(actor(1000), hold(JobSelector::Sluid(waits))).unwrap();
    assert_eq!(w.info(id).reason, berth_model::state::Reason::JobHeldUser);
    let stranger = cancel(&mut w, 1001, JobSelector::Sluid(waits));
    assert_eq!(stranger[0].1.code, RefusalCode::Denied);
    assert_eq!(cancel(&mut w, 1000, JobSelector::Sluid(waits)), []);
    assert_eq!((w.state(id), w.state(runs)), (JobState::Cancelled, JobState::Running), "the rest alone");
    let unknown = Sluid(waits.0 + 5000);
    let (by_name, by_id) = (
        cancel(&mut w, 1000, JobSelector::Sluid(unknown)),
        cancel(&mut w, 1000, JobSelector::Job(JobId(999_999))),
    );
    let plain = |refused: &[(String, Refusal)], name: &str| refused[0].1.message.replace(name, "X");
    assert_eq!(plain(&by_name, &unknown.to_string()), plain(&by_id, "999999"));
    assert_eq!(by_name[0].0, unknown.to_string());
    let task = sluid(&w, runs);
    assert_eq!(cancel(&mut w, 1000, JobSelector::Sluid(task)), []);
    assert_eq!(w.state(runs), JobState::Completing);
}

#[test]
fn components_have_their_own_and_the_leaders_stands_for_all() {
    let mut w = World::small();
    let part = |tasks: u32| {
        let mut spec = job(JobKind::Batch, "het");
        (spec.resources.tasks, spec.hold) = (Some(tasks), true);
        (spec, script())
    };
    let body = Request::SubmitHet { components: vec![part(1), part(2)], test_only: false };
    let Response::Submitted { job: leader, .. } = w.request(actor(1000), body).unwrap() else { panic!() };
    let other = JobId(leader.0 + 1);
    let (first, second) = (sluid(&w, leader), sluid(&w, other));
    assert_ne!(first, second);
    let alone = cancel(&mut w, 1000, JobSelector::Sluid(second));
    assert!(alone[0].1.message.contains("individual component"), "{alone:?}");
    assert_eq!(cancel(&mut w, 1000, JobSelector::Sluid(first)), []);
    assert_eq!((w.state(leader), w.state(other)), (JobState::Cancelled, JobState::Cancelled));
}

#[test]
fn jobs_that_an_earlier_version_took_have_none_and_those_that_follow_have_one() {
    let mut w = World::small();
    let old = w.batch("old", |s| s.hold = true);
    let mut rows = stored(&w.writes);
    rows.jobs.iter_mut().for_each(|row| row.sluid = None);
    rows.meta.iter_mut().for_each(|meta| meta.sluid = None);
    let config = CoreConfig::new(&Config::default()).unwrap();
    w.core = Cluster::restore(config, Term(2), rows, w.now).unwrap();
    w.core.audit().unwrap();
    assert_eq!(w.info(old).sluid, None);
    let new = w.batch("new", |s| s.hold = true);
    let given = sluid(&w, new);
    // It is with the job from its first row on, and the counters know of it.
    let on_record = w.writes.iter().any(|write| match write {
        Write::PutJob(row) => row.job == new && row.sluid == Some(given),
        _ => false,
    });
    let counted = w.writes.iter().rev().find_map(|write| match write {
        Write::PutMeta(meta) => meta.sluid,
        _ => None,
    });
    assert!(on_record);
    assert_eq!(counted, Some(given));
}
