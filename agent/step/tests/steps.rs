//! Steps with real processes on the node's own filesystem: streams, exits, signals, files, survival.

mod rig;

use berth_model::ByteStr;
use berth_model::ids::StepId;
use berth_model::launch::{Program, StepLaunch};
use berth_model::mpi::MpiType;
use berth_model::spec::{IoSpec, JobKind, OpenMode, TermSize};
use berth_model::state::ExitStatus;
use berth_model::time::Span;
use berth_step::control::{FromSupervisor, ToSupervisor};
use berth_stream::{ALL_TASKS, Frame, MAX_PAYLOAD, STDIN_WINDOW, blocking};
use rig::{Rig, read_all, tasks};
use std::io::Read;
use std::time::{Duration, Instant};

fn code(code: u8) -> ExitStatus {
    ExitStatus { code, signal: 0 }
}

#[test]
fn output_and_exit_reach_the_client() {
    let rig = Rig::new();
    let mut step = rig.start(rig.launch(&["sh", "-c", "echo out; echo err >&2; exit 3"]));
    let mut client = step.attach();
    let seen = read_all(&mut client);
    assert_eq!(seen.text(), "out\n");
    assert_eq!(seen.stderr.len(), 1);
    assert_eq!(seen.exits, [(0, code(3))]);
    assert!(seen.started);
    let exit = seen.exit.unwrap();
    assert_eq!((exit.status, exit.launch_error), (code(3), None));
    drop(client);
    assert!(step.gone(Duration::from_secs(5)), "the supervisor stays after its work");
    assert_eq!(step.exit().status, code(3));
}

#[test]
fn a_client_that_comes_after_the_end_still_gets_everything() {
    let rig = Rig::new();
    let mut step = rig.start(rig.launch(&["sh", "-c", "echo late; exit 1"]));
    step.hear(FromSupervisor::Exited);
    let seen = read_all(&mut step.attach());
    assert_eq!((seen.text().as_str(), seen.exit.unwrap().status), ("late\n", code(1)));
}

#[test]
fn sixty_four_mebibytes_pass_in_and_out_unchanged() {
    let rig = Rig::new();
    let mut step = rig.start(rig.launch(&["cat"]));
    let mut client = step.attach();
    let mut sent = vec![0u8; 64 << 20];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut sent).unwrap();
    let data = sent.clone();
    let mut to = client.try_clone().unwrap();
    // No window is minded here: back-pressure alone must do, too.
    let writer = std::thread::spawn(move || {
        for piece in data.chunks(MAX_PAYLOAD - 1) {
            blocking::write_frame(&mut to, &Frame::Stdin { task: ALL_TASKS, data: piece.to_vec() }).unwrap();
        }
        blocking::write_frame(&mut to, &Frame::StdinEof { task: ALL_TASKS }).unwrap();
    });
    let seen = read_all(&mut client);
    writer.join().unwrap();
    assert!(seen.out(0) == sent, "the bytes differ");
    assert_eq!(seen.exit.unwrap().status, ExitStatus::OK);
}

#[test]
fn standard_input_goes_to_all_tasks_or_to_one() {
    let rig = Rig::new();
    let mut launch = rig.launch(&["cat"]);
    tasks(&mut launch, 3);
    let mut step = rig.start(launch);
    let mut client = step.attach();
    for (task, text) in [(ALL_TASKS, "all "), (1, "one")] {
        blocking::write_frame(&mut client, &Frame::Stdin { task, data: text.as_bytes().to_vec() }).unwrap();
    }
    blocking::write_frame(&mut client, &Frame::StdinEof { task: ALL_TASKS }).unwrap();
    let seen = read_all(&mut client);
    assert_eq!(
        [seen.out(0), seen.out(1), seen.out(2)],
        [b"all ".to_vec(), b"all one".to_vec(), b"all ".to_vec()]
    );
}

