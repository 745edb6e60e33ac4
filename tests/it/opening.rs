//! What clients hear when servers cannot be opened, as PgBouncer has it: a server's own words reach who waits, unless
//! it is only starting up or others of the pool still serve.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::canary::Span;
use crate::support::peer::Conversation;
use crate::support::wire::*;
use crate::support::*;

const WAITERS: usize = 6;

/// A server whose first connection serves until `breaks`; later ones are refused with `code`, once `decided`.
#[derive(Default)]
struct Door {
    breaks: AtomicBool,
    decided: AtomicBool,
    /// How many are refused.
    refusals: AtomicUsize,
}

impl Door {
    fn refusing(count: usize) -> Arc<Door> {
        let door = Door::default();
        door.refusals.store(count, Ordering::Release);
        Arc::new(door)
    }

    fn start(self: &Arc<Door>, code: &'static str) -> FakeServer {
        let (door, is_first) = (self.clone(), AtomicBool::new(true));
        FakeServer::start(move |mut server| {
            if is_first.swap(false, Ordering::AcqRel) {
                if server.login() {
                    server.stall_until(&door.breaks);
                }
                return;
            }
            if server.read_startup() {
                server.stall_until(&door.decided);
                door.answer(&mut server, code);
            }
        })
    }

    fn answer(&self, server: &mut Conversation, code: &str) {
        let one_less = |left: usize| left.checked_sub(1);
        let left = &self.refusals;
        if left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less)
            .is_ok()
        {
            server.send(&error(&[
                (b'S', "FATAL"),
                (b'C', code),
                (b'M', "no way in"),
            ]));
        } else {
            server.send(&Conversation::greeting());
            server.serve("at last");
        }
    }
}

/// A pool of one on `server`.
fn stage_on(shards: usize, server: SocketAddr, retry: &str) -> Stage {
    let topology = Topology::new(shards)
        .pool_size(1)
        .set("server_login_retry", retry);
    Stage::pooled(topology.database_at("fake", server, &[]))
}

/// Clients that have logged in and, after the only server has gone, wait in line while another one is being opened.
fn clients_in_line(stage: &Stage, door: &Door) -> Vec<Client> {
    let login = |_| Client::login(stage.address(), "fake");
    let mut clients: Vec<Client> = (0..WAITERS).map(login).collect();
    door.breaks.store(true, Ordering::Release);
    wait_until("the server has gone", || {
        stage.pools("fake", "sv_idle") == 0
    });
    for client in &mut clients {
        client.send(&query("select 1"));
    }
    wait_until("all wait", || {
        stage.pools("fake", "cl_waiting") == WAITERS as u64
    });
    clients
}

both_shards!(
    words_of_a_server_that_refuses_reach_all_who_wait,
    |shards| {
        // pool of 1, 6 clients on whichever shards
        let door = Door::refusing(usize::MAX);
        let server = door.start("28000");
        let stage = stage_on(shards, server.address, "60 s");
        let clients = clients_in_line(&stage, &door);
        let mut late = Client::login(stage.address(), "fake");
        door.decided.store(true, Ordering::Release);
        for mut client in clients {
            let reply = client.reply();
            reply.assert_fatal("no way in");
            assert_eq!(reply.code(), "28000");
        }
        // Nobody tries again for a while, and who asks meanwhile is told why.
        late.query("select 1").assert_fatal(
            "server login has been failing, cached error: no way in (server_login_retry)",
        );
        assert_eq!(server.connections(), 2);
    }
);

both_shards!(
    words_of_a_server_that_refuses_are_told_when_the_other_attempt_ends,
    |shards| {
        // pool of 2, both of which are being opened: one is refused, the other hears nothing for 2 s
        let breaks = Arc::new(AtomicBool::new(false));
        let (broken, connections) = (breaks.clone(), Arc::new(AtomicUsize::new(0)));
        let server = FakeServer::start(move |mut server| {
            match connections.fetch_add(1, Ordering::AcqRel) {
                0 => {
                    server.login();
                    server.stall_until(&broken);
                }
                1 if server.read_startup() => {
                    let both = || connections.load(Ordering::Acquire) > 2;
                    assert!(wait::holds_within(wait::PATIENCE, both));
                    let words = [(b'S', "FATAL"), (b'C', "28000"), (b'M', "no way in")];
                    server.send(&error(&words));
                }
                // Until the pooler hangs up.
                _ if server.read_startup() => drop(server.read()),
                _ => {}
            }
        });
        let topology = Topology::new(shards)
            .pool_size(2)
            .set("server_login_retry", "60 s")
            .set("server_connect_timeout", "2 s");
        let stage = Stage::pooled(topology.database_at("fake", server.address, &[]));
        let login = |_| Client::login(stage.address(), "fake");
        let mut clients: Vec<Client> = (0..WAITERS).map(login).collect();
        breaks.store(true, Ordering::Release);
        wait_until("the server has gone", || {
            stage.pools("fake", "sv_idle") == 0
        });
        for client in &mut clients {
            client.send(&query("select 1"));
        }
        for mut client in clients {
            client.reply().assert_fatal("no way in");
        }
    }
);

