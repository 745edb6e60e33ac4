//! From server to client: ticks off owed replies, drops those the pooler asked for itself, makes
//! up those it did not ask the server for. Bodies are read only where the pooler must know:
//! transaction status, settings, and whether all statements were deallocated.

use super::kept::{Kept, News};
use super::outlet::Outlet;
use super::spoken::{Spoken, failure_of};
use crate::server::Dialogue;
use crate::session::{
    Change, ClientStatements, Generation, Kind, OutOfStep, Refusal, Replies, Reply, RowTypes,
    Settings, TooMany,
};
use crate::wire::backend::{
    self, Fields, ParameterStatus, Report, RowDescription, Severity, TransactionStatus,
};
use crate::wire::tag::backend as tag;
use crate::wire::{BadHeader, Header, Scanner, SqlState, Step, message, put_cstr};

/// Largest message that is gathered whole: a setting reported by the server.
const GATHERED_BYTES_MAX: usize = 1024 * 1024;
/// Largest error that is gathered whole; those that concern the pooler are short.
const ERROR_BYTES_MAX: usize = 16 * 1024;
/// Names the place where PostgreSQL finds that a result has changed its type, in any language.
const REVALIDATE: &[u8] = b"RevalidateCachedQuery";

/// What PostgreSQL says then.
const OTHER_RESULT: &[u8] = b"cached plan must not change result type";

