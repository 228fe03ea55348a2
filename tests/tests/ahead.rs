//! Images that are fetched before their jobs start: while others still have the node, with the user's own login, and never
//! at the cost of other images; and jobs that go where their image is.

use berth_tests::layout::{self, Layer};
use berth_tests::sandbox::wait;
use berth_tests::{Hosts, Registry, Sandbox, each_user, images};
use serde_json::{Value, json};
use std::io::Read;

fn names(sandbox: &Sandbox) -> Vec<String> {
    let text = sandbox.cmd("berth").args(["image", "ls", "--json"]).ok().text();
    let list: Vec<Value> = serde_json::from_str(&text).unwrap();
    list.iter().map(|image| image["names"][0].as_str().unwrap_or_default().to_string()).collect()
}

fn has(sandbox: &Sandbox, image: &str) -> bool {
    names(sandbox).iter().any(|name| name.ends_with(image.rsplit_once('/').unwrap().1))
}

/// A job that has the whole node until a file is there.
fn occupy(sandbox: &Sandbox) -> u64 {
    let go = sandbox.work().join("go").display().to_string();
    let script = format!("#!/bin/sh\nwhile [ ! -e {go} ]; do sleep 0.1; done\n");
    let job = sandbox.sbatch(&["--exclusive", "--output=busy", "--time=10"], &script);
    sandbox.wait_state(job, "RUNNING", 30);
    job
}

