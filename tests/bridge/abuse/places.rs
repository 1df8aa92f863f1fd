//! Who holds places on the webhook and admin ports, waits for keys or begins handshakes without having
//! shown anything, and the senders and probes beside them: they are always let in.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{
    Guarded,
    frames::{
        self, CONNECTION_WINDOW_BYTES, DATA, END_HEADERS, GET_RANGE, HEADERS, Http2, WINDOW_UPDATE,
        authorized_call,
    },
    sockets::{self, connect_from, read_to_end, status},
    within,
};
use crate::{
    access::token,
    support::{
        APP, Bridge, KEY, Setup, batch,
        certificates::Authority,
        item, jwks,
        sender::{Delivery, Sender, eventually},
        sign,
    },
    tls::Secured as _,
};

/// Attackers, in networks of their own and together in one.
fn attacker(number: usize) -> Ipv4Addr {
    let number = u8::try_from(number % 200).unwrap();
    match number % 2 {
        0 => Ipv4Addr::new(127, 0, number + 1, 1),
        _ => Ipv4Addr::new(127, 0, 0, number + 10),
    }
}

fn refused(listener: &str, reason: &str) -> String {
    format!(
        r#"prelude_bridge_connections_refused_total{{listener="{listener}",reason="{reason}"}}"#
    )
}

