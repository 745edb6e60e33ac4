//! The sockets of another process, as the kernel has them.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::Socket;

/// The TCP sockets of a process. They are the process's own, so they are to be dropped soon.
pub fn tcp_sockets(pid: u32) -> Vec<Socket> {
    let process = pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let is_socket = |entry: &fs::DirEntry| {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        target.to_string_lossy().starts_with("socket:")
    };
    let numbers = descriptors
        .flatten()
        .filter(is_socket)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
    // One that is gone by now is none of its any more.
    let own = |fd| -> Option<OwnedFd> { pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok() };
    let sockets = numbers.filter_map(own).map(Socket::from);
    sockets
        .filter(|socket| address(socket.local_addr()).is_some())
        .collect()
}

/// Those with a listener's queue.
pub fn listeners(pid: u32) -> Vec<Socket> {
    let sockets = tcp_sockets(pid).into_iter();
    sockets
        .filter(|socket| socket.is_listener().unwrap())
        .collect()
}

/// The one whose other end is `peer`.
#[track_caller]
pub fn connection(pid: u32, peer: SocketAddr) -> Socket {
    let mut sockets = tcp_sockets(pid).into_iter();
    let found = sockets.find(|socket| address(socket.peer_addr()) == Some(peer));
    found.unwrap_or_else(|| panic!("it has no connection with {peer}"))
}

fn address(found: io::Result<socket2::SockAddr>) -> Option<SocketAddr> {
    found.ok()?.as_socket()
}

/// Options of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub nodelay: bool,
    pub keepalive: bool,
    pub idle: Duration,
    pub interval: Duration,
    pub count: u32,
    /// None is the kernel's own.
    pub user_timeout: Option<Duration>,
    /// Bytes, twice of what was asked for (socket(7)).
    pub buffers: [usize; 2],
}

impl Options {
    pub fn of(socket: &Socket) -> Options {
        Options {
            nodelay: socket.tcp_nodelay().unwrap(),
            keepalive: socket.keepalive().unwrap(),
            idle: socket.tcp_keepalive_time().unwrap(),
            interval: socket.tcp_keepalive_interval().unwrap(),
            count: socket.tcp_keepalive_retries().unwrap(),
            user_timeout: socket.tcp_user_timeout().unwrap(),
            buffers: [
                socket.send_buffer_size().unwrap(),
                socket.recv_buffer_size().unwrap(),
            ],
        }
    }
}

/// How many connections may wait at a listener: what `ss -lt` shows as Send-Q.
pub fn backlog(listener: &Socket) -> u32 {
    let info = option::<libc::tcp_info>(listener, libc::TCP_INFO);
    info.tcpi_sacked
}

/// For how many seconds connections without data are held back.
pub fn deferral(listener: &Socket) -> i32 {
    option::<libc::c_int>(listener, libc::TCP_DEFER_ACCEPT)
}

#[allow(unsafe_code)]
fn option<T>(socket: &Socket, name: libc::c_int) -> T {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes; all zeroes are a value of both types that are asked for.
    unsafe {
        let result = libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        );
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        value.assume_init()
    }
}
