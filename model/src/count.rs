//! Counts: tasks and CPUs (plain numbers) and nodes (`--nodes=min[-max]`, with suffixes k and m).

use crate::grammar::{BadText, digits};
use std::fmt;
use std::str::FromStr;

/// `--nodes`: at least `min`, and at most `max` where a range was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeCount {
    /// Fewest nodes, at least 1.
    pub min: u32,
    /// Most nodes: equal to `min` for a single number.
    pub max: u32,
}

impl fmt::Display for NodeCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{}", self.min) } else { write!(f, "{}-{}", self.min, self.max) }
    }
}

impl FromStr for NodeCount {
    type Err = BadText;

    fn from_str(text: &str) -> Result<NodeCount, BadText> {
        let (low, high) = match text.split_once('-') {
            Some((low, high)) => (low, Some(high)),
            None => (text, None),
        };
        let min = nodes(low)?;
        let max = high.map_or(Ok(min), nodes)?;
        if max < min {
            let why = format!("Maximum node count {max} is less than minimum node count {min}");
            return Err(BadText::new(text, "a range of node counts", why));
        }
        Ok(NodeCount { min, max })
    }
}

/// One number of nodes; `k` is 1024 and `m` 1048576.
fn nodes(text: &str) -> Result<u32, BadText> {
    const WHAT: &str = "a valid node count";
    let (number, unit) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    digits(number)
        .and_then(|n| n.checked_mul(unit))
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| *n > 0 && *n < u32::MAX - 1)
        .ok_or_else(|| {
            BadText::new(text, WHAT, "write a number from 1, or MIN-MAX; k means 1024 and m 1048576")
        })
}

/// A number from 1 (tasks, CPUs).
pub fn positive(text: &str) -> Result<u32, BadText> {
    digits(text)
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| *n > 0 && *n < u32::MAX - 1)
        .ok_or_else(|| BadText::new(text, "a count", "write a whole number from 1 to 4294967293"))
}

/// A number from 0 (seconds).
pub fn number(text: &str) -> Result<u32, BadText> {
    digits(text)
        .and_then(|n| u32::try_from(n).ok())
        .ok_or_else(|| BadText::new(text, "a number", "write a whole number from 0 to 4294967295"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::soup;
    use proptest::prelude::*;

    #[test]
    fn node_counts_take_ranges_and_suffixes() {
        for (text, min, max) in
            [("2", 2, 2), ("2-4", 2, 4), ("1k", 1024, 1024), ("1-2m", 1, 2_097_152), ("03", 3, 3)]
        {
            assert_eq!(text.parse(), Ok(NodeCount { min, max }), "{text}");
        }
        for text in
            ["", "0", "abc", "-1", "1-2-3", "1.5", "k", "1-", "99999999999", "4294967295", "1,3", "5000m"]
        {
            assert!(text.parse::<NodeCount>().is_err(), "{text}");
        }
        let error = "3-1".parse::<NodeCount>().unwrap_err();
        assert!(error.why.starts_with("Maximum node count 1 is less than minimum node count 3"));
        assert_eq!("1-2-3".parse::<NodeCount>().unwrap_err().text, "2-3");
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(a in 1u32..5_000_000, b in 0u32..5_000_000) {
            let count = NodeCount { min: a, max: a + b };
            prop_assert_eq!(count.to_string().parse(), Ok(count));
        }

        #[test]
        fn no_text_makes_it_panic(text in soup()) {
            if let Ok(count) = text.parse::<NodeCount>() {
                prop_assert_eq!(count.to_string().parse(), Ok(count));
            }
            if let Ok(n) = positive(&text) {
                prop_assert_eq!(positive(&n.to_string()), Ok(n));
            }
            if let Ok(n) = number(&text) {
                prop_assert_eq!(number(&n.to_string()), Ok(n));
            }
        }
    }
}
