//! Clients that go on at another shard, between two requests: with their socket, settings, names of
//! prepared statements, places under the limits, cancel key.
//!
//! The cancel key stays what the client was told, so it goes on naming the shard of its login, its
//! *origin*. That one keeps an entry saying where the client is now:
//! ```text
//!                departs           "resides" (newer)              "left"
//!   origin: (none) ──► At(shard) ──────────────────► At(another) ───────► (none)
//!                          └── comes back: Here(slot) ── departs: At(shard)
//!   others: arrives: Here(slot) ── departs or leaves: (none)
//! ```
//! A cancel request that follows an entry and finds nobody looks again a little later: the client is
//! between two shards, idle. The messages that keep the entries true are posted again until they fit into
//! the mailbox; a late one never makes an entry anew, so none stays behind.

use super::guest::{Guest, Settled, Stay, say_farewell};
use super::message::{Answer, Ask, Mail};
use super::obeying::is_killed;
use super::pools::{Counter, Pool};
use super::root::{Present, Shard};
use super::shared::Phase;
use crate::base::{ClientId, Clock, Moment, ShardId};
use crate::client::{ClientEntry, Farewell, Signal, Who};
use crate::net::Socket;
use crate::pool::Permit;
use crate::relay::{Ending, RelayParcel};
use crate::session::{CancelKey, PeerAddress};
use crate::wire::Replication;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How often a cancel request looks for a client on the move.
const LOOK: Duration = Duration::from_millis(10);
/// How often it looks before it gives up.
const LOOKS_MAX: usize = 100;

/// A client's places under the limits on clients.
type Seats = [Permit; 3];

/// A client between two shards: all there is of it.
pub struct Traveller {
    parcel: RelayParcel,
    id: ClientId,
    connected_unix_us: u64,
    requested_unix_us: u64,
    idle_since: Moment,
    application_name: Arc<str>,
    database: Arc<str>,
    user: Arc<str>,
    /// The user that its pool's servers are logged in as.
    pool_user: Arc<str>,
    cancel_key: CancelKey,
    seats: Seats,
    /// How often it has moved, this time included.
    moves: u32,
}

impl Traveller {
    /// Its cancel key.
    pub(super) fn key(&self) -> &CancelKey {
        &self.cancel_key
    }
}

/// Where a client is whose cancel key does not say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stray {
    /// In this slot here.
    Here(usize),
    /// On that shard, where it came with its so-manieth move.
    At(ShardId, u32),
}

/// The clients of a shard, or of its making, whose cancel keys do not say where they are.
#[derive(Default)]
pub(super) struct Strays(HashMap<Box<[u8]>, Stray>);

impl Strays {
    /// The slot of a client that has come here.
    pub(super) fn slot(&self, key: &[u8]) -> Option<usize> {
        match self.0.get(key) {
            Some(Stray::Here(slot)) => Some(*slot),
            _ => None,
        }
    }

    /// The shard that a client of this origin has gone to.
    pub(super) fn shard(&self, key: &[u8]) -> Option<ShardId> {
        match self.0.get(key) {
            Some(Stray::At(shard, _)) => Some(*shard),
            _ => None,
        }
    }

    /// Whether a key is that of somebody who has moved.
    pub(super) fn knows(&self, key: &[u8]) -> bool {
        self.0.contains_key(key)
    }

    fn arrives(&mut self, key: &[u8], slot: usize) {
        self.0.insert(key.into(), Stray::Here(slot));
    }

    fn departs(&mut self, key: &[u8], is_origin: bool, to: ShardId, moves: u32) {
        if is_origin {
            self.0.insert(key.into(), Stray::At(to, moves));
        } else {
            self.0.remove(key);
        }
    }

    fn resides(&mut self, key: &[u8], at: ShardId, moves: u32) {
        if let Some(stray) = self.0.get_mut(key)
            && matches!(*stray, Stray::At(_, before) if before < moves)
        {
            *stray = Stray::At(at, moves);
        }
    }

