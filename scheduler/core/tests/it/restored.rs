//! A controller of a backup, and nodes that went on after it was made: nothing runs twice, nothing that runs is lost.

use crate::common::*;
use berth_model::config::Config;
use berth_model::ids::*;
use berth_model::launch::StepPhase;
use berth_model::link::{Highest, ToAgent};
use berth_model::member::{KeyId, MemberRole, MemberState};
use berth_model::request::*;
use berth_model::spec::*;
use berth_model::state::{ExitStatus, JobState, Reason};
use berth_model::time::Span;
use berth_sched_core::*;

fn all(s: &mut JobSpec) {
    s.resources.tasks = Some(4);
}

fn awaited(w: &World) -> Vec<String> {
    w.core.awaited().map(|n| n.0.clone()).collect()
}

fn ended(w: &World, job: JobId) -> bool {
    w.sent.iter().any(|m| matches!(m, ToAgent::EndJob { job: id, .. } if *id == job))
}

fn set(w: &mut World, node: &str, state: NodeStateChange) {
    let reason = (state == NodeStateChange::Down).then(|| "gone".to_string());
    w.request(actor(0), Request::UpdateNode { nodes: vec![node.into()], state, reason }).unwrap();
}

/// What is on record of a cluster that was made of a backup of all of another one.
fn stored_after(before: &World, back: &World) -> Stored {
    stored(&[&before.writes[..], &back.writes[..]].concat())
}

#[test]
fn what_ran_after_the_backup_is_ended_before_it_starts_anew() {
    let mut w = World::small();
    let first = w.batch("1", all);
    let second = w.batch("2", all);
    let backup = w.writes.len();
    w.exited("n1", batch_key(first, 0), ExitStatus::OK);
    w.gone("n1", first, 0);
    assert_eq!(w.state(second), JobState::Running);
    let lost = w.batch("3", |_| {});

    let mut back = w.of_backup(backup);
    assert_eq!((back.state(first), back.state(second)), (JobState::Running, JobState::Pending));
    assert_eq!(back.info(second).reason, Reason::Restored);
    assert_eq!(awaited(&back), ["n1"]);
    // The node comes: the first job has ended there unseen, the second one runs.
    let steps = vec![(batch_key(second, 0), StepPhase::Running)];
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), steps, vec![(second, Attempt(0))]);
    assert!(ended(&back, second), "the unknown run is not ended");
    assert_eq!(back.starts(), [], "something was started");
    back.gone("n1", first, 0);
    let info = back.info(first);
    assert_eq!(info.state, JobState::NodeFail);
    assert!(info.steps[0].message.as_ref().unwrap().contains("after the backup"), "{info:?}");
    assert_eq!((back.state(second), back.starts()), (JobState::Pending, vec![]));
    assert_eq!(awaited(&back), ["n1"], "not at rest before the unknown run is gone");
    back.gone("n1", second, 0);
    assert_eq!(awaited(&back), Vec::<String>::new());
    let starts = back.starts();
    assert_eq!((starts.len(), starts[0].job), (1, second));
    assert!(starts[0].attempt.0 >= 100, "the agent knows attempt 0 as over: {starts:?}");
    let new = back.batch("4", |_| {});
    assert!(new.0 > lost.0 + 1000, "{new} may have been given out");
}

#[test]
fn no_job_starts_while_any_node_of_the_backup_is_missing() {
    let mut w = World::small();
    w.node("n2", hardware(4, 1, 4000, 0));
    let held = w.batch("1", |s| s.hold = true);
    let backup = w.writes.len();
    let release = Request::Release(vec![JobSelector::Job(held)]);
    w.request(actor(1000), release.clone()).unwrap();
    assert_eq!(w.state(held), JobState::Running);

    let mut back = w.of_backup(backup);
    back.request(actor(1000), release.clone()).unwrap();
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    assert_eq!((back.starts(), awaited(&back)), (vec![], vec!["n2".to_string()]));
    let new = back.batch("2", |_| {});
    assert_eq!(back.info(new).reason, Reason::Restored);
    // What is awaited is on record: another controller waits, too.
    let on_record = back.writes.iter().rev().find_map(|w| match w {
        Write::PutMeta(meta) => meta.restored.as_ref(),
        _ => None,
    });
    assert!(on_record.unwrap().awaited.keys().eq([&NodeName::from("n2")]));
    // The administrator's word stands for the other one.
    set(&mut back, "n2", NodeStateChange::Down);
    let starts = back.starts();
    assert_eq!(starts.iter().map(|key| key.job).collect::<Vec<_>>(), [held, new]);
    assert_eq!(back.starts(), []);
}

