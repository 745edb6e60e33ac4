//! Both ends of the wire, byte by byte: [`Client`] towards the pooler, [`FakeServer`] in PostgreSQL's place.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use socket2::Socket;

use super::wait::PATIENCE;
use super::wire::{self, Failure, Message};

/// A client that sends what it is told and reads message by message, each read with a deadline.
pub struct Client {
    link: Link,
    /// Parameters as the other side last reported them.
    pub params: BTreeMap<String, String>,
    /// Process id and secret of BackendKeyData.
    pub key: (u32, Vec<u8>),
}

impl Client {
    /// Connects and sends nothing.
    pub fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).expect("connect");
        stream.set_nodelay(true).unwrap();
        Client::over(stream.into())
    }

    /// Connects to a Unix socket and sends nothing; `@` begins an abstract name.
    pub fn connect_unix(path: &Path) -> Client {
        let address = match path.as_os_str().as_bytes().strip_prefix(b"@") {
            Some(name) => UnixAddress::from_abstract_name(name),
            None => UnixAddress::from_pathname(path),
        };
        let stream = UnixStream::connect_addr(&address.unwrap()).expect("connect");
        Client::over(stream.into())
    }

    /// Its own end of a TCP connection.
    pub fn local_addr(&self) -> SocketAddr {
        let address = self.link.socket.local_addr().unwrap();
        address.as_socket().expect("TCP")
    }

    fn over(socket: Socket) -> Client {
        Client {
            link: Link::new(socket),
            params: BTreeMap::new(),
            key: (0, Vec::new()),
        }
    }

    /// Logs in as `postgres` with protocol 3.0; panics if that does not succeed.
    #[track_caller]
    pub fn login(address: SocketAddr, database: &str) -> Client {
        Client::login_with(address, &[("user", "postgres"), ("database", database)])
    }

    /// Logs in with these start-up parameters; panics if that does not succeed.
    #[track_caller]
    pub fn login_with(address: SocketAddr, params: &[(&str, &str)]) -> Client {
        let mut client = Client::connect(address);
        let reply = client.start(wire::PROTOCOL_3_0, params);
        assert_eq!(reply.status, b'I', "login failed: {reply:?}");
        client
    }

    /// Sends a start-up packet and reads until ReadyForQuery or the end.
    pub fn start(&mut self, version: u32, params: &[(&str, &str)]) -> Reply {
        self.exchange(&wire::startup(version, params))
    }

    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.link.write_all(bytes).expect("send");
    }

    /// Sends, and does not mind if the other side has closed.
    pub fn send_anyway(&mut self, bytes: &[u8]) {
        let _ = self.link.write_all(bytes);
    }

    /// Sends every byte in a write, and with TCP_NODELAY a segment, of its own.
    #[track_caller]
    pub fn send_bytewise(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.send(&[*byte]));
    }

    /// Writes until the other side takes no more for `patience`; the number of bytes it took, `bytes_max` at most.
    pub fn send_until_blocked(
        &mut self,
        chunk: &[u8],
        bytes_max: usize,
        patience: Duration,
    ) -> usize {
        self.link.socket.set_write_timeout(Some(patience)).unwrap();
        let mut taken = 0;
        while taken < bytes_max {
            match self.link.socket.write(chunk) {
                Ok(count) => taken += count,
                Err(_) => break,
            }
        }
        taken
    }

    /// The next message; panics at the end of the stream.
    #[track_caller]
    pub fn read(&mut self) -> Message {
        let message = self.try_read().expect("read");
        let message = message.expect("a message, not the end of the stream");
        self.note(&message);
        message
    }

    /// The next message; `None` when the other side has closed or reset.
    pub fn try_read(&mut self) -> io::Result<Option<Message>> {
        self.link.message()
    }

    /// The next message that is no notice, notification or parameter; panics unless it has this tag.
    #[track_caller]
    pub fn expect(&mut self, tag: u8) -> Message {
        let message = loop {
            let message = self.read();
            if !b"NAS".contains(&message.tag) {
                break message;
            }
        };
        assert_eq!(
            message.tag as char,
            tag as char,
            "got {message:?} {:?}",
            message.strings(0)
        );
        message
    }

    /// One byte that is not a message: the answer to SSLRequest or GSSENCRequest.
    #[track_caller]
    pub fn read_byte(&mut self) -> u8 {
        self.link.bytes(1).expect("read").expect("a byte")[0]
    }

    /// Performs a TLS handshake with `host`; everything from then on is encrypted.
    ///
    /// # Errors
    /// Why it failed.
    pub fn encrypt(&mut self, config: Arc<ClientConfig>, host: &'static str) -> io::Result<()> {
        let name = ServerName::try_from(host).unwrap();
        let connection = ClientConnection::new(config, name).unwrap();
        self.link.encrypt(connection.into())
    }

    /// An SSLRequest and, if the other side is willing, the handshake.
    ///
    /// # Errors
    /// Why it failed.
    pub fn request_tls(&mut self, config: Arc<ClientConfig>) -> io::Result<()> {
        self.send(&wire::ssl_request());
        assert_eq!(self.read_byte(), b'S');
        self.encrypt(config, "localhost")
    }

    /// The TLS of an encrypted connection.
    pub fn tls(&mut self) -> &mut Connection {
        self.link.tls.as_mut().expect("an encrypted connection")
    }

    /// Sends what TLS itself has to say.
    pub fn flush_tls(&mut self) {
        let Link { socket, tls, .. } = &mut self.link;
        let tls = tls.as_mut().expect("an encrypted connection");
        while tls.wants_write() {
            tls.write_tls(&mut Wire(socket, false)).expect("send");
        }
    }

    /// From now on every byte of ciphertext leaves in a segment of its own.
    pub fn chop(&mut self) {
        self.link.is_chopped = true;
    }

    /// Everything up to the end of the stream, as raw bytes.
    #[track_caller]
    pub fn read_to_end(&mut self) -> Vec<u8> {
        self.link.drain()
    }

    /// Up to `bytes_max` raw bytes; empty at the end of the stream.
    pub fn read_some(&mut self, bytes_max: usize) -> Vec<u8> {
        let mut chunk = vec![0; bytes_max];
        let count = self.link.read_raw(&mut chunk).expect("read");
        chunk.truncate(count);
        chunk
    }

    /// No byte has arrived so far.
    pub fn has_nothing_to_read(&mut self) -> bool {
        self.link.is_silent()
    }

    /// The other side closes without another word.
    #[track_caller]
    pub fn expect_closed(&mut self) {
        let message = self
            .try_read()
            .expect("the end of the stream before the deadline");
        assert!(message.is_none(), "got {message:?} instead of the end");
    }

    /// Everything up to ReadyForQuery or the end of the stream.
    #[track_caller]
    pub fn reply(&mut self) -> Reply {
        self.try_reply().expect("a reply before the deadline")
    }

    /// The same.
    ///
    /// # Errors
    /// TLS has failed, or the deadline has passed.
    pub fn try_reply(&mut self) -> io::Result<Reply> {
        let mut reply = Reply::default();
        while reply.status == 0 {
            let Some(message) = self.try_read()? else {
                reply.closed = true;
                break;
            };
            self.note(&message);
            reply.add(&message);
        }
        Ok(reply)
    }

    #[track_caller]
    pub fn exchange(&mut self, bytes: &[u8]) -> Reply {
        self.send(bytes);
        self.reply()
    }

    #[track_caller]
    pub fn query(&mut self, sql: &str) -> Reply {
        self.exchange(&wire::query(sql))
    }

    /// A query that must succeed; the first column of its first row, empty if there is none.
    #[track_caller]
    pub fn value(&mut self, sql: &str) -> String {
        let reply = self.query(sql);
        assert!(reply.error.is_none() && !reply.closed, "{sql}: {reply:?}");
        reply.value()
    }

    /// The shard of the pooler that it logged in at, of which its key tells.
    pub fn shard(&self) -> usize {
        (self.key.0 >> 21) as usize
    }

    /// Says that nothing more will be sent.
    pub fn finish_sending(&mut self) {
        let _ = self.link.socket.shutdown(std::net::Shutdown::Write);
    }

    /// Closes with a reset instead of a proper end, as a host that died would.
    pub fn reset(self) {
        self.link.socket.set_linger(Some(Duration::ZERO)).unwrap();
    }

    fn note(&mut self, message: &Message) {
        match message.tag {
            b'S' => {
                let strings = message.strings(0);
                self.params.insert(strings[0].clone(), strings[1].clone());
            }
            b'K' => self.key = (message.u32_at(0), message.body[4..].to_vec()),
            _ => {}
        }
    }
}

