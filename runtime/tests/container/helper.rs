//! Roots, users and the helper process that launches a container for a test.

use berth_model::spec::{Identity, TermSize};
use berth_model::{ByteStr, Gid, Uid};
use berth_runtime::{
    ContainerRequest, Event, HolderLink, HostFacts, JobNamespaces, JobRequest, MountedImages, Parked, Rootfs,
    SignalTarget, StartOptions, StoreOwner, TaskSpec, TaskStdio, fork_holder, plan, start_init,
};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::os::fd::{AsFd, IntoRawFd};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// First argument of the test program when it is the helper.
pub const FLAG: &str = "--launch-for-a-test";

/// An ordinary user and a store's identity that own nothing on any machine.
pub const USER: u32 = 54321;
pub const STORE: u32 = 54322;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Who launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// Root, for an ordinary user.
    Root,
    /// An ordinary user, for itself.
    User,
}

/// Runs a test body in each mode that this process can have.
pub fn each(body: impl Fn(As)) {
    if is_root() {
        body(As::Root);
    }
    body(As::User);
}

/// The user for whom containers run.
pub fn uid() -> u32 {
    if is_root() { USER } else { rustix::process::getuid().as_raw() }
}

/// A directory tree that goes with the test.
pub struct Dir(tempfile::TempDir);

impl Dir {
    pub fn new() -> Dir {
        let dir = tempfile::Builder::new().prefix("berth-test-").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        Dir(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A path below it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

/// Gives a tree to an owner, when this process may.
pub fn give(path: &Path, owner: u32) {
    if !is_root() {
        return;
    }
    std::os::unix::fs::lchown(path, Some(owner), Some(owner)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), owner);
        }
    }
}

/// A root with busybox, in a layer that belongs to whom it must for the mode.
pub fn busybox(dir: &Dir, mode: As) -> PathBuf {
    let root = dir.at(if mode == As::Root { "store-layer" } else { "layer" });
    for part in ["bin", "etc", "tmp", "mnt"] {
        std::fs::create_dir_all(root.join(part)).unwrap();
    }
    let source = ["/bin/busybox", "/usr/bin/busybox"].into_iter().map(Path::new).find(|p| p.exists());
    let source = source.expect("the tests need busybox-static: apt-get install busybox-static");
    std::fs::copy(source, root.join("bin/busybox")).unwrap();
    let list = Command::new(source).arg("--list").output().unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|a| *a != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    give(&root, if mode == As::Root { STORE } else { uid() });
    root
}

/// A root whose `/usr` is the node's: for tests that need perl or the like.
pub fn node_usr(dir: &Dir, mode: As) -> PathBuf {
    let root = dir.at("usr-layer");
    for part in ["usr", "etc", "tmp"] {
        std::fs::create_dir_all(root.join(part)).unwrap();
    }
    for link in ["bin", "lib", "lib64", "sbin"] {
        symlink(format!("usr/{link}"), root.join(link)).unwrap();
    }
    give(&root, if mode == As::Root { STORE } else { uid() });
    root
}

pub fn identity() -> Identity {
    Identity {
        uid: Uid(uid()),
        gid: Gid(uid()),
        groups: Vec::new(),
        user: "ann".into(),
        group: "ann".into(),
        home: "/home/ann".into(),
        shell: "/bin/bash".into(),
    }
}

/// A request for one layer.
pub fn request(layer: &Path, mode: As) -> ContainerRequest {
    let owner = (mode == As::Root).then_some(StoreOwner { uid: STORE, gid: STORE });
    let root = Rootfs::Overlay { layers: vec![ByteStr::from(layer)], owner };
    ContainerRequest::new(root, identity(), "/tmp".into())
}

