//! GPUs of jobs that run: what of their use is told, jobs that leave them idle, and GPUs that are fenced under their jobs or after them.

use crate::common::*;
use berth_model::config::Config;
use berth_model::gpus::GpusConfig;
use berth_model::hardware::Hardware;
use berth_model::ids::{Attempt, JobId, StepKey};
use berth_model::launch::{GpuUsage, StepPhase, Usage};
use berth_model::link::{FromAgent, GpuFault, GpusBusy, ToAgent};
use berth_model::request::{Request, Response};
use berth_model::spec::JobKind;
use berth_model::state::{ExitStatus, JobState, Reason};
use berth_model::time::Span;
use berth_model::tres::GresKey;
use berth_sched_core::{CoreConfig, Event, RequestId};

fn config() -> Config {
    let gpus = GpusConfig { idle_warn_minutes: 30, idle_release_minutes: 10, ..GpusConfig::default() };
    Config { gpus, ..Config::default() }
}

fn world(config: &Config, nodes: &[&str]) -> World {
    let mut w = World::new(config);
    nodes.iter().for_each(|node| w.node(node, hardware(4, 1, 8000, 2)));
    w
}

fn wants(w: &mut World, name: &str, nodes: u32) -> JobId {
    w.batch(name, |s| {
        s.resources.min_nodes = nodes;
        s.resources.gres.insert(GresKey { name: "gpu".into(), kind: None }, 2);
    })
}

/// A heartbeat with the highest utilisation of each run's GPUs.
fn beats(w: &mut World, node: &str, used: Vec<(StepKey, Usage)>, busy: &[(JobId, u32)]) {
    let gpus = busy
        .iter()
        .map(|(job, percent)| GpusBusy { job: *job, attempt: Attempt(0), percent: *percent })
        .collect();
    let asked = w.clock();
    w.tell(node, |session| FromAgent::Heartbeat {
        session,
        load: 0,
        free_memory: 0,
        troubles: vec![],
        drift: vec![],
        asked,
        used,
        gpus,
    });
}

/// Minutes in which nodes say the same every ten seconds.
fn minutes(w: &mut World, n: i64, says: &[(&str, JobId, u32)]) {
    for _ in 0..n * 6 {
        w.later(Span::from_secs(10));
        says.iter().for_each(|(node, job, percent)| beats(w, node, vec![], &[(*job, *percent)]));
    }
}

fn said(w: &mut World) -> Vec<(StepKey, String)> {
    let sent = std::mem::take(&mut w.sent);
    sent.into_iter()
        .filter_map(|m| if let ToAgent::Say { key, text } = m { Some((key, text)) } else { None })
        .collect()
}

#[test]
fn a_job_that_leaves_its_gpus_idle_is_warned_and_then_ended() {
    let mut w = world(&config(), &["n1"]);
    let job = wants(&mut w, "a", 1);
    w.phase("n1", batch_key(job, 0), StepPhase::Running);
    said(&mut w);
    minutes(&mut w, 29, &[("n1", job, 4)]);
    assert_eq!(said(&mut w), []);
    minutes(&mut w, 2, &[("n1", job, 4)]);
    let lines = said(&mut w);
    let [(key, line)] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(*key, batch_key(job, 0));
    assert!(
        line.contains("idle") && line.contains("below 5% for 30 minutes") && line.contains("in 10 minutes"),
        "{line}"
    );
    assert!(w.info(job).notices[0].contains("are idle"), "{:?}", w.info(job).notices);
    minutes(&mut w, 9, &[("n1", job, 0)]);
    assert_eq!((w.state(job), said(&mut w)), (JobState::Running, vec![]));
    minutes(&mut w, 2, &[("n1", job, 0)]);
    let lines = said(&mut w);
    assert!(lines.len() == 1 && lines[0].1.contains("is ended"), "{lines:?}");
    w.exited("n1", batch_key(job, 0), ExitStatus { code: 0, signal: 15 });
    w.gone("n1", job, 0);
    let info = w.info(job);
    assert_eq!((info.state, info.reason), (JobState::Cancelled, Reason::GpusIdle));
    assert!(info.notices.is_empty());
}

