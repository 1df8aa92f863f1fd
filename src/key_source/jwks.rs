//! Key sets as JWKS writes them (RFC 7517), read key by key, so that a strange one spoils nothing but
//! itself. Knows nothing of what a key is good for.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{DOCUMENT_BYTES_MAX, DocumentFault};

/// The members of a JWK; encoders disagree about padding.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The members that somebody looks at, each of any type, so that a strange one refuses only its own
/// key.
#[derive(Deserialize)]
pub(crate) struct Jwk {
    kty: Option<Value>,
    crv: Option<Value>,
    alg: Option<Value>,
    kid: Option<Value>,
    n: Option<Value>,
    e: Option<Value>,
    x: Option<Value>,
    y: Option<Value>,
    #[serde(rename = "use")]
    usage: Option<Value>,
}

/// The keys of a document like `{"keys":[…]}`, in its order; `None` for what is no object with the
/// members of a key.
///
/// # Errors
/// The document as a whole is too large or of another shape.
pub(crate) fn read_jwks(document: &[u8]) -> Result<Vec<Option<Jwk>>, DocumentFault> {
    #[derive(Deserialize)]
    struct Jwks<'a> {
        #[serde(borrow)]
        keys: Vec<&'a RawValue>,
    }
    check_size(document)?;
    let not_jwks = |detail: String| DocumentFault::NotJwks { detail };
    let text = std::str::from_utf8(document).map_err(|fault| not_jwks(fault.to_string()))?;
    let jwks: Jwks<'_> = serde_json::from_str(text).map_err(|fault| not_jwks(fault.to_string()))?;
    let keys = jwks.keys.into_iter();
    Ok(keys
        .map(|raw| serde_json::from_str(raw.get()).ok())
        .collect())
}

/// Refuses what has more bytes than a key document may have.
pub(crate) fn check_size(document: &[u8]) -> Result<(), DocumentFault> {
    if document.len() > DOCUMENT_BYTES_MAX {
        return Err(DocumentFault::TooLarge {
            bytes_max: DOCUMENT_BYTES_MAX,
        });
    }
    Ok(())
}

impl Jwk {
    pub(crate) fn key_type(&self) -> Option<&str> {
        text(&self.kty)
    }

    pub(crate) fn curve(&self) -> Option<&str> {
        text(&self.crv)
    }

    pub(crate) fn algorithm(&self) -> Option<&str> {
        text(&self.alg)
    }

    pub(crate) fn id(&self) -> Option<&str> {
        text(&self.kid)
    }

    /// Whether it is not for another use than signatures.
    pub(crate) fn is_for_signatures(&self) -> bool {
        self.usage.is_none() || text(&self.usage) == Some("sig")
    }

    /// The modulus (`n`) of an RSA key.
    pub(crate) fn modulus(&self) -> Option<Vec<u8>> {
        bytes(&self.n)
    }

    /// The exponent (`e`) of an RSA key.
    pub(crate) fn exponent(&self) -> Option<Vec<u8>> {
        bytes(&self.e)
    }

    /// The `x` of a key on a curve.
    pub(crate) fn x(&self) -> Option<Vec<u8>> {
        bytes(&self.x)
    }

    /// The `y` of a key on a curve.
    pub(crate) fn y(&self) -> Option<Vec<u8>> {
        bytes(&self.y)
    }
}

fn text(member: &Option<Value>) -> Option<&str> {
    member.as_ref()?.as_str()
}

fn bytes(member: &Option<Value>) -> Option<Vec<u8>> {
    BASE64URL.decode(text(member)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strange_key_or_member_spoils_nothing_else() {
        let document = br#"{"keys":[7,{"kty":"RSA","kid":5,"n":"AQ==","e":"AQAB","use":"enc"},
            {"kty":"EC","crv":"P-256","x":"!","y":"Ag","alg":null}],"more":[]}"#;
        let keys = read_jwks(document).unwrap();
        let [None, Some(rsa), Some(ec)] = keys.as_slice() else {
            panic!("{} keys", keys.len());
        };
        assert_eq!((rsa.key_type(), rsa.id()), (Some("RSA"), None));
        assert_eq!(
            (rsa.modulus(), rsa.exponent()),
            (Some(vec![1]), Some(vec![1, 0, 1]))
        );
        assert!(!rsa.is_for_signatures() && ec.is_for_signatures());
        assert_eq!((ec.curve(), ec.algorithm()), (Some("P-256"), None));
        assert_eq!((ec.x(), ec.y()), (None, Some(vec![2])));
    }

    #[test]
    fn a_document_that_is_too_large_or_no_key_set_says_so() {
        let mut document = br#"{"keys":[]}"#.to_vec();
        document.resize(DOCUMENT_BYTES_MAX, b' ');
        assert!(read_jwks(&document).unwrap().is_empty());
        document.push(b' ');
        let bytes_max = DOCUMENT_BYTES_MAX;
        let fault = read_jwks(&document).err();
        assert_eq!(fault, Some(DocumentFault::TooLarge { bytes_max }));
        for text in [&b""[..], b"{}", b"[]", br#"{"keys":{}}"#, b"\xff"] {
            let fault = read_jwks(text).err();
            assert!(
                matches!(fault, Some(DocumentFault::NotJwks { .. })),
                "{text:?}"
            );
        }
    }
}
