//! What SHOW CLIENTS, cancel requests and maintenance see of a client, and how they reach it.

use super::farewell::Farewell;
use crate::base::{ClientId, Moment, ServerId, ShardId, Since};
use crate::config::CONSOLE;
use crate::net::{Endpoint, TlsLabel};
use crate::session::CancelKey;
use crate::stats::{Gauge, PoolStats};
use crate::wire::Replication;
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

/// What a client is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientState {
    /// Start-up and login.
    Login,
    /// Let in; waits for what a server has to say before it can be greeted.
    WaitingLogin,
    /// No request under way.
    Idle,
    /// Waits for a server.
    Waiting,
    /// Linked to a server.
    Active,
}

impl ClientState {
    /// The word in SHOW CLIENTS.
    pub const fn as_str(self) -> &'static str {
        match self {
            ClientState::Login => "login",
            ClientState::Idle => "idle",
            ClientState::WaitingLogin | ClientState::Waiting => "waiting",
            ClientState::Active => "active",
        }
    }
}

/// What somebody else wants of a client's task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Hear where it stands in line.
    Notice,
    /// Read nothing until [`ClientEntry::resume`].
    Suspend,
    /// Leave as soon as its server, which is to be closed, has nothing to do.
    Retire,
    /// Give up the request that waits for a server.
    Cancel,
    /// Leave.
    Leave(Farewell),
}

/// Whether a client is suspended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Suspension {
    /// No.
    #[default]
    None,
    /// It is to be.
    Wanted,
    /// It is: nothing is read, and everything has been sent.
    Quiet,
}

/// Who a client turned out to be; known once it has logged in.
pub struct Who {
    /// The database it asked for.
    pub database: Arc<str>,
    /// The user it logged in as.
    pub user: Arc<str>,
    /// Its cancel key.
    pub cancel_key: CancelKey,
}

impl Who {
    /// Whether it talks to the console, under whichever of its names.
    pub fn is_console(&self) -> bool {
        &*self.database == CONSOLE
    }
}

/// One client of this shard.
pub struct ClientEntry {
    /// Its id.
    pub id: ClientId,
    /// Where it is.
    pub remote: Endpoint,
    /// Our end, shared by those that have the same.
    pub local: Rc<Endpoint>,
    /// When it connected, in microseconds since the Unix epoch.
    pub connected_unix_us: u64,
    /// When its last request began, in microseconds since the Unix epoch.
    pub requested_unix_us: Cell<u64>,
    /// Since when it is in its state.
    pub since: Cell<Moment>,
    /// When the query under way began, if one is.
    pub query_since: Since,
    /// When the transaction under way began, if one is.
    pub transaction_since: Since,
    /// The shard it is to go on at, as soon as it is between two requests.
    pub move_to: Cell<Option<ShardId>>,
    /// Pieces of data passed on for it since somebody last asked: its share of the shard's load.
    pub work: Cell<u32>,
    /// Whether it has been told, while it waits, where it stands.
    pub is_noticed: Cell<bool>,
    /// Whether it is suspended.
    pub suspension: Cell<Suspension>,
    /// The replication it is there for.
    pub replication: Cell<Replication>,
    /// The server it is linked to.
    pub link: Cell<Option<ServerId>>,
    /// Its `application_name`.
    pub application_name: RefCell<Arc<str>>,
    /// Names of prepared statements it has.
    pub prepared: Cell<u32>,
    who: OnceCell<Who>,
    /// On the heap, as most clients of a machine full of idle ones have none.
    tls: OnceCell<Box<TlsLabel>>,
    /// Where its pool counts, once it has one.
    stats: Cell<Option<Arc<PoolStats>>>,
    state: Cell<ClientState>,
    signal: Cell<Option<Box<Signal>>>,
    waker: Cell<Option<Waker>>,
}

impl ClientEntry {
    /// A client that has just connected.
    pub fn new(
        id: ClientId,
        remote: Endpoint,
        local: Rc<Endpoint>,
        connected_unix_us: u64,
        now: Moment,
    ) -> ClientEntry {
        ClientEntry {
            id,
            remote,
            local,
            connected_unix_us,
            requested_unix_us: Cell::new(connected_unix_us),
            since: Cell::new(now),
            query_since: Since::default(),
            transaction_since: Since::default(),
            move_to: Cell::new(None),
            work: Cell::new(0),
            is_noticed: Cell::new(false),
            suspension: Cell::default(),
            replication: Cell::default(),
            link: Cell::new(None),
            application_name: RefCell::default(),
            prepared: Cell::new(0),
            who: OnceCell::new(),
            tls: OnceCell::new(),
            stats: Cell::new(None),
            state: Cell::new(ClientState::Login),
            signal: Cell::new(None),
            waker: Cell::new(None),
        }
    }

    /// Who it is, once it has logged in.
    pub fn who(&self) -> Option<&Who> {
        self.who.get()
    }

    /// How it is encrypted, if it is.
    pub fn tls(&self) -> Option<TlsLabel> {
        self.tls.get().map(|label| **label)
    }

