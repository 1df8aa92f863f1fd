//! The known name most like the one that was typed, for every "did you mean". Pure.

/// How alike two names have to be for one to be taken for the other, from 0 to 1.
const LIKENESS_MIN: f64 = 0.6;

/// The known name most like the typed one, if one is like it at all.
pub fn nearest<'k>(typed: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    nearest_by(known, |name| likeness(typed, name))
}

/// As [`nearest`], by a likeness of the caller's.
pub fn nearest_by<'k>(
    known: impl IntoIterator<Item = &'k str>,
    likeness: impl Fn(&str) -> f64,
) -> Option<&'k str> {
    let known = known.into_iter().map(|name| (likeness(name), name));
    known
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .map(|(_, name)| name)
}

/// How alike two names are, from 0 to 1: the share of characters that need no edit.
pub fn likeness(typed: &str, known: &str) -> f64 {
    strsim::normalized_damerau_levenshtein(typed, known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_similar_name_is_found_and_a_different_one_is_not() {
        let known = ["name", "types", "apps"];
        for (typed, expected) in [
            ("typos", Some("types")),
            ("nmae", Some("name")),
            ("apps", Some("apps")),
            ("streams", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, known), expected, "{typed}");
        }
    }
}
