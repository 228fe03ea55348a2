//! `berth image` with `--cluster`: images of many nodes, looked after from one place.

use berth_tests::sandbox::wait;
use berth_tests::{Hosts, Who, images};
use serde_json::Value;

fn answers(hosts: &Hosts, root: bool, words: &[&str]) -> Vec<Value> {
    let cmd = if root { hosts.root("n1", "berth") } else { hosts.cmd("n1", "berth") };
    let told = cmd.arg("image").args(words).args(["--cluster", "--json"]).limit(60).ok();
    serde_json::from_str(&told.text()).unwrap()
}

/// How many images each node says that it has.
fn counts(hosts: &Hosts, root: bool) -> Vec<usize> {
    let all = answers(hosts, root, &["ls"]);
    all.iter().map(|node| node["answer"]["images"].as_array().unwrap().len()).collect()
}

/// What the audit log has of removed images, once there are so many entries of that.
fn removals(hosts: &Hosts, count: usize) -> Vec<Value> {
    let all = || -> Vec<Value> {
        let text = hosts.root("n1", "berth").args(["audit", "-n", "0", "--json"]).ok().text();
        let all: Vec<Value> = serde_json::from_str(&text).unwrap();
        let of_images =
            |entry: &Value| entry["what"].as_str().unwrap().starts_with("says that root (uid 0) removed");
        all.into_iter().filter(of_images).collect()
    };
    wait(20, || (all().len() >= count).then_some(()));
    let all = all();
    assert_eq!(all.len(), count, "{all:?}");
    all
}

