//! One shard's part of a pool: its idle servers and its waiting clients. Owns both; does not own
//! leased servers (their clients do), nor anything that can block or take time.
//!
//! The life of a server, as the pool sees it:
//! ```text
//!           Open            opened             Grant           release
//!   (none) ──────► opening ────────► PLACE ───────────► leased ────────► PLACE
//!                     │               │ │ │  Send               arrived
//!                     │ open_failed   │ │ └──────► travelling ─────────► PLACE
//!                     ▼               │ │               │ send_failed: PLACE, but not elsewhere
//!                  (none)             │ │               ▲
//!                                     │ │               │ Send (asked, or an older waiter elsewhere)
//!                                     │ └──────────► idle ──────► leased (acquire finds it)
//!                              surplus│                 │
//!                                     ▼   expire_idle   │ poke: surplus
//!                  (none) ◄──────── closing ◄───────────┘
//!                           closed
//! ```
//! A leased server, or an idle one that `remove_idle` took out, may also die: `closed`.
//!
//! PLACE happens within one call: surplus closes; a waiter elsewhere that is older than ours by
//! more than the unfairness bound is sent it; else our own head is granted it (a server that has
//! just arrived goes to our head at once); else it goes idle.
//!
//! The life of a waiter: `acquire` → in line → `Grant`, or `cancel_wait`, or `take_waiters`. An
//! opening, a question or a server on its way is for whoever heads the line when it comes,
//! never for one waiter, so a waiter that leaves passes its turn on by leaving.
//!
//! Invariants:
//! - a shard with waiters has no idle server;
//! - `opening` of this shard and every server hold one permit each until `open_failed` or `closed`;
//! - our published head is that of our line, except that others may have claimed it;
//! - a server that arrives is placed, whoever it was meant for;
//! - a server that is granted is fit to be used: the shard looks before it tells of one, and the
//!   `_unfit` events stand for those that are not.
//!
//! Nothing depends on a message being delivered at once, and on only one being delivered at all:
//! `Send`, which answers with `send_failed` when it cannot. A lost `Ask`, `Decline` or `Wake`
//! costs time until the next `tick`.

use super::action::{Acquired, Action, Idle};
use super::ask::Asks;
use super::shared::{Retiring, Seat, SharedPool};
use super::waiter::{WaiterId, WaiterQueue};
use crate::base::{Moment, ShardId};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// A shard serves its own waiter although one elsewhere is older by no more than this...
pub const UNFAIR_SPAN: Duration = Duration::from_micros(300);

/// ...or by no more than the wait of the older one divided by this, whichever is more. In the model
/// of `tests/sim/model.rs`, 4 to 64 shards, servers then move for 8% to 38% of the transactions,
/// where one global queue moves them for 75% to 98%, and p99 is no higher.
pub const UNFAIR_SHARE: u32 = 10;

/// A shard asks for the eviction of another pool's idle server once in this time, however many wait; it
/// finds the permit that became free at its next tick.
const EVICT_PAUSE: Duration = Duration::from_millis(10);

/// How often a server may travel on without having served anybody; then it stays idle where it is
/// until that shard's next tick.
pub const HOPS_MAX: u8 = 3;

/// One shard's part of a pool; see the head of this file. `S` is an owned server connection,
/// `W` a token for a waiting client.
///
/// Events push what is to be done onto `out`, which may hold other actions already. `now`
/// is the shard's reading of the monotonic clock; the fairness bound is exact up to the age
/// of the readings.
#[derive(Debug)]
pub struct LocalPool<S, W> {
    seat: Seat,
    /// Oldest first.
    idle: VecDeque<Idle<S>>,
    waiters: WaiterQueue<W>,
    opening: usize,
    retiring: Retiring,
    asks: Asks,
    /// Before when no further eviction is asked for.
    evict_after: Moment,
    /// No head elsewhere was older at the last look; heads only get younger, so it still holds.
    floor: Moment,
}

