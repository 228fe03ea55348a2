//! The life of jobs and steps, one event at a time.

use crate::common::*;
use berth_model::config::{Config, PartitionConfig, PartitionState};
use berth_model::ids::*;
use berth_model::launch::{Program, StepPhase};
use berth_model::link::{EndCause, FromAgent, Highest, ToAgent};
use berth_model::request::*;
use berth_model::spec::*;
use berth_model::state::{ExitStatus, JobState, Reason};
use berth_model::time::Span;
use berth_sched_core::{Phase, Write};

const FAILED: ExitStatus = ExitStatus { code: 3, signal: 0 };

#[test]
fn a_batch_job_runs_to_its_end() {
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    assert_eq!(w.state(id), JobState::Running);
    let start =
        w.sent.iter().find_map(|m| if let ToAgent::Start(s) = m { Some(s.clone()) } else { None }).unwrap();
    assert_eq!(start.launch.key, batch_key(id, 0));
    assert!(matches!(start.launch.program, Program::Script { ref text, .. } if text.0.starts_with(b"#!")));
    assert_eq!((start.launch.share.cpus.len(), start.launch.share.memory), (1, 1000));
    w.exited("n1", batch_key(id, 0), ExitStatus::OK);
    assert_eq!(w.state(id), JobState::Completing);
    assert!(w.sent.iter().any(|m| matches!(m, ToAgent::ExitRecorded { key } if *key == batch_key(id, 0))));
    assert!(w.sent.iter().any(|m| matches!(m, ToAgent::EndJob { job, .. } if *job == id)));
    w.gone("n1", id, 0);
    assert_eq!(w.state(id), JobState::Completed);
    w.later(Span::from_secs(301));
    assert!(w.core.snapshot().job(id).is_none(), "an old job stays in memory");
}

#[test]
fn an_exit_that_comes_with_the_end_of_the_run_is_recorded_with_it() {
    let mut w = World::small();
    let (id, next) = (w.batch("a", |_| {}), w.batch("b", |s| s.resources.exclusive = true));
    assert_eq!(w.state(next), JobState::Pending);
    w.sent.clear();
    let steps = vec![(batch_key(id, 0), StepPhase::Exited(exit(FAILED)))];
    w.tell("n1", |session| FromAgent::JobGone {
        session,
        job: id,
        attempt: Attempt(0),
        steps,
        epilog: None,
        faults: vec![],
    });
    assert_eq!((w.state(id), w.info(id).exit), (JobState::Failed, FAILED));
    assert!(w.sent.iter().any(|m| matches!(m, ToAgent::ExitRecorded { key } if *key == batch_key(id, 0))));
    assert!(!w.sent.iter().any(|m| matches!(m, ToAgent::EndJob { .. })), "it is gone already");
    assert_eq!(w.state(next), JobState::Running, "what it had is free");
}

#[test]
fn exits_become_states() {
    let cases: [(ExitStatus, bool, Option<EndCause>, JobState, Reason, ExitStatus); 4] = [
        (FAILED, false, None, JobState::Failed, Reason::NonZeroExitCode, FAILED),
        (
            ExitStatus { code: 0, signal: 11 },
            false,
            None,
            JobState::Failed,
            Reason::RaisedSignal(11),
            ExitStatus { code: 0, signal: 11 },
        ),
        (
            ExitStatus { code: 0, signal: 9 },
            true,
            None,
            JobState::OutOfMemory,
            Reason::OutOfMemory,
            ExitStatus { code: 0, signal: 125 },
        ),
        (
            ExitStatus { code: 0, signal: 15 },
            false,
            Some(EndCause::TimeLimit),
            JobState::Timeout,
            Reason::TimeLimit,
            ExitStatus::OK,
        ),
    ];
    for (i, (status, oom, ended_by, state, reason, shown)) in cases.into_iter().enumerate() {
        let mut w = World::small();
        let id = w.batch(&format!("{i}"), |_| {});
        let mut e = exit(status);
        (e.oom, e.ended_by) = (oom, ended_by);
        w.phase("n1", batch_key(id, 0), StepPhase::Exited(e));
        w.gone("n1", id, 0);
        let info = w.info(id);
        assert_eq!((info.state, info.reason, info.exit), (state, reason, shown));
    }
}

#[test]
fn the_same_submission_is_one_job() {
    let mut w = World::small();
    let a = w.batch("same", |_| {});
    let b = w.batch("same", |_| {});
    let c = w.batch("other", |_| {});
    assert_eq!(a, b);
    assert_ne!(a, c);
}

