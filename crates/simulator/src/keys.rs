//! The signing keys of a simulated app: made or loaded, published as a JWKS, rotated, and used to
//! sign bodies the way Prelude documents it. Knows nothing of HTTP, batches or who verifies.
//!
//! Where Prelude does not say how (salt length, `=` padding, `alg` labels, foreign keys in the
//! set), [`SignatureStyle`] and [`SetStyle`] hold a switch for each plausible way.

use std::{collections::VecDeque, fmt, sync::Arc};

use base64::{
    Engine as _,
    engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD},
};
use rsa::{
    RsaPrivateKey,
    pkcs1::DecodeRsaPrivateKey as _,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, EncodePublicKey as _, LineEnding},
    pss::BlindedSigningKey,
    rand_core::OsRng,
    signature::{RandomizedSigner as _, SignatureEncoding as _},
    traits::PublicKeyParts as _,
};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The prefix of the signature in `X-Webhook-Signature`.
pub const SIGNATURE_PREFIX: &str = "rsassa-pss-sha256=";

/// Keys below this size are refused: the bridge would refuse their signatures too.
pub const KEY_BITS_MIN: usize = 2048;

/// Keys above this size are refused: making one takes minutes.
pub const KEY_BITS_MAX: usize = 8192;

/// How many retired keys a set still publishes when keys are rotated with overlap.
pub const RETIRED_KEYS_MAX: usize = 7;

const DIGEST_BYTES: usize = 32;

/// Why a key could not be made, loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The requested size is not one that a bridge accepts.
    #[error("a key of {bits} bits is not usable: take {KEY_BITS_MIN} to {KEY_BITS_MAX} bits")]
    Size {
        /// The modulus in bits.
        bits: usize,
    },
    /// The text is neither PKCS#8 nor PKCS#1 PEM of an RSA private key.
    #[error(
        "this is not the PEM of an RSA private key (make one with `openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048`)"
    )]
    Pem,
    /// The RSA implementation refused.
    #[error("the RSA operation failed: {0}")]
    Rsa(#[from] rsa::Error),
    /// The signer refused, which for a valid key only happens when the salt does not fit.
    #[error("signing failed: {0}")]
    Signing(#[from] rsa::signature::Error),
}

/// How many bytes of salt a signature carries. Prelude documents none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Salt {
    /// As long as the digest, 32 bytes: the convention of RFC 7518 and most libraries.
    #[default]
    #[serde(rename = "32")]
    Digest,
    /// 20 bytes, the default of RFC 8017's ASN.1 parameters.
    #[serde(rename = "20")]
    Twenty,
    /// No salt: the signature of a body is then always the same.
    #[serde(rename = "0")]
    None,
    /// As long as the modulus allows, 222 bytes for 2048 bits: the default of Go's signer.
    Longest,
}

impl Salt {
    /// Every salt length, for tests that try them all.
    pub const ALL: [Self; 4] = [Self::Digest, Self::Twenty, Self::None, Self::Longest];

    /// Its length in bytes under a key of this size.
    #[must_use]
    pub fn bytes(self, key_bits: usize) -> usize {
        match self {
            Self::Digest => DIGEST_BYTES,
            Self::Twenty => 20,
            Self::None => 0,
            // RFC 8017 section 9.1.1: emLen >= hLen + sLen + 2, with emBits = modBits - 1.
            Self::Longest => (key_bits.saturating_sub(1))
                .div_ceil(8)
                .saturating_sub(DIGEST_BYTES + 2),
        }
    }
}

/// The `alg` member of published keys. Prelude's keys also sign its access tokens, so a set may
/// well say `RS256`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum AlgLabel {
    /// `"alg":"RS256"`.
    #[default]
    #[serde(rename = "RS256")]
    Rs256,
    /// `"alg":"PS256"`.
    #[serde(rename = "PS256")]
    Ps256,
    /// No `alg`.
    #[serde(rename = "none")]
    Absent,
}

/// How signatures are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SignatureStyle {
    /// The salt length.
    pub salt: Salt,
    /// Whether the base64url text ends in `=`.
    pub padding: bool,
}

/// How key sets are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SetStyle {
    /// The `alg` of the RSA keys.
    pub alg: AlgLabel,
    /// Whether the set also holds keys that cannot verify a webhook: EC, Ed25519, an RSA key for
    /// encryption, and a type nobody knows. They stand before the real ones.
    pub foreign_keys: bool,
}

