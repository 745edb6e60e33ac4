//! The process: start, core placement, the control thread with its signals and reloads, metrics,
//! shutdown.
//! Everything that may block happens here.

mod control;
mod error;
mod identity;
mod listening;
mod local_time;
mod log;
mod metrics;
mod pidfile;
mod placement;
mod predecessor;
mod preflight;
mod resolve;
mod secrets;
mod socket_file;
mod sources;
mod start;
mod syslog;
mod systemd;
mod verifier;
mod watch;
mod wording;

pub use error::StartError;
pub use sources::{load, working_directory};
pub use start::{Options, run};
pub use verifier::{VerifierError, scram_user_line};
