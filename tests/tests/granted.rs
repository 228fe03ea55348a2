//! Images of a node that users share: everyone sees and gives back what they have, and finds nothing of what others have.

use berth_tests::layout::{self, Layer};
use berth_tests::{Cmd, Registry, Sandbox, Who, each_user, images};
use serde_json::{Value, json};

/// Images stay, however full the machine's own disk is.
fn config(registry: &Registry) -> String {
    format!("{}high_watermark = 100\nlow_watermark = 100\n", registry.without_tls())
}

/// Pushes an image with a layer of its own above a shared one, under these names.
fn push(registry: &Registry, content: &str, names: &[&str]) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let own = Layer::default().file("name", 0o644, content.as_bytes());
    layout::write(directory.path(), vec![layout::busybox(), own], json!({}));
    names.iter().map(|name| registry.push(directory.path(), &format!("team/{name}:1"), &[])).collect()
}

fn run(sandbox: &Sandbox, who: &Who, image: &str) -> String {
    sandbox.cmd_as(who, "srun").dir("/").args(["--container-image", image, "cat", "/name"]).ok().text()
}

/// `berth image` with these words.
fn image(sandbox: &Sandbox, who: &Who, words: &[&str]) -> Cmd {
    sandbox.cmd_as(who, "berth").dir("/").arg("image").args(words)
}

trait Tells {
    fn tells(self, text: &str);
}

impl Tells for Cmd {
    /// Succeeds and prints that.
    fn tells(self, text: &str) {
        let output = self.ok();
        assert!(output.text().contains(text), "{output}");
    }
}

fn list(sandbox: &Sandbox, who: &Who) -> Vec<Value> {
    let words: &[&str] = if who.is_root() { &["ls", "--json"] } else { &["ls", "--json", "--node"] };
    serde_json::from_str(&image(sandbox, who, words).ok().text()).unwrap()
}

/// Last parts of the names that the caller sees, sorted.
fn names(sandbox: &Sandbox, who: &Who) -> Vec<String> {
    let last = |name: &Value| name.as_str().unwrap().rsplit('/').next().unwrap().replace(":1", "");
    let names = |image: &Value| image["names"].as_array().unwrap().iter().map(last).collect::<Vec<_>>();
    let mut all: Vec<String> = list(sandbox, who).iter().flat_map(names).collect();
    all.sort();
    all
}

fn digest_of(sandbox: &Sandbox, who: &Who, name: &str) -> String {
    let all = list(sandbox, who);
    let named = |image: &&Value| image["names"].to_string().contains(&format!("/{name}:"));
    all.iter().find(named).unwrap_or_else(|| panic!("{all:?}"))["digest"].as_str().unwrap().to_string()
}

