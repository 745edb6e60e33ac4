//! The root object of a core.

use super::balance::LoadReading;
use super::message::{Answer, Mail};
use super::moving::{self, Strays, Traveller};
use super::orders::Orders;
use super::pools::Pool;
use super::shared::{Common, Phase, Snapshot};
use super::{guest, inbox, opening, upkeep};
use crate::auth::KdfCache;
use crate::base::limit::{CONSOLE_RESERVE, FULL_LOBBY_CLIENTS_MAX, LOBBY_CLIENTS_MAX};
use crate::base::memory::{self, Pressure};
use crate::base::{Moment, ShardId};
use crate::client::{ClientEntry, Greeted};
use crate::config::General;
use crate::net::{Detached, Driver, Endpoint, Listener, Net, NetOptions, TcpOptions, spawn};
use crate::relay::Stores;
use crate::session::{Handle, RecentSettings, SLOTS_MAX, Statements};
use crate::stats::ShardStats;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

/// Key-stretching results that a shard keeps.
const KDF_RESULTS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// How long a listener that is to be closed still waits for handshakes that have begun.
const HANDSHAKE_MAX: Duration = Duration::from_millis(50);
/// Pause after accepting failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listening sockets that a shard is started with.
#[derive(Default)]
pub struct Listeners {
    /// Its own TCP sockets.
    pub tcp: Vec<OwnedFd>,
    /// TCP sockets that others have open, too, and go on listening at.
    pub passed: Vec<OwnedFd>,
    /// Unix sockets, on one shard, which passes accepted sockets round.
    pub unix: Vec<OwnedFd>,
}

/// One core.
pub struct Shard {
    /// Which.
    pub id: ShardId,
    /// Its ring.
    pub net: Net,
    /// What all shards share.
    pub common: Arc<Common>,
    /// Its numbers.
    pub stats: Arc<ShardStats>,
    /// Its clients, by slot.
    pub clients: RefCell<Slab<Rc<ClientEntry>>>,
    /// Its part of every pool.
    pub(super) pools: RefCell<HashMap<super::PoolKey, Rc<Pool>>>,
    /// What its clients share.
    pub(super) stores: Rc<Stores>,
    /// Settings of its clients.
    pub(super) recent_settings: RefCell<RecentSettings>,
    pub(super) kdf: RefCell<KdfCache>,
    pub(super) snapshot: RefCell<Arc<Snapshot>>,
    pub(super) phase: Cell<Phase>,
    /// The orders that this shard acts by.
    pub(super) orders: RefCell<Arc<Orders>>,
    /// Woken when an idle server says something.
    pub(super) idle_watch: RefCell<Option<Waker>>,
    /// The pools' tick is running.
    pub(super) ticking: Cell<bool>,
    /// How much mail had been read when some was found lying here.
    pub(super) mail_seen: Cell<Option<u64>>,
    /// Answers awaited, by ticket.
    pub(super) tickets: RefCell<HashMap<u64, Gathering>>,
    pub(super) next_ticket: Cell<u64>,
    /// Clients whose cancel keys do not say where they are.
    pub(super) strays: RefCell<Strays>,
    /// When it next looks whether clients should move.
    pub(super) shed_at: Cell<Moment>,
    /// When the clients are looked at next, for whom it is time to leave or to be told something.
    pub(super) expires_at: Cell<Moment>,
    /// Whether it then had more to do than another, and began to count its clients' work.
    pub(super) sheds: Cell<bool>,
    /// It has been said that `memory_max` is nearly used up.
    pub(super) is_memory_full: Cell<bool>,
    /// The last reading of this shard's load.
    pub(super) load: Cell<LoadReading>,
    /// State of [`Shard::draw`].
    pub(super) drawn: Cell<u64>,
    /// Slots of the clients whose cancel key names this process instead, by that key.
    pub(super) peered: RefCell<HashMap<Handle, usize>>,
    accepting: RefCell<Vec<Waker>>,
    /// Our end of the connection that came last: those that come by the same listener share it.
    local_end: RefCell<Rc<Endpoint>>,
}

/// Answers that a task of this shard waits for.
#[derive(Default)]
pub(super) struct Gathering {
    pub(super) answers: Vec<Answer>,
    pub(super) waker: Option<Waker>,
}

/// A client that this shard counts, until it is dropped.
pub(super) struct Present(Arc<ShardStats>);

impl Present {
    fn new(shard: &Shard) -> Present {
        shard.stats.clients.add(1);
        Present(shard.stats.clone())
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.clients.sub(1);
    }
}

