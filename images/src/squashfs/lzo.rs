//! Unpacks LZO1X blocks, as mksquashfs and the kernel write them (kernel documentation, staging/lzo: the stream format,
//! version 0). The crates that could do it are under the GPL or were left at their first release. No place outside of what
//! was unpacked is read, and no more is unpacked than may be.

/// What the block holds; `None` when it is damaged or becomes more than `most` bytes.
pub(super) fn unpack(packed: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut block = Block { rest: packed, out: Vec::with_capacity(most.min(packed.len() * 4)), most };
    // Literals that the last instruction brought; four stands for four and more.
    let mut brought = 0;
    if let Some(first) = block.rest.first().filter(|first| **first > 17) {
        let length = usize::from(first - 17);
        block.rest = &block.rest[1..];
        block.literals(length)?;
        brought = length.min(4);
    }
    loop {
        let code = usize::from(block.byte()?);
        let (distance, length, next) = match (code, brought) {
            (64.., _) => ((block.number()? << 3) + (code >> 2 & 7) + 1, (code >> 5) + 1, code & 3),
            (32.., _) => {
                let length = 2 + block.length(code & 31, 31)?;
                let place = block.pair()?;
                ((place >> 2) + 1, length, place & 3)
            }
            (16.., _) => {
                let length = 2 + block.length(code & 7, 7)?;
                let place = block.pair()?;
                let distance = (code & 8) << 11 | place >> 2;
                if distance == 0 {
                    // The end, which is written in one way alone.
                    return (length == 3 && block.rest.is_empty()).then_some(block.out);
                }
                (distance + (16 << 10), length, place & 3)
            }
            (_, 0) => {
                let length = 3 + block.length(code, 15)?;
                block.literals(length)?;
                brought = 4;
                continue;
            }
            (_, 4) => ((block.number()? << 2) + (code >> 2) + 2049, 3, code & 3),
            _ => ((block.number()? << 2) + (code >> 2) + 1, 2, code & 3),
        };
        block.again(distance, length)?;
        block.literals(next)?;
        brought = next;
    }
}

struct Block<'a> {
    rest: &'a [u8],
    out: Vec<u8>,
    most: usize,
}

impl Block<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<usize> {
        self.byte().map(usize::from)
    }

    fn pair(&mut self) -> Option<usize> {
        Some(self.number()? | self.number()? << 8)
    }

    /// A length that stands in the instruction or, beyond `most`, behind it.
    fn length(&mut self, stated: usize, most: usize) -> Option<usize> {
        if stated > 0 {
            return Some(stated);
        }
        let mut length = most;
        loop {
            match self.number()? {
                0 => length += 255,
                last => return Some(length + last),
            }
        }
    }

    fn room(&self, length: usize) -> Option<()> {
        (length <= self.most - self.out.len()).then_some(())
    }

    fn literals(&mut self, length: usize) -> Option<()> {
        let (bytes, rest) = self.rest.split_at_checked(length)?;
        self.room(length)?;
        self.out.extend_from_slice(bytes);
        self.rest = rest;
        Some(())
    }

    /// Copies what stands `distance` bytes before the end, which may be shorter than the copy.
    fn again(&mut self, distance: usize, length: usize) -> Option<()> {
        self.room(length)?;
        let from = self.out.len().checked_sub(distance)?;
        if distance >= length {
            self.out.extend_from_within(from..from + length);
        } else {
            for at in from..from + length {
                self.out.push(self.out[at]);
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::unpack;

    const END: [u8; 3] = [0x11, 0, 0];

    fn block(parts: &[&[u8]]) -> Vec<u8> {
        [&parts.concat()[..], &END].concat()
    }

    #[test]
    fn every_instruction() {
        assert_eq!(unpack(&END, 0).unwrap(), b"");
        // Seven literals first; three bytes again from seven back, and one more literal.
        assert_eq!(
            unpack(&block(&[&[24], b"abcdefg", &[0b0100_1001 | 0b1_0000, 0, b'!']]), 99).unwrap(),
            b"abcdefgabc!"
        );
        // Two literals first, two bytes again from two back, and one more literal.
        assert_eq!(unpack(&block(&[&[19], b"ab", &[0b0101, 0, b'c']]), 99).unwrap(), b"ababc");
        // A run over itself, longer than its instruction holds: 2 + 31 + 255 + 5 times the last byte.
        let run = unpack(&block(&[&[18], b"x", &[0x20, 0, 5, 0, 0]]), 999).unwrap();
        assert_eq!(run, vec![b'x'; 1 + 2 + 31 + 255 + 5]);
        // A long row of literals: 3 + 15 + 2.
        assert_eq!(unpack(&block(&[&[0, 2], b"abcdefghijklmnopqrst"]), 99).unwrap(), b"abcdefghijklmnopqrst");
    }

    #[test]
    fn damage_and_bombs_are_refused() {
        let whole = block(&[&[24], b"abcdefg", &[0b0100_1001, 0, b'!']]);
        let length = unpack(&whole, 99).unwrap().len();
        assert!(unpack(&whole, length).is_some() && unpack(&whole, length - 1).is_none());
        for cut in 0..whole.len() {
            assert!(unpack(&whole[..cut], 99).is_none(), "{cut}");
        }
        assert!(unpack(&[&whole[..], &[0]].concat(), 99).is_none(), "bytes behind the end");
        // Farther back than anything is, near and far; and more zeros of a length than there is memory for.
        assert!(unpack(&block(&[&[18], b"x", &[0x40 | 0x1c, 1]]), 99).is_none());
        assert!(unpack(&block(&[&[18], b"x", &[0x19, 0xff, 0xff]]), 99).is_none());
        assert!(unpack(&block(&[&[18], b"x", &[0x20], &[0; 10_000], &[1, 0, 0]]), 1 << 20).is_none());
        let mut seed = 7_u64;
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..3 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = usize::try_from(seed >> 33).unwrap() % bytes.len();
                bytes[at] = seed.to_le_bytes()[6];
            }
            assert!(unpack(&bytes, 64).is_none_or(|out| out.len() <= 64));
        }
    }
}
