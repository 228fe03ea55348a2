//! Proof for those who ask no registry that a name by the digest of an index means an image: the indexes on the way, each of which lists the next
//! one, and the last one the image.

use std::collections::BTreeSet;

use crate::digest::{Algorithm, Digest};
use crate::error::{Error, ErrorKind, Result};
use crate::known::Manifests;
use crate::manifest::{Document, descriptor_digest, parse_document};
use crate::reference::Reference;
use crate::registry::Credentials;
use crate::signature::MAX_INDEXES;
use crate::source::{
    BlobKind, BlobSource, ResolveOptions, Resolved, ResolvedManifest, open_source, read_verified, resolve,
};
use crate::unpack::Limits;

/// Most bytes of all indexes of a proof, which goes from machine to machine in a message.
pub const MOST_PROOF: usize = 256 << 10;

/// As [`resolve`]. Where the name says a digest that is not the image's own, the indexes on the way from there come along, outermost first.
///
/// # Errors
/// As there; or an index cannot be read again, or they are more than [`MOST_PROOF`] bytes.
pub fn resolve_with_proof(
    reference: &Reference,
    credentials: &Credentials,
    options: &ResolveOptions,
) -> Result<(Resolved, Vec<String>)> {
    let resolved = resolve(reference, credentials, options)?;
    let proof = match (reference, &resolved) {
        (Reference::Registry(name), Resolved::Manifest(image))
            if name.digest.as_ref().is_some_and(|digest| *digest != image.digest) =>
        {
            let source = open_source(image, &options.registries, credentials)?;
            proof_of(image, source.as_ref(), &options.manifests)?
        }
        _ => Vec::new(),
    };
    Ok((resolved, proof))
}

fn proof_of(image: &ResolvedManifest, source: &dyn BlobSource, known: &Manifests) -> Result<Vec<String>> {
    let (mut proof, mut left) = (Vec::new(), MOST_PROOF);
    for index in &image.indexes {
        let refused = |reason: String| {
            Error::new(ErrorKind::Refused, format!("index {index} of {}", image.source), reason)
                .next(format!("name the image by its own digest, {}", image.digest))
        };
        let bytes = match known.get(index) {
            Some(bytes) => bytes,
            None => read_verified(source, BlobKind::Manifest, index, Limits::default().manifest_bytes)?,
        };
        left = left.checked_sub(bytes.len()).ok_or_else(|| {
            refused(format!(
                "with those before it has more than {} KiB, which cannot be shown",
                MOST_PROOF >> 10
            ))
        })?;
        proof.push(String::from_utf8(bytes).map_err(|_| refused("it is no text".to_owned()))?);
    }
    Ok(proof)
}

/// Whether the document of digest `first` leads to the image by these indexes. Trusts whoever gave them for nothing.
///
/// # Errors
/// It does not, and where the way ends.
pub fn leads_to(first: &Digest, proof: &[String], image: &Digest) -> Result<()> {
    if proof.len() > MAX_INDEXES || proof.iter().map(String::len).sum::<usize>() > MOST_PROOF {
        let reason = format!("more than {MAX_INDEXES} indexes or {} KiB lead from it", MOST_PROOF >> 10);
        return Err(Error::new(ErrorKind::Refused, format!("index {first}"), reason));
    }
    let mut next = BTreeSet::from([first.clone()]);
    let mut last = first.clone();
    for text in proof {
        let own = [Algorithm::Sha256, Algorithm::Sha512].map(|kind| Digest::of(kind, text.as_bytes()));
        let Some(named) = own.into_iter().find(|digest| next.contains(digest)) else {
            let reason = "what is shown for what comes behind it has another digest";
            return Err(Error::new(ErrorKind::Refused, format!("index {last}"), reason));
        };
        next = listed(&format!("index {named}"), text.as_bytes())?;
        last = named;
    }
    match next.contains(image) {
        true => Ok(()),
        false => Err(not_listed(&last, image)),
    }
}

/// What an index lists; nothing where it is none.
pub(crate) fn listed(what: &str, bytes: &[u8]) -> Result<BTreeSet<Digest>> {
    Ok(match parse_document(what, bytes, None)? {
        Document::Index(index) => {
            index.manifests().iter().filter_map(|entry| descriptor_digest(what, entry).ok()).collect()
        }
        Document::Manifest(_) => BTreeSet::new(),
    })
}

pub(crate) fn not_listed(index: &Digest, child: &Digest) -> Error {
    Error::new(ErrorKind::Refused, format!("index {index}"), format!("does not list {child}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn index(entries: &[&Digest]) -> String {
        let entry = |digest: &&Digest| {
            let kind = "application/vnd.oci.image.manifest.v1+json";
            serde_json::json!({"mediaType": kind, "digest": digest.to_string(), "size": 2})
        };
        let entries: Vec<_> = entries.iter().map(entry).collect();
        serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string()
    }

    #[test]
    fn an_index_leads_to_what_it_lists_and_nobody_puts_another_in_its_place() {
        let (image, other, evil) = (of("image"), of("other"), of("evil"));
        let inner = index(&[&other, &image]);
        let outer = index(&[&of(&inner)]);
        let says = |first: &str, proof: &[&String], image: &Digest| {
            let proof: Vec<String> = proof.iter().map(|text| (*text).clone()).collect();
            leads_to(&of(first), &proof, image).map_err(|e| e.to_string())
        };
        assert_eq!(says(&inner, &[&inner], &image), Ok(()));
        assert_eq!(says(&outer, &[&outer, &inner], &image), Ok(()));
        let lie = index(&[&evil]);
        for (first, proof, image) in [
            (&inner, vec![], &image),
            (&inner, vec![&inner], &evil),
            (&inner, vec![&lie], &evil),
            (&inner, vec![&inner, &lie], &evil),
            (&outer, vec![&outer], &image),
            (&outer, vec![&inner], &image),
            (&outer, vec![&inner, &outer], &image),
            (&outer, vec![&outer, &lie], &evil),
        ] {
            let why = says(first, &proof, image).unwrap_err();
            assert!(why.contains("does not list") || why.contains("another digest"), "{why}");
        }
        assert!(says(&inner, &[&inner; 5], &image).unwrap_err().contains("more than"));
        let large = index(&[&image]) + &" ".repeat(MOST_PROOF);
        assert!(says(&large, &[&large], &image).unwrap_err().contains("more than"));
        let manifest = r#"{"schemaVersion":2,"layers":[]}"#.to_owned();
        assert!(says(&manifest, &[&manifest], &image).is_err());
    }
}
