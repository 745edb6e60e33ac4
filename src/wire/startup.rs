//! The first packet of a connection, which alone has no tag: a start-up packet, or a request for
//! encryption or cancellation (PostgreSQL documentation, 54.2.1 and 54.7).
//!
//! Reading is strict where PostgreSQL is: the pairs of a start-up packet end exactly at its last
//! byte, a request has exactly its size. A [`StartupPacket`] keeps the bytes of its packet and
//! walks them on demand, so that no packet, however odd, costs more memory than its own length.

use super::WireError;
use super::cursor::{Reader, put_cstr, untagged};
use crate::base::Secret;
use crate::base::limit::{CANCEL_KEY_BYTES_MAX, CANCEL_KEY_BYTES_MIN, STARTUP_PACKET_BYTES_MAX};
use bytes::BufMut;
use std::fmt;

/// Newest minor version of protocol 3 that we speak (3.2: PostgreSQL 18, long cancel keys).
pub const PROTOCOL_MINOR_MAX: u16 = 2;

const PROTOCOL_MAJOR: u16 = 3;
/// Stands in the place of a major version number in packets that are requests.
const REQUEST: u16 = 1234;
const REQUEST_CANCEL: u16 = 5678;
const REQUEST_SSL: u16 = 5679;
const REQUEST_GSSENC: u16 = 5680;

/// Length word and protocol version, or request code.
const FIRST_PACKET_BYTES_MIN: usize = 8;

/// Prefix of the names of protocol extensions.
const EXTENSION_PREFIX: &str = "_pq_.";

/// What a client sends first.
#[derive(Debug)]
pub enum FirstPacket {
    /// Asks for TLS; answered with one byte, after which nothing that came along with the request
    /// may be read as if it were encrypted (CVE-2021-3935).
    SslRequest,
    /// Asks for GSSAPI encryption; answered like [`FirstPacket::SslRequest`].
    GssEncRequest,
    /// Asks for a running query to be cancelled; never answered.
    Cancel(CancelRequest),
    /// Opens a session.
    Startup(StartupPacket),
}

/// A request to cancel what another connection runs.
#[derive(Debug)]
pub struct CancelRequest {
    /// The bytes of BackendKeyData: process id (4 bytes), then secret (4 to 256 bytes).
    pub key: Secret,
}

/// A start-up packet of protocol 3. Of a name that comes twice the last value counts, as in
/// PostgreSQL.
///
/// User and database are UTF-8, and so is every parameter name: they are looked up in a UTF-8
/// configuration, where other bytes could never be found. Parameter values are whatever bytes
/// the client sent, because they are in an encoding of its own choice.
pub struct StartupPacket {
    minor_requested: u16,
    user: String,
    database: Option<String>,
    /// The name and value pairs with their terminator, checked by `parse`.
    pairs: Box<[u8]>,
}

/// Length in bytes of the packet that starts with `head`, length word included; `None` while
/// fewer than 4 bytes are at hand.
///
/// # Errors
/// [`WireError::BadPacketHeader`] unless it is between 8 and [`STARTUP_PACKET_BYTES_MAX`].
pub fn first_packet_length(head: &[u8]) -> Result<Option<usize>, WireError> {
    let Ok(word) = Reader::new(head).u32("length word") else {
        return Ok(None);
    };
    match usize::try_from(word) {
        Ok(length @ FIRST_PACKET_BYTES_MIN..=STARTUP_PACKET_BYTES_MAX) => Ok(Some(length)),
        _ => Err(bad_header(head)),
    }
}

/// Reads the whole first packet, length word included.
///
/// # Errors
/// [`WireError::BadPacketHeader`] for a version or request that does not exist (a TLS ClientHello
/// ends here, too), [`WireError::OldProtocol`], and the errors of the packet's content.
pub fn parse_first_packet(packet: &[u8]) -> Result<FirstPacket, WireError> {
    let mut reader = Reader::new(packet);
    reader.u32("length word")?;
    check_length(packet)?;
    let version = (reader.u16("protocol")?, reader.u16("protocol")?);
    match version {
        (PROTOCOL_MAJOR, minor) => {
            StartupPacket::parse(minor, reader.rest()).map(FirstPacket::Startup)
        }
        (2, _) => Err(WireError::OldProtocol),
        (REQUEST, REQUEST_CANCEL) => CancelRequest::parse(reader.rest()).map(FirstPacket::Cancel),
        (REQUEST, REQUEST_SSL) if reader.is_empty() => Ok(FirstPacket::SslRequest),
        (REQUEST, REQUEST_GSSENC) if reader.is_empty() => Ok(FirstPacket::GssEncRequest),
        _ => Err(bad_header(packet)),
    }
}

