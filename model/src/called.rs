//! Nodes by the full names of their machines, where people write these instead of the nodes' own.

use crate::ids::NodeName;
use std::collections::BTreeMap;

/// Longest name of a host (RFC 1035, section 2.3.4).
const LONGEST: usize = 253;

/// Whether a name service may say it of a machine that others are to find by it: what every machine calls itself says nothing of one.
pub fn is_full_name(host: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let first = host.split('.').next().unwrap_or_default();
    (1..=LONGEST).contains(&host.len())
        && host.bytes().all(plain)
        && host.bytes().any(|b| b.is_ascii_alphabetic())
        && host.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && !first.to_ascii_lowercase().starts_with("localhost")
}

/// Full names, and whose they are.
#[derive(Clone, Debug, Default)]
pub struct Called(BTreeMap<String, Option<NodeName>>);

impl Called {
    /// Of these nodes, each with its full name where that is known.
    pub fn of<'a>(nodes: impl IntoIterator<Item = (&'a NodeName, Option<&'a str>)>) -> Called {
        let mut called = BTreeMap::new();
        for (node, host) in nodes {
            let Some(host) = host else { continue };
            called
                .entry(host.to_ascii_lowercase())
                .and_modify(|of: &mut Option<NodeName>| *of = None)
                .or_insert_with(|| Some(node.clone()));
        }
        Called(called)
    }

    /// The node that is meant by a name which is no node's: the one whose machine is called so, where that is one alone.
    pub fn node(&self, name: &NodeName) -> Option<&NodeName> {
        self.0.get(&name.0.to_ascii_lowercase())?.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_name_is_one_nodes_or_nobodys() {
        let (n1, n2, n3) = (NodeName::from("n1"), NodeName::from("n2"), NodeName::from("n3"));
        let called = Called::of([
            (&n1, Some("n1.example.org")),
            (&n2, Some("Shared.example.org")),
            (&n3, Some("shared.example.org")),
            (&n3, None),
        ]);
        assert_eq!(called.node(&"N1.Example.org".into()), Some(&n1));
        for nobodys in ["shared.example.org", "n1", "n1.example.com", ""] {
            assert_eq!(called.node(&nobodys.into()), None, "{nobodys}");
        }
    }

    #[test]
    fn what_says_nothing_of_a_machine_is_no_full_name() {
        for good in ["n1", "n1.example.org", "gpu_1.r2", "xn--bcher-kva.example"] {
            assert!(is_full_name(good), "{good}");
        }
        let long = "n".repeat(254);
        for bad in [
            "",
            "localhost",
            "localhost.localdomain",
            "LOCALHOST6",
            "10.77.0.2",
            ".org",
            "-n1",
            "a b",
            "n1\n",
            "n\u{e4}",
            &long,
        ] {
            assert!(!is_full_name(bad), "{bad}");
        }
    }
}
