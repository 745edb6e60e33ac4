//! From server to client: ticks off owed replies, drops those the pooler asked for itself, makes
//! up those it did not ask the server for. Bodies are read only where the pooler must know:
//! transaction status, settings, and whether all statements were deallocated.

use super::outlet::Outlet;
use crate::server::Dialogue;
use crate::session::{Change, ClientStatements, Kind, OutOfStep, Reply, Settings};
use crate::wire::backend::{self, ParameterStatus, TransactionStatus};
use crate::wire::tag::backend as tag;
use crate::wire::{BadHeader, Header, Scanner, Step};

/// Largest message that is gathered whole: a setting reported by the server.
const GATHERED_BYTES_MAX: usize = 1024 * 1024;

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
}

/// Both sides of a lease, as far as the server's messages touch them.
pub(super) struct Audience<'a> {
    pub(super) dialogue: &'a mut Dialogue,
    pub(super) names: &'a mut ClientStatements,
    pub(super) settings: &'a mut Settings,
    /// Statement mode: a statement must leave no transaction behind.
    pub(super) refuses_transactions: bool,
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
                    if is_read(header) && self.scanner.rest() > 0 {
                        self.gather(header, at_hand)?;
                        continue;
                    }
                    let forward = take(header, at_hand, audience)?;
                    self.flow = if forward { Flow::Pass } else { Flow::Discard };
                    if forward && held {
                        outlet
                            .insert()
                            .extend_from_slice(self.scanner.header_bytes());
                        outlet.keep(body..range.end);
                    } else if forward {
                        outlet.keep(range);
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

    fn finish_gathered(
        &mut self,
        outlet: &mut Outlet<'_>,
        audience: &mut Audience<'_>,
    ) -> Result<(), Fault> {
        let Some(header) = self.header.take() else {
            return Ok(());
        };
        let body = std::mem::take(&mut self.gathered);
        if take(header, &body, audience)? {
            let out = outlet.insert();
            out.extend_from_slice(self.scanner.header_bytes());
            out.extend_from_slice(&body);
        }
        Ok(())
    }
}

/// Whether the body must be at hand.
fn is_read(header: Header) -> bool {
    match header.tag {
        tag::READY_FOR_QUERY | tag::PARAMETER_STATUS => true,
        tag::COMMAND_COMPLETE => Dialogue::may_matter(header.body_bytes),
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
    let forward = reply.forward;
    match header.tag {
        tag::READY_FOR_QUERY => {
            let status = TransactionStatus::read(body)?;
            audience.dialogue.replies.ready(status.byte());
            // The only Sync that is dropped ends the pooler's own settings.
            if !forward {
                audience.dialogue.params.settled(audience.settings);
                audience.dialogue.is_settling = false;
            } else if audience.refuses_transactions && status != TransactionStatus::Idle {
                return Err(Fault::Transaction);
            }
        }
        tag::PARAMETER_STATUS => {
            let status = ParameterStatus::read(body)?;
            audience
                .dialogue
                .params
                .report_to(status.name, status.value, audience.settings);
        }
        tag::COMMAND_COMPLETE if Dialogue::may_matter(body.len()) => {
            let forgets = audience.dialogue.command_completed(body);
            if forgets {
                audience.names.clear();
            }
        }
        _ => {}
    }
    if reply.completed.is_some() || !reply.undone.is_empty() {
        account(reply, audience);
    }
    Ok(forward)
}

fn account(reply: Reply<Change>, audience: &mut Audience<'_>) {
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
