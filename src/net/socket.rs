//! A socket on the shard's ring.

use super::buffer::{Chunk, Data};
use super::listen::Endpoint;
use super::reactor::{Freed, Net, TxData, error_of};
use super::secure::Secure;
use super::tls::{Acceptor, Connector, HandshakeError, Peer, Session};
use rustls::pki_types::ServerName;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll};

/// What can be queued for sending.
pub enum Payload {
    /// Received bytes, relayed without a copy.
    Chunk(Chunk),
    /// Bytes on the heap; see [`Net::spare`].
    Owned(Vec<u8>),
    /// Constant bytes.
    Static(&'static [u8]),
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Payload {
        Payload::Owned(bytes)
    }
}

impl From<Chunk> for Payload {
    fn from(chunk: Chunk) -> Payload {
        Payload::Chunk(chunk)
    }
}

impl From<&'static [u8]> for Payload {
    fn from(bytes: &'static [u8]) -> Payload {
        Payload::Static(bytes)
    }
}

/// A connected socket that receives by itself. Dropping it stops receiving, lets queued sends
/// finish (for at most the close timeout), then closes.
pub struct Socket {
    net: Net,
    index: u32,
}

/// A socket off the ring: it may go to another shard, and its TLS with it.
#[derive(Debug)]
pub struct Detached {
    pub(super) fd: OwnedFd,
    pub(super) tls: Option<Box<Secure>>,
    /// We have dialled.
    pub(super) dialled: bool,
}

impl Detached {
    /// An accepted socket that no ring knows yet.
    pub fn new(fd: OwnedFd) -> Detached {
        Detached {
            fd,
            tls: None,
            dialled: false,
        }
    }

    /// Where the peer is.
    pub fn peer(&self) -> Endpoint {
        Endpoint::peer_of(self.fd.as_fd())
    }

    /// Our end.
    pub fn local(&self) -> Endpoint {
        Endpoint::local_of(self.fd.as_fd())
    }

    /// As [`Socket::peer_uid`].
    pub fn peer_uid(&self) -> Option<u32> {
        uid_beyond(self.fd.as_fd())
    }
}

fn uid_beyond(fd: BorrowedFd<'_>) -> Option<u32> {
    Endpoint::local_of(fd).is_unix().then_some(())?;
    let peer = rustix::net::sockopt::socket_peercred(fd).ok()?;
    Some(peer.uid.as_raw())
}

impl Socket {
    /// Puts a socket on this shard's ring and begins to receive.
    pub fn attach(net: Net, socket: Detached) -> Socket {
        Socket {
            net,
            index: net.0.insert(socket.fd, socket.tls, socket.dialled, true),
        }
    }

    /// Connects to `endpoint`. Dropping the future abandons the attempt.
    ///
    /// # Errors
    /// What the kernel says to the socket, its options or the connection.
    pub async fn connect(
        net: Net,
        endpoint: &Endpoint,
        options: &super::TcpOptions,
    ) -> io::Result<Socket> {
        let (fd, address) = super::listen::dialing(endpoint, options)?;
        let socket = Socket {
            net,
            index: net.0.insert(fd, None, true, false),
        };
        net.0.start_connect(socket.index, address);
        poll_fn(|cx| {
            net.0.set_slot_waker(socket.index, cx);
            match net.0.connect_result(socket.index) {
                None => Poll::Pending,
                Some(result) => Poll::Ready(result.map_err(error_of)),
            }
        })
        .await?;
        socket.pause(false);
        Ok(socket)
    }

    /// Performs the server's side of a TLS handshake; `ahead` has been received already. From then on
    /// everything read and sent is plaintext.
    ///
    /// # Errors
    /// [`HandshakeError`]; the other side has been told by an alert, and the socket is of no more use.
    pub async fn accept_tls(
        &self,
        acceptor: &Acceptor,
        ahead: Vec<u8>,
    ) -> Result<(), HandshakeError> {
        let session = Session::accept(acceptor).map_err(HandshakeError::Refused)?;
        self.net.0.begin_tls(self.index, session, ahead);
        self.shake_hands().await
    }

