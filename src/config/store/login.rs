//! The login of a store: which of the places that name a password, a token or a credentials file is in
//! force, and its value. The URL and two variables hold the secret itself; the settings say where it is.
//!
//! The login is one thing, however it is given: a login in the environment replaces one in the file, and
//! two in one place are a fault. Reads the files of secrets. Connects to nothing.

use std::{
    cmp::Ordering,
    io,
    path::{Path, PathBuf},
};

use super::{
    super::{
        fault::Origin,
        file::read_text,
        resolver::Resolver,
        secret::Secret,
        value::{self, quoted},
    },
    address::{Engine, Remote, SECRET_BYTES_MAX, is_secret},
};
use crate::permissions::{self, By};

pub(super) const PASSWORD: &str = "PRELUDE_BRIDGE_STORE_PASSWORD";
pub(super) const TOKEN: &str = "PRELUDE_BRIDGE_STORE_TOKEN";

const USER: &str = "store.user";
const CREDENTIALS_FILE: &str = "store.credentials_file";
const PASSWORD_ENV: &str = "store.password_env";
const PASSWORD_FILE: &str = "store.password_file";
const TOKEN_ENV: &str = "store.token_env";
const TOKEN_FILE: &str = "store.token_file";

/// A password or a token, with the file that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSecret {
    /// The secret.
    pub text: Secret,
    /// Its file; `None` if it comes from the environment.
    pub file: Option<PathBuf>,
}

impl StoreSecret {
    /// The secret as it is now: its file may have been changed.
    ///
    /// # Errors
    /// Why the file cannot be used, without its path, which may be a secret by mistake.
    pub fn read_again(&self) -> Result<Secret, String> {
        match &self.file {
            None => Ok(self.text.clone()),
            Some(path) => {
                let text = read_secret_file(path);
                text.map_err(|error| {
                    format!("the file of the password or token cannot be read: {error}")
                })
                .and_then(|text| check(&text).map_err(str::to_owned))
            }
        }
    }
}

/// The login of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// None: the servers let everybody in, or those who have a certificate.
    None,
    /// A credentials file of NATS: a JWT and the seed of a key.
    CredentialsFile(PathBuf),
    /// A token of NATS.
    Token(StoreSecret),
    /// A user, and the user's password if there is one. NATS always has one.
    User {
        /// The user.
        name: String,
        /// The password.
        password: Option<StoreSecret>,
    },
}

/// What the settings say of the login.
pub(super) struct Typed {
    pub(super) user: String,
    pub(super) credentials_file: Option<PathBuf>,
    pub(super) password_env: String,
    pub(super) password_file: Option<PathBuf>,
    pub(super) token_env: String,
    pub(super) token_file: Option<PathBuf>,
}

/// A fault was recorded.
pub(super) struct Refused;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Password,
    Token,
    Credentials,
}

/// Where a secret is.
enum Source {
    /// In the URL.
    Url(Secret),
    Variable(String),
    File(PathBuf),
}

/// One place that gives a login.
struct Candidate {
    /// Its setting or variable.
    name: &'static str,
    kind: Kind,
    source: Source,
    origin: Origin,
}

