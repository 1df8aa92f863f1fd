//! The keys against a naive map.

use super::*;

/// Spreads numbers like a hash.
pub(super) fn key(n: u64) -> Key {
    let half = |seed: u64| {
        let mut x = n.wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    Key::from(half(1)) << 64 | Key::from(half(0x5bd1_e995))
}

const LOG: LogId = LogId(7);

#[test]
fn smoke() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        age_micros: 1_000,
        span_micros: 100,
        part_keys_max: 40,
        file_keys_max: 500,
        section_keys: 8,
        fan_in: 3,
    };
    let mut ids = Ids::open(dir.path(), LOG, limits).unwrap();
    let mut known = Vec::new();
    for batch in 0..100_u64 {
        let keys: Vec<Key> = (batch * 10..batch * 10 + 10).map(key).collect();
        ids.contains(&keys, &mut known).unwrap();
        assert_eq!(known, [false; 10]);
        ids.add(&keys, Sequence(batch * 10 + 10), UnixMicros(batch as i64));
        while ids.background().run_once().unwrap() {}
        ids.contains(&keys, &mut known).unwrap();
        assert_eq!(known, [true; 10]);
    }
    ids.seal();
    while ids.background().run_once().unwrap() {}
    let keys: Vec<Key> = (0..1_000).map(key).collect();
    let mut ids = Ids::open(dir.path(), LOG, limits).unwrap();
    assert_eq!(ids.through(), Sequence(1_000));
    ids.contains(&keys, &mut known).unwrap();
    assert_eq!(known, [true; 1_000]);
}
