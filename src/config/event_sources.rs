//! The sources of events: what sends deliveries, which keys sign them, and for an app of Prelude Auth the
//! verification token. An `[[apps]]` section is a source of kind auth.
//!
//! | file | owns |
//! |---|---|
//! | `typed` | what the file and the environment say of each source |
//! | `checks` | the validation of ids, kinds and verification tokens |
//! | `keys` | the validation of where keys come from |

mod checks;
mod keys;
mod typed;

use std::path::{Path, PathBuf};

pub use self::checks::read_verification_tokens;
#[cfg(test)]
pub(super) use self::typed::KEYS;
pub(super) use self::{
    checks::take,
    typed::{VARIABLES, remove_variables_without_token},
};
use super::{
    fault::Origin,
    resolver::Resolver,
    secret::Secret,
    value::{self, quoted},
};
use crate::key_source::{self, FetchFault};

/// The longest verification token that Prelude's API accepts, in characters.
pub const TOKEN_CHARS_MAX: usize = 100;

/// The longest id of a source: the id of an app is a label of a host name.
pub const SOURCE_ID_CHARS_MAX: usize = 63;

/// The variable that names the one app of a bridge without a file.
pub const APP_ID_VARIABLE: &str = "PRELUDE_BRIDGE_APP_ID";

/// One source of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSource {
    /// What its events have as `app_id`, and the last segment of its path. For an app, its id as Prelude
    /// shows it, such as `54e9ujn`.
    pub id: String,
    /// Which product of Prelude sends its events.
    pub kind: SourceKind,
    /// How it is activated: for kind auth, and no other.
    pub activation: Option<Activation>,
    /// Where the keys come from that sign its deliveries.
    pub keys: KeySource,
    /// Where the source was configured.
    pub origin: Origin,
}

/// A product of Prelude, which determines the form of deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceKind {
    /// Prelude Auth (formerly Session): batches of an app, after an activation challenge.
    Auth,
    /// Prelude Verify: one event in each delivery.
    Verify,
    /// Prelude Notify: one event in each delivery.
    Notify,
}

/// The activation of an app's webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// What Prelude has to send in the activation challenge.
    pub token: Secret,
    /// Another token that is accepted too, while the first replaces it.
    pub old_token: Option<Secret>,
    /// Where the tokens were read from.
    pub token_source: TokenSource,
}

/// Where a verification token was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// A file that holds it, and perhaps the one before on a second line, and nothing else.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
}

/// Where the keys of a source come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A key set that is fetched: over https, or over http from this machine.
    JwksUrl(String),
    /// A key set in a file.
    JwksFile(PathBuf),
    /// Public keys in PEM files, of which each has one or more.
    PemFiles(Vec<PathBuf>),
}

impl SourceKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Auth, Self::Verify, Self::Notify];

    /// How it is written in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Verify => "verify",
            Self::Notify => "notify",
        }
    }

    /// What a source of this kind is called in messages.
    #[must_use]
    pub fn noun(self) -> &'static str {
        match self {
            Self::Auth => "app",
            Self::Verify | Self::Notify => "source",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == text)
    }
}

impl KeySource {
    /// The files that are read; none for a URL.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        match self {
            Self::JwksUrl(_) => &[],
            Self::JwksFile(path) => std::slice::from_ref(path),
            Self::PemFiles(paths) => paths,
        }
    }

    /// The same for the part that reads it.
    ///
    /// # Errors
    /// The URL is not allowed.
    pub fn open(&self) -> Result<key_source::KeySource, FetchFault> {
        match self {
            Self::JwksUrl(url) => key_source::KeySource::url(url),
            Self::JwksFile(path) => Ok(key_source::KeySource::JwksFile(path.clone())),
            Self::PemFiles(paths) => Ok(key_source::KeySource::PemFiles(paths.clone())),
        }
    }

    /// The key of the configuration and its value in TOML. Paths are absolute.
    pub(super) fn describe(&self) -> (&'static str, String) {
        let path = |path: &Path| quoted(&value::absolute(path).to_string_lossy());
        match self {
            Self::JwksUrl(url) => ("jwks_url", quoted(url)),
            Self::JwksFile(file) => ("jwks_file", path(file)),
            Self::PemFiles(files) => match files.as_slice() {
                [file] => ("pem_file", path(file)),
                files => {
                    let files: Vec<String> = files.iter().map(|file| path(file)).collect();
                    ("pem_files", format!("[{}]", files.join(", ")))
                }
            },
        }
    }
}

/// The ids of sources for a message, such as `apps: 54e9ujn; sources: calls (verify)`.
#[must_use]
pub fn list_sources(sources: &[EventSource]) -> String {
    let (apps, others): (Vec<_>, Vec<_>) = sources
        .iter()
        .partition(|source| source.kind == SourceKind::Auth);
    let apps: Vec<&str> = apps.iter().map(|app| app.id.as_str()).collect();
    let others = others.iter();
    let others = others.map(|source| format!("{} ({})", source.id, source.kind.name()));
    let others: Vec<String> = others.collect();
    let lists = [("apps", apps.join(", ")), ("sources", others.join(", "))];
    let lists = lists.iter().filter(|(_, ids)| !ids.is_empty());
    let lists: Vec<String> = lists.map(|(name, ids)| format!("{name}: {ids}")).collect();
    lists.join("; ")
}

/// Where Prelude publishes the keys of an app that has no domain of its own.
#[must_use]
pub fn default_jwks_url(app_id: &str) -> String {
    format!("https://{app_id}.session.prelude.dev/.well-known/jwks.json")
}

/// The file with the token of an app for which no other is named: `prelude-bridge webhook setup` writes
/// it, and `serve` reads it.
#[must_use]
pub fn default_token_file(data_dir: &Path, app_id: &str) -> PathBuf {
    data_dir.join("tokens").join(format!("{app_id}.txt"))
}

/// A source as far as it is known before it has a token: for the command that creates tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// As it was typed.
    pub id: String,
    /// The kind; auth if it is missing or unknown, which is refused later.
    pub kind: SourceKind,
    /// The token's source, which only an app has.
    pub token_source: TokenSource,
}

/// The sources that were typed, with tokens or without.
pub(super) fn planned(resolver: &mut Resolver<'_>, data_dir: &Path) -> Vec<Planned> {
    let typed = typed::typed(resolver).into_iter();
    let planned = typed.filter_map(|source| {
        let kind = source.kind.and_then(|kind| SourceKind::parse(&kind.text));
        let id = source.id?.text;
        let token_source = match (source.token_file, source.token_variable) {
            (Some(file), _) => TokenSource::File(file.text.into()),
            (None, Some(variable)) => TokenSource::Variable(variable.text),
            (None, None) => TokenSource::File(default_token_file(data_dir, &id)),
        };
        Some(Planned {
            id,
            kind: kind.unwrap_or(SourceKind::Auth),
            token_source,
        })
    });
    planned.collect()
}
