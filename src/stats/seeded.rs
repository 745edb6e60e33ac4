//! Random numbers for tests, the same in every run (SplitMix64).

/// A stream of numbers that its seed determines.
pub(super) struct Seeded(u64);

impl Seeded {
    pub(super) fn new(seed: u64) -> Seeded {
        Seeded(seed)
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to, not including, `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// From above 0 up to 1.
    pub(super) fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// As likely to have one bit as any other number of bits up to `bits_max`.
    pub(super) fn log_uniform(&mut self, bits_max: u64) -> u64 {
        let unused = 64 - 1 - self.below(bits_max);
        self.bits() >> unused
    }
}
