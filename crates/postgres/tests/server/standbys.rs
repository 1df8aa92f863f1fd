//! Synchronous standbys: what is on one disk only is not stored, for nobody; and failovers.

use super::*;

/// A primary whose standby is held, so that commits wait, with one commit that both have.
async fn waiting() -> (Server, Server, Arc<Postgres>) {
    let (primary, mut standby) = Server::with_standby();
    let sequencer = impatient(options(&primary)).await;
    append_all(&sequencer, 1..=1).await;
    standby.pause();
    (primary, standby, sequencer)
}

/// A follower that has nothing new as long as `until` takes.
async fn nothing_new(sequencer: &Postgres, from: u64, until: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = until => {}
        came = async {
            loop {
                let mut following = sequencer.follow(Position(from));
                while let Some(came) = following.next().await {
                    if let Ok(commit) = came {
                        return commit;
                    }
                }
                sleep(LOOK).await;
            }
        } => panic!("passed on, and on one disk only: {came:?}"),
    }
}

fn waits(outage: &Outage) -> bool {
    matches!(outage, Outage::Unavailable(why) if why.contains("standby"))
}

const WAITING: &str = "FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'INSERT%'";

/// A commit waits for the standby, `end` ends the waiting, and it is visible in the table, but in no way
/// stored until the standby has it.
async fn a_commit_on_one_disk(end: impl FnOnce(&mut Server), ends_connection: bool) {
    let (mut primary, mut standby, sequencer) = waiting().await;
    let other = impatient(options(&primary)).await;
    let appending = Arc::clone(&sequencer);
    let appended = tokio::spawn(async move { appending.append(Position(2), commit("mine")).await });
    primary.until(&format!("SELECT count(*) {WAITING}"), "1");
    assert_eq!(primary.ask("SELECT max(position) FROM prelude_bridge"), "1");
    end(&mut primary);
    let outcome = timeout(SOON, appended).await.unwrap().unwrap();
    if ends_connection {
        assert!(
            matches!(outcome, Err(Outage::Disconnected(_))),
            "{outcome:?}"
        );
    } else {
        assert!(outcome.as_ref().is_err_and(waits), "{outcome:?}");
    }
    primary.until("SELECT max(position) FROM prelude_bridge", "2");
    nothing_new(&other, 2, async {
        for sequencer in [&sequencer, &other] {
            eventually("nobody is told", async || {
                let found = sequencer.get(Position(2)).await;
                assert!(!matches!(found, Ok(Some(_))), "{found:?}");
                found.is_err_and(|outage| waits(&outage)).then_some(())
            })
            .await;
            assert!(sequencer.ends().await.is_err_and(|outage| waits(&outage)));
        }
    })
    .await;
    standby.resume();
    let found = eventually("it is stored", async || {
        sequencer.get(Position(2)).await.ok().flatten()
    })
    .await;
    assert_eq!(found, "mine");
    let followed = eventually("it is followed", async || {
        other.follow(Position(2)).next().await?.ok()
    })
    .await;
    assert_eq!(followed, (Position(2), commit("mine")));
    settle(&other, 3, &commit("next")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_commit_whose_waiting_is_cancelled_is_not_stored_until_the_standby_has_it() {
    a_commit_on_one_disk(
        |primary| primary.sql(&format!("SELECT pg_cancel_backend(pid) {WAITING}")),
        false,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_commit_whose_writer_is_terminated_is_not_stored_until_the_standby_has_it() {
    a_commit_on_one_disk(
        |primary| primary.sql(&format!("SELECT pg_terminate_backend(pid) {WAITING}")),
        true,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_commit_that_waited_at_a_crash_is_not_stored_until_the_standby_has_it() {
    a_commit_on_one_disk(Server::restart, true).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn waiting_for_a_standby_takes_no_more_connections_and_ends_by_itself() {
    let (primary, mut standby, sequencer) = waiting().await;
    for _ in 0..3 {
        let outcome = sequencer.append(Position(2), commit("mine")).await;
        assert!(outcome.as_ref().is_err_and(waits), "{outcome:?}");
        assert_eq!(sequencer.get(Position(2)).await, Ok(None));
    }
    assert_eq!(sessions(&primary), "3");
    assert_eq!(*sequencer.connections().borrow(), 1);
    standby.resume();
    settle(&sequencer, 2, &commit("mine")).await;
    settle(&sequencer, 3, &commit("next")).await;
    assert_eq!(*sequencer.connections().borrow(), 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn nothing_acknowledged_is_lost_when_the_standby_is_promoted() {
    let (mut primary, mut standby) = Server::with_standby();
    let both = Options {
        hosts: vec![
            ("127.0.0.1".to_owned(), primary.port()),
            ("127.0.0.1".to_owned(), standby.port()),
        ],
        ..options(&primary)
    };
    let (one, other) = (impatient(both.clone()).await, impatient(both.clone()).await);
    append_all(&one, 1..=100).await;
    let connections = one.connections();
    let (writing, reading) = (Arc::clone(&one), Arc::clone(&other));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writer = tokio::spawn(async move {
        let mut last = 100;
        while !*stopped.borrow() {
            last += 1;
            settle(&writing, last, &commit(format!("commit {last}"))).await;
        }
        last
    });
    primary.until("SELECT max(position) > 150 FROM prelude_bridge", "t");
    primary.kill();
    standby.promote();
    let mut connected = one.connections();
    timeout(SOON, connected.wait_for(|count| *count > 1))
        .await
        .unwrap()
        .unwrap();
    stop.send_replace(true);
    let last = timeout(SOON, writer).await.unwrap().unwrap();
    let followed = eventually("it is followed", async || {
        let count = usize::try_from(last).unwrap();
        let commits = reading
            .follow(Position(1))
            .take(count)
            .collect::<Vec<_>>()
            .await;
        commits.into_iter().collect::<Result<Vec<_>, _>>().ok()
    });
    let followed = followed.await;
    for (position, (found, text)) in (1..).zip(&followed) {
        assert_eq!(
            (found.0, text),
            (position, &commit(format!("commit {position}")))
        );
    }
    // The old primary comes back and takes writes, because nobody has told it. It is not used again.
    primary.configure("synchronous_standby_names = ''\n");
    primary.restart();
    let before = *connections.borrow();
    standby.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'prelude-bridge'");
    let mut again = one.connections();
    timeout(SOON, again.wait_for(|count| *count > before))
        .await
        .unwrap()
        .unwrap();
    append_all(&one, last + 1..=last + 9).await;
    let stored = standby.ask("SELECT max(position) FROM prelude_bridge");
    assert_eq!(stored, (last + 9).to_string());
    assert_eq!(sessions(&primary), "0");
    // Also a bridge that starts now, and has seen nothing of it.
    let fresh = impatient(both).await;
    assert_eq!(fresh.ends().await.unwrap(), ends(1, last + 9));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn of_several_hosts_the_primary_is_used_and_a_standby_alone_is_none() {
    let (primary, standby) = Server::with_standby();
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let host = |port| ("127.0.0.1".to_owned(), port);
    let with = |hosts| Options {
        hosts,
        ..options(&primary)
    };
    let hosts = vec![host(closed), host(standby.port()), host(primary.port())];
    let opened = open(Options {
        require_standby: true,
        ..with(hosts)
    })
    .await
    .unwrap();
    assert_eq!(opened.warnings, [""; 0]);
    append_all(&opened.sequencer, 1..=1).await;
    assert_eq!(
        (sessions(&primary), sessions(&standby)),
        ("3".to_owned(), "0".to_owned())
    );
    let error = refused(with(vec![host(standby.port()), host(closed)])).await;
    let OpenError::Unreachable(why) = error else {
        panic!("{error}")
    };
    assert!(
        why.contains("no primary: ") && why.contains("is a standby") && why.contains("refused"),
        "{why}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_standby_that_is_not_there_is_a_warning_and_no_hang() {
    let (primary, mut standby) = Server::with_standby();
    append_all(&*impatient(options(&primary)).await, 1..=1).await;
    standby.kill();
    let gone = "SELECT count(*) FROM pg_stat_replication";
    eventually("the standby is gone", async || {
        (primary.ask(gone) == "0").then_some(())
    })
    .await;
    let opened = open_impatiently(options(&primary)).await.unwrap();
    assert!(opened.warnings.len() == 1 && opened.warnings[0].contains("no standby is connected"));
    // Also where the table is to be created, which waits for the standby too.
    let other = Options {
        table: "other".to_owned(),
        ..options(&primary)
    };
    let error = refused(other).await;
    assert!(
        matches!(&error, OpenError::Unreachable(why) if why.contains("synchronous_standby_names")),
        "{error}"
    );
}

/// What `synchronous_standby_names` is on a server, from now on.
fn require(server: &mut Server, standbys: &str) {
    server.sql(&format!(
        "ALTER SYSTEM SET synchronous_standby_names = '{standbys}'"
    ));
    server.reload();
    server.until("SHOW synchronous_standby_names", standbys);
}

fn is_without_standby(outage: &Outage) -> bool {
    matches!(outage, Outage::Unavailable(why)
        if why.contains("there is no synchronous standby") && why.contains("ALTER SYSTEM SET"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_primary_that_took_over_without_a_standby_takes_nothing_until_it_has_one() {
    let (mut primary, mut standby) = Server::with_standby();
    let both = Options {
        hosts: vec![
            ("127.0.0.1".to_owned(), primary.port()),
            ("127.0.0.1".to_owned(), standby.port()),
        ],
        require_standby: true,
        ..options(&primary)
    };
    let sequencer = impatient(both.clone()).await;
    append_all(&sequencer, 1..=3).await;
    // Emptied under the bridge, as somebody may do while the standby is repaired.
    require(&mut primary, "");
    let refused_append = async |position| {
        eventually("it takes nothing", async || {
            let outcome = sequencer.append(Position(position), commit("mine")).await;
            assert!(!matches!(outcome, Err(Outage::Unusable(_))), "{outcome:?}");
            outcome
                .is_err_and(|outage| is_without_standby(&outage))
                .then_some(())
        })
        .await;
    };
    let last = primary
        .ask("SELECT max(position) FROM prelude_bridge")
        .parse::<u64>()
        .unwrap();
    refused_append(last + 1).await;
    let said = eventually("a reader is told", async || {
        sequencer.follow(Position(last + 1)).next().await?.err()
    })
    .await;
    assert!(is_without_standby(&said), "{said}");
    require(&mut primary, "ANY 1 (*)");
    let last = primary
        .ask("SELECT max(position) FROM prelude_bridge")
        .parse::<u64>()
        .unwrap();
    append_all(&sequencer, last + 1..=last + 3).await;
    let last = last + 3;
    // A failover: the new primary has no standby yet.
    primary.kill();
    standby.promote();
    require(&mut standby, "");
    refused_append(last + 1).await;
    let why = match refused(both).await {
        OpenError::Unusable(why) => why,
        other => panic!("{other:?}"),
    };
    assert!(why.contains("one is required"), "a start is refused: {why}");
    assert_eq!(
        standby.ask("SELECT max(position) FROM prelude_bridge"),
        last.to_string()
    );
    require(&mut standby, "ANY 1 (*)");
    eventually("the outage is another one", async || {
        let outcome = sequencer.append(Position(last + 1), commit("mine")).await;
        let outage = outcome.err()?;
        (!is_without_standby(&outage)).then_some(())
    })
    .await;
}
