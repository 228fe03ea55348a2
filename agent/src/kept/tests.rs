//! Claims that end in every way, and removal beside others.

use super::*;
use berth_model::ids::{Attempt, StepId, StepKey};

fn launch() -> StepLaunch {
    let key = StepKey { job: JobId(7), attempt: Attempt(0), step: StepId::Number(0) };
    StepLaunch {
        identity: berth_samples::identity(nix::unistd::getuid().as_raw()),
        ..berth_samples::launch(key)
    }
}

fn named(flag: NameFlag) -> NamedSpec {
    NamedSpec { name: "box".into(), scope: NameScope::User, flag }
}

fn image() -> ImageRef {
    ImageRef { typed: "x".into(), resolved: None }
}

fn spec() -> ContainerSpec {
    berth_samples::container("x", None)
}

struct Node {
    _state: tempfile::TempDir,
    paths: Paths,
    kept: KeptContainers,
}

impl Node {
    fn new() -> Node {
        let state = tempfile::tempdir().unwrap();
        let paths = Paths::new(state.path());
        fs::create_dir(paths.private()).unwrap();
        Node { kept: KeptContainers::new(paths.clone()), _state: state, paths }
    }

    /// A container with a file, which nothing runs in.
    fn idle(&self) -> Uid {
        let claim = self.kept.make(&launch(), &named(NameFlag::Auto), image()).unwrap().unwrap();
        fs::create_dir(claim.part.written.as_path()).unwrap();
        fs::write(claim.part.written.as_path().join("file"), "x").unwrap();
        claim.hand_over();
        launch().identity.uid
    }

    fn find(&self, flag: NameFlag) -> Result<Option<Claim>, String> {
        self.kept.find(&launch(), &spec(), &named(flag))
    }

    fn entries(&self) -> usize {
        let own = launch().identity.uid.to_string();
        let count = |dir: PathBuf| fs::read_dir(dir).map_or(0, Iterator::count);
        count(self.paths.kept_records().join(&own)) + count(self.paths.kept_written().join(&own))
    }
}

#[test]
fn a_container_that_was_made_for_a_step_goes_with_the_claim_until_the_supervisor_has_it() {
    let node = Node::new();
    let claim = node.kept.make(&launch(), &named(NameFlag::Auto), image()).unwrap().unwrap();
    assert_eq!(node.kept.list(None).len(), 1);
    drop(claim);
    assert!(node.find(NameFlag::Auto).unwrap().is_none());
    assert_eq!((node.kept.list(None).len(), node.entries()), (0, 0));
    node.idle();
    let claim = node.find(NameFlag::Auto).unwrap().unwrap();
    assert!(!claim.part.fresh);
    drop(claim);
    assert_eq!(node.kept.list(None).len(), 1);
}

#[test]
fn one_that_has_just_gone_is_not_there() {
    let node = Node::new();
    let claim = node.kept.make(&launch(), &named(NameFlag::Auto), image()).unwrap().unwrap();
    fs::remove_file(claim.part.record.as_path().join("lock")).unwrap();
    assert!(node.find(NameFlag::Auto).unwrap().is_none());
    assert!(node.find(NameFlag::Exec).is_err_and(|e| e.contains("is not running")));
    assert!(node.kept.list(None).is_empty());
    // The claim's own end takes what is left, and the name is free.
    drop(claim);
    assert!(node.kept.make(&launch(), &named(NameFlag::Create), image()).unwrap().is_some());
}

#[test]
fn what_is_removed_is_gone_with_all_that_was_written() {
    let node = Node::new();
    let uid = node.idle();
    let claim = node.find(NameFlag::Auto).unwrap().unwrap();
    assert!(node.kept.remove(uid, "box").is_err_and(|e| e.contains("is in use")));
    assert!(node.kept.prune(None, Duration::ZERO).is_empty());
    // A step whose end was told holds it for some moments more.
    std::thread::scope(|threads| {
        let removed = threads.spawn(|| node.kept.remove(uid, "box"));
        std::thread::sleep(PAUSE * 5);
        drop(claim);
        removed.join().unwrap().unwrap();
    });
    assert!(node.kept.remove(uid, "box").is_err_and(|e| e.contains("there is no container 'box'")));
    node.idle();
    assert_eq!(node.kept.prune(Some(uid), Duration::ZERO), ["box"]);
    assert_eq!(node.entries(), 0);
    assert_eq!(fs::read_dir(node.paths.kept_trash()).unwrap().count(), 0);
}

/// While the files of one are removed, which may take long, others have their turn.
#[test]
fn a_container_that_is_taken_away_holds_nobody_up_and_is_swept() {
    let node = Node::new();
    node.idle();
    let place = Place::of(&node.paths, NameScope::User, JobId(0), launch().identity.uid, "box");
    let taken = node.kept.take_away(&place).unwrap();
    assert!(taken.join("file").exists());
    // Whoever comes now makes a new one, without anything of the old.
    let claim = node.kept.make(&launch(), &named(NameFlag::Create), image()).unwrap().unwrap();
    assert!(!claim.part.written.as_path().exists());
    node.kept.sweep();
    while taken.exists() {
        std::thread::yield_now();
    }
    assert_eq!(node.kept.list(None).len(), 1);
}

#[test]
fn a_container_keeps_the_ids_that_it_was_made_with() {
    let node = Node::new();
    let made = |subids: Option<bool>| {
        let launch = StepLaunch { container: Some(ContainerSpec { subids, ..spec() }), ..launch() };
        let claim = node.kept.make(&launch, &named(NameFlag::Create), image()).unwrap().unwrap();
        let uid = launch.identity.uid;
        assert_eq!(claim.part.subids, subids == Some(true));
        claim.hand_over();
        uid
    };
    let found = |subids, remap_root| {
        let spec = ContainerSpec { subids, remap_root, ..spec() };
        let claim = node.kept.find(&launch(), &spec, &named(NameFlag::Auto));
        claim.map(|claim| claim.unwrap().part.subids)
    };
    let uid = made(Some(true));
    assert_eq!((found(None, None), found(Some(true), Some(true))), (Ok(true), Ok(true)));
    for (subids, remap_root, option) in
        [(Some(false), None, "--no-container-subids"), (None, Some(false), "--no-container-remap-root")]
    {
        assert!(
            found(subids, remap_root).is_err_and(|e| e.starts_with(option) && e.contains("another name"))
        );
    }
    node.kept.remove(uid, "box").unwrap();
    made(None);
    assert_eq!((found(None, Some(false)), found(Some(false), None)), (Ok(false), Ok(false)));
    assert!(found(Some(true), None).is_err_and(|e| e.contains("was made without it")));
}
