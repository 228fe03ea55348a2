//! Who belongs to the cluster: tokens, joining, keys, approval, removal, and the log of who decided it.

use crate::common::*;
use berth_model::config::Config;
use berth_model::exchange::{FromPeers, ToPeers};
use berth_model::ids::*;
use berth_model::link::{FromAgent, ToAgent};
use berth_model::member::*;
use berth_model::request::*;
use berth_model::spec::{JobKind, JobSelector};
use berth_model::state::{ExitStatus, JobState, Reason};
use berth_model::time::{Span, Time};
use berth_sched_core::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const HOUR: Span = Span::from_mins(60);

fn hash(of: u8) -> String {
    hex(&[of; 32])
}

pub(crate) fn key(of: u8) -> KeyId {
    KeyId::of_digest([of; 32])
}

/// The id of the `n`-th token.
fn id(n: u8) -> String {
    format!("aaaaaaa{}", char::from(b'a' + n))
}

pub(crate) fn token_with(n: u8, change: impl FnOnce(&mut NewToken)) -> Request {
    let mut token =
        NewToken { role: MemberRole::Compute, ttl: HOUR, uses: 1, approval: false, administrators: false };
    change(&mut token);
    let NewToken { role, ttl, uses, approval, administrators } = token;
    Request::CreateToken { id: id(n), hash: hash(n), role, ttl, uses, approval, administrators }
}

fn token(n: u8) -> Request {
    token_with(n, |_| {})
}

pub(crate) fn enrol(with: u8, of: u8, name: &str) -> Request {
    Request::Enrol {
        token: id(with),
        hash: hash(with),
        key: key(of),
        name: name.into(),
        from: "10.0.0.7".into(),
    }
}

fn renew(name: &str, old: u8, new: u8) -> Request {
    Request::Renew { name: name.into(), old: key(old), new: key(new) }
}

fn approve(name: &str) -> Request {
    Request::ApproveMember { name: name.into() }
}

fn remove(name: &str, force: bool) -> Request {
    Request::RemoveMember { name: name.into(), force }
}

pub(crate) fn ready(address: &str, key: KeyId) -> FromPeers {
    FromPeers::Ready { address: address.into(), key: key.0, streams: true, connected: vec![] }
}

fn leave(name: &str, of: u8) -> Request {
    Request::Leave { name: name.into(), key: key(of) }
}

impl World {
    pub(crate) fn root(&mut self, body: Request) -> Result<Response, Refusal> {
        self.request(actor(0), body)
    }

