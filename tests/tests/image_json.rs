//! `berth image` with `--json`: each command prints one document and nothing else, and what it says is so.

use berth_tests::layout::{self, Layer};
use berth_tests::registry::LOGIN;
use berth_tests::{Cmd, Output, Registry, Sandbox, Who, each_user, machine};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Images stay, however full the machine's own disk is.
fn config(registries: [&Registry; 2]) -> String {
    let hosts = registries.map(Registry::host);
    format!("[images]\ninsecure_registries = {}\nhigh_watermark = 100\nlow_watermark = 100\n", json!(hosts))
}

fn own_layer(content: &str) -> Layer {
    Layer::default().file("name", 0o644, content.as_bytes())
}

/// An image with a layer of its own above a shared one.
fn write(directory: &Path, content: &str) {
    layout::write(directory, vec![layout::busybox(), own_layer(content)], json!({}));
}

/// What somebody who knows nothing of us says of an image in a registry.
fn skopeo(image: &str, words: &[&str]) -> String {
    let login = format!("--creds={}:{}", LOGIN.0, LOGIN.1);
    let skopeo = Cmd::new("skopeo").args(["inspect", "--tls-verify=false", &login]).args(words);
    skopeo.arg(format!("docker://{image}")).env("HOME", "/tmp").env("XDG_RUNTIME_DIR", "/tmp").ok().text()
}

fn digest_of(image: &str) -> String {
    skopeo(image, &["--format={{.Digest}}"])
}

fn manifest_of(image: &str) -> Value {
    serde_json::from_str(&skopeo(image, &["--raw"])).unwrap()
}

/// Bytes of an image's layers in the registry.
fn size_of(image: &str) -> u64 {
    let manifest = manifest_of(image);
    manifest["layers"].as_array().unwrap().iter().map(|layer| layer["size"].as_u64().unwrap()).sum()
}

/// All of standard output as one document.
fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}\n{output}"))
}

/// What a pull is to print.
fn pulled(image: &str, digest: &str, bytes: u64, store: &str) -> Value {
    let (name, source) =
        (format!("docker://{image}"), format!("docker://{}", image.strip_suffix(":1").unwrap()));
    json!({"name": name, "source": source, "digest": digest, "bytes": bytes, "hit": bytes == 0, "store": store})
}

/// Somebody with a directory, logins and a store of their own.
struct Person<'a> {
    sandbox: &'a Sandbox,
    who: Who,
    home: PathBuf,
}

impl Person<'_> {
    fn image(&self, words: &[&str]) -> Cmd {
        let berth = self.sandbox.cmd_as(&self.who, "berth").dir(&self.home);
        let berth = berth.env("DOCKER_CONFIG", self.home.join("docker")).env("XDG_STATE_HOME", &self.home);
        berth.arg("image").args(words).arg("--json").limit(120)
    }

    fn told(&self, words: &[&str]) -> Value {
        document(&self.image(words).ok())
    }

    /// Fails with nothing but an error.
    fn refused(&self, words: &[&str], error: &str) {
        let output = self.image(words).fails().says(&[error]);
        assert_eq!(output.text(), "", "{output}");
    }

    fn stored_bytes(&self) -> u64 {
        self.told(&["df"])["bytes"].as_u64().unwrap()
    }

    /// The row of `quota` of who has one image.
    fn quota(&self, bytes: &Value) -> Value {
        let (user, uid) = (&self.who.name, self.who.uid);
        json!({"user": user, "uid": uid, "images": 1, "layers": 2, "bytes": bytes, "quota": null})
    }
}

