//! Run-length lists in node order, as in `SLURM_TASKS_PER_NODE`: `2(x3),1` is 2, 2, 2, 1.

use crate::grammar::{BadText, digits};

/// The list of `numbers` with equal neighbours drawn together.
pub fn print(numbers: &[u32]) -> String {
    let mut out = String::new();
    for run in numbers.chunk_by(|a, b| a == b) {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(&run[0].to_string());
        if run.len() > 1 {
            out.push_str(&format!("(x{})", run.len()));
        }
    }
    out
}

/// The numbers of a run-length list. At most 65,536 of them are read.
pub fn parse(text: &str) -> Result<Vec<u32>, BadText> {
    const MOST: usize = 65_536;
    let bad = |why: &str| BadText::new(text, "a run-length list", why);
    let mut out: Vec<u32> = Vec::new();
    if text.is_empty() {
        return Ok(out);
    }
    for item in text.split(',') {
        let (number, times) = match item.strip_suffix(')').and_then(|item| item.split_once("(x")) {
            Some((number, times)) => (number, digits(times)),
            None => (item, Some(1)),
        };
        let number = digits(number).and_then(|n| u32::try_from(n).ok());
        let times = times.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        let (Some(number), Some(times)) = (number, times) else {
            return Err(bad("write numbers separated by commas, equal ones as NUMBER(xTIMES)"));
        };
        if times > MOST - out.len() {
            return Err(bad("it stands for more than 65536 numbers"));
        }
        out.resize(out.len() + times, number);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::soup;
    use proptest::prelude::*;

    #[test]
    fn equal_neighbours_are_drawn_together() {
        for (numbers, text) in [
            (&[2, 2, 2, 1][..], "2(x3),1"),
            (&[4, 4], "4(x2)"),
            (&[1], "1"),
            (&[], ""),
            (&[2, 1, 2], "2,1,2"),
        ] {
            assert_eq!(print(numbers), text);
            assert_eq!(parse(text).unwrap(), numbers);
        }
        for text in [",", "2(x)", "2(x0)", "2x3", "a", "1(x99999999)", "2(x3"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(numbers in proptest::collection::vec(0u32..4, 0..40)) {
            prop_assert_eq!(parse(&print(&numbers)).unwrap(), numbers);
        }

        #[test]
        fn no_text_makes_it_panic(text in soup()) {
            if let Ok(numbers) = parse(&text) {
                prop_assert_eq!(parse(&print(&numbers)).unwrap(), numbers);
            }
        }
    }
}
