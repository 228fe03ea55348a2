//! Parts are killed without warning under running steps; nothing acknowledged is lost or run twice.

use berth_tests::{Sandbox, Who, disk::Disk, each_user, images, leftovers, sandbox::wait};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

/// Starts again what was killed; `up` starts what is missing and leaves alone what runs.
fn revive(sandbox: &mut Sandbox) {
    sandbox.up();
}

/// As an ordinary user: root's agent has supervisors that were forked before.
#[test]
fn a_step_whose_supervisor_was_never_forked_is_started_by_the_next_agent_as_user() {
    let mut sandbox = Sandbox::start(Who::user());
    let agent = sandbox.agent();
    let zygote = sandbox.cmd("pgrep").args(["-P", &agent.to_string()]).ok().text();
    sandbox.cmd("kill").args(["-STOP", &zygote]).ok();
    let job = sandbox.sbatch(&["--output=out"], "#!/bin/sh\necho ran\n");
    let launch = sandbox.state().join(format!("spool/{job}.0.batch/launch.json"));
    assert!(wait(30, || launch.exists().then_some(())).is_some(), "the agent does not come to its start");
    sandbox.kill_9(agent);
    sandbox.kill_9(zygote.parse().unwrap());
    revive(&mut sandbox);
    sandbox.wait_state(job, "COMPLETED", 60);
    assert_eq!(sandbox.read("out"), "ran\n");
}