both_shards!(
    words_of_an_earlier_refusal_are_not_told_after_a_failure_of_another_kind,
    |shards| {
        // pool of 2: a second server is refused while the first one works; then that one goes, and the next says nothing
        let (is_refused, breaks) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (refused, broken, count) = (is_refused.clone(), breaks.clone(), AtomicUsize::new(0));
        let server =
            FakeServer::start(
                move |mut server| match count.fetch_add(1, Ordering::AcqRel) {
                    0 if server.login() => {
                        let request = server.next_request();
                        assert!(
                            wait::holds_within(wait::PATIENCE, || refused.load(Ordering::Acquire))
                        );
                        server.send(&Conversation::one_row("served"));
                        let again = request.and_then(|_| server.next_request());
                        server.send(&Conversation::one_row("served"));
                        again.iter().for_each(|_| server.stall_until(&broken));
                    }
                    1 if server.read_startup() => {
                        let words = [(b'S', "FATAL"), (b'C', "53300"), (b'M', "no way in")];
                        server.send(&error(&words));
                        drop(server);
                        refused.store(true, Ordering::Release);
                    }
                    2 => {
                        server.read_startup();
                    }
                    _ if server.login() => server.serve("at last"),
                    _ => {}
                },
            );
        let topology = Topology::new(shards)
            .pool_size(2)
            .set("server_login_retry", "4 s");
        let stage = Stage::pooled(topology.database_at("fake", server.address, &[]));
        let login = |_| Client::login(stage.address(), "fake");
        let [mut first, mut second] = [0, 1].map(login);
        first.send(&query("select 1"));
        wait_until("it is under way", || stage.pools("fake", "sv_active") == 1);
        // Served by the first server before the next attempt is due, a sixteenth of that retry time later.
        second.send(&query("select 2"));
        assert_eq!(first.reply().value(), "served");
        assert_eq!(second.reply().value(), "served");
        breaks.store(true, Ordering::Release);
        wait_until("the servers have gone", || {
            ["sv_idle", "sv_active", "sv_login"]
                .iter()
                .all(|column| stage.pools("fake", column) == 0)
        });
        // Until that time is over, who asks hears of the refusal.
        wait::pace_until(Instant::now() + Duration::from_millis(400));
        first.send(&query("select 3"));
        assert_eq!(first.reply().value(), "at last");
    }
);

both_shards!(clients_wait_while_the_server_starts_up, |shards| {
    // pool of 1, 6 clients; three attempts are told to come later
    let door = Door::refusing(3);
    let server = door.start("57P03");
    let stage = stage_on(shards, server.address, "50 ms");
    let clients = clients_in_line(&stage, &door);
    door.decided.store(true, Ordering::Release);
    for mut client in clients {
        assert_eq!(client.reply().value(), "at last");
    }
    assert_eq!(server.connections(), 1 + 3 + 1);
});

both_shards!(clients_wait_while_others_of_the_pool_serve, |shards| {
    // pool of 2: the first server serves, the second is refused
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    let server = FakeServer::start(move |mut server| {
        if count.fetch_add(1, Ordering::AcqRel) > 0 {
            if server.read_startup() {
                server.send(&error(&[(b'S', "FATAL"), (b'C', "53300"), (b'M', "full")]));
            }
        } else if server.login() {
            while let Some(request) = server.next_request() {
                let status = if request.body == b"begin\0" {
                    b'T'
                } else {
                    b'I'
                };
                server.send(&[complete("DONE"), ready(status)].concat());
            }
        }
    });
    let topology = Topology::new(shards)
        .pool_size(2)
        .set("server_login_retry", "50 ms");
    let stage = Stage::pooled(topology.database_at("fake", server.address, &[]));
    let mut holder = Client::login(stage.address(), "fake");
    assert_eq!(holder.query("begin").status, b'T');
    let mut waiter = Client::login(stage.address(), "fake");
    waiter.send(&query("select 1"));
    wait_until("opening another has failed twice", || {
        server.connections() >= 3
    });
    assert!(waiter.has_nothing_to_read());
    assert_eq!(holder.query("commit").status, b'I');
    assert_eq!(waiter.reply().complete, ["DONE"]);
});

