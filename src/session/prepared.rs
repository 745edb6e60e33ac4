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

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use lru::LruCache;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

const ID_BYTES: usize = 16;

/// Hash of a statement's text and parameter types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatementId([u8; ID_BYTES]);

/// A statement's text and parameter types, shared by all clients of a shard that prepared it.
#[derive(Debug)]
pub struct Statement {
    id: StatementId,
    name: Box<str>,
    body: Box<[u8]>,
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
}

/// The statements of one shard's clients.
#[derive(Debug, Default)]
pub struct Statements {
    known: HashMap<StatementId, Weak<Statement>>,
    sweep_at: usize,
}

impl Statements {
    /// The statement with this Parse body (see [`Statement::body`]).
    pub fn intern(&mut self, body: &[u8]) -> Rc<Statement> {
        let id = id_of(body);
        if let Some(statement) = self.known.get(&id).and_then(Weak::upgrade) {
            return statement;
        }
        let name = format!("rb_{}", BASE64_URL_SAFE_NO_PAD.encode(id.0)).into_boxed_str();
        let statement = Rc::new(Statement {
            id,
            name,
            body: body.into(),
        });
        self.known.insert(id, Rc::downgrade(&statement));
        self.sweep();
        statement
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

fn id_of(body: &[u8]) -> StatementId {
    let mut id = [0; ID_BYTES];
    for (to, from) in id.iter_mut().zip(Sha256::digest(body)) {
        *to = from;
    }
    StatementId(id)
}

#[derive(Clone, Debug)]
struct Registered {
    /// Which registration of the name this is, so that an undo hits no later one.
    serial: u64,
    statement: Rc<Statement>,
    /// Its Parse has been answered.
    is_confirmed: bool,
}

/// One client's names.
#[derive(Debug, Default)]
pub struct ClientStatements {
    names: HashMap<Box<[u8]>, Registered>,
    serial: u64,
}

/// The name is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("prepared statement name is already in use")]
pub struct NameInUse;

impl ClientStatements {
    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The statement behind a name.
    pub fn get(&self, name: &[u8]) -> Option<&Rc<Statement>> {
        self.names.get(name).map(|registered| &registered.statement)
    }

    /// Registers a name; the change is confirmed or undone with the reply to its Parse.
    ///
    /// # Errors
    /// [`NameInUse`].
    pub fn register(
        &mut self,
        name: &[u8],
        statement: Rc<Statement>,
    ) -> Result<ClientChange, NameInUse> {
        if self.names.contains_key(name) {
            return Err(NameInUse);
        }
        self.serial += 1;
        self.names.insert(
            name.into(),
            Registered {
                serial: self.serial,
                statement,
                is_confirmed: false,
            },
        );
        Ok(ClientChange::Registered {
            name: name.into(),
            serial: self.serial,
        })
    }

    /// Forgets a name; undone if the Close turns out to have been skipped.
    pub fn close(&mut self, name: &[u8]) -> Option<ClientChange> {
        let registered = self.names.remove(name)?;
        Some(ClientChange::Closed {
            name: name.into(),
            registered,
        })
    }

    /// Forgets all names (DEALLOCATE ALL, DISCARD ALL), but for those whose Parse comes behind that
    /// command.
    pub fn clear(&mut self) {
        self.names.retain(|_, registered| !registered.is_confirmed);
    }

    fn confirm(&mut self, name: &[u8], serial: u64) {
        if let Some(registered) = self.names.get_mut(name)
            && registered.serial == serial
        {
            registered.is_confirmed = true;
        }
    }

    fn undo(&mut self, change: ClientChange) {
        match change {
            ClientChange::Registered { name, serial } => {
                if self
                    .names
                    .get(&name)
                    .is_some_and(|registered| registered.serial == serial)
                {
                    self.names.remove(&name);
                }
            }
            ClientChange::Closed { name, registered } => {
                self.names.entry(name).or_insert(registered);
            }
        }
    }
}

/// A client's names on their way to another shard, each with the statement's text.
#[derive(Debug, Default)]
pub struct PackedStatements {
    names: Vec<PackedName>,
    serial: u64,
}

#[derive(Debug)]
struct PackedName {
    name: Box<[u8]>,
    serial: u64,
    is_confirmed: bool,
    body: Box<[u8]>,
}

impl ClientStatements {
    /// Takes the names off this shard.
    pub fn pack(self) -> PackedStatements {
        let names = self.names.into_iter().map(|(name, registered)| PackedName {
            name,
            serial: registered.serial,
            is_confirmed: registered.is_confirmed,
            body: registered.statement.body().into(),
        });
        PackedStatements {
            names: names.collect(),
            serial: self.serial,
        }
    }
}

impl PackedStatements {
    /// The names on the shard whose statements these are.
    pub fn unpack(self, statements: &mut Statements) -> ClientStatements {
        let names = self.names.into_iter().map(|packed| {
            let registered = Registered {
                serial: packed.serial,
                statement: statements.intern(&packed.body),
                is_confirmed: packed.is_confirmed,
            };
            (packed.name, registered)
        });
        ClientStatements {
            names: names.collect(),
            serial: self.serial,
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
    /// Evicted with a Close that may yet turn out to have been skipped.
    closing: Vec<StatementId>,
    batch: u64,
}

impl Default for ServerStatements {
    fn default() -> ServerStatements {
        ServerStatements {
            cache: LruCache::unbounded(),
            closing: Vec::new(),
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
                self.closing.contains(&id)
            }
        };
        Preparation {
            evict: self.evict(id, max),
            close,
            parse: Some(batch),
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

    /// As many as are too many: more than one if an earlier Close was skipped.
    fn evict(&mut self, keep: StatementId, max: usize) -> Vec<StatementId> {
        let mut evicted = Vec::new();
        while self.cache.len() > max.max(1) {
            match self.cache.pop_lru() {
                Some((oldest, _)) if oldest != keep => evicted.push(oldest),
                _ => break,
            }
        }
        self.closing.extend(&evicted);
        evicted
    }

    /// What became of a Close is known.
    fn closed(&mut self, id: StatementId) {
        if let Some(at) = self.closing.iter().position(|closing| *closing == id) {
            self.closing.swap_remove(at);
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

    #[test]
    fn same_text_is_one_statement_with_one_name() {
        let mut statements = Statements::default();
        let a = statements.intern(b"select 1\0\0\0");
        let b = statements.intern(b"select 1\0\0\0");
        assert!(Rc::ptr_eq(&a, &b));
        assert_ne!(statements.intern(b"select 2\0\0\0").name(), a.name());
        assert_eq!(a.name(), server_name(a.id()));
        assert!(a.name().len() < 64, "fits a PostgreSQL identifier");
    }

    #[test]
    fn statements_nobody_has_are_forgotten() {
        let mut statements = Statements::default();
        for n in 0..1000u32 {
            statements.intern(&n.to_be_bytes());
        }
        assert!(statements.known.len() <= 65);
    }

    #[test]
    fn names_that_move_stand_for_the_same_statements() {
        let (mut here, mut there) = (Statements::default(), Statements::default());
        let mut client = ClientStatements::default();
        let statement = here.intern(b"select 1\0\0\0");
        let registered = client.register(b"s", statement.clone()).unwrap();
        let mut moved = client.pack().unpack(&mut there);
        assert_eq!(
            moved.get(b"s").map(|moved| moved.id()),
            Some(statement.id())
        );
        assert!(Rc::ptr_eq(
            moved.get(b"s").unwrap(),
            &there.intern(b"select 1\0\0\0")
        ));
        // A reply that is still to come finds the registration.
        moved.undo(registered);
        assert!(moved.is_empty());
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
        Change {
            server: Some(ServerChange::Prepared(id(1), 0)),
            client: None,
        }
        .confirm(&mut ClientStatements::default(), &mut server);
        server.synced();
        assert_eq!(server.prepare(id(1), 10), Preparation::default());
    }

    #[test]
    fn parse_that_was_skipped_may_have_been_prepared_before() {
        let (mut client, mut server) = (ClientStatements::default(), ServerStatements::default());
        let prepared = |batch| Change {
            client: None,
            server: Some(ServerChange::Prepared(id(1), batch)),
        };
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
        Change {
            server: Some(ServerChange::Prepared(id(1), 0)),
            client: None,
        }
        .undo(&mut client, &mut server);
        Change {
            server: Some(ServerChange::Prepared(id(1), 1)),
            client: None,
        }
        .confirm(&mut client, &mut server);
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
    fn skipped_close_leaves_a_doubtful_statement() {
        let mut server = ServerStatements::default();
        let mut client = ClientStatements::default();
        server.prepare(id(1), 1);
        assert_eq!(server.prepare(id(2), 1).evict, [id(1)]);
        Change {
            server: Some(ServerChange::Evicted(id(1))),
            client: None,
        }
        .undo(&mut client, &mut server);
        assert!(server.prepare(id(1), 5).close);
    }

    #[test]
    fn undo_of_a_registration_spares_a_later_one() {
        let mut statements = Statements::default();
        let mut client = ClientStatements::default();
        let mut server = ServerStatements::default();
        let first = client.register(b"s", statements.intern(b"1")).unwrap();
        assert_eq!(
            client.register(b"s", statements.intern(b"2")).err(),
            Some(NameInUse)
        );
        client.close(b"s");
        client.register(b"s", statements.intern(b"2")).unwrap();
        Change {
            client: Some(first),
            server: None,
        }
        .undo(&mut client, &mut server);
        assert_eq!(client.get(b"s").unwrap().body(), b"2");
    }

    #[test]
    fn undone_close_gives_the_name_back() {
        let mut statements = Statements::default();
        let mut client = ClientStatements::default();
        client.register(b"s", statements.intern(b"1")).unwrap();
        let closed = client.close(b"s");
        assert!(client.is_empty());
        Change {
            client: closed,
            server: None,
        }
        .undo(&mut client, &mut ServerStatements::default());
        assert_eq!(client.len(), 1);
    }
}
