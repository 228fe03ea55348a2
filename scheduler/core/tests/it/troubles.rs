//! What agents find wrong with their nodes keeps new work from these, for as long as it is wrong.

use crate::common::*;
use berth_model::config::Config;
use berth_model::ids::*;
use berth_model::launch::StepPhase;
use berth_model::link::{FromAgent, Highest, ToAgent, Trouble};
use berth_model::request::*;
use berth_model::state::{Cause, ExitStatus, JobState, NodeCondition};
use berth_sched_core::{Cluster, CoreConfig, Write};

fn says(w: &mut World, troubles: Vec<Trouble>) {
    w.tell("n1", |session| FromAgent::Heartbeat {
        session,
        load: 0,
        free_memory: 0,
        troubles,
        drift: vec![],
        asked: Default::default(),
        used: vec![],
        gpus: vec![],
    });
}

fn unkillable(job: JobId) -> Trouble {
    let run = Some((job, Attempt(0)));
    Trouble { cause: Cause::Unkillable, run, why: "Kill task failed: job 1: pid 9".into() }
}

fn unhealthy(why: &str) -> Trouble {
    Trouble { cause: Cause::HealthCheck, run: None, why: why.into() }
}

fn condition(w: &World) -> NodeCondition {
    w.core.snapshot().node(&NodeName::from("n1")).unwrap().condition
}

fn set(w: &mut World, state: NodeStateChange, reason: Option<&str>) {
    let (nodes, reason) = (vec![NodeName::from("n1")], reason.map(str::to_string));
    w.request(actor(0), Request::UpdateNode { nodes, state, reason }).unwrap();
}

#[test]
fn a_job_ends_without_processes_that_cannot_die_and_the_node_waits_for_their_end() {
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    w.exited("n1", batch_key(id, 0), ExitStatus::OK);
    assert_eq!(w.state(id), JobState::Completing);
    says(&mut w, vec![unkillable(id)]);
    assert_eq!(w.state(id), JobState::Completed);
    let c = condition(&w);
    assert!(c.drain && c.reason.as_deref() == Some("Kill task failed: job 1: pid 9"), "{c:?}");
    assert_eq!(c.reason_user.as_deref(), Some("berth"));
    // Nothing starts there, nor when an administrator wants it to.
    let next = w.batch("b", |_| {});
    set(&mut w, NodeStateChange::Resume, None);
    assert_eq!(w.state(next), JobState::Pending);
    says(&mut w, vec![unkillable(id)]);
    assert!(condition(&w).drain);
    // A new agent has not come to look yet.
    says(&mut w, vec![]);
    assert_eq!(w.state(next), JobState::Pending);
    assert!(condition(&w).drain);
    w.gone("n1", id, 0);
    assert_eq!(w.state(next), JobState::Pending, "its agent has not said yet that all is well");
    says(&mut w, vec![]);
    assert_eq!(condition(&w), NodeCondition::default());
    assert_eq!(w.state(next), JobState::Running);
}

#[test]
fn a_job_that_runs_is_not_ended_by_what_is_said_of_its_processes() {
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    says(&mut w, vec![unkillable(id)]);
    assert_eq!(w.state(id), JobState::Running);
    let late = Trouble { run: Some((id, Attempt(7))), ..unkillable(id) };
    w.exited("n1", batch_key(id, 0), ExitStatus::OK);
    says(&mut w, vec![late]);
    assert_eq!(w.state(id), JobState::Completing);
}

#[test]
fn a_check_that_passes_returns_only_what_the_check_took_away() {
    let mut w = World::small();
    says(&mut w, vec![unhealthy("no GPU")]);
    let c = condition(&w);
    assert!(c.drain && c.reason.as_deref() == Some("no GPU"), "{c:?}");
    let job = w.batch("a", |_| {});
    assert_eq!(w.state(job), JobState::Pending);
    says(&mut w, vec![unhealthy("no disk")]);
    assert_eq!(condition(&w).reason.as_deref(), Some("no disk"));
    says(&mut w, vec![]);
    assert_eq!(w.state(job), JobState::Running);
    // An administrator's word stands beside it and stays.
    says(&mut w, vec![unhealthy("no GPU")]);
    set(&mut w, NodeStateChange::Drain, Some("new disk"));
    assert_eq!(condition(&w).reason.as_deref(), Some("new disk"));
    says(&mut w, vec![]);
    let c = condition(&w);
    assert!(c.drain && c.reason.as_deref() == Some("new disk"), "{c:?}");
}

