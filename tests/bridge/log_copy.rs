//! `log copy` from outside: a log goes from files to NATS, to PostgreSQL and back to files, killed on each way, and
//! its subscribers and senders notice nothing. Stores that do not belong together are refused and left as they are.

use std::{
    io::Read as _,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use prelude_bridge_jetstream::testing::{Config, Nats};
use prelude_bridge_postgres::testing::Server;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use crate::{
    cli::program,
    support::{
        Bridge, SOON, Setup,
        sender::{Delivery, Sender},
        stream::{Received, after, history, reason, until_head},
    },
};

const BATCHES: usize = 60;
const BATCH: usize = 100;
const EVENTS: usize = BATCHES * BATCH;
/// So much of a copy passes before it is killed: a commit of it, and a part of the next one.
const PASSED_BYTES: usize = 1_500_000;

fn delivery(batch: usize) -> Delivery {
    Delivery::of_ids((0..BATCH).map(|n| format!("evt_{batch}_{n}")))
}

/// A bridge with a log in files that is worth copying; it runs.
async fn bridge_with_a_log() -> Bridge {
    let bridge = Setup::default().in_memory().start().await;
    let sender = Sender::to(bridge.addresses.webhook);
    for batch in 0..BATCHES {
        let counts = sender.send(&delivery(batch)).await.counts();
        assert_eq!(counts, (BATCH as u64, 0));
    }
    bridge
}

/// The sequence numbers and ids of what a bridge sends.
async fn read(bridge: &Bridge, cursor: Option<&str>) -> Vec<(u64, String)> {
    let request = cursor.map_or_else(history, |cursor| until_head(after(cursor)));
    let mut received = Received::subscribe(&mut bridge.client().await, request)
        .await
        .unwrap();
    received.end().await.unwrap();
    let events = received.events();
    events
        .map(|event| (event.sequence, event.id.clone()))
        .collect()
}

/// A store on other machines, as a file has it.
struct Store {
    directory: TempDir,
    lines: String,
}

impl Store {
    fn on_nats(address: &str) -> Self {
        Self::new(&format!("url = \"nats://{address}\"\nreplicas = 1"))
    }

    fn on_postgres(address: &str) -> Self {
        let url = format!("postgres://bridge@{address}/postgres");
        Self::new(&format!("url = \"{url}\"\nrequire_standby = false"))
    }

    fn new(lines: &str) -> Self {
        let store = Self {
            directory: TempDir::new().unwrap(),
            lines: lines.to_owned(),
        };
        let text = format!("[retention]\nbytes_max = \"1GiB\"\n[store]\n{lines}\n");
        std::fs::write(store.directory.path().join("store.toml"), text).unwrap();
        store
    }

    /// The same with another name for its stream or table.
    fn named(&self, line: &str) -> Self {
        Self::new(&format!("{}\n{line}", self.lines))
    }

    fn argument(&self, flag: &str) -> [String; 2] {
        let path = self.directory.path().join("store.toml");
        [format!("--{flag}-config"), path.display().to_string()]
    }

    /// A bridge with this store.
    fn bridge(&self) -> Setup {
        let section = format!(
            "[retention]\nbytes_max = \"1GiB\"\n[store]\n{}\n",
            self.lines
        );
        Setup::default().section(&section).in_memory()
    }
}

fn directory(flag: &str, path: &Path) -> [String; 2] {
    [format!("--{flag}"), path.display().to_string()]
}

fn copy_command(from: &[String; 2], to: &[String; 2], output: &str) -> Command {
    let mut command = program(&["log", "copy", "--output", output]);
    command.args(from).args(to);
    command
}

async fn run(mut command: Command) -> Output {
    let running = tokio::task::spawn_blocking(move || command.output().unwrap());
    tokio::time::timeout(SOON, running).await.unwrap().unwrap()
}

/// Copies to the end; the summary.
async fn copied(from: &[String; 2], to: &[String; 2]) -> Value {
    let output = run(copy_command(from, to, "json")).await;
    let said = String::from_utf8(output.stdout).unwrap();
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{failed}");
    let lines: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let summary = lines.last().unwrap();
    assert!(lines.iter().any(|line| line["phase"] == "copy"), "{said}");
    assert!(lines.iter().any(|line| line["phase"] == "verify"), "{said}");
    assert_eq!(summary["type"], "summary");
    assert_eq!(
        (&summary["events"], &summary["first_sequence"]),
        (&EVENTS.into(), &1.into())
    );
    assert_eq!(summary["sha256"].as_str().unwrap().len(), 64);
    summary.clone()
}

/// Is refused, with the exit code and the words.
async fn refused(from: &[String; 2], to: &[String; 2], code: i32, words: &[&str]) {
    let output = run(copy_command(from, to, "human")).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for words in words {
        assert!(said.contains(words), "{words}: {said}");
    }
}

/// Stands before a server, and passes only so many bytes.
struct Narrow {
    address: String,
    is_used_up: Arc<Notify>,
}

impl Narrow {
    async fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (is_used_up, passed) = (Arc::<Notify>::default(), Arc::<AtomicUsize>::default());
        let (server, used_up) = (server.to_owned(), Arc::clone(&is_used_up));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&server).await.unwrap();
                let ((near_read, near_write), (far_read, far_write)) =
                    (near.into_split(), far.into_split());
                for (mut read, mut write) in [(near_read, far_write), (far_read, near_write)] {
                    let (passed, used_up) = (Arc::clone(&passed), Arc::clone(&used_up));
                    tokio::spawn(async move {
                        let mut part = [0; 16_384];
                        while let Ok(length @ 1..) = read.read(&mut part).await {
                            if passed.fetch_add(length, Ordering::SeqCst) + length > PASSED_BYTES {
                                used_up.notify_one();
                                // Nothing more passes, and nothing is closed.
                                std::future::pending::<()>().await;
                            }
                            if write.write_all(&part[..length]).await.is_err() {
                                break;
                            }
                        }
                    });
                }
            }
        });
        Self {
            address,
            is_used_up,
        }
    }
}

