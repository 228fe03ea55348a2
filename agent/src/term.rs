//! The controller's term on the disk: what an agent has obeyed once, it obeys no earlier controller after, over power cuts too.
//!
//! It is written in place, into a file that was made at the agent's first start: a disk without room takes it, too. Of its two slots the one with
//! the earlier term is written anew, each in a block of its own, so that a write that is cut off leaves the other one. Beside it lies a copy as
//! versions before this one read and write it.

use crate::paths::Paths;
use berth_model::ids::Term;
use berth_step::spool::{read_json, write_json_durably};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Size of a slot: no disk tears two of them at once.
const BLOCK: usize = 4096;
/// What a slot begins with; behind it come counter, term and the sum of all three, of eight bytes each, the lowest first.
const MAGIC: u64 = u64::from_le_bytes(*b"brthterm");

/// A slot that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    at: usize,
    /// Of two slots the one with the higher counter was written later.
    counter: u64,
    term: Term,
}

/// Where terms are kept.
#[derive(Debug)]
pub struct Terms {
    paths: Paths,
    /// The last one that is on the disk; absent before there is a file. What a write that failed may have left is not asked: nobody knows whether
    /// that is on the disk, and the one before must not be given up for it.
    last: Option<Slot>,
    /// What the copy says.
    copied: Option<Term>,
    /// What the log was told that keeps one from being kept.
    told: Option<String>,
}

/// What was kept.
#[derive(Debug)]
pub(crate) struct Found {
    /// Where it is kept on.
    pub(crate) terms: Terms,
    /// The highest term that was obeyed.
    pub(crate) term: Term,
    /// Why that may not be on the disk.
    pub(crate) unkept: Option<String>,
}

impl Terms {
    /// Finds what was kept, and makes the place for what comes.
    ///
    /// # Errors
    /// What was kept cannot be read: nobody knows then whom not to obey.
    pub(crate) fn open(paths: &Paths) -> io::Result<Found> {
        let copied: io::Result<Option<Term>> = match read_json(&paths.term()) {
            Ok(term) => Ok(Some(term)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        };
        let last = read(&paths.term_slots())?;
        let (copied, term) = match last {
            // An agent of a version before this one may have gone on from here.
            Some(slot) => {
                let copied = copied.unwrap_or_default();
                (copied, copied.map_or(slot.term, |term| slot.term.max(term)))
            }
            None => copied.map(|copied| (copied, copied.unwrap_or(Term(0))))?,
        };
        let mut terms = Terms { paths: paths.clone(), last, copied, told: None };
        // Also what is there already: an earlier agent's write may have failed behind what is read here.
        let unkept = match terms.keep(term) {
            Ok(()) => None,
            // The copy was on the disk before it had its name.
            Err(e) if copied == Some(term) || term == Term(0) => {
                tracing::warn!(
                    "no place can be made for the terms of later controllers, which are not obeyed before there is one: {e}"
                );
                None
            }
            Err(e) => Some(e.to_string()),
        };
        Ok(Found { terms, term, unkept })
    }

    /// Keeps a term. When this returns it is on the disk: one that is lost with the power would let an older controller command.
    ///
    /// # Errors
    /// It cannot be written; what was kept before still is.
    pub(crate) fn keep(&mut self, term: Term) -> io::Result<()> {
        let path = self.paths.term_slots();
        let (at, counter) = self.last.map_or((0, 0), |last| (1 - last.at, last.counter + 1));
        let slot = Slot { at, counter, term };
        let written = match write(&path, slot) {
            Err(e) if e.kind() == ErrorKind::NotFound => make(&path, slot),
            written => written,
        };
        written.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        self.last = Some(slot);
        self.copy(term);
        Ok(())
    }

    /// Keeps a term, or says why it cannot; to the log, too, but once.
    pub(crate) fn remember(&mut self, term: Term) -> Result<(), String> {
        match self.keep(term) {
            Ok(()) => {
                if self.told.take().is_some() {
                    tracing::info!("the controller's term {term} is kept now, and its orders are followed");
                }
                Ok(())
            }
            Err(e) => {
                let why = e.to_string();
                if self.told.as_ref() != Some(&why) {
                    tracing::error!(
                        "cannot keep the controller's term {term}: {why}; nothing is begun or ended for it before that is possible. See to the disk; it \
                         is tried again"
                    );
                    self.told = Some(why.clone());
                }
                Err(why)
            }
        }
    }

    /// For whoever reads it there; this version goes without, so it may fail where the disk is full.
    fn copy(&mut self, term: Term) {
        if self.copied == Some(term) {
            return;
        }
        let file = self.paths.term();
        match write_json_durably(&file, &term) {
            Ok(()) => self.copied = Some(term),
            Err(e) => {
                tracing::debug!("{}: {e}; it says an earlier term", file.display());
                let _ = fs::remove_file(file.with_extension("json.new"));
            }
        }
    }
}

/// FNV-1a: it tells a slot that was half written from a whole one.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn block(slot: Slot) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        [MAGIC, slot.counter, slot.term.0].into_iter().flat_map(u64::to_le_bytes).collect();
    let sum = sum(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes.resize(BLOCK, 0);
    bytes
}

fn slot(at: usize, block: &[u8]) -> Option<Slot> {
    let word = |n: usize| Some(u64::from_le_bytes(block.get(8 * n..8 * n + 8)?.try_into().ok()?));
    let whole = word(0)? == MAGIC && word(3)? == sum(block.get(..24)?);
    whole.then_some(Slot { at, counter: word(1)?, term: Term(word(2)?) })
}

/// The slot that was written last; `None` where there is no file.
fn read(path: &Path) -> io::Result<Option<Slot>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io::Error::new(e.kind(), format!("{}: {e}", path.display()))),
    };
    let slots = bytes.chunks(BLOCK).enumerate().take(2).filter_map(|(at, block)| slot(at, block));
    match slots.max_by_key(|slot| slot.counter) {
        Some(slot) => Ok(Some(slot)),
        None => Err(io::Error::new(ErrorKind::InvalidData, format!("{} is damaged", path.display()))),
    }
}

fn write(path: &Path, slot: Slot) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&block(slot), (slot.at * BLOCK) as u64)?;
    file.sync_all()
}

/// Makes the file with one slot. What it takes of the disk it has from now on.
fn make(path: &Path, slot: Slot) -> io::Result<()> {
    let fresh = path.with_extension("slots.new");
    let made = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        for at in 0..2 {
            file.write_all(&if at == slot.at { block(slot) } else { vec![0; BLOCK] })?;
        }
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    made().inspect_err(|_| {
        let _ = fs::remove_file(&fresh);
    })
}

#[cfg(test)]
mod tests;
