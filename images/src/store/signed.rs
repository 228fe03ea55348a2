//! What is known of signatures of the store's images, so that nobody is asked at each start.

use std::os::fd::AsFd;

use super::ensure::PreparedImage;
use super::lock::Hold;
use super::record::{EvidenceRecord, SignatureRecord, VERSION, parse, print};
use super::{Store, files};
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::progress::Progress;
use crate::signature::{Heard, Kept, Signers, Verdict, look_for_signature};
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
        let (verdict, kept) = match self.look(image, source, signers) {
            Ok(found) => found,
            Err(error) if signers.required => return Err(error),
            // Not to know is not to be signed, and nothing to remember.
            Err(error) => {
                signers.unsigned(&image.source, &error.to_string(), progress)?;
                return self.ensure(image, source, progress);
            }
        };
        signers.judge(image, &verdict, progress)?;
        let prepared = self.ensure(image, source, progress)?;
        if says_enough(&verdict, source) {
            self.remember(&image.digest, verdict, kept)?;
        }
        Ok(prepared)
    }

    /// Looks for the signature alone, and remembers what was found: for an image whose content then comes from elsewhere, as from other
    /// nodes. What these have of signatures is judged as a registry's is, by the keys alone. Where it cannot be found out and need not
    /// be, whoever imports the image says so.
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
        match self.look(image, source, signers) {
            Ok((verdict, kept)) if signers.required => {
                signers.judge(image, &verdict, progress)?;
                self.remember(&image.digest, verdict, kept)
            }
            Ok((verdict, _)) if !says_enough(&verdict, source) => Ok(()),
            Ok((verdict, kept)) => self.remember(&image.digest, verdict, kept),
            Err(error) if signers.required => Err(error),
            Err(_) => Ok(()),
        }
    }

    /// Looks for a signature in what is kept of the image, and then at the source, of which is kept what it says.
    fn look(
        &self,
        image: &ResolvedManifest,
        source: &dyn BlobSource,
        signers: &Signers,
    ) -> Result<(Verdict, Option<Kept>)> {
        if let Some(kept) = self.evidence(&image.digest)?
            && let Ok(verdict) = look_for_signature(image, &kept, signers)
            && verdict.signed_by.is_some()
        {
            return Ok((verdict, None));
        }
        let heard = Heard::new(source);
        let verdict = look_for_signature(image, &heard, signers)?;
        // What proves nothing is nobody's to have.
        let kept = verdict.signed_by.is_some().then(|| heard.kept());
        Ok((verdict, kept))
    }

    /// Whether what is known of the image is enough to go on with it, with a word to people where it is unsigned and may be.
    ///
    /// # Errors
    /// A key cannot be read, or the store cannot.
    pub fn is_admitted(
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

    /// What a source said of the image's signatures.
    pub(super) fn evidence(&self, digest: &Digest) -> Result<Option<Kept>> {
        let name = evidence_name(digest);
        let Some(bytes) = files::read(self.images.as_fd(), &name)? else { return Ok(None) };
        match parse::<EvidenceRecord>(&name, &bytes) {
            // What is damaged is asked for again.
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
            other => other.map(|record| Some(record.kept)),
        }
    }

    fn remember(&self, digest: &Digest, verdict: Verdict, kept: Option<Kept>) -> Result<()> {
        let _store = self.lock("store", Hold::Exclusive)?;
        if let Some(kept) = kept.filter(Kept::fits) {
            let kept = kept.over(self.evidence(digest)?.unwrap_or_default());
            let record = EvidenceRecord { version: VERSION, kept };
            files::write(self.images.as_fd(), &evidence_name(digest), &print(&record)?, self.give_to)?;
        }
        let mut verdicts = self.verdicts(digest)?;
        verdicts.retain(|v| (&v.keys, &v.identity) != (&verdict.keys, &verdict.identity));
        let old = verdicts.len().saturating_sub(MOST - 1);
        verdicts.drain(..old);
        verdicts.push(verdict);
        let record = SignatureRecord { version: VERSION, verdicts };
        files::write(self.images.as_fd(), &verdicts_name(digest), &print(&record)?, self.give_to)
    }
}

/// Whether it is worth remembering: that other nodes know of no signature says nothing of the registry.
fn says_enough(verdict: &Verdict, source: &dyn BlobSource) -> bool {
    verdict.signed_by.is_some() || !source.is_peers()
}

/// How the names of such files end.
pub(super) const VERDICTS: &str = ".signatures";

pub(super) fn verdicts_name(digest: &Digest) -> String {
    format!("{}{VERDICTS}", digest.file_name())
}

/// And those of what sources said.
pub(super) const EVIDENCE: &str = ".evidence";

pub(super) fn evidence_name(digest: &Digest) -> String {
    format!("{}{EVIDENCE}", digest.file_name())
}
