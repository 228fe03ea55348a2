//! Nodes without a way to a registry: a gateway fetches what they need, with the login that came along, and what is said of its signature.

use super::{asked, gives, log, login_file};
use crate::signatures::{Signer, rule};
use berth_tests::sandbox::wait;
use berth_tests::{Cmd, Hosts, Registry, Who, images, layout};

/// Nodes n1 and gw, in whose network a registry is, and far, which has no way there; gw is the gateway.
fn behind_a_gateway(login: bool, config: impl FnOnce(&Registry) -> String) -> (Hosts, Registry) {
    let hosts = Hosts::new(&["n1", "gw", "far"]);
    for (host, address) in [("n1", "10.88.0.1/24"), ("gw", "10.88.0.2/24")] {
        hosts.root(host, "ip").args(["addr", "add", address, "dev", "eth0"]).ok();
    }
    let registry = Registry::on(&hosts, "n1", "10.88.0.1", login);
    hosts.up("n1", &config(&registry).replacen("[images]\n", "[images]\ngateways = \"gw\"\n", 1));
    let token = hosts.token("n1", &["--uses", "2"]);
    for name in ["gw", "far"] {
        hosts.join(name, &token);
    }
    for name in ["n1", "gw", "far"] {
        hosts.wait_node(name, "idle", 60);
        gives(&hosts, name);
    }
    (hosts, registry)
}

/// Without a gateway: whoever of them asks first, the one that has a way there brings it, and gives it to the other.
#[test]
fn a_node_without_a_way_to_the_registry_gets_an_image_from_one_that_starts_at_the_same_time_as_root() {
    let hosts = Hosts::new(&["n1", "far", "near"]);
    for (host, address) in [("n1", "10.88.0.1/24"), ("near", "10.88.0.2/24")] {
        hosts.root(host, "ip").args(["addr", "add", address, "dev", "eth0"]).ok();
    }
    let registry = Registry::on(&hosts, "n1", "10.88.0.1", false);
    hosts.up("n1", &registry.without_tls());
    let token = hosts.token("n1", &["--uses", "2"]);
    for name in ["far", "near"] {
        hosts.join(name, &token);
    }
    for name in ["n1", "far", "near"] {
        hosts.wait_node(name, "idle", 60);
        gives(&hosts, name);
    }
    let image = registry.push(&images::layers(), "team/app:1", &[]);
    let container = format!("--container-image={image}");
    // It asks first, and has failed before the other one hears of it.
    hosts.pause("near", "agent");
    let words = ["-N2", "-w", "far,near", &container, "cat", "/data/kept"];
    let running = hosts.cmd("n1", "srun").args(words).limit(120).spawn();
    let waits = || log(&hosts, "far").contains("other nodes may have a way there").then_some(());
    let waits = wait(60, waits).is_some();
    hosts.resume("near", "agent");
    let told = running.finish();
    assert!(waits && told.rc == 0, "{told}\n{}", log(&hosts, "far"));
    assert_eq!(told.text().lines().count(), 2, "{told}");
    let blobs = asked(&registry);
    assert!(blobs.len() > 3 && blobs.values().all(|times| *times == 1), "{blobs:?}\n{}", log(&hosts, "far"));
    // Where it is the only one that wants it, it says what it found.
    let other = registry.push(&images::busybox(), "team/other:1", &[]);
    let container = format!("--container-image={other}");
    let told = hosts.cmd("n1", "srun").args(["-w", "far", &container, "true"]).limit(120).fails();
    told.says(&["cannot be reached"]);
}

