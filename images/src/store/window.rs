//! Windows of zstd: how far back a frame may refer is memory that unpacking takes. Large ones are had one at a time, so that an import of
//! many layers takes no more memory for them than one layer does.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// 8 MiB: what every reader of the format is to support (RFC 8878, section 3.1.1.1.2).
const USUAL: u32 = 23;
/// 128 MiB: zstd's own limit, which bounds what a hostile frame can ask for.
const LARGEST: u32 = 27;

/// Held by whoever has a large window.
static LARGE: Mutex<()> = Mutex::new(());

/// How large windows may be (a power of two) of what begins with these bytes, and what is to be held meanwhile: waits where another layer
/// has a large one.
pub(super) fn bound(start: &[u8]) -> (u32, Option<MutexGuard<'static, ()>>) {
    match window(start) {
        Some(window) if window <= 1 << USUAL => (USUAL, None),
        _ => (LARGEST, Some(LARGE.lock().unwrap_or_else(PoisonError::into_inner))),
    }
}

/// The window of the first frame (RFC 8878, section 3.1.1.1); nothing where these bytes do not say it.
fn window(start: &[u8]) -> Option<u64> {
    let header = start.strip_prefix(b"\x28\xb5\x2f\xfd")?;
    let (descriptor, rest) = header.split_first()?;
    let single = descriptor & 0x20 != 0;
    if !single {
        let byte = u64::from(*rest.first()?);
        let base = 1u64 << (10 + (byte >> 3));
        return Some(base + base / 8 * (byte & 7));
    }
    // Then the window is the content, whose size stands behind the dictionary's number.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size = rest.get(dictionary..)?;
    Some(match descriptor >> 6 {
        0 => u64::from(*size.first()?),
        1 => u64::from(u16::from_le_bytes(size.first_chunk().copied()?)) + 256,
        2 => u64::from(u32::from_le_bytes(size.first_chunk().copied()?)),
        _ => u64::from_le_bytes(size.first_chunk().copied()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Compressed with a window of this power of two; pieces, so that the size is not known in front.
    fn compressed(log: u32, bytes: usize) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        for piece in vec![7u8; bytes].chunks(1000) {
            encoder.write_all(piece).unwrap();
        }
        encoder.finish().unwrap()
    }

    #[test]
    fn windows_are_read_as_the_encoder_wrote_them() {
        for log in [10, 17, 22, 23, 24, 27] {
            assert_eq!(window(&compressed(log, 5000)), Some(1 << log), "{log}");
        }
        // One that says its size has no window but that.
        for bytes in [0usize, 1, 255, 256, 300, 65_791, 65_792, 1 << 20] {
            let whole = zstd::bulk::compress(&vec![7u8; bytes], 1).unwrap();
            let window = window(&whole).unwrap();
            assert!(window == bytes as u64 || window >= bytes.min(1 << 19) as u64, "{bytes}: {window}");
        }
        for cut in [
            &b""[..],
            b"\x28\xb5\x2f\xfd",
            b"\x28\xb5\x2f\xfd\x20",
            b"\x28\xb5\x2f\xfd\xe3\x01",
            b"\x50\x2a\x4d\x18",
        ] {
            assert_eq!(window(cut), None);
        }
    }

    #[test]
    fn one_large_window_is_had_at_a_time_and_usual_ones_wait_for_nobody() {
        let (large, usual) = (compressed(25, 5000), compressed(23, 5000));
        let (log, held) = bound(&large);
        assert!(log == LARGEST && held.is_some());
        assert!(bound(&usual).1.is_none());
        let second = std::thread::spawn(move || bound(&large).1.is_some());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!second.is_finished());
        drop(held);
        assert!(second.join().unwrap());
    }
}