#[test]
fn images_of_all_nodes_are_looked_after_from_one_as_root() {
    let hosts = Hosts::new(&["n1", "n2", "n3"]);
    hosts.up("n1", "");
    let token = hosts.token("n1", &["--uses", "2"]);
    for name in ["n2", "n3"] {
        hosts.join(name, &token);
    }
    for name in ["n1", "n2", "n3"] {
        hosts.wait_node(name, "idle", 60);
    }
    assert_eq!(counts(&hosts, true), [0, 0, 0]);
    let image = images::debian();
    let run = |nodes: &str| {
        hosts
            .cmd("n1", "srun")
            .args(["-w", nodes, "--container-image"])
            .arg(&image)
            .arg("true")
            .limit(60)
            .ok()
    };
    // A user has all nodes fetch, from one place; root one of them.
    let name = image.display().to_string();
    for hit in [false, true] {
        let pulled = answers(&hosts, false, &["pull", &name]);
        assert!(pulled.iter().all(|node| node["answer"]["hit"] == hit), "{pulled:?}");
        assert_eq!(counts(&hosts, false), [1, 1, 1]);
    }
    let pull = hosts.cmd("n1", "berth").args(["image", "pull", "--cluster", "--quiet", &name]).limit(60);
    let quiet = pull.ok().text();
    assert!(quiet.starts_with("sha256:") && quiet.lines().count() == 1, "{quiet}");
    answers(&hosts, true, &["pull", "-w", "n1", &name]);
    run("n[1-3]");
    // Root sees all; a user sees what is theirs, everywhere.
    assert_eq!(counts(&hosts, true), [1, 1, 1]);
    assert_eq!(counts(&hosts, false), [1, 1, 1]);
    let usage = answers(&hosts, true, &["df"]);
    assert!(usage.iter().all(|node| node["answer"]["bytes"].as_u64().unwrap() > 0), "{usage:?}");
    // A user gives back on one node what they have there, and it stays elsewhere.
    let digest =
        answers(&hosts, false, &["ls"])[0]["answer"]["images"][0]["digest"].as_str().unwrap().to_string();
    // They read it as tables and lines, by nodes.
    let said = |words: &[&str]| {
        let cmd = hosts.cmd("n1", "berth").arg("image").args(words).arg("--cluster").limit(60).ok();
        let cells = |line: &str| line.split_whitespace().map(str::to_string).collect::<Vec<_>>();
        cmd.text().lines().map(cells).collect::<Vec<_>>()
    };
    let told = said(&["ls"]);
    assert_eq!(told[0], ["NODE", "NAME", "DIGEST", "SIZE", "LAYERS"]);
    let is_listed = |row: &Vec<String>| row[1].contains(&name) && digest.contains(&row[2]);
    assert!(told.len() == 4 && told[1..].iter().all(is_listed), "{told:?}");
    assert!(told[1..].iter().map(|row| row[0].as_str()).eq(["n1", "n2", "n3"]), "{told:?}");
    let told = said(&["df"]);
    assert_eq!(told[0], ["NODE", "IMAGES", "LAYERS", "SIZE", "QUOTA"]);
    // Nobody has a quota here.
    let is_counted =
        |row: &Vec<String>| row[1] == "1" && row[2] != "0" && row.last().is_some_and(|q| q == "-");
    assert!(told.len() == 4 && told[1..].iter().all(is_counted), "{told:?}");
    assert!(told[1..].iter().map(|row| row[0].as_str()).eq(["n1", "n2", "n3"]), "{told:?}");
    let removed = |node: &str| vec![format!("{node}:"), "removed".to_string(), digest.clone()];
    let is_less = |row: &Vec<String>, node: &str| {
        row[0] == format!("{node}:") && row.last().is_some_and(|word| word == "less")
    };
    let told = said(&["rm", "-w", "n2", &digest]);
    assert!(told.len() == 2 && told[0] == removed("n2") && is_less(&told[1], "n2"), "{told:?}");
    assert_eq!(counts(&hosts, false), [1, 0, 1]);
    removals(&hosts, 0);
    let over = || hosts.cmd("n1", "squeue").arg("-h").run().text().is_empty().then_some(());
    assert!(wait(30, over).is_some(), "a job is left, which needs the image");
    // What is not theirs any more is no error of a node's, and what another has stays the other's.
    let told = said(&["prune", "--all"]);
    let (n1, n3) = (told.contains(&removed("n1")), told.contains(&removed("n3")));
    let all = ["n1", "n2", "n3"].iter().all(|node| told.iter().any(|row| is_less(row, node)));
    assert!(n1 && n3 && all && told.len() == 5, "{told:?}");
    assert_eq!(counts(&hosts, false), [0, 0, 0]);
    assert_eq!(counts(&hosts, true)[0], 1);
    answers(&hosts, false, &["pull", "-w", "n1", &name]);
    // A node that does not answer is named, and the others' answers are there.
    hosts.kill_9("n3", "agent");
    let failed = hosts.root("n1", "berth").args(["image", "ls", "--cluster"]).limit(60).run();
    assert_eq!(failed.rc, 1, "{failed}");
    let failed = failed.says(&["n3: no answer"]);
    assert!(failed.text().lines().any(|line| line.starts_with("n1 ")), "{failed}");
    let unknown = hosts.root("n1", "berth").args(["image", "ls", "--cluster", "-w", "n9"]).limit(60).fails();
    unknown.says(&["no node n9"]);
    // What a job waits for stays, but for who insists.
    let words = ["--parsable", "--hold", "-w", "n1", "--wrap", "true", "--container-image"];
    let job = hosts.cmd("n1", "sbatch").args(words).arg(&image).limit(60).ok().text().trim().to_string();
    let root = |words: &[&str]| hosts.root("n1", "berth").arg("image").args(words).limit(60);
    let why = format!("job {job} needs it");
    root(&["rm", &digest]).fails().says(&[&digest, &why, "--force"]);
    let told = root(&["rm", "--cluster", "-w", "n1", &image.display().to_string()]).fails();
    told.says(&[&format!("n1: image {digest}: {why}")]);
    root(&["prune", "--all"]).ok();
    assert_eq!(
        answers(&hosts, true, &["ls", "-w", "n1"])[0]["answer"]["images"].as_array().unwrap().len(),
        1
    );
    assert!(root(&["rm", "--force", &digest]).ok().text().contains(&digest));
    // What root took from a user is in the audit log: who did it, what it was, where, and whose.
    let entry = removals(&hosts, 1).remove(0);
    assert_eq!((entry["user"].as_str(), entry["uid"].as_u64()), (Some("node n1"), Some(0)), "{entry}");
    let what = entry["what"].as_str().unwrap();
    let whose = format!(" of {}", Who::user().name);
    assert!(what.contains(&digest) && what.ends_with(&whose), "{what}");
    hosts.cmd("n1", "scontrol").args(["release", &job]).ok();
    let gone = || root(&["rm", &digest]).run();
    let removed = wait(60, || (gone().rc == 0).then_some(()));
    assert!(removed.is_some(), "job {job} fetched it anew, and is over: {}", gone());
    removals(&hosts, 2);
    // Root removes for all, from another place, by name and whatever is there; what is root's own is nobody else's affair.
    let clear = |node: &str, words: &[&str]| {
        let empty = || {
            root(&[words, &["--cluster", "-w", node]].concat()).run();
            let left = answers(&hosts, true, &["ls", "-w", node]);
            (left[0]["answer"]["images"] == serde_json::json!([])).then_some(())
        };
        // What was just fetched may still be given to another node.
        assert!(wait(60, empty).is_some(), "{words:?} on {node}");
    };
    for node in ["n1", "n2"] {
        for words in [&["rm", "--force", &digest][..], &["prune", "--all"]] {
            answers(&hosts, false, &["pull", "-w", node, &name]);
            clear(node, words);
        }
    }
    for node in ["n1", "n2"] {
        let of_node = |entry: &&Value| entry["user"] == format!("node {node}");
        assert_eq!(removals(&hosts, 6).iter().filter(of_node).count(), if node == "n1" { 4 } else { 2 });
    }
    answers(&hosts, true, &["pull", "-w", "n1", &name]);
    clear("n1", &["prune", "--all"]);
    removals(&hosts, 6);
    let left = answers(&hosts, true, &["ls", "-w", "n[1-2]"]);
    assert!(left.iter().all(|node| node["answer"]["images"] == serde_json::json!([])), "{left:?}");
}

