//! What a server is sent ahead of a client's message, so that it has the statement that the message names; and the
//! statements that stand in the place of others.

use super::outlet::Outlet;
use super::spoken::{self, AHEAD_OF_QUERY, mark_of};
use super::upstream::Exchange;
use crate::session::{
    Change, Fate, Finding, Form, Found, Kind, Preparation, Refusal, ServerChange, Statement,
    Telling, server_name,
};
use crate::wire::tag::frontend as tag;
use crate::wire::{frontend, message, put_cstr};
use std::rc::Rc;

/// A statement that servers are made to fail with, see [`refuse`].
pub(super) const TAKEN: &[u8] = b"rb_taken";

/// Makes sure that the server has the statement by the time it gets to what comes next. True if
/// something was sent for that.
pub(super) fn prepare(
    statement: &Rc<Statement>,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> bool {
    if let Form::ParseOf(other) = statement.form()
        && prepare(other, outlet, exchange)
    {
        // It answers with what the other one had when it was prepared.
        exchange.dialogue.statements.doubt_one(statement.id());
    }
    let server = make_room(statement, outlet, exchange);
    statement.usage().wanted(server.is_none());
    let Some(server) = server else {
        return false;
    };
    if matches!(statement.form(), Form::Sql) {
        spoken::send_prepare(statement, server.into(), outlet, exchange);
    } else {
        parse_ahead(statement, None, server, outlet, exchange);
    }
    true
}

/// As [`prepare`], for a client that relies on the types found for its name: gives the statement that has them.
pub(super) fn prepare_typed(
    name: &[u8],
    statement: Rc<Statement>,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Rc<Statement> {
    let found = statement.is_open().then(|| exchange.names.found(name));
    // If they are not known yet, this very batch has prepared it.
    let Some(found) = found.flatten() else {
        prepare(&statement, outlet, exchange);
        return statement;
    };
    let on_server = &mut exchange.dialogue.statements;
    let id = statement.id();
    let types = on_server.types_of(id);
    let max = exchange.rules.prepared_max;
    if types.is_some_and(|types| *types == found.types) {
        statement.usage().wanted(true);
        on_server.prepare_typed(id, max);
    } else if !on_server.has(id) && found.generation == statement.generation() {
        statement.usage().wanted(false);
        let needed = on_server.prepare_typed(id, max);
        on_server.declare(id, found.types.clone());
        if let Some(server) = carry_out(&statement, needed, outlet, exchange) {
            let types = Some(&*found.types);
            parse_ahead(&statement, types, server, outlet, exchange);
        }
    } else {
        let pinned = pinned(name, &statement, &found, exchange);
        prepare(&pinned, outlet, exchange);
        return pinned;
    }
    statement
}

/// What is known of a statement's result on a server.
pub(super) enum Outcome {
    AsTold,
    Other,
    /// The server has been asked.
    Unknown,
}

/// Whether the result of a statement is known to be of the types that its client was told.
pub(super) fn is_as_told(statement: &Statement, told: &Telling, exchange: &Exchange<'_>) -> bool {
    let on_server = &exchange.dialogue.statements;
    told.due().is_none() && told.types() == on_server.rows_of(statement.id()).ok()
}

/// Whether the result of a statement that the server has will be of the types that its client was told, or is told ahead of it.
pub(super) fn result_of(
    statement: &Statement,
    told: &Telling,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Outcome {
    if exchange.dialogue.replies.is_copying_in() {
        // It fails anyhow, and answers nothing before the client has gone on.
        return Outcome::AsTold;
    }
    let on_server = &mut exchange.dialogue.statements;
    if let Some(due) = told.due() {
        // Only in its own batch is it sure to be answered.
        return match on_server.occurrence(statement.id()) == Some(due) {
            true => Outcome::AsTold,
            false => Outcome::Unknown,
        };
    }
    let Some(types) = told.types() else {
        return Outcome::AsTold;
    };
    match on_server.rows_of(statement.id()) {
        Ok(known) if known == types => return Outcome::AsTold,
        Ok(_) => return Outcome::Other,
        Err(true) => return Outcome::Unknown,
        Err(false) => {}
    }
    let change = Change::from(on_server.ask(statement.id()));
    let out = outlet.insert();
    frontend::describe_statement(out, statement.name().as_bytes());
    frontend::flush(out);
    let replies = &mut exchange.dialogue.replies;
    let mark = mark_of(statement);
    replies.push_marked(Kind::Describe, Fate::Drop, Some(Box::new(change)), mark);
    Outcome::Unknown
}

/// Closes what is in the way of preparing the statement; `None` if the server has it.
pub(super) fn make_room(
    statement: &Statement,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Option<ServerChange> {
    let max = exchange.rules.prepared_max;
    let needed = exchange.dialogue.statements.prepare(statement.id(), max);
    carry_out(statement, needed, outlet, exchange)
}

pub(super) fn carry_out(
    statement: &Statement,
    needed: Preparation,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Option<ServerChange> {
    let batch = needed.parse?;
    for evicted in needed.evict {
        exchange.statements.evicted(evicted);
        frontend::close_statement(outlet.insert(), server_name(evicted).as_bytes());
        let change = Change::from(ServerChange::Evicted(evicted));
        let replies = &mut exchange.dialogue.replies;
        replies.push(Kind::Close, Fate::Drop, Some(Box::new(change)));
    }
    if needed.close {
        frontend::close_statement(outlet.insert(), statement.name().as_bytes());
        exchange
            .dialogue
            .replies
            .push(Kind::Close, Fate::Drop, None);
    }
    Some(ServerChange::Prepared(statement.id(), batch))
}

/// The pooler's own Parse ahead of a message that needs the statement; with these types of its parameters instead of
/// those that its own Parse gives.
fn parse_ahead(
    statement: &Statement,
    types: Option<&[u8]>,
    server: ServerChange,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) {
    write_parse(statement, types, outlet, exchange);
    let change = Some(Box::new(server.into()));
    let replies = &mut exchange.dialogue.replies;
    replies.push_marked(Kind::Parse, Fate::Drop, change, AHEAD_OF_QUERY);
}

/// The client's Parse.
pub(super) fn send_parse(
    statement: &Statement,
    fate: Fate,
    change: Change,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) {
    write_parse(statement, None, outlet, exchange);
    let replies = &mut exchange.dialogue.replies;
    replies.push(Kind::Parse, fate, Some(Box::new(change)));
}

fn write_parse(
    statement: &Statement,
    types: Option<&[u8]>,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) {
    exchange.counts.server_parse += 1;
    message(outlet.insert(), tag::PARSE, |body| {
        put_cstr(body, statement.name());
        match types {
            Some(types) => {
                put_cstr(body, statement.body());
                body.extend_from_slice(types);
            }
            None => body.extend_from_slice(statement.body()),
        }
    });
}

/// The client's name stands for the statement of the current generation from now on; if `is_typed`, its
/// parameters keep their types.
pub(super) fn renewed(
    name: &[u8],
    old: Rc<Statement>,
    is_typed: bool,
    exchange: &mut Exchange<'_>,
) -> Rc<Statement> {
    if is_typed
        && old.is_open()
        && let Some(found) = exchange.names.found(name)
    {
        return pinned(name, &old, &found, exchange);
    }
    if matches!(old.form(), Form::ParseOf(_)) {
        // Its text has the old name of another.
        return old;
    }
    let generation = exchange.generation.current();
    let form = old.form().clone();
    let Ok(statement) = exchange.statements.intern(old.body(), form, generation) else {
        return old;
    };
    exchange.names.move_to(name, statement.clone());
    statement
}

/// The client's name stands from now on for a statement whose parameters have these types on every server.
fn pinned(
    name: &[u8],
    open: &Statement,
    found: &Found,
    exchange: &mut Exchange<'_>,
) -> Rc<Statement> {
    let generation = exchange.generation.current();
    let statement = exchange.statements.pin(open, &found.types, generation);
    exchange.names.move_to(name, statement.clone());
    statement
}

/// Prepares anew a statement that the server has, for a client that prepares it.
pub(super) fn parse_anew(
    statement: &Statement,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) {
    let max = exchange.rules.prepared_max;
    let on_server = &mut exchange.dialogue.statements;
    let needed = on_server.prepare_anew(statement.id(), max);
    if let Some(server) = carry_out(statement, needed, outlet, exchange) {
        send_parse(statement, Fate::Replace, server.into(), outlet, exchange);
    }
}

/// Finds the types of a statement that the server will have: it is asked for those that are not known.
pub(super) fn find_types(
    statement: &Statement,
    finding: Finding,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) {
    let generation = statement.generation();
    let on_server = &mut exchange.dialogue.statements;
    if let Some(types) = on_server.types_of(statement.id()).cloned() {
        let _ = finding.set(Found { generation, types });
        return;
    }
    let change = Change {
        finding: Some((finding, generation)),
        ..Change::from(on_server.ask(statement.id()))
    };
    frontend::describe_statement(outlet.insert(), statement.name().as_bytes());
    let replies = &mut exchange.dialogue.replies;
    replies.push(Kind::Describe, Fate::Drop, Some(Box::new(change)));
}

/// Parse of the empty statement: text and parameter types.
const NOTHING: &[u8] = b"\0\0\0";

/// Makes the server have a statement of this name that does nothing.
pub(super) fn stand_in(name: &[u8], outlet: &mut Outlet<'_>, exchange: &mut Exchange<'_>) {
    let out = outlet.insert();
    frontend::close_statement(out, name);
    message(out, tag::PARSE, |to| {
        put_cstr(to, name);
        to.extend_from_slice(NOTHING);
    });
    let replies = &mut exchange.dialogue.replies;
    replies.push(Kind::Close, Fate::Drop, None);
    replies.push(Kind::Parse, Fate::Drop, Some(Box::default()));
}

/// The same of a statement that a failed transaction refuses, unlike the empty one.
pub(super) const SELECT: &[u8] = b"select 1\0\0\0";

/// Makes the server fail where it would have failed if the client had its names to itself: it is asked
/// to prepare `body` under a name that it has. The client is told what `refusal` says.
pub(super) fn refuse(
    refusal: Refusal,
    body: &[u8],
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) {
    stand_in(TAKEN, outlet, exchange);
    message(outlet.insert(), tag::PARSE, |to| {
        put_cstr(to, TAKEN);
        to.extend_from_slice(body);
    });
    let replies = &mut exchange.dialogue.replies;
    let change = Change {
        refusal: Some(refusal),
        ..Change::default()
    };
    replies.push(Kind::Parse, Fate::Forward, Some(Box::new(change)));
}