#[test]
fn fifo_waits_in_order_and_says_why() {
    let mut w = World::small();
    let all = |s: &mut JobSpec| s.resources.tasks = Some(4);
    let first = w.batch("1", all);
    let second = w.batch("2", all);
    let third = w.batch("3", |_| {});
    assert_eq!(w.state(first), JobState::Running);
    assert_eq!(w.info(second).reason, Reason::Resources);
    assert_eq!(w.info(third).reason, Reason::Priority);
    w.exited("n1", batch_key(first, 0), ExitStatus::OK);
    assert_eq!(w.state(second), JobState::Pending, "nothing is free before the node says so");
    w.gone("n1", first, 0);
    assert_eq!(w.state(second), JobState::Running);
    assert_eq!(w.info(third).reason, Reason::Resources);
}

#[test]
fn an_array_is_one_record_until_its_tasks_start() {
    let mut w = World::small();
    let array = |s: &mut JobSpec| {
        s.array = Some(ArraySpec { ranges: vec![(0, 999, 1)], max_running: Some(2) });
    };
    let id = w.batch("a", array);
    assert_eq!(w.core.snapshot().jobs().count(), 3);
    let starts = w.starts();
    assert_eq!(starts.len(), 2);
    let record = w.info(id);
    assert_eq!(record.reason, Reason::JobArrayTaskLimit);
    assert_eq!(record.waiting.unwrap().ranges, vec![(2, 999, 1)]);
    let first = w.info(starts[0].job);
    assert_eq!((first.array, first.task), (Some(id), Some(0)));
    w.exited("n1", starts[0], ExitStatus::OK);
    w.gone("n1", starts[0].job, 0);
    assert_eq!(w.starts().len(), 1);
    // A part of the waiting tasks is cancelled: it becomes a record of its own.
    let some = ArraySpec { ranges: vec![(10, 19, 1)], max_running: None };
    let cancel = CancelRequest { jobs: vec![(JobSelector::Tasks(id, some), None)], ..Default::default() };
    let Response::Acted { jobs, refused, .. } = w.request(actor(1000), Request::Cancel(cancel)).unwrap()
    else {
        panic!()
    };
    assert!(refused.is_empty());
    let gone = w.info(jobs[0]);
    assert_eq!((gone.state, gone.array, gone.cancelled_by), (JobState::Cancelled, Some(id), Some(Uid(1000))));
    assert_eq!(w.info(id).waiting.unwrap().ranges, vec![(3, 9, 1), (20, 999, 1)]);
    // The whole array is found under the id that was printed.
    let cancel = CancelRequest { jobs: vec![(JobSelector::Job(id), None)], ..Default::default() };
    w.request(actor(1000), Request::Cancel(cancel)).unwrap();
    assert!(
        w.core
            .snapshot()
            .array(id)
            .all(|j| matches!(j.state, JobState::Cancelled | JobState::Completing | JobState::Completed))
    );
}

