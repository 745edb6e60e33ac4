//! Key stretching (PBKDF2-HMAC-SHA-256) in slices, and a bounded cache of its results.
//!
//! PBKDF2 is the one expensive step of SCRAM: 4096 iterations take about a millisecond, and a
//! server may ask for millions. It is computed once per (password, salt, iterations), and never
//! for longer than the caller's slice at a time.

use std::borrow::Cow;
use std::num::NonZeroUsize;

use hmac::{Hmac, KeyInit, Mac};
use lru::LruCache;
use pbkdf2::pbkdf2_hmac_array;
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::scram::{ScramKeys, prepare};

/// Iterations of one slice that a shard can afford between two looks at its other work: about
/// 0.1 ms without SHA instructions.
pub const STRETCH_SLICE_ITERATIONS: u32 = 256;

/// Remembers SCRAM keys, the least recently used ones forgotten first. One per shard.
///
/// An entry's name is a keyed hash (the key is random and lives as long as the process), so that
/// a memory dump holds no password and no plain hash of one.
pub struct KdfCache {
    process_key: Zeroizing<[u8; 32]>,
    entries: LruCache<[u8; 32], ScramKeys>,
}

impl KdfCache {
    /// A cache of at most `entries_max` results (about 200 bytes each), named under `process_key`:
    /// 32 random bytes.
    pub fn new(process_key: [u8; 32], entries_max: NonZeroUsize) -> KdfCache {
        KdfCache {
            process_key: Zeroizing::new(process_key),
            entries: LruCache::new(entries_max),
        }
    }

    /// Begins to stretch `password` (SASLprep is applied here); finished at once if it is
    /// remembered. `iterations` of 0 count as 1.
    pub fn begin(&mut self, password: &[u8], salt: &[u8], iterations: u32) -> Stretch {
        let mut password = prepare(password);
        let name = self.name(&password, salt, iterations);
        let work = match self.entries.get(&name) {
            Some(keys) => Work::Done(keys.clone()),
            None => Work::Running(Box::new(Running::new(&password, salt, iterations))),
        };
        if let Cow::Owned(normalized) = &mut password {
            normalized.zeroize();
        }
        Stretch { name, work }
    }

    /// Remembers the result of a finished stretch. Not for a password that a client merely
    /// claims: guesses would push the true ones out.
    pub fn remember(&mut self, stretch: &Stretch) {
        if let Work::Done(keys) = &stretch.work {
            self.entries.put(stretch.name, keys.clone());
        }
    }

    /// The keys of a password that is known to be right, computed in one go if need be.
    pub fn keys(&mut self, password: &[u8], salt: &[u8], iterations: u32) -> ScramKeys {
        let mut stretch = self.begin(password, salt, iterations);
        if let Some(keys) = stretch.advance(0) {
            return keys;
        }
        let mut password = prepare(password);
        let salted = Zeroizing::new(pbkdf2_hmac_array::<Sha256, 32>(&password, salt, iterations));
        if let Cow::Owned(normalized) = &mut password {
            normalized.zeroize();
        }
        let keys = ScramKeys::from_salted_password(&salted);
        stretch.work = Work::Done(keys.clone());
        self.remember(&stretch);
        keys
    }

    /// How many results are remembered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn name(&self, password: &[u8], salt: &[u8], iterations: u32) -> [u8; 32] {
        let mut mac = keyed(&*self.process_key);
        for part in [password, salt] {
            mac.update(&part.len().to_be_bytes());
            mac.update(part);
        }
        mac.update(&iterations.to_be_bytes());
        mac.finalize().into_bytes().into()
    }
}

/// One key stretching on its way.
pub struct Stretch {
    name: [u8; 32],
    work: Work,
}

enum Work {
    Running(Box<Running>),
    Done(ScramKeys),
}

/// PBKDF2 (RFC 8018 section 5.2) with one block of output, between two iterations.
struct Running {
    keyed: Hmac<Sha256>,
    last: Zeroizing<[u8; 32]>,
    sum: Zeroizing<[u8; 32]>,
    left: u32,
}

impl Stretch {
    /// Does at most `iterations` more; the keys once the last one is done.
    pub fn advance(&mut self, iterations: u32) -> Option<ScramKeys> {
        if let Work::Running(running) = &mut self.work {
            let salted = running.advance(iterations)?;
            self.work = Work::Done(ScramKeys::from_salted_password(&salted));
        }
        match &self.work {
            Work::Done(keys) => Some(keys.clone()),
            Work::Running(_) => None,
        }
    }

