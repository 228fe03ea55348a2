//! Containers that are kept under a name: what is found again, by whom, and who is kept out.

use berth_tests::sandbox::wait;
use berth_tests::{Cmd, Sandbox, Who, attacks, each_user, images};
use std::path::Path;

fn image(path: &Path) -> String {
    format!("--container-image={}", path.display())
}

each_user! {
    fn a_named_container_is_made_found_again_and_gone_with_its_job(who) {
        let sandbox = Sandbox::start(who);
        let image = image(&images::busybox());
        let script = "#!/bin/sh\n\
            srun --container-name=data sh -c 'echo one > /kept; busybox chmod 700 /kept; busybox ln /kept /linked' || exit 1\n\
            srun --container-name=data sh -c 'cat /kept; stat -c %h /linked; busybox rm /linked; echo two >> /kept' || exit 2\n\
            srun --container-name=data --container-remap-root sh -c 'id -u; cat /kept; ls /linked 2>/dev/null' && exit 3\n\
            srun --container-name=other ls /kept && exit 4\n\
            srun --container-name=data --container-readonly sh -c 'cat /kept; touch /x 2>/dev/null || echo read-only' || exit 5\n\
            echo finished\n";
        let job = sandbox.sbatch(&[&image, "--output=out", "--error=err", "--wait"], script);
        let out = sandbox.read("out");
        assert_eq!(out, "one\n2\n0\none\ntwo\none\ntwo\nread-only\nfinished\n", "{}", sandbox.read("err"));
        let text = sandbox.cmd("berth").args(["container", "ls"]).ok().text();
        assert_eq!(text.lines().count(), 1, "job {job} left: {text}");
    }

    fn the_flags_of_a_name_and_what_runs_is_joined(who) {
        let sandbox = Sandbox::start(who);
        let image = image(&images::busybox());
        let script = "#!/bin/sh\n\
            say() { echo \"$@\"; }\n\
            srun -n1 --overlap --container-name=box:exec true 2>/dev/null || say exec needs one that runs\n\
            srun -n1 --overlap --container-name=box:create sh -c 'mkdir -p /mnt/own; echo here > /mnt/own/file; echo up > /tmp/up; \
                 while [ ! -e /tmp/end ]; do sleep 0.1; done' &\n\
            while [ ! -e /tmp/up ]; do sleep 0.1; done\n\
            srun -n1 --overlap --container-name=box:exec sh -c 'cat /mnt/own/file; echo more > /mnt/own/more; id -u' || exit 1\n\
            srun -n1 --overlap --container-name=box cat /mnt/own/more || exit 2\n\
            srun -n1 --overlap --container-name=box:create true 2>err1 && exit 3\n\
            srun -n1 --overlap --container-name=box:no_exec true 2>err2 && exit 4\n\
            srun -n1 --overlap --container-name=box --container-mounts=/etc:/mnt/x true 2>err3 && exit 5\n\
            srun -n1 --overlap --container-name=box --container-unshare=net true 2>err4 && exit 6\n\
            touch /tmp/end; wait\n\
            srun -n1 --container-name=box:no_exec cat /mnt/own/more || exit 7\n\
            srun -n1 --container-name=box:create true 2>err5 && exit 8\n\
            say finished\n";
        let mounts = format!("--container-mounts={}", sandbox.work().display());
        let chdir = format!("--container-workdir={}", sandbox.work().display());
        sandbox.sbatch(&[&image, &mounts, &chdir, "-n2", "--output=out", "--error=err", "--wait"], script);
        let uid = sandbox.who().uid;
        let expected = format!("exec needs one that runs\nhere\n{uid}\nmore\nmore\nfinished\n");
        let said = |name: &str| std::fs::read_to_string(sandbox.work().join(name)).unwrap_or_default();
        assert_eq!(sandbox.read("out"), expected, "{} {}", said("err"), said("err1"));
        for (name, words) in [
            ("err1", "\"create\" flag was passed to --container-name but the container 'box' already exists"),
            ("err2", "the container 'box' runs, and \"no_exec\" flag"),
            ("err3", "--container-mounts cannot be fulfilled by the container 'box'"),
            ("err4", "--container-unshare cannot be fulfilled by the container 'box'"),
            ("err5", "already exists"),
        ] {
            assert!(said(name).contains(words), "{name}: {}", said(name));
        }
    }

    fn a_flag_of_a_script_is_not_one_of_its_steps(who) {
        let sandbox = Sandbox::start(who);
        let image = image(&images::busybox());
        let script = "#!/bin/sh\n\
            echo made > /note\n\
            srun --overlap cat /note || exit 1\n\
            srun --overlap --container-env=HOME cat /note || exit 2\n\
            srun --overlap --container-name=box:create true && exit 3\n\
            echo finished\n";
        for flag in ["create", "no_exec"] {
            let name = format!("--container-name=box:{flag}");
            sandbox.sbatch(&[&image, &name, "--output=out", "--error=err", "--wait"], script);
            assert_eq!(sandbox.read("out"), "made\nmade\nfinished\n", "{flag}: {}", sandbox.read("err"));
            assert!(sandbox.read("err").contains("already exists"), "{}", sandbox.read("err"));
            // An allocation makes no container: the flag is for the step that makes it.
            sandbox.cmd("salloc").args([image.as_str(), name.as_str(), "true"]).fails().says(&["salloc makes no container", &name]);
        }
        let inside = "srun --container-name=box:create sh -c 'echo made > /note' && srun --container-name=box cat /note";
        let told = sandbox.cmd("salloc").args([image.as_str(), "sh", "-c", inside]).ok();
        assert_eq!(told.text(), "made");
    }

    fn a_users_container_outlives_its_job_and_serves_one_job_at_a_time(who) {
        let sandbox = Sandbox::start(who);
        let busybox = images::busybox();
        let scope = "--container-scope=user";
        let refused = sandbox.srun([scope, "--container-name=lasting", "true"]).fails()
            .says(&["a container with name \"lasting\" does not exist", "--container-image"]);
        assert_eq!(refused.err().lines().count(), 1, "the node answered: {refused}");
        sandbox.srun_in(&busybox, [scope, "--container-name=lasting", "sh", "-c", "echo first > /note"]).ok();
        let text = sandbox.srun([scope, "--container-name=lasting", "cat", "/note"]).ok().text();
        assert_eq!(text, "first");
        let listed = || sandbox.cmd("berth").args(["container", "ls"]).ok().text();
        assert!(listed().contains("lasting") && listed().contains("idle"), "{}", listed());
        sandbox.srun_in(images::debian(), [scope, "--container-name=lasting", "true"]).fails()
            .says(&["'lasting' is there and was made of", "leave --container-image out"]);
        let script = "#!/bin/sh\necho on > on\nsleep 60\n";
        let mounts = format!("--container-mounts={}", sandbox.work().display());
        let chdir = format!("--container-workdir={}", sandbox.work().display());
        let job = sandbox.sbatch(&[scope, "--container-name=lasting", &mounts, &chdir, "--output=out"], script);
        sandbox.wait_file("on", "on", 30);
        assert!(listed().contains(&format!("running in job {job}")), "{}", listed());
        sandbox.srun([scope, "--container-name=lasting", "true"]).fails()
            .says(&[&format!("'lasting' is in use by job {job}"), "two jobs cannot write to one"]);
        sandbox.cmd("berth").args(["container", "rm", "lasting"]).fails().says(&["in use", "scancel"]);
        sandbox.cmd("scancel").arg(job.to_string()).ok();
        assert!(wait(20, || listed().contains("idle").then_some(())).is_some(), "{}", listed());
        sandbox.cmd("berth").args(["container", "prune", "--older-than=1"]).ok();
        assert!(listed().contains("lasting"), "prune takes only what is old");
        sandbox.cmd("berth").args(["container", "rm", "lasting"]).ok();
        sandbox.cmd("berth").args(["container", "rm", "lasting"]).fails().says(&["no container 'lasting'"]);
        sandbox.srun([scope, "--container-name=lasting", "true"]).fails();
        sandbox.srun_in(&busybox, [scope, "--container-name=old", "true"]).ok();
        assert_eq!(sandbox.cmd("berth").args(["container", "prune", "--older-than=0"]).ok().text(), "removed old");
        // One that could not be started is none.
        sandbox.srun_in(&busybox, [scope, "--container-name=never", "--container-workdir=/nowhere", "true"]).fails();
        assert_eq!(listed().lines().count(), 1, "{}", listed());
    }

    fn namespaces_of_its_own(who) {
        let sandbox = Sandbox::start(who);
        let busybox = images::busybox();
        let look = "for ns in net ipc uts pid; do busybox readlink /proc/self/ns/$ns; done; busybox ip -o link | busybox grep -c . ; busybox ip -o addr show lo | busybox grep -c 127.0.0.1; \
                    (echo x > /dev/shm/mark) && ls /dev/shm";
        // Steps of one job: the numbers of namespaces of one that is over are given again.
        let steps = "srun --container-image=\"$IMAGE\" sh -c \"$LOOK\"; echo --; \
                     srun --container-image=\"$IMAGE\" --container-unshare=net,ipc,uts sh -c \"$LOOK\"";
        let told = sandbox.cmd("salloc").args(["sh", "-c", steps]).env("IMAGE", &busybox).env("LOOK", look).ok().text();
        let (shared, own) = told.split_once("--\n").unwrap();
        let lines = |text: &str| text.lines().map(str::to_string).collect::<Vec<_>>();
        let (shared, own) = (lines(shared), lines(own));
        let node = |ns: &str| std::fs::read_link(format!("/proc/self/ns/{ns}")).unwrap().display().to_string();
        assert_eq!(shared[0], node("net"));
        assert_eq!(shared[2], node("uts"));
        for n in 0..3 {
            assert_ne!(own[n], shared[n]);
        }
        assert_eq!(&own[4..6], ["1", "1"], "only the loopback device, and it is up: {own:?}");
        sandbox.srun_in(&busybox, ["--container-unshare=pid", "true"]).fails().says(&["unknown namespace 'pid'"]);
        sandbox.srun(["--container-unshare=net", "true"]).fails().says(&["--container-unshare", "--container-image"]);
    }
}

