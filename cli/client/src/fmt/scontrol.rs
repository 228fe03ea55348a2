//! The records of `scontrol show`: `KEY=VALUE` words, a line for each group, in one piece with `-o`.

use super::{View, hosts, job, node, step_tres, time, tres};
use berth_model::config::PartitionState;
use berth_model::devices::Nearness;
use berth_model::effective::{Effective, EffectiveLimit};
use berth_model::hardware::GresDevice;
use berth_model::limits::LimitValue;
use berth_model::pattern::Place;
use berth_model::record::{JobInfo, NodeInfo, PartitionInfo, PullInfo, StepInfo};
use berth_model::spec::{JobKind, TimeLimit};
use berth_model::state::JobState;
use berth_model::{ByteStr, StepId, Time};
use std::collections::BTreeMap;

/// Joins the lines of a record.
pub fn record(lines: &[String], oneline: bool) -> String {
    let separator = if oneline { " " } else { "\n   " };
    let end = if oneline { "\n" } else { "\n\n" };
    lines.join(separator) + end
}

fn at(view: &View, t: Option<Time>, unset: &str) -> String {
    t.map_or_else(|| unset.to_string(), |t| view.time(t))
}

fn null(text: String) -> String {
    if text.is_empty() { "(null)".to_string() } else { text }
}

/// A file name as the job uses it, in its working directory.
fn file(job: &JobInfo, pattern: &ByteStr) -> String {
    let node = job.layout.nodes.first().map_or("", |n| n.0.as_str());
    let place = Place {
        job: job.id,
        array: job.array.map(|array| (array, job.task.unwrap_or(u32::MAX - 1))),
        step: StepId::Batch,
        restarts: job.attempt.0,
        sluid: job.sluid,
        task: 0,
        node_index: 0,
        node,
        user: &job.identity.user,
        job_name: &job.spec.name,
    };
    let name = ByteStr(berth_model::pattern::expand(&pattern.0, &place));
    job.spec.work_dir.as_path().join(name.as_path()).display().to_string()
}

/// Error, input and output of a batch job's script, as the job uses them.
pub(super) fn files(j: &JobInfo) -> Option<[String; 3]> {
    let io = &j.spec.io;
    let default = ByteStr::from(job::default_output(j)?);
    Some([
        io.stderr.as_ref().map_or(String::new(), |p| file(j, p)),
        io.stdin.as_ref().map_or("/dev/null".to_string(), |p| file(j, p)),
        file(j, io.stdout.as_ref().unwrap_or(&default)),
    ])
}