/// From the controller's machine as root, and as a user from a login node, which has no images itself.
#[test]
fn what_one_node_has_is_removed_everywhere_and_what_others_never_had_is_no_error_as_root() {
    let hosts = Hosts::new(&["n1", "n2", "front"]);
    hosts.up("n1", "");
    hosts.join("n2", &hosts.token("n1", &[]));
    hosts.join("front", &hosts.token("n1", &["--role", "login"]));
    for name in ["n1", "n2"] {
        hosts.wait_node(name, "idle", 60);
    }
    let (one, two) = (images::debian().display().to_string(), images::busybox().display().to_string());
    let front = |words: &[&str]| hosts.cmd("front", "berth").arg("image").args(words).limit(60);
    let front_counts = || -> Vec<usize> {
        let told = front(&["ls", "--cluster", "--json"]).ok().text();
        let all: Vec<Value> = serde_json::from_str(&told).unwrap();
        all.iter().map(|node| node["answer"]["images"].as_array().unwrap().len()).collect()
    };
    let fetch = || {
        answers(&hosts, false, &["pull", "-w", "n1", &one]);
        answers(&hosts, false, &["pull", "-w", "n2", &two]);
    };
    for root in [false, true] {
        fetch();
        assert_eq!(front_counts(), [1, 1]);
        // Each node has one of them, the second name has none anywhere: what is there goes, and each node says what is not.
        let words = ["rm", "--cluster", &one, "nobody/has:it", &two];
        let told = match root {
            true => hosts.root("n1", "berth").arg("image").args(words).limit(60).fails(),
            false => front(&words).fails(),
        };
        let said = told.says(&["n1: image nobody/has:it: ", "n2: image nobody/has:it: "]);
        assert!(!said.err().contains(&format!("image {one}: ")), "{said}");
        assert_eq!(front_counts(), [0, 0], "{said}");
        // All of it is somewhere.
        fetch();
        let words = ["rm", "--cluster", &one, &two];
        let told = match root {
            true => hosts.root("n1", "berth").arg("image").args(words).limit(60).ok(),
            false => front(&words).ok(),
        };
        assert_eq!(told.text().matches(": removed sha256:").count(), 2, "{told}");
        assert_eq!(front_counts(), [0, 0]);
    }
}