/// One RSA private key with the id it is published under. Cheap to clone.
#[derive(Clone)]
pub struct SigningKey {
    inner: Arc<Inner>,
}

struct Inner {
    id: String,
    key: RsaPrivateKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_tuple("SigningKey")
            .field(&self.id())
            .finish()
    }
}

impl SigningKey {
    /// Makes a new key. Takes tenths of a second of CPU at 2048 bits, seconds beyond: call it where blocking is allowed.
    ///
    /// # Errors
    /// [`Error::Size`] outside [`KEY_BITS_MIN`]..=[`KEY_BITS_MAX`].
    pub fn generate(bits: usize) -> Result<Self, Error> {
        if !(KEY_BITS_MIN..=KEY_BITS_MAX).contains(&bits) {
            return Err(Error::Size { bits });
        }
        Self::new(RsaPrivateKey::new(&mut OsRng, bits)?)
    }

    /// Loads a key from PEM, PKCS#8 or PKCS#1.
    ///
    /// # Errors
    /// [`Error::Pem`] for anything else, [`Error::Size`] for a key the bridge would refuse.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let key = RsaPrivateKey::from_pkcs8_pem(pem)
            .or_else(|_| RsaPrivateKey::from_pkcs1_pem(pem))
            .map_err(|_| Error::Pem)?;
        Self::new(key)
    }

    /// The key as PKCS#8 PEM, which [`SigningKey::from_pem`] reads. It is as secret as the key.
    ///
    /// # Errors
    /// [`Error::Pem`], which a valid key does not meet.
    pub fn to_pem(&self) -> Result<String, Error> {
        let pem = self.inner.key.to_pkcs8_pem(LineEnding::LF);
        pem.map(|pem| pem.to_string()).map_err(|_| Error::Pem)
    }

    fn new(key: RsaPrivateKey) -> Result<Self, Error> {
        let bits = key.n().bits();
        if !(KEY_BITS_MIN..=KEY_BITS_MAX).contains(&bits) {
            return Err(Error::Size { bits });
        }
        // The thumbprint of RFC 7638 names a key by its content, so a restarted simulator with the
        // same key publishes the same id.
        let canonical = format!(
            r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#,
            URL_SAFE_NO_PAD.encode(key.e().to_bytes_be()),
            URL_SAFE_NO_PAD.encode(key.n().to_bytes_be()),
        );
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(canonical.as_bytes()));
        Ok(Self {
            inner: Arc::new(Inner { id, key }),
        })
    }

    /// The `kid` it is published under.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// The size of its modulus.
    #[must_use]
    pub fn bits(&self) -> usize {
        self.inner.key.n().bits()
    }

    /// Signs a body and returns the value of `X-Webhook-Signature`. Takes milliseconds of CPU. Two
    /// calls give two signatures, because PSS is randomised.
    ///
    /// # Errors
    /// [`Error::Signing`] if the implementation refuses.
    pub fn sign(&self, body: &[u8], style: SignatureStyle) -> Result<String, Error> {
        let salt_bytes = style.salt.bytes(self.bits());
        // Blinding is what RUSTSEC-2023-0071 asks for where private keys are used.
        let signer =
            BlindedSigningKey::<Sha256>::new_with_salt_len(self.inner.key.clone(), salt_bytes);
        let signature = signer.try_sign_with_rng(&mut OsRng, body)?.to_vec();
        let engine = if style.padding {
            URL_SAFE
        } else {
            URL_SAFE_NO_PAD
        };
        Ok(format!("{SIGNATURE_PREFIX}{}", engine.encode(signature)))
    }

    /// Its public half as PEM (SPKI), as Prelude's dashboard shows the key of Verify and Notify.
    ///
    /// # Errors
    /// [`Error::Pem`], which a valid key does not meet.
    pub fn public_pem(&self) -> Result<String, Error> {
        let public = self.inner.key.to_public_key();
        let pem = public.to_public_key_pem(LineEnding::LF);
        pem.map_err(|_| Error::Pem)
    }

    /// Its public half as a JWK.
    #[must_use]
    pub fn public_jwk(&self, alg: AlgLabel) -> Value {
        let mut jwk = json!({
            "kty": "RSA",
            "use": "sig",
            "kid": self.id(),
            "n": URL_SAFE_NO_PAD.encode(self.inner.key.n().to_bytes_be()),
            "e": URL_SAFE_NO_PAD.encode(self.inner.key.e().to_bytes_be()),
        });
        let label = match alg {
            AlgLabel::Rs256 => Some("RS256"),
            AlgLabel::Ps256 => Some("PS256"),
            AlgLabel::Absent => None,
        };
        if let (Some(label), Some(members)) = (label, jwk.as_object_mut()) {
            members.insert("alg".to_owned(), label.into());
        }
        jwk
    }
}