    fn leaves(&mut self, key: &[u8]) {
        self.0.remove(key);
    }
}

impl Guest {
    /// What to go on with after a relay has ended.
    ///
    /// # Errors
    /// How the client's connection has ended, unless it has moved to another shard.
    pub(super) async fn go_on_after(
        &self,
        mut settled: Box<Settled>,
        ending: Ending,
    ) -> Result<Box<Settled>, Option<Ending>> {
        match ending {
            Ending::Moving(to) => self.send_on(*settled, to).await.ok_or(None),
            Ending::Displaced => match self.change_pool(&mut settled) {
                Ok(()) => Ok(settled),
                Err(farewell) => Err(Some(settled.relay.send_away(farewell))),
            },
            ending => Err(Some(ending)),
        }
    }

    /// Sends a client on to another shard; gives it back if that cannot be.
    async fn send_on(&self, settled: Settled, to: ShardId) -> Option<Box<Settled>> {
        let Settled { relay, pool, seats } = settled;
        let back = |relay, seats, pool| Some(Box::new(Settled { relay, pool, seats }));
        let shard = &self.shard;
        self.entry.move_to.set(None);
        let target = shard.common.registry.shard(to);
        // Replication has a server of its own here from its login on.
        let may_go = || {
            let is_free = !self.entry.has_signal() && !shard.is_suspended();
            is_free && shard.phase.get() == Phase::Serving
        };
        let may_move = may_go()
            && !target.beat.is_stalled(Clock::now())
            && self.entry.replication.get() == Replication::None;
        let Some(who) = self.entry.who().filter(|_| may_move) else {
            return back(relay, seats, pool);
        };
        let parcel = match relay.pack().await {
            Ok(parcel) => parcel,
            Err(relay) => return back(relay, seats, pool),
        };
        // Somebody may have told it, or everybody, to leave meanwhile; no await from here to its departure.
        if !may_go() {
            return Some(self.unpack(parcel, seats, pool));
        }
        let moves = self.moves.get() + 1;
        let traveller = Box::new(Traveller {
            parcel,
            id: self.entry.id,
            connected_unix_us: self.entry.connected_unix_us,
            requested_unix_us: self.entry.requested_unix_us.get(),
            idle_since: self.entry.since.get(),
            application_name: self.entry.application_name.borrow().clone(),
            database: who.database.clone(),
            user: who.user.clone(),
            pool_user: pool.common.key.user.clone(),
            cancel_key: who.cancel_key.clone(),
            seats,
            moves,
        });
        if let Err(Mail::Traveller(refused)) = shard.post(to, Mail::Traveller(traveller)) {
            return Some(self.unpack(refused.parcel, refused.seats, pool));
        }
        shard.stats.moves_out.inc();
        let is_origin = who.cancel_key.shard() == Some(shard.id);
        let mut strays = shard.strays.borrow_mut();
        strays.departs(&who.cancel_key.name(), is_origin, to, moves);
        None
    }

    /// Goes on with a client that has been packed, in the pool that is its own by now.
    fn unpack(&self, parcel: RelayParcel, seats: Seats, pool: Rc<Pool>) -> Box<Settled> {
        let shard = &self.shard;
        let relay = parcel.unpack(
            shard.net,
            self.entry.clone(),
            Rc::new(Counter::new(pool.clone())),
            shard.stores.clone(),
            pool.stats.clone(),
        );
        let mut settled = Box::new(Settled { relay, pool, seats });
        if let Err(farewell) = self.change_pool(&mut settled) {
            self.entry.send(Signal::Leave(farewell));
        }
        settled
    }

    /// The pool of a client of `pool_user`'s pool as the configuration has it now. It may have become that of the user that
    /// the database names, whoever the client is; but to be its own user's, the client would have to prove itself anew.
    fn pool_of(&self, database: &str, user: &str, pool_user: &str) -> Result<Rc<Pool>, Farewell> {
        let Some(database) = self.shard.snapshot().config.database(database) else {
            return Err(Farewell::DATABASE_REMOVED);
        };
        let server_user = database.server_user(user);
        if database.user.is_none() && server_user != pool_user {
            return Err(Farewell::CONFIGURATION_CHANGED);
        }
        Ok(self.shard.pool(&database, server_user))
    }

