//! From linux.resources to the files of control groups, in whichever version holds each controller.

use crate::cgroup::{DeviceAccess, DeviceKind};
use crate::oci::error::{Result, invalid, unsupported};
use oci_spec::runtime::{LinuxDeviceType, LinuxResources};
use std::collections::BTreeSet;

/// Which controllers are where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Controllers {
    /// In hierarchies of version 1.
    pub v1: BTreeSet<String>,
    /// In version 2.
    pub v2: BTreeSet<String>,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Which controller's group.
    pub controller: String,
    /// In version 2.
    pub v2: bool,
    /// The file.
    pub file: String,
    /// What is written.
    pub value: String,
}

/// What is done to a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In this order.
    pub writes: Vec<Write>,
    /// Device rules in order, the last that matches decides; absent where none are asked for.
    pub devices: Option<Vec<DeviceAccess>>,
    /// A memory limit below what is in use is refused instead of killing.
    pub check_memory: Option<u64>,
}

struct Planner<'a> {
    controllers: &'a Controllers,
    out: Changes,
}

impl Planner<'_> {
    fn write(
        &mut self,
        controller: &str,
        v1: (&str, String),
        v2: Option<(&str, String)>,
        what: &str,
    ) -> Result<()> {
        let in_v1 = self.controllers.v1.contains(controller);
        if !in_v1 && !self.controllers.v2.contains(controller) {
            return Err(unsupported(
                format!("linux.resources.{what}"),
                format!("no {controller} controller can be used here: leave it out"),
            ));
        }
        let (file, value) = match v2 {
            _ if in_v1 => v1,
            Some(v2) => v2,
            None => {
                return Err(unsupported(
                    format!("linux.resources.{what}"),
                    "control groups of version 2 have nothing like it: leave it out",
                ));
            }
        };
        self.out.writes.push(Write { controller: controller.into(), v2: !in_v1, file: file.into(), value });
        Ok(())
    }
}

/// -1 is no limit.
fn limit(n: i64) -> String {
    if n < 0 { "max".into() } else { n.to_string() }
}

/// Plans the changes; `update` leaves out what a new group alone needs.
///
/// # Errors
/// A resource whose controller is not there, or a value that no group takes, by name.
pub fn plan(r: &LinuxResources, controllers: &Controllers) -> Result<Changes> {
    let mut p = Planner { controllers, out: Changes::default() };
    memory(r, &mut p)?;
    cpu(r, &mut p)?;
    if let Some(pids) = r.pids() {
        // As in runc, 0 leaves the limit as it is.
        if pids.limit() != 0 {
            let value = limit(pids.limit());
            p.write("pids", ("pids.max", value.clone()), Some(("pids.max", value)), "pids")?;
        }
    }
    block_io(r, &mut p)?;
    for huge in r.hugepage_limits().iter().flatten() {
        let size = huge.page_size();
        let plain = size.bytes().all(|b| b.is_ascii_alphanumeric());
        if !plain {
            return Err(invalid(format!("a page size of {size:?}"), "such as 2MB"));
        }
        let value = huge.limit().to_string();
        let (v1, v2) = (format!("hugetlb.{size}.limit_in_bytes"), format!("hugetlb.{size}.max"));
        p.write("hugetlb", (&v1, value.clone()), Some((&v2, value)), "hugepageLimits")?;
    }
    if let Some(network) = r.network() {
        if let Some(class) = network.class_id() {
            p.write("net_cls", ("net_cls.classid", class.to_string()), None, "network.classID")?;
        }
        for priority in network.priorities().iter().flatten() {
            let value = format!("{} {}", priority.name(), priority.priority());
            p.write("net_prio", ("net_prio.ifpriomap", value), None, "network.priorities")?;
        }
    }
    for (device, rdma) in r.rdma().iter().flatten() {
        let mut value = device.clone();
        let parts = [("hca_handle", rdma.hca_handles()), ("hca_object", rdma.hca_objects())];
        for (key, n) in parts.into_iter().filter_map(|(key, n)| n.map(|n| (key, n))) {
            value.push_str(&format!(" {key}={n}"));
        }
        p.write("rdma", ("rdma.max", value.clone()), Some(("rdma.max", value)), "rdma")?;
    }
    unified(r, &mut p)?;
    devices(r, &mut p.out)?;
    Ok(p.out)
}