#[test]
fn users_see_their_images_and_nothing_of_others_as_root() {
    let registry = Registry::open();
    let sandbox = Sandbox::with_config(Who::root(), &config(&registry));
    let (root, ann, bob) = (Who::root(), Who::user(), Who::stranger());
    let [hers, his] = ["hers", "his"].map(|name| push(&registry, name, &[name]).remove(0));
    let shared = push(&registry, "shared", &["for-ann", "for-bob"]);
    for (who, image) in [(&ann, &hers), (&ann, &shared[0]), (&bob, &his), (&bob, &shared[1])] {
        run(&sandbox, who, image);
    }
    assert_eq!(names(&sandbox, &ann), ["for-ann", "hers"]);
    assert_eq!(names(&sandbox, &bob), ["for-bob", "his"]);
    assert_eq!(names(&sandbox, &root), ["for-ann", "for-bob", "hers", "his"]);
    let digest = digest_of(&sandbox, &bob, "his");

    // Neither names nor digests nor sizes of others, by whatever way it is asked.
    let hidden = ["for-bob", "his:", digest.as_str()];
    let shared_digest = digest_of(&sandbox, &ann, "for-ann");
    for words in [
        &["ls"][..],
        &["ls", "--json"],
        &["df"],
        &["df", "--json"],
        &["inspect", "--node", &shared_digest],
        &["history", "--node", &shared_digest],
    ] {
        let told = image(&sandbox, &ann, words).ok().text();
        assert!(hidden.iter().all(|text| !told.contains(text)), "{words:?}: {told}");
    }
    let before = image(&sandbox, &bob, &["df", "--node", "--json"]).ok().text();
    for command in ["inspect", "history", "rm"] {
        for name in [his.as_str(), &digest, &digest["sha256:".len()..], &shared[1]] {
            let told = image(&sandbox, &ann, &[command, "--node", name]).fails();
            let missing = image(&sandbox, &ann, &[command, "--node", "quay.io/no/such:1"]).fails();
            assert_eq!(told.err().replace(name, ""), missing.err().replace("quay.io/no/such:1", ""));
        }
    }
    // Without the commands' manners, at the socket itself.
    let socket = sandbox.state().join("run/agent.sock").display().to_string();
    for query in ["inspect", "remove"] {
        let ask = |who: &Who, digest: &str| {
            let query = json!({ query: digest }).to_string();
            Cmd::new("perl").who(who).dir("/").args(["-e", ASK, &socket, &query]).ok().text()
        };
        assert!(ask(&ann, &digest).contains("you have no such image"), "{}", ask(&ann, &digest));
        if query == "inspect" {
            let told = ask(&ann, &shared_digest);
            assert!(told.contains("for-ann") && !told.contains("for-bob"), "{told}");
        }
    }
    assert_eq!(image(&sandbox, &bob, &["df", "--node", "--json"]).ok().text(), before);
    image(&sandbox, &ann, &["rm", "--node", &hers]).tells("gave back sha256:");
    assert_eq!(names(&sandbox, &root), ["for-ann", "for-bob", "his"]);
}

/// Sends one frame, and prints what comes.
const ASK: &str = r#"
use IO::Socket::UNIX;
my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die "$!";
print $s pack("CVV", 21, 0xffffffff, length $ARGV[1]), $ARGV[1];
$s->flush; $s->shutdown(1);
local $/; print <$s>;
"#;

#[test]
fn what_is_given_back_goes_when_nobody_needs_it_as_root() {
    let registry = Registry::open();
    let sandbox = Sandbox::with_config(Who::root(), &config(&registry));
    let (root, ann, bob) = (Who::root(), Who::user(), Who::stranger());
    let [kept, needed, both] =
        ["kept", "needed", "both"].map(|name| push(&registry, name, &[name]).remove(0));
    run(&sandbox, &ann, &both);
    run(&sandbox, &bob, &both);
    run(&sandbox, &ann, &needed);
    sandbox
        .cmd_as(&ann, "srun")
        .dir("/")
        .args(["--container-scope=user", "--container-name=box", "--container-image", &kept, "true"])
        .ok();
    let script = sandbox.write("job.sh", "#!/bin/sh\ncat /name\n");
    let job = sandbox
        .cmd_as(&ann, "sbatch")
        .dir("/")
        .args(["--parsable", "--hold", "--output=/dev/null", "--container-image", &needed])
        .arg(script)
        .ok()
        .text();
    assert_eq!(names(&sandbox, &ann), ["both", "kept", "needed"]);

    // All that neither jobs nor containers of hers need: of "both" her part alone.
    image(&sandbox, &ann, &["prune", "--node", "--all"]).tells("gave back sha256:");
    assert_eq!(names(&sandbox, &ann), ["kept", "needed"]);
    assert_eq!(names(&sandbox, &bob), ["both"]);
    let fetched = registry.fetched().len();
    assert_eq!(run(&sandbox, &bob, &both), "both");
    // She shows anew that she may have it: nothing is fetched but manifest and configuration.
    let manifests = registry.requests("GET", "/manifests/");
    assert_eq!(run(&sandbox, &ann, &both), "both");
    assert!(registry.requests("GET", "/manifests/") > manifests);
    assert_eq!(registry.fetched().len(), fetched + 1, "layers were fetched again");

    // By name: also what a job or a container needs, which stays in the store for it.
    for name in [&needed, &kept, &both] {
        image(&sandbox, &ann, &["rm", "--node", name]).ok();
    }
    assert_eq!(names(&sandbox, &ann), Vec::<String>::new());
    assert_eq!(names(&sandbox, &root), ["both", "kept", "needed"]);
    sandbox.cmd_as(&ann, "berth").dir("/").args(["container", "rm", "box"]).ok();
    sandbox.cmd_as(&ann, "scancel").dir("/").arg(&job).ok();
    // The next one that is given back takes with it what could not go before.
    image(&sandbox, &bob, &["rm", "--node", &both]).ok();
    assert_eq!(names(&sandbox, &root), Vec::<String>::new());
    let df: Value = serde_json::from_str(&image(&sandbox, &root, &["df", "--json"]).ok().text()).unwrap();
    assert_eq!((df["images"].as_u64(), df["layers"].as_u64()), (Some(0), Some(0)), "{df}");
    image(&sandbox, &root, &["verify"]).ok();
}

