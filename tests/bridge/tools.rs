//! Clients that others wrote: grpcurl, buf and Python's grpcio against the built program, by
//! reflection and by stubs of their own. `make tools` installs them; a test whose tool is missing
//! fails and says so.

use std::{
    env,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::JoinHandle,
};

use serde_json::{Value, json};

use crate::{
    cli::{program, stderr, stdout},
    support::{Bridge, SOON, Setup},
    windows::{bridge_with, event, sizes},
};

const SERVICE: &str = "prelude.bridge.v1.EventService";

/// grpcurl's exit code of INVALID_ARGUMENT: 64 and the number of the status.
const GRPCURL_INVALID_ARGUMENT: i32 = 64 + 3;

/// grpc_health_probe's exit codes.
const PROBE_HEALTHY: Option<i32> = Some(0);
const PROBE_NOT_CONNECTED: Option<i32> = Some(2);
const PROBE_CALL_FAILED: Option<i32> = Some(3);

/// Where `make tools` put something, as a path from the folder of all tools.
pub(crate) fn tool(path: &str) -> PathBuf {
    let tools = env::var_os("TOOLS_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools"),
        PathBuf::from,
    );
    let tool = tools.join(path);
    assert!(
        tool.exists(),
        "{} is missing: run `make tools` once, which installs it",
        tool.display()
    );
    tool
}

/// A Python with grpcio and cryptography.
pub(crate) fn python() -> Command {
    Command::new(tool("python/bin/python"))
}

fn grpcurl(arguments: &[&str]) -> Output {
    Command::new(tool("bin/grpcurl"))
        .args(["-plaintext", "-max-time", "60"])
        .args(arguments)
        .output()
        .unwrap()
}

/// `demo` as a person would start it: a bridge with events that keep coming.
struct Demo {
    child: Child,
    /// What the demo printed before the first event, for people to copy from.
    introduction: String,
    /// Reads on, so that the demo never waits for us. Gives the rest of what was printed.
    reader: Option<JoinHandle<String>>,
}

impl Demo {
    fn start() -> Self {
        let mut command = program(&["demo", "--rate", "100"]);
        for flag in ["--webhook-listen", "--grpc-listen", "--admin-listen"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut introduction = String::new();
        while !introduction.ends_with("Ctrl-C ends it.\n") {
            let length = lines.read_line(&mut introduction).unwrap();
            assert_ne!(length, 0, "the demo ended: {introduction}");
        }
        let reader = std::thread::spawn(move || {
            let mut rest = String::new();
            lines.read_to_string(&mut rest).unwrap();
            rest
        });
        Self {
            child,
            introduction,
            reader: Some(reader),
        }
    }

    fn line(&self, beginning: &str) -> &str {
        let mut lines = self.introduction.lines().map(str::trim);
        lines.find(|line| line.starts_with(beginning)).unwrap()
    }

    /// A command, with the lines that it goes on over.
    fn command(&self, beginning: &str) -> &str {
        let (_, text) = self.introduction.split_once(beginning).unwrap();
        let start = self.introduction.len() - text.len() - beginning.len();
        let text = &self.introduction[start..];
        let mut ends = text.match_indices('\n').map(|(at, _)| &text[..at]);
        ends.find(|command| !command.ends_with('\\')).unwrap()
    }

    /// Where the streams are: host and port.
    fn address(&self) -> &str {
        let url = self.line("grpc ").split_whitespace().nth(1).unwrap();
        url.strip_prefix("http://").unwrap()
    }

    fn interrupt(&self) {
        let process = self.child.id().to_string();
        let sent = Command::new("kill").args(["-INT", &process]).status();
        assert!(sent.unwrap().success());
    }

    /// Ends it as Ctrl-C does, and sees that nothing was lost on the way.
    fn end(mut self) {
        self.interrupt();
        let status = self.child.wait().unwrap();
        let rest = self.reader.take().unwrap().join().unwrap();
        assert!(status.success(), "{rest}");
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Of one that has ended already there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The JSON objects that grpcurl and buf print one after another.
pub(crate) fn objects(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", stderr(output));
    let objects = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
    objects.map(Result::unwrap).collect()
}

/// The events of all responses, after the response that opens the stream.
fn events(responses: &[Value]) -> Vec<&Value> {
    assert!(responses[0]["started"].is_object(), "{responses:?}");
    let arrays = responses.iter().filter_map(|of| of["events"].as_array());
    arrays.flatten().collect()
}

/// Numbers of 64 bits are strings in protobuf's JSON.
fn sequences<'a>(events: &[&'a Value]) -> Vec<&'a str> {
    let sequence = |event: &&'a Value| event["sequence"].as_str().unwrap();
    events.iter().map(sequence).collect()
}

