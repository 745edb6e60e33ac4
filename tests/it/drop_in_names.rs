//! Prepared statements in transaction mode: each claim holds for PgBouncer, too, which knows names from 1.21 on.

use crate::support::drop_in::*;
use crate::support::wire::*;
use crate::support::*;

/// One server, transaction mode, `kept` statements on a server.
#[track_caller]
fn start(brand: Brand, kept: u32) -> DropIn {
    let lines =
        format!("pool_mode = transaction\ndefault_pool_size = 1\nmax_prepared_statements = {kept}");
    DropIn::start(brand, Postgres::shared().database(), &lines)
}

#[track_caller]
fn prepare(client: &mut Client, name: &str, sql: &str) {
    let reply = client.exchange(&[parse(name, sql), sync()].concat());
    assert_eq!(reply.tags, "1Z", "{name}: {reply:?}");
}

fn run(client: &mut Client, name: &str) -> peer::Reply {
    client.exchange(&[run_prepared(name, &[]), sync()].concat())
}

/// What the server itself keeps, asked through the pooler.
fn kept(drop_in: &DropIn) -> String {
    let count = "select count(*) from pg_prepared_statements";
    drop_in.client().value(count)
}

/// A column of the database's line of `SHOW STATS`.
fn counted(drop_in: &DropIn, column: &str) -> u64 {
    let table = drop_in.console("SHOW STATS").table();
    let name = &drop_in.database.name;
    let row = table.iter().find(|row| row["database"] == *name);
    row.map_or(0, |row| row[column].parse().unwrap())
}

drop_in!(
    statement_is_prepared_wherever_its_client_comes_to,
    since(1, 21),
    |brand| {
        let drop_in = start(brand, 10);
        let lines = ("default_pool_size = 1", "default_pool_size = 2");
        assert_eq!(drop_in.reload_with(lines.0, lines.1).complete, ["RELOAD"]);
        let mut owner = drop_in.client();
        prepare(&mut owner, "s", "select pg_backend_pid()");
        let mut others = [(); 2].map(|()| drop_in.client());
        let pids = others
            .each_mut()
            .map(|other| other.value("begin; select pg_backend_pid()"));
        assert_ne!(pids[0], pids[1]);
        for n in [0, 1, 0] {
            others[n].value("commit");
            assert_eq!(run(&mut owner, "s").value(), pids[n]);
            let reply = owner.exchange(&[describe(b'S', "s"), sync()].concat());
            assert_eq!(reply.tags, "tTZ");
            assert_eq!(others[n].value("begin; select pg_backend_pid()"), pids[n]);
        }
    }
);

drop_in!(statement_outlives_its_server, since(1, 21), |brand| {
    let drop_in = start(brand, 10);
    let mut client = drop_in.client();
    prepare(&mut client, "s", "select pg_backend_pid()");
    let first = run(&mut client, "s").value();
    assert_eq!(drop_in.console("RECONNECT").complete, ["RECONNECT"]);
    assert_ne!(run(&mut client, "s").value(), first);
});

drop_in!(names_belong_to_their_clients, since(1, 21), |brand| {
    let drop_in = start(brand, 10);
    let mut clients = [(); 3].map(|()| drop_in.client());
    for (n, client) in clients.iter_mut().enumerate() {
        prepare(client, "s", &format!("select {n}"));
    }
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(run(client, "s").value(), n.to_string());
    }
});

drop_in!(
    text_is_prepared_once_for_all_clients,
    since(1, 24),
    |brand| {
        let drop_in = start(brand, 10);
        let mut clients = [(); 3].map(|()| drop_in.client());
        for (n, client) in clients.iter_mut().enumerate() {
            let name = format!("name {n}");
            prepare(client, &name, "select 'shared'");
            assert_eq!(run(client, &name).value(), "shared");
            assert_eq!(run(client, &name).value(), "shared");
        }
        assert_eq!(kept(&drop_in), "1");
        let counts = [
            "total_client_parse_count",
            "total_server_parse_count",
            "total_bind_count",
        ]
        .map(|column| counted(&drop_in, column));
        assert_eq!(counts, [3, 1, 6]);
    }
);

