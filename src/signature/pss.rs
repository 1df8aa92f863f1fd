//! RSASSA-PSS with SHA-256 and MGF1-SHA-256 (RFC 8017, sections 8.1 and 9.1), salts of any length.
//!
//! Two forms live here: [`Verifier`], the fast one that decides, and `recover` with
//! `Encoded::parse`, the slow and readable one that explains. Neither knows where a key came from.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256};
use rsa::pkcs1::EncodeRsaPublicKey as _;
use rsa::pkcs8::ObjectIdentifier;
use rsa::pkcs8::der::Encode as _;
use rsa::pkcs8::der::asn1::BitString;
use rsa::pkcs8::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use rsa::traits::PublicKeyParts as _;
use rsa::{BigUint, RsaPublicKey};
use sha2::{Digest as _, Sha256};

/// `id-RSASSA-PSS` (RFC 4055).
pub(super) const RSASSA_PSS: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

const HASH_BYTES: usize = 32;
/// The last octet of every encoded message.
const TRAILER: u8 = 0xbc;

/// The SHA-256 of a body, computed once however many keys are tried.
#[derive(Debug, Clone)]
pub struct BodyDigest(digest::Digest);

impl BodyDigest {
    /// Hashes the raw bytes.
    pub fn of(body: &[u8]) -> Self {
        Self(digest::digest(&digest::SHA256, body))
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_ref()
    }
}

/// A key, parsed once for fast verification.
///
/// aws-lc-rs's own PSS algorithms demand one fixed salt length each, and trying several costs a
/// whole public-key operation for each. But a key that says "I am an RSASSA-PSS key" and nothing
/// of parameters (RFC 4055, section 1.2: usable with any) makes the library recover the salt length
/// from the signature itself, in one operation. The algorithm that goes with such a key is the one
/// that sets no padding of its own: `RSA_PKCS1_2048_8192_SHA256`. Its name notwithstanding, the
/// padding is then the key's, which is PSS and only PSS; the tests below and the Wycheproof vectors
/// hold that against the reference implementation.
#[derive(Clone)]
pub struct Verifier {
    key: ParsedPublicKey,
}

impl Verifier {
    /// Parses a key; `None` if the library refuses it.
    pub fn new(key: &RsaPublicKey) -> Option<Self> {
        let numbers = key.to_pkcs1_der().ok()?;
        let spki = SubjectPublicKeyInfoOwned {
            algorithm: AlgorithmIdentifierOwned {
                oid: RSASSA_PSS,
                parameters: None,
            },
            subject_public_key: BitString::from_bytes(numbers.as_bytes()).ok()?,
        };
        let key = ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, spki.to_der().ok()?).ok()?;
        Some(Self { key })
    }

    /// Whether the key made this signature over a body with this hash.
    ///
    /// Checks what RFC 8017 asks for: as many octets as the modulus, a number below it, the leading
    /// bits zero, zeros up to a one, the trailer, and the hash over the salt that is found.
    pub fn verify(&self, digest: &BodyDigest, signature: &[u8]) -> bool {
        self.key.verify_digest_sig(&digest.0, signature).is_ok()
    }
}

/// What a signature says before any padding is looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Recovered {
    /// Not as many octets as the modulus has.
    WrongLength { key_bytes: usize },
    /// A number that no RSA operation yields.
    NotBelowModulus,
    /// The encoded message, as many octets as the modulus has.
    Message(Vec<u8>),
}

/// RSAVP1 (RFC 8017, section 5.2.2) by the reference implementation's arithmetic: some ten times
/// slower than [`Verifier`], and it shows the inside.
pub(super) fn recover(key: &RsaPublicKey, signature: &[u8]) -> Recovered {
    if signature.len() != key.size() {
        return Recovered::WrongLength {
            key_bytes: key.size(),
        };
    }
    let s = BigUint::from_bytes_be(signature);
    if s >= *key.n() {
        return Recovered::NotBelowModulus;
    }
    let number = s.modpow(key.e(), key.n()).to_bytes_be();
    let mut message = vec![0; key.size().saturating_sub(number.len())];
    message.extend_from_slice(&number);
    Recovered::Message(message)
}

/// An encoded message taken apart: the salt, and the hash over it and the body's hash.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Encoded {
    hash: [u8; HASH_BYTES],
    salt: Vec<u8>,
}