fn logs_in(us: &Person<'_>, host: &str) {
    let login = |registry: &str, password: &str| {
        let words = ["login", "--username", LOGIN.0, "--password-stdin", registry];
        us.image(&words).stdin(password)
    };
    let refused = login(host, "wrong").fails().says(&["401"]);
    assert_eq!(refused.text(), "", "{refused}");
    let output = login(host, LOGIN.1).ok();
    let file = us.home.join("docker/config.json").canonicalize().unwrap();
    let expected = json!({
        "registry": host, "user": LOGIN.0, "further": false, "checked": true, "file": file, "helper": null,
        "hidden_by": null,
    });
    assert_eq!(document(&output), expected);
    let kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for secret in [LOGIN.1, kept["auths"][host]["auth"].as_str().unwrap()] {
        assert!(!output.text().contains(secret) && !output.err().contains(secret), "{output}");
    }
    assert!(output.err().contains("note: "), "{output}");
    // Beside it another one, for images that name it.
    let further = format!("{}@{host}", LOGIN.0);
    let told = document(&login(&further, LOGIN.1).ok());
    assert_eq!((&told["further"], &told["registry"]), (&json!(true), &json!(host)));
    let forgotten = json!({"registry": host, "user": LOGIN.0, "left_in": []});
    assert_eq!(us.told(&["logout", &further]), forgotten);
}

/// Fetches an image twice; gives its digest.
fn pulls(us: &Person<'_>, image: &str) -> String {
    let digest = digest_of(image);
    assert_eq!(us.told(&["pull", image]), pulled(image, &digest, size_of(image), "own"));
    for words in [&["pull", image][..], &["pull", "--quiet", image][..]] {
        assert_eq!(us.told(words), pulled(image, &digest, 0, "own"));
    }
    us.refused(&["pull", "host:"], "nothing to fetch");
    digest
}

/// At the only image of the store.
fn looks(us: &Person<'_>, image: &str, digest: &str) {
    let manifest = manifest_of(image);
    let list = us.told(&["ls"]);
    let (listed, bytes) = (&list[0], &list[0]["bytes"]);
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    assert_eq!((&listed["digest"], &listed["layers"]), (&json!(digest), &json!(2)));
    assert!(listed["names"].as_array().unwrap().contains(&json!(format!("docker://{image}"))), "{list}");
    let whole = us.told(&["inspect", image]);
    assert_eq!((&whole["info"]["digest"], &whole["manifest"]), (&json!(digest), &manifest));
    let steps = us.told(&["history", image]);
    let steps = steps.as_array().unwrap().iter().rev();
    let made: Vec<&Value> = steps.filter_map(|step| step["layer"].get("digest")).collect();
    let layers = manifest["layers"].as_array().unwrap().iter();
    assert_eq!(made, layers.map(|layer| &layer["digest"]).collect::<Vec<_>>());
    let usage = us.told(&["df"]);
    assert_eq!(
        (&usage["images"], &usage["layers"], &usage["bytes"]),
        (&json!(1), &json!(2), bytes),
        "{usage}"
    );
    assert!(usage["disk_bytes"].as_u64() > bytes.as_u64(), "{usage}");
    // Where a file without content counts, too.
    let quota = us.told(&["quota"]);
    assert!(quota[0]["bytes"].as_u64() >= usage["disk_bytes"].as_u64(), "{quota} {usage}");
    assert_eq!(quota, json!([us.quota(&quota[0]["bytes"])]));
    let whole = json!({"images": 1, "layers": 2, "without_content": [], "damaged": [], "repaired": []});
    assert_eq!(us.told(&["verify"]), whole);
}

