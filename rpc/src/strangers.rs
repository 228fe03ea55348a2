//! Places for connections of which it is not known yet whose they are: anybody who reaches a port can make some, and they keep nobody out
//! who can prove something.
//!
//! Who is new always gets a place. Where there are too many, the oldest of those makes room who come from where most come from: of the
//! silent ones, where these are more than those who have begun to speak, and of those where not. So the connections of one user take places
//! from one another: not from other machines, and not from their own machine's daemon, whose handshake is over before it is the oldest.

use crate::places::one_users_part;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// How long somebody may take to prove who it is.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Places of all.
const MOST: usize = 1024;
/// Which part of them one source may have.
const PART: usize = 4;
/// Where no source has more they are a crowd, as when all nodes come back at once: the next one waits for a place.
const FEW: usize = 8;
/// But not for one whose connection is older than this.
const CROWD: Duration = Duration::from_secs(1);

/// Where connections come from: what one user can choose among is one source. All addresses of the loopback device are, and with IPv6 all
/// of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Loopback,
    Address(Ipv4Addr),
    Network([u16; 4]),
}

impl Source {
    fn of(ip: IpAddr) -> Source {
        match ip.to_canonical() {
            ip if ip.is_loopback() => Source::Loopback,
            IpAddr::V4(ip) => Source::Address(ip),
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                Source::Network([a, b, c, d])
            }
        }
    }
}

/// The places of a port.
#[derive(Debug)]
pub struct Strangers {
    table: Mutex<Table>,
    freed: Notify,
    most: usize,
    of_one: usize,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    count: usize,
    by: HashMap<Source, Own>,
}

/// The connections of a source, by number; what is dropped tells its task to close one.
#[derive(Debug, Default)]
struct Own {
    silent: BTreeMap<u64, Held>,
    heard: BTreeMap<u64, Held>,
}

#[derive(Debug)]
struct Held {
    since: Instant,
    _evict: oneshot::Sender<()>,
}

impl Own {
    fn len(&self) -> usize {
        self.silent.len() + self.heard.len()
    }

    fn oldest(&self) -> Option<(u64, Instant)> {
        let first =
            |all: &BTreeMap<u64, Held>| all.first_key_value().map(|(number, held)| (*number, held.since));
        [first(&self.silent), first(&self.heard)].into_iter().flatten().min()
    }
}

impl Table {
    /// Sends away the oldest of a source, of the kind of which there are more: who is new is silent for a moment, and is not to make room
    /// for others who say a word and stop.
    fn make_room(&mut self, source: Source) {
        let Some(own) = self.by.get_mut(&source) else { return };
        let more = if own.silent.len() > own.heard.len() { &mut own.silent } else { &mut own.heard };
        if more.pop_first().is_some() {
            self.count -= 1;
        }
        if own.len() == 0 {
            self.by.remove(&source);
        }
    }

    fn remove(&mut self, source: Source, number: u64) {
        let Some(own) = self.by.get_mut(&source) else { return };
        if own.silent.remove(&number).or_else(|| own.heard.remove(&number)).is_some() {
            self.count -= 1;
        }
        if own.len() == 0 {
            self.by.remove(&source);
        }
    }

    /// That with most connections; of several the one that was there first.
    fn heaviest(&self) -> Option<Source> {
        let heaviest = self.by.iter().max_by_key(|(_, own)| (own.len(), Reverse(own.oldest())));
        heaviest.map(|(source, _)| *source)
    }

    /// Until when the next one is to wait, where all places are a crowd's.
    fn crowded(&self, most: usize, now: Instant) -> Option<Instant> {
        if self.count < most || self.by.values().any(|own| own.len() > FEW) {
            return None;
        }
        let oldest = self.by.values().filter_map(Own::oldest).map(|(_, since)| since).min();
        oldest.map(|since| since + CROWD).filter(|until| *until > now)
    }
}

