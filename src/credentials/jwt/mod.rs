//! Owns JWTs of subscribers: which are taken, and what their claims allow. `jsonwebtoken` verifies
//! signatures and times; this says with which keys and algorithms, and what has to be in them.
//!
//! | claim | has to be |
//! |---|---|
//! | `iss`, `aud` | the configured issuer; the configured audience, or a list with it |
//! | `exp` | in the future, without leeway: when it comes, the streams end |
//! | `nbf` | not in the future by more than a minute, if it is there |
//! | `sub` | the name of the caller: printable, at most 128 bytes; its streams share one quota |
//! | the types claim | what the caller may get; without it, nothing |
//! | the apps claim | likewise, if one is configured; else all apps |

mod attempts;
mod claims;
mod issuer_keys;
mod keys;

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use jsonwebtoken::{Algorithm, Header, TokenData, Validation, errors::ErrorKind};
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep_until};

use self::{
    attempts::{Attempt, Attempts},
    claims::Claims,
    issuer_keys::IssuerKeys,
    keys::KeySet,
};
use super::{
    Refusal,
    grant::{Clock, Holder, Kind, Quota, Quotas},
};
use crate::{
    key_source::{self, FreshKeys, KeySource},
    net::slots::{self, Slot, Slots},
    plain,
};

/// How far the issuer's clock may be ahead of ours.
const LEEWAY_SECONDS: u64 = 60;
/// How many callers may wait for newer keys, or for the turn of an address whose JWTs were refused. Whoever signs with a key that is not known yet is asked to
/// try again, and the fetch for the first of them serves all.
const WAITING_MAX: usize = 64;
/// How many of them may come from one address.
const WAITING_PER_ADDRESS_MAX: usize = 8;
/// How many subjects are remembered before those without a stream are forgotten.
const SUBJECTS_MIN: usize = 1024;

/// Whose JWTs are taken, and what their claims mean.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the issuer publishes its keys: a URL or a JWKS file.
    pub keys: KeySource,
    /// What `iss` has to be.
    pub issuer: String,
    /// What `aud` has to be or to hold.
    pub audience: String,
    /// The claim with the types that the caller may get, exact or patterns: an array of texts, or
    /// one text separated by spaces. What in it is no type is passed over.
    pub types_claim: String,
    /// The claim with the apps, likewise; `None` if JWTs do not restrict them.
    pub apps_claim: Option<String>,
    /// Streams at once of one subject.
    pub streams_max: usize,
    /// When keys are fetched; see there.
    pub refresh: key_source::Options,
}

/// Why a JWT is refused. None of these repeats anything of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    /// A header that cannot be read, or has an algorithm that is not taken.
    #[error(
        "its header is unusable; it has to be signed with RS256, PS256, ES256, EdDSA or a longer \
         variant of them, and have no `crit`"
    )]
    Header,
    /// Not made by the issuer, or changed since.
    #[error("none of the issuer's keys made its signature")]
    Signature,
    /// It is for later.
    #[error("it is not valid yet: check the issuer's clock")]
    NotYet,
    /// From somebody else.
    #[error("its `iss` is not the issuer that this bridge trusts")]
    Issuer,
    /// For somebody else.
    #[error("its `aud` does not name this bridge")]
    Audience,
    /// A claim is missing or of another type.
    #[error("its claims are unusable: `exp`, `iss`, `aud` and a printable `sub` have to be there")]
    Claims,
    /// More types or apps than a filter takes.
    #[error("it allows more than 256 types or apps: use patterns")]
    TooMany,
}

