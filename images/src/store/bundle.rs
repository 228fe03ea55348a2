//! What travels of a layer's image between nodes, as one blob: a head, the image, the skeleton of the layer's archive, and what was
//! replaced in that. So whoever has it can check the layer, make its archive again and give both on, as whoever made it. The same
//! archive makes the same blob on every node that has the same writer.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags, openat};
use serde::{Deserialize, Serialize};

use super::form::LayerForm;
use super::layer::{REPLACED, SKELETON};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, ErrorKind, Result, recover};
use crate::unpack::LayerReport;

/// Its media type.
pub(super) const MEDIA_TYPE: &str = "application/vnd.berth.layer.erofs.v1";
/// Bytes of the head: the image behind it begins with a block.
pub(super) const HEAD: usize = 4096;
/// Bytes that are read at a time.
const PIECE: usize = 256 << 10;

/// What a store has noted of what may travel of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FormRecord {
    /// What wrote the image.
    pub(super) writer: String,
    /// Of the blob.
    pub(super) digest: Digest,
    /// Bytes of the blob.
    pub(super) size: u64,
    /// This node made it of the layer's archive; else another one did.
    pub(super) made: bool,
}

/// What stands in front: JSON, with spaces behind it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    pub(super) writer: String,
    /// The layer, by the digest of its content.
    pub(super) layer: Digest,
    /// Bytes of each part.
    pub(super) image: u64,
    pub(super) skeleton: u64,
    pub(super) replaced: u64,
    /// What unpacking it made, and what was left out.
    pub(super) report: LayerReport,
}

impl Head {
    fn print(&self) -> Result<Vec<u8>> {
        let failed = |why: String| Error::new(ErrorKind::Io, "image store: head of a layer's image", why);
        let mut bytes = serde_json::to_vec(self).map_err(|e| failed(e.to_string()))?;
        if bytes.len() > HEAD {
            return Err(failed(format!("it has more than {HEAD} bytes")));
        }
        bytes.resize(HEAD, b' ');
        Ok(bytes)
    }

    /// Reads one that another node wrote: it is what is said of the blob that it begins.
    pub(super) fn parse(bytes: &[u8], writer: &str, layer: &Digest, size: u64) -> Result<Head> {
        let wrong = |why: String| {
            Error::new(ErrorKind::Corrupt, format!("head of the image of layer {}", layer.short()), why)
        };
        let head: Head = serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
        if head.writer != writer || head.layer != *layer {
            return Err(wrong("it is of another layer, or another writer's".to_owned()));
        }
        let parts = [HEAD as u64, head.image, head.skeleton, head.replaced];
        let all = parts.into_iter().try_fold(0u64, u64::checked_add);
        if all != Some(size) || head.report.unsaved > 0 {
            return Err(wrong("its parts are not what it has".to_owned()));
        }
        Ok(head)
    }
}

/// The blob of a layer that is on this node.
pub(super) struct Bundle {
    writer: String,
    head: Vec<u8>,
    files: Vec<(File, u64)>,
}

impl Bundle {
    /// Of the layer whose files are in `directory`, which is an image and of which the archive can be made again.
    pub(super) fn open(
        directory: &OwnedFd,
        layer: &Digest,
        report: &LayerReport,
        writer: &str,
    ) -> Result<Bundle> {
        let open = |name: &str| {
            let what = |e: io::Error| Error::io(format!("image store: {name} of layer {}", layer.short()), e);
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = openat(directory, name, flags, Mode::empty()).map_err(|e| what(e.into()))?;
            let file = File::from(file);
            let length = file.metadata().map_err(what)?.len();
            Ok::<_, Error>((file, length))
        };
        let mut files = vec![open(LayerForm::Erofs.name())?, open(SKELETON)?];
        match open(REPLACED) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => files.push(other?),
        }
        let length = |at: usize| files.get(at).map_or(0, |(_, length)| *length);
        let head = Head {
            writer: writer.to_owned(),
            layer: layer.clone(),
            image: length(0),
            skeleton: length(1),
            replaced: length(2),
            report: report.clone(),
        };
        Ok(Bundle { writer: writer.to_owned(), head: head.print()?, files })
    }

    /// Its bytes.
    pub(super) fn length(&self) -> u64 {
        self.files.iter().fold(self.head.len() as u64, |all, (_, length)| all.saturating_add(*length))
    }

    /// What is noted of it; all of it is read for that.
    pub(super) fn record(&self, made: bool) -> Result<FormRecord> {
        let mut sum = Summed(Hasher::new(Algorithm::Sha256));
        let size = self.length();
        self.copy((0, size), &mut sum).map_err(|e| recover("image store: digest of a layer's image", e))?;
        Ok(FormRecord { writer: self.writer.clone(), digest: sum.0.finish(), size, made })
    }

    /// Writes the bytes from one offset to before another. Holes are zeros.
    pub(super) fn copy(&self, (from, end): (u64, u64), out: &mut dyn Write) -> io::Result<()> {
        let head = self.head.len() as u64;
        let at = |offset: u64| usize::try_from(offset.min(head)).unwrap_or(usize::MAX);
        out.write_all(self.head.get(at(from)..at(end)).unwrap_or_default())?;
        let mut buffer = vec![0; PIECE];
        let mut start = head;
        for (file, length) in &self.files {
            let mut at = from.saturating_sub(start);
            let end = end.saturating_sub(start).min(*length);
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
                match file.read_at(&mut buffer[..most], at) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => {
                        out.write_all(&buffer[..read])?;
                        at += read as u64;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            start = start.saturating_add(*length);
        }
        Ok(())
    }
}

