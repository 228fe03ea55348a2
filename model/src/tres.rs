//! Trackable resources (TRES): counts of cpu, memory, nodes and generic resources, with arithmetic that
//! refuses to go below zero.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;

/// A generic resource: `gpu`, or with a type `gpu:a100`.
/// Stored as that text, because JSON object keys must be strings.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GresKey {
    /// The resource's name, such as `gpu`.
    pub name: String,
    /// Its type, such as `a100`; absent when any type will do, or the node's devices have none.
    pub kind: Option<String>,
}

impl fmt::Display for GresKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Some(kind) => write!(f, "{}:{}", self.name, kind),
            None => f.write_str(&self.name),
        }
    }
}

impl Serialize for GresKey {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GresKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Ok(match text.split_once(':') {
            Some((name, kind)) => GresKey { name: name.to_string(), kind: Some(kind.to_string()) },
            None => GresKey { name: text, kind: None },
        })
    }
}

/// Amounts of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tres {
    /// CPUs (hardware threads as the scheduler counts them).
    pub cpu: u64,
    /// Memory in MiB.
    pub mem: u64,
    /// Nodes.
    pub node: u64,
    /// Generic resources.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub gres: BTreeMap<GresKey, u64>,
}

/// A subtraction asked for more than there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{resource}: {wanted} asked of {available}")]
pub struct Short {
    /// What there was too little of.
    pub resource: String,
    /// How much was asked for.
    pub wanted: u64,
    /// How much there was.
    pub available: u64,
}

impl Tres {
    /// Adds `other`, saturating at the largest representable amount.
    pub fn add(&mut self, other: &Tres) {
        self.cpu = self.cpu.saturating_add(other.cpu);
        self.mem = self.mem.saturating_add(other.mem);
        self.node = self.node.saturating_add(other.node);
        for (key, n) in &other.gres {
            let slot = self.gres.entry(key.clone()).or_default();
            *slot = slot.saturating_add(*n);
        }
    }

    /// Takes `other` away, or changes nothing and names what falls short.
    pub fn checked_sub(&mut self, other: &Tres) -> Result<(), Short> {
        self.covers(other)?;
        self.cpu -= other.cpu;
        self.mem -= other.mem;
        self.node -= other.node;
        for (key, n) in &other.gres {
            if let Some(slot) = self.gres.get_mut(key) {
                *slot -= n;
                if *slot == 0 {
                    self.gres.remove(key);
                }
            }
        }
        Ok(())
    }

    /// Whether every amount of `other` is available here; names the first that is not.
    pub fn covers(&self, other: &Tres) -> Result<(), Short> {
        let check = |resource: &str, wanted: u64, available: u64| {
            if wanted > available {
                Err(Short { resource: resource.to_string(), wanted, available })
            } else {
                Ok(())
            }
        };
        check("cpu", other.cpu, self.cpu)?;
        check("mem", other.mem, self.mem)?;
        check("node", other.node, self.node)?;
        for (key, n) in &other.gres {
            check(&format!("gres/{key}"), *n, self.gres.get(key).copied().unwrap_or(0))?;
        }
        Ok(())
    }

    /// Whether nothing is asked for.
    pub fn is_zero(&self) -> bool {
        self.cpu == 0 && self.mem == 0 && self.node == 0 && self.gres.values().all(|n| *n == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tres() -> impl Strategy<Value = Tres> {
        (0..50u64, 0..50u64, 0..5u64, 0..4u64).prop_map(|(cpu, mem, node, gpus)| {
            let mut gres = BTreeMap::new();
            if gpus > 0 {
                gres.insert(GresKey { name: "gpu".into(), kind: None }, gpus);
            }
            Tres { cpu, mem, node, gres }
        })
    }

    proptest! {
        #[test]
        fn subtraction_undoes_addition(a in tres(), b in tres()) {
            let mut sum = a.clone();
            sum.add(&b);
            sum.checked_sub(&b).unwrap();
            prop_assert_eq!(sum, a);
        }

        #[test]
        fn a_refused_subtraction_changes_nothing(a in tres(), b in tres()) {
            let mut left = a.clone();
            if left.checked_sub(&b).is_err() {
                prop_assert_eq!(left, a);
            }
        }
    }
}
