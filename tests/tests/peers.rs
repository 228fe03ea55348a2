//! Images that travel between nodes: the registry is asked once, whoever dies in the middle is gone on without, and who lies is not believed.

mod gateways;
mod keys;

pub(crate) use keys::identity;

use crate::signatures::{Signer, rule};
use berth_tests::layout::{self, Layer};
use berth_tests::registry::LOGIN;
use berth_tests::sandbox::wait;
use berth_tests::{Cmd, Hosts, Registry, Who, images, machine};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Nodes n1, n2, ...; the first has the controller, and the registry.
fn nodes(count: usize) -> (Hosts, Registry) {
    let (hosts, registry) = configured(count, false, "");
    (1..=count).for_each(|n| gives(&hosts, &format!("n{n}")));
    (hosts, registry)
}

/// The same with more in the configuration of images, and a registry that wants a login or none.
pub(crate) fn configured(count: usize, login: bool, more: &str) -> (Hosts, Registry) {
    let names: Vec<String> = (1..=count).map(|n| format!("n{n}")).collect();
    let hosts = Hosts::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let registry = Registry::on(&hosts, "n1", &hosts.address("n1"), login);
    hosts.up("n1", &format!("{}{more}", registry.without_tls()));
    let token = hosts.token("n1", &["--uses", &count.to_string()]);
    for name in &names[1..] {
        hosts.join(name, &token);
    }
    for name in &names {
        hosts.wait_node(name, "idle", 60);
    }
    (hosts, registry)
}

pub(crate) fn log(hosts: &Hosts, host: &str) -> String {
    std::fs::read_to_string(hosts.state(host).join("log/agent.log")).unwrap_or_default()
}

/// Waits until a node gives images to others.
pub(crate) fn gives(hosts: &Hosts, name: &str) {
    let said = || log(hosts, name).contains("images are given to other nodes at").then_some(());
    assert!(wait(20, said).is_some(), "{name}: {}", log(hosts, name));
}

/// An image with a file of so many MiB that nothing compresses.
fn large(mib: usize) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let mut noise = vec![0; mib << 20];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    let noise = Layer::default().file("noise", 0o644, &noise);
    layout::write(place.path(), vec![layout::busybox(), noise], json!({}));
    place
}

/// How often each blob was asked for.
fn asked(registry: &Registry) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for path in registry.fetched() {
        *all.entry(path).or_default() += 1;
    }
    all
}

#[test]
fn nodes_that_start_at_once_ask_the_registry_for_each_blob_once_as_root() {
    let (hosts, registry) = nodes(4);
    let image = registry.push(&images::layers(), "team/app:1", &[]);
    let container = format!("--container-image={image}");
    let told = hosts.cmd("n1", "srun").args(["-N4", &container, "cat", "/data/kept"]).limit(120).ok();
    assert_eq!(told.text().lines().count(), 4, "{told}");
    let blobs = asked(&registry);
    assert!(blobs.len() > 3 && blobs.values().all(|times| *times == 1), "{blobs:?}");
    // Whoever comes to an image that is there asks nobody for it.
    hosts.cmd("n1", "srun").args(["-N4", &container, "true"]).limit(60).ok();
    assert_eq!(asked(&registry), blobs);
    // What the name means the client asks, each time, and nobody asks more for four nodes than for one.
    let container = format!("--container-image={}", registry.push(&images::busybox(), "team/one:1", &[]));
    for _ in 0..2 {
        hosts.cmd("n1", "srun").args(["-N1", "-w", "n2", &container, "true"]).limit(60).ok();
    }
    as_often(&registry, "team/app", "team/one");
}

/// That manifests of one repository, which several nodes have, were not asked for by each of them: as often as those of the other, which one
/// node has, or once more, as a node asks again where it is told a name before the answer to somebody else is there.
fn as_often(registry: &Registry, of_many: &str, of_one: &str) {
    let (many, one) = (registry.manifests(of_many), registry.manifests(of_one));
    let close = many.iter().zip(&one).all(|(many, one)| *many <= one + 1);
    assert!(one[1] > 0 && close, "HEAD and GET: {many:?} of {of_many}, {one:?} of {of_one}");
}

