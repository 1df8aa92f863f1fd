//! Owns the keys of a JWT issuer: a key set (RFC 7517) read key by key, so that one of a kind that
//! nobody here knows spoils nothing, and the algorithms that each may have signed with.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey};

use super::Error;
use crate::{
    key_source::{self, DocumentFault, Jwk, KEYS_MAX, read_jwks},
    signature::PublicKey,
};

/// All that are taken: no shared secrets, and never `none`.
pub(super) const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Why a document is no set of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not `{"keys": […]}`.
    #[error(r#"the document is no JSON key set like {{"keys":[…]}}"#)]
    NotJwks,
    /// A set without one key that we may use.
    #[error(
        "the set has no usable key: expected RSA of 2048 to 8192 bits, P-256, P-384 or Ed25519, for \
         signatures"
    )]
    NoUsableKey,
}

/// The keys of a document, in its order; at most [`KEYS_MAX`].
#[derive(Debug, Default)]
pub(super) struct KeySet(Vec<Key>);

/// One key.
pub(super) struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    decoding: DecodingKey,
}

impl KeySet {
    /// Reads a document.
    pub(super) fn parse(document: &[u8]) -> Result<Self, Error> {
        let jwks = read_jwks(document).map_err(|fault| match fault {
            DocumentFault::TooLarge { .. } => Error::Source(key_source::Error::from(fault)),
            DocumentFault::NotJwks { .. } => Fault::NotJwks.into(),
        })?;
        let keys = jwks.iter().flatten().filter_map(import);
        let keys: Vec<Key> = keys.take(KEYS_MAX).collect();
        if keys.is_empty() {
            return Err(Fault::NoUsableKey.into());
        }
        Ok(Self(keys))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The keys that may have made a signature. A key with another name did not; one without a name
    /// may have, and so may any if the JWT names none.
    pub(super) fn candidates(
        &self,
        algorithm: Algorithm,
        id: Option<&str>,
    ) -> impl Iterator<Item = &Key> {
        self.0.iter().filter(move |key| {
            let has_name = match (id, key.id()) {
                (Some(wanted), Some(id)) => wanted == id,
                (None, _) | (_, None) => true,
            };
            has_name && key.algorithms.contains(&algorithm)
        })
    }
}

impl Key {
    pub(super) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    pub(super) fn decoding(&self) -> &DecodingKey {
        &self.decoding
    }
}

fn import(jwk: &Jwk) -> Option<Key> {
    if !jwk.is_for_signatures() {
        return None;
    }
    let (decoding, algorithms): (DecodingKey, &[Algorithm]) = match (jwk.key_type()?, jwk.curve()) {
        ("RSA", _) => (rsa(jwk)?, RSA),
        ("EC", Some("P-256")) => (elliptic(jwk, 32)?, &[Algorithm::ES256]),
        ("EC", Some("P-384")) => (elliptic(jwk, 48)?, &[Algorithm::ES384]),
        ("OKP", Some("Ed25519")) => (edwards(jwk)?, &[Algorithm::EdDSA]),
        _ => return None,
    };
    let mut algorithms = algorithms.to_vec();
    if let Some(only) = jwk.algorithm() {
        // A key that says what it signs with signs with nothing else (RFC 8725, section 3.1).
        let only: Algorithm = only.parse().ok()?;
        algorithms.retain(|algorithm| *algorithm == only);
    }
    (!algorithms.is_empty()).then(|| Key {
        id: jwk.id().map(str::to_owned),
        algorithms,
        decoding,
    })
}

/// An RSA key, within the policy that holds for the signatures of batches too.
fn rsa(jwk: &Jwk) -> Option<DecodingKey> {
    let (n, e) = (jwk.modulus()?, jwk.exponent()?);
    PublicKey::from_components(None, &n, &e).ok()?;
    Some(DecodingKey::from_rsa_raw_components(&n, &e))
}

fn elliptic(jwk: &Jwk, coordinate_bytes: usize) -> Option<DecodingKey> {
    let (x, y) = (jwk.x()?, jwk.y()?);
    if x.len() != coordinate_bytes || y.len() != coordinate_bytes {
        return None;
    }
    // The library takes text without padding.
    let text = |coordinate| URL_SAFE_NO_PAD.encode(coordinate);
    DecodingKey::from_ec_components(&text(x), &text(y)).ok()
}

fn edwards(jwk: &Jwk) -> Option<DecodingKey> {
    let x = jwk.x()?;
    (x.len() == 32).then(|| DecodingKey::from_ed_der(&x))
}

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// Keys of issuers are public; there is just nothing to see in them.
impl std::fmt::Debug for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Key")
            .field("id", &self.id)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}
