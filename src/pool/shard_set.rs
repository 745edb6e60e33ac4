//! A set of shards that many shards read and each shard writes its own bit of.

use crate::base::ShardId;
use crate::base::sync::{AtomicU64, Ordering::SeqCst};
use crossbeam::utils::CachePadded;
use std::iter;

const WORD_BITS: usize = u64::BITS as usize;

/// A set of shards, one bit each.
#[derive(Debug)]
pub(super) struct ShardSet {
    words: Box<[CachePadded<AtomicU64>]>,
}

impl ShardSet {
    pub(super) fn new(shards: usize) -> ShardSet {
        let words = iter::repeat_with(CachePadded::default);
        ShardSet {
            words: words.take(shards.div_ceil(WORD_BITS)).collect(),
        }
    }

    /// SeqCst: the last store of a "publish".
    pub(super) fn set(&self, shard: ShardId, is_in: bool) {
        let word = &self.words[shard.index() / WORD_BITS];
        let bit = 1 << (shard.index() % WORD_BITS);
        match is_in {
            true => word.fetch_or(bit, SeqCst),
            false => word.fetch_and(!bit, SeqCst),
        };
    }

    /// The members from `start` on, then those below it. SeqCst: the first load of a "look".
    pub(super) fn iter_from(&self, start: usize) -> impl Iterator<Item = ShardId> {
        let (first, from_start) = (start / WORD_BITS, u64::MAX << (start % WORD_BITS));
        let count = self.words.len();
        // The word that `start` falls into comes first with its upper bits and last with its lower.
        (0..=count).flat_map(move |step| {
            let at = (first + step) % count;
            let word = self.words[at].load(SeqCst);
            let mask = match step {
                0 => from_start,
                _ if step == count => !from_start,
                _ => u64::MAX,
            };
            bits(word & mask).map(move |bit| ShardId((at * WORD_BITS + bit) as u16))
        })
    }
}

/// The numbers of the set bits, ascending.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    iter::from_fn(move || {
        let bit = word.trailing_zeros() as usize;
        word &= word.checked_sub(1)?;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_walked_from_any_start_once_round() {
        let set = ShardSet::new(130);
        let members = [0, 5, 63, 64, 100, 129];
        members
            .iter()
            .for_each(|&shard| set.set(ShardId(shard), true));
        for start in 0..=192 {
            let walked: Vec<_> = set.iter_from(start).map(|shard| shard.0).collect();
            let upper = members.iter().filter(|&&shard| usize::from(shard) >= start);
            let lower = members.iter().filter(|&&shard| usize::from(shard) < start);
            assert_eq!(
                walked,
                upper.chain(lower).copied().collect::<Vec<_>>(),
                "from {start}"
            );
        }
    }
}
