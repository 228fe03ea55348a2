//! Images that a site's rules refuse: at submit, on the node, and whatever was there before the rule.

use berth_tests::{Registry, Sandbox, Who, each_user, images, machine};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{TryRecvError, channel};

/// Starts the cluster anew with another configuration.
fn restart(sandbox: &mut Sandbox, config: &str) {
    sandbox.down();
    std::fs::write(sandbox.state().join("berth.toml"), config).unwrap();
    sandbox.up();
}

/// A configuration that speaks to the registry and has these lines in `[images]`.
fn rules(registry: &Registry, lines: &str) -> String {
    format!("{}{lines}\n", registry.without_tls())
}

/// Whether the job's record says why it did not run.
fn told(sandbox: &Sandbox, job: u64, words: &[&str]) {
    let shown = sandbox.cmd("scontrol").args(["show", "job", &job.to_string()]).ok().text();
    assert!(words.iter().all(|word| shown.contains(word)), "{words:?}: {shown}");
}

/// A copy of busybox's layout in a directory of the test's.
fn copy(sandbox: &Sandbox, directory: &Path) -> PathBuf {
    std::fs::create_dir_all(directory).unwrap();
    let copied = directory.join("bb");
    berth_tests::Cmd::new("cp").args(["-r", "--"]).arg(images::busybox()).arg(&copied).ok();
    berth_tests::Cmd::new("chmod").args(["-R", "a+rX"]).arg(directory).ok();
    let _ = sandbox;
    copied
}

