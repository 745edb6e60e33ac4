//! Named prepared statements in transaction mode: the client's names, and what each server has.
//!
//! A statement is known by the hash of its text and parameter types, and its name on every server
//! is made from that hash; so clients, shards and servers agree on names without talking to each
//! other, and a server that moves to another shard takes its statements along. SHA-256, cut to 128
//! bits, because a collision would run one client's statement for another.
//!
//! ```text
//!  on a server:  absent ──Parse sent──► Pending(batch) ──ParseComplete──► Confirmed
//!                                         ▲       │ error                    │ Close sent, skipped
//!                    Close, Parse sent    │       ▼                          │
//!                                         └─ Doubtful ◄──────────────────────┘
//! ```
//! A statement that is `Pending` in an earlier batch may have failed by the time the next batch
//! runs, so it counts as doubtful there: Close (no error if it is missing) and Parse again.
//!
//! DDL can change the type of a statement's result; a server then refuses to run it ("cached plan must
//! not change result type", 0A000) until it is prepared anew. So every pool counts *generations*: the
//! first such error begins the next one, and a statement has another name in each. A client's name
//! belongs to a generation, and moves to the current one when the client cannot be deceived by rows of
//! another shape: when it prepares or describes the statement, or takes its values as text.

use super::usage::Usage;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use lru::LruCache;
use sha2::{Digest, Sha256};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const ID_BYTES: usize = 16;

/// What a client's name or a statement takes besides its bytes, in bytes, roughly.
const OVERHEAD_BYTES: usize = 160;

/// What one pool's prepared statements know of its tables: one more whenever DDL has made some of
/// them useless. Shared by all shards.
#[derive(Debug, Default)]
pub struct Generation(AtomicU32);

