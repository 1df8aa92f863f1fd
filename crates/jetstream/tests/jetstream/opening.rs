//! What is refused and warned of when a stream is opened, each with what mends it.

use std::time::Duration;

use prelude_bridge_jetstream::{
    Login, OpenError, Options, open,
    testing::{Config, Nats},
};
use prelude_bridge_log::sequencer::Sequencer as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::support::{DAY, STREAM, api, commit, contains, options, refused, settle};

#[tokio::test]
#[ignore = "needs tools"]
async fn a_stream_is_created_as_the_promises_need_it_and_found_again() {
    let nats = Nats::start(1, Config::default()).await;
    let opened = open(options(&nats, 1)).await.unwrap();
    let info = api(&nats, "STREAM.INFO.prelude-bridge", json!(null)).await;
    let config = &info["config"];
    for (name, value) in [
        ("subjects", json!(["prelude-bridge.prelude-bridge.commits"])),
        ("storage", json!("file")),
        ("retention", json!("limits")),
        ("discard", json!("old")),
        ("num_replicas", json!(1)),
        ("max_bytes", json!(1 << 30)),
        ("max_age", json!(30 * 86_400 * 1_000_000_000_u64)),
        ("deny_delete", json!(true)),
        ("deny_purge", json!(true)),
        ("allow_direct", json!(true)),
        ("max_msgs", json!(-1)),
        ("max_msg_size", json!(-1)),
    ] {
        assert_eq!(config[name], value, "{name}");
    }
    assert_eq!(
        info["state"]["messages"], 0,
        "trying out leaves nothing behind"
    );
    contains(
        opened.warnings.join("\n"),
        &["one replica", "sync_interval"],
    );
    settle(&opened.sequencer, 1, &commit(1)).await;
    let again = open(options(&nats, 1)).await.unwrap();
    assert_eq!(
        again
            .sequencer
            .get(prelude_bridge_log::sequencer::Position(1))
            .await,
        Ok(Some(commit(1)))
    );
}

#[tokio::test]
#[ignore = "needs tools"]
async fn three_replicas_give_no_warning_and_two_bridges_create_one_stream() {
    let nats = Nats::start(3, Config::default()).await;
    let (one, other) = tokio::join!(open(options(&nats, 3)), open(options(&nats, 3)));
    assert_eq!(
        (one.unwrap().warnings, other.unwrap().warnings),
        (vec![], vec![])
    );
}

#[tokio::test]
#[ignore = "needs tools"]
async fn settings_that_break_a_promise_are_refused_with_what_mends_them() {
    let nats = Nats::start(1, Config::default()).await;
    let subject = "prelude-bridge.prelude-bridge.commits";
    let hours = 3_600_000_000_000_u64;
    for (changes, said) in [
        (
            json!({ "subjects": [subject, "more"] }),
            "--subjects=prelude-bridge.prelude-bridge.commits",
        ),
        (json!({ "storage": "memory" }), "memory"),
        (json!({ "discard": "new" }), "--discard=old"),
        (json!({ "max_age": 359 * hours }), "--max-age=360h"),
        (json!({ "max_msgs": 1000 }), "--max-msgs=-1"),
        (
            json!({ "max_msgs_per_subject": 1000 }),
            "--max-msgs-per-subject=-1",
        ),
        (json!({ "max_consumers": 10 }), "max_consumers"),
        (
            json!({ "max_msg_size": (4 << 20) - 1 }),
            "--max-msg-size=-1",
        ),
        (json!({ "max_bytes": (4 << 20) - 1 }), "--max-bytes=-1"),
        (json!({ "retention": "interest" }), "interest"),
        (
            json!({ "sources": [{ "name": "other" }] }),
            "mirror, sources",
        ),
        (
            json!({ "subject_transform": { "src": subject, "dest": "b" } }),
            "--no-transform",
        ),
        (json!({ "no_ack": true }), "--ack"),
        (json!({ "allow_rollup_hdrs": true }), "--no-allow-rollup"),
        (json!({ "allow_msg_ttl": true }), "allow_msg_ttl"),
        (json!({ "persist_mode": "async" }), "persist_mode"),
    ] {
        let mut config = json!({
            "name": STREAM, "subjects": [subject], "storage": "file", "retention": "limits",
            "discard": "old", "num_replicas": 1,
        });
        config
            .as_object_mut()
            .unwrap()
            .extend(changes.as_object().unwrap().clone());
        let created = api(&nats, "STREAM.CREATE.prelude-bridge", config).await;
        assert!(created.get("error").is_none(), "{changes}: {created}");
        let error = refused(options(&nats, 1)).await;
        match &error {
            OpenError::Stream { problems, .. } => {
                assert_eq!(problems.len(), 1, "{changes}: {problems:?}");
            }
            other => panic!("{changes}: {other}"),
        }
        contains(error, &["the stream prelude-bridge cannot be used", said]);
        api(&nats, "STREAM.DELETE.prelude-bridge", json!(null)).await;
    }
}

