//! Named prepared statements over several servers.

use std::thread;

use crate::support::wire::*;
use crate::support::*;

/// Parses `sql` as `name` with a Sync of its own.
#[track_caller]
fn prepare(client: &mut Client, name: &str, sql: &str) {
    assert_eq!(
        client.exchange(&[parse(name, sql), sync()].concat()).tags,
        "1Z"
    );
}

#[track_caller]
fn run(client: &mut Client, name: &str, params: &[&str]) -> String {
    let reply = client.exchange(&[run_prepared(name, params), sync()].concat());
    assert!(reply.error.is_none() && !reply.closed, "{name}: {reply:?}");
    reply.value()
}

everywhere!(statement_is_prepared_once_and_run_often, |stage| {
    let mut client = stage.client();
    prepare(&mut client, "add", "select $1::int + $2::int");
    for n in 0..20 {
        assert_eq!(
            run(&mut client, "add", &["1", &n.to_string()]),
            (n + 1).to_string()
        );
    }
    let reply = client.exchange(&[describe(b'S', "add"), sync()].concat());
    assert_eq!(reply.tags, "tTZ");
});

everywhere!(same_name_means_something_else_to_each_client, |stage| {
    let mut clients: Vec<Client> = (0..6).map(|_| stage.client()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        prepare(client, "s", &format!("select 'text {n}'"));
    }
    for _ in 0..3 {
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(run(client, "s", &[]), format!("text {n}"));
        }
    }
});

everywhere!(closed_statement_is_gone_and_its_name_free, |stage| {
    let mut client = stage.client();
    prepare(&mut client, "s", "select 'old'");
    assert_eq!(
        client.exchange(&[close(b'S', "s"), sync()].concat()).tags,
        "3Z"
    );
    prepare(&mut client, "s", "select 'new'");
    assert_eq!(run(&mut client, "s", &[]), "new");
    assert_eq!(
        client
            .exchange(&[close(b'S', "never there"), sync()].concat())
            .tags,
        "3Z"
    );
});

everywhere!(notice_of_a_parse_is_heard_once, |stage| {
    // The server is asked for the type of its parameter, too.
    let mut client = stage.client();
    let text = format!("select $1::text as {}", "x".repeat(64));
    let reply = client.exchange(&[parse("s", &text), sync()].concat());
    assert_eq!(reply.tags, "1Z");
    assert!(reply.notices[0].contains("will be truncated"), "{reply:?}");
    assert_eq!(reply.notices.len(), 1);
    let mut hog = stage.client();
    hog.value("begin");
    let reply = client.exchange(&[run_prepared("s", &["v"]), sync()].concat());
    assert_eq!((&*reply.value(), reply.notices.len()), ("v", 0));
});

everywhere!(failed_parse_leaves_the_name_free, |stage| {
    let mut client = stage.client();
    assert_eq!(
        client
            .exchange(&[parse("s", "selec"), sync()].concat())
            .code(),
        "42601"
    );
    prepare(&mut client, "s", "select 'second try'");
    assert_eq!(run(&mut client, "s", &[]), "second try");
});

everywhere!(parse_skipped_after_an_error_does_not_count, |stage| {
    let mut client = stage.client();
    let skipped = [parse("", "selec"), parse("s", "select 'skipped'"), sync()].concat();
    assert_eq!(client.exchange(&skipped).tags, "EZ");
    prepare(&mut client, "s", "select 'real'");
    assert_eq!(run(&mut client, "s", &[]), "real");
});

everywhere!(close_skipped_after_an_error_does_not_count, |stage| {
    let mut client = stage.client();
    prepare(&mut client, "s", "select 'still here'");
    let skipped = [parse("", "selec"), close(b'S', "s"), sync()].concat();
    assert_eq!(client.exchange(&skipped).tags, "EZ");
    assert_eq!(run(&mut client, "s", &[]), "still here");
});

