//! Throws text at the reader of join tokens: what it takes it writes again letter by letter, and what it refuses it does not
//! repeat.
#![cfg_attr(fuzzing, no_main)]

use berth_trust::{JoinToken, TrustError};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &str)| {
    let (begun, rest) = input;
    let text = if begun { format!("berth1.{rest}") } else { rest.to_string() };
    match text.parse::<JoinToken>() {
        Ok(token) => assert_eq!(token.to_string(), text.trim()),
        // Words that were there before the text came: none of them is anybody's secret.
        Err(error) => assert!(matches!(error, TrustError::Token(_)), "{error}"),
    }
});
