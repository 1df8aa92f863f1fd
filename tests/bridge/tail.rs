//! `tail` from outside: the built program against the real streams over a log in memory.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use prelude_bridge::{
    bus::{self, Bus},
    credentials::Credentials,
    event::{Batch, Draft, EventKey, user_hash},
    grpc,
    log::{Log as _, memory},
    metrics::Metrics,
    proto::{self, event::Payload},
    subscription,
    wire::Head,
};
use prost::Message as _;
use serde_json::Value;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};

use crate::cli::{program, stderr, stdout};

/// Long enough for a loaded machine, and never waited out when all is well.
const SOON: Duration = Duration::from_secs(60);
const TYPES: [&str; 3] = [
    "user.created",
    "user.session.created",
    "user.session.revoked",
];

/// A log with its streams, which can be taken away and come back.
struct Bridge {
    log: Arc<memory::Memory>,
    bus: Arc<Bus>,
    address: SocketAddr,
    running: Option<(grpc::Server, JoinHandle<()>)>,
    appended: u64,
}

impl Bridge {
    async fn start() -> Self {
        Self::with_retention_bytes(memory::Options::default().retention_bytes).await
    }

    async fn with_retention_bytes(retention_bytes: u64) -> Self {
        let options = memory::Options {
            retention_bytes,
            ..memory::Options::default()
        };
        let log = memory::open(options).unwrap();
        let bus = Bus::follow(bus::Options::default(), &*log).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut bridge = Self {
            log,
            bus,
            address,
            running: None,
            appended: 0,
        };
        bridge.serve(listener).await;
        bridge
    }

    async fn serve(&mut self, listener: TcpListener) {
        let options = grpc::Options {
            subscriptions: subscription::Options {
                drain_retry_spread: Duration::from_millis(50),
                ..subscription::Options::default()
            },
            ..grpc::Options::default()
        };
        let (log, bus) = (Arc::clone(&self.log), Arc::clone(&self.bus));
        let streams = grpc::Server::new(
            options,
            Credentials::anonymous(),
            log,
            bus,
            Metrics::new().into(),
        )
        .await
        .unwrap();
        let served = streams.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (io, peer) = listener.accept().await.unwrap();
                let streams = served.clone();
                tokio::spawn(async move { streams.serve(io, peer.into()).await });
            }
        });
        self.running = Some((streams, accepting));
    }

    async fn stop(&mut self) {
        if let Some((streams, accepting)) = self.running.take() {
            accepting.abort();
            assert!(accepting.await.unwrap_err().is_cancelled());
            streams.drain().await;
        }
    }

    async fn restart(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener).await;
    }

    /// Appends events of the types in turn, of users 0 to 4 in turn.
    async fn append(&mut self, count: u64) {
        let first = self.appended + 1;
        self.appended += count;
        self.log.append(batch(first..=self.appended)).await.unwrap();
    }

    fn tail(&self, arguments: &[&str]) -> Command {
        let server = format!("http://{}", self.address);
        program(&[&["tail", "--server", &server], arguments].concat())
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        output(self.tail(arguments)).await
    }

    /// Waits until exactly as many streams are open.
    async fn subscribed(&self, count: usize) {
        while self.running.as_ref().unwrap().0.snapshot().open != count {
            tokio::task::yield_now().await;
        }
    }
}

fn raw_json(sequence: u64, event_type: &str) -> String {
    format!("{{ \"type\": \"{event_type}\",\"payload\":{{\"n\": {sequence}.0}} }}")
}

pub(crate) fn batch(sequences: std::ops::RangeInclusive<u64>) -> Batch {
    let (mut body, mut encoded, mut drafts) = (Vec::new(), Vec::new(), Vec::new());
    for sequence in sequences {
        let event_type = TYPES[usize::try_from(sequence % 3).unwrap()];
        let id = format!("evt_{sequence}");
        let user_id = format!("usr_{}", sequence % 5);
        let head_start = encoded.len();
        Head {
            id: &id,
            event_type,
            app_id: "54e9ujn",
            user_id: &user_id,
            ..Head::default()
        }
        .encode(&mut encoded);
        let payload_start = encoded.len();
        let payload = proto::UserSessionRevoked {
            session_id: format!("ses_{sequence}"),
            ..proto::UserSessionRevoked::default()
        };
        let payload = proto::Event {
            payload: Some(Payload::UserSessionRevoked(payload)),
            ..proto::Event::default()
        };
        payload.encode(&mut encoded).unwrap();
        let raw_start = body.len();
        let raw_json = raw_json(sequence, event_type);
        body.extend(raw_json.bytes());
        drafts.push(Draft {
            key: EventKey::new("54e9ujn", &id, event_type, raw_json.as_bytes()),
            event_type: event_type.into(),
            user_hash: user_hash(&user_id),
            head: head_start..payload_start,
            payload: payload_start..encoded.len(),
            raw_json: raw_start..body.len(),
        });
    }
    Batch {
        app_id: "54e9ujn".into(),
        body: body.into(),
        encoded: encoded.into(),
        drafts,
        dates: Default::default(),
    }
}

