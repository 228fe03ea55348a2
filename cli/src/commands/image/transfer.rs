//! `berth image history`, `export` and `push`: what an image is made of, and images of the store for other tools.

use super::document;
use super::places::{Found, Places, Which};
use crate::images::{self, Bar};
use crate::local::{self, Container};
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::out;
use berth_images::{Digest, Error, HistoryEntry, Reference, SaveForm, Store};
use serde::Serialize;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Characters of a command that fit into a line.
const WIDTH: usize = 60;

/// Show in which steps an image was made, the last first
#[derive(Debug, clap::Args)]
pub struct History {
    #[command(flatten)]
    pub which: Which,
    /// Name or digest
    image: String,
    /// Whole commands
    #[arg(long)]
    no_trunc: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// The form of an exported image.
#[derive(Clone, Copy, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A tar file that is an OCI layout and a docker-archive at once
    Oci,
    /// The same file
    Docker,
    /// A squashfs file
    Sqsh,
    /// An OCI layout directory
    DirLayout,
}

impl Format {
    fn called(self) -> &'static str {
        match self {
            Format::Oci | Format::Docker => "an OCI and docker archive",
            Format::Sqsh => "a squashfs file",
            Format::DirLayout => "an OCI layout directory",
        }
    }
}

impl From<Format> for SaveForm {
    fn from(format: Format) -> SaveForm {
        match format {
            Format::Oci | Format::Docker => SaveForm::Archive,
            Format::Sqsh => SaveForm::Squashfs,
            Format::DirLayout => SaveForm::Layout,
        }
    }
}

impl From<SaveForm> for Format {
    fn from(form: SaveForm) -> Format {
        match form {
            SaveForm::Archive => Format::Oci,
            SaveForm::Squashfs => Format::Sqsh,
            SaveForm::Layout => Format::DirLayout,
        }
    }
}

