//! `sbcast`: a file goes to the nodes of a job, with its user's rights and whole or not at all.

use berth_tests::{Hosts, Sandbox, Who, each_user, images};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

/// Bytes that no part of repeats.
fn bytes(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

each_user! {
    fn a_file_is_copied_with_its_bytes_and_mode(who) {
        let sandbox = Sandbox::start(who.clone());
        let data = bytes((5 << 20) + 3);
        let source = sandbox.write("data", &data);
        fs::set_permissions(&source, fs::Permissions::from_mode(0o6751)).unwrap();
        let old = fs::File::options().write(true).open(&source).unwrap();
        old.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(1_234_567_890_000_000_123)).unwrap();
        sandbox.write("program", "#!/bin/sh\necho ran $1\n");
        sandbox.write("empty", "");
        sandbox.cmd("mkdir").arg("sub").ok();
        let script = "#!/bin/sh\n\
            sbcast data copy && sbcast -p data $PWD/kept && sbcast data sub/ && sbcast empty none || echo failed\n\
            sbcast program ran && srun ./ran it\n\
            sbcast program copy && echo replaced\n\
            SBCAST_FORCE=1 sbcast -v program sub/data && cat sub/data\n";
        let job = sandbox.sbatch(&["-o", "out", "-e", "err", "--wait"], script);
        assert_eq!(sandbox.read("out"), "ran it\n#!/bin/sh\necho ran $1\n");
        let (err, node) = (sandbox.read("err"), sandbox.node());
        let copy = sandbox.work().join("copy");
        for line in [
            format!("sbcast: error: {node}: {}: File exists: replace it with --force", copy.display()),
            format!("sbcast: program (22 bytes) to {} on {node}", sandbox.work().join("sub/data").display()),
        ] {
            assert!(err.lines().any(|l| l == line), "{line}\n{err}");
        }
        for name in ["copy", "kept"] {
            let file = sandbox.work().join(name);
            let about = fs::metadata(&file).unwrap();
            assert!(fs::read(&file).unwrap() == data, "{name}");
            assert_eq!((about.mode() & 0o7777, about.uid(), about.gid()), (0o751, who.uid, who.gid), "{name}");
            assert_eq!(about.mtime() == 1_234_567_890 && about.mtime_nsec() == 123, name == "kept");
        }
        assert_eq!(sandbox.read("none"), "");
        // It is a step, as records have it.
        let names: Vec<String> = sandbox.sacct(job, "jobname").into_iter().flatten().collect();
        assert_eq!(names.iter().filter(|name| *name == "sbcast").count(), 7, "{names:?}");
    }

    fn a_program_is_sent_before_it_runs(who) {
        let sandbox = Sandbox::start(who);
        sandbox.write("program", "#!/bin/sh\necho $0 $1\n");
        sandbox.cmd("mkdir").arg("sub").ok();
        let image = images::busybox().display().to_string();
        let mount = format!("{0}:{0}", sandbox.work().display());
        let script = format!(
            "#!/bin/sh\n\
            srun --bcast=copy ./program a && srun --bcast=copy program b\n\
            srun --bcast ./program c && SLURM_BCAST=sub/ srun ./program d\n\
            srun --bcast=/tmp/copy --container-image={image} --container-mounts={mount} ./program e\n\
            srun --bcast ./missing || srun --bcast no-such-program\n\
            srun --bcast=copy --multi-prog program\ntrue\n"
        );
        let job = sandbox.sbatch(&["-o", "out", "-e", "err", "--wait"], &script);
        let at = |name: &str| sandbox.work().join(name).display().to_string();
        let expected = [
            format!("{} a", at("copy")),
            format!("{} b", at("copy")),
            format!("{} c", at(&format!("slurm_bcast_{job}.program"))),
            format!("{} d", at(&format!("sub/slurm_bcast_{job}.program"))),
            "/tmp/copy e".to_string(),
        ];
        let (out, err) = (sandbox.read("out"), sandbox.read("err"));
        assert_eq!(out.lines().collect::<Vec<_>>(), expected, "{err}");
        for part in ["missing: cannot be read: ", "--bcast: there is no program no-such-program in ", "--bcast copies one program"] {
            assert!(err.contains(part), "{part}: {err}");
        }
        // With a job of its own, which ends as the program does; and none for what cannot be copied.
        sandbox.write("fails", "#!/bin/sh\necho $0 $SLURM_STEP_ID; exit 3\n");
        let told = sandbox.srun(["-n2", "--bcast=sub/", "./fails"]).run();
        let line = format!("{} 1", at(&format!("sub/slurm_bcast_{}.fails", job + 1)));
        assert_eq!((told.rc, told.text()), (3, format!("{line}\n{line}")), "{told}");
        let ended = berth_tests::sandbox::wait(20, || (sandbox.job_state(job + 1) == "FAILED").then_some(()));
        assert!(ended.is_some(), "{}", sandbox.job_state(job + 1));
        sandbox.srun(["--bcast=copy", "./missing"]).fails().says(&["missing: cannot be read"]);
        sandbox.srun(["--bcast=no/such", "./program"]).fails().says(&["make the directory on each node first"]);
        let idle = || sandbox.cmd("squeue").arg("-h").ok().text().is_empty().then_some(());
        assert!(berth_tests::sandbox::wait(20, idle).is_some(), "a job is left");
    }

    fn what_cannot_be_copied_is_named(who) {
        let sandbox = Sandbox::start(who);
        sandbox.write("data", "bytes");
        sandbox.cmd("mkfifo").arg("fifo").ok();
        let sbcast = |words: &[&str]| sandbox.cmd("sbcast").args(words);
        sbcast(&["data", "copy"]).fails().says(&["only valid from within slurm job", "--jobid"]);
        sbcast(&["-j9", "data", "copy"]).fails().says(&["there is no job 9"]);
        sbcast(&["data"]).fails().says(&["need two file names, have 1"]);
        let mut shell = sandbox.cmd("salloc").args(["-Q", "sh", "-c", "echo ready; read x"]).stdin_open().spawn();
        shell.wait_for("ready", 60);
        let sbcast = |words: &[&str]| sandbox.cmd("sbcast").arg("-j1").args(words);
        sbcast(&["fifo", "copy"]).fails().says(&["fifo: is no regular file"]);
        sbcast(&["missing", "copy"]).fails().says(&["missing: cannot be read"]);
        sbcast(&["data", "no/such/copy"]).fails().says(&["make the directory on each node first"]);
        sbcast(&["data", "."]).fails().says(&["names a directory"]);
        sbcast(&["-C", "data", "copy"]).fails().says(&["--compress=lz4 is not supported", "files go as they are"]);
        sbcast(&["-F4", "data", "copy"]).fails().says(&["--fanout) is not supported"]);
        sandbox.cmd("sbcast").args(["-j", "1.7", "data", "copy"]).fails().says(&["job 1 has no step 7"]);
        sbcast(&["--compress=none", "data", "copy"]).ok();
        assert_eq!(sandbox.read("copy"), "bytes");
        // What is interrupted leaves nothing.
        sandbox.cmd("truncate").args(["-s", "400G", "large"]).ok();
        let told = sandbox.cmd("timeout").args(["-s", "INT", "2", "sbcast", "-j1", "large", "part"]).run();
        assert_ne!(told.rc, 0, "{told}");
        shell.write(b"\n");
        shell.finish();
        let mut names: Vec<String> =
            fs::read_dir(sandbox.work()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["copy", "data", "fifo", "large"]);
    }

    fn no_destination_is_written_through(who) {
        let sandbox = Sandbox::start(who);
        sandbox.write("data", "new");
        let precious = sandbox.write("precious", "old");
        let at = |name: &str| sandbox.work().join(name);
        symlink(&precious, at("link")).unwrap();
        symlink("/dev/full", at("device")).unwrap();
        sandbox.cmd("mkfifo").arg("fifo").ok();
        let mut shell = sandbox.cmd("salloc").args(["-Q", "sh", "-c", "echo ready; read x"]).stdin_open().spawn();
        shell.wait_for("ready", 60);
        let sbcast = |words: &[&str]| sandbox.cmd("sbcast").arg("-j1").args(words).limit(30);
        sbcast(&["data", "link"]).fails().says(&["file exists"]);
        sbcast(&["-f", "data", "fifo"]).fails().says(&["neither a file nor a link"]);
        sbcast(&["-f", "data", "/dev/null"]).fails().says(&["/dev/null: it is neither a file nor a link"]);
        sbcast(&["-f", "data", "link"]).ok();
        sbcast(&["-f", "data", "device"]).ok();
        shell.write(b"\n");
        shell.finish();
        assert_eq!((sandbox.read("precious"), sandbox.read("link"), sandbox.read("device")), ("old".into(), "new".into(), "new".into()));
        assert!(fs::symlink_metadata(at("link")).unwrap().is_file());
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    }

    fn files_reach_containers(who) {
        let sandbox = Sandbox::start(who);
        sandbox.write("data", "bytes");
        let image = format!("--container-image={}", images::busybox().display());
        let mount = format!("--container-mounts={0}:{0}", sandbox.work().display());
        let script = "#!/bin/sh\n\
            sbcast data /tmp/copy && srun cat /tmp/copy\n\
            sbcast data /lost && echo lost\n\
            sbcast data mounted\n";
        sandbox.sbatch(&["-o", "out", "-e", "err", "--wait", &image, &mount, "--container-workdir", sandbox.work().to_str().unwrap()], script);
        let (out, err) = (sandbox.read("out"), sandbox.read("err"));
        assert!(out == "bytes" && err.contains("/lost: it is in the container's own filesystem"), "{out}{err}");
        assert_eq!(sandbox.read("mounted"), "bytes");
        // Into the container of a step that runs.
        let waits = "echo ready; while [ ! -e /copied ]; do sleep 0.1; done; cat /copied";
        let mut step = sandbox.srun([&*image, "--container-remap-root", "sh", "-c", waits]).spawn();
        step.wait_for("ready", 60);
        sandbox.cmd("sbcast").args(["-j", "2.0", "data", "/copied"]).ok();
        assert_eq!(step.finish().text(), "ready\nbytes");
        assert!(!std::path::Path::new("/copied").exists(), "it went to the node");
    }
}

