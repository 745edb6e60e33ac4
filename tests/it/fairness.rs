//! One pool over all cores, as PostgreSQL and its clients see it: pools of 1, 2 and 20 on 1, 2, 3 and 33 shards.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::wait::alone;
use crate::support::*;

const SHARDS: [usize; 4] = [1, 2, 3, 33];
/// Clients of the waiting time's test, and what each may need of the stack.
const CROWD: usize = 1000;
const STACK_BYTES: usize = 128 * 1024;

/// The most connections to the pool's database at any moment while `work` ran, as PostgreSQL saw them.
fn most_backends(stage: &Stage, work: impl FnOnce()) -> u32 {
    let finished = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let sql = format!("select count(*) {CLIENT_BACKENDS}");
            let (mut direct, mut most) = (stage.database.direct(), 0);
            while !finished.load(Ordering::Acquire) {
                most = most.max(direct.value(&sql).parse::<u32>().unwrap());
            }
            most
        });
        work();
        finished.store(true, Ordering::Release);
        watch.join().unwrap()
    })
}

/// 66 clients, two for each of 33 shards, run 12 transactions each; some are new every time.
fn everybody_progresses(pool_size: u32) {
    for shards in SHARDS {
        let stage = Stage::pooled(Topology::new(shards).pool_size(pool_size));
        let most = most_backends(&stage, || {
            thread::scope(|scope| {
                for id in 0..66 {
                    let stage = &stage;
                    scope.spawn(move || {
                        let mut client = stage.client();
                        for n in 0..12 {
                            if id % 4 == 0 {
                                client = stage.client();
                            }
                            let mark = format!("{id}/{n}");
                            assert_eq!(client.value(&format!("begin; select '{mark}'")), mark);
                            assert_eq!(client.query("commit").status, b'I');
                        }
                    });
                }
            });
        });
        assert!((1..=pool_size).contains(&most), "{most} on {shards} shards");
        stage.assert_no_leak();
    }
}

#[test]
fn everybody_progresses_with_one_server() {
    everybody_progresses(1);
}

#[test]
fn everybody_progresses_with_two_servers() {
    everybody_progresses(2);
}

#[test]
fn everybody_progresses_with_twenty_servers() {
    everybody_progresses(20);
}

/// How long each request of 1,000 clients took that ask again at once, for `span` after all have come.
fn latencies(stage: &Stage, span: Duration) -> Vec<Duration> {
    let (all_in, is_over) = (Barrier::new(CROWD + 1), AtomicBool::new(false));
    thread::scope(|scope| {
        let spawn = |_| {
            let client = || {
                let mut client = stage.client();
                all_in.wait();
                let mut taken = Vec::new();
                while !is_over.load(Ordering::Acquire) {
                    let asked = Instant::now();
                    assert_eq!(client.value("select 1 from pg_sleep(0.002)"), "1");
                    taken.push(asked.elapsed());
                }
                // The first request of all: they asked at the same moment, so they were not served in any order.
                taken.drain(..1.min(taken.len()));
                taken
            };
            let builder = thread::Builder::new().stack_size(STACK_BYTES);
            builder.spawn_scoped(scope, client).expect("a thread")
        };
        let clients: Vec<_> = (0..CROWD).map(spawn).collect();
        all_in.wait();
        wait::pace_until(Instant::now() + span);
        is_over.store(true, Ordering::Release);
        let taken = clients.into_iter().map(|client| client.join().unwrap());
        taken.flatten().collect()
    })
}

/// Pool of 20: whoever waits, waits as long as the others.
fn waiting_times_are_alike(shards: usize) {
    let _alone = alone();
    let stage = Stage::pooled(Topology::new(shards).pool_size(20));
    let mut taken = latencies(&stage, Duration::from_secs(5));
    taken.sort_unstable();
    let at = |percent: usize| taken[(taken.len() - 1) * percent / 100];
    let ratio = at(99).as_secs_f64() / at(50).as_secs_f64();
    println!(
        "{shards} shards: {} requests, p50 {:?}, p99 {:?}, ratio {ratio:.2}",
        taken.len(),
        at(50),
        at(99)
    );
    assert!(ratio < 1.5, "p99 is {ratio:.2} times the median");
}

#[test]
#[ignore = "times the whole machine: run it alone on one that is at rest"]
fn a_thousand_clients_wait_alike_on_1_shard() {
    waiting_times_are_alike(1);
}

#[test]
#[ignore = "times the whole machine: run it alone on one that is at rest"]
fn a_thousand_clients_wait_alike_on_2_shards() {
    waiting_times_are_alike(2);
}

#[test]
#[ignore = "times the whole machine: run it alone on one that is at rest"]
fn a_thousand_clients_wait_alike_on_3_shards() {
    waiting_times_are_alike(3);
}

#[test]
#[ignore = "times the whole machine: run it alone on one that is at rest"]
fn a_thousand_clients_wait_alike_on_33_shards() {
    waiting_times_are_alike(33);
}
