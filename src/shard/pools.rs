//! One shard's part of one pool: performs what the scheduler in `pool` decides.

use super::canceling::Mark;
use super::message::Mail;
use super::opening;
use super::orders::Standing;
use super::root::Shard;
use super::shared::{CommonPool, Phase, Victim, unlimited_if_zero};
use crate::base::{Clock, Moment, ShardId};
use crate::client::{ClientEntry, Farewell};
use crate::config::{Config, Database, Dialect, General};
use crate::net::spawn;
use crate::pool::{Acquired, Action, Closing, LocalPool, Outlook};
use crate::relay::{Denial, Servers, Terms, Waiter};
use crate::server::{Parcel, Server, ServerState, run_query};
use crate::stats::PoolStats;
use crate::wire::frontend::terminate;
use crate::wire::tag::backend as tag;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::Duration;

const PAUSE_MODE: &str = "pause mode";
const SHUTDOWN: &str = "shutdown";

/// PgBouncer's words for why the scheduler wants a server closed.
const fn reason(closing: Closing) -> &'static str {
    match closing {
        Closing::Paused => PAUSE_MODE,
        Closing::Surplus => "too many servers in the pool",
        Closing::Expired(why) => why,
    }
}

type Actions = Vec<Action<Server, Rc<Waiter>>>;

/// How long an abandoned query is given to heed a cancel request, before the next one.
const CANCEL_AGAIN: Duration = Duration::from_secs(1);
/// What `server_check_query` calls the query without a word.
const NO_QUERY: &str = "<empty>";

/// Places in line that a pool keeps for later clients.
const SPARE_WAITERS_MAX: usize = 64;

/// One shard's part of one pool.
pub struct Pool {
    pub(super) shard: Rc<Shard>,
    pub(super) common: Arc<CommonPool>,
    pub(super) stats: Arc<PoolStats>,
    /// Its database entry; replaced by a reload.
    pub(super) database: RefCell<Arc<Database>>,
    pub(super) terms: Cell<Terms>,
    pub(super) local: RefCell<LocalPool<Server, Rc<Waiter>>>,
    /// Servers of this shard now or ever lent out or idle, for SHOW SERVERS and reloads.
    pub(super) entries: RefCell<Vec<std::rc::Weak<crate::server::ServerEntry>>>,
    /// What the console has ordered for it.
    pub(super) standing: Cell<Standing>,
    /// Its database entry has been removed.
    pub(super) is_removed: Cell<bool>,
    /// How often a reload has changed the user that servers of its database are logged in as: its clients then belong to
    /// another pool.
    pub(super) user_changes: Cell<u32>,
    /// Since when it has been of no use to anybody.
    pub(super) unused_since: Cell<Option<Moment>>,
    /// Servers are reset after every transaction (`server_reset_query_always`).
    pub(super) resets_always: Cell<bool>,
    /// They are checked before every use (`server_check_delay` is 0).
    pub(super) checks_always: Cell<bool>,
    /// Places in line to be used again.
    spare_waiters: RefCell<Vec<Rc<Waiter>>>,
    /// Memory for actions to be used again.
    spare_actions: Cell<Actions>,
}

impl Shard {
    /// This shard's part of the pool of `database` and `user`, made if it is new.
    pub(super) fn pool(self: &Rc<Self>, database: &Arc<Database>, user: &str) -> Rc<Pool> {
        let key = super::PoolKey {
            database: database.name.as_str().into(),
            user: user.into(),
        };
        if let Some(pool) = self.pools.borrow().get(&key) {
            return pool.clone();
        }
        let snapshot = self.snapshot();
        let limit = unlimited_if_zero(snapshot.config.pool_size(database, user));
        let common = self.common.pool(&key, limit, &snapshot.config);
        let pool = Rc::new(Pool {
            shard: self.clone(),
            stats: self.common.registry.pool(self.id, &key.database, &key.user),
            database: RefCell::new(database.clone()),
            terms: Cell::new(terms(&snapshot.config, database, user)),
            local: RefCell::new(self.part_of(&common, database)),
            entries: RefCell::default(),
            standing: Cell::new(self.orders.borrow().of(database.name.as_str())),
            is_removed: Cell::new(false),
            user_changes: Cell::new(0),
            unused_since: Cell::default(),
            resets_always: Cell::default(),
            checks_always: Cell::default(),
            spare_waiters: RefCell::default(),
            spare_actions: Cell::default(),
            common,
        });
        pool.set_paused();
        pool.take_settings(&snapshot.config.general);
        self.pools.borrow_mut().insert(key, pool.clone());
        pool
    }

