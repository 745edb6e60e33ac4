//! Servers by name: how long an answer holds, what becomes of connections to an address that is gone. The programs see an
//! `/etc/hosts` of the test's own, which only root can give them.

use std::fs::{self, File};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread;

use tempfile::TempDir;

use crate::support::drop_in::*;
use crate::support::mounts::{instead_of, may_mount};
use crate::support::postgres::Postgres;
use crate::support::second::Second;
use crate::support::wire::*;
use crate::support::*;

const NAME: &str = "server.test";
const ONE: &str = "127.0.0.1";

/// Where names are looked up: the files of a machine without a name server.
struct Names {
    directory: TempDir,
}

impl Names {
    fn new(addresses: &[&str]) -> Names {
        let directory = open_directory();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("nsswitch.conf", "hosts: files dns\n");
        // Nobody listens there: no answer comes at once.
        write(
            "resolv.conf",
            "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
        );
        write("hosts", "");
        let names = Names { directory };
        names.answer(addresses);
        names
    }

    /// A machine that knows no name itself, asks that server, and waits for its answer for longer than any test.
    fn of(server: &NameServer) -> Names {
        let names = Names::new(&[]);
        let text = format!(
            "nameserver {}\noptions timeout:30 attempts:1\n",
            server.address
        );
        fs::write(names.path("resolv.conf"), text).unwrap();
        names
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// From now on the name has these addresses: in one piece, as somebody may be reading.
    fn answer(&self, addresses: &[&str]) {
        let lines = addresses
            .iter()
            .map(|address| format!("{address} {NAME}\n"));
        let text = format!("{:\n<200}", lines.collect::<String>());
        let file = File::options()
            .write(true)
            .open(self.path("hosts"))
            .unwrap();
        file.write_all_at(text.as_bytes(), 0).unwrap();
    }

    /// A pooler that sees them. The entry `named` leads to the database by its server's name.
    #[track_caller]
    fn start(&self, brand: Brand, database: Database, more: &str) -> DropIn {
        let (name, port) = (&database.name, database.postgres.address().port());
        let entry = format!("[databases]\nnamed = host={NAME} port={port} dbname={name}\n");
        DropIn::start_with(brand, database, &format!("{more}\n{entry}"), |command| {
            let files = ["hosts", "resolv.conf", "nsswitch.conf"];
            let pairs = files.map(|name| (self.path(name), Path::new("/etc").join(name)));
            let binds = pairs.each_ref().map(|(from, to)| (&**from, &**to));
            instead_of(command, &binds);
        })
    }
}

fn database() -> Database {
    Postgres::shared().database()
}

fn named(drop_in: &DropIn) -> Client {
    Client::login(drop_in.address, "named")
}

drop_in!(name_is_looked_up_again_after_its_time, |brand| {
    if !may_mount() {
        return;
    }
    let (database, names) = (database(), Names::new(&[ONE]));
    let second = Second::start(&database);
    // Every transaction has a server of its own.
    let more = "pool_mode = transaction\nserver_lifetime = 0\ndns_max_ttl = ";
    let lasting = names.start(brand, Postgres::shared().database(), &format!("{more}3600"));
    let fleeting = names.start(brand, database, &format!("{more}1"));
    let mut clients = [&lasting, &fleeting].map(named);
    assert_eq!(
        clients.each_mut().map(|client| second.serves(client)),
        [false; 2]
    );
    names.answer(&[&second.address]);
    wait_until("the new address is used", || second.serves(&mut clients[1]));
    assert!(!second.serves(&mut clients[0]));
});

drop_in!(
    servers_at_an_address_that_is_gone_serve_nobody_else,
    |brand| {
        if !may_mount() {
            return;
        }
        let (database, names) = (database(), Names::new(&[ONE]));
        let second = Second::start(&database);
        let more = "pool_mode = transaction\ndns_max_ttl = 1";
        let drop_in = names.start(brand, database, more);
        let (mut busy, mut other) = (named(&drop_in), named(&drop_in));
        for client in [&mut busy, &mut other] {
            assert_eq!(client.query("begin").status, b'T');
        }
        names.answer(&[&second.address]);
        // PgBouncer looks a name up for a new connection only.
        wait_until("somebody is led to the new address", || {
            let mut client = named(&drop_in);
            client.query("begin");
            second.serves(&mut client)
        });
        assert_eq!(other.query("commit").complete, ["COMMIT"]);
        let old = || {
            let servers = drop_in.console("SHOW SERVERS").table().into_iter();
            servers.filter(|row| row["addr"] == ONE).collect::<Vec<_>>()
        };
        wait_until("one server is at the old address", || old().len() == 1);
        assert_eq!(old()[0]["close_needed"], "1");
        assert!(!second.serves(&mut busy));
        assert_eq!(busy.query("commit").complete, ["COMMIT"]);
        assert!(second.serves(&mut busy));
        wait_until("no server is at the old address", || old().is_empty());
    }
);

both_shards!(idle_server_at_an_address_that_is_gone_is_closed, |shards| {
    if !may_mount() {
        return;
    }
    let names = Names::new(&[ONE]);
    let nobody = "127.0.2.1";
    let more = "pool_mode = transaction\ndns_max_ttl = 1";
    let drop_in = names.start(Brand::Ringbouncer(shards), database(), more);
    let mut plain = drop_in.client();
    assert_eq!(plain.value("select 1"), "1");
    assert_eq!(named(&drop_in).value("select 1"), "1");
    drop_in.database.wait_backends(2, "true");
    names.answer(&[nobody]);
    // That of the entry with the bare address stays.
    drop_in.database.wait_backends(1, "true");
    assert_eq!(plain.value("select 'still here'"), "still here");
});

drop_in!(servers_go_round_the_addresses_of_a_name, |brand| {
    if !may_mount() {
        return;
    }
    let database = database();
    let second = Second::start(&database);
    let names = Names::new(&[ONE, &second.address]);
    let drop_in = names.start(brand, database, "pool_mode = session");
    let mut clients: Vec<_> = (0..4).map(|_| named(&drop_in)).collect();
    let served = clients.iter_mut().map(|client| second.serves(client));
    let served: Vec<_> = served.collect();
    assert_eq!(served.iter().filter(|it| **it).count(), 2, "{served:?}");
});

drop_in!(name_that_comes_to_be_known_is_used, |brand| {
    if !may_mount() {
        return;
    }
    let names = Names::new(&[]);
    let more = "dns_nxdomain_ttl = 1\nserver_login_retry = 1";
    let drop_in = names.start(brand, database(), more);
    let mut client = Client::connect(drop_in.address);
    client.send(&startup(
        PROTOCOL_3_0,
        &[("user", "postgres"), ("database", "named")],
    ));
    wait_until("it says so", || {
        drop_in.log().contains("server DNS lookup failed")
    });
    assert!(client.has_nothing_to_read());
    names.answer(&[ONE]);
    let reply = client.reply();
    assert!(reply.error.is_none(), "{reply:?}");
    assert_eq!(client.value("select 1"), "1");
});

drop_in!(name_that_is_not_known_is_left_alone_for_its_time, |brand| {
    if !may_mount() {
        return;
    }
    let names = Names::new(&[]);
    let more = "server_login_retry = 1\ndns_nxdomain_ttl = ";
    let patient = format!("client_login_timeout = 3\n{more}3600");
    let patient = names.start(brand, database(), &patient);
    let eager = names.start(brand, database(), &format!("{more}1"));
    let mut clients = [&patient, &eager].map(|drop_in| Client::connect(drop_in.address));
    for client in &mut clients {
        client.send(&startup(
            PROTOCOL_3_0,
            &[("user", "postgres"), ("database", "named")],
        ));
    }
    for drop_in in [&patient, &eager] {
        wait_until("it says so", || {
            drop_in.log().contains("server DNS lookup failed")
        });
    }
    names.answer(&[ONE]);
    assert!(clients[1].reply().error.is_none());
    clients[0]
        .reply()
        .assert_fatal("client_login_timeout (server down)");
});

// PgBouncer opens no server then.
both_shards!(known_name_that_has_no_answer_keeps_its_address, |shards| {
    if !may_mount() {
        return;
    }
    let brand = Brand::Ringbouncer(shards);
    let names = Names::new(&[ONE]);
    let more = "pool_mode = transaction\nserver_lifetime = 0\ndns_max_ttl = 1\ndns_nxdomain_ttl = 1\nserver_login_retry = 1";
    let drop_in = names.start(brand, database(), more);
    let mut client = named(&drop_in);
    assert_eq!(client.value("select 1"), "1");
    names.answer(&[]);
    wait_until("the look-up fails", || {
        let _ = client.query("select 1");
        drop_in.log().contains("server DNS lookup failed")
    });
    assert_eq!(client.value("select 1"), "1");
});

drop_in!(console_lists_names_with_their_addresses, |brand| {
    if !may_mount() {
        return;
    }
    let names = Names::new(&[ONE]);
    let drop_in = names.start(brand, database(), "");
    assert_eq!(named(&drop_in).value("select 1"), "1");
    let hosts = drop_in.console("SHOW DNS_HOSTS").table();
    let row = hosts
        .iter()
        .find(|row| row["hostname"] == NAME)
        .expect("the name");
    assert!(row["addrs"].contains(ONE), "{row:?}");
});

// ---- DNS -----------------------------------------------------------------------------------------------------------

/// What a name server does with a question for an IPv4 address.
#[derive(Clone, Copy)]
enum Answer {
    /// [`ONE`], to be forgotten at once.
    One,
    /// There is no such name (RFC 1035, RCODE 3).
    NoName,
    Silence,
}

/// A name server at an address of its own and the port of DNS.
struct NameServer {
    address: Ipv4Addr,
    /// Questions for an IPv4 address so far.
    questions: Arc<AtomicUsize>,
}

impl NameServer {
    fn start(answer: Answer) -> NameServer {
        static COUNT: AtomicU8 = AtomicU8::new(1);
        let address = Ipv4Addr::new(127, 0, 3, COUNT.fetch_add(1, Ordering::Relaxed));
        let socket = UdpSocket::bind((address, 53)).unwrap();
        let questions = Arc::<AtomicUsize>::default();
        let asked = questions.clone();
        // To the end of all tests.
        thread::spawn(move || {
            let mut packet = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut packet) {
                let (reply, is_v4) = reply(&packet[..length], answer);
                asked.fetch_add(is_v4.into(), Ordering::Relaxed);
                if !matches!(answer, Answer::Silence) {
                    let _ = socket.send_to(&reply, from);
                }
            }
        });
        NameServer { address, questions }
    }

