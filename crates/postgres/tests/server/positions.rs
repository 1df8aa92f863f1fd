//! One winner for each position, no holes, and a last position that is never forgotten.

use std::collections::HashMap;

use super::*;

async fn race(writers: u64, positions: u64) {
    let server = Server::start();
    let mut racing = Vec::new();
    for writer in 0..writers {
        let sequencer = sequencer(&server).await;
        racing.push(tokio::spawn(async move {
            let (mut won, mut last) = (Vec::new(), 0);
            while last < positions {
                let position = Position(last + 1);
                let mine = commit(format!("{writer} at {position}"));
                let outcome = sequencer.append(position, mine.clone()).await.unwrap();
                // Whoever is refused finds the winner's commit at once.
                let found = sequencer.get(position).await.unwrap().unwrap();
                assert_eq!(outcome == Outcome::Won, found == mine, "{position}");
                if outcome == Outcome::Won {
                    won.push((last + 1, mine));
                }
                last += 1;
            }
            won
        }));
    }
    let mut won = HashMap::new();
    for writer in racing {
        for (position, commit) in writer.await.unwrap() {
            assert_eq!(won.insert(position, commit), None, "two won {position}");
        }
    }
    let stored = collect(&*sequencer(&server).await, 1, positions as usize).await;
    assert!((1..=positions).eq(stored.iter().map(|(position, _)| *position)));
    assert_eq!(stored.into_iter().collect::<HashMap<_, _>>(), won);
    let counted = server.ask("SELECT count(*), min(position), max(position) FROM prelude_bridge");
    assert_eq!(counted, format!("{positions}|1|{positions}"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn of_two_writers_exactly_one_wins_each_position() {
    race(2, 1000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn of_three_writers_exactly_one_wins_each_position() {
    race(3, 1000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_commit_is_stored_only_after_the_one_before_it() {
    let server = Server::start();
    let sequencer = sequencer(&server).await;
    let append = async |position| {
        sequencer
            .append(Position(position), commit("x"))
            .await
            .unwrap()
    };
    assert_eq!(sequencer.ends().await.unwrap(), ends(1, 0));
    for (position, outcome) in [
        (0, Outcome::Refused),
        (2, Outcome::Refused),
        (1, Outcome::Won),
        (1, Outcome::Refused),
        (3, Outcome::Refused),
        (u64::MAX, Outcome::Refused),
        (2, Outcome::Won),
    ] {
        assert_eq!(append(position).await, outcome, "{position}");
    }
    assert_eq!(sequencer.ends().await.unwrap(), ends(1, 2));
    assert_eq!(sequencer.get(Position(3)).await.unwrap(), None);
    assert_eq!(sequencer.get(Position(0)).await.unwrap(), None);
    let large = sequencer
        .append(
            Position(3),
            vec![0; sequencer.commit_bytes_max() + 1].into(),
        )
        .await;
    assert!(matches!(large, Err(Outage::Unusable(_))), "{large:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn the_last_position_is_never_forgotten() {
    let server = Server::start();
    let sequencer = sequencer(&server).await;
    append_all(&sequencer, 1..=200).await;
    sequencer.trim(Position(150)).await.unwrap();
    assert_eq!(sequencer.ends().await.unwrap(), ends(150, 200));
    sequencer.trim(Position(u64::MAX)).await.unwrap();
    assert_eq!(sequencer.ends().await.unwrap(), ends(200, 200));
    assert_eq!(sequencer.get(Position(199)).await.unwrap(), None);
    // Another bridge sees the same, and the next position is the next one.
    let other = super::sequencer(&server).await;
    assert_eq!(other.ends().await.unwrap(), ends(200, 200));
    let again = other.append(Position(200), commit("again")).await;
    assert_eq!(again, Ok(Outcome::Refused));
    assert_eq!(
        other.append(Position(201), commit("next")).await,
        Ok(Outcome::Won)
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn commits_whose_ids_are_needed_are_not_removed() {
    let server = Server::start();
    let kept = Options {
        ids_age: Duration::from_secs(3600),
        ..options(&server)
    };
    let sequencer = open(kept).await.unwrap().sequencer;
    append_all(&sequencer, 1..=10).await;
    server.sql("UPDATE prelude_bridge SET at = at - interval '2 hours' WHERE position < 4");
    sequencer.trim(Position(9)).await.unwrap();
    assert_eq!(sequencer.ends().await.unwrap(), ends(4, 10));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn two_bridges_that_trim_at_the_same_time_leave_no_hole() {
    let server = Server::start();
    let (one, other) = (sequencer(&server).await, sequencer(&server).await);
    append_all(&one, 1..=600).await;
    let first = async |sequencer: Arc<Postgres>| {
        let (_, _) = tokio::join!(sequencer.trim(Position(580)), async {
            for _ in 0..20 {
                let Ends { first, last } = sequencer.ends().await.unwrap();
                let count = server
                    .ask("SELECT max(position) - min(position) - count(*) FROM prelude_bridge");
                assert_eq!(count, "-1", "{first} {last}");
            }
        });
    };
    tokio::join!(first(Arc::clone(&one)), first(Arc::clone(&other)));
    // A wish that was in the way of the other's may be left to the next one.
    one.trim(Position(580)).await.unwrap();
    assert_eq!(other.ends().await.unwrap(), ends(580, 600));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_writer_waits_for_who_inserts_the_same_position() {
    let server = Server::start();
    let sequencer = sequencer(&server).await;
    let (mut client, connection) = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let insert = "INSERT INTO prelude_bridge (position, commit) VALUES ($1, 'other')";
    for (position, commits) in [(1_i64, false), (2, true)] {
        let transaction = client.transaction().await.unwrap();
        transaction.execute(insert, &[&position]).await.unwrap();
        let appending = Arc::clone(&sequencer);
        let appended =
            tokio::spawn(async move { appending.append(table(position), commit("mine")).await });
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        eventually("the writer waits", async || {
            (server.ask(waiting) == "1").then_some(())
        })
        .await;
        if commits {
            transaction.commit().await.unwrap();
            assert_eq!(appended.await.unwrap(), Ok(Outcome::Refused));
            assert_eq!(sequencer.get(Position(2)).await.unwrap().unwrap(), "other");
        } else {
            transaction.rollback().await.unwrap();
            assert_eq!(appended.await.unwrap(), Ok(Outcome::Won));
        }
    }
}

fn table(position: i64) -> Position {
    Position(position.unsigned_abs())
}