fn memory(r: &LinuxResources, p: &mut Planner<'_>) -> Result<()> {
    let Some(m) = r.memory() else { return Ok(()) };
    let v1 = p.controllers.v1.contains("memory");
    if let (Some(limit), Some(swap)) = (m.limit(), m.swap())
        && limit >= 0
        && (0..limit).contains(&swap)
    {
        return Err(invalid(
            "linux.resources.memory.swap is below the limit",
            "it counts memory and swap together",
        ));
    }
    if let (Some(n), Some(true)) = (m.limit(), m.check_before_update()) {
        p.out.check_memory = u64::try_from(n).ok();
    }
    let number = |n: i64| if v1 { n.to_string() } else { limit(n) };
    let mut pair = Vec::new();
    if let Some(n) = m.limit() {
        pair.push(("memory.limit_in_bytes", number(n), "memory.max", number(n), "memory.limit"));
    }
    if let Some(n) = m.swap() {
        // Version 2 counts swap alone.
        let alone = match (n, m.limit()) {
            (n, _) if n < 0 => "max".to_string(),
            (n, Some(memory)) if memory >= 0 => (n - memory).to_string(),
            _ if v1 => String::new(),
            _ => {
                return Err(invalid("linux.resources.memory.swap without a limit", "give memory.limit too"));
            }
        };
        pair.push(("memory.memsw.limit_in_bytes", number(n), "memory.swap.max", alone, "memory.swap"));
    }
    for (f1, n1, f2, n2, what) in pair {
        p.write("memory", (f1, n1), Some((f2, n2)), what)?;
    }
    if let Some(n) = m.reservation() {
        p.write(
            "memory",
            ("memory.soft_limit_in_bytes", number(n)),
            Some(("memory.low", number(n))),
            "memory.reservation",
        )?;
    }
    #[allow(deprecated, reason = "a configuration may still have it")]
    if let Some(n) = m.kernel() {
        p.write("memory", ("memory.kmem.limit_in_bytes", n.to_string()), None, "memory.kernel")?;
    }
    if let Some(n) = m.kernel_tcp() {
        p.write("memory", ("memory.kmem.tcp.limit_in_bytes", n.to_string()), None, "memory.kernelTCP")?;
    }
    if let Some(n) = m.swappiness() {
        if n > 100 {
            return Err(invalid(format!("a swappiness of {n}"), "0 to 100"));
        }
        p.write("memory", ("memory.swappiness", n.to_string()), None, "memory.swappiness")?;
    }
    if m.disable_oom_killer() == Some(true) {
        p.write("memory", ("memory.oom_control", "1".into()), None, "memory.disableOOMKiller")?;
    }
    Ok(())
}

fn cpu(r: &LinuxResources, p: &mut Planner<'_>) -> Result<()> {
    let Some(c) = r.cpu() else { return Ok(()) };
    // 0 is "not given" to the tools that write these.
    if let Some(n) = c.shares().filter(|n| *n != 0) {
        let clamped = n.clamp(2, 262_144);
        let weight = 1 + (clamped - 2) * 9999 / 262_142;
        p.write(
            "cpu",
            ("cpu.shares", n.to_string()),
            Some(("cpu.weight", weight.to_string())),
            "cpu.shares",
        )?;
    }
    let (quota, period) = (c.quota().filter(|n| *n != 0), c.period().filter(|n| *n != 0));
    if p.controllers.v1.contains("cpu") {
        if let Some(n) = period {
            p.write("cpu", ("cpu.cfs_period_us", n.to_string()), None, "cpu.period")?;
        }
        if let Some(n) = quota {
            p.write("cpu", ("cpu.cfs_quota_us", n.to_string()), None, "cpu.quota")?;
        }
    } else if quota.is_some() || period.is_some() {
        let value = format!("{} {}", limit(quota.unwrap_or(-1)), period.unwrap_or(100_000));
        p.write("cpu", ("", String::new()), Some(("cpu.max", value)), "cpu.quota")?;
    }
    if let Some(n) = c.burst() {
        let value = n.to_string();
        p.write("cpu", ("cpu.cfs_burst_us", value.clone()), Some(("cpu.max.burst", value)), "cpu.burst")?;
    }
    if let Some(n) = c.idle() {
        p.write("cpu", ("cpu.idle", n.to_string()), Some(("cpu.idle", n.to_string())), "cpu.idle")?;
    }
    if let Some(n) = c.realtime_period().filter(|n| *n != 0) {
        p.write("cpu", ("cpu.rt_period_us", n.to_string()), None, "cpu.realtimePeriod")?;
    }
    if let Some(n) = c.realtime_runtime().filter(|n| *n != 0) {
        p.write("cpu", ("cpu.rt_runtime_us", n.to_string()), None, "cpu.realtimeRuntime")?;
    }
    for (file, value) in [("cpuset.cpus", c.cpus()), ("cpuset.mems", c.mems())] {
        if let Some(value) = value.as_ref().filter(|v| !v.is_empty()) {
            p.write(
                "cpuset",
                (file, value.clone()),
                Some((file, value.clone())),
                &format!("cpu.{}", &file[7..]),
            )?;
        }
    }
    Ok(())
}

