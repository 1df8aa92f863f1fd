//! Collects what was typed for each source, in the file and in the environment, with the place of each
//! value. `checks` validates it.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
};

use super::{
    super::{
        fault::{Fault, Origin},
        file::{self, APPS, Entry, Kind, LISTS, SOURCES, SourceTable},
        resolver::Resolver,
    },
    APP_ID_VARIABLE,
};
use crate::toml_text::help_of_unknown_key;

const TOKEN: &str = "PRELUDE_BRIDGE_VERIFICATION_TOKEN";
const TOKEN_FILE: &str = "PRELUDE_BRIDGE_VERIFICATION_TOKEN_FILE";
const JWKS_URL: &str = "PRELUDE_BRIDGE_JWKS_URL";
const JWKS_FILE: &str = "PRELUDE_BRIDGE_JWKS_FILE";
const PEM_FILE: &str = "PRELUDE_BRIDGE_PEM_FILE";
/// Together they name the one source of a bridge without a file, if it is no app.
const SOURCE_ID: &str = "PRELUDE_BRIDGE_SOURCE_ID";
const SOURCE_KIND: &str = "PRELUDE_BRIDGE_SOURCE_KIND";

/// The variables of one source without a file, and those that other commands read.
pub(in super::super) const VARIABLES: [&str; 10] = [
    APP_ID_VARIABLE,
    SOURCE_ID,
    SOURCE_KIND,
    TOKEN,
    TOKEN_FILE,
    JWKS_URL,
    JWKS_FILE,
    PEM_FILE,
    super::super::CONFIG_VARIABLE,
    "PRELUDE_BRIDGE_SERVER",
];

/// Removes what says of a source more than its token and whose that is. The id of a source that is no app
/// remains only where it may belong to a token.
pub(in super::super) fn remove_variables_without_token(
    environment: &mut BTreeMap<OsString, OsString>,
) {
    let has_token = [TOKEN, TOKEN_FILE]
        .iter()
        .any(|name| environment.contains_key(OsStr::new(name)));
    let id = (!has_token).then_some(SOURCE_ID);
    for name in [SOURCE_KIND, JWKS_URL, JWKS_FILE, PEM_FILE]
        .into_iter()
        .chain(id)
    {
        environment.remove(OsStr::new(name));
    }
}

/// The keys of a source. An `[[apps]]` section has all but `kind`.
pub(in super::super) const KEYS: [&str; 8] = [
    KIND,
    "id",
    "verification_token_file",
    "verification_token_env",
    "jwks_url",
    "jwks_file",
    "pem_file",
    PEM_FILES,
];
const KIND: &str = "kind";
const PEM_FILES: &str = "pem_files";

/// What was typed for one source.
pub(super) struct Typed {
    /// The list that it is in, which begins the names of its keys.
    pub(super) list: &'static str,
    pub(super) place: Origin,
    pub(super) id: Option<Placed>,
    pub(super) kind: Option<Placed>,
    pub(super) token_file: Option<Placed>,
    pub(super) token_variable: Option<Placed>,
    pub(super) jwks_url: Option<Placed>,
    pub(super) jwks_file: Option<Placed>,
    pub(super) pem_file: Option<Placed>,
    pub(super) pem_files: Option<Placed<Vec<String>>>,
    /// A key was refused already: the refused key may have been meant as one that is missing.
    pub(super) is_faulty: bool,
}

/// A value with its place.
pub(super) struct Placed<T = String> {
    pub(super) text: T,
    pub(super) origin: Origin,
}

impl Typed {
    fn new(list: &'static str, place: Origin) -> Self {
        Self {
            list,
            place,
            id: None,
            kind: None,
            token_file: None,
            token_variable: None,
            jwks_url: None,
            jwks_file: None,
            pem_file: None,
            pem_files: None,
            is_faulty: false,
        }
    }

    /// What a source of this list is called in messages.
    pub(super) fn noun(&self) -> &'static str {
        if self.list == APPS { "app" } else { "source" }
    }

    /// Whether its list has only sources of kind auth.
    pub(super) fn is_app(&self) -> bool {
        self.list == APPS
    }

    /// A key of it as messages name it: `apps.jwks_url`.
    pub(super) fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.list)
    }

    fn slot(&mut self, key: &str) -> Option<&mut Option<Placed>> {
        match key {
            "id" => Some(&mut self.id),
            KIND if self.list == SOURCES => Some(&mut self.kind),
            "verification_token_file" => Some(&mut self.token_file),
            "verification_token_env" => Some(&mut self.token_variable),
            "jwks_url" => Some(&mut self.jwks_url),
            "jwks_file" => Some(&mut self.jwks_file),
            "pem_file" => Some(&mut self.pem_file),
            _ => None,
        }
    }
}

/// What was typed for all sources: the apps of the file, its other sources, and the one of the
/// environment, which wins over a source of the file with the same id, value by value.
pub(super) fn typed(resolver: &mut Resolver<'_>) -> Vec<Typed> {
    let mut typed = sources_of_file(resolver);
    refuse_repeated_ids(resolver, &typed);
    add_source_of_environment(resolver, &mut typed);
    typed
}