#[test]
fn the_grpcurl_line_that_the_demo_prints_works() {
    let grpcurl = tool("bin/grpcurl");
    let demo = Demo::start();
    let output = Command::new("/bin/sh")
        .args(["-c", demo.command("grpcurl ")])
        .env("PATH", grpcurl.parent().unwrap())
        .output()
        .unwrap();
    let responses = objects(&output);
    let events = events(&responses);
    assert_eq!(sequences(&events), ["1", "2", "3"]);
    for event in events {
        // Now and then it is one of the rarer types, of nobody.
        assert!(event["type"].as_str().unwrap().contains('.'), "{event}");
        assert!(event["receivedAt"].is_string(), "{event}");
    }
    demo.end();
}

#[test]
fn grpcurl_lists_describes_and_calls_by_reflection() {
    let demo = Demo::start();
    let listed = grpcurl(&[demo.address(), "list"]);
    let services: Vec<String> = stdout(&listed).lines().map(str::to_owned).collect();
    for service in [
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ] {
        assert!(services.contains(&service.to_owned()), "{services:?}");
    }
    let described = stdout(&grpcurl(&[demo.address(), "describe", SERVICE]));
    assert!(
        described.contains("returns ( stream .prelude.bridge.v1.SubscribeResponse )"),
        "{described}"
    );
    let range = format!("{SERVICE}/GetRange");
    let answer = objects(&grpcurl(&[demo.address(), &range]));
    assert!(answer[0]["head"]["cursor"].is_string());
    let healthy = objects(&grpcurl(&[demo.address(), "grpc.health.v1.Health/Check"]));
    assert_eq!(healthy, [json!({ "status": "SERVING" })]);
    demo.end();
}

