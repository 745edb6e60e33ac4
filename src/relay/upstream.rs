//! From client to server: accounts for what every message will be answered with, and gives named
//! prepared statements the names they have on the server. Everything else passes unread.

use super::kept::{Kept, is_flexible};
use super::outlet::Outlet;
use super::portal::{self, LastPortal};
use super::preparing::{
    Outcome, SELECT, find_types, is_as_told, make_room, parse_anew, prepare, prepare_typed, refuse,
    renewed, result_of, send_parse,
};
use super::spoken::{self, Spoken, mark_of};
use crate::base::memory;
use crate::server::{Dialogue, Unnamed};
use crate::session::sql;
use crate::session::{
    Change, ClientStatements, Fate, Finding, Form, Generation, Kind, Refusal, Settings, Statement,
    Statements,
};
use crate::wire::frontend::{self, Bind, Parse, Target, TargetKind};
use crate::wire::tag::frontend as tag;
use crate::wire::{BadHeader, Header, LENGTH_BYTES, Scanner, Step};

/// Names that a Bind, Describe or Close may carry, in bytes.
const NAMES_BYTES_MAX: usize = 64 * 1024;
/// Largest named Parse: its text is kept for as long as a client has its name.
pub(super) const STATEMENT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest message of the kinds that hold next to nothing, its length included (PQ_SMALL_MESSAGE_LIMIT of PostgreSQL 14).
const SMALL_BYTES_MAX: usize = 10_000;
/// Longest message of the other kinds (PQ_LARGE_MESSAGE_LIMIT).
const LARGE_BYTES_MAX: usize = 0x3fff_fffe;
/// Bytes of a text in which its first word can be seen.
const WORD_BYTES: usize = 16;

/// Why a client's stream cannot be followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    BadHeader(#[from] BadHeader),
    #[error("unknown pkt")]
    UnknownTag(u8),
    #[error("prepared statement name is already in use")]
    NameInUse,
    #[error("prepared statement did not exist")]
    UnknownName,
    #[error("prepared statement is too large")]
    TooLarge,
    #[error("PQexec disallowed")]
    QueryRefused,
    #[error("out of memory")]
    OutOfMemory,
}

/// What may be done to a client's messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Named statements a server keeps; 0 passes names on as they are.
    pub(super) prepared_max: usize,
    pub(super) body_bytes_max: usize,
    /// A name in use or unknown costs the client its connection.
    pub(super) is_strict: bool,
    /// A Query does.
    pub(super) refuses_query: bool,
}

impl Rules {
    /// Whether the body of a Query matters.
    fn looks_at_query(&self) -> bool {
        self.refuses_query || self.prepared_max > 0
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flow {
    #[default]
    Pass,
    Discard,
    Gather,
}

/// What a client's bytes do while it has no server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Idle {
    /// Nothing in them needs a server.
    Nothing,
    /// From this byte on they need one.
    Needs(usize),
    /// The client leaves.
    Terminate,
}

/// How much of a request has been skipped.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Skipped {
    /// There is more to come.
    Part,
    /// All; it ends before this byte.
    All(usize),
    /// The client has taken its leave instead.
    Terminate,
}

/// Parse and Bind messages with names, for the statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) client_parse: u64,
    pub(super) server_parse: u64,
    pub(super) bind: u64,
}

/// How far a client's bytes have been passed on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fed {
    /// All of them.
    All,
    /// Up to this byte: the message that ends there waits, and with it what is behind.
    Held(usize),
    /// The client leaves.
    Terminate,
}

/// Where a client's stream stands.
#[derive(Debug, Default)]
pub(super) struct Upstream {
    scanner: Scanner,
    flow: Flow,
    gathered: Vec<u8>,
    header: Option<Header>,
    /// The message that is gathered waits for an answer to an earlier one, see [`must_wait`].
    is_held: bool,
    /// The answers that it waits for have been called for.
    is_flushed: bool,
    /// The server has the statement that it names.
    is_prepared: bool,
}

/// Both sides of a lease, as far as the client's messages touch them.
pub(super) struct Exchange<'a> {
    pub(super) rules: Rules,
    /// The client's number.
    pub(super) client: u64,
    /// How many unnamed statements it has prepared.
    pub(super) unnamed: &'a mut u64,
    pub(super) dialogue: &'a mut Dialogue,
    pub(super) names: &'a mut ClientStatements,
    pub(super) statements: &'a mut Statements,
    pub(super) counts: &'a mut Counts,
    pub(super) generation: &'a Generation,
    pub(super) spoken: &'a mut Spoken,
    pub(super) portal: &'a mut LastPortal,
    pub(super) settings: &'a Settings,
}

