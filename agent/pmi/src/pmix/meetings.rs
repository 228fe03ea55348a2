//! How what tasks tell reaches those of other nodes. A fence of all goes over the step's own exchange, where the nodes meet one
//! after another; one of some ranks is gathered by the first of their nodes; what one rank told is fetched from its node.
//!
//! Bytes between nodes may be lost where a connection breaks. Whoever waits asks again ([`Meetings::again`]), and is answered
//! again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// `PMIX_ERR_NOT_FOUND`.
const NOT_FOUND: i32 = -46;
/// How many ended fences of the same ranks are kept for nodes that did not hear of their end.
const KEPT: u32 = 2;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Act {
    /// The library waits for this no longer.
    Answer(u64, Result<Vec<u8>, i32>),
    /// This node is at a fence of all.
    Fence(u32, Vec<u8>),
    /// Bytes for the process of another node.
    Tell(u32, Vec<u8>),
    /// Another node wants what a task of this one told: its rank, and by which number [`Meetings::fetched`] is told of it.
    Fetch(u64, u32),
}

/// Which fence of some ranks: who they are, in order, and the how manieth of theirs.
type Which = (Vec<u32>, u32);

#[derive(Debug, Default)]
struct Gathered {
    /// Of the library here.
    ticket: Option<u64>,
    /// What the nodes told, or this one where it does not gather.
    parts: BTreeMap<usize, Vec<u8>>,
}

/// What is between this node's tasks and those of others.
#[derive(Debug)]
pub struct Meetings {
    here: usize,
    nodes: usize,
    /// The node of each rank.
    places: BTreeMap<u32, usize>,
    fences: u32,
    /// Fences of all: the first is under way, the others wait for it.
    whole: VecDeque<(u32, u64, Vec<u8>)>,
    counts: BTreeMap<Vec<u32>, u32>,
    some: BTreeMap<Which, Gathered>,
    ended: BTreeMap<Which, Vec<u8>>,
    /// What is wanted of other nodes: of which, which rank, for which ticket.
    wanted: BTreeMap<u64, (usize, u32, u64)>,
    /// What others want of this one: who, under which number of theirs.
    serving: BTreeMap<u64, (usize, u64)>,
    next: u64,
}

impl Meetings {
    /// Of a step whose ranks these are, of each node, and this node's place.
    pub fn new(here: usize, tasks: &[Vec<u32>]) -> Meetings {
        let places = tasks.iter().enumerate().flat_map(|(node, ranks)| ranks.iter().map(move |r| (*r, node)));
        Meetings {
            here,
            nodes: tasks.iter().filter(|ranks| !ranks.is_empty()).count(),
            places: places.collect(),
            fences: 0,
            whole: VecDeque::new(),
            counts: BTreeMap::new(),
            some: BTreeMap::new(),
            ended: BTreeMap::new(),
            wanted: BTreeMap::new(),
            serving: BTreeMap::new(),
            next: 0,
        }
    }

    /// This node's tasks are at a fence; no members stands for all ranks.
    pub fn enter(&mut self, ticket: u64, members: Vec<u32>, data: Vec<u8>) -> Vec<Act> {
        let members: Vec<u32> = members.into_iter().collect::<BTreeSet<u32>>().into_iter().collect();
        if members.is_empty() || members.len() == self.places.len() {
            return self.enter_whole(ticket, data);
        }
        let Some(nodes) = self.nodes_of(&members) else { return vec![Act::Answer(ticket, Err(NOT_FOUND))] };
        if nodes.len() == 1 {
            return vec![Act::Answer(ticket, Ok(data))];
        }
        let count = self.counts.entry(members.clone()).or_default();
        *count = count.wrapping_add(1);
        let which = (members, *count);
        let gatherer = nodes.first().copied().unwrap_or(self.here);
        let gathered = self.some.entry(which.clone()).or_default();
        gathered.ticket = Some(ticket);
        if gatherer == self.here {
            gathered.parts.insert(self.here, data);
            return self.gather(&which);
        }
        let told = Said::Part(which, data.clone());
        gathered.parts.insert(self.here, data);
        vec![told.to(gatherer)]
    }

    fn enter_whole(&mut self, ticket: u64, data: Vec<u8>) -> Vec<Act> {
        if self.nodes < 2 {
            return vec![Act::Answer(ticket, Ok(data))];
        }
        self.fences = self.fences.wrapping_add(1);
        self.whole.push_back((self.fences, ticket, data.clone()));
        if self.whole.len() == 1 { vec![Act::Fence(self.fences, data)] } else { Vec::new() }
    }

