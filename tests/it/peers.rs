//! Poolers that know each other: cancel requests find the one they are meant for.

use std::net::SocketAddr;

use crate::support::drop_in::free_port;
use crate::support::*;

/// Poolers that know each other, with ids 1, 2, .., all before one database.
fn peers(shards: usize, count: usize, database: &Database) -> Vec<Pooler> {
    let ports: Vec<_> = (0..count).map(|_| free_port()).collect();
    let all: Vec<_> = (1..).zip(ports).collect();
    let start = |(id, port): &(u16, u16)| {
        let mut topology = Topology::new(shards)
            .set("listen_port", i64::from(*port))
            .set("peer_id", i64::from(*id))
            .mode("session")
            .database(&database.name, database, &[]);
        for (other, port) in &all {
            topology = topology.peer(*other, SocketAddr::from(([127, 0, 0, 1], *port)));
        }
        Pooler::start(&topology)
    };
    all.iter().map(start).collect()
}

both_shards!(cancel_request_at_the_wrong_peer_finds_its_query, |shards| {
    let database = postgres::Postgres::shared().database();
    let poolers = peers(shards, 3, &database);
    for (own, pooler) in poolers.iter().enumerate() {
        for other in &poolers {
            let mut client = Client::login(pooler.address, &database.name);
            client.send(&wire::query("select pg_sleep(600)"));
            database.wait_backends(1, "query = 'select pg_sleep(600)' and state = 'active'");
            peer::cancel(other.address, &client.key);
            assert_eq!(client.reply().code(), "57014", "{own}");
            assert_eq!(client.value("select 'goes on'"), "goes on");
        }
    }
});

both_shards!(keys_are_laid_out_as_pgbouncers, |shards| {
    let database = postgres::Postgres::shared().database();
    let poolers = peers(shards, 2, &database);
    for (id, pooler) in (1_u8..).zip(&poolers) {
        for _ in 0..8 {
            let client = Client::login(pooler.address, &database.name);
            let [first, low, high, _] = client.key.0.to_be_bytes();
            assert_eq!((first & 0x80, low, high), (0, id, 0));
            assert_eq!(client.key.1[3] & 3, 3);
        }
    }
});

both_shards!(
    request_that_has_come_far_enough_or_is_made_up_is_dropped,
    |shards| {
        let database = postgres::Postgres::shared().database();
        let poolers = peers(shards, 2, &database);
        let mut client = Client::login(poolers[0].address, &database.name);
        client.send(&wire::query("select pg_sleep(600)"));
        database.wait_backends(1, "query = 'select pg_sleep(600)' and state = 'active'");
        let (pid, secret) = client.key.clone();
        let mut exhausted = secret.clone();
        exhausted[3] &= !3;
        let mut wrong = secret.clone();
        wrong[1] ^= 0x40;
        // Each of these returns once it has been dealt with.
        peer::cancel(poolers[1].address, &(pid, exhausted));
        peer::cancel(poolers[1].address, &(pid, wrong));
        peer::cancel(poolers[1].address, &(pid ^ 0x0004_0000, secret.clone()));
        assert_eq!(
            database.backends("query = 'select pg_sleep(600)' and state = 'active'"),
            1
        );
        peer::cancel(poolers[1].address, &(pid, secret));
        assert_eq!(client.reply().code(), "57014");
    }
);

both_shards!(
    two_peers_that_point_at_each_other_for_a_third_end_it,
    |shards| {
        let database = postgres::Postgres::shared().database();
        let (one, two) = (free_port(), free_port());
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let start = |id: i64, port: u16, other: u16| {
            let topology = Topology::new(shards)
                .set("listen_port", i64::from(port))
                .set("peer_id", id)
                .peer(9, at(other))
                .database(&database.name, &database, &[]);
            Pooler::start(&topology)
        };
        let (first, second) = (start(1, one, two), start(2, two, one));
        // Byte 1 is the peer's id; the last two bits are the hops.
        peer::cancel(first.address, &(0x0109_0000, vec![0, 0, 0, 3]));
        for pooler in [&first, &second] {
            assert_eq!(
                Client::login(pooler.address, &database.name).value("select 1"),
                "1"
            );
        }
    }
);