#[test]
fn what_can_never_run_is_refused_by_name() {
    let mut w = World::small();
    let image_of = |spec: &mut JobSpec, source: String| {
        let digest = format!("sha256:{}", "0".repeat(64));
        let found =
            ResolvedImage::Manifest { source, digest, insecure: false, indexes: Vec::new(), pin: None };
        spec.container = Some(berth_samples::container("debian", Some(found)));
    };
    type Case = (&'static str, Box<dyn Fn(&mut JobSpec)>, RefusalCode, &'static str);
    let cases: Vec<Case> = vec![
        ("cpus", Box::new(|s| s.resources.cpus_per_task = Some(64)), RefusalCode::Impossible, "64 CPUs"),
        ("tasks", Box::new(|s| s.resources.tasks = Some(5)), RefusalCode::Impossible, "5 tasks"),
        (
            "mem",
            Box::new(|s| s.resources.memory = MemoryRequest::PerNode(9000)),
            RefusalCode::Impossible,
            "9000 MiB",
        ),
        ("nodes", Box::new(|s| s.resources.min_nodes = 2), RefusalCode::Impossible, "2 nodes"),
        ("part", Box::new(|s| s.partition = Some("big".into())), RefusalCode::NotFound, "big"),
        ("nice", Box::new(|s| s.nice = -1), RefusalCode::Denied, "--nice"),
        ("name", Box::new(|s| s.name = "n".repeat(1025)), RefusalCode::Invalid, "--job-name has 1025 bytes"),
        ("out", Box::new(|s| s.io.stdout = Some("o".repeat(4097).into())), RefusalCode::Invalid, "--output"),
        (
            "line",
            Box::new(|s| s.submit_line = "x".repeat(3 << 20).into()),
            RefusalCode::Invalid,
            "parameter too long: what was submitted",
        ),
        (
            "typed",
            Box::new(|s| s.container = Some(berth_samples::container("debian\n12", None))),
            RefusalCode::Invalid,
            "control characters",
        ),
        (
            "image",
            Box::new(move |s| image_of(s, "oci:/home/u/l\nx y".into())),
            RefusalCode::Invalid,
            "another name",
        ),
        (
            "source",
            Box::new(move |s| image_of(s, format!("oci:/{}", "x".repeat(4096)))),
            RefusalCode::Invalid,
            "what --container-image means has 4101 bytes",
        ),
        ("node", Box::new(|s| s.resources.node_list = vec!["n9".into()]), RefusalCode::NotFound, "n9"),
        (
            "gres",
            Box::new(|s| {
                let key = berth_model::tres::GresKey { name: "gpu".into(), kind: None };
                s.resources.gres.insert(key, 3);
            }),
            RefusalCode::Impossible,
            "3 x gpu",
        ),
    ];
    for (name, change, code, text) in cases {
        let mut spec = job(JobKind::Batch, name);
        change(&mut spec);
        let refusal = w.submit(spec).unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(refusal.message.contains(text), "{refusal}");
    }
    assert!(
        w.writes.iter().all(|x| !matches!(x, berth_sched_core::Write::PutSpec(_))),
        "something was written"
    );
}

#[test]
fn steps_wait_for_their_jobs_resources() {
    let mut w = World::small();
    let id = w.batch("a", |s| s.resources.tasks = Some(2));
    w.starts();
    let make = |name: &str| Request::CreateStep { job: id, spec: Box::new(step(name)) };
    let Ok(Response::StepCreated { key, layout, .. }) = w.request(actor(1000), make("s0")) else { panic!() };
    assert_eq!((key.step, layout.tasks), (StepId::Number(0), vec![vec![0, 1]]));
    let second = w.request_later(actor(1000), make("s1"));
    assert!(!w.replies.contains_key(&second), "a second step does not wait");
    let mut over = step("s2");
    over.overlap = true;
    let body = Request::CreateStep { job: id, spec: Box::new(over) };
    assert!(matches!(w.request(actor(1000), body), Ok(Response::StepCreated { .. })));
    w.exited("n1", key, FAILED);
    assert!(matches!(w.replies.remove(&second), Some(Ok(Response::StepCreated { .. }))));
    // Somebody else's step, one that can never fit, and one whose name would fill lists.
    assert_eq!(w.request(actor(1001), make("s3")).unwrap_err().code, RefusalCode::Denied);
    let long = StepSpec { name: "n".repeat(1025), ..step("long") };
    let body = Request::CreateStep { job: id, spec: Box::new(long) };
    assert_eq!(w.request(actor(1000), body).unwrap_err().code, RefusalCode::Invalid);
    let mut big = step("s4");
    big.tasks = Some(3);
    let body = Request::CreateStep { job: id, spec: Box::new(big) };
    assert_eq!(w.request(actor(1000), body).unwrap_err().code, RefusalCode::Impossible);
    w.exited("n1", batch_key(id, 0), ExitStatus::OK);
    let info = w.info(id);
    assert_eq!(info.derived_exit, FAILED);
    assert_eq!(info.exit, ExitStatus::OK);
}

