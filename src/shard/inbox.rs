//! Mail: one match over all messages, and questions to all shards.

use super::message::{Answer, Ask, Mail};
use super::root::Shard;
use crate::admin::{ClientRow, Later, Office, PoolRow, ServerRow, Shutdown, UserRow};
use crate::base::{Moment, ShardId};
use crate::client::{ClientEntry, ClientState};
use crate::config::Config;
use crate::stats::{PeriodHistory, Registry};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

/// How long a shard waits for the answers of the others.
const ANSWER_SPAN: Duration = Duration::from_secs(2);
/// Messages handled before other tasks get a turn.
const BATCH: usize = 64;

/// Handles this shard's mail for ever.
pub(super) async fn run(shard: Rc<Shard>) {
    let mesh = &shard.common.mesh;
    loop {
        shard.net.mail().await;
        mesh.woken(shard.id);
        shard
            .stats
            .mailbox_depth_max
            .raise(mesh.depth(shard.id) as u64);
        let mut handled = 0;
        while let Some(mail) = mesh.take(shard.id) {
            shard.stats.mail_received.inc();
            shard.handle(mail);
            handled += 1;
            if handled % BATCH == 0 {
                futures_lite::future::yield_now().await;
            }
        }
    }
}

impl Shard {
    fn handle(self: &Rc<Self>, mail: Mail) {
        match mail {
            Mail::Server { parcel, from, hops } => {
                let key = super::PoolKey {
                    database: parcel.pool().0.clone(),
                    user: parcel.pool().1.clone(),
                };
                match self.pool_of(&key) {
                    Some(pool) => pool.arrived(*parcel, from, hops),
                    // Its database is gone: the parcel closes, and the permits with the pool.
                    None => drop(parcel),
                }
            }
            Mail::WantServer { pool, from } => {
                if let Some(pool) = self.pool_of(&pool) {
                    pool.step(|local, _, actions| local.asked(from, actions));
                }
            }
            Mail::NoServer { pool, from } => {
                if let Some(pool) = self.pool_of(&pool) {
                    pool.step(|local, now, actions| local.declined(from, now, actions));
                }
            }
            Mail::Wake { pool } => {
                if let Some(pool) = self.pool_of(&pool) {
                    pool.step(|local, now, actions| local.poke(now, actions));
                }
            }
            Mail::Evict { pool } => {
                if let Some(pool) = self.pool_of(&pool) {
                    pool.evict();
                }
            }
            Mail::LoginRefused { pool, farewell } => {
                if let Some(pool) = self.pools.borrow().get(&pool) {
                    pool.fail_waiters(&farewell);
                }
            }
            Mail::Client(socket) => {
                self.stats.clients_in.inc();
                self.admit(socket);
            }
            Mail::Greeted(greeted) => {
                self.stats.clients_in.inc();
                self.admit_greeted(greeted);
            }
            Mail::Question { ask, from, ticket } => self.question(ask, from, ticket),
            Mail::Answer { ticket, answer } => self.answered(ticket, answer),
            Mail::Reload(snapshot) => self.reload_with(snapshot),
            Mail::Phase(phase) => self.enter(phase),
        }
    }

    // ---- questions -----------------------------------------------------------------------

    fn question(self: &Rc<Self>, ask: Ask, from: ShardId, ticket: u64) {
        match ask {
            Ask::Clients => self.reply(from, ticket, Answer::Clients(self.client_rows())),
            Ask::Servers => self.reply(from, ticket, Answer::Servers(self.server_rows())),
            Ask::Cancel(key) => {
                let shard = self.clone();
                crate::net::spawn(self.net, async move {
                    shard.cancel_here(&key).await;
                    shard.reply(from, ticket, Answer::Done);
                });
            }
        }
    }

    fn reply(&self, to: ShardId, ticket: u64, answer: Answer) {
        if to == self.id {
            return self.answered(ticket, answer);
        }
        let _ = self.post(to, Mail::Answer { ticket, answer });
    }

    fn answered(&self, ticket: u64, answer: Answer) {
        if let Some(gathering) = self.tickets.borrow_mut().get_mut(&ticket) {
            gathering.answers.push(answer);
            if let Some(waker) = &gathering.waker {
                waker.wake_by_ref();
            }
        }
    }