fn closed(listener: &str, reason: &str) -> String {
    format!(r#"prelude_bridge_connections_closed_total{{listener="{listener}",reason="{reason}"}}"#)
}

/// What a stranger says who will not be asked to go on.
const SAYINGS: [&str; 4] = [
    "",
    "POST /webhooks HTT",
    "POST /webhooks HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n",
    "GET /webhooks HTTP/1.1\r\nHost: a\r\n\r\n",
];

/// Posts a genuine batch from an address that was never seen before.
async fn deliver_from(bridge: &Bridge) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let [.., high, low] = u16::try_from(number).unwrap().to_be_bytes();
    let source = Ipv4Addr::new(127, 1, high, low);
    // Without an event: the subscriber of the healthy knows of none.
    let Delivery { body, signature } = Delivery::of::<&str>(&[]);
    let head = format!(
        "POST /webhooks/{APP} HTTP/1.1\r\nHost: a\r\nX-Webhook-Signature: {signature}\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = connect_from(source, bridge.addresses.webhook)
        .await
        .unwrap();
    stream
        .write_all(&[head.as_bytes(), &body].concat())
        .await
        .unwrap();
    assert_eq!(status(&read_to_end(&mut stream).await), Some(200));
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_hold_all_places_keep_no_sender_out() {
    let setup = Setup::default()
        .with("limits.webhook.connections_max", "400")
        .with("limits.webhook.connections_per_address_max", "64");
    let guarded = Guarded::start(setup).await;
    let address = guarded.bridge.addresses.webhook;
    let attack = async || {
        let mut crowd = Vec::new();
        for number in 0..1_000 {
            let mut stream = connect_from(attacker(number), address).await.unwrap();
            // It may be closed for the next one already.
            let _ = stream.write_all(SAYINGS[number % 4].as_bytes()).await;
            crowd.push(stream);
            if number % 100 == 99 {
                deliver_from(&guarded.bridge).await;
            }
        }
    };
    guarded
        .under("1,000 strangers for 400 places", attack)
        .await;
    let evicted = closed("webhook", "evicted_listener_full");
    guarded.bridge.counts_at_least(&evicted, 1.0).await;
    for reason in ["listener_full", "address_full"] {
        let refused = guarded.bridge.metric(&refused("webhook", reason)).await;
        assert_eq!(refused, None, "{reason}");
    }
    guarded.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_connections_keep_no_probe_from_the_admin_port() {
    let setup = Setup::default()
        .with("store", "memory")
        .with("limits.admin.connections_max", "20")
        .with("limits.admin.connections_per_address_max", "20");
    let bridge = setup.start().await;
    let mut crowd = Vec::new();
    for number in 0..200 {
        // From the address of the probes too.
        let source = match number % 4 {
            0 => Ipv4Addr::LOCALHOST,
            _ => attacker(number),
        };
        let mut stream = connect_from(source, bridge.addresses.admin).await.unwrap();
        let saying = SAYINGS[number % 4].as_bytes();
        let _ = stream.write_all(saying).await;
        crowd.push(stream);
        if number % 20 == 19 {
            for page in ["/healthz", "/readyz", "/metrics"] {
                let answer = bridge.admin(page).await;
                assert_eq!(answer.status, 200, "{page}");
            }
        }
    }
    for reason in ["listener_full", "address_full"] {
        assert_eq!(bridge.metric(&refused("admin", reason)).await, None);
    }
    drop(crowd);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_are_not_allowed_take_no_place_and_few_log_lines() {
    let setup = Setup::default()
        .with("store", "memory")
        .with("allowed_sources", "127.0.0.1")
        .with("limits.webhook.connections_max", "2");
    let bridge = setup.start().await;
    let mut held = Vec::new();
    for _ in 0..300 {
        held.push(sockets::connect(bridge.addresses.webhook).await.unwrap());
    }
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    for stream in &mut held {
        let said = read_to_end(stream).await;
        let text = String::from_utf8(said).unwrap();
        assert!(text.starts_with("HTTP/1.1 403 "), "{text}");
        assert!(text.contains("source_refused"), "{text}");
    }
    let sample = refused("webhook", "source");
    bridge.counts(&sample, 300.0).await;
    let opened = r#"prelude_bridge_connections_accepted_total{listener="webhook"}"#;
    bridge.counts(opened, 1.0).await;
    let lines = bridge.stderr().matches("connection refused").count();
    assert!((100..200).contains(&lines), "{lines} lines");
    bridge.finish().await;
}

/// A client that shakes hands anew for each request.
fn visitor(source: IpAddr, authority: &Authority) -> reqwest::Client {
    let pem = std::fs::read(authority.certificate()).unwrap();
    let trusted = reqwest::Certificate::from_pem(&pem).unwrap();
    reqwest::Client::builder()
        .no_proxy()
        .local_address(source)
        .pool_max_idle_per_host(0)
        .tls_certs_only([trusted])
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_handshakes_has_a_rate_and_known_senders_do_not_wait_for_it() {
    const PER_SECOND: u32 = 40;
    let authority = Authority::new();
    let setup = Setup::default()
        .with("store", "memory")
        .with("tls.handshakes_at_once", "100")
        .with("tls.handshakes_per_second", &PER_SECOND.to_string())
        .secured("webhook", &authority.server("server"));
    let bridge = setup.start().await;
    let sender = Sender::over_tls(bridge.addresses.webhook, &authority);
    let delivery = Delivery::of(&[item("evt_known", "user.created", "usr_1")]);
    assert_eq!(sender.send(&delivery).await.status, 200);
    let guarded = Guarded::with(bridge, sender).await;
    let url = format!("https://{}/webhooks", guarded.bridge.addresses.webhook);
    let shaken = AtomicU64::new(0);
    let since = Instant::now();
    let known = visitor(Ipv4Addr::LOCALHOST.into(), &authority);
    let attack = async || {
        let stopped = AtomicBool::new(false);
        let strangers = (0..20).map(|number| {
            let stranger = visitor(attacker(number).into(), &authority);
            let (url, shaken, stopped) = (&url, &shaken, &stopped);
            async move {
                while !stopped.load(Ordering::Relaxed) {
                    let answered = stranger.get(url).send().await;
                    shaken.fetch_add(u64::from(answered.is_ok()), Ordering::Relaxed);
                }
            }
        });
        let beside = async {
            for _ in 0..5 {
                // A new connection of the known sender, each time.
                let answer = known.get(&url).send().await.unwrap();
                assert_eq!(answer.status(), 400);
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            stopped.store(true, Ordering::Relaxed);
        };
        tokio::join!(futures_util::future::join_all(strangers), beside);
    };
    guarded
        .under("20 who shake hands again and again", attack)
        .await;
    let most = 100.0 + f64::from(PER_SECOND) * since.elapsed().as_secs_f64();
    let shaken = shaken.into_inner();
    eprintln!("{shaken} handshakes of strangers");
    assert!((1..).contains(&shaken) && shaken as f64 <= most, "{shaken}");
    let delayed = r#"prelude_bridge_tls_handshakes_delayed_total{listener="webhook"}"#;
    guarded.bridge.counts_at_least(delayed, 1.0).await;
    guarded.finish().await;
}

/// Answers the first request with the keys of the sender, if there is one, and no other.
async fn hanging_key_server(answers_once: bool) -> (String, JoinSet<()>) {
    let keys = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks.json", keys.local_addr().unwrap());
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        if answers_once {
            let (mut first, _) = keys.accept().await.unwrap();
            let set = jwks(&KEY);
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\
                 Content-Length: {}\r\n\r\n{set}",
                set.len()
            );
            // Some of the request is enough.
            assert!(first.read(&mut [0; 1024]).await.unwrap() > 0);
            first.write_all(answer.as_bytes()).await.unwrap();
        }
        let mut held: Vec<TcpStream> = Vec::new();
        while let Ok((stream, _)) = keys.accept().await {
            held.push(stream);
        }
    });
    (url, serving)
}

/// Their bodies are whole and wait for a key server: they fill the memory for bodies, which others need.
#[tokio::test(flavor = "multi_thread")]
async fn forged_bodies_that_wait_for_newer_keys_give_their_memory_to_others() {
    let (url, _serving) = hanging_key_server(true).await;
    let setup = Setup::default()
        .jwks_url(&url)
        .with("store", "memory")
        .with("limits.webhook.bodies_bytes_max", "1MiB")
        .with("limits.webhook.body_bytes_max", "256KiB");
    let bridge = setup.start().await;
    let padding = " ".repeat(250 * 1024);
    let signature = sign(b"another body");
    let mut forgers = Vec::new();
    for _ in 0..3 {
        let request = format!(
            "POST /webhooks/{APP} HTTP/1.1\r\nHost: a\r\nX-Webhook-Signature: {signature}\r\n\
             Content-Length: {}\r\n\r\n{padding}",
            padding.len()
        );
        let mut forger = sockets::connect(bridge.addresses.webhook).await.unwrap();
        forger.write_all(request.as_bytes()).await.unwrap();
        forgers.push(forger);
    }
    // They have been read, and wait.
    let read = "prelude_bridge_webhook_body_bytes_total";
    eventually(async || {
        let bytes = bridge.metric(read).await?;
        (bytes >= 750.0 * 1024.0).then_some(())
    })
    .await;
    let event = item("evt_1", "user.created", "usr_1");
    let body = format!("{}{padding}", batch(APP, &[event]));
    let answer = bridge.post(body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    bridge.finish().await;
}

/// How long the bridge asks a key server that does not answer.
const KEYS_TIMEOUT: Duration = Duration::from_secs(5);

/// A call under a JWT whose key nobody knows, without the end of its message.
fn call_with_unknown_key(stream: u32) -> Vec<u8> {
    // {"alg":"ES256","kid":"unknown"}, and {}.
    let authorization = b"Bearer eyJhbGciOiJFUzI1NiIsImtpZCI6InVua25vd24ifQ.e30.AAAA";
    let block = [
        frames::call_block(GET_RANGE),
        frames::literal(b"authorization", authorization),
    ];
    frames::frame(HEADERS, END_HEADERS, stream, &block.concat())
}

/// How much of a message goes into one frame.
const PART_BYTES: usize = 16 * 1024;

/// Sends four calls under unknown keys, and of each message as much as a stream may send: four times what
/// the connection may send before it is read. None is ended meanwhile, and there is room for more at the end.
/// Whoever sends a byte more than a window has the server end the call, or the connection.
async fn send_windows(connection: &mut Http2) {
    // A stream's window is as large.
    let message = vec![0; CONNECTION_WINDOW_BYTES as usize];
    let mut window = message.len();
    for stream in [1, 3, 5, 7] {
        let call = call_with_unknown_key(stream);
        connection.send(&call).await.unwrap();
        for part in message.chunks(PART_BYTES) {
            let part_frame = frames::frame(DATA, 0, stream, part);
            connection.send(&part_frame).await.unwrap();
            window -= part.len();
            while window < PART_BYTES {
                let frame = connection.next().await.unwrap();
                assert!(!frame.ends(), "{frame:?}");
                if frame.kind == WINDOW_UPDATE && frame.stream == 0 {
                    let increment = frame.payload[..4].try_into().unwrap();
                    window += u32::from_be_bytes(increment) as usize;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_wait_for_newer_keys_are_few_and_hold_no_window() {
    let (url, _serving) = hanging_key_server(false).await;
    let setup = Setup::default()
        .with("store", "memory")
        .with("jwt.jwks_url", &url)
        .with("jwt.issuer", "https://issuer.example.com")
        .with("jwt.audience", "bridge");
    let mut bridge = setup.prepare();
    let token = token(&bridge.data_dir(), &["somebody"]);
    let began = Instant::now();
    bridge.restart().await;
    let address: SocketAddr = bridge.addresses.grpc;
    let mut connection = Http2::begin(address, &[]).await.unwrap();
    within(Duration::from_secs(1), send_windows(&mut connection)).await;
    connection
        .send(&authorized_call(9, GET_RANGE, &token))
        .await
        .unwrap();
    assert!(connection.is_answered(9).await);
    // Eight of an address wait. The others hear at once that they may try again.
    for stream in (11..41).step_by(2) {
        connection
            .send(&call_with_unknown_key(stream))
            .await
            .unwrap();
    }
    let ended = async |reason: &str| {
        let sample = format!(r#"prelude_bridge_streams_ended_total{{reason="{reason}"}}"#);
        bridge.metric(&sample).await.unwrap_or(0.0)
    };
    let (refused, dropped) = ("TOKEN_UNVERIFIABLE", "TOKEN_INVALID");
    eventually(async || (ended(refused).await >= 11.0).then_some(())).await;
    // Those that go away have been refused too: each of the 19 is counted once.
    drop(connection);
    let dropped = eventually(async || {
        let dropped = ended(dropped).await;
        (ended(refused).await + dropped == 19.0).then_some(dropped)
    })
    .await;
    // On a machine that is this slow, the keys were given up before.
    if began.elapsed() < KEYS_TIMEOUT {
        assert_eq!(dropped, 8.0);
    }
    bridge.finish().await;
}
