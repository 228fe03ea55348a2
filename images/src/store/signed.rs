//! What is known of signatures of the store's images, so that nobody is asked at each start.

use std::os::fd::AsFd;

use super::ensure::PreparedImage;
use super::lock::Hold;
use super::record::{SignatureRecord, VERSION, parse, print};
use super::{Store, files};
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::progress::Progress;
use crate::signature::{Signers, Verdict, look_for_signature};
use crate::source::{BlobSource, ResolvedManifest};

/// Verdicts that are kept of one image: of other keys, and of other names.
const MOST: usize = 32;

impl Store {
    /// As [`Store::ensure`], for an image that needs a signature: it is looked for before any layer is fetched, and the store
    /// remembers what was found.
    ///
    /// # Errors
    /// As for [`Store::ensure`]; or a signature is required and there is none that counts.
    pub fn ensure_signed(
        &self,
        image: &ResolvedManifest,
        source: &dyn BlobSource,
        signers: Option<&Signers>,
        progress: &dyn Progress,
    ) -> Result<PreparedImage> {
        let Some(signers) = signers else { return self.ensure(image, source, progress) };
        if self.is_admitted(image, Some(signers), progress)? {
            return self.ensure(image, source, progress);
        }
        let verdict = match look_for_signature(image, source, signers) {
            Ok(verdict) => verdict,
            Err(error) if signers.required => return Err(error),
            // Not to know is not to be signed, and nothing to remember.
            Err(error) => {
                signers.unsigned(&image.source, &error.to_string(), progress)?;
                return self.ensure(image, source, progress);
            }
        };
        signers.judge(image, &verdict, progress)?;
        let prepared = self.ensure(image, source, progress)?;
        self.remember(&image.digest, verdict)?;
        Ok(prepared)
    }

    /// Looks for the signature alone, and remembers what was found: for an image whose content then comes from elsewhere, as from other
    /// nodes, which have no say in it. Where it cannot be found out and need not be, whoever imports the image says so.
    ///
    /// # Errors
    /// A signature is required and there is none that counts, or nobody says whether there is.
    pub fn look_signed(
        &self,
        image: &ResolvedManifest,
        source: &dyn BlobSource,
        signers: &Signers,
        progress: &dyn Progress,
    ) -> Result<()> {
        if self.is_admitted(image, Some(signers), &())? {
            return Ok(());
        }
        match look_for_signature(image, source, signers) {
            Ok(verdict) if signers.required => {
                signers.judge(image, &verdict, progress)?;
                self.remember(&image.digest, verdict)
            }
            Ok(verdict) => self.remember(&image.digest, verdict),
            Err(error) if signers.required => Err(error),
            Err(_) => Ok(()),
        }
    }

    /// Whether what is known of the image is enough to go on with it, with a word to people where it is unsigned and may be.
    ///
    /// # Errors
    /// A key cannot be read, or the store cannot.
    pub(crate) fn is_admitted(
        &self,
        image: &ResolvedManifest,
        signers: Option<&Signers>,
        progress: &dyn Progress,
    ) -> Result<bool> {
        let Some(signers) = signers else { return Ok(true) };
        let verdicts = self.verdicts(&image.digest)?;
        let Some(verdict) = signers.known(&verdicts)? else { return Ok(false) };
        signers.judge(image, verdict, progress)?;
        Ok(true)
    }

    /// What is known of the image's signatures.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn verdicts(&self, digest: &Digest) -> Result<Vec<Verdict>> {
        let name = verdicts_name(digest);
        match files::read(self.images.as_fd(), &name)? {
            None => Ok(Vec::new()),
            // What is damaged is looked for again.
            Some(bytes) => match parse::<SignatureRecord>(&name, &bytes) {
                Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Vec::new()),
                other => other.map(|record| record.verdicts),
            },
        }
    }

    fn remember(&self, digest: &Digest, verdict: Verdict) -> Result<()> {
        let _store = self.lock("store", Hold::Exclusive)?;
        let mut verdicts = self.verdicts(digest)?;
        verdicts.retain(|v| (&v.keys, &v.identity) != (&verdict.keys, &verdict.identity));
        let old = verdicts.len().saturating_sub(MOST - 1);
        verdicts.drain(..old);
        verdicts.push(verdict);
        let record = SignatureRecord { version: VERSION, verdicts };
        files::write(self.images.as_fd(), &verdicts_name(digest), &print(&record)?, self.give_to)
    }
}

/// How the names of such files end.
pub(super) const VERDICTS: &str = ".signatures";

pub(super) fn verdicts_name(digest: &Digest) -> String {
    format!("{}{VERDICTS}", digest.file_name())
}