drop_in!(types_are_part_of_the_text, since(1, 21), |brand| {
    let drop_in = start(brand, 10);
    let typed = |name: &str, oid: i32| {
        let mut body = format!("{name}\0select $1\0").into_bytes();
        body.extend(1_i16.to_be_bytes());
        body.extend(oid.to_be_bytes());
        message(b'P', &body)
    };
    let mut client = drop_in.client();
    for (name, oid) in [("int", 23), ("text", 25), ("again", 23)] {
        let reply = client.exchange(&[typed(name, oid), sync()].concat());
        assert_eq!(reply.tags, "1Z", "{name}");
    }
    for (name, right) in [("int", false), ("text", true), ("again", false)] {
        let reply = client.exchange(&[run_prepared(name, &["x"]), sync()].concat());
        assert_eq!(reply.error.is_none(), right, "{name}: {reply:?}");
    }
    assert_eq!(kept(&drop_in), "2");
});

drop_in!(
    statements_of_clients_and_servers_are_shown,
    since(1, 21),
    |brand| {
        let drop_in = start(brand, 10);
        let mut client = drop_in.client();
        prepare(&mut client, "a", "select 'a'");
        prepare(&mut client, "b", "select 'b'");
        prepare(&mut client, "same as b", "select 'b'");
        run(&mut client, "same as b");
        let shown = |table: &str| {
            let rows = drop_in.console(&format!("SHOW {table}")).table();
            let name = &drop_in.database.name;
            let row = rows.into_iter().find(|row| row["database"] == *name);
            row.expect("a row")["prepared_statements"].clone()
        };
        assert_eq!(
            (shown("CLIENTS").as_str(), shown("SERVERS").as_str()),
            ("3", "2")
        );
        client.exchange(&[close(b'S', "a"), sync()].concat());
        assert_eq!(
            (shown("CLIENTS").as_str(), shown("SERVERS").as_str()),
            ("2", "2")
        );
    }
);

drop_in!(server_keeps_no_more_than_it_may, since(1, 21), |brand| {
    let drop_in = start(brand, 3);
    let mut client = drop_in.client();
    for n in 0..8 {
        prepare(&mut client, &format!("s{n}"), &format!("select {n}"));
        assert!(kept(&drop_in).parse::<u32>().unwrap() <= 3);
    }
    for n in (0..8).chain((0..8).rev()) {
        assert_eq!(run(&mut client, &format!("s{n}")).value(), n.to_string());
    }
    assert_eq!(kept(&drop_in), "3");
});

drop_in!(least_lately_used_goes_first, since(1, 24), |brand| {
    let drop_in = start(brand, 2);
    let mut client = drop_in.client();
    prepare(&mut client, "often", "select 'often'");
    for n in 0..5 {
        prepare(&mut client, &format!("s{n}"), &format!("select {n}"));
        assert_eq!(run(&mut client, "often").value(), "often");
    }
    assert_eq!(counted(&drop_in, "total_server_parse_count"), 6);
});

drop_in!(
    close_is_answered_whether_it_is_known_or_not,
    since(1, 21),
    |brand| {
        let drop_in = start(brand, 10);
        let mut client = drop_in.client();
        prepare(&mut client, "s", "select 'old'");
        for name in ["s", "s", "never there"] {
            let reply = client.exchange(&[close(b'S', name), sync()].concat());
            assert_eq!(reply.tags, "3Z", "{name}");
        }
        prepare(&mut client, "s", "select 'new'");
        assert_eq!(run(&mut client, "s").value(), "new");
    }
);

drop_in!(
    closed_statement_stays_for_the_others,
    since(1, 21),
    |brand| {
        let drop_in = start(brand, 10);
        let mut clients = [(); 2].map(|()| drop_in.client());
        clients
            .iter_mut()
            .for_each(|client| prepare(client, "s", "select 's'"));
        clients[0].exchange(&[close(b'S', "s"), sync()].concat());
        assert_eq!(run(&mut clients[1], "s").value(), "s");
    }
);

drop_in!(name_in_use_ends_the_session, since(1, 21), |brand| {
    let drop_in = start(brand, 10);
    let mut client = drop_in.client();
    prepare(&mut client, "s", "select 'mine'");
    let reply = client.exchange(&[parse("s", "select 'twice'"), sync()].concat());
    assert_eq!(reply.code(), "08P01");
    reply.assert_fatal("prepared statement name is already in use");
    client.expect_closed();
});

