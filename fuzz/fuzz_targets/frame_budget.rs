//! Bytes of an HTTP/2 connection: frames are counted however they are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prelude_bridge::fuzzing;

fuzz_target!(|data: &[u8]| fuzzing::frame_budget(data));