/// What a node does not list may be there all the same, with a record that cannot be read: that it could not go is no word of its absence.
#[test]
fn a_node_that_could_not_remove_an_image_is_named_though_another_one_could_as_root() {
    let hosts = Hosts::new(&["n1", "n2"]);
    hosts.up("n1", "");
    hosts.join("n2", &hosts.token("n1", &[]));
    for name in ["n1", "n2"] {
        hosts.wait_node(name, "idle", 60);
    }
    let image = images::busybox().display().to_string();
    answers(&hosts, false, &["pull", &image]);
    let container = format!("--container-image={image}");
    let command = ["-w", "n2", &container, "sh", "-c", "echo up; cat"];
    let mut running = hosts.cmd("n1", "srun").args(command).limit(120).stdin_open().spawn();
    running.wait_for("up", 60);
    let listed = answers(&hosts, true, &["ls", "-w", "n2"]);
    let digest = listed[0]["answer"]["images"][0]["digest"].as_str().unwrap();
    let record = hosts.state("n2").join("images/images").join(format!("{}.json", digest.replace(':', "-")));
    std::fs::write(record, "{").unwrap();
    assert_eq!(counts(&hosts, true), [1, 0]);
    let rm = hosts.root("n1", "berth").args(["image", "rm", "--cluster", "--force", digest]).limit(60);
    let told = rm.fails().says(&["n2: ", "is used by a container"]);
    assert!(told.text().contains(&format!("n1: removed {digest}")), "{told}");
    running.close();
    running.finish();
}

#[test]
fn nobody_reaches_others_images_on_other_nodes_as_root() {
    let hosts = Hosts::new(&["n1", "n2"]);
    hosts.up("n1", "root_jobs = true\n");
    hosts.join("n2", &hosts.token("n1", &[]));
    for name in ["n1", "n2"] {
        hosts.wait_node(name, "idle", 60);
    }
    let image = images::debian();
    hosts.cmd("n1", "srun").args(["-w", "n2", "--container-image"]).arg(&image).arg("true").limit(60).ok();
    let of_user = answers(&hosts, false, &["ls", "-w", "n2"]);
    let digest = of_user[0]["answer"]["images"][0]["digest"].as_str().unwrap().to_string();
    // Another user sees nothing of it and cannot remove it, with its digest at hand.
    let stranger =
        |words: &[&str]| hosts.on("n1", &Who::stranger(), "berth").args(["image"]).args(words).limit(60);
    let seen: Value = serde_json::from_str(&stranger(&["ls", "--cluster", "--json"]).ok().text()).unwrap();
    for node in seen.as_array().unwrap() {
        assert_eq!(node["answer"]["images"], serde_json::json!([]), "{seen}");
    }
    stranger(&["rm", "--cluster", "-w", "n2", &digest]).fails().says(&["n2: ", "you have none of that name"]);
    // A job of root's has no say in all images of a node: its node speaks for it, and may be anybody's.
    for words in ["ls", "prune --all"] {
        let line = format!("berth image {words} --cluster -w n2");
        let job = hosts.root("n1", "srun").args(["-w", "n2", "sh", "-c", &line]).limit(60).run();
        assert_ne!(job.rc, 0, "{job}");
        job.says(&["n2: ", "outside jobs"]);
    }
    // Nor has root of a compute node, outside of jobs.
    let outside = hosts.root("n2", "berth").args(["image", "prune", "--all", "--cluster"]).limit(60).fails();
    assert!(!outside.err().contains("removed"), "{outside}");
    assert_eq!(answers(&hosts, false, &["ls", "-w", "n2"]), of_user);
}
