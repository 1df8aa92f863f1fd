//! What the contract of sequencers promises while nothing fails.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use prelude_bridge_jetstream::open;
use prelude_bridge_log::sequencer::{Ends, Outage, Outcome, Position, Sequencer as _};

use crate::support::{cluster, commit, contains, follow_to, next, options, settle, single, soon};

#[tokio::test]
#[ignore = "needs tools"]
async fn exactly_one_writer_wins_each_position() {
    let (nats, first) = cluster().await;
    let second = open(options(&nats, 3)).await.unwrap().sequencer;
    let write = async |sequencer: &prelude_bridge_jetstream::JetStream, writer: &str| {
        let mut won = Vec::new();
        for position in 1..=1000 {
            let commit = Bytes::from(format!("{writer} at {position}"));
            won.push(settle(sequencer, position, &commit).await);
        }
        won
    };
    let (one, other) =
        soon(async { tokio::join!(write(&first, "one"), write(&second, "other")) }).await;
    for (position, (one, other)) in (1..).zip(one.iter().zip(&other)) {
        assert!(
            one ^ other,
            "position {position} was won by {} writers",
            u8::from(*one) + u8::from(*other)
        );
    }
    let (of_one, of_other) = (
        follow_to(&first, 1, 1000).await,
        follow_to(&second, 1, 1000).await,
    );
    assert_eq!(of_one, of_other);
    for (position, commit) in (1..).zip(&of_one) {
        let winner = if one[position - 1] { "one" } else { "other" };
        assert_eq!(*commit, format!("{winner} at {position}"));
    }
    let wins = one.iter().filter(|&&won| won).count();
    assert!(wins > 0 && wins < 1000, "{wins}: the writers did not race");
}

#[tokio::test]
#[ignore = "needs tools"]
async fn a_commit_is_seen_by_all_once_it_is_acknowledged() {
    let (nats, writer) = cluster().await;
    let reader = open(options(&nats, 3)).await.unwrap().sequencer;
    assert_eq!(
        reader.ends().await,
        Ok(Ends {
            first: Position(1),
            last: Position(0)
        })
    );
    for number in 1..=300 {
        assert_eq!(reader.get(Position(number)).await, Ok(None));
        assert_eq!(
            writer.append(Position(number), commit(number)).await,
            Ok(Outcome::Won)
        );
        assert_eq!(reader.get(Position(number)).await, Ok(Some(commit(number))));
        let ends = Ends {
            first: Position(1),
            last: Position(number),
        };
        assert_eq!(reader.ends().await, Ok(ends));
    }
    for position in [0, 1, 299, 300, 302, u64::MAX] {
        assert_eq!(
            writer.append(Position(position), commit(0)).await,
            Ok(Outcome::Refused),
            "{position}"
        );
    }
    assert_eq!(reader.get(Position(301)).await, Ok(None));
    assert_eq!(reader.get(Position(0)).await, Ok(None));
    assert_eq!(reader.trim(Position(100)).await, Ok(()));
}

