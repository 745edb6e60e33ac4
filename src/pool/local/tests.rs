//! What one shard's part of a pool does, event by event; its life as a whole is in `tests/sim`.

use super::*;
use crate::pool::{OPENINGS_MAX, Permits};

type Pool = LocalPool<u32, char>;
type Actions = Vec<Action<u32, char>>;

const HERE: ShardId = ShardId(0);
const THERE: ShardId = ShardId(1);

fn ms(millis: u64) -> Moment {
    Moment::from_nanos(millis * 1_000_000)
}

/// Two shards of one pool.
fn pools(limit: u32) -> (Pool, Pool) {
    let shared = Arc::new(SharedPool::new(2, limit, Vec::new()));
    (Pool::new(shared.clone(), HERE), Pool::new(shared, THERE))
}

/// What `event` has a pool do.
fn did<R>(event: impl FnOnce(&mut Actions) -> R) -> Actions {
    let mut out = Vec::new();
    event(&mut out);
    out
}

fn waits(pool: &mut Pool, waiter: char, now: Moment) -> WaiterId {
    match pool.acquire(waiter, now, &mut Vec::new()) {
        Acquired::Waits(id) => id,
        Acquired::Granted(server) => panic!("{waiter} was granted {server}"),
    }
}

/// Opens `server` on `pool` and leaves it idle.
fn stock(pool: &mut Pool, server: u32, now: Moment) {
    assert_eq!(did(|out| pool.warm(u32::MAX, now, out)), [Action::Open]);
    assert_eq!(did(|out| pool.opened(server, now, out)), []);
}

#[test]
fn the_freshest_idle_server_is_granted_first() {
    let (mut here, _there) = pools(2);
    stock(&mut here, 1, ms(0));
    stock(&mut here, 2, ms(1));
    let mut out = Vec::new();
    assert_eq!(here.acquire('a', ms(2), &mut out), Acquired::Granted(2));
    assert_eq!(here.acquire('b', ms(2), &mut out), Acquired::Granted(1));
    assert_eq!(out, []);
}

#[test]
fn an_idle_server_elsewhere_is_asked_for_before_one_is_opened() {
    let (mut here, mut there) = pools(2);
    stock(&mut there, 1, ms(0));
    assert_eq!(
        did(|out| here.acquire('a', ms(1), out)),
        [Action::Ask(THERE)]
    );
    assert_eq!(
        did(|out| here.acquire('b', ms(1), out)),
        [Action::Open],
        "the one idle is spoken for"
    );
    let sent = Action::Send {
        to: HERE,
        server: 1,
        hops: 1,
    };
    assert_eq!(did(|out| there.asked(HERE, out)), [sent]);
    let granted = Action::Grant {
        waiter: 'a',
        server: 1,
    };
    assert_eq!(did(|out| here.arrived(1, THERE, 1, ms(2), out)), [granted]);
}

#[test]
fn a_refused_question_turns_into_an_opening() {
    let (mut here, mut there) = pools(2);
    stock(&mut there, 1, ms(0));
    waits(&mut here, 'a', ms(1));
    assert_eq!(
        there.acquire('b', ms(1), &mut Vec::new()),
        Acquired::Granted(1)
    );
    assert_eq!(did(|out| there.asked(HERE, out)), [Action::Decline(HERE)]);
    assert_eq!(did(|out| here.declined(THERE, ms(2), out)), [Action::Open]);
}

#[test]
fn no_more_is_opened_than_waiters_and_permits_allow() {
    let (mut here, mut there) = pools(2);
    assert_eq!(did(|out| here.acquire('a', ms(0), out)), [Action::Open]);
    assert_eq!(did(|out| here.tick(ms(1), out)), []);
    assert_eq!(did(|out| there.acquire('b', ms(1), out)), [Action::Open]);
    assert_eq!(did(|out| there.acquire('c', ms(1), out)), []);
    assert_eq!(here.shared().open(), 2);
}

