//! Borrowed views of server message bodies (without tag and length word). A server can be hostile
//! or broken, too: nothing in its messages is trusted more than a client's.

use crate::wire::startup::check_cancel_key;
use crate::wire::{Reader, SqlState, WireError};
use std::fmt;

/// The fields of an ErrorResponse or NoticeResponse. Each is optional, whatever the documentation
/// promises (CVE-2026-6666: an error without SQLSTATE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields<'a> {
    /// Codes and values without the terminator, checked by `read`.
    fields: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Views `body`. Fails unless it is a list of fields that ends exactly at its last byte.
    pub fn read(body: &'a [u8]) -> Result<Fields<'a>, WireError> {
        let mut reader = Reader::new(body);
        while reader.u8("field code")? != 0 {
            reader.cstr("field value")?;
        }
        reader.must_be_empty("error or notice")?;
        let fields = body.split_last().map_or(body, |(_, fields)| fields);
        Ok(Fields { fields })
    }

    /// Codes and values in the order sent (codes: PostgreSQL documentation, 54.8).
    pub fn iter(&self) -> impl Iterator<Item = (u8, &'a [u8])> + use<'a> {
        let mut reader = Reader::new(self.fields);
        std::iter::from_fn(move || {
            let code = reader.u8("field code").ok()?;
            Some((code, reader.cstr("field value").ok()?))
        })
    }

    /// Value of the first field with this code.
    pub fn get(&self, code: u8) -> Option<&'a [u8]> {
        let found = self.iter().find(|(candidate, _)| *candidate == code);
        found.map(|(_, value)| value)
    }

    /// The severity: in English (`V`) if the server is 9.6 or newer, else as it came.
    pub fn severity(&self) -> Option<&'a [u8]> {
        self.get(b'V').or_else(|| self.get(b'S'))
    }

    /// The SQLSTATE; `None` if there is none or it is malformed.
    pub fn sqlstate(&self) -> Option<SqlState> {
        self.get(b'C').and_then(SqlState::parse)
    }

    /// The primary message, in the server's encoding.
    pub fn message(&self) -> Option<&'a [u8]> {
        self.get(b'M')
    }
}

/// ParameterStatus: the value of a setting that the server reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterStatus<'a> {
    /// Name of the setting.
    pub name: &'a str,
    /// Its value, in the client's encoding.
    pub value: &'a [u8],
}

impl<'a> ParameterStatus<'a> {
    /// Views `body`. Fails unless it is exactly one ParameterStatus with a UTF-8 name.
    pub fn read(body: &'a [u8]) -> Result<ParameterStatus<'a>, WireError> {
        let mut reader = Reader::new(body);
        let name = reader.text("ParameterStatus name")?;
        let value = reader.cstr("ParameterStatus value")?;
        reader.must_be_empty("ParameterStatus")?;
        Ok(ParameterStatus { name, value })
    }
}

/// BackendKeyData: what a cancel request for this connection must repeat.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BackendKeyData<'a> {
    key: &'a [u8],
}

impl<'a> BackendKeyData<'a> {
    /// Views `body`. Fails unless it has 8 to 260 bytes.
    pub fn read(body: &'a [u8]) -> Result<BackendKeyData<'a>, WireError> {
        check_cancel_key(body)?;
        Ok(BackendKeyData { key: body })
    }

    /// Process id and secret together, as a cancel request carries them.
    pub const fn key(&self) -> &'a [u8] {
        self.key
    }

    /// Process id of the server process, 0 if it has none to show.
    pub fn pid(&self) -> u32 {
        Reader::new(self.key).u32("process id").unwrap_or_default()
    }

    /// The secret, 4 to 256 bytes; not to be logged.
    pub fn secret(&self) -> &'a [u8] {
        self.key.get(4..).unwrap_or_default()
    }
}

impl fmt::Debug for BackendKeyData<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendKeyData")
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

/// What ReadyForQuery says about the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransactionStatus {
    /// `I`: none is open.
    Idle,
    /// `T`: one is open.
    Open,
    /// `E`: one is open and has failed; only its end is accepted.
    Failed,
}

impl TransactionStatus {
    /// Reads the body of a ReadyForQuery. Fails unless it is exactly one.
    pub fn read(body: &[u8]) -> Result<TransactionStatus, WireError> {
        let mut reader = Reader::new(body);
        let byte = reader.u8("transaction status")?;
        reader.must_be_empty("ReadyForQuery")?;
        match byte {
            b'I' => Ok(TransactionStatus::Idle),
            b'T' => Ok(TransactionStatus::Open),
            b'E' => Ok(TransactionStatus::Failed),
            byte => Err(WireError::UnknownByte {
                what: "transaction status",
                byte,
            }),
        }
    }

    /// The status as ReadyForQuery carries it.
    pub const fn byte(self) -> u8 {
        match self {
            TransactionStatus::Idle => b'I',
            TransactionStatus::Open => b'T',
            TransactionStatus::Failed => b'E',
        }
    }
}

