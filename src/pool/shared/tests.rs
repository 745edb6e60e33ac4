//! What the pools of all shards share.

use super::*;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

fn seats(shards: u16, limit: u32) -> (Arc<SharedPool>, Vec<Seat>) {
    let shared = Arc::new(SharedPool::new(shards.into(), limit, Vec::new()));
    let seats = (0..shards)
        .map(|shard| Seat::take(shared.clone(), ShardId(shard)))
        .collect();
    (shared, seats)
}

impl Seat {
    fn try_claim_own(&self) -> bool {
        let mut heads = self.shared.heads().filter(|head| head.shard == self.me);
        heads.next().is_some_and(|head| self.try_claim(head))
    }
}

fn at(nanos: u64) -> Option<Moment> {
    Some(Moment::from_nanos(nanos))
}

#[test]
fn a_claimed_head_is_passed_over_and_still_bounds_the_floor() {
    let (_, mut seats) = seats(3, 1);
    seats[0].publish_head(at(10));
    seats[1].publish_head(at(20));
    let oldest = seats[2].heads_elsewhere().oldest.unwrap();
    assert_eq!(oldest.shard, ShardId(0));
    assert!(seats[2].try_claim(oldest) && !seats[2].try_claim(oldest));
    let heads = seats[2].heads_elsewhere();
    assert_eq!(heads.oldest.map(|head| head.shard), Some(ShardId(1)));
    assert_eq!(heads.floor, Moment::from_nanos(10));
}

#[test]
fn a_claim_ends_when_the_head_is_published_anew_or_the_sender_takes_it_back() {
    let (_, mut seats) = seats(2, 1);
    seats[0].publish_head(at(10));
    assert_eq!(seats[1].claim_oldest(), Some(ShardId(0)));
    assert_eq!(seats[1].claim_oldest(), None);
    seats[1].unclaim(ShardId(0));
    assert_eq!(seats[1].claim_oldest(), Some(ShardId(0)));
    assert!(seats[0].publish_head(at(12)), "a claim was taken down");
    assert!(!seats[0].publish_head(at(12)));
    assert_eq!(seats[1].claim_oldest(), Some(ShardId(0)));
    seats[0].publish_head(None);
    seats[1].unclaim(ShardId(0));
    assert!(
        !seats[1].waits_at(ShardId(0)),
        "a late unclaim must not invent a waiter"
    );
}

#[test]
fn idle_servers_already_asked_for_do_not_count() {
    let (_, mut seats) = seats(3, 1);
    seats[0].publish_idle(2, Some(Moment::default()));
    assert_eq!(seats[1].idle_elsewhere(|_| 1), Some(ShardId(0)));
    assert_eq!(seats[1].idle_elsewhere(|_| 2), None);
    assert_eq!(seats[0].idle_elsewhere(|_| 0), None, "not our own");
    seats[0].publish_idle(0, None);
    assert_eq!(seats[1].idle_elsewhere(|_| 0), None);
}

#[test]
fn after_a_failure_one_attempt_alone_is_on_trial() {
    let (shared, _) = seats(1, 3);
    let (before, after) = (Moment::from_nanos(99), Moment::from_nanos(100));
    assert!(shared.try_permit(Duration::ZERO, before));
    shared.return_permit();
    shared.login_failed(after);
    assert!(!shared.try_permit(Duration::ZERO, before));
    assert!(shared.try_permit(Duration::ZERO, after) && !shared.try_permit(Duration::ZERO, after));
    shared.login_worked();
    assert!(shared.try_permit(Duration::ZERO, before));
}

#[test]
fn failures_of_attempts_made_together_count_as_one_until_one_works() {
    let (shared, _) = seats(1, 9);
    let at = |n| Moment::from_nanos(n);
    (0..3).for_each(|_| assert!(shared.try_permit(Duration::ZERO, at(1))));
    (0..3).for_each(|_| shared.login_failed(at(10)));
    assert_eq!(shared.failures(), 1);
    assert!(shared.try_permit(Duration::ZERO, at(10)), "the trial");
    shared.login_failed(at(20));
    assert_eq!(shared.failures(), 2);
    assert!(shared.try_permit(Duration::ZERO, at(20)), "the trial");
    shared.login_worked();
    assert_eq!(shared.failures(), 0);
}

#[test]
fn attempt_that_works_ends_no_pause_that_another_made_with_it_has_begun() {
    let (shared, _) = seats(1, 9);
    let at = |n| Moment::from_nanos(n);
    (0..2).for_each(|_| assert!(shared.try_permit(Duration::ZERO, at(1))));
    shared.login_failed(at(10));
    shared.login_worked();
    assert_eq!((shared.retry_at(), shared.failures()), (Some(at(10)), 1));
    assert!(!shared.try_permit(Duration::ZERO, at(9)));
    assert!(shared.try_permit(Duration::ZERO, at(10)), "the trial");
    shared.login_worked();
    assert_eq!((shared.retry_at(), shared.failures()), (None, 0));
}