#[test]
fn a_policy_in_seconds_is_kept_to_the_second() {
    let gpus = GpusConfig {
        idle_warn_minutes: 1,
        idle_warn_seconds: 30,
        idle_release_seconds: 20,
        ..GpusConfig::default()
    };
    let mut w = world(&Config { gpus, ..Config::default() }, &["n1"]);
    let job = wants(&mut w, "a", 1);
    w.phase("n1", batch_key(job, 0), StepPhase::Running);
    said(&mut w);
    let beat = |w: &mut World, times: u32| {
        for _ in 0..times {
            w.later(Span::from_secs(10));
            beats(w, "n1", vec![], &[(job, 0)]);
        }
    };
    // The first one begins the count.
    beat(&mut w, 9);
    assert_eq!(said(&mut w), []);
    beat(&mut w, 1);
    let lines = said(&mut w);
    let for_long =
        lines.len() == 1 && lines[0].1.contains("below 5% for 90 seconds; the job is ended in 20 seconds");
    assert!(for_long, "{lines:?}");
    beat(&mut w, 1);
    assert_eq!((w.state(job), said(&mut w)), (JobState::Running, vec![]));
    beat(&mut w, 1);
    let lines = said(&mut w);
    assert!(lines.len() == 1 && lines[0].1.contains("for 110 seconds"), "{lines:?}");
    assert_eq!(w.state(job), JobState::Completing);
}

#[test]
fn a_job_that_uses_its_gpus_in_between_is_counted_anew() {
    let mut w = world(&config(), &["n1"]);
    let job = wants(&mut w, "a", 1);
    minutes(&mut w, 35, &[("n1", job, 0)]);
    assert_eq!(said(&mut w).len(), 1);
    minutes(&mut w, 1, &[("n1", job, 5)]);
    assert!(w.info(job).notices.is_empty());
    minutes(&mut w, 29, &[("n1", job, 0)]);
    assert_eq!((said(&mut w), w.state(job)), (vec![], JobState::Running));
    minutes(&mut w, 2, &[("n1", job, 0)]);
    assert_eq!(said(&mut w).len(), 1, "warned once more before it is ended");
}

#[test]
fn a_job_is_idle_only_when_all_of_its_nodes_say_so() {
    let mut w = world(&config(), &["n1", "n2"]);
    let job = wants(&mut w, "a", 2);
    w.phase("n1", batch_key(job, 0), StepPhase::Running);
    // The second node has nothing of the job that runs, and so nothing that could use its GPUs; the first one works.
    minutes(&mut w, 90, &[("n1", job, 80), ("n2", job, 0)]);
    assert_eq!((said(&mut w), w.state(job)), (vec![], JobState::Running));
    // A node that does not say how it is may be at work.
    for _ in 0..90 * 6 {
        w.later(Span::from_secs(10));
        beats(&mut w, "n1", vec![], &[]);
        beats(&mut w, "n2", vec![], &[(job, 0)]);
    }
    assert_eq!((said(&mut w), w.state(job)), (vec![], JobState::Running));
    minutes(&mut w, 45, &[("n1", job, 0), ("n2", job, 0)]);
    assert_eq!(w.info(job).state, JobState::Completing);
}

#[test]
fn a_node_that_was_silent_after_the_warning_may_have_been_at_work() {
    let mut w = world(&config(), &["n1"]);
    let job = wants(&mut w, "a", 1);
    w.phase("n1", batch_key(job, 0), StepPhase::Running);
    minutes(&mut w, 31, &[("n1", job, 0)]);
    assert_eq!(said(&mut w).len(), 1);
    w.later(Span::from_secs(20 * 60));
    minutes(&mut w, 9, &[("n1", job, 0)]);
    assert_eq!((said(&mut w), w.state(job)), (vec![], JobState::Running));
    minutes(&mut w, 2, &[("n1", job, 0)]);
    assert_eq!((said(&mut w).len(), w.state(job)), (1, JobState::Completing));
}

