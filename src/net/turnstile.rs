//! The queue that handshakes stand in: one step at a time, and only a share of the shard's time while it
//! has other work, so that a storm of logins does not slow running queries down.
//!
//! A step of a handshake takes up to a millisecond (an RSA signature) and cannot be cut up. After each,
//! the next has to wait for [`REST`] times as long, unless the shard has nothing else to do: the driver,
//! which knows, opens the turnstile. A task queue of glommio's would not do: the driver, which is always
//! runnable, would never let it have its turn.

use super::reactor::{Net, set_waker};
use crate::base::{Clock, Moment};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};

/// Time for others after each unit of time for a handshake: handshakes get a quarter of a busy shard.
const REST: u32 = 3;

#[derive(Default)]
struct Ticket {
    is_open: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Who waits for a step, in order.
pub(super) struct Turnstile {
    line: RefCell<VecDeque<Weak<Ticket>>>,
    /// When the next may go although others have work.
    free_at: Cell<Moment>,
}

impl Turnstile {
    pub(super) fn new(now: Moment) -> Turnstile {
        Turnstile {
            line: RefCell::default(),
            free_at: Cell::new(now),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.line.borrow().is_empty()
    }

    /// Lets the next one through, if it is time or the shard `is_idle`.
    pub(super) fn admit(&self, is_idle: bool, now: Moment) {
        if !is_idle && now < self.free_at.get() {
            return;
        }
        loop {
            let Some(next) = self.line.borrow_mut().pop_front() else {
                return;
            };
            // Who has gone meanwhile is passed over.
            if let Some(ticket) = next.upgrade() {
                ticket.is_open.set(true);
                if let Some(waker) = ticket.waker.take() {
                    waker.wake();
                }
                return;
            }
        }
    }

    fn stand_in_line(&self) -> Rc<Ticket> {
        let ticket = Rc::new(Ticket::default());
        self.line.borrow_mut().push_back(Rc::downgrade(&ticket));
        ticket
    }

    /// A step has taken from `start` to `end`.
    fn account(&self, start: Moment, end: Moment) {
        self.free_at.set(end.after(end.since(start) * REST));
    }
}

impl Net {
    /// Runs one step of a handshake when it is its turn.
    pub(super) async fn in_turn<T>(self, step: impl FnOnce() -> T) -> T {
        let turnstile = &self.0.turnstile;
        let ticket = turnstile.stand_in_line();
        poll_fn(|cx| {
            if ticket.is_open.get() {
                return Poll::Ready(());
            }
            set_waker(&mut ticket.waker.borrow_mut(), cx);
            Poll::Pending
        })
        .await;
        let start = Clock::now();
        let result = step();
        turnstile.account(start, Clock::now());
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(ms: u64) -> Moment {
        Clock::now().after(Duration::from_millis(ms))
    }

    #[test]
    fn after_a_step_others_have_three_times_as_long() {
        let turnstile = Turnstile::new(at(0));
        let start = at(100);
        let end = start.after(Duration::from_millis(2));
        turnstile.account(start, end);
        let ticket = turnstile.stand_in_line();
        turnstile.admit(false, end.after(Duration::from_millis(5)));
        assert!(!ticket.is_open.get());
        turnstile.admit(false, end.after(Duration::from_millis(6)));
        assert!(ticket.is_open.get());
    }

    #[test]
    fn idle_shard_lets_everybody_through_in_order() {
        let now = at(0);
        let turnstile = Turnstile::new(now);
        turnstile.account(now, now.after(Duration::from_secs(1)));
        let [first, gone, last] = [(); 3].map(|()| turnstile.stand_in_line());
        drop(gone);
        turnstile.admit(true, now);
        assert!(first.is_open.get() && !last.is_open.get());
        turnstile.admit(true, now);
        assert!(last.is_open.get() && turnstile.is_empty());
    }
}
