//! Image references, sources, content store, unpacking, layers. Knows no scheduler.
//!
//! The way of an image: a text becomes a [`Reference`]; [`resolve`] pins it to a digest with the person's own
//! [`Credentials`]; [`open_source`] opens where its blobs are; [`Store::ensure`] makes its layers present and gives
//! a [`PreparedImage`] with directories or EROFS images to mount and the image's configuration.
//!
//! ```no_run
//! use berth_images::{Credentials, Reference, ResolveOptions, Resolved, Store, open_source, resolve};
//!
//! # fn main() -> berth_images::Result<()> {
//! let credentials = Credentials::from_env();
//! let reference: Reference = "debian:12".parse()?;
//! let options = ResolveOptions::default();
//! if let Resolved::Manifest(image) = resolve(&reference, &credentials, &options)? {
//!     let source = open_source(&image, &options.registries, &credentials)?;
//!     let store = Store::open(std::path::Path::new("/home/me/.local/state/berth/images"))?;
//!     let prepared = store.ensure(&image, source.as_ref(), &())?;
//!     println!("{:?} {:?}", prepared.config.env, prepared.layers);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Everything here blocks and uses threads; there is no asynchronous runtime. Every blob is verified before
//! anything made of it is visible, and layers are unpacked as the identity that owns the store, which should be
//! unprivileged.
#![forbid(unsafe_code)]

// Under this name fuzz targets use it.
#[cfg(test)]
extern crate self as berth_images;

mod archive;
mod blobs;
mod digest;
mod erofs;
mod error;
#[cfg(test)]
#[path = "../fuzz/fuzz_targets/mod.rs"]
mod fuzz_targets;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod helpers;
mod known;
mod layered;
mod listed;
mod manifest;
mod outer;
mod progress;
mod reference;
mod registry;
mod remembered;
mod remote;
mod root;
mod save;
mod sif;
mod signature;
mod skeleton;
mod source;
mod squashfs;
mod store;
mod unpack;
mod unseen;

pub use digest::{Algorithm, Digest, Hasher};
pub use error::{Error, ErrorKind, Result, Shortfall};
pub use helpers::{Confine, Confined, Helpers, PROXY_VARIABLES, RunAs, fetcher_main, unpacker_main};
pub use known::Manifests;
pub use listed::{MOST_PROOF, leads_to, resolve_with_proof};
pub use manifest::{ImageConfig, LayerInfo, Platform};
pub use progress::{Progress, ProgressEvent};
pub use reference::{Engine, Reference, RegistryRef};
pub use registry::{Credentials, Login, LoginTarget, Mirror, Registries, Registry};
pub use remote::{RemoteSource, serve_fetcher};
pub use root::{SaveForm, save_root, saver_main};
pub use save::{describe, save_archive};
pub use signature::{SignerKey, Signers, Verdict, look_for_signature};
pub use source::{
    ArchiveSource, BlobKind, BlobSource, LayoutSource, ResolveOptions, Resolved, ResolvedManifest, Through,
    file_pin, open_source, open_source_through, real_path, resolve,
};
pub use store::{
    Collected, CollectedImage, Damage, DiskUsage, GrantedImage, HistoryEntry, ImageDetails, ImageInfo,
    InMemory, LayerDetails, LayerForm, MadeForms, MountImage, Offer, Part, PreparedImage, Problem,
    PruneOptions, Pushed, Removed, RoomRules, RoomState, Store, Thing, TryImage, Usage, UseGuard,
    VerifyReport, Wanted, find_granted, find_listed, in_memory, layer_place, most_layers, settled_form,
    try_image, unfit_filesystem,
};
pub use unpack::{LayerReport, Limits};