impl<S, W> LocalPool<S, W> {
    /// Shard `me`'s part of `shared`, empty. Panics if it has one already.
    pub fn new(shared: Arc<SharedPool>, me: ShardId) -> LocalPool<S, W> {
        LocalPool {
            seat: Seat::take(shared, me),
            idle: VecDeque::new(),
            waiters: WaiterQueue::new(),
            opening: 0,
            retiring: Retiring::default(),
            asks: Asks::default(),
            evict_after: Moment::default(),
            floor: Moment::default(),
        }
    }

    /// A client needs a server: the freshest idle one, else a place in line, and steps to shorten
    /// it.
    pub fn acquire(&mut self, waiter: W, now: Moment, out: &mut Vec<Action<S, W>>) -> Acquired<S> {
        if let Some(idle) = self.take_freshest() {
            return Acquired::Granted(idle.server);
        }
        let id = self.waiters.push(waiter, now);
        if self.waiters.len() == 1 {
            self.publish_head();
            self.seat.retract_idle();
        }
        self.seek(now, out);
        Acquired::Waits(id)
    }

    /// A client has left the line: it went away, timed out or cancelled. `None` if it was no longer
    /// in it; then its grant has been issued already.
    pub fn cancel_wait(&mut self, id: WaiterId) -> Option<W> {
        let head = self.waiters.head_since();
        let waiter = self.waiters.remove(id);
        if self.waiters.head_since() != head {
            self.publish_head();
        }
        waiter
    }

    /// Takes everybody out of the line who has waited since `until` or longer, oldest first;
    /// [`Moment::NEVER`] takes all.
    pub fn take_waiters(&mut self, until: Moment) -> Vec<W> {
        let mut taken = Vec::new();
        while self
            .waiters
            .head_since()
            .is_some_and(|since| since <= until)
        {
            taken.extend(self.waiters.pop());
        }
        self.publish_head();
        taken
    }

    /// A lease has ended and its server is clean.
    pub fn release(&mut self, server: S, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.place(server, now, out);
    }

    /// A server that another shard sent is here, with its `hops`.
    ///
    /// Our head gets it whatever the heads elsewhere: it was sent because ours was the oldest.
    pub fn arrived(
        &mut self,
        server: S,
        from: ShardId,
        hops: u8,
        now: Moment,
        out: &mut Vec<Action<S, W>>,
    ) {
        self.asks.settle(from);
        if self.is_surplus() {
            out.push(Action::Close(server));
        } else if self.waiters.is_empty() {
            self.rest(server, now);
            if hops < HOPS_MAX {
                self.offer(hops, out);
            }
        } else {
            self.grant(server, out);
        }
        self.after_arrival(now, out);
    }

    /// As [`LocalPool::arrived`], but the server is unfit; it ends in [`LocalPool::closed`].
    pub fn arrived_unfit(&mut self, from: ShardId, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.asks.settle(from);
        self.after_arrival(now, out);
    }

    /// The sender claimed our head. Whoever had something to spare meanwhile passed us over.
    fn after_arrival(&mut self, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.publish_head();
        self.seek(now, out);
    }

    /// The mailbox of shard `to` was full: the server is served here or idles until the next tick.
    pub fn send_failed(
        &mut self,
        server: S,
        to: ShardId,
        now: Moment,
        out: &mut Vec<Action<S, W>>,
    ) {
        self.seat.unclaim(to);
        if self.is_surplus() {
            out.push(Action::Close(server));
        } else if self.waiters.is_empty() {
            self.rest(server, now);
        } else {
            self.grant(server, out);
        }
    }

    /// As [`LocalPool::send_failed`], but the server is unfit by now; it ends in
    /// [`LocalPool::closed`].
    pub fn send_failed_unfit(&mut self, to: ShardId) {
        self.seat.unclaim(to);
    }

    /// Shard `by` asks for an idle server.
    ///
    /// It gets the freshest, as our own clients would: then all shards together are one stack,
    /// and what the pool does not need grows old and expires.
    pub fn asked(&mut self, by: ShardId, out: &mut Vec<Action<S, W>>) {
        let idle = if self.seat.waits_at(by) {
            self.take_freshest()
        } else {
            None
        };
        out.push(match idle {
            Some(Idle { server, .. }) => Action::Send {
                to: by,
                server,
                hops: 1,
            },
            None => Action::Decline(by),
        });
    }

