//! A client's first packets and, once it has logged in, its welcome.

use super::farewell::Farewell;
use super::intake::{Intake, IntakeError};
use crate::base::{ClientId, Moment};
use crate::config::SslMode;
use crate::net::{Acceptor, Detached};
use crate::session::{CancelKey, ServerParams, Settings};
use crate::wire::backend::{self, Report, Severity, TransactionStatus};
use crate::wire::{FirstPacket, SqlState, StartupPacket, WireError, parse_first_packet};

/// Requests for encryption that a client may make before its start-up packet: one of each kind, as
/// libpq does (PostgreSQL: ProcessStartupPacket).
const ENCRYPTION_REQUESTS_MAX: usize = 2;

/// What a client wants.
pub enum Greeting {
    /// A session.
    Session(StartupPacket),
    /// A running query cancelled: the key.
    Cancel(Vec<u8>),
}

/// A client that has said what it wants and goes on at another shard, off any ring.
pub struct Greeted {
    /// Its socket.
    pub socket: Detached,
    /// What was read ahead.
    pub ahead: Vec<u8>,
    /// What it wants.
    pub packet: StartupPacket,
    /// Its id.
    pub id: ClientId,
    /// Since when it has been logging in.
    pub since: Moment,
    /// When it connected, in microseconds since the Unix epoch.
    pub connected_unix_us: u64,
}

/// Whether a client can, or must, encrypt.
pub struct Encryption<'a> {
    /// How; none over Unix sockets, or if it is turned off.
    pub acceptor: Option<&'a Acceptor>,
    /// Whether it must.
    pub is_required: bool,
}

impl<'a> Encryption<'a> {
    /// What `mode` means to a client, with `acceptor`. A Unix socket is never encrypted, and exempt.
    pub fn new(mode: SslMode, acceptor: Option<&'a Acceptor>, is_unix: bool) -> Encryption<'a> {
        Encryption {
            acceptor: acceptor.filter(|_| !is_unix),
            is_required: mode >= SslMode::Require && !is_unix,
        }
    }
}

/// First byte of a TLS connection: the type of a handshake record (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// Reads until a client has said what it wants. It may encrypt after an SSLRequest, or at once (as
/// libpq with `sslnegotiation=direct` does).
///
/// # Errors
/// [`IntakeError`].
pub async fn first_packet(
    intake: &mut Intake,
    encryption: &Encryption<'_>,
) -> Result<Greeting, IntakeError> {
    if let Some(acceptor) = encryption.acceptor
        && intake.peek().await? == TLS_HANDSHAKE
    {
        intake.encrypt(acceptor).await?;
        // Without ALPN it may be a request to another server that somebody has led here (ALPACA).
        if !intake.socket().tls_peer().is_some_and(|peer| peer.has_alpn) {
            return Err(IntakeError::Refused(Farewell::DIRECT_TLS_WITHOUT_ALPN));
        }
    }
    for _ in 0..=ENCRYPTION_REQUESTS_MAX {
        let packet = intake.packet().await?;
        match parse_first_packet(&packet).map_err(IntakeError::Packet)? {
            FirstPacket::SslRequest if intake.is_encrypted() => return Err(IntakeError::Closed),
            FirstPacket::SslRequest => {
                refuse_surplus(intake)?;
                match encryption.acceptor {
                    None => intake.socket().send(&b"N"[..]),
                    Some(acceptor) => {
                        intake.socket().send(&b"S"[..]);
                        intake.encrypt(acceptor).await?;
                    }
                }
            }
            FirstPacket::GssEncRequest => {
                refuse_surplus(intake)?;
                intake.socket().send(&b"N"[..]);
            }
            FirstPacket::Cancel(request) => {
                return Ok(Greeting::Cancel(request.key.expose().to_vec()));
            }
            FirstPacket::Startup(packet) => {
                if encryption.is_required && !intake.is_encrypted() {
                    return Err(IntakeError::Refused(Farewell::SSL_REQUIRED));
                }
                negotiate(intake, &packet);
                return Ok(Greeting::Session(packet));
            }
        }
    }
    Err(IntakeError::Refused(Farewell::new(
        "too many encryption requests",
    )))
}

/// Nothing may follow a request for encryption: it could pass for something that came encrypted.
fn refuse_surplus(intake: &Intake) -> Result<(), IntakeError> {
    if intake.has_surplus() {
        return Err(IntakeError::Refused(Farewell::DATA_AFTER_SSL_REQUEST));
    }
    Ok(())
}

/// What a client is told whose first packet is none, if anything.
pub fn reject_protocol(error: &IntakeError) -> Option<Farewell> {
    match error {
        IntakeError::Closed | IntakeError::Broken(_) | IntakeError::Handshake(_) => None,
        // A cancel request never gets an answer, whatever is wrong with it.
        IntakeError::Packet(WireError::CancelKeyLength { .. }) => None,
        IntakeError::Packet(error) => Some(Farewell::because(error.to_string())),
        IntakeError::Refused(farewell) => Some(farewell.clone()),
    }
}

fn negotiate(intake: &Intake, packet: &StartupPacket) {
    if packet.needs_negotiation() {
        let mut out = Vec::new();
        backend::negotiate_protocol_version(
            &mut out,
            packet.minor(),
            packet.unsupported_extensions(),
        );
        intake.socket().send(out);
    }
}

/// Beginning of the names by which a pooler tells of itself: those of another one behind us are not its client's affair.
const OF_POOLER: &[u8] = b"pgbouncer.";

/// Appends what a client gets after its login: AuthenticationOk, the server's settings with the
/// client's own on top and what it is told `of_pooler`, its cancel key, a notice unless that is empty, ReadyForQuery.
pub fn greet(
    out: &mut Vec<u8>,
    server: &ServerParams,
    settings: &Settings,
    of_pooler: &[(&str, &str)],
    key: &CancelKey,
    notice: &str,
) {
    backend::authentication_ok(out);
    for (name, value) in of_pooler {
        backend::parameter_status(out, name, value.as_bytes());
    }
    for (name, value) in server.reported() {
        if !settings.tracks(name) && !name.as_bytes().starts_with(OF_POOLER) {
            backend::parameter_status(out, name, value);
        }
    }
    for (name, value) in settings.all_tracked() {
        backend::parameter_status(out, name, value);
    }
    backend::backend_key_data(out, key.bytes());
    if !notice.is_empty() {
        let report = Report {
            severity: Severity::Notice,
            sqlstate: SqlState::SUCCESSFUL_COMPLETION,
            message: notice,
            detail: None,
            hint: None,
        };
        backend::notice_response(out, &report);
    }
    backend::ready_for_query(out, TransactionStatus::Idle);
}
