//! Who has shown that they may read an image, and from where, on a store that serves several users.

use std::os::fd::AsFd;

use super::lock::Hold;
use super::{Store, files};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{BlobKind, BlobSource, ResolvedManifest, read_verified};

/// Sources of one image that are remembered for one user; an earlier one is shown again when it is wanted.
const MOST_SOURCES: usize = 64;

/// A user, and a source that gave them the image.
#[derive(PartialEq, Eq)]
struct Grant {
    uid: u32,
    source: String,
}

impl Store {
    /// Whether `uid` has shown before that the image's source gives it to them. Another source is another matter: a site's
    /// rules go by its name, and it may be one that never had the image.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn is_granted(&self, image: &ResolvedManifest, uid: u32) -> Result<bool> {
        let wanted = Grant { uid, source: image.source.clone() };
        Ok(self.grants(&image.digest)?.contains(&wanted))
    }

    /// Notes that `uid` may read the image from its source from now on, until the image is removed.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn grant(&self, image: &ResolvedManifest, uid: u32) -> Result<()> {
        let _store = self.lock("store", Hold::Exclusive)?;
        let mut grants = self.grants(&image.digest)?;
        let new = Grant { uid, source: image.source.clone() };
        if grants.contains(&new) {
            return Ok(());
        }
        if grants.iter().filter(|grant| grant.uid == uid).count() >= MOST_SOURCES
            && let Some(first) = grants.iter().position(|grant| grant.uid == uid)
        {
            grants.remove(first);
        }
        grants.push(new);
        let text: String = grants.iter().map(|grant| format!("{} {}\n", grant.uid, grant.source)).collect();
        files::write(self.images.as_fd(), &grants_name(&image.digest), text.as_bytes(), self.give_to)
    }

    /// Reads the image's manifest from `source`, which is asked with the logins of whoever wants the image, as this `kind`.
    ///
    /// # Errors
    /// The source refuses it, or gives something else.
    pub(crate) fn prove(&self, digest: &Digest, source: &dyn BlobSource, kind: BlobKind) -> Result<()> {
        let bytes = read_verified(source, kind, digest, self.limits.manifest_bytes)?;
        // An import that follows need not ask for it again.
        files::write(self.blobs.as_fd(), &digest.file_name(), &bytes, self.give_to)
    }

    /// Lines of a user and a source, which has no line ends. An earlier version wrote users alone: they show it anew.
    fn grants(&self, digest: &Digest) -> Result<Vec<Grant>> {
        let name = grants_name(digest);
        let Some(bytes) = files::read(self.images.as_fd(), &name)? else { return Ok(Vec::new()) };
        let damaged = || {
            Error::new(ErrorKind::Corrupt, format!("image store: {name}"), "is damaged")
                .next("remove the image and pull it again")
        };
        let text = String::from_utf8(bytes).map_err(|_| damaged())?;
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        pairs
            .map(|(uid, source)| {
                Ok(Grant { uid: uid.parse().map_err(|_| damaged())?, source: source.to_owned() })
            })
            .collect()
    }
}

pub(super) fn grants_name(digest: &Digest) -> String {
    format!("{}.grants", digest.file_name())
}
