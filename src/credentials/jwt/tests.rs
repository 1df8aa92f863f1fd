//! JWTs that an issuer of our own signs, with keys from files and from a server that counts.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::FutureExt as _;
use jiff::Timestamp;
use jsonwebtoken::{EncodingKey, Header, jwk::Jwk};
use rsa::{pkcs1::EncodeRsaPrivateKey as _, pkcs8::DecodePrivateKey as _};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::credentials::QuotaReached;
use crate::{
    credentials::{self, Credentials, Ended, Forbidden, Grant, Presented, Refusal},
    filter::Spec,
};

const ISSUER: &str = "https://auth.example.com/";
const AUDIENCE: &str = "bridge";
const SOON: Duration = Duration::from_secs(30);

/// A key of the issuer.
struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    id: &'static str,
}

impl Signer {
    fn new(algorithm: Algorithm, id: &'static str) -> Self {
        let ec = |curve: &'static EcdsaSigningAlgorithm| {
            let pair = EcdsaKeyPair::generate(curve).unwrap();
            EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref())
        };
        let key = match algorithm {
            Algorithm::ES256 => ec(&ECDSA_P256_SHA256_FIXED_SIGNING),
            Algorithm::ES384 => ec(&ECDSA_P384_SHA384_FIXED_SIGNING),
            Algorithm::EdDSA => {
                let random = aws_lc_rs::rand::SystemRandom::new();
                let document = Ed25519KeyPair::generate_pkcs8v1(&random).unwrap();
                EncodingKey::from_ed_der(document.as_ref())
            }
            _ => {
                let pem = include_str!("../../../tests/data/keys/test-key-2048-a.pem");
                let key = rsa::RsaPrivateKey::from_pkcs8_pem(pem).unwrap();
                EncodingKey::from_rsa_der(key.to_pkcs1_der().unwrap().as_bytes())
            }
        };
        Self { algorithm, key, id }
    }

    fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.id.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_with(claims, |_| {})
    }

    fn sign_with(&self, claims: &Value, change: impl FnOnce(&mut Header)) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.to_owned());
        change(&mut header);
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

fn key_set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

/// Good claims, with some of them another way; `null` takes one out.
fn claims(others: &Value) -> Value {
    let mut claims = json!({
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "billing",
        "exp": Timestamp::now().as_second() + 3600,
        "types": ["user.*"],
    });
    for (name, value) in others.as_object().unwrap() {
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims
                .as_object_mut()
                .unwrap()
                .insert(name.clone(), value.clone()),
        };
    }
    claims
}

fn options(keys: KeySource) -> Options {
    Options {
        keys,
        issuer: ISSUER.to_owned(),
        audience: AUDIENCE.to_owned(),
        types_claim: "types".to_owned(),
        apps_claim: None,
        streams_max: 2,
        refresh: key_source::Options::default(),
    }
}

async fn open(options: Options) -> Result<Credentials, credentials::Error> {
    let options = credentials::Options {
        jwt: Some(options),
        ..credentials::Options::default()
    };
    Credentials::open(options).await
}

/// A bridge that trusts these keys, out of a file.
async fn trusting(keys: &[Value]) -> (TempDir, Credentials) {
    trusting_with(keys, |_| {}).await
}

async fn trusting_with(
    keys: &[Value],
    change: impl FnOnce(&mut Options),
) -> (TempDir, Credentials) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    std::fs::write(&path, key_set(keys)).unwrap();
    let mut options = options(KeySource::JwksFile(path));
    change(&mut options);
    (directory, open(options).await.unwrap())
}

async fn show(credentials: &Credentials, token: &str) -> Result<Grant, Refusal> {
    let header = format!("Bearer {token}");
    let presented = Presented {
        authorization: Some(header.as_bytes()),
        ..Presented::default()
    };
    credentials.authenticate(presented).await
}

