//! Index sets of job arrays (`--array`): `0-15`, `1,3,5-7`, `1-7:2`, each with `%N` for the most at once.

use crate::grammar::{BadText, digits};
use crate::spec::ArraySpec;
use std::fmt;
use std::str::FromStr;

/// Largest index that can be written; the site's `max_array_size` is lower.
pub const MOST_INDEX: u32 = 4_000_000;
/// From this many members on, a set with one even step is printed as `LOW-HIGH:STEP`.
const STEP_FORM: u64 = 5;
const WHAT: &str = "an array specification";

impl ArraySpec {
    /// The set of `indices`, in any order and with repetitions, in its canonical form.
    pub fn from_indices(indices: impl IntoIterator<Item = u32>, max_running: Option<u32>) -> ArraySpec {
        let mut all: Vec<u32> = indices.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        let mut ranges = Vec::new();
        let mut at = 0;
        while let Some(&first) = all.get(at) {
            let (mut last, mut step, mut members) = (first, 1, 1);
            if let Some(&second) = all.get(at + 1) {
                step = second - first;
                while all.get(at + members) == last.checked_add(step).as_ref() {
                    last += step;
                    members += 1;
                }
                // Two members with a gap are two singles: the second may begin a run of its own.
                if members == 2 && step > 1 {
                    (last, step, members) = (first, 1, 1);
                }
            }
            ranges.push((first, last, if first == last { 1 } else { step }));
            at += members;
        }
        ArraySpec { ranges, max_running }
    }

    /// Its indices, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.ranges.iter().flat_map(|&(first, last, step)| (first..=last).step_by(step.max(1) as usize))
    }

    /// How many indices there are.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|&(first, last, step)| u64::from((last - first) / step.max(1)) + 1).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The smallest index.
    pub fn first(&self) -> Option<u32> {
        self.ranges.first().map(|r| r.0)
    }

    /// The largest index.
    pub fn last(&self) -> Option<u32> {
        self.ranges.last().map(|r| r.1)
    }

    /// The step between indices; 1 when it is uneven or there is one index only.
    pub fn step(&self) -> u32 {
        match self.ranges.as_slice() {
            [(_, _, step)] => *step,
            [(a, b, _), (c, d, _)] if a == b && c == d => c - a,
            _ => 1,
        }
    }

    /// Whether `index` is a member.
    pub fn contains(&self, index: u32) -> bool {
        self.ranges.iter().any(|&(first, last, step)| {
            (first..=last).contains(&index) && (index - first).is_multiple_of(step.max(1))
        })
    }

    /// Takes `index` out; says whether it was a member. Costs only the range that it is in.
    pub fn remove(&mut self, index: u32) -> bool {
        let hit = |&(first, last, step): &(u32, u32, u32)| {
            (first..=last).contains(&index) && (index - first).is_multiple_of(step.max(1))
        };
        let Some(at) = self.ranges.iter().position(hit) else { return false };
        let (first, last, step) = self.ranges[at];
        let mut parts = Vec::with_capacity(2);
        if index > first {
            parts.push((first, index - step, if index - step == first { 1 } else { step }));
        }
        if index < last {
            parts.push((index + step, last, if index + step == last { 1 } else { step }));
        }
        self.ranges.splice(at..=at, parts);
        true
    }

    /// The set as text, cut after `most` characters with `...` as `squeue` does (`SLURM_BITSTR_LEN`,
    /// 64 by default; 0 does not cut).
    pub fn to_text(&self, most: usize) -> String {
        let mut text = self.indices();
        if most > 0 && text.len() > most {
            // The text is ASCII.
            text.truncate(most.saturating_sub(3));
            text.push_str("...");
        }
        if let Some(n) = self.max_running {
            text.push_str(&format!("%{n}"));
        }
        text
    }

    fn indices(&self) -> String {
        if let [(first, last, step)] = self.ranges.as_slice()
            && *step > 1
            && self.len() >= STEP_FORM
        {
            return format!("{first}-{last}:{step}");
        }
        let mut out = String::new();
        let mut push = |first: u32, last: u32| {
            if !out.is_empty() {
                out.push(',');
            }
            out.push_str(&first.to_string());
            if last > first {
                out.push_str(&format!("-{last}"));
            }
        };
        // Runs of neighbours across ranges are drawn together, as in `1-3` from `1`, `2-3`.
        let mut run: Option<(u32, u32)> = None;
        let mut add = |first: u32, last: u32| match run {
            Some((from, to)) if to.checked_add(1) == Some(first) => run = Some((from, last)),
            Some((from, to)) => {
                push(from, to);
                run = Some((first, last));
            }
            None => run = Some((first, last)),
        };
        for &(first, last, step) in &self.ranges {
            if step == 1 {
                add(first, last);
            } else {
                (first..=last).step_by(step.max(1) as usize).for_each(|i| add(i, i));
            }
        }
        if let Some((from, to)) = run {
            push(from, to);
        }
        out
    }
}

impl fmt::Display for ArraySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.to_text(0))
    }
}

impl FromStr for ArraySpec {
    type Err = BadText;