/// Sends a cancel request and waits until the other side has closed: then it has been dealt with.
pub fn cancel(address: SocketAddr, key: &(u32, Vec<u8>)) {
    let mut client = Client::connect(address);
    client.send(&wire::cancel_request(key.0, &key.1));
    client.expect_closed();
}

/// All messages up to ReadyForQuery, sorted.
#[derive(Debug, Default)]
pub struct Reply {
    /// The tags in order, without notices, notifications and parameters: `TDDCZ`.
    pub tags: String,
    pub columns: Vec<String>,
    /// Object ids of the columns' types.
    pub types: Vec<u32>,
    pub rows: Vec<Vec<Option<String>>>,
    /// Command tags.
    pub complete: Vec<String>,
    pub error: Option<Failure>,
    pub notices: Vec<String>,
    /// The status byte of ReadyForQuery; 0 if none came.
    pub status: u8,
    /// The stream ended before ReadyForQuery.
    pub closed: bool,
}

impl Reply {
    fn add(&mut self, message: &Message) {
        if !b"NAS".contains(&message.tag) {
            self.tags.push(message.tag as char);
        }
        match message.tag {
            b'T' => (self.columns, self.types) = message.columns().into_iter().unzip(),
            b'D' => self.rows.push(message.values()),
            b'C' => self.complete.push(message.strings(0)[0].clone()),
            b'E' => self.error = Some(message.failure()),
            b'N' => self.notices.push(message.failure().text),
            b'Z' => self.status = message.body[0],
            _ => {}
        }
    }

