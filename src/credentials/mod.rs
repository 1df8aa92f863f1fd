//! Owns who may subscribe, and to what: by the tokens and certificate identities of a file that it watches,
//! and by JWTs of a configured issuer. It ends what it granted when a credential ends.
//!
//! ```text
//! authorization: Bearer pb_…  ── token ── set ────┐
//! authorization: Bearer a.b.c ── jwt ─────────────┼── Grant ── narrow   what of a filter is allowed
//! client certificate ─────────── set ─────────────┤       ├── enter    a slot of the quota
//! nothing ────────────── if anonymous is allowed ─┘       └── ended    revoked, changed, expired
//! credentials.toml ── watch ── file ── document ── set ── tracking   last uses, expiries
//! token rotate ── rotation ── edit ── file
//! ```
//!
//! It knows nothing of connections, streams and statuses: other rooms translate its [`Refusal`]s. Tokens
//! never reach its logs, errors and `Debug` output.
//!
//! # When the file changes
//! - A token or certificate that is not in it any more ends its streams ([`Ended::Revoked`]). So does another
//!   scope or quota ([`Ended::Changed`]): their clients resume, with the new scope. A second token, and another
//!   expiry, end nothing before it comes.
//! - A file that cannot be read, is wrong, is still being written (`settle`) or was cut short
//!   changes nothing: the last good set stays in force, and an error is logged. So a mistake in the file
//!   neither revokes anything nor lets anybody in.
//! - A file that is deleted, or empty, lets nobody in, as if all its credentials had been revoked. That holds
//!   after a restart too: a record in the data directory (`record`) says that credentials were in force.

mod certificate;
mod document;
mod edit;
mod entry;
mod expiry;
mod file;
mod grant;
pub mod jwt;
mod last_use;
mod record;
mod rotation;
mod scope;
mod set;
mod settle;
mod token;
mod tracking;
mod value;
mod watch;

use std::{fmt, io, net::IpAddr, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{net::tls::Identity, plain};

pub use self::{
    certificate::CertificateName,
    document::{Document, ENTRIES_MAX},
    entry::{
        Entry, Fault, NAME_BYTES_MAX, PreviousToken, Proof, STREAMS_MAX, app_problem,
        identity_problem, name_problem,
    },
    expiry::{EXPIRY_WARNING, Expiry, expiry_warning},
    file::{File, Rotated},
    grant::{CountedConnection, CountedFilter, Ended, Grant, Kind, Quota, QuotaReached, QuotaSlot},
    last_use::LastUse,
    record::{Record, Recorded},
    rotation::{Rotation, RotationError},
    scope::{Allowed, Forbidden, Scope},
    token::{Digest, Token},
};
use self::{
    grant::{Clock, Holder, Quotas},
    set::Set,
    token::Bearer,
    watch::{FileState, Recording, Watcher},
};

/// Where credentials are, and who needs none.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The file of tokens and identities. It may be created later; from then on callers need a credential.
    pub file: Option<PathBuf>,
    /// Whether the operator named that file: then callers need a credential also while it is missing.
    pub file_is_named: bool,
    /// Where the bridge records that credentials were in force. Without a record, it cannot know after a
    /// restart whether a file that is missing was ever there.
    pub record: Option<Record>,
    /// Whose JWTs are accepted.
    pub jwt: Option<jwt::Options>,
    /// Whether callers without a credential are let in although others have one. Where there are
    /// no credentials at all, everybody is let in, and the server decides who can connect.
    pub anonymous: bool,
}

/// Who may subscribe. A cheap handle; the file is watched until the last one is dropped.
#[derive(Clone)]
pub struct Credentials {
    shared: Arc<SharedCredentials>,
    tasks: TaskTracker,
    stop: Arc<DropGuard>,
}

/// What a caller shows.
#[derive(Clone, Copy, Default)]
pub struct Presented<'a> {
    /// Where it calls from; `None` if many callers share the address.
    pub address: Option<IpAddr>,
    /// The value of its `authorization` header. If there is one, nothing else counts.
    pub authorization: Option<&'a [u8]>,
    /// The name in the client certificate that its connection was verified with.
    pub certificate: Option<&'a Identity>,
    /// When that certificate ends. Whatever else the caller shows, its connection was let in by the
    /// certificate, so nothing is granted for longer.
    pub certificate_expires_at: Option<Timestamp>,
}

/// Why a caller is not let in. The text says what to do, and nothing of which credentials exist.
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
    /// No credential has this token or certificate, or none has it any more.
    #[error(
        "the credential is not known or was revoked: check it for typing errors, or get a new one \
         from the operator of this bridge"
    )]
    Unknown,
    /// No entry names this certificate, which has only a common name: an entry without a kind does not match
    /// that.
    #[error(
        "the certificate is not known: it has no subject alternative name, and a common name counts \
         only where the operator of this bridge has written it with its kind, as `cn:NAME`"
    )]
    UnknownCommonName,
    /// It has expired.
    #[error("the credential has expired: get a new one from whoever issued it")]
    Expired,
    /// It is a JWT that is not accepted.
    #[error("the JWT is refused: {0}")]
    Jwt(#[from] jwt::Fault),
    /// It is a JWT, and no key is known to verify it with, and too many callers wait for newer keys, or
    /// there are none. A retry may be accepted.
    #[error("the keys that JWTs are verified with cannot be had at present: try again later")]
    Unavailable,
    /// It is a JWT, and was not looked at: too many others from its address were refused. A retry may be
    /// accepted.
    #[error("too many JWTs from your address were refused: try again later")]
    Throttled,
}

