//! `berth image pull` into the store of a node, by its agent, as the caller.

use crate::{images, local};
use berth_agent::ImagesAnswer;
use berth_client::agent::{self, ImagesQuery};
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::out;
use berth_client::site::Site;
use berth_images::Resolved;
use berth_model::spec::ImageRef;
use std::path::Path;

/// What is to be fetched, as it is called here and now.
pub fn wanted(image: &str, insecure: bool, state: Option<&Path>) -> Result<ImageRef, Failure> {
    match local::pinned(image, insecure, state)? {
        resolved @ Resolved::Manifest(_) => {
            let resolved = Some(berth_agent::resolved_image(resolved));
            Ok(ImageRef { typed: image.to_string(), resolved })
        }
        _ => Err(Failure::user(format!("{image} is used where it is; there is nothing to fetch"))),
    }
}

/// Has this machine's node fetch it.
pub fn here(image: &ImageRef, quiet: bool, state: Option<&Path>) -> Outcome {
    let document = agent::images(&Site::find(state)?, ImagesQuery::Pull(image.clone()))?;
    let answer = serde_json::from_slice(&document);
    let Ok(ImagesAnswer::Pulled { digest, bytes, hit, notes }) = answer else {
        let why = "the node's agent gave an answer to another question: is it of this version?";
        return Err(Failure::new(Kind::Internal, why));
    };
    for note in notes {
        out::complain(&format!("berth: note: {note}"));
    }
    if quiet {
        return out::print(&format!("{digest}\n")).map(|()| 0);
    }
    out::print(&format!("{} is present on this node: {digest} ({})\n", image.typed, took(bytes, hit)))
        .map(|()| 0)
}

/// What it took.
pub fn took(bytes: u64, hit: bool) -> String {
    if hit { "it was there".to_string() } else { format!("{} fetched", images::size(bytes)) }
}