    /// The first column of the first row; empty if there is none.
    pub fn value(&self) -> String {
        self.rows
            .first()
            .and_then(|row| row[0].clone())
            .unwrap_or_default()
    }

    /// SQLSTATE of the error; empty if there is none.
    pub fn code(&self) -> &str {
        self.error.as_ref().map_or("", |error| &error.code)
    }

    /// Text of the error; empty if there is none.
    pub fn text(&self) -> &str {
        self.error.as_ref().map_or("", |error| &error.text)
    }

    /// Ended by a FATAL error with this text and a closed connection.
    #[track_caller]
    pub fn assert_fatal(&self, text: &str) {
        let error = self.fatal();
        assert_eq!(error.text, text, "{error:?}");
    }

    /// The FATAL error that it ended with, together with the connection.
    #[track_caller]
    pub fn fatal(&self) -> &Failure {
        let error = self
            .error
            .as_ref()
            .unwrap_or_else(|| panic!("no error in {self:?}"));
        assert_eq!(error.severity, "FATAL", "{error:?}");
        assert!(self.closed, "not closed: {self:?}");
        error
    }

    /// The rows as maps from column name to value; NULL is left out.
    pub fn table(&self) -> Vec<BTreeMap<String, String>> {
        let named = |row: &Vec<Option<String>>| {
            let pairs = self.columns.iter().cloned().zip(row.iter().cloned());
            pairs
                .filter_map(|(name, value)| Some((name, value?)))
                .collect()
        };
        self.rows.iter().map(named).collect()
    }

    /// The row of a client over TCP in SHOW CLIENTS. Others may be listed that have just hung up, those of the console that
    /// asked before among them.
    pub fn row_of(&self, client: &Client) -> Option<BTreeMap<String, String>> {
        let port = client.local_addr().port().to_string();
        self.table().into_iter().find(|row| row["port"] == port)
    }
}

