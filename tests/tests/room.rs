//! Room in the nodes' image stores: a small disk and a small store go on, and what jobs need stays there.

use berth_tests::disk::{Disk, store_owner};
use berth_tests::layout::{self, Layer};
use berth_tests::sandbox::wait;
use berth_tests::{Cmd, Registry, Sandbox, Who, each_user};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes that do not compress.
fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    noise
}

/// Writes an image with 6 MiB of its own above a shared layer.
fn write(directory: &Path, name: &str) {
    let own = Layer::default().file("name", 0o644, name.as_bytes()).file("noise", 0o644, &noise(6 << 20));
    layout::write(directory, vec![layout::busybox(), own], json!({}));
}

/// Pushes such an image.
fn push(registry: &Registry, name: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), name);
    registry.push(directory.path(), &format!("team/{name}:1"), &[])
}

fn list(sandbox: &Sandbox) -> Vec<Value> {
    let text = sandbox.cmd("berth").args(["image", "ls", "--json"]).ok().text();
    serde_json::from_str(&text).unwrap()
}

fn names(sandbox: &Sandbox) -> Vec<String> {
    let list = list(sandbox);
    let name = |image: &Value| image["names"][0].as_str().unwrap_or_default().to_string();
    let short = |name: String| name.rsplit_once("team/").map_or(String::new(), |(_, n)| n.replace(":1", ""));
    list.iter().map(name).map(short).collect()
}

fn run(sandbox: &Sandbox, image: &str) -> String {
    sandbox.srun_in(image, ["cat", "/name"]).ok().text()
}

/// A job that is held and needs the image.
fn hold(sandbox: &Sandbox, image: &str) -> u64 {
    let container = format!("--container-image={image}");
    sandbox.sbatch(&["--hold", "--mem=64M", "--output=held", &container], "#!/bin/sh\ncat /name\n")
}

each_user! {
    fn a_small_store_keeps_what_jobs_need_and_the_latest(who) {
        let registry = Registry::open();
        let config = format!("{}max_size = \"24M\"\n", registry.without_tls());
        let mut sandbox = Sandbox::with_config(who, &config);
        let images: Vec<String> = ["one", "two", "three"].map(|name| push(&registry, name)).to_vec();
        assert_eq!(run(&sandbox, &images[0]), "one");
        let job = hold(&sandbox, &images[0]);
        assert_eq!(run(&sandbox, &images[1]), "two");
        assert_eq!(run(&sandbox, &images[2]), "three");
        // Who does not know what jobs need removes nothing: agent and controller start anew.
        sandbox.down();
        sandbox.up();
        for name in ["four", "five"] {
            let image = push(&registry, name);
            assert_eq!(run(&sandbox, &image), name);
        }
        let fits = |names: Vec<String>| names.len() <= 3 && !names.iter().any(|n| n == "two");
        wait(60, || Some(names(&sandbox)).filter(|n| fits(n.clone()))).unwrap_or_else(|| panic!("{:?}", names(&sandbox)));
        let left = names(&sandbox);
        assert!(left.contains(&"one".to_string()) && left.contains(&"five".to_string()), "{left:?}");
        let df = sandbox.cmd("berth").args(["image", "df"]).ok().text();
        assert!(df.contains("above 24.00 MiB of layers") && df.contains("it took more than images.max_size"), "{df}");
        let fetched = registry.fetched().len();
        sandbox.cmd("scontrol").args(["release", &job.to_string()]).ok();
        sandbox.wait_file("held", "one", 60);
        assert_eq!(registry.fetched().len(), fetched, "the held job's image was fetched again");
        sandbox.wait_state(job, "COMPLETED", 60);
    }
}

