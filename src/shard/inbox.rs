//! Mail: one match over all messages, and questions to all shards.

use super::message::{Answer, Ask, Mail};
use super::root::Shard;
use crate::admin::{
    ClientRow, Hold, Later, Office, Order, Pick, Records, Refusal, ServerRow, SetOutcome, Shutdown,
    StatementRow,
};
use crate::base::{Moment, ShardId};
use crate::client::{ClientEntry, ClientState};
use crate::session::Statement;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// How long a shard waits for the answers of the others.
const ANSWER_SPAN: Duration = Duration::from_secs(10);
/// Pause before a message is posted again that found a mailbox full.
const REPOST: Duration = Duration::from_millis(1);
/// Clients looked at in one go: some tenths of a millisecond.
const SLICE: usize = 512;
/// How much of a statement's text is shown, in bytes.
const TEXT_BYTES_MAX: usize = 1000;
/// Pause between two slices.
const SLICE_PAUSE: Duration = Duration::from_micros(200);
/// Messages handled before tasks get a turn.
const BATCH: usize = 64;

/// Has this shard's mail handled for ever.
pub(super) fn open(shard: &Rc<Shard>) {
    let reader = shard.clone();
    shard.net.on_mail(move || reader.read_mail());
    // What came before.
    shard.net.expect_mail();
}

impl Shard {
    fn read_mail(self: &Rc<Self>) {
        let mesh = &self.common.mesh;
        mesh.woken(self.id);
        self.stats
            .mailbox_depth_max
            .raise(mesh.depth(self.id) as u64);
        for _ in 0..BATCH {
            let Some(mail) = mesh.take(self.id) else {
                return;
            };
            self.stats.mail_received.inc();
            self.handle(mail);
        }
        self.net.expect_mail();
    }