/// A server that plays a script on every connection, each on its own thread.
pub struct FakeServer {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    stopping: Arc<AtomicBool>,
}

impl FakeServer {
    pub fn start(script: impl Fn(Conversation) + Send + Sync + 'static) -> FakeServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = FakeServer {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            stopping: Arc::default(),
        };
        let (connections, stopping) = (server.connections.clone(), server.stopping.clone());
        let script = Arc::new(script);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopping.load(Ordering::Acquire) {
                    break;
                }
                connections.fetch_add(1, Ordering::AcqRel);
                let script = script.clone();
                stream.set_nodelay(true).unwrap();
                thread::spawn(move || {
                    script(Conversation {
                        link: Link::new(stream.into()),
                    })
                });
            }
        });
        server
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
    }
}

/// One connection of a [`FakeServer`]. Its methods end silently when the other side has gone.
pub struct Conversation {
    link: Link,
}

impl Conversation {
    /// Reads the start-up packet, refusing TLS; false if the other side went away or asked for a cancel.
    pub fn read_startup(&mut self) -> bool {
        loop {
            let Some(body) = self.link.untagged() else {
                return false;
            };
            match body.get(..4) {
                Some([0, 3, ..]) => return true,
                Some([4, 210, 22, 47 | 48]) => self.send(b"N"),
                _ => return false,
            }
        }
    }

    /// Plays a login without password; false if the other side went away.
    pub fn login(&mut self) -> bool {
        self.read_startup() && {
            self.send(&Conversation::greeting());
            true
        }
    }

    /// All that a server says after the start-up packet of a trusted user.
    pub fn greeting() -> Vec<u8> {
        let params = [
            ("server_version", "17.0"),
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO, MDY"),
            ("TimeZone", "GMT"),
            ("standard_conforming_strings", "on"),
            ("integer_datetimes", "on"),
            ("application_name", ""),
        ];
        let params = params
            .map(|(name, value)| wire::parameter_status(name, value))
            .concat();
        [
            wire::authentication_ok(),
            params,
            wire::backend_key(42, 4242),
            wire::ready(b'I'),
        ]
        .concat()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.link.write_all(bytes);
    }

    /// Sends every byte in a segment of its own.
    pub fn send_bytewise(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.send(&[*byte]));
    }

    /// Reads a packet without a tag: its body.
    pub fn read_untagged(&mut self) -> Option<Vec<u8>> {
        self.link.untagged()
    }

    /// Consents to an SSLRequest and performs the handshake; false if that fails.
    pub fn encrypt(&mut self, config: Arc<ServerConfig>) -> bool {
        if self.link.untagged().as_deref() != Some(&[4, 210, 22, 47]) {
            return false;
        }
        self.send(b"S");
        let connection = ServerConnection::new(config).unwrap();
        self.link.encrypt(connection.into()).is_ok()
    }

    /// From now on every byte of ciphertext leaves in a segment of its own.
    pub fn chop(&mut self) {
        self.link.is_chopped = true;
    }

    pub fn read(&mut self) -> Option<Message> {
        self.link.message().ok().flatten()
    }

    /// Reads until a Query or a Sync; `None` when the other side has gone. Answers the pooler's own `SET`s and
    /// empty checks in passing, so that a script sees only what a client asked.
    pub fn next_request(&mut self) -> Option<Message> {
        loop {
            let message = self.read()?;
            match message.tag {
                b'Q' if message.body.starts_with(b"SET ") => {
                    self.send(&[wire::complete("SET"), wire::ready(b'I')].concat());
                }
                b'Q' if message.body == b"\0" => {
                    self.send(&[wire::message(b'I', b""), wire::ready(b'I')].concat());
                }
                b'Q' | b'S' => return Some(message),
                b'X' => return None,
                _ => {}
            }
        }
    }

    /// Answers every query with one row: for tests that need a server that works.
    pub fn serve(&mut self, value: &str) {
        while self.next_request().is_some() {
            self.send(&Conversation::one_row(value));
        }
    }

    /// A whole reply of one row and one column.
    pub fn one_row(value: &str) -> Vec<u8> {
        let rows = [wire::one_column("x"), wire::one_value(value)].concat();
        [rows, wire::complete("SELECT 1"), wire::ready(b'I')].concat()
    }

    /// Waits until the other side has closed.
    pub fn wait_closed(&mut self) {
        while self.read().is_some() {}
    }

    /// Keeps the connection open, reading nothing, until `released` is set.
    pub fn stall_until(&self, released: &AtomicBool) {
        super::wait::holds_within(PATIENCE * 4, || released.load(Ordering::Acquire));
    }
}

