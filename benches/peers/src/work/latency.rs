//! Latency at a fixed rate: every event has a moment at which it is due, whatever became of those
//! before it, and its latency counts from there to when each subscriber has read it. So a server
//! that stalls pays for every event that it held up (no coordinated omission).

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mio::{Interest, Token, unix::SourceFd};
use prelude_bridge_load::{Engine, Latencies, histogram, micros};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::{Bench, Sample, cpu, quantile, sample};
use crate::system::{Running, System};

const EVENTS_PER_SECOND: u32 = 2_000;

/// Connections for webhooks, so that one that takes long does not hold up the next.
const SENDERS: usize = 64;

/// How long it runs before anything counts.
const WARM_UP: Duration = Duration::from_millis(500);

/// How long the last events may take.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn measure(
    bench: &Bench,
    system: System,
    batch: usize,
    subscribers: usize,
) -> Result<Sample> {
    let running = Running::start(system, &bench.host)?;
    let mut engine = Engine::new()?;
    let timer = Timer::new(&engine)?;
    running.subscribe(&mut engine, 0..subscribers, |_| None)?;
    let mut publisher = running.publisher(&mut engine, SENDERS)?;
    let source = running.chunks(bench.chunks(batch));
    let interval = Duration::from_secs(1) / EVENTS_PER_SECOND * u32::try_from(batch)?;
    let count = |duration: Duration| (duration.as_nanos() / interval.as_nanos()) as usize;
    let warm_up = count(WARM_UP);
    let total = warm_up + count(bench.latency_duration);
    let mut pace = Pace {
        started: Instant::now(),
        interval,
        batch,
        warm_up,
        seen: vec![0; subscribers],
        latencies: histogram(),
        late: histogram(),
    };
    let mut answered = Vec::new();
    let mut next = 0;
    let mut clock = None;
    let wanted = (total * batch) as u64;
    loop {
        let now = Instant::now();
        while next < total && pace.due(next) <= now {
            if next == warm_up {
                clock = Some(bench.clock(&running));
            }
            let chunk = source.get(next as u64);
            ensure!(chunk.is_some(), "too few events were made");
            publisher.publish(&mut engine, chunk.unwrap_or_default())?;
            pace.published(next);
            next += 1;
        }
        let is_delivered = pace.seen.iter().all(|&seen| seen >= wanted);
        if next == total && is_delivered {
            break;
        }
        ensure!(now < pace.due(total) + PATIENCE, "events were lost");
        if next < total {
            timer.wake_at(pace.due(next))?;
        }
        engine.turn(Some(Duration::from_millis(100)), |index, received| {
            if publisher.owns(index) {
                answered.push(index);
            } else {
                pace.received(index, received);
            }
        })?;
        for index in answered.drain(..) {
            publisher.answered(&mut engine, index)?;
        }
    }
    let usage = clock.context("nothing was due")?.stop();
    let (server_cpu, shares) = cpu(usage)?;
    #[expect(clippy::cast_precision_loss, reason = "events of one run")]
    let events = ((total - warm_up) * batch) as f64;
    let mut sample = sample([
        ("CPU µs/event", server_cpu * 1e6 / events),
        ("sent late p99 µs", quantile(&pace.late, 0.99)),
    ]);
    sample.extend(shares.map(|(name, share)| (name.to_owned(), share)));
    if subscribers > 0 {
        for (name, at) in [("p50 µs", 0.5), ("p99 µs", 0.99), ("max µs", 1.0)] {
            sample.insert(name.into(), quantile(&pace.latencies, at));
        }
    }
    Ok(sample)
}

/// When things are due, and how late they came.
struct Pace {
    started: Instant,
    interval: Duration,
    batch: usize,
    warm_up: usize,
    /// Events that each subscriber has seen.
    seen: Vec<u64>,
    latencies: Latencies,
    late: Latencies,
}

impl Pace {
    fn due(&self, chunk: usize) -> Instant {
        self.started + self.interval * u32::try_from(chunk).unwrap_or(u32::MAX)
    }

    fn published(&mut self, chunk: usize) {
        if chunk >= self.warm_up {
            let late = self.due(chunk).elapsed();
            self.late.saturating_record(micros(late));
        }
    }

    /// Events come in the order in which they were taken in; the n-th counts as the n-th published.
    fn received(&mut self, subscriber: usize, received: u64) {
        let now = Instant::now();
        let Some(seen) = self.seen.get_mut(subscriber) else {
            return;
        };
        let from = std::mem::replace(seen, received);
        for event in from..received {
            let chunk = usize::try_from(event).unwrap_or(usize::MAX) / self.batch;
            if chunk >= self.warm_up {
                let latency = now.saturating_duration_since(self.due(chunk));
                self.latencies.saturating_record(micros(latency));
            }
        }
    }
}

/// Ends a wait of the engine at a moment to the microsecond; epoll alone counts in milliseconds.
struct Timer(OwnedFd);

impl Timer {
    fn new(engine: &Engine) -> Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let mut source = SourceFd(&timer.as_raw_fd());
        let token = Token(usize::MAX);
        engine
            .registry()
            .register(&mut source, token, Interest::READABLE)?;
        Ok(Self(timer))
    }

    fn wake_at(&self, at: Instant) -> Result<()> {
        // Zero would switch the timer off.
        let left = at
            .saturating_duration_since(Instant::now())
            .max(Duration::from_nanos(1));
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(left)?,
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}
