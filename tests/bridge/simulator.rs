//! The simulator of Prelude compared with what is documented, by a receiver that is not the bridge.

use std::{
    collections::{BTreeSet, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prelude_bridge::simulator::{
    AppOptions, Batch, Error, EventType, Faults, Options, Outcome, RetrySchedule, SigningKey,
    Simulator, WireStyle, activation,
    batch::{ItemStyle, TypeKey},
    ledger::AttemptResult,
    scenario::{Connection, Scenario, Target},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::cli::program;

const APP: &str = "54e9ujn";
const TOKEN: &str = "the-verification-token";
/// Long enough for a loaded machine, and never waited out when all is well.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn key(name: &str) -> SigningKey {
    let path = format!("{}/tests/data/keys/{name}.pem", env!("CARGO_MANIFEST_DIR"));
    SigningKey::from_pem(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub(crate) fn options() -> Options {
    let keys = vec![key("test-key-2048-a"), key("test-key-2048-b")];
    Options {
        apps: vec![AppOptions::with_keys(APP, keys)],
        seed: Some(7),
        // The two weeks of retries take 0.3 s.
        retry: RetrySchedule::scaled(4_000_000.0),
        ..Options::default()
    }
}

/// What a bridge answers to one new event.
const ACCEPTED: &str = r#"{"accepted":1,"duplicates":0}"#;

/// What a receiver does with one request.
#[derive(Clone)]
pub(crate) enum Act {
    Answer(u16),
    Stall,
    HangUp,
    /// As whoever is at this URL answers.
    Forward(String),
}

/// A scripted receiver: answers activations rightly and deliveries as told, 200 when the script
/// has ended.
#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) url: String,
    state: Arc<Mutex<ReceiverState>>,
}

#[derive(Default)]
struct ReceiverState {
    script: VecDeque<Act>,
    deliveries: Vec<(http::HeaderMap, Bytes)>,
    challenges: Vec<String>,
    challenge_answer: Option<String>,
}

impl Receiver {
    pub(crate) async fn start(script: impl IntoIterator<Item = Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!(
            "http://{}/webhooks/{APP}?from=test",
            listener.local_addr().unwrap()
        );
        let state = ReceiverState {
            script: script.into_iter().collect(),
            ..Default::default()
        };
        let receiver = Self {
            url,
            state: Arc::new(Mutex::new(state)),
        };
        let serving = receiver.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let receiver = serving.clone();
                let service = service_fn(move |request| receiver.clone().answer(request));
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        receiver
    }

    async fn answer(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let reply = |status: u16, text: String| {
            Ok(Response::builder()
                .status(status)
                .body(Full::new(Bytes::from(text)))
                .unwrap())
        };
        if parts.method == Method::GET {
            let query = parts.uri.query().unwrap_or_default().to_owned();
            let number = query
                .split('&')
                .find_map(|pair| pair.strip_prefix("challenge="));
            let number = number.unwrap_or_default().to_owned();
            let mut state = self.state.lock().unwrap();
            state.challenges.push(query);
            let answer = state.challenge_answer.clone();
            return reply(
                200,
                answer.unwrap_or(format!(r#"{{"challenge":{number}}}"#)),
            );
        }
        let headers = parts.headers;
        let act = {
            let mut state = self.state.lock().unwrap();
            state.deliveries.push((headers.clone(), body.clone()));
            state.script.pop_front().unwrap_or(Act::Answer(200))
        };
        match act {
            Act::Answer(status) => reply(status, ACCEPTED.to_owned()),
            Act::Stall => std::future::pending::<Result<_, Infallible>>()
                .await
                .map_err(Into::into),
            Act::HangUp => Err("hung up".into()),
            Act::Forward(url) => {
                let request = reqwest::Client::new().post(url).body(body);
                let signature = &headers["x-webhook-signature"];
                let request = request.header("x-webhook-signature", signature);
                let answer = request
                    .header("content-type", "application/json")
                    .send()
                    .await?;
                reply(answer.status().as_u16(), answer.text().await?)
            }
        }
    }

    pub(crate) fn bodies(&self) -> Vec<Bytes> {
        let state = self.state.lock().unwrap();
        state
            .deliveries
            .iter()
            .map(|(_, body)| body.clone())
            .collect()
    }

    pub(crate) fn header(&self, index: usize, name: &str) -> Option<String> {
        let state = self.state.lock().unwrap();
        state.deliveries[index]
            .0
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    }

    /// The challenges that came.
    pub(crate) fn challenges(&self) -> usize {
        self.state.lock().unwrap().challenges.len()
    }

    fn event_ids(&self) -> Vec<String> {
        let ids = |body: &Bytes| -> Vec<String> {
            let body: Value = serde_json::from_slice(body).unwrap();
            let events = body["events"].as_array().unwrap().clone();
            events
                .iter()
                .map(|event| event["id"].as_str().unwrap().to_owned())
                .collect()
        };
        self.bodies().iter().flat_map(ids).collect()
    }
}

async fn connected(options: Options, receiver: &Receiver) -> (Simulator, String) {
    let simulator = Simulator::start(options).await.unwrap();
    let webhook = simulator
        .connect(APP, &receiver.url, TOKEN, &EventType::ALL)
        .await
        .unwrap();
    (simulator, webhook)
}

#[tokio::test]
async fn the_activation_challenge_carries_what_is_documented() {
    for wide_challenge in [false, true] {
        let receiver = Receiver::start([]).await;
        let wire = WireStyle {
            wide_challenge,
            ..WireStyle::default()
        };
        connected(Options { wire, ..options() }, &receiver).await;
        let state = receiver.state.lock().unwrap();
        let query = &state.challenges[0];
        assert!(query.starts_with("from=test&event=activate&"), "{query}");
        assert!(
            query.contains(&format!("&verification_token={TOKEN}&")),
            "{query}"
        );
        assert!(query.ends_with(&format!("&app_id={APP}")), "{query}");
    }
}

#[tokio::test]
async fn an_activation_that_fails_says_why_and_registers_nothing() {
    let receiver = Receiver::start([]).await;
    let simulator = Simulator::start(options()).await.unwrap();
    receiver.state.lock().unwrap().challenge_answer = Some(r#"{"challenge":1}"#.to_owned());
    let error = simulator
        .connect(APP, &receiver.url, TOKEN, &EventType::ALL)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Activation(activation::Failure::Number)),
        "{error}"
    );
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{closed}/");
    let error = simulator
        .connect(APP, &url, TOKEN, &EventType::ALL)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Activation(activation::Failure::Unreachable)),
        "{error}"
    );
    assert_eq!(simulator.emit(APP, 3, &[]).await.unwrap().events, 0);
}

#[tokio::test]
async fn a_failed_delivery_is_retried_with_the_same_bytes_and_a_new_signature() {
    let script = [
        Act::Answer(503),
        Act::Answer(204),
        Act::HangUp,
        Act::Answer(302),
    ];
    let receiver = Receiver::start(script).await;
    let (simulator, webhook) = connected(options(), &receiver).await;
    let batch = simulator.batch(APP, 3, &[]).unwrap();
    let outcome = simulator.deliver(&webhook, batch.clone()).await.unwrap();
    assert_eq!(outcome, Outcome::Acknowledged);
    let bodies = receiver.bodies();
    assert_eq!(bodies.len(), 5);
    assert!(bodies.iter().all(|body| body == batch.body()));
    let signatures: BTreeSet<_> = (0..5)
        .map(|index| receiver.header(index, "x-webhook-signature").unwrap())
        .collect();
    assert_eq!(signatures.len(), 5);
    assert!(
        signatures
            .iter()
            .all(|header| header.starts_with("rsassa-pss-sha256="))
    );
    let lines = simulator.ledger().lines();
    assert_eq!(lines.len(), 3);
    let results = [
        AttemptResult::Status(503),
        AttemptResult::Status(204),
        AttemptResult::Broken,
        AttemptResult::Status(302),
        AttemptResult::Status(200),
    ];
    assert_eq!(lines[0].results, results);
    assert!(lines[0].acknowledged_at > lines[0].first_sent_at);
}

#[tokio::test]
async fn a_receiver_that_never_answers_200_is_given_up_after_two_weeks() {
    let receiver = Receiver::start(std::iter::repeat_n(Act::Answer(500), 100)).await;
    let (simulator, webhook) = connected(options(), &receiver).await;
    let batch = simulator.batch(APP, 1, &[]).unwrap();
    assert_eq!(
        simulator.deliver(&webhook, batch).await.unwrap(),
        Outcome::GaveUp
    );
    // 10 pauses up to 8 h 32 min, then one every 12 hours: 36 of them, and the first attempt.
    let attempts = simulator.ledger().lines()[0].attempts;
    assert_eq!(attempts, 1 + RetrySchedule::default().pauses().count());
    assert_eq!(simulator.totals().batches_given_up, 1);
}

#[tokio::test]
async fn a_stalled_receiver_is_timed_out_and_retried() {
    let receiver = Receiver::start([Act::Stall]).await;
    let options = Options {
        answer_timeout: Duration::from_millis(200),
        ..options()
    };
    let (simulator, webhook) = connected(options, &receiver).await;
    let batch = simulator.batch(APP, 1, &[]).unwrap();
    assert_eq!(
        simulator.deliver(&webhook, batch).await.unwrap(),
        Outcome::Acknowledged
    );
    let results = simulator.ledger().lines()[0].results.clone();
    assert_eq!(results[0], AttemptResult::TimedOut);
}

#[tokio::test]
async fn lost_answers_cost_repetitions_and_lose_no_event() {
    let receiver = Receiver::start([]).await;
    let faults = Faults {
        lose_answers: 0.3,
        hang_up: 0.1,
        duplicates: 0.2,
        hold_back: 0.2,
        hold_back_for: Duration::from_millis(5),
        ..Faults::default()
    };
    let (simulator, _) = connected(
        Options {
            faults,
            ..options()
        },
        &receiver,
    )
    .await;
    for _ in 0..40 {
        simulator.emit(APP, 5, &[]).await.unwrap();
    }
    assert!(simulator.settle(SOON).await);
    let totals = simulator.totals();
    assert_eq!((totals.events, totals.events_acknowledged), (200, 200));
    assert!(totals.attempts > totals.batches, "{totals:?}");
    let received = receiver.event_ids();
    let distinct: BTreeSet<&String> = received.iter().collect();
    assert_eq!(distinct.len(), 200);
    assert!(received.len() > 200);
    let sent = simulator.ledger().lines();
    let sent: BTreeSet<&String> = sent
        .iter()
        .filter_map(|line| line.event.id.as_ref())
        .collect();
    assert_eq!(sent, distinct);
}

#[tokio::test]
async fn a_webhook_gets_the_events_it_chose() {
    let (all, some) = (Receiver::start([]).await, Receiver::start([]).await);
    let (simulator, _) = connected(options(), &all).await;
    let chosen = [EventType::UserSessionCreated];
    simulator
        .connect(APP, &some.url, TOKEN, &chosen)
        .await
        .unwrap();
    simulator.emit(APP, 100, &[]).await.unwrap();
    assert!(simulator.settle(SOON).await);
    assert_eq!(all.event_ids().len(), 100);
    let body: Value = serde_json::from_slice(&some.bodies()[0]).unwrap();
    let events = body["events"].as_array().unwrap();
    assert!(!events.is_empty() && events.len() < 100);
    assert!(
        events
            .iter()
            .all(|event| event["type"] == "user.session.created")
    );
    assert!(
        simulator
            .emit(APP, 5, &[EventType::UserDeleted])
            .await
            .unwrap()
            .batches
            == 1
    );
}

#[tokio::test]
async fn switches_change_the_wire_while_it_runs() {
    let receiver = Receiver::start([]).await;
    let (simulator, webhook) = connected(options(), &receiver).await;
    let plain = simulator.batch(APP, 1, &[]).unwrap();
    simulator.deliver(&webhook, plain).await.unwrap();
    let mut wire = WireStyle {
        key_id_header: true,
        traceparent: true,
        ..WireStyle::default()
    };
    wire.signature.padding = true;
    wire.item = ItemStyle {
        type_key: TypeKey::Event,
        ..ItemStyle::default()
    };
    wire.key_set.foreign_keys = true;
    simulator.set_wire(wire);
    let bent = simulator.batch(APP, 1, &[]).unwrap();
    simulator.deliver(&webhook, bent).await.unwrap();
    assert_eq!(receiver.header(0, "x-webhook-signature-key-id"), None);
    let kid = receiver.header(1, "x-webhook-signature-key-id").unwrap();
    assert_eq!(kid, key("test-key-2048-a").id());
    assert_eq!(receiver.header(1, "traceparent").unwrap().len(), 55);
    assert!(
        receiver
            .header(1, "x-webhook-signature")
            .unwrap()
            .ends_with("==")
    );
    let body: Value = serde_json::from_slice(&receiver.bodies()[1]).unwrap();
    assert!(body["events"][0]["event"].is_string());
    assert_eq!(
        simulator.jwks(APP).unwrap()["keys"]
            .as_array()
            .unwrap()
            .len(),
        5
    );
}

#[tokio::test]
async fn a_deleted_webhook_gets_no_more_retries() {
    let receiver = Receiver::start(std::iter::repeat_n(Act::Answer(500), 100)).await;
    let retry = RetrySchedule::scaled(60_000.0);
    let (simulator, webhook) = connected(Options { retry, ..options() }, &receiver).await;
    let ticket = simulator
        .send(&webhook, simulator.batch(APP, 1, &[]).unwrap())
        .await
        .unwrap();
    let api = Api::new(&simulator);
    let path = format!("/{APP}/webhooks/{webhook}");
    assert_eq!(api.call(Method::DELETE, &path, None).await.0, 204);
    assert_eq!(ticket.outcome().await, Outcome::Abandoned);
    let missing = simulator
        .send(&webhook, Batch::raw(APP, "{}"))
        .await
        .unwrap_err();
    assert!(matches!(missing, Error::UnknownWebhook(_)));
}

#[tokio::test]
async fn stopping_abandons_what_waits_and_keeps_the_ledger() {
    let receiver = Receiver::start([Act::Answer(500)]).await;
    let options = Options {
        retry: RetrySchedule::default(),
        ..options()
    };
    let (simulator, webhook) = connected(options, &receiver).await;
    let ticket = simulator
        .send(&webhook, simulator.batch(APP, 2, &[]).unwrap())
        .await
        .unwrap();
    assert!(!simulator.settle(Duration::from_millis(50)).await);
    simulator.stop().await;
    assert_eq!(ticket.outcome().await, Outcome::Abandoned);
    assert_eq!(simulator.ledger().lines().len(), 2);
    assert_eq!(simulator.totals().batches_abandoned, 1);
    assert!(reqwest::get(simulator.jwks_url(APP)).await.is_err());
}

#[tokio::test]
async fn key_sets_are_found_by_path_by_host_and_by_being_the_only_one() {
    let apps = vec![
        AppOptions::with_keys(APP, vec![key("test-key-2048-a")]),
        AppOptions::with_keys("other", vec![key("test-key-2048-b")]),
    ];
    let two = Simulator::start(Options { apps, ..options() })
        .await
        .unwrap();
    let one = Simulator::start(options()).await.unwrap();
    let kid = async |url: String, host: Option<&str>| {
        let mut request = reqwest::Client::new().get(url);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let set: Value = answer.json().await.unwrap();
        (status, set["keys"][0]["kid"].as_str().map(str::to_owned))
    };
    let (a, b) = (key("test-key-2048-a"), key("test-key-2048-b"));
    let found = |key: &SigningKey| (200, Some(key.id().to_owned()));
    assert_eq!(kid(two.jwks_url(APP), None).await, found(&a));
    assert_eq!(kid(two.jwks_url("other"), None).await, found(&b));
    assert_eq!(kid(two.jwks_url("unknown"), None).await, (404, None));
    let bare = |simulator: &Simulator| format!("{}/.well-known/jwks.json", simulator.api_url());
    assert_eq!(
        kid(bare(&two), Some("other.session.localhost:80")).await,
        found(&b)
    );
    assert_eq!(kid(bare(&two), None).await, (404, None));
    assert_eq!(kid(bare(&one), None).await, found(&a));
    one.rotate_key(APP, true).await.unwrap();
    assert_eq!(kid(bare(&one), None).await, found(&b));
    one.set_jwks_up(APP, false).unwrap();
    assert_eq!(kid(bare(&one), None).await, (503, None));
    assert_eq!(one.jwks_fetches(APP).unwrap(), 3);
}

pub(crate) struct Api {
    client: reqwest::Client,
    base: String,
    token: String,
}

impl Api {
    pub(crate) fn new(simulator: &Simulator) -> Self {
        Self {
            client: reqwest::Client::new(),
            base: format!("{}/v2/session/apps", simulator.api_url()),
            token: simulator.management_token().to_owned(),
        }
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let url = format!("{}{path}", self.base);
        let mut request = self.client.request(method, url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or(Value::Null))
    }
}

#[tokio::test]
async fn a_webhook_lives_its_documented_life_over_the_management_api() {
    let receiver = Receiver::start([]).await;
    let simulator = Simulator::start(options()).await.unwrap();
    let api = Api::new(&simulator);
    let webhooks = format!("/{APP}/webhooks");
    let draft = json!({
        "url": receiver.url, "verification_token": TOKEN, "events": ["user.created"],
    });
    let (status, made) = api.call(Method::POST, &webhooks, Some(draft)).await;
    assert_eq!(status, 201);
    assert_eq!(made["webhook"]["active"], false);
    assert_eq!(made["webhook"]["last_http_code"], Value::Null);
    assert!(!made.to_string().contains(TOKEN));
    let path = format!("{webhooks}/{}", made["webhook"]["id"].as_str().unwrap());
    // Inactive: nothing is delivered.
    assert_eq!(simulator.emit(APP, 1, &[]).await.unwrap().batches, 0);
    let (status, activated) = api
        .call(Method::POST, &format!("{path}/activate"), None)
        .await;
    assert_eq!(
        (status, &activated["webhook"]["active"]),
        (200, &json!(true))
    );
    assert_eq!(activated["webhook"]["last_http_code"], 200);
    assert!(simulator.wait_for_webhook().await);
    let event = json!({ "event": "user.deleted" });
    let (status, more) = api
        .call(Method::POST, &format!("{path}/events"), Some(event))
        .await;
    assert_eq!(status, 201);
    assert_eq!(
        more["webhook"]["events"],
        json!(["user.created", "user.deleted"])
    );
    let (status, listed) = api.call(Method::GET, &webhooks, None).await;
    assert_eq!(
        (status, listed["webhooks"].as_array().unwrap().len()),
        (200, 1)
    );
    let remove = format!("{path}/events/user.created");
    assert_eq!(api.call(Method::DELETE, &remove, None).await.0, 200);
    let (status, shown) = api.call(Method::GET, &path, None).await;
    assert_eq!(
        (status, &shown["webhook"]["events"]),
        (200, &json!(["user.deleted"]))
    );
    let off = format!("{path}/deactivate");
    assert_eq!(
        api.call(Method::POST, &off, None).await.1["webhook"]["active"],
        false
    );
    assert_eq!(api.call(Method::DELETE, &path, None).await.0, 204);
    assert_eq!(api.call(Method::GET, &path, None).await.0, 404);
}

#[tokio::test]
async fn the_management_api_refuses_what_is_documented_as_wrong() {
    let simulator = Simulator::start(options()).await.unwrap();
    let api = Api::new(&simulator);
    let webhooks = format!("/{APP}/webhooks");
    let draft = |change: Value| {
        let mut draft = json!({
            "url": "http://127.0.0.1:1/", "verification_token": TOKEN, "events": ["user.created"],
        });
        draft
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        Some(draft)
    };
    let refused = async |method: Method, path: &str, body: Option<Value>| {
        let (status, answer) = api.call(method, path, body).await;
        assert_eq!(answer["status"], status);
        assert!(!answer["message"].as_str().unwrap().is_empty());
        (status, answer["code"].as_str().unwrap().to_owned())
    };
    let bad = (400, "bad_request".to_owned());
    for change in [
        json!({ "events": ["user.exploded"] }),
        json!({ "events": null }),
        json!({ "url": format!("https://example.com/{}", "a".repeat(2048)) }),
        json!({ "url": "nonsense" }),
        json!({ "verification_token": "a".repeat(101) }),
        json!({ "verification_token": 7 }),
    ] {
        assert_eq!(refused(Method::POST, &webhooks, draft(change)).await, bad);
    }
    assert_eq!(refused(Method::POST, &webhooks, None).await, bad);
    let large = draft(json!({ "more": "a".repeat(70_000) }));
    assert_eq!(refused(Method::POST, &webhooks, large).await.0, 413);
    assert_eq!(refused(Method::PUT, &webhooks, None).await.0, 405);
    assert_eq!(
        refused(Method::GET, "/unknown/webhooks", None).await.1,
        "app_not_found"
    );
    let missing = format!("{webhooks}/web_0/activate");
    assert_eq!(
        refused(Method::POST, &missing, None).await.1,
        "webhook_not_found"
    );
    assert_eq!(
        refused(Method::GET, &format!("/{APP}/elsewhere"), None)
            .await
            .1,
        "not_found"
    );

    // Nothing listens on port 1, so the challenge fails and the webhook stays inactive.
    let (_, made) = api.call(Method::POST, &webhooks, draft(json!({}))).await;
    let path = format!("{webhooks}/{}", made["webhook"]["id"].as_str().unwrap());
    let failed = refused(Method::POST, &format!("{path}/activate"), None).await;
    assert_eq!(failed, (400, "webhook_activation_failed".to_owned()));
    assert_eq!(
        api.call(Method::GET, &path, None).await.1["webhook"]["active"],
        false
    );

    let stranger = Api {
        token: "wrong".to_owned(),
        ..Api::new(&simulator)
    };
    assert_eq!(stranger.call(Method::GET, &webhooks, None).await.0, 401);
    let answer = reqwest::get(format!("{}{webhooks}", api.base))
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn one_post_brings_back_the_answer_and_leaves_no_entry() {
    let receiver = Receiver::start([Act::Answer(422)]).await;
    let simulator = Simulator::start(options()).await.unwrap();
    let answer = simulator
        .post(&receiver.url, &Batch::raw(APP, "not json"))
        .await
        .unwrap();
    assert_eq!(answer.status, 422);
    assert_eq!(answer.body, ACCEPTED);
    assert_eq!(simulator.totals().attempts, 0);
    let error = simulator
        .post("http://127.0.0.1:1/", &Batch::raw(APP, ""))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NoAnswer(AttemptResult::Unreachable)));
    let error = simulator
        .post(&receiver.url, &Batch::raw("nobody", ""))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::UnknownApp(_)));
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_with_a_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = Options {
        listen: taken.local_addr().unwrap(),
        ..options()
    };
    let error = Simulator::start(options).await.unwrap_err().to_string();
    assert!(error.contains("port 0"), "{error}");
}