each_user! {
    fn a_waiting_jobs_image_is_there_before_it_starts(who) {
        let registry = Registry::open();
        let image = registry.push(&images::layers(), "team/ahead:1", &[]);
        let mut sandbox = Sandbox::with_config(who, &registry.without_tls());
        let busy = occupy(&sandbox);
        let container = format!("--container-image={image}");
        let job = sandbox.sbatch(&["--exclusive", "--output=out", &container], "#!/bin/sh\ncat /data/kept\n");
        let held = registry.push(&images::busybox(), "team/held:1", &[]);
        let held = format!("--container-image={held}");
        sandbox.sbatch(&["--exclusive", "--hold", "--output=held", &held], "#!/bin/sh\ntrue\n");
        assert!(wait(60, || has(&sandbox, &image).then_some(())).is_some(), "{:?}", names(&sandbox));
        // It waits as it did before, and nothing was fetched that cannot start.
        let queue = sandbox.cmd("squeue").args(["-h", "-j", &job.to_string(), "-o", "%t %r"]).ok().text();
        assert_eq!(queue, "PD Resources");
        assert!(!has(&sandbox, "/held:1"));
        let fetched = registry.fetched();
        assert!(!fetched.is_empty());
        // Agent and controller start anew under it: nothing is fetched again.
        let (agent, controller) = (sandbox.agent(), sandbox.controller());
        sandbox.kill_9(agent);
        sandbox.kill_9(controller);
        sandbox.up();
        sandbox.write("go", "");
        sandbox.wait_state(busy, "COMPLETED", 60);
        sandbox.wait_file("out", "kept", 60);
        assert_eq!(registry.fetched(), fetched, "its start fetched something");
        let hit = wait(20, || sandbox.sacct(job, "ImageHit").into_iter().nth(1).filter(|f| !f[0].is_empty()));
        assert_eq!(hit.unwrap(), ["Yes"]);
    }

    /// Whose script and environment the first one has.
    fn the_images_of_all_components_of_a_waiting_job_are_there_before_it_starts(who) {
        let registry = Registry::open();
        let first = registry.push(&images::layers(), "team/first:1", &[]);
        let second = registry.push(&images::busybox(), "team/second:1", &[]);
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        let busy = occupy(&sandbox);
        let (one, two) = (format!("--container-image={first}"), format!("--container-image={second}"));
        let options = ["-n1", "--mem=50", "--output=out", &one, ":", "-n1", "--mem=50", &two];
        let job = sandbox.sbatch(&options, "#!/bin/sh\nsrun --het-group=1 echo in the second\n");
        let there = wait(60, || (has(&sandbox, &first) && has(&sandbox, &second)).then_some(()));
        assert!(there.is_some(), "{:?}", names(&sandbox));
        let fetched = registry.fetched();
        sandbox.write("go", "");
        sandbox.wait_state(busy, "COMPLETED", 60);
        sandbox.wait_state(job, "COMPLETED", 60);
        sandbox.wait_file("out", "in the second", 60);
        assert_eq!(registry.fetched(), fetched, "its start fetched something");
    }

    fn what_is_not_wanted_any_more_is_given_up_and_no_image_goes_for_it(who) {
        let registry = Registry::open();
        let place = tempfile::tempdir().unwrap();
        let mut noise = vec![0; 12 << 20];
        std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
        layout::write(place.path(), vec![layout::busybox(), Layer::default().file("noise", 0o644, &noise)], json!({}));
        let large = registry.push(place.path(), "team/large:1", &[]);
        let small = registry.push(&images::layers(), "team/small:1", &[]);
        // There is room for one of them.
        let config = format!("{}max_size = \"16M\"\n", registry.without_tls());
        let sandbox = Sandbox::with_config(who, &config);
        sandbox.srun_in(&small, ["true"]).ok();
        let busy = occupy(&sandbox);
        let container = format!("--container-image={large}");
        let job = sandbox.sbatch(&["--exclusive", "--output=out", &container], "#!/bin/sh\ncat /noise | wc -c\n");
        let log = || std::fs::read_to_string(sandbox.state().join("log/agent.log")).unwrap();
        let said = wait(60, || log().contains("is not fetched now, for lack of room").then_some(()));
        assert!(said.is_some(), "{}", log());
        assert!(has(&sandbox, &small) && !has(&sandbox, &large), "{:?}", names(&sandbox));
        // Its start has the right to that room.
        sandbox.write("go", "");
        sandbox.wait_state(busy, "COMPLETED", 60);
        sandbox.wait_state(job, "COMPLETED", 60);
        sandbox.wait_file("out", &(12 << 20).to_string(), 60);
    }

    fn it_can_be_switched_off(who) {
        let registry = Registry::open();
        let image = registry.push(&images::layers(), "team/off:1", &[]);
        let sandbox = Sandbox::with_config(who, &format!("{}prefetch = \"off\"\n", registry.without_tls()));
        let busy = occupy(&sandbox);
        let container = format!("--container-image={image}");
        let job = sandbox.sbatch(&["--exclusive", "--output=out", &container], "#!/bin/sh\ncat /data/kept\n");
        let shown = sandbox.cmd("berth").args(["config", "show"]).ok().text();
        assert!(shown.contains("prefetch = \"off\""), "{shown}");
        sandbox.write("go", "");
        sandbox.wait_state(busy, "COMPLETED", 60);
        sandbox.wait_file("out", "kept", 60);
        let hit = wait(20, || sandbox.sacct(job, "ImageHit").into_iter().nth(1).filter(|f| !f[0].is_empty()));
        assert_eq!(hit.unwrap(), ["No"]);
    }
}

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// The nodes on which the user has this image.
fn nodes_with(hosts: &Hosts, image: &str) -> Vec<&'static str> {
    let told = hosts.cmd("n1", "berth").args(["image", "ls", "--cluster", "--json"]).limit(60).ok().text();
    let answers: Vec<Value> = serde_json::from_str(&told).unwrap();
    let name = image.rsplit_once('/').unwrap().1;
    let named = |image: &Value| {
        let names = image["names"].as_array().into_iter().flatten();
        names.filter_map(Value::as_str).any(|one| one.ends_with(name))
    };
    let has = |node: &str| {
        let answer = answers.iter().find(|answer| answer["node"] == node);
        let images = answer.and_then(|answer| answer["answer"]["images"].as_array());
        images.unwrap_or_else(|| panic!("{node}: {answers:?}")).iter().any(named)
    };
    NODES.into_iter().filter(|node| has(node)).collect()
}