/// Why a server's stream cannot be followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    BadHeader(#[from] BadHeader),
    #[error(transparent)]
    OutOfStep(#[from] OutOfStep),
    #[error("broken message from server")]
    Broken(#[from] crate::wire::WireError),
    #[error("invalid server parameter")]
    Settings,
    #[error("transaction in statement mode")]
    Transaction,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flow {
    #[default]
    Pass,
    Discard,
    Gather,
}

/// Where a server's stream stands within one lease.
#[derive(Debug, Default)]
pub(super) struct Downstream {
    scanner: Scanner,
    flow: Flow,
    gathered: Vec<u8>,
    header: Option<Header>,
    /// ParameterDescription, held until it is known whether the rest of the description follows:
    /// PostgreSQL sends it ahead of the error that makes the batch be sent again.
    held: Vec<u8>,
    /// The news that the batch is refused, and what was held ahead of it, until the batch is whole.
    refusal: Vec<u8>,
}

/// Both sides of a lease, as far as the server's messages touch them.
pub(super) struct Audience<'a> {
    pub(super) dialogue: &'a mut Dialogue,
    pub(super) names: &'a mut ClientStatements,
    pub(super) settings: &'a mut Settings,
    /// Statement mode: a statement must leave no transaction behind.
    pub(super) refuses_transactions: bool,
    /// The client's batch, as long as it may have to be sent again.
    pub(super) kept: &'a mut Kept,
    pub(super) generation: &'a Generation,
    pub(super) spoken: &'a mut Spoken,
    /// What the client gets instead of the message at hand.
    pub(super) instead: Vec<u8>,
}

impl Downstream {
    /// Whether no message has come in part.
    pub(super) fn is_between(&self) -> bool {
        self.scanner.at_boundary()
    }

    /// Whether the client has got a part of a message: then it can be told nothing any more.
    pub(super) fn is_inside_message(&self) -> bool {
        self.scanner.rest() > 0 && self.flow == Flow::Pass
    }

    /// Passes bytes on to the client.
    pub(super) fn feed(
        &mut self,
        data: &[u8],
        outlet: &mut Outlet<'_>,
        audience: &mut Audience<'_>,
    ) -> Result<(), Fault> {
        let mut at = 0;
        loop {
            match self.scanner.next(data, &mut at, usize::MAX)? {
                Step::End => return Ok(()),
                Step::More { range } => {
                    match self.flow {
                        Flow::Pass => outlet.keep(range),
                        Flow::Discard => {}
                        Flow::Gather => self.gathered.extend_from_slice(&data[range]),
                    }
                    if self.scanner.rest() == 0 {
                        self.finish_gathered(outlet, audience)?;
                        make_up(audience.dialogue, audience.names, outlet);
                    }
                }
                Step::Begin {
                    header,
                    range,
                    body,
                    held,
                } => {
                    let at_hand = &data[body..range.end];
                    if self.scanner.rest() > 0 && is_read(header, &audience.dialogue.replies) {
                        self.gather(header, at_hand)?;
                        continue;
                    }
                    let forward = take(header, at_hand, audience)?;
                    self.hold(header, at_hand, forward, outlet, audience);
                    let forward = forward && header.tag != tag::PARAMETER_DESCRIPTION;
                    self.flow = if forward { Flow::Pass } else { Flow::Discard };
                    if forward && held {
                        outlet
                            .insert()
                            .extend_from_slice(self.scanner.header_bytes());
                        outlet.keep(body..range.end);
                    } else if forward {
                        outlet.keep(range);
                    } else {
                        outlet.append(&mut audience.instead);
                    }
                    // Between two messages of the server, never inside of one.
                    if self.scanner.rest() == 0 {
                        make_up(audience.dialogue, audience.names, outlet);
                    }
                }
            }
        }
    }

    fn gather(&mut self, header: Header, at_hand: &[u8]) -> Result<(), Fault> {
        if header.body_bytes > GATHERED_BYTES_MAX {
            return Err(BadHeader(*self.scanner.header_bytes()).into());
        }
        self.flow = Flow::Gather;
        self.header = Some(header);
        self.gathered.clear();
        self.gathered.extend_from_slice(at_hand);
        Ok(())
    }

    /// Keeps a ParameterDescription back until the message behind it comes, and the news of a refusal until
    /// the batch is whole.
    #[inline]
    fn hold(
        &mut self,
        header: Header,
        body: &[u8],
        forward: bool,
        outlet: &mut Outlet<'_>,
        audience: &Audience<'_>,
    ) {
        if header.tag == tag::PARAMETER_DESCRIPTION && forward {
            self.held.extend_from_slice(self.scanner.header_bytes());
            self.held.extend_from_slice(body);
        } else if header.tag == tag::ERROR_RESPONSE && audience.kept.is_waiting() {
            self.refusal.append(&mut self.held);
            self.refusal.extend_from_slice(self.scanner.header_bytes());
            self.refusal.extend_from_slice(body);
        } else if !self.held.is_empty() {
            if audience.kept.is_refused() {
                self.held.clear();
            }
            outlet.append(&mut self.held);
        }
    }

    /// The news that has been held: the client is to have it now, or nobody.
    pub(super) fn take_refusal(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.refusal)
    }

    fn finish_gathered(
        &mut self,
        outlet: &mut Outlet<'_>,
        audience: &mut Audience<'_>,
    ) -> Result<(), Fault> {
        let Some(header) = self.header.take() else {
            return Ok(());
        };
        let body = std::mem::take(&mut self.gathered);
        let forward = take(header, &body, audience)?;
        self.hold(header, &body, forward, outlet, audience);
        if forward && header.tag != tag::PARAMETER_DESCRIPTION {
            let out = outlet.insert();
            out.extend_from_slice(self.scanner.header_bytes());
            out.extend_from_slice(&body);
        }
        outlet.append(&mut audience.instead);
        Ok(())
    }
}

/// Whether the body must be at hand.
fn is_read(header: Header, replies: &Replies<Change>) -> bool {
    match header.tag {
        tag::ROW_DESCRIPTION => {
            header.body_bytes <= GATHERED_BYTES_MAX && replies.describe_change().is_some()
        }
        tag::READY_FOR_QUERY | tag::PARAMETER_STATUS | tag::PARAMETER_DESCRIPTION => true,
        tag::COMMAND_COMPLETE => Dialogue::may_matter(header.body_bytes),
        tag::ERROR_RESPONSE => header.body_bytes <= ERROR_BYTES_MAX,
        _ => false,
    }
}

