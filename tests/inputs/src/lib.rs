//! Stands in for libfuzzer in test runs: [`fuzz_target!`] makes a test that calls a target with its first inputs.
//!
//! As a dependency of tests it has libfuzzer's name, so that the sources of targets are the same for both, and it makes a target's
//! input of bytes as libfuzzer does, by `Arbitrary`. It learns nothing from what a target does: that is for `tests/fuzz.sh`. The
//! module that has a package's targets says in a constant `SEEDS` what they begin with.
#![forbid(unsafe_code)]

mod source;

pub use arbitrary;

use source::Source;

/// What the targets of a package begin with.
#[derive(Clone, Copy, Debug)]
pub struct Seeds {
    /// Words and whole texts of what they read. Each is an input by itself, and others are put together of them.
    pub words: &'static [&'static str],
    /// Targets that make files or start programs, and get fewer inputs for it.
    pub slow: &'static [&'static str],
}

/// Inputs that are made for a target, besides the words.
const INPUTS: usize = 400;
/// The same for one that takes its time.
const SLOW: usize = 60;

/// Calls a target with its first inputs, which are the same in each run; the last name in the path of its module is the target's.
///
/// # Panics
/// The target did; the input is told then.
pub fn each(module: &str, seeds: &Seeds, mut target: impl FnMut(&[u8])) {
    let name = module.rsplit("::").next().unwrap_or(module);
    let made = if seeds.slow.contains(&name) { SLOW } else { INPUTS };
    let mut source = Source::of(name);
    let mut call = |bytes: &[u8]| {
        let told = Told { name, bytes };
        target(bytes);
        drop(told);
    };
    call(b"");
    for word in seeds.words {
        call(word.as_bytes());
    }
    for _ in 0..made {
        call(&source.input(seeds.words));
    }
}

/// Tells of the input with which a target panics.
struct Told<'a> {
    name: &'a str,
    bytes: &'a [u8],
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("what fuzz target {} found is in input b\"{}\"", self.name, self.bytes.escape_ascii());
        }
    }
}

/// Makes a test of a target, as libfuzzer's macro of this name makes a program of it.
#[macro_export]
macro_rules! fuzz_target {
    (|$input:ident: $type:ty| $body:block) => {
        #[test]
        #[allow(clippy::type_complexity, reason = "what a target is given is its own affair")]
        fn finds_nothing_in_its_first_inputs() {
            fn target($input: $type) $body

            $crate::each(module_path!(), &super::SEEDS, |bytes| {
                use $crate::arbitrary::{Arbitrary, Unstructured};
                // Bytes of which nothing can be made are no input, for libfuzzer either.
                if let Ok(input) = <$type as Arbitrary>::arbitrary_take_rest(Unstructured::new(bytes)) {
                    target(input);
                }
            });
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const SEEDS: Seeds = Seeds { words: &["first", "a whole text"], slow: &["late"] };

    fn inputs(module: &str) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        each(module, &SEEDS, |bytes| all.push(bytes.to_vec()));
        all
    }

    #[test]
    fn inputs_are_the_same_in_each_run_and_others_for_each_target() {
        let one = inputs("package::targets::one");
        assert_eq!(one, inputs("elsewhere::one"));
        assert_eq!(one.len(), 1 + SEEDS.words.len() + INPUTS);
        assert_eq!(&one[..3], [&b""[..], b"first", b"a whole text"]);
        let late = inputs("package::targets::late");
        assert_eq!(late.len(), 1 + SEEDS.words.len() + SLOW);
        assert_eq!(&late[..3], &one[..3]);
        assert_ne!(&late[3..], &one[3..late.len()]);
    }

    #[test]
    fn inputs_are_of_all_kinds() {
        let all = inputs("one");
        let some = |what: &str, wanted: &dyn Fn(&[u8]) -> bool| {
            let count = all.iter().filter(|bytes| wanted(bytes)).count();
            assert!(count >= 10, "{count} of {} inputs: {what}", all.len());
        };
        let distinct = |bytes: &[u8]| bytes.iter().collect::<BTreeSet<_>>().len();
        some("short", &|bytes| bytes.len() < 8);
        some("long", &|bytes| bytes.len() > 1024);
        some("of few bytes", &|bytes| bytes.len() > 64 && distinct(bytes) < 8);
        some("of any bytes", &|bytes| distinct(bytes) > 128);
        some("text", &|bytes| bytes.len() > 64 && bytes.is_ascii());
        some("words", &|bytes| bytes.windows(12).any(|part| part == b"a whole text"));
        // Each member of a list follows a byte that says that it is there.
        some("lists", &|bytes| bytes.len() > 64 && bytes.iter().step_by(2).all(|byte| byte & 1 == 1));
    }

    #[test]
    fn what_a_target_finds_fails_its_test() {
        let finds = |wanted: fn(&[u8]) -> bool| {
            std::panic::catch_unwind(|| each("one", &SEEDS, |bytes| assert!(!wanted(bytes)))).is_err()
        };
        assert!(finds(|bytes| bytes.is_empty()));
        assert!(finds(|bytes| bytes == b"a whole text"));
        assert!(finds(|bytes| bytes.len() > 1024));
        assert!(!finds(|bytes| bytes.len() > 1 << 20));
    }

    /// A target is a test in the module that calls the macro, and may return early.
    mod typed {

        fuzz_target!(|input: (bool, Option<Vec<u8>>, &str)| {
            let (_, bytes, text) = input;
            let Some(bytes) = bytes else { return };
            assert!(bytes.len() + text.len() < 1 << 20);
        });
    }
}
