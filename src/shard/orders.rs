//! What the console and signals have ordered for the whole process: pauses, disabled databases, and
//! which connections are too old to go on.
//!
//! An order changes this record under one lock, so that of two orders given at once on different shards
//! one is the later. Shards are not told orders but that there is a newer record; each acts by the
//! newest and notes its version in [`Board`]. Who gave an order waits for the notes of all. A message
//! that gets lost costs time until the next upkeep, never an order.
//!
//! "Too old" goes by the ids of clients and servers, which come from one counter: those below the
//! counter's value at the time of the order are meant, wherever they are, servers on their way between
//! shards and servers that are being opened included.

use super::shared::Phase;
use crate::admin::{Hold, Order, Refusal};
use crate::base::ShardId;
use crate::config::CONSOLE;
use crossbeam::utils::CachePadded;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What holds for one database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// No client gets a server.
    pub is_paused: bool,
    /// Nobody may log in.
    pub is_disabled: bool,
    /// Clients with lower ids are to leave.
    pub killed_below: u64,
    /// Servers with lower ids are to close once nobody uses them.
    pub stale_below: u64,
}

/// All orders that still hold.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    version: u64,
    kills: u64,
    hold: Hold,
    /// The version that the latest SUSPEND made.
    suspended_by: u64,
    /// Since a KILL of all databases: those resumed by name. All others are paused.
    killed_all: Option<BTreeSet<Arc<str>>>,
    /// Holds for every database; its `is_paused` and `is_disabled` are never set.
    everywhere: Standing,
    databases: BTreeMap<Arc<str>, Standing>,
}

/// What an order is checked against.
pub struct Circumstances<'a> {
    /// How far a shutdown is.
    pub phase: Phase,
    /// Whether there is such a database.
    pub exists: &'a dyn Fn(&str) -> bool,
    /// The next id of a client or server.
    pub next_id: u64,
}

impl Orders {
    /// Grows with every order.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many of them were KILL.
    pub fn kills(&self) -> u64 {
        self.kills
    }

    /// What holds for the whole process.
    pub fn hold(&self) -> Hold {
        self.hold
    }

    /// Whether everything is suspended by the order that made `version`.
    pub fn is_suspended_by(&self, version: u64) -> bool {
        self.hold == Hold::Suspended && self.suspended_by == version
    }

    /// What was ordered for `database` alone.
    pub fn own(&self, database: &str) -> Standing {
        let own = self.databases.get(database).copied().unwrap_or_default();
        let resumed = self.killed_all.as_ref();
        let is_killed = resumed.is_some_and(|resumed| !resumed.contains(database));
        Standing {
            is_paused: own.is_paused || is_killed,
            ..own
        }
    }

    /// What holds for `database`.
    pub fn of(&self, database: &str) -> Standing {
        let own = self.own(database);
        Standing {
            is_paused: own.is_paused || self.hold == Hold::Paused,
            killed_below: own.killed_below.max(self.everywhere.killed_below),
            stale_below: own.stale_below.max(self.everywhere.stale_below),
            ..own
        }
    }

    /// What holds for `database`, or for all of them.
    pub fn is_paused(&self, database: Option<&str>) -> bool {
        let all_killed = || self.killed_all.as_ref().is_some_and(BTreeSet::is_empty);
        database.map_or_else(
            || self.hold == Hold::Paused || all_killed(),
            |name| self.of(name).is_paused,
        )
    }

    /// Gives an order.
    ///
    /// # Errors
    /// Why it cannot be given now; nothing has changed then.
    pub fn give(&mut self, order: &Order, now: &Circumstances<'_>) -> Result<(), Refusal> {
        match order {
            Order::Pause(scope) => self.pause(scope.as_deref(), now)?,
            Order::Kill(scope) => self.kill(scope.as_deref(), now)?,
            Order::Suspend => self.suspend()?,
            Order::Resume(None) => self.resume(now)?,
            Order::Resume(Some(name)) => self.resume_one(name, now)?,
            Order::Reconnect(scope) => {
                check(scope.as_deref(), "reconnect", now)?;
                self.standing(scope.as_deref()).stale_below = now.next_id;
            }
            Order::Disable(name) | Order::Enable(name) => {
                let is_disabled = matches!(order, Order::Disable(_));
                let verb = if is_disabled { "disable" } else { "enable" };
                check(Some(name), verb, now)?;
                self.standing(Some(name)).is_disabled = is_disabled;
            }
        }
        self.version += 1;
        Ok(())
    }

    fn pause(&mut self, scope: Option<&str>, now: &Circumstances<'_>) -> Result<(), Refusal> {
        if self.hold != Hold::None {
            return Err(Refusal::AlreadyPaused);
        }
        check(scope, "pause", now)?;
        match scope {
            None => self.hold = Hold::Paused,
            Some(_) => self.standing(scope).is_paused = true,
        }
        Ok(())
    }

    fn suspend(&mut self) -> Result<(), Refusal> {
        if self.hold != Hold::None {
            return Err(Refusal::AlreadyPaused);
        }
        if self.killed_all.is_some() || self.databases.values().any(|one| one.is_paused) {
            return Err(Refusal::PausedDatabases);
        }
        self.hold = Hold::Suspended;
        self.suspended_by = self.version + 1;
        Ok(())
    }

