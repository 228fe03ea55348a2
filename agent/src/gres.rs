//! The node's generic resources, as the configuration names them.

use berth_model::ByteStr;
use berth_model::config::Config;
use berth_model::hardware::GresDevice;
use berth_model::hostlist;
use berth_model::ids::NodeName;
use berth_runtime::cgroup::DeviceRule;
use std::collections::BTreeMap;

/// Devices of `node`, ordered by name and index; with what is wrong about the configuration. Those that CDI files name have no device
/// files yet.
pub fn devices(config: &Config, node: &NodeName) -> (Vec<GresDevice>, Vec<String>) {
    let (mut devices, mut wrong) = (Vec::new(), Vec::new());
    let mut next: BTreeMap<(String, bool), u32> = BTreeMap::new();
    for section in config.nodes.iter().filter(|s| is_about(&s.name, node)) {
        for gres in &section.gres {
            // The node itself says of those that CDI files name which they are, and counts them before others.
            let by_name = !gres.cdi.is_empty();
            let mut add = |files: Vec<ByteStr>, cdi: Option<String>| {
                let index = next.entry((gres.name.clone(), by_name)).or_default();
                devices.push(GresDevice {
                    name: gres.name.clone(),
                    kind: gres.kind.clone(),
                    index: *index,
                    files,
                    cdi,
                    ..GresDevice::default()
                });
                *index += 1;
            };
            match gres.cdi_names() {
                Ok(names) => names.into_iter().for_each(|name| add(Vec::new(), Some(name))),
                Err(e) => wrong.push(format!("gres {}: {e}", gres.name)),
            }
            if by_name {
                continue;
            }
            // What only describes devices that are found is none.
            let counted = gres.count.is_some() || !gres.describes();
            if gres.files.is_empty() && counted {
                (0..gres.count.unwrap_or(1)).for_each(|_| add(Vec::new(), None));
            }
            for pattern in &gres.files {
                match hostlist::expand(&pattern.display()) {
                    Ok(files) => files.into_iter().for_each(|file| add(vec![ByteStr::from(file)], None)),
                    Err(e) => wrong.push(format!("gres {}: {e}", gres.name)),
                }
            }
        }
    }
    devices.sort_by(|a, b| (&a.name, a.index).cmp(&(&b.name, b.index)));
    (devices, wrong)
}

/// Devices of `files` that cannot be given, with the reason: their file is not there, or is another one's as well, so that they would be
/// given twice. Names do not say that: one may be a link, or a file of its own with the same numbers. `found`: those that the node finds
/// by itself. `number`: what a file is, or why it is nothing.
pub fn unfit(
    by_file: &[GresDevice],
    found: &[GresDevice],
    number: &dyn Fn(&ByteStr) -> Result<DeviceRule, String>,
) -> Vec<GresDevice> {
    let of = |device: &GresDevice| device.files.iter().filter_map(|f| number(f).ok()).collect::<Vec<_>>();
    let of_found: Vec<(&GresDevice, Vec<DeviceRule>)> = found.iter().map(|d| (d, of(d))).collect();
    let mut earlier: Vec<(DeviceRule, &ByteStr)> = Vec::new();
    let mut faulty = Vec::new();
    for (at, device) in by_file.iter().enumerate() {
        let Some(file) = device.files.first() else { continue };
        // Another section says more of the same one.
        if by_file.iter().take(at).any(|d| d.name == device.name && d.files == device.files) {
            continue;
        }
        // That says something of a device which the node finds.
        if found.iter().any(|d| d.name == device.name && d.files.contains(file)) {
            continue;
        }
        let name = file.display();
        let is = match number(file) {
            Ok(is) => is,
            Err(why) => {
                let fault = Some(format!("its file {name} is no device of this node: {why}"));
                faulty.push(GresDevice { fault, ..device.clone() });
                continue;
            }
        };
        let fault = if let Some((other, _)) = of_found.iter().find(|(_, all)| all.contains(&is)) {
            let (other, index) = (&other.name, other.index);
            Some(format!(
                "its file {name} is one of {other} {index}'s, which the node finds by itself: leave it out of 'files', or name it as the node does"
            ))
        } else {
            let other = earlier.iter().find(|(known, _)| *known == is);
            other.map(|(_, other)| {
                format!(
                    "its file {name} is the same device as {}, which 'files' names, too: leave one out",
                    other.display()
                )
            })
        };
        match fault {
            Some(why) => faulty.push(GresDevice { fault: Some(why), ..device.clone() }),
            None => earlier.push((is, file)),
        }
    }
    faulty
}

