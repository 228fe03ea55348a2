//! How a running container can be found and entered: its record and its socket, made when they are worth making.

use super::exec::Entrance;
use super::records::{self, Kept, Record};
use berth_client::error::Failure;
use berth_client::site::StateDir;
use rustix::event::Timespec;
use std::time::{Duration, Instant};

/// A container that has no name of its own is listed when it has run for this long: nobody can have known of it before, and
/// two files made and removed are a tenth of what the shortest containers cost.
const WORTH_LISTING: Duration = Duration::from_millis(20);

/// A container's place in the list; it goes from there when dropped.
#[derive(Debug)]
pub struct Listing {
    state: StateDir,
    record: Record,
    open: Option<(Entrance, Kept)>,
    /// When it is to be listed; `None`: it is, or cannot be.
    due: Option<Instant>,
}

impl Listing {
    /// Of a container that was given a name: listed at once, or refused when another has that name.
    pub fn named(state: StateDir, record: Record) -> Result<Listing, Failure> {
        let mut listing = Listing::later(state, record);
        listing.enter()?;
        Ok(listing)
    }

    /// Of any other: listed when [`Listing::patience`] is over.
    pub fn later(state: StateDir, record: Record) -> Listing {
        Listing { state, record, open: None, due: Some(Instant::now() + WORTH_LISTING) }
    }

    /// How long to wait before [`Listing::enter`]; `None`: it has been done, or cannot be.
    pub fn patience(&self) -> Option<Timespec> {
        let left = self.due?.saturating_duration_since(Instant::now());
        // It is below the constant above, and fits.
        Timespec::try_from(left).ok()
    }

    /// Whether [`Listing::enter`] is due.
    pub fn is_due(&self) -> bool {
        self.due.is_some_and(|at| at <= Instant::now())
    }

    /// Puts the container into the list.
    pub fn enter(&mut self) -> Result<(), Failure> {
        // Whatever comes of it, it is not tried again.
        self.due = None;
        records::prepare(&self.state)?;
        let kept = records::keep(&self.state, &self.record)?;
        let entrance = Entrance::open(&self.state, &self.record.name)?;
        self.open = Some((entrance, kept));
        Ok(())
    }

    /// Where further commands for the container come in, once it is listed.
    pub fn entrance(&mut self) -> Option<&mut Entrance> {
        self.open.as_mut().map(|(entrance, _)| entrance)
    }
}