#[tokio::test]
async fn a_jwt_of_the_issuer_gets_in_with_what_its_claims_allow() {
    let signer = Signer::new(Algorithm::ES256, "one");
    let with_apps = |options: &mut Options| options.apps_claim = Some("apps".to_owned());
    let (_directory, credentials) = trusting_with(&[signer.jwk()], with_apps).await;
    assert!(credentials.is_configured());
    for (types, apps) in [
        (json!(["user.*", "order.paid"]), json!("a b")),
        (
            json!("user.*  order.paid user.cre* *.**.x"),
            json!(["a", "b", 1, ""]),
        ),
    ] {
        let token = signer.sign(&claims(
            &json!({ "types": types, "apps": apps, "aud": ["x", AUDIENCE] }),
        ));
        let grant = show(&credentials, &token).await.unwrap();
        assert_eq!((grant.name(), grant.kind()), ("billing", Kind::Jwt));
        let allowed = grant.narrow(Spec::default()).unwrap();
        assert_eq!(allowed.types, ["user.*", "order.paid"]);
        assert_eq!(allowed.app_ids, ["a", "b"]);
    }
}

#[tokio::test]
async fn every_algorithm_that_is_taken_is_taken() {
    let of_rsa = ALL_RSA.map(|algorithm| (algorithm, "rsa"));
    let others = [
        (Algorithm::ES256, "p256"),
        (Algorithm::ES384, "p384"),
        (Algorithm::EdDSA, "ed"),
    ];
    for (algorithm, id) in of_rsa.into_iter().chain(others) {
        let signer = Signer::new(algorithm, id);
        let mut jwk = signer.jwk();
        for with_label in [true, false] {
            if !with_label {
                jwk.as_object_mut().unwrap().remove("alg");
            }
            let (_directory, credentials) = trusting(std::slice::from_ref(&jwk)).await;
            let token = signer.sign(&claims(&json!({})));
            assert!(
                show(&credentials, &token).await.is_ok(),
                "{algorithm:?} {with_label}"
            );
        }
    }
}

const ALL_RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

#[tokio::test]
async fn a_claim_that_is_missing_or_wrong_is_refused() {
    let signer = Signer::new(Algorithm::ES256, "one");
    let (_directory, credentials) = trusting(&[signer.jwk()]).await;
    let now = Timestamp::now().as_second();
    for (others, expected) in [
        (
            json!({ "iss": "https://other.example.com/" }),
            Fault::Issuer.into(),
        ),
        (json!({ "iss": null }), Fault::Claims.into()),
        (json!({ "iss": 1 }), Fault::Claims.into()),
        (json!({ "aud": "other" }), Fault::Audience.into()),
        (json!({ "aud": ["other"] }), Fault::Audience.into()),
        (json!({ "aud": [] }), Fault::Audience.into()),
        (json!({ "aud": null }), Fault::Claims.into()),
        (json!({ "exp": null }), Fault::Claims.into()),
        (json!({ "exp": "never" }), Fault::Claims.into()),
        (json!({ "exp": 1e18 }), Fault::Claims.into()),
        // Expired some seconds ago: the library's leeway does not hold for `exp`.
        (json!({ "exp": now - 3 }), Refusal::Expired),
        (json!({ "exp": now - 3600 }), Refusal::Expired),
        (json!({ "nbf": now + 3600 }), Fault::NotYet.into()),
        (json!({ "nbf": "soon" }), Fault::Claims.into()),
        (json!({ "sub": null }), Fault::Claims.into()),
        (json!({ "sub": "" }), Fault::Claims.into()),
        (json!({ "sub": "a\u{1b}[2J" }), Fault::Claims.into()),
        (json!({ "sub": "a".repeat(129) }), Fault::Claims.into()),
        (json!({ "types": vec!["a"; 257] }), Fault::TooMany.into()),
    ] {
        let token = signer.sign(&claims(&others));
        assert_eq!(
            show(&credentials, &token).await.unwrap_err(),
            expected,
            "{others}"
        );
    }
    for others in [
        json!({ "nbf": now + 30 }),
        json!({ "nbf": now }),
        json!({ "exp": now as f64 + 60.5 }),
    ] {
        let token = signer.sign(&claims(&others));
        assert!(show(&credentials, &token).await.is_ok(), "{others}");
    }
}

