//! Owns who may subscribe, and to what: tokens and certificate identities out of a file that is
//! watched, JWTs of a configured issuer, and the news of their end.
//!
//! ```text
//! authorization: Bearer pb_…  ── token ── set ────┐
//! authorization: Bearer a.b.c ── jwt ─────────────┼── Grant ── narrow   what of a filter is allowed
//! client certificate ─────────── set ─────────────┤       ├── enter    a place under the quota
//! nothing ────────────────────── if that is let ──┘       └── ended    revoked, changed, expired
//! credentials.toml ── watch ── file ── document ── set
//! ```
//!
//! It knows nothing of connections, streams and statuses: a refusal is a [`Refusal`] that others
//! translate. Tokens have no way into its logs, errors and `Debug`.
//!
//! # When the file changes
//! - A credential that is gone ends the streams under it ([`Ended::Revoked`]), one that means
//!   something else ends them too ([`Ended::Changed`]): they come back with their cursor, and to
//!   their new scope.
//! - A file that cannot be read, is wrong, is still being written (`settle`) or was cut short
//!   changes nothing: the last good set stays in force, and an error is logged. So a slip of the
//!   hand neither locks everybody out nor lets anybody in.
//! - A file that is deleted means nobody, as if all its credentials had been revoked: whoever
//!   deletes it in alarm is right. It does not mean everybody, and neither does an empty one. That
//!   holds after a restart too: a record in the data directory (`record`) says that credentials
//!   were in force.

mod certificate;
mod document;
mod entry;
mod file;
mod grant;
pub mod jwt;
mod record;
mod scope;
mod set;
mod settle;
mod token;
mod value;
mod watch;

use std::{fmt, io, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::net::tls::Identity;

pub use self::{
    certificate::CertificateName,
    document::{Document, ENTRIES_MAX},
    entry::{
        Entry, Fault, NAME_BYTES_MAX, Proof, STREAMS_MAX, app_problem, identity_problem,
        name_problem,
    },
    file::File,
    grant::{CountedConnection, CountedFilter, Ended, Grant, Kind, Place, Quota, QuotaReached},
    record::{Record, Recorded},
    scope::{Allowed, Forbidden, Scope},
    token::{Digest, Token},
};
use self::{
    grant::{Clock, Holder, Quotas},
    token::Bearer,
    watch::{Recording, State, Watcher},
};

/// Where credentials are, and who needs none.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The file of tokens and identities. It may come into being later; once it has been there,
    /// callers need a credential.
    pub file: Option<PathBuf>,
    /// Whether the operator named that file: then it counts as there even while it is missing.
    pub file_is_named: bool,
    /// Where it is recorded that credentials were in force. Without a record, a file that is lost
    /// while the bridge does not run cannot be told from one that never was.
    pub record: Option<Record>,
    /// Whose JWTs are taken.
    pub jwt: Option<jwt::Options>,
    /// Whether callers without a credential are let in although others have one. Where there are
    /// no credentials at all, everybody is let in, and the wiring sees to it who can connect.
    pub anonymous: bool,
}

/// Who may subscribe. A cheap handle; the file is watched until the last one is dropped.
#[derive(Clone)]
pub struct Credentials {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: Arc<DropGuard>,
}

/// What a caller shows.
#[derive(Clone, Copy, Default)]
pub struct Presented<'a> {
    /// The value of its `authorization` header. Where there is one, it alone is judged.
    pub authorization: Option<&'a [u8]>,
    /// The name in the client certificate that its connection was verified with.
    pub certificate: Option<&'a Identity>,
    /// When that certificate ends. Whatever else the caller shows, its connection was let in by the
    /// certificate, so nothing is granted for longer.
    pub certificate_expires_at: Option<Timestamp>,
}