    /// Performs the client's side of a TLS handshake with the server that was dialled as `host`.
    ///
    /// # Errors
    /// As [`Socket::accept_tls`].
    pub async fn start_tls(&self, connector: &Connector, host: &str) -> Result<(), HandshakeError> {
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| HandshakeError::Name(host.to_owned()))?;
        let session = Session::dial(connector, name).map_err(HandshakeError::Refused)?;
        self.net.0.begin_tls(self.index, session, Vec::new());
        let reactor = self.net.0;
        let begin = || reactor.open_handshake(self.index);
        self.net.in_turn(begin).await?;
        self.shake_hands().await
    }

    async fn shake_hands(&self) -> Result<(), HandshakeError> {
        let reactor = self.net.0;
        loop {
            poll_fn(|cx| {
                if reactor.has_news(self.index) {
                    return Poll::Ready(());
                }
                self.watch(cx);
                Poll::Pending
            })
            .await;
            let step = || reactor.continue_handshake(self.index);
            if self.net.in_turn(step).await? {
                return Ok(());
            }
        }
    }

    /// What is known about the other side; none without TLS.
    pub fn tls_peer(&self) -> Option<Peer> {
        self.net.0.tls_peer(self.index)
    }

    /// Makes `cx`'s task the one that this socket's events wake. The polls below do it too; a
    /// pooled connection that changes hands needs it.
    pub fn watch(&self, cx: &Context<'_>) {
        self.net.0.set_slot_waker(self.index, cx);
    }

    /// Forgets the watching task.
    pub fn unwatch(&self) {
        self.net.0.clear_waker(self.index);
    }

    /// The next received bytes; `None` at the end of the stream.
    ///
    /// # Errors
    /// Why receiving, or an earlier send, failed.
    pub fn poll_recv(&self, cx: &Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        match self.net.0.take_received(self.index) {
            Some(Ok(data)) => Poll::Ready(Ok(Some(self.chunk(data)))),
            Some(Err(0)) => Poll::Ready(Ok(None)),
            Some(Err(errno)) => Poll::Ready(Err(error_of(errno))),
            None => {
                self.watch(cx);
                Poll::Pending
            }
        }
    }

    /// As [`Socket::poll_recv`].
    ///
    /// # Errors
    /// As [`Socket::poll_recv`].
    pub async fn recv(&self) -> io::Result<Option<Chunk>> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Queues a payload; never waits. A failure shows at the next receive or [`Socket::flush`].
    pub fn send(&self, payload: impl Into<Payload>) {
        let data = match payload.into() {
            Payload::Chunk(mut chunk) => TxData::Chunk(chunk.take()),
            Payload::Owned(bytes) => TxData::Owned(bytes),
            Payload::Static(bytes) => TxData::Static(bytes),
        };
        self.net.0.queue_send(self.index, data);
    }

    /// Ready once the send queue is short enough to take more.
    ///
    /// # Errors
    /// Why sending failed.
    pub fn poll_writable(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.poll_queued(cx, self.net.0.queued_max())
    }

    /// Waits until everything queued has been sent.
    ///
    /// # Errors
    /// Why sending failed.
    pub async fn flush(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_queued(cx, 0)).await
    }

    /// Ready once everything queued has been sent.
    ///
    /// # Errors
    /// Why sending failed.
    pub fn poll_flushed(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.poll_queued(cx, 0)
    }

    fn poll_queued(&self, cx: &Context<'_>, queued: usize) -> Poll<io::Result<()>> {
        match self.net.0.writable(self.index, queued) {
            Err(errno) => Poll::Ready(Err(error_of(errno))),
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => {
                self.watch(cx);
                Poll::Pending
            }
        }
    }

    /// Stops receiving (`true`) or goes on with it.
    pub fn pause(&self, paused: bool) {
        self.net.0.pause(self.index, paused);
    }

    /// Whether nothing has arrived and nothing has ended or failed.
    pub fn is_quiet(&self) -> bool {
        self.net.0.is_quiet(self.index)
    }

    /// Takes the socket off the ring, once no operation refers to it.
    ///
    /// # Errors
    /// Gives the socket back, still on the ring and receiving, if bytes arrived or it ended meanwhile.
    pub async fn detach(self) -> Result<Detached, Socket> {
        self.pause(true);
        if !self.net.0.is_detachable(self.index) {
            // The receive ends now and not with the turn, which would take half of a server's way to another shard.
            self.net.0.settle();
        }
        poll_fn(|cx| {
            if !self.is_quiet() || self.net.0.is_detachable(self.index) {
                return Poll::Ready(());
            }
            self.watch(cx);
            // Asks for a wake-up by the sends still in flight; the receive's end wakes by itself.
            let _ = self.poll_queued(cx, 0);
            Poll::Pending
        })
        .await;
        if !self.is_quiet() {
            self.pause(false);
            return Err(self);
        }
        let detached = self.net.0.extract(self.index);
        std::mem::forget(self);
        Ok(detached)
    }

    /// As [`Socket::detach`], but gives what has arrived meanwhile as well, as plaintext. Does not wait for the peer.
    ///
    /// # Errors
    /// Gives the socket back, still on the ring and receiving, if it has ended or failed, or something is left to send.
    pub async fn unload(self) -> (Result<Detached, Socket>, Vec<u8>) {
        self.pause(true);
        let mut unread = Vec::new();
        let is_off = poll_fn(|cx| {
            // Reading may make TLS say something of its own, which a peer that reads nothing would hold up for ever.
            while let Some(Ok(data)) = self.net.0.take_received(self.index) {
                unread.extend_from_slice(&self.chunk(data));
            }
            if self.is_ending() || self.poll_queued(cx, 0).is_pending() {
                return Poll::Ready(false);
            }
            if self.net.0.is_detachable(self.index) {
                return Poll::Ready(true);
            }
            self.watch(cx);
            Poll::Pending
        });
        if !is_off.await {
            self.pause(false);
            return (Err(self), unread);
        }
        let detached = self.net.0.extract(self.index);
        std::mem::forget(self);
        (Ok(detached), unread)
    }

    /// Says no more than what is queued, with `abort` not even that, and waits until the peer has
    /// hung up, too. What it still says is dropped. The caller sets the deadline.
    pub async fn hang_up(&self, abort: bool) {
        if !abort {
            self.net.0.finish_tls(self.index);
        }
        if abort || self.flush().await.is_ok() {
            self.net.0.say_no_more(self.index);
        }
        poll_fn(|cx| {
            self.watch(cx);
            if self.net.0.has_hung_up(self.index) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Closes the socket, whatever is still queued, and waits until its descriptor is closed.
    pub async fn close(self) {
        let freed = Rc::<Freed>::default();
        self.net.0.announce_freed(self.index, freed.clone());
        drop(self);
        poll_fn(|cx| freed.poll(cx)).await;
    }

    /// Our end of the connection.
    pub fn local(&self) -> Endpoint {
        Endpoint::local_of(self.net.0.slot_fd(self.index))
    }

    /// The user id of the process at the other end, when it connected; `None` unless this is a Unix
    /// socket.
    pub fn peer_uid(&self) -> Option<u32> {
        uid_beyond(self.net.0.slot_fd(self.index))
    }

    /// Whether the peer has hung up, or the connection failed, with nothing left to read.
    pub fn has_ended(&self) -> bool {
        self.net.0.has_ended(self.index)
    }

    /// Whether nothing more is read as there was no memory for it (`memory_max`).
    pub fn is_out_of_memory(&self) -> bool {
        self.net.0.is_out_of_memory(self.index)
    }

    /// Whether the peer has hung up, or the connection failed; something may be left to read.
    pub fn is_ending(&self) -> bool {
        self.net.0.is_ending(self.index)
    }

    fn chunk(&self, data: Data) -> Chunk {
        Chunk {
            net: self.net,
            data,
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.net.0.release(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Clock;
    use crate::net::testing::{on_ring, tls_setup};
    use futures_lite::future::{poll_once, yield_now};
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn pair(net: Net) -> (UnixStream, Socket) {
        let (peer, ours) = UnixStream::pair().unwrap();
        (peer, Socket::attach(net, Detached::new(ours.into())))
    }

    /// The other side has a ring of its own, so that nothing else happens on this one: what is sent at once must not leave
    /// asleep who waits for that.
    #[test]
    fn flush_over_tls_ends_on_a_ring_where_nothing_else_happens() {
        const PATIENCE: Duration = Duration::from_secs(20);
        let setup = tls_setup();
        let (acceptor, connector) = (setup.clients.unwrap(), setup.servers.unwrap());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let other = std::thread::spawn(move || {
            on_ring(move |net| async move {
                let socket = Socket::attach(net, Detached::new(theirs.into()));
                socket.start_tls(&connector, "localhost").await.unwrap();
                while let Ok(Some(_)) = socket.recv().await {}
            });
        });
        on_ring(move |net| async move {
            let socket = Socket::attach(net, Detached::new(ours.into()));
            socket.accept_tls(&acceptor, Vec::new()).await.unwrap();
            let begun = Clock::now();
            for _ in 0..3 {
                socket.send(b"x".to_vec());
                let flushed = net.until(begun.after(PATIENCE), socket.flush());
                flushed.await.unwrap().unwrap();
            }
            assert!(Clock::now().since(begun) < PATIENCE / 2);
        });
        other.join().unwrap();
    }

    #[test]
    fn quiet_socket_is_detached_without_a_turn_of_the_ring() {
        on_ring(|net| async move {
            let (_peer, socket) = pair(net);
            let detached = poll_once(socket.detach()).await;
            assert!(matches!(detached, Some(Ok(_))));
        });
    }

    #[test]
    fn socket_that_could_not_be_detached_goes_on_receiving() {
        on_ring(|net| async move {
            let (mut peer, socket) = pair(net);
            peer.write_all(b"x").unwrap();
            while socket.is_quiet() {
                yield_now().await;
            }
            let Err(socket) = socket.detach().await else {
                panic!("detached with a byte unread");
            };
            // Nor does it matter that the end of a receive comes after the wish to go on.
            socket.pause(true);
            socket.pause(false);
            while !net.0.is_detachable(socket.index) {
                yield_now().await;
            }
            drop(peer);
            let deadline = Clock::now().after(Duration::from_secs(20));
            net.until(deadline, socket.hang_up(false)).await.unwrap();
        });
    }
}