    /// Its connection is encrypted like this from now on, if it is.
    pub fn note_tls(&self, label: Option<TlsLabel>) {
        if let Some(label) = label {
            let _ = self.tls.set(Box::new(label));
        }
    }

    /// The client has been let in; from now on its state counts in its pool. The time for its login goes on
    /// until [`ClientEntry::greeted`].
    pub fn waits_for_login(&self, who: Who, stats: Arc<PoolStats>) {
        let _ = self.who.set(who);
        self.state.set(ClientState::WaitingLogin);
        self.change_pool(stats);
    }

    /// It is greeted now.
    pub fn greeted(&self, now: Moment) {
        self.set_state(ClientState::Idle, now);
    }

    /// The client has logged in; from now on its state counts in its pool.
    pub fn logged_in(&self, who: Who, stats: Arc<PoolStats>, now: Moment) {
        let _ = self.who.set(who);
        self.state.set(ClientState::Idle);
        self.since.set(now);
        self.change_pool(stats);
    }

    /// Its state counts in another pool from now on.
    pub fn change_pool(&self, stats: Arc<PoolStats>) {
        self.count(|gauge| gauge.sub(1));
        self.stats.replace(Some(stats));
        self.count(|gauge| gauge.add(1));
    }

    /// Whether it waits for a server of the pool that counts there.
    pub fn waits_in(&self, pool: &Arc<PoolStats>) -> bool {
        let is_there = peek(&self.stats, |stats| {
            stats.is_some_and(|stats| Arc::ptr_eq(stats, pool))
        });
        is_there
            && matches!(
                self.state.get(),
                ClientState::WaitingLogin | ClientState::Waiting
            )
    }

    /// What it is doing.
    pub fn state(&self) -> ClientState {
        self.state.get()
    }

    /// Moves it to another state, and to that state's column in SHOW POOLS.
    pub fn set_state(&self, state: ClientState, now: Moment) {
        self.count(|gauge| gauge.sub(1));
        self.state.set(state);
        self.since.set(now);
        self.is_noticed.set(false);
        self.count(|gauge| gauge.add(1));
    }

    /// Tells the client's task something; a request to leave is not overwritten, nor is one to give up
    /// by a lesser one.
    pub fn send(&self, signal: Signal) {
        let pending = self.signal.take();
        let is_heavier = match pending.as_deref() {
            Some(Signal::Leave(_)) => false,
            Some(Signal::Cancel) => matches!(signal, Signal::Cancel | Signal::Leave(_)),
            Some(Signal::Suspend) => matches!(signal, Signal::Cancel | Signal::Leave(_)),
            Some(Signal::Retire) => signal != Signal::Notice,
            Some(Signal::Notice) | None => true,
        };
        self.signal.set(match is_heavier {
            true => Some(Box::new(signal)),
            false => pending,
        });
        self.wake();
    }

    /// Asks the client to go on at another shard once it is between two requests; one that has a server of its own
    /// stays with it.
    pub fn invite(&self, to: ShardId) {
        if self.replication.get() != Replication::None {
            return;
        }
        self.move_to.set(Some(to));
        self.wake();
    }

    /// Whether a signal waits for the client's task.
    pub fn has_signal(&self) -> bool {
        peek(&self.signal, |signal| signal.is_some())
    }

    /// Has the client suspended, if it is not yet; may be called again and again.
    pub fn suspend(&self) {
        if self.suspension.get() != Suspension::Quiet {
            self.suspension.set(Suspension::Wanted);
            self.send(Signal::Suspend);
        }
    }

    /// Ends a suspension.
    pub fn resume(&self) {
        self.suspension.set(Suspension::None);
        self.wake();
    }

    /// The signal that has come, if one has; else `cx` is woken when one comes.
    pub fn poll_signal(&self, cx: &Context<'_>) -> Option<Signal> {
        let signal = self.signal.take().map(|signal| *signal);
        if signal.is_none() {
            let known = self.waker.take();
            let known = known.filter(|waker| waker.will_wake(cx.waker()));
            self.waker
                .set(Some(known.unwrap_or_else(|| cx.waker().clone())));
        }
        signal
    }

    /// Has its task look again.
    fn wake(&self) {
        peek(&self.waker, |waker| waker.map_or((), Waker::wake_by_ref));
    }

    /// Changes the count of its state in its pool; `cl_active` has both linked and idle clients, as in PgBouncer.
    fn count(&self, change: impl FnOnce(&Gauge)) {
        peek(&self.stats, |stats| {
            let Some(stats) = stats else { return };
            match self.state.get() {
                ClientState::Login => {}
                ClientState::Idle | ClientState::Active => change(&stats.cl_active),
                ClientState::WaitingLogin | ClientState::Waiting => change(&stats.cl_waiting),
            }
        });
    }
}

/// Looks at what a cell has: as [`std::cell::RefCell::borrow`], without a flag in every client.
fn peek<T, R>(cell: &Cell<Option<T>>, look: impl FnOnce(Option<&T>) -> R) -> R {
    let value = cell.take();
    let seen = look(value.as_ref());
    cell.set(value);
    seen
}

impl Drop for ClientEntry {
    fn drop(&mut self) {
        self.count(|gauge| gauge.sub(1));
    }
}
