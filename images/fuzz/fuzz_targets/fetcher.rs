//! Throws bytes at the process that fetches, as an unpacking process that was taken over would.
#![cfg_attr(fuzzing, no_main)]

use berth_images::{BlobKind, BlobSource, Digest, Result, serve_fetcher};
use libfuzzer_sys::fuzz_target;
use std::io::Read;

struct Zeros;

impl BlobSource for Zeros {
    fn describe(&self) -> String {
        "zeros".to_owned()
    }
    fn open(&self, _: BlobKind, _: &Digest, offset: u64) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(std::io::repeat(0).take(10_000_u64.saturating_sub(offset))))
    }
}

fuzz_target!(|bytes: &[u8]| {
    let _ = serve_fetcher(&Zeros, bytes, std::io::sink());
});