impl Generation {
    /// The current one.
    pub fn current(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// A statement of generation `seen` has turned out to be useless: from now on statements are
    /// prepared in a later one.
    pub fn is_over(&self, seen: u32) {
        let next = seen.wrapping_add(1);
        let _ = self
            .0
            .compare_exchange(seen, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Memory that the prepared statements of all clients may take.
#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    max: AtomicU64,
}

impl Budget {
    /// A budget of `bytes_max`.
    pub fn new(bytes_max: u64) -> Budget {
        Budget {
            used: AtomicU64::new(0),
            max: AtomicU64::new(bytes_max),
        }
    }

    /// Sets another bound; what is in use stays.
    pub fn set_max(&self, bytes_max: u64) {
        self.max.store(bytes_max, Ordering::Relaxed);
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn charge(self: &Arc<Budget>, bytes: usize) -> Result<Charge, TooMany> {
        let (charge, used) = self.charge_anyway(bytes);
        let is_within = used <= self.max.load(Ordering::Relaxed);
        // The charge is given back when it is dropped.
        is_within.then_some(charge).ok_or(TooMany)
    }

    /// Charges what cannot be refused; gives the bytes in use with it, too.
    fn charge_anyway(self: &Arc<Budget>, bytes: usize) -> (Charge, u64) {
        let bytes = (bytes.saturating_add(OVERHEAD_BYTES)) as u64;
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let charge = Charge {
            budget: self.clone(),
            bytes,
        };
        (charge, before.saturating_add(bytes))
    }
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The prepared statements of all clients take more memory than they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("prepared statements exceed prepared_statements_bytes_max")]
pub struct TooMany;

/// Hash of a statement's text, parameter types and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatementId([u8; ID_BYTES]);

/// A statement's text and parameter types, shared by all clients of a shard that prepared it.
#[derive(Debug)]
pub struct Statement {
    id: StatementId,
    name: Box<str>,
    body: Box<[u8]>,
    form: Form,
    generation: u32,
    usage: Usage,
    charge: Charge,
}

/// How a statement is prepared.
#[derive(Clone, Debug)]
pub enum Form {
    /// With a Parse message.
    Parse,
    /// The same; its text is an EXECUTE of this one.
    ParseOf(Rc<Statement>),
    /// With PREPARE: the body is what follows the name in its text.
    Sql,
}

impl Statement {
    /// Its name on every server.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What follows the name in its Parse message: text, NUL, parameter types.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The hash it is known by.
    pub fn id(&self) -> StatementId {
        self.id
    }

    /// The generation it belongs to.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// How often it was used.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Memory that it takes, in bytes, roughly.
    pub fn bytes(&self) -> u64 {
        self.charge.bytes
    }

    /// How it is prepared.
    pub fn form(&self) -> &Form {
        &self.form
    }
}

/// The statements of one shard's clients.
#[derive(Debug)]
pub struct Statements {
    known: HashMap<StatementId, Weak<Statement>>,
    sweep_at: usize,
    budget: Arc<Budget>,
}

impl Statements {
    /// None yet; their memory counts in `budget`.
    pub fn new(budget: Arc<Budget>) -> Statements {
        Statements {
            known: HashMap::new(),
            sweep_at: 0,
            budget,
        }
    }

    /// The statement with this body (see [`Statement::body`]), in this generation.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn intern(
        &mut self,
        body: &[u8],
        form: Form,
        generation: u32,
    ) -> Result<Rc<Statement>, TooMany> {
        let id = id_of(body, &form, generation);
        if let Some(statement) = self.known.get(&id).and_then(Weak::upgrade) {
            return Ok(statement);
        }
        let charge = self.budget.charge(body.len())?;
        Ok(self.add(id, body, form, generation, charge))
    }

    /// As [`Statements::intern`], for a client that has prepared it on another shard: that cannot be refused.
    pub(super) fn take_over(&mut self, body: &[u8], form: Form, generation: u32) -> Rc<Statement> {
        let id = id_of(body, &form, generation);
        if let Some(statement) = self.known.get(&id).and_then(Weak::upgrade) {
            return statement;
        }
        let (charge, _) = self.budget.charge_anyway(body.len());
        self.add(id, body, form, generation, charge)
    }

    fn add(
        &mut self,
        id: StatementId,
        body: &[u8],
        form: Form,
        generation: u32,
        charge: Charge,
    ) -> Rc<Statement> {
        let statement = Rc::new(Statement {
            id,
            name: server_name(id).into_boxed_str(),
            body: body.into(),
            form,
            generation,
            usage: Usage::default(),
            charge,
        });
        self.known.insert(id, Rc::downgrade(&statement));
        self.sweep();
        statement
    }

    /// Every statement that somebody has.
    pub fn all(&self) -> Vec<Rc<Statement>> {
        self.known.values().filter_map(Weak::upgrade).collect()
    }

    /// A server has given a statement up.
    pub fn evicted(&self, id: StatementId) {
        if let Some(statement) = self.known.get(&id).and_then(Weak::upgrade) {
            statement.usage.evicted();
        }
    }

    /// Forgets statements that no client has any more, whenever the table has doubled.
    fn sweep(&mut self) {
        if self.known.len() > self.sweep_at {
            self.known
                .retain(|_, statement| statement.strong_count() > 0);
            self.sweep_at = (self.known.len() * 2).max(64);
        }
    }
}

fn id_of(body: &[u8], form: &Form, generation: u32) -> StatementId {
    let mut hash = Sha256::new_with_prefix(body);
    if matches!(form, Form::Sql) {
        hash.update(b"PREPARE");
    }
    if generation > 0 {
        hash.update(generation.to_be_bytes());
    }
    let mut id = [0; ID_BYTES];
    for (to, from) in id.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    StatementId(id)
}

#[derive(Debug)]
pub(super) struct Registered {
    /// Which registration of the name this is, so that an undo hits no later one.
    pub(super) serial: u64,
    pub(super) statement: Rc<Statement>,
    /// Its Parse has been answered.
    pub(super) is_confirmed: bool,
    /// What the name takes of the budget.
    pub(super) charge: Charge,
}

/// One client's names. Most clients have none, and then need no memory for them.
#[derive(Debug, Default)]
pub struct ClientStatements(pub(super) Option<Box<Names>>);

#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) names: HashMap<Box<[u8]>, Registered>,
    pub(super) serial: u64,
}

impl ClientStatements {
    /// How many names there are.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |it| it.names.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The statement behind a name.
    pub fn get(&self, name: &[u8]) -> Option<&Rc<Statement>> {
        let registered = self.0.as_ref()?.names.get(name)?;
        Some(&registered.statement)
    }

    fn get_mut(&mut self, name: &[u8]) -> Option<&mut Registered> {
        self.0.as_mut()?.names.get_mut(name)
    }

    /// Registers a name that is not in use; the change is confirmed or undone with the reply to its
    /// Parse.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn register(
        &mut self,
        name: &[u8],
        statement: Rc<Statement>,
    ) -> Result<ClientChange, TooMany> {
        let charge = statement.charge.budget.charge(name.len())?;
        let it = self.0.get_or_insert_default();
        it.serial += 1;
        let serial = it.serial;
        it.names.insert(
            name.into(),
            Registered {
                serial,
                statement,
                is_confirmed: false,
                charge,
            },
        );
        Ok(ClientChange::Registered {
            name: name.into(),
            serial,
        })
    }

    /// Lets a name stand for the same statement in another generation.
    pub fn move_to(&mut self, name: &[u8], statement: Rc<Statement>) {
        if let Some(registered) = self.get_mut(name) {
            registered.statement = statement;
        }
    }

    /// Forgets a name; undone if the Close turns out to have been skipped.
    pub fn close(&mut self, name: &[u8]) -> Option<ClientChange> {
        let registered = self.0.as_mut()?.names.remove(name)?;
        Some(ClientChange::Closed {
            name: name.into(),
            registered,
        })
    }

    /// Forgets all names (DEALLOCATE ALL, DISCARD ALL), but for those whose Parse comes behind that
    /// command.
    pub fn clear(&mut self) {
        if let Some(it) = &mut self.0 {
            it.names.retain(|_, registered| !registered.is_confirmed);
        }
    }

    fn confirm(&mut self, name: &[u8], serial: u64) {
        if let Some(registered) = self.get_mut(name)
            && registered.serial == serial
        {
            registered.is_confirmed = true;
        }
    }

    fn undo(&mut self, change: ClientChange) {
        let Some(it) = &mut self.0 else { return };
        match change {
            ClientChange::Registered { name, serial } => {
                let known = it.names.get(&name);
                if known.is_some_and(|registered| registered.serial == serial) {
                    it.names.remove(&name);
                }
            }
            ClientChange::Closed {
                name,
                mut registered,
            } => {
                // If its Parse was skipped as well, that is undone next.
                registered.is_confirmed = true;
                it.names.entry(name).or_insert(registered);
            }
        }
    }
}

/// What a Parse or Close did to a client's names.
#[derive(Debug)]
pub enum ClientChange {
    /// A name was taken.
    Registered {
        /// The client's name.
        name: Box<[u8]>,
        /// Which registration of it.
        serial: u64,
    },
    /// A name was given up.
    Closed {
        /// The client's name.
        name: Box<[u8]>,
        /// What it stood for.
        #[allow(private_interfaces)]
        registered: Registered,
    },
}

/// What a Parse or Close did to a server's statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerChange {
    /// A Parse was sent in this batch.
    Prepared(StatementId, u64),
    /// A Close was sent.
    Evicted(StatementId),
}

