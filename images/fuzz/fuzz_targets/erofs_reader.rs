//! A reader of EROFS images that owes nothing to their writer (Linux, `fs/erofs/erofs_fs.h`): 64-byte inodes, content in blocks or
//! behind the inode, attributes of users. It panics at whatever it does not expect.

use std::collections::BTreeMap;

const BLOCK: usize = 4096;

/// What a file is; what every file system counts in its own way is left out.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    mode: u32,
    /// Of what is no directory.
    links: u64,
    /// Of what an archive describes.
    time: Option<(i64, u32)>,
    /// A link's target, too.
    content: Vec<u8>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Seen {
    pub fn new(
        mode: u32,
        links: u64,
        time: (i64, u32),
        content: Vec<u8>,
        attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Seen {
        let kind = mode & 0o170_000;
        // Neither the directories that names imply nor whiteouts have a time.
        let time = (kind != 0o040_000 && kind != 0o020_000).then_some(time);
        Seen { mode, links: if kind == 0o040_000 { 0 } else { links }, time, content, attributes }
    }

    /// Whether it is a file in place of a whiteout (kernel documentation, overlayfs, "whiteouts and opaque directories").
    pub fn stands_for_whiteout(&self) -> bool {
        self.attributes.contains_key(b"user.overlay.whiteout".as_slice())
    }
}

struct Image<'a>(&'a [u8]);

impl Image<'_> {
    fn number<const N: usize>(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(&self.0[at..at + N]);
        u64::from_le_bytes(bytes)
    }

    fn place<const N: usize>(&self, at: usize) -> usize {
        usize::try_from(self.number::<N>(at)).unwrap()
    }

    /// Content and attributes of the inode at this place.
    fn inode(&self, at: usize) -> (Seen, Vec<u8>) {
        let format = self.number::<2>(at);
        assert_eq!(format & 1, 1, "a short inode");
        let count = self.place::<2>(at + 2);
        let xattrs = if count == 0 { 0 } else { 12 + 4 * (count - 1) };
        let mode = u32::try_from(self.number::<2>(at + 4)).unwrap();
        let size = self.place::<8>(at + 8);
        let start = self.place::<4>(at + 16) * BLOCK;
        let behind = at + 64 + xattrs;
        let mut content = Vec::new();
        if matches!(mode & 0o170_000, 0o100_000 | 0o040_000 | 0o120_000) {
            let whole = if format >> 1 == 2 { size - size % BLOCK } else { size };
            if whole > 0 {
                content.extend(&self.0[start..start + whole]);
            }
            let tail = size - whole;
            if tail > 0 {
                assert!(behind % BLOCK + tail <= BLOCK, "what is behind an inode lies in two blocks");
                content.extend(&self.0[behind..behind + tail]);
            }
        } else {
            assert_eq!((size, start), (0, 0));
        }
        let mut attributes = BTreeMap::new();
        let mut next = at + 64 + 12;
        while next < behind {
            let (name, kind) = (self.place::<1>(next), self.number::<1>(next + 1));
            assert_eq!(kind, 1, "an attribute that is not a user's");
            let value = self.place::<2>(next + 2);
            let (from, middle) = (next + 4, next + 4 + name);
            let full = [b"user.", &self.0[from..middle]].concat();
            assert!(attributes.insert(full, self.0[middle..middle + value].to_vec()).is_none(), "twice");
            next = (middle + value).next_multiple_of(4);
        }
        let time = (
            i64::from_le_bytes(self.0[at + 32..at + 40].try_into().unwrap()),
            u32::try_from(self.number::<4>(at + 40)).unwrap(),
        );
        let directory = mode & 0o170_000 == 0o040_000;
        let (shown, names) = if directory { (Vec::new(), content) } else { (content, Vec::new()) };
        (Seen::new(mode, self.number::<4>(at + 44), time, shown, attributes), names)
    }

    fn directory(&self, path: &[u8], at: usize, parent: usize, all: &mut BTreeMap<Vec<u8>, Seen>) {
        let (seen, names) = self.inode(at);
        assert!(all.insert(path.to_vec(), seen).is_none(), "a name is there twice");
        let mut last = Vec::new();
        for block in names.chunks(BLOCK) {
            let block = Image(block);
            let count = block.place::<2>(8) / 12;
            for entry in 0..count {
                let entry_at = entry * 12;
                let inode = block.place::<8>(entry_at) * 32;
                let from = block.place::<2>(entry_at + 8);
                let to = if entry + 1 < count { block.place::<2>(entry_at + 20) } else { block.0.len() };
                let name = block.0[from..to].split(|b| *b == 0).next().unwrap();
                assert!(!name.is_empty() && last.as_slice() < name, "names are out of order");
                last = name.to_vec();
                match name {
                    b"." => assert_eq!(inode, at),
                    b".." => assert_eq!(inode, parent),
                    _ => {
                        let below = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
                        if block.number::<1>(entry_at + 10) == 2 {
                            self.directory(&below, inode, at, all);
                        } else {
                            assert!(
                                all.insert(below, self.inode(inode).0).is_none(),
                                "a name is there twice"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Everything in an image.
pub fn read(bytes: &[u8]) -> BTreeMap<Vec<u8>, Seen> {
    let image = Image(bytes);
    assert_eq!(image.number::<4>(1024), 0xe0f5_e1e2);
    assert_eq!(image.place::<4>(1024 + 36) * BLOCK, bytes.len(), "blocks of the file");
    let root = image.place::<2>(1024 + 14) * 32;
    let mut all = BTreeMap::new();
    image.directory(b"", root, root, &mut all);
    all
}
