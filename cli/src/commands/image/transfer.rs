//! `berth image history`, `export` and `push`: what an image is made of, and images of the store for other tools.

use super::places::{Found, Places, Which};
use crate::images::{self, Bar};
use crate::local::{self, Container};
use berth_client::error::{Failure, Outcome};
use berth_client::out;
use berth_images::{Credentials, Error, HistoryEntry, Reference, SaveForm, Store};
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
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
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

impl From<Format> for SaveForm {
    fn from(format: Format) -> SaveForm {
        match format {
            Format::Oci | Format::Docker => SaveForm::Archive,
            Format::Sqsh => SaveForm::Squashfs,
            Format::DirLayout => SaveForm::Layout,
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
    /// File or directory to write
    file: PathBuf,
    /// The form, whatever the path says
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Say nothing
    #[arg(long, short)]
    quiet: bool,
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
    /// Print the digest alone
    #[arg(long, short)]
    pub quiet: bool,
}

/// Prints the steps.
pub fn history(args: &History, places: &Places) -> Outcome {
    let steps = match places.image(&args.image, false)? {
        Found::Own(store, digest) => store.history(&digest).map_err(|e| images::failed(&e))?,
        Found::Node(node, digest) => node.inspect(&digest)?.history(),
    };
    if args.json {
        return out::print(&super::document(&steps)?).map(|()| 0);
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
    let form = args.format.map_or_else(|| SaveForm::of(&args.file), SaveForm::from);
    write(&args.image, &args.file, form, args.quiet, store, state)?;
    if !args.quiet {
        out::print(&format!("{} is in {}\n", args.image, args.file.display()))?;
    }
    Ok(0)
}

/// As [`export`].
pub fn write(
    image: &str,
    path: &Path,
    form: SaveForm,
    quiet: bool,
    store: &Store,
    state: Option<&Path>,
) -> Result<(), Failure> {
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
        return local::save(&container, path, form);
    }
    let bar = Bar::named(image, "writing", quiet);
    let written = store.export(&digest, path, form == SaveForm::Layout, &bar);
    bar.finish();
    written.map_err(|e| images::failed(&e))
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
    let digest = store.find(&args.image).map_err(failed)?;
    let registries = images::registries(state);
    let registries = if args.insecure { registries.without_tls_of(&reference) } else { registries };
    let bar = Bar::named(&args.image, "pushing", args.quiet);
    let pushed = store.push(&digest, to, &Credentials::from_env(), &registries, &bar);
    bar.finish();
    let pushed = pushed.map_err(failed)?;
    if args.quiet {
        return out::print(&format!("{}\n", pushed.digest)).map(|()| 0);
    }
    if pushed.anew {
        out::complain(
            "berth: note: layers were compressed anew, so the digest is another one than that of the image that was fetched",
        );
    }
    out::print(&format!(
        "{reference}: {} ({} layers sent, {} taken over from another repository)\n",
        pushed.digest, pushed.uploaded, pushed.mounted
    ))
    .map(|()| 0)
}
