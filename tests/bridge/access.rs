//! Who may call what, from outside: every RPC that the port describes, with every kind of
//! credential, by gRPC and by gRPC-Web, in plain text and over TLS. What is refused gets its
//! status before anything else.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use http::HeaderMap;
use prelude_bridge::{
    client::{Client, Error, Item, Options, Request, Start, Subscription},
    proto::{Filter, GetRangeRequest, SubscribeRequest},
};
use prost::Message;
use prost_types::FileDescriptorProto;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{
    cli::program,
    support::{
        Bridge, PHONE, SOON, Setup,
        certificates::Authority,
        item,
        sender::eventually,
        stream::{history, reason},
    },
    tls::Secured as _,
};

/// What a caller shows: values of the `authorization` header, one each time it is sent.
#[derive(Debug)]
struct Shown {
    name: &'static str,
    headers: Vec<Vec<u8>>,
}

/// What it comes to, for calls that need a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Served,
    Refused(Code, &'static str),
}

const INVALID: Outcome = Outcome::Refused(Code::Unauthenticated, "TOKEN_INVALID");
const EXPIRED: Outcome = Outcome::Refused(Code::Unauthenticated, "TOKEN_EXPIRED");
const TYPE_FORBIDDEN: Outcome = Outcome::Refused(Code::PermissionDenied, "TYPE_FORBIDDEN");
const APP_FORBIDDEN: Outcome = Outcome::Refused(Code::PermissionDenied, "APP_FORBIDDEN");

/// Makes a token as an operator does.
pub(crate) fn token(data_dir: &Path, arguments: &[&str]) -> String {
    let made = program(&["token", "create"])
        .args(arguments)
        .arg("--data-dir")
        .arg(data_dir)
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

fn revoke(data_dir: &Path, name: &str) {
    let revoked = program(&["token", "revoke", name])
        .arg("--data-dir")
        .arg(data_dir)
        .output()
        .unwrap();
    assert!(revoked.status.success(), "{revoked:?}");
}

fn bearer(name: &'static str, token: &str) -> Shown {
    headers(name, &[format!("Bearer {token}").as_bytes()])
}

fn headers(name: &'static str, values: &[&[u8]]) -> Shown {
    let headers = values.iter().map(|value| value.to_vec()).collect();
    Shown { name, headers }
}

/// How a call travels.
#[derive(Clone, Copy, Debug)]
enum Protocol {
    Grpc,
    GrpcWeb,
}

struct Caller {
    client: reqwest::Client,
    url: String,
    protocol: Protocol,
}

impl Caller {
    fn new(bridge: &Bridge, protocol: Protocol, authority: Option<&Authority>) -> Self {
        let mut builder = reqwest::Client::builder().no_proxy();
        builder = match protocol {
            Protocol::Grpc => builder.http2_prior_knowledge(),
            Protocol::GrpcWeb => builder.http1_only(),
        };
        let mut scheme = "http";
        if let Some(authority) = authority {
            let root = fs::read(authority.certificate()).unwrap();
            let root = reqwest::Certificate::from_pem(&root).unwrap();
            builder = builder.tls_certs_only([root]);
            scheme = "https";
        }
        Self {
            client: builder.build().unwrap(),
            url: format!("{scheme}://{}", bridge.addresses.grpc),
            protocol,
        }
    }

    /// Makes a call and says what came before any message, and with it whether there was more.
    async fn call(&self, rpc: &str, message: &[u8], shown: &Shown) -> Outcome {
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend(message);
        let content_type = match self.protocol {
            Protocol::Grpc => "application/grpc",
            Protocol::GrpcWeb => "application/grpc-web+proto",
        };
        let mut request = self
            .client
            .post(format!("{}{rpc}", self.url))
            .header("content-type", content_type)
            .header("te", "trailers")
            .body(frame);
        for value in &shown.headers {
            request = request.header("authorization", value.as_slice());
        }
        let answer = tokio::time::timeout(SOON, request.send()).await;
        let mut answer = answer.unwrap().unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{rpc} {shown:?}");
        let Some(status) = status(answer.headers()) else {
            return Outcome::Served;
        };
        let rest = answer.chunk().await.unwrap();
        assert!(rest.is_none_or(|rest| rest.is_empty()), "{rpc} {shown:?}");
        let reason = match reason(&status).0.as_str() {
            "TOKEN_INVALID" => "TOKEN_INVALID",
            "TOKEN_EXPIRED" => "TOKEN_EXPIRED",
            "TYPE_FORBIDDEN" => "TYPE_FORBIDDEN",
            "APP_FORBIDDEN" => "APP_FORBIDDEN",
            other => unreachable!("{rpc} {shown:?}: {other}: {status:?}"),
        };
        Outcome::Refused(status.code(), reason)
    }
}

fn status(headers: &HeaderMap) -> Option<Status> {
    let status = Status::from_header_map(headers)?;
    (status.code() != Code::Ok).then_some(status)
}

/// Every RPC that the port describes, by asking it.
async fn rpcs(bridge: &Bridge, token: &str) -> BTreeSet<String> {
    let value: tonic::metadata::MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    let mut client = ServerReflectionClient::with_interceptor(
        bridge.channel().await,
        move |mut request: tonic::Request<()>| {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
            Ok(request)
        },
    );
    let mut ask = async |asked: MessageRequest| {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(asked),
        };
        let answers = client.server_reflection_info(tokio_stream::once(request));
        let mut answers = answers.await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap();
        answer.message_response.unwrap()
    };
    let listed = ask(MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(listed) = listed else {
        unreachable!("{listed:?}");
    };
    let mut rpcs = BTreeSet::new();
    for service in listed.service {
        let described = ask(MessageRequest::FileContainingSymbol(service.name.clone())).await;
        let MessageResponse::FileDescriptorResponse(described) = described else {
            unreachable!("{described:?}");
        };
        for file in described.file_descriptor_proto {
            let file = FileDescriptorProto::decode(file.as_slice()).unwrap();
            for described in &file.service {
                for method in &described.method {
                    let (package, name) = (file.package(), described.name());
                    rpcs.insert(format!("/{package}.{name}/{}", method.name()));
                }
            }
        }
    }
    rpcs
}

/// A message that the RPC would answer, and who may have that answer. An RPC that is not known here
/// fails the test: decide about it.
fn asked(rpc: &str) -> (Vec<u8>, bool) {
    match rpc {
        "/prelude.bridge.v1.EventService/Subscribe" => (history().encode_to_vec(), true),
        "/prelude.bridge.v1.EventService/GetRange" => (GetRangeRequest {}.encode_to_vec(), true),
        "/grpc.health.v1.Health/Check" | "/grpc.health.v1.Health/Watch" => {
            (HealthCheckRequest::default().encode_to_vec(), false)
        }
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        | "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => {
            let asked = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(MessageRequest::ListServices(String::new())),
            };
            (asked.encode_to_vec(), true)
        }
        unknown => unreachable!("who may call {unknown}?"),
    }
}

