//! The sockets for clients: `agent.sock` for everyone on the node, and one `job.sock` for each job, which
//! is also seen from inside its containers. Who calls is what the kernel says, never what the caller says.

use crate::dial::ASKED;
use crate::direct::{self, Direct};
use crate::images::Images;
use crate::jobs;
use crate::kept::KeptContainers;
use crate::mine;
use crate::paths::Paths;
use crate::places::Connections;
use crate::registry::{Registry, StepStage};
use berth_model::effective::Effective;
use berth_model::ids::{Gid, JobId, NodeName, StepKey, Uid};
use berth_model::request::Peer;
use berth_rpc::{Preface, Uplink, splice};
use berth_step::control::ToSupervisor;
use berth_step::spool::StepDir;
use berth_stream::asynchronous::{read_frame, write_frame};
use berth_stream::{Attach, Frame, FrameError, KeptQuery};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

/// How long a caller may take to say what it wants.
const FIRST_FRAME: Duration = Duration::from_secs(10);
/// How long a step may be unknown here: its Start may come later than the client that was told of it.
const UNKNOWN_STEP: Duration = Duration::from_secs(60);

/// What the sockets need.
pub struct Service {
    /// Steps.
    pub registry: Registry,
    /// The way to the controller.
    pub uplink: Uplink,
    /// The ways to other nodes.
    pub(crate) direct: Direct,
    /// Containers that are kept.
    pub kept: Arc<KeptContainers>,
    /// Images.
    pub images: Arc<Images>,
    /// Who is connected.
    pub(crate) connections: Connections,
    /// Users who ask about their images.
    pub asking: mine::Asking,
    /// Where the files of jobs and steps are.
    pub paths: Paths,
    /// The node's name.
    pub node: NodeName,
}

