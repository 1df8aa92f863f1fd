//! A set of keys out of a document: JWKS (RFC 7517) or PEM.
//!
//! It is tolerant where senders differ (other key types, labels, duplicates, extra members) and
//! strict about what a key is; what it leaves out it lists with the reason. It reads bytes, never
//! files or the network.

use bytes::Bytes;
use rsa::pkcs1;
use rsa::pkcs8::der::{Decode as _, pem};
use rsa::pkcs8::spki::SubjectPublicKeyInfoRef;

use super::{Error, KeySetFault, PublicKey, Signature, VerifiedBody, pss};
use crate::key_source::{Jwk, KEYS_MAX, KeySource, check_size, read_jwks};

/// How many left-out keys are listed by name; the others are only counted.
const SKIPPED_LISTED_MAX: usize = 64;

/// The keys of one app, in the order of their document.
#[derive(Debug, Clone, Default)]
pub struct KeySet {
    keys: Vec<PublicKey>,
    skipped: Vec<Skipped>,
    skipped_count: usize,
}

/// A key that was left out of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Which one: its place in the document, counted from 1, and its id where it has one.
    pub key: String,
    /// Why, as the end of a sentence.
    pub reason: String,
}

impl KeySet {
    /// Reads a document of this source's kind.
    ///
    /// # Errors
    /// As [`KeySet::from_jwks`] or [`KeySet::from_pem`].
    pub fn read(source: &KeySource, document: &[u8]) -> Result<Self, KeySetFault> {
        match source {
            KeySource::Url(_) | KeySource::JwksFile(_) => Self::from_jwks(document),
            KeySource::PemFile(_) => Self::from_pem(document),
        }
    }

    /// Reads `{"keys":[…]}`. One bad key never spoils the set, and labels like `alg` refuse nothing.
    ///
    /// # Errors
    /// [`KeySetFault`] if the document as a whole is too large or of another shape. A set without a
    /// usable key is no error here: see [`KeySet::require_usable`].
    pub fn from_jwks(document: &[u8]) -> Result<Self, KeySetFault> {
        let mut set = Self::default();
        for (index, jwk) in read_jwks(document)?.iter().enumerate() {
            match jwk {
                Some(jwk) => set.add(name(index, jwk.id()), import(jwk)),
                None => set.skip(
                    name(index, None),
                    "is no JSON object with the members of a key",
                ),
            }
        }
        Ok(set)
    }

    /// Reads one or more PEM blocks: `PUBLIC KEY` (SPKI) or `RSA PUBLIC KEY` (PKCS#1).
    ///
    /// # Errors
    /// [`KeySetFault`] if the document is too large or has no PEM block at all.
    pub fn from_pem(document: &[u8]) -> Result<Self, KeySetFault> {
        check_size(document)?;
        let text = std::str::from_utf8(document).map_err(|_| KeySetFault::NotPem)?;
        let mut set = Self::default();
        let mut rest = text;
        let mut index = 0;
        while let Some((block, after)) = next_pem_block(rest) {
            set.add(name(index, None), import_pem(block));
            rest = after;
            index += 1;
        }
        if index == 0 {
            Err(KeySetFault::NotPem)
        } else {
            Ok(set)
        }
    }

    /// The set, if it has at least one key to verify with.
    ///
    /// # Errors
    /// [`KeySetFault::NoUsableKey`] with the reasons.
    pub fn require_usable(self) -> Result<Self, KeySetFault> {
        if !self.is_empty() {
            return Ok(self);
        }
        let reasons: Vec<String> = self
            .skipped
            .iter()
            .take(3)
            .map(|skipped| skipped.to_string())
            .collect();
        let detail = if reasons.is_empty() {
            String::new()
        } else {
            format!(": {}", reasons.join("; "))
        };
        Err(KeySetFault::NoUsableKey { detail })
    }

    /// Verifies at once, key after key. For servers there is
    /// [`Keyring::verify`](super::Keyring::verify), which gives way between keys and knows rotation.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if no key of the set made the signature.
    pub fn verify(
        &self,
        body: Bytes,
        signature: &Signature,
        key_id: Option<&str>,
    ) -> Result<VerifiedBody, Error> {
        let digest = pss::BodyDigest::of(&body);
        self.in_order(key_id)
            .find(|key| key.verify_digest(&digest, signature))
            .map(|key| VerifiedBody::new(body, key))
            .ok_or(Error::Mismatch)
    }

    /// The keys that may be used.
    pub fn keys(&self) -> &[PublicKey] {
        &self.keys
    }

    /// Whether nothing can be verified with it.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys that were left out, at most 64 of them.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// How many were left out in all.
    pub fn skipped_count(&self) -> usize {
        self.skipped_count
    }

