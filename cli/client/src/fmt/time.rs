//! Durations and points in time as the commands print them.

use super::View;
use berth_model::{Span, Time, elapsed};

impl View {
    /// A point in time, in the reader's zone and format.
    pub fn time(&self, at: Time) -> String {
        self.format.print(at, self.now, &self.zone)
    }

    /// The line above long listings: `Fri Nov 20 22:45:33 2026`.
    pub fn banner(&self) -> String {
        berth_model::stamp::headline(self.now, &self.zone)
    }
}

/// `2026-11-20T22:45:33` in the caller's zone.
pub fn iso(at: Time) -> String {
    let zone = jiff::tz::TimeZone::system();
    berth_model::stamp::TimeFormat::Iso.print(at, crate::now(), &zone)
}

/// `0:05`, `1:02:03`, `2-03:04:05`.
pub fn short(span: Span) -> String {
    elapsed::short(u64::try_from(span.secs()).unwrap_or(0))
}

/// `00:01:31`, `1-00:00:00`.
pub fn long(span: Span) -> String {
    elapsed::long(u64::try_from(span.secs()).unwrap_or(0))
}