#[test]
fn a_signal_passes_unread_input() {
    let rig = Rig::new();
    let mut step = rig.start(rig.launch(&["sleep", "60"]));
    let mut client = step.attach();
    assert_eq!(blocking::read_frame(&mut client).unwrap(), Some(Frame::Started));
    for _ in 0..STDIN_WINDOW / MAX_PAYLOAD {
        let data = vec![7; MAX_PAYLOAD];
        blocking::write_frame(&mut client, &Frame::Stdin { task: ALL_TASKS, data }).unwrap();
    }
    blocking::write_frame(&mut client, &Frame::Signal(2)).unwrap();
    let seen = read_all(&mut client);
    assert!(seen.exit.is_some(), "{}", step.log());
    assert_eq!(seen.exit.unwrap().status, ExitStatus { code: 0, signal: 2 });
}

#[test]
fn output_comes_while_the_task_runs_and_not_at_its_end() {
    let rig = Rig::new();
    let mut step = rig.start(rig.launch(&["sh", "-c", "echo first; read x; echo $x"]));
    let mut client = step.attach();
    assert_eq!(blocking::read_frame(&mut client).unwrap(), Some(Frame::Started));
    let first = blocking::read_frame(&mut client).unwrap();
    assert_eq!(first, Some(Frame::Stdout { task: 0, data: b"first\n".to_vec() }));
    blocking::write_frame(&mut client, &Frame::Stdin { task: 0, data: b"second\n".to_vec() }).unwrap();
    assert_eq!(read_all(&mut client).text(), "second\n");
}

#[test]
fn the_worst_task_decides_and_each_is_told() {
    let rig = Rig::new();
    let mut launch = rig.launch(&["sh", "-c", "echo $SLURM_PROCID; exit $SLURM_PROCID"]);
    tasks(&mut launch, 4);
    let mut step = rig.start(launch);
    let mut seen = read_all(&mut step.attach());
    seen.exits.sort();
    assert_eq!(seen.exits, [(0, code(0)), (1, code(1)), (2, code(2)), (3, code(3))]);
    assert_eq!(seen.exit.unwrap().status, code(3));
}

