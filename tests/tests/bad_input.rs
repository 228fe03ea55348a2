//! Wrong input: the message names the thing and the next step, the exit status is not 0, and nothing is half made.

use berth_tests::{Registry, Sandbox, Who, each_user, images, layout, machine, registry, sandbox::wait};
use serde_json::json;

/// Nothing waits, nothing runs, and no image came to be.
fn nothing_happened(sandbox: &Sandbox) {
    let queue = wait(20, || sandbox.cmd("squeue").arg("-h").ok().text().is_empty().then_some(()));
    assert!(queue.is_some(), "{}", sandbox.cmd("squeue").ok());
}

each_user! {
    fn images_that_cannot_be_had(who) {
        let sandbox = Sandbox::start(who);
        let registry = Registry::with_login();
        registry.push(&images::busybox(), "private:1", &[]);
        let closed = format!("127.0.0.1:{}/x:1", registry::closed_port());
        let private = registry.image("private:1");
        let pull = |image: &str| sandbox.cmd("berth").args(["image", "pull", "--insecure", image]).fails();
        pull(&closed).says(&["127.0.0.1", "refused"]);
        pull(&private).says(&["private", "login"]);
        pull("127.0.0.1:1:2:3/what??").says(&["what"]);
        sandbox.srun_in(&closed, ["true"]).fails().says(&["127.0.0.1"]);
        sandbox.cmd("sbatch").args([&format!("--container-image={private}"), "--wrap", "true"]).fails().says(&["private"]);
        sandbox.srun_in("/nonexistent.tar", ["true"]).fails().says(&["/nonexistent.tar"]);
        sandbox.srun_in("", ["true"]).fails().says(&["container-image"]);
        assert_eq!(sandbox.cmd("sacct").args(["-n", "-X"]).ok().text(), "", "nothing was submitted");
        assert!(!sandbox.cmd("berth").args(["image", "ls"]).ok().text().contains("private"));
        nothing_happened(&sandbox);
    }

    fn an_unknown_tag_and_a_corrupt_blob(who) {
        let sandbox = Sandbox::start(who);
        let registry = Registry::open();
        let image = registry.push(&images::busybox(), "bb:1", &[]);
        let pull = |image: &str| sandbox.cmd("berth").args(["image", "pull", "--insecure", image]);
        pull(&registry.image("bb:nope")).fails().says(&["bb", "nope", "404"]);
        pull(&registry.image("nothing:1")).fails().says(&["nothing"]);
        let largest = registry.blobs().remove(0);
        let good = std::fs::read(&largest).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        std::fs::write(&largest, &bad).unwrap();
        pull(&image).fails().says(&["sha256:"]);
        assert!(!sandbox.cmd("berth").args(["image", "ls"]).ok().text().contains("bb"), "a corrupt image is listed");
        std::fs::write(&largest, &good[..good.len() - 10]).unwrap();
        pull(&image).fails();
        std::fs::write(&largest, &good).unwrap();
        pull(&image).ok();
        assert!(sandbox.cmd("berth").args(["image", "ls"]).ok().text().contains("bb"));
    }

    fn requests_that_can_never_be_met(who) {
        let sandbox = Sandbox::start(who);
        let never = "Requested node configuration is not available";
        sandbox.srun(["-c", "100000", "true"]).fails().says(&[never]);
        sandbox.srun(["--mem=900T", "true"]).fails().says(&[never]);
        sandbox.srun(["-N", "9", "true"]).fails().says(&[never]);
        sandbox.srun(["-p", "nosuch", "true"]).fails().says(&["nosuch", "partition"]);
        sandbox.srun(["-w", "nosuch", "true"]).fails().says(&["nosuch"]);
        sandbox.cmd("sbatch").args(["--gres=gpu:99", "--wrap", "true"]).fails().says(&["gpu"]);
        sandbox.cmd("sbatch").args(["--array=0-5000", "--wrap", "true"]).fails().says(&["array"]);
        nothing_happened(&sandbox);
    }

    fn options_that_are_no_options(who) {
        let sandbox = Sandbox::start(who);
        for program in ["srun", "sbatch", "salloc"] {
            let output = sandbox.cmd(program).args(["--bogus-option", "x"]).fails();
            assert_eq!(output.rc, 255, "{output}");
            output.says(&[program, "bogus-option"]);
        }
        sandbox.srun(["--time=soon", "true"]).fails().says(&["soon", "time"]);
        sandbox.srun(["--mem=many", "true"]).fails().says(&["many", "mem"]);
        sandbox.srun(["-n", "-3", "true"]).fails().says(&["-3"]);
        sandbox.srun(["-n", "0", "true"]).fails();
        sandbox.cmd("sbatch").args(["--array=5-", "--wrap", ":"]).fails().says(&["5-"]);
        sandbox.cmd("squeue").args(["-j", "abc"]).fails().says(&["abc"]);
        sandbox.cmd("squeue").args(["-t", "nostate"]).fails().says(&["nostate"]);
        sandbox.cmd("scancel").fails();
        sandbox.cmd("scancel").arg("99999").fails().says(&["99999"]);
        sandbox.cmd("scontrol").args(["show", "job", "99999"]).fails().says(&["Invalid job id"]);
        sandbox.cmd("scontrol").args(["update", "NodeName=nosuch", "State=DRAIN", "Reason=x"]).fails().says(&["nosuch"]);
        sandbox.cmd("scontrol").args(["frob"]).fails().says(&["frob"]);
        sandbox.cmd("berth").args(["frob"]).fails().says(&["frob"]);
        sandbox.cmd("srun").fails().says(&["command"]);
        sandbox.srun_in(images::busybox(), ["--container-mounts=/nonexistent-source:/mnt", "true"]).fails().says(&["/nonexistent-source"]);
        sandbox.srun_in(images::busybox(), ["--container-mounts=a:b:c:d:e", "true"]).fails().says(&["container-mounts"]);
        nothing_happened(&sandbox);
    }

    fn commands_that_cannot_be_run(who) {
        let sandbox = Sandbox::start(who);
        let image = images::busybox();
        let output = sandbox.srun_in(&image, ["no-such-command"]).fails();
        assert_eq!(output.rc, 2, "{output}");
        output.says(&["no-such-command", "no such program in PATH"]);
        sandbox.srun(["/no/such/command"]).fails().says(&["/no/such/command", "No such file"]);
        sandbox.srun_in(&image, ["/etc/passwd"]).fails().says(&["/etc/passwd", "not executable", "chmod +x"]);
        sandbox.srun(["/etc"]).fails().says(&["/etc"]);
        let text = sandbox.write("plain", "not a program\n");
        std::fs::set_permissions(&text, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        sandbox.srun([&text]).fails().says(&["plain"]);
        // In PATH, directories of the name and files that may not be run are looked past; a program around the task is sought alike.
        let before = sandbox.work().join("before");
        std::fs::create_dir(&before).unwrap();
        for name in ["true", "only-a-directory"] {
            std::fs::create_dir(before.join(name)).unwrap();
        }
        sandbox.write("true", "exit 9\n");
        sandbox.write("only-a-file", "exit 9\n");
        let path = format!("{}:{}:/usr/bin:/bin", before.display(), sandbox.work().display());
        let seek = |words: &[&str]| sandbox.srun(words).env("PATH", &path);
        seek(&["--task-prolog=true", "true"]).ok();
        let told = seek(&["only-a-directory"]).fails().says(&["command not found: only-a-directory"]);
        assert_eq!(told.rc, 2, "{told}");
        seek(&["only-a-file"]).fails().says(&["only-a-file", "not executable", "chmod +x"]);
        nothing_happened(&sandbox);
    }

    fn scripts_that_cannot_be_batch_scripts(who) {
        let sandbox = Sandbox::start(who);
        let submit = |name: &str, content: &[u8]| {
            let path = sandbox.write(name, content);
            sandbox.cmd("sbatch").arg(path).fails()
        };
        submit("plain", b"echo hello\n").says(&["batch script", "#!"]);
        submit("empty", b"").says(&["empty"]);
        submit("dos", b"#!/bin/sh\r\necho hello\r\n").says(&["DOS", "sed -i"]);
        submit("directive", b"#!/bin/sh\n#SBATCH --bogus-option\n").says(&["bogus-option", "line 2"]);
        submit("value", b"#!/bin/sh\n#SBATCH --time=soon\n").says(&["soon"]);
        sandbox.cmd("sbatch").arg("/no/such/script").fails().says(&["/no/such/script"]);
        sandbox.cmd("sbatch").arg("/").fails().says(&["directory"]);
        assert_eq!(sandbox.cmd("sacct").args(["-n", "-X"]).ok().text(), "", "nothing was submitted");
    }

    fn interpreters_that_are_missing(who) {
        let sandbox = Sandbox::start(who);
        let script = sandbox.write("lost", "#!/no/such/shell\necho never\n");
        sandbox.srun([&script]).fails().says(&["/no/such/shell", "install it"]);
        let job = sandbox.cmd("sbatch").args(["--parsable", "--wait", "--output=out"]).arg(&script).fails();
        sandbox.wait_state(job.text().parse().unwrap(), "FAILED", 20);
        let said = sandbox.read("out");
        assert!(said.contains("the batch script's interpreter /no/such/shell"), "{said}");
    }

    fn directories_that_are_missing_at_submit(who) {
        let sandbox = Sandbox::start(who);
        let submit = |words: &[&str]| sandbox.cmd("sbatch").args(words).args(["--wait", "--wrap", "touch ran"]);
        submit(&["-D", "/nonexistent"]).fails().says(&["--chdir", "there is no directory /nonexistent", "could not open", "make its directory first"]);
        submit(&["-D", "/nonexistent", "-o", "/dev/null"]).fails().says(&["--chdir", "cannot enter the working directory /nonexistent"]);
        // A script in a container begins elsewhere, and its output is there all the same.
        let image = format!("--container-image={}", images::busybox().display());
        submit(&["-D", "/nonexistent", &image]).fails().says(&["--chdir", "there is no directory /nonexistent", "could not open"]);
        let elsewhere = submit(&["-D", "/nonexistent", "-o", "/dev/null", &image]).ok();
        assert_eq!(elsewhere.err(), "");
        submit(&["-e", "/nonexistent/err"]).fails().says(&["--error", "could not open", "/nonexistent/err"]);
        let quiet = submit(&["-o", "out-%j/x"]).fails();
        assert!(!quiet.err().contains("there is no directory"), "a pattern is not known before the job is: {quiet}");
        assert!(!sandbox.work().join("ran").exists());
        let output = submit(&["-o", "out"]).ok();
        assert_eq!(output.err(), "");
    }

    fn what_cannot_start_at_once(who) {
        let sandbox = Sandbox::start(who);
        let node = format!("NodeName={}", sandbox.node());
        sandbox.cmd("scontrol").args(["update", &node, "State=DRAIN", "Reason=a test"]).ok();
        sandbox.srun(["--immediate=1", "touch", "ran"]).fails().says(&["Requested nodes are busy"]);
        // Somebody cancels what still has patience.
        for command in ["srun", "salloc"] {
            let waits = sandbox.cmd(command).args(["--immediate=60", "touch", "ran"]).limit(30).spawn();
            let job = || sandbox.cmd("squeue").args(["-h", "-o", "%i"]).ok().text();
            let id = wait(20, || Some(job()).filter(|id| !id.is_empty())).unwrap();
            sandbox.cmd("scancel").arg(id).ok();
            let told = waits.finish().says(&["has been cancelled"]);
            assert!(told.rc != 0 && !told.err().contains("busy"), "{told}");
        }
        sandbox.cmd("scontrol").args(["update", &node, "State=RESUME"]).ok();
        nothing_happened(&sandbox);
        assert!(!sandbox.work().join("ran").exists());
    }

    fn state_directories_that_cannot_be_used(who) {
        let sandbox = Sandbox::empty(who.clone());
        let up = |state: &std::path::Path| sandbox.cmd("berth").args(["up", "--detach", "--state"]).arg(state).fails();
        let file = sandbox.write("file", "");
        up(&file).says(&["state directory", "file", "not a directory", "--state"]);
        up(&file.join("below")).says(&["state directory", "--state"]);
        up(&sandbox.work().join("x".repeat(120))).says(&["107 bytes", "shorter state directory"]);
        if !who.is_root() {
            up(std::path::Path::new("/proc/1/root/s")).says(&["state directory", "Permission denied", "--state"]);
            up(std::path::Path::new("/usr/s")).says(&["state directory", "Permission denied", "--state"]);
        }
        // The user who unpacks images is another than root, and does not get into what is closed to others.
        let closed = sandbox.work().join("closed");
        std::fs::create_dir(&closed).unwrap();
        let mode = if who.is_root() { 0o700 } else { 0o000 };
        std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        let run = sandbox.cmd("berth").arg("--state").arg(closed.join("s")).arg("run").arg(images::busybox()).arg("true").fails();
        let told = run.says(&["Permission denied", "--state"]);
        if who.is_root() {
            told.says(&["image store", "chmod o+x"]);
        }
        let toml = sandbox.state().join("berth.toml");
        std::fs::write(&toml, "max_array_siz = 1\n").unwrap();
        up(&sandbox.state()).says(&["berth.toml", "max_array_siz"]);
        let left = std::fs::read_dir(sandbox.state()).unwrap().count();
        assert_eq!(left, 1, "something was made beside the wrong configuration");
    }

    fn output_that_cannot_be_written(who) {
        let sandbox = Sandbox::start(who);
        let output = sandbox.cmd("sbatch").args(["--parsable", "-o", "/nonexistent/out", "--wrap", "touch ran"]).run();
        if output.rc == 0 {
            let job: u64 = output.text().parse().unwrap();
            sandbox.wait_state(job, "FAILED", 20);
            let show = sandbox.cmd("scontrol").args(["show", "job", &job.to_string()]).ok().text();
            assert!(show.contains("/nonexistent/out"), "{show}");
        } else {
            output.says(&["/nonexistent/out"]);
        }
        assert!(!sandbox.work().join("ran").exists(), "the script ran without its output");
        sandbox.srun(["-o", "/nonexistent/out", "touch", "ran"]).fails().says(&["/nonexistent/out"]);
        assert!(!sandbox.work().join("ran").exists(), "the step ran without its output");
        nothing_happened(&sandbox);
    }

    fn configurations_that_are_wrong(who) {
        let sandbox = Sandbox::empty(who);
        let check = |content: &str| {
            let path = sandbox.write("berth.toml", content);
            sandbox.cmd("berth").args(["config", "check"]).arg(path)
        };
        check("kill_wait_seconds = 5\n").ok();
        check("kill_wait_second = 5\n").fails().says(&["kill_wait_second"]);
        check("kill_wait_seconds = \"soon\"\n").fails().says(&["kill_wait_seconds"]);
        check("[[partition]]\nname = \"a\"\nmax_time = \"soon\"\n").fails().says(&["soon"]);
        check("not toml").fails();
        check("").ok();
        let check = |words: &[&str]| sandbox.cmd("berth").args(["config", "check"]).args(words);
        check(&["/nonexistent/berth.toml"]).fails().says(&["/nonexistent/berth.toml", "that can be read"]);
        assert!(check(&[]).ok().text().contains("the defaults are in force"));
    }

    fn a_hostile_image_configuration_is_refused(who) {
        let sandbox = Sandbox::start(who);
        let cases = [
            ("env", json!({"Env": ["NO_EQUALS_SIGN", "=x", "A=b"]})),
            ("user", json!({"User": "99999999999999999999:0"})),
            ("workdir", json!({"WorkingDir": "../../../../etc"})),
        ];
        for (name, config) in cases {
            let image = sandbox.work().join(name);
            layout::write(&image, vec![layout::busybox()], config);
            let output = sandbox.srun_in(&image, ["true"]).run();
            assert!(!output.err().contains("panicked"), "{name}: {output}");
        }
        let image = sandbox.work().join("broken");
        layout::write(&image, vec![layout::busybox()], json!({}));
        std::fs::write(image.join("index.json"), "{\"schemaVersion\": 2, \"manifests\": [").unwrap();
        sandbox.srun_in(&image, ["true"]).fails().says(&["broken", "JSON"]);
    }
}

/// It would wait for a controller that answers nobody without a name.
#[test]
fn a_user_without_a_name_starts_no_cluster_as_root() {
    if !machine::is_root() {
        return;
    }
    let sandbox = Sandbox::empty(Who::root());
    let state = sandbox.work().join("unnamed");
    std::fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(3_999_999), None).unwrap();
    let words = ["--reuid=3999999", "--regid=3999999", "--clear-groups", "berth", "--state"];
    let up = sandbox.cmd("setpriv").args(words).arg(&state).args(["up", "--detach"]);
    up.fails().says(&["user id 3999999 has no name", "getent passwd 3999999"]);
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0, "something is half made");
}

