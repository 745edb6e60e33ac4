//! A client's way from its first byte to the relay, and what happens when it leaves.
//!
//! Order of the checks (PgBouncer's): start-up packet, `max_client_conn`, user, authentication; only
//! then is it told whether the database exists. Nothing is revealed before.

use super::balance::Homes;
use super::entrance::{Admission, is_stranger};
use super::opening::fill_random;
use super::pools::{Counter, Pool};
use super::replicating::{Dedicated, logged, open_apart, wishes as wishes_of};
use super::root::{Present, Shard};
use super::shared::{Phase, Snapshot};
use super::startup::{add_host, settings};
use crate::admin::{self, Access, Parting, Refusal};
use crate::auth::ServerCredentials;
use crate::base::memory::{self, Pressure};
use crate::base::{ClientId, Clock};
use crate::client::{
    ClientEntry, ClientState, Encryption, Farewell, Greeted, Greeting, Intake, IntakeError, Signal,
    Who, first_packet, greet, reject_protocol,
};
use crate::config::{AuthType, CONSOLE, Config, Database, Dialect, is_console};
use crate::net::{Detached, Socket};
use crate::pool::Permit;
use crate::relay::{Denial, Ending, Relay, RelaySettings, Servers, Waiter};
use crate::server::{Server, Wishes};
use crate::session::{CancelKey, ServerParams, Settings};
use crate::wire::{Replication, SqlState, StartupPacket};
use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

/// Serves one client, from accept to close.
///
/// Not an `async fn`, which would keep what it is called with beside what it makes of it; every byte here is one per client.
pub(super) fn serve(
    shard: Rc<Shard>,
    counted: Present,
    socket: Detached,
) -> impl Future<Output = ()> {
    let id = shard.common.client_id();
    let entry = ClientEntry::new(
        id,
        socket.peer(),
        shard.local_end(socket.local()),
        Clock::unix_micros(),
        shard.net.now(),
    );
    let guest = Guest::new(shard, counted, entry);
    let intake = Box::new(Intake::new(Socket::attach(guest.shard.net, socket)));
    async move {
        // What the login needs is given back before the client settles down: it is many times what an idle client needs.
        let login = {
            // Freed here: what is captured stays as long as the client.
            let intake = intake;
            Box::pin(guest.receive(*intake))
        };
        let stay = guest.shard.net.paced(login).await;
        if let Some(settled) = guest.settle(stay) {
            guest.dwell(settled).await;
        }
    }
}

/// Serves a client that has said to another shard what it wants.
pub(super) fn go_on(
    shard: Rc<Shard>,
    counted: Present,
    greeted: Greeted,
) -> impl Future<Output = ()> {
    let entry = ClientEntry::new(
        greeted.id,
        greeted.socket.peer(),
        shard.local_end(greeted.socket.local()),
        greeted.connected_unix_us,
        greeted.since,
    );
    let guest = Guest::new(shard, counted, entry);
    guest.shard.expires_at.take();
    let socket = Socket::attach(guest.shard.net, greeted.socket);
    let intake = Intake::resume(socket, greeted.ahead);
    guest.note_encryption(&intake);
    let said = Box::new((intake, greeted.packet));
    async move {
        let login = {
            let said = said;
            Box::pin(guest.session(said.0, said.1))
        };
        let stay = guest.shard.net.paced(login).await;
        if let Some(settled) = guest.settle(stay) {
            guest.dwell(settled).await;
        }
    }
}

/// One client of this shard.
pub(super) struct Guest {
    pub(super) shard: Rc<Shard>,
    pub(super) entry: Rc<ClientEntry>,
    slot: u32,
    /// How often it has moved.
    pub(super) moves: Cell<u32>,
    /// Until it is in: the database and the user that it asked for.
    claim: Cell<Option<Box<Claim>>>,
    _counted: Present,
}

/// What has become of a client that wanted in. Small, as it is part of every client's task.
pub(super) enum Stay {
    /// Its connection has ended.
    Ended(Box<Ending>),
    /// It goes on at another shard.
    Moved,
    /// It is in.
    Settled(Box<Settled>),
}

impl Stay {
    pub(super) fn ended(ending: Ending) -> Stay {
        Stay::Ended(Box::new(ending))
    }
}

/// A client that has logged in, and its places under the limits.
pub(super) struct Settled {
    pub(super) relay: Relay,
    pub(super) pool: Rc<Pool>,
    pub(super) seats: [Permit; 3],
}

