//! Devices of jobs and their steps, and devices that stop working under them.

use crate::common::{World, actor, batch_key, hardware, step};
use berth_model::config::{Config, PartitionConfig};
use berth_model::ids::{Attempt, JobId, NodeName, StepId, StepKey};
use berth_model::launch::StepPhase;
use berth_model::link::ToAgent;
use berth_model::request::{Refusal, Request, Response};
use berth_model::spec::{JobKind, JobSpec, StepSpec};
use berth_model::state::{ExitStatus, JobState, Reason};
use berth_model::tres::Tres;
use std::collections::BTreeMap;

fn wanted(text: &str) -> berth_model::gres::Wanted {
    berth_model::gres::parse(text).unwrap()
}

fn create(w: &mut World, job: JobId, spec: StepSpec) -> Result<Response, Refusal> {
    w.request(actor(1000), Request::CreateStep { job, spec: Box::new(spec) })
}

fn total(text: &str) -> impl Fn(&mut JobSpec) {
    let wanted = wanted(text);
    move |s| s.resources.devices.total = wanted.clone()
}

/// Indices of the devices of each step on all of its nodes, in the order in which they began.
fn of_steps(w: &World, id: JobId) -> Vec<Vec<u32>> {
    let mut all: BTreeMap<StepKey, Vec<u32>> = BTreeMap::new();
    for message in &w.sent {
        if let ToAgent::Start(start) = message
            && start.launch.key.job == id
            && matches!(start.launch.key.step, StepId::Number(_))
        {
            let devices = start.launch.share.gres.iter().map(|d| d.index);
            all.entry(start.launch.key).or_default().extend(devices);
        }
    }
    all.into_values().collect()
}

#[test]
fn a_gpu_brings_its_share_or_what_the_partition_says() {
    let mut w = World::new(&Config::default());
    w.node("n1", hardware(8, 1, 8000, 4));
    let id = w.batch("a", total("gpu:1"));
    let share = &w.info(id).shares[0];
    assert_eq!((share.cpus.len(), share.memory), (2, 2000), "a quarter of the node");
    // What is asked for does not say which node gives the share; the node tells what is used of it.
    assert_eq!(w.info(id).requested.cpu, 1);
    let used = w.core.snapshot().node(&NodeName::from("n1")).unwrap().used;
    let indices = |devices: &[berth_model::hardware::GresDevice]| {
        devices.iter().map(|d| (d.name.clone(), d.index)).collect::<Vec<_>>()
    };
    assert_eq!((indices(&used), used.len()), (indices(&share.gres), 1));
    let each = PartitionConfig {
        name: "p".into(),
        default_cpus_per_gpu: 1,
        default_mem_per_gpu: 300,
        ..Default::default()
    };
    let mut w = World::new(&Config { partitions: vec![each], ..Config::default() });
    w.node("n1", hardware(8, 1, 8000, 4));
    let id = w.batch("a", total("gpu:2"));
    let share = &w.info(id).shares[0];
    assert_eq!((share.cpus.len(), share.memory), (2, 600));
    // A component is completed as any other job.
    let component = |name: &str| {
        let mut spec = crate::common::job(JobKind::Batch, name);
        total("gpu:1")(&mut spec);
        (spec, crate::common::script())
    };
    let components = vec![component("b"), component("b+1")];
    w.request(actor(1000), Request::SubmitHet { components, test_only: false }).unwrap();
    for offset in [1, 2] {
        let share = &w.info(JobId(id.0 + offset)).shares[0];
        assert_eq!((share.cpus.len(), share.memory, share.gres.len()), (1, 300, 1));
    }
}

#[test]
fn one_that_stops_working_stays_where_it_is_and_goes_to_nobody_else() {
    let mut w = World::new(&Config::default());
    w.node("n1", hardware(8, 1, 8000, 4));
    let id = w.batch("a", |s| {
        total("gpu:2")(s);
        s.resources.tasks = Some(4);
    });
    let key = batch_key(id, 0);
    w.phase("n1", key, StepPhase::Running);
    let mut broken = hardware(8, 1, 8000, 4);
    broken.gres[1].fault = Some("fell off the bus".into());
    broken.gres[3].fault = Some("fell off the bus".into());
    w.hello("n1", "boot", broken, vec![(key, StepPhase::Running)], vec![(id, Attempt(0))]);
    w.core.audit().unwrap();
    assert_eq!(w.state(id), JobState::Running);
    let node = w.core.snapshot().node(&NodeName::from("n1")).unwrap();
    assert_eq!(node.hardware.gres[3].fault.as_deref(), Some("fell off the bus"));
    // One of four is free and works.
    let (one, two) = (w.batch("b", total("gpu:1")), w.batch("c", total("gpu:1")));
    assert_eq!((w.state(one), w.info(one).shares[0].gres[0].index), (JobState::Running, 2));
    assert_eq!((w.state(two), w.info(two).reason), (JobState::Pending, Reason::Resources));
    // Nor do steps of the job get it that ask for one; a step without such a wish has all of the job's.
    let ask =
        |name: &str, n: &str| StepSpec { gres: Some(wanted(n)), exact: true, tasks: Some(1), ..step(name) };
    create(&mut w, id, ask("first", "gpu:1")).unwrap();
    assert_eq!(of_steps(&w, id), [[0]]);
    let refused = create(&mut w, id, ask("second", "gpu:2")).unwrap_err();
    assert!(refused.message.contains("gpu 1 of the job's devices does not work any more"), "{refused:?}");
    // It is well again, and given.
    w.hello(
        "n1",
        "boot",
        hardware(8, 1, 8000, 4),
        vec![(key, StepPhase::Running)],
        vec![(id, Attempt(0)), (one, Attempt(0))],
    );
    assert_eq!(w.state(two), JobState::Running);
    w.core.audit().unwrap();
}

