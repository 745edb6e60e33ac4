//! What the shards of one pool know of each other. Owns the permits, one desk per shard and two
//! summary bitmaps; owns no server and no waiter, and decides nothing.
//!
//! A desk carries the moment since which its shard's oldest client has waited (the head), how
//! many idle servers it has and whether it wants a permit. The bitmaps say whose desks are worth
//! reading, so that as long as nobody waits, a release reads one word per 64 shards.
//!
//! **Publish, then look again.** Whoever begins to wait publishes that and then looks for idle
//! servers and free permits; whoever has a server or permit to spare publishes that and then
//! looks for waiters. Each side is a store followed by a load of the other side's word: the
//! store-buffer pattern, which only sequential consistency forbids from failing on both sides at
//! once. Hence `SeqCst` on everything the pattern touches: bitmap, head,
//! idle count, want, permit word. Who joins a line publishes nothing and does not look: its head stands for
//! all, unless it is or was claimed since the last look. What is passed over because a claim was taken back, or
//! because a server may travel no further, is found at the next tick.
//!
//! **Claims.** Whoever sends a server to a shard for its head first sets the lowest bit of that
//! head by compare-exchange, and others then pass it over. So one old waiter draws one server and
//! not one from every shard at once, and a stalled shard holds up one server and not the
//! pool. The claimed shard takes the claim down by publishing its head anew, at the latest when
//! the server arrives; it then looks again, for what it missed while it was passed over, as does
//! whoever joins its line meanwhile. A sender that cannot deliver takes the claim back.

use super::outlook::{Pace, older, rate};
use super::permit::Permits;
use super::shard_set::ShardSet;
use crate::base::limit::SHARDS_MAX;
use crate::base::sync::Ordering::{Acquire, Relaxed, Release, SeqCst};
use crate::base::sync::{AtomicBool, AtomicU32, AtomicU64};
use crate::base::{Moment, ShardId};
use crossbeam::utils::CachePadded;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

/// The part of a pool that all shards see: atomics only.
#[derive(Debug)]
pub struct SharedPool {
    /// The pool's own permits, then limits that span pools, in the order in which they are taken.
    levels: Box<[Arc<Permits>]>,
    /// Attempts to open a server that are under way, on all shards.
    openings: Permits,
    /// How long somebody must have waited before the reserve is used, in nanoseconds. Written before the
    /// reserve and read after it.
    reserve_after: AtomicU64,
    /// 0: servers can be opened. `LOGIN_ON_TRIAL`: one attempt is under way to find out. Else
    /// the nanosecond before which nobody tries.
    retry_at: CachePadded<AtomicU64>,
    /// Failures in a row; those of attempts that were under way together count as one.
    failures: AtomicU32,
    /// Shards with waiters.
    waiting: ShardSet,
    /// Shards that may have idle servers: set before a count leaves 0, taken down lazily.
    idling: ShardSet,
    /// No head was older at the last look of any shard; heads only get younger, so it still holds.
    floor: CachePadded<AtomicU64>,
    desks: Box<[CachePadded<Desk>]>,
}

#[derive(Debug)]
struct Desk {
    head: AtomicU64,
    idle: AtomicU32,
    /// Since when the longest idle server has been idle, while there is one.
    idle_since: AtomicU64,
    /// Whether somebody waits here for whom neither a question nor an opening is under way.
    wants: AtomicBool,
    /// How many wait here, since when the last of them, the mean interval between two grants and when the last one was: for what
    /// clients are told, nothing else.
    line: AtomicU32,
    newest: AtomicU64,
    interval_ns: AtomicU64,
    served_at: AtomicU64,
    is_taken: AtomicBool,
}

/// Servers of one pool that are being opened at a time, over all shards: a burst of clients is not to
/// become a burst of forks and logins on the server, most of which come too late for those clients.
pub const OPENINGS_MAX: u32 = 8;

/// Nobody waits here.
const NO_HEAD: u64 = u64::MAX;
/// Somebody waits here, and a server is on its way.
const CLAIM_BIT: u64 = 1;
const LOGIN_WORKS: u64 = 0;
const LOGIN_ON_TRIAL: u64 = u64::MAX;