/// What a start-up packet asks for, for the log.
struct Claim {
    database: Box<str>,
    user: Box<str>,
}

/// A client that has been let in.
struct Admitted {
    intake: Intake,
    packet: StartupPacket,
    admission: Admission,
}

impl Guest {
    pub(super) fn new(shard: Rc<Shard>, counted: Present, entry: ClientEntry) -> Guest {
        let entry = Rc::new(entry);
        let slot = shard.clients.borrow_mut().insert(entry.clone()) as u32;
        Guest {
            shard,
            entry,
            slot,
            moves: Cell::new(0),
            claim: Cell::default(),
            _counted: counted,
        }
    }

    /// Its place among the shard's clients.
    pub(super) fn slot(&self) -> usize {
        self.slot as usize
    }

    /// The client, if it is in; takes leave of every other.
    pub(super) fn settle(&self, stay: Stay) -> Option<Box<Settled>> {
        match stay {
            Stay::Settled(settled) => return Some(settled),
            Stay::Moved => self.take_leave(None),
            Stay::Ended(ending) => self.take_leave(Some(&ending)),
        }
        None
    }

    /// Serves a client that is in, and takes leave of it. Whether it has left for good.
    #[expect(clippy::manual_async_fn, reason = "would keep its arguments twice")]
    pub(super) fn dwell(&self, mut settled: Box<Settled>) -> impl Future<Output = bool> {
        async move {
            loop {
                let ending = settled.relay.run().await;
                // On the heap, as what a move takes would be part of every client's task.
                match Box::pin(self.go_on_after(settled, ending)).await {
                    Ok(again) => settled = again,
                    Err(ending) => {
                        self.take_leave(ending.as_ref());
                        return ending.is_some();
                    }
                }
            }
        }
    }

    fn take_leave(&self, ending: Option<&Ending>) {
        if let Some(ending) = ending {
            self.log_ending(ending);
        }
        let key = self.entry.who().map(|who| &who.cancel_key);
        if let Some(handle) = key.and_then(CancelKey::handle) {
            self.shard.peered.borrow_mut().remove(&handle);
        }
        self.shard.clients.borrow_mut().remove(self.slot());
    }

    async fn receive(&self, mut intake: Intake) -> Stay {
        let greeting = self.unless_told_to_leave(self.greeting(&mut intake)).await;
        self.note_encryption(&intake);
        match greeting {
            Err(ending) => self.part(intake, ending),
            Ok(Err(error)) => match self.rejection(&error) {
                Some(farewell) => self.part(intake, Ending::SentAway(farewell)),
                None => Stay::ended(Ending::Vanished),
            },
            Ok(Ok(Greeting::Cancel(key))) => {
                self.shard.cancel_anywhere(&key).await;
                Stay::ended(Ending::Terminated)
            }
            Ok(Ok(Greeting::Session(packet))) => match self.send_home(intake, packet).await {
                None => Stay::Moved,
                Some((intake, packet)) => self.session(intake, packet).await,
            },
        }
    }

    async fn greeting(&self, intake: &mut Intake) -> Result<Greeting, IntakeError> {
        let snapshot = self.shard.snapshot();
        let encryption = Encryption::new(
            snapshot.tls.client_mode,
            snapshot.tls.clients.as_deref(),
            self.entry.remote.is_unix(),
        );
        first_packet(intake, &encryption).await
    }

    fn note_encryption(&self, intake: &Intake) {
        let label = intake.socket().tls_peer().map(|peer| peer.label);
        self.entry.note_tls(label);
    }

    /// Sends a client to a home shard of its pool, if that is another one; gives it back if it stays
    /// here.
    async fn send_home(
        &self,
        intake: Intake,
        packet: StartupPacket,
    ) -> Option<(Intake, StartupPacket)> {
        let to = match self.homes(&packet) {
            Some(homes) => self.shard.home(homes),
            None => self.shard.id,
        };
        if to == self.shard.id {
            return Some((intake, packet));
        }
        let (socket, ahead) = intake.into_parts();
        let socket = match socket.detach().await {
            Ok(socket) => socket,
            // It said more already, or hung up.
            Err(socket) => return Some((Intake::resume(socket, ahead), packet)),
        };
        let greeted = Box::new(Greeted {
            socket,
            ahead,
            packet,
            id: self.entry.id,
            since: self.entry.since.get(),
            connected_unix_us: self.entry.connected_unix_us,
        });
        let Greeted {
            socket,
            ahead,
            packet,
            ..
        } = *self.shard.send_home(to, greeted).err()?;
        let socket = Socket::attach(self.shard.net, socket);
        Some((Intake::resume(socket, ahead), packet))
    }

