//! `berth image rm` and `prune`: images go from a store, or are given back to one that users share.

use super::document;
use super::places::{Found, Places};
use crate::images::{self, Needs};
use crate::local::removals::recorded;
use berth_client::error::{Failure, Outcome};
use berth_client::out;
use berth_images::{Digest, PruneOptions, Removed};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

const DAY: u64 = 86_400;

/// What is pruned.
pub struct Choice {
    /// All that are not in use.
    pub all: bool,
    /// Not used for so many days.
    pub older_than: Option<u32>,
    /// Also what jobs need.
    pub force: bool,
}

/// What is gone: told as it goes, or at the end as JSON.
#[derive(Serialize)]
struct Gone {
    #[serde(skip)]
    json: bool,
    /// Of the caller's own store, where it is about that.
    #[serde(flatten)]
    own: Option<OfOwn>,
    /// Of the node's, where it is about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<OfNode>,
}

/// What is gone of a store.
#[derive(Default, Serialize)]
struct OfOwn {
    /// Images.
    removed: Vec<Digest>,
    /// Layers that no image needs any more.
    layers: usize,
    /// Bytes of the files in them.
    bytes: u64,
}

/// What was given back to a node.
#[derive(Default, Serialize)]
struct OfNode {
    /// Images.
    removed: Vec<Digest>,
    /// So much less the caller's images take there.
    bytes: u64,
}

impl Gone {
    fn new(places: &Places, json: bool) -> Gone {
        Gone {
            json,
            own: places.own.as_ref().map(|_| OfOwn::default()),
            node: places.node.as_ref().map(|_| OfNode::default()),
        }
    }

    fn removed(&mut self, removed: Removed) -> Result<(), Failure> {
        if !self.json {
            for image in &removed.images {
                out::print(&format!("removed {image}\n"))?;
            }
            let freed = images::size(removed.bytes);
            return out::print(&format!("{}, {freed} freed\n", images::counted(removed.layers, "layer")));
        }
        let own = self.own.get_or_insert_default();
        own.removed.extend(removed.images);
        own.layers += removed.layers;
        own.bytes = own.bytes.saturating_add(removed.bytes);
        Ok(())
    }

    fn given_back(&mut self, digest: Digest, bytes: u64) -> Result<(), Failure> {
        if !self.json {
            let less = images::size(bytes);
            return out::print(&format!("gave back {digest}\nyour images take {less} less on this node\n"));
        }
        let node = self.node.get_or_insert_default();
        node.removed.push(digest);
        node.bytes = node.bytes.saturating_add(bytes);
        Ok(())
    }

    /// The end. What was done before the rest failed is done, and so it is told.
    fn finish(self, done: Result<(), Failure>) -> Outcome {
        let own = self.own.as_ref().is_some_and(|own| !own.removed.is_empty() || own.layers > 0);
        let any = own || self.node.as_ref().is_some_and(|node| !node.removed.is_empty());
        let told = match self.json && (done.is_ok() || any) {
            true => document(&self).and_then(|text| out::print(&text)),
            false => Ok(()),
        };
        done.and(told).map(|()| 0)
    }
}

/// What could not be done of several things: none of them keeps the others.
#[derive(Default)]
struct Failed(Option<Failure>);

impl Failed {
    /// Of one thing: what it came to, or nothing.
    fn or_note<T>(&mut self, done: Result<T, Failure>) -> Option<T> {
        let why = match done {
            Ok(done) => return Some(done),
            Err(why) => why,
        };
        match &mut self.0 {
            // Each has a line of its own.
            Some(first) => first.text = format!("{}\n{}", first.text, why.text),
            None => self.0 = Some(why),
        }
        None
    }

    fn all(self) -> Result<(), Failure> {
        self.0.map_or(Ok(()), Err)
    }
}

/// What became of one image.
enum Went {
    Own(Removed),
    Node(Digest, u64),
}

