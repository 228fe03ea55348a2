//! The table of `squeue`: fields by letter and by name, views, and order.

use super::cells::{self, Cell, Format, NONE};
use super::job::{self, JobKey};
use super::{View, hosts, time, tres};
use berth_model::StepId;
use berth_model::record::{JobInfo, StepInfo};
use berth_model::spec::{JobKind, OpenMode};
use berth_model::state::JobState;
use std::cmp::Ordering;

/// The default view.
pub const DEFAULT: &str = "%.18i %.9P %.8j %.8u %.2t %.10M %.6D %R";
/// `-l`.
pub const LONG: &str = "%.18i %.9P %.8j %.8u %.8T %.10M %.9l %.6D %R";
/// `--start`.
pub const START: &str = "%.18i %.9P %.8j %.8u %.2t %.19S %.6D %20Y %R";
/// `-s`.
pub const STEPS: &str = "%.15i %.8j %.9P %.8u %.9M %N";

/// `--only-job-state`.
pub const STATES: &str = "%.18i %.2t";

/// Leaves out how many tasks of an array may run at once, which is no part of its id in a list of states.
pub fn without_throttle(job: &mut JobInfo) {
    job.waiting.iter_mut().chain(&mut job.spec.array).for_each(|array| array.max_running = None);
}

/// A field of a job.
pub struct Field {
    letter: char,
    name: &'static str,
    header: &'static str,
    get: fn(&JobInfo, &View) -> String,
}

/// A field of a step.
pub struct StepField {
    letter: char,
    name: &'static str,
    header: &'static str,
    get: fn(&JobInfo, &StepInfo, &View) -> String,
}

fn null(text: Option<String>) -> String {
    text.unwrap_or_else(|| "(null)".to_string())
}

fn at(view: &View, time: Option<berth_model::Time>) -> String {
    time.map_or_else(|| "N/A".to_string(), |t| view.time(t))
}

fn path(p: &Option<berth_model::ByteStr>) -> Option<String> {
    p.as_ref().map(|p| p.display().into_owned())
}

macro_rules! fields {
    ($($letter:expr, $name:literal, $header:literal, $get:expr;)*) => {
        &[$(Field { letter: $letter, name: $name, header: $header, get: $get }),*]
    };
}

