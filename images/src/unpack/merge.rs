//! Several layers made into one: each is applied to what those below it made, so that nothing is left to be hidden.
//!
//! What a layer hides goes before its first entry is made: it hides what is below it, and never what it brings itself, in
//! whatever order its archive has them. So each archive is read twice. An entry whose parents the layer does not describe
//! goes through the links of lower layers, as in other tools that apply layers one after the other.

use std::io::{BufRead, Write};
use std::ops::Bound;

use rustix::io::Errno;

use super::form::Form;
use super::path::CleanPath;
use super::{Hidden, LayerReport, Recorded, Unpacker, hidden};
use crate::error::Result;

impl<F: Form> Unpacker<'_, F> {
    /// The same, for layers on one another, the lowest first: of each one [`Unpacker::hide`], then [`Unpacker::apply`].
    pub(crate) fn merging(self) -> Self {
        Self { merging: true, ..self }
    }

    /// Removes of what is there what a layer hides.
    pub(crate) fn hide<R: BufRead, W: Write>(&mut self, reader: &mut Recorded<R, W>) -> Result<()> {
        // Hard links lead to what their own layer has.
        self.skipped.clear();
        while let Some(entry) = reader.next()? {
            let path = CleanPath::new(&entry.path, self.limits.depth)?;
            match hidden(&path, entry.kind)? {
                Hidden::Nothing | Hidden::Aufs => {}
                Hidden::Below => {
                    let (directory, _) = path.split().unwrap_or_default();
                    if let Some(directory) = self.standing(directory)? {
                        self.form.empty(&directory)?;
                        self.forget_below(&directory);
                    }
                }
                Hidden::Name(path) => {
                    let (parent, name) = path.split().unwrap_or_default();
                    if let Some(mut place) = self.standing(parent)? {
                        place.push(name);
                        self.form.clear(&place)?;
                        self.forget(&place);
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes what a layer has, in place of what is there under the same names.
    pub(crate) fn apply<R: BufRead, W: Write>(&mut self, reader: &mut Recorded<R, W>) -> Result<()> {
        self.entries(reader)
    }

    /// Ends the last layer. Gives the form that was filled.
    pub(crate) fn merged(self) -> Result<(LayerReport, F)> {
        self.finish()
    }

    /// Where the directory is that a name means, links followed; `None` where there is none.
    fn standing(&mut self, path: CleanPath) -> Result<Option<CleanPath>> {
        match self.form.enter(path.as_bytes()) {
            Ok(()) => Ok(Some(path)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(Errno::LOOP) => self.walk(path.as_bytes(), &path, false),
            Err(errno) => Err(path.io(errno)),
        }
    }

    /// What was said of directories at and below this place counts no more.
    pub(super) fn forget(&mut self, path: &CleanPath) {
        self.directories.remove(path.as_bytes());
        self.forget_below(path);
    }

    fn forget_below(&mut self, path: &CleanPath) {
        if path.is_root() {
            self.directories.retain(|directory, _| directory.is_empty());
            return;
        }
        let mut first = path.clone();
        first.push(b"");
        let first = first.as_bytes();
        let range = (Bound::Included(first), Bound::Unbounded);
        while let Some((directory, _)) = self.directories.range::<[u8], _>(range).next()
            && directory.starts_with(first)
        {
            let directory = directory.clone();
            self.directories.remove(&directory);
        }
    }
}
