//! The table of `sacct`: a line for the allocation, then one for each step; cells right-aligned, a `+` where they
//! are cut.

use super::job::{self};
use super::usage;
use super::{View, gres_amounts, hosts, mebibytes, time};
use berth_model::launch::Usage;
use berth_model::record::{JobInfo, PullInfo, StepInfo};
use berth_model::spec::{JobKind, JobSelector, MemoryRequest};
use berth_model::state::{JobState, Reason};
use berth_model::{Span, StepId, Time, Tres};

/// The default columns.
pub const DEFAULT: &str = "jobid,jobname,partition,account,alloccpus,state,exitcode";
/// `-b`.
pub const BRIEF: &str = "jobid,state,exitcode";
/// `-l`: every column that has an answer here, in the order of Slurm's long form.
pub const LONG: &str = "jobid,jobidraw,jobname,partition,maxrss,ntasks,alloccpus,elapsed,state,exitcode,reqmem,\
    alloctres,reqtres,user,account,submit,start,end,timelimit,nnodes,nodelist,usercpu,systemcpu,totalcpu,tresusageinave,\
    tresusageinmax,tresusageintot,container,workdir";

/// One line: a job, or one of its steps.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    /// The job.
    pub job: &'a JobInfo,
    /// The step; absent for the allocation's own line.
    pub step: Option<&'a StepInfo>,
}

/// How sizes are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Units {
    /// The largest suffix that keeps the number whole.
    #[default]
    Whole,
    /// As stored.
    Raw,
    /// In this unit (`K`, `M`, `G`, `T`, `P`), with two decimals.
    In(char),
}

/// What a cell depends on besides its row.
#[derive(Clone, Debug)]
pub struct Style {
    /// Time and cluster.
    pub view: View,
    /// Sizes.
    pub units: Units,
    /// What steps have used is shown while they run, too.
    pub live: bool,
}

/// A column's definition.
#[derive(Debug)]
pub struct Field {
    /// Name as in the header.
    pub name: &'static str,
    /// Default width.
    pub width: usize,
    /// Left-aligned by default.
    pub left: bool,
    get: fn(Row<'_>, &Style) -> String,
}

/// A column as asked for.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// What it shows.
    pub field: &'static Field,
    /// Width.
    pub width: usize,
    /// Left-aligned.
    pub left: bool,
}

/// How a table is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Aligned columns with two header lines.
    Table,
    /// `-p`: the delimiter behind every cell.
    Ended(String),
    /// `-P`: the delimiter between cells.
    Between(String),
}

fn when(s: &Style, t: Option<Time>) -> String {
    t.map_or_else(|| "Unknown".to_string(), |t| s.view.time(t))
}

fn elapsed(r: Row<'_>, s: &Style) -> Span {
    r.step.map_or_else(|| job::elapsed(r.job, &s.view), |st| job::step_elapsed(st, &s.view))
}

fn of_job(r: Row<'_>, get: impl Fn(&JobInfo) -> String) -> String {
    if r.step.is_some() { String::new() } else { get(r.job) }
}

/// What a step used: on record when it has ended.
fn of_used(r: Row<'_>, s: &Style, get: impl Fn(&StepInfo) -> String) -> String {
    r.step.filter(|step| s.live || step.ended.is_some()).map(get).unwrap_or_default()
}

fn of_step(r: Row<'_>, get: impl Fn(&StepInfo) -> String) -> String {
    r.step.map(get).unwrap_or_default()
}

fn size(mib: u64, s: &Style) -> String {
    match s.units {
        Units::Whole => mebibytes(mib),
        Units::Raw => format!("{mib}M"),
        Units::In(unit) => in_unit(u128::from(mib) * 1024 * 1024, unit),
    }
}

fn in_unit(bytes: u128, unit: char) -> String {
    let power = "KMGTP".find(unit).map_or(1, |p| p + 1);
    let scale = 1024_u128.pow(u32::try_from(power).unwrap_or(1));
    let hundredths = (bytes * 100 + scale / 2) / scale;
    format!("{}.{:02}{unit}", hundredths / 100, hundredths % 100)
}

