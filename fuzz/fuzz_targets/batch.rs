//! The body of a verified delivery: both ways of reading it, and the block that its events make.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prelude_bridge::fuzzing;

fuzz_target!(|data: &[u8]| fuzzing::batch(data));
