//! Front doors: what scripts say to docker, apptainer and enroot is done, or refused by name.

use berth_tests::{Cmd, Registry, Sandbox, Who, each_user, images};

/// A sandbox with the doors in its PATH. Without a cluster, unless one is started.
fn doors(who: Who) -> Sandbox {
    let sandbox = Sandbox::empty(who);
    open(&sandbox);
    sandbox
}

fn open(sandbox: &Sandbox) {
    let bin = sandbox.state().with_file_name("bin");
    sandbox.cmd("berth").args(["install-links", "--front-doors"]).arg(bin).ok();
}

fn docker(sandbox: &Sandbox, words: &[&str]) -> Cmd {
    // A directory without files of a GPU's: whether the machine has one is not to matter.
    sandbox.cmd("docker").args(words).env("BERTH_GPU_TREE", sandbox.work())
}

each_user! {
    fn docker_run_as_scripts_call_it(who) {
        let sandbox = doors(who.clone());
        sandbox.write("given", "from outside\n");
        let busybox = images::busybox().display().to_string();
        let work = sandbox.work().display().to_string();
        let own = format!("{}:{}", who.uid, who.gid);
        let run = |words: &[&str]| docker(&sandbox, &[&["run", "--rm"], words].concat());
        // Root inside is oneself outside.
        let volume = format!("{work}:/data");
        run(&["-v", &volume, "-w", "/data", &busybox, "sh", "-c", "id -u; cat given; echo back > made"]).ok();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(sandbox.work().join("made")).unwrap().uid(), who.uid);
        let text = run(&["--init", "--ipc=host", "--net=host", "-u", &own, "-e", "A=b", "-e", "FROM_CALLER", &busybox, "sh", "-c", "id -u; echo $A $FROM_CALLER $NOT_PASSED"])
            .env("FROM_CALLER", "c").env("NOT_PASSED", "d").ok().text();
        assert_eq!(text, format!("{}\nb c", who.uid));
        let text = run(&["--read-only", "-v", &format!("{work}:/data:ro"), &busybox, "sh", "-c", "touch /x /data/x 2>/dev/null || echo read-only"]).ok().text();
        assert_eq!(text, "read-only");
        // Standard input goes in with -i alone.
        assert_eq!(run(&["-i", &busybox, "cat"]).stdin("through").ok().text(), "through");
        assert_eq!(run(&[&busybox, "cat"]).stdin("through").ok().text(), "");
        assert_eq!(run(&[&busybox, "sh", "-c", "exit 7"]).run().rc, 7);
        // The image's own words, and what stands behind the image is the command's.
        let configured = images::configured().display().to_string();
        assert_eq!(run(&[&configured]).ok().text(), "entrypoint: echo default-command\ndefault-command");
        assert_eq!(run(&[&configured, "echo", "--rm", "-v"]).ok().text(), "entrypoint: echo --rm -v\n--rm -v");
        assert_eq!(run(&["--entrypoint", "/bin/echo", &configured, "own"]).ok().text(), "own");
        let text = run(&["--mount", &format!("type=bind,src={work},dst=/m,readonly"), "--tmpfs", "/t:size=1m", "--shm-size=8m", "--hostname=box", &busybox, "sh", "-c", "ls /m | grep given; touch /t/x; df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; hostname"]).ok().text();
        assert_eq!(text, "given\n8192\nbox");
        assert_eq!(run(&["--ulimit", "core=0", &busybox, "sh", "-c", "ulimit -c"]).ok().text(), "0");
    }

    fn what_docker_cannot_mean_here_is_refused_by_name(who) {
        let sandbox = doors(who);
        let busybox = images::busybox().display().to_string();
        let table: &[(&[&str], &[&str])] = &[
            (&["-d"], &["-d", "sbatch"]),
            (&["--privileged"], &["--privileged", "--user 0"]),
            (&["-m", "1g"], &["-m", "srun"]),
            (&["--cpus=2"], &["--cpus", "srun"]),
            (&["--network=none"], &["--network=none", "node's network"]),
            (&["-p", "8080:80"], &["--publish 8080:80", "same number"]),
            (&["--gpus", "all"], &["--gpus", "no GPU", "berth doctor"]),
            (&["-u", "12345"], &["--user 12345", "$(id -u)"]),
            (&["-v", "named:/data"], &["--volume named:/data", "directory"]),
            (&["-v", "/nowhere/at/all:/data"], &["/nowhere/at/all", "does not exist"]),
            (&["--restart=always"], &["--restart", "--requeue"]),
            (&["--platform=linux/s390x"], &["--platform", "linux/"]),
            (&["--runtime=kata"], &["--runtime=kata"]),
            (&["--cap-add", "SYS_ADMIN"], &["--cap-add"]),
            (&["--no-such-option"], &["--no-such-option", "docker run --help"]),
            (&["--name", "a/b"], &["a/b", "name"]),
            (&["--device", "/etc/passwd"], &["/etc/passwd", "no device"]),
        ];
        for (options, words) in table {
            let output = docker(&sandbox, &[&["run"], *options, &[&busybox, "true"]].concat()).fails();
            output.says(words);
        }
        for (command, word) in [("build", "podman build"), ("compose", "jobs"), ("frobnicate", "docker --help")] {
            docker(&sandbox, &[command, "x"]).fails().says(&[command, word]);
        }
        docker(&sandbox, &["ps", "-a"]).fails().says(&["-a", "sacct"]);
        docker(&sandbox, &["run"]).fails().says(&["IMAGE", "docker run --help"]);
    }

    fn docker_looks_after_images_and_containers(who) {
        let registry = Registry::open();
        let image = registry.push(&images::busybox(), "team/box:1", &[]);
        let config = format!("[images]\ninsecure_registries = [\"{}\"]\n", registry.host());
        let sandbox = Sandbox::with_config(who, &config);
        open(&sandbox);
        let text = docker(&sandbox, &["pull", &image]).ok().text();
        assert!(text.contains("Digest: sha256:") && text.contains("Status: Downloaded newer image"), "{text}");
        assert!(docker(&sandbox, &["pull", &image]).ok().text().contains("Image is up to date"));
        let repository = image.trim_end_matches(":1");
        let text = docker(&sandbox, &["images", "--format", "{{.Repository}} {{.Tag}}"]).ok().text();
        assert_eq!(text, format!("{repository} 1"));
        let text = docker(&sandbox, &["images"]).ok().text();
        assert!(text.starts_with("REPOSITORY") && text.contains("IMAGE ID"), "{text}");
        docker(&sandbox, &["images", "--format", "{{.Nothing}}"]).fails().says(&["Nothing", "Repository"]);
        // A container of this machine and a step of a job.
        let mut running = docker(&sandbox, &["run", "-i", "--name", "mine", &image, "sh", "-c", "echo up; cat"]).stdin_open().spawn();
        running.wait_for("up", 30);
        let mut step = sandbox.srun_in(&image, ["sh", "-c", "echo up; cat"]).stdin_open().spawn();
        step.wait_for("up", 30);
        let text = docker(&sandbox, &["ps", "--format", "{{.Names}} {{.Image}}"]).ok().text();
        assert_eq!(text, format!("mine {image}\nstep-1.0 {image}"));
        docker(&sandbox, &["run", "--name", "mine", &image, "true"]).fails().says(&["mine", "already"]);
        // Further commands in it, by name and by number, with the exit code and the streams of their own.
        let text = docker(&sandbox, &["exec", "-i", "-e", "A=b", "-w", "/bin", "mine", "sh", "-c", "echo $A; pwd; cat"]).stdin("through").ok().text();
        assert_eq!(text, "b\n/bin\nthrough");
        let pid = docker(&sandbox, &["ps", "--format", "{{.ID}}"]).ok().text().lines().next().unwrap().to_string();
        assert_eq!(sandbox.cmd("enroot").args(["exec", &pid, "sh", "-c", "exit 5"]).run().rc, 5);
        docker(&sandbox, &["exec", "mine", "touch", "/left-by-one"]).ok();
        docker(&sandbox, &["exec", "mine", "ls", "/left-by-one"]).ok();
        docker(&sandbox, &["exec", "mine", "no-such-program"]).fails().says(&["no-such-program"]);
        docker(&sandbox, &["exec", "nobody", "true"]).fails().says(&["nobody", "docker ps"]);
        docker(&sandbox, &["exec", "-d", "mine", "true"]).fails().says(&["-d"]);
        docker(&sandbox, &["rmi", &image]).fails().says(&["used by a container"]);
        running.close();
        step.close();
        assert_eq!((running.finish().rc, step.finish().rc), (0, 0));
        assert_eq!(docker(&sandbox, &["ps", "-q"]).ok().text(), "");
        docker(&sandbox, &["system", "prune", "-a"]).stdin("n\n").fails().says(&["nothing was removed"]);
        assert_ne!(docker(&sandbox, &["images", "-q"]).ok().text(), "");
        let text = docker(&sandbox, &["system", "prune", "-a", "-f"]).ok().text();
        assert!(text.contains("Total reclaimed space:"), "{text}");
        assert_eq!(docker(&sandbox, &["images", "-q"]).ok().text(), "");
        docker(&sandbox, &["rmi", "nosuch"]).fails().says(&["nosuch"]);
        docker(&sandbox, &["rmi", "-f", "nosuch"]).ok();
    }

    fn apptainer_as_scripts_call_it(who) {
        let sandbox = doors(who.clone());
        let layout = images::configured();
        let image = layout.display().to_string();
        let run = |words: &[&str]| sandbox.cmd("apptainer").args(words);
        let text = run(&["exec", &image, "sh", "-c", "id -u; pwd; echo $HOME $MINE $FROM_IMAGE; touch /x 2>/dev/null || echo read-only"]).env("MINE", "inherited").ok().text();
        let (home, work) = (who.home.display(), sandbox.work());
        assert_eq!(text, format!("{}\n{}\n{home} inherited yes\nread-only", who.uid, work.display()));
        assert_eq!(run(&["run", &image, "echo", "--nv"]).ok().text(), "entrypoint: echo --nv\n--nv");
        assert_eq!(run(&["run", &image]).ok().text(), "entrypoint: echo default-command\ndefault-command");
        let text = run(&["exec", "--cleanenv", "--env", "A=1,B=2", "--writable-tmpfs", "--fakeroot", "-B", "/etc:/mnt/etc:ro", "--pwd", "/mnt", &image, "sh", "-c", "id -u; pwd; echo $A $B $C-$MINE; touch /x && test -r /mnt/etc/passwd && touch /mnt/etc/x 2>/dev/null || echo fine"])
            .env("MINE", "x").env("APPTAINERENV_C", "3").ok().text();
        assert_eq!(text, "0\n/mnt\n1 2 3-\nfine");
        assert_eq!(sandbox.cmd("singularity").args(["shell", &image]).stdin("echo in a shell\n").ok().text(), "in a shell");
        // A pulled image is one file, whatever its name ends with, and every part of Berth takes it.
        let output = run(&["pull", "own.sif", &format!("oci:{image}")]).ok();
        assert!(output.err().contains("OCI archive"), "{output}");
        assert_eq!(run(&["exec", "own.sif", "echo", "from a file"]).ok().text(), "from a file");
        run(&["pull", "own.sif", &format!("oci:{image}")]).fails().says(&["own.sif", "--force"]);
        run(&["pull", "--force", "own.sif", &format!("oci:{image}")]).ok();
        let left: Vec<_> = std::fs::read_dir(&work).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["own.sif"], "nothing half-written is left");
        assert_eq!(run(&["inspect", "-r", "own.sif"]).ok().text(), "/bin/entry echo default-command");
        let json: serde_json::Value = serde_json::from_slice(&run(&["inspect", "--json", "-e", "own.sif"]).ok().stdout).unwrap();
        assert!(json["data"]["attributes"]["environment"].to_string().contains("FROM_IMAGE=yes"), "{json}");
        let output = run(&["exec", "--nv", &image, "true"]).env("BERTH_GPU_TREE", &work).ok();
        assert!(output.err().contains("--nv: this machine has no GPU"), "{output}");
        for (words, said) in [
            (vec!["exec", "--overlay", "x", &image, "true"], ["--overlay", "--bind"]),
            (vec!["exec", "--net", &image, "true"], ["--net", "node's network"]),
            (vec!["exec", "--writable", &image, "true"], ["--writable", "--writable-tmpfs"]),
            (vec!["exec", &image], ["no command", "apptainer run"]),
            (vec!["exec", "no-such.sif", "true"], ["no-such.sif", "No such file"]),
            (vec!["build", "x.sif", "y.def"], ["build", "registry"]),
            (vec!["instance", "start", "x"], ["instance", "sbatch"]),
            (vec!["exec", "instance://x", "true"], ["instance://x", "sbatch"]),
            (vec!["exec", "library://x", "true"], ["library://", "registry"]),
            (vec!["pull", "-U", "docker://x"], ["-U", "digest"]),
        ] {
            run(&words).fails().says(&said);
        }
    }

    fn sif_images_run_as_apptainer_made_them(who) {
        let sandbox = Sandbox::start(who);
        open(&sandbox);
        let make = "mkdir -p tree/bin tree/.singularity.d/env && cp \"$(command -v busybox)\" tree/bin/busybox &&
            for name in sh id echo cat env; do ln -s busybox tree/bin/$name; done &&
            printf 'export PATH=\"/bin\"\\nexport FROM=\"${FROM:-\"image\"}\"\\n' > tree/.singularity.d/env/10-docker2singularity.sh &&
            printf '#!/bin/sh\\necho \"runscript: $*\"\\n' > tree/.singularity.d/runscript && chmod 755 tree/.singularity.d/runscript &&
            mksquashfs tree root.sqsh -quiet -no-progress >/dev/null && siftool new x.sif &&
            siftool add x.sif root.sqsh --datatype 4 --parttype 2 --partfs 1 --partarch $(case $(uname -m) in aarch64) echo 4;; *) echo 2;; esac) --groupid 1";
        sandbox.cmd("sh").args(["-c", make]).ok();
        let said = |words: &[&str]| sandbox.cmd("apptainer").args(words).ok().text();
        assert_eq!(said(&["exec", "x.sif", "sh", "-c", "echo $FROM"]), "image");
        assert_eq!(said(&["run", "x.sif", "a", "b"]), "runscript: a b");
        let path = sandbox.work().join("x.sif").display().to_string();
        let image = format!("--container-image={path}");
        assert_eq!(sandbox.srun([&image, "sh", "-c", "echo in $FROM"]).ok().text(), "in image");
        let inspected = sandbox.cmd("berth").args(["image", "inspect", &format!("sif:{path}")]).ok().text();
        assert!(inspected.contains("\"io.berth.sif.signatures\": \"none\""), "{inspected}");
        sandbox.cmd("srun").args(["--container-image=x.sif", "true"]).fails().says(&["./x.sif"]);
    }

    fn what_docker_save_wrote_runs(who) {
        let sandbox = Sandbox::start(who);
        open(&sandbox);
        let archive = sandbox.work().join("saved.tar").display().to_string();
        let from = format!("oci:{}", images::configured().display());
        let copy = ["--insecure-policy", "copy", "--quiet", &from, &format!("docker-archive:{archive}:team/own:1")];
        sandbox.cmd("skopeo").args(copy).ok();
        for name in [archive.clone(), format!("docker-archive:{archive}:team/own:1")] {
            let image = format!("--container-image={name}");
            assert_eq!(sandbox.srun([&image, "sh", "-c", "echo $FROM_IMAGE"]).ok().text(), "yes");
        }
        assert_eq!(docker(&sandbox, &["run", "--rm", &archive]).ok().text(), "entrypoint: echo default-command\ndefault-command");
    }

    fn enroot_as_scripts_call_it(who) {
        let registry = Registry::open();
        let image = registry.push(&images::configured(), "team/own:1", &[]);
        let config = format!("[images]\ninsecure_registries = [\"{}\"]\n", registry.host());
        let sandbox = Sandbox::with_config(who.clone(), &config);
        open(&sandbox);
        let run = |words: &[&str]| sandbox.cmd("enroot").args(words);
        let uri = format!("docker://{}", image.replacen('/', "#", 1));
        run(&["import", "-o", "own.sqsh", &uri]).ok();
        assert!(std::fs::read(sandbox.work().join("own.sqsh")).unwrap().starts_with(b"hsqs"));
        assert!(run(&["start", "own.sqsh", "sh", "-c", "echo $FROM_IMAGE"]).ok().text().ends_with("yes"));
        run(&["import", "-o", "own.sqsh", &uri]).fails().says(&["own.sqsh", "exists"]);
        assert!(run(&["digest", &uri]).ok().text().starts_with("sha256:"));
        assert_eq!(run(&["create", "own.sqsh"]).ok().text(), "own");
        run(&["create", "own.sqsh"]).fails().says(&["own", "--force"]);
        run(&["create", "-n", "second", "own.sqsh"]).ok();
        assert_eq!(run(&["list"]).ok().text(), "own\nsecond");
        // What is written is kept with --rw, and in this container alone.
        run(&["start", "--rw", "own", "sh", "-c", "echo kept > /written"]).ok();
        assert!(run(&["start", "own", "cat", "/written"]).ok().text().ends_with("kept"));
        run(&["start", "second", "cat", "/written"]).fails();
        let text = run(&["start", "own", "sh", "-c", "touch /x 2>/dev/null || echo read-only"]).ok().text();
        assert!(text.ends_with("read-only"), "{text}");
        assert!(run(&["start", "--root", "-e", "A=b", "-m", "/etc:/mnt/etc", "own", "sh", "-c", "id -u; echo $A; ls -d /mnt/etc/passwd"]).ok().text().ends_with("0\nb\n/mnt/etc/passwd"));
        // Images that kept containers need stay; one container runs once at a time.
        docker(&sandbox, &["system", "prune", "-a", "-f"]).ok();
        std::fs::remove_file(sandbox.work().join("own.sqsh")).unwrap();
        let mut running = run(&["start", "--rw", "own", "sh", "-c", "echo up; cat"]).stdin_open().spawn();
        running.wait_for("up", 30);
        run(&["start", "own", "true"]).fails().says(&["own", "runs already"]);
        run(&["remove", "-f", "own"]).fails().says(&["own", "runs already"]);
        let text = run(&["list", "-f"]).ok().text();
        assert!(text.lines().any(|l| l.contains("own") && l.contains("running")) && text.contains("stopped"), "{text}");
        running.close();
        running.finish();
        run(&["export", "own"]).ok();
        run(&["export", "own"]).fails().says(&["own.sqsh", "--force"]);
        run(&["export", "-f", "-o", "own.sqsh", "own"]).ok();
        assert!(run(&["start", "own.sqsh", "cat", "/written"]).ok().text().ends_with("kept"));
        run(&["export", "nobody"]).fails().says(&["nobody", "enroot list"]);
        run(&["remove", "own"]).stdin("n\n").fails().says(&["own", "-f"]);
        run(&["remove", "-f", "own", "second"]).ok();
        assert_eq!(run(&["list"]).ok().text(), "");
        run(&["start", "own", "true"]).fails().says(&["own", "enroot list"]);
        run(&["start", "--conf", "x", "own"]).fails().says(&["--conf", "--env"]);
        run(&["bundle", "x"]).fails().says(&["bundle", "import"]);
    }

    fn doors_work_inside_a_job_and_give_what_it_was_given(who) {
        let config = "[[node]]\nname = \"ALL\"\n[[node.gres]]\nname = \"gpu\"\nfiles = [\"/dev/fuse\", \"/dev/loop-control\"]\n";
        let sandbox = Sandbox::with_config(who, config);
        open(&sandbox);
        let image = images::busybox().display().to_string();
        let look = "ls /dev/fuse /dev/loop-control 2>/dev/null; echo visible $CUDA_VISIBLE_DEVICES job $SLURM_JOB_ID";
        let script = format!(
            "#!/bin/sh\nset -e\ndocker run --rm --gpus all {image} sh -c '{look}' > docker.out\n\
             singularity exec --nv {image} sh -c '{look}' > nv.out\n\
             docker run --rm {image} sh -c '{look}' > none.out\n\
             docker run --rm --gpus 2 {image} true 2> more.err || echo refused >> more.err\n\
             srun berth run --gpus {image} sh -c '{look}' > step.out\n"
        );
        let job = sandbox.sbatch(&["--wait", "--gres=gpu:1", "-o", "log"], &script);
        assert_eq!(sandbox.job_state(job), "COMPLETED", "{}", sandbox.read("log"));
        let one = format!("/dev/fuse\nvisible 0 job {job}\n");
        for file in ["docker.out", "nv.out", "step.out"] {
            assert_eq!(sandbox.read(file), one, "{file}");
        }
        assert!(!sandbox.read("none.out").contains("/dev/"), "{}", sandbox.read("none.out"));
        let more = sandbox.read("more.err");
        assert!(more.contains("2 asked for, and there are 1") && more.contains("refused"), "{more}");
        let job = sandbox.sbatch(&["--wait", "-o", "log"], &format!("#!/bin/sh\nsingularity exec --nv {image} echo went on\ndocker run --gpus all {image} true || echo refused\n"));
        let log = sandbox.read("log");
        assert!(log.contains("--nv: this job has no GPU") && log.contains("went on") && log.contains("refused"), "job {job}: {log}");
    }
}

/// In a job of the machine's cluster, an ordinary user's containers lie in the user's own store.
#[test]
fn an_ordinary_user_in_a_job_of_the_machines_cluster_as_root() {
    if !berth_tests::machine::is_root() {
        return;
    }
    let sandbox = Sandbox::start(Who::root());
    open(&sandbox);
    let user = Who::user();
    let image = images::busybox().display().to_string();
    let dir = tempfile::Builder::new().prefix("bt-user-").tempdir_in("/tmp").unwrap();
    berth_tests::machine::give(dir.path(), &user);
    let command = format!("docker run --rm {image} id -u; apptainer exec {image} id -u; docker images -q");
    let text = sandbox
        .cmd_as(&user, "srun")
        .args(["sh", "-c", &command])
        .env("XDG_STATE_HOME", dir.path())
        .dir(dir.path())
        .ok()
        .text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines[1], lines.len()), ("0", user.uid.to_string().as_str(), 3), "{text}");
}
