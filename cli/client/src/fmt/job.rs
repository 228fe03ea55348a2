//! What a job or step record says, in the words that every command uses.

use super::{View, hosts, mebibytes};
use berth_model::record::{JobInfo, StepInfo};
use berth_model::spec::{JobKind, MemoryRequest};
use berth_model::state::{JobState, Reason};
use berth_model::{Span, Time};

/// `12`, `12_3`, `12+1` for a component of a job of several, or `12_[4-9%2]` for waiting tasks of an array.
pub fn id(job: &JobInfo) -> String {
    match (job.array, job.task) {
        (Some(array), Some(task)) => format!("{array}_{task}"),
        (Some(array), None) => match task_set(job) {
            Some(set) => format!("{array}_[{set}]"),
            None => array.to_string(),
        },
        (None, _) => match job.spec.het {
            Some(het) => format!("{}+{}", het.leader, het.offset),
            None => job.id.to_string(),
        },
    }
}

/// The waiting tasks as a set with the array's throttle: `4-9%2`.
pub fn task_set(job: &JobInfo) -> Option<String> {
    let waiting = job.waiting.as_ref()?;
    let mut text = indices(&waiting.ranges);
    if let Some(n) = waiting.max_running.or(job.spec.array.as_ref().and_then(|a| a.max_running)) {
        text.push_str(&format!("%{n}"));
    }
    Some(text)
}

/// Whether it is the record of an array none of whose tasks wait any more: every task has a record of its own.
pub fn is_spent(job: &JobInfo) -> bool {
    job.array.is_some() && job.task.is_none() && job.waiting.as_ref().is_none_or(|w| w.ranges.is_empty())
}

/// As many characters as Slurm gives a list of indices before it shortens it.
const LIST: usize = 64;

/// Indices without a throttle: `1-3,7,10,15,20`, and with steps, `1-100:3`, what would be too long as a list.
pub fn indices(ranges: &[(u32, u32, u32)]) -> String {
    let count =
        |(first, last, step): &(u32, u32, u32)| (last.saturating_sub(*first) / (*step).max(1)) as usize;
    if ranges.iter().map(|range| count(range).saturating_add(1)).sum::<usize>() <= LIST {
        let each = ranges.iter().flat_map(|(first, last, step)| {
            (*first..=*last).step_by(usize::try_from(*step).unwrap_or(1).max(1))
        });
        let mut each: Vec<u32> = each.collect();
        each.sort_unstable();
        each.dedup();
        let list = ranges_text(&joined(each.into_iter().map(|index| (index, index, 1))));
        if list.len() <= LIST {
            return list;
        }
    }
    ranges_text(&joined(ranges.iter().copied()))
}

/// Neighbours without a step become one range.
fn joined(ranges: impl Iterator<Item = (u32, u32, u32)>) -> Vec<(u32, u32, u32)> {
    let mut out: Vec<(u32, u32, u32)> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if last.2 <= 1 && range.2 <= 1 && last.1.checked_add(1) == Some(range.0) => {
                last.1 = range.1
            }
            _ => out.push(range),
        }
    }
    out
}

fn ranges_text(ranges: &[(u32, u32, u32)]) -> String {
    let parts: Vec<String> = ranges
        .iter()
        .map(|(first, last, step)| match (first == last, step) {
            (true, _) => first.to_string(),
            (false, 0 | 1) => format!("{first}-{last}"),
            (false, step) => format!("{first}-{last}:{step}"),
        })
        .collect();
    parts.join(",")
}

/// The index of a task, the waiting set of an array, or `N/A`.
pub fn task(job: &JobInfo) -> String {
    match job.task {
        Some(task) => task.to_string(),
        None => task_set(job).unwrap_or_else(|| "N/A".to_string()),
    }
}

/// Why it could not be started on its node: what, why, and what to do.
pub fn failure(job: &JobInfo) -> Option<&str> {
    match &job.reason {
        Reason::LaunchFailed(why) => Some(why),
        _ => None,
    }
}

/// What the cluster has to say of a job beside its reason: why it failed, and what its GPUs do while it runs.
pub fn system_comment(job: &JobInfo) -> Option<String> {
    let said: Vec<&str> = failure(job).into_iter().chain(job.notices.iter().map(String::as_str)).collect();
    (!said.is_empty()).then(|| said.join("; "))
}

/// How long the job has run, or ran.
pub fn elapsed(job: &JobInfo, view: &View) -> Span {
    match (job.started, job.ended) {
        (Some(start), Some(end)) => end.since(start),
        (Some(start), None) if job.state != JobState::Pending => view.now.since(start),
        _ => Span(0),
    }
}

/// How long the step has run, or ran.
pub fn step_elapsed(step: &StepInfo, view: &View) -> Span {
    step.ended.unwrap_or(view.now).since(step.started)
}

