//! The bounds-checked reader and the length-back-patching writer that all other wire code uses.
//!
//! Integers are big-endian, strings end with NUL, and a message is a tag, a length word that
//! counts itself but not the tag, and a body (PostgreSQL documentation, 54.1 and 54.7).

use super::WireError;
use bytes::BufMut;
use std::ffi::CStr;

/// Takes fields off the front of a message body. Every method either takes a whole field or
/// fails, naming it, and takes nothing.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `body`.
    pub const fn new(body: &'a [u8]) -> Reader<'a> {
        Reader { rest: body }
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, WireError> {
        self.array(what).map(|[byte]| byte)
    }

    /// A 16-bit number: also the protocol's Int16 counts, which PostgreSQL reads as unsigned.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, WireError> {
        self.array(what).map(u16::from_be_bytes)
    }

    /// A signed 16-bit number.
    pub fn i16(&mut self, what: &'static str) -> Result<i16, WireError> {
        self.array(what).map(i16::from_be_bytes)
    }

    /// A 32-bit number: object ids, process ids, request codes.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, WireError> {
        self.array(what).map(u32::from_be_bytes)
    }

    /// A signed 32-bit number.
    pub fn i32(&mut self, what: &'static str) -> Result<i32, WireError> {
        self.array(what).map(i32::from_be_bytes)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], WireError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(self.short(what, N))?;
        self.rest = rest;
        Ok(*head)
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], WireError> {
        let split = self.rest.split_at_checked(count);
        let (head, rest) = split.ok_or(self.short(what, count))?;
        self.rest = rest;
        Ok(head)
    }

    /// The bytes before the next NUL, which is taken, too.
    pub fn cstr(&mut self, what: &'static str) -> Result<&'a [u8], WireError> {
        let unterminated = WireError::Unterminated { what };
        let text = CStr::from_bytes_until_nul(self.rest).map_err(|_| unterminated)?;
        self.bytes(text.to_bytes_with_nul().len(), what)?;
        Ok(text.to_bytes())
    }

    /// The UTF-8 text before the next NUL, which is taken, too.
    pub fn text(&mut self, what: &'static str) -> Result<&'a str, WireError> {
        let mut ahead = self.clone();
        let bytes = ahead.cstr(what)?;
        let text = str::from_utf8(bytes).map_err(|_| WireError::NotUtf8 { what })?;
        *self = ahead;
        Ok(text)
    }

    /// A value with its length before it; `None` for length -1, the protocol's null.
    pub fn value(&mut self, what: &'static str) -> Result<Option<&'a [u8]>, WireError> {
        let mut ahead = self.clone();
        let value = match ahead.i32(what)? {
            -1 => None,
            length => {
                let count = usize::try_from(length);
                let count = count.map_err(|_| WireError::NegativeLength { what, length })?;
                Some(ahead.bytes(count, what)?)
            }
        };
        *self = ahead;
        Ok(value)
    }

    /// What has not been taken yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether everything has been taken.
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Fails with [`WireError::Surplus`] unless everything has been taken.
    pub const fn must_be_empty(&self, what: &'static str) -> Result<(), WireError> {
        let left = self.rest.len();
        if left == 0 {
            Ok(())
        } else {
            Err(WireError::Surplus { what, left })
        }
    }

    const fn short(&self, what: &'static str, wanted: usize) -> WireError {
        WireError::Truncated {
            what,
            wanted,
            left: self.rest.len(),
        }
    }
}

/// Appends one message: `tag`, the length word, and what `body` appends.
///
/// # Panics
/// If the body is longer than 2 GiB: builders write the pooler's own, short texts. What a peer's
/// bytes make long goes through the builders that return [`WireError::MessageTooLong`].
pub fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.put_u8(tag);
    untagged(out, body);
}

/// Appends one message that has no tag: the first packet of a connection.
///
/// # Panics
/// As [`message`].
pub(super) fn untagged(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.put_u32(0);
    body(out);
    let word = length_word(out.len() - start).unwrap_or_else(|error| panic!("{error}"));
    out[start..start + 4].copy_from_slice(&word);
}

/// The length word of a message of `bytes` bytes, the word included.
pub(super) fn length_word(bytes: usize) -> Result<[u8; 4], WireError> {
    let word = i32::try_from(bytes).map_err(|_| WireError::MessageTooLong { bytes })?;
    Ok(word.to_be_bytes())
}

/// Appends `text` and a NUL. `text` ends at its first NUL, if it has one: nobody who supplies a
/// name can smuggle a second field into the message.
pub fn put_cstr(out: &mut Vec<u8>, text: impl AsRef<[u8]>) {
    let text = text.as_ref();
    let until_nul = CStr::from_bytes_until_nul(text).map_or(text, CStr::to_bytes);
    out.put_slice(until_nul);
    out.put_u8(0);
}

/// Appends a value with its length before it; length -1 for `None`.
///
/// # Panics
/// As [`message`].
pub(super) fn put_value(out: &mut Vec<u8>, value: Option<&[u8]>) {
    let Some(value) = value else {
        return out.put_i32(-1);
    };
    let word = length_word(value.len()).unwrap_or_else(|error| panic!("{error}"));
    out.put_slice(&word);
    out.put_slice(value);
}

/// Appends a 16-bit count of things that follow.
///
/// # Panics
/// Above 65,535: all that the pooler counts is its own.
pub(super) fn put_count(out: &mut Vec<u8>, count: usize) {
    let fits = u16::try_from(count);
    out.put_u16(fits.unwrap_or_else(|_| panic!("{count} does not fit a 16-bit count")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_taken_in_order() {
        let bytes = b"\x01\x00\x02\x00\x00\x00\x03\xff\xff\xff\xfeab\0\xff\xffrest";
        let mut reader = Reader::new(bytes);
        assert_eq!(reader.u8("a"), Ok(1));
        assert_eq!(reader.u16("b"), Ok(2));
        assert_eq!(reader.u32("c"), Ok(3));
        assert_eq!(reader.i32("d"), Ok(-2));
        assert_eq!(reader.cstr("e"), Ok(&b"ab"[..]));
        assert_eq!(reader.i16("f"), Ok(-1));
        assert_eq!(reader.bytes(2, "g"), Ok(&b"re"[..]));
        assert_eq!(reader.rest(), b"st");
        let left = WireError::Surplus { what: "h", left: 2 };
        assert_eq!(reader.must_be_empty("h"), Err(left));
    }

    #[test]
    fn short_field_is_named_and_takes_nothing() {
        let mut reader = Reader::new(b"\0\0\0");
        let short = |wanted| WireError::Truncated {
            what: "x",
            wanted,
            left: 3,
        };
        assert_eq!(reader.u32("x"), Err(short(4)));
        assert_eq!(reader.bytes(usize::MAX, "x"), Err(short(usize::MAX)));
        assert_eq!(reader.rest().len(), 3);
    }

    #[test]
    fn string_without_nul_is_refused() {
        let unterminated = WireError::Unterminated { what: "x" };
        assert_eq!(Reader::new(b"abc").cstr("x"), Err(unterminated.clone()));
        assert_eq!(Reader::new(b"").cstr("x"), Err(unterminated));
    }

    #[test]
    fn text_must_be_utf8_and_takes_nothing_otherwise() {
        let mut reader = Reader::new(b"\xff\0");
        assert_eq!(reader.text("x"), Err(WireError::NotUtf8 { what: "x" }));
        assert_eq!(reader.rest().len(), 2);
    }

    #[test]
    fn value_lengths_that_lie_are_refused() {
        for length in [4, 5, i32::MAX, -2, i32::MIN] {
            let bytes = [&length.to_be_bytes()[..], b"abc"].concat();
            let mut reader = Reader::new(&bytes);
            assert!(reader.value("x").is_err(), "{length}");
            assert_eq!(reader.rest().len(), 7);
        }
    }

    #[test]
    fn value_round_trips_with_null_and_empty() {
        for value in [None, Some(&b""[..]), Some(&b"abc"[..])] {
            let mut out = Vec::new();
            put_value(&mut out, value);
            let mut reader = Reader::new(&out);
            assert_eq!(reader.value("x"), Ok(value));
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn message_length_counts_itself_and_not_the_tag() {
        let mut out = b"before".to_vec();
        message(&mut out, b'Q', |body| put_cstr(body, "ab"));
        assert_eq!(out, b"beforeQ\0\0\0\x07ab\0");
    }

    #[test]
    fn string_with_nul_inside_cannot_start_another_field() {
        let mut out = Vec::new();
        put_cstr(&mut out, "a\0user\0postgres");
        assert_eq!(out, b"a\0");
    }

    #[test]
    fn length_above_31_bits_is_refused() {
        let bytes = 1 << 31;
        let too_long = WireError::MessageTooLong { bytes };
        assert_eq!(length_word(bytes), Err(too_long));
        assert_eq!(length_word(bytes - 1), Ok([0x7f, 0xff, 0xff, 0xff]));
    }
}
