//! The main job: a cluster comes up with one command, runs steps, batch jobs and arrays, and goes without a trace.

use berth_tests::{Sandbox, Who, each_user, images, machine, sandbox::wait};
use std::os::unix::ffi::OsStrExt;

each_user! {
    fn up_status_down(who) {
        let mut sandbox = Sandbox::start(who);
        let status = sandbox.status();
        assert!(status["controller"]["pid"].as_i64().unwrap() > 1, "{status}");
        assert_eq!(status["agents"].as_array().unwrap().len(), 1, "{status}");
        let text = sandbox.cmd("berth").arg("status").ok().text();
        assert!(text.contains(&sandbox.controller().to_string()), "{text}");
        let info = sandbox.cmd("sinfo").ok().text();
        assert!(info.starts_with("PARTITION") && info.contains("idle"), "{info}");
        // A second `up` on a running cluster starts nothing and says so.
        let again = sandbox.cmd("berth").args(["up", "--detach"]).run();
        assert!(format!("{}{}", again.text(), again.err()).contains("already"), "{again}");
        let pid = sandbox.controller();
        assert_eq!(sandbox.down().rc, 0);
        assert!(berth_tests::sandbox::gone(pid), "berth down left the controller running");
        sandbox.cmd("berth").arg("status").fails().says(&["berth up"]);
        sandbox.cmd("squeue").fails().says(&["berth up"]);
        // One that may come back is waited for, aloud; where none ever was nothing is.
        let nowhere = sandbox.work().join("nowhere");
        let begun = std::time::Instant::now();
        let never = sandbox.cmd("srun").arg("true").env("BERTH_STATE", &nowhere).fails().says(&["berth up"]);
        assert!(begun.elapsed().as_secs() < 10 && !never.err().contains("trying again"), "{never}");
        sandbox.cmd("srun").arg("true").fails().says(&["srun: ", "trying again for 10 s", "berth up"]);
    }

    fn a_registry_that_says_nothing_is_not_waited_for_without_a_word(who) {
        let sandbox = Sandbox::start(who);
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let image = format!("--container-image={}/x:1", silent.local_addr().unwrap());
        let asking = sandbox.cmd("srun").args([image.as_str(), "true"]).spawn();
        let said = wait(60, || asking.stderr().contains("no answer yet").then_some(()));
        assert!(said.is_some(), "{}", asking.stderr());
        asking.signal(nix::sys::signal::Signal::SIGKILL);
        asking.finish().says(&["srun: still asking what the image", "/x:1", "no answer yet"]);
    }

    fn three_array_tasks_in_a_container(who) {
        let sandbox = Sandbox::start(who);
        let image = images::debian();
        let script = "#!/bin/bash\n. /etc/os-release\necho $ID $SLURM_ARRAY_TASK_ID of $SLURM_ARRAY_JOB_ID\nexit $SLURM_ARRAY_TASK_ID\n";
        let option = format!("--container-image={}", image.display());
        let job = sandbox.sbatch(&["--array=0-2", "--mem=64M", &option], script);
        for task in 0..3 {
            let name = format!("slurm-{job}_{task}.out");
            sandbox.wait_file(&name, "of", 60);
            assert_eq!(sandbox.read(&name).trim(), format!("debian {task} of {job}"));
        }
        let done = wait(20, || {
            let rows = sandbox.sacct(job, "JobID,State,ExitCode");
            let of = |task: usize| rows.iter().find(|r| r[0] == format!("{job}_{task}")).cloned();
            let all: Vec<_> = (0..3).filter_map(of).filter(|r| r[1] != "RUNNING" && r[1] != "PENDING").collect();
            (all.len() == 3).then_some(all)
        });
        let rows = done.expect("all three tasks end");
        assert_eq!((rows[0][1].as_str(), rows[0][2].as_str()), ("COMPLETED", "0:0"));
        assert_eq!((rows[1][1].as_str(), rows[1][2].as_str()), ("FAILED", "1:0"));
        assert_eq!((rows[2][1].as_str(), rows[2][2].as_str()), ("FAILED", "2:0"));
    }

    fn a_thousand_words_of_a_job_survive_a_restart(who) {
        let mut sandbox = Sandbox::start(who);
        let job = sandbox.sbatch(&["--job-name=remembered"], "#!/bin/sh\nexit 7\n");
        sandbox.wait_state(job, "FAILED", 20);
        assert_eq!(sandbox.down().rc, 0);
        sandbox.up();
        let rows = sandbox.sacct(job, "JobName,State,ExitCode");
        assert_eq!(rows[0], ["remembered", "FAILED", "7:0"]);
        let next = sandbox.sbatch(&[], "#!/bin/sh\n:\n");
        assert!(next > job, "{next} after {job}");
    }

    fn steps_inside_a_batch_script_use_its_allocation(who) {
        let sandbox = Sandbox::start(who);
        let script = "#!/bin/sh\necho batch $SLURM_JOB_ID\nsrun sh -c 'echo step $SLURM_JOB_ID.$SLURM_STEP_ID'\nsrun false\necho srun said $?\n";
        let job = sandbox.sbatch(&["--wait", "--output=out"], script);
        let out = sandbox.read("out");
        assert!(out.contains(&format!("batch {job}\n")) && out.contains(&format!("step {job}.0\n")), "{out}");
        assert!(out.contains("srun said 1\n"), "{out}");
        let rows = sandbox.sacct(job, "JobID,State,ExitCode");
        let row = |id: String| rows.iter().find(|r| r[0] == id).unwrap_or_else(|| panic!("no row {id} in {rows:?}")).clone();
        assert_eq!(row(format!("{job}.batch"))[1], "COMPLETED");
        assert_eq!(row(format!("{job}.0"))[1], "COMPLETED");
        assert_eq!(row(format!("{job}.1"))[1..], ["FAILED", "1:0"]);
        assert_eq!(row(job.to_string())[1], "COMPLETED");
    }

    fn two_clusters_live_side_by_side(who) {
        let first = Sandbox::start(who.clone());
        let second = Sandbox::start(who);
        let a = first.sbatch(&["--wait", "--output=out"], "#!/bin/sh\necho first\n");
        let b = second.sbatch(&["--wait", "--output=out"], "#!/bin/sh\necho second\n");
        assert_eq!((first.read("out").trim(), second.read("out").trim()), ("first", "second"));
        assert_eq!(first.sacct(a, "State")[0], ["COMPLETED"]);
        assert_eq!(second.sacct(b, "State")[0], ["COMPLETED"]);
        drop(first);
        assert_eq!(second.srun(["echo", "still here"]).ok().text(), "still here");
    }

    fn salloc_gives_an_allocation_to_a_command(who) {
        let sandbox = Sandbox::start(who);
        let output = sandbox.cmd("salloc").args(["-c1", "sh", "-c", "srun echo in $SLURM_JOB_ID; exit 5"]).run();
        assert_eq!(output.rc, 5, "{output}");
        assert!(output.err().contains("Granted job allocation"), "{output}");
        assert!(output.err().contains("Relinquishing job allocation"), "{output}");
        assert!(output.text().starts_with("in "), "{output}");
        let left = wait(30, || sandbox.cmd("squeue").arg("-h").ok().text().is_empty().then_some(()));
        assert!(left.is_some(), "the allocation is still in the queue");
    }

    fn salloc_runs_the_shell_of_the_user_where_no_command_is_given(who) {
        let sandbox = Sandbox::start(who);
        sandbox.write("shell.sh", "#!/bin/sh\necho shell $0 $# $(srun -n1 sh -c 'echo $SLURM_JOB_ID') $SLURM_JOB_ID\nexit 4\n");
        let told = sandbox.cmd("salloc").args(["-Q", "-n1"]).env("SHELL", "./shell.sh").run();
        assert_eq!((told.rc, told.text()), (4, "shell ./shell.sh 0 1 1".to_string()), "{told}");
        // Where the environment names none, it is the system's.
        let told = sandbox.cmd("salloc").args(["-Q", "-n1"]).env("SHELL", "").stdin("echo by $0 in $SLURM_JOB_ID").ok();
        assert_eq!(told.text(), "by /bin/sh in 2");
    }

    fn salloc_has_the_login_environment_where_that_is_asked_for(who) {
        let sandbox = Sandbox::start(who.clone());
        let look = ["salloc", "-Q", "-n1", "sh", "-c", "printenv LOGNAME; printenv OF_MINE; printenv SLURM_JOB_ID"];
        let ask = |variable: Option<&str>, option: Option<&str>| {
            let mut cmd = sandbox.cmd("env").args(["-u", "LOGNAME", "OF_MINE=a b"]);
            cmd = cmd.args(variable);
            cmd.args(&look[..2]).args(option).args(&look[2..]).ok().text()
        };
        assert_eq!(ask(None, None), "a b\n1");
        assert_eq!(ask(None, Some("--get-user-env")), format!("{}\na b\n2", who.name));
        assert_eq!(ask(Some("SALLOC_GET_USER_ENV=1"), None), format!("{}\na b\n3", who.name));
    }

    fn salloc_in_a_directory_whose_name_is_no_text_tells_of_it_in_bytes(who) {
        let sandbox = Sandbox::start(who.clone());
        let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
        let dir = sandbox.work().join(name);
        std::fs::create_dir(&dir).unwrap();
        machine::give(&dir, &who);
        let say = "printf '%s ' \"$SLURM_SUBMIT_DIR\"; srun -n1 sh -c 'printf %s \"$SLURM_SUBMIT_DIR\"'";
        let told = sandbox.cmd("salloc").args(["-Q", "-n1", "sh", "-c", say]).dir(&dir).ok();
        let path = dir.as_os_str().as_bytes();
        assert_eq!(told.stdout, [path, b" ", path].concat(), "{told}");
    }

    fn salloc_rings_and_sends_its_command_what_was_asked_for(who) {
        let sandbox = Sandbox::start(who);
        for (options, rings) in [("--bell", true), ("--no-bell", false), ("", false)] {
            let line = format!("salloc -Q {options} echo here");
            let told = sandbox.cmd("script").args(["-qec", &line, "/dev/null"]).ok().text();
            assert!(told.contains("here") && told.contains('\u{7}') == rings, "{options}: {told:?}");
        }
        let quiet = sandbox.cmd("salloc").args(["-Q", "--bell", "echo", "here"]).ok().text();
        assert_eq!(quiet, "here", "there is no terminal");
        // Its command hears of an allocation that is gone by the signal that was asked for, and by no other.
        let waits = "for s in HUP TERM USR1; do trap \"echo $s; exit 6\" $s; done; echo job $SLURM_JOB_ID; while :; do sleep 0.1; done";
        for (options, variable, signal) in [("-KUSR1", "", "USR1"), ("-K", "", "TERM"), ("-Q", "USR1", "USR1"), ("-Q", "", "HUP")] {
            let mut shell = sandbox.cmd("salloc").args([options, "sh", "-c", waits]);
            if !variable.is_empty() {
                shell = shell.env("SALLOC_KILL_CMD", variable);
            }
            let mut shell = shell.spawn();
            shell.wait_for("job ", 30);
            let said = || String::from_utf8_lossy(&shell.stdout()).into_owned();
            let job = wait(30, || Some(said().split_once("job ")?.1.split_once('\n')?.0.to_string())).unwrap();
            sandbox.cmd("scancel").arg(&job).ok();
            let told = shell.finish();
            assert!(told.rc == 6 && told.text().ends_with(signal), "{options} {variable}: {told}");
        }
        sandbox.cmd("salloc").args(["--kill-command=NOPE", "true"]).fails().says(&["a signal"]);
        sandbox.cmd("salloc").args(["--kill-command=40", "true"]).fails().says(&["real-time"]);
    }
}

