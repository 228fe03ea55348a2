//! Throws bytes at the process that unpacks, as the user's own process that fetches may.
#![cfg_attr(fuzzing, no_main)]

use berth_images::{BlobKind, BlobSource, Digest, RemoteSource};
use libfuzzer_sys::fuzz_target;
use std::io::Read;

fuzz_target!(|bytes: Vec<u8>| {
    let limit = bytes.len() as u64;
    let source = RemoteSource::new("fuzz", std::io::Cursor::new(bytes), std::io::sink());
    let digest: Digest = format!("sha256:{:064}", 0).parse().unwrap();
    if let Ok(blob) = source.open(BlobKind::Blob, &digest, 0) {
        let mut got = Vec::new();
        let _ = blob.take(limit + 1).read_to_end(&mut got);
        assert!(got.len() as u64 <= limit, "more bytes than arrived");
    }
});
