//! What can be wrong with a line.

use super::ldap::LdapUrlFault;
use std::fmt;
use std::path::PathBuf;
use thiserror::Error;

/// Why a line means nothing, or less than it says.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RuleFault {
    /// Bytes that are not UTF-8.
    #[error("not valid UTF-8")]
    NotUtf8,
    /// A zero byte.
    #[error("contains a zero byte")]
    ZeroByte,
    /// An absurd length.
    #[error("line is too long")]
    TooLong,
    /// Quotes that are opened and not closed.
    #[error("quotes are not closed")]
    Unclosed,
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A list where one word belongs.
    #[error("{0} cannot be a list")]
    NoList(&'static str),
    /// The first word is no kind of connection.
    #[error("unknown connection type {0:?}")]
    Type(String),
    /// A form that stands for members of a role, which only a server knows.
    #[error("{0:?} asks for members of a role, which only the server knows")]
    RoleMembers(String),
    /// An address that is none.
    #[error("invalid address {0:?}")]
    Address(String),
    /// A host name in place of an address.
    #[error("host names are not supported as addresses ({0:?})")]
    HostName(String),
    /// A mask that is none, or of the other kind than its address.
    #[error("invalid mask {0:?}")]
    Mask(String),
    /// A method that does not exist, or not here.
    #[error("unknown or unsupported method {0:?}")]
    Method(String),
    /// A method that this kind of connection cannot have.
    #[error("method {method} works only with {only}")]
    MethodNeeds {
        /// The method.
        method: &'static str,
        /// The kind of connection.
        only: &'static str,
    },
    /// An option that is not `name=value`, or unknown to the method.
    #[error("unknown or misplaced option {0:?}")]
    Option(String),
    /// An option whose value is not allowed.
    #[error("invalid value of option {0}")]
    OptionValue(&'static str),
    /// Options that do not go together, or one that is needed and missing.
    #[error("{0}")]
    Options(&'static str),
    /// An `ldapurl` that cannot be used.
    #[error("ldapurl {0}")]
    LdapUrl(#[from] LdapUrlFault),
    /// A regular expression that does not compile.
    #[error("invalid regular expression {0:?}")]
    Pattern(String),
    /// `\1` without a group to take it from.
    #[error("\\1 needs a group in the regular expression")]
    NoGroup,
    /// An `@file` that cannot be read.
    #[error("cannot read {}: {why}", path.display())]
    Include {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// `@file` within `@file`, over and over.
    #[error("files include each other too deeply")]
    Depth,
    /// `map=` names a map that the ident file has not; the rule stays and lets nobody in.
    #[error("no map {0:?} in the ident file; this rule lets nobody in")]
    NoMap(String),
    /// A method that nobody can meet who comes this way; the rule stays.
    #[error("method {method} works only with {only}; this rule lets nobody in")]
    Misplaced {
        /// The method.
        method: &'static str,
        /// The kind of connection.
        only: &'static str,
    },
    /// Fields behind the last one that means anything.
    #[error("too many fields")]
    Surplus,
}

/// One fault with its place, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HbaWarning {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong.
    pub fault: RuleFault,
}

impl fmt::Display for HbaWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.fault)
    }
}
