//! Steps over a job's nodes: which nodes they get and which tasks are where, against expectations made by hand.

use crate::common::{World, actor, exit, hardware, step};
use berth_model::distribution::Distribution;
use berth_model::ids::{JobId, NodeName, StepId};
use berth_model::launch::StepPhase;
use berth_model::link::{EndCause, ToAgent};
use berth_model::request::{Refusal, Request, Response};
use berth_model::spec::StepSpec;
use berth_model::state::{ExitStatus, JobState};

/// A job of three whole nodes: n1 and n2 with four CPUs, n3 with two.
fn world(change: impl FnOnce(&mut berth_model::spec::JobSpec)) -> (World, JobId) {
    let mut w = World::new(&berth_model::config::Config::default());
    for (name, cores) in [("n1", 4), ("n2", 4), ("n3", 2)] {
        w.node(name, hardware(cores, 1, 4000, 0));
    }
    let id = w.batch("job", |s| {
        s.resources.min_nodes = 3;
        s.resources.exclusive = true;
        change(s);
    });
    w.starts();
    (w, id)
}

fn create(w: &mut World, job: JobId, spec: StepSpec) -> Result<Response, Refusal> {
    w.request(actor(1000), Request::CreateStep { job, spec: Box::new(spec) })
}

/// Words as `srun` takes them, as far as they are about the layout.
fn spec(name: &str, words: &str) -> StepSpec {
    let mut spec = StepSpec { overlap: true, ..step(name) };
    let list = |text: &str| text.split(',').map(NodeName::from).collect::<Vec<_>>();
    let mut arbitrary = false;
    for word in words.split_whitespace() {
        let (option, value) = word.split_at(2);
        let number = || value.parse::<u32>().ok();
        match option {
            "-n" => spec.tasks = number(),
            "-N" => {
                let (least, most) = value.split_once('-').unwrap_or((value, ""));
                (spec.nodes, spec.max_nodes) = (least.parse().ok(), most.parse().ok());
            }
            "-t" => spec.tasks_per_node = number(),
            "-c" => spec.cpus_per_task = number(),
            "-r" => spec.relative = number(),
            "-w" => spec.node_list = list(value),
            "-x" => spec.exclude = list(value),
            "-O" => spec.overcommit = true,
            "-m" if value == "arbitrary" => arbitrary = true,
            "-m" => spec.distribution = Some(value.parse().unwrap()),
            other => panic!("{other}"),
        }
    }
    if arbitrary {
        spec.distribution = Some(Distribution::Arbitrary(spec.node_list.clone()));
        spec.tasks = spec.tasks.or(u32::try_from(spec.node_list.len()).ok());
    }
    spec
}

/// `n1:0,1 n2:2`, or what is wrong.
fn layout(w: &mut World, job: JobId, name: &str, words: &str) -> String {
    match create(w, job, spec(name, words)) {
        Ok(Response::StepCreated { key, layout, .. }) => {
            let text: Vec<String> = layout
                .nodes
                .iter()
                .zip(&layout.tasks)
                .map(|(node, tasks)| {
                    let tasks: Vec<String> = tasks.iter().map(u32::to_string).collect();
                    format!("{node}:{}", tasks.join(","))
                })
                .collect();
            for node in &layout.nodes {
                w.exited(&node.0, key, ExitStatus::OK);
            }
            text.join(" ")
        }
        Ok(other) => panic!("{other:?}"),
        Err(refusal) => refusal.message,
    }
}

