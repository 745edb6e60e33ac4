//! Named prepared statements where a name's past matters: what an error undid, what came ahead in the same pipeline.

use crate::support::peer::{Conversation, FakeServer};
use crate::support::wire::*;
use crate::support::*;

#[track_caller]
fn prepare(client: &mut Client, name: &str, sql: &str) {
    let reply = client.exchange(&[parse(name, sql), sync()].concat());
    assert_eq!(reply.tags, "1Z", "{reply:?}");
}

/// A client that holds a server by a transaction.
#[track_caller]
fn holding(stage: &Stage) -> Client {
    let mut hog = stage.client();
    hog.value("begin");
    hog
}

everywhere!(name_whose_close_was_skipped_goes_with_all_others, |stage| {
    let mut client = stage.client();
    for forget in ["discard all", "deallocate all"] {
        // The Bind fails, as it has a value too many.
        let batch = [
            parse("s", "select 1"),
            bind("", "s", &["1"]),
            close(b'S', "s"),
            sync(),
        ];
        let reply = client.exchange(&batch.concat());
        assert_eq!((reply.tags.as_str(), reply.code()), ("1EZ", "08P01"));
        client.value(forget);
        prepare(&mut client, "s", "select 2");
        let reply = client.exchange(&[run_prepared("s", &[]), sync()].concat());
        assert_eq!(reply.value(), "2", "{forget}");
        client.value(forget);
    }
});

// ---- pipelines ------------------------------------------------------------------------------------------------------------

everywhere!(
    parse_skipped_after_an_error_is_not_run_by_the_next_batch,
    |stage| {
        let mut client = stage.client();
        client.value("create table t (v int)");
        client.value("insert into t values (1)");
        let fails = [parse("x", "select 1/0"), run_prepared("x", &[])].concat();
        let pipeline = [
            fails,
            parse("d", "delete from t"),
            sync(),
            run_prepared("d", &[]),
            sync(),
        ]
        .concat();
        for is_cut in [false, true] {
            match is_cut {
                true => client.send_bytewise(&pipeline),
                false => client.send(&pipeline),
            }
            assert_eq!(client.reply().code(), "22012");
            let reply = client.reply();
            assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "26000"));
            assert_eq!(client.value("select count(*) from t"), "1");
            client.exchange(&[close(b'S', "x"), sync()].concat());
        }
    }
);

everywhere!(name_whose_parse_fails_is_free_in_the_next_batch, |stage| {
    let mut client = stage.client();
    let again = [
        parse("s", "select 'again'"),
        sync(),
        run_prepared("s", &[]),
        sync(),
    ];
    client.send(&[parse("s", "selec"), sync(), again.concat()].concat());
    assert_eq!(client.reply().code(), "42601");
    assert_eq!(client.reply().tags, "1Z");
    assert_eq!(client.reply().value(), "again");
});

everywhere!(
    name_whose_close_is_skipped_is_there_in_the_next_batch,
    |stage| {
        let mut client = stage.client();
        prepare(&mut client, "s", "select 'here'");
        let skipped = [parse("", "selec"), close(b'S', "s"), sync()].concat();
        let next = [run_prepared("s", &[]), sync(), close(b'S', "s"), sync()].concat();
        let free = [parse("s", "select 'new'"), run_prepared("s", &[]), sync()].concat();
        client.send(&[skipped, next, free].concat());
        assert_eq!(client.reply().code(), "42601");
        assert_eq!(client.reply().value(), "here");
        assert_eq!(client.reply().tags, "3Z");
        assert_eq!(client.reply().value(), "new");
    }
);

