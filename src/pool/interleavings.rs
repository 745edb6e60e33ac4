//! Every interleaving of what shards do to each other's words, explored by loom: `scripts/test.sh
//! loom`. `base/explored.rs` says how it sees their orderings.
//!
//! The events of a test run on threads of their own; then all mail is delivered, in no
//! particular hurry and without ticks, and whoever should have been served must have been.

use super::action::{Acquired, Action};
use super::local::LocalPool;
use super::permit::Permits;
use super::shared::{Seat, SharedPool};
use crate::base::sync::Ordering::SeqCst;
use crate::base::{Moment, ShardId};
use loom::thread;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

type Pool = LocalPool<u32, char>;
type Actions = Vec<Action<u32, char>>;

fn explore(test: impl Fn() + Send + Sync + 'static) {
    loom::model(test);
}

/// Three whole pools at once, or long events, have too many: those with at most two preemptions of a thread.
fn explore_most(test: impl Fn() + Send + Sync + 'static) {
    explore_up_to(2, test);
}

fn explore_up_to(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
    let mut explorer = loom::model::Builder::new();
    explorer.preemption_bound = Some(preemptions);
    explorer.check(test);
}

fn at(micros: u64) -> Moment {
    Moment::from_nanos(micros * 1000)
}

// ---- permits -----------------------------------------------------------------------------

/// A holder of permits counts itself beside the word under test.
fn hold_once(permits: &Permits, held: &AtomicU32) {
    if permits.try_take() {
        let others = held.fetch_add(1, SeqCst);
        assert!(others < 1, "two hold the only permit");
        held.fetch_sub(1, SeqCst);
        permits.give_back();
    }
}

#[test]
fn the_only_permit_has_one_holder() {
    explore(|| {
        let permits = Arc::new(Permits::new(1));
        let held = Arc::new(AtomicU32::new(0));
        let (theirs, their_held) = (permits.clone(), held.clone());
        let other = thread::spawn(move || hold_once(&theirs, &their_held));
        hold_once(&permits, &held);
        other.join().unwrap();
        assert_eq!(permits.open(), 0);
        assert!(permits.try_take(), "the permit is lost");
    });
}

#[test]
fn nothing_opens_under_a_limit_that_has_fallen() {
    explore(|| {
        let permits = Arc::new(Permits::new(2));
        assert!(permits.try_take());
        let theirs = permits.clone();
        let taker = thread::spawn(move || theirs.try_take());
        let theirs = permits.clone();
        let giver = thread::spawn(move || theirs.give_back());
        permits.set_limit(0);
        let open = permits.open();
        assert!(permits.open() <= open && !permits.try_take());
        giver.join().unwrap();
        let is_taken = taker.join().unwrap();
        assert_eq!((permits.open(), permits.limit()), (is_taken.into(), 0));
    });
}

/// Shards of a pool with 1 server and a reserve of 2, all of them open but the last: it may be taken under that
/// configuration, and never under the next one.
#[test]
fn nothing_opens_beyond_a_reserve_that_has_gone() {
    explore(|| {
        let shared = Arc::new(SharedPool::new(1, 1, Vec::new()));
        let (waited, at_once) = (Duration::from_secs(1), Duration::ZERO);
        shared.set_limits(1, 2, waited);
        assert!((0..2).all(|_| shared.try_permit(waited, at(1))));
        let theirs = shared.clone();
        let taker = thread::spawn(move || theirs.try_permit(waited, at(1)));
        shared.set_limits(1, 0, at_once);
        let open = shared.open();
        assert!(!shared.try_permit(waited, at(1)));
        let is_taken = taker.join().unwrap();
        assert_eq!([open, shared.open()], [2 + u32::from(is_taken); 2]);
    });
}

/// From 1 and a reserve of 2 to 2 and none: neither allows a fourth server.
#[test]
fn limit_and_reserve_change_in_one_step() {
    explore(|| {
        let shared = Arc::new(SharedPool::new(1, 1, Vec::new()));
        let waited = Duration::from_secs(1);
        shared.set_limits(1, 2, waited);
        assert!((0..3).all(|_| shared.try_permit(waited, at(1))));
        let theirs = shared.clone();
        let taker = thread::spawn(move || theirs.try_permit(waited, at(1)));
        shared.set_limits(2, 0, waited);
        assert!(!taker.join().unwrap(), "no configuration allows so many");
    });
}

