//! One binary for all integration tests: the real program, a real PostgreSQL, and peers that misbehave on request.
//!
//! Every claim runs with one shard and with three; claims that PostgreSQL itself must satisfy run against it as well
//! (`direct`), which proves the test. Names are claims. Nothing sleeps: [`support::wait`] waits with a deadline.

mod balance;
mod cancel;
mod command_line;
mod console;
mod console_orders;
mod console_show;
mod copy;
mod fairness;
mod faults;
mod ini;
mod limits;
mod login;
mod modes;
mod moves;
mod parameters;
mod pool;
mod prepared;
mod query;
mod queue;
mod reload;
mod shutdown;
mod soak;
mod startup;
mod support;
mod torture;
