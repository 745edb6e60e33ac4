//! What can go wrong in a login, each error naming the step that failed. None of them carries a
//! secret or a peer's bytes.

use thiserror::Error;

/// A SCRAM exchange that cannot go on, on either side.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ScramError {
    /// A message, named, that does not follow the grammar of RFC 5802 section 7.
    #[error("malformed SCRAM {0} message")]
    Malformed(&'static str),
    /// The client picked a mechanism that was not offered.
    #[error("client picked a SASL mechanism that was not offered")]
    Mechanism,
    /// The client picked a mechanism but sent no client-first message along.
    #[error("client sent no SASL initial response")]
    NoInitialResponse,
    /// The client wants channel binding (`p=`) that is not offered, or picked a mechanism that its first
    /// message does not fit.
    #[error("client asks for channel binding, which was not offered")]
    ChannelBinding,
    /// The client believes that no channel binding is offered, but it is: somebody in between has taken it
    /// away (RFC 5802, section 6).
    #[error("client was not told of channel binding, which was offered")]
    ChannelBindingHidden,
    /// The `c=` attribute does not repeat the GS2 header of the first message.
    #[error("channel-binding attribute does not match the first message")]
    ChannelBindingMismatch,
    /// The client wants to act as somebody else (`a=`).
    #[error("client asks for an authorization identity, which is not supported")]
    AuthorizationId,
    /// The peer demands an extension (`m=`); RFC 5802 section 5.1 says to refuse.
    #[error("peer demands a SCRAM extension that is not supported")]
    MandatoryExtension,
    /// A nonce that is empty, too long or not printable.
    #[error("nonce is empty, too long or not printable")]
    NonceBounds,
    /// A nonce that does not carry on the one sent.
    #[error("nonce does not match the one sent")]
    NonceMismatch,
    /// A salt that is empty, too long or not base64.
    #[error("salt is empty, too long or not base64")]
    SaltBounds,
    /// An iteration count of zero or above the limit.
    #[error("iteration count is out of bounds")]
    IterationBounds,
    /// The client's proof is wrong: also the end of every mock exchange.
    #[error("client proof does not match")]
    WrongProof,
    /// The server could not prove that it knows the secret.
    #[error("server signature does not match")]
    WrongServerSignature,
    /// The server ended the exchange with `e=`.
    #[error("server ended the SCRAM exchange with an error")]
    ServerRefused,
    /// A message that this state of the exchange does not expect.
    #[error("SCRAM message out of order")]
    OutOfOrder,
}

/// Why nobody could have logged in, or why this client did not: for the log, never for the client.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// No such user.
    #[error("no such user")]
    UnknownUser,
    /// The user has no secret (an empty one never matches).
    #[error("user has no secret")]
    NoSecret,
    /// SCRAM is asked for, but the user's secret is an md5 one.
    #[error("user has an md5 secret, which cannot serve SCRAM")]
    Md5Secret,
    /// The secret did not match.
    #[error("secret does not match")]
    WrongPassword,
    /// A witness knows the client by a name that may not be this user.
    #[error("name does not match")]
    WrongName,
}

/// What can vouch for a client without asking it anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// Its certificate.
    Certificate,
    /// The kernel, about the process at the other end of a Unix socket.
    UnixSocket,
}

/// Who is asked whether a password is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    /// An LDAP server.
    Ldap,
    /// The system's PAM modules.
    Pam,
}

/// A client's login that failed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum LoginError {
    /// Method `trust`, and the user does not exist.
    #[error("trust login: no such user")]
    Trust,
    /// A witness does not know the client as this user.
    #[error("{0:?} login: {1}")]
    Witness(Witness, Refusal),
    /// A judge said no.
    #[error("{0:?} login: refused")]
    Judge(Judge),
    /// No rule of the HBA file is for this client.
    #[error("no rule of the HBA file matches")]
    NoRule,
    /// A rule of the HBA file refuses it.
    #[error("line {0} of the HBA file refuses it")]
    Rejected(usize),
    /// A rule of the HBA file wants a certificate that the client has not shown.
    #[error("line {0} of the HBA file wants another certificate")]
    NoCertificate(usize),
    /// A clear-text or md5 login failed.
    #[error("password login: {0}")]
    Password(Refusal),
    /// The client sent a password of no bytes.
    #[error("password login: client sent an empty password")]
    EmptyPassword,
    /// A password message that is not one zero-terminated string.
    #[error("password login: malformed password message")]
    MalformedPassword,
    /// A SCRAM login ran to its end and failed.
    #[error("SCRAM login: {0}")]
    Sasl(Refusal),
    /// A SCRAM login broke off.
    #[error("SCRAM login broke off")]
    SaslBroken(#[source] ScramError),
    /// A message although none is awaited.
    #[error("password message out of order")]
    OutOfOrder,
    /// So many logins are under way that this one cannot be worked on.
    #[error("too many logins at the same time")]
    Overload,
}

impl LoginError {
    /// What the client is told, as PgBouncer puts it (FATAL, SQLSTATE 08P01): the same text
    /// whatever the reason, so that nobody can probe for user names.
    pub const fn client_text(&self) -> &'static str {
        match self {
            LoginError::Trust => "\"trust\" authentication failed",
            LoginError::Witness(Witness::Certificate, _) | LoginError::NoCertificate(_) => {
                "certificate authentication failed"
            }
            LoginError::Witness(Witness::UnixSocket, _) => "unix socket login rejected",
            LoginError::Judge(Judge::Ldap) => "LDAP authentication failed",
            LoginError::Judge(Judge::Pam) => "PAM authentication failed",
            LoginError::NoRule => "no authentication method is found",
            LoginError::Rejected(_) => "login rejected",
            LoginError::EmptyPassword => "empty password returned by client",
            LoginError::Password(_) | LoginError::MalformedPassword | LoginError::OutOfOrder => {
                "password authentication failed"
            }
            LoginError::Overload => "too many logins at the same time",
            LoginError::Sasl(_) | LoginError::SaslBroken(_) => "SASL authentication failed",
        }
    }
}

/// A login to PostgreSQL that cannot go on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ServerLoginError {
    /// The server asks for what the known secret cannot give.
    #[error("server asks for {asked} but {known} is known")]
    WrongSecret {
        /// What the server asks for.
        asked: &'static str,
        /// What there is.
        known: &'static str,
    },
    /// The keys that the client's login revealed belong to another salt than the server's secret.
    #[error(
        "SCRAM pass-through needs the very secret that the server stores, but the server's has another salt"
    )]
    OtherSalt,
    /// The keys that the client's login revealed belong to another iteration count than the server's
    /// secret.
    #[error(
        "SCRAM pass-through needs the very secret that the server stores, but the server's has {server} iterations instead of {known}"
    )]
    OtherIterations {
        /// The server's count.
        server: u32,
        /// Ours.
        known: u32,
    },
    /// The server offers SASL, but not SCRAM-SHA-256.
    #[error("server offers no SASL mechanism that is supported")]
    Mechanism,
    /// An authentication request of another kind (GSSAPI, SSPI, ..), by its code.
    #[error("server asks for unsupported authentication method {0}")]
    Unsupported(i32),
    /// An authentication request cut short or too long.
    #[error("malformed authentication request from the server")]
    Malformed,
    /// An authentication request that does not fit what went before.
    #[error("authentication request out of order")]
    OutOfOrder,
    /// AuthenticationOk although the server has not proved that it knows the secret.
    #[error("server ended SCRAM before it proved its identity")]
    Unproven,
    /// The SCRAM exchange broke off.
    #[error("SCRAM exchange with the server broke off")]
    Scram(#[from] ScramError),
}