    fn handle(self: &Rc<Self>, mail: Mail) {
        match mail {
            Mail::Server { parcel, from, hops } => {
                let key = super::PoolKey {
                    database: parcel.pool().0.clone(),
                    user: parcel.pool().1.clone(),
                };
                let pool = self.pool_of(&key).unwrap_or_else(|| {
                    // Its database has gone: it is received all the same, to be closed in good order.
                    let pool = self.pool(parcel.dialled(), &key.user);
                    pool.is_removed.set(true);
                    pool
                });
                pool.arrived(*parcel, from, hops);
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
            Mail::Evict { pool, due, why } => {
                if let Some(pool) = self.pool_of(&pool) {
                    pool.evict(due, why);
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
                self.admit_greeted(*greeted);
            }
            Mail::Traveller(traveller) => self.admit_traveller(traveller),
            Mail::Resides { key, at, moves } => self.client_resides(&key, at, moves),
            Mail::Left { key } => self.client_is_gone(&key),
            Mail::Question { ask, from, ticket } => self.question(ask, from, ticket),
            Mail::Answer { ticket, answer } => self.answered(ticket, answer),
            Mail::Orders => self.obey(),
            Mail::Reload { snapshot, version } => {
                self.reload_with(snapshot);
                self.common.reloaded.note(self.id, version);
            }
            Mail::Addresses => self.addresses_changed(),
            Mail::Phase(phase) => self.enter(phase),
        }
    }

    // ---- questions -----------------------------------------------------------------------

    fn question(self: &Rc<Self>, ask: Ask, from: ShardId, ticket: u64) {
        match ask {
            Ask::Clients(wanted) => {
                let shard = self.clone();
                crate::net::spawn(self.net, async move {
                    let rows = shard.client_rows(&wanted).await;
                    shard.reply(from, ticket, Answer::Clients(rows));
                });
            }
            Ask::Servers(wanted) => {
                let rows = Answer::Servers(self.server_rows(&wanted));
                self.reply(from, ticket, rows);
            }
            Ask::Statements => {
                let shard = self.clone();
                crate::net::spawn(self.net, async move {
                    let rows = shard.statement_rows().await;
                    shard.reply(from, ticket, Answer::Statements(rows));
                });
            }
            Ask::Killed => self.reply(from, ticket, Answer::Count(self.killed_here())),
            Ask::Unsuspended(is_overdue) => {
                let count = self.unsuspended_here(is_overdue);
                self.reply(from, ticket, Answer::Count(count));
            }
            Ask::ToBeClosed(scope) => {
                let count = self.to_be_closed_here(scope.as_deref());
                self.reply(from, ticket, Answer::Count(count));
            }
            Ask::Cancel(key) => {
                let shard = self.clone();
                crate::net::spawn(self.net, async move {
                    let is_found = shard.cancel_here(&key).await;
                    shard.reply(from, ticket, Answer::Found(is_found));
                });
            }
            Ask::KillClient(id) => {
                let shard = self.clone();
                crate::net::spawn(self.net, async move {
                    let count = shard.kill_client_here(id).await;
                    shard.reply(from, ticket, Answer::Count(count));
                });
            }
            Ask::CancelStray(key) => {
                let Some(entry) = self.client_with(&key) else {
                    return self.reply(from, ticket, Answer::Found(false));
                };
                let shard = self.clone();
                crate::net::spawn(self.net, async move {
                    shard.cancel_client(&entry).await;
                    shard.reply(from, ticket, Answer::Found(true));
                });
            }
        }
    }

    fn reply(self: &Rc<Self>, to: ShardId, ticket: u64, answer: Answer) {
        if to == self.id {
            return self.answered(ticket, answer);
        }
        self.post_surely(to, Mail::Answer { ticket, answer });
    }

    /// Posts a message that must not be lost, as soon as the mailbox has room.
    pub(super) fn post_surely(self: &Rc<Self>, to: ShardId, mail: Mail) {
        let Err(mut mail) = self.post(to, mail) else {
            return;
        };
        let shard = self.clone();
        crate::net::spawn(self.net, async move {
            loop {
                shard.net.sleep(REPOST).await;
                match shard.post(to, mail) {
                    Ok(()) => return,
                    Err(back) => mail = back,
                }
            }
        });
    }

    fn answered(&self, ticket: u64, answer: Answer) {
        if let Some(gathering) = self.tickets.borrow_mut().get_mut(&ticket) {
            gathering.answers.push(answer);
            if let Some(waker) = &gathering.waker {
                waker.wake_by_ref();
            }
        }
    }

    /// Asks `shards` and waits for their answers, for `span` at most; a full mailbox is tried again.
    pub(super) async fn gather(
        self: &Rc<Self>,
        ask: Ask,
        shards: impl Iterator<Item = ShardId>,
        span: Duration,
    ) -> Vec<Answer> {
        let ticket = self.next_ticket.replace(self.next_ticket.get() + 1);
        self.tickets.borrow_mut().insert(ticket, Default::default());
        let _end = Ticket(self, ticket);
        let mut unasked: Vec<ShardId> = shards.collect();
        let asked = unasked.len();
        let answered = async {
            loop {
                unasked.retain(|to| !self.ask(*to, &ask, ticket));
                if unasked.is_empty() {
                    return self.answers(ticket, asked).await;
                }
                self.net.sleep(REPOST).await;
            }
        };
        let _ = self.net.until(self.net.now().after(span), answered).await;
        let gathering = self.tickets.borrow_mut().remove(&ticket);
        gathering.map_or_else(Vec::new, |gathering| gathering.answers)
    }

    /// Asks one shard; false if its mailbox is full.
    fn ask(self: &Rc<Self>, to: ShardId, ask: &Ask, ticket: u64) -> bool {
        let (ask, from) = (ask.clone(), self.id);
        if to == self.id {
            self.question(ask, from, ticket);
            return true;
        }
        self.post(to, Mail::Question { ask, from, ticket }).is_ok()
    }

    /// Waits for so many answers.
    async fn answers(&self, ticket: u64, count: usize) {
        poll_fn(|cx| {
            let mut tickets = self.tickets.borrow_mut();
            let Some(gathering) = tickets.get_mut(&ticket) else {
                return Poll::Ready(());
            };
            gathering.waker = Some(cx.waker().clone());
            if gathering.answers.len() >= count {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    pub(super) fn all_shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.common.mesh.shards()).map(|id| ShardId(id as u16))
    }

    async fn client_rows(&self, wanted: &Pick<ClientRow>) -> Vec<ClientRow> {
        let mut rows = Vec::new();
        if wanted.limit == 0 {
            return rows;
        }
        self.each_client(|entry| {
            let row = client_row(entry, self.id, self.net.now());
            rows.extend((wanted.keep)(&row).then_some(row));
            rows.len() < wanted.limit
        })
        .await;
        rows
    }

    /// Looks at one slice of the clients after the other while `look` says so, and lets the shard do its work in between.
    pub(super) async fn each_client(&self, mut look: impl FnMut(&Rc<ClientEntry>) -> bool) {
        let mut slots = 0..;
        loop {
            {
                let clients = self.clients.borrow();
                // Slots are never higher than there have been clients at a time.
                for slot in slots.by_ref().take(SLICE) {
                    if slot >= clients.capacity() || !clients.get(slot).is_none_or(&mut look) {
                        return;
                    }
                }
            }
            // Merely yielding would keep the ring waiting.
            self.net.sleep(SLICE_PAUSE).await;
        }
    }

    /// The same for statements.
    async fn statement_rows(&self) -> Vec<StatementRow> {
        let all = self.stores.statements.borrow().all();
        let mut rows = Vec::with_capacity(all.len());
        for slice in all.chunks(SLICE) {
            rows.extend(slice.iter().map(statement_row));
            self.net.sleep(SLICE_PAUSE).await;
        }
        rows
    }

    fn server_rows(&self, wanted: &Pick<ServerRow>) -> Vec<ServerRow> {
        let mut rows = Vec::new();
        self.each_pool(|pool| {
            let entries = pool.entries.borrow();
            let living = entries.iter().filter_map(std::rc::Weak::upgrade);
            let all = living.map(|entry| ServerRow {
                shard: self.id,
                id: entry.id.0,
                user: entry.user.clone(),
                database: entry.database.clone(),
                replication: entry.replication,
                state: entry.state(),
                remote: entry.remote.clone(),
                local: entry.local.clone(),
                connected_unix_us: entry.connected_unix_us,
                requested_unix_us: entry.requested_unix_us.get(),
                close_needed: entry.close_needed.get().is_some(),
                tls: entry.tls,
                link: entry.link.get().map(|client| client.0),
                remote_pid: entry.process_id(),
                application_name: entry.application_name.borrow().clone(),
                prepared_statements: entry.prepared.get(),
            });
            rows.extend(all.filter(|row| (wanted.keep)(row)));
        });
        rows.truncate(wanted.limit);
        rows
    }
}

/// Ends a gathering, also one whose task is dropped.
struct Ticket<'a>(&'a Shard, u64);

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.0.tickets.borrow_mut().remove(&self.1);
    }
}

fn client_row(entry: &ClientEntry, shard: ShardId, now: Moment) -> ClientRow {
    let who = entry.who();
    let is_waiting = entry.state() == ClientState::Waiting;
    ClientRow {
        shard,
        id: entry.id.0,
        user: who.map_or_else(|| "".into(), |who| who.user.clone()),
        database: who.map_or_else(|| "".into(), |who| who.database.clone()),
        replication: entry.replication.get(),
        state: entry.state(),
        remote: entry.remote.clone(),
        local: (*entry.local).clone(),
        connected_unix_us: entry.connected_unix_us,
        requested_unix_us: entry.requested_unix_us.get(),
        wait_us: if is_waiting {
            now.since(entry.since.get()).as_micros() as u64
        } else {
            0
        },
        link: entry.link.get().map(|server| server.0),
        application_name: entry.application_name.borrow().clone(),
        prepared_statements: entry.prepared.get() as usize,
        tls: entry.tls(),
    }
}

fn statement_row(statement: &Rc<Statement>) -> StatementRow {
    let text = statement.body().split(|byte| *byte == 0).next();
    let text = text.unwrap_or_default();
    let shown = text.get(..TEXT_BYTES_MAX).unwrap_or(text);
    let usage = statement.usage();
    StatementRow {
        name: statement.name().to_owned(),
        text: String::from_utf8_lossy(shown).into_owned(),
        bytes: statement.bytes(),
        // Less the one that is held here.
        names: Rc::strong_count(statement).saturating_sub(1),
        hits: usage.hits(),
        misses: usage.misses(),
        evictions: usage.evictions(),
    }
}

/// The console's view of the process, from this shard.
pub(super) struct Desk {
    shard: Rc<Shard>,
    /// Whose session it is.
    client: Rc<ClientEntry>,
    /// The order that the session waits for.
    under_way: RefCell<Option<Order>>,
    /// The version of the orders by which it has ordered a suspension, which ends with it.
    suspended_by: Cell<Option<u64>>,
    /// A cancel request has come since it last began to wait.
    is_cancelled: Cell<bool>,
}

impl Desk {
    pub(super) fn new(shard: Rc<Shard>, client: Rc<ClientEntry>) -> Desk {
        let under_way = RefCell::default();
        Desk {
            shard,
            client,
            under_way,
            suspended_by: Cell::default(),
            is_cancelled: Cell::default(),
        }
    }

