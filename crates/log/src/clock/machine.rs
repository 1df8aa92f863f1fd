//! A machine whose clocks tests set.

use std::sync::{Arc, Mutex};

use super::{Clock, Reading};
use prelude_bridge_event::UnixMicros;

pub(crate) const SECOND: i64 = super::SECOND;
pub(crate) const HOUR: i64 = super::HOUR;
pub(crate) const DAY: i64 = 24 * super::HOUR;

/// The true time when a test begins: some time in 2026.
pub(crate) const START: i64 = 1_780_000_000 * SECOND;

#[derive(Clone, Copy)]
struct Clocks {
    /// The true time.
    time: i64,
    /// What the wall clock shows beyond it.
    wall_error: i64,
    booted_at: i64,
    boot: u8,
}

pub(crate) struct Machine(Arc<Mutex<Clocks>>);

impl Machine {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Clocks {
            time: START,
            wall_error: 0,
            booted_at: START - DAY,
            boot: 1,
        })))
    }

    /// Its clocks, as a process sees them that starts now.
    pub(crate) fn clock(&self) -> Clock {
        let clocks = Arc::clone(&self.0);
        let boot = self.clocks().boot;
        let read = move || {
            let now = *clocks.lock().unwrap();
            Reading {
                wall: UnixMicros(now.time + now.wall_error),
                steady: now.time - now.booted_at,
            }
        };
        Clock {
            read: Arc::new(read),
            boot: Some([boot; 16]),
        }
    }

    /// The true time.
    pub(crate) fn time(&self) -> i64 {
        self.clocks().time
    }

    pub(crate) fn pass(&self, micros: i64) {
        self.0.lock().unwrap().time += micros;
    }

    /// Sets the wall clock this far beyond the true time.
    pub(crate) fn set_error(&self, micros: i64) {
        self.0.lock().unwrap().wall_error = micros;
    }

    /// Is off for so long, and boots.
    pub(crate) fn reboot(&self, down: i64) {
        let mut clocks = self.0.lock().unwrap();
        clocks.time += down;
        clocks.booted_at = clocks.time;
        clocks.boot += 1;
    }

    fn clocks(&self) -> Clocks {
        *self.0.lock().unwrap()
    }
}