const BY_HAND: &[(&str, &str)] = &[
    // The job's own: a task on each node.
    ("", "n1:0 n2:1 n3:2"),
    ("-N3", "n1:0 n2:1 n3:2"),
    ("-N1", "n1:0"),
    ("-N2", "n1:0 n2:1"),
    ("-n1", "n1:0"),
    ("-n2", "n1:0 n2:1"),
    ("-n1 -N1", "n1:0"),
    // Blocks: a task for each node first, then node after node.
    ("-n4", "n1:0,1 n2:2 n3:3"),
    ("-n6", "n1:0,1,2,3 n2:4 n3:5"),
    ("-n10", "n1:0,1,2,3 n2:4,5,6,7 n3:8,9"),
    ("-N2 -n5", "n1:0,1,2,3 n2:4"),
    ("-N1 -n4", "n1:0,1,2,3"),
    ("-mblock -n4", "n1:0,1 n2:2 n3:3"),
    // As many of so many nodes as the tasks need.
    ("-N1-2", "n1:0"),
    ("-N1-2 -n4", "n1:0,1,2,3"),
    ("-N1-2 -n5", "n1:0,1,2,3 n2:4"),
    ("-N1-3 -n9", "n1:0,1,2,3 n2:4,5,6,7 n3:8"),
    ("-N2-3 -n2", "n1:0 n2:1"),
    ("-N1-99 -n10", "n1:0,1,2,3 n2:4,5,6,7 n3:8,9"),
    ("-N1-2 -wn3 -n5", "n1:0,1,2,3 n3:4"),
    ("-N1-2 -c4 -n2", "n1:0 n2:1"),
    ("-N1-3 -mcyclic -n5", "n1:0,2,4 n2:1,3"),
    // In turns.
    ("-mcyclic", "n1:0 n2:1 n3:2"),
    ("-mcyclic -n5", "n1:0,3 n2:1,4 n3:2"),
    ("-mcyclic -n10", "n1:0,3,6,8 n2:1,4,7,9 n3:2,5"),
    ("-mcyclic -N2 -n5", "n1:0,2,4 n2:1,3"),
    ("-mplane=2 -n6", "n1:0,1 n2:2,3 n3:4,5"),
    ("-mplane=2 -n10", "n1:0,1,6,7 n2:2,3,8,9 n3:4,5"),
    ("-mplane=3 -n7", "n1:0,1,2 n2:3,4,5 n3:6"),
    ("-mplane=4 -n4", "n1:0,1,2,3"),
    // More tasks than CPUs: evenly, and where lists and planes say.
    ("-O -n14", "n1:0,1,2,3,4 n2:5,6,7,8,9 n3:10,11,12,13"),
    ("-O -n4", "n1:0,1 n2:2 n3:3"),
    ("-O -N1 -n6", "n1:0,1,2,3,4,5"),
    ("-O -c2 -N1 -n6", "n1:0,1,2,3,4,5"),
    ("-O -mcyclic -n12", "n1:0,3,6,9 n2:1,4,7,10 n3:2,5,8,11"),
    ("-O -mplane=5 -N2 -n12", "n1:0,1,2,3,4,10,11 n2:5,6,7,8,9"),
    ("-O -t2 -N3", "n1:0,1 n2:2,3 n3:4,5"),
    // Task by task.
    ("-marbitrary -wn2,n1,n2", "n2:0,2 n1:1"),
    ("-marbitrary -wn3,n3,n1", "n3:0,1 n1:2"),
    ("-marbitrary -wn3,n1 -n1", "n3:0"),
    // So many on each node, CPUs for each.
    ("-t1", "n1:0 n2:1 n3:2"),
    ("-t2", "n1:0,1 n2:2,3 n3:4,5"),
    ("-t2 -N2", "n1:0,1 n2:2,3"),
    ("-t1 -n2", "n1:0 n2:1"),
    ("-c2", "n1:0 n2:1 n3:2"),
    ("-c2 -n4", "n1:0,1 n2:2 n3:3"),
    ("-c4 -N2", "n1:0 n2:1"),
    ("-c4 -n2 -mcyclic", "n1:0 n2:1"),
    // Named, left out, counted from.
    ("-wn2", "n2:0"),
    ("-wn2 -n4", "n2:0,1,2,3"),
    ("-wn3 -N2 -n3", "n1:0,1 n3:2"),
    ("-wn2,n3", "n2:0 n3:1"),
    ("-xn1", "n2:0 n3:1"),
    ("-xn2 -n5", "n1:0,1,2,3 n3:4"),
    ("-xn1 -N1", "n2:0"),
    ("-r1", "n2:0 n3:1"),
    ("-r2", "n3:0"),
    ("-r1 -N1 -n2", "n2:0,1"),
];

const IMPOSSIBLE: &[(&str, &[&str])] = &[
    ("-N4", &["4 nodes", "the job has 3"]),
    ("-n11", &["11 tasks", "room for 10"]),
    ("-N1 -n5", &["5 tasks", "1 nodes"]),
    ("-N1-2 -n9", &["9 tasks", "1-2 nodes", "room for 10"]),
    ("-c5", &["5 CPUs"]),
    ("-wn9", &["n9", "n[1-3]"]),
    ("-wn1,n2 -n1", &["1 tasks", "2 nodes"]),
    ("-xn1,n2,n3", &["none", "left"]),
    ("-xn1 -N3", &["3 nodes", "has 2"]),
    ("-r3", &["--relative=3", "last of which is 2"]),
    ("-r2 -N2", &["2 nodes", "has 1"]),
    ("-marbitrary -wn3,n3,n3", &["3 tasks"]),
    ("-t3 -N3", &["9 tasks"]),
];