    fn questions(&self) -> usize {
        self.questions.load(Ordering::Relaxed)
    }
}

/// The answer to one question (RFC 1035, section 4), and whether that is for an IPv4 address.
fn reply(question: &[u8], answer: Answer) -> (Vec<u8>, bool) {
    let name_length = question[12..].iter().position(|byte| *byte == 0).unwrap();
    let end = 12 + name_length + 5;
    let is_v4 = question[end - 4..end] == [0, 1, 0, 1];
    let has_one = is_v4 && matches!(answer, Answer::One);
    let code = match answer {
        Answer::NoName => 3,
        Answer::One | Answer::Silence => 0,
    };
    // Flags: a response, recursion available; one question, perhaps one answer.
    let mut reply = question[..2].to_vec();
    reply.extend([0x81, 0x80 | code, 0, 1, 0, has_one.into(), 0, 0, 0, 0]);
    reply.extend(&question[12..end]);
    if has_one {
        // The name of the question, an address, for no time, of four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
    }
    (reply, is_v4)
}

drop_in!(name_server_is_asked_when_the_answer_is_too_old, |brand| {
    if !may_mount() {
        return;
    }
    // Every transaction has a server of its own.
    let more = "pool_mode = transaction\nserver_lifetime = 0\ndns_max_ttl = ";
    let [calm, busy] = [(); 2].map(|()| NameServer::start(Answer::One));
    let lasting = Names::of(&calm).start(brand, database(), &format!("{more}3600"));
    let fleeting = Names::of(&busy).start(brand, database(), &format!("{more}1"));
    let mut clients = [&lasting, &fleeting].map(named);
    // The time that the server gives its answer, none at all, does not count.
    wait_until("it is asked for the third time", || {
        assert_eq!(
            clients.each_mut().map(|client| client.value("select 1")),
            ["1", "1"]
        );
        busy.questions() >= 3
    });
    assert_eq!(calm.questions(), 1);
});

