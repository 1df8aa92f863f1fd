//! Losses of power, failing calls of the system: what was answered is kept.
//!
//! A bridge at work is recorded, and the record is cut at any moment: `model` says what a disk may
//! hold then, and `check` opens the log there. The record also shows which calls of the system the
//! program makes, and `faults` makes each of them fail once.

mod check;
mod faults;
mod history;
mod losses;
mod model;
mod recording;
mod sites;
mod trace;
