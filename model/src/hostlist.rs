//! Hostlists: `n[001-003,7],gpu-a[1-2]-ib[0-1].site` and the names they stand for.

use crate::grammar::BadText;
use crate::ids::NodeName;

/// Most names that one list may stand for.
pub const MOST_NAMES: usize = 65_536;
/// Longest run of digits that is read as a number.
const MOST_DIGITS: usize = 15;
const WHAT: &str = "a hostlist";

/// One bracketed range: numbers from `low` to `high`, padded with zeros to `width`.
#[derive(Clone, Copy)]
struct Range {
    low: u64,
    high: u64,
    width: usize,
}

enum Part<'a> {
    Text(&'a str),
    Numbers(Vec<Range>),
}

/// The names of a list in its order, repeated ones included. Several brackets multiply out, the last one
/// turning fastest. Names are separated by commas or blanks; empty items are skipped.
pub fn expand(text: &str) -> Result<Vec<String>, BadText> {
    let mut names = Vec::new();
    for item in items(text)? {
        expand_item(text, item, &mut names)?;
    }
    Ok(names)
}

/// The names of a list as node names, each once.
pub fn nodes(text: &str) -> Result<Vec<NodeName>, BadText> {
    let mut seen = std::collections::BTreeSet::new();
    Ok(expand(text)?.into_iter().filter(|name| seen.insert(name.clone())).map(NodeName).collect())
}

/// The names in a file of them: lists on lines of their own, `n1*4` for four times n1, comments behind `#`.
///
/// # Errors
/// A line that is no list, or more than [`MOST_NAMES`] names.
pub fn file(text: &str) -> Result<Vec<String>, BadText> {
    let mut names = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        for item in items(line)? {
            let (list, times) = match item.rsplit_once('*') {
                Some((list, times)) => (list, times.parse::<usize>().ok().filter(|n| *n > 0)),
                None => (item, Some(1)),
            };
            let times = times.ok_or_else(|| BadText::new(item, WHAT, "behind '*' is how often, from 1"))?;
            let some = expand(list)?;
            if names.len().saturating_add(some.len().saturating_mul(times)) > MOST_NAMES {
                return Err(BadText::new(item, WHAT, format!("it stands for more than {MOST_NAMES} names")));
            }
            for _ in 0..times {
                names.extend(some.iter().cloned());
            }
        }
    }
    Ok(names)
}

/// Splits at commas and blanks outside brackets.
fn items(text: &str) -> Result<Vec<&str>, BadText> {
    let mut items = Vec::new();
    let mut start = 0;
    let mut inside = false;
    for (at, c) in text.char_indices() {
        match c {
            '[' if inside => return Err(BadText::new(text, WHAT, "a bracket is opened inside a bracket")),
            '[' => inside = true,
            ']' if !inside => {
                return Err(BadText::new(text, WHAT, "a bracket is closed that was not opened"));
            }
            ']' => inside = false,
            ',' | ' ' | '\t' | '\n' if !inside => {
                items.push(&text[start..at]);
                start = at + 1;
            }
            c if c.is_control() || c.is_whitespace() => {
                return Err(BadText::new(text, WHAT, "a blank or control character is inside a name"));
            }
            _ => {}
        }
    }
    if inside {
        return Err(BadText::new(text, WHAT, "a bracket is not closed"));
    }
    items.push(&text[start..]);
    items.retain(|item| !item.is_empty());
    Ok(items)
}

fn expand_item(text: &str, item: &str, names: &mut Vec<String>) -> Result<(), BadText> {
    let too_many = || BadText::new(text, WHAT, format!("it stands for more than {MOST_NAMES} names"));
    let mut parts = Vec::new();
    let mut rest = item;
    while let Some((before, after)) = rest.split_once('[') {
        let (inner, after) =
            after.split_once(']').ok_or_else(|| BadText::new(text, WHAT, "a bracket is not closed"))?;
        parts.push(Part::Text(before));
        parts.push(Part::Numbers(ranges(text, inner)?));
        rest = after;
    }
    parts.push(Part::Text(rest));

    // The product is bounded before anything is built.
    let mut product = 1u64;
    for part in &parts {
        if let Part::Numbers(ranges) = part {
            let count = ranges.iter().try_fold(0u64, |sum, r| sum.checked_add(r.high - r.low + 1));
            product = count.and_then(|n| product.checked_mul(n)).ok_or_else(too_many)?;
        }
    }
    let room = (MOST_NAMES - names.len()) as u64;
    if product > room {
        return Err(too_many());
    }
    let mut built = vec![String::new()];
    for part in parts {
        match part {
            Part::Text(text) => built.iter_mut().for_each(|name| name.push_str(text)),
            Part::Numbers(ranges) => {
                built = built
                    .iter()
                    .flat_map(|name| {
                        ranges.iter().flat_map(move |r| {
                            (r.low..=r.high).map(move |n| format!("{name}{n:0width$}", width = r.width))
                        })
                    })
                    .collect();
            }
        }
    }
    names.append(&mut built);
    Ok(())
}