    /// The home shards of the pool that a start-up packet asks for.
    fn homes(&self, packet: &StartupPacket) -> Option<Homes> {
        let shards = self.shard.common.mesh.shards();
        if shards == 1 || is_console(packet.database()) {
            return None;
        }
        let config = self.shard.snapshot().config.clone();
        let database = config.database(packet.database())?;
        let user = database.server_user(packet.user());
        Some(Homes::of(&config, &database, user, shards))
    }

    /// What a client is told whose first packet is none, if anything.
    fn rejection(&self, error: &IntakeError) -> Option<Farewell> {
        if let IntakeError::Handshake(error) = error {
            tracing::info!(client = %self.entry.id, remote = %self.entry.remote, %error, "cannot encrypt");
        }
        reject_protocol(error)
    }

    async fn session(&self, mut intake: Intake, packet: StartupPacket) -> Stay {
        let is_console = is_console(packet.database());
        self.claims(packet.database(), packet.user());
        let seat = if is_console {
            None
        } else if memory::pressure() >= Pressure::Full {
            self.shard.stats.memory_refusals.inc();
            return self.part(intake, Ending::SentAway(Farewell::OUT_OF_MEMORY));
        } else if let Some(seat) = Permit::take(&self.shard.common.clients) {
            Some(seat)
        } else {
            return self.part(intake, Ending::SentAway(Farewell::TOO_MANY_CLIENTS));
        };
        if !is_console
            && let Err(ending) = self.unless_told_to_leave(self.shard.unsuspended()).await
        {
            return self.part(intake, ending);
        }
        let snapshot = self.shard.snapshot();
        self.log_attempt(&packet, &snapshot);
        let login = self.log_in(&mut intake, &packet, &snapshot);
        let admission = match self.unless_told_to_leave(login).await {
            Ok(Ok(admission)) => admission,
            Ok(Err(ending)) | Err(ending) => {
                self.shard.stats.login_failures.inc();
                return self.part(intake, ending);
            }
        };
        self.shard.stats.logins.inc();
        // A login takes its time: go on with the configuration that is in force now.
        let snapshot = self.shard.snapshot();
        let admitted = Admitted {
            intake,
            packet,
            admission,
        };
        match seat {
            None => self.console(admitted, &snapshot).await,
            Some(seat) => self.relay(admitted, &snapshot, seat).await,
        }
    }

    fn claims(&self, database: &str, user: &str) {
        self.claim.replace(Some(Box::new(Claim {
            database: database.into(),
            user: user.into(),
        })));
    }

    /// PgBouncer logs who knocks, where we log who has come in.
    fn log_attempt(&self, packet: &StartupPacket, snapshot: &Snapshot) {
        let config = &snapshot.config;
        if config.general.log_connections && config.dialect == Dialect::Ini {
            let replication = logged(packet.replication().unwrap_or_default());
            let is_stranger = is_stranger(packet, snapshot).then_some(true);
            if is_stranger.is_some() {
                self.claims("", packet.user());
            }
            let is_unknown = is_stranger.or_else(|| is_unknown(config, packet.database()));
            tracing::info!(client = %self.entry.id, remote = %self.entry.remote, user = packet.user(), database = packet.database(), is_unknown, is_stranger, tls = self.entry.tls().map(tracing::field::display), replication, "login attempt");
        }
    }

    // ---- the console ---------------------------------------------------------------------

