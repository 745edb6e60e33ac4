//! What SHOW SERVERS, cancel requests and maintenance see of a server connection, whoever holds it.

use super::conn::ApplicationName;
use crate::base::{ClientId, Moment, ServerId};
use crate::config::Database;
use crate::net::{Connector, Endpoint, TlsLabel};
use crate::stats::PoolStats;
use crate::wire::Replication;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// What a server connection is doing; each has its column in SHOW POOLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// Linked to a client.
    Active,
    /// Ready for use.
    Idle,
    /// Idle for so long that it is checked before its next use.
    Used,
    /// Runs the reset query, or the one that checks it.
    Tested,
    /// Kept back because a cancel request may still hit it.
    BeingCanceled,
}

impl ServerState {
    /// The word in SHOW SERVERS.
    pub const fn as_str(self) -> &'static str {
        match self {
            ServerState::Active => "active",
            ServerState::Idle => "idle",
            ServerState::Used => "used",
            ServerState::Tested => "tested",
            ServerState::BeingCanceled => "being_canceled",
        }
    }
}

/// One server connection of this shard.
pub struct ServerEntry {
    /// Its id.
    pub id: ServerId,
    /// Database entry and user of its pool.
    pub database: Arc<str>,
    /// See `database`.
    pub user: Arc<str>,
    /// The configuration it was dialled by.
    pub dialled: Arc<Database>,
    /// Where the server is.
    pub remote: Endpoint,
    /// Our end.
    pub local: Endpoint,
    /// The replication it is there for.
    pub replication: Replication,
    /// How it is encrypted, if it is.
    pub tls: Option<TlsLabel>,
    /// The settings by which it was encrypted, or could have been.
    pub connector: Option<Arc<Connector>>,
    /// Key for cancel requests: process id and secret.
    pub cancel_key: Box<[u8]>,
    /// When it was opened, in microseconds since the Unix epoch.
    pub connected_unix_us: u64,
    /// When it was opened.
    pub opened: Moment,
    /// When it was last linked, in microseconds since the Unix epoch.
    pub requested_unix_us: Cell<u64>,
    /// The client it is linked to.
    pub link: Cell<Option<ClientId>>,
    /// Statements prepared on it.
    pub prepared: Cell<usize>,
    /// The application name that it has reported last.
    pub application_name: ApplicationName,
    /// It is making the pooler's own settings: a cancel request would hit those.
    pub is_settling: Cell<bool>,
    /// Why it is to be closed as soon as nobody uses it.
    pub close_needed: Cell<Option<&'static str>>,
    state: Cell<ServerState>,
    stats: Arc<PoolStats>,
    cancels: Cell<u32>,
    uncancelled: RefCell<Vec<Waker>>,
}

/// What a [`ServerEntry`] is made from.
pub struct Identity {
    /// See [`ServerEntry`].
    pub id: ServerId,
    /// See [`ServerEntry`].
    pub database: Arc<str>,
    /// See [`ServerEntry`].
    pub user: Arc<str>,
    /// See [`ServerEntry`].
    pub dialled: Arc<Database>,
    /// See [`ServerEntry`].
    pub remote: Endpoint,
    /// See [`ServerEntry`].
    pub local: Endpoint,
    /// See [`ServerEntry`].
    pub replication: Replication,
    /// See [`ServerEntry`].
    pub tls: Option<TlsLabel>,
    /// See [`ServerEntry`].
    pub connector: Option<Arc<Connector>>,
    /// See [`ServerEntry`].
    pub cancel_key: Box<[u8]>,
    /// See [`ServerEntry`].
    pub connected_unix_us: u64,
    /// See [`ServerEntry`].
    pub opened: Moment,
}

impl ServerEntry {
    /// A connection counted in `stats`, in state [`ServerState::Idle`].
    pub(super) fn new(
        identity: Identity,
        application_name: ApplicationName,
        stats: Arc<PoolStats>,
    ) -> Rc<ServerEntry> {
        stats.sv_idle.add(1);
        let Identity {
            id,
            database,
            user,
            dialled,
            remote,
            local,
            replication,
            tls,
            connector,
            cancel_key,
            connected_unix_us,
            opened,
        } = identity;
        Rc::new(ServerEntry {
            id,
            database,
            user,
            dialled,
            remote,
            local,
            replication,
            tls,
            connector,
            cancel_key,
            connected_unix_us,
            opened,
            requested_unix_us: Cell::new(0),
            link: Cell::new(None),
            prepared: Cell::new(0),
            application_name,
            is_settling: Cell::new(false),
            close_needed: Cell::new(None),
            state: Cell::new(ServerState::Idle),
            stats,
            cancels: Cell::new(0),
            uncancelled: RefCell::default(),
        })
    }

    /// What it is doing.
    pub fn state(&self) -> ServerState {
        self.state.get()
    }

    /// Moves it to another state, and to that state's column.
    pub fn set_state(&self, state: ServerState) {
        self.gauge(self.state.replace(state)).sub(1);
        self.gauge(state).add(1);
    }

    /// Whether it is older than `lifetime`; one of 0 ends with the first use.
    pub fn has_outlived(&self, lifetime: Duration, now: Moment) -> bool {
        if lifetime.is_zero() {
            self.requested_unix_us.get() > 0
        } else {
            now.since(self.opened) >= lifetime
        }
    }

    /// The server's process id, as its BackendKeyData told.
    pub fn process_id(&self) -> u32 {
        self.cancel_key
            .first_chunk()
            .map_or(0, |pid| u32::from_be_bytes(*pid))
    }

    /// A cancel request to it is under way until [`ServerEntry::cancel_ended`].
    pub fn cancel_begins(&self) {
        self.cancels.set(self.cancels.get() + 1);
    }

    /// A cancel request has ended, one way or the other.
    pub fn cancel_ended(&self) {
        self.cancels.set(self.cancels.get().saturating_sub(1));
        if self.cancels.get() == 0 {
            self.uncancelled.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Whether a cancel request is under way: then nobody else may get the server.
    pub fn is_being_cancelled(&self) -> bool {
        self.cancels.get() > 0
    }

    /// Waits until no cancel request is under way.
    pub async fn uncancelled(&self) {
        poll_fn(|cx| {
            if !self.is_being_cancelled() {
                return Poll::Ready(());
            }
            self.uncancelled.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn gauge(&self, state: ServerState) -> &crate::stats::Gauge {
        match state {
            ServerState::Active => &self.stats.sv_active,
            ServerState::Idle => &self.stats.sv_idle,
            ServerState::Used => &self.stats.sv_used,
            ServerState::Tested => &self.stats.sv_tested,
            ServerState::BeingCanceled => &self.stats.sv_being_canceled,
        }
    }
}

impl Drop for ServerEntry {
    fn drop(&mut self) {
        self.gauge(self.state.get()).sub(1);
    }
}
