//! Clients of a loaded shard go on at another one, and take everything along.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use crate::support::certs::Authority;
use crate::support::random::{Random, seed_from_env};
use crate::support::wait::{alone, holds_within, seconds_from_env};
use crate::support::wire::*;
use crate::support::*;

/// What encrypts a client, if anything does.
type Tls = Option<Arc<ClientConfig>>;

/// A client with a setting and prepared statements of its own.
struct Resident {
    id: usize,
    client: Client,
}

impl Resident {
    fn new(stage: &Stage, tls: &Tls, id: usize) -> Resident {
        let name = format!("resident {id}");
        let params = [
            ("user", "postgres"),
            ("database", stage.entry.as_str()),
            ("application_name", name.as_str()),
        ];
        let mut client = Client::connect(stage.address());
        if let Some(config) = tls {
            client.request_tls(config.clone()).expect("a handshake");
        }
        assert_eq!(client.start(PROTOCOL_3_0, &params).status, b'I');
        let prepare = [parse("mine", &format!("select '{id}:' || $1")), sync()].concat();
        assert_eq!(client.exchange(&prepare).status, b'I');
        let spoken = format!("prepare said as select 'said by {id}'");
        assert_eq!(client.query(&spoken).complete, ["PREPARE"]);
        Resident { id, client }
    }

    /// Asks with the prepared statements and with plain SQL; all must know whose they are.
    fn check(&mut self, round: u64) {
        let text = format!("{round}");
        let bytes = [
            bind("", "mine", &[&text]),
            execute("", 0),
            sync(),
            query("show application_name"),
        ];
        let reply = self.client.exchange(&bytes.concat());
        assert_eq!(reply.value(), format!("{}:{round}", self.id), "{reply:?}");
        let reply = self.client.reply();
        assert_eq!(reply.value(), format!("resident {}", self.id), "{reply:?}");
        let said = self.client.value("execute said");
        assert_eq!(said, format!("said by {}", self.id));
    }

    /// Its cancel key must find it, wherever it is.
    fn check_cancel(&mut self, stage: &Stage) {
        let sleep = format!("select pg_sleep(600) /* sleeper {} */", self.id);
        self.client.send(&query(&sleep));
        let condition = format!("state = 'active' and query like '%sleeper {} *%'", self.id);
        stage.database.wait_backends(1, &condition);
        peer::cancel(stage.address(), &self.client.key);
        let reply = self.client.reply();
        assert_eq!((reply.code(), reply.status), ("57014", b'I'), "{reply:?}");
    }

    /// KILL_CLIENT must find it, wherever it is.
    fn check_kill(&mut self, stage: &Stage) {
        let name = format!("resident {}", self.id);
        let mut id = None;
        wait_until("it is shown", || {
            let rows = stage.console("SHOW CLIENTS").table();
            let mut rows = rows
                .into_iter()
                .filter(|row| row["application_name"] == name);
            id = rows.next().map(|row| row["id"].clone());
            id.is_some()
        });
        self.client.send(&query("select 'it may go on elsewhere'"));
        let killed = stage.console(&format!("KILL_CLIENT {}", id.unwrap()));
        assert_eq!(killed.complete, ["KILL_CLIENT"], "{killed:?}");
    }
}

/// Clients of each shard, by where they logged in: so many, and more until each shard has `fewest`.
fn residents(
    stage: &Stage,
    tls: &Tls,
    console: &mut Client,
    count: usize,
    fewest: usize,
) -> Vec<Vec<Resident>> {
    let mut by_shard: Vec<Vec<Resident>> = (0..stage.shards).map(|_| Vec::new()).collect();
    for id in 0.. {
        let has_few = by_shard.iter().any(|shard| shard.len() < fewest);
        if id >= count && !has_few {
            break;
        }
        assert!(id < 10 * count, "a shard gets nobody");
        let before = of_shards(console, "logins");
        let resident = Resident::new(stage, tls, id);
        let after = of_shards(console, "logins");
        let mut shards = before.iter().zip(&after);
        let shard = shards.position(|(before, after)| before < after).unwrap();
        by_shard[shard].push(resident);
    }
    by_shard
}

/// Keeps these clients asking until `is_over`.
fn keep_busy(residents: &mut [Resident], is_over: impl FnMut() -> bool) -> bool {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for resident in residents {
            let stop = &stop;
            scope.spawn(move || {
                let rounds = (0..).take_while(|_| !stop.load(Ordering::Acquire));
                rounds.for_each(|round| resident.check(round));
            });
        }
        let in_time = holds_within(Duration::from_secs(40), is_over);
        stop.store(true, Ordering::Release);
        in_time
    })
}

/// What SHOW CLIENTS says for ever of each client of the stage, by name.
fn identities(stage: &Stage, console: &mut Client) -> BTreeMap<String, Vec<String>> {
    let table = console.query("SHOW CLIENTS").table();
    let rows = table
        .into_iter()
        .filter(|row| row["database"] == stage.entry);
    let lasting = [
        "user",
        "addr",
        "port",
        "local_port",
        "connect_time",
        "id",
        "tls",
    ];
    let identity = |row: BTreeMap<String, String>| {
        let columns = lasting.iter().map(|name| row[*name].clone());
        (row["application_name"].clone(), columns.collect())
    };
    rows.map(identity).collect()
}

