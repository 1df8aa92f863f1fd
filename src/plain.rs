//! Owns which text may appear in log lines or on a terminal. Most text never gets here, because
//! payloads and identifiers never reach a log line. For the rest there are two rules, and the caller
//! chooses one:
//!
//! - Text that **others** wrote ([`name`], [`event_id`], [`words`]), such as a subscriber's `client_name` or the key
//!   ids of a key set, is withheld if it could name a person or be a secret.
//! - What the **operator** configured or typed ([`configured`]), such as paths, URLs and flags, is
//!   shown, because nobody can correct what they cannot read. Only what is secret in any text is
//!   masked: user information and query values of URLs, tokens, and, since anything can be pasted by
//!   mistake, e-mail addresses and international telephone numbers.
//!
//! Control characters are escaped ([`escaped`]).
//!
//! Both rules decide by the form of a text, so they show whatever has the form of a name: `Alice`, or a
//! password of one short word.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    net::IpAddr,
};

/// What is shown instead of a text that is withheld.
pub const WITHHELD: &str = "(withheld)";

/// The longest name, in bytes: paths and URLs are longer than what people call things.
const NAME_BYTES_MAX: usize = 512;
/// This many digits in a row, whatever separates them, can be a telephone number.
const DIGITS_MAX: usize = 5;
/// Longer words are not shown. The longest that Kubernetes makes have ten characters, in hexadecimal.
const LETTERS_MAX: usize = 24;
const LETTERS_AND_DIGITS_MAX: usize = 10;
/// A longer text with both cases and digits is taken for base64.
const MIXED_MAX: usize = 32;
/// What our own tokens begin with.
const TOKEN_PREFIX: &str = "pb_";
/// In the operator's text, fewer characters after that prefix are not a token: `pb_data` is a
/// directory. Our tokens have 43.
const TOKEN_CHARS_MIN: usize = 16;
/// In the operator's text, this many digits after a `+` are a telephone number. The UTC offset of a
/// time has four.
const TELEPHONE_DIGITS_MIN: usize = 7;

/// The text, if it reads like a name: letters, digits, spaces and `._-/:()`, no number that could be a
/// telephone number, and no word that could be a token. Otherwise [`WITHHELD`].
#[must_use]
pub fn name(text: &str) -> &str {
    if is_name(text) { text } else { WITHHELD }
}

/// Whether [`name`] shows a text.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let is_of_name = |character: char| {
        character.is_alphabetic()
            || character.is_ascii_digit()
            || matches!(character, ' ' | '.' | '_' | '-' | '/' | ':' | '(' | ')')
    };
    text.len() <= NAME_BYTES_MAX && text.chars().all(is_of_name) && !could_be_private(text)
}

/// The longest id of an event that is shown, in bytes.
const ID_BYTES_MAX: usize = 128;

/// The id of an event, if it reads like one: letters, digits and `._-:`, of which one at least is a letter, so
/// that it is no telephone number. Otherwise [`WITHHELD`].
#[must_use]
pub fn event_id(id: &str) -> &str {
    let is_of_id = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
    let has_letter = id.bytes().any(|byte| byte.is_ascii_alphabetic());
    if has_letter && id.len() <= ID_BYTES_MAX && id.bytes().all(is_of_id) {
        id
    } else {
        WITHHELD
    }
}

/// A sentence of ours that contains text of others: its words that could be an address, a telephone
/// number or a token are withheld.
#[must_use]
pub fn words(sentence: impl fmt::Display) -> String {
    let sentence = sentence.to_string();
    let mut shown = String::with_capacity(sentence.len());
    // Telephone numbers are written in groups, so adjacent groups are evaluated together.
    let is_group = |word: &str| !word.is_empty() && word.chars().all(is_of_number);
    let mut words = sentence.split(' ').peekable();
    let mut is_first = true;
    while let Some(word) = words.next() {
        let mut word = Cow::Borrowed(word);
        while is_group(&word) && words.peek().is_some_and(|next| is_group(next)) {
            let next = words.next().unwrap_or_default();
            word = format!("{word} {next}").into();
        }
        if !std::mem::take(&mut is_first) {
            shown.push(' ');
        }
        shown.push_str(if could_be_private(&word) {
            WITHHELD
        } else {
            &word
        });
    }
    shown
}

/// A text that the operator wrote into the configuration, the environment or a flag, or a sentence of
/// ours that contains such text. It is shown with its control characters escaped and its secrets
/// replaced by [`WITHHELD`].
#[must_use]
pub fn configured(text: impl fmt::Display) -> String {
    let text = text.to_string();
    let mut shown = String::with_capacity(text.len());
    for word in text.split_inclusive(char::is_whitespace) {
        shown.push_str(&without_tokens(&without_addresses(&without_url_secrets(
            word,
        ))));
    }
    escaped(&without_telephones(&shown)).into_owned()
}