    async fn console(&self, admitted: Admitted, snapshot: &Snapshot) -> Stay {
        let Admitted {
            intake,
            packet,
            admission,
        } = admitted;
        let general = &snapshot.config.general;
        let has = |users: &[String]| users.iter().any(|user| *user == *admission.user);
        let access = match (has(&general.admin_users), has(&general.stats_users)) {
            _ if admission.is_owner => Access::Admin,
            (true, _) => Access::Admin,
            // Whoever says whatever: PgBouncer lets them look.
            (false, false) if general.auth_type == AuthType::Any => Access::Stats,
            (false, true) => Access::Stats,
            _ => return self.part(intake, Ending::SentAway(Farewell::NOT_ALLOWED)),
        };
        let stats = self
            .shard
            .common
            .registry
            .pool(self.shard.id, CONSOLE, CONSOLE);
        stats.client_login_count.inc();
        let who = self.identify(&packet, &admission.user, &CONSOLE.into());
        let key = who.cancel_key.clone();
        self.entry
            .logged_in(who, stats.clone(), self.shard.net.now());
        let session = admin::Session { access, key, stats };
        let (socket, ahead) = intake.into_parts();
        let desk = super::inbox::Desk::new(self.shard.clone(), self.entry.clone());
        let serve = admin::serve(self.shard.net, &socket, ahead, &session, &desk);
        let serve = self.unless_told(serve, |signal| match signal {
            Signal::Leave(farewell) => Some(Ending::SentAway(farewell)),
            Signal::Cancel => {
                desk.cancel();
                None
            }
            Signal::Notice | Signal::Retire | Signal::Suspend => None,
        });
        match serve.await {
            Ok(Parting::Terminated) => Stay::ended(Ending::Terminated),
            Ok(Parting::Vanished) => Stay::ended(Ending::Vanished),
            Ok(Parting::Dismissed(farewell)) => Stay::ended(Ending::CutOff(farewell)),
            Err(ending) => {
                say_farewell(&socket, &ending);
                Stay::ended(ending)
            }
        }
    }

    // ---- to the relay --------------------------------------------------------------------

    async fn relay(&self, admitted: Admitted, snapshot: &Snapshot, seat: Permit) -> Stay {
        let Admitted {
            intake,
            packet,
            admission: Admission {
                user, credentials, ..
            },
        } = admitted;
        let general = &snapshot.config.general;
        let wishes = settings(&packet, general).map(|mut settings| {
            if general.application_name_add_host {
                add_host(&mut settings, &self.entry.remote);
            }
            settings
        });
        let prepared = self.prepare(&packet, &user, credentials, wishes, snapshot);
        let (pool, mut settings) = match prepared {
            Ok(prepared) => prepared,
            Err(farewell) => return self.part(intake, Ending::SentAway(farewell)),
        };
        let [of_database, of_user] = match self.sit_down(&pool.common.key.database, &user) {
            Ok(seats) => seats,
            Err(farewell) => return self.part(intake, Ending::SentAway(farewell)),
        };
        let replication = packet.replication().unwrap_or_default();
        self.entry.replication.set(replication);
        // Most pools are of one user: its clients share the name.
        let user = match &pool.common.key.user {
            same if **same == *user => same.clone(),
            _ => user,
        };
        let who = self.identify(&packet, &user, &pool.common.key.database);
        let key = who.cancel_key.clone();
        self.entry.waits_for_login(who, pool.stats.clone());
        let servers = servers(&pool, wishes_of(&packet, replication), self.entry.id);
        let servers = unless_gone(intake.socket(), servers);
        let (welcome, servers) = match self.unless_told_to_leave(servers).await {
            Ok(Ok(found)) => found,
            Err(Ending::SentAway(farewell)) if farewell == Farewell::LOGIN_TIMEOUT => {
                let down = Farewell::new("client_login_timeout (server down)");
                return self.part(intake, Ending::SentAway(down));
            }
            Ok(Err(ending)) | Err(ending) => return self.part(intake, ending),
        };
        self.entry.greeted(self.shard.net.now());
        self.claim.take();
        if replication != Replication::None {
            // Its server was opened with them, and takes no others.
            settings = self.shard.no_wishes();
        }
        settings.fill(&welcome);
        let settings = self.shard.recent_settings.borrow_mut().share(settings);
        pool.stats.client_login_count.inc();
        if general.log_connections && snapshot.config.dialect == Dialect::Toml {
            tracing::info!(client = %self.entry.id, remote = %self.entry.remote, database = packet.database(), user = &*user, "login");
        }
        let (socket, ahead) = intake.into_parts();
        let mut out = Vec::new();
        let notice = &general.login_notify_message;
        let prepared_max = general.max_prepared_statements.to_string();
        // As PgBouncer from 1.26 on.
        let of_pooler = [
            ("pgbouncer.pool_mode", servers.terms().mode.as_str()),
            ("pgbouncer.max_prepared_statements", &*prepared_max),
        ];
        let of_pooler = match snapshot.config.dialect {
            Dialect::Ini => &of_pooler[..],
            Dialect::Toml => &[],
        };
        greet(&mut out, &welcome, &settings, of_pooler, &key, notice);
        socket.send(out);
        let options = RelaySettings {
            prepared_max: servers.terms().prepared_max,
            packet_bytes_max: general.max_packet_size as usize,
            is_strict: general.prepared_statement_errors_fatal,
            refuses_query: general.disable_pqexec,
            generation: pool.common.generation.clone(),
        };
        if self.shard.is_suspended() {
            self.entry.suspend();
        }
        let (net, entry) = (self.shard.net, self.entry.clone());
        let stores = self.shard.stores.clone();
        let relay = Relay::new(
            net,
            socket,
            ahead,
            entry,
            servers,
            stores,
            pool.stats.clone(),
            settings,
            options,
        );
        Stay::Settled(Box::new(Settled {
            relay,
            pool,
            seats: [seat, of_database, of_user],
        }))
    }

