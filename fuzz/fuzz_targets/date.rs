//! A text where a date is expected.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prelude_bridge::fuzzing;

fuzz_target!(|text: &str| fuzzing::date(text));
