//! Reads whole packets while a client logs in; each is bounded, and copied.

use super::farewell::Farewell;
use crate::base::limit::AUTH_MESSAGE_BYTES_MAX;
use crate::net::{Acceptor, HandshakeError, Socket};
use crate::wire::{HEADER_BYTES, Header, WireError, first_packet_length};
use std::io;

/// Why nothing more is read from a client that logs in.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// It hung up.
    #[error("client closed the connection during login")]
    Closed,
    /// Its connection broke.
    #[error("client connection broke during login")]
    Broken(#[source] io::Error),
    /// Its first packet is none.
    #[error("client sent no valid start-up packet")]
    Packet(#[source] WireError),
    /// Encryption was not agreed on.
    #[error(transparent)]
    Handshake(HandshakeError),
    /// A message is not what is due.
    #[error("client broke the login protocol: {}", .0.text)]
    Refused(Farewell),
}

/// A client's stream before its login is complete.
pub struct Intake {
    socket: Socket,
    bytes: Vec<u8>,
}

impl Intake {
    /// Reads from `socket`.
    pub fn new(socket: Socket) -> Intake {
        Intake {
            socket,
            bytes: Vec::new(),
        }
    }

    /// Goes on reading from `socket`, of which `bytes` have been read ahead.
    pub fn resume(socket: Socket, bytes: Vec<u8>) -> Intake {
        Intake { socket, bytes }
    }

    /// The socket, to send with.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Whether bytes have come that nobody has read yet.
    pub fn has_surplus(&self) -> bool {
        !self.bytes.is_empty() || !self.socket.is_quiet()
    }

    /// Whether the stream is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.socket.tls_peer().is_some()
    }

    /// Performs a TLS handshake, for which what has been read ahead counts; everything read from then on
    /// has come encrypted.
    ///
    /// # Errors
    /// [`IntakeError::Handshake`].
    pub async fn encrypt(&mut self, acceptor: &Acceptor) -> Result<(), IntakeError> {
        let ahead = std::mem::take(&mut self.bytes);
        let shaken = self.socket.accept_tls(acceptor, ahead).await;
        shaken.map_err(IntakeError::Handshake)
    }

    /// The next byte, which stays unread.
    ///
    /// # Errors
    /// [`IntakeError`].
    pub async fn peek(&mut self) -> Result<u8, IntakeError> {
        loop {
            if let Some(byte) = self.bytes.first() {
                return Ok(*byte);
            }
            self.fill().await?;
        }
    }

    /// The socket and what was read ahead.
    pub fn into_parts(self) -> (Socket, Vec<u8>) {
        (self.socket, self.bytes)
    }

    /// The next packet without a tag, its length word included.
    ///
    /// # Errors
    /// [`IntakeError`].
    pub async fn packet(&mut self) -> Result<Vec<u8>, IntakeError> {
        loop {
            let length = first_packet_length(&self.bytes).map_err(IntakeError::Packet)?;
            if let Some(length) = length
                && length <= self.bytes.len()
            {
                let rest = self.bytes.split_off(length);
                return Ok(std::mem::replace(&mut self.bytes, rest));
            }
            self.fill().await?;
        }
    }

    /// The body of the next message, which must be a `p`.
    ///
    /// # Errors
    /// [`IntakeError`].
    pub async fn password_message(&mut self) -> Result<Vec<u8>, IntakeError> {
        use crate::wire::tag::frontend::PASSWORD;
        loop {
            if let Some(head) = self.bytes.first_chunk::<HEADER_BYTES>() {
                let header = Header::parse(*head, AUTH_MESSAGE_BYTES_MAX)
                    .map_err(|error| IntakeError::Refused(Farewell::because(error.to_string())))?;
                if header.tag != PASSWORD {
                    return Err(IntakeError::Refused(Farewell::EXPECTED_PASSWORD));
                }
                let length = HEADER_BYTES + header.body_bytes;
                if length <= self.bytes.len() {
                    let rest = self.bytes.split_off(length);
                    let mut message = std::mem::replace(&mut self.bytes, rest);
                    message.drain(..HEADER_BYTES);
                    return Ok(message);
                }
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), IntakeError> {
        match self.socket.recv().await {
            Ok(Some(chunk)) => self.bytes.extend_from_slice(&chunk),
            Ok(None) => return Err(IntakeError::Closed),
            Err(error) => return Err(IntakeError::Broken(error)),
        }
        Ok(())
    }
}
