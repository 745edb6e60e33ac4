//! Sockets that speak TLS: what is received is decrypted when it is read, what is sent is encrypted once
//! per turn, or when the send before it has ended; so that all that came together in between leaves in as
//! few records, and one system call.
//!
//! ```text
//! ring ─► rx (ciphertext) ─► Session::open ─► ready ─► take_received
//! queue_send ─► pending ─► Session::seal (seal_pending) ─► tx ─► ring
//! ```
//! Bounds: `pending` counts against the same limit as `tx` ([`QUEUED_SENDS_MAX`](super::thrift)), and
//! received chunks stay encrypted in `rx` until somebody reads.

use super::buffer::Data;
use super::reactor::{Reactor, Slot, State, Tx, TxData};
use super::tls::{HandshakeError, Peer, Session};
use std::collections::VecDeque;
use std::io;

/// What receiving on a socket with TLS ended with, beside the errors of the kernel: the TCP stream
/// ended, but not the TLS stream in it.
pub(super) const TRUNCATED: i32 = -1;
/// The other side broke the protocol.
pub(super) const BROKEN: i32 = -2;

/// Plaintext that is read, or encrypted, at a time; more is left for the next time. Two full records.
const BATCH_BYTES: usize = 32 * 1024;

/// What a socket with TLS has beside the rest.
#[derive(Debug)]
pub(super) struct Secure {
    session: Session,
    /// Plaintext that nobody has read.
    ready: VecDeque<Vec<u8>>,
    /// Plaintext that is to be sent.
    pub(super) pending: VecDeque<TxData>,
    /// It is in the list of sockets that have something to encrypt.
    listed: bool,
    /// The stream is broken, and why, for the one who performs the handshake.
    fault: Option<rustls::Error>,
}

impl Secure {
    fn has_ended(&self) -> bool {
        self.fault.is_some() || self.session.peer_has_closed()
    }

    fn end(&self) -> Option<i32> {
        match (&self.fault, self.session.peer_has_closed()) {
            (Some(_), _) => Some(BROKEN),
            (None, true) => Some(0),
            (None, false) => None,
        }
    }
}

impl std::fmt::Debug for TxData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TxData")
    }
}

impl Slot {
    /// Payloads that wait to be sent, encrypted or not.
    pub(super) fn queued(&self) -> usize {
        let pending = self.tls.as_ref().map_or(0, |tls| tls.pending.len());
        self.tx.len() + pending
    }
}

impl Reactor {
    // ---- handshake -----------------------------------------------------------------------

    /// Begins TLS on a socket of which `ahead` has been read already.
    pub(super) fn begin_tls(&self, index: u32, session: Session, ahead: Vec<u8>) {
        let mut state = self.state.borrow_mut();
        let slot = &mut state.slots[index as usize];
        debug_assert!(slot.tls.is_none());
        if !ahead.is_empty() {
            slot.rx.push_front(ahead.into());
        }
        slot.tls = Some(Box::new(Secure {
            session,
            ready: VecDeque::new(),
            pending: VecDeque::new(),
            listed: false,
            fault: None,
        }));
    }

    /// Whether a handshake can go on: something has come, or the end. If not, receiving goes on, which may
    /// have been stopped when much had come at once.
    pub(super) fn has_news(&self, index: u32) -> bool {
        let mut state = self.state.borrow_mut();
        let slot = &state.slots[index as usize];
        if !slot.rx.is_empty() || slot.end.is_some() || slot.error != 0 {
            return true;
        }
        if !slot.receiving {
            self.resume(&mut state, index);
        }
        false
    }

    /// The first step of the side that speaks first.
    pub(super) fn open_handshake(&self, index: u32) -> Result<(), HandshakeError> {
        let mut state = self.state.borrow_mut();
        let slot = &mut state.slots[index as usize];
        let Some(tls) = &mut slot.tls else {
            return Ok(());
        };
        let mut out = Vec::new();
        let begun = tls.session.begin(&mut out);
        self.queue_sealed(&mut state, index, out);
        begun.map_err(HandshakeError::Refused)
    }

    /// One step of a handshake; whether it was the last.
    pub(super) fn continue_handshake(&self, index: u32) -> Result<bool, HandshakeError> {
        let mut state = self.state.borrow_mut();
        while let Some(data) = state.slots[index as usize].rx.pop_front() {
            self.open(&mut state, index, data);
            let Some(tls) = &state.slots[index as usize].tls else {
                return Ok(true);
            };
            if let Some(fault) = &tls.fault {
                return Err(HandshakeError::Refused(fault.clone()));
            }
            if !tls.session.is_handshaking() {
                return Ok(true);
            }
        }
        let slot = &state.slots[index as usize];
        match (slot.end, slot.error) {
            (None | Some(0), error @ 1..) | (Some(error @ 1..), _) => {
                Err(HandshakeError::Broken(io::Error::from_raw_os_error(error)))
            }
            (Some(_), _) => Err(HandshakeError::Closed),
            (None, _) => Ok(false),
        }
    }

