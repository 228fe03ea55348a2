//! Images that are fetched before their jobs start: while others still have the node, with the user's own login, and never
//! at the cost of other images.

use berth_tests::layout::{self, Layer};
use berth_tests::sandbox::wait;
use berth_tests::{Registry, Sandbox, each_user, images};
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
