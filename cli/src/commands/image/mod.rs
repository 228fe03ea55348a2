//! `berth image`: looks after the images of a store.

pub mod transfer;
mod verify;

use crate::images;
use crate::{local, logins};
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::out;
use berth_images::{Error, PruneOptions, Reference, Removed, Resolved, RoomState, Store};
use std::path::Path;
use std::time::Duration;

/// Look after the images of this machine's cluster (root), or of your own store
#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// Fetch an image into the store
    Pull {
        /// Image, such as debian:12, ghcr.io/team/app:1, or a path
        image: String,
        /// Speak to the registry without TLS, or without checking its certificate
        #[arg(long)]
        insecure: bool,
        /// Print the digest alone
        #[arg(long, short)]
        quiet: bool,
    },
    /// List the images of the store
    Ls {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show everything about an image of the store, as JSON
    Inspect {
        /// Name or digest
        image: String,
    },
    /// Remove images from the store
    Rm {
        /// Names or digests
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove images that lost their names, and layers that no image needs
    Prune {
        /// All images that are not in use
        #[arg(long)]
        all: bool,
        /// Images not used for so many days
        #[arg(long, value_name = "DAYS", conflicts_with = "all")]
        older_than: Option<u32>,
    },
    /// Show what the store takes on disk
    Df {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    Verify(verify::Args),
    History(transfer::History),
    Export(transfer::Export),
    Push(transfer::Push),
    /// Log in to a registry, for docker, podman and skopeo, too
    ///
    /// The registry is asked whether it takes the login; then it is kept in $DOCKER_CONFIG/config.json, in
    /// $REGISTRY_AUTH_FILE, or in ~/.docker/config.json, or by the credential helper that this file names. A password is
    /// asked for on the terminal, or read from standard input.
    Login {
        /// HOST or HOST:PORT; USER@HOST is a further login there, for images named USER@HOST#NAME [default: docker.io]
        registry: Option<String>,
        /// Who logs in
        #[arg(long, short, value_name = "NAME")]
        username: Option<String>,
        /// Read the password, or a token, from standard input
        #[arg(long)]
        password_stdin: bool,
        /// Speak to the registry without TLS
        #[arg(long)]
        insecure: bool,
    },
    /// Forget the login of a registry
    Logout {
        /// HOST, HOST:PORT, or USER@HOST for that login alone [default: docker.io]
        registry: Option<String>,
    },
}

pub fn run(args: Args, state: Option<&Path>) -> Outcome {
    let failed = |e: Error| images::failed(&e);
    match args {
        // These need no store.
        Args::Login { registry, username, password_stdin, insecure } => {
            let asked = logins::Asked {
                registry: registry.as_deref(),
                username: username.as_deref(),
                password_stdin,
                insecure,
            };
            let (target, user) = logins::log_in(&asked, state)?;
            out::print(&format!("logged in to {} as {user}\n", target.registry))?;
            Ok(0)
        }
        Args::Logout { registry } => {
            let target = logins::target(registry.as_deref())?;
            logins::log_out(&target).map_err(failed)?;
            out::print(&format!("logged out of {}\n", target.registry))?;
            Ok(0)
        }
        other => with_store(other, &images::store(state)?, state),
    }
}

fn with_store(args: Args, store: &Store, state: Option<&Path>) -> Outcome {
    let failed = |e: Error| images::failed(&e);
    match args {
        Args::Login { .. } | Args::Logout { .. } => {}
        Args::Verify(args) => return verify::run(&args, store, state),
        Args::History(args) => return transfer::history(&args, store),
        Args::Export(args) => return transfer::export(&args, store, state),
        Args::Push(args) => return transfer::push(&args, store, state),
        Args::Pull { image, insecure, quiet } => {
            let reference: Reference = image.parse().map_err(failed)?;
            let Resolved::Manifest(pinned) = local::pinned(&image, insecure, state)? else {
                return Err(Failure::user(format!("{image} is used where it is; there is nothing to fetch")));
            };
            let digest = local::fetch(store, &image, &pinned, quiet, state)?.digest;
            let line =
                if quiet { format!("{digest}\n") } else { format!("{reference} is present: {digest}\n") };
            out::print(&line)?;
        }
        Args::Ls { json } => {
            let list = store.list().map_err(failed)?;
            if json {
                out::print(&document(&list)?)?;
                return Ok(0);
            }
            let now = u64::try_from(berth_client::now().secs()).unwrap_or(0);
            let mut rows = vec![["NAME", "DIGEST", "SIZE", "LAYERS", "LAST USED"].map(str::to_string)];
            for i in list {
                let name = if i.names.is_empty() { "<none>".to_string() } else { i.names.join(",") };
                let used = if i.in_use {
                    "now".to_string()
                } else {
                    format!("{} ago", images::age(now.saturating_sub(i.last_used)))
                };
                rows.push([
                    name,
                    i.digest.short().to_string(),
                    images::size(i.bytes),
                    i.layers.to_string(),
                    used,
                ]);
            }
            out::print(&table(&rows))?;
        }
        Args::Inspect { image } => {
            let digest = store.find(&image).map_err(failed)?;
            out::print(&document(&store.inspect(&digest).map_err(failed)?)?)?;
        }
        Args::Rm { images: names } => {
            for name in names {
                let digest = store.find(&name).map_err(failed)?;
                removed(&store.remove(&digest).map_err(failed)?)?;
            }
        }
        Args::Prune { all, older_than } => {
            let older_than = older_than.map(|d| Duration::from_secs(u64::from(d) * 86_400));
            let keep = berth_agent::named_images(&images::local_dir(state)?.0).into_iter().collect();
            removed(&store.prune(&PruneOptions { older_than, all, keep }).map_err(failed)?)?;
        }
        Args::Df { json } => {
            let usage = store.df().map_err(failed)?;
            if json {
                out::print(&document(&usage)?)?;
                return Ok(0);
            }
            out::print(&format!(
                "images       {} ({} in use)\nlayers       {}\nsize         {}\nreclaimable  {}\nfree         {}\nstore        {}\n",
                usage.images,
                usage.images_in_use,
                usage.layers,
                images::size(usage.bytes),
                images::size(usage.reclaimable_bytes),
                images::size(usage.free_bytes),
                store.root().display()
            ))?;
            out::print(&room(&usage.room))?;
        }
    }
    Ok(0)
}

/// By which rules room is kept, and what was last removed for it.
fn room(room: &RoomState) -> String {
    let mut text = match &room.rules {
        None => "room         is not kept: no cluster has run here; 'berth image prune' removes images\n"
            .to_string(),
        Some(rules) => {
            let mut parts = match rules.high_watermark {
                100 => vec!["images go when the filesystem is full".to_string()],
                high => vec![format!(
                    "images go above {high}% of the filesystem, down to {}%",
                    rules.low_watermark
                )],
            };
            parts.extend(rules.max_size.map(|most| format!("above {} of layers", images::size(most))));
            parts.extend(rules.keep_days.map(|days| format!("after {days} days without use")));
            format!("room         {}\n", parts.join(", "))
        }
    };
    if let Some(last) = &room.last {
        let now = u64::try_from(berth_client::now().secs()).unwrap_or(0);
        text += &format!(
            "removed      {} images and {} layers, {}, {} ago: {}\n",
            last.images.len(),
            last.layers,
            images::size(last.bytes),
            images::age(now.saturating_sub(last.at)),
            last.why
        );
        for image in &last.images {
            text += &format!("             {} {}\n", image.digest.short(), image.names.join(","));
        }
    }
    text
}

fn removed(removed: &Removed) -> Result<(), Failure> {
    for image in &removed.images {
        out::print(&format!("removed {image}\n"))?;
    }
    out::print(&format!("{} layers, {} freed\n", removed.layers, images::size(removed.bytes)))
}

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
