//! What a running step has, read from the kernel: limits, values of its control groups, namespaces.

use crate::cgroup::Cgroup;
use crate::procfs::children;
use berth_model::effective::{Effective, EffectiveLimit};
use berth_model::limits::{LimitValue, Resource};

/// Looks at the step of a supervisor. What cannot be read is left out.
///
/// The limits are those of the container's init, which every task starts with, whatever it sets for itself.
pub fn effective(supervisor: i32, group: Option<&Cgroup>) -> Effective {
    let init = children(supervisor).into_iter().next();
    let task = init.and_then(|init| children(init).into_iter().next());
    let text = init.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/limits")).ok());
    // Init is closed to its own user; its first task is in the same namespaces, and is not.
    let namespaces = task.map(namespaces).filter(|all| !all.is_empty()).or_else(|| init.map(namespaces));
    Effective {
        node: String::new(),
        limits: text.map(|text| limits(&text)).unwrap_or_default(),
        control_groups: group.map(Cgroup::values).unwrap_or_default(),
        namespaces: namespaces.unwrap_or_default(),
    }
}

fn namespaces(pid: i32) -> Vec<(String, u64)> {
    let number = |kind: &str| -> Option<u64> {
        let link = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
        link.to_str()?.strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
    };
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    kinds.iter().filter_map(|kind| Some(((*kind).to_string(), number(kind)?))).collect()
}

/// Reads `/proc/PID/limits` (proc_pid_limits(5)): the name, the soft and the hard limit, in columns.
fn limits(text: &str) -> Vec<EffectiveLimit> {
    let name = |resource| match resource {
        Resource::As => "Max address space",
        Resource::Core => "Max core file size",
        Resource::Cpu => "Max cpu time",
        Resource::Data => "Max data size",
        Resource::Fsize => "Max file size",
        Resource::Locks => "Max file locks",
        Resource::Memlock => "Max locked memory",
        Resource::Msgqueue => "Max msgqueue size",
        Resource::Nice => "Max nice priority",
        Resource::Nofile => "Max open files",
        Resource::Nproc => "Max processes",
        Resource::Rss => "Max resident set",
        Resource::Rtprio => "Max realtime priority",
        Resource::Rttime => "Max realtime timeout",
        Resource::Sigpending => "Max pending signals",
        Resource::Stack => "Max stack size",
    };
    let value = |word: &str| match word {
        "unlimited" => Some(LimitValue::Unlimited),
        number => number.parse().ok().map(LimitValue::At),
    };
    let find = |resource: Resource| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name(resource)))?;
        let mut words = rest.split_whitespace();
        Some(EffectiveLimit { resource, soft: value(words.next()?)?, hard: value(words.next()?)? })
    };
    Resource::ALL.into_iter().filter_map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_of_a_process_is_read() {
        let found = limits(&std::fs::read_to_string("/proc/self/limits").unwrap());
        assert_eq!(found.iter().map(|l| l.resource).collect::<Vec<_>>(), Resource::ALL);
        let own = crate::limits::current();
        for limit in found {
            assert_eq!(own.soft.get(&limit.resource), Some(&limit.soft), "{limit:?}");
        }
    }

    #[test]
    fn namespaces_are_numbers() {
        let found = namespaces(rustix::process::getpid().as_raw_nonzero().get());
        assert_eq!(found.len(), 7);
        assert!(found.iter().all(|(_, n)| *n > 0), "{found:?}");
    }
}
