//! Validates where the keys of a source come from. Checks that key files exist; fetches and parses no
//! keys.

use std::{collections::BTreeSet, path::PathBuf};

use http::Uri;

use super::{
    super::{fault::Origin, resolver::Resolver},
    KeySource, SourceKind, default_jwks_url,
    typed::{Placed, Typed},
};
use crate::key_source::KEYS_MAX;

/// What the text of a key begins with, where its file belongs.
const PEM_BEGIN: &str = "-----BEGIN";

/// The source of the keys, or its fault recorded.
pub(super) fn check(
    resolver: &mut Resolver<'_>,
    id: &str,
    kind: SourceKind,
    source: &Typed,
) -> Option<KeySource> {
    let named = [
        source.jwks_url.as_ref().map(|value| &value.origin),
        source.jwks_file.as_ref().map(|value| &value.origin),
        source.pem_file.as_ref().map(|value| &value.origin),
        source.pem_files.as_ref().map(|value| &value.origin),
    ];
    let mut named: Vec<&Origin> = named.into_iter().flatten().collect();
    if named.len() > 1 {
        named.sort();
        let last = named.pop()?.clone();
        let help = match (&source.pem_file, &source.pem_files) {
            (Some(_), Some(_)) => "write all PEM files into `pem_files`",
            _ => "keep one of `jwks_url`, `jwks_file`, `pem_file` and `pem_files`",
        };
        let reason = format!(
            "the {} `{id}` has more than one source of keys",
            source.noun()
        );
        resolver.refuse(last, source.list, &reason, help);
        return None;
    }
    if let Some(url) = &source.jwks_url {
        let is_good = check_url(resolver, &source.key("jwks_url"), url);
        return is_good.then(|| KeySource::JwksUrl(url.text.clone()));
    }
    if let Some(file) = &source.jwks_file {
        let path = check_file(resolver, &source.key("jwks_file"), &file.text, &file.origin);
        return path.map(KeySource::JwksFile);
    }
    if let Some(file) = &source.pem_file {
        let path = check_file(resolver, &source.key("pem_file"), &file.text, &file.origin);
        return path.map(|path| KeySource::PemFiles(vec![path]));
    }
    if let Some(files) = &source.pem_files {
        return check_files(resolver, &source.key("pem_files"), files);
    }
    if kind == SourceKind::Auth {
        return Some(KeySource::JwksUrl(default_jwks_url(id)));
    }
    if !source.is_faulty {
        resolver.refuse(
            source.place.clone(),
            source.list,
            &format!("the source `{id}` has no keys"),
            "generate a webhook signing key in Prelude's dashboard (Settings, Keys), save the public key, \
             and write `pem_file = \"prelude.pem\"`; in the environment, set `PRELUDE_BRIDGE_PEM_FILE`",
        );
    }
    None
}

/// Keys that are fetched without TLS can be forged, so plain http is allowed for loopback only.
fn check_url(resolver: &mut Resolver<'_>, key: &str, url: &Placed) -> bool {
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
        key,
        &reason,
        "write `https://<host>/.well-known/jwks.json`; `http://` is for a key server on this \
         machine",
    );
    false
}

/// Several PEM files: those of a rotation.
fn check_files(
    resolver: &mut Resolver<'_>,
    key: &str,
    files: &Placed<Vec<String>>,
) -> Option<KeySource> {
    let repeated = {
        let mut seen = BTreeSet::new();
        let mut files = files.text.iter().filter(|file| !file.contains(PEM_BEGIN));
        files.find(|file| !seen.insert(*file))
    };
    let fault = if files.text.is_empty() {
        Some(("the list is empty".to_owned(), "name at least one PEM file"))
    } else if files.text.len() > KEYS_MAX {
        let reason = format!("it names more than {KEYS_MAX} files");
        Some((reason, "keep the files of the keys that are in use"))
    } else {
        let reason = repeated.map(|file| format!("it names {file} twice"));
        reason.map(|reason| (reason, "name each file once"))
    };
    if let Some((reason, help)) = fault {
        resolver.refuse(files.origin.clone(), key, &reason, help);
        return None;
    }
    let paths = files.text.iter();
    let paths = paths.map(|file| check_file(resolver, key, file, &files.origin));
    // All of them are checked before one can be missing.
    let paths: Vec<Option<PathBuf>> = paths.collect();
    Some(KeySource::PemFiles(
        paths.into_iter().collect::<Option<_>>()?,
    ))
}

fn check_file(
    resolver: &mut Resolver<'_>,
    key: &str,
    file: &str,
    origin: &Origin,
) -> Option<PathBuf> {
    // It may be a private one, so it is not repeated.
    if file.contains(PEM_BEGIN) {
        let help = "write the key into a file, and name the file";
        resolver.refuse(
            origin.clone(),
            key,
            "it is the key itself, not its file",
            help,
        );
        return None;
    }
    let path = PathBuf::from(file);
    let reason = match path.metadata() {
        Ok(metadata) if metadata.is_file() => return Some(path),
        _ if file.is_empty() => "the path is empty".to_owned(),
        Ok(_) => format!("{} is not a file", path.display()),
        Err(error) => format!("{} cannot be read: {error}", path.display()),
    };
    resolver.refuse(
        origin.clone(),
        key,
        &reason,
        "check the path; a relative one is taken from the directory of the configuration file",
    );
    None
}
