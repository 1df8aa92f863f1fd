//! Subscriptions against a scripted server.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use tokio_stream::StreamExt as _;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::{
    Client, CursorStore, FileCursorStore, Options, Request, Start, Stop, StoreError,
    testing::{Fake, Scripts, Step, caught_up, cursor, event, events, notice, progress, started},
};

async fn client(fake: &Fake) -> Client {
    let millisecond = Duration::from_millis(1);
    let options = Options::new(&fake.url).backoff(Backoff::new(millisecond, 4 * millisecond));
    Client::connect(&options).await.unwrap()
}

/// A status of the bridge itself.
fn bridge_status(code: Code, reason: &str) -> Step {
    let details =
        ErrorDetails::with_error_info(reason, "prelude-bridge", [("earliest".into(), cursor(4))]);
    Step::Fail(Status::with_error_details(
        code,
        "what the server says",
        details,
    ))
}

/// What the items say in one word each.
fn words(item: &Item) -> String {
    match item {
        Item::Event(event) => event.sequence.to_string(),
        Item::Notice(Notice::Started(_)) => "started".into(),
        Item::Notice(Notice::Progress(_)) => "progress".into(),
        Item::Notice(Notice::CaughtUp(_)) => "caught-up".into(),
        Item::Notice(Notice::FellBehind(_)) => "fell-behind".into(),
        Item::Notice(Notice::Skipped(_)) => "skipped".into(),
        Item::Notice(Notice::Draining(_)) => "draining".into(),
        Item::Notice(Notice::Reconnecting { .. }) => "reconnecting".into(),
    }
}

/// Everything until the end, and the error it ended with.
async fn all(subscription: &mut Subscription) -> (Vec<String>, Option<Error>) {
    let mut seen = Vec::new();
    while let Some(item) = subscription.next().await {
        match item {
            Ok(item) => seen.push(words(&item)),
            Err(error) => {
                assert!(
                    subscription.next().await.is_none(),
                    "an error is the last item"
                );
                return (seen, Some(error));
            }
        }
    }
    (seen, None)
}

fn start_of(request: &SubscribeRequest) -> Option<String> {
    match request.start.as_ref()?.position.as_ref()? {
        start_position::Position::AfterCursor(cursor) => Some(cursor.clone()),
        _ => None,
    }
}

#[tokio::test]
async fn items_come_in_order_and_the_cursor_follows_them() {
    let response = SubscribeResponse {
        events: vec![event(1), event(2)],
        cursor: cursor(5),
        notice: Some(subscribe_response::Notice::CaughtUp(CaughtUp {
            sequence: 5,
        })),
    };
    let fake = Fake::start(vec![vec![started(0, 5), Step::Respond(response)]]);
    let mut subscription = client(&fake)
        .await
        .subscribe(Request::new().stop(Stop::Head));
    assert_eq!(subscription.cursor(), None);
    for (word, place, buffered) in [
        ("started", 0, 0),
        ("1", 1, 2),
        ("2", 2, 1),
        ("caught-up", 5, 0),
    ] {
        let item = subscription.next().await.unwrap().unwrap();
        assert_eq!(words(&item), word);
        assert_eq!(subscription.cursor(), Some(cursor(place).as_str()));
        assert_eq!(subscription.buffered(), buffered);
    }
    assert!(subscription.next().await.is_none());
}

#[tokio::test]
async fn what_was_skipped_is_told_before_the_events_that_follow() {
    let skipped = Skipped {
        first_sequence: 1,
        last_sequence: 6,
        ..Skipped::default()
    };
    let response = SubscribeResponse {
        events: vec![event(7)],
        cursor: cursor(7),
        notice: Some(subscribe_response::Notice::Skipped(skipped)),
    };
    let fake = Fake::start(vec![vec![Step::Respond(response)]]);
    let mut subscription = client(&fake)
        .await
        .subscribe(Request::new().stop(Stop::Head));
    assert_eq!(all(&mut subscription).await.0, ["skipped", "7"]);
}

