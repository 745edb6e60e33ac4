//! Named prepared statements in transaction mode: the client's names, and the statements they stand for.
//!
//! A statement is known by the hash of its text and parameter types, and its name on every server
//! is made from that hash; so clients, shards and servers agree on names without talking to each
//! other, and a server that moves to another shard takes its statements along. SHA-256, cut to 128
//! bits, because a collision would run one client's statement for another.
//!
//! DDL can change the type of a statement's result; a server then refuses to run it ("cached plan must
//! not change result type", 0A000) until it is prepared anew. So every pool counts *generations*: the
//! first such error begins the next one, and a statement has another name in each. A client's name
//! belongs to a generation, and moves to the current one when the client cannot be deceived by rows of
//! another shape: when it prepares or describes the statement, or takes its values as text.
//!
//! DDL can also change what a parameter is whose type the client has left *open*. PostgreSQL settles it when the
//! statement is prepared, and a client that sends binary values relies on what it was told then. So every
//! name keeps the types that were found for it, and binary values go only to a statement that has the same: to
//! that of the same text if it has, else to one that is *pinned*, which has the types in its Parse.
//! In the same way a name knows the types of the result that its client was told last (`told.rs`), and a Bind for binary
//! values meets a statement with others as it would on PostgreSQL: with an error, before anything has run.

use super::budget::{Budget, Charge, TooMany};
use super::on_server::{
    Occurrence, RowTypes, ServerChange, ServerStatements, State, StatementId, Types, cut,
    server_name,
};
use super::sql;
use super::told::Told;
use super::usage::Usage;
use sha2::{Digest, Sha256};
use std::cell::OnceCell;
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

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

/// A statement's text and parameter types, shared by all clients of a shard that prepared it.
#[derive(Debug)]
pub struct Statement {
    id: StatementId,
    name: Box<str>,
    body: Box<[u8]>,
    form: Form,
    generation: u32,
    open_parameters: usize,
    forgets: bool,
    is_fixed: bool,
    usage: Usage,
    charge: Charge,
}

/// Types found for the parameters of a client's name.
#[derive(Clone, Debug)]
pub struct Found {
    /// For a statement of which generation.
    pub generation: u32,
    /// The types.
    pub types: Types,
}