impl SharedPool {
    /// A pool over `shards` shards (1 to [`SHARDS_MAX`]) with at most `limit` open servers, each of
    /// which also takes a permit of every one of `outer` (limits on a database, user or process).
    ///
    /// A permit of `outer` that another pool gives back wakes nobody here; waiters find it at
    /// their next tick.
    pub fn new(shards: usize, limit: u32, outer: Vec<Arc<Permits>>) -> SharedPool {
        assert!((1..=SHARDS_MAX).contains(&shards), "{shards} shards");
        let own = Arc::new(Permits::new(limit));
        SharedPool {
            levels: iter::once(own).chain(outer).collect(),
            openings: Permits::new(OPENINGS_MAX),
            reserve_after: AtomicU64::new(0),
            retry_at: CachePadded::new(AtomicU64::new(LOGIN_WORKS)),
            failures: AtomicU32::new(0),
            waiting: ShardSet::new(shards),
            idling: ShardSet::new(shards),
            floor: CachePadded::default(),
            desks: iter::repeat_with(|| CachePadded::new(Desk::new()))
                .take(shards)
                .collect(),
        }
    }

    /// Most servers that may be open.
    pub fn limit(&self) -> u32 {
        self.own().limit()
    }

    /// Servers that are open, being opened or being closed.
    pub fn open(&self) -> u32 {
        self.own().open()
    }

    /// Changes the limit. Then [`LocalPool::poke`](super::LocalPool::poke) must run on every
    /// shard, to close what is idle and too much or to open what is now allowed; leased servers
    /// above the limit close when they are released.
    pub fn set_limit(&self, limit: u32) {
        self.own().set_limit(limit);
    }

    /// As [`SharedPool::set_limit`], and in the same step lets `reserve` servers more than the limit be opened for
    /// clients that have waited for `after` or longer; they close when nobody waits any more.
    pub fn set_limits(&self, limit: u32, reserve: u32, after: Duration) {
        let after = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        self.reserve_after.store(after, Relaxed);
        self.own().set_limits(limit, reserve);
    }

    /// Since when the oldest client of any shard has waited.
    pub fn oldest_waiter_since(&self) -> Option<Moment> {
        self.heads().map(|head| head.since()).min()
    }

    /// Whether clients wait on any shard.
    pub fn anyone_waits(&self) -> bool {
        self.heads().next().is_some()
    }

    /// Idle servers on all shards; shards are read one after the other.
    pub fn idle(&self) -> u32 {
        self.desks.iter().map(|desk| desk.idle.load(Relaxed)).sum()
    }

    /// Since when the longest idle server of the shards that are meant has been idle, and where it is.
    pub fn longest_idle(&self, is_meant: impl Fn(ShardId) -> bool) -> Option<(Moment, ShardId)> {
        let idle = self.idling.iter_from(0).filter_map(|shard| {
            let desk = self.desk(shard);
            // Relaxed: a choice that is out of date costs an eviction that finds nothing.
            let since = Moment::from_nanos(desk.idle_since.load(Relaxed));
            let has_one = desk.idle.load(Relaxed) > 0 && is_meant(shard);
            has_one.then_some((since, shard))
        });
        idle.min_by_key(|(since, _)| *since)
    }

    /// Before when no server is to be opened, after a failure; [`Moment::NEVER`] while one
    /// attempt is on trial.
    pub fn retry_at(&self) -> Option<Moment> {
        let retry_at = self.retry_at.load(SeqCst);
        (retry_at != LOGIN_WORKS).then_some(Moment::from_nanos(retry_at))
    }

    fn own(&self) -> &Permits {
        &self.levels[0]
    }

    /// Whether [`SharedPool::try_permit`] would probably succeed.
    pub(super) fn may_open(&self, now: Moment) -> bool {
        self.retry_at.load(SeqCst) <= now.nanos()
            && self.openings.has_free()
            && self.levels.iter().all(|level| level.has_free())
    }

    /// Whether a limit that spans pools is all that keeps a server from being opened.
    pub(super) fn lacks_outer(&self, waited: Duration, now: Moment) -> bool {
        let own = self.own();
        self.retry_at.load(SeqCst) <= now.nanos()
            && (own.has_free() || self.may_use_reserve(waited) && own.has_free_in_reserve())
            && self.levels[1..].iter().any(|level| !level.has_free())
    }