/// `scontrol show job`.
pub fn job(j: &JobInfo, view: &View, details: bool) -> Vec<String> {
    let r = &j.spec.resources;
    let batch = j.spec.kind == JobKind::Batch;
    let pending = j.state == JobState::Pending;
    let mut lines = Vec::new();
    let array = match j.array {
        Some(array) => {
            let throttle = j.spec.array.as_ref().and_then(|a| a.max_running);
            let throttle = throttle.map_or(String::new(), |n| format!(" ArrayTaskThrottle={n}"));
            format!(" ArrayJobId={array} ArrayTaskId={}{throttle}", job::task(j))
        }
        None => String::new(),
    };
    let het = j
        .spec
        .het
        .map_or(String::new(), |het| format!(" HetJobId={} HetJobOffset={}", het.leader, het.offset));
    lines.push(format!("JobId={}{array}{het} JobName={}", j.id, j.spec.name));
    if let Some(sluid) = j.sluid.filter(|_| details) {
        lines.push(format!("SLUID={sluid}"));
    }
    if let Some(het) = j.spec.het {
        lines.push(format!("HetJobIdSet={}", het.id_set()));
    }
    let who = &j.identity;
    lines.push(format!("UserId={}({}) GroupId={}({}) MCS_label=N/A", who.user, who.uid, who.group, who.gid));
    let account = j.spec.account.as_deref().unwrap_or("(null)");
    lines.push(format!("Priority={} Nice={} Account={account} QOS=(null)", j.priority, j.spec.nice));
    lines.push(format!(
        "JobState={} Reason={} Dependency=(null)",
        j.state.name(),
        job::reason(j).replace(' ', "_")
    ));
    lines.push(format!(
        "Requeue={} Restarts={} BatchFlag={} Reboot=0 ExitCode={}",
        u8::from(j.spec.requeue.unwrap_or(true)),
        j.attempt,
        u8::from(batch),
        j.exit
    ));
    if details {
        lines.push(format!("DerivedExitCode={}", j.derived_exit));
    }
    if let Some(own) = j.spec.lost_after {
        lines.push(format!("LostAfter={}", time::long(own)));
    }
    let limit = j.time_limit.span().map_or("UNLIMITED".to_string(), time::long);
    lines.push(format!("RunTime={} TimeLimit={limit} TimeMin=N/A", time::long(job::elapsed(j, view))));
    // A held job becomes eligible when it is released, or later where --begin says so.
    let held = pending && j.reason.is_hold() && j.spec.begin.is_none_or(|begin| begin <= view.now);
    let eligible = if held { None } else { Some(j.eligible) };
    lines.push(format!(
        "SubmitTime={} EligibleTime={}",
        at(view, Some(j.submitted), "Unknown"),
        at(view, eligible, "Unknown")
    ));
    let accrue = eligible.filter(|eligible| !pending || *eligible <= view.now);
    lines.push(format!("AccrueTime={}", at(view, accrue, "Unknown")));
    let end = job::end(j).or_else(|| Some(job::start(j, view)? + j.time_limit.span()?));
    lines.push(format!(
        "StartTime={} EndTime={} Deadline=N/A",
        at(view, job::start(j, view), "Unknown"),
        at(view, end, "Unknown")
    ));
    lines.push("SuspendTime=None SecsPreSuspend=0".to_string());
    lines.push(format!(
        "Partition={} AllocNode:Sid={}:{}",
        j.partition, j.spec.submit_host, j.spec.submit_sid
    ));
    lines.push(format!("ReqNodeList={} ExcNodeList={}", null(hosts(&r.node_list)), null(hosts(&r.exclude))));
    lines.push(format!("NodeList={}", hosts(&j.layout.nodes)));
    if batch && let Some(first) = j.layout.nodes.first() {
        lines.push(format!("BatchHost={first}"));
    }
    // How many nodes a job that waits for its turn will have is known, but for what --nodes leaves open.
    let nodes = match pending && (j.reason.is_hold() || r.max_nodes.is_some()) {
        true => format!("{}-{}", job::node_count(j), job::most_nodes(j)),
        false => job::node_count(j).to_string(),
    };
    lines.push(format!(
        "NumNodes={nodes} NumCPUs={} NumTasks={} CPUs/Task={} ReqB:S:C:T=0:0:*:*",
        job::cpu_count(j),
        job::task_count(j),
        job::cpus_per_task(j)
    ));
    lines.push(format!("ReqTRES={}", null(tres(&j.requested))));
    lines.push(format!("AllocTRES={}", null(tres(&j.allocated))));
    let per_node = r.tasks_per_node.unwrap_or(0);
    lines.push(format!("Socks/Node=* NtasksPerN:B:S:C={per_node}:0:*:* CoreSpec=*"));
    if details {
        lines.extend(shares(j));
    }
    let (key, memory) = job::min_memory(j);
    lines.push(format!("MinCPUsNode={} {key}={memory} MinTmpDiskNode=0", job::min_cpus(j)));
    lines.push("Features=(null) DelayBoot=00:00:00".to_string());
    let exclusive = if r.exclusive { "NODE" } else { "NO" };
    lines.push(format!(
        "OverSubscribe=NO Exclusive={exclusive} Contiguous=0 Licenses=(null) LicensesAlloc=(null) Network=(null)"
    ));
    lines.push(format!("Command={}", job::command(j).unwrap_or_else(|| "(null)".to_string())));
    if !j.spec.submit_line.is_empty() {
        lines.push(format!("SubmitLine={}", j.spec.submit_line.display()));
    }
    lines.push(format!("WorkDir={}", j.spec.work_dir.display()));
    if let Some(comment) = &j.spec.comment {
        lines.push(format!("Comment={comment}"));
    }
    if let Some(text) = job::system_comment(j) {
        lines.push(format!("SystemComment={text}"));
    }
    if let Some(container) = &j.spec.container {
        lines.push(format!("Container={}", container.image.typed));
        lines.extend(image(j.digest(), j.pull().filter(|_| details)));
    }
    if let Some([stderr, stdin, stdout]) = files(j) {
        lines.extend([format!("StdErr={stderr}"), format!("StdIn={stdin}"), format!("StdOut={stdout}")]);
    }
    let near = match r.devices.nearness {
        Nearness::Preferred => None,
        Nearness::Enforced => Some("Yes".to_string()),
        Nearness::Ignored => Some("No".to_string()),
    };
    let tres = [
        ("GresEnforceBind", near),
        ("CpusPerTres", job::cpus_per_tres(j)),
        ("MemPerTres", job::mem_per_tres(j)),
        ("TresBind", job::tres_bind(j)),
        ("TresPerJob", job::tres_per_job(j)),
        ("TresPerNode", job::tres_per_node(j)),
        ("TresPerSocket", job::tres_per_socket(j)),
        ("TresPerTask", job::tres_per_task(j)),
        ("NtasksPerTRES", r.ntasks_per_gpu.map(|n| n.to_string())),
    ];
    lines.extend(tres.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?))));
    lines
}

