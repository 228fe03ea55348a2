//! `berth image pull` into the caller's own store, or into that of a node, by its agent, as the caller.

use super::document;
use crate::images::{self, Bar};
use crate::local;
use berth_agent::ImagesAnswer;
use berth_client::agent::{self, ImagesQuery};
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::out;
use berth_client::site::Site;
use berth_images::{Error, Progress, ProgressEvent, Reference, Resolved};
use berth_model::login::Login;
use berth_model::spec::{ImageRef, ResolvedImage};
use serde::Serialize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What is printed as JSON.
#[derive(Serialize)]
struct Pulled<'a> {
    /// As the image was asked for, spelled out.
    name: &'a str,
    /// Where it is from.
    source: Option<&'a str>,
    digest: &'a str,
    /// Bytes of layers that were fetched.
    bytes: u64,
    /// Whether all layers were there.
    hit: bool,
    /// As in the list of images.
    store: &'static str,
}

/// What an import tells of itself, added up as agents do it.
#[derive(Default)]
struct Count {
    bytes: AtomicU64,
    /// Layers had to be fetched, or were being fetched by somebody else.
    missing: AtomicBool,
}

impl Count {
    fn add(&self, event: &ProgressEvent) {
        match event {
            ProgressEvent::Start { layers, cached, .. } if cached >= layers => {}
            ProgressEvent::Start { .. } | ProgressEvent::Waiting { .. } => {
                self.missing.store(true, Ordering::Relaxed);
            }
            ProgressEvent::Fetched { bytes } => {
                self.bytes.fetch_add(*bytes, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

/// What is to be fetched, as it is called here and now, and the login with which its registry was asked, where it wanted one.
pub fn wanted(
    image: &str,
    insecure: bool,
    state: Option<&Path>,
) -> Result<(ImageRef, Option<Login>), Failure> {
    images::admitted_to_nodes(image, state)?;
    match local::pinned_with_login(image, insecure, state)? {
        (resolved @ Resolved::Manifest(_), login) => {
            let resolved = Some(berth_agent::resolved_image(resolved));
            Ok((ImageRef { typed: image.to_string(), resolved }, login))
        }
        _ => Err(used_in_place(image)),
    }
}

/// Fetches it into the caller's own store.
pub fn own(image: &str, insecure: bool, quiet: bool, json: bool, state: Option<&Path>) -> Outcome {
    let store = images::store(state)?;
    let name = spelled_out(image)?;
    images::admitted_to_store(image, state)?;
    let Resolved::Manifest(pinned) = local::pinned(image, insecure, state)? else {
        return Err(used_in_place(image));
    };
    let (bar, count) = (Bar::new(image, quiet), Count::default());
    let telling = |event: ProgressEvent| {
        count.add(&event);
        bar.event(event);
    };
    let prepared = local::ensure(&store, &pinned, &telling, state);
    bar.finish();
    let digest = prepared?.digest.to_string();
    let text = if json {
        document(&Pulled {
            name: &name,
            source: Some(pinned.source.as_str()),
            digest: &digest,
            bytes: count.bytes.load(Ordering::Relaxed),
            hit: !count.missing.load(Ordering::Relaxed),
            store: "own",
        })?
    } else if quiet {
        format!("{digest}\n")
    } else {
        format!("{name} is present: {digest}\n")
    };
    out::print(&text).map(|()| 0)
}

/// Has this machine's node fetch it.
pub fn here(image: &ImageRef, quiet: bool, json: bool, state: Option<&Path>) -> Outcome {
    let said = agent::images(&Site::find(state)?, ImagesQuery::Pull(image.clone()))?;
    let answer = serde_json::from_slice(&said);
    let Ok(ImagesAnswer::Pulled { digest, bytes, hit, notes }) = answer else {
        let why = "the node's agent gave an answer to another question: is it of this version?";
        return Err(Failure::new(Kind::Internal, why));
    };
    for note in notes {
        out::complain(&format!("berth: note: {note}"));
    }
    let text = if json {
        let source = match &image.resolved {
            Some(ResolvedImage::Manifest { source, .. }) => Some(source.as_str()),
            _ => None,
        };
        let name = spelled_out(&image.typed)?;
        document(&Pulled { name: &name, source, digest: &digest, bytes, hit, store: "node" })?
    } else if quiet {
        format!("{digest}\n")
    } else {
        format!("{} is present on this node: {digest} ({})\n", image.typed, took(bytes, hit))
    };
    out::print(&text).map(|()| 0)
}

/// What it took.
pub fn took(bytes: u64, hit: bool) -> String {
    if hit { "it was there".to_string() } else { format!("{} fetched", images::size(bytes)) }
}

fn spelled_out(image: &str) -> Result<String, Failure> {
    let reference: Reference = image.parse().map_err(|e: Error| images::failed(&e))?;
    Ok(reference.to_string())
}

fn used_in_place(image: &str) -> Failure {
    Failure::user(format!("{image} is used where it is; there is nothing to fetch"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_a_hit_when_nothing_of_it_was_missing() {
        let of = |events: &[ProgressEvent]| {
            let count = Count::default();
            events.iter().for_each(|event| count.add(event));
            (count.bytes.into_inner(), !count.missing.into_inner())
        };
        let start = |cached, bytes| ProgressEvent::Start { layers: 2, cached, bytes };
        assert_eq!(of(&[]), (0, true));
        // Its record alone was written anew.
        assert_eq!(of(&[start(2, 0), ProgressEvent::Syncing]), (0, true));
        let fetched = |bytes| ProgressEvent::Fetched { bytes };
        assert_eq!(of(&[start(1, 7), fetched(3), fetched(4)]), (7, false));
        // A registry that is slow to answer says nothing of what is there.
        let delayed = ProgressEvent::Delayed { what: "registry r.io".into() };
        assert_eq!(of(&[delayed]), (0, true));
        // Somebody else had begun.
        assert_eq!(of(&[ProgressEvent::Waiting { what: "image x".into() }]), (0, false));
    }
}
