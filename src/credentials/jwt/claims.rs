//! Owns what the claims of a verified JWT allow. Knows nothing of signatures.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{Fault, Options};
use crate::{
    credentials::{
        Refusal,
        entry::name_problem,
        scope::{Allowed, Scope},
    },
    filter,
};

/// What a JWT says of its caller.
#[derive(Debug)]
pub(super) struct Claims {
    pub(super) subject: String,
    pub(super) scope: Scope,
    pub(super) expires_at: Timestamp,
}

impl Claims {
    /// Reads verified claims. What the library checked with leeway is checked without it here.
    pub(super) fn read(
        claims: &Map<String, Value>,
        options: &Options,
        now: Timestamp,
    ) -> Result<Self, Refusal> {
        let expires_at = claims
            .get("exp")
            .and_then(Value::as_f64)
            .and_then(instant)
            .ok_or(Fault::Claims)?;
        if expires_at <= now {
            return Err(Refusal::Expired);
        }
        let subject = claims.get("sub").and_then(Value::as_str);
        let subject = subject
            .filter(|subject| name_problem(subject).is_none())
            .ok_or(Fault::Claims)?;
        let types = names(claims.get(&options.types_claim), filter::type_problem)?;
        let apps = match &options.apps_claim {
            Some(claim) => Allowed::Only(names(claims.get(claim), filter::text_problem)?),
            None => Allowed::All,
        };
        Ok(Self {
            subject: subject.to_owned(),
            scope: Scope {
                types: Allowed::Only(types),
                apps,
            },
            expires_at,
        })
    }
}

/// Seconds since 1970, with a fraction where the issuer likes one (RFC 7519, `NumericDate`).
fn instant(seconds: f64) -> Option<Timestamp> {
    let since = Duration::try_from_secs_f64(seconds).ok()?;
    Timestamp::UNIX_EPOCH.checked_add(since).ok()
}

/// The names in a claim; none if there is no such claim. A claim such as `scope` has words for
/// others in it too, so what is no name here is passed over: that allows less, never more.
fn names(
    claim: Option<&Value>,
    problem: fn(&str) -> Option<&'static str>,
) -> Result<Vec<String>, Fault> {
    let words: Vec<&str> = match claim {
        Some(Value::String(text)) => text.split_ascii_whitespace().collect(),
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => {
            Vec::new()
        }
    };
    let names = words.into_iter().filter(|word| problem(word).is_none());
    let names: Vec<String> = names.map(str::to_owned).collect();
    if names.len() > filter::ENTRIES_MAX {
        return Err(Fault::TooMany);
    }
    Ok(names)
}