fn shares(j: &JobInfo) -> Vec<String> {
    let one = |(name, share): (&berth_model::NodeName, &berth_model::launch::NodeShare)| {
        let cpus: Vec<(u32, u32, u32)> = runs(&share.cpus);
        let gres: Vec<String> = devices(&share.gres)
            .into_iter()
            .map(|(name, indices)| format!("{name}:{}(IDX:{})", indices.len(), job::indices(&runs(&indices))))
            .collect();
        format!("  Nodes={name} CPU_IDs={} Mem={} GRES={}", job::indices(&cpus), share.memory, gres.join(","))
    };
    let all: Vec<GresDevice> = j.shares.iter().flat_map(|share| share.gres.iter().cloned()).collect();
    let sums: Vec<String> =
        devices(&all).into_iter().map(|(name, of)| format!("{name}:{}", of.len())).collect();
    let mut lines = vec![format!("JOB_GRES={}", null(sums.join(",")))];
    lines.extend(j.layout.nodes.iter().zip(&j.shares).map(one));
    lines
}

/// Indices of devices by name and type: `gpu:a100`.
fn devices(all: &[GresDevice]) -> BTreeMap<String, Vec<u32>> {
    let mut of: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for d in all {
        let kind = d.kind.as_ref().map_or(String::new(), |k| format!(":{k}"));
        of.entry(format!("{}{kind}", d.name)).or_default().push(d.index);
    }
    of.values_mut().for_each(|indices| indices.sort_unstable());
    of
}

/// Ascending numbers as ranges.
fn runs(numbers: &[u32]) -> Vec<(u32, u32, u32)> {
    let mut out: Vec<(u32, u32, u32)> = Vec::new();
    for n in numbers {
        match out.last_mut() {
            Some(last) if last.1.checked_add(1) == Some(*n) => last.1 = *n,
            _ => out.push((*n, *n, 1)),
        }
    }
    out
}