#[tokio::test]
#[ignore = "needs tools"]
async fn what_can_be_seen_but_not_judged_is_a_warning() {
    let nats = Nats::start(1, Config::default()).await;
    let warned = async |changes: Value, options: Options| {
        let mut config = json!({
            "name": STREAM, "subjects": ["prelude-bridge.prelude-bridge.commits"], "storage": "file",
            "num_replicas": 1, "max_bytes": 1 << 30, "max_age": 30 * 86_400 * 1_000_000_000_u64,
            "deny_delete": true, "deny_purge": true,
        });
        config
            .as_object_mut()
            .unwrap()
            .extend(changes.as_object().unwrap().clone());
        let created = api(&nats, "STREAM.CREATE.prelude-bridge", config).await;
        assert!(created.get("error").is_none(), "{changes}: {created}");
        let warnings = open(options).await.unwrap().warnings;
        api(&nats, "STREAM.DELETE.prelude-bridge", json!(null)).await;
        warnings
    };
    let usual = || options(&nats, 1);
    assert_eq!(
        warned(json!({}), usual()).await.len(),
        1,
        "only the one replica"
    );
    for (changes, said) in [
        (json!({ "deny_purge": false }), "--deny-purge"),
        (json!({ "deny_delete": false }), "--deny-delete"),
        (json!({ "max_age": 0 }), "max_age unlimited"),
        (
            json!({ "republish": { "src": ">", "dest": "copy.>" } }),
            "republishes",
        ),
    ] {
        let warnings = warned(changes, usual()).await;
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        contains(warnings.join("\n"), &[said]);
    }
    let unlimited = Options {
        retention_bytes: 0,
        ..usual()
    };
    contains(
        warned(json!({ "max_bytes": -1 }), unlimited)
            .await
            .join("\n"),
        &["no limit of bytes"],
    );
}

#[tokio::test]
#[ignore = "needs tools"]
async fn replicas_need_servers() {
    let nats = Nats::start(1, Config::default()).await;
    let error = refused(options(&nats, 3)).await;
    assert!(matches!(error, OpenError::Create { .. }), "{error}");
    contains(error, &["cluster", "replica"]);
    open(options(&nats, 1)).await.unwrap();
    let error = refused(options(&nats, 3)).await;
    assert!(matches!(error, OpenError::Stream { .. }), "{error}");
    contains(error, &["1 replicas of 3", "--replicas=3"]);
    drop(nats);
    let nats = Nats::start(3, Config::default()).await;
    contains(
        refused(options(&nats, 5)).await,
        &["fewer servers", "error 10005"],
    );
}

