//! One connection's TLS: ciphertext in, plaintext out, and the other way round. Between two records it
//! holds keys and nothing else: no buffer is kept.
//!
//! ```text
//! handshaking ──► open ──► peer closed (its close_notify came; we may still send)
//!       └───────────┴────► broken (whatever comes afterwards is the same error)
//! ```

use super::binding::end_point_binding;
use super::certificate::Certificate;
use super::label::TlsLabel;
use super::setup::{Acceptor, Connector};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{CommonState, Error};
use std::fmt;
use std::sync::Arc;

/// Bytes of a record's header: type, version, length (RFC 8446, section 5.1).
const HEADER_BYTES: usize = 5;
/// Plaintext of a full record.
const RECORD_BYTES_MAX: usize = 16 * 1024;
/// More than header, nonce, type and tag of any record together.
const OVERHEAD_BYTES_MAX: usize = 64;

/// What is known about the other side once the handshake is over.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Version, cipher and curve.
    pub label: TlsLabel,
    /// Its certificate, which has been verified if it had to be; none if it sent none.
    pub certificate: Option<Certificate>,
    /// `tls-server-end-point` channel-binding data (RFC 5929, section 4): the hash of the server's
    /// certificate, whichever side we are; none if its signature has no hash of its own.
    pub channel_binding: Option<Arc<[u8]>>,
    /// Whether the protocol `postgresql` was agreed on by ALPN.
    pub has_alpn: bool,
}

// Boxed by its owner: one size for both is as good as two.
#[allow(clippy::large_enum_variant)]
enum Side {
    Accepts(UnbufferedServerConnection),
    Dials(UnbufferedClientConnection),
}

/// The TLS of one connection.
pub(in crate::net) struct Session {
    side: Side,
    /// The beginning of a record, or of a handshake message, whose rest has not come.
    partial: Vec<u8>,
    /// Where in it the record begins whose rest has not come. What stands before belongs to a handshake
    /// message of several records, and has been rearranged.
    edge: usize,
    /// Of our own certificate, if we are the server.
    own_binding: Option<Arc<[u8]>>,
    peer_closed: bool,
    broken: Option<Error>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}

/// Runs `$body` on the connection, whichever side it is.
macro_rules! with {
    ($session:expr, $conn:ident => $body:expr) => {
        match &mut $session.side {
            Side::Accepts($conn) => $body,
            Side::Dials($conn) => $body,
        }
    };
}

impl Session {
    /// The server's side.
    pub(in crate::net) fn accept(acceptor: &Acceptor) -> Result<Session, Error> {
        let conn = UnbufferedServerConnection::new(acceptor.config.clone())?;
        Ok(Session::new(Side::Accepts(conn), acceptor.binding.clone()))
    }

    /// The client's side, towards `name`.
    pub(in crate::net) fn dial(
        connector: &Connector,
        name: ServerName<'static>,
    ) -> Result<Session, Error> {
        let conn = UnbufferedClientConnection::new(connector.config.clone(), name)?;
        Ok(Session::new(Side::Dials(conn), None))
    }

    fn new(side: Side, own_binding: Option<Arc<[u8]>>) -> Session {
        Session {
            side,
            partial: Vec::new(),
            edge: 0,
            own_binding,
            peer_closed: false,
            broken: None,
        }
    }

    fn state(&self) -> &CommonState {
        match &self.side {
            Side::Accepts(conn) => conn,
            Side::Dials(conn) => conn,
        }
    }

    /// Whether the handshake is still under way.
    pub(in crate::net) fn is_handshaking(&self) -> bool {
        self.state().is_handshaking()
    }

    /// Whether the other side has said that it will send nothing more.
    pub(in crate::net) fn peer_has_closed(&self) -> bool {
        self.peer_closed
    }

    /// Whether part of a record is here whose rest is not.
    pub(in crate::net) fn is_inside_record(&self) -> bool {
        !self.partial.is_empty()
    }

    /// What is known about the other side, after the handshake.
    pub(in crate::net) fn peer(&self) -> Peer {
        let state = self.state();
        let der = state.peer_certificates().and_then(|chain| chain.first());
        let channel_binding = match &self.side {
            Side::Accepts(_) => self.own_binding.clone(),
            Side::Dials(_) => der.and_then(|der| end_point_binding(der)),
        };
        Peer {
            label: TlsLabel::of(state),
            certificate: der.and_then(|der| Certificate::parse(der)),
            channel_binding,
            has_alpn: state.alpn_protocol().is_some(),
        }
    }

