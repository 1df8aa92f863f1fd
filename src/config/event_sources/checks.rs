//! Validates a source: its id, its kind and, for an app, its verification token. Reads token files;
//! `keys` validates where the keys come from.

use std::{
    iter,
    path::{Path, PathBuf},
};

use super::{
    super::{
        fault::{Fault, Origin},
        file,
        resolver::Resolver,
        secret::Secret,
    },
    Activation, EventSource, SOURCE_ID_CHARS_MAX, SourceKind, TOKEN_CHARS_MAX, TokenSource,
    default_token_file, keys,
    typed::{self, Placed, Typed},
};
use crate::{
    nearest::nearest,
    permissions::{self, By},
};

/// The size of the longest token in the widest characters, with line ends.
const TOKEN_FILE_BYTES_MAX: u64 = 1024;

const KINDS: &str = "write `kind = \"auth\"` for an app of Prelude Auth, `\"verify\"` or `\"notify\"`; in \
                     the environment, set `PRELUDE_BRIDGE_SOURCE_KIND`";

/// Returns all valid sources, apps first, and records the faults of the others.
pub(in super::super) fn take(resolver: &mut Resolver<'_>, data_dir: &Path) -> Vec<EventSource> {
    let typed = typed::typed(resolver).into_iter();
    let sources = typed.filter_map(|source| check(resolver, source, data_dir));
    let mut sources: Vec<EventSource> = sources.collect();
    sources.sort_by_key(|source| source.kind != SourceKind::Auth);
    sources
}

/// Validates one source: returns it, or records its faults.
fn check(resolver: &mut Resolver<'_>, mut source: Typed, data_dir: &Path) -> Option<EventSource> {
    let Some(id) = source.id.take() else {
        if !source.is_faulty {
            let help = if source.is_app() {
                "write the app's id as Prelude's dashboard shows it: `id = \"54e9ujn\"`"
            } else {
                "write an id, which becomes the `app_id` of its events and its path: `id = \"verify\"`"
            };
            let key = source.key("id");
            resolver.refuse(source.place, &key, "it is missing", help);
        }
        return None;
    };
    let id_is_good = check_id(resolver, &source, &id);
    let kind = check_kind(resolver, &source, &id.text);
    // Without a kind it is not known what else the source needs.
    let kind = kind?;
    let activation = if kind == SourceKind::Auth {
        if id_is_good && !source.is_faulty {
            use_default_token(&mut source, &id.text, data_dir);
        }
        check_token(resolver, &id.text, &source).map(Some)
    } else {
        refuse_token(resolver, kind, &source).then_some(None)
    };
    let keys = keys::check(resolver, &id.text, kind, &source);
    let (activation, keys) = (activation?, keys?);
    if !id_is_good || source.is_faulty {
        return None;
    }
    Some(EventSource {
        id: id.text,
        kind,
        activation,
        keys,
        origin: source.place,
    })
}

fn check_kind(resolver: &mut Resolver<'_>, source: &Typed, id: &str) -> Option<SourceKind> {
    if source.is_app() {
        return Some(SourceKind::Auth);
    }
    let Some(kind) = &source.kind else {
        if !source.is_faulty {
            let reason = format!("the source `{id}` has no kind");
            resolver.refuse(source.place.clone(), "sources.kind", &reason, KINDS);
        }
        return None;
    };
    let parsed = SourceKind::parse(&kind.text);
    if parsed.is_none() {
        let near = nearest(&kind.text, SourceKind::ALL.map(SourceKind::name));
        let near = near.map(|near| format!("did you mean \"{near}\"? "));
        let help = format!("{}{KINDS}", near.unwrap_or_default());
        let reason = format!("`{}` is not a kind of source", kind.text);
        resolver.refuse(kind.origin.clone(), "sources.kind", &reason, &help);
    }
    parsed
}

/// Whether a source that has no activation challenge has no token either.
fn refuse_token(resolver: &mut Resolver<'_>, kind: SourceKind, source: &Typed) -> bool {
    let tokens = [
        ("verification_token_file", &source.token_file),
        ("verification_token_env", &source.token_variable),
    ];
    let mut tokens = tokens.into_iter();
    let Some((key, token)) = tokens.find_map(|(key, token)| Some((key, token.as_ref()?))) else {
        return true;
    };
    let reason = format!(
        "a source of kind {} has no activation challenge, so it has no verification token",
        kind.name()
    );
    resolver.refuse(
        token.origin.clone(),
        &source.key(key),
        &reason,
        "remove it; only `kind = \"auth\"` has one",
    );
    false
}

/// An id becomes a part of a host name and of a path, so it has only characters that both allow.
fn check_id(resolver: &mut Resolver<'_>, source: &Typed, id: &Placed) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let reason = if id.text.is_empty() {
        "it is empty".to_owned()
    } else if id.text.len() > SOURCE_ID_CHARS_MAX {
        format!("it is longer than {SOURCE_ID_CHARS_MAX} characters")
    } else if let Some(odd) = id.text.chars().find(|c| !fits(*c)) {
        format!("`{}` cannot be in an id", odd.escape_default())
    } else {
        return true;
    };
    let help = if source.is_app() {
        "write the id as Prelude's dashboard shows it: letters, digits, `-` and `_`, such as `54e9ujn`"
    } else {
        "choose an id of letters, digits, `-` and `_`, such as `verify`"
    };
    resolver.refuse(id.origin.clone(), &source.key("id"), &reason, help);
    false
}

