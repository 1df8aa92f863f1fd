//! One captured delivery explained: which key, which salt, and what exactly failed, in sentences.
//!
//! It shares the parsers with the way that decides, and uses the slow, readable arithmetic to look
//! inside. It decides nothing itself: a report is no [`VerifiedBody`](super::VerifiedBody).

use std::borrow::Cow;

use rsa::traits::PublicKeyParts as _;

use super::pss::{BodyDigest, Encoded, Recovered, recover};
use super::{Error, HeaderFault, KeySet, PublicKey, Signature};

/// What a delivery's signature turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The whole of it in one sentence.
    pub sentence: String,
    /// Whether a key verified it.
    pub is_valid: bool,
    /// Each key that was looked at, in the order of the set.
    pub attempts: Vec<Attempt>,
    /// The keys that were not, each with its reason.
    pub skipped: Vec<String>,
}

/// What one key made of the signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The `kid`, or the thumbprint where there is none.
    pub key: String,
    /// The length of the key's modulus.
    pub bits: usize,
    /// What was found.
    pub finding: Finding,
}

/// What the inside of a signature shows under one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// This key signed these bytes.
    Valid {
        /// The length of the salt.
        salt_bytes: usize,
    },
    /// The signature has another length than this key makes.
    WrongLength {
        /// The signature's.
        signature_bytes: usize,
        /// The key's.
        key_bytes: usize,
    },
    /// A number as large as the modulus or larger.
    NotBelowModulus,
    /// A PKCS#1 v1.5 signature of this key, as access tokens have.
    Pkcs1V15 {
        /// Whether it is one over this body.
        is_of_body: bool,
    },
    /// No padding that this key could have made: another key's signature, or a damaged one.
    PaddingMalformed,
    /// This key signed with PSS, but other bytes.
    OtherBody {
        /// The length of the salt.
        salt_bytes: usize,
        /// What was done to the body since it was signed, where that can be told.
        change: Option<&'static str>,
    },
}

/// Explains what the header says about the body under the keys.
pub fn explain(body: &[u8], header_value: &str, keys: &KeySet) -> Explanation {
    let skipped = keys.skipped().iter().map(ToString::to_string).collect();
    let signature = match Signature::parse(header_value) {
        Ok(signature) => signature,
        Err(fault) => {
            let sentence = sentence_of_header(&fault);
            return Explanation {
                sentence,
                is_valid: false,
                attempts: Vec::new(),
                skipped,
            };
        }
    };
    let digest = BodyDigest::of(body);
    let attempts: Vec<Attempt> = keys
        .keys()
        .iter()
        .map(|key| Attempt {
            key: key.id().unwrap_or(key.thumbprint()).to_owned(),
            bits: key.bits(),
            finding: look(key, body, &digest, &signature),
        })
        .collect();
    let is_valid = attempts
        .iter()
        .any(|a| matches!(a.finding, Finding::Valid { .. }));
    let sentence = match attempts.iter().min_by_key(|attempt| attempt.finding.rank()) {
        Some(best) if attempts.len() > 1 && !best.finding.names_the_signer() => format!(
            "none of the {} keys in the set made this signature: another key did, or it is damaged.",
            attempts.len()
        ),
        Some(best) => best.sentence(),
        None => sentence_of_no_key(keys),
    };
    Explanation {
        sentence,
        is_valid,
        attempts,
        skipped,
    }
}

fn look(key: &PublicKey, body: &[u8], digest: &BodyDigest, signature: &Signature) -> Finding {
    let signature_bytes = signature.as_bytes().len();
    let message = match recover(key.numbers(), signature.as_bytes()) {
        Recovered::WrongLength { key_bytes } => {
            return Finding::WrongLength {
                signature_bytes,
                key_bytes,
            };
        }
        Recovered::NotBelowModulus => return Finding::NotBelowModulus,
        Recovered::Message(message) => message,
    };
    if let Some(is_of_body) = as_pkcs1_v15(&message, digest) {
        return Finding::Pkcs1V15 { is_of_body };
    }
    let Some(encoded) = Encoded::parse(&message, key.numbers().n().bits()) else {
        return Finding::PaddingMalformed;
    };
    let salt_bytes = encoded.salt_bytes();
    // The fast way has the last word about validity, so that a report never contradicts it.
    if encoded.is_of(digest) && key.verify_digest(digest, signature) {
        return Finding::Valid { salt_bytes };
    }
    let change = CHANGES.iter().find_map(|(what, undo)| {
        let original = undo(body)?;
        encoded.is_of(&BodyDigest::of(&original)).then_some(*what)
    });
    Finding::OtherBody { salt_bytes, change }
}

