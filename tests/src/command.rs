//! Runs commands as someone, with a time limit, and keeps everything they print, as bytes.

use crate::Who;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a command may take unless the test says otherwise.
const USUAL_LIMIT: Duration = Duration::from_secs(60);

/// A command to be run.
pub struct Cmd {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: PathBuf,
    who: Option<Who>,
    input: Input,
    limit: Duration,
}

enum Input {
    Nothing,
    Bytes(Vec<u8>),
    File(PathBuf),
    Kept,
}

impl Cmd {
    /// A program by name or path; its environment starts with PATH, LANG, HOME and USER only.
    pub fn new(program: impl AsRef<OsStr>) -> Cmd {
        Cmd {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: vec![
                ("PATH".into(), std::env::var_os("PATH").unwrap_or_default()),
                ("LANG".into(), "C.UTF-8".into()),
            ],
            directory: PathBuf::from("/"),
            who: None,
            input: Input::Nothing,
            limit: USUAL_LIMIT,
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Cmd {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Cmd {
        self.arguments.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Cmd {
        self.environment.retain(|(n, _)| n != name.as_ref());
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets the working directory.
    pub fn dir(mut self, path: impl AsRef<Path>) -> Cmd {
        self.directory = path.as_ref().to_owned();
        self
    }

    /// Runs as this user.
    pub fn who(mut self, who: &Who) -> Cmd {
        self.who = Some(who.clone());
        self.env("HOME", &who.home).env("USER", &who.name).env("LOGNAME", &who.name)
    }

    /// Standard input from these bytes.
    pub fn stdin(mut self, bytes: impl AsRef<[u8]>) -> Cmd {
        self.input = Input::Bytes(bytes.as_ref().to_vec());
        self
    }

    /// Standard input from a file.
    pub fn stdin_file(mut self, path: impl AsRef<Path>) -> Cmd {
        self.input = Input::File(path.as_ref().to_owned());
        self
    }

    /// Keeps standard input open, to be written through [`Running::write`].
    pub fn stdin_open(mut self) -> Cmd {
        self.input = Input::Kept;
        self
    }

    /// Another time limit than a minute.
    pub fn limit(mut self, seconds: u64) -> Cmd {
        self.limit = Duration::from_secs(seconds);
        self
    }

    fn line(&self) -> String {
        let words = std::iter::once(&self.program).chain(&self.arguments);
        words.map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    /// Starts it.
    pub fn spawn(self) -> Running {
        let line = self.line();
        let us = nix::unistd::geteuid().as_raw();
        let mut command = match &self.who {
            Some(who) if who.uid != us => {
                let mut outer = Command::new("setpriv");
                outer.args([format!("--reuid={}", who.uid), format!("--regid={}", who.gid)]);
                outer.args(["--init-groups", "--"]).arg(&self.program);
                outer
            }
            _ => Command::new(&self.program),
        };
        command.args(&self.arguments).env_clear().envs(self.environment).current_dir(&self.directory);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut bytes = None;
        match self.input {
            Input::Nothing => command.stdin(Stdio::null()),
            Input::File(path) => command.stdin(std::fs::File::open(path).unwrap()),
            Input::Bytes(content) => {
                bytes = Some(content);
                command.stdin(Stdio::piped())
            }
            Input::Kept => command.stdin(Stdio::piped()),
        };
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start `{line}`: {e}"));
        let mut stdin = child.stdin.take();
        if let Some(bytes) = bytes {
            let mut pipe = stdin.take().unwrap();
            // The command may end without reading all of it; that is its right.
            std::thread::spawn(move || pipe.write_all(&bytes));
        }
        let stdout = Collector::new(child.stdout.take().unwrap());
        let stderr = Collector::new(child.stderr.take().unwrap());
        Running {
            child,
            stdin,
            stdout,
            stderr,
            line,
            limit: self.limit,
            started: Instant::now(),
            done: false,
        }
    }

    /// Runs it to its end.
    pub fn run(self) -> Output {
        self.spawn().finish()
    }

    /// Runs it and demands exit status 0.
    pub fn ok(self) -> Output {
        let output = self.run();
        assert_eq!(output.rc, 0, "{output}");
        output
    }

    /// Runs it and demands another exit status than 0.
    pub fn fails(self) -> Output {
        let output = self.run();
        assert_ne!(output.rc, 0, "{output}");
        output
    }
}

/// Reads a pipe to its end in a thread of its own.
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn new(mut pipe: impl Read + Send + 'static) -> Collector {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&bytes);
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                shared.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Collector { bytes, thread: Some(thread) }
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    /// All of it; whoever still holds the pipe a second after the command ended is not waited for.
    fn finish(&mut self) -> Vec<u8> {
        let deadline = Instant::now() + Duration::from_secs(1);
        while self.thread.as_ref().is_some_and(|t| !t.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::mem::take(&mut self.bytes.lock().unwrap())
    }
}

/// A command that was started.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Collector,
    stderr: Collector,
    line: String,
    limit: Duration,
    started: Instant,
    done: bool,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Writes to its standard input.
    pub fn write(&mut self, bytes: &[u8]) {
        let pipe = self.stdin.as_mut().expect("standard input was kept open");
        pipe.write_all(bytes).and_then(|()| pipe.flush()).unwrap();
    }

    /// Closes its standard input.
    pub fn close(&mut self) {
        self.stdin = None;
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> Vec<u8> {
        self.stdout.so_far()
    }

    /// What it has said on standard error so far, as text.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.so_far()).into_owned()
    }

    /// Waits until its standard output contains a text; returns how long that took.
    pub fn wait_for(&mut self, text: &str, seconds: u64) -> Duration {
        let start = Instant::now();
        let mut over = None;
        loop {
            if String::from_utf8_lossy(&self.stdout.so_far()).contains(text) {
                return start.elapsed();
            }
            let ended = self.child.try_wait().unwrap();
            // Who reads what it printed may come later than its end.
            let waits = over.is_none_or(|over: Instant| over.elapsed() < Duration::from_secs(2));
            assert!(
                start.elapsed() < Duration::from_secs(seconds) && waits,
                "`{}` did not print `{text}` within {seconds} s (ended: {ended:?})\nstdout: {}\nstderr: {}",
                self.line,
                String::from_utf8_lossy(&self.stdout.so_far()),
                String::from_utf8_lossy(&self.stderr.so_far()),
            );
            over = over.or_else(|| ended.map(|_| Instant::now()));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Output {
        self.stdin = None;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            let waited = self.started.elapsed();
            if waited > self.limit {
                self.kill();
                panic!(
                    "`{}` ran longer than {:?}\nstdout: {}\nstderr: {}",
                    self.line,
                    self.limit,
                    String::from_utf8_lossy(&self.stdout.so_far()),
                    String::from_utf8_lossy(&self.stderr.so_far()),
                );
            }
            std::thread::sleep((waited / 100).clamp(Duration::from_millis(1), Duration::from_millis(20)));
        };
        self.done = true;
        Output {
            rc: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            took: self.started.elapsed(),
            stdout: self.stdout.finish(),
            stderr: self.stderr.finish(),
            line: std::mem::take(&mut self.line),
        }
    }

    fn kill(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.pid());
        // The group may have gone by itself in this moment.
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.wait();
        self.done = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.done {
            self.kill();
        }
    }
}

/// What a command did.
#[derive(Clone)]
pub struct Output {
    /// Exit status; 128 plus the signal for a command that was killed.
    pub rc: i32,
    /// How long it took.
    pub took: Duration,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    line: String,
}

impl Output {
    /// Standard output as text, the last line end cut off.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end_matches('\n').to_string()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Demands that standard error says each of these, in any case.
    pub fn says(self, words: &[&str]) -> Output {
        let said = self.err().to_lowercase();
        for word in words {
            assert!(said.contains(&word.to_lowercase()), "standard error does not say `{word}`\n{self}");
        }
        for bad in ["panicked", "rust_backtrace", "unwrap()"] {
            assert!(!said.contains(bad), "standard error shows a panic\n{self}");
        }
        self
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let short = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(4000)]).into_owned();
        write!(
            f,
            "`{}` ended with {} after {:?}\nstdout: {}\nstderr: {}",
            self.line,
            self.rc,
            self.took,
            short(&self.stdout),
            short(&self.stderr)
        )
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}
