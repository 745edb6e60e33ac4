//! Whole sessions on a ring of their own, with a scripted client at the other end of the socket.

use super::command::Show;
use super::error::Refusal;
use super::filter::Pick;
use super::office::{
    Access, ClientRow, DatabaseFlags, Hold, Later, Office, Order, PoolRow, Records, ServerRow,
    SetOutcome, Shutdown, UserRow,
};
use super::{Session, serve};
use crate::base::{Clock, Moment, ShardId};
use crate::client::ClientState;
use crate::config::Config;
use crate::net::{CertificateFile, Detached, Driver, Endpoint, Net, NetOptions, Socket, spawn};
use crate::session::CancelKey;
use crate::stats::{PeriodHistory, Registry};
use crate::wire::backend::{DataRow, Fields};
use crate::wire::frontend;
use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const SHARD: ShardId = ShardId(0);
const PATIENCE: Duration = Duration::from_secs(20);

/// A process of one shard with `clients` clients and no servers, whose RELOAD always fails.
struct Desk {
    registry: Arc<Registry>,
    history: Mutex<PeriodHistory>,
    clients: usize,
    /// What every client calls itself: as often in use as there are rows about clients.
    name: Arc<str>,
    shutdown: Arc<Mutex<Option<Shutdown>>>,
}

impl Records for Desk {
    fn client_counts(&self) -> super::office::ClientCounts {
        Default::default()
    }

    fn peer_load(&self, _id: u16) -> super::office::PeerLoad {
        Default::default()
    }

    fn pools(&self) -> Vec<PoolRow> {
        Vec::new()
    }

    fn users(&self) -> Vec<UserRow> {
        Vec::new()
    }

    fn login_failures(&self, _now: Moment) -> Vec<super::office::FailureRow> {
        Vec::new()
    }

    fn config(&self) -> Arc<Config> {
        Arc::default()
    }

    fn certificates(&self) -> Vec<CertificateFile> {
        Vec::new()
    }

    fn registry(&self) -> &Registry {
        &self.registry
    }

    fn history(&self) -> &Mutex<PeriodHistory> {
        &self.history
    }

    fn mailbox_depth(&self, _shard: ShardId) -> usize {
        0
    }

    fn flags(&self, _database: &str) -> DatabaseFlags {
        DatabaseFlags::default()
    }

    fn hold(&self) -> Hold {
        Hold::None
    }

    fn hosts(&self) -> Vec<(String, Vec<std::net::IpAddr>)> {
        Vec::new()
    }
}

impl Office for Desk {
    fn records(&self) -> &dyn Records {
        self
    }

    fn shard(&self) -> ShardId {
        SHARD
    }

    fn clients(&self, wanted: Pick<ClientRow>) -> Later<'_, Vec<ClientRow>> {
        let row = ClientRow {
            shard: SHARD,
            id: 7,
            user: "ann".into(),
            database: "shop".into(),
            replication: crate::wire::Replication::None,
            state: ClientState::Idle,
            remote: Endpoint::Unix("".into()),
            local: Endpoint::Unix("".into()),
            connected_unix_us: 0,
            requested_unix_us: 0,
            wait_us: 0,
            link: None,
            tls: None,
            application_name: self.name.clone(),
            prepared_statements: 0,
        };
        let count = if (wanted.keep)(&row) { self.clients } else { 0 };
        Box::pin(async move { vec![row; count.min(wanted.limit)] })
    }

    fn servers(&self, _wanted: Pick<ServerRow>) -> Later<'_, Vec<ServerRow>> {
        Box::pin(async { Vec::new() })
    }

    fn statements(&self) -> Later<'_, Vec<super::office::StatementRow>> {
        Box::pin(async { Vec::new() })
    }

    fn order<'a>(&'a self, order: &'a Order) -> Later<'a, Result<(), Refusal>> {
        Box::pin(async move {
            match order.database() {
                None => Ok(()),
                Some(name) => Err(Refusal::NoSuchDatabase { name: name.into() }),
            }
        })
    }

    fn wait_close<'a>(&'a self, _database: Option<&'a str>) -> Later<'a, Result<(), Refusal>> {
        Box::pin(async { Ok(()) })
    }

    fn kill_client(&self, _id: u64) -> Later<'_, Result<(), Refusal>> {
        Box::pin(async { Err(Refusal::NoSuchClient) })
    }

    fn set<'a>(&'a self, name: &'a str, _value: &'a str) -> Later<'a, SetOutcome> {
        Box::pin(async move {
            match name == "pool_mode" {
                true => SetOutcome::Set,
                false => SetOutcome::Failed,
            }
        })
    }

    fn reload(&self) -> Later<'_, Result<(), String>> {
        Box::pin(async { Err("line 3 is wrong".to_owned()) })
    }

    fn hear(&self, _refusal: &Refusal) {}

    fn shutdown(&self, how: Shutdown) {
        *self.shutdown.lock().unwrap() = Some(how);
    }
}

