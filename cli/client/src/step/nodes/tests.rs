//! The connections of a step, against nodes that take nothing, leave, come back or refuse.

use super::*;
use crate::step::queue::PEER_WINDOW;
use crate::step::reach::OTHERS;
use crate::step::reach::tests::{in_runtime, limit};
use berth_model::ids::NodeName;
use berth_stream::FENCE_PART;
use berth_stream::asynchronous::read_frame;
use tokio::io::AsyncReadExt;

/// Where it shows only when the step is there, none of its nodes is left to wait for a connection that cannot come.
#[test]
fn a_step_over_more_nodes_than_open_files_is_given_up_whole() {
    in_runtime(async {
        limit(OTHERS + 3);
        let layout = |count: u32| Layout {
            nodes: (0..count).map(|n| NodeName(format!("n{n}"))).collect(),
            tasks: (0..count).map(|n| vec![n]).collect(),
            cpus: vec![1; count as usize],
        };
        let (events, _held) = mpsc::channel(1);
        let connect = |count| {
            Nodes::connect(
                "/nowhere/agent.sock".into(),
                vec![Frame::Controller],
                layout(count),
                events.clone(),
            )
        };
        let few = connect(3);
        assert!(few.refusal().is_none() && !few.have_room(ALL_TASKS) && few.any_trying());
        few.abort();
        let many = connect(4);
        let (at, why) = many.refusal().unwrap();
        assert!(at == 0 && why.contains("ulimit -Hn"), "{why}");
        assert!(!many.any_trying() && many.have_room(ALL_TASKS));
    });
}

/// The connections of a step over two nodes, of one task each, and the nodes' ends of them.
fn two(resumes: bool) -> (Nodes, [tokio::net::UnixStream; 2], mpsc::Receiver<(usize, Event)>) {
    let layout =
        Layout { nodes: vec!["n0".into(), "n1".into()], tasks: vec![vec![0], vec![1]], cpus: vec![1, 1] };
    let (events, held) = mpsc::channel(1);
    let mut nodes = Nodes::connect("/nowhere/agent.sock".into(), vec![Frame::Controller], layout, events);
    let mut open = |at| {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        nodes.opened(at, ours.into_split().1, resumes.then_some(0));
        theirs
    };
    let theirs = [open(0), open(1)];
    (nodes, theirs, held)
}

/// The next frames of a node, while what is for it is written.
async fn told(nodes: &mut Nodes, theirs: &mut tokio::net::UnixStream, count: usize) -> Vec<Frame> {
    let mut frames = Vec::new();
    for _ in 0..count {
        let mut read = std::pin::pin!(read_frame(&mut *theirs));
        frames.push(loop {
            tokio::select! {
                frame = &mut read => break frame.unwrap().unwrap(),
                () = nodes.flush(), if nodes.is_waiting() => {}
            }
        });
    }
    frames
}

fn piece(byte: u8) -> Frame {
    Frame::Fence { number: 1, last: false, data: vec![byte; FENCE_PART] }
}

#[test]
fn a_node_that_takes_nothing_holds_up_no_other_and_loses_nothing() {
    in_runtime(async {
        for resumes in [false, true] {
            let (mut nodes, [mut stopped, mut well], _held) = two(resumes);
            // As much as a fence may have. The other node takes it meanwhile.
            let pieces = 64 * 16;
            for n in 0..pieces {
                nodes.send(To::All, &piece(u8::try_from(n % 251).unwrap()));
                let frames = told(&mut nodes, &mut well, 1).await;
                assert_eq!(frames, [piece(u8::try_from(n % 251).unwrap())]);
            }
            nodes.send(To::All, &Frame::Signal(15));
            assert_eq!(told(&mut nodes, &mut well, 1).await, [Frame::Signal(15)]);
            assert!(nodes.is_waiting() && !nodes.refuses(0));
            let frames = told(&mut nodes, &mut stopped, pieces + 1).await;
            for (n, frame) in frames.iter().take(pieces).enumerate() {
                assert!(*frame == piece(u8::try_from(n % 251).unwrap()), "{n}");
            }
            assert_eq!(frames.last(), Some(&Frame::Signal(15)));
            assert!(!nodes.is_waiting());
        }
    });
}

/// What was not taken whole comes whole on the next connection.
#[test]
fn what_a_connection_did_not_take_is_for_the_next_one() {
    in_runtime(async {
        let (mut nodes, [mut lost, _well], _held) = two(false);
        for n in 0..40 {
            nodes.send(To::Node(0), &piece(n));
        }
        assert_eq!(told(&mut nodes, &mut lost, 1).await, [piece(0)]);
        while tokio::time::timeout(Duration::ZERO, nodes.flush()).await.is_ok() {}
        drop(lost);
        nodes.closed(0);
        nodes.send(To::Node(0), &Frame::Signal(2));
        let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
        nodes.opened(0, ours.into_split().1, None);
        let Frame::Fence { data, .. } = told(&mut nodes, &mut theirs, 1).await.remove(0) else { panic!() };
        let first = data[0];
        assert!(first > 0 && first < 40, "{first}");
        for n in first + 1..40 {
            assert_eq!(told(&mut nodes, &mut theirs, 1).await, [piece(n)]);
        }
        assert_eq!(told(&mut nodes, &mut theirs, 1).await, [Frame::Signal(2)]);
    });
}

