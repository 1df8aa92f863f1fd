//! One public key: what makes it acceptable, and the two forms in which it is kept.
//!
//! Import and policy go through the `rsa` crate, from `n` and `e` alone; verification goes through
//! [`pss::Verifier`]. Where a key came from is not known here.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::traits::PublicKeyParts as _;
use rsa::{BigUint, RsaPublicKey};
use sha2::{Digest as _, Sha256};

use super::{KeyFault, Signature, pss};

/// Anything shorter is within reach of a determined attacker (NIST SP 800-131A).
const MODULUS_BITS_MIN: usize = 2048;
/// Anything longer costs a third of a millisecond for every forged delivery.
const MODULUS_BITS_MAX: usize = 8192;
/// Smaller exponents have a history of forgeries against sloppy padding checks.
const EXPONENT_MIN: u64 = 65_537;
/// Larger ones make verification slow without making it safer; the libraries agree on this limit.
const EXPONENT_BITS_MAX: usize = 33;

/// An RSA key that passed the policy, ready to verify.
#[derive(Clone)]
pub struct PublicKey {
    id: Option<Arc<str>>,
    thumbprint: Arc<str>,
    verifier: pss::Verifier,
    numbers: Arc<RsaPublicKey>,
}

impl PublicKey {
    /// Imports a key from its modulus and exponent, both big-endian; leading zeros are ignored.
    ///
    /// # Errors
    /// [`KeyFault`], naming the rule that the key breaks.
    pub fn from_components(id: Option<&str>, n: &[u8], e: &[u8]) -> Result<Self, KeyFault> {
        // Bounded before any arithmetic: a key set is not trusted to be small.
        let n_bytes = significant(n);
        if n_bytes.len() > MODULUS_BITS_MAX / 8 {
            return Err(KeyFault::ModulusTooLarge {
                bits: bit_length(n_bytes),
            });
        }
        if bit_length(significant(e)) > EXPONENT_BITS_MAX {
            return Err(KeyFault::Exponent);
        }
        let (n, e) = (
            BigUint::from_bytes_be(n_bytes),
            BigUint::from_bytes_be(significant(e)),
        );
        let bits = n.bits();
        if bits < MODULUS_BITS_MIN {
            return Err(KeyFault::ModulusTooSmall { bits });
        }
        if e < BigUint::from(EXPONENT_MIN) {
            return Err(KeyFault::Exponent);
        }
        let numbers =
            RsaPublicKey::new_with_max_size(n, e, MODULUS_BITS_MAX).map_err(
                |fault| match fault {
                    rsa::Error::InvalidModulus => KeyFault::ModulusEven,
                    rsa::Error::ModulusTooLarge => KeyFault::ModulusTooLarge { bits },
                    rsa::Error::InvalidExponent
                    | rsa::Error::PublicExponentTooSmall
                    | rsa::Error::PublicExponentTooLarge => KeyFault::Exponent,
                    _ => KeyFault::Rejected,
                },
            )?;
        let verifier = pss::Verifier::new(&numbers).ok_or(KeyFault::Rejected)?;
        Ok(Self {
            id: id.map(Arc::from),
            thumbprint: thumbprint(&numbers).into(),
            verifier,
            numbers: Arc::new(numbers),
        })
    }

    /// Whether this key made `signature` over exactly these bytes, with a salt of any length.
    pub fn verify(&self, body: &[u8], signature: &Signature) -> bool {
        self.verify_digest(&pss::BodyDigest::of(body), signature)
    }

    /// The same for a body that is hashed already, so that several keys share the hash.
    pub fn verify_digest(&self, digest: &pss::BodyDigest, signature: &Signature) -> bool {
        self.verifier.verify(digest, signature.as_bytes())
    }

    /// The `kid` that the key set gave it.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// SHA-256 of the key, base64url, as RFC 7638 defines it: the same wherever the key is found.
    pub fn thumbprint(&self) -> &str {
        &self.thumbprint
    }

    /// The length of the modulus.
    pub fn bits(&self) -> usize {
        self.numbers.n().bits()
    }

    /// What an attempt costs to verify this signature, in attempts with a key of 2048 bits: as measured,
    /// 29 µs with 2048 bits and 178 µs with 8192. A signature of another length than the key's is
    /// refused for nothing.
    pub(super) fn cost(&self, signature: &Signature) -> u32 {
        let bits = self.bits();
        if bits.div_ceil(8) != signature.as_bytes().len() {
            return 0;
        }
        match bits {
            ..=2048 => 1,
            2049..=3072 => 2,
            3073..=4096 => 3,
            _ => 6,
        }
    }

    pub(super) fn shared_id(&self) -> Option<Arc<str>> {
        self.id.clone()
    }

