//! `tail` against a scripted server.

use clap::Parser as _;
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::{
    client::testing::{Fake, Step, caught_up, cursor, events, notice, range, started},
    proto::{
        PayloadFormat, SkipReason, Skipped, start_position, stop_position, subscribe_response,
    },
};

#[test]
fn a_server_is_a_url_or_a_host_with_a_port() {
    assert_eq!(
        server_url("http://bridge:50051").unwrap(),
        "http://bridge:50051"
    );
    assert_eq!(server_url("bridge:50051").unwrap(), "http://bridge:50051");
    assert_eq!(server_url("[::1]:50051").unwrap(), "http://[::1]:50051");
    assert_eq!(server_url("https://bridge").unwrap(), "https://bridge");
    for text in ["", "ftp://bridge", "http://", "a b"] {
        assert!(server_url(text).is_err(), "{text}");
    }
}

#[test]
fn a_failure_has_the_exit_code_and_the_remedy_of_its_cause() {
    let interrupted = client::Error::Interrupted {
        reason: Some("DRAINING".into()),
        message: String::new(),
        retry_after: None,
    };
    let cursor = |reason: &str| client::Error::Cursor {
        reason: reason.into(),
        message: String::new(),
    };
    let refused = client::Error::Refused {
        reason: None,
        message: String::new(),
    };
    let failed = client::Error::Failed {
        code: tonic::Code::DataLoss,
        message: String::new(),
    };
    for (error, exit) in [
        (client::Error::Url("bad".into()), Exit::Usage),
        (client::Error::Credential("bad".into()), Exit::Usage),
        (
            client::Error::Unreachable("refused".into()),
            Exit::Unreachable,
        ),
        (interrupted, Exit::Unreachable),
        (refused, Exit::Refused),
        (cursor("CURSOR_MALFORMED"), Exit::Usage),
        (cursor("CURSOR_EPOCH_MISMATCH"), Exit::Failed),
        (failed, Exit::Failed),
    ] {
        assert_eq!(failure(error).exit, exit);
    }

    let expired = failure(client::Error::Expired {
        earliest: Some("AQearliest".into()),
        head: None,
        message: String::new(),
    });
    assert_eq!(expired.exit, Exit::CursorExpired);
    assert!(format!("{expired:?}").contains("--from AQearliest"));

    let damaged = failure(client::Error::Damaged {
        sequences: Some((5, 9)),
        after_cursor: Some("AQafter".into()),
        message: String::new(),
    });
    assert_eq!(damaged.exit, Exit::Failed);
    let told = format!("{damaged:?}");
    assert!(
        told.contains("--from AQafter") && told.contains("--on-damaged skip"),
        "{told}"
    );

    let invalid = failure(client::Error::Invalid {
        message: String::new(),
        faults: vec![client::FieldFault {
            field: "filter.types[1]".into(),
            problem: "is empty".into(),
        }],
    });
    assert_eq!(invalid.exit, Exit::Usage);
    assert!(format!("{invalid:?}").contains("--type (filter.types[1]) is empty"));
}

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

fn args(fake: &Fake, words: &[&str]) -> Args {
    let server = format!("--server={}", fake.url);
    let words = ["tail", &server].into_iter().chain(words.iter().copied());
    Command::try_parse_from(words).unwrap().args
}

/// Written to by the command, read by the test.
#[derive(Clone, Default)]
struct Stdout(Arc<Mutex<Vec<u8>>>);

impl Stdout {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn json() -> Formatter {
    Formatter::new(Output::Json, false, Width::Unlimited, TimeZone::UTC)
}

/// What is printed as JSON, by sequence, and how it ends.
async fn printed(args: &Args) -> (Vec<u64>, Result<(), Exit>, Written) {
    let (out, written) = (Stdout::default(), Arc::default());
    let printer = Printer::start(out.clone(), Arc::clone(&written)).unwrap();
    let result = follow(args, json(), &printer).await;
    printer.finish().await.unwrap();
    let sequences = out
        .text()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|event| event["sequence"].as_u64().unwrap())
        .collect();
    let written = locked(&written).clone();
    (sequences, result.map_err(|failure| failure.exit), written)
}

