//! Owns what is read when somebody scrapes, because to keep it current would cost the hot path:
//! the state of the log, the bus, the streams, the keys and the credentials, as plain numbers.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::log::IdsUsage;

/// The log, as of a scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Bytes on disk (in memory, for the memory log).
    pub stored_bytes: u64,
    /// Batches that wait for the writer.
    pub queued_batches: usize,
    /// Whether it takes events.
    pub is_ready: bool,
    /// How many commits of other bridges it does not have yet, as far as it knows.
    pub commits_behind: u64,
    /// Sequence number of the newest event.
    pub head_sequence: u64,
    /// Sequence number of the oldest event.
    pub earliest_sequence: u64,
    /// How often the system's clock jumped.
    pub clock_jumps: u64,
    /// What the ids occupy, where that is limited.
    pub ids: Option<IdsUsage>,
    /// How many ranges of events are known to be damaged.
    pub damaged_ranges: usize,
    /// How many events these ranges have.
    pub damaged_events: u64,
}

/// The window of the newest blocks in memory, as of a scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bus {
    /// What the window occupies, in bytes.
    pub window_bytes: u64,
    /// How many blocks it holds.
    pub window_blocks: usize,
}

/// The open streams, as of a scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Streams {
    /// How many subscribers there are.
    pub subscribers: usize,
    /// How many events the slowest of them is behind the head.
    pub lag_events_max: u64,
    /// How long ago the oldest event that the slowest has not been sent became durable.
    pub lag_max: Duration,
}

/// The keys of one app, as of a scrape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The configured app.
    pub app_id: Arc<str>,
    /// How many keys can verify a delivery.
    pub usable: usize,
    /// How long ago the key source was last read with success; `None` before the first time.
    pub age: Option<Duration>,
}

/// When a credential of the credentials file expires, as of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct CredentialExpiry {
    /// Its name, or that it is withheld.
    pub credential: String,
    /// In seconds since the Unix epoch.
    pub expires_at: f64,
}

pub(super) type Read<T> = OnceLock<Box<dyn Fn() -> T + Send + Sync>>;

/// The watches that there are.
#[derive(Default)]
pub(super) struct Watched {
    pub(super) log: Read<Log>,
    pub(super) bus: Read<Bus>,
    pub(super) streams: Read<Streams>,
    pub(super) keys: Read<Vec<Keys>>,
    pub(super) credentials: Read<Vec<CredentialExpiry>>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Watched").finish_non_exhaustive()
    }
}

impl Collector for Watched {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(log) = self.log.get().map(|read| read()) {
            encode_log(&log, &mut encoder)?;
        }
        if let Some(bus) = self.bus.get().map(|read| read()) {
            let gauges = [
                (
                    "bus_window",
                    "Size of the newest blocks held in memory.",
                    Some(Unit::Bytes),
                    bus.window_bytes as f64,
                ),
                (
                    "bus_window_blocks",
                    "Number of the newest blocks held in memory.",
                    None,
                    bus.window_blocks as f64,
                ),
            ];
            encode_gauges(gauges, &mut encoder)?;
        }
        if let Some(streams) = self.streams.get().map(|read| read()) {
            let gauges = [
                (
                    "subscribers",
                    "Open subscriptions.",
                    None,
                    streams.subscribers as f64,
                ),
                (
                    "subscriber_lag_events_max",
                    "Events that the slowest subscriber is behind the head.",
                    None,
                    streams.lag_events_max as f64,
                ),
                (
                    "subscriber_lag_max",
                    "Age of the oldest event that the slowest subscriber was not sent.",
                    Some(Unit::Seconds),
                    streams.lag_max.as_secs_f64(),
                ),
            ];
            encode_gauges(gauges, &mut encoder)?;
        }
        if let Some(keys) = self.keys.get().map(|read| read()) {
            encode_keys(&keys, &mut encoder)?;
        }
        if let Some(expiries) = self.credentials.get().map(|read| read()) {
            encode_expiries(&expiries, &mut encoder)?;
        }
        Ok(())
    }
}

/// Encodes gauges without labels, each as name, help, unit and value.
fn encode_gauges<const N: usize>(
    gauges: [(&str, &str, Option<Unit>, f64); N],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    for (name, help, unit, value) in gauges {
        let gauge = ConstGauge::<f64>::new(value);
        let metric_type = gauge.metric_type();
        gauge.encode(encoder.encode_descriptor(name, help, unit.as_ref(), metric_type)?)?;
    }
    Ok(())
}