#[test]
fn a_bad_exit_ends_the_others_where_that_was_asked_for() {
    let rig = Rig::new();
    let mut launch = rig.launch(&["sh", "-c", "[ $SLURM_PROCID = 0 ] && exit 5; sleep 60"]);
    tasks(&mut launch, 2);
    launch.kill_on_bad_exit = true;
    let mut step = rig.start(launch);
    let begun = Instant::now();
    let mut seen = read_all(&mut step.attach());
    seen.exits.sort();
    assert_eq!(seen.exits[0], (0, code(5)));
    assert_eq!(seen.exits[1].1, ExitStatus { code: 0, signal: 15 });
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_step_ends_some_time_after_its_first_task() {
    let rig = Rig::new();
    let mut launch = rig.launch(&["sh", "-c", "[ $SLURM_PROCID = 0 ] && exit 0; sleep 60"]);
    tasks(&mut launch, 2);
    launch.wait_after_first_exit = Some(berth_model::Span::from_secs(1));
    let mut step = rig.start(launch);
    let seen = read_all(&mut step.attach());
    assert_eq!(seen.exit.unwrap().status, ExitStatus { code: 0, signal: 15 });
}

#[test]
fn what_ignores_sigterm_is_killed_after_the_wait() {
    let rig = Rig::new();
    let mut launch = rig.launch(&["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"]);
    launch.kill_wait = Span::from_secs(1);
    let mut step = rig.start(launch);
    let mut client = step.attach();
    while !matches!(blocking::read_frame(&mut client).unwrap(), Some(Frame::Stdout { .. })) {}
    drop(client);
    assert_eq!(step.exit().status, ExitStatus { code: 0, signal: 9 });
}

#[test]
fn the_loss_of_its_client_ends_a_step_and_nothing_is_left() {
    let rig = Rig::new();
    let mut step = rig.start(rig.launch(&["sh", "-c", "sleep 4242 & sleep 4242"]));
    let mut client = step.attach();
    assert_eq!(blocking::read_frame(&mut client).unwrap(), Some(Frame::Started));
    drop(client);
    assert_eq!(step.exit().status, ExitStatus { code: 0, signal: 15 });
    assert!(step.gone(Duration::from_secs(5)));
}

#[test]
fn a_step_goes_on_when_its_client_detaches() {
    let rig = Rig::new();
    let marker = rig.work().join("done");
    let mut step = rig.start(rig.launch(&["sh", "-c", "sleep 1; echo x; echo yes > done"]));
    let mut client = step.attach();
    blocking::write_frame(&mut client, &Frame::Detach).unwrap();
    drop(client);
    assert_eq!(step.exit().status, ExitStatus::OK);
    assert_eq!(std::fs::read_to_string(marker).unwrap(), "yes\n");
}

#[test]
fn a_second_client_is_refused() {
    let rig = Rig::new();
    let mut step = rig.start(rig.launch(&["cat"]));
    let mut client = step.attach();
    let (mut other, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    use rustix::fd::AsFd;
    berth_step::control::send(step.control().as_fd(), &ToSupervisor::Attach, &[theirs.as_fd()]).unwrap();
    drop(theirs);
    assert!(matches!(blocking::read_frame(&mut other).unwrap(), Some(Frame::Refused(_))));
    blocking::write_frame(&mut client, &Frame::StdinEof { task: ALL_TASKS }).unwrap();
    assert_eq!(read_all(&mut client).exit.unwrap().status, ExitStatus::OK);
}

#[test]
fn a_terminal_has_its_size_and_follows_it() {
    let rig = Rig::new();
    let mut launch = rig.launch(&["sh", "-c", "stty size; read x; stty size; tty >/dev/null && exit 4"]);
    launch.pty = Some(TermSize { rows: 33, cols: 99 });
    let mut step = rig.start(launch);
    let mut client = step.attach();
    let mut text = String::new();
    while !text.contains("33 99") {
        if let Some(Frame::Stdout { data, .. }) = blocking::read_frame(&mut client).unwrap() {
            text.push_str(&String::from_utf8(data).unwrap());
        }
    }
    blocking::write_frame(&mut client, &Frame::Winch(TermSize { rows: 44, cols: 111 })).unwrap();
    blocking::write_frame(&mut client, &Frame::Stdin { task: 0, data: b"\n".to_vec() }).unwrap();
    let seen = read_all(&mut client);
    assert!(seen.text().contains("44 111"), "{}", seen.text());
    assert_eq!(seen.exit.unwrap().status, code(4));
}

#[test]
fn a_missing_program_is_named_and_counts_as_a_failure() {
    let rig = Rig::new();
    let mut step = rig.start(rig.launch(&["no-such-program"]));
    let seen = read_all(&mut step.attach());
    let exit = seen.exit.unwrap();
    assert_eq!(exit.status, code(2));
    assert!(exit.launch_error.unwrap().contains("no-such-program"));
    assert!(seen.messages.is_empty(), "told twice: {:?}", seen.messages);
}

#[test]
fn a_missing_working_directory_is_an_error_and_nothing_runs_elsewhere() {
    let rig = Rig::new();
    let mut launch = rig.launch(&["touch", "/tmp/berth-must-not-exist"]);
    launch.work_dir = ByteStr::from("/nonexistent/dir");
    launch.work_dir_explicit = true;
    let mut step = rig.start(launch);
    let seen = read_all(&mut step.attach());
    let exit = seen.exit.unwrap();
    let error = exit.launch_error.unwrap();
    assert!(error.contains("/nonexistent/dir") && error.contains("--chdir"), "{error}");
    assert!(!exit.status.success());
    assert!(!std::path::Path::new("/tmp/berth-must-not-exist").exists());
}

fn batch(rig: &Rig, script: &str) -> berth_model::launch::StepLaunch {
    let mut launch = rig.launch(&[]);
    launch.key.step = StepId::Batch;
    launch.job.kind = JobKind::Batch;
    launch.attached = false;
    launch.program = Program::Script { text: script.into(), args: vec!["a b".into(), "c".into()] };
    launch
}

#[test]
fn a_batch_script_runs_from_memory_with_its_arguments_and_writes_its_file() {
    let rig = Rig::new();
    let script = "#!/bin/sh\necho \"$# $1 $2\"\necho err >&2\ncat\n";
    let step = rig.start(batch(&rig, script));
    assert_eq!(step.exit().status, ExitStatus::OK);
    assert!(step.gone(Duration::from_secs(5)));
    let out = std::fs::read_to_string(rig.work().join("slurm-12.out")).unwrap();
    assert_eq!(out, "2 a b c\nerr\n");
}

#[test]
fn a_requeued_run_appends_and_open_mode_decides_over_that() {
    let rig = Rig::new();
    let file = rig.work().join("slurm-12.out");
    for (restarts, mode, expect) in [
        (0, None, "run\n"),
        (1, None, "run\nrun\n"),
        (2, Some(OpenMode::Truncate), "run\n"),
        (0, Some(OpenMode::Append), "run\nrun\n"),
    ] {
        let mut launch = batch(&rig, "#!/bin/sh\necho run\n");
        launch.job.restarts = restarts;
        launch.key.attempt.0 = u32::from(restarts > 0) + restarts * 2 + u32::from(mode.is_some()) * 10;
        launch.io.open_mode = mode;
        let step = rig.start(launch);
        assert_eq!(step.exit().status, ExitStatus::OK);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), expect);
    }
}

