//! Prepared statements that a client names in SQL: `PREPARE`, `EXECUTE`, `DEALLOCATE`. The names in the
//! text are replaced by those that the statements have on every server, so that the text works on
//! whichever server the client has at the moment.
//!
//! - `PREPARE s ...` prepares under the server's name, after a Close of that.
//! - `EXECUTE s` executes the server's name; what the server lacks is prepared ahead of it.
//! - `DEALLOCATE s` only makes the client forget; the server deallocates a stand-in.
//!
//! In the extended protocol the unnamed statement may be any of these, a named one an `EXECUTE`. Names
//! that the client has not prepared pass as they are: the server says that it does not know them.

use super::outlet::Outlet;
use super::preparing::{TAKEN, carry_out, prepare, renewed, stand_in};
use super::upstream::{Body, Exchange, Fault, Looked, STATEMENT_BYTES_MAX, must_wait, shows_word};
use crate::session::sql::{self, Command, Commands, Verb};
use crate::session::{Change, Fate, Form, Kind, Refusal, ServerChange, Statement};
use crate::wire::frontend::{self, Parse, query_of};
use crate::wire::tag::frontend as tag;
use crate::wire::{Header, message, put_cstr};
use std::collections::VecDeque;
use std::rc::Rc;

/// A Query up to this long is looked at whole, in bytes; a longer one only if its first word calls for it.
const SHORT_BYTES: usize = 8 * 1024;
/// What servers deallocate in the place of a client's statement; a number follows.
const GONE: &str = "rb_gone";

/// Marks of requests, for [`failure_of`]: a generation plus one, or these. The first is of what the
/// pooler asks for itself; it does no harm where no Query follows.
pub(super) const AHEAD_OF_QUERY: u32 = 1 << 31;
const NO_RETRY: u32 = 1 << 30;

/// What an error means for the request that it ends.
pub(super) struct Failure {
    /// The generation of the statement that the request named, if it named one of ours.
    pub(super) generation: Option<u32>,
    /// Sending the client's batch again would help.
    pub(super) can_retry: bool,
    /// It is the pooler's own, ahead of a Query that needs it.
    pub(super) is_ahead_of_query: bool,
}

/// The mark of a request that names `statement`.
pub(super) fn mark_of(statement: &Statement) -> u32 {
    let generation = match statement.form() {
        Form::ParseOf(other) => return mark_of(other) | NO_RETRY,
        Form::Parse | Form::Sql => statement.generation(),
    };
    generation.saturating_add(1).min(NO_RETRY - 1)
}

/// What a mark says.
pub(super) fn failure_of(mark: u32) -> Failure {
    Failure {
        generation: (mark & !(AHEAD_OF_QUERY | NO_RETRY)).checked_sub(1),
        can_retry: mark & NO_RETRY == 0,
        is_ahead_of_query: mark & AHEAD_OF_QUERY != 0,
    }
}

/// What the unnamed statement of a lease will do when it is executed.
enum Pending {
    Register(Vec<u8>, Rc<Statement>, Option<ServerChange>),
    Refuse(Refusal),
    Forget(Vec<u8>),
}

/// State of a lease.
#[derive(Default)]
pub(super) struct Spoken {
    pending: Option<Pending>,
    /// A command may be under way that makes all names go.
    pub(super) forgets: bool,
    /// The mark of a Bind of the unnamed statement.
    pub(super) mark: u32,
    /// The Query under way has been refused already, by an error ahead of it.
    pub(super) is_refused: bool,
}

// ---- the simple protocol ----------------------------------------------------------------------------

/// Looks at a Query.
pub(super) fn look_at_query(
    header: Header,
    body: Body<'_>,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Result<Looked, Fault> {
    let Body { have, rest, .. } = body;
    if rest > 0 {
        let is_wanted =
            header.body_bytes <= SHORT_BYTES || sql::may_begin(have) || !shows_word(have, rest);
        if is_wanted && header.body_bytes <= STATEMENT_BYTES_MAX {
            return Ok(Looked::NeedsMore);
        }
    } else if sql::may_concern(have) {
        if !exchange.dialogue.replies.is_batch_open()
            && let Ok(text) = query_of(have)
            && let Some(commands) = understood(text, exchange)
        {
            if waits(&commands, exchange) {
                return Ok(Looked::Held);
            }
            note_forgetting(text, exchange);
            return Ok(rewrite(text, &commands, outlet, exchange));
        }
        note_forgetting(have, exchange);
    }
    let replies = &mut exchange.dialogue.replies;
    replies.push(Kind::Query, Fate::Forward, None);
    Ok(Looked::Unchanged)
}

