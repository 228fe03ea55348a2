//! What a log is told of those who are turned away at a port: anybody on the network can come there, again and again, and a log keeps
//! only so much.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The same of the same machine is told again after so long.
const AGAIN: Duration = Duration::from_secs(30);
/// So many different things are told in that time.
const MOST: usize = 256;

/// Who was turned away lately, and why.
#[derive(Debug, Default)]
pub struct TurnedAway(Mutex<HashMap<(IpAddr, String), Told>>);

#[derive(Debug)]
struct Told {
    at: Instant,
    since: u64,
}

impl TurnedAway {
    /// What is to be told of somebody who is turned away `now`, where anything is: the same of the same machine once in half a minute,
    /// with how often it was meanwhile.
    pub fn words(&self, from: SocketAddr, why: &str, now: Instant) -> Option<String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (from.ip(), why.to_string());
        if let Some(told) = all.get_mut(&key) {
            if now.saturating_duration_since(told.at) < AGAIN {
                told.since += 1;
                return None;
            }
            let more = match std::mem::take(&mut told.since) {
                0 => String::new(),
                more => format!(" (and {more} times since it was told last)"),
            };
            told.at = now;
            return Some(format!("{why}{more}"));
        }
        if all.len() >= MOST {
            all.retain(|_, told| now.saturating_duration_since(told.at) < AGAIN);
        }
        if all.len() >= MOST {
            return None;
        }
        all.insert(key, Told { at: now, since: 0 });
        Some(why.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once_in_a_while_and_what_differs_is_bounded() {
        let away = TurnedAway::default();
        let start = Instant::now();
        let from = |host: u8, port: u16| SocketAddr::from(([10, 0, 0, host], port));
        let words = |host, port, why: &str, seconds| {
            away.words(from(host, port), why, start + Duration::from_secs(seconds))
        };
        assert_eq!(words(1, 1, "no key", 0).as_deref(), Some("no key"));
        for port in 2..9 {
            assert_eq!(words(1, port, "no key", 29), None, "another port is no other machine");
        }
        assert_eq!(words(1, 1, "expired", 29).as_deref(), Some("expired"));
        assert_eq!(words(2, 1, "no key", 29).as_deref(), Some("no key"));
        assert_eq!(words(1, 1, "no key", 30).as_deref(), Some("no key (and 7 times since it was told last)"));
        assert_eq!(words(1, 1, "no key", 60).as_deref(), Some("no key"));
        let told = (0..1000).filter(|n| words(3, 1, &format!("reason {n}"), 60).is_some()).count();
        assert!(told <= MOST && told > MOST - 5, "{told}");
        assert!(words(4, 1, "later", 91).is_some());
    }
}