/// In a fresh process with the rights of the mode: the doctor's findings as JSON.
pub fn examine(mode: As) -> String {
    let dir = Dir::new();
    let program = dir.at("helper");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = Command::new(&program);
    command.args([FLAG, DOCTOR]).current_dir("/");
    if is_root() && mode == As::User {
        command.uid(USER).gid(USER);
    }
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

const DOCTOR: &str = "doctor";

/// What the helper is to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    pub request: ContainerRequest,
    /// `argv` of each task.
    pub tasks: Vec<Vec<String>>,
    /// Environment of the tasks.
    pub env: Vec<ByteStr>,
    pub pty: bool,
    pub parked: bool,
    /// Kernel version to plan for.
    pub kernel: Option<(u32, u32)>,
    /// The node's time zone to plan with.
    pub zone: Option<String>,
    /// Open this before launching, at a number that is kept over exec.
    pub leak: Option<PathBuf>,
    /// A script that the tasks get as a descriptor, and run.
    pub script: Option<String>,
    /// Signal to send to all tasks once they run.
    pub signal: Option<(SignalTarget, i32)>,
    /// Kill the launching process itself once the tasks run.
    pub die: bool,
    /// The tasks are asked for while the container is made, and it ends with the first of them.
    pub at_once: bool,
    /// Scripts of the steps of one job, instead of one container's tasks.
    pub steps: Vec<String>,
    /// Make and end the container so often, going on where it is refused.
    pub rounds: u32,
    /// Show this file instead of the node's `/dev/null` (root).
    pub null: Option<PathBuf>,
    /// Layers that are images are mounted beforehand.
    pub images: bool,
    /// cgroup v1/v2 name to run in.
    pub cgroup: Option<(String, berth_runtime::cgroup::CgroupLimits)>,
}

impl Order {
    pub fn new(request: ContainerRequest, script: &str) -> Order {
        Order {
            request,
            tasks: vec![vec!["/bin/sh".into(), "-c".into(), script.into()]],
            env: Vec::new(),
            pty: false,
            parked: false,
            kernel: None,
            zone: None,
            leak: None,
            script: None,
            signal: None,
            die: false,
            at_once: false,
            steps: Vec::new(),
            rounds: 0,
            null: None,
            images: false,
            cgroup: None,
        }
    }