each_user! {
    fn an_image_from_elsewhere_is_refused_in_every_spelling(who) {
        let registry = Registry::open();
        let (host, layout) = (registry.host(), images::busybox());
        let good = registry.push(&layout, "team/app:1", &[]);
        let evil = registry.push(&layout, "team-evil/app:1", &[]);
        let denied = registry.push(&layout, "team/app/old:1", &[]);
        let index = std::fs::read_to_string(layout.join("index.json")).unwrap();
        let digest = &index[index.find("sha256:").unwrap()..][..7 + 64];
        let lines = format!("allow = [\"{host}/team\"]\ndeny = [\"{host}/team/app/old\"]");
        let sandbox = Sandbox::with_config(who, &rules(&registry, &lines));
        for good in [&good, &format!("docker://{good}"), &format!("{host}#team/app:1"), &format!("{host}/team/app@{digest}")] {
            assert_eq!(sandbox.srun_in(good, ["echo", "in"]).ok().text(), "in", "{good}");
        }
        let root = sandbox.work().join("root");
        std::fs::create_dir_all(root.join("usr")).unwrap();
        for (bad, why) in [
            (evil.clone(), "images.allow names only"),
            (format!("docker://{evil}"), "images.allow names only"),
            (format!("{host}#team-evil/app:1"), "images.allow names only"),
            (format!("alice@{host}#team-evil/app:1"), "images.allow names only"),
            (format!("{host}/team-evil/app@{digest}"), "images.allow names only"),
            (denied.clone(), "images.deny names"),
            (format!("{host}#team/app/old@{digest}"), "images.deny names"),
            (format!("oci:{}", layout.display()), "images.allow names only"),
            (root.display().to_string(), "images.allow names only"),
        ] {
            let refused = sandbox.srun_in(&bad, ["echo", "ran"]).fails();
            refused.says(&["Access/permission denied", "may not be used", why, "berth.toml"]);
            sandbox.cmd("sbatch").args(["--container-image", &bad, "--wrap", "true"]).fails().says(&["Access/permission denied", why]);
            sandbox.cmd("sbatch").args(["--test-only", "--container-image", &bad, "--wrap", "true"]).fails().says(&[why]);
        }
        let capitals = format!("{host}/TEAM/app:1");
        sandbox.srun_in(&capitals, ["true"]).fails().says(&["upper-case"]);
        assert_eq!(sandbox.srun(["echo", "host"]).ok().text(), "host", "host: is no image");
        // Inside a container nobody resolves: the node does, and judges then.
        let script = "#!/bin/sh\n\
            srun --container-image=$GOOD echo good\n\
            srun --container-image=$EVIL echo ran\n\
            srun --container-image=docker://$EVIL --container-name=box echo ran\n\
            srun --container-image=$DIRECTORY echo ran\n";
        let container = format!("--container-image={good}");
        let sbatch = sandbox.cmd("sbatch").args(["--wait", "--parsable", "-n2", "--output=out", &container]);
        sbatch.arg(sandbox.write("job.sh", script)).env("GOOD", &good).env("EVIL", &evil).env("DIRECTORY", &root).run();
        let out = sandbox.read("out");
        assert!(out.contains("good") && !out.contains("ran"), "{out}");
        assert_eq!(out.matches("may not be used on this cluster").count(), 3, "{out}");
    }

    /// What a name alone refuses is asked of nobody, wherever it is named: no registry hears who wanted what, and none is shown a login.
    fn who_is_refused_by_name_is_asked_for_nothing(who) {
        let (open, closed) = (Registry::open(), Registry::with_login());
        let good = open.push(&images::busybox(), "team/app:1", &[]);
        let secret = open.push(&images::busybox(), "team/secret:1", &[]);
        let evil = closed.push(&images::busybox(), "team/app:1", &[]);
        // The refused one is also the mirror of another refused one.
        let config = format!(
            "[images]\ninsecure_registries = [\"{0}\", \"{1}\"]\ndeny = [\"{1}\", \"elsewhere.example\"]\n\
             [[images.mirror]]\nregistry = \"elsewhere.example\"\nurls = [\"http://{1}\"]\n\
             [[images.rule]]\naccounts = [\"physics\"]\ndeny = [\"{0}/team/secret\"]\n",
            open.host(),
            closed.host(),
        );
        let sandbox = Sandbox::with_config(who, &config);
        let berth = |words: &[&str]| sandbox.cmd("berth").args(["image", "pull"]).args(words);
        let stores: [&[&str]; 3] = [&[], &["--node"], &["--cluster"]];
        for bad in [
            evil.clone(),
            format!("docker://{evil}"),
            format!("alice@{}#team/app:1", closed.host()),
            "elsewhere.example/team/app:1".to_owned(),
        ] {
            let container = format!("--container-image={bad}");
            let says = ["Access/permission denied", "may not be used on this cluster", "images.deny names", "berth.toml"];
            sandbox.srun([&container, "true"]).fails().says(&says);
            sandbox.cmd("sbatch").args([&container, "--wrap=true"]).fails().says(&says);
            sandbox.cmd("sbatch").args(["--test-only", &container, "--wrap=true"]).fails().says(&says);
            sandbox.cmd("salloc").args([&container, "true"]).fails().says(&says);
            for store in stores {
                berth(&[store, &[bad.as_str()]].concat()).fails().says(&says[1..]);
            }
        }
        // Inside a container nobody but the node could ask.
        let script = "#!/bin/sh\nsrun --container-image=$EVIL echo ran\n";
        let container = format!("--container-image={good}");
        let sbatch = sandbox.cmd("sbatch").args(["--wait", "-n2", "--output=out", &container]);
        sbatch.arg(sandbox.write("job.sh", script)).env("EVIL", &evil).run();
        let out = sandbox.read("out");
        assert!(out.contains("images.deny names") && !out.contains("ran\n"), "{out}");
        assert_eq!(closed.asked_by("berth/"), 0, "who is refused was asked");
        // Accounts: of the job that is submitted, and of the one that gets a step.
        let asked = || ["GET", "HEAD"].map(|method| open.requests(method, "/team/secret/"));
        let before = asked();
        let container = format!("--container-image={secret}");
        let says = ["images.rule[1].deny names", "account physics"];
        sandbox.srun(["-Aphysics", &container, "true"]).fails().says(&says);
        let step = sandbox.cmd("salloc").args(["-Aphysics", "srun", &container, "true"]).fails().says(&says);
        step.says(&["Unable to create step for job"]);
        assert_eq!(asked(), before, "who is refused to the account was asked for it");
        // Those who may have it ask, and are counted.
        sandbox.srun([&container, "true"]).ok();
        assert_ne!(asked(), before);
        berth(&[&good]).ok();
    }

    fn a_rule_that_came_later_counts_for_what_is_there(who) {
        let registry = Registry::open();
        let image = registry.push(&images::busybox(), "team/app:1", &[]);
        let mut sandbox = Sandbox::with_config(who, &registry.without_tls());
        sandbox.srun_in(&image, ["true"]).ok();
        sandbox.srun_in(&image, ["--container-name=box", "--container-scope=user", "true"]).ok();
        let container = ["--container-image", &image];
        let held = sandbox.sbatch(&["-H", "-o", "held.out", container[0], container[1]], "#!/bin/sh\necho ran\n");
        let again = sandbox.sbatch(&["-o", "again.out", container[0], container[1]], "#!/bin/sh\necho ran\n");
        sandbox.wait_state(again, "COMPLETED", 60);
        let host = registry.host();
        restart(&mut sandbox, &rules(&registry, &format!("deny = [\"{host}/team\"]")));
        sandbox.cmd("scontrol").args(["release", &held.to_string()]).ok();
        sandbox.cmd("scontrol").args(["requeue", &again.to_string()]).ok();
        for (job, output, times) in [(held, "held.out", 0), (again, "again.out", 1)] {
            sandbox.wait_state(job, "FAILED", 60);
            let written = std::fs::read_to_string(sandbox.work().join(output)).unwrap_or_default();
            assert_eq!(written.matches("ran\n").count(), times, "{written}");
            told(&sandbox, job, &["images.deny names"]);
        }
        let kept = sandbox.srun(["--container-name=box", "--container-scope=user", "echo", "ran"]).fails();
        let kept = kept.says(&["images.deny names", "team/app:1"]);
        assert!(!kept.text().contains("ran"), "{kept}");
        sandbox.srun_in(&image, ["true"]).fails().says(&["Access/permission denied", "images.deny names"]);
        // Taken back, all of it runs.
        restart(&mut sandbox, &registry.without_tls());
        let kept = sandbox.srun(["--container-name=box", "--container-scope=user", "echo", "ran"]).ok();
        assert_eq!(kept.text(), "ran");
    }

    fn a_link_makes_no_other_place_of_a_file(who) {
        let sandbox = Sandbox::empty(who);
        let shared = sandbox.work().join("shared");
        let inside = copy(&sandbox, &shared);
        let outside = copy(&sandbox, &sandbox.work().join("shared-of-mine"));
        let lines = format!("[images]\nallow = [\"{}\"]\n", shared.display());
        let path = sandbox.state().join("berth.toml");
        std::fs::write(&path, lines).unwrap();
        let mut sandbox = sandbox;
        sandbox.up();
        for link in ["shared/link", "link"] {
            std::os::unix::fs::symlink(&outside, sandbox.work().join(link)).unwrap();
        }
        let in_there = format!("oci:{}", inside.display());
        assert_eq!(sandbox.srun_in(&in_there, ["echo", "in"]).ok().text(), "in");
        std::os::unix::fs::symlink(&inside, sandbox.work().join("back")).unwrap();
        assert_eq!(sandbox.srun_in("oci:./back", ["echo", "in"]).ok().text(), "in");
        for bad in [
            format!("oci:{}", outside.display()),
            "oci:shared/link".to_owned(),
            "oci:link".to_owned(),
            format!("oci:{}/../shared-of-mine/bb", shared.display()),
            "./shared/link".to_owned(),
        ] {
            sandbox.srun_in(&bad, ["echo", "ran"]).fails().says(&["Access/permission denied", "images.allow names only"]);
        }
        // Judged by its name at submission; by then the name is another file's.
        let job = sandbox.sbatch(&["-H", "-o", "held.out", "--container-image", &in_there], "#!/bin/sh\necho ran\n");
        std::fs::rename(&inside, shared.join("away")).unwrap();
        std::os::unix::fs::symlink(&outside, &inside).unwrap();
        sandbox.cmd("scontrol").args(["release", &job.to_string()]).ok();
        sandbox.wait_state(job, "FAILED", 60);
        told(&sandbox, job, &["shared-of-mine", "images.allow"]);
        assert!(!sandbox.work().join("held.out").exists() || !sandbox.read("held.out").contains("ran"));
    }

    /// The attack: what is looked at is a link to an image that is allowed, and what is opened a directory with another one.
    fn no_exchange_of_a_directory_gets_another_image_past_a_rule(who) {
        let sandbox = Sandbox::empty(who);
        let shared = sandbox.work().join("shared");
        let allowed = copy(&sandbox, &shared);
        let mine = sandbox.work().join("mine");
        let (real, link) = (mine.join("d"), mine.join("l"));
        std::fs::create_dir_all(&real).unwrap();
        // It has what the allowed one has not.
        berth_tests::Cmd::new("cp").args(["-r", "--"]).arg(images::layers()).arg(real.join("bb")).ok();
        berth_tests::Cmd::new("chmod").args(["-R", "a+rX"]).arg(&mine).ok();
        std::os::unix::fs::symlink(&shared, &link).unwrap();
        std::fs::write(
            sandbox.state().join("berth.toml"),
            format!("[images]\nallow = [\"{}\"]\n", shared.display()),
        )
        .unwrap();
        let mut sandbox = sandbox;
        sandbox.up();
        let script = "#!/bin/sh\nfor n in 1 2 3 4 5 6 7 8 9 10 11 12; do\n\
            srun --container-image=oci:$PLACE/bb cat /data/hard1 2>&1\n\
            srun --container-image=oci:$PLACE/bb echo in 2>&1\necho round $n\ndone\n";
        let (running, over) = channel::<()>();
        let (real, link) = (real.as_path(), link.as_path());
        let out = std::thread::scope(|scope| {
            scope.spawn(move || {
                while over.try_recv() == Err(TryRecvError::Empty) {
                    renameat2(AT_FDCWD, real, AT_FDCWD, link, RenameFlags::RENAME_EXCHANGE).unwrap();
                    std::thread::yield_now();
                }
            });
            let container = format!("--container-image=oci:{}", allowed.display());
            let sbatch = sandbox.cmd("sbatch").args(["--wait", "-n2", "--output=out", &container]);
            let ran = sbatch.arg(sandbox.write("job.sh", script)).env("PLACE", real).limit(300).run();
            drop(running);
            assert_eq!(ran.rc, 0, "{ran}");
            sandbox.read("out")
        });
        assert!(!out.contains("one\n"), "{out}");
        assert_eq!(out.matches("round ").count(), 12, "{out}");
        assert!(out.contains("images.allow names only"), "nothing was refused: {out}");
    }

    fn jobs_without_an_image_and_accounts_have_rules_too(who) {
        let registry = Registry::open();
        let image = registry.push(&images::busybox(), "team/app:1", &[]);
        let other = registry.push(&images::busybox(), "other/app:1", &[]);
        let lines = format!(
            "deny = [\"host:\"]\n[[images.rule]]\naccounts = [\"physics\"]\nallow = [\"{}/team\"]",
            registry.host()
        );
        let sandbox = Sandbox::with_config(who, &rules(&registry, &lines));
        sandbox.srun(["echo", "ran"]).fails().says(&["Access/permission denied", "images.deny names host:", "--container-image"]);
        sandbox.srun(["--container-image=host:", "echo", "ran"]).fails().says(&["images.deny names host:"]);
        sandbox.cmd("sbatch").args(["--wrap", "true"]).fails().says(&["images.deny names host:"]);
        let container = format!("--container-image={image}");
        assert_eq!(sandbox.srun(["-Aphysics", &container, "echo", "in"]).ok().text(), "in");
        let refused = sandbox.srun(["-Aphysics", &format!("--container-image={other}"), "echo", "ran"]).fails();
        refused.says(&["images.rule[1].allow names only", "account physics"]);
        assert_eq!(sandbox.srun([&format!("--container-image={other}"), "echo", "in"]).ok().text(), "in");
        // A step leaves no container for the node.
        let script = "#!/bin/sh\nsrun --container-image=host: echo ran\nsrun --container-image=$OTHER echo ran\n";
        let sbatch = sandbox.cmd("sbatch").args(["--wait", "-Aphysics", "-n2", "--output=out", &container]);
        sbatch.arg(sandbox.write("job.sh", script)).env("OTHER", &other).run();
        let out = sandbox.read("out");
        assert!(!out.contains("ran") && out.contains("host:") && out.contains("images.rule[1]"), "{out}");
    }

    fn a_rule_for_all_others_is_not_passed_by_who_names_no_account(who) {
        let registry = Registry::open();
        let (host, layout) = (registry.host(), images::busybox());
        let base = registry.push(&layout, "base/app:1", &[]);
        let team = registry.push(&layout, "team/app:1", &[]);
        let lines = format!(
            "[[images.rule]]\naccounts = [\"physics\"]\nallow = [\"{host}\"]\n\
             [[images.rule]]\notherwise = true\nallow = [\"{host}/base\"]"
        );
        let sandbox = Sandbox::with_config(who, &rules(&registry, &lines));
        let [base, container] = [&base, &team].map(|image| format!("--container-image={image}"));
        let accounts: [&[&str]; 2] = [&[], &["-Achem"]];
        for account in accounts {
            assert_eq!(sandbox.srun([account, &[base.as_str(), "echo", "in"]].concat()).ok().text(), "in");
            let says = ["Access/permission denied", "images.rule[2].allow names only"];
            sandbox.srun([account, &[container.as_str(), "echo", "ran"]].concat()).fails().says(&says);
            sandbox.cmd("sbatch").args(account).args([container.as_str(), "--wrap=true"]).fails().says(&says);
        }
        assert_eq!(sandbox.srun(["-Aphysics", &container, "echo", "in"]).ok().text(), "in");
        // What is fetched for no job is under the lists for all alone.
        sandbox.cmd("berth").args(["image", "pull", &team]).ok();
        sandbox.cmd("berth").args(["image", "pull", "--cluster", &team]).ok();
    }

    fn rules_are_judged_where_they_are_written(who) {
        let sandbox = Sandbox::empty(who);
        let check = |rules: &str| {
            let file = sandbox.write("check.toml", format!("[images]\n{rules}\n"));
            sandbox.cmd("berth").args(["config", "check"]).arg(file)
        };
        check("allow = [\"docker.io/library\", \"/shared/images\", \"containers-storage:\"]\ndeny = [\"host:\"]").ok();
        for (rules, says) in [
            ("allow = []", "the list is empty"),
            ("allow = [\"library/debian\"]", "docker.io/"),
            ("deny = [\"ghcr.io/Team\"]", "upper-case"),
            ("deny = [\"ghcr.io/team:1\"]", "tag"),
            ("allow = [\"docker://ghcr.io/team\"]", "without scheme"),
            ("allow = [\"host:\"]", "host: is no image"),
            ("allow = [\"ghcr.io/team\"]\ndeny = [\"ghcr.io\"]", "allows nothing"),
            ("[[images.rule]]\nallow = [\"ghcr.io\"]", "images.rule[1].accounts"),
            ("[[images.rule]]\naccounts = [\"physics\"]", "it refuses nothing"),
            ("[[images.rule]]\notherwise = true\naccounts = [\"physics\"]\ndeny = [\"ghcr.io\"]", "make it two rules"),
            ("[[account]]\nname = \"physics\"\nusers = []", "the list is empty"),
            ("[[images.rule]]\nusers = [\"ann\"]", "users"),
        ] {
            check(rules).fails().says(&[says]);
        }
        std::os::unix::fs::symlink("/usr", sandbox.work().join("link")).unwrap();
        let link = sandbox.work().join("link/share");
        check(&format!("deny = [\"{}\"]", link.display())).fails().says(&["images.deny", "is /usr/share on this machine"]);
    }
}

/// Users of root's cluster are judged by the node as themselves.
#[test]
fn a_file_that_root_could_not_see_is_judged_as_its_user_as_root() {
    let mut sandbox = Sandbox::empty(Who::root());
    let user = Who::user();
    let home = sandbox.work().join("home");
    let image = copy(&sandbox, &home);
    machine::give(&home, &user);
    berth_tests::Cmd::new("chown").args(["-R", &user.uid.to_string()]).arg(&home).ok();
    berth_tests::Cmd::new("chmod").arg("700").arg(&home).ok();
    std::fs::write(
        sandbox.state().join("berth.toml"),
        format!("[images]\nallow = [\"{}\"]\n", home.display()),
    )
    .unwrap();
    sandbox.up();
    let image = format!("oci:{}", image.display());
    let srun =
        |who: &Who| sandbox.cmd_as(who, "srun").dir("/").args(["--container-image", &image, "id", "-u"]);
    assert_eq!(srun(&user).ok().text(), user.uid.to_string());
    srun(&Who::stranger()).fails();
}
