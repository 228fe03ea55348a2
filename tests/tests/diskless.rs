//! Nodes without a disk: the store of images is in memory, bounded, and not for jobs.

use berth_tests::disk::Disk;
use berth_tests::layout::{self, Layer};
use berth_tests::sandbox::wait;
use berth_tests::{Cmd, Sandbox, Who, leftovers};
use serde_json::json;
use std::io::Read;
use std::path::{Path, PathBuf};

const CONFIG: &str = "[images]\nmemory = \"48M\"\n[[node]]\nname = \"ALL\"\nmemory_reserved = 100\n";

/// An image with so many MiB that do not compress.
fn image(sandbox: &Sandbox, name: &str, mib: usize) -> PathBuf {
    let place = sandbox.work().join(name);
    let mut noise = vec![0; mib << 20];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    let own = Layer::default().file("name", 0o644, name.as_bytes()).file("noise", 0o644, &noise);
    layout::write(&place, vec![layout::busybox(), own], json!({}));
    place
}

fn look(sandbox: &Sandbox, image: &Path) -> String {
    sandbox.srun_in(image, ["cat", "/name"]).limit(60).ok().text()
}

fn images(sandbox: &Sandbox) -> usize {
    let text = sandbox.cmd("berth").args(["image", "ls", "--json"]).ok().text();
    serde_json::from_str::<Vec<serde_json::Value>>(&text).unwrap().len()
}

/// Bytes in use at a place.
fn used(place: &Path) -> u64 {
    let text = Cmd::new("stat").args(["-f", "-c", "%b %f %S"]).arg(place).ok().text();
    let n: Vec<u64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
    (n[0] - n[1]) * n[2]
}

