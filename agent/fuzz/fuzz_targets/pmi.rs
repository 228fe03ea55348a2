//! Throws what tasks might say at their node's PMI server, and what might come from other nodes: what it tells the others is
//! always a list of keys, a task whose conversation is over hears nothing more, and no answer goes to a task that is not there.
#![cfg_attr(fuzzing, no_main)]

use berth_pmi::{Effect, Limits, Server, Setup, Versions, count};
use libfuzzer_sys::fuzz_target;

const TASKS: usize = 3;

fuzz_target!(|input: (bool, Vec<(u8, bool, &[u8])>, &[u8])| {
    let (several, said, others) = input;
    let nodes = if several { vec![vec![0, 2, 4], vec![1, 3]] } else { vec![vec![0, 1, 2]] };
    let limits = Limits { keys: 4096, ..Limits::default() };
    let setup =
        Setup { name: "1.0".into(), node: 0, tasks: nodes, universe: 5, versions: Versions::Both, limits };
    let mut server = Server::new(&setup);
    let mut over = [false; TASKS];
    for (task, init, bytes) in said {
        let task = usize::from(task) % (TASKS + 1);
        let begin: &[u8] = if init { b"cmd=init pmi_version=2\n" } else { b"" };
        let mut effects: Vec<Effect> =
            [begin, bytes].into_iter().flat_map(|piece| server.read(task, piece)).collect();
        if let Some(Effect::Fence { number, keys }) = effects.last() {
            count(keys).unwrap();
            let number = *number;
            effects.extend(server.fenced(number, others).unwrap_or_default());
        }
        for effect in effects {
            match effect {
                Effect::Send { task, bytes } => {
                    assert!(!over[task], "{:?}", String::from_utf8_lossy(&bytes))
                }
                Effect::Fault { task, .. } | Effect::Abort { task, .. } => over[task] = true,
                Effect::Fence { .. } | Effect::Note { .. } => {}
            }
        }
        let _ = server.stuck();
    }
});
