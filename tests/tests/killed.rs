//! Pulls that are killed on their way without a warning: the program itself, a node's agent, and those who bring an image for a user.

use crate::pulls::helper;
use berth_tests::disk::store_owner;
use berth_tests::layout::{self, Layer};
use berth_tests::sandbox::{kill_9, wait};
use berth_tests::{Registry, Sandbox, Who, each_user};
use nix::sys::signal::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

/// How many pulls of the program are killed, by each user, and how often each of those who bring an image to a node.
const PULLS: u64 = 12;
const EACH: u64 = 3;

/// Pushes an image with many small files and a large one, in layers of their own.
fn push(registry: &Registry) -> String {
    let mut noise = vec![0; 24 << 20];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    let many = (0..600).fold(Layer::default(), |layer, n| layer.file(&format!("file{n}"), 0o644, b"small"));
    let large = Layer::default().file("name", 0o644, b"many").file("noise", 0o644, &noise);
    let directory = tempfile::tempdir().unwrap();
    layout::write(directory.path(), vec![layout::busybox(), many, large], json!({}));
    registry.push(directory.path(), "team/many:1", &[])
}

/// What is being written to a store, or was when its process was killed.
fn work(store: &Path) -> BTreeSet<OsString> {
    let entries = std::fs::read_dir(store.join("tmp")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).collect()
}

/// Waits until something is written that was not before, or this says that nothing will be, and for a moment more.
fn in_the_middle(store: &Path, before: &BTreeSet<OsString>, round: u64, mut is_over: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while work(store).is_subset(before) && !is_over() && Instant::now() < end {
        std::thread::sleep(Duration::from_micros(500));
    }
    std::thread::sleep(Duration::from_millis(round * 5));
}

/// What dead processes left is swept; whoever keeps room may be at work for a moment.
fn nothing_is_left(store: &Path) {
    let swept = wait(30, || work(store).is_empty().then_some(()));
    assert!(swept.is_some(), "work of dead processes is left: {:?}", work(store));
}

each_user! {
    fn a_pull_of_the_program_that_was_killed_is_made_good_by_the_next(who) {
        let registry = Registry::open();
        let image = push(&registry);
        let sandbox = Sandbox::empty(who);
        let berth = |words: &[&str]| sandbox.cmd("berth").arg("image").args(words).limit(120);
        let pull = || berth(&["pull", "--insecure", &image]);
        let store = sandbox.state().join("images");
        let mut within = 0;
        for round in 0..PULLS {
            let before = work(&store);
            let mut running = pull().spawn();
            in_the_middle(&store, &before, round, || !running.alive());
            if running.alive() {
                running.signal(Signal::SIGKILL);
                within += 1;
            }
            drop(running.finish());
            // What is there is whole.
            berth(&["verify"]).ok();
            if round % 4 == 3 {
                berth(&["prune", "--all", "--force"]).ok();
            }
        }
        assert!(within >= PULLS / 4, "{within} of {PULLS} pulls were killed on their way");
        pull().ok();
        berth(&["verify"]).ok();
        nothing_is_left(&store);
        let run = sandbox.cmd("berth").args(["run", "--quiet", "--insecure", &image, "cat", "/name"]);
        assert_eq!(run.ok().text(), "many");
    }
}

/// In root's cluster an image comes by three: the agent, what fetches as the user, and what unpacks as the store's own identity.
#[test]
fn whoever_is_killed_while_a_node_pulls_the_next_job_has_its_image_as_root() {
    let registry = Registry::open();
    let image = push(&registry);
    let mut sandbox = Sandbox::with_config(Who::root(), &registry.without_tls());
    let (user, owner) = (Who::user(), store_owner(&Who::root()));
    let (store, container) = (sandbox.state().join("images"), format!("--container-image={image}"));
    let mut killed = [0; 3];
    for round in 0..3 * EACH {
        let words = ["--parsable", "--mem=64M", "-o", "/dev/null", &container, "--wrap", "cat /name"];
        let job: u64 =
            sandbox.cmd_as(&user, "sbatch").dir("/").args(words).ok().text().trim().parse().unwrap();
        let agent = sandbox.agent();
        in_the_middle(&store, &BTreeSet::new(), round / 3, || false);
        // Nothing more comes while somebody is looked for and killed.
        registry.freeze();
        let who = usize::try_from(round % 3).unwrap();
        let victim = match who {
            0 => (!work(&store).is_empty()).then_some(agent),
            1 => helper(agent, user.uid, "internal-fetch\0--image"),
            _ => helper(agent, owner, "internal-unpack\0"),
        };
        if let Some(pid) = victim {
            kill_9(pid);
            killed[who] += 1;
        }
        registry.thaw();
        if victim == Some(agent) {
            sandbox.up();
            sandbox.wait_state(job, "COMPLETED", 120);
        }
        let over =
            wait(120, || ["COMPLETED", "FAILED"].contains(&sandbox.job_state(job).as_str()).then_some(()));
        assert!(over.is_some(), "{}", sandbox.cmd("scontrol").args(["show", "job", &job.to_string()]).run());
        let srun = sandbox.cmd_as(&user, "srun").dir("/").args([&container, "cat", "/name"]).limit(120);
        assert_eq!(srun.ok().text(), "many", "round {round}");
        sandbox.cmd("berth").args(["image", "verify"]).ok();
        sandbox.cmd("berth").args(["image", "prune", "--all", "--force"]).ok();
        nothing_is_left(&store);
    }
    assert!(killed.iter().all(|killed| *killed > 0), "agent, fetcher, unpacker: {killed:?}");
}