/// Whether the message is `00 01 FF… 00 DigestInfo` (RFC 8017, section 9.2), and if so whether the
/// digest at its end is the body's.
fn as_pkcs1_v15(message: &[u8], digest: &BodyDigest) -> Option<bool> {
    let padded = message.strip_prefix(&[0, 1])?;
    let ones = padded.iter().take_while(|byte| **byte == 0xff).count();
    let rest = padded.get(ones..)?;
    (ones >= 8 && rest.first() == Some(&0)).then(|| rest.ends_with(digest.as_bytes()))
}

type Undo = fn(&[u8]) -> Option<Cow<'_, [u8]>>;

/// What happens to bodies on their way into a file, and how to take it back.
const CHANGES: &[(&str, Undo)] = &[
    ("a newline was added at its end", |body| {
        body.strip_suffix(b"\r\n")
            .or_else(|| body.strip_suffix(b"\n"))
            .map(Cow::Borrowed)
    }),
    ("the newline at its end was lost", |body| {
        Some([body, b"\n"].concat().into())
    }),
    ("space was added around it", |body| {
        Some(body.trim_ascii().into())
    }),
    ("a byte order mark was put before it", |body| {
        body.strip_prefix(b"\xef\xbb\xbf").map(Cow::Borrowed)
    }),
    ("its line ends were changed to CR LF", |body| {
        Some(without_carriage_returns(body).into())
    }),
    ("it was pretty-printed", |body| Some(minified(body).into())),
    ("it was serialised without the spaces it had", |body| {
        Some(spaced(body).into())
    }),
];

fn without_carriage_returns(body: &[u8]) -> Vec<u8> {
    let mut bytes = body.iter().copied().peekable();
    let mut out = Vec::with_capacity(body.len());
    while let Some(byte) = bytes.next() {
        if byte != b'\r' || bytes.peek() != Some(&b'\n') {
            out.push(byte);
        }
    }
    out
}

/// JSON without the white space between its tokens.
fn minified(json: &[u8]) -> Vec<u8> {
    outside_strings(json, |byte, out| {
        if !byte.is_ascii_whitespace() {
            out.push(byte);
        }
    })
}

/// JSON with one space after each comma and colon, as some languages write it.
fn spaced(json: &[u8]) -> Vec<u8> {
    outside_strings(json, |byte, out| {
        if !byte.is_ascii_whitespace() {
            out.push(byte);
            if matches!(byte, b',' | b':') {
                out.push(b' ');
            }
        }
    })
}

/// Copies strings as they are and asks about every other byte.
fn outside_strings(json: &[u8], mut write: impl FnMut(u8, &mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for &byte in json {
        if in_string {
            out.push(byte);
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if byte == b'"' {
            out.push(byte);
            in_string = true;
        } else {
            write(byte, &mut out);
        }
    }
    out
}

impl Finding {
    /// A short, stable name for machines.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Valid { .. } => "valid",
            Self::WrongLength { .. } => "wrong_length",
            Self::NotBelowModulus => "not_below_modulus",
            Self::Pkcs1V15 { .. } => "pkcs1_v15",
            Self::PaddingMalformed => "padding_malformed",
            Self::OtherBody { .. } => "other_body",
        }
    }

    /// Whether the key is the one that made the signature, whatever else is wrong.
    fn names_the_signer(&self) -> bool {
        match self {
            Self::Valid { .. } | Self::OtherBody { .. } | Self::Pkcs1V15 { .. } => true,
            Self::PaddingMalformed | Self::NotBelowModulus | Self::WrongLength { .. } => false,
        }
    }

    /// The most telling finding has the lowest rank: the sentence is about it.
    fn rank(&self) -> u8 {
        match self {
            Self::Valid { .. } => 0,
            Self::OtherBody { .. } => 1,
            Self::Pkcs1V15 { .. } => 2,
            Self::PaddingMalformed => 3,
            Self::NotBelowModulus => 4,
            Self::WrongLength { .. } => 5,
        }
    }
}

