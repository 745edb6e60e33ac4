//! The two keys that PBKDF2's result is turned into.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::auth::kdf::hmac;

/// ClientKey and ServerKey (RFC 5802 section 3). Whoever has them can log in as the user wherever
/// the same verifier is stored: as precious as the password. Wiped on drop, never printed.
#[derive(Clone)]
pub struct ScramKeys {
    client_key: Zeroizing<[u8; 32]>,
    server_key: Zeroizing<[u8; 32]>,
}

impl ScramKeys {
    /// The keys themselves.
    pub fn new(client_key: [u8; 32], server_key: [u8; 32]) -> ScramKeys {
        ScramKeys {
            client_key: Zeroizing::new(client_key),
            server_key: Zeroizing::new(server_key),
        }
    }

    /// The keys that follow from SaltedPassword, PBKDF2's result.
    pub fn from_salted_password(salted: &[u8; 32]) -> ScramKeys {
        ScramKeys::new(
            hmac(salted, &[b"Client Key"]),
            hmac(salted, &[b"Server Key"]),
        )
    }

    /// ClientKey.
    pub fn client_key(&self) -> &[u8; 32] {
        &self.client_key
    }

    /// ServerKey.
    pub fn server_key(&self) -> &[u8; 32] {
        &self.server_key
    }

    /// StoredKey: SHA-256 of ClientKey.
    pub fn stored_key(&self) -> [u8; 32] {
        stored_key(&self.client_key)
    }
}

impl PartialEq for ScramKeys {
    fn eq(&self, other: &ScramKeys) -> bool {
        let client = self.client_key.ct_eq(&*other.client_key);
        (client & self.server_key.ct_eq(&*other.server_key)).into()
    }
}

impl Eq for ScramKeys {}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramKeys(..)")
    }
}

pub(super) fn stored_key(client_key: &[u8; 32]) -> [u8; 32] {
    Sha256::digest(client_key).into()
}

/// Exclusive or, by which a proof hides ClientKey behind ClientSignature and reveals it again.
pub(super) fn xor(a: &[u8; 32], b: &[u8; 32]) -> [u8; 32] {
    let mut sum = *a;
    sum.iter_mut().zip(b).for_each(|(sum, b)| *sum ^= b);
    sum
}
