//! Generic resources as they are asked for: `--gres=gpu:2,gpu:a100:1` and `--gpus=a100:2`.

use crate::grammar::{BadText, digits};
use crate::tres::GresKey;
use std::collections::BTreeMap;

/// Amounts by resource; never zero.
pub type Wanted = BTreeMap<GresKey, u64>;
const MOST: u64 = 1 << 32;

/// `name[[:type]:count][,...]`, each optionally prefixed `gres/` and with `=` before the count. The count is 1
/// by default and takes suffixes k, m and g; `none` asks for nothing. Repeated resources add up.
pub fn parse(text: &str) -> Result<Wanted, BadText> {
    const WHAT: &str = "a generic resource request";
    let mut wanted = Wanted::new();
    if text.eq_ignore_ascii_case("none") {
        return Ok(wanted);
    }
    for item in text.split(',') {
        let bad = |why: &str| BadText::new(item, WHAT, why);
        let plain = item.strip_prefix("gres/").or_else(|| item.strip_prefix("gres:")).unwrap_or(item);
        let (head, count) = match plain.split_once('=') {
            Some((head, count)) => (head, Some(amount(count).ok_or_else(|| bad("after = stands a count"))?)),
            None => (plain, None),
        };
        let mut words: Vec<&str> = head.split(':').collect();
        let count = match count {
            Some(count) => count,
            // The last word is the count if it looks like one: `gpu:a100` is a type.
            None => match words.last().and_then(|last| amount(last)) {
                Some(count) if words.len() > 1 => {
                    words.pop();
                    count
                }
                _ => 1,
            },
        };
        let key = match words.as_slice() {
            [name] => GresKey { name: (*name).to_string(), kind: None },
            [name, kind] => GresKey { name: (*name).to_string(), kind: Some((*kind).to_string()) },
            _ => return Err(bad("write NAME, NAME:COUNT, NAME:TYPE or NAME:TYPE:COUNT")),
        };
        add(&mut wanted, item, WHAT, key, count)?;
    }
    Ok(wanted)
}

/// `[type:]count[,...]`, of GPUs.
pub fn parse_gpus(text: &str) -> Result<Wanted, BadText> {
    const WHAT: &str = "a number of GPUs";
    let mut wanted = Wanted::new();
    for item in text.split(',') {
        let bad = || BadText::new(item, WHAT, "write COUNT or TYPE:COUNT");
        let (kind, count) = match item.split_once(':') {
            Some((kind, count)) => (Some(kind.to_string()), amount(count).ok_or_else(bad)?),
            None => match amount(item) {
                Some(count) => (None, count),
                None => (Some(item.to_string()), 1),
            },
        };
        add(&mut wanted, item, WHAT, GresKey { name: "gpu".to_string(), kind }, count)?;
    }
    Ok(wanted)
}

fn add(wanted: &mut Wanted, item: &str, what: &'static str, key: GresKey, count: u64) -> Result<(), BadText> {
    let word = |s: &str| {
        // `gres` and `none` are words of the grammar.
        !["gres", "none"].iter().any(|taken| s.eq_ignore_ascii_case(taken))
            && s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
    };
    // A type may begin with a digit (`1g.5gb`), but is never a bare number.
    let kind = |s: &str| {
        !s.is_empty()
            && amount(s).is_none()
            && !s.starts_with('-')
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
    };
    if !word(&key.name) || !key.kind.as_deref().is_none_or(kind) {
        let why = "names and types are letters, digits, '_', '-' and '.', and a count is a number from 0";
        return Err(BadText::new(item, what, why));
    }
    if count == 0 {
        return Ok(());
    }
    let slot = wanted.entry(key).or_default();
    *slot = slot.saturating_add(count);
    if *slot > MOST {
        return Err(BadText::new(item, what, "the count is too large"));
    }
    Ok(())
}

fn amount(text: &str) -> Option<u64> {
    let (number, unit) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    digits(number).and_then(|n| n.checked_mul(unit))
}

/// The request as `scontrol` prints it: `gpu:2,gpu:a100:1`; `none` for nothing.
pub fn print(wanted: &Wanted) -> String {
    if wanted.is_empty() {
        return "none".to_string();
    }
    wanted.iter().map(|(key, n)| format!("{key}:{n}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::soup;
    use proptest::prelude::*;

    fn printed(text: &str) -> String {
        print(&parse(text).unwrap())
    }

    #[test]
    fn every_form_is_read() {
        for (text, expected) in [
            ("gpu", "gpu:1"),
            ("gpu:2", "gpu:2"),
            ("gpu:a100", "gpu:a100:1"),
            ("gpu:a100:4", "gpu:a100:4"),
            ("gres/gpu:2", "gpu:2"),
            ("gres:gpu:2", "gpu:2"),
            ("gpu=1", "gpu:1"),
            ("gpu:a100=3", "gpu:a100:3"),
            ("gpu:1k", "gpu:1024"),
            ("gpu:0", "none"),
            ("none", "none"),
            ("NONE", "none"),
            ("gpu:1,nic:2", "gpu:1,nic:2"),
            ("gpu:1,gpu:1", "gpu:2"),
            ("gpu:1g.5gb:2", "gpu:1g.5gb:2"),
        ] {
            assert_eq!(printed(text), expected, "{text}");
        }
        for text in [
            "",
            "gpu:",
            ":1",
            "gpu:-1",
            "gpu:a:b:1",
            "gpu,",
            "gpu:1:2",
            "gpu= 1",
            "gpu:1.5:a:2",
            "9",
            "gpu:99999999999",
            "gres",
            "none:1",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn gpus_are_gres_of_that_name() {
        for (text, expected) in [
            ("2", "gpu:2"),
            ("a100:2", "gpu:a100:2"),
            ("a100", "gpu:a100:1"),
            ("0", "none"),
            ("test:1,h100:1", "gpu:h100:1,gpu:test:1"),
        ] {
            assert_eq!(print(&parse_gpus(text).unwrap()), expected, "{text}");
        }
        for text in ["", "-1", "a100:", "a100:x", ":2", "1:2"] {
            assert!(parse_gpus(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(
            items in proptest::collection::vec(("[a-z_][a-z0-9_.-]{0,4}", proptest::option::of("[a-z][a-z0-9.]{0,4}"), 1u64..2000), 0..5)
        ) {
            let mut wanted = Wanted::new();
            for (name, kind, n) in items {
                prop_assume!(name != "none" && name != "gres");
                *wanted.entry(GresKey { name, kind }).or_default() += n;
            }
            prop_assert_eq!(parse(&print(&wanted)).unwrap(), wanted);
        }

        #[test]
        fn no_text_makes_it_panic(text in soup()) {
            for wanted in [parse(&text), parse_gpus(&text)].into_iter().flatten() {
                prop_assert_eq!(parse(&print(&wanted)).unwrap(), wanted);
            }
        }
    }
}