/// The token that `webhook setup` created, for an app without a token. Only for a valid id, which
/// becomes a file name.
fn use_default_token(app: &mut Typed, id: &str, data_dir: &Path) {
    if app.token_file.is_some() || app.token_variable.is_some() {
        return;
    }
    let path = default_token_file(data_dir, id);
    if let (true, Some(text)) = (path.is_file(), path.to_str()) {
        app.token_file = Some(Placed {
            text: text.to_owned(),
            origin: Origin::Default,
        });
    }
}

fn check_token(resolver: &mut Resolver<'_>, id: &str, app: &Typed) -> Option<Activation> {
    let noun = app.noun();
    let (text, token_source, origin) = match (&app.token_file, &app.token_variable) {
        (Some(file), None) => {
            let path = PathBuf::from(&file.text);
            let key = app.key("verification_token_file");
            let text = read_token_file(resolver, &key, &path, &file.origin)?;
            (text, TokenSource::File(path), &file.origin)
        }
        (None, Some(variable)) => {
            let key = app.key("verification_token_env");
            let text = read_token_variable(resolver, &key, variable)?;
            let source = TokenSource::Variable(variable.text.clone());
            (text, source, &variable.origin)
        }
        (Some(_), Some(second)) => {
            resolver.refuse(
                second.origin.clone(),
                &app.key("verification_token_env"),
                &format!("the {noun} `{id}` has its token in a file and in a variable"),
                "keep one of the two",
            );
            return None;
        }
        (None, None) if app.is_faulty => return None,
        (None, None) => {
            resolver.refuse(
                app.place.clone(),
                app.list,
                &format!("the {noun} `{id}` has no verification token"),
                "let `prelude-bridge webhook setup` make one, or write `verification_token_file = \
                 \"token.txt\"` or `verification_token_env = \"NAME\"` in its section, or set \
                 `PRELUDE_BRIDGE_VERIFICATION_TOKEN` for the app of `PRELUDE_BRIDGE_APP_ID`; a source \
                 of kind verify or notify has none: write it as `[[sources]]`",
            );
            return None;
        }
    };
    match tokens_in(&text) {
        Ok(Tokens { first, second }) => Some(Activation {
            token: first,
            old_token: second,
            token_source,
        }),
        Err(reason) => {
            resolver.faults.push(Fault {
                origin: origin.clone(),
                message: format!("the verification token of the {noun} `{id}` {reason}"),
                help: format!(
                    "use the token that the webhook was registered with, 1 to {TOKEN_CHARS_MAX} \
                     characters; while it is replaced, the new one on the first line and the old one \
                     on the second"
                ),
            });
            None
        }
    }
}

/// The text of a variable that an app names. An empty variable is an empty token.
fn read_token_variable(
    resolver: &mut Resolver<'_>,
    key: &str,
    variable: &Placed,
) -> Option<String> {
    let name = &variable.text;
    if !resolver.has_variable(name) {
        // It may be the token itself, by mistake.
        let is_of_variable = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let reason = if name.chars().all(is_of_variable) {
            format!("the variable `{name}` is not set")
        } else {
            "it names a variable that is not set".to_owned()
        };
        resolver.refuse(
            variable.origin.clone(),
            key,
            &reason,
            "name the variable that holds the verification token of this app's webhook, and set it; \
             the token itself does not belong in this file",
        );
        return None;
    }
    let faults_before = resolver.faults.len();
    let text = resolver.variable(name).unwrap_or_default();
    (resolver.faults.len() == faults_before).then_some(text)
}

fn read_token_file(
    resolver: &mut Resolver<'_>,
    key: &str,
    path: &Path,
    origin: &Origin,
) -> Option<String> {
    let read = permissions::open(path, By::Reader)
        .and_then(|opened| file::read_text(opened, TOKEN_FILE_BYTES_MAX));
    match read {
        Ok(text) => Some(text),
        Err(error) => {
            resolver.refuse(
                origin.clone(),
                key,
                // Not the path: it may be the token itself, by mistake.
                &format!("the file that it names cannot be read: {error}"),
                "write the verification token of this app's webhook into that file, readable by \
                 this user only; the token itself does not belong in the configuration",
            );
            None
        }
    }
}

/// The tokens in a file of verification tokens, for a bridge that reads it again while it runs.
///
/// # Errors
/// Why it has none that can be used, as a clause that follows the app.
pub fn read_verification_tokens(path: &Path) -> Result<Vec<Secret>, String> {
    let text = permissions::open_regular(path, Some(By::Bridge))
        .and_then(|opened| file::read_text(opened, TOKEN_FILE_BYTES_MAX))
        .map_err(|error| format!("cannot be read: {error}"))?;
    let Tokens { first, second } = tokens_in(&text)?;
    Ok(iter::once(first).chain(second).collect())
}

/// The verification tokens of an app.
struct Tokens {
    first: Secret,
    second: Option<Secret>,
}

/// Removes line ends and blanks around tokens, which editors and shells add.
fn tokens_in(text: &str) -> Result<Tokens, String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let (first, second) = (lines.next().ok_or("is empty")?, lines.next());
    if lines.next().is_some() {
        return Err("has more than two lines".to_owned());
    }
    for token in iter::once(first).chain(second) {
        if token.chars().count() > TOKEN_CHARS_MAX {
            return Err(format!("is longer than {TOKEN_CHARS_MAX} characters"));
        }
        if token.chars().any(char::is_control) {
            return Err("has a control character in it".to_owned());
        }
    }
    Ok(Tokens {
        first: Secret::new(first),
        second: second.map(Secret::new),
    })
}
