//! Whether the path of a webhook's URL leads to its app. A bridge chooses the source of a delivery by the
//! last segment of the path.

use percent_encoding::percent_decode_str;
use reqwest::Url;

use crate::{
    cli::exit::{Exit, Failure},
    config::Planned,
};

/// Refuses a URL that leads to another source or app of the configuration.
///
/// # Errors
/// Its last segment is the id of another one.
pub(super) fn check(url: &Url, app_id: &str, planned: &[Planned]) -> Result<(), Failure> {
    let segment = url
        .path_segments()
        .and_then(|mut segments| segments.next_back());
    let segment = percent_decode_str(segment.unwrap_or_default()).decode_utf8_lossy();
    let other = planned
        .iter()
        .find(|source| source.id == segment && source.id != app_id);
    let Some(other) = other else {
        return Ok(());
    };
    let cause = format!(
        "`--url` leads to the {} `{segment}`, and the webhook is of the app `{app_id}`",
        other.kind.noun()
    );
    Err(Failure::new(Exit::Usage, cause).help(
        "end the URL with the id of the app, or with /webhooks; `{app}` in it becomes the app's id",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SourceKind, TokenSource};

    #[test]
    fn a_url_that_leads_to_another_source_or_app_is_refused() {
        let source = |id: &str, kind| Planned {
            id: id.to_owned(),
            kind,
            token_source: TokenSource::Variable("NONE".to_owned()),
        };
        let planned = [
            source("one", SourceKind::Auth),
            source("two", SourceKind::Auth),
            source("calls", SourceKind::Verify),
        ];
        let check = |path: &str| {
            let url = Url::parse(&format!("https://example.com{path}")).unwrap();
            check(&url, "one", &planned)
        };
        for good in [
            "",
            "/webhooks",
            "/webhooks/one",
            "/calls/webhooks",
            "/calls/one",
            "/other",
        ] {
            assert!(check(good).is_ok(), "{good}");
        }
        for (bad, named) in [
            ("/webhooks/two", "the app `two`"),
            ("/webhooks/calls", "the source `calls`"),
            ("/webhooks/c%61lls?a=one", "the source `calls`"),
        ] {
            let failure = check(bad).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(format!("{failure:?}").contains(named), "{failure:?}");
        }
    }
}
