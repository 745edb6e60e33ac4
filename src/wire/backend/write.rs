//! Builders of server messages: all that the pooler answers in its own name.

use super::TransactionStatus;
use crate::wire::cursor::{put_count, put_value};
use crate::wire::tag::backend as tag;
use crate::wire::{SqlState, message, put_cstr};
use bytes::BufMut;

/// How bad it is, in PostgreSQL's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The command failed, the session goes on.
    Error,
    /// The session ends.
    Fatal,
    /// A warning.
    Warning,
    /// Something worth knowing.
    Notice,
    /// Meant for a log.
    Log,
}

impl Severity {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
            Severity::Warning => "WARNING",
            Severity::Notice => "NOTICE",
            Severity::Log => "LOG",
        }
    }
}

/// The content of an ErrorResponse or NoticeResponse. Texts end at their first NUL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report<'a> {
    /// How bad it is.
    pub severity: Severity,
    /// The code that programs react to.
    pub sqlstate: SqlState,
    /// The primary message.
    pub message: &'a str,
    /// More about what happened.
    pub detail: Option<&'a str>,
    /// What to do about it.
    pub hint: Option<&'a str>,
}

/// Appends ErrorResponse.
pub fn error_response(out: &mut Vec<u8>, report: &Report<'_>) {
    message(out, tag::ERROR_RESPONSE, |body| put_report(body, report));
}

/// Appends NoticeResponse.
pub fn notice_response(out: &mut Vec<u8>, report: &Report<'_>) {
    message(out, tag::NOTICE_RESPONSE, |body| put_report(body, report));
}

fn put_report(body: &mut Vec<u8>, report: &Report<'_>) {
    let fields = [
        (b'S', Some(report.severity.as_str())),
        (b'V', Some(report.severity.as_str())),
        (b'C', Some(report.sqlstate.as_str())),
        (b'M', Some(report.message)),
        (b'D', report.detail),
        (b'H', report.hint),
    ];
    for (code, value) in fields {
        if let Some(value) = value {
            body.put_u8(code);
            put_cstr(body, value);
        }
    }
    body.put_u8(0);
}

/// Appends AuthenticationOk.
pub fn authentication_ok(out: &mut Vec<u8>) {
    authentication(out, 0, |_| {});
}

/// Appends AuthenticationCleartextPassword.
pub fn authentication_cleartext(out: &mut Vec<u8>) {
    authentication(out, 3, |_| {});
}

/// Appends AuthenticationMD5Password.
pub fn authentication_md5(out: &mut Vec<u8>, salt: [u8; 4]) {
    authentication(out, 5, |body| body.put_slice(&salt));
}

/// Appends AuthenticationSASL with these mechanisms, the favourite first. Empty names are left
/// out: they would end the list.
pub fn authentication_sasl(out: &mut Vec<u8>, mechanisms: &[&str]) {
    authentication(out, 10, |body| {
        let names = mechanisms.iter().filter(|name| !name.is_empty());
        names.for_each(|name| put_cstr(body, name));
        body.put_u8(0);
    });
}

/// Appends AuthenticationSASLContinue.
pub fn authentication_sasl_continue(out: &mut Vec<u8>, data: &[u8]) {
    authentication(out, 11, |body| body.put_slice(data));
}

/// Appends AuthenticationSASLFinal.
pub fn authentication_sasl_final(out: &mut Vec<u8>, data: &[u8]) {
    authentication(out, 12, |body| body.put_slice(data));
}

fn authentication(out: &mut Vec<u8>, method: u32, content: impl FnOnce(&mut Vec<u8>)) {
    message(out, tag::AUTHENTICATION, |body| {
        body.put_u32(method);
        content(body);
    });
}

/// Appends BackendKeyData; `key` is process id and secret, 8 bytes for clients of protocol 3.0.
pub fn backend_key_data(out: &mut Vec<u8>, key: &[u8]) {
    message(out, tag::BACKEND_KEY_DATA, |body| body.put_slice(key));
}

/// Appends ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    message(out, tag::PARAMETER_STATUS, |body| {
        put_cstr(body, name);
        put_cstr(body, value);
    });
}

/// Appends ReadyForQuery.
pub fn ready_for_query(out: &mut Vec<u8>, status: TransactionStatus) {
    message(out, tag::READY_FOR_QUERY, |body| body.put_u8(status.byte()));
}

/// Appends NegotiateProtocolVersion: we speak 3.`minor` and none of the `unsupported` extensions.
/// The version is written whole, as PostgreSQL writes it and libpq expects it.
pub fn negotiate_protocol_version<'a>(
    out: &mut Vec<u8>,
    minor: u16,
    unsupported: impl Iterator<Item = &'a str> + Clone,
) {
    message(out, tag::NEGOTIATE_PROTOCOL_VERSION, |body| {
        body.put_u16(3);
        body.put_u16(minor);
        body.put_u16(0); // Upper half of the count: no start-up packet has room for that many names.
        put_count(body, unsupported.clone().count());
        unsupported.for_each(|name| put_cstr(body, name));
    });
}