everywhere!(
    name_is_free_behind_a_deallocate_all_of_the_same_pipeline,
    |stage| {
        let mut client = stage.client();
        let anew = [parse("s", "select 'new'"), run_prepared("s", &[]), sync()].concat();
        for forget in ["deallocate all", "DEALLOCATE PREPARE all"] {
            let named = [parse("q", forget), run_prepared("q", &[])].concat();
            let unnamed = [parse("", forget), run_prepared("", &[])].concat();
            for (command, tags) in [(named, "12C12DCZ"), (unnamed, "12C12DCZ")] {
                client.value("deallocate all");
                prepare(&mut client, "s", "select 'old'");
                let reply = client.exchange(&[command, anew.clone()].concat());
                assert_eq!((reply.tags.as_str(), &*reply.value()), (tags, "new"));
            }
            prepare(&mut client, "t", "select 't'");
            client.send(&[query(forget), anew.clone()].concat());
            assert_eq!(client.reply().tags, "CZ");
            assert_eq!(client.reply().value(), "new");
        }
        // One that fails makes nothing go.
        let fails = [
            query("select 1/0; deallocate all"),
            run_prepared("s", &[]),
            sync(),
        ]
        .concat();
        client.send(&fails);
        assert_eq!(client.reply().code(), "22012");
        assert_eq!(client.reply().value(), "new");
    }
);

everywhere!(
    name_is_free_behind_a_deallocate_all_that_was_parsed_long_ago,
    |stage| {
        let mut client = stage.client();
        client.value("begin");
        prepare(&mut client, "s", "select 'old'");
        prepare(&mut client, "", "deallocate all");
        let anew = [parse("s", "select 'new'"), run_prepared("s", &[])].concat();
        let batch = [run_prepared("", &[]), anew, sync()].concat();
        for _ in 0..2 {
            let reply = client.exchange(&batch);
            assert_eq!((reply.tags.as_str(), &*reply.value()), ("2C12DCZ", "new"));
        }
    }
);

everywhere!(
    sql_commands_of_a_pipeline_meet_what_those_before_have_left,
    |stage| {
        let mut client = stage.client();
        let texts = [
            "prepare s as selec",
            "prepare s as select 'second'",
            "execute s",
            "prepare t as select 1/0 from nowhere",
            "execute t",
            "deallocate s",
            "prepare s as select 'third'",
            "execute s",
        ];
        let queries: Vec<u8> = texts.iter().flat_map(|text| query(text)).collect();
        client.send(&queries);
        let replies: Vec<_> = texts.iter().map(|_| client.reply()).collect();
        let codes: Vec<_> = replies.iter().map(peer::Reply::code).collect();
        assert_eq!(codes, ["42601", "", "", "42P01", "26000", "", "", ""]);
        assert_eq!(replies[2].value(), "second");
        assert_eq!(replies[7].value(), "third");
    }
);

/// Answers the first batch; then nothing before two more have come.
fn answers_two_batches_together(mut server: Conversation) {
    let (mut syncs, mut replies) = (0, Vec::new());
    if !server.login() {
        return;
    }
    while let Some(request) = server.read() {
        replies.extend(match request.tag {
            b'P' => message(b'1', b""),
            b'B' => message(b'2', b""),
            b'C' => message(b'3', b""),
            b'E' => [one_value("x"), complete("SELECT 1")].concat(),
            b'S' => {
                syncs += 1;
                ready(b'I')
            }
            _ => return,
        });
        if request.tag == b'S' && syncs != 2 {
            server.send(&std::mem::take(&mut replies));
        }
    }
}

both_shards!(batches_that_depend_on_no_other_do_not_wait, |shards| {
    let server = FakeServer::start(answers_two_batches_together);
    let topology = Topology::new(shards).pool_size(1);
    let stage = Stage::pooled(topology.database_at("fake", server.address, &[]));
    let mut client = Client::login(stage.address(), "fake");
    prepare(&mut client, "s", "select 's'");
    let first = [parse("t", "select 't'"), run_prepared("t", &[]), sync()].concat();
    let second = [
        run_prepared("s", &[]),
        parse("u", "select 'u'"),
        run_prepared("u", &[]),
        sync(),
    ];
    client.send(&[first, second.concat()].concat());
    assert_eq!(client.reply().tags, "12DCZ");
    assert_eq!(client.reply().tags, "2DC12DCZ");
});

both_shards!(client_that_leaves_while_a_batch_waits_is_gone, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let mut client = stage.client();
    let slow = [
        parse("s", "select pg_sleep(600)"),
        run_prepared("s", &[]),
        sync(),
    ]
    .concat();
    let fails = [parse("t", "select 1"), sync()].concat();
    client.send(&[slow, fails, run_prepared("t", &[]), sync()].concat());
    wait_until("it sleeps", || {
        let text = "select count(*) from pg_stat_activity where state = 'active' \
                    and datname = current_database() and query = 'select pg_sleep(600)'";
        stage.database.direct().value(text) == "1"
    });
    drop(client);
    wait_until("it is gone", || stage.pools(&stage.entry, "cl_active") == 0);
});

