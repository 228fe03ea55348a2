//! `berth oci`: the OCI runtime command line, over the same code as every container of Berth.
#![forbid(unsafe_code)]

mod engine;
mod out;

use berth_runtime::oci::{
    self, CreateOptions, Created, Engine, ExecOptions, Foreground, OciError, Store, read_json,
};
use clap::{Parser, Subcommand, ValueEnum};
use engine::Chosen;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Run containers from OCI bundles: the command line of OCI runtimes, as podman calls it
///
/// The program also behaves so when it is called by the name berth-oci.
#[derive(Debug, clap::Args)]
#[command(disable_version_flag = true)]
pub struct Args {
    /// Directory for the state of containers [default: /run/berth-oci for root, else berth-oci in XDG_RUNTIME_DIR]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// File for errors and warnings, beside standard error
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// How they are written there
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,
    /// Also write what is made, for looking into a failure
    #[arg(long)]
    debug: bool,
    /// Refused: control groups are made directly, without systemd
    #[arg(long)]
    systemd_cgroup: bool,
    #[cfg_attr(
        feature = "libcontainer",
        doc = "Which engine makes the containers; each needs a --root of its own"
    )]
    #[cfg_attr(
        not(feature = "libcontainer"),
        doc = "Refused: this program was built with Berth's own engine alone"
    )]
    #[arg(long, value_enum, value_name = "ENGINE")]
    engine: Option<engine::Choice>,
    /// Print name and version
    #[arg(long, short = 'v')]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// What is done.