#[tokio::test]
async fn every_retryable_end_is_resumed_after_the_last_item() {
    let scripts: Scripts = vec![
        vec![
            started(0, 9),
            events(1..=2),
            bridge_status(Code::Unavailable, "DRAINING"),
        ],
        vec![
            started(2, 9),
            progress(3),
            bridge_status(Code::ResourceExhausted, "SLOW_CONSUMER"),
        ],
        vec![Step::Fail(Status::internal("reset by a proxy"))],
        vec![
            started(3, 9),
            events(4..=4),
            Step::Fail(Status::unknown("broken")),
        ],
        vec![started(4, 9), events(5..=9)],
    ];
    let fake = Fake::start(scripts);
    let request = Request::new().start(Start::Earliest).stop(Stop::Head);
    let mut subscription = client(&fake).await.subscribe(request);
    let (seen, error) = all(&mut subscription).await;
    assert!(error.is_none());
    let delivered: Vec<&String> = seen
        .iter()
        .filter(|word| word.parse::<u64>().is_ok())
        .collect();
    assert_eq!(delivered, ["1", "2", "4", "5", "6", "7", "8", "9"]);
    assert_eq!(
        seen.iter().filter(|word| *word == "reconnecting").count(),
        4
    );

    let starts: Vec<Option<String>> = fake.requests().iter().map(start_of).collect();
    let after = |sequence| Some(cursor(sequence));
    assert_eq!(starts, [None, after(2), after(3), after(3), after(4)]);
}

#[tokio::test]
async fn a_subscription_from_now_on_misses_nothing_when_it_breaks_before_the_first_event() {
    let fake = Fake::start(vec![
        vec![started(7, 7), Step::Fail(Status::unavailable("gone"))],
        vec![
            started(7, 9),
            events(8..=9),
            bridge_status(Code::Unauthenticated, "TOKEN_EXPIRED"),
        ],
    ]);
    let mut subscription = client(&fake).await.subscribe(Request::new());
    let (seen, error) = all(&mut subscription).await;
    assert_eq!(seen, ["started", "reconnecting", "started", "8", "9"]);
    assert!(matches!(error, Some(Error::Refused { .. })));
    assert_eq!(start_of(&fake.requests()[1]), Some(cursor(7)));
}

#[tokio::test]
async fn nothing_comes_twice_after_a_start_time_that_has_come_for_the_server_only() {
    // The server's clock is ahead of this one by more than an hour.
    let time = SystemTime::now() + Duration::from_secs(3600);
    let fake = Fake::start(vec![
        vec![
            started(7, 9),
            events(8..=9),
            Step::Fail(Status::unavailable("gone")),
        ],
        vec![bridge_status(Code::Unauthenticated, "TOKEN_EXPIRED")],
    ]);
    let request = Request::new().start(Start::At(time));
    all(&mut client(&fake).await.subscribe(request)).await;
    assert_eq!(start_of(&fake.requests()[0]), None);
    assert_eq!(start_of(&fake.requests()[1]), Some(cursor(9)));
}

#[tokio::test]
async fn a_killed_server_is_found_again() {
    let mut fake = Fake::start(vec![
        vec![started(0, 1), events(1..=1), Step::Hang],
        vec![started(1, 2), events(2..=2), Step::Hang],
    ]);
    let mut subscription = client(&fake).await.subscribe(Request::new().events_max(2));
    for word in ["started", "1"] {
        assert_eq!(words(&subscription.next().await.unwrap().unwrap()), word);
    }
    fake.kill();
    let item = subscription.next().await.unwrap().unwrap();
    assert_eq!(words(&item), "reconnecting");
    fake.restart();
    let mut seen = Vec::new();
    while seen.last().is_none_or(|word| word != "2") {
        seen.push(words(&subscription.next().await.unwrap().unwrap()));
    }
    assert!(
        seen.ends_with(&["started".to_owned(), "2".to_owned()]),
        "{seen:?}"
    );
}