impl Attempt {
    /// What this key shows, as a sentence.
    pub fn sentence(&self) -> String {
        let key = format!("key {:?} ({} bits)", self.key, self.bits);
        match &self.finding {
            Finding::Valid { salt_bytes } => {
                format!("signed by {key} with a salt of {salt_bytes} bytes.")
            }
            Finding::WrongLength {
                signature_bytes,
                key_bytes,
            } => format!(
                "the signature has {signature_bytes} bytes but {key} makes {key_bytes}: it is cut \
                 short, or made by another key."
            ),
            Finding::NotBelowModulus => format!(
                "the signature is a number not below the modulus of {key}: it is damaged, or made \
                 by another key."
            ),
            Finding::Pkcs1V15 { is_of_body: true } => format!(
                "{key} signed this body, but with PKCS#1 v1.5 (RS256): expected RSASSA-PSS."
            ),
            Finding::Pkcs1V15 { is_of_body: false } => format!(
                "{key} made a PKCS#1 v1.5 signature (RS256) over other bytes, perhaps an access \
                 token: expected RSASSA-PSS over the body."
            ),
            Finding::PaddingMalformed => format!(
                "the padding makes no sense under {key}: another key made the signature, or it is \
                 damaged."
            ),
            Finding::OtherBody {
                salt_bytes,
                change: Some(change),
            } => format!(
                "{key} signed this body with a salt of {salt_bytes} bytes, but {change} since."
            ),
            Finding::OtherBody {
                salt_bytes,
                change: None,
            } => format!(
                "{key} made this signature, with a salt of {salt_bytes} bytes, but over another \
                 body: this one was changed or belongs to another delivery."
            ),
        }
    }
}

fn sentence_of_header(fault: &Error) -> String {
    let advice = match fault {
        Error::Header(HeaderFault::Scheme) => {
            ": give the value of X-Webhook-Signature as it came, rsassa-pss-sha256=<base64url>"
        }
        _ => "",
    };
    format!("{fault}{advice}.")
}

