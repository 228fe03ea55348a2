//! How tasks are laid out over nodes (`--distribution`): how many each node gets, and which. What it says of sockets is for
//! [`crate::bind::plan`].

use crate::bind::plan::Sockets;
use crate::grammar::BadText;
use crate::ids::NodeName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A layout of tasks over nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distribution {
    /// Consecutive tasks share a node.
    #[default]
    Block,
    /// Task by task, one to each node in turn.
    Cyclic,
    /// As cyclic, with this many consecutive tasks at a time; at least 1.
    Plane(u32),
    /// Each task where the list says: its place in the list is its number. Empty until the list is known.
    Arbitrary(Vec<NodeName>),
}

impl Distribution {
    /// Tasks on each of `nodes`, which take up to `room` tasks each; `None` where they do not fit. By blocks and in
    /// turns every node gets one at least, if there are that many; planes and lists may leave nodes empty.
    pub fn spread(&self, tasks: u32, nodes: &[NodeName], room: &[u32]) -> Option<Vec<u32>> {
        match self {
            Distribution::Block => block(tasks, room),
            Distribution::Cyclic => in_turns(tasks, 1, room),
            Distribution::Plane(size) => in_turns(tasks, *size, room),
            Distribution::Arbitrary(list) => {
                let list = list.get(..usize::try_from(tasks).ok()?)?;
                let mut times: BTreeMap<&NodeName, u32> = BTreeMap::new();
                for name in list {
                    *times.entry(name).or_default() += 1;
                }
                let counts: Vec<u32> =
                    nodes.iter().map(|node| times.get(node).copied().unwrap_or(0)).collect();
                let placed: u64 = counts.iter().map(|n| u64::from(*n)).sum();
                let fit = counts.iter().zip(room).all(|(n, room)| n <= room);
                (fit && placed == u64::from(tasks)).then_some(counts)
            }
        }
    }

    /// The rule without its list: for those who have the layout that came of it.
    pub fn rule(&self) -> Distribution {
        match self {
            Distribution::Arbitrary(_) => Distribution::Arbitrary(Vec::new()),
            other => other.clone(),
        }
    }

    /// The numbers of the tasks on each of `nodes`, which have `counts` of them.
    pub fn number(&self, nodes: &[NodeName], counts: &[u32]) -> Vec<Vec<u32>> {
        let mut placed: Vec<Vec<u32>> = counts.iter().map(|_| Vec::new()).collect();
        let total: u32 = counts.iter().fold(0, |sum, n| sum.saturating_add(*n));
        match self {
            Distribution::Block => {
                let mut next = 0u32;
                for (own, count) in placed.iter_mut().zip(counts) {
                    let end = next.saturating_add(*count);
                    own.extend(next..end);
                    next = end;
                }
            }
            Distribution::Cyclic => deal(&mut placed, counts, 1, total),
            Distribution::Plane(size) => deal(&mut placed, counts, *size, total),
            Distribution::Arbitrary(list) => {
                let places: BTreeMap<&NodeName, usize> = nodes.iter().zip(0..).collect();
                for (task, name) in (0..total).zip(list) {
                    if let Some(own) = places.get(name).and_then(|at| placed.get_mut(*at)) {
                        own.push(task);
                    }
                }
            }
        }
        placed
    }
}

/// Every node gets a task, what is left fills node after node.
fn block(tasks: u32, room: &[u32]) -> Option<Vec<u32>> {
    let mut left = tasks.checked_sub(u32::try_from(room.len()).ok()?)?;
    let mut counts = Vec::with_capacity(room.len());
    for r in room {
        let more = left.min(r.checked_sub(1)?);
        counts.push(1 + more);
        left -= more;
    }
    (left == 0).then_some(counts)
}

