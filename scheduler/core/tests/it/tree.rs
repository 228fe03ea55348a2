//! A step over many nodes is launched by branches: who carries to whom, who is told directly, and when the core does not wait any longer.

use crate::common::*;
use berth_model::carry::{CarriedTo, Registration};
use berth_model::config::Config;
use berth_model::exchange::FromPeers;
use berth_model::feature::{CARRY, Feature};
use berth_model::ids::*;
use berth_model::launch::StepPhase;
use berth_model::link::{EndCause, Start, ToAgent};
use berth_model::request::*;
use berth_model::spec::*;
use berth_model::state::{ExitStatus, JobState};
use berth_model::time::Span;
use berth_model::x11::{X11Nodes, X11Spec};
use std::collections::BTreeMap;

fn config() -> Config {
    Config { launch_tree_from: 4, launch_tree_width: 3, ..Config::default() }
}

/// Nodes n1 to n8, each with a port of its own.
fn eight(config: &Config) -> World {
    let mut w = World::new(config);
    for at in 1..=8 {
        let name = format!("n{at}");
        w.node(&name, hardware(4, 1, 4000 + at, 0));
        has_port(&mut w, &name);
    }
    w.sent.clear();
    w
}

fn has_port(w: &mut World, name: &str) {
    let (address, key) = (format!("{name}:7818"), format!("key of {name}"));
    let said = FromPeers::Ready { address, key, streams: true, connected: vec![] };
    w.tell(name, |session| berth_model::link::FromAgent::Peers { session, said });
}

fn without(feature: &str) -> Vec<String> {
    Feature::known().into_iter().filter(|known| known != feature).collect()
}

/// A job of `srun` over so many nodes.
fn wide(w: &mut World, count: u32, change: impl FnOnce(&mut JobSpec)) -> JobId {
    let mut spec = job(JobKind::Run, "wide");
    (spec.resources.min_nodes, spec.resources.max_nodes, spec.resources.tasks) =
        (count, Some(count), Some(count));
    change(&mut spec);
    w.submit(spec).unwrap()
}

/// Names of nodes to which Starts were sent by their own links, since the last look.
fn direct(w: &mut World) -> Vec<String> {
    let sent = std::mem::take(&mut w.sent);
    let starts = sent.into_iter().filter_map(|m| if let ToAgent::Start(s) = m { Some(*s) } else { None });
    starts.map(|start| start.launch.node.0).collect()
}

/// The heads of branches, with those to whom they carry, since the last look.
fn branches(w: &mut World) -> Vec<(String, Vec<String>)> {
    let names = |to: &[CarriedTo]| to.iter().map(|to| to.part.part.node.0.clone()).collect();
    let all = std::mem::take(&mut w.carried);
    all.iter().map(|(_, start, to)| (start.launch.node.0.clone(), names(to))).collect()
}

fn branch(head: &str, to: &[&str]) -> (String, Vec<String>) {
    (head.to_string(), to.iter().map(|name| (*name).to_string()).collect())
}

/// All Starts, by node, however they get there.
fn starts(w: &World) -> BTreeMap<String, Start> {
    let direct =
        w.sent.iter().filter_map(|m| if let ToAgent::Start(s) = m { Some((**s).clone()) } else { None });
    let carried = w.carried.iter().flat_map(|(_, start, to)| {
        let others = to.iter().map(move |to| {
            let mut own = start.clone();
            to.part.part.clone().give(&mut own);
            own
        });
        std::iter::once(start.clone()).chain(others)
    });
    direct.chain(carried).map(|start| (start.launch.node.0.clone(), start)).collect()
}

fn key(job: JobId) -> StepKey {
    StepKey { job, attempt: Attempt(0), step: StepId::Number(0) }
}

