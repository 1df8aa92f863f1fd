//! A small repeatable source of randomness, so that a run can be told again by its seed. Not for
//! keys, salts or anything an attacker must not guess.

/// SplitMix64 (Steele, Lea and Flood, 2014): one word of state, and every seed is a good one.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The sequence that belongs to this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A sequence of its own for one purpose, so that switching one fault on does not change what
    /// another concern draws.
    #[must_use]
    pub fn fork(seed: u64, purpose: &str) -> Self {
        let mut random = Self::new(seed);
        for byte in purpose.bytes() {
            random.state = random.next_u64() ^ u64::from(byte);
        }
        random
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 if `bound` is 0. The bias of the modulo is below 2^-32 for the
    /// small bounds used here.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX);
        let drawn = self.next_u64().checked_rem(bound).unwrap_or(0);
        usize::try_from(drawn).unwrap_or(0)
    }

    /// True with this probability; never at 0 and always at 1.
    pub fn chance(&mut self, probability: f64) -> bool {
        // 53 bits are what an f64 holds exactly.
        #[expect(clippy::cast_precision_loss, reason = "the shifted value has 53 bits")]
        let unit = (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        unit < probability
    }

    /// One of the given, or `fallback` if there is none.
    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T], fallback: &'a T) -> &'a T {
        let index = self.below(from.len());
        from.get(index).copied().unwrap_or(fallback)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_sequence_again_and_another_seed_another() {
        let draw = |mut random: Random| -> Vec<u64> { (0..8).map(|_| random.next_u64()).collect() };
        assert_eq!(draw(Random::new(7)), draw(Random::new(7)));
        assert_ne!(draw(Random::new(7)), draw(Random::new(8)));
        assert_ne!(
            draw(Random::fork(7, "faults")),
            draw(Random::fork(7, "events"))
        );
    }

    #[test]
    fn chances_hold_at_their_ends_and_between() {
        let mut random = Random::new(1);
        assert!((0..1000).all(|_| !random.chance(0.0)));
        assert!((0..1000).all(|_| random.chance(1.0)));
        let hits = (0..10_000).filter(|_| random.chance(0.2)).count();
        assert!((1_700..2_300).contains(&hits), "{hits}");
    }

    #[test]
    fn nothing_to_choose_from_is_no_panic() {
        let mut random = Random::new(1);
        assert_eq!(random.below(0), 0);
        assert_eq!(random.pick(&[], "nothing"), "nothing");
    }
}