impl Encoded {
    /// EMSA-PSS-VERIFY (RFC 8017, section 9.1.2) up to the last comparison, the salt length found
    /// rather than given. `None` if the padding is malformed: so another key made the signature, or
    /// another scheme.
    pub(super) fn parse(message: &[u8], modulus_bits: usize) -> Option<Self> {
        let bits = modulus_bits.checked_sub(1)?;
        let length = bits.div_ceil(8);
        // A modulus of 8n+1 bits has one octet more than the encoded message, and it must be zero.
        let (above, message) = message.split_at_checked(message.len().checked_sub(length)?)?;
        let (trailer, rest) = message.split_last()?;
        let (masked, hash) = rest.split_last_chunk::<HASH_BYTES>()?;
        let leading_mask = 0xff_u8 >> (8 * length - bits);
        if above.iter().any(|byte| *byte != 0)
            || *trailer != TRAILER
            || masked.first()? & !leading_mask != 0
        {
            return None;
        }
        let mut data: Vec<u8> = masked
            .iter()
            .zip(mgf1(hash))
            .map(|(byte, mask)| byte ^ mask)
            .collect();
        *data.first_mut()? &= leading_mask;
        let one = data.iter().position(|byte| *byte != 0)?;
        let (padding, salt) = data.split_at_checked(one + 1)?;
        (padding.last() == Some(&1)).then(|| Self {
            hash: *hash,
            salt: salt.to_vec(),
        })
    }

    /// Whether a body with this hash is the one that was signed.
    pub(super) fn is_of(&self, digest: &BodyDigest) -> bool {
        let expected = Sha256::new()
            .chain_update([0; 8])
            .chain_update(digest.as_bytes())
            .chain_update(&self.salt)
            .finalize();
        expected.as_slice() == self.hash
    }

    pub(super) fn salt_bytes(&self) -> usize {
        self.salt.len()
    }
}

/// The mask of RFC 8017, appendix B.2.1, as an endless stream.
fn mgf1(seed: &[u8; HASH_BYTES]) -> impl Iterator<Item = u8> {
    let seed = *seed;
    (0_u32..).flat_map(move |counter| {
        Sha256::new()
            .chain_update(seed)
            .chain_update(counter.to_be_bytes())
            .finalize()
    })
}

#[cfg(test)]
mod tests {
    use rsa::pss::Pss;

    use super::super::testing::{Salt, Signer, other_signer, signer};
    use super::*;

    const BODY: &[u8] = br#"{"app_id":"54e9ujn","events":[]}"#;

    fn fast(signer: &Signer, body: &[u8], signature: &[u8]) -> bool {
        Verifier::new(&signer.public())
            .unwrap()
            .verify(&BodyDigest::of(body), signature)
    }

    /// The same question to our own decoding on the reference implementation's arithmetic.
    fn slow(signer: &Signer, body: &[u8], signature: &[u8]) -> Option<usize> {
        let key = signer.public();
        let Recovered::Message(message) = recover(&key, signature) else {
            return None;
        };
        let encoded = Encoded::parse(&message, key.n().bits())?;
        encoded
            .is_of(&BodyDigest::of(body))
            .then(|| encoded.salt_bytes())
    }

    #[test]
    fn any_salt_length_verifies_and_is_found() {
        for (salt, bytes) in [
            (Salt::None, 0),
            (Salt::Twenty, 20),
            (Salt::Digest, 32),
            (Salt::Longest, 222),
        ] {
            let signature = signer().sign(BODY, salt);
            assert!(fast(signer(), BODY, &signature), "{salt:?}");
            assert_eq!(slow(signer(), BODY, &signature), Some(bytes));
            // The reference implementation agrees when it is told the length, and only then.
            let digest = Sha256::digest(BODY);
            let reference = |length| {
                signer()
                    .public()
                    .verify(Pss::new_with_salt::<Sha256>(length), &digest, &signature)
            };
            assert!(reference(bytes).is_ok());
            assert!(reference(bytes + 1).is_err());
        }
    }