drop_in!(name_that_does_not_exist_is_said, |brand| {
    if !may_mount() {
        return;
    }
    let server = NameServer::start(Answer::NoName);
    let more = "client_login_timeout = 2\nserver_login_retry = 1";
    let drop_in = Names::of(&server).start(brand, database(), more);
    let params = [("user", "postgres"), ("database", "named")];
    let reply = Client::connect(drop_in.address).start(PROTOCOL_3_0, &params);
    reply.assert_fatal("client_login_timeout (server down)");
    assert!(drop_in.log().contains("server DNS lookup failed"));
    assert!(server.questions() > 0);
    assert_eq!(drop_in.client().value("select 'others'"), "others");
});

drop_in!(
    name_server_that_says_nothing_holds_nobody_else_up,
    |brand| {
        if !may_mount() {
            return;
        }
        let server = NameServer::start(Answer::Silence);
        let drop_in = Names::of(&server).start(brand, database(), "client_login_timeout = 2");
        let mut waiting = Client::connect(drop_in.address);
        waiting.send(&startup(
            PROTOCOL_3_0,
            &[("user", "postgres"), ("database", "named")],
        ));
        wait_until("it is asked", || server.questions() > 0);
        assert_eq!(drop_in.client().value("select 'others'"), "others");
        assert!(waiting.reply().closed);
    }
);