#[test]
fn a_waiter_elsewhere_within_the_bound_is_overtaken_and_beyond_it_is_served() {
    let (mut here, mut there) = pools(1);
    waits(&mut there, 'x', ms(100));
    // Waits of 10 ms and more: a tenth of it counts.
    waits(&mut here, 'a', ms(101));
    waits(&mut here, 'b', ms(102));
    let granted = Action::Grant {
        waiter: 'a',
        server: 7,
    };
    assert_eq!(did(|out| here.release(7, ms(110), out)), [granted]);
    let sent = Action::Send {
        to: THERE,
        server: 7,
        hops: 1,
    };
    assert_eq!(did(|out| here.release(7, ms(110), out)), [sent]);
}

#[test]
fn an_old_waiter_draws_one_server_until_it_has_come() {
    let (mut here, mut there) = pools(2);
    waits(&mut there, 'x', ms(0));
    waits(&mut there, 'y', ms(1));
    let sent = Action::Send {
        to: THERE,
        server: 7,
        hops: 1,
    };
    assert_eq!(did(|out| here.release(7, ms(9), out)), [sent]);
    assert_eq!(
        did(|out| here.release(8, ms(9), out)),
        [],
        "claimed: it idles"
    );
    let granted = Action::Grant {
        waiter: 'x',
        server: 7,
    };
    // What passed it over meanwhile is asked for.
    assert_eq!(
        did(|out| there.arrived(7, HERE, 1, ms(10), out)),
        [granted, Action::Ask(HERE)]
    );
    let sent = Action::Send {
        to: THERE,
        server: 8,
        hops: 1,
    };
    assert_eq!(did(|out| here.asked(THERE, out)), [sent]);
}

#[test]
fn who_joins_a_line_that_has_looked_in_vain_does_not_look() {
    let (mut here, mut there) = pools(1);
    stock(&mut there, 1, ms(0));
    let leased = there.acquire('x', ms(0), &mut Vec::new());
    assert_eq!(leased, Acquired::Granted(1));
    waits(&mut here, 'a', ms(1));
    here.shared().set_limit(2);
    assert_eq!(did(|out| here.acquire('b', ms(1), out)), []);
    assert_eq!(did(|out| here.poke(ms(1), out)), [Action::Open]);
}

/// Two servers of the other shard come free: one is sent, the other finds the head claimed.
fn pass_over(here: &mut Pool, there: &mut Pool) {
    let sent = Action::Send {
        to: HERE,
        server: 1,
        hops: 1,
    };
    assert_eq!(did(|out| there.release(1, ms(2), out)), [sent]);
    assert_eq!(did(|out| there.release(2, ms(2), out)), []);
    assert_eq!((here.idle().len(), there.idle().len()), (0, 1));
}

#[test]
fn who_joins_a_line_whose_head_is_claimed_looks() {
    let (mut here, mut there) = pools(0);
    waits(&mut here, 'a', ms(1));
    pass_over(&mut here, &mut there);
    let ask = Action::Ask(THERE);
    assert_eq!(did(|out| here.acquire('b', ms(3), out)), [ask]);
}

#[test]
fn who_joins_a_line_whose_head_was_claimed_looks() {
    let (mut here, mut there) = pools(0);
    waits(&mut here, 'a', ms(1));
    waits(&mut here, 'b', ms(1));
    pass_over(&mut here, &mut there);
    let granted = Action::Grant {
        waiter: 'a',
        server: 3,
    };
    assert_eq!(did(|out| here.release(3, ms(3), out)), [granted]);
    let ask = Action::Ask(THERE);
    assert_eq!(did(|out| here.acquire('c', ms(3), out)), [ask]);
}