#[derive(Debug, Subcommand)]
enum Command {
    /// Create a container, which then waits for start
    Create(Create),
    /// Start the program of a created container
    Start { id: String },
    /// Create a container, start it, and wait for its end
    Run {
        #[command(flatten)]
        create: Create,
        /// Do not wait
        #[arg(long, short)]
        detach: bool,
        /// Do not delete the container when it has ended
        #[arg(long)]
        keep: bool,
    },
    /// Print the state of a container as JSON
    State { id: String },
    /// Send a signal to a container's first process
    Kill {
        /// To all its processes
        #[arg(long, short)]
        all: bool,
        id: String,
        /// Name or number
        #[arg(default_value = "TERM", allow_hyphen_values = true)]
        signal: String,
    },
    /// Delete a stopped container
    Delete {
        /// Kill it first; it is no error when there is none
        #[arg(long, short)]
        force: bool,
        id: String,
    },
    /// Run another process in a container
    Exec(Exec),
    /// List the processes of a container
    Ps {
        /// table or json
        #[arg(long, short, value_enum, default_value = "table")]
        format: PsFormat,
        id: String,
        /// Options of ps(1) for the table
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
    /// Freeze all processes of a container
    Pause { id: String },
    /// Let them go on
    Resume { id: String },
    /// Change the limits of a container
    Update(Box<Update>),
    /// Print what a container uses, and when its memory ran out
    Events {
        /// Once
        #[arg(long)]
        stats: bool,
        /// How often, such as 5s or 500ms
        #[arg(long, default_value = "5s", value_name = "TIME")]
        interval: String,
        id: String,
    },
    /// Print what this runtime can do, as JSON
    Features,
    /// Write a config.json to start from
    Spec {
        /// Directory of the bundle
        #[arg(long, short, default_value = ".", value_name = "DIR")]
        bundle: PathBuf,
        /// For an ordinary user, with the own ids as root
        #[arg(long)]
        rootless: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PsFormat {
    Table,
    Json,
}

#[derive(Debug, clap::Args)]
struct Create {
    /// Directory with config.json
    #[arg(long, short, default_value = ".", value_name = "DIR")]
    bundle: PathBuf,
    /// Socket that the terminal's outer end is sent to
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// File for the pid of the first process
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Give the program those of the N descriptors from 3 on that are open
    #[arg(long, default_value_t = 0, value_name = "N")]
    preserve_fds: u32,
    /// Keep the caller's session keyring
    #[arg(long)]
    no_new_keyring: bool,
    /// Cover the node's root with the container's instead of taking it away: for a root that cannot be left
    #[arg(long)]
    no_pivot: bool,
    /// Name of the container
    id: String,
}

#[derive(Debug, clap::Args)]
struct Exec {
    /// File with the process, as config.json has it
    #[arg(long, short, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Set a variable
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// User
    #[arg(long, short, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Further group
    #[arg(long, short = 'g', value_name = "GID")]
    additional_gids: Vec<u32>,
    /// Further capability
    #[arg(long, short, value_name = "CAP")]
    cap: Vec<String>,
    /// Give it a terminal
    #[arg(long, short)]
    tty: bool,
    /// Let it gain nothing by a program file
    #[arg(long)]
    no_new_privs: bool,
    /// Do not wait
    #[arg(long, short)]
    detach: bool,
    /// Socket that the terminal's outer end is sent to
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// File for its pid
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Give the program those of the N descriptors from 3 on that are open
    #[arg(long, default_value_t = 0, value_name = "N")]
    preserve_fds: u32,
    /// Also into a paused container; the process runs when that is resumed
    #[arg(long)]
    ignore_paused: bool,
    /// Put it into a control group below the container's
    #[arg(long, value_name = "[CONTROLLER,...:]PATH")]
    cgroup: Vec<String>,
    /// Name of the container
    id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Update {
    /// File with linux.resources as JSON; - is standard input
    #[arg(long, short, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Memory limit in bytes; -1 is none
    #[arg(long, allow_hyphen_values = true)]
    memory: Option<i64>,
    /// Memory that is kept free of reclaim, in bytes
    #[arg(long, allow_hyphen_values = true)]
    memory_reservation: Option<i64>,
    /// Memory and swap together, in bytes; -1 is no limit
    #[arg(long, allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Length of a CPU period in microseconds
    #[arg(long)]
    cpu_period: Option<u64>,
    /// CPU time in each period in microseconds; -1 is no limit
    #[arg(long, allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// CPU time that can be saved up, in microseconds
    #[arg(long)]
    cpu_burst: Option<u64>,
    /// Relative weight of CPU time
    #[arg(long, visible_alias = "cpu-shares")]
    cpu_share: Option<u64>,
    /// 1: only CPU time that nobody else wants
    #[arg(long)]
    cpu_idle: Option<i64>,
    /// CPUs, such as 0-2,5
    #[arg(long)]
    cpuset_cpus: Option<String>,
    /// Memory nodes
    #[arg(long)]
    cpuset_mems: Option<String>,
    /// Processes; -1 is no limit
    #[arg(long, allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Relative weight of block I/O
    #[arg(long)]
    blkio_weight: Option<u16>,
    /// Name of the container
    id: String,
}

/// Whether a command line makes a process of a container, and so needs a program file that cannot be written; with
/// how many of the caller's descriptors.
fn becomes_container(command: &Command) -> Option<u32> {
    match command {
        Command::Create(c) | Command::Run { create: c, .. } => Some(c.preserve_fds),
        Command::Exec(e) => Some(e.preserve_fds),
        _ => None,
    }
}

/// Where errors and warnings go beside standard error.
struct Log<'a> {
    file: Option<&'a Path>,
    format: LogFormat,
    debug: bool,
}

impl Log<'_> {
    fn line(&self, level: &str, text: &str) {
        let Some(path) = self.file else { return };
        let time = oci::now();
        let line = match self.format {
            LogFormat::Json => json!({"level": level, "msg": text, "time": time}).to_string(),
            LogFormat::Text => format!("time={time:?} level={level} msg={text:?}"),
        };
        let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
        if let Err(e) = opened.and_then(|mut f| writeln!(f, "{line}")) {
            out::complain(&format!("berth oci: warning: cannot write the log {}: {e}", path.display()));
        }
    }

    fn debug(&self, notes: &[String]) {
        for text in notes.iter().filter(|_| self.debug) {
            out::complain(&format!("berth oci: debug: {text}"));
            self.line("debug", text);
        }
    }

    fn warn(&self, text: &str) {
        out::complain(&format!("berth oci: warning: {text}"));
        self.line("warning", text);
    }
}

/// Does what the command line says: the exit code, or why there is none.
///
/// # Errors
/// What a person has to be told; it is in the log, too.
pub fn run(args: Args, argv: Vec<OsString>) -> Result<u8, Stop> {
    if args.version {
        out::print(&format!("berth-oci version {}\nspec: 1.2.1\n", env!("CARGO_PKG_VERSION")))?;
        return Ok(0);
    }
    let log = Log { file: args.log.as_deref(), format: args.log_format, debug: args.debug };
    let Some(command) = args.command else {
        return Err(Stop::Failed("no command: berth oci --help lists them".into()));
    };
    let done = (|| {
        if args.systemd_cgroup {
            return Err(OciError::Unsupported {
                what: "--systemd-cgroup".into(),
                instead: "control groups are made directly: leave it out (podman: --cgroup-manager cgroupfs)"
                    .into(),
            }
            .into());
        }
        engine::check(args.engine)?;
        // First of all: nothing of this program's own is open yet.
        let preserved = becomes_container(&command).map(oci::preserved);
        if preserved.is_some() {
            oci::seal(argv)?;
        }
        match command {
            Command::Features if args.engine == Some(engine::Choice::Libcontainer) => {
                Err(engine::other("features").into())
            }
            Command::Features => print_json(&oci::features()),
            Command::Spec { bundle, rootless } => spec(&bundle, rootless),
            command => {
                let chosen = Chosen::open(args.engine, args.root.as_deref())?;
                dispatch(command, &chosen, &log, preserved.unwrap_or_default())
            }
        }
    })();
    if let Err(Stop::Failed(text)) = &done {
        log.line("error", text);
    }
    done
}

/// The whole of `berth-oci`: reads its words, does what they say, and says what failed.
pub fn main_by_name(argv: Vec<OsString>) -> ExitCode {
    let by_name = match ByName::try_parse_from(&argv) {
        Ok(by_name) => by_name,
        Err(e) => return out::usage(&e),
    };
    match run(by_name.args, argv) {
        Ok(code) => ExitCode::from(code),
        Err(Stop::Failed(text)) => {
            text.lines().for_each(|line| out::complain(&format!("{NAME}: error: {line}")));
            ExitCode::FAILURE
        }
        Err(Stop::ReaderGone) => ExitCode::from(141),
    }
}

/// Why it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// In words: the thing, the reason and the next step.
    Failed(String),
    /// Nobody reads standard output any more.
    ReaderGone,
}

impl From<OciError> for Stop {
    fn from(e: OciError) -> Self {
        Stop::Failed(e.to_string())
    }
}

type Done = Result<u8, Stop>;

fn user(text: impl Into<String>) -> Stop {
    OciError::Invalid { what: text.into(), next: "see berth oci --help".into() }.into()
}

fn code(status: i32) -> u8 {
    u8::try_from(status).unwrap_or(255)
}

fn dispatch(command: Command, chosen: &Chosen, log: &Log<'_>, preserved: Vec<i32>) -> Done {
    let engine = chosen.engine();
    match command {
        Command::Create(c) => {
            create(engine, &options(c, preserved), log)?;
            Ok(0)
        }
        Command::Start { id } => {
            engine.start(&id)?;
            Ok(0)
        }
        Command::Run { create, detach, keep } => {
            run_container(options(create, preserved), detach, keep, engine, log)
        }
        Command::State { id } => print_json(&engine.state(&id)?),
        Command::Kill { all, id, signal } => {
            engine.kill(&id, oci::signal_number(&signal)?, all)?;
            Ok(0)
        }
        Command::Delete { force, id } => {
            engine.delete(&id, force)?.iter().for_each(|w| log.warn(&w.to_string()));
            Ok(0)
        }
        Command::Exec(e) => exec(e, preserved, engine, log),
        Command::Pause { id } => Ok(engine.pause(&id).map(|()| 0)?),
        Command::Resume { id } => Ok(engine.resume(&id).map(|()| 0)?),
        Command::Ps { format, id, options } => ps(own(chosen, "ps")?, &id, format, &options),
        Command::Update(u) => update(&u, own(chosen, "update")?),
        Command::Events { stats, interval, id } => events(own(chosen, "events")?, &id, stats, &interval),
        // They need no place for containers, and were done before one was looked for.
        Command::Features | Command::Spec { .. } => Ok(0),
    }
}

/// What only Berth's own engine does.
fn own<'a>(chosen: &'a Chosen, command: &str) -> Result<&'a Store, Stop> {
    Ok(chosen.store().ok_or_else(|| engine::other(command))?)
}