    /// Takes a client to the pool that is its own now.
    ///
    /// # Errors
    /// Why it has to leave.
    fn change_pool(&self, settled: &mut Settled) -> Result<(), Farewell> {
        let Some(who) = self.entry.who() else {
            return Ok(());
        };
        let pool = self.pool_of(&who.database, &who.user, &settled.pool.common.key.user)?;
        settled.relay.change_pool(
            Rc::new(Counter::new(pool.clone())),
            pool.stats.clone(),
            pool.common.generation.clone(),
        );
        settled.pool = pool;
        Ok(())
    }

    /// Serves a client that has come from another shard.
    fn host(&self, traveller: Traveller) -> Stay {
        let pool = self.pool_of(&traveller.database, &traveller.user, &traveller.pool_user);
        let pool = match pool {
            Ok(pool) => pool,
            Err(farewell) => {
                let socket = traveller.parcel.into_socket();
                let ending = Ending::SentAway(farewell);
                say_farewell(&Socket::attach(self.shard.net, socket), &ending);
                return Stay::ended(ending);
            }
        };
        self.entry
            .application_name
            .replace(traveller.application_name);
        self.entry
            .requested_unix_us
            .set(traveller.requested_unix_us);
        let who = Who {
            database: traveller.database,
            user: traveller.user,
            cancel_key: traveller.cancel_key,
        };
        let stats = pool.stats.clone();
        self.entry.logged_in(who, stats, traveller.idle_since);
        if self.shard.is_suspended() {
            self.entry.suspend();
        }
        if is_killed(&self.entry, &self.shard.orders.borrow()) {
            // The order came while it was on its way.
            self.entry.send(Signal::Leave(Farewell::DATABASE_REMOVED));
        }
        Stay::Settled(self.unpack(traveller.parcel, traveller.seats, pool))
    }
}

/// Serves a client that has come from another shard, until it leaves this one. It is there at once, for
/// whoever asks next, before its task has its first turn.
pub(super) fn arrive(
    shard: Rc<Shard>,
    counted: Present,
    traveller: Box<Traveller>,
) -> impl Future<Output = ()> {
    let entry = ClientEntry::new(
        traveller.id,
        traveller.parcel.peer(),
        shard.local_end(traveller.parcel.local()),
        traveller.connected_unix_us,
        traveller.idle_since,
    );
    let guest = Guest::new(shard, counted, entry);
    guest.moves.set(traveller.moves);
    let key = Box::new(traveller.cancel_key.clone());
    guest.shard.client_came(&key, guest.slot(), traveller.moves);
    let settled = guest.settle(guest.host(*traveller));
    async move {
        let has_left = match settled {
            Some(settled) => guest.dwell(settled).await,
            None => true,
        };
        if has_left {
            guest.shard.client_left(&key);
        }
    }
}

impl Shard {
    /// Makes a client that has come findable by its cancel key.
    fn client_came(self: &Rc<Self>, key: &CancelKey, slot: usize, moves: u32) {
        self.expires_at.take();
        self.strays.borrow_mut().arrives(&key.name(), slot);
        // With the first move its origin has sent it here itself.
        if let Some(origin) = key.shard().filter(|origin| *origin != self.id && moves > 1) {
            let resides = Mail::Resides {
                key: key.name(),
                at: self.id,
                moves,
            };
            self.post_surely(origin, resides);
        }
    }

    /// A client that came from another shard has left for good.
    pub(super) fn client_left(self: &Rc<Self>, key: &CancelKey) {
        self.strays.borrow_mut().leaves(&key.name());
        if let Some(origin) = key.shard().filter(|origin| *origin != self.id) {
            let left = Mail::Left { key: key.name() };
            self.post_surely(origin, left);
        }
    }

