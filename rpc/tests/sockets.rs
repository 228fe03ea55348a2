//! Clients, agents and a service over real sockets: identity, refusals, pages, restarts, garbage.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests: a failure is a failed test

mod common;

use berth_model::link::{FromAgent, ToAgent};
use berth_model::query::JobQuery;
use berth_model::request::{NodeStateChange, Peer, Refusal, RefusalCode, Response};
use berth_model::rights::Rank;
use berth_model::state::ExitStatus;
use berth_model::{JobId, NodeName, Session, Time, Uid};
use berth_rpc::{AgentLink, Client, Endpoint, Preface, RpcError, Uplink};
use common::{own_uid, start};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::UnixListener;

#[tokio::test]
async fn answers_refusals_and_identity() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), Rank::User);
    let client = Client::connect(&Endpoint::Unix(dir.path().join("c.sock"))).await.unwrap();
    client.ping().await.unwrap();
    assert_eq!(client.end_allocation(JobId(1), ExitStatus::OK).await.unwrap(), Response::Done);
    let refused = client.end_allocation(JobId(2), ExitStatus::OK).await.unwrap_err();
    let expected = Refusal::new(RefusalCode::WrongState, "no: naïve «quotes»\nand a second line");
    assert_eq!(refused, RpcError::Refused(expected));

    // A plain user may not do what only others may, and the core never hears of it.
    let denied = client.update_node(&[NodeName::from("n1")], NodeStateChange::Down, Some("x")).await;
    let Err(RpcError::Refused(denied)) = denied else { panic!("{denied:?}") };
    assert_eq!(denied.code, RefusalCode::Denied);
    assert!(
        denied.message.contains("UpdateNode: only for operators and administrators"),
        "{}",
        denied.message
    );
    assert!(matches!(client.shutdown().await, Err(RpcError::Refused(r)) if r.code == RefusalCode::Denied));

    let seen = server.recorder.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].0.identity.uid, Uid(own_uid(dir.path())), "the kernel says who we are");
    assert!(seen[0].0.inside.is_none());
}

#[tokio::test]
async fn an_operator_is_told_what_administrators_alone_may() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), Rank::Operator);
    let client = Client::connect(&Endpoint::Unix(dir.path().join("c.sock"))).await.unwrap();
    client.update_node(&[NodeName::from("n1")], NodeStateChange::Down, Some("x")).await.unwrap();
    let denied = client.shutdown().await.unwrap_err().to_string();
    let user = format!("u{} is an operator", own_uid(dir.path()));
    assert!(denied.contains("Shutdown: only for administrators") && denied.contains(&user), "{denied}");
    assert_eq!(server.recorder.seen.lock().unwrap()[0].0.rank, Rank::Operator);
}

#[tokio::test]
async fn long_answers_come_in_pages_and_may_fail_in_the_middle() {
    let dir = tempfile::tempdir().unwrap();
    let _server = start(dir.path(), Rank::User);
    let client = Client::connect(&Endpoint::Unix(dir.path().join("c.sock"))).await.unwrap();
    let nodes = client.nodes().await.unwrap();
    assert_eq!(nodes.len(), 300);
    assert_eq!(nodes[299].name, NodeName::from("n299"));
    let wanted = ["n7", "n299", "n300"].map(NodeName::from);
    let some: Vec<NodeName> =
        client.nodes_of(&wanted).await.unwrap().into_iter().map(|node| node.name).collect();
    assert_eq!(some, wanted[..2], "those that are there, and no others");
    assert!(
        matches!(client.partitions().await, Err(RpcError::Refused(r)) if r.code == RefusalCode::Internal)
    );
    let busy = client.jobs(&JobQuery::default()).await.unwrap_err();
    assert!(busy.is_transient(), "{busy}");
    assert!(
        matches!(client.watch_job(JobId(3)).await, Err(RpcError::Refused(r)) if r.code == RefusalCode::NotFound)
    );
}

/// What the agent's proxy does: the preface of the client's job, then bytes both ways.
async fn proxy(job_sock: std::path::PathBuf, node_sock: std::path::PathBuf, peer: Peer) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = UnixListener::bind(job_sock).unwrap();
    while let Ok((mut client, _)) = listener.accept().await {
        let node_sock = node_sock.clone();
        tokio::spawn(async move {
            let mut frame = [0u8; 9];
            client.read_exact(&mut frame).await.unwrap();
            let parsed = berth_stream::blocking::read_frame(&mut frame.as_slice()).unwrap();
            assert_eq!(parsed, Some(berth_stream::Frame::Controller));
            let mut controller = tokio::net::UnixStream::connect(node_sock).await.unwrap();
            controller.write_all(&Preface::Client(peer).line()).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut client, &mut controller).await;
        });
    }
}

