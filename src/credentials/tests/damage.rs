//! A file of credentials that was damaged on the disk.

use super::*;
use crate::credentials::document;

const DAMAGES: u64 = 2_000;
const SEED: u64 = 0x5eed_c0de;

/// As the commands and people write it.
const COMMENTS: &str = "# Those of production.\n\n";

fn random(seed: &mut u64) -> usize {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut x = *seed;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) as usize
}

/// Flips bits, zeroes a part or puts other bytes there, or cuts.
fn damage(bytes: &mut Vec<u8>, seed: &mut u64) {
    let start = random(seed) % bytes.len();
    let end = (start + 1 + random(seed) % 600).min(bytes.len());
    match random(seed) % 8 {
        0..5 => {
            for _ in 0..=random(seed) % 3 {
                let at = random(seed) % bytes.len();
                bytes[at] ^= 1 << (random(seed) % 8);
            }
        }
        5 => bytes[start..end].fill(0),
        6 => bytes[start..end].fill_with(|| random(seed) as u8),
        _ => bytes.truncate(start),
    }
}

/// What this scope allows that no list bounds.
fn is_unbounded(allowed: &Allowed) -> bool {
    match allowed {
        Allowed::All => true,
        Allowed::Only(names) => names.iter().any(|name| name == "*"),
    }
}

#[test]
fn random_damage_makes_no_scope_unbounded() {
    let mut text = COMMENTS.to_owned();
    for n in 0..12 {
        let (_, entry) = token(&format!("subscriber-{n}"));
        let scope = Scope {
            types: if n % 4 == 0 {
                Allowed::All
            } else {
                only(&["user.created", "user.session.*", "a"])
            },
            apps: if n % 3 == 0 {
                Allowed::All
            } else {
                only(&["54e9ujn"])
            },
        };
        let entry = Entry {
            scope,
            // The same at each run.
            proof: Proof::Token(Digest::of(&format!("token {n}"))),
            expires_at: (n % 2 == 0).then_some(Timestamp::MAX),
            streams_max: Some(5),
            ..entry
        };
        text = crate::credentials::edit::with(&text, &entry).unwrap();
    }
    let whole = document::parse(&text).unwrap();
    assert_eq!(whole.entries.len(), 12);
    let mut seed = SEED;
    let (mut refused, mut accepted) = (0, 0);
    for n in 0..DAMAGES {
        let mut bytes = text.clone().into_bytes();
        damage(&mut bytes, &mut seed);
        let read = String::from_utf8(bytes);
        let Ok(document) = read
            .map_err(drop)
            .and_then(|text| document::parse(&text).map_err(drop))
        else {
            refused += 1;
            continue;
        };
        accepted += 1;
        for entry in &document.entries {
            let is_it = |known: &&Entry| known.name == entry.name || known.proof == entry.proof;
            let known = whole.entries.iter().find(is_it);
            let what = format!("damage {n} of seed {SEED:#x}: {entry:?}");
            let known = known.unwrap_or_else(|| panic!("a new credential: {what}"));
            let Scope { types, apps } = &known.scope;
            assert!(
                is_unbounded(types) || !is_unbounded(&entry.scope.types),
                "{what}"
            );
            assert!(
                is_unbounded(apps) || !is_unbounded(&entry.scope.apps),
                "{what}"
            );
        }
    }
    assert!(refused > 100 && accepted > 100, "{refused}, {accepted}");
}