pub(super) fn bytes(n: u64, s: &Style) -> String {
    match s.units {
        _ if n == 0 => "0".to_string(),
        Units::In(unit) => in_unit(u128::from(n), unit),
        Units::Raw | Units::Whole => format!("{}K", n.div_ceil(1024)),
    }
}

fn tres(t: &Tres, billing: bool, s: &Style) -> String {
    let mut parts = gres_amounts(t);
    if t.cpu > 0 && billing {
        parts.push(format!("billing={}", t.cpu));
    }
    for (name, n) in [("cpu", t.cpu), ("node", t.node)] {
        if n > 0 {
            parts.push(format!("{name}={n}"));
        }
    }
    if t.mem > 0 {
        parts.push(format!("mem={}", size(t.mem, s)));
    }
    parts.sort();
    parts.join(",")
}

fn allocated(r: Row<'_>) -> &Tres {
    r.step.map_or(&r.job.allocated, |s| &s.allocated)
}

fn cpu_time(r: Row<'_>, s: &Style) -> Span {
    let cpus = i64::try_from(allocated(r).cpu).unwrap_or(i64::MAX);
    Span::from_secs(elapsed(r, s).secs().saturating_mul(cpus))
}

fn used(r: Row<'_>, of: fn(&berth_model::launch::Usage) -> u64) -> u64 {
    match r.step {
        Some(step) => of(&step.usage),
        None => r.job.steps.iter().map(|s| of(&s.usage)).fold(0, u64::saturating_add),
    }
}

/// What all of a job's steps used.
fn all_used(job: &JobInfo) -> Usage {
    let mut all = Usage::default();
    job.steps.iter().for_each(|step| all.merge(&step.usage));
    all
}

fn state(r: Row<'_>) -> String {
    match r.step {
        Some(s) => job::state_by(s.state, s.cancelled_by),
        None => job::state_by(r.job.state, r.job.cancelled_by),
    }
}

fn numbered(s: &StepInfo) -> bool {
    matches!(s.id, StepId::Number(_))
}

fn tasks(s: &StepInfo) -> usize {
    s.layout.tasks.iter().map(Vec::len).sum::<usize>().max(1)
}

fn id(r: Row<'_>) -> String {
    r.step.map_or_else(|| job::id(r.job), |s| job::step_id(r.job, s))
}

fn raw_id(r: Row<'_>) -> String {
    r.step.map_or_else(|| r.job.id.to_string(), |s| format!("{}.{}", r.job.id, s.id))
}

fn req_mem(j: &JobInfo, s: &Style) -> String {
    match j.spec.resources.memory {
        MemoryRequest::Default if j.requested.mem == 0 => String::new(),
        _ => size(j.requested.mem, s),
    }
}

fn path(p: &Option<berth_model::ByteStr>) -> String {
    p.as_ref().map(|p| p.display().into_owned()).unwrap_or_default()
}

fn image(r: Row<'_>) -> String {
    match r.step {
        Some(s) => s.image.clone().unwrap_or_default(),
        None => r.job.spec.container.as_ref().map(|c| c.image.typed.clone()).unwrap_or_default(),
    }
}

fn digest(r: Row<'_>) -> String {
    r.step.map_or_else(|| r.job.digest(), |s| s.digest.as_deref()).unwrap_or_default().to_string()
}

/// Empty while it is not known, and where there is no image.
fn pull(r: Row<'_>, get: impl Fn(PullInfo) -> String) -> String {
    r.step.map_or_else(|| r.job.pull(), |s| s.pull).map(get).unwrap_or_default()
}

fn nodes(r: Row<'_>) -> String {
    let list = r.step.map_or(&r.job.layout.nodes, |s| &s.layout.nodes);
    if list.is_empty() { "None assigned".to_string() } else { hosts(list) }
}

macro_rules! fields {
    ($($name:literal $width:literal $get:expr;)*) => {
        &[$(Field { name: $name, width: $width, left: false, get: $get }),*]
    };
}

const LEFT: &[Field] = &[
    Field { name: "JobID", width: 12, left: true, get: |r, _| id(r) },
    Field { name: "JobIDRaw", width: 12, left: true, get: |r, _| raw_id(r) },
];