/// Accepts clients until the task is dropped. `job`: the job whose listener this is.
pub async fn serve(listener: UnixListener, job: Option<(JobId, Uid)>, service: Arc<Service>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let Some((stream, place)) = service.connections.admit(stream) else { continue };
                let service = Arc::clone(&service);
                tokio::spawn(async move {
                    let _place = place;
                    if let Err(e) = client(stream, job, &service).await {
                        tracing::debug!("a client's connection: {e}");
                    }
                });
            }
            Err(e) => {
                // Out of descriptors, for one: it passes.
                tracing::warn!("cannot accept a client: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn client(
    mut stream: UnixStream,
    job: Option<(JobId, Uid)>,
    service: &Service,
) -> Result<(), FrameError> {
    let cred = stream.peer_cred()?;
    let mut peer = Peer { uid: Uid(cred.uid()), gid: Gid(cred.gid()), job: job.map(|(id, _)| id) };
    let mut first = opening(&mut stream).await?;
    if let Some((id, owner)) = job
        && peer.uid != owner
        && peer.uid.0 != 0
    {
        let text = format!("this socket is for job {id} and its owner, and you are uid {}", peer.uid);
        return write_frame(&mut stream, &Frame::Refused(text)).await;
    }
    if matches!(first, Some(Frame::Places(None))) {
        return write_frame(&mut stream, &service.connections.most(peer.uid)).await;
    }
    let mut to = None;
    if let Some(Frame::Node(node)) = first {
        to = (node != service.node).then_some(node);
        first = opening(&mut stream).await?;
    }
    if job.is_none() {
        peer.job = job_of(cred.pid(), first.as_ref(), service).await;
    }
    if let Some(to) = to {
        let Some(first) = first else { return Ok(()) };
        return service.direct.carry(stream, peer, to, first).await;
    }
    serve_peer(stream, peer, first, service, ToSupervisor::Attach).await
}

/// The job of which who comes by everybody's socket to be the client of a step is a process, where it is the step's: it ends with that job
/// like one that comes by the job's own. For anything else they are a user of the machine.
async fn job_of(pid: Option<i32>, first: Option<&Frame>, service: &Service) -> Option<JobId> {
    let (Some(pid), Some(Frame::Attach(attach))) = (pid, first) else { return None };
    let (known, paths) = (service.registry.beside(attach.job), service.paths.clone());
    let look = move || known.into_iter().find(|job| jobs::has(&paths, *job, pid));
    tokio::task::spawn_blocking(look).await.ok().flatten()
}

/// The next frame of one that has to say what it wants.
pub(crate) async fn opening(stream: &mut UnixStream) -> Result<Option<Frame>, FrameError> {
    tokio::time::timeout(FIRST_FRAME, read_frame(stream))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Serves somebody on another machine, as who the controller says it is. `only`: the one step that is meant, where it is one.
pub async fn serve_remote(
    mut stream: UnixStream,
    peer: Peer,
    only: Option<StepKey>,
    service: &Service,
) -> Result<(), FrameError> {
    let mut first = opening(&mut stream).await?;
    if let Some(Frame::Node(_)) = first {
        // Which node was said to those in between.
        first = opening(&mut stream).await?;
    }
    if let (Some(only), Some(frame)) = (only, &first)
        && direct::step_of(frame) != Some(only)
    {
        let text = format!("this connection was granted for step {only} and for nothing else");
        return write_frame(&mut stream, &Frame::Refused(text)).await;
    }
    if matches!(first, Some(Frame::Controller)) {
        let text = "the controller is asked on one's own machine".to_string();
        return write_frame(&mut stream, &Frame::Refused(text)).await;
    }
    serve_peer(stream, peer, first, service, ToSupervisor::AttachRemote).await
}

async fn serve_peer(
    mut stream: UnixStream,
    peer: Peer,
    first: Option<Frame>,
    service: &Service,
    how: ToSupervisor,
) -> Result<(), FrameError> {
    match first {
        Some(Frame::Attach(attach)) => {
            let Some(to) = supervisor_of(&mut stream, attach, peer, service).await? else { return Ok(()) };
            let how = match attach.resume.filter(|_| how == ToSupervisor::AttachRemote) {
                Some(resume) if resumes(attach.key(), service).await => ToSupervisor::AttachResuming(resume),
                _ => how,
            };
            service.registry.client_is(attach.key(), peer.job.is_some());
            let fd: OwnedFd = stream.into_std()?.into();
            if to.send((how, Some(fd))).is_err() {
                tracing::debug!("the supervisor of {} ended as a client came", attach.key());
            }
            Ok(())
        }
        Some(Frame::Watch(watch)) => {
            let Some(to) = supervisor_of(&mut stream, watch.step, peer, service).await? else {
                return Ok(());
            };
            let dir = StepDir::of(&service.paths.spool(), watch.step.key());
            let knows = tokio::task::spawn_blocking(move || dir.read_state()).await;
            if !matches!(knows, Ok(Ok(Some(state))) if state.watched) {
                let text = "the step was started by an earlier version of Berth, which has one client alone";
                return write_frame(&mut stream, &Frame::Refused(text.to_string())).await;
            }
            let (stdout, stderr, terminal) = (watch.stdout, watch.stderr, watch.terminal);
            // On this machine the connection is the supervisor's own, and breaks with one of its ends alone.
            let resume = watch.step.resume.filter(|_| how == ToSupervisor::AttachRemote);
            let fd: OwnedFd = stream.into_std()?.into();
            // A supervisor that ended meanwhile closes it, and the client asks again.
            let _ = to.send((ToSupervisor::Watch { stdout, stderr, terminal, resume }, Some(fd)));
            Ok(())
        }
        Some(Frame::Kept(query)) => kept(&mut stream, query, peer, service).await,
        Some(Frame::Images(query)) => mine::answer(&mut stream, query, peer, service).await,
        Some(Frame::Describe(step)) => {
            let answer = match describe(step.key(), peer, service).await {
                Ok(what) => Frame::Description(Box::new(what)),
                Err(why) => Frame::Refused(why),
            };
            write_frame(&mut stream, &answer).await
        }
        Some(Frame::Controller) => proxy(stream, &Preface::Client(peer), service).await,
        Some(_) => {
            let text =
                "expected Attach, Watch, Describe, Kept, Images, Node or Controller as the first frame"
                    .to_string();
            write_frame(&mut stream, &Frame::Refused(text)).await
        }
        None => Ok(()),
    }
}

/// Whether a step's supervisor keeps what a client has not heard.
async fn resumes(key: StepKey, service: &Service) -> bool {
    let dir = StepDir::of(&service.paths.spool(), key);
    match tokio::task::spawn_blocking(move || dir.read_state()).await {
        Ok(Ok(Some(state))) => state.resumes,
        // It was only just started, by this agent, and is of this version.
        Ok(Ok(None)) => true,
        _ => false,
    }
}

/// Answers what is asked of the kept containers: everyone's own; root, outside jobs, has a say in all.
async fn kept(
    stream: &mut UnixStream,
    query: KeptQuery,
    peer: Peer,
    service: &Service,
) -> Result<(), FrameError> {
    let kept = Arc::clone(&service.kept);
    let caller = peer.uid;
    let may_all = caller.0 == 0 && peer.job.is_none();
    let whose = move |all: bool| if all && may_all { None } else { Some(caller) };
    let answer = tokio::task::spawn_blocking(move || -> Result<Vec<Frame>, String> {
        match query {
            KeptQuery::List { all: true } | KeptQuery::Prune { all: true, .. } if !may_all => {
                Err("only root sees the containers of others: leave --all out".to_string())
            }
            KeptQuery::Remove { uid: Some(uid), .. } if uid != caller && !may_all => {
                Err(format!("only root removes the containers of others, and you are uid {caller}"))
            }
            KeptQuery::List { all } => {
                Ok(kept.list(whose(all)).into_iter().map(|one| Frame::KeptContainer(Box::new(one))).collect())
            }
            KeptQuery::Remove { name, uid } => {
                kept.remove(uid.unwrap_or(caller), &name).map(|()| vec![Frame::Message(name)])
            }
            KeptQuery::Prune { unused, all } => Ok(kept
                .prune(whose(all), Duration::from_secs(unused))
                .into_iter()
                .map(Frame::Message)
                .collect()),
        }
    });
    match answer.await.map_err(io::Error::other)? {
        Ok(frames) => {
            for frame in frames {
                write_frame(stream, &frame).await?;
            }
            write_frame(stream, &Frame::Accepted).await
        }
        Err(why) => write_frame(stream, &Frame::Refused(why)).await,
    }
}

/// What takes commands for a supervisor.
type Commands = tokio::sync::mpsc::UnboundedSender<crate::registry::SupervisorCommand>;

/// The supervisor of the step that a client wants; none where the client has heard how the step ended or why it is refused, or left.
async fn supervisor_of(
    stream: &mut UnixStream,
    attach: Attach,
    peer: Peer,
    service: &Service,
) -> Result<Option<Commands>, FrameError> {
    match attach_to(stream, attach, peer, service).await {
        Ok(Answer::Passed(to)) => return Ok(Some(to)),
        Ok(Answer::Ended(exit)) => {
            write_frame(stream, &Frame::Accepted).await?;
            write_frame(stream, &Frame::StepExit(exit)).await?;
        }
        Err(Some(why)) => write_frame(stream, &Frame::Refused(why)).await?,
        Err(None) => {}
    }
    Ok(None)
}

enum Answer {
    Passed(Commands),
    Ended(Box<berth_model::launch::StepExit>),
}

/// Waits until the step has a supervisor or an end. `Err(None)`: the client left.
async fn attach_to(
    stream: &UnixStream,
    attach: Attach,
    peer: Peer,
    service: &Service,
) -> Result<Answer, Option<String>> {
    let key = attach.key();
    let foreign = || peer.job.is_some_and(|job| !service.registry.is_of(key, job));
    let mut changes = service.registry.subscribe();
    let patience = tokio::time::sleep(UNKNOWN_STEP);
    tokio::pin!(patience);
    loop {
        changes.borrow_and_update();
        let known = service.registry.get(key);
        match &known {
            Some(((owner, _), _)) if *owner != peer.uid && peer.uid.0 != 0 => {
                return Err(Some(format!("step {key} belongs to uid {owner}, and you are uid {}", peer.uid)));
            }
            Some(_) if foreign() => return Err(Some(not_of_the_job(key))),
            Some((_, StepStage::Live(to))) => return Ok(Answer::Passed(to.clone())),
            Some((_, StepStage::Ended(exit))) => return Ok(Answer::Ended(exit.clone())),
            Some((_, StepStage::Preparing)) | None => {}
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = &mut patience, if known.is_none() => {
                return Err(Some(no_such(key)));
            }
            () = gone(stream) => return Err(None),
        }
    }
}

fn not_of_the_job(key: StepKey) -> String {
    format!("step {key} is not of the job that this socket belongs to")
}

/// What a step has on this node: for its owner and for root.
async fn describe(key: StepKey, peer: Peer, service: &Service) -> Result<Effective, String> {
    if peer.job.is_some_and(|job| !service.registry.is_of(key, job)) {
        return Err(not_of_the_job(key));
    }
    match service.registry.get(key) {
        Some(((owner, _), _)) if owner != peer.uid && peer.uid.0 != 0 => {
            return Err(format!("step {key} belongs to uid {owner}, and you are uid {}", peer.uid));
        }
        Some((_, StepStage::Live(_))) => {}
        Some(_) => return Err(format!("step {key} does not run")),
        None => return Err(no_such(key)),
    }
    let (dir, node) = (StepDir::of(&service.paths.spool(), key), service.node.clone());
    let look = tokio::task::spawn_blocking(move || {
        let state = dir.read_state()?.ok_or_else(|| io::Error::other("it has not started"))?;
        let file = dir.read_launch()?;
        let what = berth_runtime::effective(state.pid, file.node.cgroup.as_ref());
        Ok::<_, io::Error>(Effective { node: node.0, ..what })
    });
    let found = look.await.map_err(io::Error::other).and_then(|found| found);
    found.map_err(|e| format!("cannot look at step {key}: {e}"))
}

fn no_such(key: StepKey) -> String {
    format!("step {key} is not on this node: see 'squeue --steps' for the steps that run")
}

/// Returns when the client closed its side. Nothing is read: what it sent early is for the supervisor.
async fn gone(stream: &UnixStream) {
    loop {
        match stream.ready(Interest::READABLE).await {
            Ok(ready) if ready.is_read_closed() => return,
            Ok(_) => {
                // It sent something early: look again from time to time, for its end alone.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(_) => return,
        }
    }
}

/// Connects the caller with the controller and says in whose name: the rest of the connection passes through.
async fn proxy(mut stream: UnixStream, preface: &Preface, service: &Service) -> Result<(), FrameError> {
    let controller = match service.uplink.open(preface).await {
        Ok(controller) => controller,
        Err(e) => {
            let text = format!(
                "the node's agent cannot reach the controller ({e}): is it running? 'berth status' tells"
            );
            return write_frame(&mut stream, &Frame::Refused(text)).await;
        }
    };
    Ok(splice(stream, controller, ASKED).await?)
}
