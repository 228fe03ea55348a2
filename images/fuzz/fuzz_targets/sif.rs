//! Reads files with the head of a SIF and any descriptors: what is found lies in the file.
#![cfg_attr(fuzzing, no_main)]

use libfuzzer_sys::fuzz_target;
use std::io::Write;

fuzz_target!(|bytes: &[u8]| {
    let mut image = bytes.to_vec();
    if let Some(head) = image.get_mut(..128) {
        head[32..44].copy_from_slice(b"SIF_MAGIC\x0001");
        // Few descriptors, right behind the head.
        let count = u64::from(head[88] % 8);
        head[88..96].copy_from_slice(&count.to_le_bytes());
        head[96..104].copy_from_slice(&128_u64.to_le_bytes());
        head[104..112].copy_from_slice(&(count * 585).to_le_bytes());
    }
    let mut file = tempfile::tempfile_in(berth_images::fuzzing::place()).unwrap();
    file.write_all(&image).unwrap();
    for (place, length) in berth_images::fuzzing::sif(&file).into_iter().flatten() {
        assert!(place + length <= image.len() as u64);
    }
});