/// The client's end, and what it can see of the process.
struct Peer {
    stream: UnixStream,
    registry: Arc<Registry>,
    name: Arc<str>,
    shutdown: Arc<Mutex<Option<Shutdown>>>,
}

/// Serves one console session on a ring of its own while `script` plays the client.
fn session(access: Access, clients: usize, script: impl FnOnce(&mut Peer) + Send) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    theirs.set_write_timeout(Some(PATIENCE)).unwrap();
    let (registry, shutdown) = (Arc::new(Registry::new(1)), Arc::default());
    let name = Arc::<str>::from("");
    let desk = Desk {
        registry: Arc::clone(&registry),
        history: Mutex::new(PeriodHistory::new(PATIENCE, Clock::now())),
        clients,
        name: Arc::clone(&name),
        shutdown: Arc::clone(&shutdown),
    };
    let mut peer = Peer {
        stream: theirs,
        registry,
        name,
        shutdown,
    };
    thread::scope(|scope| {
        scope.spawn(|| glommio::LocalExecutor::default().run(serve_one(ours, access, desk)));
        script(&mut peer);
        drop(peer);
    });
}

async fn serve_one(ours: UnixStream, access: Access, desk: Desk) {
    let net = Net::new(&NetOptions {
        receive_buffers: 64,
        receive_buffer_bytes: 4096,
        close_timeout: PATIENCE,
        stats: Arc::clone(desk.registry.shard(SHARD)),
    })
    .unwrap();
    let is_over = Rc::new(Cell::new(false));
    let over = Rc::clone(&is_over);
    spawn(net, async move {
        let socket = Socket::attach(net, Detached::new(ours.into()));
        let session = Session {
            access,
            key: CancelKey::new(SHARD, 5, false, [9; 32]),
            stats: desk.registry.pool(SHARD, "pgbouncer", "pgbouncer"),
        };
        let _ = serve(net, &socket, Vec::new(), &session, &desk).await;
        // The socket closes once what was sent has gone out, which takes the ring.
        drop(socket);
        net.sleep(Duration::from_millis(50)).await;
        over.set(true);
    });
    let until_over = std::future::poll_fn(|_| match is_over.get() {
        true => std::task::Poll::Ready(()),
        false => std::task::Poll::Pending,
    });
    futures_lite::future::or(until_over, Driver::new(net).run()).await;
}

type Reply = (u8, Vec<u8>);

impl Peer {
    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn reply(&mut self) -> Option<Reply> {
        let mut header = [0; 5];
        self.stream.read_exact(&mut header).ok()?;
        let [tag, a, b, c, d] = header;
        let mut body = vec![0; u32::from_be_bytes([a, b, c, d]) as usize - 4];
        self.stream.read_exact(&mut body).unwrap();
        Some((tag, body))
    }

    /// The replies up to and including ReadyForQuery, or the end.
    fn replies(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        while let Some(reply) = self.reply() {
            let is_last = reply.0 == b'Z';
            replies.push(reply);
            if is_last {
                break;
            }
        }
        replies
    }

