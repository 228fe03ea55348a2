//! Devices that an agent found itself, beside the configuration's.

use crate::common::*;
use berth_model::config::{Config, GresConfig, NodeConfig};
use berth_model::hardware::{GresDevice, Hardware, Vendor};
use berth_sched_core::*;

fn two() -> Hardware {
    let mut hw = hardware(4, 1, 8000, 2);
    for (n, device) in (0..).zip(&mut hw.gres) {
        device.vendor = Vendor::Nvidia;
        device.files = vec![format!("/dev/nvidia{n}").into()];
        device.bus = Some(format!("0000:{n:02x}:00.0"));
    }
    hw
}

#[test]
fn what_was_found_and_is_configured_too_is_one_device_with_the_configured_type() {
    let gres = |files: &[&str]| GresConfig {
        name: "gpu".into(),
        kind: Some("mine".into()),
        files: files.iter().map(|f| (*f).into()).collect(),
        ..GresConfig::default()
    };
    let node = NodeConfig {
        name: "ALL".into(),
        gres: vec![gres(&["/dev/nvidia[0-1]"]), gres(&["/dev/other"])],
        ..NodeConfig::default()
    };
    let config = CoreConfig::new(&Config { nodes: vec![node], ..Config::default() }).unwrap();
    let whole = config.complete(&"n1".into(), &two());
    let names: Vec<(u32, &str)> = whole.gres.iter().map(|d| (d.index, d.kind.as_deref().unwrap())).collect();
    assert_eq!(names, [(0, "mine"), (1, "mine"), (2, "mine")]);
    assert_eq!((whole.gres[1].vendor, whole.gres[2].vendor), (Vendor::Nvidia, Vendor::Generic));
}

/// Of a node with two cores for each of two GPUs.
fn described(gres: GresConfig) -> Hardware {
    let node = NodeConfig { name: "ALL".into(), gres: vec![gres], ..NodeConfig::default() };
    CoreConfig::new(&Config { nodes: vec![node], ..Config::default() })
        .unwrap()
        .complete(&"n1".into(), &two())
}

#[test]
fn what_is_said_of_devices_that_were_found_is_taken_over_and_adds_none() {
    let gpu = || GresConfig { name: "gpu".into(), ..GresConfig::default() };
    let whole = described(GresConfig { shards: Some(4), ..gpu() });
    assert_eq!(whole.gres.iter().map(|d| (d.shares, d.mps)).collect::<Vec<_>>(), [(4, false), (4, false)]);
    let whole = described(GresConfig { mps: true, cores: Some("2-3".into()), ..gpu() });
    assert_eq!(whole.gres.iter().map(|d| (d.shares, d.mps)).collect::<Vec<_>>(), [(100, true), (100, true)]);
    assert!(whole.gres.iter().all(|d| d.cpus == [2, 3]), "{whole:?}");
    let one = GresConfig { files: vec!["/dev/nvidia1".into()], cores: Some("0,9".into()), ..gpu() };
    let whole = described(one);
    assert_eq!(whole.gres.iter().map(|d| d.cpus.clone()).collect::<Vec<_>>(), [vec![], vec![0]]);
    // Others are added, with what is said of them.
    let others =
        GresConfig { name: "fpga".into(), count: Some(2), cores: Some("1".into()), ..GresConfig::default() };
    let whole = described(others);
    assert_eq!(whole.gres.len(), 4);
    assert!(whole.gres.iter().filter(|d| d.name == "fpga").all(|d| d.cpus == [1]));
}

#[test]
fn devices_of_cdi_files_are_those_that_the_node_found_there() {
    let named = |names: &[&str]| GresConfig {
        name: "fpga".into(),
        cdi: names.iter().map(|name| (*name).to_string()).collect(),
        cores: Some("1".into()),
        ..GresConfig::default()
    };
    let node =
        NodeConfig { name: "ALL".into(), gres: vec![named(&["v.com/fpga=[0-2]"])], ..NodeConfig::default() };
    let config = CoreConfig::new(&Config { nodes: vec![node], ..Config::default() }).unwrap();
    let mut found = two();
    assert!(config.complete(&"n1".into(), &found).gres.iter().all(|d| d.name == "gpu"), "nobody found one");
    for index in 0..2 {
        found.gres.push(GresDevice {
            name: "fpga".into(),
            index,
            cdi: Some(format!("v.com/fpga={index}")),
            files: vec![format!("/dev/fpga{index}").into()],
            ..GresDevice::default()
        });
    }
    let whole = config.complete(&"n1".into(), &found);
    let fpgas: Vec<_> = whole.gres.iter().filter(|d| d.name == "fpga").collect();
    assert_eq!(
        fpgas.iter().map(|d| (d.index, d.cpus.clone())).collect::<Vec<_>>(),
        [(0, vec![1]), (1, vec![1])]
    );
    assert!(fpgas.iter().all(|d| d.files.len() == 1), "{fpgas:?}");
    assert!(
        whole.gres.iter().filter(|d| d.name == "gpu").all(|d| d.cpus.is_empty()),
        "of others nothing was said"
    );
}

#[test]
fn parts_of_a_device_are_given_by_the_hundredth() {
    let gres = GresConfig { name: "gpu".into(), mps: true, ..GresConfig::default() };
    let node = NodeConfig { name: "ALL".into(), gres: vec![gres], ..NodeConfig::default() };
    let mut w = World::new(&Config { nodes: vec![node], ..Config::default() });
    w.node("n1", two());
    let mut wants = |name: &str, what: &str, count| {
        w.batch(name, |s| {
            s.resources.tasks = Some(1);
            s.resources.memory = berth_model::spec::MemoryRequest::PerNode(100);
            s.resources.cpus_per_task = Some(1);
            s.resources.gres.insert(berth_model::tres::GresKey { name: what.into(), kind: None }, count);
        })
    };
    let (half, rest) = (wants("1", "mps", 60), wants("2", "mps", 40));
    let (other, late) = (wants("3", "gpu", 1), wants("4", "mps", 1));
    let given = |id| {
        let shares = w.info(id).shares;
        shares
            .iter()
            .flat_map(|share| &share.gres)
            .map(|d| (d.name.clone(), d.index, d.shares))
            .collect::<Vec<_>>()
    };
    assert_eq!(given(half), [("mps".to_string(), 0, 60)]);
    assert_eq!(given(rest), [("mps".to_string(), 0, 40)], "of the one that is in use");
    assert_eq!(given(other), [("gpu".to_string(), 1, 100)], "whole");
    assert!(given(late).is_empty(), "it waits");
}
