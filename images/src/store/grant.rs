//! Who has shown that they may read an image, and from where, on a store that serves several users.
//!
//! Each user has a file of their own beside the image's record, `sha256-HEX.grant-UID`: what one user has is found and taken
//! back without looking at what others have. Its time is that of the user's last use.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Timespec, Timestamps, UTIME_NOW, statat, utimensat};
use serde::{Deserialize, Serialize};

use super::lock::Hold;
use super::record::{VERSION, parse, print};
use super::seen::seen_name;
use super::{Store, files, now};
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::source::{BlobKind, BlobSource, ResolvedManifest, read_verified};

/// Sources, and names, of one image that are remembered for one user; an earlier one is shown again when it is wanted.
const MOST_SOURCES: usize = 64;

/// In which way one user has an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grant {
    pub(super) version: u32,
    /// Sources that gave it to them.
    pub(super) sources: Vec<String>,
    /// Names under which they asked for it, but for those that mean newer images now.
    pub(super) names: Vec<String>,
    /// When they were first given it, Unix seconds.
    pub(super) since: u64,
}

impl Grant {
    /// Adds source and name; whether that changed anything.
    fn add(&mut self, image: &ResolvedManifest) -> bool {
        let changed = remember(&mut self.sources, &image.source);
        image.name.as_ref().is_some_and(|name| remember(&mut self.names, name)) || changed
    }
}

/// Puts `text` behind the others, the first of which goes where there are too many.
fn remember(all: &mut Vec<String>, text: &str) -> bool {
    if all.iter().any(|known| known == text) {
        return false;
    }
    if all.len() >= MOST_SOURCES {
        all.remove(0);
    }
    all.push(text.to_owned());
    true
}

