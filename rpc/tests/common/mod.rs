//! A controller that remembers who asked for what, behind real sockets.
#![allow(dead_code)] // each test binary uses a part of it
#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test

pub mod machines;

use berth_model::config::Config;
use berth_model::direct::StreamWay;
use berth_model::link::{FromAgent, ToAgent};
use berth_model::listing::JobList;
use berth_model::member::{AuditInfo, KeyId, MemberInfo, NewToken, TokenInfo};
use berth_model::query::{AccountingQuery, JobQuery, Status};
use berth_model::record::{JobInfo, NodeInfo, PartitionInfo};
use berth_model::request::{Actor, Peer, Refusal, RefusalCode, Request, Response};
use berth_model::rights::Rank;
use berth_model::spec::Identity;
use berth_model::{ByteStr, JobId, NodeName, StepKey, Time, Uid};
use berth_rpc::{
    AgentConnection, Answers, Duplex, Listeners, MachineListener, Question, Reply, Service, Unheard, serve,
};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::UnixListener;
use tokio::sync::oneshot;

/// Remembers who asked for what.
pub struct Recorder {
    /// What everybody is.
    pub rank: Rank,
    pub seen: Mutex<Vec<(Actor, Request)>>,
    pub leases: Arc<AtomicUsize>,
    /// The machines of the cluster. Each may speak for whomever it wants to.
    pub members: Vec<MemberInfo>,
    /// Agents that came with a key of nobody's.
    pub unknown: Mutex<Vec<(NodeName, KeyId)>>,
    /// None of them is removed.
    kept: Mutex<Vec<oneshot::Sender<()>>>,
    /// What nodes have said that are called `still`: it is never handled.
    pub waiting: Arc<Mutex<Vec<(u32, Unheard)>>>,
    /// Why connections came to nothing.
    pub away: Mutex<Vec<String>>,
}

struct Held(Arc<AtomicUsize>);
impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn refuse<T>(code: RefusalCode) -> Result<T, Refusal> {
    Err(Refusal::new(code, "no: naïve «quotes»\nand a second line"))
}

impl Service for Recorder {
    async fn identify(&self, peer: Peer) -> Result<Actor, Refusal> {
        let identity = Identity {
            uid: peer.uid,
            gid: peer.gid,
            groups: vec![],
            user: format!("u{}", peer.uid),
            group: String::new(),
            home: ByteStr::default(),
            shell: ByteStr::default(),
        };
        Ok(Actor { rank: self.rank, accounts: vec!["physics".into()], ..Actor::user(identity) })
    }
    async fn request(&self, actor: Actor, request: Request) -> Result<Response, Refusal> {
        let answer = match &request {
            Request::EndAllocation { job: JobId(1), .. } => Ok(Response::Done),
            Request::EndAllocation { job: JobId(2), .. } => refuse(RefusalCode::WrongState),
            _ => Ok(Response::Acted { jobs: vec![JobId(7)], refused: vec![], later: vec![] }),
        };
        self.seen.lock().unwrap().push((actor, request));
        answer
    }
    async fn jobs(&self, _: (Uid, Rank), _: JobQuery) -> Result<Answers<JobList>, Refusal> {
        refuse(RefusalCode::Unavailable)
    }
    async fn nodes(&self, _: (Uid, Rank)) -> Result<Answers<Vec<NodeInfo>>, Refusal> {
        let page = |from: u32| (from..from + 100).map(|i| node(&format!("n{i}"))).collect::<Vec<_>>();
        Ok(Box::pin(tokio_stream::iter([Ok(page(0)), Ok(page(100)), Ok(page(200))])))
    }
    async fn partitions(&self) -> Result<Answers<Vec<PartitionInfo>>, Refusal> {
        Ok(Box::pin(tokio_stream::iter([Ok(vec![]), refuse(RefusalCode::Internal)])))
    }
    async fn accounting(&self, _: (Uid, Rank), _: AccountingQuery) -> Result<Answers<Vec<JobInfo>>, Refusal> {
        Ok(Box::pin(tokio_stream::empty()))
    }
    async fn watch(&self, _: JobId) -> Result<Answers<JobInfo>, Refusal> {
        refuse(RefusalCode::NotFound)
    }
    async fn lease(&self, _: Actor, _: JobId) -> Result<Box<dyn Send + Sync>, Refusal> {
        self.leases.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Held(Arc::clone(&self.leases))))
    }
    async fn end_seen(&self, _: Actor, _: JobId) -> Result<(), Refusal> {
        Ok(())
    }
    async fn config(&self) -> Result<Config, Refusal> {
        Ok(Config::default())
    }
    async fn status(&self) -> Result<Status, Refusal> {
        Ok(Status {
            pid: std::process::id(),
            version: "1".into(),
            state_dir: ByteStr::default(),
            since: Time(1),
            accepting: true,
            alarms: vec![],
            agents: vec![],
            login_key: berth_model::ByteStr::default(),
        })
    }
    async fn shutdown(&self, _: Actor) -> Result<(), Refusal> {
        Ok(())
    }
    async fn reconfigure(&self, _: Actor) -> Result<(), Refusal> {
        Ok(())
    }
    async fn create_token(&self, _: Actor, _: NewToken) -> Result<Response, Refusal> {
        refuse(RefusalCode::Internal)
    }
    async fn tokens(&self) -> Result<Answers<Vec<TokenInfo>>, Refusal> {
        refuse(RefusalCode::Internal)
    }
    async fn members(&self) -> Result<Answers<Vec<MemberInfo>>, Refusal> {
        Ok(Box::pin(tokio_stream::empty()))
    }
    async fn audit(&self, _: Option<u32>) -> Result<Answers<Vec<AuditInfo>>, Refusal> {
        refuse(RefusalCode::Internal)
    }
    fn member(&self, key: &KeyId) -> Option<MemberInfo> {
        self.members.iter().find(|member| member.key == *key).cloned()
    }
    fn unknown(&self, node: NodeName, key: KeyId, _: std::net::SocketAddr) {
        self.unknown.lock().unwrap().push((node, key));
    }
    fn until_removed(&self, _: &KeyId) -> oneshot::Receiver<()> {
        let (kept, removed) = oneshot::channel();
        self.kept.lock().unwrap().push(kept);
        removed
    }
    fn vouched(&self, _: &MemberInfo, _: Peer) -> Result<(), Refusal> {
        Ok(())
    }
    fn clock(&self) -> Reply {
        Reply::Clock(Time(1))
    }
    async fn question(
        &self,
        _: KeyId,
        _: Option<MemberInfo>,
        _: std::net::SocketAddr,
        _: Question,
    ) -> Result<Reply, Refusal> {
        refuse(RefusalCode::Denied)
    }
    async fn ways(
        &self,
        key: String,
        peer: Peer,
        step: StepKey,
        only: Option<NodeName>,
    ) -> Result<Vec<StreamWay>, Refusal> {
        // What was asked is what is answered.
        let (node, grant) = (only.unwrap_or(NodeName("all".into())), format!("{step} {}", peer.uid));
        Ok(vec![StreamWay { node, address: ":1".into(), key, grant }])
    }

    async fn stream(&self, _: Peer, _: NodeName, _: Duplex) {}
    fn answered_here(&self, _: u64, _: Duplex) {}
    fn answered(&self, _: NodeName, _: u64, _: Duplex, _: oneshot::Receiver<()>) {}
    fn turned_away(&self, _: std::net::SocketAddr, why: &str) {
        self.away.lock().unwrap().push(why.to_string());
    }
    async fn agent(&self, mut connection: AgentConnection) -> Result<(), Refusal> {
        let (waiting, still) = (Arc::clone(&self.waiting), connection.node.0.starts_with("still"));
        tokio::spawn(async move {
            while let Some((FromAgent::Heartbeat { load, .. }, unheard)) = connection.incoming.recv().await {
                if still {
                    waiting.lock().unwrap().push((load, unheard));
                    continue;
                }
                let text = format!("{} {load}", connection.node);
                if connection.outgoing.send(ToAgent::Refused(text)).await.is_err() {
                    return;
                }
            }
        });
        Ok(())
    }
}

