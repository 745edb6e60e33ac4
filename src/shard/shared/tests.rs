//! Limits that span pools, across reloads, and who has to make room.

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

/// 3 shards, `ann` has servers that idle on shards 0 and 1, the longer one on shard 0, and `bob` none: the database
/// has no place left for his.
struct Crowded {
    common: Common,
    bob: Arc<CommonPool>,
    ann: [Local; 2],
}

impl Crowded {
    const NOW: u64 = 100;

    fn new() -> Crowded {
        let text = LIMITED.replace("max_db_connections = 3", "max_db_connections = 2");
        let common = common(3, config(&text, &["a"]));
        let [ann, bob] = ["ann", "bob"].map(|user| common.pool_of("a", user));
        let mut parts = [0, 1].map(|shard| {
            let (local, opened) = open(&ann, shard, 1, ms(0));
            assert_eq!(opened, 1);
            local
        });
        for part in &mut parts {
            assert_eq!(part.take_waiters(Moment::NEVER), ['c']);
        }
        for (part, number) in parts.iter_mut().zip(0..) {
            part.opened(number, ms(number.into()), &mut Vec::new());
        }
        let crowded = Crowded {
            common,
            bob,
            ann: parts,
        };
        (0..3).for_each(|shard| crowded.turns(shard, Crowded::NOW));
        crowded
    }

    fn turns(&self, shard: u16, millis: u64) {
        self.common
            .registry
            .shard(ShardId(shard))
            .beat
            .works(ms(millis));
    }

    fn victim(&self, millis: u64) -> Option<u16> {
        let victim = self.common.victim(&self.bob, ms(millis));
        victim.map(|victim| victim.shard.0)
    }
}

#[test]
fn shards_that_lack_a_place_at_once_ask_for_one_eviction() {
    let crowded = Crowded::new();
    assert_eq!(
        crowded
            .ann
            .iter()
            .map(|part| part.idle().len())
            .sum::<usize>(),
        2
    );
    assert_eq!(crowded.victim(100), Some(0));
    assert_eq!(crowded.victim(100), None, "another shard has asked");
    assert_eq!(
        crowded.victim(110),
        None,
        "nor does it ask again at the next tick"
    );
    let ann = crowded.common.pool_of("a", "ann");
    ann.has_been_asked();
    assert_eq!(crowded.victim(110), Some(0), "it had none after all");
    ann.evictions.fetch_add(1, Ordering::Relaxed);
    ann.has_been_asked();
    assert_eq!(crowded.victim(110), None, "it is being closed");
}

#[test]
fn shard_that_is_stalled_makes_room_only_if_no_other_can() {
    let mut crowded = Crowded::new();
    let late = 100 + EVICTION_SPAN.as_millis() as u64;
    assert_eq!(crowded.victim(100), Some(0));
    crowded.turns(1, late);
    assert_eq!(
        crowded.victim(late),
        Some(1),
        "shard 0 has not turned since"
    );
    assert!(crowded.ann[1].evict().is_some());
    assert_eq!(crowded.victim(2 * late), Some(0), "nobody else has any");
}