    fn part_of(&self, common: &CommonPool, database: &Database) -> LocalPool<Server, Rc<Waiter>> {
        let mut local = LocalPool::new(common.shared.clone(), self.id);
        local.open_at(self.common.openings_at(database));
        local
    }

    /// As [`Shard::pool`], for a key that came by mail.
    pub(super) fn pool_of(self: &Rc<Self>, key: &super::PoolKey) -> Option<Rc<Pool>> {
        if let Some(pool) = self.pools.borrow().get(key) {
            return Some(pool.clone());
        }
        let database = self.snapshot().config.database(&key.database)?;
        Some(self.pool(&database, &key.user))
    }

    /// Has an idle server closed, here or elsewhere.
    pub(super) fn evict(self: &Rc<Self>, victim: Victim) {
        let Victim {
            pool,
            shard,
            due,
            why,
        } = victim;
        if shard == self.id {
            if let Some(pool) = self.pool_of(&pool.key) {
                pool.evict(due, why);
            }
        } else {
            let key = pool.key.clone();
            let mail = Mail::Evict {
                pool: key,
                due,
                why,
            };
            if self.post(shard, mail).is_err() {
                pool.has_been_asked();
            }
        }
    }
}

/// Whether a server has been idle for so long that it is checked before it is used.
fn is_unchecked(server: &Server) -> bool {
    server.entry.state() == ServerState::Used
}

/// The view of a pool that the relay has.
pub(super) struct Counter {
    pool: Rc<Pool>,
    /// [`Pool::user_changes`] when the client came to this pool.
    user_changes: u32,
}

impl Counter {
    pub(super) fn new(pool: Rc<Pool>) -> Counter {
        Counter {
            user_changes: pool.user_changes.get(),
            pool,
        }
    }
}

/// On what terms `user` has the servers of `database`.
pub(super) fn terms(config: &Config, database: &Database, user: &str) -> Terms {
    let mode = config.pool_mode(database, user);
    Terms::new(mode, config.general.max_prepared_statements)
}

impl Servers for Counter {
    fn terms(&self) -> Terms {
        self.pool.terms.get()
    }

    fn waiter(&self) -> Rc<Waiter> {
        let spare = self.pool.spare_waiters.borrow_mut().pop();
        spare.unwrap_or_default()
    }

    fn recycle(&self, waiter: &Rc<Waiter>) {
        let mut spare = self.pool.spare_waiters.borrow_mut();
        if Rc::strong_count(waiter) == 1 && spare.len() < SPARE_WAITERS_MAX {
            waiter.clear();
            spare.push(waiter.clone());
        }
    }

    fn request(&self, waiter: &Rc<Waiter>, client: &ClientEntry) {
        if self.user_changes != self.pool.user_changes.get() {
            return waiter.serve(Err(Denial::Displaced));
        }
        self.pool.request(waiter, false);
        if let Some(denial) = self.pool.denial(waiter, client) {
            self.pool.withdraw(waiter);
            waiter.serve(Err(denial));
        }
    }

    fn withdraw(&self, waiter: &Waiter) {
        self.pool.withdraw(waiter);
    }

    fn outlook(&self, waiter: &Waiter) -> Option<Outlook> {
        self.pool.outlook(waiter)
    }

    fn release(&self, server: Server) {
        match self.pool.resets_always.get() && server.is_reusable() {
            true => self.pool.reset(server),
            false => self.pool.take_back(server),
        }
    }

    fn release_session(&self, server: Server) {
        self.pool.reset(server);
    }

    fn cancel(&self, server: &Server) {
        // Marked before anything else can happen to it.
        if let Some(mark) = Mark::put(&server.entry) {
            let shard = self.pool.shard.clone();
            spawn(shard.net, async move { shard.cancel_marked(mark).await });
        }
    }

    fn close(&self, server: Server, why: &str) {
        self.pool.close(server, why);
    }
}

