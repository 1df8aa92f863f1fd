//! Owns how the values of a credentials file are read: each has a type, bounds, and a help that says what to
//! write instead. Knows no keys and no sections, which `document` reads.

use std::ops::RangeInclusive;

use jiff::Timestamp;
use toml::de::DeValue;

use super::{entry::STREAMS_MAX, scope::Allowed, token::Digest};
use crate::filter;

/// The value of a scope without bounds.
pub(super) const ALL: &str = "all";

/// The fault of a value, as a clause that follows its key, and what to do.
pub(super) type Problem = (&'static str, &'static str);

pub(super) fn text(
    value: &DeValue<'_>,
    problem: fn(&str) -> Option<&'static str>,
) -> Result<String, Problem> {
    let DeValue::String(text) = value else {
        return Err(("is no text", "write it in quotes"));
    };
    match problem(text) {
        Some(problem) => Err((problem, "write printable text of sensible length")),
        None => Ok(text.as_ref().to_owned()),
    }
}

pub(super) fn digest(value: &DeValue<'_>) -> Result<Digest, Problem> {
    let digest = match value {
        DeValue::String(text) => Digest::parse(text),
        _ => None,
    };
    digest.ok_or((
        "is not 64 hexadecimal digits",
        "write the SHA-256 of the token, never the token: printf %s \"$TOKEN\" | sha256sum",
    ))
}

pub(super) fn allowed(
    value: &DeValue<'_>,
    problem: fn(&str) -> Option<&'static str>,
) -> Result<Allowed, Problem> {
    let help = "write a list of names in quotes, such as [\"user.created\", \"user.session.*\"], \
                or \"all\"";
    let items = match value {
        DeValue::String(text) if text == ALL => return Ok(Allowed::All),
        DeValue::Array(items) => items,
        _ => return Err(("is no list", help)),
    };
    if items.len() > filter::ENTRIES_MAX {
        return Err((
            "has more than 256 entries",
            "use patterns, or fewer entries",
        ));
    }
    let mut names = Vec::with_capacity(items.len());
    for item in items.iter() {
        let DeValue::String(name) = item.get_ref() else {
            return Err(("has an entry that is no text", help));
        };
        if let Some(problem) = problem(name) {
            return Err(("has an entry that cannot be meant", problem));
        }
        names.push(name.as_ref().to_owned());
    }
    Ok(Allowed::Only(names))
}

pub(super) fn count(value: &DeValue<'_>) -> Result<usize, Problem> {
    number(value, 1..=STREAMS_MAX).ok_or((
        "is no whole number from 1 to 10000000",
        "write how many the credential may have open at once, or leave the key out",
    ))
}

pub(super) fn bytes(value: &DeValue<'_>) -> Result<usize, Problem> {
    number(value, 1..=1 << 40).ok_or((
        "is no whole number of bytes, at most 1 TiB",
        "write how much memory its unread responses may take, or leave the key out",
    ))
}

fn number(value: &DeValue<'_>, bounds: RangeInclusive<usize>) -> Option<usize> {
    let number = match value {
        DeValue::Integer(number) => usize::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    };
    number.filter(|number| bounds.contains(number))
}

pub(super) fn timestamp(value: &DeValue<'_>) -> Result<Timestamp, Problem> {
    let text = match value {
        DeValue::Datetime(datetime) => datetime.to_string(),
        DeValue::String(text) => text.as_ref().to_owned(),
        _ => String::new(),
    };
    text.parse().map_err(|_| {
        (
            "is no point in time",
            "write it with its offset, such as 2027-01-31T12:00:00Z (RFC 3339)",
        )
    })
}
