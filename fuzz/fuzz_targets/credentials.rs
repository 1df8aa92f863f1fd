//! A credentials file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prelude_bridge::fuzzing;

fuzz_target!(|text: &str| fuzzing::credentials(text));
