//! Owns the log's idea of time. The wall clock of a machine can be set to anything at any moment, so
//! the log has two times of its own, which the monotonic clock carries on:
//!
//! - The *stamping clock* ([`Now::wall`]) follows the wall clock, except for jumps: a jump counts
//!   only when it has lasted for a minute (`wall`). Events are stamped with it.
//! - The *retention clock* ([`Now::retention`]) decides what is removed and forgotten. It runs no
//!   faster than time can have passed, and no jump of the wall clock moves it (`retention`).
//!
//! Of both follows the earliest time that it can be ([`Watch::earliest_now`]): the wall clock's, but no
//! later than the retention clock allows.
//!
//! Knows nothing of events and files; what has to outlive the process is a [`Stored`].

mod ages;
#[cfg(test)]
pub(super) mod machine;
mod retention;
mod stored;
#[cfg(test)]
mod tests;
mod wall;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
};

use jiff::SignedDuration;
use sha2::{Digest as _, Sha256};

pub(super) use self::{
    ages::{Ages, Mark},
    retention::{RetentionNow, RetentionTime},
    stored::Stored,
};
use self::{
    retention::Retention,
    wall::{Change, Wall},
};
use super::EarliestNow;
use prelude_bridge_event::UnixMicros;

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;

/// Jumps are logged at most so often in a minute, and counted always: a clock that is set to and fro
/// does not fill the log.
const JUMP_LINES_PER_MINUTE: u32 = 10;
/// How long the bridge can have been down without a log line about what that means.
const QUIET_GAP: i64 = HOUR;
/// What is stored is renewed after this time at the latest. After a crash with a change of the boot
/// only the wall clock tells how much time has passed since then.
const STORE_INTERVAL: i64 = HOUR;

/// Both clocks of the system, read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// What the wall clock shows.
    pub(super) wall: UnixMicros,
    /// Microseconds since an arbitrary moment. Nobody sets this clock. On Linux it counts the time
    /// of a suspended machine, and begins with the boot.
    pub(super) steady: i64,
}

/// Identifies a run of the steady clock: readings of two processes can be compared if it is the same.
pub(super) type Boot = [u8; 16];

/// Where the time comes from. The system outside of tests.
#[derive(Clone)]
pub(super) struct Clock {
    pub(super) read: Arc<dyn Fn() -> Reading + Send + Sync>,
    /// `None` where the system does not tell.
    pub(super) boot: Option<Boot>,
}

/// The clocks of the system.
pub(super) fn system_clock() -> Clock {
    Clock {
        read: Arc::new(|| Reading {
            wall: UnixMicros::now(),
            steady: system_steady(),
        }),
        boot: system_boot(),
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn system_steady() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec * SECOND + now.tv_nsec / 1_000
}

/// Elsewhere a suspended machine's time may be missing: then the wall clock seems to jump.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn system_steady() -> i64 {
    use std::{sync::LazyLock, time::Instant};
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    i64::try_from(START.elapsed().as_micros()).unwrap_or(i64::MAX)
}

/// The boot, and the time namespace: a container can have a steady clock of its own.
fn system_boot() -> Option<Boot> {
    if !cfg!(any(target_os = "linux", target_os = "android")) {
        return None;
    }
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    // Old kernels have no time namespaces.
    let namespace = std::fs::read_link("/proc/self/ns/time").unwrap_or_default();
    let mut hash = Sha256::new();
    hash.update(&boot);
    hash.update(namespace.as_os_str().as_encoded_bytes());
    hash.finalize().first_chunk().copied()
}

/// What time it is.
#[derive(Clone, Debug)]
pub(super) struct Now {
    /// By the stamping clock.
    pub(super) wall: UnixMicros,
    /// By the retention clock.
    pub(super) retention: RetentionNow,
}

/// The clocks of one log.
pub(super) struct LogClock {
    source: Clock,
    wall: Wall,
    retention: Retention,
    /// By how much the retention clock was behind the wall clock at the start of the process.
    unconfirmed: i64,
    watch: Arc<Watch>,
    stored_at: i64,
    /// The minute in which jumps were logged, and how often.
    lines: (i64, u32),
}

impl LogClock {
    /// The clocks of a new log, or of one whose clocks are not known any more: then nothing in it
    /// may be older than `oldest_possible`.
    pub(super) fn new(source: Clock, oldest_possible: RetentionTime) -> Self {
        let reading = (source.read)();
        let retention = Retention::new(oldest_possible, reading.steady);
        Self::with(source, Wall::new(reading), retention, reading)
    }

    /// The clocks of a log that was closed, or of which the process was killed.
    pub(super) fn resume(source: Clock, stored: &Stored) -> Self {
        let reading = (source.read)();
        let is_same_boot = stored.boot.is_some() && stored.boot == source.boot;
        if is_same_boot && reading.steady >= stored.steady {
            let last = Reading {
                wall: stored.wall,
                steady: stored.steady,
            };
            let retention = Retention::resume(stored);
            let mut clock = Self::with(source, Wall::new(last), retention, last);
            clock.now();
            return clock;
        }
        let gap = reading.wall.0.saturating_sub(stored.wall.0);
        let retention = Retention::resume_after(stored, gap, reading.steady);
        if gap >= QUIET_GAP {
            tracing::warn!(
                down_for = %text(gap),
                "by its clock this machine was down for so long, or its clock is wrong. Until the \
                 clock has kept pace for a day, this time does not count for retention: nothing is \
                 removed because of it. Check the clock"
            );
        }
        Self::with(source, Wall::new(reading), retention, reading)
    }