#[tokio::test]
#[ignore = "needs tools"]
async fn servers_without_what_is_needed_are_refused() {
    let small = Nats::start(
        1,
        Config {
            max_payload: (4 << 20) - 1,
            ..Config::default()
        },
    )
    .await;
    let error = refused(options(&small, 1)).await;
    assert!(matches!(error, OpenError::Server(_)), "{error}");
    contains(error, &["max_payload: 8MB"]);
    let just = Nats::start(
        1,
        Config {
            max_payload: 4 << 20,
            ..Config::default()
        },
    )
    .await;
    open(options(&just, 1)).await.unwrap();
    let without = Nats::start(
        1,
        Config {
            jetstream: None,
            ..Config::default()
        },
    )
    .await;
    let error = refused(options(&without, 1)).await;
    assert!(matches!(error, OpenError::NoJetStream(_)), "{error}");
    contains(error, &["sync_interval: always"]);
    let tiny = Config {
        jetstream: Some("max_file_store: 64MB".to_owned()),
        ..Config::default()
    };
    let tiny = Nats::start(1, tiny).await;
    let error = refused(options(&tiny, 1)).await;
    assert!(matches!(error, OpenError::Create { .. }), "{error}");
    contains(error, &["max_file_store"]);
}

#[tokio::test]
#[ignore = "needs tools"]
async fn nobody_there_is_told_after_a_bounded_time() {
    let nats = Nats::start(1, Config::default()).await;
    nats.kill(0);
    let begin = std::time::Instant::now();
    let error = refused(options(&nats, 1)).await;
    assert!(matches!(error, OpenError::Connect { .. }), "{error}");
    contains(error, &["127.0.0.1", "check the addresses"]);
    assert!(begin.elapsed() < Duration::from_secs(30));
    // One of two is enough.
    nats.restart(0);
    nats.ready().await;
    let mut both = options(&nats, 1);
    both.servers.insert(0, "nats://127.0.0.1:1".to_owned());
    open(both).await.unwrap();
}

#[tokio::test]
#[ignore = "needs tools"]
async fn too_short_a_retention_is_not_created() {
    let nats = Nats::start(1, Config::default()).await;
    let short = Options {
        retention_age: 15 * DAY - Duration::from_secs(1),
        ..options(&nats, 1)
    };
    let error = refused(short).await;
    assert!(matches!(error, OpenError::Create { .. }), "{error}");
    contains(error, &["ids", "15 days"]);
    let just = Options {
        retention_age: 15 * DAY,
        ..options(&nats, 1)
    };
    open(just).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let info = json!({ "server_name": "old", "version": "2.13.9", "headers": true, "max_payload": 8 << 20 });
                let mut said = format!("INFO {info}\r\n");
                let mut heard = [0; 4096];
                // CONNECT and PING.
                while connection.write_all(said.as_bytes()).await.is_ok()
                    && connection
                        .read(&mut heard)
                        .await
                        .is_ok_and(|bytes| bytes > 0)
                {
                    "PONG\r\n".clone_into(&mut said);
                }
            });
        }
    });
    let error = refused(Options {
        servers: vec![url],
        stream: STREAM.to_owned(),
        replicas: 1,
        login: Login::None,
        tls: None,
        retention_age: 30 * DAY,
        retention_bytes: 0,
        create: true,
        ids_age: 15 * DAY,
    })
    .await;
    assert!(matches!(error, OpenError::Server(_)), "{error}");
    contains(
        error,
        &[
            "the server old",
            "version 2.13.9, and 2.14 is needed",
            "upgrade",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_stream_that_is_missing_and_not_to_be_created_is_refused() {
    let nats = Nats::start(1, Config::default()).await;
    let reader = || Options {
        create: false,
        ..options(&nats, 1)
    };
    contains(
        refused(reader()).await,
        &["NATS has no stream prelude-bridge: check its name"],
    );
    contains(refused(reader()).await, &["NATS has no stream"]);
    open(options(&nats, 1)).await.unwrap();
    open(reader()).await.unwrap();
}
