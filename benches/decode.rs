//! What decoding costs beside the signature: verified bodies of 1, 10 and 100 events of 450 bytes
//! into batches, and one event of each documented type.
//!
//! Run with `cargo bench --bench decode`.

mod bodies;

use std::{fs, hint::black_box, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use criterion::{Criterion, Throughput};
use prelude_bridge::{
    decode,
    signature::{KeySource, Keyring, Options, SCHEME, Signature, VerifiedBody},
};
use rsa::{
    RsaPrivateKey,
    pkcs8::{EncodePublicKey as _, LineEnding},
    pss::BlindedSigningKey,
    signature::{RandomizedSigner as _, SignatureEncoding as _},
};
use sha2::Sha256;

fn main() {
    let signer = Signer::new();
    let app_id: Arc<str> = "54e9ujn".into();
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("decode");
    for count in [1, 10, 100] {
        let body = signer.verified(&bodies::sessions(count));
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("{count}_events"), |bencher| {
            bencher.iter(|| decode::batch(black_box(body.clone()), &app_id, ""));
        });
    }
    let body = signer.verified(&bodies::users(10));
    group.throughput(Throughput::Elements(10));
    group.bench_function("10_users_with_profiles", |bencher| {
        bencher.iter(|| decode::batch(black_box(body.clone()), &app_id, ""));
    });
    let body = signer.verified(&bodies::unknown(10));
    group.bench_function("10_events_of_unknown_type", |bencher| {
        bencher.iter(|| decode::batch(black_box(body.clone()), &app_id, ""));
    });
    group.finish();
    criterion.final_summary();
}

struct Signer {
    key: BlindedSigningKey<Sha256>,
    keyring: Keyring,
    runtime: tokio::runtime::Runtime,
}

impl Signer {
    #[expect(
        clippy::unwrap_used,
        reason = "a benchmark without a key has nothing to say"
    )]
    fn new() -> Self {
        let key = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
        let pem = key
            .to_public_key()
            .to_public_key_pem(LineEnding::LF)
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        fs::write(&path, pem).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let keyring = runtime.block_on(async {
            Keyring::open(
                "54e9ujn",
                KeySource::PemFiles(vec![path]),
                Options::default(),
                None,
            )
            .unwrap()
        });
        Self {
            key: BlindedSigningKey::new(key),
            keyring,
            runtime,
        }
    }

    #[expect(
        clippy::unwrap_used,
        reason = "a benchmark without a body has nothing to say"
    )]
    fn verified(&self, body: &str) -> VerifiedBody {
        let signature = self
            .key
            .sign_with_rng(&mut rsa::rand_core::OsRng, body.as_bytes());
        let header = format!("{SCHEME}{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()));
        let signature = Signature::parse(&header).unwrap();
        let body = Bytes::copy_from_slice(body.as_bytes());
        self.runtime
            .block_on(self.keyring.verify(body, &signature, None))
            .unwrap()
    }
}