    /// The key as the reference implementation holds it.
    pub(super) fn numbers(&self) -> &RsaPublicKey {
        &self.numbers
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("PublicKey")
            .field("id", &self.id)
            .field("thumbprint", &self.thumbprint)
            .field("bits", &self.bits())
            .finish_non_exhaustive()
    }
}

/// RFC 7638: the required members in alphabetical order, without spaces.
fn thumbprint(numbers: &RsaPublicKey) -> String {
    let e = URL_SAFE_NO_PAD.encode(numbers.e().to_bytes_be());
    let n = URL_SAFE_NO_PAD.encode(numbers.n().to_bytes_be());
    URL_SAFE_NO_PAD.encode(Sha256::digest(format!(
        r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#
    )))
}

/// A big-endian number without its leading zeros (some encoders keep a sign byte).
fn significant(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

fn bit_length(significant: &[u8]) -> usize {
    significant.first().map_or(0, |top| {
        significant.len() * 8 - top.leading_zeros() as usize
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::signer;
    use super::*;

    const E: [u8; 3] = [1, 0, 1];

    fn import(n: &[u8], e: &[u8]) -> Result<PublicKey, KeyFault> {
        PublicKey::from_components(None, n, e)
    }

    /// An odd number of exactly so many bits.
    fn odd(bits: usize) -> Vec<u8> {
        ((BigUint::from(1_u8) << (bits - 1)) + BigUint::from(1_u8)).to_bytes_be()
    }

    #[test]
    fn moduli_are_accepted_from_2048_to_8192_bits() {
        assert_eq!(
            import(&odd(2047), &E).unwrap_err(),
            KeyFault::ModulusTooSmall { bits: 2047 }
        );
        assert_eq!(import(&odd(2048), &E).unwrap().bits(), 2048);
        assert_eq!(import(&odd(8192), &E).unwrap().bits(), 8192);
        assert_eq!(
            import(&odd(8193), &E).unwrap_err(),
            KeyFault::ModulusTooLarge { bits: 8193 }
        );
        assert_eq!(
            import(&[], &E).unwrap_err(),
            KeyFault::ModulusTooSmall { bits: 0 }
        );
    }

    #[test]
    fn larger_keys_cost_more_and_those_of_another_length_nothing() {
        for (bits, cost) in [(2048, 1), (2049, 2), (3072, 2), (4096, 3), (8192, 6)] {
            let key = import(&odd(bits), &E).unwrap();
            let signature = |bytes: usize| {
                let text = URL_SAFE_NO_PAD.encode(vec![1; bytes]);
                Signature::parse(&format!("{}{text}", super::super::SCHEME)).unwrap()
            };
            let bytes = bits.div_ceil(8);
            assert_eq!(key.cost(&signature(bytes)), cost, "{bits}");
            assert_eq!(key.cost(&signature(bytes - 1)), 0, "{bits}");
        }
    }

    #[test]
    fn an_even_modulus_is_no_key() {
        let mut n = odd(2048);
        *n.last_mut().unwrap() = 0;
        assert_eq!(import(&n, &E).unwrap_err(), KeyFault::ModulusEven);
    }

    #[test]
    fn exponents_are_odd_and_between_65537_and_2_to_the_33() {
        let n = signer().modulus();
        let of = |e: u64| import(&n, &e.to_be_bytes());
        for refused in [
            0,
            1,
            3,
            65_535,
            65_536,
            65_538,
            1 << 33,
            (1 << 33) + 1,
            u64::MAX,
        ] {
            assert_eq!(of(refused).unwrap_err(), KeyFault::Exponent, "{refused}");
        }
        for accepted in [65_537, 65_539, (1 << 33) - 1] {
            assert!(of(accepted).is_ok(), "{accepted}");
        }
        assert_eq!(import(&n, &[1; 4096]).unwrap_err(), KeyFault::Exponent);
    }

    #[test]
    fn leading_zeros_change_nothing() {
        let n = signer().modulus();
        let padded = [&[0, 0][..], &n].concat();
        let (plain, padded) = (
            import(&n, &E).unwrap(),
            import(&padded, &[0, 1, 0, 1]).unwrap(),
        );
        assert_eq!(plain.thumbprint(), padded.thumbprint());
    }

    #[test]
    fn the_thumbprint_is_that_of_rfc_7638() {
        // The example of section 3.1.
        let n = URL_SAFE_NO_PAD
            .decode(concat!(
                "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJ",
                "ECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2",
                "QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh",
                "6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
            ))
            .unwrap();
        let key = import(&n, &E).unwrap();
        assert_eq!(
            key.thumbprint(),
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
        );
    }
}
