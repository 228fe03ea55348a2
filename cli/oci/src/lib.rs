//! `berth oci`: the OCI runtime command line, over the same code as every container of Berth.
#![forbid(unsafe_code)]

mod args;
mod engine;
mod out;

pub use args::Args;
use args::{Command, Create, Exec, LogFormat, PsFormat, Update};
use berth_runtime::oci::{
    self, CreateOptions, Created, Engine, ExecOptions, Foreground, OciError, Store, read_json,
};
use clap::Parser;
use engine::Chosen;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Whether a command line makes a process of a container, and so needs a program file that cannot be written; with
/// how many of the caller's descriptors.
fn becomes_container(command: &Command) -> Option<u32> {
    match command {
        Command::Create(c) | Command::Run { create: c, .. } => Some(c.handed.preserve_fds),
        Command::Exec(e) => Some(e.handed.preserve_fds),
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
                dispatch(command, &chosen, &log, preserved.unwrap_or_default(), args.systemd_cgroup)
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

fn dispatch(command: Command, chosen: &Chosen, log: &Log<'_>, preserved: Vec<i32>, systemd: bool) -> Done {
    let engine = chosen.engine();
    match command {
        Command::Create(c) => {
            create(engine, &options(c, preserved, systemd), log)?;
            Ok(0)
        }
        Command::Start { id } => {
            engine.start(&id)?;
            Ok(0)
        }
        Command::Run { create, detach, keep } => {
            run_container(options(create, preserved, systemd), detach, keep, engine, log)
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

fn options(c: Create, preserve_fds: Vec<i32>, systemd: bool) -> CreateOptions {
    CreateOptions {
        id: c.id,
        bundle: c.bundle,
        console_socket: c.handed.console_socket,
        console_fd: None,
        pid_file: c.handed.pid_file,
        preserve_fds,
        no_new_keyring: c.no_new_keyring,
        no_pivot: c.no_pivot,
        systemd,
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
    let own = terminal && e.handed.console_socket.is_none();
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
            console_socket: e.handed.console_socket,
            console_fd: foreground.as_ref().map(|f| f.there.clone()),
            pid_file: e.handed.pid_file,
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
    for (part, key, value) in [
        ("memory", "limit", u.memory.map(Value::from)),
        ("memory", "reservation", u.memory_reservation.map(Value::from)),
        ("memory", "swap", u.memory_swap.map(Value::from)),
        ("cpu", "period", u.cpu_period.map(Value::from)),
        ("cpu", "quota", u.cpu_quota.map(Value::from)),
        ("cpu", "burst", u.cpu_burst.map(Value::from)),
        ("cpu", "shares", u.cpu_share.map(Value::from)),
        ("cpu", "idle", u.cpu_idle.map(Value::from)),
        ("cpu", "cpus", u.cpuset_cpus.clone().map(Value::from)),
        ("cpu", "mems", u.cpuset_mems.clone().map(Value::from)),
        ("pids", "limit", u.pids_limit.map(Value::from)),
        ("blockIO", "weight", u.blkio_weight.map(Value::from)),
    ] {
        if let Some(value) = value {
            put(&mut resources, part, key, value).map_err(user)?;
        }
    }
    oci::update(store, &u.id, &resources)?;
    Ok(0)
}

/// Puts a value into a part of resources, which somebody wrote: these, or that part, may be no object.
fn put(resources: &mut Value, part: &str, key: &str, value: Value) -> Result<(), String> {
    let whole = resources.as_object_mut().ok_or("the resources are no JSON object")?;
    match whole.entry(part).or_insert(Value::Null) {
        Value::Object(of) => drop(of.insert(key.to_string(), value)),
        empty @ Value::Null => *empty = json!({ key: value }),
        other => return Err(format!("the resources' {part} is no JSON object, but {other}")),
    }
    Ok(())
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
    fn resources_that_are_no_objects_are_refused_in_words() {
        let with = |text: &str| {
            let mut resources = serde_json::from_str(text).unwrap();
            put(&mut resources, "memory", "limit", json!(7)).map(|()| resources.to_string())
        };
        assert_eq!(with("[1]").unwrap_err(), "the resources are no JSON object");
        assert!(with("{\"memory\": [5]}").unwrap_err().contains("memory is no JSON object, but [5]"));
        for text in ["{}", "{\"memory\": null}", "{\"memory\": {\"limit\": 5}}"] {
            assert_eq!(with(text).unwrap(), "{\"memory\":{\"limit\":7}}", "{text}");
        }
    }

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