/// When it started, or will not start before: `--begin`, while that lies ahead.
pub fn start(job: &JobInfo, view: &View) -> Option<Time> {
    job.started.or_else(|| job.spec.begin.filter(|begin| job.state == JobState::Pending && *begin > view.now))
}

/// When it ended, or will end at its limit.
pub fn end(job: &JobInfo) -> Option<Time> {
    job.ended.or_else(|| match (job.started, job.time_limit.span()) {
        (Some(start), Some(limit)) if job.state != JobState::Pending => Some(start + limit + job.leapt),
        _ => None,
    })
}

/// Nodes it has or had; as many as it asks for while it waits.
pub fn node_count(job: &JobInfo) -> u64 {
    if job.layout.nodes.is_empty() {
        job.requested.node.max(u64::from(job.spec.resources.min_nodes)).max(1)
    } else {
        job.layout.nodes.len() as u64
    }
}

/// Nodes it may get at most: as `--nodes` says, else one for each task.
pub fn most_nodes(job: &JobInfo) -> u64 {
    let r = &job.spec.resources;
    let named = r.max_nodes.map(u64::from);
    named.unwrap_or_else(|| r.tasks.map_or(1, u64::from)).max(node_count(job))
}

/// CPUs it has or had; as many as it asks for while it waits.
pub fn cpu_count(job: &JobInfo) -> u64 {
    if job.allocated.cpu > 0 { job.allocated.cpu } else { job.requested.cpu.max(1) }
}

/// Tasks asked for, or implied by the nodes.
pub fn task_count(job: &JobInfo) -> u64 {
    let r = &job.spec.resources;
    match (r.tasks, r.tasks_per_node) {
        (Some(n), _) => u64::from(n),
        (None, Some(per)) => u64::from(per) * node_count(job),
        (None, None) => node_count(job),
    }
}

/// CPUs for each task.
pub fn cpus_per_task(job: &JobInfo) -> u32 {
    job.spec.resources.cpus_per_task.unwrap_or(1)
}

/// CPUs that each node must have at least.
pub fn min_cpus(job: &JobInfo) -> u32 {
    cpus_per_task(job).saturating_mul(job.spec.resources.tasks_per_node.unwrap_or(1))
}

/// Memory as asked for: `MinMemoryCPU=500M`, `MinMemoryNode=1G`, or `MinMemoryTRES=1G` of `--mem-per-gpu`.
pub fn min_memory(job: &JobInfo) -> (&'static str, String) {
    match job.spec.resources.memory {
        MemoryRequest::PerCpu(m) => ("MinMemoryCPU", mebibytes(m)),
        MemoryRequest::PerNode(m) => ("MinMemoryNode", mebibytes(m)),
        MemoryRequest::PerGpu(m) => ("MinMemoryTRES", mebibytes(m)),
        MemoryRequest::Default => {
            ("MinMemoryNode", mebibytes(job.requested.mem.max(job.allocated.mem) / node_count(job).max(1)))
        }
    }
}

/// The reason as one word of `squeue`'s last column; a signal with its name.
pub fn reason(job: &JobInfo) -> String {
    match &job.reason {
        Reason::RaisedSignal(n) => {
            format!("RaisedSignal:{n}({})", berth_model::signal::describe(*n))
        }
        Reason::ReqNodeNotAvail(nodes) if !nodes.is_empty() => {
            format!("ReqNodeNotAvail, UnavailableNodes:{nodes}")
        }
        other => other.to_string(),
    }
}

/// Nodes of a running or ended job, or in parentheses the reason why it waits, for its image too.
pub fn nodes_or_reason(job: &JobInfo) -> String {
    let failed = matches!(job.state, JobState::Failed | JobState::Timeout | JobState::NodeFail);
    let waits = job.state == JobState::Pending || matches!(job.reason, Reason::ImagePull(_));
    if waits || (failed && job.reason != Reason::None) {
        format!("({})", reason(job))
    } else {
        hosts(&job.layout.nodes)
    }
}

/// Seconds to the millisecond.
pub fn seconds(span: Span) -> String {
    let millis = span.0.max(0) / 1000;
    format!("{}.{:03}", millis / 1000, millis % 1000)
}

/// The program or script: what `sbatch --wrap` made has no name of its own.
pub fn command(job: &JobInfo) -> Option<String> {
    match job.spec.kind {
        JobKind::Batch if job.spec.command.is_empty() || job.spec.command.0 == b"wrap" => None,
        _ if job.spec.command.is_empty() => None,
        _ => Some(job.spec.command.display().into_owned()),
    }
}

/// Order of jobs in listings: by array or job, waiting tasks first, then by index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobKey(u32, Option<u32>, u32);