/// Takes account of one message; says whether the client gets it.
#[inline]
fn take(header: Header, body: &[u8], audience: &mut Audience<'_>) -> Result<bool, Fault> {
    let reply = audience.dialogue.replies.reply(header.tag)?;
    if reply.own_failed {
        return Err(Fault::Settings);
    }
    let mut forward = reply.forward;
    match header.tag {
        tag::PARSE_COMPLETE if forward && reply.confirmed.is_none() => {
            if let Some(unnamed) = &mut audience.dialogue.unnamed {
                unnamed.is_answered = true;
            }
        }
        tag::READY_FOR_QUERY => {
            let status = TransactionStatus::read(body)?;
            audience.dialogue.replies.ready(status.byte());
            audience.spoken.is_refused &= !forward;
            // A Sync that is dropped ends the pooler's own settings, or a batch that is sent again.
            if !forward && audience.dialogue.is_settling {
                audience.dialogue.params.settled(audience.settings);
                audience.dialogue.is_settling = false;
            } else if forward && audience.refuses_transactions && status != TransactionStatus::Idle
            {
                return Err(Fault::Transaction);
            }
        }
        tag::PARAMETER_STATUS => {
            let status = ParameterStatus::read(body)?;
            audience.dialogue.reported(&status, Some(audience.settings));
        }
        tag::PARAMETER_DESCRIPTION => {
            let Dialogue {
                replies,
                statements,
                ..
            } = &mut *audience.dialogue;
            if let Some(change) = replies.describe_change() {
                change.learned(body, statements);
            }
        }
        tag::ROW_DESCRIPTION | tag::NO_DATA => {
            if let Some(change) = &reply.confirmed {
                let has_result = header.tag == tag::ROW_DESCRIPTION;
                let statements = &mut audience.dialogue.statements;
                change.learned_rows(types_of(body), has_result, statements);
            }
        }
        tag::COMMAND_COMPLETE => complete(body, audience),
        tag::ERROR_RESPONSE => forward = !keeps_back(&reply, body, audience),
        _ => {}
    }
    if forward && header.tag == tag::ERROR_RESPONSE {
        audience.kept.answered();
    }
    if reply.completed.is_some() || !reply.undone.is_empty() {
        account(reply, audience);
    }
    Ok(forward)
}

/// The types in a RowDescription; none of a NoData, nor of one that is too large.
fn types_of(body: &[u8]) -> RowTypes {
    let description = RowDescription::read(body).ok();
    let columns = description.iter().flat_map(RowDescription::iter);
    RowTypes::of(columns.map(|column| column.type_oid))
}

#[inline]
fn complete(body: &[u8], audience: &mut Audience<'_>) {
    let dialogue = &mut *audience.dialogue;
    if let Some(change) = dialogue.replies.query_change() {
        change.step(audience.names, &mut dialogue.statements);
    }
    if Dialogue::may_matter(body.len()) && dialogue.command_completed(body) {
        audience.names.clear();
    }
}

/// Whether the client does not get an error, or something else instead.
fn keeps_back(reply: &Reply<Change>, body: &[u8], audience: &mut Audience<'_>) -> bool {
    if reply.lost_parse {
        audience.dialogue.unnamed = None;
    }
    if reply.failed_mark > 0 {
        if hold_back(reply, body, audience) {
            return true;
        }
        if failure_of(reply.failed_mark).is_ahead_of_query {
            return false;
        }
    }
    say_instead(reply, body, audience)
}