    pub fn argv(mut self, argv: &[&str]) -> Order {
        self.tasks = vec![argv.iter().map(|s| (*s).to_string()).collect()];
        self
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub out: String,
    pub err: String,
    pub code: i32,
}

/// Launches in a process of its own, with the rights of the mode.
pub fn launch(order: &Order, mode: As) -> Outcome {
    let dir = Dir::new();
    let program = dir.at("helper");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let file = dir.at("order.json");
    std::fs::write(&file, serde_json::to_vec(order).unwrap()).unwrap();
    let mut command = match &order.null {
        None => Command::new(&program),
        Some(null) => {
            // The user's rights are taken after the mount, for which root's are needed.
            let mut outer = Command::new("unshare");
            let change = if mode == As::User {
                format!("setpriv --reuid {USER} --regid {USER} --clear-groups")
            } else {
                String::new()
            };
            let text = format!("mount --bind \"$1\" /dev/null && shift && exec {change} \"$@\"");
            outer.args(["--mount", "sh", "-c", &text, "sh"]).arg(null).arg(&program);
            outer
        }
    };
    command.arg(FLAG).arg(&file).current_dir("/").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if is_root() && mode == As::User && order.null.is_none() {
        command.uid(USER).gid(USER);
    }
    let result = command.output().unwrap();
    Outcome {
        out: String::from_utf8_lossy(&result.stdout).into_owned(),
        err: String::from_utf8_lossy(&result.stderr).into_owned(),
        code: result.status.code().unwrap_or(-1),
    }
}

/// Launches a shell script and expects success.
pub fn script(request: ContainerRequest, mode: As, text: &str) -> String {
    let outcome = launch(&Order::new(request, text), mode);
    assert_eq!(outcome.code, 0, "{mode:?}: {text}: {outcome:?}");
    outcome.out
}

/// The helper: launches, relays, and reports by its exit code.
pub fn child_main(order: &str) -> ! {
    if order == DOCTOR {
        println!("{}", serde_json::to_string(&berth_runtime::doctor::examine()).unwrap());
        std::process::exit(0);
    }
    let order: Order = serde_json::from_slice(&std::fs::read(order).unwrap()).unwrap();
    let code = run(order).unwrap_or_else(|e| {
        eprintln!("{e}");
        125
    });
    std::process::exit(code);
}

fn run(order: Order) -> Result<i32, Box<dyn std::error::Error>> {
    use berth_runtime::cgroup::{Cgroup, CgroupFacts};
    if let Some(path) = &order.leak {
        let fd = std::fs::File::open(path)?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?;
        let _ = fd.into_raw_fd();
    }
    let mut facts = HostFacts::gather(&order.request);
    if let Some(kernel) = order.kernel {
        facts.kernel = kernel;
    }
    if let Some(zone) = &order.zone {
        facts.localtime = Some(zone.as_str().into());
    }
    let plan = plan(&order.request, &facts)?;
    if !order.steps.is_empty() {
        return run_job(&order, &plan);
    }
    if order.rounds > 0 {
        return repeat(&order, &plan);
    }
    let group = match &order.cgroup {
        Some((name, limits)) => Some(Cgroup::create(&CgroupFacts::detect(), name, limits)?),
        None => None,
    };
    let dir = group.as_ref().and_then(Cgroup::v2_dir);
    let mut options = StartOptions { cgroup: dir.as_ref().map(AsFd::as_fd), ..StartOptions::default() };
    if order.parked || group.is_some() {
        let parked = Parked::new()?;
        if let Some(group) = &group {
            group.join(parked.pid())?;
        }
        options.parked = Some(parked);
    }
    let mounted = MountedImages::new();
    if let (true, Rootfs::Overlay { layers, .. }) = (order.images, &order.request.root) {
        let mounted = mounted?;
        // The second time there is nothing to do.
        for layer in layers.iter().chain(layers) {
            mounted.add(layer.as_path())?;
        }
        options.images = Some(mounted.as_fd().try_clone_to_owned()?);
    }
    let mut tasks = Vec::new();
    for (id, argv) in (0..).zip(&order.tasks) {
        let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
        let stdio = if order.pty {
            TaskStdio::Pty(TermSize { rows: 33, cols: 77 })
        } else {
            TaskStdio::Fds {
                stdin: None,
                stdout: Some(own(std::io::stdout().as_fd())?),
                stderr: Some(own(std::io::stderr().as_fd())?),
            }
        };
        let argv = argv.iter().map(|a| ByteStr::from(a.as_str())).collect();
        let mut extra_fds = Vec::new();
        if let Some(text) = &order.script {
            let file = rustix::fs::memfd_create("script", rustix::fs::MemfdFlags::CLOEXEC)?;
            rustix::io::write(&file, text.as_bytes())?;
            extra_fds.push((9, file));
        }
        tasks.push(TaskSpec {
            id,
            extra_fds,
            name: order.script.as_ref().map(|_| "the batch script".into()),
            argv,
            stdio,
            env: order.env.clone(),
            pid_env: Some("TASK_PID".into()),
            last: order.at_once && id == 0,
            ..TaskSpec::default()
        });
    }
    let later = if order.at_once { Vec::new() } else { std::mem::take(&mut tasks) };
    options.tasks = tasks;
    let mut init = start_init(&plan, options)?;
    for note in plan.notes.iter().chain(init.notes()) {
        eprintln!("note: {note}");
    }
    for task in later {
        init.spawn(task)?;
    }
    let code = watch(&mut init, &order)?;
    if order.at_once {
        let mut ended = [rustix::event::PollFd::from_borrowed_fd(init.pidfd(), rustix::event::PollFlags::IN)];
        let patience = rustix::time::Timespec { tv_sec: 20, tv_nsec: 0 };
        let by_itself = rustix::event::poll(&mut ended, Some(&patience))? == 1;
        println!("{}", if by_itself { "ended by itself" } else { "goes on" });
    }
    init.finish()?;
    if let Some(group) = group {
        group.kill_and_remove(std::time::Duration::from_secs(5))?;
    }
    Ok(code)
}

/// The same container again and again: says how often it could be made.
fn repeat(order: &Order, plan: &berth_runtime::Plan) -> Result<i32, Box<dyn std::error::Error>> {
    let (mut made, mut refused) = (0, 0);
    for _ in 0..order.rounds {
        match start_init(plan, StartOptions::default()) {
            Err(_) => refused += 1,
            Ok(mut init) => {
                let stdout = Some(std::io::stdout().as_fd().try_clone_to_owned()?);
                let stdio = TaskStdio::Fds { stdin: None, stdout, stderr: None };
                let argv = order.tasks[0].iter().map(|a| ByteStr::from(a.as_str())).collect();
                init.spawn(TaskSpec { argv, stdio, ..TaskSpec::default() })?;
                while !matches!(init.next_event(true)?, Some(Event::Exited { .. } | Event::ExecFailed { .. }))
                {
                }
                init.finish()?;
                made += 1;
            }
        }
    }
    println!("{made} made, {refused} refused");
    Ok(0)
}

/// Steps of one job: all are started, then each is waited for and ended, in order.
fn run_job(order: &Order, plan: &berth_runtime::Plan) -> Result<i32, Box<dyn std::error::Error>> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let (pid, _held) = fork_holder(plan.mode, theirs.into())?;
    let mut link = HolderLink::new(ours.into());
    let owner = StoreOwner { uid: STORE, gid: STORE };
    let r = &order.request;
    link.begin(pid, JobRequest::new(&r.identity, plan.mode, Some(owner), r.shm_size, None))?;
    link.ready()?;
    link.stay()?;
    let job = JobNamespaces::of(pid)?;
    let mut steps = Vec::new();
    for script in &order.steps {
        let options = StartOptions { namespaces: job.open(plan.mode)?, ..StartOptions::default() };
        let mut init = start_init(plan, options)?;
        let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
        let stdio = TaskStdio::Fds {
            stdin: None,
            stdout: Some(own(std::io::stdout().as_fd())?),
            stderr: Some(own(std::io::stderr().as_fd())?),
        };
        let argv = ["/bin/sh", "-c", script].map(ByteStr::from).to_vec();
        init.spawn(TaskSpec { argv, stdio, ..TaskSpec::default() })?;
        steps.push(init);
    }
    // Whose processes may be looked at is another question for an ordinary user.
    let own = rustix::process::getpid().as_raw_nonzero().get();
    if is_root() && (job.have(own) || !steps.iter().all(|init| job.have(init.pid()))) {
        return Err("the job does not know its processes from others".into());
    }
    if let Some((target, signal)) = order.signal
        && let Some(last) = steps.last_mut()
    {
        std::thread::sleep(std::time::Duration::from_millis(500));
        last.signal(target, signal)?;
    }
    for mut init in steps {
        while !matches!(init.next_event(true)?, Some(Event::Exited { .. } | Event::ExecFailed { .. })) {}
        init.finish()?;
    }
    Ok(i32::from(!job.end(std::time::Duration::from_secs(5)) || job.holder().is_some()))
}

