//! The io_uring itself: set-up, submission, the one blocking call.
//!
//! SINGLE_ISSUER | DEFER_TASKRUN, created on the shard's own thread, with a completion queue eight
//! times the submission queue and a registered ring descriptor; every turn enters it with GETEVENTS,
//! since deferred work does not run otherwise. COOP_TASKRUN, one-shot receives and send(2) for every
//! send cost 15 to 27% more in the prototype's measurements; fixed files brought nothing.

use io_uring::{IoUring, Submitter, cqueue, squeue};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::thread;
use std::time::Duration;

const ENTER_GETEVENTS: u32 = 1;
/// Submission queue length; a full queue is submitted early, so this bounds nothing but batching.
const SUBMISSIONS: u32 = 1024;
/// How often a ring is tried again for which there was no memory, and how long after.
const SHORT_MAX: u32 = 20;
const SHORT_PAUSE: Duration = Duration::from_millis(10);

/// What a completion belongs to; kept in the top byte of `user_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Op {
    Ignore = 0,
    Recv = 1,
    Send = 2,
    Accept = 3,
    Connect = 4,
    Timer = 5,
    Mail = 6,
    Bell = 7,
}

impl Op {
    pub(super) const fn tag(self, index: u32) -> u64 {
        ((self as u64) << 56) | index as u64
    }

    pub(super) const fn of(user_data: u64) -> (Op, u32) {
        let op = match (user_data >> 56) as u8 {
            1 => Op::Recv,
            2 => Op::Send,
            3 => Op::Accept,
            4 => Op::Connect,
            5 => Op::Timer,
            6 => Op::Mail,
            7 => Op::Bell,
            _ => Op::Ignore,
        };
        (op, user_data as u32)
    }
}

pub(super) struct Ring {
    ring: &'static IoUring,
    submitter: Submitter<'static>,
}

impl Ring {
    /// Creates the ring; must be called on the thread that will use it.
    pub(super) fn new() -> io::Result<Ring> {
        let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
        builder.setup_single_issuer().setup_defer_taskrun();
        builder.setup_cqsize(SUBMISSIONS * 8).setup_clamp();
        // A ring lives as long as its shard, and a shard as long as the process.
        let made = or_again(|| builder.build(SUBMISSIONS))?;
        let ring: &'static IoUring = Box::leak(Box::new(made));
        let mut submitter = ring.submitter();
        // Best effort: saves a descriptor look-up per call where the kernel has it.
        let _ = submitter.register_ring_fd();
        Ok(Ring { ring, submitter })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    pub(super) fn submitter(&self) -> &Submitter<'static> {
        &self.submitter
    }

    /// Queues one entry; it reaches the kernel with the next [`Ring::enter`] or [`Ring::submit`].
    pub(super) fn push(&self, entry: squeue::Entry) {
        // SAFETY: the shard's thread is the only one to touch the queue (Net is !Send), no other
        // queue handle is alive here, and whatever the entry points to is owned by the reactor
        // until its completion.
        while unsafe { self.ring.submission_shared().push(&entry) }.is_err() {
            self.enter(0);
        }
    }

    /// Submits what is queued, runs deferred work and waits for `want` completions.
    pub(super) fn enter(&self, want: u32) {
        self.call(want, ENTER_GETEVENTS);
    }

    /// Submits what is queued, in the middle of a turn.
    pub(super) fn submit(&self) {
        self.call(0, 0);
    }

    fn call(&self, want: u32, flags: u32) {
        // SAFETY: as in `push`; the queue handle is dropped before the call.
        let queued = unsafe { self.ring.submission_shared().len() } as u32;
        // SAFETY: no argument pointer is passed.
        let entered = unsafe {
            self.submitter
                .enter::<libc::sigset_t>(queued, want, flags, None)
        };
        if let Err(error) = entered {
            match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME) => {}
                _ => panic!("io_uring_enter failed: {error}"),
            }
        }
    }

    /// The completions that are there.
    pub(super) fn completions(&self) -> cqueue::CompletionQueue<'_> {
        // SAFETY: the shard's thread is the only reader, and `Reactor::reap`, the only caller, has
        // one such handle at a time.
        unsafe { self.ring.completion_shared() }
    }
}

/// Whether this kernel lets the process make the ring a shard needs.
///
/// # Errors
/// The error of `io_uring_setup`: ENOSYS or EPERM where io_uring is missing or forbidden, EINVAL
/// where the kernel is too old for DEFER_TASKRUN (6.1).
pub fn probe() -> io::Result<()> {
    let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    or_again(|| builder.build(8)).map(drop)
}

/// A kernel whose memory is full of caches says ENOMEM to some of those who want a ring: it takes the pages in bulk, which does
/// not wait until there are any (seen with Linux 6.18). A moment later there are.
fn or_again<T>(make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let is_short = |error: &io::Error| error.raw_os_error() == Some(libc::ENOMEM);
    for _ in 0..SHORT_MAX {
        match make() {
            Err(error) if is_short(&error) => thread::sleep(SHORT_PAUSE),
            made => return made,
        }
    }
    make()
}
