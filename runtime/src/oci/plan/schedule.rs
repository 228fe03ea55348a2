//! Where and when a process runs: scheduling policy, I/O priority, CPUs, memory nodes.

use crate::oci::error::{Result, invalid, unsupported};
use crate::sys::schedule::Attributes;
use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, LinuxIOPriority, LinuxMemoryPolicy, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Scheduler,
};

/// A memory policy, as `set_mempolicy(2)` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPolicy {
    /// `MPOL_*` with its flags.
    pub mode: u32,
    /// Bit n is node n.
    pub nodes: Vec<u64>,
}

/// On which CPUs a process that is added to a container runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// Before it is in the container's control group.
    pub initial: Vec<u32>,
    /// From then on.
    pub later: Vec<u32>,
}

/// CPUs and memory nodes have numbers below this.
const MOST: u32 = 1024;

/// Numbers of a list such as `0-3,7`; none of an empty one.
fn list(text: &str, what: &str) -> Result<Vec<u32>> {
    let wrong = || invalid(format!("{what} is {text:?}"), format!("such as 0-3,7; each below {MOST}"));
    let number = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        part.parse::<u32>().ok().filter(|n| digits && *n < MOST).ok_or_else(wrong)
    };
    let mut all = Vec::new();
    for part in text.split(',').map(str::trim).filter(|_| !text.trim().is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        all.extend(first..=last);
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// CPUs of a process that is added.
pub fn affinity(a: &ExecCPUAffinity) -> Result<Affinity> {
    let of = |text: &Option<String>, name: &str| {
        list(text.as_deref().unwrap_or_default(), &format!("process.execCPUAffinity.{name}"))
    };
    Ok(Affinity { initial: of(a.initial(), "initial")?, later: of(a.cpu_affinity_final(), "final")? })
}

/// Class and level.
pub fn io_priority(p: &LinuxIOPriority) -> Result<(u32, u32)> {
    let class = match p.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u32::try_from(p.priority()).ok().filter(|n| *n <= 7);
    let level = level.ok_or_else(|| {
        invalid(format!("process.ioPriority.priority is {}", p.priority()), "give 0 to 7, 0 comes first")
    })?;
    Ok((class, level))
}

/// Scheduling policy.
pub fn scheduler(s: &Scheduler) -> Result<Attributes> {
    let policy = match s.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
        LinuxSchedulerPolicy::SchedIso => {
            return Err(unsupported("process.scheduler.policy SCHED_ISO", "Linux does not have it"));
        }
    };
    let nice = s.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(invalid(format!("process.scheduler.nice is {nice}"), "give -20 to 19"));
    }
    if nice != 0 && ![0, 3].contains(&policy) {
        return Err(invalid(
            "process.scheduler.nice with a policy that does not share time",
            "it is for SCHED_OTHER and SCHED_BATCH",
        ));
    }
    let priority = s.priority().unwrap_or(0);
    let real_time = [1, 2].contains(&policy);
    let fits = if real_time { (1..=99).contains(&priority) } else { priority == 0 };
    let priority = u32::try_from(priority).ok().filter(|_| fits).ok_or_else(|| {
        invalid(
            format!("process.scheduler.priority is {priority}"),
            "SCHED_FIFO and SCHED_RR take 1 to 99, the others none",
        )
    })?;
    let (runtime, deadline, period) =
        (s.runtime().unwrap_or(0), s.deadline().unwrap_or(0), s.period().unwrap_or(0));
    if policy != 6 && (runtime, deadline, period) != (0, 0, 0) {
        return Err(invalid(
            "process.scheduler has a runtime, deadline or period without SCHED_DEADLINE",
            "leave them out, or change the policy",
        ));
    }
    let mut flags = 0;
    for flag in s.flags().iter().flatten() {
        flags |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x1,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x2,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x4,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x8,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin | LinuxSchedulerFlag::SchedFlagUtilClampMax => {
                return Err(unsupported(
                    "process.scheduler.flags SCHED_FLAG_UTIL_CLAMP_*",
                    "a configuration has no place for their values: leave them out",
                ));
            }
        };
    }
    Ok(Attributes { policy, flags, nice, priority, runtime, deadline, period })
}

/// Memory policy.
pub fn memory(m: &LinuxMemoryPolicy) -> Result<MemoryPolicy> {
    let mode = match m.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flags = m.flags().iter().flatten().fold(0, |all, flag| {
        all | match flag {
            MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
            MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
            MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
        }
    });
    let numbers = list(m.nodes().as_deref().unwrap_or_default(), "linux.memoryPolicy.nodes")?;
    let mut nodes = Vec::new();
    for n in numbers {
        let (word, bit) = (n as usize / 64, n % 64);
        if nodes.len() <= word {
            nodes.resize(word + 1, 0u64);
        }
        nodes[word] |= 1 << bit;
    }
    Ok(MemoryPolicy { mode: mode | flags, nodes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(list("0-2,7, 1", "x").unwrap(), [0, 1, 2, 7]);
        assert!(list("", "x").unwrap().is_empty());
        for wrong in ["a", "1-", "-1", "3-1", "1,,2", "1024", "0-99999999999", "+1"] {
            assert!(list(wrong, "x").unwrap_err().to_string().contains("x is"), "{wrong}");
        }
    }

    #[test]
    fn policies() {
        let of = |json: &str| scheduler(&serde_json::from_str(json).unwrap());
        let batch = of(r#"{"policy":"SCHED_BATCH","nice":5}"#).unwrap();
        assert_eq!((batch.policy, batch.nice), (3, 5));
        assert_eq!(of(r#"{"policy":"SCHED_RR","priority":7}"#).unwrap().priority, 7);
        for (json, word) in [
            (r#"{"policy":"SCHED_ISO"}"#, "SCHED_ISO"),
            (r#"{"policy":"SCHED_OTHER","nice":20}"#, "nice is 20"),
            (r#"{"policy":"SCHED_FIFO","nice":1,"priority":1}"#, "share time"),
            (r#"{"policy":"SCHED_FIFO"}"#, "priority is 0"),
            (r#"{"policy":"SCHED_OTHER","priority":-1}"#, "priority is -1"),
            (r#"{"policy":"SCHED_OTHER","period":5}"#, "SCHED_DEADLINE"),
            (r#"{"policy":"SCHED_OTHER","flags":["SCHED_FLAG_UTIL_CLAMP_MIN"]}"#, "UTIL_CLAMP"),
        ] {
            let error = of(json).unwrap_err().to_string();
            assert!(error.contains(word), "{json}: {error}");
        }
        let io = |json: &str| io_priority(&serde_json::from_str(json).unwrap());
        assert_eq!(io(r#"{"class":"IOPRIO_CLASS_IDLE","priority":3}"#).unwrap(), (3, 3));
        assert!(io(r#"{"class":"IOPRIO_CLASS_BE","priority":8}"#).is_err());
    }

    #[test]
    fn memory_nodes_as_the_kernel_takes_them() {
        let of = |json: &str| memory(&serde_json::from_str(json).unwrap());
        let bind = of(r#"{"mode":"MPOL_BIND","nodes":"0,65","flags":["MPOL_F_STATIC_NODES"]}"#).unwrap();
        assert_eq!((bind.mode, bind.nodes), (2 | 1 << 15, vec![1, 2]));
        assert!(of(r#"{"mode":"MPOL_DEFAULT","nodes":""}"#).unwrap().nodes.is_empty());
        assert!(of(r#"{"mode":"MPOL_BIND","nodes":"5000"}"#).is_err());
    }
}
