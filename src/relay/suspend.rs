//! SUSPEND: a client is not read, and its server neither, until the order is taken back; what has been read goes out.

use super::run::{Ending, Relay};
use crate::client::{Signal, Suspension};
use crate::net::Socket;
use std::future::poll_fn;
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

    /// Waits for the end of a suspension; only a request to leave is heard meanwhile.
    pub(super) async fn suspended(&self, server: Option<&Socket>) -> Result<(), Ending> {
        poll_fn(|cx| {
            while let Some(signal) = self.entry.poll_signal(cx) {
                if let Signal::Leave(farewell) = signal {
                    return Poll::Ready(Err(Ending::SentAway(farewell)));
                }
            }
            self.poll_suspension(server, cx).map(Ok)
        })
        .await
    }
}
