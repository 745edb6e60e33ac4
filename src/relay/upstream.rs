//! From client to server: accounts for what every message will be answered with, and gives named
//! prepared statements the names they have on the server. Everything else passes unread.

use super::outlet::Outlet;
use crate::server::Dialogue;
use crate::session::{
    Change, ClientStatements, Fate, Kind, NameInUse, ServerChange, Statement, Statements,
    server_name,
};
use crate::wire::frontend::{self, Bind, Parse, Target, TargetKind};
use crate::wire::tag::frontend as tag;
use crate::wire::{BadHeader, Header, Scanner, Step, message, put_cstr};
use std::rc::Rc;

/// Names that a Bind, Describe or Close may carry, in bytes.
const NAMES_BYTES_MAX: usize = 64 * 1024;
/// Largest named Parse: its text is kept for as long as a client has its name.
const STATEMENT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why a client's stream cannot be followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    BadHeader(#[from] BadHeader),
    #[error("unknown pkt")]
    UnknownTag(u8),
    #[error(transparent)]
    NameInUse(#[from] NameInUse),
    #[error("prepared statement is too large")]
    TooLarge,
}

/// What may be done to a client's messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Named statements a server keeps; 0 passes names on as they are.
    pub(super) prepared_max: usize,
    pub(super) body_bytes_max: usize,
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

/// Where a client's stream stands.
#[derive(Debug, Default)]
pub(super) struct Upstream {
    scanner: Scanner,
    flow: Flow,
    gathered: Vec<u8>,
    header: Option<Header>,
}

/// Both sides of a lease, as far as the client's messages touch them.
pub(super) struct Exchange<'a> {
    pub(super) rules: Rules,
    pub(super) dialogue: &'a mut Dialogue,
    pub(super) names: &'a mut ClientStatements,
    pub(super) statements: &'a mut Statements,
    pub(super) counts: &'a mut Counts,
}

enum Looked {
    NeedsMore,
    /// The message passes as it is.
    Unchanged,
    /// It has been written anew, as far as it is at hand; what is missing passes.
    Rewritten,
}

