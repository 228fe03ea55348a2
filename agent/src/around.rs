//! The administrator's programs around a job on the node: the prolog before anything of it, the epilog after its last process. Those
//! around tasks are checked here and run in the step.

mod alone;
mod fencing;
mod hanging;

use crate::jobs::JobRecord;
use crate::paths::Paths;
use alone::run_alone;
use berth_model::config::Config;
use berth_model::ids::JobId;
use berth_model::launch::StepLaunch;
use berth_model::programs::REBOOT;
use berth_runtime::JobNamespaces;
use berth_runtime::hooks::{Attend, Attended, HookFailure, HookPlan, HookRun, run, unchangeable};
use berth_step::spool::{TaskProgramsPart, boot_id, read_json, write_json};
pub use fencing::fence;
use hanging::Of;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, PipeReader};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Name of the file in a job's directory that says which process its prolog or epilog is.
const PROCESS: &str = "program.json";

/// Where programs look for programs.
const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Which of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Before the job.
    Prolog,
    /// After it.
    Epilog,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Prolog => "prolog",
            Kind::Epilog => "epilog",
        }
    }
}

/// The programs of the site.
#[derive(Debug)]
pub struct Around {
    prolog: Option<HookPlan>,
    epilog: Option<HookPlan>,
    health: Option<HookPlan>,
    reboot: Option<HookPlan>,
    cluster: String,
    tasks: TaskProgramsPart,
    owner: u32,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With exit code 0, or there is none.
    Well,
    /// Program, exit and last line.
    Failed(String),
    /// It was not wanted any more, and was killed.
    GivenUp,
}

impl Around {
    /// Takes the programs of the configuration: each must be one that nobody can change but root and `owner`.
    ///
    /// # Errors
    /// The key, what is wrong and what to do.
    pub fn load(config: &Config, owner: u32) -> Result<Around, String> {
        // Programs of `srun` are run by users, where they are.
        let programs = &config.programs.for_agents();
        let fence = Some(("fence", &config.programs.fence)).filter(|(_, path)| !path.is_empty());
        for (key, path) in programs.named().chain(fence) {
            let wrong = |why: String| format!("programs.{key}: {why}");
            let program = unchangeable(path.as_path(), owner).map_err(wrong)?;
            let runs =
                fs::metadata(&program).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
            if !runs {
                let program = program.display();
                return Err(wrong(format!("{program} is no program: chmod a+x it, or name another")));
            }
        }
        let plan = |path: &Path, seconds: u32| {
            let named = !path.as_os_str().is_empty();
            named.then(|| HookPlan {
                path: path.to_path_buf(),
                args: vec![path.to_string_lossy().into_owned()],
                env: None,
                timeout: Some(seconds),
                file: None,
            })
        };
        Ok(Around {
            prolog: plan(programs.prolog.as_path(), programs.prolog_seconds),
            epilog: plan(programs.epilog.as_path(), programs.epilog_seconds),
            health: plan(programs.health_check.as_path(), programs.health_check_seconds),
            reboot: plan(programs.reboot.as_path(), programs.reboot_seconds),
            cluster: config.cluster.clone(),
            tasks: TaskProgramsPart {
                prolog: programs.task_prolog.clone(),
                prolog_seconds: programs.task_prolog_seconds,
                epilog: programs.task_epilog.clone(),
                epilog_seconds: programs.task_epilog_seconds,
                owner,
            },
            owner,
        })
    }

    fn of(&self, kind: Kind) -> Option<&HookPlan> {
        match kind {
            Kind::Prolog => self.prolog.as_ref(),
            Kind::Epilog => self.epilog.as_ref(),
        }
    }

    /// Whether the node's health is checked.
    pub fn checks_health(&self) -> bool {
        self.health.is_some()
    }

