//! `berth image verify`: damage by hand, found, named and repaired under a running container.

use berth_tests::registry::LOGIN;
use berth_tests::{Cmd, Registry, Sandbox, Who, each_user, images, machine};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A file of the store's layers by the end of its path.
fn stored(directory: &Path, end: &str) -> PathBuf {
    let found = berth_tests::Cmd::new("find")
        .arg(directory.join("images/layers"))
        .args(["-path", &format!("*/fs/{end}"), "-not", "-path", "*.replaced-*"])
        .ok()
        .text();
    assert!(!found.is_empty(), "{end} is not in the store");
    PathBuf::from(found.lines().next().unwrap())
}

each_user! {
    fn damage_is_named_and_repaired_under_a_running_container(who) {
        let registry = Registry::open();
        let image = registry.push(&images::layers(), "team/layers:1", &[]);
        let other = registry.push(&images::busybox(), "team/box:1", &[]);
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        let verify = |words: &[&str]| sandbox.cmd("berth").args(["image", "verify"]).args(words);
        for image in [&image, &other] {
            sandbox.cmd("berth").args(["image", "pull", "--quiet", "--insecure", image]).ok();
        }
        assert!(verify(&[]).ok().text().contains("2 images, "), "not all images");
        let script = "echo up; while [ ! -e /tmp/go ]; do sleep 0.1; done; cat /data/hard1; cat /data/replaced";
        let mut running = sandbox.srun_in(&image, ["sh", "-c", script]).spawn();
        running.wait_for("up", 60);
        // A byte with size and time as they were, and a file that was never there.
        let kept = stored(&sandbox.state(), "data/hard1");
        let before = std::fs::metadata(&kept).unwrap().modified().unwrap();
        std::fs::write(&kept, "onE\n").unwrap();
        std::fs::File::options().write(true).open(&kept).unwrap().set_modified(before).unwrap();
        let added = kept.with_file_name("added");
        std::fs::write(&added, "x").unwrap();
        std::fs::set_permissions(&added, PermissionsExt::from_mode(0o4755)).unwrap();
        let told = verify(&[]).fails().says(&["--repair"]);
        for line in ["/data/hard1 its content was changed", "/data/added was added"] {
            assert!(told.text().contains(line), "{told}");
        }
        verify(&[&other]).ok();
        let json: serde_json::Value = serde_json::from_str(&verify(&["--json", &image]).fails().text()).unwrap();
        let damage = &json["damaged"][0];
        assert_eq!((damage["thing"].as_str(), damage["images"].as_array().unwrap().len()), (Some("layer"), 1));
        assert!(damage["problems"].as_array().unwrap().iter().any(|p| p["path"] == "/data/added"), "{json}");

        let told = verify(&["--repair"]).ok();
        assert!(told.text().contains("repaired sha256:"), "{told}");
        verify(&[]).ok();
        assert_eq!(sandbox.srun_in(&image, ["--mem=16M", "-c1", "sh", "-c", "cat /data/hard1; ls /data/added 2>&1"]).run().text().lines().next(), Some("one"));
        assert!(!stored(&sandbox.state(), "data/hard1").with_file_name("added").exists());
        // What ran all the while has what it began with, to its end.
        let job = sandbox.cmd("squeue").args(["-h", "-o", "%A"]).ok().text();
        sandbox.cmd("srun").args(["--overlap", "--jobid", job.trim(), "touch", "/tmp/go"]).ok();
        let told = running.finish();
        assert_eq!(told.rc, 0, "{told}");
        assert!(told.text().contains("onE\n") && told.text().contains("a file now"), "{told}");
        // And then nothing of it is left.
        let replaced = || {
            let layers = std::fs::read_dir(sandbox.state().join("images/layers")).unwrap();
            layers.flatten().filter(|e| e.file_name().to_string_lossy().contains(".replaced-")).count()
        };
        let gone = || {
            sandbox.cmd("berth").args(["image", "prune"]).ok();
            (replaced() == 0).then_some(())
        };
        assert!(berth_tests::sandbox::wait(20, gone).is_some(), "the damaged layer is left");
    }

    fn a_damaged_record_is_written_anew_or_its_image_is_removed(who) {
        let sandbox = Sandbox::start(who);
        let image = images::busybox();
        let berth = |words: &[&str]| sandbox.cmd("berth").arg("image").args(words);
        let run = || sandbox.srun_in(&image, ["echo", "it runs"]).ok().text();
        assert_eq!(run().trim(), "it runs");
        let records = sandbox.state().join("images/images");
        let names = std::fs::read_dir(&records).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let names: Vec<String> = names.filter(|name| name.ends_with(".json")).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let digest = names[0].trim_end_matches(".json").replace('-', ":");
        let tear = || std::fs::write(records.join(&names[0]), "{").unwrap();
        tear();
        assert!(berth(&["verify"]).fails().says(&["--repair"]).text().contains(&format!("record {digest}")));
        berth(&["inspect", &digest]).fails().says(&["damaged", "--repair"]);
        assert!(berth(&["verify", "--repair"]).ok().text().contains(&format!("repaired {digest}")));
        assert!(berth(&["ls"]).ok().text().contains(&digest[7..19]));
        tear();
        // A run writes it anew by itself.
        assert_eq!(run().trim(), "it runs");
        berth(&["verify"]).ok();
        tear();
        let gone = || (berth(&["rm", &digest]).run().rc == 0).then_some(());
        assert!(berth_tests::sandbox::wait(30, gone).is_some(), "the image cannot be removed");
        assert_eq!(std::fs::read_dir(sandbox.state().join("images/layers")).unwrap().count(), 0);
        assert_eq!(run().trim(), "it runs");
    }

    fn what_cannot_be_fetched_again_is_said(who) {
        let registry = Registry::open();
        let image = registry.push(&images::busybox(), "team/box:1", &[]);
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        sandbox.cmd("berth").args(["image", "pull", "--quiet", "--insecure", &image]).ok();
        std::fs::remove_file(stored(&sandbox.state(), "bin/busybox")).unwrap();
        let host = registry.host();
        drop(registry);
        let told = sandbox.cmd("berth").args(["image", "verify", "--repair"]).fails().says(&[&host, "cannot be reached"]);
        assert!(told.text().contains("/bin/busybox is missing"), "{told}");
        sandbox.cmd("berth").args(["image", "verify", "no-such-image"]).fails().says(&["no-such-image", "berth image ls"]);
    }
}

