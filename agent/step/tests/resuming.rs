//! A client whose connections break in the middle of everything: it hears every byte once, and so do the tasks.
#![allow(clippy::unwrap_used, clippy::panic)] // a failure is a failed test

mod rig;

use berth_model::spec::TermSize;
use berth_step::control::{ToSupervisor, send};
use berth_stream::{ALL_TASKS, Frame, Outbox, Resume, blocking, encode};
use rig::{Rig, Step};
use rustix::fd::AsFd;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const CLIENT: u64 = 7;

/// Comes with this number of frames heard: the connection and its first frame.
fn come(step: &mut Step, client: u64, heard: u64) -> (UnixStream, Option<Frame>) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let packet = ToSupervisor::AttachResuming(Resume { client, heard });
    send(step.control().as_fd(), &packet, &[theirs.as_fd()]).unwrap();
    drop(theirs);
    let first = blocking::read_frame(&mut ours).unwrap();
    (ours, first)
}

fn back(step: &mut Step, heard: u64) -> (UnixStream, u64) {
    match come(step, CLIENT, heard) {
        (client, Some(Frame::Resumed(taken))) => (client, taken),
        (_, other) => panic!("{other:?}"),
    }
}

#[test]
fn output_goes_on_at_the_frame_where_it_broke() {
    let rig = Rig::new();
    // More than any window, in pieces of all sizes; the end comes while nobody is there, too.
    let mut step = rig.start(rig.launch(&[
        "sh",
        "-c",
        "seq 1 2000000; seq 1 9 | while read n; do echo $n; done; exit 4",
    ]));
    let (mut heard, mut said, mut out, mut connections) = (0, 0, Vec::new(), 0);
    let mut unsure = false;
    let exit = 'step: loop {
        let (mut client, taken) = back(&mut step, heard);
        assert!(taken == said || (unsure && taken + 1 == said), "{taken} of {said}");
        (said, unsure) = (taken, false);
        connections += 1;
        // The first ones say nothing of what they heard, later ones say it at some time in between.
        for n in 0..connections * 3 {
            let Some(frame) = blocking::read_frame(&mut client).unwrap() else { panic!("closed") };
            match frame {
                Frame::Heard(_) => continue,
                Frame::Stdout { data, .. } => out.extend(data),
                Frame::StepExit(exit) => {
                    if connections % 2 == 0 {
                        // That it heard so is lost with its connection: the end is told again.
                        continue 'step;
                    }
                    // What is late is not answered; that we have heard the end is, so that we need not come back.
                    blocking::write_frame(&mut client, &Frame::Winch(TermSize { rows: 1, cols: 1 })).unwrap();
                    blocking::write_frame(&mut client, &Frame::Heard(heard + 1)).unwrap();
                    let last = blocking::read_frame(&mut client).unwrap();
                    assert_eq!(last, Some(Frame::Heard(said + 1)));
                    break 'step exit;
                }
                _ => {}
            }
            heard += 1;
            if n == 5 {
                blocking::write_frame(&mut client, &Frame::Heard(heard)).unwrap();
                // A frame that it counts, in between.
                blocking::write_frame(&mut client, &Frame::Winch(TermSize { rows: 1, cols: 1 })).unwrap();
                said += 1;
                // What comes first is given up with this connection, and told again. Behind the end nothing is answered.
                while !unsure {
                    match blocking::read_frame(&mut client).unwrap() {
                        Some(Frame::Heard(count)) if count == said => break,
                        Some(Frame::StepExit(_)) => unsure = true,
                        _ => {}
                    }
                }
                break;
            }
        }
    };
    assert!(connections > 10, "{connections}");
    assert_eq!(exit.status.code, 4);
    let wanted: String = (1..=2_000_000).chain(1..=9).map(|n| format!("{n}\n")).collect();
    assert!(out == wanted.as_bytes(), "{} bytes of {}", out.len(), wanted.len());
    assert!(step.gone(Duration::from_secs(5)), "the supervisor waits for one that has heard all");
}