pub(super) enum Looked {
    NeedsMore,
    /// The message passes as it is.
    Unchanged,
    /// It has been written anew, as far as it is at hand; what is missing passes.
    Rewritten,
    /// The same, of a Query that can be sent again.
    RewrittenQuery,
    /// Something else has been sent in its place; what is missing of it does not pass.
    RewrittenWhole,
    /// What it means depends on an answer that has not come.
    Held,
    /// The same; the server has the statement that it names.
    HeldPrepared,
}

impl Upstream {
    /// Whether no message has been passed on in part.
    pub(super) fn is_between(&self) -> bool {
        !self.is_held
            && (self.scanner.at_boundary()
                || (self.scanner.rest() > 0 && self.flow == Flow::Discard))
    }

    /// Whether a message waits for an answer of the server.
    pub(super) fn is_held(&self) -> bool {
        self.is_held
    }

    /// Whether no message has come in part.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.scanner.at_boundary()
    }

    /// Looks at bytes that come while the client has no server.
    pub(super) fn idle(&mut self, data: &[u8], rules: Rules) -> Result<Idle, Fault> {
        let mut at = 0;
        loop {
            let (before, start) = (self.scanner.clone(), at);
            match self.scanner.next(data, &mut at, rules.body_bytes_max)? {
                Step::End => return Ok(Idle::Nothing),
                Step::More { .. } => {}
                Step::Begin { header, .. } => match header.tag {
                    tag::TERMINATE => return Ok(Idle::Terminate),
                    // Late COPY data and a Flush of nothing.
                    tag::COPY_DATA | tag::COPY_DONE | tag::COPY_FAIL | tag::FLUSH => {
                        check(header)?;
                        self.flow = Flow::Discard;
                    }
                    tag::QUERY if rules.refuses_query => return Err(Fault::QueryRefused),
                    _ => {
                        check(header)?;
                        self.scanner = before;
                        return Ok(Idle::Needs(start));
                    }
                },
            }
        }
    }

    /// Drops messages up to the end of the next Query, FunctionCall or Sync: a request that will
    /// not be served. Gives the bytes that belong to it, once it has been seen whole.
    pub(super) fn skip_request(&mut self, data: &[u8], rules: Rules) -> Result<Skipped, Fault> {
        let mut at = 0;
        loop {
            let ends = match self.scanner.next(data, &mut at, rules.body_bytes_max)? {
                Step::End => return Ok(Skipped::Part),
                Step::More { .. } => self.header.is_some(),
                Step::Begin { header, .. } if header.tag == tag::TERMINATE => {
                    return Ok(Skipped::Terminate);
                }
                Step::Begin { header, .. } => {
                    check(header)?;
                    let is_end = matches!(header.tag, tag::QUERY | tag::FUNCTION_CALL | tag::SYNC);
                    self.header = is_end.then_some(header);
                    is_end
                }
            };
            if ends && self.scanner.rest() == 0 {
                self.header = None;
                return Ok(Skipped::All(at));
            }
        }
    }

    /// Passes bytes on to the server; `kept` is the batch under way, as long as it may have to be sent again. If a message was held,
    /// these are the bytes behind it.
    pub(super) fn feed(
        &mut self,
        data: &[u8],
        outlet: &mut Outlet<'_>,
        kept: &mut Kept,
        exchange: &mut Exchange<'_>,
    ) -> Result<Fed, Fault> {
        let mut at = 0;
        if std::mem::take(&mut self.is_held) {
            self.look_at_gathered(data, outlet, kept, exchange)?;
        }
        loop {
            if self.is_held {
                return Ok(Fed::Held(at));
            }
            match self
                .scanner
                .next(data, &mut at, exchange.rules.body_bytes_max)?
            {
                Step::End => {
                    if self.scanner.rest() == 0 && !self.scanner.at_boundary() {
                        kept.header_begins();
                    }
                    return Ok(Fed::All);
                }
                Step::More { range } => {
                    kept.goes_on(&data[range.clone()]);
                    match self.flow {
                        Flow::Pass => outlet.keep(range),
                        Flow::Discard => {}
                        Flow::Gather => {
                            let bytes = self.gathered.len() + range.len();
                            // Growing, it is there twice.
                            if bytes > NAMES_BYTES_MAX && !memory::has_room_for(bytes) {
                                return Err(Fault::OutOfMemory);
                            }
                            self.gathered.extend_from_slice(&data[range]);
                            self.look_at_gathered(&data[at..], outlet, kept, exchange)?;
                        }
                    }
                }
                Step::Begin { header, .. } if header.tag == tag::TERMINATE => {
                    return Ok(Fed::Terminate);
                }
                Step::Begin {
                    header,
                    range,
                    body,
                    held,
                } => {
                    check(header)?;
                    if kept.is_open() {
                        let header = self.scanner.header_bytes();
                        kept.begin(header, &data[body..range.end]);
                        if kept.is_refused() && at < data.len() {
                            // It is not alone.
                            kept.answered();
                        }
                    }
                    self.flow = decide(header, kept.is_refused(), exchange);
                    let passes = match self.flow {
                        Flow::Pass => true,
                        Flow::Discard => false,
                        Flow::Gather => {
                            let (have, behind) = (&data[body..range.end], &data[at..]);
                            self.look_at(header, have, behind, outlet, kept, exchange)?
                        }
                    };
                    if passes && held {
                        outlet
                            .insert()
                            .extend_from_slice(self.scanner.header_bytes());
                        outlet.keep(body..range.end);
                    } else if passes {
                        outlet.keep(range);
                    }
                }
            }
        }
    }

    /// Looks at the first bytes of a message that may have to be renamed. True if they pass as
    /// they are.
    fn look_at(
        &mut self,
        header: Header,
        have: &[u8],
        behind: &[u8],
        outlet: &mut Outlet<'_>,
        kept: &mut Kept,
        exchange: &mut Exchange<'_>,
    ) -> Result<bool, Fault> {
        let body = Body {
            have,
            rest: self.scanner.rest(),
            behind,
            is_repeated: kept.is_repeated(),
            is_prepared: false,
        };
        match look(header, body, outlet, exchange)? {
            looked @ (Looked::NeedsMore | Looked::Held | Looked::HeldPrepared) => {
                self.gathered.clear();
                self.gathered.extend_from_slice(have);
                self.header = Some(header);
                (self.is_flushed, self.is_prepared) = (false, false);
                self.hold(&looked, outlet, exchange);
                Ok(false)
            }
            Looked::Unchanged => {
                self.flow = Flow::Pass;
                Ok(true)
            }
            Looked::Rewritten => {
                self.flow = Flow::Pass;
                Ok(false)
            }
            Looked::RewrittenWhole => {
                self.flow = Flow::Discard;
                Ok(false)
            }
            Looked::RewrittenQuery => {
                self.flow = Flow::Pass;
                kept.keep_query(self.scanner.header_bytes(), have);
                Ok(false)
            }
        }
    }

    /// If that is what has become of it: an answer that nothing else calls for is asked for.
    fn hold(&mut self, looked: &Looked, outlet: &mut Outlet<'_>, exchange: &mut Exchange<'_>) {
        match looked {
            Looked::Held => {}
            Looked::HeldPrepared => self.is_prepared = true,
            _ => return,
        }
        self.is_held = true;
        if exchange.dialogue.replies.is_batch_open() && !self.is_flushed {
            frontend::flush(outlet.insert());
            self.is_flushed = true;
        }
    }

    fn look_at_gathered(
        &mut self,
        behind: &[u8],
        outlet: &mut Outlet<'_>,
        kept: &mut Kept,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), Fault> {
        let Some(header) = self.header else {
            return Ok(());
        };
        if exchange.dialogue.replies.is_skipping() {
            // An error has come meanwhile: the server skips this message, too.
            (self.flow, self.header) = (Flow::Discard, None);
            self.gathered = Vec::new();
            return Ok(());
        }
        let body = Body {
            have: &self.gathered,
            rest: self.scanner.rest(),
            behind,
            is_repeated: kept.is_repeated(),
            is_prepared: self.is_prepared,
        };
        let looked = look(header, body, outlet, exchange)?;
        if matches!(
            looked,
            Looked::NeedsMore | Looked::Held | Looked::HeldPrepared
        ) {
            self.hold(&looked, outlet, exchange);
            return Ok(());
        }
        if matches!(looked, Looked::Unchanged) {
            let out = outlet.insert();
            out.extend_from_slice(self.scanner.header_bytes());
            out.extend_from_slice(&self.gathered);
        }
        if matches!(looked, Looked::RewrittenQuery) {
            let header = self.scanner.header_bytes();
            kept.keep_query(header, &self.gathered);
        }
        self.flow = match looked {
            Looked::RewrittenWhole => Flow::Discard,
            _ => Flow::Pass,
        };
        self.header = None;
        self.gathered = Vec::new();
        Ok(())
    }
}

