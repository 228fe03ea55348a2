//! Giving images to other nodes: the distribution API over mutual TLS, to those whom the controller named, of the images that it
//! named, for users who have shown on this node that they may have them. A digest alone opens nothing.
//!
//! Nodes ask for the manifest that was fetched, and for what is in the layers that it names. A client that knows the standard alone asks for
//! the tag `uncompressed-sha256-HEX`, and finds all that the manifest names which it is given. What is known of signatures of a manifest, or
//! of an index that was seen with it, stands at the tag `signatures-sha256-HEX`. Read-only images of layers are blobs by digests of their
//! own, which nodes hear from the controller alone.

use super::http::{Request, What, read_head};
use super::{Peers, shared_name};
use crate::clients::Service;
use crate::images::Images;
use berth_images::{Digest, Offer, Part, Result as ImageResult};
use berth_model::ids::{NodeName, Uid};
use berth_model::time::Span;
use berth_rpc::{Arrival, PeerConnection, PeerIdentity, Stranger, Strangers, TurnedAway, Unproven};
use std::collections::BTreeSet;
use std::io::{self, BufWriter, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// Connections of one node: one for each layer that it unpacks at the same time, and as many that are about to end.
const MOST_OF_ONE: usize = 16;
/// Connections of all.
const MOST: usize = 96;
/// Longest life of one.
const LIFE: Duration = Duration::from_secs(3600);
/// Grants that are kept; the oldest goes.
const MOST_GRANTS: usize = 4096;

/// Grants by which a manifest is looked for that none of them names; each look reads the image's record and makes a manifest.
const MOST_TRIES: usize = 64;

/// What a tag begins with by which an image is asked for with uncompressed layers; behind it stands its digest.
const PLAIN: &str = "uncompressed-";

/// And by which it is asked what is known of signatures of a manifest or an index: each node judges it by its own keys.
pub(super) const SIGNATURES: &str = "signatures-";

/// That a node may have an image, for a user.
#[derive(Clone)]
struct Grant {
    node: NodeName,
    key: String,
    digest: String,
    source: String,
    user: Uid,
    until: Instant,
}

/// Who may have what.
#[derive(Default)]
pub(super) struct Grants(Mutex<Vec<Grant>>);

impl Grants {
    fn all(&self) -> MutexGuard<'_, Vec<Grant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(
        &self,
        node: NodeName,
        key: String,
        digest: String,
        source: String,
        user: Uid,
        time: Span,
    ) {
        let time = Duration::from_micros(u64::try_from(time.0).unwrap_or(0)).min(LIFE);
        let mut all = self.all();
        let now = Instant::now();
        all.retain(|grant| {
            grant.until > now && !(grant.key == key && grant.digest == digest && grant.user == user)
        });
        if all.len() >= MOST_GRANTS {
            all.remove(0);
        }
        all.push(Grant { node, key, digest, source, user, until: now + time });
    }

    /// Adds the keys that may have something.
    pub(super) fn add_keys(&self, keys: &mut BTreeSet<String>) {
        keys.extend(self.all().iter().map(|grant| grant.key.clone()));
    }

    /// Takes back what a key may have: one image, or all.
    pub(super) fn end(&self, key: &str, digest: Option<&str>) {
        self.all().retain(|grant| grant.key != key || digest.is_some_and(|digest| grant.digest != digest));
    }

    /// What the key may have from this source.
    fn of(&self, key: &str, name: &str) -> Vec<Grant> {
        let now = Instant::now();
        // The standard's names have no colon, so that a registry's port stands behind one of its separators there.
        let is = |shared: String| shared == name || shared.replace(':', "_") == name;
        let fits = |grant: &&Grant| {
            grant.key == key && grant.until > now && shared_name(&grant.source).is_some_and(is)
        };
        self.all().iter().filter(fits).cloned().collect()
    }
}

/// Connections of nodes, to be cut when one is none any more.
#[derive(Default)]
pub(super) struct Connections(Mutex<Opened>);

#[derive(Default)]
struct Opened {
    last: u64,
    all: Vec<Connected>,
}

/// A connection: its number, the key of the other side, and a handle to cut it.
struct Connected {
    number: u64,
    key: String,
    handle: TcpStream,
}

impl Connections {
    fn opened(&self) -> MutexGuard<'_, Opened> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes one; nothing where there are enough.
    fn open(&self, connection: &PeerConnection) -> Option<u64> {
        let (key, handle) = (connection.key().to_string(), connection.handle().ok()?);
        let mut opened = self.opened();
        let own = opened.all.iter().filter(|other| other.key == key).count();
        if own >= MOST_OF_ONE || opened.all.len() >= MOST {
            return None;
        }
        opened.last += 1;
        let number = opened.last;
        opened.all.push(Connected { number, key, handle });
        Some(number)
    }