/// A change that the reply to a message confirms or undoes.
#[derive(Debug, Default)]
pub struct Change {
    /// To the client's names.
    pub client: Option<ClientChange>,
    /// To the server's statements.
    pub server: Option<ServerChange>,
    /// None: the server has been made to fail (42P05), so that the client's batch fails at the right
    /// place; what the client is to be told.
    pub refusal: Option<Refusal>,
    /// What the statements of a Query change, one after the other as they complete.
    pub steps: VecDeque<Change>,
}

/// Why the pooler refuses a Parse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The client has a statement of this name.
    NameInUse(Box<[u8]>),
    /// See [`TooMany`].
    TooMany,
}

impl From<ServerChange> for Change {
    fn from(change: ServerChange) -> Change {
        Change {
            server: Some(change),
            ..Change::default()
        }
    }
}

impl From<ClientChange> for Change {
    fn from(change: ClientChange) -> Change {
        Change {
            client: Some(change),
            ..Change::default()
        }
    }
}

impl Change {
    /// The message was answered.
    pub fn confirm(self, client: &mut ClientStatements, server: &mut ServerStatements) {
        if let Some(ClientChange::Registered { name, serial }) = self.client {
            client.confirm(&name, serial);
        }
        match self.server {
            Some(ServerChange::Prepared(id, batch)) => server.settle(id, batch, State::Confirmed),
            Some(ServerChange::Evicted(id)) => server.closed(id),
            None => {}
        }
        // The Query is over: these have failed, or were not got to.
        for step in self.steps.into_iter().rev() {
            step.undo(client, server);
        }
    }