/// Why a caller is not let in. The text says what to do, and tells nothing of what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// It showed nothing.
    #[error(
        "a credential is needed: send the header `authorization: Bearer TOKEN`, with a token from \
         the operator of this bridge"
    )]
    Missing,
    /// Its header cannot be meant.
    #[error(
        "the authorization header holds no usable token: send `Bearer` and the token, one space \
         between them"
    )]
    Malformed,
    /// Nobody has this token or certificate, or not any more.
    #[error(
        "the credential is not known or was revoked: check it for typing errors, or get a new one \
         from the operator of this bridge"
    )]
    Unknown,
    /// Nobody has this certificate, and it has nothing but a common name, which an entry without a
    /// kind does not mean.
    #[error(
        "the certificate is not known: it has no subject alternative name, and a common name counts \
         only where the operator of this bridge has written it with its kind, as `cn:NAME`"
    )]
    UnknownCommonName,
    /// Its time is over.
    #[error("the credential has expired: get a new one from whoever issued it")]
    Expired,
    /// It is a JWT that does not hold.
    #[error("the JWT is refused: {0}")]
    Jwt(#[from] jwt::Fault),
    /// It is a JWT, and there are no keys to verify it with. The same may be accepted later.
    #[error("the keys that JWTs are verified with cannot be had at present: try again later")]
    Unavailable,
}

/// What keeps credentials from being used or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("the credentials file {} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is wrong.
    #[error("the credentials file {} is not usable: {}", path.display(), list(faults))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// At least one.
        faults: Vec<Fault>,
    },
    /// The file had its last line, and has it no more.
    #[error(
        "the credentials file {} has lost its last line `[end]`, so it may be cut short: write the \
         whole file, with that line", path.display()
    )]
    CutShort {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("the credentials file {} cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The lock of the file cannot be had.
    #[error("the lock {} cannot be had: {source}", path.display())]
    Lock {
        /// The lock.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another credential has the same name or identity.
    #[error("the credential `{name}` in {} has this {what}", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
        /// `name` or `identity`.
        what: &'static str,
        /// The name of the other.
        name: String,
    },
    /// There is no such credential.
    #[error("there is no credential `{name}` in {}", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// The keys of JWTs cannot be had, for a reason that a person has to correct.
    #[error(transparent)]
    Jwt(#[from] jwt::Error),
}

/// What there is at this moment, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Credentials of the file.
    pub credentials: usize,
    /// Why the file as it is now is not in force, or that it is missing; `None` when all is well.
    pub fault: Option<String>,
    /// How many times the file was found changed and taken over.
    pub reloads: u64,
    /// How many times it was found changed and refused.
    pub reloads_refused: u64,
}

struct Shared {
    state: tokio::sync::watch::Sender<State>,
    jwt: Option<jwt::Verifier>,
    anonymous_is_let: bool,
    anonymous: Arc<Holder>,
    clock: Clock,
}

impl Credentials {
    /// Everybody may do everything: for a port that only this machine reaches.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::new(true, None, State::default(), system_clock()).0
    }

    /// Reads the credentials and begins to watch them.
    ///
    /// # Errors
    /// What a person has to correct: a file that cannot be read or is wrong, keys of JWTs that can
    /// never be had.
    pub async fn open(options: Options) -> Result<Self, Error> {
        Self::open_with_clock(options, system_clock()).await
    }

    async fn open_with_clock(options: Options, clock: Clock) -> Result<Self, Error> {
        let (watcher, state) = match &options.file {
            Some(file) => {
                let file = File::new(file.clone());
                let (watcher, state) = Watcher::open(file, &options, &clock).await?;
                (Some(watcher), state)
            }
            None => (None, State::default()),
        };
        let mut recording = Recording::new(options.record);
        if options.jwt.is_some() && recording.read().await.is_none() {
            recording.write(Recorded::default()).await;
        }
        let jwt = match options.jwt {
            Some(options) => Some(jwt::Verifier::open(options, Arc::clone(&clock))?),
            None => None,
        };
        let (credentials, stop) = Self::new(options.anonymous, jwt, state, clock);
        if let Some(watcher) = watcher {
            // The task holds what it writes to, but not the guard that ends it.
            let shared = Arc::clone(&credentials.shared);
            credentials.tasks.spawn(async move {
                stop.run_until_cancelled_owned(watcher.run(shared)).await;
            });
        }
        Ok(credentials)
    }

    fn new(
        anonymous_is_let: bool,
        jwt: Option<jwt::Verifier>,
        state: State,
        clock: Clock,
    ) -> (Self, CancellationToken) {
        let everything = Scope::default();
        let holder = Holder::new(
            Kind::Anonymous,
            "anonymous",
            everything,
            Quota::new(Quotas::default()),
            None,
            Arc::clone(&clock),
        );
        let stop = CancellationToken::new();
        let credentials = Self {
            shared: Arc::new(Shared {
                state: tokio::sync::watch::Sender::new(state),
                jwt,
                anonymous_is_let,
                anonymous: holder,
                clock,
            }),
            tasks: TaskTracker::new(),
            stop: Arc::new(stop.clone().drop_guard()),
        };
        credentials.tasks.close();
        (credentials, stop)
    }

    /// Whether callers need a credential: there is a file, even one without credentials, or there was
    /// one, or there is an issuer of JWTs. Once true it stays so, also over restarts.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.shared.is_configured()
    }

    /// Lets a caller in, or says why not.
    ///
    /// Takes no time to speak of, except for a JWT whose key is not known yet: up to the 5 s that
    /// fetching it may take.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn authenticate(&self, presented: Presented<'_>) -> Result<Grant, Refusal> {
        let holder = self.shared.find(presented).await?;
        let grant = Grant::new(holder, presented.certificate_expires_at);
        if grant.is_expired() {
            return Err(Refusal::Expired);
        }
        Ok(grant)
    }

    /// What there is at this moment.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.state.borrow().status()
    }

    /// Has the keys of JWTs read now, without waiting for it. The file of credentials is read all
    /// the time.
    pub fn read_again(&self) {
        if let Some(jwt) = &self.shared.jwt {
            jwt.read_again();
        }
    }

    /// Stops watching, and waits for that. What is known goes on holding.
    pub async fn shutdown(&self) {
        self.stop.token().cancel();
        self.tasks.wait().await;
        if let Some(jwt) = &self.shared.jwt {
            jwt.shutdown().await;
        }
    }
}

