//! `--json`: one object with a collection, `meta`, `errors` and `warnings`; numbers that may be unset or
//! unlimited are `{"set":…,"infinite":…,"number":…}`.

use super::item::{Item, Number, object};
use super::{View, hosts, job, node, tres};
use berth_model::effective::Effective;
use berth_model::launch::Usage;
use berth_model::record::{JobInfo, NodeInfo, PartitionInfo, PullInfo, StepInfo};
use berth_model::spec::{JobKind, MemoryRequest, TimeLimit};
use berth_model::state::ExitStatus;
use berth_model::{ByteStr, Time};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::io::{self, Write};

/// Records of one thread's share at a time: from two such shares on, two threads are worth their start.
const SHARE: usize = 2000;

/// The whole document of a collection.
pub fn document(collection: &str, items: &[Value], command: &[String], cluster: &str) -> String {
    let mut text = Vec::new();
    let written = write(&mut text, collection, items, |v| Item::Value(Cow::Borrowed(v)), (command, cluster));
    // Nothing refuses what goes to memory, and JSON is text.
    written.ok().and_then(|()| String::from_utf8(text).ok()).unwrap_or_default()
}

fn meta(command: &[String], cluster: &str) -> Item<'static> {
    json!({
        "command": command,
        "client": {"source": "", "user": crate::users::name(nix::unistd::geteuid().as_raw())},
        "slurm": {"version": version(), "release": crate::VERSION, "cluster": cluster},
        "berth": {"version": crate::VERSION},
    })
    .into()
}

/// Writes the document of what `make` makes of each record for a command and a cluster, some thousand records at a time: the
/// text of 100,000 jobs takes a third of a gigabyte.
///
/// # Errors
/// Of the writer.
pub fn write<'a, T: Sync>(
    out: &mut impl Write,
    collection: &str,
    records: &'a [T],
    make: impl Fn(&'a T) -> Item<'a> + Sync,
    (command, cluster): (&[String], &str),
) -> io::Result<()> {
    let mut names = [collection, "meta", "errors", "warnings"];
    names.sort_unstable();
    for (at, name) in names.iter().enumerate() {
        write!(out, "{}  \"{name}\": ", if at == 0 { "{\n" } else { ",\n" })?;
        match *name {
            "meta" => {
                let mut text = Vec::new();
                meta(command, cluster).pretty(1, &mut text)?;
                out.write_all(&text)?;
            }
            "errors" | "warnings" => out.write_all(b"[]")?,
            _ => write_array(out, records, &make)?,
        }
    }
    out.write_all(b"\n}\n")
}

/// The array of what is made of the records, a level deep.
fn write_array<'a, T: Sync>(
    out: &mut impl Write,
    records: &'a [T],
    make: &(impl Fn(&'a T) -> Item<'a> + Sync),
) -> io::Result<()> {
    let some = |share: &'a [T]| -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        for record in share {
            text.extend_from_slice(if text.is_empty() { b"\n    " } else { b",\n    " });
            make(record).pretty(2, &mut text)?;
        }
        Ok(text)
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let mut first = true;
    out.write_all(b"[")?;
    for round in records.chunks(threads * SHARE) {
        let texts: io::Result<Vec<Vec<u8>>> = std::thread::scope(|scope| {
            let mut shares = round.chunks(SHARE);
            let own = shares.next().unwrap_or_default();
            // Where no thread can be had (a limit on processes), a share is made here.
            let others: Vec<_> = shares
                .map(|share| {
                    std::thread::Builder::new().spawn_scoped(scope, move || some(share)).map_err(|_| share)
                })
                .collect();
            let others = others.into_iter().map(|other| match other {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(share) => some(share),
            });
            std::iter::once(some(own)).chain(others).collect()
        });
        for text in texts? {
            if !std::mem::take(&mut first) {
                out.write_all(b",")?;
            }
            out.write_all(&text)?;
        }
    }
    out.write_all(if first { b"]" } else { b"\n  ]" })
}

fn version() -> Value {
    let mut parts = crate::VERSION.split('.');
    let mut next = || parts.next().unwrap_or("0").to_string();
    json!({"major": next(), "minor": next(), "micro": next()})
}

fn number(n: impl Into<i64>) -> Number {
    Number { infinite: false, number: n.into(), set: true }
}

fn unset() -> Number {
    Number { infinite: false, number: 0, set: false }
}

fn count(n: u64) -> Number {
    number(i64::try_from(n).unwrap_or(i64::MAX))
}

fn maybe(n: Option<u32>) -> Number {
    n.map_or_else(unset, number)
}

