//! Owns the list of open streams: how many there may be, how far each is, and how each ended.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use dashmap::DashMap;

use super::failure::Failure;
use crate::{event::Sequence, metrics::Metrics, plain};

/// All open streams.
pub(super) struct Registry {
    streams_max: usize,
    /// Those that have no place yet included.
    admitted: AtomicUsize,
    next_id: AtomicU64,
    streams: DashMap<u64, Arc<Progress>>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Progress {
    position: AtomicU64,
    /// Nothing matched after the position when the stream last looked.
    idle: AtomicBool,
}

/// What can be seen of all streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// How many are open.
    pub open: usize,
    /// How many events the slowest has not yet been sent.
    pub lag_events_max: u64,
    /// The place of the slowest, if anything lies after it.
    pub slowest: Option<Sequence>,
}

impl Registry {
    pub(super) fn new(streams_max: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            streams_max,
            admitted: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
            streams: DashMap::new(),
            metrics,
        }
    }

    /// Admits a stream, if there is room for it. It counts as a stream once it is
    /// [opened](Registration::opened).
    pub(super) fn admit(self: &Arc<Self>) -> Result<Registration, Failure> {
        let admitted = self
            .admitted
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
                (open < self.streams_max).then_some(open + 1)
            });
        if admitted.is_err() {
            return Err(Failure::Streams {
                streams_max: self.streams_max,
            });
        }
        Ok(Registration {
            registry: Arc::clone(self),
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            is_open: false,
            progress: Arc::default(),
            opened_at: Instant::now(),
            events: 0,
            reason: Arc::default(),
        })
    }

    pub(super) fn snapshot(&self, head: Sequence) -> Snapshot {
        // An idle stream has nothing to read, wherever it stopped looking.
        let busy = self
            .streams
            .iter()
            .filter(|entry| !entry.idle.load(Ordering::Relaxed));
        let slowest = busy
            .map(|entry| entry.position.load(Ordering::Relaxed))
            .min();
        let slowest = slowest.map(Sequence).filter(|&position| position < head);
        Snapshot {
            open: self.streams.len(),
            lag_events_max: slowest.map_or(0, |position| head.0 - position.0),
            slowest,
        }
    }
}

/// One stream's entry in the list. Dropping it removes the stream, with the reason it ended for.
pub(super) struct Registration {
    registry: Arc<Registry>,
    id: u64,
    /// Whether it is a stream. Otherwise whoever refuses the call counts it.
    is_open: bool,
    progress: Arc<Progress>,
    opened_at: Instant,
    events: u64,
    reason: Arc<OnceLock<&'static str>>,
}

impl Registration {
    /// Lists the stream: from here on it has a place, and everything after it will be seen.
    pub(super) fn opened(
        &mut self,
        position: Sequence,
        peer: Option<SocketAddr>,
        credential: &str,
        client_name: &str,
    ) {
        tracing::info!(
            stream = self.id,
            peer = peer.map(tracing::field::display),
            credential = plain::name(credential),
            client = plain::name(client_name),
            "stream opened"
        );
        self.is_open = true;
        self.progress.position.store(position.0, Ordering::Relaxed);
        let progress = Arc::clone(&self.progress);
        self.registry.streams.insert(self.id, progress);
    }

    /// Counts a response of so many events and bytes, after which the stream is at `position`.
    pub(super) fn told(&mut self, position: Sequence, events: usize, bytes: usize) {
        self.events += events as u64;
        self.progress.position.store(position.0, Ordering::Relaxed);
        self.progress.idle.store(false, Ordering::Relaxed);
        self.registry.metrics.delivered(events, bytes);
    }

    pub(super) fn waiting(&self, position: Sequence) {
        self.progress.position.store(position.0, Ordering::Relaxed);
        self.progress.idle.store(true, Ordering::Relaxed);
    }

    pub(super) fn ended(&mut self, end: &Result<(), Failure>) {
        let reason = end
            .as_ref()
            .map_or_else(Failure::counted_reason, |()| "COMPLETE");
        let _ = self.reason.set(reason);
    }

    /// Where the reason of the end is noted, for whoever ends the stream without its session.
    pub(super) fn reason(&self) -> Arc<OnceLock<&'static str>> {
        Arc::clone(&self.reason)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Whoever sees that the stream is gone may count on its room.
        self.registry.admitted.fetch_sub(1, Ordering::AcqRel);
        if !self.is_open {
            return;
        }
        self.registry.streams.remove(&self.id);
        // Nobody said why: the client went, or its connection did.
        let reason = self.reason.get().copied().unwrap_or("CLIENT_GONE");
        self.registry.metrics.stream_ended(reason);
        tracing::info!(
            stream = self.id,
            reason,
            events = self.events,
            position = self.progress.position.load(Ordering::Relaxed),
            seconds = seconds(self.opened_at.elapsed()),
            "stream ended"
        );
    }
}

/// To the millisecond: numbers below 0.00001 would be written with an exponent.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_without_an_exponent() {
        for (nanos, written) in [
            (0, "0.0"),
            (54_562, "0.0"),
            (500_000, "0.001"),
            (1_234_567_890, "1.235"),
            (86_400_000_000_000, "86400.0"),
        ] {
            let shown = seconds(Duration::from_nanos(nanos));
            assert_eq!(format!("{shown:?}"), written);
            assert_eq!(serde_json::to_string(&shown).unwrap(), written);
        }
    }
}
