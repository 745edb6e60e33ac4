//! Listening and dialling: addresses, socket options, accepting.

use super::reactor::{Net, Reactor, State, set_waker};
use super::ring::Op;
use super::socket::Detached;
use io_uring::types::Fd;
use io_uring::{cqueue, opcode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{SocketFlags, accept_with};
use socket2::{Domain, Protocol, SockAddr, SockFilter, SockRef, Socket as Raw, TcpKeepalive, Type};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// Connections that may wait to be looked at, besides what the kernel accepts until it hears that there are enough.
const ACCEPTED_MAX: usize = 64;

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// Over TCP.
    Tcp(SocketAddr),
    /// A Unix socket; the path is empty for an unnamed end.
    Unix(PathBuf),
    /// The process at the other end of a Unix socket of ours.
    Process {
        /// Its number when it connected; 0 if it is not of this machine's view.
        pid: u32,
        /// The number in the name of our end.
        port: u16,
    },
}

impl Endpoint {
    pub(super) fn peer_of(fd: BorrowedFd<'_>) -> Endpoint {
        match Endpoint::of(fd, SockRef::from(&fd).peer_addr()) {
            Endpoint::Unix(_) => Endpoint::Process {
                pid: socket_peercred(fd)
                    .map_or(0, |peer| peer.pid.as_raw_nonzero().get().unsigned_abs()),
                port: Endpoint::local_of(fd).port(),
            },
            tcp => tcp,
        }
    }

    pub(super) fn local_of(fd: BorrowedFd<'_>) -> Endpoint {
        Endpoint::of(fd, SockRef::from(&fd).local_addr())
    }

    /// A peer that has reset its connection has no address any more; it must not pass for one of this machine.
    fn of(fd: BorrowedFd<'_>, address: io::Result<SockAddr>) -> Endpoint {
        let Ok(address) = address else {
            let is_unix = SockRef::from(&fd)
                .domain()
                .is_ok_and(|it| it == Domain::UNIX);
            return match is_unix {
                true => Endpoint::Unix(PathBuf::new()),
                false => Endpoint::Tcp(SocketAddr::from(([0; 4], 0))),
            };
        };
        match address.as_socket() {
            Some(tcp) => Endpoint::Tcp(tcp),
            None => Endpoint::Unix(unix_path(&address)),
        }
    }

    /// Whether this is a Unix socket.
    pub fn is_unix(&self) -> bool {
        matches!(self, Endpoint::Unix(_) | Endpoint::Process { .. })
    }

    /// The address for SHOW and logs, as PgBouncer prints it: `unix` for Unix sockets.
    pub fn address(&self) -> String {
        match self {
            Endpoint::Tcp(tcp) => tcp.ip().to_canonical().to_string(),
            Endpoint::Unix(_) | Endpoint::Process { .. } => "unix".to_owned(),
        }
    }

    /// The TCP port, or the number at the end of a Unix socket's name; 0 for an unnamed end.
    pub fn port(&self) -> u16 {
        match self {
            Endpoint::Tcp(tcp) => tcp.port(),
            Endpoint::Unix(path) => {
                let number = path.extension().and_then(OsStr::to_str);
                number.and_then(|number| number.parse().ok()).unwrap_or(0)
            }
            Endpoint::Process { port, .. } => *port,
        }
    }
}

/// As PgBouncer's log names it: `1.2.3.4:5432`, `unix:5432` for a socket, `unix(4321):6432` for a process.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(tcp) => tcp.fmt(f),
            Endpoint::Unix(_) => write!(f, "unix:{}", self.port()),
            Endpoint::Process { pid, port } => write!(f, "unix({pid}):{port}"),
        }
    }
}

/// Options of TCP connections; zero means the operating system's default.
#[derive(Clone, Debug, Default)]
pub struct TcpOptions {
    /// Whether to send keep-alive probes.
    pub keepalive: bool,
    /// Idle time before the first probe.
    pub keepidle: Duration,
    /// Time between probes.
    pub keepintvl: Duration,
    /// Probes before giving up.
    pub keepcnt: u32,
    /// TCP_USER_TIMEOUT: how long sent data may stay unacknowledged.
    pub user_timeout: Duration,
    /// Size of the kernel's buffers of a socket, each way; 0 is its default.
    pub buffer_bytes: usize,
    /// Of a listening socket: a connection is accepted only once its client has said something.
    pub defer_accept: bool,
}