/// 2 shards, 24 clients (more if the machine has stalled one of them): those of one shard are busy, the others idle.
fn busy_clients_leave(topology: Topology, tls: &Tls) {
    let _alone = alone();
    let stage = Stage::pooled(topology);
    let mut console = Client::login(stage.address(), "ringbouncer");
    let mut by_shard = residents(&stage, tls, &mut console, 24, 8);
    let before = identities(&stage, &mut console);
    assert_eq!(before.len(), by_shard.iter().map(Vec::len).sum::<usize>());
    let mut idle = by_shard.pop().unwrap();
    let mut busy = by_shard.pop().unwrap();
    let moved = keep_busy(&mut busy, || of_shards(&mut console, "moves_in")[1] >= 3);
    assert!(moved, "{:?}", console.query("SHOW SHARDS").table());
    wait_until("nobody is on the way", || {
        let table = console.query("SHOW SHARDS").table();
        table[0]["moves_out"] == table[1]["moves_in"]
    });
    for resident in busy.iter_mut().chain(&mut idle) {
        resident.check(1);
        resident.check_cancel(&stage);
        resident.check(2);
    }
    assert_eq!(identities(&stage, &mut console), before);
    drop((busy, idle));
    wait_until("their places are free", || {
        of_shards(&mut console, "clients").iter().sum::<u64>() == 1
    });
    stage.assert_no_leak();
}

#[test]
fn busy_clients_leave_a_loaded_shard_with_all_they_have() {
    busy_clients_leave(Topology::new(2).pool_size(8), &None);
}

#[test]
fn encrypted_clients_leave_a_loaded_shard_with_all_they_have() {
    let authority = Authority::new("authority of the pooler");
    let shown = authority.sign();
    let topology = Topology::new(2)
        .pool_size(8)
        .set("client_tls_sslmode", "allow")
        .set("client_tls_cert_file", shown.certificate_path())
        .set("client_tls_key_file", shown.key_path());
    let config = Arc::new(authority.client_config(None));
    busy_clients_leave(topology, &Some(config));
}

#[test]
fn cancel_keys_that_name_a_peer_find_clients_that_have_moved() {
    busy_clients_leave(Topology::new(2).pool_size(8).set("peer_id", 7), &None);
}

#[test]
fn nobody_moves_if_that_is_not_wanted() {
    let _alone = alone();
    let topology = Topology::new(2).pool_size(8);
    let stage = Stage::pooled(topology.set("rebalance_clients", false));
    let mut console = Client::login(stage.address(), "ringbouncer");
    let mut busy = residents(&stage, &None, &mut console, 16, 1).swap_remove(0);
    let until = Instant::now() + Duration::from_secs(6);
    assert!(keep_busy(&mut busy, || Instant::now() > until));
    assert_eq!(of_shards(&mut console, "moves_out"), [0, 0]);
}

/// The load goes from shard to shard, so that clients move all the time, while they vanish, are cancelled, come anew, and
/// the configuration is read again: MOVES_SECONDS (8).
fn everything_happens_to_clients_that_move(shards: usize, pool_size: u32) {
    let _alone = alone();
    let seed = seed_from_env("MOVES_SEED");
    let stage = Stage::pooled(Topology::new(shards).pool_size(pool_size));
    let mut console = Client::login(stage.address(), "ringbouncer");
    let mut by_shard = residents(&stage, &None, &mut console, 24.max(2 * shards), 0);
    let until = Instant::now() + seconds_from_env("MOVES_SECONDS", 8);
    let started = Instant::now();
    thread::scope(|scope| {
        for (shard, residents) in by_shard.iter_mut().enumerate() {
            for resident in residents {
                let stage = &stage;
                let mut random = Random::new(seed ^ resident.id as u64);
                scope.spawn(move || {
                    let mut round = 0;
                    while Instant::now() < until {
                        round += 1;
                        resident.check(round);
                        // Each shard's clients are busy for two seconds, in turn.
                        let turn = started.elapsed().as_secs() / 2 % stage.shards.min(3) as u64;
                        if turn != shard as u64 % 3 {
                            wait::pace_until(Instant::now() + Duration::from_millis(40));
                        }
                        match random.below(400) {
                            0 => *resident = Resident::new(stage, &None, resident.id),
                            1 => {
                                resident.client.send(&query("select pg_sleep(0.001)"));
                                let next = Resident::new(stage, &None, resident.id);
                                std::mem::replace(resident, next).client.reset();
                            }
                            2 => resident.check_cancel(stage),
                            3 => {
                                resident.check_kill(stage);
                                *resident = Resident::new(stage, &None, resident.id);
                            }
                            _ => {}
                        }
                    }
                });
            }
        }
        while Instant::now() < until {
            assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
            wait::pace_until(Instant::now() + Duration::from_millis(50));
        }
    });
    println!(
        "{} moves",
        of_shards(&mut console, "moves_in").iter().sum::<u64>()
    );
    for resident in by_shard.iter_mut().flatten() {
        resident.check(0);
        resident.check_cancel(&stage);
    }
    drop(by_shard);
    wait_until("their places are free", || {
        of_shards(&mut console, "clients").iter().sum::<u64>() == 1
    });
    stage.assert_no_leak();
}

#[test]
fn everything_happens_to_clients_that_move_between_3_shards() {
    everything_happens_to_clients_that_move(3, 6);
}

#[test]
fn everything_happens_to_clients_that_move_between_33_shards_with_one_server() {
    everything_happens_to_clients_that_move(33, 1);
}
