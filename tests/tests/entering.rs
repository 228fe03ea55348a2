//! `berth exec`: into containers of this machine, and into jobs and steps of the cluster.

use berth_tests::sandbox::wait;
use berth_tests::{Cmd, Sandbox, Who, each_user, images};

/// Debugs, from inside, the first process of the job that runs this command.
const TRACE: &str = r#"
cd ${TMPDIR:-/tmp}; pid=$(pgrep -x -f "sleep $N" | head -n 1)
timeout 20 gdb -nx -q -batch -p $pid -ex 'info registers' -ex detach > gdb.out 2>&1
grep -q -E '^(rip|pc) ' gdb.out && echo gdb works || cat gdb.out
timeout 2 strace -o strace.out -p $pid 2> strace.err; grep -q attached strace.err && echo strace works || cat strace.err
kill $pid
"#;

/// `berth exec` of an ordinary user.
fn exec(sandbox: &Sandbox, words: &[&str]) -> Cmd {
    sandbox.cmd_as(&Who::user(), "berth").dir("/").arg("exec").args(words)
}

/// A batch job of an ordinary user, which runs and has said so in `/tmp` of its own.
fn job(sandbox: &Sandbox, options: &[&str], script: &str) -> String {
    let line =
        sandbox.cmd_as(&Who::user(), "sbatch").dir("/").args(["--parsable", "-o", "/dev/null"]).args(options);
    let job = line.stdin(format!("#!/bin/sh\n{script}")).ok().text();
    sandbox.wait_state(job.parse().unwrap(), "RUNNING", 60);
    job
}

/// The command on a terminal.
fn on_a_terminal(sandbox: &Sandbox, command: &str) -> Cmd {
    let line = sandbox.cmd_as(&Who::user(), "script").dir("/").args(["-q", "-e", "-c", command, "/dev/null"]);
    line.env("TERM", "vt220").limit(60)
}