    /// How a program is run that has this environment.
    fn how<'a>(&self, env: &'a [String]) -> HookRun<'a> {
        HookRun {
            env,
            keep_stderr: true,
            keep_stdout: true,
            timeout: None,
            owner: Some(self.owner),
            at_root: true,
        }
    }

    /// Checks the health of the node, as [`Around::run`] runs a program; `private` is where the process is noted. What is wrong: the
    /// first line that the program said, or how it ended. `None` when it was given up.
    pub fn check_health(&self, node: &str, private: &Path, stop: &PipeReader) -> Option<Result<(), String>> {
        let Some(plan) = &self.health else { return Some(Ok(())) };
        let path = plan.path.display();
        // One that was killed and hangs in the kernel is not joined by another.
        if let Some(still) = hanging::named(private, Of::Health) {
            return Some(Err(format!("health check {path} does not end although it was killed: {still}")));
        }
        let env = [
            format!("PATH={SEARCH}"),
            format!("SLURM_CLUSTER_NAME={}", self.cluster),
            format!("SLURMD_NODENAME={node}"),
            "SLURM_SCRIPT_CONTEXT=health_check".to_string(),
        ];
        let mut attend = Until::new(stop, private.join(PROCESS));
        let result = run("health check", std::slice::from_ref(plan), "", self.how(&env), &mut attend);
        let left = attend.left(&result, private, Of::Health);
        match result {
            Ok(()) => Some(Ok(())),
            Err(failure) if failure.given_up => None,
            Err(failure) => {
                let how = format!("health check {path} failed: {}{}", failure.why, in_words(left.as_deref()));
                tracing::error!("{how}");
                Some(Err(if failure.first.is_empty() || failure.why.contains("timeout") || left.is_some() {
                    how
                } else {
                    failure.first.into()
                }))
            }
        }
    }

    /// Has the machine rebooted. Where that works, hardly anything comes back. In `private` it is noted what runs and what hangs: a program
    /// that was killed and does not end is not joined by another.
    ///
    /// # Errors
    /// Program, exit and last line, and what of it does not end.
    pub fn reboot(&self, node: &str, system: bool, private: &Path) -> Result<(), String> {
        let plan = self.reboot.as_ref().ok_or("programs.reboot names no program")?;
        if !system && plan.path == Path::new(REBOOT) {
            return Err(format!(
                "the agent is not root, and {REBOOT} would not do it: name a program in programs.reboot of berth.toml that can"
            ));
        }
        let env = [
            format!("PATH={SEARCH}"),
            format!("SLURM_CLUSTER_NAME={}", self.cluster),
            format!("SLURMD_NODENAME={node}"),
            "SLURM_SCRIPT_CONTEXT=reboot".to_string(),
        ];
        run_alone("reboot", plan, &env, self.owner, (private, "reboot.json", Of::Reboot))
    }

    /// What a step is told of those around its tasks.
    pub fn of_tasks(&self) -> TaskProgramsPart {
        self.tasks.clone()
    }

    /// Whether there is such a program.
    pub fn has(&self, kind: Kind) -> bool {
        self.of(kind).is_some()
    }

    /// What programs are told of a job: what the cluster says, no word of the user's. Kept in the job's record for the
    /// epilog. Nothing where there is no program.
    pub fn environment(&self, launch: &StepLaunch) -> Vec<String> {
        if self.prolog.is_none() && self.epilog.is_none() {
            return Vec::new();
        }
        let (identity, job) = (&launch.identity, &launch.job);
        let names: Vec<&str> = job.layout.nodes.iter().map(|n| n.0.as_str()).collect();
        let nodes = berth_model::hostlist::compress(&names);
        let gpus = job.share.gres.iter().filter(|d| d.name == "gpu").map(|d| d.index.to_string());
        let gpus: Vec<String> = gpus.collect();
        let mut pairs = vec![
            ("PATH", SEARCH.to_string()),
            ("SLURM_CLUSTER_NAME", job.cluster.clone()),
            ("SLURM_JOB_ID", launch.key.job.to_string()),
            ("SLURM_JOBID", launch.key.job.to_string()),
            ("SLURM_JOB_USER", identity.user.clone()),
            ("SLURM_JOB_UID", identity.uid.to_string()),
            ("SLURM_JOB_GID", identity.gid.to_string()),
            ("SLURM_JOB_PARTITION", job.partition.clone()),
            ("SLURM_JOB_NODELIST", nodes.clone()),
            ("SLURM_NODELIST", nodes),
            ("SLURM_JOB_RESTART_COUNT", job.restarts.to_string()),
            ("SLURMD_NODENAME", launch.node.to_string()),
        ];
        if let Some(sluid) = job.sluid {
            pairs.push(("SLURM_JOB_SLUID", sluid.to_string()));
        }
        if !gpus.is_empty() {
            pairs.push(("SLURM_JOB_GPUS", gpus.join(",")));
        }
        if let Some(array) = job.array {
            pairs.push(("SLURM_ARRAY_JOB_ID", array.array.to_string()));
        }
        pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// Runs a program for a job, until it ends, its time is up or the other end of `stop` is closed. It has nothing of anyone's
    /// environment, `/` as directory and no input. Of one that fails the last line goes into the log, and what is left of it although it was
    /// killed. While that is there no job begins; those that end have their epilog all the same.
    pub fn run(&self, kind: Kind, record: &JobRecord, paths: &Paths, stop: &PipeReader) -> Ended {
        let Some(plan) = self.of(kind) else { return Ended::Well };
        let (word, private) = (kind.word(), paths.private());
        if kind == Kind::Prolog
            && let Some(still) = hanging::named(&private, Of::Jobs)
        {
            let why = format!(
                "prolog {} is not run: a program of an earlier job does not end although it was killed: {still}",
                plan.path.display()
            );
            tracing::error!("job {}: {why}", record.job);
            return Ended::Failed(why);
        }
        let mut env = record.programs_env.clone();
        env.push(format!("SLURM_SCRIPT_CONTEXT={word}_slurmd"));
        let mut attend = Until::new(stop, paths.job(record.job).join(PROCESS));
        let result = run(word, std::slice::from_ref(plan), "", self.how(&env), &mut attend);
        let left = in_words(attend.left(&result, &private, Of::Jobs).as_deref());
        match result {
            Ok(()) => Ended::Well,
            Err(failure) if failure.given_up => {
                if !left.is_empty() {
                    tracing::error!(
                        "job {}: {word} {} was not wanted any more{left}",
                        record.job,
                        failure.path
                    );
                }
                Ended::GivenUp
            }
            Err(failure) => {
                let why = format!("{word} {} failed: {}{left}", failure.path, failure.why);
                tracing::error!("job {}: {why}", record.job);
                Ended::Failed(why)
            }
        }
    }
}