fn when(t: Option<Time>) -> Number {
    t.map_or_else(unset, |t| number(t.secs()))
}

fn limit(l: TimeLimit) -> Number {
    match l {
        TimeLimit::Minutes(m) => number(m),
        TimeLimit::Unlimited => Number { infinite: true, number: 0, set: false },
    }
}

fn exit(e: ExitStatus) -> Item<'static> {
    let signal = i32::from(e.signal);
    let name = nix::sys::signal::Signal::try_from(signal).map_or("", |s| s.as_str());
    let status = match (e.signal, e.code) {
        (0, 0) => "SUCCESS",
        (0, _) => "ERROR",
        _ => "SIGNALED",
    };
    object! {
        "return_code": number(e.code),
        "signal": object! {
            "id": if signal == 0 { unset() } else { number(signal) },
            "name": name.trim_start_matches("SIG"),
        },
        "status": vec![Item::from(status)],
    }
}

fn text(b: &ByteStr) -> Cow<'_, str> {
    b.display()
}

fn optional(text: Option<&String>) -> &str {
    text.map_or("", String::as_str)
}

/// Empty where there is none.
fn sluid(j: &JobInfo) -> String {
    j.sluid.map_or_else(String::new, |sluid| sluid.to_string())
}

/// A job in the shape of `squeue --json` and `scontrol show job --json`.
pub fn job<'a>(j: &'a JobInfo, view: &'a View) -> Item<'a> {
    let r = &j.spec.resources;
    let (per_node, per_cpu) = match r.memory {
        MemoryRequest::PerCpu(m) => (unset(), count(m)),
        MemoryRequest::PerNode(m) => (count(m), unset()),
        MemoryRequest::PerGpu(_) | MemoryRequest::Default => {
            (count(j.requested.mem / job::node_count(j).max(1)), unset())
        }
    };
    let gres: Vec<Item<'_>> = j
        .shares
        .iter()
        .map(|s| s.gres.iter().map(|d| format!("{}:{}", d.name, d.index)).collect::<Vec<_>>().join(","))
        .filter(|g| !g.is_empty())
        .map(Item::from)
        .collect();
    let stdout = j.spec.io.stdout.as_ref().map(text);
    let [stderr_file, stdin_file, stdout_file] = super::scontrol::files(j).unwrap_or_default();
    object! {
        "account": optional(j.spec.account.as_ref()),
        "allocating_node": &j.spec.submit_host,
        "array_job_id": number(j.array.map_or(0, |a| a.0)),
        "array_max_tasks": number(j.spec.array.as_ref().and_then(|a| a.max_running).unwrap_or(0)),
        "array_task_id": maybe(j.task),
        "array_task_string": job::task_set(j).unwrap_or_default(),
        "batch_flag": j.spec.kind == JobKind::Batch,
        "batch_host": j.layout.nodes.first().map(ToString::to_string).unwrap_or_default(),
        "cluster": &view.cluster,
        "command": job::command(j).unwrap_or_default(),
        "comment": optional(j.spec.comment.as_ref()),
        "container": j.spec.container.as_ref().map_or("", |c| c.image.typed.as_str()),
        "cpus": count(job::cpu_count(j)),
        "cpus_per_task": maybe(r.cpus_per_task),
        "cpus_per_tres": job::cpus_per_tres(j).unwrap_or_default(),
        "current_working_directory": text(&j.spec.work_dir),
        "dependency": "",
        "derived_exit_code": exit(j.derived_exit),
        "eligible_time": when(Some(j.eligible)),
        "end_time": when(job::end(j)),
        "excluded_nodes": hosts(&r.exclude),
        "exclusive": if r.exclusive { "true" } else { "false" },
        "exit_code": exit(j.exit),
        "features": "",
        "gres_detail": gres,
        "group_id": j.identity.gid.0,
        "group_name": &j.identity.group,
        "hold": j.spec.hold,
        "image": image(j.digest(), j.pull()),
        "het_job_id": number(j.spec.het.map_or(0, |het| het.leader.0)),
        "het_job_id_set": j.spec.het.map_or_else(String::new, |het| het.id_set()),
        "het_job_offset": number(j.spec.het.map_or(0, |het| het.offset)),
        "job_id": j.id.0,
        "job_state": vec![Item::from(j.state.name())],
        "max_nodes": count(job::most_nodes(j)),
        "memory_per_cpu": per_cpu,
        "memory_per_node": per_node,
        "memory_per_tres": job::mem_per_tres(j).unwrap_or_default(),
        "minimum_cpus_per_node": number(job::min_cpus(j)),
        "name": &j.spec.name,
        "nice": j.spec.nice,
        "node_count": count(job::node_count(j)),
        "nodes": hosts(&j.layout.nodes),
        "partition": &j.partition,
        "priority": number(j.priority),
        "requeue": j.spec.requeue.unwrap_or(true),
        "required_nodes": hosts(&r.node_list),
        "restart_cnt": j.attempt.0,
        "standard_error": j.spec.io.stderr.as_ref().map(text).unwrap_or_default(),
        "standard_input": j.spec.io.stdin.as_ref().map_or(Cow::Borrowed("/dev/null"), text),
        "standard_output": stdout.or_else(|| job::default_output(j).map(Cow::Owned)).unwrap_or_default(),
        "start_time": when(j.started),
        "stderr_expanded": stderr_file,
        "stdin_expanded": stdin_file,
        "stdout_expanded": stdout_file,
        "state_description": "",
        "state_reason": job::reason(j),
        "step_id": object! {
            "job_id": number(j.id.0),
            "sluid": sluid(j),
            "step_het_component": unset(),
            "step_id": "entire",
        },
        "steps": j.steps.iter().map(|s| Item::from(step(j, s, view))).collect::<Vec<_>>(),
        "submit_line": text(&j.spec.submit_line),
        "submit_time": when(Some(j.submitted)),
        "system_comment": job::system_comment(j).unwrap_or_default(),
        "tasks": count(job::task_count(j)),
        "tasks_per_node": maybe(r.tasks_per_node),
        "tasks_per_tres": maybe(r.ntasks_per_gpu),
        "time_limit": limit(j.time_limit),
        "tres_alloc_str": tres(&j.allocated),
        "tres_bind": job::tres_bind(j).unwrap_or_default(),
        "tres_per_job": job::tres_per_job(j).unwrap_or_default(),
        "tres_per_node": job::tres_per_node(j).unwrap_or_default(),
        "tres_per_socket": job::tres_per_socket(j).unwrap_or_default(),
        "tres_per_task": job::tres_per_task(j).unwrap_or_default(),
        "tres_req_str": tres(&j.requested),
        "user_id": j.identity.uid.0,
        "user_name": &j.identity.user,
    }
}

