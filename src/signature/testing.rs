//! Keys and signatures for the tests of this room, made by aws-lc-rs and not by the code under test.

use std::sync::OnceLock;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{
    RSA_PKCS1_SHA256, RSA_PSS_SHA256, RSA_PSS_SHA384, RsaPssSaltLength, RsaSignatureEncoding,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::pkcs8::DecodePrivateKey as _;
use rsa::traits::{PrivateKeyParts as _, PublicKeyParts as _};
use rsa::{BigUint, RsaPrivateKey, RsaPublicKey};

use super::Signature;

#[derive(Debug, Clone, Copy)]
pub(super) enum Salt {
    None,
    Twenty,
    Digest,
    Longest,
}

pub(super) struct Signer {
    fast: KeyPair,
    reference: RsaPrivateKey,
}

impl Signer {
    fn generate() -> Self {
        let fast = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let reference = RsaPrivateKey::from_pkcs8_der(fast.as_der().unwrap().as_ref()).unwrap();
        Self { fast, reference }
    }

    pub(super) fn sign(&self, body: &[u8], salt: Salt) -> Vec<u8> {
        static NONE: RsaSignatureEncoding =
            RSA_PSS_SHA256.with_pss_salt_length(RsaPssSaltLength::Custom(0));
        static TWENTY: RsaSignatureEncoding =
            RSA_PSS_SHA256.with_pss_salt_length(RsaPssSaltLength::Custom(20));
        static LONGEST: RsaSignatureEncoding =
            RSA_PSS_SHA256.with_pss_salt_length(RsaPssSaltLength::Max);
        self.sign_as(
            body,
            match salt {
                Salt::None => &NONE,
                Salt::Twenty => &TWENTY,
                Salt::Digest => &RSA_PSS_SHA256,
                Salt::Longest => &LONGEST,
            },
        )
    }

    pub(super) fn sign_pkcs1(&self, body: &[u8]) -> Vec<u8> {
        self.sign_as(body, &RSA_PKCS1_SHA256)
    }

    pub(super) fn sign_sha384(&self, body: &[u8]) -> Vec<u8> {
        self.sign_as(body, &RSA_PSS_SHA384)
    }

    /// The header of a delivery.
    pub(super) fn header(&self, body: &[u8]) -> String {
        format!(
            "{}{}",
            super::SCHEME,
            URL_SAFE_NO_PAD.encode(self.sign(body, Salt::Digest))
        )
    }

    pub(super) fn signature(&self, body: &[u8]) -> Signature {
        Signature::parse(&self.header(body)).unwrap()
    }

    /// The bare private operation over an encoded message of one's own.
    pub(super) fn raw(&self, message: &[u8]) -> Vec<u8> {
        let number = BigUint::from_bytes_be(message)
            .modpow(self.reference.d(), self.reference.n())
            .to_bytes_be();
        let mut signature = vec![0; self.reference.size() - number.len()];
        signature.extend(number);
        signature
    }

    pub(super) fn private(&self) -> &RsaPrivateKey {
        &self.reference
    }

    pub(super) fn public(&self) -> RsaPublicKey {
        self.reference.to_public_key()
    }

    pub(super) fn modulus(&self) -> Vec<u8> {
        self.reference.n().to_bytes_be()
    }

    pub(super) fn jwk(&self, id: &str) -> String {
        let n = URL_SAFE_NO_PAD.encode(self.modulus());
        format!(r#"{{"kty":"RSA","use":"sig","alg":"RS256","kid":"{id}","n":"{n}","e":"AQAB"}}"#)
    }

    fn sign_as(&self, body: &[u8], encoding: &'static RsaSignatureEncoding) -> Vec<u8> {
        let mut signature = vec![0; self.fast.public_modulus_len()];
        self.fast
            .sign(encoding, &SystemRandom::new(), body, &mut signature)
            .unwrap();
        signature
    }
}

/// The key that the tests sign with, made once.
pub(super) fn signer() -> &'static Signer {
    static SIGNER: OnceLock<Signer> = OnceLock::new();
    SIGNER.get_or_init(Signer::generate)
}

/// A second key, for everything about more than one.
pub(super) fn other_signer() -> &'static Signer {
    static SIGNER: OnceLock<Signer> = OnceLock::new();
    SIGNER.get_or_init(Signer::generate)
}

pub(super) fn jwks(keys: &[String]) -> String {
    format!(r#"{{"keys":[{}]}}"#, keys.join(","))
}