/// `scontrol show node`; `details`: with `-d`.
pub fn node(n: &NodeInfo, view: &View, details: bool) -> Vec<String> {
    let h = &n.hardware;
    let sockets = h.sockets().max(1);
    let cores = h.cores.len() as u64 / sockets;
    let load = format!("{}.{:02}", n.load / 100, n.load % 100);
    let mut lines = vec![
        format!("NodeName={} Arch={} CoresPerSocket={cores} ", n.name, h.arch),
        format!("CPUAlloc={} CPUEfctv={} CPUTot={} CPULoad={load}", n.allocated.cpu, n.total.cpu, h.cpus()),
        "AvailableFeatures=(null)".to_string(),
        "ActiveFeatures=(null)".to_string(),
        format!("Gres={}", node::gres(n)),
        format!("NodeAddr={} NodeHostName={} Version={}", n.name, node::host(n), n.version),
        format!("OS={} ", h.os),
        format!(
            "RealMemory={} AllocMem={} FreeMem={} Sockets={sockets} Boards=1",
            h.memory, n.allocated.mem, n.free_memory
        ),
    ];
    if details {
        lines.splice(
            5..5,
            [format!("GresDrain={}", node::gres_drained(n)), format!("GresUsed={}", node::gres_used(n))],
        );
    }
    let faults = h.gres.iter().filter_map(|d| Some(format!("{}:{}({})", d.name, d.index, d.fault.as_ref()?)));
    let faults: Vec<String> = faults.collect();
    if !faults.is_empty() {
        lines.push(format!("GresFault={}", faults.join(",")));
    }
    if h.memory_reserved > 0 {
        lines.push(format!("MemSpecLimit={}", h.memory_reserved));
    }
    lines.push(format!(
        "State={} ThreadsPerCore={} TmpDisk={} Weight=1 Owner=N/A MCS_label=N/A",
        node::flags(n).join("+"),
        h.threads_per_core(),
        h.tmp_disk
    ));
    lines.push(format!("Partitions={} ", n.partitions.join(",")));
    lines.push(format!(
        "BootTime={} SlurmdStartTime={}",
        at(view, n.boot_time, "None"),
        at(view, n.agent_start, "None")
    ));
    lines.push(format!("LastBusyTime={} ResumeAfterTime=None", at(view, n.last_busy, "Unknown")));
    let plain = |t: &berth_model::Tres| tres(&berth_model::Tres { node: 0, ..t.clone() });
    lines.push(format!("CfgTRES={}", plain(&n.total)));
    lines.push(format!("AllocTRES={}", plain(&n.allocated)));
    if let Some(reason) = &n.condition.reason {
        let user = n.condition.reason_user.as_deref().unwrap_or("(null)");
        lines.push(format!("Reason={reason} [{user}@{}]", at(view, n.condition.reason_time, "Unknown")));
    }
    lines.extend(n.drift.iter().map(|line| format!("IdentityDrift={line}")));
    lines.extend(n.hardware_drift.iter().map(|line| format!("HardwareDrift={line}")));
    if !n.unknown_settings.is_empty() {
        lines.push(format!("UnknownSettings={}", n.unknown_settings.join(",")));
    }
    lines
}

/// `scontrol show partition`.
pub fn partition(p: &PartitionInfo) -> Vec<String> {
    let c = &p.config;
    let limit = |text: &str| match text.parse::<TimeLimit>() {
        Ok(l) => l.span().map_or("UNLIMITED".to_string(), time::long),
        Err(_) => text.to_string(),
    };
    let default_time = if c.default_time.is_empty() { "NONE".to_string() } else { limit(&c.default_time) };
    let state = match c.state {
        PartitionState::Up => "UP",
        PartitionState::Down => "DOWN",
        PartitionState::Drain => "DRAIN",
        PartitionState::Inactive => "INACTIVE",
    };
    let max_nodes = if c.max_nodes == 0 { "UNLIMITED".to_string() } else { c.max_nodes.to_string() };
    let memory = match c.default_mem_per_cpu {
        0 => "DefMemPerNode=UNLIMITED".to_string(),
        m => format!("DefMemPerCPU={m}"),
    };
    let per_gpu =
        [("DefCpuPerGPU", u64::from(c.default_cpus_per_gpu)), ("DefMemPerGPU", c.default_mem_per_gpu)];
    let defaults: Vec<String> =
        per_gpu.iter().filter(|(_, n)| *n > 0).map(|(key, n)| format!("{key}={n}")).collect();
    vec![
        format!("PartitionName={}", c.name),
        "AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL".to_string(),
        format!("AllocNodes=ALL Default={} QoS=N/A", if c.default { "YES" } else { "NO" }),
        format!("DefaultTime={default_time} DisableRootJobs=NO Exclusive=NO GraceTime=0 Hidden=NO"),
        format!(
            "MaxNodes={max_nodes} MaxTime={} MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED MaxCPUsPerSocket=UNLIMITED",
            limit(&c.max_time)
        ),
        format!("Nodes={}", hosts(&p.nodes)),
        "PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO".to_string(),
        "OverTimeLimit=NONE PreemptMode=OFF".to_string(),
        format!(
            "State={state} TotalCPUs={} TotalNodes={} SelectTypeParameters=NONE",
            p.total.cpu,
            p.nodes.len()
        ),
        format!("JobDefaults={}", null(defaults.join(","))),
        format!("{memory} MaxMemPerNode=UNLIMITED"),
        format!("TRES={}", null(tres(&p.total))),
    ]
}