#[test]
fn steps_find_the_container_that_their_script_made() {
    let mut w = World::small();
    let contained = |flag| {
        let named = NamedSpec { name: "box".into(), flag, scope: NameScope::Job };
        ContainerSpec {
            named: Some(named),
            save: Some("/out".into()),
            ..berth_samples::container("debian", Some(ResolvedImage::Kept))
        }
    };
    let told = |w: &mut World, job_flag, step_flag: Option<NameFlag>| {
        w.sent.clear();
        let id = w.batch(&format!("{job_flag:?} {step_flag:?}"), |s| s.container = Some(contained(job_flag)));
        let spec =
            StepSpec { container: step_flag.map(contained), overlap: true, ..step(&format!("of {id}")) };
        let made = w.request(actor(1000), Request::CreateStep { job: id, spec: Box::new(spec) });
        assert!(matches!(made, Ok(Response::StepCreated { .. })), "{made:?}");
        let of = |m: &ToAgent| if let ToAgent::Start(s) = m { s.launch.container.clone() } else { None };
        let flags = w.sent.iter().filter_map(of).map(|c| (c.named.unwrap().flag, c.save.is_some()));
        let flags: Vec<_> = flags.collect();
        w.exited("n1", batch_key(id, 0), ExitStatus::OK);
        w.gone("n1", id, 0);
        flags
    };
    for flag in [NameFlag::Create, NameFlag::NoExec] {
        assert_eq!(told(&mut w, flag, None), [(flag, true), (NameFlag::Auto, false)]);
    }
    assert_eq!(told(&mut w, NameFlag::Auto, None), [(NameFlag::Auto, true), (NameFlag::Auto, false)]);
    // What the step says itself holds.
    let both = [(NameFlag::Auto, true), (NameFlag::Create, true)];
    assert_eq!(told(&mut w, NameFlag::Auto, Some(NameFlag::Create)), both);
}

#[test]
fn exact_steps_share_the_job() {
    let mut w = World::small();
    let id = w.batch("a", |s| s.resources.tasks = Some(4));
    let mut cpus = Vec::new();
    for i in 0..4 {
        let mut s = step(&format!("s{i}"));
        (s.exact, s.tasks) = (true, Some(1));
        let body = Request::CreateStep { job: id, spec: Box::new(s) };
        assert!(matches!(w.request(actor(1000), body), Ok(Response::StepCreated { .. })));
    }
    for m in &w.sent {
        if let ToAgent::Start(s) = m
            && s.launch.key.step != StepId::Batch
        {
            cpus.extend(s.launch.share.cpus.iter().copied());
        }
    }
    cpus.sort_unstable();
    assert_eq!(cpus, vec![0, 1, 2, 3]);
}

#[test]
fn srun_is_a_job_of_one_step() {
    let mut w = World::small();
    let id = w.submit(job(JobKind::Run, "r")).unwrap();
    let key = StepKey { job: id, attempt: Attempt(0), step: StepId::Number(0) };
    assert_eq!(w.starts(), vec![key]);
    w.exited("n1", key, FAILED);
    w.gone("n1", id, 0);
    let info = w.info(id);
    assert_eq!((info.state, info.exit, info.derived_exit), (JobState::Failed, FAILED, FAILED));
}

#[test]
fn a_lost_client_ends_its_allocation() {
    let mut w = World::small();
    let id = w.submit(job(JobKind::Alloc, "al")).unwrap();
    assert_eq!(w.state(id), JobState::Running);
    assert_eq!(
        w.request(actor(1001), Request::ClientLost { job: id }).unwrap_err().code,
        RefusalCode::Denied
    );
    w.request(actor(0), Request::ClientLost { job: id }).unwrap();
    w.gone("n1", id, 0);
    assert_eq!(w.state(id), JobState::Cancelled);
}

#[test]
fn a_requeued_job_runs_again_as_its_next_attempt() {
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    w.starts();
    let requeue = || Request::Requeue(vec![JobSelector::Job(id)]);
    w.request(actor(1000), requeue()).unwrap();
    assert!(w.starts().is_empty(), "the first run is not over yet");
    w.gone("n1", id, 0);
    assert_eq!(w.starts(), vec![batch_key(id, 1)]);
    // What the first run says late changes nothing.
    w.exited("n1", batch_key(id, 0), FAILED);
    assert_eq!(w.state(id), JobState::Running);
    assert_eq!(w.info(id).attempt, Attempt(1));
    w.exited("n1", batch_key(id, 1), ExitStatus::OK);
    w.gone("n1", id, 1);
    w.request(actor(1000), requeue()).unwrap();
    assert_eq!(w.starts(), vec![batch_key(id, 2)]);
}

#[test]
fn a_new_boot_ends_what_ran_and_requeues_what_may() {
    let mut w = World::small();
    let again = w.batch("a", |_| {});
    let never = w.batch("b", |s| s.requeue = Some(false));
    w.hello("n1", "second", hardware(4, 1, 4000, 2), vec![], vec![]);
    assert_eq!(w.state(never), JobState::NodeFail);
    assert_eq!((w.state(again), w.info(again).attempt), (JobState::Running, Attempt(1)));
}