#[test]
fn a_directory_in_path_that_the_user_cannot_enter_hides_nothing_and_is_named_as_root() {
    let sandbox = Sandbox::start(berth_tests::Who::root());
    let user = berth_tests::Who::user();
    let open = |mode| -> std::fs::Permissions { std::os::unix::fs::PermissionsExt::from_mode(mode) };
    let closed = sandbox.work().join("closed");
    std::fs::create_dir(&closed).unwrap();
    let hidden = closed.join("hidden");
    std::fs::write(&hidden, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&hidden, open(0o755)).unwrap();
    std::fs::set_permissions(&closed, open(0o700)).unwrap();
    let shown = closed.display();
    for path in [format!("{shown}:/usr/bin:/bin"), format!("/usr/bin:/bin:{shown}")] {
        let srun =
            |command: &str| sandbox.cmd_as(&user, "srun").dir("/").env("PATH", &path).arg(command).limit(60);
        for command in ["no-such-command", "hidden"] {
            let told = srun(command).fails();
            assert_eq!((told.rc, told.err().contains("chmod")), (2, false), "{told}");
            told.says(&[
                &format!("command not found: {command}"),
                &format!("{shown} in PATH cannot be entered"),
            ]);
        }
        srun("true").ok();
    }
    // By its path the file is meant, which may be there.
    let told = sandbox.cmd_as(&user, "srun").dir("/").arg(&hidden).limit(60).fails();
    assert_eq!((told.rc, told.err().contains("chmod")), (13, false), "{told}");
    told.says(&[&format!("cannot reach {}", hidden.display())]);
}