/// The ledger a finished `simulate` wrote to stdout.
pub(crate) fn ledger_lines(output: &std::process::Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Runs the built program on a thread of its own, so that a receiver here can answer it.
pub(crate) async fn simulate(arguments: &[&str]) -> std::process::Output {
    let mut command = program(&[&["simulate", "--listen", "127.0.0.1:0"], arguments].concat());
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

pub(crate) const TEST_KEY: [&str; 2] = ["--key", "tests/data/keys/test-key-2048-a.pem"];

#[tokio::test]
async fn simulate_delivers_its_count_and_ends_with_the_ledger() {
    let receiver = Receiver::start([Act::Answer(503)]).await;
    let flags = [
        "--to",
        &receiver.url,
        "--count",
        "23",
        "--rate",
        "0",
        "--time-scale",
        "60000",
    ];
    let output = simulate(&[&TEST_KEY[..], &flags[..], &["--output", "json"]].concat()).await;
    let told = std::str::from_utf8(&output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(
        told.contains("PRELUDE_BRIDGE_JWKS_URL=http://127.0.0.1:"),
        "{told}"
    );
    let lines = ledger_lines(&output);
    assert_eq!(lines.len(), 23);
    assert!(lines.iter().all(|line| line["acknowledged_at"].is_string()));
    let sent: BTreeSet<String> = lines
        .iter()
        .map(|line| line["event_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(sent, receiver.event_ids().into_iter().collect());
}

#[tokio::test]
async fn simulate_waits_for_a_bridge_and_says_how_to_start_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/webhooks/{APP}", listener.local_addr().unwrap());
    drop(listener);
    let mut command = program(&["simulate", "--listen", "127.0.0.1:0", "--to", &url]);
    command
        .args(TEST_KEY)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let mut child = command
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let waiting = tokio::task::spawn_blocking(move || {
        std::io::BufRead::lines(stderr).any(|line| line.unwrap().contains("waiting for a bridge"))
    });
    assert!(waiting.await.unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn simulate_fails_when_the_activation_is_refused_or_events_stay_unacknowledged() {
    let receiver = Receiver::start(std::iter::repeat_n(Act::Answer(401), 100)).await;
    let flags = ["--to", &receiver.url, "--count", "3", "--settle", "100ms"];
    let output = simulate(&[&TEST_KEY[..], &flags[..]].concat()).await;
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("3 of 3 events were never acknowledged"),
        "{told}"
    );
    assert!(
        told.contains("does not trust this simulator's key"),
        "{told}"
    );
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("answered 401")
    );

    receiver.state.lock().unwrap().challenge_answer = Some("no".to_owned());
    let output = simulate(&[&TEST_KEY[..], &["--to", &receiver.url]].concat()).await;
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("activation failed"), "{told}");
}

#[tokio::test]
async fn simulate_refuses_flags_that_cannot_be_meant() {
    for (arguments, expected) in [
        (&["--salt", "31"][..], "longest"),
        (&["--types", "user.exploded"], "user.session.revoked"),
        (&["--rate=-1"], "above 0"),
        (&["--batch", "0"], "1 to 1000"),
        (&["--lose-answers", "20"], "from 0 to 1"),
        (&["--time-scale", "0"], "above 0"),
        (&["--app", "a", "--app", "b", "--key", "x.pem"], "key_files"),
        (&["--key", "Cargo.toml"], "RSA private key"),
        (&["--scenario", "missing.toml"], "missing.toml"),
        (
            &[
                "--scenario",
                "examples/scenarios/outage.toml",
                "--salt",
                "20",
            ],
            "--salt",
        ),
        (
            &[
                "--scenario",
                "examples/scenarios/outage.toml",
                "--rate",
                "20",
            ],
            "--rate",
        ),
        (
            &[
                "--scenario",
                "examples/scenarios/outage.toml",
                "--app",
                "one",
            ],
            "--app",
        ),
        (
            &[
                "--scenario",
                "examples/scenarios/outage.toml",
                "--source",
                "verify",
            ],
            "--source",
        ),
        (&["--source", "session"], "`auth`, `verify`, `notify`"),
        (&["--source", "verify"], "give `--to`"),
        (
            &["--source", "verify", "--types", "user.created"],
            "`--source auth`",
        ),
        (&["--types", "verify.attempt"], "`--source verify`"),
        (
            &["--scenario", "rustfmt.toml"],
            "line 1: `edition`: unknown field",
        ),
    ] {
        let output = simulate(arguments).await;
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
        assert!(told.contains(expected), "{arguments:?}: {told}");
    }
}

/// The variables of a bridge without a file are exported in the terminal that `simulate` runs in.
#[tokio::test]
async fn the_variables_of_a_bridge_do_not_conflict_with_a_scenario() {
    let receiver = Receiver::start([]).await;
    let directory = tempfile::tempdir().unwrap();
    let scenario = directory.path().join("short.toml");
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/keys");
    let text = format!("[[apps]]\nid = 'one'\nkey_files = ['{keys}/test-key-2048-a.pem']\n");
    std::fs::write(&scenario, text + "[[steps]]\nsend = { events = 4 }").unwrap();
    let mut command = program(&["simulate", "--listen", "127.0.0.1:0", "--output", "json"]);
    command.args(["--to", &receiver.url, "--scenario"]);
    command.arg(&scenario);
    command
        .env("PRELUDE_BRIDGE_APP_ID", "another")
        .env("PRELUDE_BRIDGE_VERIFICATION_TOKEN", TOKEN)
        .env("PRELUDE_API_TOKEN", "management")
        .env("PRELUDE_BRIDGE_JWKS_URL", "http://127.0.0.1:1/");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = output.await.unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let lines = ledger_lines(&output);
    assert_eq!(lines.len(), 4);
    assert!(lines.iter().all(|line| line["app_id"] == "one"));
}

#[tokio::test]
async fn simulate_writes_key_sets_and_a_configuration_for_several_apps() {
    let directory = tempfile::tempdir().unwrap();
    let scenario = directory.path().join("two.toml");
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/keys");
    let app = |id, name| format!("[[apps]]\nid = '{id}'\nkey_files = ['{keys}/{name}.pem']\n");
    let text = app("one", "test-key-2048-a") + &app("two", "test-key-2048-b");
    std::fs::write(&scenario, text + "[[steps]]\nsend = { events = 40 }").unwrap();
    let receiver = Receiver::start([]).await;
    let out = directory.path().join("{app}.json");
    let arguments = [
        "--scenario",
        scenario.to_str().unwrap(),
        "--to",
        &receiver.url,
        "--jwks-out",
        out.to_str().unwrap(),
        "--output",
        "json",
    ];
    let output = simulate(&arguments).await;
    let told = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert_eq!(told.matches("[[apps]]").count(), 2);
    let set = std::fs::read(directory.path().join("two.json")).unwrap();
    let set: Value = serde_json::from_slice(&set).unwrap();
    assert_eq!(set["keys"][0]["kid"], key("test-key-2048-b").id());
    let of = |app: &str| {
        ledger_lines(&output)
            .iter()
            .filter(|line| line["app_id"] == app)
            .count()
    };
    assert_eq!((of("one"), of("two")), (20, 20));
    let one_file = directory.path().join("set.json");
    let arguments = [
        "--scenario",
        scenario.to_str().unwrap(),
        "--jwks-out",
        one_file.to_str().unwrap(),
    ];
    assert_eq!(simulate(&arguments).await.status.code(), Some(2));
}

#[tokio::test]
async fn the_example_scenario_runs_and_every_event_is_acknowledged() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/scenarios/outage.toml"
    );
    let text = std::fs::read_to_string(path).unwrap();
    // The story is the example's; only its pace and its keys are the test's.
    let text = text.replace("rate = 100, ", "").replace("rate = 200, ", "");
    let keys = "id = \"54e9ujn\"\nkey_files = [\"test-key-2048-a.pem\", \"test-key-2048-b.pem\"]";
    let text = text.replace("id = \"54e9ujn\"", keys);
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/keys");
    let scenario = Scenario::parse(&text, std::path::Path::new(directory)).unwrap();
    let receiver = Receiver::start([]).await;
    let simulator = Simulator::start(scenario.options()).await.unwrap();
    let target = Target {
        url: Some(receiver.url.clone()),
        verification_token: TOKEN.to_owned(),
    };
    for connection in scenario.connections(&target) {
        let Connection {
            app_id,
            url,
            verification_token,
            events,
        } = connection;
        simulator
            .connect(&app_id, &url, &verification_token, &events)
            .await
            .unwrap();
    }
    for step in 0..scenario.steps() {
        scenario.take_step(step, &simulator).await.unwrap();
    }
    let totals = simulator.totals();
    assert_eq!((totals.events, totals.events_acknowledged), (1_800, 1_800));
    assert!(totals.failed_attempts > 0);
    let published = simulator.jwks(APP).unwrap();
    assert_eq!(published["keys"][0]["kid"], key("test-key-2048-b").id());
}
