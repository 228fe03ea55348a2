//! Names in a directory of a filesystem, without an allocation for each: there may be millions.

use std::os::fd::OwnedFd;

use rustix::fs::{Dir, DirEntry};
use rustix::io::Errno;

type Result<T> = std::result::Result<T, Errno>;

/// Names, one behind the other, each with its length in front.
#[derive(Default)]
pub(super) struct Names {
    text: Vec<u8>,
    /// Where those stand that are left.
    places: Vec<u32>,
}

impl Names {
    /// All that are in a directory and wanted, but for `.` and `..`.
    pub(super) fn of(directory: &OwnedFd, mut wanted: impl FnMut(&DirEntry) -> Result<bool>) -> Result<Self> {
        let mut names = Self::default();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") && wanted(&entry)? {
                names.push(name)?;
            }
        }
        Ok(names)
    }

    fn push(&mut self, name: &[u8]) -> Result<()> {
        let length = u16::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
        self.places.push(u32::try_from(self.text.len()).map_err(|_| Errno::NOMEM)?);
        self.text.extend(length.to_le_bytes());
        self.text.extend(name);
        Ok(())
    }

    /// Puts them in the order of their bytes, the last first.
    pub(super) fn last_first(mut self) -> Self {
        let Self { text, places } = &mut self;
        places.sort_unstable_by(|a, b| name(text, *b).cmp(name(text, *a)));
        self
    }

    /// Takes the one that stands last.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let place = self.places.pop()?;
        Some(name(&self.text, place).to_vec())
    }
}

fn name(text: &[u8], place: u32) -> &[u8] {
    let rest = usize::try_from(place).ok().and_then(|place| text.get(place..));
    let split = rest.and_then(<[u8]>::split_first_chunk);
    split.and_then(|(length, rest)| rest.get(..usize::from(u16::from_le_bytes(*length)))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_they_were() {
        let mut names = Names::default();
        let all = [&b"b"[..], b"", &[b'x'; 300], b"a.b", b"a"];
        all.iter().for_each(|name| names.push(name).unwrap());
        let mut sorted = names.last_first();
        for expected in [&b""[..], b"a", b"a.b", b"b", &[b'x'; 300]] {
            assert_eq!(sorted.pop().as_deref(), Some(expected));
        }
        assert_eq!(sorted.pop(), None);
        assert_eq!(Names::default().push(&[0; 70_000]), Err(Errno::NAMETOOLONG));
    }
}