#[test]
fn an_output_file_that_cannot_be_made_fails_the_step_before_anything_runs() {
    let rig = Rig::new();
    let mut launch = batch(&rig, "#!/bin/sh\ntouch ran\n");
    launch.io.stdout = Some("missing/dir/%j.out".into());
    let exit = rig.start(launch).exit();
    let error = exit.launch_error.unwrap();
    assert!(error.contains("missing/dir/12.out") && error.contains("No such file"), "{error}");
    assert!(!exit.status.success() && !rig.work().join("ran").exists());
}

#[test]
fn a_file_that_tasks_on_other_nodes_share_is_the_clients_to_write() {
    let rig = Rig::new();
    let say = |attempt: u32, nodes: usize, stdout: &str, client_writes: bool| {
        let mut launch = rig.launch(&["sh", "-c", "echo out; echo err >&2"]);
        launch.key.attempt.0 = attempt;
        launch.io = IoSpec { stdout: Some(stdout.into()), client_writes, ..IoSpec::default() };
        if nodes == 2 {
            let layout = std::sync::Arc::make_mut(&mut launch.layout);
            layout.nodes.push("n2".into());
            layout.tasks.push(vec![1]);
            layout.cpus.push(1);
        }
        let mut step = rig.start(launch);
        let seen = read_all(&mut step.attach());
        let file = std::fs::read_to_string(rig.work().join(stdout.replace("%t", "0")));
        (seen.text(), seen.stderr.len(), file.ok())
    };
    let written = |text: &str| Some(text.to_string());
    assert_eq!(say(1, 2, "shared", true), ("out\n".into(), 1, None));
    // Whoever is alone with a file writes it, and so does everybody for a client that does not.
    assert_eq!(say(2, 1, "alone", true), (String::new(), 0, written("out\nerr\n")));
    assert_eq!(say(3, 2, "task.%t", true), (String::new(), 0, written("out\nerr\n")));
    assert_eq!(say(4, 2, "earlier", false), (String::new(), 0, written("out\nerr\n")));
    // The number of a task is no file's name, and one that no task has is one.
    assert_eq!(say(5, 2, "0", true), ("out\n".into(), 1, None));
    assert_eq!(say(6, 2, "1", true), (String::new(), 1, None));
    assert_eq!(say(7, 1, "1", true), (String::new(), 0, written("out\nerr\n")));
}

#[test]
fn the_line_about_a_time_limit_goes_into_the_error_file() {
    let rig = Rig::new();
    let mut launch = batch(&rig, "#!/bin/sh\necho ready\nsleep 60\n");
    launch.io.stderr = Some("err".into());
    let mut step = rig.start(launch);
    step.hear(FromSupervisor::Running);
    step.tell(&ToSupervisor::Note("*** JOB 12 ON n1 CANCELLED AT x DUE TO TIME LIMIT ***".into()));
    step.tell(&ToSupervisor::Signal { signal: 15, leaders_only: false, number: None });
    assert_eq!(step.exit().status, ExitStatus { code: 0, signal: 15 });
    let text = std::fs::read_to_string(rig.work().join("err")).unwrap();
    assert!(
        text.contains("slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT x DUE TO TIME LIMIT ***"),
        "{text}"
    );
}

