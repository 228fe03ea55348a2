//! Throws bytes at the grammar of image references.
#![cfg_attr(fuzzing, no_main)]

use berth_images::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        let printed = reference.to_string();
        assert_eq!(printed.parse::<Reference>().expect("what is printed is read"), reference);
    }
});