// ---- the unnamed statement ------------------------------------------------------------------------------------------------

both_shards!(unnamed_statement_of_another_client_is_not_run, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let mut clients = [stage.client(), stage.client(), stage.client()];
    let run = [run_prepared("", &[]), sync()].concat();
    prepare(&mut clients[0], "", "select 'own'");
    assert_eq!(clients[0].exchange(&run).value(), "own");
    prepare(&mut clients[1], "", "select 'secret'");
    for ask in [run.clone(), [describe(b'S', ""), sync()].concat()] {
        for client in [0, 2] {
            let reply = clients[client].exchange(&ask);
            let text = "unnamed prepared statement does not exist";
            assert_eq!((reply.tags.as_str(), reply.text()), ("EZ", text));
            assert_eq!(reply.code(), "26000");
        }
    }
    // A Parse that was skipped does not make it one's own.
    prepare(&mut clients[1], "", "select 'secret'");
    let skipped = [parse("x", "selec"), parse("", "select 'own'"), sync()].concat();
    assert_eq!(clients[0].exchange(&skipped).code(), "42601");
    assert_eq!(clients[0].exchange(&run).code(), "26000");
    let whole = extended("select 'whole'", &[]);
    assert_eq!(clients[0].exchange(&whole).value(), "whole");
    // Nor if the next batch is sent ahead of the error, whatever the error is.
    clients[0].value("create table gone (v int)");
    prepare(&mut clients[0], "s", "select v from gone");
    clients[0].value("drop table gone");
    let own = parse("", "select 'own'");
    let batches = [
        ([parse("x", "selec"), own.clone()].concat(), "42601"),
        (
            [run_prepared("none", &[]), run_prepared("", &[])].concat(),
            "26000",
        ),
        ([run_prepared("s", &[]), own].concat(), "42P01"),
    ];
    for (batch, code) in batches {
        for is_ahead in [true, false] {
            prepare(&mut clients[1], "", "select 'secret'");
            let batch = [batch.clone(), sync()].concat();
            match is_ahead {
                true => clients[0].send(&[batch, run.clone()].concat()),
                false => clients[0].send(&batch),
            }
            assert_eq!(clients[0].reply().code(), code);
            if !is_ahead {
                clients[0].send(&run);
            }
            assert_eq!(clients[0].reply().code(), "26000", "{code} {is_ahead}");
        }
    }
});

both_shards!(parse_succeeds_after_a_change_of_the_result, |shards| {
    // one client binds text on a server that has found no types; then the table changes, and another prepares the same text
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let mut first = stage.client();
    first.value("create table t (id int, v int)");
    first.value("insert into t values (1, 5)");
    let text = "select * from t where id = $1";
    prepare(&mut first, "s", text);
    // On the only server there is.
    let mut hog = holding(&stage);
    let reply = first.exchange(&[run_prepared("s", &["1"]), sync()].concat());
    assert_eq!(reply.rows.len(), 1, "{reply:?}");
    first.value("alter table t alter v type bigint");
    let mut fresh = stage.client();
    prepare(&mut fresh, "mine", text);
    let reply = fresh.exchange(&[run_prepared("mine", &["1"]), sync()].concat());
    assert_eq!(reply.rows.len(), 1, "{reply:?}");
    hog.value("commit");
});

both_shards!(
    unnamed_statement_of_before_is_not_run_for_a_later_one,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).pool_size(2));
        let mut client = stage.client();
        prepare(&mut client, "", "select 'first'");
        // A Query would drop the unnamed statement.
        let mut hog = stage.client();
        let reply = hog.exchange(&[parse("b", "begin"), run_prepared("b", &[]), sync()].concat());
        assert_eq!(reply.status, b'T');
        // On the other server.
        prepare(&mut client, "", "select 'second'");
        let _other = holding(&stage);
        let reply = hog.exchange(&[parse("c", "commit"), run_prepared("c", &[]), sync()].concat());
        assert_eq!(reply.status, b'I');
        let reply = client.exchange(&[run_prepared("", &[]), sync()].concat());
        assert_eq!(reply.code(), "26000");
    }
);