#[test]
fn heads_carry_to_their_branches_and_a_narrow_step_knows_nothing_of_it() {
    let mut w = eight(&config());
    wide(&mut w, 3, |_| {});
    assert_eq!((direct(&mut w).len(), branches(&mut w).len()), (3, 0));
    let mut w = eight(&config());
    let id = wide(&mut w, 8, |_| {});
    assert!(direct(&mut w).is_empty());
    for (connection, start, to) in &w.carried {
        let (own, _) = w.sessions[&start.launch.node];
        assert_eq!(*connection, own, "a head is told by its own link");
        for to in to {
            let node = &to.part.part.node;
            assert_eq!(
                (to.address.clone(), to.key.clone()),
                (format!("{node}:7818"), format!("key of {node}"))
            );
            let (session, asked, boot_id) = (w.sessions[node].1, w.clock(), "boot".to_string());
            assert_eq!(to.part.to, Registration { session, asked, boot_id });
        }
    }
    let three = [branch("n1", &["n2", "n3"]), branch("n4", &["n5", "n6"]), branch("n7", &["n8"])];
    assert_eq!(branches(&mut w), three);
    // Each confirms by itself, and nobody is told once more.
    for at in 1..=8 {
        w.phase(&format!("n{at}"), key(id), StepPhase::Running);
    }
    w.later(Span::from_secs(30));
    assert!(direct(&mut w).is_empty() && branches(&mut w).is_empty());
    // Who wants none has none.
    let mut w = eight(&Config { launch_tree_from: 0, ..config() });
    wide(&mut w, 8, |_| {});
    assert_eq!((direct(&mut w).len(), branches(&mut w).len()), (8, 0));
    // A branch of one needs nobody who carries.
    let mut w = eight(&Config { launch_tree_width: 7, ..config() });
    wide(&mut w, 8, |_| {});
    assert_eq!((direct(&mut w), branches(&mut w).len()), (vec!["n8".to_string()], 1));
}

#[test]
fn what_is_carried_says_to_each_node_what_it_would_have_been_told_directly() {
    let of = |config: &Config| {
        let mut w = eight(config);
        wide(&mut w, 7, |spec| {
            spec.resources.tasks = Some(12);
            spec.lost_after = Some(Span::from_secs(600));
        });
        starts(&w)
    };
    let (tree, direct) = (of(&config()), of(&Config { launch_tree_from: 0, ..config() }));
    assert_eq!(tree.len(), 7);
    assert_eq!(tree, direct);
    let shares = tree.values().map(|start| start.launch.share.cpus.len()).collect::<Vec<_>>();
    assert!(shares.iter().any(|cpus| *cpus != shares[0]), "they differ by what they have: {shares:?}");
    assert!(tree.values().all(|start| start.lease.is_some()));
}

#[test]
fn who_does_not_confirm_within_a_second_is_told_directly() {
    let mut w = eight(&config());
    let id = wide(&mut w, 8, |_| {});
    branches(&mut w);
    for node in ["n2", "n5"] {
        w.phase(node, key(id), StepPhase::Preparing(None));
    }
    w.exited("n6", key(id), ExitStatus::OK);
    w.later(Span(999_999));
    assert!(direct(&mut w).is_empty());
    w.later(Span(1));
    assert_eq!(direct(&mut w), ["n3", "n8"]);
    // As of any Start, after ten seconds once more; that of heads, too, which came by their links.
    w.later(Span::from_secs(5));
    assert!(direct(&mut w).is_empty());
    w.later(Span::from_secs(5));
    assert_eq!(direct(&mut w), ["n1", "n3", "n4", "n7", "n8"]);
    assert!(branches(&mut w).is_empty());
}

