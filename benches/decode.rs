//! What decoding costs beside the signature: verified bodies of 1, 10 and 100 events of 450 bytes
//! into batches, and one event of each documented type.
//!
//! Run with `cargo bench --bench decode`.

use std::{fmt::Write as _, fs, hint::black_box, sync::Arc};

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

const EVENT_BYTES: usize = 450;

fn main() {
    let signer = Signer::new();
    let app_id: Arc<str> = "54e9ujn".into();
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("decode");
    for count in [1, 10, 100] {
        let body = signer.verified(&batch((0..count).map(session_created)));
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("{count}_events"), |bencher| {
            bencher.iter(|| decode::batch(black_box(body.clone()), &app_id, ""));
        });
    }
    let body = signer.verified(&batch((0..10).map(user_created)));
    group.throughput(Throughput::Elements(10));
    group.bench_function("10_users_with_profiles", |bencher| {
        bencher.iter(|| decode::batch(black_box(body.clone()), &app_id, ""));
    });
    let body = signer.verified(&batch((0..10).map(unknown)));
    group.bench_function("10_events_of_unknown_type", |bencher| {
        bencher.iter(|| decode::batch(black_box(body.clone()), &app_id, ""));
    });
    group.finish();
    criterion.final_summary();
}

fn batch(events: impl Iterator<Item = String>) -> String {
    let events: Vec<String> = events.collect();
    format!(r#"{{"app_id":"54e9ujn","events":[{}]}}"#, events.join(","))
}

fn session_created(index: usize) -> String {
    let head = event_head(index, "user.session.created");
    padded(format!(
        r#"{head}"session_id":"ses_01jqebhswje2ka1yzgdbzrs1r2","identifier":{{"type":"phone_number","value":"+33612345678"}},"metadata":{{"ip":"203.0.113.7"}},"created_at":"2026-11-23T10:00:00.123456Z"#
    ))
}

fn user_created(index: usize) -> String {
    let head = event_head(index, "user.created");
    padded(format!(
        r#"{head}"identifiers":[{{"type":"email_address","value":"ada@example.com"}}],"profile":{{"name":"Ada","plan":{{"tier":3,"beta":true}}}},"source":"api","created_at":"2026-11-23T10:00:00Z"#
    ))
}

fn unknown(index: usize) -> String {
    padded(format!(
        "{}\"note\":\"",
        event_head(index, "user.suspended")
    ))
}

fn event_head(index: usize, event_type: &str) -> String {
    format!(
        r#"{{"id":"evt_01jqebhswje2ka1yz{index:05}","type":"{event_type}","created_at":"2026-11-23T10:00:00Z","payload":{{"user_id":"usr_01jqebhswje2ka1yzgdbzrs1r2","#
    )
}

/// Ends the event's last string, and fills the event up with a member that is not documented.
fn padded(mut event: String) -> String {
    event.push_str(r#"","extra":""#);
    while event.len() < EVENT_BYTES - 3 {
        let _ = event.write_char('x');
    }
    event.push_str("\"}}");
    event
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
                KeySource::PemFile(path),
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