impl Pool {
    /// Puts a client in line. A `patient` one, which is still logging in, waits even while servers
    /// cannot be reached.
    pub(super) fn request(self: &Rc<Self>, waiter: &Rc<Waiter>, patient: bool) {
        if let Some(farewell) = self.refusal(patient) {
            return waiter.serve(Err(farewell.into()));
        }
        let now = self.shard.net.now();
        let mut actions = self.spare_actions.take();
        loop {
            let acquired = self
                .local
                .borrow_mut()
                .acquire(waiter.clone(), now, &mut actions);
            match acquired {
                Acquired::Granted(server) if !self.is_fit(&server) => {
                    let why = server.entry.close_needed.get();
                    let why = why.unwrap_or_else(|| self.disturbed(&server));
                    self.close(server, why);
                    continue;
                }
                Acquired::Granted(server) if is_unchecked(&server) => {
                    let line = &self.local;
                    let number = line.borrow_mut().check(waiter.clone(), now, &mut actions);
                    waiter.number.set(Some(number));
                    self.shard.tick_pools();
                    self.check(server);
                }
                Acquired::Granted(server) => waiter.serve(Ok(server)),
                Acquired::Waits(number) => {
                    waiter.number.set(Some(number));
                    self.shard.tick_pools();
                }
            }
            break;
        }
        self.perform(actions);
    }

    /// Checks a server that has been idle for long, for whoever waits.
    fn check(self: &Rc<Self>, server: Server) {
        let (pool, begun) = (self.clone(), self.shard.net.now());
        spawn(self.shard.net, async move {
            match pool.checked(server).await {
                Some(server) => {
                    server.entry.set_state(ServerState::Idle);
                    pool.comes_to_rest(&server);
                    pool.watch(&server);
                    pool.step(|local, now, actions| local.checked(server, begun, now, actions));
                }
                None => pool.step(|local, now, actions| local.check_failed(begun, now, actions)),
            }
        });
    }

    /// A server that answers the query that checks it; one that does not is closed.
    async fn checked(self: &Rc<Self>, mut server: Server) -> Option<Server> {
        let (query, timeout) = {
            let snapshot = self.shard.snapshot.borrow();
            let general = &snapshot.config.general;
            let query = general.server_check_query.clone();
            (query, general.server_connect_timeout)
        };
        let answers = query.is_empty() || {
            let query = if query == NO_QUERY { "" } else { &query };
            server.entry.set_state(ServerState::Tested);
            let net = self.shard.net;
            let answered = net
                .until(net.now().deadline(timeout), run_query(&mut server, query))
                .await;
            matches!(answered, Ok(Ok(())))
        };
        let why = match answers {
            true => self.reason_to_close(&server),
            false => Some("server check failed"),
        };
        match why {
            None => Some(server),
            Some(why) => {
                self.close(server, why);
                None
            }
        }
    }

    /// Keeps what matters for every transaction where it is found without a look at the configuration.
    pub(super) fn take_settings(&self, general: &General) {
        self.resets_always.set(general.server_reset_query_always);
        let checks = !general.server_check_query.is_empty();
        self.checks_always
            .set(checks && general.server_check_delay.is_zero());
        self.local
            .borrow_mut()
            .set_round_robin(general.server_round_robin);
    }

    /// Where a client in line stands.
    fn outlook(&self, waiter: &Waiter) -> Option<Outlook> {
        let number = waiter.number.get()?;
        self.local.borrow().outlook(number, self.shard.net.now())
    }

    /// What a client hears at once that would wait in vain, with `queue_reject`.
    fn denial(&self, waiter: &Waiter, client: &ClientEntry) -> Option<Denial> {
        let config = &self.shard.snapshot.borrow().config;
        if !config.general.queue_reject {
            return None;
        }
        let outlook = self.outlook(waiter)?;
        let who = client.who()?;
        let timeouts = config.timeouts(&who.database, &who.user);
        let limits = [
            ("query_wait_timeout", timeouts.query_wait),
            ("query_timeout", timeouts.query),
        ];
        let expected = outlook.expected?;
        let (name, _) = limits
            .into_iter()
            .filter(|(_, limit)| !limit.is_zero() && expected > *limit)
            .min_by_key(|(_, limit)| *limit)?;
        Some(Denial::Busy(format!(
            "no server connection within {name}: {} clients are waiting, which takes about {} s",
            outlook.ahead,
            expected.as_secs()
        )))
    }