impl TcpOptions {
    fn apply(&self, socket: &Raw) -> io::Result<()> {
        socket.set_tcp_nodelay(true)?;
        if self.buffer_bytes > 0 {
            socket.set_send_buffer_size(self.buffer_bytes)?;
            socket.set_recv_buffer_size(self.buffer_bytes)?;
        }
        if !self.user_timeout.is_zero() {
            socket.set_tcp_user_timeout(Some(self.user_timeout))?;
        }
        if !self.keepalive {
            return socket.set_keepalive(false);
        }
        let mut keepalive = TcpKeepalive::new();
        if !self.keepidle.is_zero() {
            keepalive = keepalive.with_time(self.keepidle);
        }
        if !self.keepintvl.is_zero() {
            keepalive = keepalive.with_interval(self.keepintvl);
        }
        if self.keepcnt > 0 {
            keepalive = keepalive.with_retries(self.keepcnt);
        }
        socket.set_tcp_keepalive(&keepalive)
    }
}

/// A listening TCP socket with SO_REUSEPORT. Accepted sockets inherit its options. Port 0 takes
/// any free port.
///
/// # Errors
/// What the kernel says, EADDRINUSE first among it.
pub fn listen_tcp(address: SocketAddr, backlog: u32, options: &TcpOptions) -> io::Result<OwnedFd> {
    let socket = unbound_tcp(address)?;
    socket.set_reuse_port(true)?;
    options.apply(&socket)?;
    if options.defer_accept {
        set_defer_accept(&socket, 1)?;
    }
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// A socket bound to `address` that does not listen: proof that nobody listens there, for without
/// SO_REUSEPORT it cannot share the port with a listener. While it is held, [`listen_tcp`] works
/// on the same address, and the kernel gives the port to nobody who asks for any free one. Port 0
/// takes a free port.
///
/// # Errors
/// What the kernel says, EADDRINUSE first among it.
pub fn probe_tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = unbound_tcp(address)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Seconds for which a connection without data is held back; 0 is not at all (tcp(7), TCP_DEFER_ACCEPT).
fn set_defer_accept(socket: &Raw, seconds: libc::c_int) -> io::Result<()> {
    let (value, length) = (&raw const seconds, size_of_val(&seconds));
    // SAFETY: the descriptor is open, and the option's value is a c_int that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            value.cast(),
            length as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Takes a socket that somebody else has made; gives where it listens.
///
/// # Errors
/// If it does not listen, or what the kernel says of the options.
pub fn adopt_listener(socket: &OwnedFd, options: &TcpOptions) -> io::Result<Endpoint> {
    let known = SockRef::from(socket);
    if !known.is_listener()? || known.r#type()? != Type::STREAM {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is no listening stream socket",
        ));
    }
    let endpoint = Endpoint::local_of(socket.as_fd());
    if !endpoint.is_unix() {
        options.apply(&known)?;
    }
    Ok(endpoint)
}

/// Gives a TCP socket that is listened at other options: whoever connects from now on inherits them.
///
/// # Errors
/// What the kernel says of the options.
pub fn tune_listener(socket: &OwnedFd, options: &TcpOptions) -> io::Result<()> {
    options.apply(&SockRef::from(socket))
}

/// The address of a Unix socket; `@` begins an abstract name (unix(7)).
fn unix_address(path: &Path) -> io::Result<SockAddr> {
    match path.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => SockAddr::unix(OsStr::from_bytes(&[b"\0", name].concat())),
        None => SockAddr::unix(path),
    }
}

/// The reverse of [`unix_address`]; empty for an unnamed socket.
fn unix_path(address: &SockAddr) -> PathBuf {
    match address.as_abstract_namespace() {
        Some(name) => OsStr::from_bytes(&[b"@", name].concat()).into(),
        None => address
            .as_pathname()
            .map(Path::to_owned)
            .unwrap_or_default(),
    }
}