#[test]
fn input_that_did_not_arrive_is_sent_again_and_none_twice() {
    let rig = Rig::new();
    let mut step = rig.start(rig.launch(&["sha256sum"]));
    let (mut outbox, mut wanted) = (Outbox::default(), Vec::new());
    let keep = |outbox: &mut Outbox, frame: &Frame| {
        let mut bytes = Vec::new();
        encode(frame, &mut bytes).unwrap();
        outbox.push(bytes);
    };
    for n in 0..40u8 {
        let data = vec![n; 5000];
        wanted.extend(&data);
        keep(&mut outbox, &Frame::Stdin { task: 0, data });
    }
    keep(&mut outbox, &Frame::StdinEof { task: ALL_TASKS });
    // Each connection brings three frames and a part of another.
    let mut waits = false;
    while !outbox.is_empty() {
        let (mut client, taken) = back(&mut step, 0);
        outbox.heard(taken).unwrap();
        if outbox.is_empty() {
            break; // the one before had brought the rest
        }
        let bytes: Vec<u8> = outbox.rest().take(4).flatten().copied().collect();
        let whole = outbox.rest().take(3).map(<[u8]>::len).sum::<usize>();
        client.write_all(&bytes[..bytes.len().min(whole + 100)]).unwrap();
        // Every second time it leaves at once, heard or not: it is told when it comes back.
        waits = !waits;
        while waits && !matches!(blocking::read_frame(&mut client).unwrap(), Some(Frame::Heard(_))) {}
    }
    let (mut client, _) = back(&mut step, 0);
    let seen = loop {
        match blocking::read_frame(&mut client).unwrap() {
            Some(Frame::Stdout { data, .. }) => break String::from_utf8(data).unwrap(),
            Some(_) => {}
            None => panic!("closed"),
        }
    };
    blocking::write_frame(&mut client, &Frame::Detach).unwrap();
    std::fs::write(rig.work().join("wanted"), &wanted).unwrap();
    let sum = std::process::Command::new("sha256sum").arg(rig.work().join("wanted")).output().unwrap();
    assert_eq!(seen.split(' ').next(), String::from_utf8(sum.stdout).unwrap().split(' ').next());
}

#[test]
fn a_client_that_went_with_its_job_is_waited_for_no_longer() {
    for leaves_first in [true, false] {
        let rig = Rig::new();
        let mut step = rig.start(rig.launch(&["sh", "-c", "echo heard; read x; echo unheard"]));
        let (mut client, _) = back(&mut step, 0);
        while !matches!(blocking::read_frame(&mut client).unwrap(), Some(Frame::Stdout { .. })) {}
        blocking::write_frame(&mut client, &Frame::StdinEof { task: ALL_TASKS }).unwrap();
        while !matches!(blocking::read_frame(&mut client).unwrap(), Some(Frame::StepExit(_))) {}
        let mut staying = Some(client);
        if leaves_first {
            staying = None;
            assert!(!step.gone(Duration::from_millis(300)), "it has not said what it heard");
        }
        send(step.control().as_fd(), &ToSupervisor::Kill, &[]).unwrap();
        if staying.is_some() {
            assert!(!step.gone(Duration::from_millis(300)), "who is there is not turned away");
        }
        drop(staying);
        assert!(step.gone(Duration::from_secs(5)), "{leaves_first}");
    }
}