    #[test]
    fn any_changed_bit_is_refused_by_both_forms() {
        let signature = signer().sign(BODY, Salt::Digest);
        for bit in (0..signature.len() * 8).step_by(37) {
            let mut changed = signature.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!fast(signer(), BODY, &changed), "bit {bit}");
            assert_eq!(slow(signer(), BODY, &changed), None);
        }
        let mut body = BODY.to_vec();
        body[3] ^= 1;
        assert!(!fast(signer(), &body, &signature));
        assert_eq!(slow(signer(), &body, &signature), None);
    }

    #[test]
    fn another_key_and_another_scheme_are_refused() {
        let signature = signer().sign(BODY, Salt::Digest);
        assert!(!fast(other_signer(), BODY, &signature));
        // What the same keys sign for access tokens: never to be taken for a webhook.
        let token = signer().sign_pkcs1(BODY);
        assert!(!fast(signer(), BODY, &token));
        assert_eq!(slow(signer(), BODY, &token), None);
        // PSS with another hash.
        let sha384 = signer().sign_sha384(BODY);
        assert!(!fast(signer(), BODY, &sha384));
        assert_eq!(slow(signer(), BODY, &sha384), None);
    }

    #[test]
    fn a_signature_has_one_representation() {
        let signature = signer().sign(BODY, Salt::Digest);
        let key = signer().public();
        for wrong in [
            &signature[1..],
            &signature[..255],
            &[&[0], &signature[..]].concat(),
            &[],
        ] {
            assert!(!fast(signer(), BODY, wrong));
            assert_eq!(
                recover(&key, wrong),
                Recovered::WrongLength { key_bytes: 256 }
            );
        }
        // s + n is the same residue where it still fits; n itself and all ones never count.
        let n = key.n().to_bytes_be();
        for not_below in [n, vec![0xff; 256]] {
            assert!(!fast(signer(), BODY, &not_below));
            assert_eq!(recover(&key, &not_below), Recovered::NotBelowModulus);
        }
    }

    #[test]
    fn signatures_of_the_reference_implementation_verify() {
        let mut rng = rsa::rand_core::OsRng;
        for salt in [0, 1, 20, 31, 32, 33, 64, 221, 222] {
            let signature = signer()
                .private()
                .sign_with_rng(
                    &mut rng,
                    Pss::new_with_salt::<Sha256>(salt),
                    &Sha256::digest(BODY),
                )
                .unwrap();
            assert!(fast(signer(), BODY, &signature), "salt {salt}");
            assert_eq!(slow(signer(), BODY, &signature), Some(salt));
        }
    }

    /// With 8n+1 bits the encoded message is an octet shorter than the signature; with others, a
    /// different number of leading bits is zero.
    #[test]
    fn moduli_of_uneven_lengths_are_handled() {
        let mut rng = rsa::rand_core::OsRng;
        for bits in [2049, 2053] {
            let private = rsa::RsaPrivateKey::new(&mut rng, bits).unwrap();
            let key = private.to_public_key();
            let verifier = Verifier::new(&key).unwrap();
            let digest = BodyDigest::of(BODY);
            for salt in [0, 32, (bits - 1_usize).div_ceil(8) - 34] {
                let scheme = Pss::new_with_salt::<Sha256>(salt);
                let signature = private
                    .sign_with_rng(&mut rng, scheme, &Sha256::digest(BODY))
                    .unwrap();
                assert!(
                    verifier.verify(&digest, &signature),
                    "{bits} bits, salt {salt}"
                );
                let Recovered::Message(message) = recover(&key, &signature) else {
                    panic!()
                };
                let encoded = Encoded::parse(&message, bits).unwrap();
                assert!(encoded.is_of(&digest));
                assert_eq!(encoded.salt_bytes(), salt);
            }
        }
    }

    /// Encodes with one deliberate fault and signs that raw: what only the key's owner could send.
    fn forged(fault: impl Fn(&mut Vec<u8>, &mut Vec<u8>)) -> Vec<u8> {
        let salt = [9_u8; 32];
        let hash: [u8; 32] = Sha256::new()
            .chain_update([0; 8])
            .chain_update(Sha256::digest(BODY))
            .chain_update(salt)
            .finalize()
            .into();
        let mut data = vec![0; 255 - 32 - 32 - 1];
        data.push(1);
        data.extend_from_slice(&salt);
        let mut tail = hash.to_vec();
        tail.push(TRAILER);
        fault(&mut data, &mut tail);
        let mask: Vec<u8> = mgf1(&hash).take(data.len()).collect();
        let mut message: Vec<u8> = data.iter().zip(mask).map(|(a, b)| a ^ b).collect();
        message[0] &= 0x7f;
        message.extend_from_slice(&tail);
        signer().raw(&message)
    }

    #[test]
    fn padding_that_only_the_owner_could_malform_is_refused_all_the_same() {
        let sound = forged(|_, _| ());
        assert!(fast(signer(), BODY, &sound));
        let cases: [(&str, Vec<u8>); 4] = [
            ("trailer", forged(|_, tail| tail[32] = 0xcc)),
            ("a two for the one", forged(|data, _| data[190] = 2)),
            ("not zeros before the one", forged(|data, _| data[5] = 3)),
            ("no one at all", forged(|data, _| data.fill(0))),
        ];
        for (name, signature) in cases {
            assert!(!fast(signer(), BODY, &signature), "{name}");
            assert_eq!(slow(signer(), BODY, &signature), None, "{name}");
        }
    }
}
