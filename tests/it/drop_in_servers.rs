//! Servers that refuse, that speak unasked, that are checked and kept. Each claim holds for PgBouncer, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::drop_in::*;
use crate::support::peer::Conversation;
use crate::support::wait::holds_within;
use crate::support::wire::*;
use crate::support::*;

const PID: &str = "select pg_backend_pid()";

#[track_caller]
fn start(brand: Brand, lines: &str) -> DropIn {
    DropIn::start(brand, Postgres::shared().database(), lines)
}

/// A pooler in transaction mode whose entry `fake` leads to a scripted server.
#[track_caller]
fn start_before(brand: Brand, server: &FakeServer, lines: &str) -> DropIn {
    let port = server.address.port();
    let fake = format!("[databases]\nfake = host=127.0.0.1 port={port}");
    start(brand, &format!("pool_mode = transaction\n{lines}\n{fake}"))
}

fn login(drop_in: &DropIn) -> Client {
    Client::login(drop_in.address, "fake")
}

/// One that has sent its start-up packet.
fn knock(drop_in: &DropIn) -> Client {
    let mut client = Client::connect(drop_in.address);
    let params = [("user", "postgres"), ("database", "fake")];
    client.send(&startup(PROTOCOL_3_0, &params));
    client
}

#[track_caller]
fn wait_pool(drop_in: &DropIn, column: &str, count: u64) {
    wait_until(column, || drop_in.pools("fake", column) == count);
}

fn refuse(server: &mut Conversation, code: &str, text: &str) {
    let fields = [(b'S', "FATAL"), (b'C', code), (b'M', text)];
    server.send(&error(&fields));
}

// ---- refusals ----------------------------------------------------------------------------------------------------

drop_in!(refusal_reaches_all_who_want_in, |brand| {
    let decided = Arc::new(AtomicBool::new(false));
    let is_decided = decided.clone();
    let server = FakeServer::start(move |mut server| {
        if server.read_startup() {
            server.stall_until(&is_decided);
            refuse(&mut server, "28000", "no way in");
        }
    });
    let drop_in = start_before(brand, &server, "default_pool_size = 1");
    let clients = [(); 3].map(|()| knock(&drop_in));
    wait_pool(&drop_in, "cl_waiting", 3);
    decided.store(true, Ordering::Release);
    for mut client in clients {
        client.reply().assert_fatal("no way in");
    }
    assert_eq!(server.connections(), 1);
});

/// A server whose first connection serves until `breaks`; the next ones are refused with `code` so often, once `decided`.
fn door(
    code: &'static str,
    refusals: usize,
    breaks: &Arc<AtomicBool>,
    decided: &Arc<AtomicBool>,
) -> FakeServer {
    let (breaks, decided, count) = (breaks.clone(), decided.clone(), AtomicUsize::new(0));
    FakeServer::start(move |mut server| {
        let number = count.fetch_add(1, Ordering::AcqRel);
        if number == 0 {
            if server.login() {
                server.stall_until(&breaks);
            }
        } else if server.read_startup() {
            server.stall_until(&decided);
            if number <= refusals {
                return refuse(&mut server, code, "no way in");
            }
            server.send(&Conversation::greeting());
            server.serve("at last");
        }
    })
}

/// Clients that are in and, as the only server has gone, wait for another one.
fn clients_in_line(drop_in: &DropIn, breaks: &AtomicBool) -> [Client; 3] {
    let mut clients = [(); 3].map(|()| login(drop_in));
    breaks.store(true, Ordering::Release);
    wait_pool(drop_in, "sv_idle", 0);
    for client in &mut clients {
        client.send(&query("select 1"));
    }
    wait_pool(drop_in, "cl_waiting", 3);
    clients
}

// Before, only those who wanted in.
drop_in!(refusal_reaches_all_who_wait, since(1, 24), |brand| {
    let [breaks, decided] = [(); 2].map(|()| Arc::<AtomicBool>::default());
    let server = door("28000", usize::MAX, &breaks, &decided);
    let drop_in = start_before(brand, &server, "default_pool_size = 1");
    let clients = clients_in_line(&drop_in, &breaks);
    decided.store(true, Ordering::Release);
    for mut client in clients {
        client.reply().assert_fatal("no way in");
    }
});