    fn close(&self, number: u64) {
        self.opened().all.retain(|other| other.number != number);
    }

    /// Adds the keys that are there.
    pub(super) fn add_keys(&self, keys: &mut BTreeSet<String>) {
        keys.extend(self.opened().all.iter().map(|connected| connected.key.clone()));
    }

    /// Cuts those of a key.
    pub(super) fn cut(&self, key: &str) {
        for connected in self.opened().all.iter().filter(|other| other.key == key) {
            // It is gone already, then.
            let _ = connected.handle.shutdown(Shutdown::Both);
        }
    }
}

/// Takes connections until it is dropped.
pub(super) async fn accept(listener: TcpListener, peers: Arc<Peers>, start: &super::Keeping) {
    let strangers = Strangers::new();
    let away = Arc::new(TurnedAway::default());
    loop {
        strangers.room().await;
        let Ok((stream, from)) = listener.accept().await else {
            // Out of descriptors: connections wait in the backlog until some are closed.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let stranger = strangers.admit(from.ip());
        let (peers, images) = (Arc::clone(&peers), Arc::clone(&start.images));
        let (service, away) = (Arc::clone(&start.service), Arc::clone(&away));
        tokio::spawn(async move {
            let Some(identity) = peers.identity() else { return };
            let met = meet(&identity, (stream, from), stranger, &peers, images, &service).await;
            if let Err(why) = met
                && let Some(words) = away.words(from, &why, Instant::now())
            {
                tracing::info!("{from} is turned away: {words}");
            }
        });
    }
}

/// Hears who is there, and gives what may be had.
async fn meet(
    identity: &PeerIdentity,
    (stream, from): (tokio::net::TcpStream, SocketAddr),
    mut stranger: Stranger,
    peers: &Arc<Peers>,
    images: Arc<Images>,
    service: &Service,
) -> Result<(), String> {
    let words = |why: Unproven| why.to_string();
    stranger.speaks(&stream).await.map_err(words)?;
    let arrived = stranger.attend(identity.arrive(stream)).await.map_err(words)?;
    match arrived.map_err(|e| e.to_string())? {
        Arrival::Images(connection) => {
            drop(stranger);
            let (peers, served) = (Arc::clone(peers), std::thread::Builder::new().name("peer".into()));
            // Where there may be no more threads, who is there asks somebody else.
            let _ = served.spawn(move || serve(connection, &peers, &images));
        }
        Arrival::Stream(stream) => peers.admitted.take_in(stream, (from, stranger), service).await,
    }
    Ok(())
}

fn serve(mut connection: PeerConnection, peers: &Peers, images: &Images) {
    let Some(number) = peers.connections.open(&connection) else { return };
    let begun = Instant::now();
    while begun.elapsed() < LIFE {
        match answer(&mut connection, peers, images) {
            Ok(true) => {}
            Ok(false) => break,
            Err(e) => {
                tracing::debug!("giving images to another node: {e}");
                break;
            }
        }
    }
    peers.connections.close(number);
}

/// Answers one request; false where there are no more.
fn answer(connection: &mut PeerConnection, peers: &Peers, images: &Images) -> io::Result<bool> {
    let Some(head) = read_head(connection)? else { return Ok(false) };
    let key = connection.key().to_string();
    let request = match Request::of(&head) {
        Ok(request) => request,
        Err((status, words)) => return refuse(connection, status, words).map(|()| false),
    };
    let (name, wanted) = match &request.what {
        What::Api => {
            connection.write_all(
                b"HTTP/1.1 200 OK\r\nDocker-Distribution-Api-Version: registry/2.0\r\nContent-Length: 0\r\n\r\n",
            )?;
            return connection.flush().map(|()| true);
        }
        What::Manifest { name, reference } => (name, Wanted::manifest(reference)),
        What::Blob { name, digest } => (name, digest.parse().ok().map(Wanted::Blob)),
    };
    let grants = peers.grants.of(&key, name);
    let Some(Grant { node, .. }) = grants.first() else {
        // Perhaps not yet: the controller's word may be on its way.
        return refuse(connection, 403, "Forbidden").map(|()| true);
    };
    let Some(wanted) = wanted else {
        return refuse(connection, 404, "Not Found").map(|()| true);
    };
    let store = images.store_to_give();
    let store = match store {
        Ok(store) => store,
        Err(e) => {
            tracing::warn!("giving images to {node}: {e}");
            return refuse(connection, 500, "Internal Server Error").map(|()| true);
        }
    };
    let mut looked_at = BTreeSet::new();
    for (grant, of) in wanted.among(&grants) {
        // Another user's grant of the same image opens nothing more.
        if looked_at.contains(&of) {
            continue;
        }
        let user = images.is_shared().then_some(grant.user.0);
        let offer = match store.offer(&of, &grant.source, user) {
            Ok(offer) => offer,
            Err(e) => {
                tracing::debug!("{} for {node}: {e}", grant.digest);
                continue;
            }
        };
        let found = wanted.of(&offer, &of);
        match found {
            Ok(Some((digest, part))) => return send(connection, &request, &part, &digest).map(|()| true),
            Ok(None) => {
                looked_at.insert(of);
            }
            Err(e) => tracing::info!("{} is not given to {node}: {e}", wanted.digest()),
        }
    }
    refuse(connection, 404, "Not Found").map(|()| true)
}

/// What of an image is wanted.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Blob(Digest),
    /// A manifest with this digest: one that was fetched, or one of uncompressed layers.
    Manifest(Digest),
    /// That of uncompressed layers, of the image with this digest.
    Plain(Digest),
    /// What is known of signatures of the manifest or index with this digest.
    Signatures(Digest),
}