#[test]
fn silence_alone_restarts_nothing() {
    let mut w = World::small();
    let id = w.batch("a", |s| s.time_limit = Some(TimeLimit::Unlimited));
    w.later(Span::from_secs(3600));
    assert_eq!((w.state(id), w.info(id).attempt), (JobState::Running, Attempt(0)));
    assert!(w.core.snapshot().nodes().next().unwrap().condition.not_responding);
    let waits = w.batch("b", |_| {});
    assert!(matches!(w.info(waits).reason, Reason::ReqNodeNotAvail(_)));
    // The same boot comes back with the step: everything goes on.
    w.hello(
        "n1",
        "boot",
        hardware(4, 1, 4000, 2),
        vec![(batch_key(id, 0), StepPhase::Running)],
        vec![(id, Attempt(0))],
    );
    assert_eq!(w.state(waits), JobState::Running);
    assert!(w.starts().contains(&batch_key(waits, 0)));
}

#[test]
fn an_unanswered_start_is_sent_again_and_an_unknown_run_is_ended() {
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    assert_eq!(w.starts().len(), 1);
    w.later(Span::from_secs(11));
    assert_eq!(w.starts(), vec![batch_key(id, 0)]);
    w.phase("n1", batch_key(id, 0), StepPhase::Running);
    w.later(Span::from_secs(30));
    assert!(w.starts().is_empty());
    let stray = (JobId(77), Attempt(0));
    w.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![(batch_key(id, 0), StepPhase::Running)], vec![stray]);
    assert!(w.sent.iter().any(|m| matches!(m, ToAgent::EndJob { job, .. } if *job == JobId(77))));
    let waits = w.batch("b", |_| {});
    assert_eq!(w.state(waits), JobState::Pending, "the node has something that nobody accounts for");
    w.gone("n1", JobId(77), 0);
    assert_eq!(w.state(waits), JobState::Running);
}

#[test]
fn only_owners_and_administrators_act() {
    let mut w = World::small();
    let id = w.batch("a", |s| s.hold = true);
    let cancel =
        || Request::Cancel(CancelRequest { jobs: vec![(JobSelector::Job(id), None)], ..Default::default() });
    let refused = |r: Result<Response, Refusal>| match r.unwrap() {
        Response::Acted { refused, .. } => refused.into_iter().next().map(|(_, r)| r.code),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(w.request(actor(1001), cancel())), Some(RefusalCode::Denied));
    assert_eq!(
        refused(w.request(actor(1001), Request::Release(vec![JobSelector::Job(id)]))),
        Some(RefusalCode::Denied)
    );
    let drain = Request::UpdateNode {
        nodes: vec!["n1".into()],
        state: NodeStateChange::Drain,
        reason: Some("x".into()),
    };
    assert_eq!(w.request(actor(1001), drain.clone()).unwrap_err().code, RefusalCode::Denied);
    // An administrator's hold is not the owner's to release.
    w.request(actor(0), Request::Hold(vec![JobSelector::Job(id)])).unwrap();
    assert_eq!(
        refused(w.request(actor(1000), Request::Release(vec![JobSelector::Job(id)]))),
        Some(RefusalCode::Denied)
    );
    assert_eq!(refused(w.request(actor(0), Request::Release(vec![JobSelector::Job(id)]))), None);
    assert_eq!(w.state(id), JobState::Running);
    // From inside a job even an administrator is only the job's owner.
    let inside = Actor { inside: Some(id), ..actor(0) };
    assert_eq!(w.request(inside, drain.clone()).unwrap_err().code, RefusalCode::Denied);
    w.request(actor(0), drain).unwrap();
    let waits = w.batch("b", |_| {});
    assert_eq!(w.state(waits), JobState::Pending);
}

#[test]
fn immediate_means_now_or_not_at_all() {
    let mut w = World::small();
    w.batch("a", |s| s.resources.tasks = Some(4));
    let mut spec = job(JobKind::Run, "now");
    spec.immediate = Some(Span(0));
    assert_eq!(w.submit(spec).unwrap_err().code, RefusalCode::Busy);
    let mut spec = job(JobKind::Run, "soon");
    spec.immediate = Some(Span::from_secs(5));
    let id = w.submit(spec).unwrap();
    w.later(Span::from_secs(6));
    assert_eq!(w.state(id), JobState::Cancelled);
}