    /// The client's places under the limits of its database and its user.
    fn sit_down(&self, database: &Arc<str>, user: &str) -> Result<[Permit; 2], Farewell> {
        let knows = self.shard.snapshot();
        let permits = self
            .shard
            .common
            .client_permits(database, user, &knows.config);
        let [of_database, of_user] = permits;
        let of_database = Permit::take(&of_database).ok_or(Farewell::TOO_MANY_DB_CLIENTS)?;
        let of_user = Permit::take(&of_user).ok_or(Farewell::TOO_MANY_USER_CLIENTS)?;
        Ok([of_database, of_user])
    }

    /// What follows from a start-up packet, now that its sender is known.
    fn prepare(
        &self,
        packet: &StartupPacket,
        user: &str,
        credentials: ServerCredentials,
        wishes: Result<Settings, Farewell>,
        snapshot: &Snapshot,
    ) -> Result<(Rc<Pool>, Settings), Farewell> {
        // Who came by TCP before its listener closed is served until WAIT_FOR_SERVERS; the Unix socket is open for
        // the console only, as long as it is there to be found.
        let phase = self.shard.phase.get();
        let is_late = || {
            self.entry.remote.is_unix() && !self.shard.common.is_relieved.load(Ordering::Relaxed)
        };
        if phase == Phase::WaitForServers || phase > Phase::Serving && is_late() {
            return Err(Farewell::SHUTTING_DOWN);
        }
        let Some(database) = snapshot.config.database(packet.database()) else {
            if snapshot.config.dialect == Dialect::Ini && snapshot.config.general.log_connections {
                tracing::info!(client = %self.entry.id, remote = %self.entry.remote, user, database = packet.database(), is_unknown = true, "login failed");
            }
            let text = format!("no such database: {}", packet.database());
            return Err(Farewell::with(SqlState::PROTOCOL_VIOLATION, text));
        };
        if self.shard.orders.borrow().own(&database.name).is_disabled {
            let text = format!("database \"{}\" is disabled", database.name);
            return Err(Farewell::because(text));
        }
        if snapshot.config.general.auth_type == AuthType::Any && database.user.is_none() {
            tracing::error!(client = %self.entry.id, database = ?database.name, "auth_type any requires a user of the database");
            return Err(Farewell::CONFIG_ERROR);
        }
        let settings = wishes?;
        if let Some(name) = settings.tracked("application_name") {
            self.entry
                .application_name
                .replace(String::from_utf8_lossy(name).into());
        }
        let pool = self.shard.pool(&database, database.server_user(user));
        learn(&pool, &database, user, credentials, snapshot);
        Ok((pool, settings))
    }

    /// Who the client is, with a new cancel key.
    fn identify(&self, packet: &StartupPacket, user: &Arc<str>, database: &Arc<str>) -> Who {
        let cancel_key = self.fresh_key(packet.minor() >= 2);
        if let Some(handle) = cancel_key.handle() {
            self.shard.peered.borrow_mut().insert(handle, self.slot());
        }
        Who {
            database: database.clone(),
            user: user.clone(),
            cancel_key,
        }
    }