fn print_json(value: &Value) -> Done {
    out::print(&format!("{value:#}\n"))?;
    Ok(0)
}

fn options(c: Create, preserve_fds: Vec<i32>) -> CreateOptions {
    CreateOptions {
        id: c.id,
        bundle: c.bundle,
        console_socket: c.console_socket,
        console_fd: None,
        pid_file: c.pid_file,
        preserve_fds,
        no_new_keyring: c.no_new_keyring,
        no_pivot: c.no_pivot,
    }
}

fn create(engine: &dyn Engine, o: &CreateOptions, log: &Log<'_>) -> Result<Created, OciError> {
    let mut warnings = Vec::new();
    let created = engine.create(o, &mut warnings);
    warnings.iter().for_each(|w| log.warn(w));
    created.inspect(|c| log.debug(&c.notes))
}

fn run_container(mut o: CreateOptions, detach: bool, keep: bool, engine: &dyn Engine, log: &Log<'_>) -> Done {
    let config = read_json(&o.bundle.join("config.json"))?;
    let terminal = config["process"]["terminal"] == true && o.console_socket.is_none();
    if terminal && detach {
        return Err(user("a detached container with a terminal needs --console-socket"));
    }
    let foreground = if terminal { Some(Foreground::new()?) } else { None };
    o.console_fd = foreground.as_ref().map(|f| f.there.clone());
    let id = o.id.clone();
    let created = create(engine, &o, log)?;
    o.console_fd = None;
    let started = engine.start(&id);
    let status = match started {
        Ok(()) => {
            if detach {
                return Ok(0);
            }
            match &foreground {
                Some(f) => oci::attach(f, &created.pidfd, created.pid),
                None => oci::wait(&created.pidfd, created.pid),
            }
        }
        Err(e) => Err(e),
    };
    if !keep || status.is_err() {
        let warnings = engine.delete(&id, true)?;
        warnings.iter().for_each(|w| log.warn(&w.to_string()));
    }
    Ok(code(status?))
}