#[test]
fn a_reboot_ends_what_could_not_die() {
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    w.exited("n1", batch_key(id, 0), ExitStatus::OK);
    says(&mut w, vec![unkillable(id), unhealthy("no GPU")]);
    w.hello("n1", "another boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    assert_eq!(condition(&w).reason.as_deref(), Some("no GPU"));
    says(&mut w, vec![]);
    assert!(!condition(&w).drain);
    assert!(!w.sent.iter().any(|m| matches!(m, ToAgent::Refused(_))));
}

#[test]
fn a_hello_that_is_older_than_a_step_starts_it_no_second_time() {
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    let key = batch_key(id, 0);
    assert_eq!(w.starts(), [key]);
    w.phase("n1", key, StepPhase::Running);
    w.hello_again("n1", hardware(4, 1, 4000, 2));
    assert!(w.starts().is_empty());
    // A registration that does not have it any more has lost it.
    w.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    assert!(!w.starts().contains(&key));
    assert_ne!(w.state(id), JobState::Running);
}

/// The agent introduces itself anew, and names keys of the configuration that it does not know.
fn comes_with(w: &mut World, unknown: &[&str]) {
    let unknown = unknown.iter().map(|key| key.to_string()).collect();
    w.tell("n1", |_| FromAgent::Hello {
        node: "n1".into(),
        boot_id: "boot".into(),
        boot_time: Default::default(),
        agent_start: Default::default(),
        version: "0.0.9".into(),
        hardware: hardware(4, 1, 4000, 2),
        term: Term(0),
        asked: Default::default(),
        steps: vec![],
        jobs: vec![],
        unknown,
        features: vec![],
        highest: Highest::default(),
        host: None,
    });
}

#[test]
fn an_older_agent_that_does_not_know_a_rule_takes_no_jobs_until_it_does() {
    let mut w = World::small();
    let node = |w: &World| w.core.snapshot().node(&NodeName::from("n1")).unwrap();
    // What restricts nobody is shown, and that is all.
    comes_with(&mut w, &["images.peers", "logs.form\u{1b}at"]);
    assert_eq!(condition(&w), NodeCondition::default());
    assert_eq!(node(&w).unknown_settings, ["images.peers", "logs.format"]);
    comes_with(&mut w, &["images.peers", "images.deny[0]", "programs.before_all"]);
    let c = condition(&w);
    let why = c.reason.clone().unwrap();
    assert!(c.drain && why.contains("0.0.9") && why.contains("images.deny[0], programs.before_all"), "{c:?}");
    assert!(!why.contains("peers"), "{why}");
    let waits = w.batch("a", |_| {});
    // Its heartbeats, which say that all is well, and an administrator do not make it know.
    says(&mut w, vec![]);
    set(&mut w, NodeStateChange::Resume, None);
    assert_eq!(w.state(waits), JobState::Pending);
    assert!(condition(&w).drain);
    // It was upgraded.
    comes_with(&mut w, &[]);
    assert_eq!(condition(&w), NodeCondition::default());
    assert_eq!(w.state(waits), JobState::Running);
    assert!(node(&w).unknown_settings.is_empty());
}

#[test]
fn a_node_that_comes_back_with_less_is_shown_until_it_is_whole_or_taken_as_it_is() {
    let mut w = World::small();
    let drift = |w: &World| w.core.snapshot().node(&NodeName::from("n1")).unwrap().hardware_drift;
    let log = |w: &World| {
        let entry = |write: &Write| match write {
            Write::AddAudit(row) => Some(format!("{}: {}", row.user, row.what)),
            _ => None,
        };
        w.writes.iter().filter_map(entry).collect::<Vec<_>>()
    };
    assert!(drift(&w).is_empty());
    let less = || hardware(2, 1, 3000, 1);
    w.hello("n1", "second", less(), vec![], vec![]);
    let told = [
        "registered with 4 cores, now 2",
        "registered with 4000 MiB of memory, now 3000",
        "registered with 2 GPUs, now 1",
    ];
    assert_eq!(drift(&w), told);
    let entry = format!("berth: node n1 has come back with less: {}", told.join("; "));
    assert_eq!(log(&w), std::slice::from_ref(&entry));
    // It works with what it has.
    assert_eq!(condition(&w), NodeCondition::default());
    // It is on record, and said once, whichever agent and controller there is.
    let config = CoreConfig::new(&Config::default()).unwrap();
    w.core = Cluster::restore(config, Term(2), stored(&w.writes), w.now).unwrap();
    assert_eq!(drift(&w), told);
    w.hello("n1", "second", less(), vec![], vec![]);
    assert_eq!((drift(&w), log(&w)), (told.map(str::to_string).to_vec(), vec![entry]));
    // What memory varies by from boot to boot is no second entry.
    w.hello("n1", "again", hardware(2, 1, 2990, 1), vec![], vec![]);
    assert!(drift(&w).contains(&"registered with 4000 MiB of memory, now 2990".to_string()));
    assert_eq!(log(&w).len(), 1);
    // Some of it is back, then all.
    w.hello("n1", "third", hardware(4, 1, 4000, 1), vec![], vec![]);
    assert_eq!(drift(&w), ["registered with 2 GPUs, now 1"]);
    w.hello("n1", "fourth", hardware(4, 1, 4000, 2), vec![], vec![]);
    assert!(drift(&w).is_empty());
    assert_eq!(log(&w).len(), 2);
    // An administrator takes it as it is.
    w.hello("n1", "fifth", less(), vec![], vec![]);
    assert_eq!(drift(&w), told);
    set(&mut w, NodeStateChange::Resume, None);
    assert!(drift(&w).is_empty());
    w.hello("n1", "fifth", less(), vec![], vec![]);
    assert!(drift(&w).is_empty());
}
