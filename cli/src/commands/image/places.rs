//! Where a user's images are: in the store of their own, and in the node's, which the jobs of the machine's cluster use and
//! its agent answers for.

use crate::images;
use berth_agent::{ImagesAnswer, ListedImage};
use berth_client::agent::{self, ImagesQuery};
use berth_client::error::{Failure, Kind};
use berth_client::out;
use berth_client::site::Site;
use berth_images::{Digest, ErrorKind, GrantedImage, ImageDetails, Store, Usage, find_granted};
use berth_runtime::facts::is_privileged;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Which of the two places.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Which {
    /// Your own store alone, which 'berth run' uses
    #[arg(long, conflicts_with = "node")]
    own: bool,
    /// This node's store alone, which jobs use here: what you have there
    #[arg(long)]
    node: bool,
}

impl Which {
    /// Whether it is about the node's store alone.
    pub fn is_node(self) -> bool {
        self.node
    }
}

/// The places that there are for the caller; one of them at least.
pub struct Places {
    /// The caller's own store.
    pub own: Option<Store>,
    /// The node's, where that is another one.
    pub node: Option<Node>,
}

/// The caller's images in the node's store.
pub struct Node {
    site: Site,
    /// All of them, the last used first.
    pub images: Vec<ListedImage>,
}

/// An image that was found.
pub enum Found<'a> {
    /// In the caller's own store.
    Own(&'a Store, Digest),
    /// In the node's.
    Node(&'a Node, Digest),
}

impl Places {
    /// Finds them. The node's store is root's own: root has one place.
    pub fn find(which: Which, state: Option<&Path>) -> Result<Places, Failure> {
        let node = if which.own || is_privileged() { None } else { Node::find(which.node, state)? };
        if which.node {
            let Some(node) = node else {
                return Err(Failure::user(
                    "--node: no cluster of another user's has a store for you here: leave it out",
                ));
            };
            return Ok(Places { own: None, node: Some(node) });
        }
        let own = if node.is_none() || has_own(state)? { Some(images::store(state)?) } else { None };
        Ok(Places { own, node })
    }

    /// The image that the caller calls so. `alone`: one that is in both places is refused.
    pub fn image(&self, name: &str, alone: bool) -> Result<Found<'_>, Failure> {
        let here = match &self.node {
            Some(node) => node.look_up(name)?.map(|digest| Found::Node(node, digest)),
            None => None,
        };
        let own = match &self.own {
            Some(store) => match store.find(name) {
                Ok(digest) => Some(Found::Own(store, digest)),
                Err(e) if e.kind() == ErrorKind::NotFound && self.node.is_some() => None,
                Err(e) => return Err(images::failed(&e)),
            },
            None => None,
        };
        match (own, here) {
            (Some(_), Some(_)) if alone => Err(Failure::user(format!(
                "image {name}: is in your own store and in the node's: say --own or --node"
            ))),
            (Some(own), _) => Ok(own),
            (None, Some(here)) => Ok(here),
            (None, None) => Err(Failure::user(format!(
                "image {name}: you have none of that name here: 'berth image ls' lists what you have, and 'srun \
                 --container-image={name} true' fetches it for jobs"
            ))),
        }
    }
}

/// Whether the caller has a store, and what is named is not somebody else's state directory.
fn has_own(state: Option<&Path>) -> Result<bool, Failure> {
    let dir = images::local_dir(state)?;
    let me = nix::unistd::geteuid().as_raw();
    Ok(!images::is_anothers(&dir)
        && std::fs::metadata(images::place(&dir)?).is_ok_and(|store| store.uid() == me))
}

impl Node {
    /// The store of a cluster that is not the caller's own; `wanted`: it is an error that its agent does not answer.
    fn find(wanted: bool, state: Option<&Path>) -> Result<Option<Node>, Failure> {
        let site = match Site::find(state) {
            Ok(site) if site.streams.exists() => site,
            Ok(_) => return Ok(None),
            Err(e) if wanted => return Err(e),
            Err(_) => return Ok(None),
        };
        let me = nix::unistd::geteuid().as_raw();
        let owner = site.state.as_ref().and_then(|dir| std::fs::metadata(&dir.0).ok()).map(|dir| dir.uid());
        if owner == Some(me) {
            return Ok(None);
        }
        match ask(&site, ImagesQuery::List) {
            Ok(ImagesAnswer::List(images)) => Ok(Some(Node { site, images })),
            Ok(_) => Ok(None),
            Err(e) if wanted => Err(e),
            Err(e) => {
                out::complain(&format!("berth: note: your images on this node are left out: {e}"));
                Ok(None)
            }
        }
    }

    fn look_up(&self, name: &str) -> Result<Option<Digest>, Failure> {
        let images: Vec<GrantedImage> = self.images.iter().map(|listed| listed.image.clone()).collect();
        let found = find_granted(&images, name).map_err(|e| images::failed(&e))?;
        Ok(found.map(|image| image.digest.clone()))
    }

    /// Everything about one.
    pub fn inspect(&self, digest: &Digest) -> Result<ImageDetails<GrantedImage>, Failure> {
        match ask(&self.site, ImagesQuery::Inspect(digest.to_string()))? {
            ImagesAnswer::Details(details) => details.parsed().map_err(|e| images::failed(&e)),
            _ => Err(unexpected()),
        }
    }

    /// Gives one back. How many bytes less the caller's images take then.
    pub fn give_back(&self, digest: &Digest) -> Result<u64, Failure> {
        match ask(&self.site, ImagesQuery::Remove(digest.to_string()))? {
            ImagesAnswer::Removed(_, bytes) => Ok(bytes),
            _ => Err(unexpected()),
        }
    }

    /// What the caller's images take, and may take at most.
    pub fn usage(&self) -> Result<(Usage, Option<u64>), Failure> {
        match ask(&self.site, ImagesQuery::Usage)? {
            ImagesAnswer::Usage(usage, limit) => Ok((usage, limit)),
            _ => Err(unexpected()),
        }
    }

    /// The images that the caller's jobs need which are not over.
    pub fn needed_by_jobs(&self) -> Result<Vec<Digest>, Failure> {
        images::needed_by_jobs(&self.site, &[berth_model::Uid(nix::unistd::geteuid().as_raw())])
    }
}

fn unexpected() -> Failure {
    Failure::new(
        Kind::Internal,
        "the node's agent gave an answer to another question: is it of this version?",
    )
}

fn ask(site: &Site, query: ImagesQuery) -> Result<ImagesAnswer, Failure> {
    let document = agent::images(site, query)?;
    serde_json::from_slice(&document).map_err(|e| {
        Failure::new(
            Kind::Internal,
            format!("the node's agent says what is not understood ({e}): is it of this version?"),
        )
    })
}