const RIGHT: &[Field] = fields![
    "Account" 10 |r, _| r.job.spec.account.clone().unwrap_or_default();
    "AllocCPUS" 10 |r, _| allocated(r).cpu.to_string();
    "AllocNodes" 10 |r, _| r.step.map_or(r.job.layout.nodes.len(), |s| s.layout.nodes.len()).to_string();
    "AllocTRES" 10 |r, s| tres(allocated(r), r.step.is_none(), s);
    "AveCPU" 10 |r, _| of_step(r, |s| if numbered(s) {
        let micros = s.usage.user_us.saturating_add(s.usage.system_us) / tasks(s) as u64;
        time::long(Span(i64::try_from(micros).unwrap_or(i64::MAX))) } else { String::new() });
    "AveGPUUtil" 10 |r, s| of_used(r, s, |st| usage::of_told(&st.usage, |g| g.average().to_string()));
    "Cluster" 10 |_, s| s.view.cluster.clone();
    "Comment" 14 |r, _| of_job(r, |j| j.spec.comment.clone().unwrap_or_default());
    "Container" 19 |r, _| image(r);
    "CPUTime" 10 |r, s| time::long(cpu_time(r, s));
    "CPUTimeRAW" 10 |r, s| cpu_time(r, s).secs().to_string();
    "DerivedExitCode" 15 |r, _| of_job(r, |j| j.derived_exit.to_string());
    "Elapsed" 10 |r, s| time::long(elapsed(r, s));
    "ElapsedRaw" 10 |r, s| elapsed(r, s).secs().to_string();
    "Eligible" 19 |r, s| when(s, Some(r.step.map_or(r.job.eligible, |st| st.started)));
    "End" 19 |r, s| when(s, r.step.map_or(r.job.ended, |st| st.ended));
    "ExitCode" 8 |r, _| r.step.map_or(r.job.exit, |s| s.exit).to_string();
    "GID" 6 |r, _| of_job(r, |j| j.identity.gid.to_string());
    "GPUTime" 10 |r, s| match r.step {
        Some(_) => of_used(r, s, |st| usage::gpu_time(&st.usage)),
        None => usage::gpu_time(&all_used(r.job)) };
    "GPUWait" 10 |r, _| pull(r, |p| job::seconds(p.gpu_wait));
    "Group" 9 |r, _| of_job(r, |j| j.identity.group.clone());
    "ImageBytes" 12 |r, _| pull(r, |p| p.bytes.to_string());
    "ImageDigest" 19 |r, _| digest(r);
    "ImageHit" 8 |r, _| pull(r, |p| if p.hit { "Yes" } else { "No" }.to_string());
    "ImagePull" 10 |r, _| pull(r, |p| job::seconds(p.took));
    "JobName" 10 |r, _| r.step.map_or_else(|| r.job.spec.name.clone(), |s| s.name.clone());
    "MaxGPUMem" 10 |r, s| of_used(r, s, |st| st.usage.gpu.map(|g| bytes(g.max_memory, s)).unwrap_or_default());
    "MaxGPUUtil" 10 |r, s| of_used(r, s, |st| usage::of_told(&st.usage, |g| g.peak.to_string()));
    "MaxRSS" 10 |r, s| of_used(r, s, |st| bytes(st.usage.max_rss, s));
    "NCPUS" 10 |r, _| allocated(r).cpu.to_string();
    "NNodes" 8 |r, _| r.step.map_or_else(|| job::node_count(r.job), |s| s.layout.nodes.len() as u64).to_string();
    "NodeList" 15 |r, _| nodes(r);
    "NTasks" 8 |r, _| of_step(r, |s| tasks(s).to_string());
    "OriginalSLUID" 14 |r, _| job::sluid(r.job);
    "Partition" 10 |r, _| of_job(r, |j| j.partition.clone());
    "Planned" 10 |r, s| of_job(r, |j| time::long(j.started.unwrap_or(s.view.now).since(j.eligible)));
    "Priority" 10 |r, _| of_job(r, |j| j.priority.to_string());
    "Reason" 22 |r, _| match r.step {
        Some(s) => s.message.clone().unwrap_or_default(),
        None => match &r.job.reason { Reason::LaunchFailed(why) => why.clone(), _ => job::reason(r.job) } };
    "ReqCPUS" 8 |r, _| r.step.map_or(r.job.requested.cpu, |s| s.allocated.cpu).to_string();
    "ReqMem" 10 |r, s| of_job(r, |j| req_mem(j, s));
    "ReqNodes" 8 |r, _| of_job(r, |j| j.spec.resources.min_nodes.to_string());
    "ReqTRES" 10 |r, s| of_job(r, |j| tres(&j.requested, true, s));
    "Restarts" 8 |r, _| of_job(r, |j| j.attempt.to_string());
    "SLUID" 14 |r, _| job::sluid(r.job);
    "Start" 19 |r, s| when(s, r.step.map_or(r.job.started, |st| Some(st.started)));
    "State" 10 |r, _| state(r);
    "StdErr" 20 |r, _| of_job(r, |j| path(&j.spec.io.stderr));
    "StdIn" 20 |r, _| of_job(r, |j| if j.spec.kind == JobKind::Batch && j.spec.io.stdin.is_none() {
        "/dev/null".into() } else { path(&j.spec.io.stdin) });
    "StdOut" 20 |r, _| of_job(r, |j| j.spec.io.stdout.as_ref()
        .map(|p| p.display().into_owned()).or_else(|| job::default_output(j)).unwrap_or_default());
    "Submit" 19 |r, s| when(s, Some(r.step.map_or(r.job.submitted, |st| st.started)));
    "SubmitLine" 20 |r, _| of_job(r, |j| j.spec.submit_line.display().into_owned());
    "SystemCPU" 10 |r, _| berth_model::elapsed::cpu(used(r, |u| u.system_us));
    "Timelimit" 10 |r, _| of_job(r, |j| j.time_limit.span().map_or("UNLIMITED".into(), time::long));
    "TimelimitRaw" 10 |r, _| of_job(r, |j| j.time_limit.span()
        .map_or("UNLIMITED".into(), |l| (l.secs() / 60).to_string()));
    "TotalCPU" 10 |r, _| berth_model::elapsed::cpu(used(r, |u| u.user_us.saturating_add(u.system_us)));
    "TRESUsageInAve" 14 |r, s| of_used(r, s, |st| usage::tres(st, usage::Of::Average, s));
    "TRESUsageInMax" 14 |r, s| of_used(r, s, |st| usage::tres(st, usage::Of::Highest, s));
    "TRESUsageInTot" 14 |r, s| of_used(r, s, |st| usage::tres(st, usage::Of::Total, s));
    "UID" 6 |r, _| of_job(r, |j| j.identity.uid.to_string());
    "User" 9 |r, _| of_job(r, |j| j.identity.user.clone());
    "UserCPU" 10 |r, _| berth_model::elapsed::cpu(used(r, |u| u.user_us));
    "WorkDir" 20 |r, _| r.step.map_or_else(|| r.job.spec.work_dir.display().into_owned(), |s| s.work_dir.display().into_owned());
];