/// Without a job, too: a user, or root, has all nodes fetch an image.
#[test]
fn nodes_that_are_to_have_an_image_ask_the_registry_for_each_blob_once_as_root() {
    let (hosts, registry) = nodes(4);
    let image = registry.push(&images::layers(), "team/app:1", &[]);
    let pulled = |root: bool, image: &str| {
        let cmd = if root { hosts.root("n1", "berth") } else { hosts.cmd("n1", "berth") };
        let told = cmd.args(["image", "pull", "--cluster", "--json", image]).limit(120).ok();
        let answers: serde_json::Value = serde_json::from_str(&told.text()).unwrap();
        let answers = answers.as_array().unwrap().clone();
        assert!(
            answers.len() == 4 && answers.iter().all(|node| node["answer"]["digest"].is_string()),
            "{answers:?}"
        );
        assert!(!told.err().contains("by itself"), "{told}");
    };
    pulled(false, &image);
    let blobs = asked(&registry);
    assert!(blobs.len() > 3 && blobs.values().all(|times| *times == 1), "{blobs:?}");
    // Of manifests as often as for one node.
    let one = registry.push(&images::configured(), "team/one:1", &[]);
    hosts.cmd("n1", "berth").args(["image", "pull", "--cluster", "-w", "n3", &one]).limit(60).ok();
    as_often(&registry, "team/app", "team/one");
    let blobs = asked(&registry);
    // It is there, for whoever asked, on each of them.
    let container = format!("--container-image={image}");
    let told = hosts.cmd("n1", "srun").args(["-N4", &container, "cat", "/data/kept"]).limit(60).ok();
    assert_eq!(told.text().lines().count(), 4, "{told}");
    assert_eq!(asked(&registry), blobs);
    // And for root.
    let image = registry.push(&images::busybox(), "team/other:1", &[]);
    pulled(true, &image);
    let blobs = asked(&registry);
    assert!(blobs.values().all(|times| *times == 1), "{blobs:?}");
    // Who did not ask has nothing of it: a node that another user asks shows by that user's own way that they may have it.
    let image = registry.push(&images::debian(), "team/third:1", &[]);
    let words = ["image", "pull", "--cluster", "-w", "n2", &image];
    hosts.cmd("n1", "berth").args(words).limit(60).ok();
    let before = asked(&registry);
    let words = ["image", "pull", "--cluster", "-w", "n3", &image];
    hosts.on("n1", &Who::stranger(), "berth").args(words).limit(60).ok();
    let after = asked(&registry);
    assert!(before.iter().any(|(path, times)| after[path] > *times), "{before:?} {after:?}");
}

/// What compressed a layer is nothing that nodes have to know: they give each other what is in it. And a layer in which files take the place
/// of others is given as it was, too.
#[test]
fn layers_that_nobody_could_compress_again_come_from_the_registry_once_as_root() {
    let (hosts, registry) = nodes(3);
    let compressed = |program: &str, options: &[&str], archive: &[u8]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), archive).unwrap();
        Cmd::new(program).args(options).arg(file.path()).ok().stdout
    };
    let place = tempfile::tempdir().unwrap();
    let lowest = layout::busybox().finish();
    let text = |n: usize| format!("file {n} with something that can be compressed\n").repeat(500);
    let many = (0..20).fold(Layer::default().directory("many"), |l, n| {
        l.file(&format!("many/{n}"), 0o644, text(n).as_bytes())
    });
    let many = many.finish();
    let twice = Layer::default()
        .file("twice", 0o644, b"first")
        .file("other", 0o644, b"other")
        .file("twice", 0o644, b"second");
    let twice = twice.finish();
    // Two members, the first stored and not compressed; and zstd with a window and frames of its own.
    let (front, rest) = many.split_at(many.len() / 2);
    let odd = [
        compressed("gzip", &["-c", "-1", "--name"], front),
        compressed("gzip", &["-c", "-9", "--no-name"], rest),
    ]
    .concat();
    layout::write_compressed(
        place.path(),
        &[
            (
                "zstd",
                compressed("zstd", &["-q", "-c", "-19", "--long=24", "--no-check"], &lowest),
                lowest.clone(),
            ),
            ("gzip", odd, many),
            ("gzip", compressed("gzip", &["-c", "-1"], &twice), twice),
        ],
    );
    let image = registry.push(place.path(), "team/odd:1", &["--preserve-digests"]);
    let container = format!("--container-image={image}");
    let script = "cat /twice && cat /many/* | busybox wc -c";
    let told = hosts.cmd("n1", "srun").args(["-N3", &container, "sh", "-c", script]).limit(120).ok();
    assert_eq!(told.text().matches("second").count(), 3, "{told}");
    let blobs = asked(&registry);
    assert!(blobs.len() >= 4 && blobs.values().all(|times| *times == 1), "{blobs:?}\n{}", log(&hosts, "n1"));
    for host in ["n1", "n2", "n3"] {
        hosts.root(host, "berth").args(["image", "verify"]).limit(60).ok();
    }
}