    /// Takes received bytes, which are decrypted in place; appends their plaintext to `plain`, and what
    /// the other side has to be told to `out`, also if this fails.
    ///
    /// A record that is spread over several calls is put together, and no more than that is copied.
    pub(in crate::net) fn open(
        &mut self,
        mut bytes: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        while !self.partial.is_empty() {
            let wanted = missing(self.partial.get(self.edge..).unwrap_or_default());
            if bytes.is_empty() {
                return Ok(());
            }
            let (head, rest) = bytes.split_at_mut(wanted.min(bytes.len()));
            self.partial.extend_from_slice(head);
            let is_enough = head.len() == wanted;
            bytes = rest;
            if is_enough {
                self.pump_partial(plain, out)?;
            }
        }
        // Not kept for an idle connection.
        self.partial = Vec::new();
        let edge = whole_records(bytes);
        let used = self.pump(bytes, plain, out)?;
        self.partial
            .extend_from_slice(bytes.get(used..).unwrap_or_default());
        self.edge = edge.saturating_sub(used);
        Ok(())
    }

    /// Processes what is here of a record, or of a message in several records. rustls remembers where in it
    /// the parts of such a message are, so that it must get to see the same bytes at every call.
    fn pump_partial(&mut self, plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), Error> {
        let mut partial = std::mem::take(&mut self.partial);
        let rest = partial.get(self.edge..).unwrap_or_default();
        let edge = self.edge + whole_records(rest);
        let used = self.pump(&mut partial, plain, out)?;
        partial.drain(..used);
        self.partial = partial;
        self.edge = edge.saturating_sub(used);
        Ok(())
    }

    /// Goes on with the handshake without anything received: its first message.
    pub(in crate::net) fn begin(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.pump_partial(&mut Vec::new(), out)
    }

    /// Appends `plain` to `out`, encrypted, as few records as possible.
    pub(in crate::net) fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let records = plain.len().div_ceil(RECORD_BYTES_MAX);
        let room = plain.len() + records * OVERHEAD_BYTES_MAX;
        self.write(room, out, |conn, out| conn.encrypt(plain, out))
    }

    /// Appends the message that we will send nothing more.
    pub(in crate::net) fn close(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.write(OVERHEAD_BYTES_MAX, out, |conn, out| conn.close(out))
    }

    fn write(
        &mut self,
        room: usize,
        out: &mut Vec<u8>,
        write: impl Fn(&mut dyn Writes, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), Error> {
        // Keys may have to be renewed first. No plaintext comes of it: what is here has been processed.
        self.pump_partial(&mut Vec::new(), out)?;
        let start = out.len();
        let mut partial = std::mem::take(&mut self.partial);
        let mut write = |conn: &mut dyn Writes| {
            out.resize(start + room, 0);
            match write(conn, out.get_mut(start..).unwrap_or_default()) {
                Err(EncryptError::InsufficientSize(more)) => {
                    out.resize(start + more.required_size, 0);
                    write(conn, out.get_mut(start..).unwrap_or_default())
                }
                written => written,
            }
        };
        let written = with!(self, conn => match conn.process_tls_records(&mut partial).state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                write(&mut traffic).map_err(|error| Error::General(error.to_string()))
            }
            Ok(_) => Err(Error::HandshakeNotComplete),
            Err(error) => Err(error),
        });
        self.partial = partial;
        out.truncate(start + written.as_ref().copied().unwrap_or(0));
        written.map(drop)
    }

    /// Processes the records at the front of `bytes`; the number of bytes that are done with.
    fn pump(
        &mut self,
        bytes: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<usize, Error> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let mut used = 0;
        loop {
            let step = with!(self, conn => {
                let rest = bytes.get_mut(used..).unwrap_or_default();
                let UnbufferedStatus { discard, state } = conn.process_tls_records(rest);
                used += discard;
                step(state, plain, out)
            });
            match step {
                Ok(Step::Again { discard }) => used += discard,
                Ok(Step::PeerClosed) => self.peer_closed = true,
                Ok(Step::Rest) => return Ok(used),
                Err(error) => {
                    self.say_why(out);
                    self.broken = Some(error.clone());
                    return Err(error);
                }
            }
        }
    }

    /// Appends the alert that an error has left to be sent, and nothing else: rustls gives what waits to be
    /// sent before it looks at any input.
    fn say_why(&mut self, out: &mut Vec<u8>) {
        while self.state().wants_write() {
            let is_said = with!(self, conn => match conn.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(|room| data.encode(room), out).is_ok()
                }
                _ => false,
            });
            if !is_said {
                return;
            }
        }
    }
}

