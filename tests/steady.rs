//! What a transaction costs in memory: nothing is allocated once a conversation runs, neither per query nor per lease. And
//! what a client costs that does nothing.
//!
//! The pooler runs in this process, with an allocator that counts what its shard's thread does. Server and clients are threads
//! of the test.

#![allow(unsafe_code)]

use ringbouncer::process::{Options, run};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);
const WARM_UP: usize = 300;
const MEASURED: usize = 1_000;

/// Larger than anything that belongs to one client; the tables that all of them share grow in larger ones.
const OF_ONE_CLIENT_MAX: usize = 4096;
const IDLE_CLIENTS: usize = 200;
/// 778 measured: the client's task, its entry, its relay and 32 bytes of the socket's. The allocator's size classes are 64 bytes apart
/// there, and task and relay are at the end of theirs (256): a field more may cost eight times its size.
const BYTES_PER_IDLE_CLIENT: i64 = 784;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static SMALL_BYTES: AtomicI64 = AtomicI64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(0, layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(layout.size(), bytes);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

/// Counts if this is the shard's thread; must not allocate.
fn count(freed: usize, taken: usize) {
    let mut name = [0u8; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    if name.starts_with(b"shard-") {
        ALLOCATIONS.fetch_add(u64::from(taken > 0), Relaxed);
        let small = |bytes| {
            if bytes > OF_ONE_CLIENT_MAX {
                0
            } else {
                bytes as i64
            }
        };
        SMALL_BYTES.fetch_add(small(taken) - small(freed), Relaxed);
    }
}

// ---- the server ----------------------------------------------------------------------------

/// Answers like PostgreSQL would, one row for whatever is asked.
fn serve(listener: TcpListener) {
    for socket in listener.incoming() {
        let socket = socket.expect("the pooler connects");
        thread::spawn(move || converse(socket));
    }
}

fn converse(mut socket: TcpStream) -> io::Result<()> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let mut packet = vec![0; u32::from_be_bytes(length) as usize - 4];
    socket.read_exact(&mut packet)?;
    let mut out = Vec::new();
    message(&mut out, b'R', &[0; 4]);
    message(&mut out, b'S', b"server_version\x0015.0\0");
    message(&mut out, b'K', &[0, 0, 0, 1, 0, 0, 0, 2]);
    message(&mut out, b'Z', b"I");
    loop {
        socket.write_all(&out)?;
        out.clear();
        while !answer(&mut socket, &mut out)? {}
    }
}

/// Answers one message; true once it is time to send.
fn answer(socket: &mut TcpStream, out: &mut Vec<u8>) -> io::Result<bool> {
    let mut head = [0; 5];
    socket.read_exact(&mut head)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let mut body = vec![0; length as usize - 4];
    socket.read_exact(&mut body)?;
    match head[0] {
        b'Q' => {
            description(out);
            row(out);
        }
        b'P' => message(out, b'1', b""),
        b'B' => message(out, b'2', b""),
        b'C' => message(out, b'3', b""),
        b'D' => description(out),
        b'E' => row(out),
        _ => {}
    }
    let is_end = matches!(head[0], b'Q' | b'S');
    if is_end {
        message(out, b'Z', b"I");
    }
    Ok(is_end)
}

fn description(out: &mut Vec<u8>) {
    message(
        out,
        b'T',
        b"\0\x01n\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0",
    );
}

fn row(out: &mut Vec<u8>) {
    message(out, b'D', b"\0\x01\0\0\0\x01x");
    message(out, b'C', b"SELECT 1\0");
}

fn message(out: &mut Vec<u8>, tag: u8, body: &[u8]) {
    out.push(tag);
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
}

// ---- the clients ---------------------------------------------------------------------------

struct Client(UnixStream);

impl Client {
    fn connect(path: &Path) -> Client {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) => assert!(
                    Instant::now() < deadline,
                    "the pooler does not listen: {error}"
                ),
            }
            thread::yield_now();
        };
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a timeout can be set");
        let mut client = Client(stream);
        let body = b"\0\x03\0\0user\0alice\0database\0shop\0\0";
        let mut packet = (body.len() as u32 + 4).to_be_bytes().to_vec();
        packet.extend_from_slice(body);
        client.ask(&packet);
        client
    }

    /// Sends, and reads up to ReadyForQuery.
    fn ask(&mut self, request: &[u8]) {
        self.0.write_all(request).expect("the pooler reads");
        loop {
            let mut head = [0; 5];
            self.0.read_exact(&mut head).expect("the pooler answers");
            let mut body =
                vec![0; u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4];
            self.0.read_exact(&mut body).expect("the pooler answers");
            assert_ne!(head[0], b'E', "{}", String::from_utf8_lossy(&body));
            if head[0] == b'Z' {
                return;
            }
        }
    }
}