    /// A cancel key that nobody has, not even somebody who had this slot and has moved.
    fn fresh_key(&self, is_long: bool) -> CancelKey {
        loop {
            let mut secret = [0; 32];
            fill_random(&mut secret);
            let peer_id = self.shard.snapshot().config.general.peer_id;
            let key = match peer_id {
                0 => CancelKey::new(self.shard.id, self.slot(), is_long, secret),
                own => CancelKey::with_peer(own, self.shard.id, is_long, secret),
            };
            let peered = self.shard.peered.borrow();
            let is_taken = key.handle().is_some_and(|it| peered.contains_key(&it));
            if !is_taken && !self.shard.strays.borrow().knows(&key.name()) {
                return key;
            }
        }
    }

    // ---- leaving -------------------------------------------------------------------------

    /// Runs `work` unless somebody tells the client to leave first.
    async fn unless_told_to_leave<T>(&self, work: impl Future<Output = T>) -> Result<T, Ending> {
        self.unless_told(work, |signal| match signal {
            Signal::Leave(farewell) => Some(Ending::SentAway(farewell)),
            Signal::Cancel | Signal::Notice | Signal::Retire | Signal::Suspend => None,
        })
        .await
    }

    /// Runs `work` unless `hear` makes something that the client is told the end.
    async fn unless_told<T>(
        &self,
        work: impl Future<Output = T>,
        hear: impl Fn(Signal) -> Option<Ending>,
    ) -> Result<T, Ending> {
        let told = poll_fn(|cx| {
            while let Some(signal) = self.entry.poll_signal(cx) {
                if let Some(ending) = hear(signal) {
                    return Poll::Ready(Err(ending));
                }
            }
            Poll::Pending
        });
        futures_lite::future::or(told, async { Ok(work.await) }).await
    }

    /// Sends a client away that has not reached the relay.
    fn part(&self, intake: Intake, ending: Ending) -> Stay {
        say_farewell(intake.socket(), &ending);
        Stay::ended(ending)
    }

    fn log_ending(&self, ending: &Ending) {
        let snapshot = self.shard.snapshot();
        let general = &snapshot.config.general;
        let (id, remote) = (self.entry.id, &self.entry.remote);
        let (who, claim) = (self.entry.who(), self.claim.take());
        let known = who.map(|who| (&*who.database, &*who.user));
        let claimed = claim.as_ref().map(|claim| (&*claim.database, &*claim.user));
        let (mut database, user) = known.or(claimed).unwrap_or_default();
        let is_ini = snapshot.config.dialect == Dialect::Ini;
        if is_ini && known.is_none() && is_unknown(&snapshot.config, database).is_some() {
            database = "";
        }
        let why = match ending {
            Ending::Terminated => "client close request",
            Ending::Vanished => "client unexpected eof",
            Ending::SentAway(farewell) | Ending::CutOff(farewell) => &*farewell.text,
            // It has not left.
            Ending::Moving(_) | Ending::Displaced => return,
        };
        let has_knocked_only =
            self.entry.state() == ClientState::Login && matches!(ending, Ending::Vanished);
        let is_told = match is_ini {
            true => !has_knocked_only,
            false => self.entry.state() != ClientState::Login,
        };
        if general.log_disconnections && is_told {
            let age_us = Clock::unix_micros().saturating_sub(self.entry.connected_unix_us);
            tracing::info!(client = %id, %remote, database, user, why, age_s = age_us / 1_000_000, "closing client connection");
        } else if general.log_disconnections {
            // Of health checks there are many.
            tracing::debug!(client = %id, %remote, why, "client left before it was in");
        }
        if general.log_pooler_errors
            && let Ending::SentAway(farewell) | Ending::CutOff(farewell) = ending
        {
            let text = &*farewell.text;
            tracing::warn!(client = %id, %remote, database, user, text, "pooler error");
        }
    }
}

impl Shard {
    /// In PgBouncer, what a console session has been refused is an error of the pooler, which it says twice. Our own form
    /// has neither: a command may hold anything.
    pub(super) fn log_refusal(&self, client: &ClientEntry, refusal: &Refusal) {
        let snapshot = self.snapshot();
        let Some(who) = client
            .who()
            .filter(|_| snapshot.config.dialect == Dialect::Ini)
        else {
            return;
        };
        tracing::error!("{refusal}");
        if snapshot.config.general.log_pooler_errors {
            let (database, user) = (&*who.database, &*who.user);
            let text = refusal.to_string();
            tracing::warn!(client = %client.id, remote = %client.remote, database, user, text, "pooler error");
        }
    }
}

