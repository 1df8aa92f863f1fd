//! The apps whose deliveries are taken: their ids, their tokens, and where their keys come from.
//! Reads token files and checks that key files are there; fetches and parses no keys.

use std::path::{Path, PathBuf};

use http::Uri;

use super::{
    fault::{Fault, Origin},
    file::{self, AppTable, Entry, Kind},
    resolver::{Resolver, nearest},
    secret::Secret,
};

/// The longest verification token that Prelude's API takes, in characters.
pub const TOKEN_CHARS_MAX: usize = 100;

/// The longest app id: it is a label of a host name.
pub const APP_ID_CHARS_MAX: usize = 63;

/// Room for the longest token in the widest characters, and for line ends.
const TOKEN_FILE_BYTES_MAX: u64 = 1024;

const ID: &str = "PRELUDE_BRIDGE_APP_ID";
const TOKEN: &str = "PRELUDE_BRIDGE_VERIFICATION_TOKEN";
const TOKEN_FILE: &str = "PRELUDE_BRIDGE_VERIFICATION_TOKEN_FILE";
const JWKS_URL: &str = "PRELUDE_BRIDGE_JWKS_URL";
const JWKS_FILE: &str = "PRELUDE_BRIDGE_JWKS_FILE";

/// The variables of one app without a file, and those that other commands read.
pub(super) const VARIABLES: [&str; 7] = [
    ID,
    TOKEN,
    TOKEN_FILE,
    JWKS_URL,
    JWKS_FILE,
    super::CONFIG_VARIABLE,
    "PRELUDE_BRIDGE_SERVER",
];

const KEYS: [&str; 6] = [
    "id",
    "verification_token_file",
    "verification_token_env",
    "jwks_url",
    "jwks_file",
    "pem_file",
];

/// One app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// As Prelude shows it, such as `54e9ujn`.
    pub id: String,
    /// What Prelude has to send in the activation challenge.
    pub verification_token: Secret,
    /// Where the token was read from.
    pub token_source: TokenSource,
    /// Where the keys that sign its deliveries come from.
    pub keys: KeySource,
    /// Where the app was configured.
    pub origin: Origin,
}

/// Where a verification token was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// A file that holds it and nothing else.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
}

/// Where the keys of an app come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A key set that is fetched: over https, or over http from this machine.
    JwksUrl(String),
    /// A key set in a file.
    JwksFile(PathBuf),
    /// One public key in a PEM file.
    PemFile(PathBuf),
}

/// Where Prelude publishes the keys of an app that has no domain of its own.
pub fn default_jwks_url(app_id: &str) -> String {
    format!("https://{app_id}.session.prelude.dev/.well-known/jwks.json")
}

/// What was typed for one app, each value with its place.
#[derive(Default)]
struct Typed {
    id: Option<Placed>,
    token_file: Option<Placed>,
    token_variable: Option<Placed>,
    jwks_url: Option<Placed>,
    jwks_file: Option<Placed>,
    pem_file: Option<Placed>,
}

struct Placed {
    text: String,
    origin: Origin,
}

/// All apps: those of the file, and the one of the environment. The latter wins over an app of the
/// file with the same id, value by value.
pub(super) fn take(resolver: &mut Resolver<'_>) -> Vec<App> {
    let mut typed = apps_of_file(resolver);
    refuse_repeated_ids(resolver, &typed);
    add_app_of_environment(resolver, &mut typed);
    typed
        .into_iter()
        .filter_map(|(place, app)| check(resolver, place, app))
        .collect()
}

fn apps_of_file(resolver: &mut Resolver<'_>) -> Vec<(Origin, Typed)> {
    let Some(document) = resolver.document.take() else {
        return Vec::new();
    };
    if let Some(entry) = document.entries.get("apps") {
        resolver.refuse(
            document.at(entry.line),
            "apps",
            "it is not a list of tables",
            "write `[[apps]]`, with two brackets, once for each app",
        );
    }
    let apps = document
        .apps
        .iter()
        .map(|table| {
            let app = read_table(resolver, &document, table);
            (document.at(table.line), app)
        })
        .collect();
    resolver.document = Some(document);
    apps
}

