//! Which shard serves whom: accepted clients, those of small pools, those of a loaded shard; and shards that stall.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::held::HeldShard;
use crate::support::*;

/// Clients of each shard; the console that asks is counted, too.
fn counts(console: &mut Client) -> Vec<u64> {
    of_shards(console, "clients")
}

fn console_of(stage: &Stage) -> Client {
    Client::login(stage.address(), "ringbouncer")
}

fn spread(counts: &[u64]) -> u64 {
    counts.iter().max().unwrap() - counts.iter().min().unwrap()
}

/// Whether the machine has stalled a shard: one whose turn takes longer than 20 ms is sent nobody, those who come later make
/// up for it.
fn has_stalled(console: &mut Client) -> bool {
    // A turn is counted when it ends: every shard answers the second question in a later turn than the first.
    for _ in 0..2 {
        console.query("SHOW CLIENTS");
    }
    let longest = of_shards(console, "longest_turn_us");
    longest.iter().any(|turn_us| *turn_us > 20_000)
}

fn accepted_clients_are_spread(connect: impl Fn(&Stage) -> Client) {
    // 3 shards, 90 clients; more if the machine has stalled a shard
    let stage = Stage::pooled(Topology::new(3));
    let mut console = console_of(&stage);
    let mut clients = Vec::new();
    loop {
        clients.extend((0..90).map(|_| connect(&stage)));
        let counts = counts(&mut console);
        if spread(&counts) <= 4 {
            break;
        }
        assert!(
            has_stalled(&mut console) && clients.len() < 450,
            "{counts:?}"
        );
    }
    for client in &mut clients {
        assert_eq!(client.value("select 1"), "1");
    }
}

#[test]
fn clients_over_tcp_are_spread_evenly_over_shards() {
    accepted_clients_are_spread(Stage::client);
}

#[test]
fn clients_over_a_unix_socket_are_spread_evenly_over_shards() {
    accepted_clients_are_spread(|stage| {
        let mut client = Client::connect_unix(stage.unix.as_ref().unwrap());
        let params = [("user", "postgres"), ("database", stage.entry.as_str())];
        assert_eq!(client.start(wire::PROTOCOL_3_0, &params).status, b'I');
        client
    });
}

/// 3 shards, of which the last does not turn; who comes over the Unix socket, where the first shard listens, is
/// served by the other two.
#[test]
fn no_client_is_sent_to_a_shard_that_does_not_turn() {
    let mut stage = Stage::pooled(Topology::new(3));
    let path = stage.unix.clone().unwrap();
    let entry = stage.entry.clone();
    let served = || {
        let mut client = Client::connect_unix(&path);
        let params = [("user", "postgres"), ("database", entry.as_str())];
        assert_eq!(client.start(wire::PROTOCOL_3_0, &params).status, b'I');
        assert_eq!(client.value("select 'served'"), "served");
        client
    };
    let held = HeldShard::stop(stage.pooler_mut(), 2);
    // A shard may sleep for as long as this.
    wait::pace_until(Instant::now() + Duration::from_millis(1100));
    let clients: Vec<_> = (0..40).map(|_| served()).collect();
    drop(held);
    let mut console = console_of(&stage);
    wait_until(
        "the third shard has turned, and is not avoided any more",
        || {
            drop(served());
            of_shards(&mut console, "clients_in")[2] > 0
        },
    );
    drop(clients);
    stage.assert_no_leak();
}

/// 3 shards, of which the last does not turn; who comes over TCP is served although the kernel puts every third at the
/// socket of that shard.
#[test]
fn clients_at_the_socket_of_a_shard_that_does_not_turn_are_let_in_elsewhere() {
    let mut stage = Stage::pooled(Topology::new(3));
    let address = stage.address();
    let entry = stage.entry.clone();
    let held = HeldShard::stop(stage.pooler_mut(), 2);
    // A shard may sleep for as long as this.
    wait::pace_until(Instant::now() + Duration::from_millis(1100));
    thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| assert_eq!(Client::login(address, &entry).value("select 1"), "1"));
        }
    });
    drop(held);
    stage.assert_no_leak();
}

/// 33 shards, 200 clients that do not wait for each other: those under way count as well.
#[test]
fn a_burst_of_clients_is_spread_over_33_shards() {
    let stage = Stage::pooled(Topology::new(33));
    let mut console = console_of(&stage);
    let clients: Vec<_> = (0..200).map(|_| Client::connect(stage.address())).collect();
    wait_until("all are in", || {
        counts(&mut console).iter().sum::<u64>() == 201
    });
    let counts = counts(&mut console);
    let is_even = counts.iter().max() <= Some(&12);
    assert!(is_even || has_stalled(&mut console), "{counts:?}");
    drop(clients);
}

