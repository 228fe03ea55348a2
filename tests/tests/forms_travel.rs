//! Read-only images of layers that travel between nodes: a node takes what others made alike, each by itself, and nothing that one of them
//! alone says or gives. They need a kernel that mounts them, and say `file_backed` in their name.

use crate::peers::{configured, gives, identity, log};
use berth_tests::sandbox::wait;
use berth_tests::{Hosts, Registry, images};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// What a container shows of its root.
const TREE: &str =
    "find /bin /data -exec stat -c '%n %f %s %u %g' {} + | sort && cat /data/kept /data/replaced";

/// Nodes n1, n2, ... that keep layers as images, of which so many have to have made one alike; and the registry's image.
fn cluster(count: usize, agreed: u32) -> (Hosts, Registry, String) {
    let (hosts, registry) =
        configured(count, false, &format!("layer_form = \"erofs\"\nforms_agreed = {agreed}\n"));
    (1..=count).for_each(|n| gives(&hosts, &format!("n{n}")));
    let image = registry.push(&images::layers(), "team/app:1", &[]);
    (hosts, registry, image)
}

/// Runs on a node in the image; gives what the container shows.
fn run(hosts: &Hosts, node: &str, image: &str) -> String {
    let container = format!("--container-image={image}");
    let words = ["-w", node, &container, "sh", "-c", TREE];
    let told = hosts.cmd("n1", "srun").args(words).limit(120).run();
    assert_eq!(told.rc, 0, "{told}\n{}", log(hosts, node));
    told.text()
}

/// The directories of a node's layers.
fn layers(hosts: &Hosts, node: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(hosts.state(node).join("images/layers")).unwrap();
    let all: Vec<PathBuf> = all.map(|entry| entry.unwrap().path()).collect();
    assert!(all.len() > 2, "{all:?}");
    all
}

/// What a node has noted of its layers.
fn records(hosts: &Hosts, node: &str) -> Vec<Value> {
    let record = |layer: PathBuf| std::fs::read(layer.join("layer.json")).unwrap();
    layers(hosts, node).into_iter().map(|layer| serde_json::from_slice(&record(layer)).unwrap()).collect()
}

/// Of all its layers, whether the node made them by itself; nothing where none of them travels.
fn made(hosts: &Hosts, node: &str) -> Option<bool> {
    let mut all = records(hosts, node).into_iter().map(|record| record["form"]["made"].as_bool());
    let first = all.next().unwrap();
    assert!(all.all(|made| made == first), "{node}: {:?}", records(hosts, node));
    first
}

/// How many layers came to a node as another's read-only images, as its log has it.
fn taken(hosts: &Hosts, node: &str) -> usize {
    log(hosts, node).matches("a layer came as its read-only image").count()
}

/// Changes a byte of each read-only image that a node has.
fn alter(hosts: &Hosts, node: &str) {
    for layer in layers(hosts, node) {
        let file = std::fs::File::options().read(true).write(true).open(layer.join("fs.erofs")).unwrap();
        let at = file.metadata().unwrap().len() - 1;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }
}