/// Hashes what is written.
struct Summed(Hasher);

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer's directory with these files, and its blob.
    fn bundle(image: &[u8], skeleton: &[u8], replaced: Option<&[u8]>) -> (tempfile::TempDir, Bundle) {
        let dir = tempfile::tempdir().unwrap();
        let parts =
            [(LayerForm::Erofs.name(), Some(image)), (SKELETON, Some(skeleton)), (REPLACED, replaced)];
        for (name, bytes) in parts {
            bytes.into_iter().for_each(|bytes| std::fs::write(dir.path().join(name), bytes).unwrap());
        }
        let directory = OwnedFd::from(File::open(dir.path()).unwrap());
        let layer = Digest::of(Algorithm::Sha256, b"layer");
        let bundle = Bundle::open(&directory, &layer, &LayerReport::default(), "w").unwrap();
        (dir, bundle)
    }

    fn bytes(bundle: &Bundle, span: (u64, u64)) -> Vec<u8> {
        let mut bytes = Vec::new();
        bundle.copy(span, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn any_part_of_it_is_that_part_of_all() {
        let (_dir, bundle) = bundle(&[1; 9000], &[2; 70], Some(&[3; 5]));
        let (size, all) = (bundle.length(), bytes(&bundle, (0, u64::MAX)));
        assert_eq!(size, HEAD as u64 + 9000 + 70 + 5);
        assert_eq!(all.len() as u64, size);
        assert!(all.ends_with(&[&[1u8; 9000][..], &[2; 70], &[3; 5]].concat()));
        let places = [0, 1, 4095, 4096, 4097, 13_095, 13_096, 13_166, 13_170, size];
        for from in places {
            for end in places.into_iter().filter(|end| *end >= from) {
                let at = |offset: u64| usize::try_from(offset).unwrap();
                assert_eq!(bytes(&bundle, (from, end)), all[at(from)..at(end)], "{from} {end}");
            }
        }
        let record = bundle.record(true).unwrap();
        assert_eq!((record.digest, record.size), (Digest::of(Algorithm::Sha256, &all), size));
    }

    #[test]
    fn a_head_that_says_something_else_than_its_blob_is_refused() {
        let (_dir, bundle) = bundle(&[1; 4096], b"skeleton", None);
        let (head, layer) = (bytes(&bundle, (0, HEAD as u64)), Digest::of(Algorithm::Sha256, b"layer"));
        let size = bundle.length();
        let parsed = Head::parse(&head, "w", &layer, size).unwrap();
        assert_eq!((parsed.image, parsed.skeleton, parsed.replaced), (4096, 8, 0));
        let other = Digest::of(Algorithm::Sha256, b"other");
        assert!(Head::parse(&head, "v", &layer, size).is_err());
        assert!(Head::parse(&head, "w", &other, size).is_err());
        assert!(Head::parse(&head, "w", &layer, size + 1).is_err());
        let huge = Head { image: u64::MAX, ..parsed };
        assert!(Head::parse(&huge.print().unwrap(), "w", &layer, size).is_err());
        let unsaved = Head { image: 4096, report: LayerReport { unsaved: 1, ..huge.report }, ..huge };
        assert!(Head::parse(&unsaved.print().unwrap(), "w", &layer, size).is_err());
        assert!(Head::parse(b"{}", "w", &layer, size).is_err());
    }

    /// Nodes digest it, and compare digests: of another form it needs another version of the writer, or nodes of two versions of Berth, which
    /// made the same, are an alarm.
    #[test]
    fn one_version_of_the_writer_has_one_form_of_the_head() {
        assert_eq!(crate::erofs::VERSION, 1, "what is below is of this version");
        let (_dir, bundle) = bundle(&[1; 4096], b"skeleton", None);
        let head = String::from_utf8(bytes(&bundle, (0, HEAD as u64))).unwrap();
        let expected = concat!(
            r#"{"writer":"w","layer":"sha256:dac1d7cfa95021764849fd102524e141488c5e3a90f861dbb5a12d9ac8584f85","#,
            r#""image":4096,"skeleton":8,"replaced":0,"report":{"entries":0,"bytes":0,"whiteouts":0,"#,
            r#""opaque_directories":0,"devices_skipped":0,"overlay_attributes_stripped":0,"capabilities_stripped":0,"#,
            r#""other_attributes_skipped":0,"setid_stripped":0,"replaced":0,"unsaved":0}}"#
        );
        assert_eq!(head.trim_end(), expected);
    }
}
