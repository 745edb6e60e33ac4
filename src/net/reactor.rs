//! The state of all sockets of a shard and what each completion does to it.
//!
//! ```text
//!            adopt/connect           handle dropped            last completion
//!   (free) ───────────────► open ─────────────────► closing ─────────────────► (free)
//!                             │ receive: armed ⇄ paused (full, starved, detaching)
//!                             │ send: idle ⇄ in flight (one at a time, in order)
//! ```

use super::buffer::{BufferRing, Data, GROUP};
use super::listen::Accepting;
use super::queue::Queue;
use super::ring::{Op, Ring};
use super::secure::{BROKEN, Secure, TRUNCATED};
use super::socket::Detached;
use super::thrift::Thrift;
use super::timer::Timers;
use super::turnstile::Turnstile;
use crate::base::memory::{self, Pressure};
use crate::base::{Clock, Moment};
use crate::stats::ShardStats;
use io_uring::types::Fd;
use io_uring::{cqueue, opcode, squeue};
use slab::Slab;
use socket2::SockAddr;
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What is kept of a socket whatever the budget of memory: less than the socket itself takes.
const SMALL_BYTES_MAX: u32 = 512;

/// How a shard's ring is made.
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// Receive buffers of the shard: a power of two, at most 32,768.
    pub receive_buffers: u32,
    /// Bytes of each.
    pub receive_buffer_bytes: u32,
    /// How long a peer that does not read may delay the closing of its socket.
    pub close_timeout: Duration,
    /// Where the ring counts.
    pub stats: Arc<ShardStats>,
}

pub(super) enum TxData {
    Chunk(Data),
    Owned(Vec<u8>),
    Static(&'static [u8]),
}

pub(super) struct Tx {
    pub(super) data: TxData,
    pub(super) sent: usize,
}

pub(super) struct Slot {
    pub(super) fd: RawFd,
    /// The handle is alive.
    pub(super) owned: bool,
    /// It may be cut off when there is no memory for what it says.
    is_expendable: bool,
    /// A receive is armed: its final completion has not been seen.
    pub(super) receiving: bool,
    /// ... and has been asked to stop.
    stopping: bool,
    /// It goes on receiving by itself: the kernel fills dozens of buffers before it looks whether it is to stop.
    pub(super) is_multishot: bool,
    /// The handle wants no more data for now ([`Reactor::pause`]).
    paused: bool,
    /// It is listed among those whose receive found no buffer.
    is_starved: bool,
    /// The front of `tx` is in flight, or a connect is.
    pub(super) sending: bool,
    /// Somebody waits for `tx` to shrink.
    pub(super) writable_wanted: bool,
    /// errno of a failed send or connect; 0 for none.
    pub(super) error: i32,
    /// How receiving ended: 0 for end of file, else an errno.
    pub(super) end: Option<i32>,
    pub(super) rx: Queue<Data>,
    pub(super) tx: Queue<Tx>,
    /// Its TLS, once a handshake has begun.
    pub(super) tls: Option<Box<Secure>>,
    pub(super) waker: Option<Waker>,
    /// The address of a connect in flight, which the kernel may read.
    address: Option<Box<SockAddr>>,
    /// Told when the descriptor has been closed.
    freed: Option<Rc<Freed>>,
    /// Until when a closing socket may try to send what is queued.
    close_by: Moment,
    /// Its place among the closing.
    closing_at: u32,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) slots: Slab<Slot>,
    pub(super) listeners: Slab<Accepting>,
    /// Slots whose receive found no buffer.
    starved: Vec<u32>,
    /// Slots without a handle that still wait for completions.
    closing: Vec<u32>,
    /// Slots with plaintext to encrypt at the end of the turn.
    pub(super) unsealed: Vec<u32>,
    /// Slots whose front is to be sent at the end of the turn.
    pub(super) outgoing: Vec<u32>,
}