each_user! {
    /// Who has one store has one place.
    fn the_store_of_ones_own_cluster_is_ones_own(who) {
        let rules = "[images]\nhigh_watermark = 100\nlow_watermark = 100\n";
        let sandbox = Sandbox::with_config(who, rules);
        sandbox.srun_in(images::busybox(), ["true"]).ok();
        let berth = |words: &[&str]| sandbox.cmd("berth").arg("image").args(words);
        let told = berth(&["ls"]).ok().text();
        assert!(!told.contains("STORE") && told.contains("LAST USED"), "{told}");
        berth(&["ls", "--node"]).fails().says(&["--node", "leave it out"]);
        assert_eq!(berth(&["ls", "--own"]).ok().text().lines().count(), told.lines().count());
        berth(&["ls", "--own", "--node"]).fails().says(&["cannot be used with"]);
    }
}

/// One image in both places is named with its place.
#[test]
fn a_users_own_store_and_the_nodes_are_told_apart_as_root() {
    let registry = Registry::open();
    let sandbox = Sandbox::with_config(Who::root(), &config(&registry));
    let ann = Who::user();
    let name = push(&registry, "twice", &["twice"]).remove(0);
    let home = tempfile::Builder::new().prefix("bt-").tempdir_in("/tmp").unwrap();
    berth_tests::machine::give(home.path(), &ann);
    let berth = |words: &[&str]| image(&sandbox, &ann, words).env("XDG_STATE_HOME", home.path());
    run(&sandbox, &ann, &name);
    // No store of her own is made for looking.
    let state = sandbox.state();
    let state = state.to_str().unwrap();
    assert!(berth(&["ls", "--state", state]).ok().text().contains("twice"));
    berth(&["ls", "--own", "--state", state]).fails().says(&["another user's", "leave --state out"]);
    let told = berth(&["ls"]).ok().text();
    assert!(told.contains("STORE") && told.contains("twice"), "{told}");
    assert!(!home.path().join("berth").exists());
    berth(&["pull", "--insecure", "--node", &name]).tells("(it was there)");
    berth(&["pull", "--insecure", &name]).ok();
    let all: Vec<Value> = serde_json::from_str(&berth(&["ls", "--json"]).ok().text()).unwrap();
    let stores: Vec<&str> = all.iter().map(|image| image["store"].as_str().unwrap()).collect();
    assert_eq!(stores, ["own", "node"], "{all:?}");
    berth(&["rm", &name]).fails().says(&["--own or --node"]);
    berth(&["rm", "--own", &name]).tells("removed sha256:");
    berth(&["rm", &name]).tells("gave back sha256:");
    berth(&["rm", &name]).fails().says(&["you have none of that name", "srun --container-image="]);
    let df: Value = serde_json::from_str(&berth(&["df", "--json"]).ok().text()).unwrap();
    assert_eq!((df["images"].as_u64(), df["node"]["images"].as_u64()), (Some(0), Some(0)), "{df}");
}