/// Eight images of 6 MiB on a disk of 40 MiB: every pull succeeds, and what a held job needs stays.
fn goes_on(who: Who, rules: &str, why: &str) {
    let registry = Registry::open();
    let mut sandbox = Sandbox::empty(who.clone());
    let disk = Disk::in_memory(&sandbox.state().join("images"), store_owner(&who), "40m");
    let path = sandbox.write("../state/berth.toml", format!("{}{rules}", registry.without_tls()));
    assert!(path.exists());
    sandbox.up();
    let first = push(&registry, "first");
    assert_eq!(run(&sandbox, &first), "first");
    let job = hold(&sandbox, &first);
    for n in 0..7 {
        let name = format!("n{n}");
        let image = push(&registry, &name);
        assert_eq!(run(&sandbox, &image), name);
    }
    let left = names(&sandbox);
    assert!(left.contains(&"first".to_string()) && left.contains(&"n6".to_string()), "{left:?}");
    assert!(!left.contains(&"n0".to_string()) && left.len() < 7, "{left:?}");
    let df = sandbox.cmd("berth").args(["image", "df"]).ok().text();
    assert!(df.contains(why), "{df}");
    let json: Value =
        serde_json::from_str(&sandbox.cmd("berth").args(["image", "df", "--json"]).ok().text()).unwrap();
    assert!(json["room"]["last"]["images"].as_array().is_some_and(|all| !all.is_empty()), "{json}");
    sandbox.cmd("berth").args(["image", "verify"]).ok();
    sandbox.cmd("scontrol").args(["release", &job.to_string()]).ok();
    sandbox.wait_file("held", "first", 60);
    sandbox.wait_state(job, "COMPLETED", 60);
    sandbox.down();
    drop(disk);
}

#[test]
fn a_small_disk_is_kept_below_its_mark_as_root() {
    goes_on(Who::root(), "", "images go above 85% of the filesystem, down to 75%");
}

#[test]
fn a_small_disk_that_is_full_has_room_made_and_the_pull_goes_on_as_root() {
    let rules = "high_watermark = 100\nlow_watermark = 100\n";
    goes_on(Who::root(), rules, "an image could not be fetched for lack of space");
}

/// A filesystem may be out of files long before it is out of bytes.
#[test]
fn a_disk_of_few_files_is_kept_below_its_mark_as_root() {
    if !berth_tests::machine::is_root() {
        return;
    }
    let who = Who::root();
    let registry = Registry::open();
    let mut sandbox = Sandbox::empty(who.clone());
    // 2,560 files.
    let disk = Disk::in_file(&sandbox.state().join("images"), store_owner(&who), 40);
    let all = disk.free().files;
    assert!((2000..3000).contains(&all), "{all}");
    sandbox.write("../state/berth.toml", format!("{}layer_form = \"directory\"\n", registry.without_tls()));
    sandbox.up();
    for n in 0..5 {
        let directory = tempfile::tempdir().unwrap();
        let own = Layer::default().file("name", 0o644, format!("n{n}").as_bytes());
        let own = (0..550).fold(own, |own, file| own.file(&format!("f{file}"), 0o644, b"x"));
        layout::write(directory.path(), vec![layout::busybox(), own], json!({}));
        let image = registry.push(directory.path(), &format!("team/n{n}:1"), &[]);
        assert_eq!(run(&sandbox, &image), format!("n{n}"));
    }
    let df = || sandbox.cmd("berth").args(["image", "df"]).ok().text();
    let told = wait(60, || Some(df()).filter(|df| df.contains("of the files that its filesystem can have")));
    assert!(told.is_some(), "{}", df());
    let left = names(&sandbox);
    assert!(left.contains(&"n4".to_string()) && !left.contains(&"n0".to_string()), "{left:?}");
    let free = wait(60, || (disk.free().files > all / 5).then_some(()));
    assert!(free.is_some(), "{:?} of {all}", disk.free());
    sandbox.down();
    drop(disk);
}

/// Only root makes the user's small disk.
#[test]
fn a_users_small_disk_that_is_full_goes_on_as_root() {
    if berth_tests::machine::is_root() {
        let rules = "high_watermark = 100\nlow_watermark = 100\n";
        goes_on(Who::user(), rules, "an image could not be fetched for lack of space");
    }
}

each_user! {
    fn pruning_keeps_what_jobs_and_kept_containers_need(who) {
        let registry = Registry::open();
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        let images = ["waits", "kept", "nobody"].map(|name| push(&registry, name));
        images.iter().for_each(|image| drop(run(&sandbox, image)));
        let job = hold(&sandbox, &images[0]);
        let keep = ["--container-name=box", "--container-scope=user", "true"];
        sandbox.srun_in(&images[1], keep).ok();
        let prune = || sandbox.cmd("berth").args(["image", "prune", "--all"]);
        let left = |expected: &[&str]| {
            let sorted = || {
                let mut names = names(&sandbox);
                names.sort();
                names
            };
            // A step that was just over still has its image.
            let seen = wait(20, || {
                prune().ok();
                (sorted() == expected).then_some(())
            });
            assert!(seen.is_some(), "{:?} are left, and not {expected:?}", sorted());
        };
        left(&["kept", "waits"]);
        sandbox.cmd("scancel").arg(job.to_string()).ok();
        left(&["kept"]);
        // Nobody can say what jobs need.
        sandbox.kill_9(sandbox.controller());
        prune().fails();
        assert_eq!(names(&sandbox), ["kept"]);
    }
}