fn read_table(resolver: &mut Resolver<'_>, document: &file::Document, table: &AppTable) -> Typed {
    let mut app = Typed::default();
    for (key, entry) in &table.entries {
        let origin = document.at(entry.line);
        let Some(slot) = app.slot(key) else {
            resolver.faults.push(unknown_key(key, entry, origin));
            continue;
        };
        if entry.kind != Kind::Text {
            resolver.refuse(
                origin,
                &format!("apps.{key}"),
                "the value is not a string",
                "write it in quotes",
            );
            continue;
        }
        let is_path = key.ends_with("_file");
        let text = match document.relative(&entry.text).to_str() {
            Some(path) if is_path && !entry.text.is_empty() => path.to_owned(),
            _ => entry.text.clone(),
        };
        *slot = Some(Placed { text, origin });
    }
    app
}

impl Typed {
    fn slot(&mut self, key: &str) -> Option<&mut Option<Placed>> {
        match key {
            "id" => Some(&mut self.id),
            "verification_token_file" => Some(&mut self.token_file),
            "verification_token_env" => Some(&mut self.token_variable),
            "jwks_url" => Some(&mut self.jwks_url),
            "jwks_file" => Some(&mut self.jwks_file),
            "pem_file" => Some(&mut self.pem_file),
            _ => None,
        }
    }
}

fn unknown_key(key: &str, entry: &Entry, origin: Origin) -> Fault {
    let (message, help) = match key {
        "" => (
            "an app is not a table".to_owned(),
            "write `[[apps]]` on a line of its own, and its keys below".to_owned(),
        ),
        "verification_token" | "token" if entry.kind == Kind::Text => (
            format!("`apps.{key}`: a token does not belong in this file"),
            "put it into a file of its own and write `verification_token_file = \"…\"`, or into a \
             variable and write `verification_token_env = \"NAME\"`"
                .to_owned(),
        ),
        _ => (
            format!("unknown key `apps.{key}`"),
            format!(
                "did you mean `{}`? An app has the keys {}",
                nearest(key, KEYS.into_iter()).unwrap_or_default(),
                KEYS.join(", ")
            ),
        ),
    };
    Fault {
        origin,
        message,
        help,
    }
}

fn refuse_repeated_ids(resolver: &mut Resolver<'_>, apps: &[(Origin, Typed)]) {
    let ids: Vec<&Placed> = apps.iter().filter_map(|(_, app)| app.id.as_ref()).collect();
    for (index, id) in ids.iter().enumerate() {
        let first = ids.iter().take(index).find(|first| first.text == id.text);
        if let Some(first) = first {
            let reason = format!("the app `{}` is already at {}", id.text, first.origin);
            resolver.refuse(
                id.origin.clone(),
                "apps.id",
                &reason,
                "keep one `[[apps]]` section for each app",
            );
        }
    }
}

fn add_app_of_environment(resolver: &mut Resolver<'_>, apps: &mut Vec<(Origin, Typed)>) {
    let mut placed = |name: &str| {
        resolver.variable(name).map(|text| Placed {
            text,
            origin: Origin::Environment(name.to_owned()),
        })
    };
    let (id, jwks_url, jwks_file) = (placed(ID), placed(JWKS_URL), placed(JWKS_FILE));
    let token_file = placed(TOKEN_FILE);
    let token_variable = resolver.has_variable(TOKEN).then(|| Placed {
        text: TOKEN.to_owned(),
        origin: Origin::Environment(TOKEN.to_owned()),
    });
    let Some(id) = id else {
        refuse_variables_without_app(
            resolver,
            apps,
            [&token_file, &token_variable, &jwks_url, &jwks_file],
        );
        return;
    };
    let place = id.origin.clone();
    let same = apps.iter().position(|(_, app)| {
        let other = app.id.as_ref();
        other.is_some_and(|other| other.text == id.text)
    });
    let mut app = match same {
        Some(index) => apps.remove(index).1,
        None => Typed::default(),
    };
    app.id = Some(id);
    if token_file.is_some() || token_variable.is_some() {
        (app.token_file, app.token_variable) = (token_file, token_variable);
    }
    if jwks_url.is_some() || jwks_file.is_some() {
        (app.jwks_url, app.jwks_file, app.pem_file) = (jwks_url, jwks_file, None);
    }
    apps.push((place, app));
}