#[test]
fn steps_that_run_are_taken_over_with_those_that_the_backup_does_not_have() {
    let mut w = World::small();
    let job = w.batch("1", all);
    let backup = w.writes.len();
    let asked = Request::CreateStep { job, spec: Box::new(step("after")) };
    w.request(actor(1000), asked).unwrap();

    let mut back = w.of_backup(backup);
    let unknown = StepKey { job, attempt: Attempt(0), step: StepId::Number(0) };
    let steps = vec![(batch_key(job, 0), StepPhase::Running), (unknown, StepPhase::Running)];
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), steps, vec![(job, Attempt(0))]);
    assert!(
        !back
            .sent
            .iter()
            .any(|m| matches!(m, ToAgent::Start(_) | ToAgent::Terminate { .. } | ToAgent::EndJob { .. }))
    );
    assert_eq!((back.state(job), awaited(&back).len()), (JobState::Running, 0));
    assert_eq!(back.info(job).steps.len(), 2);
    let asked = Request::CreateStep { job, spec: Box::new(step("new")) };
    let Response::StepCreated { key, .. } = back.request(actor(1000), asked).unwrap() else { panic!() };
    assert!(matches!(key.step, StepId::Number(n) if n >= 1000), "{key} may have been given out");
    // All exits are on record.
    let failed = ExitStatus { code: 7, signal: 0 };
    back.exited("n1", unknown, failed);
    back.exited("n1", key, ExitStatus::OK);
    back.exited("n1", batch_key(job, 0), failed);
    back.gone("n1", job, 0);
    let info = back.info(job);
    assert_eq!((info.state, info.exit), (JobState::Failed, failed));
    assert_eq!(info.steps.iter().find(|s| s.id == unknown.step).unwrap().exit, failed);
}