#[tokio::test]
async fn events_are_printed_across_an_interruption_until_the_count_is_reached() {
    let fake = Fake::start(vec![
        vec![
            started(0, 9),
            events(1..=2),
            Step::Fail(tonic::Status::unavailable("gone")),
        ],
        vec![started(2, 9), events(3..=4)],
    ]);
    let (sequences, result, written) = printed(&args(&fake, &["--count=4"])).await;
    assert_eq!(sequences, [1, 2, 3, 4]);
    assert_eq!(result, Ok(()));
    assert_eq!(
        written,
        Written {
            cursor: Some(cursor(4)),
            events: 4
        }
    );
}

#[tokio::test]
async fn the_arguments_are_what_is_asked_for() {
    let fake = Fake::start(vec![vec![started(5, 9), caught_up(9)]]);
    let words = [
        "--type=user.*",
        "--exclude-type=user.deleted",
        "--app=app_1",
        "--user=usr_1",
        "--since=2026-11-20T08:30:00Z",
        "--count=7",
        "--until-caught-up",
        "--client-name=audit",
    ];
    let (_, result, _) = printed(&args(&fake, &words)).await;
    assert_eq!(result, Ok(()));
    let request = fake.requests().remove(0);
    assert_eq!(request.on_damaged(), DamagedPolicy::Fail);
    let filter = request.filter.clone().unwrap();
    assert_eq!(filter.types, ["user.*"]);
    assert_eq!(filter.exclude_types, ["user.deleted"]);
    assert_eq!(filter.app_ids, ["app_1"]);
    assert_eq!(filter.user_ids, ["usr_1"]);
    assert_eq!(request.client_name, "audit");
    assert_eq!(request.payload_format(), PayloadFormat::Raw);
    let stop = request.stop.unwrap();
    assert_eq!(stop.max_events, 7);
    assert!(matches!(
        stop.position,
        Some(stop_position::Position::Head(_))
    ));
    let Some(start_position::Position::AtTime(time)) = request.start.unwrap().position else {
        panic!("not a time");
    };
    assert_eq!(time.seconds, 1_795_163_400);
}

#[tokio::test]
async fn from_continues_after_a_cursor_and_last_after_the_one_it_finds() {
    let fake = Fake::start(vec![vec![started(5, 9), events(6..=6)]]);
    let (sequences, _, _) = printed(&args(&fake, &["--from=cursor-5", "--count=1"])).await;
    assert_eq!(sequences, [6]);
    let after = |sequence| Some(start_position::Position::AfterCursor(cursor(sequence)));
    assert_eq!(fake.requests()[0].start.clone().unwrap().position, after(5));

    let fake = Fake::start(vec![
        vec![started(0, 9), events(1..=9)],
        vec![started(7, 9), events(8..=9)],
    ])
    .with_range(range(1, 9));
    let (sequences, _, _) = printed(&args(&fake, &["--last=2", "--until-caught-up"])).await;
    assert_eq!(sequences, [8, 9]);
    assert_eq!(fake.requests()[1].start.clone().unwrap().position, after(7));
}

#[tokio::test]
async fn from_takes_the_oldest_event_by_its_name() {
    let fake = Fake::start(vec![vec![started(0, 9), events(1..=2)]]);
    let (sequences, _, _) = printed(&args(&fake, &["--from=earliest", "-n", "2"])).await;
    assert_eq!(sequences, [1, 2]);
    let start = fake.requests()[0].start.clone().unwrap();
    assert!(matches!(
        start.position,
        Some(start_position::Position::Earliest(_))
    ));
}

/// The status of a bridge whose next events are damaged.
fn damaged() -> Step {
    let metadata = [("after_cursor".to_owned(), cursor(5))];
    let details = ErrorDetails::with_error_info("LOG_DAMAGED", "prelude-bridge", metadata);
    let status = tonic::Status::with_error_details(tonic::Code::DataLoss, "damaged", details);
    Step::Fail(status)
}