    fn welcome(&mut self) -> Vec<Reply> {
        self.replies()
    }

    fn query(&mut self, text: &str) -> Vec<Reply> {
        let mut out = Vec::new();
        frontend::query(&mut out, text.as_bytes());
        self.send(&out);
        self.replies()
    }
}

fn tags(replies: &[Reply]) -> String {
    replies.iter().map(|(tag, _)| char::from(*tag)).collect()
}

/// Severity, code, message and detail of the first error or notice.
fn report(replies: &[Reply]) -> String {
    let found = replies.iter().find(|(tag, _)| matches!(tag, b'E' | b'N'));
    let fields = Fields::read(&found.expect("an error or notice").1).unwrap();
    let fields = b"SCMD".iter().filter_map(|code| fields.get(*code));
    let fields: Vec<_> = fields
        .map(|field| String::from_utf8_lossy(field).into_owned())
        .collect();
    fields.join(" ")
}

fn first_row(replies: &[Reply]) -> Vec<String> {
    let (_, body) = replies.iter().find(|(tag, _)| *tag == b'D').expect("a row");
    let values = DataRow::read(body).unwrap();
    let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or(b"~")).into_owned();
    values.iter().map(text).collect()
}

#[test]
fn welcome_has_pgbouncers_settings_the_key_and_readiness() {
    session(Access::Admin, 0, |peer| {
        let replies = peer.welcome();
        assert_eq!(tags(&replies), "RSSSSSSSKZ");
        assert_eq!(replies[0].1, [0; 4]);
        assert_eq!(replies[1].1, b"server_version\x001.25.2/ringbouncer\0");
        assert_eq!(replies[8].1, [0, 0, 0, 6, 9, 9, 9, 9]);
    });
}

#[test]
fn simple_queries_are_answered_in_pieces_of_one_byte_too() {
    session(Access::Admin, 0, |peer| {
        peer.welcome();
        let replies = peer.query("SHOW VERSION;");
        assert_eq!(tags(&replies), "TDCZ");
        assert_eq!(first_row(&replies), ["Ringbouncer 0.1.0"]);
        assert_eq!(replies[2].1, b"SHOW\0");
        assert_eq!(first_row(&peer.query("SELECT 1")), ["1"]);
        assert_eq!(first_row(&peer.query("SHOW timezone")), ["GMT"]);
        let mut out = Vec::new();
        frontend::query(&mut out, b"SHOW LISTS");
        for byte in out {
            peer.send(&[byte]);
        }
        assert_eq!(tags(&peer.replies()), format!("T{}CZ", "D".repeat(14)));
    });
}

#[test]
fn every_show_runs_and_its_rows_fit_its_columns() {
    session(Access::Admin, 3, |peer| {
        peer.welcome();
        for (name, show) in Show::ALL {
            let replies = peer.query(&format!("SHOW {name}"));
            let rows = replies.iter().filter(|(tag, _)| *tag == b'D');
            for (_, body) in rows {
                let row = DataRow::read(body).unwrap();
                assert_eq!(row.iter().count(), show.columns().len(), "{name}");
            }
            let last = &replies[replies.len() - 2];
            assert_eq!(last, &(b'C', b"SHOW\0".to_vec()), "{name}");
        }
    });
}

#[test]
fn notices_and_errors_have_pgbouncers_words() {
    session(Access::Admin, 0, |peer| {
        peer.welcome();
        let help = peer.query("SHOW HELP");
        assert_eq!(tags(&help), "NCZ");
        assert!(report(&help).starts_with("NOTICE 00000 Console usage \n\tSHOW HELP|"));
        let set = peer.query("SET datestyle TO 'ISO'");
        assert_eq!(
            (tags(&set).as_str(), set[1].1.as_slice()),
            ("NCZ", &b"SET\0"[..])
        );
        assert_eq!(report(&set), "NOTICE 00000 SET ignored");
        let begin = peer.query("BEGIN");
        assert_eq!(tags(&begin), "EZ");
        assert_eq!(
            report(&begin),
            "ERROR 08P01 invalid command 'BEGIN', use SHOW HELP;"
        );
        assert_eq!(
            report(&peer.query("")),
            "ERROR 08P01 invalid command '', use SHOW HELP;"
        );
        assert_eq!(
            report(&peer.query("RELOAD")),
            "ERROR F0000 RELOAD failed, see logs for additional details line 3 is wrong"
        );
    });
}

