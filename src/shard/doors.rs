//! Listening sockets as the other shards see them: who waits at one whose shard does not turn is let in by
//! the next shard that does.

use super::root::Shard;
use super::shared::{Common, Phase};
use crate::base::{Clock, ShardId};
use crate::net::{spawn, take_waiting};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, PoisonError, Weak};

/// A listening socket, for as long as its shard has it open.
pub(super) struct Door {
    shard: ShardId,
    socket: Weak<OwnedFd>,
    is_unix: bool,
}

impl Common {
    /// Makes a socket known that `shard` listens at.
    pub(super) fn add_door(&self, shard: ShardId, socket: &Arc<OwnedFd>, is_unix: bool) {
        let door = Door {
            shard,
            socket: Arc::downgrade(socket),
            is_unix,
        };
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.push(door);
    }

    fn doors_of(&self, shard: ShardId) -> Vec<(Arc<OwnedFd>, bool)> {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        let own = doors.iter().filter(|door| door.shard == shard);
        own.filter_map(|door| Some((door.socket.upgrade()?, door.is_unix)))
            .collect()
    }
}

impl Shard {
    /// Lets in who waits at the shards behind this one that do not turn.
    pub(super) fn stand_in(self: &Rc<Self>) {
        let (shards, now) = (self.common.mesh.shards(), Clock::now());
        let behind = (1..shards).map(|step| ShardId(((self.id.index() + step) % shards) as u16));
        let stalled = behind.take_while(|id| self.common.registry.shard(*id).beat.is_stalled(now));
        for (socket, is_unix) in stalled.flat_map(|id| self.common.doors_of(id)) {
            if self.phase.get() > Phase::Serving && !is_unix {
                continue;
            }
            let shard = self.clone();
            spawn(self.net, async move {
                while let Some(client) = take_waiting(&socket) {
                    shard.net.in_turn(|| shard.place(client, is_unix)).await;
                }
            });
        }
    }
}