/// Fields that other systems have and that have no answer here: they are refused by name.
pub const ABSENT: &[&str] = &[
    "AdminComment",
    "AssocID",
    "AveCPUFreq",
    "AveDiskRead",
    "AveDiskWrite",
    "AvePages",
    "AveRSS",
    "AveVMSize",
    "BlockID",
    "Constraints",
    "ConsumedEnergy",
    "ConsumedEnergyRaw",
    "DBIndex",
    "Exclusive",
    "Extra",
    "FailedNode",
    "Flags",
    "Layout",
    "Licenses",
    "MaxDiskRead",
    "MaxDiskReadNode",
    "MaxDiskReadTask",
    "MaxDiskWrite",
    "MaxDiskWriteNode",
    "MaxDiskWriteTask",
    "MaxPages",
    "MaxPagesNode",
    "MaxPagesTask",
    "MaxRSSNode",
    "MaxRSSTask",
    "MaxVMSize",
    "MaxVMSizeNode",
    "MaxVMSizeTask",
    "McsLabel",
    "MinCPU",
    "MinCPUNode",
    "MinCPUTask",
    "OverSubscribe",
    "PlannedCPU",
    "PlannedCPURAW",
    "QOS",
    "QOSRAW",
    "QOSREQ",
    "ReqCPUFreq",
    "ReqCPUFreqGov",
    "ReqCPUFreqMax",
    "ReqCPUFreqMin",
    "ReqReservation",
    "Reservation",
    "ReservationId",
    "SegmentSize",
    "Suspended",
    "SystemComment",
    "TRESUsageInMaxNode",
    "TRESUsageInMaxTask",
    "TRESUsageInMin",
    "TRESUsageInMinNode",
    "TRESUsageInMinTask",
    "TRESUsageOutAve",
    "TRESUsageOutMax",
    "TRESUsageOutMaxNode",
    "TRESUsageOutMaxTask",
    "TRESUsageOutMin",
    "TRESUsageOutMinNode",
    "TRESUsageOutMinTask",
    "TRESUsageOutTot",
    "WCKey",
    "WCKeyID",
];