/// Whoever finds a new reserve also finds for whom it is.
#[test]
fn a_new_reserve_is_for_those_who_have_waited_long_enough_for_it() {
    explore(|| {
        let shared = Arc::new(SharedPool::new(1, 1, Vec::new()));
        assert!(shared.try_permit(Duration::ZERO, at(1)));
        let theirs = shared.clone();
        let taker = thread::spawn(move || theirs.try_permit(Duration::ZERO, at(1)));
        shared.set_limits(1, 1, Duration::from_secs(1));
        assert!(!taker.join().unwrap(), "it had not waited");
    });
}

#[test]
fn a_limit_lowered_in_mid_flight_retires_exactly_the_surplus() {
    explore(|| {
        let permits = Arc::new(Permits::new(2));
        assert!(permits.try_take() && permits.try_take());
        let retire = |permits: Arc<Permits>| {
            move || {
                let is_surplus = permits.try_retire(false);
                if is_surplus {
                    permits.give_back_retired();
                }
                u32::from(is_surplus)
            }
        };
        let others = [(); 2].map(|()| thread::spawn(retire(permits.clone())));
        permits.set_limit(1);
        let retired: u32 = others.map(|other| other.join().unwrap()).iter().sum();
        assert!(retired <= 1, "more closed than the limit asks for");
        let late = retire(permits.clone())();
        assert_eq!((retired + late, permits.open()), (1, 1));
    });
}

/// 2 pools of one database and user, which may have one server in all: whichever is refused keeps nothing of what it had
/// taken before.
#[test]
fn of_two_pools_under_one_limit_one_opens_a_server() {
    explore(|| {
        let outer = || Arc::new(Permits::new(1));
        let (database, user) = (outer(), outer());
        let levels = || vec![database.clone(), user.clone()];
        let pools = [(); 2].map(|()| Arc::new(SharedPool::new(1, 1, levels())));
        let theirs = pools[1].clone();
        let other = thread::spawn(move || theirs.try_permit(Duration::ZERO, at(1)));
        let ours = pools[0].try_permit(Duration::ZERO, at(1));
        let is_open = [ours, other.join().unwrap()];
        assert_eq!(is_open.map(u32::from).iter().sum::<u32>(), 1);
        assert_eq!(pools.map(|pool| pool.open()), is_open.map(u32::from));
        assert_eq!((database.open(), user.open()), (1, 1));
    });
}

/// 2 pools of one user, whose limit is reached, and of two databases: what is taken for nothing is there again.
#[test]
fn a_permit_taken_for_nothing_is_given_back() {
    explore(|| {
        let [database, user] = [1, 0].map(|limit| Arc::new(Permits::new(limit)));
        let pool = |outer| Arc::new(SharedPool::new(1, 1, outer));
        let refused = pool(vec![database.clone(), user]);
        let other = pool(vec![database.clone()]);
        let theirs = refused.clone();
        let refusing = thread::spawn(move || theirs.try_permit(Duration::ZERO, at(1)));
        let is_open = other.try_permit(Duration::ZERO, at(1));
        assert!(!refusing.join().unwrap(), "the user has no place");
        assert_eq!([refused.open(), other.open()], [0, is_open.into()]);
        // Whoever met a permit that was to be given back finds it at its next tick.
        assert!(is_open || other.try_permit(Duration::ZERO, at(1)));
        assert_eq!(database.open(), 1);
    });
}

// ---- failed openings ---------------------------------------------------------------------

#[test]
fn one_of_two_that_try_again_after_a_failure_is_on_trial() {
    explore(|| {
        let shared = Arc::new(SharedPool::new(2, 2, Vec::new()));
        shared.login_failed(at(5));
        let theirs = shared.clone();
        let other = thread::spawn(move || theirs.try_permit(Duration::ZERO, at(6)));
        let tries = [
            shared.try_permit(Duration::ZERO, at(6)),
            other.join().unwrap(),
        ];
        assert_eq!(tries.map(u32::from).iter().sum::<u32>(), 1, "on trial");
        assert_eq!(shared.open(), 1);
        shared.login_worked();
        assert!(shared.try_permit(Duration::ZERO, at(6)));
    });
}