/// IPv6 sockets leave IPv4 alone, so that both wildcards fit on one port.
fn unbound_tcp(address: SocketAddr) -> io::Result<Raw> {
    let socket = Raw::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// A listening Unix socket at `path`, which must not exist; `@` begins an abstract name.
///
/// # Errors
/// What the kernel says.
pub fn listen_unix(path: &Path, backlog: u32) -> io::Result<OwnedFd> {
    let socket = Raw::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&unix_address(path)?)?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// An unconnected socket and the address to connect it to.
pub(super) fn dialing(
    endpoint: &Endpoint,
    options: &TcpOptions,
) -> io::Result<(OwnedFd, SockAddr)> {
    match endpoint {
        Endpoint::Tcp(tcp) => {
            let socket = Raw::new(Domain::for_address(*tcp), Type::STREAM, Some(Protocol::TCP))?;
            options.apply(&socket)?;
            Ok((socket.into(), (*tcp).into()))
        }
        Endpoint::Unix(path) => {
            let socket = Raw::new(Domain::UNIX, Type::STREAM, None)?;
            Ok((socket.into(), unix_address(path)?))
        }
        Endpoint::Process { .. } => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}

/// A listening socket on the shard's ring.
pub struct Listener {
    net: Net,
    index: u32,
    fd: Arc<OwnedFd>,
}

impl Listener {
    /// Begins to accept on `fd`.
    pub fn new(net: Net, fd: Arc<OwnedFd>) -> Listener {
        Listener {
            net,
            index: net.0.add_listener(fd.as_raw_fd()),
            fd,
        }
    }

    /// The next connection.
    ///
    /// # Errors
    /// Why accepting failed, EMFILE for instance: the caller waits a little and asks again.
    pub async fn accept(&self) -> io::Result<Detached> {
        poll_fn(|cx| {
            self.net
                .0
                .with_listener(self.index, |listener| match listener.accepted.pop_front() {
                    Some(accepted) => Poll::Ready(accepted.map(Detached::new)),
                    None => {
                        set_waker(&mut listener.waker, cx);
                        Poll::Pending
                    }
                })
        })
        .await
    }
}

impl Listener {
    /// From now on the kernel drops what asks for a new connection over TCP; who asks again finds another listener (TCP
    /// repeats a SYN after a second). Those whose handshake has begun get through it, and are accepted as before: closing would reset
    /// them.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn turn_away(&self) -> io::Result<()> {
        // The TCP header begins the packet (socket(7), SO_ATTACH_FILTER; RFC 9293, 3.1): its flags, of which SYN
        // without ACK begins a handshake.
        let step = |code: u32, jf, k| SockFilter::new(code as u16, 0, jf, k);
        let filter = [
            step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, TCP_FLAGS_AT),
            step(libc::BPF_ALU | libc::BPF_AND, 0, TCP_SYN | TCP_ACK),
            step(libc::BPF_JMP | libc::BPF_JEQ, 1, TCP_SYN),
            step(libc::BPF_RET, 0, 0),
            step(libc::BPF_RET, 0, u32::MAX),
        ];
        SockRef::from(&*self.fd).attach_filter(&filter)
    }

    /// Stops accepting and gives the connections that have come by then: all that the kernel has completed, so that
    /// closing resets none of them.
    pub async fn drain(&self) -> Vec<Detached> {
        self.net.0.stop_listener(self.index);
        let stopped = poll_fn(|cx| {
            self.net.0.with_listener(self.index, |listener| {
                if listener.armed {
                    set_waker(&mut listener.waker, cx);
                    return Poll::Pending;
                }
                let taken = listener.accepted.drain(..).filter_map(Result::ok);
                Poll::Ready(taken.collect::<Vec<_>>())
            })
        });
        let mut taken = stopped.await;
        if SockRef::from(&*self.fd).set_nonblocking(true).is_ok() {
            while let Ok(fd) = accept_with(&self.fd, SocketFlags::CLOEXEC) {
                taken.push(fd);
            }
        }
        taken.into_iter().map(Detached::new).collect()
    }
}

/// Where a TCP header has its flags, and two of them.
const TCP_FLAGS_AT: u32 = 13;
const TCP_SYN: u32 = 0x02;
const TCP_ACK: u32 = 0x10;

