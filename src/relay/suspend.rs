//! SUSPEND: a client is not read, and its server neither, until the order is taken back; what has been read goes out.

use super::run::Relay;
use crate::client::Suspension;
use crate::net::Socket;
use std::task::{Context, Poll};

impl Relay {
    /// Ready unless the client is suspended. Notes it once everything has been sent that was to be.
    pub(super) fn poll_suspension(&self, server: Option<&Socket>, cx: &Context<'_>) -> Poll<()> {
        if self.entry.suspension.get() == Suspension::None {
            return Poll::Ready(());
        }
        let has_gone_out = |socket: &Socket| socket.poll_flushed(cx).is_ready();
        if has_gone_out(&self.socket) & server.is_none_or(has_gone_out) {
            self.entry.suspension.set(Suspension::Quiet);
        }
        Poll::Pending
    }
}
