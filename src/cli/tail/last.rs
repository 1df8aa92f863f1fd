//! Owns where `--last N` begins. The contract can start at a time but not at a number of events
//! from the end, as a filter decides which events count; so this looks back over windows of time
//! that grow until one has enough of them.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use tokio_stream::StreamExt as _;

use crate::{
    cli::exit,
    client::{Client, Error, Item, Notice, Request, Start, Stop},
    proto::LogEnd,
};

const WINDOW_FIRST: Duration = Duration::from_secs(60);
/// Six steps lead from a minute to half a year, and what is read again is an eighth.
const WINDOW_FACTOR: u32 = 8;

/// Finds the place from which on `count` events match, or the earliest if there are fewer.
///
/// # Errors
/// Those of the client that do not pass.
pub(super) async fn find(client: &Client, request: &Request, count: u64) -> Result<Start, Error> {
    let range = client.range().await?;
    let head = range.head.unwrap_or_default();
    let (Some(head_at), Some(earliest_at)) = (
        received_at(&head),
        range.earliest.as_ref().and_then(received_at),
    ) else {
        return Ok(Start::After(head.cursor));
    };
    let mut window = WINDOW_FIRST;
    loop {
        let from = head_at
            .checked_sub(window)
            .filter(|from| *from > earliest_at);
        let Some(from) = from else {
            let found = look(client, request, Start::Earliest, &head, count).await?;
            return Ok(found.map_or(Start::Earliest, Start::After));
        };
        if let Some(cursor) = look(client, request, Start::At(from), &head, count).await? {
            return Ok(Start::After(cursor));
        }
        window = window.saturating_mul(WINDOW_FACTOR);
    }
}

/// Reads from `start` to the head and returns the cursor before the newest `count` matches, if
/// there are as many.
async fn look(
    client: &Client,
    request: &Request,
    start: Start,
    head: &LogEnd,
    count: u64,
) -> Result<Option<String>, Error> {
    let request = request
        .clone()
        .start(start)
        .stop(Stop::AtCursor(head.cursor.clone()))
        .events_max(0);
    let mut subscription = client.subscribe(request);
    // The place before the first event that counts, and the places after each.
    let mut places = VecDeque::new();
    while let Some(item) = subscription.next().await {
        match item? {
            Item::Event(event) => {
                places.push_back(event.cursor);
                if places.len() as u64 > count + 1 {
                    places.pop_front();
                }
            }
            Item::Notice(Notice::Started(started)) => {
                if places.is_empty() {
                    if head.sequence.saturating_sub(started.after_sequence) < count {
                        // Even if all of them match, they are not enough.
                        return Ok(None);
                    }
                    places.extend(subscription.cursor().map(str::to_owned));
                }
            }
            Item::Notice(notice @ (Notice::Reconnecting { .. } | Notice::Skipped(_))) => {
                exit::warn(&notice.to_string());
            }
            Item::Notice(_) => {}
        }
    }
    let is_enough = places.len() as u64 == count + 1;
    Ok(places.pop_front().filter(|_| is_enough))
}

fn received_at(end: &LogEnd) -> Option<SystemTime> {
    end.received_at.and_then(|at| at.try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::{
            Options,
            testing::{Fake, Step, cursor, events, range, started},
        },
        proto::{LogRange, start_position::Position},
    };

    async fn found(fake: &Fake, count: u64) -> Start {
        let client = Client::connect(&Options::new(&fake.url)).await.unwrap();
        find(&client, &Request::new(), count).await.unwrap()
    }

    #[tokio::test]
    async fn an_empty_log_is_followed_from_its_head() {
        let head = LogEnd {
            cursor: cursor(7),
            sequence: 7,
            received_at: None,
        };
        let empty = LogRange {
            earliest: Some(head.clone()),
            head: Some(head),
            event_count: 0,
        };
        let fake = Fake::start(Vec::new()).with_range(empty);
        assert_eq!(found(&fake, 3).await, Start::After(cursor(7)));
    }

    #[tokio::test]
    async fn the_newest_events_of_a_window_are_counted_from_its_end() {
        // Event n was received at second n: the first window begins with event 940.
        let script = vec![started(939, 1000), events(940..=960), events(961..=1000)];
        let fake = Fake::start(vec![script]).with_range(range(1, 1000));
        assert_eq!(found(&fake, 3).await, Start::After(cursor(997)));
        let stop = fake.requests()[0].stop.clone().unwrap();
        assert_eq!((stop.max_events, stop.position.is_some()), (0, true));
    }

    #[tokio::test]
    async fn a_window_with_exactly_enough_begins_before_its_first() {
        let script = vec![started(939, 1000), events(940..=942)];
        let fake = Fake::start(vec![script]).with_range(range(1, 1000));
        assert_eq!(found(&fake, 3).await, Start::After(cursor(939)));
    }

    #[tokio::test]
    async fn windows_grow_until_they_have_enough_and_end_with_everything() {
        let fake = Fake::start(vec![
            // Too few events: not even read.
            vec![started(1939, 2000), Step::Hang],
            // Enough events, but too few matches.
            vec![started(1519, 2000), events(1600..=1650)],
            // Everything there is.
            vec![started(0, 2000), events(1..=99)],
        ])
        .with_range(range(1, 2000));
        assert_eq!(found(&fake, 100).await, Start::Earliest);
        let starts: Vec<_> = fake
            .requests()
            .into_iter()
            .map(|request| request.start.unwrap().position.unwrap())
            .collect();
        assert!(
            matches!(
                starts.as_slice(),
                [Position::AtTime(first), Position::AtTime(second), Position::Earliest(_)]
                    if first.seconds == 1_700_001_940 && second.seconds == 1_700_001_520
            ),
            "{starts:?}"
        );
    }
}