/// 33 shards, pool of 20: its 60 clients live on 5 shards, evenly, and little travels.
#[test]
fn clients_of_a_small_pool_live_on_its_home_shards() {
    let stage = Stage::pooled(Topology::new(33).pool_size(20).set("pool_shards", 0));
    let mut console = console_of(&stage);
    let mut clients: Vec<_> = (0..60).map(|_| stage.client()).collect();
    let counts = counts(&mut console);
    let mut busy: Vec<_> = counts.iter().copied().filter(|count| *count > 1).collect();
    busy.sort_unstable();
    let is_even = busy.len() == 5 && spread(&busy) <= 5;
    assert!(is_even || has_stalled(&mut console), "{counts:?}");
    for round in 0..20 {
        for client in &mut clients {
            assert_eq!(client.value(&format!("select {round}")), round.to_string());
        }
    }
    // One client after the other, each on its own shard: at first one server goes about, then every home has one.
    let handed_over: u64 = of_shards(&mut console, "handoffs_in").iter().sum();
    assert!(
        handed_over <= 1200 / 10,
        "{handed_over} of 1200 transactions"
    );
    let rows = console.query("SHOW CLIENTS").table();
    let here = rows.iter().filter(|row| row["database"] == stage.entry);
    assert_eq!(here.count(), 60);
}

/// 3 shards, pool of 4: a client that sends its password, or its query, right behind the start-up packet.
#[test]
fn what_a_client_sends_ahead_goes_home_with_it() {
    let stage = Stage::pooled(Topology::new(3).set("pool_shards", 0));
    for at in 0..30 {
        let mut client = Client::connect(stage.address());
        let params = [("user", "postgres"), ("database", stage.entry.as_str())];
        let mut bytes = wire::startup(wire::PROTOCOL_3_0, &params);
        bytes.extend(wire::query(&format!("select {at}")));
        assert_eq!(client.exchange(&bytes).status, b'I');
        assert_eq!(client.reply().value(), at.to_string());
    }
    let mut console = console_of(&stage);
    let logins = of_shards(&mut console, "logins");
    assert!(
        logins.iter().max() >= Some(&30) || has_stalled(&mut console),
        "all on one home: {logins:?}"
    );
}

/// 3 shards, pool of 4: clients that hang up before they are home.
#[test]
fn clients_that_vanish_on_their_way_home_leave_nothing() {
    let stage = Stage::pooled(Topology::new(3).set("pool_shards", 0));
    let params = [("user", "postgres"), ("database", stage.entry.as_str())];
    for at in 0..60 {
        let mut client = Client::connect(stage.address());
        client.send(&wire::startup(wire::PROTOCOL_3_0, &params));
        match at % 3 {
            0 => client.reset(),
            1 => client.finish_sending(),
            _ => drop(client),
        }
    }
    let mut console = console_of(&stage);
    wait_until("they are gone", || {
        counts(&mut console).iter().sum::<u64>() == 1
    });
    stage.assert_no_leak();
}

/// 2 shards, of which one has a client that asks all the time; clients stay where they are.
#[test]
fn load_is_that_of_the_busy_shard() {
    let _alone = wait::alone();
    let stage = Stage::pooled(Topology::new(2).set("rebalance_clients", false));
    let mut console = Client::login(stage.address(), "ringbouncer");
    let mut shown = |name: &str| {
        let table = console.query("SHOW SHARDS").table();
        let numbers = table.iter().map(|row| row[name].parse::<u64>().unwrap());
        numbers.collect::<Vec<_>>()
    };
    let before = shown("logins");
    let mut client = stage.client();
    let came = |(now, before): (&u64, &u64)| now > before;
    let busy = shown("logins").iter().zip(&before).position(came).unwrap();
    let idle = 1 - busy;
    let mut wait_loads = |fits: &dyn Fn(u64, u64) -> bool| {
        let mut loads = [(0, 0); 2];
        for _ in 0..30 {
            loads = ["load", "busy"].map(|name| (shown(name)[busy], shown(name)[idle]));
            if loads.iter().all(|(busy, idle)| fits(*busy, *idle)) {
                return;
            }
            // Seldom, as to be asked is work as well.
            wait::pace_until(Instant::now() + Duration::from_millis(500));
        }
        panic!("{loads:?}");
    };
    wait_loads(&|busy, idle| busy <= 1 && idle <= 1);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Acquire) {
                client.value("select 1");
            }
        });
        let _over = wait::Over(&is_over);
        wait_loads(&|busy, idle| busy >= 5 && idle <= 1);
    });
    wait_loads(&|busy, idle| busy <= 1 && idle <= 1);
}
