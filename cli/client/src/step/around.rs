//! Programs that `srun` runs where it is itself, before the tasks of its step and after them: `--prolog` and `--epilog`, or the site's.
//!
//! Each has its time. One that takes longer is killed with all that it started, and named.

use super::signals::Signals;
use crate::out;
use berth_model::ByteStr;
use berth_model::env;
use berth_model::ids::{NodeName, StepKey};
use berth_model::launch::Layout;
use berth_model::programs::ProgramsConfig;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{AccessFlags, Pid, access};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep_until};

/// How long the end of one that was killed is waited for: it may hang in the kernel.
const LAST: Duration = Duration::from_secs(5);

/// Before the tasks, or after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Before,
    After,
}

impl When {
    fn name(self) -> &'static str {
        match self {
            When::Before => "prolog",
            When::After => "epilog",
        }
    }
}

/// One of the two programs.
#[derive(Clone, Debug)]
struct Program {
    path: ByteStr,
    seconds: u32,
}

/// Both, with what they are told.
#[derive(Clone, Debug)]
pub struct Around {
    before: Option<Program>,
    after: Option<Program>,
    /// The step's command and its arguments.
    args: Vec<ByteStr>,
    env: Vec<(String, ByteStr)>,
}

/// Whether an option says that neither the user's program nor the site's is to run.
pub fn is_none(option: &Option<ByteStr>) -> bool {
    option.as_ref().is_some_and(|name| name.0.is_empty() || name.0.eq_ignore_ascii_case(b"none"))
}

impl Around {
    /// What runs around a step of a job that has the nodes `job`. `prolog`, `epilog`: as the options say; `site`: what the site says.
    pub fn new(
        (prolog, epilog): (&Option<ByteStr>, &Option<ByteStr>),
        site: &ProgramsConfig,
        (key, job, layout): (StepKey, &[NodeName], &Layout),
        (args, step_env): (&[ByteStr], &[ByteStr]),
    ) -> Around {
        let program = |option: &Option<ByteStr>, of_site: &ByteStr, seconds: u32| {
            let path = option.as_ref().unwrap_or(of_site);
            let runs = !is_none(option) && !path.0.is_empty();
            runs.then(|| Program { path: path.clone(), seconds: seconds.max(1) })
        };
        // What srun says of a step of its own is in the environment of the step alone.
        let own = step_env.iter().filter_map(|variable| {
            let at = variable.0.iter().position(|b| *b == b'=')?;
            let name =
                std::str::from_utf8(&variable.0[..at]).ok().filter(|name| name.starts_with("SLURM_"))?;
            Some((name.to_string(), ByteStr::from(&variable.0[at + 1..])))
        });
        Around {
            before: program(prolog, &site.srun_prolog, site.srun_prolog_seconds),
            after: program(epilog, &site.srun_epilog, site.srun_epilog_seconds),
            args: args.to_vec(),
            env: own.chain(env::srun_variables(key, job, layout)).collect(),
        }
    }

    /// Whether the tasks wait for a program.
    pub fn has_prolog(&self) -> bool {
        self.before.is_some()
    }

    /// Starts the program before the tasks. `None` where it is not there, which is said: then nothing is waited for, as with Slurm.
    ///
    /// # Errors
    /// It is there and cannot be started.
    pub fn begin(&self) -> Result<Option<Running>, String> {
        self.start(When::Before)
    }

    /// Runs the program after the tasks to its end. What becomes of it changes nothing of how the step ended.
    pub async fn finish(self) {
        let mut running = match self.start(When::After) {
            Ok(Some(running)) => running,
            Ok(None) => return,
            Err(why) => return complain(&why),
        };
        // Without handlers of its own it would be left behind by a Ctrl-C.
        let mut signals = match Signals::new() {
            Ok(signals) => signals,
            Err(e) => return complain(&format!("cannot handle signals: {e}; the srun epilog is not run")),
        };
        loop {
            tokio::select! {
                ended = running.ended() => {
                    if let Err(why) = ended {
                        complain(&why);
                    }
                    return;
                }
                number = signals.next() => {
                    if ends(number) {
                        running.signal(number);
                    }
                }
            }
        }
    }