#[test]
fn a_full_store_takes_no_new_jobs_but_lets_others_end() {
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    w.event(berth_sched_core::Event::StoreFull(Some("disk full".into())));
    assert_eq!(w.submit(job(JobKind::Batch, "b")).unwrap_err().code, RefusalCode::Unavailable);
    w.exited("n1", batch_key(id, 0), ExitStatus::OK);
    w.gone("n1", id, 0);
    assert_eq!(w.state(id), JobState::Completed);
    w.event(berth_sched_core::Event::StoreFull(None));
    w.batch("b", |_| {});
}

#[test]
fn two_nodes_share_tasks_block_by_block() {
    let mut w = World::new(&Config::default());
    w.node("n1", hardware(4, 1, 4000, 0));
    w.node("n2", hardware(4, 1, 4000, 0));
    let id = w.batch("a", |s| {
        s.resources.min_nodes = 2;
        s.resources.max_nodes = Some(2);
        s.resources.tasks = Some(4);
    });
    let info = w.info(id);
    assert_eq!(info.layout.tasks, vec![vec![0, 1, 2], vec![3]]);
    assert_eq!(info.layout.cpus, vec![3, 1]);
    assert_eq!(w.starts(), vec![batch_key(id, 0)], "the script runs once");
    let body = Request::CreateStep { job: id, spec: Box::new(step("s")) };
    let Ok(Response::StepCreated { key, .. }) = w.request(actor(1000), body) else { panic!() };
    w.exited("n1", key, ExitStatus::OK);
    assert!(w.info(id).steps[1].ended.is_none());
    w.exited("n2", key, FAILED);
    assert_eq!(w.info(id).steps[1].exit, FAILED);
}

#[test]
fn what_was_submitted_before_any_node_was_known_starts_with_the_first() {
    let mut w = World::new(&Config::default());
    let id = w.batch("early", |_| {});
    assert_eq!(w.state(id), JobState::Pending);
    w.node("n1", hardware(1, 1, 1000, 0));
    assert_eq!(w.state(id), JobState::Running);
}

#[test]
fn limits_end_jobs_and_devices_are_given_by_index() {
    let mut w = World::small();
    let gpu = berth_model::tres::GresKey { name: "gpu".into(), kind: None };
    let take = |s: &mut JobSpec| {
        s.resources.gres.insert(gpu.clone(), 1);
        s.resources.memory = MemoryRequest::PerNode(500);
        s.time_limit = Some(TimeLimit::Minutes(1));
    };
    let (a, b, c) = (w.batch("a", take), w.batch("b", take), w.batch("c", take));
    let index = |w: &World, id| w.info(id).shares[0].gres[0].index;
    assert_eq!((index(&w, a), index(&w, b)), (0, 1));
    assert_eq!(w.info(c).reason, Reason::Resources);
    for id in [a, b] {
        w.phase("n1", batch_key(id, 0), StepPhase::Running);
    }
    w.sent.clear();
    w.later(Span::from_secs(60));
    let ends = |m: &&ToAgent| matches!(m, ToAgent::EndJob { cause: EndCause::TimeLimit, .. });
    assert_eq!(w.sent.iter().filter(ends).count(), 2);
    let mut e = exit(ExitStatus { code: 0, signal: 15 });
    e.ended_by = Some(EndCause::TimeLimit);
    w.phase("n1", batch_key(a, 0), StepPhase::Exited(e));
    w.gone("n1", a, 0);
    let info = w.info(a);
    assert_eq!(
        (info.state, info.exit, info.steps[0].state),
        (JobState::Timeout, ExitStatus::OK, JobState::Timeout)
    );
    assert_eq!(index(&w, c), 0);
}

#[test]
fn a_closed_partition_says_so() {
    let text = PartitionConfig { name: "p".into(), state: PartitionState::Down, ..Default::default() };
    let mut w = World::new(&Config { partitions: vec![text], ..Config::default() });
    w.node("n1", hardware(1, 1, 1000, 0));
    let id = w.batch("a", |_| {});
    assert_eq!(w.info(id).reason, Reason::PartitionDown);
}