/// True if there is no such database; else nothing.
fn is_unknown(config: &Config, database: &str) -> Option<bool> {
    let is_known = is_console(database) || config.database(database).is_some();
    (!is_known).then_some(true)
}

/// Runs `work` unless the client hangs up first: whatever it said before, it does not wait any more.
async fn unless_gone<T>(
    socket: &Socket,
    work: impl Future<Output = Result<T, Farewell>>,
) -> Result<T, Ending> {
    let gone = poll_fn(|cx| {
        if socket.is_ending() {
            return Poll::Ready(Err(Ending::Vanished));
        }
        socket.watch(cx);
        Poll::Pending
    });
    let work = async { work.await.map_err(Ending::SentAway) };
    futures_lite::future::or(work, gone).await
}

pub(super) fn say_farewell(socket: &Socket, ending: &Ending) {
    if let Ending::SentAway(farewell) = ending {
        let mut out = Vec::new();
        farewell.write(&mut out);
        socket.send(out);
    }
}

/// Keeps what a login taught us for logins to servers, if servers are logged in as the same user.
fn learn(
    pool: &Pool,
    database: &Database,
    user: &str,
    learned: ServerCredentials,
    snapshot: &Snapshot,
) {
    if database
        .user
        .as_deref()
        .is_some_and(|forced| forced != user)
        || database.password.is_some()
    {
        return;
    }
    let credentials = match learned {
        ServerCredentials::Nothing => {
            ServerCredentials::from_verifier(snapshot.users.lookup(user).verifier())
        }
        learned => learned,
    };
    let is_worthless = matches!(
        credentials,
        ServerCredentials::Nothing | ServerCredentials::VerifierOnly
    );
    let known = pool.common.credentials.load();
    // What lets nobody in does not replace what another way of logging in has taught.
    if **known != credentials && !(is_worthless && **known != ServerCredentials::Nothing) {
        pool.common.credentials.store(Arc::new(credentials));
    }
}

/// What the client is greeted with, and where it gets its servers from: the pool, or for replication a server of
/// its own.
async fn servers(
    pool: &Rc<Pool>,
    wishes: Option<Wishes>,
    client: ClientId,
) -> Result<(Arc<ServerParams>, Rc<dyn Servers>), Farewell> {
    let Some(wishes) = wishes else {
        // From before the wait: the pool may have become another user's by its end.
        let servers = Rc::new(Counter::new(pool.clone()));
        return Ok((welcome(pool).await?, servers));
    };
    let server = open_apart(pool, wishes).await?;
    let welcome = Arc::new(server.dialogue.params.clone());
    Ok((
        welcome,
        Rc::new(Dedicated::new(pool.clone(), server, client)),
    ))
}

/// What a server of the pool reports: the base of the client's welcome. The first client of a pool
/// waits for a server to be opened.
async fn welcome(pool: &Rc<Pool>) -> Result<Arc<ServerParams>, Farewell> {
    if let Some(welcome) = pool.common.welcome.load_full() {
        return Ok(welcome);
    }
    let began = pool.shard.net.now();
    let server = in_line(pool).await?;
    pool.stats
        .waited_for_welcome(pool.shard.net.now().since(began));
    let welcome = Arc::new(server.dialogue.params.clone());
    if pool.outdated(&server).is_none() {
        pool.common.welcome.store(Some(welcome.clone()));
    }
    pool.take_back(server);
    Ok(welcome)
}

/// Waits for a server of the pool, as patiently as a client that logs in.
pub(super) async fn in_line(pool: &Rc<Pool>) -> Result<Server, Farewell> {
    loop {
        let place = Line {
            pool,
            waiter: Rc::default(),
        };
        pool.request(&place.waiter, true);
        match poll_fn(|cx| place.waiter.poll(cx)).await {
            Ok(server) => return Ok(server),
            Err(Denial::Leave(farewell)) => return Err(farewell),
            Err(Denial::Busy(text)) => {
                return Err(Farewell::with(SqlState::TOO_MANY_CONNECTIONS, text));
            }
            // It is this pool that is wanted, whoever its clients are now.
            Err(Denial::Displaced) => {}
        }
    }
}

struct Line<'a> {
    pool: &'a Rc<Pool>,
    waiter: Rc<Waiter>,
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.pool.withdraw(&self.waiter);
    }
}
