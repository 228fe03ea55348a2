//! What machines may say over their port, and what a stolen key is good for: real TLS to a real controller.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure is a failed test

use berth_controller::backup::{Restore, backup, restore};
use berth_controller::{ControllerOptions, load_config, run};
use berth_model::member::{MemberRole, NewToken};
use berth_model::request::{Peer, Response};
use berth_model::{Gid, JobId, NodeName, Span, Time, Uid};
use berth_rpc::{AgentLink, Client, Endpoint, Hex, Preface, Question, Remote, Reply, Uplink};
use berth_trust::{Authority, Identity, JoinToken, PrivateKey};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A controller with its port open, and a client of its own user.
struct Site {
    dir: tempfile::TempDir,
    address: String,
    client: Client,
}

async fn site() -> Site {
    site_with("").await
}

/// With these lines in its configuration, too.
async fn site_with(lines: &str) -> Site {
    let dir = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    std::fs::write(dir.path().join("berth.toml"), format!("listen = \"{free}\"\n{lines}")).unwrap();
    tokio::spawn(run(options(dir.path()), Box::pin(std::future::pending())));
    let client = client(dir.path()).await;
    Site { dir, address: free.to_string(), client }
}

fn options(dir: &Path) -> ControllerOptions {
    ControllerOptions {
        state_dir: dir.into(),
        config_path: None,
        system: true,
        read: |dir, file| load_config(dir, file).map_err(|e| e.to_string()),
        in_force: |_| (),
        ready: || (),
        power_off: |_| Err("there is no program".to_string()),
    }
}

async fn client(dir: &Path) -> Client {
    let endpoint = Endpoint::Unix(dir.join("run/controller.sock"));
    Client::connect_patiently(&endpoint, Duration::from_secs(30)).await.unwrap()
}

/// A machine that joined: its key and certificate, as somebody who stole them has them.
struct Machine {
    remote: Arc<Remote>,
    uplink: Uplink,
    own: Identity,
    authority: Vec<u8>,
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
        let authority = seen.get().unwrap();
        let tls = berth_trust::client_config(&own, &authority, "controller").unwrap();
        let remote = Arc::new(Remote::new(self.address.clone(), tls));
        Machine { uplink: Uplink::Remote(Arc::clone(&remote)), remote, own, authority }
    }

    async fn members(&self) -> Vec<String> {
        self.client.members().await.unwrap().into_iter().map(|member| member.name.0).collect()
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
    let told = uplink.ask(Question::Renew { public: Hex(key.public()) }).await.unwrap();
    assert!(matches!(&told, Reply::Nobody(why) if why.contains("not (any more)")), "{told:?}");
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
    // So an exchange of its key that was cut off before comes to an end.
    let told = front.uplink.ask(Question::Renew { public: Hex(front.own.key.public()) }).await.unwrap();
    assert!(matches!(&told, Reply::Nobody(why) if why.contains("join again")), "{told:?}");
    // What was open ends by itself, whatever is said over it.
    let ended = tokio::time::timeout(Duration::from_secs(5), async {
        let mut bytes = [0; 1024];
        while open.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
    });
    ended.await.unwrap();
    drop(front.remote);
}

/// What is answered to these bytes until the connection is closed.
async fn said(site: &Site, machine: &Machine, bytes: &'static [u8]) -> Vec<u8> {
    use std::io::{Read, Write};
    let tls = berth_trust::client_config(&machine.own, &machine.authority, "controller").unwrap();
    let address = site.address.clone();
    let answered = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut tls = rustls::ClientConnection::new(tls, berth_trust::server_name()).unwrap();
        let mut wire = rustls::Stream::new(&mut tls, &mut stream);
        wire.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // However it is closed.
        let _ = wire.read_to_end(&mut answer);
        answer
    });
    answered.await.unwrap()
}

