//! The sender's record of a run: what was sent, how often, and how it ended, to compare with the bridge's
//! log. Knows events by id and type, never by payload.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::{self, Write as _},
    io,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::batch::{Batch, EventRef};

/// The result of one attempt, as the sender sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptResult {
    /// An answer with this status came in time. Only 200 is success.
    Status(u16),
    /// The receiver answered with this status, but the simulator ignores the answer: for the sender it
    /// is a timeout.
    AnswerLost(u16),
    /// No answer within the time allowed.
    TimedOut,
    /// No connection.
    Unreachable,
    /// The connection ended before the answer did.
    Broken,
}

impl AttemptResult {
    /// Whether the sender counts the batch as delivered.
    #[must_use]
    pub fn is_acknowledged(self) -> bool {
        self == Self::Status(200)
    }
}

impl fmt::Display for AttemptResult {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(formatter, "{status}"),
            Self::AnswerLost(status) => write!(formatter, "answer lost ({status})"),
            Self::TimedOut => formatter.write_str("timed out"),
            Self::Unreachable => formatter.write_str("unreachable"),
            Self::Broken => formatter.write_str("connection broken"),
        }
    }
}

impl Serialize for AttemptResult {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Status(status) => serializer.serialize_u16(*status),
            other => serializer.collect_str(other),
        }
    }
}

/// How a delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The receiver answered 200.
    Acknowledged,
    /// The schedule was exhausted.
    GaveUp,
    /// The webhook was deleted or deactivated, or the simulator was stopped, before an answer.
    Abandoned,
}

/// One attempt to deliver a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// When it started.
    pub at: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// Its result.
    pub result: AttemptResult,
}

/// The number of a delivery in its ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(u64);

/// The delivery of one batch to one webhook.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Its number.
    pub id: DeliveryId,
    /// The app it belongs to.
    pub app_id: String,
    /// The webhook it goes to.
    pub webhook_id: String,
    /// The events in it.
    pub events: Vec<EventRef>,
    /// Every attempt so far, the sender's deliberate repetitions included.
    pub attempts: Vec<Attempt>,
    /// When the first 200 came.
    pub acknowledged_at: Option<Timestamp>,
    /// How it ended, once it has.
    pub outcome: Option<Outcome>,
}

/// Sums over all deliveries, exact also for those the ledger no longer lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Totals {
    /// Batches handed to the sender.
    pub batches: u64,
    /// Events in them.
    pub events: u64,
    /// POST requests made.
    pub attempts: u64,
    /// Attempts that were not answered 200.
    pub failed_attempts: u64,
    /// Batches that were answered 200 at least once.
    pub batches_acknowledged: u64,
    /// Events in those.
    pub events_acknowledged: u64,
    /// Batches whose schedule was exhausted.
    pub batches_given_up: u64,
    /// Batches dropped because the webhook or the simulator ended.
    pub batches_abandoned: u64,
    /// The result of the latest failed attempt.
    pub latest_failure: Option<AttemptResult>,
}

/// One event towards one webhook, summed over everything that carried it: a line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The app it belongs to.
    pub app_id: String,
    /// The webhook it went to.
    pub webhook_id: String,
    /// Which event.
    #[serde(flatten)]
    pub event: EventRef,
    /// When the first attempt started.
    #[serde(serialize_with = "rfc3339")]
    pub first_sent_at: Option<Timestamp>,
    /// How many attempts carried it.
    pub attempts: usize,
    /// Their results, in order.
    pub results: Vec<AttemptResult>,
    /// When the first 200 came.
    #[serde(serialize_with = "rfc3339")]
    pub acknowledged_at: Option<Timestamp>,
}

/// The record of a run. Keeps at most `deliveries_max` deliveries; beyond it the oldest finished
/// ones are forgotten, and [`Ledger::forgotten`] counts them.
#[derive(Debug, Clone)]
pub struct Ledger {
    deliveries: BTreeMap<DeliveryId, Delivery>,
    finished: VecDeque<DeliveryId>,
    deliveries_max: usize,
    next: u64,
    totals: Totals,
    forgotten: u64,
}

impl Ledger {
    /// An empty ledger that keeps this many deliveries.
    #[must_use]
    pub fn new(deliveries_max: usize) -> Self {
        Self {
            deliveries: BTreeMap::new(),
            finished: VecDeque::new(),
            deliveries_max,
            next: 0,
            totals: Totals::default(),
            forgotten: 0,
        }
    }

