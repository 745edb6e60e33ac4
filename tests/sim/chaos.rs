//! Short random lives of a pool in which everything goes wrong that can.

use crate::random::{Random, for_seeds};
use crate::world::{Rules, World};
use std::time::Duration;

fn random_rules(seed: u64) -> Rules {
    let mut random = Random::new(seed ^ 0x5EED);
    let limit = random.one_of(&[1, 2, 3, 5, 8, 20]);
    Rules {
        shards: random.one_of(&[1, 2, 3, 8, 16, 32, 33]),
        limit,
        reserve: (random.one_of(&[0, 0, 1, 4]), random.one_of(&[0, 500, 5000])),
        outer: random.one_of(&[None, Some(1), Some(limit), Some(2 * limit)]),
        clients: limit as usize * random.one_of(&[1, 2, 3, 8]),
        mailbox: random.one_of(&[1, 2, 4, 1000]),
        latency_us: random.one_of(&[10, 50, 2000]),
        lease_us: random.one_of(&[20, 400, 3000]),
        think_us: random.one_of(&[0, 100, 3000]),
        skew: random.one_of(&[0.0, 0.0, 0.5]),
        cancel: random.one_of(&[0.0, 0.1, 0.5]),
        death: random.one_of(&[0.0, 0.01, 0.2]),
        check: random.one_of(&[0.0, 0.0, 0.3, 1.0]),
        check_fails: random.one_of(&[0.0, 0.1, 0.6]),
        open_fails: random.one_of(&[0.0, 0.1, 0.6]),
        open_given_up: random.one_of(&[0.0, 0.1]),
        mishap_us: random.one_of(&[None, Some(300), Some(3000)]),
        ages: random.one_of(&[0.0, 0.1, 0.5]),
        minimum: random.one_of(&[0, 0, 1, limit / 2, limit, 2 * limit]),
        idle_us: random.one_of(&[None, Some(0), Some(500), Some(5000)]),
        round_robin: random.chance(0.3),
        openings_there: random.one_of(&[None, None, Some(1), Some(3), Some(10)]),
        unfit: random.one_of(&[0.0, 0.0, 0.02, 0.3]),
        moves: random.one_of(&[0.0, 0.0, 0.3]),
        apart: random.chance(0.3),
        turns_away: random.chance(0.3),
        pauses: random.chance(0.3),
        stall_us: random.one_of(&[None, None, Some(5_000), Some(20_000), Some(100_000)]),
        ticks: true,
    }
}

/// 1 to 33 shards, pools of 1 to 20, everything goes wrong: the invariants of `world.rs` hold
/// after every step, nobody is forgotten, nothing is lost.
#[test]
fn one_exact_pool_whatever_goes_wrong() {
    let (mut grants, mut hand_offs) = (0, 0);
    for_seeds(10_000, |seed| {
        let mut world = World::new(random_rules(seed), seed);
        for _ in 0..2 {
            world.run(Duration::from_millis(10));
            world.freeze();
            world.thaw();
        }
        world.freeze();
        world.drain();
        grants += world.grants;
        hand_offs += world.hand_offs;
    });
    println!("{grants} grants, {hand_offs} hand-offs");
}

/// 1 to 33 shards, no server closes but too old ones, those that were idle for too long and those beyond a limit: never so
/// many that fewer stay than are to be kept.
#[test]
fn as_many_servers_stay_as_are_to_be_kept() {
    for_seeds(500, |seed| {
        let rules = Rules {
            idle_us: Some(seed % 2 * 1000),
            ages: 0.3,
            minimum: 1 + (seed % 7) as u32,
            death: 0.0,
            check_fails: 0.0,
            unfit: 0.0,
            apart: false,
            ..random_rules(seed)
        };
        let mut world = World::new(rules, seed);
        world.run(Duration::from_millis(30));
        world.freeze();
        world.drain();
    });
}

/// 1 to 33 shards, no message is lost, no shard stalls, no opening fails: then nobody is forgotten
/// even if no shard ticks, but for one that receives a server on its last hop.
#[test]
fn ticks_are_only_for_what_goes_wrong() {
    for_seeds(1000, |seed| {
        let rules = Rules {
            mailbox: usize::MAX,
            outer: None,
            reserve: (0, 0),
            minimum: 0,
            openings_there: None,
            open_fails: 0.0,
            stall_us: None,
            ticks: false,
            ..random_rules(seed)
        };
        let mut world = World::new(rules, seed);
        world.run(Duration::from_millis(15));
        world.freeze();
        world.drain();
    });
}