#[test]
fn a_signal_for_the_batch_shell_leaves_what_it_started_alone() {
    let rig = Rig::new();
    let script = "#!/bin/bash\ntrap 'echo got; kill %1; exit 6' USR1\nsleep 60 & echo ready; wait\n";
    let mut step = rig.start(batch(&rig, script));
    let out = rig.work().join("slurm-12.out");
    let end = Instant::now() + Duration::from_secs(20);
    while !std::fs::read_to_string(&out).unwrap_or_default().contains("ready") {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(10));
    }
    step.tell(&ToSupervisor::Signal { signal: 10, leaders_only: true, number: None });
    assert_eq!(step.exit().status, code(6));
}

#[test]
fn a_single_task_may_come_to_pmix_unasked_and_is_served_nothing_else() {
    let rig = Rig::new();
    let mut launch = rig.launch(&["true"]);
    let has = |launch: &StepLaunch| (launch.mpi_served(), launch.mpi_is_open());
    assert_eq!(has(&launch), (MpiType::None, true));
    launch.mpi = Some(MpiType::Pmix);
    assert_eq!(has(&launch), (MpiType::Pmix, false));
    launch.mpi = Some(MpiType::None);
    assert_eq!(has(&launch), (MpiType::None, false));
    launch.mpi = None;
    tasks(&mut launch, 2);
    assert_eq!(has(&launch), (MpiType::Pmi2, true));
    // A batch script is no MPI program, nor is what nobody attends to.
    launch.attached = false;
    assert_eq!(has(&launch), (MpiType::None, false));
}

/// An agent that was restarted says again what it does not know to have been heard.
#[test]
fn a_signal_with_a_number_is_heard_once() {
    let rig = Rig::new();
    let script = "#!/bin/bash\ntrap 'echo got' USR1\ntrap 'kill %1; exit 6' USR2\nsleep 60 & echo ready\nwhile :; do wait; done\n";
    let mut step = rig.start(batch(&rig, script));
    let out = rig.work().join("slurm-12.out");
    let said = |what: &str| {
        let end = Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(&out).unwrap_or_default().contains(what) {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    said("ready");
    let signal = |signal, number| ToSupervisor::Signal { signal, leaders_only: true, number: Some(number) };
    step.tell(&signal(10, 5));
    said("got");
    step.tell(&signal(10, 5));
    step.tell(&signal(10, 4));
    step.tell(&signal(12, 6));
    assert_eq!(step.exit().status, code(6));
    assert_eq!(std::fs::read_to_string(&out).unwrap().matches("got").count(), 1);
}

#[test]
fn a_step_survives_the_zygote_and_its_exit_is_found_later() {
    let mut rig = Rig::new();
    let launch = batch(&rig, "#!/bin/sh\nsleep 1\nexit 9\n");
    let mut step = rig.start(launch);
    step.hear(FromSupervisor::Running);
    rig.end_zygote();
    assert_eq!(step.exit().status, code(9));
}

#[test]
fn every_byte_of_the_environment_arrives() {
    let rig = Rig::new();
    let mut launch = rig.launch(&["sh", "-c", "printf %s \"$ODD\""]);
    let value = b"\xff\xfe line\nbreak =x".to_vec();
    launch.env.push(ByteStr([b"ODD=".to_vec(), value.clone()].concat()));
    let mut step = rig.start(launch);
    assert_eq!(read_all(&mut step.attach()).out(0), value);
}

#[test]
fn the_login_environment_is_the_ground_for_the_submitted_one() {
    let rig = Rig::new();
    let home = rig.work().join("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(home.join(".profile"), "echo noise\nexport FROM_PROFILE='a b' BOTH=profile\n").unwrap();
    let mut launch = rig.launch(&["sh", "-c", "echo \"$FROM_PROFILE $BOTH\""]);
    launch.identity.home = ByteStr::from(home.as_path());
    launch.user_env = true;
    launch.env.push("BOTH=submitted".into());
    let mut step = rig.start(launch);
    assert_eq!(read_all(&mut step.attach()).text(), "a b submitted\n");

    let mut launch = rig.launch(&["true"]);
    launch.key.attempt.0 = 1;
    launch.identity.shell = "/bin/false".into();
    launch.user_env = true;
    let mut step = rig.start(launch);
    let error = read_all(&mut step.attach()).exit.unwrap().launch_error.unwrap();
    assert!(error.contains("--get-user-env") && error.contains("/bin/false"), "{error}");
}

#[test]
fn a_supervisor_that_stood_by_runs_its_step_from_the_process_it_parked() {
    let rig = Rig::new();
    let (waiting, socket, parked) = rig.stand_by();
    // What a process inherits from its parent shows which one that was: here a limit, on a node a cgroup.
    let limit = rustix::process::Rlimit { current: Some(77), maximum: Some(77) };
    let pid = rustix::process::Pid::from_raw(parked);
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).unwrap();
    let mut step = rig.begin(waiting, &socket, rig.launch(&["sh", "-c", "ulimit -n; exit 4"]));
    let mut client = step.attach();
    let seen = read_all(&mut client);
    assert_eq!((seen.text().as_str(), seen.exit.unwrap().status), ("77\n", code(4)));
    drop(client);
    assert!(step.gone(Duration::from_secs(5)), "the supervisor stays after its work");
}

#[test]
fn a_supervisor_that_stands_by_goes_with_the_agent_and_takes_along_what_it_parked() {
    let rig = Rig::new();
    let (waiting, socket, parked) = rig.stand_by();
    let pid = rustix::process::Pid::from_raw(parked).unwrap();
    let parked = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    assert!(!waiting.gone(Duration::from_millis(50)));
    drop(socket);
    assert!(waiting.gone(Duration::from_secs(5)));
    let mut set = [rustix::event::PollFd::new(&parked, rustix::event::PollFlags::IN)];
    let patience = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut set, Some(&patience)).unwrap(), 1);
}