#[test]
fn steps_are_where_they_were_asked_for() {
    let (mut w, id) = world(|_| {});
    for (words, expected) in BY_HAND {
        assert_eq!(layout(&mut w, id, &format!("of {words}"), words), *expected, "srun {words}");
    }
    for (words, parts) in IMPOSSIBLE {
        let said = layout(&mut w, id, &format!("of {words}"), words);
        assert!(parts.iter().all(|part| said.contains(part)), "srun {words}: {said}");
    }
}

#[test]
fn a_jobs_layout_is_that_of_its_steps() {
    let (mut w, id) = world(|s| {
        s.resources.tasks = Some(5);
        s.resources.distribution = Distribution::Cyclic;
    });
    assert_eq!(layout(&mut w, id, "a", ""), "n1:0,3 n2:1,4 n3:2");
    assert_eq!(layout(&mut w, id, "b", "-n2"), "n1:0 n2:1");
    assert_eq!(layout(&mut w, id, "c", "-mblock"), "n1:0,1,2 n2:3 n3:4");
    let list = ["n2", "n2", "n1", "n3"].map(NodeName::from).to_vec();
    let (mut w, id) = world(|s| {
        s.resources.tasks = Some(4);
        s.resources.distribution = Distribution::Arbitrary(list);
    });
    assert_eq!(layout(&mut w, id, "a", ""), "n2:0,1 n1:2 n3:3");
    // The list is one of all tasks: two have none.
    assert_eq!(layout(&mut w, id, "b", "-n2"), "n1:0 n2:1");
}

/// A job takes the CPUs of one task on each node, and its steps have all tasks of the job.
#[test]
fn overcommit_takes_the_cpus_of_one_task_on_each_node() {
    let mut w = World::new(&berth_model::config::Config::default());
    for name in ["n1", "n2"] {
        w.node(name, hardware(4, 1, 4000, 0));
    }
    let ask = |w: &mut World, name: &str, nodes: u32, tasks: u32, cpus: u32| {
        let id = w.batch(name, |s| {
            let r = &mut s.resources;
            (r.overcommit, r.min_nodes, r.tasks, r.cpus_per_task) = (true, nodes, Some(tasks), Some(cpus));
        });
        w.starts();
        (id, w.info(id).layout)
    };
    let (both, on_both) = ask(&mut w, "both", 2, 9, 2);
    assert_eq!(on_both.cpus, [2, 2]);
    for (name, words) in [("its", "-O -n9"), ("as the job", "-n9"), ("all", "")] {
        assert_eq!(layout(&mut w, both, name, words), "n1:0,1,2,3,4 n2:5,6,7,8");
    }
    let (_, on_one) = ask(&mut w, "one", 1, 100, 1);
    assert_eq!(on_one.cpus, [1]);
    // What one task cannot have no number of tasks gets.
    let (waits, nowhere) = ask(&mut w, "waits", 2, 2, 2);
    assert!(nowhere.nodes.is_empty() && w.state(waits) == JobState::Pending, "{nowhere:?}");
    let refused = w.submit(berth_model::spec::JobSpec {
        resources: berth_model::spec::ResourceRequest {
            overcommit: true,
            tasks: Some(2),
            cpus_per_task: Some(5),
            ..Default::default()
        },
        ..berth_samples::job(berth_model::spec::JobKind::Batch, "never")
    });
    assert!(refused.unwrap_err().message.contains("5 CPUs on one node were asked for"));
}

/// Steps that want CPUs of their own go where there are some, and wait where there are none.
#[test]
fn exact_steps_take_the_nodes_that_are_free() {
    let (mut w, id) = world(|_| {});
    let exact = |name: &str, words: &str| StepSpec { overlap: false, exact: true, ..spec(name, words) };
    let on = |made: Result<Response, Refusal>| match made {
        Ok(Response::StepCreated { key, layout, .. }) => (key, layout.nodes[0].0.clone()),
        other => panic!("{other:?}"),
    };
    let (first, node) = on(create(&mut w, id, exact("a", "-N1 -n4")));
    assert_eq!(node, "n1");
    let (_, node) = on(create(&mut w, id, exact("b", "-N1 -n4")));
    assert_eq!(node, "n2");
    let (_, node) = on(create(&mut w, id, exact("c", "-N1 -n1")));
    assert_eq!(node, "n3");
    let waiting =
        w.request_later(actor(1000), Request::CreateStep { job: id, spec: Box::new(exact("d", "-N1 -n3")) });
    assert!(!w.replies.contains_key(&waiting), "a step does not wait for CPUs");
    assert_eq!(first.step, StepId::Number(0));
    w.exited("n1", first, ExitStatus::OK);
    let (_, node) = on(w.replies.remove(&waiting).unwrap());
    assert_eq!(node, "n1");
}