#[tokio::test]
#[ignore = "needs tools"]
async fn a_follower_gets_what_is_there_and_then_what_comes() {
    let (_nats, sequencer) = single().await;
    for number in 1..=50 {
        settle(&sequencer, number, &commit(number)).await;
    }
    let mut commits = sequencer.follow(Position(0));
    for number in 1..=50 {
        assert_eq!(
            next(&mut commits).await,
            Ok((Position(number), commit(number)))
        );
    }
    // Longer than a pull is kept by the server, and than silence is taken for an end.
    let quiet = tokio::time::timeout(Duration::from_secs(7), commits.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    settle(&sequencer, 51, &commit(51)).await;
    assert_eq!(next(&mut commits).await, Ok((Position(51), commit(51))));
    let mut later = sequencer.follow(Position(53));
    settle(&sequencer, 52, &commit(52)).await;
    settle(&sequencer, 53, &commit(53)).await;
    assert_eq!(next(&mut later).await, Ok((Position(53), commit(53))));
}

#[tokio::test]
#[ignore = "needs tools"]
async fn the_largest_commits_pass_and_larger_ones_are_refused() {
    let (_nats, sequencer) = single().await;
    let largest = sequencer.commit_bytes_max();
    assert!(largest > (2 << 20) + (1 << 20));
    // Bytes of all kinds: JetStream's API gives them as text.
    let commit: Bytes = (0..largest).map(|byte| (byte % 251) as u8).collect();
    for position in 1..=12 {
        assert!(settle(&sequencer, position, &commit).await);
    }
    assert_eq!(sequencer.get(Position(12)).await, Ok(Some(commit.clone())));
    let found = follow_to(&sequencer, 1, 12).await;
    assert!(found.iter().all(|found| *found == commit));
    let larger = Bytes::from(vec![1; largest + 1]);
    let said = sequencer.append(Position(13), larger).await.unwrap_err();
    assert!(matches!(said, Outage::Unusable(_)));
    contains(said, &["takes no commit of"]);
}

#[tokio::test]
#[ignore = "needs tools"]
async fn many_small_commits_are_followed_without_a_hole() {
    let (_nats, sequencer) = single().await;
    // More than two pulls ask for.
    let count = 25_000;
    let publish = async_nats::connect(_nats.urls()).await.unwrap();
    for number in 1..=count {
        publish
            .publish("prelude-bridge.prelude-bridge.commits", commit(number))
            .await
            .unwrap();
    }
    let found = follow_to(&sequencer, 1, count).await;
    assert!(
        (1..)
            .zip(&found)
            .all(|(number, found)| *found == commit(number))
    );
    // What is not taken stays with the server, and is there later.
    let mut slow = sequencer.follow(Position(1));
    assert_eq!(next(&mut slow).await, Ok((Position(1), commit(1))));
    tokio::time::sleep(Duration::from_secs(6)).await;
    for number in 2..=count {
        assert_eq!(
            next(&mut slow).await,
            Ok((Position(number), commit(number)))
        );
    }
}

#[tokio::test]
#[ignore = "needs tools"]
async fn a_dropped_follower_leaves_no_consumer() {
    let (nats, sequencer) = single().await;
    settle(&sequencer, 1, &commit(1)).await;
    let mut commits = sequencer.follow(Position(1));
    next(&mut commits).await.unwrap();
    let consumers = async || {
        let info =
            crate::support::api(&nats, "STREAM.INFO.prelude-bridge", serde_json::json!(null)).await;
        info["state"]["consumer_count"].as_u64().unwrap()
    };
    assert_eq!(consumers().await, 1);
    drop(commits);
    soon(async { while consumers().await > 0 {} }).await;
}

#[tokio::test]
#[ignore = "needs tools"]
async fn bridges_ask_each_other() {
    let (nats, first) = cluster().await;
    let second = open(options(&nats, 3)).await.unwrap().sequencer;
    let peers = first.peers().unwrap();
    let ask = async |number: u32, question: &'static str| {
        peers
            .ask(number, question.into(), Duration::from_secs(5))
            .await
    };
    let begin = Instant::now();
    assert_eq!(
        soon(peers.ask(8, "?".into(), Duration::from_secs(30))).await,
        None
    );
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "nobody has the number, which is known at once"
    );
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    second.peers().unwrap().serve(
        7,
        Arc::new(move |question: Bytes| {
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                match &question[..] {
                    b"wait" => std::future::pending().await,
                    b"nothing" => Bytes::new(),
                    _ => [b"re: ", &question[..]].concat().into(),
                }
            }
            .boxed()
        }),
    );
    soon(async { while ask(7, "hello").await != Some("re: hello".into()) {} }).await;
    // One that waits does not hold up the others.
    let waiting = peers.ask(7, "wait".into(), Duration::from_secs(3));
    let (waited, answered) = soon(async { tokio::join!(waiting, ask(7, "more")) }).await;
    assert_eq!((waited, answered), (None, Some("re: more".into())));
    assert_eq!(
        peers.ask(7, "nothing".into(), Duration::from_secs(3)).await,
        None
    );
    let large = Bytes::from(vec![9; 3 << 20]);
    let answer = soon(peers.ask(7, large.clone(), Duration::from_secs(20)))
        .await
        .unwrap();
    assert_eq!(answer.len(), large.len() + 4);
    drop(second);
    soon(async { while ask(7, "still?").await.is_some() {} }).await;
}

#[tokio::test]
#[ignore = "needs tools"]
async fn it_says_what_it_is() {
    let (nats, sequencer) = single().await;
    let place = nats.urls()[0].replace("nats://", "");
    assert_eq!(
        *sequencer.name(),
        *format!("the stream prelude-bridge of NATS at {place}")
    );
    assert_eq!(*sequencer.connections().borrow(), 2);
}
