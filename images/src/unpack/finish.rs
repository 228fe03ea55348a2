//! The end of a layer: whiteouts and opaque marks as overlayfs wants them, then modes and times of directories.

use rustix::fs::FileType;
use rustix::io::Errno;

use super::form::{Form, Meta, Whiteout};
use super::path::CleanPath;
use super::{LayerReport, Unpacker};
use crate::error::Result;

impl<F: Form> Unpacker<'_, F> {
    /// Ends the layer. Gives the form that was filled.
    pub(super) fn finish(mut self) -> Result<(LayerReport, F)> {
        // One after the other, so that their memory is given back while others take some.
        while let Some(path) = self.whiteouts.pop_first() {
            self.make_whiteout(CleanPath::of_kept(path))?;
        }
        while let Some(path) = self.opaque.pop_first() {
            self.form.mark(&CleanPath::of_kept(path), b"y")?;
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
                self.opaque.insert(path.into_kept());
                return Ok(());
            }
            Some(_) => return Ok(()),
            None => {}
        }
        self.report.whiteouts += 1;
        let parent = path.split().map(|(parent, _)| parent).unwrap_or_default();
        if self.form.whiteout(&path)? == Whiteout::File && !self.opaque.contains(parent.as_bytes()) {
            // `y` hides all of the lower directory, `x` says that whiteouts are files.
            self.form.mark(&parent, b"x")?;
        }
        Ok(())
    }

    /// What is below a directory before it: once it has its mode, its owner may be unable to enter it. Bytes of paths are in that
    /// order from the last to the first.
    fn apply_directories(&mut self) -> Result<()> {
        if F::DIRECTORY == 0 {
            self.directories.entry(Box::default()).or_insert_with(|| Meta::implied().into());
        }
        while let Some((path, described)) = self.directories.pop_last() {
            let (path, meta) = (CleanPath::of_kept(path), Meta::from(described));
            self.report.other_attributes_skipped += self.form.describe(&path, &meta)?;
        }
        Ok(())
    }
}
