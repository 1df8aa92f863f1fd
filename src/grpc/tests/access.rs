//! What a credential allows, and what becomes of streams when it does so no longer.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use tonic::{Request, metadata::MetadataValue};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{gate::Gate, *};
use crate::{
    credentials::{self, Allowed, Entry, File, Proof, Scope, Token},
    http2,
    metrics::Closure,
    net::slots::{self, Slots, Standing},
};

/// A bridge whose credentials are in a file that the test changes.
struct Guarded {
    bridge: Bridge,
    file: File,
    _directory: tempfile::TempDir,
}

fn entry(name: &str, token: &Token) -> Entry {
    Entry {
        name: name.into(),
        proof: Proof::Token(token.digest()),
        scope: Scope::default(),
        previous: None,
        streams_max: None,
        connections_max: None,
        unsent_bytes_max: None,
        created_at: None,
        expires_at: None,
    }
}

/// For sessions of one app.
fn only_sessions(token: &Token) -> Entry {
    Entry {
        scope: Scope {
            types: Allowed::Only(vec!["user.session.*".into()]),
            apps: Allowed::Only(vec!["odd".into()]),
        },
        ..entry("sessions", token)
    }
}

impl Guarded {
    async fn start(options: Options, entries: &[Entry]) -> Self {
        Self::start_with(options, entries, false).await
    }

    async fn start_with(options: Options, entries: &[Entry], anonymous: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = File::new(directory.path().join("credentials.toml"));
        for entry in entries {
            file.add(entry).unwrap();
        }
        let credentials = open(file.path(), anonymous).await;
        let log = memory::open(memory::Options::default()).unwrap();
        let bus = Bus::follow(bus::Options::default(), &*log).unwrap();
        Self {
            bridge: Bridge::serve(options, credentials, log, bus).await,
            file,
            _directory: directory,
        }
    }

    async fn subscribe(
        &self,
        token: &Token,
        request: SubscribeRequest,
    ) -> Result<Collector, Status> {
        let client = self.bridge.client().await;
        self.subscribe_by(client, token, request).await
    }

    async fn subscribe_by(
        &self,
        mut client: EventServiceClient<Channel>,
        token: &Token,
        request: SubscribeRequest,
    ) -> Result<Collector, Status> {
        let mut request = Request::new(request);
        let value = format!("Bearer {}", token.expose());
        let value = MetadataValue::try_from(value).unwrap();
        request.metadata_mut().insert("authorization", value);
        let stream = client.subscribe(request).await?;
        Ok(Collector {
            stream: stream.into_inner(),
        })
    }

    async fn refusal(&self, token: &Token, request: SubscribeRequest) -> Status {
        let refused = self.subscribe(token, request).await;
        refused.err().expect("a refusal")
    }
}

async fn open(path: &Path, anonymous: bool) -> Credentials {
    let options = credentials::Options {
        file: Some(path.to_owned()),
        anonymous,
        ..credentials::Options::default()
    };
    Credentials::open(options).await.unwrap()
}

/// The slots of a port, and the standing of the one client that connects.
struct Place {
    slots: Arc<Slots>,
    standing: Standing,
}

impl Place {
    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn new() -> Self {
        let slots = Slots::new(slots::Limits {
            slots_max: 10,
            slots_reserved: 1,
            slots_per_address_max: 10,
        });
        let standing = slots.standing(Self::CLIENT);
        Self { slots, standing }
    }

    fn is_known(&self) -> bool {
        let entered = self.slots.enter(Self::CLIENT, false, None);
        entered.unwrap().0.is_known()
    }