    /// Ctrl-C: ends the pause of the whole process, or else the one that the session waits for; and its wait for
    /// something that goes on without it.
    pub(super) fn cancel(&self) {
        self.is_cancelled.set(true);
        self.end_pause();
    }

    fn end_pause(&self) {
        let ends = if self.shard.hold() != Hold::None {
            Order::Resume(None)
        } else if let Some(Order::Pause(Some(name))) = &*self.under_way.borrow() {
            Order::Resume(Some(name.clone()))
        } else {
            return;
        };
        let shard = self.shard.clone();
        crate::net::spawn(shard.net, async move {
            // If it is refused, somebody else was faster.
            let _ = shard.command(&ends).await;
        });
    }

    /// Waits for `work`, unless a cancel request ends that. Nobody has to be woken for it: the session's task is what hears
    /// of the request.
    async fn unless_cancelled(
        &self,
        work: impl Future<Output = Result<(), Refusal>>,
    ) -> Result<(), Refusal> {
        self.is_cancelled.set(false);
        let cancelled = poll_fn(|_| match self.is_cancelled.get() {
            true => Poll::Ready(Err(Refusal::WaitEnded)),
            false => Poll::Pending,
        });
        futures_lite::future::or(work, cancelled).await
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let orders = self.shard.common.board.newest();
        let mine = self.suspended_by.get();
        if mine.is_some_and(|version| orders.is_suspended_by(version)) {
            self.end_pause();
        }
    }
}

impl Office for Desk {
    fn records(&self) -> &dyn Records {
        &*self.shard.common
    }