/// Copies until a part has passed, and is killed then.
async fn killed(from: &[String; 2], to: &[String; 2], narrow: &Narrow) {
    let mut command = copy_command(from, to, "json");
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let used_up = tokio::time::timeout(SOON, narrow.is_used_up.notified()).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let mut said = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(used_up.is_ok(), "{said}");
    assert!(!said.contains("summary"), "{said}");
}

/// A bridge on the copy has the events, the cursors and the ids of the log that was copied, and goes on.
async fn continues(bridge: &Bridge, events: &[(u64, String)], middle: (&str, usize)) {
    assert_eq!(read(bridge, None).await, events);
    let (cursor, seen) = middle;
    assert_eq!(read(bridge, Some(cursor)).await, events[seen..]);
    let sender = Sender::to(bridge.addresses.webhook);
    for batch in [0, BATCHES / 2, BATCHES - 1] {
        let counts = sender.send(&delivery(batch).signed_anew()).await.counts();
        assert_eq!(counts, (0, BATCH as u64), "repeated deliveries are known");
    }
    let counts = sender.send(&delivery(BATCHES)).await.counts();
    assert_eq!(counts, (BATCH as u64, 0));
    let next = &read(bridge, Some(cursor)).await[events.len() - seen];
    assert_eq!(next.0, events.len() as u64 + 1);
}

async fn refuses_cursor(bridge: &Bridge, cursor: &str, because: &str) {
    let refused = Received::subscribe(&mut bridge.client().await, after(cursor)).await;
    let status = match refused {
        Err(status) => status,
        Ok(mut received) => received.next().await.unwrap_err(),
    };
    assert_eq!(reason(&status).0, because, "{status:?}");
}