/// Longer than an allocation lives whose client went away.
#[test]
fn an_allocation_without_a_command_stays_and_has_steps_as_root() {
    let mut sandbox = Sandbox::start(Who::root());
    let user = Who::user();
    let on = |sandbox: &Sandbox, program: &str| sandbox.cmd_as(&user, program).dir("/");
    let told = on(&sandbox, "salloc").args(["--no-shell", "-n1", "-t10", "-J", "kept"]).ok();
    told.says(&["salloc: Granted job allocation 1"]);
    let step = |sandbox: &Sandbox| {
        on(sandbox, "srun").args(["--jobid=1", "sh", "-c", "echo $SLURM_JOB_ID"]).ok().text()
    };
    assert_eq!(step(&sandbox), "1");
    sandbox.kill_9(sandbox.controller());
    sandbox.up();
    std::thread::sleep(std::time::Duration::from_secs(33));
    assert_eq!(sandbox.job_state(1), "RUNNING");
    assert_eq!(step(&sandbox), "1");
    on(&sandbox, "scancel").arg("1").ok();
    sandbox.wait_state(1, "CANCELLED", 20);
    on(&sandbox, "salloc").args(["--no-shell", "true"]).fails().says(&["--no-shell runs no command"]);
    let options = ["--no-shell", "--get-user-env"];
    on(&sandbox, "salloc").args(options).fails().says(&["--get-user-env is for the command of salloc"]);
}