/// The keys of one app: the one that signs, and those that are still published.
#[derive(Debug, Clone)]
pub struct KeyRing {
    current: SigningKey,
    retired: VecDeque<SigningKey>,
}

impl KeyRing {
    /// A ring with one key.
    #[must_use]
    pub fn new(current: SigningKey) -> Self {
        Self {
            current,
            retired: VecDeque::new(),
        }
    }

    /// The key that signs.
    #[must_use]
    pub fn current(&self) -> &SigningKey {
        &self.current
    }

    /// Signs with `next` from now on. With overlap the former key stays published (at most
    /// [`RETIRED_KEYS_MAX`] of them, the oldest go first); without it the set holds `next` alone.
    pub fn rotate(&mut self, next: SigningKey, overlap: bool) {
        let former = std::mem::replace(&mut self.current, next);
        if overlap {
            self.retired.push_front(former);
            self.retired.truncate(RETIRED_KEYS_MAX);
        } else {
            self.retired.clear();
        }
    }

    /// The set as it is published.
    #[must_use]
    pub fn jwks(&self, style: SetStyle) -> Value {
        let mut keys = if style.foreign_keys {
            foreign_keys()
        } else {
            Vec::new()
        };
        keys.push(self.current.public_jwk(style.alg));
        keys.extend(self.retired.iter().map(|key| key.public_jwk(style.alg)));
        json!({ "keys": keys })
    }

    /// The published keys as PEM blocks, the one that signs first.
    ///
    /// # Errors
    /// As [`SigningKey::public_pem`].
    pub fn pem(&self) -> Result<String, Error> {
        let keys = std::iter::once(&self.current).chain(&self.retired);
        keys.map(SigningKey::public_pem).collect()
    }
}

