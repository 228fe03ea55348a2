//! The supervisor of a step and its word: it cannot be killed, traced or starved, and nobody else says how a step ended.

use berth_model::ids::{Attempt, JobId, StepId, StepKey};
use berth_tests::{Cmd, Sandbox, Who, attacks, each_user, images, leftovers};
use std::os::unix::fs::MetadataExt;

/// What a user can try on a process that is not the user's; those that worked.
fn harm(who: &Who, pid: i32) -> Vec<String> {
    let attacks = [
        attacks::trace(pid),
        attacks::open_memory(pid),
        format!("kill -9 {pid}"),
        format!("kill -STOP {pid}"),
        format!("cat /proc/{pid}/environ"),
        format!("ls /proc/{pid}/fd/"),
        format!("ls /proc/{pid}/root/"),
        format!("echo 1000 > /proc/{pid}/oom_score_adj"),
        format!("renice 19 {pid}"),
        format!("prlimit --pid {pid} --nofile=1:1"),
        format!("nsenter -t {pid} -m /bin/true"),
    ];
    attacks::worked(who, attacks)
}

fn owner(pid: i32) -> Option<u32> {
    std::fs::metadata(format!("/proc/{pid}")).ok().map(|m| m.uid())
}

/// The process of a user's with this command line.
fn task(who: &Who, command: &str) -> i32 {
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let line = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut found = pids.filter(|pid| {
        owner(*pid) == Some(who.uid) && line(*pid).trim_end_matches('\0').replace('\0', " ") == command
    });
    found.next().expect("the task is not found")
}

/// The process and what it descends from.
fn ancestors(pid: i32) -> Vec<i32> {
    let parent = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|l| l.strip_prefix("PPid:"))?.trim().parse::<i32>().ok().filter(|p| *p > 0)
    };
    std::iter::successors(Some(pid), parent).collect()
}

#[test]
fn a_user_cannot_harm_the_supervisor_of_the_own_job_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let user = Who::user();
    let image = format!("--container-image={}", images::busybox().display());
    for options in [&["-n1"][..], &[&image]] {
        let words = options.iter().chain(&["sh", "-c", "echo ready; read x; exit 5"]);
        let mut step = sandbox.cmd_as(&user, "srun").dir("/").args(words).stdin_open().spawn();
        step.wait_for("ready", 60);
        let above = ancestors(task(&user, "sh -c echo ready; read x; exit 5"));
        let supervisors: Vec<i32> =
            above.into_iter().filter(|pid| *pid != 1 && owner(*pid) == Some(0)).collect();
        assert!(!supervisors.is_empty(), "no supervisor was found");
        let others =
            leftovers::processes(&sandbox.state()).into_iter().filter(|(_, line)| line.contains("berth"));
        let others: Vec<i32> = others.map(|(pid, _)| pid).filter(|pid| owner(*pid) == Some(0)).collect();
        assert!(others.len() >= 2, "controller and agent were not found");
        for pid in supervisors.into_iter().chain(others) {
            assert_eq!(harm(&user, pid), Vec::<String>::new(), "{pid}");
        }
        step.write(b"x\n");
        assert_eq!(step.finish().rc, 5, "{options:?}");
    }
}

/// All that a job's user can write below the state directory: what is told to others must not be among it.
#[test]
fn a_user_writes_nothing_by_which_an_exit_is_told_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let user = Who::user();
    let state = sandbox.state().display().to_string();
    let script =
        format!("find {state} -writable ! -type l ! -path '{state}/scratch/*/tmp*' 2>/dev/null | sort");
    let text = sandbox.cmd_as(&user, "srun").dir("/").args(["sh", "-c", &script]).ok().text();
    let inside = |line: &str| line.strip_prefix(&state).unwrap_or(line).to_string();
    // Sockets behind which the kernel says who calls, and what the job itself was given.
    let other: Vec<String> = text
        .lines()
        .map(inside)
        .filter(|l| !["/run/agent.sock", "/run/controller.sock", "/run/streams.sock"].contains(&l.as_str()))
        .filter(|l| {
            !(l.starts_with("/scratch/") || l.starts_with("/jobs/") && l.ends_with("/client/job.sock"))
        })
        .collect();
    assert_eq!(other, Vec::<String>::new(), "{text}");
    assert!(text.contains("/run/agent.sock"), "nothing was found: {text}");
}

/// Another user asks the agent for a step that is not the own one, in the agent's own words.
#[test]
fn another_user_is_not_attached_to_a_step_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let (user, stranger) = (Who::user(), Who::stranger());
    let mut step = sandbox
        .cmd_as(&user, "srun")
        .dir("/")
        .args(["sh", "-c", "echo ready; read x; echo $x"])
        .stdin_open()
        .spawn();
    step.wait_for("ready", 60);
    let spool = std::fs::read_dir(sandbox.state().join("spool")).unwrap();
    let names = spool.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<String> = names.filter(|name| name.split('.').count() == 3).collect();
    let [name] = names.as_slice() else { panic!("one step runs: {names:?}") };
    let parts: Vec<&str> = name.split('.').collect();
    let number = |n: usize| parts[n].parse::<u32>().unwrap();
    let key = StepKey { job: JobId(number(0)), attempt: Attempt(number(1)), step: StepId::Number(number(2)) };
    let key = serde_json::to_string(&key).unwrap();
    let ask = "use IO::Socket::UNIX; my ($path, $text) = @ARGV; my $s = IO::Socket::UNIX->new(Peer => $path) or die;
        print $s pack('CVV', 1, 0xffffffff, length $text), $text; $s->flush; my $head; read($s, $head, 9) == 9 or die;
        my ($kind, $task, $length) = unpack('CVV', $head); read($s, my $said, $length) if $length; print \"kind $kind $said\";";
    let attach = |who: &Who| {
        let line = Cmd::new("perl").args(["-e", ask]).arg(sandbox.state().join("run/agent.sock")).arg(&key);
        line.who(who).run().text()
    };
    let (to_stranger, to_user) = (attach(&stranger), attach(&user));
    assert!(to_stranger.starts_with("kind 4 ") && to_stranger.contains("belongs to uid"), "{to_stranger}");
    // The own request goes past the agent, to the step, which has its client.
    assert!(to_user.contains("another client is attached"), "the attack is none: {to_user}");
    step.write(b"mine\n");
    assert_eq!(step.finish().text(), "ready\nmine");
}

each_user! {
    fn killing_what_runs_a_task_is_no_success(who) {
        let sandbox = Sandbox::start(who);
        let image = format!("--container-image={}", images::busybox().display());
        // The parent of a task is the step's init, which has the user's uid.
        for options in [&["-n1"][..], &[&image], &[&image, "--container-remap-root"]] {
            // In a container the job's processes are all that a signal for everything reaches.
            let everything = if options.contains(&"-n1") { "" } else { "kill -9 -1;" };
            let line = format!("kill -9 $PPID; {everything} sleep 5; exit 0");
            let command = ["sh", "-c", line.as_str()];
            let words = options.iter().chain(&command);
            let output = sandbox.srun(words).run();
            assert_ne!(output.rc, 0, "{options:?}: {output}");
        }
        let rows = sandbox.cmd("sacct").args(["-n", "-P", "-X", "-o", "State,ExitCode"]).ok().text();
        assert_eq!(rows.lines().count(), 3, "{rows}");
        assert!(!rows.contains("COMPLETED") && !rows.contains("|0:0"), "{rows}");
    }
}
