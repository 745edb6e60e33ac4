//! Both ends of a load test: [`nullserver`] stands where PostgreSQL would and answers at once, so that the pooler is what is
//! measured; [`swarm`] stands where the applications would and holds as many connections as the system lets it.

pub mod files;
pub mod nullserver;
pub mod poller;
pub mod swarm;
pub mod wire;