/// Has such an image in a directory, and pulls it into the caller's own store: where it is, its digest, and what was said.
fn pull(sandbox: &Sandbox, name: &str) -> (PathBuf, String, String) {
    let place = sandbox.work().join(name);
    if !place.exists() {
        write(&place, name);
    }
    let said = sandbox.cmd("berth").args(["image", "pull"]).arg(&place).limit(120).ok();
    let text = said.text();
    let digest = text.rsplit(' ').next().unwrap_or_default().to_string();
    assert!(digest.starts_with("sha256:"), "{text}");
    (place, digest, said.err())
}

fn digests(sandbox: &Sandbox) -> BTreeSet<String> {
    list(sandbox).iter().map(|image| image["digest"].as_str().unwrap().to_string()).collect()
}

/// What is said in one line of images that went.
const WENT: &str = "were removed from the store: ";

/// Fourteen images of 6 MiB on a disk of 64 MiB where no cluster ever was: every pull succeeds and says what went for it, and what a
/// running and a kept container need stays.
fn a_workstation_goes_on(who: Who, rules: &str, why: &str) {
    let sandbox = Sandbox::empty(who);
    let disk = Disk::in_file(&sandbox.state().join("images"), store_owner(sandbox.who()), 64);
    sandbox.write("../state/berth.toml", format!("[images]\nlayer_form = \"directory\"\n{rules}"));
    let links = sandbox.state().parent().unwrap().join("bin");
    sandbox.cmd("berth").args(["install-links", "--front-doors"]).arg(links).ok();
    let (place, kept, _) = pull(&sandbox, "kept");
    sandbox.cmd("enroot").args(["create", "--name", "box"]).arg(&place).ok();
    std::fs::remove_dir_all(place).unwrap();
    let (place, runs, _) = pull(&sandbox, "runs");
    let command = sandbox.cmd("berth").arg("run").arg(&place).args(["sh", "-c", "echo up; cat; cat /name"]);
    let mut running = command.limit(280).stdin_open().spawn();
    running.wait_for("up", 60);
    std::fs::remove_dir_all(place).unwrap();
    let (first, one, _) = pull(&sandbox, "n0");
    let (mut last, mut said) = (String::new(), String::new());
    for n in 1..12 {
        let (place, digest, told) = pull(&sandbox, &format!("n{n}"));
        said += &told;
        last = digest;
        // What is there is found without a look at anything else.
        let run = sandbox.cmd("berth").arg("run").arg(&place).args(["cat", "/name"]).ok();
        assert_eq!(run.text(), format!("n{n}"));
        assert!(!run.err().contains(WENT), "{run}");
    }
    let went: Vec<&str> = said.lines().filter(|line| line.contains(WENT)).collect();
    assert!(went.iter().any(|line| line.contains("/n0") && line.contains(why)), "{said}");
    let left = digests(&sandbox);
    for stays in [&kept, &runs, &last] {
        assert!(left.contains(stays), "{stays} is not among {left:?}");
    }
    assert!(!left.contains(&one) && left.len() < 12, "{left:?}");
    let df = sandbox.cmd("berth").args(["image", "df"]).ok().text();
    assert!(df.contains(why) && df.contains("after 90 days without use"), "{df}");
    sandbox.cmd("berth").args(["image", "verify"]).limit(60).ok();
    assert_eq!(sandbox.cmd("enroot").args(["start", "box", "cat", "/name"]).ok().text(), "kept");
    running.close();
    let ended = running.finish();
    assert_eq!((ended.rc, ended.text().as_str()), (0, "up\nruns"), "{ended}");
    // Now it may go; and what went comes again.
    assert_eq!(
        sandbox.cmd("berth").arg("run").arg(&first).args(["cat", "/name"]).limit(60).ok().text(),
        "n0"
    );
    disk.unmount();
}

