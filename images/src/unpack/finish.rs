//! The end of a layer: whiteouts and opaque marks as overlayfs wants them, then modes and times of directories.

use std::cmp::Reverse;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::form::{Form, Meta, Whiteout};
use super::path::CleanPath;
use super::{LayerReport, Unpacker};
use crate::error::Result;

/// Mode of directories that the archive implies and does not describe.
const IMPLIED_MODE: u32 = 0o755;

impl<F: Form> Unpacker<'_, F> {
    /// Ends the layer. Gives the form that was filled.
    pub(super) fn finish(mut self) -> Result<(LayerReport, F)> {
        for path in std::mem::take(&mut self.whiteouts) {
            self.make_whiteout(path)?;
        }
        for path in std::mem::take(&mut self.opaque) {
            self.form.mark(&path, b"y")?;
            self.report.opaque_directories += 1;
        }
        self.apply_directories()?;
        Ok((self.report, self.form))
    }

    fn make_whiteout(&mut self, path: CleanPath) -> Result<()> {
        // The parent may have been replaced by a file since; then it hides everything below by itself.
        let (parent, _) = path.split_bytes();
        match self.form.enter(parent) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(path.io(errno)),
        }
        match self.form.kind_at(&path)? {
            Some(FileType::Directory) => {
                // The same layer removes a directory and brings a new one: nothing below may show through.
                self.opaque.insert(path);
                return Ok(());
            }
            Some(_) => return Ok(()),
            None => {}
        }
        self.report.whiteouts += 1;
        let parent = path.split().map(|(parent, _)| parent).unwrap_or_default();
        if self.form.whiteout(&path)? == Whiteout::File && !self.opaque.contains(&parent) {
            // `y` hides all of the lower directory, `x` says that whiteouts are files.
            self.form.mark(&parent, b"x")?;
        }
        Ok(())
    }

    /// Deepest first: once a directory has its mode, its owner may be unable to enter it.
    fn apply_directories(&mut self) -> Result<()> {
        let root = CleanPath::default();
        for path in std::mem::take(&mut self.implicit).into_iter().chain([root]) {
            let implied = Meta { mode: IMPLIED_MODE, ..Meta::default() };
            self.directories.entry(path).or_insert(implied);
        }
        let mut directories: Vec<_> = std::mem::take(&mut self.directories).into_iter().collect();
        directories.sort_by_cached_key(|(path, _)| Reverse(path.depth()));
        for (path, meta) in directories {
            self.report.other_attributes_skipped += self.form.describe(&path, &meta)?;
        }
        Ok(())
    }
}