/// Why JWTs cannot be verified at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source of the keys is wrong.
    #[error("the keys of the JWT issuer: {0}")]
    Source(#[from] key_source::Error),
    /// Its document is no set of keys, or has none that can be used.
    #[error("the keys of the JWT issuer: {0}")]
    KeySet(#[from] keys::Fault),
}

impl Error {
    /// The text for a log: what the operator configured is shown, and what the issuer wrote is
    /// withheld where it could be private.
    fn shown(&self) -> String {
        match self {
            Self::Source(error) => format!("the keys of the JWT issuer: {}", error.shown()),
            Self::KeySet(_) => plain::words(self),
        }
    }
}

/// Verifies the JWTs of one issuer.
pub(super) struct Verifier {
    options: Options,
    keys: FreshKeys<IssuerKeys>,
    clock: Clock,
    attempts: Attempts,
    /// The slots of callers that wait for newer keys.
    waiting: Arc<Slots>,
    /// The quota of each subject that has or had a stream.
    quotas: Mutex<HashMap<Box<str>, Weak<Quota>>>,
}

impl Verifier {
    /// Loads the keys and begins to keep them fresh. A URL that is down is no error.
    pub(super) fn open(options: Options, clock: Clock) -> Result<Self, Error> {
        let keys = FreshKeys::open(IssuerKeys, &options.keys, options.refresh.clone(), None)?;
        Ok(Self {
            options,
            keys,
            clock,
            attempts: Attempts::new(),
            waiting: Slots::new(slots::Limits {
                slots_max: WAITING_MAX,
                slots_reserved: 0,
                slots_per_address_max: WAITING_PER_ADDRESS_MAX,
            }),
            quotas: Mutex::default(),
        })
    }

    pub(super) fn read_again(&self) {
        self.keys.read_again();
    }

    pub(super) async fn shutdown(&self) {
        self.keys.shutdown().await;
    }

    pub(super) async fn verify(
        &self,
        token: &str,
        address: Option<IpAddr>,
    ) -> Result<Arc<Holder>, Refusal> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| Fault::Header)?;
        if !keys::ALGORITHMS.contains(&header.alg) || header.crit.is_some() {
            return Err(Fault::Header.into());
        }
        let attempt = self.attempts.begin(address, token);
        let mut attempt = attempt.ok_or(Refusal::Throttled)?;
        if attempt.turn > Instant::now() {
            let waiting = self.wait(address).ok_or(Refusal::Throttled)?;
            sleep_until(attempt.turn).await;
            drop(waiting);
        }
        let decided = self.decide(token, address, &header, &mut attempt).await;
        let claims = decided?;
        attempt.accepted();
        Ok(self.hold(claims))
    }

    /// Verifies a JWT with the keys that are known, or with newer ones.
    async fn decide(
        &self,
        token: &str,
        address: Option<IpAddr>,
        header: &Header,
        attempt: &mut Attempt<'_>,
    ) -> Result<Claims, Refusal> {
        let (keys, attempts) = self.keys.snapshot();
        let mut verdict = self.try_keys(token, &keys, header, attempt);
        if verdict.is_none() {
            // No such key: perhaps it is new.
            let waiting = self.wait(address).ok_or(Refusal::Unavailable)?;
            self.keys.demand(attempts).await;
            drop(waiting);
            let (newer, _) = self.keys.snapshot();
            if newer.is_empty() {
                return Err(Refusal::Unavailable);
            }
            verdict = self.try_keys(token, &newer, header, attempt);
        }
        verdict.unwrap_or(Err(Fault::Signature.into()))
    }

    /// A slot to wait for newer keys or for a turn, if there is one.
    fn wait(&self, address: Option<IpAddr>) -> Option<Slot> {
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let (address, is_shared) = (address.unwrap_or(nobody), address.is_none());
        let entered = self.waiting.enter(address, is_shared, None);
        entered.ok().map(|(slot, _)| slot)
    }

    /// `None` if no key can have made the signature: the only case that newer keys can change.
    fn try_keys(
        &self,
        token: &str,
        keys: &KeySet,
        header: &Header,
        attempt: &mut Attempt<'_>,
    ) -> Option<Result<Claims, Refusal>> {
        let validation = self.validation(header.alg);
        let kid = header.kid.as_deref();
        let mut is_named = false;
        for key in keys.candidates(header.alg, kid) {
            attempt.tried += 1;
            match jsonwebtoken::decode::<Map<String, Value>>(token, key.decoding(), &validation) {
                Ok(TokenData { claims, .. }) => {
                    return Some(Claims::read(&claims, &self.options, (self.clock)()));
                }
                Err(error) => match refusal(error.kind()) {
                    Some(refusal) => return Some(Err(refusal)),
                    None => is_named |= kid.is_some() && key.id() == kid,
                },
            }
        }
        // The issuer says by the name that it is this key, so a forger does not cost a fetch.
        is_named.then(|| Err(Fault::Signature.into()))
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.options.issuer]);
        validation.set_audience(&[&self.options.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation
    }

    fn hold(&self, claims: Claims) -> Arc<Holder> {
        let quota = self.quota(&claims.subject);
        Holder::new(
            Kind::Jwt,
            &claims.subject,
            claims.scope,
            quota,
            Some(claims.expires_at),
            Arc::clone(&self.clock),
        )
    }

    /// All JWTs of a subject share one quota.
    fn quota(&self, subject: &str) -> Arc<Quota> {
        let mut quotas = self.quotas.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(quota) = quotas.get(subject).and_then(Weak::upgrade) {
            return quota;
        }
        // The map has room for twice of what is in use, so that this is rarely done.
        if quotas.len() >= SUBJECTS_MIN && quotas.len() == quotas.capacity() {
            quotas.retain(|_, quota| quota.strong_count() > 0);
        }
        let quota = Quota::new(Quotas {
            streams_max: Some(self.options.streams_max),
            ..Quotas::default()
        });
        quotas.insert(subject.into(), Arc::downgrade(&quota));
        quota
    }
}

/// What a failure of the library means; `None` if it is about the key.
fn refusal(kind: &ErrorKind) -> Option<Refusal> {
    Some(match kind {
        ErrorKind::ExpiredSignature => Refusal::Expired,
        ErrorKind::ImmatureSignature => Fault::NotYet.into(),
        ErrorKind::InvalidIssuer => Fault::Issuer.into(),
        ErrorKind::InvalidAudience => Fault::Audience.into(),
        ErrorKind::MissingRequiredClaim(_)
        | ErrorKind::InvalidClaimFormat(_)
        | ErrorKind::InvalidSubject
        | ErrorKind::Json(_)
        | ErrorKind::Utf8(_)
        | ErrorKind::Base64(_) => Fault::Claims.into(),
        // The signature, the key, or what a later version of the library thinks of: another key
        // may do, and if none does it is refused.
        _ => return None,
    })
}

impl fmt::Debug for Verifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Verifier({})", self.options.issuer)
    }
}

#[cfg(test)]
mod tests;
