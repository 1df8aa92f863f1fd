//! The text of `X-Webhook-Signature`: exactly `rsassa-pss-sha256=<base64url>`.
//!
//! It refuses every other spelling, so that two receivers can never disagree about what was sent.
//! It knows nothing of keys.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::HeaderFault;

/// What the header begins with.
pub const SCHEME: &str = "rsassa-pss-sha256=";

/// The signature of an 8192-bit key, the longest there can be.
const SIGNATURE_BYTES_MAX: usize = 1024;

/// A well-formed signature that nobody has checked yet.
#[derive(Clone, PartialEq, Eq)]
pub struct Signature {
    bytes: Box<[u8]>,
}

impl Signature {
    /// Reads the value of the header, as it stood in the request.
    ///
    /// # Errors
    /// [`Error::Header`](super::Error::Header), naming what is wrong with it.
    pub fn parse(header_value: &str) -> Result<Self, super::Error> {
        Ok(Self::decode(header_value)?)
    }

    /// The bytes of the signature, big-endian as the sender computed them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn decode(header_value: &str) -> Result<Self, HeaderFault> {
        let Some(text) = header_value.strip_prefix(SCHEME) else {
            return Err(match header_value.strip_prefix("sha256=") {
                Some(_) => HeaderFault::Hmac,
                None => HeaderFault::Scheme,
            });
        };
        let unpadded = text.trim_end_matches('=');
        if unpadded.is_empty() {
            return Err(HeaderFault::Empty);
        }
        if unpadded.len() > SIGNATURE_BYTES_MAX.div_ceil(3) * 4 {
            return Err(HeaderFault::TooLong);
        }
        if unpadded.contains(['+', '/']) {
            return Err(HeaderFault::StandardAlphabet);
        }
        if !unpadded
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        {
            return Err(HeaderFault::Alphabet);
        }
        // Padding is complete or absent, and unused bits are zero: a signature has two spellings.
        if unpadded.len() < text.len() && (text.len() % 4 != 0 || text.len() - unpadded.len() > 2) {
            return Err(HeaderFault::Length);
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(unpadded)
            .map_err(|_| HeaderFault::Length)?;
        if bytes.len() > SIGNATURE_BYTES_MAX {
            return Err(HeaderFault::TooLong);
        }
        Ok(Self {
            bytes: bytes.into_boxed_slice(),
        })
    }
}

impl std::fmt::Debug for Signature {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Signature({} bytes)", self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(header: &str) -> HeaderFault {
        Signature::decode(header).unwrap_err()
    }

    #[test]
    fn padding_is_optional_and_means_nothing() {
        let bare = Signature::parse("rsassa-pss-sha256=-_8").unwrap();
        let padded = Signature::parse("rsassa-pss-sha256=-_8=").unwrap();
        assert_eq!(bare, padded);
        assert_eq!(bare.as_bytes(), [0xfb, 0xff]);
    }

    #[test]
    fn every_other_spelling_is_refused_by_name() {
        assert_eq!(fault("sha256=00ff"), HeaderFault::Hmac);
        for header in [
            "",
            "AAAA",
            "RSASSA-PSS-SHA256=AAAA",
            " rsassa-pss-sha256=AAAA",
            "rsa=AAAA",
        ] {
            assert_eq!(fault(header), HeaderFault::Scheme, "{header:?}");
        }
        for text in ["-+AA", "ab/c"] {
            assert_eq!(
                fault(&format!("{SCHEME}{text}")),
                HeaderFault::StandardAlphabet
            );
        }
        for text in [
            "AA A",
            "AAAA ",
            " AAAA",
            "AA=A",
            "AAAA\u{e9}",
            "AAAA,",
            "AAAA\n",
        ] {
            assert_eq!(
                fault(&format!("{SCHEME}{text}")),
                HeaderFault::Alphabet,
                "{text:?}"
            );
        }
        // A lone sextet, too much padding, bits left over that are not zero.
        for text in ["AAAAA", "AAAA=", "AA=", "AA===", "AB", "AAAA===="] {
            assert_eq!(
                fault(&format!("{SCHEME}{text}")),
                HeaderFault::Length,
                "{text:?}"
            );
        }
        for text in ["", "="] {
            assert_eq!(fault(&format!("{SCHEME}{text}")), HeaderFault::Empty);
        }
    }

    #[test]
    fn a_signature_is_bounded_by_the_largest_key() {
        let of = |bytes: usize| format!("{SCHEME}{}", URL_SAFE_NO_PAD.encode(vec![7; bytes]));
        assert_eq!(Signature::parse(&of(1024)).unwrap().as_bytes().len(), 1024);
        assert_eq!(fault(&of(1025)), HeaderFault::TooLong);
        assert_eq!(fault(&of(1_000_000)), HeaderFault::TooLong);
    }

    #[test]
    fn debug_does_not_spill_the_signature() {
        let signature = Signature::parse("rsassa-pss-sha256=AAAA").unwrap();
        assert_eq!(format!("{signature:?}"), "Signature(3 bytes)");
    }
}
