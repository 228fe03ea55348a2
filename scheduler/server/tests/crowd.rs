//! Many machines at once: simulated agents that speak the real protocol over real TLS connections to a controller in a process of
//! its own, also to measure what a thousand of them cost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure is a failed test

mod common;

use berth_model::hardware::{Core, Hardware};
use berth_model::link::{FromAgent, Highest, ToAgent};
use berth_model::member::{MemberRole, NewToken};
use berth_model::request::Response;
use berth_model::{NodeName, Span, Term, Time};
use berth_rpc::{AgentLink, Backoff, Client, Endpoint, Hex, Question, Remote, Reply, Uplink};
use berth_trust::{Identity, JoinToken, PrivateKey};
use common::Controller;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

controller_process!();

impl Controller {
    /// Seconds of processor time so far.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: f64 = fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum();
        ticks / 100.0
    }

    /// MiB in memory.
    fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }
}

/// What the agents have seen, all together.
#[derive(Default)]
struct Seen {
    welcomes: AtomicU64,
    heartbeats: AtomicU64,
}

/// An agent without a machine: it registers, sends its heartbeats, and comes back when its connection is gone.
async fn agent(uplink: Uplink, node: NodeName, seen: Arc<Seen>) {
    let mut backoff = Backoff::new();
    loop {
        if follow(&uplink, &node, &seen).await {
            backoff.reset();
        }
        backoff.wait().await;
    }
}

/// One connection, to its end. Whether it was welcomed there.
async fn follow(uplink: &Uplink, node: &NodeName, seen: &Seen) -> bool {
    let Ok((sender, mut receiver)) = AgentLink::connect(uplink, node).await else { return false };
    let hello = FromAgent::Hello {
        node: node.clone(),
        boot_id: format!("boot of {}", node.0),
        boot_time: Time(1),
        agent_start: Time(2),
        version: env!("CARGO_PKG_VERSION").into(),
        hardware: Hardware {
            arch: "x86_64".into(),
            os: "Linux".into(),
            cores: (0..64).map(|i| Core { socket: i / 32, numa: i / 32, cpus: vec![i, i + 64] }).collect(),
            memory: 512 << 10,
            enforces: true,
            ..Hardware::default()
        },
        term: Term(0),
        steps: vec![],
        jobs: vec![],
        asked: Time(3),
        unknown: vec![],
        features: vec![],
        highest: Highest::default(),
        host: None,
    };
    if sender.send(&hello).await.is_err() {
        return false;
    }
    let mut welcomed = None;
    let mut beats = tokio::time::interval(Duration::from_secs(3600));
    loop {
        tokio::select! {
            message = receiver.receive() => match message {
                Ok(Some(ToAgent::Welcome { session, heartbeat, .. })) => {
                    welcomed = Some(session);
                    let every = Duration::from_micros(u64::try_from(heartbeat.0).unwrap());
                    beats = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
                    seen.welcomes.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Some(ToAgent::Refused(why))) => panic!("{}: {why}", node.0),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return welcomed.is_some(),
            },
            _ = beats.tick() => if let Some(session) = welcomed {
                let beat = FromAgent::Heartbeat { session, load: 100, free_memory: 1000, drift: vec![], troubles: vec![], asked: Time(3), used: vec![], gpus: vec![] };
                if sender.send(&beat).await.is_err() {
                    return true;
                }
                seen.heartbeats.fetch_add(1, Ordering::Relaxed);
            },
        }
    }
}

/// A machine joins: key, token, certificate.
async fn join(address: &str, token: &JoinToken, node: &NodeName) -> Uplink {
    let key = PrivateKey::make().unwrap();
    let (tls, authority) = berth_trust::joining_config(&key, token.fingerprint).unwrap();
    let stranger = Uplink::Remote(Arc::new(Remote::new(address.to_string(), tls)));
    let question = Question::Enrol {
        token: token.id.clone(),
        secret: Hex(token.secret.to_vec()),
        name: node.clone(),
        public: Hex(key.public()),
    };
    let Reply::Enrolled { certificate, .. } = stranger.ask(question).await.unwrap() else {
        panic!("{} is not let in", node.0)
    };
    let own = Identity { key, certificate: certificate.0 };
    let tls = berth_trust::client_config(&own, &authority.get().unwrap(), "controller").unwrap();
    Uplink::Remote(Arc::new(Remote::new(address.to_string(), tls)))
}

