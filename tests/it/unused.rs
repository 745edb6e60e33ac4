//! Pools that nobody uses go after a while, and come again.

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