#[test]
fn a_node_without_a_way_to_a_private_registry_gets_its_image_by_a_gateway_as_root() {
    let (hosts, registry) = behind_a_gateway(true, Registry::without_tls);
    let image = registry.push(&images::layers(), "team/private:1", &[]);
    let password = "of-the-gateway";
    registry.take_only(password);
    // The login file is gone when the job starts: what is used is what came with the job, sealed.
    let directory = login_file(&hosts, &registry, password);
    let container = format!("--container-image={image}");
    std::fs::write(hosts.work().join("job.sh"), "#!/bin/sh\ncat /data/kept\n").unwrap();
    let words = ["--parsable", "--hold", "-w", "far", "-o", "out", &container, "job.sh"];
    let submit = hosts.cmd("n1", "sbatch").args(words).env("DOCKER_CONFIG", &directory);
    let job = submit.limit(60).ok().text().trim().to_string();
    std::fs::remove_dir_all(&directory).unwrap();
    hosts.cmd("n1", "scontrol").args(["release", &job]).ok();
    let out = || std::fs::read_to_string(hosts.work().join("out")).unwrap_or_default();
    let there = wait(60, || out().contains("kept").then_some(()));
    assert!(there.is_some(), "{}\n{}\n{}", out(), log(&hosts, "far"), log(&hosts, "gw"));
    assert!(log(&hosts, "gw").contains(&format!("the image of job {job} is there for other nodes")));
    let blobs = asked(&registry);
    assert!(!blobs.is_empty() && blobs.values().all(|times| *times == 1), "{blobs:?}");
}

/// The usual script: what it is to run in is named where nobody can ask the registry, on the node and inside of a container there.
#[test]
fn a_name_in_a_job_on_a_node_without_a_way_to_the_registry_means_what_a_gateway_finds_as_root() {
    let (hosts, registry) = behind_a_gateway(true, Registry::without_tls);
    let image = registry.push(&images::layers(), "team/private:1", &[]);
    let other = registry.push(&images::busybox(), "team/other:1", &[]);
    let index = layout::indexed(&images::layers(), &hosts.work().join("indexed"));
    registry.push(&hosts.work().join("indexed"), "team/private:many", &["--all"]);
    let pinned = registry.image(&format!("team/private@{index}"));
    let password = "of-the-names";
    registry.take_only(password);
    let directory = login_file(&hosts, &registry, password);
    let told = |words: &[&str], script: &str| -> String {
        std::fs::write(hosts.work().join("job.sh"), format!("#!/bin/sh\n{script}\necho over\n")).unwrap();
        let words = [["--wait", "-w", "far", "-o", "out"].as_slice(), words, &["job.sh"]].concat();
        hosts.cmd("n1", "sbatch").args(words).env("DOCKER_CONFIG", &directory).limit(180).run();
        let out = std::fs::read_to_string(hosts.work().join("out")).unwrap_or_default();
        std::fs::remove_file(hosts.work().join("out")).unwrap();
        assert!(out.contains("over"), "{out}\n{}\n{}", log(&hosts, "far"), log(&hosts, "gw"));
        out
    };
    // The step is told of no login file: what the gateway has came sealed with the step.
    let out = told(&[], &format!("srun --export=NONE --container-image={image} cat /data/kept"));
    assert!(out.contains("kept"), "{out}\n{}\n{}", log(&hosts, "far"), log(&hosts, "gw"));
    assert!(log(&hosts, "gw").contains("the name of the image of step "), "{}", log(&hosts, "gw"));
    // Inside of a container nobody has logins but the job.
    let container = format!("--container-image={image}");
    let inner = format!("srun --export=NONE --container-image={other} echo in the other");
    let out = told(&[&container, "--export=NONE"], &inner);
    assert!(out.contains("in the other"), "{out}\n{}\n{}", log(&hosts, "far"), log(&hosts, "gw"));
    // By the digest of an index: the gateway shows what that lists.
    let out = told(&[], &format!("srun --export=NONE --container-image={pinned} cat /data/kept"));
    assert!(out.contains("kept"), "{out}\n{}\n{}", log(&hosts, "far"), log(&hosts, "gw"));
    // What is refused, and who refused it.
    let missing = registry.image("team/private:none");
    let out = told(&[], &format!("srun --export=NONE --container-image={missing} true"));
    let words = ["cannot be reached", "gateway gw: ", "there is no image \"none\"", &registry.host()];
    assert!(words.iter().all(|word| out.contains(word)), "{out}");
    // The site's rules come first: nobody is asked.
    let before = registry.requests("HEAD", "team/") + registry.requests("GET", "team/");
    let config =
        format!("{}gateways = \"gw\"\ndeny = [\"{}/team\"]\n", registry.without_tls(), registry.host());
    std::fs::write(hosts.state("n1").join("berth.toml"), config).unwrap();
    hosts.root("n1", "scontrol").arg("reconfigure").limit(60).ok();
    let out = told(&[], &format!("srun --export=NONE --container-image={image} true"));
    assert!(out.contains("denied") || out.contains("deny"), "{out}");
    assert_eq!(registry.requests("HEAD", "team/") + registry.requests("GET", "team/"), before);
}

