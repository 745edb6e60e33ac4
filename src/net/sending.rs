//! Sending: one send per socket at a time, begun at the end of the turn.

use super::buffer::Data;
use super::reactor::{Reactor, Slot, State, Tx, TxData};
use super::ring::Op;
use super::thrift::QUEUED_SENDS_MAX;
use io_uring::opcode;
use io_uring::types::Fd;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use std::os::fd::BorrowedFd;

/// What a turn sends by itself, and not through the ring: more is part of something large, whose next part comes meanwhile.
const DIRECT_BYTES_MAX: usize = 4096;
/// Spare heap buffers kept for payloads, and the largest that is kept.
const SPARES_MAX: usize = 64;
const SPARE_BYTES_MAX: usize = 32 * 1024;

impl Reactor {
    pub(super) fn queue_send(&self, index: u32, data: TxData) {
        let mut state = self.state.borrow_mut();
        let slot = &mut state.slots[index as usize];
        if slot.error != 0 || self.len(&data) == 0 {
            return self.discard(data);
        }
        if slot.tls.is_some() {
            return self.queue_plain(&mut state, index, data);
        }
        self.stats.sends_queued.add(1);
        slot.tx.push_back(Tx { data, sent: 0 });
        if !slot.sending {
            self.start_send(&mut state, index);
        }
    }

    /// Puts the front of the queue in flight. One send per socket at a time, since io_uring does
    /// not order two of them once the first had to wait.
    pub(super) fn start_send(&self, state: &mut State, index: u32) {
        let slot = &mut state.slots[index as usize];
        if slot.tx.is_empty() {
            return;
        }
        slot.sending = true;
        state.outgoing.push(index);
    }

    /// Has the ring send the front; MSG_WAITALL makes the kernel finish short sends.
    fn push_send(&self, state: &mut State, index: u32) {
        let slot = &state.slots[index as usize];
        let front = slot.tx.front().expect("a send that has begun has bytes");
        let rest = &self.bytes(&front.data)[front.sent..];
        let len = u32::try_from(rest.len()).unwrap_or(i32::MAX as u32);
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = opcode::Send::new(Fd(slot.fd), rest.as_ptr(), len)
            .flags(flags)
            .build();
        self.ring.push(entry.user_data(Op::Send.tag(index)));
    }

    /// A turn's only send is made at once, if it can be: the ring's would complete as soon as it is submitted, and that
    /// would cost a turn in which nothing else is to be done. More than four go to the ring for less (docs/BENCHMARKS.md).
    pub(super) fn end_sends(&self) {
        let mut state = self.state.borrow_mut();
        let mut outgoing = std::mem::take(&mut state.outgoing);
        let is_alone = outgoing.len() == 1;
        for index in outgoing.drain(..) {
            if !is_alone || !self.send_now(&mut state, index) {
                self.push_send(&mut state, index);
            }
        }
        state.outgoing = outgoing;
    }

    /// Whether the front has been sent whole, or has failed. Not tried where that would leave more to do.
    fn send_now(&self, state: &mut State, index: u32) -> bool {
        let slot = &mut state.slots[index as usize];
        let has_plaintext = slot.tls.as_ref().is_some_and(|tls| !tls.pending.is_empty());
        if !slot.owned || slot.writable_wanted || slot.tx.len() > 1 || has_plaintext {
            return false;
        }
        let Some(front) = slot.tx.front_mut() else {
            return false;
        };
        let rest = &self.bytes(&front.data)[front.sent..];
        if rest.len() > DIRECT_BYTES_MAX {
            return false;
        }
        // SAFETY: the slot owns this open descriptor.
        let socket = unsafe { BorrowedFd::borrow_raw(slot.fd) };
        match send(socket, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(count) if count == rest.len() => {
                self.sent(state, index, count as i32);
                true
            }
            Ok(count) => {
                front.sent += count;
                false
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            Err(errno) => {
                self.sent(state, index, -errno.raw_os_error());
                true
            }
        }
    }

    pub(super) fn sent(&self, state: &mut State, index: u32, result: i32) {
        let slot = &mut state.slots[index as usize];
        slot.sending = false;
        match usize::try_from(result) {
            Ok(count) => {
                let Some(front) = slot.tx.front_mut() else {
                    return;
                };
                front.sent += count;
                if front.sent >= self.len(&front.data) {
                    self.stats.sends_queued.sub(1);
                    let done = slot.tx.pop_front();
                    done.into_iter().for_each(|tx| self.discard(tx.data));
                }
            }
            Err(_) if [libc::EINTR, libc::EAGAIN].contains(&-result) => {}
            Err(_) => self.send_failed(slot, -result),
        }
        let slot = &mut state.slots[index as usize];
        self.wake_writer(slot);
        if slot.tx.is_empty() {
            self.list(state, index);
            self.try_free(state, index);
        } else {
            self.start_send(state, index);
        }
    }

    /// Wakes who waits for the send queue to shrink, if it has.
    pub(super) fn wake_writer(&self, slot: &mut Slot) {
        if slot.writable_wanted && (slot.queued() <= QUEUED_SENDS_MAX / 2 || slot.error != 0) {
            slot.writable_wanted = false;
            self.wake(slot);
        }
    }

    fn wake(&self, slot: &Slot) {
        if let Some(waker) = &slot.waker {
            self.woke.set(true);
            waker.wake_by_ref();
        }
    }

    fn send_failed(&self, slot: &mut Slot, errno: i32) {
        slot.error = errno;
        self.stats.sends_queued.sub(slot.tx.len() as u64);
        slot.tx.drain().for_each(|tx| self.discard(tx.data));
        if let Some(tls) = &mut slot.tls {
            let count = tls.pending.len();
            self.drop_pending(tls, count);
        }
        self.wake(slot);
    }

    pub(super) fn bytes<'a>(&'a self, data: &'a TxData) -> &'a [u8] {
        match data {
            TxData::Chunk(data) => data.bytes(&self.buffers),
            TxData::Owned(bytes) => bytes,
            TxData::Static(bytes) => bytes,
        }
    }

    pub(super) fn len(&self, data: &TxData) -> usize {
        self.bytes(data).len()
    }

    pub(super) fn spare(&self) -> Vec<u8> {
        self.spares.borrow_mut().pop().unwrap_or_default()
    }

    pub(super) fn discard(&self, data: TxData) {
        match data {
            TxData::Chunk(Data::Buffer { id, .. }) => self.buffers.give(id),
            TxData::Chunk(Data::Heap(_) | Data::Nothing) | TxData::Static(_) => {}
            TxData::Owned(mut bytes) => {
                let mut spares = self.spares.borrow_mut();
                if spares.len() < SPARES_MAX && (1..=SPARE_BYTES_MAX).contains(&bytes.capacity()) {
                    bytes.clear();
                    spares.push(bytes);
                }
            }
        }
    }
}
