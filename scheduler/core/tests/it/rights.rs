//! Who may ask what of the core: every request by everybody, over one table. What is refused changes nothing, and nobody hears of it.

use crate::common::*;
use berth_model::config::Config;
use berth_model::ids::*;
use berth_model::member::*;
use berth_model::record::JobInfo;
use berth_model::request::*;
use berth_model::rights::{Rank, Role};
use berth_model::spec::*;
use berth_model::state::{ExitStatus, JobState, NextState};
use berth_model::time::Span;
use berth_sched_core::{CoreConfig, Event, RequestId, Write};
use std::collections::HashSet;
use std::mem::discriminant;

/// Who asks: the columns of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    /// Whose job it is.
    Owner,
    /// Another user.
    Stranger,
    /// Another user, who coordinates the account of the owner's jobs.
    Coordinator,
    /// Another user, who coordinates another account.
    Elsewhere,
    /// Whom the configuration names as one.
    Operator,
    /// Whom the configuration names as one.
    Administrator,
    /// Root, who always is one.
    Root,
    /// The owner, inside the very job; inside any, where it is about none that runs.
    Inside,
    /// The owner, inside another job of theirs.
    Beside,
    /// The other user, inside a job of theirs.
    StrangerInside,
    /// The coordinator, inside a job of theirs.
    CoordinatorInside,
    /// The operator, inside a job of theirs.
    OperatorInside,
    /// The administrator, inside a job of theirs.
    AdministratorInside,
    /// The other user, as if inside the owner's job.
    Intruder,
    /// The owner, as if inside a job that is over.
    Late,
}

const ALL: [Asker; 15] = [
    Asker::Owner,
    Asker::Stranger,
    Asker::Coordinator,
    Asker::Elsewhere,
    Asker::Operator,
    Asker::Administrator,
    Asker::Root,
    Asker::Inside,
    Asker::Beside,
    Asker::StrangerInside,
    Asker::CoordinatorInside,
    Asker::OperatorInside,
    Asker::AdministratorInside,
    Asker::Intruder,
    Asker::Late,
];

const EVERYBODY: &str = "xxxxxxxxxxxxx..";
const MANAGERS: &str = "x.x.xxxxx......";
const DRIVERS: &str = "x....xxxx......";
const DRIVERS_IN_PLACE: &str = "x....xxx.......";
const OPERATORS: &str = "....xxx........";
const ADMINISTRATORS: &str = ".....xx........";

/// Kinds of requests: as many as [`may`] has names of.
const KINDS: usize = 22;

/// Who may ask it. A request that is not here does not compile; put one of it into [`There::requests`], too.
fn may(request: &Request) -> &'static str {
    match request {
        // Of their own jobs and images everybody decides.
        Request::Submit { .. } | Request::SubmitHet { .. } | Request::PullImage { .. } => EVERYBODY,
        // What a step does, it does in the job that its client is in.
        Request::CreateStep { .. } | Request::CreateHetStep { .. } => DRIVERS_IN_PLACE,
        Request::Cancel(_) | Request::Hold(_) | Request::Release(_) | Request::Requeue(_) => MANAGERS,
        Request::EndAllocation { .. } | Request::ClientLost { .. } => DRIVERS,
        Request::UpdateNode { .. } | Request::RebootNodes { .. } => OPERATORS,
        Request::CreateToken { .. }
        | Request::RevokeToken { .. }
        | Request::ApproveMember { .. }
        | Request::RemoveMember { .. }
        | Request::Shutdown => ADMINISTRATORS,
        // The shell asks for machines that have proven to have a key.
        Request::Enrol { .. } | Request::Renew { .. } | Request::Leave { .. } | Request::BackedUp { .. } => {
            ADMINISTRATORS
        }
    }
}

const OWNER: u32 = 1000;
const STRANGER: u32 = 1001;
const COORDINATOR: u32 = 1002;
const ELSEWHERE: u32 = 1003;
const OPERATOR: u32 = 1900;
const ADMINISTRATOR: u32 = 2000;
/// Of the owner's jobs, in other letters than those of its coordinator.
const ACCOUNT: &str = "Physics";

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
    coordinators: JobId,
    operators: JobId,
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

