//! Images that are removed from a store without its agent: what others had of them it is told, and has the controller enter in the audit log.

use crate::images;
use berth_agent::Others;
use berth_client::agent::{self, ImagesQuery, WholeQuery};
use berth_client::error::Failure;
use berth_client::out;
use berth_client::site::Site;
use berth_images::{Error, Removed, Store};
use berth_model::Uid;
use berth_model::exchange::RemovedImage;
use std::path::Path;

/// Removes something of a store. Where users share it, and this is root, the agent of the node is told which of others' images went.
///
/// # Errors
/// As of removing it; or the store cannot be read.
pub fn recorded(
    store: &Store,
    state: Option<&Path>,
    remove: impl FnOnce() -> Result<Removed, Error>,
) -> Result<Removed, Error> {
    let others = Others::than(Uid(nix::unistd::geteuid().as_raw()), store)?;
    let removed = remove()?;
    let of_others = others.among(&removed.images);
    if let Err(e) = tell(&of_others, state) {
        let count = images::counted(of_others.len(), "image");
        out::complain(&format!("berth: note: the audit log does not have that {count} of others went: {e}"));
    }
    Ok(removed)
}

fn tell(of_others: &[RemovedImage], state: Option<&Path>) -> Result<(), Failure> {
    for part in of_others.chunks(RemovedImage::MOST) {
        let site = Site::of(images::local_dir(state)?);
        agent::images(&site, ImagesQuery::Whole(WholeQuery::Removed(part.to_vec())))?;
    }
    Ok(())
}