everywhere!(whole_life_of_a_statement_fits_one_pipeline, |stage| {
    let mut client = stage.client();
    let life = [
        parse("s", "select $1::int"),
        describe(b'S', "s"),
        run_prepared("s", &["5"]),
    ];
    let again = [
        run_prepared("s", &["6"]),
        close(b'S', "s"),
        parse("s", "select 'new'"),
    ];
    let reply = client.exchange(
        &[
            life.concat(),
            again.concat(),
            run_prepared("s", &[]),
            sync(),
        ]
        .concat(),
    );
    assert_eq!(reply.tags, "1tT2DC2DC312DCZ");
    let values: Vec<_> = reply
        .rows
        .iter()
        .map(|row| row[0].clone().unwrap())
        .collect();
    assert_eq!(values, ["5", "6", "new"]);
});

everywhere!(discard_all_forgets_statements, |stage| {
    let mut client = stage.client();
    for forget in ["discard all", "deallocate all"] {
        prepare(&mut client, "s", "select 'old'");
        client.value(forget);
        prepare(&mut client, "s", "select 'new'");
        assert_eq!(run(&mut client, "s", &[]), "new", "{forget}");
        client.value(forget);
    }
});

everywhere!(statement_larger_than_any_buffer_is_prepared, |stage| {
    let mut client = stage.client();
    let text = "z".repeat(1 << 20);
    prepare(
        &mut client,
        &"n".repeat(5000),
        &format!("select length('{text}')"),
    );
    assert_eq!(
        run(&mut client, &"n".repeat(5000), &[]),
        text.len().to_string()
    );
});

everywhere!(more_statements_than_any_cache_keep_working, |stage| {
    let mut client = stage.client();
    (0..300).for_each(|n| prepare(&mut client, &format!("s{n}"), &format!("select {n}")));
    for n in (0..300).chain((0..300).rev()) {
        assert_eq!(run(&mut client, &format!("s{n}"), &[]), n.to_string());
    }
});

both_shards!(statement_follows_its_client_to_another_server, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let mut owner = stage.client();
    prepare(&mut owner, "s", "select $1 || pg_backend_pid()::text");
    let mut others = [stage.client(), stage.client()];
    let pids = others
        .each_mut()
        .map(|other| other.value("begin; select pg_backend_pid()"));
    for n in [0, 1, 0, 1] {
        others[n].value("commit");
        assert_eq!(run(&mut owner, "s", &["on "]), format!("on {}", pids[n]));
        let reply = owner.exchange(&[describe(b'S', "s"), sync()].concat());
        assert_eq!(reply.tags, "tTZ");
        assert_eq!(others[n].value("begin; select pg_backend_pid()"), pids[n]);
    }
});

both_shards!(statement_survives_the_death_of_its_server, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let mut client = stage.client();
    prepare(&mut client, "s", "select pg_backend_pid()");
    let pid = run(&mut client, "s", &[]);
    stage
        .database
        .sql(&format!("select pg_terminate_backend({pid})"));
    wait_until("the pool has noticed", || {
        stage.pools(&stage.entry, "sv_idle") == 0
    });
    assert_ne!(run(&mut client, "s", &[]), pid);
});

both_shards!(server_keeps_no_more_statements_than_allowed, |shards| {
    let topology = Topology::new(shards)
        .pool_size(1)
        .set("max_prepared_statements", 3);
    let stage = Stage::pooled(topology);
    let mut client = stage.client();
    (0..10).for_each(|n| prepare(&mut client, &format!("s{n}"), &format!("select {n}")));
    for n in 0..10 {
        assert_eq!(run(&mut client, &format!("s{n}"), &[]), n.to_string());
        let kept = client.value("select count(*) from pg_prepared_statements");
        assert!(
            kept.parse::<u32>().unwrap() <= 3,
            "{kept} statements on the server"
        );
    }
});

both_shards!(same_text_is_prepared_once_per_server, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    for n in 0..10 {
        let mut client = stage.client();
        prepare(&mut client, &format!("name {n}"), "select 'shared'");
        assert_eq!(run(&mut client, &format!("name {n}"), &[]), "shared");
    }
    let count = "select count(*) from pg_prepared_statements where statement = 'select ''shared'''";
    assert_eq!(stage.client().value(count), "1");
});

