//! Replication: a client that asks for it has a server connection of its own from its login to its end, opened with
//! the client's own start-up parameters. It counts in its pool, and goes to nobody else.

use super::opening::{Attempt, farewell, log_success};
use super::pools::{Counter, Pool};
use crate::base::ClientId;
use crate::client::{ClientEntry, Farewell};
use crate::config::PoolMode;
use crate::net::spawn;
use crate::pool::Outlook;
use crate::relay::{Denial, Servers, Terms, Waiter};
use crate::server::{Server, ServerState, Wishes};
use crate::wire::{Replication, StartupPacket};
use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

/// PgBouncer's word for a replication in its log.
pub(super) fn logged(replication: Replication) -> &'static str {
    match replication {
        Replication::None => "no",
        Replication::Physical => "yes",
        Replication::Logical => "database",
    }
}

/// How often a client looks for a free place in its pool.
const PLACE_LOOK: Duration = Duration::from_millis(10);

/// What the server of such a client is opened with.
pub(super) fn wishes(packet: &StartupPacket, replication: Replication) -> Option<Wishes> {
    let params = packet
        .params()
        .map(|(name, value)| (name.to_owned(), value.to_vec()));
    (replication != Replication::None).then(|| Wishes {
        replication,
        params: params.collect(),
    })
}

/// Opens a server for one client alone, as soon as the pool has a place for it.
pub(super) async fn open_apart(pool: &Rc<Pool>, wishes: Wishes) -> Result<Server, Farewell> {
    loop {
        if let Some(farewell) = pool.refusal(true) {
            return Err(farewell);
        }
        let now = pool.shard.net.now();
        if pool.local.borrow_mut().open_apart(now) {
            break;
        }
        pool.clear_a_place();
        pool.shard.net.sleep(PLACE_LOOK).await;
    }
    // In a task of its own, which ends in good order although the client may leave.
    let apart = Apart {
        pool,
        waiter: Rc::default(),
    };
    let waiter = &apart.waiter;
    spawn(pool.shard.net, begin(pool.clone(), wishes, waiter.clone()));
    let granted = poll_fn(|cx| waiter.poll(cx)).await;
    granted.map_err(|denial| match denial {
        Denial::Leave(farewell) => farewell,
        Denial::Busy(text) => Farewell::because(text),
        Denial::Displaced => Farewell::CONFIGURATION_CHANGED,
    })
}

/// A client's wait for its server; one that comes too late for it is closed.
struct Apart<'a> {
    pool: &'a Rc<Pool>,
    waiter: Rc<Waiter>,
}

impl Drop for Apart<'_> {
    fn drop(&mut self) {
        if let Some(Ok(server)) = self.waiter.take() {
            self.pool
                .close(server, "client disconnect while server was not ready");
        }
    }
}

async fn begin(pool: Rc<Pool>, wishes: Wishes, waiter: Rc<Waiter>) {
    pool.stats.sv_login.add(1);
    let attempt = Attempt::new(&pool);
    let opened = attempt.open(&pool, Some(wishes)).await;
    if let Err(error) = &opened {
        waiter.serve(Err(farewell(error).into()));
    }
    attempt.cleared_away(&pool).await;
    pool.stats.sv_login.sub(1);
    pool.local.borrow_mut().ends_apart();
    match opened {
        Ok(server) => {
            log_success(&pool, &server);
            pool.know(&server);
            pool.step(|local, now, actions| local.opened_unfit(now, actions));
            match pool.outdated(&server) {
                Some(why) => {
                    waiter.serve(Err(Farewell::because(why).into()));
                    pool.close(server, why);
                }
                None if Rc::strong_count(&waiter) > 1 => waiter.serve(Ok(server)),
                None => pool.close(server, "client disconnect while server was not ready"),
            }
        }
        // It says nothing about logins without replication.
        Err(_) => pool.step(|local, now, actions| local.open_failed(None, now, actions)),
    }
}

impl Pool {
    /// Has an idle server closed, here or elsewhere, or one of another pool whose limit is in the way.
    fn clear_a_place(self: &Rc<Self>) {
        let now = self.shard.net.now();
        if !self.common.shared.is_full() || self.common.is_making_room(now) {
            return;
        }
        let common = &self.shard.common;
        match common.longest_idle(std::iter::once(&self.common), now) {
            Some(victim) => self.shard.evict(victim),
            None => self.make_room(),
        }
    }
}

/// The one server of a client, in the place of a pool.
pub(super) struct Dedicated {
    pool: Counter,
    server: RefCell<Option<Server>>,
}

impl Dedicated {
    pub(super) fn new(pool: Rc<Pool>, server: Server, client: ClientId) -> Dedicated {
        server.entry.set_state(ServerState::Active);
        server.entry.link.set(Some(client));
        Dedicated {
            pool: Counter::new(pool),
            server: RefCell::new(Some(server)),
        }
    }
}

impl Servers for Dedicated {
    fn terms(&self) -> Terms {
        Terms::new(PoolMode::Session, 0)
    }

    fn waiter(&self) -> Rc<Waiter> {
        Rc::default()
    }

    fn recycle(&self, _: &Rc<Waiter>) {}

    fn request(&self, waiter: &Rc<Waiter>, _: &ClientEntry) {
        let server = self.server.take();
        waiter.serve(server.ok_or(Denial::Leave(Farewell::SERVER_CRASHED)));
    }

    fn withdraw(&self, waiter: &Waiter) {
        if let Some(Ok(server)) = waiter.take() {
            self.server.replace(Some(server));
        }
    }

    fn outlook(&self, _: &Waiter) -> Option<Outlook> {
        None
    }

    fn release(&self, server: Server) {
        self.close(server, "replication has ended");
    }

    fn release_session(&self, server: Server) {
        self.close(server, "client close request");
    }

    fn cancel(&self, server: &Server) {
        self.pool.cancel(server);
    }

    fn close(&self, server: Server, why: &str) {
        self.pool.close(server, why);
    }
}

impl Drop for Dedicated {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.close(server, "client close request");
        }
    }
}
