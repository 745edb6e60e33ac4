//! The line of one shard's waiting clients. Owns their tokens and the moments they came; knows
//! nothing of servers or other shards.
//!
//! A waiter that leaves from the middle becomes a hole, so that nobody behind it moves. Ids
//! ascend along the line, so it is found by binary search. The head is never a hole, and holes
//! are swept out when they outnumber the living: the line takes room for at most twice its
//! living waiters plus [`HOLES_MIN`], at amortised constant cost.

use crate::base::Moment;
use std::collections::VecDeque;

/// So few holes are never worth a sweep.
const HOLES_MIN: usize = 32;

/// One waiter's number in the line of its shard; never reused within one pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(u64);

/// First come, first served; anyone may leave early.
#[derive(Debug)]
pub(super) struct WaiterQueue<W> {
    line: VecDeque<Place<W>>,
    living: usize,
    next_id: u64,
    /// Moments never run backwards along the line, even if the caller's clock reading does.
    newest: Moment,
}

#[derive(Debug)]
struct Place<W> {
    id: WaiterId,
    since: Moment,
    waiter: Option<W>,
}

impl<W> WaiterQueue<W> {
    pub(super) fn new() -> WaiterQueue<W> {
        WaiterQueue {
            line: VecDeque::new(),
            living: 0,
            next_id: 0,
            newest: Moment::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.living
    }

    pub(super) fn is_empty(&self) -> bool {
        self.living == 0
    }

    /// Since when the head has waited.
    pub(super) fn head_since(&self) -> Option<Moment> {
        self.line.front().map(|place| place.since)
    }

    /// Since when the last who came has waited, or had.
    pub(super) fn newest(&self) -> Moment {
        self.newest
    }

    pub(super) fn push(&mut self, waiter: W, now: Moment) -> WaiterId {
        let id = WaiterId(self.next_id);
        self.next_id += 1;
        self.newest = self.newest.max(now);
        self.living += 1;
        self.line.push_back(Place {
            id,
            since: self.newest,
            waiter: Some(waiter),
        });
        id
    }

    pub(super) fn pop(&mut self) -> Option<W> {
        let waiter = self.line.pop_front()?.waiter;
        self.living -= 1;
        self.trim();
        waiter
    }

    /// Takes a waiter out of the line, wherever it stands.
    pub(super) fn remove(&mut self, id: WaiterId) -> Option<W> {
        let at = self.line.binary_search_by_key(&id, |place| place.id).ok()?;
        let waiter = self.line.get_mut(at)?.waiter.take()?;
        self.living -= 1;
        self.trim();
        self.sweep();
        Some(waiter)
    }

    /// How many stand before a waiter, and since when it has waited. While there are holes they count
    /// as evenly spread.
    pub(super) fn place(&self, id: WaiterId) -> Option<(usize, Moment)> {
        let at = self.line.binary_search_by_key(&id, |place| place.id).ok()?;
        let place = self.line.get(at)?;
        place.waiter.as_ref()?;
        Some((at * self.living / self.line.len(), place.since))
    }

    /// The living from the head on, and since when each has waited.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&W, Moment)> {
        self.line
            .iter()
            .filter_map(|place| Some((place.waiter.as_ref()?, place.since)))
    }

    fn trim(&mut self) {
        while self
            .line
            .front()
            .is_some_and(|place| place.waiter.is_none())
        {
            self.line.pop_front();
        }
    }

    fn sweep(&mut self) {
        if self.line.len() - self.living > self.living + HOLES_MIN {
            self.line.retain(|place| place.waiter.is_some());
            self.line.shrink_to(2 * self.living + HOLES_MIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue_of(count: u32) -> (WaiterQueue<u32>, Vec<WaiterId>) {
        let mut queue = WaiterQueue::new();
        let ids = (0..count)
            .map(|at| queue.push(at, Moment::from_nanos(at.into())))
            .collect();
        (queue, ids)
    }

    #[test]
    fn waiters_leave_in_the_order_they_came() {
        let (mut queue, _) = queue_of(3);
        assert_eq!(
            [queue.pop(), queue.pop(), queue.pop(), queue.pop()],
            [Some(0), Some(1), Some(2), None]
        );
    }

    #[test]
    fn a_waiter_is_removed_once() {
        let (mut queue, ids) = queue_of(3);
        assert_eq!(queue.remove(ids[1]), Some(1));
        assert_eq!(queue.remove(ids[1]), None);
        assert_eq!(
            [queue.pop(), queue.pop(), queue.pop()],
            [Some(0), Some(2), None]
        );
        assert_eq!(queue.remove(ids[2]), None, "already served");
    }

    #[test]
    fn a_place_counts_who_stands_before() {
        let (mut queue, ids) = queue_of(5);
        assert_eq!(queue.place(ids[3]), Some((3, Moment::from_nanos(3))));
        queue.pop();
        assert_eq!(queue.place(ids[3]), Some((2, Moment::from_nanos(3))));
        queue.remove(ids[3]);
        assert_eq!((queue.place(ids[3]), queue.place(ids[0])), (None, None));
    }

    #[test]
    fn the_head_is_never_a_hole() {
        let (mut queue, ids) = queue_of(3);
        queue.remove(ids[1]);
        queue.remove(ids[0]);
        assert_eq!(queue.head_since(), Some(Moment::from_nanos(2)));
        queue.remove(ids[2]);
        assert_eq!((queue.head_since(), queue.len()), (None, 0));
    }

    #[test]
    fn holes_behind_a_patient_head_stay_bounded() {
        let (mut queue, ids) = queue_of(10_000);
        for id in &ids[1..] {
            queue.remove(*id);
            assert!(queue.line.len() <= 2 * queue.len() + HOLES_MIN);
        }
        assert_eq!(
            queue.iter().collect::<Vec<_>>(),
            [(&0, Moment::from_nanos(0))]
        );
    }

    #[test]
    fn a_clock_reading_from_the_past_does_not_reorder_the_line() {
        let mut queue = WaiterQueue::new();
        queue.push('a', Moment::from_nanos(10));
        queue.push('b', Moment::from_nanos(5));
        queue.pop();
        assert_eq!(queue.head_since(), Some(Moment::from_nanos(10)));
    }
}
