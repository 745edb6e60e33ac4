//! Named prepared statements where a name's past matters: what an error undid, what came ahead in the same pipeline.

use crate::support::wire::*;
use crate::support::*;

#[track_caller]
fn prepare(client: &mut Client, name: &str, sql: &str) {
    let reply = client.exchange(&[parse(name, sql), sync()].concat());
    assert_eq!(reply.tags, "1Z", "{reply:?}");
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
        let mut hog = stage.client();
        hog.value("begin");
        assert_stores_five(&stage, &mut client);
        hog.value("commit");
    }
});

both_shards!(each_client_has_the_types_of_its_own_parse, |shards| {
    // the server that the second client prepares on knows the statement from the first, who prepared before the change
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let mut old = described_before_the_change(&stage, "real");
    let mut hog = stage.client();
    hog.value("begin");
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
    let mut hog = stage.client();
    hog.value("begin");
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
    let mut hog = stage.client();
    hog.value("begin");
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
