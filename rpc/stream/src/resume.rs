//! What lets a stream go on where it was when its connection breaks: each side counts the frames that it has heard, keeps those it sent until
//! the other has heard them, and sends the rest again on the next connection. So nothing is lost, and nothing comes twice.
//!
//! Counted are all frames after the answer to an Attach, but [`Frame::Heard`](crate::Frame::Heard), by which each side says how far it is.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// How many bytes may be on their way to somebody who has not said to have heard them.
pub const UNHEARD_WINDOW: usize = 1024 * 1024;
/// After so many bytes one says what one has heard. Far less than the window, so that nothing waits for it.
const SAY_AFTER_BYTES: usize = 128 * 1024;
/// After so many frames, however small.
const SAY_AFTER_FRAMES: u64 = 256;
/// What a frame costs beside its bytes.
const BESIDE: usize = 48;

/// Of a client that goes on where it was when its connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// Tells it from other clients: made by chance.
    pub client: u64,
    /// How many frames it has heard.
    pub heard: u64,
}

/// Encoded frames that the other side may not have heard: each as its bytes, or as something that has them.
#[derive(Debug)]
pub struct Outbox<F = Vec<u8>> {
    /// How many it has heard.
    heard: u64,
    frames: VecDeque<F>,
    bytes: usize,
}

impl<F> Default for Outbox<F> {
    fn default() -> Outbox<F> {
        Outbox { heard: 0, frames: VecDeque::new(), bytes: 0 }
    }
}

/// The other side claims to have heard what was not sent, or what is not kept any more.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("it says that it heard {said} frames: {known} were sent, and those from {kept} on are kept")]
pub struct NotKept {
    said: u64,
    kept: u64,
    known: u64,
}

impl<F: AsRef<[u8]>> Outbox<F> {
    /// Keeps a frame that is sent.
    pub fn push(&mut self, frame: F) {
        self.bytes += frame.as_ref().len() + BESIDE;
        self.frames.push_back(frame);
    }

    /// The other side has heard so many in all.
    ///
    /// # Errors
    /// It cannot have.
    pub fn heard(&mut self, count: u64) -> Result<(), NotKept> {
        let known = self.heard.saturating_add(u64::try_from(self.frames.len()).unwrap_or(u64::MAX));
        if count < self.heard || count > known {
            return Err(NotKept { said: count, kept: self.heard, known });
        }
        while self.heard < count
            && let Some(frame) = self.frames.pop_front()
        {
            self.bytes -= frame.as_ref().len() + BESIDE;
            self.heard += 1;
        }
        Ok(())
    }

    /// What the other side has not heard, in order.
    pub fn rest(&self) -> impl Iterator<Item = &[u8]> {
        self.frames.iter().map(AsRef::as_ref)
    }

    /// The same, as they are kept.
    pub fn frames(&self) -> impl Iterator<Item = &F> {
        self.frames.iter()
    }

    /// How many bytes that takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the other side has heard all.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether so much is on its way that more has to wait.
    pub fn is_full(&self) -> bool {
        self.bytes >= UNHEARD_WINDOW
    }

    /// Nobody will hear the rest.
    pub fn drop_rest(&mut self) {
        self.heard = self.heard.saturating_add(u64::try_from(self.frames.len()).unwrap_or(u64::MAX));
        self.frames = VecDeque::new();
        self.bytes = 0;
    }
}

/// When to say what one has heard.
#[derive(Debug, Default)]
pub struct Hearing {
    said: u64,
    bytes: usize,
}

impl Hearing {
    /// A frame of so many bytes came, `heard` with it in all. Whether that is to be said now.
    pub fn came(&mut self, bytes: usize, heard: u64) -> bool {
        self.bytes += bytes + BESIDE;
        let say = self.bytes >= SAY_AFTER_BYTES || heard.saturating_sub(self.said) >= SAY_AFTER_FRAMES;
        if say {
            *self = Hearing { said: heard, bytes: 0 };
        }
        say
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_heard_is_sent_again_and_nothing_else() {
        let mut out = Outbox::default();
        for byte in 0..5u8 {
            out.push(vec![byte]);
        }
        out.heard(2).unwrap();
        out.heard(2).unwrap();
        assert_eq!(out.rest().collect::<Vec<_>>(), [[2u8], [3], [4]]);
        out.push(vec![5]);
        out.heard(6).unwrap();
        assert!(out.is_empty());
        assert_eq!(out.bytes, 0);
    }

    #[test]
    fn nobody_hears_what_was_not_sent_or_forgets_what_was_heard() {
        let mut out = Outbox::default();
        out.push(vec![1u8]);
        out.push(vec![2u8]);
        assert!(out.heard(3).is_err());
        assert!(out.heard(u64::MAX).is_err());
        out.heard(1).unwrap();
        assert!(out.heard(0).is_err(), "that one is not kept any more");
        out.drop_rest();
        assert!(out.heard(1).is_err());
        out.heard(2).unwrap();
    }

    /// A window that is full must always be emptied by what the other side says unasked.
    #[test]
    fn a_full_window_is_always_said_to_be_heard() {
        for size in [0, 1, 40, 5000, crate::MAX_PAYLOAD] {
            let (mut out, mut hearing, mut said) = (Outbox::<Vec<u8>>::default(), Hearing::default(), false);
            for heard in 1.. {
                out.push(vec![0; size]);
                said |= hearing.came(size, heard);
                if out.is_full() {
                    break;
                }
            }
            assert!(said, "of {size} bytes");
        }
    }
}
