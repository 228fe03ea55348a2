//! Keys and their values: those of a step, or the attributes of a node. And what nodes tell one another of theirs.

use crate::{KEY_MAX, VALUE_MAX};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What an entry takes beside its bytes.
const ENTRY: usize = 128;

/// What came is no list of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeys {
    /// It ends within an entry, or an entry is larger than any may be.
    #[error("the keys of other nodes came damaged")]
    Damaged,
    /// They are more than are held.
    #[error("the keys of all nodes take more than {0} bytes")]
    TooMany(usize),
}

/// Why a key was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No key, or one that is too long.
    Key,
    /// The value is too long.
    Value,
    /// No room.
    Full,
}

impl Refused {
    /// In a word, as PMI-1 has no spaces.
    pub fn word(self) -> &'static str {
        match self {
            Refused::Key => "key_too_long",
            Refused::Value => "value_too_long",
            Refused::Full => "no_room_for_more_keys",
        }
    }
}

/// Keys with their values, in the order in which they were first put.
#[derive(Debug)]
pub struct Keys {
    limit: usize,
    used: usize,
    places: BTreeMap<Rc<[u8]>, usize>,
    entries: Vec<(Rc<[u8]>, Vec<u8>)>,
    /// Put here and not told to other nodes yet.
    fresh: BTreeSet<usize>,
}

impl Keys {
    /// None yet; at most this many bytes.
    pub fn new(limit: usize) -> Keys {
        Keys { limit, used: 0, places: BTreeMap::new(), entries: Vec::new(), fresh: BTreeSet::new() }
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.places.get(key).and_then(|at| self.entries.get(*at)).map(|(_, value)| value.as_slice())
    }

    /// The entry at a place.
    pub fn at(&self, place: usize) -> Option<(&[u8], &[u8])> {
        self.entries.get(place).map(|(key, value)| (key.as_ref(), value.as_slice()))
    }

    /// Puts a value; one that was there is replaced.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refused> {
        let place = self.store(key, value)?;
        self.fresh.insert(place);
        Ok(())
    }

    fn store(&mut self, key: &[u8], value: &[u8]) -> Result<usize, Refused> {
        if key.is_empty() || key.len() > KEY_MAX {
            return Err(Refused::Key);
        }
        if value.len() > VALUE_MAX {
            return Err(Refused::Value);
        }
        if let Some(place) = self.places.get(key).copied() {
            if let Some((_, old)) = self.entries.get_mut(place) {
                let used = self.used - old.len() + value.len();
                if used > self.limit {
                    return Err(Refused::Full);
                }
                self.used = used;
                *old = value.to_vec();
            }
            return Ok(place);
        }
        let used = self.used + ENTRY + key.len() + value.len();
        if used > self.limit {
            return Err(Refused::Full);
        }
        self.used = used;
        let place = self.entries.len();
        let key: Rc<[u8]> = Rc::from(key);
        self.places.insert(Rc::clone(&key), place);
        self.entries.push((key, value.to_vec()));
        Ok(place)
    }

    /// What was put since this was last asked: lengths of key and value (two bytes each, little endian), key, value.
    pub fn take_fresh(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        for (key, value) in std::mem::take(&mut self.fresh).iter().filter_map(|at| self.entries.get(*at)) {
            // Neither is longer than its bound, and both of those are less than 65,536.
            for length in [key.len(), value.len()] {
                out.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
            }
            out.extend_from_slice(key);
            out.extend_from_slice(value);
        }
        out
    }

    /// Takes in what all nodes put.
    pub fn merge(&mut self, mut bytes: &[u8]) -> Result<(), BadKeys> {
        while !bytes.is_empty() {
            let (key, value, rest) = entry(bytes).ok_or(BadKeys::Damaged)?;
            bytes = rest;
            match self.store(key, value) {
                Ok(_) => {}
                Err(Refused::Full) => return Err(BadKeys::TooMany(self.limit)),
                Err(_) => return Err(BadKeys::Damaged),
            }
        }
        Ok(())
    }
}

/// The first entry of a list, and what comes after it.
fn entry(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (&[k0, k1, v0, v1], rest) = bytes.split_first_chunk::<4>()?;
    let (key, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes([k0, k1])))?;
    let (value, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes([v0, v1])))?;
    Some((key, value, rest))
}

/// How many entries such a list has.
///
/// # Errors
/// It is none.
pub fn count(mut bytes: &[u8]) -> Result<usize, BadKeys> {
    let mut found = 0;
    while !bytes.is_empty() {
        bytes = entry(bytes).ok_or(BadKeys::Damaged)?.2;
        found += 1;
    }
    Ok(found)
}
