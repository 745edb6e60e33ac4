//! Cancel requests to a server, each on a connection of its own (protocol section "Canceling
//! Requests in Progress").

use super::connect::{Target, connect};
use super::error::DialError;
use crate::net::Net;
use crate::wire::cancel_request;
use std::cell::Cell;

/// Sends the request, encrypted if the connection is whose query it cancels, and waits until the server has dealt with it, which it shows by hanging up;
/// the caller sets the deadline.
///
/// # Errors
/// If the connection fails.
pub async fn send_cancel(
    net: Net,
    target: &Target,
    is_encrypted: bool,
    key: &[u8],
) -> Result<(), DialError> {
    // It is no session: nobody has to see it off.
    let left = Cell::default();
    let socket = connect(net, target, is_encrypted, &left).await?;
    let mut packet = Vec::new();
    cancel_request(&mut packet, key);
    socket.send(packet);
    // However it hangs up: it has dealt with the request by then.
    while let Ok(Some(_)) = socket.recv().await {}
    Ok(())
}