    /// Why nobody gets a server at present, if so.
    pub(super) fn refusal(&self, patient: bool) -> Option<Farewell> {
        if self.shard.phase.get() == Phase::WaitForServers {
            return Some(Farewell::SERVER_SHUTTING_DOWN);
        }
        if self.is_removed.get() {
            return Some(Farewell::DATABASE_REMOVED);
        }
        let shared = &self.common.shared;
        let failing = shared.open() == 0
            && shared
                .retry_at()
                .is_some_and(|at| at > self.shard.net.now());
        // While paused everybody waits: servers may well be back by the end of it.
        if patient || !failing || self.standing.get().is_paused {
            return None;
        }
        let cause = self.common.last_failure.load_full()?;
        let text = format!(
            "server login has been failing, cached error: {} (server_login_retry)",
            cause.text
        );
        Some(Farewell::with(cause.sqlstate, text))
    }

    pub(super) fn withdraw(self: &Rc<Self>, waiter: &Waiter) {
        if let Some(number) = waiter.number.take() {
            let _ = self.local.borrow_mut().cancel_wait(number);
            self.publish_wait();
        }
        if let Some(Ok(server)) = waiter.take() {
            self.take_back(server);
        }
    }

    // ---- a server comes back -------------------------------------------------------------

    /// Takes a server back, once no cancel request can hit it any more.
    pub(super) fn take_back(self: &Rc<Self>, server: Server) {
        if !server.entry.is_being_cancelled() {
            return self.place(server);
        }
        server.entry.set_state(ServerState::BeingCanceled);
        let pool = self.clone();
        spawn(self.shard.net, async move {
            server.entry.uncancelled().await;
            pool.place(server);
        });
    }

    fn place(self: &Rc<Self>, server: Server) {
        if let Some(why) = self.reason_to_close(&server) {
            return self.close(server, why);
        }
        server.entry.set_state(match self.checks_always.get() {
            true => ServerState::Used,
            false => ServerState::Idle,
        });
        if self.checks_always.get() && self.local.borrow().waiting() > 0 {
            self.local.borrow_mut().check_begins(self.shard.net.now());
            return self.check(server);
        }
        self.watch(&server);
        let mut actions = self.spare_actions.take();
        let now = self.shard.net.now();
        self.local.borrow_mut().release(server, now, &mut actions);
        self.perform(actions);
    }

