//! Points in time as the commands print them, and `SLURM_TIME_FORMAT`.

use crate::time::Time;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// How times are printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TimeFormat {
    /// `2026-11-20T21:40:10`, in local time.
    #[default]
    Iso,
    /// Short and by distance: `21:40:10` today, `Fri 21:40` this week, `20 Nov 21:40` this year.
    Relative,
    /// A format of strftime(3).
    Custom(String),
}

impl TimeFormat {
    /// From the value of `SLURM_TIME_FORMAT`: absent, empty and `standard` are ISO.
    pub fn from_env(value: Option<&str>) -> TimeFormat {
        match value {
            None | Some("" | "standard") => TimeFormat::Iso,
            Some("relative") => TimeFormat::Relative,
            Some(custom) => TimeFormat::Custom(custom.to_string()),
        }
    }

    /// `time` in `zone`, as seen at `now`. A format that cannot be followed falls back to ISO.
    pub fn print(&self, time: Time, now: Time, zone: &TimeZone) -> String {
        let Some(local) = zoned(time, zone) else { return "Unknown".to_string() };
        let format = match self {
            TimeFormat::Iso => ISO,
            TimeFormat::Relative => match zoned(now, zone) {
                Some(now) => relative(&local, &now),
                None => ISO,
            },
            TimeFormat::Custom(format) => format,
        };
        jiff::fmt::strtime::format(format, &local)
            .or_else(|_| jiff::fmt::strtime::format(ISO, &local))
            .unwrap_or_else(|_| "Unknown".to_string())
    }
}

const ISO: &str = "%Y-%m-%dT%H:%M:%S";

/// The head line of `squeue -l` and `sinfo -l`: `Fri Nov 20 22:04:33 2026`.
pub fn headline(time: Time, zone: &TimeZone) -> String {
    zoned(time, zone)
        .and_then(|local| jiff::fmt::strtime::format("%a %b %d %H:%M:%S %Y", &local).ok())
        .unwrap_or_else(|| "Unknown".to_string())
}

fn zoned(time: Time, zone: &TimeZone) -> Option<Zoned> {
    Timestamp::from_second(time.secs()).ok().map(|stamp| stamp.to_zoned(zone.clone()))
}

fn relative(time: &Zoned, now: &Zoned) -> &'static str {
    let days = |z: &Zoned| z.date().since(jiff::civil::Date::ZERO).map_or(0, |span| span.get_days());
    match days(time) - days(now) {
        -1 => "Ystday %H:%M",
        0 => "%H:%M:%S",
        1 => "Tomorr %H:%M",
        2..=6 => "%a %H:%M",
        -365..=365 => "%-d %b %H:%M",
        _ => "%-d %b %Y",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 2026-11-20T23:09:34 UTC, a Friday.
    const NOW: Time = Time(1_795_216_174_000_000);

    #[test]
    fn times_print_in_the_chosen_format() {
        let utc = TimeZone::UTC;
        let print = |value, days: i64| {
            TimeFormat::from_env(value).print(NOW + crate::Span::from_secs(days * 86_400), NOW, &utc)
        };
        assert_eq!(print(None, 0), "2026-11-20T23:09:34");
        assert_eq!(print(Some("standard"), 0), "2026-11-20T23:09:34");
        for (days, text) in [
            (-400, "16 Oct 2025"),
            (-20, "31 Oct 23:09"),
            (-1, "Ystday 23:09"),
            (0, "23:09:34"),
            (1, "Tomorr 23:09"),
            (3, "Mon 23:09"),
            (7, "27 Nov 23:09"),
        ] {
            assert_eq!(print(Some("relative"), days), text);
        }
        assert_eq!(print(Some("%d.%m.%y %H"), 0), "20.11.26 23");
        assert_eq!(headline(NOW, &utc), "Fri Nov 20 23:09:34 2026");
        assert_eq!(
            TimeFormat::Iso.print(NOW, NOW, &TimeZone::fixed(jiff::tz::offset(2))),
            "2026-11-21T01:09:34"
        );
    }

    proptest! {
        #[test]
        fn no_format_and_no_time_makes_it_panic(format in ".{0,12}", time: i64, now: i64) {
            TimeFormat::from_env(Some(&format)).print(Time(time), Time(now), &TimeZone::UTC);
            TimeFormat::Relative.print(Time(time), Time(now), &TimeZone::UTC);
            headline(Time(time), &TimeZone::UTC);
        }
    }
}
