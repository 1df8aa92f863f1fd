//! Recognises the key set that is often given by mistake: that of an app's step-up tokens, which has the
//! same host as the right one. Webhooks are signed by the keys of `/.well-known/jwks.json`.

use super::{ANSWER_TIMEOUT, Check, Verdict};
use crate::{
    config::{self, EventSource, KeySource, SourceKind},
    key_source::{fetch_documents, read_jwks},
};

/// The last segment of the path of such a set.
const STEP_UP_SET: &str = "step-up-jwks.json";
/// The last segment of the right path.
const WEBHOOK_SET: &str = "jwks.json";

/// The result of the check of an app's keys, with the right URL if the set is that of step-up tokens.
pub(super) async fn explain(
    mut check: Check,
    app: &EventSource,
    issuers: &[reqwest::Certificate],
) -> Check {
    if app.kind != SourceKind::Auth {
        return check;
    }
    let is_named_so = match &app.keys {
        KeySource::JwksUrl(url) => right_url_beside(url).is_some(),
        KeySource::JwksFile(path) => path.ends_with(STEP_UP_SET),
        KeySource::PemFiles(_) => return check,
    };
    let has_failed = check.verdict == Verdict::Fault;
    let is_step_up_set = is_named_so || has_failed && has_only_eddsa_keys(app, issuers).await;
    if !is_step_up_set {
        return check;
    }
    let beside = match &app.keys {
        KeySource::JwksUrl(url) => right_url_beside(url),
        KeySource::JwksFile(_) | KeySource::PemFiles(_) => None,
    };
    let url = beside.unwrap_or_else(|| config::default_jwks_url(&app.id));
    let cause = "this is the key set of step-up tokens, which does not sign webhooks";
    if has_failed {
        check.found = format!("{}; {cause}", check.found);
        check.remedies = vec![format!(
            "use the key set {url}: set `jwks_url` to it, or, if it is the one of your app id, leave \
             `jwks_url` out"
        )];
    } else {
        check.found = format!(
            "{} (warning: {cause}, going by its name; {url} does)",
            check.found
        );
    }
    check
}

/// The URL of the set for webhooks on the same host; `None` if a URL is not that of a set for step-up
/// tokens.
fn right_url_beside(url: &str) -> Option<String> {
    let path = url.split(['?', '#']).next()?;
    let directory = path.strip_suffix(STEP_UP_SET)?;
    let is_whole_name = directory.ends_with('/');
    is_whole_name.then(|| format!("{directory}{WEBHOOK_SET}"))
}

/// Whether the set has keys for EdDSA and no others. A set that cannot be read has none.
async fn has_only_eddsa_keys(app: &EventSource, issuers: &[reqwest::Certificate]) -> bool {
    let Ok(source) = app.keys.open() else {
        return false;
    };
    let Ok(documents) = fetch_documents(&source, ANSWER_TIMEOUT, issuers).await else {
        return false;
    };
    let keys = documents
        .iter()
        .flat_map(|document| read_jwks(document).unwrap_or_default());
    let keys: Vec<_> = keys.collect();
    let mut types = keys.iter().map(|key| key.as_ref()?.key_type());
    !keys.is_empty() && types.all(|key_type| key_type == Some("OKP"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_url_is_on_the_same_host_and_below_the_same_path() {
        for (url, right) in [
            (
                "https://54e9ujn.session.prelude.dev/.well-known/step-up-jwks.json",
                Some("https://54e9ujn.session.prelude.dev/.well-known/jwks.json"),
            ),
            (
                "https://auth.example.com/x/step-up-jwks.json?v=1",
                Some("https://auth.example.com/x/jwks.json"),
            ),
            ("https://auth.example.com/.well-known/jwks.json", None),
            ("https://auth.example.com/no-step-up-jwks.json", None),
            ("https://auth.example.com/?step-up-jwks.json", None),
        ] {
            assert_eq!(right_url_beside(url).as_deref(), right, "{url}");
        }
    }
}