impl JobKey {
    /// The key of a record.
    pub fn of(job: &JobInfo) -> JobKey {
        JobKey(job.array.unwrap_or(job.id).0, job.task, job.id.0)
    }
}

/// The pattern of a batch job's output when none was given.
pub fn default_output(job: &JobInfo) -> Option<String> {
    let pattern = if job.array.is_some() { "slurm-%A_%a.out" } else { "slurm-%j.out" };
    (job.spec.kind == JobKind::Batch).then(|| pattern.to_string())
}

/// `gres/gpu:test:1` for each generic resource asked for on a node, or none.
pub fn tres_per_node(job: &JobInfo) -> Option<String> {
    counts(&job.spec.resources.gres)
}

/// The same of the whole job.
pub fn tres_per_job(job: &JobInfo) -> Option<String> {
    counts(&job.spec.resources.devices.total)
}

/// The same for each socket.
pub fn tres_per_socket(job: &JobInfo) -> Option<String> {
    counts(&job.spec.resources.devices.per_socket)
}

/// CPUs that come with each GPU: `gres/gpu:2`.
pub fn cpus_per_tres(job: &JobInfo) -> Option<String> {
    job.spec.resources.devices.cpus_per_gpu.map(|n| format!("gres/gpu:{n}"))
}

/// Memory in MiB that comes with each GPU: `gres/gpu:1024`.
pub fn mem_per_tres(job: &JobInfo) -> Option<String> {
    match job.spec.resources.memory {
        MemoryRequest::PerGpu(mib) => Some(format!("gres/gpu:{mib}")),
        _ => None,
    }
}

/// How tasks are bound to GPUs: `gres/gpu:per_task:1`.
pub fn tres_bind(job: &JobInfo) -> Option<String> {
    job.spec.resources.gpu_bind.as_ref().map(|bind| format!("gres/gpu:{bind}"))
}

fn counts(wanted: &berth_model::gres::Wanted) -> Option<String> {
    let parts: Vec<String> = wanted.iter().map(|(key, n)| format!("gres/{key}:{n}")).collect();
    (!parts.is_empty()).then(|| parts.join(","))
}

/// What each task has: `cpu=2,gres/gpu=1`.
pub fn tres_per_task(job: &JobInfo) -> Option<String> {
    let r = &job.spec.resources;
    let cpus = r.cpus_per_task.map(|n| format!("cpu={n}"));
    let devices = r.devices.per_task.iter().map(|(key, n)| format!("gres/{key}={n}"));
    let parts: Vec<String> = cpus.into_iter().chain(devices).collect();
    (!parts.is_empty()).then(|| parts.join(","))
}

/// The SLUID; of a job that an earlier version took that of none, as in Slurm.
pub fn sluid(job: &JobInfo) -> String {
    job.sluid.unwrap_or_default().to_string()
}

/// `12.0`, `12_3.batch`.
pub fn step_id(job: &JobInfo, step: &StepInfo) -> String {
    format!("{}.{}", id(job), step.id)
}

/// `CANCELLED by 1001` where it is known, else the state's name.
pub fn state_by(state: JobState, by: Option<berth_model::Uid>) -> String {
    match (state, by) {
        (JobState::Cancelled, Some(uid)) => format!("CANCELLED by {uid}"),
        _ => state.name().to_string(),
    }
}

/// One row for each waiting task of an array (`squeue -r`).
pub fn split(job: &JobInfo) -> Vec<JobInfo> {
    let Some(waiting) = job.waiting.as_ref() else { return vec![job.clone()] };
    let mut rows = Vec::new();
    for (first, last, step) in &waiting.ranges {
        for index in (*first..=*last).step_by(usize::try_from(*step).unwrap_or(1).max(1)) {
            rows.push(JobInfo { task: Some(index), waiting: None, ..job.clone() });
        }
    }
    if rows.is_empty() { vec![job.clone()] } else { rows }
}

#[cfg(test)]
mod tests {
    use super::indices;

    #[test]
    fn short_lists_of_indices_are_written_out() {
        assert_eq!(indices(&[(1, 5, 2)]), "1,3,5");
        assert_eq!(indices(&[(1, 5, 2), (6, 7, 1)]), "1,3,5-7");
        assert_eq!(indices(&[(1, 5, 2), (10, 20, 5)]), "1,3,5,10,15,20");
        assert_eq!(indices(&[(0, 12, 4)]), "0,4,8,12");
        assert_eq!(indices(&[(1, 100, 3)]), "1-100:3");
        assert_eq!(indices(&[(0, 1000, 1)]), "0-1000");
        assert_eq!(indices(&[(1, 2, 1), (4, 4, 1), (8, 8, 1), (9, 9, 1)]), "1-2,4,8-9");
        assert_eq!(indices(&[(0, 499, 1), (500, 999, 1)]), "0-999");
    }
}
