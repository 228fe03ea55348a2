//! Starts for which the store does not give what belongs to them. One such row may not cost a node its link for as long as the job is there.

use berth_model::{NodeName, StepKey};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most steps that are remembered.
const MOST: usize = 1000;
/// Most that are named.
const NAMED: usize = 5;

/// How often it was so since it was last read, and why.
type Times = (u32, String);

/// Of which steps it was so, and for which of their nodes.
#[derive(Debug, Default)]
pub(crate) struct Unreadable(Mutex<BTreeMap<(StepKey, NodeName), Times>>);

impl Unreadable {
    fn all(&self) -> MutexGuard<'_, BTreeMap<(StepKey, NodeName), Times>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is so now. Whether it was before: what passes is over by then.
    pub(crate) fn again(&self, key: StepKey, node: &NodeName, why: &str) -> bool {
        let key = (key, node.clone());
        let mut all = self.all();
        if all.len() >= MOST && !all.contains_key(&key) {
            all.pop_first();
        }
        let (times, last) = all.entry(key).or_default();
        *times += 1;
        why.clone_into(last);
        *times > 1
    }

    /// It was read. Whether that is news.
    pub(crate) fn read(&self, key: StepKey, node: &NodeName) -> bool {
        let mut all = self.all();
        !all.is_empty() && all.remove(&(key, node.clone())).is_some()
    }

    /// What an administrator has to know, if anything.
    pub(crate) fn alarm(&self) -> Option<String> {
        let all = self.all();
        let lost = || all.iter().filter(|(_, (times, _))| *times > 1);
        let (_, (_, why)) = lost().next_back()?;
        let lost: BTreeSet<StepKey> = lost().map(|((key, _), _)| *key).collect();
        let named: Vec<String> = lost.iter().rev().take(NAMED).map(ToString::to_string).collect();
        let more =
            if lost.len() > NAMED { format!(" and {} more", lost.len() - NAMED) } else { String::new() };
        Some(format!(
            "scripts and environments cannot be read from the database, and what they are for does not start: of {}{more}: {why}; look at \
             the disk, and whether 'berth backup' finds more damage (this is said until the controller starts anew)",
            named.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::{Attempt, JobId, StepId};

    fn key(job: u32) -> StepKey {
        StepKey { job: JobId(job), attempt: Attempt(0), step: StepId::Batch }
    }

    #[test]
    fn what_passes_is_no_alarm_and_what_does_not_is_one_for_as_long_as_it_is_so() {
        let (unreadable, n1, n2) = (Unreadable::default(), NodeName::from("n1"), NodeName::from("n2"));
        assert!(!unreadable.again(key(1), &n1, "busy") && !unreadable.again(key(1), &n2, "busy"));
        assert_eq!(unreadable.alarm(), None);
        assert!(unreadable.read(key(1), &n1) && !unreadable.read(key(1), &n1));
        assert!(!unreadable.again(key(1), &n1, "busy"), "it was read between");
        for job in 1..=7 {
            unreadable.again(key(job), &n1, "damaged");
            assert!(unreadable.again(key(job), &n1, "damaged"));
        }
        assert!(unreadable.again(key(1), &n2, "damaged"));
        let text = unreadable.alarm().unwrap();
        assert!(text.contains(&key(7).to_string()) && text.contains(" and 2 more: damaged;"), "{text}");
        for job in 1..=7 {
            assert!(unreadable.alarm().is_some());
            unreadable.read(key(job), &n1);
        }
        unreadable.read(key(1), &n2);
        assert_eq!(unreadable.alarm(), None);
        for job in 0..2000 {
            unreadable.again(key(job), &n1, "damaged");
        }
        assert_eq!(unreadable.all().len(), MOST);
    }
}
