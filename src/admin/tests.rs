use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;
use crate::{
    event::Sequence,
    log::{CatchUp, memory, testing::Scripted},
    signature::KeySource,
    simulator::keys::{AlgLabel, SigningKey},
};

struct Port {
    address: SocketAddr,
    log: Arc<memory::Memory>,
    draining: CancellationToken,
    _shutdown: tokio_util::sync::DropGuard,
    _keys: tempfile::TempDir,
}

async fn open(with_key: bool) -> Port {
    let keys = tempfile::tempdir().unwrap();
    let source = if with_key {
        let path = keys.path().join("jwks.json");
        let jwk = SigningKey::generate(2048)
            .unwrap()
            .public_jwk(AlgLabel::default());
        std::fs::write(&path, serde_json::json!({ "keys": [jwk] }).to_string()).unwrap();
        KeySource::JwksFile(path)
    } else {
        KeySource::url("http://127.0.0.1:1/jwks.json").unwrap()
    };
    let keyring = Keyring::open("54e9ujn", source, Default::default(), None).unwrap();
    let log = memory::open(memory::Options::default()).unwrap();
    let (draining, shutdown) = (CancellationToken::new(), CancellationToken::new());
    let metrics = Arc::new(Metrics::new());
    let readiness = Readiness::new(Arc::clone(&log) as _, &[keyring], draining.clone());
    let admin = Admin::new(net::Limits::default(), metrics, readiness);
    let any = (Ipv4Addr::LOCALHOST, 0).into();
    let listener = net::Listener::bind("admin", "--admin-listen", any)
        .await
        .unwrap();
    let address = listener.local_addr();
    tokio::spawn(admin.run(listener, shutdown.clone()));
    Port {
        address,
        log,
        draining,
        _shutdown: shutdown.drop_guard(),
        _keys: keys,
    }
}