    /// Whether the reserve is for a client that has waited so long.
    fn may_use_reserve(&self, waited: Duration) -> bool {
        waited >= Duration::from_nanos(self.reserve_after.load(Relaxed))
    }

    /// Takes the right to open one server for a client that has waited for `waited`. After a failed
    /// attempt nobody gets it before the retry time, and then one shard alone until its attempt is
    /// decided.
    pub(super) fn try_permit(&self, waited: Duration, now: Moment) -> bool {
        let most = |limit, reserve| match self.may_use_reserve(waited) {
            true => limit + reserve,
            false => limit,
        };
        self.try_permit_to(most, now)
    }

    /// The same for a pool that has fewer servers than `minimum`, whoever waits.
    pub(super) fn try_permit_below(&self, minimum: u32, now: Moment) -> bool {
        self.try_permit_to(|limit, _| limit.min(minimum), now)
    }

    fn try_permit_to(&self, most: impl Fn(u32, u32) -> u32, now: Moment) -> bool {
        let retry_at = self.retry_at.load(SeqCst);
        if retry_at > now.nanos() || !self.openings.try_take() {
            return false;
        }
        if self.take_permits(most) {
            // Once more: our place may be that of an attempt that has just failed.
            let may_try = match retry_at {
                LOGIN_WORKS => self.retry_at.load(SeqCst) == LOGIN_WORKS,
                over => self.start_trial(over),
            };
            if may_try {
                return true;
            }
            self.return_permit();
        }
        self.opening_ended();
        false
    }

    /// An attempt that [`SharedPool::try_permit`] allowed has ended, one way or the other.
    pub(super) fn opening_ended(&self) {
        self.openings.give_back();
    }

    pub(super) fn return_permit(&self) {
        self.return_levels(self.levels.len());
    }

    /// Gives back the permit of a server that has closed; a surplus that was undertaken to be closed
    /// is taken off `retiring` first.
    pub(super) fn return_closed(&self, retiring: &mut Retiring) {
        for (level, permits) in self.levels.iter().enumerate() {
            match retiring.0.get_mut(level) {
                Some(count @ 1..) => {
                    *count -= 1;
                    permits.give_back_retired();
                }
                _ => permits.give_back(),
            }
        }
    }

    /// Whether a server has to close because a limit was lowered, or because it is of the reserve and
    /// nobody waits; then `retiring` has the surplus of every level that this ends.
    pub(super) fn try_retire(&self, retiring: &mut Retiring) -> bool {
        let mut must = false;
        for (level, permits) in self.levels.iter().enumerate() {
            // Looking first: most pools have no surplus and no reserve.
            if permits.has_surplus() && permits.try_retire(level == 0 && self.anyone_waits()) {
                must = true;
                retiring.add(level);
            }
        }
        must
    }

    /// Whether a server may close of which the pool needs no more than `least`; then `retiring` has it.
    pub(super) fn try_retire_above(&self, least: u32, retiring: &mut Retiring) -> bool {
        let may = self.own().try_retire_above(least);
        if may {
            retiring.add(0);
        }
        may
    }

    /// A server closes for a reason of its own; then `retiring` has it.
    pub(super) fn retire(&self, retiring: &mut Retiring) {
        if self.own().retire() {
            retiring.add(0);
        }
    }

    /// Whether some limit leaves no place for another server.
    pub fn is_full(&self) -> bool {
        self.levels.iter().any(|level| !level.has_free())
    }

    /// Whether [`SharedPool::try_retire`] may have something to do.
    pub(super) fn has_surplus(&self) -> bool {
        self.levels.iter().any(|level| level.has_surplus())
    }

    /// A server was opened: the attempt on trial has worked, which ends a time of failures. After a failure others that were
    /// under way with it may still work: they end no pause, or a server that lets in one of two would be tried without any. A trial they
    /// do end: the server has let them in just now, as it would the trial.
    pub(super) fn login_worked(&self) {
        // Look first: nearly always there is nothing to write.
        if self.retry_at.load(SeqCst) == LOGIN_ON_TRIAL {
            self.failures.store(0, Relaxed);
            let _failed_meanwhile =
                self.retry_at
                    .compare_exchange(LOGIN_ON_TRIAL, LOGIN_WORKS, SeqCst, SeqCst);
        }
    }