#[test]
fn an_outer_limit_that_is_full_costs_no_permit() {
    let database = Arc::new(Permits::new(9));
    let user = Arc::new(Permits::new(1));
    let shared = SharedPool::new(1, 5, vec![database.clone(), user.clone()]);
    let now = Moment::default();
    assert!(shared.try_permit(Duration::ZERO, now) && !shared.try_permit(Duration::ZERO, now));
    assert_eq!((shared.open(), database.open(), user.open()), (1, 1, 1));
    shared.return_permit();
    assert_eq!((shared.open(), database.open(), user.open()), (0, 0, 0));
}

#[test]
#[should_panic(expected = "two local pools")]
fn a_seat_is_taken_once() {
    let (shared, _seats) = seats(1, 1);
    Seat::take(shared, ShardId(0));
}

#[test]
fn a_seat_left_behind_can_be_taken_again_and_says_nothing() {
    let (shared, mut seats) = seats(1, 1);
    seats[0].publish_head(at(10));
    seats[0].publish_idle(1, Some(Moment::default()));
    seats.clear();
    assert!(!shared.anyone_waits() && shared.idle() == 0);
    Seat::take(shared, ShardId(0));
}

/// Two threads leave it together, as nearly as spinning can make them.
#[derive(Default)]
struct StartLine(AtomicU64);

impl StartLine {
    fn meet(&self, round: u64) {
        self.0.fetch_add(1, SeqCst);
        let mut spins = 0;
        while self.0.load(SeqCst) < 2 * round {
            spins += 1;
            match spins % 512 {
                0 => thread::yield_now(),
                _ => std::hint::spin_loop(),
            }
        }
    }
}

/// Shifts the threads against each other, so that in some rounds they truly meet.
fn linger(spins: u64) {
    (0..spins).for_each(|_| std::hint::spin_loop());
}

/// The store-buffer litmus test: two threads publish and look at the same time, many times.
fn neither_misses_the_other(
    mut publish_wait: impl FnMut(&mut Seat) -> bool + Send,
    mut publish_spare: impl FnMut(&mut Seat) -> bool + Send,
    mut reset: impl FnMut(&mut Seat, bool) + Send + Clone,
) {
    const ROUNDS: u64 = 20_000;
    let (_shared, mut seats) = seats(2, 1);
    let (mut spare, mut wait) = (seats.pop().unwrap(), seats.pop().unwrap());
    let line = StartLine::default();
    let mut reset_spare = reset.clone();
    thread::scope(|scope| {
        let sparing = scope.spawn(|| {
            let mut seen = Vec::new();
            for round in 1..=ROUNDS {
                line.meet(2 * round - 1);
                linger(round % 3);
                seen.push(publish_spare(&mut spare));
                line.meet(2 * round);
                reset_spare(&mut spare, true);
            }
            seen
        });
        let mut seen = Vec::new();
        for round in 1..=ROUNDS {
            line.meet(2 * round - 1);
            linger(round / 3 % 8);
            seen.push(publish_wait(&mut wait));
            line.meet(2 * round);
            reset(&mut wait, false);
        }
        let others = sparing.join().unwrap();
        assert!(
            seen.iter()
                .zip(&others)
                .all(|(&wait, &spare)| wait || spare)
        );
    });
}

#[test]
fn a_wait_and_an_idle_server_cannot_miss_each_other() {
    neither_misses_the_other(
        |seat| {
            seat.publish_head(at(2));
            seat.idle_elsewhere(|_| 0).is_some()
        },
        |seat| {
            seat.publish_idle(1, Some(Moment::default()));
            seat.heads_elsewhere().oldest.is_some()
        },
        |seat, is_spare| match is_spare {
            // The idle bit stays up from the first round on: the count alone must suffice.
            true => seat.publish_idle(0, None),
            false => {
                seat.publish_head(None);
            }
        },
    );
}

#[test]
fn a_head_published_anew_and_an_idle_server_cannot_miss_each_other() {
    neither_misses_the_other(
        |seat| {
            seat.publish_head(at(2));
            seat.idle_elsewhere(|_| 0).is_some()
        },
        |seat| {
            seat.publish_idle(1, Some(Moment::default()));
            seat.heads_elsewhere().oldest.is_some()
        },
        |seat, is_spare| match is_spare {
            true => seat.publish_idle(0, None),
            // The waiting bit stays up, as under a claim: the head alone must suffice.
            false => {
                seat.publish_head(at(2));
                assert!(seat.try_claim_own());
            }
        },
    );
}

#[test]
fn a_wait_and_a_returned_permit_cannot_miss_each_other() {
    let is_first = AtomicBool::new(true);
    neither_misses_the_other(
        |seat| {
            seat.publish_head(at(2));
            seat.shared().may_open(Moment::default())
        },
        |seat| {
            // The first round has no permit to return yet.
            if !is_first.swap(false, SeqCst) {
                seat.shared().return_permit();
            }
            seat.heads_elsewhere().oldest.is_some()
        },
        |seat, is_spare| match is_spare {
            true => {
                assert!(seat.shared().try_permit(Duration::ZERO, Moment::default()));
                seat.shared().opening_ended();
            }
            false => {
                seat.publish_head(None);
            }
        },
    );
}
