//! What the steps of a job share on a node, and who else can get at it: nobody.

use berth_tests::attacks::break_in;
use berth_tests::{Cmd, Sandbox, Who, each_user, images};
use std::path::Path;
use std::time::{Duration, Instant};

/// Waits for something that comes soon.
fn soon<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what} does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The process that holds a job's namespaces, from the agent's record: a job may run before the record is there.
fn holder(sandbox: &Sandbox, job: u64) -> i32 {
    let path = sandbox.state().join(format!("jobs/{job}/job.json"));
    soon("the job's record", || {
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        i32::try_from(record["namespaces"]["pid"].as_i64()?).ok()
    })
}

/// A process of the job that runs this command.
fn process_of(holder: i32, command: &str) -> i32 {
    let space = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let line = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    soon("the job's task", || {
        let wanted = space(&holder.to_string())?;
        let pids =
            std::fs::read_dir("/proc").ok()?.flatten().filter_map(|e| e.file_name().into_string().ok());
        let found = pids
            .filter(|pid| space(pid).is_some_and(|ns| ns == wanted))
            .find(|pid| line(pid).replace('\0', " ").starts_with(command));
        found?.parse().ok()
    })
}

fn gone(pid: i32) -> bool {
    !Path::new(&format!("/proc/{pid}/ns")).exists()
        || std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_err()
}

each_user! {
    fn steps_list_trace_and_signal_each_other(who) {
        let sandbox = Sandbox::start(who);
        let image = images::busybox();
        let script = "#!/bin/sh\n\
            sleep 1000 & echo $! > /dev/shm/pid; echo shared > /tmp/file\n\
            srun --overlap sh -c 'pid=$(cat /dev/shm/pid); cat /tmp/file\n\
              for ns in user pid ipc; do [ $(readlink /proc/$pid/ns/$ns) = $(readlink /proc/self/ns/$ns) ] && echo same $ns; done\n\
              [ $(readlink /proc/$pid/ns/mnt) = $(readlink /proc/self/ns/mnt) ] || echo own mnt\n\
              ps -o pid,args | grep -q \"^ *$pid sleep 1000\" && echo listed\n\
              grep -q SLURM_JOB_ID /proc/$pid/environ && echo traced; kill $pid; kill -9 1; echo alive'\n\
            wait; echo over\n";
        let job = sandbox.sbatch(&["--container-image", image.to_str().unwrap(), "-o", "out"], script);
        sandbox.wait_state(job, "COMPLETED", 60);
        assert_eq!(
            sandbox.read("out"),
            "shared\nsame user\nsame pid\nsame ipc\nown mnt\nlisted\ntraced\nalive\nover\n"
        );
    }

    fn a_step_that_ends_leaves_the_others_alone_and_a_job_nothing(who) {
        let sandbox = Sandbox::start(who);
        let image = images::busybox();
        // The step leaves an orphan in a session of its own; the batch script lives on and sees it go.
        let script = "#!/bin/sh\n\
            srun --overlap sh -c '(setsid sleep 1001 &); sleep 0.3; ps -o args | grep -c ^sleep.1001'\n\
            ps -o args | grep -c ^sleep.1001; (setsid sleep 1002 &); exec sleep 1003\n";
        let job = sandbox.sbatch(&["--container-image", image.to_str().unwrap(), "-o", "out"], script);
        sandbox.wait_state(job, "RUNNING", 60);
        let out = sandbox.work().join("out");
        soon("the end of the first step", || {
            std::fs::read_to_string(&out).is_ok_and(|text| text == "1\n0\n").then_some(())
        });
        let (first, orphan) = (holder(&sandbox, job), process_of(holder(&sandbox, job), "sleep 1003"));
        sandbox.cmd("scancel").arg(job.to_string()).ok();
        sandbox.wait_state(job, "CANCELLED", 60);
        soon("the end of the job's processes", || (gone(first) && gone(orphan)).then_some(()));
    }
}

/// The defence is that root owns the user namespace. In user mode the user owns it, and the same attacks work
/// there: that is what shows that they are attacks.
#[test]
fn the_same_user_outside_cannot_enter_as_root() {
    let user = Who::user();
    let job_of = |sandbox: &Sandbox| {
        let image = images::busybox();
        let line = sandbox.cmd_as(&user, "sbatch").dir("/tmp");
        let line = line.args(["--parsable", "-o", "/dev/null", "--container-image"]).arg(&image);
        let job: u64 = line.args(["--wrap", "sleep 1000"]).ok().text().parse().unwrap();
        sandbox.wait_state(job, "RUNNING", 60);
        job
    };
    let system = Sandbox::start(Who::root());
    let job = job_of(&system);
    let first = holder(&system, job);
    let task = process_of(first, "sleep 1000");
    assert_eq!(break_in(&user, task), Vec::<String>::new());
    assert_eq!(break_in(&user, first), Vec::<String>::new());
    assert_eq!(break_in(&Who::stranger(), task), Vec::<String>::new());
    let signal = Cmd::new("kill").args(["-0", &first.to_string()]).who(&user).run();
    assert_ne!(signal.rc, 0, "the user may signal the holder of the job's namespaces");
    system.cmd_as(&user, "scancel").dir("/").arg(job.to_string()).ok();

    let own = Sandbox::start(user.clone());
    let job = job_of(&own);
    let worked = break_in(&user, process_of(holder(&own, job), "sleep 1000"));
    assert!(worked.iter().any(|a| a.contains("-U /bin/true")), "the attack is none: {worked:?}");
    for what in ["environ", "/root/", "/fd/"] {
        assert!(worked.iter().any(|a| a.contains(what)), "{what}: the attack is none: {worked:?}");
    }
    // Yama forbids tracing what is no child of one's own, where it is on.
    let yama = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    if yama.is_err() || yama.is_ok_and(|scope| scope == "0\n") {
        for what in ["strace", "/mem"] {
            assert!(worked.iter().any(|a| a.contains(what)), "{what}: the attack is none: {worked:?}");
        }
    }
    assert_eq!(break_in(&Who::stranger(), process_of(holder(&own, job), "sleep 1000")), Vec::<String>::new());
}

/// A batch script on the node's own filesystem and a container are of one job; the container must not get out
/// by way of the script's processes.
#[test]
fn a_container_does_not_leave_by_a_script_on_the_node_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let user = Who::user();
    let look = "for p in /proc/[0-9]*; do ls -d $p/root/var/lib/dpkg 2>/dev/null; grep -a SECRET $p/environ 2>/dev/null; done\n\
                ps -o args | grep -c ^sleep.1000\n";
    let image = images::busybox();
    let script = format!(
        "#!/bin/sh\nSECRET=x sleep 1000 &\nsrun --overlap --container-image={} sh -s <<'X'\n{look}X\nkill $!\n",
        image.display()
    );
    let job = sandbox.cmd_as(&user, "sbatch").dir("/tmp").args(["--parsable", "--wait", "-o", "/dev/null"]);
    let out = Cmd::new("mktemp").arg("/tmp/bt-ns-XXXXXX").who(&user).ok().text();
    let output = job.args(["-o", &out]).stdin(script).limit(60).run();
    let text = std::fs::read_to_string(&out).unwrap_or_default();
    let _ = std::fs::remove_file(&out);
    assert_eq!(text, "1\n", "{output}");
}
