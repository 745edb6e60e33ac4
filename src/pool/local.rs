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
//! PLACE happens within one call: surplus, and whatever comes to a paused shard, closes; a waiter elsewhere that is older than ours by
//! more than the unfairness bound is sent it; else our own head is granted it (a server that has
//! just arrived goes to our head at once); else it goes idle.
//!
//! The life of a waiter: `acquire` → in line → `Grant`, or `cancel_wait`, or `take_waiters`. An
//! opening, a question or a server on its way is for whoever heads the line when it comes,
//! never for one waiter, so a waiter that leaves passes its turn on by leaving.
//!
//! Invariants:
//! - a shard with waiters has no idle server, except that those who wait for servers to be checked may have more of that kind
//!   beside them; a paused shard has none;
//! - `opening` of this shard and every server hold one permit each until `open_failed` or `closed`;
//! - our published head is that of our line, except that others may have claimed it;
//! - a server that arrives is placed, whoever it was meant for;
//! - a server that is granted is fit to be used: the shard looks before it tells of one, and the
//!   `_unfit` events stand for those that are not.
//!
//! Nothing depends on a message being delivered at once, and on only one being delivered at all:
//! `Send`, which answers with `send_failed` when it cannot. A lost `Ask`, `Decline` or `Wake`
//! costs time until the next `tick`.

use super::action::{Acquired, Action, Closing, Idle};
use super::ask::{Asks, Checks};
use super::outlook::{Outlook, Pace};
use super::permit::{PERMITS_MAX, Permit, Permits};
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

/// A shard that has asked for an idle server elsewhere so often, with pauses no longer than
/// [`BORROWING_SPAN`], opens one of its own.
const BORROWS_MAX: u32 = 8;

/// See [`BORROWS_MAX`].
const BORROWING_SPAN: Duration = Duration::from_secs(10);

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
    /// The places that attempts to open a server have at their machine, the oldest first.
    opening: VecDeque<Permit>,
    /// Openings among them that nobody waits for.
    spare: usize,
    borrowed: Borrowed,
    retiring: Retiring,
    asks: Asks,
    checks: Checks,
    pace: Pace,
    /// Before when no further eviction is asked for.
    evict_after: Moment,
    /// The last look found nothing, and no claim has hidden our head since: whoever has something to
    /// spare finds it.
    has_looked: bool,
    is_paused: bool,
    /// Idle servers serve in turn, the longest idle one first.
    is_round_robin: bool,
    /// See [`LocalPool::open_at`].
    machine: Arc<Permits>,
}

impl<S, W> LocalPool<S, W> {
    /// Shard `me`'s part of `shared`, empty. Panics if it has one already.
    pub fn new(shared: Arc<SharedPool>, me: ShardId) -> LocalPool<S, W> {
        LocalPool {
            seat: Seat::take(shared, me),
            idle: VecDeque::new(),
            waiters: WaiterQueue::new(),
            opening: VecDeque::new(),
            spare: 0,
            borrowed: Borrowed::default(),
            retiring: Retiring::default(),
            asks: Asks::default(),
            checks: Checks::default(),
            pace: Pace::default(),
            evict_after: Moment::default(),
            has_looked: false,
            is_paused: false,
            is_round_robin: false,
            machine: Arc::new(Permits::new(PERMITS_MAX)),
        }
    }

    /// A client needs a server: the freshest idle one, else a place in line, and steps to shorten
    /// it.
    pub fn acquire(&mut self, waiter: W, now: Moment, out: &mut Vec<Action<S, W>>) -> Acquired<S> {
        match self.take_next() {
            Some(idle) => Acquired::Granted(idle.server),
            None => Acquired::Waits(self.join(waiter, now, out)),
        }
    }