fn ranges(text: &str, inner: &str) -> Result<Vec<Range>, BadText> {
    let number = |digits: &str| {
        let good =
            !digits.is_empty() && digits.len() <= MOST_DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
        good.then(|| digits.parse::<u64>().ok()).flatten()
    };
    inner
        .split(',')
        .map(|range| {
            let (low, high) = range.split_once('-').unwrap_or((range, range));
            match (number(low), number(high)) {
                (Some(l), Some(h)) if l <= h => Ok(Range { low: l, high: h, width: low.len() }),
                _ => Err(BadText::new(
                    text,
                    WHAT,
                    format!("'{range}' is not a range; write numbers or LOW-HIGH separated by commas"),
                )),
            }
        })
        .collect()
}

/// The shortest list of `names` that keeps their order: neighbours that differ in their last number only are
/// drawn together. Names that end in anything but a number stand for themselves.
pub fn compress<S: AsRef<str>>(names: &[S]) -> String {
    let mut out = String::new();
    let split: Vec<(&str, Option<&str>)> = names.iter().map(|name| split_number(name.as_ref())).collect();
    for group in split.chunk_by(|a, b| a.0 == b.0 && a.1.is_some() && b.1.is_some()) {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(group[0].0);
        let numbers: Vec<&str> = group.iter().filter_map(|(_, number)| *number).collect();
        match numbers.as_slice() {
            [] => {}
            [only] => out.push_str(only),
            many => {
                out.push('[');
                push_ranges(&mut out, many);
                out.push(']');
            }
        }
    }
    out
}

/// As [`compress`], of the names sorted by prefix and number.
pub fn compress_sorted<S: AsRef<str>>(names: &[S]) -> String {
    let mut sorted: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    sorted.sort_by_key(|name| {
        let (prefix, number) = split_number(name);
        (prefix.to_string(), number.and_then(|n| n.parse::<u64>().ok()), number.map(str::len))
    });
    compress(&sorted)
}

/// The prefix and the trailing number of a name.
fn split_number(name: &str) -> (&str, Option<&str>) {
    let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
    if digits == 0 || digits > MOST_DIGITS {
        return (name, None);
    }
    let (prefix, number) = name.split_at(name.len() - digits);
    (prefix, Some(number))
}