/// The image, and what making it present took: null while that is not known.
fn image(digest: Option<&str>, pull: Option<PullInfo>) -> Value {
    let pull = pull.map(|p| {
        json!({"microseconds": p.took.0, "bytes": p.bytes, "hit": p.hit, "gpu_microseconds": p.gpu_wait.0})
    });
    json!({"digest": digest.unwrap_or_default(), "pull": pull})
}

/// What a step used of GPUs; null where none was looked at.
fn gpu_use(usage: &Usage) -> Value {
    usage.gpu.map_or(Value::Null, |gpu| {
        // Of parts of a GPU nobody says how busy they were.
        let told = |value: Value| if gpu.is_told() { value } else { Value::Null };
        json!({
            "seconds": told(json!(gpu.busy_us / 1_000_000)),
            "utilization": told(json!({"average": gpu.average(), "max": gpu.peak})),
            "memory": {"max": gpu.max_memory, "total": gpu.memory_in_all()},
        })
    })
}

/// Two objects in one.
fn joined(mut a: Value, b: Value) -> Value {
    if let (Value::Object(all), Value::Object(more)) = (&mut a, b) {
        all.extend(more);
    }
    a
}

/// A step, in `steps` of a job.
pub fn step(j: &JobInfo, s: &StepInfo, view: &View) -> Value {
    let micros = |n: u64| json!({"seconds": n / 1_000_000, "microseconds": n % 1_000_000});
    json!({
        "step": {"id": job::step_id(j, s), "name": s.name},
        "state": [s.state.name()],
        "exit_code": exit(s.exit),
        "container": s.image.clone().unwrap_or_default(),
        "image": image(s.digest.as_deref(), s.pull),
        "nodes": {"count": s.layout.nodes.len(), "list": s.layout.nodes, "range": hosts(&s.layout.nodes)},
        "tasks": {"count": s.layout.tasks.iter().map(Vec::len).sum::<usize>()},
        "time": {
            "start": when(Some(s.started)), "end": when(s.ended), "elapsed": job::step_elapsed(s, view).secs(),
            "user": micros(s.usage.user_us), "system": micros(s.usage.system_us),
            "total": micros(s.usage.user_us.saturating_add(s.usage.system_us)),
        },
        "statistics": {"memory": {"max": s.usage.max_rss}, "gpu": gpu_use(&s.usage)},
        "tres": {"allocated": tres_list(&s.allocated)},
        "message": s.message.clone().unwrap_or_default(),
    })
}

