//! The turnstile that logins pass: only a share of the shard's time is for them while it has other work, and only
//! [`TURN_SHARE`] of any turn, so that a storm of logins does not slow running queries down.
//!
//! A login is a future that is polled only while there is time for logins: whoever comes when there is none stands in
//! line. Logins to servers have a line of their own that goes first: they are few, and whoever is let in by the others waits for
//! them. The time is a bucket that fills at a rate of one part in [`SHARE`], up to [`TURN_SHARE`], and at once when the
//! shard has nothing else to do, which the driver knows. A step that cannot be cut up and takes longer (an RSA signature:
//! a millisecond) leaves the bucket overdrawn, and those behind it wait the longer. A task queue of glommio's would not
//! do: the driver, which is always runnable, would never let it have its turn.

use super::reactor::{Net, set_waker};
use crate::base::{Clock, Moment};
use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

/// Logins get one part in so many of a busy shard's time.
const SHARE: i64 = 4;
/// Nanoseconds for logins in one turn of the driver, unless a single step takes longer: what a query may have to wait for them.
const TURN_SHARE: i64 = 50_000;
/// How many are called at once. A step of a login takes 5 us and more: those that the time does not suffice for stay in line.
const CALLED_MAX: usize = 16;

#[derive(Default)]
struct Ticket {
    is_called: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Ticket {
    fn call(&self) {
        self.is_called.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Who stands in which line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rank {
    /// A login to a server.
    Server,
    /// Everybody else, behind all of those.
    Client,
}

/// Who waits, in order.
#[derive(Default)]
struct Line(VecDeque<Weak<Ticket>>);

impl Line {
    /// Who has gone meanwhile does not count.
    fn is_empty(&mut self) -> bool {
        while self.0.front().is_some_and(|next| next.strong_count() == 0) {
            self.0.pop_front();
        }
        self.0.is_empty()
    }

    fn join(&mut self) -> Rc<Ticket> {
        let ticket = Rc::new(Ticket::default());
        self.0.push_back(Rc::downgrade(&ticket));
        ticket
    }

    /// The first `most` of the line, who stay in it.
    fn first(&mut self, most: usize) -> Vec<Rc<Ticket>> {
        let mut first = Vec::new();
        while first.len() < most
            && let Some(next) = self.0.pop_front()
        {
            first.extend(next.upgrade());
        }
        for ticket in first.iter().rev() {
            self.0.push_front(Rc::downgrade(ticket));
        }
        first
    }
}

/// Who waits for time to log in, and how much there is.
pub(super) struct Turnstile {
    servers: RefCell<Line>,
    clients: RefCell<Line>,
    /// Nanoseconds; negative after a long step.
    left: Cell<i64>,
    /// When time was last given.
    given: Cell<Moment>,
    /// Whether a login is being polled.
    is_inside: Cell<bool>,
}

impl Turnstile {
    pub(super) fn new(now: Moment) -> Turnstile {
        Turnstile {
            servers: RefCell::default(),
            clients: RefCell::default(),
            left: Cell::new(TURN_SHARE),
            given: Cell::new(now),
            is_inside: Cell::new(false),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        // Without short cut: both are rid of those who have gone.
        self.servers.borrow_mut().is_empty() & self.clients.borrow_mut().is_empty()
    }

    fn line(&self, rank: Rank) -> RefMut<'_, Line> {
        match rank {
            Rank::Server => self.servers.borrow_mut(),
            Rank::Client => self.clients.borrow_mut(),
        }
    }

    /// Gives the logins their share of the time since the last turn, all of a turn's if the shard `is_idle`, and calls
    /// the next ones.
    pub(super) fn admit(&self, is_idle: bool, now: Moment) {
        let passed =
            i64::try_from(now.since(self.given.replace(now)).as_nanos()).unwrap_or(i64::MAX);
        let left = match is_idle {
            true => TURN_SHARE,
            false => self
                .left
                .get()
                .saturating_add(passed / SHARE)
                .min(TURN_SHARE),
        };
        self.left.set(left);
        if left > 0 {
            self.call();
        }
    }

    fn call(&self) {
        let mut called = self.servers.borrow_mut().first(CALLED_MAX);
        let places = CALLED_MAX - called.len();
        called.extend(self.clients.borrow_mut().first(places));
        called.iter().for_each(|ticket| ticket.call());
    }

    /// Whether a login may be polled now; if not, it stands in line with `ticket`.
    fn lets_in(&self, rank: Rank, ticket: &mut Option<Rc<Ticket>>, cx: &Context<'_>) -> bool {
        let is_next = match ticket {
            Some(ticket) => ticket.is_called.get(),
            None if rank == Rank::Server => self.servers.borrow_mut().is_empty(),
            None => self.is_empty(),
        };
        if is_next && self.left.get() > 0 {
            *ticket = None;
            return true;
        }
        let ticket = ticket.get_or_insert_with(|| self.line(rank).join());
        ticket.is_called.set(false);
        set_waker(&mut ticket.waker.borrow_mut(), cx);
        false
    }

    /// Runs a step of a login and takes its time off what is left.
    fn time<T>(&self, step: impl FnOnce() -> T) -> T {
        if self.is_inside.replace(true) {
            // A step of a step, whose time is taken anyway.
            return step();
        }
        let start = Clock::now();
        let result = step();
        self.is_inside.set(false);
        self.spend(start, Clock::now());
        result
    }

    fn spend(&self, start: Moment, end: Moment) {
        let took = i64::try_from(end.since(start).as_nanos()).unwrap_or(i64::MAX);
        self.left.set(self.left.get().saturating_sub(took));
    }
}

impl Net {
    /// Runs a client's login, or a part of one, in the time that there is for logins.
    pub async fn paced<T>(self, login: impl Future<Output = T>) -> T {
        self.paced_as(Rank::Client, login).await
    }

    /// Runs a part of a login to a server in that time, before the logins of clients.
    pub async fn paced_ahead<T>(self, login: impl Future<Output = T>) -> T {
        self.paced_as(Rank::Server, login).await
    }

    async fn paced_as<T>(self, rank: Rank, login: impl Future<Output = T>) -> T {
        let turnstile = &self.0.turnstile;
        let (mut login, mut ticket) = (pin!(login), None);
        poll_fn(|cx| {
            if !turnstile.is_inside.get() && !turnstile.lets_in(rank, &mut ticket, cx) {
                return Poll::Pending;
            }
            turnstile.time(|| login.as_mut().poll(cx))
        })
        .await
    }

    /// Runs one step of a login as [`Net::paced`] does.
    pub async fn in_turn<T>(self, step: impl FnOnce() -> T) -> T {
        self.paced(async { step() }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Wake;
    use std::time::Duration;

    struct NoWake;

    impl Wake for NoWake {
        fn wake(self: std::sync::Arc<Self>) {}
    }

    fn at(ms: u64) -> Moment {
        Moment::from_nanos(ms * 1_000_000)
    }

    /// One who tries to get through, and their ticket.
    #[derive(Default)]
    struct Visitor(Option<Rc<Ticket>>);

    impl Visitor {
        fn try_in(&mut self, turnstile: &Turnstile) -> bool {
            self.try_as(Rank::Client, turnstile)
        }

        fn try_as(&mut self, rank: Rank, turnstile: &Turnstile) -> bool {
            let waker = Waker::from(std::sync::Arc::new(NoWake));
            turnstile.lets_in(rank, &mut self.0, &Context::from_waker(&waker))
        }
    }

    #[test]
    fn after_a_long_step_others_have_three_times_as_long() {
        let turnstile = Turnstile::new(at(0));
        let mut visitor = Visitor::default();
        assert!(visitor.try_in(&turnstile));
        turnstile.spend(at(100), at(102));
        assert!(!visitor.try_in(&turnstile));
        // 2 ms less the 50 us that there were; of each millisecond a quarter is given.
        turnstile.admit(false, at(7));
        assert!(!visitor.try_in(&turnstile));
        turnstile.admit(false, at(8));
        assert!(visitor.try_in(&turnstile));
    }

    #[test]
    fn idle_shard_lets_the_line_through_in_order_and_whoever_comes_behind_it() {
        let turnstile = Turnstile::new(at(0));
        let exhaust = || turnstile.spend(at(0), at(1));
        exhaust();
        let [mut first, mut gone, mut second] = [(); 3].map(|()| Visitor::default());
        for visitor in [&mut first, &mut gone, &mut second] {
            assert!(!visitor.try_in(&turnstile));
        }
        drop(gone);
        turnstile.admit(true, at(2));
        assert!(!Visitor::default().try_in(&turnstile), "past the line");
        assert!(first.try_in(&turnstile));
        exhaust();
        assert!(!second.try_in(&turnstile) && !turnstile.is_empty());
        turnstile.admit(true, at(3));
        assert!(second.try_in(&turnstile) && turnstile.is_empty());
        assert!(Visitor::default().try_in(&turnstile));
    }

    #[test]
    fn time_that_nobody_wants_is_not_saved_up() {
        let turnstile = Turnstile::new(at(0));
        turnstile.admit(false, at(60_000));
        turnstile.spend(at(0), at(0).after(Duration::from_micros(51)));
        assert!(!Visitor::default().try_in(&turnstile));
    }

    #[test]
    fn login_to_a_server_goes_before_a_crowd_of_clients_that_came_earlier() {
        let turnstile = Turnstile::new(at(0));
        let exhaust = || turnstile.spend(at(0), at(1));
        exhaust();
        let mut crowd: Vec<_> = (0..4 * CALLED_MAX).map(|_| Visitor::default()).collect();
        for client in &mut crowd {
            assert!(!client.try_in(&turnstile));
        }
        let [mut server, mut second] = [(); 2].map(|()| Visitor::default());
        assert!(!server.try_as(Rank::Server, &turnstile));
        assert!(!second.try_as(Rank::Server, &turnstile));
        turnstile.admit(true, at(2));
        assert!(server.try_as(Rank::Server, &turnstile));
        exhaust();
        assert!(!second.try_as(Rank::Server, &turnstile));
        assert!(!crowd[0].try_in(&turnstile), "there is no time left");
        turnstile.admit(true, at(3));
        assert!(!Visitor::default().try_in(&turnstile), "past the lines");
        assert!(second.try_as(Rank::Server, &turnstile));
        let mut late = Visitor::default();
        assert!(late.try_as(Rank::Server, &turnstile), "no server waits");
        assert!(crowd[0].try_in(&turnstile));
    }
}
