//! Owns the entries of filters: which are well-formed, what the patterns of event types match, and when one
//! covers another. Knows nothing of filters made of them.

use super::ENTRY_BYTES_MAX;
use crate::event::{ID_BYTES_MAX, TYPE_BYTES_MAX};

/// What stands before an event type that is to be taken as it is. By it every type can be named: also one
/// that reads as a pattern, or begins with this itself, and none.
const EXACT: char = '=';

/// An entry that names event types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TypeEntry<'a> {
    Exact(&'a str),
    Pattern(&'a str),
}

impl<'a> TypeEntry<'a> {
    /// Reads an entry that is good by [`type_problem`].
    pub(super) fn read(entry: &'a str) -> Self {
        match entry.strip_prefix(EXACT) {
            Some(exact) => Self::Exact(exact),
            None if entry.contains('*') => Self::Pattern(entry),
            None => Self::Exact(entry),
        }
    }
}

/// The entry that names exactly this event type.
pub(super) fn exactly(event_type: &str) -> String {
    let is_plain =
        !event_type.is_empty() && !event_type.contains('*') && !event_type.starts_with(EXACT);
    if is_plain {
        event_type.to_owned()
    } else {
        format!("{EXACT}{event_type}")
    }
}

/// What is wrong with the id of an app, and what to do; `None` for a good one. Never repeats the name: it
/// may be anything.
#[must_use]
pub fn text_problem(entry: &str) -> Option<&'static str> {
    if entry.is_empty() {
        Some("is empty: leave the entry out, an empty list means all")
    } else if entry.len() > ENTRY_BYTES_MAX {
        Some("is longer than 256 bytes: no such name exists")
    } else if entry.chars().any(char::is_control) {
        Some("contains a control character: remove it")
    } else {
        None
    }
}

/// What is wrong with a user id, and what to do; `None` for a good one, which is any that an event may have.
#[must_use]
pub fn user_problem(entry: &str) -> Option<&'static str> {
    if entry.is_empty() {
        Some("is empty: leave the entry out, an empty list means all")
    } else if entry.len() > ID_BYTES_MAX {
        Some("is longer than 1024 bytes: no event has such a user id")
    } else {
        None
    }
}

/// What is wrong with an event type or pattern, and what to do; `None` for a good one. Every type that an
/// event may have is good, if need be with `=` before it; patterns have to be well-formed.
#[must_use]
pub fn type_problem(entry: &str) -> Option<&'static str> {
    let name = entry.strip_prefix(EXACT);
    if name.unwrap_or(entry).len() > TYPE_BYTES_MAX {
        return Some("is longer than 256 bytes: no event has such a type");
    }
    if name.is_some() {
        return None;
    }
    if entry.is_empty() {
        return Some(
            "is empty: leave the entry out, an empty list means all; = names the events without a type",
        );
    }
    if !entry.contains('*') {
        return None;
    }
    let mut segments = entry.split('.').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "" => return Some("has an empty segment: write one dot between two segments"),
            "**" if segments.peek().is_some() => {
                return Some("has ** before its end: ** is only for the last segment, use *");
            }
            "*" | "**" => {}
            _ if segment.contains('*') => {
                return Some(
                    "has a * inside a segment: * stands for a whole segment; a type that has a * is \
                     named with = before it",
                );
            }
            _ => {}
        }
    }
    None
}

/// Whether an event type matches a pattern. Both of the pattern's kinds of `*` stand for whole
/// segments.
pub(super) fn matches(pattern: &str, event_type: &str) -> bool {
    let mut segments = event_type.split('.');
    for wanted in pattern.split('.') {
        match (wanted, segments.next()) {
            (_, None) => return false,
            // Only ever the last: it takes this segment and all that follow.
            ("**", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(segment)) if wanted == segment => {}
            _ => return false,
        }
    }
    segments.next().is_none()
}

/// Whether `allowed` matches every event type that `wanted` matches; each is an exact type or a
/// pattern, and good by [`type_problem`].
///
/// Exact for one pattern against one. It does not see that several together may cover another
/// (`a.*` and `a.*.**` cover `a.**`), so a permission made of such parts has to be asked for part
/// by part.
#[must_use]
pub fn covers(allowed: &str, wanted: &str) -> bool {
    match (TypeEntry::read(allowed), TypeEntry::read(wanted)) {
        (TypeEntry::Exact(allowed), TypeEntry::Exact(wanted)) => allowed == wanted,
        // Of no pattern there is only one type.
        (TypeEntry::Exact(_), TypeEntry::Pattern(_)) => false,
        (TypeEntry::Pattern(allowed), TypeEntry::Exact(wanted)) => matches(allowed, wanted),
        (TypeEntry::Pattern(allowed), TypeEntry::Pattern(wanted)) => {
            pattern_covers(allowed, wanted)
        }
    }
}

