//! What machines may say over their port, and what a stolen key is good for: real TLS to a real controller.
#![allow(clippy::unwrap_used, clippy::panic)] // a failure is a failed test

use berth_controller::{ControllerOptions, load_config, run};
use berth_model::member::{MemberRole, NewToken};
use berth_model::request::{Peer, Response};
use berth_model::{Gid, JobId, NodeName, Span, Uid};
use berth_rpc::{AgentLink, Client, Endpoint, Hex, Preface, Question, Remote, Reply, Uplink};
use berth_trust::{Identity, JoinToken, PrivateKey};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// A controller with its port open, and a client of its own user.
struct Site {
    _dir: tempfile::TempDir,
    address: String,
    client: Client,
}

async fn site() -> Site {
    let dir = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    std::fs::write(dir.path().join("berth.toml"), format!("listen = \"{free}\"\n")).unwrap();
    let options = ControllerOptions {
        state_dir: dir.path().into(),
        config_path: None,
        system: true,
        read: |dir, file| load_config(dir, file).map_err(|e| e.to_string()),
        in_force: |_| (),
        ready: || (),
    };
    tokio::spawn(run(options, Box::pin(std::future::pending())));
    let endpoint = Endpoint::Unix(dir.path().join("run/controller.sock"));
    let client = Client::connect_patiently(&endpoint, Duration::from_secs(30)).await.unwrap();
    Site { _dir: dir, address: free.to_string(), client }
}

/// A machine that joined: its key and certificate, as somebody who stole them has them.
struct Machine {
    remote: Arc<Remote>,
    uplink: Uplink,
}

impl Site {
    async fn token(&self, role: MemberRole) -> JoinToken {
        let token =
            NewToken { role, ttl: Span::from_mins(5), uses: 1, approval: false, administrators: false };
        let Response::TokenCreated { text, .. } = self.client.create_token(&token).await.unwrap() else {
            panic!("no token")
        };
        text.parse().unwrap()
    }

    fn stranger(&self, token: &JoinToken) -> (PrivateKey, Uplink, Arc<berth_trust::SeenAuthority>) {
        let key = PrivateKey::make().unwrap();
        let (tls, seen) = berth_trust::joining_config(&key, token.fingerprint).unwrap();
        let uplink = Uplink::Remote(Arc::new(Remote::new(self.address.clone(), tls)));
        (key, uplink, seen)
    }

    async fn machine(&self, role: MemberRole, name: &str) -> Machine {
        let token = self.token(role).await;
        let (key, uplink, seen) = self.stranger(&token);
        let question = Question::Enrol {
            token: token.id.clone(),
            secret: Hex(token.secret.to_vec()),
            name: NodeName(name.to_string()),
            public: Hex(key.public()),
        };
        let Reply::Enrolled { certificate, .. } = uplink.ask(question).await.unwrap() else {
            panic!("not let in")
        };
        let own = Identity { key, certificate: certificate.0 };
        let tls = berth_trust::client_config(&own, &seen.get().unwrap(), "controller").unwrap();
        let remote = Arc::new(Remote::new(self.address.clone(), tls));
        Machine { uplink: Uplink::Remote(Arc::clone(&remote)), remote }
    }
}

fn peer(uid: u32, job: Option<u32>) -> Peer {
    Peer { uid: Uid(uid), gid: Gid(uid), job: job.map(JobId) }
}

/// The refusal of a connection, in the controller's words.
async fn refused(uplink: &Uplink, preface: Preface) -> String {
    match uplink.open(&preface).await {
        Ok(_) => panic!("{preface:?} was let through"),
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::PermissionDenied, "{preface:?}: {e}");
            e.to_string()
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compute_nodes_key_speaks_for_that_node_and_its_jobs_alone() {
    let site = site().await;
    let n1 = site.machine(MemberRole::Compute, "n1").await;
    let n2 = NodeName("n2".into());
    let why = refused(&n1.uplink, Preface::Node { node: n2.clone() }).await;
    assert!(why.contains("n1's") && why.contains("n2"), "{why}");
    // Nobody's work, no job's that is not there, and no user's at all.
    for peer in [peer(0, None), peer(1000, None), peer(1000, Some(1)), peer(0, Some(7))] {
        refused(&n1.uplink, Preface::Client(peer)).await;
        refused(&n1.uplink, Preface::Stream { to: n2.clone(), peer }).await;
    }
    // Its own link it has.
    AgentLink::connect(&n1.uplink, &NodeName("n1".into())).await.unwrap();
    assert!(matches!(n1.uplink.ask(Question::Settings).await, Ok(Reply::Settings(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_nodes_key_is_no_root_no_node_and_no_job() {
    let site = site().await;
    let front = site.machine(MemberRole::Login, "front").await;
    let name = NodeName("front".into());
    assert!(refused(&front.uplink, Preface::Client(peer(0, None))).await.contains("root"));
    refused(&front.uplink, Preface::Client(peer(1000, Some(1)))).await;
    refused(&front.uplink, Preface::Stream { to: name.clone(), peer: peer(0, None) }).await;
    refused(&front.uplink, Preface::Node { node: name }).await;
    refused(&front.uplink, Preface::Answer { answer: 1 }).await;
    front.uplink.open(&Preface::Client(peer(1000, None))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_gets_the_time_and_nothing_else() {
    let site = site().await;
    let token = site.token(MemberRole::Compute).await;
    let (key, uplink, _) = site.stranger(&token);
    assert!(matches!(uplink.ask(Question::Clock).await, Ok(Reply::Clock(_))));
    for preface in [
        Preface::Node { node: NodeName("n1".into()) },
        Preface::Client(peer(1000, None)),
        Preface::Client(peer(0, None)),
        Preface::Stream { to: NodeName("n1".into()), peer: peer(1000, None) },
        Preface::Answer { answer: 1 },
    ] {
        refused(&uplink, preface).await;
    }
    uplink.ask(Question::Settings).await.unwrap_err();
    uplink.ask(Question::Renew { public: Hex(key.public()) }).await.unwrap_err();
    // Somebody else's key cannot be brought in, nor another secret tried.
    let other = PrivateKey::make().unwrap();
    let ask = |secret: [u8; 32], public: Vec<u8>| Question::Enrol {
        token: token.id.clone(),
        secret: Hex(secret.to_vec()),
        name: NodeName("n1".into()),
        public: Hex(public),
    };
    uplink.ask(ask(token.secret, other.public())).await.unwrap_err();
    let wrong = uplink.ask(ask([7; 32], key.public())).await.unwrap_err();
    assert!(wrong.to_string().contains("not valid"), "{wrong}");
    uplink.ask(ask(token.secret, key.public())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_machines_connections_are_cut_and_its_key_is_refused() {
    let site = site().await;
    let front = site.machine(MemberRole::Login, "front").await;
    let mut open = front.uplink.open(&Preface::Client(peer(1000, None))).await.unwrap();
    site.client.remove_member(&NodeName("front".into()), false).await.unwrap();
    let why = refused(&front.uplink, Preface::Client(peer(1000, None))).await;
    assert!(why.contains("join again"), "{why}");
    // What was open ends by itself, whatever is said over it.
    let ended = tokio::time::timeout(Duration::from_secs(5), async {
        let mut bytes = [0; 1024];
        while open.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
    });
    ended.await.unwrap();
    drop(front.remote);
}