/// How long [`take_waiting`] may wait for a connection that somebody else has taken meanwhile.
const TAKE_MAX: Duration = Duration::from_millis(1);

/// Lets others than its owner take connections from a listening socket ([`take_waiting`]). Its owner, which accepts by
/// ring, never waits in `accept` itself; the socket must go on blocking for it, as the ring gives EAGAIN otherwise.
///
/// # Errors
/// Those of setsockopt(2).
pub fn share_listener(listener: &OwnedFd) -> io::Result<()> {
    SockRef::from(listener).set_read_timeout(Some(TAKE_MAX))
}

/// A connection that waits at a shared listening socket whose owner does not look, if there is one. Should somebody else
/// be faster just now, this takes some milliseconds.
pub fn take_waiting(listener: &OwnedFd) -> Option<Detached> {
    let mut asked = [PollFd::new(listener, PollFlags::IN)];
    let is_there = poll(&mut asked, Some(&Timespec::default())).is_ok_and(|ready| ready > 0);
    if !is_there {
        return None;
    }
    let accepted = accept_with(listener, SocketFlags::CLOEXEC);
    accepted.ok().map(Detached::new)
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.net.0.close_listener(self.index);
    }
}

/// What the reactor has of a listener.
pub(super) struct Accepting {
    pub(super) fd: RawFd,
    pub(super) accepted: VecDeque<io::Result<OwnedFd>>,
    pub(super) waker: Option<Waker>,
    pub(super) armed: bool,
    /// No more is wanted, but what has come is.
    pub(super) stopping: bool,
    /// No more is wanted until what has come is taken.
    pub(super) pausing: bool,
    pub(super) closed: bool,
}

impl Reactor {
    pub(super) fn add_listener(&self, fd: RawFd) -> u32 {
        let mut state = self.state.borrow_mut();
        let index = state.listeners.insert(Accepting {
            fd,
            accepted: VecDeque::new(),
            waker: None,
            armed: false,
            stopping: false,
            pausing: false,
            closed: false,
        }) as u32;
        self.arm_accept(&mut state.listeners[index as usize], index);
        index
    }

    fn arm_accept(&self, listener: &mut Accepting, index: u32) {
        if !listener.closed && !listener.stopping && !listener.armed {
            listener.armed = true;
            let entry = opcode::AcceptMulti::new(Fd(listener.fd)).flags(libc::SOCK_CLOEXEC);
            self.ring
                .push(entry.build().user_data(Op::Accept.tag(index)));
        }
    }

    pub(super) fn accepted(&self, state: &mut State, index: u32, completion: &cqueue::Entry) {
        let listener = &mut state.listeners[index as usize];
        let accepted = match completion.result() {
            // SAFETY: a non-negative result is a fresh descriptor that nobody else owns.
            fd @ 0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        };
        if listener.closed {
            // It came while the accept was being cancelled: nobody will serve it, so it hangs up.
            return;
        }
        let failed = accepted.is_err();
        // Stopping and pausing end in an error, which is none.
        if !failed || !listener.stopping && !listener.pausing {
            listener.accepted.push_back(accepted);
        }
        let waiting = listener.accepted.len();
        if !cqueue::more(completion.flags()) {
            listener.armed = false;
            // After an error (no descriptors left) the reader arms it again when it has waited, and after a pause when
            // it has taken all.
            if listener.pausing && waiting == 0 || !failed && waiting < ACCEPTED_MAX {
                self.arm_accept(listener, index);
            }
            listener.pausing = false;
        } else if waiting >= ACCEPTED_MAX && !listener.pausing {
            listener.pausing = true;
            self.cancel_accept(index);
        }
        if let Some(waker) = &listener.waker {
            waker.wake_by_ref();
        }
    }

    /// Runs `step` on a listener's queue; arms it again if it had stopped and is empty.
    pub(super) fn with_listener<T>(&self, index: u32, step: impl FnOnce(&mut Accepting) -> T) -> T {
        let mut state = self.state.borrow_mut();
        let listener = &mut state.listeners[index as usize];
        let result = step(listener);
        if listener.accepted.is_empty() {
            self.arm_accept(listener, index);
        }
        result
    }

    pub(super) fn stop_listener(&self, index: u32) {
        self.state.borrow_mut().listeners[index as usize].stopping = true;
        self.cancel_accept(index);
    }

