//! What is between the server and one task.

use crate::wire::{Decoder, Wire, one, two};

/// Which versions a step is offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Versions {
    /// Both.
    #[default]
    Both,
    /// PMI-1 alone.
    One,
}

/// How far a conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was agreed: a line `cmd=init` is to come. So it is again after `finalize`: a task may run one MPI program
    /// after another.
    New,
    /// Under way.
    Open(Wire),
    /// Over. Nothing more is read.
    Over,
}

/// Who waits for an answer: the mark that the task gave its question (`thrid`, PMI-2).
pub type Mark = Option<Vec<u8>>;

/// A task's conversation.
#[derive(Debug)]
pub struct Session {
    pub rank: u32,
    pub phase: Phase,
    pub decoder: Decoder,
    /// It is at a fence.
    pub fence: Option<Mark>,
    /// Attributes of the node that it waits for.
    pub waits: Vec<(Vec<u8>, Mark)>,
    /// It said once that it is an MPI program.
    pub spoke: bool,
    /// The user was told what it cannot have.
    pub told: bool,
}

impl Session {
    pub fn new(rank: u32) -> Session {
        Session {
            rank,
            phase: Phase::New,
            decoder: Decoder::default(),
            fence: None,
            waits: Vec::new(),
            spoke: false,
            told: false,
        }
    }

    /// Nothing more is said by it or to it.
    pub fn end(&mut self) {
        self.phase = Phase::Over;
        self.decoder = Decoder::default();
        self.fence = None;
        self.waits = Vec::new();
    }

    /// The answer to the end of a fence.
    pub fn fence_over(&mut self) -> Option<Vec<u8>> {
        let mark = self.fence.take()?;
        match self.phase {
            Phase::Open(Wire::One) => Some(one("barrier_out", &[("rc", b"0")])),
            Phase::Open(Wire::Two) => Some(answer("kvs-fence", &mark, 0, &[])),
            Phase::New | Phase::Over => None,
        }
    }
}

/// A PMI-2 answer, with the mark of its question.
pub fn answer(command: &str, mark: &Mark, rc: i32, fields: &[(&str, &[u8])]) -> Vec<u8> {
    let rc = rc.to_string();
    let mut all: Vec<(&str, &[u8])> = Vec::new();
    if let Some(mark) = mark {
        all.push(("thrid", mark));
    }
    all.push(("rc", rc.as_bytes()));
    all.extend_from_slice(fields);
    two(&format!("{command}-response"), &all)
}
