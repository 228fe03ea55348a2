//! One 512-byte header block: checksum, numbers in octal and base 256, names.

use super::{BLOCK, refused};
use crate::error::Result;

/// A header block whose checksum is right.
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

/// Which dialect the magic field names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Ustar,
    Gnu,
    V7,
}

impl<'a> Header<'a> {
    /// Checks the checksum, in its unsigned and its historical signed form.
    pub(super) fn new(block: &'a [u8; BLOCK]) -> Result<Self> {
        let header = Self(block);
        let stored = header.number(148, 8, "checksum")?;
        let mut unsigned = 0i64;
        let mut signed = 0i64;
        for (at, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stored != unsigned && stored != signed {
            return Err(refused(&[], "a header has a wrong checksum (not a tar stream, or damaged)"));
        }
        Ok(header)
    }

    pub(super) fn dialect(&self) -> Dialect {
        match &self.0[257..265] {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar\0") => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    /// The name, with the prefix of POSIX ustar.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = if self.dialect() == Dialect::Ustar { text(&self.0[345..500]) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u32> {
        Ok(u32::try_from(self.number(100, 8, "mode")? & 0o7777).unwrap_or_default())
    }

    /// A user or a group by number; whoever writes nonsense there writes root.
    pub(super) fn id(&self, at: usize) -> u32 {
        number(&self.0[at..at + 8]).and_then(|id| u32::try_from(id).ok()).unwrap_or(0)
    }

    pub(super) fn size(&self) -> Result<u64> {
        u64::try_from(self.number(124, 12, "size")?)
            .map_err(|_| refused(&self.path(), "its size is negative"))
    }

    /// Whether the size field is in octal, so that it could have held any size below 8 GiB.
    pub(super) fn size_is_octal(&self) -> bool {
        self.0[124] & 0x80 == 0
    }

    pub(super) fn mtime(&self) -> Result<i64> {
        self.number(136, 12, "modification time")
    }

    pub(super) fn block(&self) -> &'a [u8; BLOCK] {
        self.0
    }

    pub(super) fn number(&self, at: usize, length: usize, what: &str) -> Result<i64> {
        number(&self.0[at..at + length])
            .ok_or_else(|| refused(&self.path(), format!("its {what} is not a number")))
    }
}

/// A numeric field: octal text, or big-endian base 256 when the first bit is set. `None` for anything else.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = if at == 0 { if negative { byte | 0x80 } else { byte & 0x3f } } else { *byte };
            value = (value << 8) | i128::from(byte);
            // Twelve bytes fit i128 by far; what does not fit i64 is refused below.
        }
        return i64::try_from(value).ok();
    }
    let digits: &[u8] = {
        let start = field.iter().position(|b| *b != b' ').unwrap_or(field.len());
        let rest = &field[start..];
        let end = rest.iter().position(|b| matches!(b, 0 | b' ')).unwrap_or(rest.len());
        if rest[end..].iter().any(|b| !matches!(b, 0 | b' ')) {
            return None;
        }
        &rest[..end]
    };
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// The bytes before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"00006x4\0"), None);
        assert_eq!(number(b"0644\0 9\0"), None);
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\0\0\x01\x02"), Some(0x102));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), Some(-1));
        assert_eq!(number(b"\x80\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
    }
}
