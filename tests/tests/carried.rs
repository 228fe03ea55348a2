//! Logins that travel with jobs: used by the node, seen by nobody, gone with the job.

use berth_tests::registry::LOGIN;
use berth_tests::sandbox::wait;
use berth_tests::{Cmd, Registry, Sandbox, each_user, images, machine};
use std::path::{Path, PathBuf};

/// A login file as a CI job has it, with this password, and what is in it.
fn login(sandbox: &Sandbox, registry: &Registry, password: &str) -> (PathBuf, String) {
    let directory = sandbox.work().join("docker");
    let _ = std::fs::create_dir(&directory);
    let secret = Cmd::new("base64").arg("-w0").stdin(format!("{}:{password}", LOGIN.0)).ok().text();
    let file = directory.join("config.json");
    let entry = format!("{{\"auths\": {{\"{}\": {{\"auth\": \"{secret}\"}}}}}}", registry.host());
    std::fs::write(&file, entry).unwrap();
    machine::give(&directory, sandbox.who());
    machine::give(&file, sandbox.who());
    (directory, secret)
}

/// Files below the directory that hold one of the words.
fn holding(directory: &Path, words: &[&str]) -> String {
    // Sockets and pipes are not read, and nobody sees what is looked for.
    let grep = Cmd::new("grep").args(["-r", "-l", "-a", "-F", "-s", "-D", "skip", "-f", "-"]);
    grep.arg(directory).stdin(words.join("\n")).run().text()
}

/// Processes that show one of the words in their arguments or their environment.
fn showing(words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        for part in ["cmdline", "environ"] {
            let text = std::fs::read(entry.path().join(part)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            if words.iter().any(|word| text.contains(word)) {
                found.push(format!("{}: {text}", entry.path().join(part).display()));
            }
        }
    }
    found
}