    /// Records a batch that is about to be sent.
    pub fn open(&mut self, webhook_id: &str, batch: &Batch) -> DeliveryId {
        let id = DeliveryId(self.next);
        self.next += 1;
        self.totals.batches += 1;
        self.totals.events += batch.events().len() as u64;
        let delivery = Delivery {
            id,
            app_id: batch.app_id().to_owned(),
            webhook_id: webhook_id.to_owned(),
            events: batch.events().to_vec(),
            attempts: Vec::new(),
            acknowledged_at: None,
            outcome: None,
        };
        self.deliveries.insert(id, delivery);
        while self.deliveries.len() > self.deliveries_max
            && let Some(oldest) = self.finished.pop_front()
        {
            self.deliveries.remove(&oldest);
            self.forgotten += 1;
        }
        id
    }

    /// Records an attempt. An attempt of a delivery that is no longer listed counts in the sums.
    pub fn record(&mut self, id: DeliveryId, attempt: Attempt) {
        self.totals.attempts += 1;
        if !attempt.result.is_acknowledged() {
            self.totals.failed_attempts += 1;
            self.totals.latest_failure = Some(attempt.result);
        }
        let Some(delivery) = self.deliveries.get_mut(&id) else {
            return;
        };
        delivery.attempts.push(attempt);
        if attempt.result.is_acknowledged() && delivery.acknowledged_at.is_none() {
            // The answer is what acknowledges, so the time is that of its arrival.
            let took = jiff::SignedDuration::try_from(attempt.took).unwrap_or_default();
            delivery.acknowledged_at = attempt.at.checked_add(took).ok();
            self.totals.batches_acknowledged += 1;
            self.totals.events_acknowledged += delivery.events.len() as u64;
        }
    }

    /// Records how a delivery ended.
    pub fn close(&mut self, id: DeliveryId, outcome: Outcome) {
        let Some(delivery) = self.deliveries.get_mut(&id) else {
            return;
        };
        if delivery.outcome.replace(outcome).is_none() {
            self.finished.push_back(id);
            match outcome {
                Outcome::Acknowledged => {}
                Outcome::GaveUp => self.totals.batches_given_up += 1,
                Outcome::Abandoned => self.totals.batches_abandoned += 1,
            }
        }
    }

    /// The sums.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// How many finished deliveries are no longer listed.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The deliveries listed, oldest first.
    pub fn deliveries(&self) -> impl Iterator<Item = &Delivery> {
        self.deliveries.values()
    }

    /// One line per webhook and event, in the order of their first sending. An event that was
    /// carried by several deliveries has one line.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let mut index: BTreeMap<(&str, &EventRef), usize> = BTreeMap::new();
        let mut lines: Vec<Line> = Vec::new();
        for delivery in self.deliveries.values() {
            for event in &delivery.events {
                let at = *index
                    .entry((&delivery.webhook_id, event))
                    .or_insert_with(|| {
                        lines.push(Line {
                            app_id: delivery.app_id.clone(),
                            webhook_id: delivery.webhook_id.clone(),
                            event: event.clone(),
                            first_sent_at: None,
                            attempts: 0,
                            results: Vec::new(),
                            acknowledged_at: None,
                        });
                        lines.len() - 1
                    });
                if let Some(line) = lines.get_mut(at) {
                    line.add(delivery);
                }
            }
        }
        lines
    }

    /// Writes [`Ledger::lines`] as JSON, one a line.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_json_lines(&self, mut out: impl io::Write) -> io::Result<()> {
        for line in self.lines() {
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")?;
        }
        out.flush()
    }

    /// A table for people: sums, then attempts by what they came to, then how often batches had to
    /// be sent.
    #[must_use]
    pub fn summary(&self) -> String {
        let totals = self.totals;
        let mut results: BTreeMap<String, u64> = BTreeMap::new();
        let mut by_attempts: BTreeMap<usize, u64> = BTreeMap::new();
        for delivery in self.deliveries.values() {
            *by_attempts.entry(delivery.attempts.len()).or_default() += 1;
            for attempt in &delivery.attempts {
                *results.entry(attempt.result.to_string()).or_default() += 1;
            }
        }
        let ended = totals.batches_acknowledged + totals.batches_given_up;
        let open = totals.batches.saturating_sub(ended);
        let mut text = String::new();
        // Writing into a String cannot fail.
        let mut row = |name: &str, value: u64| {
            let _ = writeln!(text, "{name:<28} {value:>10}");
        };
        row("events sent", totals.events);
        row("events acknowledged", totals.events_acknowledged);
        row("batches sent", totals.batches);
        row("batches acknowledged", totals.batches_acknowledged);
        row("batches given up", totals.batches_given_up);
        row("batches without an answer", open);
        row("attempts", totals.attempts);
        for (result, count) in &results {
            row(&format!("  answered {result}"), *count);
        }
        for (attempts, count) in &by_attempts {
            row(&format!("  batches sent {attempts} times"), *count);
        }
        if self.forgotten > 0 {
            row("batches no longer listed", self.forgotten);
        }
        text
    }
}