/// What is left of a program, behind how it ended.
fn in_words(left: Option<&str>) -> String {
    left.map(|left| format!("; it does not end although it was killed: {left}")).unwrap_or_default()
}

/// Ends the program that an agent which is gone left running: for a job, or for the node's health.
pub fn end_left(paths: &Paths, job: Option<JobId>) {
    let private = paths.private();
    let (note, of) = match job {
        Some(job) => (paths.job(job).join(PROCESS), Of::Jobs),
        None => (private.join(PROCESS), Of::Health),
    };
    if let Some(left) = end_noted(&note, &private, of) {
        tracing::error!("a program that an earlier agent left does not end although it was killed: {left}");
    }
}

/// Ends the program that is noted in a file, and forgets it. What does not end is noted in `private`, and named.
fn end_noted(note: &Path, private: &Path, of: Of<'_>) -> Option<String> {
    let Noted { process, boot_id } = read_json(note).ok()?;
    // Named by pid and start, so that it is no other process.
    let left = if process.are_held() {
        if let Some(group) = rustix::process::Pid::from_raw(process.pid) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        hanging::note(private, of, process.pid)
    } else if is_this_boot(&boot_id) && is_nobody_elses(&process) {
        // Its leader was killed with who had it run, and a child of it may hang all the same.
        hanging::note_waiting(private, of, process.pid)
    } else {
        None
    };
    let _ = fs::remove_file(note);
    left
}

/// A program that runs, for an agent that comes after this one.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    /// Its process, which leads its group.
    #[serde(flatten)]
    process: JobNamespaces,
    /// The boot in which it was started; empty where an earlier agent noted it.
    #[serde(default)]
    boot_id: String,
}

fn is_this_boot(id: &str) -> bool {
    !id.is_empty() && boot_id().is_ok_and(|now| now == id)
}

/// Whether no other process has the number by now: as long as a group is there its number is not given to anybody.
fn is_nobody_elses(process: &JobNamespaces) -> bool {
    JobNamespaces::of(process.pid).ok().is_none_or(|now| now == *process)
}

/// Waits for a program until somebody closes the other end.
struct Until<'a> {
    stop: &'a PipeReader,
    note: PathBuf,
    /// The program's process, which leads its group.
    leader: Option<i32>,
    /// When its time is over.
    end: Option<Instant>,
}

impl Until<'_> {
    fn new(stop: &PipeReader, note: PathBuf) -> Until<'_> {
        Until { stop, note, leader: None, end: None }
    }

    /// Names what is left of a program that was killed, which others see from then on; the program itself is no more.
    fn left(&self, result: &Result<(), HookFailure>, private: &Path, of: Of<'_>) -> Option<String> {
        let late = self.end.is_some_and(|end| end <= Instant::now());
        let killed = result.as_ref().is_err_and(|failure| failure.given_up || late);
        let left = self.leader.filter(|_| killed).and_then(|leader| hanging::note(private, of, leader));
        let _ = fs::remove_file(&self.note);
        left
    }
}

impl Attend for Until<'_> {
    fn begun(&mut self, pid: u32) {
        self.leader = i32::try_from(pid).ok();
        // For the next agent, if this one is killed.
        let process = self.leader.and_then(|pid| JobNamespaces::of(pid).ok());
        if let Some(process) = process
            && let Err(e) = write_json(&self.note, &Noted { process, boot_id: boot_id().unwrap_or_default() })
        {
            tracing::warn!("cannot write {}: {e}", self.note.display());
        }
    }

    fn wait(&mut self, fds: &[BorrowedFd<'_>], until: Option<Instant>) -> io::Result<Attended> {
        self.end = until;
        let left = until.map(|end| end.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| rustix::time::Timespec::try_from(left).ok());
        let mut set: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        set.push(PollFd::new(self.stop, PollFlags::IN));
        match poll(&mut set, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Attended::On),
            Err(e) => return Err(e.into()),
        }
        let closed = set.last().is_some_and(|stop| !stop.revents().is_empty());
        Ok(if closed { Attended::GivenUp } else { Attended::On })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_nobody_elses_while_its_process_has_it_and_when_nobody_has() {
        let own = JobNamespaces::of(std::process::id().cast_signed()).unwrap();
        let later = JobNamespaces { start_ticks: own.start_ticks + 1, ..own };
        assert!(is_nobody_elses(&own) && !is_nobody_elses(&later));
        assert!(is_nobody_elses(&JobNamespaces { pid: i32::MAX, ..own }));
        // As earlier agents wrote it down, who did not say the boot.
        let earlier: Noted = serde_json::from_str(&serde_json::to_string(&own).unwrap()).unwrap();
        assert_eq!((earlier.process, earlier.boot_id.as_str()), (own, ""));
        assert!(!is_this_boot("") && is_this_boot(&boot_id().unwrap()));
    }
}
