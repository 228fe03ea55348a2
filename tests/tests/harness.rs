//! The harness itself: what it is meant to notice, it notices.

use berth_tests::{Cmd, Registry, images, leftovers, machine, registry};

/// This one begins first (.config/nextest.toml), and what needs no image runs beside it: else several tests at once would stand
/// behind the first one of theirs that makes it.
#[test]
fn every_image_is_made_before_tests_wait_for_it() {
    let mut all = vec![
        images::busybox(),
        images::layers(),
        images::configured(),
        images::debian(),
        images::odd(),
        images::odd_whole(),
        images::mpich(),
    ];
    // The tests of this one are root's.
    if machine::is_root() {
        all.push(images::newer_mpich());
    }
    all.iter()
        .for_each(|image| assert!(image.join("index.json").exists(), "{} is no layout", image.display()));
}

#[test]
fn the_registry_asks_for_its_login_and_counts_what_is_asked() {
    let registry = Registry::with_login();
    let image =
        registry.push(&images::layers(), "team/x:1", &["--dest-compress", "--dest-compress-format=zstd"]);
    let inspect = |options: &[&str]| {
        let copy = Cmd::new("skopeo").args(["inspect", "--raw", "--tls-verify=false"]).args(options);
        copy.arg(format!("docker://{image}")).env("HOME", "/tmp")
    };
    inspect(&["--no-creds"]).fails();
    let before = registry.requests("GET", "/manifests/1");
    let login = format!("--creds={}:{}", registry::LOGIN.0, registry::LOGIN.1);
    let manifest = inspect(&[&login]).ok().text();
    assert!(manifest.contains("tar+zstd"), "the layers were not compressed again: {manifest}");
    assert!(registry.requests("GET", "/manifests/1") > before);
    assert!(!registry.blobs().is_empty());
}

#[test]
fn a_command_that_hangs_and_one_that_is_left_behind_are_found() {
    let slow = std::panic::catch_unwind(|| Cmd::new("sleep").arg("100").limit(1).run());
    assert!(slow.is_err(), "a command outlived its limit");
    let directory = tempfile::Builder::new().prefix("bt-left-").tempdir_in("/tmp").unwrap();
    let marked = Cmd::new("sleep").arg("100").env("MARK", directory.path()).spawn();
    let found = leftovers::processes(directory.path());
    assert!(found.iter().any(|(pid, _)| *pid == marked.pid()), "{found:?}");
    let output = Cmd::new("sh").args(["-c", "echo panicked >&2; exit 1"]).run();
    assert!(std::panic::catch_unwind(|| output.says(&[])).is_err(), "a panic on stderr passes");
}
