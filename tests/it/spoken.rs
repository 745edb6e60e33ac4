//! PREPARE, EXECUTE and DEALLOCATE in SQL, over several servers.

use crate::support::wire::*;
use crate::support::*;

/// Runs one command by the extended protocol, unnamed.
fn unnamed(client: &mut Client, sql: &str) -> peer::Reply {
    client.exchange(&extended(sql, &[]))
}

everywhere!(statement_prepared_by_sql_is_executed_by_sql, |stage| {
    let mut client = stage.client();
    let reply = client.query("prepare \"My plan\" (int, text) as select $1 + 1 as a, $2 as b");
    assert_eq!(
        (reply.tags.as_str(), &*reply.complete),
        ("CZ", &["PREPARE".to_owned()][..])
    );
    for n in 0..5 {
        let reply = client.query(&format!("execute \"My plan\" ({n}, 'a')"));
        assert_eq!(reply.tags, "TDCZ");
        assert_eq!(reply.value(), (n + 1).to_string());
    }
    let reply = client.query("explain (costs off) execute \"My plan\"(1, 'b')");
    assert_eq!(reply.complete, ["EXPLAIN"]);
    client.value("create temp table made as execute \"My plan\"(1, 'b')");
    let reply = client.query("deallocate \"My plan\"");
    assert_eq!(
        (reply.tags.as_str(), &*reply.complete),
        ("CZ", &["DEALLOCATE".to_owned()][..])
    );
    assert_eq!(client.query("execute \"My plan\"(1, 'a')").code(), "26000");
});

everywhere!(errors_of_names_are_postgresqls, |stage| {
    let mut client = stage.client();
    client.value("prepare s as select 'first'");
    let reply = client.query("prepare s as select 'second'");
    assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "42P05"));
    assert_eq!(reply.text(), "prepared statement \"s\" already exists");
    assert_eq!(client.value("execute s"), "first");
    let reply = client.query("execute nobody");
    assert_eq!(
        (reply.code(), reply.text()),
        ("26000", "prepared statement \"nobody\" does not exist")
    );
    assert_eq!(client.query("deallocate nobody").code(), "26000");
    assert_eq!(
        client
            .query("prepare broken as select * from nowhere")
            .code(),
        "42P01"
    );
    client.value("prepare broken as select 'mended'");
    assert_eq!(client.value("execute broken"), "mended");
});

everywhere!(statement_outlives_a_rollback_as_on_postgresql, |stage| {
    let mut client = stage.client();
    client.value("begin");
    client.value("prepare s as select 'kept'");
    client.value("rollback");
    assert_eq!(client.value("execute s"), "kept");
    client.value("begin");
    client.query("select 1/0");
    for command in ["execute s", "prepare t as select 1", "deallocate s"] {
        assert_eq!(client.query(command).code(), "25P02", "{command}");
    }
    client.value("rollback");
    assert_eq!(client.value("execute s"), "kept");
    client.value("prepare t as select 't'; deallocate s");
    assert_eq!(client.query("execute s").code(), "26000");
});

everywhere!(several_statements_in_one_query_act_in_order, |stage| {
    let mut client = stage.client();
    let text = "prepare s as select 1; execute s; deallocate s; prepare s as select 2; execute s";
    let reply = client.query(text);
    assert_eq!(reply.tags, "CTDCCCTDCZ", "{reply:?}");
    assert_eq!(reply.rows, [[Some("1".into())], [Some("2".into())]]);
    assert_eq!(client.value("execute s"), "2");
    // The third fails: what came before it holds, what comes behind it does not.
    let reply =
        client.query("prepare a as select 'a'; deallocate s; select 1/0; prepare b as select 'b'");
    assert_eq!((reply.tags.as_str(), reply.code()), ("CCEZ", "22012"));
    assert_eq!(client.value("execute a"), "a");
    assert_eq!(client.query("execute s").code(), "26000");
    assert_eq!(client.query("execute b").code(), "26000");
    client.value("prepare b as select 'free'");
});

everywhere!(names_are_shared_with_the_protocols, |stage| {
    let mut client = stage.client();
    let reply = client.exchange(&[parse("p", "select 'protocol'"), sync()].concat());
    assert_eq!(reply.tags, "1Z");
    assert_eq!(client.value("execute p"), "protocol");
    assert_eq!(client.query("prepare p as select 1").code(), "42P05");
    client.value("deallocate p");
    let reply = client.exchange(&[run_prepared("p", &[]), sync()].concat());
    assert_eq!(reply.code(), "26000");
    client.value("prepare q as select 'sql'");
    let reply = client.exchange(&[describe(b'S', "q"), run_prepared("q", &[]), sync()].concat());
    assert_eq!(
        (reply.tags.as_str(), reply.value().as_str()),
        ("tT2DCZ", "sql")
    );
    let reply = client.exchange(&[parse("q", "select 1"), sync()].concat());
    assert_eq!(reply.code(), "42P05");
    client.exchange(&[close(b'S', "q"), sync()].concat());
    assert_eq!(client.query("execute q").code(), "26000");
});