/// Nodes get `size` tasks at a time, in turns, as long as they have room.
fn in_turns(tasks: u32, size: u32, room: &[u32]) -> Option<Vec<u32>> {
    let mut counts = vec![0u32; room.len()];
    let mut left = tasks;
    while left > 0 {
        let before = left;
        for (count, room) in counts.iter_mut().zip(room) {
            let more = size.max(1).min(room.saturating_sub(*count)).min(left);
            *count += more;
            left -= more;
        }
        if left == before {
            return None;
        }
    }
    Some(counts)
}

/// Deals out the numbers below `total`, `size` at a time.
fn deal(placed: &mut [Vec<u32>], counts: &[u32], size: u32, total: u32) {
    let mut next = 0u32;
    while next < total {
        let before = next;
        for (own, count) in placed.iter_mut().zip(counts) {
            let missing = count.saturating_sub(u32::try_from(own.len()).unwrap_or(u32::MAX));
            let end = next.saturating_add(size.max(1).min(missing));
            own.extend(next..end);
            next = end;
        }
        if next == before {
            return;
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Distribution::Block => f.write_str("block"),
            Distribution::Cyclic => f.write_str("cyclic"),
            Distribution::Plane(size) => write!(f, "plane={size}"),
            Distribution::Arbitrary(_) => f.write_str("arbitrary"),
        }
    }
}

impl FromStr for Distribution {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Distribution, BadText> {
        Ok(text.parse::<Levels>()?.nodes)
    }
}

/// `--distribution`: over nodes, and over the sockets of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// Over nodes.
    pub nodes: Distribution,
    /// Over sockets, where it says so.
    pub sockets: Option<Sockets>,
}