fn check_length(packet: &[u8]) -> Result<(), WireError> {
    let actual = packet.len();
    match first_packet_length(packet)? {
        Some(claimed) if claimed != actual => Err(WireError::FirstPacketLength { claimed, actual }),
        _ => Ok(()),
    }
}

fn bad_header(head: &[u8]) -> WireError {
    let bytes = head.iter().take(FIRST_PACKET_BYTES_MIN);
    let hex = bytes.map(|byte| format!("{byte:02x}")).collect();
    WireError::BadPacketHeader { hex }
}

impl CancelRequest {
    fn parse(key: &[u8]) -> Result<CancelRequest, WireError> {
        check_cancel_key(key)?;
        let key = Secret::new(key);
        Ok(CancelRequest { key })
    }
}

/// Refuses a cancel key, process id included, that protocol 3.2 does not allow.
pub(super) fn check_cancel_key(key: &[u8]) -> Result<(), WireError> {
    match key.len() {
        CANCEL_KEY_BYTES_MIN..=CANCEL_KEY_BYTES_MAX => Ok(()),
        bytes => Err(WireError::CancelKeyLength { bytes }),
    }
}

/// What kind of replication a client asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replication {
    /// None.
    #[default]
    None,
    /// That of the whole cluster.
    Physical,
    /// That of one database.
    Logical,
}

impl Replication {
    /// PgBouncer's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Replication::None => "none",
            Replication::Physical => "physical",
            Replication::Logical => "logical",
        }
    }
}

impl StartupPacket {
    /// The replication it asks for; `None` if that cannot be understood.
    pub fn replication(&self) -> Option<Replication> {
        let value = self.get("replication").unwrap_or(b"off");
        let is = |word: &&str| value.eq_ignore_ascii_case(word.as_bytes());
        if ["true", "on", "yes", "1"].iter().any(is) {
            Some(Replication::Physical)
        } else if ["false", "off", "no", "0"].iter().any(is) {
            Some(Replication::None)
        } else {
            is(&"database").then_some(Replication::Logical)
        }
    }

    fn parse(minor_requested: u16, pairs: &[u8]) -> Result<StartupPacket, WireError> {
        let (mut user, mut database) = ("", "");
        let mut reader = Reader::new(pairs);
        while let Some((name, value)) = next_pair(&mut reader)? {
            match utf8(name, "startup parameter name")? {
                "user" => user = utf8(value, "user name")?,
                "database" => database = utf8(value, "database name")?,
                _ => {}
            }
        }
        if user.is_empty() {
            return Err(WireError::NoUserName);
        }
        Ok(StartupPacket {
            minor_requested,
            user: user.to_owned(),
            database: (!database.is_empty()).then(|| database.to_owned()),
            pairs: pairs.into(),
        })
    }

    /// The user, never empty.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database; the user's name if none was given.
    pub fn database(&self) -> &str {
        self.database.as_deref().unwrap_or(&self.user)
    }

    /// Minor version of protocol 3 that the client asked for; may be one that does not exist.
    pub const fn minor_requested(&self) -> u16 {
        self.minor_requested
    }

    /// Minor version of protocol 3 to speak with this client.
    pub const fn minor(&self) -> u16 {
        if self.minor_requested < PROTOCOL_MINOR_MAX {
            self.minor_requested
        } else {
            PROTOCOL_MINOR_MAX
        }
    }

    /// Whether the client must be told, once, by NegotiateProtocolVersion that it gets less than
    /// it asked for.
    pub fn needs_negotiation(&self) -> bool {
        self.minor_requested > PROTOCOL_MINOR_MAX || self.unsupported_extensions().next().is_some()
    }

