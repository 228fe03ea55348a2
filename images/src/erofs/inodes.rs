//! What an image has, until its directories are written: its names, what they stand for, and where inodes stand that are
//! written already. Metadata of files is in the image alone; that of directories waits here.

use rustix::io::Errno;

use super::disk::{FileType, Name, SLOT};
use super::names::{END, Names, Pages};
use crate::unpack::IMPLIED_MODE;

type Result<T> = std::result::Result<T, Errno>;

/// Bytes of memory that an entry takes until the end, besides the text of its name.
pub(super) const ENTRY: usize = 40;
/// Bytes of memory that a directory takes besides that: itself, and its place in the order in which directories are written.
pub(super) const DIRECTORY: usize = size_of::<Directory>() + 16;
#[cfg(test)]
pub(super) const NODE: usize = size_of::<Node>();

/// The number of the root.
pub(super) const ROOT: u32 = 0;

/// What names stand for. From the lowest bit: where its inode stands in slots, or the number of a directory among
/// directories (40); what it is (3); how many names it has, of a removed one none (21).
#[derive(Clone, Copy)]
struct Node(u64);

impl Node {
    const KIND: u32 = 40;
    const NAMES: u32 = 43;
    const ONE: u64 = 1 << Self::NAMES;
    const PLACE: u64 = (1 << Self::KIND) - 1;

    /// With one name.
    fn of(kind: FileType, place: u32) -> Self {
        Self(u64::from(place) | u64::from(kind as u8) << Self::KIND | Self::ONE)
    }

    /// The same where the place may be larger than an image can be.
    fn new(kind: FileType, place: u64) -> Result<Self> {
        if place > Self::PLACE {
            return Err(Errno::FBIG);
        }
        Ok(Self(Self::of(kind, 0).0 | place))
    }

    fn kind(self) -> FileType {
        match self.0 >> Self::KIND & 7 {
            2 => FileType::Directory,
            3 => FileType::CharacterDevice,
            5 => FileType::Fifo,
            7 => FileType::Symlink,
            _ => FileType::File,
        }
    }

    fn place(self) -> u64 {
        self.0 & Self::PLACE
    }

    fn names(self) -> u32 {
        u32::try_from(self.0 >> Self::NAMES).unwrap_or_default()
    }

    /// Its number among directories.
    fn directory(self) -> Option<u32> {
        if self.kind() == FileType::Directory { u32::try_from(self.place()).ok() } else { None }
    }
}

/// What a directory says of itself.
pub(super) struct Directory {
    /// Where its inode stands; learnt at the end.
    pub(super) at: u64,
    /// Of its last change.
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
    pub(super) mode: u32,
    /// Encoded.
    pub(super) xattrs: Box<[u8]>,
    /// Where its list of names begins.
    first: u32,
    pub(super) opaque: bool,
}

impl Directory {
    fn new(at: u64) -> Self {
        let (mode, xattrs) = (IMPLIED_MODE, Box::default());
        Self { at, seconds: 0, nanoseconds: 0, mode, xattrs, first: END, opaque: false }
    }
}

/// All of them, by number. No number is given twice.
pub(super) struct Inodes {
    nodes: Pages<Node>,
    directories: Pages<Directory>,
    names: Names,
}

impl Inodes {
    /// A root whose inode stands at `at`.
    pub(super) fn new(at: u64) -> Self {
        let mut all = Self { nodes: Pages::new(), directories: Pages::new(), names: Names::new() };
        all.directories.push(Directory::new(at));
        all.nodes.push(Node::of(FileType::Directory, 0));
        all
    }

    /// The number that comes next.
    pub(super) fn next_number(&self) -> Result<u32> {
        u32::try_from(self.nodes.len()).map_err(|_| Errno::NOSPC)
    }

    pub(super) fn kind(&self, number: u32) -> Option<FileType> {
        self.nodes.get(number).map(|node| node.kind())
    }

    /// Where its inode stands.
    pub(super) fn at(&self, number: u32) -> u64 {
        match (self.directory(number), self.nodes.get(number)) {
            (Some(directory), _) => directory.at,
            (None, Some(node)) => node.place() * SLOT,
            (None, None) => 0,
        }
    }

    pub(super) fn directory(&self, number: u32) -> Option<&Directory> {
        self.directories.get(self.nodes.get(number)?.directory()?)
    }

    pub(super) fn directory_mut(&mut self, number: u32) -> Option<&mut Directory> {
        self.directories.get_mut(self.nodes.get(number)?.directory()?)
    }