    /// A client of this origin is at another shard now.
    pub(super) fn client_resides(&self, key: &[u8], at: ShardId, moves: u32) {
        self.strays.borrow_mut().resides(key, at, moves);
    }

    /// A client of this origin has left for good.
    pub(super) fn client_is_gone(&self, key: &[u8]) {
        self.strays.borrow_mut().leaves(key);
    }

    /// The client of this shard that has this cancel key.
    pub(super) fn client_with(&self, key: &[u8]) -> Option<Rc<ClientEntry>> {
        let located = CancelKey::locate(key).filter(|(shard, _)| *shard == self.id);
        let located = located.map(|(_, slot)| slot);
        let handle = PeerAddress::of(key).map(|address| address.handle);
        let named = handle.and_then(|handle| self.peered.borrow().get(&handle).copied());
        let strays = self.strays.borrow();
        let stray = CancelKey::names_of(key).map(|name| strays.slot(&name));
        let clients = self.clients.borrow();
        let slots = [located, named].into_iter().chain(stray).flatten();
        let mut entries = slots.filter_map(|slot| clients.get(slot));
        let owns_it =
            |entry: &&Rc<ClientEntry>| entry.who().is_some_and(|who| who.cancel_key.matches(key));
        entries.find(owns_it).cloned()
    }

    /// Cancels what a client of this origin does that has moved; looks again while nobody knows it, as it
    /// is on its way then. Whether there is such a client.
    pub(super) async fn cancel_stray(self: &Rc<Self>, key: &[u8]) -> bool {
        for _ in 0..LOOKS_MAX {
            if let Some(entry) = self.client_with(key) {
                self.cancel_client(&entry).await;
                return true;
            }
            let Some(to) = self.stray_at(key) else {
                return false;
            };
            if self.cancel_at_shard(key, to).await {
                return true;
            }
            self.net.sleep(LOOK).await;
        }
        false
    }

    fn stray_at(&self, key: &[u8]) -> Option<ShardId> {
        let strays = self.strays.borrow();
        let names = CancelKey::names_of(key);
        names.iter().find_map(|name| strays.shard(name))
    }

    /// False if the client is not there.
    async fn cancel_at_shard(self: &Rc<Self>, key: &[u8], to: ShardId) -> bool {
        let ask = Ask::CancelStray(key.into());
        let answers = self.gather(ask, std::iter::once(to), self.cancel_span());
        let found = |answer: &Answer| matches!(answer, Answer::Found(true));
        answers.await.iter().any(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"key";
    const HOME: ShardId = ShardId(0);
    const NEAR: ShardId = ShardId(1);
    const FAR: ShardId = ShardId(2);

    #[test]
    fn origin_follows_its_client_until_it_has_left() {
        let mut strays = Strays::default();
        strays.departs(KEY, true, NEAR, 1);
        assert_eq!(strays.shard(KEY), Some(NEAR));
        strays.resides(KEY, FAR, 2);
        assert_eq!((strays.shard(KEY), strays.slot(KEY)), (Some(FAR), None));
        strays.leaves(KEY);
        assert!(!strays.knows(KEY));
    }

    #[test]
    fn news_that_come_late_change_nothing() {
        let mut strays = Strays::default();
        strays.departs(KEY, true, NEAR, 1);
        strays.resides(KEY, FAR, 3);
        strays.resides(KEY, HOME, 2);
        assert_eq!(strays.shard(KEY), Some(FAR));
        strays.arrives(KEY, 7);
        strays.resides(KEY, NEAR, 3);
        assert_eq!((strays.slot(KEY), strays.shard(KEY)), (Some(7), None));
        strays.leaves(KEY);
        strays.resides(KEY, NEAR, 5);
        assert!(!strays.knows(KEY), "an entry that nobody would take down");
    }

    #[test]
    fn other_shards_know_a_client_only_while_it_is_there() {
        let mut strays = Strays::default();
        strays.arrives(KEY, 3);
        assert_eq!(strays.slot(KEY), Some(3));
        strays.departs(KEY, false, FAR, 2);
        assert!(!strays.knows(KEY));
    }
}