/// Where they will be when the server has told them.
pub type Finding = Rc<OnceCell<Found>>;

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
        self.charge.bytes()
    }

    /// Whether the server has to find the type of some parameter.
    pub fn is_open(&self) -> bool {
        self.open_parameters > 0
    }

    /// Whether it makes all statements go.
    pub fn forgets(&self) -> bool {
        self.forgets
    }

    /// Whether its result is of the same types whenever it is executed: that of a FETCH is the cursor's.
    #[inline]
    pub fn is_fixed(&self) -> bool {
        self.is_fixed
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

    /// The same text with these types of its parameters. A client has it already, so it cannot be refused.
    pub fn pin(&mut self, open: &Statement, types: &[u8], generation: u32) -> Rc<Statement> {
        let text = open.body.split_inclusive(|byte| *byte == 0).next();
        let body = [text.unwrap_or_default(), types].concat();
        self.take_over(&body, Form::Parse, generation)
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
            forgets: sql::forgets(body),
            is_fixed: !(matches!(form, Form::Parse) && sql::may_vary(body)),
            open_parameters: match form {
                Form::Parse => open_parameters(body),
                Form::ParseOf(_) | Form::Sql => 0,
            },
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

/// Parameters that a statement may have: their number has 16 bits.
const PARAMETERS_MAX: usize = 65_535;
/// Object id of `unknown`, which is as good as none.
const UNKNOWN: [u8; 4] = 705_u32.to_be_bytes();

/// How many parameters the Parse with this body may have, if there is one without a type among them; else 0. Wrong
/// in one direction only: what looks like a parameter may be inside of a string. But there are no gaps: PostgreSQL
/// refuses a text in which a parameter without a type does not occur.
fn open_parameters(body: &[u8]) -> usize {
    let end = body.iter().position(|byte| *byte == 0);
    let Some((text, types)) = end.and_then(|end| Some((body.get(..end)?, body.get(end + 3..)?)))
    else {
        return 0;
    };
    let is_given = |number: usize| {
        let start = number.checked_sub(1)?.checked_mul(4)?;
        let id = types.get(start..)?.first_chunk::<4>()?;
        (*id != [0; 4] && *id != UNKNOWN).then_some(())
    };
    let given = types.len() / 4;
    let (mut rest, mut is_open, mut occurring, mut highest) = (text, false, 0, given);
    while let Some(dollar) = rest.iter().position(|byte| *byte == b'$') {
        rest = rest.get(dollar + 1..).unwrap_or_default();
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
        let number = digits.fold(0_usize, |number, digit| {
            let digit = usize::from(digit - b'0');
            number.saturating_mul(10).saturating_add(digit)
        });
        is_open |= number > 0 && is_given(number).is_none();
        occurring += usize::from(number > 0);
        highest = highest.max(number.min(PARAMETERS_MAX));
    }
    match is_open {
        true => highest.min(given + occurring),
        false => 0,
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
    StatementId(cut(hash))
}

#[derive(Debug)]
pub(super) struct Registered {
    /// Which registration of the name this is, so that an undo hits no later one.
    pub(super) serial: u64,
    pub(super) statement: Rc<Statement>,
    /// Types of its parameters, if the statement has left them open.
    pub(super) found: Option<Finding>,
    pub(super) told: Option<Told>,
    /// Its Parse has been answered.
    pub(super) is_confirmed: bool,
    /// The client's batch that it was made in.
    pub(super) batch: u64,
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
    /// The client's batches so far.
    pub(super) batch: u64,
    /// Names given up by Closes that are not answered yet: how many, and the batch of the last.
    pub(super) leaving: HashMap<Box<[u8]>, (usize, u64)>,
    /// Changes that are not answered yet.
    pub(super) pending: usize,
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

    /// The types found for its parameters, if it has left them open and they are known.
    pub fn found(&self, name: &[u8]) -> Option<Found> {
        let registered = self.0.as_ref()?.names.get(name)?;
        registered.found.as_ref()?.get().cloned()
    }

    /// A batch has ended: what follows runs whether or not what went before failed.
    #[inline]
    pub fn synced(&mut self) {
        if let Some(it) = &mut self.0 {
            it.batch += 1;
        }
    }

    /// Whether what a name stands for does not depend on an answer to an earlier batch.
    pub fn is_settled(&self, name: &[u8]) -> bool {
        let Some(it) = self.0.as_ref().filter(|it| it.pending > 0) else {
            return true;
        };
        let known = it.names.get(name);
        known.is_none_or(|known| known.is_confirmed || known.batch == it.batch)
            && it
                .leaving
                .get(name)
                .is_none_or(|(_, batch)| *batch == it.batch)
    }

    /// As [`ClientStatements::get`], with what the client was told of the result.
    pub fn get_told(&self, name: &[u8]) -> Option<(Rc<Statement>, Option<Told>)> {
        let registered = self.0.as_ref()?.names.get(name)?;
        Some((registered.statement.clone(), registered.told.clone()))
    }

    /// Where to put what the client is about to be told.
    pub fn telling(&mut self, name: &[u8]) -> Option<Told> {
        let registered = self.get_mut(name)?;
        Some(registered.told.get_or_insert_default().clone())
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
        self.register_open(name, statement, None)
    }

    /// As [`ClientStatements::register`]; the types of its parameters are there, or will be.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn register_open(
        &mut self,
        name: &[u8],
        statement: Rc<Statement>,
        found: Option<Finding>,
    ) -> Result<ClientChange, TooMany> {
        let bytes = name.len() + 4 * statement.open_parameters;
        let charge = statement.charge.budget().charge(bytes)?;
        let it = self.0.get_or_insert_default();
        it.serial += 1;
        it.pending += 1;
        let (serial, batch) = (it.serial, it.batch);
        it.names.insert(
            name.into(),
            Registered {
                serial,
                statement,
                found,
                told: None,
                is_confirmed: false,
                batch,
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
        let it = self.0.as_mut()?;
        let registered = it.names.remove(name)?;
        it.pending += 1;
        let leaving = it.leaving.entry(name.into()).or_default();
        *leaving = (leaving.0 + 1, it.batch);
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

    fn confirm(&mut self, change: &ClientChange) {
        let Some(it) = &mut self.0 else { return };
        it.answered(change);
        if let ClientChange::Registered { name, serial } = change
            && let Some(registered) = it.names.get_mut(name)
            && registered.serial == *serial
        {
            registered.is_confirmed = true;
        }
    }

    fn undo(&mut self, change: ClientChange) {
        let Some(it) = &mut self.0 else { return };
        it.answered(&change);
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

impl Names {
    /// What became of a change is known.
    fn answered(&mut self, change: &ClientChange) {
        self.pending = self.pending.saturating_sub(1);
        if let ClientChange::Closed { name, .. } = change
            && let Some((count, _)) = self.leaving.get_mut(name)
        {
            *count -= 1;
            if *count == 0 {
                self.leaving.remove(name);
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
    /// What the server tells of a statement is found for a name, too.
    pub finding: Option<(Finding, u32)>,
    /// The client is told the types of its result.
    pub told: Option<(Told, Occurrence)>,
    /// What the statements of a Query change, one after the other as they complete.
    pub steps: VecDeque<Change>,
}

/// Why the pooler refuses a Parse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The client has a statement of this name.
    NameInUse(Box<[u8]>),
    /// The result has other types than the client was told.
    OtherResult,
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
        if let Some(change) = &self.client {
            client.confirm(change);
        }
        match self.server {
            Some(ServerChange::Prepared(id, batch)) => server.settle(id, batch, State::Confirmed),
            Some(ServerChange::Evicted(id)) => server.closed(id),
            Some(ServerChange::Asked(..)) | None => {}
        }
        // The Query is over: these have failed, or were not got to.
        for step in self.steps.into_iter().rev() {
            step.undo(client, server);
        }
    }

    /// The server has told the types of a statement's parameters.
    pub fn learned(&self, types: &[u8], server: &mut ServerStatements) {
        let Some(ServerChange::Asked(id, preparation)) = self.server else {
            return;
        };
        let types = Types::from(types);
        server.learned(id, preparation, &types);
        if let Some((finding, generation)) = &self.finding {
            let generation = *generation;
            let _ = finding.set(Found { generation, types });
        }
    }

    /// The server has told the types of a statement's result, or, if not `has_result`, that there is none.
    pub fn learned_rows(&self, rows: RowTypes, has_result: bool, server: &mut ServerStatements) {
        if let Some(ServerChange::Asked(id, preparation)) = self.server {
            server.learned_rows(id, preparation, rows);
        }
        if let Some((told, of)) = &self.told {
            told.answered(*of, has_result.then_some(rows));
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
            Some(ServerChange::Evicted(id)) => server.kept(id),
            Some(ServerChange::Asked(..)) | None => {}
        }
        if let Some((told, of)) = self.told {
            told.failed(of);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn parameter_without_a_type_leaves_the_statement_open() {
        let cases: [(&[u8], usize); 11] = [
            (b"select 1\0\0\0", 0),
            (b"select $1\0\0\0", 1),
            (b"select $1\0\0\x01\0\0\0\x17", 0),
            (b"select $2, $1\0\0\x01\0\0\0\x17", 2),
            (b"select $1\0\0\x01\0\0\0\0", 1),
            (b"select $1\0\0\x01\0\0\x02\xc1", 1),
            (b"select $$a$$, $0\0\0\0", 0),
            (b"select $99999999999999999999999\0\0\0", 1),
            (b"select $1, '$50000' -- $60000\0\0\0", 3),
            (b"select $1, $1, $2\0\0\0", 2),
            (b"broken", 0),
        ];
        for (body, count) in cases {
            let text = String::from_utf8_lossy(body);
            assert_eq!(open_parameters(body), count, "{text}");
        }
    }

    #[test]
    fn pinned_statement_is_of_the_same_text_and_not_open() {
        let mut statements = statements();
        let open = statements
            .intern(b"select $1\0\0\0", Form::Parse, 0)
            .unwrap();
        let pinned = statements.pin(&open, b"\0\x01\0\0\0\x17", 2);
        assert_eq!(pinned.body(), b"select $1\0\0\x01\0\0\0\x17");
        assert!(open.is_open() && !pinned.is_open());
        assert_eq!(pinned.generation(), 2);
    }

    #[test]
    fn name_is_settled_in_its_own_batch_and_when_it_is_answered() {
        let mut statements = statements();
        let (mut client, mut server) = (ClientStatements::default(), ServerStatements::default());
        let statement = statements.intern(b"1", Form::Parse, 0).unwrap();
        let registered = client.register(b"s", statement.clone()).unwrap();
        assert!(client.is_settled(b"s"));
        client.synced();
        assert!(!client.is_settled(b"s") && client.is_settled(b"t"));
        Change::from(registered).confirm(&mut client, &mut server);
        assert!(client.is_settled(b"s"));
        let closed = client.close(b"s").unwrap();
        let again = client.register(b"s", statement).unwrap();
        assert!(client.is_settled(b"s"));
        client.synced();
        assert!(!client.is_settled(b"s"));
        Change::from(again).undo(&mut client, &mut server);
        assert!(!client.is_settled(b"s"));
        Change::from(closed).undo(&mut client, &mut server);
        assert!(client.is_settled(b"s") && client.get(b"s").is_some());
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
