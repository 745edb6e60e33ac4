//! The shard's timers, on its own ring: glommio's are not used, so that nothing of glommio's needs
//! a visit while the shard sleeps in its ring. A timeout on every wait is dear (an hrtimer that is
//! the CPU's next event costs a VM exit); so one TIMEOUT entry stands for the earliest deadline.

use super::reactor::{Net, set_waker};
use crate::base::{Clock, Moment};
use io_uring::types::Timespec;
use slab::Slab;
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Deadlines closer together than this fire together.
const GRAIN: Duration = Duration::from_millis(2);
/// A timer that fires later than this counts as a late wake-up.
const LATE: Duration = Duration::from_millis(50);

struct Timer {
    deadline: Moment,
    waker: Option<Waker>,
    fired: bool,
}

struct Armed {
    deadline: Moment,
    timespec: Box<Timespec>,
}

#[derive(Default)]
struct State {
    timers: Slab<Timer>,
    /// Earliest first; entries of dropped timers stay until their time has come.
    queue: BinaryHeap<Reverse<(Moment, usize)>>,
    /// Entries in the kernel, each earlier than those before it.
    armed: Slab<Armed>,
    armed_until: Option<Moment>,
}

#[derive(Default)]
pub(super) struct Timers {
    state: RefCell<State>,
}

impl Timers {
    fn insert(&self, deadline: Moment) -> usize {
        let mut state = self.state.borrow_mut();
        let key = state.timers.insert(Timer {
            deadline,
            waker: None,
            fired: false,
        });
        state.queue.push(Reverse((deadline, key)));
        key
    }

    /// The TIMEOUT entry to submit, if the earliest deadline is not covered by one yet.
    pub(super) fn arm(&self, now: Moment) -> Option<(u32, *const Timespec)> {
        let mut state = self.state.borrow_mut();
        let Reverse((deadline, _)) = *state.queue.peek()?;
        if state
            .armed_until
            .is_some_and(|armed| armed <= deadline.after(GRAIN))
        {
            return None;
        }
        let deadline = deadline.after(GRAIN / 2);
        let timespec = Box::new(Timespec::from(deadline.since(now)));
        // The box keeps the address valid until the entry's completion removes it.
        let at: *const Timespec = &*timespec;
        state.armed_until = Some(deadline);
        let index = state.armed.insert(Armed { deadline, timespec });
        Some((index as u32, at))
    }

    /// A TIMEOUT entry has completed.
    pub(super) fn expired(&self, index: u32) {
        let mut state = self.state.borrow_mut();
        drop(state.armed.remove(index as usize).timespec);
        state.armed_until = state.armed.iter().map(|(_, armed)| armed.deadline).min();
    }

    /// Wakes every timer that is due; returns how many were late.
    pub(super) fn fire(&self, now: Moment) -> u64 {
        let mut late = 0;
        let mut state = self.state.borrow_mut();
        while let Some(Reverse((deadline, key))) = state.queue.peek().copied() {
            if deadline > now {
                break;
            }
            state.queue.pop();
            late += u64::from(now.since(deadline) > LATE);
            // The key may have been reused by a later timer.
            if let Some(timer) = state
                .timers
                .get_mut(key)
                .filter(|timer| timer.deadline == deadline)
            {
                timer.fired = true;
                if let Some(waker) = &timer.waker {
                    waker.wake_by_ref();
                }
            }
        }
        late
    }

    fn poll(&self, key: usize, cx: &Context<'_>) -> Poll<()> {
        let timer = &mut self.state.borrow_mut().timers[key];
        if timer.fired {
            return Poll::Ready(());
        }
        set_waker(&mut timer.waker, cx);
        Poll::Pending
    }

    fn remove(&self, key: usize) {
        let timer = self.state.borrow_mut().timers.remove(key);
        drop(timer);
    }
}

/// Resolves at its deadline, at most a few milliseconds late.
pub struct Sleep {
    net: Net,
    key: usize,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.net.0.timers.poll(self.key, cx)
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.net.0.timers.remove(self.key);
    }
}

/// The deadline passed before the work was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deadline passed")]
pub struct Elapsed;

impl Net {
    /// A future that resolves at `deadline`.
    pub fn sleep_until(self, deadline: Moment) -> Sleep {
        Sleep {
            net: self,
            key: self.0.timers.insert(deadline),
        }
    }

    /// A future that resolves after `span`.
    pub fn sleep(self, span: Duration) -> Sleep {
        self.sleep_until(Clock::now().after(span))
    }

    /// Runs `work` until it is done or `deadline` has passed; [`Moment::NEVER`] means no deadline.
    ///
    /// # Errors
    /// [`Elapsed`] if the deadline came first; the work is dropped then.
    pub async fn until<T>(
        self,
        deadline: Moment,
        work: impl Future<Output = T>,
    ) -> Result<T, Elapsed> {
        if deadline == Moment::NEVER {
            return Ok(work.await);
        }
        let late = async {
            self.sleep_until(deadline).await;
            Err(Elapsed)
        };
        futures_lite::future::or(async { Ok(work.await) }, late).await
    }
}
