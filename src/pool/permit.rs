//! Permits: the exact count of open server connections against a limit. Owns one atomic word;
//! knows nothing of shards, waiters or servers.
//!
//! Invariants, at every instant and for every interleaving:
//! - `open` grows only while it is below `limit`, or `limit` and `reserve` for who may use that, and all
//!   stand in the same word: no permit is ever granted against a limit or reserve that has already been
//!   lowered, nor against the limit of one configuration and the reserve of another;
//! - at most `open - limit` servers are retired after a limit was lowered, however many shards
//!   look for surplus servers at the same time.

use crate::base::sync::{AtomicU64, Ordering::SeqCst};
use std::sync::Arc;

const COUNT_BITS: u32 = 21;
/// Two of these and two of the others fill the word.
const SMALL_BITS: u32 = 11;

/// Largest limit, in server connections; what "unlimited" means.
pub const PERMITS_MAX: u32 = (1 << COUNT_BITS) - 1;

/// Largest reserve, in server connections.
pub const RESERVE_MAX: u32 = (1 << SMALL_BITS) - 1;

/// Most servers that are being closed as surplus at a time; the next one is found when one of them has closed.
const RETIRING_MAX: u32 = (1 << SMALL_BITS) - 1;

/// How many server connections may be open and how many are. One per pool, and one for each
/// limit on a database, a user or the process that spans pools.
///
/// Every operation is one sequentially consistent update of one word. They run when a server is
/// opened or closed, never per transaction, so the cost does not matter; that a freed permit and
/// a published wait cannot miss each other does (see [`SharedPool`](super::SharedPool)).
#[derive(Debug)]
pub struct Permits {
    word: AtomicU64,
}

impl Permits {
    /// `limit` permits, cut to [`PERMITS_MAX`], all free.
    pub fn new(limit: u32) -> Permits {
        let counts = Counts {
            limit: limit.min(PERMITS_MAX),
            open: 0,
            retiring: 0,
            reserve: 0,
        };
        Permits {
            word: AtomicU64::new(counts.pack()),
        }
    }

    /// How many permits there are.
    pub fn limit(&self) -> u32 {
        self.counts().limit
    }

    /// How many are taken. Above [`Permits::limit`] only after the limit was lowered, until the
    /// surplus has closed.
    pub fn open(&self) -> u32 {
        self.counts().open
    }

    /// Whether [`Permits::try_take`] would succeed now.
    pub fn has_free(&self) -> bool {
        let counts = self.counts();
        counts.open < counts.limit
    }

    /// Whether a permit is free beyond the limit, if not within it.
    pub fn has_free_in_reserve(&self) -> bool {
        let counts = self.counts();
        counts.open < counts.limit + counts.reserve
    }

    /// Takes a permit if one is free.
    pub fn try_take(&self) -> bool {
        self.try_take_to(|limit, _| limit)
    }

    /// Takes a permit if no more than `most` are taken then, given the limit and the reserve: their sum where
    /// that may be used, fewer than the limit where only a minimum is wanted. What `most` reads
    /// is at least as new as what it is given.
    pub fn try_take_to(&self, most: impl Fn(u32, u32) -> u32) -> bool {
        self.update(|counts| {
            let open = counts.open + 1;
            let is_free = open <= most(counts.limit, counts.reserve).min(PERMITS_MAX);
            is_free.then_some(Counts { open, ..counts })
        })
    }

    /// Gives a permit back: its connection has closed, or was never made.
    pub fn give_back(&self) {
        let is_given = self.update(|counts| {
            let open = counts.open.checked_sub(1)?;
            let retiring = counts.retiring.min(open);
            Some(Counts {
                open,
                retiring,
                ..counts
            })
        });
        assert!(is_given, "a permit was given back that nobody held");
    }

    /// Changes the limit, cut to [`PERMITS_MAX`]. Permits above it stay taken until they are
    /// retired or given back.
    pub fn set_limit(&self, limit: u32) {
        let limit = limit.min(PERMITS_MAX);
        self.update(|counts| Some(Counts { limit, ..counts }));
    }

    /// Changes limit and reserve in one step, cut to [`PERMITS_MAX`] and [`RESERVE_MAX`].
    pub fn set_limits(&self, limit: u32, reserve: u32) {
        let (limit, reserve) = (limit.min(PERMITS_MAX), reserve.min(RESERVE_MAX));
        self.update(|counts| {
            Some(Counts {
                limit,
                reserve,
                ..counts
            })
        });
    }