/// Keys a tolerant reader skips. The EC and Ed25519 points are real ones, so that no reader can
/// refuse the set for a reason other than the one meant.
fn foreign_keys() -> Vec<Value> {
    let modulus = URL_SAFE_NO_PAD.encode([0xA5_u8; 256]);
    vec![
        json!({
            "kty": "EC", "use": "sig", "alg": "ES256", "kid": "foreign-ec", "crv": "P-256",
            "x": "_evxvCPVlNBXsZcRzAB6SHmNQc4fIi190GM4nVbF8f8",
            "y": "gR3XM9x9jtX2p7YIDM8-zeO_2sI_x6lwJYuWhnyJ7Ng",
        }),
        json!({
            "kty": "OKP", "use": "sig", "alg": "EdDSA", "kid": "foreign-ed25519", "crv": "Ed25519",
            "x": "sWwGLrppREpL7XnTms0fqsGtrii8pujILL3YBk28CAw",
        }),
        json!({
            "kty": "RSA", "use": "enc", "alg": "RSA-OAEP-256", "kid": "foreign-encryption",
            "n": modulus, "e": "AQAB",
        }),
        json!({ "kty": "LATTICE", "kid": "foreign-unknown", "pub": "AAAA" }),
    ]
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const KEY_A: &str = include_str!("../../../tests/data/keys/test-key-2048-a.pem");
    const KEY_B: &str = include_str!("../../../tests/data/keys/test-key-2048-b.pem");
    const KEY_3072: &str = include_str!("../../../tests/data/keys/test-key-3072.pem");

    /// Asks openssl whether it accepts this header for this body at this salt length.
    fn openssl_accepts(key: &SigningKey, body: &[u8], header: &str, salt_bytes: usize) -> bool {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let encoded = header.strip_prefix(SIGNATURE_PREFIX).unwrap();
        let signature = URL_SAFE_NO_PAD
            .decode(encoded.trim_end_matches('='))
            .unwrap();
        let public = key.public_pem().unwrap();
        std::fs::write(path("body"), body).unwrap();
        std::fs::write(path("signature"), signature).unwrap();
        std::fs::write(path("public.pem"), public).unwrap();
        let output = Command::new("openssl")
            .args([
                "dgst",
                "-sha256",
                "-sigopt",
                "rsa_padding_mode:pss",
                "-sigopt",
            ])
            .arg(format!("rsa_pss_saltlen:{salt_bytes}"))
            .args([
                "-verify",
                &path("public.pem"),
                "-signature",
                &path("signature"),
            ])
            .arg(path("body"))
            .output()
            .unwrap();
        output.status.success()
    }

    #[test]
    fn openssl_accepts_a_signature_of_every_salt_length_and_no_other() {
        let body = br#"{"app_id":"54e9ujn","events":[]}"#;
        for pem in [KEY_A, KEY_3072] {
            let key = SigningKey::from_pem(pem).unwrap();
            for salt in Salt::ALL {
                let style = SignatureStyle {
                    salt,
                    padding: false,
                };
                let header = key.sign(body, style).unwrap();
                let salt_bytes = salt.bytes(key.bits());
                assert!(openssl_accepts(&key, body, &header, salt_bytes), "{salt:?}");
                assert!(!openssl_accepts(&key, body, &header, 31), "{salt:?}");
                assert!(
                    !openssl_accepts(&key, b"another", &header, salt_bytes),
                    "{salt:?}"
                );
            }
        }
    }

    #[test]
    fn the_longest_salt_is_what_go_uses() {
        assert_eq!(Salt::Longest.bytes(2048), 222);
        assert_eq!(Salt::Longest.bytes(4096), 478);
        // An odd size: emLen is one byte less than the modulus would suggest.
        assert_eq!(Salt::Longest.bytes(2049), 222);
    }

    #[test]
    fn padding_is_the_only_difference_it_makes() {
        let key = SigningKey::from_pem(KEY_A).unwrap();
        let style = |padding| SignatureStyle {
            salt: Salt::None,
            padding,
        };
        let with = key.sign(b"body", style(true)).unwrap();
        let without = key.sign(b"body", style(false)).unwrap();
        assert!(with.ends_with("=="));
        assert_eq!(with.trim_end_matches('='), without);
    }

    #[test]
    fn two_signatures_of_one_body_differ() {
        let key = SigningKey::from_pem(KEY_A).unwrap();
        let style = SignatureStyle::default();
        assert_ne!(
            key.sign(b"body", style).unwrap(),
            key.sign(b"body", style).unwrap()
        );
    }

    #[test]
    fn a_set_carries_the_labels_and_the_foreign_keys_it_is_told_to() {
        let ring = KeyRing::new(SigningKey::from_pem(KEY_A).unwrap());
        let set = ring.jwks(SetStyle {
            alg: AlgLabel::Absent,
            foreign_keys: true,
        });
        let keys = set["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 5);
        assert_eq!(keys[4]["kid"], ring.current().id());
        assert!(keys[4].get("alg").is_none());
        let set = ring.jwks(SetStyle {
            alg: AlgLabel::Ps256,
            foreign_keys: false,
        });
        assert_eq!(set["keys"].as_array().unwrap().len(), 1);
        assert_eq!(set["keys"][0]["alg"], "PS256");
    }

    #[test]
    fn rotation_keeps_the_former_key_only_with_overlap() {
        let (a, b) = (
            SigningKey::from_pem(KEY_A).unwrap(),
            SigningKey::from_pem(KEY_B).unwrap(),
        );
        let ids = |ring: &KeyRing| -> Vec<String> {
            let set = ring.jwks(SetStyle::default());
            let keys = set["keys"].as_array().unwrap();
            keys.iter()
                .map(|key| key["kid"].as_str().unwrap().to_owned())
                .collect()
        };
        let mut ring = KeyRing::new(a.clone());
        ring.rotate(b.clone(), true);
        assert_eq!(ids(&ring), [b.id(), a.id()]);
        let pems = [&b, &a].map(|key| key.public_pem().unwrap());
        assert_eq!(ring.pem().unwrap(), pems.concat());
        assert!(
            pems.iter()
                .all(|pem| pem.starts_with("-----BEGIN PUBLIC KEY-----"))
        );
        ring.rotate(a.clone(), false);
        assert_eq!(ids(&ring), [a.id()]);
        for _ in 0..20 {
            ring.rotate(b.clone(), true);
        }
        assert_eq!(ids(&ring).len(), RETIRED_KEYS_MAX + 1);
    }

    #[test]
    fn what_is_no_usable_key_is_refused_with_a_remedy() {
        let error = SigningKey::from_pem("not a key").unwrap_err();
        assert!(error.to_string().contains("openssl genpkey"), "{error}");
        let error = SigningKey::generate(1024).unwrap_err();
        assert!(error.to_string().contains("2048"), "{error}");
    }
}