/// Every field of a job that has an answer here.
pub const FIELDS: &[Field] = fields![
    'a', "account", "ACCOUNT", |j, _| null(j.spec.account.clone());
    'A', "jobid", "JOBID", |j, _| j.id.to_string();
    'b', "tres-per-node", "TRES_PER_NODE", |j, _| job::tres_per_node(j).unwrap_or_else(|| "N/A".into());
    'B', "batchhost", "EXEC_HOST", |j, _| j.layout.nodes.first().map_or("n/a".into(), |n| n.to_string());
    'c', "mincpus", "MIN_CPUS", |j, _| job::min_cpus(j).to_string();
    'C', "numcpus", "CPUS", |j, _| job::cpu_count(j).to_string();
    'd', "mintmpdisk", "MIN_TMP_DISK", |_, _| "0".into();
    'D', "numnodes", "NODES", |j, _| job::node_count(j).to_string();
    'e', "endtime", "END_TIME", |j, v| at(v, job::end(j));
    'E', "dependency", "DEPENDENCY", |_, _| null(None);
    'f', "feature", "FEATURES", |_, _| null(None);
    'F', "arrayjobid", "ARRAY_JOB_ID", |j, _| j.array.unwrap_or(j.id).to_string();
    'g', "groupname", "GROUP", |j, _| j.identity.group.clone();
    'G', "groupid", "GROUP", |j, _| j.identity.gid.to_string();
    'h', "oversubscribe", "OVER_SUBSCRIBE", |_, _| "NO".into();
    'H', "sockets", "SOCKETS_PER_NODE", |_, _| "*".into();
    'i', "jobarrayid", "JOBID", |j, _| job::id(j);
    'I', "cores", "CORES_PER_SOCKET", |_, _| "*".into();
    'j', "name", "NAME", |j, _| j.spec.name.clone();
    'J', "threads", "THREADS_PER_CORE", |_, _| "*".into();
    'k', "comment", "COMMENT", |j, _| null(j.spec.comment.clone());
    'K', "arraytaskid", "ARRAY_TASK_ID", |j, _| job::task(j);
    'l', "timelimit", "TIME_LIMIT", |j, _| j.time_limit.span().map_or("UNLIMITED".into(), time::short);
    'L', "timeleft", "TIME_LEFT", time_left;
    'm', "minmemory", "MIN_MEMORY", |j, _| job::min_memory(j).1;
    'M', "timeused", "TIME", |j, v| time::short(job::elapsed(j, v));
    'n', "reqnodes", "REQ_NODES", |j, _| hosts(&j.spec.resources.node_list);
    'N', "nodelist", "NODELIST", |j, _| hosts(&j.layout.nodes);
    'o', "command", "COMMAND", |j, _| null(job::command(j));
    'O', "contiguous", "CONTIGUOUS", |_, _| "0".into();
    'p', "priority", "PRIORITY", |j, _| format!("{:.14}", f64::from(j.priority) / f64::from(u32::MAX));
    'P', "partition", "PARTITION", |j, _| j.partition.clone();
    'Q', "prioritylong", "PRIORITY", |j, _| j.priority.to_string();
    'r', "reason", "REASON", |j, _| job::reason(j);
    'R', "reasonlist", "NODELIST(REASON)", |j, _| job::nodes_or_reason(j);
    's', "sluid", "SLUID", |j, _| job::sluid(j);
    'S', "starttime", "START_TIME", |j, v| at(v, job::start(j, v));
    't', "statecompact", "ST", |j, _| j.state.code().into();
    'T', "state", "STATE", |j, _| j.state.name().into();
    'u', "username", "USER", |j, _| j.identity.user.clone();
    'U', "userid", "UID", |j, _| j.identity.uid.to_string();
    'v', "reservation", "RESERVATION", |_, _| null(None);
    'V', "submittime", "SUBMIT_TIME", |j, v| at(v, Some(j.submitted));
    'w', "wckey", "WCKEY", |_, _| null(None);
    'W', "licenses", "LICENSES", |_, _| null(None);
    'x', "excnodes", "EXC_NODES", |j, _| hosts(&j.spec.resources.exclude);
    'X', "corespec", "CORE_SPEC", |_, _| "N/A".into();
    'y', "nice", "NICE", |j, _| j.spec.nice.to_string();
    'Y', "schednodes", "SCHEDNODES", |_, _| null(None);
    'z', "sct", "S:C:T", |_, _| "*:*:*".into();
    'Z', "workdir", "WORK_DIR", |j, _| j.spec.work_dir.display().into_owned();
    NONE, "accruetime", "ACCRUE_TIME", |j, v| at(v, Some(j.eligible));
    NONE, "allocnodes", "ALLOC_NODES", |j, _| j.spec.submit_host.clone();
    NONE, "allocsid", "ALLOC_SID", |j, _| j.spec.submit_sid.to_string();
    NONE, "boardspernode", "BOARDS_PER_NODE", |_, _| "0".into();
    NONE, "batchflag", "BATCH_FLAG", |j, _| u8::from(j.spec.kind == JobKind::Batch).to_string();
    NONE, "cluster", "CLUSTER", |_, v| v.cluster.clone();
    NONE, "container", "CONTAINER", |j, _| null(j.spec.container.as_ref().map(|c| c.image.typed.clone()));
    NONE, "cpus-per-task", "CPUS_PER_TASK", |j, _| job::cpus_per_task(j).to_string();
    NONE, "cpus-per-tres", "CPUS_PER_TRES", |j, _| job::cpus_per_tres(j).unwrap_or_else(|| "N/A".into());
    NONE, "cronjob", "CRON_JOB", |_, _| "No".into();
    NONE, "deadline", "DEADLINE", |_, _| "N/A".into();
    NONE, "delayboot", "DELAY_BOOT", |_, _| "0:00".into();
    NONE, "derivedec", "DERIVED_EC", |j, _| j.derived_exit.to_string();
    NONE, "eligibletime", "ELIGIBLE_TIME", |j, v| at(v, Some(j.eligible));
    NONE, "exclusive", "EXCLUSIVE", |j, _| if j.spec.resources.exclusive { "NODE".into() } else { "NO".into() };
    NONE, "exit_code", "EXIT_CODE", |j, _| j.exit.to_string();
    NONE, "hetjobid", "HET_JOB_ID", |j, _| j.spec.het.map_or("N/A".into(), |het| het.leader.to_string());
    NONE, "hetjobidset", "HET_JOB_ID_SET", |j, _| j.spec.het.map_or("N/A".into(), |het| het.id_set());
    NONE, "hetjoboffset", "HET_JOB_OFFSET", |j, _| j.spec.het.map_or("N/A".into(), |het| het.offset.to_string());
    NONE, "licensesalloc", "LICENSES_ALLOC", |_, _| null(None);
    NONE, "maxcpus", "MAX_CPUS", |j, _| job::cpu_count(j).to_string();
    NONE, "maxnodes", "MAX_NODES", |j, _| job::most_nodes(j).to_string();
    NONE, "mem-per-tres", "MEM_PER_TRES", |j, _| job::mem_per_tres(j).unwrap_or_else(|| "N/A".into());
    NONE, "mintime", "TIME_MIN", |_, _| "0:00".into();
    NONE, "network", "NETWORK", |_, _| null(None);
    NONE, "ntperboard", "NTASKS_PER_BOARD", |_, _| "0".into();
    NONE, "ntpercore", "NTASKS_PER_CORE", |_, _| "N/A".into();
    NONE, "ntpernode", "NTASKS_PER_NODE", |j, _| j.spec.resources.tasks_per_node.unwrap_or(0).to_string();
    NONE, "ntpersocket", "NTASKS_PER_SOCKET", |_, _| "N/A".into();
    NONE, "numtasks", "TASKS", |j, _| job::task_count(j).to_string();
    NONE, "pendingtime", "PENDING_TIME", |j, v| j.started.unwrap_or(v.now).since(j.submitted).secs().to_string();
    NONE, "prefer", "PREFER", |_, _| null(None);
    NONE, "reboot", "REBOOT", |_, _| "0".into();
    NONE, "reqswitch", "REQ_SWITCH", |_, _| "0".into();
    NONE, "requeue", "REQUEUE", |j, _| u8::from(j.spec.requeue.unwrap_or(true)).to_string();
    NONE, "resizetime", "RESIZE_TIME", |_, _| "N/A".into();
    NONE, "restartcnt", "RESTART_COUNT", |j, _| j.attempt.to_string();
    NONE, "sperboard", "SOCKETS_PER_BOARD", |_, _| "0".into();
    NONE, "stderr", "STDERR", |j, _| null(path(&j.spec.io.stderr));
    NONE, "stdin", "STDIN", |j, _| path(&j.spec.io.stdin).unwrap_or_else(|| "/dev/null".into());
    NONE, "stdout", "STDOUT", |j, _| null(path(&j.spec.io.stdout).or_else(|| job::default_output(j)));
    NONE, "openmode", "OPEN_MODE", |j, _| match j.spec.io.open_mode {
        None => "N/A".into(), Some(OpenMode::Append) => "append".into(), Some(OpenMode::Truncate) => "truncate".into() };
    NONE, "system_comment", "SYSTEM_COMMENT", |j, _| null(job::system_comment(j));
    NONE, "tres-alloc", "TRES_ALLOC", |j, _| tres(if j.allocated.is_zero() { &j.requested } else { &j.allocated });
    NONE, "tres-bind", "TRES_BIND", |j, _| job::tres_bind(j).unwrap_or_else(|| "N/A".into());
    NONE, "tres-per-job", "TRES_PER_JOB", |j, _| job::tres_per_job(j).unwrap_or_else(|| "N/A".into());
    NONE, "tres-per-socket", "TRES_PER_SOCKET", |j, _| job::tres_per_socket(j).unwrap_or_else(|| "N/A".into());
    NONE, "tres-per-task", "TRES_PER_TASK", |j, _| job::tres_per_task(j).unwrap_or_else(|| "N/A".into());
];