    pub(crate) fn joined(&mut self, body: Request) -> MemberInfo {
        match self.root(body) {
            Ok(Response::Enrolled { member }) => member,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn refused(&mut self, body: Request, code: RefusalCode) -> String {
        let before = self.writes.len();
        let refusal = self.root(body).unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
        assert_eq!(self.writes.len(), before, "a refused request changes nothing: {refusal}");
        refusal.message
    }

    /// What was entered into the log.
    pub(crate) fn log(&self) -> Vec<AuditRow> {
        let rows =
            self.writes.iter().filter_map(|w| if let Write::AddAudit(row) = w { Some(row) } else { None });
        rows.map(|row| (**row).clone()).collect()
    }

    pub(crate) fn restored(&self) -> Cluster {
        let config = CoreConfig::new(&Config::default()).unwrap();
        Cluster::restore(config, Term(2), stored(&self.writes), self.now).unwrap()
    }

    pub(crate) fn token_rows(&self) -> Vec<TokenRow> {
        stored(&self.writes).tokens
    }
}

pub(crate) fn empty() -> World {
    World::new(&Config::default())
}

#[test]
fn a_machine_joins_with_a_token_and_is_known_by_its_key() {
    let mut w = empty();
    assert_eq!(w.root(token(0)), Ok(Response::Done));
    let info = w.core.snapshot().token(&id(0)).unwrap();
    assert_eq!((info.role, info.uses_left, info.expires), (MemberRole::Compute, 1, w.now + HOUR));
    assert_eq!(info.by, actor(0).identity.user);
    let member = w.joined(enrol(0, 1, "n1.example.org"));
    assert_eq!(
        member,
        MemberInfo {
            name: "n1.example.org".into(),
            role: MemberRole::Compute,
            state: MemberState::Approved,
            key: key(1),
            joined: w.now,
            token: id(0),
            from: "10.0.0.7".into(),
            renewed: w.now,
            ends: None,
            administrators: false,
        }
    );
    let snapshot = w.core.snapshot();
    assert_eq!(snapshot.member_by_key(&key(1)), Some(member.clone()));
    assert_eq!(snapshot.member(&member.name), Some(member));
    assert_eq!(snapshot.member_by_key(&key(2)), None);
    assert_eq!((snapshot.members().count(), snapshot.tokens().count()), (1, 0), "its one use is made");
    assert!(w.token_rows().is_empty(), "and its row is gone");
}

#[test]
fn tokens_are_made_within_bounds_and_by_administrators() {
    let mut w = empty();
    let spoilt: [(&str, Request); 9] = [
        ("--ttl", token_with(0, |t| t.ttl = Span::from_secs(59))),
        ("--ttl", token_with(0, |t| t.ttl = Span(LONGEST_TTL.0 + 1))),
        ("--ttl", token_with(0, |t| t.ttl = Span(i64::MIN))),
        ("--uses", token_with(0, |t| t.uses = 0)),
        ("--uses", token_with(0, |t| t.uses = 100_001)),
        ("--role login", token_with(0, |t| t.administrators = true)),
        ("is none", {
            let Request::CreateToken { role, ttl, uses, approval, administrators, hash, .. } = token(0)
            else {
                panic!()
            };
            Request::CreateToken { id: "ABC".into(), hash, role, ttl, uses, approval, administrators }
        }),
        ("is none", {
            let Request::CreateToken { role, ttl, uses, approval, administrators, id, .. } = token(0) else {
                panic!()
            };
            Request::CreateToken { id, hash: "00".into(), role, ttl, uses, approval, administrators }
        }),
        ("no token", Request::RevokeToken { id: id(3) }),
    ];
    for (word, request) in spoilt {
        let refusal = w.root(request).unwrap_err();
        assert!(refusal.message.contains(word), "{refusal}");
    }
    for request in
        [token(0), Request::RevokeToken { id: id(0) }, approve("n1"), remove("n1", true), Request::Shutdown]
    {
        let denied = w.request(actor(1000), request.clone()).unwrap_err();
        assert_eq!(denied.code, RefusalCode::Denied, "{denied}");
        assert!(denied.message.contains("only an administrator"), "{denied}");
    }
    for request in [enrol(0, 1, "n1"), renew("n1", 1, 2), leave("n1", 1)] {
        let denied = w.request(actor(1000), request).unwrap_err();
        assert_eq!(denied.code, RefusalCode::Denied, "no client speaks for a machine: {denied}");
    }
    assert!(w.writes.is_empty());
    for edge in [SHORTEST_TTL, LONGEST_TTL] {
        w.root(token_with(u8::from(edge == LONGEST_TTL), |t| (t.ttl, t.uses) = (edge, MOST_USES))).unwrap();
    }
    assert!(w.root(token(0)).unwrap_err().message.contains("try again"), "an id is not given twice");
}

#[test]
fn one_text_refuses_every_token_that_is_not_good() {
    let mut w = empty();
    w.root(token_with(0, |t| t.ttl = SHORTEST_TTL)).unwrap();
    w.root(token(1)).unwrap();
    w.root(token(2)).unwrap();
    w.joined(enrol(1, 1, "n1"));
    w.root(Request::RevokeToken { id: id(2) }).unwrap();
    let wrong = Request::Enrol {
        token: id(0),
        hash: hash(9),
        key: key(2),
        name: "n2".into(),
        from: "10.0.0.8".into(),
    };
    let mut texts = BTreeSet::new();
    texts.insert(w.refused(wrong, RefusalCode::Denied)); // wrong secret
    texts.insert(w.refused(enrol(7, 2, "n2"), RefusalCode::Denied)); // unknown
    texts.insert(w.refused(enrol(1, 2, "n2"), RefusalCode::Denied)); // used up
    texts.insert(w.refused(enrol(2, 2, "n2"), RefusalCode::Denied)); // revoked
    // A name that is taken is not told to who has no token.
    texts.insert(w.refused(enrol(7, 2, "n1"), RefusalCode::Denied));
    w.now = w.now + SHORTEST_TTL;
    texts.insert(w.root(enrol(0, 2, "n2")).unwrap_err().message); // expired, at that moment
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert!(texts.first().unwrap().contains("berth token create"));
    assert!(w.token_rows().is_empty(), "the expired one's row is gone");
}

#[test]
fn uses_are_counted_and_tokens_expire_by_themselves() {
    let mut w = empty();
    w.root(token_with(0, |t| t.uses = 3)).unwrap();
    w.joined(enrol(0, 1, "n1"));
    w.joined(enrol(0, 2, "n2"));
    assert_eq!(w.core.snapshot().token(&id(0)).unwrap().uses_left, 1);
    assert_eq!(w.token_rows()[0].uses_left, 1);
    w.joined(enrol(0, 3, "n3"));
    assert!(w.core.snapshot().tokens().next().is_none());
    w.refused(enrol(0, 4, "n4"), RefusalCode::Denied);

    w.root(token(1)).unwrap();
    assert_eq!(w.core.next_wake(), Some(w.now + HOUR));
    w.later(Span(HOUR.0 - 1));
    assert_eq!(w.token_rows().len(), 1);
    w.later(Span(1));
    assert!(w.token_rows().is_empty() && w.core.snapshot().tokens().next().is_none());
}

#[test]
fn an_answer_that_was_lost_is_given_again_and_costs_nothing() {
    let mut w = empty();
    w.root(token(0)).unwrap();
    let member = w.joined(enrol(0, 1, "n1"));
    // The token had one use, and its row is gone: the machine still gets its answer, for a while.
    w.now = w.now + Span::from_secs(30);
    let before = w.writes.len();
    assert_eq!(w.joined(enrol(0, 1, "n1")), member);
    assert_eq!(w.writes.len(), before);
    let wrong = Request::Enrol {
        token: id(0),
        hash: hash(5),
        key: key(1),
        name: "n1".into(),
        from: "10.0.0.9".into(),
    };
    w.refused(wrong, RefusalCode::Denied);
    w.refused(enrol(0, 2, "n1"), RefusalCode::Denied);
    w.refused(enrol(0, 1, "n2"), RefusalCode::Denied);
    w.now = w.now + HOUR;
    w.refused(enrol(0, 1, "n1"), RefusalCode::Denied);
    // With a token that is good, it may ask as often as it likes.
    w.root(token(1)).unwrap();
    assert_eq!(w.joined(enrol(1, 1, "n1")), member);
    assert_eq!(w.core.snapshot().token(&id(1)).unwrap().uses_left, 1);
    // But it does not change what it is for.
    w.root(token_with(2, |t| t.role = MemberRole::Login)).unwrap();
    assert!(w.refused(enrol(2, 1, "n1"), RefusalCode::WrongState).contains("compute node already"));
    // Removed, it needs a token like everybody.
    w.root(remove("n1", false)).unwrap();
    w.refused(enrol(0, 1, "n1"), RefusalCode::Denied);
}

#[test]
fn names_and_keys_belong_to_one_machine() {
    let mut w = World::small(); // with the controller's own node n1
    w.root(token_with(0, |t| t.uses = 100)).unwrap();
    w.joined(enrol(0, 2, "n2"));
    for name in ["n2", "N2"] {
        let text = w.refused(enrol(0, 3, name), RefusalCode::WrongState);
        assert!(text.contains("n2") && text.contains("berth node remove n2"), "{text}");
    }
    assert!(w.refused(enrol(0, 3, "n1"), RefusalCode::WrongState).contains("n1"), "nor the controller's own");
    let text = w.refused(enrol(0, 2, "n3"), RefusalCode::WrongState);
    assert!(text.contains("that of n2"), "{text}");
    for name in ["", "../n4", "n[4-5]", "n 4", "n4\n", "-n4", &"n".repeat(300)] {
        let text = w.refused(enrol(0, 4, name), RefusalCode::Invalid);
        assert!(text.contains("host name") && !text.contains('\n'), "{text}");
    }
    let odd = Request::Enrol {
        token: id(0),
        hash: hash(0),
        key: KeyId("zz".into()),
        name: "n4".into(),
        from: String::new(),
    };
    w.refused(odd, RefusalCode::Invalid);
    assert_eq!(w.core.snapshot().token(&id(0)).unwrap().uses_left, 99, "refusals cost no use");
}

#[test]
fn a_key_is_renewed_by_who_has_the_old_one() {
    let mut w = empty();
    w.root(token_with(0, |t| t.uses = 2)).unwrap();
    w.joined(enrol(0, 1, "n1"));
    w.joined(enrol(0, 2, "n2"));
    w.now = w.now + HOUR;
    let renewed = w.joined(renew("n1", 1, 3));
    assert_eq!((renewed.key.clone(), renewed.renewed), (key(3), w.now));
    assert!(renewed.joined < renewed.renewed);
    let entry = w.log().pop().unwrap();
    let what = format!("n1 exchanged its key {} for {}", key(1).short(), key(3).short());
    assert_eq!((entry.user.as_str(), entry.what), ("node n1", what));
    let snapshot = w.core.snapshot();
    assert_eq!(snapshot.member_by_key(&key(1)), None, "the old one is good for nothing");
    assert_eq!(snapshot.member_by_key(&key(3)), Some(renewed.clone()));
    let before = w.writes.len();
    assert_eq!(w.joined(renew("n1", 1, 3)), renewed, "a lost answer is given again");
    assert_eq!(w.writes.len(), before);
    assert!(w.refused(renew("n1", 1, 4), RefusalCode::Denied).contains("another key"));
    assert!(w.refused(renew("n1", 3, 2), RefusalCode::WrongState).contains("that of n2"));
    assert!(w.refused(renew("n9", 1, 4), RefusalCode::NotFound).contains("join again"));
    let odd = Request::Renew { name: "n1".into(), old: key(3), new: KeyId("A".repeat(64)) };
    w.refused(odd, RefusalCode::Invalid);
}

/// The keys that nodes were told to be nobody's.
fn ended(w: &World) -> Vec<String> {
    let key = |message: &ToAgent| match message {
        ToAgent::Peers(ToPeers::EndServe { key, digest: None }) => Some(key.clone()),
        _ => None,
    };
    w.sent.iter().filter_map(key).collect()
}

#[test]
fn keys_that_are_nobodys_any_more_are_ended_on_all_nodes_at_once_and_on_those_that_come_back() {
    let mut w = empty();
    w.root(token_with(0, |t| t.uses = 2)).unwrap();
    w.root(token_with(1, |t| t.role = MemberRole::Login)).unwrap();
    w.joined(enrol(0, 2, "n2"));
    w.joined(enrol(0, 3, "n3"));
    w.joined(enrol(1, 9, "front"));
    // n1 is on the controller's machine: its key is on no record.
    for name in ["n1", "n2", "n3"] {
        w.node(name, hardware(2, 1, 4000, 0));
    }
    let says = |w: &mut World, node: &str, shows: u8, connected: &[u8]| {
        w.sent.clear();
        let connected = connected.iter().map(|of| key(*of).0).collect();
        let address = "10.0.0.9:7818".to_string();
        let said = FromPeers::Ready { address, key: key(shows).0, streams: true, connected };
        w.tell(node, |session| FromAgent::Peers { session, said });
        ended(w)
    };
    let keys = |of: &[u8]| of.iter().map(|of| key(*of).0).collect::<Vec<String>>();
    assert!(says(&mut w, "n1", 1, &[]).is_empty());
    assert!(says(&mut w, "n2", 2, &[9, 3, 1]).is_empty());
    assert!(says(&mut w, "n3", 3, &[9]).is_empty());
    // A login node's, which is no node of the exchange, and a compute node's before that shows the new one.
    w.sent.clear();
    w.joined(renew("front", 9, 10));
    assert_eq!(ended(&w), keys(&[9, 9, 9]));
    w.sent.clear();
    w.joined(renew("n3", 3, 4));
    assert_eq!(ended(&w), keys(&[3, 3, 3]));
    assert!(says(&mut w, "n3", 3, &[]).is_empty(), "it does not know yet");
    assert!(says(&mut w, "n3", 4, &[]).is_empty());

    // It was away meanwhile.
    w.node("n2", hardware(2, 1, 4000, 0));
    assert_eq!(says(&mut w, "n2", 2, &[9, 10, 3, 4, 1]), keys(&[3, 9]));
    // After a start of the controller its own machine's key is not known before that has told it.
    w.core = w.restored();
    w.node("n2", hardware(2, 1, 4000, 0));
    assert!(says(&mut w, "n2", 2, &[9, 1]).is_empty());
    w.node("n1", hardware(2, 1, 4000, 0));
    assert_eq!(says(&mut w, "n1", 1, &[]), keys(&[9]));
    // Nor is it waited for without end.
    w.core = w.restored();
    w.node("n2", hardware(2, 1, 4000, 0));
    assert!(says(&mut w, "n2", 2, &[10, 1]).is_empty());
    w.sent.clear();
    w.later(Span::from_secs(10));
    assert_eq!(ended(&w), keys(&[1]));
}

#[test]
fn a_machine_waits_for_its_approval() {
    let mut w = empty();
    w.root(token_with(0, |t| {
        (t.role, t.approval, t.administrators) = (MemberRole::Login, true, true);
    }))
    .unwrap();
    let member = w.joined(enrol(0, 1, "login1"));
    assert_eq!(
        (member.role, member.state, member.administrators),
        (MemberRole::Login, MemberState::Pending, true)
    );
    w.root(approve("login1")).unwrap();
    assert_eq!(w.core.snapshot().member_by_key(&key(1)).unwrap().state, MemberState::Approved);
    let before = w.writes.len();
    w.root(approve("login1")).unwrap();
    assert_eq!(w.writes.len(), before);
    w.refused(approve("login2"), RefusalCode::NotFound);
}

#[test]
fn a_removed_machine_is_cut_off_and_its_name_is_free() {
    let mut w = empty();
    w.root(token_with(0, |t| t.uses = 3)).unwrap();
    w.joined(enrol(0, 1, "n1"));
    w.joined(enrol(0, 2, "n2"));
    w.node("n1", hardware(4, 1, 4000, 0));
    w.node("n2", hardware(4, 1, 4000, 0));
    let again = w.batch("again", |s| s.resources.node_list = vec!["n1".into()]);
    let both = w.batch("both", |s| {
        s.resources.min_nodes = 2;
        s.resources.tasks = Some(2);
        s.requeue = Some(false);
    });
    let waits = w.batch("waits", |s| (s.resources.tasks, s.resources.exclusive) = (Some(1), true));
    assert_eq!(
        (w.state(again), w.state(both), w.state(waits)),
        (JobState::Running, JobState::Running, JobState::Pending)
    );
    let text = w.refused(remove("n1", false), RefusalCode::WrongState);
    assert!(text.contains(&format!("{again}, {both}")) && text.contains("--force"), "{text}");
    assert!(w.cut.is_empty());
    w.sent.clear();
    let asked = w.request_later(actor(0), remove("n1", true));
    assert!(w.sent.iter().any(|m| matches!(m, ToAgent::EndJob { job, .. } if *job == both)));
    assert_eq!((w.state(again), w.state(both)), (JobState::Completing, JobState::Completing));
    // Nobody has it back in service meanwhile, and who asks for it again is told with the first.
    let resume =
        Request::UpdateNode { nodes: vec!["n1".into()], state: NodeStateChange::Resume, reason: None };
    assert!(w.refused(resume, RefusalCode::WrongState).contains("is being removed"));
    let twice = w.request_later(actor(0), remove("n1", true));
    w.gone("n1", both, 0);
    assert!(w.cut.is_empty() && !w.replies.contains_key(&asked), "before all is gone");
    w.gone("n1", again, 0);
    assert_eq!(w.cut, [NodeName::from("n1")]);
    assert_eq!(
        [asked, twice].map(|id| w.replies.remove(&id)),
        [Some(Ok(Response::Done)), Some(Ok(Response::Done))]
    );
    assert_eq!(w.state(again), JobState::Pending, "it goes back to the queue");
    assert!(matches!(w.info(again).reason, Reason::ReqNodeNotAvail(_)), "{:?}", w.info(again).reason);
    assert_eq!(w.state(both), JobState::Completing, "until the other node has ended it");
    w.gone("n2", both, 0);
    assert_eq!((w.state(both), w.info(both).reason), (JobState::NodeFail, Reason::NodeDown));
    assert_eq!(w.state(waits), JobState::Running);
    let snapshot = w.core.snapshot();
    assert!(snapshot.node(&"n1".into()).is_none() && snapshot.member(&"n1".into()).is_none());
    assert!(snapshot.member_by_key(&key(1)).is_none());
    assert!(w.log().last().unwrap().what.contains("removed n1"), "{:?}", w.log());
    let back = w.restored();
    back.audit().unwrap();
    assert!(back.snapshot().node(&"n1".into()).is_none());
    // What it still says is not heard, and does not make it a node again.
    w.sent.clear();
    w.node("n1", hardware(4, 1, 4000, 0));
    assert!(w.core.snapshot().node(&"n1".into()).is_none());
    assert!(matches!(&w.sent[..], [ToAgent::Refused(why)] if why.contains("removed")), "{:?}", w.sent);
    // Another machine may have the name now, and the job that wanted it runs there.
    w.joined(enrol(0, 3, "n1"));
    w.node("n1", hardware(4, 1, 4000, 0));
    assert_eq!(w.state(again), JobState::Running);
    w.refused(remove("n7", true), RefusalCode::NotFound);
}

#[test]
fn a_machine_that_was_being_removed_when_the_controller_ended_is_out_when_its_jobs_are_gone() {
    for comes in [true, false] {
        let mut w = empty();
        w.root(token(0)).unwrap();
        w.joined(enrol(0, 1, "n1"));
        w.node("n1", hardware(4, 1, 4000, 0));
        let job = w.batch("runs", |s| s.requeue = Some(false));
        w.request_later(actor(0), remove("n1", true));
        assert_eq!(w.state(job), JobState::Completing);
        w.core = w.restored();
        w.event(Event::Tick);
        let resume =
            Request::UpdateNode { nodes: vec!["n1".into()], state: NodeStateChange::Resume, reason: None };
        assert!(w.refused(resume, RefusalCode::WrongState).contains("is being removed"));
        assert!(w.cut.is_empty() && w.core.snapshot().member_by_key(&key(1)).is_some());
        if comes {
            w.hello("n1", "boot", hardware(4, 1, 4000, 0), vec![], vec![(job, Attempt(0))]);
            assert!(w.cut.is_empty(), "it still has the job");
            w.gone("n1", job, 0);
        } else {
            // All that an end may take is over.
            w.later(Span::from_secs(100));
        }
        assert_eq!(w.cut, [NodeName::from("n1")]);
        assert!(w.core.snapshot().member_by_key(&key(1)).is_none());
        assert!(w.log().last().unwrap().what.contains("removed n1 with key"), "{:?}", w.log());
        assert!(w.restored().snapshot().member(&"n1".into()).is_none());
        assert_eq!(w.state(job), JobState::NodeFail);
    }
}

#[test]
fn a_machine_leaves_by_its_own_key_alone_and_while_no_job_needs_it() {
    let mut w = empty();
    w.root(token_with(0, |t| t.uses = 3)).unwrap();
    w.joined(enrol(0, 1, "n1"));
    w.joined(enrol(0, 2, "n2"));
    w.node("n1", hardware(4, 1, 4000, 0));
    w.node("n2", hardware(4, 1, 4000, 0));
    let runs = w.batch("runs", |s| s.resources.node_list = vec!["n1".into()]);
    assert_eq!(w.state(runs), JobState::Running);
    // Another machine's key, and one that is nobody's.
    for of in [2, 3] {
        let text = w.refused(leave("n1", of), RefusalCode::Denied);
        assert!(text.contains("n1 has another key"), "{text}");
    }
    w.refused(leave("n9", 1), RefusalCode::NotFound);
    let text = w.refused(leave("n1", 1), RefusalCode::WrongState);
    assert!(text.contains(&format!("on n1: {runs};")), "{text}");
    assert!(text.contains("berth node remove --force n1"), "{text}");
    assert!(w.cut.is_empty());
    w.exited("n1", batch_key(runs, 0), ExitStatus::OK);
    w.gone("n1", runs, 0);
    assert_eq!(w.state(runs), JobState::Completed);
    assert_eq!(w.root(leave("n1", 1)), Ok(Response::Done));
    assert_eq!(w.cut, [NodeName::from("n1")]);
    let entry = w.log().pop().unwrap();
    let what = format!("n1 left the cluster with key {}", key(1).short());
    assert_eq!((entry.user.as_str(), entry.role, entry.what), ("node n1", None, what));
    let snapshot = w.core.snapshot();
    assert!(snapshot.node(&"n1".into()).is_none() && snapshot.member(&"n1".into()).is_none());
    assert!(snapshot.member_by_key(&key(1)).is_none() && snapshot.node(&"n2".into()).is_some());
    let back = w.restored();
    back.audit().unwrap();
    assert!(back.snapshot().node(&"n1".into()).is_none());
    // Said again it changes nothing, and with a token it is a member as any other.
    w.refused(leave("n1", 1), RefusalCode::NotFound);
    w.joined(enrol(0, 3, "n1"));
    w.node("n1", hardware(4, 1, 4000, 0));
    assert!(w.core.snapshot().node(&"n1".into()).is_some());
    assert!(w.refused(leave("n1", 1), RefusalCode::Denied).contains("another key"));
}

#[test]
fn the_controllers_own_node_is_removed_only_when_it_is_away() {
    let mut w = World::small();
    for force in [false, true] {
        let text = w.refused(remove("n1", force), RefusalCode::WrongState);
        assert!(text.contains("agent is connected"), "{text}");
    }
    w.event(Event::AgentLost { node: "n1".into(), connection: 1 });
    w.root(remove("n1", false)).unwrap();
    assert!(w.core.snapshot().node(&"n1".into()).is_none());
    w.later(HOUR); // its timers find nothing
}

#[test]
fn root_runs_jobs_until_another_machine_joins_or_as_it_is_written() {
    for (written, alone, joined) in
        [(None, true, false), (Some(true), true, true), (Some(false), false, false)]
    {
        let mut w = World::new(&Config { root_jobs: written, ..Config::default() });
        w.node("n1", hardware(4, 1, 4000, 0));
        let submit = |w: &mut World, name: &str| {
            let spec = Box::new(job(JobKind::Batch, name));
            w.root(Request::Submit { spec, payload: script(), first_step: None, test_only: false })
        };
        let says = |result: Result<Response, Refusal>| match result {
            Ok(_) => true,
            Err(refusal) => {
                assert!(refusal.message.contains("root_jobs = "), "{refusal}");
                false
            }
        };
        assert_eq!(says(submit(&mut w, "alone")), alone);
        w.root(token(0)).unwrap();
        w.joined(enrol(0, 2, "n2"));
        assert_eq!(says(submit(&mut w, "joined")), joined);
        w.batch("of-a-user", |_| {});
        w.root(remove("n2", false)).unwrap();
        assert_eq!(says(submit(&mut w, "alone-again")), alone);
    }
}

#[test]
fn what_was_asked_by_way_of_another_machine_is_entered_with_its_name() {
    let mut w = empty();
    w.root(token(0)).unwrap();
    w.request(Actor { via: Some("desk".into()), ..actor(0) }, token(1)).unwrap();
    let via: Vec<Option<NodeName>> = w.log().into_iter().map(|row| row.via).collect();
    assert_eq!(via, [None, Some("desk".into())]);
}

#[test]
fn what_administrators_do_is_entered_with_the_thing_itself() {
    let mut w = World::small();
    let theirs = w.batch("theirs", |_| {});
    let other = w.batch("other", |s| s.hold = true);
    assert!(w.log().is_empty(), "users' own affairs are not entered");
    let selectors = |id: JobId| vec![JobSelector::Job(id)];
    let cancel = |id: JobId, signal| {
        Request::Cancel(CancelRequest {
            jobs: vec![(JobSelector::Job(id), None)],
            signal,
            ..CancelRequest::default()
        })
    };
    w.request(actor(1000), Request::Release(selectors(other))).unwrap();
    w.request(actor(1000), Request::Hold(selectors(other))).ok();
    assert!(w.log().is_empty());
    let state = Request::UpdateNode {
        nodes: vec!["n1".into()],
        state: NodeStateChange::Drain,
        reason: Some("fan".into()),
    };
    let saved = |ago| Request::BackedUp { by: "root".into(), file: "/b.tar".into(), ago };
    let steps: Vec<(Request, String)> = vec![
        (state, "set n1 to DRAIN: fan".into()),
        (token(0), "made token aaaaaaaa for 1 compute node".into()),
        (enrol(0, 3, "n3"), format!("n3 joined as compute node from 10.0.0.7 with key {}", key(3).short())),
        (cancel(theirs, Some(10)), format!("sent signal 10 to job {theirs} of u1000")),
        (Request::Requeue(selectors(theirs)), format!("requeued job {theirs} of u1000")),
        (cancel(theirs, None), format!("cancelled job {theirs} of u1000")),
        (remove("n3", false), format!("removed n3 with key {}", key(3).short())),
        (saved(Span(0)), "saved all records and keys of the cluster in /b.tar".into()),
        (
            saved(Span::from_mins(90)),
            "saved all records and keys of the cluster in /b.tar, 90 min before this entry".into(),
        ),
        (Request::Shutdown, "stopped the controller".into()),
    ];
    let owner = w.info(theirs).identity.user;
    for (number, (request, what)) in (1..).zip(steps) {
        w.root(request).unwrap();
        let row = w.log().pop().unwrap();
        let expected = what.replace("u1000", &owner);
        assert_eq!(
            (row.number, row.what.as_str(), row.at, row.uid),
            (number, expected.as_str(), w.now, Uid(0))
        );
        assert_eq!(w.log().len() as u64, number);
    }
    assert_eq!(w.log()[2].user, format!("token {}", id(0)), "who vouched for the machine");
    // What is refused is not entered, and what root does to its own jobs is not either.
    w.refused(remove("n9", true), RefusalCode::NotFound);
    let spec = Box::new(job(JobKind::Batch, "own"));
    let Ok(Response::Submitted { job: own, .. }) =
        w.root(Request::Submit { spec, payload: script(), first_step: None, test_only: false })
    else {
        panic!()
    };
    w.root(cancel(own, None)).unwrap();
    assert_eq!(w.log().len(), 10);
    // The numbers go on after a restart, and no entry grows without bound.
    let mut core = w.restored();
    let reason = Some("x".repeat(100_000));
    let body = Request::UpdateNode { nodes: vec!["n1".into()], state: NodeStateChange::Down, reason };
    let event = Event::Client { request: RequestId(1), actor: actor(0), body };
    let Outcome { writes, .. } = core.handle(event, w.now);
    let rows: Vec<_> =
        writes.iter().filter_map(|w| if let Write::AddAudit(r) = w { Some(r) } else { None }).collect();
    assert_eq!((rows.len(), rows[0].number), (1, 11));
    assert!(rows[0].what.len() < 3000);
}

#[test]
fn rows_that_cannot_be_are_refused_by_name() {
    type Spoil = fn(&mut Stored);
    let cases: [(&str, Spoil); 7] = [
        ("member n2", |s| s.members[1].key = s.members[0].key.clone()),
        ("member n1", |s| s.members[0].version = ROW_VERSION + 1),
        ("member n1", |s| s.members[0].key = KeyId("1".into())),
        ("member n1", |s| {
            s.members[1] = MemberRow { key: key(9), ..s.members[0].clone() };
        }),
        ("member ../x", |s| s.members[0].name = "../x".into()),
        ("token aaaaaaab", |s| s.tokens[0].hash.clear()),
        ("token aaaaaaab", |s| s.tokens[0].version = ROW_VERSION + 1),
    ];
    for (row, spoil) in cases {
        let mut w = empty();
        w.root(token_with(0, |t| t.uses = 2)).unwrap();
        w.joined(enrol(0, 1, "n1"));
        w.joined(enrol(0, 2, "n2"));
        w.root(token(1)).unwrap();
        let mut rows = stored(&w.writes);
        spoil(&mut rows);
        let config = CoreConfig::new(&Config::default()).unwrap();
        let error = Cluster::restore(config, Term(2), rows, Time(0))
            .err()
            .unwrap_or_else(|| panic!("{row} was accepted"));
        assert!(error.row.contains(row) && !error.why.is_empty(), "{error}");
    }
}

/// Something that happens, from few names, keys and tokens, so that they meet.
#[derive(Clone, Debug)]
enum Act {
    Token(u8, u32, bool),
    Revoke(u8),
    Enrol(u8, u8, u8),
    Renew(u8, u8, u8),
    Approve(u8),
    Remove(u8),
    Leave(u8, u8),
    Hello(u8),
    Wait(i64),
}

fn act() -> impl Strategy<Value = Act> {
    let few = || 0..4u8;
    prop_oneof![
        2 => (few(), 1..4u32, any::<bool>()).prop_map(|(n, uses, approval)| Act::Token(n, uses, approval)),
        1 => few().prop_map(Act::Revoke),
        6 => (few(), few(), few()).prop_map(|(t, k, n)| Act::Enrol(t, k, n)),
        3 => (few(), few(), few()).prop_map(|(n, a, b)| Act::Renew(n, a, b)),
        1 => few().prop_map(Act::Approve),
        2 => few().prop_map(Act::Remove),
        3 => (few(), few()).prop_map(|(n, k)| Act::Leave(n, k)),
        1 => few().prop_map(Act::Hello),
        1 => (1..5000i64).prop_map(Act::Wait),
    ]
}

fn members_of(core: &Cluster) -> (Vec<MemberInfo>, Vec<TokenInfo>) {
    let snapshot = core.snapshot();
    (snapshot.members().collect(), snapshot.tokens().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn names_and_keys_stay_unique_and_come_back_from_the_rows(acts in proptest::collection::vec(act(), 1..40)) {
        let mut w = empty();
        let mut gone: BTreeMap<KeyId, NodeName> = BTreeMap::new();
        for act in acts {
            let before: BTreeMap<KeyId, NodeName> = members_of(&w.core).0.into_iter().map(|m| (m.key, m.name)).collect();
            let name = |n: u8| format!("n{n}");
            // Most are refused; the books must be right in any case.
            let _ = match act.clone() {
                Act::Token(n, most, wait) => {
                    w.root(token_with(n, |t| (t.uses, t.approval) = (most, wait)))
                }
                Act::Revoke(n) => w.root(Request::RevokeToken { id: id(n) }),
                Act::Enrol(t, k, n) => w.root(enrol(t, k, &name(n))),
                Act::Renew(n, a, b) => w.root(renew(&name(n), a, b)),
                Act::Approve(n) => w.root(approve(&name(n))),
                Act::Remove(n) => w.root(remove(&name(n), true)),
                Act::Leave(n, k) => w.root(leave(&name(n), k)),
                Act::Hello(n) => {
                    if w.core.snapshot().member(&name(n).as_str().into()).is_some() {
                        w.node(&name(n), hardware(1, 1, 100, 0));
                    }
                    Ok(Response::Done)
                }
                Act::Wait(secs) => {
                    w.later(Span::from_secs(secs));
                    Ok(Response::Done)
                }
            };
            w.core.audit().unwrap();
            let (members, tokens) = members_of(&w.core);
            let names: BTreeSet<_> = members.iter().map(|m| &m.name).collect();
            let keys: BTreeSet<_> = members.iter().map(|m| &m.key).collect();
            prop_assert_eq!((names.len(), keys.len()), (members.len(), members.len()));
            prop_assert!(tokens.iter().all(|t| t.uses_left > 0 && t.expires > w.now));
            // A key moves to another name only after a removal or a renewal gave it up.
            for member in &members {
                if let Some(old) = before.get(&member.key) {
                    prop_assert_eq!(old, &member.name, "{:?} moved a key", act);
                }
                gone.remove(&member.key);
            }
            gone.extend(before.into_iter().filter(|(key, _)| members.iter().all(|m| m.key != *key)));
            let snapshot = w.core.snapshot();
            prop_assert!(gone.keys().all(|key| snapshot.member_by_key(key).is_none()), "a key that was given up is still known");
            prop_assert!(members.iter().all(|m| snapshot.member_by_key(&m.key).as_ref() == Some(m)));
            let back = w.restored();
            back.audit().unwrap();
            prop_assert_eq!(members_of(&back), (members, tokens));
        }
        // Entries of the log have each number once.
        let numbers: Vec<u64> = w.log().iter().map(|r| r.number).collect();
        prop_assert_eq!(&numbers, &(1..=numbers.len() as u64).collect::<Vec<_>>());
    }
}
