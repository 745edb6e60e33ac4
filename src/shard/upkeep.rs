//! What has to be done from time to time: timeouts, lifetimes, reloads, the pools' tick.

use super::balance::Homes;
use super::pools::{Pool, terms};
use super::root::Shard;
use super::shared::{Phase, Request, Snapshot};
use crate::admin::SetOutcome;
use crate::base::memory::{self, Pressure};
use crate::base::{Moment, ShardId};
use crate::client::{ClientEntry, ClientState, Farewell, Signal, Who};
use crate::config::{Config, Dialect, Timeouts};
use crate::net::spawn;
use crate::relay::Denial;
use crate::server::{Server, ServerState};
use crate::wire::Replication;
use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

/// Upkeep runs this often, as PgBouncer's maintenance does.
const PERIOD: Duration = Duration::from_millis(333);
/// The pools' tick, while somebody waits.
const TICK: Duration = Duration::from_millis(10);

/// Runs the upkeep for ever.
pub(super) async fn run(shard: Rc<Shard>) {
    loop {
        shard.net.sleep(PERIOD).await;
        shard.net.close_overdue();
        shard.read_load();
        shard.stand_in();
        let snapshot = shard.snapshot();
        shard.obey();
        shard.shed_load(&snapshot.config);
        if shard.is_suspended() {
            shard.suspend_or_resume();
        } else {
            expire_clients(&shard, &snapshot.config).await;
        }
        retire_sessions(&shard, snapshot.config.general.server_fast_close);
        make_pools_to_keep(&shard, &snapshot.config);
        shard.each_pool(|pool| {
            expire_servers(pool, &snapshot.config);
            pool.warm(&snapshot.config);
            if pool.local.borrow().needs_tick() {
                shard.tick_pools();
            }
        });
        shard.drop_unused_pools(&snapshot.config);
        shard.notice_lost_mail();
        memory::give_back();
        shard.watch_memory();
    }
}

impl Shard {
    /// Measures the process's memory, if it has a budget, and says so when that is used up or not any more.
    fn watch_memory(&self) {
        if self.id != ShardId(0) || memory::max() == 0 {
            return self.is_memory_full.set(false);
        }
        memory::measure();
        let (is_full, used, max) = (
            memory::pressure() >= Pressure::Full,
            memory::used(),
            memory::max(),
        );
        match (self.is_memory_full.replace(is_full), is_full) {
            (false, true) => tracing::warn!(
                "memory: {used} bytes of {max} (memory_max), new clients are refused"
            ),
            (true, false) => tracing::info!(
                "memory: {used} bytes of {max} (memory_max), new clients are let in again"
            ),
            _ => {}
        }
    }
}

/// Closes idle servers that say something but notifications: nothing they say outside of a lease has a
/// reader.
pub(super) async fn watch_idle(shard: Rc<Shard>) {
    let is_first = RefCell::new(true);
    poll_fn::<(), _>(|cx| {
        let moved = shard
            .idle_watch
            .borrow()
            .as_ref()
            .is_none_or(|waker| !waker.will_wake(cx.waker()));
        if moved {
            shard.idle_watch.replace(Some(cx.waker().clone()));
        }
        if !is_first.replace(false) {
            shard.each_pool(|pool| pool.close_noisy());
        }
        Poll::Pending
    })
    .await;
}

/// Looks at the clients when the time of one of them may have come, which with many thousands of idle ones is not at every
/// turn of the upkeep: a look takes some 50 ns for each.
async fn expire_clients(shard: &Shard, config: &Config) {
    let now = shard.net.now();
    if now < shard.expires_at.get() {
        return;
    }
    // Whoever is to be looked at sooner says so meanwhile.
    shard.expires_at.set(now.after(Duration::MAX));
    let (general, differ) = (Timeouts::from(&config.general), config.has_own_timeouts());
    let login = config.general.client_login_timeout;
    let notify = config.general.query_wait_notify;
    // As PgBouncer does.
    let spares_sessions = config.dialect == Dialect::Ini;
    // What begins from now on ends no earlier.
    let mut next = match differ {
        true => now,
        false => now.after(shortest(general, login, notify)),
    };
    let look = |entry: &Rc<ClientEntry>| {
        let timeouts = match entry.who() {
            Some(who) if differ => config.timeouts(&who.database, &who.user),
            _ => general,
        };
        let now = shard.net.now();
        let end = end_of(entry, login, timeouts, spares_sessions);
        let notice = notice_at(entry, notify);
        if let Some((at, farewell)) = end {
            next = next.min(at);
            if now > at {
                entry.send(Signal::Leave(farewell));
                return true;
            }
        }
        if let Some(at) = notice {
            next = next.min(at);
            if now > at {
                entry.is_noticed.set(true);
                entry.send(Signal::Notice);
            }
        }
        true
    };
    shard.each_client(look).await;
    shard.expires_at.set(shard.expires_at.get().min(next));
}

