//! Whole messages of a server that the pooler itself talks to: during login, and for its own queries.

use super::error::DialError;
use crate::net::{Chunk, Socket};
use crate::wire::{Scanner, Step};

/// Reads messages one by one, each as long as the caller allows.
pub(super) struct Messages<'a> {
    socket: &'a Socket,
    bytes_max: usize,
    scanner: Scanner,
    chunk: Option<Chunk>,
    /// How much of the chunk has been read.
    at: usize,
    body: Vec<u8>,
}

impl<'a> Messages<'a> {
    pub(super) fn new(socket: &'a Socket, bytes_max: usize) -> Messages<'a> {
        Messages {
            socket,
            bytes_max,
            scanner: Scanner::default(),
            chunk: None,
            at: 0,
            body: Vec::new(),
        }
    }

    /// The type and the body of the next message.
    pub(super) async fn next(&mut self) -> Result<(u8, &[u8]), DialError> {
        loop {
            let chunk = match &self.chunk {
                Some(chunk) => chunk,
                None => {
                    let received = self.socket.recv().await.map_err(DialError::Broken)?;
                    self.at = 0;
                    self.chunk.insert(received.ok_or(DialError::Closed)?)
                }
            };
            let step = self.scanner.next(chunk, &mut self.at, self.bytes_max);
            match step.map_err(DialError::Header)? {
                Step::End => {
                    self.chunk = None;
                    continue;
                }
                Step::More { range } => self.body.extend_from_slice(&chunk[range]),
                Step::Begin { range, body, .. } => {
                    self.body.clear();
                    self.body.extend_from_slice(&chunk[body..range.end]);
                }
            }
            if self.scanner.rest() == 0 {
                return Ok((self.scanner.header_bytes()[0], &self.body));
            }
        }
    }

    /// Makes sure that nothing has come behind the last message.
    pub(super) fn end(self) -> Result<(), DialError> {
        let Some(chunk) = &self.chunk else {
            return Ok(());
        };
        match chunk.get(self.at) {
            None => Ok(()),
            Some(tag) => Err(DialError::Unexpected(*tag)),
        }
    }
}