/// `scontrol show step`.
pub fn step(j: &JobInfo, s: &StepInfo, view: &View) -> Vec<String> {
    let limit = s.time_limit.and_then(|l| l.span()).map_or("UNLIMITED".to_string(), time::long);
    let tasks: usize = s.layout.tasks.iter().map(Vec::len).sum();
    // A batch step is the script: what it has is the job's, and its steps'.
    let (cpus, plain) = match s.id {
        StepId::Batch => (0, String::new()),
        _ => (s.allocated.cpu, step_tres(&s.allocated)),
    };
    let mut lines = vec![
        format!(
            "StepId={} UserId={} StartTime={} TimeLimit={limit}",
            job::step_id(j, s),
            j.identity.uid,
            at(view, Some(s.started), "Unknown")
        ),
        format!("State={} Partition={} NodeList={}", s.state.name(), j.partition, hosts(&s.layout.nodes)),
        format!(
            "Nodes={} CPUs={cpus} Tasks={} Name={} Network=(null)",
            s.layout.nodes.len(),
            tasks.max(1),
            s.name
        ),
        format!("TRES={}", null(plain)),
    ];
    if let Some(image) = &s.image {
        lines.push(format!("Container={image}"));
        lines.extend(self::image(s.digest.as_deref(), s.pull));
    }
    lines
}

/// Which image it is, and what making it present took, as far as it is known: lines that Slurm does not have.
fn image(digest: Option<&str>, pull: Option<PullInfo>) -> Vec<String> {
    let pull = pull.map(|p| {
        format!(
            "ImagePull={} ImageBytes={} ImageHit={} GPUWait={}",
            job::seconds(p.took),
            p.bytes,
            if p.hit { "Yes" } else { "No" },
            job::seconds(p.gpu_wait)
        )
    });
    digest.map(|d| format!("ImageDigest={d}")).into_iter().chain(pull).collect()
}

/// What a step has on a node: `scontrol -d show step` adds it to the record.
pub fn effective(e: &Effective) -> Vec<String> {
    let limits = |value: fn(&EffectiveLimit) -> LimitValue| {
        let words = e.limits.iter().map(|l| format!("{}:{}", l.resource.name().to_lowercase(), value(l)));
        null(words.collect::<Vec<_>>().join(","))
    };
    let namespaces = e.namespaces.iter().map(|(kind, number)| format!("{kind}:{number}"));
    let mut lines = vec![
        format!("Node={} SoftLimits={}", e.node, limits(|l| l.soft)),
        format!("HardLimits={}", limits(|l| l.hard)),
        format!("Namespaces={}", null(namespaces.collect::<Vec<_>>().join(","))),
    ];
    lines.extend(e.control_groups.iter().map(|(file, value)| format!("ControlGroup={file}:{value}")));
    if e.control_groups.is_empty() {
        lines.push("ControlGroup=(null)".to_string());
    }
    lines
}

/// A configuration as `scontrol show config` prints it: dotted keys, padded to one column, sorted.
pub fn config(value: &serde_json::Value) -> Vec<(String, String)> {
    let mut out = Vec::new();
    flatten(String::new(), value, &mut out);
    out.sort();
    out
}

