//! Owns the activation challenge: the GET by which the sender checks that a URL is ours. Source:
//! <https://docs.prelude.so/session/documentation/webhooks>.

use super::{Deliveries, Shared, VerificationTokens, error::Error};

/// The longest integer that is echoed. The documented example has ten digits.
const DIGITS_MAX: usize = 128;

/// The tokens of an app.
///
/// # Errors
/// The source has no activation challenge.
fn tokens<'s>(shared: &'s Shared, id: &str) -> Result<&'s VerificationTokens, Error> {
    match &shared.apps.get(id).ok_or(Error::AppUnknown)?.deliveries {
        Deliveries::Batches(tokens) => Ok(tokens),
        Deliveries::SingleEvents(_) => Err(Error::ChallengeUnexpected),
    }
}

/// Whether a path has an activation challenge. `path_app` is as for [`answer`].
pub(super) fn is_expected(shared: &Shared, path_app: Option<&str>) -> bool {
    let has_none = |id| matches!(tokens(shared, id), Err(Error::ChallengeUnexpected));
    !path_app.is_some_and(has_none)
}

/// Checks a challenge and returns the integer to echo, digit for digit. `path_app` is the app of
/// the path, where it names one; the query must then name the same.
pub(super) fn answer(
    shared: &Shared,
    path_app: Option<&str>,
    query: &[(String, String)],
) -> Result<String, Error> {
    if !is_expected(shared, path_app) {
        // Before the query: a browser sends none, and the answer says what the path is for.
        return Err(Error::ChallengeUnexpected);
    }
    if parameter(query, "event", "the query has not one `event`")? != "activate" {
        return Err(Error::ChallengeMalformed("the `event` is not `activate`"));
    }
    let app_id = parameter(query, "app_id", "the query has not one `app_id`")?;
    let fault = "the query has not one `verification_token`";
    let token = parameter(query, "verification_token", fault)?;
    let challenge = parameter(query, "challenge", "the query has not one `challenge`")?;
    if !is_integer(challenge) {
        return Err(Error::ChallengeMalformed(
            "the `challenge` is not an integer",
        ));
    }
    let tokens = tokens(shared, app_id)?;
    if path_app.is_some_and(|path_app| path_app != app_id) {
        return Err(Error::AppUnknown);
    }
    if !tokens.matches(token) {
        return Err(Error::TokenMismatch);
    }
    Ok(challenge.to_owned())
}

/// A parameter that must occur once: of two, it is not known which one counts.
fn parameter<'a>(
    query: &'a [(String, String)],
    name: &str,
    fault: &'static str,
) -> Result<&'a str, Error> {
    let mut values = query.iter().filter(|(key, _)| key == name);
    match (values.next(), values.next()) {
        (Some((_, value)), None) => Ok(value),
        _ => Err(Error::ChallengeMalformed(fault)),
    }
}

/// An integer as JSON writes it, of any size: the answer is a JSON number with the same digits, so
/// what JSON does not allow (a plus sign, leading zeros) cannot be echoed.
fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let leading_zero = digits.len() > 1 && digits.starts_with('0');
    (1..=DIGITS_MAX).contains(&digits.len())
        && !leading_zero
        && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integer_is_what_json_can_echo() {
        for good in [
            "0",
            "7",
            "-7",
            "1234567890",
            "18446744073709551616",
            &"9".repeat(128),
        ] {
            assert!(is_integer(good), "{good}");
        }
        for bad in [
            "",
            "-",
            "+7",
            " 7",
            "7 ",
            "07",
            "-07",
            "--7",
            "7.0",
            "7e3",
            "0x7",
            "seven",
            "٧",
            &"9".repeat(129),
        ] {
            assert!(!is_integer(bad), "{bad}");
        }
    }
}