    /// Whether more are taken than the limit allows, those not counted that are being closed for it.
    pub fn has_surplus(&self) -> bool {
        self.counts().has_surplus(false)
    }

    /// Claims the duty to close one surplus server. True for exactly as many callers as there
    /// are more open than the limit allows, and the reserve where that `is_in_use`; such a caller must close a server
    /// and then call [`Permits::give_back_retired`].
    pub fn try_retire(&self, is_in_use: bool) -> bool {
        // Asked at every release: look before the read-modify-write, which nearly never happens.
        self.counts().has_surplus(is_in_use)
            && self.update(|counts| {
                let is_due = counts.has_surplus(is_in_use);
                is_due.then_some(counts.retiring_one_more()?)
            })
    }

    /// The same for those above `least`, whatever the limit: true for exactly as many callers as there are more open
    /// than that, those not counted that are being closed for this or the limit.
    pub fn try_retire_above(&self, least: u32) -> bool {
        self.update(|counts| {
            let is_due = counts.staying() > least;
            is_due.then_some(counts.retiring_one_more()?)
        })
    }

    /// Counts a server among those that are being closed which closes for a reason of its own, so that no other closes in its
    /// place. False if the count is full; then the server stays open for those who count until it has closed.
    pub fn retire(&self) -> bool {
        self.update(Counts::retiring_one_more)
    }

    /// Gives back the permit of a server that was closed because of [`Permits::try_retire`],
    /// [`Permits::try_retire_above`] or [`Permits::retire`].
    pub fn give_back_retired(&self) {
        let is_given = self.update(|counts| {
            Some(Counts {
                open: counts.open.checked_sub(1)?,
                retiring: counts.retiring.saturating_sub(1),
                ..counts
            })
        });
        assert!(is_given, "a permit was given back that nobody held");
    }

    fn counts(&self) -> Counts {
        Counts::unpack(self.word.load(SeqCst))
    }

    fn update(&self, change: impl Fn(Counts) -> Option<Counts>) -> bool {
        let change = |word| change(Counts::unpack(word)).map(Counts::pack);
        self.word.fetch_update(SeqCst, SeqCst, change).is_ok()
    }
}

/// A permit that is given back when dropped.
#[derive(Debug)]
pub struct Permit(Arc<Permits>);

