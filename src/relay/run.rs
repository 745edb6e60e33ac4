//! The loop of one client.
//!
//! ```text
//!          request              granted               clean
//!  Idle ────────────► Waiting ───────────► Active ──────────────► Idle
//!    │ leaves            │ leaves, timeout,   │ session mode: stays until the client leaves
//!    ▼                   ▼ cancelled          ▼ leaves in the middle, or the server dies: server closed
//! ```

use super::downstream::{self, Audience};
use super::lease::{Denial, Grant, Servers, Waiter};
use super::outlet::{Outlet, Passed};
use super::stores::{Lease, Stores};
use super::upstream::{self, Counts, Exchange, Fed, Idle, Rules, Skipped, Upstream};
use crate::base::{Clock, Moment, ShardId};
use crate::client::{ClientEntry, ClientState, Farewell, Signal, Suspension};
use crate::config::PoolMode;
use crate::net::{Chunk, Net, Socket};
use crate::server::{Server, ServerState, request_settings};
use crate::session::{ClientStatements, Generation, Setting, Settings};
use crate::stats::PoolStats;
use crate::wire::SqlState;
use crate::wire::backend::{self, Report, Severity, TransactionStatus};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Replies that one client may be owed: a bound on memory, far above any driver's pipeline.
const OWED_MAX: usize = 1 << 18;

