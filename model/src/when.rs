//! Points in time as people write them (`--begin`, `sacct -S`): `now+1hour`, `16:00`, `2027-01-02T03:04`.

use crate::time::{Span, Time};
use jiff::civil::{Date, DateTime, Time as Clock};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// On which side of now a time without a date, or a date without a year, lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sense {
    /// The next one: `--begin`.
    Ahead,
    /// The last one: the windows of `sacct`. Only here is there a `yesterday`.
    Past,
}

/// The text is not a point in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a point in time (at character {pos}): {why}")]
pub struct BadTime {
    /// The text.
    pub text: String,
    /// Characters that were understood.
    pub pos: usize,
    /// What is wrong, or which forms are right.
    pub why: String,
}

const FORMS: &str = "write now, now+COUNT[seconds|minutes|hours|days|weeks], today, tomorrow, midnight, noon, \
                     teatime, HH:MM[:SS] [AM|PM], MMDD[YY], MM/DD[/YY], YYYY-MM-DD[THH:MM[:SS]] or utsEPOCH";

/// What `text` means at `now` in the time zone of the person who wrote it. A date alone is its midnight; a time
/// alone is the nearest one on the side of `sense`. A local time that a clock change skips or repeats is read
/// as the clock before the change would show it.
pub fn parse(text: &str, now: Time, zone: &TimeZone, sense: Sense) -> Result<Time, BadTime> {
    let lower = text.to_ascii_lowercase();
    let mut reader = Reader { text, rest: &lower, all: &lower };
    let local = Timestamp::from_second(now.secs())
        .map_err(|_| reader.fail("the clock of this machine is out of range"))?
        .to_zoned(zone.clone())
        .datetime();
    if let Some(seconds) = reader.word("uts") {
        return match (seconds.is_empty(), reader.number(12)) {
            (false, Some((_, n))) if reader.rest.is_empty() => in_range(n).ok_or_else(|| reader.fail(FORMS)),
            _ => Err(reader.fail("after uts stand seconds since 1970")),
        };
    }
    if reader.word("now").is_some() {
        return relative(&mut reader, now);
    }
    let mut date: Option<Date> = None;
    let mut clock: Option<Clock> = None;
    while !reader.rest.is_empty() {
        if clock.is_none()
            && let Some(found) = reader.clock()
        {
            clock = Some(found?);
        } else if date.is_none()
            && let Some(found) = reader.date(local, sense)
        {
            date = Some(found?);
        } else {
            return Err(reader.fail(FORMS));
        }
        // Between date and time stand a T, a minus or blanks, and nothing of the kind at the end.
        let joined =
            reader.rest.strip_prefix(['t', '-']).unwrap_or_else(|| reader.rest.trim_start_matches(' '));
        if !reader.rest.is_empty() && (joined.is_empty() || joined == reader.rest) {
            return Err(reader.fail(FORMS));
        }
        reader.rest = joined;
    }
    let at = match (date, clock) {
        (Some(date), clock) => date.to_datetime(clock.unwrap_or_default()),
        (None, Some(clock)) => nearest(local, clock, sense).ok_or_else(|| reader.fail(FORMS))?,
        (None, None) => return Err(reader.fail(FORMS)),
    };
    zone.to_ambiguous_zoned(at)
        .compatible()
        .ok()
        .map(|zoned| Time::from_secs(zoned.timestamp().as_second()))
        .ok_or_else(|| reader.fail("it is out of range"))
}

