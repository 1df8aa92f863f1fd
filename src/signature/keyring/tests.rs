//! Keyrings against a key server that rotates, fails, stalls and lies.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::super::testing::{Signer, jwks, other_signer, signer};
use super::super::{Origin, SCHEME};
use super::*;

const BODY: &[u8] = br#"{"app_id":"54e9ujn","events":[]}"#;
const FOREVER: Duration = Duration::from_secs(3600);

/// A key server of one connection a request, whose answer is whatever the test says.
#[derive(Clone)]
struct KeyServer {
    address: std::net::SocketAddr,
    answer: Arc<Mutex<String>>,
    requests: Arc<AtomicUsize>,
    /// A request is answered when it gets one of these.
    permits: Arc<Semaphore>,
}

impl KeyServer {
    async fn start(answer: String) -> Self {
        Self::start_at("127.0.0.1:0", answer).await
    }

    async fn start_at(address: &str, answer: String) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            answer: Arc::new(Mutex::new(answer)),
            requests: Arc::default(),
            permits: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let serving = serving.clone();
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.unwrap());
                    }
                    serving.requests.fetch_add(1, Ordering::SeqCst);
                    serving.permits.acquire().await.unwrap().forget();
                    let answer = serving.answer.lock().unwrap().clone();
                    // The client hangs up where it has seen enough.
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        server
    }

    fn answers(&self, answer: impl Into<String>) {
        *self.answer.lock().unwrap() = answer.into();
    }

    /// Holds every request back until permits are given.
    fn hold(&self) {
        self.permits.forget_permits(Semaphore::MAX_PERMITS);
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    fn source(&self) -> KeySource {
        KeySource::url(&format!("http://{}/jwks.json", self.address)).unwrap()
    }
}

fn ok(document: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{document}",
        document.len()
    )
}

fn serving(signer: &Signer) -> String {
    ok(&jwks(&[signer.jwk("current")]))
}

const DOWN: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";

/// Nothing happens by the clock: only what a test causes.
fn still() -> Options {
    Options {
        refresh_interval: FOREVER,
        retry_interval_min: FOREVER,
        retry_interval_max: FOREVER,
        unknown_interval_min: Duration::ZERO,
        ..Options::default()
    }
}

/// The source is asked all the time.
fn eager() -> Options {
    let now = Duration::from_millis(2);
    Options {
        refresh_interval: now,
        retry_interval_min: now,
        retry_interval_max: now,
        file_check_interval: now,
        unknown_interval_min: FOREVER,
        ..Options::default()
    }
}

async fn open(server: &KeyServer, options: Options) -> Keyring {
    let keyring = Keyring::open("54e9ujn", server.source(), options, None).unwrap();
    keyring.settled().await;
    keyring
}

async fn verify(keyring: &Keyring, signer: &Signer) -> Result<VerifiedBody, Error> {
    keyring
        .verify(BODY.into(), &signer.signature(BODY), None)
        .await
}

fn unknown() -> Signature {
    Signature::parse(&format!("{SCHEME}{}", "A".repeat(342))).unwrap()
}

async fn eventually(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "the condition did not come true");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_delivery_is_verified_and_names_its_key() {
    let server = KeyServer::start(serving(signer())).await;
    let keyring = open(&server, still()).await;
    let verified = verify(&keyring, signer()).await.unwrap();
    assert_eq!(
        (verified.body().as_ref(), verified.key_id()),
        (BODY, Some("current"))
    );
    for key_id in ["current", "another", ""] {
        let signature = signer().signature(BODY);
        assert!(
            keyring
                .verify(BODY.into(), &signature, Some(key_id))
                .await
                .is_ok(),
            "{key_id}"
        );
    }
    assert_eq!(server.requests(), 1);
    assert_eq!(format!("{verified:?}"), "VerifiedBody(32 bytes)");
    let status = keyring.status();
    assert_eq!(status.origin, Origin::Source);
    assert_eq!((status.keys.len(), status.keys[0].bits), (1, 2048));
    assert!(status.fetched_at.is_some() && status.last_error.is_none());
}