impl Permit {
    /// As [`Permits::try_take`].
    pub fn take(permits: &Arc<Permits>) -> Option<Permit> {
        permits.try_take().then(|| Permit(permits.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

#[derive(Clone, Copy, Debug)]
struct Counts {
    limit: u32,
    open: u32,
    /// Open servers that somebody has undertaken to close as surplus.
    retiring: u32,
    /// How many more than the limit may be open for who has waited long enough.
    reserve: u32,
}

impl Counts {
    fn pack(self) -> u64 {
        let small = [self.retiring, self.reserve];
        debug_assert!(self.limit <= PERMITS_MAX && self.open <= PERMITS_MAX);
        debug_assert!(small.iter().all(|&field| field <= RESERVE_MAX));
        let counts = u64::from(self.limit) << COUNT_BITS | u64::from(self.open);
        let [retiring, reserve] = small.map(u64::from);
        (counts << SMALL_BITS | retiring) << SMALL_BITS | reserve
    }

    fn unpack(word: u64) -> Counts {
        let field = |from: u32, max: u32| (word >> from) as u32 & max;
        Counts {
            limit: field(2 * SMALL_BITS + COUNT_BITS, PERMITS_MAX),
            open: field(2 * SMALL_BITS, PERMITS_MAX),
            retiring: field(SMALL_BITS, RETIRING_MAX),
            reserve: field(0, RESERVE_MAX),
        }
    }

    fn has_surplus(self, is_reserve_in_use: bool) -> bool {
        let tolerated = if is_reserve_in_use { self.reserve } else { 0 };
        self.staying() > self.limit + tolerated
    }

    fn staying(self) -> u32 {
        self.open.saturating_sub(self.retiring)
    }

    fn retiring_one_more(self) -> Option<Counts> {
        let retiring = self.retiring + 1;
        (retiring <= RETIRING_MAX).then_some(Counts { retiring, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU32};
    use std::thread;

    #[test]
    fn the_last_permit_is_granted_once() {
        let permits = Permits::new(2);
        assert!(permits.try_take() && permits.try_take());
        assert!(!permits.try_take());
        permits.give_back();
        assert!(permits.try_take());
    }

    #[test]
    fn a_lowered_limit_retires_exactly_the_surplus() {
        let permits = Permits::new(10);
        assert!((0..10).all(|_| permits.try_take()));
        permits.set_limit(7);
        assert_eq!((0..10).filter(|_| permits.try_retire(false)).count(), 3);
        (0..3).for_each(|_| permits.give_back_retired());
        assert_eq!(permits.open(), 7);
        assert!(!permits.try_take() && !permits.try_retire(false));
    }

    #[test]
    fn as_many_are_kept_as_are_to_be() {
        let permits = Permits::new(10);
        assert!((0..5).all(|_| permits.try_take()));
        assert_eq!((0..9).filter(|_| permits.try_retire_above(3)).count(), 2);
        permits.give_back_retired();
        assert!(!permits.try_retire_above(3), "one is still closing");
        assert!(permits.try_take() && permits.try_retire_above(3));
    }

    #[test]
    fn a_limit_raised_again_waits_for_the_retired_to_close() {
        let permits = Permits::new(2);
        assert!(permits.try_take() && permits.try_take());
        permits.set_limit(1);
        assert!(permits.try_retire(false));
        permits.set_limit(2);
        assert!(!permits.try_take(), "two are still open");
        permits.give_back_retired();
        assert!(permits.try_take());
    }

    #[test]
    fn limits_beyond_the_field_are_cut() {
        let permits = Permits::new(u32::MAX);
        assert_eq!(permits.limit(), PERMITS_MAX);
        assert!(permits.try_take());
        assert_eq!((permits.limit(), permits.open()), (PERMITS_MAX, 1));
    }

    #[test]
    fn more_surplus_than_the_field_counts_is_retired_in_turns() {
        let permits = Permits::new(PERMITS_MAX);
        let all = RETIRING_MAX + 5;
        assert!((0..all).all(|_| permits.try_take()));
        permits.set_limits(2, RESERVE_MAX + 9);
        assert!((0..RETIRING_MAX).all(|_| permits.try_retire(false)));
        assert!(!permits.try_retire(false) && !permits.try_retire_above(0));
        assert_eq!((permits.limit(), permits.open()), (2, all));
        permits.give_back_retired();
        assert!(permits.has_surplus() && permits.try_retire(false));
        assert!(!permits.try_retire(true), "those of the reserve are in use");
    }

    #[test]
    #[should_panic(expected = "nobody held")]
    fn a_permit_nobody_held_cannot_be_given_back() {
        Permits::new(1).give_back();
    }

    #[test]
    fn threads_never_hold_more_than_the_limit() {
        const LIMIT: u32 = 3;
        let permits = Permits::new(LIMIT);
        let held = AtomicU32::new(0);
        let grants = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for round in 0..20_000 {
                        let taken =
                            (0..1 + round % 3).filter(|_| permits.try_take()).count() as u32;
                        let now_held = held.fetch_add(taken, SeqCst) + taken;
                        assert!(now_held <= LIMIT, "{now_held} permits held");
                        grants.fetch_add(taken, SeqCst);
                        held.fetch_sub(taken, SeqCst);
                        (0..taken).for_each(|_| permits.give_back());
                    }
                });
            }
        });
        assert_eq!(permits.open(), 0);
        assert!(grants.into_inner() > LIMIT);
    }

    #[test]
    fn no_permit_is_granted_above_a_limit_that_falls_meanwhile() {
        let permits = Permits::new(4);
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    permits.set_limit(4);
                    thread::yield_now();
                    permits.set_limit(0);
                    let open = permits.open();
                    (0..50).for_each(|_| {
                        // What is open may only shrink while the limit is zero.
                        if permits.open() > open {
                            is_over.store(true, SeqCst);
                        }
                    });
                }
                permits.set_limit(4);
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        if permits.try_take() {
                            permits.give_back();
                        }
                    }
                });
            }
        });
        assert!(!is_over.into_inner());
    }
}