    /// What all nodes told at a fence of all.
    pub fn fenced(&mut self, number: u32, data: Vec<u8>) -> Vec<Act> {
        if self.whole.front().is_none_or(|(of, _, _)| *of != number) {
            return Vec::new();
        }
        let Some((_, ticket, _)) = self.whole.pop_front() else { return Vec::new() };
        let mut acts = vec![Act::Answer(ticket, Ok(data))];
        acts.extend(self.whole.front().map(|(number, _, data)| Act::Fence(*number, data.clone())));
        acts
    }

    /// A task of this node wants what another rank told.
    pub fn want(&mut self, ticket: u64, rank: u32) -> Vec<Act> {
        match self.places.get(&rank) {
            // The library knows its own.
            Some(node) if *node != self.here => {
                let (node, number) = (*node, self.number());
                self.wanted.insert(number, (node, rank, ticket));
                vec![Said::Want(number, rank).to(node)]
            }
            _ => vec![Act::Answer(ticket, Err(NOT_FOUND))],
        }
    }

    /// What a task of this node told, which another node wants.
    pub fn fetched(&mut self, number: u64, result: Result<Vec<u8>, i32>) -> Vec<Act> {
        let Some((node, theirs)) = self.serving.remove(&number) else { return Vec::new() };
        vec![Said::Have(theirs, result).to(node)]
    }

    /// What another node's process says.
    ///
    /// # Errors
    /// It is nothing that one says.
    pub fn hear(&mut self, from: usize, bytes: &[u8]) -> Result<Vec<Act>, String> {
        let wrong = || format!("what the PMIx server of node {from} of the step says is not understood");
        match Said::read(bytes).ok_or_else(wrong)? {
            Said::Part(which, data) => {
                let nodes = self.nodes_of(&which.0).ok_or_else(wrong)?;
                if nodes.first() != Some(&self.here) || !nodes.contains(&from) {
                    return Err(wrong());
                }
                if let Some(told) = self.ended.get(&which) {
                    return Ok(vec![Said::Whole(which, told.clone()).to(from)]);
                }
                let count = self.counts.get(&which.0).copied().unwrap_or_default();
                if which.1 <= count.saturating_sub(KEPT) {
                    return Ok(Vec::new());
                }
                self.some.entry(which.clone()).or_default().parts.insert(from, data);
                Ok(self.gather(&which))
            }
            Said::Whole(which, data) => {
                let gatherer = self.nodes_of(&which.0).and_then(|nodes| nodes.first().copied());
                if gatherer != Some(from) {
                    return Err(wrong());
                }
                // Told again, where it is not there.
                let ticket = self.some.remove(&which).and_then(|gathered| gathered.ticket);
                Ok(ticket.map(|ticket| Act::Answer(ticket, Ok(data))).into_iter().collect())
            }
            Said::Want(theirs, rank) => {
                if self.places.get(&rank) != Some(&self.here) {
                    return Err(wrong());
                }
                if self.serving.values().any(|asked| *asked == (from, theirs)) {
                    return Ok(Vec::new());
                }
                let number = self.number();
                self.serving.insert(number, (from, theirs));
                Ok(vec![Act::Fetch(number, rank)])
            }
            Said::Have(number, result) => match self.wanted.get(&number) {
                Some((node, _, ticket)) if *node == from => {
                    let ticket = *ticket;
                    self.wanted.remove(&number);
                    Ok(vec![Act::Answer(ticket, result)])
                }
                _ => Ok(Vec::new()),
            },
        }
    }

    /// What was told to this node, or came from it, may be lost: what is waited for there is asked for again.
    pub fn again(&self, node: Option<usize>) -> Vec<Act> {
        let at = |other: usize| node.is_none_or(|node| node == other);
        let wanted = self.wanted.iter().filter(|(_, (of, _, _))| at(*of));
        let mut acts: Vec<Act> =
            wanted.map(|(number, (of, rank, _))| Said::Want(*number, *rank).to(*of)).collect();
        for (which, gathered) in &self.some {
            let gatherer = self.nodes_of(&which.0).and_then(|nodes| nodes.first().copied());
            let Some(gatherer) = gatherer.filter(|g| *g != self.here && at(*g)) else { continue };
            if let Some(data) = gathered.parts.get(&self.here) {
                acts.push(Said::Part(which.clone(), data.clone()).to(gatherer));
            }
        }
        acts
    }

