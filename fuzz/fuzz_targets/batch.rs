#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| { let _ = prelude_bridge::decode::claimed_app_id(data); });