fn pattern_covers(allowed: &str, wanted: &str) -> bool {
    let mut wanted = wanted.split('.');
    for allowed in allowed.split('.') {
        match (allowed, wanted.next()) {
            // Fewer segments than are allowed: another type.
            (_, None) => return false,
            ("**", Some(_)) => return true,
            // More segments than are allowed, or other ones: there are always such types.
            (_, Some("**")) => return false,
            ("*", Some(_)) => {}
            // A wanted `*` stands for more than the one segment that is allowed.
            (allowed, Some(wanted)) if allowed == wanted => {}
            _ => return false,
        }
    }
    wanted.next().is_none()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    /// One segment more than any pattern below has, so that `**` shows that it is longer than they.
    const SEGMENTS_MAX: usize = 5;

    /// Every type of up to five segments out of two names and one that no pattern names.
    fn all_types() -> Vec<String> {
        let names = ["a", "b", "other", "*", "**"];
        let mut all: Vec<String> = Vec::new();
        let mut longest: Vec<String> = names.map(str::to_owned).to_vec();
        for _ in 0..SEGMENTS_MAX {
            all.extend_from_slice(&longest);
            longest = longest
                .iter()
                .flat_map(|start| names.map(|name| format!("{start}.{name}")))
                .collect();
        }
        all
    }

    fn patterns() -> impl Strategy<Value = String> {
        (
            select(vec!["", "", "", "="]),
            vec(select(vec!["a", "b", "*"]), 0..SEGMENTS_MAX - 1),
            select(vec!["a", "b", "*", "**"]),
        )
            .prop_map(|(prefix, mut segments, last)| {
                segments.push(last);
                format!("{prefix}{}", segments.join("."))
            })
    }

    proptest! {
        #[test]
        fn a_pattern_covers_another_if_it_matches_every_type_that_the_other_matches(
            allowed in patterns(),
            wanted in patterns(),
        ) {
            let takes = |entry: &str, name: &str| match TypeEntry::read(entry) {
                TypeEntry::Exact(exact) => exact == name,
                TypeEntry::Pattern(pattern) => matches(pattern, name),
            };
            let counterexample = all_types()
                .into_iter()
                .find(|name| takes(&wanted, name) && !takes(&allowed, name));
            prop_assert_eq!(
                covers(&allowed, &wanted),
                counterexample.is_none(),
                "{} {} {:?}", allowed, wanted, counterexample
            );
        }

        #[test]
        fn nothing_that_is_typed_makes_the_comparison_panic(allowed: String, wanted: String) {
            let _ = covers(&allowed, &wanted);
        }
    }

    proptest! {
        /// Whatever an event may be called.
        #[test]
        fn every_type_can_be_named_exactly(event_type in ".{0,60}|[=*.]{0,6}|[\\x00-\\x1f.*]{0,6}") {
            let entry = exactly(&event_type);
            prop_assert_eq!(type_problem(&entry), None);
            prop_assert_eq!(TypeEntry::read(&entry), TypeEntry::Exact(&event_type));
            let always = format!("={event_type}");
            prop_assert_eq!(type_problem(&always), None);
            prop_assert_eq!(TypeEntry::read(&always), TypeEntry::Exact(&event_type));
        }
    }

    #[test]
    fn only_what_is_well_formed_is_a_pattern() {
        for good in [
            "user..x", "\t", "a b", "ü", "user.*", "=a*b", "=", "==", "*", "**", "a.**",
        ] {
            assert_eq!(type_problem(good), None, "{good}");
        }
        for bad in ["", "a*b", "*a", "a.**.b", "a..*", "***", ".*", "*."] {
            assert!(type_problem(bad).is_some(), "{bad}");
        }
        for (bytes, is_good) in [(TYPE_BYTES_MAX, true), (TYPE_BYTES_MAX + 1, false)] {
            let name = "x".repeat(bytes);
            assert_eq!(type_problem(&name).is_none(), is_good);
            assert_eq!(type_problem(&format!("={name}")).is_none(), is_good);
        }
    }

    #[test]
    fn what_a_pattern_covers() {
        for (allowed, wanted, expected) in [
            ("user.created", "user.created", true),
            ("user.created", "user.*", false),
            ("user.*", "user.created", true),
            ("user.*", "user.*", true),
            ("user.*", "user.**", false),
            ("user.*", "user.session.created", false),
            ("user.**", "user.*", true),
            ("user.**", "user.session.*", true),
            ("user.**", "user", false),
            ("user.**", "**", false),
            ("**", "**", true),
            ("**", "user.created", true),
            ("*", "user.created", false),
            ("*.created", "user.created", true),
            ("user.created", "*.created", false),
            ("=user.created", "user.created", true),
            ("user.created", "=user.created", true),
            ("=user.*", "user.*", false),
            ("=user.*", "user.created", false),
            ("user.*", "=user.*", true),
            ("user.**", "=user..x", true),
            ("user.*", "user.", true),
            ("**", "=", true),
            ("*", "=", true),
            ("=", "**", false),
            ("=", "=", true),
            ("==", "=", false),
        ] {
            assert_eq!(covers(allowed, wanted), expected, "{allowed} {wanted}");
        }
    }
}