    fn from_str(text: &str) -> Result<ArraySpec, BadText> {
        let bad = |why: &str| BadText::new(text, WHAT, why);
        const FORMS: &str =
            "write indices and ranges such as 0-15, 1,3,5-7 or 1-7:2, and %N for the most at once";
        // Both `[1-3]%2` and squeue's `[1-3%2]` are read.
        let bare = |s| str::strip_prefix(s, "[").and_then(|s: &str| s.strip_suffix(']')).unwrap_or(s);
        let (set, max_running) = match bare(text).split_once('%') {
            Some((set, n)) => {
                let n = digits(n)
                    .and_then(|n| u32::try_from(n).ok())
                    .ok_or_else(|| bad("after % stands the most tasks that run at once"))?;
                (set, Some(n).filter(|n| *n > 0))
            }
            None => (bare(text), None),
        };
        let set = bare(set);
        let index = |s: &str| digits(s).ok_or_else(|| bad(FORMS));
        let mut ranges: Vec<(u32, u32, u32)> = Vec::new();
        for item in set.split(',').filter(|item| !item.is_empty()) {
            let (range, step) = match item.split_once(':') {
                Some((range, step)) if range.contains('-') => (range, index(step)?),
                Some(_) => return Err(bad("a step needs a range: LOW-HIGH:STEP")),
                None => (item, 1),
            };
            let (low, high) = range.split_once('-').unwrap_or((range, range));
            let (low, high) = (index(low)?, index(high)?);
            if low > high {
                return Err(bad("a range must ascend"));
            }
            let small = |n: u64| u32::try_from(n).ok().filter(|n| *n <= MOST_INDEX);
            let (Some(low), Some(high)) = (small(low), small(high)) else {
                return Err(bad("an index is larger than 4000000"));
            };
            let step = u32::try_from(step)
                .ok()
                .filter(|s| *s > 0)
                .ok_or_else(|| bad("a step is a number from 1"))?;
            let last = low + (high - low) / step * step;
            ranges.push((low, last, if low == last { 1 } else { step }));
        }
        if ranges.is_empty() {
            return Err(bad(FORMS));
        }
        // One range, the common case, is canonical without being expanded.
        if let [(first, last, step)] = ranges.as_slice()
            && (*step == 1 || (last - first) / step >= 2)
        {
            return Ok(ArraySpec { ranges, max_running });
        }
        let raw = ArraySpec { ranges, max_running: None };
        if raw.len() > u64::from(MOST_INDEX) + 1 {
            return Err(bad("it names more indices than there can be"));
        }
        Ok(ArraySpec::from_indices(raw.iter(), max_running))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::soup;
    use proptest::prelude::*;

    fn parse(text: &str) -> ArraySpec {
        text.parse().unwrap()
    }

    #[test]
    fn sets_print_as_slurm_prints_them() {
        for (text, printed) in [
            ("0", "0"),
            ("0-3", "0-3"),
            ("1,3,5", "1,3,5"),
            ("1-7:2", "1,3,5,7"),
            ("0-15:4", "0,4,8,12"),
            ("1-10%2", "1-10%2"),
            ("1,3,5-7%1", "1,3,5-7%1"),
            ("0-0", "0"),
            ("1-3,2", "1-3"),
            ("3,1,2", "1-3"),
            ("1,,2", "1-2"),
            ("1-3%0", "1-3"),
            ("1-10:3", "1,4,7,10"),
            ("01-03", "1-3"),
            ("1-5:2,10-20:5", "1,3,5,10,15,20"),
            ("[1-3]", "1-3"),
            ("[1-3%2]", "1-3%2"),
            ("[1-3]%2", "1-3%2"),
            ("1-100:3%4", "1-100:3%4"),
            ("1,5,9,13,17,21,25,29,33", "1-33:4"),
        ] {
            assert_eq!(parse(text).to_string(), printed, "{text}");
        }
        for text in [
            "",
            "%2",
            "5-1",
            "-1",
            "a",
            "1-a",
            "1-",
            "1-3%-1",
            "1-3%a",
            "1-3%",
            "1:2",
            "1-10:0",
            "1.5",
            "99999999999",
            "1-3;2",
            "0-999999999",
        ] {
            assert!(text.parse::<ArraySpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_set_knows_its_bounds_and_step() {
        let set = parse("3-9:2%2");
        assert_eq!((set.len(), set.first(), set.last(), set.step()), (4, Some(3), Some(9), 2));
        assert_eq!(set.max_running, Some(2));
        assert_eq!(set.iter().collect::<Vec<_>>(), [3, 5, 7, 9]);
        assert_eq!(parse("1,2,9").step(), 1);
        assert_eq!(parse("2,9").step(), 7);
        assert_eq!(parse("7").step(), 1);
    }

    #[test]
    fn long_sets_are_cut_where_asked() {
        let set = parse("1,2,4,7,9-20,30,35,37,40,44%3");
        assert_eq!(set.to_text(10), "1-2,4,7...%3");
        assert_eq!(set.to_text(0), "1-2,4,7,9-20,30,35,37,40,44%3");
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(
            indices in proptest::collection::vec(0u32..60, 1..40), most in proptest::option::of(1u32..9)
        ) {
            let set = ArraySpec::from_indices(indices.clone(), most);
            let again = parse(&set.to_string());
            prop_assert_eq!(again.iter().collect::<Vec<_>>(), set.iter().collect::<Vec<_>>());
            prop_assert_eq!(again.max_running, most);
            let mut indices = indices;
            indices.sort_unstable();
            indices.dedup();
            prop_assert_eq!(set.len(), indices.len() as u64);
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), indices);
        }

        #[test]
        fn removal_takes_one_member_and_no_other(
            indices in proptest::collection::vec(0u32..60, 1..40), take in proptest::collection::vec(0u32..60, 0..40)
        ) {
            let mut set = ArraySpec::from_indices(indices, None);
            for index in take {
                let mut expected: Vec<u32> = set.iter().collect();
                let there = expected.contains(&index);
                expected.retain(|i| *i != index);
                prop_assert_eq!(set.contains(index), there);
                prop_assert_eq!(set.remove(index), there);
                prop_assert_eq!(set.iter().collect::<Vec<_>>(), expected);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in soup()) {
            if let Ok(set) = text.parse::<ArraySpec>() {
                prop_assert!(!set.is_empty() && set.last() <= Some(MOST_INDEX));
            }
        }
    }
}