/// The shortest of all times after which a client is told something, if there is any.
fn shortest(timeouts: Timeouts, login: Duration, notify: Duration) -> Duration {
    let Timeouts {
        query_wait,
        query,
        idle_transaction,
        transaction,
        client_idle,
    } = timeouts;
    let all = [
        login,
        notify,
        query_wait,
        query,
        idle_transaction,
        transaction,
        client_idle,
    ];
    let set = all.into_iter().filter(|span| !span.is_zero());
    set.min().unwrap_or(Duration::MAX)
}

/// When a client in line is told where it stands, once.
fn notice_at(entry: &ClientEntry, after: Duration) -> Option<Moment> {
    let is_due =
        entry.state() == ClientState::Waiting && !entry.is_noticed.get() && !after.is_zero();
    is_due.then(|| entry.since.get().after(after))
}

/// When a client has to leave, and why, if it goes on as it does.
fn end_of(
    entry: &ClientEntry,
    login: Duration,
    timeouts: Timeouts,
    spares_sessions: bool,
) -> Option<(Moment, Farewell)> {
    let end = |since: Moment, timeout: Duration, farewell: Farewell| {
        (!timeout.is_zero()).then(|| (since.after(timeout), farewell))
    };
    let since = entry.since.get();
    // The console and replication are exempt from everything but the login timeout.
    let is_console = entry.who().is_some_and(Who::is_console);
    let is_exempt = is_console || entry.replication.get() != Replication::None;
    match entry.state() {
        ClientState::Login | ClientState::WaitingLogin => {
            end(since, login, Farewell::LOGIN_TIMEOUT)
        }
        _ if is_exempt => None,
        ClientState::Idle => end(since, timeouts.client_idle, Farewell::CLIENT_IDLE_TIMEOUT),
        ClientState::Waiting => earlier(
            end(since, timeouts.query, Farewell::QUERY_TIMEOUT_IN_LINE),
            end(since, timeouts.query_wait, Farewell::QUERY_WAIT_TIMEOUT),
        ),
        ClientState::Active => {
            let (query, transaction) = (entry.query_since.get(), entry.transaction_since.get());
            let of_transaction = transaction
                .and_then(|since| end(since, timeouts.transaction, Farewell::TRANSACTION_TIMEOUT));
            let other = match (query, transaction) {
                (Some(query), _) => end(query, timeouts.query, Farewell::QUERY_TIMEOUT),
                (None, Some(_)) => {
                    let idle = timeouts.idle_transaction;
                    end(since, idle, Farewell::IDLE_TRANSACTION_TIMEOUT)
                }
                // Session mode, between two transactions.
                (None, None) if spares_sessions => None,
                (None, None) => end(since, timeouts.client_idle, Farewell::CLIENT_IDLE_TIMEOUT),
            };
            earlier(of_transaction, other)
        }
    }
}

fn earlier(
    one: Option<(Moment, Farewell)>,
    other: Option<(Moment, Farewell)>,
) -> Option<(Moment, Farewell)> {
    one.into_iter().chain(other).min_by_key(|(at, _)| *at)
}

/// Has clients leave whose servers are to be closed: those that have them for replication at once, and with
/// `is_fast` those in session mode at the end of their transactions.
fn retire_sessions(shard: &Shard, is_fast: bool) {
    let mut closing = HashMap::new();
    shard.each_pool(|pool| {
        let entries = pool.entries.borrow();
        for entry in entries.iter().filter_map(std::rc::Weak::upgrade) {
            let is_apart = entry.replication != Replication::None;
            if let (Some(why), Some(client)) = (entry.close_needed.get(), entry.link.get())
                && (is_fast || is_apart)
            {
                closing.insert(client, (is_apart, why));
            }
        }
    });
    if closing.is_empty() {
        return;
    }
    for (_, entry) in shard.clients.borrow().iter() {
        match closing.get(&entry.id) {
            Some((true, why)) => entry.send(Signal::Leave(Farewell::new(why))),
            Some((false, _)) => entry.send(Signal::Retire),
            None => {}
        }
    }
}

