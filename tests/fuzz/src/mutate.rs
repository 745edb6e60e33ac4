//! Random mutations without knowledge of coverage: enough to find what breaks easily.

/// Inputs do not grow beyond this: one more than the largest start-up packet needs.
const INPUT_BYTES_MAX: usize = 70_000;

/// Numbers at the edges of what a length or count can be.
const EDGES: [u32; 12] = [
    0,
    1,
    4,
    8,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
];

/// SplitMix64: tiny, and the same everywhere for the same seed.
pub struct Rng(u64);

impl Rng {
    /// A generator whose whole sequence follows from `seed`.
    pub const fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 random bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let bits = self.bits() % (bound.max(1) as u64);
        bits as usize
    }

    fn byte(&mut self) -> u8 {
        self.bits().to_le_bytes()[0]
    }

    /// A random stretch of `data`, most often a short one.
    fn range(&mut self, data: &[u8]) -> std::ops::Range<usize> {
        let start = self.below(data.len() + 1);
        let longest = (data.len() - start).min(1 << self.below(12));
        start..start + self.below(longest + 1)
    }
}

/// One of `corpus` after one to eight random changes; it may borrow from another one.
pub fn mutated(corpus: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut data = corpus[rng.below(corpus.len())].clone();
    let other = &corpus[rng.below(corpus.len())];
    for _ in 0..=rng.below(8) {
        mutate(&mut data, other, rng);
    }
    data.truncate(INPUT_BYTES_MAX);
    data
}

fn mutate(data: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let range = rng.range(data);
    let at = range.start;
    match rng.below(9) {
        0 => data.truncate(at),
        1 => drop(data.drain(range)),
        2 => drop(data.splice(at..at, data[range].to_vec())),
        3 => drop(data.splice(range, other[rng.range(other)].to_vec())),
        4 => data.insert(at, rng.byte()),
        5 => overwrite(data, at, &[rng.byte()]),
        6 => overwrite(data, at, b"\0"),
        7 => overwrite(data, at, &edge(rng)[rng.below(2) * 2..]),
        _ => data
            .iter_mut()
            .skip(at)
            .take(1)
            .for_each(|byte| *byte ^= 1 << rng.below(8)),
    }
}

/// An edge number or one next to it, big-endian.
fn edge(rng: &mut Rng) -> [u8; 4] {
    let number = EDGES[rng.below(EDGES.len())];
    let near = number.wrapping_add(rng.below(3) as u32).wrapping_sub(1);
    near.to_be_bytes()
}

fn overwrite(data: &mut [u8], at: usize, with: &[u8]) {
    data.iter_mut()
        .skip(at)
        .zip(with)
        .for_each(|(byte, new)| *byte = *new);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_makes_the_same_inputs() {
        let corpus = [b"user\0alice\0".to_vec(), b"options\0-c a=b\0".to_vec()];
        let inputs = |seed| {
            let mut rng = Rng::new(seed);
            let inputs: Vec<_> = (0..1_000).map(|_| mutated(&corpus, &mut rng)).collect();
            inputs
        };
        assert_eq!(inputs(7), inputs(7));
        assert_ne!(inputs(7), inputs(8));
    }

    #[test]
    fn empty_input_can_grow() {
        let corpus = [Vec::new()];
        let mut rng = Rng::new(1);
        let grown = (0..1_000).any(|_| !mutated(&corpus, &mut rng).is_empty());
        assert!(grown);
    }
}