each_user! {
    fn a_job_whose_login_file_is_gone_still_has_its_image(who) {
        let registry = Registry::with_login();
        let image = registry.push(&images::layers(), "team/private:1", &[]);
        // Other tests show the usual one.
        let password = format!("of-this-test-{}", registry.host());
        registry.take_only(&password);
        let mut sandbox = Sandbox::with_config(who, &registry.without_tls());
        let (directory, secret) = login(&sandbox, &registry, &password);
        let words = [secret.as_str(), password.as_str()];
        let container = format!("--container-image={image}");
        let script = sandbox.write("job.sh", "#!/bin/sh\ncat /data/kept\nenv\nsrun cat /data/kept\n");
        let submit = sandbox.cmd("sbatch").args(["--parsable", "--hold", "--array=1-2", "--mem=64M", "-c1", "--output=out.%a"]);
        let job = submit.arg(&container).arg(&script).env("DOCKER_CONFIG", &directory).ok().text();
        std::fs::remove_dir_all(&directory).unwrap();
        // While it waits, and over a restart.
        sandbox.down();
        sandbox.up();
        let state = sandbox.state();
        assert_eq!(holding(&state, &words), "", "the login is in the cluster's files");
        for command in [["scontrol", "show", "job"].as_slice(), &["squeue", "--json", "-j"], &["sacct", "--json", "-j"]] {
            let told = sandbox.cmd(command[0]).args(&command[1..]).arg(&job).ok();
            assert!(!words.iter().any(|word| format!("{told}").contains(word)), "{told}");
        }
        // While it is fetched, nobody sees it.
        registry.freeze();
        sandbox.cmd("scontrol").args(["release", &job]).ok();
        let fetching = || sandbox.cmd("squeue").args(["-h", "-o", "%r"]).ok().text().contains("ImagePull").then_some(());
        wait(30, fetching).expect("nothing is fetched");
        assert_eq!(showing(&words), Vec::<String>::new());
        assert_eq!(holding(&state, &words), "", "while the image is fetched");
        registry.thaw();
        for task in [1, 2] {
            let out = format!("out.{task}");
            sandbox.wait_file(&out, "kept\n", 90);
            let text = wait(30, || Some(sandbox.read(&out)).filter(|t| t.matches("kept\n").count() == 2));
            let text = text.unwrap_or_else(|| panic!("{}", sandbox.read(&out)));
            assert!(!words.iter().any(|word| text.contains(word)), "{text}");
        }
        assert_eq!(holding(&state, &words), "", "after the end");
        // Without a login it is not to be had, so that it was this one.
        sandbox.srun_in(&image, ["true"]).fails().says(&["login"]);
    }

    fn a_login_that_is_kept_back_goes_nowhere(who) {
        let registry = Registry::with_login();
        let image = registry.push(&images::busybox(), "team/private:1", &[]);
        let password = format!("kept-back-{}", registry.host());
        registry.take_only(&password);
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        let (directory, _) = login(&sandbox, &registry, &password);
        let container = format!("--container-image={image}");
        let script = sandbox.write("job.sh", "#!/bin/sh\necho ran\n");
        let submit = |words: &[&str]| {
            let sbatch = sandbox.cmd("sbatch").args(["--parsable", "--hold", "--mem=64M", "-c1", "--output=out"]).args(words);
            sbatch.arg(&container).arg(&script).env("DOCKER_CONFIG", &directory).ok().text().trim().parse::<u64>().unwrap()
        };
        // Where the login file is, the job has its image.
        let here = submit(&["--no-container-login"]);
        sandbox.cmd("scontrol").args(["release", &here.to_string()]).ok();
        sandbox.wait_file("out", "ran", 60);
        let (kept, gone) = (submit(&["--no-container-login"]), submit(&[]));
        // What was shown once would do.
        let empty = || {
            sandbox.cmd("berth").args(["image", "prune", "--all", "--force"]).ok();
            (sandbox.cmd("berth").args(["image", "ls", "--json"]).ok().text().trim() == "[]").then_some(())
        };
        assert!(wait(30, empty).is_some(), "the image stays");
        std::fs::remove_dir_all(&directory).unwrap();
        sandbox.cmd("scontrol").args(["release", &kept.to_string()]).ok();
        sandbox.wait_state(kept, "FAILED", 60);
        sandbox.cmd("scontrol").args(["release", &gone.to_string()]).ok();
        sandbox.wait_state(gone, "COMPLETED", 60);
    }

    fn a_login_whose_user_the_image_names_goes_with_the_job(who) {
        let registry = Registry::with_login();
        registry.push(&images::busybox(), "team/private:1", &[]);
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        let (directory, _) = login(&sandbox, &registry, LOGIN.1);
        let container = format!("--container-image={}@{}#team/private:1", LOGIN.0, registry.host());
        let script = sandbox.write("job.sh", "#!/bin/sh\necho ran\n");
        let sbatch = sandbox.cmd("sbatch").args(["--parsable", "--hold", "--mem=64M", "-c1", "--output=out"]);
        let job = sbatch.arg(&container).arg(&script).env("DOCKER_CONFIG", &directory).ok().text();
        std::fs::remove_dir_all(&directory).unwrap();
        sandbox.cmd("scontrol").args(["release", &job]).ok();
        sandbox.wait_file("out", "ran", 60);
    }

    fn a_login_that_is_not_taken_any_more_gives_way_to_the_one_on_the_node(who) {
        let registry = Registry::with_login();
        let image = registry.push(&images::busybox(), "team/private:1", &[]);
        let sandbox = Sandbox::with_config(who, &registry.without_tls());
        let (directory, _) = login(&sandbox, &registry, LOGIN.1);
        let container = format!("--container-image={image}");
        let script = sandbox.write("job.sh", "#!/bin/sh\necho ran\n");
        let submit = |out: &str| {
            let sbatch = sandbox.cmd("sbatch").args(["--parsable", "--hold", "--mem=64M", "-c1"]).arg(format!("--output={out}"));
            sbatch.arg(&container).arg(&script).env("DOCKER_CONFIG", &directory).ok().text()
        };
        let (first, second) = (submit("first"), submit("second"));
        registry.take_only("another-password");
        // Neither the one that came with it nor the one on the node.
        sandbox.cmd("scontrol").args(["release", &first]).ok();
        sandbox.wait_state(first.parse().unwrap(), "FAILED", 60);
        login(&sandbox, &registry, "another-password");
        sandbox.cmd("scontrol").args(["release", &second]).ok();
        sandbox.wait_file("second", "ran", 60);
    }
}