#[test]
fn a_step_starts_although_what_was_parked_for_it_is_gone() {
    let rig = Rig::new();
    let (waiting, socket, parked) = rig.stand_by();
    let pid = rustix::process::Pid::from_raw(parked).unwrap();
    let held = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let mut set = [rustix::event::PollFd::new(&held, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut set, None).unwrap();
    let mut step = rig.begin(waiting, &socket, rig.launch(&["sh", "-c", "exit 6"]));
    let mut client = step.attach();
    assert_eq!(read_all(&mut client).exit.unwrap().status, code(6));
}

/// A step whose client runs something before its tasks, and says so within this time.
fn told_within(rig: &Rig, seconds: i64, argv: &[&str]) -> berth_model::launch::StepLaunch {
    let told_within = Some(Span::from_secs(seconds));
    berth_model::launch::StepLaunch { told_within, ..rig.launch(argv) }
}

#[test]
fn tasks_wait_for_the_word_of_their_client() {
    let rig = Rig::new();
    let mut step = rig.start(told_within(&rig, 60, &["sh", "-c", "echo ran > ran; cat"]));
    let mut client = step.attach();
    let data = b"input".to_vec();
    blocking::write_frame(&mut client, &Frame::Stdin { task: ALL_TASKS, data }).unwrap();
    blocking::write_frame(&mut client, &Frame::StdinEof { task: ALL_TASKS }).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(!rig.work().join("ran").exists());
    blocking::write_frame(&mut client, &Frame::Begin).unwrap();
    let seen = read_all(&mut client);
    assert_eq!((seen.text().as_str(), seen.exit.unwrap().status), ("input", code(0)));
}

#[test]
fn a_step_that_waits_for_a_word_ends_without_it_when_it_is_late_or_the_step_is_ended() {
    for (seconds, signal, why) in [
        (1, None, "srun did not say within 1 s that its prolog has ended (srun_prolog_seconds)"),
        (60, Some(15), "the step was ended before its tasks began"),
    ] {
        let rig = Rig::new();
        let mut step = rig.start(told_within(&rig, seconds, &["sh", "-c", "echo ran > ran"]));
        let mut client = step.attach();
        if let Some(signal) = signal {
            blocking::write_frame(&mut client, &Frame::Signal(signal)).unwrap();
        }
        let exit = read_all(&mut client).exit.unwrap();
        assert_eq!(exit.status, code(1));
        assert!(exit.launch_error.as_ref().unwrap().contains(why), "{exit:?}");
        assert!(!rig.work().join("ran").exists());
    }
}
