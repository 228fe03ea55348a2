//! `berth image`: looks after the images of a store.

mod cluster;
mod login;
mod look;
mod places;
mod pull;
mod quota;
mod remove;
mod silence;
pub mod transfer;
mod verify;

use crate::images;
use berth_client::error::{Failure, Kind, Outcome};
use cluster::Task;
use places::{Places, Which};
use std::path::Path;

/// Look after images: fetch, list, remove, verify, export and push them, and log in to registries
///
/// Images are kept in stores. 'berth run' uses your own, and jobs use that of the node on which they run. Root, and who has a cluster of their
/// own, has one store for both. For everybody else there are two on a machine that runs jobs for a cluster of root's: nobody but root
/// enters the node's, and its agent shows each user what they have there. Then ls, df and prune are about both, and an image is looked
/// for in both; --own and --node choose one. verify, export and push are about your own.
#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// Fetch an image into your own store; with --node or --cluster into the stores of nodes, for your jobs there
    ///
    /// What the name means is asked for anew each time, once and here, also where the image is there already. A node fetches as you, with
    /// the logins that you have there, and counts it against your quota. An image that the rules of a cluster refuse by its name
    /// is not fetched into a store that its jobs use, and no registry is asked for it.
    ///
    /// A store that no agent serves is kept from filling its disk as a node's is: where a pull needs room, and after it, images that
    /// were not used for longest go, by what the berth.toml in the state directory says of images. Standard error tells which, and why.
    Pull {
        /// Image, such as debian:12, ghcr.io/team/app:1, or a path
        image: String,
        /// Speak HTTP to the registry, without TLS. A certificate of your site's own needs its authority in place of this, in
        /// ~/.config/containers/certs.d/HOST:PORT/ca.crt
        #[arg(long)]
        insecure: bool,
        /// Print the digest alone, and no progress
        #[arg(long, short)]
        quiet: bool,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        nodes: cluster::Nodes,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// List images: their names, digests and sizes, and when they were last used
    Ls {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        nodes: cluster::Nodes,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show everything about an image, as JSON
    Inspect {
        #[command(flatten)]
        which: Which,
        /// As with the other commands; this one knows nothing but JSON
        #[arg(long)]
        json: bool,
        /// Name or digest
        image: String,
    },
    /// Remove images from the store; on a node that users share, give yours back
    ///
    /// An image on the node goes when nobody else has it, and no job, container or pull needs it. Of a store of your own (root: the
    /// node's) an image is not removed that jobs need which wait or run, or a container that is kept by name. Of several each goes for
    /// itself: what cannot go is named, and the exit code is 1.
    Rm {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        nodes: cluster::Nodes,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Also what jobs need that wait or run: they fetch it again. What a container runs on stays until that ends
        #[arg(long, short)]
        force: bool,
        /// Names or digests
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove images that lost their names, and layers that no image needs
    ///
    /// An image loses its name when another one is pulled by it. What jobs need that wait or run stays, and what containers need that are kept
    /// by name, as does what is in use; while the cluster is up its controller is asked. On a node that users share yours are
    /// given back.
    Prune {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        nodes: cluster::Nodes,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Images with names, too, unless they are needed or in use
        #[arg(long)]
        all: bool,
        /// Also what jobs need that wait or run: they fetch it again. What a container runs on stays until that ends
        #[arg(long, short)]
        force: bool,
        /// Images not used for so many days, with names or without, and no others
        #[arg(long, value_name = "DAYS", conflicts_with = "all")]
        older_than: Option<u32>,
    },
    /// Show what images take on disk, and by which rules a cluster removes them when space runs short
    ///
    /// The rules, and what went last by them, are shown of a store that you may enter: your own, and to root the node's.
    Df {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        nodes: cluster::Nodes,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show how much of the node's store your images take, and may take; as root of everyone
    ///
    /// Layers of images that you were given on this node are counted, each once, by what they take on its disk. Root has no
    /// quota, and neither has a store of your own.
    Quota {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    Verify(verify::Args),
    History(transfer::History),
    Export(transfer::Export),
    Push(transfer::Push),
    Login(login::Login),
    Logout(login::Logout),
}

pub fn run(args: Args, state: Option<&Path>) -> Outcome {
    match args {
        // These need no store.
        Args::Login(args) => login::log_in(&args, state),
        Args::Logout(args) => login::log_out(&args),
        Args::Ls { nodes, json, .. } if nodes.cluster => cluster::run(&nodes, Task::Ls, json, state),
        Args::Df { nodes, json, .. } if nodes.cluster => cluster::run(&nodes, Task::Df, json, state),
        Args::Rm { nodes, json, force, images, .. } if nodes.cluster => {
            cluster::run(&nodes, Task::Rm { names: &images, force }, json, state)
        }
        Args::Prune { nodes, json, all, force, older_than, .. } if nodes.cluster => {
            cluster::run(&nodes, Task::Prune { all, older_than, force }, json, state)
        }
        Args::Ls { which, json, .. } => look::ls(&Places::find(which, state)?, json),
        Args::Inspect { which, image, .. } => look::inspect(&Places::find(which, state)?, &image),
        Args::Df { which, json, .. } => look::df(&Places::find(which, state)?, json, state),
        Args::Quota { json } => quota::run(json, state),
        Args::Rm { which, json, force, images, .. } => {
            remove::rm(&Places::find(which, state)?, &images, force, json, state)
        }
        Args::Prune { which, json, all, force, older_than, .. } => {
            let choice = remove::Choice { all, older_than, force };
            remove::prune(&Places::find(which, state)?, &choice, json, state)
        }
        Args::History(args) => transfer::history(&args, &Places::find(args.which, state)?),
        Args::Verify(args) => verify::run(&args, &images::store(state)?, state),
        Args::Export(args) => transfer::export(&args, &images::store(state)?, state),
        Args::Push(args) => transfer::push(&args, &images::store(state)?, state),
        Args::Pull { image, insecure, quiet, nodes, json, .. } if nodes.cluster => {
            let (image, login) = pull::wanted(&image, insecure, state)?;
            cluster::run(&nodes, Task::Pull { image: &image, login: login.as_ref(), quiet }, json, state)
        }
        Args::Pull { image, insecure, quiet, which, json, .. } if which.is_node() => {
            let (image, _) = pull::wanted(&image, insecure, state)?;
            pull::here(&image, quiet, json, state)
        }
        Args::Pull { image, insecure, quiet, json, .. } => pull::own(&image, insecure, quiet, json, state),
    }
}

/// A value as people and programs read it.
fn document(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|e| Failure::new(Kind::Internal, format!("cannot print: {e}")))
}

/// Columns as wide as their longest cell.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
            cells.join("  ").trim_end().to_string() + "\n"
        })
        .collect()
}