impl Shared {
    fn is_configured(&self) -> bool {
        self.jwt.is_some() || self.state.borrow().is_required
    }

    async fn find(&self, presented: Presented<'_>) -> Result<Arc<Holder>, Refusal> {
        if !self.is_configured() {
            // Nothing that could be shown means anything here.
            return Ok(Arc::clone(&self.anonymous));
        }
        let set = Arc::clone(&self.state.borrow().set);
        match (presented.authorization, presented.certificate) {
            (Some(header), _) => match Bearer::parse(header).ok_or(Refusal::Malformed)? {
                Bearer::Token(token) => {
                    let holder = set.of_token(&Digest::of(token));
                    holder.cloned().ok_or(Refusal::Unknown)
                }
                Bearer::Jwt(token) => match &self.jwt {
                    Some(verifier) => verifier.verify(token).await,
                    None => Err(Refusal::Unknown),
                },
            },
            (None, Some(identity)) => match set.of_certificate(identity) {
                Some(holder) => Ok(Arc::clone(holder)),
                None => self.anonymous().ok_or(if identity.is_common_name() {
                    Refusal::UnknownCommonName
                } else {
                    Refusal::Unknown
                }),
            },
            (None, None) => self.anonymous().ok_or(Refusal::Missing),
        }
    }

    fn anonymous(&self) -> Option<Arc<Holder>> {
        self.anonymous_is_let.then(|| Arc::clone(&self.anonymous))
    }
}

fn system_clock() -> Clock {
    Arc::new(Timestamp::now)
}

fn list(faults: &[Fault]) -> String {
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    faults.join("; ")
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status();
        formatter
            .debug_struct("Credentials")
            .field("credentials", &status.credentials)
            .field("jwt", &self.shared.jwt.is_some())
            .field("anonymous", &self.shared.anonymous_is_let)
            .finish_non_exhaustive()
    }
}

/// Says what was shown, not what it is.
impl fmt::Debug for Presented<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Presented")
            .field("authorization", &self.authorization.is_some())
            .field("certificate", &self.certificate.map(Identity::as_str))
            .field("certificate_expires_at", &self.certificate_expires_at)
            .finish()
    }
}

#[cfg(test)]
mod tests;