/// Without a job, too: a node that can ask nobody has a gateway fetch what a user asked it to have.
#[test]
fn a_node_without_a_way_to_a_registry_is_given_what_a_user_asks_it_to_have_as_root() {
    let (hosts, registry) = behind_a_gateway(false, Registry::without_tls);
    let image = registry.push(&images::layers(), "team/app:1", &[]);
    let words = ["image", "pull", "--cluster", "-w", "far", "--json", &image];
    let told = hosts.cmd("n1", "berth").args(words).limit(120).ok();
    let answers: serde_json::Value = serde_json::from_str(&told.text()).unwrap();
    assert!(answers[0]["answer"]["digest"].is_string(), "{told}\n{}", log(&hosts, "gw"));
    assert!(!told.err().contains("by itself"), "{told}");
    let blobs = asked(&registry);
    assert!(!blobs.is_empty() && blobs.values().all(|times| *times == 1), "{blobs:?}");
    // It is there for a job of that user.
    let container = format!("--container-image={image}");
    let told = hosts.cmd("n1", "srun").args(["-w", "far", &container, "cat", "/data/kept"]).limit(60).ok();
    assert_eq!(told.text().trim(), "kept", "{told}");
    assert_eq!(asked(&registry), blobs);
}

/// The login goes along, sealed: no node has it in a file, be it a gateway or one that asks the registry itself.
#[test]
fn an_image_that_a_user_asks_nodes_to_have_comes_with_the_login_that_was_sent_along_as_root() {
    let (hosts, registry) = behind_a_gateway(true, Registry::without_tls);
    let password = "sent-along";
    let image = registry.push(&images::layers(), "team/private:1", &[]);
    let other = registry.push(&images::busybox(), "team/other:1", &[]);
    registry.take_only(password);
    let directory = login_file(&hosts, &registry, password);
    let pull = |nodes: &str, image: &str| {
        let words = ["image", "pull", "--cluster", "-w", nodes, "--json", image];
        hosts.cmd("n1", "berth").args(words).env("DOCKER_CONFIG", &directory).limit(120)
    };
    for (nodes, image) in [("far", &image), ("gw", &other)] {
        let told = pull(nodes, image).ok();
        let answers: serde_json::Value = serde_json::from_str(&told.text()).unwrap();
        assert!(answers[0]["answer"]["digest"].is_string(), "{told}\n{}", log(&hosts, "gw"));
    }
    let blobs = asked(&registry);
    assert!(!blobs.is_empty() && blobs.values().all(|times| *times == 1), "{blobs:?}");
    // Another user has neither the image nor the login.
    let words = ["image", "pull", "--cluster", "-w", "far", &image];
    let told = hosts.on("n1", &Who::stranger(), "berth").args(words).limit(120).fails();
    assert!(told.err().contains("login"), "{told}");
    // Nothing of it is in the files of any host.
    for host in ["n1", "gw", "far"] {
        let grep = Cmd::new("grep").args(["-r", "-l", "-a", "-F", "-s", "-D", "skip", password]);
        let found = grep.arg(hosts.state(host)).run().text();
        assert_eq!(found, "", "{host}");
    }
}

