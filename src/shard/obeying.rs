//! Giving orders and acting by them; see `orders` for how they spread.

use super::message::{Answer, Ask, Mail};
use super::orders::{Circumstances, Orders, check};
use super::pools::Pool;
use super::root::Shard;
use super::shared::{Common, Phase};
use crate::admin::{Hold, Order, Refusal};
use crate::base::ShardId;
use crate::client::{ClientEntry, Farewell, Signal, Suspension};
use crate::net::Net;
use crate::stats::{Counter, ShardStats};
use std::rc::{Rc, Weak};
use std::time::Duration;

/// How soon somebody who waits for shards, clients or servers looks again; twice as long each time, up to
/// [`LOOK_MAX`].
const LOOK_FIRST: Duration = Duration::from_millis(1);
/// See [`LOOK_FIRST`].
const LOOK_MAX: Duration = Duration::from_millis(50);
/// An opening that is under way when its pool is paused is given up after one to two of these: one that
/// is not stuck has ended by then, and been closed in good order.
const OPENING_LOOK: Duration = Duration::from_millis(250);
/// How long a client that is told to leave is waited for.
const LEAVING_SPAN: Duration = Duration::from_secs(5);
/// How long a client is looked for while others move.
const SEARCH_SPAN: Duration = Duration::from_secs(1);
/// How long shards may take to count, those that wait for a client to leave included, until they are asked again.
const COUNT_SPAN: Duration = Duration::from_secs(10);

/// Looks again and again, less and less often.
struct Looks(Duration);

impl Looks {
    fn new() -> Looks {
        Looks(LOOK_FIRST)
    }

    async fn next(&mut self, net: Net) {
        net.sleep(self.0).await;
        self.0 = (self.0 * 2).min(LOOK_MAX);
    }
}

impl Common {
    /// Gives an order, in this phase of a shutdown; every shard has to be told of it.
    ///
    /// # Errors
    /// Why it cannot be given now.
    pub fn give(&self, order: &Order, phase: Phase) -> Result<u64, Refusal> {
        let version = self.with_circumstances(phase, |now| self.board.give(order, now))?;
        tracing::info!(
            command = order.verb(),
            database = order.database(),
            "command issued"
        );
        Ok(version)
    }

    fn with_circumstances<R>(&self, phase: Phase, look: impl FnOnce(&Circumstances<'_>) -> R) -> R {
        let config = self.snapshot.load().config.clone();
        look(&Circumstances {
            phase,
            exists: &|name| config.database(name).is_some(),
            next_id: self.next_id(),
        })
    }
}

impl Shard {
    /// Gives an order and waits until it has been carried out on every shard: for PAUSE and KILL, until
    /// PostgreSQL has no connection of theirs left.
    pub(super) async fn command(self: &Rc<Self>, order: &Order) -> Result<(), Refusal> {
        let version = self.common.give(order, self.phase.get())?;
        self.carry_out(order, version).await
    }