#[test]
fn a_copy_has_its_users_rights_and_no_others_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let user = Who::user();
    let place = tempfile::Builder::new().prefix("bt-").tempdir_in("/tmp").unwrap();
    let at = |name: &str| place.path().join(name);
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (name, mode) in [("closed", 0o700), ("shown", 0o755), ("sticky", 0o1777)] {
        fs::create_dir(at(name)).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(at("sticky/roots"), "old").unwrap();
    fs::write(at("source"), "new").unwrap();
    fs::set_permissions(at("source"), fs::Permissions::from_mode(0o644)).unwrap();
    let mine = |cmd: &str| sandbox.cmd_as(&user, cmd).dir("/");
    let mut shell = mine("salloc").args(["-Q", "sh", "-c", "echo ready; read x"]).stdin_open().spawn();
    shell.wait_for("ready", 60);
    mine("ln").arg("-s").args([at("closed"), at("sticky/in")]).ok();
    let source = at("source");
    let copy = |name: &str| mine("sbcast").args(["-f", "-j1"]).arg(&source).arg(at(name)).run();
    for (name, why) in [
        ("closed/copy", "permission denied"),
        ("shown/copy", "permission denied"),
        ("sticky/in/copy", "permission denied"),
        ("sticky/roots", "operation not permitted"),
    ] {
        let told = copy(name);
        assert_eq!(told.rc, 1, "{name}: {told}");
        told.says(&[why]);
    }
    assert_eq!(copy("sticky/copy").rc, 0);
    let made = fs::metadata(at("sticky/copy")).unwrap();
    assert_eq!((made.uid(), made.gid()), (user.uid, user.gid));
    assert_eq!(fs::read_to_string(at("sticky/roots")).unwrap(), "old");
    for name in ["closed", "shown"] {
        assert_eq!(fs::read_dir(at(name)).unwrap().count(), 0, "{name}");
    }
    assert_eq!(fs::read_dir(at("sticky")).unwrap().count(), 3);
    // Somebody else's job takes no files, and somebody else's files are not read.
    sandbox
        .cmd_as(&Who::stranger(), "sbcast")
        .dir("/")
        .arg("-j1")
        .arg(&source)
        .arg("/tmp/bt-not")
        .fails()
        .says(&["denied"]);
    fs::set_permissions(&source, fs::Permissions::from_mode(0o600)).unwrap();
    copy("sticky/other").says(&["cannot be read: permission denied"]);
    shell.write(b"\n");
    shell.finish();
}

