//! What comes of prologs and epilogs that fail.

use crate::common::*;
use berth_model::hardware::GresDevice;
use berth_model::ids::*;
use berth_model::launch::{ImagePull, StepExit, StepPhase};
use berth_model::link::{FromAgent, Highest, ToAgent};
use berth_model::request::*;
use berth_model::spec::*;
use berth_model::state::{ExitStatus, JobState, NodeCondition, Reason};
use berth_model::time::Span;
use berth_sched_core::{Event, NodeRow, Write};

const WHY: &str = "prolog /etc/prolog failed: exit code 3: no disk";

fn fails(w: &mut World, node: &str, job: JobId, attempt: u32) {
    let why = WHY.to_string();
    let faults = vec![];
    w.tell(node, |session| FromAgent::PrologFailed { session, job, attempt: Attempt(attempt), why, faults });
}

fn condition(w: &World, node: &str) -> NodeCondition {
    w.core.snapshot().node(&NodeName::from(node)).unwrap().condition
}

#[test]
fn a_batch_job_goes_to_another_node_and_then_waits_for_its_owner() {
    let mut w = World::small();
    w.node("n2", hardware(4, 1, 4000, 2));
    let id = w.batch("a", |_| {});
    for (attempt, node, other) in [(0, "n1", "n2"), (1, "n2", "n1")] {
        // Twice: it is repeated.
        fails(&mut w, node, id, attempt);
        fails(&mut w, node, id, attempt);
        let c = condition(&w, node);
        assert!(c.drain && c.reason.as_deref() == Some(WHY), "{c:?}");
        assert!(w.sent.iter().any(|m| matches!(m, ToAgent::EndJob { job, .. } if *job == id)));
        w.sent.clear();
        w.gone(node, id, attempt);
        let administrator = NodeStateChange::Resume;
        if attempt == 0 {
            assert_eq!(w.state(id), JobState::Running, "on {other}");
            let nodes = vec![NodeName::from(node)];
            w.request(actor(0), Request::UpdateNode { nodes, state: administrator, reason: None }).unwrap();
            // What is said once more of a run that is over drains nothing.
            fails(&mut w, node, id, attempt);
            assert!(!condition(&w, node).drain);
        }
    }
    assert_eq!((w.state(id), w.info(id).reason), (JobState::Pending, Reason::JobHeldUser));
}

#[test]
fn an_interactive_job_ends_with_the_node_and_the_reason() {
    let mut w = World::small();
    let id = w.submit(job(JobKind::Run, "r")).unwrap();
    fails(&mut w, "n1", id, 0);
    w.gone("n1", id, 0);
    let info = w.info(id);
    assert_eq!(info.state, JobState::Failed);
    let Reason::LaunchFailed(text) = info.reason else { panic!("{:?}", info.reason) };
    assert!(text.contains("n1") && text.contains(WHY), "{text}");
}

#[test]
fn a_failed_epilog_drains_the_node_and_keeps_nothing_of_the_job() {
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    w.exited("n1", batch_key(id, 0), ExitStatus::OK);
    for _ in 0..2 {
        let epilog = Some("epilog /etc/epilog failed: exit code 1".to_string());
        w.tell("n1", |session| FromAgent::JobGone {
            session,
            job: id,
            attempt: Attempt(0),
            steps: vec![],
            epilog,
            faults: vec![],
        });
    }
    assert_eq!(w.state(id), JobState::Completed);
    let c = condition(&w, "n1");
    assert!(c.drain && c.reason.is_some_and(|r| r.starts_with("epilog /etc/epilog failed")));
    assert_eq!(w.core.snapshot().node(&NodeName::from("n1")).unwrap().allocated.cpu, 0);
}

#[test]
fn a_step_whose_script_is_lost_fails_and_one_that_its_agent_has_goes_on() {
    let mut w = World::small();
    let (lost, there) = (w.batch("a", |_| {}), w.batch("b", |_| {}));
    let cannot = |job| Event::CannotStart { node: "n1".into(), key: batch_key(job, 0), why: "row 7".into() };
    w.phase("n1", batch_key(there, 0), StepPhase::Starting);
    for job in [lost, there] {
        w.event(cannot(job));
        // Of another run, and of no job at all.
        w.event(Event::CannotStart { node: "n1".into(), key: batch_key(job, 1), why: "row 7".into() });
    }
    w.event(cannot(JobId(77)));
    w.gone("n1", lost, 0);
    assert_eq!((w.state(lost), w.state(there)), (JobState::Failed, JobState::Running));
    let Reason::LaunchFailed(text) = w.info(lost).reason else { panic!("{:?}", w.info(lost).reason) };
    assert!(text.contains("cannot be read") && text.contains("row 7"), "{text}");
}

/// Longer than any row should be, and what moves a terminal.
fn wild() -> String {
    format!("\u{1b}]0;owned\u{7}\u{9b}2J{}", "x".repeat(1 << 20))
}

fn is_tame(text: &str, most: usize) -> bool {
    !text.chars().any(char::is_control) && text.chars().count() <= most
}

