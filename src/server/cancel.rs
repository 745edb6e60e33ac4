//! Cancel requests to a server, each on a connection of its own (protocol section "Canceling
//! Requests in Progress").

use super::connect::{Target, connect};
use super::error::DialError;
use crate::net::{Net, Socket};
use crate::wire::cancel_request;
use std::cell::Cell;

/// Sends a request on a connection of its own, and waits until it has been dealt with; the caller sets the deadline.
///
/// # Errors
/// If the connection fails.
pub async fn send_cancel(
    net: Net,
    target: &Target,
    is_encrypted: bool,
    key: &[u8],
) -> Result<(), DialError> {
    let way = CancelWay::open(net, target, is_encrypted).await?;
    way.request(key).await;
    Ok(())
}

/// A connection that a cancel request can be sent on.
pub struct CancelWay(Socket);

impl CancelWay {
    /// Connects, encrypted if the connection is whose query is to be cancelled; the caller sets the deadline.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn open(
        net: Net,
        target: &Target,
        is_encrypted: bool,
    ) -> Result<CancelWay, DialError> {
        // It is no session: nobody has to see it off.
        let left = Cell::default();
        let socket = connect(net, target, is_encrypted, &left).await?;
        Ok(CancelWay(socket.finished()))
    }

    /// Sends the request and waits until the server has dealt with it, which it shows by hanging up; the caller sets
    /// the deadline.
    pub async fn request(self, key: &[u8]) {
        let mut packet = Vec::new();
        cancel_request(&mut packet, key);
        self.0.send(packet);
        // However it hangs up: it has dealt with the request by then.
        while let Ok(Some(_)) = self.0.recv().await {}
    }
}
