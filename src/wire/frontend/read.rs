//! Borrowed views of client message bodies (without tag and length word). Names are bytes: they
//! are in the client's encoding. SASLResponse has no view: its whole body is the response.

use crate::wire::{Reader, WireError};

/// Parse: a statement to prepare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Name of the statement; empty for the unnamed one.
    pub name: &'a [u8],
    /// SQL text.
    pub query: &'a [u8],
    /// The message's tail as it stands: a 16-bit count, then as many object ids of parameter types.
    pub param_types: &'a [u8],
}

impl<'a> Parse<'a> {
    /// Views `body`. Fails unless it is exactly one Parse.
    pub fn read(body: &'a [u8]) -> Result<Parse<'a>, WireError> {
        let mut reader = Reader::new(body);
        let name = reader.cstr("Parse name")?;
        let query = reader.cstr("Parse query")?;
        let param_types = reader.rest();
        let count = reader.u16("Parse parameter count")?;
        reader.bytes(usize::from(count) * 4, "Parse parameter types")?;
        reader.must_be_empty("Parse")?;
        Ok(Parse {
            name,
            query,
            param_types,
        })
    }
}

/// The front of a Bind: which statement it needs. The rest, values included, is the server's to
/// check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind<'a> {
    /// Name of the portal to make; empty for the unnamed one.
    pub portal: &'a [u8],
    /// Name of the prepared statement; empty for the unnamed one.
    pub statement: &'a [u8],
    /// What `read` was given after both names.
    pub rest: &'a [u8],
}

impl<'a> Bind<'a> {
    /// Views `head`, the body or any first part of it that holds both names.
    ///
    /// # Errors
    /// [`WireError::Unterminated`]: the names run past `head`. If that is not the whole body, more
    /// of it may help.
    pub fn read(head: &'a [u8]) -> Result<Bind<'a>, WireError> {
        let mut reader = Reader::new(head);
        let portal = reader.cstr("Bind portal")?;
        let statement = reader.cstr("Bind statement")?;
        let rest = reader.rest();
        Ok(Bind {
            portal,
            statement,
            rest,
        })
    }

    /// Whether all values that it brings are text. False if that cannot be told from what is at hand.
    pub fn values_are_text(&self) -> bool {
        let mut reader = Reader::new(self.rest);
        let mut read = || {
            let count = reader.u16("Bind format count")?;
            reader.bytes(usize::from(count) * 2, "Bind formats")
        };
        read().is_ok_and(|codes| codes.iter().all(|byte| *byte == 0))
    }

    /// Whether all values of the result are asked for as text. Holds only if the body is at hand whole.
    pub fn results_are_text(&self) -> bool {
        let formats = |reader: &mut Reader<'_>| {
            let count = reader.u16("Bind format count")?;
            let codes = reader.bytes(usize::from(count) * 2, "Bind formats")?;
            Ok::<bool, WireError>(codes.iter().all(|byte| *byte == 0))
        };
        let read = || {
            let mut reader = Reader::new(self.rest);
            formats(&mut reader)?;
            let count = reader.u16("Bind value count")?;
            for _ in 0..count {
                reader.value("Bind value")?;
            }
            let are_text = formats(&mut reader)?;
            reader.must_be_empty("Bind")?;
            Ok::<bool, WireError>(are_text)
        };
        read().unwrap_or(false)
    }

    /// Bytes that both names take in the body, their NULs included.
    pub const fn names_bytes(&self) -> usize {
        // A slice is never longer than half of the address space, so this cannot overflow.
        self.portal.len() + self.statement.len() + 2
    }
}

/// What a Describe or Close names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Statement or portal.
    pub kind: TargetKind,
    /// Its name; empty for the unnamed one.
    pub name: &'a [u8],
}

/// The two kinds of things that a Describe or Close can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// A prepared statement, `S`.
    Statement,
    /// A portal, `P`.
    Portal,
}

impl<'a> Target<'a> {
    /// Views the body of a Describe or Close. Fails unless it is exactly one.
    pub fn read(body: &'a [u8]) -> Result<Target<'a>, WireError> {
        let mut reader = Reader::new(body);
        let kind = match reader.u8("kind of Describe or Close")? {
            b'S' => TargetKind::Statement,
            b'P' => TargetKind::Portal,
            byte => return Err(unknown_kind(byte)),
        };
        let name = reader.cstr("name in Describe or Close")?;
        reader.must_be_empty("Describe or Close")?;
        Ok(Target { kind, name })
    }
}

const fn unknown_kind(byte: u8) -> WireError {
    let what = "kind of Describe or Close";
    WireError::UnknownByte { what, byte }
}

/// Execute: a portal to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Execute<'a> {
    /// Name of the portal; empty for the unnamed one.
    pub portal: &'a [u8],
    /// Most rows wanted; 0 (and, in PostgreSQL, everything below) for all.
    pub rows_max: i32,
}