everywhere!(
    unnamed_statement_is_the_clients_own_in_a_transaction,
    |stage| {
        let mut client = stage.client();
        client.value("begin");
        prepare(&mut client, "", "select 'own'");
        for _ in 0..2 {
            let reply = client.exchange(&[run_prepared("", &[]), sync()].concat());
            assert_eq!(reply.value(), "own");
        }
        client.value("commit");
        let reply = client.exchange(&[run_prepared("", &[]), sync()].concat());
        assert_eq!(reply.code(), "26000", "a Query has dropped it");
    }
);

everywhere!(
    name_in_use_is_told_by_its_own_name_wherever_it_stands,
    |stage| {
        let mut client = stage.client();
        client.value("prepare s as select 's'");
        for text in [
            "begin; prepare s (int) as select $1; rollback",
            "execute s; prepare s as select 2",
        ] {
            let reply = client.query(text);
            assert_eq!(reply.code(), "42P05", "{text}");
            assert_eq!(reply.text(), "prepared statement \"s\" already exists");
            client.query("rollback");
        }
    }
);

// ---- types of parameters --------------------------------------------------------------------------------------------------

/// Bind of binary values, results as text, Execute.
fn run_binary(name: &str, values: &[&[u8]]) -> Vec<u8> {
    let mut body = [b"\0", name.as_bytes(), b"\0\0\x01\0\x01"].concat();
    body.extend((values.len() as u16).to_be_bytes());
    for value in values {
        body.extend((value.len() as u32).to_be_bytes());
        body.extend(*value);
    }
    body.extend([0, 0]);
    [message(b'B', &body), execute("", 0)].concat()
}

/// The object ids that a Describe of the statement tells of its parameters.
fn types_of(client: &mut Client, name: &str) -> Vec<u32> {
    client.send(&[describe(b'S', name), sync()].concat());
    let told = client.expect(b't');
    assert!(client.reply().error.is_none());
    (0..told.body[1])
        .map(|at| told.u32_at(2 + 4 * usize::from(at)))
        .collect()
}

const INT4: u32 = 23;
const FLOAT4: u32 = 700;
const FIVE: [u8; 4] = 5_i32.to_be_bytes();
const ONE: [u8; 4] = 1_i32.to_be_bytes();
const UPDATE: &str = "update t set v = $1 where id = $2 returning v";

fn table(stage: &Stage) {
    stage.database.sql("create table t (id int, v int)");
    stage.database.sql("insert into t values (1, 1)");
}

/// A client that has prepared and described [`UPDATE`] while `v` was an int, before it became `type_name`.
fn described_before_the_change(stage: &Stage, type_name: &str) -> Client {
    table(stage);
    let mut client = stage.client();
    prepare(&mut client, "u", UPDATE);
    assert_eq!(types_of(&mut client, "u"), [INT4, INT4]);
    let sql = format!("alter table t alter column v type {type_name}");
    stage.database.sql(&sql);
    client
}

/// Another client has met the change, so that statements are prepared anew from here on.
fn meet_the_change(stage: &Stage) {
    let mut other = stage.client();
    prepare(&mut other, "s", "select v from t");
    other.value("select 1");
    let reply = other.exchange(&[run_prepared("s", &[]), sync()].concat());
    assert!(reply.error.is_none(), "{reply:?}");
}

#[track_caller]
fn assert_stores_five(stage: &Stage, client: &mut Client) {
    for _ in 0..2 {
        let reply = client.exchange(&[run_binary("u", &[&FIVE, &ONE]), sync()].concat());
        assert_eq!((reply.tags.as_str(), &*reply.value()), ("2DCZ", "5"));
        assert_eq!(stage.database.direct().value("select v from t"), "5");
    }
    assert_eq!(types_of(client, "u"), [INT4, INT4]);
}

