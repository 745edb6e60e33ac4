//! The loop of one client.
//!
//! ```text
//!          request              granted               clean
//!  Idle ────────────► Waiting ───────────► Active ──────────────► Idle
//!    │ leaves            │ leaves, timeout,   │ session mode: stays until the client leaves
//!    ▼                   ▼ cancelled          ▼ leaves in the middle, or the server dies: server closed
//! ```

use super::downstream::{self, Audience, Downstream};
use super::lease::{Denial, Grant, Servers, Waiter};
use super::outlet::{Outlet, Passed};
use super::spoken::Spoken;
use super::upstream::{self, Counts, Exchange, Idle, Rules, Skipped, Upstream};
use crate::base::{Clock, ShardId};
use crate::client::{ClientEntry, ClientState, Farewell, Signal, Suspension};
use crate::config::PoolMode;
use crate::net::{Chunk, Net, Socket};
use crate::server::{Server, ServerState, request_settings};
use crate::session::{ClientStatements, Generation, Setting, Settings, Statements};
use crate::stats::PoolStats;
use crate::wire::SqlState;
use crate::wire::backend::{self, Report, Severity, TransactionStatus};
use std::borrow::Cow;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Replies that one client may be owed: a bound on memory, far above any driver's pipeline.
const OWED_MAX: usize = 1 << 18;

/// What a relay is made from.
pub struct RelaySettings {
    /// When servers go back.
    pub mode: PoolMode,
    /// Named statements a server keeps (`max_prepared_statements`); 0 passes names on unchanged.
    pub prepared_max: usize,
    /// Largest message (`max_packet_size`).
    pub packet_bytes_max: usize,
    /// Whether a name in use or unknown costs the client its connection.
    pub is_strict: bool,
    /// Whether a Query costs the client its connection (`disable_pqexec`).
    pub refuses_query: bool,
    /// The pool's generation of statements.
    pub generation: Arc<Generation>,
}

/// How a client's connection ended.
#[derive(Debug)]
pub enum Ending {
    /// It said so.
    Terminated,
    /// It hung up, or its connection broke.
    Vanished,
    /// It was sent away.
    SentAway(Farewell),
    /// It was cut off, as it had got part of a message and could be told nothing.
    CutOff(Farewell),
    /// It has not ended: it is between two requests and is to go on at that shard.
    Moving(ShardId),
    /// It has not ended: it is to ask another pool for a server (see [`Relay::change_pool`]).
    Displaced,
}

enum Event {
    FromServer(Chunk),
    FromClient(Chunk),
    ServerGone,
    ClientGone,
    Signal(Signal),
}

/// A logged-in client.
pub struct Relay {
    pub(super) net: Net,
    pub(super) socket: Socket,
    pub(super) entry: Rc<ClientEntry>,
    pub(super) servers: Rc<dyn Servers>,
    pub(super) statements: Rc<RefCell<Statements>>,
    pub(super) stats: Arc<PoolStats>,
    pub(super) mode: PoolMode,
    pub(super) rules: Rules,
    pub(super) settings: Settings,
    /// Some server has taken the settings already.
    pub(super) are_settings_proven: bool,
    pub(super) names: ClientStatements,
    pub(super) generation: Arc<Generation>,
    pub(super) spoken: Spoken,
    pub(super) upstream: Upstream,
    /// The server is to be closed, and the client with it, at the end of a transaction.
    pub(super) is_retiring: bool,
    /// Bytes that came ahead of their time.
    pub(super) ahead: Option<Chunk>,
}

type Step<T> = Result<T, Ending>;

fn sent_away(farewell: Farewell) -> Ending {
    Ending::SentAway(farewell)
}