impl Strangers {
    /// As many places as this process can have without want of descriptors.
    #[must_use]
    pub fn new() -> Arc<Strangers> {
        Strangers::with(one_users_part().clamp(PART, MOST))
    }

    fn with(most: usize) -> Arc<Strangers> {
        let (table, freed) = (Mutex::default(), Notify::new());
        Arc::new(Strangers { table, freed, most, of_one: (most / PART).max(1) })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place, where all are a crowd's whose turn comes.
    pub async fn room(&self) {
        while let Some(until) = self.crowded() {
            // Whether one was freed or is old enough by now is looked at above.
            let _ = tokio::time::timeout_at(until, self.freed.notified()).await;
        }
    }

    fn crowded(&self) -> Option<Instant> {
        self.lock().crowded(self.most, Instant::now())
    }

    /// A place for one from this address; another one may lose its own for that.
    #[must_use]
    pub fn admit(self: &Arc<Self>, from: IpAddr) -> Stranger {
        let (source, now) = (Source::of(from), Instant::now());
        let (evict, gone) = oneshot::channel();
        let mut table = self.lock();
        if table.by.get(&source).is_some_and(|own| own.len() >= self.of_one) {
            table.make_room(source);
        } else if table.count >= self.most
            && let Some(heaviest) = table.heaviest()
        {
            table.make_room(heaviest);
        }
        table.last += 1;
        table.count += 1;
        let number = table.last;
        let held = Held { since: now, _evict: evict };
        table.by.entry(source).or_default().silent.insert(number, held);
        drop(table);
        Stranger { number, source, of: Arc::clone(self), gone, until: now + HANDSHAKE }
    }
}

/// One of them; its place is given back when it is dropped.
#[derive(Debug)]
pub struct Stranger {
    number: u64,
    source: Source,
    of: Arc<Strangers>,
    gone: oneshot::Receiver<()>,
    until: Instant,
}

/// Why a connection is closed by which nothing was proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// It took too long.
    Late,
    /// Others came.
    MadeRoom,
}

impl fmt::Display for Unproven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unproven::Late => write!(f, "it did not say who it is within {} s", HANDSHAKE.as_secs()),
            Unproven::MadeRoom => f.write_str(
                "it had not said who it is when others came, and of such connections there were as many as may be",
            ),
        }
    }
}

impl Stranger {
    /// Waits until it says something at all.
    ///
    /// # Errors
    /// It is to be closed.
    pub async fn speaks(&mut self, stream: &TcpStream) -> Result<(), Unproven> {
        // Whether it can be read is seen by who reads.
        let _ = self.attend(stream.readable()).await?;
        self.has_spoken();
        Ok(())
    }

    fn has_spoken(&self) {
        let mut table = self.of.lock();
        if let Some(own) = table.by.get_mut(&self.source)
            && let Some(held) = own.silent.remove(&self.number)
        {
            own.heard.insert(self.number, held);
        }
    }

