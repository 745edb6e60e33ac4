//! Who somebody is, to us and to PostgreSQL: SCRAM-SHA-256, md5 and clear text, both sides of
//! each; HBA rules and ident maps; the table of users, and what servers said about others.
//!
//! Everything here is pure: no I/O, no clock, no source of randomness (salts and nonces are
//! arguments). Functions that take a peer's bytes are total. Key stretching is cut into slices
//! ([`Stretch`]), so that a login cannot stall a core.

mod answers;
mod credentials;
mod error;
mod failures;
pub mod hba;
mod kdf;
mod login;
mod md5;
mod password;
mod peer;
mod scram;
mod server_login;
mod userlist;
mod users;
mod verifier;

pub use answers::{Answers, Lookup, LookupKey, Turn};
pub use credentials::{LearnedKeys, ServerCredentials};
pub use error::{Judge, LoginError, Refusal, ScramError, ServerLoginError, Witness};
pub use failures::{AddressFailures, FailureLimit, LoginFailures};
pub use kdf::{KdfCache, STRETCH_SLICE_ITERATIONS, Stretch};
pub use login::{Accepted, Challenge, Login, LoginRequest, LoginStep, Method};
pub use md5::{md5_response, md5_response_matches, md5_secret};
pub use password::{CleartextCheck, check_cleartext};
pub use peer::PeerIdentity;
pub use scram::{
    ClientExchange, ITERATIONS_MAX, NONCE_BYTES_MAX, NONCE_RANDOM_BYTES, SALT_BYTES_MAX,
    SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramKeys, ScramVerifier, ServerExchange, ServerFinal,
    StretchParameters, made_up_salt, made_up_verifier, mock_verifier, nonce_text, prepare,
};
pub use server_login::{AuthRequest, ServerLogin, ServerLoginStep};
pub use userlist::{BrokenLine, DuplicateUser, LineFault, UserList, UserListError, user_line};
pub use users::{Found, Users};
pub use verifier::{PASSWORD_BYTES_MAX, Verifier};
