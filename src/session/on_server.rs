//! The prepared statements that one server has.
//!
//! ```text
//!  absent ──Parse sent──► Pending(batch) ──ParseComplete──► Confirmed
//!                           ▲       │ error                    │ Close sent, skipped
//!      Close, Parse sent    │       ▼                          │
//!                           └─ Doubtful ◄──────────────────────┘
//! ```
//! A statement that is `Pending` in an earlier batch may have failed by the time the next batch
//! runs, so it counts as doubtful there: Close (no error if it is missing) and Parse again.
//!
//! Parameters whose types a Parse leaves open get them from the server, for as long as it has the statement.
//! They are known when it has been asked for them, or when it was given those that another had found.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use lru::LruCache;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Bytes of a hash.
pub(super) const ID_BYTES: usize = 16;

/// Types of parameters as in Parse and ParameterDescription: a 16-bit count, then so many object ids.
pub type Types = Arc<[u8]>;

/// Hash of a statement's text, parameter types and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatementId(pub(super) [u8; ID_BYTES]);

/// Hash of the types of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowTypes([u8; ID_BYTES]);

impl RowTypes {
    /// Of these object ids, in order.
    pub fn of(ids: impl Iterator<Item = u32>) -> RowTypes {
        let mut hash = Sha256::new();
        ids.for_each(|id| hash.update(id.to_be_bytes()));
        RowTypes(cut(hash))
    }
}

/// The first bytes of a hash.
pub(super) fn cut(hash: Sha256) -> [u8; ID_BYTES] {
    let mut out = [0; ID_BYTES];
    for (to, from) in out.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    out
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Confirmed,
    Pending(u64),
    Doubtful,
}

impl State {
    /// Whether the server has the statement when it gets to this batch, or to what comes next in it.
    fn holds_in(self, batch: u64) -> bool {
        matches!(self, State::Confirmed) || self == State::Pending(batch)
    }
}

/// One preparation of a statement on a server, as met in one batch. Its result is of the same types for as long as it is
/// there: PostgreSQL refuses to run it with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// Which of all that the server was asked for.
    pub preparation: u64,
    /// The server's batch.
    pub batch: u64,
}

#[derive(Debug)]
struct Place {
    state: State,
    preparation: u64,
    /// Of its parameters, if known.
    types: Option<Types>,
    /// Types of its result, if known.
    rows: Option<RowTypes>,
    /// The last batch in which the server was asked for both.
    asked: Option<u64>,
    /// They were not found by this server: it was told them.
    are_declared: bool,
}

impl Place {
    fn new(state: State, preparation: u64) -> Place {
        Place {
            state,
            preparation,
            types: None,
            rows: None,
            asked: None,
            are_declared: false,
        }
    }
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

/// What a Parse, Close or Describe did to a server's statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerChange {
    /// A Parse was sent in this batch.
    Prepared(StatementId, u64),
    /// A Close was sent.
    Evicted(StatementId),
    /// A Describe was sent, of this preparation.
    Asked(StatementId, u64),
}

/// The statements that one server has prepared: least recently used last, bounded.
#[derive(Debug)]
pub struct ServerStatements {
    cache: LruCache<StatementId, Place>,
    /// Evicted with so many Closes that may yet turn out to have been skipped.
    closing: HashMap<StatementId, u32>,
    batch: u64,
    preparations: u64,
}