/// Nobody whose look at the pause was before the failure opens a server after it: the place that he found free may be that of
/// the attempt that failed.
#[test]
fn nobody_takes_the_place_of_an_attempt_that_has_failed() {
    explore(|| {
        let shared = Arc::new(SharedPool::new(2, 1, Vec::new()));
        assert!(shared.try_permit(Duration::ZERO, at(1)));
        let theirs = shared.clone();
        let other = thread::spawn(move || theirs.try_permit(Duration::ZERO, at(2)));
        shared.login_failed(at(5));
        shared.opening_ended();
        shared.return_permit();
        assert!(!other.join().unwrap(), "it tries within the pause");
        assert_eq!(shared.open(), 0);
    });
}

// ---- publish, then look again ----------------------------------------------------------

fn seats(shards: u16, limit: u32) -> Vec<Seat> {
    let shared = Arc::new(SharedPool::new(shards.into(), limit, Vec::new()));
    (0..shards)
        .map(|shard| Seat::take(shared.clone(), ShardId(shard)))
        .collect()
}

/// The store-buffer litmus test over two desks, made ready by `begin`.
fn one_sees_the_other(
    begin: fn(&mut Seat, &mut Seat),
    wait: fn(&mut Seat) -> bool,
    spare: fn(&mut Seat) -> bool,
) {
    explore(move || {
        let mut seats = seats(2, 1);
        let (mut sparing, mut waiting) = (seats.pop().unwrap(), seats.pop().unwrap());
        begin(&mut waiting, &mut sparing);
        let other = thread::spawn(move || (spare(&mut sparing), sparing));
        let is_found = wait(&mut waiting);
        let (is_waiter_found, _sparing) = other.join().unwrap();
        assert!(
            is_found || is_waiter_found,
            "both looked and neither saw the other"
        );
    });
}

fn wait_beside_idle(seat: &mut Seat) -> bool {
    seat.publish_head(Some(at(2)));
    seat.idle_elsewhere(|_| 0).is_some()
}

fn rest_beside_waiter(seat: &mut Seat) -> bool {
    seat.publish_idle(1, Some(Moment::default()));
    seat.heads_elsewhere().oldest.is_some()
}

#[test]
fn a_first_wait_and_a_first_idle_server_see_each_other() {
    one_sees_the_other(|_, _| {}, wait_beside_idle, rest_beside_waiter);
}

/// The bits are up from the last time: the words themselves must do.
#[test]
fn a_wait_and_an_idle_server_see_each_other_when_both_bits_are_up() {
    let begin = |waiting: &mut Seat, sparing: &mut Seat| {
        sparing.publish_idle(1, Some(Moment::default()));
        sparing.publish_idle(0, None);
        waiting.publish_head(Some(at(1)));
        assert_eq!(sparing.claim_oldest(), Some(ShardId(0)));
    };
    one_sees_the_other(begin, wait_beside_idle, rest_beside_waiter);
}

#[test]
fn a_wait_and_a_returned_permit_see_each_other() {
    one_sees_the_other(
        |_, sparing| {
            assert!(sparing.shared().try_permit(Duration::ZERO, at(1)));
            sparing.shared().opening_ended();
        },
        |seat| {
            seat.publish_head(Some(at(2)));
            seat.publish_want(true);
            seat.shared().may_open(at(2))
        },
        |seat| {
            seat.shared().return_permit();
            seat.wanting_elsewhere().is_some()
        },
    );
}

// ---- claims --------------------------------------------------------------------------------

#[test]
fn a_head_is_claimed_by_one_of_two_senders() {
    explore(|| {
        let mut seats = seats(3, 2);
        seats[0].publish_head(Some(at(2)));
        let other = seats.pop().unwrap();
        let claiming = thread::spawn(move || (other.claim_oldest(), other));
        let ours = seats[1].claim_oldest();
        let (theirs, _other) = claiming.join().unwrap();
        let claims = [ours, theirs];
        assert_eq!(claims.iter().flatten().count(), 1, "claims: {claims:?}");
    });
}

/// A claim that meets a head published anew is either taken down by it or made on it, and one
/// taken back late neither invents a waiter nor hides one.
#[test]
fn a_claim_taken_back_leaves_the_head_as_its_shard_published_it() {
    for last in [None, Some(at(4))] {
        explore(move || {
            let mut seats = seats(2, 1);
            seats[0].publish_head(Some(at(2)));
            let sender = seats.pop().unwrap();
            let claiming = thread::spawn(move || {
                if let Some(shard) = sender.claim_oldest() {
                    sender.unclaim(shard);
                }
                sender
            });
            seats[0].publish_head(last);
            let sender = claiming.join().unwrap();
            assert_eq!(sender.waits_at(ShardId(0)), last.is_some());
            let head = sender.heads_elsewhere().oldest;
            assert_eq!(head.map(|head| head.since()), last);
        });
    }
}

