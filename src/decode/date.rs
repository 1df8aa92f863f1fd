//! Owns what a date in an event means: RFC 3339 (<https://www.rfc-editor.org/rfc/rfc3339#section-5.6>) as
//! a moment of the contract. Knows nothing of which date of an event is whose.

use crate::wire::Timestamp;

/// 0001-01-01T00:00:00Z, where protobuf's timestamps begin.
const FIRST_SECOND: i64 = -62_135_596_800;
/// 9999-12-31T23:59:59Z, where they end.
const LAST_SECOND: i64 = 253_402_300_799;

/// All of a leap second is the last nanosecond of the second before it.
const LEAP_NANOS: i32 = 999_999_999;

/// A text that is a date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Date {
    At(Timestamp),
    /// A date that no timestamp of the contract can hold: outside of the years 1 to 9999 in UTC.
    OutOfRange,
}

impl Date {
    pub(super) fn timestamp(self) -> Option<Timestamp> {
        match self {
            Self::At(at) => Some(at),
            Self::OutOfRange => None,
        }
    }
}

/// Reads a date: RFC 3339, and what else a common parser takes for a date with an offset. `None` where
/// the text is none.
///
/// Digits after the ninth of a fraction are cut off. A leap second is the last nanosecond before it, so
/// that an event in it is not before one of the second that ends there.
pub(super) fn parse(text: &str) -> Option<Date> {
    rfc3339(text.as_bytes()).or_else(|| {
        let at: jiff::Timestamp = text.parse().ok()?;
        let nanos = i32::try_from(at.as_nanosecond().rem_euclid(1_000_000_000)).ok()?;
        // That parser takes a leap second for the one before it, with the same fraction.
        let nanos = if is_in_leap_second(text) {
            LEAP_NANOS
        } else {
            nanos
        };
        let seconds = i64::try_from(at.as_nanosecond().div_euclid(1_000_000_000)).ok()?;
        Some(in_range(seconds, nanos))
    })
}

fn in_range(seconds: i64, nanos: i32) -> Date {
    if (FIRST_SECOND..=LAST_SECOND).contains(&seconds) {
        Date::At(Timestamp { seconds, nanos })
    } else {
        Date::OutOfRange
    }
}

fn rfc3339(mut text: &[u8]) -> Option<Date> {
    let text = &mut text;
    let year = number(text, 4)?;
    one_of(text, b"-")?;
    let month = number(text, 2).filter(|month| (1..=12).contains(month))?;
    one_of(text, b"-")?;
    let day = number(text, 2).filter(|day| (1..=days_of(year, month)).contains(day))?;
    one_of(text, b"Tt ")?;
    let hour = number(text, 2).filter(|hour| *hour < 24)?;
    one_of(text, b":")?;
    let minute = number(text, 2).filter(|minute| *minute < 60)?;
    one_of(text, b":")?;
    let second = number(text, 2).filter(|second| *second <= 60)?;
    let fraction = fraction(text)?;
    let offset = offset(text)?;
    if !text.is_empty() {
        return None;
    }
    let (second, nanos) = match second {
        60 => (59, LEAP_NANOS),
        second => (second, fraction),
    };
    let minutes = (days_to(year, month, day) * 24 + hour) * 60 + minute - offset;
    Some(in_range(minutes * 60 + second, nanos))
}

/// Whether the seconds of a date are 60, however its parts are separated.
fn is_in_leap_second(text: &str) -> bool {
    let time = text.split(['T', 't', ' ']).nth(1).unwrap_or_default();
    let digits = time.bytes().filter(u8::is_ascii_digit);
    digits.skip(4).take(2).eq(*b"60")
}

/// Takes a number of so many digits.
fn number(text: &mut &[u8], digits: usize) -> Option<i64> {
    let (number, rest) = text.split_at_checked(digits)?;
    *text = rest;
    number.iter().try_fold(0, |value, digit| {
        digit
            .is_ascii_digit()
            .then(|| value * 10 + i64::from(digit - b'0'))
    })
}

/// Takes one of these characters.
fn one_of(text: &mut &[u8], characters: &[u8]) -> Option<u8> {
    let (&first, rest) = text.split_first()?;
    *text = rest;
    characters.contains(&first).then_some(first)
}

/// Takes the fraction of a second, if there is one, in nanoseconds.
fn fraction(text: &mut &[u8]) -> Option<i32> {
    let Some(rest) = text.strip_prefix(b".") else {
        return Some(0);
    };
    let count = rest.iter().take_while(|digit| digit.is_ascii_digit());
    let (digits, rest) = rest.split_at_checked(count.count())?;
    *text = rest;
    if digits.is_empty() {
        return None;
    }
    let padded = digits.iter().chain(std::iter::repeat(&b'0')).take(9);
    Some(padded.fold(0, |nanos, digit| nanos * 10 + i32::from(digit - b'0')))
}