everywhere!(name_in_use_is_an_error_and_the_session_goes_on, |stage| {
    let mut owner = stage.client();
    prepare(&mut owner, "s", "select 'mine'");
    assert_eq!(run(&mut owner, "s", &[]), "mine");
    let twice = [parse("s", "select 'twice'"), run_prepared("s", &[]), sync()].concat();
    let reply = owner.exchange(&twice);
    assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "42P05"));
    assert_eq!(reply.text(), "prepared statement \"s\" already exists");
    // What is wrong with the text itself comes first, as does a failed transaction.
    let wrong = owner.exchange(&[parse("s", "selec"), sync()].concat());
    assert_eq!(wrong.code(), "42601");
    owner.query("begin; select 1/0");
    let failed = owner.exchange(&[parse("s", "select 'twice'"), sync()].concat());
    assert_eq!(failed.code(), "25P02");
    owner.value("rollback");
    assert_eq!(run(&mut owner, "s", &[]), "mine");
});

everywhere!(name_in_use_fails_the_whole_batch, |stage| {
    stage.database.sql("create table t (n int)");
    let mut client = stage.client();
    prepare(&mut client, "s", "insert into t values ($1::int)");
    let batch = [
        run_prepared("s", &["1"]),
        parse("s", "select 'twice'"),
        run_prepared("s", &["2"]),
        sync(),
    ];
    assert_eq!(client.exchange(&batch.concat()).tags, "2CEZ");
    assert_eq!(client.value("select count(*) from t"), "0");
    run(&mut client, "s", &["3"]);
    assert_eq!(client.value("select n from t"), "3");
});

everywhere!(unknown_name_is_an_error_and_the_session_goes_on, |stage| {
    let mut owner = stage.client();
    prepare(&mut owner, "s", "select 'mine'");
    let mut stranger = stage.client();
    for request in [run_prepared("s", &[]), describe(b'S', "s")] {
        let reply = stranger.exchange(&[request, sync()].concat());
        assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "26000"));
    }
    assert_eq!(stranger.value("select 'alive'"), "alive");
});

both_shards!(
    errors_of_names_are_fatal_where_pgbouncers_are_asked_for,
    |shards| {
        let topology = Topology::new(shards).set("prepared_statement_errors_fatal", true);
        let stage = Stage::pooled(topology);
        let mut client = stage.client();
        prepare(&mut client, "s", "select 'mine'");
        let reply = client.exchange(&[parse("s", "select 'twice'"), sync()].concat());
        reply.assert_fatal("prepared statement name is already in use");
        for request in [run_prepared("s", &[]), describe(b'S', "s")] {
            let reply = stage.client().exchange(&[request, sync()].concat());
            reply.assert_fatal("prepared statement did not exist");
        }
        let closing = [close(b'S', "s"), sync()].concat();
        assert_eq!(stage.client().exchange(&closing).tags, "3Z");
        stage.assert_no_leak();
    }
);

both_shards!(memory_for_statements_is_bounded_and_comes_back, |shards| {
    let topology = Topology::new(shards).set("prepared_statements_bytes_max", 65_536);
    let stage = Stage::pooled(topology);
    let mut client = stage.client();
    let text = |n: usize| format!("select {n} /* {} */", "x".repeat(10_000));
    let mut fits = 0;
    loop {
        let name = format!("s{fits}");
        let reply = client.exchange(&[parse(&name, &text(fits)), sync()].concat());
        if reply.tags != "1Z" {
            assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "53400"));
            break;
        }
        fits += 1;
    }
    assert_eq!(fits, 6);
    assert_eq!(run(&mut client, "s3", &[]), "3");
    client.exchange(&[close(b'S', "s3"), sync()].concat());
    prepare(&mut client, "again", &text(100));
    drop(client);
    let mut next = stage.client();
    wait_until("a client that has left needs no memory", || {
        let reply = next.exchange(&[parse("", "select 1"), sync()].concat());
        assert_eq!(reply.tags, "1Z");
        let all: Vec<u8> = (0..6)
            .flat_map(|n| parse(&format!("n{n}"), &text(200 + n)))
            .collect();
        let reply = next.exchange(&[all, sync()].concat());
        next.value("deallocate all");
        reply.error.is_none()
    });
});