fn health_probe(address: &str, arguments: &[&str]) -> Output {
    Command::new(tool("bin/grpc-health-probe"))
        .args([
            "-addr",
            address,
            "-connect-timeout",
            "30s",
            "-rpc-timeout",
            "30s",
        ])
        .args(arguments)
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_health_probe_says_serving_until_the_bridge_has_ended() {
    let mut bridge = Bridge::start().await;
    let address = bridge.addresses.grpc.to_string();
    for arguments in [vec![], vec!["-service", SERVICE]] {
        let probed = health_probe(&address, &arguments);
        assert_eq!(probed.status.code(), PROBE_HEALTHY, "{}", stderr(&probed));
        assert!(stderr(&probed).contains("SERVING"), "{}", stderr(&probed));
    }
    let unknown = health_probe(&address, &["-service", "prelude.bridge.v1.Unknown"]);
    assert_eq!(
        unknown.status.code(),
        PROBE_CALL_FAILED,
        "{}",
        stderr(&unknown)
    );
    assert!(bridge.terminate().await.success());
    let gone = health_probe(&address, &["-connect-timeout", "1s"]);
    assert_eq!(gone.status.code(), PROBE_NOT_CONNECTED, "{}", stderr(&gone));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_on_the_health_sees_that_the_bridge_drains() {
    let mut bridge = Bridge::start().await;
    let mut watch = Command::new(tool("bin/grpcurl"))
        .args([
            "-plaintext",
            "-max-time",
            "60",
            &bridge.addresses.grpc.to_string(),
        ])
        .arg("grpc.health.v1.Health/Watch")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let answers = serde_json::Deserializer::from_reader(watch.stdout.take().unwrap());
    let mut answers = answers.into_iter::<Value>().map(Result::unwrap);
    assert_eq!(answers.next(), Some(json!({ "status": "SERVING" })));
    assert!(bridge.terminate().await.success());
    assert_eq!(answers.next(), Some(json!({ "status": "NOT_SERVING" })));
    assert_eq!(answers.next(), None);
    watch.wait().unwrap();
}

#[test]
fn grpcurl_shows_why_a_filter_is_refused() {
    let demo = Demo::start();
    let request = r#"{"filter":{"types":["user..*"]}}"#;
    let subscribe = format!("{SERVICE}/Subscribe");
    let output = grpcurl(&["-d", request, demo.address(), &subscribe]);
    let shown = stderr(&output);
    assert_eq!(
        output.status.code(),
        Some(GRPCURL_INVALID_ARGUMENT),
        "{shown}"
    );
    for part in [
        "InvalidArgument",
        "FILTER_INVALID",
        "prelude-bridge",
        "google.rpc.BadRequest",
        "filter.types[0]",
    ] {
        assert!(shown.contains(part), "{part} is not in: {shown}");
    }
    demo.end();
}

#[test]
fn buf_curl_calls_over_grpc_and_grpc_web_by_reflection() {
    let buf = tool("buf/node_modules/.bin/buf");
    let demo = Demo::start();
    let home = tempfile::tempdir().unwrap();
    let curl = |protocol: &str, method: &str, request: &str| {
        let url = format!("http://{}/{SERVICE}/{method}", demo.address());
        let output = Command::new(&buf)
            .args(["curl", "--http2-prior-knowledge", "--protocol", protocol])
            .args(["--data", request, &url])
            .env("HOME", home.path())
            .output()
            .unwrap();
        objects(&output)
    };
    for protocol in ["grpc", "grpcweb"] {
        let request = r#"{"start":{"earliest":{}},"stop":{"maxEvents":"3"}}"#;
        let responses = curl(protocol, "Subscribe", request);
        assert_eq!(sequences(&events(&responses)), ["1", "2", "3"]);
        let range = curl(protocol, "GetRange", "{}");
        assert_eq!(range[0]["earliest"]["sequence"], "1");
    }
    demo.end();
}

#[test]
fn a_python_client_reads_resumes_and_learns_why_it_is_refused() {
    let demo = Demo::start();
    let stubs = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = python()
        .arg(root.join("tests/data/tools/client.py"))
        .arg(root.join("proto"))
        .arg(stubs.path())
        .arg(demo.address())
        .output()
        .unwrap();
    let printed = objects(&output);
    let seen = &printed[0];
    let events = seen["events"].as_array().unwrap();
    assert_eq!(events.len(), 3);
    for (event, sequence) in events.iter().zip(1..) {
        assert_eq!(event["sequence"], sequence);
        let payload = event["type"].as_str().unwrap().replace('.', "_");
        assert_eq!(event["payload"], payload);
        assert_eq!(event["payload_user_id"], event["user_id"]);
    }
    assert_eq!(seen["resumed"], json!([4, 5]));
    assert_eq!(
        seen["error"],
        json!({ "code": "INVALID_ARGUMENT", "domain": "prelude-bridge", "reason": "CURSOR_MALFORMED" })
    );
    assert_eq!(seen["earliest"], 1);
    assert!(seen["head"].as_u64().unwrap() >= 5);
    demo.end();
}

/// The client in Python, with options of its channel.
fn python_client(bridge: &Bridge, stubs: &Path, options: &Value, pace: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = python();
    command
        .arg(root.join("tests/data/tools/windows.py"))
        .arg(root.join("proto"))
        .arg(stubs)
        .arg(bridge.addresses.grpc.to_string())
        .args([&options.to_string(), pace]);
    command
}

/// grpcio opens its windows as it measures its connection, unless that is switched off.
#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_that_does_not_measure_its_connection_gets_events_of_all_sizes() {
    let sizes = sizes();
    let (bridge, expected) = bridge_with(&sizes).await;
    let lengths: Vec<usize> = expected.iter().map(String::len).collect();
    let stubs = tempfile::tempdir().unwrap();
    for options in [
        json!({ "grpc.http2.bdp_probe": 0 }),
        json!({ "grpc.http2.bdp_probe": 0, "grpc.http2.lookahead_bytes": 1_024 }),
        json!({}),
    ] {
        let mut command = python_client(&bridge, stubs.path(), &options, "read");
        let running = tokio::task::spawn_blocking(move || command.output().unwrap());
        let printed = objects(&running.await.unwrap());
        assert_eq!(printed[0]["error"], Value::Null, "{options}");
        assert_eq!(printed[0]["lengths"], json!(lengths), "{options}");
    }
    bridge.finish().await;
}

/// Its stream is ended within a message, and all the same it learns why and where to go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_that_does_not_read_is_told_so_with_its_cursor() {
    let setup = Setup::default().with("limits.grpc.slow_consumer_timeout", "1s");
    let bridge = setup.start().await;
    for number in 0..3 {
        bridge.append(&[event(number, 100_000)]).await;
    }
    let stubs = tempfile::tempdir().unwrap();
    let options = json!({ "grpc.http2.bdp_probe": 0 });
    let mut client = python_client(&bridge, stubs.path(), &options, "wait")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ended = r#"prelude_bridge_streams_ended_total{reason="SLOW_CONSUMER"}"#;
    let counted = async { while bridge.metric(ended).await != Some(1.0) {} };
    let counted = tokio::time::timeout(SOON, counted).await;
    client.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    let running = tokio::task::spawn_blocking(move || client.wait_with_output().unwrap());
    let printed = objects(&running.await.unwrap());
    assert!(counted.is_ok(), "{printed:?}");
    let error = &printed[0]["error"];
    assert_eq!(error["code"], "RESOURCE_EXHAUSTED", "{printed:?}");
    assert_eq!(error["reason"], "SLOW_CONSUMER");
    assert_eq!(error["cursor"], printed[0]["cursor"]);
    bridge.finish().await;
}