/// Whether PostgreSQL would read the message whose header has just come: it hangs up on others.
fn check(header: Header) -> Result<(), Fault> {
    let tag = header.tag;
    if !tag::is_known(tag) || tag == tag::PASSWORD {
        return Err(Fault::UnknownTag(tag));
    }
    let bytes_max = match tag {
        tag::SYNC | tag::FLUSH | tag::EXECUTE | tag::COPY_DONE | tag::COPY_FAIL => SMALL_BYTES_MAX,
        // Describe and Close are small, too, but the names of statements are not what it is sent.
        _ => LARGE_BYTES_MAX,
    };
    fits(header, bytes_max)
}

fn fits(header: Header, bytes_max: usize) -> Result<(), Fault> {
    match header.body_bytes + LENGTH_BYTES > bytes_max {
        true => Err(BadHeader::from(header).into()),
        false => Ok(()),
    }
}

/// What becomes of a message, from its header; pushes what it will be answered with, unless its
/// body has to be looked at first. `is_refused` if it ends a batch that is going to be sent again.
fn decide(header: Header, is_refused: bool, exchange: &mut Exchange<'_>) -> Flow {
    let replies = &mut exchange.dialogue.replies;
    if replies.is_skipping() && header.tag != tag::SYNC {
        return Flow::Discard;
    }
    let renames = exchange.rules.prepared_max > 0;
    if matches!(header.tag, tag::QUERY | tag::CLOSE) {
        exchange.portal.is_foreign();
    }
    match header.tag {
        tag::QUERY if exchange.rules.looks_at_query() => return Flow::Gather,
        tag::QUERY | tag::FUNCTION_CALL => replies.push(Kind::Query, Fate::Forward, None),
        tag::SYNC => {
            replies.push(Kind::Sync, Fate::Forward, None);
            if is_refused {
                replies.swallow_end();
            }
            exchange.dialogue.statements.synced();
            exchange.names.synced();
        }
        tag::EXECUTE => {
            let change = spoken::executed(exchange);
            let replies = &mut exchange.dialogue.replies;
            replies.push(Kind::Execute, Fate::Forward, change);
        }
        tag::COPY_DATA if !replies.takes_copy_data() => return Flow::Discard,
        tag::COPY_DONE | tag::COPY_FAIL if !replies.takes_copy_data() => return Flow::Discard,
        tag::COPY_DONE | tag::COPY_FAIL => replies.copy_ended(),
        tag::PARSE | tag::BIND | tag::DESCRIBE | tag::CLOSE if renames => return Flow::Gather,
        other => {
            if let Some(kind) = extended(other) {
                replies.push(kind, Fate::Forward, None);
            }
            if other == tag::PARSE {
                exchange.dialogue.unnamed = None;
            }
        }
    }
    Flow::Pass
}

