//! The admin port from outside: what a supervisor asks and what Prometheus scrapes.

use std::collections::{BTreeMap, BTreeSet};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::support::{
    APP, Bridge, KEY, OTHER_APP, Request, SOON, Setup, item, jwks,
    sender::eventually,
    stream::{Received, history},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_with_keys_is_up_and_ready() {
    let bridge = Bridge::start().await;
    let health = bridge.admin("/healthz").await;
    assert_eq!(
        (health.status, health.text().as_str()),
        (200, r#"{"status":"up"}"#)
    );
    let ready = bridge.admin("/readyz").await;
    assert_eq!((ready.status, &ready.json()["ready"]), (200, &true.into()));
    for answer in [health, ready] {
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    assert_eq!(bridge.admin("/").await.status, 404);
    assert_eq!(bridge.admin("/webhooks").await.status, 404);
    let posted = Request::post("/readyz", b"")
        .send(bridge.addresses.admin)
        .await;
    assert_eq!(posted.unwrap().status, 405);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_without_keys_is_not_ready_until_they_come() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    let bridge = Setup::default().jwks_url(&url).start_listening().await;
    // The first fetch is held back until readiness was asked.
    let (mut first, _) = listener.accept().await.unwrap();
    let waiting = bridge.admin("/readyz").await;
    assert_eq!(
        (waiting.status, &waiting.json()["ready"]),
        (503, &false.into())
    );
    let faults: Vec<String> = waiting.json()["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| !check["fault"].is_null())
        .map(|check| format!("{} {}", check["name"], check["app"]))
        .collect();
    assert_eq!(faults, [format!(r#""keys" "{APP}""#)]);
    assert_eq!(bridge.admin("/healthz").await.status, 200);
    let said = |message: &str| {
        bridge
            .stderr()
            .contains(&format!(r#""message":"{message}""#))
    };
    let missing = format!(r#""missing":"keys of {APP}: no usable key is known yet""#);
    assert!(said("listening") && bridge.stderr().contains(&missing));
    assert!(!said("ready"), "{}", bridge.stderr());
    assert!(bridge.stderr().contains(r#""store":"embedded""#));

    let keys = jwks(&KEY);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{keys}",
        keys.len()
    );
    let mut asked = [0; 4096];
    assert!(first.read(&mut asked).await.unwrap() > 0);
    first.write_all(answer.as_bytes()).await.unwrap();
    drop(first);
    let ready = async { while bridge.admin("/readyz").await.status != 200 {} };
    tokio::time::timeout(SOON, ready).await.unwrap();
    eventually(async || said("ready").then_some(())).await;
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    bridge.finish().await;
}

/// Every family that the issue lists, with its type.
const FAMILIES: [(&str, &str); 24] = [
    ("build_info", "gauge"),
    ("start_time_seconds", "gauge"),
    ("webhook_requests_total", "counter"),
    ("webhook_request_duration_seconds", "histogram"),
    ("webhook_verification_failures_total", "counter"),
    ("events_received_total", "counter"),
    ("events_accepted_total", "counter"),
    ("events_duplicate_total", "counter"),
    ("log_commit_events", "histogram"),
    ("log_commit_bytes", "histogram"),
    ("log_commit_duration_seconds", "histogram"),
    ("log_queue_batches", "gauge"),
    ("log_ready", "gauge"),
    ("log_commits_behind", "gauge"),
    ("log_stored_bytes", "gauge"),
    ("log_head_sequence", "gauge"),
    ("bus_window_bytes", "gauge"),
    ("subscribers", "gauge"),
    ("stream_delivered_events_total", "counter"),
    ("streams_ended_total", "counter"),
    ("subscriber_lag_events_max", "gauge"),
    ("subscriber_lag_max_seconds", "gauge"),
    ("keys_usable", "gauge"),
    ("keys_age_seconds", "gauge"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_has_every_family_and_is_well_formed() {
    let bridge = Bridge::start().await;
    let items = [
        item("evt_1", "user.created", "usr_1"),
        item("evt_2", "invented.\\\"type", "usr_1"),
    ];
    bridge.append(&items).await;
    assert_eq!(bridge.post(b"unlike a batch").await.status, 422);
    let unsigned = Request::post(&format!("/webhooks/{APP}"), b"");
    assert_eq!(
        unsigned
            .send(bridge.addresses.webhook)
            .await
            .unwrap()
            .status,
        401
    );

    let mut client = bridge.client().await;
    let mut stream = Received::subscribe(&mut client, history()).await.unwrap();
    stream.end().await.unwrap();

    let answer = bridge.admin("/metrics").await;
    assert_eq!(answer.status, 200);
    let content_type = answer.header("content-type").unwrap();
    assert!(content_type.starts_with("text/plain; version=0.0.4"));
    let page = answer.text();
    let families = families(&page);
    for (name, kind) in FAMILIES {
        let name = format!("prelude_bridge_{name}");
        assert_eq!(
            families.get(&name).map(String::as_str),
            Some(kind),
            "{name}\n{page}"
        );
    }
    for (sample, value) in [
        (
            r#"prelude_bridge_webhook_requests_total{outcome="accepted",status="200"}"#,
            1.0,
        ),
        (
            r#"prelude_bridge_webhook_verification_failures_total{reason="header_missing"}"#,
            1.0,
        ),
        (
            r#"prelude_bridge_events_received_total{type="user.created"}"#,
            1.0,
        ),
        (r#"prelude_bridge_events_received_total{type="other"}"#, 1.0),
        ("prelude_bridge_events_accepted_total", 2.0),
        ("prelude_bridge_stream_delivered_events_total", 2.0),
        (
            r#"prelude_bridge_streams_ended_total{reason="COMPLETE"}"#,
            1.0,
        ),
        ("prelude_bridge_log_head_sequence", 2.0),
        ("prelude_bridge_log_ready", 1.0),
        ("prelude_bridge_log_commits_behind", 0.0),
        ("prelude_bridge_log_commit_duration_seconds_count", 1.0),
        (r#"prelude_bridge_keys_usable{app="54e9ujn"}"#, 1.0),
    ] {
        bridge.counts(sample, value).await;
    }
    // What strangers chose is no label.
    assert!(
        !page.contains("invented") && page.contains(OTHER_APP),
        "{page}"
    );
    bridge.finish().await;
}

/// The families of a page with their types. Strict: every family is described once, before its
/// samples, and its samples are together, each once, with names that fit its type and values that
/// are numbers; a histogram's buckets add up. After
/// <https://prometheus.io/docs/instrumenting/exposition_formats/>.
fn families(page: &str) -> BTreeMap<String, String> {
    assert!(page.ends_with('\n') && !page.contains('\r'));
    let mut kinds = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut samples = BTreeSet::new();
    let mut current = String::new();
    let mut buckets = BTreeMap::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && helped.contains(name), "{line}");
            assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
            assert!(
                kinds.insert(name.to_owned(), kind.to_owned()).is_none(),
                "{line}"
            );
            name.clone_into(&mut current);
        } else {
            let (name, labels, value) = sample(line);
            let series = line.rsplit_once(' ').unwrap().0;
            assert!(samples.insert(series.to_owned()), "twice: {line}");
            let suffix = name.strip_prefix(current.as_str());
            let suffix = suffix.unwrap_or_else(|| unreachable!("not of {current}: {line}"));
            let of_histogram = kinds[&current] == "histogram";
            let fits = match suffix {
                "" => !of_histogram,
                "_bucket" | "_sum" | "_count" => of_histogram,
                _ => false,
            };
            assert!(fits, "{line}");
            assert!(
                kinds[&current] != "counter" || current.ends_with("_total"),
                "{line}"
            );
            assert_eq!(suffix == "_bucket", labels.contains_key("le"), "{line}");
            if suffix == "_bucket" {
                let before = buckets.insert(current.clone(), value).unwrap_or(0.0);
                assert!(before <= value, "{line}");
            } else if suffix == "_count" {
                // It may come before the buckets or after them.
                let most = buckets.get(&current).copied().unwrap_or(value);
                assert!(most.total_cmp(&value).is_eq(), "{line}");
            }
        }
    }
    kinds
}

/// The name, labels and value of a sample.
fn sample(line: &str) -> (&str, BTreeMap<&str, &str>, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let value = value.parse().unwrap();
    let Some((name, labels)) = series.split_once('{') else {
        assert!(is_name(series), "{line}");
        return (series, BTreeMap::new(), value);
    };
    assert!(is_name(name), "{line}");
    let mut rest = labels.strip_suffix('}').unwrap();
    let mut read = BTreeMap::new();
    while !rest.is_empty() {
        let (label, quoted) = rest.split_once("=\"").unwrap();
        // No label here needs an escape.
        let (text, after) = quoted.split_once('"').unwrap();
        assert!(is_name(label) && !text.contains('\\'), "{line}");
        assert!(read.insert(label, text).is_none(), "{line}");
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    (name, read, value)
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