both_shards!(
    attempts_get_rarer_and_stop_with_the_first_that_works,
    |shards| {
        // pool of 1; five pauses of 50, 100, 200, 400 and 800 ms, and a tenth more at most
        let door = Door::refusing(5);
        let server = door.start("57P03");
        let stage = stage_on(shards, server.address, "800 ms");
        let clients = clients_in_line(&stage, &door);
        let started = Instant::now();
        door.decided.store(true, Ordering::Release);
        for mut client in clients {
            assert_eq!(client.reply().value(), "at last");
        }
        let taken = started.elapsed();
        assert!(taken >= Duration::from_millis(1550), "{taken:?}");
        assert_eq!(server.connections(), 1 + 5 + 1, "one at a time");
    }
);

both_shards!(
    pools_of_one_machine_are_opened_32_servers_at_a_time,
    |shards| {
        // 6 pools of 8 that all want all of their servers at once
        let (server, decided) = undecided_server();
        let names = ["a", "b", "c", "d", "e", "f"];
        let stage = Stage::pooled(pools_at(server.address, shards, &names));
        let clients: Vec<Client> = (0..8)
            .flat_map(|_| names.map(|name| knocking_at(&stage, name)))
            .collect();
        wait_until("as many are being opened as may be", || {
            server.connections() >= 32
        });
        assert!(!wait::holds_within(Duration::from_millis(500), || server
            .connections()
            > 32));
        decided.store(true, Ordering::Release);
        clients.into_iter().for_each(assert_served);
    }
);

both_shards!(
    reload_that_takes_a_pool_to_another_machine_counts_its_openings_there,
    |shards| {
        // 4 pools of 8 want all of their servers of a machine that does not answer, a fifth one of them wants one
        let (slow, decided) = undecided_server();
        let other = FakeServer::start(|mut server| {
            if server.login() {
                server.serve("served");
            }
        });
        let names = ["a", "b", "c", "d"];
        let topology = pools_at(slow.address, shards, &names);
        let stage = Stage::pooled(topology.clone().database_at("moved", slow.address, &[]));
        let crowd: Vec<Client> = (0..8)
            .flat_map(|_| names.map(|name| knocking_at(&stage, name)))
            .collect();
        wait_until("no more may be opened there", || slow.connections() >= 32);
        let moved = knocking_at(&stage, "moved");
        wait_until("it waits", || stage.pools("moved", "cl_waiting") == 1);
        stage.rewrite(&topology.database_at("moved", other.address, &[]));
        assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
        assert_served(moved);
        assert_eq!((slow.connections(), other.connections()), (32, 1));
        decided.store(true, Ordering::Release);
        crowd.into_iter().for_each(assert_served);
    }
);

/// A server that lets nobody in until that is decided, then everybody.
fn undecided_server() -> (FakeServer, Arc<AtomicBool>) {
    let decided = Arc::new(AtomicBool::new(false));
    let is_decided = decided.clone();
    let server = FakeServer::start(move |mut server| {
        if server.read_startup() {
            server.stall_until(&is_decided);
            server.send(&Conversation::greeting());
            server.serve("served");
        }
    });
    (server, decided)
}

/// Pools of 8 on one server.
fn pools_at(server: SocketAddr, shards: usize, names: &[&str]) -> Topology {
    let topology = Topology::new(shards).pool_size(8);
    let at = |topology: Topology, name: &&str| topology.database_at(name, server, &[]);
    names.iter().fold(topology, at)
}

/// A client of `database` that has sent its start-up packet.
fn knocking_at(stage: &Stage, database: &str) -> Client {
    let mut client = Client::connect(stage.address());
    let who = [("user", "postgres"), ("database", database)];
    client.send(&startup(PROTOCOL_3_0, &who));
    client
}

/// Clients of a pool of 50 that all want in at once.
const CROWD: usize = 200;
/// After a failure nobody tries for a sixteenth of this, then an eighth, and so on.
const RETRY: Duration = Duration::from_millis(320);

/// How many may be under way before anything is known of the server.
const FIRST: usize = 8;

/// Before a server that plays `script` on every connection, on the first [`FIRST`] once all of them have come.
fn crowded_stage(
    shards: usize,
    retry: Duration,
    script: impl Fn(Conversation) + Send + Sync + 'static,
) -> (Stage, FakeServer, Arrivals) {
    let arrivals = Arrivals::default();
    let noted = arrivals.clone();
    let server = FakeServer::start(move |server| {
        let count = || noted.lock().unwrap().len();
        noted.lock().unwrap().push(Instant::now());
        wait_until("the first have come", || count() >= FIRST);
        script(server);
    });
    let topology = Topology::new(shards)
        .pool_size(50)
        .set("server_login_retry", format!("{} ms", retry.as_millis()));
    let stage = Stage::pooled(topology.database_at("fake", server.address, &[]));
    (stage, server, arrivals)
}