both_shards!(driver_prepares_in_transaction_mode, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(3));
    let (address, entry) = (stage.address(), stage.entry.as_str());
    thread::scope(|scope| {
        for id in 0..12_i32 {
            scope.spawn(move || {
                driver::block_on(async {
                    let client = driver::connect(address, "postgres", "", entry)
                        .await
                        .unwrap();
                    let add = client
                        .prepare("select $1::int4 + $2::int4, pg_backend_pid()")
                        .await
                        .unwrap();
                    for n in 0..50_i32 {
                        let row = client.query_one(&add, &[&id, &n]).await.unwrap();
                        assert_eq!(row.get::<_, i32>(0), id + n);
                    }
                });
            });
        }
    });
});

everywhere!(a_message_cut_in_two_by_an_error_is_skipped, |stage| {
    for late in [
        parse("late", "select 'late'"),
        describe(b'S', "late"),
        close(b'S', "late"),
    ] {
        let mut client = stage.client();
        let (head, tail) = late.split_at(8);
        client.send(
            &[
                parse("", "select $1::int"),
                bind("", "", &["x"]),
                head.to_vec(),
            ]
            .concat(),
        );
        client.expect(b'1');
        assert_eq!(client.expect(b'E').tag, b'E');
        client.send(&[tail, &sync()].concat());
        assert_eq!(client.reply().tags, "Z");
        let reply = client.exchange(&[parse("late", "select 'again'"), sync()].concat());
        assert_eq!(reply.tags, "1Z");
        let reply = client.exchange(&[run_prepared("late", &[]), sync()].concat());
        assert_eq!(reply.value(), "again");
    }
});

both_shards!(
    statement_whose_eviction_was_skipped_can_be_used_again,
    |shards| {
        // one server, which keeps one statement: the Close that makes room stands behind an error
        let topology = Topology::new(shards)
            .pool_size(1)
            .set("max_prepared_statements", 1);
        let stage = Stage::pooled(topology);
        let mut client = stage.client();
        let number = [parse("kept", "select 'kept'"), sync()].concat();
        assert_eq!(client.exchange(&number).tags, "1Z");
        let fails = [
            parse("", "select $1::int"),
            bind("", "", &["x"]),
            parse("new", "select 'new'"),
            sync(),
        ];
        client.send(&[fails.concat(), run_prepared("kept", &[]), sync()].concat());
        assert_eq!(client.reply().tags, "1EZ");
        let reply = client.reply();
        assert_eq!(
            (reply.code(), reply.value().as_str()),
            ("", "kept"),
            "{reply:?}"
        );
        let again = client.exchange(
            &[
                parse("new", "select 'new'"),
                run_prepared("new", &[]),
                sync(),
            ]
            .concat(),
        );
        assert_eq!(again.value(), "new");
        assert_eq!(
            client.value("select count(*) from pg_prepared_statements"),
            "1"
        );
    }
);

everywhere!(statement_prepared_behind_discard_all_stays, |stage| {
    for command in ["discard all", "deallocate all"] {
        let mut client = stage.client();
        let old = [parse("old", "select 'old'"), sync()].concat();
        assert_eq!(client.exchange(&old).tags, "1Z");
        let new = [query(command), parse("new", "select 'new'"), sync()].concat();
        client.send(&new);
        assert_eq!(client.reply().tags, "CZ");
        assert_eq!(client.reply().tags, "1Z");
        let reply = client.exchange(&[run_prepared("new", &[]), sync()].concat());
        assert_eq!(reply.value(), "new", "{reply:?}");
        let reply = client.exchange(&[run_prepared("old", &[]), sync()].concat());
        assert_eq!(reply.code(), "26000", "{reply:?}");
    }
});
