//! Builders of client messages: what the pooler says to servers in its own name, and the client's
//! Parse and Bind under another statement name.

use super::Parse;
use crate::wire::cursor::{length_word, put_count, put_value};
use crate::wire::tag::frontend as tag;
use crate::wire::{WireError, message, put_cstr};
use bytes::BufMut;

/// Appends Query. `text` ends at its first NUL.
pub fn query(out: &mut Vec<u8>, text: impl AsRef<[u8]>) {
    message(out, tag::QUERY, |body| put_cstr(body, text));
}

/// Appends Parse for a text of our own. `param_types` are object ids; 0 leaves a type open.
pub fn parse(out: &mut Vec<u8>, name: &[u8], text: &[u8], param_types: &[u32]) {
    message(out, tag::PARSE, |body| {
        put_cstr(body, name);
        put_cstr(body, text);
        put_count(body, param_types.len());
        param_types.iter().for_each(|oid| body.put_u32(*oid));
    });
}

/// Appends a client's Parse under `name`. `name` ends at its first NUL.
///
/// # Errors
/// [`WireError::MessageTooLong`] if the new name makes it so; nothing is appended then.
pub fn parse_renamed(out: &mut Vec<u8>, name: &[u8], parse: &Parse<'_>) -> Result<(), WireError> {
    let mut names = Vec::with_capacity(name.len().saturating_add(1));
    put_cstr(&mut names, name);
    let tail_bytes = parse.query.len().saturating_add(1);
    let tail_bytes = tail_bytes.saturating_add(parse.param_types.len());
    head(out, tag::PARSE, &names, tail_bytes)?;
    out.put_slice(parse.query);
    out.put_u8(0);
    out.put_slice(parse.param_types);
    Ok(())
}

/// Appends the front of a client's Bind under the name `statement`: header and names. `rest_bytes`
/// bytes, the body after the client's own names ([`super::Bind::names_bytes`]), must follow.
///
/// # Errors
/// [`WireError::MessageTooLong`] if the new name makes it so; nothing is appended then.
pub fn bind_renamed_head(
    out: &mut Vec<u8>,
    portal: &[u8],
    statement: &[u8],
    rest_bytes: usize,
) -> Result<(), WireError> {
    let names_bytes = portal
        .len()
        .saturating_add(statement.len())
        .saturating_add(2);
    let bytes = rest_bytes.saturating_add(names_bytes).saturating_add(4);
    let word = length_word(bytes)?;
    out.put_u8(tag::BIND);
    out.put_slice(&word);
    put_cstr(out, portal);
    put_cstr(out, statement);
    Ok(())
}

/// Appends tag, length word and `names` of a body that goes on for `rest_bytes` bytes.
fn head(out: &mut Vec<u8>, tag: u8, names: &[u8], rest_bytes: usize) -> Result<(), WireError> {
    let bytes = rest_bytes.saturating_add(names.len()).saturating_add(4);
    let word = length_word(bytes)?;
    out.put_u8(tag);
    out.put_slice(&word);
    out.put_slice(names);
    Ok(())
}

/// Appends Bind of text values, `None` for null, that asks for text results.
///
/// # Panics
/// Above 65,535 values.
pub fn bind(out: &mut Vec<u8>, portal: &[u8], statement: &[u8], values: &[Option<&[u8]>]) {
    message(out, tag::BIND, |body| {
        put_cstr(body, portal);
        put_cstr(body, statement);
        put_count(body, 0); // Parameter formats: all text.
        put_count(body, values.len());
        values.iter().for_each(|value| put_value(body, *value));
        put_count(body, 0); // Result formats: all text.
    });
}

/// Appends Describe of a prepared statement.
pub fn describe_statement(out: &mut Vec<u8>, name: &[u8]) {
    statement(out, tag::DESCRIBE, name);
}

/// Appends Close of a prepared statement.
pub fn close_statement(out: &mut Vec<u8>, name: &[u8]) {
    statement(out, tag::CLOSE, name);
}

fn statement(out: &mut Vec<u8>, tag: u8, name: &[u8]) {
    message(out, tag, |body| {
        body.put_u8(b'S');
        put_cstr(body, name);
    });
}

/// Appends Execute; `rows_max` 0 for all rows.
pub fn execute(out: &mut Vec<u8>, portal: &[u8], rows_max: i32) {
    message(out, tag::EXECUTE, |body| {
        put_cstr(body, portal);
        body.put_i32(rows_max);
    });
}

/// Appends Sync.
pub fn sync(out: &mut Vec<u8>) {
    message(out, tag::SYNC, |_| {});
}

/// Appends Flush.
pub fn flush(out: &mut Vec<u8>) {
    message(out, tag::FLUSH, |_| {});
}

/// Appends Terminate.
pub fn terminate(out: &mut Vec<u8>) {
    message(out, tag::TERMINATE, |_| {});
}

/// Appends PasswordMessage: the password itself, or `md5` and a digest. `secret` ends at its
/// first NUL.
pub fn password(out: &mut Vec<u8>, secret: &[u8]) {
    message(out, tag::PASSWORD, |body| put_cstr(body, secret));
}