async fn ask(port: &Port, request_line: &str, headers: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(port.address).await.unwrap();
    let request =
        format!("{request_line} HTTP/1.1\r\nHost: b\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_owned(), body.to_owned())
}

fn json(body: &str) -> serde_json::Value {
    serde_json::from_str(body).unwrap()
}

#[tokio::test]
async fn a_bridge_with_log_and_keys_is_ready_until_it_drains() {
    let port = open(true).await;
    let (status, _, body) = ask(&port, "GET /readyz", "").await;
    assert_eq!(
        (status, &json(&body)["ready"]),
        (200, &true.into()),
        "{body}"
    );
    port.draining.cancel();
    let (status, _, body) = ask(&port, "GET /readyz", "").await;
    assert_eq!((status, &json(&body)["ready"]), (503, &false.into()));
    assert!(body.contains("shutting down"));
    assert_eq!(
        ask(&port, "GET /healthz", "").await.0,
        200,
        "it is still up"
    );
}

#[tokio::test]
async fn a_bridge_without_keys_is_not_ready_and_says_for_which_app() {
    let port = open(false).await;
    let (status, _, body) = ask(&port, "GET /readyz", "").await;
    assert_eq!(status, 503);
    let checks = json(&body)["checks"].clone();
    assert_eq!(checks[0], json(r#"{"name":"log","fault":null}"#));
    assert_eq!(
        (&checks[1]["name"], &checks[1]["app"]),
        (&"keys".into(), &"54e9ujn".into())
    );
    assert!(checks[1]["fault"].is_string());
}

#[tokio::test]
async fn a_bridge_whose_log_is_closed_is_not_ready() {
    let port = open(true).await;
    port.log.close().await;
    let (status, _, body) = ask(&port, "GET /readyz", "").await;
    assert_eq!(status, 503);
    assert!(
        json(&body)["checks"][0]["fault"]
            .as_str()
            .unwrap()
            .contains("closed")
    );
}

#[tokio::test]
async fn a_bridge_that_is_cut_off_from_its_store_is_not_ready_and_says_what_to_do() {
    let port = open(true).await;
    port.log.suspend("NATS has no leader for the stream");
    let (status, _, body) = ask(&port, "GET /readyz", "").await;
    assert_eq!((status, &json(&body)["ready"]), (503, &false.into()));
    let fault = json(&body)["checks"][0]["fault"].to_string();
    for part in [
        "NATS has no leader for the stream",
        "check the servers of the store",
    ] {
        assert!(fault.contains(part), "{fault}");
    }
    assert_eq!(ask(&port, "GET /healthz", "").await.0, 200);
    port.log.resume();
    assert_eq!(ask(&port, "GET /readyz", "").await.0, 200);
}

#[test]
fn every_reason_why_a_log_takes_nothing_comes_with_what_becomes_of_it() {
    let reason: Arc<str> = "the reason".into();
    let catching_up = |commits_behind| {
        Health::CatchingUp(CatchUp {
            commits_behind,
            commits_total: 4,
            took: Duration::from_secs(1),
        })
    };
    let failed = Health::Failed {
        reason: Arc::clone(&reason),
    };
    for (health, parts) in [
        (
            catching_up(1),
            ["1 of 4 commits behind (75 %, 3 a second", "by itself"],
        ),
        (
            catching_up(2),
            [
                "2 of 4 commits behind (50 %, 2 a second, 1 s left): ",
                "by itself",
            ],
        ),
        (
            Health::Full,
            ["the disk of the data directory is full", "free some space"],
        ),
        (
            Health::Unavailable {
                reason,
                is_cut_off: true,
            },
            ["the reason", "check the servers of the store"],
        ),
        (failed, ["the reason", "the process ends"]),
        (Health::Closed, ["the log is closed", "the process ends"]),
    ] {
        let fault = log_fault(&health).unwrap();
        assert!(parts.iter().all(|part| fault.contains(part)), "{fault}");
    }
    assert_eq!(log_fault(&Health::Ready), None);
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let port = open(true).await;
    let (status, head, body) = ask(&port, "GET /metrics", "").await;
    assert_eq!(status, 200);
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(body.contains("prelude_bridge_events_accepted_total 0\n") && !body.contains("# EOF"));
    assert!(body.contains(r#"connections_open{listener="admin"} 1"#));
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let (_, head, body) = ask(&port, "GET /metrics", accept).await;
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"));
    assert!(body.ends_with("# EOF\n"));
}

#[test]
fn the_metrics_are_written_out_at_most_so_often_and_each_page_is_of_its_format() {
    let metrics = Metrics::new();
    let page = Page::new(PROMETHEUS_TEXT, Metrics::render);
    for _ in 0..PAGES_PER_SECOND {
        // Whoever asks a few times a second sees what has just happened.
        metrics.stream_ended("TEST");
        assert_eq!(page.read(&metrics), metrics.render());
    }
    let written = page.read(&metrics);
    let again: Vec<Bytes> = (0..10_000).map(|_| page.read(&metrics)).collect();
    let same = again
        .windows(2)
        .filter(|pair| pair[0].as_ptr() == pair[1].as_ptr());
    assert!(same.count() > 9_000, "most are what was written before");
    assert!(!written.is_empty() && again.iter().all(|page| !page.is_empty()));
}

#[tokio::test]
async fn other_pages_and_methods_are_refused_in_json() {
    let port = open(true).await;
    for page in ["/", "/metric", "/healthz/x", "/webhooks"] {
        let (status, _, body) = ask(&port, &format!("GET {page}"), "").await;
        assert_eq!(
            (status, &json(&body)["error"]["code"]),
            (404, &"path_unknown".into())
        );
    }
    let (status, head, body) = ask(&port, "POST /metrics", "Content-Length: 0\r\n").await;
    assert_eq!(
        (status, &json(&body)["error"]["code"]),
        (405, &"method_not_allowed".into())
    );
    assert!(head.contains("allow: GET, HEAD"));
    let (status, _, body) = ask(&port, "HEAD /healthz", "").await;
    assert_eq!((status, body.as_str()), (200, ""));
}

#[tokio::test(start_paused = true)]
async fn readiness_follows_the_log_at_once() {
    let log = memory::open(memory::Options::default()).unwrap();
    let readiness = Readiness::new(Arc::clone(&log) as _, &[], CancellationToken::new());
    log.suspend("nobody answers");
    let missing = [
        "log: the log is unavailable for now: nobody answers; check the servers of the store and the \
         network to them: it continues by itself when they answer",
    ];
    assert_eq!(readiness.missing(), missing);
    let began = tokio::time::Instant::now();
    let reached = tokio::spawn(async move { readiness.reached().await });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!reached.is_finished());
    log.resume();
    assert!(reached.await.unwrap());
    assert_eq!(began.elapsed(), Duration::ZERO, "it was not asked again");
}

#[tokio::test]
async fn a_bridge_is_ready_as_soon_as_its_keys_have_come() {
    let jwk = SigningKey::generate(2048)
        .unwrap()
        .public_jwk(AlgLabel::default());
    let document = serde_json::json!({ "keys": [jwk] }).to_string();
    let server = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let source = KeySource::url(&format!(
        "http://{}/jwks.json",
        server.local_addr().unwrap()
    ));
    let keyring = Keyring::open("54e9ujn", source.unwrap(), Default::default(), None).unwrap();
    let log = memory::open(memory::Options::default()).unwrap();
    let readiness = Readiness::new(log, &[keyring], CancellationToken::new());
    let waiting = readiness.clone();
    let reached = tokio::spawn(async move { waiting.reached().await });
    // The fetch has begun, and nobody has answered it.
    let (mut stream, _) = server.accept().await.unwrap();
    assert_eq!(readiness.missing().len(), 1);
    assert!(!reached.is_finished());
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
        document.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(document.as_bytes()).await.unwrap();
    assert!(reached.await.unwrap());
    assert!(readiness.missing().is_empty());
}

#[tokio::test]
async fn nobody_waits_for_a_bridge_that_shuts_down_or_whose_log_is_closed() {
    let log = memory::open(memory::Options::default()).unwrap();
    let draining = CancellationToken::new();
    let readiness = Readiness::new(Arc::clone(&log) as _, &[], draining.clone());
    log.close().await;
    let reached = tokio::spawn(async move { readiness.reached().await });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!reached.is_finished());
    draining.cancel();
    assert!(!reached.await.unwrap());
}

#[tokio::test]
async fn a_bridge_whose_log_is_damaged_is_ready_and_names_the_events() {
    let log = Arc::new(Scripted::new(
        memory::open(memory::Options::default()).unwrap(),
    ));
    let readiness = Readiness::new(Arc::clone(&log) as _, &[], CancellationToken::new());
    let warning = |readiness: &Readiness| readiness.checks().swap_remove(0).warning;
    assert_eq!(warning(&readiness), None);
    let ranges = |count: u64| -> Vec<Damaged> {
        let range = |number| Damaged {
            first: Sequence(number * 10),
            last: Sequence(number * 10 + 4),
        };
        (1..=count).map(range).collect()
    };
    log.damage(&ranges(1));
    assert_eq!(readiness.missing(), [""; 0]);
    let one = warning(&readiness).unwrap();
    assert!(one.starts_with("events 10 to 14 are damaged"), "{one}");
    let all = DAMAGED_RANGES_NAMED_MAX as u64;
    log.damage(&ranges(all));
    assert!(!warning(&readiness).unwrap().contains("more"));
    log.damage(&ranges(all + 1));
    let many = warning(&readiness).unwrap();
    assert!(
        many.contains("events 80 to 84, and one more range are damaged"),
        "{many}"
    );

    let admin = Admin::new(net::Limits::default(), Arc::new(Metrics::new()), readiness);
    let answer = answer(&admin, "/readyz", &Method::GET, &HeaderMap::new());
    assert_eq!(answer.status(), StatusCode::OK);
}