drop_in!(unknown_name_ends_the_session, since(1, 21), |brand| {
    let drop_in = start(brand, 10);
    for request in [run_prepared("s", &[]), describe(b'S', "s")] {
        let mut stranger = drop_in.client();
        let reply = stranger.exchange(&[request, sync()].concat());
        assert_eq!(reply.code(), "08P01");
        reply.assert_fatal("prepared statement did not exist");
        stranger.expect_closed();
    }
    assert_eq!(drop_in.client().value("select 'next'"), "next");
});

drop_in!(names_are_forgotten_by_command, since(1, 21), |brand| {
    let drop_in = start(brand, 10);
    let mut other = drop_in.client();
    prepare(&mut other, "s", "select 'of the other'");
    for command in ["discard all", "deallocate all"] {
        let mut client = drop_in.client();
        prepare(&mut client, "s", "select 'old'");
        assert_eq!(client.query(command).complete, [command.to_uppercase()]);
        assert_eq!(kept(&drop_in), "0", "{command}");
        prepare(&mut client, "s", "select 'new'");
        assert_eq!(run(&mut client, "s").value(), "new", "{command}");
        assert_eq!(run(&mut other, "s").value(), "of the other");
        client.query(command);
        run(&mut client, "s").assert_fatal("prepared statement did not exist");
    }
});

drop_in!(names_of_the_protocol_and_of_sql, since(1, 21), |brand| {
    let drop_in = start(brand, 10);
    let mut client = drop_in.client();
    prepare(&mut client, "s", "select 'by the protocol'");
    if let Brand::Ringbouncer(_) = brand {
        // One and the same, as in PostgreSQL.
        assert_eq!(client.value("execute s"), "by the protocol");
        assert_eq!(client.query("deallocate s").complete, ["DEALLOCATE"]);
        return;
    }
    assert_eq!(client.query("execute s").code(), "26000");
    assert_eq!(client.query("deallocate s").code(), "26000");
    assert_eq!(
        client.query("prepare s as select 'by sql'").complete,
        ["PREPARE"]
    );
    assert_eq!(client.value("execute s"), "by sql");
    assert_eq!(run(&mut client, "s").value(), "by the protocol");
});

drop_in!(without_names_they_are_passed_on, since(1, 21), |brand| {
    let drop_in = start(brand, 0);
    let mut clients = [(); 2].map(|()| drop_in.client());
    prepare(&mut clients[0], "s", "select 'of the first'");
    let reply = clients[1].exchange(&[parse("s", "select 2"), sync()].concat());
    assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "42P05"));
    assert_eq!(run(&mut clients[1], "s").value(), "of the first");
    let reply = clients[1].exchange(&[run_prepared("t", &[]), sync()].concat());
    assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "26000"));
});

drop_in!(
    text_that_failed_is_not_taken_for_prepared,
    since(1, 21),
    |brand| {
        let drop_in = start(brand, 10);
        let mut client = drop_in.client();
        let text = "select n from t";
        for name in ["first", "second"] {
            let reply = client.exchange(&[parse(name, text), sync()].concat());
            assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "42P01"));
        }
        drop_in.database.sql("create table t as select 7 as n");
        prepare(&mut client, "third", text);
        assert_eq!(run(&mut client, "third").value(), "7");
    }
);

drop_in!(
    text_skipped_behind_an_error_is_not_taken_for_prepared,
    since(1, 21),
    |brand| {
        let drop_in = start(brand, 10);
        let mut client = drop_in.client();
        prepare(&mut client, "kept", "select 'kept'");
        let batch = [
            parse("", "selec"),
            parse("skipped", "select 'text'"),
            run_prepared("skipped", &[]),
            close(b'S', "kept"),
            sync(),
        ];
        assert_eq!(client.exchange(&batch.concat()).tags, "EZ");
        prepare(&mut client, "second", "select 'text'");
        assert_eq!(run(&mut client, "second").value(), "text");
    }
);

