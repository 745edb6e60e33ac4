//! What a pooler may know to log in to PostgreSQL with.

use super::{ScramKeys, ServerLoginError, StretchParameters, Verifier};
use crate::base::Secret;

/// The keys of a stored SCRAM secret, and the secret that they belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearnedKeys {
    /// ClientKey and ServerKey.
    pub keys: ScramKeys,
    /// The stored secret's salt.
    pub salt: Vec<u8>,
    /// Its iteration count.
    pub iterations: u32,
}

impl LearnedKeys {
    /// Why they cannot serve a server that asks for these parameters, if so.
    pub(super) fn misfit(&self, wanted: &StretchParameters) -> Option<ServerLoginError> {
        if self.iterations != wanted.iterations {
            return Some(ServerLoginError::OtherIterations {
                server: wanted.iterations,
                known: self.iterations,
            });
        }
        (self.salt != wanted.salt).then_some(ServerLoginError::OtherSalt)
    }
}

/// What is known about a user when a server asks for proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerCredentials {
    /// Nothing.
    Nothing,
    /// The password itself: serves every method.
    Password(Secret),
    /// The 32 hexadecimal digits of an md5 secret: serves md5 only.
    Md5(Secret),
    /// The keys that a client's SCRAM login revealed: serve SCRAM, if the server stores the very
    /// same verifier (SCRAM pass-through).
    Keys(LearnedKeys),
    /// Only a stored SCRAM verifier, which proves a client but cannot log in anywhere.
    VerifierOnly,
}

impl ServerCredentials {
    /// What a stored secret is worth by itself, without a client having proved anything.
    pub fn from_verifier(verifier: Option<&Verifier>) -> ServerCredentials {
        match verifier {
            None => ServerCredentials::Nothing,
            Some(Verifier::Plain(password)) => ServerCredentials::Password(password.clone()),
            Some(Verifier::Md5(digits)) => ServerCredentials::Md5(digits.clone()),
            Some(Verifier::Scram(_)) => ServerCredentials::VerifierOnly,
        }
    }

    /// What there is, for an error text; never the secret.
    pub(super) const fn describe(&self) -> &'static str {
        match self {
            ServerCredentials::Nothing => "no secret",
            ServerCredentials::Password(_) => "only a password that cannot be sent",
            ServerCredentials::Md5(_) => "only an md5 secret",
            ServerCredentials::Keys(_) => "only a pair of SCRAM keys",
            ServerCredentials::VerifierOnly => "only a SCRAM verifier",
        }
    }
}
