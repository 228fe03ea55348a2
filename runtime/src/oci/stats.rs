//! `events`: what a container uses, and when memory runs out.

use super::cgroup::Group;
use crate::cgroup::files::keyed;
use serde_json::{Value, json};

/// What runc's `events --stats` has in its `data`, as far as the kernel says it.
pub fn collect(group: &Group) -> Value {
    let mut data = json!({});
    let stat = group.text("cpu", "cpu.stat", "cpu.stat").unwrap_or_default();
    let v1 = group.v1.contains_key("cpuacct");
    let micro = |key| keyed(&stat, key).map(|n| n * 1000);
    let (total, user, system) = if v1 {
        let number = |file| group.number("cpuacct", file, "");
        (number("cpuacct.usage"), number("cpuacct.usage_user"), number("cpuacct.usage_sys"))
    } else {
        (micro("usage_usec"), micro("user_usec"), micro("system_usec"))
    };
    data["cpu"] = json!({
        "usage": {"total": total, "user": user, "kernel": system},
        "throttling": {"periods": keyed(&stat, "nr_periods"), "throttledPeriods": keyed(&stat, "nr_throttled")},
    });
    let memory = group.text("memory", "memory.stat", "memory.stat").unwrap_or_default();
    let raw: serde_json::Map<String, Value> = memory
        .lines()
        .filter_map(|l| l.split_once(' '))
        .filter_map(|(k, v)| Some((k.to_string(), v.trim().parse::<u64>().ok()?.into())))
        .collect();
    // No limit is the largest number that a page counter holds.
    let limit = group.number("memory", "memory.limit_in_bytes", "memory.max");
    data["memory"] = json!({
        "usage": {
            "usage": group.number("memory", "memory.usage_in_bytes", "memory.current"),
            "max": group.number("memory", "memory.max_usage_in_bytes", "memory.peak"),
            "limit": limit,
            "failcnt": group.number("memory", "memory.failcnt", ""),
        },
        "oomKills": oom_kills(group),
        "raw": raw,
    });
    data["pids"] = json!({
        "current": group.number("pids", "pids.current", "pids.current"),
        "limit": group.number("pids", "pids.max", "pids.max"),
    });
    data
}

/// How many processes the memory limit has killed.
pub fn oom_kills(group: &Group) -> u64 {
    let text = group.text("memory", "memory.oom_control", "memory.events").unwrap_or_default();
    keyed(&text, "oom_kill").unwrap_or(0)
}