#[tokio::test]
async fn a_jwt_that_the_issuer_did_not_sign_is_refused() {
    let signer = Signer::new(Algorithm::ES256, "one");
    let (_directory, credentials) = trusting(&[signer.jwk()]).await;
    let good = signer.sign(&claims(&json!({})));
    assert!(show(&credentials, &good).await.is_ok());
    let signature = Refusal::from(Fault::Signature);

    let forger = Signer::new(Algorithm::ES256, "one");
    let forged = forger.sign(&claims(&json!({ "sub": "forger" })));
    assert_eq!(show(&credentials, &forged).await.unwrap_err(), signature);
    let unnamed = forger.sign_with(&claims(&json!({})), |header| header.kid = None);
    assert_eq!(show(&credentials, &unnamed).await.unwrap_err(), signature);
    // A key that the JWT brings along is nobody's.
    let own_key = forger.sign_with(&claims(&json!({})), |header| {
        header.jwk = serde_json::from_value(forger.jwk()).ok();
    });
    assert_eq!(show(&credentials, &own_key).await.unwrap_err(), signature);

    let [header, payload, _] = good.split('.').collect::<Vec<_>>()[..] else {
        panic!("{good}");
    };
    let [_, other, _] = forged.split('.').collect::<Vec<_>>()[..] else {
        panic!("{forged}");
    };
    // Other claims under a signature of the issuer's.
    assert_ne!(payload, other);
    let tampered = good.replace(payload, other);
    assert!(tampered.starts_with(header));
    assert_eq!(show(&credentials, &tampered).await.unwrap_err(), signature);
}

#[tokio::test]
async fn an_algorithm_without_a_private_key_is_refused() {
    let signer = Signer::new(Algorithm::RS256, "one");
    let (_directory, credentials) = trusting(&[signer.jwk()]).await;
    let header = Refusal::from(Fault::Header);
    let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let payload = encode(claims(&json!({})));
    for alg in ["none", "None", "", "RS1", "HS256"] {
        let token = format!(
            "{}.{payload}.c2ln",
            encode(json!({ "alg": alg, "kid": "one" }))
        );
        assert_eq!(
            show(&credentials, &token).await.unwrap_err(),
            header,
            "{alg}"
        );
    }
    // The public key as a shared secret: the oldest trick.
    let secret = EncodingKey::from_secret(signer.jwk()["n"].as_str().unwrap().as_bytes());
    let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(&json!({})), &secret);
    assert_eq!(
        show(&credentials, &token.unwrap()).await.unwrap_err(),
        header
    );
    let critical = signer.sign_with(&claims(&json!({})), |header| {
        header.crit = Some(vec!["exp".to_owned()]);
    });
    assert_eq!(show(&credentials, &critical).await.unwrap_err(), header);
    for garbage in ["e30.e30.c2ln", "A.A.A", "eyJ.eyJ.x"] {
        assert_eq!(
            show(&credentials, garbage).await.unwrap_err(),
            header,
            "{garbage}"
        );
    }
}

#[tokio::test]
async fn a_key_signs_with_its_own_algorithm_and_for_its_own_use() {
    let signer = Signer::new(Algorithm::PS256, "one");
    let mut labelled = signer.jwk();
    labelled["alg"] = json!("RS256");
    let (_directory, credentials) = trusting(&[labelled]).await;
    let token = signer.sign(&claims(&json!({})));
    assert_eq!(
        show(&credentials, &token).await.unwrap_err(),
        Fault::Signature.into()
    );

    let mut for_encryption = signer.jwk();
    for_encryption["use"] = json!("enc");
    let weak = json!({ "kty": "RSA", "n": URL_SAFE_NO_PAD.encode([0xff; 128]), "e": "AQAB" });
    let secret = json!({ "kty": "oct", "k": "c2VjcmV0", "kid": "one" });
    for keys in [vec![for_encryption], vec![weak], vec![secret], vec![]] {
        assert_eq!(fault(key_set(&keys).as_bytes()), keys::Fault::NoUsableKey);
    }
}

