//! A cursor: what is read as one is written the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prelude_bridge::event::{Cursor, Epoch, LogId, Sequence, UnixMicros};

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = str::from_utf8(data)
        && let Ok(cursor) = text.parse::<Cursor>()
    {
        assert_eq!(cursor.to_string(), text);
    }
    let Some((log, rest)) = data.split_first_chunk() else {
        return;
    };
    let Some((epoch, rest)) = rest.split_first_chunk() else {
        return;
    };
    let Some((sequence, rest)) = rest.split_first_chunk() else {
        return;
    };
    let cursor = Cursor {
        log: LogId(u64::from_le_bytes(*log)),
        epoch: Epoch(u32::from_le_bytes(*epoch)),
        sequence: Sequence(u64::from_le_bytes(*sequence)),
        not_before: rest
            .split_first_chunk()
            .map(|(at, _)| UnixMicros(i64::from_le_bytes(*at))),
    };
    assert_eq!(cursor.to_string().parse(), Ok(cursor));
});
