//! Owns bearer tokens: makes them, reads them from a header, and hashes them. Only the command that makes a
//! token shows its text; everything else has its hash.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// The beginning of every token, by which people and secret scanners recognise a token that leaked.
const PREFIX: &str = "pb_";
/// 256 bits: nobody guesses them, so a hash without a salt is enough.
const RANDOM_BYTES: usize = 32;
/// The length of those in base64url.
const ENCODED_BYTES: usize = 43;
/// The longest credential of any kind: JWTs with many claims have some KiB.
const CREDENTIAL_BYTES_MAX: usize = 8 * 1024;

/// A bearer token. Printing it prints a placeholder.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// The SHA-256 of a token, which is all that is stored of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Token {
    /// Makes a new one.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; RANDOM_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))))
    }

    /// The text itself, for whoever asked for the token.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Its hash.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
}

impl Digest {
    /// The hash of a token's text.
    pub(super) fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// Reads 64 hexadecimal digits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        let digits = text.as_bytes();
        if digits.len() != 2 * bytes.len() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |index: usize| char::from(*pair.get(index)?).to_digit(16);
            *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
        }
        Some(Self(bytes))
    }

    /// Compares in constant time.
    pub(super) fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// The hash in hexadecimal.
impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Digest(…)")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(redacted)")
    }
}

/// The content of an `authorization` header (RFC 6750, section 2.1).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bearer<'a> {
    /// A token of this bridge.
    Token(&'a str),
    /// Something with the three parts of a JWT.
    Jwt(&'a str),
}

impl<'a> Bearer<'a> {
    /// `None` for another scheme, and for text that is neither kind of token.
    pub(super) fn parse(header: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(header).ok()?;
        let (scheme, credential) = text.trim().split_once(' ')?;
        let credential = credential.trim_start();
        if !scheme.eq_ignore_ascii_case("bearer") || credential.len() > CREDENTIAL_BYTES_MAX {
            return None;
        }
        let is_base64url = |part: &str| {
            let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            !part.is_empty() && part.bytes().all(is_digit)
        };
        if let Some(random) = credential.strip_prefix(PREFIX)
            && random.len() == ENCODED_BYTES
            && is_base64url(random)
        {
            return Some(Self::Token(credential));
        }
        let is_jwt = credential.split('.').count() == 3 && credential.split('.').all(is_base64url);
        is_jwt.then_some(Self::Jwt(credential))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_recognisable_and_never_the_same() {
        let token = Token::generate().unwrap();
        assert!(token.expose().starts_with(PREFIX));
        assert_eq!(token.expose().len(), PREFIX.len() + ENCODED_BYTES);
        assert_ne!(token, Token::generate().unwrap());
        let header = format!("Bearer {}", token.expose());
        assert!(Bearer::parse(header.as_bytes()) == Some(Bearer::Token(token.expose())));
    }

    #[test]
    fn a_token_and_its_hash_are_not_seen_in_debug_output() {
        let token = Token::generate().unwrap();
        let shown = format!("{token:?} {:?}", token.digest());
        assert_eq!(shown, "Token(redacted) Digest(…)");
    }

    #[test]
    fn a_hash_is_read_as_it_is_written() {
        // FIPS 180-4's own example.
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let digest = Digest::of("abc");
        assert_eq!(digest.to_string(), text);
        assert!(Digest::parse(text).unwrap().matches(&digest));
        assert!(
            Digest::parse(&text.to_uppercase())
                .unwrap()
                .matches(&digest)
        );
        assert!(!Digest::of("abd").matches(&digest));
        for bad in [
            "",
            "ba",
            &text[1..],
            &format!("{text}0"),
            &text.replace('b', "g"),
            &"é".repeat(32),
        ] {
            assert!(Digest::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_header_holds_a_token_or_a_jwt_or_is_malformed() {
        fn parse(header: &str) -> Option<Bearer<'_>> {
            Bearer::parse(header.as_bytes())
        }
        let token = format!("pb_{}", "A".repeat(43));
        for header in [format!("Bearer {token}"), format!("bearer   {token} ")] {
            assert!(parse(&header) == Some(Bearer::Token(&token)), "{header}");
        }
        assert!(parse("BEARER e30.e30.c2ln") == Some(Bearer::Jwt("e30.e30.c2ln")));
        let too_long = format!("Bearer e30.e30.{}", "A".repeat(CREDENTIAL_BYTES_MAX));
        for header in [
            "",
            "Bearer",
            "Bearer ",
            &format!("Basic {token}"),
            &token,
            &format!("Bearer {token}A"),
            &format!("Bearer {token} {token}"),
            "Bearer pb_short",
            "Bearer hunter2",
            "Bearer e30.e30.",
            "Bearer a.b.c.d",
            "Bearer a.b.\u{7}",
            &too_long,
        ] {
            assert!(parse(header).is_none(), "{header}");
        }
        assert!(Bearer::parse(b"Bearer \xff").is_none());
    }
}
