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

/// The keys of one source of events, in the order of their documents.
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
    /// Reads the documents of a source: one of each of its files, or that of its URL.
    ///
    /// # Errors
    /// As [`KeySet::from_jwks`] or [`KeySet::from_pem`].
    pub fn read(source: &KeySource, documents: &[Vec<u8>]) -> Result<Self, KeySetFault> {
        match source {
            KeySource::Url(_) | KeySource::JwksFile(_) => Self::from_jwks(&documents.concat()),
            KeySource::PemFiles(paths) => {
                let mut set = Self::default();
                for (path, document) in paths.iter().zip(documents) {
                    set.add_pem(document, &path.display().to_string())?;
                }
                Ok(set)
            }
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

    /// Reads one or more PEM blocks: `PUBLIC KEY` (SPKI) or `RSA PUBLIC KEY` (PKCS#1). Text around them
    /// is passed over.
    ///
    /// # Errors
    /// [`KeySetFault`] if the document is too large, has no PEM block at all, or one that is no usable
    /// key. A key that is there twice is no error.
    pub fn from_pem(document: &[u8]) -> Result<Self, KeySetFault> {
        let mut set = Self::default();
        set.add_pem(document, "the file")?;
        Ok(set)
    }

    fn add_pem(&mut self, document: &[u8], file: &str) -> Result<(), KeySetFault> {
        check_size(document)?;
        let text = String::from_utf8_lossy(document);
        let mut rest = &*text;
        let mut count = 0;
        while let Some(from_begin) = rest.find(PEM_BEGIN).and_then(|begin| rest.get(begin..)) {
            count += 1;
            let block = format!("key {count} of {file}");
            let refused = |reason| KeySetFault::PemBlock {
                block: block.clone(),
                reason,
            };
            let (whole, after) = split_pem_block(from_begin)
                .ok_or_else(|| refused("is cut short: it has no END line".to_owned()))?;
            let key = import_pem(whole).map_err(&refused)?;
            if !self.contains(&key) && self.keys.len() == KEYS_MAX {
                return Err(refused(format!("is one too many: {KEYS_MAX} may be used")));
            }
            self.add(block.clone(), Ok(key));
            rest = after;
        }
        if count == 0 {
            let file = file.to_owned();
            return Err(KeySetFault::NotPem { file });
        }
        Ok(())
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
    // Before the content, which can be encrypted or have headers.
    match pem_label(block) {
        "RSA PUBLIC KEY" | "PUBLIC KEY" => {}
        certificate if certificate.ends_with("CERTIFICATE") => {
            return Err(
                "is a certificate: extract its key with openssl x509 -pubkey -noout".into(),
            );
        }
        private if private.ends_with("PRIVATE KEY") => {
            return Err(
                "is a private key, which the bridge must not have: give the public one (openssl pkey \
                 -pubout)"
                    .into(),
            );
        }
        _ => return Err("is no public key".into()),
    }
    let (label, der) =
        pem::decode_vec(block.as_bytes()).map_err(|fault| format!("is damaged: {fault}"))?;
    let numbers = match label {
        "RSA PUBLIC KEY" => &der,
        _ => spki_numbers(&der)?,
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

/// What begins a PEM block (RFC 7468).
const PEM_BEGIN: &str = "-----BEGIN ";
/// What its last line begins with.
const PEM_END: &str = "-----END ";
/// What both lines end with.
const PEM_DASHES: &str = "-----";

/// The label of a block.
fn pem_label(block: &str) -> &str {
    let label = block.strip_prefix(PEM_BEGIN).unwrap_or_default();
    label.split(PEM_DASHES).next().unwrap_or_default()
}

/// Splits text that begins with a block after the dashes that close its END; `None` without one. Another
/// block may begin on the same line.
fn split_pem_block(block: &str) -> Option<(&str, &str)> {
    let end = block.find(PEM_END)?;
    if block.get(PEM_BEGIN.len()..end)?.contains(PEM_BEGIN) {
        return None;
    }
    let end_label = end + PEM_END.len();
    let label_bytes = block.get(end_label..)?.find(PEM_DASHES)?;
    block.split_at_checked(end_label + label_bytes + PEM_DASHES.len())
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
        // Two files that were put together: the first without a newline at its end.
        let (new, old) = (spki.trim(), self::spki(other_signer()));
        for file in [format!("{new}{old}"), format!("{new} and the old one{old}")] {
            let set = KeySet::from_pem(file.as_bytes()).unwrap();
            assert_eq!((set.keys().len(), set.skipped_count()), (2, 0));
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

    fn block(label: &str, body: &str) -> String {
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    }

    fn spki(signer: &super::super::testing::Signer) -> String {
        signer.public().to_public_key_pem(LineEnding::LF).unwrap()
    }

    #[test]
    fn pem_of_other_things_is_refused_with_advice_wherever_it_is() {
        let private = signer().private();
        let private = private.to_pkcs8_pem(LineEnding::LF).unwrap();
        let n = (rsa::BigUint::from(1_u8) << 1023) + rsa::BigUint::from(1_u8);
        let short = rsa::RsaPublicKey::new(n, rsa::BigUint::from(65_537_u32)).unwrap();
        let short = short.to_pkcs1_pem(LineEnding::LF).unwrap();
        let encrypted = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA";
        let ed25519 = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";
        let cut_short = spki(signer()).replace("-----END PUBLIC KEY-----", "");
        for (text, reason) in [
            (private.to_string(), "openssl pkey -pubout"),
            (block("RSA PRIVATE KEY", encrypted), "is a private key"),
            (block("EC PRIVATE KEY", "AAAA"), "is a private key"),
            (block("ENCRYPTED PRIVATE KEY", "AAAA"), "is a private key"),
            (block("OPENSSH PRIVATE KEY", "AAAA"), "is a private key"),
            (block("CERTIFICATE", "AAAA"), "openssl x509 -pubkey"),
            (block("TRUSTED CERTIFICATE", "AAAA"), "is a certificate"),
            (block("PUBLIC KEY", ed25519), "is of another type than RSA"),
            (short, "is refused: the modulus has 1024 bits"),
            (block("PUBLIC KEY", "AAAA"), "is no public key"),
            (block("PUBLIC KEY", "!!!!"), "is damaged"),
            (block("NOTE", "AAAA"), "is no public key"),
            (block("EC PARAMETERS", "AAAA"), "is no public key"),
            (cut_short, "is cut short"),
        ] {
            let key = spki(other_signer());
            for (file, number) in [
                (text.clone(), 1),
                (format!("{key}{text}"), 2),
                (format!("{text}{key}"), 1),
            ] {
                let refused = KeySet::from_pem(file.as_bytes()).unwrap_err();
                let refused = refused.to_string();
                let place = format!("key {number} of the file is ");
                assert!(refused.starts_with(&place), "{refused}");
                assert!(refused.contains(reason), "{reason:?}: {refused}");
            }
        }
    }

    #[test]
    fn a_file_without_a_pem_block_is_refused() {
        let der = signer().public().to_public_key_der().unwrap();
        for document in [
            &b"no key here"[..],
            b"",
            b"ssh-rsa AAAAB3 me",
            der.as_bytes(),
        ] {
            let refused = KeySet::from_pem(document).unwrap_err();
            assert!(matches!(refused, KeySetFault::NotPem { .. }), "{refused}");
        }
    }

    #[test]
    fn several_pem_files_are_one_set_and_a_fault_names_its_file() {
        let source = KeySource::PemFiles(vec!["new.pem".into(), "old.pem".into()]);
        let read = |new: &str, old: &str| {
            KeySet::read(&source, &[new.as_bytes().to_vec(), old.as_bytes().to_vec()])
        };
        let (new, old) = (spki(signer()), spki(other_signer()));
        let set = read(&new, &old).unwrap();
        for signer in [signer(), other_signer()] {
            assert!(
                set.verify(BODY.into(), &signer.signature(BODY), None)
                    .is_ok()
            );
        }
        // The same key in both is one key.
        let set = read(&new, &format!("{old}{new}")).unwrap();
        assert_eq!((set.keys().len(), set.skipped_count()), (2, 1));
        let fault = |new: &str, old: &str| read(new, old).unwrap_err().to_string();
        assert!(fault(&new, "").starts_with("old.pem has no PEM block"));
        assert!(fault("", &old).starts_with("new.pem has no PEM block"));
        let certificate = block("CERTIFICATE", "AAAA");
        let said = fault(&new, &format!("{old}{certificate}"));
        assert!(
            said.starts_with("key 2 of old.pem is a certificate"),
            "{said}"
        );
        let large = "x".repeat(DOCUMENT_BYTES_MAX + 1);
        assert!(fault(&new, &large).contains("larger than 65536 bytes"));
    }

    #[test]
    fn a_pem_file_may_have_32_keys_and_no_more() {
        let odd = |number: u32| {
            let n = (rsa::BigUint::from(1_u8) << 2047) + rsa::BigUint::from(2 * number + 1);
            let key = rsa::RsaPublicKey::new(n, rsa::BigUint::from(65_537_u32)).unwrap();
            key.to_public_key_pem(LineEnding::LF).unwrap()
        };
        let keys: Vec<String> = (0..33).map(odd).collect();
        let set = KeySet::from_pem(keys[..32].concat().as_bytes()).unwrap();
        assert_eq!(set.keys().len(), 32);
        let refused = KeySet::from_pem(keys.concat().as_bytes()).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("key 33 of the file is one too many")
        );
        // One that is there already is none too many.
        let again = [&keys[..32], &keys[..1]].concat().concat();
        assert_eq!(
            KeySet::from_pem(again.as_bytes()).unwrap().skipped_count(),
            1
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
