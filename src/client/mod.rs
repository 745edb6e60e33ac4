//! A client that dialled us: its start-up packet, its login, and what others see of it.

mod entry;
mod farewell;
mod handshake;
mod intake;
mod login;

pub use entry::{ClientEntry, ClientState, Signal, Suspension, Who};
pub use farewell::Farewell;
pub use handshake::{Encryption, Greeted, Greeting, first_packet, greet, reject_protocol};
pub use intake::{Intake, IntakeError};
pub use login::{Account, AuthenticateError, Outside, authenticate};