fn field(sandbox: &Sandbox, name: &str) -> u64 {
    let text = sandbox.cmd("scontrol").args(["show", "node"]).ok().text();
    let found = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

#[test]
fn images_are_in_memory_that_jobs_do_not_have_as_root() {
    let mut sandbox = Sandbox::with_config(Who::root(), CONFIG);
    let place = sandbox.state().join("images-memory");
    assert_eq!(field(&sandbox, "MemSpecLimit"), 148);
    let more = field(&sandbox, "RealMemory") - 147;
    let all = format!("--mem={more}M");
    sandbox.cmd("sbatch").args([&all, "--wrap=true"]).fails().says(&["memory"]);
    let first = image(&sandbox, "first", 16);
    assert_eq!(look(&sandbox, &first), "first");
    assert!(used(&place) > 16 << 20 && !sandbox.state().join("images").exists());
    // A full store has images removed that nobody needs.
    for name in ["second", "third", "fourth"] {
        let image = image(&sandbox, name, 16);
        assert_eq!(look(&sandbox, &image), name);
    }
    let large = image(&sandbox, "large", 60);
    let srun = sandbox.srun_in(&large, ["cat", "/name"]).limit(60).fails();
    srun.says(&["No space left on device"]);
    wait(30, || (used(&place) < 44 << 20).then_some(()))
        .unwrap_or_else(|| panic!("{} bytes stay", used(&place)));
    assert_eq!(look(&sandbox, &first), "first");
    sandbox.cmd("berth").args(["image", "verify"]).limit(60).ok();
    // Steps that run use it, so that it outlives agents.
    let mut step =
        sandbox.srun_in(&first, ["sh", "-c", "echo ready; read x; cat /name"]).stdin_open().limit(90).spawn();
    step.wait_for("ready", 30);
    sandbox.kill_9(sandbox.agent());
    sandbox.up();
    let before = images(&sandbox);
    assert!(before > 0);
    sandbox.cmd("berth").args(["down", "--keep-jobs"]).limit(60).ok();
    sandbox.cmd("berth").args(["image", "ls"]).fails().says(&["images.memory", "berth up"]);
    sandbox.up();
    assert_eq!(images(&sandbox), before);
    step.write(b"x\n");
    step.wait_for("first", 30);
    step.close();
    assert!(
        sandbox.cmd("berth").arg("doctor").run().text().contains("in memory while the cluster runs, 48M")
    );
    assert_eq!(sandbox.down().rc, 0);
    assert!(!place.exists());
    assert_eq!(leftovers::mounts(&sandbox.state()), Vec::<String>::new());
    sandbox.up();
    assert_eq!(images(&sandbox), 0);
}

#[test]
fn a_store_that_leaves_jobs_nothing_is_refused_as_root() {
    let sandbox = Sandbox::empty(Who::root());
    let file = sandbox.state().join("berth.toml");
    std::fs::write(&file, "[images]\nmemory = \"900T\"\n").unwrap();
    sandbox.cmd("berth").args(["up", "--detach"]).fails().says(&[
        "images.memory",
        "leave jobs nothing",
        "write less",
    ]);
    sandbox.cmd("berth").arg("down").ok();
    assert_eq!(leftovers::mounts(&sandbox.state()), Vec::<String>::new());
    std::fs::write(&file, "[images]\nmemory = \"1G\"\npath = \"/local/images\"\n").unwrap();
    sandbox.cmd("berth").args(["config", "check"]).fails().says(&[
        "images.memory",
        "images.path",
        "keep one",
    ]);
    // Nobody else mounts anything.
    let sandbox = Sandbox::empty(Who::user());
    std::fs::write(sandbox.state().join("berth.toml"), "[images]\nmemory = \"1G\"\n").unwrap();
    sandbox.cmd("berth").args(["up", "--detach"]).fails().says(&[
        "images.memory",
        "ordinary user",
        "images.path",
    ]);
    let said = sandbox.cmd("berth").arg("doctor").run().text();
    assert!(said.lines().any(|line| line.contains("BAD") && line.contains("image store")), "{said}");
    sandbox.cmd("berth").arg("down").ok();
}

#[test]
fn a_store_that_is_in_memory_by_its_place_is_not_promised_to_jobs_as_root() {
    let with = |size: &str, more: &str| {
        let mut sandbox = Sandbox::empty(Who::root());
        let place = sandbox.work().join("memory");
        let memory = Disk::in_memory(&place, 0, size);
        Cmd::new("chmod").arg("755").arg(&place).ok();
        let lines = format!("[images]\npath = \"{}/images\"\n{more}", place.display());
        std::fs::write(sandbox.state().join("berth.toml"), lines).unwrap();
        sandbox.up();
        let real = field(&sandbox, "RealMemory");
        let said = sandbox.cmd("berth").arg("doctor").run().text();
        assert!(said.contains("is in memory (tmpfs)") && said.contains("images.memory"), "{said}");
        let log = std::fs::read_to_string(sandbox.state().join("log/agent.log")).unwrap();
        assert!(log.contains("is in memory (tmpfs)"), "{log}");
        assert_eq!(sandbox.down().rc, 0);
        drop(memory);
        real
    };
    let small = with("64M", "");
    assert_eq!(small - with("96M", ""), 32);
    assert_eq!(with("96M", "max_size = \"64M\"\n"), small);
    // Nothing would be left.
    let sandbox = Sandbox::empty(Who::root());
    let place = sandbox.work().join("memory");
    let _memory = Disk::in_memory(&place, 0, "900T");
    let lines = format!("[images]\npath = \"{}/images\"\n", place.display());
    std::fs::write(sandbox.state().join("berth.toml"), lines).unwrap();
    let refused = sandbox.cmd("berth").args(["up", "--detach"]).fails();
    refused.says(&["is in memory (tmpfs)", "leaves jobs nothing", "images.memory", "images.max_size"]);
    sandbox.cmd("berth").arg("down").ok();
}

#[test]
fn an_ordinary_users_store_in_memory_is_told_with_its_size() {
    let place = tempfile::Builder::new().prefix("bt-store-").tempdir_in("/dev/shm").unwrap();
    let user = Who::user();
    berth_tests::machine::give(place.path(), &user);
    let sandbox = Sandbox::empty(user);
    let lines = format!("[images]\nmax_size = \"8M\"\npath = \"{}/images\"\n", place.path().display());
    std::fs::write(sandbox.state().join("berth.toml"), lines).unwrap();
    let said = sandbox.cmd("berth").arg("doctor").run().text();
    assert!(said.contains("is in memory (tmpfs), 8 MiB at most"), "{said}");
}