/// It names nobody, so that whoever says it can mean no other machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_says_of_itself_alone_that_it_leaves() {
    let site = site().await;
    let n1 = site.machine(MemberRole::Compute, "n1").await;
    let n2 = site.machine(MemberRole::Compute, "n2").await;
    let front = site.machine(MemberRole::Login, "front").await;
    assert_eq!(site.members().await, ["front", "n1", "n2"]);
    // Who joined nothing has nothing to leave.
    let (_, stranger, _) = site.stranger(&site.token(MemberRole::Compute).await);
    let why = stranger.ask(Question::Leave).await.unwrap_err().to_string();
    assert!(why.contains("joined no cluster"), "{why}");
    // With a name it is no question: nothing is answered.
    let answer = said(&site, &n2, b"{\"question\":{\"leave\":{\"name\":\"n1\"}}}\n").await;
    assert_eq!(String::from_utf8_lossy(&answer), "");
    assert_eq!(site.members().await, ["front", "n1", "n2"]);
    assert_eq!(n2.uplink.ask(Question::Leave).await.unwrap(), Reply::Left);
    assert_eq!(site.members().await, ["front", "n1"]);
    n2.uplink.ask(Question::Leave).await.unwrap_err();
    let entry = site.client.audit(Some(1)).await.unwrap().pop().unwrap();
    assert_eq!(entry.user, "node n2");
    assert!(entry.what.starts_with("n2 left the cluster with key "), "{}", entry.what);
    // The others are what they were, and each may go.
    AgentLink::connect(&n1.uplink, &NodeName("n1".into())).await.unwrap();
    assert_eq!(front.uplink.ask(Question::Leave).await.unwrap(), Reply::Left);
    assert_eq!(site.members().await, ["n1"]);
    // The name is free.
    site.machine(MemberRole::Compute, "n2").await;
    assert_eq!(site.members().await, ["n1", "n2"]);
}

