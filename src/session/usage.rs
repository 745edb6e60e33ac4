//! How often a statement was used through one shard, and what that cost: for SHOW PREPARED_STATEMENTS.

use std::cell::Cell;

/// Counts of one statement.
#[derive(Debug, Default)]
pub struct Usage {
    hits: Cell<u64>,
    misses: Cell<u64>,
    evictions: Cell<u64>,
}

impl Usage {
    /// It was wanted on a server, which had it or did not.
    #[inline]
    pub fn wanted(&self, was_there: bool) {
        let count = if was_there { &self.hits } else { &self.misses };
        count.set(count.get() + 1);
    }

    /// A server gave it up to make room for another.
    pub fn evicted(&self) {
        self.evictions.set(self.evictions.get() + 1);
    }

    /// Times that a server had it.
    pub fn hits(&self) -> u64 {
        self.hits.get()
    }

    /// Times that it had to be prepared.
    pub fn misses(&self) -> u64 {
        self.misses.get()
    }

    /// Times that a server gave it up.
    pub fn evictions(&self) -> u64 {
        self.evictions.get()
    }
}
