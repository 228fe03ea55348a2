//! Who may ask what of the core: every request by everybody, over one table. What is refused changes nothing, and nobody hears of it.
#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test

mod common;

use berth_model::config::Config;
use berth_model::ids::*;
use berth_model::member::*;
use berth_model::request::*;
use berth_model::spec::*;
use berth_model::state::{ExitStatus, JobState, NextState};
use berth_model::time::Span;
use berth_sched_core::{CoreConfig, Event, RequestId};
use common::*;
use std::collections::HashSet;
use std::mem::discriminant;

/// Who asks: the columns of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    /// Whose job it is.
    Owner,
    /// Another user.
    Stranger,
    /// Whom the configuration names as one.
    Administrator,
    /// The owner, inside the very job; inside any, where it is about none that runs.
    Inside,
    /// The owner, inside another job of theirs.
    Beside,
    /// The other user, inside a job of theirs.
    StrangerInside,
    /// The administrator, inside a job of theirs.
    AdministratorInside,
    /// The other user, as if inside the owner's job.
    Intruder,
    /// The owner, as if inside a job that is over.
    Late,
}

const ALL: [Asker; 9] = [
    Asker::Owner,
    Asker::Stranger,
    Asker::Administrator,
    Asker::Inside,
    Asker::Beside,
    Asker::StrangerInside,
    Asker::AdministratorInside,
    Asker::Intruder,
    Asker::Late,
];

const EVERYBODY: &str = "xxxxxxx..";
const OWNERS: &str = "x.xxx....";
const OWNERS_IN_PLACE: &str = "x.xx.....";
const ADMINISTRATORS: &str = "..x......";

/// Kinds of requests: as many as [`may`] has names of.
const KINDS: usize = 20;

/// Who may ask it. A request that is not here does not compile; put one of it into [`There::requests`], too.
fn may(request: &Request) -> &'static str {
    match request {
        // Of their own jobs and images everybody decides.
        Request::Submit { .. } | Request::SubmitHet { .. } | Request::PullImage { .. } => EVERYBODY,
        // What a step does, it does in the job that its client is in.
        Request::CreateStep { .. } | Request::CreateHetStep { .. } => OWNERS_IN_PLACE,
        Request::Cancel(_)
        | Request::Hold(_)
        | Request::Release(_)
        | Request::Requeue(_)
        | Request::EndAllocation { .. }
        | Request::ClientLost { .. } => OWNERS,
        Request::UpdateNode { .. }
        | Request::RebootNodes { .. }
        | Request::CreateToken { .. }
        | Request::RevokeToken { .. }
        | Request::ApproveMember { .. }
        | Request::RemoveMember { .. }
        | Request::Shutdown => ADMINISTRATORS,
        // The shell asks for machines that have proven to have a key.
        Request::Enrol { .. } | Request::Renew { .. } => ADMINISTRATORS,
    }
}

const OWNER: u32 = 1000;
const STRANGER: u32 = 1001;
const ADMINISTRATOR: u32 = 2000;

/// A cluster with something of everybody's.
struct There {
    w: World,
    /// The owner's: two that run, an allocation, one that is held, one of two components, and one that is over.
    batch: JobId,
    beside: JobId,
    allocation: JobId,
    held: JobId,
    components: [JobId; 2],
    over: JobId,
    /// What others run.
    strangers: JobId,
    administrators: JobId,
}

/// The id of the `n`-th token.
fn token(n: u8) -> String {
    format!("aaaaaaa{}", char::from(b'a' + n))
}

fn key(of: u8) -> KeyId {
    KeyId::of_digest([of; 32])
}

fn create_token(n: u8, approval: bool) -> Request {
    Request::CreateToken {
        id: token(n),
        hash: hex(&[n; 32]),
        role: MemberRole::Compute,
        ttl: Span::from_mins(60),
        uses: 3,
        approval,
        administrators: false,
    }
}

fn enrol(with: u8, of: u8, name: &str) -> Request {
    let (token, hash) = (token(with), hex(&[with; 32]));
    Request::Enrol { token, hash, key: key(of), name: name.into(), from: "10.0.0.7".into() }
}

fn submission(spec: JobSpec) -> Request {
    Request::Submit { spec: Box::new(spec), payload: script(), first_step: None, test_only: false }
}

fn components(name: &str) -> Request {
    let one = || (job(JobKind::Batch, name), script());
    Request::SubmitHet { components: vec![one(), one()], test_only: false }
}