    /// What is known about the other side of a socket with TLS.
    pub(super) fn tls_peer(&self, index: u32) -> Option<Peer> {
        let state = self.state.borrow();
        let tls = state.slots[index as usize].tls.as_ref()?;
        (!tls.session.is_handshaking()).then(|| tls.session.peer())
    }

    // ---- receiving -----------------------------------------------------------------------

    /// As `take_received`, for a socket with TLS.
    pub(super) fn take_plain(&self, state: &mut State, index: u32) -> Option<Result<Data, i32>> {
        loop {
            if let Some(bytes) = self.open_received(state, index) {
                return Some(Ok(bytes.into()));
            }
            let end = state.slots[index as usize].tls.as_ref()?.end();
            if let Some(end) = end {
                return Some(Err(end));
            }
            return match self.take_raw(state, index) {
                // Bytes that made no plaintext have been taken above; these came to an empty queue.
                Some(Ok(data)) => {
                    self.open(state, index, data);
                    continue;
                }
                Some(Err(0)) => Some(Err(TRUNCATED)),
                other => other,
            };
        }
    }

    /// Decrypts what has been received until some plaintext is there, which is taken.
    fn open_received(&self, state: &mut State, index: u32) -> Option<Vec<u8>> {
        self.open_some(state, index);
        state.slots[index as usize].tls.as_mut()?.ready.pop_front()
    }

    /// Decrypts what has been received until some plaintext is there.
    fn open_some(&self, state: &mut State, index: u32) {
        loop {
            let slot = &mut state.slots[index as usize];
            let Some(tls) = &slot.tls else { return };
            if !tls.ready.is_empty() || tls.has_ended() {
                return;
            }
            let Some(data) = slot.rx.pop_front() else {
                return;
            };
            self.open(state, index, data);
            self.rearm_drained(state, index);
        }
    }

    fn rearm_drained(&self, state: &mut State, index: u32) {
        let slot = &state.slots[index as usize];
        if slot.rx.is_empty() && !slot.receiving {
            self.resume(state, index);
        }
    }

    /// Decrypts `data` and, up to a batch, what has been received behind it.
    fn open(&self, state: &mut State, index: u32, mut data: Data) {
        let slot = &mut state.slots[index as usize];
        let Some(tls) = &mut slot.tls else { return };
        let (mut plain, mut out) = (Vec::new(), Vec::new());
        loop {
            let opened = tls
                .session
                .open(data.bytes_mut(&self.buffers), &mut plain, &mut out);
            self.discard(TxData::Chunk(data));
            if let Err(error) = opened {
                tracing::debug!(%error, "TLS connection broken");
                tls.fault = Some(error);
                break;
            }
            let is_enough = plain.len() >= BATCH_BYTES / 2 || tls.session.is_handshaking();
            if is_enough {
                break;
            }
            let Some(next) = slot.rx.pop_front() else {
                break;
            };
            data = next;
        }
        if !plain.is_empty() {
            tls.ready.push_back(plain);
        }
        self.queue_sealed(state, index, out);
    }

    /// As `is_quiet`, for a socket with TLS: messages of TLS itself do not count, but part of a record
    /// does, as nobody knows yet what it is.
    pub(super) fn is_quiet_inside(&self, state: &mut State, index: u32) -> bool {
        self.open_some(state, index);
        let slot = &state.slots[index as usize];
        let is_quiet = |tls: &Secure| {
            tls.ready.is_empty() && !tls.has_ended() && !tls.session.is_inside_record()
        };
        slot.tls.as_deref().is_none_or(is_quiet)
            && slot.rx.is_empty()
            && slot.end.is_none()
            && slot.error == 0
    }

    /// As `has_ended`, for a socket with TLS.
    pub(super) fn has_ended_inside(&self, state: &mut State, index: u32) -> bool {
        self.open_some(state, index);
        let slot = &state.slots[index as usize];
        let is_drained = slot.rx.is_empty() && (slot.end.is_some() || slot.error != 0);
        let has_ended = |tls: &Secure| tls.ready.is_empty() && (is_drained || tls.has_ended());
        slot.tls.as_deref().is_some_and(has_ended)
    }

    /// Whether the stream inside TLS has ended, or been broken.
    pub(super) fn is_ending_inside(slot: &Slot) -> bool {
        slot.tls.as_deref().is_some_and(Secure::has_ended)
    }

    // ---- sending -------------------------------------------------------------------------