/// All fields, by name.
pub fn all() -> Vec<&'static Field> {
    let mut all: Vec<&'static Field> = LEFT.iter().chain(RIGHT).collect();
    all.sort_by_key(|f| f.name.to_ascii_lowercase());
    all
}

/// Reads `--format`: names, or the start of one, with `%[-]width`.
pub fn columns(format: &str) -> Result<Vec<Column>, String> {
    let mut columns = Vec::new();
    for item in format.split(',').filter(|i| !i.is_empty()) {
        let (name, shape) = item.split_once('%').map_or((item, None), |(n, s)| (n, Some(s)));
        if name.eq_ignore_ascii_case("all") {
            columns.extend(all().into_iter().map(|field| Column {
                field,
                width: field.width,
                left: field.left,
            }));
            continue;
        }
        let field = find(name)?;
        let (mut width, mut left) = (field.width, field.left);
        if let Some(shape) = shape {
            let number: i64 = shape
                .parse()
                .map_err(|_| format!("Invalid width in \"{item}\": a number is expected behind '%'"))?;
            left = number < 0;
            width = usize::try_from(number.unsigned_abs()).unwrap_or(usize::MAX).min(10_000);
        }
        columns.push(Column { field, width, left });
    }
    Ok(columns)
}

fn find(name: &str) -> Result<&'static Field, String> {
    let starts = |full: &str| full.to_ascii_lowercase().starts_with(&name.to_ascii_lowercase());
    let fields = all();
    if let Some(exact) = fields.iter().find(|f| f.name.eq_ignore_ascii_case(name)) {
        return Ok(exact);
    }
    if let Some(absent) = ABSENT.iter().find(|a| a.eq_ignore_ascii_case(name)) {
        return Err(format!("Field \"{absent}\" is not recorded here; 'sacct -e' lists what is"));
    }
    fields.into_iter().find(|f| starts(f.name)).ok_or_else(|| format!("Invalid field requested: \"{name}\""))
}

/// The header lines; none of dashes with delimiters.
pub fn header(columns: &[Column], layout: &Layout) -> String {
    let names = line(columns, layout, |c| c.field.name.to_string(), false);
    match layout {
        Layout::Table => names + &line(columns, layout, |c| "-".repeat(c.width), false),
        _ => names,
    }
}

/// A row's line.
pub fn row(columns: &[Column], layout: &Layout, row: Row<'_>, style: &Style) -> String {
    line(columns, layout, |c| (c.field.get)(row, style), true)
}

fn line(columns: &[Column], layout: &Layout, text: impl Fn(&Column) -> String, mark: bool) -> String {
    let mut out = match layout {
        Layout::Between(delimiter) => columns.iter().map(&text).collect::<Vec<_>>().join(delimiter),
        Layout::Ended(delimiter) => columns.iter().map(|c| text(c) + delimiter).collect(),
        Layout::Table => columns
            .iter()
            .map(|c| {
                let (cell, width) = (fit(&text(c), c.width, mark), c.width);
                if c.left { format!("{cell:<width$} ") } else { format!("{cell:>width$} ") }
            })
            .collect(),
    };
    out.push('\n');
    out
}

