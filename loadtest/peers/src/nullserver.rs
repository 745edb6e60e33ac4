//! A server that speaks PostgreSQL's protocol, lets everybody in and answers every query at once with the same row.
//!
//! Each thread has a listener of its own on the same port. Nothing is parsed that need not be: the answer to a Query is one
//! constant, except that BEGIN and COMMIT are told apart from the rest, so that transactions look like transactions.

use crate::poller::{Poller, read_all, write_all};
use crate::wire::{frame, message, packet};
use slab::Slab;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

const LISTENER: usize = usize::MAX;
const BACKLOG: i32 = 4096;
const SCRATCH_BYTES: usize = 64 * 1024;
const TEXT_OID: u32 = 25;

/// What a server reports to whom it lets in.
const PARAMETERS: [(&str, &str); 11] = [
    ("server_version", "15.0"),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("application_name", ""),
    ("default_transaction_read_only", "off"),
    ("in_hot_standby", "off"),
    ("DateStyle", "ISO, MDY"),
    ("TimeZone", "UTC"),
    ("IntervalStyle", "postgres"),
    ("integer_datetimes", "on"),
    ("standard_conforming_strings", "on"),
];

/// The answers, made once.
pub struct Answers {
    description: Vec<u8>,
    /// Row and CommandComplete.
    result: Vec<u8>,
    /// The whole answer to a Query outside of a transaction.
    query: Vec<u8>,
}

impl Answers {
    /// One row with one column of `bytes` bytes.
    pub fn new(bytes: usize) -> Answers {
        let mut column = 1u16.to_be_bytes().to_vec();
        column.extend_from_slice(b"answer\0");
        column.extend_from_slice(&[0; 6]);
        column.extend_from_slice(&TEXT_OID.to_be_bytes());
        // Size -1 (varies), modifier -1 (none), format 0 (text).
        column.extend_from_slice(&[255, 255, 255, 255, 255, 255, 0, 0]);
        let mut row = 1u16.to_be_bytes().to_vec();
        row.extend_from_slice(&(bytes as u32).to_be_bytes());
        row.resize(row.len() + bytes, b'0');
        let (mut description, mut result) = (Vec::new(), Vec::new());
        message(&mut description, b'T', &column);
        message(&mut result, b'D', &row);
        message(&mut result, b'C', b"SELECT 1\0");
        let mut query = [&description[..], &result].concat();
        message(&mut query, b'Z', b"I");
        Answers {
            description,
            result,
            query,
        }
    }
}

/// A listening socket that shares its port with those of other threads.
///
/// # Errors
/// What the kernel says.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Serves for ever.
///
/// # Errors
/// What the kernel says to the listener or epoll.
pub fn serve(listener: &TcpListener, answers: &Arc<Answers>) -> io::Result<()> {
    let mut poller = Poller::new()?;
    poller.add(listener, LISTENER)?;
    let mut sessions = Slab::new();
    let mut scratch = vec![0; SCRATCH_BYTES];
    loop {
        for key in poller.wait(None)? {
            if key == LISTENER {
                accept(listener, &poller, &mut sessions)?;
            } else if let Some(session) = sessions.get_mut(key)
                && !matches!(Session::step(session, &mut scratch, answers), Ok(true))
            {
                sessions.remove(key);
            }
        }
    }
}

fn accept(listener: &TcpListener, poller: &Poller, sessions: &mut Slab<Session>) -> io::Result<()> {
    loop {
        let socket = match listener.accept() {
            Ok((socket, _)) => socket,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // Whoever it was has gone already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let entry = sessions.vacant_entry();
        poller.add(&socket, entry.key())?;
        entry.insert(Session::new(socket));
    }
}

struct Session {
    socket: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    is_started: bool,
    in_transaction: bool,
}

impl Session {
    fn new(socket: TcpStream) -> Session {
        Session {
            socket,
            input: Vec::new(),
            output: Vec::new(),
            is_started: false,
            in_transaction: false,
        }
    }

    /// Reads, answers, writes. False when it is over.
    fn step(&mut self, scratch: &mut [u8], answers: &Answers) -> io::Result<bool> {
        let is_open = read_all(&mut self.socket, scratch, &mut self.input)?;
        let input = std::mem::take(&mut self.input);
        let (mut at, mut stays) = (0, true);
        while stays {
            let Some(length) = self.take(&input[at..], answers, &mut stays) else {
                break;
            };
            at += length;
        }
        self.input = input;
        self.input.drain(..at);
        write_all(&mut self.socket, &mut self.output)?;
        Ok(is_open && stays)
    }

    /// Answers the first message; gives its length once it is there whole.
    fn take(&mut self, data: &[u8], answers: &Answers, stays: &mut bool) -> Option<usize> {
        if !self.is_started {
            let length = packet(data)?;
            *stays = self.start(&data[4..length]);
            return Some(length);
        }
        let (tag, body, length) = frame(data)?;
        *stays = tag != b'X';
        self.answer(tag, body, answers);
        Some(length)
    }

    fn start(&mut self, body: &[u8]) -> bool {
        match body
            .first_chunk::<4>()
            .map(|code| u32::from_be_bytes(*code))
        {
            // SSLRequest and GSSENCRequest: no.
            Some(80_877_103 | 80_877_104) => self.output.push(b'N'),
            Some(version) if version >> 16 == 3 => self.welcome(),
            // A cancel request: there is nothing to cancel.
            _ => return false,
        }
        true
    }

    fn welcome(&mut self) {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let id = NEXT.fetch_add(1, Relaxed).to_be_bytes();
        self.is_started = true;
        message(&mut self.output, b'R', &[0; 4]);
        for (name, value) in PARAMETERS {
            message(
                &mut self.output,
                b'S',
                format!("{name}\0{value}\0").as_bytes(),
            );
        }
        message(&mut self.output, b'K', &[id, id].concat());
        message(&mut self.output, b'Z', b"I");
    }

    fn answer(&mut self, tag: u8, body: &[u8], answers: &Answers) {
        let out = &mut self.output;
        match tag {
            b'Q' if starts_with(body, b"BEGIN") => self.transaction(true),
            b'Q' if starts_with(body, b"COMMIT") || starts_with(body, b"ROLLBACK") => {
                self.transaction(false)
            }
            b'Q' if starts_with(body, b"SET") => self.complete(b"SET\0"),
            b'Q' if !self.in_transaction => out.extend_from_slice(&answers.query),
            b'Q' => {
                out.extend_from_slice(&answers.description);
                out.extend_from_slice(&answers.result);
                self.ready();
            }
            b'P' => message(out, b'1', b""),
            b'B' => message(out, b'2', b""),
            b'C' => message(out, b'3', b""),
            b'D' => {
                if body.first() == Some(&b'S') {
                    message(out, b't', &[0, 0]);
                }
                out.extend_from_slice(&answers.description);
            }
            b'E' => out.extend_from_slice(&answers.result),
            b'S' => self.ready(),
            _ => {}
        }
    }

    fn transaction(&mut self, begins: bool) {
        self.in_transaction = begins;
        self.complete(if begins { b"BEGIN\0" } else { b"COMMIT\0" });
    }

    fn complete(&mut self, tag: &[u8]) {
        message(&mut self.output, b'C', tag);
        self.ready();
    }

    fn ready(&mut self) {
        let status: &[u8] = if self.in_transaction { b"T" } else { b"I" };
        message(&mut self.output, b'Z', status);
    }
}

fn starts_with(body: &[u8], word: &[u8]) -> bool {
    body.get(..word.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(word))
}