/// What archives of layers are made again of is damaged, and nothing that containers see: it is found, said where an image is exported, and
/// repaired.
fn what_archives_are_made_again_of(who: Who, form: &str) {
    let sandbox = Sandbox::empty(who);
    sandbox.write("../state/berth.toml", format!("[images]\nlayer_form = \"{form}\"\n"));
    let path = images::layers().display().to_string();
    let image = |words: &[&str]| sandbox.cmd("berth").arg("image").args(words).limit(60);
    image(&["pull", "--quiet", &path]).ok();
    type Harm = fn(&Path);
    let harms: [(Harm, &str); 2] = [
        (|file| std::fs::write(file, "no skeleton").unwrap(), "was changed"),
        (|file| std::fs::remove_file(file).unwrap(), "is missing"),
    ];
    for (harm, words) in harms {
        let find = Cmd::new("find").arg(sandbox.state().join("images/layers"));
        let found = find.args(["-name", "skeleton.zst", "-not", "-path", "*.replaced-*"]).ok().text();
        assert!(found.lines().count() > 1, "{found}");
        found.lines().for_each(|file| harm(Path::new(file)));
        image(&["export", &path, "whole.oci"]).fails().says(&["berth image verify --repair"]);
        let told = image(&["verify", &path]).fails().says(&["--repair"]).text();
        let line = |line: &str| line.contains("skeleton.zst, of which") && line.contains(words);
        assert!(told.lines().any(line), "{words}: {told}");
        let told = image(&["verify", "--repair", &path]).ok().text();
        assert!(told.contains("repaired sha256:"), "{told}");
        image(&["verify", &path]).ok();
        image(&["export", &path, "whole.oci"]).ok();
        std::fs::remove_dir_all(sandbox.work().join("whole.oci")).unwrap();
    }
}

each_user! {
    fn what_archives_are_made_again_of_is_looked_at_and_repaired_in_directories(who) {
        what_archives_are_made_again_of(who, "directory");
    }
}

#[test]
fn what_archives_are_made_again_of_is_looked_at_and_repaired_beside_images_file_backed_as_root() {
    what_archives_are_made_again_of(Who::root(), "erofs");
}

/// Changes each layer of the store, whatever its form.
fn damage(sandbox: &Sandbox) {
    let layers = sandbox.state().join("images/layers");
    let newest = Cmd::new("find")
        .arg(&layers)
        .args(["-name", "skeleton*", "-not", "-path", "*.replaced-*"])
        .ok()
        .text();
    for skeleton in newest.lines() {
        let layer = Path::new(skeleton).parent().unwrap();
        let all = std::fs::read_dir(layer).unwrap().flatten();
        let image = all.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("erofs"));
        if let Some(image) = image {
            use std::os::unix::fs::FileExt;
            let file = std::fs::File::options().read(true).write(true).open(&image).unwrap();
            let end = file.metadata().unwrap().len() - 1;
            file.write_all_at(b"x", end).unwrap();
        } else {
            std::fs::write(layer.join("fs/added"), "x").unwrap();
        }
    }
}