drop_in!(clients_wait_for_a_server_that_starts_up, |brand| {
    let [breaks, decided] = [(); 2].map(|()| Arc::<AtomicBool>::default());
    let server = door("57P03", 2, &breaks, &decided);
    let lines = "default_pool_size = 1\nserver_login_retry = 0.1";
    let drop_in = start_before(brand, &server, lines);
    let clients = clients_in_line(&drop_in, &breaks);
    decided.store(true, Ordering::Release);
    for mut client in clients {
        assert_eq!(client.reply().value(), "at last");
    }
    assert_eq!(server.connections(), 1 + 2 + 1);
});

drop_in!(clients_wait_while_another_server_serves, |brand| {
    let is_first = AtomicBool::new(true);
    let server = FakeServer::start(move |mut server| {
        if !is_first.swap(false, Ordering::AcqRel) {
            if server.read_startup() {
                refuse(&mut server, "53300", "full");
            }
        } else if server.login() {
            while let Some(request) = server.next_request() {
                let status = match &*request.body {
                    b"begin\0" => b'T',
                    _ => b'I',
                };
                server.send(&[complete("DONE"), ready(status)].concat());
            }
        }
    });
    let lines = "default_pool_size = 2\nserver_login_retry = 0.1";
    let drop_in = start_before(brand, &server, lines);
    let (mut holder, mut late) = (login(&drop_in), login(&drop_in));
    assert_eq!(holder.query("begin").status, b'T');
    late.send(&query("select 1"));
    wait_until("it has been refused twice", || server.connections() > 3);
    assert!(late.has_nothing_to_read());
    assert_eq!(holder.query("commit").status, b'I');
    assert_eq!(late.reply().complete, ["DONE"]);
});

drop_in!(
    client_that_was_welcomed_waits_for_a_server_that_is_down,
    |brand| {
        let postgres = Postgres::own();
        let lines = "pool_mode = transaction\nserver_login_retry = 0.1\nquery_wait_timeout = 1";
        let drop_in = DropIn::start(brand, postgres.database(), lines);
        let mut client = drop_in.client();
        client.value("select 1");
        postgres.kill();
        let name = &drop_in.database.name;
        wait_until("the server has gone", || {
            drop_in.pools(name, "sv_idle") == 0
        });
        client.query("select 2").assert_fatal("query_wait_timeout");
        let attempts = drop_in.log().matches("connect failed").count();
        assert!(attempts > 1, "{attempts} attempts");
    }
);

// ---- servers that speak unasked ----------------------------------------------------------------------------------

/// A server that answers once, says something while it is idle, and goes on; later ones answer `another`.
fn talker(words: Vec<u8>, speaks: &Arc<AtomicBool>, spoken: &Arc<AtomicBool>) -> FakeServer {
    let (speaks, spoken) = (speaks.clone(), spoken.clone());
    let is_first = AtomicBool::new(true);
    FakeServer::start(move |mut server| {
        let is_first = is_first.swap(false, Ordering::AcqRel);
        if !server.login() {
            return;
        }
        if !is_first {
            return server.serve("another");
        }
        if server.next_request().is_some() {
            server.send(&Conversation::one_row("first"));
            server.stall_until(&speaks);
            server.send(&words);
            spoken.store(true, Ordering::Release);
            server.serve("the same");
        }
    })
}

/// Its client after it has spoken.
fn client_of_a_talker(drop_in: &DropIn, speaks: &AtomicBool, spoken: &AtomicBool) -> Client {
    let mut client = login(drop_in);
    assert_eq!(client.value("select 1"), "first");
    wait_pool(drop_in, "sv_idle", 1);
    speaks.store(true, Ordering::Release);
    wait_until("it has spoken", || spoken.load(Ordering::Acquire));
    client
}

drop_in!(
    server_that_changes_a_parameter_unasked_is_replaced,
    |brand| {
        let [speaks, spoken] = [(); 2].map(|()| Arc::<AtomicBool>::default());
        let words = parameter_status("TimeZone", "Asia/Tokyo");
        let server = talker(words, &speaks, &spoken);
        let drop_in = start_before(brand, &server, "");
        let mut client = client_of_a_talker(&drop_in, &speaks, &spoken);
        wait_pool(&drop_in, "sv_idle", 0);
        assert_eq!(client.value("select 2"), "another");
        assert_eq!(client.params["TimeZone"], "GMT");
    }
);