/// Takes the login, or records its faults.
pub(super) fn take(
    resolver: &mut Resolver<'_>,
    url: (&'static str, &Origin),
    remote: &Remote,
    typed: Typed,
) -> Option<Login> {
    let user = take_user(resolver, url, remote, &typed).ok()?;
    let candidates = candidates(resolver, url, remote, typed);
    let Some(best) = candidates.iter().map(|one| rank(&one.origin)).min() else {
        return without_secret(resolver, remote.engine, user);
    };
    let mut at_best = candidates
        .into_iter()
        .filter(|one| rank(&one.origin) == best);
    let chosen = at_best.next()?;
    if let Some(other) = at_best.next() {
        let reason = format!("`{}` says how to log in too", chosen.name);
        resolver.refuse(other.origin, other.name, &reason, "keep one of them");
        return None;
    }
    if chosen.kind != Kind::Password
        && let Some((_, origin)) = &user
        && rank(origin) <= best
    {
        let reason = format!("`{}` needs no user", chosen.name);
        resolver.refuse(origin.clone(), USER, &reason, "keep one of them");
        return None;
    }
    show(resolver, &chosen, user.as_ref());
    let Candidate {
        name,
        kind,
        source,
        origin,
    } = chosen;
    if let (Kind::Credentials, Source::File(path)) = (kind, &source) {
        return Some(Login::CredentialsFile(path.clone()));
    }
    let secret = read(resolver, name, &origin, source);
    match (kind, user) {
        (Kind::Password, Some((name, _))) => Some(Login::User {
            name,
            password: Some(secret?),
        }),
        (Kind::Password, None) => {
            let help = "set `store.user`, or for a token without a user `store.token_file` or \
                        `PRELUDE_BRIDGE_STORE_TOKEN`";
            resolver.refuse(origin, name, "there is no user with this password", help);
            None
        }
        (Kind::Token | Kind::Credentials, _) => Some(Login::Token(secret?)),
    }
}

/// A login in one of these wins over those of a higher rank, as any setting does.
fn rank(origin: &Origin) -> u8 {
    match origin {
        Origin::Flag(_) => 0,
        Origin::Environment(_) => 1,
        Origin::File { .. } => 2,
        Origin::Default => 3,
    }
}

/// The user of the URL or of the setting, with its place.
fn take_user(
    resolver: &mut Resolver<'_>,
    (_, url_origin): (&str, &Origin),
    remote: &Remote,
    typed: &Typed,
) -> Result<Option<(String, Origin)>, Refused> {
    let origin = resolver.origin_of(USER);
    let of_setting = (!typed.user.is_empty()).then(|| (typed.user.clone(), origin));
    let of_url = remote.user.clone().map(|user| (user, url_origin.clone()));
    let (of_url, of_setting) = match (of_url, of_setting) {
        (Some(of_url), Some(of_setting)) => (of_url, of_setting),
        (of_url, of_setting) => return Ok(of_url.or(of_setting)),
    };
    match rank(&of_url.1).cmp(&rank(&of_setting.1)) {
        Ordering::Less => Ok(Some(of_url)),
        Ordering::Equal if of_url.0 != of_setting.0 => {
            let reason = "the URL of the store has another user";
            resolver.refuse(of_setting.1, USER, reason, "keep one of them");
            Err(Refused)
        }
        Ordering::Equal | Ordering::Greater => Ok(Some(of_setting)),
    }
}

fn without_secret(
    resolver: &mut Resolver<'_>,
    engine: Engine,
    user: Option<(String, Origin)>,
) -> Option<Login> {
    match (engine, user) {
        (_, None) => Some(Login::None),
        (Engine::Postgres, Some((name, origin))) => {
            resolver.show_instead(USER, quoted(&name), origin);
            Some(Login::User {
                name,
                password: None,
            })
        }
        (Engine::Nats, Some((_, origin))) => {
            let help = "write `password_file` or `password_env` in `[store]`, or set \
                        `PRELUDE_BRIDGE_STORE_PASSWORD`";
            resolver.refuse(origin, USER, "there is no password for this user", help);
            None
        }
    }
}

fn candidates(
    resolver: &mut Resolver<'_>,
    (url_key, url_origin): (&'static str, &Origin),
    remote: &Remote,
    typed: Typed,
) -> Vec<Candidate> {
    let mut found = Vec::new();
    let mut add = |name, kind, source: Option<Source>, origin: Origin| {
        found.extend(source.map(|source| Candidate {
            name,
            kind,
            source,
            origin,
        }));
    };
    let is_nats = remote.engine == Engine::Nats;
    let of_url = if is_nats && remote.user.is_none() {
        Kind::Token
    } else {
        Kind::Password
    };
    let secret = remote.secret.clone().map(Source::Url);
    add(url_key, of_url, secret, url_origin.clone());
    let variables = [(PASSWORD, Kind::Password), (TOKEN, Kind::Token)];
    for (name, kind) in variables {
        // The other one is refused as a variable of another store.
        if is_nats || kind == Kind::Password {
            let is_set = resolver.variable(name).is_some();
            let source = is_set.then(|| Source::Variable(name.to_owned()));
            add(name, kind, source, Origin::Environment(name.to_owned()));
        }
    }
    let variable = |name: String| (!name.is_empty()).then_some(Source::Variable(name));
    let settings = [
        (PASSWORD_ENV, Kind::Password, variable(typed.password_env)),
        (
            PASSWORD_FILE,
            Kind::Password,
            typed.password_file.map(Source::File),
        ),
        (TOKEN_ENV, Kind::Token, variable(typed.token_env)),
        (TOKEN_FILE, Kind::Token, typed.token_file.map(Source::File)),
        (
            CREDENTIALS_FILE,
            Kind::Credentials,
            typed.credentials_file.map(Source::File),
        ),
    ];
    for (name, kind, source) in settings {
        if is_nats || kind == Kind::Password {
            add(name, kind, source, resolver.origin_of(name));
        }
    }
    found
}

/// Shows in `config show` the login that is in force, as settings, and no other.
fn show(resolver: &mut Resolver<'_>, chosen: &Candidate, user: Option<&(String, Origin)>) {
    let in_force = match (&chosen.source, chosen.kind) {
        (Source::Url(_), _) => None,
        (Source::Variable(name), Kind::Token) => Some((TOKEN_ENV, quoted(name))),
        (Source::Variable(name), _) => Some((PASSWORD_ENV, quoted(name))),
        (Source::File(path), kind) => {
            let key = match kind {
                Kind::Password => PASSWORD_FILE,
                Kind::Token => TOKEN_FILE,
                Kind::Credentials => CREDENTIALS_FILE,
            };
            Some((key, quoted(&value::absolute(path).to_string_lossy())))
        }
    };
    let keys = [
        CREDENTIALS_FILE,
        PASSWORD_ENV,
        PASSWORD_FILE,
        TOKEN_ENV,
        TOKEN_FILE,
    ];
    for key in keys {
        match &in_force {
            Some((of_login, text)) if *of_login == key => {
                resolver.show_instead(key, text.clone(), chosen.origin.clone());
            }
            _ if resolver.origin_of(key) != Origin::Default => {
                resolver.show_instead(key, quoted(""), chosen.origin.clone());
            }
            _ => {}
        }
    }
    let user = user.filter(|_| chosen.kind == Kind::Password);
    match user {
        Some((name, origin)) => resolver.show_instead(USER, quoted(name), origin.clone()),
        None if resolver.origin_of(USER) != Origin::Default => {
            resolver.show_instead(USER, quoted(""), chosen.origin.clone());
        }
        None => {}
    }
}

fn read(
    resolver: &mut Resolver<'_>,
    name: &str,
    origin: &Origin,
    source: Source,
) -> Option<StoreSecret> {
    let (text, file) = match source {
        Source::Url(text) => return Some(StoreSecret { text, file: None }),
        Source::Variable(variable) => (read_variable(resolver, name, origin, &variable)?, None),
        Source::File(path) => {
            match read_secret_file(&path) {
                Ok(text) => (text, Some(path)),
                Err(error) => {
                    // Not the path: it may be the secret itself, by mistake.
                    let reason = format!("the file that it names cannot be read: {error}");
                    let help = "write the password or token into that file, readable by this user \
                                only; it does not belong in the configuration";
                    resolver.refuse(origin.clone(), name, &reason, help);
                    return None;
                }
            }
        }
    };
    match check(&text) {
        Ok(text) => Some(StoreSecret { text, file }),
        Err(reason) => {
            let help = format!("it has one line of up to {SECRET_BYTES_MAX} bytes");
            resolver.refuse(origin.clone(), name, reason, &help);
            None
        }
    }
}

fn read_secret_file(path: &Path) -> io::Result<String> {
    let limit = (SECRET_BYTES_MAX + "\r\n".len()) as u64;
    let file = permissions::open_regular(path, Some(By::Reader))?;
    read_text(file, limit)
}

/// Takes what was read of a password or token, without the line end that editors and shells add.
fn check(text: &str) -> Result<Secret, &'static str> {
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        Err("the password or token is empty")
    } else if is_secret(text) {
        Ok(Secret::new(text))
    } else if text.len() > SECRET_BYTES_MAX {
        Err("the password or token is too long")
    } else {
        Err("the password or token has a control character in it, such as a second line")
    }
}

/// The text of a variable that is named. An empty variable is an empty secret.
fn read_variable(
    resolver: &mut Resolver<'_>,
    name: &str,
    origin: &Origin,
    variable: &str,
) -> Option<String> {
    if resolver.has_variable(variable) {
        let faults_before = resolver.faults.len();
        let text = resolver.variable(variable).unwrap_or_default();
        return (resolver.faults.len() == faults_before).then_some(text);
    }
    // It may be the secret itself, by mistake.
    let is_of_variable = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let reason = if variable.chars().all(is_of_variable) {
        format!("the variable `{variable}` is not set")
    } else {
        "it names a variable that is not set".to_owned()
    };
    let help = "name the variable that holds the password or token, and set it; the secret itself does \
                not belong in the configuration";
    resolver.refuse(origin.clone(), name, &reason, help);
    None
}
