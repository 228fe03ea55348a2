//! Connections of nobody: however many there are, machines of the cluster get through.
#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test

mod common;

use berth_model::NodeName;
use berth_model::member::MemberRole;
use berth_model::rights::Rank;
use berth_rpc::{Preface, Question};
use berth_trust::{Authority, PrivateKey};
use common::machines::{identity, member, open_port, uplink};
use common::start_for;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

/// More than one source may have, and fewer than this process may have descriptors for.
const MANY: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_prove_nothing_keep_no_machine_out() {
    let dir = tempfile::tempdir().unwrap();
    let authority =
        Authority::open_or_make(&dir.path().join("authority"), "test", SystemTime::now()).unwrap();
    let n1 = identity(&authority, "n1", "compute");
    let (port, address) = open_port(&authority, &identity(&authority, "head", "controller")).await;
    let members = vec![member(&n1, "n1", MemberRole::Compute, false)];
    let server = start_for(dir.path(), Rank::User, Some(port), members);
    let node = Preface::Node { node: NodeName::from("n1") };
    let uplink = uplink(&authority, &n1, &address);
    let away = || server.recorder.away.lock().unwrap().clone();

    // From the machine's own address, at which its users are, too: silent ones, and some that begin to speak and stop.
    let mut held: Vec<TcpStream> = Vec::new();
    for at in 0..MANY {
        let mut stream = TcpStream::connect(&address).unwrap();
        if at % 3 == 0 {
            // The head of a record, of which nothing follows.
            stream.write_all(&[22, 3, 1, 2, 0]).unwrap();
        }
        held.push(stream);
    }
    let mut links = Vec::new();
    for _ in 0..3 {
        links.push(uplink.open(&node).await.unwrap());
    }
    // It was let in before any of them was given up for taking too long: they had made room.
    while away().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let all = away();
    assert!(all.iter().all(|why| why.contains("when others came")), "{all:?}");

    // Whoever makes a key for itself has proven nothing by that, and is answered all the same.
    let nobody = PrivateKey::make().unwrap();
    let (tls, _) = berth_trust::joining_config(&nobody, authority.fingerprint()).unwrap();
    let remote = berth_rpc::Remote::new(address, tls);
    let stranger = berth_rpc::Uplink::Remote(std::sync::Arc::new(remote));
    stranger.ask(Question::Clock).await.unwrap();
    drop(held);
    server.stop().await;
}