fn time_left(j: &JobInfo, v: &View) -> String {
    match j.time_limit.span() {
        None => "UNLIMITED".into(),
        Some(limit) => {
            let left = limit.0 + j.leapt.0 - job::elapsed(j, v).0;
            if left < 0 { "INVALID".into() } else { time::short(berth_model::Span(left)) }
        }
    }
}

macro_rules! step_fields {
    ($($letter:expr, $name:literal, $header:literal, $get:expr;)*) => {
        &[$(StepField { letter: $letter, name: $name, header: $header, get: $get }),*]
    };
}

/// Every field of a step.
pub const STEP_FIELDS: &[StepField] = step_fields![
    'A', "numtasks", "TASKS", |_, s, _| s.layout.tasks.iter().map(Vec::len).sum::<usize>().max(1).to_string();
    'b', "tres-per-job", "TRES_PER_JOB", |_, s, _| {
        let gres: Vec<String> = super::gres_apart(&s.allocated).iter().map(|g| format!("gres/{g}")).collect();
        if gres.is_empty() || s.id == StepId::Batch { "(null)".into() } else { gres.join(",") } };
    'i', "stepid", "STEPID", |j, s, _| job::step_id(j, s);
    'j', "stepname", "NAME", |_, s, _| s.name.clone();
    'l', "timelimit", "TIME_LIMIT", |_, s, _| s.time_limit.and_then(|l| l.span()).map_or("UNLIMITED".into(), time::short);
    'M', "timeused", "TIME", |_, s, v| time::short(job::step_elapsed(s, v));
    'N', "nodes", "NODELIST", |_, s, _| hosts(&s.layout.nodes);
    'P', "partition", "PARTITION", |j, _, _| j.partition.clone();
    'S', "starttime", "START_TIME", |_, s, v| at(v, Some(s.started));
    't', "stepstate", "STATE", |_, s, _| s.state.name().into();
    'u', "username", "USER", |j, _, _| j.identity.user.clone();
    'U', "userid", "UID", |j, _, _| j.identity.uid.to_string();
    NONE, "arrayjobid", "ARRAY_JOB_ID", |j, _, _| j.array.unwrap_or(j.id).to_string();
    NONE, "arraytaskid", "ARRAY_TASK_ID", |j, _, _| j.task.map_or("N/A".into(), |task| task.to_string());
    NONE, "cluster", "CLUSTER", |_, _, v| v.cluster.clone();
    NONE, "container", "CONTAINER", |_, s, _| null(s.image.clone());
    NONE, "jobid", "JOB_ID", |j, _, _| j.id.to_string();
    NONE, "numcpus", "NUM_CPUS", |_, s, _| s.allocated.cpu.to_string();
];

