//! Devices that an agent says are faulty: told while jobs run, given to nobody, and given again when they are well.
#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test

mod common;

use berth_model::config::Config;
use berth_model::hardware::{Hardware, Vendor};
use berth_model::ids::Attempt;
use berth_model::launch::StepPhase;
use berth_model::state::{ExitStatus, JobState};
use berth_model::tres::GresKey;
use common::*;

fn two(fault: Option<&str>) -> Hardware {
    let mut hw = hardware(4, 1, 8000, 2);
    for (n, device) in (0..).zip(&mut hw.gres) {
        device.vendor = Vendor::Nvidia;
        device.files = vec![format!("/dev/nvidia{n}").into()];
        device.bus = Some(format!("0000:{n:02x}:00.0"));
    }
    hw.gres[1].fault = fault.map(Into::into);
    hw
}

fn wants(w: &mut World, name: &str, gpus: u64) -> berth_model::JobId {
    w.batch(name, |s| {
        s.resources.tasks = Some(1);
        s.resources.gres.insert(GresKey { name: "gpu".into(), kind: None }, gpus);
    })
}

/// The agent starts anew beside a job that runs.
fn again(w: &mut World, job: berth_model::JobId, hw: Hardware) {
    let steps = vec![(batch_key(job, 0), StepPhase::Running)];
    w.hello("n1", "boot", hw, steps, vec![(job, Attempt(0))]);
}

#[test]
fn a_device_is_fenced_while_jobs_run_and_given_again_when_it_is_well() {
    let mut w = World::new(&Config::default());
    w.node("n1", two(None));
    let first = wants(&mut w, "1", 1);
    assert_eq!(w.state(first), JobState::Running);
    again(&mut w, first, two(Some("it fell off the bus")));
    assert_eq!(w.state(first), JobState::Running, "what runs goes on");
    let second = wants(&mut w, "2", 1);
    assert_eq!(w.state(second), JobState::Pending);
    w.exited("n1", batch_key(first, 0), ExitStatus::OK);
    w.gone("n1", first, 0);
    assert_eq!(w.state(second), JobState::Running, "the other one is well");
    let third = wants(&mut w, "3", 1);
    assert_eq!(w.state(third), JobState::Pending);
    again(&mut w, second, two(None));
    assert_eq!(w.state(third), JobState::Running);
}