    /// What has this name in a directory.
    pub(super) fn named(&self, directory: u32, name: &[u8]) -> Option<u32> {
        self.names.get(directory, name)
    }

    /// Adds a name, which stands for nothing now, for something whose inode stands at `at`.
    pub(super) fn add(&mut self, directory: u32, name: &[u8], kind: FileType, at: u64) -> Result<()> {
        let number = self.next_number()?;
        let node = Node::new(kind, at / SLOT)?;
        self.name(directory, name, number)?;
        self.nodes.push(node);
        Ok(())
    }

    /// The same for an empty directory.
    pub(super) fn add_directory(&mut self, directory: u32, name: &[u8]) -> Result<()> {
        let number = self.next_number()?;
        let node = Node::new(FileType::Directory, self.directories.len() as u64)?;
        self.name(directory, name, number)?;
        self.directories.push(Directory::new(0));
        self.nodes.push(node);
        Ok(())
    }

    /// Adds a name, which stands for nothing now, for what is there.
    pub(super) fn link(&mut self, number: u32, directory: u32, name: &[u8]) -> Result<()> {
        let more = |node: &Node| node.0.checked_add(Node::ONE).map(Node).ok_or(Errno::MLINK);
        let linked = more(self.nodes.get(number).ok_or(Errno::NOENT)?)?;
        self.name(directory, name, number)?;
        if let Some(node) = self.nodes.get_mut(number) {
            *node = linked;
        }
        Ok(())
    }

    fn name(&mut self, directory: u32, name: &[u8], number: u32) -> Result<()> {
        let index = self.nodes.get(directory).and_then(|node| node.directory()).ok_or(Errno::NOTDIR)?;
        let first = &mut self.directories.get_mut(index).ok_or(Errno::NOTDIR)?.first;
        self.names.set(directory, first, name, number)
    }

    /// Removes a name; what it stands for has a name less, and so has what is below that. Gives what it was.
    pub(super) fn remove(&mut self, directory: u32, name: &[u8]) -> Option<FileType> {
        let number = self.names.remove(directory, name)?;
        let kind = self.kind(number);
        self.drop_names(vec![number]);
        kind
    }

    /// Removes all names of a directory.
    pub(super) fn empty(&mut self, directory: u32) {
        let mut gone = Vec::new();
        self.take_names(directory, &mut gone);
        self.drop_names(gone);
    }

    fn drop_names(&mut self, mut gone: Vec<u32>) {
        while let Some(number) = gone.pop() {
            if let Some(node) = self.nodes.get_mut(number) {
                node.0 -= Node::ONE;
            }
            self.take_names(number, &mut gone);
        }
    }

    /// Takes what is in a directory, if it is one, out of it.
    fn take_names(&mut self, number: u32, to: &mut Vec<u32>) {
        let index = self.nodes.get(number).and_then(|node| node.directory());
        if let Some(directory) = index.and_then(|index| self.directories.get_mut(index)) {
            self.names.remove_all(&mut directory.first, |node| to.push(node));
        }
    }

    /// Where the list of a directory's names begins.
    pub(super) fn first(&self, directory: u32) -> u32 {
        self.directory(directory).map_or(END, |directory| directory.first)
    }

    /// The next name of a list, and what it stands for.
    pub(super) fn next(&self, place: &mut u32) -> Option<(&[u8], u32)> {
        self.names.next(place)
    }

    /// Nothing comes or goes any more: what that needed is given back.
    pub(super) fn close(&mut self) {
        self.names.forget_table();
    }

    /// Puts a directory's names in the order of their bytes.
    pub(super) fn sort(&mut self, directory: u32) {
        let index = self.nodes.get(directory).and_then(|node| node.directory());
        if let Some(directory) = index.and_then(|index| self.directories.get_mut(index)) {
            self.names.sort(&mut directory.first);
        }
    }

    /// The directories that are in one, in its order.
    pub(super) fn below(&self, directory: u32) -> Vec<u32> {
        let (mut place, mut below) = (self.first(directory), Vec::new());
        while let Some((_, number)) = self.next(&mut place) {
            if self.kind(number) == Some(FileType::Directory) {
                below.push(number);
            }
        }
        below
    }