    /// How many attempts have failed in a row, those that were under way together counted as one.
    pub fn failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }

    /// Opening a server failed: nobody tries before `retry_at`.
    pub(super) fn login_failed(&self, retry_at: Moment) {
        let retry_at = retry_at.nanos().clamp(LOGIN_WORKS + 1, LOGIN_ON_TRIAL - 1);
        let before = self.retry_at.swap(retry_at, SeqCst);
        if matches!(before, LOGIN_WORKS | LOGIN_ON_TRIAL) {
            // One that is lost in a race shortens a pause, nothing else.
            let failures = self.failures().saturating_add(1);
            self.failures.store(failures, Relaxed);
        }
    }

    /// Opening a server was given up without a verdict: if it was the trial, the next may try.
    pub(super) fn login_abandoned(&self, now: Moment) {
        let retry_at = now.nanos().clamp(LOGIN_WORKS + 1, LOGIN_ON_TRIAL - 1);
        let _not_on_trial =
            self.retry_at
                .compare_exchange(LOGIN_ON_TRIAL, retry_at, SeqCst, SeqCst);
    }

    fn start_trial(&self, retry_at: u64) -> bool {
        self.retry_at
            .compare_exchange(retry_at, LOGIN_ON_TRIAL, SeqCst, SeqCst)
            .is_ok()
    }

    /// Who is refused by one limit gives back what he took of those before it, and looks again: whoever gave back a permit
    /// meanwhile may have found those taken, and so woken nobody.
    fn take_permits(&self, most: impl Fn(u32, u32) -> u32) -> bool {
        while self.own().try_take_to(&most) {
            let lacking = (1..self.levels.len()).find(|&level| !self.levels[level].try_take());
            let Some(taken) = lacking else {
                return true;
            };
            self.return_levels(taken);
            if !self.levels[1..].iter().all(|level| level.has_free()) {
                break;
            }
        }
        false
    }

    fn return_levels(&self, taken: usize) {
        self.levels
            .iter()
            .take(taken)
            .for_each(|level| level.give_back());
    }

    /// A moment since or after which every head has waited.
    pub(super) fn floor(&self) -> Moment {
        // Relaxed: one that is too low costs a look.
        Moment::from_nanos(self.floor.load(Relaxed))
    }

    pub(super) fn set_floor(&self, floor: Moment) {
        self.floor.store(floor.nanos(), Relaxed);
    }

    fn heads(&self) -> impl Iterator<Item = Head> {
        self.waiting.iter_from(0).filter_map(|shard| {
            // SeqCst: the "look" of whoever has just published something to spare.
            let word = self.desk(shard).head.load(SeqCst);
            (word != NO_HEAD).then_some(Head { shard, word })
        })
    }

    fn desk(&self, shard: ShardId) -> &Desk {
        &self.desks[shard.index()]
    }
}

impl Desk {
    fn new() -> Desk {
        Desk {
            head: AtomicU64::new(NO_HEAD),
            idle: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            wants: AtomicBool::new(false),
            line: AtomicU32::new(0),
            newest: AtomicU64::new(0),
            interval_ns: AtomicU64::new(0),
            served_at: AtomicU64::new(0),
            is_taken: AtomicBool::new(false),
        }
    }
}

/// Surplus servers that one shard has undertaken to close and that have not closed yet, for each level
/// of limits. If one dies by itself while another retires, they may be taken for each other; once both
/// have closed the counts are the same.
#[derive(Debug, Default)]
pub(super) struct Retiring(Vec<usize>);

impl Retiring {
    fn add(&mut self, level: usize) {
        if self.0.len() <= level {
            self.0.resize(level + 1, 0);
        }
        self.0[level] += 1;
    }
}

/// What a shard's desk said about its oldest waiter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) shard: ShardId,
    word: u64,
}

impl Head {
    /// Since when the waiter has waited, rounded down to 2 ns.
    pub(super) fn since(self) -> Moment {
        Moment::from_nanos(self.word & !CLAIM_BIT)
    }