/// A job of the account.
fn paid(kind: JobKind, name: &str) -> JobSpec {
    JobSpec { account: Some(ACCOUNT.into()), ..job(kind, name) }
}

fn components(name: &str) -> Request {
    let one = || (paid(JobKind::Batch, name), script());
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
        let mut w = World::new(&Config { root_jobs: Some(true), ..Config::default() });
        w.node("n1", hardware(16, 1, 16000, 0));
        let over = w.submit(paid(JobKind::Batch, "over")).unwrap();
        w.exited("n1", batch_key(over, 0), ExitStatus::OK);
        w.gone("n1", over, 0);
        assert_eq!(w.state(over), JobState::Completed);
        w.node("n2", hardware(16, 1, 16000, 0));
        let batch = w.submit(paid(JobKind::Batch, "batch")).unwrap();
        let beside = w.submit(paid(JobKind::Batch, "beside")).unwrap();
        let allocation = w.submit(paid(JobKind::Alloc, "allocation")).unwrap();
        let held = w.submit(JobSpec { hold: true, ..paid(JobKind::Batch, "held") }).unwrap();
        let first = made(w.request(actor(OWNER), components("components")));
        let components = [first, JobId(first.0 + 1)];
        let [strangers, coordinators, operators, administrators] =
            [STRANGER, COORDINATOR, OPERATOR, ADMINISTRATOR].map(|uid| {
                made(w.request(actor(uid), submission(job(JobKind::Batch, &format!("of {uid}")))))
            });
        let owners = [batch, beside, allocation, components[0], components[1]];
        for id in owners.into_iter().chain([strangers, coordinators, operators, administrators]) {
            assert_eq!(w.state(id), JobState::Running, "{id}");
        }
        for request in [create_token(0, false), create_token(1, true), enrol(0, 9, "n9"), enrol(1, 8, "n8")] {
            w.request(actor(0), request).unwrap();
        }
        w.event(Event::Tick); // what is due is done
        There {
            w,
            batch,
            beside,
            allocation,
            held,
            components,
            over,
            strangers,
            coordinators,
            operators,
            administrators,
        }
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
            (Request::PullImage { image: Box::new(image), nodes: nodes(), login: None }, None),
            (Request::EndAllocation { job, status }, Some(job)),
            (Request::ClientLost { job }, Some(job)),
            (create_token(2, false), None),
            (Request::RevokeToken { id: token(0) }, None),
            (enrol(0, 5, "n5"), None),
            (Request::Renew { name: "n9".into(), old: key(9), new: key(6) }, None),
            (Request::Leave { name: "n9".into(), key: key(9) }, None),
            (Request::ApproveMember { name: "n8".into() }, None),
            (Request::RemoveMember { name: "n9".into(), force: false }, None),
            (Request::BackedUp { by: "root".into(), file: "/b".into(), ago: Span(0) }, None),
            (Request::Shutdown, None),
        ]
    }

    /// Who that is, for a request about this job.
    fn actor(&self, asker: Asker, about: Option<JobId>) -> Actor {
        let inside = |actor: Actor, job: JobId| Actor { inside: Some(job), ..actor };
        let accounts = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
        let coordinator = Actor { accounts: accounts(&["bio", "physics"]), ..actor(COORDINATOR) };
        let operator = Actor { rank: Rank::Operator, ..actor(OPERATOR) };
        let administrator = Actor { rank: Rank::Administrator, ..actor(ADMINISTRATOR) };
        match asker {
            Asker::Owner => actor(OWNER),
            Asker::Stranger => actor(STRANGER),
            Asker::Coordinator => coordinator,
            Asker::Elsewhere => Actor { accounts: accounts(&["physics2", ""]), ..actor(ELSEWHERE) },
            Asker::Operator => operator,
            Asker::Administrator => administrator,
            Asker::Root => actor(0),
            Asker::Inside => inside(actor(OWNER), about.unwrap_or(self.batch)),
            Asker::Beside => inside(actor(OWNER), self.beside),
            Asker::StrangerInside => inside(actor(STRANGER), self.strangers),
            Asker::CoordinatorInside => inside(coordinator, self.coordinators),
            Asker::OperatorInside => inside(operator, self.operators),
            Asker::AdministratorInside => inside(administrator, self.administrators),
            Asker::Intruder => inside(actor(STRANGER), about.unwrap_or(self.batch)),
            Asker::Late => inside(actor(OWNER), self.over),
        }
    }
}