    fn shard(&self) -> ShardId {
        self.shard.id
    }

    fn clients(&self, wanted: Pick<ClientRow>) -> Later<'_, Vec<ClientRow>> {
        Box::pin(async {
            let answers = self
                .shard
                .gather(Ask::Clients(wanted), self.shard.all_shards(), ANSWER_SPAN)
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

    fn servers(&self, wanted: Pick<ServerRow>) -> Later<'_, Vec<ServerRow>> {
        Box::pin(async {
            let answers = self
                .shard
                .gather(Ask::Servers(wanted), self.shard.all_shards(), ANSWER_SPAN)
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

    fn statements(&self) -> Later<'_, Vec<StatementRow>> {
        Box::pin(async {
            let shards = self.shard.all_shards();
            let answers = self.shard.gather(Ask::Statements, shards, ANSWER_SPAN);
            let mut rows = HashMap::<String, StatementRow>::new();
            for answer in answers.await {
                let Answer::Statements(some) = answer else {
                    continue;
                };
                for row in some {
                    match rows.entry(row.name.clone()) {
                        Entry::Vacant(entry) => drop(entry.insert(row)),
                        Entry::Occupied(mut entry) => {
                            let sum = entry.get_mut();
                            sum.bytes += row.bytes;
                            sum.names += row.names;
                            sum.hits += row.hits;
                            sum.misses += row.misses;
                            sum.evictions += row.evictions;
                        }
                    }
                }
            }
            rows.into_values().collect()
        })
    }

    fn order<'a>(&'a self, order: &'a Order) -> Later<'a, Result<(), Refusal>> {
        Box::pin(async move {
            self.under_way.replace(Some(order.clone()));
            let version = self.shard.common.give(order, self.shard.phase.get())?;
            if *order == Order::Suspend {
                self.suspended_by.set(Some(version));
            }
            let carrying_out = self.shard.carry_out(order, version);
            let outcome = match order {
                // What it has killed and paused stays so.
                Order::Kill(_) => self.unless_cancelled(carrying_out).await,
                _ => carrying_out.await,
            };
            self.under_way.take();
            outcome
        })
    }

    fn wait_close<'a>(&'a self, database: Option<&'a str>) -> Later<'a, Result<(), Refusal>> {
        tracing::info!(command = "WAIT_CLOSE", database, "command issued");
        Box::pin(self.unless_cancelled(self.shard.closed(database)))
    }

    fn kill_client(&self, id: u64) -> Later<'_, Result<(), Refusal>> {
        Box::pin(self.shard.kill_client(id))
    }

    fn set<'a>(&'a self, name: &'a str, value: &'a str) -> Later<'a, SetOutcome> {
        Box::pin(self.shard.request_set(name, value))
    }

    fn reload(&self) -> Later<'_, Result<(), String>> {
        tracing::info!(command = "RELOAD", "command issued");
        Box::pin(self.shard.request_reload())
    }

    fn hear(&self, refusal: &Refusal) {
        self.shard.log_refusal(&self.client, refusal);
    }

    fn shutdown(&self, how: Shutdown) {
        use super::shared::{Phase, Request};
        let command = match how {
            Shutdown::Now => "SHUTDOWN",
            Shutdown::WaitForClients => "SHUTDOWN WAIT_FOR_CLIENTS",
            Shutdown::WaitForServers => "SHUTDOWN WAIT_FOR_SERVERS",
        };
        tracing::info!(command, "command issued");
        self.shard.common.request(Request::Shutdown(match how {
            Shutdown::Now => None,
            Shutdown::WaitForClients => Some(Phase::WaitForClients),
            Shutdown::WaitForServers => Some(Phase::WaitForServers),
        }));
    }
}