    /// Does what proves who it is.
    ///
    /// # Errors
    /// It is to be closed.
    pub async fn attend<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Unproven> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            _ = &mut self.gone => Err(Unproven::MadeRoom),
            () = tokio::time::sleep_until(self.until) => Err(Unproven::Late),
        }
    }

    /// It has said who it is, and waits for an answer: its time begins anew.
    pub fn begin_anew(&mut self) {
        self.until = Instant::now() + HANDSHAKE;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.of.lock().remove(self.source, self.number);
        self.of.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn is_gone(stranger: &mut Stranger) -> bool {
        stranger.gone.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    fn gone(all: &mut [Stranger]) -> Vec<usize> {
        let all = all.iter_mut().enumerate();
        all.filter_map(|(at, stranger)| is_gone(stranger).then_some(at)).collect()
    }

    #[test]
    fn who_can_choose_among_addresses_is_one_source() {
        let same = |a: &str, b: &str| Source::of(ip(a)) == Source::of(ip(b));
        assert!(same("127.0.0.1", "127.77.3.2") && same("127.0.0.1", "::1"));
        assert!(same("10.0.0.1", "::ffff:10.0.0.1") && !same("10.0.0.1", "10.0.0.2"));
        assert!(same("fd00::1", "fd00::2:3") && !same("fd00::1", "fd00:0:0:1::1"));
    }

    #[tokio::test]
    async fn of_one_source_the_oldest_makes_room_and_of_others_none() {
        let places = Strangers::with(16);
        let mut other = places.admit(ip("10.0.0.2"));
        let mut many: Vec<Stranger> = (0..7).map(|_| places.admit(ip("10.0.0.1"))).collect();
        assert_eq!(many[0].attend(std::future::pending::<()>()).await, Err(Unproven::MadeRoom));
        // What was done by then counts.
        assert_eq!(many[1].attend(std::future::ready(7)).await, Ok(7));
        assert_eq!(gone(&mut many), [0, 1, 2]);
        assert!(!is_gone(&mut other));
        many.clear();
        assert_eq!(places.lock().count, 1);
        drop(other);
        assert!(places.lock().by.is_empty());
    }

    #[tokio::test]
    async fn who_says_something_does_not_make_room_for_who_does_not() {
        let places = Strangers::with(16);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, from) = listener.accept().await.unwrap();
        let mut speaker = places.admit(from.ip());
        tokio::io::AsyncWriteExt::write_all(&mut client, b"hello").await.unwrap();
        speaker.speaks(&stream).await.unwrap();
        let mut silent: Vec<Stranger> = (0..20).map(|_| places.admit(ip("127.0.0.9"))).collect();
        assert!(!is_gone(&mut speaker));
        assert_eq!(gone(&mut silent), (0..17).collect::<Vec<usize>>());
    }

    #[tokio::test]
    async fn who_is_new_does_not_make_room_for_who_says_a_word_and_stops() {
        let places = Strangers::with(16);
        let talker = || {
            let stranger = places.admit(ip("10.0.0.1"));
            stranger.has_spoken();
            stranger
        };
        let mut talkers: Vec<Stranger> = (0..6).map(|_| talker()).collect();
        let mut new = places.admit(ip("10.0.0.1"));
        talkers.extend((0..6).map(|_| talker()));
        assert!(!is_gone(&mut new));
        assert_eq!(gone(&mut talkers), (0..9).collect::<Vec<usize>>());
    }

    #[tokio::test]
    async fn when_all_places_are_taken_who_has_most_makes_room() {
        let places = Strangers::with(64);
        let mut many: Vec<Stranger> = (0..16).map(|_| places.admit(ip("10.0.0.1"))).collect();
        let address = |n: u8| IpAddr::from([10, 0, 1, n]);
        let mut few: Vec<Stranger> = (0..48).map(|n| places.admit(address(n))).collect();
        assert_eq!(places.lock().count, 64);
        // Somebody is no crowd: nobody waits.
        places.room().await;
        few.push(places.admit(address(48)));
        assert_eq!(gone(&mut many), [0]);
        assert!(gone(&mut few).is_empty());
    }

    #[tokio::test]
    async fn a_crowd_waits_for_its_turn_and_not_for_who_says_nothing() {
        let places = Strangers::with(16);
        let address = |n: u8| IpAddr::from([10, 0, 1, n]);
        let mut crowd: Vec<Stranger> = (0..16).map(|n| places.admit(address(n))).collect();
        let until = places.crowded().unwrap();
        // One is through.
        let waits = tokio::spawn({
            let places = Arc::clone(&places);
            async move { places.room().await }
        });
        tokio::task::yield_now().await;
        crowd.pop();
        waits.await.unwrap();
        crowd.push(places.admit(address(16)));
        assert!(gone(&mut crowd).is_empty());
        // None is: after a while the oldest is waited for no longer.
        places.room().await;
        assert!(Instant::now() >= until);
        crowd.push(places.admit(address(17)));
        assert_eq!(gone(&mut crowd), [0]);
    }
}