/// An image of so many bytes that do not compress, above the shared layer.
fn push_noise(registry: &Registry, name: &str, bytes: usize) -> String {
    use std::io::Read;
    let mut noise = vec![0; bytes];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let own = Layer::default().file("name", 0o644, name.as_bytes()).file("noise", 0o644, &noise);
    layout::write(directory.path(), vec![layout::busybox(), own], json!({}));
    registry.push(directory.path(), &format!("team/{name}:1"), &[])
}

fn quota(sandbox: &Sandbox, who: &Who) -> Vec<Value> {
    serde_json::from_str(&image(sandbox, who, &["quota", "--json"]).ok().text()).unwrap()
}

#[test]
fn a_users_quota_holds_for_jobs_on_a_node_as_root() {
    let registry = Registry::open();
    let (root, ann, bob) = (Who::root(), Who::user(), Who::stranger());
    let config = format!(
        "{}user_quota = \"24M\"\n[[images.quota]]\nusers = [\"{}\"]\nsize = \"64M\"\n",
        config(&registry),
        bob.name
    );
    let sandbox = Sandbox::with_config(Who::root(), &config);
    let [one, two, large] = [("one", 8 << 20), ("two", 8 << 20), ("large", 28 << 20)]
        .map(|(name, bytes)| push_noise(&registry, name, bytes));
    assert_eq!(run(&sandbox, &ann, &one), "one");
    assert_eq!(run(&sandbox, &ann, &two), "two");
    let hers = quota(&sandbox, &ann);
    let (bytes, limit) = (hers[0]["bytes"].as_u64().unwrap(), hers[0]["quota"].as_u64().unwrap());
    assert!(bytes > 16 << 20 && bytes < limit && limit == 24 << 20, "{hers:?}");
    assert_eq!((hers.len(), hers[0]["user"].as_str().unwrap()), (1, ann.name.as_str()));

    // Refused before a layer is fetched, by what the manifest says.
    let fetched = registry.fetched().len();
    let job = |who: &Who, image: &str| {
        let options = ["--container-image", image, "cat", "/name"];
        sandbox.cmd_as(who, "srun").dir("/").args(options)
    };
    job(&ann, &large).fails().says(&[
        "your quota for images on this node is 24.00 MiB",
        "compressed",
        "berth image rm",
    ]);
    let own =
        |blobs: &[String]| blobs[fetched..].iter().filter(|path| path.contains("/large/blobs/")).count();
    assert!(
        own(&registry.fetched()) <= 1,
        "more than the configuration: {:?}",
        &registry.fetched()[fetched..]
    );
    assert_eq!(names(&sandbox, &root), ["one", "two"]);
    // The other has more, root has all, and a bomb of either ends where the quota does.
    assert_eq!(run(&sandbox, &bob, &large), "large");
    let zeros = tempfile::tempdir().unwrap();
    let bomb = Layer::default().file("zeros", 0o644, &vec![0; 96 << 20]);
    layout::write(zeros.path(), vec![layout::busybox(), bomb], json!({}));
    let bomb = registry.push(zeros.path(), "team/bomb:1", &["--dest-compress"]);
    for who in [&ann, &bob] {
        job(who, &bomb).fails().says(&["more than is left", "berth image rm"]);
    }
    assert_eq!(names(&sandbox, &root), ["large", "one", "two"]);
    let df: Value = serde_json::from_str(&image(&sandbox, &root, &["df", "--json"]).ok().text()).unwrap();
    assert_eq!(df["layers"].as_u64(), Some(4), "layers of what was refused are left: {df}");
    assert_eq!(std::fs::read_dir(sandbox.state().join("images/tmp")).unwrap().count(), 0);

    // What others have counts, too; what is given back makes room.
    job(&ann, &large).fails().says(&["your quota"]);
    for name in [&one, &two] {
        image(&sandbox, &ann, &["rm", "--node", name]).tells("gave back sha256:");
    }
    job(&ann, &large).fails().says(&["your images take 0.00 KiB"]);
    assert_eq!(run(&sandbox, &ann, &one), "one");
    let all = quota(&sandbox, &root);
    let users: Vec<&str> = all.iter().map(|row| row["user"].as_str().unwrap()).collect();
    assert_eq!(users, [&bob.name, &ann.name], "{all:?}");
    assert_eq!(all[0]["quota"].as_u64(), Some(64 << 20));
    let told = image(&sandbox, &ann, &["quota"]).ok().text();
    assert!(told.contains("24.00 MiB") && !told.contains(&bob.name), "{told}");
    let job = sandbox.cmd_as(&ann, "sbatch").dir("/").args(["--parsable", "--output=/dev/null"]);
    let script = sandbox.write("job.sh", "#!/bin/sh\ncat /name\n");
    let job = job.args(["--container-image", &large]).arg(script).ok().text().parse().unwrap();
    sandbox.wait_state(job, "FAILED", 60);
}