#[test]
fn nobody_else_takes_its_place_and_no_count_is_believed() {
    let rig = Rig::new();
    let mut step = rig.start(rig.launch(&["sh", "-c", "echo one; sleep 60"]));
    let (mut client, _) = back(&mut step, 0);
    while !matches!(blocking::read_frame(&mut client).unwrap(), Some(Frame::Stdout { .. })) {}
    let refused = |step: &mut Step, client, heard| match come(step, client, heard) {
        (_, Some(Frame::Refused(why))) => why,
        (_, other) => panic!("{other:?}"),
    };
    assert!(refused(&mut step, 8, 0).contains("another client"));
    drop(client);
    // Also while it is away.
    let why = refused(&mut step, 8, 0);
    assert!(why.contains("another client"), "{why}");
    assert!(refused(&mut step, CLIENT, 1000).contains("1000 frames"));
    let (mut client, _) = back(&mut step, 0);
    blocking::write_frame(&mut client, &Frame::Heard(1)).unwrap();
    drop(client);
    // What was said to be heard is not kept.
    let (mut client, _) = back(&mut step, 2);
    assert!(refused(&mut step, CLIENT, 0).contains("are kept"));
    blocking::write_frame(&mut client, &Frame::Heard(u64::MAX)).unwrap();
    assert_eq!(blocking::read_frame(&mut client).unwrap(), None, "it is let go");
    let (mut client, _) = back(&mut step, 2);
    blocking::write_frame(&mut client, &Frame::Signal(9)).unwrap();
    while blocking::read_frame(&mut client).unwrap().is_some_and(|f| !matches!(f, Frame::StepExit(_))) {}
    blocking::write_frame(&mut client, &Frame::Detach).unwrap();
}

#[test]
fn input_for_tasks_that_have_ended_keeps_nothing_for_a_client_that_knows_the_end() {
    let rig = Rig::new();
    let mut step = rig.start(rig.launch(&["true"]));
    let (mut client, _) = back(&mut step, 0);
    let mut heard = 0;
    loop {
        let frame = blocking::read_frame(&mut client).unwrap().expect("the step's end");
        heard += u64::from(!matches!(frame, Frame::Heard(_)));
        if matches!(frame, Frame::StepExit(_)) {
            break;
        }
    }
    // It was under way when the end came; what is said of it is for nobody.
    blocking::write_frame(&mut client, &Frame::Stdin { task: 0, data: vec![1; 5000] }).unwrap();
    blocking::write_frame(&mut client, &Frame::Heard(heard)).unwrap();
    drop(client);
    assert!(step.gone(Duration::from_secs(5)), "the supervisor waits for one that has heard the end");
}

#[test]
fn who_hears_a_step_beside_its_client_goes_on_where_it_broke() {
    let rig = Rig::new();
    let mut step = rig.start(rig.launch(&["sh", "-c", "read x; seq 1 500000; exit 4"]));
    let mut client = step.attach();
    let watch = |step: &mut Step, heard: u64| {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let resume = Some(Resume { client: CLIENT, heard });
        let packet = ToSupervisor::Watch { stdout: None, stderr: None, terminal: false, resume };
        send(step.control().as_fd(), &packet, &[theirs.as_fd()]).unwrap();
        drop(theirs);
        assert_eq!(blocking::read_frame(&mut ours).unwrap(), Some(Frame::Resumed(0)));
        ours
    };
    let mut beside = watch(&mut step, 0);
    blocking::write_frame(&mut client, &Frame::Stdin { task: ALL_TASKS, data: b"go\n".to_vec() }).unwrap();
    let srun = std::thread::spawn(move || {
        while !matches!(blocking::read_frame(&mut client).unwrap(), Some(Frame::StepExit(_))) {}
    });
    let (mut heard, mut out, mut connections) = (0, Vec::new(), 1);
    let exit = 'step: loop {
        for _ in 0..connections {
            match blocking::read_frame(&mut beside).unwrap().expect("a frame") {
                Frame::Heard(_) => continue,
                Frame::Stdout { data, .. } => out.extend(data),
                Frame::StepExit(exit) if connections % 2 == 0 => {
                    blocking::write_frame(&mut beside, &Frame::Heard(heard + 1)).unwrap();
                    break 'step exit;
                }
                // That it heard so is lost with its connection: the end is told again.
                Frame::StepExit(_) => break,
                _ => {}
            }
            heard += 1;
        }
        connections += 1;
        beside = watch(&mut step, heard);
    };
    srun.join().unwrap();
    assert!(connections > 5, "{connections}");
    assert_eq!(exit.status.code, 4);
    let wanted: String = (1..=500_000).map(|n| format!("{n}\n")).collect();
    assert!(out == wanted.as_bytes(), "{} bytes of {}", out.len(), wanted.len());
    assert!(step.gone(Duration::from_secs(5)), "the supervisor waits for one that has heard all");
}
