//! The bytes of a segment.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prelude_bridge::fuzzing;

fuzz_target!(|data: &[u8]| {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    fuzzing::frame(data, &file);
});
