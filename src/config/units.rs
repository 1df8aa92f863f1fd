//! Durations and sizes as people write them: `15s`, `1h30m`, `30d`; `64KiB`, `10GiB`.
//! Owns the grammar and its messages; knows nothing of settings.

use std::{fmt, time::Duration};

/// Milliseconds in each unit of a duration, longest first, which is also the order of printing.
const DURATION_UNITS: [(&str, u64); 6] = [
    ("w", 7 * 24 * 60 * 60 * 1000),
    ("d", 24 * 60 * 60 * 1000),
    ("h", 60 * 60 * 1000),
    ("m", 60 * 1000),
    ("s", 1000),
    ("ms", 1),
];

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

    /// The number of bytes, as a count of things in memory.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
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

/// Reads a duration: numbers with the units `ms`, `s`, `m`, `h`, `d` (24 h) and `w`, longest
/// first or in any order, as in `1h30m`.
///
/// # Errors
/// A clause that says what is wrong with the text, fit to follow the name of a setting.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err("it is empty".to_owned());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (count, unit, after) = split_quantity(rest)?;
        let Some((_, scale)) = DURATION_UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(match unit {
                "" => format!("`{}` has no unit", text.trim()),
                _ => format!("`{}` has the unknown unit `{unit}`", text.trim()),
            });
        };
        total = count
            .checked_mul(*scale)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(|| format!("`{}` is too long", text.trim()))?;
        rest = after.trim_start();
    }
    Ok(Duration::from_millis(total))
}

/// Writes a duration so that [`parse_duration`] reads it back; parts under a millisecond are
/// dropped.
pub fn show_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    // Weeks are understood but not printed: `30d` says more than `4w2d`.
    for (unit, scale) in DURATION_UNITS.iter().skip(1) {
        if rest >= *scale {
            text.push_str(&format!("{}{unit}", rest / scale));
            rest %= scale;
        }
    }
    text
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
    let (count, unit, after) = split_quantity(text)?;
    if !after.is_empty() {
        return Err(format!("`{text}` has more than one number"));
    }
    let scale = match unit {
        "" => 1,
        _ => SIZE_UNITS
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

/// Splits `10GiB rest` into its number, its unit and what follows.
fn split_quantity(text: &str) -> Result<(u64, &str, &str), String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    if number.is_empty() {
        return Err(format!("`{text}` does not start with a whole number"));
    }
    let count = number
        .parse()
        .map_err(|_| format!("`{number}` is too large a number"))?;
    let rest = rest.trim_start();
    let letters = rest
        .find(|c: char| c.is_ascii_digit() || c.is_whitespace())
        .unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(letters);
    Ok((count, unit, rest.trim_start()))
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
            ("30d", 2_592_000_000),
            ("2w", 1_209_600_000),
            ("0s", 0),
            (" 5 s ", 5_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
    }

    #[test]
    fn a_duration_that_is_none_says_why() {
        for (text, reason) in [
            ("", "it is empty"),
            ("15", "`15` has no unit"),
            ("15 parsecs", "`15 parsecs` has the unknown unit `parsecs`"),
            ("soon", "`soon` does not start with a whole number"),
            ("-5s", "`-5s` does not start with a whole number"),
            ("1.5h", "`1.5h` has the unknown unit `.`"),
            (
                "18446744073709551615w",
                "`18446744073709551615w` is too long",
            ),
        ] {
            assert_eq!(parse_duration(text), Err(reason.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_shown_of_a_duration_reads_back_the_same() {
        for text in ["15s", "30d", "1h30m", "1d1ms", "0s", "8s500ms"] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(show_duration(duration), text);
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
            ("1GiB1MiB", "`1GiB1MiB` has more than one number"),
        ] {
            assert_eq!(parse_size(text), Err(reason.to_owned()), "{text}");
        }
    }
}