#[test]
fn gpus_that_are_looked_at_seldom_are_idle_all_the_same() {
    let mut seldom = config();
    seldom.gpus.sample_seconds = 90;
    let mut w = world(&seldom, &["n1"]);
    let job = wants(&mut w, "a", 1);
    w.phase("n1", batch_key(job, 0), StepPhase::Running);
    said(&mut w);
    for beat in 0..32 * 6 {
        w.later(Span::from_secs(10));
        let busy = if beat % 9 == 0 { vec![(job, 0)] } else { vec![] };
        beats(&mut w, "n1", vec![], &busy);
    }
    assert_eq!(said(&mut w).len(), 1);
}

/// A job of two components, each with the GPUs of a node; the script runs in the first one. With the nodes.
fn two_components(w: &mut World) -> [(JobId, String); 2] {
    let part = |name: &str| {
        let mut spec = job(JobKind::Batch, name);
        spec.resources.gres.insert(GresKey { name: "gpu".into(), kind: None }, 2);
        (spec, script())
    };
    let components = vec![part("a"), part("a+")];
    let body = Request::SubmitHet { components, test_only: false };
    let Response::Submitted { job, .. } = w.request(actor(1000), body).unwrap() else {
        panic!("not submitted")
    };
    [job.0, job.0 + 1].map(|id| {
        let info = w.info(JobId(id));
        assert_eq!(info.state, JobState::Running);
        (JobId(id), info.layout.nodes[0].0.to_string())
    })
}

#[test]
fn a_component_that_is_idle_does_not_end_those_that_are_at_work() {
    let mut w = world(&config(), &["n1", "n2"]);
    let [(first, here), (second, there)] = two_components(&mut w);
    w.phase(&here, batch_key(first, 0), StepPhase::Running);
    said(&mut w);
    let idle = [(here.as_str(), first, 0), (there.as_str(), second, 0)];
    minutes(&mut w, 90, &[(&here, first, 80), (&there, second, 0)]);
    assert!(said(&mut w).is_empty() && w.info(second).notices.is_empty());
    assert_eq!([first, second].map(|id| w.state(id)), [JobState::Running; 2]);
    minutes(&mut w, 31, &idle);
    assert_eq!([first, second].map(|id| w.info(id).notices.len()), [1; 2]);
    // A warning does not outlast the work of another component.
    minutes(&mut w, 1, &[(&here, first, 80), (&there, second, 0)]);
    assert_eq!([first, second].map(|id| w.info(id).notices.len()), [0; 2]);
    minutes(&mut w, 29, &idle);
    assert_eq!([first, second].map(|id| w.state(id)), [JobState::Running; 2]);
    minutes(&mut w, 12, &idle);
    assert_eq!([first, second].map(|id| w.state(id)), [JobState::Completing; 2]);
}

#[test]
fn another_policy_counts_anew_and_without_one_no_warning_stands() {
    let mut w = world(&config(), &["n1"]);
    let job = wants(&mut w, "a", 1);
    let mut number = 1_000_000;
    let mut reconfigure = |w: &mut World, config: &Config| {
        number += 1;
        let config = Box::new(CoreConfig::new(config).unwrap());
        w.event(Event::Reconfigure { request: RequestId(number), actor: actor(0), config });
        w.replies.remove(&number).unwrap().unwrap();
    };
    minutes(&mut w, 31, &[("n1", job, 0)]);
    assert_eq!(w.info(job).notices.len(), 1);
    reconfigure(&mut w, &Config { max_jobs: 77, ..config() });
    assert_eq!(w.info(job).notices.len(), 1, "it is the same policy");
    reconfigure(&mut w, &Config::default());
    assert!(w.info(job).notices.is_empty());
    minutes(&mut w, 60, &[("n1", job, 0)]);
    reconfigure(&mut w, &config());
    minutes(&mut w, 29, &[("n1", job, 0)]);
    assert!(w.info(job).notices.is_empty());
    minutes(&mut w, 2, &[("n1", job, 0)]);
    assert_eq!((w.info(job).notices.len(), w.state(job)), (1, JobState::Running));
}