    /// Shard `by` had no idle server for us after all.
    pub fn declined(&mut self, by: ShardId, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.asks.settle(by);
        self.seek(now, out);
    }

    /// An [`Action::Open`] has succeeded.
    pub fn opened(&mut self, server: S, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.end_opening();
        self.seat.shared().login_worked();
        self.place(server, now, out);
        // Our line may have lost its server to an older one elsewhere; and if this ends a time of
        // failures, permits are free that nobody could use.
        self.pass_permit_on(now, out);
    }

    /// As [`LocalPool::opened`], but the server is unfit already; it ends in [`LocalPool::closed`].
    pub fn opened_unfit(&mut self, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.end_opening();
        self.seat.shared().login_worked();
        self.pass_permit_on(now, out);
    }

    /// An [`Action::Open`] has failed. No shard opens another server of this pool before
    /// `retry_at`, and then one shard alone tries first. `None` if the attempt was
    /// given up for a reason that says nothing about the server.
    pub fn open_failed(
        &mut self,
        retry_at: Option<Moment>,
        now: Moment,
        out: &mut Vec<Action<S, W>>,
    ) {
        self.end_opening();
        match retry_at {
            Some(retry_at) => self.seat.shared().login_failed(retry_at),
            None => self.seat.shared().login_abandoned(now),
        }
        self.seat.shared().return_permit();
        self.pass_permit_on(now, out);
    }

    /// A server of this shard has closed, for whatever reason, and is in nobody's hands any more.
    pub fn closed(&mut self, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.seat.shared().return_closed(&mut self.retiring);
        self.pass_permit_on(now, out);
    }

    /// Looks at everything anew: after [`Action::Wake`] and after a change of the limit.
    pub fn poke(&mut self, now: Moment, out: &mut Vec<Action<S, W>>) {
        while !self.idle.is_empty() && self.is_surplus() {
            if let Some(idle) = self.idle.pop_front() {
                out.push(Action::Close(idle.server));
            }
        }
        self.publish_idle();
        self.offer(0, out);
        self.pass_permit_on(now, out);
    }

    /// As [`LocalPool::poke`], and gives up on questions that nobody answers. Run it every 10 ms
    /// or so while [`LocalPool::needs_tick`].
    pub fn tick(&mut self, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.asks.expire(now);
        self.poke(now, out);
    }

    /// Whether something here depends on a tick if messages get lost.
    pub fn needs_tick(&self) -> bool {
        !self.waiters.is_empty() || (!self.idle.is_empty() && self.seat.shared().anyone_waits())
    }

    /// Opens a server ahead of need if the pool has fewer than `minimum` (`min_pool_size`); call
    /// again after each has opened.
    pub fn warm(&mut self, minimum: u32, now: Moment, out: &mut Vec<Action<S, W>>) {
        if self.seat.shared().open() < minimum && self.try_open(now) {
            out.push(Action::Open);
        }
    }

    /// Closes the idle servers of which `is_due` says so, given when each went idle; oldest first.
    pub fn expire_idle(
        &mut self,
        mut is_due: impl FnMut(&S, Moment) -> bool,
        out: &mut Vec<Action<S, W>>,
    ) {
        for _ in 0..self.idle.len() {
            match self.idle.pop_front() {
                Some(idle) if is_due(&idle.server, idle.since) => {
                    out.push(Action::Close(idle.server))
                }
                Some(idle) => self.idle.push_back(idle),
                None => break,
            }
        }
        self.publish_idle();
    }

    /// Takes the longest idle server out of the pool, for another that needs its place under a limit
    /// that spans pools. Ends in [`LocalPool::closed`].
    pub fn evict(&mut self) -> Option<S> {
        let idle = self.idle.pop_front()?;
        self.publish_idle();
        Some(idle.server)
    }

    /// Takes an idle server out of the pool, because it died or is to be used for something else.
    /// Ends in [`LocalPool::closed`] or [`LocalPool::release`].
    pub fn remove_idle(&mut self, mut is_it: impl FnMut(&S) -> bool) -> Option<S> {
        let at = self.idle.iter().position(|idle| is_it(&idle.server))?;
        let idle = self.idle.remove(at)?;
        self.publish_idle();
        Some(idle.server)
    }

