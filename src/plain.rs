//! Owns which text of others may be read in a log or on a terminal: what could be a person or a
//! secret is withheld, and what would steer a terminal is escaped. Most text never gets here, as
//! payloads and identifiers have no way into a log at all; this is for the words that operators and
//! subscribers write for each other, such as names, paths and URLs, where anything can be pasted by
//! mistake. Knows nothing of who wrote them.
//!
//! The rule is one of form, so it lets through what has the form of a name: `Alice`, or a password
//! of one short word.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    net::IpAddr,
};

/// What stands in the place of a text that is not shown.
pub const WITHHELD: &str = "(withheld)";

/// The longest name, in bytes: paths and URLs are longer than what people call things.
const NAME_BYTES_MAX: usize = 512;
/// So many digits in a row, whatever people write between them, can be telephoned to.
const DIGITS_MAX: usize = 5;
/// Words longer than this are no words. The longest of Kubernetes's own have ten, in hexadecimal.
const LETTERS_MAX: usize = 24;
const LETTERS_AND_DIGITS_MAX: usize = 10;
/// Something longer than this, in both cases and with digits, is base64.
const MIXED_MAX: usize = 32;
/// What our own tokens begin with.
const TOKEN_PREFIX: &str = "pb_";

/// A text, if it reads like a name: letters, digits, spaces and `._-/:()`; no number that could be
/// called, and no word that could be a token. Else [`WITHHELD`].
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

/// A sentence of ours with texts of others in it: those of its words that could be an address, a
/// number or a token are withheld.
#[must_use]
pub fn words(sentence: impl fmt::Display) -> String {
    let sentence = sentence.to_string();
    let mut shown = String::with_capacity(sentence.len());
    // Numbers are written in groups, so groups are judged together.
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

/// A text on one line, with escapes for whatever steers a terminal.
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

/// Whether a terminal does something else with a character than show it: it is a control character,
/// or it turns text around or breaks its line.
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

/// What numbers are written with.
fn is_of_number(character: char) -> bool {
    character.is_ascii_digit() || matches!(character, ' ' | '.' | '-' | '/' | '(' | ')' | '+')
}

fn could_be_called(number: &str) -> bool {
    let digits = number.chars().filter(char::is_ascii_digit).count();
    if digits == 0 {
        return false;
    }
    // The addresses of machines are in logs, and are meant to be.
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
    fn what_steers_a_terminal_is_escaped() {
        assert_eq!(escaped("a b"), "a b");
        assert_eq!(
            escaped("a\u{1b}[2J\r\n\u{9b}\u{202e}"),
            "a\\u{1b}[2J\\r\\n\\u{9b}\\u{202e}"
        );
    }
}