/// Reads a `-o` format for jobs.
pub fn by_letters(format: &str) -> Format<&'static Field> {
    cells::by_letters(format, FIELDS, |f| f.letter)
}

/// What is called now what this is in earlier versions of Slurm.
fn now(name: &str) -> &str {
    match name {
        "gres" => "tres-per-node",
        "shared" => "oversubscribe",
        "tres" => "tres-alloc",
        now => now,
    }
}

/// Reads a `-O` format for jobs.
pub fn by_names(format: &str) -> Format<&'static Field> {
    cells::by_names(format, FIELDS, |f, name| f.name == now(name))
}

/// Reads a `-o` format for steps.
pub fn steps_by_letters(format: &str) -> Format<&'static StepField> {
    cells::by_letters(format, STEP_FIELDS, |f| f.letter)
}

/// Reads a `-O` format for steps.
pub fn steps_by_names(format: &str) -> Format<&'static StepField> {
    cells::by_names(format, STEP_FIELDS, |f, name| f.name == name)
}

/// Fields that a brief record has no answer to (see [`berth_model::query::JobQuery::brief`]).
const WHOLE: &[&str] = &[
    "allocnodes",
    "command",
    "comment",
    "container",
    "openmode",
    "sluid",
    "stderr",
    "stdin",
    "stdout",
    "workdir",
];