drop_in!(notification_for_nobody_is_dropped, |brand| {
    let [speaks, spoken] = [(); 2].map(|()| Arc::<AtomicBool>::default());
    let words = message(b'A', b"\0\0\0\x2achannel\0payload\0");
    let server = talker(words.repeat(3), &speaks, &spoken);
    let drop_in = start_before(brand, &server, "");
    let mut client = client_of_a_talker(&drop_in, &speaks, &spoken);
    assert_eq!(client.value("select 2"), "the same");
    assert_eq!(server.connections(), 1);
});

// ---- checks ------------------------------------------------------------------------------------------------------

drop_in!(server_that_was_idle_for_long_is_checked_first, |brand| {
    let lines = "pool_mode = transaction\ndefault_pool_size = 1\nserver_check_delay = 3600\n\
                 server_check_query = set work_mem = '5MB'";
    let drop_in = start(brand, lines);
    let set_delay = |span: &str| {
        let set = drop_in.console(&format!("SET server_check_delay = '{span}'"));
        assert!(set.error.is_none(), "{set:?}");
    };
    let in_pool = |column: &str| drop_in.pools(&drop_in.database.name, column);
    let mut client = drop_in.client();
    let pid = client.value(&format!("set work_mem = '77MB'; {PID}"));
    assert_eq!(client.value("show work_mem"), "77MB", "no check so soon");
    set_delay("0.2");
    wait_until("it has been idle for long", || in_pool("sv_used") == 1);
    assert_eq!(in_pool("sv_idle"), 0);
    let servers = drop_in.console("SHOW SERVERS").table();
    assert_eq!(servers[0]["state"], "used");
    assert_eq!(client.value("show work_mem"), "5MB");
    assert_eq!(client.value(PID), pid);
});

drop_in!(
    servers_are_not_checked_by_an_empty_query_of_the_file,
    |brand| {
        for (check, is_checked) in [("select 'check'", true), ("", false)] {
            let requests = Arc::new(AtomicUsize::new(0));
            let count = requests.clone();
            let server = FakeServer::start(move |mut server| {
                if server.login() {
                    while server.next_request().is_some() {
                        count.fetch_add(1, Ordering::AcqRel);
                        server.send(&Conversation::one_row("served"));
                    }
                }
            });
            let lines = format!("server_check_delay = 0\nserver_check_query = {check}");
            let drop_in = start_before(brand, &server, &lines);
            let mut client = login(&drop_in);
            for _ in 0..3 {
                assert_eq!(client.value("select 1"), "served");
            }
            let requests = requests.load(Ordering::Acquire);
            assert_eq!(requests > 3, is_checked, "{requests} by {check:?}");
            if !is_checked {
                let idle = ["sv_idle", "sv_used"].map(|column| drop_in.pools("fake", column));
                assert_eq!(idle, [1, 0]);
            }
        }
    }
);

// ---- switches ----------------------------------------------------------------------------------------------------

drop_in!(
    nought_switches_reserve_idle_timeout_and_notice_off,
    |brand| {
        let mut lines = "pool_mode = transaction\ndefault_pool_size = 1\nreserve_pool_size = 1\n\
                     reserve_pool_timeout = 0\nserver_idle_timeout = 0"
            .to_owned();
        if !brand.is_before((1, 25)) {
            lines += "\nquery_wait_notify = 0";
        }
        let drop_in = start(brand, &lines);
        let (mut holder, mut late) = (drop_in.client(), drop_in.client());
        let pid = holder.value(&format!("begin; {PID}"));
        late.send(&query(PID));
        drop_in.wait_queued(1);
        let is_served = || !late.has_nothing_to_read();
        assert!(!holds_within(Duration::from_millis(800), is_served));
        assert_eq!(drop_in.database.backends("true"), 1, "no reserve");
        assert_eq!(holder.query("commit").status, b'I');
        let reply = late.reply();
        assert_eq!((reply.value(), reply.notices.len()), (pid.clone(), 0));
        let has_gone = || drop_in.database.backends(&format!("pid = {pid}")) == 0;
        assert!(!holds_within(Duration::from_millis(800), has_gone));
    }
);