each_user! {
    fn a_batch_script_is_entered_where_it_is(who) {
        let sandbox = Sandbox::start(who);
        let image = format!("--container-image={}", images::configured().display());
        let script = "echo made > /made; export OWN=script\n(trap 'echo signalled > /signalled' USR1; while :; do sleep 0.1; done) & echo $! > /pid; wait\n";
        let id = job(&sandbox, &[&image, "--export=ALL,SUBMITTED=yes"], script);
        let task = wait(20, || { let out = exec(&sandbox, &[&id, "cat", "/pid"]).run(); (out.rc == 0).then(|| out.text()) }).unwrap();
        // The very container, with the environment and the directory of what is entered, and the user's id.
        let look = "cat /made; pwd; id -u; echo $FROM_IMAGE $SUBMITTED $OWN-$MINE $SLURM_JOB_ID";
        let said = exec(&sandbox, &[&id, "sh", "-c", look]).env("MINE", "mine").env("SUBMITTED", "no").ok();
        assert_eq!(said.text(), format!("made\n/srv/here\n{}\nyes yes - {id}", Who::user().uid));
        assert_eq!(said.err(), "", "what was said when the job started is not said again");
        // The script's processes are listed and signalled.
        let text = exec(&sandbox, &[&id, "ps", "-o", "pid,args"]).ok().text();
        assert!(text.lines().any(|l| l.trim().starts_with(&format!("{task} "))), "{text}");
        assert!(text.contains("slurm_script"), "{text}");
        exec(&sandbox, &[&id, "kill", "-USR1", &task]).ok();
        assert!(wait(20, || (exec(&sandbox, &[&id, "cat", "/signalled"]).run().text() == "signalled").then_some(())).is_some());
        // docker's options, streams and exit codes.
        let set = "echo $A $FROM_IMAGE $B; pwd; cat; echo told >&2; exit 5";
        let out = exec(&sandbox, &["-i", "-e", "A=b c", "--env", "FROM_IMAGE=no", "-e", "B", "-w", "/etc", &id, "sh", "-c", set])
            .env("B", "callers").stdin("through").run();
        assert_eq!((out.rc, out.text().as_str(), out.err().trim()), (5, "b c no callers\n/etc\nthrough", "told"));
        let batch = format!("{id}.batch");
        assert_eq!(exec(&sandbox, &[&batch]).stdin("echo in a shell of $SLURM_JOB_ID").ok().text(), format!("in a shell of {id}"));
        assert_eq!(exec(&sandbox, &[&id, "sh", "-c", "kill -9 $$"]).run().rc, 137);
        exec(&sandbox, &["-w", "/nowhere", &id, "true"]).fails().says(&["/nowhere", "--workdir"]);
        let out = exec(&sandbox, &[&id, "no-such-program"]).fails();
        assert_eq!(out.rc, 127);
        out.says(&["berth: error: ", "no-such-program"]);
        // A terminal, of the size of the caller's.
        let out = on_a_terminal(&sandbox, &format!("stty rows 33 cols 99; berth exec {id} sh -c 'tty; echo $TERM; stty size; exit 4'")).run();
        assert_eq!(out.rc, 4, "{out}");
        // At the end of its own input script(1) types a NUL, which the terminal may echo anywhere.
        let text = out.text().replace('\r', "").replace("^@", "");
        assert!(text.contains("/dev/pts/") && text.contains("vt220\n33 99"), "{text}");
        let text = exec(&sandbox, &["-t", &id, "tty"]).ok().text();
        assert!(text.starts_with("/dev/pts/"), "{text}");
        assert_eq!(exec(&sandbox, &[&id, "tty"]).run().text(), "not a tty");
        // It ends with the job, whose record has it as a step.
        let mut shell = exec(&sandbox, &[&id, "sh", "-c", "echo on; sleep 600"]).spawn();
        shell.wait_for("on", 30);
        sandbox.cmd_as(&Who::user(), "scancel").dir("/").arg(&id).ok();
        assert_ne!(shell.finish().rc, 0);
        let steps = sandbox.cmd_as(&Who::user(), "sacct").dir("/").args(["-j", &id, "-n", "-P", "-o", "JobName"]).ok().text();
        assert!(steps.lines().any(|l| l == "ps") && steps.lines().any(|l| l == "shell"), "{steps}");
        exec(&sandbox, &[&id, "true"]).fails().says(&[&format!("job {id} is over (CANCELLED)")]);
    }

    fn debuggers_work_on_what_is_entered(who) {
        let sandbox = Sandbox::start(who);
        let image = format!("--container-image={}", images::debian().display());
        let tools = "--container-mounts=/usr:/usr:ro";
        for options in [&[][..], &[&image, tools], &[&image, tools, "--container-remap-root"], &[&image, tools, "--container-unshare=net"]] {
            let options: Vec<&str> = options.iter().map(|o| &**o).collect();
            // On the node's own filesystem an ordinary user's cluster sees the node's processes.
            let number = format!("N=7{}", std::process::id());
            let id = job(&sandbox, &options, &format!("{number}; sleep $N & sleep $N & wait\n"));
            let exec = |words: &[&str]| exec(&sandbox, &[&["-e", &number, &id], words].concat());
            let ready = wait(20, || (exec(&["sh", "-c", "pgrep -x -f \"sleep $N\""]).run().text().lines().count() == 2).then_some(()));
            assert!(ready.is_some(), "{options:?}");
            let text = exec(&["bash", "-c", TRACE]).limit(60).ok().text();
            assert_eq!(text, "gdb works\nstrace works", "{options:?}");
            let left = exec(&["sh", "-c", "pgrep -x -f \"sleep $N\""]).ok().text();
            assert_eq!(left.lines().count(), 1, "{options:?}: the signal did not arrive");
            if options.contains(&"--container-remap-root") {
                assert_eq!(exec(&["id", "-u"]).ok().text(), "0");
            }
            if options.contains(&"--container-unshare=net") {
                let look = "[ $(readlink /proc/self/ns/net) = $(readlink /proc/$(pgrep -n -x -f \"sleep $N\")/ns/net) ] && echo same";
                assert_eq!(exec(&["sh", "-c", look]).ok().text(), "same");
            }
            sandbox.cmd_as(&Who::user(), "scancel").dir("/").arg(&id).ok();
        }
    }

    fn a_step_is_entered_from_a_batch_script_and_by_name(who) {
        let sandbox = Sandbox::start(who.clone());
        let image = images::busybox();
        // On the node's own filesystem, into containers of its own steps; one is kept under a name.
        let script = format!(
            "#!/bin/sh\nset -e\n\
             srun --overlap -n1 --container-image={image} sh -c 'echo plain > /what; touch /tmp/one; sleep 600' &\n\
             while [ ! -e $TMPDIR/one ]; do sleep 0.1; done\n\
             srun --overlap -n1 --container-image={image} --container-name=box sh -c 'echo named > /what; touch /tmp/two; sleep 600' &\n\
             while [ ! -e $TMPDIR/two ]; do sleep 0.1; done\n\
             berth exec $SLURM_JOB_ID.0 cat /what\n\
             berth exec $SLURM_JOB_ID.1 sh -c 'cat /what; echo more > /more'\n\
             srun --overlap -n1 --container-name=box:exec cat /more\n\
             berth exec $SLURM_JOB_ID sh -c 'ls -d /var/lib/dpkg; ls /what' 2>/dev/null || echo on the node\n\
             berth exec $SLURM_JOB_ID.9 true 2>err || true\n\
             echo finished\n",
            image = image.display()
        );
        sandbox.sbatch(&["-n2", "--output=out", "--error=log", "--wait"], &script);
        assert_eq!(sandbox.read("out"), "plain\nnamed\nmore\n/var/lib/dpkg\non the node\nfinished\n", "{}", sandbox.read("log"));
        assert!(sandbox.read("err").contains("has no step 9; of its steps these run: batch, 0, 1"), "{}", sandbox.read("err"));
        // Of an allocation the only step is meant, and none is named where there are several.
        let inside = "berth exec $SLURM_JOB_ID true; \
            srun --overlap -n1 sh -c 'touch one; exec sleep 600' & one=$!; srun --overlap -n1 sh -c 'touch two; exec sleep 600' & two=$!; \
            while [ ! -e one ] || [ ! -e two ]; do sleep 0.1; done; berth exec $SLURM_JOB_ID true; kill $one $two; wait";
        let said = sandbox.cmd("salloc").args(["-n2", "bash", "-c", inside]).limit(60).run().err();
        assert!(said.contains("no step of job") && said.contains("srun --jobid="), "{said}");
        assert!(said.contains("has several steps: name one: 2.0, 2.1"), "{said}");
    }

    fn what_cannot_be_entered_is_told(who) {
        let sandbox = Sandbox::start(who.clone());
        let fails = |words: &[&str], said: &[&str]| { exec(&sandbox, words).fails().says(said); };
        fails(&["99", "true"], &["there is no job 99", "squeue"]);
        fails(&["nobody", "true"], &["no container 'nobody'", "berth run --name nobody", "squeue"]);
        fails(&["--job", "nobody", "true"], &["'nobody' is no job", "squeue"]);
        let held = sandbox.cmd_as(&Who::user(), "sbatch").dir("/").args(["--parsable", "-H", "-o", "/dev/null", "--wrap", "true"]).ok().text();
        fails(&[&held, "true"], &["does not run yet", "JobHeldUser"]);
        let array = job(&sandbox, &["--array=3-4", "-c1"], "sleep 600\n");
        fails(&[&array, "true"], &["is an array", &format!("{array}_1")]);
        let task = format!("{array}_3");
        assert_eq!(exec(&sandbox, &[&task, "sh", "-c", "echo $SLURM_ARRAY_TASK_ID"]).ok().text(), "3");
        fails(&[&format!("{array}_9"), "true"], &["there is no job"]);
        fails(&["--node", "elsewhere", &task, "true"], &["is not on node elsewhere"]);
        for (words, said) in [
            (["-u", "root"], ["--user", "--container-remap-root"]),
            (["--user", "0"], ["--user", "--container-remap-root"]),
            (["-d", "-i"], ["--detach", "sbatch"]),
            (["--privileged", "-i"], ["--privileged", "leave it out"]),
            (["-w", "there"], ["--workdir", "absolute"]),
        ] {
            fails(&[&words[..], &[task.as_str(), "true"]].concat(), &said);
        }
        sandbox.cmd_as(&Who::user(), "scancel").dir("/").args([&array, &held]).ok();
        // A container of this machine whose name is a job's number.
        let image = images::busybox().display().to_string();
        let user_state = tempfile::Builder::new().prefix("bt-exec-").tempdir_in("/tmp").unwrap();
        berth_tests::machine::give(user_state.path(), &Who::user());
        let own = |words: &[&str]| {
            let line = sandbox.cmd_as(&Who::user(), "berth").dir("/").args(words);
            if who.uid == Who::user().uid { line } else { line.env("XDG_STATE_HOME", user_state.path()) }
        };
        let single = job(&sandbox, &["--job-name=single"], "sleep 600\n");
        let mut running = own(&["run", "--name", &single, &image, "sh", "-c", "echo up; echo mine > /mine; cat"]).stdin_open().spawn();
        running.wait_for("up", 60);
        own(&["exec", &single, "true"]).fails().says(&["a container of this machine and a job of the cluster", "--container", "--job"]);
        assert_eq!(own(&["exec", "--container", &single, "sh", "-c", "cat /mine; echo $SLURM_JOB_ID."]).ok().text(), "mine\n.");
        assert_eq!(own(&["exec", "--job", &single, "sh", "-c", "echo $SLURM_JOB_ID."]).ok().text(), format!("{single}."));
        own(&["exec", "--node", "x", "--container", &single, "true"]).fails().says(&["--node", "leave it out"]);
        running.close();
        running.finish();
        sandbox.cmd_as(&Who::user(), "scancel").dir("/").arg(&single).ok();
    }

    fn a_container_of_this_machine_is_entered_with_a_terminal_of_its_own(who) {
        let sandbox = Sandbox::empty(who);
        let image = images::busybox().display().to_string();
        let run = |words: &[&str]| sandbox.cmd("berth").args(words);
        let mut running = run(&["run", "--name", "web", &image, "sh", "-c", "echo up; touch /in; cat"]).stdin_open().spawn();
        running.wait_for("up", 60);
        assert_eq!(run(&["exec", "web", "sh", "-c", "ls /in; cat"]).stdin("through").ok().text(), "/in\nthrough");
        assert_eq!(run(&["exec", "web"]).stdin("exit 7").run().rc, 7);
        run(&["exec", "web", "no-such"]).fails().says(&["no-such"]);
        // The terminal is the command's: a shell has job control on it, and it has the caller's size.
        let shell = "stty rows 31 cols 77; berth exec web sh -c 'tty; stty size; set -m; sleep 0 & wait; echo jobs work; exit 6'";
        let path = format!("{}:/usr/bin:/bin", berth_tests::machine::programs().display());
        let out = sandbox.cmd("script").args(["-q", "-e", "-c", shell, "/dev/null"]).env("PATH", path).limit(60).run();
        let text = out.text().replace('\r', "");
        assert_eq!(out.rc, 6, "{out}");
        assert!(text.contains("/dev/pts/") && text.contains("31 77") && text.contains("jobs work"), "{text}");
        assert!(!text.contains("can't access tty"), "{text}");
        assert!(run(&["exec", "-t", "web", "tty"]).ok().text().starts_with("/dev/pts/"));
        running.close();
        running.finish();
        run(&["exec", "web", "true"]).fails().says(&["no container 'web'"]);
    }
}

/// Whose jobs can be entered: one's own; root enters all, as their user.
#[test]
fn a_job_is_entered_by_its_owner_and_by_root_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let (ann, other) = (Who::user(), Who::stranger());
    let image = format!("--container-image={}", images::busybox().display());
    let id = job(&sandbox, &[&image], "echo secret > /made; sleep 600\n");
    let by = |who: &Who, words: &[&str]| sandbox.cmd_as(who, "berth").dir("/").arg("exec").args(words);
    by(&other, &[&id, "cat", "/made"]).fails().says(&["permission denied", &ann.name]);
    by(&other, &[&format!("{id}.batch"), "cat", "/made"]).fails().says(&["permission denied"]);
    // A step of a job of its own does not help: of another job nothing is entered.
    let own = sandbox.cmd_as(&other, "srun").dir("/").args(["berth", "exec", &id, "cat", "/made"]);
    own.fails().says(&["permission denied"]);
    let text = by(&Who::root(), &[&id, "sh", "-c", "id -u; cat /made"]).ok().text();
    assert_eq!(text, format!("{}\nsecret", ann.uid));
    sandbox.cmd_as(&ann, "scancel").dir("/").arg(&id).ok();
}