#[test]
fn a_server_that_comes_too_late_travels_on_a_bounded_number_of_times() {
    let (mut here, mut there) = pools(1);
    waits(&mut there, 'x', ms(0));
    let sent = Action::Send {
        to: THERE,
        server: 7,
        hops: HOPS_MAX,
    };
    assert_eq!(
        did(|out| here.arrived(7, THERE, HOPS_MAX - 1, ms(1), out)),
        [sent]
    );
    there.cancel_wait(WaiterId::default());
    waits(&mut here, 'a', ms(2));
    assert_eq!(did(|out| there.arrived(7, HERE, HOPS_MAX, ms(3), out)), []);
    assert!(there.needs_tick());
    assert_eq!(
        did(|out| there.tick(ms(4), out)),
        [Action::Send {
            to: HERE,
            server: 7,
            hops: 1
        }]
    );
}

#[test]
fn a_server_that_cannot_be_sent_serves_here_or_waits_for_the_tick() {
    let (mut here, mut there) = pools(1);
    waits(&mut there, 'x', ms(0));
    let sent = || Action::Send {
        to: THERE,
        server: 7,
        hops: 1,
    };
    assert_eq!(did(|out| here.release(7, ms(1), out)), [sent()]);
    assert_eq!(did(|out| here.send_failed(7, THERE, ms(1), out)), []);
    assert!(here.needs_tick());
    assert_eq!(did(|out| here.tick(ms(2), out)), [sent()]);
    waits(&mut here, 'a', ms(3));
    let granted = Action::Grant {
        waiter: 'a',
        server: 7,
    };
    assert_eq!(did(|out| here.send_failed(7, THERE, ms(3), out)), [granted]);
}

#[test]
fn an_unfit_server_leaves_the_head_of_the_line_at_its_place() {
    let (mut here, mut there) = pools(2);
    waits(&mut here, 'a', ms(0));
    waits(&mut here, 'b', ms(1));
    assert_eq!(did(|out| here.opened_unfit(ms(2), out)), []);
    assert_eq!(here.opening(), 1);
    assert_eq!(did(|out| here.closed(ms(3), out)), [Action::Open]);
    waits(&mut there, 'x', ms(4));
    let sent = Action::Send {
        to: HERE,
        server: 7,
        hops: 1,
    };
    assert_eq!(did(|out| there.release(7, ms(9), out)), [sent]);
    assert_eq!(did(|out| here.arrived_unfit(THERE, ms(9), out)), []);
    assert_eq!(here.first_waiter_since(), Some(ms(0)));
    let sent = Action::Send {
        to: HERE,
        server: 8,
        hops: 1,
    };
    let again = did(|out| there.release(8, ms(9), out));
    assert_eq!(again, [sent], "the claim is down");
    there.send_failed_unfit(HERE);
    let again = did(|out| there.release(9, ms(9), out));
    assert!(matches!(again[..], [Action::Send { to: HERE, .. }]));
}

#[test]
fn what_is_opened_apart_is_no_waiters_and_its_end_opens_nothing() {
    let (mut here, _there) = pools(4);
    assert!(here.open_apart(ms(0)));
    assert_eq!(
        did(|out| here.acquire('a', ms(0), out)),
        [Action::Open],
        "it is not for this one"
    );
    here.ends_apart();
    assert_eq!(did(|out| here.opened_unfit(ms(1), out)), []);
    let granted = Action::Grant {
        waiter: 'a',
        server: 1,
    };
    assert_eq!(did(|out| here.opened(1, ms(2), out)), [granted]);
}

/// One shard of a pool of 9 at `machine`.
fn pool_at(machine: &Arc<Permits>) -> Pool {
    let mut pool = Pool::new(Arc::new(SharedPool::new(1, 9, Vec::new())), HERE);
    pool.open_at(machine.clone());
    pool
}