fn block_io(r: &LinuxResources, p: &mut Planner<'_>) -> Result<()> {
    let Some(b) = r.block_io() else { return Ok(()) };
    if let Some(n) = b.weight().filter(|n| *n != 0) {
        p.write("blkio", ("blkio.bfq.weight", n.to_string()), None, "blockIO.weight").or_else(|e| {
            let Some(io) = p.controllers.v2.get("io").cloned() else { return Err(e) };
            p.write(&io, ("", String::new()), Some(("io.bfq.weight", n.to_string())), "blockIO.weight")
        })?;
    }
    if b.leaf_weight().is_some_and(|n| n != 0) {
        return Err(unsupported(
            "linux.resources.blockIO.leafWeight",
            "kernels since 5.0 have no such thing: leave it out",
        ));
    }
    for w in b.weight_device().iter().flatten() {
        if w.leaf_weight().is_some_and(|n| n != 0) {
            return Err(unsupported(
                "linux.resources.blockIO.weightDevice.leafWeight",
                "kernels since 5.0 have no such thing: leave it out",
            ));
        }
        if let Some(n) = w.weight() {
            let value = format!("{}:{} {n}", w.major(), w.minor());
            let (controller, v2) = io(p);
            p.write(
                controller,
                ("blkio.bfq.weight_device", value.clone()),
                v2.then_some(("io.bfq.weight", value)),
                "blockIO.weightDevice",
            )?;
        }
    }
    let throttles = [
        (b.throttle_read_bps_device(), "read_bps_device", "rbps", "throttleReadBpsDevice"),
        (b.throttle_write_bps_device(), "write_bps_device", "wbps", "throttleWriteBpsDevice"),
        (b.throttle_read_iops_device(), "read_iops_device", "riops", "throttleReadIOPSDevice"),
        (b.throttle_write_iops_device(), "write_iops_device", "wiops", "throttleWriteIOPSDevice"),
    ];
    for (list, file, key, what) in throttles {
        for t in list.iter().flatten() {
            let (controller, v2) = io(p);
            let one = format!("{}:{} {}", t.major(), t.minor(), t.rate());
            let two = format!("{}:{} {key}={}", t.major(), t.minor(), t.rate());
            let v1 = format!("blkio.throttle.{file}");
            p.write(controller, (&v1, one), v2.then_some(("io.max", two)), &format!("blockIO.{what}"))?;
        }
    }
    Ok(())
}

/// The controller of block devices has a name in each version.
fn io(p: &Planner<'_>) -> (&'static str, bool) {
    if p.controllers.v1.contains("blkio") { ("blkio", false) } else { ("io", true) }
}

fn unified(r: &LinuxResources, p: &mut Planner<'_>) -> Result<()> {
    let mut all: Vec<(&String, &String)> = r.unified().iter().flatten().collect();
    all.sort();
    for (file, value) in all {
        let controller = file.split('.').next().unwrap_or_default();
        if file.contains('/') || !file.contains('.') {
            return Err(invalid(
                format!("linux.resources.unified has {file:?}"),
                "it names files such as memory.high",
            ));
        }
        if controller != "cgroup" && !p.controllers.v2.contains(controller) {
            return Err(unsupported(
                format!("linux.resources.unified {file}"),
                format!("no {controller} controller of version 2 can be used here: leave it out"),
            ));
        }
        p.out.writes.push(Write {
            controller: controller.into(),
            v2: true,
            file: file.clone(),
            value: value.clone(),
        });
    }
    Ok(())
}