/// Object ids of the types in the pooler's own results (PostgreSQL: `pg_type.dat`).
pub mod oid {
    /// `bytea`.
    pub const BYTEA: u32 = 17;
    /// `int8`.
    pub const INT8: u32 = 20;
    /// `int4`.
    pub const INT4: u32 = 23;
    /// `text`.
    pub const TEXT: u32 = 25;
    /// `numeric`.
    pub const NUMERIC: u32 = 1700;
}

/// A column of the pooler's own results, in text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column<'a> {
    /// Its name.
    pub name: &'a str,
    /// Object id of its type, from [`oid`].
    pub type_oid: u32,
}

/// Appends RowDescription.
///
/// # Panics
/// Above 65,535 columns.
pub fn row_description(out: &mut Vec<u8>, columns: &[Column<'_>]) {
    message(out, tag::ROW_DESCRIPTION, |body| {
        put_count(body, columns.len());
        columns.iter().for_each(|column| put_column(body, column));
    });
}

fn put_column(body: &mut Vec<u8>, column: &Column<'_>) {
    put_cstr(body, column.name);
    body.put_u32(0); // No table,
    body.put_i16(0); // so no column number.
    body.put_u32(column.type_oid);
    body.put_i16(type_bytes(column.type_oid));
    body.put_i32(-1); // No type modifier.
    body.put_i16(0); // Text format.
}

/// Bytes of a value in binary, -1 if they vary (PostgreSQL: `pg_type.typlen`).
const fn type_bytes(type_oid: u32) -> i16 {
    match type_oid {
        oid::INT4 => 4,
        oid::INT8 => 8,
        _ => -1,
    }
}

/// Appends DataRow of text values, `None` for null.
///
/// # Panics
/// Above 65,535 values.
pub fn data_row(out: &mut Vec<u8>, values: &[Option<&[u8]>]) {
    message(out, tag::DATA_ROW, |body| {
        put_count(body, values.len());
        values.iter().for_each(|value| put_value(body, *value));
    });
}

/// Appends CommandComplete, `command` for example `SHOW`.
pub fn command_complete(out: &mut Vec<u8>, command: &str) {
    message(out, tag::COMMAND_COMPLETE, |body| put_cstr(body, command));
}

/// Appends ParameterDescription; `types` are object ids.
///
/// # Panics
/// Above 65,535 types.
pub fn parameter_description(out: &mut Vec<u8>, types: &[u32]) {
    message(out, tag::PARAMETER_DESCRIPTION, |body| {
        put_count(body, types.len());
        types.iter().for_each(|oid| body.put_u32(*oid));
    });
}

/// Appends ParseComplete.
pub fn parse_complete(out: &mut Vec<u8>) {
    message(out, tag::PARSE_COMPLETE, |_| {});
}

/// Appends BindComplete.
pub fn bind_complete(out: &mut Vec<u8>) {
    message(out, tag::BIND_COMPLETE, |_| {});
}

/// Appends CloseComplete.
pub fn close_complete(out: &mut Vec<u8>) {
    message(out, tag::CLOSE_COMPLETE, |_| {});
}

/// Appends NoData.
pub fn no_data(out: &mut Vec<u8>) {
    message(out, tag::NO_DATA, |_| {});
}

/// Appends EmptyQueryResponse.
pub fn empty_query_response(out: &mut Vec<u8>) {
    message(out, tag::EMPTY_QUERY_RESPONSE, |_| {});
}

/// Appends PortalSuspended.
pub fn portal_suspended(out: &mut Vec<u8>) {
    message(out, tag::PORTAL_SUSPENDED, |_| {});
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::backend::{
        Authentication, BackendKeyData, DataRow, Fields, NegotiateProtocolVersion, ParameterStatus,
        RowDescription, command_tag_of,
    };
    use crate::wire::testing::{body_of, built};

    const REPORT: Report<'_> = Report {
        severity: Severity::Fatal,
        sqlstate: SqlState::PROTOCOL_VIOLATION,
        message: "no such database: shop",
        detail: None,
        hint: None,
    };

    #[test]
    fn error_has_its_fields_in_postgres_order() {
        let out = built(|out| error_response(out, &REPORT));
        let expected = b"SFATAL\0VFATAL\0C08P01\0Mno such database: shop\0\0";
        assert_eq!(body_of(&out, b'E'), expected);
    }

    #[test]
    fn notice_with_detail_and_hint_round_trips() {
        let report = Report {
            severity: Severity::Notice,
            detail: Some("why"),
            hint: Some("how"),
            ..REPORT
        };
        let out = built(|out| notice_response(out, &report));
        let fields = Fields::read(body_of(&out, b'N')).unwrap();
        assert_eq!(fields.severity(), Some(&b"NOTICE"[..]));
        assert_eq!(fields.sqlstate(), Some(SqlState::PROTOCOL_VIOLATION));
        assert_eq!(fields.get(b'D'), Some(&b"why"[..]));
        assert_eq!(fields.get(b'H'), Some(&b"how"[..]));
    }

    #[test]
    fn report_text_with_nul_cannot_add_a_field() {
        let message = "a\0C00000";
        let out = built(|out| error_response(out, &Report { message, ..REPORT }));
        let fields = Fields::read(body_of(&out, b'E')).unwrap();
        assert_eq!(
            (fields.message(), fields.iter().count()),
            (Some(&b"a"[..]), 4)
        );
    }

    fn authentication_read(out: &[u8]) -> Authentication<'_> {
        Authentication::read(body_of(out, b'R')).unwrap()
    }

    #[test]
    fn authentication_messages_round_trip() {
        let out = built(authentication_ok);
        assert_eq!(authentication_read(&out), Authentication::Ok);
        let out = built(authentication_cleartext);
        assert_eq!(authentication_read(&out), Authentication::CleartextPassword);
        let salt = *b"\0salt".last_chunk().unwrap();
        let out = built(|out| authentication_md5(out, salt));
        assert_eq!(
            authentication_read(&out),
            Authentication::Md5Password { salt }
        );
        let out = built(|out| authentication_sasl_continue(out, b"r=x"));
        assert_eq!(
            authentication_read(&out),
            Authentication::SaslContinue(b"r=x")
        );
        let out = built(|out| authentication_sasl_final(out, b"v=x"));
        assert_eq!(authentication_read(&out), Authentication::SaslFinal(b"v=x"));
    }

    #[test]
    fn sasl_mechanisms_round_trip_without_empty_names() {
        let out = built(|out| authentication_sasl(out, &["A", "", "B"]));
        match authentication_read(&out) {
            Authentication::Sasl(mechanisms) => assert!(mechanisms.iter().eq(["A", "B"])),
            other => panic!("not a SASL request: {other:?}"),
        }
    }

    #[test]
    fn greeting_round_trips() {
        let key = b"\0\0\0\x07abcd";
        let out = built(|out| backend_key_data(out, key));
        assert_eq!(
            BackendKeyData::read(body_of(&out, b'K')).unwrap().key(),
            key
        );
        let out = built(|out| parameter_status(out, "DateStyle", b"ISO, MDY"));
        let status = ParameterStatus::read(body_of(&out, b'S')).unwrap();
        assert_eq!((status.name, status.value), ("DateStyle", &b"ISO, MDY"[..]));
        let out = built(|out| ready_for_query(out, TransactionStatus::Failed));
        let status = TransactionStatus::read(body_of(&out, b'Z'));
        assert_eq!(status, Ok(TransactionStatus::Failed));
    }

    #[test]
    fn negotiation_round_trips_with_the_whole_version() {
        let names = ["_pq_.a", "_pq_.b"];
        let out = built(|out| negotiate_protocol_version(out, 2, names.into_iter()));
        let body = body_of(&out, b'v');
        assert!(body.starts_with(&196_610_u32.to_be_bytes()));
        let answer = NegotiateProtocolVersion::read(body).unwrap();
        assert_eq!(answer.minor, 2);
        assert!(answer.unsupported_extensions().eq(names));
    }

    #[test]
    fn result_round_trips() {
        let typed = [
            (oid::TEXT, -1),
            (oid::INT4, 4),
            (oid::INT8, 8),
            (oid::NUMERIC, -1),
            (oid::BYTEA, -1),
        ];
        let columns = typed.map(|(type_oid, _)| Column {
            name: "c",
            type_oid,
        });
        let out = built(|out| row_description(out, &columns));
        let description = RowDescription::read(body_of(&out, b'T')).unwrap();
        let read = description.iter().map(|c| (c.type_oid, c.type_bytes));
        assert!(read.eq(typed));

        let values = [Some(&b"1"[..]), None, Some(b"")];
        let out = built(|out| data_row(out, &values));
        assert!(
            DataRow::read(body_of(&out, b'D'))
                .unwrap()
                .iter()
                .eq(values)
        );

        let out = built(|out| command_complete(out, "SHOW"));
        assert_eq!(command_tag_of(body_of(&out, b'C')), Ok(&b"SHOW"[..]));
    }

    #[test]
    fn parameter_description_counts_its_types() {
        let out = built(|out| parameter_description(out, &[23, 25]));
        assert_eq!(body_of(&out, b't'), b"\0\x02\0\0\0\x17\0\0\0\x19");
    }

    #[test]
    fn messages_without_body_are_five_bytes() {
        assert_eq!(built(parse_complete), b"1\0\0\0\x04");
        assert_eq!(built(bind_complete), b"2\0\0\0\x04");
        assert_eq!(built(close_complete), b"3\0\0\0\x04");
        assert_eq!(built(no_data), b"n\0\0\0\x04");
        assert_eq!(built(empty_query_response), b"I\0\0\0\x04");
        assert_eq!(built(portal_suspended), b"s\0\0\0\x04");
    }
}
