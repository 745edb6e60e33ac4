//! What the tests stand on: a throw-away PostgreSQL, the real pooler, a client and a server that speak the
//! protocol byte by byte, and waiting with a deadline.

pub mod canary;
pub mod certs;
pub mod driver;
pub mod drop_in;
pub mod held;
pub mod mounts;
pub mod peer;
pub mod pgbouncer;
pub mod pooler;
pub mod ports;
pub mod postgres;
pub mod psql;
pub mod random;
pub mod reference;
pub mod scram;
pub mod scrape;
pub mod second;
pub mod sockets;
pub mod stage;
pub mod wait;
pub mod wire;

pub use peer::{Client, FakeServer};
pub use pgbouncer::Subject;
pub use pooler::{Pooler, Topology, of_shards};
pub use postgres::{CLIENT_BACKENDS, Database, Postgres};
pub use psql::psql;
pub use stage::Stage;
pub use wait::wait_until;

/// One claim, checked with one shard and with three: `both_shards!(claim, |shards| { .. })`.
macro_rules! both_shards {
    ($name:ident, $claim:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            fn shards_1() {
                let claim: fn(usize) = $claim;
                claim(1);
            }

            #[test]
            fn shards_3() {
                let claim: fn(usize) = $claim;
                claim(3);
            }
        }
    };
}

/// One claim, checked against PostgreSQL itself (which proves the test) and through the pooler with one shard
/// and with three, pool of four, transaction mode: `everywhere!(claim, |stage| { .. })`.
macro_rules! everywhere {
    ($name:ident, $claim:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            fn direct() {
                let claim: fn(&Stage) = $claim;
                claim(&Stage::direct());
            }

            #[test]
            fn shards_1() {
                let claim: fn(&Stage) = $claim;
                claim(&Stage::pooled(Topology::new(1)));
            }

            #[test]
            fn shards_3() {
                let claim: fn(&Stage) = $claim;
                claim(&Stage::pooled(Topology::new(3)));
            }
        }
    };
}

pub(crate) use pgbouncer::compared;
pub(crate) use {both_shards, everywhere};