/// Where the first nodes have no room for all tasks, those that take more stand in for them.
#[test]
fn tasks_go_to_nodes_that_take_all_of_them() {
    let mut w = World::new(&berth_model::config::Config::default());
    for (name, cores) in [("n1", 2), ("n2", 4), ("n3", 1), ("n4", 4)] {
        w.node(name, hardware(cores, 1, 4000, 0));
    }
    let id = w.batch("job", |s| {
        s.resources.min_nodes = 4;
        s.resources.exclusive = true;
    });
    w.starts();
    for (words, expected) in [
        ("-N1 -n2", "n1:0,1"),
        ("-N1 -n4", "n2:0,1,2,3"),
        ("-N2 -n6", "n1:0,1 n2:2,3,4,5"),
        ("-N2 -n7", "n2:0,1,2,3 n4:4,5,6"),
        ("-N2 -n8 -mcyclic", "n2:0,2,4,6 n4:1,3,5,7"),
        ("-wn3 -N2 -n3", "n1:0,1 n3:2"),
        ("-wn3 -N2 -n5", "n2:0,1,2,3 n3:4"),
        ("-xn2 -N1 -n3", "n4:0,1,2"),
        ("-c2 -N2 -n3", "n1:0 n2:1,2"),
        ("-c2 -N2 -n4", "n2:0,1 n4:2,3"),
    ] {
        assert_eq!(layout(&mut w, id, &format!("of {words}"), words), expected, "srun {words}");
    }
    // Also where it is other steps that leave less.
    let exact = |name: &str, words: &str| StepSpec { overlap: false, exact: true, ..spec(name, words) };
    for (name, words, node) in [("a", "-N1 -n1", "n1"), ("b", "-N1 -n2", "n2"), ("c", "-N1 -n4", "n4")] {
        match create(&mut w, id, exact(name, words)) {
            Ok(Response::StepCreated { layout, .. }) => assert_eq!(layout.nodes, [NodeName::from(node)]),
            other => panic!("{other:?}"),
        }
    }
}

/// What could not start on one of several nodes is on record with the node's name, and the others are ended.
#[test]
fn a_node_that_could_not_start_its_part_is_on_record() {
    let (mut w, id) = world(|_| {});
    let Ok(Response::StepCreated { key, .. }) = create(&mut w, id, spec("all", "-N3")) else { panic!() };
    w.sent.clear();
    let mut failed = exit(ExitStatus { code: 1, signal: 0 });
    failed.launch_error = Some("no such file".into());
    w.phase("n2", key, StepPhase::Exited(failed));
    let ended = w.sent.iter().filter(|m| matches!(m, ToAgent::Terminate { key: k, .. } if *k == key)).count();
    assert_eq!(ended, 2);
    for node in ["n1", "n3"] {
        let mut killed = exit(ExitStatus { code: 0, signal: 15 });
        killed.ended_by = Some(EndCause::JobEnded);
        w.phase(node, key, StepPhase::Exited(killed));
    }
    let info = w.info(id);
    let step = info.steps.iter().find(|s| s.id == key.step).unwrap();
    assert_eq!((step.state, step.message.as_deref()), (JobState::Failed, Some("n2: no such file")));
}

/// Lists as long as a client may make them neither fill the records nor keep the controller from its work.
#[test]
fn lists_of_nodes_have_a_bound() {
    let (mut w, id) = world(|_| {});
    let list = vec![NodeName::from("n1"); 2 << 20];
    let refused = create(&mut w, id, StepSpec { node_list: list.clone(), ..step("listed") }).unwrap_err();
    assert!(refused.message.contains("the lists of nodes together"), "{}", refused.message);
    let distribution = Some(Distribution::Arbitrary(list));
    let refused = create(&mut w, id, StepSpec { distribution, ..step("arbitrary") }).unwrap_err();
    assert!(refused.message.contains("the lists of nodes together"), "{}", refused.message);
}