both_shards!(
    binary_values_keep_their_types_in_a_new_generation,
    |shards| {
        for type_name in ["real", "bigint"] {
            let stage = Stage::pooled(Topology::new(shards).pool_size(1));
            table(&stage);
            let mut client = stage.client();
            prepare(&mut client, "u", "update t set v = $1 where id = $2");
            assert_eq!(types_of(&mut client, "u"), [INT4, INT4]);
            let mut other = stage.client();
            prepare(&mut other, "s", "select * from t");
            let text = [run_prepared("s", &[]), sync()].concat();
            other.exchange(&text);
            let sql = format!("alter table t alter column v type {type_name}");
            stage.database.sql(&sql);
            assert_eq!(other.exchange(&text).tags, "2DCZ");
            // Text has no type of its own.
            let reply = client.exchange(&[run_prepared("u", &["4", "1"]), sync()].concat());
            assert_eq!(reply.tags, "2CZ", "{reply:?}");
            for _ in 0..2 {
                let reply = client.exchange(&[run_binary("u", &[&FIVE, &ONE]), sync()].concat());
                assert_eq!(reply.tags, "2CZ", "{reply:?}");
                assert_eq!(stage.database.direct().value("select v from t"), "5");
            }
            assert_eq!(types_of(&mut client, "u"), [INT4, INT4]);
        }
    }
);

both_shards!(binary_values_keep_their_types_on_another_server, |shards| {
    for type_name in ["real", "bigint"] {
        let stage = Stage::pooled(Topology::new(shards).pool_size(2));
        let mut client = described_before_the_change(&stage, type_name);
        let mut hog = holding(&stage);
        assert_stores_five(&stage, &mut client);
        hog.value("commit");
    }
});

both_shards!(each_client_has_the_types_of_its_own_parse, |shards| {
    // the server that the second client prepares on knows the statement from the first, who prepared before the change
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let mut old = described_before_the_change(&stage, "real");
    let mut hog = holding(&stage);
    assert_stores_five(&stage, &mut old);
    let mut new = stage.client();
    prepare(&mut new, "u", UPDATE);
    assert_eq!(types_of(&mut new, "u"), [FLOAT4, INT4]);
    let half = 0.5_f32.to_be_bytes();
    for _ in 0..2 {
        let reply = new.exchange(&[run_binary("u", &[&half, &ONE]), sync()].concat());
        assert_eq!(reply.value(), "0.5");
        assert_stores_five(&stage, &mut old);
    }
    hog.value("commit");
    // On either server.
    let mut hogs = [stage.client(), stage.client()];
    let pids = hogs
        .each_mut()
        .map(|hog| hog.value("begin; select pg_backend_pid()"));
    assert_ne!(pids[0], pids[1]);
    for hog in &mut hogs {
        hog.value("commit");
        let reply = new.exchange(&[run_binary("u", &[&half, &ONE]), sync()].concat());
        assert_eq!(reply.value(), "0.5");
        assert_stores_five(&stage, &mut old);
        hog.value("begin");
    }
});

both_shards!(text_goes_on_working_whatever_the_types_were, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let mut client = described_before_the_change(&stage, "real");
    let _hog = holding(&stage);
    let mut old = stage.client();
    // It makes the server have the statement with the types of before.
    prepare(&mut old, "u", UPDATE);
    let reply = client.exchange(&[run_prepared("u", &["0.5", "1"]), sync()].concat());
    assert_eq!(reply.value(), "0.5", "{reply:?}");
});

both_shards!(types_go_along_to_another_shard, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let mut client = described_before_the_change(&stage, "real");
    meet_the_change(&stage);
    let _hog = holding(&stage);
    assert_stores_five(&stage, &mut client);
});

both_shards!(
    statement_is_prepared_once_on_a_server_for_all_who_bind_binary_values,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).pool_size(1));
        table(&stage);
        for _ in 0..3 {
            let mut client = stage.client();
            prepare(&mut client, "u", UPDATE);
            assert_eq!(types_of(&mut client, "u"), [INT4, INT4]);
            let reply = client.exchange(&[run_binary("u", &[&FIVE, &ONE]), sync()].concat());
            assert_eq!(reply.value(), "5");
        }
        assert_eq!(stage.stats(&stage.entry, "total_server_parse_count"), 1);
        let whole = [
            parse("u", UPDATE),
            describe(b'S', "u"),
            run_binary("u", &[&FIVE, &ONE]),
            close(b'S', "u"),
            sync(),
        ];
        let reply = stage.client().exchange(&whole.concat());
        assert_eq!(reply.tags, "1tT2DC3Z");
    }
);

