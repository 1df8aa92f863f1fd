//! Crashes, silence, cut connections, full disks, and a table that is gone: nothing acknowledged is lost,
//! nothing hangs, and what is in doubt is settled by what is at the position.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::*;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn what_was_acknowledged_before_a_crash_is_there_after_it() {
    let mut server = Server::start();
    let done = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..2 {
        let (sequencer, done) = (sequencer(&server).await, Arc::clone(&done));
        writers.spawn(async move {
            let (mut won, mut last) = (Vec::new(), 0);
            while !done.load(Ordering::Relaxed) {
                let position = Position(last + 1);
                let mine = commit(format!("{writer} at {position}"));
                let outcome = sequencer.append(position, mine.clone()).await;
                match sequencer.get(position).await {
                    Ok(Some(found)) => {
                        assert!(outcome != Ok(Outcome::Won) || found == mine);
                        if found == mine {
                            won.push((position.0, mine));
                        }
                        last += 1;
                    }
                    Ok(None) => assert_ne!(outcome, Ok(Outcome::Won), "{position} is lost"),
                    // Not settled: whoever was told Won keeps that.
                    Err(_) if outcome == Ok(Outcome::Won) => {
                        won.push((position.0, mine));
                        last += 1;
                    }
                    Err(_) => sleep(LOOK).await,
                }
            }
            assert!(*sequencer.connections().borrow() > 1, "it noticed no crash");
            won
        });
    }
    for crash in 1..=3 {
        let many = format!("SELECT count(*) > {} FROM prelude_bridge", crash * 100);
        server.until(&many, "t");
        server.restart();
    }
    server.until("SELECT count(*) > 400 FROM prelude_bridge", "t");
    done.store(true, Ordering::Relaxed);
    let mut won = Vec::new();
    while let Some(writer) = writers.join_next().await {
        won.extend(writer.unwrap());
    }
    won.sort();
    let stored = collect(&*sequencer(&server).await, 1, won.len()).await;
    assert_eq!(stored, won);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_server_that_is_silent_is_given_up_and_found_again() {
    let mut server = Server::start();
    let sequencer = impatient(options(&server)).await;
    append_all(&sequencer, 1..=3).await;
    let mut following = sequencer.follow(Position(4));
    server.pause();
    let (append, get, end, ends_, trim) = timeout(SOON, async {
        tokio::join!(
            sequencer.append(Position(4), commit("commit 4")),
            sequencer.get(Position(3)),
            following.next(),
            sequencer.ends(),
            sequencer.trim(Position(2)),
        )
    })
    .await
    .unwrap();
    let passes =
        |outage: &Outage| matches!(outage, Outage::Unavailable(_) | Outage::Disconnected(_));
    assert!(append.is_err_and(|outage| passes(&outage)));
    assert!(get.is_err_and(|outage| passes(&outage)));
    assert!(end.unwrap().is_err_and(|outage| passes(&outage)));
    assert!(ends_.is_err_and(|outage| passes(&outage)));
    assert!(trim.is_err_and(|outage| passes(&outage)));
    // Now that the connections are given up, calls say why there are none.
    eventually("given up", async || {
        match sequencer.get(Position(1)).await {
            Err(Outage::Disconnected(why)) if why.contains("no primary") => Some(()),
            _ => None,
        }
    })
    .await;
    server.resume();
    append_all(&sequencer, 4..=5).await;
    assert_eq!(collect(&sequencer, 1, 5).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn connections_that_are_cut_are_made_again() {
    let server = Server::start();
    let sequencer = sequencer(&server).await;
    let mut connections = sequencer.connections();
    assert_eq!(*connections.borrow(), 1);
    for round in 1..=3 {
        append_all(&sequencer, round..=round).await;
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'prelude-bridge'");
        timeout(SOON, connections.wait_for(|count| *count == round + 1))
            .await
            .unwrap()
            .unwrap();
    }
    assert_eq!(sequencer.ends().await.unwrap(), ends(1, 3));
    eventually("no connection is left behind", async || {
        (sessions(&server) == "3").then_some(())
    })
    .await;
    drop((sequencer, connections));
    eventually("all are closed", async || {
        (sessions(&server) == "0").then_some(())
    })
    .await;
}

/// Passes bytes on to a server, until it is told to keep the server's answers, and then to cut.
struct Proxy {
    port: u16,
    mute: Arc<AtomicBool>,
    connections: Arc<std::sync::Mutex<JoinSet<()>>>,
}

impl Proxy {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            port: listener.local_addr().unwrap().port(),
            mute: Arc::default(),
            connections: Arc::default(),
        };
        let (mute, connections) = (Arc::clone(&proxy.mute), Arc::clone(&proxy.connections));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mute = Arc::clone(&mute);
                let passing = async move {
                    let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let up = async { tokio::io::copy(&mut from_client, &mut to_server).await.ok() };
                    let down = async {
                        let mut buffer = vec![0; 65536];
                        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
                            if !mute.load(Ordering::Relaxed)
                                && to_client.write_all(&buffer[..read]).await.is_err()
                            {
                                return;
                            }
                        }
                    };
                    tokio::select! { _ = up => {} () = down => {} }
                };
                connections.lock().unwrap().spawn(passing);
            }
        });
        proxy
    }

    fn cut(&self) {
        self.connections.lock().unwrap().abort_all();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_commit_whose_answer_is_lost_is_found_at_its_position() {
    let server = Server::start();
    let proxy = Proxy::start(server.port()).await;
    let through = Options {
        hosts: vec![("127.0.0.1".to_owned(), proxy.port)],
        ..options(&server)
    };
    let sequencer = sequencer_of(through).await;
    proxy.mute.store(true, Ordering::Relaxed);
    let appending = Arc::clone(&sequencer);
    let appended = tokio::spawn(async move { appending.append(Position(1), commit("mine")).await });
    let stored = "SELECT count(*) FROM prelude_bridge";
    eventually("it is stored", async || {
        (server.ask(stored) == "1").then_some(())
    })
    .await;
    proxy.cut();
    let outcome = timeout(SOON, appended).await.unwrap().unwrap();
    assert!(
        matches!(outcome, Err(Outage::Disconnected(_))),
        "{outcome:?}"
    );
    proxy.mute.store(false, Ordering::Relaxed);
    let found = eventually("it is found", async || {
        sequencer.get(Position(1)).await.ok().flatten()
    })
    .await;
    assert_eq!(found, "mine");
    assert_eq!(
        sequencer.append(Position(1), commit("mine")).await,
        Ok(Outcome::Refused)
    );
}

async fn sequencer_of(options: Options) -> Arc<Postgres> {
    open(options).await.unwrap().sequencer
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_table_that_is_dropped_is_not_created_a_second_time() {
    let server = Server::start();
    let sequencer = sequencer(&server).await;
    append_all(&sequencer, 1..=2).await;
    server.sql("DROP TABLE prelude_bridge");
    let outage = sequencer
        .append(Position(3), commit("x"))
        .await
        .unwrap_err();
    assert!(
        matches!(&outage, Outage::Unusable(why) if why.contains("backup")),
        "{outage}"
    );
    let outage = sequencer.ends().await.unwrap_err();
    assert!(matches!(outage, Outage::Unusable(_)), "{outage}");
    // Also not over another connection.
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'prelude-bridge'");
    let why = eventually("it is gone", async || match sequencer.ends().await {
        Err(Outage::Unusable(why)) if why.contains("is gone") => Some(why),
        _ => None,
    });
    assert!(why.await.contains("restore it from a backup"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_privilege_that_is_revoked_is_named() {
    let server = Server::start();
    drop(sequencer(&server).await);
    server.sql("CREATE ROLE writer LOGIN");
    server.sql("GRANT SELECT, INSERT, DELETE ON prelude_bridge TO writer");
    let sequencer = sequencer_of(Options {
        user: "writer".to_owned(),
        ..options(&server)
    })
    .await;
    append_all(&sequencer, 1..=1).await;
    server.sql("REVOKE INSERT ON prelude_bridge FROM writer");
    let outage = sequencer
        .append(Position(2), commit("secret"))
        .await
        .unwrap_err();
    let Outage::Unusable(why) = outage else {
        panic!("{outage}")
    };
    assert!(
        why.contains("42501") && why.contains("docs/postgresql.md"),
        "{why}"
    );
    assert!(!why.contains("secret"), "{why}");
    server.sql("GRANT INSERT ON prelude_bridge TO writer");
    assert_eq!(
        sequencer.append(Position(2), commit("x")).await,
        Ok(Outcome::Won)
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_setting_that_breaks_a_promise_is_refused_also_while_it_runs() {
    let server = Server::start();
    let sequencer = sequencer(&server).await;
    append_all(&sequencer, 1..=1).await;
    let set = |statement: &str| {
        server.sql(statement);
        server.sql("SELECT pg_reload_conf()");
    };
    set("ALTER SYSTEM SET fsync = off");
    let why = eventually("it is refused", async || {
        match sequencer.append(Position(9), commit("x")).await {
            Err(Outage::Unusable(why)) => Some(why),
            _ => None,
        }
    });
    assert!(why.await.contains("ALTER SYSTEM SET fsync = on"));
    set("ALTER SYSTEM RESET fsync");
    append_all(&sequencer, 2..=2).await;
}

/// A small file system, where the tests may make one.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: std::path::PathBuf, options: &str) -> Option<Self> {
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&path)
            .output();
        mount.ok()?.status.success().then_some(Self(path))
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(
            Command::new("mount")
                .args(["-o", &options])
                .arg(&self.0)
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_full_disk_is_told_as_full_and_passes_when_there_is_room() {
    let server = Server::start();
    let space = server.directory().join("space");
    std::fs::create_dir(&space).unwrap();
    let owner = "size=4m,mode=0700,uid=postgres,gid=postgres";
    let Some(disk) = SmallDisk::mount(space.clone(), owner) else {
        eprintln!("not tested: only root can mount a small file system");
        return;
    };
    server.sql(&format!(
        "CREATE TABLESPACE small LOCATION '{}'",
        space.display()
    ));
    server.sql("ALTER ROLE bridge SET default_tablespace = small");
    let sequencer = sequencer(&server).await;
    let piece = Bytes::from(vec![7; 512 << 10]);
    let mut position = 0;
    let outage = loop {
        position += 1;
        assert!(position < 20, "4 MiB are never full");
        match sequencer.append(Position(position), piece.clone()).await {
            Ok(outcome) => assert_eq!(outcome, Outcome::Won),
            Err(outage) => break outage,
        }
    };
    assert!(
        matches!(&outage, Outage::Full(why) if why.contains("53100")),
        "{outage}"
    );
    assert_eq!(sequencer.get(Position(position)).await.unwrap(), None);
    disk.resize("64m");
    assert_eq!(
        sequencer.append(Position(position), piece).await,
        Ok(Outcome::Won)
    );
    drop(sequencer);
    drop(server);
}
