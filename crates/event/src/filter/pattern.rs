//! Owns the patterns of event types: what is one, what one matches, and when one covers another.
//! Knows nothing of filters made of them.

use super::ENTRY_BYTES_MAX;

/// What is wrong with a name (of an app, a user, a type), and what to do; `None` for a good one.
/// Never repeats the name: it may be anything.
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

/// What is wrong with an event type or pattern, and what to do; `None` for a good one.
#[must_use]
pub fn type_problem(entry: &str) -> Option<&'static str> {
    if let Some(problem) = text_problem(entry) {
        return Some(problem);
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
                return Some("has a * inside a segment: * stands for a whole segment");
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
        let names = ["a", "b", "other"];
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
            vec(select(vec!["a", "b", "*"]), 0..SEGMENTS_MAX - 1),
            select(vec!["a", "b", "*", "**"]),
        )
            .prop_map(|(mut segments, last)| {
                segments.push(last);
                segments.join(".")
            })
    }

    proptest! {
        #[test]
        fn a_pattern_covers_another_if_it_matches_every_type_that_the_other_matches(
            allowed in patterns(),
            wanted in patterns(),
        ) {
            let counterexample = all_types()
                .into_iter()
                .find(|name| matches(&wanted, name) && !matches(&allowed, name));
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
        ] {
            assert_eq!(covers(allowed, wanted), expected, "{allowed} {wanted}");
        }
    }
}