#[test]
fn whoever_speaks_to_a_node_that_takes_nothing_waits_and_nobody_else() {
    in_runtime(async {
        let (mut nodes, [mut stopped, _well], _held) = two(true);
        let rooms = nodes.rooms();
        let data = vec![1; FENCE_PART];
        let mut sent = 0;
        let takes = |to| {
            let rooms = rooms.clone();
            async move { tokio::time::timeout(Duration::ZERO, rooms.take(to, FENCE_PART)).await.is_ok() }
        };
        while takes(0).await {
            nodes.send(To::Node(0), &Frame::Peer { node: 1, last: true, data: data.clone() });
            sent += 1;
            assert!(sent < 1000, "without bound");
        }
        assert!(sent >= PEER_WINDOW / FENCE_PART && takes(1).await);
        told(&mut nodes, &mut stopped, sent).await;
        assert!(!nodes.is_waiting() && takes(0).await, "it took all");
        while takes(0).await {}
        nodes.let_go();
        assert!(takes(0).await, "a step that ends waits for no room");
    });
}

#[test]
fn a_node_that_takes_nothing_of_a_display_is_given_up_and_holds_nothing_up() {
    in_runtime(async {
        let (mut nodes, [_silent, mut well], _held) = two(false);
        let frame = Frame::DisplayData { channel: 1, data: vec![0; MAX_PAYLOAD / 2] };
        let mut sent = 0;
        while !nodes.refuses(0) {
            nodes.send(To::Node(0), &frame);
            sent += 1;
            assert!(sent < 3000, "without bound");
        }
        assert!(sent > 1000, "an honest one has so much on its way");
        assert!(!nodes.is_open(0) && !nodes.is_waiting(), "nothing of it stays");
        // It is told nothing more, and holds up nothing that is for others.
        nodes.send(To::Node(0), &frame);
        nodes.send(To::All, &Frame::Signal(15));
        assert_eq!(told(&mut nodes, &mut well, 1).await, [Frame::Signal(15)]);
        assert_eq!(nodes.refusal(), None, "the other one goes on");
        nodes.refused(1, "no".into());
        let (at, why) = nodes.refusal().unwrap();
        assert!(at == 0 && why.contains("--x11"), "{at}: {why}");
    });
}

#[test]
fn a_node_is_asked_after_until_its_tasks_run_whatever_connection_there_is() {
    in_runtime(async {
        let (mut nodes, [lost, _well], _held) = two(true);
        assert_eq!(nodes.unheard(), [0, 1], "a machine that hangs keeps its connections");
        assert!(!nodes.any_out_of_reach() && nodes.never_met().is_empty());
        drop(lost);
        nodes.closed(0);
        assert_eq!(nodes.unheard(), [0, 1]);
        assert!(nodes.any_out_of_reach() && nodes.was_met(0) && nodes.never_met().is_empty());
        let (ours, _theirs) = tokio::net::UnixStream::pair().unwrap();
        nodes.opened(0, ours.into_split().1, Some(0));
        assert!(!nodes.any_out_of_reach(), "it is back");
        nodes.started(0);
        assert_eq!(nodes.unheard(), [1]);
        nodes.closed(0);
        assert_eq!(nodes.unheard(), [1], "its tasks run, whatever becomes of the connection");
        assert!(!nodes.any_out_of_reach());
        nodes.refused(1, "no".into());
        assert!(nodes.unheard().is_empty(), "it has answered");
    });
}

#[test]
fn nobody_asks_after_a_part_that_is_over() {
    in_runtime(async {
        let (mut nodes, _theirs, _held) = two(true);
        nodes.closed(1);
        for at in [0, 1] {
            nodes.ended(at, crate::step::hung::given_up(true));
        }
        assert!(nodes.unheard().is_empty() && !nodes.any_out_of_reach());
    });
}

#[test]
fn parts_are_counted_as_they_change() {
    in_runtime(async {
        let layout = Layout {
            nodes: ["n0", "n1"].map(NodeName::from).to_vec(),
            tasks: vec![vec![0], vec![1]],
            cpus: vec![1, 1],
        };
        let (events, _held) = mpsc::channel(1);
        let mut nodes = Nodes::connect("/nowhere/agent.sock".into(), vec![Frame::Controller], layout, events);
        for at in 0..2 {
            assert!(!nodes.have_room(ALL_TASKS));
            let (ours, mut other) = tokio::net::UnixStream::pair().unwrap();
            nodes.opened(at, ours.into_split().1, None);
            tokio::spawn(async move {
                let mut sink = vec![0; MAX_PAYLOAD];
                while other.read(&mut sink).await.is_ok_and(|n| n > 0) {}
            });
        }
        assert!(nodes.have_room(ALL_TASKS));
        let data = vec![0; MAX_PAYLOAD / 2];
        for _ in 0..STDIN_WINDOW / data.len() {
            nodes.send(To::Task(1), &Frame::Stdin { task: 1, data: data.clone() });
        }
        assert!(!nodes.have_room(ALL_TASKS) && !nodes.have_room(1) && nodes.have_room(0));
        nodes.credit(1, u32::try_from(STDIN_WINDOW).unwrap());
        assert!(nodes.have_room(ALL_TASKS));
        nodes.refused(0, "no".into());
        assert_eq!(nodes.refusal(), None, "the other one goes on");
        nodes.refused(1, "nor here".into());
        assert_eq!(nodes.refusal(), Some((0, "no")));
        assert!(!nodes.all_ended());
    });
}