#[test]
fn a_default_of_memory_is_for_jobs_that_share_their_nodes() {
    let default_of = |mib| {
        let partition = PartitionConfig { name: "p".into(), default_mem_per_cpu: mib, ..Default::default() };
        let mut w = World::new(&Config { partitions: vec![partition], ..Config::default() });
        w.node("n1", hardware(4, 1, 4000, 0));
        w
    };
    // Four CPUs of 1500 MiB are more than the node has: whoever has it to himself has what there is.
    let mut w = default_of(1500);
    let id = w.batch("alone", |s| s.resources.exclusive = true);
    assert_eq!((w.state(id), w.info(id).shares[0].memory), (JobState::Running, 4000));
    assert_eq!(w.info(id).spec.resources.memory, MemoryRequest::Default);
    // A job beside others gets the default, and what cannot have it is told at once.
    let mut w = default_of(1500);
    let id = w.batch("beside", |s| s.resources.tasks = Some(2));
    assert_eq!((w.state(id), w.info(id).shares[0].memory), (JobState::Running, 3000));
    assert_eq!(w.info(id).spec.resources.memory, MemoryRequest::PerCpu(1500));
    let mut spec = job(JobKind::Batch, "never");
    spec.resources.cpus_per_task = Some(4);
    let refusal = w.submit(spec).unwrap_err();
    assert!(refusal.message.contains("6000 MiB"), "{refusal}");
}

#[test]
fn a_cancelled_step_ends_alone() {
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    let body = Request::CreateStep { job: id, spec: Box::new(step("s")) };
    let Ok(Response::StepCreated { key, .. }) = w.request(actor(1000), body) else { panic!() };
    let jobs = vec![(JobSelector::Job(id), Some(key.step))];
    w.request(actor(1000), Request::Cancel(CancelRequest { jobs, ..Default::default() })).unwrap();
    assert!(w.sent.iter().any(|m| matches!(m, ToAgent::Terminate { key: k, .. } if *k == key)));
    let mut e = exit(ExitStatus { code: 0, signal: 15 });
    e.ended_by = Some(EndCause::Cancelled);
    // What it could not do any more is said, and is not why it ended.
    e.launch_error = Some("its container was not saved".into());
    w.phase("n1", key, StepPhase::Exited(e));
    let info = w.info(id);
    assert_eq!((info.state, info.steps[1].state), (JobState::Running, JobState::Cancelled));
    assert_eq!(info.steps[1].cancelled_by, Some(Uid(1000)));
}

#[test]
fn a_step_that_runs_is_entered_where_it_is_with_what_it_has() {
    let mut w = World::new(&Config::default());
    w.node("n1", hardware(2, 1, 4000, 2));
    w.node("n2", hardware(2, 1, 4000, 2));
    let id = w.batch("a", |s| {
        s.resources.min_nodes = 2;
        s.resources.exclusive = true;
    });
    let create = |w: &mut World, by: u32, spec: StepSpec| {
        w.request(actor(by), Request::CreateStep { job: id, spec: Box::new(spec) })
    };
    let entering = |name: &str, step: StepId, node: Option<&str>| StepSpec {
        enter: Some(EnterSpec { step, node: node.map(Into::into) }),
        ..crate::common::step(name)
    };
    // A step on both nodes that takes everything: what enters waits for nothing.
    let both = StepSpec { nodes: Some(2), tasks: Some(2), ..step("both") };
    create(&mut w, 1000, both).unwrap();
    let why = |refused: Result<Response, Refusal>| refused.unwrap_err().message;
    let text = why(create(&mut w, 1000, entering("x", StepId::Number(0), None)));
    assert!(text.contains("n[1-2]") && text.contains("--node"), "{text}");
    let text = why(create(&mut w, 1000, entering("x", StepId::Number(0), Some("n7"))));
    assert!(text.contains("not on node n7"), "{text}");
    let text = why(create(&mut w, 1000, entering("x", StepId::Number(5), None)));
    assert!(text.contains("no step 5") && text.contains("batch, 0"), "{text}");
    let text = why(create(&mut w, 1001, entering("x", StepId::Batch, None)));
    assert!(text.contains("Access/permission denied"), "{text}");
    w.sent.clear();
    create(&mut w, 1000, entering("in n2", StepId::Number(0), Some("n2"))).unwrap();
    create(&mut w, 1000, entering("in the script", StepId::Batch, None)).unwrap();
    let started: Vec<_> = w
        .sent
        .iter()
        .filter_map(|m| if let ToAgent::Start(s) = m { Some(s.launch.clone()) } else { None })
        .collect();
    assert_eq!(started.len(), 2);
    assert_eq!((started[0].node.0.as_str(), started[0].enter), ("n2", Some(StepId::Number(0))));
    assert_eq!((started[1].node.0.as_str(), started[1].enter), ("n1", Some(StepId::Batch)));
    assert_eq!(started[0].share.cpus.len(), 2);
    // One that is over, on a node or altogether.
    let first = StepKey { job: id, attempt: Attempt(0), step: StepId::Number(0) };
    w.exited("n2", first, ExitStatus::OK);
    let text = why(create(&mut w, 1000, entering("y", StepId::Number(0), Some("n2"))));
    assert!(text.contains("over on node n2"), "{text}");
    w.exited("n1", first, ExitStatus::OK);
    let text = why(create(&mut w, 1000, entering("y", StepId::Number(0), None)));
    assert!(text.contains("is over (COMPLETED)"), "{text}");
}

