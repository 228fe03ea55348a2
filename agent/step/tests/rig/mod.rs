//! A zygote and its supervisors without an agent: the test does the agent's part.
#![allow(dead_code)] // each test binary uses a part of it
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail as tests do

use berth_model::ByteStr;
use berth_model::ids::{Attempt, Gid, JobId, StepId, StepKey, Uid};
use berth_model::launch::{JobFacts, Layout, Program, StepExit, StepLaunch, StepPhase};
use berth_model::spec::Identity;
use berth_model::time::Span;
use berth_step::control::{
    Begin, ForkAnswer, ForkRequest, FromSupervisor, StandingBy, ToSupervisor, receive, send,
};
use berth_step::spool::{FORMAT, LaunchFile, NodePart, StepDir};
use berth_stream::{Frame, blocking};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Rig {
    pub dir: tempfile::TempDir,
    socket: Option<OwnedFd>,
    zygote: Child,
}

impl Rig {
    pub fn new() -> Rig {
        let dir = tempfile::Builder::new().prefix("berth-step-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let zygote = Command::new(env!("CARGO_BIN_EXE_step-of-tests"))
            .arg0("berth-step")
            .arg("zygote")
            .stdin(Stdio::from(theirs))
            .spawn()
            .unwrap();
        Rig { dir, socket: Some(ours), zygote }
    }

    /// As when the agent is killed: the zygote goes, the supervisors stay.
    pub fn end_zygote(&mut self) {
        self.socket = None;
        self.zygote.wait().unwrap();
    }

    /// A directory that the step's user may write.
    pub fn work(&self) -> PathBuf {
        let work = self.dir.path().join("work");
        if !work.exists() {
            std::fs::create_dir(&work).unwrap();
            std::fs::set_permissions(&work, std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
        }
        work
    }

    pub fn launch(&self, argv: &[&str]) -> StepLaunch {
        launch(&self.work(), argv)
    }

    pub fn start(&self, launch: StepLaunch) -> Step {
        self.start_with(launch, NodePart::default())
    }

    /// A supervisor that waits for its step: its pid, its socket, and the pid of what it parked.
    pub fn stand_by(&self) -> (Step, OwnedFd, i32) {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let (pid, pidfd) = self.ask(&ForkRequest::StandBy { system: false }, &[theirs.as_fd()]);
        drop(theirs);
        let (word, _) = receive::<StandingBy>(ours.as_fd()).unwrap().unwrap();
        let dir = StepDir::at(self.dir.path());
        (Step { dir, pid, pidfd, control: None }, ours, word.parked)
    }

    /// Gives a supervisor that waits its step.
    pub fn begin(&self, waiting: Step, socket: &OwnedFd, launch: StepLaunch) -> Step {
        let (dir, begin, listener, log) = self.prepare(launch, NodePart::default());
        send(socket.as_fd(), &begin, &[listener.as_fd(), log.as_fd()]).unwrap();
        Step { dir, ..waiting }
    }

    pub fn start_with(&self, launch: StepLaunch, node: NodePart) -> Step {
        let (dir, begin, listener, log) = self.prepare(launch, node);
        let (pid, pidfd) = self.ask(&ForkRequest::Supervise(begin), &[listener.as_fd(), log.as_fd()]);
        Step { dir, pid, pidfd, control: None }
    }

    pub fn ask(&self, request: &ForkRequest, fds: &[BorrowedFd<'_>]) -> (i32, OwnedFd) {
        let socket = self.socket.as_ref().unwrap();
        send(socket.as_fd(), request, fds).unwrap();
        let (answer, fds) = receive::<ForkAnswer>(socket.as_fd()).unwrap().unwrap();
        let ForkAnswer::Forked(pid) = answer else { panic!("{answer:?}") };
        (pid, fds.into_iter().next().unwrap())
    }

    fn prepare(&self, launch: StepLaunch, node: NodePart) -> (StepDir, Begin, OwnedFd, OwnedFd) {
        let step = StepDir::of(self.dir.path(), launch.key);
        step.create().unwrap();
        step.write_launch(&LaunchFile { format: FORMAT, launch, node }).unwrap();
        let kind = SocketType::SEQPACKET;
        let listener = rustix::net::socket_with(
            AddressFamily::UNIX,
            kind,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(step.socket()).unwrap()).unwrap();
        rustix::net::listen(&listener, 8).unwrap();
        let log = rustix::fs::open(step.log(), OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o600))
            .unwrap();
        let begin = Begin { spool: ByteStr::from(step.path()), images: false };
        (step, begin, listener, log)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.socket = None;
        let _ = self.zygote.wait();
    }
}

pub struct Step {
    pub dir: StepDir,
    pub pid: i32,
    pidfd: OwnedFd,
    control: Option<OwnedFd>,
}

impl Step {
    pub fn control(&mut self) -> &OwnedFd {
        if self.control.is_none() {
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )
            .unwrap();
            rustix::net::connect(&socket, &SocketAddrUnix::new(self.dir.socket()).unwrap()).unwrap();
            self.control = Some(socket);
        }
        self.control.as_ref().unwrap()
    }

    pub fn tell(&mut self, packet: &ToSupervisor) {
        let control = self.control();
        send(control.as_fd(), packet, &[]).unwrap();
    }

    /// Waits until the supervisor says this.
    pub fn hear(&mut self, wanted: FromSupervisor) {
        let control = self.control();
        loop {
            match receive::<FromSupervisor>(control.as_fd()).unwrap() {
                Some((got, _)) if got == wanted => return,
                Some(_) => {}
                None => panic!("the supervisor closed before it said {wanted:?}"),
            }
        }
    }

    pub fn attach(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let control = self.control();
        send(control.as_fd(), &ToSupervisor::Attach, &[theirs.as_fd()]).unwrap();
        drop(theirs);
        let mut ours = ours;
        assert_eq!(blocking::read_frame(&mut ours).unwrap(), Some(Frame::Accepted));
        ours
    }

    /// Waits for the supervisor's end and reads the exit that it left.
    pub fn exit(&self) -> StepExit {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let state = self.dir.read_state().unwrap();
            if let Some(StepPhase::Exited(exit)) = state.map(|s| s.phase) {
                return exit;
            }
            assert!(Instant::now() < end, "no exit in 60 s; log: {}", self.log());
            assert!(
                !self.gone(Duration::from_millis(5)) || self.dir.read_exit().unwrap().is_some(),
                "{}",
                self.log()
            );
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.log()).unwrap_or_default()
    }

