//! auth_query: asks a server about one user.

use super::conn::Server;
use super::error::DialError;
use super::messages::Messages;
use super::reset::{request_settings, take};
use crate::net::Socket;
use crate::session::{Fate, Kind, Settings};
use crate::wire::backend::{DataRow, Fields, RowDescription};
use crate::wire::frontend as message;
use crate::wire::tag::backend as tag;

/// Largest message of the answer: a name and a secret.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// One row: the name, and the secret unless it is null.
pub type UserRow = (Box<[u8]>, Option<Box<[u8]>>);

/// Why there is no answer. After any of these the server must be closed.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The server refused the query.
    #[error("error in auth_query: {0}")]
    Refused(String),
    /// Not two columns.
    #[error("auth_query must give exactly 2 columns, not {0}")]
    Columns(usize),
    /// No name in the row.
    #[error("auth_query gave a user without a name")]
    NoName,
    /// Several rows.
    #[error("auth_query gave more than one row")]
    Rows,
    /// The conversation broke.
    #[error("auth_query broke off")]
    Broken(#[from] DialError),
}

/// Runs `query` about `user` on a clean server; the caller sets the deadline. Whatever settings a
/// client has left on the server are undone first (CVE-2025-12819): those of `fresh`, what a server just
/// opened has, hold.
///
/// # Errors
/// [`LookupError`].
pub async fn look_up(
    server: &mut Server,
    fresh: &mut Settings,
    query: &str,
    user: &str,
) -> Result<Option<UserRow>, LookupError> {
    undo_settings(server, fresh).await?;
    let replies = &mut server.dialogue.replies;
    let mut out = Vec::new();
    message::parse(&mut out, b"", query.as_bytes(), &[]);
    message::describe_statement(&mut out, b"");
    message::bind(&mut out, b"", b"", &[Some(user.as_bytes())]);
    message::execute(&mut out, b"", 0);
    message::sync(&mut out);
    let kinds = [Kind::Parse, Kind::Describe, Kind::Bind, Kind::Execute];
    for kind in kinds.into_iter().chain([Kind::Sync]) {
        replies.push(kind, Fate::Drop, None);
    }
    server.dialogue.statements.synced();
    server.socket.send(out);
    let mut answer = Answer::default();
    converse(server, |tag, body| answer.take(tag, body)).await?;
    Ok(answer.row)
}

/// Brings the server back to the settings it was opened with.
async fn undo_settings(server: &mut Server, fresh: &mut Settings) -> Result<(), LookupError> {
    let differences = server.dialogue.params.differences(fresh);
    if differences.is_empty() {
        return Ok(());
    }
    let mut out = Vec::new();
    request_settings(&mut out, &differences, &mut server.dialogue);
    server.socket.send(out);
    converse(server, refused).await?;
    server.dialogue.is_settling = false;
    server.dialogue.params.settled(fresh);
    Ok(())
}

/// Reads until the server is clean again, showing every message to `look` before it is ticked off.
async fn converse(
    server: &mut Server,
    mut look: impl FnMut(u8, &[u8]) -> Result<(), LookupError>,
) -> Result<(), LookupError> {
    let Server {
        socket, dialogue, ..
    } = server;
    let socket: &Socket = socket;
    let mut messages = Messages::new(socket, ANSWER_BYTES_MAX);
    while !dialogue.replies.is_settled() {
        let (tag, body) = messages.next().await?;
        look(tag, body)?;
        take(tag, body, dialogue)?;
    }
    messages.end()?;
    if dialogue.replies.is_clean() {
        Ok(())
    } else {
        Err(DialError::OwnQuery("it has left a transaction open".to_owned()).into())
    }
}

fn refused(tag: u8, body: &[u8]) -> Result<(), LookupError> {
    if tag != tag::ERROR_RESPONSE {
        return Ok(());
    }
    let fields = Fields::read(body).map_err(DialError::Protocol)?;
    let text = fields.message().unwrap_or(b"(no text)");
    Err(LookupError::Refused(
        String::from_utf8_lossy(text).into_owned(),
    ))
}

#[derive(Default)]
struct Answer {
    row: Option<UserRow>,
}

impl Answer {
    fn take(&mut self, tag: u8, body: &[u8]) -> Result<(), LookupError> {
        match tag {
            tag::DATA_ROW => {}
            tag::NO_DATA => return Err(LookupError::Columns(0)),
            tag::ROW_DESCRIPTION => {
                let row = RowDescription::read(body).map_err(DialError::Protocol)?;
                return match row.iter().count() {
                    2 => Ok(()),
                    count => Err(LookupError::Columns(count)),
                };
            }
            _ => return refused(tag, body),
        }
        let row = DataRow::read(body).map_err(DialError::Protocol)?;
        let values: Vec<_> = row.iter().collect();
        let [name, secret] = values.as_slice() else {
            return Err(LookupError::Columns(values.len()));
        };
        // A row without a name is none, as in PgBouncer from 1.26 on.
        let Some(name) = *name else { return Ok(()) };
        if name.is_empty() {
            return Err(LookupError::NoName);
        }
        if self.row.is_some() {
            return Err(LookupError::Rows);
        }
        self.row = Some((name.into(), secret.map(Into::into)));
        Ok(())
    }
}