    /// Ends a fence of some ranks that this node gathers, when all have told.
    fn gather(&mut self, which: &Which) -> Vec<Act> {
        let Some(nodes) = self.nodes_of(&which.0) else { return Vec::new() };
        let Some(gathered) = self.some.get(which) else { return Vec::new() };
        if gathered.ticket.is_none() || !nodes.iter().all(|node| gathered.parts.contains_key(node)) {
            return Vec::new();
        }
        let Some(Gathered { ticket: Some(ticket), parts }) = self.some.remove(which) else {
            return Vec::new();
        };
        let told: Vec<u8> = parts.into_values().flatten().collect();
        let others = nodes.iter().filter(|node| **node != self.here);
        let mut acts: Vec<Act> =
            others.map(|node| Said::Whole(which.clone(), told.clone()).to(*node)).collect();
        self.ended.retain(|(members, number), _| *members != which.0 || number + KEPT > which.1);
        self.ended.insert(which.clone(), told.clone());
        acts.push(Act::Answer(ticket, Ok(told)));
        acts
    }

    /// The nodes of ranks, in order; `None` where one is nowhere.
    fn nodes_of(&self, members: &[u32]) -> Option<BTreeSet<usize>> {
        members.iter().map(|rank| self.places.get(rank).copied()).collect()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// What the processes of two nodes say to one another.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Part(Which, Vec<u8>),
    Whole(Which, Vec<u8>),
    Want(u64, u32),
    Have(u64, Result<Vec<u8>, i32>),
}

impl Said {
    fn to(&self, node: usize) -> Act {
        let mut out = Vec::new();
        match self {
            Said::Part((members, number), data) | Said::Whole((members, number), data) => {
                out.push(if matches!(self, Said::Part(..)) { 1 } else { 2 });
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(&u32::try_from(members.len()).unwrap_or(0).to_le_bytes());
                members.iter().for_each(|rank| out.extend_from_slice(&rank.to_le_bytes()));
                out.extend_from_slice(data);
            }
            Said::Want(number, rank) => {
                out.push(3);
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(&rank.to_le_bytes());
            }
            Said::Have(number, result) => {
                out.push(4);
                out.extend_from_slice(&number.to_le_bytes());
                let status = result.as_ref().err().copied().unwrap_or(0);
                out.extend_from_slice(&status.to_le_bytes());
                out.extend_from_slice(result.as_deref().unwrap_or_default());
            }
        }
        Act::Tell(u32::try_from(node).unwrap_or(u32::MAX), out)
    }

    fn read(bytes: &[u8]) -> Option<Said> {
        let (kind, rest) = bytes.split_first()?;
        match kind {
            1 | 2 => {
                let (number, rest) = word(rest)?;
                let (members, mut rest) = word(rest)?;
                let mut ranks = Vec::new();
                for _ in 0..members {
                    let (rank, after) = word(rest)?;
                    // In order, and each once: there is one way to say it.
                    if ranks.last().is_some_and(|last| *last >= rank) {
                        return None;
                    }
                    ranks.push(rank);
                    rest = after;
                }
                let which = (ranks, number);
                Some(if *kind == 1 {
                    Said::Part(which, rest.to_vec())
                } else {
                    Said::Whole(which, rest.to_vec())
                })
            }
            3 => {
                let (number, rest) = rest.split_first_chunk::<8>()?;
                let (rank, rest) = word(rest)?;
                rest.is_empty().then_some(Said::Want(u64::from_le_bytes(*number), rank))
            }
            4 => {
                let (number, rest) = rest.split_first_chunk::<8>()?;
                let (status, rest) = rest.split_first_chunk::<4>()?;
                let status = i32::from_le_bytes(*status);
                let result = if status == 0 { Ok(rest.to_vec()) } else { Err(status) };
                Some(Said::Have(u64::from_le_bytes(*number), result))
            }
            _ => None,
        }
    }
}

fn word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASKS: [&[u32]; 3] = [&[0, 3], &[1, 4], &[2]];

    /// A step on three nodes whose messages are carried by hand. `lost`: which told bytes get lost, once.
    struct Step {
        nodes: Vec<Meetings>,
        answers: Vec<(usize, u64, Result<Vec<u8>, i32>)>,
        lost: Option<(usize, usize)>,
    }

    impl Step {
        fn new() -> Step {
            let tasks: Vec<Vec<u32>> = TASKS.iter().map(|t| t.to_vec()).collect();
            let nodes = (0..3).map(|here| Meetings::new(here, &tasks)).collect();
            Step { nodes, answers: Vec::new(), lost: None }
        }

        fn act(&mut self, at: usize, acts: Vec<Act>) {
            for act in acts {
                match act {
                    Act::Answer(ticket, what) => self.answers.push((at, ticket, what)),
                    Act::Tell(to, bytes) => {
                        let to = to as usize;
                        if self.lost == Some((at, to)) {
                            self.lost = None;
                            continue;
                        }
                        let acts = self.nodes[to].hear(at, &bytes).unwrap();
                        self.act(to, acts);
                    }
                    Act::Fetch(number, rank) => {
                        let acts = self.nodes[at].fetched(number, Ok(format!("of {rank}").into_bytes()));
                        self.act(at, acts);
                    }
                    Act::Fence(..) => panic!("not of all"),
                }
            }
        }

