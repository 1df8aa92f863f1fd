//! Servers that are killed, stopped and started again, streams that are deleted, and positions that are gone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use prelude_bridge_jetstream::testing::SOON;
use prelude_bridge_log::sequencer::{Ends, Outage, Outcome, Position, Sequencer as _};
use serde_json::json;
use tokio::time::timeout;

use crate::support::{
    STREAM, api, cluster, commit, contains, follow_to, next, settle, single, soon,
};

/// More than any call may take: some seconds.
const CALL_TIME_MAX: Duration = Duration::from_secs(10);

#[tokio::test]
#[ignore = "needs tools"]
async fn writers_and_followers_survive_each_server_in_turn() {
    let rounds: u64 = std::env::var("PRELUDE_BRIDGE_TEST_NATS_ROUNDS")
        .map_or(1, |rounds| rounds.parse().unwrap());
    let (nats, sequencer) = cluster().await;
    let last = 360 * rounds;
    let following = tokio::spawn({
        let sequencer = Arc::clone(&sequencer);
        async move { follow_to(&sequencer, 1, last).await }
    });
    let mut position = 0;
    let mut write = async || {
        for _ in 0..60 {
            position += 1;
            assert!(settle(&sequencer, position, &commit(position)).await);
        }
    };
    for _ in 0..rounds {
        write().await;
        // The leader crashes; a follower crashes; all do.
        let leader = nats.leader(STREAM).await;
        nats.kill(leader);
        write().await;
        nats.restart(leader);
        nats.ready().await;
        let follower = (nats.leader(STREAM).await + 1) % 3;
        nats.kill(follower);
        write().await;
        (0..3).for_each(|node| nats.kill(node));
        (0..3).for_each(|node| nats.restart(node));
        write().await;
        nats.ready().await;
        // One that is stopped closes no connection.
        let leader = nats.leader(STREAM).await;
        nats.pause(leader);
        write().await;
        nats.resume(leader);
        nats.ready().await;
        let follower = (nats.leader(STREAM).await + 1) % 3;
        nats.pause(follower);
        write().await;
        nats.resume(follower);
        nats.ready().await;
    }
    let found = following.await.unwrap();
    assert!(
        (1..)
            .zip(&found)
            .all(|(number, found)| *found == commit(number))
    );
    let ends = Ends {
        first: Position(1),
        last: Position(last),
    };
    soon(async { while sequencer.ends().await != Ok(ends) {} }).await;
}

#[tokio::test]
#[ignore = "needs tools"]
async fn a_refusal_without_a_quorum_proves_nothing() {
    let (nats, sequencer) = cluster().await;
    assert!(settle(&sequencer, 1, &commit(1)).await);
    let leader = nats.leader(STREAM).await;
    for node in (0..3).filter(|&node| node != leader) {
        nats.kill(node);
    }
    // Until it notices that it is alone, the leader refuses what it has only proposed.
    for _ in 0..5 {
        let begin = Instant::now();
        let said = sequencer.append(Position(2), commit(2)).await;
        assert!(said != Ok(Outcome::Won), "nothing can be stored");
        assert!(
            !matches!(said, Err(Outage::Full(_) | Outage::Unusable(_))),
            "{said:?}"
        );
        assert!(begin.elapsed() < CALL_TIME_MAX);
        assert!(matches!(
            sequencer.get(Position(2)).await,
            Ok(None) | Err(_)
        ));
    }
    for node in (0..3).filter(|&node| node != leader) {
        nats.restart(node);
    }
    assert!(settle(&sequencer, 2, &commit(2)).await);
    assert!(settle(&sequencer, 3, &commit(3)).await);
    assert_eq!(
        follow_to(&sequencer, 1, 3).await,
        [commit(1), commit(2), commit(3)]
    );
}