#[test]
fn stats_users_may_look_but_not_touch() {
    session(Access::Stats, 0, |peer| {
        peer.welcome();
        for text in ["RELOAD", "SHUTDOWN", "SHUTDOWN WAIT_FOR_CLIENTS"] {
            assert_eq!(report(&peer.query(text)), "ERROR 08P01 admin access needed");
        }
        assert_eq!(*peer.shutdown.lock().unwrap(), None);
        assert_eq!(tags(&peer.query("SHOW POOLS")), "TDCZ");
    });
}

#[test]
fn shutdown_at_once_is_not_answered_and_a_patient_one_is() {
    session(Access::Admin, 0, |peer| {
        peer.welcome();
        let replies = peer.query("SHUTDOWN WAIT_FOR_SERVERS");
        assert_eq!(replies[0], (b'C', b"SHUTDOWN\0".to_vec()));
        assert_eq!(
            *peer.shutdown.lock().unwrap(),
            Some(Shutdown::WaitForServers)
        );
        assert_eq!(peer.query("SHUTDOWN"), []);
        assert_eq!(*peer.shutdown.lock().unwrap(), Some(Shutdown::Now));
    });
}

#[test]
fn session_counts_its_requests_before_it_answers() {
    session(Access::Admin, 0, |peer| {
        peer.welcome();
        let stats = peer.registry.pool(SHARD, "pgbouncer", "pgbouncer");
        let row = first_row(&peer.query("SHOW STATS_TOTALS"));
        assert_eq!(row[..4], ["pgbouncer", "0", "1", "1"], "it counts itself");
        peer.query("nonsense");
        assert_eq!((stats.query_count.load(), stats.xact_count.load()), (2, 2));
        // PgBouncer's console counts neither time nor bytes.
        assert_eq!((stats.query.count(), stats.transaction.count()), (0, 0));
        assert_eq!(
            (stats.bytes_received.load(), stats.bytes_sent.load()),
            (0, 0)
        );
    });
}

/// Parse, Describe, Bind, Execute of `text` in `format` with a row limit.
fn extended(text: &str, format: u16, rows_max: u32) -> Vec<u8> {
    let mut out = Vec::new();
    frontend::parse(&mut out, b"", text.as_bytes(), &[]);
    frontend::describe_statement(&mut out, b"");
    let format = format.to_be_bytes();
    out.extend_from_slice(&[
        b'B', 0, 0, 0, 14, 0, 0, 0, 0, 0, 0, 0, 1, format[0], format[1],
    ]);
    out.extend_from_slice(&execution(rows_max));
    out
}

fn execution(rows_max: u32) -> Vec<u8> {
    let mut out = vec![b'E', 0, 0, 0, 9, 0];
    out.extend_from_slice(&rows_max.to_be_bytes());
    out
}

const SYNC: &[u8] = b"S\0\0\0\x04";

#[test]
fn extended_queries_are_answered_in_binary() {
    session(Access::Admin, 0, |peer| {
        peer.welcome();
        peer.send(&[&extended("SELECT 1", 1, 0)[..], SYNC].concat());
        let replies = peer.replies();
        assert_eq!(tags(&replies), "1tT2DCZ");
        assert_eq!(replies[4].1, [0, 1, 0, 0, 0, 4, 0, 0, 0, 1]);
        peer.send(&[&extended("", 0, 0)[..], SYNC].concat());
        assert_eq!(tags(&peer.replies()), "1tn2IZ");
        let stats = peer.registry.pool(SHARD, "pgbouncer", "pgbouncer");
        assert_eq!(stats.query_count.load(), 2, "a pipeline is one query");
    });
}

