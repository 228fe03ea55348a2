//! The names in an image's directories, in as few bytes as can be: a layer may have millions. Nothing is moved when more
//! come, but for the table by which they are found.

use std::hash::{BuildHasher, RandomState};

use rustix::io::Errno;

type Result<T> = std::result::Result<T, Errno>;

/// A list that grows by pages: what was there stays where it is, and no room for as much again is taken.
pub(super) struct Pages<T> {
    pages: Vec<Vec<T>>,
}

impl<T> Pages<T> {
    const PAGE: usize = 1 << 12;

    pub(super) fn new() -> Self {
        Self { pages: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.pages.last().map_or(0, |last| (self.pages.len() - 1) * Self::PAGE + last.len())
    }

    pub(super) fn get(&self, number: u32) -> Option<&T> {
        let number = usize::try_from(number).ok()?;
        self.pages.get(number / Self::PAGE)?.get(number % Self::PAGE)
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        let number = usize::try_from(number).ok()?;
        self.pages.get_mut(number / Self::PAGE)?.get_mut(number % Self::PAGE)
    }

    pub(super) fn push(&mut self, value: T) {
        if self.pages.last().is_none_or(|last| last.len() == Self::PAGE) {
            // The first one grows: most layers are small.
            let room = if self.pages.is_empty() { 0 } else { Self::PAGE };
            self.pages.push(Vec::with_capacity(room));
        }
        if let Some(last) = self.pages.last_mut() {
            last.push(value);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flatten()
    }
}

/// Texts of at most 255 bytes, one behind the other, each with its length in front.
struct Texts {
    chunks: Vec<Vec<u8>>,
}

impl Texts {
    /// Bits of a place within its chunk.
    const BITS: u32 = 16;
    const CHUNK: usize = 1 << Self::BITS;

    /// Keeps a text; gives its place.
    fn keep(&mut self, text: &[u8]) -> Result<u32> {
        let length = u8::try_from(text.len()).map_err(|_| Errno::NAMETOOLONG)?;
        if self.chunks.last().is_none_or(|last| last.len() + 1 + text.len() > Self::CHUNK) {
            let room = if self.chunks.is_empty() { 0 } else { Self::CHUNK };
            self.chunks.push(Vec::with_capacity(room));
        }
        let chunks = self.chunks.len();
        let Some(last) = self.chunks.last_mut() else { return Err(Errno::NOSPC) };
        let place = u32::try_from((chunks - 1) << Self::BITS | last.len()).map_err(|_| Errno::NOSPC)?;
        last.push(length);
        last.extend_from_slice(text);
        Ok(place)
    }

    fn get(&self, place: u32) -> &[u8] {
        let number = |part: u32| usize::try_from(part).unwrap_or(usize::MAX);
        let chunk = self.chunks.get(number(place >> Self::BITS));
        let text = chunk.and_then(|chunk| chunk.get(number(place & ((1 << Self::BITS) - 1))..));
        let text = text.and_then(|text| text.split_first());
        text.and_then(|(length, rest)| rest.get(..usize::from(*length))).unwrap_or_default()
    }
}

/// A name in a directory. It stays when what it stands for is removed, and stands for what comes next under it.
struct Entry {
    directory: u32,
    /// Place of its text.
    text: u32,
    /// What it stands for, or one of the two below.
    node: u32,
    /// The name that came to the directory before it.
    next: u32,
}

/// What a name stands for of which the file is removed.
const REMOVED: u32 = u32::MAX;
/// The same of one that its directory does not list any more.
const UNLISTED: u32 = u32::MAX - 1;
/// Where a directory's list of names ends.
pub(super) const END: u32 = u32::MAX;

/// All names of an image, by directory and text.
pub(super) struct Names {
    entries: Pages<Entry>,
    texts: Texts,
    /// Numbers of entries, plus one, where the hash of directory and text says, or next behind that. Above them stand bits of the
    /// hash, so that others are seldom looked at.
    slots: Vec<u32>,
    /// Nobody can choose names that meet in the table.
    hasher: RandomState,
}

impl Names {
    /// Bits of a slot that number an entry.
    const BITS: u32 = 25;
    const NUMBER: u32 = (1 << Self::BITS) - 1;

    pub(super) fn new() -> Self {
        let texts = Texts { chunks: Vec::new() };
        Self { entries: Pages::new(), texts, slots: vec![0; 16], hasher: RandomState::new() }
    }

    /// What a name stands for.
    pub(super) fn get(&self, directory: u32, name: &[u8]) -> Option<u32> {
        let entry = self.entries.get(self.find(directory, name).ok()?)?;
        (entry.node < UNLISTED).then_some(entry.node)
    }

    /// Makes a name stand for something. `first` is where the directory's list of names begins.
    pub(super) fn set(&mut self, directory: u32, first: &mut u32, name: &[u8], node: u32) -> Result<()> {
        let number = match self.find(directory, name) {
            Ok(number) => number,
            Err(mut slot) => {
                if (self.entries.len() + 1) * 4 > self.slots.len() * 3 {
                    self.grow();
                    slot = self.find(directory, name).err().ok_or(Errno::IO)?;
                }
                let number = u32::try_from(self.entries.len()).map_err(|_| Errno::NOSPC)?;
                if number + 1 >= Self::NUMBER {
                    return Err(Errno::NOSPC);
                }
                let text = self.texts.keep(name)?;
                self.entries.push(Entry { directory, text, node: UNLISTED, next: END });
                self.slots[slot] = Self::tag(self.hash(directory, name)) | (number + 1);
                number
            }
        };
        let entry = self.entries.get_mut(number).ok_or(Errno::IO)?;
        if entry.node == UNLISTED {
            entry.next = std::mem::replace(first, number);
        }
        entry.node = node;
        Ok(())
    }

    /// Makes a name stand for nothing; gives what it stood for.
    pub(super) fn remove(&mut self, directory: u32, name: &[u8]) -> Option<u32> {
        let number = self.find(directory, name).ok()?;
        let entry = self.entries.get_mut(number).filter(|entry| entry.node < UNLISTED)?;
        Some(std::mem::replace(&mut entry.node, REMOVED))
    }

    /// Makes all names of the list that begins at `first` stand for nothing; tells what they stood for.
    pub(super) fn remove_all(&mut self, first: &mut u32, mut tell: impl FnMut(u32)) {
        let mut next = std::mem::replace(first, END);
        while let Some(entry) = self.entries.get_mut(next) {
            next = std::mem::replace(&mut entry.next, END);
            let node = std::mem::replace(&mut entry.node, UNLISTED);
            if node < UNLISTED {
                tell(node);
            }
        }
    }

    /// The name at `place` of a directory's list, or the first behind it that stands for something, and what it stands for.
    pub(super) fn next(&self, place: &mut u32) -> Option<(&[u8], u32)> {
        while let Some(entry) = self.entries.get(*place) {
            *place = entry.next;
            if entry.node < UNLISTED {
                return Some((self.texts.get(entry.text), entry.node));
            }
        }
        None
    }

    /// Puts the list that begins at `first` in the order of its names' bytes, without those that stand for nothing.
    pub(super) fn sort(&mut self, first: &mut u32) {
        let mut listed = Vec::new();
        let mut next = *first;
        while let Some(entry) = self.entries.get_mut(next) {
            if entry.node < UNLISTED {
                listed.push(next);
            } else {
                entry.node = UNLISTED;
            }
            next = entry.next;
        }
        let Self { entries, texts, .. } = self;
        let text = |number: u32| entries.get(number).map_or(b"".as_slice(), |entry| texts.get(entry.text));
        listed.sort_unstable_by(|a, b| text(*a).cmp(text(*b)));
        *first = END;
        for number in listed.into_iter().rev() {
            if let Some(entry) = entries.get_mut(number) {
                entry.next = std::mem::replace(first, number);
            }
        }
    }

    /// Gives the table's memory back: nothing is looked for any more.
    pub(super) fn forget_table(&mut self) {
        self.slots = vec![0; 16];
    }

    fn hash(&self, directory: u32, name: &[u8]) -> u64 {
        self.hasher.hash_one((directory, name))
    }

    fn tag(hash: u64) -> u32 {
        u32::try_from(hash >> 32 & u64::from(!Self::NUMBER)).unwrap_or_default()
    }

    fn slot(&self, hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        usize::try_from(hash & mask as u64).unwrap_or_default()
    }

    /// The number of a name's entry, or the slot that it gets.
    fn find(&self, directory: u32, name: &[u8]) -> std::result::Result<u32, usize> {
        let hash = self.hash(directory, name);
        let tag = Self::tag(hash);
        let mut slot = self.slot(hash);
        // A quarter of them is free.
        while self.slots[slot] != 0 {
            if self.slots[slot] & !Self::NUMBER == tag {
                let number = (self.slots[slot] & Self::NUMBER) - 1;
                let entry = self.entries.get(number);
                if entry.is_some_and(|e| e.directory == directory && self.texts.get(e.text) == name) {
                    return Ok(number);
                }
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        Err(slot)
    }

    /// Twice as many slots.
    fn grow(&mut self) {
        self.slots = vec![0; self.slots.len() * 2];
        for (entry, number) in self.entries.iter().zip(1u32..) {
            let hash = self.hash(entry.directory, self.texts.get(entry.text));
            let mut slot = self.slot(hash);
            while self.slots[slot] != 0 {
                slot = (slot + 1) & (self.slots.len() - 1);
            }
            self.slots[slot] = Self::tag(hash) | number;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// What one more name may take of memory, but for its text: the table is never less full than by three eighths.
    const NAME: usize = size_of::<Entry>() + 1 + size_of::<[u32; 8]>() / 3 + 1;

    #[test]
    fn a_name_takes_few_bytes_besides_its_text() {
        assert_eq!(size_of::<Entry>(), 16);
        const { assert!(NAME + super::super::inodes::NODE <= super::super::inodes::ENTRY) };
        let (mut names, mut first) = (Names::new(), END);
        let text = |n: u32| format!("{n:08}").into_bytes();
        for n in 0..100_000 {
            names.set(0, &mut first, &text(n), n).unwrap();
            let (slots, entries) = (names.slots.len(), names.entries.len());
            assert!(slots <= 16 || slots * 3 <= entries * 8, "{slots} slots of {entries} names");
            assert!(entries * 4 <= slots * 3, "{slots} slots of {entries} names");
        }
        let kept: usize = names.texts.chunks.iter().map(Vec::capacity).sum();
        assert!(kept <= 100_000 * 9 + 2 * Texts::CHUNK, "{kept}");
        let pages: usize = names.entries.pages.iter().map(Vec::capacity).sum();
        assert!(pages <= 100_000 + Pages::<Entry>::PAGE, "{pages}");
        assert_eq!(names.get(0, &text(77_777)), Some(77_777));
        assert_eq!(names.get(1, &text(77_777)), None);
    }

    #[test]
    fn names_come_and_go_as_in_a_map() {
        let (mut names, mut lists) = (Names::new(), [END; 3]);
        let mut expected: [BTreeMap<Vec<u8>, u32>; 3] = Default::default();
        let mut state = 1u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        for n in 0..20_000u32 {
            let directory = random(3);
            let (key, name) = (u32::try_from(directory).unwrap(), random(50).to_string().into_bytes());
            let (list, map) = (&mut lists[directory], &mut expected[directory]);
            match random(100) {
                0 => {
                    let mut gone = Vec::new();
                    names.remove_all(list, |node| gone.push(node));
                    let mut told: Vec<u32> = std::mem::take(map).into_values().collect();
                    gone.sort_unstable();
                    told.sort_unstable();
                    assert_eq!(gone, told);
                }
                1 => {
                    names.sort(list);
                    let mut place = *list;
                    let mut listed = Vec::new();
                    while let Some((name, node)) = names.next(&mut place) {
                        listed.push((name.to_vec(), node));
                    }
                    assert!(listed.into_iter().eq(map.clone()));
                }
                2..40 => assert_eq!(names.remove(key, &name), map.remove(&name)),
                _ => {
                    names.set(key, list, &name, n).unwrap();
                    map.insert(name.clone(), n);
                }
            }
            assert_eq!(names.get(key, &name), map.get(&name).copied());
        }
        assert!(names.entries.len() <= 150, "a name that comes again is the one that was");
    }

    #[test]
    fn a_name_that_no_directory_can_hold_is_refused() {
        let (mut names, mut first) = (Names::new(), END);
        assert_eq!(names.set(0, &mut first, &[b'x'; 256], 1), Err(Errno::NAMETOOLONG));
        names.set(0, &mut first, &[b'x'; 255], 1).unwrap();
        assert_eq!(names.get(0, &[b'x'; 255]), Some(1));
        assert_eq!(names.get(0, b""), None);
    }
}