#[test]
fn pools_of_one_machine_open_few_servers_at_a_time_together() {
    let machine = Arc::new(Permits::new(3));
    let (mut ann, mut bob) = (pool_at(&machine), pool_at(&machine));
    let opens = |pool: &mut Pool| !did(|out| pool.warm(9, ms(1), out)).is_empty();
    assert!(opens(&mut ann) && opens(&mut ann) && opens(&mut bob));
    assert!(!opens(&mut bob) && !opens(&mut ann));
    assert_eq!(
        (ann.shared().open(), bob.shared().open()),
        (2, 1),
        "no permit is lost"
    );
    ann.opened(1, ms(2), &mut Vec::new());
    assert!(opens(&mut bob) && !opens(&mut ann));
    bob.open_failed(None, ms(3), &mut Vec::new());
    bob.opened(2, ms(3), &mut Vec::new());
    ann.opened(3, ms(3), &mut Vec::new());
    assert_eq!(machine.open(), 0);
}

#[test]
fn pool_that_goes_to_another_machine_leaves_no_place_taken_at_either() {
    let [old, new] = [1, 1].map(|places| Arc::new(Permits::new(places)));
    let mut pool = pool_at(&old);
    assert_eq!(did(|out| pool.warm(9, ms(0), out)), [Action::Open]);
    assert_eq!(did(|out| pool.warm(9, ms(0), out)), []);
    pool.open_at(new.clone());
    assert_eq!(did(|out| pool.warm(9, ms(1), out)), [Action::Open]);
    assert_eq!((old.open(), new.open()), (1, 1));
    pool.opened(1, ms(2), &mut Vec::new());
    assert_eq!((old.open(), new.open()), (0, 1), "the older one's");
    pool.open_failed(None, ms(3), &mut Vec::new());
    assert_eq!((old.open(), new.open()), (0, 0));
}

#[test]
fn a_waiter_that_leaves_passes_its_opening_on() {
    let (mut here, _there) = pools(1);
    let first = waits(&mut here, 'a', ms(0));
    waits(&mut here, 'b', ms(1));
    assert_eq!(here.cancel_wait(first), Some('a'));
    assert_eq!(here.cancel_wait(first), None);
    assert_eq!(here.first_waiter_since(), Some(ms(1)));
    assert_eq!(
        did(|out| here.opened(7, ms(2), out)),
        [Action::Grant {
            waiter: 'b',
            server: 7
        }]
    );
}

#[test]
fn after_a_failure_nothing_is_opened_before_its_time() {
    let (mut here, mut there) = pools(3);
    waits(&mut here, 'a', ms(0));
    waits(&mut there, 'x', ms(0));
    assert_eq!(did(|out| here.open_failed(Some(ms(100)), ms(1), out)), []);
    assert_eq!(did(|out| here.tick(ms(99), out)), []);
    assert_eq!(did(|out| here.tick(ms(100), out)), [Action::Open]);
    assert_eq!(
        did(|out| there.acquire('y', ms(100), out)),
        [],
        "one attempt is on trial"
    );
    let actions = did(|out| here.opened(7, ms(101), out));
    assert_eq!(
        actions,
        [
            Action::Grant {
                waiter: 'a',
                server: 7
            },
            Action::Wake(THERE)
        ]
    );
    assert_eq!(did(|out| there.poke(ms(101), out)), [Action::Open]);
}

#[test]
fn an_attempt_given_up_passes_its_permit_on() {
    let (mut here, mut there) = pools(1);
    let gone = waits(&mut here, 'a', ms(0));
    waits(&mut there, 'x', ms(0));
    here.cancel_wait(gone);
    assert_eq!(
        did(|out| here.open_failed(None, ms(1), out)),
        [Action::Wake(THERE)]
    );
    assert_eq!(did(|out| there.poke(ms(1), out)), [Action::Open]);
}

