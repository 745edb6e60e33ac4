//! Repeatable chance, and the seeds to run.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// From 0 to `end`, which is excluded.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// From 0 to 1, which is excluded.
    pub fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        self.share() < probability
    }

    pub fn micros(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_nanos(from * 1000 + self.next() % ((to - from) * 1000 + 1))
    }

    pub fn exponential(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.share()).ln())
    }
}

/// Runs `test` for the seed of the environment's `SIM_SEED`; else for `SIM_SEEDS`, or `count`, fresh ones.
pub fn for_seeds(count: u64, mut test: impl FnMut(u64)) {
    let wanted = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match wanted("SIM_SEED") {
        Some(seed) => seed..=seed,
        None => {
            let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            let first = Random::new(clock.as_nanos() as u64).next() >> 1;
            first..=first + wanted("SIM_SEEDS").unwrap_or(count) - 1
        }
    };
    println!("seeds {seeds:?}");
    for seed in seeds {
        let shown = ShowSeed(seed);
        test(seed);
        drop(shown);
    }
}

/// Says which seed failed while its panic unwinds.
struct ShowSeed(u64);

impl Drop for ShowSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with SIM_SEED={}", self.0);
        }
    }
}