    /// One statement of the Query has completed.
    pub fn step(&mut self, client: &mut ClientStatements, server: &mut ServerStatements) {
        if let Some(step) = self.steps.pop_front() {
            step.confirm(client, server);
        }
    }

    /// The message failed, or was skipped after an earlier failure.
    pub fn undo(self, client: &mut ClientStatements, server: &mut ServerStatements) {
        if let Some(change) = self.client {
            client.undo(change);
        }
        match self.server {
            Some(ServerChange::Prepared(id, batch)) => server.settle(id, batch, State::Doubtful),
            Some(ServerChange::Evicted(id)) => {
                server.closed(id);
                server.cache.push(id, State::Doubtful);
            }
            None => {}
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Confirmed,
    Pending(u64),
    Doubtful,
}

/// What must be sent before a statement can be used on a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preparation {
    /// Close these statements first, to make room.
    pub evict: Vec<StatementId>,
    /// Close the statement itself first, as the server may or may not have it.
    pub close: bool,
    /// Prepare it, in this batch.
    pub parse: Option<u64>,
}

/// The statements that one server has prepared: least recently used last, bounded.
#[derive(Debug)]
pub struct ServerStatements {
    cache: LruCache<StatementId, State>,
    /// Evicted with so many Closes that may yet turn out to have been skipped.
    closing: HashMap<StatementId, u32>,
    batch: u64,
}

impl Default for ServerStatements {
    fn default() -> ServerStatements {
        ServerStatements {
            cache: LruCache::unbounded(),
            closing: HashMap::new(),
            batch: 0,
        }
    }
}

impl ServerStatements {
    /// How many statements the server has.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// A Sync was sent: what follows it runs whether or not what went before failed.
    pub fn synced(&mut self) {
        self.batch += 1;
    }

    /// Notes that `id` is about to be used and says what has to be sent first; `max` bounds how
    /// many statements the server keeps.
    pub fn prepare(&mut self, id: StatementId, max: usize) -> Preparation {
        let batch = self.batch;
        let close = match self.cache.get_mut(&id) {
            Some(State::Confirmed) => return Preparation::default(),
            Some(State::Pending(pending)) if *pending == batch => return Preparation::default(),
            Some(state) => {
                *state = State::Pending(batch);
                true
            }
            None => {
                self.cache.push(id, State::Pending(batch));
                self.closing.contains_key(&id)
            }
        };
        Preparation {
            evict: self.evict(id, max),
            close,
            parse: Some(batch),
        }
    }

    /// As [`ServerStatements::prepare`], for a statement that is prepared anew even if it is there.
    pub fn prepare_anew(&mut self, id: StatementId, max: usize) -> Preparation {
        if let Some(state) = self.cache.get_mut(&id) {
            *state = State::Doubtful;
        }
        let preparation = self.prepare(id, max);
        Preparation {
            close: true,
            ..preparation
        }
    }

    /// All statements are gone (DEALLOCATE ALL, DISCARD ALL), but for those whose Parse may come
    /// behind that command.
    pub fn clear(&mut self) {
        let ids: Vec<StatementId> = self.cache.iter().map(|(id, _)| *id).collect();
        for id in ids {
            match self.cache.peek_mut(&id) {
                Some(state @ (State::Pending(_) | State::Doubtful)) => *state = State::Doubtful,
                _ => drop(self.cache.pop(&id)),
            }
        }
    }

    /// Something the pooler knows nothing of has made statements go: whether they are there is to be
    /// found out for each.
    pub fn doubt(&mut self) {
        self.cache
            .iter_mut()
            .for_each(|(_, state)| *state = State::Doubtful);
    }

    /// As many as are too many: more than one if an earlier Close was skipped.
    fn evict(&mut self, keep: StatementId, max: usize) -> Vec<StatementId> {
        let mut evicted = Vec::new();
        while self.cache.len() > max.max(1) {
            match self.cache.pop_lru() {
                Some((oldest, _)) if oldest != keep => evicted.push(oldest),
                _ => break,
            }
        }
        for id in &evicted {
            *self.closing.entry(*id).or_default() += 1;
        }
        evicted
    }

