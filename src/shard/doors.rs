//! Listening sockets as the other shards see them: who waits at one whose shard does not turn is let in by
//! the next shard that does.

use super::root::{Shard, tcp_options};
use super::shared::{Common, Phase};
use crate::base::{Clock, ShardId};
use crate::config::General;
use crate::net::{share_listener, spawn, take_waiting, tune_listener};
use std::io;
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
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub(super) fn add_door(
        &self,
        shard: ShardId,
        socket: &Arc<OwnedFd>,
        is_unix: bool,
    ) -> io::Result<()> {
        share_listener(socket)?;
        let door = Door {
            shard,
            socket: Arc::downgrade(socket),
            is_unix,
        };
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.push(door);
        Ok(())
    }

    /// Gives the TCP sockets that are listened at the options of a new configuration. What is zero now stays as it was (tcp(7) knows no way back to its defaults).
    pub fn tune_doors(&self, general: &General) {
        let options = tcp_options(general);
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        let of_tcp = doors.iter().filter(|door| !door.is_unix);
        for socket in of_tcp.filter_map(|door| door.socket.upgrade()) {
            if let Err(error) = tune_listener(&socket, &options) {
                tracing::warn!(%error, "cannot change the options of a listening socket");
            }
        }
    }

    fn doors_of(&self, shard: ShardId) -> Vec<(Weak<OwnedFd>, bool)> {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        let own = doors.iter().filter(|door| door.shard == shard);
        own.map(|door| (door.socket.clone(), door.is_unix))
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
            let shard = self.clone();
            spawn(self.net, async move {
                while shard.phase.get() == Phase::Serving || is_unix {
                    // Its owner may close it between two clients.
                    let Some(client) = socket.upgrade().and_then(|it| take_waiting(&it)) else {
                        return;
                    };
                    shard.net.in_turn(|| shard.place(client, is_unix)).await;
                }
            });
        }
    }
}
