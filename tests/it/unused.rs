//! Pools that nobody uses go after a while, and come again.

use std::time::{Duration, Instant};

use crate::support::drop_in::*;
use crate::support::postgres::Postgres;
use crate::support::*;

/// Whether SHOW POOLS has a pool of this database.
fn has_pool(stage: &Stage, database: &str) -> bool {
    let pools = stage.console("SHOW POOLS").table();
    pools.iter().any(|row| row["database"] == database)
}

fn topology(shards: usize) -> Topology {
    Topology::new(shards)
        .pool_size(2)
        .set("server_idle_timeout", "200ms")
        .set("autodb_idle_timeout", "400ms")
}

both_shards!(
    pool_of_a_database_that_any_entry_answers_for_goes,
    |shards| {
        let any = Postgres::shared().database();
        let address = any.postgres.address();
        let stage = Stage::pooled(topology(shards).database_at("*", address, &[]));
        assert_eq!(stage.client().value("select 1"), "1");
        for _ in 0..2 {
            let mut client = Client::login(stage.address(), &any.name);
            assert_eq!(client.value("select current_database()"), any.name);
            assert!(has_pool(&stage, &any.name));
            let queries = stage.stats(&any.name, "total_query_count");
            drop(client);
            wait_until("its pool is gone", || !has_pool(&stage, &any.name));
            let databases = stage.console("SHOW DATABASES").table();
            assert!(
                databases.iter().all(|row| row["name"] != any.name),
                "{databases:?}"
            );
            // What was counted stays counted.
            assert_eq!(stage.stats(&any.name, "total_query_count"), queries);
        }
        // That of an entry of its own stays.
        stage.database.wait_backends(0, "true");
        assert!(has_pool(&stage, &stage.entry));
    }
);

drop_in!(
    database_of_any_name_is_listed_until_it_is_unused_for_long,
    |brand| {
        let [any, other] = [(); 2].map(|()| Postgres::shared().database());
        let address = any.postgres.address();
        let more = format!(
            "pool_mode = transaction\nserver_lifetime = 0\nautodb_idle_timeout = 2\n[databases]\n* = host={} port={}",
            address.ip(),
            address.port()
        );
        let drop_in = DropIn::start(brand, Postgres::shared().database(), &more);
        let is_listed = |database: &Database| {
            let databases = drop_in.console("SHOW DATABASES").table();
            databases.iter().any(|row| row["name"] == database.name)
        };
        let enter = |database: &Database| {
            let mut client = Client::login(drop_in.address, &database.name);
            assert_eq!(client.value("select current_database()"), database.name);
            client
        };
        assert!(!is_listed(&any));
        let idle = enter(&any);
        drop(enter(&other));
        assert!(is_listed(&any) && is_listed(&other));
        wait_until("the one that nobody uses is gone", || !is_listed(&other));
        assert!(is_listed(&any));
        // Its time begins when it is left; PgBouncer 1.18 was seen to take less.
        let since = Instant::now();
        drop(idle);
        wait_until("the other is gone", || !is_listed(&any));
        let is_early = since.elapsed() < Duration::from_secs(2);
        assert!(!is_early || matches!(brand, Brand::PgBouncer));
        enter(&any);
        assert!(is_listed(&any) && is_listed(&drop_in.database));
    }
);

both_shards!(pool_with_a_client_stays, |shards| {
    let any = Postgres::shared().database();
    let address = any.postgres.address();
    let stage = Stage::pooled(topology(shards).database_at("*", address, &[]));
    let mut idle = Client::login(stage.address(), &any.name);
    let other = Postgres::shared().database();
    Client::login(stage.address(), &other.name).value("select 1");
    wait_until("another pool is gone", || !has_pool(&stage, &other.name));
    assert!(has_pool(&stage, &any.name));
    assert_eq!(idle.value("select 'still here'"), "still here");
});

both_shards!(any_pool_goes_if_told_so, |shards| {
    let stage = Stage::pooled(topology(shards).set("pool_idle_timeout", "300ms"));
    for _ in 0..2 {
        assert_eq!(stage.client().value("select 1"), "1");
        wait_until("the pool is gone", || !has_pool(&stage, &stage.entry));
    }
});

both_shards!(limits_hold_while_pools_come_and_go, |shards| {
    let topology = topology(shards)
        .set("server_idle_timeout", "1ms")
        .set("server_lifetime", "0s")
        .set("pool_idle_timeout", "1ms");
    let stage = Stage::pooled(topology);
    let (address, entry) = (stage.address(), stage.entry.clone());
    let workers: Vec<_> = (0..6)
        .map(|_| {
            let entry = entry.clone();
            std::thread::spawn(move || {
                for _ in 0..40 {
                    let count = Client::login(address, &entry)
                        .value(&format!("select count(*) {CLIENT_BACKENDS}"));
                    assert!(count.parse::<u32>().unwrap() <= 2, "{count}");
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    stage.assert_no_leak();
});