#[test]
fn an_allocation_without_a_step_is_idle_and_without_the_policy_nothing_is() {
    let mut w = world(&config(), &["n1"]);
    let mut spec = job(JobKind::Alloc, "a");
    spec.resources.gres.insert(GresKey { name: "gpu".into(), kind: None }, 1);
    let held = w.submit(spec.clone()).unwrap();
    for _ in 0..45 * 6 {
        w.later(Span::from_secs(10));
        beats(&mut w, "n1", vec![], &[]);
    }
    assert_eq!(w.info(held).reason, Reason::GpusIdle);
    let mut w = world(&Config::default(), &["n1"]);
    let held = w.submit(spec).unwrap();
    for _ in 0..45 * 6 {
        w.later(Span::from_secs(10));
        beats(&mut w, "n1", vec![], &[(held, 0)]);
    }
    assert_eq!(w.state(held), JobState::Running);
}

#[test]
fn what_steps_use_is_shown_while_they_run_and_kept_of_those_that_are_lost() {
    let mut w = world(&Config::default(), &["n1", "n2"]);
    let job = wants(&mut w, "a", 1);
    let key = batch_key(job, 0);
    w.phase("n1", key, StepPhase::Running);
    let gpu = GpuUsage { busy_us: 5, watched_us: 10, peak: 70, max_memory: 9, memory_of_all: 0 };
    let used = Usage { user_us: 7, system_us: 1, max_rss: 3, gpu: Some(gpu), ..Usage::default() };
    beats(&mut w, "n1", vec![(key, used)], &[]);
    let shown = w.info(job).steps[0].usage;
    assert_eq!((shown.user_us, shown.max_rss, shown.gpu.map(|g| g.peak)), (7, 3, Some(70)));
    // Its machine starts again: nobody else will say what it used.
    w.hello("n1", "another boot", hardware(4, 1, 8000, 2), vec![], vec![]);
    let row = w.core.snapshot().job(job).map(|info| info.steps);
    let lost = w.writes.iter().rev().find_map(|write| match write {
        berth_sched_core::Write::PutStep(step) if step.key == key => step.nodes[0].exit.clone(),
        _ => None,
    });
    let lost = lost.unwrap_or_else(|| panic!("{row:?}"));
    assert_eq!((lost.usage.user_us, lost.usage.gpu), (7, Some(gpu)));
}

fn two(fault: Option<&str>) -> Hardware {
    let mut hw = hardware(4, 1, 8000, 2);
    hw.gres[1].fault = fault.map(Into::into);
    hw.gres[1].bus = Some("0000:80:00.0".into());
    hw
}

#[test]
fn a_job_is_told_once_when_a_gpu_of_its_own_is_fenced() {
    let mut w = World::new(&Config::default());
    w.node("n1", two(None));
    let job = wants(&mut w, "a", 1);
    let running = || vec![(batch_key(job, 0), StepPhase::Running)];
    w.phase("n1", batch_key(job, 0), StepPhase::Running);
    said(&mut w);
    w.hello("n1", "boot", two(Some("it fell off the bus")), running(), vec![(job, Attempt(0))]);
    let lines = said(&mut w);
    let expected = "*** GPU 1 (0000:80:00.0) of n1 is fenced: it fell off the bus ***";
    assert_eq!(lines, [(batch_key(job, 0), expected.to_string())]);
    assert_eq!(w.info(job).notices, ["GPU 1 (0000:80:00.0) of n1 is fenced: it fell off the bus"]);
    w.hello("n1", "boot", two(Some("it fell off the bus")), running(), vec![(job, Attempt(0))]);
    assert_eq!(said(&mut w), [], "it knows");
    w.hello("n1", "boot", two(None), running(), vec![(job, Attempt(0))]);
    assert!(said(&mut w).is_empty() && w.info(job).notices.is_empty());
}