/// Why a document has no keys.
fn fault(document: &[u8]) -> keys::Fault {
    match KeySet::parse(document).unwrap_err() {
        Error::KeySet(fault) => fault,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn keys_may_be_padded() {
    for algorithm in [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA] {
        let signer = Signer::new(algorithm, "one");
        let mut jwk = signer.jwk();
        for (_, member) in jwk.as_object_mut().unwrap() {
            let text = member.as_str().unwrap_or_default();
            if text.len() > 40 {
                *member = json!(format!("{text}{}", "=".repeat(4 - text.len() % 4)));
            }
        }
        let (_directory, credentials) = trusting(&[jwk]).await;
        let token = signer.sign(&claims(&json!({})));
        assert!(show(&credentials, &token).await.is_ok(), "{algorithm:?}");
    }
}

#[tokio::test]
async fn a_strange_key_spoils_nothing() {
    let signer = Signer::new(Algorithm::EdDSA, "one");
    let keys = [
        json!({ "kty": "ML-DSA", "kid": 7 }),
        json!(null),
        json!("text"),
        json!({ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" }),
        json!({ "kty": "OKP", "crv": "X25519", "x": "AA" }),
        signer.jwk(),
    ];
    let (_directory, credentials) = trusting(&keys).await;
    assert!(
        show(&credentials, &signer.sign(&claims(&json!({}))))
            .await
            .is_ok()
    );
    for document in ["", "[]", "{}", "{\"keys\":1}"] {
        assert_eq!(fault(document.as_bytes()), keys::Fault::NotJwks);
    }
}

#[tokio::test]
async fn a_jwt_without_the_claims_allows_nothing() {
    let signer = Signer::new(Algorithm::ES256, "one");
    let (_directory, credentials) = trusting(&[signer.jwk()]).await;
    for types in [
        json!(null),
        json!([]),
        json!(""),
        json!({ "a": 1 }),
        json!(true),
    ] {
        let token = signer.sign(&claims(&json!({ "types": types })));
        let grant = show(&credentials, &token).await.unwrap();
        assert_eq!(
            grant.narrow(Spec::default()),
            Err(Forbidden::Types(Vec::new())),
            "{types}"
        );
    }
    let with_apps = |options: &mut Options| options.apps_claim = Some("apps".to_owned());
    let (_directory, credentials) = trusting_with(&[signer.jwk()], with_apps).await;
    let grant = show(&credentials, &signer.sign(&claims(&json!({}))))
        .await
        .unwrap();
    assert_eq!(
        grant.narrow(Spec::default()),
        Err(Forbidden::Apps(Vec::new()))
    );
}

#[tokio::test]
async fn its_streams_end_when_it_expires() {
    let signer = Signer::new(Algorithm::ES256, "one");
    let (_directory, credentials) = trusting(&[signer.jwk()]).await;
    // Long enough for a busy machine to show it before it expires.
    let mut lasting = Duration::from_millis(250);
    let (exp, token, grant) = loop {
        let exp = Timestamp::now() + lasting;
        let seconds = exp.as_millisecond() as f64 / 1000.0;
        let token = signer.sign(&claims(&json!({ "exp": seconds })));
        match show(&credentials, &token).await {
            Ok(grant) => break (exp, token, grant),
            Err(refusal) => assert_eq!(refusal, Refusal::Expired),
        }
        lasting *= 2;
        assert!(lasting < SOON);
    };
    let ended = tokio::time::timeout(SOON, grant.ended()).await.unwrap();
    assert_eq!(ended, Ended::Expired);
    assert!(Timestamp::now().as_millisecond() >= exp.as_millisecond());
    assert_eq!(
        show(&credentials, &token).await.unwrap_err(),
        Refusal::Expired
    );
}

#[tokio::test]
async fn it_is_valid_again_after_a_wrong_clock() {
    let ahead = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(0));
    let clock = {
        let ahead = std::sync::Arc::clone(&ahead);
        move || {
            let seconds = ahead.load(std::sync::atomic::Ordering::Relaxed);
            Timestamp::now() + jiff::SignedDuration::from_secs(seconds)
        }
    };
    let signer = Signer::new(Algorithm::ES256, "one");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    std::fs::write(&path, key_set(&[signer.jwk()])).unwrap();
    let options = credentials::Options {
        jwt: Some(options(KeySource::JwksFile(path))),
        ..credentials::Options::default()
    };
    let opened = Credentials::open_with_clock(options, std::sync::Arc::new(clock));
    let credentials = opened.await.unwrap();
    let token = signer.sign(&claims(&json!({})));
    const DAY: i64 = 86_400;
    for (seconds, is_valid) in [
        (0, true),
        (35 * DAY, false),
        (0, true),
        (-35 * DAY, true),
        (-Timestamp::now().as_second(), true),
        (0, true),
    ] {
        ahead.store(seconds, std::sync::atomic::Ordering::Relaxed);
        let shown = show(&credentials, &token).await;
        assert_eq!(shown.is_ok(), is_valid, "{seconds}: {shown:?}");
    }
}

#[tokio::test]
async fn all_jwts_of_a_subject_share_a_quota() {
    let signer = Signer::new(Algorithm::ES256, "one");
    let (_directory, credentials) = trusting(&[signer.jwk()]).await;
    let grant = async |others: Value| {
        let token = signer.sign(&claims(&others));
        show(&credentials, &token).await.unwrap()
    };
    let first = grant(json!({})).await.enter(usize::MAX).unwrap();
    let _second = grant(json!({ "types": ["a"] }))
        .await
        .enter(usize::MAX)
        .unwrap();
    assert_eq!(
        grant(json!({})).await.enter(usize::MAX).unwrap_err(),
        QuotaReached::Streams { streams_max: 2 }
    );
    assert!(
        grant(json!({ "sub": "other" }))
            .await
            .enter(usize::MAX)
            .is_ok()
    );
    drop(first);
    assert!(grant(json!({})).await.enter(usize::MAX).is_ok());
}

#[tokio::test]
async fn subjects_without_a_stream_are_forgotten() {
    let signer = Signer::new(Algorithm::ES256, "one");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    std::fs::write(&path, key_set(&[signer.jwk()])).unwrap();
    let clock: Clock = Arc::new(Timestamp::now);
    let verifier = Verifier::open(options(KeySource::JwksFile(path)), clock).unwrap();
    let kept = verifier.quota("kept");
    for index in 0..20 * SUBJECTS_MIN {
        drop(verifier.quota(&index.to_string()));
    }
    let known = verifier.quotas.lock().unwrap().len();
    assert!(known <= 4 * SUBJECTS_MIN, "{known}");
    assert!(Arc::ptr_eq(&kept, &verifier.quota("kept")));
}

/// A key server whose answer is whatever the test says.
#[derive(Clone)]
struct KeyServer {
    url: String,
    answer: Arc<Mutex<String>>,
    requests: Arc<AtomicUsize>,
}

impl KeyServer {
    async fn start(answer: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            url: format!("http://{}/jwks.json", listener.local_addr().unwrap()),
            answer: Arc::new(Mutex::new(answer.to_owned())),
            requests: Arc::default(),
        };
        let serving = server.clone();
        tokio::spawn(async move {
            let mut hanging = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                serving.requests.fetch_add(1, Ordering::SeqCst);
                let answer = serving.answer.lock().unwrap().clone();
                if answer.is_empty() {
                    hanging.push(stream);
                    continue;
                }
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        server
    }

    fn answers(&self, answer: &str) {
        answer.clone_into(&mut self.answer.lock().unwrap());
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    async fn open(&self, refresh: key_source::Options) -> Credentials {
        let options = Options {
            refresh,
            ..options(KeySource::url(&self.url).unwrap())
        };
        open(options).await.unwrap()
    }
}

fn ok(document: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{document}",
        document.len()
    )
}

const DOWN: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
const FOREVER: Duration = Duration::from_secs(3600);

/// Nothing happens by the clock: only what a test causes.
fn still() -> key_source::Options {
    key_source::Options {
        refresh_interval: FOREVER,
        retry_interval_min: FOREVER,
        retry_interval_max: FOREVER,
        unknown_interval_min: Duration::ZERO,
        ..key_source::Options::default()
    }
}

#[tokio::test]
async fn a_new_key_is_fetched_when_a_jwt_names_it() {
    let (one, two) = (
        Signer::new(Algorithm::ES256, "one"),
        Signer::new(Algorithm::ES256, "two"),
    );
    let server = KeyServer::start(&ok(&key_set(&[one.jwk()]))).await;
    let credentials = server.open(still()).await;
    assert!(
        show(&credentials, &one.sign(&claims(&json!({}))))
            .await
            .is_ok()
    );
    let before = server.requests();
    server.answers(&ok(&key_set(&[two.jwk()])));
    assert!(
        show(&credentials, &two.sign(&claims(&json!({}))))
            .await
            .is_ok()
    );
    assert_eq!(server.requests(), before + 1);
    // The old key is gone with the set.
    let refused = show(&credentials, &one.sign(&claims(&json!({}))))
        .await
        .unwrap_err();
    assert_eq!(refused, Fault::Signature.into());
}

/// The issuer says nothing, and a crowd comes with keys that nobody knows.
#[tokio::test]
async fn few_callers_wait_for_newer_keys_and_the_others_are_refused_at_once() {
    let known = Signer::new(Algorithm::ES256, "known");
    let server = KeyServer::start(&ok(&key_set(&[known.jwk()]))).await;
    let credentials = server.open(still()).await;
    let good = known.sign(&claims(&json!({})));
    assert!(show(&credentials, &good).await.is_ok());
    server.answers("");
    let unknown = Signer::new(Algorithm::ES256, "unknown").sign(&claims(&json!({})));
    let unknown = format!("Bearer {unknown}");
    let come = |address: Option<IpAddr>| {
        let presented = Presented {
            address,
            authorization: Some(unknown.as_bytes()),
            ..Presented::default()
        };
        let mut authenticated = Box::pin(credentials.authenticate(presented));
        match authenticated.as_mut().now_or_never() {
            None => Some(authenticated),
            Some(refused) => {
                assert_eq!(refused.unwrap_err(), Refusal::Unavailable);
                None
            }
        }
    };
    let address = |number: u8| Some(IpAddr::from([192, 0, number, 1]));
    let of_one: Vec<_> = (0..100).filter_map(|_| come(address(1))).collect();
    assert_eq!(of_one.len(), WAITING_PER_ADDRESS_MAX);
    let others: Vec<_> = (0..100)
        .filter_map(|number| come(address(number)))
        .collect();
    assert_eq!(of_one.len() + others.len(), WAITING_MAX);
    // Known keys are as good as ever, whoever waits.
    let good = format!("Bearer {good}");
    let presented = Presented {
        address: address(1),
        authorization: Some(good.as_bytes()),
        ..Presented::default()
    };
    assert!(credentials.authenticate(presented).await.is_ok());
    drop(of_one);
    // Of a proxy as many wait as there is room for.
    let of_proxy: Vec<_> = (0..100).filter_map(|_| come(None)).collect();
    assert_eq!(of_proxy.len(), WAITING_PER_ADDRESS_MAX);
}

/// Whoever forges JWTs gets no more of them verified than its address may, and keeps nobody waiting whose JWT is
/// known, nor other addresses.
#[tokio::test]
async fn forged_jwts_of_an_address_have_a_rate_and_those_that_are_known_none() {
    for algorithm in [Algorithm::RS256, Algorithm::ES256] {
        let signer = Signer::new(algorithm, "one");
        let (_directory, credentials) = trusting(&[signer.jwk()]).await;
        let show = |token: &str, address: u8| {
            let (token, credentials) = (format!("Bearer {token}"), &credentials);
            async move {
                let presented = Presented {
                    address: Some(IpAddr::from([192, 0, 2, address])),
                    authorization: Some(token.as_bytes()),
                    ..Presented::default()
                };
                credentials.authenticate(presented).await.map(drop)
            }
        };
        let known = signer.sign(&claims(&json!({})));
        assert_eq!(show(&known, 1).await, Ok(()));
        let mut forged = signer.sign(&claims(&json!({ "sub": "forger" })));
        forged.replace_range(forged.len() - 12..forged.len() - 2, "AAAAAAAAAA");
        let mut outcomes = Vec::new();
        for _ in 0..1_000 {
            // Nobody waits for a turn: that is refused at once, or given up.
            outcomes.push(show(&forged, 1).now_or_never());
        }
        let verified = Some(Err(Fault::Signature.into()));
        let verified = outcomes.iter().filter(|&outcome| *outcome == verified);
        let verified = verified.count();
        assert!((100..500).contains(&verified), "{verified}");
        assert_eq!(show(&known, 1).now_or_never(), Some(Ok(())));
        let new = signer.sign(&claims(&json!({ "sub": "new" })));
        assert_eq!(show(&new, 2).now_or_never(), Some(Ok(())));
        // From the address of the flood, it has its turn within a second, and then none is needed.
        assert!(show(&new, 1).await.is_ok());
    }
}

/// More JWTs wait for their turn than may, and are refused at once.
#[tokio::test]
async fn few_wait_for_the_turn_of_their_address_and_the_others_may_try_again() {
    let signer = Signer::new(Algorithm::ES256, "one");
    let (_directory, credentials) = trusting(&[signer.jwk()]).await;
    let forged = Signer::new(Algorithm::ES256, "one").sign(&claims(&json!({})));
    let forged = format!("Bearer {forged}");
    let come = || {
        let presented = Presented {
            address: Some(IpAddr::from([192, 0, 2, 1])),
            authorization: Some(forged.as_bytes()),
            ..Presented::default()
        };
        let mut authenticated = Box::pin(credentials.authenticate(presented));
        match authenticated.as_mut().now_or_never() {
            None => Ok(authenticated),
            Some(refused) => Err(refused.unwrap_err()),
        }
    };
    let (mut waiting, mut throttled) = (Vec::new(), 0);
    for _ in 0..1_000 {
        match come() {
            Ok(authenticated) => waiting.push(authenticated),
            Err(refusal) => throttled += usize::from(refusal == Refusal::Throttled),
        }
    }
    assert_eq!(waiting.len(), WAITING_PER_ADDRESS_MAX);
    assert!(throttled > 500, "{throttled}");
}

#[tokio::test]
async fn unknown_keys_cause_one_fetch_in_a_while_and_forgeries_under_a_known_name_none() {
    let signer = Signer::new(Algorithm::ES256, "one");
    let server = KeyServer::start(&ok(&key_set(&[signer.jwk()]))).await;
    let credentials = server
        .open(key_source::Options {
            unknown_interval_min: FOREVER,
            ..still()
        })
        .await;
    assert!(
        show(&credentials, &signer.sign(&claims(&json!({}))))
            .await
            .is_ok()
    );
    let before = server.requests();
    let forged = Signer::new(Algorithm::ES256, "one").sign(&claims(&json!({})));
    assert!(show(&credentials, &forged).await.is_err());
    assert_eq!(server.requests(), before);
    let unknown = Signer::new(Algorithm::ES256, "unknown").sign(&claims(&json!({})));
    let many = (0..50).map(|_| show(&credentials, &unknown));
    for refused in futures_util::future::join_all(many).await {
        assert_eq!(refused.unwrap_err(), Fault::Signature.into());
    }
    assert!(server.requests() <= before + 1, "{}", server.requests());
}

#[tokio::test]
async fn without_keys_a_jwt_can_be_tried_again_and_an_outage_keeps_the_last_good_ones() {
    let signer = Signer::new(Algorithm::ES256, "one");
    let token = signer.sign(&claims(&json!({})));
    let server = KeyServer::start(DOWN).await;
    let credentials = server.open(still()).await;
    assert_eq!(
        show(&credentials, &token).await.unwrap_err(),
        Refusal::Unavailable
    );
    server.answers(&ok(&key_set(&[signer.jwk()])));
    assert!(show(&credentials, &token).await.is_ok());
    for bad in [DOWN.to_owned(), ok("not json"), ok(&" ".repeat(70_000))] {
        server.answers(&bad);
        let unknown = Signer::new(Algorithm::ES256, "unknown").sign(&claims(&json!({})));
        assert_eq!(
            show(&credentials, &unknown).await.unwrap_err(),
            Fault::Signature.into()
        );
        assert!(show(&credentials, &token).await.is_ok());
    }
    tokio::time::timeout(SOON, credentials.shutdown())
        .await
        .unwrap();
    assert!(
        show(&credentials, &token).await.is_ok(),
        "what is known goes on holding"
    );
}

#[tokio::test]
async fn a_key_file_that_is_wrong_is_refused_at_the_start_and_read_anew_later() {
    let missing = options(KeySource::JwksFile("/nowhere/jwks.json".into()));
    let error = open(missing).await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/jwks.json"), "{error}");

    let (one, two) = (
        Signer::new(Algorithm::ES256, "one"),
        Signer::new(Algorithm::ES256, "two"),
    );
    let eager =
        |options: &mut Options| options.refresh.file_check_interval = Duration::from_millis(2);
    let (directory, credentials) = trusting_with(&[one.jwk()], eager).await;
    std::fs::write(directory.path().join("jwks.json"), key_set(&[two.jwk()])).unwrap();
    let token = two.sign(&claims(&json!({})));
    let accepted = async {
        while show(&credentials, &token).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, accepted).await.unwrap();
}

#[tokio::test]
async fn a_jwt_is_in_no_debug_output_and_no_refusal() {
    let signer = Signer::new(Algorithm::ES256, "one");
    let (_directory, credentials) = trusting(&[signer.jwk()]).await;
    let token = signer.sign(&claims(&json!({ "email": "canary.person@example.com" })));
    let grant = show(&credentials, &token).await.unwrap();
    let forged = Signer::new(Algorithm::ES256, "one").sign(&claims(&json!({ "sub": "canary" })));
    let refusal = show(&credentials, &forged).await.unwrap_err();
    let seen = format!("{grant:?} {credentials:?} {refusal} {refusal:?}");
    assert!(!seen.contains("canary"), "{seen}");
    for part in token.split('.').chain(forged.split('.')) {
        assert!(!seen.contains(part), "{seen}");
    }
}