#[test]
fn who_cannot_take_part_is_told_directly_from_the_beginning() {
    let mut w = World::new(&config());
    for at in 1..=8u64 {
        w.node(&format!("n{at}"), hardware(4, 1, 4000, 0));
        // n1 and n5 have no port: they only ever connect to the controller.
        if at != 1 && at != 5 {
            has_port(&mut w, &format!("n{at}"));
        }
    }
    // The agent of n3 is of a version before. n4 has none at the moment.
    w.hello_knowing("n3", hardware(4, 1, 4000, 0), without(CARRY));
    let (connection, _) = w.sessions[&NodeName::from("n4")];
    w.sent.clear();
    let alloc = {
        let mut spec = job(JobKind::Alloc, "all");
        (spec.resources.min_nodes, spec.resources.max_nodes) = (8, Some(8));
        w.submit(spec).unwrap()
    };
    w.event(berth_sched_core::Event::AgentLost { node: "n4".into(), connection });
    let spec = StepSpec { nodes: Some(8), tasks: Some(8), ..step("s") };
    w.request(actor(1000), Request::CreateStep { job: alloc, spec: Box::new(spec) }).unwrap();
    // n8 alone is no branch.
    assert_eq!(direct(&mut w), ["n1", "n3", "n5", "n8"]);
    assert_eq!(branches(&mut w), [branch("n2", &["n6", "n7"])]);
    w.later(Span::from_secs(2));
    assert_eq!(direct(&mut w), ["n6", "n7"]);
}

#[test]
fn what_differs_by_more_than_its_part_goes_to_each_node_itself() {
    let mut w = eight(&config());
    let mut spec = job(JobKind::Run, "wide");
    (spec.resources.min_nodes, spec.resources.max_nodes, spec.resources.tasks) = (8, Some(8), Some(8));
    let x11 = X11Spec { display: ":0".into(), nodes: X11Nodes::First, host: "n1".into(), carried: true };
    let first = StepSpec { x11: Some(x11), ..step("first") };
    let body = Request::Submit {
        spec: Box::new(spec),
        payload: Payload::default(),
        first_step: Some(Box::new(first)),
        test_only: false,
    };
    w.request(actor(1000), body).unwrap();
    assert_eq!((direct(&mut w).len(), branches(&mut w).len()), (8, 0), "a display's cookie is its machine's");
}

#[test]
fn a_step_that_is_ended_on_its_way_is_started_first_where_it_is_not_yet() {
    let mut w = eight(&config());
    let mut spec = job(JobKind::Alloc, "all");
    (spec.resources.min_nodes, spec.resources.max_nodes) = (8, Some(8));
    let id = w.submit(spec).unwrap();
    let spec = StepSpec { nodes: Some(8), tasks: Some(8), ..step("s") };
    let Ok(Response::StepCreated { key, .. }) =
        w.request(actor(1000), Request::CreateStep { job: id, spec: Box::new(spec) })
    else {
        panic!()
    };
    assert_eq!(branches(&mut w).len(), 3);
    w.phase("n2", key, StepPhase::Running);
    w.sent.clear();
    let cancel =
        CancelRequest { jobs: vec![(JobSelector::Job(id), Some(key.step))], ..CancelRequest::default() };
    w.request(actor(1000), Request::Cancel(cancel)).unwrap();
    // What ends it comes behind what starts it, on the same link; what is carried behind both changes nothing.
    let last_start = w.sent.iter().rposition(|m| matches!(m, ToAgent::Start(_)));
    let end = |m: &ToAgent| matches!(m, ToAgent::Terminate { cause: EndCause::Cancelled, .. });
    let first_end = w.sent.iter().position(end);
    assert!(last_start.unwrap() < first_end.unwrap());
    assert_eq!(direct(&mut w), ["n3", "n5", "n6", "n8"]);
    w.later(Span::from_secs(2));
    assert!(direct(&mut w).is_empty(), "it was done with that");
    for n in 1..=8 {
        w.exited(&format!("n{n}"), key, ExitStatus { code: 0, signal: 15 });
    }
    w.later(Span::from_secs(30));
    assert!(direct(&mut w).is_empty());
    assert_eq!(w.state(id), JobState::Running);
}