/// What some number of machines cost.
struct Cost {
    /// Seconds until the last one had joined and was registered.
    joined: f64,
    /// Seconds of the controller's processor time for a second of heartbeats.
    heartbeats: f64,
    /// Seconds from the start of another controller until the last one was registered again.
    storm: f64,
    /// Seconds of processor time that took.
    storm_cpu: f64,
    /// MiB of the controller's memory when all are there.
    memory: f64,
}

async fn wait_until(what: &str, seconds: u64, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(seconds), "waited {seconds} s for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// So many machines join one controller and send heartbeats for a while; it is killed, and they register with the next one.
async fn crowd(count: u32, heartbeats: Duration) -> Cost {
    let dir = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    std::fs::write(dir.path().join("berth.toml"), format!("listen = \"{free}\"\n")).unwrap();
    let controller = Controller::start(dir.path());
    let endpoint = Endpoint::Unix(dir.path().join("run/controller.sock"));
    let client = Client::connect_patiently(&endpoint, Duration::from_secs(60)).await.unwrap();
    let new = NewToken {
        role: MemberRole::Compute,
        ttl: Span::from_mins(60),
        uses: count,
        approval: false,
        administrators: false,
    };
    let Response::TokenCreated { text, .. } = client.create_token(&new).await.unwrap() else { panic!() };
    let token: JoinToken = text.parse().unwrap();
    let seen: Arc<Seen> = Arc::default();
    let begun = Instant::now();
    let mut agents = Vec::new();
    for n in 1..=count {
        let node = NodeName(format!("n{n}"));
        let uplink = join(&free.to_string(), &token, &node).await;
        agents.push(tokio::spawn(agent(uplink, node, Arc::clone(&seen))));
    }
    let all = u64::from(count);
    let welcomes = || seen.welcomes.load(Ordering::Relaxed);
    wait_until("all to be registered", 300, || welcomes() >= all).await;
    let joined = begun.elapsed().as_secs_f64();
    let (cpu, at) = (controller.cpu(), Instant::now());
    tokio::time::sleep(heartbeats).await;
    let heartbeats = (controller.cpu() - cpu) / at.elapsed().as_secs_f64();
    assert_eq!(welcomes(), all, "connections were lost without a reason");
    drop(controller);
    let begun = Instant::now();
    let controller = Controller::start(dir.path());
    wait_until("all to be registered again", 300, || welcomes() >= 2 * all).await;
    let storm = begun.elapsed().as_secs_f64();
    let storm_cpu = controller.cpu();
    let client = Client::connect_patiently(&endpoint, Duration::from_secs(60)).await.unwrap();
    let nodes = client.nodes().await.unwrap();
    let there = nodes.iter().filter(|node| !node.condition.not_responding).count();
    assert_eq!(there, usize::try_from(count).unwrap(), "of {} nodes", nodes.len());
    let memory = controller.memory();
    agents.iter().for_each(tokio::task::JoinHandle::abort);
    Cost { joined, heartbeats, storm, storm_cpu, memory }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_machines_find_their_way_to_the_next_controller() {
    crowd(30, Duration::from_millis(100)).await;
}

/// Prints a line for each number of machines in CROWD.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn what_a_crowd_costs() {
    let counts = std::env::var("CROWD").unwrap();
    for count in counts.split(' ') {
        let cost = crowd(count.parse().unwrap(), Duration::from_secs(20)).await;
        println!(
            "crowd\t{count}\t{:.2}\t{:.4}\t{:.2}\t{:.2}\t{:.1}",
            cost.joined, cost.heartbeats, cost.storm, cost.storm_cpu, cost.memory
        );
    }
}