/// The two things that can be written to an open connection.
trait Writes {
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, EncryptError>;
    fn close(&mut self, out: &mut [u8]) -> Result<usize, EncryptError>;
}

impl<Data> Writes for rustls::unbuffered::WriteTraffic<'_, Data> {
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, EncryptError> {
        rustls::unbuffered::WriteTraffic::encrypt(self, plain, out)
    }

    fn close(&mut self, out: &mut [u8]) -> Result<usize, EncryptError> {
        self.queue_close_notify(out)
    }
}

enum Step {
    /// There may be more to process.
    Again {
        /// Bytes done with beyond those that the status counts.
        discard: usize,
    },
    PeerClosed,
    /// Nothing more can be done with what is here.
    Rest,
}

fn step<Data>(
    state: Result<ConnectionState<'_, '_, Data>, Error>,
    plain: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<Step, Error> {
    let mut discard = 0;
    match state? {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                plain.extend_from_slice(record.payload);
                discard += record.discard;
            }
        }
        ConnectionState::EncodeTlsData(mut data) => encode(|room| data.encode(room), out)?,
        ConnectionState::TransmitTlsData(data) => data.done(),
        ConnectionState::PeerClosed => return Ok(Step::PeerClosed),
        // Early data is never accepted; the others wait for the peer or for us.
        _ => return Ok(Step::Rest),
    }
    Ok(Step::Again { discard })
}

/// Appends what `encode` writes into room that is large enough.
fn encode(
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    let start = out.len();
    let required = match encode(&mut []) {
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
            required_size
        }
        Ok(_) => return Ok(()),
        Err(error) => return Err(Error::General(error.to_string())),
    };
    out.resize(start + required, 0);
    let room = out.get_mut(start..).unwrap_or_default();
    encode(room)
        .map(drop)
        .map_err(|error| Error::General(error.to_string()))
}

/// The length of the record at the front of `bytes`, header included, once its header is there.
fn record_bytes(bytes: &[u8]) -> Option<usize> {
    let &[_, _, _, high, low] = bytes.first_chunk::<HEADER_BYTES>()?;
    Some(HEADER_BYTES + usize::from(u16::from_be_bytes([high, low])))
}

/// How much of `bytes`, which begin with a record, whole records take.
fn whole_records(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Some(next) = record_bytes(rest).and_then(|length| rest.get(length..)) {
        rest = next;
    }
    bytes.len() - rest.len()
}