#[test]
fn the_permit_of_a_closed_server_goes_to_our_line_first() {
    let (mut here, mut there) = pools(1);
    stock(&mut here, 7, ms(0));
    assert_eq!(
        here.acquire('a', ms(0), &mut Vec::new()),
        Acquired::Granted(7)
    );
    waits(&mut there, 'x', ms(1));
    waits(&mut here, 'b', ms(2));
    assert_eq!(did(|out| here.closed(ms(3), out)), [Action::Open]);
}

#[test]
fn a_lowered_limit_closes_idle_servers_now_and_leased_ones_at_release() {
    let (mut here, mut there) = pools(3);
    (1..=3).for_each(|server| stock(&mut here, server, ms(server.into())));
    assert_eq!(
        here.acquire('a', ms(4), &mut Vec::new()),
        Acquired::Granted(3)
    );
    here.shared().set_limit(1);
    assert_eq!(
        did(|out| here.poke(ms(5), out)),
        [1, 2].map(|server| Action::Close(server, Closing::Surplus))
    );
    here.shared().set_limit(0);
    assert_eq!(did(|out| here.poke(ms(6), out)), [], "it is leased");
    assert_eq!(
        did(|out| here.release(3, ms(7), out)),
        [Action::Close(3, Closing::Surplus)]
    );
    waits(&mut there, 'x', ms(7));
    (0..3).for_each(|_| assert_eq!(did(|out| here.closed(ms(8), out)), []));
    assert_eq!(here.shared().open(), 0);
    here.shared().set_limit(1);
    assert_eq!(did(|out| there.poke(ms(9), out)), [Action::Open]);
}

#[test]
fn a_limit_that_spans_pools_is_taken_with_the_pools_own_and_given_back_with_it() {
    let outer = Arc::new(Permits::new(2));
    let pool = |limit| {
        let shared = SharedPool::new(1, limit, vec![outer.clone()]);
        Pool::new(Arc::new(shared), HERE)
    };
    let (mut one, mut two) = (pool(3), pool(1));
    stock(&mut one, 1, ms(0));
    stock(&mut one, 2, ms(1));
    assert_eq!(two.shared().longest_idle(|_| true), None);
    assert_eq!(one.shared().longest_idle(|_| true), Some((ms(0), HERE)));
    assert_eq!(one.shared().longest_idle(|shard| shard != HERE), None);
    assert_eq!(did(|out| two.acquire('a', ms(2), out)), [Action::Evict]);
    assert_eq!(did(|out| two.tick(ms(3), out)), [], "it was asked for");
    assert_eq!(one.evict(), Some(1));
    assert_eq!(did(|out| one.closed(ms(4), out)), []);
    assert_eq!(did(|out| two.tick(ms(5), out)), [Action::Open]);
    assert_eq!(did(|out| two.acquire('b', ms(6), out)), [], "its own limit");
    outer.set_limit(1);
    assert_eq!(
        did(|out| one.poke(ms(7), out)),
        [Action::Close(2, Closing::Surplus)]
    );
    assert_eq!(outer.open(), 2);
    assert_eq!(did(|out| one.closed(ms(8), out)), []);
    assert_eq!((outer.open(), one.shared().open()), (1, 0));
}

#[test]
fn shards_that_close_spare_servers_together_keep_as_many_as_are_to_be() {
    let (mut here, mut there) = pools(5);
    (1..=3).for_each(|server| stock(&mut here, server, ms(server.into())));
    (4..=5).for_each(|server| stock(&mut there, server, ms(server.into())));
    let spare = |pool: &mut Pool, until| {
        did(|out| pool.expire_spare(2, "idle", |_, since| since <= until, out))
    };
    let closed = |servers: &[u32]| -> Vec<_> {
        let why = Closing::Expired("idle");
        servers
            .iter()
            .map(|server| Action::Close(*server, why))
            .collect()
    };
    assert_eq!(spare(&mut here, ms(2)), closed(&[1, 2]));
    // PostgreSQL has not hung up on those yet.
    assert_eq!(spare(&mut there, ms(9)), closed(&[4]));
    assert_eq!(spare(&mut here, ms(9)), closed(&[]));
    (0..2).for_each(|_| assert_eq!(did(|out| here.closed(ms(8), out)), []));
    assert_eq!(did(|out| there.closed(ms(8), out)), []);
    assert_eq!(here.shared().open(), 2);
    assert_eq!(spare(&mut there, ms(9)), closed(&[]));
}