#[test]
fn a_file_is_on_all_nodes_of_a_job_as_root() {
    let hosts = Hosts::cluster(3, "");
    let work = hosts.work();
    fs::write(work.join("data"), bytes(9 << 20)).unwrap();
    let sum = hosts.cmd("n1", "sha256sum").arg("data").ok().text();
    let sum = sum.split_whitespace().next().unwrap();
    // These hosts are one machine, and each has its own /tmp in containers alone.
    let image = format!("--container-image={}", images::busybox().display());
    let mounts = format!("--container-mounts={0}:{0}", work.display());
    let script = "#!/bin/sh\n\
        sbcast data /tmp/copy && srun sha256sum /tmp/copy\n\
        srun -N1 -n1 -w n2 touch /tmp/there\n\
        sbcast data /tmp/there; echo rc $?\n\
        srun -l wc -c /tmp/there\n";
    fs::write(work.join("job.sh"), script).unwrap();
    let options =
        ["-N3", "-o", "out", "--wait", &image, &mounts, "--container-workdir", work.to_str().unwrap()];
    hosts.cmd("n1", "sbatch").args(options).arg("job.sh").limit(90).ok();
    let out = fs::read_to_string(work.join("out")).unwrap();
    assert_eq!(out.lines().filter(|l| l.starts_with(sum)).count(), 3, "{out}");
    for line in
        ["sbcast: error: n2: /tmp/there: File exists: replace it with --force", "rc 1", "1: 0 /tmp/there"]
    {
        assert!(out.lines().any(|l| l == line), "{line}: {out}");
    }
    for task in [0, 2] {
        assert!(out.contains(&format!("{task}: {} /tmp/there", 9 << 20)), "{out}");
    }
    // Into the containers of a step on two of them.
    let waits = "echo ready; while [ ! -e /copied ]; do sleep 0.1; done; sha256sum /copied";
    let step = ["-w", "n[2-3]", "-N2", "-n2", &image, "--container-remap-root", "sh", "-c", waits];
    let mut step = hosts.cmd("n1", "srun").arg("-l").args(step).limit(90).spawn();
    step.wait_for("0: ready", 60);
    step.wait_for("1: ready", 60);
    hosts.cmd("n1", "sbcast").args(["-j", "2.0", "data", "/copied"]).limit(60).ok();
    let told = step.finish().text();
    assert_eq!(told.lines().filter(|l| l.contains(sum)).count(), 2, "{told}");
}
