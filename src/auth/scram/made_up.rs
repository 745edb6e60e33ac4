//! Verifiers that nobody stored: for passwords kept in plain text, and for users that do not
//! exist.
//!
//! Both kinds take their salt from the same function of (process secret, user) and the same
//! iteration count, so a client cannot tell one from the other, nor see a salt change between
//! two tries or two shards.

use super::ScramVerifier;
use crate::auth::KdfCache;
use crate::auth::kdf::hmac;

/// PostgreSQL's SCRAM_DEFAULT_SALT_LEN.
const SALT_BYTES: usize = 16;

/// The salt of a user who has no stored SCRAM verifier: stable for a name as long as
/// `process_secret` (random bytes, drawn at start) lives.
pub fn made_up_salt(process_secret: &[u8; 32], user: &str) -> [u8; SALT_BYTES] {
    let mut salt = [0; SALT_BYTES];
    let bytes = hmac(process_secret, &[b"scram salt\0", user.as_bytes()]);
    salt.iter_mut()
        .zip(bytes)
        .for_each(|(salt, byte)| *salt = byte);
    salt
}

/// The verifier of a plain-text `password`, stretched in one go unless `kdf` remembers it.
///
/// A client who logs in against it reveals keys that fit no server: they must not be passed
/// through.
pub fn made_up_verifier(
    process_secret: &[u8; 32],
    user: &str,
    password: &[u8],
    iterations: u32,
    kdf: &mut KdfCache,
) -> ScramVerifier {
    let salt = made_up_salt(process_secret, user);
    ScramVerifier::from_password(password, &salt, iterations, kdf)
}

/// A verifier that no password fits, stable per name: for the mock exchange with an unknown user.
pub fn mock_verifier(process_secret: &[u8; 32], user: &str, iterations: u32) -> ScramVerifier {
    ScramVerifier {
        iterations: iterations.max(1),
        salt: made_up_salt(process_secret, user).to_vec(),
        stored_key: hmac(process_secret, &[b"scram stored key\0", user.as_bytes()]),
        server_key: hmac(process_secret, &[b"scram server key\0", user.as_bytes()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::scram::message::testing::kdf;

    #[test]
    fn salts_are_stable_per_name_and_process() {
        let salt = made_up_salt(&[1; 32], "alice");
        assert_eq!(salt, made_up_salt(&[1; 32], "alice"));
        assert_ne!(salt, made_up_salt(&[1; 32], "bob"));
        assert_ne!(salt, made_up_salt(&[2; 32], "alice"));
    }

    #[test]
    fn mock_and_made_up_verifiers_show_the_client_the_same() {
        let mock = mock_verifier(&[1; 32], "alice", 10);
        let made_up = made_up_verifier(&[1; 32], "alice", b"pencil", 10, &mut kdf());
        assert_eq!(
            (&mock.salt, mock.iterations),
            (&made_up.salt, made_up.iterations)
        );
        assert_ne!(mock.stored_key, made_up.stored_key);
        assert_eq!(mock, mock_verifier(&[1; 32], "alice", 10));
    }
}