/// Appends SASLInitialResponse; `data` is the mechanism's first message, if it sends one along.
pub fn sasl_initial_response(out: &mut Vec<u8>, mechanism: &str, data: Option<&[u8]>) {
    message(out, tag::PASSWORD, |body| {
        put_cstr(body, mechanism);
        put_value(body, data);
    });
}

/// Appends SASLResponse.
pub fn sasl_response(out: &mut Vec<u8>, data: &[u8]) {
    message(out, tag::PASSWORD, |body| body.put_slice(data));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frontend::{
        Bind, Execute, SaslInitialResponse, Target, TargetKind, password_of, query_of,
    };
    use crate::wire::testing::{body_of, built};

    #[test]
    fn query_and_password_round_trip() {
        let out = built(|out| query(out, "select 1"));
        assert_eq!(query_of(body_of(&out, b'Q')), Ok(&b"select 1"[..]));
        let out = built(|out| password(out, b"secret"));
        assert_eq!(password_of(body_of(&out, b'p')), Ok(&b"secret"[..]));
    }

    #[test]
    fn parse_round_trips() {
        let out = built(|out| parse(out, b"s", b"select $1", &[23, 0]));
        let view = Parse::read(body_of(&out, b'P')).unwrap();
        assert_eq!((view.name, view.query), (&b"s"[..], &b"select $1"[..]));
        assert_eq!(view.param_types, [0, 2, 0, 0, 0, 23, 0, 0, 0, 0]);
    }

    #[test]
    fn renamed_parse_keeps_everything_but_its_name() {
        let original = built(|out| parse(out, b"theirs", b"select $1", &[23]));
        let view = Parse::read(body_of(&original, b'P')).unwrap();
        let out = built(|out| parse_renamed(out, b"ours_12", &view).unwrap());
        let renamed = Parse::read(body_of(&out, b'P')).unwrap();
        let name = &b"ours_12"[..];
        assert_eq!(renamed, Parse { name, ..view });
    }

    #[test]
    fn renamed_bind_keeps_its_portal_and_its_rest() {
        let original = built(|out| bind(out, b"p", b"theirs", &[Some(b"1"), None]));
        let view = Bind::read(body_of(&original, b'B')).unwrap();
        let mut out = Vec::new();
        bind_renamed_head(&mut out, view.portal, b"ours_12", view.rest.len()).unwrap();
        out.extend_from_slice(view.rest);
        let renamed = Bind::read(body_of(&out, b'B')).unwrap();
        let statement = &b"ours_12"[..];
        assert_eq!(renamed, Bind { statement, ..view });
    }

    #[test]
    fn rename_that_overflows_the_length_word_is_refused_and_writes_nothing() {
        for rest_bytes in [0x7fff_ffff, usize::MAX] {
            let mut out = Vec::new();
            let refused = bind_renamed_head(&mut out, b"", b"s", rest_bytes);
            assert!(matches!(refused, Err(WireError::MessageTooLong { .. })));
            assert_eq!(out, b"");
        }
        let rest_bytes = 0x7fff_ffff - 4 - b"\0s\0".len();
        let out = built(|out| bind_renamed_head(out, b"", b"s", rest_bytes).unwrap());
        assert_eq!(out, b"B\x7f\xff\xff\xff\0s\0");
    }

    #[test]
    fn bind_writes_values_as_text_and_null_as_minus_one() {
        let out = built(|out| bind(out, b"", b"s", &[Some(b"ab"), None]));
        let view = Bind::read(body_of(&out, b'B')).unwrap();
        assert_eq!(view.rest, b"\0\0\0\x02\0\0\0\x02ab\xff\xff\xff\xff\0\0");
    }

    #[test]
    fn statement_messages_round_trip() {
        let kind = TargetKind::Statement;
        let target = Ok(Target { kind, name: b"s" });
        let out = built(|out| describe_statement(out, b"s"));
        assert_eq!(Target::read(body_of(&out, b'D')), target);
        let out = built(|out| close_statement(out, b"s"));
        assert_eq!(Target::read(body_of(&out, b'C')), target);
    }

    #[test]
    fn execute_round_trips() {
        let out = built(|out| execute(out, b"p", 5));
        let view = Execute::read(body_of(&out, b'E')).unwrap();
        assert_eq!((view.portal, view.rows_max), (&b"p"[..], 5));
    }

    #[test]
    fn messages_without_body_are_five_bytes() {
        assert_eq!(built(sync), b"S\0\0\0\x04");
        assert_eq!(built(flush), b"H\0\0\0\x04");
        assert_eq!(built(terminate), b"X\0\0\0\x04");
    }

    #[test]
    fn sasl_messages_round_trip() {
        for data in [None, Some(&b""[..]), Some(&b"n,,n=,r=x"[..])] {
            let out = built(|out| sasl_initial_response(out, "SCRAM-SHA-256", data));
            let view = SaslInitialResponse::read(body_of(&out, b'p')).unwrap();
            let mechanism = "SCRAM-SHA-256";
            assert_eq!(view, SaslInitialResponse { mechanism, data });
        }
        let out = built(|out| sasl_response(out, b"c=biws"));
        assert_eq!(body_of(&out, b'p'), b"c=biws");
    }
}
