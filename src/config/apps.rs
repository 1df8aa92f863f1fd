//! The apps whose deliveries are taken: their ids, their tokens, and where their keys come from.
//! Collects what was typed for each, in the file and in the environment; `app_checks` judges it.

use std::path::{Path, PathBuf};

use super::{
    fault::{Fault, Origin},
    file::{self, AppTable, Entry, Kind},
    resolver::Resolver,
    secret::Secret,
};
use crate::toml_text::help_of_unknown_key;

/// The longest verification token that Prelude's API takes, in characters.
pub const TOKEN_CHARS_MAX: usize = 100;

/// The longest app id: it is a label of a host name.
pub const APP_ID_CHARS_MAX: usize = 63;

/// The variable that names the one app of a bridge without a file.
pub const ID: &str = "PRELUDE_BRIDGE_APP_ID";
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

pub(super) const KEYS: [&str; 6] = [
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
    /// Another that is accepted too, while the first replaces it.
    pub old_verification_token: Option<Secret>,
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
    /// A file that holds it, and perhaps the one before on a second line, and nothing else.
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

/// Where the token of an app is that says nothing of one: `prelude-bridge webhook setup` puts it
/// there, and `serve` finds it there.
pub fn default_token_file(data_dir: &Path, app_id: &str) -> PathBuf {
    data_dir.join("tokens").join(format!("{app_id}.txt"))
}

/// An app as far as it can be said before it has a token: for the command that makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// As it was typed.
    pub id: String,
    /// Where the token will be looked for.
    pub token_source: TokenSource,
}

/// The apps that were typed, with tokens or without.
pub(super) fn planned(resolver: &mut Resolver<'_>, data_dir: &Path) -> Vec<Planned> {
    let typed = typed(resolver).into_iter();
    let planned = typed.filter_map(|(_, app)| {
        let id = app.id?.text;
        let token_source = match (app.token_file, app.token_variable) {
            (Some(file), _) => TokenSource::File(file.text.into()),
            (None, Some(variable)) => TokenSource::Variable(variable.text),
            (None, None) => TokenSource::File(default_token_file(data_dir, &id)),
        };
        Some(Planned { id, token_source })
    });
    planned.collect()
}

/// What was typed for one app, each value with its place.
#[derive(Default)]
pub(super) struct Typed {
    pub(super) id: Option<Placed>,
    pub(super) token_file: Option<Placed>,
    pub(super) token_variable: Option<Placed>,
    pub(super) jwks_url: Option<Placed>,
    pub(super) jwks_file: Option<Placed>,
    pub(super) pem_file: Option<Placed>,
    /// A key was refused already: what is missing may be what it was meant for.
    pub(super) is_faulty: bool,
}

/// A value with its place.
pub(super) struct Placed {
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// What was typed for all apps: those of the file, and the one of the environment. The latter wins
/// over an app of the file with the same id, value by value.
pub(super) fn typed(resolver: &mut Resolver<'_>) -> Vec<(Origin, Typed)> {
    let mut typed = apps_of_file(resolver);
    refuse_repeated_ids(resolver, &typed);
    add_app_of_environment(resolver, &mut typed);
    typed
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
            app.is_faulty = true;
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
            app.is_faulty = true;
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
            help_of_unknown_key(
                key,
                KEYS,
                &format!("An app has the keys {}", KEYS.join(", ")),
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
