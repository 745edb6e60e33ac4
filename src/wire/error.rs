//! What can be wrong with bytes that claim to be PostgreSQL's protocol.

/// Why bytes were refused. Where PgBouncer has a text for the case, the text is PgBouncer's.
///
/// The texts carry lengths and type bytes, never the content of a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field runs past the end of its message.
    #[error("{what} needs {wanted} bytes, {left} are left in the message")]
    Truncated {
        /// The field that ran short.
        what: &'static str,
        /// Bytes the field needs.
        wanted: usize,
        /// Bytes that were left.
        left: usize,
    },
    /// A string has no terminating NUL before the end of its message.
    #[error("{what} is not terminated")]
    Unterminated {
        /// The string.
        what: &'static str,
    },
    /// A message goes on after its last field.
    #[error("{left} surplus bytes after the end of {what}")]
    Surplus {
        /// The message.
        what: &'static str,
        /// Bytes after its last field.
        left: usize,
    },
    /// A length below zero that is not the -1 of a null value.
    #[error("{what} has the impossible length {length}")]
    NegativeLength {
        /// The field.
        what: &'static str,
        /// The length it claims.
        length: i32,
    },
    /// A byte that must be one of a few has another value.
    #[error("{what} cannot be {byte:#04x}")]
    UnknownByte {
        /// What the byte stands for.
        what: &'static str,
        /// The byte.
        byte: u8,
    },
    /// Text that must be UTF-8 is not.
    #[error("{what} is not valid UTF-8")]
    NotUtf8 {
        /// The text.
        what: &'static str,
    },
    /// A message that we would write does not fit the 31 bits of its length word.
    #[error("a message of {bytes} bytes is too long for the protocol")]
    MessageTooLong {
        /// Its length, length word included.
        bytes: usize,
    },
    /// The first packet is neither a start-up packet of protocol 3 nor a known request.
    #[error("bad packet header: '{hex}'")]
    BadPacketHeader {
        /// Its first bytes, at most eight, in hexadecimal.
        hex: String,
    },
    /// The length word of the first packet and the bytes handed over disagree.
    #[error("first packet of {actual} bytes claims {claimed}")]
    FirstPacketLength {
        /// The length word.
        claimed: usize,
        /// Bytes at hand.
        actual: usize,
    },
    /// Protocol 2, gone from PostgreSQL since version 14.
    #[error("old V2 protocol not supported")]
    OldProtocol,
    /// The name and value pairs of a start-up packet do not end exactly at its last byte.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    StartupLayout,
    /// A start-up packet without a user, or with an empty one.
    #[error("no username supplied")]
    NoUserName,
    /// The `options` start-up parameter holds something else than settings.
    #[error(
        "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed"
    )]
    UnsupportedOptions,
    /// A cancel key outside of the 8 to 260 bytes of process id and secret.
    #[error("a cancel key cannot have {bytes} bytes")]
    CancelKeyLength {
        /// Length of process id and secret together.
        bytes: usize,
    },
}