/// 2 shards, 5 servers, 2 of them to be kept: one closes because it is too old, one because another pool needs its place,
/// one because its shard pauses, and PostgreSQL has hung up on none of them yet.
#[test]
fn servers_that_close_for_a_reason_of_their_own_are_not_counted_among_those_kept() {
    let (mut here, mut there) = pools(5);
    (1..=4).for_each(|server| stock(&mut here, server, ms(server.into())));
    stock(&mut there, 5, ms(5));
    did(|out| here.expire_idle(|server, _| (*server == 1).then_some("old"), out));
    assert_eq!(here.evict(), Some(2));
    did(|out| there.pause(out));
    assert_eq!(
        did(|out| here.expire_spare(2, "idle", |_, _| true, out)),
        []
    );
    (0..2).for_each(|_| assert_eq!(did(|out| here.closed(ms(8), out)), []));
    assert_eq!(did(|out| there.closed(ms(8), out)), []);
    assert_eq!(here.shared().open(), 2);
    let closed = Action::Close(3, Closing::Expired("idle"));
    assert_eq!(
        did(|out| here.expire_spare(1, "idle", |_, _| true, out)),
        [closed]
    );
}

#[test]
fn idle_servers_expire_oldest_first_and_one_that_dies_is_found() {
    let (mut here, _there) = pools(3);
    (1..=3).for_each(|server| stock(&mut here, server, ms(server.into())));
    let expired = did(|out| here.expire_idle(|_, since| (since <= ms(2)).then_some("old"), out));
    assert_eq!(
        expired,
        [1, 2].map(|server| Action::Close(server, Closing::Expired("old")))
    );
    assert_eq!(here.remove_idle(|&server| server == 9), None);
    assert_eq!(here.remove_idle(|&server| server == 3), Some(3));
    assert_eq!((here.idle().len(), here.shared().idle()), (0, 0));
}

#[test]
fn waiters_are_taken_up_to_a_moment_oldest_first() {
    let (mut here, _there) = pools(0);
    ('a'..='d').zip(1..).for_each(|(waiter, at)| {
        waits(&mut here, waiter, ms(at));
    });
    assert_eq!(here.take_waiters(ms(2)), ['a', 'b']);
    assert_eq!(here.shared().oldest_waiter_since(), Some(ms(3)));
    assert_eq!(here.take_waiters(Moment::NEVER), ['c', 'd']);
    assert!(!here.needs_tick());
}

#[test]
fn the_reserve_is_opened_for_who_has_waited_long_and_closes_when_nobody_waits() {
    let (mut here, mut there) = pools(1);
    here.shared().set_limits(1, 1, Duration::from_millis(5));
    stock(&mut here, 1, ms(0));
    assert_eq!(
        here.acquire('a', ms(0), &mut Vec::new()),
        Acquired::Granted(1)
    );
    assert_eq!(did(|out| there.acquire('x', ms(1), out)), []);
    assert_eq!(did(|out| there.tick(ms(5), out)), []);
    assert_eq!(did(|out| there.tick(ms(6), out)), [Action::Open]);
    assert_eq!(
        did(|out| there.acquire('y', ms(7), out)),
        [],
        "the reserve is used up"
    );
    let granted = |waiter, server| Action::Grant { waiter, server };
    assert_eq!(did(|out| there.opened(2, ms(8), out)), [granted('x', 2)]);
    assert_eq!(did(|out| there.release(2, ms(9), out)), [granted('y', 2)]);
    assert_eq!(
        did(|out| there.release(2, ms(10), out)),
        [Action::Close(2, Closing::Surplus)]
    );
    assert_eq!(did(|out| there.closed(ms(11), out)), []);
    assert_eq!(
        did(|out| here.release(1, ms(12), out)),
        [],
        "it is within the limit"
    );
}