fn push_ranges(out: &mut String, numbers: &[&str]) {
    let mut first = true;
    let mut rest = numbers;
    while let Some((low, after)) = rest.split_first() {
        let mut last = *low;
        let mut next = after;
        // `last` is digits by construction; a number that continues it is its successor at the same width.
        while let (Some(number), Ok(value)) = (next.first(), last.parse::<u64>()) {
            if *number != format!("{:0width$}", value + 1, width = low.len()) {
                break;
            }
            last = number;
            next = &next[1..];
        }
        if !first {
            out.push(',');
        }
        first = false;
        out.push_str(low);
        if last != *low {
            out.push('-');
            out.push_str(last);
        }
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::soup;
    use proptest::prelude::*;

    #[test]
    fn lists_expand_in_order() {
        for (list, names) in [
            ("n1", "n1"),
            ("n[1-3]", "n1 n2 n3"),
            ("n[1,3,5-7]", "n1 n3 n5 n6 n7"),
            ("n[001-003]", "n001 n002 n003"),
            ("n[08-11]", "n08 n09 n10 n11"),
            ("n[01-3]", "n01 n02 n03"),
            ("n[1-03]", "n1 n2 n3"),
            ("n[1-2],m[3-4]", "n1 n2 m3 m4"),
            ("r[1-2]n[1-3]", "r1n1 r1n2 r1n3 r2n1 r2n2 r2n3"),
            ("r[1-2]-c[0-1]-n[1]", "r1-c0-n1 r1-c1-n1 r2-c0-n1 r2-c1-n1"),
            ("a-b-c-d-[1-3]", "a-b-c-d-1 a-b-c-d-2 a-b-c-d-3"),
            ("x-1-2-[3-4]-5", "x-1-2-3-5 x-1-2-4-5"),
            ("n[1-2].dom.org", "n1.dom.org n2.dom.org"),
            ("n1,,n2", "n1 n2"),
            ("n1 n2", "n1 n2"),
            ("n[1-2][3-4]", "n13 n14 n23 n24"),
            ("10.0.0.[1-3]", "10.0.0.1 10.0.0.2 10.0.0.3"),
            ("[1-3]", "1 2 3"),
            ("n[9-10],n[099-101]", "n9 n10 n099 n100 n101"),
            ("tux[1-3,5]-ib0", "tux1-ib0 tux2-ib0 tux3-ib0 tux5-ib0"),
            ("", ""),
        ] {
            assert_eq!(expand(list).unwrap().join(" "), names, "{list}");
        }
    }

    #[test]
    fn bad_and_boundless_lists_are_refused_at_once() {
        for list in [
            "n[1-3",
            "n1-3]",
            "n[]",
            "n[a]",
            "n[3-1]",
            "n[1-10:3]",
            "n[1, 2]",
            "n[1-65537]",
            "n[0-4000000000]",
            "n[0-999999]m[0-999999]o[0-999999]p[0-999999]",
            "n[1-40000],n[1-40000]",
            "n[99999999999999999999]",
            "n[[1]]",
            "n[1-2-3]",
            "n[-1]",
        ] {
            assert!(expand(list).is_err(), "{list}");
        }
    }

    #[test]
    fn names_are_drawn_together_as_scontrol_does() {
        for (names, list, sorted) in [
            ("n1", "n1", "n1"),
            ("n1,n2,n3", "n[1-3]", "n[1-3]"),
            ("n3,n1,n2", "n[3,1-2]", "n[1-3]"),
            ("n1,n3,n5,n6,n7", "n[1,3,5-7]", "n[1,3,5-7]"),
            ("n001,n002,n003", "n[001-003]", "n[001-003]"),
            ("n08,n09,n10,n11", "n[08-11]", "n[08-11]"),
            ("n8,n9,n10,n11", "n[8-11]", "n[8-11]"),
            ("n1,n1,n1", "n[1,1,1]", "n[1,1,1]"),
            ("n1,m3,n2,m4", "n1,m3,n2,m4", "m[3-4],n[1-2]"),
            ("r1n1,r1n2,r2n1,r2n2", "r1n[1-2],r2n[1-2]", "r1n[1-2],r2n[1-2]"),
            ("a-b-1,a-b-2,a-b-3", "a-b-[1-3]", "a-b-[1-3]"),
            ("n1.dom,n2.dom", "n1.dom,n2.dom", "n1.dom,n2.dom"),
            ("n[1-3],n[2-5]", "n[1-3,2-5]", "n[1-2,2-3,3-5]"),
            ("foo,bar,baz", "foo,bar,baz", "bar,baz,foo"),
            ("n1,n01,n001", "n[1,01,001]", "n[1,01,001]"),
            ("n9,n10,n099,n100", "n[9-10,099-100]", "n[9-10,099-100]"),
            ("1,2,3", "[1-3]", "[1-3]"),
            ("n1a,n2a", "n1a,n2a", "n1a,n2a"),
        ] {
            let names = expand(names).unwrap();
            assert_eq!(compress(&names), list);
            assert_eq!(compress_sorted(&names), sorted);
        }
    }

    #[test]
    fn node_names_come_once() {
        assert_eq!(nodes("n[1-2],n1").unwrap(), [NodeName::from("n1"), NodeName::from("n2")]);
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(
            names in proptest::collection::vec("[a-z]{0,2}[0-9]{0,3}(-[a-z0-9.]{0,3})?[0-9]{0,17}", 0..30)
        ) {
            let names: Vec<String> = names.into_iter().filter(|n| !n.is_empty()).collect();
            prop_assert_eq!(expand(&compress(&names)).unwrap(), names);
        }

        #[test]
        fn sorting_loses_no_name(names in proptest::collection::vec("n[0-9]{1,3}", 0..30)) {
            let mut there = expand(&compress_sorted(&names)).unwrap();
            let mut names = names;
            there.sort();
            names.sort();
            prop_assert_eq!(there, names);
        }

        #[test]
        fn no_text_makes_it_panic(text in soup()) {
            if let Ok(names) = expand(&text) {
                prop_assert_eq!(expand(&compress(&names)).unwrap(), names);
            }
        }
    }
}