// ---- types of results -----------------------------------------------------------------------------------------------------

/// Bind that asks for binary values, Execute.
fn binary_result(name: &str) -> Vec<u8> {
    let body = [b"\0", name.as_bytes(), b"\0\0\0\0\0\0\x01\0\x01"].concat();
    [message(b'B', &body), execute("", 0)].concat()
}

both_shards!(
    binary_result_is_of_the_types_that_the_client_was_told,
    |shards| {
        // a server that never had the statement prepares it after the change
        let stage = Stage::pooled(Topology::new(shards).pool_size(3));
        table(&stage);
        let mut client = stage.client();
        prepare(&mut client, "s", "insert into t values (2, 2) returning v");
        client.exchange(&[describe(b'S', "s"), sync()].concat());
        let run = [binary_result("s"), sync()].concat();
        assert_eq!(client.exchange(&run).tags, "2DCZ");
        let _hog = holding(&stage);
        for _ in 0..2 {
            assert_eq!(client.exchange(&run).tags, "2DCZ", "nothing has changed");
        }
        let mut other = holding(&stage);
        let sql = "alter table t alter column v type real";
        other.value("commit");
        stage.database.sql(sql);
        other.value("begin");
        for _ in 0..2 {
            let reply = client.exchange(&run);
            let text = "cached plan must not change result type";
            assert_eq!((reply.tags.as_str(), reply.text()), ("EZ", text));
            assert_eq!(reply.code(), "0A000");
        }
        let count = stage
            .database
            .direct()
            .value("select count(*) from t where id = 2");
        assert_eq!(count, "3", "what is refused has not been run");
        let text = [run_prepared("s", &[]), sync()].concat();
        assert_eq!(client.exchange(&text).value(), "2", "text has no type");
        prepare(
            &mut client,
            "again",
            "insert into t values (2, 2) returning v",
        );
        client.exchange(&[describe(b'S', "again"), sync()].concat());
        let run = [binary_result("again"), sync()].concat();
        for _ in 0..2 {
            assert_eq!(client.exchange(&run).tags, "2DCZ");
        }
    }
);

both_shards!(
    result_that_is_described_with_its_rows_may_be_of_any_type,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).pool_size(2));
        table(&stage);
        let mut client = stage.client();
        prepare(&mut client, "s", "select v from t");
        client.exchange(&[describe(b'S', "s"), sync()].concat());
        let _hog = holding(&stage);
        stage.database.sql("alter table t alter column v type real");
        let body = b"\0s\0\0\0\0\0\0\x01\0\x01";
        let bind = message(b'B', body);
        let reply = client.exchange(&[bind, describe(b'P', ""), execute("", 0), sync()].concat());
        assert_eq!(reply.tags, "2TDCZ");
    }
);

both_shards!(
    result_that_is_described_in_the_same_batch_is_of_the_new_types,
    |shards| {
        // the server answers the Describe of the open batch only if it is asked to
        let stage = Stage::pooled(Topology::new(shards).pool_size(2));
        table(&stage);
        let mut client = stage.client();
        prepare(&mut client, "s", "select v from t");
        client.exchange(&[describe(b'S', "s"), sync()].concat());
        let mut hog = holding(&stage);
        stage.database.sql("alter table t alter column v type real");
        let text = [run_prepared("s", &[]), sync()].concat();
        client.send_bytewise(&text);
        assert_eq!(client.reply().value(), "1");
        let batch = [describe(b'S', "s"), binary_result("s"), sync()].concat();
        for _ in 0..2 {
            assert_eq!(client.exchange(&batch).tags, "tT2DCZ");
        }
        assert_eq!(
            client.exchange(&[binary_result("s"), sync()].concat()).tags,
            "2DCZ"
        );
        hog.value("commit");
        for is_cut in [false, true] {
            match is_cut {
                true => client.send_bytewise(&batch),
                false => client.send(&batch),
            }
            assert_eq!(client.reply().tags, "tT2DCZ");
        }
    }
);