/// Whether an error is to be kept from the client, as its batch can be sent again: a statement is out
/// of date, or gone without the pooler having noticed.
fn hold_back(reply: &Reply<Change>, body: &[u8], audience: &mut Audience<'_>) -> bool {
    let failure = failure_of(reply.failed_mark);
    if failure.is_ahead_of_query {
        // The Query will fail for that reason, too; once is enough.
        audience.spoken.is_refused = true;
        return false;
    }
    if std::mem::take(&mut audience.spoken.is_refused) {
        return true;
    }
    let Some(generation) = failure.generation else {
        return false;
    };
    match Fields::read(body).map(|fields| (fields.sqlstate(), fields.get(b'R'))) {
        Ok((Some(SqlState::FEATURE_NOT_SUPPORTED), Some(REVALIDATE))) => {
            audience.generation.is_over(generation);
        }
        Ok((Some(SqlState::INVALID_STATEMENT_NAME), _)) => audience.dialogue.statements.doubt(),
        _ => return false,
    }
    let replies = &mut audience.dialogue.replies;
    // A transaction has failed with its statement: that cannot be undone.
    if replies.status() != b'I' || !failure.can_retry {
        return false;
    }
    match audience.kept.refused() {
        News::Tell => false,
        News::Hold => true,
        News::Drop => replies.swallow_end(),
    }
}

/// Puts the pooler's own refusal in the place of the error that it has made the server give.
fn say_instead(reply: &Reply<Change>, body: &[u8], audience: &mut Audience<'_>) -> bool {
    if std::mem::take(&mut audience.spoken.is_refused) {
        return true;
    }
    let of_query = || {
        let change = audience.dialogue.replies.query_change();
        change.and_then(|change| change.steps.front()?.refusal.clone())
    };
    let of_batch = reply
        .undone
        .last()
        .and_then(|change| change.refusal.clone());
    let Some(refusal) = of_batch.or_else(of_query) else {
        return false;
    };
    let Ok(fields) = Fields::read(body) else {
        return false;
    };
    if fields.sqlstate() != Some(SqlState::DUPLICATE_PREPARED_STATEMENT) {
        // The text itself was wrong, or the transaction has failed: that comes first.
        return false;
    }
    // What differs from the error that PostgreSQL has given.
    let (sqlstate, text): (Option<&[u8]>, _) = match &refusal {
        Refusal::NameInUse(name) => {
            let text = [b"prepared statement \"", &**name, b"\" already exists"].concat();
            (None, text)
        }
        Refusal::OtherResult => (Some(b"0A000"), OTHER_RESULT.to_vec()),
        Refusal::TooMany => {
            too_many(&mut audience.instead);
            return true;
        }
    };
    let is_changed = sqlstate.is_some();
    message(&mut audience.instead, tag::ERROR_RESPONSE, |out| {
        for (code, value) in fields.iter() {
            let value = match (code, sqlstate) {
                (b'M', _) => &text,
                (b'C', Some(sqlstate)) => sqlstate,
                (b'R', _) if is_changed => REVALIDATE,
                (b'F' | b'L', _) if is_changed => continue,
                _ => value,
            };
            out.push(code);
            put_cstr(out, value);
        }
        out.push(0);
    });
    true
}

fn too_many(out: &mut Vec<u8>) {
    let text = TooMany.to_string();
    let report = Report {
        severity: Severity::Error,
        sqlstate: SqlState::CONFIGURATION_LIMIT_EXCEEDED,
        message: &text,
        detail: None,
        hint: None,
    };
    backend::error_response(out, &report);
}

fn account(reply: Reply<Change>, audience: &mut Audience<'_>) {
    if reply.forward && !matches!(reply.completed, None | Some(Kind::Parse | Kind::Close)) {
        audience.kept.answered();
    }
    let statements = &mut audience.dialogue.statements;
    if let Some(change) = reply.confirmed {
        change.confirm(audience.names, statements);
    }
    for change in reply.undone {
        change.undo(audience.names, statements);
    }
}

/// Appends the replies that are due and that nobody was asked for.
pub(super) fn make_up(
    dialogue: &mut Dialogue,
    names: &mut ClientStatements,
    outlet: &mut Outlet<'_>,
) {
    while let Some((kind, change)) = dialogue.replies.pop_fabricated() {
        match kind {
            Kind::Parse => backend::parse_complete(outlet.insert()),
            Kind::Close => backend::close_complete(outlet.insert()),
            _ => {}
        }
        if let Some(change) = change {
            change.confirm(names, &mut dialogue.statements);
        }
    }
}
