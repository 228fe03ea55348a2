//! Who has shown that they may read an image, on a store that serves several users.

use std::os::fd::AsFd;

use super::lock::Hold;
use super::{Store, files};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{BlobKind, BlobSource, read_verified};

impl Store {
    /// Whether `uid` has shown before that the image's source gives it to them.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn is_granted(&self, digest: &Digest, uid: u32) -> Result<bool> {
        Ok(self.grants(digest)?.contains(&uid))
    }

    /// Notes that `uid` may read the image from now on, until the image is removed.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn grant(&self, digest: &Digest, uid: u32) -> Result<()> {
        let _store = self.lock("store", Hold::Exclusive)?;
        let mut uids = self.grants(digest)?;
        if !uids.contains(&uid) {
            uids.push(uid);
            let text: String = uids.iter().map(|uid| format!("{uid}\n")).collect();
            files::write(self.images.as_fd(), &grants_name(digest), text.as_bytes(), self.give_to)?;
        }
        Ok(())
    }

    /// Reads the image's manifest from `source`, which is asked with the logins of whoever wants the image.
    ///
    /// # Errors
    /// The source refuses it, or gives something else.
    pub(crate) fn prove(&self, digest: &Digest, source: &dyn BlobSource) -> Result<()> {
        let bytes = read_verified(source, BlobKind::Manifest, digest, self.limits.manifest_bytes)?;
        // An import that follows need not ask for it again.
        files::write(self.blobs.as_fd(), &digest.file_name(), &bytes, self.give_to)
    }

    fn grants(&self, digest: &Digest) -> Result<Vec<u32>> {
        let name = grants_name(digest);
        let Some(bytes) = files::read(self.images.as_fd(), &name)? else { return Ok(Vec::new()) };
        String::from_utf8_lossy(&bytes)
            .lines()
            .map(|line| {
                line.parse().map_err(|_| {
                    Error::new(ErrorKind::Corrupt, format!("image store: {name}"), "is damaged")
                        .next("remove the image and pull it again")
                })
            })
            .collect()
    }
}

pub(super) fn grants_name(digest: &Digest) -> String {
    format!("{}.grants", digest.file_name())
}