each_user! {
    fn a_step_finds_free_what_the_last_one_had_however_late_its_end_is_told(who) {
        let sandbox = Sandbox::start(who);
        let id = sandbox.sbatch(&["-n1"], "#!/bin/sh\nuntil [ -e over ]; do sleep 0.1; done\n");
        sandbox.wait_state(id, "RUNNING", 30);
        let job = format!("--jobid={id}");
        let srun = |words: &[&str]| sandbox.srun([job.as_str()]).args(words).limit(60);
        let agent = sandbox.agent().to_string();
        let mut first = srun(&["sh", "-c", "echo up; until [ -e go ]; do sleep 0.1; done"]).spawn();
        first.wait_for("up", 30);
        // What the step says goes from its supervisor to its srun; how it ended is told to the controller by the agent.
        sandbox.cmd("kill").args(["-STOP", &agent]).ok();
        sandbox.write("go", "");
        let first = first.finish();
        let mut second = srun(&["echo", "second"]).spawn();
        // Longer than srun waits for an answer before it asks for what it waits.
        std::thread::sleep(std::time::Duration::from_secs(2));
        let waits = second.alive();
        sandbox.cmd("kill").args(["-CONT", &agent]).ok();
        let second = second.finish();
        assert!(first.rc == 0 && second.rc == 0 && waits, "{first}{second}");
        assert_eq!((second.text().as_str(), second.err().as_str()), ("second", ""));
        // For one that runs it is said, and nobody is kept waiting who will not wait.
        let mut third = srun(&["sh", "-c", "echo up; until [ -e further ]; do sleep 0.1; done"]).spawn();
        third.wait_for("up", 30);
        srun(&["--immediate=1", "true"]).fails().says(&["Requested nodes are busy"]);
        let fourth = srun(&["echo", "fourth"]).spawn();
        let says = "step creation temporarily disabled, retrying (Requested nodes are busy)";
        assert!(wait(30, || fourth.stderr().contains(says).then_some(())).is_some(), "it says nothing");
        sandbox.write("further", "");
        let fourth = fourth.finish();
        assert_eq!((third.finish().rc, fourth.rc, fourth.text().as_str()), (0, 0, "fourth"), "{fourth}");
        fourth.says(&["srun: Step created for StepId="]);
        sandbox.write("over", "");
    }
}

