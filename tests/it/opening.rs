//! What clients hear when servers cannot be opened, as PgBouncer has it: a server's own words reach who waits, unless
//! it is only starting up or others of the pool still serve.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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
        let decided = Arc::new(AtomicBool::new(false));
        let is_decided = decided.clone();
        let server = FakeServer::start(move |mut server| {
            if server.read_startup() {
                server.stall_until(&is_decided);
                server.send(&Conversation::greeting());
                server.serve("served");
            }
        });
        let names = ["a", "b", "c", "d", "e", "f"];
        let topology = Topology::new(shards).pool_size(8);
        let topology = names.iter().fold(topology, |topology, name| {
            topology.database_at(name, server.address, &[])
        });
        let stage = Stage::pooled(topology);
        let connect = |name: &&str| {
            let mut client = Client::connect(stage.address());
            client.send(&startup(
                PROTOCOL_3_0,
                &[("user", "postgres"), ("database", name)],
            ));
            client
        };
        let clients: Vec<Client> = (0..8).flat_map(|_| names.iter().map(connect)).collect();
        wait_until("as many are being opened as may be", || {
            server.connections() >= 32
        });
        assert!(!wait::holds_within(Duration::from_millis(500), || server
            .connections()
            > 32));
        decided.store(true, Ordering::Release);
        for mut client in clients {
            assert_eq!(client.reply().status, b'I');
            assert_eq!(client.value("select 1"), "served");
        }
    }
);