/// Makes the pools that are kept open without clients; each on one shard, from which servers travel.
fn make_pools_to_keep(shard: &Rc<Shard>, config: &Config) {
    if shard.phase.get() == Phase::WaitForServers {
        return;
    }
    let shards = shard.common.mesh.shards();
    for database in config.databases.values() {
        if config.min_pool_size(database) > 0
            && let Some(user) = &database.user
            && Homes::of(config, database, user, shards).first() == shard.id
            && let Some(database) = config.database(&database.name)
        {
            shard.pool(&database, user);
        }
    }
}

fn expire_servers(pool: &Rc<Pool>, config: &Config) {
    let general = &config.general;
    let idle_max = general.server_idle_timeout;
    let checks = !general.server_check_query.is_empty();
    let minimum = config.min_pool_size(&pool.database.borrow());
    pool.step(|local, now, actions| {
        let due = |server: &Server, since: Moment| {
            if checks && now.since(since) > general.server_check_delay {
                server.entry.set_state(ServerState::Used);
            }
            None.or_else(|| server.entry.close_needed.get())
                .or_else(|| (!pool.may_stay(server)).then(|| pool.disturbed(server)))
                .or_else(|| pool.has_outlived(server).then_some("server lifetime over"))
        };
        if local.idle().len() == 0 {
            return;
        }
        local.expire_idle(due, actions);
        if !idle_max.is_zero() {
            let is_idle_long = |_: &Server, since| now.since(since) >= idle_max;
            local.expire_spare(minimum, "server idle timeout", is_idle_long, actions);
        }
    });
}

impl Pool {
    /// Opens a server if the pool has fewer than it is to keep, and this shard has a say in that.
    fn warm(self: &Rc<Self>, config: &Config) {
        let minimum = config.min_pool_size(&self.database.borrow());
        let is_stopping = self.is_removed.get() || self.shard.phase.get() == Phase::WaitForServers;
        let is_kept = self.database.borrow().user.is_some()
            || self.stats.cl_active.load() + self.stats.cl_waiting.load() > 0;
        if minimum > 0 && is_kept && !is_stopping {
            self.step(|local, now, actions| local.warm(minimum, now, actions));
        }
    }

    /// Closes idle servers that have said something but notifications, or hung up.
    pub(super) fn close_noisy(self: &Rc<Self>) {
        loop {
            let noisy = self
                .local
                .borrow_mut()
                .remove_idle(|server| !self.may_stay(server));
            let Some(server) = noisy else { return };
            let why = server.entry.close_needed.get();
            let why = why.unwrap_or_else(|| self.disturbed(&server));
            self.close(server, why);
        }
    }
}

impl Shard {
    /// Keeps the pools' tick running for as long as one of them needs it.
    pub(super) fn tick_pools(self: &Rc<Self>) {
        if self.ticking.replace(true) {
            return;
        }
        let shard = self.clone();
        spawn(self.net, async move {
            loop {
                shard.net.sleep(TICK).await;
                let mut is_needed = false;
                shard.each_pool(|pool| {
                    if pool.local.borrow().needs_tick() {
                        is_needed = true;
                        pool.step(|local, now, actions| local.tick(now, actions));
                    }
                });
                if !is_needed {
                    return shard.ticking.set(false);
                }
            }
        });
    }

    /// The watchdog for lost wake-ups: mail that lies here since the last upkeep, with none read.
    fn notice_lost_mail(&self) {
        let received = self.stats.mail_received.load();
        let is_waiting = self.common.mesh.depth(self.id) > 0;
        if is_waiting && self.mail_seen.replace(Some(received)) == Some(received) {
            self.stats.late_wakeups.inc();
            self.net.expect_mail();
        }
        if !is_waiting {
            self.mail_seen.set(None);
        }
    }

    // ---- reload --------------------------------------------------------------------------

    /// Asks the control thread to read the configuration again, and waits for what comes of it.
    pub(super) async fn request_reload(&self) -> Result<(), String> {
        let outcome = self.await_control(Request::Reload).await;
        outcome.unwrap_or(Ok(()))
    }

    /// Asks the control thread to change a setting.
    pub(super) async fn request_set(&self, name: &str, value: &str) -> SetOutcome {
        let (name, value) = (name.to_owned(), value.to_owned());
        let outcome = self.await_control(|answer| Request::Set {
            name,
            value,
            answer,
        });
        outcome.await.unwrap_or(SetOutcome::Failed)
    }