/// Whether that was done. Anything but a refusal of who asks is a fault of the test.
fn was_done(answer: Result<Response, Refusal>, what: &str) -> bool {
    match answer {
        Ok(Response::Acted { jobs, refused, .. }) => match refused.first() {
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
    for asker in [
        Asker::Stranger,
        Asker::StrangerInside,
        Asker::Coordinator,
        Asker::CoordinatorInside,
        Asker::OperatorInside,
        Asker::AdministratorInside,
    ] {
        let mut there = There::new();
        let own = match asker {
            Asker::AdministratorInside => there.administrators,
            Asker::OperatorInside => there.operators,
            Asker::Coordinator | Asker::CoordinatorInside => there.coordinators,
            _ => there.strangers,
        };
        let actor = there.actor(asker, None);
        // All jobs have this name.
        let request = CancelRequest { name: Some("job".into()), ..CancelRequest::default() };
        match there.w.request(actor, Request::Cancel(request)) {
            Ok(Response::Acted { jobs, refused, .. }) => {
                assert_eq!((jobs, refused.len()), (vec![own], 0), "{asker:?}");
            }
            other => panic!("{asker:?}: {other:?}"),
        }
        for id in [there.batch, there.beside, there.allocation] {
            assert_eq!(there.w.state(id), JobState::Running, "{asker:?} ended job {id}");
        }
    }
}

#[test]
fn an_operators_hold_is_nobody_elses_to_release_or_to_take_over() {
    let held = |there: &There| vec![JobSelector::Job(there.held)];
    for holder in ALL {
        let mut row = String::new();
        for asker in ALL {
            let mut there = There::new();
            let (holding, releasing) = (there.actor(holder, None), there.actor(asker, None));
            let hold = Request::Hold(held(&there));
            if !was_done(there.w.request(holding, hold.clone()), &format!("{holder:?} holds")) {
                break;
            }
            // Who holds what is held makes it no more their own.
            let _ = there.w.request(releasing.clone(), hold);
            let release = Request::Release(held(&there));
            let what = format!("{holder:?} holds, {asker:?} releases");
            row.push(if was_done(there.w.request(releasing, release), &what) { 'x' } else { '.' });
        }
        let expected = match holder {
            Asker::Operator | Asker::Administrator | Asker::Root => OPERATORS,
            Asker::Owner | Asker::Coordinator | Asker::Inside | Asker::Beside => MANAGERS,
            _ => "",
        };
        assert_eq!(row, expected, "held by {holder:?}, released by {ALL:?}");
    }
}

#[test]
fn a_coordinator_ends_others_jobs_of_the_account_by_naming_it_or_them() {
    let mut there = There::new();
    let outside = there.w.batch("outside", |spec| spec.account = Some("chem".into()));
    let coordinator = there.actor(Asker::Coordinator, None);
    // The account: what else is in it is meant, and nothing of others.
    let request = CancelRequest { account: Some(ACCOUNT.into()), ..CancelRequest::default() };
    let owners = [there.batch, there.beside, there.allocation, there.held, there.components[0]];
    match there.w.request(coordinator.clone(), Request::Cancel(request)) {
        Ok(Response::Acted { jobs, refused, .. }) => {
            assert_eq!((jobs.into_iter().collect::<HashSet<_>>(), refused), (owners.into(), vec![]));
        }
        other => panic!("{other:?}"),
    }
    // A user: what the coordinator has no say over is told by name, with who has.
    let request = CancelRequest { user: Some(Uid(OWNER)), ..CancelRequest::default() };
    match there.w.request(coordinator, Request::Cancel(request)) {
        Ok(Response::Acted { jobs, refused, .. }) => {
            let outsiders: Vec<_> = refused.iter().filter(|(what, _)| *what == outside.to_string()).collect();
            assert!(!jobs.contains(&outside) && outsiders.len() == 1, "{jobs:?} {refused:?}");
            let text = &outsiders[0].1.message;
            assert!(
                text.contains("a coordinator of account chem, an operator or an administrator"),
                "{text}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(!there.w.state(outside).is_terminal());
}

#[test]
fn a_coordinator_has_no_say_over_parts_of_other_accounts_nor_over_roots_jobs() {
    let mut there = There::new();
    let mixed = Request::SubmitHet {
        components: vec![(paid(JobKind::Batch, "mixed"), script()), (job(JobKind::Batch, "mixed"), script())],
        test_only: false,
    };
    let mixed = made(there.w.request(actor(OWNER), mixed));
    let roots = made(there.w.request(actor(0), submission(paid(JobKind::Batch, "roots"))));
    let coordinator = there.actor(Asker::Coordinator, None);
    let selectors = [
        JobSelector::Job(mixed),
        JobSelector::Component(mixed, 0),
        JobSelector::Component(mixed, 1),
        JobSelector::Job(roots),
    ];
    for selector in selectors {
        let jobs = vec![(selector.clone(), None)];
        let request = Request::Cancel(CancelRequest { jobs, ..CancelRequest::default() });
        assert!(!was_done(there.w.request(coordinator.clone(), request), "cancel"), "{selector:?}");
    }
}

#[test]
fn jobs_are_moved_forward_by_operators() {
    let mut row = String::new();
    for asker in ALL {
        let mut there = There::new();
        let actor = there.actor(asker, None);
        let spec = JobSpec { nice: -1, ..paid(JobKind::Batch, "first") };
        let answer = there.w.request(actor, submission(spec));
        row.push(if was_done(answer, &format!("{asker:?}")) { 'x' } else { '.' });
    }
    assert_eq!(row, OPERATORS);
}

#[test]
fn the_log_says_as_what_something_was_done() {
    let mut there = There::new();
    let before = there.w.writes.len();
    let named = |id: JobId| vec![JobSelector::Job(id)];
    let drain = Request::UpdateNode {
        nodes: vec!["n1".into()],
        state: NodeStateChange::Drain,
        reason: Some("fan".into()),
    };
    for (asker, request) in [
        (Asker::Owner, Request::Hold(named(there.held))),
        (Asker::Coordinator, Request::Hold(named(there.held))),
        (Asker::Coordinator, Request::Release(named(there.coordinators))),
        (Asker::Operator, Request::Requeue(named(there.batch))),
        (Asker::Operator, drain.clone()),
        (Asker::Administrator, drain),
        (Asker::Root, enrol(0, 5, "n5")),
    ] {
        let actor = there.actor(asker, None);
        there.w.request(actor, request).unwrap();
    }
    let rows = there.w.writes[before..].iter().filter_map(|write| match write {
        Write::AddAudit(row) => Some((row.uid.0, row.role, row.what.split(' ').next().unwrap())),
        _ => None,
    });
    let expected = [
        (COORDINATOR, Some(Role::Coordinator), "held"),
        (OPERATOR, Some(Role::Operator), "requeued"),
        (OPERATOR, Some(Role::Operator), "set"),
        (ADMINISTRATOR, Some(Role::Administrator), "set"),
        (0, None, "n5"),
    ];
    assert_eq!(rows.collect::<Vec<_>>(), expected);
}

#[test]
fn records_are_shown_whole_to_whom_they_concern() {
    let there = There::new();
    let outside = ALL.into_iter().filter(|asker| there.actor(*asker, None).inside.is_none());
    let own = there.w.info(there.batch);
    let root = JobInfo { identity: berth_samples::identity(0), ..own.clone() };
    let row = |job: &JobInfo| -> String {
        outside.clone().map(|asker| if there.actor(asker, None).reads(job) { 'x' } else { '.' }).collect()
    };
    assert_eq!((row(&own).as_str(), row(&root).as_str()), ("x.x.xxx", "....xxx"));
}