fn flatten(key: String, value: &serde_json::Value, out: &mut Vec<(String, String)>) {
    use serde_json::Value;
    let child = |k: &str| if key.is_empty() { k.to_string() } else { format!("{key}.{k}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(k, v)| flatten(child(k), v, out)),
        Value::Array(list) if list.iter().any(Value::is_object) => {
            list.iter().enumerate().for_each(|(i, v)| flatten(child(&i.to_string()), v, out));
        }
        Value::Array(list) => {
            let words: Vec<String> = list.iter().map(plain_text).collect();
            out.push((key, null(words.join(","))));
        }
        other => out.push((key, plain_text(other))),
    }
}

fn plain_text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(s) => null(s.clone()),
        serde_json::Value::Null => "(null)".to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{
        array, drained, job as sample, node as sample_node, partition as part, step as one_step, view,
    };
    use super::*;
    use berth_model::state::ExitStatus;

    #[test]
    fn a_running_job() {
        let j = sample(9, "run2");
        let text = record(&job(&j, &view(91), false), false);
        for line in [
            "JobId=9 JobName=run2",
            "   UserId=alice(1001) GroupId=alice(1001) MCS_label=N/A",
            "   JobState=RUNNING Reason=None Dependency=(null)",
            "   RunTime=00:01:31 TimeLimit=00:30:00 TimeMin=N/A",
            "   StartTime=2026-11-20T22:44:06 EndTime=2026-11-20T23:14:06 Deadline=N/A",
            "   Partition=debug AllocNode:Sid=node0:5863",
            "   ReqNodeList=(null) ExcNodeList=(null)",
            "   BatchHost=n1",
            "   NumNodes=1 NumCPUs=1 NumTasks=1 CPUs/Task=1 ReqB:S:C:T=0:0:*:*",
            "   ReqTRES=cpu=1,mem=500M,node=1,billing=1",
            "   MinCPUsNode=1 MinMemoryCPU=500M MinTmpDiskNode=0",
            "   Command=/home/alice/work/run2.sh",
            "   StdOut=/home/alice/work/slurm-9.out",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(text.ends_with("\n\n"));
        assert_eq!(record(&job(&j, &view(91), false), true).lines().count(), 1);
        assert!(!text.contains("SLUID"), "{text}");
        let text = record(&job(&j, &view(91), true), false);
        let start = "JobId=9 JobName=run2\n   SLUID=sCN1M7XJ371Y00\n   UserId=alice(1001)";
        assert!(text.starts_with(start), "{text}");
        let unnamed = JobInfo { sluid: None, ..j };
        assert!(!record(&job(&unnamed, &view(91), true), false).contains("SLUID"));
    }

    #[test]
    fn a_waiting_array() {
        let text = record(&job(&array(11), &view(0), false), false);
        assert!(
            text.starts_with("JobId=11 ArrayJobId=11 ArrayTaskId=2-9%2 ArrayTaskThrottle=2 JobName=arrjob\n")
        );
        assert!(text.contains("\n   StartTime=Unknown EndTime=Unknown Deadline=N/A\n"));
        assert!(text.contains("\n   NodeList=\n") && text.contains("AllocTRES=(null)"));
        assert!(text.contains("StdOut=/home/alice/work/slurm-11_4294967294.out"));
    }

    #[test]
    fn a_held_job_is_not_eligible_and_its_nodes_are_a_range() {
        use super::super::samples::pending;
        use berth_model::state::Reason;
        let mut held = pending(sample(19, "heldu"), Reason::JobHeldUser);
        let text = record(&job(&held, &view(0), false), false);
        assert!(
            text.contains(" EligibleTime=Unknown\n   AccrueTime=Unknown\n   StartTime=Unknown "),
            "{text}"
        );
        assert!(text.contains("\n   SuspendTime=None SecsPreSuspend=0\n"), "{text}");
        assert!(text.contains("\n   NumNodes=1-1 NumCPUs="), "{text}");
        held.spec.resources.tasks = Some(2);
        held.spec.resources.max_nodes = None;
        assert!(record(&job(&held, &view(0), false), false).contains("\n   NumNodes=1-2 "));
        let mut waiting = pending(sample(17, "wantall"), Reason::Resources);
        let numbers = |j: &JobInfo| {
            let text = record(&job(j, &view(0), false), false);
            text.lines()
                .find_map(|l| l.trim().strip_prefix("NumNodes=")?.split(' ').next().map(str::to_string))
        };
        assert_eq!(numbers(&waiting).as_deref(), Some("1"));
        waiting.spec.resources.max_nodes = Some(3);
        assert_eq!(numbers(&waiting).as_deref(), Some("1-3"));
        let begin = view(0).now + berth_model::Span::from_secs(3600);
        held.spec.begin = Some(begin);
        held.eligible = begin;
        let text = record(&job(&held, &view(0), false), false);
        let at = view(0).time(begin);
        for words in [
            format!(" EligibleTime={at}\n"),
            "AccrueTime=Unknown\n".into(),
            format!("StartTime={at} EndTime=2026-"),
        ] {
            assert!(text.contains(&words), "{words}\n{text}");
        }
    }

    #[test]
    fn details_name_the_devices() {
        let mut j = sample(10, "gpujob");
        let device = |index| GresDevice {
            name: "gpu".into(),
            kind: Some("test".into()),
            index,
            ..GresDevice::default()
        };
        let gres = vec![device(1), device(0)];
        j.shares = vec![berth_model::launch::NodeShare { cpus: vec![0, 1], memory: 1000, gres }];
        let text = record(&job(&j, &view(0), true), false);
        assert!(text.contains("\n   JOB_GRES=gpu:test:2\n     Nodes=n1 CPU_IDs="), "{text}");
        assert!(text.contains(" GRES=gpu:test:2(IDX:0-1)\n"), "{text}");
    }

    #[test]
    fn what_is_asked_of_gpus_is_told_in_slurms_order() {
        use berth_model::spec::MemoryRequest;
        use berth_model::tres::GresKey;
        let mut j = sample(10, "gpujob");
        assert!(!record(&job(&j, &view(0), false), false).contains("Tres"), "nothing is said of none");
        let gpu = |n: u64| -> berth_model::gres::Wanted {
            [(GresKey { name: "gpu".into(), kind: None }, n)].into()
        };
        let r = &mut j.spec.resources;
        (r.devices.total, r.devices.per_task, r.devices.per_socket) = (gpu(2), gpu(1), gpu(3));
        (r.gres, r.devices.cpus_per_gpu, r.devices.nearness) = (gpu(4), Some(5), Nearness::Enforced);
        (r.gpu_bind, r.ntasks_per_gpu) = (Some("verbose,per_task:1".parse().unwrap()), Some(6));
        r.memory = MemoryRequest::PerGpu(1024);
        let text = record(&job(&j, &view(0), false), false);
        assert!(text.ends_with(
            "   StdOut=/home/alice/work/slurm-10.out\n   GresEnforceBind=Yes\n   CpusPerTres=gres/gpu:5\n   \
             MemPerTres=gres/gpu:1024\n   TresBind=gres/gpu:verbose,per_task:1\n   TresPerJob=gres/gpu:2\n   \
             TresPerNode=gres/gpu:4\n   TresPerSocket=gres/gpu:3\n   TresPerTask=gres/gpu=1\n   NtasksPerTRES=6\n\n"
        ), "{text}");
        assert!(text.contains(" MinMemoryTRES=1G MinTmpDiskNode=0\n"), "{text}");
        let value = super::super::json::job(&j, &view(0)).into_value();
        for (key, expected) in [
            ("cpus_per_tres", "gres/gpu:5"),
            ("memory_per_tres", "gres/gpu:1024"),
            ("tres_bind", "gres/gpu:verbose,per_task:1"),
            ("tres_per_job", "gres/gpu:2"),
            ("tres_per_task", "gres/gpu=1"),
            ("stdout_expanded", "/home/alice/work/slurm-10.out"),
        ] {
            assert_eq!(value[key], expected, "{key}");
        }
        assert_eq!(value["tasks_per_tres"]["number"], 6);
    }

    #[test]
    fn details_of_a_node_say_which_devices_jobs_have() {
        let mut n = sample_node("n5", 2, Default::default());
        let test = |index| GresDevice {
            name: "gpu".into(),
            kind: Some("test".into()),
            index,
            ..GresDevice::default()
        };
        n.hardware.gres = vec![test(0), test(1)];
        let text = |n: &NodeInfo| record(&node(n, &view(0), true), false);
        assert!(
            text(&n).contains("\n   GresDrain=N/A\n   GresUsed=gpu:test:0(IDX:N/A)\n   NodeAddr="),
            "{}",
            text(&n)
        );
        n.used = vec![test(0)];
        assert!(text(&n).contains("\n   GresUsed=gpu:test:1(IDX:0)\n"), "{}", text(&n));
        n.used.push(test(1));
        n.hardware.gres[1].fault = Some("it fell off the bus".into());
        assert!(
            text(&n).contains("\n   GresDrain=gpu:test:1(IDX:1)\n   GresUsed=gpu:test:2(IDX:0-1)\n"),
            "{}",
            text(&n)
        );
        assert!(!record(&node(&n, &view(0), false), false).contains("GresUsed"));
        let shard =
            |index, shares| GresDevice { name: "shard".into(), index, shares, ..GresDevice::default() };
        n.used = vec![shard(0, 2), shard(1, 1)];
        assert!(text(&n).contains("\n   GresUsed=gpu:test:0(IDX:N/A),shard:3(IDX:0-1)\n"), "{}", text(&n));
        n.hardware.gres.clear();
        n.used.clear();
        assert!(text(&n).contains("\n   GresUsed=(null)\n"), "{}", text(&n));
    }

    #[test]
    fn nodes_and_partitions() {
        let text = record(&node(&sample_node("n8", 0, drained("bad disk")), &view(0), false), false);
        assert!(text.starts_with(
            "NodeName=n8 Arch=x86_64 CoresPerSocket=4 \n   CPUAlloc=0 CPUEfctv=4 CPUTot=4 CPULoad=0.84\n"
        ));
        assert!(text.contains("\n   State=IDLE+DRAIN ThreadsPerCore=1 "));
        assert!(text.contains("\n   CfgTRES=cpu=4,mem=4000M,billing=4\n   AllocTRES=\n"));
        assert!(text.contains("\n   Reason=bad disk [root@2026-11-20T22:44:10]\n"));
        let drift = vec!["user ann: uid 7 here and 8 at the controller".to_string()];
        let other = NodeInfo { drift, ..sample_node("n8", 0, drained("x")) };
        let text = record(&node(&other, &view(0), false), false);
        assert!(text.contains("\n   IdentityDrift=user ann: uid 7 here and 8 at the controller\n"), "{text}");
        let hardware_drift = vec!["registered with 8 cores, now 4".to_string()];
        let other = NodeInfo { hardware_drift, ..sample_node("n8", 0, drained("x")) };
        let text = record(&node(&other, &view(0), false), false);
        assert!(text.contains("\n   HardwareDrift=registered with 8 cores, now 4\n"), "{text}");
        let mut other = sample_node("n8", 0, drained("x"));
        let gpu = |index, fault: Option<&str>| GresDevice {
            name: "gpu".into(),
            index,
            fault: fault.map(str::to_string),
            ..GresDevice::default()
        };
        other.hardware.gres = vec![gpu(0, None), gpu(1, Some("it fell off the bus"))];
        let text = record(&node(&other, &view(0), false), false);
        assert!(text.contains("\n   GresFault=gpu:1(it fell off the bus)\n"), "{text}");
        let said = serde_json::json!([{"name": "gpu", "index": 1, "reason": "it fell off the bus"}]);
        assert_eq!(super::super::json::node(&other)["gres_fault"], said);
        let mut gpus = part("gpu", false, "1-00:00:00", &["n1"]);
        assert!(record(&partition(&gpus), false).contains("\n   JobDefaults=(null)\n"));
        (gpus.config.default_cpus_per_gpu, gpus.config.default_mem_per_gpu) = (4, 1024);
        let text = record(&partition(&gpus), false);
        assert!(text.contains("\n   JobDefaults=DefCpuPerGPU=4,DefMemPerGPU=1024\n"), "{text}");
        let text = record(&partition(&part("debug", true, "1-00:00:00", &["n1", "n2"])), false);
        assert!(text.contains("\n   AllocNodes=ALL Default=YES QoS=N/A\n   DefaultTime=NONE "));
        assert!(
            text.contains("MaxNodes=UNLIMITED MaxTime=1-00:00:00 ") && text.contains("\n   Nodes=n[1-2]\n")
        );
    }

    #[test]
    fn a_step() {
        let s = StepInfo {
            ended: None,
            state: JobState::Running,
            ..one_step(StepId::Number(0), "sleep", ExitStatus::OK)
        };
        let text = record(&step(&sample(9, "run2"), &s, &view(0)), false);
        assert!(text.starts_with(
            "StepId=9.0 UserId=1001 StartTime=2026-11-20T22:44:06 TimeLimit=UNLIMITED\n   State=RUNNING Partition=debug \
             NodeList=n1\n   Nodes=1 CPUs=2 Tasks=2 Name=sleep Network=(null)\n   TRES=cpu=2,mem=1000M,node=1\n"
        ));
        let batch = StepInfo { id: StepId::Batch, name: "batch".into(), ..s };
        let text = record(&step(&sample(9, "run2"), &batch, &view(0)), false);
        assert!(text.contains(" CPUs=0 Tasks=2 Name=batch Network=(null)\n   TRES=(null)\n"), "{text}");
    }

    #[test]
    fn configurations_are_flat_and_sorted() {
        let value =
            serde_json::json!({"b": {"c": 1, "a": "x"}, "a": [], "p": [{"name": "main"}], "l": ["x", "y"]});
        let keys: Vec<String> = config(&value).into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(keys, ["a=(null)", "b.a=x", "b.c=1", "l=x,y", "p.0.name=main"]);
    }
}