    /// All parameters in the order sent, without user, database and protocol extensions. Names
    /// are as the client spelled them and may repeat; values are raw bytes without NUL.
    pub fn params(&self) -> impl Iterator<Item = (&str, &[u8])> + Clone {
        let special =
            |name: &str| matches!(name, "user" | "database") || name.starts_with(EXTENSION_PREFIX);
        self.pairs().filter(move |(name, _)| !special(name))
    }

    /// Value of the parameter called exactly `name`, the last one if it came more than once.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let found = self.params().filter(|(param, _)| *param == name).last();
        found.map(|(_, value)| value)
    }

    /// Names of the protocol extensions (`_pq_.*`) that we do not speak, which is all of them.
    pub fn unsupported_extensions(&self) -> impl Iterator<Item = &str> + Clone {
        let names = self.pairs().map(|(name, _)| name);
        names.filter(|name| name.starts_with(EXTENSION_PREFIX))
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, &[u8])> + Clone {
        Pairs(Reader::new(&self.pairs))
    }
}

impl fmt::Debug for StartupPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartupPacket")
            .field("minor_requested", &self.minor_requested)
            .field("user", &self.user)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

/// The pairs of a packet that was checked before; would end early at anything unchecked.
#[derive(Clone)]
struct Pairs<'a>(Reader<'a>);

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value) = next_pair(&mut self.0).ok()??;
        Some((str::from_utf8(name).ok()?, value))
    }
}

type Pair<'a> = (&'a [u8], &'a [u8]);

/// The next pair; `None` at the terminator, an empty name, which must be the last byte.
fn next_pair<'a>(reader: &mut Reader<'a>) -> Result<Option<Pair<'a>>, WireError> {
    match layout_cstr(reader)? {
        b"" if reader.is_empty() => Ok(None),
        b"" => Err(WireError::StartupLayout),
        name => Ok(Some((name, layout_cstr(reader)?))),
    }
}

fn layout_cstr<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], WireError> {
    let text = reader.cstr("name or value");
    text.map_err(|_| WireError::StartupLayout)
}

fn utf8<'a>(bytes: &'a [u8], what: &'static str) -> Result<&'a str, WireError> {
    str::from_utf8(bytes).map_err(|_| WireError::NotUtf8 { what })
}

/// Appends a start-up packet of protocol 3.`minor`. A pair with an empty name is left out: it
/// would end the packet.
pub fn startup_packet(out: &mut Vec<u8>, minor: u16, params: &[(&str, &[u8])]) {
    first_packet(out, (PROTOCOL_MAJOR, minor), |body| {
        for (name, value) in params.iter().filter(|(name, _)| !name.is_empty()) {
            put_cstr(body, name);
            put_cstr(body, value);
        }
        body.put_u8(0);
    });
}

/// Appends a request for TLS.
pub fn ssl_request(out: &mut Vec<u8>) {
    first_packet(out, (REQUEST, REQUEST_SSL), |_| {});
}

/// Appends a request to cancel what the holder of `key` runs; `key` as in BackendKeyData.
pub fn cancel_request(out: &mut Vec<u8>, key: &[u8]) {
    first_packet(out, (REQUEST, REQUEST_CANCEL), |body| body.put_slice(key));
}