fn exec(e: Exec, preserve_fds: Vec<i32>, engine: &dyn Engine, log: &Log<'_>) -> Done {
    let process = e.process.as_deref().map(read_json).transpose()?;
    let terminal = process.as_ref().map_or(e.tty, |p| p["terminal"] == true);
    let own = terminal && e.console_socket.is_none();
    if own && e.detach {
        return Err(user("a detached process with a terminal needs --console-socket"));
    }
    let foreground = if own { Some(Foreground::new()?) } else { None };
    let started = engine.exec(
        &e.id,
        &ExecOptions {
            process,
            args: e.command,
            env: e.env,
            cwd: e.cwd,
            user: e.user,
            groups: e.additional_gids,
            caps: e.cap,
            terminal,
            size: if own { Foreground::size() } else { None },
            no_new_privs: e.no_new_privs,
            console_socket: e.console_socket,
            console_fd: foreground.as_ref().map(|f| f.there.clone()),
            pid_file: e.pid_file,
            preserve_fds,
            ignore_paused: e.ignore_paused,
            cgroups: e.cgroup,
        },
    )?;
    started.warnings.iter().for_each(|w| log.warn(w));
    log.debug(&started.notes);
    if e.detach {
        return Ok(0);
    }
    let status = match &foreground {
        Some(f) => oci::attach(f, &started.pidfd, started.pid)?,
        None => oci::wait(&started.pidfd, started.pid)?,
    };
    Ok(code(status))
}

