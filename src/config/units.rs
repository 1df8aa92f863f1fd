//! Durations and sizes as people write them: `15s`, `1h30m`, `30d`; `64KiB`, `10GiB`. Durations are
//! jiff's; sizes are our own few lines, as the crates for them print `10.0 GiB` or round.
//! Knows nothing of settings.

use std::{fmt, time::Duration};

use jiff::{
    SignedDuration, Span, SpanRelativeTo, SpanRound, Unit,
    fmt::friendly::{Designator, Spacing, SpanParser, SpanPrinter},
};

/// Bytes in each unit of a size. Decimal units are understood but never printed, so that a value
/// shown by the program can be compared with the defaults at a glance.
const SIZE_UNITS: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("kB", 1_000),
    ("B", 1),
];

/// A number of bytes that prints with a binary unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// `count` times 1,024 bytes.
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    /// `count` times 1,024 KiB.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// `count` times 1,024 MiB.
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }
}

/// The number of bytes, in the types that count them; what a type cannot hold is its largest number.
macro_rules! count_of_bytes {
    ($($type:ty),+) => {$(
        impl From<ByteSize> for $type {
            fn from(size: ByteSize) -> Self {
                Self::try_from(size.0).unwrap_or(Self::MAX)
            }
        }
    )+};
}
count_of_bytes!(usize, u32);

impl From<ByteSize> for u64 {
    fn from(size: ByteSize) -> Self {
        size.0
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut binary = SIZE_UNITS.iter().take(4);
        match binary.find(|(_, bytes)| self.0 != 0 && self.0.is_multiple_of(*bytes)) {
            Some((unit, bytes)) => write!(formatter, "{}{unit}", self.0 / bytes),
            None => write!(formatter, "{}B", self.0),
        }
    }
}

/// Reads a duration in jiff's friendly format, such as `1h30m` or `1.5 hours`; a day has 24 hours.
/// Refused although jiff reads it: `10:30:00`, which may be meant as a time of day, and what is
/// negative. jiff itself refuses months and years without a date to count from.
///
/// # Errors
/// A clause that says what is wrong with the text, fit to follow the name of a setting.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    if text.chars().all(|c| c.is_ascii_digit()) {
        return Err(format!("`{text}` has no unit"));
    }
    let span = SpanParser::new().parse_span(text).ok();
    span.filter(|_| !text.contains(':'))
        .and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok())
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| format!("`{text}` is not a duration"))
}

/// Writes a duration so that [`parse_duration`] reads it back. Weeks are understood but not
/// written: `30d` says more than `4w2d`.
pub fn show_duration(duration: Duration) -> String {
    let days = SpanRound::new().largest(Unit::Day).days_are_24_hours();
    let printer = SpanPrinter::new()
        .spacing(Spacing::None)
        .designator(Designator::HumanTime);
    let span = SignedDuration::try_from(duration).and_then(Span::try_from);
    match span.and_then(|span| span.round(days)) {
        Ok(span) => printer.span_to_string(&span),
        // Longer than jiff's twenty thousand years.
        Err(_) => format!("{}s", duration.as_secs()),
    }
}

/// Reads a size: a whole number with the unit `B`, `KiB`, `MiB`, `GiB`, `TiB` or their decimal
/// cousins `KB`, `MB`, `GB`, `TB`; without a unit it counts bytes.
///
/// # Errors
/// A clause that says what is wrong with the text, fit to follow the name of a setting.
pub fn parse_size(text: &str) -> Result<ByteSize, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    if number.is_empty() {
        return Err(format!("`{text}` does not start with a whole number"));
    }
    let count: u64 = number
        .parse()
        .map_err(|_| format!("`{number}` is too large a number"))?;
    let scale = match unit.trim_start() {
        "" => 1,
        unit => SIZE_UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, bytes)| *bytes)
            .ok_or_else(|| format!("`{text}` has the unknown unit `{unit}`"))?,
    };
    count
        .checked_mul(scale)
        .map(ByteSize)
        .ok_or_else(|| format!("`{text}` is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, millis) in [
            ("15s", 15_000),
            ("500ms", 500),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("30d", 2_592_000_000),
            ("2w", 1_209_600_000),
            ("0s", 0),
            (" 5 s ", 5_000),
            ("36500d", 3_153_600_000_000),
            ("90 days", 7_776_000_000),
        ] {
            let expected = Duration::from_millis(millis);
            assert_eq!(parse_duration(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_duration_that_is_none_says_why() {
        assert_eq!(parse_duration(" "), Err("it is empty".to_owned()));
        assert_eq!(parse_duration("15"), Err("`15` has no unit".to_owned()));
        for text in [
            "15 parsecs",
            "soon",
            "1h30",
            "PT15S",
            "1mo",
            "1y",
            "18446744073709551615w",
            // What jiff would take.
            "-5s",
            "5s ago",
            "10:30:00",
            "1d 10:30:00",
        ] {
            let expected = format!("`{text}` is not a duration");
            assert_eq!(parse_duration(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn what_is_shown_of_a_duration_reads_back_the_same() {
        for text in [
            "15s", "30d", "1h30m", "1d1ms", "0s", "8s500ms", "36500d", "1us",
        ] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(show_duration(duration), text);
        }
        let forever = Duration::from_secs(u64::MAX);
        assert_eq!(show_duration(forever), "18446744073709551615s");
    }

    #[test]
    fn the_simulator_reads_durations_by_the_same_grammar() {
        for text in [
            "250ms", "1m 30s", "2d", "1.5h", "", "15", "soon", "-5s", "1mo", "10:30:00", "PT5S",
        ] {
            let simulated = crate::simulator::options::parse_duration(text).ok();
            assert_eq!(simulated, parse_duration(text).ok(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_units_and_shown_with_binary_ones() {
        for (text, bytes, shown) in [
            ("10GiB", 10 << 30, "10GiB"),
            ("64 KiB", 64 << 10, "64KiB"),
            ("1048576", 1 << 20, "1MiB"),
            ("10MB", 10_000_000, "10000000B"),
            ("0", 0, "0B"),
            ("1500B", 1500, "1500B"),
        ] {
            let size = parse_size(text).unwrap();
            assert_eq!(
                (size.0, size.to_string().as_str()),
                (bytes, shown),
                "{text}"
            );
        }
    }

    #[test]
    fn a_size_that_is_none_says_why() {
        for (text, reason) in [
            ("", "it is empty"),
            ("big", "`big` does not start with a whole number"),
            ("10 gigs", "`10 gigs` has the unknown unit `gigs`"),
            ("99999999999TiB", "`99999999999TiB` is too large"),
            (
                "99999999999999999999",
                "`99999999999999999999` is too large a number",
            ),
            ("1GiB1MiB", "`1GiB1MiB` has the unknown unit `GiB1MiB`"),
        ] {
            assert_eq!(parse_size(text), Err(reason.to_owned()), "{text}");
        }
    }
}
