//! What is refused at a start, and what is a warning.

use std::net::TcpListener;

use prelude_bridge_postgres::Secret;

use super::*;

async fn words(options: Options) -> String {
    match refused(options).await {
        OpenError::Unusable(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_host_that_does_not_answer_is_unreachable() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let open = |port: u16| refused(local(port));
    let error = timeout(SOON, open(silent.local_addr().unwrap().port()))
        .await
        .unwrap();
    assert!(
        matches!(&error, OpenError::Unreachable(why) if why.contains("no answer within")),
        "{error}"
    );
    let port = silent.local_addr().unwrap().port();
    drop(silent);
    let error = open(port).await;
    assert!(
        matches!(&error, OpenError::Unreachable(why) if why.contains("refused")),
        "{error}"
    );
    let nowhere = Options {
        hosts: vec![("host.invalid".to_owned(), 5432)],
        ..local(1)
    };
    assert!(matches!(refused(nowhere).await, OpenError::Unreachable(_)));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_table_that_is_not_ours_is_refused() {
    let server = Server::start();
    let ours = "COMMENT ON TABLE t IS 'prelude-bridge log, version 1'";
    let columns = "position bigint PRIMARY KEY, at timestamptz, commit bytea";
    for (statements, expected) in [
        (
            vec![format!("CREATE TABLE t ({columns})")],
            "has the comment \"\"",
        ),
        (
            vec![
                format!("CREATE TABLE t ({columns})"),
                "COMMENT ON TABLE t IS 'prelude-bridge log, version 2'".to_owned(),
            ],
            "run the version that it belongs to",
        ),
        (
            vec![
                format!("CREATE UNLOGGED TABLE t ({columns})"),
                ours.to_owned(),
            ],
            "ALTER TABLE t SET LOGGED",
        ),
        (
            vec![
                "CREATE TABLE t (position bigint PRIMARY KEY, commit bytea)".to_owned(),
                ours.to_owned(),
            ],
            "has the columns \"commit bytea, position bigint\"",
        ),
    ] {
        for statement in &statements {
            server.sql(statement);
        }
        let with = Options {
            table: "t".to_owned(),
            ..options(&server)
        };
        let why = words(with).await;
        assert!(why.contains(expected), "{why}");
        server.sql("DROP TABLE t");
    }
    // A name that is none never gets to a server.
    let error = refused(Options {
        table: "T".to_owned(),
        ..options(&server)
    })
    .await;
    assert!(matches!(error, OpenError::Options(_)));
    // Without the key there would be no fence.
    server.sql("CREATE TABLE t (position bigint, at timestamptz DEFAULT now(), commit bytea)");
    server.sql(ours);
    let with = || Options {
        table: "t".to_owned(),
        ..options(&server)
    };
    let why = words(with()).await;
    assert!(
        why.contains("ALTER TABLE t ADD PRIMARY KEY (position)"),
        "{why}"
    );
    // A key that is dropped later is missed by the first append.
    server.sql("ALTER TABLE t ADD PRIMARY KEY (position)");
    let sequencer = open(with()).await.unwrap().sequencer;
    append_all(&sequencer, 1..=1).await;
    server.sql("ALTER TABLE t DROP CONSTRAINT t_pkey");
    let outage = sequencer
        .append(Position(2), commit("x"))
        .await
        .unwrap_err();
    assert!(
        matches!(&outage, Outage::Unusable(why) if why.contains("no primary key")),
        "{outage}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_role_that_lacks_something_is_told_what() {
    let mut server = Server::start();
    server.sql("CREATE ROLE writer LOGIN PASSWORD 'canary-42'");
    server.sql("CREATE SCHEMA events");
    server.authenticate(
        "host all writer 127.0.0.1/32 scram-sha-256\nhost all nobody 127.0.0.1/32 reject",
    );
    server.reload();
    let writer = |password: Option<&str>| Options {
        user: "writer".to_owned(),
        password: password.map(Secret::new),
        ..options(&server)
    };
    let why = words(writer(None)).await;
    assert!(why.contains("asks for a password"), "{why}");
    let why = words(writer(Some("canary-43"))).await;
    assert!(
        why.contains("check user and password") && !why.contains("canary"),
        "{why}"
    );
    let why = words(Options {
        user: "nobody".to_owned(),
        ..options(&server)
    })
    .await;
    assert!(why.contains("pg_hba.conf"), "{why}");
    let right = || writer(Some("canary-42"));
    let why = words(Options {
        database: "missing".to_owned(),
        ..right()
    })
    .await;
    assert!(why.contains("create the database first"), "{why}");
    // Since version 15 a role may create nothing in the schema public.
    let why = words(right()).await;
    assert!(
        why.contains("cannot create it") && why.contains("docs/postgresql.md"),
        "{why}"
    );
    let elsewhere = || Options {
        table: "events.log".to_owned(),
        ..right()
    };
    let why = words(elsewhere()).await;
    assert!(
        why.contains("schema events") && why.contains("docs/postgresql.md"),
        "{why}"
    );
    server.sql("GRANT USAGE, CREATE ON SCHEMA events TO writer");
    let opened = open(elsewhere()).await.unwrap();
    append_all(&opened.sequencer, 1..=3).await;
    assert_eq!(collect(&opened.sequencer, 1, 3).await.len(), 3);
    assert!(!opened.sequencer.name().contains("canary"));
    assert_eq!(server.ask("SELECT count(*) FROM events.log"), "3");
    // A table that its owner made, and grants that are missing.
    drop(sequencer(&server).await);
    server.sql("GRANT SELECT ON prelude_bridge TO writer");
    let why = words(right()).await;
    assert!(
        why.contains("GRANT INSERT, DELETE ON prelude_bridge TO writer"),
        "{why}"
    );
    server.sql("GRANT INSERT, DELETE ON prelude_bridge TO writer");
    append_all(&open(right()).await.unwrap().sequencer, 1..=1).await;
    // Whatever a role is set to, a session is what it has to be.
    for setting in [
        "synchronous_commit = off",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_read_only = on",
        "statement_timeout = '1ms'",
        "client_min_messages = 'error'",
    ] {
        server.sql(&format!("ALTER ROLE writer SET {setting}"));
    }
    append_all(&open(right()).await.unwrap().sequencer, 2..=9).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_server_that_breaks_a_promise_is_refused_and_one_that_may_is_a_warning() {
    let mut server = Server::with_settings("data_sync_retry = on");
    let opened = open(options(&server)).await.unwrap();
    let said = opened.warnings.join("\n");
    assert!(opened.warnings.len() == 2, "{said}");
    assert!(
        said.contains("synchronous_standby_names is empty") && said.contains("data_sync_retry"),
        "{said}"
    );
    drop(opened);
    let why = words(Options {
        require_standby: true,
        ..options(&server)
    })
    .await;
    assert!(why.contains("one is required"), "{why}");
    for (setting, value, remedy) in [
        ("fsync", "off", "SET fsync = on"),
        ("full_page_writes", "off", "SET full_page_writes = on"),
    ] {
        server.sql(&format!("ALTER SYSTEM SET {setting} = {value}"));
        server.reload();
        server.until(&format!("SHOW {setting}"), value);
        let why = words(options(&server)).await;
        assert!(why.contains(remedy), "{why}");
        server.sql(&format!("ALTER SYSTEM RESET {setting}"));
        server.reload();
        server.until(&format!("SHOW {setting}"), "on");
    }
    for statement in ["log_statement = 'all'", "log_min_duration_statement = 100"] {
        server.sql(&format!("ALTER ROLE bridge SET {statement}"));
        let said = open(options(&server)).await.unwrap().warnings.join("\n");
        assert!(said.contains("SET log_parameter_max_length = 0"), "{said}");
        server.sql("ALTER ROLE bridge SET log_parameter_max_length = 0");
        let said = open(options(&server)).await.unwrap().warnings.join("\n");
        assert!(!said.contains("log_parameter_max_length"), "{said}");
        server.sql("ALTER ROLE bridge RESET ALL");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn several_bridges_may_create_the_table_at_the_same_time() {
    let server = Server::start();
    let opening: Vec<_> = (0..6)
        .map(|_| tokio::spawn(open(options(&server))))
        .collect();
    let mut sequencers = Vec::new();
    for opened in opening {
        sequencers.push(opened.await.unwrap().unwrap().sequencer);
    }
    for (position, sequencer) in (1..).zip(&sequencers) {
        append_all(sequencer, position..=position).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_table_that_is_missing_and_not_to_be_created_is_refused() {
    let server = Server::start();
    let reader = || Options {
        create: false,
        ..options(&server)
    };
    let why = words(reader()).await;
    assert!(
        why.contains("there is no table prelude_bridge: check its name"),
        "{why}"
    );
    assert_eq!(
        server.ask("SELECT count(*) FROM pg_tables WHERE tablename = 'prelude_bridge'"),
        "0"
    );
    append_all(&*sequencer(&server).await, 1..=2).await;
    let found = open(reader()).await.unwrap().sequencer;
    assert_eq!(found.ends().await.unwrap(), ends(1, 2));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_password_that_is_changed_is_read_again_at_the_next_connection() {
    let mut server = Server::start();
    server.sql("CREATE ROLE writer LOGIN SUPERUSER PASSWORD 'canary-1'");
    server.authenticate("host all writer 127.0.0.1/32 scram-sha-256");
    server.reload();
    let secret = Arc::new(std::sync::Mutex::new("canary-1".to_owned()));
    let read = Arc::clone(&secret);
    let writer = Options {
        user: "writer".to_owned(),
        password: Some(Secret::read_by(move || Ok(read.lock().unwrap().clone()))),
        ..options(&server)
    };
    let sequencer = open(writer).await.unwrap().sequencer;
    append_all(&sequencer, 1..=1).await;
    server.sql("ALTER ROLE writer PASSWORD 'canary-2'");
    append_all(&sequencer, 2..=2).await;
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'writer'");
    // It waits for the new one, and does not end.
    let said = eventually("the login is refused", async || {
        let outage = sequencer
            .append(Position(3), commit("commit 3"))
            .await
            .err()?;
        assert!(!matches!(outage, Outage::Unusable(_)), "{outage}");
        let said = outage.to_string();
        said.contains("check user and password").then_some(said)
    })
    .await;
    assert!(!said.contains("canary"), "{said}");
    *secret.lock().unwrap() = "canary-2".to_owned();
    append_all(&sequencer, 3..=3).await;
}