/// An Authentication message: what the server wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// Nothing: the login succeeded.
    Ok,
    /// The password itself.
    CleartextPassword,
    /// The password's md5 digest, salted.
    Md5Password {
        /// The salt.
        salt: [u8; 4],
    },
    /// A SASL exchange with one of these mechanisms.
    Sasl(Mechanisms<'a>),
    /// The next step of the SASL exchange.
    SaslContinue(&'a [u8]),
    /// The last word of the SASL exchange; [`Authentication::Ok`] follows.
    SaslFinal(&'a [u8]),
    /// A method that the pooler does not speak: Kerberos, GSSAPI, SSPI.
    Other {
        /// Its number.
        method: u32,
    },
}

impl<'a> Authentication<'a> {
    /// Views `body`. Fails unless it is exactly one Authentication message.
    pub fn read(body: &'a [u8]) -> Result<Authentication<'a>, WireError> {
        let mut reader = Reader::new(body);
        let request = match reader.u32("authentication method")? {
            0 => Authentication::Ok,
            3 => Authentication::CleartextPassword,
            5 => {
                let salt = reader.array("md5 salt")?;
                Authentication::Md5Password { salt }
            }
            10 => return Mechanisms::read(reader.rest()).map(Authentication::Sasl),
            11 => return Ok(Authentication::SaslContinue(reader.rest())),
            12 => return Ok(Authentication::SaslFinal(reader.rest())),
            method => return Ok(Authentication::Other { method }),
        };
        reader.must_be_empty("Authentication")?;
        Ok(request)
    }
}

/// Names of SASL mechanisms, the server's favourite first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mechanisms<'a> {
    /// Names and their terminator, checked by `read`.
    names: &'a [u8],
}

impl<'a> Mechanisms<'a> {
    fn read(names: &'a [u8]) -> Result<Mechanisms<'a>, WireError> {
        let mut reader = Reader::new(names);
        while !reader.text("SASL mechanism")?.is_empty() {}
        reader.must_be_empty("SASL mechanisms")?;
        Ok(Mechanisms { names })
    }

    /// The names in the order sent.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut reader = Reader::new(self.names);
        let names = std::iter::from_fn(move || reader.text("SASL mechanism").ok());
        names.take_while(|name| !name.is_empty())
    }

    /// Whether `name` is among them.
    pub fn contains(&self, name: &str) -> bool {
        self.iter().any(|mechanism| mechanism == name)
    }
}

/// NegotiateProtocolVersion: the server speaks less than what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NegotiateProtocolVersion<'a> {
    /// Minor version of protocol 3 that the server will speak.
    pub minor: u16,
    /// Names of the unknown protocol extensions, each with its NUL, checked by `read`.
    names: &'a [u8],
}

impl<'a> NegotiateProtocolVersion<'a> {
    /// Views `body`. Fails unless it is exactly one NegotiateProtocolVersion with UTF-8 names.
    ///
    /// PostgreSQL sends the whole version (196608 for 3.0), although the documentation says the
    /// minor version; both are understood.
    pub fn read(body: &'a [u8]) -> Result<NegotiateProtocolVersion<'a>, WireError> {
        let mut reader = Reader::new(body);
        reader.u16("protocol major version")?;
        let minor = reader.u16("protocol minor version")?;
        let count = reader.u32("count of protocol extensions")?;
        let names = reader.rest();
        for _ in 0..count {
            reader.text("protocol extension")?;
        }
        reader.must_be_empty("NegotiateProtocolVersion")?;
        Ok(NegotiateProtocolVersion { minor, names })
    }

    /// Names of the protocol extensions that the server does not know.
    pub fn unsupported_extensions(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut reader = Reader::new(self.names);
        std::iter::from_fn(move || reader.text("protocol extension").ok())
    }
}

/// The tag in the body of a CommandComplete, for example `INSERT 0 1`. Fails unless it is exactly
/// one.
pub fn command_tag_of(body: &[u8]) -> Result<&[u8], WireError> {
    let mut reader = Reader::new(body);
    let tag = reader.cstr("CommandComplete")?;
    reader.must_be_empty("CommandComplete")?;
    Ok(tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::only_the_whole_is_read;

    #[test]
    fn error_fields_are_found_by_code() {
        let body = b"SFEHLER\0VERROR\0C42601\0Moops\0P7\0\0";
        let fields = Fields::read(body).unwrap();
        assert_eq!(fields.severity(), Some(&b"ERROR"[..]));
        assert_eq!(fields.sqlstate(), Some(SqlState::SYNTAX_ERROR));
        assert_eq!(fields.message(), Some(&b"oops"[..]));
        let codes: Vec<u8> = fields.iter().map(|(code, _)| code).collect();
        assert_eq!(codes, b"SVCMP");
        only_the_whole_is_read(body, |body| Fields::read(body).map(|_| ()));
    }

    #[test]
    fn error_without_any_field_has_no_sqlstate() {
        let fields = Fields::read(b"\0").unwrap();
        assert_eq!((fields.sqlstate(), fields.severity()), (None, None));
        assert_eq!((fields.message(), fields.iter().count()), (None, 0));
    }

    #[test]
    fn malformed_sqlstate_is_none() {
        for body in [
            &b"C\0\0"[..],
            b"C4260\0\0",
            b"C426011\0\0",
            b"C42\xff01\0\0",
        ] {
            assert_eq!(Fields::read(body).unwrap().sqlstate(), None);
        }
    }

    #[test]
    fn severity_of_old_servers_is_the_localised_one() {
        let fields = Fields::read(b"SFATAL\0\0").unwrap();
        assert_eq!(fields.severity(), Some(&b"FATAL"[..]));
    }

    #[test]
    fn parameter_status_is_read_whole_or_not_at_all() {
        let body = b"TimeZone\0Europe/Berlin\0";
        let status = ParameterStatus::read(body).unwrap();
        assert_eq!(
            (status.name, status.value),
            ("TimeZone", &b"Europe/Berlin"[..])
        );
        only_the_whole_is_read(body, |body| ParameterStatus::read(body).map(|_| ()));
        assert!(ParameterStatus::read(b"\xff\0x\0").is_err());
    }

    #[test]
    fn key_data_has_8_to_260_bytes() {
        for bytes in [0, 4, 7, 261, 300] {
            let refused = BackendKeyData::read(&[0; 300][..bytes]);
            assert_eq!(refused, Err(WireError::CancelKeyLength { bytes }));
        }
        let key = BackendKeyData::read(b"\0\0\x01\x02secret").unwrap();
        assert_eq!((key.pid(), key.secret()), (258, &b"secret"[..]));
        assert_eq!(key.key(), b"\0\0\x01\x02secret");
        assert_eq!(BackendKeyData::read(&[1; 260]).unwrap().secret().len(), 256);
    }

    #[test]
    fn debug_of_key_data_hides_the_secret() {
        let key = BackendKeyData::read(b"\0\0\0\x07\x01\x02\x03\x04").unwrap();
        assert_eq!(format!("{key:?}"), "BackendKeyData { pid: 7, .. }");
    }

    #[test]
    fn transaction_status_is_one_of_three_bytes() {
        for byte in 0..=u8::MAX {
            let status = TransactionStatus::read(&[byte]);
            assert_eq!(status.is_ok(), b"ITE".contains(&byte));
            assert!(status.is_err() || status.unwrap().byte() == byte);
        }
        only_the_whole_is_read(b"I", TransactionStatus::read);
    }

    #[test]
    fn authentication_requests_are_read_whole_or_not_at_all() {
        let read = Authentication::read;
        assert_eq!(read(b"\0\0\0\0"), Ok(Authentication::Ok));
        assert_eq!(read(b"\0\0\0\x03"), Ok(Authentication::CleartextPassword));
        let salt = *b"salt";
        let md5 = Authentication::Md5Password { salt };
        assert_eq!(read(b"\0\0\0\x05salt"), Ok(md5));
        assert_eq!(read(b"\0\0\0\x07"), Ok(Authentication::Other { method: 7 }));
        for body in [
            &b"\0\0\0\0"[..],
            b"\0\0\0\x03",
            b"\0\0\0\x05salt",
            b"\0\0\0\x0aA\0\0",
        ] {
            only_the_whole_is_read(body, |body| Authentication::read(body).map(|_| ()));
        }
    }

    #[test]
    fn sasl_steps_are_the_rest_of_the_body() {
        let step = Authentication::read(b"\0\0\0\x0br=nonce");
        assert_eq!(step, Ok(Authentication::SaslContinue(b"r=nonce")));
        let last = Authentication::read(b"\0\0\0\x0cv=proof");
        assert_eq!(last, Ok(Authentication::SaslFinal(b"v=proof")));
    }

    #[test]
    fn sasl_mechanisms_are_listed_in_order() {
        let body = b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
        let Ok(Authentication::Sasl(mechanisms)) = Authentication::read(body) else {
            panic!("not a SASL request");
        };
        assert!(
            mechanisms
                .iter()
                .eq(["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"])
        );
        assert!(mechanisms.contains("SCRAM-SHA-256") && !mechanisms.contains("SCRAM-SHA-1"));
    }

    #[test]
    fn negotiated_version_is_understood_with_and_without_major() {
        for major in [0, 3] {
            let body = [0, major, 0, 2, 0, 0, 0, 1, b'x', 0];
            let answer = NegotiateProtocolVersion::read(&body).unwrap();
            assert_eq!(answer.minor, 2);
            assert!(answer.unsupported_extensions().eq(["x"]));
            only_the_whole_is_read(&body, |b| NegotiateProtocolVersion::read(b).map(|_| ()));
        }
    }

    #[test]
    fn wrong_count_of_extensions_is_refused_at_once() {
        for count in [0_u32, 1, 3, u32::MAX] {
            let body = [b"\0\x03\0\0", &count.to_be_bytes()[..], b"a\0b\0"].concat();
            assert!(NegotiateProtocolVersion::read(&body).is_err(), "{count}");
        }
    }

    #[test]
    fn command_tag_is_read_whole_or_not_at_all() {
        assert_eq!(command_tag_of(b"SELECT 1\0"), Ok(&b"SELECT 1"[..]));
        only_the_whole_is_read(b"SELECT 1\0", |body| command_tag_of(body).map(|_| ()));
    }
}
