//! Owns where `--last N` begins. The contract can start at a time or a cursor, but not at a number of
//! events from the end, as a filter decides which events count. So this looks back from the head,
//! slice by slice, and reads no slice twice. The first response of a stream has the position that it
//! starts after, so a slice with about the right number of events is found by trying times.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use tokio_stream::StreamExt as _;

use crate::{
    cli::exit,
    client::{Client, Error, Item, Notice, Request, Start, Stop},
    proto::{DamagedPolicy, LogEnd, PayloadFormat, SkipReason},
};

/// The smallest slice: reading some events costs less than another call.
const EXCESS_EVENTS: u64 = 100;
/// How much larger the next slice is when the last one had too few matches, at least.
const SLICE_FACTOR: u64 = 8;
const SLICE_EVENTS_MIN: u64 = 1_000;
/// Halving half a year this often leads to a minute, and every other call is a better guess.
const QUESTIONS_MAX: u32 = 32;
/// The precision of the log's times.
const TICK: Duration = Duration::from_micros(1);

/// Finds the cursor after which `count` events match, or the earliest if there are fewer.
///
/// # Errors
/// Those of the client that do not pass.
pub(super) async fn find(client: &Client, request: &Request, count: u64) -> Result<Start, Error> {
    let range = client.range().await?;
    let head = range.head.unwrap_or_default();
    let earliest = range.earliest.unwrap_or_default();
    let (Some(head_at), Some(earliest_at)) = (received_at(&head), received_at(&earliest)) else {
        return Ok(Start::After(head.cursor));
    };
    let search = Search {
        client,
        // The smallest form that there is. Of damaged events the subscription from the found place
        // on tells, if they are after it.
        request: request
            .clone()
            .payload_format(PayloadFormat::Typed)
            .on_damaged(DamagedPolicy::Skip)
            .events_max(0),
        earliest,
        earliest_at,
    };
    let mut upper = Edge {
        cursor: head.cursor,
        sequence: head.sequence,
        at: head_at + TICK,
    };
    let (mut needed, mut slice) = (count, count);
    loop {
        let lower = search.lower_edge(&upper, slice).await?;
        let mut places = search.read(lower.as_ref(), &upper, needed).await?;
        let matches = (places.len() as u64).saturating_sub(1);
        if matches >= needed {
            return Ok(places.pop_front().map_or(Start::Earliest, Start::After));
        }
        let Some(lower) = lower else {
            return Ok(Start::Earliest);
        };
        needed -= matches;
        slice = slice.saturating_mul(SLICE_FACTOR).max(SLICE_EVENTS_MIN);
        upper = lower;
    }
}

/// A position between two events.
struct Edge {
    cursor: String,
    /// The sequence number of the event before it.
    sequence: u64,
    /// A time that leads there.
    at: SystemTime,
}

struct Search<'a> {
    client: &'a Client,
    request: Request,
    earliest: LogEnd,
    earliest_at: SystemTime,
}

impl Search<'_> {
    /// A position with at least `wanted` events between it and `upper`, and not many more; `None` for
    /// the earliest end.
    async fn lower_edge(&self, upper: &Edge, wanted: u64) -> Result<Option<Edge>, Error> {
        let enough = wanted.saturating_mul(2).saturating_add(EXCESS_EVENTS);
        // The numbers of events after two times: one too many, and one too few.
        let (mut low, mut many) = (
            self.earliest_at,
            (upper.sequence + 1).saturating_sub(self.earliest.sequence),
        );
        let (mut high, mut few) = (upper.at, 0);
        let mut found = None;
        for question in 0..QUESTIONS_MAX {
            let span = high.duration_since(low).unwrap_or_default();
            if many <= enough || span <= TICK {
                break;
            }
            let share = match question % 2 {
                // Assumes that events arrive evenly.
                0 => share(wanted.saturating_add(enough) / 2 - few, many - few),
                _ => 0.5,
            };
            let edge = self.edge_at(high - span.mul_f64(share)).await?;
            let events = upper.sequence.saturating_sub(edge.sequence);
            if events < wanted {
                (high, few) = (edge.at, events);
            } else {
                (low, many) = (edge.at, events);
                found = Some(edge);
            }
        }
        Ok(found)
    }

    /// The position at which a stream from this time starts. Its stop position is before it, so the
    /// stream ends at once.
    async fn edge_at(&self, at: SystemTime) -> Result<Edge, Error> {
        let request = self
            .request
            .clone()
            .start(Start::At(at))
            .stop(Stop::AtCursor(self.earliest.cursor.clone()));
        let mut subscription = self.client.subscribe(request);
        let mut edge = Edge {
            cursor: self.earliest.cursor.clone(),
            sequence: self.earliest.sequence.saturating_sub(1),
            at,
        };
        while let Some(item) = subscription.next().await {
            match item? {
                Item::Notice(Notice::Started(started)) => {
                    edge.sequence = started.after_sequence;
                    if let Some(cursor) = subscription.cursor() {
                        cursor.clone_into(&mut edge.cursor);
                    }
                }
                Item::Notice(notice) => warn_of(&notice),
                Item::Event(_) => {}
            }
        }
        Ok(edge)
    }

    /// The positions around the newest `count` matches of a slice: before the first, and after each.
    async fn read(
        &self,
        lower: Option<&Edge>,
        upper: &Edge,
        count: u64,
    ) -> Result<VecDeque<String>, Error> {
        let start = lower.map_or(Start::Earliest, |lower| Start::After(lower.cursor.clone()));
        let request = self
            .request
            .clone()
            .start(start)
            .stop(Stop::AtCursor(upper.cursor.clone()));
        let mut subscription = self.client.subscribe(request);
        let mut places = VecDeque::new();
        while let Some(item) = subscription.next().await {
            match item? {
                Item::Event(event) => {
                    places.push_back(event.cursor);
                    if places.len() as u64 > count + 1 {
                        places.pop_front();
                    }
                }
                Item::Notice(Notice::Started(_)) if places.is_empty() => {
                    places.extend(subscription.cursor().map(str::to_owned));
                }
                Item::Notice(notice) => warn_of(&notice),
            }
        }
        Ok(places)
    }
}

