//! Servers with a stream, and what tests do with one.

use std::{fmt::Debug, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use prelude_bridge_jetstream::{
    JetStream, Login, OpenError, Options, open,
    testing::{Config, Nats, SOON},
};
use prelude_bridge_log::sequencer::{Outage, Outcome, Position, Sequencer as _};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

pub(crate) const STREAM: &str = "prelude-bridge";
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

pub(crate) fn options(nats: &Nats, replicas: usize) -> Options {
    Options {
        servers: nats.urls(),
        stream: STREAM.to_owned(),
        replicas,
        login: Login::None,
        tls: None,
        retention_age: 30 * DAY,
        retention_bytes: 1 << 30,
        create: true,
        ids_age: 15 * DAY,
    }
}

/// One server with JetStream, and a stream on it.
pub(crate) async fn single() -> (Nats, Arc<JetStream>) {
    let nats = Nats::start(1, Config::default()).await;
    let sequencer = open(options(&nats, 1)).await.unwrap().sequencer;
    (nats, sequencer)
}

/// Three servers, and a stream on all.
pub(crate) async fn cluster() -> (Nats, Arc<JetStream>) {
    let nats = Nats::start(3, Config::default()).await;
    let sequencer = open(options(&nats, 3)).await.unwrap().sequencer;
    (nats, sequencer)
}

pub(crate) async fn refused(options: Options) -> OpenError {
    open(options).await.unwrap_err()
}

/// The API as an administrator uses it.
pub(crate) async fn api(nats: &Nats, subject: &str, request: Value) -> Value {
    let client = async_nats::connect(nats.urls()).await.unwrap();
    let mut last = json!(null);
    for _ in 0..100 {
        let payload = if request.is_null() {
            String::new()
        } else {
            request.to_string()
        };
        if let Ok(answer) = client
            .request(format!("$JS.API.{subject}"), payload.into())
            .await
        {
            last = serde_json::from_slice(&answer.payload).unwrap();
            // Without a leader for a moment.
            if last["error"]["code"] != 503 {
                return last;
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("{subject}: {last}");
}

/// Appends at a position until it is decided by what is there, as a bridge does.
pub(crate) async fn settle(sequencer: &JetStream, position: u64, commit: &Bytes) -> bool {
    let (position, end) = (Position(position), Instant::now() + SOON);
    loop {
        let said = sequencer.append(position, commit.clone()).await;
        if said == Ok(Outcome::Won) {
            return true;
        }
        if let Ok(Some(found)) = sequencer.get(position).await {
            return found == *commit;
        }
        assert!(
            Instant::now() < end,
            "position {position} is not settled: {said:?}"
        );
    }
}

pub(crate) type Commits = BoxStream<'static, Result<(Position, Bytes), Outage>>;

pub(crate) async fn next(commits: &mut Commits) -> Result<(Position, Bytes), Outage> {
    soon(commits.next())
        .await
        .expect("a follower does not end without an error")
}

/// Follows as a replica does: again after each outage, until a position is reached.
pub(crate) async fn follow_to(sequencer: &JetStream, from: u64, to: u64) -> Vec<Bytes> {
    let mut found = Vec::new();
    while (found.len() as u64) < to + 1 - from {
        let mut commits = sequencer.follow(Position(from + found.len() as u64));
        while let Some(Ok((position, commit))) = soon(commits.next()).await {
            assert_eq!(position.0, from + found.len() as u64);
            found.push(commit);
            if position.0 == to {
                break;
            }
        }
    }
    found
}

pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    timeout(2 * SOON, future).await.expect("it takes too long")
}

pub(crate) fn contains(said: impl Debug + ToString, parts: &[&str]) {
    let text = said.to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

pub(crate) fn commit(number: u64) -> Bytes {
    format!("commit {number}").into()
}