/// Write an image of the store to a file, for other tools
///
/// As with --container-save the path says in which form: .tar is an OCI layout and a docker-archive at once, .oci or a slash at
/// the end an OCI layout directory, and everything else squashfs. Archives and layouts have all layers with the files, owners
/// and times that were fetched, and the same configuration; layers are compressed anew, so that the digest of the manifest is
/// another one. The same image gives the same blobs each time. Squashfs has one tree of files, which belong to root.
#[derive(Debug, clap::Args)]
pub struct Export {
    /// Name or digest
    image: String,
    /// File or directory to write; oci:DIRECTORY, oci-archive:FILE, docker-archive:FILE and sqsh:FILE say the form, too
    file: PathBuf,
    /// The form, whatever the path says
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Print nothing, and no progress
    #[arg(long, short)]
    quiet: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What was written, as JSON.
#[derive(Serialize)]
struct Exported {
    /// Of the image in the store.
    digest: Digest,
    /// File or directory.
    file: String,
    format: Format,
    /// Bytes of the file, or of all files in the directory.
    bytes: u64,
}

/// Push an image of the store to a registry
///
/// Layers that the registry has are not sent, and those of another repository there are taken over. The store keeps no compressed
/// layers: what has to be sent is compressed anew, with the same content. Where all layers are there as they were fetched, the
/// manifest is the same, too; otherwise its digest is another one.
#[derive(Debug, clap::Args)]
pub struct Push {
    /// Name or digest
    pub image: String,
    /// Where to: REGISTRY/NAME:TAG, with USER@REGISTRY#NAME:TAG for one of several logins
    pub reference: String,
    /// Speak to the registry without TLS
    #[arg(long)]
    pub insecure: bool,
    /// Print the digest alone, and no progress
    #[arg(long, short)]
    pub quiet: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// What was pushed, as JSON.
#[derive(Serialize)]
struct PushedImage {
    /// Digest of the image in the store.
    image: Digest,
    /// Where it is now.
    reference: String,
    /// Digest of its manifest there.
    digest: Digest,
    /// Layers that were sent.
    uploaded: usize,
    /// Their bytes.
    bytes: u64,
    /// Layers that the registry took over from another of its repositories.
    mounted: usize,
    /// Layers that were there.
    present: usize,
    /// Whether layers were compressed anew, so that the manifest is another one.
    anew: bool,
}

/// Prints the steps.
pub fn history(args: &History, places: &Places) -> Outcome {
    let steps = match places.image(&args.image, false)? {
        Found::Own(store, digest) => store.history(&digest).map_err(|e| images::failed(&e))?,
        Found::Node(node, digest) => node.inspect(&digest)?.history(),
    };
    if args.json {
        return out::print(&document(&steps)?).map(|()| 0);
    }
    let mut rows = vec![["CREATED", "SIZE", "LAYER", "CREATED BY"].map(str::to_string)];
    for step in &steps {
        let layer = step.layer.as_ref().map_or("-".to_string(), |l| l.diff_id.short().to_string());
        rows.push(
            [step.created.clone(), layer_size(step), layer, command(step, args.no_trunc)].map(one_line),
        );
    }
    out::print(&super::table(&rows)).map(|()| 0)
}

/// What the files of a step's layer take.
pub fn layer_size(step: &HistoryEntry) -> String {
    images::size(step.layer.as_ref().and_then(|l| l.report.as_ref()).map_or(0, |report| report.bytes))
}

/// The command of a step, or what is said about it; as long as a line has room for, or whole.
pub fn command(step: &HistoryEntry, whole: bool) -> String {
    let text = if step.created_by.is_empty() { &step.comment } else { &step.created_by };
    match whole {
        false if text.chars().count() > WIDTH => {
            format!("{}…", text.chars().take(WIDTH - 1).collect::<String>())
        }
        _ => text.clone(),
    }
}

/// An image's words on one line of a terminal: it could hold anything.
pub fn one_line(text: String) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() {
        "-".to_string()
    } else {
        text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
    }
}

/// Writes an image of the store to a file.
pub fn export(args: &Export, store: &Store, state: Option<&Path>) -> Outcome {
    let (said, path) = destination(&args.file)?;
    if let (Some((word, said)), Some(format)) = (said, args.format)
        && SaveForm::from(said) != SaveForm::from(format)
    {
        return Err(Failure::user(format!(
            "{}: {word} is {}, and --format says {}: say one of them",
            args.file.display(),
            said.called(),
            format.called()
        )));
    }
    let format = args.format.or(said.map(|(_, said)| said)).unwrap_or_else(|| SaveForm::of(path).into());
    let digest = write(&args.image, path, format.into(), args.quiet, store, state)?;
    if args.json {
        let file = path.display().to_string();
        let bytes = bytes_of(path).map_err(|e| {
            Failure::new(Kind::Internal, format!("{file}: was written, and cannot be read: {e}"))
        })?;
        return out::print(&document(&Exported { digest, file, format, bytes })?).map(|()| 0);
    }
    if !args.quiet {
        out::print(&format!("{} is in {}, {}\n", args.image, path.display(), format.called()))?;
    }
    Ok(0)
}

/// A word in front of a path, and the form that it says.
type Said = (&'static str, Format);

/// What the words in front of a path say of the form, as other tools have them there and as we do of sources; and the path.
fn destination(file: &Path) -> Result<(Option<Said>, &Path), Failure> {
    const WORDS: [(&str, Format); 4] = [
        ("oci:", Format::DirLayout),
        ("oci-archive:", Format::Oci),
        ("docker-archive:", Format::Docker),
        ("sqsh:", Format::Sqsh),
    ];
    let bytes = file.as_os_str().as_bytes();
    let Some((word, format)) = WORDS.into_iter().find(|(word, _)| bytes.starts_with(word.as_bytes())) else {
        return match elsewhere(&String::from_utf8_lossy(bytes)) {
            None => Ok((None, file)),
            Some(word) => Err(Failure::user(format!(
                "{}: no image is written to '{word}': {}; a file that is called so is ./{}",
                file.display(),
                instead(word),
                file.display()
            ))),
        };
    };
    let path = &bytes[word.len()..];
    if path.is_empty() || path.contains(&b':') {
        return Err(Failure::user(format!(
            "{}: a path stands behind {word}, without a tag: the image's own names are written; a file that is called so is ./{}",
            file.display(),
            file.display()
        )));
    }
    Ok((Some((word, format)), Path::new(OsStr::from_bytes(path))))
}

/// The word of a destination that is no file's name, as sources and other tools have them.
fn elsewhere(text: &str) -> Option<&str> {
    let known = Reference::words().find(|word| text.starts_with(word));
    let scheme = || {
        let (scheme, rest) = text.split_once("://")?;
        let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let is_scheme = !scheme.is_empty() && scheme.chars().all(letter);
        is_scheme.then(|| &text[..text.len() - rest.len()])
    };
    known.or_else(scheme)
}

/// What to do where such a word was written.
fn instead(word: &str) -> &'static str {
    match word {
        "containers-storage:" | "podman://" => "write docker-archive:FILE, which 'podman load -i FILE' reads",
        "docker-daemon:" | "dockerd://" => "write docker-archive:FILE, which 'docker load -i FILE' reads",
        "sif:" => {
            "write docker-archive:FILE, of which 'apptainer build NEW.sif docker-archive:FILE' makes one"
        }
        "dir:" => "write oci:DIRECTORY",
        "host:" => "name a file or a directory",
        _ => "'berth image push IMAGE REGISTRY/NAME:TAG' sends it to a registry",
    }
}

/// Bytes of a file, or of all files below a directory.
fn bytes_of(path: &Path) -> std::io::Result<u64> {
    let found = std::fs::metadata(path)?;
    if !found.is_dir() {
        return Ok(found.len());
    }
    let mut bytes = 0;
    for entry in std::fs::read_dir(path)? {
        bytes += bytes_of(&entry?.path())?;
    }
    Ok(bytes)
}

/// As [`export`]; which image it was.
pub fn write(
    image: &str,
    path: &Path,
    form: SaveForm,
    quiet: bool,
    store: &Store,
    state: Option<&Path>,
) -> Result<Digest, Failure> {
    let digest = store.find(image).map_err(|e| images::failed(&e))?;
    if form == SaveForm::Squashfs {
        let container = Container {
            door: "berth",
            state: state.map(Path::to_path_buf),
            image: digest.to_string(),
            known: true,
            quiet,
            ..Container::default()
        };
        return local::save(&container, path, form).map(|()| digest);
    }
    let bar = Bar::named(image, "writing", quiet);
    let written = store.export(&digest, path, form == SaveForm::Layout, &bar);
    bar.finish();
    written.map(|()| digest).map_err(|e| images::failed(&e))
}

/// Pushes an image of the store.
pub fn push(args: &Push, store: &Store, state: Option<&Path>) -> Outcome {
    let failed = |e: Error| images::failed(&e);
    let reference: Reference = args.reference.parse().map_err(failed)?;
    let Reference::Registry(to) = &reference else {
        return Err(Failure::user(format!(
            "{}: an image is pushed to a registry, as REGISTRY/NAME:TAG; 'berth image export' writes files",
            args.reference
        )));
    };
    let image = store.find(&args.image).map_err(failed)?;
    let layers = if args.json { distinct_layers(store, &image)? } else { 0 };
    let registries = images::registries(state);
    let registries = if args.insecure { registries.without_tls_of(&reference) } else { registries };
    let bar = Bar::named(&args.image, "pushing", args.quiet);
    let pushed = store.push(&image, to, &images::credentials(), &registries, &bar);
    bar.finish();
    let pushed = pushed.map_err(failed)?;
    if pushed.anew && !args.quiet {
        out::complain(
            "berth: note: layers were compressed anew, so the digest is another one than that of the image that was fetched",
        );
    }
    if args.json {
        let told = PushedImage {
            image,
            reference: reference.to_string(),
            present: layers.saturating_sub(pushed.uploaded + pushed.mounted),
            digest: pushed.digest,
            uploaded: pushed.uploaded,
            bytes: pushed.bytes,
            mounted: pushed.mounted,
            anew: pushed.anew,
        };
        return out::print(&document(&told)?).map(|()| 0);
    }
    if args.quiet {
        return out::print(&format!("{}\n", pushed.digest)).map(|()| 0);
    }
    out::print(&format!(
        "{reference}: {} ({} layers sent, {} taken over from another repository)\n",
        pushed.digest, pushed.uploaded, pushed.mounted
    ))
    .map(|()| 0)
}

/// How many layers an image has; one that it has twice is pushed once.
fn distinct_layers(store: &Store, image: &Digest) -> Result<usize, Failure> {
    let details = store.inspect(image).map_err(|e| images::failed(&e))?;
    let layers: BTreeSet<&Digest> = details.layers.iter().map(|layer| &layer.digest).collect();
    Ok(layers.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_that_names_no_file_is_refused_and_names_of_files_are_not() {
        let told = |file: &str| destination(Path::new(file)).map(|(said, _)| said.map(|(word, _)| word));
        let mut written = Vec::new();
        for word in Reference::words().chain(["s3://", "docker+unix://"]) {
            match told(&format!("{word}place")) {
                Ok(said) => written.push(said.unwrap()),
                Err(why) => {
                    assert!(why.text.contains(&format!(" to '{word}': {}", instead(word))), "{}", why.text);
                    assert!(why.text.ends_with(&format!("is ./{word}place")), "{}", why.text);
                }
            }
        }
        written.sort_unstable();
        assert_eq!(written, ["docker-archive:", "oci-archive:", "oci:", "sqsh:"]);
        let daemon = told("docker-daemon:app:1").unwrap_err().text;
        assert!(daemon.contains("docker load") && !daemon.contains("podman"), "{daemon}");
        for name in ["./sif:x.sif", "/x/docker://y", "x.tar", "sif", "a b://c", "://x", "x:1.tar"] {
            assert_eq!(told(name).unwrap(), None, "{name}");
        }
    }
}