    /// Whether the supervisor's process ended within this time.
    pub fn gone(&self, within: Duration) -> bool {
        let mut set = [rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut set, Some(&within.try_into().unwrap())).unwrap() > 0
    }
}

pub fn me() -> Identity {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    Identity {
        uid: Uid(uid),
        gid: Gid(gid),
        groups: vec![Gid(gid)],
        user: "tester".into(),
        group: "tester".into(),
        home: "/".into(),
        shell: "/bin/sh".into(),
    }
}

pub fn launch(work: &Path, argv: &[&str]) -> StepLaunch {
    let layout = Layout { nodes: vec!["n1".into()], tasks: vec![vec![0]], cpus: vec![1] };
    let layout = std::sync::Arc::new(layout);
    let launch =
        berth_samples::launch(StepKey { job: JobId(12), attempt: Attempt(0), step: StepId::Number(0) });
    StepLaunch {
        identity: me(),
        job: JobFacts { layout: layout.clone(), submit_dir: ByteStr::from(work), ..launch.job },
        program: Program::Argv(argv.iter().map(|a| ByteStr::from(*a)).collect()),
        env: vec!["PATH=/usr/bin:/bin".into()],
        work_dir: ByteStr::from(work),
        layout,
        attached: true,
        kill_wait: Span::from_secs(5),
        ..launch
    }
}

/// `n` tasks instead of one.
pub fn tasks(launch: &mut StepLaunch, n: u32) {
    std::sync::Arc::make_mut(&mut launch.layout).tasks = vec![(0..n).collect()];
}

/// What a client gets to see of a step.
#[derive(Debug, Default)]
pub struct Seen {
    pub stdout: Vec<(u32, Vec<u8>)>,
    pub stderr: Vec<(u32, Vec<u8>)>,
    pub messages: Vec<String>,
    pub exits: Vec<(u32, berth_model::state::ExitStatus)>,
    pub started: bool,
    pub exit: Option<StepExit>,
}

impl Seen {
    pub fn out(&self, task: u32) -> Vec<u8> {
        self.stdout.iter().filter(|(t, _)| *t == task).flat_map(|(_, d)| d.clone()).collect()
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout.iter().flat_map(|(_, d)| d.clone()).collect::<Vec<_>>())
            .into_owned()
    }
}

/// Reads until the step's exit.
pub fn read_all(client: &mut UnixStream) -> Seen {
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut seen = Seen::default();
    loop {
        match blocking::read_frame(client).unwrap() {
            Some(Frame::Stdout { task, data }) => seen.stdout.push((task, data)),
            Some(Frame::Stderr { task, data }) => seen.stderr.push((task, data)),
            Some(Frame::Message(text)) => seen.messages.push(text),
            Some(Frame::TaskExit { task, status }) => seen.exits.push((task, status)),
            Some(Frame::Started) => seen.started = true,
            Some(Frame::Credit(_)) => {}
            Some(Frame::StepExit(exit)) => {
                seen.exit = Some(*exit);
                return seen;
            }
            Some(other) => panic!("a supervisor does not send {other:?}"),
            None => return seen,
        }
    }
}
