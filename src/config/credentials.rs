//! The settings that say who may subscribe: the credentials file, callers without a credential, and
//! the issuer of JWTs. Reads no file and fetches no keys.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{
    Config, TokenSource, event_sources,
    fault::{Error, Origin},
    macros::settings,
    resolver::{Resolver, Sources},
};
use crate::{
    credentials::{self, STREAMS_MAX, jwt},
    logging,
    signature::{self, KeySource},
};

/// The credentials file in the data directory, where no other is named.
const FILE: &str = "credentials.toml";
const URL_KEY: &str = "jwt.jwks_url";
const KEY_FILE_KEY: &str = "jwt.jwks_file";
const ISSUER_KEY: &str = "jwt.issuer";
const AUDIENCE_KEY: &str = "jwt.audience";

/// The issuer of JWTs, and what their claims mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwt {
    /// Where its keys are.
    pub keys: KeySource,
    /// What `iss` has to be.
    pub issuer: String,
    /// What `aud` has to be or to hold.
    pub audience: String,
    /// The claim with the types that are allowed. Without the claim, none are.
    pub types_claim: String,
    /// The claim with the apps that are allowed. Without it in the settings, all are.
    pub apps_claim: Option<String>,
    /// Streams of one subject.
    pub streams_max: usize,
}

settings! {
    /// Subscribers with JWTs, for those who have an issuer of them. Beside a credentials file or instead
    /// of one. A JWT is taken if a key of the issuer signed it (RS256, PS256, ES256, EdDSA or a longer
    /// variant), `iss` and `aud` are as below, `exp` is to come, `nbf` is not, and `sub` names the caller.
    /// Its streams end when `exp` comes.
    struct Issuer in "jwt" {
        /// Where the issuer publishes its keys, such as `https://auth.example.com/.well-known/jwks.json`.
        /// https only, except from this machine. Fetched every ten minutes, and when a JWT names an unknown
        /// key.
        jwks_url: String = String::new();

        /// Or a key set in a file. One of the two.
        jwks_file: Option<PathBuf> = None;

        /// What `iss` has to be, such as `https://auth.example.com/`.
        issuer: String = String::new();

        /// What `aud` has to be or to hold, so that nobody gets in with a JWT that was meant for another
        /// service.
        audience: String = String::new();

        /// The claim with the types that the caller may get, exact or patterns: an array of strings, or one
        /// string with spaces between them. `["**"]` is all types. Without the claim the caller gets nothing.
        /// What in the claim is no type is passed over, so it can be a claim that has other uses, as "scope".
        types_claim: String = "types".to_owned();

        /// The claim with the apps that the caller may get, written likewise. Empty: JWTs do not say, and all
        /// apps are allowed. If it is set, a JWT without the claim gets nothing.
        apps_claim: String = String::new();

        /// Streams of one subject (`sub`) at once, whatever JWTs it shows: a service with many instances, and
        /// far from all the streams of a bridge.
        streams_max: usize = 100, in 1..=STREAMS_MAX;
    }
}

impl Config {
    /// How the program logs.
    #[must_use]
    pub fn logging(&self) -> logging::Options {
        logging::Options {
            format: self.log_format,
            level: self.log_level,
        }
    }

    /// Where credentials are, and who needs none, for the room that looks after them.
    #[must_use]
    pub fn credentials_options(&self) -> credentials::Options {
        credentials::Options {
            file: Some(self.credentials_path()),
            file_is_named: self.credentials_file.is_some(),
            record: Some(credentials::Record::new(self.data_dir.clone())),
            jwt: self.jwt.as_ref().map(|jwt| jwt::Options {
                keys: jwt.keys.clone(),
                issuer: jwt.issuer.clone(),
                audience: jwt.audience.clone(),
                types_claim: jwt.types_claim.clone(),
                apps_claim: jwt.apps_claim.clone(),
                streams_max: jwt.streams_max,
                refresh: signature::Options::default(),
            }),
            anonymous: self.allow_anonymous,
        }
    }

    /// The credentials file: the one that is named, or the one in the data directory.
    fn credentials_path(&self) -> PathBuf {
        let named = self.credentials_file.clone();
        named.unwrap_or_else(|| self.data_dir.join(FILE))
    }

    /// The files whose content is a secret: who reads one can pass for the bridge.
    pub fn secret_files(&self) -> impl Iterator<Item = &Path> {
        let activations = self
            .sources
            .iter()
            .filter_map(|source| source.activation.as_ref());
        let tokens = activations.filter_map(|activation| match &activation.token_source {
            TokenSource::File(path) => Some(path.as_path()),
            TokenSource::Variable(_) => None,
        });
        let webhook_key = self.tls.webhook.as_ref().map(|tls| tls.key_file.as_path());
        let grpc_key = self.tls.grpc.as_ref().map(|tls| tls.key_file.as_path());
        let store = self.store.secret_files().map(PathBuf::as_path);
        tokens.chain(webhook_key).chain(grpc_key).chain(store)
    }