fn sources_of_file(resolver: &mut Resolver<'_>) -> Vec<Typed> {
    let Some(document) = resolver.document.take() else {
        return Vec::new();
    };
    for list in LISTS {
        if let Some(entry) = document.entries.get(list) {
            resolver.refuse(
                document.at(entry.line),
                list,
                "it is not a list of tables",
                &format!("write `[[{list}]]`, with two brackets, once for each of them"),
            );
        }
    }
    let mut sources: Vec<Typed> = document
        .sources
        .iter()
        .map(|table| read_table(resolver, &document, table))
        .collect();
    sources.sort_by_key(|source| !source.is_app());
    resolver.document = Some(document);
    sources
}

fn read_table(
    resolver: &mut Resolver<'_>,
    document: &file::Document,
    table: &SourceTable,
) -> Typed {
    let mut source = Typed::new(table.list, document.at(table.line));
    for (key, entry) in &table.entries {
        let origin = document.at(entry.line);
        // Relative to the file; an empty path stays empty, and is refused for that.
        let located = |text: &str| match document.relative(text).to_str() {
            Some(path) if !text.is_empty() => path.to_owned(),
            _ => text.to_owned(),
        };
        if key == PEM_FILES && entry.kind == Kind::List {
            let text = entry.items.iter().map(|item| located(item)).collect();
            source.pem_files = Some(Placed { text, origin });
            continue;
        }
        let wanted = match source.slot(key) {
            Some(slot) if entry.kind == Kind::Text => {
                let text = match key.ends_with("_file") {
                    true => located(&entry.text),
                    false => entry.text.clone(),
                };
                *slot = Some(Placed { text, origin });
                continue;
            }
            Some(_) if entry.kind == Kind::List && key == "pem_file" => {
                Some(("the value is an array", "write `pem_files` for several"))
            }
            Some(_) => Some(("the value is not a string", "write it in quotes")),
            None if key == PEM_FILES => Some((
                "the value is not an array of strings",
                "write `pem_files = [\"new.pem\", \"old.pem\"]`, or `pem_file` for one",
            )),
            None => None,
        };
        source.is_faulty = true;
        match wanted {
            Some((reason, help)) => resolver.refuse(origin, &source.key(key), reason, help),
            None => {
                let fault = unknown_key(&source, key, entry, origin);
                resolver.faults.push(fault);
            }
        }
    }
    source
}

fn unknown_key(source: &Typed, key: &str, entry: &Entry, origin: Origin) -> Fault {
    let (list, noun) = (source.list, source.noun());
    let known = KEYS
        .into_iter()
        .filter(|key| *key != KIND || list == SOURCES);
    let known: Vec<&str> = known.collect();
    let (message, help) = match key {
        "" => (
            format!("an item of `{list}` is not a table"),
            format!("write `[[{list}]]` on a line of its own, and its keys below"),
        ),
        "verification_token" | "token" if entry.kind == Kind::Text => (
            format!("`{list}.{key}`: a token does not belong in this file"),
            "put it into a file of its own and write `verification_token_file = \"…\"`, or into a \
             variable and write `verification_token_env = \"NAME\"`"
                .to_owned(),
        ),
        KIND => (
            format!("`{list}.{key}`: an app is always of kind auth"),
            "remove it, or write `[[sources]]` instead of `[[apps]]`".to_owned(),
        ),
        _ => (
            format!("unknown key `{list}.{key}`"),
            help_of_unknown_key(
                key,
                known.iter().copied(),
                &format!("The keys of `[[{list}]]` are {}", known.join(", ")),
            ),
        ),
    };
    let message = match noun {
        "app" if key.is_empty() => "an app is not a table".to_owned(),
        _ => message,
    };
    Fault {
        origin,
        message,
        help,
    }
}

fn refuse_repeated_ids(resolver: &mut Resolver<'_>, sources: &[Typed]) {
    for (index, source) in sources.iter().enumerate() {
        let Some(id) = &source.id else { continue };
        let mut before = sources.iter().take(index);
        let first = before.find_map(|first| {
            let same = first.id.as_ref().filter(|first| first.text == id.text)?;
            Some((first.noun(), &same.origin))
        });
        if let Some((noun, first)) = first {
            resolver.refuse(
                id.origin.clone(),
                &source.key("id"),
                &format!("the {noun} `{}` is already at {first}", id.text),
                "give each app and each other source an id of its own",
            );
        }
    }
}

/// What the environment says of one source.
fn read_environment(resolver: &mut Resolver<'_>, list: &'static str) -> Typed {
    let mut source = Typed::new(list, Origin::Default);
    let slots = [
        (SOURCE_KIND, &mut source.kind),
        (TOKEN_FILE, &mut source.token_file),
        (JWKS_URL, &mut source.jwks_url),
        (JWKS_FILE, &mut source.jwks_file),
        (PEM_FILE, &mut source.pem_file),
    ];
    for (name, slot) in slots {
        let text = resolver.variable(name);
        *slot = text.map(|text| Placed {
            text,
            origin: Origin::Environment(name.to_owned()),
        });
    }
    source.token_variable = resolver.has_variable(TOKEN).then(|| Placed {
        text: TOKEN.to_owned(),
        origin: Origin::Environment(TOKEN.to_owned()),
    });
    source
}

