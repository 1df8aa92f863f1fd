//! Checks who may subscribe, according to the files: the credentials file, the record that there was
//! one, and who else can change what the bridge trusts.

use jiff::Timestamp;

use super::Check;
use crate::{
    config::Config,
    credentials::{Error, File, expiry_warning},
    permissions::By,
    server,
};

const CREDENTIALS: &str = "credentials";
const PERMISSIONS: &str = "permissions";

/// Checks permissions and credentials.
pub(super) fn examine(config: &Config) -> Vec<Check> {
    vec![permissions(config), credentials(config)]
}

fn permissions(config: &Config) -> Check {
    let found = server::inspect_permissions(config, By::Reader);
    if let Some(fault) = found.faults.first() {
        let remedy =
            "run that command as the owner or as root; `serve` refuses to start until then";
        return Check::fault(PERMISSIONS, fault.to_string(), remedy);
    }
    let mut text = "only root and this user can change what is in the data directory".to_owned();
    for warning in found.warnings {
        text.push_str(&format!(" (warning: {warning})"));
    }
    Check::good(PERMISSIONS, text)
}

fn credentials(config: &Config) -> Check {
    let options = config.credentials_options();
    let Some(path) = options.file else {
        return Check::skipped(CREDENTIALS, "no credentials file is configured");
    };
    let shown = path.display().to_string();
    let recorded = options.record.and_then(|record| record.read());
    let file = File::new(path.clone());
    let document = match file.document() {
        Ok(document) => document,
        Err(error) => {
            let remedy = match error {
                Error::Invalid { .. } => "correct the file",
                _ => "check the path, and who may read and write there",
            };
            return Check::fault(CREDENTIALS, error.to_string(), remedy);
        }
    };
    let Some(document) = document else {
        let is_missed = options.file_is_named
            || recorded.is_some_and(|recorded| recorded.credentials_file.is_some());
        return if options.anonymous {
            Check::good(CREDENTIALS, "`allow_anonymous` lets everybody in")
        } else if is_missed {
            Check::fault(
                CREDENTIALS,
                format!("{shown} is missing, so nobody with a token or certificate is let in"),
                "restore it, or make credentials with `prelude-bridge token create NAME`; to let \
                 subscribers in without any on purpose, set `allow_anonymous`",
            )
        } else {
            Check::good(CREDENTIALS, format!("there is no {shown}"))
        };
    };
    if recorded.is_some_and(|recorded| recorded.needs_end(&path)) && !document.has_end {
        return Check::fault(
            CREDENTIALS,
            format!("{shown} has lost its last line, so it may be cut short"),
            "write the whole file, with the last line `[end]`",
        );
    }
    let mut warnings = document.warnings.into_iter();
    if let Some(first) = warnings.next() {
        let found = format!(
            "{shown}: line {}: {}",
            first.line.unwrap_or(1),
            first.message
        );
        let mut check = Check::fault(CREDENTIALS, found, first.help);
        check
            .remedies
            .extend(warnings.map(|warning| warning.to_string()));
        return check;
    }
    let count = document.entries.len();
    let mut text = format!("{shown} is good; credentials: {count}");
    if let Some(warning) = expiry_warning(&document.entries, Timestamp::now()) {
        text.push_str(&format!(" (warning: {warning})"));
    }
    Check::good(CREDENTIALS, text)
}