/// What a relay is made from.
pub struct RelaySettings {
    /// See [`Terms`].
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
    pub(super) stores: Rc<Stores>,
    pub(super) stats: Arc<PoolStats>,
    /// The pool's when the server came.
    pub(super) mode: PoolMode,
    pub(super) rules: Rules,
    pub(super) settings: Settings,
    /// Some server has taken the settings already.
    pub(super) are_settings_proven: bool,
    pub(super) names: ClientStatements,
    /// Unnamed statements that it has prepared.
    pub(super) unnamed: u64,
    pub(super) generation: Arc<Generation>,
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
        stores: Rc<Stores>,
        stats: Arc<PoolStats>,
        settings: Settings,
        options: RelaySettings,
    ) -> Relay {
        stats.bytes_received.add(ahead.len() as u64);
        socket.set_expendable();
        Relay {
            net,
            socket,
            entry,
            mode: servers.terms().mode,
            servers,
            stores,
            stats,
            rules: Rules {
                prepared_max: options.prepared_max,
                body_bytes_max: options.packet_bytes_max,
                is_strict: options.is_strict,
                refuses_query: options.refuses_query,
            },
            settings,
            are_settings_proven: false,
            names: ClientStatements::default(),
            unnamed: 0,
            generation: options.generation,
            upstream: Upstream::default(),
            is_retiring: false,
            ahead: (!ahead.is_empty()).then(|| Chunk::from_vec(net, ahead)),
        }
    }

    /// What a relay like this one is made from.
    pub(super) fn options(&self) -> RelaySettings {
        RelaySettings {
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
    #[expect(clippy::manual_async_fn, reason = "would keep its arguments twice")]
    pub fn run(&mut self) -> impl Future<Output = Ending> {
        async move {
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
    }

    /// Tells the client why it has to leave.
    pub fn send_away(&self, farewell: Farewell) -> Ending {
        let mut out = self.net.spare();
        farewell.write(&mut out);
        self.socket.send(out);
        Ending::SentAway(farewell)
    }

    /// One request: idle until it comes, in line for a server, in conversation until it is over.
    ///
    /// What waits here waits in every idle client: nothing is kept beside it that is not needed afterwards, and the
    /// request lies in `ahead`.
    #[expect(clippy::manual_async_fn, reason = "would keep its arguments twice")]
    fn serve_once(&mut self) -> impl Future<Output = Step<()>> {
        async move {
            poll_fn(|cx| self.poll_request(cx)).await?;
            let Some(mut link) = self.obtain().await? else {
                return poll_fn(|cx| self.poll_refused(cx)).await;
            };
            let result = self.talk(&mut link).await;
            self.hand_back(link, result)
        }
    }

    /// Ready when there is something that needs a server; between two requests a client may move.
    fn poll_request(&mut self, cx: &Context<'_>) -> Poll<Step<()>> {
        loop {
            let Poll::Ready(said) = self.poll_idle(cx) else {
                // Who has said something is served here, and moves another time.
                return self.poll_move(cx);
            };
            let mut chunk = said?;
            let idle = self.upstream.idle(&chunk, self.rules);
            match idle.map_err(|fault| self.blame(&fault))? {
                Idle::Nothing => {}
                Idle::Terminate => return Poll::Ready(Err(Ending::Terminated)),
                Idle::Needs(start) => {
                    chunk.advance(start);
                    self.ahead = Some(chunk);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// The next bytes of a client that asks for nothing yet.
    fn poll_idle(&mut self, cx: &Context<'_>) -> Poll<Step<Chunk>> {
        while let Some(signal) = self.entry.poll_signal(cx) {
            // A cancel request for a client that does nothing has nothing to do.
            if let Signal::Leave(farewell) = signal {
                return Poll::Ready(Err(sent_away(farewell)));
            }
        }
        ready!(self.poll_suspension(None, cx));
        if let Some(chunk) = self.ahead.take() {
            return Poll::Ready(Ok(chunk));
        }
        match self.socket.poll_recv(cx) {
            Poll::Ready(Ok(Some(chunk))) => {
                self.stats.bytes_received.add(chunk.len() as u64);
                Poll::Ready(Ok(chunk))
            }
            Poll::Ready(_) => Poll::Ready(Err(self.loss())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Sends a client away for what it said.
    fn blame(&self, fault: &upstream::Fault) -> Ending {
        sent_away(match fault {
            upstream::Fault::OutOfMemory => {
                self.net.count_memory_refusal();
                Farewell::OUT_OF_MEMORY
            }
            fault => Farewell::because(fault.to_string()),
        })
    }

    /// How the connection of a client has ended that is not heard any more.
    fn loss(&self) -> Ending {
        match self.socket.is_out_of_memory() {
            true => sent_away(Farewell::OUT_OF_MEMORY),
            false => Ending::Vanished,
        }
    }

    /// Ready when a client between two requests is to go on at another shard, and has been sent what it was answered.
    fn poll_move(&self, cx: &Context<'_>) -> Poll<Step<()>> {
        match self.entry.move_to.get() {
            Some(to)
                if self.upstream.is_at_boundary()
                    && self.entry.suspension.get() == Suspension::None =>
            {
                let flushed = self.socket.poll_flushed(cx);
                flushed.map(|_| Err(Ending::Moving(to)))
            }
            _ => Poll::Pending,
        }
    }

    // ---- in line -------------------------------------------------------------------------

    /// A server; none if the request has been refused.
    async fn obtain(&mut self) -> Step<Option<Link>> {
        let asked = self.net.now();
        self.entry.requested_unix_us.set(Clock::unix_micros());
        self.entry.query_since.set(Some(asked));
        let place = Place {
            servers: &*self.servers,
            waiter: self.servers.waiter(),
        };
        self.servers.request(&place.waiter, &self.entry);
        if !place.waiter.is_served() {
            self.entry.set_state(ClientState::Waiting, asked);
        }
        let granted = poll_fn(|cx| self.poll_grant(&place.waiter, cx)).await?;
        drop(place);
        self.begin(granted, asked)
    }

    /// What a client in line gets; nothing if it gives up.
    fn poll_grant(&self, waiter: &Waiter, cx: &Context<'_>) -> Poll<Step<Option<Grant>>> {
        let may_go_on = self.entry.suspension.get() == Suspension::None;
        // With a server that has come first it is heard in conversation. What it is denied must not swallow it: a client that is
        // to ask another pool would take it for news between two requests.
        while !(may_go_on && waiter.has_server())
            && let Some(signal) = self.entry.poll_signal(cx)
        {
            match signal {
                Signal::Leave(farewell) => return Poll::Ready(Err(sent_away(farewell))),
                Signal::Cancel => return Poll::Ready(Ok(None)),
                Signal::Notice => self.tell_place(waiter),
                // It has no server yet.
                Signal::Retire | Signal::Suspend => {}
            }
        }
        if may_go_on && let Poll::Ready(grant) = waiter.poll(cx) {
            return Poll::Ready(Ok(Some(grant)));
        }
        ready!(self.poll_suspension(None, cx));
        // Whatever it said before: it does not wait for the answer any more.
        if self.socket.is_ending() {
            return Poll::Ready(Err(self.loss()));
        }
        self.socket.watch(cx);
        Poll::Pending
    }

    /// Links the client to the server that it has been granted; refuses the request if it is none.
    fn begin(&mut self, granted: Option<Grant>, asked: Moment) -> Step<Option<Link>> {
        let server = match granted {
            Some(Ok(server)) => server,
            Some(Err(Denial::Leave(farewell))) => return Err(sent_away(farewell)),
            Some(Err(Denial::Busy(text))) => {
                self.refuse(SqlState::TOO_MANY_CONNECTIONS, &text);
                return Ok(None);
            }
            // It asks again elsewhere.
            Some(Err(Denial::Displaced)) => return Err(Ending::Displaced),
            None => {
                let text = "canceling statement due to user request";
                self.refuse(SqlState::QUERY_CANCELED, text);
                return Ok(None);
            }
        };
        self.come_to_terms();
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
        let lease = self.stores.lease();
        Ok(Some(Link { server, lease }))
    }

    /// Takes the pool's terms. Who has names that the pooler has to translate keeps them.
    fn come_to_terms(&mut self) {
        let terms = self.servers.terms();
        self.mode = terms.mode;
        self.is_retiring = false;
        if terms.prepared_max > 0 || self.names.is_empty() {
            self.rules.prepared_max = terms.prepared_max;
        }
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
    fn refuse(&self, sqlstate: SqlState, text: &str) {
        let mut out = self.net.spare();
        let report = Report {
            severity: Severity::Error,
            sqlstate,
            message: text,
            detail: None,
            hint: None,
        };
        backend::error_response(&mut out, &report);
        self.socket.send(out);
        self.entry.query_since.set(None);
        self.entry.set_state(ClientState::Idle, self.net.now());
    }

    /// Skips a refused request; ready when all of it has come.
    fn poll_refused(&mut self, cx: &Context<'_>) -> Poll<Step<()>> {
        loop {
            let mut chunk = ready!(self.poll_idle(cx))?;
            let skipped = self.upstream.skip_request(&chunk, self.rules);
            match skipped.map_err(|fault| self.blame(&fault))? {
                Skipped::Part => {}
                Skipped::Terminate => return Poll::Ready(Err(Ending::Terminated)),
                Skipped::All(length) => {
                    let mut out = self.net.spare();
                    backend::ready_for_query(&mut out, TransactionStatus::Idle);
                    self.socket.send(out);
                    chunk.advance(length);
                    self.ahead = (!chunk.is_empty()).then_some(chunk);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    // ---- in conversation -----------------------------------------------------------------

    /// Gives the server back, or closes it.
    fn hand_back(&self, link: Link, mut result: Step<()>) -> Step<()> {
        if link.lease.downstream.is_inside_message()
            && let Err(Ending::SentAway(farewell)) = result
        {
            result = Err(Ending::CutOff(farewell));
        }
        self.entry.link.set(None);
        self.entry.prepared.set(self.names.len() as u32);
        let between = self.upstream.is_between() && link.lease.downstream.is_between();
        let Link { server, lease } = link;
        self.stores.take_back(lease);
        server.entry.link.set(None);
        server.entry.prepared.set(server.dialogue.statements.len());
        match &result {
            Ok(()) | Err(Ending::Terminated | Ending::Vanished)
                if self.mode == PoolMode::Session && between && server.is_reusable() =>
            {
                self.servers.release_session(server);
            }
            Ok(()) => self.servers.release(server),
            Err(ending) => self.servers.close(server, why(ending)),
        }
        self.entry.query_since.set(None);
        self.entry.transaction_since.set(None);
        self.entry.set_state(ClientState::Idle, self.net.now());
        result
    }

    #[expect(clippy::manual_async_fn, reason = "would keep its arguments twice")]
    fn talk(&mut self, link: &mut Link) -> impl Future<Output = Step<()>> {
        async move {
            if self.bring_in_line(&mut link.server) {
                while link.server.dialogue.is_settling {
                    let event = poll_fn(|cx| self.poll_settling(link, cx)).await;
                    // A cancel would hit the settings; the line is behind the client.
                    if !matches!(event, Event::Signal(Signal::Cancel | Signal::Notice)) {
                        self.handle(link, event)?;
                    }
                }
                self.are_settings_proven = true;
            }
            if self.rules.prepared_max > 0 {
                link.lease.kept.arm();
            }
            if let Some(request) = self.ahead.take() {
                self.forward(link, request)?;
                self.go_on(link)?;
            }
            while !self.is_over(link) {
                let event = poll_fn(|cx| self.poll_event(link, cx)).await;
                self.handle(link, event)?;
                self.go_on(link)?;
            }
            self.part(link)
        }
    }

    /// Looks again at a message that waits for an answer, and on to what is behind it.
    fn go_on(&mut self, link: &mut Link) -> Step<()> {
        if !self.upstream.is_held() {
            return Ok(());
        }
        let behind = self.ahead.take();
        self.forward(
            link,
            behind.unwrap_or_else(|| Chunk::from_vec(self.net, Vec::new())),
        )
    }

    fn handle(&mut self, link: &mut Link, event: Event) -> Step<()> {
        match event {
            Event::FromServer(chunk) => self.backward(link, chunk),
            Event::FromClient(chunk) => {
                self.stats.bytes_received.add(chunk.len() as u64);
                self.forward(link, chunk)
            }
            Event::ServerGone => Err(sent_away(Farewell::SERVER_CRASHED)),
            Event::ClientGone => Err(self.loss()),
            Event::Signal(signal) => {
                match signal {
                    Signal::Leave(farewell) => return Err(sent_away(farewell)),
                    // It was meant for a client in line, but the server came first.
                    Signal::Cancel => self.servers.cancel(&link.server),
                    Signal::Retire => self.is_retiring = true,
                    // The entry says whether it is suspended; it does not wait in line any more.
                    Signal::Suspend | Signal::Notice => {}
                }
                Ok(())
            }
        }
    }

    /// The next event; a side is read only while the other can take what it says.
    fn poll_event(&self, link: &Link, cx: &Context<'_>) -> Poll<Event> {
        if let Some(signal) = self.entry.poll_signal(cx) {
            return Poll::Ready(Event::Signal(signal));
        }
        let (client, server) = (&self.socket, &link.server.socket);
        ready!(self.poll_suspension(Some(server), cx));
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
        if self.upstream.is_held() {
            // What the client says next has to wait for the server.
            client.watch(cx);
            return match client.is_ending() {
                true => Poll::Ready(Event::ClientGone),
                false => Poll::Pending,
            };
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
        self.entry.work.set(self.entry.work.get().wrapping_add(1));
        let mut counts = Counts::default();
        let mut outlet = Outlet::new(&chunk, Some(self.net));
        let fed = self.upstream.feed(
            &chunk,
            &mut outlet,
            &mut link.lease.kept,
            &mut Exchange {
                rules: self.rules,
                client: self.entry.id.0,
                unnamed: &mut self.unnamed,
                dialogue: &mut link.server.dialogue,
                names: &mut self.names,
                statements: &mut self.stores.statements.borrow_mut(),
                counts: &mut counts,
                generation: &self.generation,
                spoken: &mut link.lease.spoken,
                portal: &mut link.lease.portal,
                settings: &self.settings,
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
            Passed::Prefix(len) if len > 0 => {
                if let Ok(Fed::Held(at)) = fed {
                    let behind = chunk.get(at..).unwrap_or_default().to_vec();
                    self.ahead = (!behind.is_empty()).then(|| Chunk::from_vec(self.net, behind));
                }
                chunk.truncate(len);
                link.server.socket.send(chunk);
            }
            passed => {
                if let Passed::Copy(bytes) = passed {
                    link.server.socket.send(bytes);
                }
                if let Ok(Fed::Held(at)) = fed {
                    chunk.advance(at);
                    self.ahead = (!chunk.is_empty()).then_some(chunk);
                }
            }
        }
        match fed {
            Err(fault) => return Err(self.blame(&fault)),
            Ok(Fed::Terminate) => return Err(Ending::Terminated),
            Ok(_) if link.server.dialogue.replies.len() > OWED_MAX => {
                return Err(sent_away(Farewell::PIPELINE_TOO_LONG));
            }
            Ok(Fed::All | Fed::Held(_)) => {}
        }
        if let Some(batch) = link.lease.kept.take_again() {
            link.lease.downstream.take_refusal();
            return self.forward(link, Chunk::from_vec(self.net, batch));
        }
        if !link.lease.kept.is_waiting() {
            let refusal = link.lease.downstream.take_refusal();
            if !refusal.is_empty() {
                self.socket.send(refusal);
            }
        }
        // Replies that no message of the server will trigger.
        if !link.lease.downstream.is_inside_message() {
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
        self.entry.work.set(self.entry.work.get().wrapping_add(1));
        let mut outlet = Outlet::new(&chunk, Some(self.net));
        let fed = link.lease.downstream.feed(
            &chunk,
            &mut outlet,
            &mut Audience {
                dialogue: &mut link.server.dialogue,
                names: &mut self.names,
                settings: &mut self.settings,
                refuses_transactions: self.mode == PoolMode::Statement,
                kept: &mut link.lease.kept,
                generation: &self.generation,
                spoken: &mut link.lease.spoken,
                instead: Vec::new(),
            },
        );
        let passed = outlet.finish();
        if !link.server.dialogue.is_settling {
            link.server.entry.is_settling.set(false);
        }
        let again = link.lease.kept.take_again();
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

    /// What follows when the client does not need its server any more: a session ends with it, unless the pool has none any more.
    fn part(&self, link: &Link) -> Step<()> {
        if !self.is_session() {
            return Ok(());
        }
        let why = link.server.entry.close_needed.get();
        Err(sent_away(
            why.map_or(Farewell::CONFIGURATION_CHANGED, Farewell::new),
        ))
    }

    /// Whether the client has its server for as long as it stays.
    fn is_session(&self) -> bool {
        self.mode == PoolMode::Session && self.servers.terms().mode == PoolMode::Session
    }

    /// Whether the client does not need its server any more, or has to do without it.
    fn is_over(&self, link: &Link) -> bool {
        (self.is_retiring || !self.is_session())
            && link.server.dialogue.replies.is_over()
            && self.upstream.is_between()
            && link.lease.downstream.is_between()
    }
}

/// A client's lease of a server.
struct Link {
    server: Server,
    lease: Box<Lease>,
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

/// Why a server is closed together with its client.
fn why(ending: &Ending) -> &str {
    match ending {
        Ending::SentAway(farewell) | Ending::CutOff(farewell) => &farewell.text,
        Ending::Terminated | Ending::Vanished | Ending::Moving(_) | Ending::Displaced => {
            "client disconnect while server was not ready"
        }
    }
}

#[cfg(test)]
mod tests;
