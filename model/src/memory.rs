//! Amounts of memory (`--mem`): integers with a suffix of base 1024, kept in MiB.

use crate::grammar::{BadText, digits};

const WHAT: &str = "an amount of memory";

/// MiB in `text`: an integer with an optional suffix K, M, G or T, in either case and with an optional B;
/// without a suffix it is MiB. Kilobytes are rounded up to whole MiB.
pub fn parse(text: &str) -> Result<u64, BadText> {
    let bad = || BadText::new(text, WHAT, "write an integer, with K, M (the default), G or T");
    let at = text.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(at);
    let number = digits(number).ok_or_else(bad)?;
    let mib = match suffix.to_ascii_lowercase().as_str() {
        "k" | "kb" => Some(number.div_ceil(1024)),
        "" | "m" | "mb" => Some(number),
        "g" | "gb" => number.checked_mul(1 << 10),
        "t" | "tb" => number.checked_mul(1 << 20),
        _ => return Err(bad()),
    };
    // Bytes must fit in 63 bits: that is what the kernel's files take.
    mib.filter(|m| *m < 1 << 43).ok_or_else(|| BadText::new(text, WHAT, "it is more than any machine has"))
}

/// The shortest exact form: `100M`, `4000M`, `1G`, `2T`.
pub fn print(mib: u64) -> String {
    if mib == 0 {
        return "0".to_string();
    }
    if mib.is_multiple_of(1 << 20) {
        format!("{}T", mib >> 20)
    } else if mib.is_multiple_of(1 << 10) {
        format!("{}G", mib >> 10)
    } else {
        format!("{mib}M")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::soup;
    use proptest::prelude::*;

    #[test]
    fn suffixes_mean_what_slurm_means() {
        for (text, mib) in [
            ("100", 100),
            ("1G", 1024),
            ("1g", 1024),
            ("10mb", 10),
            ("10MB", 10),
            ("1GB", 1024),
            ("1024K", 1),
            ("1023K", 1),
            ("1K", 1),
            ("500KB", 1),
            ("1025k", 2),
            ("1T", 1 << 20),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Ok(mib), "{text}");
        }
        for text in [
            "",
            "1.5G",
            "1.5",
            "-1",
            "abc",
            "1X",
            "1GiB",
            "G",
            "1MM",
            "1 G",
            "99999999T",
            "99999999999999999999",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_print_in_the_largest_exact_unit() {
        for (mib, text) in
            [(0, "0"), (1, "1M"), (4000, "4000M"), (5120, "5G"), (1 << 20, "1T"), (1025, "1025M")]
        {
            assert_eq!(print(mib), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(mib in 0u64..1 << 43) {
            prop_assert_eq!(parse(&print(mib)), Ok(mib));
        }

        #[test]
        fn no_text_makes_it_panic(text in soup()) {
            if let Ok(mib) = parse(&text) {
                prop_assert_eq!(parse(&print(mib)), Ok(mib));
            }
        }
    }
}