#[test]
fn where_it_is_switched_off_each_node_fetches_by_itself_as_root() {
    let (hosts, registry) = configured(2, false, "peers = \"off\"\n");
    let image = registry.push(&images::layers(), "team/app:1", &[]);
    let container = format!("--container-image={image}");
    hosts.cmd("n1", "srun").args(["-N2", &container, "true"]).limit(120).ok();
    let blobs = asked(&registry);
    assert!(blobs.len() > 3 && blobs.values().all(|times| *times == 2), "{blobs:?}");
}

/// Each node has the login that was sent along, and nobody else.
#[test]
fn where_it_is_switched_off_each_node_fetches_with_the_login_that_a_user_sent_along_as_root() {
    let (hosts, registry) = configured(2, true, "peers = \"off\"\n");
    let image = registry.push(&images::layers(), "team/private:1", &[]);
    let password = "sent-along";
    registry.take_only(password);
    let directory = login_file(&hosts, &registry, password);
    let pull = hosts.cmd("n1", "berth").args(["image", "pull", "--cluster", "--json", &image]);
    let told = pull.env("DOCKER_CONFIG", &directory).limit(120).ok();
    let answers: serde_json::Value = serde_json::from_str(&told.text()).unwrap();
    let answers = answers.as_array().unwrap();
    assert!(answers.len() == 2 && answers.iter().all(|node| node["answer"]["digest"].is_string()), "{told}");
    let blobs = asked(&registry);
    assert!(blobs.len() > 3 && blobs.values().all(|times| *times == 2), "{blobs:?}");
    std::fs::remove_dir_all(&directory).unwrap();
    let words = ["image", "pull", "--cluster", "-w", "n2", &image];
    hosts.on("n1", &Who::stranger(), "berth").args(words).limit(120).fails().says(&["login"]);
    for host in ["n1", "n2"] {
        let grep = Cmd::new("grep").args(["-r", "-l", "-a", "-F", "-s", "-D", "skip", password]);
        assert_eq!(grep.arg(hosts.state(host)).run().text(), "", "{host}");
    }
}

#[test]
fn a_link_that_is_cut_in_the_middle_is_gone_on_without_as_root() {
    let (hosts, registry) = nodes(4);
    let place = large(48);
    let image = registry.push(place.path(), "team/large:1", &[]);
    let container = format!("--container-image={image}");
    let have = ["-N2", "-w", "n2,n4", &container, "true"];
    hosts.cmd("n1", "srun").args(have).limit(120).ok();
    let fetched = registry.fetched();
    // What n2 sends takes a minute.
    let slow = "qdisc add dev eth0 root tbf rate 8mbit burst 64kb latency 50ms";
    hosts.root("n2", "tc").args(slow.split(' ')).ok();
    let count = ["-w", "n3", &container, "sh", "-c", "wc -c < /noise"];
    let running = hosts.cmd("n1", "srun").args(count).limit(180).spawn();
    // In the middle: some of the large layer is there.
    let part = || {
        let tmp = hosts.state("n3").join("images/tmp");
        (size(&tmp) > 1 << 20).then_some(())
    };
    assert!(wait(60, part).is_some(), "nothing came to n3: {}", log(&hosts, "n3"));
    assert!(log(&hosts, "n3").lines().all(|line| !line.contains("does not give it")));
    hosts.link("n2", false);
    let told = running.finish();
    assert_eq!((told.rc, told.text().trim()), (0, (48 << 20).to_string().as_str()), "{told}");
    let said = log(&hosts, "n3");
    assert!(said.contains("n2 does not give it") && said.contains("goes on from n4"), "{said}");
    assert_eq!(registry.fetched(), fetched, "the registry was asked for what n4 had");
}

