//! The parts of a step on its nodes: many of them may end one by one, so changing or finding one costs no more for many than for few.

use crate::rows::StepNode;
use berth_model::ids::NodeName;
use berth_model::launch::{ImagePull, StepExit};
use imbl::Vector;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::sync::Arc;

/// The parts in the order of the step. Copies share what they have in common; in rows it is a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    list: Vector<StepNode>,
    /// How many have no exit.
    open: usize,
    /// Places by name, where the step's order is another one (`--distribution=arbitrary`).
    by_name: Option<Arc<[usize]>>,
}

impl Parts {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many have not ended.
    pub fn open(&self) -> usize {
        self.open
    }

    /// All of them.
    pub fn iter(&self) -> imbl::vector::Iter<'_, StepNode, imbl::shared_ptr::DefaultSharedPtr> {
        self.list.iter()
    }

    /// That of the `at`-th node.
    pub fn get(&self, at: usize) -> Option<&StepNode> {
        self.list.get(at)
    }

    /// The place of a node's.
    pub fn find(&self, node: &NodeName) -> Option<usize> {
        let compare = |part: &StepNode| part.node.cmp(node);
        match &self.by_name {
            None => self.list.binary_search_by(compare).ok(),
            Some(places) => {
                let there = |at: &usize| self.list.get(*at).map_or(Ordering::Greater, compare);
                places.binary_search_by(there).ok().map(|i| places[i])
            }
        }
    }

    /// The parts that have not ended, with their places.
    pub(crate) fn unended(&self) -> impl Iterator<Item = (usize, &StepNode)> {
        self.list.iter().enumerate().filter(|(_, part)| part.exit.is_none())
    }

    /// How the step ended on its `at`-th node. Whether that is news.
    pub(crate) fn end(&mut self, at: usize, mut exit: StepExit) -> bool {
        // Looked at first, so that nothing is copied for what is known.
        if self.list.get(at).is_none_or(|part| part.exit.is_some()) {
            return false;
        }
        let Some(part) = self.list.get_mut(at) else { return false };
        part.pull = exit.image.take().or(part.pull.take());
        part.exit = Some(exit);
        self.open -= 1;
        true
    }

    /// What the image took on the `at`-th node.
    pub(crate) fn pulled(&mut self, at: usize, pull: ImagePull) {
        if let Some(part) = self.list.get_mut(at) {
            part.pull = Some(pull);
        }
    }

    /// Puts a later form of a part in its place: stores keep what changed last beside the step's row. Whether there is such a place.
    pub fn replace(&mut self, at: usize, part: StepNode) -> bool {
        let known = self.list.get(at).filter(|old| old.node == part.node);
        let Some(old) = known else { return false };
        self.open = self.open + usize::from(part.exit.is_none()) - usize::from(old.exit.is_none());
        self.list.set(at, part);
        true
    }

    /// A part on a further node.
    pub(crate) fn push(&mut self, part: StepNode) {
        let all = self.list.iter().cloned().chain(std::iter::once(part));
        *self = all.collect();
    }
}

impl FromIterator<StepNode> for Parts {
    fn from_iter<I: IntoIterator<Item = StepNode>>(parts: I) -> Parts {
        let list: Vector<StepNode> = parts.into_iter().collect();
        let open = list.iter().filter(|part| part.exit.is_none()).count();
        let ascends = list.iter().zip(list.iter().skip(1)).all(|(one, next)| one.node < next.node);
        let by_name = (!ascends).then(|| {
            let mut places: Vec<usize> = (0..list.len()).collect();
            places.sort_by(|a, b| list[*a].node.cmp(&list[*b].node));
            places.into()
        });
        Parts { list, open, by_name }
    }
}

impl From<Vec<StepNode>> for Parts {
    fn from(parts: Vec<StepNode>) -> Parts {
        parts.into_iter().collect()
    }
}

impl std::ops::Index<usize> for Parts {
    type Output = StepNode;

    fn index(&self, at: usize) -> &StepNode {
        &self.list[at]
    }
}

impl<'a> IntoIterator for &'a Parts {
    type Item = &'a StepNode;
    type IntoIter = imbl::vector::Iter<'a, StepNode, imbl::shared_ptr::DefaultSharedPtr>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.iter()
    }
}

impl Serialize for Parts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.list.iter())
    }
}

impl<'de> Deserialize<'de> for Parts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Parts, D::Error> {
        Vec::deserialize(deserializer).map(|parts: Vec<StepNode>| parts.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::launch::Usage;
    use berth_model::state::ExitStatus;
    use berth_model::time::Time;

    fn exit() -> StepExit {
        StepExit {
            status: ExitStatus::OK,
            tasks: Vec::new(),
            oom: false,
            launch_error: None,
            ended_by: None,
            image: None,
            usage: Usage::default(),
            ended: Time(0),
        }
    }

    fn part(name: &str) -> StepNode {
        StepNode { node: name.into(), tasks: 1, share: None, pull: None, exit: None }
    }

    /// While somebody else has the parts as they were, each end of many copies a few of them, and not all.
    #[test]
    fn an_end_copies_as_much_of_many_parts_as_of_few() {
        let copied = |count: usize| -> usize {
            let mut parts: Parts = (0..count).map(|n| part(&format!("n{n}"))).collect();
            let ends = (0..count).step_by(count / 50).map(|at| {
                let before = parts.clone();
                assert!(parts.end(at, exit()));
                before.iter().zip(&parts).filter(|(one, other)| !std::ptr::eq(*one, *other)).count()
            });
            ends.max().unwrap_or(0)
        };
        let (few, many) = (copied(500), copied(20_000));
        assert!((1..=128).contains(&few) && (1..=128).contains(&many), "{few} {many}");
    }

    #[test]
    fn parts_are_found_in_any_order_and_open_ones_are_counted() {
        for names in [["n1", "n2", "n10"], ["n10", "n1", "n2"], ["n2", "n10", "n1"]] {
            let mut parts: Parts = names.map(part).into_iter().collect();
            for (at, name) in names.iter().enumerate() {
                assert_eq!(parts.find(&(*name).into()), Some(at), "{names:?}");
            }
            assert_eq!((parts.find(&"n3".into()), parts.open()), (None, 3));
            assert!(parts.end(1, exit()) && !parts.end(1, exit()));
            assert!(!parts.end(9, exit()));
            let open: Vec<usize> = parts.unended().map(|(at, _)| at).collect();
            assert_eq!((parts.open(), open), (2, vec![0, 2]));
            let ended = StepNode { exit: Some(exit()), ..part(names[0]) };
            assert!(
                parts.replace(0, ended.clone())
                    && parts.replace(0, ended.clone())
                    && !parts.replace(2, ended)
            );
            assert_eq!(parts.open(), 1);
            parts.push(part("n11"));
            assert_eq!((parts.open(), parts.find(&"n11".into()), parts.len()), (2, Some(3), 4));
        }
    }
}