impl Wanted {
    /// By a digest, or by a tag that has one.
    fn manifest(reference: &str) -> Option<Wanted> {
        let tag = |of: &str| of.replacen('-', ":", 1).parse().ok();
        if let Some(of) = reference.strip_prefix(PLAIN) {
            return tag(of).map(Wanted::Plain);
        }
        match reference.strip_prefix(SIGNATURES) {
            Some(of) => tag(of).map(Wanted::Signatures),
            None => reference.parse().ok().map(Wanted::Manifest),
        }
    }

    fn digest(&self) -> &Digest {
        match self {
            Wanted::Blob(digest)
            | Wanted::Manifest(digest)
            | Wanted::Plain(digest)
            | Wanted::Signatures(digest) => digest,
        }
    }

    /// The grants by which it may be given, with the digests of their images: of a manifest those of the image with its digest alone,
    /// as long as there are some.
    fn among<'a>(&self, grants: &'a [Grant]) -> Vec<(&'a Grant, Digest)> {
        let all = grants.iter().filter_map(|grant| Some((grant, grant.digest.parse::<Digest>().ok()?)));
        let (named, others): (Vec<_>, Vec<_>) = all.partition(|(_, of)| of == self.digest());
        match self {
            Wanted::Blob(_) => named.into_iter().chain(others).collect(),
            // That of uncompressed layers, or of an index, of an image that was named lately.
            Wanted::Signatures(_) | Wanted::Manifest(_) if named.is_empty() => {
                others.into_iter().rev().take(MOST_TRIES).collect()
            }
            Wanted::Manifest(_) | Wanted::Plain(_) | Wanted::Signatures(_) => named,
        }
    }

    /// What it is in an image, with its digest; nothing where the image has no such part.
    fn of<'a>(&self, offer: &'a Offer<'_>, image: &Digest) -> ImageResult<Option<(Digest, Part<'a>)>> {
        match self {
            Wanted::Blob(digest) => {
                let part = offer.blob(digest)?;
                let part = part.map_or_else(|| offer.form(digest), |part| Ok(Some(part)))?;
                Ok(part.map(|part| (digest.clone(), part)))
            }
            Wanted::Manifest(digest) if digest == image => Ok(Some((digest.clone(), offer.manifest()?))),
            Wanted::Manifest(digest) => match offer.index(digest)? {
                Some(index) => Ok(Some((digest.clone(), index))),
                None => Ok(Some(offer.plain_manifest()?).filter(|(found, _)| found == digest)),
            },
            Wanted::Plain(_) => offer.plain_manifest().map(Some),
            Wanted::Signatures(digest) => offer.signatures(digest),
        }
    }
}

fn refuse(connection: &mut PeerConnection, status: u16, words: &str) -> io::Result<()> {
    write!(connection, "HTTP/1.1 {status} {words}\r\nContent-Length: 0\r\n\r\n")?;
    connection.flush()
}