impl FromStr for Levels {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Levels, BadText> {
        const WHAT: &str = "a distribution of tasks";
        let bad = |why: String| Err(BadText::new(text, WHAT, why));
        let lower = text.to_ascii_lowercase();
        let (levels, pack) = lower.split_once(',').map_or((lower.as_str(), None), |(l, p)| (l, Some(p)));
        if let Some(pack) = pack {
            return bad(format!(
                "'{pack}' is not supported by this release: leave it out, and say with --nodes how many nodes there are to be"
            ));
        }
        let mut levels = levels.split(':');
        let nodes = match levels.next().unwrap_or_default() {
            "block" | "*" => Distribution::Block,
            "cyclic" => Distribution::Cyclic,
            "arbitrary" => Distribution::Arbitrary(Vec::new()),
            "plane" => return bad("write how many tasks are together: plane=4".to_string()),
            other => match other.strip_prefix("plane=").map(str::parse::<u32>) {
                Some(Ok(size)) if size > 0 => Distribution::Plane(size),
                _ => return bad("write block, cyclic, plane=SIZE or arbitrary".to_string()),
            },
        };
        let sockets = match levels.next() {
            None | Some("*") => None,
            Some("block") => Some(Sockets::Block),
            Some("cyclic") => Some(Sockets::Cyclic),
            Some("fcyclic") => Some(Sockets::Fcyclic),
            Some(other) => {
                return bad(format!(
                    "':{other}' is no way over the sockets of a node: write block, cyclic or fcyclic"
                ));
            }
        };
        match levels.find(|level| *level != "*") {
            None => Ok(Levels { nodes, sockets }),
            Some(level) => bad(format!(
                "':{level}' is not supported by this release: over cores tasks go as over sockets; leave it out, or say with \
                 --cpu-bind=map_cpu:LIST which CPU each has"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(n: usize) -> Vec<NodeName> {
        (0..n).map(|i| NodeName(format!("n{i}"))).collect()
    }

    /// Counts and numbers as Slurm's manual shows them.
    #[test]
    fn layouts_checked_by_hand() {
        let show = |text: &str, tasks, room: &[u32]| {
            let layout: Distribution = text.parse().unwrap_or_default();
            let nodes = names(room.len());
            layout.spread(tasks, &nodes, room).map(|counts| layout.number(&nodes, &counts))
        };
        let lists = |all: &[&[u32]]| Some(all.iter().map(|own| own.to_vec()).collect::<Vec<_>>());
        assert_eq!(show("block", 6, &[4, 4]), lists(&[&[0, 1, 2, 3], &[4, 5]]));
        assert_eq!(show("block", 4, &[4, 4, 4]), lists(&[&[0, 1], &[2], &[3]]));
        assert_eq!(show("cyclic", 6, &[4, 4]), lists(&[&[0, 2, 4], &[1, 3, 5]]));
        assert_eq!(show("cyclic", 5, &[1, 4]), lists(&[&[0], &[1, 2, 3, 4]]));
        assert_eq!(show("plane=2", 7, &[4, 4]), lists(&[&[0, 1, 4, 5], &[2, 3, 6]]));
        assert_eq!(show("plane=4", 4, &[4, 4]), lists(&[&[0, 1, 2, 3], &[]]));
        assert_eq!(show("block", 9, &[4, 4]), None);
        assert_eq!(show("cyclic", 9, &[4, 4]), None);
        let list = Distribution::Arbitrary(["n1", "n0", "n1"].map(NodeName::from).to_vec());
        let counts = list.spread(3, &names(2), &[4, 4]);
        assert_eq!(counts, Some(vec![1, 2]));
        assert_eq!(list.number(&names(2), &[1, 2]), vec![vec![1], vec![0, 2]]);
        assert_eq!(list.spread(3, &names(2), &[4, 1]), None);
        assert_eq!(list.spread(4, &names(2), &[4, 4]), None);
    }

    #[test]
    fn words() {
        for text in ["block", "cyclic", "plane=3", "arbitrary"] {
            assert_eq!(text.parse::<Distribution>().map(|d| d.to_string()), Ok(text.to_string()));
        }
        assert_eq!("*:*".parse(), Ok(Distribution::Block));
        for text in ["", "plane", "plane=0", "plane=x", "cyclic:x", "block:*:cyclic", "block,Pack", "bogus"] {
            assert!(text.parse::<Distribution>().is_err(), "{text}");
        }
        let sockets = |text: &str| text.parse::<Levels>().map(|levels| levels.sockets);
        for (text, expected) in [
            ("block", None),
            ("*:*:*", None),
            ("cyclic:block", Some(Sockets::Block)),
            ("*:Cyclic", Some(Sockets::Cyclic)),
            ("plane=2:fcyclic:*", Some(Sockets::Fcyclic)),
        ] {
            assert_eq!(sockets(text), Ok(expected), "{text}");
        }
    }

    proptest! {
        /// Whatever the layout: each task is once on one node, ascending there, and no node has more than its room.
        #[test]
        fn every_task_is_on_one_node(
            tasks in 0..60u32,
            room in proptest::collection::vec(0..12u32, 1..8),
            which in 0..4u32,
            size in 1..6u32,
            list in proptest::collection::vec(0..8usize, 0..60),
        ) {
            let nodes = names(room.len());
            let layout = match which {
                0 => Distribution::Block,
                1 => Distribution::Cyclic,
                2 => Distribution::Plane(size),
                _ => Distribution::Arbitrary(list.iter().map(|i| NodeName(format!("n{i}"))).collect()),
            };
            if let Some(counts) = layout.spread(tasks, &nodes, &room) {
                prop_assert!(counts.iter().zip(&room).all(|(n, r)| n <= r));
                let placed = layout.number(&nodes, &counts);
                for (own, count) in placed.iter().zip(&counts) {
                    prop_assert_eq!(own.len(), *count as usize);
                    prop_assert!(own.windows(2).all(|w| w[0] < w[1]));
                }
                let mut all: Vec<u32> = placed.into_iter().flatten().collect();
                all.sort_unstable();
                prop_assert_eq!(all, (0..tasks).collect::<Vec<_>>());
            }
        }
    }
}