impl Field {
    /// Whether a brief record is enough for it.
    pub fn is_brief(&self) -> bool {
        !WHOLE.contains(&self.name)
    }
}

/// The header line of a job table.
pub fn header(cells: &[Cell<&'static Field>]) -> String {
    cells::line(cells, |f| f.header.to_string())
}

/// A job's line.
pub fn row(cells: &[Cell<&'static Field>], job: &JobInfo, view: &View) -> String {
    cells::line(cells, |f| (f.get)(job, view))
}

/// The header line of a step table.
pub fn step_header(cells: &[Cell<&'static StepField>]) -> String {
    cells::line(cells, |f| f.header.to_string())
}

/// A step's line.
pub fn step_row(cells: &[Cell<&'static StepField>], job: &JobInfo, step: &StepInfo, view: &View) -> String {
    cells::line(cells, |f| (f.get)(job, step, view))
}

/// One key of `--sort`: a field, and whether the largest comes first.
pub type SortKey = (&'static Field, bool);

/// Reads `--sort`: letters of `-o`, each with an optional `+` or `-`, separated by commas.
pub fn sort_keys(spec: &str) -> Result<Vec<SortKey>, String> {
    cells::sort_keys(spec, FIELDS, |f| f.letter, |word| word)
}

/// Sorts by the keys, then by id, so that equal rows keep one order.
pub fn sort(jobs: &mut [JobInfo], keys: &[SortKey], view: &View) {
    jobs.sort_by(|a, b| {
        for (field, descending) in keys {
            let order = compare(field, a, b, view);
            if order != Ordering::Equal {
                return if *descending { order.reverse() } else { order };
            }
        }
        JobKey::of(a).cmp(&JobKey::of(b))
    });
}

fn compare(field: &Field, a: &JobInfo, b: &JobInfo, view: &View) -> Ordering {
    match field.letter {
        'i' => JobKey::of(a).cmp(&JobKey::of(b)),
        'S' => job::start(a, view).cmp(&job::start(b, view)),
        'e' => job::end(a).cmp(&job::end(b)),
        'V' => a.submitted.cmp(&b.submitted),
        'M' => job::elapsed(a, view).cmp(&job::elapsed(b, view)),
        'l' | 'L' => a.time_limit.cmp(&b.time_limit),
        'p' | 'Q' => a.priority.cmp(&b.priority),
        'm' => a.requested.mem.cmp(&b.requested.mem),
        'P' => a.partition.cmp(&b.partition),
        't' => a.state.code().cmp(b.state.code()),
        'T' => a.state.name().cmp(b.state.name()),
        'u' => a.identity.user.cmp(&b.identity.user),
        _ => {
            let (x, y) = ((field.get)(a, view), (field.get)(b, view));
            match (x.parse::<i64>(), y.parse::<i64>()) {
                (Ok(x), Ok(y)) => x.cmp(&y),
                _ => x.cmp(&y),
            }
        }
    }
}

/// Whether `squeue` shows jobs of this state when it is not asked for states.
pub fn active(state: JobState) -> bool {
    !state.is_terminal()
}

#[cfg(test)]
mod tests {
    use super::super::samples::{self, array, job, pending, step, view};
    use super::*;
    use berth_model::state::{ExitStatus, Reason};
    use berth_model::{Span, Time};

    fn table(format: &str, jobs: &[JobInfo], after: i64) -> String {
        let cells = by_letters(format).cells;
        let rows: String = jobs.iter().map(|j| row(&cells, j, &view(after))).collect();
        header(&cells) + &rows
    }

    #[test]
    fn the_default_view() {
        let jobs =
            [pending(job(17, "wantall"), Reason::Resources), array(11), job(9, "a_very_long_job_name")];
        assert_eq!(
            table(DEFAULT, &jobs, 87),
            "             JOBID PARTITION     NAME     USER ST       TIME  NODES NODELIST(REASON)\n\
             \u{20}               17     debug  wantall    alice PD       0:00      1 (Resources)\n\
             \u{20}       11_[2-9%2]     debug   arrjob    alice PD       0:00      1 (JobArrayTaskLimit)\n\
             \u{20}                9     debug a_very_l    alice  R       1:27      1 n1\n"
        );
    }

    #[test]
    fn the_long_view_and_start_times() {
        assert_eq!(
            table(LONG, &[job(9, "run2")], 87),
            "             JOBID PARTITION     NAME     USER    STATE       TIME TIME_LIMI  NODES NODELIST(REASON)\n\
             \u{20}                9     debug     run2    alice  RUNNING       1:27     30:00      1 n1\n"
        );
        assert_eq!(
            table(START, &[array(11)], 0),
            "             JOBID PARTITION     NAME     USER ST          START_TIME  NODES SCHEDNODES           NODELIST(REASON)\n\
             \u{20}       11_[2-9%2]     debug   arrjob    alice PD                 N/A      1 (null)               (JobArrayTaskLimit)\n"
        );
    }

    #[test]
    fn what_is_left_and_the_end_go_by_what_counts_as_reached() {
        // Two hours later, of which nobody knows whether they have passed.
        let leapt = JobInfo { leapt: Span::from_secs(7200), ..job(9, "run2") };
        let ends = Time::from_secs(samples::START + 1800 + 7200);
        assert_eq!(job::end(&leapt), Some(ends));
        assert_eq!(table("%L", &[leapt], 7200 + 60), "TIME_LEFT\n29:00\n");
        assert_eq!(table("%L", &[job(9, "run2")], 7200 + 60), "TIME_LEFT\nINVALID\n");
    }

    #[test]
    fn letters_of_an_array_and_of_a_task() {
        let task = JobInfo { id: JobId(16), array: Some(JobId(11)), task: Some(1), ..job(16, "arrjob") };
        assert_eq!(
            table("%i %A %F %K", &[task], 0),
            "JOBID JOBID ARRAY_JOB_ID ARRAY_TASK_ID\n11_1 16 11 1\n"
        );
        assert_eq!(
            table("%K|%l|%L|%e|%m|%Z", &[array(11)], 0).lines().nth(1),
            Some("2-9%2|30:00|30:00|N/A|500M|/home/alice/work")
        );
        assert_eq!(table("%i|%s", &[job(9, "x")], 0), "JOBID|SLUID\n9|sCN1M7XJ371Y00\n");
        let unnamed = JobInfo { sluid: None, ..job(9, "x") };
        assert_eq!(table("%s", &[unnamed], 0), "SLUID\ns0000000000000\n");
        let split = job::split(&array(11));
        assert_eq!(split.iter().map(job::id).collect::<Vec<_>>()[..2], ["11_2", "11_3"]);
        assert_eq!(split.len(), 8);
    }

    #[test]
    fn what_comes_with_gpus_has_columns_and_earlier_names_are_known() {
        let mut j = job(9, "run2");
        let line = |j: &JobInfo, format: &str| {
            let format = by_names(format);
            assert!(format.unknown.is_empty(), "{:?}", format.unknown);
            row(&format.cells, j, &view(0))
        };
        let format = "cpus-per-tres:|,mem-per-tres:|,tres-bind:|,Exclusive:|,NTPerNode:|,gres:|,shared:|";
        assert_eq!(line(&j, format), "N/A|N/A|N/A|NO|0|N/A|NO|\n");
        let r = &mut j.spec.resources;
        (r.devices.cpus_per_gpu, r.memory) = (Some(2), berth_model::spec::MemoryRequest::PerGpu(100));
        (r.gpu_bind, r.exclusive, r.tasks_per_node) = (Some("closest".parse().unwrap()), true, Some(3));
        assert_eq!(line(&j, format), "gres/gpu:2|gres/gpu:100|gres/gpu:closest|NODE|3|N/A|NO|\n");
        assert_eq!(line(&j, "minmemory:|"), "100M|\n");
        let one = step(StepId::Number(0), "sleep", ExitStatus::OK);
        let cells = steps_by_names("arrayjobid:|,arraytaskid:|,jobid:|,numcpus:|").cells;
        assert_eq!(step_row(&cells, &j, &one, &view(0)), "9|N/A|9|2|\n");
    }

    #[test]
    fn every_field_at_once() {
        let of = |format: Format<&'static Field>| header(&format.cells);
        let letters = of(by_letters("%all"));
        assert!(letters.starts_with("ACCOUNT|JOBID|") && letters.ends_with("|WORK_DIR\n"), "{letters}");
        assert!(!letters.contains("ACCRUE_TIME"), "it has no letter: {letters}");
        let names = of(by_names("ALL"));
        assert_eq!(names.split('|').count(), FIELDS.len());
        let steps = step_header(&steps_by_letters("%ALL").cells);
        assert!(steps.starts_with("TASKS|TRES_PER_JOB|") && steps.ends_with("|UID\n"), "{steps}");
        assert_eq!(step_header(&steps_by_names("all").cells).split('|').count(), STEP_FIELDS.len());
    }

    #[test]
    fn states_alone_have_ids_without_a_throttle() {
        let mut waiting = array(11);
        assert!(job::id(&waiting).ends_with("%2]"), "{}", job::id(&waiting));
        without_throttle(&mut waiting);
        assert_eq!(
            table(STATES, &[waiting, job(9, "run2")], 0),
            "             JOBID ST\n          11_[2-9] PD\n                 9  R\n"
        );
    }

    #[test]
    fn times_of_a_running_job() {
        assert_eq!(
            table("%S|%e|%M|%L|%V", &[job(9, "run2")], 88).lines().nth(1),
            Some("2026-11-20T22:44:06|2026-11-20T23:14:06|1:28|28:32|2026-11-20T22:44:06")
        );
    }

    #[test]
    fn a_failed_job_tells_its_reason() {
        let mut failed = job(6, "sigjob");
        failed.state = JobState::Failed;
        failed.reason = Reason::RaisedSignal(9);
        assert_eq!(table("%t %R", &[failed], 0).lines().nth(1), Some("F (RaisedSignal:9(Killed))"));
    }

    #[test]
    fn steps() {
        let (batch, cells) = (step(StepId::Batch, "batch", ExitStatus::OK), steps_by_letters(STEPS).cells);
        let view = view(87);
        let running = StepInfo { ended: None, ..batch };
        assert_eq!(
            step_header(&cells) + &step_row(&cells, &job(9, "run2"), &running, &view),
            "         STEPID     NAME PARTITION     USER      TIME NODELIST\n\
             \u{20}       9.batch    batch     debug    alice      1:27 n1\n"
        );
    }

    #[test]
    fn order() {
        let ids = |spec: &str| {
            let mut jobs =
                vec![job(28, "b"), pending(job(17, "a"), Reason::Priority), array(11), job(9, "c")];
            sort(&mut jobs, &sort_keys(spec).unwrap(), &view(0));
            jobs.iter().map(|j| j.id.0).collect::<Vec<_>>()
        };
        assert_eq!(ids("P,t,-p"), [11, 17, 9, 28]);
        assert_eq!(ids("-i"), [28, 17, 11, 9]);
        assert_eq!(ids("-t,i"), [9, 28, 11, 17]);
        assert_eq!(ids("j"), [17, 11, 28, 9]);
        assert!(sort_keys("bogus").is_err());
    }

    use berth_model::JobId;

    #[test]
    fn a_brief_record_shows_what_the_whole_one_shows() {
        for mut whole in [job(9, "run2"), array(11), pending(job(17, "wantall"), Reason::Resources)] {
            whole.spec.comment = Some("c".into());
            whole.spec.io.stdout = Some("out".into());
            let mut brief = JobInfo {
                spec: whole.spec.brief(),
                shares: vec![],
                steps: vec![],
                sluid: None,
                ..whole.clone()
            };
            brief.identity.groups.clear();
            for field in FIELDS {
                let same = (field.get)(&brief, &view(87)) == (field.get)(&whole, &view(87));
                assert!(same || !field.is_brief(), "{}", field.name);
            }
        }
    }

    #[test]
    fn every_field_has_one_name_and_prints() {
        let mut names: Vec<&str> = FIELDS.iter().map(|f| f.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FIELDS.len());
        for field in FIELDS {
            (field.get)(&array(3), &view(0));
            (field.get)(&job(3, "x"), &view(0));
        }
    }
}