/// A socket with a read buffer and a deadline, and TLS after a handshake.
struct Link {
    socket: Socket,
    tls: Option<Connection>,
    is_chopped: bool,
    buffer: Vec<u8>,
    used: usize,
}

impl Link {
    fn new(socket: Socket) -> Link {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Link {
            socket,
            tls: None,
            is_chopped: false,
            buffer: Vec::new(),
            used: 0,
        }
    }

    fn encrypt(&mut self, mut connection: Connection) -> io::Result<()> {
        while connection.is_handshaking() {
            connection.complete_io(&mut Wire(&self.socket, self.is_chopped))?;
        }
        self.tls = Some(connection);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut wire = Wire(&self.socket, self.is_chopped);
        match &mut self.tls {
            None => (&self.socket).write_all(bytes),
            Some(tls) => {
                // What the connection takes at a time.
                for part in bytes.chunks(16 * 1024) {
                    tls.writer().write_all(part)?;
                    while tls.wants_write() {
                        tls.write_tls(&mut wire)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn read_raw(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        let mut wire = Wire(&self.socket, self.is_chopped);
        match &mut self.tls {
            None => (&self.socket).read(chunk),
            Some(tls) => loop {
                match tls.reader().read(chunk) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read,
                }
                tls.read_tls(&mut wire)?;
                tls.process_new_packets().map_err(io::Error::other)?;
            },
        }
    }

    fn message(&mut self) -> io::Result<Option<Message>> {
        let Some(header) = self.bytes(5)? else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(header[1..5].try_into().unwrap());
        assert!(
            length >= 4,
            "message with length {length}, tag {}",
            header[0]
        );
        let body = self.bytes(length as usize - 4)?;
        Ok(body.map(|body| Message {
            tag: header[0],
            body,
        }))
    }

    fn untagged(&mut self) -> Option<Vec<u8>> {
        let header = self.bytes(4).ok()??;
        let length = u32::from_be_bytes(header.try_into().ok()?) as usize;
        self.bytes(length.checked_sub(4)?).ok()?
    }

    /// Exactly `count` bytes; `None` if the stream ends before.
    fn bytes(&mut self, count: usize) -> io::Result<Option<Vec<u8>>> {
        while self.buffer.len() - self.used < count {
            if !self.fill()? {
                return Ok(None);
            }
        }
        let bytes = self.buffer[self.used..self.used + count].to_vec();
        self.used += count;
        if self.used == self.buffer.len() {
            self.buffer.clear();
            self.used = 0;
        }
        Ok(Some(bytes))
    }

    /// Reads once; false at the end of the stream.
    fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 65_536];
        match self.read_raw(&mut chunk) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }

    #[track_caller]
    fn drain(&mut self) -> Vec<u8> {
        while self
            .fill()
            .expect("the end of the stream before the deadline")
        {}
        self.buffer.split_off(std::mem::take(&mut self.used))
    }

    fn is_silent(&mut self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        self.socket.set_nonblocking(true).unwrap();
        let peeked = self.socket.peek(&mut byte);
        self.socket.set_nonblocking(false).unwrap();
        self.used == self.buffer.len() && peeked.is_err()
    }
}

/// A socket that sends byte by byte if the flag is set.
struct Wire<'a>(&'a Socket, bool);

impl Read for Wire<'_> {
    fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        self.0.read(chunk)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = if self.1 {
            1.min(bytes.len())
        } else {
            bytes.len()
        };
        self.0.write(&bytes[..length])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
