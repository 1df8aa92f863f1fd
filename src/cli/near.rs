//! Owns what is said of a name that was probably misspelt: an event type that none of the known
//! ones is, an app that is not configured. It is said and not refused: new types need no release of
//! this program, and an app may be configured later. Pure.

use std::collections::BTreeSet;

use crate::{decode, filter, nearest::nearest};

/// What to say of a type or pattern that fits no known type; `None` where one fits, and for what is
/// no pattern, which is refused anyway.
pub(super) fn doubt_of_type(flag: &str, pattern: &str) -> Option<String> {
    let is_known = || decode::event_types().any(|known| filter::covers(pattern, known));
    if filter::type_problem(pattern).is_some() || is_known() || is_of_known_prefix(pattern) {
        return None;
    }
    let known = decode::event_types().map(|known| with_wildcards(pattern, known));
    let known: BTreeSet<String> = known.collect();
    let doubt =
        format!("`{flag} {pattern}` matches none of the event types that this release knows");
    Some(match nearest(pattern, known.iter().map(String::as_str)) {
        Some(near) => format!("{doubt}; did you mean `{near}`?"),
        None => format!("{doubt}: check it for typing errors"),
    })
}

/// Whether Prelude documents types that begin like this one, and this release knows none of them.
fn is_of_known_prefix(pattern: &str) -> bool {
    let first = |name: &str| name.split('.').next().map(str::to_owned);
    let mut known = decode::event_types().map(first);
    decode::Product::of_type(pattern).is_some() && !known.any(|known| known == first(pattern))
}

/// What to say of an app that is none of those that are known; `None` where it is, and where none
/// are known.
pub(super) fn doubt_of_app(flag: &str, id: &str, known: &BTreeSet<String>) -> Option<String> {
    if known.is_empty() || known.contains(id) {
        return None;
    }
    let doubt = format!("`{flag} {id}` is none of the apps that the bridge is configured for");
    Some(match nearest(id, known.iter().map(String::as_str)) {
        Some(near) => format!("{doubt}; did you mean `{near}`?"),
        None => {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            format!("{doubt}: {}", known.join(", "))
        }
    })
}

/// A known type with the wildcards of a pattern, so that a suggestion is as wide as what was typed:
/// `user.sesion.*` is near to `user.session.*`, and not to `user.session.created`.
fn with_wildcards(pattern: &str, known: &str) -> String {
    let mut wanted = pattern.split('.');
    let mut segments = Vec::new();
    for segment in known.split('.') {
        match wanted.next() {
            Some("**") => {
                segments.push("**");
                break;
            }
            Some("*") => segments.push("*"),
            Some(_) | None => segments.push(segment),
        }
    }
    segments.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_that_is_known_or_a_pattern_that_matches_one_raises_no_doubt() {
        for pattern in decode::event_types() {
            assert_eq!(doubt_of_type("--type", pattern), None);
        }
        for event_type in crate::simulator::EventType::ALL {
            assert_eq!(doubt_of_type("--type", event_type.as_str()), None);
        }
        for pattern in [
            "**",
            "user.*",
            "user.**",
            "user.*.created",
            "*.session.*",
            "verify.*",
            "*.hook_failed",
            "transactional.message.*",
            // Documented, and passed on as any other type.
            "subscription.updated",
            "marketing.**",
            "inbound.*",
        ] {
            assert_eq!(doubt_of_type("--type", pattern), None, "{pattern}");
        }
        // Refused, with a reason of its own.
        for pattern in ["", "user..*", "user.cr*"] {
            assert_eq!(doubt_of_type("--type", pattern), None, "{pattern}");
        }
    }

    #[test]
    fn what_is_near_to_a_known_type_is_told_with_it() {
        for (typed, near) in [
            ("user.craeted", "user.created"),
            ("User.Created", "user.created"),
            ("user.create", "user.created"),
            ("user.sesion.revoked", "user.session.revoked"),
            ("session.revoked", "user.session.revoked"),
            ("user.sesion.*", "user.session.*"),
            ("usr.**", "user.**"),
            ("user..created", "user.created"),
            ("user.profil.*", "user.profile.*"),
            ("verify.atempt", "verify.attempt"),
            ("stepup.hook_failed", "step_up.hook_failed"),
            ("transactional.mesage.*", "transactional.message.*"),
        ] {
            let doubt = doubt_of_type("--type", typed).unwrap();
            assert!(
                doubt.contains(&format!("`--type {typed}`"))
                    && doubt.ends_with(&format!("; did you mean `{near}`?")),
                "{doubt}"
            );
        }
        let doubt = doubt_of_type("--exclude-type", "order.paid.in.full").unwrap();
        assert!(
            doubt.starts_with("`--exclude-type order.paid.in.full`")
                && !doubt.contains("did you mean"),
            "{doubt}"
        );
    }

    #[test]
    fn an_app_is_doubted_only_where_apps_are_known() {
        let none = BTreeSet::new();
        assert_eq!(doubt_of_app("--app", "54e9ujn", &none), None);
        let known = ["54e9ujn", "7k2mzqa"].map(str::to_owned).into();
        assert_eq!(doubt_of_app("--app", "54e9ujn", &known), None);
        let doubt = doubt_of_app("--app", "54e9unj", &known).unwrap();
        assert!(doubt.ends_with("did you mean `54e9ujn`?"), "{doubt}");
        let doubt = doubt_of_app("--app", "another", &known).unwrap();
        assert!(doubt.ends_with(": 54e9ujn, 7k2mzqa"), "{doubt}");
    }
}