#[tokio::test]
#[ignore = "needs tools"]
async fn no_call_hangs_on_a_stopped_server() {
    let (nats, sequencer) = single().await;
    assert!(settle(&sequencer, 1, &commit(1)).await);
    let mut connections = sequencer.connections();
    connections.mark_unchanged();
    let mut commits = sequencer.follow(Position(1));
    next(&mut commits).await.unwrap();
    nats.pause(0);
    let begin = Instant::now();
    assert!(sequencer.append(Position(2), commit(2)).await.is_err());
    assert!(begin.elapsed() < CALL_TIME_MAX);
    let begin = Instant::now();
    assert!(next(&mut commits).await.is_err(), "silence is an end");
    assert!(begin.elapsed() < CALL_TIME_MAX);
    assert!(commits.next().await.is_none(), "the first error ends it");
    for _ in 0..4 {
        let begin = Instant::now();
        assert!(sequencer.ends().await.is_err());
        assert!(sequencer.get(Position(1)).await.is_err());
        assert!(
            sequencer
                .append(Position(2), Bytes::from(vec![7; 3 << 20]))
                .await
                .is_err()
        );
        assert!(begin.elapsed() < 3 * CALL_TIME_MAX);
    }
    let begin = Instant::now();
    let mut commits = sequencer.follow(Position(1));
    assert!(next(&mut commits).await.is_err());
    assert!(begin.elapsed() < CALL_TIME_MAX);
    nats.resume(0);
    // What was in doubt may have been stored now: the position tells.
    soon(async { while sequencer.get(Position(1)).await != Ok(Some(commit(1))) {} }).await;
    settle(&sequencer, 2, &commit(2)).await;
    soon(connections.changed()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs tools"]
async fn a_new_connection_is_counted_before_it_answers() {
    let (nats, sequencer) = single().await;
    settle(&sequencer, 1, &commit(1)).await;
    let before = *sequencer.connections().borrow();
    nats.kill(0);
    let said = sequencer.append(Position(2), commit(2)).await;
    assert!(
        matches!(said, Err(Outage::Disconnected(_) | Outage::Unavailable(_))),
        "{said:?}"
    );
    nats.restart(0);
    let end = Instant::now() + SOON;
    while sequencer.get(Position(1)).await.is_err() {
        assert!(Instant::now() < end);
    }
    assert!(*sequencer.connections().borrow() > before);
}

#[tokio::test]
#[ignore = "needs tools"]
async fn failing_calls_do_not_spin() {
    let (nats, sequencer) = single().await;
    nats.kill(0);
    let (begin, mut calls) = (Instant::now(), 0);
    while begin.elapsed() < Duration::from_secs(3) {
        assert!(sequencer.append(Position(1), commit(1)).await.is_err());
        calls += 1;
    }
    assert!(calls <= 31, "{calls} calls in three seconds");
}

#[tokio::test]
#[ignore = "needs tools"]
async fn positions_that_retention_removed_are_told() {
    let (nats, sequencer) = single().await;
    for number in 1..=20 {
        settle(&sequencer, number, &commit(number)).await;
    }
    let update = async |changes: serde_json::Value| {
        let info = api(&nats, "STREAM.INFO.prelude-bridge", json!(null)).await;
        let mut config = info["config"].clone();
        config
            .as_object_mut()
            .unwrap()
            .extend(changes.as_object().unwrap().clone());
        let said = api(&nats, "STREAM.UPDATE.prelude-bridge", config).await;
        assert!(said.get("error").is_none(), "{said}");
    };
    let mut late = sequencer.follow(Position(2));
    assert_eq!(next(&mut late).await, Ok((Position(2), commit(2))));
    update(json!({ "max_msgs": 5 })).await;
    assert_eq!(
        sequencer.ends().await,
        Ok(Ends {
            first: Position(16),
            last: Position(20)
        })
    );
    assert_eq!(sequencer.get(Position(15)).await, Ok(None));
    let mut gone = sequencer.follow(Position(15));
    assert_eq!(
        next(&mut gone).await,
        Err(Outage::Removed {
            first: Position(16)
        })
    );
    assert!(gone.next().await.is_none());
    assert_eq!(follow_to(&sequencer, 16, 20).await.len(), 5);
    // All removed, as when nothing came for longer than the retention.
    update(json!({ "max_msgs": -1, "max_age": 1_000_000_000, "duplicate_window": 1_000_000_000 }))
        .await;
    let empty = Ends {
        first: Position(21),
        last: Position(20),
    };
    soon(async { while sequencer.ends().await != Ok(empty) {} }).await;
    let mut gone = sequencer.follow(Position(20));
    assert_eq!(
        next(&mut gone).await,
        Err(Outage::Removed {
            first: Position(21)
        })
    );
    let mut commits = sequencer.follow(Position(21));
    settle(&sequencer, 21, &commit(21)).await;
    assert_eq!(next(&mut commits).await, Ok((Position(21), commit(21))));
}

#[tokio::test]
#[ignore = "needs tools"]
async fn a_lost_commit_is_named() {
    let nats = prelude_bridge_jetstream::testing::Nats::start(1, Default::default()).await;
    // As another would create it: messages can be deleted.
    let config = json!({
        "name": STREAM, "subjects": ["prelude-bridge.prelude-bridge.commits"], "storage": "file",
        "retention": "limits", "discard": "old", "num_replicas": 1,
    });
    let said = api(&nats, "STREAM.CREATE.prelude-bridge", config).await;
    assert!(said.get("error").is_none(), "{said}");
    let sequencer = prelude_bridge_jetstream::open(crate::support::options(&nats, 1))
        .await
        .unwrap()
        .sequencer;
    for number in 1..=5 {
        settle(&sequencer, number, &commit(number)).await;
    }
    let said = api(
        &nats,
        "STREAM.MSG.DELETE.prelude-bridge",
        json!({ "seq": 3, "no_erase": true }),
    )
    .await;
    assert_eq!(said["success"], true, "{said}");
    let mut commits = sequencer.follow(Position(1));
    next(&mut commits).await.unwrap();
    next(&mut commits).await.unwrap();
    let said = next(&mut commits).await.unwrap_err();
    assert!(matches!(said, Outage::Unusable(_)), "{said:?}");
    contains(said, &["lost the commit at position 3", "backup"]);
    assert_eq!(sequencer.get(Position(3)).await, Ok(None));
}

#[tokio::test]
#[ignore = "needs tools"]
async fn a_deleted_and_a_replaced_stream_are_not_usable() {
    let (nats, sequencer) = single().await;
    for number in 1..=3 {
        settle(&sequencer, number, &commit(number)).await;
    }
    let mut commits = sequencer.follow(Position(1));
    next(&mut commits).await.unwrap();
    let old = api(&nats, "STREAM.INFO.prelude-bridge", json!(null)).await["config"].clone();
    api(&nats, "STREAM.DELETE.prelude-bridge", json!(null)).await;
    let unusable = |said: Outage| {
        assert!(matches!(said, Outage::Unusable(_)), "{said:?}");
        contains(said, &["prelude-bridge", "deleted, or replaced"]);
    };
    unusable(sequencer.append(Position(4), commit(4)).await.unwrap_err());
    unusable(sequencer.get(Position(4)).await.unwrap_err());
    unusable(sequencer.ends().await.unwrap_err());
    let ended = timeout(SOON, async {
        while commits.next().await.is_some_and(|found| found.is_ok()) {}
    })
    .await;
    assert!(ended.is_ok(), "the follower goes on");
    unusable(next(&mut sequencer.follow(Position(4))).await.unwrap_err());
    // Another one of the same name begins at 1.
    let said = api(&nats, "STREAM.CREATE.prelude-bridge", old).await;
    assert!(said.get("error").is_none(), "{said}");
    unusable(sequencer.append(Position(4), commit(4)).await.unwrap_err());
    unusable(sequencer.ends().await.unwrap_err());
    unusable(next(&mut sequencer.follow(Position(4))).await.unwrap_err());
}

#[tokio::test]
#[ignore = "needs tools"]
async fn another_stream_with_the_subject_is_noticed() {
    let (nats, sequencer) = single().await;
    settle(&sequencer, 1, &commit(1)).await;
    api(&nats, "STREAM.DELETE.prelude-bridge", json!(null)).await;
    let other = json!({ "name": "other", "subjects": ["prelude-bridge.>"], "storage": "file" });
    let said = api(&nats, "STREAM.CREATE.other", other).await;
    assert!(said.get("error").is_none(), "{said}");
    let said = sequencer.append(Position(1), commit(1)).await.unwrap_err();
    assert!(matches!(said, Outage::Unusable(_)), "{said:?}");
    let info = api(&nats, "STREAM.INFO.other", json!(null)).await;
    assert_eq!(
        info["state"]["messages"], 0,
        "nothing is stored in another stream"
    );
}

#[tokio::test]
#[ignore = "needs tools"]
async fn a_sealed_stream_is_not_usable() {
    let (nats, sequencer) = single().await;
    settle(&sequencer, 1, &commit(1)).await;
    let mut config = api(&nats, "STREAM.INFO.prelude-bridge", json!(null)).await["config"].clone();
    config["sealed"] = json!(true);
    let said = api(&nats, "STREAM.UPDATE.prelude-bridge", config).await;
    assert!(said.get("error").is_none(), "{said}");
    let said = sequencer.append(Position(2), commit(2)).await.unwrap_err();
    assert!(matches!(said, Outage::Unusable(_)), "{said:?}");
    contains(said, &["sealed"]);
}

#[tokio::test]
#[ignore = "needs tools"]
async fn a_full_account_stores_nothing() {
    let server = "accounts { A { jetstream: { max_file: 8MB }, users: [{ user: a, password: secret }] } }\n\
                  no_auth_user: a";
    let config = prelude_bridge_jetstream::testing::Config {
        server: server.to_owned(),
        ..Default::default()
    };
    let nats = prelude_bridge_jetstream::testing::Nats::start(1, config).await;
    let options = prelude_bridge_jetstream::Options {
        retention_bytes: 0,
        ..crate::support::options(&nats, 1)
    };
    let sequencer = prelude_bridge_jetstream::open(options)
        .await
        .unwrap()
        .sequencer;
    let large = Bytes::from(vec![1; 1 << 20]);
    let (mut position, mut said) = (0, Ok(Outcome::Won));
    while said == Ok(Outcome::Won) && position < 20 {
        position += 1;
        said = sequencer.append(Position(position), large.clone()).await;
    }
    let said = said.unwrap_err();
    assert!(matches!(said, Outage::Full(_)), "{said:?}");
    contains(said, &["no room", "account"]);
    assert_eq!(sequencer.get(Position(position)).await, Ok(None));
}

#[tokio::test]
#[ignore = "needs tools"]
async fn a_sequence_that_went_back_is_believed_only_after_a_while() {
    let (nats, sequencer) = single().await;
    for number in 1..=5 {
        settle(&sequencer, number, &commit(number)).await;
    }
    let copy = nats.store(0).with_extension("copy");
    let copied = |from: &std::path::Path, to: &std::path::Path| {
        let said = std::process::Command::new("cp")
            .arg("-a")
            .arg(from)
            .arg(to)
            .status()
            .unwrap();
        assert!(said.success());
    };
    nats.kill(0);
    copied(&nats.store(0), &copy);
    nats.restart(0);
    for number in 6..=10 {
        settle(&sequencer, number, &commit(number)).await;
    }
    nats.kill(0);
    std::fs::remove_dir_all(nats.store(0)).unwrap();
    copied(&copy, &nats.store(0));
    nats.restart(0);
    nats.ready().await;
    let back = Ends {
        first: Position(1),
        last: Position(5),
    };
    soon(async { while sequencer.ends().await != Ok(back) {} }).await;
    assert_eq!(
        sequencer.append(Position(11), commit(11)).await,
        Ok(Outcome::Refused)
    );
    assert_eq!(sequencer.get(Position(10)).await, Ok(None));
    assert_eq!(
        sequencer.append(Position(6), commit(66)).await,
        Ok(Outcome::Won)
    );
}
