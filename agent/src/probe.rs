//! What the node is made of: processors, memory, temporary space, boot. Read from the kernel, and only as
//! much of it as this process itself may use.

use berth_model::hardware::{Core, Hardware};
use berth_model::time::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fs, io};

/// Facts of the running kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Changes with every boot.
    pub id: String,
    /// When it booted.
    pub time: Time,
}

/// Something about the node cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what}: {source}; it is needed to know what this node has")]
pub struct ProbeError {
    what: String,
    source: io::Error,
}

fn cannot(what: impl Into<String>) -> impl FnOnce(io::Error) -> ProbeError {
    let what = what.into();
    move |source| ProbeError { what, source }
}

/// Detects the node's hardware. `enforces`: whether limits will be enforced by cgroups. Generic resources that only the
/// configuration names are the controller's to add.
pub fn hardware(enforces: bool) -> Result<Hardware, ProbeError> {
    let allowed = allowed_cpus().map_err(cannot("this process's CPUs"))?;
    let system = Path::new("/sys/devices/system");
    let cores = cores(system, &allowed).map_err(cannot("/sys/devices/system/cpu"))?;
    let memory = memory()?;
    let name = rustix::system::uname();
    let text = |s: &std::ffi::CStr| s.to_string_lossy().into_owned();
    Ok(Hardware {
        arch: text(name.machine()),
        os: format!("{} {} {}", text(name.sysname()), text(name.release()), text(name.version())),
        cores,
        memory,
        memory_reserved: reserve(memory),
        tmp_disk: space("/tmp"),
        gres: Vec::new(),
        fabrics: crate::fabrics::devices(),
        imex_channels: 0,
        enforces,
    })
}

/// The boot id and the boot's time.
pub fn boot() -> Result<Boot, ProbeError> {
    let id = berth_step::spool::boot_id().map_err(cannot("/proc/sys/kernel/random/boot_id"))?;
    let stat = fs::read_to_string("/proc/stat").map_err(cannot("/proc/stat"))?;
    let secs = stat
        .lines()
        .find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok())
        .ok_or_else(|| cannot("/proc/stat")(io::Error::other("it has no line 'btime'")))?;
    Ok(Boot { id, time: Time::from_secs(secs) })
}

/// One-minute load in hundredths, and free memory in MiB.
pub fn load() -> (u32, u64) {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut parts = load.split([' ', '.']);
    let whole: u32 = parts.next().and_then(|p| p.parse().ok()).unwrap_or(0);
    let hundredths: u32 = parts.next().and_then(|p| p.parse().ok()).unwrap_or(0);
    let free = meminfo().ok().and_then(|m| field(&m, "MemFree:")).unwrap_or(0);
    (whole.saturating_mul(100).saturating_add(hundredths), free / 1024)
}

/// CPUs that this process may run on: its cpuset and affinity.
fn allowed_cpus() -> io::Result<BTreeSet<u32>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .filter_map(|cpu| u32::try_from(cpu).ok())
        .collect())
}

/// Cores with the CPUs of `allowed`, ordered by socket, NUMA node and first CPU.
fn cores(system: &Path, allowed: &BTreeSet<u32>) -> io::Result<Vec<Core>> {
    let numa = numa_nodes(system);
    let mut cores: BTreeMap<(u32, u32, u32), Vec<u32>> = BTreeMap::new();
    for cpu in allowed {
        let topology = system.join(format!("cpu/cpu{cpu}/topology"));
        // Some virtual machines say -1, or nothing: then each CPU is a core, and all are one socket.
        let socket = number(&topology.join("physical_package_id")).unwrap_or(0);
        let siblings = fs::read_to_string(topology.join("thread_siblings_list")).unwrap_or_default();
        let first = parse_list(siblings.trim()).into_iter().min().unwrap_or(*cpu);
        let node = numa.get(cpu).copied().unwrap_or(0);
        cores.entry((socket, node, first)).or_default().push(*cpu);
    }
    if cores.is_empty() {
        return Err(io::Error::other("no usable CPU was found"));
    }
    Ok(cores.into_iter().map(|((socket, numa, _), cpus)| Core { socket, numa, cpus }).collect())
}

fn numa_nodes(system: &Path) -> BTreeMap<u32, u32> {
    let mut of = BTreeMap::new();
    for entry in fs::read_dir(system.join("node")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(node) = name.to_str().and_then(|n| n.strip_prefix("node")?.parse::<u32>().ok()) else {
            continue;
        };
        let list = fs::read_to_string(entry.path().join("cpulist")).unwrap_or_default();
        of.extend(parse_list(list.trim()).into_iter().map(|cpu| (cpu, node)));
    }
    of
}

