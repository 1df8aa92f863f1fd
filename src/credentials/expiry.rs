//! Owns when a credential is close to its expiry, so that operators hear of it before its subscribers do.
//! Pure. The old token of a rotation does not count: it expires on purpose.

use std::{fmt, time::Duration};

use jiff::Timestamp;

use super::entry::Entry;
use crate::plain;

/// How long before its expiry a credential is warned of. One that was made for a shorter time than four
/// times this is warned of in the last quarter of it.
pub const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 86_400);

/// How many credentials a warning names.
const NAMED_MAX: usize = 8;

/// When a credential expires.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Expiry {
    /// The name of the credential.
    pub name: Box<str>,
    /// When it expires.
    pub expires_at: Timestamp,
    warned_from: Timestamp,
}

impl Expiry {
    /// When this credential expires; `None` if it never does.
    #[must_use]
    pub fn of(entry: &Entry) -> Option<Self> {
        let expires_at = entry.expires_at?;
        let quarter = entry.created_at.and_then(|at| {
            let life = Duration::try_from(expires_at.duration_since(at)).ok()?;
            Some(life / 4)
        });
        let warning = quarter.map_or(EXPIRY_WARNING, |quarter| quarter.min(EXPIRY_WARNING));
        Some(Self {
            name: entry.name.as_str().into(),
            expires_at,
            warned_from: expires_at.checked_sub(warning).unwrap_or(Timestamp::MIN),
        })
    }

    /// Whether it is over.
    #[must_use]
    pub fn has_come(&self, now: Timestamp) -> bool {
        self.expires_at <= now
    }

    /// Whether it is close, and not over.
    #[must_use]
    pub fn is_soon(&self, now: Timestamp) -> bool {
        self.warned_from <= now && !self.has_come(now)
    }
}

/// A warning of the credentials that expire soon; `None` if none does.
pub(super) fn warning(expiries: &[Expiry], now: Timestamp) -> Option<String> {
    let soon = named(expiries, |expiry| expiry.is_soon(now))?;
    Some(format!(
        "credentials expire soon: {soon}; replace a token with `prelude-bridge token rotate`"
    ))
}

/// A warning of the credentials that expire soon, and of those that have expired; `None` if none does.
#[must_use]
pub fn expiry_warning(entries: &[Entry], now: Timestamp) -> Option<String> {
    let expiries: Vec<Expiry> = entries.iter().filter_map(Expiry::of).collect();
    let expired = named(&expiries, |expiry| expiry.has_come(now)).map(|expired| {
        format!(
            "credentials have expired: {expired}; replace a token with `prelude-bridge token rotate`, or \
             remove it with `token revoke`"
        )
    });
    let warnings: Vec<String> = [warning(&expiries, now), expired]
        .into_iter()
        .flatten()
        .collect();
    (!warnings.is_empty()).then(|| warnings.join("; "))
}

/// Those of the expiries that are wanted, the earliest first; `None` if there are none.
fn named(expiries: &[Expiry], is_wanted: impl Fn(&Expiry) -> bool) -> Option<String> {
    let mut wanted: Vec<&Expiry> = expiries.iter().filter(|expiry| is_wanted(expiry)).collect();
    wanted.sort_by_key(|expiry| expiry.expires_at);
    let first: Vec<String> = wanted
        .iter()
        .take(NAMED_MAX)
        .map(ToString::to_string)
        .collect();
    let more = match wanted.len().checked_sub(NAMED_MAX) {
        Some(more @ 1..) => format!(" and {more} more"),
        _ => String::new(),
    };
    (!wanted.is_empty()).then(|| first.join(", ") + &more)
}

/// `billing at 2026-11-24T14:00:00Z`
impl fmt::Display for Expiry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = plain::name(&self.name);
        write!(formatter, "{name} at {}", self.expires_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{Proof, Scope, token::Digest};

    const DAY: i64 = 86_400;

    fn expiry(created: Option<i64>, expires: Option<i64>) -> Option<Expiry> {
        let at = |seconds: Option<i64>| seconds.map(|it| Timestamp::from_second(it).unwrap());
        Expiry::of(&Entry {
            name: "billing".to_owned(),
            proof: Proof::Token(Digest::of("1")),
            previous: None,
            scope: Scope::default(),
            streams_max: None,
            connections_max: None,
            unsent_bytes_max: None,
            created_at: at(created),
            expires_at: at(expires),
        })
    }

    #[test]
    fn a_credential_is_warned_of_two_weeks_before_or_in_its_last_quarter() {
        let end = 100 * DAY;
        for (created, first_second) in [
            (None, end - 14 * DAY),
            (Some(0), end - 14 * DAY),
            (Some(end - 56 * DAY), end - 14 * DAY),
            (Some(end - 40 * DAY), end - 10 * DAY),
            (Some(end - 4), end - 1),
            // A clock that was wrong.
            (Some(end + DAY), end - 14 * DAY),
        ] {
            let expiry = expiry(created, Some(end)).unwrap();
            for (second, is_soon) in [
                (first_second - 1, false),
                (first_second, true),
                (end - 1, true),
                (end, false),
            ] {
                let now = Timestamp::from_second(second).unwrap();
                assert_eq!(expiry.is_soon(now), is_soon, "{created:?} {second}");
                assert_eq!(expiry.has_come(now), second == end);
            }
        }
        assert_eq!(expiry(Some(0), None), None);
    }

    #[test]
    fn a_warning_names_the_first_and_counts_the_rest() {
        let now = Timestamp::from_second(99 * DAY).unwrap();
        let soon = |name: String| Expiry {
            name: name.into(),
            ..expiry(None, Some(100 * DAY)).unwrap()
        };
        let late = expiry(None, Some(200 * DAY)).unwrap();
        assert_eq!(warning(std::slice::from_ref(&late), now), None);
        let mut many: Vec<Expiry> = (0..9).map(|index| soon(format!("c{index}"))).collect();
        many.push(late);
        let said = warning(&many, now).unwrap();
        assert!(
            said.contains("c7 at 1970-04-11T00:00:00Z and 1 more"),
            "{said}"
        );
        assert!(!said.contains("c8") && !said.contains("billing"), "{said}");
    }

    #[test]
    fn a_name_that_could_be_private_is_not_shown() {
        let expiry = |name: &str| Expiry {
            name: name.into(),
            ..expiry(None, Some(0)).unwrap()
        };
        assert_eq!(expiry("a").to_string(), "a at 1970-01-01T00:00:00Z");
        let shown = expiry("+1 202 555 0142").to_string();
        assert_eq!(shown, "(withheld) at 1970-01-01T00:00:00Z");
    }
}