    /// A server that [`LocalPool::acquire`] has granted to `waiter` is to be checked first: the client stands in
    /// line meanwhile, and whoever heads the line when the check has ended is served. Ends as an [`Action::Check`] does.
    pub fn check(&mut self, waiter: W, now: Moment, out: &mut Vec<Action<S, W>>) -> WaiterId {
        self.check_begins(now);
        self.join(waiter, now, out)
    }

    /// A server whose lease has ended is checked before the next of our line has it. Ends as an [`Action::Check`] does.
    pub fn check_begins(&mut self, now: Moment) {
        self.checks.begin(now);
    }

    /// A server has passed its check, which began at `begun`.
    pub fn checked(&mut self, server: S, begun: Moment, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.checks.end(begun);
        self.place(server, now, out);
        self.seek(now, out);
    }

    /// A server has not passed its check; it ends in [`LocalPool::closed`].
    pub fn check_failed(&mut self, begun: Moment, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.checks.end(begun);
        self.seek(now, out);
    }

    fn join(&mut self, waiter: W, now: Moment, out: &mut Vec<Action<S, W>>) -> WaiterId {
        let id = self.waiters.push(waiter, now);
        if self.waiters.len() == 1 {
            self.has_looked = false;
            self.pace.line_forms(now);
            self.publish_head();
            if self.idle.is_empty() {
                self.seat.retract_idle();
            }
        }
        self.publish_line();
        // In a saturated pool every transaction comes here, and a look writes what all shards read.
        if !self.has_looked || self.seat.is_claimed() {
            self.seek(now, out);
        }
        id
    }

    /// A client has left the line: it went away, timed out or cancelled. `None` if it was no longer
    /// in it; then its grant has been issued already.
    pub fn cancel_wait(&mut self, id: WaiterId) -> Option<W> {
        let head = self.waiters.head_since();
        let waiter = self.waiters.remove(id);
        if self.waiters.head_since() != head {
            self.publish_head();
        }
        self.publish_line();
        waiter
    }

    /// Where a client in line stands; `None` if it is not in line any more.
    pub fn outlook(&self, id: WaiterId, now: Moment) -> Option<Outlook> {
        let (before, since) = self.waiters.place(id)?;
        let (ahead, others) = self.seat.lines_elsewhere(since);
        let ahead = before as u64 + ahead;
        let may_grow = !self.opening.is_empty() || self.may_open(now);
        let rate = self.seat.rate(now);
        // For whom a server is on its way or being checked, the line does not count.
        let is_expected = before < self.asks.pending() + self.checks.pending();
        // Nor does a line move because it did, if its servers cannot be reached.
        let is_reachable = self.seat.shared().failures() == 0;
        let is_known = rate > 0.0 && !may_grow && !is_expected && is_reachable;
        let expected = is_known.then(|| (ahead + 1) as f64 / rate);
        Some(Outlook {
            ahead,
            waiting: self.waiters.len() as u64 + others,
            expected: expected.map(|nanos| Duration::from_nanos(nanos as u64)),
        })
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
        self.publish_line();
        taken
    }

    /// A lease has ended and its server is clean.
    pub fn release(&mut self, server: S, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.place(server, now, out);
    }

    /// A server that another shard sent is here, with its `hops`.
    ///
    /// It was sent because our head was the oldest; by now that one may have been served, and somebody elsewhere be overdue.
    pub fn arrived(
        &mut self,
        server: S,
        from: ShardId,
        hops: u8,
        now: Moment,
        out: &mut Vec<Action<S, W>>,
    ) {
        self.asks.settle(from);
        if let Some(why) = self.closing() {
            out.push(Action::Close(server, why));
        } else if self.waiters.is_empty() {
            self.rest(server, now);
            if hops < HOPS_MAX {
                self.offer(hops, out);
            }
        } else if hops < HOPS_MAX
            && let Some(to) = self.claim_overdue(now)
        {
            let hops = hops + 1;
            out.push(Action::Send { to, server, hops });
        } else {
            self.grant(server, now, out);
        }
        self.after_arrival(now, out);
    }