/// A step of `scontrol show step`; with `-d` what it has on the node, as the kernel says.
pub fn detailed_step(j: &JobInfo, s: &StepInfo, details: Option<&Effective>, view: &View) -> Value {
    let details = details.map_or_else(|| json!({}), |what| json!({"details": what}));
    joined(step(j, s, view), details)
}

fn tres_list(t: &berth_model::Tres) -> Vec<Value> {
    let mut list = vec![
        json!({"type": "cpu", "name": "", "count": t.cpu}),
        json!({"type": "mem", "name": "", "count": t.mem}),
        json!({"type": "node", "name": "", "count": t.node}),
    ];
    list.extend(t.gres.iter().map(|(k, n)| json!({"type": "gres", "name": k.to_string(), "count": n})));
    list
}

/// A job in the shape of `sacct --json`.
pub fn account(j: &JobInfo, view: &View) -> Value {
    json!({
        "account": j.spec.account.clone().unwrap_or_default(),
        "allocation_nodes": j.layout.nodes.len(),
        "array": {
            "job_id": j.array.map_or(0, |a| a.0), "task_id": maybe(j.task), "task": job::task_set(j).unwrap_or_default(),
            "limits": {"max": {"running": {"tasks": j.spec.array.as_ref().and_then(|a| a.max_running).unwrap_or(0)}}},
        },
        "cluster": view.cluster,
        "comment": {"job": j.spec.comment.clone().unwrap_or_default()},
        "container": j.spec.container.as_ref().map(|c| c.image.typed.clone()).unwrap_or_default(),
        "derived_exit_code": exit(j.derived_exit),
        "exit_code": exit(j.exit),
        "group": j.identity.group,
        "het": {"job_id": j.spec.het.map_or(0, |het| het.leader.0), "job_offset": maybe(j.spec.het.map(|het| het.offset))},
        "image": image(j.digest(), j.pull()),
        "job_id": j.id.0,
        "kill_request_user": j.cancelled_by.map(|u| crate::users::name(u.0)).unwrap_or_default(),
        "name": j.spec.name,
        "nodes": hosts(&j.layout.nodes),
        "original_sluid": sluid(j),
        "partition": j.partition,
        "priority": number(j.priority),
        "required": {"CPUs": j.requested.cpu, "memory_per_node": count(j.requested.mem / job::node_count(j).max(1))},
        "restart_cnt": j.attempt.0,
        "sluid": sluid(j),
        "state": {"current": [j.state.name()], "reason": job::reason(j)},
        "steps": j.steps.iter().map(|s| step(j, s, view)).collect::<Vec<_>>(),
        "submit_line": text(&j.spec.submit_line),
        "time": {
            "elapsed": job::elapsed(j, view).secs(), "eligible": j.eligible.secs(), "submission": j.submitted.secs(),
            "start": j.started.map_or(0, Time::secs), "end": j.ended.map_or(0, Time::secs), "limit": limit(j.time_limit),
        },
        "tres": {"requested": tres_list(&j.requested), "allocated": tres_list(&j.allocated)},
        "user": j.identity.user,
        "working_directory": text(&j.spec.work_dir),
    })
}

/// Devices that are given to nobody, with the reasons.
fn gres_faults(n: &NodeInfo) -> Vec<Value> {
    let faults = n.hardware.gres.iter().filter_map(|d| Some((d, d.fault.as_ref()?)));
    faults.map(|(d, why)| json!({"name": d.name, "index": d.index, "reason": why})).collect()
}

/// A node.
pub fn node(n: &NodeInfo) -> Value {
    json!({
        "name": n.name, "hostname": node::host(n), "address": n.name, "architecture": n.hardware.arch,
        "operating_system": n.hardware.os, "version": n.version, "state": node::flags(n),
        "cpus": n.total.cpu, "alloc_cpus": n.allocated.cpu, "alloc_idle_cpus": n.total.cpu.saturating_sub(n.allocated.cpu),
        "sockets": n.hardware.sockets(), "threads": n.hardware.threads_per_core(), "cores": n.hardware.cores.len(),
        "cpu_load": n.load, "real_memory": n.hardware.memory, "alloc_memory": n.allocated.mem,
        "free_mem": count(n.free_memory), "specialized_memory": n.hardware.memory_reserved,
        "temporary_disk": n.hardware.tmp_disk, "gres": node::gres(n), "gres_fault": gres_faults(n),
        "gres_used": node::gres_used(n), "gres_drained": node::gres_drained(n),
        "partitions": n.partitions, "boot_time": when(n.boot_time), "slurmd_start_time": when(n.agent_start),
        "last_busy": when(n.last_busy), "reason": n.condition.reason.clone().unwrap_or_default(),
        "reason_set_by_user": n.condition.reason_user.clone().unwrap_or_default(),
        "reason_changed_at": when(n.condition.reason_time), "tres": tres(&n.total), "tres_used": tres(&n.allocated),
    })
}

