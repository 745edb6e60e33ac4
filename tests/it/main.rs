//! One binary for all integration tests: the real program, a real PostgreSQL, and peers that misbehave on request.
//!
//! Every claim runs with one shard and with three; claims that PostgreSQL itself must satisfy run against it as well
//! (`direct`), which proves the test. Names are claims. Nothing sleeps: [`support::wait`] waits with a deadline.

mod auth_query;
mod balance;
mod cancel;
mod command_line;
mod console;
mod console_orders;
mod console_show;
mod console_tables;
mod copy;
mod cve;
mod drop_in;
mod drop_in_file;
mod drop_in_login;
mod drop_in_pool;
mod drop_in_protocol;
mod fairness;
mod faults;
mod hba;
mod hosts;
mod ini;
mod ldap;
mod limits;
mod log_lines;
mod login;
mod metrics;
mod modes;
mod moves;
mod opening;
mod options;
mod pam;
mod parameters;
mod peers;
mod pool;
mod prepared;
mod query;
mod queue;
mod reload;
mod replication;
mod schema;
mod scripts;
mod shutdown;
mod soak;
mod spoken;
mod startup;
mod support;
mod suspend;
mod timeouts;
mod tls_clients;
mod tls_reload;
mod tls_servers;
mod tokio_postgres;
mod torture;
mod unused;