/// After `now`: nothing, or a signed count with a unit.
fn relative(reader: &mut Reader<'_>, now: Time) -> Result<Time, BadTime> {
    if reader.rest.is_empty() {
        return Ok(now);
    }
    let ahead = match reader.rest.as_bytes() {
        [b'+', ..] => true,
        [b'-', ..] => false,
        _ => return Err(reader.fail("after now stand nothing, +COUNT or -COUNT")),
    };
    reader.rest = &reader.rest[1..];
    let here = reader.rest;
    let (count, unit) = match reader.number(9) {
        Some((_, count)) => (count, reader.rest.trim()),
        None => return Err(reader.fail("after the sign stands a count")),
    };
    let seconds = match unit.strip_suffix('s').unwrap_or(unit) {
        "" | "second" => 1,
        "minute" => 60,
        "hour" => 3_600,
        "day" => 86_400,
        "week" => 604_800,
        _ => {
            reader.rest = here;
            return Err(reader.fail("the unit is seconds, minutes, hours, days or weeks"));
        }
    };
    let span = Span::from_secs(count * seconds);
    let at = if ahead { now + span } else { now - span };
    in_range(at.secs()).map(|_| at).ok_or_else(|| reader.fail("it is out of range"))
}

fn in_range(seconds: i64) -> Option<Time> {
    Timestamp::from_second(seconds).ok().map(|_| Time::from_secs(seconds))
}

/// The nearest `clock` on the asked side of `local`.
fn nearest(local: DateTime, clock: Clock, sense: Sense) -> Option<DateTime> {
    let today = local.date().to_datetime(clock);
    match sense {
        Sense::Ahead if today <= local => today.checked_add(1.day()).ok(),
        Sense::Past if today > local => today.checked_sub(1.day()).ok(),
        _ => Some(today),
    }
}

