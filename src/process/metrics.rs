//! The metrics endpoint: `GET /metrics` over HTTP/1.1 (RFC 9112), on a thread of its own that serves one connection at
//! a time, answers one request on it and closes it. It reads shared memory only and asks no shard; the locks it takes are those of SHOW.

use super::error::StartError;
use crate::admin::exposition;
use crate::base::Clock;
use crate::config::Config;
use crate::shard::Common;
use socket2::{Domain, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a client may take to say what it wants, and to read the answer and hang up.
const REQUEST_SPAN: Duration = Duration::from_secs(2);
const ANSWER_SPAN: Duration = Duration::from_secs(5);
/// Longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Most header lines of a request.
const HEADERS_MAX: usize = 64;
/// How nice the thread is: with every core busy it gets about a tenth of what a shard gets (sched(7)).
const NICENESS: i32 = 10;
/// Pause after a connection could not be accepted, most likely for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Connections that may wait for their turn.
const BACKLOG: i32 = 128;

const PATH: &str = "/metrics";
const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The listening socket.
pub(super) struct MetricsListener {
    socket: Arc<TcpListener>,
    address: SocketAddr,
}

impl MetricsListener {
    /// Listens on `metrics_listen`, if there is one; `beside` another process that does so, if it is of our kind and user.
    ///
    /// # Errors
    /// If it cannot.
    pub(super) fn open(
        config: &Config,
        beside: bool,
    ) -> Result<Option<MetricsListener>, StartError> {
        let Some(wanted) = config.general.metrics_listen else {
            return Ok(None);
        };
        let bound = listen(wanted, beside).and_then(|socket| {
            let address = socket.local_addr()?;
            let socket = Arc::new(socket);
            Ok(MetricsListener { socket, address })
        });
        let bound = bound.map_err(|source| StartError::MetricsListen {
            address: wanted,
            source,
        })?;
        tracing::info!("metrics at http://{}{PATH}", bound.address);
        Ok(Some(bound))
    }

    /// Serves for as long as the process lives, or until [`MetricsListener::close`].
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub(super) fn serve(&self, common: &Arc<Common>) -> Result<(), StartError> {
        let (common, socket) = (common.clone(), self.socket.clone());
        let run = move || {
            // On Linux a priority belongs to a thread (setpriority(2), NOTES); scrapes work without it, too.
            let _ = rustix::process::setpriority_process(None, NICENESS);
            accept(&socket, &|| exposition(&*common, Clock::now()));
        };
        let thread = thread::Builder::new().name("metrics".to_owned()).spawn(run);
        thread.map(drop).map_err(|source| StartError::System {
            what: "start the metrics thread",
            source,
        })
    }

    /// Serves no longer: another process does it.
    pub(super) fn close(&self) {
        // Whoever waits in accept(2) is woken with EINVAL.
        if let Err(error) = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both) {
            tracing::warn!(%error, "cannot close metrics_listen");
        }
    }
}