fn watch(init: &mut berth_runtime::InitHandle, order: &Order) -> Result<i32, Box<dyn std::error::Error>> {
    let (mut left, mut started, mut worst) = (order.tasks.len(), 0, 0);
    let mut terminals = Vec::new();
    while left > 0 {
        match init.next_event(true)? {
            Some(Event::Started { pty, .. }) => {
                started += 1;
                terminals.extend(pty);
                if started == order.tasks.len() {
                    if order.die {
                        // Let the tasks get going first.
                        std::thread::sleep(std::time::Duration::from_millis(300));
                        std::io::stdout().flush()?;
                        std::process::abort();
                    }
                    if let Some((target, signal)) = order.signal {
                        std::thread::sleep(std::time::Duration::from_millis(200));
                        init.signal(target, signal)?;
                    }
                }
            }
            Some(Event::ExecFailed { error, .. }) => {
                eprintln!("{error}");
                worst = worst.max(error.exit_code());
                left -= 1;
            }
            Some(Event::Note(text)) => eprintln!("note: {text}"),
            Some(Event::Exited { task, status, usage }) => {
                eprintln!("task {task} {status} {} {}", usage.user_us + usage.system_us, usage.max_rss);
                worst = worst.max(status.shell_code());
                left -= 1;
            }
            None => {}
        }
    }
    for fd in terminals {
        // Reading a terminal whose other end is closed gives EIO at the end.
        let mut file = std::fs::File::from(fd);
        let mut text = Vec::new();
        let _ = std::io::Read::read_to_end(&mut file, &mut text);
        std::io::stdout().write_all(&text)?;
    }
    Ok(worst)
}

/// Every file below a directory with its size, mode, owner and content's length and sum: what an attack
/// would change.
pub fn fingerprint(dir: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut all = Vec::new();
    let mut next = vec![dir.to_path_buf()];
    while let Some(path) = next.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        let sum = content.iter().fold(0u64, |s, b| s.rotate_left(5) ^ u64::from(*b));
        all.push(format!("{} {:o} {} {} {sum}", path.display(), meta.mode(), meta.uid(), meta.len()));
        if meta.is_dir() {
            next.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    all.sort();
    all
}

/// Makes a FIFO.
pub fn fifo(path: &Path) {
    let status = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(status.success());
    if is_root() {
        chown(path, Some(STORE), Some(STORE)).unwrap();
    }
}