#[test]
fn what_two_nodes_made_alike_a_third_takes_as_it_is_and_has_it_as_whole_file_backed_as_root() {
    let (hosts, registry, image) = cluster(5, 2);
    let tree = run(&hosts, "n2", &image);
    assert!(tree.contains("kept") && tree.contains("/bin/"), "{tree}");
    let fetched = registry.fetched();
    // One alone is believed by nobody.
    assert_eq!(run(&hosts, "n3", &image), tree);
    assert_eq!((made(&hosts, "n2"), made(&hosts, "n3")), (Some(true), Some(true)));
    assert_eq!((taken(&hosts, "n2"), taken(&hosts, "n3")), (0, 0));
    // Whom the controller did not name gets nothing of it by its digest.
    let form = records(&hosts, "n2")[0]["form"]["digest"].as_str().unwrap().to_string();
    let name = image.rsplit_once(':').unwrap().0;
    let url = format!("https://{}:7818/v2/{name}/blobs/{form}", hosts.address("n2"));
    let [certificate, key] = identity(&hosts, "n4");
    let shows = ["-k", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--cert", &certificate, "--key", &key];
    let told = hosts.root("n4", "curl").args(shows).args(["--max-time", "20", &url]).run();
    assert_eq!(told.text(), "403", "{told}");
    // By a job that has the image it gets it so, and runs the same.
    assert_eq!(run(&hosts, "n4", &image), tree);
    assert_eq!(taken(&hosts, "n4"), layers(&hosts, "n4").len(), "{}", log(&hosts, "n4"));
    assert_eq!(made(&hosts, "n4"), Some(false));
    assert_eq!(registry.fetched(), fetched, "the registry was asked for what nodes had");
    // It is as whole as one that was made there: for whoever looks for damage, writes it elsewhere, or takes it from there.
    hosts.root("n4", "berth").args(["image", "verify"]).limit(60).ok();
    let whole = hosts.work().join("whole.oci");
    hosts.root("n4", "berth").args(["image", "export", &image]).arg(&whole).limit(60).ok();
    let listed = hosts.root("n4", "berth").args(["image", "inspect", &image]).limit(60).ok().text();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert!(listed["layers"].as_array().unwrap().iter().all(|layer| layer["form"] == "erofs"), "{listed}");
    for host in ["n2", "n3"] {
        hosts.link(host, false);
    }
    assert_eq!(run(&hosts, "n5", &image), tree);
    assert_eq!((taken(&hosts, "n5"), made(&hosts, "n5")), (layers(&hosts, "n5").len(), Some(false)));
    assert_eq!(registry.fetched(), fetched);
}

#[test]
fn a_node_that_gives_other_bytes_than_those_agreed_on_is_gone_on_without_file_backed_as_root() {
    let (hosts, registry, image) = cluster(4, 2);
    let tree = run(&hosts, "n2", &image);
    assert_eq!(run(&hosts, "n3", &image), tree);
    let fetched = registry.fetched();
    alter(&hosts, "n2");
    assert_eq!(run(&hosts, "n4", &image), tree);
    let said = log(&hosts, "n4");
    assert!(said.contains("n2 does not give it: gave bytes with digest"), "{said}");
    assert!(said.contains("goes on from n3"), "{said}");
    assert_eq!(registry.fetched(), fetched);
    hosts.root("n4", "berth").args(["image", "verify"]).limit(60).ok();
    // Where all others give such bytes it is made of what the registry has.
    alter(&hosts, "n3");
    alter(&hosts, "n4");
    assert_eq!(run(&hosts, "n1", &image), tree);
    let said = log(&hosts, "n1");
    assert!(said.contains("it is fetched from its source"), "{said}");
    assert_ne!(registry.fetched(), fetched);
    hosts.root("n1", "berth").args(["image", "verify"]).limit(60).ok();
}

/// Somebody has a node's keys and all of its files, and has it say what they like.
#[test]
fn what_a_node_claims_alone_is_an_alarm_and_comes_to_no_other_file_backed_as_root() {
    let (hosts, _registry, image) = cluster(4, 2);
    let tree = run(&hosts, "n2", &image);
    assert_eq!(run(&hosts, "n3", &image), tree);
    for layer in layers(&hosts, "n2") {
        let place = layer.join("layer.json");
        let mut record: Value = serde_json::from_slice(&std::fs::read(&place).unwrap()).unwrap();
        record["form"]["digest"] = format!("sha256:{:064x}", 7).into();
        std::fs::write(&place, record.to_string()).unwrap();
    }
    hosts.kill_9("n2", "agent");
    hosts.root("n2", "berth").args(["up", "--detach"]).limit(60).ok();
    let audit = || hosts.root("n1", "berth").args(["audit", "-n", "0"]).ok().text();
    let alarmed = || {
        let said = audit();
        let all = layers(&hosts, "n3").len();
        (said.matches("ALARM: nodes made different read-only images of layer").count() >= all).then_some(said)
    };
    let said = wait(60, alarmed).unwrap_or_else(|| panic!("{}\n{}", audit(), log(&hosts, "n2")));
    assert!(said.contains("n2 made sha256:00") && said.contains("n3 made sha256:"), "{said}");
    hosts.wait_node("n2", "idle", 60);
    assert_eq!(run(&hosts, "n4", &image), tree);
    assert_eq!((taken(&hosts, "n4"), made(&hosts, "n4")), (0, Some(true)));
}

#[test]
fn where_nobody_is_to_agree_archives_travel_file_backed_as_root() {
    let (hosts, registry, image) = cluster(3, 0);
    let tree = run(&hosts, "n1", &image);
    let fetched = registry.fetched();
    for node in ["n2", "n3"] {
        assert_eq!(run(&hosts, node, &image), tree);
        assert_eq!((taken(&hosts, node), made(&hosts, node)), (0, None));
    }
    assert_eq!(registry.fetched(), fetched);
}