fn sentence_of_no_key(keys: &KeySet) -> String {
    match keys.clone().require_usable() {
        Err(fault) => format!("{fault}."),
        // Not reached: a set with keys yields attempts.
        Ok(_) => "no key was tried.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use rsa::traits::PublicKeyParts as _;

    use super::super::SCHEME;
    use super::super::testing::{Salt, jwks, other_signer, signer};
    use super::*;

    const BODY: &[u8] = br#"{"app_id":"54e9ujn","events":[{"x":"a, b: \"c\""}]}"#;

    fn keys() -> KeySet {
        KeySet::from_jwks(jwks(&[signer().jwk("k1")]).as_bytes()).unwrap()
    }

    fn header(signature: &[u8]) -> String {
        format!("{SCHEME}{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn sentence(body: &[u8], signature: &[u8]) -> String {
        let explanation = explain(body, &header(signature), &keys());
        assert!(!explanation.is_valid);
        explanation.sentence
    }

    #[test]
    fn a_valid_signature_names_its_key_and_salt() {
        for (salt, bytes) in [
            (Salt::None, 0),
            (Salt::Twenty, 20),
            (Salt::Digest, 32),
            (Salt::Longest, 222),
        ] {
            let explanation = explain(BODY, &header(&signer().sign(BODY, salt)), &keys());
            assert!(explanation.is_valid);
            assert_eq!(
                explanation.sentence,
                format!(r#"signed by key "k1" (2048 bits) with a salt of {bytes} bytes."#)
            );
        }
    }

    #[test]
    fn each_fault_of_the_header_has_its_sentence() {
        let said = |header: &str| explain(BODY, header, &keys()).sentence;
        assert!(said("AAAA").contains("does not begin with rsassa-pss-sha256="));
        assert!(said("sha256=00").contains("is an HMAC"));
        assert!(said("rsassa-pss-sha256=ab+/").contains("standard base64"));
        assert!(said("rsassa-pss-sha256=ab c").contains("outside of A-Z a-z 0-9 - _"));
        assert!(said("rsassa-pss-sha256=A").contains("cut short"));
        assert!(said("rsassa-pss-sha256=").contains("is empty"));
    }

    #[test]
    fn each_fault_of_the_signature_has_its_sentence() {
        let signature = signer().sign(BODY, Salt::Digest);
        assert!(sentence(BODY, &signature[..200]).contains("has 200 bytes but key \"k1\""));
        assert!(sentence(BODY, &[0xff; 256]).contains("not below the modulus"));
        assert!(sentence(BODY, &[3; 256]).contains("the padding makes no sense"));
        let foreign = sentence(BODY, &other_signer().sign(BODY, Salt::Digest));
        assert!(
            foreign.contains("the padding makes no sense") || foreign.contains("not below"),
            "{foreign}"
        );
        let rs256 = sentence(BODY, &signer().sign_pkcs1(BODY));
        assert!(
            rs256.contains("signed this body, but with PKCS#1 v1.5"),
            "{rs256}"
        );
        let token = sentence(BODY, &signer().sign_pkcs1(b"header.payload"));
        assert!(
            token.contains("over other bytes, perhaps an access token"),
            "{token}"
        );
        let other = sentence(b"another body", &signature);
        assert!(
            other.contains("salt of 32 bytes, but over another body"),
            "{other}"
        );
    }

    #[test]
    fn what_happened_to_the_body_is_named() {
        let signature = signer().sign(BODY, Salt::Longest);
        let text = std::str::from_utf8(BODY).unwrap();
        let pretty = text
            .replace('{', "{\n  ")
            .replace("],", "],\n")
            .replace("\":", "\": ");
        for (changed, what) in [
            (format!("{text}\n"), "a newline was added at its end"),
            (format!("{text}\r\n"), "a newline was added at its end"),
            (format!("  {text} \n"), "space was added around it"),
            (format!("\u{feff}{text}"), "a byte order mark"),
            (pretty, "it was pretty-printed"),
        ] {
            let said = sentence(changed.as_bytes(), &signature);
            assert!(said.contains(what), "{what}: {said}");
        }
        let signed = b"{\"a\": [1, 2]}\n";
        let signature = signer().sign(signed, Salt::Digest);
        assert!(sentence(signed.trim_ascii(), &signature).contains("newline at its end was lost"));
        assert!(sentence(b"{\"a\": [1, 2]}\r\n", &signature).contains("CR LF"));
        let signature = signer().sign(signed.trim_ascii(), Salt::Digest);
        assert!(sentence(b"{\"a\":[1,2]}", &signature).contains("without the spaces it had"));
    }

    #[test]
    fn the_most_telling_key_makes_the_sentence() {
        let set = jwks(&[other_signer().jwk("other"), signer().jwk("right")]);
        let set = KeySet::from_jwks(set.as_bytes()).unwrap();
        let signature = header(&signer().sign(BODY, Salt::Digest));
        let explanation = explain(BODY, &signature, &set);
        assert!(explanation.is_valid && explanation.sentence.contains("\"right\""));
        assert_eq!(explanation.attempts.len(), 2);
        let forged = explain(BODY, &header(&[3; 256]), &set);
        assert!(
            forged.sentence.starts_with("none of the 2 keys in the set"),
            "{}",
            forged.sentence
        );
        let changed = explain(b"changed", &signature, &set);
        assert!(
            changed.sentence.starts_with("key \"right\""),
            "{}",
            changed.sentence
        );
    }

    #[test]
    fn a_set_without_a_usable_key_says_why() {
        let set = KeySet::from_jwks(br#"{"keys":[{"kty":"EC","kid":"e"}]}"#).unwrap();
        let explanation = explain(BODY, &signer().header(BODY), &set);
        assert_eq!(
            explanation.sentence,
            r#"the set has no usable RSA key: key 1 ("e") is of another type than RSA."#
        );
        assert_eq!(explanation.skipped.len(), 1);
        let none = explain(BODY, &signer().header(BODY), &KeySet::default());
        assert_eq!(none.sentence, "the set has no usable RSA key.");
    }

    #[test]
    fn a_key_without_an_id_is_named_by_its_thumbprint() {
        let key = signer().public();
        let key = PublicKey::from_components(None, &key.n().to_bytes_be(), &[1, 0, 1]).unwrap();
        assert_eq!(key.thumbprint().len(), 43);
    }
}