impl Store {
    /// Whether `uid` has shown before that the image's source gives it to them. Another source is another matter: a site's
    /// rules go by its name, and it may be one that never had the image.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn is_granted(&self, image: &ResolvedManifest, uid: u32) -> Result<bool> {
        Ok(self.grant_of(&image.digest, uid)?.is_some_and(|grant| grant.sources.contains(&image.source)))
    }

    /// Notes that `uid` may read the image from its source from now on, until the image is removed or they give it back.
    ///
    /// # Errors
    /// The store cannot be written, or that is more than their quota.
    pub fn grant(&self, image: &ResolvedManifest, uid: u32) -> Result<()> {
        let _store = self.lock("store", Hold::Exclusive)?;
        let mut grant = self.grant_of(&image.digest, uid)?.unwrap_or_default();
        self.admit_whole(image.name.as_ref().unwrap_or(&image.source), &image.digest, uid)?;
        if grant.since == 0 {
            grant = Grant { version: VERSION, since: now(), ..grant };
        }
        files::remove(self.images.as_fd(), &released_name(&image.digest))?;
        let named = image.name.as_ref().filter(|name| !grant.names.contains(name));
        if grant.add(image) {
            self.write_grant(&image.digest, uid, &grant)?;
        }
        match named {
            Some(name) => self.take_name_of_user(name, &image.digest, uid),
            None => Ok(()),
        }
    }

    /// Notes that a user who may read the image uses it, under the name that they call it by now.
    pub(crate) fn used_by(&self, image: &ResolvedManifest, uid: u32) -> Result<()> {
        let time = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: time, last_modification: time };
        // Told to the user, and nothing depends on it.
        let _ = utimensat(&self.images, grant_name(&image.digest, uid), &times, AtFlags::SYMLINK_NOFOLLOW);
        let known = match (&image.name, self.grant_of(&image.digest, uid)?) {
            (Some(name), Some(grant)) => grant.names.contains(name),
            _ => true,
        };
        if known { Ok(()) } else { self.grant(image, uid) }
    }

    /// Takes the image from the user, by whatever sources they have it. False where they do not have it. The image itself is
    /// for [`Store::drop_released`] when nobody else has it.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn take_back(&self, digest: &Digest, uid: u32) -> Result<bool> {
        let _store = self.lock("store", Hold::Exclusive)?;
        let name = grant_name(digest, uid);
        if !Self::has_file(self.images.as_fd(), &name) {
            return Ok(false);
        }
        // Before: whoever is killed in between leaves a mark that a grant outweighs.
        files::write(self.images.as_fd(), &released_name(digest), b"", self.give_to)?;
        files::remove(self.images.as_fd(), &name)?;
        Ok(true)
    }

    /// Images that were given back and that nobody has now.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn released(&self) -> Result<Vec<Digest>> {
        let names = self.names(&self.images)?;
        let digest = |name: &String| name.strip_suffix(RELEASED).and_then(Digest::from_file_name);
        let released = names.iter().filter_map(digest);
        Ok(released.filter(|digest| !has_grants(&names, digest)).collect())
    }

    /// Users who have shown that `source` gives them the image.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn granted_from(&self, digest: &Digest, source: &str) -> Result<Vec<u32>> {
        let mut users = Vec::new();
        for (_, uid) in self
            .names(&self.images)?
            .iter()
            .filter_map(|name| parse_name(name))
            .filter(|(of, _)| of == digest)
        {
            let grant = self.grant_of(digest, uid)?;
            users.extend(grant.filter(|grant| grant.sources.iter().any(|of| of == source)).map(|_| uid));
        }
        users.sort_unstable();
        Ok(users)
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

    /// All images that a user has, with the nanoseconds of their last use.
    pub(super) fn grants_of(&self, uid: u32) -> Result<Vec<(Digest, Grant, u64)>> {
        let mut all = Vec::new();
        for name in self.names(&self.images)? {
            let Some((digest, _)) = parse_name(&name).filter(|(_, of)| *of == uid) else { continue };
            let Some(grant) = self.grant_of(&digest, uid)? else { continue };
            let used = statat(&self.images, &name, AtFlags::SYMLINK_NOFOLLOW)
                .map_or(grant.since, |stat| u64::try_from(stat.st_mtime).unwrap_or_default());
            all.push((digest, grant, used));
        }
        Ok(all)
    }

    /// What the user's file says; nothing where there is none, or a damaged one: they show it anew.
    pub(super) fn grant_of(&self, digest: &Digest, uid: u32) -> Result<Option<Grant>> {
        let name = grant_name(digest, uid);
        let Some(bytes) = files::read(self.images.as_fd(), &name)? else { return Ok(None) };
        match parse(&name, &bytes) {
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
            other => other.map(Some),
        }
    }

    fn write_grant(&self, digest: &Digest, uid: u32, grant: &Grant) -> Result<()> {
        files::write(self.images.as_fd(), &grant_name(digest, uid), &print(grant)?, self.give_to)
    }

    /// A name means the image that its user asked for last.
    fn take_name_of_user(&self, name: &str, digest: &Digest, uid: u32) -> Result<()> {
        for (other, mut grant, _) in self.grants_of(uid)? {
            if other != *digest && grant.names.iter().any(|n| n == name) {
                grant.names.retain(|n| n != name);
                self.write_grant(&other, uid, &grant)?;
            }
        }
        Ok(())
    }

    /// Removes what says who has the image, and who would.
    pub(super) fn remove_grants(&self, digest: &Digest) -> Result<()> {
        for name in self.names(&self.images)? {
            if parse_name(&name).is_some_and(|(of, _)| of == *digest) {
                files::remove(self.images.as_fd(), &name)?;
            }
        }
        files::remove(self.images.as_fd(), &seen_name(digest))?;
        files::remove(self.images.as_fd(), &released_name(digest))
    }
}

/// Says that an image was given back.
const RELEASED: &str = ".released";

pub(super) fn released_name(digest: &Digest) -> String {
    format!("{}{RELEASED}", digest.file_name())
}

fn grant_name(digest: &Digest, uid: u32) -> String {
    format!("{}.grant-{uid}", digest.file_name())
}

/// The image and the user of a grant's file.
pub(super) fn parse_name(name: &str) -> Option<(Digest, u32)> {
    let (digest, uid) = name.split_once(".grant-")?;
    Some((Digest::from_file_name(digest)?, uid.parse().ok()?))
}

/// Whether one of the files says that somebody has the image.
pub(super) fn has_grants(names: &[String], digest: &Digest) -> bool {
    let prefix = format!("{}.grant-", digest.file_name());
    names.iter().any(|name| name.starts_with(&prefix))
}
