//! SLUIDs: names of jobs that no other job has, not of another cluster either, and not after a restore of a backup.

use crate::grammar::BadText;
use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The digits of Crockford's base 32 (<https://www.crockford.com/base32.html>): without I, L, O and U.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// How many of them 64 bits take.
const LENGTH: usize = 13;
/// Bits of the number within a millisecond.
const SEQUENCE: u32 = 10;
/// Bits of the milliseconds and of that number; above them is the realm.
const BELOW_REALM: u32 = 52;

/// A job's name among the jobs of all clusters, laid out as Slurm's: 12 bits of the realm, 42 of milliseconds since 1970, and 10
/// that tell jobs of one millisecond apart. It sorts by them as a number and as a text: `s` and 13 digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sluid(pub u64);

/// What tells the jobs of one cluster from those of another, and those of a cluster from those that it had before a backup was
/// restored: a number from 2 to 4094. The others are not given out, as in Slurm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Realm(u64);

impl Realm {
    /// The realm that a random number means.
    pub fn drawn(random: u64) -> Realm {
        Realm(2 + random % 4093)
    }
}

impl Sluid {
    /// The next one of a realm after this one: the first of the millisecond, or the one behind this where it is not earlier. A thousand jobs
    /// in a millisecond borrow from the next one.
    #[must_use]
    pub fn next(self, realm: Realm, now: Time) -> Sluid {
        let below = (1 << BELOW_REALM) - 1;
        let millis = u64::try_from(now.0 / 1000).unwrap_or(0);
        let first = (millis << SEQUENCE) & below;
        let last = self.0 & below;
        let next = if self.0 != 0 && last >= first { (last + 1) & below } else { first };
        Sluid((realm.0 << BELOW_REALM) | next)
    }

    /// Its realm; `None` where that is to be drawn (see [`Sluid::without_realm`]).
    pub fn realm(self) -> Option<Realm> {
        Some(Realm(self.0 >> BELOW_REALM)).filter(|realm| realm.0 != 0)
    }

    /// The same without its realm: what follows it is in another one, and later.
    #[must_use]
    pub fn without_realm(self) -> Sluid {
        Sluid(self.0 & ((1 << BELOW_REALM) - 1))
    }
}

impl fmt::Display for Sluid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit = |at: usize| {
            let value = usize::try_from((self.0 >> (5 * at)) & 31).unwrap_or(0);
            char::from(DIGITS[value])
        };
        let text: String = std::iter::once('s').chain((0..LENGTH).rev().map(digit)).collect();
        f.pad(&text)
    }
}

impl FromStr for Sluid {
    type Err = BadText;

    /// Capital letters and small ones are the same; O is read as 0, I and L as 1.
    fn from_str(text: &str) -> Result<Sluid, BadText> {
        let bad = || BadText::new(text, "a SLUID", "write 's' and 13 digits, such as sCN1M7XK76CZ00");
        let digits = text.strip_prefix(['s', 'S']).filter(|digits| digits.len() == LENGTH).ok_or_else(bad)?;
        let mut number: u64 = 0;
        for byte in digits.bytes() {
            let digit = match byte.to_ascii_uppercase() {
                b'O' => 0,
                b'I' | b'L' => 1,
                other => DIGITS.iter().position(|digit| *digit == other).ok_or_else(bad)?,
            };
            number = number.checked_mul(32).ok_or_else(bad)? + digit as u64;
        }
        // What has none is shown as such a name.
        if number == 0 { Err(bad()) } else { Ok(Sluid(number)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_text_is_slurms() {
        // As Slurm 26.05 printed it on 2026-11-20 at 22:44:06 UTC, with its parts.
        let one: Sluid = "sCN1M7XJ371Y00".parse().unwrap();
        assert_eq!(one.to_string(), "sCN1M7XJ371Y00");
        assert_eq!(((one.0 >> SEQUENCE) & ((1 << 42) - 1)) / 1000, 1_795_214_646);
        assert_eq!(one.0 & 0x3ff, 0);
        assert!("sCN1M7XJ372900".parse::<Sluid>().unwrap() > one);
        assert_eq!("SCNIM7XJ37LYOo".parse(), Ok(one));
        assert_eq!(Sluid(0).to_string(), "s0000000000000");
        assert_eq!(Sluid(u64::MAX).to_string(), "sFZZZZZZZZZZZZ");
        for text in [
            "",
            "s",
            "12",
            "s0000000000000",
            "sCN1M7XJ371Y0",
            "sCN1M7XJ371Y000",
            "tCN1M7XJ371Y00",
            "sCN1M7XJ371Y0U",
            "sG000000000000",
            "sCN1M7XJ371Y0\u{e9}",
            "sCN1M7XJ371Y\u{e9}",
        ] {
            assert!(text.parse::<Sluid>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_thousand_of_one_millisecond_differ_and_a_clock_that_stands_still_or_goes_back_repeats_none() {
        let realm = Realm::drawn(7);
        let mut given = vec![Sluid(0).next(realm, Time(5_000_999))];
        for at in [5_000_999; 3000].into_iter().chain([4_000_000, 5_001_000, 9_000_000, -1]) {
            let last = given[given.len() - 1];
            given.push(last.next(realm, Time(at)));
        }
        assert!(given.windows(2).all(|two| two[0] < two[1]), "{given:?}");
        assert_eq!(given[0].without_realm(), Sluid(5000 << SEQUENCE));
        assert!(given.iter().all(|one| one.realm() == Some(realm)));
    }

    #[test]
    fn what_follows_in_another_realm_is_later_and_never_the_same() {
        let now = Time(5_000_000);
        let before = Sluid(0).next(Realm::drawn(1), now);
        let after = before.without_realm().next(Realm::drawn(2), now);
        assert_ne!(before.next(Realm::drawn(1), now), after);
        assert!(after.without_realm() > before.without_realm());
        assert_eq!(before.without_realm().realm(), None);
        for random in [0, 1, 4092, 4093, u64::MAX] {
            assert!((2..=4094).contains(&Realm::drawn(random).0));
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back_and_sorts_alike(a in 1u64.., b in 1u64..) {
            let (a, b) = (Sluid(a), Sluid(b));
            prop_assert_eq!(a.to_string().parse(), Ok(a));
            prop_assert_eq!(a.to_string().to_lowercase().parse(), Ok(a));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }
    }
}