#[tokio::test]
async fn a_client_inside_a_job_is_who_the_node_says_and_no_administrator() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), Rank::Administrator);
    let peer = Peer { uid: Uid(4711), gid: berth_model::Gid(4712), job: Some(JobId(12)) };
    let job_sock = dir.path().join("job.sock");
    tokio::spawn(proxy(job_sock.clone(), dir.path().join("n.sock"), peer));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let client = Client::connect(&Endpoint::Job(job_sock)).await.unwrap();
    client.end_allocation(JobId(1), ExitStatus::OK).await.unwrap();
    let denied = client.shutdown().await.unwrap_err();
    assert!(denied.to_string().contains("not from inside a job"), "{denied}");
    let seen = server.recorder.seen.lock().unwrap().clone();
    assert_eq!(seen[0].0.identity.uid, Uid(4711));
    assert_eq!(seen[0].0.inside, Some(JobId(12)));
    assert_eq!(seen[0].0.rank, Rank::User, "although the service says that this user is an administrator");
    assert!(seen[0].0.accounts.is_empty(), "nor does anybody coordinate an account from inside a job");
}

/// One user has 1024 connections at least: who comes with one more hears why, tries again, and comes in when there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_too_many_connections_is_told_so_and_comes_again() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    // Of these files an eighth are less than that.
    setrlimit(Resource::Nofile, Rlimit { current: Some(4096), maximum: Some(4096) }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let _server = start(dir.path(), Rank::User);
    let peer = Peer { uid: Uid(4711), gid: berth_model::Gid(4712), job: Some(JobId(12)) };
    let (job_sock, node_sock) = (dir.path().join("job.sock"), dir.path().join("n.sock"));
    tokio::spawn(proxy(job_sock.clone(), node_sock.clone(), peer));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let one_more = || {
        let mut stream = StdStream::connect(&node_sock).unwrap();
        stream.write_all(&Preface::Client(peer).line()).unwrap();
        stream
    };
    let mut idle: Vec<StdStream> = (0..1024).map(|_| one_more()).collect();
    let ping = || async { Client::connect(&Endpoint::Job(job_sock.clone())).await?.ping().await };
    // Until the last of them has its place there is one for us, which that one may then lack.
    let mut refused = None;
    for _ in 0..500 {
        match ping().await {
            Err(RpcError::Refused(refusal)) => {
                refused = Some(refusal);
                break;
            }
            _ => {
                idle.push(one_more());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    let refused = refused.unwrap();
    assert_eq!(refused.code, RefusalCode::Unavailable);
    assert!(refused.message.contains("uid 4711 has 1024 connections"), "{}", refused.message);
    assert!(RpcError::Refused(refused).is_transient());
    drop(idle);
    for _ in 0..500 {
        if ping().await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("there is still no place");
}

#[tokio::test]
async fn a_refusal_of_the_agent_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("job.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut frame = [0u8; 9];
        stream.read_exact(&mut frame).unwrap();
        let refused = berth_stream::Frame::Refused("the controller is away".into());
        berth_stream::blocking::write_frame(&mut stream, &refused).unwrap();
    });
    let error = Client::connect(&Endpoint::Job(path)).await.unwrap_err();
    assert!(error.to_string().contains("the controller is away"), "{error}");
    thread.join().unwrap();
}

#[tokio::test]
async fn agents_are_known_by_their_preface() {
    let dir = tempfile::tempdir().unwrap();
    let _server = start(dir.path(), Rank::User);
    let (sender, mut receiver) =
        AgentLink::connect(&Uplink::Local(dir.path().join("n.sock")), &NodeName::from("node-1"))
            .await
            .unwrap();
    for load in 0..100 {
        let beat = FromAgent::Heartbeat {
            session: Session(1),
            load,
            free_memory: 2,
            drift: vec![],
            troubles: vec![],
            asked: Time(0),
            used: vec![],
            gpus: vec![],
        };
        sender.send(&beat).await.unwrap();
    }
    for load in 0..100 {
        let told = receiver.receive().await.unwrap();
        assert_eq!(told, Some(ToAgent::Refused(format!("node-1 {load}"))));
    }
}

#[tokio::test]
async fn what_a_node_says_waits_with_the_node_while_nothing_is_handled() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), Rank::User);
    let uplink = Uplink::Local(dir.path().join("n.sock"));
    let beat = |load, drift| FromAgent::Heartbeat {
        session: Session(1),
        load,
        free_memory: 2,
        drift,
        troubles: vec![],
        asked: Time(0),
        used: vec![],
        gpus: vec![],
    };
    let (still, _told) = AgentLink::connect(&uplink, &NodeName::from("still")).await.unwrap();
    // All of it is under way: 64 MiB.
    for load in 0..64 {
        still.send(&beat(load, vec!["x".repeat(1 << 20)])).await.unwrap();
    }
    let waiting = Arc::clone(&server.recorder.waiting);
    wait_for(|| waiting.lock().unwrap().len() >= 7).await;
    // Nor does another connection of it get further; another node does.
    let (again, _told) = AgentLink::connect(&uplink, &NodeName::from("still")).await.unwrap();
    again.send(&beat(1000, vec!["x".repeat(1 << 20)])).await.unwrap();
    let (sender, mut receiver) = AgentLink::connect(&uplink, &NodeName::from("node-1")).await.unwrap();
    for load in 0..100 {
        sender.send(&beat(load, vec!["x".repeat(1 << 16)])).await.unwrap();
        let told = receiver.receive().await.unwrap();
        assert_eq!(told, Some(ToAgent::Refused(format!("node-1 {load}"))));
    }
    assert_eq!(waiting.lock().unwrap().len(), 7, "8 MiB are the most");
    // With what is handled there is room for as much.
    let mut handled = 0;
    while handled < 65 {
        wait_for(|| !waiting.lock().unwrap().is_empty()).await;
        handled += waiting.lock().unwrap().drain(..).count();
    }
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Client::connect(&Endpoint::Unix(dir.path().join("none"))).await.unwrap_err();
    assert!(missing.to_string().contains("berth up"), "{missing}");
    assert!(missing.is_transient());
    let stale = dir.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let refused = Client::connect(&Endpoint::Unix(stale)).await.unwrap_err();
    assert!(refused.to_string().contains("stopped or killed"), "{refused}");
}