    /// A connection that has it, and what becomes of it.
    async fn connect(
        &self,
        bridge: &Bridge,
    ) -> (
        EventServiceClient<Channel>,
        tokio::task::JoinHandle<Option<Closure>>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (server, standing) = (bridge.streams.clone(), self.standing.clone());
        let served = tokio::spawn(async move {
            let (connection, peer) = listener.accept().await.unwrap();
            let caller = http2::Caller {
                standing,
                ..peer.into()
            };
            server.serve(connection, caller).await
        });
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.connect().await.unwrap();
        (EventServiceClient::new(channel), served)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_credential_may_stay_and_proves_nothing_where_others_have_one() {
    let token = Token::generate().unwrap();
    let entries = [entry("somebody", &token)];
    let guarded = Guarded::start_with(Options::default(), &entries, true).await;
    let place = Place::new();
    let (mut client, _served) = place.connect(&guarded.bridge).await;
    client.subscribe(types(&["user.*"])).await.unwrap();
    assert!(place.standing.is_admitted() && !place.standing.is_proven());
    assert!(!place.is_known());
    let shown = guarded.subscribe_by(client, &token, types(&["user.*"]));
    let _stream = shown.await.unwrap();
    assert!(place.standing.is_proven() && place.is_known());
    // Where nobody has one, everybody keeps the connection.
    let bridge = Bridge::start().await;
    let place = Place::new();
    let (mut client, _served) = place.connect(&bridge).await;
    client.subscribe(types(&["user.*"])).await.unwrap();
    assert!(place.standing.is_proven());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_credential_makes_a_client_a_stranger_and_a_right_one_known_again() {
    let [token, wrong] = [(); 2].map(|()| Token::generate().unwrap());
    let guarded = Guarded::start(Options::default(), &[entry("somebody", &token)]).await;
    let place = Place::new();
    let (mut client, _served) = place.connect(&guarded.bridge).await;
    let show = async |token| {
        let client = client.clone();
        guarded
            .subscribe_by(client, token, types(&["user.*"]))
            .await
    };
    let _stream = show(&token).await.ok().unwrap();
    assert!(place.is_known());
    assert!(show(&wrong).await.is_err());
    assert!(!place.is_known() && place.standing.is_proven());
    let _stream = show(&token).await.ok().unwrap();
    assert!(place.is_known());
    // Nothing shown is nothing wrong.
    client.subscribe(types(&["user.*"])).await.unwrap_err();
    assert!(place.is_known());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_connection_shows_nothing_in_time_is_a_stranger() {
    let token = Token::generate().unwrap();
    let options = with_connections(http2::Options {
        credential_timeout: Duration::from_millis(100),
        ..http2::Options::default()
    });
    let guarded = Guarded::start(options, &[entry("somebody", &token)]).await;
    let place = Place::new();
    // Shown on another connection.
    place.slots.standing(Place::CLIENT).prove();
    assert!(place.is_known());
    let (_client, served) = place.connect(&guarded.bridge).await;
    assert_eq!(served.await.unwrap(), Some(Closure::NoCredential));
    assert!(!place.is_known());
}

fn types(types: &[&str]) -> SubscribeRequest {
    SubscribeRequest {
        filter: Some(Filter {
            types: types.iter().map(ToString::to_string).collect(),
            ..Filter::default()
        }),
        ..SubscribeRequest::default()
    }
}

fn cursor_of(status: &Status) -> String {
    let details = status.get_error_details();
    details.error_info().unwrap().metadata["cursor"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_filter_means_what_is_allowed_and_started_says_so() {
    let token = Token::generate().unwrap();
    let guarded = Guarded::start(Options::default(), &[only_sessions(&token)]).await;
    guarded.bridge.append(1, 70).await;

    let history = SubscribeRequest {
        start: earliest(),
        stop: head(),
        ..SubscribeRequest::default()
    };
    let stream = guarded.subscribe(&token, history).await.unwrap();
    let collected = stream.collect().await;
    let Notice::Started(started) = &collected.notices[0] else {
        unreachable!("{:?}", collected.notices);
    };
    let filter = started.filter.clone().unwrap();
    assert_eq!(filter.types, ["user.session.*"]);
    assert_eq!(filter.app_ids, ["odd"]);
    assert_eq!(collected.events.len(), 10);
    for event in &collected.events {
        assert!(event.r#type.starts_with("user.session.") && event.app_id == "odd");
    }

    let narrower = types(&["user.session.created"]);
    assert!(guarded.subscribe(&token, narrower).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_for_more_is_denied_and_named() {
    let token = Token::generate().unwrap();
    let guarded = Guarded::start(Options::default(), &[only_sessions(&token)]).await;

    let asked = types(&["user.session.created", "user.created", "user.**"]);
    let status = guarded.refusal(&token, asked).await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(reason(&status), "TYPE_FORBIDDEN");
    let message = status.message();
    assert!(
        message.contains("types user.created, user.**:"),
        "{message}"
    );

    let filter = Filter {
        app_ids: vec!["odd".into(), "even".into()],
        ..Filter::default()
    };
    let asked = SubscribeRequest {
        filter: Some(filter),
        ..SubscribeRequest::default()
    };
    let status = guarded.refusal(&token, asked).await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(reason(&status), "APP_FORBIDDEN");
    assert!(status.message().contains("even"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_holds_for_the_credential_and_for_nobody_else() {
    let (one, other) = (Token::generate().unwrap(), Token::generate().unwrap());
    let limited = Entry {
        streams_max: Some(1),
        ..entry("limited", &one)
    };
    let entries = [limited, entry("other", &other)];
    let guarded = Guarded::start(Options::default(), &entries).await;
    let mut first = guarded.subscribe(&one, types(&[])).await.unwrap();
    first.next().await;

    let status = guarded.refusal(&one, types(&[])).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(reason(&status), "LIMIT_STREAMS");
    assert!(guarded.subscribe(&other, types(&[])).await.is_ok());

    drop(first);
    while guarded.subscribe(&one, types(&[])).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_of_connections_holds_for_the_credential_and_for_nobody_else() {
    let (one, usual) = (Token::generate().unwrap(), Token::generate().unwrap());
    let limited = Entry {
        connections_max: Some(1),
        ..entry("limited", &one)
    };
    let options = Options {
        connections: http2::Options {
            connections_per_credential_max: 2,
            ..http2::Options::default()
        },
        ..Options::default()
    };
    let guarded = Guarded::start(options, &[limited, entry("usual", &usual)]).await;
    for (token, connections_max) in [(&one, 1), (&usual, 2)] {
        let mut open = Vec::new();
        for _ in 0..connections_max {
            let client = guarded.bridge.client().await;
            // A connection counts once, whatever is called on it.
            for _ in 0..3 {
                let stream = guarded.subscribe_by(client.clone(), token, types(&[]));
                open.push(stream.await.unwrap());
            }
        }
        let status = guarded.refusal(token, types(&[])).await;
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(reason(&status), "LIMIT_STREAMS");
        assert!(
            status.message().contains("connections"),
            "{}",
            status.message()
        );
        drop(open);
        while guarded.subscribe(token, types(&[])).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn requests_of_callers_without_a_credential_count_as_those_of_one() {
    let options = Options {
        subscriptions: subscription::Options {
            filters_bytes_per_credential_max: 5_000,
            ..subscription::Options::default()
        },
        ..Options::default()
    };
    let bridge = Bridge::start_with(options, bus::Options::default(), memory::Options::default());
    let bridge = bridge.await;
    let mut client = bridge.client().await;
    let name = "x".repeat(200);
    client.subscribe(types(&[name.as_str(); 20])).await.unwrap();
    let refused = client
        .subscribe(types(&[name.as_str(); 30]))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), "LIMIT_STREAMS");
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_together_have_a_limit_and_each_credential_a_part() {
    let tokens: Vec<Token> = (0..3).map(|_| Token::generate().unwrap()).collect();
    let entries: Vec<Entry> = ["a", "b", "c"]
        .into_iter()
        .zip(&tokens)
        .map(|(name, token)| entry(name, token))
        .collect();
    let options = Options {
        subscriptions: subscription::Options {
            filters_bytes_max: 40_000,
            filters_bytes_per_credential_max: 25_000,
            ..subscription::Options::default()
        },
        ..Options::default()
    };
    let guarded = Guarded::start(options, &entries).await;
    // About 15 kB as a filter, and 10 kB on the way.
    let names: Vec<String> = (0..100)
        .map(|at| format!("t{at}.{}", "x".repeat(100)))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let large = || types(&names);
    let first = guarded.subscribe(&tokens[0], large()).await.unwrap();
    let is_refused = async |token| {
        let status = guarded.refusal(token, large()).await;
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(reason(&status), "LIMIT_STREAMS");
        assert!(status.message().contains("filter"), "{}", status.message());
    };
    is_refused(&tokens[0]).await;
    let _second = guarded.subscribe(&tokens[1], large()).await.unwrap();
    is_refused(&tokens[2]).await;
    // Who asks for nothing in particular needs none.
    for token in &tokens {
        guarded.subscribe(token, types(&[])).await.unwrap();
    }
    drop(first);
    while guarded.subscribe(&tokens[2], large()).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_ends_idle_busy_and_stalled_streams_with_their_cursors() {
    let (token, kept) = (Token::generate().unwrap(), Token::generate().unwrap());
    let entries = [entry("revoked", &token), entry("kept", &kept)];
    let guarded = Guarded::start(Options::default(), &entries).await;
    let idle = types(&["no.such.type"]);
    let idle = guarded.subscribe(&token, idle).await.unwrap();
    let busy = guarded.subscribe(&token, types(&[])).await.unwrap();
    // Nobody reads this one until the end, and its client has room for little.
    let narrow = Channel::builder(guarded.bridge.url().parse().unwrap());
    let narrow = narrow.initial_stream_window_size(65_535).connect().await;
    let narrow = EventServiceClient::new(narrow.unwrap());
    let stalled = guarded
        .subscribe_by(narrow.clone(), &token, types(&[]))
        .await;
    let stalled = stalled.unwrap();
    // And this one not its last event, which is larger than that.
    let last = SubscribeRequest {
        stop: max_events(1),
        ..types(&["user.padded"])
    };
    let last = guarded.subscribe_by(narrow, &token, last).await.unwrap();
    let mut kept = guarded.subscribe(&kept, types(&[])).await.unwrap();
    kept.next().await;
    let busy = tokio::spawn(busy.collect());

    let user = "x".repeat(100_000);
    let padded = fixtures::batch("odd", &[("evt_padded", "user.padded", &user)]);
    guarded.bridge.log.append(padded).await.unwrap();
    guarded.bridge.append(1, 2_000).await;
    guarded.file.remove("revoked").unwrap();
    // Events go on coming meanwhile.
    let mut number = 2_001;
    while guarded.bridge.streams.snapshot().open > 1 {
        guarded.bridge.append_one(number).await;
        number += 1;
    }
    for collected in [
        idle.collect().await,
        busy.await.unwrap(),
        stalled.collect().await,
        last.collect().await,
    ] {
        let status = collected.end.clone().expect("a status");
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        assert_eq!(reason(&status), "TOKEN_INVALID");
        assert_eq!(Some(&cursor_of(&status)), collected.cursors.last());
    }
    let status = guarded.refusal(&token, types(&[])).await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unauthenticated, "TOKEN_INVALID")
    );
    assert_eq!(guarded.bridge.streams.snapshot().open, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_permissions_end_a_stream_so_that_it_comes_back_for_them() {
    let token = Token::generate().unwrap();
    let guarded = Guarded::start(Options::default(), &[entry("a", &token)]).await;
    let mut stream = guarded.subscribe(&token, types(&[])).await.unwrap();
    stream.next().await;

    let scope = Scope {
        types: Allowed::Only(vec!["user.created".into()]),
        apps: Allowed::All,
    };
    let text = std::fs::read_to_string(guarded.file.path()).unwrap();
    let other = tempfile::tempdir().unwrap();
    let narrowed = File::new(other.path().join("credentials.toml"));
    narrowed
        .add(&Entry {
            scope,
            ..entry("a", &token)
        })
        .unwrap();
    assert_ne!(std::fs::read_to_string(narrowed.path()).unwrap(), text);
    std::fs::copy(narrowed.path(), guarded.file.path()).unwrap();

    let status = stream.collect().await.end.expect("a status");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(reason(&status), "CREDENTIAL_CHANGED");
    assert!(status.get_error_details().retry_info().is_some());
    let status = guarded.refusal(&token, types(&["user.deleted"])).await;
    assert_eq!(reason(&status), "TYPE_FORBIDDEN");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_says_so_before_and_during_a_stream() {
    let token = Token::generate().unwrap();
    // The stream opens before it expires, on a busy machine too.
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(5);
    let short = Entry {
        expires_at: Some(soon),
        ..entry("short", &token)
    };
    let guarded = Guarded::start(Options::default(), &[short]).await;
    let stream = guarded.subscribe(&token, types(&[])).await.unwrap();
    let status = stream.collect().await.end.expect("a status");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unauthenticated, "TOKEN_EXPIRED")
    );
    let status = guarded.refusal(&token, types(&[])).await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unauthenticated, "TOKEN_EXPIRED")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_gives_way_to_a_newer_one_and_to_nobody_else() {
    let token = Token::generate().unwrap();
    let options = Options {
        calls: http2::CallLimits {
            watches_per_address_max: 2,
            ..http2::CallLimits::default()
        },
        ..Options::default()
    };
    let guarded = Guarded::start(options, &[entry("a", &token)]).await;
    let channel = Channel::builder(guarded.bridge.url().parse().unwrap());
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let watch = HealthCheckRequest::default;
    let mut oldest = health.watch(watch()).await.unwrap().into_inner();
    assert!(oldest.message().await.unwrap().is_some());
    let mut second = health.watch(watch()).await.unwrap().into_inner();
    assert!(second.message().await.unwrap().is_some());
    let mut newest = health.watch(watch()).await.unwrap().into_inner();
    assert!(newest.message().await.unwrap().is_some());
    let status = oldest.message().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(reason(&status), "LIMIT_STREAMS");
    // They take nothing from anybody else.
    assert!(health.check(watch()).await.is_ok());
    assert!(guarded.subscribe(&token, types(&[])).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_streams_without_a_credential_share_what_their_address_has() {
    let options = Options {
        calls: http2::CallLimits {
            streams_per_address_max: 2,
            ..http2::CallLimits::default()
        },
        ..Options::default()
    };
    let bridge = Bridge::start_with(
        options.clone(),
        bus::Options::default(),
        memory::Options::default(),
    )
    .await;
    let subscribe = || bridge.subscribe(SubscribeRequest::default());
    let first = subscribe().await.unwrap();
    let _second = subscribe().await.unwrap();
    let status = subscribe().await.err().unwrap();
    assert_eq!(reason(&status), "LIMIT_STREAMS");
    assert!(
        status
            .message()
            .contains("`limits.grpc.streams_per_address_max`"),
        "{status:?}"
    );
    drop(first);
    while subscribe().await.is_err() {
        tokio::task::yield_now().await;
    }

    let token = Token::generate().unwrap();
    let guarded = Guarded::start(options, &[entry("a", &token)]).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(guarded.subscribe(&token, types(&[])).await.unwrap());
    }
}

/// The status that a call of this path gets before its first message, if there is one.
async fn status_of(gate: &Gate, path: &str) -> Option<Status> {
    let request = http::Request::post(path)
        .header("content-type", "application/grpc")
        .body(tonic::body::Body::empty())
        .unwrap();
    let response = gate.clone().answer(request).await;
    Status::from_header_map(response.headers())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_row_cannot_be_called_and_what_has_one_is_answered() {
    let bridge = Bridge::start().await;
    let gate = &bridge.streams.connections.handler.gate;
    let mut empty = gate.clone();
    empty.table = &[];
    for rpc in rpcs::TABLE {
        let answer = status_of(gate, rpc.path).await;
        let answered = answer.and_then(|status| {
            let details = status.get_error_details();
            Some(details.error_info()?.reason.clone())
        });
        assert_ne!(answered.as_deref(), Some("RPC_UNKNOWN"), "{}", rpc.path);
        // Whatever could answer it.
        let status = status_of(&empty, rpc.path).await.unwrap();
        assert_eq!(status.code(), Code::Unimplemented);
        assert_eq!(reason(&status), "RPC_UNKNOWN");
    }
    for path in [
        "/",
        "*",
        "/prelude.bridge.v1.EventService/Subscribe/",
        "/prelude.bridge.v1.EventService/subscribe",
        "/grpc.health.v1.Health/List",
        "/grpc.channelz.v1.Channelz/GetServers",
    ] {
        let status = status_of(gate, path).await.unwrap();
        assert_eq!(reason(&status), "RPC_UNKNOWN", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_row_is_not_for_strangers() {
    let token = Token::generate().unwrap();
    let guarded = Guarded::start(Options::default(), &[entry("a", &token)]).await;
    let gate = &guarded.bridge.streams.connections.handler.gate;
    for path in ["/", "*", "/prelude.bridge.v1.EventService/Subscribe/"] {
        let status = status_of(gate, path).await.unwrap();
        assert_eq!(reason(&status), "TOKEN_INVALID", "{path}");
    }
}
