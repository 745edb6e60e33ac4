//! One client: its connection and where its conversation stands.
//!
//! ```text
//!  Securing ──'S', TLS only──► LoggingIn ──ReadyForQuery──► Ready ⇄ Asked (ReadyForQuery)
//! ```

use crate::poller::{read_all, write_all};
use crate::wire::{SSL_REQUEST, error_text, frame, startup};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// Clients that share a source address: far below the 28,232 ports that Linux gives out by default.
const CLIENTS_PER_ADDRESS: usize = 5_000;

/// How clients connect.
pub struct Dialer {
    /// Where to.
    pub address: SocketAddr,
    /// User and database.
    pub login: (String, String),
    /// TLS, if they speak it.
    pub tls: Option<Arc<ClientConfig>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Securing,
    LoggingIn,
    Ready,
    Asked,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// What has become of a client when its socket had something to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing that matters.
    Nothing,
    /// It has logged in.
    LoggedIn,
    /// It has its whole answer; with the server's words if that was an error.
    Answered(Option<String>),
    /// It is gone, for this reason.
    Gone(String),
}

/// One client.
pub struct Client {
    stream: Stream,
    state: State,
    input: Vec<u8>,
    output: Vec<u8>,
    failure: Option<String>,
    /// When what it asked was due, and when it was sent.
    pub asked: (u64, u64),
    /// It has the prepared statement.
    pub has_prepared: bool,
    /// ReadyForQuery messages to come before the answer that counts.
    pub preliminary: u8,
}

impl Client {
    /// Begins to connect; `number` chooses the source address on loopback.
    ///
    /// # Errors
    /// What the kernel says: no descriptor, no port, nobody there.
    pub fn connect(dialer: &Dialer, number: usize) -> io::Result<Client> {
        let socket = Socket::new(Domain::for_address(dialer.address), Type::STREAM, None)?;
        if let Some(source) = source_address(dialer.address, std::process::id(), number) {
            socket.bind(&SockAddr::from(source))?;
        }
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&SockAddr::from(dialer.address)) {
            Err(error)
                if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
            {
                return Err(error);
            }
            _ => {}
        }
        let mut client = Client {
            stream: Stream::Plain(socket.into()),
            state: State::LoggingIn,
            input: Vec::new(),
            output: Vec::new(),
            failure: None,
            asked: (0, 0),
            has_prepared: false,
            preliminary: 0,
        };
        if dialer.tls.is_some() {
            client.state = State::Securing;
            client.output.extend_from_slice(&SSL_REQUEST);
        } else {
            client.say_hello(dialer);
        }
        Ok(client)
    }

    fn say_hello(&mut self, dialer: &Dialer) {
        startup(&mut self.output, &dialer.login.0, &dialer.login.1);
    }

    /// Its socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Plain(socket) => socket.as_fd(),
            Stream::Tls(tls) => tls.sock.as_fd(),
        }
    }

    /// Whether it can ask something.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Sends a request.
    ///
    /// # Errors
    /// Why the connection broke.
    pub fn ask(&mut self, request: &[u8]) -> io::Result<()> {
        self.state = State::Asked;
        self.output.extend_from_slice(request);
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(socket) => write_all(socket, &mut self.output),
            Stream::Tls(tls) => {
                write_all(&mut **tls, &mut self.output)?;
                match tls.flush() {
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                    _ => Ok(()),
                }
            }
        }
    }

    /// Does what there is to do on its socket.
    pub fn step(&mut self, dialer: &Dialer, scratch: &mut [u8]) -> Step {
        match self.try_step(dialer, scratch) {
            Ok(step) => step,
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()) =>
            {
                Step::Nothing
            }
            Err(error) => Step::Gone(error.to_string()),
        }
    }

    fn try_step(&mut self, dialer: &Dialer, scratch: &mut [u8]) -> io::Result<Step> {
        self.flush()?;
        if self.state == State::Securing && !self.secure(dialer)? {
            return Ok(Step::Nothing);
        }
        let is_open = match &mut self.stream {
            Stream::Plain(socket) => read_all(socket, scratch, &mut self.input)?,
            Stream::Tls(tls) => read_all(&mut **tls, scratch, &mut self.input)?,
        };
        // A handshake may have come far enough for what waits to be sent.
        self.flush()?;
        let step = self.take_messages();
        if !is_open && !matches!(step, Step::Gone(_)) {
            let why = self.failure.take();
            return Ok(Step::Gone(
                why.unwrap_or_else(|| "the pooler hung up".into()),
            ));
        }
        Ok(step)
    }

    /// Reads the answer to SSLRequest; true once TLS can begin.
    fn secure(&mut self, dialer: &Dialer) -> io::Result<bool> {
        let Stream::Plain(socket) = &mut self.stream else {
            return Ok(true);
        };
        let mut answer = [0];
        match socket.read(&mut answer) {
            Ok(1) if answer == *b"S" => {}
            Ok(_) => return Err(io::Error::other("the pooler does not speak TLS")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
        let config = dialer
            .tls
            .clone()
            .expect("only a client that speaks TLS asks for it");
        let name = ServerName::IpAddress(dialer.address.ip().into());
        let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let plain = socket.try_clone()?;
        self.stream = Stream::Tls(Box::new(StreamOwned::new(connection, plain)));
        self.state = State::LoggingIn;
        self.say_hello(dialer);
        self.flush()?;
        Ok(true)
    }

    fn take_messages(&mut self) -> Step {
        let input = std::mem::take(&mut self.input);
        let (mut at, mut step) = (0, Step::Nothing);
        while let Some((tag, body, length)) = frame(&input[at..]) {
            at += length;
            match tag {
                b'R' if body != [0; 4] => step = Step::Gone("the pooler wants a password".into()),
                b'E' => self.failure = Some(error_text(body)),
                b'Z' => step = self.completed(),
                _ => {}
            }
        }
        if at < input.len() {
            self.input = input[at..].to_vec();
        }
        step
    }

    fn completed(&mut self) -> Step {
        if self.preliminary > 0 {
            self.preliminary -= 1;
            return Step::Nothing;
        }
        let before = std::mem::replace(&mut self.state, State::Ready);
        if before == State::Asked {
            Step::Answered(self.failure.take())
        } else {
            Step::LoggedIn
        }
    }
}

/// On loopback every process, and every so many of its clients, have an address of their own for the sake of the ports; the
/// ports of a swarm that has just ended wait for a minute.
fn source_address(target: SocketAddr, process: u32, number: usize) -> Option<SocketAddr> {
    let IpAddr::V4(address) = target.ip() else {
        return None;
    };
    let last = u8::try_from(number / CLIENTS_PER_ADDRESS + 2).ok()?;
    let [.., high, low] = process.to_be_bytes();
    let source = Ipv4Addr::new(127, high, low, last);
    address.is_loopback().then(|| SocketAddr::from((source, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_on_loopback_spread_over_addresses() {
        let target = "127.0.0.1:6432".parse().unwrap();
        let source = |number| {
            source_address(target, 0x1_02_03, number)
                .unwrap()
                .ip()
                .to_string()
        };
        assert_eq!(
            [source(0), source(4_999), source(5_000)],
            ["127.2.3.2", "127.2.3.2", "127.2.3.3"]
        );
        assert_eq!(
            source_address("192.0.2.1:6432".parse().unwrap(), 1, 0),
            None
        );
    }
}