#[tokio::test]
async fn a_client_survives_a_restart_of_the_controller() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path(), Rank::User);
    let client = Client::connect(&Endpoint::Unix(dir.path().join("c.sock"))).await.unwrap();
    let lease = client.lease(JobId(5)).await.unwrap();
    assert_eq!(first.recorder.leases.load(Ordering::SeqCst), 1);
    first.stop().await;
    assert!(client.ping().await.unwrap_err().is_transient());
    let second = start(dir.path(), Rank::User);
    client.persist(Some(Duration::from_secs(5)), |c| async move { c.ping().await }).await.unwrap();
    let leases = Arc::clone(&second.recorder.leases);
    wait_for(|| leases.load(Ordering::SeqCst) == 1).await;
    drop(lease);
    wait_for(|| leases.load(Ordering::SeqCst) == 0).await;
}

async fn wait_for(condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_sockets_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), Rank::User);
    let (c, n) = (dir.path().join("c.sock"), dir.path().join("n.sock"));
    let thread = std::thread::spawn(move || {
        let long_line = vec![b'x'; 100_000];
        let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff";
        let lies = b"{\"uid\":0,\"gid\":0}\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        for path in [&c, &n] {
            for bytes in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), http2, &long_line, b"\n", b"{}\n", lies, b""]
            {
                let mut stream = StdStream::connect(path).unwrap();
                let _ = stream.write_all(bytes); // the other side may have closed it already
                let _ = stream.shutdown(std::net::Shutdown::Write);
                stream.set_read_timeout(Some(Duration::from_secs(6))).unwrap();
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
    });
    while !thread.is_finished() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    thread.join().unwrap();
    let client = Client::connect(&Endpoint::Unix(dir.path().join("c.sock"))).await.unwrap();
    client.ping().await.unwrap();
    assert!(server.recorder.seen.lock().unwrap().is_empty(), "no request came of it");
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_by_size() {
    let dir = tempfile::tempdir().unwrap();
    let _server = start(dir.path(), Rank::User);
    let client = Client::connect(&Endpoint::Unix(dir.path().join("c.sock"))).await.unwrap();
    let spec = berth_model::request::CancelRequest {
        name: Some("x".repeat(berth_rpc::MAX_MESSAGE + 1)),
        ..Default::default()
    };
    let error = client.cancel(&spec).await.unwrap_err();
    assert!(matches!(&error, RpcError::Refused(r) if r.code == RefusalCode::Invalid), "{error:?}");
    assert!(error.to_string().contains("too large"), "{error}");
    client.ping().await.unwrap();
}