fn extended(tag: u8) -> Option<Kind> {
    match tag {
        tag::PARSE => Some(Kind::Parse),
        tag::BIND => Some(Kind::Bind),
        tag::DESCRIBE => Some(Kind::Describe),
        tag::CLOSE => Some(Kind::Close),
        _ => None,
    }
}

/// A message's body, as far as it has come.
#[derive(Clone, Copy)]
pub(super) struct Body<'a> {
    /// What is at hand.
    pub(super) have: &'a [u8],
    /// Bytes to come.
    pub(super) rest: usize,
    /// What is at hand behind the message.
    behind: &'a [u8],
    /// The message is sent again, with nothing of it answered yet.
    is_repeated: bool,
    /// It has been looked at before, and the server has the statement that it names.
    is_prepared: bool,
}

/// Looks into a message. What is malformed passes: the server says what is wrong with it.
fn look(
    header: Header,
    body: Body<'_>,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Result<Looked, Fault> {
    let Body { have, rest, .. } = body;
    let looked = match header.tag {
        tag::QUERY if exchange.rules.refuses_query => return Err(Fault::QueryRefused),
        tag::QUERY => return spoken::look_at_query(header, body, outlet, exchange),
        tag::PARSE if have.first() == Some(&0) => {
            let looked = spoken::look_at_unnamed(header, body, outlet, exchange);
            if !matches!(looked, Looked::NeedsMore | Looked::Held) {
                *exchange.unnamed += 1;
                let text = have.get(1..).unwrap_or_default();
                own_unnamed(exchange, sql::may_begin(text) && sql::forgets(text));
            }
            match looked {
                Looked::Unchanged => Looked::Unchanged,
                other => return Ok(other),
            }
        }
        tag::PARSE if rest > 0 && header.body_bytes > STATEMENT_BYTES_MAX => {
            return Err(Fault::TooLarge);
        }
        tag::PARSE if rest > 0 => return Ok(Looked::NeedsMore),
        tag::PARSE => return look_at_parse(have, outlet, exchange),
        tag::BIND => return look_at_bind(body, outlet, exchange),
        _ if rest > 0 && header.body_bytes > NAMES_BYTES_MAX => return Err(Fault::TooLarge),
        _ if rest > 0 => return Ok(Looked::NeedsMore),
        tag => return look_at_target(tag, have, outlet, exchange),
    };
    push_unchanged(header.tag, exchange);
    Ok(looked)
}

