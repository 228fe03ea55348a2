//! Index sets of arrays: a job's place in its array, and the set arithmetic of splits, holds and cancels.

use berth_model::spec::ArraySpec;
use serde::{Deserialize, Serialize};

/// A job's place in an array.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tasks {
    /// Not in an array.
    #[default]
    None,
    /// One task.
    One(u32),
    /// Tasks that were never touched one by one: they wait, or were cancelled together.
    Range(TaskSet),
}

/// A set of indices as ascending, disjoint `(first, last, step)` ranges whose `last` is a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskSet(Vec<(u32, u32, u32)>);

impl TaskSet {
    /// The set that `spec` describes. Ranges may come in any order and overlap; a step of 0 counts as 1.
    pub fn new(spec: &ArraySpec) -> TaskSet {
        let plain = spec.ranges.iter().all(|r| r.0 <= r.1 && r.2 > 0 && (r.1 - r.0) % r.2 == 0)
            && spec.ranges.windows(2).all(|w| w[0].1 < w[1].0);
        if plain {
            return TaskSet(spec.ranges.clone());
        }
        let mut all: Vec<u32> = Vec::new();
        for &(first, last, step) in &spec.ranges {
            all.extend((first..=last).step_by(step.max(1) as usize));
        }
        all.sort_unstable();
        all.dedup();
        TaskSet::from_sorted(all)
    }

    /// The set of ascending, distinct indices.
    pub fn from_sorted(all: impl IntoIterator<Item = u32>) -> TaskSet {
        let mut ranges: Vec<(u32, u32, u32)> = Vec::new();
        for index in all {
            match ranges.last_mut() {
                Some((first, last, step)) if first == last => {
                    *step = index - *first;
                    *last = index;
                }
                Some((_, last, step)) if index - *last == *step => *last = index,
                _ => ranges.push((index, index, 1)),
            }
        }
        // Two lone neighbours of a range read better apart than as a range with an odd step.
        let mut out = Vec::with_capacity(ranges.len());
        for (first, last, step) in ranges {
            if step > 1 && last - first == step {
                out.push((first, first, 1));
                out.push((last, last, 1));
            } else {
                out.push((first, last, step));
            }
        }
        TaskSet(out)
    }

    /// As the model writes it.
    pub fn to_spec(&self, max_running: Option<u32>) -> ArraySpec {
        ArraySpec { ranges: self.0.clone(), max_running }
    }

    /// Members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().flat_map(|&(first, last, step)| (first..=last).step_by(step.max(1) as usize))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|&(first, last, step)| ((last - first) / step.max(1) + 1) as usize).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `index` is a member.
    pub fn contains(&self, index: u32) -> bool {
        self.0.iter().any(|&(first, last, step)| {
            first <= index && index <= last && (index - first).is_multiple_of(step.max(1))
        })
    }

    /// Smallest member.
    pub fn first(&self) -> Option<u32> {
        self.0.first().map(|r| r.0)
    }

    /// Largest member.
    pub fn last(&self) -> Option<u32> {
        self.0.last().map(|r| r.1)
    }

    /// The common distance between members, or 1 where it varies.
    pub fn step(&self) -> u32 {
        match self.0.as_slice() {
            [(_, _, step)] => (*step).max(1),
            _ => 1,
        }
    }

    /// Takes the smallest member out.
    pub fn take_first(&mut self) -> Option<u32> {
        let (first, last, step) = *self.0.first()?;
        if first == last {
            self.0.remove(0);
        } else {
            self.0[0] = if first + step == last { (last, last, 1) } else { (first + step, last, step) };
        }
        Some(first)
    }

    /// Splits into members that are in `other` and members that are not.
    pub fn split(&self, other: &TaskSet) -> (TaskSet, TaskSet) {
        let (inside, outside): (Vec<u32>, Vec<u32>) = self.iter().partition(|i| other.contains(*i));
        (TaskSet::from_sorted(inside), TaskSet::from_sorted(outside))
    }

    /// Whether the ranges are ascending, disjoint and end on members: what a stored row must satisfy.
    pub fn is_valid(&self) -> bool {
        self.0.iter().all(|r| r.0 <= r.1 && r.2 > 0 && (r.1 - r.0).is_multiple_of(r.2))
            && self.0.windows(2).all(|w| w[0].1 < w[1].0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn ranges() -> impl Strategy<Value = ArraySpec> {
        proptest::collection::vec((0..60u32, 0..30u32, 0..5u32), 1..5).prop_map(|v| ArraySpec {
            ranges: v.into_iter().map(|(a, n, s)| (a, a + n, s)).collect(),
            max_running: None,
        })
    }

    fn naive(spec: &ArraySpec) -> BTreeSet<u32> {
        spec.ranges.iter().flat_map(|r| (r.0..=r.1).step_by(r.2.max(1) as usize)).collect()
    }

    proptest! {
        #[test]
        fn a_set_holds_exactly_its_members(spec in ranges()) {
            let set = TaskSet::new(&spec);
            let want = naive(&spec);
            prop_assert!(set.is_valid());
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), want.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.len(), want.len());
            for i in 0..100 {
                prop_assert_eq!(set.contains(i), want.contains(&i));
            }
        }

        #[test]
        fn taking_one_by_one_empties_it_in_order(spec in ranges()) {
            let mut set = TaskSet::new(&spec);
            let mut got = Vec::new();
            while let Some(i) = set.take_first() {
                prop_assert!(set.is_valid());
                got.push(i);
            }
            prop_assert_eq!(got, naive(&spec).into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn a_split_loses_and_invents_nothing(a in ranges(), b in ranges()) {
            let (set, other) = (TaskSet::new(&a), TaskSet::new(&b));
            let (inside, outside) = set.split(&other);
            prop_assert!(inside.is_valid() && outside.is_valid());
            let mut all: Vec<u32> = inside.iter().chain(outside.iter()).collect();
            all.sort_unstable();
            prop_assert_eq!(all, set.iter().collect::<Vec<_>>());
            prop_assert!(inside.iter().all(|i| other.contains(i)));
        }
    }
}