each_user! {
    fn steps_and_exit_codes_survive_the_controller(who) {
        let mut sandbox = Sandbox::start(who);
        let image = format!("--container-image={}", images::busybox().display());
        let script = "#!/bin/sh\necho begun\nwhile [ ! -e go ]; do sleep 0.1; done\necho ended\nexit 6\n";
        let mount = format!("--container-mounts={}", sandbox.work().display());
        let inside = sandbox.sbatch(&[&image, &mount, "-c1", "--output=in"], &script.replace("go", &sandbox.work().join("go").display().to_string()));
        sandbox.wait_file("in", "begun", 30);
        let pid = sandbox.controller();
        sandbox.kill_9(pid);
        sandbox.write("go", "");
        sandbox.wait_file("in", "ended", 20);
        revive(&mut sandbox);
        sandbox.wait_state(inside, "FAILED", 30);
        assert_eq!(sandbox.sacct(inside, "ExitCode")[0], ["6:0"]);
    }

    fn steps_and_streams_survive_the_agent(who) {
        let mut sandbox = Sandbox::start(who);
        let mut step = sandbox.srun_in(images::busybox(), ["sh", "-c", "echo ready; while read x; do echo got $x; done; exit 8"]).stdin_open().limit(90).spawn();
        step.wait_for("ready", 30);
        let script = "#!/bin/sh\necho begun\nwhile [ ! -e go ]; do sleep 0.1; done\nexit 6\n";
        let job = sandbox.sbatch(&["-c1", "--mem=64M", "--output=out"], script);
        let agent = sandbox.agent();
        sandbox.kill_9(agent);
        step.write(b"while dead\n");
        step.wait_for("got while dead", 30);
        revive(&mut sandbox);
        step.write(b"after\n");
        step.wait_for("got after", 30);
        assert_ne!(sandbox.agent(), agent);
        step.close();
        assert_eq!(step.finish().rc, 8);
        sandbox.write("go", "");
        sandbox.wait_state(job, "FAILED", 60);
        assert_eq!(sandbox.sacct(job, "ExitCode")[0], ["6:0"]);
        assert_eq!(sandbox.srun(["echo", "again"]).ok().text(), "again");
    }

    fn what_a_step_has_beside_its_scratch_is_in_memory_for_later_agents_too(who) {
        let mut sandbox = Sandbox::start(who);
        let device = |part: &str| std::fs::metadata(sandbox.state().join(part)).unwrap().dev();
        let on_disk = || ["spool", "jobs", "scratch"].map(|part| device(part) == device("private"));
        // An ordinary user can mount nothing.
        let expected = if sandbox.who().is_root() { [false, false, true] } else { [true; 3] };
        assert_eq!(on_disk(), expected);
        let script = "#!/bin/sh\necho begun > $TMPDIR/file\necho begun\nwhile [ ! -e go ]; do sleep 0.1; done\nexit 7\n";
        let job = sandbox.sbatch(&["--output=out"], script);
        sandbox.wait_file("out", "begun", 30);
        assert!(sandbox.state().join(format!("scratch/{job}/tmp/file")).exists());
        assert!(sandbox.state().join(format!("spool/{job}.0.batch/state.json")).exists());
        let agent = sandbox.agent();
        sandbox.kill_9(agent);
        revive(&mut sandbox);
        sandbox.write("go", "");
        sandbox.wait_state(job, "FAILED", 60);
        assert_eq!(sandbox.sacct(job, "ExitCode")[0], ["7:0"]);
        sandbox.down();
        assert_eq!(leftovers::mounts(&sandbox.state()), Vec::<String>::new());
    }

    fn a_step_that_ends_while_the_agent_is_dead_keeps_its_exit_code(who) {
        let mut sandbox = Sandbox::start(who);
        let job = sandbox.sbatch(&["--output=out"], "#!/bin/sh\necho begun\nwhile [ ! -e go ]; do sleep 0.1; done\necho ended\nexit 11\n");
        sandbox.wait_file("out", "begun", 30);
        let agent = sandbox.agent();
        sandbox.kill_9(agent);
        sandbox.write("go", "");
        sandbox.wait_file("out", "ended", 20);
        std::thread::sleep(std::time::Duration::from_millis(300));
        revive(&mut sandbox);
        sandbox.wait_state(job, "FAILED", 60);
        assert_eq!(sandbox.sacct(job, "ExitCode")[0], ["11:0"]);
    }

    fn no_acknowledged_job_is_lost_or_runs_twice(who) {
        let mut sandbox = Sandbox::start(who);
        let script = sandbox.write("job.sh", "#!/bin/sh\necho $SLURM_JOB_ID >> ran\n");
        let mut acknowledged = BTreeSet::new();
        for round in 0..3 {
            let loop_line = format!("for i in $(seq 40); do sbatch --parsable -o /dev/null -c1 --mem=16M {} || exit 0; done", script.display());
            let mut submit = sandbox.cmd("sh").args(["-c", &loop_line]).limit(120).spawn();
            // Somewhere in the middle of it.
            let enough = wait(60, || (submit.stdout().iter().filter(|b| **b == b'\n').count() >= 5 + round * 7).then_some(()));
            assert!(enough.is_some() || !submit.alive(), "nothing is acknowledged");
            let pid = sandbox.controller();
            sandbox.kill_9(pid);
            revive(&mut sandbox);
            let output = submit.finish();
            acknowledged.extend(output.text().lines().map(|l| l.parse::<u64>().unwrap_or_else(|_| panic!("{output}"))));
        }
        assert!(acknowledged.len() >= 20, "{} acknowledged", acknowledged.len());
        for job in &acknowledged {
            sandbox.wait_state(*job, "COMPLETED", 120);
        }
        let ran: Vec<u64> = sandbox.read("ran").lines().map(|l| l.parse().unwrap()).collect();
        let unique: BTreeSet<u64> = ran.iter().copied().collect();
        assert_eq!(ran.len(), unique.len(), "a job ran twice: {ran:?}");
        let missing: Vec<_> = acknowledged.difference(&unique).collect();
        assert!(missing.is_empty(), "acknowledged and never run: {missing:?}");
    }

    fn both_die_at_once(who) {
        let mut sandbox = Sandbox::start(who);
        let job = sandbox.sbatch(&["--output=out"], "#!/bin/sh\necho begun\nwhile [ ! -e go ]; do sleep 0.1; done\nexit 3\n");
        sandbox.wait_file("out", "begun", 30);
        let (controller, agent) = (sandbox.controller(), sandbox.agent());
        sandbox.kill_9(agent);
        sandbox.kill_9(controller);
        revive(&mut sandbox);
        assert_eq!(sandbox.job_state(job), "RUNNING");
        sandbox.write("go", "");
        sandbox.wait_state(job, "FAILED", 60);
        assert_eq!(sandbox.sacct(job, "ExitCode")[0], ["3:0"]);
    }

    fn down_ends_what_a_killed_agent_left(who) {
        let mut sandbox = Sandbox::start(who);
        let script = "#!/bin/sh\necho begun\nsleep 300\n";
        let plain = sandbox.sbatch(&["-c1", "--mem=64M", "--output=plain"], script);
        let image = format!("--container-image={}", images::busybox().display());
        sandbox.sbatch(&["-c1", "--mem=64M", "--output=inside", &image], script);
        sandbox.wait_file("plain", "begun", 30);
        sandbox.wait_file("inside", "begun", 30);
        let agent = sandbox.agent();
        sandbox.kill_9(agent);
        assert_eq!(sandbox.job_state(plain), "RUNNING");
        // The end of the sandbox looks for what `down` left: processes, mounts and control groups.
        let output = sandbox.down();
        assert_eq!(output.rc, 0, "{output}");
        assert!(output.err().contains("without their agent"), "{output}");
        let left = leftovers::processes(&sandbox.state());
        assert!(left.is_empty(), "{left:?}");
    }

    fn a_killed_client_takes_its_step_along(who) {
        let sandbox = Sandbox::start(who);
        let mut step = sandbox.srun(["sh", "-c", "echo ready; sleep 300"]).spawn();
        step.wait_for("ready", 30);
        step.signal(nix::sys::signal::Signal::SIGKILL);
        step.finish();
        let idle = wait(60, || sandbox.cmd("squeue").arg("-h").ok().text().is_empty().then_some(()));
        assert!(idle.is_some(), "{}", sandbox.cmd("squeue").ok());
    }
}

