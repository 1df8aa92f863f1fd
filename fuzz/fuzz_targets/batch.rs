//! The body of a verified delivery: both ways of reading a batch and the block that its events make, and a
//! single event.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prelude_bridge::fuzzing;

fuzz_target!(|data: &[u8]| {
    fuzzing::batch(data);
    fuzzing::single_event(data);
});