/// Where a user's path leads is the user's affair, and root follows it nowhere.
#[test]
fn what_a_users_file_gave_is_read_as_that_user_when_root_repairs_it_as_root() {
    let user = Who::user();
    let sandbox = Sandbox::with_config(Who::root(), "");
    let place = sandbox.work().join("users");
    std::fs::create_dir(&place).unwrap();
    machine::give(&place, &user);
    let as_user = |program: &str| sandbox.cmd_as(&user, program).dir(&place).limit(60);
    let from = format!("oci:{}:latest", images::layers().display());
    as_user("skopeo").args(["--insecure-policy", "copy", "--quiet", &from, "oci-archive:x.tar:1"]).ok();
    as_user("srun").args(["--container-image=./x.tar", "cat", "/data/hard1"]).ok();
    let root = |words: &[&str]| sandbox.cmd("berth").args(["image", "verify"]).args(words).limit(60);
    damage(&sandbox);
    root(&[]).fails();
    // The user puts a link in the place of the file, to what root alone may read: the very image, even.
    let secret = sandbox.work().join("secret.tar");
    std::fs::rename(place.join("x.tar"), &secret).unwrap();
    machine::give(&secret, &Who::root());
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink(&secret, place.join("x.tar")).unwrap();
    root(&["--repair"]).fails().says(&["x.tar", "ermission denied"]);
    machine::give(&secret, &user);
    let told = root(&["--repair"]).ok().text();
    assert!(told.contains("repaired sha256:"), "{told}");
    root(&[]).ok();
    assert_eq!(as_user("srun").args(["--container-image=./x.tar", "cat", "/data/hard1"]).ok().text(), "one");
}

/// On a shared node root has no login of anybody's; those who have the image do.
#[test]
fn what_a_registry_refuses_to_root_is_fetched_again_by_the_login_of_who_has_it_as_root() {
    let registry = Registry::with_login();
    let image = registry.push(&images::layers(), "team/private:1", &[]);
    let sandbox = Sandbox::with_config(Who::root(), &registry.without_tls());
    let (user, host) = (Who::user(), registry.host());
    // In the home directory that the machine knows: root's processes go by nothing else.
    let berth = |words: &[&str]| sandbox.cmd_as(&user, "berth").dir("/").arg("image").args(words);
    let login = ["login", "--insecure", "--password-stdin", &host, "-u", LOGIN.0];
    berth(&login).stdin(LOGIN.1).ok();
    let container = format!("--container-image={image}");
    let srun = || sandbox.cmd_as(&user, "srun").dir("/").args([&container, "cat", "/data/hard1"]).run();
    assert_eq!(srun().text(), "one");
    let root = |words: &[&str]| sandbox.cmd("berth").args(["image", "verify"]).args(words).limit(60);
    damage(&sandbox);
    root(&[]).fails();
    let (told, again) = (root(&["--repair"]).run(), srun());
    berth(&["logout", &host]).ok();
    assert!(told.rc == 0 && told.text().contains("repaired sha256:"), "{told}");
    assert_eq!(again.text(), "one");
    root(&[]).ok();
    // Who has no login any more is asked in vain, and it is said of both.
    damage(&sandbox);
    root(&["--repair"]).fails().says(&["401", &format!("as {}: ", user.name)]);
}

/// What one user put in the place of a file that is read for them keeps the images of others from nothing.
#[test]
fn a_users_pipe_in_the_place_of_a_certificate_holds_up_no_repair_as_root() {
    let registry = Registry::with_login();
    let image = registry.push(&images::layers(), "team/private:1", &[]);
    let sandbox = Sandbox::with_config(Who::root(), &registry.without_tls());
    let host = registry.host();
    let mut users = [Who::user(), Who::stranger()];
    // In the order in which they are asked.
    users.sort_by_key(|user| user.uid);
    let berth = |user: &Who, words: &[&str]| sandbox.cmd_as(user, "berth").dir("/").arg("image").args(words);
    let container = format!("--container-image={image}");
    let login = ["login", "--insecure", "--password-stdin", &host, "-u", LOGIN.0];
    for user in &users {
        berth(user, &login).stdin(LOGIN.1).ok();
        let srun = sandbox.cmd_as(user, "srun").dir("/").args([container.as_str(), "cat", "/data/hard1"]);
        assert_eq!(srun.ok().text(), "one");
    }
    let place = users[0].home.join(".config/containers/certs.d").join(&host);
    sandbox.cmd_as(&users[0], "mkdir").arg("-p").arg(&place).ok();
    sandbox.cmd_as(&users[0], "mkfifo").arg(place.join("ca.crt")).ok();
    let root = |words: &[&str]| sandbox.cmd("berth").args(["image", "verify"]).args(words).limit(60);
    damage(&sandbox);
    let told = root(&["--repair"]).run();
    // And when there is nobody else, it is said what it is.
    berth(&users[1], &["logout", &host]).ok();
    damage(&sandbox);
    let alone = root(&["--repair"]).run();
    sandbox.cmd_as(&users[0], "rm").arg("-r").arg(&place).ok();
    berth(&users[0], &["logout", &host]).ok();
    assert!(told.rc == 0 && told.text().contains("repaired sha256:"), "{told}");
    assert!(alone.rc != 0, "{alone}");
    alone.says(&["401"]);
}
