//! A file that gets its name when it is complete: whoever writes it may be killed at any moment, and leaves nothing.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat};
use rustix::io::Errno;

use crate::outer::partial;

/// A file on its way to `place`. Dropping it takes it away.
#[derive(Debug)]
pub(crate) struct Unseen {
    file: File,
    place: PathBuf,
    /// A name beside the place, which it has for a moment, or all the time where the filesystem knows no files without one.
    aside: PathBuf,
    named: bool,
}

impl Unseen {
    /// Makes it in the directory of its place.
    pub fn create(place: &Path) -> io::Result<Unseen> {
        Unseen::create_as(place, 0o666)
    }

    /// As [`Unseen::create`], with other permissions, less the umask.
    pub fn create_as(place: &Path, mode: u32) -> io::Result<Unseen> {
        let directory = place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let aside = partial(place);
        let (file, named) = match rustix::fs::open(directory, flags, Mode::from_raw_mode(mode)) {
            Ok(file) => (File::from(file), false),
            // Network filesystems, above all.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                (File::options().read(true).write(true).create_new(true).mode(mode).open(&aside)?, true)
            }
            Err(e) => return Err(e.into()),
        };
        Ok(Unseen { file, place: place.to_path_buf(), aside, named })
    }

    /// The file, to be written.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its name, in place of what has that name.
    pub fn publish(mut self) -> io::Result<()> {
        if !self.named {
            let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(CWD, own, CWD, &self.aside, AtFlags::SYMLINK_FOLLOW)?;
            self.named = true;
        }
        std::fs::rename(&self.aside, &self.place)?;
        self.named = false;
        Ok(())
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        if self.named {
            // The error that counts is an earlier one.
            let _ = std::fs::remove_file(&self.aside);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(dir: &Path) -> Vec<String> {
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn it_has_no_name_before_it_is_complete_and_replaces_what_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("image.sqsh");
        std::fs::write(&place, "old").unwrap();
        let unseen = Unseen::create(&place).unwrap();
        unseen.file().write_all(b"new").unwrap();
        assert_eq!(
            names(dir.path()),
            ["image.sqsh"],
            "the filesystem of temporary files has files without a name"
        );
        assert_eq!(std::fs::read(&place).unwrap(), b"old");
        unseen.publish().unwrap();
        assert_eq!(std::fs::read(&place).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["image.sqsh"]);
        drop(Unseen::create(&place).unwrap());
        assert_eq!(names(dir.path()), ["image.sqsh"]);
    }
}