// ---- whole pools ---------------------------------------------------------------------------

/// Two or three shards of one pool, and what became of their clients.
struct Arena {
    pools: Vec<Pool>,
    mail: VecDeque<(usize, Action<u32, char>)>,
    granted: Vec<char>,
    servers: u32,
}

impl Arena {
    /// Shard 1 has opened `servers` servers, all leased to clients of its own.
    fn new(shards: u16, limit: u32, servers: u32) -> Arena {
        Arena::under(Vec::new(), shards, limit, servers)
    }

    /// The same, each of whose servers takes a permit of every one of `outer`.
    fn under(outer: Vec<Arc<Permits>>, shards: u16, limit: u32, servers: u32) -> Arena {
        let shared = Arc::new(SharedPool::new(shards.into(), limit, outer));
        let pool = |shard| Pool::new(shared.clone(), ShardId(shard));
        let mut arena = Arena {
            pools: (0..shards).map(pool).collect(),
            mail: VecDeque::new(),
            granted: Vec::new(),
            servers: 0,
        };
        for _ in 0..servers {
            arena.does(1, |pool, out| acquire(pool, 'z', at(1), out));
        }
        arena.deliver();
        assert_eq!(arena.granted.len() as u32, servers);
        arena.granted.clear();
        arena
    }

    /// The last shard's pool, to be given to a thread.
    fn lend(&mut self) -> Pool {
        self.pools.pop().unwrap()
    }

    fn take_back(&mut self, pool: Pool, did: Actions) {
        self.pools.push(pool);
        self.post(self.pools.len() - 1, did);
    }

    fn does(&mut self, shard: usize, event: impl FnOnce(&mut Pool, &mut Actions)) {
        let mut out = Vec::new();
        event(&mut self.pools[shard], &mut out);
        self.post(shard, out);
    }

    fn post(&mut self, by: usize, actions: Actions) {
        self.mail
            .extend(actions.into_iter().map(|action| (by, action)));
    }

    /// Performs everything until nothing is under way; served clients keep their servers.
    fn deliver(&mut self) {
        while let Some((by, action)) = self.mail.pop_front() {
            let from = ShardId(by as u16);
            match action {
                Action::Grant { waiter, .. } => self.granted.push(waiter),
                Action::Open => {
                    self.servers += 1;
                    let server = self.servers;
                    self.does(by, |pool, out| pool.opened(server, at(9), out));
                }
                Action::Close(..) => self.does(by, |pool, out| pool.closed(at(9), out)),
                Action::Send { to, server, hops } => self.does(to.index(), |pool, out| {
                    pool.arrived(server, from, hops, at(9), out)
                }),
                Action::Ask(to) => self.does(to.index(), |pool, out| pool.asked(from, out)),
                Action::Decline(to) => {
                    self.does(to.index(), |pool, out| pool.declined(from, at(9), out))
                }
                Action::Wake(to) => self.does(to.index(), |pool, out| pool.poke(at(9), out)),
                // There is no other pool.
                Action::Evict => {}
                Action::Check(_) => unreachable!("none is checked"),
            }
        }
    }

    fn assert_served(&mut self, clients: &[char]) {
        self.deliver();
        self.granted.sort_unstable();
        assert_eq!(self.granted, clients, "somebody waits for ever");
    }
}

fn acquire(pool: &mut Pool, client: char, now: Moment, out: &mut Actions) {
    if let Acquired::Granted(server) = pool.acquire(client, now, out) {
        let waiter = client;
        out.push(Action::Grant { waiter, server });
    }
}

/// `theirs` happens on the last shard while `ours` does on the first.
fn at_once(
    arena: &mut Arena,
    ours: impl FnOnce(&mut Pool, &mut Actions),
    theirs: impl FnOnce(&mut Pool, &mut Actions) + 'static,
) {
    let mut pool = arena.lend();
    let other = thread::spawn(move || {
        let mut out = Vec::new();
        theirs(&mut pool, &mut out);
        (pool, out)
    });
    arena.does(0, ours);
    let (pool, out) = other.join().unwrap();
    arena.take_back(pool, out);
}