fn simple() -> Vec<u8> {
    let mut out = Vec::new();
    message(&mut out, b'Q', b"SELECT 1\0");
    out
}

fn extended(statement: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if statement.is_empty() {
        message(&mut out, b'P', b"\0SELECT 1\0\0\0");
    }
    message(
        &mut out,
        b'B',
        &[b"\0", statement, b"\0\0\0\0\0\0\0"].concat(),
    );
    message(&mut out, b'D', b"P\0");
    message(&mut out, b'E', b"\0\0\0\0\0");
    message(&mut out, b'S', b"");
    out
}

/// How many of so many runs of `work` the shard allocated something in. A few it does: the executor's own timer and the shard's
/// upkeep run every so often, whatever the clients do.
fn allocating_runs(mut work: impl FnMut()) -> usize {
    let runs = (0..MEASURED).filter(|_| {
        let before = ALLOCATIONS.load(Relaxed);
        work();
        ALLOCATIONS.load(Relaxed) != before
    });
    runs.count()
}

/// 1 shard, pool size 1. One test, as the pooler runs once in a process.
#[test]
fn a_steady_conversation_allocates_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || serve(listener));
    let config = directory.path().join("ringbouncer.toml");
    let text = format!(
        "[ringbouncer]\nlisten_addr = []\nunix_socket_dir = {:?}\nlisten_port = 6432\npool_mode = \"transaction\"\n\
         default_pool_size = 1\nserver_tls_sslmode = \"disable\"\nauth_type = \"trust\"\nlog_level = \"error\"\n\
         [databases.shop]\nhost = \"127.0.0.1\"\nport = {port}\n[users.alice]\n",
        directory.path()
    );
    std::fs::write(&config, text).expect("the configuration can be written");
    let options = Options {
        path: config,
        shards: Some(1),
        ..Options::default()
    };
    thread::spawn(move || run(&options).expect("the pooler starts"));
    let socket = directory.path().join(".s.PGSQL.6432");
    let mut client = Client::connect(&socket);
    let mut parse = Vec::new();
    message(&mut parse, b'P', b"named\0SELECT 2\0\0\0");
    message(&mut parse, b'S', b"");
    client.ask(&parse);
    for (name, request) in [
        ("simple", simple()),
        ("extended", extended(b"")),
        ("prepared", extended(b"named")),
    ] {
        (0..WARM_UP).for_each(|_| client.ask(&request));
        let count = allocating_runs(|| client.ask(&request));
        assert!(
            count < MEASURED / 4,
            "{count} of {MEASURED} {name} transactions have allocated"
        );
    }
    clients_in_line_allocate_per_tick_not_per_transaction(&socket);
    idle_clients_take_no_more_than_they_should(&socket);
}

fn idle_clients_take_no_more_than_they_should(socket: &Path) {
    let mut clients: Vec<_> = (0..IDLE_CLIENTS).map(|_| Client::connect(socket)).collect();
    let before = SMALL_BYTES.load(Relaxed);
    clients.extend((0..IDLE_CLIENTS).map(|_| Client::connect(socket)));
    let bytes = (SMALL_BYTES.load(Relaxed) - before) / IDLE_CLIENTS as i64;
    assert!(
        bytes <= BYTES_PER_IDLE_CLIENT,
        "{bytes} bytes per idle client"
    );
}

/// Four clients share the one server.
fn clients_in_line_allocate_per_tick_not_per_transaction(socket: &Path) {
    let mut clients: Vec<_> = (0..4).map(|_| Client::connect(socket)).collect();
    let mut all = |rounds: usize| {
        thread::scope(|scope| {
            for client in &mut clients {
                scope.spawn(move || (0..rounds).for_each(|_| client.ask(&simple())));
            }
        });
    };
    all(WARM_UP);
    let began = Instant::now();
    let before = ALLOCATIONS.load(Relaxed);
    all(MEASURED);
    let count = ALLOCATIONS.load(Relaxed) - before;
    // The pools' tick, every 10 ms while somebody waits, makes a timer and may make a task.
    let ticks = began.elapsed().as_millis() as u64 / 10 + 1;
    let allowed = ticks * 10;
    assert!(
        count <= allowed,
        "{count} allocations in {} transactions of clients in line, {ticks} ticks",
        4 * MEASURED
    );
}