#[tokio::test]
async fn errors_that_do_not_pass_end_the_subscription() {
    for (code, reason) in [
        (Code::OutOfRange, "CURSOR_EXPIRED"),
        (Code::DataLoss, "LOG_DAMAGED"),
        (Code::FailedPrecondition, "CURSOR_EPOCH_MISMATCH"),
        (Code::InvalidArgument, "FILTER_INVALID"),
        (Code::Unauthenticated, "TOKEN_INVALID"),
        (Code::PermissionDenied, "APP_FORBIDDEN"),
    ] {
        let fake = Fake::start(vec![vec![bridge_status(code, reason)]]);
        let mut subscription = client(&fake).await.subscribe(Request::new());
        let (seen, error) = all(&mut subscription).await;
        assert!(seen.is_empty(), "{reason}");
        match error.unwrap() {
            Error::Expired { earliest, .. } => assert_eq!(earliest, Some(cursor(4))),
            error => assert!(!error.is_retryable(), "{reason}"),
        }
        assert_eq!(fake.requests().len(), 1, "{reason}");
    }
}

#[tokio::test]
async fn only_the_rest_of_the_wanted_events_is_asked_for_again() {
    let fake = Fake::start(vec![
        vec![
            started(0, 9),
            events(1..=3),
            Step::Fail(Status::unavailable("gone")),
        ],
        // The last event is there, but the stream breaks before its end.
        vec![
            started(3, 9),
            events(4..=5),
            Step::Fail(Status::unavailable("gone")),
        ],
    ]);
    let mut subscription = client(&fake).await.subscribe(Request::new().events_max(5));
    let (seen, error) = all(&mut subscription).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(
        seen,
        [
            "started",
            "1",
            "2",
            "3",
            "reconnecting",
            "started",
            "4",
            "5"
        ]
    );
    let wanted: Vec<u64> = fake
        .requests()
        .iter()
        .map(|request| request.stop.as_ref().unwrap().max_events)
        .collect();
    assert_eq!(wanted, [5, 2]);
}

#[tokio::test]
async fn the_head_to_stop_at_is_that_of_the_first_call() {
    let fake = Fake::start(vec![
        vec![
            started(0, 4),
            events(1..=2),
            Step::Fail(Status::unavailable("gone")),
        ],
        vec![started(2, 9), events(3..=4)],
    ]);
    let mut subscription = client(&fake)
        .await
        .subscribe(Request::new().stop(Stop::Head));
    all(&mut subscription).await;
    let stop = fake.requests()[1].stop.clone().unwrap();
    assert_eq!(
        stop.position,
        Some(stop_position::Position::AtCursor(cursor(4)))
    );
}

#[tokio::test]
async fn an_endless_stream_that_ends_is_resumed() {
    let fake = Fake::start(vec![
        vec![started(0, 1), events(1..=1)],
        vec![
            started(1, 1),
            bridge_status(Code::Unauthenticated, "TOKEN_INVALID"),
        ],
    ]);
    let mut subscription = client(&fake).await.subscribe(Request::new());
    let (seen, _) = all(&mut subscription).await;
    assert_eq!(seen, ["started", "1", "reconnecting", "started"]);
}

#[tokio::test]
async fn a_server_that_accepts_and_fails_at_once_is_backed_off_from() {
    let failing = || {
        vec![
            started(0, 0),
            caught_up(0),
            Step::Fail(Status::unavailable("gone")),
        ]
    };
    let working = || {
        vec![
            started(0, 0),
            progress(0),
            Step::Fail(Status::unavailable("gone")),
        ]
    };
    let fake = Fake::start(vec![failing(), failing(), failing(), working()]);
    let first = Duration::from_millis(1);
    let options = Options::new(&fake.url).backoff(Backoff::new(first, Duration::from_secs(1)));
    let mut subscription = Client::connect(&options)
        .await
        .unwrap()
        .subscribe(Request::new());
    let mut delays = Vec::new();
    while delays.len() < 4 {
        if let Item::Notice(Notice::Reconnecting { delay, .. }) =
            subscription.next().await.unwrap().unwrap()
        {
            delays.push(delay);
        }
    }
    assert!(delays[1] >= first && delays[2] >= 2 * first, "{delays:?}");
    assert!(delays[3] <= first, "progress resets: {delays:?}");
}

