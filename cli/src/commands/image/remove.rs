//! `berth image rm` and `prune`: images go from a store, or are given back to one that users share.

use super::places::{Found, Node, Places};
use crate::images::{self, Needs};
use berth_client::error::{Failure, Outcome};
use berth_client::out;
use berth_images::{Digest, Error, PruneOptions, Removed};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

const DAY: u64 = 86_400;

/// Removes images; what something needs stays, unless the caller insists.
pub fn rm(places: &Places, names: &[String], force: bool, state: Option<&Path>) -> Outcome {
    let needs = match places.own.is_some() && !force {
        true => Needs::of_store(state)?,
        false => Needs::default(),
    };
    for name in names {
        match places.image(name, true)? {
            Found::Own(store, digest) => {
                if let Some(why) = needs.refusal(&digest) {
                    return Err(Failure::user(why));
                }
                removed(&store.remove(&digest).map_err(|e| images::failed(&e))?)?;
            }
            Found::Node(node, digest) => give_back(node, &digest)?,
        }
    }
    Ok(0)
}

/// Removes what is not needed.
pub fn prune(
    places: &Places,
    all: bool,
    older_than: Option<u32>,
    force: bool,
    state: Option<&Path>,
) -> Outcome {
    let older_than = older_than.map(|days| Duration::from_secs(u64::from(days) * DAY));
    if let Some(store) = &places.own {
        let keep = match force {
            true => Needs::of_kept(state)?.digests(),
            false => images::needed(state)?,
        };
        let options = PruneOptions { older_than, all, keep };
        removed(&store.prune(&options).map_err(|e: Error| images::failed(&e))?)?;
    }
    let Some(node) = &places.node else { return Ok(0) };
    let needed = if force { Vec::new() } else { node.needed_by_jobs()? };
    let needed: BTreeSet<Digest> = needed.into_iter().collect();
    let now = u64::try_from(berth_client::now().secs()).unwrap_or(0);
    for listed in &node.images {
        let image = &listed.image;
        let old = older_than.is_some_and(|age| now.saturating_sub(image.last_used) >= age.as_secs());
        let nameless = image.names.is_empty() && older_than.is_none();
        if (all || old || nameless) && !listed.kept && !needed.contains(&image.digest) {
            give_back(node, &image.digest)?;
        }
    }
    Ok(0)
}

fn give_back(node: &Node, digest: &Digest) -> Result<(), Failure> {
    let bytes = node.give_back(digest)?;
    out::print(&format!("gave back {digest}\nyour images take {} less on this node\n", images::size(bytes)))
}

fn removed(removed: &Removed) -> Result<(), Failure> {
    for image in &removed.images {
        out::print(&format!("removed {image}\n"))?;
    }
    out::print(&format!("{} layers, {} freed\n", removed.layers, images::size(removed.bytes)))
}