    pub(super) fn close_listener(&self, index: u32) {
        let mut state = self.state.borrow_mut();
        let listener = &mut state.listeners[index as usize];
        listener.closed = true;
        listener.accepted.clear();
        drop(state);
        self.cancel_accept(index);
    }

    fn cancel_accept(&self, index: u32) {
        let entry = opcode::AsyncCancel::new(Op::Accept.tag(index)).build();
        self.ring.push(entry.user_data(Op::Ignore.tag(index)));
    }
}

/// Whether a connection failed because nobody listens there, or not any more.
pub fn is_deserted(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), ConnectionRefused | NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::on_ring;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::thread;

    /// Without an address it would pass for a Unix peer, to whom HBA's rules for `local` apply.
    #[test]
    fn tcp_peer_that_has_reset_its_connection_is_no_local_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        SockRef::from(&peer)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(peer);
        let (mut socket, _) = listener.accept().unwrap();
        let error = socket.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(SockRef::from(&socket).peer_addr().is_err());
        let peer = Endpoint::peer_of(socket.as_fd());
        assert!(matches!(peer, Endpoint::Tcp(_)), "{peer:?}");
    }

    #[test]
    fn unix_peer_that_has_gone_is_a_local_one() {
        let (socket, peer) = UnixStream::pair().unwrap();
        drop(peer);
        let peer = Endpoint::peer_of(socket.as_fd());
        assert!(matches!(peer, Endpoint::Process { .. }), "{peer:?}");
    }

    /// Two listeners at one address, as while one process takes over from another.
    #[test]
    fn who_comes_while_a_listener_closes_reaches_the_next_one() {
        const PATIENCE: Timespec = Timespec {
            tv_sec: 5,
            tv_nsec: 0,
        };
        on_ring(|net| async move {
            let options = TcpOptions::default();
            let listen = |address| listen_tcp(address, 16, &options).unwrap();
            let old = Arc::new(listen(SocketAddr::from(([127, 0, 0, 1], 0))));
            let Endpoint::Tcp(address) = Endpoint::local_of(old.as_fd()) else {
                unreachable!("it is TCP");
            };
            let old = Listener::new(net, old);
            let _early = TcpStream::connect(address).unwrap();
            old.turn_away().unwrap();
            let late = unbound_tcp(address).unwrap();
            late.set_nonblocking(true).unwrap();
            assert!(late.connect(&address.into()).is_err(), "it takes its time");
            let is_through = |patience: Timespec| {
                let mut asked = [PollFd::new(&late, PollFlags::OUT)];
                poll(&mut asked, Some(&patience)).unwrap() > 0
            };
            assert!(!is_through(Timespec::default()));
            let new = Listener::new(net, Arc::new(listen(address)));
            assert_eq!(old.drain().await.len(), 1, "who was through before");
            drop(old);
            assert!(is_through(PATIENCE));
            assert!(late.take_error().unwrap().is_none());
            new.accept().await.unwrap();
        });
    }

    #[test]
    fn crowd_is_accepted_a_part_at_a_time() {
        const CROWD: usize = 300;
        const BACKLOG: usize = 16;
        on_ring(|net| async move {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("socket");
            let listener =
                Listener::new(net, Arc::new(listen_unix(&path, BACKLOG as u32).unwrap()));
            // Who does not fit into the backlog waits in connect().
            let crowd = thread::spawn(move || {
                let come = |_| UnixStream::connect(&path).unwrap();
                (0..CROWD).map(come).collect::<Vec<_>>()
            });
            let index = listener.index;
            let waiting = || {
                net.0
                    .with_listener(index, |listener| listener.accepted.len())
            };
            let is_paused = || net.0.with_listener(index, |listener| !listener.armed);
            while !is_paused() {
                net.sleep(Duration::from_millis(1)).await;
            }
            assert!(
                (ACCEPTED_MAX..ACCEPTED_MAX + 4 * BACKLOG).contains(&waiting()),
                "{} were accepted",
                waiting()
            );
            for _ in 0..CROWD {
                listener.accept().await.unwrap();
            }
            assert_eq!(crowd.join().unwrap().len(), CROWD);
        });
    }
}