struct Reader<'a> {
    text: &'a str,
    all: &'a str,
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn fail(&self, why: &str) -> BadTime {
        BadTime { text: self.text.to_string(), pos: self.all.len() - self.rest.len(), why: why.to_string() }
    }

    /// Takes `word` if it comes next; what follows it.
    fn word(&mut self, word: &str) -> Option<&'a str> {
        let after = self.rest.strip_prefix(word)?;
        self.rest = after;
        Some(after)
    }

    /// Takes the digits that come next, if they are at most `most`: how many, and their value.
    fn number(&mut self, most: usize) -> Option<(usize, i64)> {
        let len = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        if len == 0 || len > most {
            return None;
        }
        let value = self.rest[..len].parse().ok()?;
        self.rest = &self.rest[len..];
        Some((len, value))
    }

    /// A time of day, `None` if something else comes next.
    fn clock(&mut self) -> Option<Result<Clock, BadTime>> {
        const NAMES: [(&str, i8); 5] =
            [("midnight", 0), ("elevenses", 11), ("noon", 12), ("fika", 15), ("teatime", 16)];
        for (name, hour) in NAMES {
            if self.word(name).is_some() {
                return Some(Ok(Clock::constant(hour, 0, 0, 0)));
            }
        }
        let start = self.rest;
        let (_, hour) = self.number(2)?;
        if self.word(":").is_none() {
            self.rest = start;
            return None;
        }
        let minute = match self.number(2) {
            Some((2, minute)) => minute,
            _ => return Some(Err(self.fail("after the hour stand two digits of minutes"))),
        };
        let second = match self.word(":") {
            None => 0,
            Some(_) => match self.number(2) {
                Some((2, second)) => second,
                _ => return Some(Err(self.fail("after the minutes stand two digits of seconds"))),
            },
        };
        let tail = self.rest.trim_start_matches(' ');
        let hour = match (tail.strip_prefix("am"), tail.strip_prefix("pm")) {
            (None, None) => Some(hour),
            (am, pm) => {
                self.rest = am.or(pm).unwrap_or(tail);
                (1..=12).contains(&hour).then_some(hour % 12 + if pm.is_some() { 12 } else { 0 })
            }
        };
        let number = |n: i64| i8::try_from(n).ok();
        let found = hour
            .and_then(|hour| Some((number(hour)?, number(minute)?, number(second)?)))
            .and_then(|(h, m, s)| Clock::new(h, m, s, 0).ok());
        Some(found.ok_or_else(|| {
            self.rest = start;
            self.fail("there is no such time of day")
        }))
    }

    /// A date, `None` if something else comes next.
    fn date(&mut self, local: DateTime, sense: Sense) -> Option<Result<Date, BadTime>> {
        let today = local.date();
        for (name, days) in [("today", 0), ("tomorrow", 1), ("yesterday", -1)] {
            if (days >= 0 || sense == Sense::Past) && self.word(name).is_some() {
                return Some(today.checked_add(days.days()).map_err(|_| self.fail("it is out of range")));
            }
        }
        let start = self.rest;
        let (len, first) = self.number(6)?;
        let (year, month, day) = match (len, self.rest.as_bytes().first()) {
            (4, Some(b'-')) => {
                self.rest = &self.rest[1..];
                match (self.number(2), self.word("-").and_then(|_| self.number(2))) {
                    (Some((2, month)), Some((2, day))) => (Some(first), month, day),
                    _ => {
                        self.rest = start;
                        return Some(Err(self.fail("write a date as YYYY-MM-DD")));
                    }
                }
            }
            (4, _) => (None, first / 100, first % 100),
            (6, _) => (Some(2000 + first % 100), first / 10_000, first / 100 % 100),
            (1 | 2, Some(b'/' | b'.')) => {
                let mark = &self.rest[..1];
                self.rest = &self.rest[1..];
                let Some((_, day)) = self.number(2) else {
                    return Some(Err(self.fail("after the month stands the day")));
                };
                let year = match self.word(mark) {
                    None => None,
                    Some(_) => match self.number(4) {
                        Some((2, year)) => Some(2000 + year),
                        Some((4, year)) => Some(year),
                        _ => return Some(Err(self.fail("the year has two or four digits"))),
                    },
                };
                (year, first, day)
            }
            _ => {
                self.rest = start;
                return None;
            }
        };
        let date = |year: i64| {
            let (year, month, day) =
                (i16::try_from(year).ok()?, i8::try_from(month).ok()?, i8::try_from(day).ok()?);
            Date::new(year, month, day).ok()
        };
        let this = i64::from(today.year());
        let found = match (year, sense) {
            (Some(year), _) => date(year),
            // 29 February is searched for until the next leap year.
            (None, Sense::Ahead) => (this..=this + 8).filter_map(date).find(|d| *d >= today),
            (None, Sense::Past) => (this - 8..=this).rev().filter_map(date).find(|d| *d <= today),
        };
        Some(found.ok_or_else(|| {
            self.rest = start;
            self.fail("there is no such day")
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::soup;
    use crate::stamp::TimeFormat;
    use proptest::prelude::*;

    /// 2026-11-20T23:09:34 UTC, a Friday.
    const NOW: Time = Time(1_795_216_174_000_000);

    fn read(text: &str, sense: Sense) -> Result<String, BadTime> {
        let zone = TimeZone::UTC;
        Ok(TimeFormat::Iso.print(parse(text, NOW, &zone, sense)?, NOW, &zone))
    }

    #[test]
    fn points_ahead_have_slurms_meaning() {
        for (text, expected) in [
            ("now", "2026-11-20T23:09:34"),
            ("now+60", "2026-11-20T23:10:34"),
            ("now+1hour", "2026-11-21T00:09:34"),
            ("now+2days", "2026-11-22T23:09:34"),
            ("now+1week", "2026-11-27T23:09:34"),
            ("now+30minutes", "2026-11-20T23:39:34"),
            ("now+5seconds", "2026-11-20T23:09:39"),
            ("now-60", "2026-11-20T23:08:34"),
            ("NOW+1Hour", "2026-11-21T00:09:34"),
            ("today", "2026-11-20T00:00:00"),
            ("tomorrow", "2026-11-21T00:00:00"),
            ("midnight", "2026-11-21T00:00:00"),
            ("noon", "2026-11-21T12:00:00"),
            ("fika", "2026-11-21T15:00:00"),
            ("teatime", "2026-11-21T16:00:00"),
            ("elevenses", "2026-11-21T11:00:00"),
            ("16:00", "2026-11-21T16:00:00"),
            ("4:00PM", "2026-11-21T16:00:00"),
            ("4:00 pm", "2026-11-21T16:00:00"),
            ("12:30am", "2026-11-21T00:30:00"),
            ("23:59:59", "2026-11-20T23:59:59"),
            ("1231", "2026-12-31T00:00:00"),
            ("0101", "2027-01-01T00:00:00"),
            ("123126", "2026-12-31T00:00:00"),
            ("12/31", "2026-12-31T00:00:00"),
            ("12/31/26", "2026-12-31T00:00:00"),
            ("12/31/2026", "2026-12-31T00:00:00"),
            ("12.31.26", "2026-12-31T00:00:00"),
            ("2027-01-02", "2027-01-02T00:00:00"),
            ("2027-01-02T03:04", "2027-01-02T03:04:00"),
            ("2027-01-02T03:04:05", "2027-01-02T03:04:05"),
            ("2027-01-02 03:04", "2027-01-02T03:04:00"),
            ("01/02/27-10:00", "2027-01-02T10:00:00"),
            ("10:00 tomorrow", "2026-11-21T10:00:00"),
            ("tomorrow noon", "2026-11-21T12:00:00"),
            ("02/29", "2028-02-29T00:00:00"),
            ("2020-01-01", "2020-01-01T00:00:00"),
            ("uts1893456000", "2030-01-01T00:00:00"),
        ] {
            assert_eq!(read(text, Sense::Ahead).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn points_behind_lie_behind() {
        for (text, expected) in [
            ("yesterday", "2026-11-19T00:00:00"),
            ("23:59:59", "2026-11-19T23:59:59"),
            ("16:00", "2026-11-20T16:00:00"),
            ("midnight", "2026-11-20T00:00:00"),
            ("1231", "2025-12-31T00:00:00"),
            ("1120", "2026-11-20T00:00:00"),
            ("now-1day", "2026-11-19T23:09:34"),
        ] {
            assert_eq!(read(text, Sense::Past).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn bad_points_are_refused_with_the_place() {
        for (text, pos) in [
            ("now+1min", 4),
            ("now+1fortnight", 4),
            ("now+", 4),
            ("now+x", 4),
            ("25:00", 0),
            ("2027-13-01", 0),
            ("2027-02-30", 0),
            ("2027-1-2", 0),
            ("yesterday", 0),
            ("bogus", 0),
            ("", 0),
            ("+60", 0),
            ("uts", 3),
            ("13:00pm", 0),
            ("12:00 12:00", 6),
            ("nowhere", 3),
            ("99999999999999999999", 0),
            ("now+999999999weeks", 13),
            ("12:00 ", 5),
            ("noontomorrow", 5),
        ] {
            match read(text, Sense::Ahead) {
                Err(error) => assert_eq!(error.pos, pos, "{error}"),
                Ok(time) => panic!("{text} was read as {time}"),
            }
        }
    }

    #[test]
    fn local_times_follow_the_zone() {
        let zone = TimeZone::posix("EST5EDT,M3.2.0,M11.1.0").unwrap();
        // 18:09:34 there.
        let at = parse("19:00", NOW, &zone, Sense::Ahead).unwrap();
        assert_eq!(at.secs() - NOW.secs(), 3026);
        // 2:30 does not exist on 14 March 2027: the clock before the change is meant.
        let gap = parse("2027-03-14T02:30", NOW, &zone, Sense::Ahead).unwrap();
        assert_eq!(TimeFormat::Iso.print(gap, NOW, &zone), "2027-03-14T03:30:00");
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(secs in 0i64..4_000_000_000) {
            let zone = TimeZone::UTC;
            let text = TimeFormat::Iso.print(Time::from_secs(secs), NOW, &zone);
            prop_assert_eq!(parse(&text, NOW, &zone, Sense::Ahead), Ok(Time::from_secs(secs)));
            prop_assert_eq!(parse(&format!("uts{secs}"), NOW, &zone, Sense::Past), Ok(Time::from_secs(secs)));
        }

        #[test]
        fn no_text_makes_it_panic(text in soup(), now in any::<i64>(), ahead: bool) {
            let sense = if ahead { Sense::Ahead } else { Sense::Past };
            let _ = parse(&text, Time(now), &TimeZone::UTC, sense);
        }
    }
}
