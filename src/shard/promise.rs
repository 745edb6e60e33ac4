//! A value that another thread or shard will give to a task of this shard.

use super::message::{Answer, Mail};
use super::root::Shard;
use super::shared::Common;
use crate::base::ShardId;
use crate::judge::Workers;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

/// How often the task looks by itself, in case the news was lost for want of room in the mailbox.
const LOOK: Duration = Duration::from_millis(100);

/// The giver's end. Dropped without being kept, it ends the wait as well.
pub(super) struct Promise<T> {
    // Dropped in this order: when the task is told, there is nobody left who could keep the promise.
    slot: Arc<Mutex<Option<T>>>,
    _announcer: Announcer,
}

/// Tells the task, however the promise ends.
struct Announcer {
    common: Arc<Common>,
    shard: ShardId,
    ticket: u64,
}

impl<T> Promise<T> {
    /// Whether the task still waits: a client may have left meanwhile.
    pub(super) fn is_awaited(&self) -> bool {
        Arc::strong_count(&self.slot) > 1
    }

    /// Gives the value, from any thread.
    pub(super) fn keep(self, value: T) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        let mail = Mail::Answer {
            ticket: self.ticket,
            answer: Answer::Done,
        };
        // A full mailbox: the task looks by itself soon.
        let _ = self.common.mesh.post_outside(self.shard, mail);
    }
}

impl Shard {
    /// What comes of `work`, done by one of `workers`; `None` if too many wait for them. Not done at all if nobody waits for it
    /// any more when its turn comes.
    pub(super) async fn worked_out<T: Send + 'static>(
        self: &Rc<Self>,
        workers: &Workers,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        self.promised(|promise: Promise<T>| {
            workers.run(move || {
                if promise.is_awaited() {
                    promise.keep(work());
                }
            });
        })
        .await
    }

    /// Lets `begin` pass a promise on, and waits until it is kept; `None` if it is broken.
    pub(super) async fn promised<T>(self: &Rc<Self>, begin: impl FnOnce(Promise<T>)) -> Option<T> {
        let ticket = self.next_ticket.replace(self.next_ticket.get() + 1);
        let place = Place {
            shard: self,
            ticket,
        };
        self.tickets.borrow_mut().insert(ticket, Default::default());
        let slot = Arc::new(Mutex::new(None));
        begin(Promise {
            slot: slot.clone(),
            _announcer: Announcer {
                common: self.common.clone(),
                shard: self.id,
                ticket,
            },
        });
        loop {
            // The order matters: a promise that is gone now has left its value before.
            let is_over = Arc::strong_count(&slot) == 1;
            let value = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            if is_over || value.is_some() {
                return value;
            }
            let _ = self
                .net
                .until(self.net.now().after(LOOK), place.news())
                .await;
        }
    }
}

/// The task's entry among those who wait for answers, taken out when it goes.
struct Place<'a> {
    shard: &'a Rc<Shard>,
    ticket: u64,
}

impl Place<'_> {
    /// Resolves when something has been announced.
    async fn news(&self) {
        poll_fn(|cx| {
            let mut tickets = self.shard.tickets.borrow_mut();
            let Some(gathering) = tickets.get_mut(&self.ticket) else {
                return Poll::Ready(());
            };
            gathering.waker = Some(cx.waker().clone());
            match gathering.answers.pop() {
                Some(_) => Poll::Ready(()),
                None => Poll::Pending,
            }
        })
        .await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shard.tickets.borrow_mut().remove(&self.ticket);
    }
}