    /// Makes a request of the control thread and waits for its answer.
    async fn await_control<T: Send + 'static>(
        &self,
        request: impl FnOnce(Box<dyn FnOnce(T) + Send>) -> Request,
    ) -> Option<T> {
        let outcome = Arc::new(Outcome::default());
        let told = outcome.clone();
        let tell = Box::new(move |result| told.set(result));
        self.common.request(request(tell));
        while !outcome.is_set.load(Ordering::Acquire) {
            self.net.sleep(TICK).await;
        }
        outcome.take()
    }

    /// A new configuration is in force.
    pub(super) fn reload_with(self: &Rc<Self>, snapshot: Arc<Snapshot>) {
        let old = self.snapshot.replace(snapshot.clone());
        self.expires_at.take();
        self.obey();
        self.each_pool(|pool| pool.reload_with(&old, &snapshot));
        let config = &snapshot.config;
        let entries: Vec<_> = self
            .clients
            .borrow()
            .iter()
            .filter(|(_, entry)| {
                let who = entry.who().filter(|who| !who.is_console());
                who.is_some_and(|who| config.database(&who.database).is_none())
            })
            .map(|(_, entry)| entry.clone())
            .collect();
        for entry in entries {
            entry.send(Signal::Leave(Farewell::DATABASE_REMOVED));
        }
    }
}

impl Pool {
    fn reload_with(self: &Rc<Self>, before: &Snapshot, snapshot: &Snapshot) {
        let (database, user) = (&self.common.key.database, &self.common.key.user);
        if before.users.lookup(user) != snapshot.users.lookup(user) {
            // What earlier logins taught is out of date.
            let nothing = crate::auth::ServerCredentials::Nothing;
            self.common.credentials.store(Arc::new(nothing));
        }
        let Some(new) = snapshot.config.database(database) else {
            self.is_removed.set(true);
            self.fail_waiters(&Farewell::DATABASE_REMOVED);
            return self.retire("database removed");
        };
        self.is_removed.set(false);
        self.terms.set(terms(&snapshot.config, &new, user));
        self.take_settings(&snapshot.config.general);
        let old = self.database.replace(new.clone());
        let is_other_users = match &new.user {
            Some(forced) => **forced != **user,
            None => old.user.is_some(),
        };
        if is_other_users {
            self.user_changes.set(self.user_changes.get() + 1);
            self.deny_waiters(&Denial::Displaced);
        }
        if !old.same_server(&new) {
            let machine = self.shard.common.openings_at(&new);
            self.local.borrow_mut().open_at(machine);
            self.common.welcome.store(None);
            self.retire("database configuration changed");
        } else if new.is_over_tcp() && before.tls.servers_differ(&snapshot.tls) {
            self.common.welcome.store(None);
            self.retire("server TLS settings changed");
        }
        // The control thread has changed the limit already.
        self.step(|local, now, actions| local.poke(now, actions));
    }

    /// Closes every server as soon as nobody uses it.
    fn retire(self: &Rc<Self>, why: &'static str) {
        self.retire_below(u64::MAX, why);
    }

    /// The same for those with ids below `limit`.
    pub(super) fn retire_below(self: &Rc<Self>, limit: u64, why: &'static str) {
        let entries = self.entries.borrow();
        let living = entries.iter().filter_map(std::rc::Weak::upgrade);
        for entry in living.filter(|entry| entry.id.0 < limit) {
            entry.close_needed.set(Some(why));
        }
        drop(entries);
        let due = |server: &Server, _| (server.entry.id.0 < limit).then_some(why);
        self.step(|local, _, actions| local.expire_idle(due, actions));
    }
}

/// What became of a request to the control thread.
struct Outcome<T> {
    is_set: AtomicBool,
    result: std::sync::Mutex<Option<T>>,
}

impl<T> Default for Outcome<T> {
    fn default() -> Outcome<T> {
        Outcome {
            is_set: AtomicBool::new(false),
            result: std::sync::Mutex::new(None),
        }
    }
}

impl<T> Outcome<T> {
    fn set(&self, result: T) {
        *self
            .result
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(result);
        self.is_set.store(true, Ordering::Release);
    }

    fn take(&self) -> Option<T> {
        let mut result = self
            .result
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        result.take()
    }
}