/// How the first run's script ended, as its last row says it.
fn script_on_record(w: &World, id: JobId) -> Option<ExitStatus> {
    let row = w.writes.iter().rev().find_map(|write| match write {
        Write::PutStep(row) if row.key == batch_key(id, 0) => Some(row),
        _ => None,
    });
    row?.nodes[0].exit.as_ref().map(|exit| exit.status)
}

#[test]
fn how_a_run_ended_is_on_record_although_its_job_runs_again() {
    let killed = ExitStatus { code: 0, signal: 15 };
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    w.request(actor(1000), Request::Requeue(vec![JobSelector::Job(id)])).unwrap();
    // The exit comes with the end of the run, and the next run begins in the same event.
    let steps = vec![(batch_key(id, 0), StepPhase::Exited(exit(killed)))];
    w.tell("n1", |session| FromAgent::JobGone {
        session,
        job: id,
        attempt: Attempt(0),
        steps,
        epilog: None,
        faults: vec![],
    });
    assert_eq!((w.state(id), w.info(id).attempt), (JobState::Running, Attempt(1)));
    assert_eq!(script_on_record(&w, id), Some(killed));

    // So does what a node loses by a new boot.
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    w.hello("n1", "another boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    assert_eq!((w.state(id), w.info(id).attempt), (JobState::Running, Attempt(1)));
    assert_eq!(script_on_record(&w, id), Some(ExitStatus { code: 0, signal: 9 }));
}

#[test]
fn a_job_that_is_not_kept_in_memory_is_on_record_as_it_ended() {
    let mut w = World::new(&Config { min_job_age_seconds: 0, ..Config::default() });
    w.node("n1", hardware(4, 1, 4000, 2));
    let id = w.batch("a", |_| {});
    let steps = vec![(batch_key(id, 0), StepPhase::Exited(exit(FAILED)))];
    w.tell("n1", |session| FromAgent::JobGone {
        session,
        job: id,
        attempt: Attempt(0),
        steps,
        epilog: None,
        faults: vec![],
    });
    assert!(!w.core.snapshot().knows(id));
    assert_eq!(script_on_record(&w, id), Some(FAILED));
    let row = w.writes.iter().rev().find_map(|write| match write {
        Write::PutJob(row) => Some(&row.phase),
        _ => None,
    });
    let Some(Phase::Ended { result, .. }) = row else { panic!("its end is on no record") };
    assert_eq!((result.state, result.exit), (JobState::Failed, FAILED));
}

#[test]
fn a_hello_said_again_says_nothing_of_a_step_on_its_way() {
    let mut w = World::small();
    let id = w.batch("a", |_| {});
    let script = (JobSelector::Job(id), Some(StepId::Batch));
    let cancel = CancelRequest { jobs: vec![script], ..Default::default() };
    w.request(actor(1000), Request::Cancel(cancel)).unwrap();
    w.sent.clear();
    // The agent repeated it before the Start reached it.
    w.tell("n1", |_| FromAgent::Hello {
        node: "n1".into(),
        boot_id: "boot".into(),
        boot_time: Default::default(),
        agent_start: Default::default(),
        version: "1".into(),
        hardware: hardware(4, 1, 4000, 2),
        term: Term(0),
        steps: vec![],
        jobs: vec![],
        asked: Default::default(),
        unknown: vec![],
        features: vec![],
        highest: Highest::default(),
        host: None,
    });
    assert_eq!(w.state(id), JobState::Running);
    assert!(w.sent.iter().any(|m| matches!(m, ToAgent::Terminate { key, .. } if *key == batch_key(id, 0))));
    // It is the same registration: whichever of both answers is lost, the agent is heard.
    let first = Session((1 << 32) | 1);
    assert!(w.sent.iter().any(|m| matches!(m, ToAgent::Welcome { session, .. } if *session == first)));
    // Another connection's first word counts: the step is not there.
    w.hello("n1", "boot", hardware(4, 1, 4000, 2), vec![], vec![]);
    assert_eq!(w.state(id), JobState::Completing);
}