fn first_packet(out: &mut Vec<u8>, version: (u16, u16), body: impl FnOnce(&mut Vec<u8>)) {
    untagged(out, |out| {
        out.put_u16(version.0);
        out.put_u16(version.1);
        body(out);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::built;

    /// A start-up packet with `pairs` as its raw content.
    fn raw(version: (u16, u16), pairs: &[u8]) -> Vec<u8> {
        built(|out| first_packet(out, version, |body| body.put_slice(pairs)))
    }

    fn startup(packet: &[u8]) -> StartupPacket {
        match parse_first_packet(packet) {
            Ok(FirstPacket::Startup(startup)) => startup,
            other => panic!("not a start-up packet: {other:?}"),
        }
    }

    fn refused(packet: &[u8]) -> WireError {
        parse_first_packet(packet).expect_err("a refusal")
    }

    #[test]
    fn startup_packet_round_trips() {
        let params: &[(&str, &[u8])] = &[
            ("user", b"alice"),
            ("application_name", b"caf\xe9"),
            ("database", b"shop"),
            ("options", b"-c geqo=off"),
        ];
        let packet = startup(&built(|out| startup_packet(out, 2, params)));
        assert_eq!((packet.user(), packet.database()), ("alice", "shop"));
        assert_eq!((packet.minor_requested(), packet.minor()), (2, 2));
        assert!(packet.params().eq([params[1], params[3]]));
        assert_eq!(packet.get("application_name"), Some(&b"caf\xe9"[..]));
        assert_eq!(packet.get("user"), None);
        assert!(!packet.needs_negotiation());
    }

    #[test]
    fn replication_is_asked_for_in_several_words() {
        let asked = |value: &[u8]| {
            let params: &[(&str, &[u8])] = &[("user", b"u"), ("replication", value)];
            startup(&built(|out| startup_packet(out, 0, params))).replication()
        };
        for value in ["true", "ON", "yes", "1"] {
            assert_eq!(asked(value.as_bytes()), Some(Replication::Physical));
        }
        for value in ["false", "off", "No", "0"] {
            assert_eq!(asked(value.as_bytes()), Some(Replication::None));
        }
        assert_eq!(asked(b"database"), Some(Replication::Logical));
        assert_eq!(asked(b"maybe"), None);
    }

    #[test]
    fn missing_or_empty_database_is_the_user() {
        for pairs in [&b"user\0alice\0\0"[..], b"user\0alice\0database\0\0\0"] {
            assert_eq!(startup(&raw((3, 0), pairs)).database(), "alice");
        }
    }

    #[test]
    fn last_of_repeated_names_counts() {
        let packet = startup(&raw((3, 0), b"user\0a\0k\x001\0user\0b\0k\x002\0\0"));
        assert_eq!(packet.user(), "b");
        assert_eq!(packet.get("k"), Some(&b"2"[..]));
    }

    #[test]
    fn missing_or_empty_user_is_refused() {
        for pairs in [&b"\0"[..], b"database\0shop\0\0", b"user\0\0\0"] {
            assert_eq!(refused(&raw((3, 0), pairs)), WireError::NoUserName);
        }
    }

    #[test]
    fn pairs_must_end_at_the_last_byte() {
        for pairs in [
            &b""[..],
            b"user",
            b"user\0",
            b"user\0alice",
            b"user\0alice\0",
            b"user\0alice\0\0\0",
            b"user\0alice\0\0database\0shop\0\0",
            b"user\0alice\0database\0\0",
        ] {
            assert_eq!(refused(&raw((3, 0), pairs)), WireError::StartupLayout);
        }
    }

    #[test]
    fn every_truncation_and_every_wrong_length_word_is_refused() {
        let packet = raw((3, 0), b"user\0alice\0application_name\0psql\0\0");
        for cut in 0..packet.len() {
            let mut part = packet[..cut].to_vec();
            refused(&part);
            if let Some(word) = part.first_chunk_mut::<4>() {
                *word = u32::try_from(cut).unwrap().to_be_bytes();
                refused(&part);
            }
        }
        for word in [0, 7, 8, 43, 45, 65_535, 65_536, u32::MAX] {
            let mut lie = packet.clone();
            assert_ne!(word as usize, lie.len());
            *lie.first_chunk_mut().unwrap() = word.to_be_bytes();
            refused(&lie);
        }
    }

    #[test]
    fn names_that_are_not_utf8_are_refused_but_values_are_not() {
        let not_utf8 = |what| WireError::NotUtf8 { what };
        let refused = |pairs| refused(&raw((3, 0), pairs));
        assert_eq!(refused(b"user\0\xff\0\0"), not_utf8("user name"));
        let database = refused(b"user\0a\0database\0\xff\0\0");
        assert_eq!(database, not_utf8("database name"));
        let name = refused(b"user\0a\0\xff\0b\0\0");
        assert_eq!(name, not_utf8("startup parameter name"));
        startup(&raw((3, 0), b"user\0a\0b\0\xff\0\0"));
    }

    #[test]
    fn newer_minor_version_is_negotiated_down() {
        for (requested, minor, negotiated) in [(0, 0, false), (1, 1, false), (2, 2, false)] {
            let packet = startup(&raw((3, requested), b"user\0a\0\0"));
            assert_eq!(
                (packet.minor(), packet.needs_negotiation()),
                (minor, negotiated)
            );
        }
        let packet = startup(&raw((3, 9999), b"user\0a\0\0"));
        assert_eq!((packet.minor(), packet.needs_negotiation()), (2, true));
    }

    #[test]
    fn protocol_extensions_are_listed_and_are_no_parameters() {
        let packet = startup(&raw((3, 0), b"user\0a\0_pq_.x\x001\0b\0c\0_pq_.y\0\0\0"));
        assert!(packet.needs_negotiation());
        assert!(packet.unsupported_extensions().eq(["_pq_.x", "_pq_.y"]));
        assert!(packet.params().eq([("b", &b"c"[..])]));
    }

    #[test]
    fn other_versions_are_refused() {
        let pairs = b"user\0a\0\0";
        assert_eq!(refused(&raw((2, 0), pairs)), WireError::OldProtocol);
        for version in [
            (0, 0),
            (1, 0),
            (4, 0),
            (1234, 5677),
            (1234, 5681),
            (0xffff, 0),
        ] {
            let error = refused(&raw(version, pairs));
            assert!(
                matches!(error, WireError::BadPacketHeader { .. }),
                "{version:?}"
            );
        }
        let text = refused(&raw((4, 0), pairs)).to_string();
        assert_eq!(text, "bad packet header: '0000001000040000'");
    }

    #[test]
    fn encryption_requests_have_no_content() {
        let ssl = built(ssl_request);
        assert!(matches!(
            parse_first_packet(&ssl),
            Ok(FirstPacket::SslRequest)
        ));
        let gss = raw((1234, 5680), b"");
        assert!(matches!(
            parse_first_packet(&gss),
            Ok(FirstPacket::GssEncRequest)
        ));
        for code in [5679, 5680] {
            let error = refused(&raw((1234, code), b"x"));
            assert!(matches!(error, WireError::BadPacketHeader { .. }));
        }
    }

    #[test]
    fn cancel_key_round_trips_at_both_bounds() {
        for bytes in [8, 12, 36, 260] {
            let key = vec![7; bytes];
            let packet = built(|out| cancel_request(out, &key));
            match parse_first_packet(&packet) {
                Ok(FirstPacket::Cancel(cancel)) => assert_eq!(cancel.key.expose(), key),
                other => panic!("not a cancel request: {other:?}"),
            }
        }
    }

    #[test]
    fn cancel_key_outside_of_its_bounds_is_refused() {
        for bytes in [0, 4, 7, 261, 60_000] {
            let packet = built(|out| cancel_request(out, &vec![7; bytes]));
            assert_eq!(refused(&packet), WireError::CancelKeyLength { bytes });
        }
    }

    #[test]
    fn first_length_is_known_from_four_bytes_on() {
        assert_eq!(first_packet_length(b"\0\0\0"), Ok(None));
        assert_eq!(first_packet_length(b"\0\0\0\x08"), Ok(Some(8)));
        assert_eq!(first_packet_length(b"\0\0\xff\xffxyz"), Ok(Some(65_535)));
        for head in [
            b"\0\0\0\x07",
            b"\0\x01\0\0",
            b"\x80\0\0\x08",
            b"GET ",
            b"\x16\x03\x01\x02",
        ] {
            assert!(first_packet_length(head).is_err(), "{head:?}");
        }
    }

    #[test]
    fn built_packet_leaves_out_what_would_end_it() {
        let packet = built(|out| startup_packet(out, 0, &[("user", b"a\0b"), ("", b"x")]));
        assert_eq!(packet, raw((3, 0), b"user\0a\0\0"));
    }

    #[test]
    fn debug_shows_no_parameter_values() {
        let packet = startup(&raw((3, 0), b"user\0a\0options\0hush\0\0"));
        assert!(!format!("{packet:?}").contains("options"));
    }
}