/// Memory held back on `node`, where the configuration says so.
pub fn memory_reserved(config: &Config, node: &NodeName) -> Option<u64> {
    config.nodes.iter().rfind(|s| is_about(&s.name, node) && s.memory_reserved.is_some())?.memory_reserved
}

fn is_about(names: &str, node: &NodeName) -> bool {
    names.eq_ignore_ascii_case("all") || hostlist::nodes(names).is_ok_and(|nodes| nodes.contains(node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::config::{GresConfig, NodeConfig};

    #[test]
    fn files_are_devices_and_counts_are_counts() {
        let gpu = GresConfig {
            name: "gpu".into(),
            kind: Some("a100".into()),
            files: vec!["/dev/nvidia[0-1]".into()],
            ..GresConfig::default()
        };
        let license = GresConfig { name: "disk".into(), count: Some(2), ..GresConfig::default() };
        let section =
            NodeConfig { name: "n[1-2]".into(), memory_reserved: Some(9), gres: vec![license, gpu] };
        let config = Config { nodes: vec![section], ..Config::default() };
        let (found, wrong) = devices(&config, &"n2".into());
        assert!(wrong.is_empty());
        let text: Vec<String> =
            found.iter().map(|d| format!("{}{} {:?}", d.name, d.index, d.files)).collect();
        assert_eq!(text, ["disk0 []", "disk1 []", "gpu0 [\"/dev/nvidia0\"]", "gpu1 [\"/dev/nvidia1\"]"]);
        assert_eq!(devices(&config, &"n3".into()).0, []);
        let named =
            GresConfig { name: "gpu".into(), cdi: vec!["v.com/x=[0-1]".into()], ..GresConfig::default() };
        // As the controller reads it.
        let section = NodeConfig { name: "all".into(), gres: vec![named], ..NodeConfig::default() };
        let (found, wrong) = devices(&Config { nodes: vec![section], ..Config::default() }, &"n3".into());
        let text: Vec<_> = found.iter().map(|d| (d.index, d.cdi.as_deref().unwrap_or_default())).collect();
        assert_eq!((text, wrong.len()), (vec![(0, "v.com/x=0"), (1, "v.com/x=1")], 0));
        assert_eq!(memory_reserved(&config, &"n1".into()), Some(9));
    }

    #[test]
    fn a_file_that_is_gone_or_another_devices_too_is_told_by_its_numbers() {
        use berth_runtime::cgroup::DeviceKind;
        let device = |name: &str, files: &[&str]| GresDevice {
            name: name.into(),
            files: files.iter().map(|file| (*file).into()).collect(),
            ..GresDevice::default()
        };
        // `/dev/a1` and `/dev/link1` are one device, whatever they are called.
        let number = |file: &ByteStr| -> Result<DeviceRule, String> {
            let minor = file.display().chars().last().and_then(|c| c.to_digit(10)).ok_or("it is gone")?;
            let kind = if file.display().contains("block") { DeviceKind::Block } else { DeviceKind::Char };
            Ok(DeviceRule { kind, major: Some(9), minor: Some(minor), make_only: false })
        };
        let faults = |by_file: &[GresDevice], found: &[GresDevice]| {
            let all = unfit(by_file, found, &number).into_iter();
            all.map(|d| (d.files[0].display().into_owned(), d.fault.unwrap_or_default())).collect::<Vec<_>>()
        };
        let three =
            [device("acc", &["/dev/a1"]), device("other", &["/dev/link1"]), device("acc", &["/dev/block1"])];
        let wrong = faults(&three, &[]);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].0 == "/dev/link1" && wrong[0].1.contains("same device as /dev/a1"), "{wrong:?}");
        // Two sections name one device: that is one, be it well or not.
        let (a, none) = (device("acc", &["/dev/a1"]), device("acc", &["/dev/none"]));
        assert!(faults(&[a.clone(), a.clone()], &[]).is_empty());
        assert_eq!(faults(&[none.clone(), a, none], &[]).len(), 1);
        let found = [device("gpu", &["/dev/g0", "/dev/ctl9"])];
        assert!(faults(&[device("gpu", &["/dev/g0"])], &found).is_empty(), "its type is said");
        for other in
            [device("acc", &["/dev/g0"]), device("gpu", &["/dev/link0"]), device("acc", &["/dev/ctl9"])]
        {
            let wrong = faults(&[other], &found);
            assert!(wrong[0].1.contains("one of gpu 0's"), "{wrong:?}");
        }
        let wrong = faults(&[device("acc", &["/dev/none"]), device("acc", &[])], &[]);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].1.contains("/dev/none is no device of this node: it is gone"), "{wrong:?}");
    }
}