/// When each connection came to a server, in order.
type Arrivals = Arc<Mutex<Vec<Instant>>>;

/// Clients that have sent their start-up packets.
fn knocking(stage: &Stage, count: usize) -> Vec<Client> {
    (0..count).map(|_| knocking_at(stage, "fake")).collect()
}

/// [`FIRST`] at most came together; then one at a time, of all shards, at growing intervals. A shard's clock
/// stands still during a turn: by that long it may see a failure too early.
fn assert_no_herd(stage: &Stage, arrivals: &Arrivals) {
    let table = stage.console("SHOW SHARDS").table();
    let turns = table.iter().map(|row| row["longest_turn_us"].parse());
    let turn = Duration::from_micros(turns.flatten().max().expect("a shard"));
    let arrivals = arrivals.lock().unwrap().clone();
    let gaps = arrivals.windows(2).map(|pair| pair[1] - pair[0]);
    let gaps: Vec<_> = gaps.collect();
    for (number, gap) in gaps.iter().skip(FIRST - 1).enumerate() {
        let pause = RETRY / 16 * (1 << number.min(4));
        assert!(
            *gap + turn >= pause,
            "{gap:?} instead of {pause:?} in {gaps:?}, longest turn {turn:?}"
        );
    }
}

both_shards!(crowd_before_a_server_that_hangs_up_is_no_herd, |shards| {
    let (stage, server, arrivals) = crowded_stage(shards, RETRY, drop);
    let mut crowd = knocking(&stage, CROWD);
    wait_until("16 attempts", || server.connections() >= 16);
    assert_no_herd(&stage, &arrivals);
    assert!(crowd.iter_mut().all(|client| client.has_nothing_to_read()));
});

both_shards!(
    crowd_that_comes_again_when_it_is_refused_is_no_herd,
    |shards| {
        let (stage, server, arrivals) = crowded_stage(shards, RETRY, |mut server| {
            if server.read_startup() {
                server.send(&error(&[(b'S', "FATAL"), (b'C', "28000"), (b'M', "no")]));
            }
        });
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while server.connections() < 16 {
                        for mut client in knocking(&stage, CROWD / 8) {
                            client.reply().fatal();
                        }
                    }
                });
            }
        });
        assert_no_herd(&stage, &arrivals);
    }
);

both_shards!(crowd_is_served_promptly_when_the_server_is_back, |shards| {
    let is_back = Arc::new(AtomicBool::new(false));
    let works = is_back.clone();
    let (stage, server, arrivals) = crowded_stage(shards, RETRY, move |mut server| {
        if works.load(Ordering::Acquire) && server.login() {
            server.serve("at last");
        }
    });
    let crowd = knocking(&stage, CROWD);
    wait_until("the longest pauses", || server.connections() >= 14);
    let (since, span) = (Instant::now(), Span::begin());
    is_back.store(true, Ordering::Release);
    thread::scope(|scope| {
        for mut client in crowd {
            scope.spawn(move || {
                assert_eq!(client.reply().status, b'I');
                assert_eq!(client.value("select 1"), "at last");
            });
        }
    });
    let arrivals = arrivals.lock().unwrap().clone();
    let after: Vec<_> = arrivals.iter().filter(|at| **at > since).collect();
    // The pool, and those that had been dialled before.
    assert!(
        (1..=50 + FIRST).contains(&after.len()),
        "{} connections",
        after.len()
    );
    // A pause, up to a tenth more, and what the machine takes.
    let waited = *after[0] - since;
    let stalled = span.stalled();
    assert!(
        waited < RETRY + Duration::from_secs(2) + stalled,
        "{waited:?}, stalled {stalled:?}"
    );
});

both_shards!(
    server_that_hangs_up_behind_its_greeting_is_not_opened_again_and_again,
    |shards| {
        // at first it serves; then it lets everybody in and hangs up
        let breaks = Arc::new(AtomicBool::new(false));
        let broken = breaks.clone();
        let (stage, server, _) = crowded_stage(shards, 10 * RETRY, move |mut server| {
            if server.login() {
                server.stall_until(&broken);
            }
        });
        let mut crowd = knocking(&stage, CROWD);
        for client in &mut crowd {
            assert_eq!(client.reply().status, b'I');
        }
        breaks.store(true, Ordering::Release);
        wait_until("the servers have gone", || {
            stage.pools("fake", "sv_idle") == 0
        });
        let before = server.connections();
        for client in &mut crowd {
            client.send_anyway(&query("select 1"));
        }
        // Every pause, 0.2 s and more, is followed by one attempt and, should it seem to work, by 8 at a time until one has
        // failed. A server that hangs up late may be given to a client, who is lost with it.
        let most = 2 * CROWD;
        assert!(
            !wait::holds_within(Duration::from_secs(2), || server.connections()
                > before + most),
            "more than {most} connections"
        );
    }
);

