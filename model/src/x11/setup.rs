//! The first words of an X connection, by which a program is let in or not: read, given another cookie, or answered with a refusal (X Window
//! System Protocol, section 8, "Connection Setup").

/// The only way of proving oneself that is carried.
const PROTOCOL: &[u8] = b"MIT-MAGIC-COOKIE-1";
/// Bytes before names.
const FIXED: usize = 12;
/// Longest name of a way of proving oneself, and longest proof. A cookie's are 18 and 16.
const LONGEST: usize = 256;
/// Most bytes that the first words may have.
pub const MOST: usize = FIXED + 2 * LONGEST;

/// The first words of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup<'a> {
    /// Numbers are little endian.
    little: bool,
    /// The protocol's version, as it was said.
    version: &'a [u8],
    protocol: &'a [u8],
    proof: &'a [u8],
    /// How many bytes these words have.
    pub len: usize,
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

fn number(little: bool, number: usize) -> [u8; 2] {
    let number = u16::try_from(number).unwrap_or(u16::MAX);
    if little { number.to_le_bytes() } else { number.to_be_bytes() }
}

impl<'a> Setup<'a> {
    /// Reads them from all that came; `None` where some are still missing.
    ///
    /// # Errors
    /// What came are no such words, or longer than any that are taken.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<Setup<'a>>, &'static str> {
        let little = match bytes.first() {
            None => return Ok(None),
            Some(b'l') => true,
            Some(b'B') => false,
            Some(_) => return Err("this is no X connection"),
        };
        let Some(head) = bytes.first_chunk::<FIXED>() else { return Ok(None) };
        let read = |at: usize| {
            let two = [head[at], head[at + 1]];
            usize::from(if little { u16::from_le_bytes(two) } else { u16::from_be_bytes(two) })
        };
        let (name, proof) = (read(6), read(8));
        if name > LONGEST || proof > LONGEST {
            return Err("its authorization is longer than any");
        }
        let from = FIXED + padded(name);
        let len = from + padded(proof);
        if bytes.len() < len {
            return Ok(None);
        }
        Ok(Some(Setup {
            little,
            version: &bytes[2..6],
            protocol: &bytes[FIXED..FIXED + name],
            proof: &bytes[from..from + proof],
            len,
        }))
    }

    /// Whether the program has this cookie. How long the comparison takes says nothing of where they differ.
    #[must_use]
    pub fn proves(&self, cookie: &[u8]) -> bool {
        let differs = self.proof.iter().zip(cookie).fold(0, |differs, (a, b)| differs | (a ^ b));
        self.protocol == PROTOCOL && self.proof.len() == cookie.len() && !cookie.is_empty() && differs == 0
    }

    /// The same words with another cookie.
    #[must_use]
    pub fn with(&self, cookie: &[u8]) -> Vec<u8> {
        let mut out = vec![if self.little { b'l' } else { b'B' }, 0];
        out.extend_from_slice(self.version);
        out.extend_from_slice(&number(self.little, PROTOCOL.len()));
        out.extend_from_slice(&number(self.little, cookie.len()));
        out.extend_from_slice(&[0, 0]);
        for part in [PROTOCOL, cookie] {
            out.extend_from_slice(part);
            out.resize(padded(out.len()), 0);
        }
        out
    }

    /// The answer to a program that is not let in; programs show the reason.
    #[must_use]
    pub fn refusal(&self, why: &str) -> Vec<u8> {
        let why = &why.as_bytes()[..why.len().min(usize::from(u8::MAX))];
        let mut out = vec![0, u8::try_from(why.len()).unwrap_or(u8::MAX)];
        out.extend_from_slice(&number(self.little, 11));
        out.extend_from_slice(&number(self.little, 0));
        out.extend_from_slice(&number(self.little, padded(why.len()) / 4));
        out.extend_from_slice(why);
        out.resize(8 + padded(why.len()), 0);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As libxcb writes them, for a cookie of three bytes.
    const LITTLE: &[u8] = b"l\0\x0b\0\0\0\x12\0\x03\0\0\0MIT-MAGIC-COOKIE-1\0\0\x01\x02\x03\0";
    const BIG: &[u8] = b"B\0\0\x0b\0\0\0\x12\0\x03\0\0MIT-MAGIC-COOKIE-1\0\0\x01\x02\x03\0";

    #[test]
    fn a_programs_first_words_are_read_when_all_are_there() {
        for words in [LITTLE, BIG] {
            for end in 0..words.len() {
                assert_eq!(Setup::parse(&words[..end]), Ok(None), "{end}");
            }
            let more = [words, b"what follows"].concat();
            let setup = Setup::parse(&more).unwrap().unwrap();
            assert_eq!(setup.len, words.len());
            assert!(setup.proves(&[1, 2, 3]));
            for other in [&[1, 2, 4][..], &[1, 2], &[1, 2, 3, 0], &[]] {
                assert!(!setup.proves(other));
            }
        }
    }

    #[test]
    fn they_get_another_cookie() {
        for words in [LITTLE, BIG] {
            let setup = Setup::parse(words).unwrap().unwrap();
            assert_eq!(setup.with(&[1, 2, 3]), words);
            let other = setup.with(&[7; 16]);
            let read = Setup::parse(&other).unwrap().unwrap();
            assert!(read.proves(&[7; 16]) && read.len == other.len() && read.version == setup.version);
        }
    }

    #[test]
    fn what_proves_nothing_is_refused_in_words_that_programs_read() {
        let without = b"l\0\x0b\0\0\0\0\0\0\0\0\0";
        let setup = Setup::parse(without).unwrap().unwrap();
        assert!(!setup.proves(&[]) && !setup.proves(&[1]));
        assert_eq!(setup.refusal("no"), b"\0\x02\x0b\0\0\0\x01\0no\0\0");
        assert_eq!(setup.refusal(&"x".repeat(300)).len(), 8 + 256);
        let another = b"B\0\0\x0b\0\0\0\x01\0\x01\0\0X\0\0\0\x01\0\0\0";
        let setup = Setup::parse(another).unwrap().unwrap();
        assert!(!setup.proves(&[1]));
        assert_eq!(setup.refusal("no"), b"\0\x02\0\x0b\0\0\0\x01no\0\0");
        for bad in [
            &b"GET / HTTP/1.1"[..],
            b"\0",
            b"l\0\x0b\0\0\0\xff\xff\x03\0\0\0",
            b"l\0\x0b\0\0\0\x12\0\x01\x01\0\0",
        ] {
            assert!(Setup::parse(bad).is_err(), "{bad:?}");
        }
    }
}
