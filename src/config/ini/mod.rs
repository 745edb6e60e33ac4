//! PgBouncer's configuration file: from its text to TOML, so that there is one table of keys, one check and one
//! model for both.
//!
//! `syntax.rs` reads lines and connection strings, `source.rs` follows sections and `%include`, `number.rs` reads C's
//! numbers, `translate.rs` makes the TOML, `presets.rs` has the defaults that differ, `foreign.rs` the options that have no
//! key here, `tls_words.rs` the words for TLS that mean something else here.

mod foreign;
mod number;
mod presets;
mod source;
mod syntax;
mod tls_words;
mod translate;

pub(super) use foreign::has_no_effect;
pub(super) use presets::{keeps_its_value, preset};
pub(super) use source::{Include, Origin, Source};
pub(super) use translate::{Translation, reading, translate};
