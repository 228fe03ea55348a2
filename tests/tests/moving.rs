//! `berth image history`, `export` and `push`: images of the store as other tools read them.

use berth_tests::registry::LOGIN;
use berth_tests::{Cmd, Registry, Sandbox, each_user, images};
use serde_json::Value;
use std::path::Path;

/// A tool of others, with places of its own to write to.
fn tool(sandbox: &Sandbox, program: &str) -> Cmd {
    let work = sandbox.work();
    sandbox.cmd(program).env("HOME", &work).env("TMPDIR", &work).env("XDG_RUNTIME_DIR", work).limit(120)
}

/// The configuration as it is.
fn config(sandbox: &Sandbox, source: &str) -> Value {
    let text = tool(sandbox, "skopeo")
        .args(["inspect", "--tls-verify=false", "--config", "--raw", source])
        .ok()
        .text();
    serde_json::from_str(&text).unwrap()
}

/// Content, modes, owners as the archive has them, times and links of all layers.
fn tree(sandbox: &Sandbox, layout: &str, name: &str) -> String {
    let target = sandbox.work().join(name);
    let rootless: &[&str] = if sandbox.who().is_root() { &[] } else { &["--rootless"] };
    tool(sandbox, "umoci")
        .args(["--log=error", "unpack"])
        .args(rootless)
        .args(["--image", layout])
        .arg(&target)
        .ok();
    let list = "cd \"$1\"/rootfs && find . -printf '%p %y %m %U:%G %T@ %l\\n' | sort && find . -type f -print0 | sort -z | xargs -0 sha256sum";
    let text = sandbox.cmd("sh").args(["-c", list, "sh"]).arg(&target).limit(120).ok().text();
    sandbox.cmd("chmod").args(["-R", "u+rwX"]).arg(&target).ok();
    sandbox.cmd("rm").arg("-r").arg(&target).ok();
    text
}

fn berth(sandbox: &Sandbox, words: &[&str]) -> Cmd {
    sandbox.cmd("berth").arg("image").args(words).limit(120)
}