fn number(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The kernel's lists of CPUs: `0-3,8`.
fn parse_list(text: &str) -> Vec<u32> {
    let mut all = Vec::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            all.extend(first..=last.min(first.saturating_add(65_535)));
        }
    }
    all
}

fn meminfo() -> io::Result<String> {
    fs::read_to_string("/proc/meminfo")
}

fn field(meminfo: &str, name: &str) -> Option<u64> {
    meminfo.lines().find_map(|l| l.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok())
}

/// Memory in MiB: the machine's, or what the agent's own cgroup leaves of it.
fn memory() -> Result<u64, ProbeError> {
    let info = meminfo().map_err(cannot("/proc/meminfo"))?;
    let total = field(&info, "MemTotal:")
        .ok_or_else(|| cannot("/proc/meminfo")(io::Error::other("it has no line 'MemTotal:'")))?
        / 1024;
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = own.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let file = match controllers {
            "" => format!("/sys/fs/cgroup{path}/memory.max"),
            c if c.split(',').any(|c| c == "memory") => {
                format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")
            }
            _ => return None,
        };
        fs::read_to_string(file).ok()?.trim().parse::<u64>().ok()
    });
    Ok(limits.map(|bytes| bytes >> 20).chain([total]).min().unwrap_or(total))
}

/// What is held back for the system and the agent: a twentieth, at least 256 MiB and at most 8 GiB.
fn reserve(memory: u64) -> u64 {
    (memory / 20).clamp(256, 8192).min(memory / 2)
}

fn space(path: &str) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |s| (s.f_blocks.saturating_mul(s.f_frsize)) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(dir: &Path, cpus: &[(u32, u32, &str)], nodes: &[(u32, &str)]) {
        for (cpu, socket, siblings) in cpus {
            let topology = dir.join(format!("cpu/cpu{cpu}/topology"));
            fs::create_dir_all(&topology).unwrap();
            fs::write(topology.join("physical_package_id"), format!("{socket}\n")).unwrap();
            fs::write(topology.join("thread_siblings_list"), format!("{siblings}\n")).unwrap();
        }
        for (node, list) in nodes {
            let path = dir.join(format!("node/node{node}"));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("cpulist"), format!("{list}\n")).unwrap();
        }
    }

    #[test]
    fn two_sockets_with_threads_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let cpus: Vec<(u32, u32, String)> =
            (0..8).map(|c| (c, (c % 4) / 2, format!("{},{}", c % 4, c % 4 + 4))).collect();
        let cpus: Vec<(u32, u32, &str)> = cpus.iter().map(|(c, s, l)| (*c, *s, l.as_str())).collect();
        machine(dir.path(), &cpus, &[(0, "0-1,4-5"), (1, "2-3,6-7")]);
        let all: BTreeSet<u32> = (0..8).collect();
        let found = cores(dir.path(), &all).unwrap();
        let expect = |socket, numa, a, b| Core { socket, numa, cpus: vec![a, b] };
        assert_eq!(found, [expect(0, 0, 0, 4), expect(0, 0, 1, 5), expect(1, 1, 2, 6), expect(1, 1, 3, 7)]);
    }

    #[test]
    fn only_cpus_of_our_own_cpuset_count() {
        let dir = tempfile::tempdir().unwrap();
        machine(dir.path(), &[(0, 0, "0-1"), (1, 0, "0-1"), (2, 0, "2"), (3, 0, "3")], &[(0, "0-3")]);
        let found = cores(dir.path(), &[1, 3].into()).unwrap();
        assert_eq!(found.iter().map(|c| c.cpus.clone()).collect::<Vec<_>>(), [vec![1], vec![3]]);
    }

    #[test]
    fn a_machine_that_says_nothing_of_itself_still_has_its_cpus() {
        let dir = tempfile::tempdir().unwrap();
        let found = cores(dir.path(), &[0, 1].into()).unwrap();
        assert_eq!(found.len(), 2);
        assert!(cores(dir.path(), &BTreeSet::new()).is_err());
    }

    #[test]
    fn this_machine_is_read() {
        let found = hardware(false).unwrap();
        assert!(found.cpus() >= 1 && found.memory > found.memory_reserved);
        assert!(!found.arch.is_empty() && found.os.starts_with("Linux "));
        assert!(boot().unwrap().time.secs() > 1_000_000_000);
    }

    #[test]
    fn lists_of_the_kernel_are_read_and_garbage_is_nothing() {
        assert_eq!(parse_list("0-2,5"), [0, 1, 2, 5]);
        assert!(parse_list("").is_empty() && parse_list("x-y,,").is_empty());
    }
}