#[tokio::test]
async fn a_draining_server_is_given_the_time_it_asks_for() {
    let retry_after = Duration::from_millis(50);
    let draining = subscribe_response::Notice::Draining(Draining {
        retry_after: Some(retry_after.try_into().unwrap()),
    });
    let fake = Fake::start(vec![vec![
        started(0, 0),
        notice(0, draining),
        // The process is gone before it could send its status.
        Step::Fail(Status::unknown("broken")),
    ]]);
    let mut subscription = client(&fake).await.subscribe(Request::new());
    for word in ["started", "draining"] {
        assert_eq!(words(&subscription.next().await.unwrap().unwrap()), word);
    }
    match subscription.next().await.unwrap().unwrap() {
        Item::Notice(Notice::Reconnecting { delay, .. }) => assert!(delay >= retry_after),
        item => panic!("{item:?}"),
    }
}

#[tokio::test]
async fn streams_that_reach_their_age_are_planned_and_make_no_wait_longer() {
    let aged = || {
        let mut details = ErrorDetails::with_retry_info(Some(Duration::ZERO));
        details.set_error_info("DRAINING", "prelude-bridge", HashMap::new());
        let status = Status::with_error_details(Code::Unavailable, "it is old", details);
        let draining = subscribe_response::Notice::Draining(Draining {
            retry_after: Some(prost_types::Duration::default()),
        });
        vec![started(0, 0), notice(0, draining), Step::Fail(status)]
    };
    let fake = Fake::start(vec![aged(), aged(), aged(), aged(), aged()]);
    let first = Duration::from_millis(1);
    let options = Options::new(&fake.url).backoff(Backoff::new(first, Duration::from_secs(10)));
    let client = Client::connect(&options).await.unwrap();
    let mut subscription = client.subscribe(Request::new());
    let mut delays = Vec::new();
    while delays.len() < 5 {
        let Item::Notice(notice) = subscription.next().await.unwrap().unwrap() else {
            panic!("an event");
        };
        let is_start = matches!(notice, Notice::Started(_));
        assert_eq!(notice.is_planned(), !is_start, "{notice}");
        if let Notice::Reconnecting { delay, .. } = notice {
            delays.push(delay);
        }
    }
    assert!(delays.iter().all(|&delay| delay <= first), "{delays:?}");
}

#[tokio::test]
async fn a_silent_server_is_left_after_three_progress_intervals() {
    let fake = Fake::start(vec![vec![Step::Hang], vec![Step::Hang]]);
    let options = Options::new(&fake.url).silence_timeout(Duration::from_millis(1));
    let interval = Duration::from_millis(10);
    let request = Request::new().progress_interval(interval);
    let mut subscription = Client::connect(&options).await.unwrap().subscribe(request);
    let before = std::time::Instant::now();
    for _ in 0..2 {
        match subscription.next().await.unwrap().unwrap() {
            Item::Notice(Notice::Reconnecting { error, .. }) => {
                assert!(error.to_string().contains("silent"), "{error}");
            }
            item => panic!("{item:?}"),
        }
        assert!(before.elapsed() >= 3 * interval);
    }
}

#[tokio::test]
async fn a_program_that_starts_again_continues_after_what_it_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileCursorStore::new(directory.path().join("cursor"));
    let fake = Fake::start(vec![
        vec![started(0, 4), events(1..=4), Step::Hang],
        vec![started(2, 4), events(3..=4)],
    ]);
    let client = client(&fake).await;
    let request = || Request::new().start(Start::Earliest).stop(Stop::Head);
    let mut first = client.resume(request(), store.clone()).await.unwrap();
    for word in ["started", "1", "2"] {
        assert_eq!(words(&first.next().await.unwrap().unwrap()), word);
    }
    first.acknowledge().await.unwrap();
    // The third is received but not processed when the program ends.
    assert_eq!(words(&first.next().await.unwrap().unwrap()), "3");
    drop(first);

    let mut second = client.resume(request(), store).await.unwrap();
    assert_eq!(all(&mut second).await.0, ["started", "3", "4"]);
    assert_eq!(start_of(&fake.requests()[1]), Some(cursor(2)));
}

