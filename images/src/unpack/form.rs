//! What a layer can be made into. The rules of a layer (names, links, whiteouts, limits, what is left out) are the
//! unpacker's and the same for every form; a form only keeps what it is told to.

use rustix::fs::FileType;
use rustix::io::Errno;

use super::path::CleanPath;
use crate::error::Result;

/// Mode of directories that the archive implies and does not describe.
pub(crate) const IMPLIED_MODE: u32 = 0o755;

/// Metadata of a file or a directory.
#[derive(Debug, Default)]
pub(crate) struct Meta {
    /// Permission bits, set-id and sticky bits.
    pub(crate) mode: u32,
    /// Seconds and nanoseconds of the last change. What the archive does not describe has none, which is 1970 in every form:
    /// the time of unpacking would make another image of the same archive.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// How whiteouts are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whiteout {
    /// As character device 0/0.
    Device,
    /// As a file with an attribute, which takes effect only in a directory that is marked for it.
    File,
}

/// What is told of files with content.
pub(crate) type EachContent<'a> = dyn FnMut(&[u8], u64, &mut dyn std::io::Read) -> Result<()> + 'a;

/// A tree being filled. A *placed* path is one whose parents are directories, with no link among them.
pub(crate) trait Form {
    /// A file whose content is being written.
    type File;

    /// Bytes of memory that an entry takes until the end, besides its name; 0 where not even the name is kept.
    const ENTRY: usize;

    /// Bytes of memory that a directory takes besides that, where it takes what describes it at once; 0 where that can only be
    /// done at the end, as in a directory that its owner may not write to.
    const DIRECTORY: usize;

    /// Bytes of the disk that an entry takes which has so many of its own: there are blocks, and none takes nothing.
    fn charged(size: u64) -> u64;

    /// Whether a directory stands at `path`, reached through no link. As the kernel's `openat2(2)`: `NOENT` where a
    /// name is missing, `LOOP` at a link, `NOTDIR` at anything else.
    fn enter(&mut self, path: &[u8]) -> std::result::Result<(), Errno>;

    /// What stands at a placed path, not following a link.
    fn kind_at(&mut self, placed: &CleanPath) -> Result<Option<FileType>>;

    /// Target of the symbolic link at a placed path.
    fn target_at(&mut self, placed: &CleanPath) -> Result<Vec<u8>>;

    /// Makes room for an entry: what an earlier entry of the same name made is removed, as the last one counts.
    fn clear(&mut self, placed: &CleanPath) -> Result<()>;

    /// Tells of each file at and below a placed path that has content which its owner may read: its place, its size, and the content.
    fn contents(&mut self, placed: &CleanPath, each: &mut EachContent<'_>) -> Result<()>;

    /// Removes all that is in the directory at a path that is placed or the root.
    fn empty(&mut self, directory: &CleanPath) -> Result<()>;

    /// How often an entry had to make room for a later one.
    fn replaced(&self) -> u64;

    /// Makes a directory unless there is one.
    fn make_dir(&mut self, placed: &CleanPath) -> Result<()>;

    /// A new file, in place of whatever an earlier entry made.
    fn create(&mut self, placed: &CleanPath, mode: u32) -> Result<Self::File>;

    /// Writes at an offset that is not before the end of what was written; what lies between is a hole.
    fn write(&mut self, file: &mut Self::File, data: &[u8], offset: u64) -> std::result::Result<(), Errno>;

    /// Ends a file, which has `size` bytes, the last of them perhaps in a hole. Gives the number of attributes that
    /// the form has no room for.
    fn complete(&mut self, file: Self::File, size: u64, meta: &Meta) -> std::result::Result<u64, Errno>;

    /// Makes a symbolic link where nothing is.
    fn symlink(&mut self, placed: &CleanPath, target: &[u8], mtime: (i64, u32)) -> Result<()>;

    /// Makes `placed` another name of the file at `target`, which is there and is no directory.
    fn hard_link(&mut self, target: &CleanPath, placed: &CleanPath) -> Result<()>;

    /// Makes a named pipe where nothing is.
    fn fifo(&mut self, placed: &CleanPath, mode: u32, mtime: (i64, u32)) -> Result<()>;

    /// Makes a whiteout where nothing is.
    fn whiteout(&mut self, placed: &CleanPath) -> Result<Whiteout>;

    /// Sets `user.overlay.opaque` of the directory at `placed`, if there is one. Nothing may keep it out.
    fn mark(&mut self, placed: &CleanPath, value: &[u8]) -> Result<()>;

    /// Gives the directory at `placed` its metadata, if there is one. Nothing is made in it afterwards, unless directories
    /// take what describes them at once. Gives the number of attributes that the form has no room for.
    fn describe(&mut self, placed: &CleanPath, meta: &Meta) -> Result<u64>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::Image;
    use crate::unpack::Tree;

    #[test]
    fn no_entry_is_charged_less_than_it_takes_and_none_nothing() {
        for (size, tree, image) in [
            (0, 4096, 64),
            (1, 4096, 65),
            (4000, 4096, 4096),
            (4096, 4096, 4160),
            (4097, 8192, 4161),
            (u64::MAX, u64::MAX, u64::MAX),
        ] {
            assert_eq!((Tree::charged(size), Image::charged(size)), (tree, image), "{size}");
        }
    }
}