async fn output(mut command: Command) -> Output {
    let running = tokio::task::spawn_blocking(move || command.output().unwrap());
    tokio::time::timeout(SOON, running).await.unwrap().unwrap()
}

pub(crate) fn sequence(line: &str) -> u64 {
    serde_json::from_str::<Value>(line).unwrap()["sequence"]
        .as_u64()
        .unwrap()
}

fn sequences(output: &Output) -> Vec<u64> {
    stdout(output).lines().map(sequence).collect()
}

/// A tail that goes on, line by line.
struct Running {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            stdout
                .lines()
                .try_for_each(|line| sender.send(line.unwrap()))
        });
        Self { child, lines }
    }

    async fn line(&mut self) -> String {
        tokio::time::timeout(SOON, self.lines.recv())
            .await
            .unwrap()
            .unwrap()
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill")
            .args(["-s", name, &id])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Its exit code and what it said on stderr.
    async fn end(mut self) -> (Option<i32>, String) {
        let ending = tokio::task::spawn_blocking(move || {
            let mut said = String::new();
            let mut stderr = self.child.stderr.take().unwrap();
            stderr.read_to_string(&mut said).unwrap();
            (self.child.wait().unwrap().code(), said)
        });
        tokio::time::timeout(SOON, ending).await.unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_json_lines_in_a_pipe() {
    let mut bridge = Bridge::start().await;
    bridge.append(3).await;
    bridge.append(4).await;
    let output = bridge.run(&["--since", "1h", "--until-caught-up"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(sequences(&output), [1, 2, 3, 4, 5, 6, 7]);
    let text = stdout(&output);
    let event: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(event["id"], "evt_1");
    assert_eq!(event["type"], TYPES[1]);
    assert_eq!(event["app_id"], "54e9ujn");
    assert_eq!(event["user_id"], "usr_1");
    assert_eq!(event["cursor"].as_str().unwrap().len(), 28);
    assert!(event["received_at"].as_str().unwrap().ends_with('Z'));
    assert!(
        text.lines()
            .next()
            .unwrap()
            .ends_with("\"payload\":{\"n\": 1.0}}")
    );
    assert_eq!(stderr(&output), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_choose_and_exclusions_win() {
    let mut bridge = Bridge::start().await;
    bridge.append(30).await;
    let all = ["--since", "1h", "--until-caught-up"];
    for (arguments, wanted) in [
        (
            &["--type", "user.session.*"][..],
            (|n| n % 3 != 0) as fn(u64) -> bool,
        ),
        (
            &["--type", "user.**", "--exclude-type", "user.created"],
            |n| n % 3 != 0,
        ),
        (&["--user", "usr_2", "--user", "usr_4"], |n| {
            n % 5 == 2 || n % 5 == 4
        }),
        (&["--app", "another"], |_| false),
        (&["--type", "user.created", "--user", "usr_0"], |n| {
            n % 15 == 0
        }),
    ] {
        let output = bridge.run(&[&all, arguments].concat()).await;
        let expected: Vec<u64> = (1..=30).filter(|&n| wanted(n)).collect();
        assert_eq!(sequences(&output), expected, "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn last_counts_the_events_that_match() {
    let mut bridge = Bridge::start().await;
    let output = bridge.run(&["--last", "3", "--until-caught-up"]).await;
    assert_eq!(
        (output.status.code(), stdout(&output).as_str()),
        (Some(0), "")
    );
    for _ in 0..10 {
        bridge.append(10).await;
    }
    let last = ["--until-caught-up", "--last"];
    let sessions = ["--type", "user.session.revoked"];
    for (arguments, expected) in [
        (&["3"][..], vec![98, 99, 100]),
        (&["1"], vec![100]),
        (&["1000"], (1..=100).collect()),
        (&[&["3"][..], &sessions].concat(), vec![92, 95, 98]),
        (
            &[&["33"][..], &sessions].concat(),
            (2..=98).step_by(3).collect(),
        ),
        (&["2", "--count", "1"], vec![99]),
    ] {
        let output = bridge.run(&[&last, arguments].concat()).await;
        assert_eq!(
            sequences(&output),
            expected,
            "{arguments:?} {}",
            stderr(&output)
        );
    }
}

/// In a log that is too large to be read whole for it.
#[tokio::test(flavor = "multi_thread")]
async fn last_counts_back_over_as_many_slices_as_it_takes() {
    let mut bridge = Bridge::start().await;
    for _ in 0..100 {
        bridge.append(50).await;
    }
    let last = ["--until-caught-up", "--last"];
    let (rare, revoked) = (
        ["--type", "user.created", "--user", "usr_0"],
        ["--type", "user.session.revoked"],
    );
    let matching = |wanted: fn(u64) -> bool, count: usize| {
        let all: Vec<u64> = (1..=5_000).filter(|&n| wanted(n)).collect();
        all[all.len().saturating_sub(count)..].to_vec()
    };
    for (count, filter, wanted) in [
        (3, &[][..], (|_| true) as fn(u64) -> bool),
        (49, &[], |_| true),
        (50, &[], |_| true),
        (51, &[], |_| true),
        (2_000, &[], |_| true),
        (4_999, &[], |_| true),
        (3, &revoked[..], |n| n % 3 == 2),
        (1_000, &revoked, |n| n % 3 == 2),
        (100, &rare, |n| n % 15 == 0),
        (333, &rare, |n| n % 15 == 0),
        (334, &rare, |n| n % 15 == 0),
        (5, &["--app", "another"], |_| false),
    ] {
        let text = count.to_string();
        let output = bridge.run(&[&last[..], &[&text], filter].concat()).await;
        assert_eq!(
            sequences(&output),
            matching(wanted, count),
            "{count} {filter:?} {}",
            stderr(&output)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn demo_prints_what_it_sends_and_takes_the_ports_that_it_is_given() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ports = |grpc| {
        let mut command = program(&["demo", "--count", "20", "--grpc-listen", grpc]);
        command.args([
            "--webhook-listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
        ]);
        command
    };
    let run = output(ports(&address)).await;
    assert_eq!(run.status.code(), Some(2));
    assert!(stderr(&run).contains(&format!("{address} (--grpc-listen)")));

    let mut command = ports("127.0.0.1:0");
    command.env("TZ", "UTC");
    let run = output(command).await;
    let (text, said) = (stdout(&run), stderr(&run));
    assert_eq!(run.status.code(), Some(0), "{said}");
    assert!(said.contains("20 received, 20 delivered, 0 lost"), "{said}");
    assert!(!said.contains("Taken here"), "{said}");
    // In a pipe each line has the whole time with its offset.
    assert_eq!(text.lines().count(), 20);
    for line in text.lines() {
        let (time, _) = line.split_once("  ").unwrap();
        assert!(time.len() == 29 && time.ends_with("+00:00"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_is_what_was_signed_and_human_is_one_line_each() {
    let mut bridge = Bridge::start().await;
    bridge.append(2).await;
    let all = ["--since", "1h", "--until-caught-up", "--output"];
    let run = bridge.run(&[&all[..], &["raw"]].concat()).await;
    let expected = format!("{}\n{}\n", raw_json(1, TYPES[1]), raw_json(2, TYPES[2]));
    assert_eq!(stdout(&run), expected);

    let run = bridge.run(&[&all[..], &["human"]].concat()).await;
    let text = stdout(&run);
    assert_eq!(text.lines().count(), 2);
    assert!(!text.contains('\u{1b}'), "no colours in a pipe");
    assert!(
        text.contains("user.session.revoked     54e9ujn  usr_2  ses_2  #2\n"),
        "{text}"
    );

    let arguments = [&all[..], &["human", "--color", "always", "--utc"]].concat();
    let mut command = bridge.tail(&arguments);
    command.env("TZ", "Asia/Kolkata").env("NO_COLOR", "1");
    let text = stdout(&output(command).await);
    assert!(text.contains('\u{1b}') && text.contains("+00:00"), "{text}");
}

/// A terminal with so many columns: the end that a program is given, and the one that shows what it
/// printed.
fn terminal(columns: u16) -> (File, File) {
    use rustix::{pty, termios};
    let flags = pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY;
    let screen = pty::openpt(flags).unwrap();
    pty::grantpt(&screen).unwrap();
    pty::unlockpt(&screen).unwrap();
    let name = pty::ptsname(&screen, Vec::new()).unwrap();
    let path = name.into_string().unwrap();
    let theirs = File::options().read(true).write(true).open(path).unwrap();
    let size = termios::Winsize {
        ws_col: columns,
        ws_row: 24,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    termios::tcsetwinsize(&theirs, size).unwrap();
    (theirs, File::from(screen))
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_no_line_wraps_and_the_zone_is_named() {
    let mut bridge = Bridge::start().await;
    bridge.append(3).await;
    for columns in [80, 120] {
        let (theirs, mut screen) = terminal(columns);
        let mut command = bridge.tail(&["--since", "1h", "--until-caught-up"]);
        command.env("TERM", "xterm").env("TZ", "UTC");
        let mut child = command
            .stdout(theirs)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It holds the terminal open, too.
        drop(command);
        let shown = tokio::task::spawn_blocking(move || {
            let mut shown = Vec::new();
            // Ends in an error when the program has ended.
            let _ = screen.read_to_end(&mut shown);
            assert!(child.wait().unwrap().success());
            String::from_utf8(shown).unwrap()
        });
        let shown = tokio::time::timeout(SOON, shown).await.unwrap().unwrap();
        assert!(shown.contains("\u{1b}[31m"), "colours: {shown:?}");
        let text = anstream::adapter::strip_str(&shown).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].ends_with(", UTC"), "{text}");
        assert!(lines[1].contains("user.session.created     54e9ujn  usr_1  ses_1"));
        for line in lines {
            assert!(line.chars().count() <= usize::from(columns), "{line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_of_the_bridge_lose_and_repeat_nothing() {
    let mut bridge = Bridge::start().await;
    bridge.append(5).await;
    let mut tail = Running::start(bridge.tail(&["--since", "1h", "--count", "500"]));
    let mut seen = vec![sequence(&tail.line().await)];
    for _ in 0..3 {
        bridge.append(50).await;
        bridge.stop().await;
        bridge.append(50).await;
        bridge.restart().await;
    }
    bridge.append(300).await;
    while let Some(line) = tokio::time::timeout(SOON, tail.lines.recv()).await.unwrap() {
        seen.push(sequence(&line));
    }
    assert_eq!(seen, (1..=500).collect::<Vec<u64>>());
    let (code, said) = tail.end().await;
    assert_eq!(code, Some(0));
    assert!(said.contains("the server is about to shut down"), "{said}");
    assert!(said.contains("reconnected"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_that_ctrl_c_prints_continues() {
    let mut bridge = Bridge::start().await;
    for signal in ["INT", "TERM"] {
        bridge.subscribed(0).await;
        let mut tail = Running::start(bridge.tail(&["--type", "user.session.*"]));
        bridge.subscribed(1).await;
        bridge.append(30).await;
        let first = bridge.appended - 29;
        let expected: Vec<u64> = (first..=bridge.appended).filter(|n| n % 3 != 0).collect();
        for &expected in &expected {
            assert_eq!(sequence(&tail.line().await), expected);
        }
        tail.signal(signal);
        let (code, said) = tail.end().await;
        assert_eq!(code, Some(0), "{said}");
        let (_, command) = said.split_once("to continue: prelude-bridge ").unwrap();

        bridge.append(3).await;
        let program = env!("CARGO_BIN_EXE_prelude-bridge");
        let mut shell = Command::new("sh");
        shell.args([
            "-c",
            &format!("{program} {} --until-caught-up", command.trim()),
        ]);
        let continued = sequences(&output(shell).await);
        let rest: Vec<u64> = (bridge.appended - 2..=bridge.appended)
            .filter(|n| n % 3 != 0)
            .collect();
        assert_eq!(continued, rest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pipe_is_success() {
    let mut bridge = Bridge::start().await;
    bridge.append(1).await;
    let mut command = bridge.tail(&["--since", "1h"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(sequence(&line), 1);
    drop(reader);
    bridge.append(1).await;
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let output = tokio::time::timeout(SOON, output).await.unwrap().unwrap();
    assert_eq!(
        (output.status.code(), stderr(&output).as_str()),
        (Some(0), "")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_work_ends_with_its_exit_code_and_a_remedy() {
    let mut bridge = Bridge::with_retention_bytes(1).await;
    bridge.append(1).await;
    let first = stdout(&bridge.run(&["--last", "1", "--until-caught-up"]).await);
    let first: Value = serde_json::from_str(&first).unwrap();
    bridge.append(1).await;
    bridge.append(1).await;
    let expired = first["cursor"].as_str().unwrap();
    for (arguments, code, says) in [
        (&["--from", expired][..], 5, "--from "),
        (&["--from", "nonsense"], 2, "not a cursor"),
        (
            &["--type", "user..*", "--app", ""],
            2,
            "--type (filter.types[0]) has an empty",
        ),
    ] {
        let output = bridge.run(arguments).await;
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?} {}",
            stderr(&output)
        );
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }

    // The remedy works.
    let said = stderr(&bridge.run(&["--from", expired]).await);
    let remedy = said.split("--from ").last().unwrap().trim();
    let output = bridge.run(&["--from", remedy, "--until-caught-up"]).await;
    assert_eq!(sequences(&output), [3]);

    bridge.stop().await;
    let output = bridge.run(&[]).await;
    assert_eq!(output.status.code(), Some(3));
    assert!(
        stderr(&output).contains("cannot be reached"),
        "{}",
        stderr(&output)
    );
}