#[tokio::test]
async fn a_rotation_costs_one_fetch_and_no_delivery() {
    let server = KeyServer::start(serving(signer())).await;
    let keyring = open(&server, still()).await;
    server.answers(serving(other_signer()));
    assert!(verify(&keyring, other_signer()).await.is_ok());
    assert!(verify(&keyring, other_signer()).await.is_ok());
    assert_eq!(server.requests(), 2);
    assert_eq!(keyring.status().attempts_for_unknown, 1);
}

#[tokio::test]
async fn a_delivery_signed_with_a_retired_key_is_refused() {
    let server = KeyServer::start(serving(signer())).await;
    let keyring = open(&server, still()).await;
    server.answers(serving(other_signer()));
    assert!(verify(&keyring, other_signer()).await.is_ok());
    let refused = verify(&keyring, signer()).await.unwrap_err();
    assert!(matches!(refused, Error::Mismatch));
    assert!(!refused.is_retryable());
}

#[tokio::test]
async fn unknown_signatures_cause_one_fetch_in_a_while() {
    let server = KeyServer::start(serving(signer())).await;
    let options = Options {
        unknown_interval_min: FOREVER,
        ..still()
    };
    let keyring = open(&server, options).await;
    for _ in 0..20 {
        let refused = keyring.verify(BODY.into(), &unknown(), None).await;
        assert!(matches!(refused, Err(Error::Mismatch)));
    }
    assert_eq!(
        server.requests(),
        2,
        "one at the start, one for all the unknown"
    );

    let keyring = open(&server, still()).await;
    for _ in 0..3 {
        assert!(keyring.verify(BODY.into(), &unknown(), None).await.is_err());
    }
    assert_eq!(server.requests(), 2 + 1 + 3, "the while over each time");
}

#[tokio::test]
async fn an_operator_has_the_source_read_whatever_was_read_before() {
    let server = KeyServer::start(serving(signer())).await;
    let options = Options {
        unknown_interval_min: FOREVER,
        ..still()
    };
    let keyring = open(&server, options).await;
    // Uses up what unknown signatures may cause.
    assert!(keyring.verify(BODY.into(), &unknown(), None).await.is_err());
    for attempts in [3, 4] {
        keyring.read_again();
        eventually(|| keyring.status().attempts == attempts).await;
    }
    assert_eq!(server.requests(), 4);
    assert_eq!(keyring.status().attempts_for_unknown, 1);
}

#[tokio::test]
async fn many_waiting_deliveries_share_one_fetch() {
    let server = KeyServer::start(serving(signer())).await;
    let keyring = open(&server, still()).await;
    server.hold();
    server.answers(serving(other_signer()));
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let keyring = keyring.clone();
            tokio::spawn(async move { verify(&keyring, other_signer()).await.is_ok() })
        })
        .collect();
    eventually(|| server.requests() == 2).await;
    // Those who know the key are not held up by those who wait.
    assert!(verify(&keyring, signer()).await.is_ok());
    // One answer, no more: a second fetch would never end.
    server.permits.add_permits(1);
    for delivery in waiting {
        assert!(delivery.await.unwrap());
    }
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn an_outage_changes_nothing_for_known_keys() {
    let server = KeyServer::start(serving(signer())).await;
    let keyring = open(&server, eager()).await;
    server.answers(DOWN);
    eventually(|| keyring.status().last_error.is_some()).await;
    assert!(verify(&keyring, signer()).await.is_ok());
    assert!(keyring.status().last_error.unwrap().contains("status 500"));
    server.answers(serving(other_signer()));
    eventually(|| keyring.status().last_error.is_none()).await;
    assert!(verify(&keyring, other_signer()).await.is_ok());
}

