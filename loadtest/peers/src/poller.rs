//! epoll, edge-triggered: a socket is read, and its output written, until the kernel says no.

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 1024;

/// An epoll instance and the events of its last wait.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poller {
    /// A poller without sockets.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Poller> {
        Ok(Poller {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS_MAX),
        })
    }

    /// Watches a socket for everything; `key` comes back with its events. Closing the socket ends it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add(&self, socket: impl AsFd, key: usize) -> io::Result<()> {
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        Ok(epoll::add(
            &self.epoll,
            socket,
            epoll::EventData::new_u64(key as u64),
            flags,
        )?)
    }

    /// Waits for at most `nanos` (`None`: for ever); gives the keys of the sockets with something to do.
    ///
    /// # Errors
    /// What the kernel says, except that a signal came.
    pub fn wait(&mut self, nanos: Option<u64>) -> io::Result<impl Iterator<Item = usize> + use<>> {
        let timeout = nanos.map(|nanos| Timespec {
            tv_sec: (nanos / 1_000_000_000) as i64,
            tv_nsec: (nanos % 1_000_000_000) as i64,
        });
        self.events.clear();
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let keys: Vec<usize> = self
            .events
            .iter()
            .map(|event| event.data.u64() as usize)
            .collect();
        Ok(keys.into_iter())
    }
}

/// Reads what is there and appends it to `input`. False if the peer has hung up.
///
/// # Errors
/// Why the connection broke.
pub fn read_all(
    socket: &mut impl io::Read,
    scratch: &mut [u8],
    input: &mut Vec<u8>,
) -> io::Result<bool> {
    loop {
        match socket.read(scratch) {
            Ok(0) => return Ok(false),
            Ok(count) => input.extend_from_slice(&scratch[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes as much of `output` as the kernel takes.
///
/// # Errors
/// Why the connection broke.
pub fn write_all(socket: &mut impl io::Write, output: &mut Vec<u8>) -> io::Result<()> {
    let mut sent = 0;
    while sent < output.len() {
        match socket.write(&output[sent..]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    output.drain(..sent);
    Ok(())
}