fn size(path: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size(&entry.path()),
        Ok(meta) => std::os::unix::fs::MetadataExt::blocks(&meta) * 512,
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}

#[test]
fn an_agent_that_is_killed_while_others_wait_for_it_is_not_waited_for_as_root() {
    let (hosts, registry) = nodes(3);
    let place = large(24);
    let image = registry.push(place.path(), "team/large:1", &[]);
    let container = format!("--container-image={image}");
    std::fs::write(hosts.work().join("job.sh"), "#!/bin/sh\nwc -c < /noise\n").unwrap();
    let submit = |node: &str| {
        let out = format!("out.{node}");
        let words = ["--parsable", "-w", node, "--requeue", "-o", &out, &container, "job.sh"];
        hosts.cmd("n1", "sbatch").args(words).limit(60).ok().text().trim().to_string()
    };
    let slow = "qdisc add dev eth0 root tbf rate 8mbit burst 64kb latency 50ms";
    hosts.root("n1", "tc").args(slow.split(' ')).ok();
    submit("n2");
    let begun = || (size(&hosts.state("n2").join("images/tmp")) > 1 << 20).then_some(());
    assert!(wait(60, begun).is_some(), "{}", log(&hosts, "n2"));
    submit("n3");
    hosts.kill_9("n2", "agent");
    hosts.root("n1", "tc").args("qdisc del dev eth0 root".split(' ')).ok();
    let there = || {
        let text = std::fs::read_to_string(hosts.work().join("out.n3")).unwrap_or_default();
        (text.trim() == (24 << 20).to_string()).then_some(())
    };
    assert!(wait(60, there).is_some(), "{}", log(&hosts, "n3"));
    hosts.root("n2", "berth").args(["up", "--detach"]).ok();
}

/// A directory with a login of the registry by this password, as DOCKER_CONFIG names one.
fn login_file(hosts: &Hosts, registry: &Registry, password: &str) -> PathBuf {
    let directory = hosts.work().join("docker");
    std::fs::create_dir(&directory).unwrap();
    let secret = Cmd::new("base64").arg("-w0").stdin(format!("{}:{password}", LOGIN.0)).ok().text();
    let entry = format!("{{\"auths\": {{\"{}\": {{\"auth\": \"{secret}\"}}}}}}", registry.host());
    std::fs::write(directory.join("config.json"), entry).unwrap();
    machine::give(&directory, hosts.user());
    machine::give(&directory.join("config.json"), hosts.user());
    directory
}

/// A node of the cluster gives other bytes than it was asked for: the archives that it makes of its layers are of its own invention.
#[test]
fn a_node_that_lies_is_not_believed_as_root() {
    let (hosts, registry) = nodes(3);
    let image = registry.push(&images::layers(), "team/app:1", &[]);
    let container = format!("--container-image={image}");
    hosts.cmd("n1", "srun").args(["-w", "n2", &container, "true"]).limit(60).ok();
    let before = asked(&registry);
    let mut lies = 0;
    for layer in std::fs::read_dir(hosts.state("n2").join("images/layers")).unwrap().flatten() {
        let skeleton = layer.path().join("skeleton.zst");
        let text = Cmd::new("zstd").args(["-d", "-c"]).arg(&skeleton).ok().stdout;
        // The mode of each file, in as many bytes.
        let other: Vec<u8> = {
            let text = text
                .iter()
                .map(|byte| char::from(*byte))
                .collect::<String>()
                .replace("0000644\0", "0000666\0");
            text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
        };
        lies += usize::from(other != text);
        let plain = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(plain.path(), other).unwrap();
        let made = Cmd::new("zstd").args(["-q", "-c"]).arg(plain.path()).ok().stdout;
        std::fs::write(&skeleton, made).unwrap();
    }
    assert!(lies > 1, "{lies} layers are other ones");
    let told = hosts.cmd("n1", "srun").args(["-w", "n3", &container, "cat", "/data/kept"]).limit(120).run();
    assert_eq!((told.rc, told.text().trim()), (0, "kept"), "{told}\n{}", log(&hosts, "n3"));
    let said = log(&hosts, "n3");
    assert!(said.contains("n2 does not give it: gave bytes with digest sha256:"), "{said}");
    assert_ne!(asked(&registry), before, "nobody else has it");
    hosts.root("n3", "berth").args(["image", "verify"]).limit(60).ok();
}