#[test]
fn a_restored_controller_goes_above_the_term_of_its_agents() {
    let w = World::small();
    let mut back = w.of_backup(w.writes.len());
    back.agent_term = Term(5000);
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    assert_eq!(back.superseded, Some(Term(5000)));
    assert_eq!(awaited(&back), ["n1"]);
    // Not out of all proportion.
    (back.superseded, back.agent_term) = (None, Term(u64::MAX));
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    assert_eq!(back.superseded, None);
    // Nor for one that has come, and has followed another controller since.
    back.agent_term = Term(1001);
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    assert_eq!(awaited(&back), Vec::<String>::new());
    back.agent_term = Term(5000);
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    assert_eq!(back.superseded, None);
    // A cluster that was never restored follows nobody.
    let mut never = World::small();
    never.agent_term = Term(5000);
    never.hello("n9", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    assert_eq!(never.superseded, None);
}

#[test]
fn nodes_that_were_given_up_or_are_in_no_backup_are_followed_when_they_come() {
    let mut w = World::small();
    w.node("n2", hardware(4, 1, 4000, 0));
    let mut back = w.of_backup(w.writes.len());
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    set(&mut back, "n2", NodeStateChange::Down);
    assert_eq!(back.core.why_held(), None);
    // That is on record.
    let config = CoreConfig::new(&Config::default()).unwrap();
    back.core = Cluster::restore(config, Term(1002), stored_after(&w, &back), back.now).unwrap();
    for node in ["n2", "n9"] {
        back.agent_term = Term(5000);
        back.hello(node, "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
        assert_eq!(back.superseded.take(), Some(Term(5000)), "{node}");
        // Under the later term it is let in, once.
        back.agent_term = Term(1002);
        back.hello(node, "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
        back.agent_term = Term(5000);
        back.hello(node, "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
        assert_eq!(back.superseded, None, "{node} has another controller");
    }
    let restored = stored_after(&w, &back).meta.unwrap().restored.unwrap();
    assert!(restored.unheard.is_empty(), "{restored:?}");
}

#[test]
fn a_node_whose_term_is_later_each_time_and_that_never_comes_is_followed_no_more() {
    let w = World::small();
    let mut back = w.of_backup(w.writes.len());
    back.agent_term = Term(5000);
    let followed = |back: &mut World| {
        back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
        back.superseded.take().is_some()
    };
    assert_eq!((0..20).filter(|_| followed(&mut back)).count(), 8);
    // Each of them cost a core, so that it is on record.
    let config = CoreConfig::new(&Config::default()).unwrap();
    back.core = Cluster::restore(config, Term(1002), stored_after(&w, &back), back.now).unwrap();
    assert!(!followed(&mut back));
    // It may come all the same.
    back.agent_term = Term(1002);
    assert!(!followed(&mut back) && awaited(&back).is_empty());
    let restored = stored_after(&w, &back).meta.unwrap().restored.unwrap();
    assert!(restored.superseded.is_empty(), "{restored:?}");
}

#[test]
fn numbers_of_what_is_over_are_passed_over() {
    let mut w = World::small();
    w.node("n2", hardware(4, 1, 4000, 0));
    let waits = w.batch("1", |s| s.hold = true);
    let mut back = w.of_backup(w.writes.len());
    back.request(actor(1000), Request::Release(vec![JobSelector::Job(waits)])).unwrap();
    // Taken while nothing starts: it may have an id that the lost controller had given to another.
    let early = back.batch("2", |_| {});
    back.highest = Highest { job: JobId(50_000), attempt: Attempt(140), step: 1_700, lost: false };
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    back.highest = Highest { job: JobId(60_000), attempt: Attempt(3), step: 1_200, lost: false };
    back.hello("n2", "boot", hardware(4, 1, 4000, 0), vec![], vec![]);
    assert_eq!(back.core.why_held(), None);
    assert_eq!(back.starts(), [batch_key(waits, 141), batch_key(early, 141)]);
    let new = back.batch("3", |_| {});
    assert_eq!((new, back.starts()), (JobId(60_001), vec![batch_key(JobId(60_001), 0)]));
    let restored = stored_after(&w, &back).meta.unwrap().restored.unwrap();
    assert_eq!((restored.before, restored.attempts, restored.steps), (JobId(60_001), 141, 1_701));
}

#[test]
fn the_number_of_a_job_that_is_over_is_judged_by_an_administrator_where_it_cannot_be() {
    let w = World::small();
    let mut back = w.of_backup(w.writes.len());
    back.highest =
        Highest { job: JobId(u32::MAX - 5), attempt: Attempt(u32::MAX), step: u32::MAX, lost: false };
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    let why = back.core.why_held().unwrap();
    assert!(why.contains(&(u32::MAX - 5).to_string()), "{why}");
    set(&mut back, "n1", NodeStateChange::Down);
    set(&mut back, "n1", NodeStateChange::Resume);
    let new = back.batch("1", |_| {});
    assert!(new.0 < 20_000, "{new}");
    assert_eq!(back.starts(), [batch_key(new, 0)]);
    let restored = stored_after(&w, &back).meta.unwrap().restored.unwrap();
    assert_eq!((restored.attempts, restored.steps), (100, 1_000));
}

#[test]
fn where_a_node_does_not_know_its_numbers_any_more_they_go_on_further_above() {
    let mut w = World::small();
    w.node("n2", hardware(4, 1, 4000, 0));
    let mut back = w.of_backup(w.writes.len());
    back.highest = Highest { job: JobId(5), lost: true, ..Highest::default() };
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    // Once, however many nodes say so: a million ids are what all of them are believed.
    back.hello("n2", "boot", hardware(4, 1, 4000, 0), vec![], vec![]);
    assert_eq!(back.core.why_held(), None);
    assert_eq!(back.batch("1", |_| {}), JobId(1_010_001));
    let restored = stored_after(&w, &back).meta.unwrap().restored.unwrap();
    assert!(restored.attempts > 1_100 && restored.steps > 2_000, "{restored:?}");
    // In a cluster that was not restored nothing is passed over.
    let mut never = World::small();
    never.highest.lost = true;
    never.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    assert_eq!(never.batch("1", |_| {}), JobId(1));
}

#[test]
fn a_run_that_its_node_knows_as_over_runs_as_another_one() {
    let mut w = World::small();
    let (batch, interactive) = (w.batch("1", |_| {}), w.submit(job(JobKind::Run, "2")).unwrap());
    assert_eq!(w.starts().len(), 2);
    w.gone("n1", batch, 0);
    assert_eq!(w.starts(), [batch_key(batch, 1)]);
    // Nobody waits for ever.
    w.gone("n1", interactive, 0);
    assert_eq!(w.state(interactive), JobState::NodeFail);
    // What is told of a run that is not there any more changes nothing.
    w.gone("n1", batch, 0);
    assert_eq!((w.state(batch), w.starts()), (JobState::Running, vec![]));
    // Nor does a node fill the log that says so of each.
    for attempt in 1..100 {
        w.gone("n1", batch, attempt);
        assert_eq!(w.starts(), [batch_key(batch, attempt + 1)]);
    }
    let about = |write: &&Write| matches!(write, Write::AddAudit(row) if row.what.starts_with("n1 knows"));
    assert_eq!(w.writes.iter().filter(about).count(), 61);
}

#[test]
fn ids_that_nodes_report_are_passed_over() {
    let w = World::small();
    let mut back = w.of_backup(w.writes.len());
    let (near, far) = (JobId(50_000), JobId(u32::MAX - 5));
    let jobs = vec![(near, Attempt(0)), (far, Attempt(0))];
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], jobs);
    assert!(ended(&back, near) && ended(&back, far));
    back.gone("n1", near, 0);
    back.gone("n1", far, 0);
    // Nobody but an administrator can say what the other one is: until then all wait, and it is said why.
    let new = back.batch("1", |_| {});
    assert_eq!((new, back.info(new).reason), (JobId(50_001), Reason::Restored));
    let why = back.core.why_held().unwrap();
    assert!(why.contains("n1") && why.contains(&far.to_string()) && why.contains("State=RESUME"), "{why}");
    // It is on record: another controller waits, too.
    let config = CoreConfig::new(&Config::default()).unwrap();
    let again = Cluster::restore(config, Term(1002), stored_after(&w, &back), back.now).unwrap();
    assert_eq!(again.why_held(), Some(why));
    set(&mut back, "n1", NodeStateChange::Down);
    assert_eq!(back.core.why_held(), None);
    set(&mut back, "n1", NodeStateChange::Resume);
    assert_eq!(back.state(new), JobState::Running);
    assert_eq!(back.batch("2", |_| {}), JobId(50_002));
}

#[test]
fn an_id_that_an_administrator_confirms_is_passed_over() {
    let w = World::small();
    let mut back = w.of_backup(w.writes.len());
    let far = JobId(3_000_000);
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![(far, Attempt(0))]);
    set(&mut back, "n1", NodeStateChange::Resume);
    assert_eq!(awaited(&back), ["n1"], "what should not be there is not gone yet");
    back.gone("n1", far, 0);
    let new = back.batch("1", |_| {});
    assert_eq!((new, back.state(new)), (JobId(3_000_001), JobState::Running));
}

/// What the administrators' log says of jobs far above those of the backup.
fn told_of_far(w: &World) -> Vec<&str> {
    let entries = w.writes.iter().filter_map(|write| match write {
        Write::AddAudit(row) => Some(row.what.as_str()),
        _ => None,
    });
    entries.filter(|what| what.contains("tells of job")).collect()
}

#[test]
fn a_newcomer_long_after_a_restore_does_not_use_ids_up() {
    let w = World::small();
    let mut back = w.of_backup(w.writes.len());
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    assert_eq!(back.core.why_held(), None);
    back.now = back.now + Span::from_mins(365 * 24 * 60);
    back.event(Event::Tick);
    // However old the backup is: it can know of little that is lost.
    for (node, job) in [("n2", u32::MAX - 3), ("n3", 900_000), ("n4", 1_800_000)] {
        back.highest.job = JobId(job);
        back.hello(node, "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    }
    assert_eq!(back.core.why_held(), None, "one machine stops all others, long after");
    let new = back.batch("1", |_| {});
    assert_eq!(new, JobId(900_001));
    let told = told_of_far(&back);
    assert!(told.len() == 2 && told[0].contains("n2") && told[1].contains("n4"), "{told:?}");
    assert!(told[0].contains(&(u32::MAX - 3).to_string()) && told[0].contains("no notice"), "{told:?}");
}

#[test]
fn nodes_that_are_waited_for_use_no_ids_up_together() {
    let mut w = World::small();
    let names = ["n1", "n2", "n3", "n4", "n5", "n6", "n7"];
    for name in &names[1..] {
        w.node(name, hardware(4, 1, 4000, 0));
    }
    let mut back = w.of_backup(w.writes.len());
    // A week later.
    back.now = back.now + Span::from_mins(7 * 24 * 60);
    back.event(Event::Tick);
    for (at, name) in names.into_iter().enumerate() {
        // Each a little less than a million above the one before.
        back.highest.job = JobId(900_000 * (u32::try_from(at).unwrap() + 1));
        back.hello(name, "boot", hardware(4, 1, 4000, 0), vec![], vec![]);
    }
    assert_eq!(awaited(&back), names[1..]);
    assert_eq!(told_of_far(&back).len(), 6);
    assert_eq!(back.batch("1", |_| {}), JobId(900_001));
    // What an administrator confirms counts, and is on record; another node below it is believed then, and none above.
    set(&mut back, "n3", NodeStateChange::Resume);
    assert_eq!(back.batch("2", |_| {}), JobId(2_700_001));
    let confirmed =
        |write: &Write| matches!(write, Write::AddAudit(row) if row.what.contains("go on above 2700000"));
    assert!(back.writes.iter().any(confirmed));
    for name in ["n2", "n4", "n5", "n6", "n7"] {
        set(&mut back, name, NodeStateChange::Down);
    }
    assert_eq!(back.core.why_held(), None);
    assert_eq!(back.batch("3", |_| {}), JobId(2_700_002));
}

fn unknown(w: &mut World, node: &str, of: u8) {
    let (node, key, from) = (NodeName::from(node), KeyId::of_digest([of; 32]), "10.0.0.7".to_string());
    w.event(Event::Unknown { node, key, from });
}

/// A cluster of a backup that does not have n2, on which a job runs that waited then; and that job.
fn without_a_machine() -> (World, JobId) {
    let mut w = World::small();
    let waits = w.batch("1", |s| s.hold = true);
    let mut back = w.of_backup(w.writes.len());
    unknown(&mut back, "n2", 2);
    back.request(actor(1000), Request::Release(vec![JobSelector::Job(waits)])).unwrap();
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    (back, waits)
}

#[test]
fn a_machine_that_joined_after_the_backup_is_asked_about_and_then_awaited() {
    let (mut back, waits) = without_a_machine();
    assert_eq!((awaited(&back), back.starts()), (vec!["n2".to_string()], vec![]));
    let why = back.core.why_held().unwrap();
    for word in
        ["n2", KeyId::of_digest([2; 32]).short(), "10.0.0.7", "berth node approve n2", "berth node remove n2"]
    {
        assert!(why.contains(word), "{why}");
    }
    back.request(actor(0), Request::ApproveMember { name: "n2".into() }).unwrap();
    let member = back.core.snapshot().member_by_key(&KeyId::of_digest([2; 32])).unwrap();
    assert_eq!((member.name.0.as_str(), member.state), ("n2", MemberState::Approved));
    let on_record = back.writes.iter().any(|w| matches!(w, Write::PutMember(row) if row.name.0 == "n2"));
    assert!(on_record);
    assert_eq!(awaited(&back), ["n2"], "what it runs is still to be told");
    // It is no node yet, of which anybody could say that it is down.
    let why = back.core.why_held().unwrap();
    assert!(
        why.contains("record: n2;") && why.contains("berth node remove") && !why.contains("State="),
        "{why}"
    );
    back.hello("n2", "boot", hardware(4, 1, 4000, 2), vec![], vec![(waits, Attempt(0))]);
    assert!(ended(&back, waits));
    assert_eq!(back.starts(), []);
    back.gone("n2", waits, 0);
    assert_eq!(awaited(&back), Vec::<String>::new());
    let starts = back.starts();
    assert_eq!((starts.len(), starts[0].job), (1, waits));
}

#[test]
fn a_machine_that_was_approved_and_does_not_come_is_removed() {
    let (mut back, waits) = without_a_machine();
    back.request(actor(0), Request::ApproveMember { name: "n2".into() }).unwrap();
    back.request(actor(0), Request::RemoveMember { name: "n2".into(), force: false }).unwrap();
    assert_eq!((back.core.why_held(), back.starts()), (None, vec![batch_key(waits, 100)]));
}

#[test]
fn a_machine_that_joins_as_a_login_node_has_nothing_to_tell() {
    for role in [MemberRole::Login, MemberRole::Compute] {
        let (mut back, waits) = without_a_machine();
        let (id, hash) = ("aaaaaaaa".to_string(), "0".repeat(64));
        let make = Request::CreateToken {
            id: id.clone(),
            hash: hash.clone(),
            role,
            ttl: Span::from_mins(60),
            uses: 1,
            approval: false,
            administrators: false,
        };
        back.request(actor(0), make).unwrap();
        let (key, from) = (KeyId::of_digest([9; 32]), "10.0.0.7".to_string());
        back.request(actor(0), Request::Enrol { token: id, hash, key, name: "n2".into(), from }).unwrap();
        if role == MemberRole::Login {
            assert_eq!((back.core.why_held(), back.starts()), (None, vec![batch_key(waits, 100)]));
        } else {
            assert_eq!((awaited(&back), back.starts()), (vec!["n2".to_string()], vec![]));
        }
    }
}

#[test]
fn a_machine_that_is_given_up_is_not_asked_about_again() {
    let (mut back, waits) = without_a_machine();
    back.request(actor(0), Request::RemoveMember { name: "n2".into(), force: false }).unwrap();
    assert_eq!((back.core.why_held(), back.starts()), (None, vec![batch_key(waits, 100)]));
    unknown(&mut back, "n2", 2);
    assert_eq!(back.core.why_held(), None);
    // One for which nothing waits does not ask.
    unknown(&mut back, "n3", 3);
    assert_eq!(back.core.why_held(), None);
}

/// What the administrators' log says of machines that came and are not in the backup.
fn asked_about(w: &World) -> usize {
    let asked =
        |write: &&Write| matches!(write, Write::AddAudit(row) if row.what.starts_with("waits for a word"));
    w.writes.iter().filter(asked).count()
}

#[test]
fn one_old_certificate_is_asked_about_once_however_it_spells_its_name() {
    let w = World::small();
    let mut back = w.of_backup(w.writes.len());
    for (name, key) in [("n2", 2), ("N2", 2), ("n2", 2), ("n3", 2), ("N1", 4)] {
        unknown(&mut back, name, key);
    }
    assert_eq!((awaited(&back), asked_about(&back)), (vec!["n1".to_string(), "n2".to_string()], 1));
    back.request(actor(0), Request::RemoveMember { name: "n2".into(), force: false }).unwrap();
    for (name, key) in [("N2", 2), ("n2", 2), ("N1", 4)] {
        unknown(&mut back, name, key);
    }
    assert_eq!((awaited(&back), asked_about(&back)), (vec!["n1".to_string()], 1));
}

#[test]
fn a_machine_that_came_with_several_keys_is_not_approved() {
    let (mut back, _) = without_a_machine();
    // As somebody with an old certificate may spell it.
    unknown(&mut back, "N2", 3);
    let (own, old) = (KeyId::of_digest([2; 32]), KeyId::of_digest([3; 32]));
    let why = back.core.why_held().unwrap();
    assert!(why.contains(own.short()) && why.contains(old.short()) && !why.contains("node approve"), "{why}");
    let refused = back.request(actor(0), Request::ApproveMember { name: "n2".into() }).unwrap_err();
    assert_eq!(refused.code, RefusalCode::WrongState);
    assert!(
        refused.message.contains("2 keys") && refused.message.contains("berth node remove n2"),
        "{refused}"
    );
    for key in 4..100 {
        unknown(&mut back, "n2", key);
    }
    let refused = back.request(actor(0), Request::ApproveMember { name: "n2".into() }).unwrap_err();
    assert!(refused.message.contains("8 keys"), "{refused}");
    assert_eq!(asked_about(&back), 1);
}

#[test]
fn nothing_starts_before_machines_can_have_come_of_which_the_backup_says_nothing() {
    for comes in [false, true] {
        let mut w = World::small();
        let waits = w.batch("1", |s| s.hold = true);
        let mut back = w.just_restored(w.writes.len());
        let begin = back.now;
        back.request(actor(1000), Request::Release(vec![JobSelector::Job(waits)])).unwrap();
        back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
        // All that are known have come.
        assert_eq!(awaited(&back), Vec::<String>::new());
        assert_eq!((back.info(waits).reason, back.starts()), (Reason::Restored, vec![]));
        assert!(back.core.why_held().unwrap().contains("first 30 seconds"));
        // It is on record: a controller that starts meanwhile does not begin anew.
        let again = |later: i64| {
            let config = CoreConfig::new(&Config::default()).unwrap();
            let at = begin + Span::from_secs(later);
            Cluster::restore(config, Term(1002), stored_after(&w, &back), at).unwrap().why_held()
        };
        assert!(again(29).is_some());
        assert_eq!(again(30), None);

        back.later(Span::from_secs(15));
        let asked = back.clock();
        back.heartbeat("n1", asked);
        if comes {
            unknown(&mut back, "n2", 2);
        }
        back.later(Span(Span::from_secs(15).0 - 1));
        assert_eq!(back.starts(), []);
        back.later(Span(1));
        if comes {
            assert_eq!((awaited(&back), back.starts()), (vec!["n2".to_string()], vec![]));
            let why = back.core.why_held().unwrap();
            assert!(why.contains("n2") && !why.contains("seconds"), "{why}");
            back.request(actor(0), Request::RemoveMember { name: "n2".into(), force: false }).unwrap();
        }
        assert_eq!((back.core.why_held(), back.starts()), (None, vec![batch_key(waits, 100)]));
    }
}

/// The store came to its place long before anybody can connect: somebody else has the port.
#[test]
fn the_time_in_which_machines_can_come_begins_when_the_port_listens() {
    let mut w = World::small();
    let waits = w.batch("1", |s| s.hold = true);
    let (id, hash) = ("aaaaaaaa".to_string(), "0".repeat(64));
    let make = Request::CreateToken {
        id: id.clone(),
        hash: hash.clone(),
        role: MemberRole::Login,
        ttl: Span::from_mins(60),
        uses: 1,
        approval: false,
        administrators: false,
    };
    w.request(actor(0), make).unwrap();
    let (key, from) = (KeyId::of_digest([9; 32]), "10.0.0.7".to_string());
    w.request(actor(0), Request::Enrol { token: id, hash, key, name: "login".into(), from }).unwrap();
    let mut back = w.just_restored(w.writes.len());
    back.request(actor(1000), Request::Release(vec![JobSelector::Job(waits)])).unwrap();
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    back.later(Span::from_secs(600));
    let asked = back.clock();
    back.heartbeat("n1", asked);
    assert_eq!((awaited(&back), back.starts()), (vec![], vec![]));
    let why = back.core.why_held().unwrap();
    assert!(why.contains("before the port for other machines has been open for 30 seconds"), "{why}");
    // So it is for a controller that starts meanwhile, and for one whose port is closed again before that time is over.
    let again = |back: &World, later: i64| {
        let config = CoreConfig::new(&Config::default()).unwrap();
        let at = back.now + Span::from_secs(later);
        Cluster::restore(config, Term(1002), stored_after(&w, back), at).unwrap().why_held()
    };
    assert_eq!(again(&back, 600), Some(why.clone()));
    back.event(Event::Listening);
    let left = back.core.why_held().unwrap();
    assert!(left.contains("first 30 seconds"), "{left}");
    assert_eq!(again(&back, 29), Some(why));
    assert_eq!(again(&back, 30), None);
    // What is told once more changes nothing.
    back.later(Span::from_secs(15));
    back.event(Event::Listening);
    back.later(Span(Span::from_secs(15).0 - 1));
    assert_eq!(back.starts(), []);
    back.later(Span(1));
    assert_eq!((back.core.why_held(), back.starts()), (None, vec![batch_key(waits, 100)]));
}

#[test]
fn what_was_said_of_a_machine_another_controller_does_not_ask_again() {
    let w = World::small();
    let mut back = w.of_backup(w.writes.len());
    unknown(&mut back, "n2", 2);
    unknown(&mut back, "n3", 3);
    back.request(actor(0), Request::ApproveMember { name: "n3".into() }).unwrap();
    for name in ["n2", "n3"] {
        back.request(actor(0), Request::RemoveMember { name: name.into(), force: false }).unwrap();
    }
    let why = back.core.why_held().unwrap();
    assert!(why.contains("n1") && !why.contains("n2") && !why.contains("n3"), "{why}");
    let config = CoreConfig::new(&Config::default()).unwrap();
    back.core = Cluster::restore(config, Term(1002), stored_after(&w, &back), back.now).unwrap();
    for (name, key) in [("n2", 2), ("N2", 2), ("n3", 3)] {
        unknown(&mut back, name, key);
    }
    assert_eq!((awaited(&back), asked_about(&back)), (vec!["n1".to_string()], 2));
    assert_eq!(back.core.why_held(), Some(why));
    // With the last node that is awaited this is forgotten.
    back.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    assert_eq!(back.core.why_held(), None);
    let restored = stored_after(&w, &back).meta.unwrap().restored.unwrap();
    assert!(restored.awaited.is_empty(), "{restored:?}");
}