fn warn_of(notice: &Notice) {
    let is_worth_it = match notice {
        Notice::Reconnecting { .. } => true,
        Notice::Skipped(skipped) => skipped.reason() != SkipReason::Damaged,
        _ => false,
    };
    if is_worth_it {
        exit::warn(&notice.to_string());
    }
}

/// Never all and never nothing, so that every call narrows the span.
fn share(part: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a guess")]
    let share = part as f64 / whole.max(1) as f64;
    share.clamp(1e-9, 0.999)
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
            testing::{Fake, cursor, events, range, started},
        },
        proto::{LogRange, SubscribeRequest, start_position, stop_position},
    };

    async fn found(fake: &Fake, count: u64) -> Start {
        let client = Client::connect(&Options::new(&fake.url)).await.unwrap();
        find(&client, &Request::new(), count).await.unwrap()
    }

    /// Where each call started, with times in seconds after that of event 0.
    fn starts(fake: &Fake) -> Vec<String> {
        let start = |request: SubscribeRequest| match request.start.unwrap().position.unwrap() {
            start_position::Position::AtTime(at) => format!("at {}", at.seconds - 1_700_000_000),
            start_position::Position::AfterCursor(cursor) => cursor,
            start_position::Position::Earliest(_) => "earliest".to_owned(),
            start_position::Position::Latest(_) => "latest".to_owned(),
        };
        fake.requests().into_iter().map(start).collect()
    }

    fn stops(fake: &Fake) -> Vec<String> {
        let stop = |request: SubscribeRequest| match request.stop.unwrap().position.unwrap() {
            stop_position::Position::AtCursor(cursor) => cursor,
            other => format!("{other:?}"),
        };
        fake.requests().into_iter().map(stop).collect()
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
    async fn a_log_with_few_events_is_read_whole() {
        let fake = Fake::start(vec![vec![started(0, 50), events(1..=50)]]);
        let fake = fake.with_range(range(1, 50));
        assert_eq!(found(&fake, 3).await, Start::After(cursor(47)));
        let fake = Fake::start(vec![vec![started(0, 50), events(48..=50)]]);
        let fake = fake.with_range(range(1, 50));
        assert_eq!(found(&fake, 3).await, Start::After(cursor(0)), "exactly");
        let fake = Fake::start(vec![vec![started(0, 50), events(49..=50)]]);
        let fake = fake.with_range(range(1, 50));
        assert_eq!(found(&fake, 3).await, Start::Earliest);
        assert_eq!(starts(&fake), ["earliest"]);
        assert_eq!(stops(&fake), ["cursor-50"]);
    }

    #[tokio::test]
    async fn of_a_large_log_only_a_slice_near_the_end_is_read() {
        // Event n was received at second n.
        let fake = Fake::start(vec![
            vec![started(999_945, 1_000_000)],
            vec![
                started(999_945, 1_000_000),
                events(999_946..=999_990),
                events(999_991..=1_000_000),
            ],
        ])
        .with_range(range(1, 1_000_000));
        assert_eq!(found(&fake, 3).await, Start::After(cursor(999_997)));
        assert_eq!(starts(&fake), ["at 999946", "cursor-999945"]);
        // The first is behind its start, so it ends at once.
        assert_eq!(stops(&fake), ["cursor-0", "cursor-1000000"]);
    }

    #[tokio::test]
    async fn a_burst_is_cut_by_asking_for_later_times() {
        let fake = Fake::start(vec![
            // Nearly all came in the last seconds.
            vec![started(50, 1_000_000)],
            vec![started(70, 1_000_000)],
            // And nothing after this.
            vec![started(1_000_000, 1_000_000)],
            vec![started(999_950, 1_000_000)],
            vec![started(999_950, 1_000_000), events(999_951..=1_000_000)],
        ])
        .with_range(range(1, 1_000_000));
        assert_eq!(found(&fake, 2).await, Start::After(cursor(999_998)));
        let starts = starts(&fake);
        assert_eq!(starts.len(), 5);
        assert_eq!(starts[4], "cursor-999950");
    }

    #[tokio::test]
    async fn slices_grow_backwards_until_enough_match_and_none_is_read_twice() {
        let fake = Fake::start(vec![
            vec![started(9_900, 10_000)],
            vec![started(9_900, 10_000), events(9_999..=9_999)],
            vec![started(8_500, 10_000)],
            vec![started(8_500, 10_000), events(8_600..=8_601)],
            // What is left is no more than a slice.
            vec![started(0, 10_000), events(11..=20)],
        ])
        .with_range(range(1, 10_000));
        assert_eq!(found(&fake, 5).await, Start::After(cursor(18)));
        let starts = starts(&fake);
        assert!(starts[0].starts_with("at ") && starts[2].starts_with("at "));
        assert_eq!(starts[1], "cursor-9900");
        assert_eq!(starts[3], "cursor-8500");
        assert_eq!(starts[4], "earliest");
        let stops = stops(&fake);
        assert_eq!(
            stops,
            [
                "cursor-0",
                "cursor-10000",
                "cursor-0",
                "cursor-9900",
                "cursor-8500"
            ]
        );
    }
}