/// A partition.
pub fn partition(p: &PartitionInfo) -> Value {
    let max_time = p.config.max_time.parse::<TimeLimit>().map_or_else(|_| unset(), limit);
    json!({
        "name": p.config.name, "default": p.config.default, "state": [p.config.state],
        "nodes": {"configured": hosts(&p.nodes), "total": p.nodes.len()}, "cpus": {"total": p.total.cpu},
        "maximums": {"time": max_time, "nodes": number(p.config.max_nodes)},
        "defaults": {"time": p.config.default_time, "memory_per_cpu": p.config.default_mem_per_cpu},
        "tres": {"configured": tres(&p.total)},
    })
}

/// A line of `sinfo --json`: a partition and some of its nodes.
pub fn sinfo(p: &PartitionInfo, nodes: &[&NodeInfo], view: &View) -> Value {
    let names: Vec<_> = nodes.iter().map(|n| n.name.clone()).collect();
    let state = nodes.first().map(|n| node::flags(n)).unwrap_or_default();
    let sum = |get: fn(&NodeInfo) -> u64| nodes.iter().map(|n| get(n)).sum::<u64>();
    json!({
        "cluster": view.cluster,
        "partition": partition(p),
        "node": {"state": state},
        "nodes": {"total": nodes.len(), "hostnames": names, "nodes": names, "range": hosts(&names)},
        "cpus": {"total": sum(|n| n.total.cpu), "allocated": sum(|n| n.allocated.cpu), "idle": sum(|n| node::cpus(n)[1])},
        "memory": {"allocated": sum(|n| n.allocated.mem), "total": sum(|n| n.total.mem)},
        "gres": {
            "total": nodes.first().map(|n| node::gres(n)).unwrap_or_default(),
            "used": nodes.first().map(|n| node::gres_used(n)).unwrap_or_default(),
        },
        "reason": {"description": nodes.first().and_then(|n| n.condition.reason.clone()).unwrap_or_default()},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_printed_as_its_value_would_be() {
        for count in [0, 1, 33 * SHARE + 1] {
            let records: Vec<usize> = (0..count).collect();
            let value_of =
                |n: &usize| json!({"n": n, "text": "a\nb", "inner": {"list": [n, []], "none": {}}});
            let mut text = Vec::new();
            let command = ["squeue".to_string()];
            write(&mut text, "jobs", &records, |n| value_of(n).into(), (&command, "c")).unwrap();
            let text = String::from_utf8(text).unwrap();
            let value: Value = serde_json::from_str(&text).unwrap();
            let values: Vec<Value> = records.iter().map(value_of).collect();
            assert_eq!(text, serde_json::to_string_pretty(&value).unwrap() + "\n");
            assert_eq!(document("jobs", &values, &command, "c"), text);
            assert_eq!(value["jobs"], Value::Array(values));
        }
    }

    #[test]
    fn deep_values_are_printed_as_serde_prints_them() {
        let mut value = json!({"last": [], "none": {}});
        for depth in 0..40 {
            value = if depth % 2 == 0 { json!([value, depth]) } else { json!({"deeper": value}) };
        }
        let mut text = Vec::new();
        Item::from(value.clone()).pretty(0, &mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), serde_json::to_string_pretty(&value).unwrap());
    }

    #[test]
    fn an_item_is_printed_as_its_value_would_be() {
        let item = object! {"b": exit(ExitStatus { code: 0, signal: 9 }), "a": vec![Item::from("x\n"), unset().into()], "c": true};
        let mut text = Vec::new();
        item.pretty(0, &mut text).unwrap();
        let value = item.into_value();
        assert_eq!(String::from_utf8(text).unwrap(), serde_json::to_string_pretty(&value).unwrap());
        let number = json!({"set": false, "infinite": false, "number": 0});
        assert_eq!(value["a"], json!(["x\n", number]));
        assert_eq!(value["b"]["signal"]["name"], "KILL");
    }
}