fn made(answer: Result<Response, Refusal>) -> JobId {
    match answer {
        Ok(Response::Submitted { job, .. }) => job,
        other => panic!("{other:?}"),
    }
}

impl There {
    fn new() -> There {
        let mut w = World::new(&Config::default());
        w.node("n1", hardware(16, 1, 16000, 0));
        let over = w.batch("over", |_| {});
        w.exited("n1", batch_key(over, 0), ExitStatus::OK);
        w.gone("n1", over, 0);
        assert_eq!(w.state(over), JobState::Completed);
        w.node("n2", hardware(16, 1, 16000, 0));
        let batch = w.batch("batch", |_| {});
        let beside = w.batch("beside", |_| {});
        let allocation = w.submit(job(JobKind::Alloc, "allocation")).unwrap();
        let held = w.batch("held", |spec| spec.hold = true);
        let first = made(w.request(actor(OWNER), components("components")));
        let components = [first, JobId(first.0 + 1)];
        let strangers = made(w.request(actor(STRANGER), submission(job(JobKind::Batch, "theirs"))));
        let own = submission(job(JobKind::Batch, "own"));
        let administrators = made(w.request(actor(ADMINISTRATOR), own));
        for id in [batch, beside, allocation, components[0], components[1], strangers, administrators] {
            assert_eq!(w.state(id), JobState::Running, "{id}");
        }
        for request in [create_token(0, false), create_token(1, true), enrol(0, 9, "n9"), enrol(1, 8, "n8")] {
            w.request(actor(0), request).unwrap();
        }
        w.event(Event::Tick); // what is due is done
        There { w, batch, beside, allocation, held, components, over, strangers, administrators }
    }

    /// One of each kind, and of some kinds more: with the owner's job that it is about, if that runs.
    fn requests(&self) -> Vec<(Request, Option<JobId>)> {
        let named = |id: JobId| vec![JobSelector::Job(id)];
        let cancel = |change: fn(&mut CancelRequest)| {
            let jobs = vec![(JobSelector::Job(self.batch), None)];
            let mut request = CancelRequest { jobs, ..CancelRequest::default() };
            change(&mut request);
            (Request::Cancel(request), Some(self.batch))
        };
        let nodes = || vec![NodeName::from("n1")];
        let image = ResolvedImage::Manifest {
            source: "docker://docker.io/library/debian".into(),
            digest: format!("sha256:{}", "0".repeat(64)),
            insecure: false,
            indexes: vec![],
            pin: None,
        };
        let part = |name: &str| StepSpec { tasks: Some(1), ..step(name) };
        let parts = self.components.iter().zip(["a", "b"]).map(|(id, name)| (*id, part(name))).collect();
        let (job, status) = (self.allocation, ExitStatus::OK);
        let reason = || Some("why".to_string());
        vec![
            (submission(berth_samples::job(JobKind::Batch, "new")), None),
            (components("new"), None),
            (Request::CreateStep { job: self.batch, spec: Box::new(step("new")) }, Some(self.batch)),
            (Request::CreateHetStep { parts }, Some(self.components[0])),
            cancel(|_| {}),
            cancel(|request| request.signal = Some(10)),
            cancel(|request| (request.signal, request.batch) = (Some(12), true)),
            cancel(|request| request.jobs[0].1 = Some(StepId::Batch)),
            cancel(|request| (request.jobs[0].1, request.signal) = (Some(StepId::Batch), Some(10))),
            // All that a user has.
            cancel(|request| (request.jobs, request.user) = (vec![], Some(Uid(OWNER)))),
            cancel(|request| {
                (request.jobs, request.user, request.signal) = (vec![], Some(Uid(OWNER)), Some(9));
            }),
            (Request::Hold(named(self.held)), None),
            (Request::Release(named(self.held)), None),
            (Request::Requeue(named(self.batch)), Some(self.batch)),
            (Request::UpdateNode { nodes: nodes(), state: NodeStateChange::Drain, reason: reason() }, None),
            (Request::UpdateNode { nodes: nodes(), state: NodeStateChange::Resume, reason: None }, None),
            (
                Request::RebootNodes {
                    nodes: nodes(),
                    asap: true,
                    next: NextState::Before,
                    reason: reason(),
                },
                None,
            ),
            (Request::PullImage { image: Box::new(image), nodes: nodes() }, None),
            (Request::EndAllocation { job, status }, Some(job)),
            (Request::ClientLost { job }, Some(job)),
            (create_token(2, false), None),
            (Request::RevokeToken { id: token(0) }, None),
            (enrol(0, 5, "n5"), None),
            (Request::Renew { name: "n9".into(), old: key(9), new: key(6) }, None),
            (Request::ApproveMember { name: "n8".into() }, None),
            (Request::RemoveMember { name: "n9".into(), force: false }, None),
            (Request::Shutdown, None),
        ]
    }

