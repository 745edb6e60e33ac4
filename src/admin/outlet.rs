//! What a session is answered, on its way to the socket.

use super::error::Ended;
use crate::base::{Clock, Moment};
use crate::net::{Net, Socket};
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

/// A long answer is sent in pieces of about this size.
const PIECE_BYTES: usize = 32 * 1024;
/// A long answer holds the shard up for about this long at a time.
const TURN: Duration = Duration::from_millis(1);

/// Collects replies and sends them.
pub(super) struct Outlet<'a> {
    net: Net,
    socket: &'a Socket,
    /// Replies that have not been sent.
    pub(super) bytes: Vec<u8>,
    turn_began: Moment,
}

impl<'a> Outlet<'a> {
    pub(super) fn new(net: Net, socket: &'a Socket) -> Outlet<'a> {
        let (bytes, turn_began) = (net.spare(), Clock::now());
        Outlet {
            net,
            socket,
            bytes,
            turn_began,
        }
    }

    /// Sends what has been collected.
    pub(super) fn send(&mut self) {
        let bytes = std::mem::replace(&mut self.bytes, self.net.spare());
        self.socket.send(bytes);
    }

    /// Between two rows of an answer: once it has grown long, or taken long, waits until the client
    /// has taken what there is. That bounds memory and lets the shard serve others meanwhile;
    /// merely yielding would not, because the ring is not visited while any task can run.
    pub(super) async fn pause(&mut self) -> Result<(), Ended> {
        let is_long = Clock::now().since(self.turn_began) >= TURN;
        if self.bytes.len() >= PIECE_BYTES || (is_long && !self.bytes.is_empty()) {
            self.send();
            self.socket.flush().await.map_err(|_| Ended)?;
            self.turn_began = Clock::now();
        }
        Ok(())
    }

    /// Resolves once the client has hung up; what it sends stays unread.
    pub(super) async fn hung_up<T>(&self) -> Result<T, Ended> {
        poll_fn(|cx| {
            if self.socket.is_ending() {
                return Poll::Ready(Err(Ended));
            }
            self.socket.watch(cx);
            Poll::Pending
        })
        .await
    }

    /// Between two messages: waits until the client has taken most of the answers so far.
    pub(super) async fn settle(&mut self) -> Result<(), Ended> {
        if self.bytes.len() >= PIECE_BYTES {
            self.send();
        }
        let writable = poll_fn(|cx| self.socket.poll_writable(cx)).await;
        self.turn_began = Clock::now();
        writable.map_err(|_| Ended)
    }
}