/// The cursor of the newest event.
async fn head_cursor(bridge: &Bridge) -> String {
    bridge.range().await.head.unwrap().cursor
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_log_goes_from_store_to_store_though_killed_and_its_cursors_and_ids_go_with_it() {
    let mut old = bridge_with_a_log().await;
    let events = read(&old, None).await;
    assert_eq!(events.len(), EVENTS);
    let mut subscriber = Received::subscribe(&mut old.client().await, history())
        .await
        .unwrap();
    let seen = loop {
        let response = subscriber.next().await.unwrap().unwrap();
        if let Some(last) = response.events.last().filter(|last| last.sequence > 1_000) {
            break usize::try_from(last.sequence).unwrap();
        }
    };
    let cursor = subscriber.cursor().to_owned();
    assert!(seen < EVENTS);
    drop(subscriber);
    old.terminate().await;

    let nats = Nats::start(1, Config::default()).await;
    let nats_address = nats.urls().concat().replace("nats://", "");
    let postgres = Server::start();
    let postgres_address = format!("127.0.0.1:{}", postgres.port());
    let (on_nats, on_postgres) = (
        Store::on_nats(&nats_address),
        Store::on_postgres(&postgres_address),
    );
    let files = directory("from", &old.data_dir());

    let narrow = Narrow::before(&nats_address).await;
    killed(
        &files,
        &Store::on_nats(&narrow.address).argument("to"),
        &narrow,
    )
    .await;
    let to_nats = copied(&files, &on_nats.argument("to")).await;
    let before = to_nats["events_before"].as_u64().unwrap();
    assert!(
        (1..EVENTS as u64).contains(&before),
        "it goes on: {to_nats}"
    );

    let narrow = Narrow::before(&postgres_address).await;
    let through = Store::on_postgres(&narrow.address);
    killed(&on_nats.argument("from"), &through.argument("to"), &narrow).await;
    let to_postgres = copied(&on_nats.argument("from"), &on_postgres.argument("to")).await;
    let before = to_postgres["events_before"].as_u64().unwrap();
    assert!(
        (1..EVENTS as u64).contains(&before),
        "it goes on: {to_postgres}"
    );

    let mut new = Setup::default().in_memory().prepare();
    let to = directory("to", &new.data_dir());
    let narrow = Narrow::before(&postgres_address).await;
    let through = Store::on_postgres(&narrow.address);
    killed(&through.argument("from"), &to, &narrow).await;
    let to_files = copied(&on_postgres.argument("from"), &to).await;
    for name in ["log", "sha256", "bytes", "last_sequence"] {
        assert_eq!(to_nats[name], to_postgres[name], "{name}");
        assert_eq!(to_nats[name], to_files[name], "{name}");
    }

    new.restart().await;
    let of_nats = on_nats.bridge().start().await;
    let of_postgres = on_postgres.bridge().start().await;
    for bridge in [&new, &of_nats, &of_postgres] {
        continues(bridge, &events, (&cursor, seen)).await;
    }
    // Each has gone on in its own way, and so does the old one: what comes after is of another epoch.
    let of_old_ways = head_cursor(&of_nats).await;
    refuses_cursor(&of_postgres, &of_old_ways, "CURSOR_EPOCH_MISMATCH").await;
    old.restart().await;
    let sender = Sender::to(old.addresses.webhook);
    sender.send(&delivery(BATCHES + 1)).await.counts();
    let of_old = head_cursor(&old).await;
    for bridge in [&new, &of_nats, &of_postgres] {
        refuses_cursor(bridge, &of_old, "CURSOR_EPOCH_MISMATCH").await;
    }
    let stranger = Bridge::start().await;
    stranger
        .append(&[crate::support::item("evt_1", "user.created", "usr_1")])
        .await;
    let foreign = head_cursor(&stranger).await;
    refuses_cursor(&of_nats, &foreign, "CURSOR_EPOCH_MISMATCH").await;
    for bridge in [new, of_nats, of_postgres, old, stranger] {
        bridge.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn stores_that_are_missing_or_taken_are_refused_and_left_as_they_are() {
    let mut one = Bridge::start().await;
    let mut other = Bridge::start().await;
    for (bridge, id) in [(&one, "evt_1"), (&other, "evt_2")] {
        bridge
            .append(&[crate::support::item(id, "user.created", "usr_1")])
            .await;
    }
    let nats = Nats::start(1, Config::default()).await;
    let postgres = Server::start();
    let on_nats = Store::on_nats(&nats.urls().concat().replace("nats://", ""));
    let on_postgres = Store::on_postgres(&format!("127.0.0.1:{}", postgres.port()));
    let nothing = TempDir::new().unwrap();
    let tables = "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'prelude%'";
    let empty = directory("from", nothing.path());
    let absent = directory("from", &nothing.path().join("absent"));
    for store in [&on_nats, &on_postgres] {
        let words = ["there is no log in"];
        refused(&empty, &store.argument("to"), 2, &words).await;
        refused(&absent, &store.argument("to"), 2, &words).await;
    }
    let to = directory("to", &nothing.path().join("made"));
    refused(
        &on_nats.argument("from"),
        &to,
        1,
        &["has no stream prelude-bridge"],
    )
    .await;
    refused(
        &on_postgres.argument("from"),
        &to,
        1,
        &["there is no table prelude_bridge"],
    )
    .await;
    let (from, to) = (on_nats.argument("from"), on_postgres.argument("to"));
    refused(&from, &to, 1, &["has no stream prelude-bridge"]).await;
    // Nothing was made by any of these.
    refused(&from, &to, 1, &["has no stream prelude-bridge"]).await;
    assert_eq!(postgres.ask(tables), "0");
    assert_eq!(std::fs::read_dir(nothing.path()).unwrap().count(), 0);

    one.terminate().await;
    other.terminate().await;
    let (one_files, other_files) = (
        directory("from", &one.data_dir()),
        directory("from", &other.data_dir()),
    );
    let human = run(copy_command(&one_files, &on_nats.argument("to"), "human")).await;
    let said = String::from_utf8_lossy(&human.stdout);
    assert!(human.status.success(), "{said}");
    for words in ["copied 1 event (1)", "read back and the same", "SHA-256 "] {
        assert!(said.contains(words), "{said}");
    }
    refused(
        &other_files,
        &on_nats.argument("to"),
        2,
        &["has log ", "choose another stream"],
    )
    .await;
    let mut bridge = on_nats.bridge().start().await;
    assert_eq!(read(&bridge, None).await, [(1, "evt_1".to_owned())]);
    bridge
        .append(&[crate::support::item("evt_3", "user.created", "usr_1")])
        .await;
    bridge.terminate().await;
    // A bridge has gone on with the copy: it is not copied over.
    refused(
        &one_files,
        &on_nats.argument("to"),
        2,
        &["a bridge has written to it"],
    )
    .await;
    let second = on_nats.named("stream = \"second\"");
    assert!(
        run(copy_command(&other_files, &second.argument("to"), "human"))
            .await
            .status
            .success()
    );
    let to = directory("to", &one.data_dir());
    refused(&second.argument("from"), &to, 2, &[]).await;
    for bridge in [&mut one, &mut other] {
        bridge.restart().await;
        assert_eq!(bridge.head().await, 1);
    }
    for bridge in [one, other] {
        bridge.finish().await;
    }
}
