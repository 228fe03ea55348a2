//! What a node gives of an image to whom: to the key that the controller named and to no other, by the API of the standard.

use super::{gives, large, log, nodes, size};
use berth_tests::sandbox::wait;
use berth_tests::{Cmd, Hosts, Registry, images};
use std::path::{Path, PathBuf};

/// The certificate with which a machine joined, as curl takes it.
pub(crate) fn identity(hosts: &Hosts, host: &str) -> [String; 2] {
    let private = hosts.state(host).join("private");
    let find = |ending: &str| {
        let mut all =
            std::fs::read_dir(&private).unwrap().flatten().map(|entry| entry.path().display().to_string());
        all.find(|path| path.contains("/node-") && path.ends_with(ending)).unwrap()
    };
    let out = hosts.state(host).join("attack.pem").display().to_string();
    hosts.root(host, "openssl").args(["x509", "-inform", "DER", "-in", &find(".crt"), "-out", &out]).ok();
    [out, find(".key")]
}

#[test]
fn a_digest_opens_nothing_for_whom_the_controller_did_not_name_as_root() {
    let names = ["n1", "n2", "n3", "front"];
    let hosts = Hosts::new(&names);
    let registry = Registry::on(&hosts, "n1", &hosts.address("n1"), false);
    hosts.up("n1", &registry.without_tls());
    let token = hosts.token("n1", &["--uses", "2"]);
    hosts.join("n2", &token);
    hosts.join("n3", &token);
    hosts.join("front", &hosts.token("n1", &["--role", "login"]));
    for name in &names[..3] {
        hosts.wait_node(name, "idle", 60);
        gives(&hosts, name);
    }
    let place = images::layers();
    let image = registry.push(&place, "team/secret:1", &[]);
    let container = format!("--container-image={image}");
    hosts.cmd("n1", "srun").args(["-w", "n2", &container, "true"]).limit(60).ok();
    let name = image.rsplit_once(':').unwrap().0.to_string();
    let ask = |from: &str, words: &[&str], path: &str| {
        let url = format!("https://10.77.0.2:7818/v2/{name}/{path}");
        let base = ["-k", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20", &url];
        hosts.root(from, "curl").args(base).args(words).run()
    };
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(place.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let paths = [format!("manifests/{digest}"), format!("blobs/{digest}")];
    // A node of the cluster, with its own valid certificate, that knows the digest.
    let [cert, key] = identity(&hosts, "n3");
    let shows = ["--cert", &cert, "--key", &key];
    for path in &paths {
        let told = ask("n3", &shows, path);
        assert_eq!(told.text(), "403", "{told}");
    }
    // A login node, and nobody.
    let [cert, key] = identity(&hosts, "front");
    let told = ask("front", &["--cert", &cert, "--key", &key], &paths[0]);
    assert!(told.rc != 0 && told.text() == "000", "{told}");
    let told = ask("n3", &[], &paths[0]);
    assert!(told.rc != 0 && told.text() == "000", "{told}");
    let said = log(&hosts, "n2");
    assert_eq!(said.matches(" is turned away: ").count(), 2, "{said}");
    // It gets the image by a job that has it, and nothing more when that has it.
    let fetched = registry.fetched();
    hosts.cmd("n1", "srun").args(["-w", "n3", &container, "true"]).limit(60).ok();
    assert_eq!(registry.fetched(), fetched);
    for path in &paths {
        let told = ask("n3", &shows, path);
        assert_eq!(told.text(), "403", "{told}");
    }
}

/// What curl asks of n2, with the certificate and key of a machine: the heads of the answer, and the file with the rest.
fn take(hosts: &Hosts, from: &str, shows: &[String; 2], path: &str, more: &[&str]) -> (String, PathBuf) {
    let file = hosts.work().join(path.replace(['/', ':'], "-"));
    let url = format!("https://10.77.0.2:7818/v2/{path}");
    let words = ["-k", "-s", "-D", "-", "--max-time", "20", "--cert", &shows[0], "--key", &shows[1], &url];
    let told = hosts.root(from, "curl").args(words).args(more).arg("-o").arg(&file).run();
    (told.text(), file)
}

/// As digests write it.
fn sum(file: &Path) -> String {
    let told = Cmd::new("sha256sum").arg(file).run().text();
    format!("sha256:{}", told.split(' ').next().unwrap_or_default())
}

/// Nodes ask each other by the standard's API; with uncompressed layers all of an image is there for a client that knows nothing else.
#[test]
fn tools_of_the_standard_pull_a_whole_image_with_a_key_that_was_named_and_with_no_other_as_root() {
    let (hosts, registry) = nodes(4);
    let place = large(12);
    let image = registry.push(place.path(), "team/large:1", &[]);
    let container = format!("--container-image={image}");
    hosts.cmd("n1", "srun").args(["-w", "n2", &container, "true"]).limit(120).ok();
    let url = format!("http://{}/v2/team/large/manifests/1", registry.host());
    let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
    let head = hosts.root("n1", "curl").args(["-s", "-I", "-H", accept, &url]).ok().text();
    let head = head.to_ascii_lowercase();
    let digest = head.lines().find_map(|line| line.strip_prefix("docker-content-digest: ")).unwrap().trim();
    let tag = format!("uncompressed-{}", digest.replace(':', "-"));
    // While n3 takes the image from n2, which is slow, its key may have it; its agent stands still, so that it stays so.
    let slow = "qdisc add dev eth0 root tbf rate 8mbit burst 64kb latency 50ms";
    hosts.root("n2", "tc").args(slow.split(' ')).ok();
    let running = hosts.cmd("n1", "srun").args(["-w", "n3", &container, "true"]).limit(180).spawn();
    let begun = || (size(&hosts.state("n3").join("images/tmp")) > 1 << 20).then_some(());
    assert!(wait(60, begun).is_some(), "nothing came to n3: {}", log(&hosts, "n3"));
    let shows = identity(&hosts, "n3");
    let agent = nix::unistd::Pid::from_raw(hosts.pid("n3", "agent"));
    nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGSTOP).unwrap();
    hosts.root("n2", "tc").args("qdisc del dev eth0 root".split(' ')).run();
    let name = format!("{}/team/large", registry.host());
    let (head, file) = take(&hosts, "n3", &shows, &format!("{name}/manifests/{tag}"), &[]);
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&file).unwrap_or_default()).unwrap_or_default();
    let named = sum(&file);
    let mut parts = manifest["layers"].as_array().cloned().unwrap_or_default();
    parts.push(manifest["config"].clone());
    let blob = |part: &serde_json::Value, more: &[&str]| {
        let path = format!("{name}/blobs/{}", part["digest"].as_str().unwrap_or_default());
        take(&hosts, "n3", &shows, &path, more)
    };
    let kept = |file: PathBuf| (sum(&file), std::fs::read(&file).unwrap_or_default());
    let taken: Vec<(String, Vec<u8>)> = parts.iter().map(|part| kept(blob(part, &[]).1)).collect();
    let (range, piece) = blob(parts.last().unwrap(), &["-r", "5-9"]);
    let again = take(&hosts, "n3", &shows, &format!("{name}/manifests/{named}"), &[]);
    let (original, first) = take(&hosts, "n3", &shows, &format!("{name}/manifests/{digest}"), &[]);
    // A port has no colon in the standard's names.
    let keys = hosts.work().join("keys");
    std::fs::create_dir(&keys).unwrap();
    std::fs::copy(&shows[0], keys.join("client.cert")).unwrap();
    std::fs::copy(&shows[1], keys.join("client.key")).unwrap();
    let from = format!("docker://10.77.0.2:7818/{}:{tag}", name.replace(':', "_"));
    let to = hosts.work().join("pulled");
    let copy =
        hosts.root("n3", "skopeo").args(["copy", "--quiet", "--src-tls-verify=false", "--src-cert-dir"]);
    let copy = copy.arg(&keys).args([&from, &format!("dir:{}", to.display())]);
    let copied = copy.env("HOME", "/tmp").env("XDG_RUNTIME_DIR", "/tmp").limit(60).run();
    let path = format!("{name}/manifests/{tag}");
    let (another, _) = take(&hosts, "n4", &identity(&hosts, "n4"), &path, &[]);
    nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGCONT).unwrap();
    let of_oci = "Content-Type: application/vnd.oci.image.manifest.v1+json";
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains(of_oci), "{head}\n{}", log(&hosts, "n2"));
    assert!(head.contains(&format!("Docker-Content-Digest: {named}")), "{named}: {head}");
    assert_eq!(parts.len(), 3, "{manifest}");
    for (part, (found, bytes)) in parts.iter().zip(&taken) {
        assert_eq!(part["digest"], found.as_str());
        assert_eq!(part["size"], bytes.len());
    }
    assert!(range.starts_with("HTTP/1.1 206 ") && range.contains("Content-Range: bytes 5-9/"), "{range}");
    assert_eq!(std::fs::read(&piece).unwrap(), taken.last().unwrap().1[5..10]);
    assert!(again.0.starts_with("HTTP/1.1 200 ") && sum(&again.1) == named, "{}", again.0);
    assert!(original.starts_with("HTTP/1.1 200 ") && original.contains(of_oci), "{original}");
    assert_eq!(sum(&first), digest);
    assert_eq!(copied.rc, 0, "{copied}");
    assert_eq!(sum(&to.join("manifest.json")), named);
    assert!(another.starts_with("HTTP/1.1 403 "), "{another}");
    // The node's own pull goes on where it was, and when it is over its key opens nothing.
    let told = running.finish();
    assert_eq!(told.rc, 0, "{told}\n{}", log(&hosts, "n3"));
    let (after, _) = take(&hosts, "n3", &shows, &path, &[]);
    assert!(after.starts_with("HTTP/1.1 403 "), "{after}");
}