    /// Every key once: those with this id first (ids need not be unique), then the others.
    pub(super) fn in_order<'a>(
        &'a self,
        key_id: Option<&'a str>,
    ) -> impl Iterator<Item = &'a PublicKey> {
        let named = move |key: &&PublicKey| key_id.is_some() && key.id() == key_id;
        let first = self.keys.iter().filter(named);
        first.chain(self.keys.iter().filter(move |key| !named(key)))
    }

    /// Whether the very same key is in the set under the same id.
    pub(super) fn contains(&self, key: &PublicKey) -> bool {
        self.keys
            .iter()
            .any(|k| k.thumbprint() == key.thumbprint() && k.id() == key.id())
    }

    fn add(&mut self, name: String, imported: Result<PublicKey, String>) {
        match imported {
            Ok(key) if self.contains(&key) => self.skip(name, "is in the set already"),
            Ok(_) if self.keys.len() == KEYS_MAX => {
                self.skip(
                    name,
                    format!("is one too many: only the first {KEYS_MAX} are used"),
                );
            }
            Ok(key) => self.keys.push(key),
            Err(reason) => self.skip(name, reason),
        }
    }

    fn skip(&mut self, key: String, reason: impl Into<String>) {
        self.skipped_count += 1;
        if self.skipped.len() < SKIPPED_LISTED_MAX {
            self.skipped.push(Skipped {
                key,
                reason: reason.into(),
            });
        }
    }
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}", self.key, self.reason)
    }
}

fn import(jwk: &Jwk) -> Result<PublicKey, String> {
    match jwk.key_type() {
        Some("RSA") => {}
        Some(_) => return Err("is of another type than RSA".into()),
        None => return Err("has no type (kty)".into()),
    }
    if !jwk.is_for_signatures() {
        return Err("is for another use than signatures (use is not sig)".into());
    }
    let n = jwk.modulus().ok_or("has no modulus (n) in base64url")?;
    let e = jwk.exponent().ok_or("has no exponent (e) in base64url")?;
    PublicKey::from_components(jwk.id(), &n, &e).map_err(|fault| format!("is refused: {fault}"))
}

fn import_pem(block: &str) -> Result<PublicKey, String> {
    let (label, der) =
        pem::decode_vec(block.as_bytes()).map_err(|fault| format!("is damaged: {fault}"))?;
    let numbers = match label {
        "RSA PUBLIC KEY" => &der,
        "PUBLIC KEY" => spki_numbers(&der)?,
        "CERTIFICATE" => {
            return Err(
                "is a certificate: extract its key with openssl x509 -pubkey -noout".into(),
            );
        }
        private if private.ends_with("PRIVATE KEY") => {
            return Err("is a private key: give the public one (openssl pkey -pubout)".into());
        }
        _ => return Err("is no public key".into()),
    };
    let key = pkcs1::RsaPublicKey::from_der(numbers)
        .map_err(|fault| format!("is no RSA key: {fault}"))?;
    PublicKey::from_components(None, key.modulus.as_bytes(), key.public_exponent.as_bytes())
        .map_err(|fault| format!("is refused: {fault}"))
}

/// The PKCS#1 key inside of an SPKI; a key marked for PSS alone is accepted like any RSA key.
fn spki_numbers(der: &[u8]) -> Result<&[u8], String> {
    let spki = SubjectPublicKeyInfoRef::from_der(der)
        .map_err(|fault| format!("is no public key: {fault}"))?;
    if ![pkcs1::ALGORITHM_OID, pss::RSASSA_PSS].contains(&spki.algorithm.oid) {
        return Err("is of another type than RSA".into());
    }
    spki.subject_public_key
        .as_bytes()
        .ok_or_else(|| "is no RSA key".into())
}

/// The next block from its BEGIN to its END, and what follows it.
fn next_pem_block(text: &str) -> Option<(&str, &str)> {
    let block = text.get(text.find("-----BEGIN ")?..)?;
    let end = block.find("-----END ")?;
    let end_line = block.get(end..)?;
    let length = end
        + end_line
            .find('\n')
            .map_or(end_line.len(), |newline| newline + 1);
    block.split_at_checked(length)
}

fn name(index: usize, id: Option<&str>) -> String {
    match id {
        Some(id) => format!("key {} ({id:?})", index + 1),
        None => format!("key {}", index + 1),
    }
}

