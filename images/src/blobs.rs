//! Layers as blobs: compressed, hashed and counted on their way.

use std::io::{self, Write};

use crate::digest::{Algorithm, Digest, Hasher};

/// A compressed layer: digest and length of the blob, and digest of what is in it.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) diff_id: Digest,
}

/// Takes an archive and writes it gzipped, as every tool reads it; the same archive always gives the same bytes.
pub(crate) struct Compressor<W: Write> {
    gzip: flate2::write::GzEncoder<Counted<W>>,
    plain: Hasher,
}

impl<W: Write> Compressor<W> {
    /// Writes to `out`; `algorithm` is that of the digest of what is in the blob.
    pub(crate) fn new(out: W, algorithm: Algorithm) -> Self {
        let counted = Counted { out, hasher: Hasher::new(Algorithm::Sha256), size: 0 };
        let gzip = flate2::write::GzEncoder::new(counted, flate2::Compression::fast());
        Self { gzip, plain: Hasher::new(algorithm) }
    }

    /// The end of the archive.
    pub(crate) fn finish(self) -> io::Result<Blob> {
        let mut counted = self.gzip.finish()?;
        counted.flush()?;
        Ok(Blob { digest: counted.hasher.finish(), size: counted.size, diff_id: self.plain.finish() })
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.gzip.write(bytes)?;
        self.plain.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.gzip.flush()
    }
}

/// Hashes and counts what is written.
struct Counted<W> {
    out: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
