//! Invented values: ids, people and prices. Every person is invented: addresses are at example.com (RFC
//! 2606), and phone numbers in the block reserved for fiction (555-01xx).

use super::super::random::Random;

const AREA_CODES: [&str; 5] = ["202", "212", "303", "415", "617"];

/// An opaque id as Prelude writes them: a prefix and 26 characters of Crockford's base 32.
pub(super) fn id(random: &mut Random, prefix: &str) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut id = String::with_capacity(prefix.len() + 26);
    id.push_str(prefix);
    for _ in 0..26 {
        let index = random.below(ALPHABET.len());
        id.push(ALPHABET.get(index).copied().map_or('0', char::from));
    }
    id
}

/// A UUID, version 4.
pub(super) fn uuid(random: &mut Random) -> String {
    let (high, low) = (random.next_u64(), random.next_u64());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xFFFF,
        high & 0x0FFF,
        0x8000 | (low >> 48) & 0x3FFF,
        low & 0xFFFF_FFFF_FFFF,
    )
}

/// A phone number that nobody has.
pub(super) fn phone_number(random: &mut Random) -> String {
    let area_code = random.pick(&AREA_CODES, "202");
    let line = random.below(100);
    format!("+1{area_code}55501{line:02}")
}

/// The name of a reason.
pub(super) fn reason(random: &mut Random, reasons: &[&'static str]) -> &'static str {
    random.pick(reasons, "request_failed")
}

/// The index of one of these; `None` if there are none.
pub(super) fn index<T>(random: &mut Random, of: &[T]) -> Option<usize> {
    (!of.is_empty()).then(|| random.below(of.len()))
}