#[cfg(test)]
mod tests {
    use rsa::pkcs1::EncodeRsaPublicKey as _;
    use rsa::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _, LineEnding};

    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

    use super::super::testing::{Salt, jwks, other_signer, signer};
    use super::*;
    use crate::key_source::{DOCUMENT_BYTES_MAX, DocumentFault};

    const BODY: &[u8] = b"a body";

    fn ids(set: &KeySet) -> Vec<&str> {
        set.keys()
            .iter()
            .map(|key| key.id().unwrap_or("-"))
            .collect()
    }

    fn read(keys: &[String]) -> KeySet {
        KeySet::from_jwks(jwks(keys).as_bytes()).unwrap()
    }

    #[test]
    fn one_bad_key_never_spoils_the_set() {
        let good = signer().jwk("good");
        let set = read(&[
            r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA","kid":"elliptic"}"#.into(),
            r#"{"kty":"AKP","alg":"ML-DSA-65","pub":"AA"}"#.into(),
            good.replace(r#""use":"sig""#, r#""use":"enc""#),
            r#"{"kty":"RSA","kid":"short","n":"AQAB","e":"AQAB"}"#.into(),
            r#"{"kty":"RSA","n":"*","e":"AQAB"}"#.into(),
            r#"{"kty":7}"#.into(),
            "null".into(),
            "[[]]".into(),
            good.clone(),
        ]);
        assert_eq!(ids(&set), ["good"]);
        let reasons: Vec<String> = set.skipped().iter().map(ToString::to_string).collect();
        assert_eq!(
            reasons[0],
            r#"key 1 ("elliptic") is of another type than RSA"#
        );
        assert_eq!(reasons[1], "key 2 is of another type than RSA");
        assert!(reasons[2].contains("another use"), "{}", reasons[2]);
        assert!(reasons[3].contains("fewer than 2048"), "{}", reasons[3]);
        assert!(reasons[4].contains("no modulus"), "{}", reasons[4]);
        assert!(reasons[5].contains("no type"), "{}", reasons[5]);
        assert_eq!(set.skipped_count(), 8);
    }

    #[test]
    fn labels_never_refuse_a_key() {
        let plain = signer().jwk("k");
        for label in ["PS256", "RS512", "none", "HS256", ""] {
            let set = read(&[plain.replace("RS256", label)]);
            assert_eq!(ids(&set), ["k"], "{label}");
        }
        let bare = plain.replace(r#""use":"sig","alg":"RS256","#, "");
        assert_eq!(ids(&read(&[bare.replace(r#""kid":"k","#, "")])), ["-"]);
        assert_eq!(
            ids(&read(&[bare.replace(r#""kid":"k""#, r#""kid":5"#)])),
            ["-"]
        );
        let padded = plain.replace(r#""e":"AQAB""#, r#""e":"AAEAAQ==","x5c":["?"],"key_ops":1"#);
        assert_eq!(ids(&read(&[padded])), ["k"]);
    }

    #[test]
    fn keys_may_share_an_id_and_each_is_tried() {
        let set = read(&[
            signer().jwk("same"),
            other_signer().jwk("same"),
            signer().jwk("same"),
        ]);
        assert_eq!(ids(&set), ["same", "same"]);
        assert_eq!(
            set.skipped()[0].to_string(),
            r#"key 3 ("same") is in the set already"#
        );
        for signer in [signer(), other_signer()] {
            let signature = signer.signature(BODY);
            let verified = set.verify(BODY.into(), &signature, Some("same")).unwrap();
            assert_eq!(verified.key_id(), Some("same"));
        }
    }

    #[test]
    fn the_named_key_comes_first_and_every_key_comes_once() {
        let set = read(&[
            signer().jwk("a"),
            other_signer().jwk("b"),
            signer().jwk("c"),
        ]);
        let order = |id| {
            set.in_order(id)
                .filter_map(PublicKey::id)
                .collect::<Vec<_>>()
        };
        assert_eq!(order(None), ["a", "b", "c"]);
        assert_eq!(order(Some("c")), ["c", "a", "b"]);
        assert_eq!(order(Some("unknown")), ["a", "b", "c"]);
        // A wrong name costs an attempt, not the delivery.
        let signature = signer().signature(BODY);
        assert_eq!(
            set.verify(BODY.into(), &signature, Some("b"))
                .unwrap()
                .key_id(),
            Some("a")
        );
    }

    #[test]
    fn only_the_first_32_keys_are_used() {
        let keys: Vec<String> = (0..40).map(|i| signer().jwk(&format!("k{i}"))).collect();
        let set = read(&keys[..32]);
        assert_eq!((set.keys().len(), set.skipped_count()), (32, 0));
        let set = read(&keys);
        assert_eq!((set.keys().len(), set.skipped_count()), (32, 8));
        assert!(set.skipped()[0].reason.contains("only the first 32"));
    }

    #[test]
    fn a_document_is_bounded_and_so_are_its_complaints() {
        let mut at_limit = jwks(&[signer().jwk("k")]);
        at_limit.push_str(&" ".repeat(DOCUMENT_BYTES_MAX - at_limit.len()));
        assert_eq!(
            KeySet::from_jwks(at_limit.as_bytes()).unwrap().keys().len(),
            1
        );
        let fault = KeySet::from_jwks(format!("{at_limit} ").as_bytes()).unwrap_err();
        assert_eq!(fault, DocumentFault::TooLarge { bytes_max: 65_536 }.into());
        let many = read(&vec!["{}".to_owned(); 5_000]);
        assert_eq!((many.skipped().len(), many.skipped_count()), (64, 5_000));
    }

    #[test]
    fn what_is_no_key_set_says_so() {
        for text in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"keys":{}}"#,
            "<html>",
            "\u{feff}{}",
        ] {
            let fault = KeySet::from_jwks(text.as_bytes()).unwrap_err();
            let fault = fault.to_string();
            assert!(fault.contains("no JSON key set"), "{text:?}: {fault}");
        }
        assert!(KeySet::from_jwks(&[0xff]).is_err());
        let empty = read(&[]).require_usable().unwrap_err();
        assert_eq!(empty.to_string(), "the set has no usable RSA key");
        let skipped = read(&["{}".into()]).require_usable().unwrap_err();
        assert_eq!(
            skipped.to_string(),
            "the set has no usable RSA key: key 1 has no type (kty)"
        );
    }

    #[test]
    fn pem_may_be_spki_or_pkcs1_and_hold_several() {
        let spki = signer().public().to_public_key_pem(LineEnding::LF).unwrap();
        let pkcs1 = other_signer()
            .public()
            .to_pkcs1_pem(LineEnding::CRLF)
            .unwrap();
        let file = format!("# the webhook keys\n{spki}\nand the old one\n{pkcs1}trailer");
        let set = KeySet::from_pem(file.as_bytes()).unwrap();
        assert_eq!((set.keys().len(), set.skipped_count()), (2, 0));
        for signer in [signer(), other_signer()] {
            assert!(
                set.verify(BODY.into(), &signer.signature(BODY), None)
                    .is_ok()
            );
        }
        // Without a newline at the end.
        assert_eq!(
            KeySet::from_pem(spki.trim().as_bytes())
                .unwrap()
                .keys()
                .len(),
            1
        );
    }

    #[test]
    fn pem_of_other_things_is_left_out_with_advice() {
        let private = signer().private().to_pkcs8_pem(LineEnding::LF).unwrap();
        let block = |label: &str, body: &str| {
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        };
        let ed25519 = block(
            "PUBLIC KEY",
            "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=",
        );
        let file = [
            private.as_str(),
            &block("CERTIFICATE", "AAAA"),
            &ed25519,
            &block("PUBLIC KEY", "AAAA"),
            &block("PUBLIC KEY", "!!!!"),
            &block("NOTE", "AAAA"),
        ]
        .concat();
        let set = KeySet::from_pem(file.as_bytes()).unwrap();
        let reasons: Vec<&str> = set.skipped().iter().map(|s| s.reason.as_str()).collect();
        assert!(set.is_empty());
        assert!(
            reasons[0].contains("openssl pkey -pubout"),
            "{}",
            reasons[0]
        );
        assert!(
            reasons[1].contains("openssl x509 -pubkey"),
            "{}",
            reasons[1]
        );
        assert_eq!(reasons[2], "is of another type than RSA");
        assert!(reasons[3].starts_with("is no public key"), "{}", reasons[3]);
        assert!(reasons[4].starts_with("is damaged"), "{}", reasons[4]);
        assert_eq!(reasons[5], "is no public key");
        assert_eq!(
            KeySet::from_pem(b"no key here").unwrap_err(),
            KeySetFault::NotPem
        );
    }

    #[test]
    fn a_verified_body_is_the_body_that_was_verified() {
        let set = read(&[signer().jwk("k")]);
        let signature = signer().sign(BODY, Salt::Longest);
        let header = format!(
            "{}{}",
            super::super::SCHEME,
            URL_SAFE_NO_PAD.encode(signature)
        );
        let signature = Signature::parse(&header).unwrap();
        let verified = set.verify(BODY.into(), &signature, None).unwrap();
        assert_eq!(verified.body(), BODY);
        assert_eq!(verified.into_body(), BODY);
        let other = set.verify(b"another body".as_slice().into(), &signature, None);
        assert!(matches!(other, Err(Error::Mismatch)));
    }
}
