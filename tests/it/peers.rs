//! Poolers that know each other: cancel requests find the one they are meant for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::drop_in::{Brand, DropIn};
use crate::support::ports::free_port;
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

both_shards!(cancel_requests_for_a_peer_are_counted, |shards| {
    let released = Arc::new(AtomicBool::new(false));
    let until = released.clone();
    // Takes a request and does not hang up.
    let silent = FakeServer::start(move |mut peer| {
        peer.read_untagged();
        peer.stall_until(&until);
    });
    let topology = Topology::new(shards)
        .set("peer_id", 1)
        .set("default_pool_size", 2);
    let stage = Stage::pooled(topology.peer(2, silent.address));
    let counts = || {
        let table = stage.console("SHOW PEER_POOLS").table();
        let number = |column: &str| table[0][column].parse::<u32>().unwrap();
        [
            number("cl_active_cancel_req"),
            number("cl_waiting_cancel_req"),
            number("sv_active_cancel"),
        ]
    };
    assert_eq!(counts(), [0, 0, 0]);
    let mut requests = Vec::new();
    for _ in 0..3 {
        let mut client = Client::connect(stage.address());
        client.send(&wire::cancel_request(0x0102_0001, &[0, 0, 0, 3]));
        requests.push(client);
    }
    wait_until("two are on their way and one waits", || {
        counts() == [2, 1, 2]
    });
    released.store(true, Ordering::Release);
    requests.iter_mut().for_each(Client::expect_closed);
    wait_until("all have come home", || counts() == [0, 0, 0]);
});

/// A pooler with the id `own` among `all`.
fn peer_of(brand: Brand, database: Database, own: u16, all: &[(u16, u16)]) -> DropIn {
    let line = |(id, port): &(u16, u16)| format!("{id} = host=127.0.0.1 port={port}\n");
    let lines: String = all.iter().map(line).collect();
    let (_, port) = all[usize::from(own) - 1];
    let more = format!("listen_port = {port}\npeer_id = {own}\n[peers]\n{lines}");
    let mut pooler = DropIn::start(brand, database, &more);
    pooler.address.set_port(port);
    pooler
}

// Keys of PgBouncer before 1.21 are laid out otherwise.
both_shards!(cancel_requests_pass_between_pgbouncer_and_us, |shards| {
    if !reference::is_since((1, 21)) {
        return;
    }
    let all = [1, 2].map(|id| (id, free_port()));
    let brands = [Brand::PgBouncer, Brand::Ringbouncer(shards)];
    let poolers: Vec<_> = (1..)
        .zip(brands)
        .map(|(own, brand)| peer_of(brand, Postgres::shared().database(), own, &all))
        .collect();
    for (own, other) in [(0, 1), (1, 0), (0, 0), (1, 1)] {
        let mut client = poolers[own].client();
        client.send(&wire::query("select pg_sleep(600)"));
        let asleep = "query = 'select pg_sleep(600)' and state = 'active'";
        poolers[own].database.wait_backends(1, asleep);
        peer::cancel(poolers[other].address, &client.key);
        assert_eq!(client.reply().code(), "57014", "by {other} to {own}");
        assert_eq!(client.value("select 'goes on'"), "goes on");
    }
    let row = |(id, port): (u16, u16)| {
        let columns = [&*id.to_string(), "127.0.0.1", &*port.to_string(), "20"];
        columns.map(|column| Some(column.to_owned())).to_vec()
    };
    for pooler in &poolers {
        assert_eq!(pooler.console("SHOW PEERS").rows, all.map(row));
    }
});