        fn enter(&mut self, at: usize, ticket: u64, members: &[u32], data: &str) {
            let acts = self.nodes[at].enter(ticket, members.to_vec(), data.into());
            self.act(at, acts);
        }

        fn again(&mut self, at: usize, of: Option<usize>) {
            let acts = self.nodes[at].again(of);
            self.act(at, acts);
        }
    }

    #[test]
    fn a_fence_of_all_goes_by_the_exchange_one_after_another() {
        let tasks: Vec<Vec<u32>> = TASKS.iter().map(|t| t.to_vec()).collect();
        let mut node = Meetings::new(1, &tasks);
        assert_eq!(node.enter(7, vec![], b"a".to_vec()), [Act::Fence(1, b"a".to_vec())]);
        assert_eq!(node.enter(8, vec![4, 3, 2, 1, 0], b"b".to_vec()), []);
        assert_eq!(node.fenced(2, vec![]), [], "not yet");
        let next = [Act::Answer(7, Ok(b"xyz".to_vec())), Act::Fence(2, b"b".to_vec())];
        assert_eq!(node.fenced(1, b"xyz".to_vec()), next);
        assert_eq!(node.fenced(2, vec![]), [Act::Answer(8, Ok(vec![]))]);
        let mut alone = Meetings::new(0, &[vec![0, 1], vec![]]);
        assert_eq!(alone.enter(1, vec![], b"a".to_vec()), [Act::Answer(1, Ok(b"a".to_vec()))]);
    }

    #[test]
    fn a_fence_of_some_ranks_is_gathered_by_their_first_node() {
        let mut step = Step::new();
        step.enter(0, 1, &[0, 3], "own");
        assert_eq!(step.answers, [(0, 1, Ok(b"own".to_vec()))], "one node is alone");
        step.answers.clear();
        for round in 1..4 {
            step.enter(2, round, &[2, 4], "z");
            assert_eq!(step.answers, []);
            step.enter(1, round, &[4, 2], "y");
            assert_eq!(step.answers, [(2, round, Ok(b"yz".to_vec())), (1, round, Ok(b"yz".to_vec()))]);
            step.answers.clear();
        }
        step.enter(1, 9, &[4, 77], "");
        assert_eq!(step.answers, [(1, 9, Err(NOT_FOUND))]);
    }

    #[test]
    fn what_gets_lost_is_asked_for_again() {
        for lost in [(2, 1), (1, 2)] {
            let mut step = Step { lost: Some(lost), ..Step::new() };
            step.enter(2, 1, &[2, 4], "z");
            step.enter(1, 1, &[2, 4], "y");
            assert!(step.answers.iter().all(|(at, _, _)| *at != 2), "{:?}", step.answers);
            step.again(2, Some(0));
            assert!(step.answers.iter().all(|(at, _, _)| *at != 2), "of another node");
            step.again(2, Some(1));
            step.again(2, None);
            step.answers.sort_by_key(|(at, _, _)| *at);
            assert_eq!(step.answers, [(1, 1, Ok(b"yz".to_vec())), (2, 1, Ok(b"yz".to_vec()))]);
        }
        for lost in [(0, 2), (2, 0)] {
            let mut step = Step { lost: Some(lost), ..Step::new() };
            let acts = step.nodes[0].want(5, 2);
            step.act(0, acts);
            assert_eq!(step.answers, []);
            step.again(0, None);
            step.again(0, None);
            assert_eq!(step.answers, [(0, 5, Ok(b"of 2".to_vec()))]);
        }
    }

    #[test]
    fn what_no_process_says_is_refused() {
        let mut step = Step::new();
        assert_eq!(step.nodes[0].want(1, 0), [Act::Answer(1, Err(NOT_FOUND))], "the library knows its own");
        let bytes = |said: Said| match said.to(0) {
            Act::Tell(_, bytes) => bytes,
            other => panic!("{other:?}"),
        };
        for wrong in [
            vec![],
            vec![9, 9],
            vec![1, 0, 0, 0, 0, 255, 255, 255, 255],
            bytes(Said::Want(1, 1)),
            bytes(Said::Part((vec![1, 2], 1), vec![])),
            bytes(Said::Part((vec![3, 0], 1), vec![])),
            bytes(Said::Whole((vec![0, 1], 1), vec![])),
        ] {
            assert!(step.nodes[0].hear(2, &wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(step.nodes[0].hear(1, &bytes(Said::Have(77, Ok(vec![])))), Ok(vec![]));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, from in 0usize..4) {
            let mut step = Step::new();
            let _ = step.nodes[0].hear(from, &bytes);
        }
    }
}
