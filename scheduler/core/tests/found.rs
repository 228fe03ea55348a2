//! Devices that an agent found itself, beside the configuration's.
#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test

mod common;

use berth_model::config::{Config, GresConfig, NodeConfig};
use berth_model::hardware::{Hardware, Vendor};
use berth_sched_core::*;
use common::*;

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