fn devices(r: &LinuxResources, out: &mut Changes) -> Result<()> {
    let Some(rules) = r.devices() else { return Ok(()) };
    let mut list = Vec::new();
    for rule in rules {
        let kinds: &[DeviceKind] = match rule.typ().unwrap_or(LinuxDeviceType::A) {
            LinuxDeviceType::A => &[DeviceKind::Char, DeviceKind::Block],
            LinuxDeviceType::B => &[DeviceKind::Block],
            LinuxDeviceType::C | LinuxDeviceType::U => &[DeviceKind::Char],
            LinuxDeviceType::P => {
                return Err(invalid("linux.resources.devices has a FIFO", "its types are a, b and c"));
            }
        };
        let number = |n: Option<i64>, what: &str| match n {
            None | Some(-1) => Ok(None),
            Some(n) => u32::try_from(n).map(Some).map_err(|_| {
                invalid(
                    format!("linux.resources.devices has the {what} number {n}"),
                    "0 or more, or -1 for all",
                )
            }),
        };
        let access = rule.access().as_deref().unwrap_or("rwm");
        if access.is_empty() || !access.chars().all(|c| "rwm".contains(c)) {
            return Err(invalid(
                format!("linux.resources.devices has the access {access:?}"),
                "of r, w and m",
            ));
        }
        for kind in kinds {
            list.push(DeviceAccess {
                allow: rule.allow(),
                kind: *kind,
                major: number(rule.major(), "major")?,
                minor: number(rule.minor(), "minor")?,
                read: access.contains('r'),
                write: access.contains('w'),
                make: access.contains('m'),
            });
        }
    }
    out.devices = Some(list);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(words: &[&str]) -> BTreeSet<String> {
        words.iter().map(|w| (*w).to_string()).collect()
    }

    fn written(json: &str, v1: &[&str], v2: &[&str]) -> Result<Vec<String>> {
        let r = serde_json::from_str(json).unwrap();
        let changes = plan(&r, &Controllers { v1: set(v1), v2: set(v2) })?;
        Ok(changes.writes.iter().map(|w| format!("{}={}", w.file, w.value)).collect())
    }

    const ALL: &str = r#"{"memory":{"limit":1000,"swap":3000,"reservation":500},"cpu":{"shares":1024,"quota":50000,"cpus":"0"},"pids":{"limit":-1}}"#;

    #[test]
    fn both_versions() {
        let v1 = written(ALL, &["memory", "cpu", "cpuset", "pids"], &[]).unwrap();
        assert_eq!(
            v1,
            [
                "memory.limit_in_bytes=1000",
                "memory.memsw.limit_in_bytes=3000",
                "memory.soft_limit_in_bytes=500",
                "cpu.shares=1024",
                "cpu.cfs_quota_us=50000",
                "cpuset.cpus=0",
                "pids.max=max"
            ]
        );
        let v2 = written(ALL, &[], &["memory", "cpu", "cpuset", "pids"]).unwrap();
        assert_eq!(
            v2,
            [
                "memory.max=1000",
                "memory.swap.max=2000",
                "memory.low=500",
                "cpu.weight=39",
                "cpu.max=50000 100000",
                "cpuset.cpus=0",
                "pids.max=max"
            ]
        );
    }

    #[test]
    fn what_cannot_be_had_is_refused_by_name() {
        for (json, v1, v2, word) in [
            (r#"{"pids":{"limit":5}}"#, vec![], vec![], "pids"),
            (r#"{"network":{"classID":5}}"#, vec![], vec!["memory"], "network.classID"),
            (r#"{"unified":{"memory.high":"1"}}"#, vec!["memory"], vec![], "memory.high"),
            (r#"{"unified":{"../x.y":"1"}}"#, vec![], vec!["memory"], "../x.y"),
            (r#"{"memory":{"limit":5,"swap":4}}"#, vec!["memory"], vec![], "swap"),
            (r#"{"hugepageLimits":[{"pageSize":"../x","limit":1}]}"#, vec!["hugetlb"], vec![], "page size"),
            (r#"{"devices":[{"allow":true,"access":"x"}]}"#, vec![], vec![], "access"),
        ] {
            let error = written(json, &v1, &v2).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
