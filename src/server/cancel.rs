//! Cancel requests to a server, each on a connection of its own (protocol section "Canceling
//! Requests in Progress").

use super::dial::Target;
use crate::net::{Net, Socket};
use crate::wire::cancel_request;
use std::io;

/// Sends the request and waits until the server has dealt with it, which it shows by hanging up;
/// the caller sets the deadline.
///
/// # Errors
/// If the connection fails.
pub async fn send_cancel(net: Net, target: &Target, key: &[u8]) -> io::Result<()> {
    let socket = Socket::connect(net, &target.endpoint, &target.tcp).await?;
    let mut packet = Vec::new();
    cancel_request(&mut packet, key);
    socket.send(packet);
    while socket.recv().await?.is_some() {}
    Ok(())
}
