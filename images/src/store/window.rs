//! Windows of zstd: how far back a frame may refer is memory that unpacking takes. Usual ones are counted with what layers remember, and
//! large ones are had one at a time, so that an import of many layers does not take them many times.

use std::io::{self, BufRead, Read};

use super::Charge;

/// 8 MiB: what every reader of the format is to support (RFC 8878, section 3.1.1.1.2).
const USUAL: u32 = 23;
/// 128 MiB: zstd's own limit, which bounds what a hostile frame can ask for.
const LARGEST: u32 = 27;

/// What the frames of a layer have in them, one after the other.
pub(super) struct Frames<'a, R> {
    /// Between two frames.
    input: Option<R>,
    frame: Option<zstd::Decoder<'static, R>>,
    /// The largest window so far, which stays accounted for.
    window: u64,
    charge: &'a Charge<'a>,
}

impl<'a, R: BufRead> Frames<'a, R> {
    pub(super) fn new(input: R, charge: &'a Charge<'a>) -> Self {
        Self { input: Some(input), frame: None, window: 0, charge }
    }
}

impl<R: BufRead> Read for Frames<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(frame) = &mut self.frame {
                let read = frame.read(buffer)?;
                if read > 0 || buffer.is_empty() {
                    return Ok(read);
                }
                self.input = self.frame.take().map(zstd::Decoder::finish);
            }
            let Some(mut input) = self.input.take() else { return Ok(0) };
            let start = input.fill_buf()?;
            if start.is_empty() {
                return Ok(0);
            }
            // What these bytes do not say may be large.
            let usual = window(start).filter(|window| *window <= 1 << USUAL);
            match usual {
                Some(window) if window > self.window => {
                    self.charge.memory(window - self.window)?;
                    self.window = window;
                }
                Some(_) => {}
                None => self.charge.alone()?,
            }
            let mut frame = zstd::Decoder::with_buffer(input)?.single_frame();
            frame.window_log_max(if usual.is_some() { USUAL } else { LARGEST })?;
            self.frame = Some(frame);
        }
    }
}

/// The window of a frame (RFC 8878, section 3.1.1.1); nothing where these bytes do not say it.
fn window(start: &[u8]) -> Option<u64> {
    // A frame that is skipped (section 3.1.2), as those with the tables of zstd:chunked are.
    if start.first_chunk().is_some_and(|magic| u32::from_le_bytes(*magic) >> 4 == 0x0184_d2a5) {
        return Some(0);
    }
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
            b"\x50\x2a\x4d",
        ] {
            assert_eq!(window(cut), None);
        }
        for skipped in [b"\x50\x2a\x4d\x18", b"\x5f\x2a\x4d\x18"] {
            assert_eq!(window(skipped), Some(0));
        }
    }

    #[test]
    fn each_frame_has_the_window_that_it_needs_and_large_ones_are_had_one_at_a_time() {
        let read = |bytes: &[u8], charge: &Charge<'_>| {
            let mut all = Vec::new();
            Frames::new(bytes, charge).read_to_end(&mut all).map(|_| all)
        };
        let (usual, large) = (compressed(23, 5000), compressed(25, 7000));
        let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec();
        let (one, two) = (Charge::new(None), Charge::new(None));
        let many = [usual.clone(), large.clone(), skippable, usual.clone()].concat();
        assert_eq!(read(&many, &one).unwrap(), vec![7; 17_000]);
        // It holds its turn until it is written; those with usual windows wait for nobody.
        assert_eq!(read(&usual, &two).unwrap().len(), 5000);
        let waits = std::thread::spawn(move || {
            Frames::new(large.as_slice(), &Charge::new(None)).read_to_end(&mut Vec::new()).unwrap()
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waits.is_finished());
        drop(one);
        assert_eq!(waits.join().unwrap(), 7000);
        for damaged in [&usual[..usual.len() - 1], &[&usual[..], b"more"].concat()] {
            assert!(read(damaged, &two).is_err());
        }
        assert!(read(&compressed(28, 5000), &two).is_err(), "larger than any may be");
    }
}