#[test]
fn an_image_that_must_be_signed_comes_from_nodes_and_so_does_its_signature_as_root() {
    let hosts = Hosts::new(&["n1", "n2", "n3"]);
    let registry = Registry::on(&hosts, "n1", &hosts.address("n1"), false);
    let signer = Signer::new();
    let image = registry.push(&images::layers(), "team/app:1", &[]);
    let unsigned = registry.push(&images::busybox(), "team/other:1", &[]);
    let network = format!("--net={}", hosts.network("n1").display());
    signer.sign_from(Cmd::new("nsenter").arg(network), &registry, "team/app", "1");
    hosts.up("n1", &rule(&registry, "team", "require", &signer.text()));
    let token = hosts.token("n1", &["--uses", "2"]);
    for name in ["n2", "n3"] {
        hosts.join(name, &token);
    }
    for name in ["n1", "n2", "n3"] {
        hosts.wait_node(name, "idle", 60);
        gives(&hosts, name);
    }
    let before = asked(&registry);
    let container = format!("--container-image={image}");
    let told = hosts.cmd("n1", "srun").args(["-N3", &container, "cat", "/data/kept"]).limit(120).ok();
    assert_eq!(told.text().lines().count(), 3, "{told}");
    // The client did, and the one node that fetched the image.
    assert_eq!(registry.requests("GET", ".sig "), 2);
    let layers: Vec<usize> = {
        let small = |digest: &str| {
            registry.blobs().iter().rev().take(2).any(|blob| blob.display().to_string().contains(digest))
        };
        let blobs = asked(&registry).into_iter().filter(|(path, _)| path.contains("/blobs/"));
        let new = blobs.map(|(path, times)| (times - before.get(&path).copied().unwrap_or(0), path));
        let new = new.filter(|(_, path)| !small(path.rsplit(':').next().unwrap()));
        new.map(|(times, _)| times).filter(|times| *times > 0).collect()
    };
    assert!(layers.iter().filter(|times| **times == 1).count() >= 4, "{:?}", asked(&registry));
    // Each judged by its own keys what it was given.
    let shown =
        |host: &str| hosts.root(host, "berth").args(["image", "inspect", &image]).limit(60).ok().text();
    for host in ["n1", "n2", "n3"] {
        assert!(shown(host).contains("\"signed_by\": \"sha256:"), "{host}");
    }
    // A node that has it does not make another one take it for signed.
    let container = format!("--container-image={unsigned}");
    hosts.cmd("n1", "srun").args(["-w", "n3", &container, "true"]).limit(60).fails().says(&["signature"]);
}

/// Writes other bytes over all of a file, whose inode, size and time stay.
fn spoil(file: &std::path::Path) {
    let (all, before) = (std::fs::read(file).unwrap(), std::fs::metadata(file).unwrap().modified().unwrap());
    let other = std::fs::File::options().write(true).open(file).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&other, &vec![b'x'; all.len()], 0).unwrap();
    other.set_modified(before).unwrap();
}