/// 2 shards, 1 server: `theirs` happens on shard 1 while a client comes to shard 0.
fn a_client_is_served_although(theirs: fn(&mut Pool, &mut Actions)) {
    explore(move || {
        let mut arena = Arena::new(2, 1, 1);
        at_once(
            &mut arena,
            |pool, out| acquire(pool, 'a', at(2), out),
            theirs,
        );
        arena.assert_served(&['a']);
    });
}

#[test]
fn a_client_that_comes_as_the_only_server_goes_idle_is_served() {
    a_client_is_served_although(|pool, out| pool.release(1, at(2), out));
}

#[test]
fn a_client_that_comes_as_the_only_server_dies_is_served() {
    a_client_is_served_although(|pool, out| pool.closed(at(2), out));
}

/// 2 shards, 1 server, which is also the only one that its database and its user may have.
#[test]
fn a_client_that_comes_as_the_only_server_of_a_user_dies_is_served() {
    explore_up_to(3, || {
        let outer = [(); 2].map(|()| Arc::new(Permits::new(1)));
        let mut arena = Arena::under(outer.into(), 2, 1, 1);
        let comes = |pool: &mut Pool, out: &mut Actions| acquire(pool, 'a', at(2), out);
        at_once(&mut arena, comes, |pool, out| pool.closed(at(2), out));
        arena.assert_served(&['a']);
    });
}

#[test]
fn a_client_that_comes_as_a_pause_closes_the_only_server_is_served() {
    a_client_is_served_although(|pool, out| {
        pool.pause(out);
        pool.release(1, at(2), out);
        pool.resume(at(3), out);
    });
}

/// 2 shards, 1 server, which is released on shard 1 while shard 0, where a client waits, pauses and goes on.
#[test]
fn a_server_released_during_a_pause_elsewhere_serves_who_waited_there() {
    explore(|| {
        let mut arena = Arena::new(2, 1, 1);
        arena.does(0, |pool, out| acquire(pool, 'a', at(2), out));
        let pauses = |pool: &mut Pool, out: &mut Actions| {
            pool.pause(out);
            pool.resume(at(3), out);
        };
        at_once(&mut arena, pauses, |pool, out| pool.release(1, at(3), out));
        arena.assert_served(&['a']);
    });
}

/// 2 shards, 1 server, whose way to shard 0 is barred by a full mailbox while the waiter there gives up and another comes:
/// at its next tick shard 1 tries again.
#[test]
fn a_server_that_could_not_be_sent_is_sent_at_the_next_tick() {
    explore(|| {
        let mut arena = Arena::new(2, 1, 1);
        let mut first = None;
        arena.does(0, |pool, out| match pool.acquire('a', at(2), out) {
            Acquired::Waits(id) => first = Some(id),
            Acquired::Granted(server) => panic!("{server} was idle"),
        });
        let is_barred = |pool: &mut Pool, out: &mut Actions| {
            pool.release(1, at(4), out);
            if let Some(Action::Send { to, server, .. }) = out.pop_if(is_send) {
                pool.send_failed(server, to, at(4), out);
            }
        };
        let changes = |pool: &mut Pool, out: &mut Actions| {
            assert_eq!(first.and_then(|id| pool.cancel_wait(id)), Some('a'));
            acquire(pool, 'b', at(4), out);
        };
        at_once(&mut arena, changes, is_barred);
        arena.deliver();
        arena.does(1, |pool, out| pool.tick(at(5), out));
        arena.assert_served(&['b']);
    });
}

fn is_send(action: &mut Action<u32, char>) -> bool {
    matches!(action, Action::Send { .. })
}

/// 2 shards, a pool of 2: shard 1, where a client waits, has an attempt on trial after a failure, which ends as `ends`
/// does while another client comes to shard 0.
fn both_are_served_although_a_trial(ends: fn(&mut Pool, &mut Actions)) {
    explore_most(move || {
        let mut arena = Arena::new(2, 2, 0);
        let mut out = Vec::new();
        let pool = &mut arena.pools[1];
        acquire(pool, 'z', at(1), &mut out);
        pool.open_failed(Some(at(2)), at(1), &mut out);
        pool.tick(at(3), &mut out);
        assert_eq!(out, [Action::Open, Action::Open], "it is on trial");
        let comes = |pool: &mut Pool, out: &mut Actions| acquire(pool, 'a', at(4), out);
        at_once(&mut arena, comes, ends);
        arena.assert_served(&['a', 'z']);
    });
}