fn node(name: &str) -> NodeInfo {
    NodeInfo {
        name: NodeName::from(name),
        hardware: Default::default(),
        condition: Default::default(),
        partitions: vec![],
        total: Default::default(),
        allocated: Default::default(),
        completing: false,
        version: String::new(),
        boot_time: None,
        agent_start: None,
        last_busy: None,
        load: 0,
        free_memory: 0,
        drift: vec![],
        unknown_settings: vec![],
        hardware_drift: vec![],
        used: vec![],
        host_name: None,
    }
}

/// It serves until this is dropped.
pub struct Server {
    pub recorder: Arc<Recorder>,
    stop: Option<oneshot::Sender<()>>,
    done: tokio::task::JoinHandle<std::io::Result<()>>,
}

/// Listens in a directory, at `c.sock` for clients and at `n.sock` for agents.
pub fn start(dir: &Path, rank: Rank) -> Server {
    start_for(dir, rank, None, vec![])
}

/// The same, and for machines that are members.
pub fn start_for(
    dir: &Path,
    rank: Rank,
    port: Option<Arc<MachineListener>>,
    members: Vec<MemberInfo>,
) -> Server {
    for name in ["c.sock", "n.sock"] {
        let _ = std::fs::remove_file(dir.join(name));
    }
    let recorder = Arc::new(Recorder {
        rank,
        seen: Mutex::new(vec![]),
        leases: Arc::new(AtomicUsize::new(0)),
        members,
        unknown: Mutex::default(),
        kept: Mutex::default(),
        waiting: Arc::default(),
        away: Mutex::default(),
    });
    let listeners = Listeners {
        machines: tokio::sync::watch::channel(port).1,
        clients: UnixListener::bind(dir.join("c.sock")).unwrap(),
        nodes: UnixListener::bind(dir.join("n.sock")).unwrap(),
    };
    let (stop, stopped) = oneshot::channel();
    let service = Arc::clone(&recorder);
    let done = tokio::spawn(serve(service, listeners, own_uid(dir), async {
        let _ = stopped.await;
    }));
    Server { recorder, stop: Some(stop), done }
}

pub fn own_uid(dir: &Path) -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(dir).unwrap().uid()
}

impl Server {
    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.done.await.unwrap().unwrap();
    }
}
