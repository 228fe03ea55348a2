//! What the tasks of an MPI program tell one another at a fence: what each node's tasks told, joined, and told to all nodes.

use berth_stream::{Frame, fence_frames};

/// Most bytes of a fence, of all nodes. A supervisor takes no more.
const MOST: usize = 64 << 20;

/// What is to be sent, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To all nodes: they may go on.
    All(Vec<Frame>),
    /// To one, which did not hear it.
    One(Vec<Frame>),
}

/// A node's part of the fence under way.
#[derive(Clone, Debug, Default)]
struct Part {
    bytes: Vec<u8>,
    whole: bool,
}

/// The fences of a step.
#[derive(Debug)]
pub struct Exchange {
    parts: Vec<Part>,
    /// The last fence that ended, from 1, and what was told at it.
    over: (u32, Vec<u8>),
    /// Nodes' PMIx servers speak to one another.
    peers: bool,
    /// Bytes of the parts, and how many of them are whole: there may be thousands of parts.
    held: usize,
    whole: usize,
}

impl Exchange {
    /// None yet, of a step on so many nodes.
    pub fn new(nodes: usize) -> Exchange {
        let parts = vec![Part::default(); nodes];
        Exchange { parts, over: (0, Vec::new()), peers: false, held: 0, whole: 0 }
    }

    /// A piece of what a node tells.
    ///
    /// # Errors
    /// It is of no fence at which the step could be, or too much: the step cannot go on.
    pub fn hear(
        &mut self,
        at: usize,
        number: u32,
        last: bool,
        data: &[u8],
    ) -> Result<Option<Answer>, String> {
        if number == self.over.0 && number > 0 {
            // Told again by one that lost its connection before it heard the answer.
            return Ok(last.then(|| Answer::One(fence_frames(number, &self.over.1).collect())));
        }
        let next = self.over.0.wrapping_add(1);
        let Some(part) = self.parts.get_mut(at).filter(|part| number == next && !part.whole) else {
            return Err(format!("it is at PMI barrier {number}, and the step at {next}"));
        };
        if self.held + data.len() > MOST {
            return Err(format!("the keys of the step's tasks take more than {MOST} bytes"));
        }
        part.bytes.extend_from_slice(data);
        part.whole = last;
        self.held += data.len();
        self.whole += usize::from(last);
        if self.whole < self.parts.len() {
            return Ok(None);
        }
        let told: Vec<u8> = self.parts.iter().flat_map(|part| part.bytes.iter().copied()).collect();
        self.parts.fill(Part::default());
        (self.held, self.whole) = (0, 0);
        let frames = fence_frames(next, &told).collect();
        self.over = (next, told);
        Ok(Some(Answer::All(frames)))
    }

    /// What one node's PMIx server says to that of another: for which node, and the frame for it.
    ///
    /// # Errors
    /// There is no such node: the step cannot go on.
    pub fn carry(&mut self, at: usize, to: u32, last: bool, data: Vec<u8>) -> Result<(usize, Frame), String> {
        let node = u32::try_from(at).map_err(|e| e.to_string())?;
        let to = to as usize;
        if to == at || to >= self.parts.len() {
            return Err(format!("it speaks to node {to} of the step, which is none"));
        }
        self.peers = true;
        Ok((to, Frame::Peer { node, last, data }))
    }

    /// A node's connection is a new one: what it tells comes from the start. What all others are told of it, where some of
    /// what it said to them may be lost.
    pub fn reopened(&mut self, at: usize) -> Option<Frame> {
        if let Some(part) = self.parts.get_mut(at) {
            self.held -= part.bytes.len();
            self.whole -= usize::from(part.whole);
            *part = Part::default();
        }
        let node = u32::try_from(at).ok().filter(|_| self.peers)?;
        Some(Frame::Peer { node, last: true, data: Vec::new() })
    }

    /// The nodes that are at a fence at which others are missed, and those that are missed.
    pub fn waiting(&self) -> Option<(Vec<usize>, Vec<usize>)> {
        let (there, missed): (Vec<usize>, Vec<usize>) =
            (0..self.parts.len()).partition(|at| self.parts.get(*at).is_some_and(|part| part.whole));
        (!there.is_empty()).then_some((there, missed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_stream::FENCE_PART;

    fn frames(number: u32, bytes: &[u8]) -> Vec<Frame> {
        fence_frames(number, bytes).collect()
    }

    #[test]
    fn what_all_nodes_told_goes_to_all_of_them_when_the_last_has_told() {
        let mut step = Exchange::new(3);
        assert_eq!(step.waiting(), None);
        assert_eq!(step.hear(2, 1, true, b"c"), Ok(None));
        assert_eq!(step.hear(0, 1, false, b"a1"), Ok(None));
        assert_eq!(step.waiting(), Some((vec![2], vec![0, 1])));
        assert_eq!(step.hear(1, 1, true, b""), Ok(None));
        assert_eq!(step.hear(0, 1, true, b"a2"), Ok(Some(Answer::All(frames(1, b"a1a2c")))));
        assert_eq!(step.waiting(), None);
        // The next one begins with nothing.
        for at in 0..2 {
            assert_eq!(step.hear(at, 2, true, b""), Ok(None));
        }
        assert_eq!(step.hear(2, 2, true, b"z"), Ok(Some(Answer::All(frames(2, b"z")))));
    }

    #[test]
    fn a_node_that_comes_back_tells_from_the_start_or_hears_the_answer_again() {
        let mut step = Exchange::new(2);
        assert_eq!(step.hear(0, 1, false, b"half"), Ok(None));
        assert_eq!(step.reopened(0), None);
        assert_eq!(step.hear(0, 1, true, b"whole"), Ok(None));
        assert_eq!(step.reopened(0), None);
        assert_eq!(step.hear(0, 1, true, b"whole"), Ok(None));
        assert_eq!(step.hear(1, 1, true, b"!"), Ok(Some(Answer::All(frames(1, b"whole!")))));
        assert_eq!(step.reopened(0), None);
        assert_eq!(step.hear(0, 1, true, b"whole"), Ok(Some(Answer::One(frames(1, b"whole!")))));
        assert_eq!(step.hear(0, 2, true, b""), Ok(None));
    }

    #[test]
    fn what_pmix_servers_say_goes_to_the_node_that_it_is_for_and_may_be_asked_for_again() {
        let mut step = Exchange::new(3);
        assert_eq!(step.reopened(1), None, "no server spoke");
        let frame = Frame::Peer { node: 2, last: false, data: b"x".to_vec() };
        assert_eq!(step.carry(2, 0, false, b"x".to_vec()), Ok((0, frame)));
        assert!(step.carry(2, 2, true, Vec::new()).is_err() && step.carry(2, 3, true, Vec::new()).is_err());
        assert_eq!(step.reopened(1), Some(Frame::Peer { node: 1, last: true, data: Vec::new() }));
    }

    #[test]
    fn what_no_supervisor_sends_is_refused() {
        let mut step = Exchange::new(2);
        assert!(step.hear(0, 2, true, b"").unwrap_err().contains("at PMI barrier 2, and the step at 1"));
        assert!(step.hear(0, 0, true, b"").is_err());
        assert!(step.hear(7, 1, true, b"").is_err());
        assert_eq!(step.hear(0, 1, true, b""), Ok(None));
        assert!(step.hear(0, 1, true, b"").is_err(), "twice");
        let mut step = Exchange::new(2);
        let piece = vec![0; FENCE_PART];
        let many = (0..=MOST / FENCE_PART + 1).map(|_| step.hear(0, 1, false, &piece));
        assert!(many.last().unwrap().unwrap_err().contains("more than"));
    }
}
