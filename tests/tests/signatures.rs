//! Images that must be signed: at submit, on the node, and whatever was there before the rule.

use berth_tests::{Cmd, Registry, Sandbox, each_user, images};
use std::path::{Path, PathBuf};

/// A key pair, and what signs images as cosign does, by openssl and curl.
pub struct Signer(tempfile::TempDir);

impl Signer {
    pub fn new() -> Signer {
        let directory = tempfile::Builder::new().prefix("bt-key-").tempdir_in("/tmp").unwrap();
        let script = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key 2>/dev/null && \
                      openssl pkey -in key -pubout -out pub && chmod 755 . && chmod 644 pub";
        Cmd::new("sh").args(["-c", script]).dir(directory.path()).ok();
        Signer(directory)
    }

    fn public(&self) -> PathBuf {
        self.0.path().join("pub")
    }

    /// Its text, as it stands in a configuration.
    pub fn text(&self) -> String {
        std::fs::read_to_string(self.public()).unwrap()
    }

    /// Signs what a tag means, by the name that it has.
    fn sign(&self, registry: &Registry, repository: &str, tag: &str) {
        self.sign_from(Cmd::new("env"), registry, repository, tag);
    }

    /// The same, where `command` runs what follows.
    pub fn sign_from(&self, command: Cmd, registry: &Registry, repository: &str, tag: &str) {
        let script = r#"
set -e
base=http://$HOST/v2/$REPOSITORY
accept='Accept: application/vnd.oci.image.manifest.v1+json'
digest=$(curl -sf -I -H "$accept" $base/manifests/$TAG | tr -d '\r' | sed -n 's/^[Dd]ocker-[Cc]ontent-[Dd]igest: //p')
printf '{"critical":{"identity":{"docker-reference":"%s/%s"},"image":{"docker-manifest-digest":"%s"},"type":"cosign container image signature"},"optional":null}' $HOST $REPOSITORY $digest > payload
openssl dgst -sha256 -sign key -out signature payload
put() {
    place=$(curl -sf -X POST -D - -o /dev/null $base/blobs/uploads/ | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
    curl -sf -X PUT -H 'Content-Type: application/octet-stream' --data-binary @$1 "$place&digest=sha256:$(sha256sum < $1 | cut -d' ' -f1)"
}
printf '{}' > config
put payload
put config
descriptor() { printf '"mediaType":"%s","digest":"sha256:%s","size":%s' $2 $(sha256sum < $1 | cut -d' ' -f1) $(stat -c %s $1); }
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{%s},"layers":[{%s,"annotations":{"dev.cosignproject.cosign/signature":"%s"}}]}' \
    "$(descriptor config application/vnd.oci.image.config.v1+json)" "$(descriptor payload application/vnd.dev.cosign.simplesigning.v1+json)" "$(base64 -w0 signature)" > manifest
curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary @manifest $base/manifests/$(echo $digest | tr : -).sig
"#;
        let command = command.args(["sh", "-c", script]).dir(self.0.path());
        command.env("HOST", registry.host()).env("REPOSITORY", repository).env("TAG", tag).ok();
    }
}

/// A configuration with a rule for one repository.
pub fn rule(registry: &Registry, repository: &str, policy: &str, key: &str) -> String {
    format!(
        "{}[[images.signature]]\nimages = \"{}\"\npolicy = \"{policy}\"\nkeys = ['''{key}''']\n",
        registry.without_tls(),
        registry.image(repository)
    )
}