#[test]
fn steps_at_once_have_a_part_each_wait_or_share() {
    let mut w = World::new(&Config::default());
    w.node("n1", hardware(8, 1, 8000, 4));
    w.node("n2", hardware(8, 1, 8000, 4));
    let id = w.batch("a", |s| {
        total("gpu:6")(s);
        (s.resources.min_nodes, s.resources.max_nodes, s.resources.tasks) = (2, Some(2), Some(8));
    });
    assert_eq!(w.info(id).shares.iter().map(|s| s.gres.len()).collect::<Vec<_>>(), [3, 3]);
    let of_tasks = |name: &str, tasks: u32| {
        let mut spec = StepSpec { exact: true, tasks: Some(tasks), gres: Some(wanted("none")), ..step(name) };
        spec.devices.per_task = wanted("gpu:1");
        spec
    };
    create(&mut w, id, StepSpec { nodes: Some(1), ..of_tasks("first", 2) }).unwrap();
    create(&mut w, id, of_tasks("second", 4)).unwrap();
    assert_eq!(of_steps(&w, id), [vec![0, 1], vec![2, 0, 1, 2]], "what the first left, and the other node");
    let busy = StepSpec { immediate: Some(berth_model::Span(0)), ..of_tasks("third", 1) };
    let busy = w.request_later(actor(1000), Request::CreateStep { job: id, spec: Box::new(busy) });
    w.nothing_has_ended();
    assert!(w.replies.remove(&busy).unwrap().unwrap_err().message.contains("busy"));
    create(&mut w, id, StepSpec { overlap: true, ..of_tasks("fourth", 1) }).unwrap();
    let mut whole =
        StepSpec { exact: true, tasks: Some(2), nodes: Some(2), gres: Some(wanted("none")), ..step("fifth") };
    whole.devices.total = wanted("gpu:7");
    assert!(
        create(&mut w, id, whole.clone())
            .unwrap_err()
            .message
            .contains("7 x gpu were asked for, the job has 6")
    );
    whole.devices.total = wanted("gpu:1");
    whole.submission.0 = "sixth".into();
    assert!(create(&mut w, id, whole).unwrap_err().message.contains("cannot be on 2 nodes"));
    // One that waits goes on when another ends.
    let two = StepSpec { nodes: Some(1), ..of_tasks("seventh", 2) };
    let waits = w.request_later(actor(1000), Request::CreateStep { job: id, spec: Box::new(two) });
    let key = StepKey { job: id, attempt: Attempt(0), step: StepId::Number(0) };
    assert!(!w.replies.contains_key(&waits));
    w.exited("n1", key, ExitStatus::OK);
    assert!(w.replies.contains_key(&waits));
}

#[test]
fn gpus_of_long_types_are_asked_for_by_a_part_of_it() {
    let long = "nvidia_a100-sxm4-40gb";
    let part = "nvidia_a100-sxm4-40gb_1g.5gb";
    let mut hw = hardware(8, 1, 8000, 4);
    for (device, kind) in hw.gres.iter_mut().zip([long, long, part, part]) {
        device.kind = Some(kind.into());
    }
    let mut w = World::new(&Config::default());
    w.node("n1", hw);
    let of = |w: &World, id: JobId| {
        w.info(id).shares[0].gres.iter().map(|device| device.index).collect::<Vec<u32>>()
    };
    let (whole, slice) = (w.batch("a", total("gpu:a100:2")), w.batch("b", total("gpu:1g.5gb:1")));
    assert_eq!((of(&w, whole), of(&w, slice)), (vec![0, 1], vec![2]));
    // What was asked for is on record as it was written, what is had by the devices' own type.
    let listed = |tres: &Tres| {
        tres.gres.iter().map(|(key, n)| format!("{key}={n}")).collect::<Vec<String>>().join(",")
    };
    let info = w.info(whole);
    assert_eq!(listed(&info.requested), "gpu=2,gpu:a100=2");
    assert_eq!(listed(&info.allocated), format!("gpu=2,gpu:{long}=2"));
    // Its steps may say it likewise.
    let ask = |name: &str, what: &str| StepSpec {
        gres: Some(wanted(what)),
        exact: true,
        tasks: Some(1),
        ..step(name)
    };
    create(&mut w, whole, ask("first", "gpu:a100:1")).unwrap();
    create(&mut w, whole, ask("second", "gpu:sxm4-40gb:1")).unwrap();
    assert_eq!(of_steps(&w, whole), [[0], [1]]);
    // A part of one is no GPU of that type: who asks for one waits, and for three is refused and told what there is.
    let waits = w.batch("c", total("gpu:a100:1"));
    assert_eq!((w.state(waits), w.info(waits).reason), (JobState::Pending, Reason::Resources));
    let mut never = crate::common::job(JobKind::Batch, "d");
    total("gpu:a100:3")(&mut never);
    let refused = w.submit(never).unwrap_err();
    let types = format!(
        "3 x gpu:a100 were asked for, the nodes of partition main have 2; types of gpu there: {long}, {part}"
    );
    assert!(refused.message.contains(&types), "{refused:?}");
}