/// Whether it depends on an answer to an earlier batch, or to a command that makes all names go, what a name stands for:
/// an error makes the server skip the rest of a batch, but not the next one.
#[inline]
pub(super) fn must_wait(name: &[u8], exchange: &mut Exchange<'_>) -> bool {
    let replies = &exchange.dialogue.replies;
    if replies.is_empty() {
        exchange.spoken.forgets = false;
        return false;
    }
    let is_unsure = exchange.spoken.forgets || !exchange.names.is_settled(name);
    // A server that copies answers nothing before the client has gone on.
    is_unsure && !name.is_empty() && !replies.is_copying_in()
}

/// Whether the first word of a text can be told from what is at hand of it, or never will be.
pub(super) fn shows_word(text: &[u8], rest: usize) -> bool {
    rest == 0 || text.len() >= WORD_BYTES
}

fn push_unchanged(tag: u8, exchange: &mut Exchange<'_>) {
    if let Some(kind) = extended(tag) {
        exchange.dialogue.replies.push(kind, Fate::Forward, None);
    }
}

fn look_at_parse(
    body: &[u8],
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Result<Looked, Fault> {
    let Ok(parse) = Parse::read(body) else {
        push_unchanged(tag::PARSE, exchange);
        return Ok(Looked::Unchanged);
    };
    if must_wait(parse.name, exchange) || spoken::must_wait_for(&parse, exchange) {
        return Ok(Looked::Held);
    }
    exchange.counts.client_parse += 1;
    let tail = &body[parse.name.len() + 1..];
    if exchange.names.get(parse.name).is_some() {
        if exchange.rules.is_strict {
            return Err(Fault::NameInUse);
        }
        refuse(
            Refusal::NameInUse(parse.name.into()),
            tail,
            outlet,
            exchange,
        );
        return Ok(Looked::Rewritten);
    }
    let rewritten = spoken::of_named(&parse, exchange, outlet);
    let (tail, form) = match &rewritten {
        Some((tail, of)) => (&**tail, Form::ParseOf(of.clone())),
        None => (tail, Form::Parse),
    };
    let generation = exchange.generation.current();
    let interned = exchange.statements.intern(tail, form, generation);
    let registered = interned.and_then(|statement| {
        let finding = statement.is_open().then(Finding::default);
        let names = &mut exchange.names;
        let client = names.register_open(parse.name, statement.clone(), finding.clone())?;
        Ok((statement, client, finding))
    });
    let Ok((statement, client, finding)) = registered else {
        refuse(Refusal::TooMany, tail, outlet, exchange);
        return Ok(Looked::Rewritten);
    };
    let mut change = Change::from(client);
    let server = make_room(&statement, outlet, exchange);
    statement.usage().wanted(server.is_none());
    match (server, finding) {
        (Some(server), None) => {
            change.server = Some(server);
            send_parse(&statement, Fate::Forward, change, outlet, exchange);
            return Ok(Looked::Rewritten);
        }
        (Some(server), Some(finding)) => {
            send_parse(&statement, Fate::Replace, server.into(), outlet, exchange);
            find_types(&statement, finding, outlet, exchange);
        }
        (None, Some(finding)) => {
            // A plan of before a change of the tables would refuse to be described, which no Parse does.
            let on_server = &exchange.dialogue.statements;
            if on_server.types_of(statement.id()).is_none() {
                parse_anew(&statement, outlet, exchange);
            }
            find_types(&statement, finding, outlet, exchange);
        }
        (None, None) => {}
    }
    let replies = &mut exchange.dialogue.replies;
    replies.push(Kind::Parse, Fate::Fabricate, Some(Box::new(change)));
    Ok(Looked::Rewritten)
}

fn look_at_bind(
    body: Body<'_>,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Result<Looked, Fault> {
    let Body { have, rest, .. } = body;
    let bind = match Bind::read(have) {
        Ok(bind) => bind,
        Err(_) if rest > 0 && have.len() > NAMES_BYTES_MAX => return Err(Fault::TooLarge),
        Err(_) if rest > 0 => return Ok(Looked::NeedsMore),
        Err(_) => {
            push_unchanged(tag::BIND, exchange);
            return Ok(Looked::Unchanged);
        }
    };
    if must_wait(bind.statement, exchange) {
        return Ok(Looked::Held);
    }
    // A name the client never prepared is for the server to refuse (26000), or to know from PREPARE.
    let Some((mut statement, told)) = exchange.names.get_told(bind.statement) else {
        exchange.portal.is_foreign();
        return unknown_name(tag::BIND, bind.statement, outlet, exchange);
    };
    if statement.forgets() {
        exchange.spoken.forgets = true;
    }
    let is_flexible = is_flexible(&bind, rest == 0, body.behind);
    // Who relies on what it was told of the result.
    let relying = told
        .clone()
        .filter(|told| !is_flexible && told.is_any() && statement.is_fixed());
    if let Some(told) = &relying
        && rest > 0
        && have.len() + rest <= NAMES_BYTES_MAX
        && !is_as_told(&statement, told, exchange)
    {
        // What it asks for stands at its end.
        return Ok(Looked::NeedsMore);
    }
    // What had been prepared for it may have become doubtful while it was held.
    let is_there = body.is_prepared && exchange.dialogue.statements.has(statement.id());
    if !is_there {
        let is_typed = statement.is_open() && !bind.values_are_text();
        if statement.generation() != exchange.generation.current()
            && (body.is_repeated || is_flexible)
        {
            statement = renewed(bind.statement, statement, is_typed, exchange);
        }
        if is_typed {
            statement = prepare_typed(bind.statement, statement, outlet, exchange);
        } else {
            prepare(&statement, outlet, exchange);
        }
    }
    if let Some(told) = relying {
        match result_of(&statement, &told, outlet, exchange) {
            Outcome::AsTold => {}
            Outcome::Unknown => return Ok(Looked::HeldPrepared),
            Outcome::Other => {
                // Whoever prepares it anew is to get it as it is now, on every server.
                exchange.generation.is_over(statement.generation());
                refuse(Refusal::OtherResult, SELECT, outlet, exchange);
                return Ok(Looked::RewrittenWhole);
            }
        }
    }
    exchange.counts.bind += u64::from(!body.is_repeated);
    portal::is_bound(&bind, &statement, told, exchange);
    let out = outlet.insert();
    let name = statement.name().as_bytes();
    frontend::bind_renamed_head(out, bind.portal, name, bind.rest.len() + rest)
        .map_err(|_| Fault::TooLarge)?;
    out.extend_from_slice(bind.rest);
    push_renamed(Kind::Bind, &statement, exchange);
    Ok(Looked::Rewritten)
}

fn unknown_name(
    tag: u8,
    name: &[u8],
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Result<Looked, Fault> {
    if exchange.rules.is_strict && !name.is_empty() {
        return Err(Fault::UnknownName);
    }
    if name.is_empty() && must_wait_for_unnamed(exchange) {
        return Ok(Looked::Held);
    }
    if name.is_empty() {
        part_with_unnamed(outlet, exchange);
    }
    let mark = if name.is_empty() {
        exchange.spoken.mark
    } else {
        0
    };
    if let Some(kind) = extended(tag) {
        let replies = &mut exchange.dialogue.replies;
        replies.push_marked(kind, Fate::Forward, None, mark);
    }
    Ok(Looked::Unchanged)
}

/// Makes the server say that it has no unnamed statement, if what it has is not the one that this client has prepared last; that may
/// make all names go when it is executed.
fn part_with_unnamed(outlet: &mut Outlet<'_>, exchange: &mut Exchange<'_>) {
    let own = (exchange.client, *exchange.unnamed);
    if let Some(unnamed) = exchange.dialogue.unnamed.filter(|it| it.owner == own) {
        exchange.spoken.forgets |= unnamed.forgets;
        return;
    }
    frontend::close_statement(outlet.insert(), b"");
    let replies = &mut exchange.dialogue.replies;
    replies.push(Kind::Close, Fate::Drop, None);
    own_unnamed(exchange, false);
}

fn own_unnamed(exchange: &mut Exchange<'_>, forgets: bool) {
    exchange.dialogue.unnamed = Some(Unnamed {
        owner: (exchange.client, *exchange.unnamed),
        batch: exchange.dialogue.statements.batch(),
        is_answered: false,
        forgets,
    });
}

/// Whether an earlier batch, which may fail, has made the unnamed statement this client's.
fn must_wait_for_unnamed(exchange: &Exchange<'_>) -> bool {
    let Dialogue {
        unnamed,
        replies,
        statements,
        ..
    } = &*exchange.dialogue;
    let own = (exchange.client, *exchange.unnamed);
    let is_unsure =
        |it: Unnamed| it.owner == own && !it.is_answered && it.batch != statements.batch();
    !replies.is_empty() && !replies.is_copying_in() && unnamed.is_some_and(is_unsure)
}

fn push_renamed(kind: Kind, statement: &Statement, exchange: &mut Exchange<'_>) {
    let mark = mark_of(statement);
    let replies = &mut exchange.dialogue.replies;
    replies.push_marked(kind, Fate::Forward, None, mark);
}

fn look_at_target(
    tag: u8,
    body: &[u8],
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Result<Looked, Fault> {
    let named = Target::read(body)
        .ok()
        .filter(|target| target.kind == TargetKind::Statement);
    if named.is_some_and(|target| must_wait(target.name, exchange)) {
        return Ok(Looked::Held);
    }
    let known =
        named.and_then(|target| Some((target.name, exchange.names.get(target.name)?.clone())));
    match (tag, named, known) {
        (tag::DESCRIBE, _, Some((name, mut statement))) => {
            if statement.generation() != exchange.generation.current() {
                statement = renewed(name, statement, true, exchange);
            }
            statement = prepare_typed(name, statement, outlet, exchange);
            frontend::describe_statement(outlet.insert(), statement.name().as_bytes());
            let on_server = &mut exchange.dialogue.statements;
            let asked = on_server.ask(statement.id());
            let at = on_server.occurrence(statement.id());
            let told = exchange.names.telling(name).zip(at);
            if let Some((told, at)) = &told {
                told.begins(*at);
            }
            let change = Change {
                told,
                ..Change::from(asked)
            };
            let (replies, mark) = (&mut exchange.dialogue.replies, mark_of(&statement));
            let change = Some(Box::new(change));
            replies.push_marked(Kind::Describe, Fate::Forward, change, mark);
            Ok(Looked::Rewritten)
        }
        (tag::CLOSE, _, Some((name, _))) => {
            let change = Change {
                client: exchange.names.close(name),
                ..Change::default()
            };
            let replies = &mut exchange.dialogue.replies;
            replies.push(Kind::Close, Fate::Fabricate, Some(Box::new(change)));
            Ok(Looked::Rewritten)
        }
        (tag::DESCRIBE, Some(target), None) => unknown_name(tag, target.name, outlet, exchange),
        _ => {
            let header = Header {
                tag,
                body_bytes: body.len(),
            };
            fits(header, SMALL_BYTES_MAX)?;
            if tag == tag::DESCRIBE
                && let Ok(target) = Target::read(body)
            {
                let change = portal::telling(target.name, exchange);
                let replies = &mut exchange.dialogue.replies;
                replies.push(Kind::Describe, Fate::Forward, change);
            } else {
                push_unchanged(tag, exchange);
            }
            Ok(Looked::Unchanged)
        }
    }
}