    /// Who that is, for a request about this job.
    fn actor(&self, asker: Asker, about: Option<JobId>) -> Actor {
        let inside = |uid: u32, job: JobId| Actor { inside: Some(job), ..actor(uid) };
        match asker {
            Asker::Owner => actor(OWNER),
            Asker::Stranger => actor(STRANGER),
            Asker::Administrator => Actor { administrator: true, ..actor(ADMINISTRATOR) },
            Asker::Inside => inside(OWNER, about.unwrap_or(self.batch)),
            Asker::Beside => inside(OWNER, self.beside),
            Asker::StrangerInside => inside(STRANGER, self.strangers),
            Asker::AdministratorInside => {
                Actor { administrator: true, ..inside(ADMINISTRATOR, self.administrators) }
            }
            Asker::Intruder => inside(STRANGER, about.unwrap_or(self.batch)),
            Asker::Late => inside(OWNER, self.over),
        }
    }
}

/// Whether that was done. Anything but a refusal of who asks is a fault of the test.
fn was_done(answer: Result<Response, Refusal>, what: &str) -> bool {
    match answer {
        Ok(Response::Acted { jobs, refused }) => match refused.first() {
            None => {
                assert!(!jobs.is_empty(), "{what}: nothing was found");
                true
            }
            Some((_, refusal)) => {
                assert_eq!(refusal.code, RefusalCode::Denied, "{what}: {refusal}");
                assert!(jobs.is_empty(), "{what}: some of it was done");
                false
            }
        },
        Ok(_) => true,
        Err(refusal) => {
            assert_eq!(refusal.code, RefusalCode::Denied, "{what}: {refusal}");
            false
        }
    }
}

#[test]
fn every_request_is_for_whom_the_table_says() {
    let mut kinds = HashSet::new();
    for at in 0..There::new().requests().len() {
        let mut row = String::new();
        let mut expected = "";
        let mut shown = String::new();
        for asker in ALL {
            let mut there = There::new();
            let (request, about) = there.requests().swap_remove(at);
            kinds.insert(discriminant(&request));
            (expected, shown) = (may(&request), format!("{request:?}"));
            let actor = there.actor(asker, about);
            let (writes, sent) = (there.w.writes.len(), there.w.sent.len());
            let done = was_done(there.w.request(actor, request), &format!("{asker:?}: {shown}"));
            if !done {
                let now = (there.w.writes.len(), there.w.sent.len());
                assert_eq!(now, (writes, sent), "{asker:?} was refused, and changed something: {shown}");
            }
            row.push(if done { 'x' } else { '.' });
        }
        assert_eq!(row, expected, "of {ALL:?}: {shown}");
    }
    assert_eq!(kinds.len(), KINDS, "a kind of request was not tried");
}

#[test]
fn another_configuration_is_for_administrators() {
    let mut row = String::new();
    for asker in ALL {
        let mut there = There::new();
        let actor = there.actor(asker, None);
        let request = RequestId(1_000_000);
        let config =
            Box::new(CoreConfig::new(&Config { kill_wait_seconds: 7, ..Config::default() }).unwrap());
        there.w.event(Event::Reconfigure { request, actor, config });
        let answer = there.w.replies.remove(&request.0).unwrap();
        row.push(if was_done(answer, &format!("{asker:?}")) { 'x' } else { '.' });
    }
    assert_eq!(row, ADMINISTRATORS);
}

#[test]
fn who_names_nobody_ends_their_own_jobs_alone() {
    for asker in [Asker::Stranger, Asker::StrangerInside, Asker::AdministratorInside] {
        let mut there = There::new();
        let own = match asker {
            Asker::AdministratorInside => there.administrators,
            _ => there.strangers,
        };
        let actor = there.actor(asker, None);
        // All jobs have this name.
        let request = CancelRequest { name: Some("job".into()), ..CancelRequest::default() };
        match there.w.request(actor, Request::Cancel(request)) {
            Ok(Response::Acted { jobs, refused }) => {
                assert_eq!((jobs, refused.len()), (vec![own], 0), "{asker:?}");
            }
            other => panic!("{asker:?}: {other:?}"),
        }
        for id in [there.batch, there.beside, there.allocation] {
            assert_eq!(there.w.state(id), JobState::Running, "{asker:?} ended job {id}");
        }
    }
}
