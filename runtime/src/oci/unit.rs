//! A container's control group as a scope of systemd's (`--systemd-cgroup`): its name, and what systemd is told of limits.
//!
//! systemd writes limits anew whenever it looks at a unit, so it must know those that it has words for. All of them
//! are written to the group afterwards as well: exactly, where systemd rounds, and those that it does not know.
//! Devices are not among what it is told: its program would be a second one beside ours, and both must allow.

use super::error::{Result, invalid, unsupported};
use super::gvariant::variant;
use super::plan::resources::Changes;
use crate::systemd::{self, Property};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long systemd may take to move a process.
const PATIENCE: Duration = Duration::from_secs(10);
/// systemd takes shares of a second of CPU time in steps of a hundredth.
const STEP: u64 = 10_000;
/// Annotations that are properties of the unit, as runc has them.
const ANNOTATION: &str = "org.systemd.property.";

/// A scope that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: String,
    slice: String,
    /// From the configuration's annotations.
    extra: Vec<Property>,
}

impl Unit {
    /// The scope of a container: `linux.cgroupsPath` is `slice:prefix:name`, each of which may be empty.
    ///
    /// # Errors
    /// There is no systemd, or it has not all control groups, or the configuration means none of its names.
    pub fn of(
        path: Option<&Path>,
        annotations: &BTreeMap<String, String>,
        id: &str,
        pure_v2: bool,
    ) -> Result<Unit> {
        if let Some(why) = systemd::missing() {
            return Err(invalid(
                format!("--systemd-cgroup cannot be had: {why}"),
                "leave it out, and control groups are made directly (podman: --cgroup-manager cgroupfs)",
            ));
        }
        if !pure_v2 {
            return Err(unsupported(
                "--systemd-cgroup with control groups of version 1",
                "leave it out, or start the node with systemd.unified_cgroup_hierarchy=1",
            ));
        }
        named(path, annotations, id, systemd::user().is_some())
    }

    /// Has systemd make the scope around a process, which is there after [`wait`].
    ///
    /// # Errors
    /// What systemd said.
    pub fn start(&self, pid: i32, changes: &Changes) -> Result<()> {
        let mut properties = vec![
            Property::new("Description", "s", format!("container {}", self.name)),
            Property::new("Slice", "s", &self.slice),
            Property::new("Delegate", "b", true),
            Property::new("DefaultDependencies", "b", false),
            Property::new("CollectMode", "s", "inactive-or-failed"),
            Property::list("PIDs", "au", [pid]),
        ];
        let accounted = ["MemoryAccounting", "CPUAccounting", "IOAccounting", "TasksAccounting"];
        properties.extend(accounted.map(|name| Property::new(name, "b", true)));
        properties.extend(limits(changes)?);
        properties.extend(self.extra.iter().cloned());
        systemd::start_scope(&self.name, &properties).map_err(|why| {
            invalid(
                format!("systemd makes no unit {}: {why}", self.name),
                "look at linux.cgroupsPath, linux.resources and the annotations org.systemd.property.*, or leave \
                 --systemd-cgroup out",
            )
        })
    }
}

/// Moves a process into the unit's group, or one below it; systemd may where an ordinary user may not.
///
/// # Errors
/// What systemd said.
pub fn attach(name: &str, group: &Path, pid: i32) -> Result<()> {
    let unit = group.ancestors().find(|dir| is(dir, name)).unwrap_or(group);
    let below = Path::new("/").join(group.strip_prefix(unit).unwrap_or(Path::new("")));
    let failed = |why: String| invalid(format!("cannot move a process into {name}: {why}"), gone(name));
    let number = u32::try_from(pid).map_err(|e| failed(e.to_string()))?;
    systemd::attach(name, &below.to_string_lossy(), number).map_err(failed)?;
    wait(name, pid).map(drop)
}

/// Tells systemd of other limits.
///
/// # Errors
/// What systemd said.
pub fn update(name: &str, changes: &Changes) -> Result<()> {
    let properties = limits(changes)?;
    if properties.is_empty() {
        return Ok(());
    }
    systemd::set(name, &properties)
        .map_err(|why| invalid(format!("systemd does not change {name}: {why}"), gone(name)))
}

fn gone(name: &str) -> String {
    let user = if systemd::user().is_some() { "--user " } else { "" };
    format!("look at it with systemctl {user}status {name}")
}

fn is(dir: &Path, name: &str) -> bool {
    dir.file_name().is_some_and(|last| last == name)
}