    /// Asks `shards` and waits for their answers, for `span` at most.
    pub(super) async fn gather(
        self: &Rc<Self>,
        ask: Ask,
        shards: impl Iterator<Item = ShardId>,
        span: Duration,
    ) -> Vec<Answer> {
        let ticket = self.next_ticket.replace(self.next_ticket.get() + 1);
        self.tickets.borrow_mut().insert(ticket, Default::default());
        let mut asked = 0;
        for to in shards {
            if to == self.id {
                self.question(ask.clone(), to, ticket);
                asked += 1;
            } else if self
                .post(
                    to,
                    Mail::Question {
                        ask: ask.clone(),
                        from: self.id,
                        ticket,
                    },
                )
                .is_ok()
            {
                asked += 1;
            }
        }
        let answers = poll_fn(|cx| {
            let mut tickets = self.tickets.borrow_mut();
            let Some(gathering) = tickets.get_mut(&ticket) else {
                return Poll::Ready(());
            };
            gathering.waker = Some(cx.waker().clone());
            if gathering.answers.len() >= asked {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        let _ = self.net.until(self.net.now().after(span), answers).await;
        let gathering = self.tickets.borrow_mut().remove(&ticket);
        gathering.map_or_else(Vec::new, |gathering| gathering.answers)
    }

    pub(super) fn all_shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.common.mesh.shards()).map(|id| ShardId(id as u16))
    }

    fn client_rows(&self) -> Vec<ClientRow> {
        let now = self.net.now();
        self.clients
            .borrow()
            .iter()
            .map(|(_, entry)| client_row(entry, self.id, now))
            .collect()
    }

    fn server_rows(&self) -> Vec<ServerRow> {
        let mut rows = Vec::new();
        self.each_pool(|pool| {
            let entries = pool.entries.borrow();
            let living = entries.iter().filter_map(std::rc::Weak::upgrade);
            rows.extend(living.map(|entry| ServerRow {
                shard: self.id,
                id: entry.id.0,
                user: entry.user.clone(),
                database: entry.database.clone(),
                state: entry.state(),
                remote: entry.remote.clone(),
                local: entry.local.clone(),
                connected_unix_us: entry.connected_unix_us,
                requested_unix_us: entry.requested_unix_us.get(),
                close_needed: entry.close_needed.get().is_some(),
                link: entry.link.get().map(|client| client.0),
                remote_pid: entry.process_id(),
                prepared_statements: entry.prepared.get(),
            }));
        });
        rows
    }
}

fn client_row(entry: &ClientEntry, shard: ShardId, now: Moment) -> ClientRow {
    let who = entry.who();
    let link = entry.link.get();
    let is_waiting = entry.state() == ClientState::Waiting;
    ClientRow {
        shard,
        id: entry.id.0,
        user: who.map_or_else(|| "".into(), |who| who.user.clone()),
        database: who.map_or_else(|| "".into(), |who| who.database.clone()),
        state: entry.state(),
        remote: entry.remote.clone(),
        local: entry.local.clone(),
        connected_unix_us: entry.connected_unix_us,
        requested_unix_us: entry.requested_unix_us.get(),
        wait_us: if is_waiting {
            now.since(entry.since.get()).as_micros() as u64
        } else {
            0
        },
        link: link.map(|server| server.id.0),
        remote_pid: link.map_or(0, |server| server.process_id),
        application_name: entry.application_name.borrow().clone(),
        prepared_statements: entry.prepared.get(),
    }
}

/// The console's view of the process, from this shard.
pub(super) struct Desk(pub(super) Rc<Shard>);

impl Office for Desk {
    fn shard(&self) -> ShardId {
        self.0.id
    }

    fn clients(&self) -> Later<'_, Vec<ClientRow>> {
        Box::pin(async {
            let answers = self
                .0
                .gather(Ask::Clients, self.0.all_shards(), ANSWER_SPAN)
                .await;
            let mut rows = Vec::new();
            for answer in answers {
                if let Answer::Clients(some) = answer {
                    rows.extend(some);
                }
            }
            rows
        })
    }

    fn servers(&self) -> Later<'_, Vec<ServerRow>> {
        Box::pin(async {
            let answers = self
                .0
                .gather(Ask::Servers, self.0.all_shards(), ANSWER_SPAN)
                .await;
            let mut rows = Vec::new();
            for answer in answers {
                if let Answer::Servers(some) = answer {
                    rows.extend(some);
                }
            }
            rows
        })
    }

    fn pools(&self) -> Vec<PoolRow> {
        let config = self.config();
        let rows = self.0.common.pools().into_iter().filter_map(|pool| {
            let database = config.database(&pool.key.database)?;
            Some(PoolRow {
                mode: config.pool_mode(&database, &pool.key.user),
                open: pool.shared.open(),
                limit: pool.shared.limit(),
                database: pool.key.database.clone(),
                user: pool.key.user.clone(),
            })
        });
        rows.collect()
    }

    fn users(&self) -> Vec<UserRow> {
        let snapshot = self.0.snapshot();
        let mut open = HashMap::<Arc<str>, u32>::new();
        for pool in self.0.common.pools() {
            *open.entry(pool.key.user.clone()).or_default() += pool.shared.open();
        }
        let names = snapshot.users.names().map(str::to_owned);
        let rows = names.map(|name| UserRow {
            current_connections: open.get(&*name).copied().unwrap_or_default(),
            current_client_connections: None,
            name,
        });
        rows.collect()
    }

    fn config(&self) -> Arc<Config> {
        self.0.snapshot.borrow().config.clone()
    }

    fn registry(&self) -> &Registry {
        &self.0.common.registry
    }

    fn history(&self) -> &Mutex<PeriodHistory> {
        &self.0.common.history
    }

    fn mailbox_depth(&self, shard: ShardId) -> usize {
        self.0.common.mesh.depth(shard)
    }

    fn reload(&self) -> Later<'_, Result<(), String>> {
        Box::pin(self.0.request_reload())
    }

    fn shutdown(&self, how: Shutdown) {
        use super::shared::{Phase, Request};
        self.0.common.request(Request::Shutdown(match how {
            Shutdown::Now => None,
            Shutdown::WaitForClients => Some(Phase::WaitForClients),
            Shutdown::WaitForServers => Some(Phase::WaitForServers),
        }));
    }
}