drop_in!(
    errors_of_a_pipeline_end_at_the_next_sync,
    since(1, 21),
    |brand| {
        let drop_in = start(brand, 10);
        let mut client = drop_in.client();
        prepare(&mut client, "half", "select 1 / $1::int");
        let pipeline = [
            [run_prepared("half", &["1"]), sync()].concat(),
            [
                run_prepared("half", &["0"]),
                run_prepared("half", &["1"]),
                sync(),
            ]
            .concat(),
            [
                parse("new", "select 'new'"),
                run_prepared("new", &[]),
                sync(),
            ]
            .concat(),
        ];
        client.send(&pipeline.concat());
        assert_eq!(client.reply().value(), "1");
        let reply = client.reply();
        assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "22012"));
        let reply = client.reply();
        assert_eq!((reply.tags.as_str(), &*reply.value()), ("12DCZ", "new"));
    }
);

drop_in!(
    answers_come_in_the_order_of_the_pipeline,
    since(1, 26),
    |brand| {
        let drop_in = start(brand, 10);
        let mut client = drop_in.client();
        let life = [
            parse("s", "select $1::int"),
            describe(b'S', "s"),
            run_prepared("s", &["5"]),
            parse("same", "select $1::int"),
            run_prepared("same", &["6"]),
            close(b'S', "s"),
            parse("s", "select 'new'"),
            run_prepared("s", &[]),
            sync(),
        ];
        let reply = client.exchange(&life.concat());
        assert_eq!(reply.tags, "1tT2DC12DC312DCZ");
        let values: Vec<_> = reply.rows.iter().map(|row| row[0].as_deref()).collect();
        assert_eq!(values, ["5", "6", "new"].map(Some));
    }
);

drop_in!(
    parse_without_a_sync_holds_the_server,
    since(1, 21),
    |brand| {
        let drop_in = start(brand, 10);
        let (mut client, mut other) = (drop_in.client(), drop_in.client());
        // 1.26 does not answer the Parse of what the server has, before the Sync.
        let names: &[&str] = match brand {
            Brand::PgBouncer => &["new"],
            Brand::Ringbouncer(_) => &["new", "known already"],
        };
        for name in names {
            client.send(&[parse(name, "select 's'"), flush()].concat());
            client.expect(b'1');
            other.send(&query("select 'other'"));
            drop_in.wait_queued(1);
            assert!(other.has_nothing_to_read());
            let reply = client.exchange(&[run_prepared(name, &[]), sync()].concat());
            assert_eq!(reply.value(), "s");
            assert_eq!(other.reply().value(), "other");
        }
    }
);

drop_in!(
    statement_may_be_larger_than_any_buffer,
    since(1, 21),
    |brand| {
        let drop_in = start(brand, 10);
        let mut client = drop_in.client();
        let (name, text) = ("n".repeat(5000), "z".repeat(1 << 20));
        prepare(&mut client, &name, &format!("select length('{text}')"));
        assert_eq!(run(&mut client, &name).value(), text.len().to_string());
    }
);

drop_in!(
    result_that_has_changed_is_mended_by_new_servers,
    since(1, 21),
    |brand| {
        let drop_in = start(brand, 10);
        drop_in.database.sql("create table t as select 1 as n");
        let mut client = drop_in.client();
        prepare(&mut client, "s", "select * from t");
        assert_eq!(run(&mut client, "s").value(), "1");
        drop_in.database.sql("alter table t alter n type text");
        let reply = run(&mut client, "s");
        match brand {
            Brand::PgBouncer => assert_eq!((reply.code(), reply.status), ("0A000", b'I')),
            // It may have been prepared anew.
            Brand::Ringbouncer(_) => assert_eq!(reply.status, b'I'),
        }
        assert_eq!(drop_in.console("RECONNECT").complete, ["RECONNECT"]);
        assert_eq!(run(&mut client, "s").value(), "1");
    }
);

drop_in!(nothing_is_named_in_a_session, since(1, 21), |brand| {
    let lines = "pool_mode = session\nmax_prepared_statements = 10";
    let drop_in = DropIn::start(brand, Postgres::shared().database(), lines);
    let mut client = drop_in.client();
    prepare(&mut client, "s", "select 's'");
    let names = "select string_agg(name, ' ') from pg_prepared_statements";
    assert_eq!(client.value(names), "s");
    let reply = client.exchange(&[parse("s", "select 2"), sync()].concat());
    assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "42P05"));
    assert_eq!(run(&mut client, "s").value(), "s");
});