    /// Waits until an order that has been given, and made this `version`, has been carried out on every shard.
    pub(super) async fn carry_out(
        self: &Rc<Self>,
        order: &Order,
        version: u64,
    ) -> Result<(), Refusal> {
        self.spread(version).await;
        match order {
            Order::Pause(scope) => self.paused(scope.as_deref()).await,
            Order::Suspend => self.suspended().await,
            Order::Kill(scope) => {
                self.emptied(scope.as_deref()).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Tells every shard that there are newer orders, and waits until all act by `version`.
    async fn spread(self: &Rc<Self>, version: u64) {
        self.obey();
        let mut untold: Vec<ShardId> = self.all_shards().filter(|to| *to != self.id).collect();
        let mut looks = Looks::new();
        while !self.common.board.obeyed.are_all_at(version) {
            untold.retain(|to| self.post(*to, Mail::Orders).is_err());
            looks.next(self.net).await;
        }
    }

    /// Waits until the paused pools have no server any more.
    async fn paused(&self, scope: Option<&str>) -> Result<(), Refusal> {
        let mut looks = Looks::new();
        while self.servers_of(scope) > 0 {
            if !self.common.board.newest().is_paused(scope) {
                return Err(Refusal::WaitEnded);
            }
            looks.next(self.net).await;
        }
        Ok(())
    }

    /// Waits until every client is suspended; who is not in time has to leave.
    async fn suspended(self: &Rc<Self>) -> Result<(), Refusal> {
        let timeout = self.snapshot().config.general.suspend_timeout;
        let deadline = self.net.now().deadline(timeout);
        let mut looks = Looks::new();
        loop {
            if self.hold() != Hold::Suspended {
                return Err(Refusal::WaitEnded);
            }
            let is_overdue = self.net.now() > deadline;
            if self.count(Ask::Unsuspended(is_overdue)).await == 0 {
                return Ok(());
            }
            looks.next(self.net).await;
        }
    }

    /// Clients of this shard that are not suspended yet.
    pub(super) fn unsuspended_here(&self, is_overdue: bool) -> usize {
        let clients = self.clients.borrow();
        let busy = clients
            .iter()
            .filter(|(_, entry)| is_relayed(entry) && entry.suspension.get() != Suspension::Quiet);
        let mut count = 0;
        for (_, entry) in busy {
            count += 1;
            if is_overdue {
                entry.send(Signal::Leave(Farewell::SUSPEND_TIMEOUT));
            }
        }
        count
    }

    /// Suspends the clients of this shard, or ends that, as ordered.
    pub(super) fn suspend_or_resume(&self) {
        let is_suspended = self.is_suspended();
        for (_, entry) in self.clients.borrow().iter() {
            match (is_suspended && is_relayed(entry), entry.suspension.get()) {
                (true, _) => entry.suspend(),
                (false, Suspension::None) => {}
                (false, _) => entry.resume(),
            }
        }
    }

    /// Whether this shard has been told to suspend its clients.
    pub(super) fn is_suspended(&self) -> bool {
        self.orders.borrow().hold() == Hold::Suspended
    }

    /// Waits for the end of a suspension.
    pub(super) async fn unsuspended(&self) {
        while self.is_suspended() {
            self.net.sleep(LOOK_MAX).await;
        }
    }

    /// Waits until the killed clients and servers are gone, unless somebody resumes what was killed.
    async fn emptied(self: &Rc<Self>, scope: Option<&str>) {
        let mut looks = Looks::new();
        while self.common.board.newest().is_paused(scope)
            && (self.servers_of(scope) > 0 || self.count(Ask::Killed).await > 0)
        {
            looks.next(self.net).await;
        }
    }

    /// Servers open, being opened or being closed, of a database or of all.
    fn servers_of(&self, scope: Option<&str>) -> u32 {
        let pools = self.common.pools();
        let theirs = pools
            .iter()
            .filter(|pool| scope.is_none_or(|name| *pool.key.database == *name));
        theirs.map(|pool| pool.shared.open()).sum()
    }

    /// The sum of what all shards count; a shard that does not answer is asked until it does.
    async fn count(self: &Rc<Self>, ask: Ask) -> usize {
        let answers = loop {
            let answers = self.gather(ask.clone(), self.all_shards(), COUNT_SPAN);
            let answers = answers.await;
            if answers.len() == self.common.mesh.shards() {
                break answers;
            }
        };
        let counts = answers.into_iter().map(|answer| match answer {
            Answer::Count(count) => count,
            _ => 0,
        });
        counts.sum()
    }

    /// Waits until no server of a database, or of any, is to be closed any more.
    pub(super) async fn closed(self: &Rc<Self>, scope: Option<&str>) -> Result<(), Refusal> {
        let phase = self.phase.get();
        let check = |now: &Circumstances<'_>| check(scope, "wait in", now);
        self.common.with_circumstances(phase, check)?;
        // Behind the newest orders in every mailbox: a server that was on its way has been received.
        self.spread(self.common.board.newest().version()).await;
        let ask = Ask::ToBeClosed(scope.map(Into::into));
        let mut looks = Looks::new();
        while self.count(ask.clone()).await > 0 {
            looks.next(self.net).await;
        }
        Ok(())
    }

    /// Makes a client leave, on whichever shard it is.
    pub(super) async fn kill_client(self: &Rc<Self>, id: u64) -> Result<(), Refusal> {
        tracing::info!(id, "KILL_CLIENT command issued");
        let give_up = self.net.now().after(SEARCH_SPAN);
        let mut looks = Looks::new();
        loop {
            let moved_in = self.moves(|stats| &stats.moves_in);
            if self.count(Ask::KillClient(id)).await > 0 {
                return Ok(());
            }
            // Who was on its way may have been asked for where it was not any more, or not yet.
            let has_moved = self.moves(|stats| &stats.moves_out) != moved_in;
            if !has_moved || self.net.now() > give_up {
                return Err(Refusal::NoSuchClient);
            }
            looks.next(self.net).await;
        }
    }

    /// The sum of a counter over all shards. Departures are counted before a shard says who is there, arrivals after:
    /// arrivals before a question that equal the departures after it mean that nobody moved meanwhile.
    fn moves(&self, counter: impl Fn(&ShardStats) -> &Counter) -> u64 {
        let registry = &self.common.registry;
        let shards = registry.shards().iter();
        shards.map(|shard| counter(shard).load()).sum()
    }

    /// Makes a client of this shard leave and waits until it has; how many there were.
    pub(super) async fn kill_client_here(self: &Rc<Self>, id: u64) -> usize {
        let Some(entry) = self.client_by_id(id) else {
            return 0;
        };
        entry.send(Signal::Leave(Farewell::ADMIN_DISCONNECT));
        let gone = Rc::downgrade(&entry);
        drop(entry);
        let deadline = self.net.now().after(LEAVING_SPAN);
        let mut looks = Looks::new();
        while gone.strong_count() > 0 && self.net.now() < deadline {
            looks.next(self.net).await;
        }
        1
    }

    /// By its id, or by as much of it as the `id` column of SHOW CLIENTS has.
    fn client_by_id(&self, id: u64) -> Option<Rc<ClientEntry>> {
        let clients = self.clients.borrow();
        let is_it = |entry: &&Rc<ClientEntry>| entry.id.0 == id || entry.id.0 & 0x7fff_ffff == id;
        clients.iter().map(|(_, entry)| entry).find(is_it).cloned()
    }

    /// Clients of this shard that have been killed and are still here.
    pub(super) fn killed_here(&self) -> usize {
        let orders = self.orders.borrow();
        let clients = self.clients.borrow();
        let killed = clients
            .iter()
            .filter(|(_, entry)| is_killed(entry, &orders));
        killed.count()
    }

    /// Servers of this shard that will be closed once they are free.
    pub(super) fn to_be_closed_here(&self, scope: Option<&str>) -> usize {
        let mut count = 0;
        self.each_pool(|pool| {
            if scope.is_none_or(|name| *pool.common.key.database == *name) {
                let entries = pool.entries.borrow();
                let living = entries.iter().filter_map(Weak::upgrade);
                count += living
                    .filter(|entry| entry.close_needed.get().is_some())
                    .count();
            }
        });
        count
    }

    /// Acts by the newest orders, if they are new to this shard.
    pub(super) fn obey(self: &Rc<Self>) {
        let newest = self.common.board.newest();
        if newest.version() == self.orders.borrow().version() {
            return;
        }
        let before = self.orders.replace(newest.clone());
        self.each_pool(|pool| pool.obey(&newest));
        if newest.kills() > before.kills() {
            self.dismiss_killed(&newest);
        }
        if newest.hold() != before.hold() {
            self.suspend_or_resume();
        }
        self.common.board.obeyed.note(self.id, newest.version());
    }

    fn dismiss_killed(&self, orders: &Orders) {
        let clients = self.clients.borrow();
        for (_, entry) in clients.iter().filter(|(_, entry)| is_killed(entry, orders)) {
            entry.send(Signal::Leave(Farewell::DATABASE_REMOVED));
        }
    }

    /// What holds for the whole process.
    pub(super) fn hold(&self) -> Hold {
        self.common.board.newest().hold()
    }
}

/// Whether a client came before its database was killed.
pub(super) fn is_killed(entry: &ClientEntry, orders: &Orders) -> bool {
    let Some(who) = entry.who() else { return false };
    let is_console = who.is_console();
    !is_console && entry.id.0 < orders.of(&who.database).killed_below
}

/// Whether a client has logged in, and not to the console.
fn is_relayed(entry: &ClientEntry) -> bool {
    let who = entry.who();
    who.is_some_and(|who| !who.is_console())
}

impl Pool {
    /// Acts by `orders`.
    pub(super) fn obey(self: &Rc<Self>, orders: &Orders) {
        let now = orders.of(&self.common.key.database);
        let before = self.standing.replace(now);
        if now.killed_below > before.killed_below {
            self.fail_waiters(&Farewell::DATABASE_REMOVED);
        }
        if now.stale_below > before.stale_below {
            self.common.welcome.store(None);
            self.retire_below(now.stale_below, "database configuration changed");
        }
        self.set_paused();
    }

    /// Pauses or resumes the scheduler as the standing of the pool says.
    pub(super) fn set_paused(self: &Rc<Self>) {
        let is_to_pause = self.standing.get().is_paused;
        if is_to_pause == self.local.borrow().is_paused() {
            return;
        }
        if is_to_pause {
            self.step(|local, _, actions| local.pause(actions));
        } else {
            self.step(|local, now, actions| local.resume(now, actions));
            self.shard.tick_pools();
        }
    }

    /// Resolves when an opening that goes on has to be given up because of a pause.
    pub(super) async fn out_of_patience(&self) {
        let is_paused = || self.local.borrow().is_paused();
        let mut was_paused = false;
        while !(was_paused && is_paused()) {
            was_paused = is_paused();
            self.shard.net.sleep(OPENING_LOOK).await;
        }
    }
}
