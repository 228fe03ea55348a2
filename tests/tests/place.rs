//! Where the nodes' image stores are: in the place that the configuration names, and never on a filesystem that cannot hold one.

use berth_tests::{Sandbox, Who, each_user, images, machine};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A directory like a local disk's, in which the cluster's user may make something.
fn disk(sandbox: &Sandbox) -> PathBuf {
    let disk = sandbox.work().join("disk");
    std::fs::create_dir(&disk).unwrap();
    std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o755)).unwrap();
    machine::give(&disk, sandbox.who());
    disk
}

fn configure(sandbox: &Sandbox, file: &Path, place: &Path) {
    std::fs::write(file, format!("[images]\npath = \"{}\"\n", place.display())).unwrap();
    machine::give(file, sandbox.who());
}

/// Places of the layers of the images that `berth image ls` shows.
fn layers(sandbox: &Sandbox) -> Vec<PathBuf> {
    let text = sandbox.cmd("berth").args(["image", "ls", "--json"]).ok().text();
    let list: Vec<Value> = serde_json::from_str(&text).unwrap();
    let details = |image: &Value| {
        let digest = image["digest"].as_str().unwrap().to_string();
        let text = sandbox.cmd("berth").args(["image", "inspect", &digest]).ok().text();
        let details: Value = serde_json::from_str(&text).unwrap();
        let layers = details["layers"].as_array().unwrap().clone();
        layers.into_iter().map(|layer| PathBuf::from(layer["path"].as_str().unwrap()))
    };
    list.iter().flat_map(details).collect()
}

each_user! {
    fn the_store_is_where_the_configuration_says(who) {
        let mut sandbox = Sandbox::empty(who);
        let place = disk(&sandbox).join("images");
        let inside = |sandbox: &Sandbox| {
            let layers = layers(sandbox);
            assert!(!layers.is_empty() && layers.iter().all(|layer| layer.starts_with(&place)), "{layers:?}");
            assert!(!sandbox.state().join("images").exists());
        };
        // A file of its own: whoever looks for the store while the cluster runs asks the cluster.
        let file = sandbox.work().join("site.toml");
        configure(&sandbox, &file, &place);
        sandbox.up_by("berth", &["up".into(), "--detach".into(), "--config".into(), file.display().to_string()]);
        assert_eq!(sandbox.srun_in(images::layers(), ["cat", "/data/kept"]).ok().text(), "kept");
        inside(&sandbox);
        let found = std::fs::metadata(&place).unwrap();
        assert_eq!(found.mode() & 0o7777, 0o700);
        assert_eq!(found.uid(), if sandbox.who().is_root() { 0x7000_0001 } else { sandbox.who().uid });
        // A step outlives its agent, and the next one finds what is there.
        let words = ["sh", "-c", "echo ready; read x; cat /data/kept"];
        let mut step = sandbox.srun_in(images::layers(), words).stdin_open().limit(90).spawn();
        step.wait_for("ready", 30);
        sandbox.kill_9(sandbox.agent());
        sandbox.up_by("berth", &["up".into(), "--detach".into(), "--config".into(), file.display().to_string()]);
        step.write(b"x\n");
        step.wait_for("kept", 30);
        step.close();
        sandbox.down();
        // Without a cluster the state directory's own file says it.
        configure(&sandbox, &sandbox.state().join("berth.toml"), &place);
        inside(&sandbox);
        let run = sandbox.cmd("berth").args(["run", "--quiet"]).arg(images::layers());
        assert_eq!(run.args(["cat", "/data/kept"]).ok().text(), "kept");
        inside(&sandbox);
        let said = sandbox.cmd("berth").arg("doctor").run().text();
        assert!(said.contains(&place.display().to_string()), "{said}");
    }

    fn a_place_that_is_not_safe_or_not_there_is_refused(who) {
        let sandbox = Sandbox::empty(who);
        let disk = disk(&sandbox);
        let file = sandbox.state().join("berth.toml");
        configure(&sandbox, &file, &disk.join("not/there"));
        for words in [&["config", "check"][..], &["up", "--detach"], &["image", "ls"]] {
            sandbox.cmd("berth").args(words).fails().says(&["images.path", "No such file", "has to be there"]);
        }
        configure(&sandbox, &file, &disk.join("images"));
        std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o777)).unwrap();
        sandbox.cmd("berth").args(["config", "check"]).fails().says(&["images.path", "chmod go-w"]);
        std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(&file, "[images]\npath = \"local/images\"\n").unwrap();
        sandbox.cmd("berth").args(["config", "check"]).fails().says(&["images.path", "absolute path"]);
        assert!(!disk.join("images").exists());
    }
}

#[test]
fn a_directory_that_somebody_else_made_first_is_no_store_as_root() {
    let sandbox = Sandbox::empty(Who::root());
    let disk = disk(&sandbox);
    std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o1777)).unwrap();
    let place = disk.join("images");
    sandbox.cmd_as(&Who::user(), "mkdir").dir("/").arg("-m").arg("777").arg(&place).ok();
    configure(&sandbox, &sandbox.state().join("berth.toml"), &place);
    sandbox.cmd("berth").args(["up", "--detach"]).fails().says(&["belongs to uid", "images.path"]);
    sandbox.cmd("berth").args(["image", "ls"]).fails().says(&["belongs to uid", "images.path"]);
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
    // No link of another's leads anywhere, either.
    std::fs::remove_dir(&place).unwrap();
    sandbox.cmd_as(&Who::user(), "ln").dir("/").args(["-s", "/etc"]).arg(&place).ok();
    sandbox.cmd("berth").args(["image", "ls"]).fails();
    sandbox.cmd("berth").arg("down").ok();
}

/// A filesystem whose program is gone, as of an sshfs that died.
struct Served(PathBuf);

impl Served {
    fn mount(at: &Path) -> Served {
        let device = std::fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        mount(
            Some("served"),
            at,
            Some("fuse.sshfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some(data.as_str()),
        )
        .unwrap();
        Served(at.to_path_buf())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn no_store_is_where_a_program_serves_the_files_as_root() {
    let sandbox = Sandbox::empty(Who::root());
    let disk = disk(&sandbox);
    let _served = Served::mount(&disk);
    configure(&sandbox, &sandbox.state().join("berth.toml"), &disk.join("images"));
    for words in [&["config", "check"][..], &["up", "--detach"], &["image", "ls"]] {
        let why = ["images.path", "fuse.sshfs, which a program serves", "local disk"];
        sandbox.cmd("berth").args(words).fails().says(&why);
    }
    let said = sandbox.cmd("berth").arg("doctor").run().text();
    let bad =
        |line: &str| line.contains("BAD") && line.contains("image store") && line.contains("fuse.sshfs");
    assert!(said.lines().any(bad), "{said}");
    // That the state directory's own store is there is no other matter.
    let state = sandbox.work().join("state");
    let own = state.join("images");
    std::fs::create_dir_all(&own).unwrap();
    let _own = Served::mount(&own);
    let ls = sandbox.cmd("berth").arg("--state").arg(&state).args(["image", "ls"]).fails();
    ls.says(&["image store", "is on fuse.sshfs, which a program serves", "local disk", "--state"]);
}