    /// Does all that is left, with a `pause` after every slice but the last.
    pub fn finish(&mut self, pause: impl Fn()) -> ScramKeys {
        loop {
            if let Some(keys) = self.advance(STRETCH_SLICE_ITERATIONS) {
                return keys;
            }
            pause();
        }
    }
}

impl Running {
    fn new(password: &[u8], salt: &[u8], iterations: u32) -> Running {
        let keyed = keyed(password);
        let mut first = keyed.clone();
        first.update(salt);
        first.update(&1u32.to_be_bytes());
        let first: [u8; 32] = first.finalize().into_bytes().into();
        Running {
            keyed,
            last: Zeroizing::new(first),
            sum: Zeroizing::new(first),
            left: iterations.saturating_sub(1),
        }
    }

    fn advance(&mut self, iterations: u32) -> Option<Zeroizing<[u8; 32]>> {
        let now = self.left.min(iterations);
        for _ in 0..now {
            let mut mac = self.keyed.clone();
            mac.update(&*self.last);
            *self.last = mac.finalize().into_bytes().into();
            self.sum
                .iter_mut()
                .zip(self.last.iter())
                .for_each(|(sum, last)| *sum ^= last);
        }
        self.left -= now;
        (self.left == 0).then(|| self.sum.clone())
    }
}

/// HMAC-SHA-256 ready for its message. HMAC takes a key of any length.
pub(super) fn keyed(key: &[u8]) -> Hmac<Sha256> {
    match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes a key of any length"),
    }
}

/// HMAC-SHA-256 of a message made of `parts`.
pub(super) fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = keyed(key);
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(entries: usize) -> KdfCache {
        KdfCache::new([7; 32], NonZeroUsize::new(entries).unwrap())
    }

    /// The `pbkdf2` crate, as an independent computation.
    fn oracle(password: &[u8], salt: &[u8], iterations: u32) -> ScramKeys {
        let salted = pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password, salt, iterations);
        ScramKeys::from_salted_password(&salted)
    }

    #[test]
    fn slices_of_any_size_give_the_pbkdf2_of_the_whole() {
        for iterations in [1, 2, 3, 100, 101] {
            for slice in [1, 7, 100, u32::MAX] {
                let mut stretch = cache(1).begin(b"pencil", b"salt", iterations);
                let mut rounds = 0;
                let keys = loop {
                    rounds += 1;
                    if let Some(keys) = stretch.advance(slice) {
                        break keys;
                    }
                };
                assert_eq!(keys, oracle(b"pencil", b"salt", iterations));
                assert_eq!(rounds, (iterations - 1).div_ceil(slice).max(1));
            }
        }
    }

    #[test]
    fn a_remembered_result_needs_no_iteration() {
        let mut cache = cache(2);
        let keys = cache.keys(b"pencil", b"salt", 50);
        assert_eq!(cache.begin(b"pencil", b"salt", 50).advance(0), Some(keys));
        for (password, salt, iterations) in [
            ("pencix", "salt", 50),
            ("pencil", "sale", 50),
            ("pencil", "salt", 51),
            ("pencils", "alt", 50),
        ] {
            let mut other = cache.begin(password.as_bytes(), salt.as_bytes(), iterations);
            assert!(other.advance(0).is_none(), "{password} {salt} {iterations}");
        }
    }

    #[test]
    fn the_least_recently_used_result_is_forgotten() {
        let mut cache = cache(2);
        cache.keys(b"a", b"salt", 2);
        cache.keys(b"b", b"salt", 2);
        cache.keys(b"a", b"salt", 2);
        cache.keys(b"c", b"salt", 2);
        assert_eq!(cache.len(), 2);
        assert!(cache.begin(b"a", b"salt", 2).advance(0).is_some());
        assert!(cache.begin(b"b", b"salt", 2).advance(0).is_none());
    }

    #[test]
    fn an_unfinished_stretch_is_not_remembered() {
        let mut cache = cache(2);
        let mut stretch = cache.begin(b"a", b"salt", 10);
        stretch.advance(3);
        cache.remember(&stretch);
        assert!(cache.is_empty());
    }

    #[test]
    fn zero_iterations_count_as_one() {
        assert_eq!(cache(1).keys(b"a", b"s", 0), oracle(b"a", b"s", 1));
    }
}