/// A word without the user information and the query values of the URL in it (RFC 3986 sections
/// 3.2.1 and 3.4).
fn without_url_secrets(word: &str) -> Cow<'_, str> {
    let Some((before, rest)) = word.split_once("://") else {
        return word.into();
    };
    let (authority, _) = split_before(rest, &['/', '?', '#']);
    let is_whole = authority.rsplit_once(':').is_none_or(|(_, port)| {
        port.chars().all(|c| c.is_ascii_digit() || c == ']') || authority.contains('[')
    });
    // A password that has a slash in it hides the host behind it.
    let at = match authority.rfind('@') {
        Some(at) => Some(at),
        None if is_whole => None,
        None => rest.rfind('@'),
    };
    let mut shown = format!("{before}://");
    let mut rest = rest;
    if let Some((_, host)) = at.and_then(|at| rest.split_at_checked(at)) {
        shown.push_str(WITHHELD);
        rest = host;
    }
    let (path, query) = split_before(rest, &['?']);
    shown.push_str(path);
    let (query, fragment) = split_before(query, &['#']);
    for pair in query.split_inclusive(['?', '&']) {
        match pair.split_once('=') {
            Some((name, value)) => {
                // The end of a word that quotes the URL is ours.
                let value = value.trim_end_matches(is_around_quote);
                let end = pair.get(name.len() + 1 + value.len()..).unwrap_or_default();
                let mask = if value.is_empty() { "" } else { WITHHELD };
                shown.push_str(&format!("{name}={mask}{end}"));
            }
            None => shown.push_str(pair),
        }
    }
    shown.push_str(fragment);
    shown.into()
}

/// Punctuation that follows a quoted text in a sentence, or separates the parts of a query.
fn is_around_quote(character: char) -> bool {
    character.is_whitespace() || matches!(character, '&' | '`' | '"' | '\'' | ',' | ';' | ':' | ')')
}

/// Splits a text before the first of these characters.
fn split_before<'t>(text: &'t str, ends: &[char]) -> (&'t str, &'t str) {
    let at = text.find(ends).unwrap_or(text.len());
    text.split_at_checked(at).unwrap_or((text, ""))
}

/// A word without the local parts of e-mail addresses.
fn without_addresses(word: &str) -> Cow<'_, str> {
    if !has_address(word) {
        return word.into();
    }
    let is_of_name =
        |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '%' | '=' | '~');
    let mut shown = String::with_capacity(word.len());
    let mut rest = word;
    while let Some(at) = [rest.find('@'), rest.find("%40")]
        .into_iter()
        .flatten()
        .min()
    {
        let (before, after) = rest.split_at_checked(at).unwrap_or((rest, ""));
        let kept = before.trim_end_matches(is_of_name);
        shown.push_str(kept);
        if kept.len() < before.len() {
            shown.push_str(WITHHELD);
        }
        let sign = if after.starts_with('@') { "@" } else { "%40" };
        shown.push_str(sign);
        rest = after.strip_prefix(sign).unwrap_or_default();
    }
    shown.push_str(rest);
    shown.into()
}

/// A text without international telephone numbers, however their digits are grouped.
fn without_telephones(text: &str) -> String {
    let mut parts = text.split('+');
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let behind = part.trim_start_matches(is_of_number);
        let number = part.strip_suffix(behind).unwrap_or_default();
        let number = number.trim_end_matches(|c: char| !c.is_ascii_digit());
        let rest = part.strip_prefix(number).unwrap_or_default();
        let digits = number.chars().filter(char::is_ascii_digit).count();
        if digits >= TELEPHONE_DIGITS_MIN {
            shown.push_str(WITHHELD);
            shown.push_str(rest);
        } else {
            shown.push('+');
            shown.push_str(part);
        }
    }
    shown
}

/// A word without our tokens and without other text that looks random.
fn without_tokens(word: &str) -> String {
    let is_of_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let mut shown = String::with_capacity(word.len());
    let mut rest = word;
    while !rest.is_empty() {
        let token = rest.trim_start_matches(is_of_token);
        let run = rest.strip_suffix(token).unwrap_or_default();
        shown.push_str(&match run.find(TOKEN_PREFIX) {
            Some(at) if run.len() - at >= TOKEN_PREFIX.len() + TOKEN_CHARS_MIN => {
                let before = run.get(..at).unwrap_or_default();
                format!("{before}{WITHHELD}")
            }
            _ if is_random(run) => WITHHELD.to_owned(),
            _ => run.to_owned(),
        });
        rest = token;
        let other = rest.trim_start_matches(|c: char| !is_of_token(c));
        shown.push_str(rest.strip_suffix(other).unwrap_or_default());
        rest = other;
    }
    shown
}