#[test]
fn a_workstations_small_disk_is_kept_below_its_mark_as_root() {
    a_workstation_goes_on(Who::root(), "", "its filesystem was");
}

#[test]
fn a_workstations_small_disk_that_is_full_has_room_made_and_the_pull_goes_on_as_root() {
    let rules = "high_watermark = 100\nlow_watermark = 100\n";
    a_workstation_goes_on(Who::root(), rules, "an image could not be fetched for lack of space");
}

/// Only root makes the user's small disk.
#[test]
fn a_users_own_store_on_a_small_disk_is_kept_so_too_as_root() {
    if berth_tests::machine::is_root() {
        a_workstation_goes_on(Who::user(), "", "its filesystem was");
        let rules = "high_watermark = 100\nlow_watermark = 100\n";
        a_workstation_goes_on(Who::user(), rules, "an image could not be fetched for lack of space");
    }
}

/// An image of so many MiB that has a tenth of them compressed.
fn write_vast(directory: &Path, mib: usize) {
    let mut content = vec![b'x'; mib << 20];
    content.chunks_exact_mut(64 << 10).for_each(|part| part[..6 << 10].copy_from_slice(&noise(6 << 10)));
    let archive = Layer::default().file("vast", 0o644, &content).finish();
    let plain = directory.with_extension("tar");
    std::fs::write(&plain, &archive).unwrap();
    let gzip = std::process::Command::new("gzip").args(["-1nc"]).arg(&plain).output().unwrap();
    assert!(gzip.status.success() && gzip.stdout.len() < mib << 18, "{}", gzip.stdout.len());
    std::fs::remove_file(plain).unwrap();
    layout::write_compressed(directory, &[("gzip", gzip.stdout, archive)]);
}

/// On a disk of 64 MiB: an image that fits compressed alone costs nobody an image, says how much it would take, and one that fits
/// when some have gone has these go and no more.
fn nothing_goes_for_what_does_not_fit_unpacked(who: Who) {
    let sandbox = Sandbox::empty(who);
    let disk = Disk::in_file(&sandbox.state().join("images"), store_owner(sandbox.who()), 64);
    let rules = "[images]\nlayer_form = \"directory\"\nhigh_watermark = 100\nlow_watermark = 100\n";
    sandbox.write("../state/berth.toml", rules);
    let there: BTreeSet<String> = (0..4).map(|n| pull(&sandbox, &format!("n{n}")).1).collect();
    let vast = sandbox.work().join("vast");
    write_vast(&vast, 150);
    let said = sandbox.cmd("berth").args(["image", "pull"]).arg(&vast).limit(120).fails();
    said.says(&[
        "No space left on device",
        "what did not become complete of this image is 150.00 MiB at least",
        "nothing is removed: ",
        "the image needs 150.00 MiB at least",
        "all images that may go have ",
    ]);
    assert_eq!(digests(&sandbox), there);
    let fits = sandbox.work().join("fits");
    write_vast(&fits, 34);
    let said = sandbox.cmd("berth").args(["image", "pull"]).arg(&fits).limit(120).ok();
    assert!(said.err().contains(WENT), "{said}");
    let left = digests(&sandbox);
    let stayed = left.intersection(&there).count();
    assert!((1..4).contains(&stayed) && left.len() == stayed + 1, "{left:?}");
    disk.unmount();
}

#[test]
fn nothing_goes_for_an_image_that_does_not_fit_unpacked_as_root() {
    nothing_goes_for_what_does_not_fit_unpacked(Who::root());
}

/// Only root makes the user's small disk.
#[test]
fn nothing_goes_from_a_users_store_for_an_image_that_does_not_fit_unpacked_as_root() {
    if berth_tests::machine::is_root() {
        nothing_goes_for_what_does_not_fit_unpacked(Who::user());
    }
}

