//! Shares of samples, by processes, by devices and by accounts.

use super::*;
use crate::sample::ProcessSample;
use berth_model::ids::{Attempt, JobId};

fn key(job: u32, step: StepId) -> StepKey {
    StepKey { job: JobId(job), step, attempt: Attempt(0) }
}

fn gpu(uuid: &str) -> GresDevice {
    GresDevice { name: "gpu".into(), uuid: Some(uuid.into()), ..GresDevice::default() }
}

fn holder(key: StepKey, gpus: &[&str]) -> Holder {
    Holder { key, devices: gpus.iter().map(|uuid| gpu(uuid)).collect() }
}

fn seen(uuid: &str, busy: u32, processes: Option<&[(u32, u64, Option<u32>)]>) -> DeviceSample {
    DeviceSample {
        uuid: Some(uuid.into()),
        busy: Some(busy),
        used: Some(1000),
        processes: processes.map(|all| {
            all.iter()
                .map(|(pid, memory, busy)| ProcessSample { pid: *pid, memory: Some(*memory), busy: *busy })
                .collect()
        }),
        ..DeviceSample::default()
    }
}

fn sample(devices: Vec<DeviceSample>) -> Sample {
    Sample { devices, trouble: None }
}

/// Processes belong to the step whose number is their hundreds.
fn owner(pid: u32) -> Option<StepKey> {
    match pid / 100 {
        0 => None,
        9 => Some(key(1, StepId::Batch)),
        n => Some(key(1, StepId::Number(n))),
    }
}

fn split(sample: &Sample, holders: &[Holder]) -> Vec<(String, u32, u32, u64)> {
    let parts = parts(sample, holders, owner);
    parts.iter().map(|(key, p)| (key.step.to_string(), p.devices, p.busy, p.memory)).collect()
}

#[test]
fn processes_count_for_their_steps() {
    let (batch, one, two) = (key(1, StepId::Batch), key(1, StepId::Number(1)), key(1, StepId::Number(2)));
    let holders = [holder(batch, &["a", "b"]), holder(one, &["a", "b"]), holder(two, &["b"])];
    let all = sample(vec![
        seen("a", 80, Some(&[(101, 10, Some(80))])),
        seen("b", 90, Some(&[(102, 20, Some(30)), (201, 40, Some(60)), (7, 500, Some(0))])),
        seen("c", 100, Some(&[(8, 1, None)])),
    ]);
    let row = |step: &str, devices, busy, memory| (step.to_string(), devices, busy, memory);
    assert_eq!(split(&all, &holders), [row("batch", 2, 0, 0), row("1", 2, 110, 30), row("2", 1, 60, 40)]);
    // Without a word of single processes, what one GPU does is of those who are on it.
    let all = sample(vec![seen("b", 90, Some(&[(102, 20, None), (201, 40, None)]))]);
    assert_eq!(split(&all, &holders), [row("batch", 1, 0, 0), row("1", 1, 45, 20), row("2", 1, 45, 40)]);
    // A driver that says nothing of anybody although the GPU is busy.
    let all = sample(vec![seen("a", 70, Some(&[(101, 10, Some(0))]))]);
    assert_eq!(split(&all, &holders)[1], row("1", 1, 70, 10));
    let own = &holders[2].devices;
    assert_eq!(busiest(&all, &[gpu("a")]), Some(70), "a batch script's GPU is not idle while a step uses it");
    assert_eq!(busiest(&all, own), None, "nobody looked at that one");
}

#[test]
fn without_processes_a_gpu_counts_for_the_innermost_step_that_has_it() {
    let (batch, one, two) = (key(1, StepId::Batch), key(1, StepId::Number(1)), key(1, StepId::Number(2)));
    let row = |step: &str, busy, memory| (step.to_string(), 1, busy, memory);
    let alone = [holder(batch, &["a"])];
    assert_eq!(split(&sample(vec![seen("a", 50, None)]), &alone), [row("batch", 50, 1000)]);
    let both = [holder(batch, &["a"]), holder(one, &["a"]), holder(two, &["a"])];
    let expected = [row("batch", 0, 0), row("1", 25, 500), row("2", 25, 500)];
    assert_eq!(split(&sample(vec![seen("a", 50, None)]), &both), expected);
    // Numbered as nobody here does: an agent in a container.
    let strange = sample(vec![seen("a", 50, Some(&[(7, 10, Some(50))]))]);
    assert_eq!(split(&strange, &both), expected);
    // The driver says that nobody is there.
    assert_eq!(split(&sample(vec![seen("a", 50, Some(&[]))]), &alone), [row("batch", 0, 0)]);
    assert!(split(&sample(vec![seen("b", 50, None)]), &alone).is_empty(), "somebody else's");
}

