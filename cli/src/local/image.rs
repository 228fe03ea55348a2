//! The root filesystem of a local container: from the caller's store, fetched where it is missing.

use super::{Container, room};
use crate::images::{self, Bar};
use berth_client::error::Failure;
use berth_images::{
    Error, Manifests, PreparedImage, Progress, Reference, ResolveOptions, Resolved, ResolvedManifest, Store,
    resolve,
};
use berth_model::ByteStr;
use berth_model::login::Login;
use berth_runtime::facts::is_privileged;
use berth_runtime::{ImageConfig, Rootfs, StoreOwner};
use std::path::Path;

/// When an image is fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pull {
    /// When the store does not have it.
    #[default]
    Missing,
    /// When the registry has a newer one of that name.
    Always,
    /// Never.
    Never,
}

/// What an image means now, by the caller's own logins.
pub fn pinned(image: &str, insecure: bool, state: Option<&Path>) -> Result<Resolved, Failure> {
    pinned_with_login(image, insecure, state).map(|(resolved, _)| resolved)
}

/// The same, and the login with which its registry was asked, where it wanted one.
pub fn pinned_with_login(
    image: &str,
    insecure: bool,
    state: Option<&Path>,
) -> Result<(Resolved, Option<Login>), Failure> {
    let reference: Reference = image.parse().map_err(|e: Error| images::failed(&e))?;
    let registries = images::registries_of(&reference, state);
    let registries = if insecure { registries.without_tls_of(&reference) } else { registries };
    let manifests = Manifests::from_env();
    let options = ResolveOptions { registries, manifests, ..ResolveOptions::default() };
    let credentials = images::credentials();
    let resolved = resolve(&reference, &credentials, &options).map_err(|e| images::failed(&e))?;
    let login = match &reference {
        Reference::Registry(name) => credentials.used(&name.registry),
        _ => None,
    };
    Ok((resolved, login))
}

/// Makes an image present, in a store with room for it.
pub fn fetch(
    store: &Store,
    name: &str,
    pinned: &ResolvedManifest,
    quiet: bool,
    state: Option<&Path>,
) -> Result<PreparedImage, Failure> {
    let bar = Bar::new(name, quiet);
    let prepared = ensure(store, pinned, &bar, state);
    bar.finish();
    prepared
}

/// As [`fetch`], for who shows by other means how it goes on.
pub fn ensure(
    store: &Store,
    pinned: &ResolvedManifest,
    progress: &dyn Progress,
    state: Option<&Path>,
) -> Result<PreparedImage, Failure> {
    let helpers = images::helpers(pinned, state)?;
    let bring = |progress: &dyn Progress| match &helpers {
        Some(helpers) => helpers.ensure(store, pinned, progress),
        None => {
            images::open(pinned, state).and_then(|source| store.ensure(pinned, source.as_ref(), progress))
        }
    };
    room::bring(store, &pinned.digest, progress, state, &bring).map_err(|e| images::failed(&e))
}

/// An image's layers and configuration; `None` for what is used where it is.
fn prepare(
    image: &str,
    insecure: bool,
    pull: Pull,
    quiet: bool,
    state: Option<&Path>,
) -> Result<Result<PreparedImage, Resolved>, Failure> {
    let failed = |e: Error| images::failed(&e);
    let reference: Reference = image.parse().map_err(failed)?;
    if reference == Reference::Host {
        return Ok(Err(Resolved::Host));
    }
    let store = images::store(state)?;
    let known = match (pull, &reference) {
        (Pull::Always, _) => None,
        (Pull::Never, _) | (Pull::Missing, Reference::Registry(_)) => store.find_own(image).ok(),
        // A file may hold another image than when it was fetched; looking is cheap there.
        (Pull::Missing, _) => None,
    };
    if let Some(digest) = known
        && let Some(prepared) = store.prepared(&digest).map_err(failed)?
    {
        return Ok(Ok(prepared));
    }
    if pull == Pull::Never {
        return Err(Failure::user(format!(
            "{image} is not in the store under a name that you gave it, and --pull=never forbids to fetch it: 'berth image ls' \
             shows what is there; name what jobs fetched by its digest"
        )));
    }
    match pinned(image, insecure, state)? {
        Resolved::Manifest(pinned) => fetch(&store, image, &pinned, quiet, state).map(Ok),
        other => Ok(Err(other)),
    }
}

/// The root filesystem, and what keeps the image from being removed meanwhile.
pub(super) fn prepare_for(
    container: &Container,
) -> Result<(Rootfs, ImageConfig, Option<PreparedImage>), Failure> {
    let c = container;
    let found = if c.known {
        let store = images::store(c.state.as_deref())?;
        let digest = store.find_own(&c.image).map_err(|e| images::failed(&e))?;
        let prepared = store.prepared(&digest).map_err(|e| images::failed(&e))?;
        prepared
            .map(Ok)
            .ok_or_else(|| Failure::user(format!("image {digest} is not in the store any more")))?
    } else {
        prepare(&c.image, c.insecure, c.pull, c.quiet, c.state.as_deref())?
    };
    let prepared = match found {
        Ok(prepared) => prepared,
        Err(Resolved::RootDir(path)) => {
            return Ok((Rootfs::Dir(ByteStr::from(path.as_path())), ImageConfig::default(), None));
        }
        Err(_) => return Ok((Rootfs::Host, ImageConfig::default(), None)),
    };
    let owner =
        is_privileged().then_some(StoreOwner { uid: berth_agent::STORE_ID.0, gid: berth_agent::STORE_ID.1 });
    let layers = prepared.layers.iter().map(|l| ByteStr::from(l.as_path())).collect();
    let bytes = |list: &[String]| list.iter().map(|s| ByteStr::from(s.as_str())).collect();
    let c = &prepared.config;
    let config = ImageConfig {
        env: bytes(&c.env),
        entrypoint: bytes(&c.entrypoint),
        cmd: bytes(&c.cmd),
        workdir: (!c.workdir.is_empty()).then(|| ByteStr::from(c.workdir.as_str())),
        user: (!c.user.is_empty()).then(|| c.user.clone()),
    };
    Ok((Rootfs::Overlay { layers, owner }, config, Some(prepared)))
}