fn fit(text: &str, width: usize, mark: bool) -> String {
    if text.chars().count() <= width {
        return text.to_string();
    }
    let keep = if mark { width.saturating_sub(1) } else { width };
    let mut cut: String = text.chars().take(keep).collect();
    if mark && width > 0 {
        cut.push('+');
    }
    cut
}

/// Whether a word of `-j` names the job.
pub fn names(selector: &JobSelector, job: &JobInfo) -> bool {
    match selector {
        JobSelector::Job(id) => {
            job.id == *id || job.array == Some(*id) || job.spec.het.is_some_and(|het| het.leader == *id)
        }
        JobSelector::Component(leader, offset) => {
            job.spec.het.is_some_and(|het| het.leader == *leader && het.offset == *offset)
        }
        JobSelector::Task(array, task) => {
            job.array == Some(*array)
                && (job.task == Some(*task) || job.waiting.as_ref().is_some_and(|w| w.contains(*task)))
        }
        JobSelector::Tasks(array, set) => {
            job.array == Some(*array) && job.task.is_none_or(|t| set.contains(t))
        }
        JobSelector::Sluid(sluid) => job.sluid == Some(*sluid),
    }
}

/// Whether a job was in one of the states at some time in the window (`-s` with `-S` and `-E`).
pub fn in_state(job: &JobInfo, states: &[JobState], from: Time, to: Time) -> bool {
    states.iter().any(|wanted| match wanted {
        JobState::Pending => job.eligible <= to && job.started.or(job.ended).is_none_or(|t| t >= from),
        JobState::Running => job.started.is_some_and(|t| t <= to) && job.ended.is_none_or(|t| t >= from),
        state => job.state == *state && job.ended.is_some_and(|t| t >= from && t <= to),
    })
}

#[cfg(test)]
mod tests {
    use super::super::samples::{START, ended, job, pending, step, view};
    use super::*;
    use berth_model::launch::Usage;
    use berth_model::state::ExitStatus;

    fn exit(code: u8, signal: u8) -> ExitStatus {
        ExitStatus { code, signal }
    }

    fn two_steps() -> JobInfo {
        let mut j = ended(job(637, "two_steps.sh"), JobState::Completed, 0, ExitStatus::OK);
        j.allocated.cpu = 2;
        j.derived_exit = exit(3, 0);
        j.steps = vec![
            step(StepId::Batch, "batch", ExitStatus::OK),
            step(StepId::Number(0), "hostname", ExitStatus::OK),
            step(StepId::Number(1), "bash", exit(3, 0)),
        ];
        j.steps[1].usage = Usage { user_us: 1000, system_us: 2000, max_rss: 132 * 1024, ..Usage::default() };
        j
    }

    fn table(format: &str, layout: &Layout, j: &JobInfo) -> String {
        let columns = columns(format).unwrap();
        let style = Style { view: view(0), units: Units::Whole, live: false };
        let steps = j.steps.iter().map(|s| row(&columns, layout, Row { job: j, step: Some(s) }, &style));
        header(&columns, layout)
            + &row(&columns, layout, Row { job: j, step: None }, &style)
            + &steps.collect::<String>()
    }

    #[test]
    fn the_default_table() {
        assert_eq!(
            table(DEFAULT, &Layout::Table, &two_steps()),
            "JobID           JobName  Partition    Account  AllocCPUS      State ExitCode \n\
             ------------ ---------- ---------- ---------- ---------- ---------- -------- \n\
             637          two_steps+      debug    physics          2  COMPLETED      0:0 \n\
             637.batch         batch               physics          2  COMPLETED      0:0 \n\
             637.0          hostname               physics          2  COMPLETED      0:0 \n\
             637.1              bash               physics          2     FAILED      3:0 \n"
        );
    }