#[test]
fn an_image_of_a_file_is_converted_once_and_each_node_opens_the_file_as_its_user_as_root() {
    let (hosts, registry) = nodes(3);
    let layout = format!("{}:latest", images::layers().display());
    hosts.cmd("n1", "umoci").args(["--log=error", "unpack", "--rootless", "--image", &layout, "bundle"]).ok();
    hosts.cmd("n1", "mksquashfs").args(["bundle/rootfs", "x.sqsh", "-quiet", "-no-progress"]).limit(60).ok();
    // Another tree, so that none of it is there from the one before.
    hosts.cmd("n1", "touch").arg("bundle/rootfs/of-the-sif").ok();
    hosts.cmd("n1", "mksquashfs").args(["bundle/rootfs", "y.sqsh", "-quiet", "-no-progress"]).limit(60).ok();
    let architecture = if cfg!(target_arch = "aarch64") { "4" } else { "2" };
    let partition = ["--datatype", "4", "--parttype", "2", "--partfs", "1", "--partarch", architecture];
    hosts.cmd("n1", "siftool").args(["new", "x.sif"]).ok();
    hosts.cmd("n1", "siftool").args(["add", "x.sif", "y.sqsh", "--groupid", "1"]).args(partition).ok();
    let copy = |to: &str| {
        let words = ["--insecure-policy", "copy", "--quiet", &format!("oci:{layout}"), to];
        hosts.cmd("n1", "skopeo").args(words).limit(60).ok();
    };
    copy("docker-archive:x.tar:x:1");
    copy("oci:layout:1");
    std::fs::write(hosts.work().join("job.sh"), "#!/bin/sh\ncat /data/kept\n").unwrap();
    let work = hosts.work();
    let submit = |image: &str, node: &str, out: &str| {
        let container = format!("--container-image=./{image}");
        let words = ["--parsable", "--hold", "-w", node, "-o", out, "--no-requeue", &container, "job.sh"];
        hosts.cmd("n1", "sbatch").args(words).limit(60).ok().text().trim().to_string()
    };
    let run = |job: &str, out: &str| {
        hosts.cmd("n1", "scontrol").args(["release", job]).ok();
        let state = || {
            let told = hosts.cmd("n1", "sacct").args(["-nXP", "-j", job, "-o", "State"]).run().text();
            ["COMPLETED", "FAILED"].into_iter().find(|state| told.trim().starts_with(state))
        };
        let state =
            wait(60, state).unwrap_or_else(|| panic!("job {job} does not end: {}", log(&hosts, "n2")));
        (state, std::fs::read_to_string(work.join(out)).unwrap_or_default())
    };
    for image in ["x.sqsh", "x.sif", "x.tar", "layout"] {
        // What it is called is not remembered of a file that was written just now.
        let first = submit(image, "n1", "out");
        let (second, third, fourth) =
            (submit(image, "n2", "out2"), submit(image, "n3", "out3"), submit(image, "n3", "out4"));
        assert_eq!(run(&first, "out"), ("COMPLETED", "kept\n".to_string()), "{image}: {}", log(&hosts, "n1"));
        // Whoever reads any of it now has no image.
        let file = work.join(image);
        let (named, mut spoilt) = match file.is_dir() {
            true => (file.join("index.json"), Vec::new()),
            false => (file.clone(), vec![file.clone()]),
        };
        if file.is_dir() {
            let blobs = std::fs::read_dir(file.join("blobs/sha256")).unwrap();
            spoilt.extend(blobs.flatten().map(|blob| blob.path()));
        }
        spoilt.iter().for_each(|file| spoil(file));
        assert_eq!(
            run(&second, "out2"),
            ("COMPLETED", "kept\n".to_string()),
            "{image}: {}",
            log(&hosts, "n2")
        );
        // Who may not read the file gets nothing of it, though another node has it for this very user.
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o000)).unwrap();
        assert_eq!(run(&third, "out3"), ("FAILED", String::new()), "{image}");
        let said = hosts.cmd("n1", "scontrol").args(["show", "job", &third]).ok().text();
        assert!(said.to_lowercase().contains("permission denied"), "{image}: {said}\n{}", log(&hosts, "n3"));
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        // Nor is a file that was written since the one that was named.
        std::fs::File::options()
            .write(true)
            .open(&named)
            .unwrap()
            .set_modified(std::time::SystemTime::now())
            .unwrap();
        assert_eq!(run(&fourth, "out4").0, "FAILED", "{image}");
    }
    assert_eq!(asked(&registry), BTreeMap::new());
}
