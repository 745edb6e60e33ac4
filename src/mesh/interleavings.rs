//! Every interleaving of posting, waking and emptying a mailbox, explored by loom: `scripts/test.sh
//! loom`. The ring is a count of messages in it, behind a mutex that orders as the kernel does.

use super::mailbox::Mesh;
use crate::base::ShardId;
use loom::sync::Mutex;
use loom::thread::{self, JoinHandle};
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;

const RECEIVER: ShardId = ShardId(0);
const RING: RawFd = 5;

struct Post {
    mesh: Mesh<u32>,
    ring: Mutex<u32>,
}

impl Post {
    fn new() -> Arc<Post> {
        Arc::new(Post {
            mesh: Mesh::new(1).unwrap(),
            ring: Mutex::new(0),
        })
    }

    /// Posts `count` messages from a thread of its own; gives how many were accepted.
    fn send(self: &Arc<Post>, count: u32) -> JoinHandle<u32> {
        let post = self.clone();
        thread::spawn(move || post.post_all(count))
    }

    fn post_all(&self, count: u32) -> u32 {
        let send = |&message: &u32| {
            let wake = |ring| {
                assert_eq!(ring, RING);
                *self.ring.lock().unwrap() += 1;
            };
            self.mesh.post(RECEIVER, message, wake).is_ok()
        };
        (0..count).filter(send).count() as u32
    }

    /// What the inbox does in one turn of the loop: nothing, unless it was woken.
    fn receive(&self) -> u32 {
        if std::mem::take(&mut *self.ring.lock().unwrap()) == 0 {
            return 0;
        }
        self.mesh.woken(RECEIVER);
        std::iter::from_fn(|| self.mesh.take(RECEIVER)).count() as u32
    }
}

/// `senders` post `count` messages each while the receiver has one turn; then it has turns as long
/// as it is woken, and must have got everything that was accepted.
fn no_wake_up_is_lost(senders: usize, count: u32) {
    loom::model(move || {
        let post = Post::new();
        post.mesh.open(RECEIVER, RING);
        let threads: Vec<_> = (0..senders).map(|_| post.send(count)).collect();
        let mut received = post.receive();
        let accepted: u32 = threads.into_iter().map(|it| it.join().unwrap()).sum();
        received += post.receive();
        assert_eq!(received, accepted, "mail lies there and nobody was woken");
        assert_eq!(
            post.send(1).join().unwrap() + post.receive(),
            2,
            "who posts next wakes nobody"
        );
    });
}

#[test]
fn one_sender_never_leaves_mail_to_a_sleeper() {
    no_wake_up_is_lost(1, 2);
}

#[test]
fn two_senders_never_leave_mail_to_a_sleeper() {
    no_wake_up_is_lost(2, 1);
}

#[test]
fn a_mailbox_that_fills_up_refuses_and_still_wakes() {
    no_wake_up_is_lost(1, 3);
}

/// A sender that finds the mailbox full tries once more, later; whatever is accepted then arrives as well.
#[test]
fn a_message_sent_again_after_it_was_refused_arrives() {
    let mut explorer = loom::model::Builder::new();
    // Without a bound there are too many.
    explorer.preemption_bound = Some(2);
    explorer.check(|| {
        let post = Post::new();
        post.mesh.open(RECEIVER, RING);
        let first = post.send(2);
        let sender = post.clone();
        let again = thread::spawn(move || {
            let accepted = sender.post_all(1);
            thread::yield_now();
            accepted + sender.post_all(1 - accepted)
        });
        let mut received = post.receive();
        let accepted = first.join().unwrap() + again.join().unwrap();
        received += post.receive();
        assert_eq!(received, accepted, "mail lies there and nobody was woken");
    });
}

/// Whoever finds no ring yet rings the bell, which the ring reads once it is there.
#[test]
fn mail_to_a_shard_that_opens_meanwhile_rings_the_bell_or_the_ring() {
    loom::model(|| {
        let post = Post::new();
        let sender = post.send(1);
        let bell = post.mesh.open(RECEIVER, RING);
        assert_eq!(sender.join().unwrap(), 1);
        let is_woken = *post.ring.lock().unwrap() == 1;
        assert_ne!(is_woken, has_rung(bell), "woken twice or never");
    });
}

fn has_rung(bell: RawFd) -> bool {
    // SAFETY: the mesh of the caller keeps it open.
    #[allow(unsafe_code)]
    let bell = unsafe { BorrowedFd::borrow_raw(bell) };
    let mut polled = [PollFd::new(&bell, PollFlags::IN)];
    poll(&mut polled, Some(&Default::default())).unwrap() == 1
}