/// Another user sees nothing of a container, and neither path nor name leads into it.
#[test]
fn a_named_container_is_its_users_alone_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let (ann, other) = (Who::user(), Who::stranger());
    let busybox = images::busybox();
    let scope = "--container-scope=user";
    let as_who = |who: &Who, words: &[&str]| sandbox.cmd_as(who, words[0]).args(&words[1..]);
    let make = image(&busybox);
    as_who(
        &ann,
        &[
            "srun",
            &make,
            scope,
            "--container-name=secret",
            "sh",
            "-c",
            "echo mine > /note; busybox chmod 644 /note",
        ],
    )
    .ok();
    // By name: the other's containers are the other's.
    as_who(&other, &["srun", scope, "--container-name=secret", "cat", "/note"])
        .fails()
        .says(&["does not exist"]);
    as_who(&other, &["berth", "container", "rm", "secret"]).fails().says(&["no container 'secret'"]);
    as_who(&other, &["berth", "container", "rm", "--user", &ann.name, "secret"]).fails().says(&["only root"]);
    as_who(&other, &["berth", "container", "ls", "--all"]).fails().says(&["only root"]);
    assert_eq!(as_who(&other, &["berth", "container", "ls"]).ok().text().lines().count(), 1);
    // By records of the jobs that used it.
    for words in [
        ["sacct", "--json", "-j", "1"],
        ["scontrol", "--json", "show", "job"],
        ["squeue", "--json", "-t", "all"],
    ] {
        let told = |who| {
            let told: serde_json::Value = serde_json::from_str(&as_who(who, &words).ok().text()).unwrap();
            // What the other typed itself is its own.
            told["jobs"].as_array().unwrap().iter().find(|job| job["job_id"] == 1).unwrap().to_string()
        };
        assert!(!told(&other).contains("secret"), "{words:?}: {}", told(&other));
        assert!(words[0] != "sacct" || told(&ann).contains("secret"), "{}", told(&ann));
    }
    // By path: neither what was written, nor what is known of it, nor whether there is one.
    let state = sandbox.state();
    let written = state.join("kept").join(ann.uid.to_string());
    let known = state.join("private/kept").join(ann.uid.to_string());
    for path in
        [written.join("secret/upper/note"), written.join("secret"), known.join("secret/container.json")]
    {
        assert!(path.exists(), "{} is not where the test looks", path.display());
        as_who(&other, &["cat", &path.display().to_string()]).fails().says(&["Permission denied"]);
        as_who(&other, &["ls", "-d", &path.display().to_string()]).fails().says(&["Permission denied"]);
    }
    // Its own user may not change what the node will mount.
    let record = known.join("secret/container.json");
    as_who(&ann, &["sh", "-c", &format!("echo '{{}}' > {}", record.display())]).fails();
    // A directory that its user replaced by a link to somebody else's is not followed.
    let (real, link) = (written.join("secret"), written.join("moved"));
    let swap = format!("mv {} {} && ln -s /root {}", real.display(), link.display(), real.display());
    as_who(&ann, &["sh", "-c", &swap]).ok();
    as_who(&ann, &["srun", scope, "--container-name=secret", "ls", "/"]).fails().says(&["writable layer"]);
    let before = std::fs::read_dir("/root").unwrap().count();
    as_who(&ann, &["berth", "container", "rm", "secret"]).ok();
    assert_eq!(std::fs::read_dir("/root").unwrap().count(), before, "what a link leads to is not removed");
    assert!(!real.exists() && link.exists());
    assert!(as_who(&Who::root(), &["berth", "container", "ls", "--all"]).ok().text().lines().count() == 1);
}

