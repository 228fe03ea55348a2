//! Whole conversations of tasks with their nodes' servers, honest ones and others.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed helper is a failed test
use berth_pmi::{Effect, KEY_MAX, Limits, Server, Setup, Stuck, VALUE_MAX, Versions, count};
use proptest::prelude::*;

fn servers(tasks: &[&[u32]]) -> Vec<Server> {
    let tasks: Vec<Vec<u32>> = tasks.iter().map(|t| t.to_vec()).collect();
    (0..tasks.len()).map(|node| Server::new(&setup(node, &tasks))).collect()
}

fn setup(node: usize, tasks: &[Vec<u32>]) -> Setup {
    Setup {
        name: "7.0".into(),
        node,
        tasks: tasks.to_vec(),
        universe: 64,
        versions: Versions::Both,
        limits: Limits::default(),
    }
}

/// What a server says to a task that says this.
fn says(server: &mut Server, task: usize, text: &str) -> String {
    let mut said = String::new();
    for effect in server.read(task, text.as_bytes()) {
        match effect {
            Effect::Send { task: to, bytes } if to == task => said += std::str::from_utf8(&bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }
    said
}

fn two(body: &str) -> String {
    format!("{:>6}{body}", body.len())
}

const INIT: &str = "cmd=init pmi_version=1 pmi_subversion=1\n";
const INIT2: &str = "cmd=init pmi_version=2 pmi_subversion=0\n";

#[test]
fn ranks_of_two_nodes_find_what_the_others_put_after_the_fence_and_not_before() {
    let mut nodes = servers(&[&[0, 2], &[1, 3]]);
    for node in &mut nodes {
        for task in 0..2 {
            assert_eq!(says(node, task, INIT), "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0\n");
            assert_eq!(
                says(node, task, "cmd=get_maxes\n"),
                "cmd=maxes rc=0 kvsname_max=256 keylen_max=64 vallen_max=896\n"
            );
            assert_eq!(says(node, task, "cmd=get_my_kvsname\n"), "cmd=my_kvsname rc=0 kvsname=7.0\n");
            assert_eq!(says(node, task, "cmd=get_universe_size\n"), "cmd=universe_size rc=0 size=64\n");
            let mapping = says(node, task, "cmd=get kvsname=7.0 key=PMI_process_mapping\n");
            assert_eq!(mapping, "cmd=get_result rc=0 msg=success value=(vector,(0,2,1),(0,2,1))\n");
        }
    }
    let mut told = Vec::new();
    for (n, node) in nodes.iter_mut().enumerate() {
        for task in 0..2 {
            let rank = 2 * task + n;
            let put = format!("cmd=put kvsname=7.0 key=P{rank}-card value=addr#{rank}$\n");
            assert_eq!(says(node, task, &put), "cmd=put_result rc=0 msg=success\n");
        }
        let other = says(node, 0, &format!("cmd=get kvsname=7.0 key=P{}-card\n", 1 - n));
        assert_eq!(other, "cmd=get_result rc=-1 msg=key_not_found value=unknown\n");
        assert_eq!(node.read(0, b"cmd=barrier_in\n"), []);
        match node.read(1, b"cmd=barrier_in\n").as_slice() {
            [Effect::Fence { number: 1, keys }] => told.extend_from_slice(keys),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(count(&told), Ok(4));
    for node in &mut nodes {
        // Of a fence that is not this one nothing is heard.
        assert_eq!(node.fenced(2, &told), Ok(vec![]));
        let out: Vec<usize> = node
            .fenced(1, &told)
            .unwrap()
            .into_iter()
            .map(|effect| match effect {
                Effect::Send { task, bytes } if bytes == b"cmd=barrier_out rc=0\n" => task,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(out, [0, 1]);
        assert_eq!(node.fenced(1, &told), Ok(vec![]), "told twice");
        for rank in 0..4 {
            let got = says(node, 0, &format!("cmd=get kvsname=7.0 key=P{rank}-card\n"));
            assert_eq!(got, format!("cmd=get_result rc=0 msg=success value=addr#{rank}$\n"));
        }
    }
    // What was told once is not told again.
    let node = &mut nodes[0];
    assert_eq!(node.read(0, b"cmd=barrier_in\n"), []);
    assert_eq!(node.read(1, b"cmd=barrier_in\n"), [Effect::Fence { number: 2, keys: vec![] }]);
}

#[test]
fn a_task_runs_one_program_after_another_on_the_same_connection() {
    let mut nodes = servers(&[&[0]]);
    for _ in 0..2 {
        assert!(says(&mut nodes[0], 0, INIT).contains("rc=0"));
        assert_eq!(says(&mut nodes[0], 0, "cmd=barrier_in\n"), "cmd=barrier_out rc=0\n");
        assert_eq!(says(&mut nodes[0], 0, "cmd=finalize\n"), "cmd=finalize_ack rc=0\n");
    }
}

#[test]
fn pmi_2_has_its_own_words_and_a_waiter_gets_an_attribute_when_it_is_put() {
    let mut nodes = servers(&[&[0, 1]]);
    let node = &mut nodes[0];
    for task in 0..2 {
        assert_eq!(says(node, task, INIT2), "cmd=response_to_init pmi_version=2 pmi_subversion=0 rc=0\n");
        let full =
            says(node, task, &two(&format!("cmd=fullinit;pmijobid=7.0;pmirank={task};threaded=FALSE;")));
        assert_eq!(
            full[6..],
            format!(
                "cmd=fullinit-response;rc=0;pmi-version=2;pmi-subversion=0;rank={task};size=2;appnum=0;debugged=FALSE;pmiverbose=FALSE;"
            )
        );
        assert_eq!(full[..6].trim().parse(), Ok(full.len() - 6));
    }
    assert_eq!(
        says(node, 0, &two("cmd=job-getid;thrid=5;"))[6..],
        *"cmd=job-getid-response;thrid=5;rc=0;jobid=7.0;"
    );
    assert_eq!(says(node, 0, &two("cmd=kvs-put;key=a;value=x;;y=z;"))[6..], *"cmd=kvs-put-response;rc=0;");
    assert_eq!(
        says(node, 1, &two("cmd=kvs-get;jobid=7.0;srcid=0;key=a;"))[6..],
        *"cmd=kvs-get-response;rc=0;found=TRUE;value=x;;y=z;"
    );
    assert_eq!(
        says(node, 1, &two("cmd=kvs-get;jobid=8.0;key=a;"))[6..],
        *"cmd=kvs-get-response;rc=0;found=FALSE;"
    );
    let job = says(node, 1, &two("cmd=info-getjobattr;key=PMI_process_mapping;"));
    assert!(job.contains("found=TRUE;value=(vector,(0,1,2));"), "{job}");
    // A waiter is answered by the task that puts.
    assert!(says(node, 0, &two("cmd=info-getnodeattr;key=shm;wait=FALSE;")).contains("found=FALSE"));
    assert_eq!(node.read(0, two("cmd=info-getnodeattr;thrid=9;key=shm;wait=TRUE;").as_bytes()), []);
    let put = node.read(1, two("cmd=info-putnodeattr;key=shm;value=/s;").as_bytes());
    let answer = two("cmd=info-getnodeattr-response;thrid=9;rc=0;found=TRUE;value=/s;").into_bytes();
    assert_eq!(put.last(), Some(&Effect::Send { task: 0, bytes: answer }));
    // Both versions in one step, and the fence is the same one.
    assert_eq!(node.read(0, two("cmd=kvs-fence;").as_bytes()), []);
    assert_eq!(node.read(1, two("cmd=kvs-fence;").as_bytes()).len(), 2);
}

#[test]
fn what_is_not_supported_is_refused_by_name_and_told_once() {
    let mut nodes = servers(&[&[0, 1]]);
    let node = &mut nodes[0];
    says(node, 0, INIT);
    let spawn = b"mcmd=spawn\nnprocs=1\nexecname=x\ntotspawns=1\nspawnssofar=1\nendcmd\n";
    match node.read(0, spawn).as_slice() {
        [Effect::Send { bytes, .. }, Effect::Note { task: 0, text }] => {
            assert_eq!(bytes, b"cmd=spawn_result rc=-1 msg=spawn_is_not_supported\n");
            assert!(text.contains("MPI_Comm_spawn is not supported"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(node.read(0, spawn).len(), 1, "told once");
    says(node, 1, INIT2);
    assert_eq!(node.read(1, two("cmd=ring;count=1;").as_bytes()).len(), 2);
}

#[test]
fn an_abort_carries_its_code_and_is_never_a_success() {
    for (said, code) in
        [("exitcode=7", 7), ("exitcode=256", 1), ("exitcode=0", 1), ("exitcode=-1", 255), ("", 1)]
    {
        let mut nodes = servers(&[&[0, 1]]);
        says(&mut nodes[0], 1, INIT);
        let effects = nodes[0].read(1, format!("cmd=abort {said}\n").as_bytes());
        assert_eq!(effects, [Effect::Abort { task: 1, code, message: String::new() }], "{said}");
    }
}

#[test]
fn a_fence_that_cannot_end_is_named() {
    let mut nodes = servers(&[&[0, 1, 2]]);
    let node = &mut nodes[0];
    says(node, 0, INIT);
    node.gone(2);
    assert_eq!(node.stuck(), None, "nobody waits");
    assert_eq!(node.read(0, b"cmd=barrier_in\n"), []);
    assert_eq!(node.stuck(), Some(Stuck { waiting: vec![0], gone: vec![2] }));
}

/// The one fault among the effects.
fn fault(effects: &[Effect]) -> String {
    match effects {
        [Effect::Fault { why, .. }] => why.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_wrong_word_ends_the_conversation_with_the_task_that_said_it_alone() {
    let mut nodes = servers(&[&[0, 1, 2, 3, 4]]);
    let node = &mut nodes[0];
    assert!(fault(&node.read(0, b"GET / HTTP/1.1\n")).contains("no name=value"));
    assert_eq!(node.read(0, INIT.as_bytes()), [], "it is over");
    assert!(fault(&node.read(1, b"cmd=put key=a value=b\n")).contains("before cmd=init"));
    assert!(fault(&node.read(2, b"cmd=init pmi_version=9\n")).contains("neither 1 nor 2"));
    says(node, 3, INIT);
    assert!(fault(&node.read(3, b"cmd=frobnicate\x1b[2J\n")).contains("cmd=frobnicate?[2J is nothing"));
    assert!(says(node, 4, INIT).contains("rc=0"), "the others go on");
    assert_eq!(node.read(9, INIT.as_bytes()), [], "no such task");
    let tasks = [vec![0, 1]];
    let mut one = Server::new(&Setup { versions: Versions::One, ..setup(0, &tasks) });
    assert!(fault(&one.read(0, INIT2.as_bytes())).contains("--mpi=pmi2"));
}

#[test]
fn keys_beyond_what_is_held_are_refused_and_the_rest_stays() {
    let tasks = [vec![0], vec![1]];
    let limits = Limits { keys: 10_000, ..Limits::default() };
    let mut node = Server::new(&Setup { limits, ..setup(0, &tasks) });
    says(&mut node, 0, INIT);
    let value = "v".repeat(VALUE_MAX);
    let mut refused = 0;
    for n in 0..1000 {
        let effects = node.read(0, format!("cmd=put kvsname=7.0 key=k{n} value={value}\n").as_bytes());
        refused += effects
            .iter()
            .filter(|e| matches!(e, Effect::Send { bytes, .. } if bytes.starts_with(b"cmd=put_result rc=-1 msg=no_room")))
            .count();
    }
    assert!((985..1000).contains(&refused), "{refused}");
    assert!(says(&mut node, 0, "cmd=get kvsname=7.0 key=k0\n").contains("rc=0"));
    for (key, value, why) in [
        ("k".repeat(KEY_MAX + 1), "v".to_string(), "key_too_long"),
        ("k".to_string(), "v".repeat(VALUE_MAX + 1), "value_too_long"),
    ] {
        let said = says(&mut node, 0, &format!("cmd=put kvsname=7.0 key={key} value={value}\n"));
        assert!(said.contains(why), "{said}");
    }
    // Neither do other nodes make it hold more, and what they send is not believed.
    match node.read(0, b"cmd=barrier_in\n").as_slice() {
        [Effect::Fence { number: 1, .. }] => {}
        other => panic!("{other:?}"),
    }
    assert!(node.fenced(1, &[9, 0, 1, 0, b'x']).is_err());
    assert!(node.fenced(1, &[255, 0, 0, 0]).is_err());
    let many: Vec<u8> = (0..200u8).flat_map(|n| [3, 0, 0, 0, b'n', n / 16 + 65, n % 16 + 65]).collect();
    assert!(node.fenced(1, &many).unwrap_err().to_string().contains("more than 10000 bytes"));
}

proptest! {
    /// Whatever tasks say, in whatever pieces, nothing panics, and what is held stays within its bounds.
    #[test]
    fn no_task_breaks_its_server(
        lines in proptest::collection::vec((0usize..3, prop_oneof![
            Just(INIT.to_string()), Just(INIT2.to_string()), Just("cmd=barrier_in\n".to_string()),
            Just("cmd=finalize\n".to_string()), Just(two("cmd=kvs-fence;")), Just(two("cmd=finalize;")),
            Just(two("cmd=info-getnodeattr;key=a;wait=TRUE;")), Just(two("cmd=info-putnodeattr;key=a;value=b;")),
            "cmd=[a-z_]{1,12}( [a-z]{1,6}=[!-~]{0,9}){0,3}\n", "[ -~]{0,30}\n", "cmd=put key=[a-c] value=[a-z]{0,9}\n",
        ]), 0..60),
    ) {
        let mut nodes = servers(&[&[0, 2, 4], &[1, 3, 5]]);
        for (task, text) in lines {
            let (first, second) = text.as_bytes().split_at(text.len() / 2);
            for effect in [first, second].into_iter().flat_map(|piece| nodes[0].read(task, piece)).collect::<Vec<_>>() {
                if let Effect::Fence { number, keys } = effect {
                    prop_assert!(count(&keys).is_ok());
                    let out = nodes[0].fenced(number, &keys).unwrap();
                    prop_assert_eq!(out.len(), 3);
                }
            }
        }
    }
}