/// Whether a part of a text is base64 of random bytes: it is long, has both cases and digits, and
/// changes between them more often than names do. In random text, three of five characters are of
/// another kind than the previous one; in `Prelude-Bridge-Production-2026` it is one of five.
fn is_random(stretch: &str) -> bool {
    let kind = |c: char| match c {
        'a'..='z' => Some(0),
        'A'..='Z' => Some(1),
        '0'..='9' => Some(2),
        _ => None,
    };
    let kinds: Vec<_> = stretch.chars().filter_map(kind).collect();
    let changes = kinds.windows(2).filter(|two| two.first() != two.last());
    is_base64(stretch) && 3 * changes.count() >= stretch.len()
}

/// A text on one line, with control characters escaped.
#[must_use]
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return text.into();
    }
    let mut escaped = String::with_capacity(2 * text.len());
    for character in text.chars() {
        if steers(character) {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "{}", character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    escaped.into()
}

/// Whether a terminal does anything but show this character: it is a control character, changes the
/// direction of text, or breaks the line.
#[must_use]
pub fn steers(character: char) -> bool {
    let turns = matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    character.is_control() || turns
}

fn could_be_private(text: &str) -> bool {
    has_address(text)
        || text.contains(TOKEN_PREFIX)
        || text.split(|c: char| !is_of_number(c)).any(could_be_called)
        || text.split(|c: char| !c.is_alphanumeric()).any(is_no_word)
        || text
            .split(|c: char| c.is_whitespace() || matches!(c, '/' | ':' | '(' | ')'))
            .any(is_base64)
}

/// `person@example.com`, however the sign is written in a URL.
fn has_address(text: &str) -> bool {
    text.contains('@') || text.contains("%40")
}

/// Whether telephone numbers are written with this character.
fn is_of_number(character: char) -> bool {
    character.is_ascii_digit() || matches!(character, ' ' | '.' | '-' | '/' | '(' | ')' | '+')
}

fn could_be_called(number: &str) -> bool {
    let digits = number.chars().filter(char::is_ascii_digit).count();
    if digits == 0 {
        return false;
    }
    // Log lines have the addresses of machines on purpose.
    let trimmed = number.trim_matches(|c: char| !c.is_ascii_digit());
    let is_of_machine = match trimmed.split_once('/') {
        // A network.
        Some((address, bits)) => address.parse::<IpAddr>().is_ok() && bits.len() <= 3,
        None => trimmed.parse::<IpAddr>().is_ok(),
    };
    number.contains('+') || (digits > DIGITS_MAX && !is_of_machine)
}

fn is_no_word(word: &str) -> bool {
    let has_digit = word.contains(|c: char| c.is_ascii_digit());
    let length = word.chars().count();
    length > LETTERS_MAX || (has_digit && length > LETTERS_AND_DIGITS_MAX)
}

fn is_base64(stretch: &str) -> bool {
    let has = |kind: fn(&char) -> bool| stretch.chars().any(|c| kind(&c));
    stretch.len() > MIXED_MAX
        && has(char::is_ascii_lowercase)
        && has(char::is_ascii_uppercase)
        && has(char::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_call_programs_is_shown() {
        for text in [
            "",
            "billing",
            "billing (eu-west-1)",
            "Rechnungen für Köln",
            "prelude-consumer-deployment-7c9d5f9b6d-x2x4z",
            "spiffe://example.com/billing",
            "audit v1.12.3",
            "10.0.0.12",
            "10.0.0.0/16",
            "worker at 10.0.0.12:50051",
            "example_rust:2",
            "/etc/prelude-bridge/credentials.toml",
            "/tmp/.tmpA1b2C3/data/jwks/54e9ujn.json",
            "https://54e9ujn.session.prelude.dev/.well-known/jwks.json",
            "http://127.0.0.1:45123/jwks.json",
        ] {
            assert_eq!(name(text), text);
        }
    }

    #[test]
    fn what_could_be_a_person_or_a_secret_is_withheld() {
        for text in [
            "+12025550142",
            "12025550142",
            "202-555-0142",
            "(202) 555 0142",
            "020 2555.0142",
            "+1",
            "01.23.45.67.89",
            "canary.person@example.com",
            "canary.person%40example.com",
            "pb_short",
            "pb_wJ8Zk2yq-Qf3bT0_vNn1xR7LhUeC4aSdGmPiOkYtXrE",
            "wJ8Zk2yq-Qf3bT0_vNn1xR7LhUeC4aSdGmPiOkYtXrE",
            "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln",
            "550e8400-e29b-41d4-a716-446655440aaa",
            "usr_01jc2v8k3x9m4n5p6q7r8s9t0v",
            "d41d8cd98f00b204e9800998ecf8427e",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "https://example.com/jwks?key=abc",
            "a\u{1b}[31mb",
            "a\u{202e}b",
            "a\nb",
            "x\" level=\"ERROR",
        ] {
            assert_eq!(name(text), WITHHELD, "{text}");
        }
        assert_eq!(name(&"ab ".repeat(200)), WITHHELD);
    }

    #[test]
    fn of_a_sentence_only_the_words_are_withheld_that_have_to_be() {
        for (sentence, shown) in [
            (
                "the file /etc/bridge/token.txt cannot be read: no such file",
                "the file /etc/bridge/token.txt cannot be read: no such file",
            ),
            (
                "the file /home/canary.person@example.com/x cannot be read",
                "the file (withheld) cannot be read",
            ),
            ("call +1 (202) 555 0142 now", "call (withheld) now"),
            ("call 202 555 0142", "call (withheld)"),
            (
                "10.0.0.1:80 answered with status 503 after 12 s",
                "10.0.0.1:80 answered with status 503 after 12 s",
            ),
            (
                "`pb_abc` is not a log level",
                "(withheld) is not a log level",
            ),
        ] {
            assert_eq!(words(sentence), shown);
        }
    }

    #[test]
    fn what_the_operator_configured_is_shown_as_it_is() {
        for text in [
            "https://54e9ujn.session.prelude.dev/.well-known/jwks.json",
            "https://auth.example.com:8443/tenants/550e8400-e29b-41d4-a716-446655440aaa/keys",
            "http://127.0.0.1:18080/keys/54e9ujn1234567 answered with status 404",
            "http://[::1]:7070/apps/a@2x/jwks.json",
            "https://example.com/jwks?all",
            "/var/lib/prelude-bridge/20261130/0012025550142/events-00001",
            "/run/secrets/..2026_11_30_04_22_45.1234567890/tls.crt",
            "/nix/store/7rjqb838snvvxcmpvck1smfxhkwzqal5-prelude-bridge/bin",
            "/etc/MyCompany-Prelude-Bridge-Production-Config-2026.toml",
            "/srv/pb_data/log",
            "54e9ujn1234567890",
            "write one such as 2026-11-20T08:30:00Z, or 2026-11-20T08:30:00+01:00",
            "4915112345678 is not in 1..=200000",
            "`yesterday` is not a time",
            "",
        ] {
            assert_eq!(configured(text).replace("(withheld)@", "a@"), text);
        }
    }

    #[test]
    fn what_is_secret_in_a_configuration_is_masked_and_the_rest_of_it_shown() {
        for (text, shown) in [
            (
                "nats://me:hunter2@nats:4222/x is not a store",
                "nats://(withheld)@nats:4222/x is not a store",
            ),
            (
                "https://hush@example.com/",
                "https://(withheld)@example.com/",
            ),
            (
                "`https://me:hun/ter2@example.com/` is no URL",
                "`https://(withheld)@example.com/` is no URL",
            ),
            (
                "https://example.com/jwks?key=hunter2&tenant=a#top answered",
                "https://example.com/jwks?key=(withheld)&tenant=(withheld)#top answered",
            ),
            (
                "`https://example.com/jwks?key=hunter2`: no",
                "`https://example.com/jwks?key=(withheld)`: no",
            ),
            (
                "/home/canary.person@example.com/x cannot be read",
                "/home/(withheld)@example.com/x cannot be read",
            ),
            ("canary.person%40example.com", "(withheld)%40example.com"),
            (
                "/srv/+12025550142/log and +1 (202) 555-0142 now",
                "/srv/(withheld)/log and (withheld) now",
            ),
            (
                "`pb_wJ8Zk2yq-Qf3bT0_vNn1xR7LhUeC4aSdGmPiOkYtXrE` is not a log level",
                "`(withheld)` is not a log level",
            ),
            (
                "https://pb_wJ8Zk2yqQf3bT0vNn1xR7LhUeC4aSdGmPiOkYtXrE01.example.com",
                "https://(withheld).example.com",
            ),
            ("wJ8Zk2yq-Qf3bT0_vNn1xR7LhUeC4aSdGmPiOkYtXrE", "(withheld)"),
            ("a\u{1b}[31m\nb\u{202e}", "a\\u{1b}[31m\\nb\\u{202e}"),
        ] {
            assert_eq!(configured(text), shown);
        }
    }

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        assert_eq!(escaped("a b"), "a b");
        assert_eq!(
            escaped("a\u{1b}[2J\r\n\u{9b}\u{202e}"),
            "a\\u{1b}[2J\\r\\n\\u{9b}\\u{202e}"
        );
    }
}