impl Upstream {
    /// Whether no message has been passed on in part.
    pub(super) fn is_between(&self) -> bool {
        self.scanner.at_boundary() || (self.scanner.rest() > 0 && self.flow == Flow::Discard)
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
                        self.flow = Flow::Discard;
                    }
                    tag => {
                        check_tag(tag)?;
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
                    check_tag(header.tag)?;
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

    /// Passes bytes on to the server. True if the client leaves.
    pub(super) fn feed(
        &mut self,
        data: &[u8],
        outlet: &mut Outlet<'_>,
        exchange: &mut Exchange<'_>,
    ) -> Result<bool, Fault> {
        let mut at = 0;
        loop {
            match self
                .scanner
                .next(data, &mut at, exchange.rules.body_bytes_max)?
            {
                Step::End => return Ok(false),
                Step::More { range } => match self.flow {
                    Flow::Pass => outlet.keep(range),
                    Flow::Discard => {}
                    Flow::Gather => {
                        self.gathered.extend_from_slice(&data[range]);
                        self.look_at_gathered(outlet, exchange)?;
                    }
                },
                Step::Begin { header, .. } if header.tag == tag::TERMINATE => return Ok(true),
                Step::Begin {
                    header,
                    range,
                    body,
                    held,
                } => {
                    check_tag(header.tag)?;
                    self.flow = decide(header, exchange);
                    let passes = match self.flow {
                        Flow::Pass => true,
                        Flow::Discard => false,
                        Flow::Gather => {
                            self.look_at(header, &data[body..range.end], outlet, exchange)?
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
        outlet: &mut Outlet<'_>,
        exchange: &mut Exchange<'_>,
    ) -> Result<bool, Fault> {
        match look(header, have, self.scanner.rest(), outlet, exchange)? {
            Looked::NeedsMore => {
                self.gathered.clear();
                self.gathered.extend_from_slice(have);
                self.header = Some(header);
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
        }
    }

    fn look_at_gathered(
        &mut self,
        outlet: &mut Outlet<'_>,
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
        let looked = look(
            header,
            &self.gathered,
            self.scanner.rest(),
            outlet,
            exchange,
        )?;
        if matches!(looked, Looked::NeedsMore) {
            return Ok(());
        }
        if matches!(looked, Looked::Unchanged) {
            let out = outlet.insert();
            out.extend_from_slice(self.scanner.header_bytes());
            out.extend_from_slice(&self.gathered);
        }
        self.flow = Flow::Pass;
        self.header = None;
        self.gathered = Vec::new();
        Ok(())
    }
}

fn check_tag(tag: u8) -> Result<(), Fault> {
    if tag::is_known(tag) && tag != tag::PASSWORD {
        Ok(())
    } else {
        Err(Fault::UnknownTag(tag))
    }
}

/// What becomes of a message, from its header; pushes what it will be answered with, unless its
/// body has to be looked at first.
fn decide(header: Header, exchange: &mut Exchange<'_>) -> Flow {
    let replies = &mut exchange.dialogue.replies;
    if replies.is_skipping() && header.tag != tag::SYNC {
        return Flow::Discard;
    }
    let renames = exchange.rules.prepared_max > 0;
    match header.tag {
        tag::QUERY | tag::FUNCTION_CALL => replies.push(Kind::Query, Fate::Forward, None),
        tag::SYNC => {
            replies.push(Kind::Sync, Fate::Forward, None);
            exchange.dialogue.statements.synced();
        }
        tag::EXECUTE => replies.push(Kind::Execute, Fate::Forward, None),
        tag::COPY_DATA if !replies.takes_copy_data() => return Flow::Discard,
        tag::COPY_DONE | tag::COPY_FAIL if !replies.takes_copy_data() => return Flow::Discard,
        tag::COPY_DONE | tag::COPY_FAIL => replies.copy_ended(),
        tag::PARSE | tag::BIND | tag::DESCRIBE | tag::CLOSE if renames => return Flow::Gather,
        other => {
            if let Some(kind) = extended(other) {
                replies.push(kind, Fate::Forward, None);
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

/// Looks into a message of which `have` is at hand and `rest` bytes are to come. What is malformed
/// passes: the server says what is wrong with it.
fn look(
    header: Header,
    have: &[u8],
    rest: usize,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Result<Looked, Fault> {
    let looked = match header.tag {
        tag::PARSE if have.first() == Some(&0) => Looked::Unchanged,
        tag::PARSE if rest > 0 && header.body_bytes > STATEMENT_BYTES_MAX => {
            return Err(Fault::TooLarge);
        }
        tag::PARSE if rest > 0 => return Ok(Looked::NeedsMore),
        tag::PARSE => return look_at_parse(have, outlet, exchange),
        tag::BIND => return look_at_bind(have, rest, outlet, exchange),
        _ if rest > 0 && header.body_bytes > NAMES_BYTES_MAX => return Err(Fault::TooLarge),
        _ if rest > 0 => return Ok(Looked::NeedsMore),
        tag => return Ok(look_at_target(tag, have, outlet, exchange)),
    };
    push_unchanged(header.tag, exchange);
    Ok(looked)
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
    exchange.counts.client_parse += 1;
    let statement = exchange.statements.intern(&body[parse.name.len() + 1..]);
    let client = Some(exchange.names.register(parse.name, statement.clone())?);
    match make_room(&statement, outlet, exchange) {
        None => {
            let change = Change {
                client,
                server: None,
            };
            exchange
                .dialogue
                .replies
                .push(Kind::Parse, Fate::Fabricate, Some(Box::new(change)));
        }
        Some(server) => {
            let change = Change {
                client,
                server: Some(server),
            };
            send_parse(&statement, Fate::Forward, change, outlet, exchange);
        }
    }
    Ok(Looked::Rewritten)
}

fn look_at_bind(
    have: &[u8],
    rest: usize,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Result<Looked, Fault> {
    let bind = match Bind::read(have) {
        Ok(bind) => bind,
        Err(_) if rest > 0 && have.len() > NAMES_BYTES_MAX => return Err(Fault::TooLarge),
        Err(_) if rest > 0 => return Ok(Looked::NeedsMore),
        Err(_) => {
            push_unchanged(tag::BIND, exchange);
            return Ok(Looked::Unchanged);
        }
    };
    // A name the client never prepared is for the server to refuse (26000), or to know from PREPARE.
    let Some(statement) = exchange.names.get(bind.statement).cloned() else {
        push_unchanged(tag::BIND, exchange);
        return Ok(Looked::Unchanged);
    };
    exchange.counts.bind += 1;
    prepare(&statement, outlet, exchange);
    let out = outlet.insert();
    let name = statement.name().as_bytes();
    frontend::bind_renamed_head(out, bind.portal, name, bind.rest.len() + rest)
        .map_err(|_| Fault::TooLarge)?;
    out.extend_from_slice(bind.rest);
    exchange
        .dialogue
        .replies
        .push(Kind::Bind, Fate::Forward, None);
    Ok(Looked::Rewritten)
}

fn look_at_target(
    tag: u8,
    body: &[u8],
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Looked {
    let named = Target::read(body)
        .ok()
        .filter(|target| target.kind == TargetKind::Statement);
    let known =
        named.and_then(|target| Some((target.name, exchange.names.get(target.name)?.clone())));
    match (tag, known) {
        (tag::DESCRIBE, Some((_, statement))) => {
            prepare(&statement, outlet, exchange);
            frontend::describe_statement(outlet.insert(), statement.name().as_bytes());
            exchange
                .dialogue
                .replies
                .push(Kind::Describe, Fate::Forward, None);
            Looked::Rewritten
        }
        (tag::CLOSE, Some((name, _))) => {
            let change = Change {
                client: exchange.names.close(name),
                server: None,
            };
            exchange
                .dialogue
                .replies
                .push(Kind::Close, Fate::Fabricate, Some(Box::new(change)));
            Looked::Rewritten
        }
        _ => {
            push_unchanged(tag, exchange);
            Looked::Unchanged
        }
    }
}

/// Makes sure that the server has the statement by the time it gets to what comes next.
fn prepare(statement: &Rc<Statement>, outlet: &mut Outlet<'_>, exchange: &mut Exchange<'_>) {
    if let Some(server) = make_room(statement, outlet, exchange) {
        let change = Change {
            client: None,
            server: Some(server),
        };
        send_parse(statement, Fate::Drop, change, outlet, exchange);
    }
}

/// Closes what is in the way of preparing the statement; `None` if the server has it.
fn make_room(
    statement: &Statement,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) -> Option<ServerChange> {
    let needed = exchange
        .dialogue
        .statements
        .prepare(statement.id(), exchange.rules.prepared_max);
    let batch = needed.parse?;
    for evicted in needed.evict {
        frontend::close_statement(outlet.insert(), server_name(evicted).as_bytes());
        let change = Change {
            client: None,
            server: Some(ServerChange::Evicted(evicted)),
        };
        exchange
            .dialogue
            .replies
            .push(Kind::Close, Fate::Drop, Some(Box::new(change)));
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

fn send_parse(
    statement: &Statement,
    fate: Fate,
    change: Change,
    outlet: &mut Outlet<'_>,
    exchange: &mut Exchange<'_>,
) {
    exchange.counts.server_parse += 1;
    message(outlet.insert(), tag::PARSE, |body| {
        put_cstr(body, statement.name());
        body.extend_from_slice(statement.body());
    });
    exchange
        .dialogue
        .replies
        .push(Kind::Parse, fate, Some(Box::new(change)));
}