#[test]
fn portal_is_suspended_at_its_row_limit_and_goes_on() {
    session(Access::Admin, 0, |peer| {
        peer.welcome();
        let pipeline = [
            extended("SHOW LISTS", 0, 10),
            execution(4),
            execution(0),
            execution(0),
        ];
        peer.send(&[&pipeline.concat(), SYNC].concat());
        let expected = format!("1tT2{}s{}sCCZ", "D".repeat(10), "D".repeat(4));
        assert_eq!(tags(&peer.replies()), expected);
    });
}

#[test]
fn command_without_rows_runs_once_and_a_failed_one_skips_to_the_sync() {
    session(Access::Admin, 0, |peer| {
        peer.welcome();
        let pipeline = [
            extended("SET timezone = 'gmt'", 0, 0),
            execution(0),
            execution(0),
        ];
        peer.send(&[&pipeline.concat(), SYNC].concat());
        let replies = peer.replies();
        assert_eq!(tags(&replies), "1tn2NCEZ");
        let pipeline = [extended("RELOAD", 0, 0), extended("SELECT 1", 0, 0)];
        let mut query = Vec::new();
        frontend::query(&mut query, b"SELECT 1");
        peer.send(&[&pipeline.concat(), &query, SYNC].concat());
        assert_eq!(tags(&peer.replies()), "1tn2EZ");
    });
}

#[test]
fn flush_sends_the_replies_so_far() {
    session(Access::Admin, 0, |peer| {
        peer.welcome();
        let flush: &[u8] = b"H\0\0\0\x04";
        peer.send(&[&extended("SELECT 1", 0, 0)[..], flush].concat());
        let replies: Vec<_> = (0..6).filter_map(|_| peer.reply()).collect();
        assert_eq!(tags(&replies), "1tT2DC");
    });
}

#[test]
fn strange_messages_end_the_session_with_pgbouncers_words() {
    session(Access::Admin, 0, |peer| {
        peer.welcome();
        peer.send(b"F\0\0\0\x04");
        let replies = peer.replies();
        assert_eq!(tags(&replies), "EE");
        assert_eq!(
            report(&replies),
            "ERROR 08P01 unsupported packet type for admin console: 70"
        );
        assert_eq!(report(&replies[1..]), "FATAL 08P01 bad packet");
    });
}

#[test]
fn too_large_a_message_ends_the_session() {
    session(Access::Admin, 0, |peer| {
        peer.welcome();
        peer.send(b"Q\0\x01\0\x05");
        assert_eq!(
            report(&peer.replies()),
            "FATAL 08P01 bad packet header: '5100010005'"
        );
    });
}

#[test]
fn table_of_many_clients_reaches_a_slow_reader_whole() {
    session(Access::Admin, 20_000, |peer| {
        peer.welcome();
        let mut out = Vec::new();
        frontend::query(&mut out, b"SHOW CLIENTS");
        peer.send(&out);
        thread::sleep(Duration::from_millis(200));
        let unsent = Arc::strong_count(&peer.name);
        assert!(
            unsent > 10_000,
            "{unsent} rows left though the client does not read"
        );
        let replies = peer.replies();
        assert_eq!(
            replies.iter().filter(|(tag, _)| *tag == b'D').count(),
            20_000
        );
        assert_eq!(replies.last(), Some(&(b'Z', b"I".to_vec())));
    });
}

#[test]
fn client_that_leaves_amid_a_long_answer_ends_the_session() {
    session(Access::Admin, 20_000, |peer| {
        peer.welcome();
        let mut out = Vec::new();
        frontend::query(&mut out, b"SHOW CLIENTS");
        peer.send(&out);
        assert!(peer.reply().is_some());
    });
}