/// Why credentials cannot be used or changed.
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
    /// The tokens of this credential cannot be changed so.
    #[error("the credential `{name}` is not changed: {source}")]
    Rotation {
        /// The name.
        name: String,
        /// Why not.
        source: RotationError,
    },
    /// The keys of JWTs cannot be had, for a reason that a person has to correct.
    #[error(transparent)]
    Jwt(#[from] jwt::Error),
}

/// The state of the credentials file, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Credentials of the file.
    pub credentials: usize,
    /// Why the present file is not in force; `None` if it is.
    pub fault: Option<String>,
    /// How many changes of the file came into force.
    pub reloads: u64,
    /// How many were refused.
    pub reloads_refused: u64,
}

struct SharedCredentials {
    state: tokio::sync::watch::Sender<FileState>,
    jwt: Option<jwt::Verifier>,
    anonymous_is_let: bool,
    anonymous: Arc<Holder>,
    clock: Clock,
}

impl Credentials {
    /// Everybody may do everything: for a port that only this machine reaches.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::new(true, None, FileState::default(), system_clock()).0
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
            None => (None, FileState::default()),
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
        if let Some(mut watcher) = watcher {
            // The task holds what it writes to, but not the guard that ends it.
            let shared = Arc::clone(&credentials.shared);
            credentials.tasks.spawn(async move {
                stop.run_until_cancelled(watcher.run(&shared)).await;
                watcher.finish(&shared).await;
            });
        }
        Ok(credentials)
    }

    fn new(
        anonymous_is_let: bool,
        jwt: Option<jwt::Verifier>,
        state: FileState,
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
            shared: Arc::new(SharedCredentials {
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
    /// It does not wait, except for the key of a JWT if that is not known yet: up to the 5 s that fetching it
    /// may take, and up to a second while many JWTs of the same address are refused. Few callers wait for that;
    /// others are refused at once.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn authenticate(&self, presented: Presented<'_>) -> Result<Grant, Refusal> {
        let holder = self.shared.find(presented).await?;
        let grant = Grant::new(holder, presented.certificate_expires_at);
        if grant.is_expired() {
            return Err(Refusal::Expired);
        }
        grant.note_use();
        Ok(grant)
    }

    /// The state of the credentials file.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.state.borrow().status()
    }

    /// When each credential of the file expires that does.
    #[must_use]
    pub fn expiries(&self) -> Vec<Expiry> {
        self.shared.set().expiries().cloned().collect()
    }

    /// What the operator has to correct although the bridge runs, in words that may be shown to everybody:
    /// the fault of the file, or which credentials expire soon.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        if let Some(fault) = self.status().fault {
            return Some(plain::words(fault));
        }
        expiry::warning(&self.expiries(), (self.shared.clock)())
    }

    /// Requests the keys of JWTs now, and does not wait for them. The credentials file needs no request: it is
    /// read ten times a second.
    pub fn read_again(&self) {
        if let Some(jwt) = &self.shared.jwt {
            jwt.read_again();
        }
    }

    /// Stops the watch, and waits until it has written what is due. The credentials stay in force.
    pub async fn shutdown(&self) {
        self.stop.token().cancel();
        self.tasks.wait().await;
        if let Some(jwt) = &self.shared.jwt {
            jwt.shutdown().await;
        }
    }
}

impl SharedCredentials {
    /// The credentials of the file that are in force.
    fn set(&self) -> Arc<Set> {
        Arc::clone(&self.state.borrow().set)
    }

    fn is_configured(&self) -> bool {
        self.jwt.is_some() || self.state.borrow().is_required
    }

    async fn find(&self, presented: Presented<'_>) -> Result<Arc<Holder>, Refusal> {
        if !self.is_configured() {
            // Without credentials, whatever a caller shows is ignored.
            return Ok(Arc::clone(&self.anonymous));
        }
        let set = self.set();
        match (presented.authorization, presented.certificate) {
            (Some(header), _) => match Bearer::parse(header).ok_or(Refusal::Malformed)? {
                Bearer::Token(token) => {
                    let holder = set.of_token(&Digest::of(token));
                    holder.cloned().ok_or(Refusal::Unknown)
                }
                Bearer::Jwt(token) => match &self.jwt {
                    Some(verifier) => verifier.verify(token, presented.address).await,
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

/// Names what was shown, without the secrets.
impl fmt::Debug for Presented<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Presented")
            .field("authorization", &self.authorization.is_some())
            .field("certificate", &self.certificate.map(Identity::as_str))
            .field("certificate_expires_at", &self.certificate_expires_at)
            .finish_non_exhaustive()
    }
}

#[cfg(fuzzing)]
pub(crate) use edit::fuzzing;

#[cfg(test)]
mod tests;