#[test]
fn a_job_goes_where_its_image_is_and_an_image_where_its_job_will_go_as_root() {
    let hosts = Hosts::new(&NODES);
    let registry = Registry::on(&hosts, "n1", &hosts.address("n1"), false);
    hosts.up("n1", &registry.without_tls());
    let token = hosts.token("n1", &["--uses", "2"]);
    NODES[1..].iter().for_each(|name| hosts.join(name, &token));
    NODES.iter().for_each(|name| hosts.wait_node(name, "idle", 60));
    for name in NODES {
        let log = || std::fs::read_to_string(hosts.state(name).join("log/agent.log")).unwrap();
        let gives = || log().contains("images are given to other nodes at").then_some(());
        assert!(wait(20, gives).is_some(), "{name}: {}", log());
    }
    let container = |image: &str| format!("--container-image={image}");
    let warm = registry.push(&images::layers(), "team/warm:1", &[]);
    // Where a job of this image would start; n1 is as good as any while nobody has it.
    let would = || {
        let cmd = hosts.cmd("n1", "sbatch").args(["--test-only", &container(&warm), "--wrap", "true"]);
        let told = cmd.limit(60).ok().err();
        let (_, behind) = told.split_once(" on nodes ").unwrap_or_else(|| panic!("{told}"));
        behind.split_whitespace().next().unwrap().to_string()
    };
    assert_eq!(would(), "n1");
    hosts.cmd("n1", "berth").args(["image", "pull", "--cluster", "-w", "n2", &warm]).limit(60).ok();
    assert_eq!(nodes_with(&hosts, &warm), ["n2"]);
    // Nodes tell the controller what they have.
    assert!(wait(40, || (would() == "n2").then_some(())).is_some(), "{}", would());
    let fetched = registry.fetched();
    let option = container(&warm);
    let words = [option.as_str(), "sh", "-c", "echo $SLURMD_NODENAME; cat /data/kept"];
    assert_eq!(hosts.cmd("n1", "srun").args(words).limit(60).ok().text(), "n2\nkept");
    assert_eq!((registry.fetched(), nodes_with(&hosts, &warm)), (fetched, vec!["n2"]));
    // All nodes are held: n3 for the shortest time, and n2 by name.
    let sbatch = |words: &[&str]| {
        let cmd = hosts.cmd("n1", "sbatch").args(["--parsable", "--exclusive"]).args(words).limit(60);
        cmd.ok().text().trim().parse::<u64>().unwrap()
    };
    for (node, minutes) in [("n1", "30"), ("n2", "30"), ("n3", "5")] {
        let held = format!("until [ -e go.{node} ]; do sleep 0.1; done");
        sbatch(&["-w", node, "--time", minutes, "-o", "held", "--wrap", &held]);
        hosts.wait_node(node, "allocated", 30);
    }
    let place = tempfile::tempdir().unwrap();
    let own = Layer::default().file("own", 0o644, b"of no other image");
    layout::write(place.path(), vec![layout::busybox(), own], json!({}));
    let anywhere = registry.push(place.path(), "team/anywhere:1", &[]);
    let there = registry.push(&images::busybox(), "team/there:1", &[]);
    let first = sbatch(&[&container(&anywhere), "-o", "first", "--wrap", "echo $SLURMD_NODENAME"]);
    let second = sbatch(&["-w", "n2", &container(&there), "-o", "second", "--wrap", "echo $SLURMD_NODENAME"]);
    let come = |image: &str, node: &str| {
        let come = wait(60, || (nodes_with(&hosts, image) == [node]).then_some(()));
        assert!(come.is_some(), "{image} is on {:?} and not on {node}", nodes_with(&hosts, image));
    };
    come(&anywhere, "n3");
    come(&there, "n2");
    // They still wait; and when they start, they find it there.
    let state = |job: u64, field: &str| {
        let cmd = hosts.cmd("n1", "squeue").args(["-h", "-j", &job.to_string(), "-o", field]);
        cmd.run().text()
    };
    assert_eq!([first, second].map(|job| state(job, "%t")), ["PD", "PD"]);
    let fetched = registry.fetched();
    for (job, node, output) in [(first, "n3", "first"), (second, "n2", "second")] {
        std::fs::write(hosts.work().join(format!("go.{node}")), "").unwrap();
        let ran =
            || std::fs::read_to_string(hosts.work().join(output)).unwrap_or_default() == format!("{node}\n");
        assert!(wait(60, || ran().then_some(())).is_some(), "{}", state(job, "%i %t %N %r"));
        let hit = || {
            let words = ["-n", "-P", "-o", "ImageHit", "-j", &job.to_string()];
            hosts.cmd("n1", "sacct").args(words).ok().text().lines().nth(1).map(str::to_string)
        };
        let hit = wait(20, || hit().filter(|hit| !hit.is_empty()));
        assert_eq!(hit.as_deref(), Some("Yes"), "job {job}");
    }
    assert_eq!(registry.fetched(), fetched, "a start fetched something");
}