/// Waits until a process is in the unit's group or below, and returns the unit's path in the hierarchy.
///
/// # Errors
/// systemd does not move it.
pub fn wait(name: &str, pid: i32) -> Result<PathBuf> {
    let end = Instant::now() + PATIENCE;
    loop {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let path = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let found = Path::new(path).ancestors().find(|dir| is(dir, name));
        if let Some(found) = found {
            return Ok(found.to_path_buf());
        }
        if Instant::now() > end {
            return Err(invalid(format!("systemd did not move process {pid} into {name}"), gone(name)));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn named(path: Option<&Path>, annotations: &BTreeMap<String, String>, id: &str, user: bool) -> Result<Unit> {
    let text = match path {
        None => format!(":berth-oci:{id}"),
        Some(path) => path.to_string_lossy().into_owned(),
    };
    let wrong = |next: &str| invalid(format!("linux.cgroupsPath is {text:?} with --systemd-cgroup"), next);
    let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..] else {
        return Err(wrong("there it is slice:prefix:name, as in system.slice:app:one"));
    };
    let slice = match slice {
        "" if user => "user.slice",
        "" => "system.slice",
        "-" => "-.slice",
        slice if slice.ends_with(".slice") && !slice.contains('/') => slice,
        _ => {
            return Err(wrong(
                "its first part is the name of a slice, as in user-1000.slice, without slashes",
            ));
        }
    };
    if name.is_empty() || name.contains('/') || prefix.contains('/') {
        return Err(wrong("its last part is a name, and nothing in it has slashes"));
    }
    if name.ends_with(".slice") {
        return Err(wrong("a container is a scope here and no slice: give another name"));
    }
    let extra = annotations
        .iter()
        .filter_map(|(key, value)| Some((key, key.strip_prefix(ANNOTATION)?, value)))
        .map(|(key, name, value)| {
            property(name, value).ok_or_else(|| {
                invalid(
                    format!("the annotation {key} is {value:?}"),
                    "it is a property's name and a value as of GVariant: true, 5, uint64 5, 'text', ['a', 'b']",
                )
            })
        })
        .collect::<Result<_>>()?;
    Ok(Unit { name: format!("{prefix}-{name}.scope"), slice: slice.into(), extra })
}

/// What systemd has words for.
fn limits(changes: &Changes) -> Result<Vec<Property>> {
    let mut found: Vec<Property> = Vec::new();
    for write in changes.writes.iter().filter(|w| w.v2) {
        let wrong = || {
            invalid(format!("{:?} is no value for {}", write.value, write.file), "correct linux.resources")
        };
        let value = write.value.trim();
        let number = || match value {
            "max" => Ok(u64::MAX),
            n => n.parse::<u64>().map_err(|_| wrong()),
        };
        let simple = match write.file.as_str() {
            "memory.max" => "MemoryMax",
            "memory.high" => "MemoryHigh",
            "memory.low" => "MemoryLow",
            "memory.min" => "MemoryMin",
            "memory.swap.max" => "MemorySwapMax",
            "pids.max" => "TasksMax",
            "cpu.weight" => "CPUWeight",
            "cpuset.cpus" | "cpuset.mems" => {
                let name = if write.file == "cpuset.cpus" { "AllowedCPUs" } else { "AllowedMemoryNodes" };
                found.push(Property::list(name, "ay", bits(value).ok_or_else(wrong)?));
                continue;
            }
            "cpu.max" => {
                let mut words = value.split_whitespace();
                let quota = words.next().ok_or_else(wrong)?;
                let period = words.next().map_or(Ok(100_000), str::parse::<u64>).map_err(|_| wrong())?;
                let share = match quota {
                    "max" => u64::MAX,
                    n => n
                        .parse::<u64>()
                        .ok()
                        .and_then(|n| {
                            n.checked_mul(1_000_000)?.checked_div(period)?.checked_next_multiple_of(STEP)
                        })
                        .ok_or_else(wrong)?,
                };
                found.push(Property::new("CPUQuotaPerSecUSec", "t", share));
                found.push(Property::new("CPUQuotaPeriodUSec", "t", period));
                continue;
            }
            _ => continue,
        };
        found.push(Property::new(simple, "t", number()?));
    }
    Ok(found)
}

/// Most CPUs or memory nodes that a list may name.
const MOST: usize = 8192;

/// `0-2,5` as a bit mask, the lowest first.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut mask: Vec<u8> = Vec::new();
    for part in list.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        for n in first..=last {
            if mask.len() <= n / 8 {
                mask.resize(n / 8 + 1, 0);
            }
            mask[n / 8] |= 1 << (n % 8);
        }
    }
    Some(mask)
}

