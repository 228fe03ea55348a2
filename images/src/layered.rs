//! An image as a tar file or a directory, written layer by layer: blobs get their names when they are complete.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use berth_tar::{BLOCK, END, padding};
use serde_json::json;

use crate::blobs::Blob;
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};
use crate::manifest::Platform;
use crate::outer::{self, MARKER, blob_name, directory, header};

/// By which names other tools list the image.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// In an OCI layout: `org.opencontainers.image.ref.name`.
    pub(crate) layout: String,
    /// In a docker-archive: `REPOSITORY:TAG`.
    pub(crate) docker: String,
}

impl Names {
    /// From the file's name without its ending, in letters that a tag may have.
    pub(crate) fn of_file(place: &Path) -> Names {
        let stem = place.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let tag: String = stem.chars().map(|c| if fits(c) { c } else { '_' }).collect();
        let tag = tag.trim_start_matches(['.', '-']).to_string();
        let layout = if tag.is_empty() { "saved".to_string() } else { tag };
        Names { docker: format!("{}:latest", layout.to_ascii_lowercase()), layout }
    }
}

/// An image on its way into a tar file that is an OCI layout and a docker-archive at once, or into an OCI layout directory.
pub(crate) struct Layered<'a> {
    form: Form<'a>,
    layers: Vec<Blob>,
}

enum Form<'a> {
    Archive(&'a File, &'a Path),
    Layout(PathBuf),
}

impl<'a> Layered<'a> {
    /// Into a file, which is to be at `place`.
    pub(crate) fn archive(mut file: &'a File, place: &'a Path) -> Result<Self> {
        let io = |e| Error::path(place, e);
        for name in ["blobs", "blobs/sha256"] {
            file.write_all(directory(name).map_err(io)?.as_bytes()).map_err(io)?;
        }
        Ok(Self { form: Form::Archive(file, place), layers: Vec::new() })
    }

    /// Into a directory that is made now.
    pub(crate) fn layout(dir: &Path) -> Result<Self> {
        let made = fs::create_dir(dir).and_then(|()| fs::create_dir_all(dir.join("blobs/sha256")));
        made.map_err(|e| cannot_create(dir, e))?;
        Ok(Self { form: Form::Layout(dir.to_path_buf()), layers: Vec::new() })
    }

    /// Has the next layer's blob written, lowest first; gives the digest of what is in it. A blob that is there already is
    /// named again.
    pub(crate) fn layer(&mut self, write: impl FnOnce(&mut dyn Write) -> Result<Blob>) -> Result<Digest> {
        let blob = match &self.form {
            Form::Archive(file, place) => {
                let (io, mut file) = (|e| Error::path(place, e), *file);
                // The blob's name and length are known when it is written: its header comes last, into this block.
                let start = file.stream_position().map_err(io)?;
                file.write_all(&[0; BLOCK]).map_err(io)?;
                let mut out = io::BufWriter::with_capacity(1 << 20, file);
                let blob = write(&mut out)?;
                out.write_all(&vec![0; padding(blob.size)]).and_then(|()| out.flush()).map_err(io)?;
                drop(out);
                if self.has(&blob) {
                    file.seek(SeekFrom::Start(start)).and_then(|_| file.set_len(start)).map_err(io)?;
                } else {
                    let end = file.stream_position().map_err(io)?;
                    let header = header(&blob_name(&blob.digest), blob.size).map_err(io)?;
                    file.seek(SeekFrom::Start(start)).map_err(io)?;
                    file.write_all(header.as_bytes()).map_err(io)?;
                    file.seek(SeekFrom::Start(end)).map_err(io)?;
                }
                blob
            }
            Form::Layout(dir) => {
                let partial = dir.join("blobs/sha256/partial");
                let file = create(&partial)?;
                let mut out = io::BufWriter::with_capacity(1 << 20, &file);
                let blob = write(&mut out)?;
                let io = |e| Error::path(dir, e);
                out.flush().map_err(io)?;
                drop(out);
                file.sync_all()
                    .and_then(|()| fs::rename(&partial, dir.join(blob_name(&blob.digest))))
                    .map_err(io)?;
                blob
            }
        };
        let diff_id = blob.diff_id.clone();
        self.layers.push(blob);
        Ok(diff_id)
    }

    fn has(&self, blob: &Blob) -> bool {
        self.layers.iter().any(|l| l.digest == blob.digest)
    }

    /// Writes what stands around the layers, and waits until all is on disk.
    pub(crate) fn finish(self, config: &[u8], names: &Names) -> Result<()> {
        let kind = format!("{}+gzip", outer::LAYER);
        let layers: Vec<_> = self.layers.iter().map(|l| (kind.as_str(), &l.digest, l.size)).collect();
        let manifest = outer::manifest(config, &layers);
        let name = |bytes: &[u8]| blob_name(&Digest::of(Algorithm::Sha256, bytes));
        let (config_name, manifest_name) = (name(config), name(&manifest));
        let descriptor = json!({
            "mediaType": outer::MANIFEST,
            "digest": Digest::of(Algorithm::Sha256, &manifest).to_string(),
            "size": manifest.len(),
            "platform": {"architecture": Platform::default().architecture, "os": "linux"},
        });
        let index = outer::index(descriptor, &names.layout);
        let files = [
            (config_name.as_str(), config),
            (manifest_name.as_str(), manifest.as_slice()),
            ("index.json", index.as_slice()),
        ];
        match self.form {
            Form::Archive(mut file, place) => {
                let io = |e| Error::path(place, e);
                let docker = json!([{
                    "Config": config_name,
                    "RepoTags": [names.docker],
                    "Layers": self.layers.iter().map(|l| blob_name(&l.digest)).collect::<Vec<_>>(),
                }]);
                let docker = docker.to_string();
                let last = [("manifest.json", docker.as_bytes()), ("oci-layout", MARKER)];
                for (name, bytes) in files.into_iter().chain(last) {
                    file.write_all(header(name, bytes.len() as u64).map_err(io)?.as_bytes()).map_err(io)?;
                    file.write_all(bytes).map_err(io)?;
                    file.write_all(&vec![0; padding(bytes.len() as u64)]).map_err(io)?;
                }
                file.write_all(&END).and_then(|()| file.sync_all()).map_err(io)
            }
            Form::Layout(dir) => {
                let io = |e| Error::path(&dir, e);
                for (name, bytes) in files.into_iter().chain([("oci-layout", MARKER)]) {
                    let mut file = create(&dir.join(name))?;
                    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io)?;
                }
                // The names, too, before the whole gets its own.
                for names in [&dir.join("blobs/sha256"), &dir] {
                    File::open(names).and_then(|names| names.sync_all()).map_err(io)?;
                }
                Ok(())
            }
        }
    }
}

fn create(path: &Path) -> Result<File> {
    let file = File::options().write(true).read(true).create_new(true).open(path);
    file.map_err(|e| cannot_create(path, e))
}

pub(crate) fn cannot_create(path: &Path, e: io::Error) -> Error {
    Error::path(path, e).next("name a directory that exists and that you may write to")
}