#[test]
fn what_a_nodes_programs_say_is_short_and_plain_where_it_is_kept() {
    let (mut w, why) = (World::small(), wild());
    w.node("n2", hardware(4, 1, 4000, 2));
    let id = w.batch("a", |_| {});
    w.exited("n1", batch_key(id, 0), ExitStatus::OK);
    w.tell("n1", |session| FromAgent::JobGone {
        session,
        job: id,
        attempt: Attempt(0),
        steps: vec![],
        epilog: Some(why.clone()),
        faults: vec![],
    });
    let next = w.submit(job(JobKind::Run, "r")).unwrap();
    w.tell("n2", |session| FromAgent::PrologFailed {
        session,
        job: next,
        attempt: Attempt(0),
        why,
        faults: vec![],
    });
    for node in ["n1", "n2"] {
        let c = condition(&w, node);
        let reason = c.reason.unwrap();
        assert!(c.drain && reason.starts_with("]0;owned") && is_tame(&reason, 1000), "{node}");
    }
    let Reason::LaunchFailed(text) = w.info(next).reason else { panic!("{:?}", w.info(next).reason) };
    assert!(text.contains("]0;owned") && is_tame(&text, 1200), "{} characters", text.len());
}

#[test]
fn what_an_agent_says_of_itself_is_short_and_plain_where_it_is_kept() {
    let (mut w, wild) = (World::small(), wild());
    let mut said = hardware(4, 1, 4000, 2);
    (said.arch, said.os) = (wild.clone(), wild.clone());
    said.gres[1].kind = Some(wild.clone());
    said.gres[1].fault = Some(wild.clone());
    let hello = |hardware| FromAgent::Hello {
        node: "n1".into(),
        boot_id: wild.clone(),
        boot_time: Default::default(),
        agent_start: Default::default(),
        version: wild.clone(),
        hardware,
        term: Term(0),
        asked: Default::default(),
        steps: vec![],
        jobs: vec![],
        unknown: vec![],
        features: vec![wild.clone(); 1000],
        highest: Highest::default(),
        host: Some(wild.clone()),
    };
    let since = w.writes.len();
    w.tell("n1", |_| hello(said.clone()));
    let rows: Vec<&NodeRow> = w.writes[since..]
        .iter()
        .filter_map(|write| if let Write::PutNode(row) = write { Some(&**row) } else { None })
        .collect();
    let row: NodeRow = (*rows.last().unwrap()).clone();
    let device = &row.hardware.gres[1];
    let texts = [&row.boot_id, &row.agent_version, &row.hardware.arch, &row.hardware.os];
    for text in texts.into_iter().chain(&device.kind).chain(&device.fault) {
        assert!(text.starts_with("]0;owned") && is_tame(text, 400), "{} characters", text.len());
    }
    // The same words once more are no other boot.
    let since = w.writes.len();
    w.tell("n1", |_| hello(said.clone()));
    let other = |write: &Write| matches!(write, Write::PutNode(again) if **again != row);
    assert!(!w.writes[since..].iter().any(other));
    // What no machine has is not taken at all.
    said.gres = (0..100_000).map(|index| GresDevice { index, ..said.gres[0].clone() }).collect();
    w.tell("n1", |_| hello(said.clone()));
    let refused = |m: &ToAgent| matches!(m, ToAgent::Refused(why) if why.contains("the most"));
    assert!(w.sent.iter().any(refused));
}

#[test]
fn how_a_step_ended_is_told_in_words_that_can_be_shown() {
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    let pull = ImagePull { took: Span::from_secs(1), bytes: 0, hit: true, digest: Some(wild()), found: None };
    let text = format!("no image\n{}", wild());
    let ended =
        StepExit { launch_error: Some(text), image: Some(pull), ..exit(ExitStatus { code: 1, signal: 0 }) };
    w.phase("n1", batch_key(id, 0), StepPhase::Exited(ended));
    let step = w.info(id).steps.remove(0);
    let digest = step.digest.unwrap();
    assert!(digest.starts_with("]0;owned") && is_tame(&digest, 200), "{} characters", digest.len());
    let why = step.message.unwrap();
    let lines: Vec<&str> = why.lines().collect();
    assert!(
        why.contains("]0;owned") && lines.iter().all(|line| is_tame(line, 9000)),
        "{} lines",
        lines.len()
    );
}

#[test]
fn an_administrators_reason_stays() {
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    let (nodes, reason) = (vec![NodeName::from("n1")], Some("new disk".to_string()));
    w.request(actor(0), Request::UpdateNode { nodes, state: NodeStateChange::Drain, reason }).unwrap();
    fails(&mut w, "n1", id, 0);
    assert_eq!(condition(&w, "n1").reason.as_deref(), Some("new disk"));
}

#[test]
fn a_step_waits_for_a_program_of_srun_where_there_is_one() {
    let told = |site: &str, prolog: Option<SrunProlog>, attached: bool| {
        let mut config = berth_model::config::Config::default();
        config.programs.srun_prolog = site.into();
        config.programs.srun_prolog_seconds = 40;
        let mut w = World::new(&config);
        w.node("n1", hardware(4, 1, 4000, 0));
        let job = w.submit(berth_samples::job(JobKind::Alloc, "a")).unwrap();
        let spec = StepSpec { prolog, attached, ..step("s") };
        w.request(actor(1000), Request::CreateStep { job, spec: Box::new(spec) }).unwrap();
        let start =
            w.sent.iter().find_map(|m| if let ToAgent::Start(start) = m { Some(start) } else { None });
        start.unwrap().launch.told_within.map(|span| span.secs())
    };
    // Its own time, and half a minute for its client to come.
    assert_eq!(told("/etc/prolog", Some(SrunProlog::Site), true), Some(70));
    assert_eq!(told("", Some(SrunProlog::Own), true), Some(70));
    assert_eq!(told("", Some(SrunProlog::Site), true), None);
    assert_eq!(told("/etc/prolog", None, true), None);
    assert_eq!(told("/etc/prolog", Some(SrunProlog::Site), false), None, "nobody is there to say so");
}
