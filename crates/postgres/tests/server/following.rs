//! All commits in order, whatever happens to announcements, servers and old rows.

use super::*;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn commits_of_every_size_come_as_they_were_stored() {
    let server = Server::start();
    let sequencer = sequencer(&server).await;
    let sizes = [
        0,
        1,
        1900,
        2100,
        70_000,
        3 << 20,
        5 << 20,
        sequencer.commit_bytes_max(),
        1,
        8191,
        4 << 20,
        1,
    ];
    let commits: Vec<_> = (0_u8..)
        .zip(sizes)
        .map(|(byte, size)| Bytes::from(vec![byte; size]))
        .collect();
    for (position, commit) in (1..).zip(&commits) {
        assert_eq!(settle(&sequencer, position, commit).await, 0);
    }
    let found = collect(&sequencer, 1, commits.len()).await;
    assert!(found.iter().map(|(_, commit)| commit).eq(&commits));
    let compressed =
        "SELECT count(*) FROM prelude_bridge WHERE pg_column_compression(commit) IS NOT NULL";
    assert_eq!(server.ask(compressed), "0");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_follower_is_told_of_commits_as_they_come() {
    let server = Server::start();
    let (writer, reader) = (sequencer(&server).await, sequencer(&server).await);
    let mut following = reader.follow(Position(0));
    for position in 1..=300 {
        let text = commit(format!("commit {position}"));
        assert_eq!(
            writer.append(Position(position), text.clone()).await,
            Ok(Outcome::Won)
        );
        let came = timeout(SOON, following.next()).await.unwrap();
        assert_eq!(came, Some(Ok((Position(position), text))));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_commit_that_nobody_announces_is_found() {
    let server = Server::start();
    let sequencer = sequencer(&server).await;
    let mut following = sequencer.follow(Position(1));
    for position in 1..=3_u64 {
        server.sql(&format!(
            "INSERT INTO prelude_bridge (position, commit) VALUES ({position}, 'quiet')"
        ));
        let came = timeout(SOON, following.next()).await.unwrap();
        assert_eq!(came, Some(Ok((Position(position), commit("quiet")))));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn who_follows_from_what_was_removed_is_told_what_is_left() {
    let server = Server::start();
    let (sequencer, other) = (sequencer(&server).await, sequencer(&server).await);
    append_all(&sequencer, 1..=20).await;
    // One that has begun, and takes its time: it has read some, but not what will be removed.
    let mut slow = sequencer.follow(Position(1));
    let first = slow.next().await;
    assert_eq!(first, Some(Ok((Position(1), commit("commit 1")))));
    append_all(&sequencer, 21..=30).await;
    other.trim(Position(25)).await.unwrap();
    let removed = Some(Err(Outage::Removed {
        first: Position(25),
    }));
    assert_eq!(sequencer.follow(Position(24)).next().await, removed);
    assert_eq!(collect(&other, 25, 6).await.len(), 6);
    // What it had read comes, and nothing is left out.
    for position in 2..=20 {
        assert_eq!(slow.next().await.unwrap().unwrap().0, Position(position));
    }
    assert_eq!(slow.next().await, removed);
    assert!(slow.next().await.is_none(), "it ends with its first error");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_hole_is_an_error_and_never_passed_over() {
    let server = Server::start();
    let sequencer = sequencer(&server).await;
    append_all(&sequencer, 1..=9).await;
    server.sql("DELETE FROM prelude_bridge WHERE position = 5");
    let found: Vec<_> = timeout(SOON, sequencer.follow(Position(2)).collect())
        .await
        .unwrap();
    assert_eq!(found.len(), 4, "2, 3, 4 and the error");
    let Some(Err(Outage::Unusable(why))) = found.last() else {
        panic!("{found:?}")
    };
    assert!(
        why.contains("position 5 is missing between 1 and 9"),
        "{why}"
    );
    // The last rows are removed, and positions go back.
    let mut following = sequencer.follow(Position(9));
    assert!(following.next().await.unwrap().is_ok());
    server.sql("TRUNCATE prelude_bridge");
    assert_eq!(sequencer.ends().await.unwrap(), ends(1, 0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_follower_ends_with_its_connection_and_goes_on_over_the_next() {
    let mut server = Server::start();
    let sequencer = sequencer(&server).await;
    let mut connections = sequencer.connections();
    let mut next = 1;
    for round in 1..=3 {
        let last = next + 9;
        append_all(&sequencer, next..=last).await;
        let mut following = loop {
            let mut following = sequencer.follow(Position(next));
            if let Some(Ok((position, _))) = following.next().await {
                assert_eq!(position, Position(next));
                break following;
            }
        };
        for position in next + 1..=last {
            assert_eq!(
                following.next().await.unwrap().unwrap().0,
                Position(position)
            );
        }
        sequencer.trim(Position(last)).await.unwrap();
        server.restart();
        let end = timeout(SOON, following.next()).await.unwrap();
        assert!(matches!(end, Some(Err(Outage::Disconnected(_)))), "{end:?}");
        assert_eq!(following.next().await, None);
        timeout(SOON, connections.wait_for(|count| *count > round))
            .await
            .unwrap()
            .unwrap();
        next = last + 1;
    }
}
