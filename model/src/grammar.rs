//! The one error of all grammars: which text, what it should have been, and what would be right.

/// A text does not follow its grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not {what}: {why}")]
pub struct BadText {
    /// The text, or the part of it that is wrong.
    pub text: String,
    /// What it should have been, with its article: `a time limit`.
    pub what: &'static str,
    /// What is wrong with it, or which forms are right.
    pub why: String,
}

impl BadText {
    /// An error about `text`.
    pub fn new(text: impl Into<String>, what: &'static str, why: impl Into<String>) -> BadText {
        BadText { text: text.into(), what, why: why.into() }
    }
}

/// A number of ASCII digits only (no sign, no blank), or `None` where it is empty, something else or too
/// large for 64 bits.
pub(crate) fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Strings for the tests that throw anything at a parser: the pieces of all grammars, in any order.
#[cfg(test)]
pub(crate) fn soup() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;
    let piece = prop_oneof![
        4 => "[0-9]{1,3}",
        1 => "[0-9]{9,22}",
        3 => proptest::sample::select(vec![
            "-", ":", ",", "%", "[", "]", "_", ".", "/", "@", "+", "=", "(", ")", " ", "\\", "x", "#", "\"", "'",
            "now", "UNLIMITED", "infinite", "K", "g", "mb", "T", "noon", "tomorrow", "PM", "uts", "gpu", "gres/",
            "none", "ALL", "B:", "USR1", "SIG", "batch", "(x", "n", "é", "\u{0}", "\n", "%5j", "%t", "days",
        ])
        .prop_map(str::to_string),
        1 => any::<char>().prop_map(String::from),
    ];
    proptest::collection::vec(piece, 0..9).prop_map(|pieces| pieces.concat())
}