#[test]
fn a_minimum_is_opened_one_by_one_and_never_exceeded() {
    let (mut here, mut there) = pools(3);
    assert_eq!(did(|out| here.warm(2, ms(0), out)), [Action::Open]);
    assert_eq!(did(|out| there.warm(2, ms(0), out)), [Action::Open]);
    assert_eq!(did(|out| here.warm(2, ms(0), out)), []);
    here.shared().set_limit(1);
    assert_eq!(did(|out| here.warm(9, ms(0), out)), [], "the limit counts");
}

#[test]
fn few_are_opened_at_a_time_and_the_next_shard_goes_on() {
    let (mut here, mut there) = pools(100);
    let opened = |pool: &mut Pool| {
        let waits = ('a'..='z').map(|waiter| did(|out| pool.acquire(waiter, ms(0), out)));
        waits
            .flatten()
            .filter(|action| *action == Action::Open)
            .count()
    };
    assert_eq!(opened(&mut here), OPENINGS_MAX as usize);
    assert_eq!(opened(&mut there), 0);
    let actions = did(|out| here.open_failed(None, ms(1), out));
    assert_eq!(actions, [Action::Open], "whose turn it was tries again");
    here.take_waiters(Moment::NEVER);
    assert_eq!(
        did(|out| here.open_failed(None, ms(2), out)),
        [Action::Wake(THERE)]
    );
    assert_eq!(did(|out| there.poke(ms(2), out)), [Action::Open]);
}

#[test]
fn a_paused_shard_closes_what_it_has_and_what_comes_and_opens_nothing() {
    let (mut here, mut there) = pools(3);
    stock(&mut here, 1, ms(0));
    assert_eq!(
        did(|out| here.pause(out)),
        [Action::Close(1, Closing::Paused)]
    );
    assert_eq!(did(|out| here.closed(ms(1), out)), []);
    assert_eq!(
        did(|out| assert!(matches!(here.acquire('a', ms(2), out), Acquired::Waits(_)))),
        []
    );
    assert_eq!(did(|out| here.warm(9, ms(2), out)), []);
    assert!(!here.needs_tick());
    assert_eq!(did(|out| there.warm(9, ms(3), out)), [Action::Open]);
    let sent = did(|out| there.opened(2, ms(3), out));
    assert!(matches!(sent[..], [Action::Send { to: HERE, .. }]));
    assert_eq!(
        did(|out| here.arrived(2, THERE, 1, ms(4), out)),
        [Action::Close(2, Closing::Paused)]
    );
    assert_eq!(did(|out| here.resume(ms(5), out)), [Action::Open]);
    assert_eq!(
        did(|out| here.opened(3, ms(6), out)),
        [Action::Grant {
            waiter: 'a',
            server: 3
        }]
    );
}

#[test]
fn nobody_is_told_how_long_it_takes_while_logins_to_servers_fail() {
    let (mut here, _there) = pools(1);
    stock(&mut here, 1, ms(0));
    let mut out = Vec::new();
    assert_eq!(here.acquire('a', ms(0), &mut out), Acquired::Granted(1));
    let lines: Vec<_> = ('b'..='h')
        .map(|name| waits(&mut here, name, ms(1)))
        .collect();
    for n in 2..=6 {
        here.release(1, ms(n), &mut out);
    }
    let last = lines[lines.len() - 1];
    assert!(here.outlook(last, ms(6)).unwrap().expected.is_some());
    here.closed(ms(7), &mut out);
    here.open_failed(Some(ms(1000)), ms(8), &mut out);
    assert_eq!(here.outlook(last, ms(8)).unwrap().expected, None);
}
