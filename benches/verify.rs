//! What one verification costs: ours at both salt lengths that occur, beside aws-lc-rs's own
//! fixed-length one (the yardstick: at most 1.3 times that) and the reference implementation.

#![expect(clippy::unwrap_used, reason = "a benchmark may fail")]

use std::hint::black_box;
use std::time::Duration;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{
    KeyPair as _, ParsedPublicKey, RSA_PSS_2048_8192_SHA256, RSA_PSS_SHA256, RsaPssSaltLength,
    RsaSignatureEncoding,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use criterion::{Criterion, criterion_group, criterion_main};
use prelude_bridge::signature::{KeySet, PublicKey, SCHEME, Signature};
use rsa::pkcs8::DecodePrivateKey as _;
use rsa::pss::VerifyingKey;
use rsa::signature::Verifier as _;
use rsa::traits::PublicKeyParts as _;
use rsa::{RsaPrivateKey, RsaPublicKey};
use sha2::Sha256;

const BODY_BYTES: usize = 4096;
static LONGEST: RsaSignatureEncoding = RSA_PSS_SHA256.with_pss_salt_length(RsaPssSaltLength::Max);

fn verify(criterion: &mut Criterion) {
    let body = vec![b'x'; BODY_BYTES];
    for (size, bits) in [(KeySize::Rsa2048, 2048), (KeySize::Rsa4096, 4096)] {
        let signer = Signer::new(size);
        let (digest_salt, longest_salt) = (
            signer.sign(&body, &RSA_PSS_SHA256),
            signer.sign(&body, &LONGEST),
        );
        let (ours, yardstick) = (signer.ours(), signer.yardstick());
        let mut group = criterion.benchmark_group(format!("verify/{bits}"));
        group
            .sample_size(50)
            .measurement_time(Duration::from_secs(3));
        group.bench_function("aws-lc-rs, salt 32", |bencher| {
            bencher.iter(|| yardstick.verify_sig(black_box(&body), &digest_salt).is_ok());
        });
        for (name, signature) in [("salt 32", &digest_salt), ("longest salt", &longest_salt)] {
            let signature = parse(signature);
            group.bench_function(format!("ours, {name}"), |bencher| {
                bencher.iter(|| assert!(ours.verify(black_box(&body), &signature)));
            });
        }
        // The way of a delivery: header text, hash, key set.
        let header = header(&longest_salt);
        let keys = signer.key_set();
        group.bench_function("ours, header to proof", |bencher| {
            bencher.iter(|| {
                let signature = Signature::parse(black_box(&header)).unwrap();
                keys.verify(body.clone().into(), &signature, Some("k"))
                    .unwrap()
            });
        });
        let forged = parse(&vec![1; bits / 8]);
        group.bench_function("ours, forged", |bencher| {
            bencher.iter(|| assert!(!ours.verify(black_box(&body), &forged)));
        });
        let reference = VerifyingKey::<Sha256>::new(signer.public());
        let signature = rsa::pss::Signature::try_from(digest_salt.as_slice()).unwrap();
        group.bench_function("rsa crate, salt 32", |bencher| {
            bencher.iter(|| reference.verify(black_box(&body), &signature).unwrap());
        });
        group.finish();
    }
}

fn header(signature: &[u8]) -> String {
    format!("{SCHEME}{}", URL_SAFE_NO_PAD.encode(signature))
}

fn parse(signature: &[u8]) -> Signature {
    Signature::parse(&header(signature)).unwrap()
}

struct Signer {
    pair: KeyPair,
}

impl Signer {
    fn new(size: KeySize) -> Self {
        Self {
            pair: KeyPair::generate(size).unwrap(),
        }
    }

    fn sign(&self, body: &[u8], encoding: &'static RsaSignatureEncoding) -> Vec<u8> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(encoding, &SystemRandom::new(), body, &mut signature)
            .unwrap();
        signature
    }

    fn public(&self) -> RsaPublicKey {
        let private = RsaPrivateKey::from_pkcs8_der(self.pair.as_der().unwrap().as_ref()).unwrap();
        private.to_public_key()
    }

    fn ours(&self) -> PublicKey {
        let key = self.public();
        PublicKey::from_components(Some("k"), &key.n().to_bytes_be(), &key.e().to_bytes_be())
            .unwrap()
    }

    fn key_set(&self) -> KeySet {
        let n = URL_SAFE_NO_PAD.encode(self.public().n().to_bytes_be());
        let jwks = format!(r#"{{"keys":[{{"kty":"RSA","kid":"k","n":"{n}","e":"AQAB"}}]}}"#);
        KeySet::from_jwks(jwks.as_bytes()).unwrap()
    }

    fn yardstick(&self) -> ParsedPublicKey {
        ParsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, self.pair.public_key().as_ref()).unwrap()
    }
}

criterion_group!(benches, verify);
criterion_main!(benches);