    fn start(&self, when: When) -> Result<Option<Running>, String> {
        let program = match when {
            When::Before => &self.before,
            When::After => &self.after,
        };
        let Some(Program { path, seconds }) = program else { return Ok(None) };
        if let Err(e) = access(path.as_path(), AccessFlags::R_OK | AccessFlags::X_OK) {
            out::complain(&format!("srun: Access denied for {}: {}", path.display(), e.desc()));
            return Ok(None);
        }
        // A name without a directory is a file here, and no program of PATH.
        let here = std::path::Path::new(".").join(path.as_path());
        let mut command = Command::new(here);
        command.args(self.args.iter().map(ByteStr::as_path));
        command.envs(self.env.iter().map(|(name, value)| (name, value.as_path())));
        command.env("SLURM_SCRIPT_CONTEXT", format!("{}_srun", when.name()));
        // The tasks' input is theirs. In a group of its own all that it starts can be ended.
        command.stdin(Stdio::null()).process_group(0);
        let child = command
            .spawn()
            .map_err(|e| format!("srun {} {} cannot be run: {e}", when.name(), path.display()))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let until = Instant::now() + Duration::from_secs((*seconds).into());
        let state = State::Runs;
        Ok(Some(Running { child, group, path: path.clone(), when, seconds: *seconds, until, state }))
    }
}

fn complain(text: &str) {
    out::complain(&format!("srun: error: {text}"));
}

/// Whether a signal to `srun` ends what it runs.
pub fn ends(number: i32) -> bool {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT].iter().any(|s| *s as i32 == number)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Runs,
    /// A Ctrl-C was passed on.
    Interrupted,
    /// It took too long, and was killed.
    Late,
    /// It was killed for another reason.
    Killed,
    Over,
}

/// One that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    group: Option<Pid>,
    path: ByteStr,
    when: When,
    seconds: u32,
    /// When it is killed; then, until when its end is waited for.
    until: Instant,
    state: State,
}

impl Running {
    /// Waits for its end, and kills it when its time is over. May be dropped and called again.
    ///
    /// # Errors
    /// It did not end well: which program, and why.
    pub async fn ended(&mut self) -> Result<(), String> {
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                () = sleep_until(self.until) => match self.state {
                    State::Runs | State::Interrupted => self.kill(State::Late),
                    State::Late | State::Killed | State::Over => {
                        return Err(format!("{}: it was killed, and does not end", self.failed()));
                    }
                },
            }
        };
        let before = std::mem::replace(&mut self.state, State::Over);
        match (before, status) {
            (State::Late, _) => Err(format!(
                "{}: it did not end within {} s (srun_{}_seconds) and was killed",
                self.failed(),
                self.seconds,
                self.when.name()
            )),
            (_, Ok(status)) if status.success() => Ok(()),
            (_, Ok(status)) => Err(format!("{}: {}", self.failed(), how(status))),
            (_, Err(e)) => Err(format!("{}: {e}", self.failed())),
        }
    }

    fn failed(&self) -> String {
        format!("srun {} {} failed", self.when.name(), self.path.display())
    }

    /// A signal to `srun` that ends what runs: the first Ctrl-C is passed on, and all else kills.
    pub fn signal(&mut self, number: i32) {
        let name = self.when.name();
        let group = self.group.filter(|_| number == Signal::SIGINT as i32 && self.state == State::Runs);
        match group {
            Some(group) => {
                out::complain(&format!("srun: sending Ctrl-C to the {name} (one more kills it)"));
                self.state = State::Interrupted;
                // One that is over just now is heard of at once.
                let _ = killpg(group, Signal::SIGINT);
            }
            None => {
                out::complain(&format!("srun: ending the {name}"));
                self.kill(State::Killed);
            }
        }
    }

    fn kill(&mut self, state: State) {
        if matches!(self.state, State::Runs | State::Interrupted) {
            self.state = state;
            self.until = Instant::now() + LAST;
        }
        if let Some(group) = self.group {
            // The first process is not yet waited for, so that its number is no other's.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

impl Drop for Running {
    /// The step is over without it.
    fn drop(&mut self) {
        if self.state != State::Over {
            self.kill(State::Killed);
        }
    }
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => {
            Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |s| s.as_str().to_string())
        }
        (None, None) => "it ended in a way that is not known".to_string(),
    }
}

