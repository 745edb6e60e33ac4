//! SASLprep (RFC 4013) with PostgreSQL's way out.

use std::borrow::Cow;

/// A password as PBKDF2 takes it: normalized by SASLprep, or the bytes as they are if they are
/// not UTF-8, hold a prohibited character, or nothing would be left of them (PostgreSQL:
/// `pg_saslprep` and its callers).
pub fn prepare(password: &[u8]) -> Cow<'_, [u8]> {
    let Ok(text) = std::str::from_utf8(password) else {
        return Cow::Borrowed(password);
    };
    match stringprep::saslprep(text) {
        Ok(Cow::Owned(text)) if !text.is_empty() => Cow::Owned(text.into_bytes()),
        _ => Cow::Borrowed(password),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_normalized_or_left_alone() {
        let cases: [(&[u8], &[u8]); 12] = [
            (b"pencil", b"pencil"),
            (b"", b""),
            ("I\u{ad}X".as_bytes(), b"IX"),
            ("\u{aa}".as_bytes(), b"a"),
            ("\u{2168}".as_bytes(), b"IX"),
            ("a\u{a0}b".as_bytes(), b"a b"),
            ("e\u{301}".as_bytes(), "\u{e9}".as_bytes()),
            (b"a\x07b", b"a\x07b"),
            (
                "\u{e9}\u{7}\u{2168}".as_bytes(),
                "\u{e9}\u{7}\u{2168}".as_bytes(),
            ),
            ("\u{627}1".as_bytes(), "\u{627}1".as_bytes()),
            (b"\xff\xfe", b"\xff\xfe"),
            ("\u{ad}".as_bytes(), "\u{ad}".as_bytes()),
        ];
        for (input, want) in cases {
            assert_eq!(&*prepare(input), want, "{input:?}");
        }
    }
}