/// Counts what is saved, or refuses to.
#[derive(Clone, Default)]
struct Counting {
    saved: Arc<Mutex<Vec<String>>>,
    is_broken: bool,
}

impl CursorStore for Counting {
    fn load(&self) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        let broken = self.is_broken;
        Box::pin(async move {
            if broken {
                Err("no disk".into())
            } else {
                Ok(None)
            }
        })
    }

    fn save<'a>(&'a self, cursor: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.saved.lock().unwrap().push(cursor.to_owned());
        Box::pin(async { Ok(()) })
    }
}

#[tokio::test]
async fn a_cursor_that_has_not_moved_is_not_stored_again() {
    let fake = Fake::start(vec![vec![started(0, 2), events(1..=2), caught_up(2)]]);
    let store = Counting::default();
    let request = Request::new().stop(Stop::Head);
    let mut subscription = client(&fake)
        .await
        .resume(request, store.clone())
        .await
        .unwrap();
    subscription.acknowledge().await.unwrap();
    while subscription.next().await.is_some() {
        subscription.acknowledge().await.unwrap();
        subscription.acknowledge().await.unwrap();
    }
    assert_eq!(
        *store.saved.lock().unwrap(),
        [cursor(0), cursor(1), cursor(2)]
    );
}

#[tokio::test]
async fn a_store_that_cannot_be_read_is_told_before_anything_is_processed() {
    let fake = Fake::start(Vec::new());
    let store = Counting {
        is_broken: true,
        ..Counting::default()
    };
    let error = client(&fake)
        .await
        .resume(Request::new(), store)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Store(_)));
    assert!(error.to_string().contains("no disk"));
}

#[tokio::test]
async fn a_token_that_was_replaced_in_its_file_is_shown_after_the_old_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    let expired = || bridge_status(Code::Unauthenticated, "TOKEN_EXPIRED");
    let fake = Fake::start(vec![
        vec![started(0, 9), events(1..=2), expired()],
        vec![started(2, 9), events(3..=3), expired()],
        vec![expired()],
    ]);
    let millisecond = Duration::from_millis(1);
    let options = Options::new(&fake.url)
        .backoff(Backoff::new(millisecond, 4 * millisecond))
        .token(crate::TokenSource::file(&path));
    std::fs::write(&path, "one").unwrap();
    let client = Client::connect(&options).await.unwrap();
    let mut subscription = client.subscribe(Request::new());
    assert_eq!(
        words(&subscription.next().await.unwrap().unwrap()),
        "started"
    );
    std::fs::write(&path, "two").unwrap();
    let (seen, error) = all(&mut subscription).await;
    let expected = ["1", "2", "reconnecting", "started", "3", "reconnecting"];
    assert_eq!(seen, expected);
    assert!(matches!(error, Some(Error::Refused { .. })));
    assert_eq!(
        fake.credentials(),
        ["Bearer one", "Bearer two", "Bearer two"]
    );
}

#[tokio::test]
async fn a_token_that_cannot_change_is_refused_once() {
    let refused = || vec![bridge_status(Code::Unauthenticated, "TOKEN_INVALID")];
    let fake = Fake::start(vec![refused(), refused()]);
    let client = Client::connect(&Options::new(&fake.url).token("canary")).await;
    let mut subscription = client.unwrap().subscribe(Request::new());
    let (seen, error) = all(&mut subscription).await;
    assert!(seen.is_empty(), "{seen:?}");
    assert!(matches!(error, Some(Error::Refused { .. })));
    assert_eq!(fake.credentials(), ["Bearer canary"]);
}
