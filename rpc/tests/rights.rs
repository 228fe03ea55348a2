//! Every method over each socket as everybody who can come through it: what the wire lets through is what the table says.
#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test

mod common;

use berth_model::member::{KeyId, MemberInfo, MemberRole, MemberState};
use berth_model::request::{Peer, Response};
use berth_model::rights::Rank;
use berth_model::state::ExitStatus;
use berth_model::{Attempt, Gid, JobId, NodeName, StepId, StepKey, Uid};
use berth_rpc::auth::{Method, Role, allowed};
use berth_rpc::{Client, Duplex, Endpoint, Hex, Preface, Question, Remote, Uplink};
use berth_trust::{Authority, Identity, PrivateKey, client_config, joining_config};
use common::machines::{identity, member, open_port, uplink};
use common::{start, start_for};
use hyper_util::rt::TokioIo;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::Channel;
use tower::Service;

/// How somebody comes to the controller.
#[derive(Clone)]
enum Way {
    /// As whom the kernel says.
    Public(PathBuf),
    /// As whom a part of the cluster says, by the first line.
    Said(Uplink, Preface),
}

impl Way {
    async fn open(self) -> std::io::Result<TokioIo<Duplex>> {
        let wire = match self {
            Way::Public(path) => UnixStream::connect(path).await?.into(),
            Way::Said(uplink, preface) => uplink.open(&preface).await?,
        };
        Ok(TokioIo::new(wire))
    }

    async fn channel(self) -> Channel {
        let connector = tower::service_fn(move |_: http::Uri| self.clone().open());
        let endpoint = tonic::transport::Endpoint::from_static("http://berth.invalid");
        endpoint.connect_with_connector(connector).await.unwrap()
    }
}

