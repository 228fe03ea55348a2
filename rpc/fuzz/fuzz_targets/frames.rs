//! Throws bytes at the decoder of stream frames, whole and in pieces: both give the same frames.
#![cfg_attr(fuzzing, no_main)]

use berth_stream::Decoder;
use libfuzzer_sys::fuzz_target;

fn frames(pieces: &[&[u8]]) -> Vec<berth_stream::Frame> {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    for piece in pieces {
        decoder.feed(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(_) => return found,
            }
        }
    }
    found
}

fuzz_target!(|input: (u16, &[u8])| {
    let (at, bytes) = input;
    let at = usize::from(at).min(bytes.len());
    assert_eq!(frames(&[bytes]), frames(&[&bytes[..at], &bytes[at..]]));
});
