//! What most tests need: a fresh database, and a way to it.

use std::net::SocketAddr;
use std::ops::Deref;
use std::process::Command;

use super::peer::Client;
use super::pooler::{Pooler, Topology};
use super::postgres::{Database, Postgres};
use super::wait::wait_until;

/// A fresh database and either PostgreSQL itself or a pooler before it. Clients must be dropped before the stage.
pub struct Stage {
    pooler: Option<Pooler>,
    pub database: Database,
    /// The name to connect to: the database's own, also as an entry of the pooler.
    pub entry: String,
}

impl Stage {
    /// Straight to PostgreSQL: proves that a test's expectations are PostgreSQL's own behaviour.
    pub fn direct() -> Stage {
        let database = Postgres::shared().database();
        Stage {
            pooler: None,
            entry: database.name.clone(),
            database,
        }
    }

    /// Through a pooler on the shared PostgreSQL.
    #[track_caller]
    pub fn pooled(topology: Topology) -> Stage {
        Stage::with_keys(topology, &[])
    }

    /// The same with further keys in the database entry.
    #[track_caller]
    pub fn with_keys(topology: Topology, keys: &[(&str, &str)]) -> Stage {
        Stage::on(Postgres::shared().database(), topology, keys)
    }

    /// The same; `amend` has the last word on how the pooler is started.
    #[track_caller]
    pub fn amended(
        topology: Topology,
        keys: &[(&str, &str)],
        amend: impl FnOnce(&mut Command),
    ) -> Stage {
        let database = Postgres::shared().database();
        let topology = topology.database(&database.name, &database, keys);
        Stage {
            pooler: Some(Pooler::start_with(&topology, amend)),
            entry: database.name.clone(),
            database,
        }
    }

    /// Through a pooler to this database.
    #[track_caller]
    pub fn on(database: Database, topology: Topology, keys: &[(&str, &str)]) -> Stage {
        let topology = topology.database(&database.name, &database, keys);
        let pooler = Some(Pooler::start(&topology));
        Stage {
            pooler,
            entry: database.name.clone(),
            database,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.pooler
            .as_ref()
            .map_or(self.database.postgres.address(), |pooler| pooler.address)
    }

    pub fn is_direct(&self) -> bool {
        self.pooler.is_none()
    }

    /// The pooler, also to stop it and watch it end.
    pub fn pooler_mut(&mut self) -> &mut Pooler {
        self.pooler.as_mut().expect("a stage with a pooler")
    }

    /// Waits until every shard has heard that all is paused.
    #[track_caller]
    pub fn wait_paused(&self) {
        wait_until("the pause has begun", || {
            self.console("SHOW STATE").table()[1]["value"] == "yes"
        });
        // Every shard acts by the order before when this one is answered.
        let order = self.console(&format!("ENABLE {}", self.entry));
        assert_eq!(order.complete, ["ENABLE"]);
    }

    /// A client that has logged in.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::login(self.address(), &self.entry)
    }

    /// With all clients gone: nothing is active, nothing hangs in a transaction, and the next client is served.
    #[track_caller]
    pub fn assert_no_leak(&self) {
        self.assert_quiet();
        assert_eq!(self.client().value("select 'alive'"), "alive");
    }

    /// With all clients gone: nothing is active, nothing hangs in a transaction.
    #[track_caller]
    pub fn assert_quiet(&self) {
        if let Some(pooler) = &self.pooler {
            let columns = [
                "cl_active",
                "cl_waiting",
                "cl_active_cancel_req",
                "cl_waiting_cancel_req",
                "sv_active",
                "sv_being_canceled",
            ];
            let idle = || {
                columns
                    .iter()
                    .all(|column| pooler.pools(&self.entry, column) == 0)
            };
            wait_until("SHOW POOLS has nothing active", idle);
        }
        self.database.wait_backends(0, "state <> 'idle'");
    }
}

impl Deref for Stage {
    type Target = Pooler;

    fn deref(&self) -> &Pooler {
        self.pooler.as_ref().expect("a stage with a pooler")
    }
}