    /// The idle servers here, oldest first.
    pub fn idle(&self) -> impl ExactSizeIterator<Item = &Idle<S>> {
        self.idle.iter()
    }

    /// The clients in line here, oldest first, and since when each has waited.
    pub fn waiters(&self) -> impl Iterator<Item = (&W, Moment)> {
        self.waiters.iter()
    }

    /// How many clients are in line here.
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// Since when the head of the line here has waited.
    pub fn first_waiter_since(&self) -> Option<Moment> {
        self.waiters.head_since()
    }

    /// Attempts to open a server that are under way here.
    pub fn opening(&self) -> usize {
        self.opening
    }

    /// What all shards of this pool share.
    pub fn shared(&self) -> &Arc<SharedPool> {
        self.seat.shared()
    }

    /// The release rule.
    fn place(&mut self, server: S, now: Moment, out: &mut Vec<Action<S, W>>) {
        if self.is_surplus() {
            out.push(Action::Close(server));
        } else if self.waiters.is_empty() {
            self.rest(server, now);
            self.offer(0, out);
        } else if let Some(to) = self.claim_overdue(now) {
            out.push(Action::Send {
                to,
                server,
                hops: 1,
            });
        } else {
            self.grant(server, out);
        }
    }

    fn grant(&mut self, server: S, out: &mut Vec<Action<S, W>>) {
        let waiter = self.waiters.pop();
        self.publish_head();
        match waiter {
            Some(waiter) => out.push(Action::Grant { waiter, server }),
            None => unreachable!("a grant without a waiter"),
        }
    }

    /// Whether the server at hand has to close, because a limit was lowered.
    fn is_surplus(&mut self) -> bool {
        self.seat.shared().try_retire(&mut self.retiring)
    }

    fn rest(&mut self, server: S, now: Moment) {
        debug_assert!(self.waiters.is_empty(), "idle beside a waiter");
        self.idle.push_back(Idle { server, since: now });
        self.publish_idle();
    }

    /// The look again of whoever has idle servers: one for each shard with a waiter.
    fn offer(&mut self, hops: u8, out: &mut Vec<Action<S, W>>) {
        while !self.idle.is_empty() {
            let Some(to) = self.seat.claim_oldest() else {
                break;
            };
            if let Some(Idle { server, .. }) = self.take_freshest() {
                out.push(Action::Send {
                    to,
                    server,
                    hops: hops.saturating_add(1),
                });
            }
        }
    }

    /// The look again of whoever waits: a question or an opening for every waiter that has none
    /// yet.
    fn seek(&mut self, now: Moment, out: &mut Vec<Action<S, W>>) {
        let provided_for = self.opening + self.asks.pending();
        let mut wanted = self.waiters.len().saturating_sub(provided_for);
        self.seat.publish_want(wanted > 0);
        while wanted > 0 && self.seek_one(now, out) {
            wanted -= 1;
        }
        self.seat.publish_want(wanted > 0);
        if wanted > 0 && now >= self.evict_after && self.seat.shared().lacks_outer(now) {
            self.evict_after = now.after(EVICT_PAUSE);
            out.push(Action::Evict);
        }
    }

    fn seek_one(&mut self, now: Moment, out: &mut Vec<Action<S, W>>) -> bool {
        let asks = &mut self.asks;
        if let Some(shard) = self.seat.idle_elsewhere(|shard| asks.spoken_for(shard)) {
            asks.add(shard, now);
            out.push(Action::Ask(shard));
            return true;
        }
        let may_open = self.try_open(now);
        out.extend(may_open.then_some(Action::Open));
        may_open
    }

    fn try_open(&mut self, now: Moment) -> bool {
        let is_open = self.seat.shared().try_permit(now);
        self.opening += usize::from(is_open);
        is_open
    }

    fn end_opening(&mut self) {
        assert!(self.opening > 0, "an opening ended that was not begun");
        self.opening -= 1;
    }

