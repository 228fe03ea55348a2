//! Throws bytes at the reader of tar archives, with right checksums so that it looks at the rest.
#![cfg_attr(fuzzing, no_main)]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut archive = bytes.to_vec();
    for block in archive.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
    for archive in [bytes, &archive] {
        if let Ok(data) = berth_images::fuzzing::archive(archive) {
            assert!(data <= archive.len() as u64);
        }
    }
});