#[tokio::test]
async fn nonsense_from_the_server_keeps_the_last_good_keys() {
    let server = KeyServer::start(serving(signer())).await;
    let keyring = open(&server, eager()).await;
    for (nonsense, said) in [
        (ok("<html>maintenance</html>"), "no JSON key set"),
        (ok(r#"{"keys":[]}"#), "no usable RSA key"),
        (ok(r#"{"keys":[{"kty":"EC"}]}"#), "of another type than RSA"),
        ("garbage\r\n\r\n".to_owned(), "could not be fetched"),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{}".to_owned(),
            "could not be fetched",
        ),
        (
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "status 404",
        ),
    ] {
        server.answers(nonsense);
        let error = || keyring.status().last_error.unwrap_or_default();
        eventually(|| error().contains(said)).await;
        assert!(verify(&keyring, signer()).await.is_ok(), "{said}");
    }
}

#[tokio::test]
async fn an_outage_that_lasts_too_long_ends_the_trust() {
    let server = KeyServer::start(serving(signer())).await;
    let options = Options {
        outage_max: Duration::from_millis(50),
        ..eager()
    };
    let keyring = open(&server, options).await;
    server.answers(DOWN);
    eventually(|| !keyring.is_usable()).await;
    assert_eq!(keyring.status().origin, Origin::None);
    let refused = verify(&keyring, signer()).await.unwrap_err();
    assert!(matches!(refused, Error::NoKeys { .. }) && refused.is_retryable());
    // The very same document counts as new then.
    server.answers(serving(signer()));
    eventually(|| keyring.is_usable()).await;
    assert!(verify(&keyring, signer()).await.is_ok());
}

#[tokio::test]
async fn without_any_keys_a_delivery_is_to_be_retried_and_keys_come_by_themselves() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let source = KeySource::url(&format!("http://{free}/")).unwrap();
    let keyring = Keyring::open("app", source, eager(), None).unwrap();
    let refused = verify(&keyring, signer()).await.unwrap_err();
    assert!(matches!(&refused, Error::NoKeys { app_id } if app_id == "app"));
    assert!(refused.is_retryable() && !keyring.is_usable());
    let _server = KeyServer::start_at(&free.to_string(), serving(signer())).await;
    eventually(|| keyring.is_usable()).await;
    assert!(verify(&keyring, signer()).await.is_ok());
}

#[tokio::test]
async fn a_delivery_before_the_first_answer_waits_for_it() {
    let server = KeyServer::start(serving(signer())).await;
    server.hold();
    let keyring = Keyring::open("app", server.source(), still(), None).unwrap();
    let early = tokio::spawn({
        let keyring = keyring.clone();
        async move { verify(&keyring, signer()).await.is_ok() }
    });
    eventually(|| server.requests() == 1).await;
    server.permits.add_permits(1);
    assert!(early.await.unwrap());
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn the_last_good_keys_survive_a_restart_during_an_outage() {
    let directory = tempfile::tempdir().unwrap();
    let server = KeyServer::start(serving(signer())).await;
    let open = |options| {
        Keyring::open("54e9ujn", server.source(), options, Some(directory.path())).unwrap()
    };
    let first = open(still());
    first.settled().await;
    first.shutdown().await;
    server.answers(DOWN);

    let second = open(still());
    assert!(second.is_usable(), "before the server was even asked");
    assert_eq!(second.status().origin, Origin::Cache);
    second.settled().await;
    assert!(second.status().last_error.is_some());
    assert!(verify(&second, signer()).await.is_ok());
    second.shutdown().await;

    let too_late = open(Options {
        outage_max: Duration::ZERO,
        ..still()
    });
    assert!(!too_late.is_usable());

    // And an answer replaces what was stored.
    server.answers(serving(other_signer()));
    let third = open(still());
    third.settled().await;
    assert_eq!(third.status().origin, Origin::Source);
    assert!(verify(&third, other_signer()).await.is_ok());
}

#[tokio::test]
async fn a_cache_that_cannot_be_written_or_read_costs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let occupied = directory.path().join("file");
    std::fs::write(&occupied, "no directory").unwrap();
    let server = KeyServer::start(serving(signer())).await;
    let keyring = Keyring::open("app", server.source(), still(), Some(&occupied)).unwrap();
    assert!(verify(&keyring, signer()).await.is_ok());
}

#[tokio::test]
async fn redirects_are_refused_and_not_followed() {
    let target = KeyServer::start(serving(signer())).await;
    let location = format!("http://{}/", target.address);
    for status in [301, 302, 303, 307, 308] {
        let server = KeyServer::start(format!(
            "HTTP/1.1 {status} Moved\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"
        ))
        .await;
        let keyring = open(&server, still()).await;
        let error = keyring.status().last_error.unwrap();
        assert!(
            error.contains("redirect") && error.contains(&status.to_string()),
            "{error}"
        );
        assert!(!keyring.is_usable());
    }
    assert_eq!(target.requests(), 0);
}

#[tokio::test]
async fn a_document_too_large_is_refused_announced_or_not() {
    let document = jwks(&[signer().jwk("k")]);
    let limit = super::super::DOCUMENT_BYTES_MAX;
    let at_limit = document.clone() + &" ".repeat(limit - document.len());
    let over = format!("{at_limit} ");
    for (answer, usable) in [
        (ok(&at_limit), true),
        (ok(&over), false),
        (format!("HTTP/1.0 200 OK\r\n\r\n{over}"), false),
        (
            format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{over}\r\n0\r\n\r\n",
                over.len()
            ),
            false,
        ),
    ] {
        let server = KeyServer::start(answer).await;
        let keyring = open(&server, still()).await;
        assert_eq!(
            keyring.is_usable(),
            usable,
            "{:?}",
            keyring.status().last_error
        );
    }
}

#[tokio::test]
async fn a_slow_server_holds_a_delivery_no_longer_than_the_timeout() {
    let server = KeyServer::start(serving(signer())).await;
    let options = Options {
        fetch_timeout: Duration::from_millis(100),
        ..still()
    };
    let keyring = open(&server, options).await;
    server.hold();
    let unknown = unknown();
    let refused = keyring.verify(BODY.into(), &unknown, None);
    let refused = tokio::time::timeout(Duration::from_secs(20), refused)
        .await
        .unwrap();
    assert!(matches!(refused, Err(Error::Mismatch)));
    eventually(|| keyring.status().last_error.is_some()).await;
    assert!(
        keyring
            .status()
            .last_error
            .unwrap()
            .contains("within 100ms")
    );
    assert!(verify(&keyring, signer()).await.is_ok());
}

#[tokio::test]
async fn a_key_file_is_read_again_when_it_changes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    let write = |text: &str| {
        // As editors and mounts do it: whole or not at all.
        let fresh = directory.path().join("fresh");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, &path).unwrap();
    };
    write(&jwks(&[signer().jwk("first")]));
    let source = KeySource::JwksFile(path.clone());
    let keyring = Keyring::open("app", source, eager(), None).unwrap();
    assert!(keyring.is_usable(), "at once");
    assert!(verify(&keyring, signer()).await.is_ok());

    write(&jwks(&[
        signer().jwk("first"),
        other_signer().jwk("second"),
    ]));
    eventually(|| keyring.status().keys.len() == 2).await;
    assert!(verify(&keyring, other_signer()).await.is_ok());

    write("half a docum");
    eventually(|| keyring.status().last_error.is_some()).await;
    assert!(
        verify(&keyring, other_signer()).await.is_ok(),
        "the last good keys stay"
    );

    std::fs::remove_file(&path).unwrap();
    let error = || keyring.status().last_error.unwrap_or_default();
    eventually(|| error().contains("could not be read")).await;
    assert!(verify(&keyring, other_signer()).await.is_ok());
}