    fn kill(&mut self, scope: Option<&str>, now: &Circumstances<'_>) -> Result<(), Refusal> {
        if self.hold != Hold::None {
            return Err(Refusal::AlreadyPaused);
        }
        check(scope, "kill", now)?;
        match scope {
            None => self.killed_all = Some(BTreeSet::new()),
            Some(_) => self.standing(scope).is_paused = true,
        }
        self.kills += 1;
        let standing = self.standing(scope);
        standing.killed_below = now.next_id;
        standing.stale_below = now.next_id;
        Ok(())
    }

    fn resume(&mut self, now: &Circumstances<'_>) -> Result<(), Refusal> {
        if now.phase == Phase::WaitForServers {
            return Err(Refusal::ShuttingDown);
        }
        if self.hold == Hold::None && self.killed_all.is_none() {
            return Err(match now.phase {
                Phase::Serving => Refusal::NotPaused,
                _ => Refusal::ShuttingDown,
            });
        }
        self.hold = Hold::None;
        self.killed_all = None;
        Ok(())
    }

    fn resume_one(&mut self, name: &str, now: &Circumstances<'_>) -> Result<(), Refusal> {
        if name != CONSOLE {
            check(Some(name), "resume", now)?;
        }
        if name == CONSOLE || !self.own(name).is_paused {
            let name = name.to_owned();
            return Err(Refusal::DatabaseNotPaused { name });
        }
        self.standing(Some(name)).is_paused = false;
        if let Some(resumed) = &mut self.killed_all {
            resumed.insert(name.into());
        }
        Ok(())
    }

    fn standing(&mut self, scope: Option<&str>) -> &mut Standing {
        match scope {
            None => &mut self.everywhere,
            Some(name) => self.databases.entry(name.into()).or_default(),
        }
    }
}

/// Whether an order can be given for a database.
pub(super) fn check(
    scope: Option<&str>,
    verb: &'static str,
    now: &Circumstances<'_>,
) -> Result<(), Refusal> {
    let Some(name) = scope else { return Ok(()) };
    let name_owned = || name.to_owned();
    if name == CONSOLE {
        let name = name_owned();
        Err(Refusal::AdminDatabase { verb, name })
    } else if (now.exists)(name) {
        Ok(())
    } else {
        Err(Refusal::NoSuchDatabase { name: name_owned() })
    }
}

/// The version of something that each shard acts by.
pub struct Notes(Box<[CachePadded<AtomicU64>]>);

impl Notes {
    /// Version 0 everywhere, on so many shards.
    pub fn new(shards: usize) -> Notes {
        Notes((0..shards).map(|_| CachePadded::default()).collect())
    }

    /// `shard` acts by `version` now.
    pub fn note(&self, shard: ShardId, version: u64) {
        if let Some(noted) = self.0.get(shard.index()) {
            // Release: whoever reads the note sees what was done for it.
            noted.store(version, Ordering::Release);
        }
    }

    /// Whether every shard acts by `version` or a newer one.
    pub fn are_all_at(&self, version: u64) -> bool {
        let mut noted = self.0.iter();
        noted.all(|noted| noted.load(Ordering::Acquire) >= version)
    }
}

/// Where the orders hang out, and who has read them.
pub struct Board {
    newest: Mutex<Arc<Orders>>,
    /// Which orders each shard acts by.
    pub obeyed: Notes,
}

impl Board {
    /// No orders, for so many shards.
    pub fn new(shards: usize) -> Board {
        Board {
            newest: Mutex::default(),
            obeyed: Notes::new(shards),
        }
    }

