//! Connects to a server, and encrypts the connection as the settings ask.

use super::error::DialError;
use crate::config::SslMode;
use crate::net::{Connector, Endpoint, Net, Socket, TcpOptions};
use crate::wire::ssl_request;
use std::cell::Cell;
use std::ops::Deref;
use std::sync::Arc;

/// Where to connect, and how.
#[derive(Clone)]
pub struct Target {
    /// The server.
    pub endpoint: Endpoint,
    /// Options of the socket.
    pub tcp: TcpOptions,
    /// Whether to encrypt.
    pub tls: ServerTls,
}

/// How a connection to a server is encrypted.
#[derive(Clone)]
pub struct ServerTls {
    /// Whether it is.
    pub mode: SslMode,
    /// By what; none if it is not.
    pub connector: Option<Arc<Connector>>,
    /// The host as the configuration names it: who the certificate must be for.
    pub host: String,
}

/// What a server answers to an SSLRequest.
const WILLING: u8 = b'S';
const UNWILLING: u8 = b'N';

impl Target {
    /// By what a connection there is encrypted; never over a Unix socket.
    fn connector(&self) -> Option<&Connector> {
        let connector = self.tls.connector.as_deref();
        connector.filter(|_| !self.endpoint.is_unix() && self.tls.mode > SslMode::Disable)
    }

    /// Whether the first attempt asks for encryption.
    pub(super) fn begins_encrypted(&self) -> bool {
        self.tls.mode > SslMode::Allow && self.connector().is_some()
    }

    /// Whether a second attempt with encryption may succeed, after the server refused one without.
    pub(super) fn may_encrypt_instead(&self) -> bool {
        self.tls.mode == SslMode::Allow && self.connector().is_some()
    }
}

/// A connection that is being made ready for use. If it is dropped before, it is `left` for whoever has to see it off.
pub(super) struct Unfinished<'a> {
    socket: Option<Socket>,
    left: &'a Cell<Option<Socket>>,
}

impl Unfinished<'_> {
    /// It is ready.
    pub(super) fn finished(mut self) -> Socket {
        let socket = self.socket.take();
        socket.expect("only this and the drop take it")
    }
}

impl Deref for Unfinished<'_> {
    type Target = Socket;

    fn deref(&self) -> &Socket {
        let socket = self.socket.as_ref();
        socket.expect("only the end of its life takes it")
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take() {
            self.left.set(Some(socket));
        }
    }
}

/// Connects; with `encrypts`, the server is asked for TLS, and has to have it where the mode says so.
pub(super) async fn connect<'a>(
    net: Net,
    target: &Target,
    encrypts: bool,
    left: &'a Cell<Option<Socket>>,
) -> Result<Unfinished<'a>, DialError> {
    let socket = Socket::connect(net, &target.endpoint, &target.tcp)
        .await
        .map_err(DialError::Connect)?;
    let socket = Unfinished {
        socket: Some(socket),
        left,
    };
    if encrypts && let Some(connector) = target.connector() {
        if asks_for_tls(&socket).await? {
            let handshake = socket.start_tls(connector, &target.tls.host);
            let shaken = net.paced_ahead(handshake).await;
            shaken.map_err(DialError::Encrypt)?;
        } else if target.tls.mode >= SslMode::Require {
            return Err(DialError::TlsRefused);
        }
    }
    Ok(socket)
}

/// Whether the server is willing. Its answer is one byte; what comes behind it before the handshake may
/// be somebody else's, who would pass it off as encrypted (CVE-2021-23222 of libpq).
async fn asks_for_tls(socket: &Socket) -> Result<bool, DialError> {
    let mut request = Vec::new();
    ssl_request(&mut request);
    socket.send(request);
    let answer = socket.recv().await.map_err(DialError::Broken)?;
    let answer = answer.ok_or(DialError::Closed)?;
    let is_alone = answer.len() == 1 && socket.is_quiet();
    match answer.first() {
        Some(&WILLING | &UNWILLING) if !is_alone => Err(DialError::DataBeforeTls),
        Some(&WILLING) => Ok(true),
        Some(&UNWILLING) => Ok(false),
        // An error message of before encryption could be anybody's: it is not passed on
        // (CVE-2024-10977 of libpq).
        Some(other) => Err(DialError::Unexpected(*other)),
        None => Err(DialError::Closed),
    }
}