async fn every_call_with_every_credential(setup: Setup, authority: Option<&Authority>) {
    let mut bridge = setup.prepare();
    let data_dir = bridge.data_dir();
    let good = token(&data_dir, &["good"]);
    let expired = token(&data_dir, &["expired", "--expires-in", "1s"]);
    let revoked = token(&data_dir, &["revoked"]);
    let narrow = token(
        &data_dir,
        &["narrow", "--type", "user.session.*", "--app", "54e9ujn"],
    );
    bridge.restart().await;
    revoke(&data_dir, "revoked");

    let (first, rest) = good.split_at(good.len() - 1);
    let wrong = format!("{first}{}", if rest == "A" { "Q" } else { "A" });
    let long = "x".repeat(9 * 1024);
    let invalid = [
        headers("none", &[]),
        headers("empty", &[b""]),
        headers("a scheme alone", &[b"Bearer"]),
        headers("a scheme and a space", &[b"Bearer "]),
        headers("another scheme", &[b"Basic dXNlcjpwYXNz"]),
        headers("no scheme", &[good.as_bytes()]),
        headers("two tokens", &[format!("Bearer {good} {good}").as_bytes()]),
        headers(
            "the header twice",
            &[format!("Bearer {good}").as_bytes(), b"Bearer x"],
        ),
        headers("bytes that are no text", &[b"Bearer \xff\xfe"]),
        bearer("a number that has a token's owner", PHONE),
        bearer("cut short", first),
        bearer("one letter off", &wrong),
        bearer("too long", &long),
        bearer("a JWT of nobody", "eyJhbGciOiJub25lIn0.e30."),
        bearer("revoked", &revoked),
    ];
    let good = bearer("good", &good);
    let narrow = bearer("of another scope", &narrow);
    let expired = bearer("expired", &expired);

    for protocol in [Protocol::Grpc, Protocol::GrpcWeb] {
        let caller = Caller::new(&bridge, protocol, authority);
        // The file is read ten times a second, and one second has to pass.
        let range = GetRangeRequest {}.encode_to_vec();
        let rpc = "/prelude.bridge.v1.EventService/GetRange";
        for gone in [&invalid[invalid.len() - 1], &expired] {
            while caller.call(rpc, &range, gone).await == Outcome::Served {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let mut described = 0;
        let token = String::from_utf8(good.headers[0].split_at(7).1.to_vec()).unwrap();
        let rpcs = match authority {
            None => rpcs(&bridge, &token).await,
            // The same; described in plain text by the other test.
            Some(_) => ALL.map(str::to_owned).into(),
        };
        assert_eq!(rpcs, ALL.map(str::to_owned).into());
        for rpc in rpcs {
            described += 1;
            let (message, guarded) = asked(&rpc);
            let expect = async |shown: &Shown, outcome: Outcome| {
                let outcome = if guarded { outcome } else { Outcome::Served };
                let got = caller.call(&rpc, &message, shown).await;
                assert_eq!(got, outcome, "{protocol:?} {rpc} {}", shown.name);
            };
            for shown in &invalid {
                expect(shown, INVALID).await;
            }
            expect(&expired, EXPIRED).await;
            expect(&good, Outcome::Served).await;
            expect(&narrow, Outcome::Served).await;
        }
        assert_eq!(described, 6);

        // What is no RPC tells strangers nothing, not even that.
        for path in ["/prelude.bridge.v1.EventService/Nothing", "/x.Y/Z"] {
            let got = caller.call(path, &[], &invalid[0]).await;
            assert_eq!(got, INVALID, "{protocol:?} {path}");
        }

        let beyond = |types: &[&str], apps: &[&str]| {
            let filter = Filter {
                types: types.iter().map(ToString::to_string).collect(),
                app_ids: apps.iter().map(ToString::to_string).collect(),
                ..Filter::default()
            };
            let asked = SubscribeRequest {
                filter: Some(filter),
                ..history()
            };
            asked.encode_to_vec()
        };
        let subscribe = "/prelude.bridge.v1.EventService/Subscribe";
        for (asked, outcome) in [
            (
                beyond(&["user.session.created"], &["54e9ujn"]),
                Outcome::Served,
            ),
            (beyond(&["user.created"], &[]), TYPE_FORBIDDEN),
            (beyond(&["**"], &[]), TYPE_FORBIDDEN),
            (beyond(&[], &["another1"]), APP_FORBIDDEN),
        ] {
            assert_eq!(caller.call(subscribe, &asked, &narrow).await, outcome);
        }
    }
    let refused = r#"prelude_bridge_streams_ended_total{reason="TOKEN_INVALID"}"#;
    bridge.counts_at_least(refused, 101.0).await;
    // No token that was shown is in anything that was written.
    let stderr = bridge.stderr();
    for token in [&good, &narrow, &expired] {
        let token = String::from_utf8_lossy(&token.headers[0])
            .into_owned()
            .split_off(7);
        assert!(!stderr.contains(&token));
    }
    bridge.finish().await;
}

const ALL: [&str; 6] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/prelude.bridge.v1.EventService/GetRange",
    "/prelude.bridge.v1.EventService/Subscribe",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_call_with_every_credential_in_plain_text() {
    every_call_with_every_credential(Setup::default(), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_with_every_credential_over_tls() {
    let authority = Authority::new();
    let setup = Setup::default().secured("grpc", &authority.server("server"));
    every_call_with_every_credential(setup, Some(&authority)).await;
}

/// Our client, which trusts this authority and shows this token.
async fn client(bridge: &Bridge, authority: &Authority, token: &str) -> Client {
    let ca = fs::read_to_string(authority.certificate()).unwrap();
    let url = format!("https://{}", bridge.addresses.grpc);
    let options = Options::new(url).ca_certificate(ca).token(token);
    Client::connect(&options).await.unwrap()
}

/// The reason that a credential was refused for.
pub(crate) fn reason_of(error: &Error) -> &str {
    match error {
        Error::Refused { reason, .. } => reason.as_deref().unwrap_or_default(),
        other => unreachable!("{other}"),
    }
}

/// The ids of everything that a subscription gives until it ends, and why it did.
async fn follow(
    mut subscription: Subscription,
    seen: watch::Sender<usize>,
) -> (Vec<String>, Error) {
    let mut ids = Vec::new();
    loop {
        match subscription.next().await.unwrap() {
            Ok(Item::Event(event)) => {
                ids.push(event.id);
                seen.send_replace(ids.len());
            }
            Ok(Item::Notice(_)) => {}
            Err(error) => return (ids, error),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_streams_through_revocation_expiry_and_a_new_certificate() {
    const STREAMS: usize = 100;
    let authority = Authority::new();
    let issued = authority.server("server");
    let setup = Setup::default().secured("grpc", &issued);
    let mut bridge = setup.prepare();
    let data_dir = bridge.data_dir();
    let revoked = token(&data_dir, &["revoked"]);
    let kept = token(&data_dir, &["kept"]);
    bridge.restart().await;

    let mut streams = Vec::new();
    for (index, token) in [&revoked, &kept].into_iter().enumerate() {
        let client = client(&bridge, &authority, token).await;
        for _ in 0..STREAMS / 2 {
            let (seen, watched) = watch::channel(0);
            let request = Request::new().start(Start::Earliest);
            let subscription = client.subscribe(request);
            streams.push((index, watched, tokio::spawn(follow(subscription, seen))));
        }
    }
    let append = async |number: usize| {
        let item = item(&format!("evt_{number}"), "user.created", "usr_1");
        bridge.append(&[item]).await;
    };
    append(1).await;
    for (_, watched, _) in &mut streams {
        watched.wait_for(|&seen| seen == 1).await.unwrap();
    }

    // A new certificate for whoever comes next; nobody who is there notices.
    authority.server("renewed").replace(&issued);
    append(2).await;
    revoke(&data_dir, "revoked");
    let revoked_at = Instant::now();
    let mut number = 2;
    while streams
        .iter()
        .any(|(index, _, stream)| *index == 0 && !stream.is_finished())
    {
        number += 1;
        append(number).await;
        assert!(revoked_at.elapsed() < SOON, "streams go on");
    }
    let took = revoked_at.elapsed();
    eprintln!("fifty streams had ended {took:?} after the revocation");
    // A second is promised; the rest is for a busy machine.
    assert!(took < Duration::from_secs(5), "{took:?}");

    // Those that stay have all of it, and then expire together.
    let expiring = token(&data_dir, &["expiring", "--expires-in", "4s"]);
    let expired = client(&bridge, &authority, &expiring).await;
    eventually(async || expired.range().await.ok()).await;
    let subscription = expired.subscribe(Request::new().start(Start::Earliest));
    let (seen, _) = watch::channel(0);
    let (ids, error) = follow(subscription, seen).await;
    assert_eq!(ids.len(), number);
    assert_eq!(reason_of(&error), "TOKEN_EXPIRED");

    append(number + 1).await;
    for (index, mut watched, stream) in streams {
        if index == 1 {
            watched.wait_for(|&seen| seen == number + 1).await.unwrap();
            stream.abort();
            continue;
        }
        let (ids, error) = stream.await.unwrap();
        assert!(ids.len() < number + 1);
        assert_eq!(reason_of(&error), "TOKEN_INVALID");
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_gets_in_as_far_as_its_entry_says_and_no_other_does() {
    let authority = Authority::new();
    let setup = Setup::default()
        .secured("grpc", &authority.server("server"))
        .asking(&authority);
    let mut bridge = setup.prepare();
    let data_dir = bridge.data_dir();
    let made = program(&["token", "create", "billing", "--type", "user.session.*"])
        .args(["--certificate", "spiffe://example.com/billing"])
        .arg("--data-dir")
        .arg(&data_dir)
        .output()
        .unwrap();
    // There is no token to show.
    assert!(made.status.success() && made.stdout.is_empty(), "{made:?}");
    bridge.restart().await;

    let range = async |name: &str| {
        let issued = authority.client(name);
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        let options = Options::new(format!("https://{}", bridge.addresses.grpc))
            .ca_certificate(read(&authority.certificate()))
            .client_certificate(read(&issued.certificate), read(&issued.key));
        let client = Client::connect(&options).await.unwrap();
        let beyond = client.subscribe(Request::new().types(["user.created"]));
        let (seen, _) = watch::channel(0);
        let (_, refused) = follow(beyond, seen).await;
        (client.range().await, refused)
    };
    let (served, refused) = range("billing").await;
    assert!(served.is_ok(), "{served:?}");
    assert_eq!(reason_of(&refused), "TYPE_FORBIDDEN");
    let (stranger, refused) = range("stranger").await;
    assert_eq!(reason_of(&stranger.unwrap_err()), "TOKEN_INVALID");
    assert_eq!(reason_of(&refused), "TOKEN_INVALID");
    bridge.finish().await;
}

/// The certificate is what let its connection in, so it ends the streams of all credentials that were
/// shown beside it too: its own entry, a token, and where there are no credentials at all.
#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_the_certificate_of_their_connection() {
    const SECONDS: i64 = 6;
    let authority = Authority::new();
    let start = async |credentials: bool| {
        let setup = Setup::default()
            .secured("grpc", &authority.server("server"))
            .asking(&authority);
        let mut bridge = setup.prepare();
        let data_dir = bridge.data_dir();
        let token = credentials.then(|| {
            let identity = "spiffe://example.com/brief";
            token(&data_dir, &["entry", "--certificate", identity]);
            token(&data_dir, &["bearer"])
        });
        bridge.restart().await;
        (bridge, token)
    };
    let (guarded, bearer) = start(true).await;
    let (open, _) = start(false).await;
    let issued = authority.brief_client("brief", SECONDS);
    let until = Instant::now() + Duration::from_secs(SECONDS.unsigned_abs());
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let connect = async |bridge: &Bridge, token: Option<&String>| {
        let mut options = Options::new(format!("https://{}", bridge.addresses.grpc))
            .ca_certificate(read(&authority.certificate()))
            .client_certificate(read(&issued.certificate), read(&issued.key));
        if let Some(token) = token {
            options = options.token(token.as_str());
        }
        Client::connect(&options).await.unwrap()
    };
    let clients = [
        connect(&guarded, None).await,
        connect(&guarded, bearer.as_ref()).await,
        connect(&open, None).await,
    ];
    for bridge in [&guarded, &open] {
        bridge
            .append(&[item("evt_1", "user.created", "usr_1")])
            .await;
    }
    let streams = clients.map(|client| {
        let (seen, _) = watch::channel(0);
        let request = Request::new().start(Start::Earliest);
        let subscription = client.subscribe(request);
        async move {
            let (ids, error) = follow(subscription, seen).await;
            (ids, error, Instant::now(), client)
        }
    });
    for (ids, error, ended, client) in futures_util::future::join_all(streams).await {
        assert_eq!(ids, ["evt_1"]);
        assert_eq!(reason_of(&error), "TOKEN_EXPIRED");
        // The end is a whole second; what is after it is for a busy machine.
        assert!(ended + Duration::from_secs(2) > until, "too soon");
        assert!(ended < until + Duration::from_secs(5), "too late");
        // The connection is still there, and nothing more is to be had on it.
        assert_eq!(
            reason_of(&client.range().await.unwrap_err()),
            "TOKEN_EXPIRED"
        );
    }
    for bridge in [guarded, open] {
        let ended = r#"prelude_bridge_streams_ended_total{reason="TOKEN_EXPIRED"}"#;
        bridge.counts_at_least(ended, 1.0).await;
        bridge.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_the_port_is_for_this_machine_alone() {
    let prepare = || {
        let mut bridge = Setup::default().prepare();
        bridge.addresses.grpc = "0.0.0.0:0".parse().unwrap();
        bridge
    };
    let refused = prepare().command().output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8(refused.stderr).unwrap();
    for remedy in ["token create", "127.0.0.1", "--allow-anonymous"] {
        assert!(said.contains(remedy), "{said}");
    }

    let mut open = prepare();
    let mut command = open.command();
    command.arg("--allow-anonymous");
    open.run(command).await;
    assert!(open.stderr().contains("allow_anonymous is set"));
    open.finish().await;

    let mut guarded = prepare();
    token(&guarded.data_dir(), &["somebody"]);
    guarded.restart().await;
    guarded.finish().await;
}