/// Waits for the end of a program that runs; for ever where there is none.
///
/// # Errors
/// As [`Running::ended`].
pub async fn ended(running: &mut Option<Running>) -> Result<(), String> {
    match running {
        Some(running) => running.ended().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::ids::{Attempt, JobId, StepId};
    use std::path::Path;

    fn site(prolog: &str, epilog: &str) -> ProgramsConfig {
        ProgramsConfig { srun_prolog: prolog.into(), srun_epilog: epilog.into(), ..ProgramsConfig::default() }
    }

    fn around(prolog: Option<&str>, epilog: Option<&str>, site: &ProgramsConfig) -> Around {
        let option = |name: Option<&str>| name.map(ByteStr::from);
        let key = StepKey { job: JobId(7), attempt: Attempt(0), step: StepId::Number(3) };
        let layout = Layout { nodes: vec![NodeName::from("n1")], tasks: vec![vec![0]], cpus: vec![1] };
        let env = ["SLURM_JOB_NAME=it", "HOME=/root", "no variable"].map(ByteStr::from);
        let args = ["true", "x y"].map(ByteStr::from);
        Around::new(
            (&option(prolog), &option(epilog)),
            site,
            (key, &layout.nodes.clone(), &layout),
            (&args, &env),
        )
    }

    fn paths(around: &Around) -> [Option<String>; 2] {
        [&around.before, &around.after].map(|p| p.as_ref().map(|p| p.path.display().into_owned()))
    }

    #[test]
    fn the_users_program_takes_the_place_of_the_sites_and_none_of_both() {
        let some = |name: &str| Some(name.to_string());
        assert_eq!(paths(&around(None, None, &ProgramsConfig::default())), [None, None]);
        let site = site("/s/before", "/s/after");
        assert_eq!(paths(&around(None, None, &site)), [some("/s/before"), some("/s/after")]);
        assert_eq!(paths(&around(Some("./p"), None, &site)), [some("./p"), some("/s/after")]);
        assert_eq!(paths(&around(Some("NONE"), Some("e"), &site)), [None, some("e")]);
        let env = around(None, None, &site).env;
        let has = |name: &str, value: &str| env.contains(&(name.to_string(), ByteStr::from(value)));
        assert!(has("SLURM_JOB_NAME", "it") && has("SLURM_STEP_ID", "3") && has("SLURM_JOB_ID", "7"));
        assert!(!env.iter().any(|(name, _)| name == "HOME"));
    }

    fn script(dir: &Path, lines: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    #[test]
    fn one_that_fails_or_takes_too_long_is_named_and_nothing_of_it_is_left() {
        let dir = std::env::temp_dir().join(format!("berth-around-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let run = |lines: &str, seconds: u32| {
                let path = script(&dir, lines);
                let site = ProgramsConfig { srun_prolog_seconds: seconds, ..site(&path, "") };
                around(None, None, &site).begin().unwrap().unwrap()
            };
            assert_eq!(
                run("[ \"$*\" = 'true x y' ] && [ $SLURM_SCRIPT_CONTEXT = prolog_srun ]", 60).ended().await,
                Ok(())
            );
            let why = run("exit 3", 60).ended().await.unwrap_err();
            assert!(why.contains("prolog") && why.ends_with("failed: exit code 3"), "{why}");
            let pid = dir.join("pid");
            let begun = std::time::Instant::now();
            let why =
                run(&format!("sleep 600 & echo $! > {}; wait", pid.display()), 1).ended().await.unwrap_err();
            assert!(why.contains("did not end within 1 s (srun_prolog_seconds)"), "{why}");
            assert!(begun.elapsed() < Duration::from_secs(60));
            let child: i32 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
            let status = Path::new("/proc").join(child.to_string()).join("status");
            let gone =
                || std::fs::read_to_string(&status).is_ok_and(|s| !s.contains("State:\tZ")).then_some(());
            for _ in 0..100 {
                if gone().is_none() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert!(gone().is_none(), "what it started is alive");
            let mut killed = run("trap '' INT; sleep 600", 60);
            tokio::time::sleep(Duration::from_millis(200)).await;
            killed.signal(Signal::SIGINT as i32);
            killed.signal(Signal::SIGINT as i32);
            assert!(killed.ended().await.unwrap_err().ends_with("SIGKILL"));
            assert!(around(Some("./no such"), None, &ProgramsConfig::default()).begin().unwrap().is_none());
        });
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