/// Bytes that are missing until the header of a record that has begun is complete, or else the record.
fn missing(begun: &[u8]) -> usize {
    record_bytes(begun)
        .unwrap_or(HEADER_BYTES)
        .saturating_sub(begun.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::tls_setup;
    use crate::net::tls::TlsSetup;

    fn name() -> ServerName<'static> {
        ServerName::try_from("localhost").unwrap()
    }

    /// A server and a client that have shaken hands, with messages cut into pieces of `cut` bytes.
    fn pair(cut: usize) -> (Session, Session) {
        let setup = tls_setup();
        let mut server = Session::accept(setup.clients.as_deref().unwrap()).unwrap();
        let mut client = Session::dial(setup.servers.as_deref().unwrap(), name()).unwrap();
        let mut to_server = Vec::new();
        client.begin(&mut to_server).unwrap();
        while server.is_handshaking() || client.is_handshaking() {
            let mut to_client = Vec::new();
            feed(&mut server, &to_server, cut, &mut to_client).unwrap();
            to_server.clear();
            feed(&mut client, &to_client, cut, &mut to_server).unwrap();
        }
        feed(&mut server, &to_server, cut, &mut Vec::new()).unwrap();
        (server, client)
    }

    /// What `session` reads from `bytes` in pieces of `cut`.
    fn feed(
        session: &mut Session,
        bytes: &[u8],
        cut: usize,
        out: &mut Vec<u8>,
    ) -> Result<Vec<u8>, Error> {
        let mut plain = Vec::new();
        for piece in bytes.chunks(cut) {
            session.open(&mut piece.to_vec(), &mut plain, out)?;
        }
        Ok(plain)
    }

    #[test]
    fn any_cut_gives_the_same_plaintext_and_nothing_is_kept() {
        for cut in [1, 2, 5, 22, 8192, 1 << 20] {
            let (mut server, mut client) = pair(cut);
            let sent: Vec<u8> = (0..70_000_u32).map(|number| number as u8).collect();
            let mut wire = Vec::new();
            for part in [&sent[..1], &sent[1..40_000], &sent[40_000..]] {
                client.seal(part, &mut wire).unwrap();
            }
            let got = feed(&mut server, &wire, cut, &mut Vec::new()).unwrap();
            assert!(got == sent, "cut into {cut}");
            assert!(!server.is_inside_record() && server.partial.capacity() == 0);
        }
    }

    /// A server whose messages are cut into records of at most 40 bytes, tickets as well.
    fn fragmenting_server(setup: &TlsSetup) -> Session {
        let acceptor = setup.clients.as_deref().unwrap();
        let mut config = rustls::ServerConfig::clone(&acceptor.config);
        config.max_fragment_size = Some(40);
        let conn = UnbufferedServerConnection::new(Arc::new(config)).unwrap();
        Session::new(Side::Accepts(conn), None)
    }

    #[test]
    fn messages_of_several_records_may_be_cut_anywhere_while_we_write() {
        let setup = tls_setup();
        // From the end of the handshake: how much of the tickets the client has when it writes.
        for stop in 0..400 {
            let mut server = fragmenting_server(&setup);
            let mut client = Session::dial(setup.servers.as_deref().unwrap(), name()).unwrap();
            let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
            client.begin(&mut to_server).unwrap();
            feed(&mut server, &to_server, 7, &mut to_client).unwrap();
            to_server.clear();
            feed(&mut client, &to_client, 11, &mut to_server).unwrap();
            let mut tickets = Vec::new();
            feed(&mut server, &to_server, 1 << 20, &mut tickets).unwrap();
            assert!(!server.is_handshaking() && tickets.len() > 100);
            let (first, second) = tickets.split_at(stop.min(tickets.len()));
            feed(&mut client, first, 1 << 20, &mut Vec::new()).unwrap();
            let mut wire = Vec::new();
            client.seal(b"question", &mut wire).unwrap();
            let got = feed(&mut server, &wire, 3, &mut Vec::new()).unwrap();
            assert_eq!(got, b"question");
            feed(&mut client, second, 1, &mut Vec::new()).unwrap();
            assert!(!client.is_inside_record());
            let mut wire = Vec::new();
            server.seal(&[b'a'; 100], &mut wire).unwrap();
            let got = feed(&mut client, &wire, 2, &mut Vec::new()).unwrap();
            assert_eq!(got, [b'a'; 100]);
        }
    }

    #[test]
    fn end_may_come_in_the_middle_of_a_message_of_several_records() {
        let setup = tls_setup();
        let mut client = Session::dial(setup.servers.as_deref().unwrap(), name()).unwrap();
        let (mut hello, mut flight) = (Vec::new(), Vec::new());
        client.begin(&mut hello).unwrap();
        let mut server = fragmenting_server(&setup);
        feed(&mut server, &hello, 1 << 20, &mut flight).unwrap();
        for stop in (0..flight.len()).step_by(3) {
            let mut client = Session::dial(setup.servers.as_deref().unwrap(), name()).unwrap();
            client.begin(&mut Vec::new()).unwrap();
            // Another client's flight: it fails somewhere, with whatever came before in pieces.
            let _ = feed(&mut client, &flight[..stop], 1 << 20, &mut Vec::new());
            assert!(client.seal(b"x", &mut Vec::new()).is_err());
            assert!(client.close(&mut Vec::new()).is_err());
        }
    }

    #[test]
    fn certificate_that_is_not_trusted_is_refused_with_an_alert() {
        let (ours, theirs) = (tls_setup(), tls_setup());
        for cut in [1, 100, 1 << 20] {
            let mut client = Session::dial(ours.servers.as_deref().unwrap(), name()).unwrap();
            let mut server = Session::accept(theirs.clients.as_deref().unwrap()).unwrap();
            let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
            client.begin(&mut to_server).unwrap();
            feed(&mut server, &to_server, cut, &mut to_client).unwrap();
            let mut alert = Vec::new();
            let refused = feed(&mut client, &to_client, cut, &mut alert).unwrap_err();
            assert!(matches!(refused, Error::InvalidCertificate(_)), "{refused}");
            let told = feed(&mut server, &alert, cut, &mut Vec::new()).unwrap_err();
            assert!(matches!(told, Error::AlertReceived(_)), "{told}");
        }
    }

    #[test]
    fn payload_is_sealed_into_full_records() {
        let (mut server, _) = pair(1 << 20);
        let mut wire = Vec::new();
        server.seal(&[7; 3 * RECORD_BYTES_MAX], &mut wire).unwrap();
        let records = std::iter::successors(Some(&wire[..]), |rest| {
            let length = usize::from(u16::from_be_bytes([rest[3], rest[4]]));
            rest.get(HEADER_BYTES + length..)
                .filter(|rest| !rest.is_empty())
        });
        assert_eq!(records.count(), 3);
    }

    #[test]
    fn flipped_bit_breaks_the_connection_for_good_and_is_told() {
        let (mut server, mut client) = pair(1 << 20);
        let mut wire = Vec::new();
        client.seal(b"select 1", &mut wire).unwrap();
        let last = wire.len() - 1;
        wire[last] ^= 1;
        let mut alert = Vec::new();
        assert_eq!(
            feed(&mut server, &wire, 1 << 20, &mut alert),
            Err(Error::DecryptError)
        );
        assert!(!alert.is_empty());
        assert!(server.seal(b"x", &mut Vec::new()).is_err());
        // The client learns of it.
        assert!(feed(&mut client, &alert, 1 << 20, &mut Vec::new()).is_err());
    }

    #[test]
    fn end_of_one_direction_leaves_the_other() {
        let (mut server, mut client) = pair(1 << 20);
        let mut wire = Vec::new();
        client.seal(b"last words", &mut wire).unwrap();
        client.close(&mut wire).unwrap();
        let got = feed(&mut server, &wire, 1 << 20, &mut Vec::new()).unwrap();
        assert_eq!(got, b"last words");
        assert!(server.peer_has_closed() && !client.peer_has_closed());
        let mut answer = Vec::new();
        server.seal(b"farewell", &mut answer).unwrap();
        let got = feed(&mut client, &answer, 1 << 20, &mut Vec::new()).unwrap();
        assert_eq!(got, b"farewell");
    }

    #[test]
    fn both_sides_know_the_same_channel_binding() {
        let (server, client) = pair(1 << 20);
        let (ours, theirs) = (server.peer(), client.peer());
        assert!(ours.channel_binding.is_some());
        assert_eq!(ours.channel_binding, theirs.channel_binding);
        assert!(ours.has_alpn && theirs.has_alpn);
        let certificate = theirs.certificate.unwrap();
        assert_eq!(certificate.dns_names, ["localhost"]);
        assert_eq!(ours.certificate, None);
        assert_eq!(ours.label, theirs.label);
        assert_eq!(
            ours.label.to_string(),
            "TLSv1.3/TLS_AES_256_GCM_SHA384/ECDH=X25519"
        );
    }

    #[test]
    fn garbage_is_refused_as_soon_as_its_header_is_there() {
        let setup = tls_setup();
        for garbage in [
            &b"GET / HTTP/1.1\r\n"[..],
            &[0x16, 3, 1, 0xff, 0xff],
            &[0x80, 0x2e, 1, 3, 1, 0],
        ] {
            let mut server = Session::accept(setup.clients.as_deref().unwrap()).unwrap();
            let fed = feed(&mut server, garbage, 1, &mut Vec::new());
            assert!(fed.is_err(), "{}", garbage.escape_ascii());
        }
    }
}