    /// What became of a Close is known.
    fn closed(&mut self, id: StatementId) {
        if let Entry::Occupied(mut closing) = self.closing.entry(id) {
            *closing.get_mut() -= 1;
            if *closing.get() == 0 {
                closing.remove();
            }
        }
    }

    /// Whether the statement is there is known, or known to be unknown, now; unless it has been
    /// prepared again since.
    fn settle(&mut self, id: StatementId, batch: u64, state: State) {
        if let Some(place) = self.cache.peek_mut(&id)
            && *place == State::Pending(batch)
        {
            *place = state;
        }
    }
}

/// The name of a statement on every server.
pub fn server_name(id: StatementId) -> String {
    format!("rb_{}", BASE64_URL_SAFE_NO_PAD.encode(id.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> StatementId {
        StatementId([n; ID_BYTES])
    }

    fn statements() -> Statements {
        Statements::new(Arc::new(Budget::new(1 << 20)))
    }

    #[test]
    fn same_text_is_one_statement_with_one_name() {
        let mut statements = statements();
        let a = statements
            .intern(b"select 1\0\0\0", Form::Parse, 0)
            .unwrap();
        let b = statements
            .intern(b"select 1\0\0\0", Form::Parse, 0)
            .unwrap();
        assert!(Rc::ptr_eq(&a, &b));
        assert_ne!(
            statements
                .intern(b"select 2\0\0\0", Form::Parse, 0)
                .unwrap()
                .name(),
            a.name()
        );
        assert_eq!(a.name(), server_name(a.id()));
        assert!(a.name().len() < 64, "fits a PostgreSQL identifier");
    }

    #[test]
    fn every_generation_has_names_of_its_own() {
        let mut statements = statements();
        let generation = Generation::default();
        let old = statements
            .intern(b"select 1\0\0\0", Form::Parse, generation.current())
            .unwrap();
        generation.is_over(old.generation());
        generation.is_over(old.generation());
        assert_eq!(generation.current(), 1, "told twice, it ends once");
        let new = statements
            .intern(b"select 1\0\0\0", Form::Parse, generation.current())
            .unwrap();
        assert_ne!(old.name(), new.name());
        assert_eq!(old.body(), new.body());
    }

    #[test]
    fn budget_bounds_texts_and_names_and_is_given_back() {
        let budget = Arc::new(Budget::new(10_000));
        let mut statements = Statements::new(budget.clone());
        let mut client = ClientStatements::default();
        assert_eq!(
            statements.intern(&[b'x'; 10_000], Form::Parse, 0).err(),
            Some(TooMany)
        );
        assert_eq!(budget.used(), 0);
        let statement = statements.intern(&[b'x'; 5_000], Form::Parse, 0).unwrap();
        client.register(b"short", statement.clone()).unwrap();
        let refused = client.register(&[b'n'; 5_000], statement.clone());
        assert_eq!(refused.err(), Some(TooMany));
        drop((client, statement));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn statements_nobody_has_are_forgotten() {
        let mut statements = statements();
        for n in 0..1000u32 {
            statements.intern(&n.to_be_bytes(), Form::Parse, 0).unwrap();
        }
        assert!(statements.known.len() <= 65);
    }

    #[test]
    fn confirmed_statement_needs_nothing() {
        let mut server = ServerStatements::default();
        assert_eq!(
            server.prepare(id(1), 10),
            Preparation {
                parse: Some(0),
                ..Preparation::default()
            }
        );
        Change::from(ServerChange::Prepared(id(1), 0))
            .confirm(&mut ClientStatements::default(), &mut server);
        server.synced();
        assert_eq!(server.prepare(id(1), 10), Preparation::default());
    }

    #[test]
    fn parse_that_was_skipped_may_have_been_prepared_before() {
        let (mut client, mut server) = (ClientStatements::default(), ServerStatements::default());
        let prepared = |batch| Change::from(ServerChange::Prepared(id(1), batch));
        server.prepare(id(1), 10);
        server.synced();
        server.prepare(id(1), 10);
        // The first Parse worked, the second was skipped after an error: the server has it.
        prepared(0).confirm(&mut client, &mut server);
        prepared(1).undo(&mut client, &mut server);
        server.synced();
        let again = server.prepare(id(1), 10);
        assert!(again.close && again.parse.is_some());
    }

    #[test]
    fn statement_prepared_behind_a_discard_is_not_taken_for_gone() {
        let mut server = ServerStatements::default();
        server.prepare(id(1), 10);
        server.clear();
        assert!(server.prepare(id(1), 10).close);
    }

    #[test]
    fn unconfirmed_statement_of_an_earlier_batch_is_closed_and_prepared_again() {
        let mut server = ServerStatements::default();
        server.prepare(id(1), 10);
        assert_eq!(server.prepare(id(1), 10), Preparation::default());
        server.synced();
        let again = server.prepare(id(1), 10);
        assert_eq!(
            again,
            Preparation {
                close: true,
                parse: Some(1),
                evict: Vec::new()
            }
        );
        // The first Parse failed: that says nothing about the second.
        let mut client = ClientStatements::default();
        Change::from(ServerChange::Prepared(id(1), 0)).undo(&mut client, &mut server);
        Change::from(ServerChange::Prepared(id(1), 1)).confirm(&mut client, &mut server);
        assert_eq!(server.prepare(id(1), 10), Preparation::default());
    }

    #[test]
    fn least_recently_used_statement_makes_room() {
        let mut server = ServerStatements::default();
        server.prepare(id(1), 2);
        server.prepare(id(2), 2);
        server.prepare(id(1), 2);
        assert_eq!(server.prepare(id(3), 2).evict, [id(2)]);
        assert_eq!(server.len(), 2);
    }

    #[test]
    fn statement_evicted_twice_is_closing_until_both_closes_are_answered() {
        let mut server = ServerStatements::default();
        for n in [1, 2, 1, 2] {
            server.prepare(id(n), 1);
        }
        let again = |server: &mut ServerStatements| {
            let close = server.prepare(id(1), 5).close;
            server.cache.pop(&id(1));
            close
        };
        server.closed(id(1));
        assert!(again(&mut server));
        server.closed(id(1));
        assert!(!again(&mut server));
        server.closed(id(1));
    }

    #[test]
    fn skipped_close_leaves_a_doubtful_statement() {
        let mut server = ServerStatements::default();
        let mut client = ClientStatements::default();
        server.prepare(id(1), 1);
        assert_eq!(server.prepare(id(2), 1).evict, [id(1)]);
        Change::from(ServerChange::Evicted(id(1))).undo(&mut client, &mut server);
        assert!(server.prepare(id(1), 5).close);
    }

    #[test]
    fn undo_of_a_registration_spares_a_later_one() {
        let mut statements = statements();
        let mut client = ClientStatements::default();
        let mut server = ServerStatements::default();
        let first = client
            .register(b"s", statements.intern(b"1", Form::Parse, 0).unwrap())
            .unwrap();
        client.close(b"s");
        client
            .register(b"s", statements.intern(b"2", Form::Parse, 0).unwrap())
            .unwrap();
        Change::from(first).undo(&mut client, &mut server);
        assert_eq!(client.get(b"s").unwrap().body(), b"2");
    }

    #[test]
    fn name_whose_close_is_undone_goes_with_all_others() {
        let mut statements = statements();
        let (mut client, mut server) = (ClientStatements::default(), ServerStatements::default());
        let statement = statements.intern(b"1", Form::Parse, 0).unwrap();
        let registered = client.register(b"s", statement).unwrap();
        let closed = client.close(b"s").unwrap();
        Change::from(registered).confirm(&mut client, &mut server);
        Change::from(closed).undo(&mut client, &mut server);
        client.clear();
        assert!(client.is_empty());
    }

    #[test]
    fn undone_close_gives_the_name_back() {
        let mut statements = statements();
        let mut client = ClientStatements::default();
        client
            .register(b"s", statements.intern(b"1", Form::Parse, 0).unwrap())
            .unwrap();
        let closed = client.close(b"s");
        assert!(client.is_empty());
        Change {
            client: closed,
            ..Change::default()
        }
        .undo(&mut client, &mut ServerStatements::default());
        assert_eq!(client.len(), 1);
    }
}