impl Line {
    fn add(&mut self, delivery: &Delivery) {
        self.attempts += delivery.attempts.len();
        self.results
            .extend(delivery.attempts.iter().map(|attempt| attempt.result));
        let first = delivery.attempts.first().map(|attempt| attempt.at);
        self.first_sent_at = earlier(self.first_sent_at, first);
        self.acknowledged_at = earlier(self.acknowledged_at, delivery.acknowledged_at);
    }
}

#[expect(clippy::ref_option, reason = "the signature serde asks for")]
fn rfc3339<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.collect_str(at),
        None => serializer.serialize_none(),
    }
}

fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            batch::ItemStyle,
            events::{Generator, IdStyle},
        },
        *,
    };

    fn batch(seed: u64, events: usize) -> Batch {
        let mut generator = Generator::new(seed);
        let at = Timestamp::UNIX_EPOCH;
        let events: Vec<_> = (0..events)
            .map(|_| generator.next(at, &[], IdStyle::Prefixed, 0.0))
            .collect();
        Batch::encode("54e9ujn", &events, ItemStyle::default()).unwrap()
    }

    fn attempt(second: i64, result: AttemptResult) -> Attempt {
        Attempt {
            at: Timestamp::from_second(second).unwrap(),
            took: Duration::from_secs(1),
            result,
        }
    }

    #[test]
    fn a_lost_answer_is_no_acknowledgement_and_the_retry_is() {
        let mut ledger = Ledger::new(10);
        let id = ledger.open("web_1", &batch(1, 3));
        ledger.record(id, attempt(10, AttemptResult::AnswerLost(200)));
        assert_eq!(ledger.totals().events_acknowledged, 0);
        ledger.record(id, attempt(70, AttemptResult::Status(200)));
        ledger.close(id, Outcome::Acknowledged);
        let lines = ledger.lines();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].attempts, 2);
        assert_eq!(lines[0].first_sent_at, Timestamp::from_second(10).ok());
        assert_eq!(lines[0].acknowledged_at, Timestamp::from_second(71).ok());
        assert_eq!(ledger.totals().events_acknowledged, 3);
        assert_eq!(ledger.totals().failed_attempts, 1);
    }

    #[test]
    fn an_event_carried_by_two_deliveries_has_one_line_and_two_webhooks_have_two() {
        let mut ledger = Ledger::new(10);
        let batch = batch(1, 1);
        for webhook in ["web_1", "web_1", "web_2"] {
            let id = ledger.open(webhook, &batch);
            ledger.record(id, attempt(5, AttemptResult::Status(200)));
        }
        let lines = ledger.lines();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].attempts, lines[1].attempts), (2, 1));
    }

    #[test]
    fn beyond_its_bound_it_forgets_finished_deliveries_and_keeps_the_sums() {
        let mut ledger = Ledger::new(2);
        let waiting = ledger.open("web_1", &batch(0, 1));
        for seed in 1..=5 {
            let id = ledger.open("web_1", &batch(seed, 1));
            ledger.record(id, attempt(1, AttemptResult::Status(200)));
            ledger.close(id, Outcome::Acknowledged);
        }
        assert_eq!(ledger.deliveries().count(), 2);
        assert_eq!(ledger.deliveries().next().unwrap().id, waiting);
        assert_eq!(ledger.forgotten(), 4);
        assert_eq!(ledger.totals().events, 6);
        assert_eq!(ledger.totals().events_acknowledged, 5);
    }

    #[test]
    fn json_lines_say_what_happened_to_each_event() {
        let mut ledger = Ledger::new(10);
        let id = ledger.open("web_1", &batch(1, 1));
        ledger.record(id, attempt(1, AttemptResult::Unreachable));
        ledger.record(id, attempt(61, AttemptResult::Status(503)));
        let mut out = Vec::new();
        ledger.write_json_lines(&mut out).unwrap();
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(line["results"], serde_json::json!(["unreachable", 503]));
        assert_eq!(line["acknowledged_at"], serde_json::Value::Null);
        assert!(line["event_id"].as_str().unwrap().starts_with("evt_"));
    }

    #[test]
    fn the_summary_adds_up() {
        let mut ledger = Ledger::new(10);
        let id = ledger.open("web_1", &batch(1, 4));
        ledger.record(id, attempt(1, AttemptResult::Status(503)));
        ledger.close(id, Outcome::GaveUp);
        let summary = ledger.summary();
        assert!(summary.contains("answered 503"), "{summary}");
        let value = |name: &str| {
            let line = summary.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace()
                .last()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        assert_eq!(value("batches given up"), 1);
        assert_eq!(value("batches without an answer"), 0);
    }
}