#[test]
fn a_signal_comes_behind_what_it_is_for() {
    for step in [None, Some(StepId::Number(0))] {
        let mut w = eight(&config());
        let id = wide(&mut w, 8, |_| {});
        assert_eq!(branches(&mut w).len(), 3);
        w.phase("n2", key(id), StepPhase::Running);
        w.sent.clear();
        let jobs = vec![(JobSelector::Job(id), step)];
        let request = CancelRequest { jobs, signal: Some(10), ..CancelRequest::default() };
        w.request(actor(1000), Request::Cancel(request)).unwrap();
        let is_signal = |m: &&ToAgent| matches!(m, ToAgent::Signal { signal: 10, .. });
        assert_eq!(w.sent.iter().filter(is_signal).count(), 8);
        let last_start = w.sent.iter().rposition(|m| matches!(m, ToAgent::Start(_)));
        let first_signal = w.sent.iter().position(|m| is_signal(&m));
        assert!(last_start.unwrap() < first_signal.unwrap());
        assert_eq!(direct(&mut w), ["n3", "n5", "n6", "n8"]);
        w.later(Span::from_secs(2));
        assert!(direct(&mut w).is_empty(), "it was done with that");
    }
}

/// Who does not have the step yet would say that it has ended, and whoever waits for it would wait for an exit that is on its way.
#[test]
fn agents_are_asked_what_has_ended_behind_what_they_are_to_start() {
    let mut w = eight(&config());
    let mut spec = job(JobKind::Alloc, "all");
    (spec.resources.min_nodes, spec.resources.max_nodes, spec.resources.exclusive) = (8, Some(8), true);
    let id = w.submit(spec).unwrap();
    let spec = StepSpec { nodes: Some(8), tasks: Some(8), ..step("s") };
    let Ok(Response::StepCreated { key, .. }) =
        w.request(actor(1000), Request::CreateStep { job: id, spec: Box::new(spec) })
    else {
        panic!()
    };
    assert_eq!(branches(&mut w).len(), 3);
    w.phase("n2", key, StepPhase::Running);
    w.sent.clear();
    let next = StepSpec { nodes: Some(1), tasks: Some(1), immediate: Some(Span(0)), ..step("next") };
    let waits = w.request_later(actor(1000), Request::CreateStep { job: id, spec: Box::new(next) });
    let last_start = w.sent.iter().rposition(|m| matches!(m, ToAgent::Start(_)));
    let first_question = w.sent.iter().position(|m| matches!(m, ToAgent::LookForEnds { .. }));
    assert!(last_start.unwrap() < first_question.unwrap());
    let ask =
        w.sent.iter().find_map(|m| if let ToAgent::LookForEnds { ask, .. } = m { Some(*ask) } else { None });
    assert_eq!(direct(&mut w), ["n3", "n5", "n6", "n8"]);
    for n in 1..=8 {
        w.not_ended(&format!("n{n}"), ask.unwrap(), vec![key]);
    }
    let refused = w.replies.remove(&waits);
    assert!(matches!(&refused, Some(Err(why)) if why.code == RefusalCode::Busy), "{refused:?}");
    w.later(Span::from_secs(2));
    assert!(direct(&mut w).is_empty(), "it was done with that");
}

#[test]
fn a_job_that_ends_on_its_way_is_not_started_any_more() {
    let mut w = eight(&config());
    let id = wide(&mut w, 8, |_| {});
    branches(&mut w);
    let cancel = CancelRequest { jobs: vec![(JobSelector::Job(id), None)], ..CancelRequest::default() };
    w.request(actor(1000), Request::Cancel(cancel)).unwrap();
    assert_eq!(w.sent.iter().filter(|m| matches!(m, ToAgent::EndJob { .. })).count(), 8);
    w.later(Span::from_secs(5));
    assert!(direct(&mut w).is_empty());
    for n in 1..=8 {
        w.gone(&format!("n{n}"), id, 0);
    }
    assert_eq!(w.state(id), JobState::Cancelled);
}

#[test]
fn who_registers_again_is_told_directly_and_at_once() {
    let mut w = eight(&config());
    let id = wide(&mut w, 8, |_| {});
    branches(&mut w);
    w.sent.clear();
    w.hello("n5", "boot", hardware(4, 1, 4005, 0), vec![], vec![]);
    assert_eq!(direct(&mut w), ["n5"]);
    assert_eq!(w.state(id), JobState::Running);
}