    fn is_claimed(self) -> bool {
        is_claimed(self.word)
    }
}

fn is_claimed(head: u64) -> bool {
    head != NO_HEAD && head & CLAIM_BIT != 0
}

/// One reading of all other desks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    /// The oldest head that no server is on its way to.
    pub(super) oldest: Option<Head>,
    /// No head is older than this, claimed ones included.
    pub(super) floor: Moment,
}

/// One shard's side of the shared pool: the only writer of its desk and of its bits.
#[derive(Debug)]
pub(super) struct Seat {
    shared: Arc<SharedPool>,
    me: ShardId,
    /// What our bits in the bitmaps are: nobody else writes them.
    waits: bool,
    idles: bool,
    wants: bool,
}

impl Seat {
    /// Takes `me`'s seat; a shard has one per pool.
    pub(super) fn take(shared: Arc<SharedPool>, me: ShardId) -> Seat {
        // Acquire: pairs with the Release in `drop`, so that we build on what the last holder left.
        let was_taken = shared.desk(me).is_taken.swap(true, Acquire);
        assert!(!was_taken, "shard {me} has two local pools of one pool");
        Seat {
            shared,
            me,
            waits: false,
            idles: false,
            wants: false,
        }
    }

    pub(super) fn shared(&self) -> &Arc<SharedPool> {
        &self.shared
    }

    /// Publishes since when our oldest client has waited, and takes down any claim on it. True if there
    /// was one: others may have passed us over.
    pub(super) fn publish_head(&mut self, since: Option<Moment>) -> bool {
        if since.is_none() && !self.waits {
            return false;
        }
        let word = since.map_or(NO_HEAD, |since| since.nanos() & !CLAIM_BIT);
        // SeqCst: the "publish" of a waiter. The head goes first, so that whoever sees the bit
        // also sees the head.
        let before = self.shared.desk(self.me).head.swap(word, SeqCst);
        if since.is_some() != self.waits {
            self.waits = since.is_some();
            self.shared.waiting.set(self.me, self.waits);
        }
        is_claimed(before)
    }

    /// Whether a server is on its way to our head: others pass us over.
    pub(super) fn is_claimed(&self) -> bool {
        is_claimed(self.shared.desk(self.me).head.load(SeqCst))
    }

    /// Publishes how many wait here and how fast they are served.
    pub(super) fn publish_line(&self, count: usize, newest: Moment, pace: &Pace) {
        let desk = self.shared.desk(self.me);
        // Relaxed: an estimate is made of it.
        desk.line
            .store(u32::try_from(count).unwrap_or(u32::MAX), Relaxed);
        desk.newest.store(newest.nanos(), Relaxed);
        desk.interval_ns.store(pace.mean_ns(), Relaxed);
        desk.served_at.store(pace.since().nanos(), Relaxed);
    }

    /// How many clients elsewhere wait since before `mine`, and how many there are.
    pub(super) fn lines_elsewhere(&self, mine: Moment) -> (u64, u64) {
        let others = self.shared.heads().filter(|head| head.shard != self.me);
        others.fold((0, 0), |(ahead, all), head| {
            let desk = self.shared.desk(head.shard);
            let count = desk.line.load(Relaxed).into();
            let last = Moment::from_nanos(desk.newest.load(Relaxed));
            (ahead + older(count, head.since(), last, mine), all + count)
        })
    }

    /// Grants per nanosecond of all shards where clients wait.
    pub(super) fn rate(&self, now: Moment) -> f64 {
        let rates = self.shared.heads().map(|head| {
            let desk = self.shared.desk(head.shard);
            let since = Moment::from_nanos(desk.served_at.load(Relaxed));
            rate(desk.interval_ns.load(Relaxed), since, now)
        });
        rates.sum()
    }

    /// Publishes whether a free permit would be of use to us.
    pub(super) fn publish_want(&mut self, wants: bool) {
        if self.wants != wants {
            self.wants = wants;
            // SeqCst: the "publish" of whoever then looks for a permit.
            self.shared.desk(self.me).wants.store(wants, SeqCst);
        }
    }