fn exports(us: &Person<'_>, image: &str, digest: &str) {
    let cases: [(&str, &[&str], &str); 4] = [
        ("x.tar", &[], "oci"),
        ("x.docker", &["--format=docker"], "docker"),
        ("x.sqsh", &[], "sqsh"),
        ("x.oci", &[], "dir-layout"),
    ];
    for (file, words, format) in cases {
        let told = us.told(&[&["export", image, file][..], words].concat());
        let sizes = us.sandbox.cmd("find").args([file, "-type", "f", "-printf", "%s\\n"]).ok().text();
        let bytes: u64 = sizes.lines().map(|size| size.parse::<u64>().unwrap()).sum();
        assert_eq!(told, json!({"digest": digest, "file": file, "format": format, "bytes": bytes}));
    }
    let holds = |file: &str, at: usize, magic: &[u8]| {
        std::fs::read(us.home.join(file)).unwrap()[at..].starts_with(magic)
    };
    assert!(holds("x.tar", 257, b"ustar") && holds("x.docker", 257, b"ustar") && holds("x.sqsh", 0, b"hsqs"));
    assert!(us.home.join("x.oci/oci-layout").exists());
    // As other tools have it in front of the path, and as sources are named.
    for (word, file, format) in [
        ("oci", "w", "dir-layout"),
        ("docker-archive", "w.d", "docker"),
        ("oci-archive", "w.o", "oci"),
        ("sqsh", "w.s", "sqsh"),
    ] {
        let told = us.told(&["export", image, &format!("{word}:{file}")]);
        assert_eq!((&told["file"], &told["format"]), (&json!(file), &json!(format)));
        assert!(us.home.join(file).exists());
    }
    us.refused(&["export", image, "oci:x:latest"], "without a tag");
    us.refused(&["export", image, "oci:"], "a path stands behind oci:");
    // What stands for a place that is no file is no file's name either.
    for (place, instead) in [
        ("docker-daemon:foo:1", "docker load"),
        ("containers-storage:foo", "podman load"),
        ("sif:x.sif", "apptainer build"),
        ("docker://127.0.0.1:1/foo:1", "berth image push"),
    ] {
        us.refused(&["export", image, place], instead);
        assert!(!us.home.join(place).exists());
    }
    assert_eq!(us.told(&["export", image, "./sif:x.sif"])["format"], json!("sqsh"));
    assert!(us.home.join("sif:x.sif").exists());
    us.refused(&["export", image, "sqsh:y", "--format=oci"], "say one of them");
    us.refused(&["export", "no/such:1", "none.tar"], "no/such");
    us.refused(&["export", image, "x.oci"], "target is a directory");
}

/// To the registry from which the image came.
fn pushes(us: &Person<'_>, registry: &Registry, image: &str, digest: &str) {
    let to = registry.image("other/b:1");
    // What its first repository has is taken over, and then it is there.
    for (mounted, present) in [(2, 0), (0, 2)] {
        let expected = json!({
            "image": digest, "reference": format!("docker://{to}"), "digest": digest, "uploaded": 0,
            "bytes": 0, "mounted": mounted, "present": present, "anew": false,
        });
        assert_eq!(us.told(&["push", image, &to]), expected);
        assert_eq!(digest_of(&to), digest);
    }
    us.refused(&["push", image, "./x.tar"], "is pushed to a registry");
}

/// An image of a file, which is fetched beside another one, pushed and removed.
fn brings_another(us: &Person<'_>, registry: &Registry) {
    let layout = us.home.join("second");
    write(&layout, "second");
    let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let digest = &index["manifests"][0]["digest"];
    let before = us.stored_bytes();
    let from = format!("oci:{}", layout.display());
    // One of its layers is there.
    let expected = json!({
        "name": from, "source": from, "digest": digest, "bytes": own_layer("second").finish().len(), "hit": false,
        "store": "own",
    });
    assert_eq!(us.told(&["pull", &from]), expected);
    let to = registry.image("team/c:1");
    let output = us.image(&["push", &from, &to]).ok();
    let expected = json!({
        "image": digest, "reference": format!("docker://{to}"), "digest": digest_of(&to), "uploaded": 2,
        "bytes": size_of(&to), "mounted": 0, "present": 0, "anew": true,
    });
    assert_eq!(document(&output), expected);
    assert!(output.err().contains("note: layers were compressed anew"), "{output}");
    // These, and the configuration.
    assert_eq!(registry.requests("PUT", "/team/c/blobs/uploads/"), 3);
    let more = us.stored_bytes() - before;
    assert!(more > 0, "its own layer takes nothing");
    assert_eq!(us.told(&["rm", &from]), json!({"removed": [digest], "layers": 1, "bytes": more}));
    assert_eq!(us.stored_bytes(), before);
}