#[tokio::test]
async fn damaged_events_end_it_at_once_and_are_not_asked_for_again() {
    let fake = Fake::start(vec![vec![started(0, 9), events(1..=3), damaged()]]);
    let (sequences, result, written) = printed(&args(&fake, &[])).await;
    assert_eq!((sequences, result), (vec![1, 2, 3], Err(Exit::Failed)));
    assert_eq!(written.cursor, Some(cursor(3)));
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test]
async fn damaged_events_are_skipped_on_request() {
    let skipped = Skipped {
        first_sequence: 4,
        last_sequence: 5,
        reason: SkipReason::Damaged.into(),
    };
    let script = vec![
        started(0, 9),
        events(1..=3),
        notice(5, subscribe_response::Notice::Skipped(skipped)),
        events(6..=7),
    ];
    let fake = Fake::start(vec![script]);
    let words = ["--on-damaged=skip", "--count=5"];
    let (sequences, result, _) = printed(&args(&fake, &words)).await;
    assert_eq!((sequences, result), (vec![1, 2, 3, 6, 7], Ok(())));
    assert_eq!(fake.requests()[0].on_damaged(), DamagedPolicy::Skip);
}

#[tokio::test]
async fn last_finds_its_start_past_damaged_events() {
    let fake = Fake::start(vec![
        vec![started(0, 9), events(6..=9)],
        vec![started(7, 9), events(8..=9)],
    ])
    .with_range(range(1, 9));
    let (sequences, result, _) = printed(&args(&fake, &["--last=2", "--until-caught-up"])).await;
    assert_eq!((sequences, result), (vec![8, 9], Ok(())));
    let policies: Vec<DamagedPolicy> = fake.requests().iter().map(|r| r.on_damaged()).collect();
    assert_eq!(policies, [DamagedPolicy::Skip, DamagedPolicy::Fail]);
}

#[test]
fn what_is_probably_misspelt_is_told() {
    let fake = Fake::start(Vec::new());
    let words = ["--type=user.craeted", "--exclude-type=user.sesion.*"];
    let doubts = args(&fake, &words).doubts();
    assert_eq!(doubts.len(), 2);
    assert!(doubts[0].starts_with("`--type user.craeted`"), "{doubts:?}");
    assert!(doubts[1].starts_with("`--exclude-type user.sesion.*`"));
    assert!(args(&fake, &["--type=user.**"]).doubts().is_empty());
}

#[tokio::test]
async fn what_was_received_before_a_failure_is_printed() {
    let refused = tonic::Status::unauthenticated("the token has expired");
    let fake = Fake::start(vec![vec![
        started(0, 9),
        events(1..=3),
        Step::Fail(refused),
    ]]);
    let (sequences, result, _) = printed(&args(&fake, &[])).await;
    assert_eq!(sequences, [1, 2, 3]);
    assert_eq!(result, Err(Exit::Refused));
}

#[tokio::test]
async fn only_the_first_connection_decides_that_the_server_cannot_be_reached() {
    let mut fake = Fake::start(vec![vec![started(0, 9), events(1..=1), Step::Hang]]);
    let words = args(&fake, &["--count=2"]);
    let written: Arc<Mutex<Written>> = Arc::default();
    let printer = Printer::start(Stdout::default(), Arc::clone(&written)).unwrap();
    let follow = follow(&words, json(), &printer);
    let mut follow = std::pin::pin!(follow);
    // Until the first event is printed.
    while locked(&written).events == 0 {
        tokio::select! {
            _ = &mut follow => panic!("it ended"),
            () = tokio::task::yield_now() => {}
        }
    }
    fake.kill();
    // Later it waits for the server to come back: longer than a refused connection takes.
    let wait = Duration::from_millis(500);
    assert!(tokio::time::timeout(wait, &mut follow).await.is_err());

    let (_, result, written) = printed(&words).await;
    assert_eq!(result, Err(Exit::Unreachable));
    assert_eq!(written, Written::default());
}

struct Closed;

impl Write for Closed {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_closed_stdout_ends_it_well_even_when_no_more_events_come() {
    let fake = Fake::start(vec![vec![started(0, 9), events(1..=1), Step::Hang]]);
    let printer = Printer::start(Closed, Arc::default()).unwrap();
    let formatter = json();
    let result = follow(&args(&fake, &[]), formatter, &printer).await;
    assert_eq!(result, Ok(()));
    assert_eq!(finish_stdout(printer.finish().await), Ok(()));
}