/// What somebody sees who shows this certificate for the machine's own key.
async fn shown(site: &Site, machine: &Machine, certificate: Vec<u8>) -> String {
    let own = Identity { key: machine.own.key.clone(), certificate };
    let tls = berth_trust::client_config(&own, &machine.authority, "controller").unwrap();
    let uplink = Uplink::Remote(Arc::new(Remote::new(site.address.clone(), tls)));
    refused(&uplink, Preface::Node { node: NodeName("n1".into()) }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_and_expired_certificates_are_refused_by_name() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let site = site().await;
    let n1 = site.machine(MemberRole::Compute, "n1").await;
    let public = n1.own.key.public();
    let now = SystemTime::now();
    // Another authority, which calls itself and the machine the same.
    let other = tempfile::tempdir().unwrap();
    let forger = Authority::open_or_make(&other.path().join("authority"), "berth", now).unwrap();
    let forged = forger.issue(&public, "n1", "compute", now, 30 * DAY).unwrap();
    let why = shown(&site, &n1, forged).await;
    assert!(why.contains("authority"), "{why}");
    // The right one, of a certificate that nobody renewed in time: the key is still the machine's.
    let file = |name: &str| std::fs::read(site.dir.path().join("private/authority").join(name)).unwrap();
    let copy = tempfile::tempdir().unwrap();
    let key = copy.path().join("authority.key");
    std::fs::write(&key, file("authority.key")).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let before = Authority::open_or_make(copy.path(), "berth", now - 100 * DAY).unwrap();
    let expired = before.issue(&public, "n1", "compute", now - 90 * DAY, 30 * DAY).unwrap();
    let why = shown(&site, &n1, expired).await;
    assert!(why.contains("expired") && why.contains("clock"), "{why}");
    // As it should be it is let in: neither of the two was refused for something else.
    let right = before.issue(&public, "n1", "compute", now, 30 * DAY).unwrap();
    let own = Identity { key: n1.own.key.clone(), certificate: right };
    let tls = berth_trust::client_config(&own, &n1.authority, "controller").unwrap();
    let uplink = Uplink::Remote(Arc::new(Remote::new(site.address.clone(), tls)));
    uplink.open(&Preface::Node { node: NodeName("n1".into()) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_connection_is_worth_nothing_when_it_is_played_again() {
    let site = site().await;
    let n1 = site.machine(MemberRole::Compute, "n1").await;
    // Somebody on the wire, who writes down what the machine says.
    let tap = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tapped = tap.local_addr().unwrap().to_string();
    let address = site.address.clone();
    let (said, hears) = tokio::sync::mpsc::unbounded_channel::<Vec<u8>>();
    tokio::spawn(async move {
        let (machine, _) = tap.accept().await.unwrap();
        let controller = TcpStream::connect(address).await.unwrap();
        let (mut from_machine, mut to_machine) = machine.into_split();
        let (mut from_controller, mut to_controller) = controller.into_split();
        let back = tokio::spawn(async move { tokio::io::copy(&mut from_controller, &mut to_machine).await });
        let mut bytes = vec![0; 65536];
        while let Ok(n @ 1..) = from_machine.read(&mut bytes).await {
            said.send(bytes[..n].to_vec()).unwrap();
            to_controller.write_all(&bytes[..n]).await.unwrap();
        }
        back.abort();
    });
    let tls = berth_trust::client_config(&n1.own, &n1.authority, "controller").unwrap();
    let uplink = Uplink::Remote(Arc::new(Remote::new(tapped, tls)));
    let open = uplink.open(&Preface::Node { node: NodeName("n1".into()) }).await.unwrap();
    // A connection that is let in stays open until its machine leaves; one that plays it again is closed by the controller.
    let mut hears = hears;
    let mut again = TcpStream::connect(&site.address).await.unwrap();
    let mut played = 0;
    while let Ok(bytes) = hears.try_recv() {
        played += bytes.len();
        // It may be closed before everything was said.
        let _ = again.write_all(&bytes).await;
    }
    assert!(played > 600, "{played} bytes are not a handshake and a first line");
    let closed = tokio::time::timeout(Duration::from_secs(8), async {
        let mut bytes = [0; 4096];
        while again.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
    });
    closed.await.expect("the controller goes on with a connection that was recorded");
    drop(open);
}

/// The certificate that the controller shows, judged by one of its machines.
async fn controllers_own(site: &Site, machine: &Machine) -> Vec<u8> {
    let tls = berth_trust::client_config(&machine.own, &machine.authority, "controller").unwrap();
    let address = site.address.clone();
    let shown = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let mut tls = rustls::ClientConnection::new(tls, berth_trust::server_name()).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut stream).unwrap();
        }
        tls.peer_certificates().unwrap()[0].to_vec()
    });
    shown.await.unwrap()
}

/// It is shown to machines only while it is good, and made anew in time, for as long as the controller runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controllers_own_certificate_is_made_anew_before_it_ends() {
    let site = site_with("certificate_seconds = 10\n").await;
    let n1 = site.machine(MemberRole::Compute, "n1").await;
    let first = controllers_own(&site, &n1).await;
    let (_, until) = berth_trust::validity(&first).unwrap();
    assert!(until <= SystemTime::now() + Duration::from_secs(10));
    while SystemTime::now() < until + Duration::from_secs(1) {
        let own = controllers_own(&site, &n1).await;
        let (from, until) = berth_trust::validity(&own).unwrap();
        let now = SystemTime::now();
        assert!(from < now && now < until);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_ne!(controllers_own(&site, &n1).await, first);
}

