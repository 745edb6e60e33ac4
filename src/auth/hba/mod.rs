//! PostgreSQL's `pg_hba.conf` and `pg_ident.conf`: who has to prove what, decided by the first rule
//! that matches (PostgreSQL manual, 20.1 and 20.2).
//!
//! As in PgBouncer, a line that cannot be understood is skipped with a warning, and what no rule
//! matches is refused. Reading `@file` is the caller's: a function that gives a file's bytes.

mod address;
mod fault;
mod ident;
mod ldap;
mod network;
mod options;
mod pattern;
mod rule;
mod rules;
#[cfg(test)]
mod table;
mod token;

pub use address::{Interface, MachineAddresses};
pub use fault::{HbaWarning, RuleFault};
pub use ident::{IdentMap, IdentMaps};
pub use ldap::{LdapBind, LdapScheme, LdapSettings, LdapUrlFault, SearchBind, SearchScope};
pub use options::{CertificateDemand, HbaMethod};
pub use rule::{Arrival, Rule, Transport};
pub use rules::{Hba, HbaSources};
