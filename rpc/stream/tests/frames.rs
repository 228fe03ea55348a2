//! Frames survive the wire, in any pieces; garbage is refused and never believed.
use berth_model::effective::Effective;
use berth_model::exchange::RemovedImage;
use berth_model::ids::{Attempt, JobId, StepId, StepKey, Uid};
use berth_model::launch::{StepExit, Usage};
use berth_model::spec::TermSize;
use berth_model::state::ExitStatus;
use berth_model::time::Time;
use berth_stream::{
    ALL_TASKS, Attach, Decoder, Frame, FrameError, ImagesQuery, KeptContainer, KeptQuery, KeptState,
    MAX_PAYLOAD, Resume, Watch, WholeQuery, blocking, encode, fence_frames,
};
use proptest::prelude::*;

fn status() -> impl Strategy<Value = ExitStatus> {
    (any::<u8>(), any::<u8>()).prop_map(|(code, signal)| ExitStatus { code, signal })
}

fn frame() -> impl Strategy<Value = Frame> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
    prop_oneof![
        (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(j, a, s)| Frame::Attach(Attach {
            job: JobId(j),
            attempt: Attempt(a),
            step: StepId::Number(s),
            resume: (j % 2 == 0).then_some(Resume { client: u64::from(a), heard: u64::MAX }),
        })),
        any::<u64>().prop_map(Frame::Resumed),
        any::<u64>().prop_map(Frame::Heard),
        Just(Frame::Controller),
        Just(Frame::Accepted),
        ".{0,40}".prop_map(Frame::Refused),
        (any::<u32>(), bytes()).prop_map(|(task, data)| Frame::Stdin { task, data }),
        any::<u32>().prop_map(|task| Frame::StdinEof { task }),
        (any::<u32>(), bytes()).prop_map(|(task, data)| Frame::Stdout { task, data }),
        (any::<u32>(), bytes()).prop_map(|(task, data)| Frame::Stderr { task, data }),
        Just(Frame::Started),
        (any::<u32>(), status()).prop_map(|(task, status)| Frame::TaskExit { task, status }),
        (status(), proptest::option::of(".{0,20}"), any::<bool>()).prop_map(|(status, launch_error, oom)| {
            Frame::StepExit(Box::new(StepExit {
                status,
                tasks: vec![(3, status)],
                oom,
                launch_error,
                ended_by: None,
                image: None,
                usage: Usage::default(),
                ended: Time(5),
            }))
        }),
        any::<i32>().prop_map(Frame::Signal),
        (any::<u16>(), any::<u16>()).prop_map(|(rows, cols)| Frame::Winch(TermSize { rows, cols })),
        ".{0,40}".prop_map(Frame::Message),
        Just(Frame::Detach),
        any::<u32>().prop_map(Frame::Credit),
        (any::<u32>(), any::<bool>(), bytes()).prop_map(|(number, last, data)| Frame::Fence {
            number,
            last,
            data
        }),
        (any::<u32>(), any::<bool>(), bytes()).prop_map(|(node, last, data)| Frame::Peer {
            node,
            last,
            data
        }),
        any::<u8>().prop_map(Frame::Aborted),
        Just(Frame::Begin),
        proptest::option::of(any::<u64>()).prop_map(Frame::Places),
        any::<u32>().prop_map(|channel| Frame::DisplayOpen { channel }),
        (any::<u32>(), bytes()).prop_map(|(channel, data)| Frame::DisplayData { channel, data }),
        any::<(u32, u32)>().prop_map(|(channel, bytes)| Frame::DisplayCredit { channel, bytes }),
        any::<u32>().prop_map(|channel| Frame::DisplayEnd { channel }),
        (any::<u32>(), proptest::option::of(any::<u32>()), any::<bool>()).prop_map(|(n, task, terminal)| {
            let step = Attach::from(StepKey { job: JobId(n), attempt: Attempt(n), step: StepId::Number(n) });
            Frame::Watch(Watch { step, stdout: task, stderr: None, terminal })
        }),
        ".{0,40}".prop_map(|name| Frame::Kept(KeptQuery::Remove { name, uid: None })),
        (".{0,40}", any::<u32>()).prop_map(|(name, n)| Frame::KeptContainer(Box::new(KeptContainer {
            name: name.clone(),
            uid: Uid(n),
            job: Some(JobId(n)),
            image: name,
            created: Time(5),
            used: Time(6),
            state: KeptState::Running(JobId(n)),
        }))),
        (any::<u32>(), any::<u32>()).prop_map(|(j, a)| Frame::Describe(Attach {
            job: JobId(j),
            attempt: Attempt(a),
            step: StepId::Batch,
            resume: None,
        })),
        ".{0,40}".prop_map(|digest| Frame::Images(ImagesQuery::Remove(digest))),
        (any::<Option<u64>>(), any::<bool>(), proptest::collection::vec(".{0,40}", 0..3)).prop_map(
            |(older_than, all, keep)| Frame::Images(ImagesQuery::Whole(WholeQuery::Prune {
                older_than,
                all,
                keep
            }))
        ),
        (".{0,20}", ".{0,20}").prop_map(|(digest, owner)| {
            let image = RemovedImage { digest, name: String::new(), owners: vec![owner] };
            Frame::Images(ImagesQuery::Whole(WholeQuery::Removed(vec![image])))
        }),
        bytes().prop_map(Frame::Part),
        (".{0,20}", any::<u64>()).prop_map(|(node, number)| Frame::Description(Box::new(Effective {
            node,
            namespaces: vec![("user".into(), number)],
            ..Effective::default()
        }))),
    ]
}