    /// What is in a sorted directory that is in `parent`, `.` and `..` among it, in the order of their bytes.
    pub(super) fn listed(&self, directory: u32, parent: u32) -> impl Iterator<Item = Name<'_>> {
        let dot = |name: &'static [u8], number| Name { name, at: self.at(number), kind: FileType::Directory };
        let mut dots = [dot(b".", directory), dot(b"..", parent)].into_iter().peekable();
        let mut place = self.first(directory);
        let names = std::iter::from_fn(move || {
            let (name, number) = self.next(&mut place)?;
            Some(Name { name, at: self.at(number), kind: self.kind(number)? })
        });
        let mut names = names.peekable();
        std::iter::from_fn(move || {
            let dot = match (dots.peek(), names.peek()) {
                (Some(dot), Some(name)) => dot.name < name.name,
                (dot, _) => dot.is_some(),
            };
            if dot { dots.next() } else { names.next() }
        })
    }

    /// How many there are that have names.
    pub(super) fn count(&self) -> u64 {
        self.nodes.iter().filter(|node| node.names() > 0).count() as u64
    }

    /// Those that have several names: where their inodes stand, and how many.
    pub(super) fn linked(&self) -> impl Iterator<Item = (u64, u32)> {
        self.nodes.iter().map(|node| (node.place() * SLOT, node.names())).filter(|(_, names)| *names > 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_files_are_kept_in_forty_bytes_each_and_their_names() {
        assert_eq!((NODE, ENTRY), (8, 40));
        const { assert!(DIRECTORY <= 64) };
        let mut all = Inodes::new(1152);
        for n in 0..1_000_000u32 {
            if n % 1000 == 0 {
                all.add_directory(ROOT, format!("d{}", n / 1000).as_bytes()).unwrap();
            }
            let directory = all.named(ROOT, format!("d{}", n / 1000).as_bytes()).unwrap();
            all.add(directory, format!("f{n:07}").as_bytes(), FileType::File, u64::from(n) * 64).unwrap();
        }
        assert_eq!(all.count(), 1_001_001);
        let directory = all.named(ROOT, b"d777").unwrap();
        let file = all.named(directory, b"f0777123").unwrap();
        assert_eq!((all.kind(file), all.at(file)), (Some(FileType::File), 777_123 * 64));
        all.remove(ROOT, b"d777");
        assert_eq!(all.count(), 1_001_001 - 1001);
        all.empty(ROOT);
        assert_eq!((all.count(), all.below(ROOT)), (1, vec![]));
    }

    #[test]
    fn a_file_may_have_a_million_names_and_no_more_than_are_counted() {
        let mut all = Inodes::new(1152);
        all.add(ROOT, b"file", FileType::File, 4096).unwrap();
        let file = all.named(ROOT, b"file").unwrap();
        for n in 0..1_000_000 {
            all.link(file, ROOT, format!("{n}").as_bytes()).unwrap();
        }
        assert_eq!(all.linked().collect::<Vec<_>>(), [(4096, 1_000_001)]);
        assert_eq!((all.kind(file), all.at(file), all.count()), (Some(FileType::File), 4096, 2));
        all.nodes.get_mut(file).unwrap().0 |= !(Node::ONE - 1);
        assert_eq!(all.link(file, ROOT, b"more"), Err(Errno::MLINK));
        assert_eq!(all.named(ROOT, b"more"), None);
    }

    #[test]
    fn what_is_removed_goes_with_all_below_it() {
        let mut all = Inodes::new(1152);
        all.add_directory(ROOT, b"a").unwrap();
        let a = all.named(ROOT, b"a").unwrap();
        all.add_directory(a, b"b").unwrap();
        let b = all.named(a, b"b").unwrap();
        all.add(b, b"file", FileType::File, 4096).unwrap();
        let file = all.named(b, b"file").unwrap();
        all.link(file, ROOT, b"kept").unwrap();
        assert_eq!(all.remove(ROOT, b"a"), Some(FileType::Directory));
        assert_eq!((all.named(ROOT, b"a"), all.remove(ROOT, b"a"), all.count()), (None, None, 2));
        // The same names again are of another directory.
        all.add_directory(ROOT, b"a").unwrap();
        let again = all.named(ROOT, b"a").unwrap();
        assert_eq!(all.named(again, b"b"), None);
        for name in ["-", ".-", "...", "z"] {
            all.add(again, name.as_bytes(), FileType::File, 0).unwrap();
        }
        all.sort(again);
        let listed: Vec<_> = all.listed(again, ROOT).map(|name| name.name).collect();
        assert_eq!(listed, [&b"-"[..], b".", b".-", b"..", b"...", b"z"]);
        assert_eq!(Node::new(FileType::File, 1 << 40).err(), Some(Errno::FBIG));
    }
}