/// Takes the offset from UTC, in minutes.
fn offset(text: &mut &[u8]) -> Option<i64> {
    let sign = match one_of(text, b"Zz+-")? {
        b'+' => 1,
        b'-' => -1,
        _ => return Some(0),
    };
    let hours = number(text, 2).filter(|hours| *hours < 24)?;
    one_of(text, b":")?;
    let minutes = number(text, 2).filter(|minutes| *minutes < 60)?;
    Some(sign * (hours * 60 + minutes))
}

fn days_of(year: i64, month: i64) -> i64 {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the Gregorian calendar, by counting years that begin with March, so that a
/// leap day is the last one of its year.
fn days_to(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719,468 days from 0000-03-01 to 1970-01-01.
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Option<(i64, i32)> {
        let at = parse(text)?.timestamp()?;
        Some((at.seconds, at.nanos))
    }

    #[test]
    fn a_fraction_has_any_number_of_digits_and_nine_of_them_count() {
        for (text, nanos) in [
            ("2025-03-15T10:30:00Z", 0),
            ("2025-03-15T10:30:00.1Z", 100_000_000),
            ("2025-03-15T10:30:00.123456789Z", 123_456_789),
            ("2025-03-15T10:30:00.1234567890Z", 123_456_789),
            ("2025-03-15T10:30:00.12345678999999999999Z", 123_456_789),
            ("2025-03-15t12:30:00.5+02:00", 500_000_000),
        ] {
            assert_eq!(at(text), Some((1_742_034_600, nanos)), "{text}");
        }
    }

    #[test]
    fn a_leap_second_is_between_the_seconds_beside_it() {
        let texts = [
            "2016-12-31T23:59:59Z",
            "2016-12-31T23:59:59.9Z",
            "2016-12-31T23:59:60Z",
            "2016-12-31T23:59:60.5Z",
            "2017-01-01T00:00:00Z",
        ];
        assert!(texts.is_sorted_by_key(|text| at(text).unwrap()));
        assert_eq!(at(texts[3]), Some((1_483_228_799, 999_999_999)));
        // In other offsets, and as other standards write it.
        for text in [
            "2016-12-31t23:59:60z",
            "2017-01-01 05:29:60.123+05:30",
            "2016-12-31T15:59:60.000000000001-08:00",
            "2016-12-31T23:59:60,5Z",
            "20161231T235960.5Z",
            "20161231T185960.25-0500",
        ] {
            assert_eq!(at(text), Some((1_483_228_799, 999_999_999)), "{text}");
        }
        assert_eq!(at("20161231T105960.6+1100"), at("2016-12-30T23:59:60Z"));
        assert_eq!(
            at("20161231T235959.60Z"),
            Some((1_483_228_799, 600_000_000))
        );
    }

    #[test]
    fn every_offset_is_read() {
        let utc = at("2025-03-15T10:30:00Z").unwrap().0;
        for (offset, seconds) in [
            ("-00:00", 0),
            ("+00:00", 0),
            ("+23:59", -86_340),
            ("-23:59", 86_340),
            ("+05:45", -20_700),
        ] {
            let text = format!("2025-03-15 10:30:00{offset}");
            assert_eq!(at(&text), Some((utc + seconds, 0)), "{text}");
        }
    }

    #[test]
    fn dates_that_the_contract_cannot_hold_are_dates() {
        assert_eq!(at("9999-12-31T23:59:59Z"), Some((LAST_SECOND, 0)));
        assert_eq!(at("0001-01-01T00:00:00Z"), Some((FIRST_SECOND, 0)));
        for text in [
            "9999-12-31T23:59:59-00:01",
            "0001-01-01T00:00:00+00:01",
            "0000-12-31T23:59:59Z",
        ] {
            assert_eq!(parse(text), Some(Date::OutOfRange), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_is_none() {
        for text in [
            "",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:61Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00Z ",
            "2026-01-01T00:00:00+24:00",
            "+026-01-01T00:00:00Z",
            "١٩٧٠-01-01T00:00:00Z",
        ] {
            assert_eq!(rfc3339(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        /// Against a parser that we did not write, wherever that has an answer.
        #[test]
        fn dates_are_what_another_parser_reads(
            seconds in FIRST_SECOND..253_402_207_200,
            nanos in 0..1_000_000_000_i32,
            offset in -1_439_i32..1_440,
        ) {
            let moment = jiff::Timestamp::new(seconds, nanos).unwrap();
            let offset = jiff::tz::Offset::from_seconds(offset * 60).unwrap();
            let text = moment.display_with_offset(offset).to_string();
            // A year before 1 or after 9999 in that offset is no RFC 3339.
            prop_assume!(text.starts_with(|first: char| first.is_ascii_digit()));
            prop_assert_eq!(rfc3339(text.as_bytes()), Some(in_range(seconds, nanos)), "{}", text);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9TZtz:.+ -]{0,40}") {
            parse(&text);
        }
    }
}
