//! What the pooler says to a server in its own name: settings ahead of a client's first message,
//! the reset query between two sessions.

use super::conn::{Dialogue, Server};
use super::error::DialError;
use super::messages::Messages;
use crate::session::{Fate, Kind, Setting};
use crate::wire::backend::{Fields, ParameterStatus, TransactionStatus};
use crate::wire::frontend as message;
use crate::wire::tag::backend as tag;

/// Object id of type `text`.
const TEXT: u32 = 25;
/// `set_config` with bound parameters: no value is ever pasted into SQL.
const SET_CONFIG: &[u8] = b"select pg_catalog.set_config($1, $2, false)";
/// Largest answer to the pooler's own query that is looked at.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Appends the messages that make `settings`, and notes that their answers are the pooler's own.
pub fn request_settings(out: &mut Vec<u8>, settings: &[Setting], dialogue: &mut Dialogue) {
    dialogue.unnamed = None;
    let mut push = |kinds: &[Kind]| {
        kinds
            .iter()
            .for_each(|kind| dialogue.replies.push(*kind, Fate::Drop, None))
    };
    if settings.iter().any(|setting| setting.value.is_some()) {
        message::parse(out, b"", SET_CONFIG, &[TEXT, TEXT]);
        push(&[Kind::Parse]);
    }
    for setting in settings {
        if let Some(value) = &setting.value {
            message::bind(out, b"", b"", &[Some(setting.name.as_bytes()), Some(value)]);
            message::execute(out, b"", 0);
            push(&[Kind::Bind, Kind::Execute]);
        }
    }
    for setting in settings.iter().filter(|setting| setting.value.is_none()) {
        // Names are identifiers joined by dots (`session::is_setting_name`), perhaps reserved words.
        let parts: Vec<String> = setting
            .name
            .split('.')
            .map(|part| format!("\"{part}\""))
            .collect();
        message::parse(
            out,
            b"",
            format!("reset {}", parts.join(".")).as_bytes(),
            &[],
        );
        message::bind(out, b"", b"", &[]);
        message::execute(out, b"", 0);
        push(&[Kind::Parse, Kind::Bind, Kind::Execute]);
    }
    message::sync(out);
    push(&[Kind::Sync]);
    dialogue.is_settling = true;
    dialogue.statements.synced();
}

/// Runs a simple query of the pooler's own on a clean server and waits for its end; the caller
/// sets the deadline.
///
/// # Errors
/// [`DialError::OwnQuery`] with the server clean if only the query failed; else the server must be closed.
pub async fn run_query(server: &mut Server, text: &str) -> Result<(), DialError> {
    let mut out = Vec::new();
    message::query(&mut out, text);
    server.dialogue.replies.push(Kind::Query, Fate::Drop, None);
    server.socket.send(out);
    let Server {
        socket, dialogue, ..
    } = server;
    let mut messages = Messages::new(socket, ANSWER_BYTES_MAX);
    let mut outcome = Ok(());
    while !dialogue.replies.is_settled() {
        let (tag, body) = messages.next().await?;
        match take(tag, body, dialogue) {
            Err(error @ DialError::OwnQuery(_)) => outcome = Err(error),
            other => other?,
        }
    }
    messages.end()?;
    if outcome.is_ok() && !dialogue.replies.is_clean() {
        return Err(DialError::OwnQuery(
            "it has left a transaction open".to_owned(),
        ));
    }
    outcome
}

/// The text of an error.
fn told(body: &[u8]) -> String {
    let fields = Fields::read(body);
    let text = fields.as_ref().ok().and_then(Fields::message);
    String::from_utf8_lossy(text.unwrap_or(b"(no text)")).into_owned()
}

/// Ticks off one message of the answer to a query of the pooler's own.
pub(super) fn take(tag: u8, body: &[u8], dialogue: &mut Dialogue) -> Result<(), DialError> {
    let reply = dialogue
        .replies
        .reply(tag)
        .map_err(|error| DialError::Unexpected(error.0))?;
    if reply.own_failed {
        return Err(DialError::OwnQuery(told(body)));
    }
    match tag {
        tag::READY_FOR_QUERY => {
            let status = TransactionStatus::read(body).map_err(DialError::Protocol)?;
            dialogue.replies.ready(status.byte());
        }
        tag::PARAMETER_STATUS => {
            let status = ParameterStatus::read(body).map_err(DialError::Protocol)?;
            dialogue.reported(&status, None);
        }
        tag::COMMAND_COMPLETE => {
            dialogue.command_completed(body);
        }
        _ => {}
    }
    Ok(())
}