#[test]
fn a_client_that_comes_as_a_trial_succeeds_is_served() {
    both_are_served_although_a_trial(|pool, out| pool.opened(7, at(4), out));
}

#[test]
fn a_client_that_comes_as_a_trial_yields_an_unfit_server_is_served() {
    both_are_served_although_a_trial(|pool, out| {
        pool.opened_unfit(at(4), out);
        pool.closed(at(4), out);
    });
}

#[test]
fn a_client_that_comes_as_a_trial_is_given_up_is_served() {
    both_are_served_although_a_trial(|pool, out| pool.open_failed(None, at(4), out));
}

#[test]
fn a_client_that_comes_as_a_trial_fails_is_served_after_the_next_pause() {
    both_are_served_although_a_trial(|pool, out| {
        pool.open_failed(Some(at(5)), at(4), out);
        pool.tick(at(6), out);
    });
}

/// 2 shards, 2 servers: one that comes to a claimed head, and one that goes idle meanwhile and
/// passes that head over; two clients wait.
#[test]
fn a_server_that_passed_a_claimed_head_over_is_found_again() {
    explore(|| {
        let mut arena = Arena::new(2, 2, 2);
        arena.does(0, |pool, out| acquire(pool, 'a', at(2), out));
        arena.does(0, |pool, out| acquire(pool, 'b', at(3), out));
        let mut first = Vec::new();
        arena.pools[1].release(1, at(4), &mut first);
        let [Action::Send { server, hops, .. }] = first[..] else {
            panic!("shard 1 did {first:?}");
        };
        let arrives = |pool: &mut Pool, out: &mut Actions| {
            pool.arrived(server, ShardId(1), hops, at(5), out);
        };
        at_once(&mut arena, arrives, |pool, out| pool.release(2, at(5), out));
        arena.assert_served(&['a', 'b']);
    });
}

/// 2 shards, limit 1 raised to 2 by shard 1 while a second client comes to shard 0: both are
/// served, by two servers.
#[test]
fn a_limit_raised_in_mid_flight_is_used() {
    explore(|| {
        let mut arena = Arena::new(2, 1, 1);
        arena.does(0, |pool, out| acquire(pool, 'a', at(2), out));
        let mut pool = arena.lend();
        let other = thread::spawn(move || {
            let mut out = Vec::new();
            pool.shared().set_limit(2);
            pool.poke(at(3), &mut out);
            (pool, out)
        });
        arena.does(0, |pool, out| acquire(pool, 'b', at(3), out));
        let (mut pool, mut out) = other.join().unwrap();
        pool.release(1, at(4), &mut out);
        arena.take_back(pool, out);
        arena.assert_served(&['a', 'b']);
        assert_eq!(arena.pools[0].shared().open(), 2);
    });
}

/// 3 shards, 2 servers, released on shards 1 and 2 while a client waits on shard 0; `meanwhile`
/// happens there at the same time.
fn two_servers_are_released(meanwhile: fn(&mut Pool, &mut Actions)) -> Arena {
    let mut arena = Arena::new(3, 2, 2);
    arena.does(0, |pool, out| acquire(pool, 'a', at(2), out));
    let release = |mut pool: Pool, server| {
        thread::spawn(move || {
            let mut out = Vec::new();
            pool.release(server, at(3), &mut out);
            (pool, out)
        })
    };
    let second = release(arena.lend(), 2);
    let first = release(arena.lend(), 1);
    arena.does(0, meanwhile);
    for other in [first, second] {
        let (pool, out) = other.join().unwrap();
        arena.take_back(pool, out);
    }
    arena
}

#[test]
fn two_servers_released_at_once_serve_a_line_that_grows() {
    explore_most(|| {
        let grow = |pool: &mut Pool, out: &mut Actions| acquire(pool, 'b', at(3), out);
        two_servers_are_released(grow).assert_served(&['a', 'b']);
    });
}

#[test]
fn a_limit_lowered_as_two_servers_are_released_closes_one() {
    explore_most(|| {
        let lower = |pool: &mut Pool, out: &mut Actions| {
            pool.shared().set_limit(1);
            pool.poke(at(3), out);
        };
        let mut arena = two_servers_are_released(lower);
        arena.assert_served(&['a']);
        (0..3).for_each(|shard| arena.does(shard, |pool, out| pool.poke(at(9), out)));
        arena.deliver();
        assert_eq!(arena.pools[0].shared().open(), 1);
    });
}