impl State {
    /// Strikes a slot off the list of the starved.
    fn feed(&mut self, index: u32) {
        if std::mem::take(&mut self.slots[index as usize].is_starved) {
            self.starved.retain(|starved| *starved != index);
        }
    }
}

pub(super) struct Reactor {
    pub(super) ring: Ring,
    pub(super) buffers: BufferRing,
    pub(super) state: RefCell<State>,
    pub(super) timers: Timers,
    pub(super) spares: RefCell<Vec<Vec<u8>>>,
    /// Where payloads are put together that are encrypted together.
    pub(super) scratch: RefCell<Vec<u8>>,
    pub(super) turnstile: Turnstile,
    mail: Cell<bool>,
    /// Somebody has been woken by a send since the turn began to end.
    pub(super) woke: Cell<bool>,
    on_mail: RefCell<Option<Rc<dyn Fn()>>>,
    bell: Cell<Option<RawFd>>,
    bell_value: Box<Cell<u64>>,
    pub(super) now: Cell<Moment>,
    pub(super) thrift: Thrift,
    close_timeout: Duration,
    pub(super) stats: Arc<ShardStats>,
    /// Polls of tasks, so that the driver can tell whether anything ran.
    pub(super) polls: Cell<u64>,
}

/// The ring of this shard and everything on it. Copies refer to the same ring; it lives as long
/// as the process, and belongs to the thread that made it.
#[derive(Clone, Copy)]
pub struct Net(pub(super) &'static Reactor);

impl Net {
    /// Makes the calling thread's ring.
    ///
    /// # Errors
    /// What the kernel says to the ring, its buffers or their memory.
    pub fn new(options: &NetOptions) -> io::Result<Net> {
        let ring = Ring::new()?;
        let (count, bytes) = (options.receive_buffers, options.receive_buffer_bytes);
        let buffers = BufferRing::new(ring.submitter(), count, bytes)?;
        Ok(Net(Box::leak(Box::new(Reactor {
            ring,
            buffers,
            state: RefCell::default(),
            timers: Timers::default(),
            spares: RefCell::default(),
            scratch: RefCell::default(),
            turnstile: Turnstile::new(Clock::now()),
            mail: Cell::new(false),
            woke: Cell::new(false),
            on_mail: RefCell::default(),
            bell: Cell::new(None),
            bell_value: Box::new(Cell::new(0)),
            now: Cell::new(Clock::now()),
            thrift: Thrift::default(),
            close_timeout: options.close_timeout,
            stats: options.stats.clone(),
            polls: Cell::new(0),
        }))))
    }

    /// The moment at which the completions now being handled were reaped. Cheaper than the clock,
    /// and late by at most one turn of the loop.
    pub fn now(self) -> Moment {
        self.0.now.get()
    }

    /// The descriptor that other shards' rings send messages to.
    pub fn ring_fd(self) -> RawFd {
        self.0.ring.fd()
    }

    /// Sends a message into another shard's ring (IORING_OP_MSG_RING), which wakes it: a
    /// completion appears there and what was given to [`Net::on_mail`] runs.
    ///
    /// At once, not at the end of the turn: others that post there meanwhile rely on this message, and this shard may
    /// be held up first.
    pub fn ring_other(self, ring_fd: RawFd) {
        let entry = opcode::MsgRingData::new(Fd(ring_fd), 0, Op::Mail.tag(0), None).build();
        self.0.ring.push(entry.user_data(Op::Ignore.tag(0)));
        self.0.ring.submit();
    }

    /// Listens to an eventfd that threads without a ring write to; it wakes like
    /// [`Net::ring_other`]. The descriptor must stay open for the life of the process.
    pub fn listen_bell(self, eventfd: RawFd) {
        self.0.bell.set(Some(eventfd));
        self.0.arm_bell();
    }

    /// Has `read` run in every turn in which another thread has rung, before any task: mail that
    /// waited for its turn among busy tasks would be late by what they compute.
    pub fn on_mail(self, read: impl Fn() + 'static) {
        *self.0.on_mail.borrow_mut() = Some(Rc::new(read));
    }

    /// Has it run in the next turn, which does not wait, although nobody rang.
    pub fn expect_mail(self) {
        self.0.mail.set(true);
    }

    /// Counts a client that is sent away for want of memory.
    pub fn count_memory_refusal(self) {
        self.0.stats.memory_refusals.inc();
    }

    /// An empty heap buffer for a payload, reused from sent ones.
    pub fn spare(self) -> Vec<u8> {
        self.0.spare()
    }

    pub(super) fn buffers(&self) -> &BufferRing {
        &self.0.buffers
    }

    pub(super) fn recycle(self, id: u16) {
        self.0.buffers.give(id);
    }
}

impl Reactor {
    // ---- one turn ------------------------------------------------------------------------

    /// Submits everything queued and, if it may, waits for a completion; then handles what is there: the
    /// number of completions.
    pub(super) fn turn(&self, may_wait: bool) -> u64 {
        self.woke.set(false);
        self.seal_pending();
        self.end_sends();
        self.rearm_starved();
        self.curb(&mut self.state.borrow_mut());
        self.arm_timer();
        let before = Clock::now();
        let turn_us = before.since(self.now.get()).as_micros() as u64;
        self.stats.longest_turn_us.raise(turn_us);
        self.stats.busy_us.add(turn_us);
        self.stats.beat.sleeps(before);
        // Whoever has been woken since the driver looked has to run first: nothing may complete meanwhile.
        let is_pressed = self.mail.get() || self.woke.get() || self.thrift.is_under_way();
        let waits = may_wait && !is_pressed;
        self.ring.enter(waits.into());
        self.now.set(Clock::now());
        self.stats.beat.works(self.now.get());
        self.feel_pressure();
        self.stats.ring_enters.inc();
        self.stats.buffers_free.set(self.buffers.free().into());
        let count = self.reap();
        self.fire_timers();
        self.read_mail();
        count
    }

    fn reap(&self) -> u64 {
        let mut count = 0;
        let mut state = self.state.borrow_mut();
        for completion in self.ring.completions() {
            count += 1;
            let (op, index) = Op::of(completion.user_data());
            let result = completion.result();
            match op {
                Op::Recv => self.received(&mut state, index, &completion),
                Op::Send => self.sent(&mut state, index, result),
                Op::Connect => self.connected(&mut state, index, result),
                Op::Accept => self.accepted(&mut state, index, &completion),
                Op::Timer => self.timers.expired(index),
                Op::Mail => self.mail.set(true),
                Op::Bell => {
                    self.arm_bell();
                    self.mail.set(true);
                }
                Op::Ignore => {}
            }
        }
        drop(state);
        self.stats.completions.add(count);
        count
    }

    /// Submits what is queued and handles what is there, in the middle of a turn: for a task whose work another shard
    /// waits for. What others on this shard wait for has its turn afterwards.
    pub(super) fn settle(&self) {
        self.ring.enter(0);
        self.stats.ring_enters.inc();
        self.reap();
    }

    fn read_mail(&self) {
        if self.mail.take() {
            let read = self.on_mail.borrow().clone();
            read.iter().for_each(|read| read());
        }
    }

    fn arm_bell(&self) {
        if let Some(fd) = self.bell.get() {
            let at = self.bell_value.as_ptr().cast();
            let entry = opcode::Read::new(Fd(fd), at, 8).build();
            self.ring.push(entry.user_data(Op::Bell.tag(0)));
        }
    }

    // ---- receiving -----------------------------------------------------------------------

    fn arm_receive(&self, state: &mut State, index: u32) {
        let slot = &mut state.slots[index as usize];
        let full = slot.rx.len() >= self.unread_max();
        if slot.receiving || !slot.owned || slot.paused || slot.end.is_some() || full {
            return;
        }
        slot.receiving = true;
        slot.is_multishot = self.thrift.is_off();
        let fd = Fd(slot.fd);
        let entry = if slot.is_multishot {
            opcode::RecvMulti::new(fd, GROUP).build()
        } else {
            let one = opcode::Recv::new(fd, std::ptr::null_mut(), self.buffers.buffer_bytes());
            one.buf_group(GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT)
        };
        self.ring.push(entry.user_data(Op::Recv.tag(index)));
    }

    pub(super) fn cancel_receive(&self, state: &mut State, index: u32) {
        let slot = &mut state.slots[index as usize];
        if slot.receiving && !slot.stopping {
            slot.stopping = true;
            let entry = opcode::AsyncCancel::new(Op::Recv.tag(index)).build();
            self.ring.push(entry.user_data(Op::Ignore.tag(index)));
        }
    }

    fn received(&self, state: &mut State, index: u32, completion: &cqueue::Entry) {
        let more = cqueue::more(completion.flags());
        let result = completion.result();
        if let Some(id) = cqueue::buffer_select(completion.flags()) {
            self.keep(&mut state.slots[index as usize], id, result);
        }
        let slot = &mut state.slots[index as usize];
        if more {
            if slot.rx.len() >= self.unread_max() || slot.end.is_some() {
                self.cancel_receive(state, index);
            }
        } else {
            slot.receiving = false;
            slot.stopping = false;
            match result {
                0 => slot.end = slot.end.or(Some(0)),
                1.. => self.arm_receive(state, index),
                _ => self.receive_failed(state, index, -result),
            }
        }
        if let Some(waker) = &state.slots[index as usize].waker {
            waker.wake_by_ref();
        }
        if !more {
            self.try_free(state, index);
        }
    }

    /// Takes over a filled buffer, or copies it when buffers run low.
    fn keep(&self, slot: &mut Slot, id: u16, result: i32) {
        self.buffers.take();
        let Some(len) = u32::try_from(result)
            .ok()
            .filter(|len| *len > 0 && slot.owned && slot.end.is_none())
        else {
            return self.buffers.give(id);
        };
        if self.buffers.free() >= self.buffers.count() / 4 {
            slot.rx.push_back(Data::Buffer {
                id,
                start: 0,
                end: len,
            });
            return;
        }
        let may_refuse = slot.is_expendable && len > SMALL_BYTES_MAX;
        if may_refuse && memory::pressure() == Pressure::Spent {
            // No room for it, and none in the ring. What comes behind it must not be taken for it: the socket has ended.
            slot.end = Some(libc::ENOMEM);
            self.stats.memory_refusals.inc();
            return self.buffers.give(id);
        }
        let bytes = self.buffers.bytes(id, 0, len).to_vec();
        slot.rx.push_back(bytes.into());
        self.stats.heap_copies.inc();
        self.stats.heap_copy_bytes.add(len.into());
        self.buffers.give(id);
    }

    fn receive_failed(&self, state: &mut State, index: u32, errno: i32) {
        match errno {
            libc::ENOBUFS => {
                self.stats.buffers_starved.inc();
                let slot = &mut state.slots[index as usize];
                if slot.owned {
                    slot.is_starved = true;
                    state.starved.push(index);
                }
            }
            // By us; the reader of one that is paused or full arms it again.
            libc::ECANCELED | libc::EINTR | libc::EAGAIN => self.arm_receive(state, index),
            _ => {
                let end = &mut state.slots[index as usize].end;
                *end = end.or(Some(errno));
            }
        }
    }

    fn rearm_starved(&self) {
        let mut state = self.state.borrow_mut();
        if state.starved.is_empty() || self.buffers.free() < self.buffers.count() / 8 {
            return;
        }
        for index in std::mem::take(&mut state.starved) {
            state.slots[index as usize].is_starved = false;
            self.arm_receive(&mut state, index);
        }
    }

    // ---- a slot's life -------------------------------------------------------------------

    pub(super) fn insert(&self, fd: OwnedFd, tls: Option<Box<Secure>>, receive: bool) -> u32 {
        let mut state = self.state.borrow_mut();
        let index = state.slots.insert(Slot {
            fd: fd.into_raw_fd(),
            owned: true,
            is_expendable: false,
            receiving: false,
            stopping: false,
            is_multishot: false,
            paused: !receive,
            is_starved: false,
            sending: false,
            writable_wanted: false,
            error: 0,
            end: None,
            rx: Queue::default(),
            tx: Queue::default(),
            tls,
            waker: None,
            address: None,
            freed: None,
            close_by: Moment::NEVER,
            closing_at: 0,
        }) as u32;
        self.arm_receive(&mut state, index);
        index
    }

    pub(super) fn start_connect(&self, index: u32, address: SockAddr) {
        let mut state = self.state.borrow_mut();
        let slot = &mut state.slots[index as usize];
        let address = slot.address.insert(Box::new(address));
        let entry = opcode::Connect::new(Fd(slot.fd), address.as_ptr().cast(), address.len());
        slot.sending = true;
        self.ring
            .push(entry.build().user_data(Op::Connect.tag(index)));
    }

    fn connected(&self, state: &mut State, index: u32, result: i32) {
        let slot = &mut state.slots[index as usize];
        slot.sending = false;
        slot.address = None;
        slot.error = if result < 0 { -result } else { 0 };
        if let Some(waker) = &slot.waker {
            waker.wake_by_ref();
        }
        self.try_free(state, index);
    }

    /// The handle has gone: stop receiving, let queued sends finish, then close.
    pub(super) fn release(&self, index: u32) {
        let mut state = self.state.borrow_mut();
        self.close_tls(&mut state, index);
        let slot = &mut state.slots[index as usize];
        slot.owned = false;
        slot.close_by = self.now.get().after(self.close_timeout);
        let waker = slot.waker.take();
        let unread = slot.rx.drain();
        unread.for_each(|data| self.discard(TxData::Chunk(data)));
        if slot.address.is_some() {
            let entry = opcode::AsyncCancel::new(Op::Connect.tag(index)).build();
            self.ring.push(entry.user_data(Op::Ignore.tag(index)));
        }
        self.cancel_receive(&mut state, index);
        state.feed(index);
        state.slots[index as usize].closing_at = state.closing.len() as u32;
        state.closing.push(index);
        self.try_free(&mut state, index);
        drop(state);
        // Dropping a waker may drop a task, which may drop sockets: not while borrowed.
        drop(waker);
    }

    pub(super) fn try_free(&self, state: &mut State, index: u32) {
        let slot = &state.slots[index as usize];
        if slot.owned || slot.receiving || slot.sending || !slot.tx.is_empty() {
            return;
        }
        let slot = state.slots.remove(index as usize);
        state.closing.swap_remove(slot.closing_at as usize);
        if let Some(moved) = state.closing.get(slot.closing_at as usize) {
            state.slots[*moved as usize].closing_at = slot.closing_at;
        }
        // SAFETY: the slot owned this descriptor, and no operation refers to it any more.
        drop(unsafe { OwnedFd::from_raw_fd(slot.fd) });
        if let Some(freed) = slot.freed {
            freed.tell();
        }
    }

    /// Has `freed` told when the socket's descriptor has been closed; what is still queued is not sent
    /// any more.
    pub(super) fn announce_freed(&self, index: u32, freed: Rc<Freed>) {
        let mut state = self.state.borrow_mut();
        let slot = &mut state.slots[index as usize];
        slot.freed = Some(freed);
        // SAFETY: the slot owns this open descriptor.
        unsafe { libc::shutdown(slot.fd, libc::SHUT_RDWR) };
    }

    /// Closes our half of the connection; what is still queued is not sent any more.
    pub(super) fn say_no_more(&self, index: u32) {
        let state = self.state.borrow();
        // SAFETY: the slot owns this open descriptor.
        unsafe { libc::shutdown(state.slots[index as usize].fd, libc::SHUT_WR) };
    }

    /// Whether the peer has hung up, or the connection broke; drops what it said before.
    pub(super) fn has_hung_up(&self, index: u32) -> bool {
        let mut state = self.state.borrow_mut();
        let slot = &mut state.slots[index as usize];
        let unread = slot.rx.drain();
        let (has_ended, receiving) = (slot.end.is_some(), slot.receiving);
        unread.for_each(|data| self.discard(TxData::Chunk(data)));
        if !receiving {
            self.resume(&mut state, index);
        }
        has_ended
    }

    /// Shuts sockets down whose peer has not read what was queued before the close deadline.
    pub(super) fn close_overdue(&self) {
        let now = self.now.get();
        let state = self.state.borrow();
        for index in &state.closing {
            let slot = &state.slots[*index as usize];
            if slot.close_by <= now {
                // SAFETY: the slot owns this open descriptor.
                unsafe { libc::shutdown(slot.fd, libc::SHUT_RDWR) };
            }
        }
    }

    // ---- what a handle may do ------------------------------------------------------------

    pub(super) fn set_slot_waker(&self, index: u32, cx: &Context<'_>) {
        let mut state = self.state.borrow_mut();
        let old = set_waker(&mut state.slots[index as usize].waker, cx);
        drop(state);
        drop(old);
    }

    pub(super) fn clear_waker(&self, index: u32) {
        let waker = self.state.borrow_mut().slots[index as usize].waker.take();
        drop(waker);
    }

    /// The next received bytes; `None` if there are none yet; how it ended otherwise.
    pub(super) fn take_received(&self, index: u32) -> Option<Result<Data, i32>> {
        let mut state = self.state.borrow_mut();
        if state.slots[index as usize].tls.is_some() {
            return self.take_plain(&mut state, index);
        }
        self.take_raw(&mut state, index)
    }

    pub(super) fn take_raw(&self, state: &mut State, index: u32) -> Option<Result<Data, i32>> {
        let slot = &mut state.slots[index as usize];
        if let Some(data) = slot.rx.pop_front() {
            if slot.rx.is_empty() && !slot.receiving {
                self.resume(state, index);
            }
            return Some(Ok(data));
        }
        if let Some(end) = slot.end {
            return Some(Err(end));
        }
        if slot.error != 0 {
            return Some(Err(slot.error));
        }
        if !slot.receiving {
            self.resume(state, index);
        }
        None
    }

    pub(super) fn resume(&self, state: &mut State, index: u32) {
        if !state.slots[index as usize].is_starved {
            self.arm_receive(state, index);
        }
    }

    pub(super) fn connect_result(&self, index: u32) -> Option<Result<(), i32>> {
        let state = self.state.borrow();
        let slot = &state.slots[index as usize];
        match (slot.sending, slot.error) {
            (true, _) => None,
            (false, 0) => Some(Ok(())),
            (false, errno) => Some(Err(errno)),
        }
    }

    /// Whether at most `queued` payloads wait to be sent; if not, the waker is called later.
    pub(super) fn writable(&self, index: u32, queued: usize) -> Result<bool, i32> {
        let mut state = self.state.borrow_mut();
        let slot = &mut state.slots[index as usize];
        if slot.error != 0 {
            return Err(slot.error);
        }
        slot.writable_wanted = slot.queued() > queued;
        Ok(!slot.writable_wanted)
    }

    /// Stops receiving (`true`) or lets it go on.
    pub(super) fn pause(&self, index: u32, paused: bool) {
        let mut state = self.state.borrow_mut();
        state.slots[index as usize].paused = paused;
        if paused {
            self.cancel_receive(&mut state, index);
        } else {
            self.resume(&mut state, index);
        }
    }

    /// Whether nothing has arrived, ended or failed.
    pub(super) fn is_quiet(&self, index: u32) -> bool {
        let mut state = self.state.borrow_mut();
        self.is_quiet_inside(&mut state, index)
    }

    /// Whether no operation refers to the socket.
    pub(super) fn is_detachable(&self, index: u32) -> bool {
        let state = self.state.borrow();
        let slot = &state.slots[index as usize];
        !slot.receiving && !slot.sending && slot.queued() == 0
    }

    /// Takes a detachable socket off the ring.
    pub(super) fn extract(&self, index: u32) -> Detached {
        let mut state = self.state.borrow_mut();
        state.feed(index);
        let mut slot = state.slots.remove(index as usize);
        assert!(
            !slot.receiving && !slot.sending,
            "a detached socket has no operation in flight"
        );
        drop(state);
        slot.rx
            .drain()
            .for_each(|data| self.discard(TxData::Chunk(data)));
        drop(slot.waker);
        Detached {
            // SAFETY: the slot owned this descriptor and is gone.
            fd: unsafe { OwnedFd::from_raw_fd(slot.fd) },
            tls: slot.tls,
        }
    }

    /// Whether receiving or sending has ended and nothing is left to read.
    pub(super) fn has_ended(&self, index: u32) -> bool {
        let mut state = self.state.borrow_mut();
        if state.slots[index as usize].tls.is_some() {
            return self.has_ended_inside(&mut state, index);
        }
        let slot = &state.slots[index as usize];
        slot.rx.is_empty() && (slot.end.is_some() || slot.error != 0)
    }

    /// Whether a receive is all that keeps it from being detached.
    pub(super) fn is_only_receiving(&self, index: u32) -> bool {
        let state = self.state.borrow();
        let slot = &state.slots[index as usize];
        slot.receiving && !slot.sending && slot.queued() == 0
    }

    pub(super) fn set_expendable(&self, index: u32) {
        self.state.borrow_mut().slots[index as usize].is_expendable = true;
    }

    /// Whether it has ended because there was no memory for what it said.
    pub(super) fn is_out_of_memory(&self, index: u32) -> bool {
        self.state.borrow().slots[index as usize].end == Some(libc::ENOMEM)
    }

    /// Whether receiving or sending has ended, whatever is left to read.
    pub(super) fn is_ending(&self, index: u32) -> bool {
        let state = self.state.borrow();
        let slot = &state.slots[index as usize];
        slot.end.is_some() || slot.error != 0 || Reactor::is_ending_inside(slot)
    }

    pub(super) fn slot_fd(&self, index: u32) -> BorrowedFd<'_> {
        let fd = self.state.borrow().slots[index as usize].fd;
        // SAFETY: the slot owns the descriptor for as long as the caller's handle lives.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    // ---- timers --------------------------------------------------------------------------

    fn arm_timer(&self) {
        if let Some((index, timespec)) = self.timers.arm(self.now.get()) {
            let entry = opcode::Timeout::new(timespec).build();
            self.ring.push(entry.user_data(Op::Timer.tag(index)));
        }
    }

    fn fire_timers(&self) {
        let late = self.timers.fire(self.now.get());
        self.stats.late_wakeups.add(late);
    }
}

/// Whether a socket's descriptor has been closed, and who waits for that.
#[derive(Default)]
pub(super) struct Freed {
    is_done: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Freed {
    fn tell(&self) {
        self.is_done.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_done.get() {
            return Poll::Ready(());
        }
        set_waker(&mut self.waker.borrow_mut(), cx);
        Poll::Pending
    }
}

pub(super) fn error_of(errno: i32) -> io::Error {
    match errno {
        TRUNCATED => io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "connection closed without the end of TLS",
        ),
        BROKEN => io::Error::new(io::ErrorKind::InvalidData, "TLS connection broken"),
        errno => io::Error::from_raw_os_error(errno),
    }
}

/// Stores the context's waker; returns the one that it replaces.
pub(super) fn set_waker(place: &mut Option<Waker>, cx: &Context<'_>) -> Option<Waker> {
    match place {
        Some(waker) if waker.will_wake(cx.waker()) => None,
        _ => place.replace(cx.waker().clone()),
    }
}