/// What a gateway was told of its signature is enough for a node that can ask nobody, which judges it by its own keys.
#[test]
fn an_image_that_must_be_signed_runs_on_a_node_without_a_way_to_its_registry_as_root() {
    let signer = Signer::new();
    let (hosts, registry) =
        behind_a_gateway(false, |registry| rule(registry, "team", "require", &signer.text()));
    let image = registry.push(&images::layers(), "team/app:1", &[]);
    let unsigned = registry.push(&images::busybox(), "team/other:1", &[]);
    let network = format!("--net={}", hosts.network("n1").display());
    signer.sign_from(Cmd::new("nsenter").arg(network), &registry, "team/app", "1");
    let told = |image: &str| {
        let script = format!("#!/bin/sh\nsrun --container-image={image} cat /data/kept\necho over\n");
        std::fs::write(hosts.work().join("job.sh"), script).unwrap();
        let words = ["--wait", "-w", "far", "-o", "out", "job.sh"];
        hosts.cmd("n1", "sbatch").args(words).limit(180).run();
        let out = std::fs::read_to_string(hosts.work().join("out")).unwrap_or_default();
        assert!(out.contains("over"), "{out}\n{}\n{}", log(&hosts, "far"), log(&hosts, "gw"));
        out
    };
    let out = told(&image);
    assert!(out.contains("kept"), "{out}\n{}\n{}", log(&hosts, "far"), log(&hosts, "gw"));
    assert_eq!(registry.requests("GET", ".sig "), 1, "the gateway alone looked");
    let shown = hosts.root("far", "berth").args(["image", "inspect", &image]).limit(60).ok().text();
    assert!(shown.contains("\"signed_by\": \"sha256:"), "{shown}");
    // No node is made to take another image for signed, and what the gateway found wrong is said.
    let out = told(&unsigned);
    assert!(out.contains("gateway gw: ") && out.contains("requires a signature"), "{out}");
    assert!(!out.contains("kept"), "{out}");
}

/// A rule that came after the image, and refuses nothing: what no other node knows is told, and no start waits for a registry.
#[test]
fn where_people_are_only_told_of_unsigned_images_no_start_behind_a_gateway_asks_the_registry_as_root() {
    let signer = Signer::new();
    let (hosts, registry) = behind_a_gateway(false, Registry::without_tls);
    let image = registry.push(&images::layers(), "team/app:1", &[]);
    let script = format!("#!/bin/sh\nsrun --container-image={image} cat /data/kept\necho over\n");
    std::fs::write(hosts.work().join("job.sh"), script).unwrap();
    let run = || {
        let words = ["--wait", "-w", "far", "-o", "out", "job.sh"];
        hosts.cmd("n1", "sbatch").args(words).limit(180).run();
        std::fs::read_to_string(hosts.work().join("out")).unwrap_or_default()
    };
    let started = || {
        let out = run();
        assert!(out.contains("kept"), "{out}\n{}\n{}", log(&hosts, "far"), log(&hosts, "gw"));
        out
    };
    assert!(!started().contains("unsigned"));
    let config = rule(&registry, "team", "warn", &signer.text());
    let config = config.replacen("[images]\n", "[images]\ngateways = \"gw\"\n", 1);
    std::fs::write(hosts.state("n1").join("berth.toml"), config).unwrap();
    hosts.root("n1", "scontrol").arg("reconfigure").limit(60).ok();
    // Once its agent has the rule, and knows other nodes again, which begin anew, too.
    let said = "no other node has a signature";
    assert!(wait(60, || run().contains(said).then_some(())).is_some(), "{}", log(&hosts, "far"));
    let out = started();
    assert!(out.contains("unsigned image") && out.contains(said), "{out}");
}