/// A property from its annotation. `...Sec` is a time in seconds, which systemd has in microseconds.
fn property(name: &str, value: &str) -> Option<Property> {
    if name.len() < 3 || !name.bytes().all(|b| b.is_ascii_alphabetic()) {
        return None;
    }
    let seconds = name.strip_suffix("Sec").filter(|rest| rest.ends_with(|c: char| c.is_ascii_lowercase()));
    let (signature, words) = variant(value.trim())?;
    match seconds {
        None => Some(Property { name: name.into(), signature, words }),
        Some(rest) => {
            let seconds: f64 = words.first().filter(|_| "nqiuxtd".contains(&signature))?.parse().ok()?;
            let micro = Duration::try_from_secs_f64(seconds).ok()?.as_micros();
            Some(Property::new(&format!("{rest}USec"), "t", u64::try_from(micro).ok()?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::plan::resources::{self, Controllers};

    fn unit(path: Option<&str>, user: bool) -> Result<String> {
        let found = named(path.map(Path::new), &BTreeMap::new(), "id", user)?;
        Ok(format!("{} {}", found.slice, found.name))
    }

    #[test]
    fn names() {
        assert_eq!(unit(None, false).unwrap(), "system.slice berth-oci-id.scope");
        assert_eq!(unit(None, true).unwrap(), "user.slice berth-oci-id.scope");
        assert_eq!(unit(Some("machine.slice:libpod:5e"), false).unwrap(), "machine.slice libpod-5e.scope");
        assert_eq!(unit(Some("-:p:n"), false).unwrap(), "-.slice p-n.scope");
        assert_eq!(unit(Some("::n"), false).unwrap(), "system.slice -n.scope");
        for (path, word) in [
            ("/a/b", "slice:prefix:name"),
            ("a:b:c:d", "slice:prefix:name"),
            ("system:p:n", "name of a slice"),
            ("a.slice/b.slice:p:n", "without slashes"),
            ("a.slice:p:", "last part"),
            ("a.slice:p:../n", "slashes"),
            ("a.slice:p:n.slice", "scope"),
        ] {
            let said = unit(Some(path), false).unwrap_err().to_string();
            assert!(said.contains(word) && said.contains(path), "{said}");
        }
    }

    #[test]
    fn systemd_is_told_the_limits_it_knows() {
        let told = |json: &str| -> Result<String> {
            let v2 = ["memory", "cpu", "cpuset", "pids", "io"].map(String::from).into();
            let controllers = Controllers { v1: Default::default(), v2 };
            let changes = resources::plan(&serde_json::from_str(json).unwrap(), &controllers).unwrap();
            let all = limits(&changes)?;
            let texts = all.iter().map(|p| format!("{}={} {}", p.name, p.signature, p.words.join(" ")));
            Ok(texts.collect::<Vec<_>>().join("; "))
        };
        assert_eq!(
            told(r#"{"memory":{"limit":1000,"swap":3000,"reservation":500},"pids":{"limit":-1}}"#).unwrap(),
            format!("MemoryMax=t 1000; MemorySwapMax=t 2000; MemoryLow=t 500; TasksMax=t {}", u64::MAX)
        );
        assert_eq!(
            told(r#"{"cpu":{"shares":1024,"quota":33333,"period":100000,"cpus":"0-2,9","mems":"0"}}"#)
                .unwrap(),
            "CPUWeight=t 39; CPUQuotaPerSecUSec=t 340000; CPUQuotaPeriodUSec=t 100000; AllowedCPUs=ay 2 7 2; \
             AllowedMemoryNodes=ay 1 1"
        );
        assert_eq!(
            told(r#"{"unified":{"memory.high":"max","io.max":"8:0 rbps=5"}}"#).unwrap(),
            format!("MemoryHigh=t {}", u64::MAX)
        );
        for wrong in
            ["memory.high\":\"much", "cpu.max\":\"5 0", "cpuset.cpus\":\"3-1", "cpuset.cpus\":\"0-99999999"]
        {
            let said = told(&format!(r#"{{"unified":{{"{wrong}"}}}}"#)).unwrap_err().to_string();
            assert!(said.contains("linux.resources"), "{said}");
        }
    }

    #[test]
    fn annotations() {
        for (name, value, expected) in [
            ("TimeoutStopUSec", "uint64 123456789", "TimeoutStopUSec t 123456789"),
            ("CollectMode", "'inactive-or-failed'", "CollectMode s inactive-or-failed"),
            ("TimeoutStopSec", "1.5", "TimeoutStopUSec t 1500000"),
            ("TimeoutStopSec", "uint32 3", "TimeoutStopUSec t 3000000"),
            ("After", "['a.service', \"b, c\"]", "After as 2 a.service b, c"),
        ] {
            let found = property(name, value).unwrap_or_else(|| panic!("{value}"));
            assert_eq!(format!("{} {} {}", found.name, found.signature, found.words.join(" ")), expected);
        }
        for (name, value) in [
            ("X", "1"),
            ("Two words", "1"),
            ("TimeoutStopSec", "'soon'"),
            ("TimeoutStopSec", "-1"),
            ("Name", "bare"),
        ] {
            assert_eq!(property(name, value), None, "{name} {value}");
        }
        let wrong = BTreeMap::from([("org.systemd.property.Name".to_string(), "{}".to_string())]);
        let said = named(None, &wrong, "id", false).unwrap_err().to_string();
        assert!(said.contains("org.systemd.property.Name") && said.contains("GVariant"), "{said}");
    }
}