/// Runs a shard for ever, on the calling glommio executor; `ready` is called when it serves.
///
/// # Errors
/// If its ring cannot be made.
pub async fn run(
    id: ShardId,
    common: Arc<Common>,
    listeners: Listeners,
    ready: impl FnOnce(),
) -> io::Result<()> {
    let snapshot = common.snapshot.load_full();
    let general = &snapshot.config.general;
    let stats = common.registry.shard(id).clone();
    let net = Net::new(&NetOptions {
        receive_buffers: general.receive_buffers.into(),
        receive_buffer_bytes: u32::try_from(general.receive_buffer_bytes).unwrap_or(u32::MAX),
        close_timeout: general.close_timeout,
        stats: stats.clone(),
    })?;
    net.listen_bell(common.mesh.open(id, net.ring_fd()));
    let shard = Rc::new(Shard {
        id,
        net,
        stats,
        clients: RefCell::default(),
        pools: RefCell::default(),
        stores: Rc::new(Stores::new(Statements::new(
            common.statements_budget.clone(),
        ))),
        recent_settings: RefCell::default(),
        kdf: RefCell::new(KdfCache::new(common.process_secret, KDF_RESULTS_MAX)),
        snapshot: RefCell::new(snapshot),
        phase: Cell::new(Phase::Serving),
        orders: RefCell::default(),
        idle_watch: RefCell::new(None),
        ticking: Cell::new(false),
        mail_seen: Cell::new(None),
        tickets: RefCell::default(),
        next_ticket: Cell::new(0),
        strays: RefCell::default(),
        shed_at: Cell::default(),
        expires_at: Cell::default(),
        sheds: Cell::default(),
        is_memory_full: Cell::default(),
        load: Cell::new(LoadReading::now()),
        drawn: Cell::new(u64::from_le_bytes(opening::random_bytes())),
        peered: RefCell::default(),
        accepting: RefCell::default(),
        local_end: RefCell::new(Rc::new(Endpoint::Unix("".into()))),
        common,
    });
    let all = [
        (Way::Tcp, listeners.tcp),
        (Way::PassedTcp, listeners.passed),
        (Way::Unix, listeners.unix),
    ];
    let each = |(way, sockets): (Way, Vec<OwnedFd>)| sockets.into_iter().map(move |fd| (way, fd));
    for (way, fd) in all.into_iter().flat_map(each) {
        let (fd, is_unix) = (Arc::new(fd), way == Way::Unix);
        shard.common.add_door(id, &fd, is_unix)?;
        if !is_unix {
            shard.common.listening.fetch_add(1, Ordering::Relaxed);
        }
        spawn(net, accept(shard.clone(), Listener::new(net, fd), way));
    }
    inbox::open(&shard);
    spawn(net, upkeep::run(shard.clone()));
    spawn(net, upkeep::watch_idle(shard));
    ready();
    Driver::new(net).run().await;
    Ok(())
}

/// How clients come in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Tcp,
    /// By a socket that others have open, too: nobody is reset when ours is closed, and what is done to it lasts.
    PassedTcp,
    Unix,
}

async fn accept(shard: Rc<Shard>, listener: Listener, way: Way) {
    let is_unix = way == Way::Unix;
    let place = |socket| shard.place(socket, is_unix);
    let_in(&shard, &listener, shard.closing_time(is_unix), place).await;
    if way == Way::Tcp {
        last_call(&shard, &listener).await;
    }
    close(&shard, listener).await;
}

