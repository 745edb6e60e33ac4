//! Limits that span pools, across reloads.

use super::*;
use crate::pool::{Acquired, Action, LocalPool};
use std::path::Path;
use std::sync::mpsc::channel;

/// Three of everything, and pools of two.
const LIMITED: &str = "[ringbouncer]\ndefault_pool_size = 2\nmax_db_connections = 3\nmax_db_client_connections = 3\n\
     max_user_connections = 3\nmax_user_client_connections = 3\n";

fn config(text: &str, databases: &[&str]) -> Config {
    let entry = |name: &&str| format!("[databases.{name}]\nhost = \"127.0.0.1\"\n");
    let entries: String = databases.iter().map(entry).collect();
    Config::parse(
        &format!("{text}{entries}[users.ann]\npassword = \"x\"\n"),
        Path::new("test.toml"),
    )
    .expect("a valid configuration")
}

fn snapshot(config: Config) -> Snapshot {
    Snapshot {
        config: Arc::new(config),
        users: Arc::default(),
        tls: Arc::default(),
        hba: Arc::default(),
        ldap: None,
        remarks: Vec::new().into(),
    }
}

fn common(shards: usize, config: Config) -> Common {
    let (control, _) = channel();
    Common::new(shards, snapshot(config), [0; 32], control, ms(0)).expect("mailboxes")
}

impl Common {
    fn reload(&self, config: Config) {
        self.snapshot.store(Arc::new(snapshot(config)));
        self.set_limits();
    }

    fn pool_of(&self, database: &str, user: &str) -> Arc<CommonPool> {
        let key = PoolKey {
            database: database.into(),
            user: user.into(),
        };
        self.pool(&key, 2, &config(LIMITED, &["a", "b"]))
    }

    fn client_limits(&self, database: &str, user: &str) -> [u32; 2] {
        let knows = config(LIMITED, &["a", "b"]);
        let permits = self.client_permits(&database.into(), user, &knows);
        permits.map(|permits| permits.limit())
    }
}

type Local = LocalPool<u32, char>;

fn ms(millis: u64) -> Moment {
    Moment::from_nanos(millis * 1_000_000)
}

/// Opens as many servers as the limits allow, for `clients` clients at `shard`; returns that shard's part as well.
fn open(pool: &CommonPool, shard: u16, clients: usize, now: Moment) -> (Local, usize) {
    let mut local = Local::new(pool.shared.clone(), ShardId(shard));
    let mut out = Vec::new();
    for _ in 0..clients {
        assert!(matches!(
            local.acquire('c', now, &mut out),
            Acquired::Waits(_)
        ));
    }
    let is_open = |action: &&Action<_, _>| matches!(action, Action::Open);
    let opened = out.iter().filter(is_open).count();
    (local, opened)
}

#[test]
fn limits_of_a_database_that_is_gone_stay_until_every_shard_has_heard_of_it() {
    // 1 shard, two pools of 2 in a database that may have 3
    let common = common(1, config(LIMITED, &["a", "b"]));
    let [ann, bob] = ["ann", "bob"].map(|user| common.pool_of("a", user));
    let (_ann, opened) = open(&ann, 0, 5, ms(1));
    assert_eq!(opened, 2);
    assert_eq!(common.client_limits("a", "ann"), [3, 3]);
    common.reload(config(LIMITED, &["b"]));
    let (_bob, opened) = open(&bob, 0, 5, ms(2));
    assert_eq!(opened, 1, "of 3 for the whole database");
    assert_eq!(common.client_limits("a", "ann"), [3, 3]);
}

#[test]
fn pool_of_a_database_that_is_gone_has_the_limits_that_its_shard_knows() {
    // 1 shard that has not heard of it
    let common = common(1, config(LIMITED, &["b"]));
    let pools = ["ann", "bob"].map(|user| common.pool_of("a", user));
    let opened = pools.map(|pool| open(&pool, 0, 5, ms(1)).1);
    assert_eq!(opened, [2, 1]);
    assert_eq!(common.client_limits("a", "ann"), [3, 3]);
}

#[test]
fn reload_puts_the_limits_of_those_that_stay_in_force() {
    let common = common(1, config(LIMITED, &["a"]));
    let pool = common.pool_of("a", "ann");
    assert_eq!(common.client_limits("a", "ann"), [3, 3]);
    let lower = LIMITED.replace("= 3", "= 1");
    common.reload(config(&lower, &["a"]));
    assert_eq!(open(&pool, 0, 5, ms(1)).1, 1);
    assert_eq!(common.client_limits("a", "ann"), [1, 1]);
    let none = LIMITED.replace("= 3", "= 0");
    common.reload(config(&none, &["a"]));
    assert_eq!(common.client_limits("a", "ann"), [PERMITS_MAX; 2]);
}