#[tokio::test]
async fn the_keys_of_a_file_stay_in_use_however_long_it_cannot_be_used() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    let away = directory.path().join("away");
    std::fs::write(&path, jwks(&[signer().jwk("k")])).unwrap();
    let options = Options {
        outage_max: Duration::ZERO,
        // The pauses of a URL are none of a file's.
        retry_interval_min: FOREVER,
        retry_interval_max: FOREVER,
        ..eager()
    };
    let source = KeySource::JwksFile(path.clone());
    let keyring = Keyring::open("app", source, options, None).unwrap();
    // Moving keeps the time of a file: it looks as if it had never changed.
    std::fs::rename(&path, &away).unwrap();
    let attempts = || keyring.shared.keys.state().attempts;
    eventually(|| keyring.status().last_error.is_some()).await;
    let seen = attempts();
    eventually(|| attempts() > seen + 1).await;
    assert!(verify(&keyring, signer()).await.is_ok());
    std::fs::rename(&away, &path).unwrap();
    eventually(|| keyring.status().last_error.is_none()).await;
    assert!(verify(&keyring, signer()).await.is_ok());
}

#[tokio::test]
async fn an_unknown_signature_looks_at_a_key_file_at_once() {
    use rsa::pkcs8::{EncodePublicKey as _, LineEnding};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.pem");
    let pem = |signer: &Signer| signer.public().to_public_key_pem(LineEnding::LF).unwrap();
    std::fs::write(&path, pem(signer())).unwrap();
    let options = Options {
        file_check_interval: FOREVER,
        ..still()
    };
    let keyring = Keyring::open(
        "app",
        KeySource::PemFiles(vec![path.clone()]),
        options,
        None,
    )
    .unwrap();
    std::fs::write(&path, pem(signer()) + &pem(other_signer())).unwrap();
    let verified = verify(&keyring, other_signer()).await.unwrap();
    assert_eq!(verified.key_id(), None);
}