    /// A permit may be free: for our own line, else for the oldest elsewhere that wants it. Ours
    /// first is fair enough, since the server that it opens goes to whoever is overdue.
    ///
    /// A shard that is woken runs this too, so several permits find their takers one by one. That
    /// ends: each takes a permit or no longer wants one.
    fn pass_permit_on(&mut self, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.seek(now, out);
        // The permit word first: on most paths it says no.
        if self.seat.shared().may_open(now)
            && let Some(shard) = self.seat.wanting_elsewhere()
        {
            out.push(Action::Wake(shard));
        }
    }

    /// Claims the oldest head elsewhere if ours would overtake it by more than the bound.
    fn claim_overdue(&mut self, now: Moment) -> Option<ShardId> {
        let ours = self.waiters.head_since()?;
        // Usually the last look still rules every head elsewhere out; looking means reading
        // a cache line of every shard that has waiters.
        while is_overdue(self.floor, ours, now) {
            let heads = self.seat.heads_elsewhere();
            self.floor = heads.floor.min(now);
            let oldest = heads
                .oldest
                .filter(|head| is_overdue(head.since(), ours, now))?;
            if self.seat.try_claim(oldest) {
                return Some(oldest.shard);
            }
        }
        None
    }

    fn take_freshest(&mut self) -> Option<Idle<S>> {
        let idle = self.idle.pop_back()?;
        self.publish_idle();
        Some(idle)
    }

    fn publish_idle(&mut self) {
        let since = self.idle.front().map(|idle| idle.since);
        self.seat.publish_idle(self.idle.len(), since);
    }

    fn publish_head(&mut self) {
        self.seat.publish_head(self.waiters.head_since());
    }
}