impl Relay {
    /// A client on `socket`, of which `ahead` has been read already.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        net: Net,
        socket: Socket,
        ahead: Vec<u8>,
        entry: Rc<ClientEntry>,
        servers: Rc<dyn Servers>,
        statements: Rc<RefCell<Statements>>,
        stats: Arc<PoolStats>,
        settings: Settings,
        options: RelaySettings,
    ) -> Relay {
        stats.bytes_received.add(ahead.len() as u64);
        // In session mode a client's names are the server's names.
        let prepared_max = if options.mode == PoolMode::Session {
            0
        } else {
            options.prepared_max
        };
        Relay {
            net,
            socket,
            entry,
            servers,
            statements,
            stats,
            mode: options.mode,
            rules: Rules {
                prepared_max,
                body_bytes_max: options.packet_bytes_max,
                is_strict: options.is_strict,
                refuses_query: options.refuses_query,
                looks_at_query: options.refuses_query || prepared_max > 0,
            },
            settings,
            are_settings_proven: false,
            names: ClientStatements::default(),
            generation: options.generation,
            spoken: Spoken::default(),
            upstream: Upstream::default(),
            is_retiring: false,
            ahead: (!ahead.is_empty()).then(|| Chunk::from_vec(net, ahead)),
        }
    }

    /// What a relay like this one is made from.
    pub(super) fn options(&self) -> RelaySettings {
        RelaySettings {
            mode: self.mode,
            prepared_max: self.rules.prepared_max,
            packet_bytes_max: self.rules.body_bytes_max,
            is_strict: self.rules.is_strict,
            refuses_query: self.rules.refuses_query,
            generation: self.generation.clone(),
        }
    }

    /// From now on the client gets its servers from another pool.
    pub fn change_pool(
        &mut self,
        servers: Rc<dyn Servers>,
        stats: Arc<PoolStats>,
        generation: Arc<Generation>,
    ) {
        self.entry.change_pool(stats.clone());
        self.servers = servers;
        self.stats = stats;
        self.generation = generation;
    }

    /// Serves the client until it leaves, or is to move; what it has to be told at the end has been queued then.
    pub async fn run(&mut self) -> Ending {
        let ending = loop {
            if let Err(ending) = self.serve_once().await {
                break ending;
            }
        };
        match ending {
            Ending::SentAway(farewell) => self.send_away(farewell),
            ending => ending,
        }
    }

    /// Tells the client why it has to leave.
    pub fn send_away(&self, farewell: Farewell) -> Ending {
        let mut out = self.net.spare();
        farewell.write(&mut out);
        self.socket.send(out);
        Ending::SentAway(farewell)
    }

    /// One request: idle until it comes, in line for a server, in conversation until it is over.
    async fn serve_once(&mut self) -> Step<()> {
        let request = self.next_request().await?;
        match self.obtain().await {
            Ok(Ok(server)) => self.converse(server, request).await,
            Ok(Err(refusal)) => self.refuse(request, &refusal).await,
            Err(ending) => {
                // It asks again elsewhere.
                self.ahead = matches!(ending, Ending::Displaced).then_some(request);
                Err(ending)
            }
        }
    }

    async fn next_request(&mut self) -> Step<Chunk> {
        loop {
            let mut chunk = match self.ahead.take() {
                Some(chunk) => {
                    if self.entry.suspension.get() != Suspension::None {
                        self.suspended(None).await?;
                    }
                    chunk
                }
                None => self.recv_request().await?,
            };
            match self
                .upstream
                .idle(&chunk, self.rules)
                .map_err(|fault| sent_away(say(&fault)))?
            {
                Idle::Nothing => {}
                Idle::Terminate => return Err(Ending::Terminated),
                Idle::Needs(start) => {
                    chunk.advance(start);
                    return Ok(chunk);
                }
            }
        }
    }

    /// The next bytes of a client that asks for nothing yet; between two requests it may move.
    async fn recv_request(&mut self) -> Step<Chunk> {
        let moved = poll_fn(|cx| match self.entry.move_to.get() {
            // What it has been answered must be sent first.
            Some(to)
                if self.upstream.is_at_boundary()
                    && self.entry.suspension.get() == Suspension::None =>
            {
                let flushed = self.socket.poll_flushed(cx);
                flushed.map(|_| Err(Ending::Moving(to)))
            }
            _ => Poll::Pending,
        });
        // Who has said something is served here, and moves another time.
        futures_lite::future::or(self.recv_idle(), moved).await
    }

    async fn recv_idle(&self) -> Step<Chunk> {
        loop {
            match poll_fn(|cx| self.poll_idle(cx)).await? {
                Some(chunk) => return Ok(chunk),
                None => self.suspended(None).await?,
            }
        }
    }

    /// What an idle client says; nothing if it is to be suspended.
    fn poll_idle(&self, cx: &Context<'_>) -> Poll<Step<Option<Chunk>>> {
        match self.entry.poll_signal(cx) {
            Some(Signal::Leave(farewell)) => return Poll::Ready(Err(sent_away(farewell))),
            Some(Signal::Suspend) => return Poll::Ready(Ok(None)),
            // A cancel request for a client that does nothing has nothing to do.
            _ => {}
        }
        match self.socket.poll_recv(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(Some(chunk))) => {
                self.stats.bytes_received.add(chunk.len() as u64);
                Poll::Ready(Ok(Some(chunk)))
            }
            Poll::Ready(_) => Poll::Ready(Err(Ending::Vanished)),
        }
    }

    // ---- in line -------------------------------------------------------------------------

    /// A server, or what the request is answered with instead.
    async fn obtain(&mut self) -> Step<Result<Server, Refusal>> {
        let asked = self.net.now();
        self.entry.requested_unix_us.set(Clock::unix_micros());
        self.entry.query_since.set(Some(asked));
        let place = Place {
            servers: &*self.servers,
            waiter: self.servers.waiter(),
        };
        self.servers.request(&place.waiter);
        let granted = match place.waiter.take() {
            Some(granted) => granted,
            None => {
                self.entry.set_state(ClientState::Waiting, asked);
                match self.wait_in_line(&place.waiter).await? {
                    Some(granted) => granted,
                    None => return Ok(Err(Refusal::CANCELED)),
                }
            }
        };
        let server = match granted {
            Ok(server) => server,
            Err(Denial::Leave(farewell)) => return Err(sent_away(farewell)),
            Err(Denial::Busy(text)) => return Ok(Err(Refusal::busy(text))),
            Err(Denial::Displaced) => return Err(Ending::Displaced),
        };
        let now = self.net.now();
        self.stats
            .server_assigned(now.since(asked).as_nanos() as u64);
        server.entry.set_state(ServerState::Active);
        server.entry.link.set(Some(self.entry.id));
        server
            .entry
            .requested_unix_us
            .set(self.entry.requested_unix_us.get());
        self.entry.link.set(Some(server.entry.id));
        self.entry.set_state(ClientState::Active, now);
        Ok(Ok(server))
    }

    async fn wait_in_line(&self, waiter: &Waiter) -> Step<Option<Grant>> {
        let waited = poll_fn(|cx| {
            if self.entry.suspension.get() == Suspension::None
                && let Poll::Ready(grant) = waiter.poll(cx)
            {
                return Poll::Ready(Ok(Some(grant)));
            }
            while let Some(signal) = self.entry.poll_signal(cx) {
                match signal {
                    Signal::Leave(farewell) => return Poll::Ready(Err(sent_away(farewell))),
                    Signal::Cancel => return Poll::Ready(Ok(None)),
                    Signal::Notice => self.tell_place(waiter),
                    // It has no server yet.
                    Signal::Retire | Signal::Suspend => {}
                }
            }
            if self.poll_suspension(None, cx).is_pending() {
                return Poll::Pending;
            }
            // Whatever it said before: it does not wait for the answer any more.
            if self.socket.is_ending() {
                return Poll::Ready(Err(Ending::Vanished));
            }
            self.socket.watch(cx);
            Poll::Pending
        });
        waited.await
    }

    /// Tells a client in line where it stands.
    fn tell_place(&self, waiter: &Waiter) {
        let Some(outlook) = self.servers.outlook(waiter) else {
            return;
        };
        let mut detail = format!("Place {} of {}", outlook.ahead + 1, outlook.waiting);
        if let Some(expected) = outlook.expected {
            detail.push_str(&format!(
                "; about {:.1} s at the present rate",
                expected.as_secs_f64()
            ));
        }
        detail.push('.');
        let mut out = self.net.spare();
        let report = Report {
            severity: Severity::Notice,
            sqlstate: SqlState::SUCCESSFUL_COMPLETION,
            message: "No server connection available in postgres backend, client being queued",
            detail: Some(&detail),
            hint: None,
        };
        backend::notice_response(&mut out, &report);
        self.socket.send(out);
    }

    /// Answers a request that gets no server the way PostgreSQL answers a cancelled query: the
    /// error at once, as the client may wait for it before it sends its Sync.
    async fn refuse(&mut self, mut request: Chunk, refusal: &Refusal) -> Step<()> {
        let mut out = self.net.spare();
        let report = Report {
            severity: Severity::Error,
            sqlstate: refusal.sqlstate,
            message: &refusal.text,
            detail: None,
            hint: None,
        };
        backend::error_response(&mut out, &report);
        self.socket.send(out);
        self.entry.query_since.set(None);
        self.entry.set_state(ClientState::Idle, self.net.now());
        loop {
            let skipped = self.upstream.skip_request(&request, self.rules);
            match skipped.map_err(|fault| sent_away(say(&fault)))? {
                Skipped::Part => request = self.recv_idle().await?,
                Skipped::All(length) => {
                    request.advance(length);
                    break;
                }
                Skipped::Terminate => return Err(Ending::Terminated),
            }
        }
        let mut out = self.net.spare();
        backend::ready_for_query(&mut out, TransactionStatus::Idle);
        self.socket.send(out);
        if !request.is_empty() {
            self.ahead = Some(request);
        }
        Ok(())
    }

    // ---- in conversation -----------------------------------------------------------------

    async fn converse(&mut self, server: Server, request: Chunk) -> Step<()> {
        let mut link = Link {
            server,
            downstream: Downstream::default(),
        };
        let mut result = self.talk(&mut link, request).await;
        if link.downstream.is_inside_message()
            && let Err(Ending::SentAway(farewell)) = result
        {
            result = Err(Ending::CutOff(farewell));
        }
        self.entry.link.set(None);
        self.entry.prepared.set(self.names.len());
        let between = self.upstream.is_between() && link.downstream.is_between();
        let Link { server, .. } = link;
        server.entry.link.set(None);
        server.entry.prepared.set(server.dialogue.statements.len());
        match &result {
            Ok(()) => self.servers.release(server),
            Err(Ending::Terminated | Ending::Vanished)
                if self.mode == PoolMode::Session && between && server.is_reusable() =>
            {
                self.servers.release_session(server);
            }
            Err(ending) => self.servers.close(server, why(ending)),
        }
        self.entry.query_since.set(None);
        self.entry.transaction_since.set(None);
        self.entry.set_state(ClientState::Idle, self.net.now());
        result
    }

    async fn talk(&mut self, link: &mut Link, request: Chunk) -> Step<()> {
        if self.bring_in_line(&mut link.server) {
            self.settle(link).await?;
        }
        if self.rules.prepared_max > 0 {
            self.upstream.kept.arm();
            self.spoken = Spoken::default();
        }
        self.forward(link, request)?;
        loop {
            if self.is_over(link) {
                return self.part(link);
            }
            match poll_fn(|cx| self.poll_event(link, cx)).await {
                Event::FromServer(chunk) => self.backward(link, chunk)?,
                Event::FromClient(chunk) => {
                    self.stats.bytes_received.add(chunk.len() as u64);
                    self.forward(link, chunk)?;
                }
                Event::ServerGone => return Err(sent_away(Farewell::SERVER_CRASHED)),
                Event::ClientGone => return Err(Ending::Vanished),
                // It was meant for a client in line, but the server came first.
                Event::Signal(Signal::Cancel) => self.servers.cancel(&link.server),
                Event::Signal(Signal::Leave(farewell)) => return Err(sent_away(farewell)),
                Event::Signal(Signal::Retire) => self.is_retiring = true,
                Event::Signal(Signal::Suspend) => self.suspended(Some(&link.server.socket)).await?,
                // It does not wait any more.
                Event::Signal(Signal::Notice) => {}
            }
        }
    }

    /// The next event; a side is read only while the other can take what it says.
    fn poll_event(&self, link: &Link, cx: &Context<'_>) -> Poll<Event> {
        if let Some(signal) = self.entry.poll_signal(cx) {
            return Poll::Ready(Event::Signal(signal));
        }
        let (client, server) = (&self.socket, &link.server.socket);
        let takes_more = client.poll_writable(cx);
        match takes_more {
            Poll::Ready(Err(_)) => return Poll::Ready(Event::ClientGone),
            Poll::Ready(Ok(())) => {
                if let Poll::Ready(received) = server.poll_recv(cx) {
                    return Poll::Ready(event(received, Event::FromServer, Event::ServerGone));
                }
            }
            Poll::Pending => {}
        }
        match server.poll_writable(cx) {
            // What the server said before it went may still be unread.
            Poll::Ready(Err(_)) if server.has_ended() => return Poll::Ready(Event::ServerGone),
            Poll::Ready(Err(_)) => server.watch(cx),
            // A client that does not read gets no replies made up either.
            Poll::Ready(Ok(())) if takes_more.is_ready() => {
                if let Poll::Ready(received) = client.poll_recv(cx) {
                    return Poll::Ready(event(received, Event::FromClient, Event::ClientGone));
                }
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        Poll::Pending
    }

    /// Sends the settings in which the server differs from what the client wants. True if the request
    /// has to wait for the answer: nothing may run under settings that its client did not ask for.
    fn bring_in_line(&mut self, server: &mut Server) -> bool {
        let differences = server.dialogue.params.differences(&mut self.settings);
        if differences.is_empty() {
            self.are_settings_proven = true;
            return false;
        }
        let mut out = self.net.spare();
        request_settings(&mut out, &differences, &mut server.dialogue);
        server.socket.send(out);
        server.entry.is_settling.set(true);
        // A tracked setting that was taken once is taken again; one like `role` may not be.
        !self.are_settings_proven || differences.iter().any(Setting::may_fail)
    }

    /// Waits until the server has made the settings.
    async fn settle(&mut self, link: &mut Link) -> Step<()> {
        while link.server.dialogue.is_settling {
            match poll_fn(|cx| self.poll_settling(link, cx)).await {
                Event::FromServer(chunk) => self.backward(link, chunk)?,
                Event::Signal(Signal::Leave(farewell)) => return Err(sent_away(farewell)),
                // A cancel would hit the settings; the line is behind the client.
                Event::Signal(
                    Signal::Cancel | Signal::Notice | Signal::Retire | Signal::Suspend,
                ) => {}
                Event::ClientGone | Event::FromClient(_) => return Err(Ending::Vanished),
                Event::ServerGone => return Err(sent_away(Farewell::SERVER_CRASHED)),
            }
        }
        self.are_settings_proven = true;
        Ok(())
    }

    fn poll_settling(&self, link: &Link, cx: &Context<'_>) -> Poll<Event> {
        if let Some(signal) = self.entry.poll_signal(cx) {
            return Poll::Ready(Event::Signal(signal));
        }
        if self.socket.is_ending() {
            return Poll::Ready(Event::ClientGone);
        }
        self.socket.watch(cx);
        let received = link.server.socket.poll_recv(cx);
        received.map(|received| event(received, Event::FromServer, Event::ServerGone))
    }

    fn forward(&mut self, link: &mut Link, mut chunk: Chunk) -> Step<()> {
        self.entry.work.set(self.entry.work.get() + 1);
        let mut counts = Counts::default();
        let mut outlet = Outlet::new(&chunk, Some(self.net));
        let fed = self.upstream.feed(
            &chunk,
            &mut outlet,
            &mut Exchange {
                rules: self.rules,
                dialogue: &mut link.server.dialogue,
                names: &mut self.names,
                statements: &mut self.statements.borrow_mut(),
                counts: &mut counts,
                generation: &self.generation,
                spoken: &mut self.spoken,
                escapes: self.settings.tracked("standard_conforming_strings") == Some(b"off"),
            },
        );
        // Taking leave, or half of a header, is no query.
        if !link.server.dialogue.replies.is_settled() {
            self.query_begins();
        }
        self.stats.client_parse_count.add(counts.client_parse);
        self.stats.server_parse_count.add(counts.server_parse);
        self.stats.bind_count.add(counts.bind);
        match outlet.finish() {
            Passed::Prefix(0) => {}
            Passed::Prefix(len) => {
                chunk.truncate(len);
                link.server.socket.send(chunk);
            }
            Passed::Copy(bytes) => link.server.socket.send(bytes),
        }
        match fed {
            Err(fault) => return Err(sent_away(say(&fault))),
            Ok(true) => return Err(Ending::Terminated),
            Ok(false) if link.server.dialogue.replies.len() > OWED_MAX => {
                return Err(sent_away(Farewell::PIPELINE_TOO_LONG));
            }
            Ok(false) => {}
        }
        if let Some(batch) = self.upstream.kept.take_again() {
            link.downstream.take_refusal();
            return self.forward(link, Chunk::from_vec(self.net, batch));
        }
        if !self.upstream.kept.is_waiting() {
            let refusal = link.downstream.take_refusal();
            if !refusal.is_empty() {
                self.socket.send(refusal);
            }
        }
        // Replies that no message of the server will trigger.
        if !link.downstream.is_inside_message() {
            let mut outlet = Outlet::new(&[], Some(self.net));
            downstream::make_up(&mut link.server.dialogue, &mut self.names, &mut outlet);
            if let Passed::Copy(bytes) = outlet.finish() {
                self.socket.send(bytes);
            }
        }
        Ok(())
    }

    fn backward(&mut self, link: &mut Link, mut chunk: Chunk) -> Step<()> {
        self.stats.bytes_sent.add(chunk.len() as u64);
        self.entry.work.set(self.entry.work.get() + 1);
        let mut outlet = Outlet::new(&chunk, Some(self.net));
        let fed = link.downstream.feed(
            &chunk,
            &mut outlet,
            &mut Audience {
                dialogue: &mut link.server.dialogue,
                names: &mut self.names,
                settings: &mut self.settings,
                refuses_transactions: self.mode == PoolMode::Statement,
                kept: &mut self.upstream.kept,
                generation: &self.generation,
                spoken: &mut self.spoken,
                instead: Vec::new(),
            },
        );
        let passed = outlet.finish();
        if !link.server.dialogue.is_settling {
            link.server.entry.is_settling.set(false);
        }
        let again = self.upstream.kept.take_again();
        // Counted before the client can see the reply.
        if again.is_none() {
            self.query_may_end(link);
        }
        match passed {
            Passed::Prefix(0) => {}
            Passed::Prefix(len) => {
                chunk.truncate(len);
                self.socket.send(chunk);
            }
            Passed::Copy(bytes) => self.socket.send(bytes),
        }
        fed.map_err(|fault| {
            if matches!(fault, downstream::Fault::Transaction) {
                return sent_away(Farewell::NO_TRANSACTIONS);
            }
            tracing::warn!(client = %self.entry.id, server = %link.server.entry.id, %fault, "server cannot be followed");
            sent_away(match fault {
                downstream::Fault::Settings => Farewell::INVALID_SETTING,
                _ => Farewell::SERVER_CONFUSED,
            })
        })?;
        match again {
            Some(batch) => self.forward(link, Chunk::from_vec(self.net, batch)),
            None => Ok(()),
        }
    }

    fn query_begins(&mut self) {
        let now = self.net.now();
        if self.entry.transaction_since.get().is_none() {
            self.entry.transaction_since.set(Some(now));
            self.stats.xact_count.inc();
            self.stats.query_count.inc();
            self.entry.query_since.set(Some(now));
        } else if self.entry.query_since.get().is_none() {
            self.entry.query_since.set(Some(now));
            self.stats.query_count.inc();
        }
    }

    fn query_may_end(&mut self, link: &Link) {
        let replies = &link.server.dialogue.replies;
        // What is settled before the transaction began were the pooler's own settings.
        if !replies.is_settled() || self.entry.transaction_since.get().is_none() {
            return;
        }
        let now = self.net.now();
        if let Some(since) = self.entry.query_since.take() {
            self.stats.query_ended(now.since(since).as_nanos() as u64);
        }
        // The idle time inside a transaction counts from here.
        self.entry.since.set(now);
        if replies.status() == b'I'
            && let Some(since) = self.entry.transaction_since.take()
        {
            self.stats
                .transaction_ended(now.since(since).as_nanos() as u64);
        }
    }

    /// What follows when the client does not need its server any more: a session ends with it.
    fn part(&self, link: &Link) -> Step<()> {
        if self.mode != PoolMode::Session {
            return Ok(());
        }
        let why = link.server.entry.close_needed.get();
        Err(sent_away(
            why.map_or(Farewell::CONFIGURATION_CHANGED, Farewell::new),
        ))
    }

    /// Whether the client does not need its server any more, or has to do without it.
    fn is_over(&self, link: &Link) -> bool {
        (self.mode != PoolMode::Session || self.is_retiring)
            && link.server.dialogue.replies.is_over()
            && self.upstream.is_between()
            && link.downstream.is_between()
    }
}

/// What a request is answered with that gets no server.
struct Refusal {
    sqlstate: SqlState,
    text: Cow<'static, str>,
}

impl Refusal {
    const CANCELED: Refusal = Refusal {
        sqlstate: SqlState::QUERY_CANCELED,
        text: Cow::Borrowed("canceling statement due to user request"),
    };

    fn busy(text: String) -> Refusal {
        Refusal {
            sqlstate: SqlState::TOO_MANY_CONNECTIONS,
            text: Cow::Owned(text),
        }
    }
}

struct Link {
    server: Server,
    downstream: Downstream,
}

/// A place in line that is given up when dropped.
struct Place<'a> {
    servers: &'a dyn Servers,
    waiter: Rc<Waiter>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.servers.withdraw(&self.waiter);
        self.servers.recycle(&self.waiter);
    }
}

fn event(received: io::Result<Option<Chunk>>, some: impl Fn(Chunk) -> Event, none: Event) -> Event {
    match received {
        Ok(Some(chunk)) => some(chunk),
        Ok(None) | Err(_) => none,
    }
}

fn say(fault: &upstream::Fault) -> Farewell {
    Farewell::because(fault.to_string())
}

/// Why a server is closed together with its client.
fn why(ending: &Ending) -> &str {
    match ending {
        Ending::SentAway(farewell) | Ending::CutOff(farewell) => &farewell.text,
        Ending::Terminated | Ending::Vanished | Ending::Moving(_) | Ending::Displaced => {
            "client disconnect while server was not ready"
        }
    }
}
