//! Where `--since` starts: reads a duration, a time or a day as people write them.

use std::time::{Duration, SystemTime};

use jiff::{Timestamp, ToSpan as _, Zoned, civil::DateTime, tz::TimeZone};

use crate::config;

/// Where `--since` starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// This long before now.
    Ago(Duration),
    /// At this time.
    At(Timestamp),
    /// At this time of the zone in which times are shown.
    Local(DateTime),
    /// When the day this many days before today began, in that zone.
    Day(i64),
}

impl Since {
    /// # Errors
    /// A local time that the zone does not have, or has twice: clocks were changed then.
    pub(super) fn time(self, zone: &TimeZone, now: Timestamp) -> Result<SystemTime, String> {
        let at = match self {
            Self::Ago(duration) => {
                let time = SystemTime::from(now).checked_sub(duration);
                return Ok(time.unwrap_or(SystemTime::UNIX_EPOCH));
            }
            Self::At(time) => Ok(time),
            Self::Local(local) => {
                let zoned = zone.clone().into_ambiguous_zoned(local).unambiguous();
                zoned.map(|zoned| zoned.timestamp()).map_err(|_| {
                    format!("clocks were changed at {local}: write the time with its offset, or give --utc")
                })
            }
            Self::Day(back) => now
                .to_zoned(zone.clone())
                .checked_sub(back.days())
                .and_then(|day| day.start_of_day())
                .map(|day: Zoned| day.timestamp())
                .map_err(|error| error.to_string()),
        };
        at.map(SystemTime::from)
    }
}

/// Reads `10m`, `2 hours ago`, `yesterday`, `2026-11-20`, `2026-11-20 08:30` or an RFC 3339 time.
pub(super) fn parse(text: &str) -> Result<Since, String> {
    const WRITE: &str = "write a duration such as `10m` or `2d`, a day such as `yesterday` or `2026-11-20`, \
                         or a time such as `2026-11-20 08:30` or `2026-11-20T08:30:00Z`";
    let text = text.trim();
    match text {
        "now" => return Ok(Since::Ago(Duration::ZERO)),
        "today" => return Ok(Since::Day(0)),
        "yesterday" => return Ok(Since::Day(1)),
        _ => {}
    }
    if let Ok(time) = text.parse() {
        return Ok(Since::At(time));
    }
    // A time begins with a year, a duration with a number and its unit.
    let is_day = text.get(4..5) == Some("-");
    if is_day && let Ok(local) = text.parse() {
        return Ok(Since::Local(local));
    }
    let duration = text.strip_suffix("ago").map_or(text, str::trim_end);
    let reason = match config::parse_duration(duration) {
        Ok(duration) => return Ok(Since::Ago(duration)),
        Err(_) if is_day => format!("`{text}` is not a time"),
        Err(_) if text.contains(':') => format!("`{text}` has no day"),
        Err(reason) if text.starts_with(|first: char| first.is_ascii_digit()) => reason,
        Err(_) => "it is neither a duration nor a time".to_owned(),
    };
    Err(format!("{reason}; {WRITE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> TimeZone {
        TimeZone::get("Europe/Paris").unwrap()
    }

    /// What is found in Paris at 2026-11-20T00:30 there.
    fn found(text: &str) -> String {
        let now = "2026-11-19T23:30:00Z".parse().unwrap();
        let time = parse(text).unwrap().time(&zone(), now).unwrap();
        Timestamp::try_from(time).unwrap().to_string()
    }

    #[test]
    fn what_people_write_is_understood_in_the_zone_that_is_shown() {
        for (text, time) in [
            ("10m", "2026-11-19T23:20:00Z"),
            (" 90m ", "2026-11-19T22:00:00Z"),
            ("2h", "2026-11-19T21:30:00Z"),
            ("1h 30m", "2026-11-19T22:00:00Z"),
            ("1d", "2026-11-18T23:30:00Z"),
            ("2w", "2026-11-05T23:30:00Z"),
            ("2 hours ago", "2026-11-19T21:30:00Z"),
            ("2h ago", "2026-11-19T21:30:00Z"),
            ("now", "2026-11-19T23:30:00Z"),
            ("today", "2026-11-19T23:00:00Z"),
            ("yesterday", "2026-11-18T23:00:00Z"),
            ("2026-11-18", "2026-11-17T23:00:00Z"),
            ("2026-07-18", "2026-07-17T22:00:00Z"),
            ("2026-11-18 12:00", "2026-11-18T11:00:00Z"),
            ("2026-11-18T12:00:30.5", "2026-11-18T11:00:30.5Z"),
            ("2026-11-18 12:00Z", "2026-11-18T12:00:00Z"),
            ("2026-11-20T08:30:00Z", "2026-11-20T08:30:00Z"),
            ("2026-11-20T09:30:00+01:00", "2026-11-20T08:30:00Z"),
            // The day had 25 hours.
            ("2026-10-25", "2026-10-24T22:00:00Z"),
        ] {
            assert_eq!(found(text), time, "{text}");
        }
    }

    #[test]
    fn a_local_time_that_is_there_twice_or_never_is_refused() {
        let now = Timestamp::UNIX_EPOCH;
        for text in ["2026-10-25 02:30", "2026-03-29 02:30"] {
            let since = parse(text).unwrap();
            let told = since.time(&zone(), now).unwrap_err();
            assert!(told.contains("with its offset"), "{told}");
            assert!(since.time(&TimeZone::UTC, now).is_ok());
        }
    }

    #[test]
    fn what_is_no_time_is_told_with_what_to_write() {
        for (text, reason) in [
            ("tomorrow", "neither a duration nor a time"),
            ("last week", "neither a duration nor a time"),
            ("", "neither a duration nor a time"),
            ("ago", "neither a duration nor a time"),
            ("10", "`10` has no unit"),
            ("20261120", "`20261120` has no unit"),
            ("10 parsecs", "`10 parsecs` is not a duration"),
            ("2026-11", "`2026-11` is not a time"),
            ("2026-13-20", "`2026-13-20` is not a time"),
            ("2026-11-20 25:00", "`2026-11-20 25:00` is not a time"),
            ("08:30", "`08:30` has no day"),
            ("-2h", "neither a duration nor a time"),
        ] {
            let told = parse(text).unwrap_err();
            assert!(told.contains(reason), "{text}: {told}");
            assert!(told.ends_with("or `2026-11-20T08:30:00Z`"), "{told}");
        }
    }
}