/// Sends a part as it was asked for. An error in the middle ends the connection: what was sent until then counts for nothing.
fn send(
    connection: &mut PeerConnection,
    request: &Request,
    part: &Part<'_>,
    digest: &Digest,
) -> io::Result<()> {
    let all = part.length();
    let (from, end) = match request.range {
        None => (0, all),
        Some((first, _)) if first >= all => {
            write!(
                connection,
                "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{all}\r\nContent-Length: 0\r\n\r\n"
            )?;
            return connection.flush();
        }
        Some((first, last)) => (first, last.map_or(all, |last| last.saturating_add(1).min(all))),
    };
    let mut out = BufWriter::with_capacity(64 << 10, connection);
    let status = if request.range.is_some() { "206 Partial Content" } else { "200 OK" };
    write!(
        out,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nAccept-Ranges: bytes\r\nDocker-Content-Digest: {digest}\r\n\
         Content-Type: {}\r\n",
        end - from,
        part.media_type()
    )?;
    if request.range.is_some() {
        write!(out, "Content-Range: bytes {from}-{}/{all}\r\n", end - 1)?;
    }
    out.write_all(b"\r\n")?;
    if !request.head_only {
        part.copy((from, end), &mut out).map_err(|e| io::Error::other(e.to_string()))?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_named_by_digests_and_by_tags_that_have_one() {
        let hex = |n: u8| format!("{n:064x}");
        let digest = |n: u8| format!("sha256:{}", hex(n)).parse::<Digest>().unwrap();
        let manifest = Wanted::manifest(&digest(1).to_string()).unwrap();
        assert_eq!(manifest, Wanted::Manifest(digest(1)));
        let plain = Wanted::manifest(&format!("uncompressed-sha256-{}", hex(1))).unwrap();
        assert_eq!(plain, Wanted::Plain(digest(1)));
        let signatures = Wanted::manifest(&format!("signatures-sha256-{}", hex(1))).unwrap();
        assert_eq!(signatures, Wanted::Signatures(digest(1)));
        for bad in [
            "latest",
            "uncompressed-",
            "uncompressed-latest",
            "sha256:12",
            "uncompressed-sha256-12",
            "signatures-latest",
        ] {
            assert_eq!(Wanted::manifest(bad), None, "{bad}");
        }
        let grants = Grants::default();
        for n in [1, 2, 1] {
            let (user, source) = (Uid(grants.all().len().try_into().unwrap()), "docker://r.io:5000/x".into());
            let digest = digest(n).to_string();
            grants.add(NodeName("n".into()), "a".into(), digest, source, user, Span::from_secs(60));
        }
        let of = |name: &str| grants.of("a", name);
        assert_eq!((of("r.io:5000/x").len(), of("r.io_5000/x").len(), of("r.io/x").len()), (3, 3, 0));
        let all = of("r.io:5000/x");
        let among =
            |wanted: &Wanted| wanted.among(&all).into_iter().map(|(_, of)| of).collect::<Vec<Digest>>();
        assert_eq!(among(&manifest), [digest(1), digest(1)]);
        assert_eq!(among(&plain), [digest(1), digest(1)]);
        assert!(among(&Wanted::Plain(digest(3))).is_empty());
        // What is signed may be an index of it.
        assert_eq!(among(&signatures), [digest(1), digest(1)]);
        assert_eq!(among(&Wanted::Signatures(digest(3))).len(), 3);
        // Perhaps it is one of uncompressed layers.
        assert_eq!(among(&Wanted::Manifest(digest(3))).len(), 3);
        assert_eq!(among(&Wanted::Blob(digest(2))), [digest(2), digest(1), digest(1)]);
        for user in 100..300 {
            let source = "docker://r.io/y".into();
            let of = digest(4).to_string();
            grants.add(NodeName("n".into()), "a".into(), of, source, Uid(user), Span::from_secs(60));
        }
        let all = of("r.io/y");
        assert_eq!((all.len(), Wanted::Manifest(digest(3)).among(&all).len()), (200, MOST_TRIES));
        assert_eq!(Wanted::Manifest(digest(4)).among(&all).len(), 200);
    }

    #[test]
    fn a_key_may_have_what_was_named_until_its_time_is_over() {
        let grants = Grants::default();
        let add = |key: &str, digest: &str, seconds| {
            let source = "docker://r.io/x".to_string();
            grants.add(
                NodeName("n".into()),
                key.into(),
                digest.into(),
                source,
                Uid(1),
                Span::from_secs(seconds),
            );
        };
        let of = |key: &str, name: &str| grants.of(key, name).len();
        add("a", "1", 60);
        add("a", "2", 60);
        add("b", "1", 60);
        add("c", "1", 0);
        assert_eq!((of("a", "r.io/x"), of("b", "r.io/x")), (2, 1));
        assert_eq!(of("a", "r.io/y") + of("a", "docker://r.io/x") + of("c", "r.io/x") + of("", "r.io/x"), 0);
        add("a", "1", 60);
        assert_eq!(of("a", "r.io/x"), 2, "the same again is the same");
        grants.end("a", Some("1"));
        assert_eq!((of("a", "r.io/x"), of("b", "r.io/x")), (1, 1));
        grants.end("a", None);
        assert_eq!((of("a", "r.io/x"), of("b", "r.io/x")), (0, 1));
        for n in 0..=MOST_GRANTS {
            add("d", &n.to_string(), 60);
        }
        assert_eq!(grants.all().len(), MOST_GRANTS);
    }
}