/// Removes images, each for itself; what something needs stays, unless the caller insists.
pub fn rm(places: &Places, names: &[String], force: bool, json: bool, state: Option<&Path>) -> Outcome {
    let mut gone = Gone::new(places, json);
    let done = rm_each(places, names, force, state, &mut gone);
    gone.finish(done)
}

fn rm_each(
    places: &Places,
    names: &[String],
    force: bool,
    state: Option<&Path>,
    gone: &mut Gone,
) -> Result<(), Failure> {
    let needs = match places.own.is_some() && !force {
        true => Needs::of_store(state)?,
        false => Needs::default(),
    };
    let mut failed = Failed::default();
    // All before the first one goes: it may be named twice.
    let named: Vec<Found<'_>> =
        names.iter().filter_map(|name| failed.or_note(places.image(name, true))).collect();
    let mut seen = BTreeSet::new();
    for found in named {
        let (Found::Own(_, digest) | Found::Node(_, digest)) = &found;
        if seen.insert(digest.clone()) {
            match failed.or_note(rm_one(found, &needs, state)) {
                Some(Went::Own(removed)) => gone.removed(removed)?,
                Some(Went::Node(digest, bytes)) => gone.given_back(digest, bytes)?,
                None => {}
            }
        }
    }
    failed.all()
}

fn rm_one(found: Found<'_>, needs: &Needs, state: Option<&Path>) -> Result<Went, Failure> {
    match found {
        Found::Own(store, digest) => {
            if let Some(why) = needs.refusal(&digest) {
                return Err(Failure::user(why));
            }
            let removed = recorded(store, state, || store.remove(&digest));
            removed.map(Went::Own).map_err(|e| images::failed(&e))
        }
        Found::Node(node, digest) => node.give_back(&digest).map(|bytes| Went::Node(digest, bytes)),
    }
}

/// Removes what is not needed.
pub fn prune(places: &Places, choice: &Choice, json: bool, state: Option<&Path>) -> Outcome {
    let mut gone = Gone::new(places, json);
    let done = prune_each(places, choice, state, &mut gone);
    gone.finish(done)
}

fn prune_each(
    places: &Places,
    choice: &Choice,
    state: Option<&Path>,
    gone: &mut Gone,
) -> Result<(), Failure> {
    let Choice { all, older_than, force } = *choice;
    let older_than = older_than.map(|days| Duration::from_secs(u64::from(days) * DAY));
    if let Some(store) = &places.own {
        let keep = match force {
            true => Needs::of_kept(state)?.digests(),
            false => images::needed(state)?,
        };
        let options = PruneOptions { older_than, all, keep };
        let removed = recorded(store, state, || store.prune(&options));
        gone.removed(removed.map_err(|e| images::failed(&e))?)?;
    }
    let Some(node) = &places.node else { return Ok(()) };
    let needed = if force { Vec::new() } else { node.needed_by_jobs()? };
    let needed: BTreeSet<Digest> = needed.into_iter().collect();
    let now = u64::try_from(berth_client::now().secs()).unwrap_or(0);
    for listed in &node.images {
        let image = &listed.image;
        let old = older_than.is_some_and(|age| now.saturating_sub(image.last_used) >= age.as_secs());
        let nameless = image.names.is_empty() && older_than.is_none();
        if (all || old || nameless) && !listed.kept && !needed.contains(&image.digest) {
            let bytes = node.give_back(&image.digest)?;
            gone.given_back(image.digest.clone(), bytes)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_failed_is_told_and_what_was_done_counts() {
        let mut failed = Failed::default();
        assert_eq!(failed.or_note(Ok(1)), Some(1));
        assert_eq!(failed.or_note(Err::<u8, _>(Failure::user("image a: is not there"))), None);
        assert_eq!(failed.or_note(Err::<u8, _>(Failure::user("image b: is in use"))), None);
        assert_eq!(failed.or_note(Ok(2)), Some(2));
        let told = failed.all().unwrap_err().report("berth");
        assert_eq!(told, "berth: error: image a: is not there\nberth: error: image b: is in use\n");
        assert!(Failed::default().all().is_ok());
    }
}
