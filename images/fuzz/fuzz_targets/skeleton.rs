//! Makes archives again from any skeleton: nothing outside of the layer's directory is read, whatever it names.
#![cfg_attr(fuzzing, no_main)]

use libfuzzer_sys::fuzz_target;
use std::io::Write;
use std::os::fd::OwnedFd;

fuzz_target!(|input: (Vec<u8>, Vec<(Vec<u8>, u32, Vec<(u64, u64)>)>, bool)| {
    let (raw, files, all) = input;
    let place = tempfile::tempdir_in(berth_images::fuzzing::place()).unwrap();
    std::fs::write(place.path().join("outside"), b"SECRET-SECRET").unwrap();
    let tree = place.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("a"), b"inside").unwrap();
    std::os::unix::fs::symlink("../outside", tree.join("b")).unwrap();
    let mut records = b"BERTH-SKELETON-1".to_vec();
    for (name, sum, pieces) in &files {
        let name: &[u8] = match name.first() {
            None => b"a",
            Some(0) => b"b",
            Some(1) => b"../outside",
            Some(_) => name,
        };
        records.extend(b"F");
        records.extend(sum.to_le_bytes());
        records.extend(u16::try_from(name.len()).unwrap_or(0).to_le_bytes());
        records.extend(name);
        records.extend(u32::try_from(pieces.len()).unwrap().to_le_bytes());
        for (offset, length) in pieces {
            records.extend(offset.to_le_bytes());
            records.extend(length.to_le_bytes());
        }
    }
    records.write_all(&raw).unwrap();
    let directory = OwnedFd::from(std::fs::File::open(&tree).unwrap());
    if let Ok(made) = berth_images::fuzzing::skeleton(&records, &directory, all) {
        assert!(raw.windows(6).any(|w| w == b"SECRET") || !made.windows(6).any(|w| w == b"SECRET"));
    }
});
