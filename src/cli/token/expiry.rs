//! When a new token expires: the flags that say so, and what holds without them.

use std::time::Duration;

use jiff::Timestamp;

use super::super::exit::{Exit, Failure};
use crate::{
    config::{self, show_duration},
    credentials::{EXPIRY_WARNING, Entry},
};

/// What a token is valid for if nothing else is said. Long enough not to surprise anybody, and short enough
/// that a token that was forgotten somewhere ends.
const LIFE: Duration = Duration::from_secs(365 * 86_400);
const NEVER: &str = "never";

/// The flags of the commands that make a token.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ExpiryArgs {
    /// Expire after this time, such as 90d or 12h, or `never` [default: 365d for a new token, for a rotated
    /// one what the one before had; a certificate has an expiry of its own]
    #[arg(long, value_name = "DURATION", conflicts_with = "expires_at")]
    expires_in: Option<String>,

    /// Expire at this time (RFC 3339), such as 2027-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
}

impl ExpiryArgs {
    /// When a new credential expires; `None` for never.
    pub(super) fn of_new(
        &self,
        is_certificate: bool,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Failure> {
        self.resolve((!is_certificate).then_some(LIFE), now)
    }

    /// When the new token of this credential expires: by default, it is valid for as long as the current one
    /// was made for.
    pub(super) fn of_rotated(
        &self,
        entry: Option<&Entry>,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Failure> {
        let life = entry.and_then(|entry| {
            let life = entry.expires_at?.duration_since(entry.created_at?);
            Duration::try_from(life).ok()
        });
        self.resolve(Some(life.filter(|it| !it.is_zero()).unwrap_or(LIFE)), now)
    }

    fn resolve(
        &self,
        default: Option<Duration>,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Failure> {
        let at = match (&self.expires_in, &self.expires_at, default) {
            (Some(text), _, _) if text == NEVER => return Ok(None),
            (Some(text), _, _) => {
                let duration = duration("--expires-in", text)?;
                now.checked_add(duration).map_err(|_| {
                    let cause = format!("--expires-in: `{text}` is too long");
                    Failure::new(Exit::Usage, cause)
                        .help("write `never` for a credential that never expires")
                })?
            }
            (None, Some(text), _) => text.parse().map_err(|_| {
                let cause = format!("--expires-at: `{text}` is no point in time");
                Failure::new(Exit::Usage, cause)
                    .help("write it with its offset, such as `2027-01-31T12:00:00Z` (RFC 3339)")
            })?,
            (None, None, Some(life)) => now.checked_add(life).unwrap_or(Timestamp::MAX),
            (None, None, None) => return Ok(None),
        };
        if at <= now {
            return Err(Failure::new(Exit::Usage, "it would have expired already")
                .help("give a time that is to come"));
        }
        // Rounded up, or the shortest would be over before they begin.
        let whole = at.as_second() + i64::from(at.subsec_nanosecond() > 0);
        Ok(Some(Timestamp::from_second(whole).unwrap_or(at)))
    }
}

/// A duration of a flag.
pub(super) fn duration(flag: &str, text: &str) -> Result<Duration, Failure> {
    config::parse_duration(text).map_err(|reason| {
        Failure::new(Exit::Usage, format!("{flag}: {reason}"))
            .help("write a number with its unit, such as `90d` or `12h`")
    })
}

/// What to say of the expiry of a credential that was just made.
pub(super) fn advice(entry: &Entry) -> String {
    let name = &entry.name;
    match entry.expires_at {
        Some(at) => format!(
            "it expires at {at}; replace it before with `prelude-bridge token rotate {name}`. `doctor`, \
             /readyz and the bridge's log warn {} before",
            show_duration(EXPIRY_WARNING)
        ),
        None => format!(
            "it never expires; replace it from time to time with `prelude-bridge token rotate {name}`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{Proof, Scope, Token};

    const DAY: i64 = 86_400;

    fn args(expires_in: Option<&str>) -> ExpiryArgs {
        ExpiryArgs {
            expires_in: expires_in.map(str::to_owned),
            expires_at: None,
        }
    }

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(day * DAY).unwrap()
    }

    #[test]
    fn a_token_lasts_a_year_and_a_certificate_as_long_as_it_does() {
        let expiry = |in_, is_certificate| args(in_).of_new(is_certificate, at(0)).unwrap();
        assert_eq!(expiry(None, false), Some(at(365)));
        assert_eq!(expiry(None, true), None);
        assert_eq!(expiry(Some("never"), false), None);
        assert_eq!(expiry(Some("90d"), true), Some(at(90)));
        for bad in ["Never", "0s", "-1d", "90", "soon", ""] {
            assert!(args(Some(bad)).of_new(false, at(0)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rotated_token_lasts_as_long_as_the_one_before() {
        let entry = |created: Option<i64>, expires: Option<i64>| Entry {
            name: "billing".to_owned(),
            proof: Proof::Token(Token::generate().unwrap().digest()),
            previous: None,
            scope: Scope::default(),
            streams_max: None,
            connections_max: None,
            unsent_bytes_max: None,
            created_at: created.map(at),
            expires_at: expires.map(at),
        };
        for (created, expires, life) in [
            (Some(10), Some(100), 90),
            (None, Some(100), 365),
            (Some(10), None, 365),
            (Some(10), Some(10), 365),
            (Some(11), Some(10), 365),
        ] {
            let entry = entry(created, expires);
            let expiry = args(None).of_rotated(Some(&entry), at(50)).unwrap();
            assert_eq!(expiry, Some(at(50 + life)), "{created:?} {expires:?}");
            let never = args(Some("never")).of_rotated(Some(&entry), at(50));
            assert_eq!(never.unwrap(), None);
        }
    }
}