#[tokio::test]
async fn the_keys_of_a_rotation_in_two_files_change_without_a_restart() {
    use rsa::pkcs8::{EncodePublicKey as _, LineEnding};
    let directory = tempfile::tempdir().unwrap();
    let [new, old] = ["new.pem", "old.pem"].map(|name| directory.path().join(name));
    let write = |path: &std::path::Path, signer: &Signer| {
        let pem = signer.public().to_public_key_pem(LineEnding::LF).unwrap();
        std::fs::write(path, pem).unwrap();
    };
    // Until it begins, both files have the same key.
    write(&new, signer());
    write(&old, signer());
    let source = KeySource::PemFiles(vec![new.clone(), old.clone()]);
    let keyring = Keyring::open("app", source, eager(), None).unwrap();
    assert_eq!(keyring.status().keys.len(), 1);
    assert!(verify(&keyring, other_signer()).await.is_err());
    write(&new, other_signer());
    eventually(|| keyring.status().keys.len() == 2).await;
    assert!(verify(&keyring, signer()).await.is_ok());
    assert!(verify(&keyring, other_signer()).await.is_ok());
    // A file that is missing or has something else changes nothing.
    for text in [
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        std::fs::write(&old, text).unwrap();
        let error = || keyring.status().last_error.unwrap_or_default();
        eventually(|| error().contains("old.pem")).await;
        assert!(verify(&keyring, signer()).await.is_ok());
        write(&old, signer());
        eventually(|| error().is_empty()).await;
    }
    // The end of the rotation.
    write(&old, other_signer());
    eventually(|| keyring.status().keys.len() == 1).await;
    assert!(verify(&keyring, signer()).await.is_err());
    assert!(verify(&keyring, other_signer()).await.is_ok());
}

#[tokio::test]
async fn mistakes_of_configuration_are_said_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    let open = |source| Keyring::open("app", source, Options::default(), None).unwrap_err();
    let missing = open(KeySource::JwksFile(path.clone())).to_string();
    assert!(missing.contains("jwks.json could not be read"), "{missing}");
    std::fs::write(&path, r#"{"keys":[]}"#).unwrap();
    let empty = open(KeySource::JwksFile(path.clone())).to_string();
    assert!(empty.contains("no usable RSA key"), "{empty}");
    let no_pem = open(KeySource::PemFiles(vec![path])).to_string();
    assert!(no_pem.contains("no PEM block"), "{no_pem}");
    let plain = KeySource::Url("http://example.com/jwks.json".parse().unwrap());
    assert!(open(plain).to_string().contains("https only"));
}

#[test]
fn a_keyring_needs_a_runtime() {
    let source = KeySource::url("https://example.com/jwks.json").unwrap();
    let refused = Keyring::open("app", source, Options::default(), None).unwrap_err();
    assert!(matches!(refused, Error::NoRuntime));
}

#[tokio::test]
async fn the_service_ends_with_shutdown_or_with_the_last_handle() {
    let server = KeyServer::start(serving(signer())).await;
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    // The server's own tasks end with each request; only its accept loop stays.
    eventually(|| tasks() == 1).await;
    let keyring = open(&server, still()).await;
    let clone = keyring.clone();
    keyring.shutdown().await;
    eventually(|| tasks() == 1).await;
    assert!(
        verify(&clone, signer()).await.is_ok(),
        "known keys go on verifying"
    );
    assert!(matches!(
        verify(&clone, other_signer()).await,
        Err(Error::Mismatch)
    ));
    assert_eq!(server.requests(), 1);

    let keyring = open(&server, still()).await;
    let clone = keyring.clone();
    drop(keyring);
    assert!(verify(&clone, signer()).await.is_ok());
    drop(clone);
    eventually(|| tasks() == 1).await;
}
