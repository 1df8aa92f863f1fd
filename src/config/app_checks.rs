//! Validates an app: its id, its verification token, the source of its keys. Reads token files and
//! checks that key files exist; fetches and parses no keys.

use std::{
    iter,
    path::{Path, PathBuf},
};

use http::Uri;

use super::{
    apps::{
        self, APP_ID_CHARS_MAX, App, KeySource, Placed, TOKEN_CHARS_MAX, TokenSource, Typed,
        default_jwks_url, default_token_file,
    },
    fault::{Fault, Origin},
    file,
    resolver::Resolver,
    secret::Secret,
};
use crate::permissions::{self, By};

/// The size of the longest token in the widest characters, with line ends.
const TOKEN_FILE_BYTES_MAX: u64 = 1024;

/// Returns all valid apps, and records the faults of the others.
pub(super) fn take(resolver: &mut Resolver<'_>, data_dir: &Path) -> Vec<App> {
    apps::typed(resolver)
        .into_iter()
        .filter_map(|(place, app)| check(resolver, place, app, data_dir))
        .collect()
}

/// Validates one app: returns it, or records its faults.
fn check(
    resolver: &mut Resolver<'_>,
    place: Origin,
    mut app: Typed,
    data_dir: &Path,
) -> Option<App> {
    let Some(id) = app.id.take() else {
        if !app.is_faulty {
            resolver.refuse(
                place,
                "apps.id",
                "it is missing",
                "write the app's id as Prelude's dashboard shows it: `id = \"54e9ujn\"`",
            );
        }
        return None;
    };
    let id_is_good = check_id(resolver, &id);
    if id_is_good && !app.is_faulty {
        look_for_default_token(&mut app, &id.text, data_dir);
    }
    let token = check_token(resolver, &place, &id.text, &app);
    let keys = check_keys(resolver, &id.text, &app);
    let (Tokens { first, second }, token_source) = token?;
    let keys = keys?;
    if !id_is_good {
        return None;
    }
    Some(App {
        id: id.text,
        verification_token: first,
        old_verification_token: second,
        token_source,
        keys,
        origin: place,
    })
}

/// An id becomes a part of a host name and of a path, so it has only characters that both allow.
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

/// The token that `webhook setup` created, for an app without a token. Only for a valid id, which
/// becomes a file name.
fn look_for_default_token(app: &mut Typed, id: &str, data_dir: &Path) {
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

fn check_token(
    resolver: &mut Resolver<'_>,
    place: &Origin,
    id: &str,
    app: &Typed,
) -> Option<(Tokens, TokenSource)> {
    let (text, source, origin) = match (&app.token_file, &app.token_variable) {
        (Some(file), None) => {
            let path = PathBuf::from(&file.text);
            let text = read_token_file(resolver, &path, &file.origin)?;
            (text, TokenSource::File(path), &file.origin)
        }
        (None, Some(variable)) => {
            let text = read_token_variable(resolver, variable)?;
            let source = TokenSource::Variable(variable.text.clone());
            (text, source, &variable.origin)
        }
        (Some(_), Some(second)) => {
            resolver.refuse(
                second.origin.clone(),
                "apps.verification_token_env",
                &format!("the app `{id}` has its token in a file and in a variable"),
                "keep one of the two",
            );
            return None;
        }
        (None, None) if app.is_faulty => return None,
        (None, None) => {
            resolver.refuse(
                place.clone(),
                "apps",
                &format!("the app `{id}` has no verification token"),
                "let `prelude-bridge webhook setup` make one, or write `verification_token_file = \"token.txt\"` or `verification_token_env = \
                 \"NAME\"` in its section, or set `PRELUDE_BRIDGE_VERIFICATION_TOKEN` for the app \
                 of `PRELUDE_BRIDGE_APP_ID`",
            );
            return None;
        }
    };
    match tokens_in(&text) {
        Ok(tokens) => Some((tokens, source)),
        Err(reason) => {
            resolver.faults.push(Fault {
                origin: origin.clone(),
                message: format!("the verification token of the app `{id}` {reason}"),
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
fn read_token_variable(resolver: &mut Resolver<'_>, variable: &Placed) -> Option<String> {
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
            "apps.verification_token_env",
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

fn read_token_file(resolver: &mut Resolver<'_>, path: &Path, origin: &Origin) -> Option<String> {
    let read = permissions::open(path, By::Reader)
        .and_then(|opened| file::read_text(opened, TOKEN_FILE_BYTES_MAX));
    match read {
        Ok(text) => Some(text),
        Err(error) => {
            resolver.refuse(
                origin.clone(),
                "apps.verification_token_file",
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

fn check_keys(resolver: &mut Resolver<'_>, id: &str, app: &Typed) -> Option<KeySource> {
    match (&app.jwks_url, &app.jwks_file, &app.pem_file) {
        (None, None, None) => Some(KeySource::JwksUrl(default_jwks_url(id))),
        (Some(url), None, None) => {
            check_url(resolver, url).then(|| KeySource::JwksUrl(url.text.clone()))
        }
        (None, Some(file), None) => {
            check_file(resolver, "apps.jwks_file", file).map(KeySource::JwksFile)
        }
        (None, None, Some(file)) => {
            check_file(resolver, "apps.pem_file", file).map(KeySource::PemFile)
        }
        (one, two, three) => {
            let last = [one, two, three].into_iter().flatten().next_back()?;
            resolver.refuse(
                last.origin.clone(),
                "apps",
                &format!("the app `{id}` has more than one source of keys"),
                "keep one of `jwks_url`, `jwks_file` and `pem_file`",
            );
            None
        }
    }
}

/// Keys that are fetched without TLS can be forged, so plain http is allowed for loopback only.
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
