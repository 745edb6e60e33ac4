//! Several hosts for one database. Each claim holds for PgBouncer, too.

use crate::support::drop_in::*;
use crate::support::second::Second;
use crate::support::*;

/// How many of four sessions the second of two hosts serves.
fn at_the_second(brand: Brand, keys: &str) -> usize {
    let database = Postgres::shared().database();
    let second = Second::start(&database);
    let (port, name) = (database.postgres.address().port(), &database.name);
    let lines = format!(
        "[databases]\nmany = host=127.0.0.1,{} port={port} dbname={name} {keys}",
        second.address
    );
    let drop_in = DropIn::start(brand, database, &lines);
    let mut clients = [(); 4].map(|()| Client::login(drop_in.address, "many"));
    let served = clients.each_mut().map(|client| second.serves(client));
    served.iter().filter(|it| **it).count()
}

drop_in!(servers_go_round_the_hosts, |brand| {
    assert_eq!(at_the_second(brand, ""), 2);
});

drop_in!(
    servers_go_round_the_hosts_if_told_so,
    since(1, 24),
    |brand| {
        assert_eq!(at_the_second(brand, "load_balance_hosts=round-robin"), 2);
    }
);

drop_in!(
    without_balance_servers_stay_at_the_first_host,
    since(1, 24),
    |brand| {
        assert_eq!(at_the_second(brand, "load_balance_hosts=disable"), 0);
    }
);

drop_in!(balance_is_one_of_two_words, since(1, 24), |brand| {
    for (word, starts) in [("disable", true), ("round-robin", true), ("random", false)] {
        let database = Postgres::shared().database();
        let lines =
            format!("[databases]\nmany = host=127.0.0.1,127.0.0.2 load_balance_hosts={word}");
        let started = DropIn::try_start(brand, database, &lines);
        assert_eq!(started.is_ok(), starts, "{word}");
    }
});

drop_in!(balance_is_told_of_lists_alone, since(1, 24), |brand| {
    let database = Postgres::shared().database();
    let port = database.postgres.address().port();
    let lines = format!(
        "[databases]\none = host=127.0.0.1 port={port}\n\
         many = host=127.0.0.1,127.0.0.2 port={port}"
    );
    let drop_in = DropIn::start(brand, database, &lines);
    let table = drop_in.console("SHOW DATABASES").table();
    let told = |name: &str| {
        let row = table.iter().find(|row| row["name"] == name).expect("a row");
        (row["host"].clone(), row.get("load_balance_hosts").cloned())
    };
    assert_eq!(told("one"), ("127.0.0.1".into(), None));
    let balanced = Some("round-robin".into());
    assert_eq!(told("many"), ("127.0.0.1,127.0.0.2".into(), balanced));
});

drop_in!(change_of_balance_replaces_servers, since(1, 24), |brand| {
    let database = Postgres::shared().database();
    let (port, name) = (database.postgres.address().port(), &database.name);
    let lines = format!(
        "pool_mode = transaction\n[databases]\n\
         many = host=127.0.0.1,127.0.0.1 port={port} dbname={name} load_balance_hosts=disable"
    );
    let drop_in = DropIn::start(brand, database, &lines);
    let mut client = Client::login(drop_in.address, "many");
    let before = client.value("select pg_backend_pid()");
    assert_eq!(client.value("select pg_backend_pid()"), before);
    let reply = drop_in.reload_with(
        "load_balance_hosts=disable",
        "load_balance_hosts=round-robin",
    );
    assert_eq!(reply.complete, ["RELOAD"]);
    assert_ne!(client.value("select pg_backend_pid()"), before);
});

// Later ones stay at an address of version 6 that nobody listens at.
drop_in!(
    host_may_be_a_name_that_every_machine_has,
    until(1, 24),
    |brand| {
        let database = Postgres::shared().database();
        let (port, name) = (database.postgres.address().port(), &database.name);
        let lines = format!(
            "server_login_retry = 1\n[databases]\nnear = host=localhost port={port} dbname={name}"
        );
        let drop_in = DropIn::start(brand, database, &lines);
        let mut client = Client::login(drop_in.address, "near");
        assert_eq!(client.value("select 'served'"), "served");
    }
);