#[test]
fn a_gpu_of_which_nobody_says_how_busy_it_is_is_not_idle() {
    type Processes<'a> = Option<&'a [(u32, u64, Option<u32>)]>;
    let with = |other: DeviceSample| {
        let all = sample(vec![seen("a", 3, None), other]);
        busiest(&all, &[gpu("a"), gpu("b")])
    };
    let says = |busy, processes: Processes<'_>| with(seen("b", busy, processes));
    let silent = |processes: Processes<'_>| with(DeviceSample { busy: None, ..seen("b", 0, processes) });
    assert_eq!((says(0, None), says(4, None)), (Some(3), Some(4)));
    assert_eq!(with(seen("c", 0, None)), None, "the other one was not looked at");
    // Of parts (MIG) the driver says neither how busy they are nor what their processes do, or says of these that they do nothing.
    assert_eq!((silent(None), silent(Some(&[]))), (None, None));
    assert_eq!(silent(Some(&[(101, 10, None)])), None);
    assert_eq!(silent(Some(&[(101, 10, Some(0))])), None);
    assert_eq!(silent(Some(&[(101, 10, Some(30)), (102, 10, Some(80))])), Some(100));
    // Who draws is not among those who compute.
    assert_eq!(says(90, Some(&[])), Some(90));
    // It rests just now, and has worked since the last look.
    assert_eq!(says(0, Some(&[(101, 10, Some(60))])), Some(60));
    // Somebody outside of the job keeps it busy.
    assert_eq!(says(50, Some(&[(7, 10, Some(50))])), Some(50));
}

#[test]
fn devices_without_a_name_are_told_by_their_address() {
    let mut device = gpu("");
    (device.uuid, device.bus) = (None, Some("0000:43:00.0".into()));
    let holders = [Holder { key: key(1, StepId::Batch), devices: vec![device] }];
    let there = DeviceSample { bus: "0000:43:00.0".into(), busy: Some(9), ..DeviceSample::default() };
    assert_eq!(parts(&sample(vec![there]), &holders, owner).len(), 1);
}

#[test]
fn a_tally_adds_up_and_accounts_take_the_place_of_samples() {
    let mut tally = Tally::default();
    let part = |busy, memory, of: &[(u32, u32)]| Part { devices: 2, told: 2, busy, memory, of: of.to_vec() };
    tally.add(&part(150, 30, &[(101, 50), (102, 100)]), 1_000_000);
    tally.add(&part(50, 20, &[(101, 50)]), 1_000_000);
    let usage = tally.usage;
    assert_eq!((usage.busy_us, usage.watched_us, usage.average()), (2_000_000, 4_000_000, 50));
    assert_eq!((usage.peak, usage.max_memory), (150, 30));
    assert!(tally.knows(101) && !tally.knows(5));
    // It was busy for longer than was seen, and had more memory.
    let account = Account { pid: 101, began_us: 5, took_us: 2_000_000, busy: 75, memory: 99 };
    tally.settle(&account);
    assert_eq!((tally.usage.busy_us, tally.usage.max_memory), (2_500_000, 99));
    tally.settle(&account);
    assert_eq!(tally.usage.busy_us, 2_500_000, "an account counts once");
    let kept = serde_json::to_string(&tally).unwrap();
    assert_eq!(serde_json::from_str::<Tally>(&kept).unwrap(), tally);
}

#[test]
fn of_parts_of_a_gpu_memory_is_known_and_not_how_busy_they_are() {
    let one = key(1, StepId::Number(1));
    let part_of_gpu = DeviceSample { busy: None, ..seen("a", 0, Some(&[(101, 10, None)])) };
    let parts = parts(&sample(vec![part_of_gpu, seen("b", 40, None)]), &[holder(one, &["a", "b"])], owner);
    assert_eq!((parts[&one].devices, parts[&one].told), (2, 1));
    // Where its counters say it they stand; that its processes do nothing is said of all parts.
    let counted = seen("a", 64, Some(&[(101, 10, Some(0))]));
    let told = super::parts(&sample(vec![counted]), &[holder(one, &["a"])], owner);
    assert_eq!((told[&one].told, told[&one].busy), (1, 64));
    let mut tally = Tally::default();
    tally.add(&parts[&one], 1_000_000);
    assert_eq!((tally.usage.average(), tally.usage.is_told()), (40, true), "of the one that is known");
    let mut tally = Tally::default();
    tally.add(&Part { devices: 1, memory: 10, ..Part::default() }, 1_000_000);
    assert_eq!((tally.usage.max_memory, tally.usage.is_told()), (10, false));
}

#[test]
fn an_account_belongs_to_whoever_saw_the_process_or_has_the_gpu_alone() {
    let (batch, one, two) = (key(1, StepId::Batch), key(1, StepId::Number(1)), key(1, StepId::Number(2)));
    let ended = |pid, began_us| Account { pid, began_us, ..Account::default() };
    let mut device = seen("a", 0, Some(&[]));
    device.ended = vec![ended(101, 1), ended(5, 200), ended(6, 50)];
    let all = sample(vec![device]);
    let whose = |holders: &[Holder]| -> Vec<(String, u32)> {
        accounts(&all, holders, |_| 100, |key, pid| owner(pid) == Some(key))
            .iter()
            .map(|(key, account)| (key.step.to_string(), account.pid))
            .collect()
    };
    let [batch, one, two] = [batch, one, two].map(|key| holder(key, &["a"]));
    // What began before the step had the GPU is an earlier one's.
    assert_eq!(whose(&[batch.clone(), one.clone()]), [("1".into(), 101), ("1".into(), 5)]);
    assert_eq!(whose(&[batch, one, two]), [("1".into(), 101)]);
}