#[test]
fn a_gpu_that_a_job_left_unfit_is_not_given_to_the_next_one() {
    let mut w = world(&Config::default(), &["n1"]);
    let first = wants(&mut w, "a", 1);
    let second = wants(&mut w, "b", 1);
    assert_eq!((w.state(first), w.state(second)), (JobState::Running, JobState::Pending));
    w.exited("n1", batch_key(first, 0), ExitStatus::OK);
    let fault = GpuFault { index: 1, why: "\x1bprocesses are on it".into() };
    w.tell("n1", |session| FromAgent::JobGone {
        session,
        job: first,
        attempt: Attempt(0),
        steps: vec![],
        epilog: None,
        faults: vec![fault],
    });
    assert_eq!((w.state(first), w.state(second)), (JobState::Completed, JobState::Pending));
    let node = w.core.snapshot().node(&"n1".into()).unwrap();
    assert_eq!(node.hardware.gres[1].fault.as_deref(), Some("processes are on it"));
    // It is free by now.
    w.hello("n1", "boot", hardware(4, 1, 8000, 2), vec![], vec![]);
    assert_eq!(w.state(second), JobState::Running);
}

fn wants_one(w: &mut World, name: &str, requeue: Option<bool>) -> JobId {
    w.batch(name, |s| {
        s.requeue = requeue;
        s.resources.gres.insert(GresKey { name: "gpu".into(), kind: None }, 1);
    })
}

/// The first GPU of a job on its first node.
fn gpu_of(w: &World, job: JobId) -> u32 {
    w.info(job).shares[0].gres[0].index
}

/// A node says that a run cannot begin: these GPUs do not work.
fn cannot_begin(w: &mut World, node: &str, job: JobId, attempt: u32, gpus: &[u32]) {
    let why = format!("GPU {} does not work any more: it fell off the bus", gpus[0]);
    let fault = |index: &u32| GpuFault { index: *index, why: "it fell off the bus".into() };
    let faults = gpus.iter().map(fault).collect();
    w.tell(node, |session| FromAgent::PrologFailed { session, job, attempt: Attempt(attempt), why, faults });
}

/// Which GPUs of a node are fenced, and whether it is drained.
fn fenced(w: &World, node: &str) -> (Vec<u32>, bool) {
    let node = w.core.snapshot().node(&node.into()).unwrap();
    let fenced = node.hardware.gres.iter().filter(|d| d.fault.is_some()).map(|d| d.index);
    (fenced.collect(), node.condition.drain)
}

#[test]
fn a_batch_job_that_cannot_begin_on_a_gpu_goes_to_another_and_is_held_where_that_has_no_end() {
    let mut w = world(&Config::default(), &["n1"]);
    let job = wants_one(&mut w, "a", Some(true));
    let first = gpu_of(&w, job);
    w.sent.clear();
    // Twice: it is repeated.
    cannot_begin(&mut w, "n1", job, 0, &[first]);
    cannot_begin(&mut w, "n1", job, 0, &[first]);
    assert_eq!(fenced(&w, "n1"), (vec![first], false));
    assert!(w.sent.iter().any(|m| matches!(m, ToAgent::EndJob { job: ended, .. } if *ended == job)));
    w.gone("n1", job, 0);
    assert_eq!(
        (w.state(job), w.info(job).attempt, gpu_of(&w, job)),
        (JobState::Running, Attempt(1), 1 - first)
    );
    cannot_begin(&mut w, "n1", job, 1, &[1 - first]);
    w.gone("n1", job, 1);
    assert_eq!((w.state(job), w.info(job).reason.is_hold()), (JobState::Pending, false), "no GPU is left");
    assert_eq!(fenced(&w, "n1"), (vec![0, 1], false));
    // What is said once more of a run that is over fences nothing.
    let well = || hardware(4, 1, 8000, 2);
    w.hello("n1", "boot", well(), vec![], vec![]);
    cannot_begin(&mut w, "n1", job, 1, &[first]);
    assert_eq!(fenced(&w, "n1"), (vec![], false));
    // GPUs that are well whenever they are looked at, but not when the job comes.
    for attempt in 2..=5 {
        w.hello("n1", "boot", well(), vec![], vec![]);
        assert_eq!((w.state(job), w.info(job).attempt), (JobState::Running, Attempt(attempt)));
        let own = gpu_of(&w, job);
        cannot_begin(&mut w, "n1", job, attempt, &[own]);
        w.gone("n1", job, attempt);
    }
    assert_eq!((w.state(job), w.info(job).reason), (JobState::Pending, Reason::JobHeldUser));
}