/// The only image of the store.
fn removes(us: &Person<'_>, image: &str, digest: &str) {
    let bytes = us.stored_bytes();
    let all = json!({"removed": [digest], "layers": 2, "bytes": bytes});
    us.refused(&["rm", "no/such:1"], "no/such");
    // What is not there keeps nothing else, and what was done is told.
    let output =
        us.image(&["rm", "no/such:1", image, "no/other:1", image]).fails().says(&["no/such:1", "no/other:1"]);
    assert_eq!(output.err().matches("berth: error: ").count(), 2, "{output}");
    assert_eq!(document(&output), all);
    assert_eq!(us.told(&["ls"]), json!([]));
    us.told(&["pull", image]);
    assert_eq!(us.told(&["prune"]), json!({"removed": [], "layers": 0, "bytes": 0}));
    assert_eq!(us.told(&["prune", "--all"]), all);
    assert_eq!(us.told(&["ls"]), json!([]));
}

/// A user of root's cluster has a place on its node beside their own.
fn shares_a_node(sandbox: &Sandbox, image: &str) {
    let who = Who::user();
    let home = tempfile::Builder::new().prefix("bt-").tempdir_in("/tmp").unwrap();
    machine::give(home.path(), &who);
    let ann = Person { sandbox, who, home: home.path().to_path_buf() };
    let (digest, size) = (digest_of(image), size_of(image));
    let pull = |words: &[&str]| ann.told(&[&["pull", "--insecure", image][..], words].concat());
    for bytes in [size, 0] {
        assert_eq!(pull(&["--node"]), pulled(image, &digest, bytes, "node"));
    }
    let list = ann.told(&["ls", "--node"]);
    assert_eq!((&list[0]["digest"], &list[0]["store"]), (&json!(digest), &json!("node")));
    assert_eq!(ann.told(&["inspect", "--node", image])["manifest"], manifest_of(image));
    assert_eq!(ann.told(&["history", "--node", image]).as_array().unwrap().len(), 2);
    let usage = ann.told(&["df", "--node"]);
    let bytes = &usage["node"]["bytes"];
    assert_eq!(usage["node"]["images"], json!(1));
    // By the blocks that they take, and not by what its files have.
    assert!(bytes.as_u64() > list[0]["bytes"].as_u64(), "{usage} {list}");
    assert_eq!(ann.told(&["quota"]), json!([ann.quota(bytes)]));
    let given_back = json!({"removed": [digest], "bytes": bytes});
    let output = ann.image(&["rm", "--node", "no/such:1", image]).fails().says(&["no/such:1"]);
    assert_eq!(document(&output), json!({"node": given_back}));
    // In both.
    pull(&["--node"]);
    assert_eq!(pull(&["--own"]), pulled(image, &digest, size, "own"));
    let both = json!({"removed": [digest], "layers": 2, "bytes": list[0]["bytes"], "node": given_back});
    assert_eq!(ann.told(&["prune", "--all"]), both);
}

each_user! {
    fn every_command_prints_one_document_and_it_is_true(who) {
        let (registry, open) = (Registry::with_login(), Registry::open());
        let sandbox = Sandbox::with_config(who.clone(), &config([&registry, &open]));
        let layout = tempfile::tempdir().unwrap();
        write(layout.path(), "first");
        let image = registry.push(layout.path(), "team/a:1", &[]);
        let us = Person { sandbox: &sandbox, who: who.clone(), home: sandbox.work() };
        logs_in(&us, &registry.host());
        let digest = pulls(&us, &image);
        looks(&us, &image, &digest);
        exports(&us, &image, &digest);
        pushes(&us, &registry, &image, &digest);
        brings_another(&us, &registry);
        removes(&us, &image, &digest);
        let host = registry.host();
        assert_eq!(us.told(&["logout", &host]), json!({"registry": host, "user": null, "left_in": []}));
        us.refused(&["logout", &host], "there is none");
        if who.is_root() {
            shares_a_node(&sandbox, &open.push(layout.path(), "team/a:1", &[]));
        }
    }
}
