//! The driver task: the one place where a shard sleeps.
//!
//! It yields to the other tasks until a pass in which none of them ran, then submits everything
//! they queued and waits for completions, in one system call. glommio never parks, since this task
//! is always runnable; nothing of glommio's (timers, channels, files) is used on a shard, so
//! nothing of glommio's needs a visit. Sleeping in glommio instead lost wake-ups in the prototype.

use super::reactor::Net;
use futures_lite::future::yield_now;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Passes in which tasks ran before the ring is looked at without waiting: a task that yields again
/// and again (a login's key stretching) must not keep the others from their I/O.
const BUSY_PASSES_MAX: u32 = 3;

/// Drives a shard's ring.
pub struct Driver {
    net: Net,
}

impl Driver {
    /// The driver of `net`.
    pub fn new(net: Net) -> Driver {
        Driver { net }
    }

    /// Runs for ever.
    pub async fn run(self) {
        let reactor = self.net.0;
        let (mut seen, mut busy_passes) = (u64::MAX, 0);
        loop {
            yield_now().await;
            let is_quiet = std::mem::replace(&mut seen, reactor.polls.get()) == reactor.polls.get();
            busy_passes += 1;
            if is_quiet || busy_passes > BUSY_PASSES_MAX {
                let may_wait = is_quiet && reactor.turnstile.is_empty();
                let completions = reactor.turn(may_wait);
                reactor
                    .turnstile
                    .admit(is_quiet && completions == 0, reactor.now.get());
                busy_passes = 0;
            }
        }
    }
}

/// Spawns a task on the calling shard's executor, in a way that the driver notices.
pub fn spawn(net: Net, task: impl Future<Output = ()> + 'static) {
    glommio::spawn_local(Counted { net, task }).detach();
}

struct Counted<F> {
    net: Net,
    task: F,
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let polls = &self.net.0.polls;
        polls.set(polls.get().wrapping_add(1));
        // SAFETY: `task` is structurally pinned: it is never moved out of a pinned `Counted`, which
        // has no `Drop` and no `Unpin` implementation of its own.
        unsafe { self.map_unchecked_mut(|counted| &mut counted.task) }.poll(cx)
    }
}

impl Net {
    /// Shuts down closing sockets whose peer has not read for longer than the close timeout; to be
    /// called a few times per second.
    pub fn close_overdue(self) {
        self.0.close_overdue();
    }
}

#[cfg(test)]
mod tests {
    use crate::net::testing::on_ring;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn shard_that_is_held_up_after_it_rang_has_woken_the_other() {
        let ((tell_fd, fd), (tell_woken, woken)) = (mpsc::channel(), mpsc::channel());
        let (tell_over, over) = mpsc::channel();
        let sleeper = thread::spawn(|| {
            on_ring(async move |net| {
                net.on_mail(move || tell_woken.send(()).unwrap());
                tell_fd.send(net.ring_fd()).unwrap();
                while over.try_recv().is_err() {
                    net.sleep(Duration::from_millis(50)).await;
                }
            });
        });
        let fd = fd.recv().unwrap();
        on_ring(async move |net| {
            net.ring_other(fd);
            // Without a turn of its own.
            woken.recv_timeout(PATIENCE).expect("the other is woken");
        });
        tell_over.send(()).unwrap();
        sleeper.join().unwrap();
    }
}