#[test]
fn who_cannot_begin_on_a_gpu_and_does_not_wait_again_ends_with_the_node_and_the_reason() {
    let mut w = world(&Config::default(), &["n1"]);
    let batch = wants_one(&mut w, "a", Some(false));
    let mut spec = job(JobKind::Run, "r");
    spec.resources.gres.insert(GresKey { name: "gpu".into(), kind: None }, 1);
    let run = w.submit(spec).unwrap();
    for (job, hint) in [(batch, true), (run, false)] {
        let own = gpu_of(&w, job);
        cannot_begin(&mut w, "n1", job, 0, &[own]);
        w.gone("n1", job, 0);
        let info = w.info(job);
        assert_eq!(info.state, JobState::Failed);
        let Reason::LaunchFailed(text) = info.reason else { panic!("{:?}", info.reason) };
        let expected = format!("node n1 could not begin the job: GPU {own} does not work any more");
        assert!(text.starts_with(&expected), "{text}");
        assert_eq!(text.ends_with("submit it again"), hint, "a client is told by its node: {text}");
    }
    assert_eq!(fenced(&w, "n1"), (vec![0, 1], false));
}

#[test]
fn a_gpu_that_cannot_be_fenced_drains_its_node() {
    let mut w = world(&Config::default(), &["n1"]);
    let job = wants_one(&mut w, "a", Some(true));
    cannot_begin(&mut w, "n1", job, 0, &[7]);
    w.gone("n1", job, 0);
    assert_eq!((fenced(&w, "n1"), w.state(job)), ((vec![], true), JobState::Pending));
}

#[test]
fn a_node_that_says_it_of_gpus_that_the_job_does_not_have_is_drained() {
    let mut w = world(&Config::default(), &["n1"]);
    let first = wants_one(&mut w, "a", Some(false));
    let own = gpu_of(&w, first);
    cannot_begin(&mut w, "n1", first, 0, &[own]);
    w.gone("n1", first, 0);
    assert_eq!(fenced(&w, "n1"), (vec![own], false));
    // It is fenced already, and the next job has the other.
    let second = wants_one(&mut w, "b", Some(true));
    assert_eq!(gpu_of(&w, second), 1 - own);
    cannot_begin(&mut w, "n1", second, 0, &[own]);
    w.gone("n1", second, 0);
    assert_eq!((fenced(&w, "n1"), w.state(second)), ((vec![own], true), JobState::Pending));
    // Nor does a job without GPUs end of one.
    let mut w = world(&Config::default(), &["n1"]);
    let plain = w.batch("c", |s| s.requeue = Some(true));
    cannot_begin(&mut w, "n1", plain, 0, &[0]);
    w.gone("n1", plain, 0);
    assert_eq!((fenced(&w, "n1"), w.state(plain)), ((vec![0], true), JobState::Pending));
}

#[test]
fn what_each_node_of_a_job_says_of_its_gpus_stands() {
    let mut w = world(&Config::default(), &["n1", "n2"]);
    let job = wants(&mut w, "a", 2);
    cannot_begin(&mut w, "n1", job, 0, &[0]);
    cannot_begin(&mut w, "n2", job, 0, &[1]);
    assert_eq!((fenced(&w, "n1"), fenced(&w, "n2")), ((vec![0], false), (vec![1], false)));
}