    /// Publishes how many idle servers we have, and since when the first of them has been idle.
    ///
    /// The bit stays up when the count falls to 0, because at low load it does so with
    /// every transaction and the bitmap's line is everybody's; [`Seat::retract_idle`] takes it
    /// down.
    pub(super) fn publish_idle(&mut self, count: usize, since: Option<Moment>) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let desk = self.shared.desk(self.me);
        let idle = &desk.idle;
        if let Some(since) = since {
            desk.idle_since.store(since.nanos(), Relaxed);
        }
        if count == 0 {
            // Relaxed: a count that is too high costs a question and its refusal, nothing else.
            idle.store(0, Relaxed);
            return;
        }
        // SeqCst: the "publish" of a spare server.
        idle.store(count, SeqCst);
        if !self.idles {
            self.idles = true;
            self.shared.idling.set(self.me, true);
        }
    }

    /// Spares others from reading our desk while we have no idle server.
    pub(super) fn retract_idle(&mut self) {
        if self.idles {
            self.idles = false;
            self.shared.idling.set(self.me, false);
        }
    }

    /// Reads the heads of all other shards that have one.
    pub(super) fn heads_elsewhere(&self) -> Heads {
        let mut heads = Heads {
            oldest: None,
            floor: Moment::NEVER,
        };
        for head in self.shared.heads().filter(|head| head.shard != self.me) {
            heads.floor = heads.floor.min(head.since());
            let is_older = heads
                .oldest
                .is_none_or(|oldest| head.since() < oldest.since());
            if is_older && !head.is_claimed() {
                heads.oldest = Some(head);
            }
        }
        heads
    }

    /// The shard with the oldest waiter among those elsewhere that want a permit.
    pub(super) fn wanting_elsewhere(&self) -> Option<ShardId> {
        // SeqCst: the "look" of whoever has just given a permit back.
        let wants = |head: &Head| self.shared.desk(head.shard).wants.load(SeqCst);
        let others = self.shared.heads().filter(|head| head.shard != self.me);
        let oldest = others.filter(wants).min_by_key(|head| head.since())?;
        Some(oldest.shard)
    }

    /// Claims the oldest unclaimed head elsewhere, whatever its age.
    pub(super) fn claim_oldest(&self) -> Option<ShardId> {
        loop {
            let head = self.heads_elsewhere().oldest?;
            if self.try_claim(head) {
                return Some(head.shard);
            }
        }
    }

    /// Reserves `head` for a server that we send there. False if it has changed since it was
    /// read: somebody else made progress, so look again.
    pub(super) fn try_claim(&self, head: Head) -> bool {
        let word = &self.shared.desk(head.shard).head;
        word.compare_exchange(head.word, head.word | CLAIM_BIT, SeqCst, SeqCst)
            .is_ok()
    }

    /// Takes back a claim on `shard`'s head whose server could not be sent. If the head has been
    /// published anew meanwhile, the claim is down already.
    pub(super) fn unclaim(&self, shard: ShardId) {
        let release = |word| is_claimed(word).then_some(word & !CLAIM_BIT);
        let _already_down = self
            .shared
            .desk(shard)
            .head
            .fetch_update(SeqCst, SeqCst, release);
    }

    /// Whether clients wait at `shard`.
    pub(super) fn waits_at(&self, shard: ShardId) -> bool {
        self.shared.desk(shard).head.load(SeqCst) != NO_HEAD
    }

    /// A shard with more idle servers than `spoken_for` says. The search starts behind our own
    /// place, so that not all shards ask the same one.
    pub(super) fn idle_elsewhere(&self, spoken_for: impl Fn(ShardId) -> u32) -> Option<ShardId> {
        let is_rich = |shard: &ShardId| {
            // SeqCst: the "look" of whoever has just published a wait.
            *shard != self.me && self.shared.desk(*shard).idle.load(SeqCst) > spoken_for(*shard)
        };
        self.shared
            .idling
            .iter_from(self.me.index() + 1)
            .find(is_rich)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.publish_head(None);
        self.publish_want(false);
        self.publish_idle(0, None);
        self.retract_idle();
        // Release: see `take`.
        self.shared.desk(self.me).is_taken.store(false, Release);
    }
}

#[cfg(test)]
mod tests;