impl<'a> Execute<'a> {
    /// Views `body`. Fails unless it is exactly one Execute.
    pub fn read(body: &'a [u8]) -> Result<Execute<'a>, WireError> {
        let mut reader = Reader::new(body);
        let portal = reader.cstr("Execute portal")?;
        let rows_max = reader.i32("Execute row limit")?;
        reader.must_be_empty("Execute")?;
        Ok(Execute { portal, rows_max })
    }
}

/// The SQL text in the body of a Query. Fails unless it is exactly one.
pub fn query_of(body: &[u8]) -> Result<&[u8], WireError> {
    only_cstr(body, "Query")
}

/// The password in the body of a PasswordMessage: the text itself, or `md5` and a digest. Fails
/// unless it is exactly one; an empty password passes.
pub fn password_of(body: &[u8]) -> Result<&[u8], WireError> {
    only_cstr(body, "PasswordMessage")
}

fn only_cstr<'a>(body: &'a [u8], what: &'static str) -> Result<&'a [u8], WireError> {
    let mut reader = Reader::new(body);
    let text = reader.cstr(what)?;
    reader.must_be_empty(what)?;
    Ok(text)
}

/// SASLInitialResponse: the mechanism chosen and its first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaslInitialResponse<'a> {
    /// Name of the mechanism, for example `SCRAM-SHA-256`.
    pub mechanism: &'a str,
    /// The mechanism's first message, if the client sends one along.
    pub data: Option<&'a [u8]>,
}

impl<'a> SaslInitialResponse<'a> {
    /// Views `body`. Fails unless it is exactly one SASLInitialResponse (CVE-2026-6664: the length
    /// inside cannot be trusted).
    pub fn read(body: &'a [u8]) -> Result<SaslInitialResponse<'a>, WireError> {
        let mut reader = Reader::new(body);
        let mechanism = reader.text("SASL mechanism")?;
        let data = reader.value("SASL initial response")?;
        reader.must_be_empty("SASLInitialResponse")?;
        Ok(SaslInitialResponse { mechanism, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::only_the_whole_is_read;

    #[test]
    fn parse_is_read_whole_or_not_at_all() {
        let body = b"stmt\0select $1\0\0\x02\0\0\0\x17\0\0\0\x19";
        let parse = Parse::read(body).unwrap();
        assert_eq!((parse.name, parse.query), (&b"stmt"[..], &b"select $1"[..]));
        assert_eq!(parse.param_types, b"\0\x02\0\0\0\x17\0\0\0\x19");
        only_the_whole_is_read(body, |body| Parse::read(body).map(|_| ()));
    }

    #[test]
    fn parse_with_a_wrong_type_count_is_refused() {
        for count in [0_u16, 1, 3, 0x7fff, 0x8000, 0xffff] {
            let body = [b"s\0q\0", &count.to_be_bytes()[..], &[0; 8]].concat();
            assert!(Parse::read(&body).is_err(), "{count}");
        }
    }

    #[test]
    fn truncated_bind_is_refused_within_its_names_only() {
        let body = b"portal\0stmt\0\0\0";
        let bind = Bind::read(body).unwrap();
        assert_eq!(
            (bind.portal, bind.statement),
            (&b"portal"[..], &b"stmt"[..])
        );
        assert_eq!((bind.names_bytes(), bind.rest), (12, &b"\0\0"[..]));
        for cut in 0..body.len() {
            let part = Bind::read(&body[..cut]);
            let unterminated = matches!(part, Err(WireError::Unterminated { .. }));
            assert_eq!(unterminated, cut < bind.names_bytes(), "cut at {cut}");
        }
    }

    #[test]
    fn target_is_a_statement_or_a_portal_and_nothing_else() {
        for (byte, kind) in [(b'S', TargetKind::Statement), (b'P', TargetKind::Portal)] {
            let body = [byte, b'n', 0];
            assert_eq!(Target::read(&body), Ok(Target { kind, name: b"n" }));
            only_the_whole_is_read(&body, |body| Target::read(body).map(|_| ()));
        }
        assert_eq!(Target::read(b"s\0"), Err(unknown_kind(b's')));
    }

    #[test]
    fn execute_is_read_whole_or_not_at_all() {
        let body = b"p\0\0\0\0\x0a";
        let expected = Execute {
            portal: b"p",
            rows_max: 10,
        };
        assert_eq!(Execute::read(body), Ok(expected));
        only_the_whole_is_read(body, |body| Execute::read(body).map(|_| ()));
    }

    #[test]
    fn query_and_password_end_at_their_only_nul() {
        for read in [query_of, password_of] {
            assert_eq!(read(b"text\0"), Ok(&b"text"[..]));
            assert_eq!(read(b"\0"), Ok(&b""[..]));
            only_the_whole_is_read(b"text\0", |body| read(body).map(|_| ()));
            assert!(read(b"te\0xt\0").is_err());
        }
    }

    #[test]
    fn sasl_initial_response_may_have_no_data() {
        let read = SaslInitialResponse::read;
        assert_eq!(read(b"M\0\xff\xff\xff\xff").unwrap().data, None);
        assert_eq!(read(b"M\0\0\0\0\0").unwrap().data, Some(&b""[..]));
        let body = b"SCRAM-SHA-256\0\0\0\0\x03n,,";
        let response = read(body).unwrap();
        assert_eq!(response.mechanism, "SCRAM-SHA-256");
        assert_eq!(response.data, Some(&b"n,,"[..]));
        only_the_whole_is_read(body, |body| SaslInitialResponse::read(body).map(|_| ()));
    }

    #[test]
    fn sasl_initial_response_with_a_lying_length_is_refused() {
        for length in [0, 2, 4, -1, -2, i32::MAX, i32::MIN] {
            let body = [b"M\0", &length.to_be_bytes()[..], b"n,,"].concat();
            assert!(SaslInitialResponse::read(&body).is_err(), "{length}");
        }
    }
}