each_user! {
    fn an_exported_image_is_what_was_fetched_for_other_tools(who) {
        let sandbox = Sandbox::empty(who.clone());
        let from = format!("oci:{}", images::layers().display());
        berth(&sandbox, &["pull", "--quiet", &from]).ok();
        for (name, options) in [("one/x.tar", &[][..]), ("two/x.tar", &[]), ("x.oci", &[]), ("plain", &["--format=dir-layout"]), ("x.sqsh", &[])] {
            if let Some((directory, _)) = name.split_once('/') {
                sandbox.cmd("mkdir").arg(directory).ok();
            }
            berth(&sandbox, &[&["export", &from, name][..], options].concat()).ok();
        }
        let path = |name: &str| sandbox.work().join(name).display().to_string();
        let same = std::fs::read(path("one/x.tar")).unwrap() == std::fs::read(path("two/x.tar")).unwrap();
        assert!(same, "the same image gives other bytes");
        // The configuration, and with it the digests of all layers' content, is the one that was fetched.
        let original = config(&sandbox, &from);
        for source in [format!("oci-archive:{}", path("one/x.tar")), format!("docker-archive:{}", path("one/x.tar")), format!("oci:{}", path("x.oci"))] {
            assert_eq!(config(&sandbox, &source)["rootfs"], original["rootfs"], "{source}");
        }
        assert_eq!(config(&sandbox, &format!("oci:{}", path("x.oci"))), original);
        let tag = |layout: &Path| {
            let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
            index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap().to_string()
        };
        let before = tree(&sandbox, &format!("{}:{}", images::layers().display(), tag(&images::layers())), "before");
        for layout in ["x.oci", "plain"] {
            let image = format!("{}:{}", path(layout), tag(&sandbox.work().join(layout)));
            assert_eq!(tree(&sandbox, &image, "after"), before, "{layout}");
        }
        // And all run here.
        for name in ["./one/x.tar", "./x.oci", "./x.sqsh"] {
            let text = sandbox.cmd("berth").args(["run", name, "sh", "-c", "cat /data/kept /data/emptied/c; ls /data/opaque"]).ok().text();
            assert_eq!(text, "kept\nchanged\nnew", "{name}");
        }
        if who.is_root() {
            // An ordinary user's podman leaves a process behind.
            let storage = ["--root", &path("podman"), "--runroot", &path("podman-run"), "--storage-driver=vfs"].map(str::to_string);
            // It cannot apply umoci's way of replacing a directory, so another image.
            let configured = format!("oci:{}", images::configured().display());
            berth(&sandbox, &["pull", "--quiet", &configured]).ok();
            berth(&sandbox, &["export", &configured, "configured.tar"]).ok();
            let loaded = tool(&sandbox, "podman").args(&storage).args(["load", "-i", &path("configured.tar")]).ok();
            assert!(loaded.text().contains("Loaded image"), "{loaded}");
            tool(&sandbox, "podman").args(&storage).args(["system", "reset", "--force"]).ok();
        }
        berth(&sandbox, &["export", &from, "no/such/x.tar"]).fails().says(&["no/such/x.tar", "directory that exists"]);
        berth(&sandbox, &["export", &from, "x.oci"]).fails().says(&["target is a directory"]);
        berth(&sandbox, &["export", "nothing", "x.tar"]).fails().says(&["nothing", "berth image ls"]);
        let left = sandbox.cmd("find").args([".", "-name", "*.partial"]).ok().text();
        assert_eq!(left, "", "something half made is left");
    }

    fn what_was_damaged_is_not_exported(who) {
        let sandbox = Sandbox::empty(who);
        let from = format!("oci:{}", images::layers().display());
        berth(&sandbox, &["pull", "--quiet", &from]).ok();
        let found = Cmd::new("find").arg(sandbox.state().join("images/layers")).args(["-path", "*/fs/data/hard1"]).ok().text();
        let before = std::fs::metadata(&found).unwrap().modified().unwrap();
        std::fs::write(&found, "onE\n").unwrap();
        std::fs::File::options().write(true).open(&found).unwrap().set_modified(before).unwrap();
        for name in ["x.tar", "x.oci"] {
            berth(&sandbox, &["export", &from, name]).fails().says(&["data/hard1", "changed", "berth image verify --repair"]);
            assert!(!sandbox.work().join(name).exists());
        }
        berth(&sandbox, &["verify", "--repair"]).ok();
        berth(&sandbox, &["export", &from, "x.tar"]).ok();
    }

    fn history_names_every_layer(who) {
        let sandbox = Sandbox::empty(who);
        let from = format!("oci:{}", images::configured().display());
        berth(&sandbox, &["pull", "--quiet", &from]).ok();
        let json: Value = serde_json::from_str(&berth(&sandbox, &["history", "--json", &from]).ok().text()).unwrap();
        let layers: Vec<&str> = json.as_array().unwrap().iter().rev().filter_map(|step| step["layer"]["diff_id"].as_str()).collect();
        let original = config(&sandbox, &from);
        let wanted: Vec<&str> = original["rootfs"]["diff_ids"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(layers, wanted);
        let text = berth(&sandbox, &["history", &from]).ok().text();
        assert!(text.starts_with("CREATED") && text.lines().count() == json.as_array().unwrap().len() + 1, "{text}");
    }

    fn a_push_sends_what_is_not_there(who) {
        let registry = Registry::with_login();
        let host = registry.host();
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        let from = format!("oci:{}", images::layers().display());
        berth(&sandbox, &["pull", "--quiet", &from]).ok();
        let docker = sandbox.work().join("docker");
        let push = |words: &[&str]| berth(&sandbox, &[&["push"], words].concat()).env("DOCKER_CONFIG", &docker);
        push(&[&from, &registry.image("team/a:1")]).fails().says(&[&host, "anonymous", "berth image login"]);
        let login = sandbox.cmd("berth").args(["image", "login", "-u", LOGIN.0, "--password-stdin", &host]);
        login.env("DOCKER_CONFIG", &docker).stdin(LOGIN.1).ok();
        let uploads = || registry.requests("PUT", "/blobs/uploads/");
        let told = push(&[&from, &registry.image("team/a:1")]).ok();
        let first = uploads();
        assert!(first >= 5 && told.text().contains("sha256:"), "{told}");
        // Again nothing is sent, and the manifest is the same.
        let again = push(&["--quiet", &from, &registry.image("team/a:2")]).ok().text();
        assert!(told.text().contains(&again), "{told} and {again}");
        assert_eq!(uploads(), first);
        // As another tool fetches it, and runs here again under its new name.
        let skopeo = tool(&sandbox, "skopeo").args(["copy", "--quiet", "--src-tls-verify=false", "--src-creds", &format!("{}:{}", LOGIN.0, LOGIN.1)]);
        skopeo.arg(format!("docker://{}", registry.image("team/a:1"))).arg("oci:back:1").ok();
        assert_eq!(config(&sandbox, "oci:back:1"), config(&sandbox, &from));
        let pushed = registry.image("team/a:1");
        let srun = sandbox.srun_in(&pushed, ["cat", "/data/kept"]).env("DOCKER_CONFIG", &docker);
        assert_eq!(srun.ok().text(), "kept");
        // From one repository to another of the same registry: taken over there, as it is, with its digest.
        berth(&sandbox, &["pull", "--quiet", &pushed]).env("DOCKER_CONFIG", &docker).ok();
        let told = push(&[&pushed, &registry.image("other/b:1")]).ok();
        assert!(told.text().contains(&again) && told.text().contains("(0 layers sent, "), "{told}");
        assert!(!told.text().contains(" 0 taken over"), "{told}");
        // Configurations are small and not layers.
        assert!(uploads() <= first + 1, "{} uploads after {first}", uploads());
        push(&[&from, &format!("{}@{again}", registry.image("team/a"))]).fails().says(&["under a tag"]);
        push(&[&from, "./x.tar"]).fails().says(&["./x.tar", "berth image export"]);
        // A squashfs image is one layer.
        berth(&sandbox, &["export", &from, "x.sqsh"]).ok();
        berth(&sandbox, &["pull", "--quiet", "./x.sqsh"]).ok();
        let told = push(&["./x.sqsh", &registry.image("team/squashed:1")]).ok();
        assert!(told.text().contains("(1 layers sent"), "{told}");
        let squashed = sandbox.srun_in(registry.image("team/squashed:1"), ["cat", "/data/kept"]).env("DOCKER_CONFIG", &docker);
        assert_eq!(squashed.ok().text(), "kept");
        let closed = format!("127.0.0.1:{}/x:1", berth_tests::registry::closed_port());
        push(&["--insecure", &from, &closed]).fails().says(&["connection refused"]);
    }

    fn docker_s_door_pushes_saves_and_tells_history(who) {
        let registry = Registry::open();
        let image = registry.push(&images::layers(), "team/layers:1", &[]);
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        let doors = sandbox.work().join("doors");
        sandbox.cmd("berth").args(["install-links", "--front-doors"]).arg(&doors).ok();
        let docker = |words: &[&str]| sandbox.cmd(doors.join("docker")).args(words).limit(120);
        docker(&["pull", &image]).ok();
        docker(&["save", "-o", "x.tar", &image]).ok();
        let listed = tool(&sandbox, "tar").args(["-xOf", "x.tar", "manifest.json"]).ok().text();
        assert!(listed.contains(&image), "{listed}");
        assert!(docker(&["push", &image]).ok().text().contains("(0 layers sent, "));
        assert!(docker(&["history", &image]).ok().text().starts_with("IMAGE"));
        assert!(!docker(&["history", "--format", "{{.CreatedBy}}|{{.Size}}", &image]).ok().text().is_empty());
        docker(&["save", &image]).fails().says(&["--output"]);
    }
}