/// A token without an app would be ignored, which is worse than refused; unless an app of the file
/// says that its token is in that very variable.
fn refuse_variables_without_app(
    resolver: &mut Resolver<'_>,
    apps: &[(Origin, Typed)],
    variables: [&Option<Placed>; 4],
) {
    for variable in variables.into_iter().flatten() {
        let Origin::Environment(name) = &variable.origin else {
            continue;
        };
        let is_used = apps.iter().any(|(_, app)| {
            let named = app.token_variable.as_ref();
            named.is_some_and(|named| named.text == *name)
        });
        if !is_used {
            resolver.faults.push(Fault {
                origin: variable.origin.clone(),
                message: format!("it is set, but `{ID}` is not"),
                help: format!("set `{ID}` to the id of the app it belongs to, or unset it"),
            });
        }
    }
}

fn check(resolver: &mut Resolver<'_>, place: Origin, app: Typed) -> Option<App> {
    let Some(id) = app.id else {
        resolver.refuse(
            place,
            "apps.id",
            "it is missing",
            "write the app's id as Prelude's dashboard shows it: `id = \"54e9ujn\"`",
        );
        return None;
    };
    let id_is_good = check_id(resolver, &id);
    let token = check_token(
        resolver,
        &place,
        &id.text,
        app.token_file,
        app.token_variable,
    );
    let keys = check_keys(
        resolver,
        &id.text,
        [app.jwks_url, app.jwks_file, app.pem_file],
    );
    let (verification_token, token_source) = token?;
    let keys = keys?;
    id_is_good.then(|| App {
        id: id.text,
        verification_token,
        token_source,
        keys,
        origin: place,
    })
}

/// An id becomes part of a host name and of a path, so its letters are those of both.
fn check_id(resolver: &mut Resolver<'_>, id: &Placed) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let reason = if id.text.is_empty() {
        "it is empty".to_owned()
    } else if id.text.len() > APP_ID_CHARS_MAX {
        format!("it is longer than {APP_ID_CHARS_MAX} characters")
    } else if let Some(odd) = id.text.chars().find(|c| !fits(*c)) {
        format!("`{}` cannot be in an app id", odd.escape_default())
    } else {
        return true;
    };
    resolver.refuse(
        id.origin.clone(),
        "apps.id",
        &reason,
        "write the id as Prelude's dashboard shows it: letters, digits, `-` and `_`, such as \
         `54e9ujn`",
    );
    false
}

fn check_token(
    resolver: &mut Resolver<'_>,
    place: &Origin,
    id: &str,
    file: Option<Placed>,
    variable: Option<Placed>,
) -> Option<(Secret, TokenSource)> {
    let (text, source, origin) = match (file, variable) {
        (Some(file), None) => {
            let path = PathBuf::from(&file.text);
            let text = read_token_file(resolver, &path, &file.origin)?;
            (text, TokenSource::File(path), file.origin)
        }
        (None, Some(variable)) => {
            let text = resolver.variable(&variable.text);
            if text.is_none() && !resolver.has_variable(&variable.text) {
                resolver.refuse(
                    variable.origin,
                    "apps.verification_token_env",
                    &format!("the variable `{}` is not set", variable.text),
                    "set it to the verification token of this app's webhook",
                );
                return None;
            }
            let source = TokenSource::Variable(variable.text);
            (text.unwrap_or_default(), source, variable.origin)
        }
        (Some(_), Some(second)) => {
            resolver.refuse(
                second.origin,
                "apps.verification_token_env",
                &format!("the app `{id}` has its token in a file and in a variable"),
                "keep one of the two",
            );
            return None;
        }
        (None, None) => {
            resolver.refuse(
                place.clone(),
                "apps",
                &format!("the app `{id}` has no verification token"),
                "write `verification_token_file = \"token.txt\"` or `verification_token_env = \
                 \"NAME\"` in its section, or set `PRELUDE_BRIDGE_VERIFICATION_TOKEN` for the app \
                 of `PRELUDE_BRIDGE_APP_ID`",
            );
            return None;
        }
    };
    let token = judge_token(resolver, &text, &origin, id)?;
    Some((token, source))
}