    /// The files whose writers decide who gets events and which are genuine: the secrets, and what
    /// callers and deliveries are verified with.
    #[must_use]
    pub fn trusted_files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.secret_files().map(Path::to_owned).collect();
        let key_files = self.sources.iter().flat_map(|source| source.keys.files());
        files.extend(key_files.cloned());
        files.extend(
            self.tls
                .webhook
                .iter()
                .map(|tls| tls.certificate_file.clone()),
        );
        if let Some(tls) = &self.tls.grpc {
            files.push(tls.certificate_file.clone());
            files.extend(tls.client_ca_file.clone());
        }
        let key_files = self.jwt.iter().flat_map(|jwt| jwt.keys.files());
        files.extend(key_files.cloned());
        files.extend(self.store.certificate_files().cloned());
        files.extend(self.credentials_options().file);
        files
    }
}

/// What a command that changes credentials has to know of the bridge that they are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialsSetup {
    /// Where the credentials file is or would be.
    pub file: PathBuf,
    /// Where the bridge keeps what has to last.
    pub data_dir: PathBuf,
    /// Whether the bridge lets callers in without a credential as long as there is no such file,
    /// and no longer once there is one.
    pub file_ends_anonymity: bool,
    /// The ids of the apps and other sources that are configured, with tokens or without.
    pub app_ids: BTreeSet<String>,
}

/// The same as [`credentials_file`], with what else can be learnt from the configuration. What is
/// wrong with other settings does not matter here.
///
/// # Errors
/// Those of [`credentials_file`].
pub fn credentials_setup(sources: &Sources) -> Result<CredentialsSetup, Error> {
    let (file, data_dir) = credentials_file(sources)?;
    let mut resolver = Resolver::new(sources);
    let config = Config::take(&mut resolver);
    let sources = event_sources::planned(&mut resolver, &data_dir).into_iter();
    Ok(CredentialsSetup {
        file,
        // A file that is named counts as there, also while it is missing.
        file_ends_anonymity: config.credentials_file.is_none()
            && !config.allow_anonymous
            && config.jwt.is_none(),
        app_ids: sources.map(|source| source.id).collect(),
        data_dir,
    })
}

/// Where the credentials file is or would be, and the data directory: for the commands that write the
/// file, and need nothing else to be right.
///
/// # Errors
/// A configuration file that cannot be read, or paths that are invalid.
pub fn credentials_file(sources: &Sources) -> Result<(PathBuf, PathBuf), Error> {
    let mut resolver = Resolver::only(sources, &["data_dir", "credentials_file"]);
    let config = Config::take(&mut resolver);
    resolver.finish()?;
    Ok((config.credentials_path(), config.data_dir))
}

/// Takes the section of the issuer.
pub(super) fn take_jwt(take: &mut Resolver<'_>) -> Option<Jwt> {
    let Issuer {
        jwks_url: url,
        jwks_file: file,
        issuer,
        audience,
        types_claim,
        apps_claim,
        streams_max,
    } = Issuer::take(take);
    if url.is_empty() && file.is_none() && issuer.is_empty() && audience.is_empty() {
        return None;
    }
    let mut is_whole = true;
    for (key, value, help) in [
        (ISSUER_KEY, &issuer, "write what the `iss` of your JWTs is"),
        (
            AUDIENCE_KEY,
            &audience,
            "write what your issuer puts into `aud` for this bridge, so that JWTs for others are \
             refused",
        ),
        (
            "jwt.types_claim",
            &types_claim,
            "write the name of the claim with the types that the caller may get",
        ),
    ] {
        if value.is_empty() {
            refuse_missing(take, key, help);
            is_whole = false;
        }
    }
    let keys = key_source(take, &url, file)?;
    is_whole.then_some(Jwt {
        keys,
        issuer,
        audience,
        types_claim,
        apps_claim: Some(apps_claim).filter(|claim| !claim.is_empty()),
        streams_max,
    })
}

fn key_source(take: &mut Resolver<'_>, url: &str, file: Option<PathBuf>) -> Option<KeySource> {
    match (url, file) {
        ("", Some(file)) => Some(KeySource::JwksFile(file)),
        ("", None) => {
            let help = "write where your issuer publishes its key set; or `jwks_file`";
            refuse_missing(take, URL_KEY, help);
            None
        }
        (url, None) => match KeySource::url(url) {
            Ok(source) => Some(source),
            Err(error) => {
                let origin = take.origin_of(URL_KEY);
                let help = "write `https://<host>/.well-known/jwks.json`; `http://` is for a key \
                            server on this machine";
                take.refuse(origin, URL_KEY, &error.to_string(), help);
                None
            }
        },
        (_, Some(_)) => {
            let origin = take.origin_of(KEY_FILE_KEY);
            let reason = "there is a `jwks_url` too";
            take.refuse(origin, KEY_FILE_KEY, reason, "keep one of them");
            None
        }
    }
}

/// Names the first setting of the section that is there, since the missing one has no place.
fn refuse_missing(take: &mut Resolver<'_>, key: &str, help: &str) {
    let present = [URL_KEY, KEY_FILE_KEY, ISSUER_KEY, AUDIENCE_KEY];
    let mut origins = present.map(|key| take.origin_of(key)).into_iter();
    let origin = origins.find(|origin| *origin != Origin::Default);
    let reason = "it is missing, and without it no JWT can be trusted";
    take.refuse(origin.unwrap_or(Origin::Default), key, reason, help);
}