/// A cluster whose whole state is on a disk of its own.
fn on_a_full_disk(who: Who) {
    let sandbox = Sandbox::empty(who.clone());
    let state = sandbox.work().join("disk");
    let disk = Disk::in_memory(&state, who.uid, "256m");
    let cmd = |program: &str| sandbox.cmd(program).env("BERTH_STATE", &state).limit(60);
    let up = || cmd("berth").args(["up", "--detach"]);
    let filler = state.join("filler");
    let fill = || cmd("sh").args(["-c", "cat /dev/zero >> \"$0\"; :"]).arg(&filler).run();
    let disk_of = state.display().to_string();
    let refused = [disk_of.as_str(), "is full", "KiB free", "run 'berth up' again"];
    // Where there never was a cluster, none is half made.
    fill();
    up().fails().says(&refused);
    std::fs::remove_file(&filler).unwrap();
    up().ok();
    let held = cmd("sbatch").args(["--parsable", "--hold", "--wrap", "true"]).ok().text();
    cmd("berth").arg("down").ok();
    fill();
    // What is kept for that is enough for what runs and waits, and for nothing new.
    up().ok();
    let mut waits = cmd("sh").args(["-c", "sbatch --wrap true 2>&1"]).spawn();
    waits.wait_for("takes no new jobs until its disk has room", 60);
    drop(waits);
    assert!(cmd("squeue").args(["-h", "-o", "%i"]).ok().text().contains(&held));
    cmd("berth").arg("down").ok();
    fill();
    up().fails().says(&refused);
    // And comes back with the room.
    std::fs::remove_file(&filler).unwrap();
    up().ok();
    assert!(cmd("squeue").args(["-h", "-o", "%i"]).ok().text().contains(&held));
    let ran = wait(60, || (cmd("srun").args(["echo", "ran"]).run().text() == "ran").then_some(()));
    assert!(ran.is_some(), "it takes no new jobs");
    cmd("berth").arg("down").ok();
    drop(disk);
}

#[test]
fn a_cluster_on_a_full_disk_says_so_and_comes_back_with_room_as_root() {
    on_a_full_disk(Who::root());
}

#[test]
fn a_users_cluster_on_a_full_disk_says_so_and_comes_back_with_room_as_root() {
    if berth_tests::machine::is_root() {
        on_a_full_disk(Who::user());
    }
}
