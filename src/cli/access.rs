//! The flags with which a command connects to a bridge's gRPC port: its token, its certificate, and
//! which issuers it trusts. Secrets are in files or in the environment, never on the command line,
//! where every process of the machine can read them.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use reqwest::Certificate;

use super::exit::{Exit, Failure};
use crate::client::{Options, TokenSource};

/// The variable that holds the token itself.
const TOKEN_VARIABLE: &str = "PRELUDE_BRIDGE_TOKEN";

/// How to reach a bridge's gRPC port.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Credential and TLS")]
#[group(skip)]
pub struct Args {
    /// Show the token in this file; it is read again for each reconnection. Or put the token itself
    /// into PRELUDE_BRIDGE_TOKEN
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Send the token over http:// to other machines too, so that anybody on the network can read it
    #[arg(long)]
    pub token_over_plain_text: bool,

    /// Trust a bridge with a certificate of these issuers (PEM) [default: those that the system
    /// trusts]
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// Show this certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "client_key_file")]
    pub client_certificate_file: Option<PathBuf>,

    /// The private key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "client_certificate_file")]
    pub client_key_file: Option<PathBuf>,
}

impl Args {
    /// The options with what was typed.
    ///
    /// # Errors
    /// A file that cannot be read; exit code 2.
    pub(super) fn apply(&self, mut options: Options) -> Result<Options, Failure> {
        if let Some(token) = self.token()? {
            options = options.token(token);
        }
        if self.token_over_plain_text {
            options = options.token_over_plain_text();
        }
        if let Some(path) = &self.ca_file {
            options = options.ca_certificate(read("--ca-file", path)?);
        }
        if let (Some(certificate), Some(key)) =
            (&self.client_certificate_file, &self.client_key_file)
        {
            let certificate = read("--client-certificate-file", certificate)?;
            options = options.client_certificate(certificate, read("--client-key-file", key)?);
        }
        Ok(options)
    }

    /// The flags for a command that continues this one. That command takes a token from the same
    /// environment.
    pub(super) fn flags(&self) -> Vec<(&'static str, Option<&Path>)> {
        let files = [
            ("--token-file", &self.token_file),
            ("--ca-file", &self.ca_file),
            ("--client-certificate-file", &self.client_certificate_file),
            ("--client-key-file", &self.client_key_file),
        ];
        let files = files
            .into_iter()
            .filter_map(|(name, path)| Some((name, Some(path.as_deref()?))));
        let allowed = self
            .token_over_plain_text
            .then_some(("--token-over-plain-text", None));
        files.chain(allowed).collect()
    }

    fn token(&self) -> Result<Option<TokenSource>, Failure> {
        if let Some(path) = &self.token_file {
            return Ok(Some(TokenSource::file(path)));
        }
        match env::var(TOKEN_VARIABLE) {
            // Container tools pass a variable without a value as empty.
            Ok(token) if token.is_empty() => Ok(None),
            Ok(token) => Ok(Some(token.trim().into())),
            Err(env::VarError::NotPresent) => Ok(None),
            // The error itself would repeat the token.
            Err(env::VarError::NotUnicode(_)) => {
                let cause = format!("{TOKEN_VARIABLE} is not UTF-8");
                Err(Failure::new(Exit::Usage, cause).help("set it to a token of the bridge"))
            }
        }
    }
}

/// The issuers in the file of `--ca-file`, for calls over https.
///
/// # Errors
/// A file that cannot be read or holds no certificate; exit code 2.
pub(super) fn issuers(path: Option<&Path>) -> Result<Vec<Certificate>, Failure> {
    let Some(path) = path else {
        return Ok(Vec::new());
    };
    let pem = read("--ca-file", path)?;
    match Certificate::from_pem_bundle(pem.as_bytes()) {
        Ok(issuers) if !issuers.is_empty() => Ok(issuers),
        Ok(_) | Err(_) => {
            let cause = format!("--ca-file: {} holds no certificate", path.display());
            Err(Failure::new(Exit::Usage, cause)
                .help("give a PEM file: its sections begin with -----BEGIN CERTIFICATE-----"))
        }
    }
}

fn read(flag: &str, path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| {
        let cause = format!("{flag}: {} cannot be read: {error}", path.display());
        Failure::new(Exit::Usage, cause).help("give the path of a PEM file that you may read")
    })
}
