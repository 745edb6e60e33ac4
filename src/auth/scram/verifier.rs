//! What a server stores to check a SCRAM login: proves a client, but cannot log in anywhere.

use std::fmt;

use subtle::ConstantTimeEq;

use super::ScramKeys;
use super::message::{decode, decode_key, encode, parse_number};
use crate::auth::KdfCache;

/// A stored SCRAM-SHA-256 secret. `Display` writes PostgreSQL's form, `Debug` shows no key.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramVerifier {
    /// PBKDF2 iterations, at least 1.
    pub iterations: u32,
    /// The salt, as bytes.
    pub salt: Vec<u8>,
    /// SHA-256 of ClientKey.
    pub stored_key: [u8; 32],
    /// ServerKey.
    pub server_key: [u8; 32],
}

impl ScramVerifier {
    /// Reads `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey` (salt and keys in base64); `None`
    /// for anything else.
    pub fn parse(text: &[u8]) -> Option<ScramVerifier> {
        let rest = text.strip_prefix(b"SCRAM-SHA-256$")?;
        let (iterations, rest) = split_once(rest, b':')?;
        let (salt, rest) = split_once(rest, b'$')?;
        let (stored_key, server_key) = split_once(rest, b':')?;
        Some(ScramVerifier {
            iterations: parse_number(iterations).filter(|&count| count > 0)?,
            salt: decode(salt)?,
            stored_key: decode_key(stored_key)?,
            server_key: decode_key(server_key)?,
        })
    }

    /// The verifier of a known password, stretched in one go (milliseconds) unless `kdf` remembers.
    pub fn from_password(
        password: &[u8],
        salt: &[u8],
        iterations: u32,
        kdf: &mut KdfCache,
    ) -> ScramVerifier {
        let keys = kdf.keys(password, salt, iterations);
        ScramVerifier::from_keys(&keys, salt, iterations)
    }

    /// The verifier that belongs to `keys`.
    pub fn from_keys(keys: &ScramKeys, salt: &[u8], iterations: u32) -> ScramVerifier {
        ScramVerifier {
            iterations: iterations.max(1),
            salt: salt.to_vec(),
            stored_key: keys.stored_key(),
            server_key: *keys.server_key(),
        }
    }

    /// Whether `keys` are the ones this verifier was made from; constant time.
    pub fn matches(&self, keys: &ScramKeys) -> bool {
        let stored = self.stored_key.ct_eq(&keys.stored_key());
        (stored & self.server_key.ct_eq(keys.server_key())).into()
    }
}

impl fmt::Display for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (salt, stored) = (encode(&self.salt), encode(&self.stored_key));
        let server = encode(&self.server_key);
        write!(
            f,
            "SCRAM-SHA-256${}:{salt}${stored}:{server}",
            self.iterations
        )
    }
}

impl fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramVerifier(..)")
    }
}

fn split_once(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let mut halves = text.splitn(2, |&b| b == at);
    Some((halves.next()?, halves.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::scram::message::testing::{RFC_SALT, kdf};

    // Password "pencil" with RFC 7677's salt; keys computed with Python's hashlib.
    const TEXT: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn a_password_gives_postgresqls_text() {
        let salt = decode(RFC_SALT.as_bytes()).unwrap();
        let verifier = ScramVerifier::from_password(b"pencil", &salt, 4096, &mut kdf());
        assert_eq!(verifier.to_string(), TEXT);
    }

    #[test]
    fn text_survives_a_round_trip() {
        let verifier = ScramVerifier::parse(TEXT.as_bytes()).unwrap();
        assert_eq!(verifier.to_string(), TEXT);
        assert_eq!(format!("{verifier:?}"), "ScramVerifier(..)");
    }

    #[test]
    fn every_truncation_is_refused() {
        for end in 0..TEXT.len() {
            assert_eq!(ScramVerifier::parse(&TEXT.as_bytes()[..end]), None, "{end}");
        }
    }

    #[test]
    fn only_the_right_password_matches() {
        let verifier = ScramVerifier::parse(TEXT.as_bytes()).unwrap();
        assert!(verifier.matches(&kdf().keys(b"pencil", &verifier.salt, 4096)));
        assert!(!verifier.matches(&kdf().keys(b"pencil", &verifier.salt, 4095)));
        assert!(!verifier.matches(&kdf().keys(b"pencils", &verifier.salt, 4096)));
    }
}