everywhere!(commands_work_by_the_extended_protocol, |stage| {
    let mut client = stage.client();
    assert_eq!(
        unnamed(&mut client, "prepare s as select 'ext'").complete,
        ["PREPARE"]
    );
    assert_eq!(unnamed(&mut client, "execute s").value(), "ext");
    assert_eq!(
        unnamed(&mut client, "prepare s as select 1").code(),
        "42P05"
    );
    assert_eq!(
        unnamed(&mut client, "prepare bad as select * from nowhere").code(),
        "42P01"
    );
    assert_eq!(
        unnamed(&mut client, "prepare bad as select 'good'").complete,
        ["PREPARE"]
    );
    assert_eq!(client.value("execute bad"), "good");
    let named = [
        parse("n", "execute s"),
        describe(b'S', "n"),
        run_prepared("n", &[]),
        sync(),
    ];
    let reply = client.exchange(&named.concat());
    assert_eq!(
        (reply.tags.as_str(), reply.value().as_str()),
        ("1tT2DCZ", "ext")
    );
    assert_eq!(
        unnamed(&mut client, "deallocate s").complete,
        ["DEALLOCATE"]
    );
    assert_eq!(unnamed(&mut client, "execute s").code(), "26000");
    assert_eq!(
        unnamed(&mut client, "deallocate all").complete,
        ["DEALLOCATE ALL"]
    );
    assert_eq!(client.query("execute bad").code(), "26000");
});

everywhere!(queries_cut_anywhere_are_recognised, |stage| {
    let mut client = stage.client();
    client.send_bytewise(&query("prepare s as select 'cut'; execute s"));
    assert_eq!(client.reply().value(), "cut");
    let long = format!("prepare l as select length('{}')", "x".repeat(100_000));
    assert_eq!(client.query(&long).complete, ["PREPARE"]);
    client.send_bytewise(&query(" -- execute\n/* s */ execute l"));
    assert_eq!(client.reply().value(), "100000");
    client.send(
        &[
            query("execute s"),
            query("execute l"),
            query("deallocate s"),
        ]
        .concat(),
    );
    assert_eq!(client.reply().value(), "cut");
    assert_eq!(client.reply().value(), "100000");
    assert_eq!(client.reply().complete, ["DEALLOCATE"]);
});

both_shards!(statement_follows_its_client_to_another_server, |shards| {
    // two servers, taken by others in turn
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let mut owner = stage.client();
    owner.value("prepare s (text) as select $1 || pg_backend_pid()");
    owner.exchange(&[parse("p", "select 'p' || pg_backend_pid()"), sync()].concat());
    let mut others = [stage.client(), stage.client()];
    let pids = others
        .each_mut()
        .map(|other| other.value("begin; select pg_backend_pid()"));
    for n in [0, 1, 0, 1] {
        others[n].value("commit");
        assert_eq!(owner.value("execute s('on ')"), format!("on {}", pids[n]));
        assert_eq!(
            unnamed(&mut owner, "execute s('at ')").value(),
            format!("at {}", pids[n])
        );
        assert_eq!(owner.value("execute p"), format!("p{}", pids[n]));
        assert_eq!(others[n].value("begin; select pg_backend_pid()"), pids[n]);
    }
});

both_shards!(clients_do_not_see_each_others_names, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let mut clients: Vec<Client> = (0..4).map(|_| stage.client()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.value(&format!("prepare s as select 'text {n}'"));
    }
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.value("execute s"), format!("text {n}"));
    }
    // Same text, one statement on the server: what one forgets, the others keep.
    let [a, b, ..] = &mut clients[..] else {
        unreachable!()
    };
    a.value("prepare t as select 'shared'");
    b.value("prepare t as select 'shared'");
    a.value("deallocate t");
    assert_eq!(a.query("execute t").code(), "26000");
    assert_eq!(b.value("execute t"), "shared");
    a.value("discard all");
    assert_eq!(b.value("execute t"), "shared");
});

both_shards!(changed_tables_are_not_the_clients_affair, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    stage.database.sql("create table t (a int)");
    stage.database.sql("insert into t values (1)");
    let mut client = stage.client();
    client.value("prepare s as select * from t");
    client.value("execute s");
    stage
        .database
        .sql("alter table t add column b int default 2");
    let reply = client.query("execute s");
    assert_eq!((reply.code(), reply.rows[0].len()), ("", 2), "{reply:?}");
    assert_eq!(unnamed(&mut client, "execute s").rows[0].len(), 2);
    stage.database.sql("drop table t");
    let reply = client.query("execute s");
    assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "42P01"));
    drop(client);
    stage.assert_no_leak();
});

both_shards!(
    statement_that_cannot_be_prepared_again_fails_once,
    |shards| {
        // two servers: the second one gets to know the statement when its table is gone
        let stage = Stage::pooled(Topology::new(shards).pool_size(2));
        stage.database.sql("create table t (a int)");
        let mut client = stage.client();
        let pid = client.value("prepare s as select * from t; select pg_backend_pid()");
        client.exchange(&[parse("p", "select a from t"), sync()].concat());
        // Between them they have both servers; the one that does not know the statement is given back.
        let mut others = [stage.client(), stage.client()];
        let pids = others
            .each_mut()
            .map(|other| other.value("begin; select pg_backend_pid()"));
        let unknowing = pids.iter().position(|other| *other != pid).unwrap();
        assert_eq!(pids[1 - unknowing], pid);
        others[unknowing].value("rollback");
        stage.database.sql("drop table t");
        for command in ["execute s", "execute p"] {
            let reply = client.query(command);
            assert_eq!(
                (reply.tags.as_str(), reply.code()),
                ("EZ", "42P01"),
                "{command}"
            );
        }
        assert_eq!(client.value("select 'alive'"), "alive");
    }
);
