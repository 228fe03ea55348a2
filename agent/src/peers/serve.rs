//! Giving images to other nodes: the distribution API over mutual TLS, to those whom the controller named, of the images that it
//! named, for users who have shown on this node that they may have them. A digest alone opens nothing.

use super::http::{Request, What, read_head};
use super::{Peers, shared_name};
use crate::images::Images;
use berth_images::{Digest, Part};
use berth_model::ids::{NodeName, Uid};
use berth_model::time::Span;
use berth_rpc::{Arrival, PeerConnection, TurnedAway};
use std::io::{self, BufWriter, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// How long a machine may take to prove who it is.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that have not yet done so; more wait in the backlog.
const STRANGERS: usize = 32;
/// Connections of one node: one for each layer that it unpacks at the same time, and as many that are about to end.
const MOST_OF_ONE: usize = 16;
/// Connections of all.
const MOST: usize = 96;
/// Longest life of one.
const LIFE: Duration = Duration::from_secs(3600);
/// Grants that are kept; the oldest goes.
const MOST_GRANTS: usize = 4096;

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

    /// Takes back what a key may have: one image, or all.
    pub(super) fn end(&self, key: &str, digest: Option<&str>) {
        self.all().retain(|grant| grant.key != key || digest.is_some_and(|digest| grant.digest != digest));
    }

    /// What the key may have from this source.
    fn of(&self, key: &str, name: &str) -> Vec<Grant> {
        let now = Instant::now();
        let fits = |grant: &&Grant| {
            grant.key == key && grant.until > now && shared_name(&grant.source).as_deref() == Some(name)
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
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    let away = Arc::new(TurnedAway::default());
    while let Ok(place) = Arc::clone(&strangers).acquire_owned().await {
        let Ok((stream, from)) = listener.accept().await else {
            // Out of descriptors: connections wait in the backlog until some are closed.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (peers, images) = (Arc::clone(&peers), Arc::clone(&start.images));
        let (service, away) = (Arc::clone(&start.service), Arc::clone(&away));
        tokio::spawn(async move {
            let Some(identity) = peers.identity() else { return };
            let arrived = tokio::time::timeout(HANDSHAKE, identity.arrive(stream)).await;
            drop(place);
            match arrived {
                Ok(Ok(Arrival::Images(connection))) => {
                    let served = std::thread::Builder::new().name("peer".into());
                    // Where there may be no more threads, who is there asks somebody else.
                    let _ = served.spawn(move || serve(connection, &peers, &images));
                }
                Ok(Ok(Arrival::Stream(stream))) => peers.admitted.take_in(stream, from, &service).await,
                Ok(Err(e)) => {
                    if let Some(words) = away.words(from, &e.to_string(), Instant::now()) {
                        tracing::info!("{from} is turned away: {words}");
                    }
                }
                Err(_) => tracing::debug!("{from} did not say who it is"),
            }
        });
    }
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
    let (name, digest, is_manifest) = match &request.what {
        What::Api => {
            connection.write_all(
                b"HTTP/1.1 200 OK\r\nDocker-Distribution-Api-Version: registry/2.0\r\nContent-Length: 0\r\n\r\n",
            )?;
            return connection.flush().map(|()| true);
        }
        What::Manifest { name, digest } => (name, digest, true),
        What::Blob { name, digest } => (name, digest, false),
    };
    let grants = peers.grants.of(&key, name);
    let Some(Grant { node, .. }) = grants.first() else {
        // Perhaps not yet: the controller's word may be on its way.
        return refuse(connection, 403, "Forbidden").map(|()| true);
    };
    let Ok(wanted) = digest.parse::<Digest>() else {
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
    for grant in grants.iter().filter(|grant| !is_manifest || grant.digest == *digest) {
        let Ok(of) = grant.digest.parse::<Digest>() else { continue };
        let user = images.is_shared().then_some(grant.user.0);
        let offer = match store.offer(&of, &grant.source, user) {
            Ok(offer) => offer,
            Err(e) => {
                tracing::debug!("{} for {node}: {e}", grant.digest);
                continue;
            }
        };
        let part = if is_manifest { offer.manifest().map(Some) } else { offer.blob(&wanted) };
        match part {
            Ok(Some(part)) => return send(connection, &request, &part, digest).map(|()| true),
            Ok(None) => {}
            Err(e) => tracing::info!("{digest} is not given to {node}: {e}"),
        }
    }
    refuse(connection, 404, "Not Found").map(|()| true)
}

fn refuse(connection: &mut PeerConnection, status: u16, words: &str) -> io::Result<()> {
    write!(connection, "HTTP/1.1 {status} {words}\r\nContent-Length: 0\r\n\r\n")?;
    connection.flush()
}

/// Sends a part as it was asked for. An error in the middle ends the connection: what was sent until then counts for nothing.
fn send(connection: &mut PeerConnection, request: &Request, part: &Part<'_>, digest: &str) -> io::Result<()> {
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
         Content-Type: application/octet-stream\r\n",
        end - from
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