    #[test]
    fn delimiters() {
        let lines =
            |layout: Layout| table("jobid,jobname,state,exitcode,derivedexitcode", &layout, &two_steps());
        assert_eq!(
            lines(Layout::Between("|".into())).lines().take(3).collect::<Vec<_>>(),
            [
                "JobID|JobName|State|ExitCode|DerivedExitCode",
                "637|two_steps.sh|COMPLETED|0:0|3:0",
                "637.batch|batch|COMPLETED|0:0|"
            ]
        );
        assert_eq!(
            lines(Layout::Ended(",".into())).lines().nth(1),
            Some("637,two_steps.sh,COMPLETED,0:0,3:0,")
        );
    }

    #[test]
    fn widths_and_prefixes() {
        assert_eq!(
            table("jobid%-12,jobname%-8,state%4", &Layout::Table, &two_steps()).lines().nth(2),
            Some("637          two_ste+ COM+ ")
        );
        assert_eq!(columns("ave%10").unwrap()[0].field.name, "AveCPU");
        assert_eq!(columns("jobid,bogus").err().as_deref(), Some("Invalid field requested: \"bogus\""));
        assert!(columns("MaxVMSize").err().unwrap().contains("not recorded here"));
        assert!(columns("state%x").is_err());
        let named = table("jobid,sluid,originalsluid", &Layout::Between("|".into()), &two_steps());
        assert_eq!(named.lines().nth(1), Some("637|sCN1M7XJ371Y00|sCN1M7XJ371Y00"));
        assert_eq!(named.lines().nth(3), Some("637.0|sCN1M7XJ371Y00|sCN1M7XJ371Y00"));
    }

    #[test]
    fn usage_and_sizes() {
        assert_eq!(
            table(
                "jobid,totalcpu,usercpu,systemcpu,maxrss,ntasks",
                &Layout::Between("|".into()),
                &two_steps()
            )
            .lines()
            .collect::<Vec<_>>()[1..4],
            [
                "637|00:00.003|00:00.001|00:00.002||",
                "637.batch|00:00.000|00:00.000|00:00.000|0|2",
                "637.0|00:00.003|00:00.001|00:00.002|132K|2"
            ]
        );
        let in_g = Style { view: view(0), units: Units::In('G'), live: false };
        let alloc = columns("alloctres").unwrap();
        let mut j = two_steps();
        j.allocated.mem = 1000;
        assert_eq!(
            row(&alloc, &Layout::Between("|".into()), Row { job: &j, step: None }, &in_g),
            "billing=2,cpu=2,mem=0.98G,node=1\n"
        );
    }

    #[test]
    fn who_cancelled() {
        let mut j = ended(job(3, "oomjob"), JobState::Cancelled, 5, exit(0, 15));
        j.cancelled_by = Some(berth_model::Uid(1001));
        let line = |f: &str| table(f, &Layout::Table, &j).lines().nth(2).map(str::to_string);
        assert_eq!(line("state"), Some("CANCELLED+ ".into()));
        assert_eq!(line("state%20"), Some("   CANCELLED by 1001 ".into()));
        assert_eq!(
            line("start,end,elapsed"),
            Some("2026-11-20T22:44:06 2026-11-20T22:44:11   00:00:05 ".into())
        );
    }

    #[test]
    fn states_within_a_window() {
        let at = |s: i64| Time::from_secs(START + s);
        let done = ended(job(1, "x"), JobState::Failed, 60, exit(1, 0));
        assert!(in_state(&done, &[JobState::Failed], at(0), at(100)));
        assert!(!in_state(&done, &[JobState::Failed], at(61), at(100)));
        assert!(in_state(&done, &[JobState::Running], at(30), at(40)));
        assert!(!in_state(&done, &[JobState::Running], at(70), at(90)));
        let waits = pending(job(2, "y"), Reason::Priority);
        assert!(in_state(&waits, &[JobState::Pending], at(5), at(9)));
    }

    #[test]
    fn absent_fields_are_not_offered() {
        assert!(all().iter().all(|f| !ABSENT.contains(&f.name)));
        columns(LONG).unwrap();
        columns("ALL").unwrap();
    }
}
