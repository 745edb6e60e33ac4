//! Settings: one TOML file in, one immutable [`Config`] out, or every problem of the file at once.
//!
//! `keys.rs` holds the one table of keys. The types the rest of the crate sees, validation, the rows
//! of SHOW CONFIG, what RELOAD may change and `config/reference.toml` all come from it. Secrets are
//! never printed. Files that the configuration names (`auth_file`) are not read here.

mod check;
mod cross;
mod diff;
mod document;
mod error;
mod keys;
mod kind;
mod load;
mod model;
mod reference;
mod show;
mod units;
mod value;

pub use diff::{Change, DatabaseChanges, database_changes, diff};
pub use error::{ConfigError, Problem};
pub use keys::{Database, General, Key, Preset, Reload, Section, User, keys};
pub use kind::{Bare, Kind};
pub use model::{AuthType, Config, LogLevel, PoolMode};
pub use reference::reference_toml;
pub use show::config_rows;
pub use units::{format_duration, format_size, parse_duration, parse_size, seconds_as_g};
