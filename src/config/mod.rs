//! Settings: one file in, TOML or PgBouncer's, one immutable [`Config`] out, or every problem of the file at once.
//!
//! `keys.rs` holds the one table of keys. The types the rest of the crate sees, validation, the rows
//! of SHOW CONFIG, what RELOAD may change and `config/reference.toml` all come from it. Secrets are
//! never printed. Files that the configuration names (`auth_file`) are not read here.

mod check;
mod convert;
mod cross;
mod dialect;
mod diff;
mod document;
mod error;
mod ini;
mod keys;
mod kind;
mod load;
mod model;
mod reference;
mod set;
mod show;
mod tls;
mod units;
mod value;

pub use convert::{Converted, convert};
pub use dialect::Dialect;
pub use diff::{Change, DatabaseChanges, database_changes, diff};
pub use error::{ConfigError, Problem};
pub use keys::{Database, General, Key, Peer, Preset, Reload, Section, User, keys};
pub use kind::{Bare, Kind};
pub use model::{
    AuthType, CONSOLE, Config, LoadBalanceHosts, LogLevel, PoolMode, SslMode, SyslogFacility,
    Timeouts, UserLookup, is_console, socket_path,
};
pub use reference::reference_toml;
pub use show::config_rows;
pub use tls::{
    Curve, Protocols, Suite, parse_ciphers, parse_curves, parse_protocols, parse_tls13_ciphers,
    suite_named,
};
pub use units::{format_duration, format_size, parse_duration, parse_size, seconds_as_g};
