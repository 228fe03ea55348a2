//! Reads images with a head that is one and anything behind it, and unpacks lzo blocks: what comes out is bounded.
#![cfg_attr(fuzzing, no_main)]

use libfuzzer_sys::fuzz_target;
use std::io::Write;

fuzz_target!(|bytes: &[u8]| {
    assert!(berth_images::fuzzing::lzo(bytes, 4096).is_none_or(|out| out.len() <= 4096));
    let Some((choice, rest)) = bytes.split_first() else { return };
    let mut image = rest.to_vec();
    if let Some(head) = image.get_mut(..96) {
        let log = 12 + choice % 9;
        head[..4].copy_from_slice(b"hsqs");
        head[12..16].copy_from_slice(&(1_u32 << log).to_le_bytes());
        head[20..24].copy_from_slice(&[[1, 3, 4, 6][usize::from(choice >> 6)], 0, log, 0]);
        head[28..32].copy_from_slice(&[4, 0, 0, 0]);
        head[40..48].fill(0);
    }
    let mut file = tempfile::tempfile_in(berth_images::fuzzing::place()).unwrap();
    file.write_all(&image).unwrap();
    if let Ok(archive) = berth_images::fuzzing::squashfs(file) {
        assert!(archive >= 1024 && archive % 512 == 0);
    }
});