/// The table is ps(1)'s own, with the lines of other processes left out.
fn ps(store: &Store, id: &str, format: PsFormat, options: &[OsString]) -> Done {
    let pids = oci::processes(store, id)?;
    if format == PsFormat::Json {
        return print_json(&json!(pids));
    }
    let default = [OsString::from("-ef")];
    let options = if options.is_empty() { &default[..] } else { options };
    let output = std::process::Command::new("ps")
        .args(options)
        .output()
        .map_err(|e| user(format!("cannot run ps: {e}; install procps, or use --format json")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(user(format!("ps failed: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head
        .split_whitespace()
        .position(|word| word == "PID")
        .ok_or_else(|| user("ps was asked for no column PID, by which its lines are chosen"))?;
    let mut table = format!("{head}\n");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|w| w.parse::<i32>().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            table.push_str(line);
            table.push('\n');
        }
    }
    out::print(&table)?;
    Ok(0)
}

fn update(u: &Update, store: &Store) -> Done {
    let mut resources = match &u.resources {
        None => json!({}),
        Some(path) if path.as_os_str() == "-" => serde_json::from_reader(std::io::stdin().lock())
            .map_err(|e| user(format!("the resources on standard input are no JSON: {e}")))?,
        Some(path) => read_json(path)?,
    };
    let mut set = |part: &str, key: &str, value: Option<Value>| {
        if let Some(value) = value {
            resources[part][key] = value;
        }
    };
    set("memory", "limit", u.memory.map(Value::from));
    set("memory", "reservation", u.memory_reservation.map(Value::from));
    set("memory", "swap", u.memory_swap.map(Value::from));
    set("cpu", "period", u.cpu_period.map(Value::from));
    set("cpu", "quota", u.cpu_quota.map(Value::from));
    set("cpu", "burst", u.cpu_burst.map(Value::from));
    set("cpu", "shares", u.cpu_share.map(Value::from));
    set("cpu", "idle", u.cpu_idle.map(Value::from));
    set("cpu", "cpus", u.cpuset_cpus.clone().map(Value::from));
    set("cpu", "mems", u.cpuset_mems.clone().map(Value::from));
    set("pids", "limit", u.pids_limit.map(Value::from));
    set("blockIO", "weight", u.blkio_weight.map(Value::from));
    oci::update(store, &u.id, &resources)?;
    Ok(0)
}

/// `5s`, `500ms`, `1m`.
fn interval(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let n: u64 = digits.parse().ok().filter(|n| *n > 0)?;
    match &text[digits.len()..] {
        "ms" => Some(Duration::from_millis(n)),
        "s" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_secs(n.checked_mul(60)?)),
        _ => None,
    }
}

fn events(store: &Store, id: &str, once: bool, every: &str) -> Done {
    let every =
        interval(every).ok_or_else(|| user(format!("--interval {every:?}: such as 5s, 500ms or 1m")))?;
    let line =
        |kind: &str, data: Value| out::print(&format!("{}\n", json!({"type": kind, "id": id, "data": data})));
    line("stats", oci::stats(store, id)?)?;
    if once {
        return Ok(0);
    }
    let (_, mut kills) = oci::watch(store, id)?;
    let mut since = Duration::ZERO;
    let step = every.min(Duration::from_millis(200));
    loop {
        std::thread::sleep(step);
        since += step;
        // A container that was deleted meanwhile has ended, too.
        let Ok((stopped, now)) = oci::watch(store, id) else { return Ok(0) };
        if now > kills {
            line("oom", json!({"kills": now - kills}))?;
            kills = now;
        }
        if stopped {
            return Ok(0);
        }
        if since >= every {
            since = Duration::ZERO;
            line("stats", oci::stats(store, id)?)?;
        }
    }
}

fn spec(bundle: &Path, rootless: bool) -> Done {
    let path = bundle.join("config.json");
    let ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let text = format!("{:#}\n", oci::template(rootless.then_some(ids)));
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
    file.and_then(|mut f| f.write_all(text.as_bytes())).map_err(|e| {
        user(match e.kind() {
            std::io::ErrorKind::AlreadyExists => format!("{} exists: it is not overwritten", path.display()),
            _ => format!("cannot write {}: {e}", path.display()),
        })
    })?;
    Ok(0)
}

/// The name by which engines call it.
pub const NAME: &str = "berth-oci";

/// `berth-oci`: this command by a name of its own.
#[derive(Debug, clap::Parser)]
#[command(name = "berth-oci", max_term_width = 100, disable_help_subcommand = true)]
pub struct ByName {
    /// All of them.
    #[command(flatten)]
    pub args: Args,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        assert_eq!(interval("5s"), Some(Duration::from_secs(5)));
        assert_eq!(interval("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(interval("2m"), Some(Duration::from_secs(120)));
        for wrong in ["", "5", "0s", "s", "-1s", "5h", "5 s"] {
            assert_eq!(interval(wrong), None, "{wrong}");
        }
    }
}