/// When the certificate of a machine ends, as the controller says, in seconds.
async fn known_end(site: &Site, name: &str) -> Option<i64> {
    let members = site.client.members().await.unwrap();
    members.iter().find(|member| member.name.0 == name).unwrap().ends.map(Time::secs)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_knows_when_machines_certificates_end() {
    let site = site().await;
    let n1 = site.machine(MemberRole::Compute, "n1").await;
    let until = |certificate: &[u8]| {
        let (_, until) = berth_trust::validity(certificate).unwrap();
        i64::try_from(until.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap()
    };
    assert_eq!(known_end(&site, "n1").await, Some(until(&n1.own.certificate)));
    let question = Question::Renew { public: Hex(n1.own.key.public()) };
    let Reply::Enrolled { certificate, .. } = n1.uplink.ask(question).await.unwrap() else { panic!() };
    assert_eq!(known_end(&site, "n1").await, Some(until(&certificate.0)));
    // It shows the old one, as if it had not been able to keep it: that is known once it could have been.
    n1.uplink.ask(Question::Clock).await.unwrap();
    assert!(known_end(&site, "n1").await.is_some());
    let alarms = site.client.status().await.unwrap().alarms;
    assert!(!alarms.iter().any(|text| text.contains("certificate")), "{alarms:?}");
}

/// As at a boot where somebody else has the port for a moment, or the address comes late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_held_when_the_controller_starts_is_opened_as_soon_as_it_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    std::fs::write(dir.path().join("berth.toml"), format!("listen = \"{free}\"\n")).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let until = async {
        // Dropped or told, it stops.
        let _ = stopped.await;
    };
    let first = tokio::spawn(run(options(dir.path()), Box::pin(until)));
    let first_client = client(dir.path()).await;
    let site = Site { dir, address: free.to_string(), client: first_client };
    let n1 = site.machine(MemberRole::Compute, "n1").await;
    drop(stop);
    first.await.unwrap().unwrap();

    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    let dir = site.dir;
    std::fs::write(dir.path().join("berth.toml"), format!("listen = \"{address}\"\n")).unwrap();
    tokio::spawn(run(options(dir.path()), Box::pin(std::future::pending())));
    let client = client(dir.path()).await;
    let alarms = client.status().await.unwrap().alarms;
    assert!(alarms.iter().any(|text| text.contains(&address) && text.contains("every second")), "{alarms:?}");
    drop(held);
    let tls = berth_trust::client_config(&n1.own, &n1.authority, "controller").unwrap();
    let uplink = Uplink::Remote(Arc::new(Remote::new(address, tls)));
    let node = Preface::Node { node: NodeName("n1".into()) };
    let comes = tokio::time::timeout(Duration::from_secs(30), async {
        while uplink.open(&node).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    comes.await.expect("the port stays closed");
    let cleared = tokio::time::timeout(Duration::from_secs(30), async {
        while client.status().await.unwrap().alarms.iter().any(|text| alarms.contains(text)) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    cleared.await.expect("the alarm stays");
}

/// Machines that joined after the backup have all of their time to come, whenever the port is to be had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restore_the_time_in_which_machines_can_come_begins_with_the_port() {
    let dir = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    std::fs::write(dir.path().join("berth.toml"), format!("listen = \"{free}\"\n")).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let until = async {
        // Dropped or told, it stops.
        let _ = stopped.await;
    };
    let first = tokio::spawn(run(options(dir.path()), Box::pin(until)));
    let first_client = client(dir.path()).await;
    let site = Site { dir, address: free.to_string(), client: first_client };
    site.machine(MemberRole::Compute, "n1").await;
    drop(stop);
    first.await.unwrap().unwrap();
    let dir = site.dir;
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("backup.tar");
    backup(dir.path(), &file, "1", Time(1)).unwrap();
    restore(&Restore { state_dir: dir.path(), file: &file, replace: true, label: "1" }).unwrap();

    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    std::fs::write(dir.path().join("berth.toml"), format!("listen = \"{address}\"\n")).unwrap();
    tokio::spawn(run(options(dir.path()), Box::pin(std::future::pending())));
    let client = client(dir.path()).await;
    let says = |text: &'static str| {
        let client = &client;
        async move {
            let alarms = client.status().await.unwrap().alarms;
            alarms.iter().any(|alarm| alarm.contains(text))
        }
    };
    assert!(says("before the port for other machines has been open for 30 seconds").await);
    drop(held);
    let begun = tokio::time::timeout(Duration::from_secs(30), async {
        while !says("no job starts in the first 30 seconds").await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    begun.await.expect("it does not begin");
}