/// On a disk of 96 MiB, of 5,000 files of one byte, which take 20 MiB, and two images of 6 MiB: one of 56 MiB fits when the first has gone, and
/// nothing else goes for it.
#[test]
fn very_small_files_count_by_what_they_take_of_a_disk_as_root() {
    if !berth_tests::machine::is_root() {
        return;
    }
    let sandbox = Sandbox::empty(Who::root());
    let disk = Disk::in_file(&sandbox.state().join("images"), store_owner(sandbox.who()), 96);
    let rules = "[images]\nlayer_form = \"directory\"\nhigh_watermark = 100\nlow_watermark = 100\n";
    sandbox.write("../state/berth.toml", rules);
    let small = (0..5000).fold(Layer::default(), |own, file| own.file(&format!("f{file}"), 0o644, b"x"));
    layout::write(&sandbox.work().join("small"), vec![small], json!({}));
    let before = disk.free().bytes;
    pull(&sandbox, "small");
    let took = before - disk.free().bytes;
    let df = || sandbox.cmd("berth").args(["image", "df", "--json"]).ok().text();
    let usage: Value = serde_json::from_str(&df()).unwrap();
    let told = usage["disk_bytes"].as_u64().unwrap();
    assert!(took > 20_000_000 && told.abs_diff(took) < took / 10, "{took} {usage}");
    assert!(sandbox.cmd("berth").args(["image", "df"]).ok().text().contains("\non disk      "), "{usage}");
    let mut stay: BTreeSet<String> = ["n0", "n1"].map(|name| pull(&sandbox, name).1).into();
    write_vast(&sandbox.work().join("fits"), 56);
    let (_, fits, said) = pull(&sandbox, "fits");
    assert!(said.lines().any(|line| line.contains(WENT) && line.contains("/small")), "{said}");
    stay.insert(fits);
    assert_eq!(digests(&sandbox), stay);
    disk.unmount();
}

each_user! {
    fn an_image_that_nobody_used_for_ninety_days_goes_unless_a_job_needs_it(who) {
        let registry = Registry::open();
        let mut sandbox = Sandbox::with_config(who, &registry.without_tls());
        let images = ["old", "waits"].map(|name| push(&registry, name));
        images.iter().for_each(|image| drop(run(&sandbox, image)));
        let job = hold(&sandbox, &images[1]);
        assert_eq!(sandbox.down().rc, 0);
        for record in std::fs::read_dir(sandbox.state().join("images/images")).unwrap() {
            Cmd::new("touch").args(["--date", "91 days ago"]).arg(record.unwrap().path()).ok();
        }
        sandbox.up();
        let left = wait(60, || (names(&sandbox) == ["waits"]).then_some(()));
        assert!(left.is_some(), "{:?}", names(&sandbox));
        let df = sandbox.cmd("berth").args(["image", "df"]).ok().text();
        assert!(df.contains("they were not used for 90 days"), "{df}");
        let fetched = registry.fetched().len();
        sandbox.cmd("scontrol").args(["release", &job.to_string()]).ok();
        sandbox.wait_file("held", "waits", 60);
        assert_eq!(registry.fetched().len(), fetched, "the held job's image was fetched again");
        sandbox.wait_state(job, "COMPLETED", 60);
    }

    fn the_store_of_a_cluster_that_is_down_is_left_alone_while_jobs_wait(who) {
        let mut sandbox = Sandbox::with_config(who, "[images]\nmax_size = \"12M\"\n");
        let place = sandbox.work().join("waits");
        write(&place, "waits");
        let image = place.display().to_string();
        assert_eq!(run(&sandbox, &image), "waits");
        let job = hold(&sandbox, &image);
        assert_eq!(sandbox.down().rc, 0);
        let (_, other, said) = pull(&sandbox, "other");
        assert!(!said.contains("removed"), "{said}");
        assert!(digests(&sandbox).contains(&other) && digests(&sandbox).len() == 2);
        // The agent knows what is needed, and one of the two is too many.
        sandbox.up();
        let one = wait(60, || (digests(&sandbox).len() == 1).then_some(()));
        assert!(one.is_some() && !digests(&sandbox).contains(&other), "{:?}", digests(&sandbox));
        sandbox.cmd("scancel").arg(job.to_string()).ok();
        sandbox.wait_state(job, "CANCELLED", 60);
        assert_eq!(sandbox.down().rc, 0);
        let (_, last, said) = pull(&sandbox, "last");
        assert!(said.contains(&format!("{WENT}it took more than images.max_size")), "{said}");
        assert_eq!(digests(&sandbox), BTreeSet::from([last]));
    }
}