/// Calls a method with a message of no bytes, and gives the status of a call that ends before its answer begins: 7 is
/// `PERMISSION_DENIED`, 12 `UNIMPLEMENTED`.
async fn refusal(channel: &mut Channel, path: &str) -> Option<String> {
    // A message that is not compressed, and its length.
    let body = tonic::body::Body::new("\0\0\0\0\0".to_string());
    let request = http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    let answer = channel.call(request).await.unwrap();
    answer.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_is_for_whom_the_table_says_on_every_socket() {
    let [dir, operators, plain] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let place = dir.path().join("authority");
    let authority = Authority::open_or_make(&place, "test", SystemTime::now()).unwrap();
    let own = identity(&authority, "head", "controller");
    let [n1, front, desk] = [("n1", "compute"), ("front", "login"), ("desk", "login")]
        .map(|(name, role)| identity(&authority, name, role));
    let members = vec![
        member(&n1, "n1", MemberRole::Compute, false),
        member(&front, "front", MemberRole::Login, false),
        member(&desk, "desk", MemberRole::Login, true),
    ];
    let (port, address) = open_port(&authority, &own).await;
    let (second_port, second_address) = open_port(&authority, &own).await;
    let from_to = |machine: &Identity, address: &str| uplink(&authority, machine, address);
    let from = |machine: &Identity| from_to(machine, &address);
    // To the first everybody is an administrator, to the second an operator, to the third nothing.
    let server = start_for(dir.path(), Rank::Administrator, Some(port), members.clone());
    let second = start_for(operators.path(), Rank::Operator, Some(second_port), members);
    let third = start(plain.path(), Rank::User);
    let outside = Peer { uid: Uid(4711), gid: Gid(4712), job: None };
    let inside = Peer { job: Some(JobId(12)), ..outside };
    let agent = || Preface::Node { node: NodeName::from("n1") };
    let local = || Uplink::Local(dir.path().join("n.sock"));
    let ways = [
        ("clients", Way::Public(dir.path().join("c.sock")), Role::Administrator),
        ("clients", Way::Public(operators.path().join("c.sock")), Role::Operator),
        ("clients", Way::Public(plain.path().join("c.sock")), Role::User),
        ("agents", Way::Said(local(), Preface::Client(inside)), Role::Inside),
        ("agents", Way::Said(local(), agent()), Role::Agent),
        ("machines", Way::Said(from(&desk), Preface::Client(outside)), Role::Administrator),
        // Of whom the controller thinks as of an administrator, and this machine's word is not enough for that.
        ("machines", Way::Said(from(&front), Preface::Client(outside)), Role::User),
        ("machines", Way::Said(from_to(&desk, &second_address), Preface::Client(outside)), Role::Operator),
        // Nor is it enough for an operator.
        ("machines", Way::Said(from_to(&front, &second_address), Preface::Client(outside)), Role::User),
        ("machines", Way::Said(from_to(&desk, &second_address), Preface::Client(inside)), Role::Inside),
        ("machines", Way::Said(from(&desk), Preface::Client(inside)), Role::Inside),
        ("machines", Way::Said(from(&n1), Preface::Client(inside)), Role::Inside),
        ("machines", Way::Said(from(&n1), agent()), Role::Agent),
    ];
    for (socket, way, role) in ways {
        let mut channel = way.channel().await;
        for method in Method::ALL {
            let servers = [&server, &second, &third];
            let asked = || servers.map(|server| server.recorder.seen.lock().unwrap().len());
            let before = asked();
            let status = refusal(&mut channel, method.path()).await;
            let what = format!("{role:?}, by the socket for {socket}: {}: {status:?}", method.path());
            assert_ne!(status.as_deref(), Some("12"), "{what}");
            let passes = status.as_deref() != Some("7");
            assert_eq!(passes, allowed(*method, role), "{what}");
            assert!(passes || asked() == before, "it was refused, and asked for: {what}");
        }
        let unknown = refusal(&mut channel, "/berth.v1.Cluster/Everything").await;
        assert_eq!(unknown.as_deref(), Some("12"), "{role:?}, by the socket for {socket}");
    }

    // On its own machine the cluster vouches for clients of jobs, and for nobody else.
    let mut wire = local().open(&Preface::Client(outside)).await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(10), wire.read(&mut [0; 1])).await.unwrap();
    assert!(!matches!(closed, Ok(1)), "{closed:?}");
    // Nor is a login node somebody's agent, or a node another one's.
    for (machine, node) in [(&desk, "desk"), (&n1, "n2")] {
        let refused = from(machine).open(&Preface::Node { node: NodeName::from(node) }).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied, "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_another_machine_speaks_for_is_known_to_come_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let authority =
        Authority::open_or_make(&dir.path().join("authority"), "test", SystemTime::now()).unwrap();
    let own = identity(&authority, "head", "controller");
    let front = identity(&authority, "front", "login");
    let (port, address) = open_port(&authority, &own).await;
    let members = vec![member(&front, "front", MemberRole::Login, false)];
    let server = start_for(dir.path(), Rank::User, Some(port), members);
    let way = uplink(&authority, &front, &address);
    let relay = dir.path().join("front.sock");
    let listener = UnixListener::bind(&relay).unwrap();
    tokio::spawn(async move {
        let peer = Peer { uid: Uid(4711), gid: Gid(4712), job: None };
        while let Ok((mut client, _)) = listener.accept().await {
            let mut wire = way.open(&Preface::Client(peer)).await.unwrap();
            // It ends as the client does.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut wire).await;
        }
    });
    for path in [dir.path().join("c.sock"), relay] {
        let endpoint = Endpoint::Unix(path);
        let client = Client::connect(&endpoint).await.unwrap();
        assert_eq!(client.end_allocation(JobId(1), ExitStatus::OK).await.unwrap(), Response::Done);
    }
    let seen = server.recorder.seen.lock().unwrap();
    let via: Vec<Option<NodeName>> = seen.iter().map(|(actor, _)| actor.via.clone()).collect();
    assert_eq!(via, [None, Some("front".into())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_with_a_key_that_is_in_no_books_is_told_of_by_the_name_for_which_its_certificate_is() {
    let dir = tempfile::tempdir().unwrap();
    let authority =
        Authority::open_or_make(&dir.path().join("authority"), "test", SystemTime::now()).unwrap();
    let own = identity(&authority, "head", "controller");
    let [n1, front] =
        [("n1", "compute"), ("front", "login")].map(|(name, role)| identity(&authority, name, role));
    let (port, address) = open_port(&authority, &own).await;
    let server = start_for(dir.path(), Rank::Administrator, Some(port), Vec::new());
    // A certificate is good for every spelling of its name: the core takes them for one. The last one has one for that name, and as what runs no jobs.
    for (machine, node) in [(&n1, "n2"), (&n1, "n1"), (&n1, "N1"), (&front, "front")] {
        let tls = client_config(machine, authority.certificate(), "controller").unwrap();
        let way = Uplink::Remote(Arc::new(Remote::new(address.clone(), tls)));
        let refused = way.open(&Preface::Node { node: NodeName::from(node) }).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied, "{refused}");
    }
    let told = server.recorder.unknown.lock().unwrap().clone();
    assert_eq!(told, ["n1", "N1"].map(|name| (NodeName::from(name), KeyId(n1.key.id()))));
}

/// What a machine may say first. A word that is not here does not compile; put it into [`every_word`], too.
fn word(preface: &Preface) -> &'static str {
    match preface {
        Preface::Node { .. } => "node",
        Preface::Client(_) => "client",
        Preface::Stream { .. } => "stream",
        Preface::Ways { .. } => "ways",
        Preface::Answer { .. } => "answer",
        Preface::Question { question } => match question {
            Question::Clock => "clock",
            Question::Enrol { .. } => "enrol",
            Question::Renew { .. } => "renew",
            Question::Settings => "settings",
            Question::Leave => "leave",
        },
    }
}

/// Each word, as the machine of this name says it; of its own link first, and then of another's.
fn every_word(name: &str) -> Vec<Preface> {
    let peer = Peer { uid: Uid(4711), gid: Gid(4712), job: None };
    let ways = StepKey { job: JobId(1), attempt: Attempt(0), step: StepId::Number(0) };
    let public = || Hex(vec![1]);
    let questions = [
        Question::Clock,
        Question::Enrol { token: "t".into(), secret: Hex(vec![2]), name: name.into(), public: public() },
        Question::Renew { public: public() },
        Question::Settings,
        Question::Leave,
    ];
    let mut words: Vec<Preface> =
        questions.into_iter().map(|question| Preface::Question { question }).collect();
    words.extend([
        Preface::Node { node: name.into() },
        Preface::Node { node: "n5".into() },
        Preface::Client(peer),
        Preface::Stream { to: "n1".into(), peer },
        Preface::Ways { ways, peer, only: None, key: String::new() },
        Preface::Answer { answer: 1 },
    ]);
    words
}

/// What comes of it: `w` it is let in, `a` it is answered, by what the service makes of it; `-` and why it is refused before that.
async fn comes_of(uplink: &Uplink, preface: &Preface) -> (char, String) {
    for _ in 0..20 {
        match uplink.open(preface).await {
            Ok(_) => return ('w', String::new()),
            Err(e) if e.kind() == ErrorKind::InvalidData => return ('a', String::new()),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                // The service's own words.
                let cell = if e.to_string().contains("naïve") { 'a' } else { '-' };
                return (cell, e.to_string());
            }
            // The answer was lost with a connection that was closed before it was read.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("{preface:?} is not answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_machine_may_say_what_the_table_says_and_is_told_why_not() {
    let dir = tempfile::tempdir().unwrap();
    let authority =
        Authority::open_or_make(&dir.path().join("authority"), "test", SystemTime::now()).unwrap();
    let waits = |name: &str| {
        format!("{name} waits for an administrator's word: 'berth node approve {name}' on the controller")
    };
    let other = "this key is n1's, and speaks for no other node (n5)".to_string();
    let login = "front joined as a login node: it runs no jobs and has no streams".to_string();
    let removed = "this machine's key is not (any more) one of the cluster's: join again with a new token";
    let nobody = "this machine has joined no cluster yet: 'berth join'".to_string();
    let (approved, pending) = (Some(MemberState::Approved), Some(MemberState::Pending));
    let machines = [
        ("n1", "compute", MemberRole::Compute, approved, other),
        ("front", "login", MemberRole::Login, approved, login),
        ("n8", "compute", MemberRole::Compute, pending, waits("n8")),
        ("front8", "login", MemberRole::Login, pending, waits("front8")),
        ("n9", "compute", MemberRole::Compute, None, removed.to_string()),
    ];
    let (port, address) = open_port(&authority, &identity(&authority, "head", "controller")).await;
    let (mut members, mut uplinks) = (Vec::new(), Vec::new());
    for (name, of, role, state, why) in machines {
        let own = identity(&authority, name, of);
        members.extend(state.map(|state| MemberInfo { state, ..member(&own, name, role, false) }));
        uplinks.push((name, uplink(&authority, &own, &address), why));
    }
    let key = PrivateKey::make().unwrap();
    let (tls, _) = joining_config(&key, authority.fingerprint()).unwrap();
    uplinks.push(("stranger", Uplink::Remote(Arc::new(Remote::new(address, tls))), nobody));
    let server = start_for(dir.path(), Rank::User, Some(port), members);

    let mut table = String::new();
    for at in 0..every_word("").len() {
        let (mut cells, mut name) = (String::new(), "");
        for (machine, uplink, refusal) in &uplinks {
            let preface = every_word(machine).swap_remove(at);
            name = word(&preface);
            let (cell, why) = comes_of(uplink, &preface).await;
            assert!(cell != '-' || why.contains(refusal), "{machine}: {preface:?}: {why}");
            cells.push(cell);
        }
        table.push_str(&format!("{cells} {name}\n"));
    }
    // Compute and login nodes, the same before they are approved, one that was removed, and somebody with a key. Who was removed hears in a word of its
    // own that no certificate is to be had any more.
    let expected = "\
aaaa-a clock
aaaa-a enrol
aaaaaa renew
aa---a settings
aaaa-a leave
w----- node
------ node
ww---- client
ww---- stream
aa---- ways
w----- answer
";
    assert_eq!(table, expected);
    server.stop().await;
}
