//! Clients of a loaded shard go on at another one, and take everything along.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::random::{Random, seed_from_env};
use crate::support::wait::{alone, holds_within, seconds_from_env};
use crate::support::wire::*;
use crate::support::*;

/// One column of SHOW SHARDS, shard by shard.
fn column(console: &mut Client, name: &str) -> Vec<u64> {
    let table = console.query("SHOW SHARDS").table();
    table.iter().map(|row| row[name].parse().unwrap()).collect()
}

/// A client with a setting and a prepared statement of its own.
struct Resident {
    id: usize,
    client: Client,
}

impl Resident {
    fn new(stage: &Stage, id: usize) -> Resident {
        let name = format!("resident {id}");
        let params = [
            ("user", "postgres"),
            ("database", stage.entry.as_str()),
            ("application_name", name.as_str()),
        ];
        let mut client = Client::login_with(stage.address(), &params);
        let prepare = [parse("mine", &format!("select '{id}:' || $1")), sync()].concat();
        assert_eq!(client.exchange(&prepare).status, b'I');
        Resident { id, client }
    }

    /// Asks with the prepared statement and with plain SQL; both must know whose they are.
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
}

/// Clients of each shard, by where they logged in.
fn residents(stage: &Stage, console: &mut Client, count: usize) -> Vec<Vec<Resident>> {
    let mut by_shard: Vec<Vec<Resident>> = (0..stage.shards).map(|_| Vec::new()).collect();
    for id in 0..count {
        let before = column(console, "logins");
        let resident = Resident::new(stage, id);
        let after = column(console, "logins");
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

#[test]
fn busy_clients_leave_a_loaded_shard_with_all_they_have() {
    // 2 shards, pool of 8, 24 clients: those of one shard are busy, the others idle
    let _alone = alone();
    let stage = Stage::pooled(Topology::new(2).pool_size(8));
    let mut console = Client::login(stage.address(), "ringbouncer");
    let mut by_shard = residents(&stage, &mut console, 24);
    let mut idle = by_shard.pop().unwrap();
    let mut busy = by_shard.pop().unwrap();
    assert!(
        busy.len() >= 8 && idle.len() >= 8,
        "{} {}",
        busy.len(),
        idle.len()
    );
    let moved = keep_busy(&mut busy, || column(&mut console, "moves_in")[1] >= 3);
    assert!(moved, "{:?}", console.query("SHOW SHARDS").table());
    let moves = [
        column(&mut console, "moves_in"),
        column(&mut console, "moves_out"),
    ];
    assert_eq!(moves[0][1], moves[1][0], "{moves:?}");
    for resident in busy.iter_mut().chain(&mut idle) {
        resident.check(1);
        resident.check_cancel(&stage);
        resident.check(2);
    }
    // Everybody is where SHOW CLIENTS and the counts say.
    let rows = console.query("SHOW CLIENTS").table();
    let here = rows.iter().filter(|row| row["database"] == stage.entry);
    assert_eq!(here.count(), 24);
    drop((busy, idle));
    wait_until("their places are free", || {
        column(&mut console, "clients").iter().sum::<u64>() == 1
    });
    stage.assert_no_leak();
}

#[test]
fn nobody_moves_if_that_is_not_wanted() {
    let _alone = alone();
    let topology = Topology::new(2).pool_size(8);
    let stage = Stage::pooled(topology.set("rebalance_clients", false));
    let mut console = Client::login(stage.address(), "ringbouncer");
    let mut busy = residents(&stage, &mut console, 16).swap_remove(0);
    let until = Instant::now() + Duration::from_secs(6);
    assert!(keep_busy(&mut busy, || Instant::now() > until));
    assert_eq!(column(&mut console, "moves_out"), [0, 0]);
}

/// The load goes from shard to shard, so that clients move all the time, while they vanish, are cancelled, come anew, and
/// the configuration is read again: MOVES_SECONDS (8).
fn everything_happens_to_clients_that_move(shards: usize, pool_size: u32) {
    let _alone = alone();
    let seed = seed_from_env("MOVES_SEED");
    let stage = Stage::pooled(Topology::new(shards).pool_size(pool_size));
    let mut console = Client::login(stage.address(), "ringbouncer");
    let mut by_shard = residents(&stage, &mut console, 24.max(2 * shards));
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
                            0 => *resident = Resident::new(stage, resident.id),
                            1 => {
                                resident.client.send(&query("select pg_sleep(0.001)"));
                                let next = Resident::new(stage, resident.id);
                                std::mem::replace(resident, next).client.reset();
                            }
                            2 => resident.check_cancel(stage),
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
        column(&mut console, "moves_in").iter().sum::<u64>()
    );
    for resident in by_shard.iter_mut().flatten() {
        resident.check(0);
        resident.check_cancel(&stage);
    }
    drop(by_shard);
    wait_until("their places are free", || {
        column(&mut console, "clients").iter().sum::<u64>() == 1
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