/// Accepts connections until `end`.
async fn let_in(
    shard: &Shard,
    listener: &Listener,
    end: impl Future<Output = ()>,
    admit: impl Fn(Detached),
) {
    let mut end = pin!(end);
    loop {
        let over = async {
            end.as_mut().await;
            None
        };
        let accepted = futures_lite::future::or(async { Some(listener.accept().await) }, over);
        match accepted.await {
            None => return,
            Some(Ok(socket)) => shard.net.in_turn(|| admit(socket)).await,
            Some(Err(error)) => {
                tracing::warn!(shard = %shard.id, %error, "cannot accept a connection");
                shard.net.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Lets in whose handshake has begun.
async fn last_call(shard: &Rc<Shard>, listener: &Listener) {
    match listener.turn_away() {
        Ok(()) => {
            let handshakes = shard.net.sleep(HANDSHAKE_MAX);
            let_in(shard, listener, handshakes, |socket| shard.admit(socket)).await;
        }
        // Some kernels want CAP_NET_ADMIN for it, which `user` has given up. Only where another process takes over does it matter.
        Err(error) if shard.snapshot().config.general.so_reuseport => {
            tracing::warn!(shard = %shard.id, %error, "who connects just now may be reset");
        }
        Err(_) => {}
    }
}

/// Closes a TCP listener; who has connected by then is still let in.
async fn close(shard: &Rc<Shard>, listener: Listener) {
    for socket in listener.drain().await {
        shard.admit(socket);
    }
    drop(listener);
    shard.common.listening.fetch_sub(1, Ordering::Release);
}

impl Shard {
    /// The configuration in force on this shard.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// Socket options for server connections.
    pub(super) fn tcp_options(&self) -> TcpOptions {
        tcp_options(&self.snapshot.borrow().config.general)
    }

    /// Our end of a client's connection.
    pub(super) fn local_end(&self, end: Endpoint) -> Rc<Endpoint> {
        let mut last = self.local_end.borrow_mut();
        if **last != end {
            *last = Rc::new(end);
        }
        last.clone()
    }

    /// Takes a client in that has said nothing yet.
    pub(super) fn admit(self: &Rc<Self>, socket: Detached) {
        if !self.has_room(&socket) {
            if memory::pressure() >= Pressure::Full {
                self.stats.memory_refusals.inc();
            }
        } else if let Some(place) = self.seat_client() {
            spawn(self.net, guest::serve(self.clone(), place, socket));
        }
    }

    /// Whether the process may have one more client, told or untold who it is.
    fn has_room(&self, socket: &Detached) -> bool {
        let shards = self.common.registry.shards().iter();
        let clients: u64 = shards.map(|shard| shard.clients.load()).sum();
        let clients_max = &self.common.clients;
        let (max, lobby) = match memory::pressure() {
            Pressure::Ample | Pressure::Tight => (clients_max.limit(), LOBBY_CLIENTS_MAX),
            // Nobody but who cancels, or wants the console, is let in.
            Pressure::Full | Pressure::Spent => (clients_max.open(), FULL_LOBBY_CLIENTS_MAX),
        };
        let room = u64::from(max) + lobby as u64;
        // Whoever runs the process is an operator.
        let is_owner = || socket.peer_uid() == Some(rustix::process::geteuid().as_raw());
        clients < room || (clients < room + CONSOLE_RESERVE as u64 && is_owner())
    }

    /// Takes a client in that has said on another shard what it wants.
    pub(super) fn admit_greeted(self: &Rc<Self>, greeted: Greeted) {
        if let Some(place) = self.seat_client() {
            spawn(self.net, guest::go_on(self.clone(), place, greeted));
        }
    }

    /// Takes a client in that another shard has served so far.
    pub(super) fn admit_traveller(self: &Rc<Self>, traveller: Box<Traveller>) {
        self.stats.moves_in.inc();
        match self.seat_client() {
            Some(place) => spawn(self.net, moving::arrive(self.clone(), place, traveller)),
            None => self.client_left(traveller.key()),
        }
    }

    /// Counts a client at once, so that the next one accepted sees it; none if there are as many as
    /// cancel keys can tell apart.
    fn seat_client(self: &Rc<Self>) -> Option<Present> {
        (self.stats.clients.load() < SLOTS_MAX as u64).then(|| Present::new(self))
    }

    /// Posts a message; one that finds the mailbox full is counted and comes back.
    pub(super) fn post(&self, to: ShardId, mail: Mail) -> Result<(), Mail> {
        self.common
            .mesh
            .post(to, mail, |ring| self.net.ring_other(ring))
            .map_err(|full| {
                self.stats.mailbox_full.inc();
                full.0
            })
    }

    /// Resolves when this listener has to close: TCP in every shutdown; the Unix socket stays for
    /// the console.
    async fn closing_time(&self, is_unix: bool) {
        std::future::poll_fn(|cx| {
            if self.phase.get() > Phase::Serving && !is_unix {
                return std::task::Poll::Ready(());
            }
            let mut wakers = self.accepting.borrow_mut();
            if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                wakers.push(cx.waker().clone());
            }
            std::task::Poll::Pending
        })
        .await;
    }

    /// Enters a phase of the shutdown.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.set(self.phase.get().max(phase));
        for waker in self.accepting.take() {
            waker.wake();
        }
        if self.phase.get() == Phase::WaitForServers {
            self.each_pool(|pool| pool.stop());
        }
    }

    /// Visits every pool of this shard.
    pub(super) fn each_pool(&self, mut visit: impl FnMut(&Rc<Pool>)) {
        let pools: Vec<_> = self.pools.borrow().values().cloned().collect();
        pools.iter().for_each(&mut visit);
    }
}

/// Socket options of a configuration.
pub fn tcp_options(general: &General) -> TcpOptions {
    TcpOptions {
        keepalive: general.tcp_keepalive,
        keepidle: general.tcp_keepidle,
        keepintvl: general.tcp_keepintvl,
        keepcnt: general.tcp_keepcnt,
        user_timeout: general.tcp_user_timeout,
        buffer_bytes: general.tcp_socket_buffer,
        // A connection that is held back is lost when its listener closes.
        defer_accept: general.tcp_defer_accept && !general.so_reuseport,
    }
}
