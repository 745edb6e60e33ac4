//! A client off any ring, between two requests: what it takes along to another shard.

use super::lease::Servers;
use super::run::{Relay, RelaySettings};
use super::stores::Stores;
use crate::client::ClientEntry;
use crate::net::{Chunk, Detached, Endpoint, Net, Socket};
use crate::session::{PackedStatements, Settings};
use crate::stats::PoolStats;
use std::rc::Rc;
use std::sync::Arc;

/// Everything of a client that is not its shard's.
pub struct RelayParcel {
    socket: Detached,
    /// What it said while it was packed.
    ahead: Vec<u8>,
    settings: Settings,
    are_settings_proven: bool,
    names: PackedStatements,
    unnamed: u64,
    options: RelaySettings,
}

impl Relay {
    /// Takes a client off this shard that is between two requests (see [`Ending::Moving`](super::Ending::Moving)).
    ///
    /// # Errors
    /// Gives it back if its socket has ended or cannot move.
    pub async fn pack(self) -> Result<RelayParcel, Relay> {
        debug_assert!(self.ahead.is_none(), "a client moves with nothing to do");
        let options = self.options();
        match self.socket.unload().await {
            (Err(socket), unread) => {
                self.stats.bytes_received.add(unread.len() as u64);
                let ahead = (!unread.is_empty()).then(|| Chunk::from_vec(self.net, unread));
                Err(Relay {
                    socket,
                    ahead,
                    ..self
                })
            }
            (Ok(socket), ahead) => Ok(RelayParcel {
                socket,
                ahead,
                settings: self.settings,
                are_settings_proven: self.are_settings_proven,
                names: self.names.pack(),
                unnamed: self.unnamed,
                options,
            }),
        }
    }
}

impl RelayParcel {
    /// Where the client is.
    pub fn peer(&self) -> Endpoint {
        self.socket.peer()
    }

    /// Our end.
    pub fn local(&self) -> Endpoint {
        self.socket.local()
    }

    /// The socket alone, to take leave on.
    pub fn into_socket(self) -> Detached {
        self.socket
    }

    /// Puts the client on this shard.
    pub fn unpack(
        self,
        net: Net,
        entry: Rc<ClientEntry>,
        servers: Rc<dyn Servers>,
        stores: Rc<Stores>,
        stats: Arc<PoolStats>,
    ) -> Relay {
        let names = self.names.unpack(&mut stores.statements.borrow_mut());
        entry.prepared.set(names.len() as u32);
        let socket = Socket::attach(net, self.socket);
        entry.note_tls(socket.tls_peer().map(|peer| peer.label));
        let relay = Relay::new(
            net,
            socket,
            self.ahead,
            entry,
            servers,
            stores,
            stats,
            self.settings,
            self.options,
        );
        Relay {
            names,
            unnamed: self.unnamed,
            are_settings_proven: self.are_settings_proven,
            ..relay
        }
    }
}