/// Whether serving the waiter of `ours` now would be unfair to that of `theirs`.
fn is_overdue(theirs: Moment, ours: Moment, now: Moment) -> bool {
    let tolerance = (now.since(theirs) / UNFAIR_SHARE).max(UNFAIR_SPAN);
    theirs.after(tolerance) < ours
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Permits;

    type Pool = LocalPool<u32, char>;
    type Actions = Vec<Action<u32, char>>;

    const HERE: ShardId = ShardId(0);
    const THERE: ShardId = ShardId(1);

    fn ms(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    /// Two shards of one pool.
    fn pools(limit: u32) -> (Pool, Pool) {
        let shared = Arc::new(SharedPool::new(2, limit, Vec::new()));
        (Pool::new(shared.clone(), HERE), Pool::new(shared, THERE))
    }

    /// What `event` has a pool do.
    fn did<R>(event: impl FnOnce(&mut Actions) -> R) -> Actions {
        let mut out = Vec::new();
        event(&mut out);
        out
    }

    fn waits(pool: &mut Pool, waiter: char, now: Moment) -> WaiterId {
        match pool.acquire(waiter, now, &mut Vec::new()) {
            Acquired::Waits(id) => id,
            Acquired::Granted(server) => panic!("{waiter} was granted {server}"),
        }
    }

    /// Opens `server` on `pool` and leaves it idle.
    fn stock(pool: &mut Pool, server: u32, now: Moment) {
        assert_eq!(did(|out| pool.warm(u32::MAX, now, out)), [Action::Open]);
        assert_eq!(did(|out| pool.opened(server, now, out)), []);
    }

    #[test]
    fn the_freshest_idle_server_is_granted_first() {
        let (mut here, _there) = pools(2);
        stock(&mut here, 1, ms(0));
        stock(&mut here, 2, ms(1));
        let mut out = Vec::new();
        assert_eq!(here.acquire('a', ms(2), &mut out), Acquired::Granted(2));
        assert_eq!(here.acquire('b', ms(2), &mut out), Acquired::Granted(1));
        assert_eq!(out, []);
    }

    #[test]
    fn an_idle_server_elsewhere_is_asked_for_before_one_is_opened() {
        let (mut here, mut there) = pools(2);
        stock(&mut there, 1, ms(0));
        assert_eq!(
            did(|out| here.acquire('a', ms(1), out)),
            [Action::Ask(THERE)]
        );
        assert_eq!(
            did(|out| here.acquire('b', ms(1), out)),
            [Action::Open],
            "the one idle is spoken for"
        );
        let sent = Action::Send {
            to: HERE,
            server: 1,
            hops: 1,
        };
        assert_eq!(did(|out| there.asked(HERE, out)), [sent]);
        let granted = Action::Grant {
            waiter: 'a',
            server: 1,
        };
        assert_eq!(did(|out| here.arrived(1, THERE, 1, ms(2), out)), [granted]);
    }

    #[test]
    fn a_refused_question_turns_into_an_opening() {
        let (mut here, mut there) = pools(2);
        stock(&mut there, 1, ms(0));
        waits(&mut here, 'a', ms(1));
        assert_eq!(
            there.acquire('b', ms(1), &mut Vec::new()),
            Acquired::Granted(1)
        );
        assert_eq!(did(|out| there.asked(HERE, out)), [Action::Decline(HERE)]);
        assert_eq!(did(|out| here.declined(THERE, ms(2), out)), [Action::Open]);
    }

    #[test]
    fn no_more_is_opened_than_waiters_and_permits_allow() {
        let (mut here, mut there) = pools(2);
        assert_eq!(did(|out| here.acquire('a', ms(0), out)), [Action::Open]);
        assert_eq!(did(|out| here.tick(ms(1), out)), []);
        assert_eq!(did(|out| there.acquire('b', ms(1), out)), [Action::Open]);
        assert_eq!(did(|out| there.acquire('c', ms(1), out)), []);
        assert_eq!(here.shared().open(), 2);
    }

    #[test]
    fn a_waiter_elsewhere_within_the_bound_is_overtaken_and_beyond_it_is_served() {
        let (mut here, mut there) = pools(1);
        waits(&mut there, 'x', ms(100));
        // Waits of 10 ms and more: a tenth of it counts.
        waits(&mut here, 'a', ms(101));
        waits(&mut here, 'b', ms(102));
        let granted = Action::Grant {
            waiter: 'a',
            server: 7,
        };
        assert_eq!(did(|out| here.release(7, ms(110), out)), [granted]);
        let sent = Action::Send {
            to: THERE,
            server: 7,
            hops: 1,
        };
        assert_eq!(did(|out| here.release(7, ms(110), out)), [sent]);
    }

    #[test]
    fn an_old_waiter_draws_one_server_until_it_has_come() {
        let (mut here, mut there) = pools(2);
        waits(&mut there, 'x', ms(0));
        waits(&mut there, 'y', ms(1));
        let sent = Action::Send {
            to: THERE,
            server: 7,
            hops: 1,
        };
        assert_eq!(did(|out| here.release(7, ms(9), out)), [sent]);
        assert_eq!(
            did(|out| here.release(8, ms(9), out)),
            [],
            "claimed: it idles"
        );
        let actions = did(|out| there.arrived(7, HERE, 1, ms(10), out));
        assert_eq!(
            actions,
            [Action::Grant {
                waiter: 'x',
                server: 7
            }]
        );
        assert_eq!(
            did(|out| here.tick(ms(11), out)),
            [Action::Send {
                to: THERE,
                server: 8,
                hops: 1
            }]
        );
    }

    #[test]
    fn a_server_that_comes_too_late_travels_on_a_bounded_number_of_times() {
        let (mut here, mut there) = pools(1);
        waits(&mut there, 'x', ms(0));
        let sent = Action::Send {
            to: THERE,
            server: 7,
            hops: HOPS_MAX,
        };
        assert_eq!(
            did(|out| here.arrived(7, THERE, HOPS_MAX - 1, ms(1), out)),
            [sent]
        );
        there.cancel_wait(WaiterId::default());
        waits(&mut here, 'a', ms(2));
        assert_eq!(did(|out| there.arrived(7, HERE, HOPS_MAX, ms(3), out)), []);
        assert!(there.needs_tick());
        assert_eq!(
            did(|out| there.tick(ms(4), out)),
            [Action::Send {
                to: HERE,
                server: 7,
                hops: 1
            }]
        );
    }

    #[test]
    fn a_server_that_cannot_be_sent_serves_here_or_waits_for_the_tick() {
        let (mut here, mut there) = pools(1);
        waits(&mut there, 'x', ms(0));
        let sent = || Action::Send {
            to: THERE,
            server: 7,
            hops: 1,
        };
        assert_eq!(did(|out| here.release(7, ms(1), out)), [sent()]);
        assert_eq!(did(|out| here.send_failed(7, THERE, ms(1), out)), []);
        assert!(here.needs_tick());
        assert_eq!(did(|out| here.tick(ms(2), out)), [sent()]);
        waits(&mut here, 'a', ms(3));
        let granted = Action::Grant {
            waiter: 'a',
            server: 7,
        };
        assert_eq!(did(|out| here.send_failed(7, THERE, ms(3), out)), [granted]);
    }

    #[test]
    fn an_unfit_server_leaves_the_head_of_the_line_at_its_place() {
        let (mut here, mut there) = pools(2);
        waits(&mut here, 'a', ms(0));
        waits(&mut here, 'b', ms(1));
        assert_eq!(did(|out| here.opened_unfit(ms(2), out)), []);
        assert_eq!(here.opening(), 1);
        assert_eq!(did(|out| here.closed(ms(3), out)), [Action::Open]);
        waits(&mut there, 'x', ms(4));
        let sent = Action::Send {
            to: HERE,
            server: 7,
            hops: 1,
        };
        assert_eq!(did(|out| there.release(7, ms(9), out)), [sent]);
        assert_eq!(did(|out| here.arrived_unfit(THERE, ms(9), out)), []);
        assert_eq!(here.first_waiter_since(), Some(ms(0)));
        let sent = Action::Send {
            to: HERE,
            server: 8,
            hops: 1,
        };
        let again = did(|out| there.release(8, ms(9), out));
        assert_eq!(again, [sent], "the claim is down");
        there.send_failed_unfit(HERE);
        let again = did(|out| there.release(9, ms(9), out));
        assert!(matches!(again[..], [Action::Send { to: HERE, .. }]));
    }

    #[test]
    fn a_waiter_that_leaves_passes_its_opening_on() {
        let (mut here, _there) = pools(1);
        let first = waits(&mut here, 'a', ms(0));
        waits(&mut here, 'b', ms(1));
        assert_eq!(here.cancel_wait(first), Some('a'));
        assert_eq!(here.cancel_wait(first), None);
        assert_eq!(here.first_waiter_since(), Some(ms(1)));
        assert_eq!(
            did(|out| here.opened(7, ms(2), out)),
            [Action::Grant {
                waiter: 'b',
                server: 7
            }]
        );
    }

    #[test]
    fn after_a_failure_nothing_is_opened_before_its_time() {
        let (mut here, mut there) = pools(3);
        waits(&mut here, 'a', ms(0));
        waits(&mut there, 'x', ms(0));
        assert_eq!(did(|out| here.open_failed(Some(ms(100)), ms(1), out)), []);
        assert_eq!(did(|out| here.tick(ms(99), out)), []);
        assert_eq!(did(|out| here.tick(ms(100), out)), [Action::Open]);
        assert_eq!(
            did(|out| there.acquire('y', ms(100), out)),
            [],
            "one attempt is on trial"
        );
        let actions = did(|out| here.opened(7, ms(101), out));
        assert_eq!(
            actions,
            [
                Action::Grant {
                    waiter: 'a',
                    server: 7
                },
                Action::Wake(THERE)
            ]
        );
        assert_eq!(did(|out| there.poke(ms(101), out)), [Action::Open]);
    }

    #[test]
    fn an_attempt_given_up_passes_its_permit_on() {
        let (mut here, mut there) = pools(1);
        let gone = waits(&mut here, 'a', ms(0));
        waits(&mut there, 'x', ms(0));
        here.cancel_wait(gone);
        assert_eq!(
            did(|out| here.open_failed(None, ms(1), out)),
            [Action::Wake(THERE)]
        );
        assert_eq!(did(|out| there.poke(ms(1), out)), [Action::Open]);
    }

    #[test]
    fn the_permit_of_a_closed_server_goes_to_our_line_first() {
        let (mut here, mut there) = pools(1);
        stock(&mut here, 7, ms(0));
        assert_eq!(
            here.acquire('a', ms(0), &mut Vec::new()),
            Acquired::Granted(7)
        );
        waits(&mut there, 'x', ms(1));
        waits(&mut here, 'b', ms(2));
        assert_eq!(did(|out| here.closed(ms(3), out)), [Action::Open]);
    }

    #[test]
    fn a_lowered_limit_closes_idle_servers_now_and_leased_ones_at_release() {
        let (mut here, mut there) = pools(3);
        (1..=3).for_each(|server| stock(&mut here, server, ms(server.into())));
        assert_eq!(
            here.acquire('a', ms(4), &mut Vec::new()),
            Acquired::Granted(3)
        );
        here.shared().set_limit(1);
        assert_eq!(
            did(|out| here.poke(ms(5), out)),
            [Action::Close(1), Action::Close(2)]
        );
        here.shared().set_limit(0);
        assert_eq!(did(|out| here.poke(ms(6), out)), [], "it is leased");
        assert_eq!(did(|out| here.release(3, ms(7), out)), [Action::Close(3)]);
        waits(&mut there, 'x', ms(7));
        (0..3).for_each(|_| assert_eq!(did(|out| here.closed(ms(8), out)), []));
        assert_eq!(here.shared().open(), 0);
        here.shared().set_limit(1);
        assert_eq!(did(|out| there.poke(ms(9), out)), [Action::Open]);
    }

    #[test]
    fn a_limit_that_spans_pools_is_taken_with_the_pools_own_and_given_back_with_it() {
        let outer = Arc::new(Permits::new(2));
        let pool = |limit| {
            let shared = SharedPool::new(1, limit, vec![outer.clone()]);
            Pool::new(Arc::new(shared), HERE)
        };
        let (mut one, mut two) = (pool(3), pool(1));
        stock(&mut one, 1, ms(0));
        stock(&mut one, 2, ms(1));
        assert_eq!(two.shared().longest_idle(), None);
        assert_eq!(one.shared().longest_idle(), Some((ms(0), HERE)));
        assert_eq!(did(|out| two.acquire('a', ms(2), out)), [Action::Evict]);
        assert_eq!(did(|out| two.tick(ms(3), out)), [], "it was asked for");
        assert_eq!(one.evict(), Some(1));
        assert_eq!(did(|out| one.closed(ms(4), out)), []);
        assert_eq!(did(|out| two.tick(ms(5), out)), [Action::Open]);
        assert_eq!(did(|out| two.acquire('b', ms(6), out)), [], "its own limit");
        outer.set_limit(1);
        assert_eq!(did(|out| one.poke(ms(7), out)), [Action::Close(2)]);
        assert_eq!(outer.open(), 2);
        assert_eq!(did(|out| one.closed(ms(8), out)), []);
        assert_eq!((outer.open(), one.shared().open()), (1, 0));
    }

    #[test]
    fn idle_servers_expire_oldest_first_and_one_that_dies_is_found() {
        let (mut here, _there) = pools(3);
        (1..=3).for_each(|server| stock(&mut here, server, ms(server.into())));
        let expired = did(|out| here.expire_idle(|_, since| since <= ms(2), out));
        assert_eq!(expired, [Action::Close(1), Action::Close(2)]);
        assert_eq!(here.remove_idle(|&server| server == 9), None);
        assert_eq!(here.remove_idle(|&server| server == 3), Some(3));
        assert_eq!((here.idle().len(), here.shared().idle()), (0, 0));
    }

    #[test]
    fn waiters_are_taken_up_to_a_moment_oldest_first() {
        let (mut here, _there) = pools(0);
        ('a'..='d').zip(1..).for_each(|(waiter, at)| {
            waits(&mut here, waiter, ms(at));
        });
        assert_eq!(here.take_waiters(ms(2)), ['a', 'b']);
        assert_eq!(here.shared().oldest_waiter_since(), Some(ms(3)));
        assert_eq!(here.take_waiters(Moment::NEVER), ['c', 'd']);
        assert!(!here.needs_tick());
    }
}