    /// Why a server does not fit the configuration any more.
    pub(super) fn outdated(&self, server: &Server) -> Option<&'static str> {
        if self.is_removed.get() {
            return Some("database removed");
        }
        if server.entry.id.0 < self.standing.get().stale_below {
            return Some("database configuration changed");
        }
        if !server.entry.dialled.same_server(&self.database.borrow()) {
            return Some("database configuration changed");
        }
        let in_force = self
            .shard
            .snapshot
            .borrow()
            .tls
            .servers
            .as_ref()
            .map(Arc::as_ptr);
        let is_stale = !server.entry.remote.is_unix()
            && server.entry.connector.as_ref().map(Arc::as_ptr) != in_force;
        is_stale.then_some("server TLS settings changed")
    }

    pub(super) fn reason_to_close(&self, server: &Server) -> Option<&'static str> {
        if let Some(why) = server.entry.close_needed.get() {
            return Some(why);
        }
        if !self.is_fit(server) {
            return Some(self.disturbed(server));
        }
        if let Some(why) = self.outdated(server) {
            return Some(why);
        }
        if self.shard.phase.get() == Phase::WaitForServers {
            return Some(self.why_stopped());
        }
        if self.standing.get().is_paused {
            return Some(PAUSE_MODE);
        }
        self.has_outlived(server).then_some("server lifetime over")
    }

    /// Whether a server has to be closed for its age, and it is its turn (PgBouncer spaces them, too).
    pub(super) fn has_outlived(&self, server: &Server) -> bool {
        let snapshot = self.shard.snapshot.borrow();
        let lifetime = snapshot.config.server_lifetime(&self.database.borrow());
        let now = self.shard.net.now();
        let gap = lifetime / self.common.shared.limit().max(1);
        server.entry.has_outlived(lifetime, now)
            && (lifetime.is_zero() || self.common.ages_out(now, gap))
    }

    /// Runs the reset query before the next client.
    fn reset(self: &Rc<Self>, mut server: Server) {
        let snapshot = self.shard.snapshot();
        let general = &snapshot.config.general;
        let (query, timeout) = (
            general.server_reset_query.clone(),
            general.server_connect_timeout,
        );
        if query.is_empty() {
            return self.take_back(server);
        }
        let pool = self.clone();
        spawn(self.shard.net, async move {
            server.entry.uncancelled().await;
            server.entry.set_state(ServerState::Tested);
            let net = pool.shard.net;
            let deadline = net.now().deadline(timeout);
            match net.until(deadline, run_query(&mut server, &query)).await {
                Ok(Ok(())) => pool.take_back(server),
                Ok(Err(_)) | Err(_) => pool.close(server, "reset query failed"),
            }
        });
    }

    /// Closes a server that is in nobody's hands any more. Its permit is passed on when PostgreSQL has
    /// hung up, too, which it does at the very end of the backend, and not before: pool_size holds for
    /// every instant, as `pg_stat_activity` shows. One that is busy is cancelled first, as it would not
    /// notice before its query's end, and again until it has hung up. `close_timeout` bounds the wait.
    pub(super) fn close(self: &Rc<Self>, server: Server, why: &str) {
        spawn(self.shard.net, self.closed(server, why));
    }

    /// As [`Pool::close`]; resolves when the permit has been passed on.
    fn closed(self: &Rc<Self>, server: Server, why: &str) -> impl Future<Output = ()> + use<> {
        self.log_closing(&server, why);
        self.shard.stats.servers.sub(1);
        let pool = self.clone();
        async move {
            pool.see_off(server).await;
            pool.step(|local, now, actions| local.closed(now, actions));
        }
    }

    /// Hangs up on a server, and returns when PostgreSQL has hung up, too.
    pub(super) async fn see_off(&self, server: Server) {
        let (is_clean, is_busy) = {
            let replies = &server.dialogue.replies;
            (replies.is_clean(), !replies.is_settled())
        };
        if is_clean {
            let mut out = Vec::new();
            terminate(&mut out);
            server.socket.send(out);
        }
        let Server { socket, entry, .. } = server;
        let (net, shard) = (self.shard.net, &self.shard);
        let insists = is_busy && !socket.is_ending();
        let (way, key) = (shard.way_to(&entry), entry.cancel_key.clone());
        drop(entry);
        // The first may overtake the query that it is meant for, and then hits nothing.
        let insisting = async {
            if insists {
                loop {
                    shard.cancel_abandoned(way.clone(), &key).await;
                    net.sleep(CANCEL_AGAIN).await;
                }
            }
            std::future::pending().await
        };
        self.hung_up(futures_lite::future::or(
            socket.hang_up(!is_clean),
            insisting,
        ))
        .await;
        socket.close().await;
    }

    /// Waits until a server has hung up, but no longer than `close_timeout`.
    pub(super) async fn hung_up(&self, leaving: impl Future<Output = ()>) {
        let net = self.shard.net;
        let timeout = self.shard.snapshot.borrow().config.general.close_timeout;
        if net.until(net.now().after(timeout), leaving).await.is_err() {
            let (database, user) = (&self.common.key.database, &self.common.key.user);
            tracing::warn!(
                database = &**database,
                user = &**user,
                "server has not hung up, its place is given away"
            );
        }
    }

    fn log_closing(&self, server: &Server, why: &str) {
        let shard = &self.shard;
        if shard.snapshot.borrow().config.general.log_disconnections {
            let (database, user) = (&self.common.key.database, &self.common.key.user);
            let age_s = shard.net.now().since(server.entry.opened).as_secs();
            tracing::info!(database = &**database, user = &**user, server = %server.entry.id, remote = %server.entry.remote, why, age_s, "closing server connection");
        }
    }

    /// Whether a server that nobody has may be given to a client; else it has to be closed.
    pub(super) fn is_fit(&self, server: &Server) -> bool {
        self.may_stay(server) && server.is_reusable()
    }

    /// Whether a server that nobody has may go on being idle; else it has to be closed.
    pub(super) fn may_stay(&self, server: &Server) -> bool {
        match &*self.shard.idle_watch.borrow() {
            Some(waker) => server.may_stay(&Context::from_waker(waker)),
            None => server.is_reusable(),
        }
    }

    /// PgBouncer's words for why a server is closed that may not stay; logs what it said.
    pub(super) fn disturbed(&self, server: &Server) -> &'static str {
        if let Some(tag) = server.stray() {
            let (database, user) = (&self.common.key.database, &self.common.key.user);
            let tag = char::from(tag);
            tracing::warn!(database = &**database, user = &**user, server = %server.entry.id, remote = %server.entry.remote, %tag, "server spoke out of turn");
        }
        // An error of one that nobody has is its last word.
        let is_leaving = server.stray() == Some(tag::ERROR_RESPONSE) || server.socket.is_ending();
        match server.entry.state() {
            _ if is_leaving => "server conn crashed?",
            ServerState::Used => "SV_USED server got dirty",
            _ => "SV_IDLE server got dirty",
        }
    }

    /// An idle server's events wake this shard's watch.
    pub(super) fn watch(&self, server: &Server) {
        match &*self.shard.idle_watch.borrow() {
            Some(waker) => server.socket.watch(&Context::from_waker(waker)),
            None => server.socket.unwatch(),
        }
    }

    // ---- what the scheduler wants done ---------------------------------------------------

    /// Performs actions.
    pub(super) fn perform(self: &Rc<Self>, mut actions: Actions) {
        for action in actions.drain(..) {
            match action {
                Action::Grant { waiter, server } => waiter.serve(Ok(server)),
                Action::Check(server) => self.check(server),
                Action::Open => opening::begin(self.clone()),
                Action::Close(server, why) => self.close(server, reason(why)),
                Action::Send { to, server, hops } => self.hand_over(to, server, hops),
                Action::Ask(to) => {
                    let _ = self.shard.post(
                        to,
                        Mail::WantServer {
                            pool: self.common.key.clone(),
                            from: self.shard.id,
                        },
                    );
                }
                Action::Evict => self.make_room(),
                Action::Decline(to) => {
                    let _ = self.shard.post(
                        to,
                        Mail::NoServer {
                            pool: self.common.key.clone(),
                            from: self.shard.id,
                        },
                    );
                }
                Action::Wake(to) => {
                    let _ = self.shard.post(
                        to,
                        Mail::Wake {
                            pool: self.common.key.clone(),
                        },
                    );
                }
            }
        }
        self.spare_actions.set(actions);
        self.publish_wait();
    }

    /// Has the longest idle server of another pool closed whose limit keeps this one from opening.
    pub(super) fn make_room(self: &Rc<Self>) {
        let now = self.shard.net.now();
        if let Some(victim) = self.shard.common.victim(&self.common, now) {
            self.shard.evict(victim);
        }
    }

    /// Gives another pool the place of the longest idle server, if it was asked in time.
    pub(super) fn evict(self: &Rc<Self>, due: Moment, why: &'static str) {
        if self.shard.net.now() > due {
            return;
        }
        let evicted = self.local.borrow_mut().evict();
        if let Some(server) = evicted {
            self.common.evictions.fetch_add(1, Ordering::Relaxed);
            let (pool, closed) = (self.clone(), self.closed(server, why));
            spawn(self.shard.net, async move {
                closed.await;
                // Only now: until the permit is back, nobody else has to make room.
                pool.common.evictions.fetch_sub(1, Ordering::Relaxed);
            });
        }
        self.common.has_been_asked();
    }

    /// Feeds the scheduler and performs what it wants.
    pub(super) fn step(
        self: &Rc<Self>,
        event: impl FnOnce(&mut LocalPool<Server, Rc<Waiter>>, Moment, &mut Actions),
    ) {
        let mut actions = self.spare_actions.take();
        let now = self.shard.net.now();
        event(&mut self.local.borrow_mut(), now, &mut actions);
        self.perform(actions);
    }

    /// Sends an idle server to another shard; nothing of it stays on this ring.
    fn hand_over(self: &Rc<Self>, to: ShardId, server: Server, hops: u8) {
        let (pool, sent) = (self.clone(), Clock::now());
        spawn(self.shard.net, async move {
            let shard = &pool.shard;
            let server = match server.pack(sent).await {
                Err(server) => server,
                // Whoever waits for it to close must find it here.
                Ok(parcel) if parcel.is_to_close() => {
                    shard.stats.servers.sub(1);
                    pool.unpack(parcel)
                }
                Ok(parcel) => {
                    shard.stats.servers.sub(1);
                    let mail = Mail::Server {
                        parcel: Box::new(parcel),
                        from: shard.id,
                        hops,
                    };
                    match shard.post(to, mail) {
                        Err(Mail::Server { parcel, .. }) => pool.unpack(*parcel),
                        _ => return shard.stats.handoffs_out.inc(),
                    }
                }
            };
            if let Some(why) = pool.reason_to_close(&server) {
                pool.step(|local, _, _| local.send_failed_unfit(to));
                return pool.close(server, why);
            }
            if pool.is_checked_for_line(&server) {
                pool.step(|local, now, _| {
                    local.send_failed_unfit(to);
                    local.check_begins(now);
                });
                return pool.check(server);
            }
            pool.comes_to_rest(&server);
            pool.watch(&server);
            pool.step(|local, now, actions| local.send_failed(server, to, now, actions));
        });
    }

    /// A server has come from another shard.
    pub(super) fn arrived(self: &Rc<Self>, parcel: Parcel, from: ShardId, hops: u8) {
        let sent = parcel.sent;
        let server = self.unpack(parcel);
        self.shard.stats.handoffs_in.inc();
        self.stats
            .handoff
            .record(Clock::now().since(sent).as_nanos() as u64);
        if let Some(why) = self.reason_to_close(&server) {
            self.step(|local, now, actions| local.arrived_unfit(from, now, actions));
            return self.close(server, why);
        }
        if self.is_checked_for_line(&server) {
            self.step(|local, now, actions| local.arrived_unchecked(from, now, actions));
            return self.check(server);
        }
        self.comes_to_rest(&server);
        self.watch(&server);
        self.step(|local, now, actions| local.arrived(server, from, hops, now, actions));
    }

    /// One that nobody waits for is checked again before its next use, if all are.
    fn comes_to_rest(&self, server: &Server) {
        if self.checks_always.get() && self.local.borrow().waiting() == 0 {
            server.entry.set_state(ServerState::Used);
        }
    }

    /// Whether somebody waits who is not given it before it has been checked.
    fn is_checked_for_line(&self, server: &Server) -> bool {
        is_unchecked(server) && self.local.borrow().waiting() > 0
    }

    fn unpack(&self, parcel: Parcel) -> Server {
        let server = parcel.unpack(self.shard.net, self.stats.clone());
        self.know(&server);
        server
    }

    /// Takes note of a server that is on this shard now.
    pub(super) fn know(&self, server: &Server) {
        self.shard.stats.servers.add(1);
        let mut entries = self.entries.borrow_mut();
        entries.retain(|entry| entry.strong_count() > 0);
        entries.push(Rc::downgrade(&server.entry));
    }

    // ---- waiting clients -----------------------------------------------------------------

    /// Sends everybody away who waits.
    pub(super) fn fail_waiters(&self, farewell: &Farewell) {
        self.deny_waiters(&farewell.clone().into());
    }

    pub(super) fn deny_waiters(&self, denial: &Denial) {
        let waiters = self.local.borrow_mut().take_waiters(Moment::NEVER);
        waiters
            .iter()
            .for_each(|waiter| waiter.serve(Err(denial.clone())));
        self.publish_wait();
    }

    /// No more transactions: waiting clients leave, idle servers close.
    pub(super) fn stop(self: &Rc<Self>) {
        self.fail_waiters(&Farewell::SERVER_SHUTTING_DOWN);
        let why = self.why_stopped();
        self.step(|local, _, actions| local.expire_idle(|_, _| Some(why), actions));
    }

    /// In PgBouncer, a shutdown that waits for servers is a pause as well.
    fn why_stopped(&self) -> &'static str {
        match self.shard.snapshot.borrow().config.dialect {
            Dialect::Ini => PAUSE_MODE,
            Dialect::Toml => SHUTDOWN,
        }
    }

    fn publish_wait(&self) {
        let since = self.local.borrow().first_waiter_since();
        self.stats.oldest_wait.set(since.unwrap_or(Moment::NEVER));
    }
}