impl Default for ServerStatements {
    fn default() -> ServerStatements {
        ServerStatements {
            cache: LruCache::unbounded(),
            closing: HashMap::new(),
            batch: 0,
            preparations: 0,
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

    /// Which batch is being sent.
    pub fn batch(&self) -> u64 {
        self.batch
    }

    /// A Sync was sent: what follows it runs whether or not what went before failed.
    pub fn synced(&mut self) {
        self.batch += 1;
    }

    /// Notes that `id` is about to be used and says what has to be sent first; `max` bounds how
    /// many statements the server keeps. Types that were declared to it do not do: it is to find them by itself.
    pub fn prepare(&mut self, id: StatementId, max: usize) -> Preparation {
        self.prepare_unless(id, max, |place| !place.are_declared)
    }

    /// As [`ServerStatements::prepare`], for one whose types are known.
    pub fn prepare_typed(&mut self, id: StatementId, max: usize) -> Preparation {
        self.prepare_unless(id, max, |_| true)
    }

    #[inline]
    fn prepare_unless(
        &mut self,
        id: StatementId,
        max: usize,
        does: impl Fn(&Place) -> bool,
    ) -> Preparation {
        let batch = self.batch;
        let place = Place::new(State::Pending(batch), self.preparations + 1);
        let close = match self.cache.get_mut(&id) {
            Some(known) if known.state.holds_in(batch) && does(known) => {
                return Preparation::default();
            }
            Some(known) => {
                *known = place;
                true
            }
            None => {
                self.cache.push(id, place);
                self.closing.contains_key(&id)
            }
        };
        self.preparations += 1;
        Preparation {
            evict: self.evict(id, max),
            close,
            parse: Some(batch),
        }
    }

    /// As [`ServerStatements::prepare`], for a statement that is prepared anew even if it is there.
    pub fn prepare_anew(&mut self, id: StatementId, max: usize) -> Preparation {
        self.doubt_one(id);
        let preparation = self.prepare(id, max);
        Preparation {
            close: true,
            ..preparation
        }
    }

    /// Whether the server will have it by the time it gets to what comes next.
    pub fn has(&self, id: StatementId) -> bool {
        let place = self.cache.peek(&id);
        place.is_some_and(|place| place.state.holds_in(self.batch))
    }

    /// The types that its parameters will have by the time the server gets to what comes next, if known.
    pub fn types_of(&self, id: StatementId) -> Option<&Types> {
        let place = self.cache.peek(&id)?;
        let types = place.types.as_ref()?;
        place.state.holds_in(self.batch).then_some(types)
    }

    /// The types of its result, if known; else whether the server has been asked for them in this batch.
    pub fn rows_of(&self, id: StatementId) -> Result<RowTypes, bool> {
        let place = self.cache.peek(&id);
        let place = place.filter(|place| place.state.holds_in(self.batch));
        let rows = place.and_then(|place| place.rows);
        rows.ok_or(place.is_some_and(|place| place.asked == Some(self.batch)))
    }

    /// Which preparation of it the server will have by the time it gets to what comes next.
    #[inline]
    pub fn occurrence(&self, id: StatementId) -> Option<Occurrence> {
        let place = self.cache.peek(&id)?;
        place.state.holds_in(self.batch).then_some(Occurrence {
            preparation: place.preparation,
            batch: self.batch,
        })
    }

    /// The types of the result of what was met then, if they are known and it has not been prepared again since.
    #[inline]
    pub fn rows_at(&self, id: StatementId, at: Occurrence) -> Option<RowTypes> {
        let place = self.cache.peek(&id)?;
        place.rows.filter(|_| place.preparation == at.preparation)
    }

    /// What the end of a Describe has told of a preparation.
    pub(super) fn learned_rows(&mut self, id: StatementId, preparation: u64, rows: RowTypes) {
        if let Some(place) = self.place_of(id, preparation) {
            place.rows = Some(rows);
        }
    }

    /// Where it is, unless it has been prepared again since.
    fn place_of(&mut self, id: StatementId, preparation: u64) -> Option<&mut Place> {
        let place = self.cache.peek_mut(&id)?;
        (place.preparation == preparation).then_some(place)
    }

    /// The Parse that is about to be sent gives the types of its parameters.
    pub fn declare(&mut self, id: StatementId, types: Types) {
        if let Some(place) = self.cache.peek_mut(&id) {
            (place.types, place.are_declared) = (Some(types), true);
        }
    }

    /// A Describe of it is about to be sent.
    pub fn ask(&mut self, id: StatementId) -> ServerChange {
        let mut preparation = 0;
        if let Some(place) = self.cache.peek_mut(&id) {
            place.asked = Some(self.batch);
            preparation = place.preparation;
        }
        ServerChange::Asked(id, preparation)
    }

    /// What a Describe has told of a preparation.
    pub fn learned(&mut self, id: StatementId, preparation: u64, types: &Types) {
        if let Some(place) = self.place_of(id, preparation) {
            place.types = Some(types.clone());
        }
    }

    /// All statements are gone (DEALLOCATE ALL, DISCARD ALL), but for those whose Parse may come
    /// behind that command.
    pub fn clear(&mut self) {
        let ids: Vec<StatementId> = self.cache.iter().map(|(id, _)| *id).collect();
        for id in ids {
            match self.cache.peek_mut(&id) {
                Some(place) if place.state != State::Confirmed => place.state = State::Doubtful,
                _ => drop(self.cache.pop(&id)),
            }
        }
    }

    /// Something the pooler knows nothing of has made statements go: whether they are there is to be
    /// found out for each.
    pub fn doubt(&mut self) {
        self.cache
            .iter_mut()
            .for_each(|(_, place)| place.state = State::Doubtful);
    }

    /// Whether the server has it as it should be is not known any more: it is to be prepared anew.
    pub fn doubt_one(&mut self, id: StatementId) {
        if let Some(place) = self.cache.peek_mut(&id) {
            place.state = State::Doubtful;
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
        for id in &evicted {
            *self.closing.entry(*id).or_default() += 1;
        }
        evicted
    }

    /// What became of a Close is known.
    pub(super) fn closed(&mut self, id: StatementId) {
        if let Entry::Occupied(mut closing) = self.closing.entry(id) {
            *closing.get_mut() -= 1;
            if *closing.get() == 0 {
                closing.remove();
            }
        }
    }

    /// A Close has turned out to have been skipped. Whoever has prepared it again since has closed it first.
    pub(super) fn kept(&mut self, id: StatementId) {
        self.closed(id);
        if !self.cache.contains(&id) {
            self.preparations += 1;
            let place = Place::new(State::Doubtful, self.preparations);
            self.cache.push(id, place);
        }
    }

    /// Whether the statement is there is known, or known to be unknown, now; unless it has been
    /// prepared again since.
    pub(super) fn settle(&mut self, id: StatementId, batch: u64, state: State) {
        if let Some(place) = self.cache.peek_mut(&id)
            && place.state == State::Pending(batch)
        {
            place.state = state;
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
    use crate::session::{Change, ClientStatements};

    fn id(n: u8) -> StatementId {
        StatementId([n; ID_BYTES])
    }

    #[test]
    fn statement_prepared_again_behind_a_skipped_eviction_is_there() {
        let mut server = ServerStatements::default();
        server.prepare(id(1), 1);
        server.settle(id(1), 0, State::Confirmed);
        assert_eq!(server.prepare(id(2), 1).evict, [id(1)]);
        server.synced();
        let again = server.prepare(id(1), 1);
        assert!(again.close, "the server may still have it");
        let ServerChange::Asked(_, preparation) = server.ask(id(1)) else {
            panic!("another change");
        };
        // The Close of the first batch was behind an error.
        server.kept(id(1));
        server.settle(id(1), again.parse.unwrap(), State::Confirmed);
        assert!(server.has(id(1)));
        let rows = RowTypes::of([23].into_iter());
        server.learned_rows(id(1), preparation, rows);
        assert_eq!(server.rows_of(id(1)), Ok(rows));
    }

    #[test]
    fn types_are_those_of_the_last_parse() {
        let mut server = ServerStatements::default();
        let [found, declared] =
            [b"\0\x01\0\0\0\x17", b"\0\x01\0\0\x02\xbc"].map(|types| Types::from(&types[..]));
        server.prepare(id(1), 10);
        let ServerChange::Asked(_, preparation) = server.ask(id(1)) else {
            panic!("another change");
        };
        assert_eq!(server.types_of(id(1)), None);
        server.learned(id(1), preparation, &found);
        assert_eq!(server.types_of(id(1)), Some(&found));
        // Nobody knows whether it will be there in the next batch.
        server.synced();
        assert!(server.types_of(id(1)).is_none() && !server.has(id(1)));
        server.prepare_typed(id(1), 10);
        server.declare(id(1), declared.clone());
        // This is of the statement from before.
        server.learned(id(1), preparation, &found);
        assert_eq!(server.types_of(id(1)), Some(&declared));
        assert_eq!(server.prepare_typed(id(1), 10), Preparation::default());
        let again = server.prepare(id(1), 10);
        assert!(
            again.close && again.parse.is_some(),
            "found by the server itself"
        );
        assert_eq!(server.types_of(id(1)), None);
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
}