    /// Queues plaintext; it is encrypted at the end of the turn.
    pub(super) fn queue_plain(&self, state: &mut State, index: u32, data: TxData) {
        let slot = &mut state.slots[index as usize];
        let Some(tls) = &mut slot.tls else {
            return self.discard(data);
        };
        if tls.fault.is_some() || tls.session.is_handshaking() {
            return self.discard(data);
        }
        self.stats.sends_queued.add(1);
        tls.pending.push_back(data);
        self.list(state, index);
    }

    /// Sees to it that what is pending is encrypted at the end of the turn, unless a send is under way:
    /// its end does.
    pub(super) fn list(&self, state: &mut State, index: u32) {
        let slot = &mut state.slots[index as usize];
        let Some(tls) = &mut slot.tls else { return };
        if !tls.pending.is_empty() && !tls.listed && slot.tx.is_empty() {
            tls.listed = true;
            state.unsealed.push(index);
        }
    }

    /// Encrypts what is pending on every listed socket.
    pub(super) fn seal_pending(&self) {
        let mut state = self.state.borrow_mut();
        for index in std::mem::take(&mut state.unsealed) {
            // It may have been closed, or detached, and its number be another's.
            let slot = state.slots.get_mut(index as usize);
            let Some(tls) = slot.and_then(|slot| slot.tls.as_mut()) else {
                continue;
            };
            tls.listed = false;
            if let Some(out) = self.seal_batch(&mut state, index) {
                self.queue_sealed(&mut state, index, out);
            }
            self.wake_writer(&mut state.slots[index as usize]);
        }
    }

    /// Encrypts pending payloads, at most a batch but at least one.
    fn seal_batch(&self, state: &mut State, index: u32) -> Option<Vec<u8>> {
        let tls = state.slots[index as usize].tls.as_mut()?;
        let mut out = self.spare();
        let mut plain = std::mem::take(&mut *self.scratch.borrow_mut());
        let mut sealed = Ok(());
        // A payload on its own is encrypted from where it is.
        if let [only] = tls.pending.make_contiguous() {
            sealed = tls.session.seal(self.bytes(only), &mut out);
            self.drop_pending(tls, 1);
        } else {
            let mut count = 0;
            for data in &tls.pending {
                let bytes = self.bytes(data);
                if count > 0 && plain.len() + bytes.len() > BATCH_BYTES {
                    break;
                }
                plain.extend_from_slice(bytes);
                count += 1;
            }
            if count > 0 {
                sealed = tls.session.seal(&plain, &mut out);
                self.drop_pending(tls, count);
            }
        }
        plain.clear();
        plain.shrink_to(BATCH_BYTES);
        *self.scratch.borrow_mut() = plain;
        if let Err(error) = sealed {
            tracing::debug!(%error, "TLS connection broken");
            let count = tls.pending.len();
            self.drop_pending(tls, count);
            tls.fault = Some(error);
        }
        Some(out)
    }

    pub(super) fn drop_pending(&self, tls: &mut Secure, count: usize) {
        self.stats.sends_queued.sub(count as u64);
        tls.pending
            .drain(..count)
            .for_each(|data| self.discard(data));
    }

    /// Queues bytes as they are.
    fn queue_sealed(&self, state: &mut State, index: u32, bytes: Vec<u8>) {
        let slot = &mut state.slots[index as usize];
        let data = TxData::Owned(bytes);
        if slot.error != 0 || self.len(&data) == 0 {
            return self.discard(data);
        }
        self.stats.sends_queued.add(1);
        slot.tx.push_back(Tx { data, sent: 0 });
        if !slot.sending {
            self.start_send(state, index);
        }
    }

    /// Says that nothing more will be sent, behind all that is pending. What still comes is not decrypted
    /// any more.
    pub(super) fn finish_tls(&self, index: u32) {
        self.close_tls(&mut self.state.borrow_mut(), index);
    }

    /// The handle is about to go: everything pending is encrypted, and close_notify behind it.
    pub(super) fn close_tls(&self, state: &mut State, index: u32) {
        loop {
            let slot = &mut state.slots[index as usize];
            let Some(tls) = &mut slot.tls else { return };
            if tls.pending.is_empty() {
                break;
            }
            if slot.error != 0 {
                let count = tls.pending.len();
                self.drop_pending(tls, count);
                break;
            }
            if let Some(out) = self.seal_batch(state, index) {
                self.queue_sealed(state, index, out);
            }
        }
        let slot = &mut state.slots[index as usize];
        let Some(mut tls) = slot.tls.take() else {
            return;
        };
        let mut out = Vec::new();
        let may_speak = tls.fault.is_none() && !tls.session.is_handshaking();
        if may_speak && slot.error == 0 && tls.session.close(&mut out).is_ok() {
            self.queue_sealed(state, index, out);
        }
    }
}