/// A socket that a successor can share (SO_REUSEPORT), at an address that nobody has, unless it is `beside` somebody.
fn listen(wanted: SocketAddr, beside: bool) -> io::Result<TcpListener> {
    let unbound = || {
        let socket = Socket::new(Domain::for_address(wanted), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        io::Result::Ok(socket)
    };
    let claim = unbound()?;
    let mut address = wanted.into();
    if !beside {
        claim.bind(&address)?;
        address = claim.local_addr()?;
    }
    let socket = unbound()?;
    socket.set_reuse_port(true)?;
    socket.bind(&address)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn accept(socket: &TcpListener, scrape: &dyn Fn() -> String) {
    loop {
        match socket.accept() {
            // Whoever does not speak HTTP, or hangs up, harms nobody else.
            Ok((client, _)) => drop(serve(&client, scrape)),
            // It does not listen any more.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

/// Answers one request.
fn serve(client: &TcpStream, scrape: &dyn Fn() -> String) -> io::Result<()> {
    let mut asking = Timed::new(client, REQUEST_SPAN);
    let answer = match read_request(&mut asking)? {
        Request::Metrics => answer("200 OK", TYPE, &scrape()),
        Request::OtherMethod => refusal("405 Method Not Allowed"),
        Request::OtherPath => refusal("404 Not Found"),
        Request::TooLong => refusal("431 Request Header Fields Too Large"),
        Request::NotHttp => refusal("400 Bad Request"),
    };
    let mut answering = Timed::new(client, ANSWER_SPAN);
    answering.write_all(&answer)?;
    client.shutdown(Shutdown::Write)?;
    // What is left unread would make the kernel reset the connection, and the answer be lost (RFC 9112, section 9.6).
    let mut rest = Timed::new(client, REQUEST_SPAN);
    io::copy(&mut rest, &mut io::sink()).map(drop)
}

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Metrics,
    OtherMethod,
    OtherPath,
    TooLong,
    NotHttp,
}

/// Reads the head of a request; what comes behind it is left alone.
fn read_request(client: &mut impl Read) -> io::Result<Request> {
    let mut head = [0; HEAD_BYTES_MAX];
    let mut length = 0;
    loop {
        match client.read(&mut head[length..]) {
            Ok(0) => return Ok(Request::NotHttp),
            Ok(count) => length += count,
            // A socket with a timeout is not read again by itself after a signal (signal(7)).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        match parse(&head[..length]) {
            Some(request) => return Ok(request),
            None if length == head.len() => return Ok(Request::TooLong),
            None => {}
        }
    }
}

/// None while there is more to come.
fn parse(head: &[u8]) -> Option<Request> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) => {
            let target = request.path.unwrap_or_default();
            let path = target.split_once('?').map_or(target, |(path, _)| path);
            Some(match (path, request.method) {
                (PATH, Some("GET")) => Request::Metrics,
                (PATH, _) => Request::OtherMethod,
                _ => Request::OtherPath,
            })
        }
        Err(httparse::Error::TooManyHeaders) => Some(Request::TooLong),
        Err(_) => Some(Request::NotHttp),
    }
}

fn refusal(status: &str) -> Vec<u8> {
    answer(status, "text/plain", &format!("{status}\n"))
}

fn answer(status: &str, content_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nAllow: GET\r\n\
         Connection: close\r\n\r\n"
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

/// A socket that may be used until a deadline, however little happens at a time.
struct Timed<'a> {
    socket: &'a TcpStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn new(socket: &TcpStream, span: Duration) -> Timed<'_> {
        let deadline = Instant::now() + span;
        Timed { socket, deadline }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(left),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(into)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_known_by_its_first_line() {
        let whole = |line: &str| parse(format!("{line}\r\nHost: x\r\n\r\n").as_bytes());
        for (line, expected) in [
            ("GET /metrics HTTP/1.1", Request::Metrics),
            ("GET /metrics?name=x HTTP/1.1", Request::Metrics),
            ("GET /metrics HTTP/1.0", Request::Metrics),
            ("POST /metrics HTTP/1.1", Request::OtherMethod),
            ("HEAD /metrics HTTP/1.1", Request::OtherMethod),
            ("GET / HTTP/1.1", Request::OtherPath),
            ("GET /metrics/ HTTP/1.1", Request::OtherPath),
            ("PUT /x HTTP/1.1", Request::OtherPath),
            ("PRI * HTTP/2.0", Request::NotHttp),
            ("\u{16}\u{3}\u{1}", Request::NotHttp),
        ] {
            assert_eq!(whole(line), Some(expected), "{line}");
        }
    }

    #[test]
    fn every_beginning_of_a_request_waits_for_more() {
        let head = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n";
        for end in 0..head.len() {
            assert_eq!(parse(&head[..end]), None, "{end}");
        }
        assert_eq!(parse(head), Some(Request::Metrics));
    }

    #[test]
    fn head_is_read_in_pieces_and_never_beyond_its_bound() {
        struct Bytewise<'a>(&'a [u8]);
        impl Read for Bytewise<'_> {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                let at_most = into.len().min(1);
                self.0.read(&mut into[..at_most])
            }
        }
        let read = |bytes: &[u8]| read_request(&mut Bytewise(bytes)).unwrap();
        assert_eq!(read(b"GET /metrics HTTP/1.1\r\n\r\n"), Request::Metrics);
        assert_eq!(read(b"GET /metrics HTTP/1.1\r\n"), Request::NotHttp);
        let start = "GET /metrics HTTP/1.1\r\nX: ";
        let padded = |bytes| format!("{start}{}\r\n\r\n", "x".repeat(bytes));
        let room = HEAD_BYTES_MAX - start.len() - 4;
        assert_eq!(read(padded(room).as_bytes()), Request::Metrics);
        assert_eq!(read(padded(room + 1).as_bytes()), Request::TooLong);
        let many = "X: y\r\n".repeat(HEADERS_MAX + 1);
        let many = format!("GET /metrics HTTP/1.1\r\n{many}\r\n");
        assert_eq!(read(many.as_bytes()), Request::TooLong);
    }
}