fn read_token_file(resolver: &mut Resolver<'_>, path: &Path, origin: &Origin) -> Option<String> {
    match file::read_text(path, TOKEN_FILE_BYTES_MAX) {
        Ok(text) => Some(text),
        Err(error) => {
            resolver.refuse(
                origin.clone(),
                "apps.verification_token_file",
                &format!("{} cannot be read: {error}", path.display()),
                "write the verification token of this app's webhook into that file, readable by \
                 this user only",
            );
            None
        }
    }
}

/// Line ends and blanks around a token are an editor's or a shell's; the token has none.
fn judge_token(
    resolver: &mut Resolver<'_>,
    text: &str,
    origin: &Origin,
    id: &str,
) -> Option<Secret> {
    let token = text.trim();
    let reason = if token.is_empty() {
        format!("the verification token of the app `{id}` is empty")
    } else if token.chars().count() > TOKEN_CHARS_MAX {
        format!(
            "the verification token of the app `{id}` is longer than {TOKEN_CHARS_MAX} characters"
        )
    } else if token.chars().any(char::is_control) {
        format!("the verification token of the app `{id}` has more than one line")
    } else {
        return Some(Secret::new(token));
    };
    resolver.faults.push(Fault {
        origin: origin.clone(),
        message: reason,
        help: format!(
            "use the token that the webhook was registered with, 1 to {TOKEN_CHARS_MAX} characters"
        ),
    });
    None
}

fn check_keys(
    resolver: &mut Resolver<'_>,
    id: &str,
    [url, jwks_file, pem_file]: [Option<Placed>; 3],
) -> Option<KeySource> {
    match (url, jwks_file, pem_file) {
        (None, None, None) => Some(KeySource::JwksUrl(default_jwks_url(id))),
        (Some(url), None, None) => {
            check_url(resolver, &url).then_some(KeySource::JwksUrl(url.text))
        }
        (None, Some(file), None) => {
            check_file(resolver, "apps.jwks_file", &file).map(KeySource::JwksFile)
        }
        (None, None, Some(file)) => {
            check_file(resolver, "apps.pem_file", &file).map(KeySource::PemFile)
        }
        (one, two, three) => {
            let last = [one, two, three].into_iter().flatten().next_back()?;
            resolver.refuse(
                last.origin,
                "apps",
                &format!("the app `{id}` has more than one source of keys"),
                "keep one of `jwks_url`, `jwks_file` and `pem_file`",
            );
            None
        }
    }
}

/// Keys fetched without TLS could be anybody's, so plain http is for this machine only.
fn check_url(resolver: &mut Resolver<'_>, url: &Placed) -> bool {
    let reason = match url.text.parse::<Uri>() {
        Err(error) => format!("it is not a URL: {error}"),
        Ok(uri) => match (uri.scheme_str(), uri.host()) {
            (_, None) | (None, _) => "it is not a whole URL".to_owned(),
            (Some(_), Some(_))
                if uri
                    .authority()
                    .is_some_and(|host| host.as_str().contains('@')) =>
            {
                "it has a user or a password in it".to_owned()
            }
            (Some("https"), Some(_)) => return true,
            (Some("http"), Some("localhost" | "127.0.0.1" | "[::1]")) => return true,
            (Some("http"), Some(_)) => "keys are fetched over https only".to_owned(),
            (Some(_), Some(_)) => "it is neither https nor http".to_owned(),
        },
    };
    resolver.refuse(
        url.origin.clone(),
        "apps.jwks_url",
        &reason,
        "write `https://<host>/.well-known/jwks.json`; `http://` is for a key server on this \
         machine",
    );
    false
}

fn check_file(resolver: &mut Resolver<'_>, key: &str, file: &Placed) -> Option<PathBuf> {
    let path = PathBuf::from(&file.text);
    let reason = match path.metadata() {
        Ok(metadata) if metadata.is_file() => return Some(path),
        Ok(_) => format!("{} is not a file", path.display()),
        Err(error) => format!("{} cannot be read: {error}", path.display()),
    };
    resolver.refuse(
        file.origin.clone(),
        key,
        &reason,
        "check the path; a relative one is taken from the directory of the configuration file",
    );
    None
}
