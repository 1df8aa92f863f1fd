//! Deliveries that look real and are signed by nobody: each costs a verification.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

use super::{Guarded, sockets};
use crate::support::{APP, Bridge, EMAIL, Setup, batch, item, sign};

/// A batch under the signature of another one, as often as there is somebody who answers.
fn forged() -> Arc<[u8]> {
    let body = batch(APP, &[item("evt_forged", "user.created", EMAIL)]);
    let signature = sign(b"another body");
    let request = format!(
        "POST /webhooks/{APP} HTTP/1.1\r\nHost: bridge\r\nContent-Type: application/json\r\n\
         X-Webhook-Signature: {signature}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    request.into_bytes().into()
}

/// From so many connections, each sending its next one when the last one is answered, for so long.
async fn flood(bridge: &Bridge, connections: usize, lasting: Duration) -> usize {
    // Below what one address may have.
    let source =
        |number: usize| Ipv4Addr::new(127, 0, 0, u8::try_from(100 + number / 200).unwrap());
    flood_from(bridge, source, connections, lasting).await
}

async fn flood_from(
    bridge: &Bridge,
    source: impl Fn(usize) -> Ipv4Addr,
    connections: usize,
    lasting: Duration,
) -> usize {
    let forged = forged();
    let answered = Arc::new(AtomicUsize::new(0));
    let until = Instant::now() + lasting;
    let mut forgers = JoinSet::new();
    for number in 0..connections {
        let stream = sockets::connect_from(source(number), bridge.addresses.webhook).await;
        let (mut stream, forged) = (stream.unwrap(), Arc::clone(&forged));
        let answered = Arc::clone(&answered);
        forgers.spawn(async move {
            let mut answer = vec![0; 1024];
            while Instant::now() < until && stream.write_all(&forged).await.is_ok() {
                match stream.read(&mut answer).await {
                    Ok(length) if length > 0 => {
                        assert!(answer[..length].starts_with(b"HTTP/1.1 401 "));
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    _ => return,
                }
            }
        });
    }
    forgers.join_all().await;
    answered.load(Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread")]
async fn real_batches_are_acknowledged_during_a_flood_of_forged_ones() {
    // With its log in files: this is about the whole way of a real batch. What others do to the disk
    // meanwhile is not part of it: one flush that they hold up for 100 ms is in more than a hundredth
    // of what is sent in two seconds.
    let guarded = Guarded::of(Setup::default().in_memory().start().await).await;
    let since = Instant::now();
    for connections in [20, 200] {
        let attack = async || flood(&guarded.bridge, connections, Duration::from_secs(2)).await;
        let name = format!("forged by {connections}");
        let answered: usize = guarded.under(&name, attack).await.iter().sum();
        eprintln!("{name}: {answered} refused");
        assert!(answered > connections);
    }
    // Strangers must not fill the disk with log lines either: a hundred, and then ten in a second.
    let lines_max = 111 + 10 * since.elapsed().as_secs() as usize;
    let refusals = guarded
        .bridge
        .stderr()
        .matches("signature_mismatch")
        .count();
    assert!((100..lines_max).contains(&refusals), "{refusals} lines");
    let counted = r#"prelude_bridge_webhook_verification_failures_total{reason="mismatch"}"#;
    guarded.bridge.counts_at_least(counted, 220.0).await;
    guarded.finish().await;
}

/// The source of the keys is slow at the worst time. Forged deliveries make the bridge ask it for
/// newer keys, and wait for them: more of them than may be verified at once.
#[tokio::test(flavor = "multi_thread")]
async fn forged_batches_that_wait_for_newer_keys_keep_nobody_waiting() {
    let keys = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks.json", keys.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let (mut first, _) = keys.accept().await.unwrap();
        let set = crate::support::jwks(&crate::support::KEY);
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{set}",
            set.len()
        );
        // Some of the request is enough.
        assert!(first.read(&mut [0; 1024]).await.unwrap() > 0);
        first.write_all(answer.as_bytes()).await.unwrap();
        drop(first);
        // And then it takes connections and says nothing.
        let mut held = Vec::new();
        while let Ok((stream, _)) = keys.accept().await {
            held.push(stream);
        }
    });
    let setup = Setup::default()
        .jwks_url(&url)
        .with("store", "memory")
        .with("limits.webhook.verifications_max", "100");
    let guarded = Guarded::of(setup.start().await).await;
    let attack = async || flood(&guarded.bridge, 1_200, Duration::from_secs(2)).await;
    let name = "forged by 1,200 without keys";
    let answered: usize = guarded.under(name, attack).await.iter().sum();
    eprintln!("{name}: {answered} refused");
    serving.abort();
    guarded.finish().await;
}

/// Sends forgeries, each on a connection of its own that is closed at once, for so long. Returns how
/// many.
async fn send_and_go(bridge: &Bridge, source: Ipv4Addr, lasting: Duration) -> usize {
    let forged = forged();
    let until = Instant::now() + lasting;
    let mut forgers = JoinSet::new();
    for _ in 0..20 {
        let (address, forged) = (bridge.addresses.webhook, Arc::clone(&forged));
        forgers.spawn(async move {
            let mut sent = 0;
            while Instant::now() < until {
                // Those who are still being closed may fill the address's share of connections.
                if let Ok(mut stream) = sockets::connect_from(source, address).await
                    && stream.write_all(&forged).await.is_ok()
                {
                    sent += 1;
                }
            }
            sent
        });
    }
    forgers.join_all().await.into_iter().sum()
}

const COUNTED: &str = r#"prelude_bridge_webhook_verification_failures_total{reason="mismatch"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn forgers_who_do_not_wait_for_the_answer_do_not_pass_the_throttle() {
    let guarded = Guarded::start(Setup::default()).await;
    let since = Instant::now();
    let elsewhere = Ipv4Addr::new(127, 0, 0, 100);
    let attack = async || send_and_go(&guarded.bridge, elsewhere, Duration::from_secs(2)).await;
    let sent: usize = guarded.under("forged and gone", attack).await.iter().sum();
    let counted = guarded.bridge.metric(COUNTED).await.unwrap_or(0.0);
    let most = 100.0 + 500.0 * since.elapsed().as_secs_f64();
    eprintln!("forged and gone: {sent} sent, {counted} verified and counted");
    // Of many the end is noticed before there is anything to verify.
    assert!(sent > 100 && counted <= most, "{counted} of {sent}");
    guarded.finish().await;
}

/// As behind a proxy that does not say for whom it speaks.
#[tokio::test(flavor = "multi_thread")]
async fn real_batches_from_the_address_of_the_forgers_are_acknowledged_in_time() {
    let bridge = Setup::default().with("store", "memory").start().await;
    let lasting = Duration::from_secs(3);
    let waiting = flood_from(&bridge, |_| Ipv4Addr::LOCALHOST, 100, lasting);
    let gone = send_and_go(&bridge, Ipv4Addr::LOCALHOST, lasting);
    let real = async {
        let (since, mut sent) = (Instant::now(), 0);
        while since.elapsed() < lasting {
            let id = format!("evt_{sent}");
            // No answer within its deadline is none.
            bridge.append(&[item(&id, "user.created", "usr_1")]).await;
            sent += 1;
        }
        sent
    };
    let (answered, gone, sent) = tokio::join!(waiting, gone, real);
    eprintln!("beside {answered} forgers who waited and {gone} who did not: {sent} acknowledged");
    assert!(sent > 0);
    bridge.finish().await;
}