    /// As [`LocalPool::arrived`] while clients wait, but the server is checked before one of them has it. Ends as an
    /// [`Action::Check`] does.
    pub fn arrived_unchecked(&mut self, from: ShardId, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.asks.settle(from);
        self.check_begins(now);
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
        if let Some(why) = self.closing() {
            out.push(Action::Close(server, why));
        } else if self.waiters.is_empty() {
            self.rest(server, now);
        } else {
            self.grant(server, now, out);
        }
    }

    /// As [`LocalPool::send_failed`], but the server is not here: it is unfit by now and ends in [`LocalPool::closed`], or it
    /// is being checked.
    pub fn send_failed_unfit(&mut self, to: ShardId) {
        self.seat.unclaim(to);
    }

    /// Shard `by` asks for an idle server.
    ///
    /// It gets the freshest, as our own clients would: then all shards together are one stack,
    /// and what the pool does not need grows old and expires.
    pub fn asked(&mut self, by: ShardId, out: &mut Vec<Action<S, W>>) {
        let idle = if self.seat.waits_at(by) {
            self.take_next()
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

    /// From now on nobody is granted a server here and none is opened; idle ones close, and so does every
    /// other once it comes back. Clients still get in line. Our head stays published, as heads must only get
    /// younger (see [`SharedPool`]): what a shard that is not paused yet sends here closes.
    pub fn pause(&mut self, out: &mut Vec<Action<S, W>>) {
        self.is_paused = true;
        self.seat.publish_want(false);
        for idle in self.idle.drain(..) {
            self.seat.shared().retire(&mut self.retiring);
            out.push(Action::Close(idle.server, Closing::Paused));
        }
        self.publish_idle();
    }

    /// Ends a pause: the line moves again.
    pub fn resume(&mut self, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.is_paused = false;
        self.publish_head();
        self.pass_permit_on(now, out);
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Takes the permit for a server that is opened for one client alone and never comes into the pool. It ends
    /// in [`LocalPool::ends_apart`] and [`LocalPool::opened_unfit`] or [`LocalPool::open_failed`], and after the former in
    /// [`LocalPool::closed`].
    pub fn open_apart(&mut self, now: Moment) -> bool {
        let may_open = !self.is_paused && self.try_open(Duration::ZERO, now);
        self.spare += usize::from(may_open);
        may_open
    }

    /// The opening of [`LocalPool::open_apart`] ends, as is told next.
    pub fn ends_apart(&mut self) {
        self.spare = self.spare.saturating_sub(1);
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
        self.attempt_failed(retry_at, now, out);
        self.attempt_cleared(now, out);
    }

    /// The first half of [`LocalPool::open_failed`]: nobody waits for that opening any more, but its permit is held until
    /// [`LocalPool::attempt_cleared`].
    pub fn attempt_failed(
        &mut self,
        retry_at: Option<Moment>,
        now: Moment,
        out: &mut Vec<Action<S, W>>,
    ) {
        // First of all: whoever finds the place free that this opening leaves must know.
        match retry_at {
            Some(retry_at) => self.seat.shared().login_failed(retry_at),
            None => self.seat.shared().login_abandoned(now),
        }
        self.spare = (self.spare + 1).min(self.opening.len());
        self.seek(now, out);
    }

    /// The second half: the server has hung up as well.
    pub fn attempt_cleared(&mut self, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.spare = self.spare.saturating_sub(1);
        self.end_opening();
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
        while !self.idle.is_empty()
            && let Some(why) = self.closing()
        {
            let idle = self.idle.pop_front();
            out.extend(idle.map(|idle| Action::Close(idle.server, why)));
        }
        self.publish_idle();
        // Ours first: an idle server beside a line waits to be checked.
        self.seek(now, out);
        self.offer(0, out);
        self.pass_permit_on(now, out);
    }

    /// As [`LocalPool::poke`], and gives up on questions that nobody answers. Run it every 10 ms
    /// or so while [`LocalPool::needs_tick`].
    pub fn tick(&mut self, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.asks.expire(now);
        self.checks.expire(now);
        self.poke(now, out);
    }

    /// Whether something here depends on a tick if messages get lost.
    pub fn needs_tick(&self) -> bool {
        let shared = self.seat.shared();
        let may_move = || shared.anyone_waits() || shared.has_surplus();
        !self.is_paused && (!self.waiters.is_empty() || (!self.idle.is_empty() && may_move()))
    }

    /// Opens a server ahead of need if the pool has fewer than `minimum` (`min_pool_size`); call
    /// again after each has opened.
    pub fn warm(&mut self, minimum: u32, now: Moment, out: &mut Vec<Action<S, W>>) {
        if !self.is_paused && self.begin_opening(|shared| shared.try_permit_below(minimum, now)) {
            out.push(Action::Open);
        }
    }

    /// From now on servers are opened at this machine: attempts take a place of it, of which pools share those whose servers
    /// are there. Who finds none free looks again at the next tick. Attempts that are under way keep theirs where they have it;
    /// if a later one ends before one of them, they are taken for each other until both have ended.
    pub fn open_at(&mut self, machine: Arc<Permits>) {
        self.machine = machine;
    }

    /// Whether idle servers serve in turn, instead of the one that was used last.
    pub fn set_round_robin(&mut self, is_round_robin: bool) {
        self.is_round_robin = is_round_robin;
    }

    /// Closes the idle servers for which `due` has a reason, given when each went idle; oldest first.
    pub fn expire_idle(
        &mut self,
        mut due: impl FnMut(&S, Moment) -> Option<&'static str>,
        out: &mut Vec<Action<S, W>>,
    ) {
        let reason = |pool: &mut Self, server: &S, since| {
            let why = due(server, since)?;
            pool.seat.shared().retire(&mut pool.retiring);
            Some(why)
        };
        self.close_idle(reason, out);
    }

    /// Closes the idle servers of which `is_due` says so, given when each went idle, oldest first; `least` are kept,
    /// over all shards.
    pub fn expire_spare(
        &mut self,
        least: u32,
        why: &'static str,
        is_due: impl Fn(&S, Moment) -> bool,
        out: &mut Vec<Action<S, W>>,
    ) {
        let reason = |pool: &mut Self, server: &S, since| {
            let shared = pool.seat.shared();
            let may_go =
                is_due(server, since) && shared.try_retire_above(least, &mut pool.retiring);
            may_go.then_some(why)
        };
        self.close_idle(reason, out);
    }

    /// Closes the idle servers for which there is a reason, oldest first.
    fn close_idle(
        &mut self,
        mut reason: impl FnMut(&mut Self, &S, Moment) -> Option<&'static str>,
        out: &mut Vec<Action<S, W>>,
    ) {
        for _ in 0..self.idle.len() {
            let Some(idle) = self.idle.pop_front() else {
                break;
            };
            match reason(self, &idle.server, idle.since) {
                Some(why) => out.push(Action::Close(idle.server, Closing::Expired(why))),
                None => self.idle.push_back(idle),
            }
        }
        self.publish_idle();
    }

    /// Takes the longest idle server out of the pool, for another that needs its place under a limit
    /// that spans pools. Ends in [`LocalPool::closed`].
    pub fn evict(&mut self) -> Option<S> {
        let idle = self.idle.pop_front()?;
        self.seat.shared().retire(&mut self.retiring);
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

    /// How many clients in line have neither been asked a server for nor one being opened.
    pub fn unprovided(&self) -> usize {
        self.unasked()
            .saturating_sub(self.opening.len() - self.spare)
    }

    /// How many clients in line no server elsewhere has been asked for, nor is one being checked for them.
    pub fn unasked(&self) -> usize {
        let provided_for = self.asks.pending() + self.checks.pending();
        self.waiters.len().saturating_sub(provided_for)
    }

    /// How many idle servers of `shard` have been asked for and not answered; more than it can have while
    /// an answer is overdue.
    pub fn asked_of(&self, shard: ShardId) -> u32 {
        self.asks.spoken_for(shard)
    }

    /// Since when the head of the line here has waited.
    pub fn first_waiter_since(&self) -> Option<Moment> {
        self.waiters.head_since()
    }

    /// Attempts to open a server that are under way here.
    pub fn opening(&self) -> usize {
        self.opening.len()
    }

    /// What all shards of this pool share.
    pub fn shared(&self) -> &Arc<SharedPool> {
        self.seat.shared()
    }

    /// The release rule.
    fn place(&mut self, server: S, now: Moment, out: &mut Vec<Action<S, W>>) {
        if let Some(why) = self.closing() {
            out.push(Action::Close(server, why));
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
            self.grant(server, now, out);
        }
    }

    fn grant(&mut self, server: S, now: Moment, out: &mut Vec<Action<S, W>>) {
        let waiter = self.waiters.pop();
        self.publish_head();
        self.pace.served(now);
        self.publish_line();
        match waiter {
            Some(waiter) => out.push(Action::Grant { waiter, server }),
            None => unreachable!("a grant without a waiter"),
        }
    }

    /// Why the server at hand has to close, if it has: because of a pause, or because a limit was lowered.
    fn closing(&mut self) -> Option<Closing> {
        if self.is_paused {
            self.seat.shared().retire(&mut self.retiring);
            return Some(Closing::Paused);
        }
        let is_surplus = self.seat.shared().try_retire(&mut self.retiring);
        is_surplus.then_some(Closing::Surplus)
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
            if let Some(Idle { server, .. }) = self.take_next() {
                out.push(Action::Send {
                    to,
                    server,
                    hops: hops.saturating_add(1),
                });
            }
        }
    }

    /// The look again of whoever waits: an idle server here or a question for everybody whom none has been asked for, even if a server is being
    /// opened, which may take long; else an opening for every waiter that has neither.
    fn seek(&mut self, now: Moment, out: &mut Vec<Action<S, W>>) {
        if self.is_paused {
            return;
        }
        // Idle beside a line: they have to be checked, and those of which the line has heard nothing are slow.
        while self.unasked() > 0
            && let Some(idle) = self.take_next()
        {
            self.check_begins(now);
            out.push(Action::Check(idle.server));
        }
        while self.unasked() > 0 && self.ask(now, out) {}
        self.seat.publish_want(self.unprovided() > 0);
        while self.unprovided() > 0 && self.try_open(self.waited(now), now) {
            out.push(Action::Open);
        }
        let wants = self.unprovided() > 0;
        self.seat.publish_want(wants);
        self.has_looked = wants;
        let lacks_outer = || self.seat.shared().lacks_outer(self.waited(now), now);
        if wants && now >= self.evict_after && lacks_outer() {
            self.evict_after = now.after(EVICT_PAUSE);
            out.push(Action::Evict);
        }
    }

    /// How long the head of our line has waited.
    fn waited(&self, now: Moment) -> Duration {
        self.waiters
            .head_since()
            .map_or(Duration::ZERO, |since| now.since(since))
    }

    /// Asks for a server that is idle elsewhere.
    fn ask(&mut self, now: Moment, out: &mut Vec<Action<S, W>>) -> bool {
        let asks = &mut self.asks;
        let Some(shard) = self.seat.idle_elsewhere(|shard| asks.spoken_for(shard)) else {
            return false;
        };
        asks.add(shard, now);
        out.push(Action::Ask(shard));
        if self.borrowed.is_habit(now) && self.try_open(Duration::ZERO, now) {
            self.spare += 1;
            out.push(Action::Open);
        }
        true
    }

    fn try_open(&mut self, waited: Duration, now: Moment) -> bool {
        self.begin_opening(|shared| shared.try_permit(waited, now))
    }

    fn begin_opening(&mut self, take_permit: impl FnOnce(&SharedPool) -> bool) -> bool {
        // Given back by itself if there is no permit.
        let Some(place) = Permit::take(&self.machine) else {
            return false;
        };
        let may_open = take_permit(self.seat.shared());
        if may_open {
            self.opening.push_back(place);
        }
        may_open
    }

    fn end_opening(&mut self) {
        let place = self.opening.pop_front();
        assert!(place.is_some(), "an opening ended that was not begun");
        self.spare = self.spare.min(self.opening.len());
        self.seat.shared().opening_ended();
    }

    /// Whether an attempt to open a server could probably begin.
    fn may_open(&self, now: Moment) -> bool {
        self.seat.shared().may_open(now) && self.machine.has_free()
    }

    /// A permit may be free: for our own line, else for the oldest elsewhere that wants it. Ours
    /// first is fair enough, since the server that it opens goes to whoever is overdue.
    ///
    /// A shard that is woken runs this too, so several permits find their takers one by one. That
    /// ends: each takes a permit or no longer wants one.
    fn pass_permit_on(&mut self, now: Moment, out: &mut Vec<Action<S, W>>) {
        self.seek(now, out);
        // The permit word first: on most paths it says no.
        if self.may_open(now)
            && let Some(shard) = self.seat.wanting_elsewhere()
        {
            out.push(Action::Wake(shard));
        }
    }

    /// Claims the oldest head elsewhere if ours would overtake it by more than the bound.
    fn claim_overdue(&mut self, now: Moment) -> Option<ShardId> {
        let ours = self.waiters.head_since()?;
        // Usually the last look, of whatever shard, still rules every head elsewhere out; looking means
        // reading a cache line of every shard that has waiters.
        while is_overdue(self.seat.shared().floor(), ours, now) {
            let heads = self.seat.heads_elsewhere();
            self.seat.shared().set_floor(heads.floor.min(ours).min(now));
            let oldest = heads
                .oldest
                .filter(|head| is_overdue(head.since(), ours, now))?;
            if self.seat.try_claim(oldest) {
                return Some(oldest.shard);
            }
        }
        None
    }

    fn take_next(&mut self) -> Option<Idle<S>> {
        let idle = match self.is_round_robin {
            true => self.idle.pop_front()?,
            false => self.idle.pop_back()?,
        };
        self.publish_idle();
        Some(idle)
    }

    fn publish_idle(&mut self) {
        let since = self.idle.front().map(|idle| idle.since);
        self.seat.publish_idle(self.idle.len(), since);
    }

    fn publish_line(&self) {
        let (count, newest) = (self.waiters.len(), self.waiters.newest());
        self.seat.publish_line(count, newest, &self.pace);
    }

    fn publish_head(&mut self) {
        let was_claimed = self.seat.publish_head(self.waiters.head_since());
        self.has_looked &= !was_claimed;
    }
}

/// How often this shard has had to ask for a server that is idle elsewhere.
#[derive(Debug, Default)]
struct Borrowed {
    count: u32,
    last: Moment,
}

impl Borrowed {
    /// One more at `now`. True if it was the last of so many that a server of its own is better, where
    /// a permit is free: else the few servers of a calm pool would travel with every transaction.
    fn is_habit(&mut self, now: Moment) -> bool {
        if now.since(self.last) > BORROWING_SPAN {
            self.count = 0;
        }
        self.last = now;
        self.count += 1;
        let is_habit = self.count >= BORROWS_MAX;
        if is_habit {
            self.count = 0;
        }
        is_habit
    }
}

/// Whether serving the waiter of `ours` now would be unfair to that of `theirs`.
fn is_overdue(theirs: Moment, ours: Moment, now: Moment) -> bool {
    let tolerance = (now.since(theirs) / UNFAIR_SHARE).max(UNFAIR_SPAN);
    theirs.after(tolerance) < ours
}

#[cfg(test)]
mod tests;
