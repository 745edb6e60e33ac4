//! A user's stored secret, told apart by its form.

use super::ScramVerifier;
use crate::base::Secret;

/// Longest secret or password, in bytes (PgBouncer: MAX_PASSWORD, 65,531 with its zero byte).
pub const PASSWORD_BYTES_MAX: usize = 65_530;

/// A secret as it stands in a configuration, in userlist.txt or in `pg_authid.rolpassword`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verifier {
    /// The password itself; never empty.
    Plain(Secret),
    /// The 32 hexadecimal digits (lower case) after `md5`.
    Md5(Secret),
    /// `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`.
    Scram(ScramVerifier),
}

impl Verifier {
    /// Tells the kind of a secret by PostgreSQL's rules (`get_password_type`): whatever has not
    /// exactly the form of a hash is a plain-text password.
    ///
    /// `None` if there is nothing that could ever match: no bytes, or more than
    /// [`PASSWORD_BYTES_MAX`].
    pub fn parse(text: &[u8]) -> Option<Verifier> {
        if text.is_empty() || text.len() > PASSWORD_BYTES_MAX {
            return None;
        }
        if let Some(digits) = md5_digits(text) {
            return Some(Verifier::Md5(Secret::new(digits)));
        }
        match ScramVerifier::parse(text) {
            Some(verifier) => Some(Verifier::Scram(verifier)),
            None => Some(Verifier::Plain(Secret::new(text))),
        }
    }
}

/// The digits of `md5` + 32 of `0-9a-f`. PostgreSQL takes lower case only.
fn md5_digits(text: &[u8]) -> Option<&[u8]> {
    let digits = text.strip_prefix(b"md5")?;
    let hex = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    (digits.len() == 32 && digits.iter().all(hex)).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> &'static str {
        match Verifier::parse(text.as_bytes()) {
            None => "none",
            Some(Verifier::Plain(p)) => {
                assert_eq!(p.expose(), text.as_bytes());
                "plain"
            }
            Some(Verifier::Md5(_)) => "md5",
            Some(Verifier::Scram(_)) => "scram",
        }
    }

    #[test]
    fn secrets_are_told_apart_by_form() {
        let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let cases = [
            ("".into(), "none"),
            ("pencil".into(), "plain"),
            ("md5".into(), "plain"),
            ("md50123456789abcdef0123456789abcdef".into(), "md5"),
            ("md50123456789ABCDEF0123456789abcdef".into(), "plain"),
            ("md50123456789abcdef0123456789abcde".into(), "plain"),
            ("md50123456789abcdef0123456789abcdef0".into(), "plain"),
            ("MD50123456789abcdef0123456789abcdef".into(), "plain"),
            (format!("SCRAM-SHA-256$4096:c2FsdA==${key}:{key}"), "scram"),
            (format!("SCRAM-SHA-256$0:c2FsdA==${key}:{key}"), "plain"),
            (format!("SCRAM-SHA-256$:c2FsdA==${key}:{key}"), "plain"),
            (format!("SCRAM-SHA-256$-1:c2FsdA==${key}:{key}"), "plain"),
            (
                format!("SCRAM-SHA-256$99999999999:c2FsdA==${key}:{key}"),
                "plain",
            ),
            (format!("SCRAM-SHA-256$4096:c2Fsd${key}:{key}"), "plain"),
            (format!("SCRAM-SHA-256$4096:c2FsdA==${key}:AAAA"), "plain"),
            (format!("SCRAM-SHA-256$4096:c2FsdA==${key}"), "plain"),
            (format!("SCRAM-SHA-256$4096:c2FsdA==${key}:{key}:"), "plain"),
            (format!("SCRAM-SHA-1$4096:c2FsdA==${key}:{key}"), "plain"),
        ];
        for (text, want) in &cases {
            assert_eq!(kind(text), *want, "{text}");
        }
    }

    #[test]
    fn an_oversized_secret_never_matches() {
        assert!(Verifier::parse(&vec![b'x'; PASSWORD_BYTES_MAX]).is_some());
        assert!(Verifier::parse(&vec![b'x'; PASSWORD_BYTES_MAX + 1]).is_none());
    }
}