/// Starts the cluster anew with another configuration.
fn restart(sandbox: &mut Sandbox, config: &str) {
    sandbox.down();
    std::fs::write(sandbox.state().join("berth.toml"), config).unwrap();
    sandbox.up();
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

each_user! {
    fn an_image_that_must_be_signed_runs_only_signed(who) {
        let (registry, signer) = (Registry::open(), Signer::new());
        let image = registry.push(&images::busybox(), "team/app:1", &[]);
        let other = registry.push(&images::busybox(), "team-evil/app:1", &[]);
        let sandbox = Sandbox::with_config(who, &rule(&registry, "team", "require", &signer.text()));
        let refused = sandbox.srun_in(&image, ["true"]).fails();
        refused.says(&["team/app:1", "requires a signature by key 1", "has no signature", "cosign sign"]);
        sandbox.cmd("sbatch").args(["--container-image", &image, "--wrap", "true"]).fails().says(&["signature"]);
        // By component: this is another place, which no rule is about.
        assert_eq!(sandbox.srun_in(&other, ["echo", "in"]).ok().text(), "in");
        Signer::new().sign(&registry, "team/app", "1");
        sandbox.srun_in(&image, ["true"]).fails().says(&["1 by other keys"]);
        signer.sign(&registry, "team/app", "1");
        assert_eq!(sandbox.srun_in(&image, ["echo", "in"]).ok().text(), "in");
        // What was seen stays seen, and can be looked at.
        let seen = registry.requests("GET", ".sig");
        assert_eq!(sandbox.srun_in(format!("docker://{image}"), ["echo", "in"]).ok().text(), "in");
        assert!(registry.requests("GET", ".sig") <= seen + 1, "the client alone asks again");
        let shown = sandbox.cmd("berth").args(["image", "inspect", &image]).ok().text();
        assert!(shown.contains("\"signed_by\": \"sha256:"), "{shown}");
    }

    fn a_rule_that_came_later_counts_for_what_is_there(who) {
        let (registry, signer) = (Registry::open(), Signer::new());
        let image = registry.push(&images::busybox(), "team/app:1", &[]);
        let mut sandbox = Sandbox::with_config(who, &registry.without_tls());
        sandbox.srun_in(&image, ["true"]).ok();
        sandbox.srun_in(&image, ["--container-name=box", "--container-scope=user", "true"]).ok();
        let held = sandbox.sbatch(&["-H", "-o", "held.out", "--container-image", &image], "#!/bin/sh\necho ran\n");
        restart(&mut sandbox, &rule(&registry, "team", "require", &signer.text()));
        // Submitted before, in the store, in a container that is kept, named by a client that asks for nothing: the node judges.
        sandbox.cmd("scontrol").args(["release", &held.to_string()]).ok();
        sandbox.wait_state(held, "FAILED", 60);
        assert!(!sandbox.work().join("held.out").exists() || !sandbox.read("held.out").contains("ran"));
        let kept = sandbox.srun(["--container-name=box", "--container-scope=user", "echo", "ran"]).fails();
        let kept = kept.says(&["requires a signature by key 1", "has no signature"]);
        assert!(!kept.text().contains("ran"), "{kept}");
        // Signed now, all of it runs.
        signer.sign(&registry, "team/app", "1");
        let kept = sandbox.srun(["--container-name=box", "--container-scope=user", "echo", "ran"]).ok();
        assert_eq!(kept.text(), "ran");
        // And with another key it is unsigned again.
        restart(&mut sandbox, &rule(&registry, "team", "require", &Signer::new().text()));
        let kept = sandbox.srun(["--container-name=box", "--container-scope=user", "echo", "ran"]).fails();
        kept.says(&["by other keys"]);
    }

    fn where_people_are_only_told_it_runs_and_says_so(who) {
        let (registry, signer) = (Registry::open(), Signer::new());
        let image = registry.push(&images::busybox(), "team/app:1", &[]);
        let config = rule(&registry, "team", "warn", &signer.text());
        let sandbox = Sandbox::with_config(who, &config);
        for _ in 0..2 {
            let output = sandbox.srun_in(&image, ["echo", "in"]).ok();
            assert_eq!(output.text(), "in");
            output.says(&["unsigned image", "team/app:1", "has no signature"]);
        }
        let log = std::fs::read_to_string(sandbox.state().join("log/agent.log")).unwrap_or_else(|_| {
            Cmd::new("sh").args(["-c", "cat log/*"]).dir(sandbox.state()).ok().text()
        });
        assert!(log.contains("unsigned image"), "the agent's log says it");
    }

    fn what_is_no_image_of_a_registry_runs_where_the_rule_lets_it(who) {
        let registry = Registry::open();
        let image = registry.push(&images::busybox(), "bb:1", &[]);
        let layout = path(&images::busybox());
        let (directory, _) = layout.rsplit_once('/').unwrap();
        let strict = format!("{}signatures = \"require\"\n", registry.without_tls());
        let mut sandbox = Sandbox::with_config(who, &strict);
        sandbox.srun_in(&image, ["true"]).fails().says(&["no key is known", "images.signature"]);
        sandbox.srun_in(format!("oci:{layout}"), ["true"]).fails().says(&["no image of a registry"]);
        let root = sandbox.work().join("root");
        std::fs::create_dir_all(root.join("usr")).unwrap();
        sandbox.srun_in(root.join("../root"), ["true"]).fails().says(&["it is a directory"]);
        // The node's own filesystem is no image.
        assert_eq!(sandbox.srun(["echo", "host"]).ok().text(), "host");
        let open = format!("{strict}[[images.signature]]\nimages = \"{directory}\"\npolicy = \"off\"\n");
        restart(&mut sandbox, &open);
        assert_eq!(sandbox.srun_in(format!("oci:{layout}"), ["echo", "in"]).ok().text(), "in");
        sandbox.srun_in(&image, ["true"]).fails().says(&["no key is known"]);
    }

    fn keys_are_judged_where_they_are_written(who) {
        let signer = Signer::new();
        let sandbox = Sandbox::empty(who);
        let check = |rule: &str| {
            let file = sandbox.write("check.toml", format!("[[images.signature]]\n{rule}\n"));
            sandbox.cmd("berth").args(["config", "check"]).arg(file)
        };
        let key = sandbox.write("team.pub", signer.text());
        check(&format!("images = \"ghcr.io/team\"\nkeys = [\"{}\"]", key.display())).ok();
        let missing = check("images = \"ghcr.io/team\"\nkeys = [\"/nonexistent/team.pub\"]").fails();
        missing.says(&["images.signature", "/nonexistent/team.pub"]);
        let private = sandbox.write("team.key", std::fs::read(signer.0.path().join("key")).unwrap());
        check(&format!("images = \"ghcr.io/team\"\nkeys = [\"{}\"]", private.display())).fails().says(&["private key"]);
        Cmd::new("chmod").arg("666").arg(&key).ok();
        check(&format!("images = \"ghcr.io/team\"\nkeys = [\"{}\"]", key.display())).fails().says(&["others", "chmod"]);
        check("images = \"team/app\"\nkeys = [\"/k\"]").fails().says(&["images.signature[1].images", "docker.io/"]);
        check("images = \"ghcr.io/team\"").fails().says(&["images.signature[1].keys"]);
        check("images = \"ghcr.io/team\"\npolicy = \"sometimes\"").fails().says(&["policy"]);
    }
}
