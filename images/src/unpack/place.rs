//! Where an entry belongs: its parents resolved and made where they are missing.
//!
//! Where a layer names an entry below one of its own symbolic links (`lib -> usr/lib`, then `lib/x`), the link is
//! followed by text inside the root, as other tools do, and the result is resolved in the form's strict way.

use rustix::fs::FileType;
use rustix::io::Errno;

use super::Unpacker;
use super::form::{Form, Meta};
use super::path::{CleanPath, PATH_MAX};
use crate::archive::refused;
use crate::error::Result;

/// Most symbolic links followed for one name, as in the kernel.
const MAX_LINKS: usize = 40;
/// Components that all names of a layer may lead through, where links or what is missing is among them: so many in any case, and so
/// many more for each entry. Of one link's text there may be thousands, and a small archive could keep a node busy for days.
const FREE_STEPS: u64 = 1 << 20;
const STEPS: u64 = 64;

impl<F: Form> Unpacker<'_, F> {
    /// The physical place of `path`: its parent resolved and made where it is missing, links followed inside the
    /// root. The last component is never followed.
    pub(super) fn place(&mut self, path: CleanPath) -> Result<CleanPath> {
        let (parent, name) = path.split_bytes();
        match self.form.enter(parent) {
            Ok(()) => Ok(path),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {
                let mut placed = self.walk(parent, &path, true)?.unwrap_or_default();
                placed.push(name);
                self.bounded(&placed, &path)?;
                Ok(placed)
            }
            Err(errno) => Err(path.io(errno)),
        }
    }

    /// What holds for a name holds for where its links lead: the kernel takes no longer paths, and each directory on the
    /// way costs memory.
    fn bounded(&self, placed: &CleanPath, entry: &CleanPath) -> Result<()> {
        if placed.as_bytes().len() > PATH_MAX {
            return Err(refused(entry.as_bytes(), "its links lead to a path of more than 4095 bytes"));
        }
        let depth = self.limits.depth;
        if placed.depth() > depth {
            return Err(refused(
                entry.as_bytes(),
                format!("its links lead to a path of more than {depth} components"),
            ));
        }
        Ok(())
    }

    /// Walks `parent` component by component, following links by text. What is missing is made, or the answer is `None`.
    pub(super) fn walk(&mut self, parent: &[u8], entry: &CleanPath, make: bool) -> Result<Option<CleanPath>> {
        let mut todo: Vec<Vec<u8>> = parent.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        todo.reverse();
        let mut physical = CleanPath::default();
        let mut links = 0;
        while let Some(component) = todo.pop() {
            self.steps += 1;
            if self.steps > FREE_STEPS + STEPS * self.report.entries {
                return Err(refused(
                    entry.as_bytes(),
                    "the layer's names lead through too many directories and symbolic links",
                ));
            }
            match component.as_slice() {
                b"" | b"." => continue,
                // Only from the text of a link; above the root is the root, as after chroot.
                b".." => {
                    physical.pop();
                    continue;
                }
                _ => {}
            }
            let mut here = physical.clone();
            here.push(&component);
            self.bounded(&here, entry)?;
            match self.form.kind_at(&here)? {
                Some(FileType::Directory) => physical = here,
                Some(FileType::Symlink) => {
                    links += 1;
                    if links > MAX_LINKS || todo.len() > 4096 {
                        return Err(refused(
                            entry.as_bytes(),
                            "its name leads through too many symbolic links",
                        ));
                    }
                    let target = self.form.target_at(&here)?;
                    if target.starts_with(b"/") {
                        physical = CleanPath::default();
                    }
                    todo.extend(target.split(|b| *b == b'/').map(<[u8]>::to_vec).rev());
                }
                _ if !make => return Ok(None),
                Some(_) if !self.merging => {
                    return Err(refused(
                        entry.as_bytes(),
                        "the layer has a file where a directory of this name is needed",
                    ));
                }
                // A lower layer's file is hidden by the directory.
                _ => {
                    // One name may have hundreds of them.
                    self.take(F::charged(0))?;
                    self.form.make_dir(&here)?;
                    self.remember_name(&component)?;
                    self.describe(&here, Meta::implied())?;
                    physical = here;
                }
            }
        }
        Ok(Some(physical))
    }
}
