//! One repository of a registry by all ways to it: its mirrors in their order, then the registry itself.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use super::reach::Address;
use super::{Access, Client, Credentials, Registries, blob};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::reference::RegistryRef;
use crate::source::{BlobKind, BlobSource};

/// One repository of a registry.
pub struct Registry(Arc<Ways>);

/// The ways to a repository.
pub(super) struct Ways(Vec<Way>);

/// One of them.
struct Way {
    client: Client,
    /// A mirror's; the registry itself always says who may use an image.
    grants: bool,
    /// Why a mirror is not asked any more.
    given_up: Mutex<Option<String>>,
}

impl Way {
    fn new(client: Client, grants: bool) -> Self {
        Self { client, grants, given_up: Mutex::default() }
    }

    fn given_up(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        // A panic of another thread leaves what it was told.
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_answer(&self, kind: BlobKind) -> bool {
        kind != BlobKind::Proof || self.grants || !self.client.is_mirror()
    }
}

impl Registry {
    /// A client for the repository of `name`. Nothing is asked yet.
    ///
    /// # Errors
    /// A certificate that is to be taken is not one, or a mirror's address is none.
    pub fn new(name: &RegistryRef, credentials: &Credentials, registries: &Registries) -> Result<Self> {
        let mut ways = Vec::new();
        for (url, grants) in registries.mirrors_of(&name.registry) {
            let address = Address::of(url)?;
            ways.push(Way::new(Client::of_mirror(name, &address, credentials, registries)?, grants));
        }
        ways.push(Way::new(Client::new(name, credentials, registries, Access::Pull)?, true));
        Ok(Self(Arc::new(Ways(ways))))
    }

    /// Asks for the digest of a manifest by tag or digest, without the manifest; `None` where that is not answered, and it is to
    /// be asked for as a whole.
    ///
    /// # Errors
    /// Nobody can be reached.
    pub(crate) fn digest_of(&self, selector: &str) -> Result<Option<Digest>> {
        let mut before = Vec::new();
        let ask = &mut |client: &Client| client.digest_of(selector);
        match self.0.first(0, BlobKind::Manifest, &mut before, ask) {
            Ok((_, digest)) => Ok(digest),
            Err(error) if error.kind() == ErrorKind::Unreachable => Err(error),
            // An answer to HEAD has no reason in it.
            Err(_) => Ok(None),
        }
    }

    /// Asks for a manifest by tag or digest; gives its bytes, its type and its verified digest.
    ///
    /// # Errors
    /// As for [`crate::resolve`].
    pub(crate) fn manifest(&self, selector: &str) -> Result<(Vec<u8>, Option<String>, Digest)> {
        let mut before = Vec::new();
        let answer =
            self.0.first(0, BlobKind::Manifest, &mut before, &mut |client| client.manifest(selector));
        answer.map(|(_, manifest)| manifest)
    }
}

impl BlobSource for Registry {
    fn describe(&self) -> String {
        self.0.origin().map_or_else(String::new, Client::what)
    }

    fn open(&self, kind: BlobKind, digest: &Digest, offset: u64) -> Result<Box<dyn Read + Send>> {
        blob::open(&self.0, kind, digest, offset)
    }
}

impl Ways {
    /// The registry itself.
    fn origin(&self) -> Option<&Client> {
        self.0.last().map(|way| &way.client)
    }

    pub(super) fn client(&self, at: usize) -> Option<&Client> {
        self.0.get(at).map(|way| &way.client)
    }

    /// Asks one after the other, from the one at `start`, until one answers; gives which it was. `before` has what those
    /// said that were asked in vain, for the message when nobody answers. A mirror that only has not what is wanted is asked
    /// again for other things; any other failure of it counts for as long as this value lives.
    pub(super) fn first<T>(
        &self,
        start: usize,
        kind: BlobKind,
        before: &mut Vec<String>,
        ask: &mut dyn FnMut(&Client) -> Result<T>,
    ) -> Result<(usize, T)> {
        let mut failed = None;
        for (at, way) in self.0.iter().enumerate().skip(start).filter(|(_, way)| way.may_answer(kind)) {
            let given_up = way.given_up().clone();
            if let Some(why) = given_up {
                before.push(why);
                continue;
            }
            match ask(&way.client) {
                Ok(answer) => return Ok((at, answer)),
                Err(error) if way.client.is_mirror() => {
                    let lasting = error.kind() != ErrorKind::NotFound;
                    before.push(self.fail(at, error.reason(), lasting));
                }
                Err(error) => failed = Some(error),
            }
        }
        let error = failed.unwrap_or_else(|| {
            Error::new(ErrorKind::Unreachable, self.describe(), "nobody is left to ask").next("try again")
        });
        let closed = kind == BlobKind::Proof && self.0.iter().any(|way| !way.may_answer(kind));
        let error = error.after(before);
        Err(if closed && error.kind() == ErrorKind::Unreachable {
            error.next(
                "only the registry itself says who may use its images, unless images.mirror has grants = true: ask your \
                 administrator, or try again",
            )
        } else {
            error
        })
    }

    /// Notes that a way failed, and for good where that lasts; gives the note.
    pub(super) fn fail(&self, at: usize, reason: &str, lasting: bool) -> String {
        let Some(way) = self.0.get(at) else { return reason.to_owned() };
        let label = way.client.label();
        let note = if reason.contains(&label) { reason.to_owned() } else { format!("{label}: {reason}") };
        if lasting && way.client.is_mirror() {
            way.given_up().get_or_insert_with(|| note.clone());
        }
        note
    }

    fn describe(&self) -> String {
        self.origin().map_or_else(String::new, Client::what)
    }
}