    /// The orders that hold now.
    pub fn newest(&self) -> Arc<Orders> {
        let newest = self.newest.lock();
        newest.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets what was ordered for databases that are gone; shards find out in their own time.
    pub fn forget(&self, exists: impl Fn(&str) -> bool) {
        let newest = self.newest.lock();
        let mut newest = newest.unwrap_or_else(PoisonError::into_inner);
        if newest.databases.keys().all(|name| exists(name)) {
            return;
        }
        let mut orders = Orders::clone(&newest);
        orders.databases.retain(|name, _| exists(name));
        orders.version += 1;
        *newest = Arc::new(orders);
    }

    /// Gives an order; every shard has to be told of it.
    ///
    /// # Errors
    /// Why it cannot be given now.
    pub fn give(&self, order: &Order, now: &Circumstances<'_>) -> Result<u64, Refusal> {
        let newest = self.newest.lock();
        let mut newest = newest.unwrap_or_else(PoisonError::into_inner);
        let mut orders = Orders::clone(&newest);
        orders.give(order, now)?;
        *newest = Arc::new(orders);
        Ok(newest.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(phase: Phase, next_id: u64) -> Circumstances<'static> {
        Circumstances {
            phase,
            exists: &|name| name == "a" || name == "b",
            next_id,
        }
    }

    /// Gives orders one after the other; the last one's verdict.
    fn given(orders: &mut Orders, order: Order) -> Result<(), String> {
        let now = at(Phase::Serving, 7);
        let before = orders.version();
        let given = orders.give(&order, &now);
        assert_eq!(orders.version() > before, given.is_ok());
        given.map_err(|refusal| refusal.to_string())
    }

    fn a() -> Arc<str> {
        "a".into()
    }

    #[test]
    fn pauses_follow_pgbouncers_table() {
        let table: &[(Order, Result<(), &str>)] = &[
            (Order::Resume(None), Err("pooler is not paused/suspended")),
            (Order::Resume(Some(a())), Err("database a is not paused")),
            (Order::Pause(Some(a())), Ok(())),
            (Order::Pause(Some(a())), Ok(())),
            (Order::Resume(None), Err("pooler is not paused/suspended")),
            (Order::Resume(Some(a())), Ok(())),
            (Order::Pause(None), Ok(())),
            (Order::Pause(None), Err("already suspended/paused")),
            (Order::Pause(Some(a())), Err("already suspended/paused")),
            (Order::Kill(Some(a())), Err("already suspended/paused")),
            (Order::Resume(Some(a())), Err("database a is not paused")),
            (Order::Suspend, Err("already suspended/paused")),
            (Order::Resume(None), Ok(())),
            (Order::Suspend, Ok(())),
            (Order::Suspend, Err("already suspended/paused")),
            (Order::Pause(None), Err("already suspended/paused")),
            (Order::Resume(None), Ok(())),
            (Order::Pause(Some(a())), Ok(())),
            (Order::Suspend, Err("cannot suspend with paused databases")),
            (Order::Resume(Some(a())), Ok(())),
            (Order::Pause(Some("c".into())), Err("no such database: c")),
            (Order::Resume(Some("c".into())), Err("no such database: c")),
            (
                Order::Resume(Some("pgbouncer".into())),
                Err("database pgbouncer is not paused"),
            ),
            (
                Order::Enable("pgbouncer".into()),
                Err("cannot enable admin db: pgbouncer"),
            ),
            (
                Order::Kill(Some("pgbouncer".into())),
                Err("cannot kill admin db: pgbouncer"),
            ),
        ];
        let mut orders = Orders::default();
        for (order, verdict) in table {
            let verdict = verdict.map_err(str::to_owned);
            assert_eq!(given(&mut orders, order.clone()), verdict, "{order:?}");
        }
    }

    #[test]
    fn kill_pauses_and_marks_what_is_there() {
        let mut orders = Orders::default();
        given(&mut orders, Order::Kill(Some(a()))).unwrap();
        let standing = orders.of("a");
        assert!(standing.is_paused && !orders.of("b").is_paused);
        assert_eq!((standing.killed_below, standing.stale_below), (7, 7));
        given(&mut orders, Order::Resume(Some(a()))).unwrap();
        given(&mut orders, Order::Reconnect(None)).unwrap();
        let standing = orders.of("b");
        assert_eq!((standing.killed_below, standing.stale_below), (0, 7));
        assert!(!orders.of("a").is_paused);
    }

    #[test]
    fn kill_of_all_is_resumed_by_name_or_at_once() {
        let mut orders = Orders::default();
        given(&mut orders, Order::Kill(None)).unwrap();
        assert!(orders.is_paused(None) && orders.of("a").is_paused);
        assert_eq!(orders.hold(), Hold::None);
        given(&mut orders, Order::Resume(Some(a()))).unwrap();
        assert!(!orders.of("a").is_paused && orders.of("b").is_paused);
        assert!(!orders.is_paused(None), "not all of them");
        assert!(given(&mut orders, Order::Resume(Some(a()))).is_err());
        given(&mut orders, Order::Kill(None)).unwrap();
        assert!(orders.of("a").is_paused);
        given(&mut orders, Order::Resume(None)).unwrap();
        assert!(!orders.of("b").is_paused);
        assert!(given(&mut orders, Order::Resume(None)).is_err());
    }

    #[test]
    fn pause_ends_during_a_shutdown_only_while_clients_are_waited_for() {
        for (phase, verdict) in [
            (Phase::WaitForClients, Ok(false)),
            (Phase::WaitForServers, Err(Refusal::ShuttingDown)),
        ] {
            let mut orders = Orders::default();
            given(&mut orders, Order::Pause(None)).unwrap();
            let given = orders.give(&Order::Resume(None), &at(phase, 1));
            assert_eq!(given.map(|_| orders.is_paused(None)), verdict);
            let again = Orders::default().give(&Order::Resume(None), &at(phase, 1));
            assert_eq!(again.map(|_| ()), Err(Refusal::ShuttingDown));
        }
    }

    #[test]
    fn an_order_is_obeyed_once_every_shard_has_noted_it() {
        let board = Board::new(2);
        let now = at(Phase::Serving, 1);
        let version = board.give(&Order::Disable(a()), &now).unwrap();
        board.obeyed.note(ShardId(0), version);
        assert!(!board.obeyed.are_all_at(version));
        board.obeyed.note(ShardId(1), version + 1);
        assert!(board.obeyed.are_all_at(version));
        assert!(board.newest().of("a").is_disabled);
    }
}