/// Encodes a counter without labels.
fn encode_counter(
    name: &str,
    help: &str,
    value: u64,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let counter = ConstCounter::new(value);
    let metric_type = counter.metric_type();
    counter.encode(encoder.encode_descriptor(name, help, None, metric_type)?)
}

fn encode_log(log: &Log, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let gauges = [
        (
            "log_stored",
            "Size of the log.",
            Some(Unit::Bytes),
            log.stored_bytes as f64,
        ),
        (
            "log_queue_batches",
            "Batches that wait for the log's writer.",
            None,
            log.queued_batches as f64,
        ),
        (
            "log_ready",
            "1 if the log takes events; 0 if its disk is full, if its store does not answer, or until it \
             has caught up with it.",
            None,
            f64::from(u8::from(log.is_ready)),
        ),
        (
            "log_commits_behind",
            "Commits of the store that this bridge does not have yet, while it catches up.",
            None,
            log.commits_behind as f64,
        ),
        (
            "log_head_sequence",
            "Sequence number of the newest event.",
            None,
            log.head_sequence as f64,
        ),
        (
            "log_earliest_sequence",
            "Sequence number of the oldest event that is still there.",
            None,
            log.earliest_sequence as f64,
        ),
        (
            "log_damaged_ranges",
            "Ranges of events that cannot be read, because their bytes are damaged.",
            None,
            log.damaged_ranges as f64,
        ),
        (
            "log_damaged_events",
            "Events that cannot be read, because their bytes are damaged.",
            None,
            log.damaged_events as f64,
        ),
    ];
    encode_gauges(gauges, encoder)?;
    if let Some(ids) = &log.ids {
        encode_ids(ids, encoder)?;
    }
    let help = "How often the system's clock jumped.";
    encode_counter("clock_jumps", help, log.clock_jumps, encoder)
}

/// One series for each name, so that names that are withheld have the earliest of their expiries.
fn encode_expiries(
    expiries: &[CredentialExpiry],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let mut earliest = BTreeMap::new();
    for expiry in expiries {
        let at = earliest
            .entry(expiry.credential.as_str())
            .or_insert(expiry.expires_at);
        *at = at.min(expiry.expires_at);
    }
    let mut family = encoder.encode_descriptor(
        "credential_expiry",
        "Until when a credential of the credentials file is valid, since the Unix epoch, by name.",
        Some(&Unit::Seconds),
        ConstGauge::<f64>::new(0.0).metric_type(),
    )?;
    for (credential, at) in earliest {
        let label = [("credential", credential)];
        ConstGauge::new(at).encode(family.encode_family(&label)?)?;
    }
    Ok(())
}

fn encode_ids(ids: &IdsUsage, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let gauges = [
        (
            "log_ids",
            "Size of the ids by which repetitions are recognised; part of log_stored_bytes.",
            Some(Unit::Bytes),
            ids.bytes as f64,
        ),
        (
            "log_ids_limit",
            "Above this size the oldest ids are forgotten before their time.",
            Some(Unit::Bytes),
            ids.bytes_max as f64,
        ),
        (
            "log_ids_expected",
            "Size of the ids if as many come as in the last day.",
            Some(Unit::Bytes),
            ids.bytes_expected as f64,
        ),
    ];
    encode_gauges(gauges, encoder)?;
    let help = "Ids that were forgotten before their time.";
    encode_counter("ids_forgotten_early", help, ids.forgotten_early, encoder)
}

fn encode_keys(keys: &[Keys], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let label = |keys: &Keys| [("app", keys.app_id.to_string())];
    let usable = ConstGauge::<u64>::new(0).metric_type();
    let mut family = encoder.encode_descriptor(
        "keys_usable",
        "Keys that can verify a delivery, by app.",
        None,
        usable,
    )?;
    for app in keys {
        let gauge = ConstGauge::new(app.usable as u64);
        gauge.encode(family.encode_family(&label(app))?)?;
    }
    let unit = Unit::Seconds;
    let mut family = encoder.encode_descriptor(
        "keys_age",
        "Time since the key source was last read with success, by app.",
        Some(&unit),
        usable,
    )?;
    for app in keys {
        if let Some(age) = app.age {
            let gauge = ConstGauge::new(age.as_secs_f64());
            gauge.encode(family.encode_family(&label(app))?)?;
        }
    }
    Ok(())
}
