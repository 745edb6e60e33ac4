//! One bounded mailbox per shard. Anybody may post, nobody waits for room; the receiving shard is
//! woken by a message into its ring (from a shard) or by its bell (from another thread).
//!
//! Messages of one sender arrive in the order sent. Many posts ring once: the sender who finds the
//! mailbox *unrung* rings, the receiver marks it unrung before it empties it.

use crate::base::ShardId;
use crate::base::sync::{ArrayQueue, AtomicBool, AtomicI32, Ordering};
use crossbeam::utils::CachePadded;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Messages that one mailbox holds; a full one refuses more.
const MESSAGES_MAX: usize = 8192;
/// The receiver has not said yet where its ring is.
const NO_RING: RawFd = -1;

/// The mailbox is full; here is the message back.
#[derive(Debug)]
pub struct Full<M>(pub M);

struct Mailbox<M> {
    queue: ArrayQueue<M>,
    rung: CachePadded<AtomicBool>,
    ring: AtomicI32,
    bell: OwnedFd,
}

/// The mailboxes of all shards, for messages of type `M`.
pub struct Mesh<M> {
    mailboxes: Box<[Mailbox<M>]>,
}

impl<M> Mesh<M> {
    /// Mailboxes for `shards` shards.
    ///
    /// # Errors
    /// If no eventfd can be made.
    pub fn new(shards: usize) -> io::Result<Mesh<M>> {
        let mailbox = |_| {
            Ok(Mailbox {
                queue: ArrayQueue::new(MESSAGES_MAX),
                rung: CachePadded::new(AtomicBool::new(false)),
                ring: AtomicI32::new(NO_RING),
                bell: eventfd(0, EventfdFlags::CLOEXEC)?,
            })
        };
        Ok(Mesh {
            mailboxes: (0..shards).map(mailbox).collect::<io::Result<_>>()?,
        })
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.mailboxes.len()
    }

    /// The calling shard receives on the ring `ring` from now on; gives the eventfd that threads
    /// without a ring write to, which that ring must read.
    pub fn open(&self, shard: ShardId, ring: RawFd) -> RawFd {
        let mailbox = &self.mailboxes[shard.index()];
        mailbox.ring.store(ring, Ordering::Release);
        mailbox.bell.as_raw_fd()
    }

    /// Posts from a shard. `wake` sends a message into the ring it is given; it is called only if
    /// the receiver has to be woken.
    ///
    /// # Errors
    /// [`Full`], with the message.
    pub fn post(&self, to: ShardId, message: M, wake: impl FnOnce(RawFd)) -> Result<(), Full<M>> {
        if let Some(mailbox) = self.put(to, message)? {
            match mailbox.ring.load(Ordering::Acquire) {
                NO_RING => mailbox.ring_bell(),
                ring => wake(ring),
            }
        }
        Ok(())
    }

    /// Posts from a thread that is no shard.
    ///
    /// # Errors
    /// [`Full`], with the message.
    pub fn post_outside(&self, to: ShardId, message: M) -> Result<(), Full<M>> {
        if let Some(mailbox) = self.put(to, message)? {
            mailbox.ring_bell();
        }
        Ok(())
    }

    /// The receiver has been woken: whoever posts from now on wakes it again. To be called before
    /// the mailbox is emptied with [`Mesh::take`].
    pub fn woken(&self, shard: ShardId) {
        self.mailboxes[shard.index()]
            .rung
            .swap(false, Ordering::SeqCst);
    }

    /// The next message to `shard`.
    pub fn take(&self, shard: ShardId) -> Option<M> {
        self.mailboxes[shard.index()].queue.pop()
    }

    /// Messages waiting at `shard`.
    pub fn depth(&self, shard: ShardId) -> usize {
        self.mailboxes[shard.index()].queue.len()
    }

    /// Puts a message in; the mailbox, if it has to be rung.
    fn put(&self, to: ShardId, message: M) -> Result<Option<&Mailbox<M>>, Full<M>> {
        let mailbox = &self.mailboxes[to.index()];
        mailbox.queue.push(message).map_err(Full)?;
        // Read-modify-write operations on one flag are totally ordered: either this one comes
        // first, then the receiver's take sees the message; or it sees `false` and rings.
        Ok((!mailbox.rung.swap(true, Ordering::SeqCst)).then_some(mailbox))
    }
}

impl<M> Mailbox<M> {
    fn ring_bell(&self) {
        // Fails only if the counter would overflow, and then the bell has been rung.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}