/// A server whose first connection hears no more than the start-up packet, says `words` and takes its time to leave; later
/// ones are served.
struct Sluggard {
    server: FakeServer,
    is_told: Arc<AtomicBool>,
    may_leave: Arc<AtomicBool>,
}

impl Sluggard {
    fn saying(words: Vec<u8>) -> Sluggard {
        let [is_told, may_leave] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let (told, leave) = (is_told.clone(), may_leave.clone());
        let is_first = AtomicBool::new(true);
        let server = FakeServer::start(move |mut server| {
            if !is_first.swap(false, Ordering::AcqRel) {
                if server.login() {
                    server.serve("served");
                }
                return;
            }
            server.read_startup();
            server.send(&words);
            server.wait_closed();
            told.store(true, Ordering::Release);
            server.stall_until(&leave);
        });
        Sluggard {
            server,
            is_told,
            may_leave,
        }
    }

    /// A pool of one on it, and a client that has asked to be let in.
    fn stage(&self, topology: Topology) -> (Stage, Client) {
        let topology = topology.pool_size(1).set("server_login_retry", "50 ms");
        let stage = Stage::pooled(topology.database_at("fake", self.server.address, &[]));
        let client = knocking(&stage, 1).remove(0);
        (stage, client)
    }

    fn wait_told(&self) {
        wait_until("it has been hung up on", || {
            self.is_told.load(Ordering::Acquire)
        });
    }

    /// It still has the first connection, and sees no second one before it has let that go.
    fn leaves(&self) {
        self.wait_told();
        let has_another = || self.server.connections() > 1;
        assert!(!wait::holds_within(Duration::from_secs(1), has_another));
        self.may_leave.store(true, Ordering::Release);
    }
}

fn assert_served(mut client: Client) {
    assert_eq!(client.reply().status, b'I');
    assert_eq!(client.value("select 1"), "served");
}

both_shards!(
    place_of_an_opening_that_took_too_long_is_free_once_the_server_has_hung_up,
    |shards| {
        // pool of 1 before a server that is slow in its start-up
        let server = Sluggard::saying(Vec::new());
        let topology = Topology::new(shards).set("server_connect_timeout", "300 ms");
        let (_stage, client) = server.stage(topology);
        server.leaves();
        assert_served(client);
    }
);

both_shards!(
    place_of_an_opening_that_failed_is_free_once_the_server_has_hung_up,
    |shards| {
        // pool of 1 before a server whose greeting makes no sense
        let server = Sluggard::saying(complete("WHAT"));
        let (_stage, client) = server.stage(Topology::new(shards));
        server.leaves();
        assert_served(client);
    }
);

both_shards!(
    place_of_a_server_that_never_hangs_up_is_given_away_after_close_timeout,
    |shards| {
        let server = Sluggard::saying(complete("WHAT"));
        let (stage, client) = server.stage(Topology::new(shards).set("close_timeout", "1 s"));
        let told = Instant::now();
        assert_served(client);
        assert!(told.elapsed() >= Duration::from_millis(900));
        stage.wait_log("server has not hung up, its place is given away");
        server.may_leave.store(true, Ordering::Release);
    }
);

both_shards!(
    pause_is_answered_when_the_server_has_hung_up_on_an_opening,
    |shards| {
        // pool of 1 before a server that is slow in its start-up
        let server = Sluggard::saying(Vec::new());
        let (stage, client) = server.stage(Topology::new(shards));
        wait_until("it is dialled", || server.server.connections() > 0);
        let mut console = Client::login(stage.address(), "ringbouncer");
        console.send(&query("PAUSE fake"));
        server.wait_told();
        let is_answered = || !console.has_nothing_to_read();
        assert!(!wait::holds_within(Duration::from_secs(1), is_answered));
        server.may_leave.store(true, Ordering::Release);
        assert_eq!(console.reply().complete, ["PAUSE"]);
        assert_eq!(server.server.connections(), 1);
        assert_eq!(console.query("RESUME fake").complete, ["RESUME"]);
        assert_served(client);
    }
);