    fn with(source: Clock, wall: Wall, retention: Retention, last: Reading) -> Self {
        Self {
            watch: Arc::new(Watch {
                source: source.clone(),
                offset: AtomicI64::new(last.wall.0.saturating_sub(last.steady)),
                earliest: AtomicI64::new(last.wall.0.saturating_sub(last.steady)),
                is_confirmed: AtomicBool::new(false),
                jumps: AtomicU64::new(0),
            }),
            source,
            wall,
            unconfirmed: retention.behind(last.wall),
            retention,
            stored_at: last.steady,
            lines: (i64::MIN, 0),
        }
    }

    /// Says so when the clock is behind the newest event.
    pub(super) fn compare_with_newest_event(&mut self, last_at: UnixMicros) {
        let behind = last_at.0.saturating_sub(self.now().wall.0);
        if behind > wall::TOLERANCE {
            tracing::warn!(
                behind = %text(behind),
                "the clock is behind the newest event: new events get that event's time until the \
                 clock has passed it. Check the clock"
            );
        }
    }

    /// Reads the clocks. Called at least every few seconds, jumps are noticed when they happen.
    pub(super) fn now(&mut self) -> Now {
        let mut reading = (self.source.read)();
        reading.steady = reading.steady.max(self.retention.steady());
        let change = self.wall.follow(reading);
        if let Some(change) = change {
            self.tell(change, reading.steady);
        }
        let is_followed = change.is_none() && !self.wall.is_in_jump();
        if let Some(Change::Adopted { ahead }) = change {
            self.retention.wall_was_set(ahead);
        }
        let credited = self.retention.advance(reading, is_followed);
        if credited > 0 {
            tracing::info!(
                credited = %text(credited),
                "the clock has kept pace for a day: the time that the machine was down counts for \
                 retention now"
            );
        }
        let wall = self.wall.time(reading.steady);
        let offset = wall.0.saturating_sub(reading.steady);
        self.watch.offset.store(offset, Ordering::Relaxed);
        let confirmed = self.retention.confirmed();
        let earliest = self.retention.wall(confirmed.unwrap_or(self.unconfirmed));
        let earliest = wall.min(earliest).0.saturating_sub(reading.steady);
        self.watch.earliest.store(earliest, Ordering::Relaxed);
        let is_confirmed = confirmed.is_some();
        self.watch
            .is_confirmed
            .store(is_confirmed, Ordering::Relaxed);
        Now {
            wall,
            retention: self.retention.now(),
        }
    }

    /// Logs a change, and counts the jumps.
    fn tell(&mut self, change: Change, steady: i64) {
        if matches!(change, Change::Jumped { .. }) {
            self.watch.jumps.fetch_add(1, Ordering::Relaxed);
        }
        let minute = steady.div_euclid(MINUTE);
        if self.lines.0 != minute {
            self.lines = (minute, 0);
        }
        self.lines.1 += 1;
        if self.lines.1 > JUMP_LINES_PER_MINUTE {
            return;
        }
        match change {
            Change::Jumped { ahead } => tracing::warn!(
                by = %text(ahead.saturating_abs()),
                direction = direction(ahead),
                "the system's clock jumped. New events go on with the time from before; if it stays \
                 so for a minute, they get the new time. Nothing is removed because of it"
            ),
            Change::Returned => tracing::warn!("the system's clock is back where it was"),
            Change::Adopted { ahead } => tracing::warn!(
                by = %text(ahead.saturating_abs()),
                direction = direction(ahead),
                "the system's clock stays where it jumped to: new events get that time from now on, \
                 unless it is before the newest event's. Nothing is removed because of it"
            ),
        }
    }

    /// What has to be kept for [`resume`](Self::resume).
    pub(super) fn snapshot(&mut self) -> Stored {
        let now = self.now();
        self.stored_at = self.retention.steady();
        self.retention.to_store(now.wall, self.source.boot)
    }

    /// Whether what was stored is so old that it should be renewed although nothing has happened.
    pub(super) fn store_is_due(&self) -> bool {
        self.retention.steady().saturating_sub(self.stored_at) >= STORE_INTERVAL
    }

    /// For those who only want to know.
    pub(super) fn watch(&self) -> Arc<Watch> {
        Arc::clone(&self.watch)
    }
}

/// What other threads see of a log's clocks.
pub(super) struct Watch {
    source: Clock,
    offset: AtomicI64,
    /// [`earliest_now`](Self::earliest_now) minus the steady clock.
    earliest: AtomicI64,
    is_confirmed: AtomicBool,
    jumps: AtomicU64,
}

impl Watch {
    /// The time by the stamping clock.
    pub(super) fn now(&self) -> UnixMicros {
        let steady = (self.source.read)().steady;
        UnixMicros(steady.saturating_add(self.offset.load(Ordering::Relaxed)))
    }

    /// The earliest time that it can be now.
    pub(super) fn earliest_now(&self) -> EarliestNow {
        let steady = (self.source.read)().steady;
        EarliestNow {
            at: UnixMicros(steady.saturating_add(self.earliest.load(Ordering::Relaxed))),
            is_confirmed: self.is_confirmed.load(Ordering::Relaxed),
        }
    }

    /// How often the wall clock jumped since the start.
    pub(super) fn jumps(&self) -> u64 {
        self.jumps.load(Ordering::Relaxed)
    }
}

fn direction(ahead: i64) -> &'static str {
    if ahead < 0 { "back" } else { "forwards" }
}

fn text(micros: i64) -> String {
    format!("{:#}", SignedDuration::from_secs(micros / SECOND))
}