/// A job of someone's that sleeps for a minute.
fn sleeper(sandbox: &Sandbox, who: &Who) -> String {
    let line = sandbox.cmd_as(who, "sbatch").dir("/tmp");
    line.args(["--parsable", "-o", "/dev/null", "--wrap", "sleep 60"]).ok().text()
}

#[test]
fn a_users_up_and_down_leave_the_cluster_of_root_as_it_is_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let user = Who::user();
    let job = sleeper(&sandbox, &user);
    sandbox.wait_state(job.parse().unwrap(), "RUNNING", 20);
    let up = sandbox.cmd_as(&user, "berth").dir("/").args(["up", "--detach"]).ok();
    assert!(up.text().contains("is already up") && up.text().contains("(system mode)"), "{up}");
    assert_eq!(up.err(), "", "what root enforces is no user's guess");
    let output = sandbox.cmd_as(&user, "berth").dir("/").arg("down").fails();
    output.says(&["Operation not permitted", "the user who started the cluster", "root"]);
    assert_eq!(sandbox.job_state(job.parse().unwrap()), "RUNNING", "the user's own job ended all the same");
    sandbox.cmd_as(&user, "scancel").dir("/").arg(&job).ok();
    sandbox.wait_state(job.parse().unwrap(), "CANCELLED", 20);
}

#[test]
fn users_share_a_cluster_of_roots_and_cannot_touch_each_other_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let (alice, bob) = (Who::user(), Who::stranger());
    let name = sandbox.cmd_as(&alice, "srun").dir("/").args(["id", "-un"]).ok().text();
    assert_eq!(name, alice.name);
    let job = sleeper(&sandbox, &alice);
    sandbox.cmd_as(&bob, "scancel").dir("/").arg(&job).fails().says(&["denied"]);
    sandbox.cmd_as(&bob, "scontrol").dir("/").args(["hold", &job]).fails();
    assert!(sandbox.cmd_as(&bob, "squeue").dir("/").ok().text().contains(&job), "the queue is public");
    sandbox.cmd_as(&alice, "scancel").dir("/").arg(&job).ok();
    sandbox.wait_state(job.parse().unwrap(), "CANCELLED", 20);
}