each_user! {
    fn a_quota_that_would_hold_for_nobody_is_refused(who) {
        let mut sandbox = Sandbox::empty(who.clone());
        let check = |text: &str| {
            let path = sandbox.write("berth.toml", text);
            sandbox.cmd("berth").args(["config", "check"]).arg(path)
        };
        check("[images]\nuser_quota = \"much\"\n").fails().says(&["images.user_quota"]);
        check("[[images.quota]]\nusers = [\"no-such-user\"]\nsize = \"5G\"\n")
            .fails()
            .says(&["images.quota[1].users", "no user 'no-such-user'"]);
        check("[[images.quota]]\nusers = [\"root\"]\nsize = \"unlimited\"\n").fails().says(&["images.quota[1].size"]);
        check(&format!("[[images.quota]]\nusers = [\"{}\"]\nsize = \"UNLIMITED\"\n", who.name)).ok();
        if !who.is_root() {
            let path = sandbox.state().join("berth.toml");
            std::fs::write(&path, "[images]\nuser_quota = \"1G\"\n").unwrap();
            sandbox.cmd("berth").args(["up", "--detach"]).fails().says(&["images.user_quota", "images.max_size"]);
            std::fs::remove_file(&path).unwrap();
            sandbox.up();
            let told = sandbox.cmd("berth").args(["image", "quota"]).ok().text();
            assert!(told.lines().nth(1).unwrap().ends_with("none"), "{told}");
        }
    }
}

#[test]
fn users_have_the_node_fetch_as_themselves_without_a_job_as_root() {
    let registry = Registry::open();
    let rules = format!("deny = [\"{}\"]\n", registry.image("team/never"));
    let sandbox = Sandbox::with_config(Who::root(), &format!("{}{rules}", config(&registry)));
    let (ann, bob) = (Who::user(), Who::stranger());
    let name = push(&registry, "one", &["one"]).remove(0);
    let never = push(&registry, "two", &["never"]).remove(0);
    let pull = |who: &Who, name: &str| image(&sandbox, who, &["pull", "--insecure", "--node", name]);
    pull(&ann, &name).tells("is present on this node: sha256:");
    image(&sandbox, &ann, &["ls", "--node"]).tells("team/one");
    let theirs = image(&sandbox, &bob, &["ls", "--node"]).ok().text();
    assert!(!theirs.contains("team/one"), "{theirs}");
    // It is fetched by nobody any more, and the site's rules hold without a job, too.
    let fetched = registry.fetched();
    assert_eq!(run(&sandbox, &ann, &name), "one");
    assert_eq!(registry.fetched(), fetched);
    pull(&ann, &never).fails().says(&["team/never", "images.deny"]);
    // A file is read as who asks.
    let place = sandbox.work().join("anns");
    std::fs::create_dir(&place).unwrap();
    berth_tests::machine::give(&place, &ann);
    let file = place.join("x.tar").display().to_string();
    let from = format!("oci:{}:latest", images::layers().display());
    let to = format!("oci-archive:{file}:1");
    sandbox.cmd_as(&ann, "skopeo").dir("/").args(["--insecure-policy", "copy", "--quiet", &from, &to]).ok();
    let open =
        |mode| std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    open(0o600);
    pull(&ann, &file).tells("is present on this node: sha256:");
    pull(&bob, &file).fails().says(&["ermission denied"]);
}
