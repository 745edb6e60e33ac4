//! How sparing a shard's sockets are with memory, as the process's budget has it (`memory_max`).

use super::reactor::{Reactor, State};
use crate::base::memory::{self, Pressure};
use std::cell::Cell;

/// A connection with this many unread chunks has its receive cancelled; it is armed again when
/// the reader has drained the queue. When memory is tight, one chunk is enough.
const UNREAD_CHUNKS_MAX: usize = 8;
/// More payloads than this are not to be queued on a socket; when memory is tight, nothing is while anything is queued.
pub(super) const QUEUED_SENDS_MAX: usize = 4;
/// How many sockets are told in one turn to receive no more than is asked for.
const CURBED_PER_TURN: usize = 512;

/// How things stand on one shard.
pub(super) struct Thrift {
    /// As of the beginning of the turn.
    pressure: Cell<Pressure>,
    /// All receive buffers have memory, and count.
    is_populated: Cell<bool>,
    /// The next slot whose receive is to be curbed, as memory has become tight.
    to_curb: Cell<Option<usize>>,
}

impl Default for Thrift {
    fn default() -> Thrift {
        Thrift {
            pressure: Cell::new(Pressure::Ample),
            is_populated: Cell::new(false),
            to_curb: Cell::new(None),
        }
    }
}

impl Thrift {
    /// Whether sockets are still to be told of it: the shard does not sleep before they are.
    pub(super) fn is_under_way(&self) -> bool {
        self.to_curb.get().is_some()
    }

    /// Whether there is no need to be sparing.
    pub(super) fn is_off(&self) -> bool {
        self.pressure.get() == Pressure::Ample
    }
}

impl Reactor {
    /// Looks how things stand, once in a turn.
    pub(super) fn feel_pressure(&self) {
        let thrift = &self.thrift;
        if memory::max() != 0 && !thrift.is_populated.replace(true) {
            self.buffers.populate();
            memory::measure();
        }
        let now = memory::pressure();
        match (thrift.pressure.replace(now), now) {
            (_, Pressure::Ample) => thrift.to_curb.set(None),
            (Pressure::Ample, _) => thrift.to_curb.set(Some(0)),
            _ => {}
        }
    }

    /// Stops receives that would bring more than one chunk; as they end, such as bring one take their place.
    pub(super) fn curb(&self, state: &mut State) {
        let Some(from) = self.thrift.to_curb.get() else {
            return;
        };
        let to = from + CURBED_PER_TURN;
        for index in from..to {
            if state.slots.get(index).is_some_and(|slot| slot.is_multishot) {
                self.cancel_receive(state, index as u32);
            }
        }
        let is_over = to >= state.slots.capacity();
        self.thrift.to_curb.set((!is_over).then_some(to));
    }

    /// How many unread chunks are enough for a socket.
    pub(super) fn unread_max(&self) -> usize {
        if self.thrift.is_off() {
            UNREAD_CHUNKS_MAX
        } else {
            1
        }
    }

    /// How many payloads may be queued on a socket on which more are to be.
    pub(super) fn queued_max(&self) -> usize {
        if self.thrift.is_off() {
            QUEUED_SENDS_MAX
        } else {
            0
        }
    }
}