proptest! {
    #[test]
    fn frames_survive_in_any_pieces(frames in proptest::collection::vec(frame(), 1..8), piece in 1usize..40) {
        let mut wire = Vec::new();
        for f in &frames {
            encode(f, &mut wire).unwrap();
        }
        let mut decoder = Decoder::default();
        let mut got = Vec::new();
        for bytes in wire.chunks(piece) {
            decoder.feed(bytes);
            while let Some(f) = decoder.next_frame().unwrap() {
                got.push(f);
            }
        }
        prop_assert!(decoder.is_empty());
        prop_assert_eq!(&got, &frames);

        let mut reader = &wire[..];
        for f in &frames {
            let got = blocking::read_frame(&mut reader).unwrap();
            prop_assert_eq!(got.as_ref(), Some(f));
        }
        prop_assert!(blocking::read_frame(&mut reader).unwrap().is_none());
    }

    #[test]
    fn garbage_never_panics_nor_grows(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut decoder = Decoder::default();
        decoder.feed(&bytes);
        while let Ok(Some(_)) = decoder.next_frame() {}
        let mut reader = &bytes[..];
        while let Ok(Some(_)) = blocking::read_frame(&mut reader) {}
    }
}

#[test]
fn a_reader_takes_no_byte_of_the_next_frame() {
    let mut wire = Vec::new();
    encode(&Frame::Controller, &mut wire).unwrap();
    wire.extend_from_slice(b"PRI * HTTP/2.0");
    let mut reader = &wire[..];
    assert_eq!(blocking::read_frame(&mut reader).unwrap(), Some(Frame::Controller));
    assert_eq!(reader, b"PRI * HTTP/2.0");
}

#[test]
fn an_announced_length_beyond_the_bound_is_refused_before_anything_is_held() {
    let mut wire = vec![7u8, 0, 0, 0, 0];
    wire.extend_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(blocking::read_frame(&mut &wire[..]), Err(FrameError::TooLong(_))));
    let mut decoder = Decoder::default();
    decoder.feed(&wire);
    assert!(matches!(decoder.next_frame(), Err(FrameError::TooLong(_))));
}

#[test]
fn a_connection_that_ends_within_a_frame_is_told_from_a_clean_end() {
    let mut wire = Vec::new();
    encode(&Frame::Stdout { task: 0, data: vec![1, 2, 3] }, &mut wire).unwrap();
    for cut in 1..wire.len() {
        assert!(
            matches!(blocking::read_frame(&mut &wire[..cut]), Err(FrameError::Truncated)),
            "cut at {cut}"
        );
    }
}

#[test]
fn too_much_data_is_refused_and_long_texts_are_cut() {
    let mut out = Vec::new();
    let data = vec![0; MAX_PAYLOAD + 1];
    assert!(encode(&Frame::Stdin { task: ALL_TASKS, data }, &mut out).is_err());
    assert!(out.is_empty(), "nothing of a refused frame is sent");
    encode(&Frame::Message("ä".repeat(MAX_PAYLOAD)), &mut out).unwrap();
    let Some(Frame::Message(text)) = blocking::read_frame(&mut &out[..]).unwrap() else {
        panic!("no message")
    };
    assert_eq!(text.len(), MAX_PAYLOAD);
    assert!(text.chars().all(|c| c == 'ä'));
}

#[test]
fn the_exit_of_a_step_with_very_many_tasks_still_fits() {
    let status = ExitStatus { code: 1, signal: 0 };
    let exit = StepExit {
        status,
        tasks: (0..20_000).map(|t| (t, status)).collect(),
        oom: false,
        launch_error: Some("\u{1}".repeat(MAX_PAYLOAD)),
        ended_by: None,
        image: None,
        usage: Usage::default(),
        ended: Time(0),
    };
    let mut out = Vec::new();
    encode(&Frame::StepExit(Box::new(exit)), &mut out).unwrap();
    let Some(Frame::StepExit(got)) = blocking::read_frame(&mut &out[..]).unwrap() else { panic!("no exit") };
    assert_eq!(got.status, status);
    assert!(got.tasks.is_empty());
}

#[cfg(feature = "tokio")]
#[test]
fn the_async_codec_speaks_the_same() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut a, mut b) = tokio::io::duplex(7);
        let sent = Frame::Stdout { task: 2, data: vec![9; 1000] };
        let copy = sent.clone();
        let writer = tokio::spawn(async move {
            berth_stream::asynchronous::write_frame(&mut a, &copy).await.unwrap();
        });
        assert_eq!(berth_stream::asynchronous::read_frame(&mut b).await.unwrap(), Some(sent));
        writer.await.unwrap();
        assert_eq!(berth_stream::asynchronous::read_frame(&mut b).await.unwrap(), None);
    });
}

proptest! {
    #[test]
    fn what_is_told_at_a_fence_comes_whole_in_pieces_that_fit(length in 0usize..5 * MAX_PAYLOAD, number: u32) {
        let bytes: Vec<u8> = (0..=250).cycle().take(length).collect();
        let mut decoder = Decoder::default();
        for frame in fence_frames(number, &bytes) {
            let mut wire = Vec::new();
            encode(&frame, &mut wire).unwrap();
            decoder.feed(&wire);
        }
        let (mut told, mut over) = (Vec::new(), false);
        while let Some(frame) = decoder.next_frame().unwrap() {
            let Frame::Fence { number: of, last, data } = frame else { panic!("{frame:?}") };
            prop_assert_eq!((of, over), (number, false));
            told.extend(data);
            over = last;
        }
        prop_assert_eq!((told, over), (bytes, true));
    }
}