/// Remembers that a text which is about to be sent may make all names go.
fn note_forgetting(text: &[u8], exchange: &mut Exchange<'_>) {
    if sql::forgets(text) {
        exchange.spoken.forgets = true;
    }
}

/// Whether one of the names is not settled.
fn waits(commands: &Commands, exchange: &mut Exchange<'_>) -> bool {
    let mut names = commands.iter().flatten().map(|command| &command.name);
    names.any(|name| must_wait(name, exchange))
}

/// Whether the name that the text of a Parse has in it is not settled.
pub(super) fn must_wait_for(parse: &Parse<'_>, exchange: &mut Exchange<'_>) -> bool {
    if exchange.dialogue.replies.is_empty() || !sql::may_begin(parse.query) {
        return false;
    }
    let command = only(parse, exchange);
    command.is_some_and(|command| must_wait(&command.name, exchange))
}

/// The commands of a text; `None` if there are none, or it is not understood.
fn understood(text: &[u8], exchange: &Exchange<'_>) -> Option<Commands> {
    // Then backslashes count in all strings of the client.
    let escapes = exchange.settings.tracked("standard_conforming_strings") == Some(b"off");
    let commands = sql::commands(text, escapes)?;
    commands.iter().any(Option::is_some).then_some(commands)
}

/// Sends the Query with other names in it, and what it needs ahead of it.
fn rewrite(
    text: &[u8],
    commands: &Commands,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Looked {
    let (mut written, mut from) = (Vec::with_capacity(text.len() + 64), 0);
    let (mut steps, mut asks, mut mark) = (VecDeque::new(), false, 0);
    for (index, command) in commands.iter().enumerate() {
        let meant = command
            .as_ref()
            .and_then(|command| Some((command, mean(text, command, index, outlet, exchange)?)));
        let Some((command, meant)) = meant else {
            steps.push_back(Change::default());
            continue;
        };
        written.extend_from_slice(text.get(from..command.at.start).unwrap_or_default());
        written.extend_from_slice(&sql::quoted(&meant.name));
        from = command.at.end;
        asks |= meant.asks;
        mark = meant.mark;
        steps.push_back(match meant.pending {
            Some(pending) => change_of(pending, exchange),
            None => Change::default(),
        });
    }
    written.extend_from_slice(text.get(from..).unwrap_or_default());
    if asks {
        frontend::sync(outlet.insert());
        let replies = &mut exchange.dialogue.replies;
        replies.push(Kind::Sync, Fate::Drop, None);
        exchange.dialogue.statements.synced();
    }
    frontend::query(outlet.insert(), &written);
    let change = Change {
        steps,
        ..Change::default()
    };
    // Only a statement that is alone can be run again.
    let mark = if commands.len() > 1 && mark > 0 {
        mark | NO_RETRY
    } else {
        mark
    };
    let replies = &mut exchange.dialogue.replies;
    replies.push_marked(Kind::Query, Fate::Forward, Some(Box::new(change)), mark);
    // Whether it has failed does not matter to what follows.
    exchange.dialogue.statements.synced();
    exchange.names.synced();
    Looked::RewrittenQuery
}

// ---- what a command means ---------------------------------------------------------------------------

struct Meant {
    /// The name to put into the text.
    name: Vec<u8>,
    /// Something has been sent to the server for it.
    asks: bool,
    /// What happens when it is executed.
    pending: Option<Pending>,
    mark: u32,
}

/// Makes the server ready for a command; `None` if it passes as it is.
fn mean(
    text: &[u8],
    command: &Command,
    index: usize,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Option<Meant> {
    let known = exchange.names.get(&command.name).cloned();
    match (command.verb, known) {
        (Verb::Prepare, None) => prepared(text, command, outlet, exchange),
        (Verb::Prepare, Some(_)) => {
            let refusal = Refusal::NameInUse(command.name.clone().into());
            Some(refused(refusal, outlet, exchange))
        }
        (Verb::Execute, Some(statement)) => {
            let statement = current(&command.name, statement, exchange);
            Some(Meant {
                name: statement.name().into(),
                asks: prepare(&statement, outlet, exchange),
                pending: None,
                mark: mark_of(&statement),
            })
        }
        (Verb::Deallocate, Some(_)) => {
            let name = format!("{GONE}{index}").into_bytes();
            stand_in(&name, outlet, exchange);
            Some(Meant {
                name,
                asks: true,
                pending: Some(Pending::Forget(command.name.clone())),
                mark: 0,
            })
        }
        (Verb::Execute | Verb::Deallocate, None) => None,
    }
}

/// SQL takes rows of any shape: the statement of the current generation.
fn current(name: &[u8], statement: Rc<Statement>, exchange: &mut Exchange<'_>) -> Rc<Statement> {
    if statement.generation() == exchange.generation.current() {
        return statement;
    }
    renewed(name, statement, false, exchange)
}

fn prepared(
    text: &[u8],
    command: &Command,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Option<Meant> {
    let tail = text.get(command.at.end..command.end)?;
    let generation = exchange.generation.current();
    let interned = exchange.statements.intern(tail, Form::Sql, generation);
    let Ok(statement) = interned else {
        return Some(refused(Refusal::TooMany, outlet, exchange));
    };
    let needed = exchange
        .dialogue
        .statements
        .prepare_anew(statement.id(), exchange.rules.prepared_max);
    let server = carry_out(&statement, needed, outlet, exchange);
    let name = command.name.clone();
    Some(Meant {
        name: statement.name().into(),
        asks: true,
        pending: Some(Pending::Register(name, statement, server)),
        mark: 0,
    })
}

fn refused(refusal: Refusal, outlet: &mut Outlet<'_>, exchange: &mut Exchange<'_>) -> Meant {
    stand_in(TAKEN, outlet, exchange);
    Meant {
        name: TAKEN.into(),
        asks: true,
        pending: Some(Pending::Refuse(refusal)),
        mark: 0,
    }
}

/// The command is being executed.
fn change_of(pending: Pending, exchange: &mut Exchange<'_>) -> Change {
    let mut change = Change::default();
    match pending {
        // A name that has come into use since is left as it is.
        Pending::Register(name, _, server) if exchange.names.get(&name).is_some() => {
            change.server = server;
        }
        Pending::Register(name, statement, server) => {
            change.client = exchange.names.register(&name, statement).ok();
            change.server = server;
        }
        Pending::Refuse(refusal) => change.refusal = Some(refusal),
        Pending::Forget(name) => change.client = exchange.names.close(&name),
    }
    change
}

/// Prepares a statement by SQL, in the pooler's own name; the unnamed statement is used for that.
pub(super) fn send_prepare(
    statement: &Statement,
    change: Change,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) {
    exchange.counts.server_parse += 1;
    exchange.dialogue.unnamed = None;
    let name = sql::quoted(statement.name().as_bytes());
    let text = [b"prepare ", &*name, statement.body()].concat();
    let out = outlet.insert();
    frontend::parse(out, b"", &text, &[]);
    frontend::bind(out, b"", b"", &[]);
    frontend::execute(out, b"", 0);
    let replies = &mut exchange.dialogue.replies;
    for kind in [Kind::Parse, Kind::Bind] {
        replies.push_marked(kind, Fate::Drop, Some(Box::default()), AHEAD_OF_QUERY);
    }
    replies.push_marked(
        Kind::Execute,
        Fate::Drop,
        Some(Box::new(change)),
        AHEAD_OF_QUERY,
    );
}

// ---- the extended protocol --------------------------------------------------------------------------

/// Looks at the Parse of an unnamed statement; [`Looked::Unchanged`] if it passes.
pub(super) fn look_at_unnamed(
    header: Header,
    body: Body<'_>,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Looked {
    let text = body.have.get(1..).unwrap_or_default();
    if sql::may_begin(text) || !shows_word(text, body.rest) {
        if body.rest > 0 && header.body_bytes <= STATEMENT_BYTES_MAX {
            return Looked::NeedsMore;
        }
        if Parse::read(body.have).is_ok_and(|parse| must_wait_for(&parse, exchange)) {
            return Looked::Held;
        }
        note_forgetting(text, exchange);
        if let Some(looked) = rewrite_unnamed(body.have, outlet, exchange) {
            return looked;
        }
    }
    (exchange.spoken.pending, exchange.spoken.mark) = (None, 0);
    Looked::Unchanged
}

fn rewrite_unnamed(
    body: &[u8],
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Option<Looked> {
    let parse = Parse::read(body).ok()?;
    let command = only(&parse, exchange)?;
    let meant = mean(parse.query, &command, 0, outlet, exchange)?;
    exchange.spoken.pending = meant.pending;
    // What the batch consists of is not sent again from its Parse on.
    exchange.spoken.mark = if meant.mark > 0 {
        meant.mark | NO_RETRY
    } else {
        0
    };
    let text = renamed(parse.query, &command, &meant.name);
    message(outlet.insert(), tag::PARSE, |out| {
        put_cstr(out, "");
        put_cstr(out, &text);
        out.extend_from_slice(parse.param_types);
    });
    let replies = &mut exchange.dialogue.replies;
    replies.push(Kind::Parse, Fate::Forward, None);
    Some(Looked::Rewritten)
}

/// The body of a named Parse whose text is an EXECUTE, and what that executes.
pub(super) fn of_named(
    parse: &Parse<'_>,
    exchange: &mut Exchange<'_>,
    outlet: &mut Outlet<'_>,
) -> Option<(Vec<u8>, Rc<Statement>)> {
    if !sql::may_begin(parse.query) {
        return None;
    }
    let command = only(parse, exchange).filter(|command| command.verb == Verb::Execute)?;
    let statement = exchange.names.get(&command.name).cloned()?;
    if matches!(statement.form(), Form::ParseOf(_)) {
        // An EXECUTE of an EXECUTE: PostgreSQL knows no such thing, and chains must not grow.
        return None;
    }
    let statement = current(&command.name, statement, exchange);
    prepare(&statement, outlet, exchange);
    let mut body = renamed(parse.query, &command, statement.name().as_bytes());
    body.push(0);
    body.extend_from_slice(parse.param_types);
    Some((body, statement))
}

/// The command that a Parse is, if it is one.
fn only(parse: &Parse<'_>, exchange: &Exchange<'_>) -> Option<Command> {
    match <[_; 1]>::try_from(understood(parse.query, exchange)?) {
        Ok([command]) => command,
        Err(_) => None,
    }
}

fn renamed(text: &[u8], command: &Command, name: &[u8]) -> Vec<u8> {
    let before = text.get(..command.at.start).unwrap_or_default();
    let behind = text.get(command.at.end..).unwrap_or_default();
    [before, &sql::quoted(name), behind].concat()
}

/// An Execute: what it changes, if the unnamed statement is one of these commands.
#[inline]
pub(super) fn executed(exchange: &mut Exchange<'_>) -> Option<Box<Change>> {
    let pending = exchange.spoken.pending.take()?;
    Some(Box::new(change_of(pending, exchange)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Budget, Statements};
    use std::sync::Arc;

    #[test]
    fn marks_say_what_they_were_made_of() {
        let mut statements = Statements::new(Arc::new(Budget::new(1 << 20)));
        for generation in [0, 1, 77] {
            let plain = statements.intern(b"x", Form::Parse, generation).unwrap();
            let failure = failure_of(mark_of(&plain));
            assert_eq!(
                (failure.generation, failure.can_retry),
                (Some(generation), true)
            );
            let of = statements
                .intern(b"y", Form::ParseOf(plain), generation)
                .unwrap();
            let failure = failure_of(mark_of(&of));
            assert_eq!(
                (failure.generation, failure.can_retry),
                (Some(generation), false)
            );
        }
        assert!(failure_of(0).generation.is_none());
        assert!(failure_of(AHEAD_OF_QUERY).is_ahead_of_query);
    }
}