fn add_source_of_environment(resolver: &mut Resolver<'_>, sources: &mut Vec<Typed>) {
    let (app_id, source_id) = (
        resolver.variable(APP_ID_VARIABLE),
        resolver.variable(SOURCE_ID),
    );
    let (id, name, list) = match (app_id, source_id) {
        (Some(_), Some(_)) => {
            return resolver.faults.push(Fault {
                origin: Origin::Environment(SOURCE_ID.to_owned()),
                message: format!("it is set, and `{APP_ID_VARIABLE}` too"),
                help: "the environment names one source: unset one of them, or write both sources into \
                       a file"
                    .to_owned(),
            });
        }
        (Some(id), None) => (id, APP_ID_VARIABLE, APPS),
        (None, Some(id)) => (id, SOURCE_ID, SOURCES),
        (None, None) => {
            let said = read_environment(resolver, APPS);
            return refuse_variables_without_id(resolver, sources, said);
        }
    };
    let origin = Origin::Environment(name.to_owned());
    let mut said = read_environment(resolver, list);
    if list == APPS
        && let Some(kind) = said.kind.take()
    {
        return resolver.faults.push(Fault {
            origin: kind.origin,
            message: format!(
                "it is set, and so is `{APP_ID_VARIABLE}`: an app is always of kind auth"
            ),
            help: format!("unset it, or set `{SOURCE_ID}` instead of `{APP_ID_VARIABLE}`"),
        });
    }
    let same = sources.iter().position(|source| {
        let other = source.id.as_ref();
        other.is_some_and(|other| other.text == id)
    });
    let mut source = match same {
        Some(index) => sources.remove(index),
        None => Typed::new(list, origin.clone()),
    };
    if let Some(message) = contradiction(&source, list, &said) {
        let help = format!(
            "set `{SOURCE_ID}` to the id of a source of the file, and `{APP_ID_VARIABLE}` to that of an \
             app; or remove it from the file"
        );
        return resolver.faults.push(Fault {
            origin,
            message,
            help,
        });
    }
    source.place = origin.clone();
    source.id = Some(Placed { text: id, origin });
    if let (SOURCES, Some(kind)) = (source.list, said.kind) {
        source.kind = Some(kind);
    }
    if said.token_file.is_some() || said.token_variable.is_some() {
        (source.token_file, source.token_variable) = (said.token_file, said.token_variable);
    }
    if said.jwks_url.is_some() || said.jwks_file.is_some() || said.pem_file.is_some() {
        (source.jwks_url, source.jwks_file) = (said.jwks_url, said.jwks_file);
        (source.pem_file, source.pem_files) = (said.pem_file, None);
    }
    sources.push(source);
}

/// Why a source of the file cannot be the one that the environment means.
fn contradiction(of_file: &Typed, list: &str, said: &Typed) -> Option<String> {
    const AUTH: &str = "auth";
    let text = |kind: &Option<Placed>| kind.as_ref().map(|kind| kind.text.clone());
    let (file, environment) = match (of_file.is_app(), list == APPS) {
        (true, true) | (false, false) => return None,
        (true, false) => (Some(AUTH.to_owned()), text(&said.kind)),
        (false, true) => (text(&of_file.kind), Some(AUTH.to_owned())),
    };
    let (file, environment) = (file?, environment?);
    let place = &of_file.place;
    (file != environment)
        .then(|| format!("it is {environment} here, but of kind {file} at {place}"))
}

/// A variable without the id that it belongs to would be ignored, which is worse than refused; unless an
/// app of the file says that its token is in that very variable.
fn refuse_variables_without_id(resolver: &mut Resolver<'_>, sources: &[Typed], said: Typed) {
    let of_apps = [said.token_file, said.token_variable];
    let of_all = [said.jwks_url, said.jwks_file, said.pem_file];
    let of_apps = of_apps.map(|variable| (variable, [APP_ID_VARIABLE].as_slice()));
    let of_all = of_all.map(|variable| (variable, [APP_ID_VARIABLE, SOURCE_ID].as_slice()));
    let of_sources = (said.kind, [SOURCE_ID].as_slice());
    for (variable, ids) in of_apps.into_iter().chain(of_all).chain([of_sources]) {
        let Some(Placed { origin, .. }) = variable else {
            continue;
        };
        let Origin::Environment(name) = &origin else {
            continue;
        };
        let is_used = sources.iter().any(|source| {
            let named = source.token_variable.as_ref();
            named.is_some_and(|named| named.text == *name)
        });
        if !is_used {
            let ids = ids.join("` or `");
            resolver.faults.push(Fault {
                message: format!("it is set, but `{ids}` is not"),
                help: format!("set `{ids}` to the id of what it belongs to, or unset it"),
                origin,
            });
        }
    }
}
