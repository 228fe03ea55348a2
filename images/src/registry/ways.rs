//! One repository of a registry by all ways to it: its mirrors in their order, then the registry itself.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use super::reach::Address;
use super::{Access, Client, Credentials, Registries, blob, ranges, signatures};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::reference::RegistryRef;
use crate::source::{BlobKind, BlobSource};

/// One repository of a registry.
pub struct Registry {
    ways: Arc<Ways>,
    /// The same for what the registry says of the person to others: where authorities of the person's own directory are believed for the
    /// rest, anybody whom the person chose may answer there.
    vouched: Option<Arc<Ways>>,
}

/// The ways to a repository.
pub(super) struct Ways {
    all: Vec<Way>,
    /// Connections that may still be opened beyond one a blob.
    connections: Mutex<usize>,
}

/// One of them.
struct Way {
    client: Client,
    /// A mirror's; the registry itself always says who may use an image.
    grants: bool,
    /// Why a mirror is not asked any more.
    given_up: Mutex<Option<String>>,
    /// Blobs of which it gave bytes that nobody has judged.
    gave: Mutex<BTreeSet<Digest>>,
}

impl Way {
    fn new(client: Client, grants: bool) -> Self {
        Self { client, grants, given_up: Mutex::default(), gave: Mutex::default() }
    }

    fn given_up(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        // A panic of another thread leaves what it was told.
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_answer(&self, kind: BlobKind) -> bool {
        !matches!(kind, BlobKind::Proof | BlobKind::Held) || self.grants || !self.client.is_mirror()
    }
}

impl Registry {
    /// A client for the repository of `name`. Nothing is asked yet.
    ///
    /// # Errors
    /// A certificate that is to be taken is not one, or a mirror's address is none.
    pub fn new(name: &RegistryRef, credentials: &Credentials, registries: &Registries) -> Result<Self> {
        let ways = Ways::new(name, credentials, registries)?;
        let vouched = match ways.all.iter().any(|way| way.client.takes_own) {
            true => Some(Ways::new(name, &credentials.by_sites_authorities(), registries)?),
            false => None,
        };
        Ok(Self { ways, vouched })
    }

    /// Asks for the digest of a manifest by tag or digest, without the manifest; `None` where that is not answered, and it is to
    /// be asked for as a whole.
    ///
    /// # Errors
    /// Nobody can be reached.
    pub(crate) fn digest_of(&self, selector: &str) -> Result<Option<Digest>> {
        let mut before = Vec::new();
        let ask = &mut |client: &Client| client.digest_of(selector);
        match self.ways.first(0, BlobKind::Manifest, &mut before, ask) {
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
            self.ways.first(0, BlobKind::Manifest, &mut before, &mut |client| client.manifest(selector));
        answer.map(|(_, manifest)| manifest)
    }
}

impl BlobSource for Registry {
    fn describe(&self) -> String {
        self.ways.describe()
    }

    fn open(&self, kind: BlobKind, digest: &Digest, offset: u64) -> Result<Box<dyn Read + Send>> {
        if kind == BlobKind::Signatures {
            return Ok(Box::new(std::io::Cursor::new(signatures::collect(&self.ways, digest)?)));
        }
        if kind == BlobKind::Held {
            let mut before = Vec::new();
            let ways = self.vouched.as_ref().unwrap_or(&self.ways);
            let (_, has) = ways.first(0, kind, &mut before, &mut |client| client.has(digest))?;
            let reason = "the repository does not have it";
            let no = || Error::new(ErrorKind::NotFound, format!("{digest} of {}", self.describe()), reason);
            return if has { Ok(Box::new(std::io::empty())) } else { Err(no().next("push the image again")) };
        }
        blob::open(&self.ways, kind, digest, offset)
    }
}

impl Ways {
    fn new(name: &RegistryRef, credentials: &Credentials, registries: &Registries) -> Result<Arc<Self>> {
        let mut all = Vec::new();
        for (url, grants) in registries.mirrors_of(&name.registry) {
            let address = Address::of(url)?;
            all.push(Way::new(Client::of_mirror(name, &address, credentials, registries)?, grants));
        }
        all.push(Way::new(Client::new(name, credentials, registries, Access::Pull)?, true));
        Ok(Arc::new(Self { all, connections: Mutex::new(ranges::EXTRA) }))
    }

    #[cfg(test)]
    pub(super) fn of_one(client: Client) -> Arc<Self> {
        Arc::new(Self { all: vec![Way::new(client, true)], connections: Mutex::new(0) })
    }

    /// The registry itself.
    fn origin(&self) -> Option<&Client> {
        self.all.last().map(|way| &way.client)
    }

    pub(super) fn client(&self, at: usize) -> Option<&Client> {
        self.all.get(at).map(|way| &way.client)
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
        for (at, way) in self.all.iter().enumerate().skip(start).filter(|(_, way)| way.may_answer(kind)) {
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
        let closed = kind == BlobKind::Proof && self.all.iter().any(|way| !way.may_answer(kind));
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
        let Some(way) = self.all.get(at) else { return reason.to_owned() };
        let label = way.client.label();
        let note = if reason.contains(&label) { reason.to_owned() } else { format!("{label}: {reason}") };
        if lasting && way.client.is_mirror() {
            way.given_up().get_or_insert_with(|| note.clone());
        }
        note
    }

    pub(super) fn describe(&self) -> String {
        self.origin().map_or_else(String::new, Client::what)
    }

    pub(super) fn has_mirrors(&self) -> bool {
        self.all.len() > 1
    }

    /// Notes that bytes of a blob come from there.
    pub(super) fn gave(&self, at: usize, digest: &Digest) {
        if let Some(way) = self.all.get(at).filter(|way| way.client.is_mirror()) {
            way.gave.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.clone());
        }
    }

    /// Gives up the mirrors that gave of a blob, and tells which.
    pub(super) fn blame(&self, digest: &Digest, reason: &str) -> Vec<String> {
        let gave = |way: &Way| way.gave.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
        let blamed: Vec<usize> =
            self.all.iter().enumerate().filter(|(_, way)| gave(way)).map(|(at, _)| at).collect();
        blamed.into_iter().map(|at| self.fail(at, reason, true)).collect()
    }

    /// Takes up to `most` connections beyond the one that a blob has.
    pub(super) fn borrow_connections(&self, most: usize) -> usize {
        let mut left = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = most.min(*left);
        *left -= taken;
        taken
    }

    pub(super) fn give_back_connection(&self) {
        *self.connections.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }
}