/// With the same uid from outside: namespaces that root owns are not entered, and the supervisor's descriptors are closed.
#[test]
fn nobody_enters_a_named_container_from_outside_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let ann = Who::user();
    let busybox = image(&images::busybox());
    let script = "#!/bin/sh\necho on > on\nsleep 6071\n";
    let path = sandbox.write("job.sh", script);
    let work = sandbox.work().display().to_string();
    berth_tests::machine::give(&sandbox.work(), &ann);
    let mounts = format!("--container-mounts={work}");
    let job = sandbox
        .cmd_as(&ann, "sbatch")
        .args([
            "--parsable",
            &busybox,
            "--container-name=shut",
            &mounts,
            "--container-workdir",
            &work,
            "--chdir",
            &work,
            "--output=out",
        ])
        .arg(path)
        .ok()
        .text();
    sandbox.wait_file("on", "on", 30);
    let member = sandbox.state().join(format!("jobs/{job}/kept/shut/members/{job}.batch.json"));
    let member: serde_json::Value = serde_json::from_slice(&std::fs::read(&member).unwrap()).unwrap();
    let supervisor = member["namespaces"]["pid"].as_i64().unwrap();
    assert!(!member["namespaces"]["open"].as_array().unwrap().is_empty());
    let task = wait(20, || {
        let found = Cmd::new("pgrep").args(["-u", &ann.uid.to_string(), "-x", "-f", "sleep 6071"]).run();
        found.text().parse().ok()
    });
    for pid in [task.expect("the task runs"), i32::try_from(supervisor).unwrap()] {
        assert_eq!(attacks::break_in(&ann, pid), Vec::<String>::new(), "{pid}");
    }
    sandbox.cmd("scancel").arg(&job).ok();
}
