//! Who has shown that they have what is in a layer, on a store that serves several users.
//!
//! A layer is found by the digest of its content, and an image says itself which those are: to name one is not to have it. A
//! user has a layer when their own fetcher brought all of it, once; or when the registry that brought it to somebody says that
//! they may have it, too; or they opened the very file through which all of it was read before ([`super::seen`]). For any other registry, which may be
//! the user's own and say what they like, and for other files, the content itself is what shows it. It is noted in the layer's directory, and goes with it.

use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, openat};
use serde::{Deserialize, Serialize};

use super::ensure::MAX_PARALLEL;
use super::lock::Hold;
use super::record::{VERSION, parse, print};
use super::{Store, files, pipeline};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::LayerInfo;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::source::{BlobKind, BlobSource, ResolvedManifest, read_verified};

/// In a layer's directory.
const FILE: &str = "shown.json";
/// Registries that are remembered of one layer.
const MOST_REGISTRIES: usize = 64;

/// What is known of who has a layer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Shown {
    version: u32,
    /// Users who had all of it.
    users: Vec<u32>,
    /// What gave it.
    registries: Vec<Given>,
}

/// A registry that gave the layer, proven by its certificate, in this blob. Without one, it is anybody's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Given {
    registry: String,
    blob: Digest,
}

impl Given {
    fn of(image: &ResolvedManifest, layer: &LayerInfo) -> Option<Given> {
        match image.source.parse() {
            Ok(Reference::Registry(name)) if !image.insecure => {
                Some(Given { registry: name.registry, blob: layer.digest.clone() })
            }
            _ => None,
        }
    }
}

impl Store {
    /// The same store, for a user who opened the file through which all of the image was read before, as it was then.
    pub(crate) fn with_file(mut self) -> Store {
        self.has_file = true;
        self
    }

    /// Whether everything that the user showed was read from the source for it, and nothing of it known before.
    pub(crate) fn has_read_all(&self) -> bool {
        self.user.is_some() && !self.unread.load(Ordering::Relaxed)
    }

    /// Has the user for whom work is done show that they have all of an image that is there.
    pub(super) fn show_image(
        &self,
        image: &ResolvedManifest,
        source: &dyn BlobSource,
        progress: &dyn Progress,
    ) -> Result<()> {
        if self.user.is_none() {
            return Ok(());
        }
        let Some(record) = self.image_record(&image.digest)? else {
            self.unread.store(true, Ordering::Relaxed);
            return Ok(());
        };
        if self.has_file {
            self.unread.store(true, Ordering::Relaxed);
            let layers: Vec<&LayerInfo> = record.layers.iter().collect();
            return self.note_shown(image, &layers, source);
        }
        read_verified(source, BlobKind::Blob, &record.config_digest, self.limits.config_bytes)?;
        self.show_layers(image, &record.layers, &HashSet::new(), source, progress)
    }

    /// Has the user for whom work is done show that they have these layers, which are there; `fetched` are those that came from
    /// `source` just now.
    pub(super) fn show_layers(
        &self,
        image: &ResolvedManifest,
        layers: &[LayerInfo],
        fetched: &HashSet<Digest>,
        source: &dyn BlobSource,
        progress: &dyn Progress,
    ) -> Result<()> {
        if !self.shared {
            return Ok(());
        }
        let mut seen = HashSet::new();
        let layers = layers.iter().filter(|layer| seen.insert(&layer.diff_id));
        let (mut known, mut queue) = (Vec::new(), VecDeque::new());
        for layer in layers {
            match self.user {
                _ if fetched.contains(&layer.diff_id) => known.push(layer),
                Some(user) if !self.shown(&layer.diff_id)?.users.contains(&user) => queue.push_back(layer),
                _ => self.unread.store(true, Ordering::Relaxed),
            }
        }
        let workers = MAX_PARALLEL.min(queue.len());
        let state = Mutex::new((queue, known, None::<Error>));
        let state = || state.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || {
            loop {
                let next = state().0.pop_front();
                let Some(layer) = next else { return };
                match self.show_layer(image, layer, source, progress) {
                    Ok(()) => state().1.push(layer),
                    Err(error) => {
                        let mut state = state();
                        state.0.clear();
                        state.2.get_or_insert(error);
                        return;
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..workers {
                // Fewer do it as well, be it this thread alone.
                if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                    break;
                }
            }
            work();
        });
        let (known, failed) = {
            let mut state = state();
            (std::mem::take(&mut state.1), state.2.take())
        };
        self.note_shown(image, &known, source)?;
        failed.map_or(Ok(()), Err)
    }

    fn show_layer(
        &self,
        image: &ResolvedManifest,
        layer: &LayerInfo,
        source: &dyn BlobSource,
        progress: &dyn Progress,
    ) -> Result<()> {
        let gave = Given::of(image, layer).is_some_and(|given| {
            self.shown(&layer.diff_id).is_ok_and(|shown| shown.registries.contains(&given))
        });
        // Who does not say it, or not without the bytes, is asked for them.
        if gave && !source.is_peers() && source.open(BlobKind::Held, &layer.digest, 0).is_ok() {
            self.unread.store(true, Ordering::Relaxed);
            return Ok(());
        }
        pipeline::check(source, layer, &self.limits, progress)
    }

    /// What is known of a layer; nothing, where that is damaged.
    fn shown(&self, diff_id: &Digest) -> Result<Shown> {
        let name = format!("{}/{FILE}", diff_id.file_name());
        let Some(bytes) = files::read(self.layers.as_fd(), &name)? else { return Ok(Shown::default()) };
        match parse(&name, &bytes) {
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Shown::default()),
            other => other,
        }
    }

    /// Notes that the user for whom work is done has all of these layers, which `source` brought.
    pub(super) fn note_shown(
        &self,
        image: &ResolvedManifest,
        layers: &[&LayerInfo],
        source: &dyn BlobSource,
    ) -> Result<()> {
        if layers.is_empty() || !self.shared {
            return Ok(());
        }
        let _store = self.lock("store", Hold::Exclusive)?;
        for layer in layers {
            let mut shown = self.shown(&layer.diff_id)?;
            shown.version = VERSION;
            let user = self.user.filter(|user| !shown.users.contains(user));
            // Another node's word for what a registry gave it is no more than that: it brought the content, and not the blob.
            let given = Given::of(image, layer)
                .filter(|given| !source.is_peers() && !shown.registries.contains(given));
            if user.is_none() && given.is_none() {
                continue;
            }
            shown.users.extend(user);
            shown.registries.extend(given);
            let old = shown.registries.len().saturating_sub(MOST_REGISTRIES);
            shown.registries.drain(..old);
            let directory = self.layer_directory(&layer.diff_id)?;
            files::write_lightly(directory.as_fd(), FILE, &print(&shown)?, self.give_to)?;
        }
        Ok(())
    }

    fn layer_directory(&self, diff_id: &Digest) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = diff_id.file_name();
        openat(&self.layers, &name, flags, Mode::empty())
            .map_err(|e| Error::io(format!("image store: layers/{name}"), e))
    }
}
