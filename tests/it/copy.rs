//! COPY in both directions, its failures, and its odd corners. Topology of `everywhere!`: see `support`.

use crate::support::wire::*;
use crate::support::*;

/// A client on a fresh table `t(n int)`.
fn client_with_table(stage: &Stage) -> Client {
    stage.database.sql("create table t(n int)");
    stage.client()
}

everywhere!(copy_in_stores_its_rows, |stage| {
    let mut client = client_with_table(stage);
    client.send(&query("copy t from stdin"));
    client.expect(b'G');
    let reply = client.exchange(&[copy_data(b"1\n2"), copy_data(b"\n3\n"), copy_done()].concat());
    assert_eq!(
        (reply.tags.as_str(), reply.complete),
        ("CZ", vec!["COPY 3".into()])
    );
    assert_eq!(client.value("select sum(n) from t"), "6");
});

everywhere!(copy_in_needs_no_waiting_for_the_invitation, |stage| {
    let mut client = client_with_table(stage);
    let early = [
        query("copy t from stdin"),
        copy_data(b"1\n2\n"),
        copy_done(),
    ]
    .concat();
    client.send(&[early, query("select sum(n) from t")].concat());
    assert_eq!(client.reply().tags, "GCZ");
    assert_eq!(client.reply().value(), "3");
});

everywhere!(copy_out_returns_its_rows, |stage| {
    let mut client = stage.client();
    let reply = client.query("copy (select generate_series(1, 3)) to stdout");
    assert_eq!(
        (reply.tags.as_str(), reply.complete),
        ("HdddcCZ", vec!["COPY 3".into()])
    );
    let reply = client.exchange(&extended("copy (select 1) to stdout", &[]));
    assert_eq!(reply.tags, "12nHdcCZ");
});

everywhere!(failed_copy_in_is_undone, |stage| {
    let mut client = client_with_table(stage);
    client.send(&query("copy t from stdin"));
    client.expect(b'G');
    let reply = client.exchange(&[copy_data(b"1\n"), copy_fail("changed my mind")].concat());
    assert_eq!(
        (reply.tags.as_str(), reply.code(), reply.status),
        ("EZ", "57014", b'I')
    );
    assert!(reply.text().contains("changed my mind"));
    assert_eq!(client.value("select count(*) from t"), "0");
});

everywhere!(copy_in_through_the_extended_protocol, |stage| {
    let mut client = client_with_table(stage);
    client.send(
        &[
            parse("", "copy t from stdin"),
            run_prepared("", &[]),
            flush(),
        ]
        .concat(),
    );
    [b'1', b'2', b'G'].iter().for_each(|tag| {
        client.expect(*tag);
    });
    let reply = client.exchange(&[copy_data(b"5\n"), copy_done(), sync()].concat());
    assert_eq!(reply.tags, "CZ");
    assert_eq!(client.value("select sum(n) from t"), "5");
});

everywhere!(sync_inside_copy_in_gets_no_answer, |stage| {
    let mut client = client_with_table(stage);
    client.send(
        &[
            parse("", "copy t from stdin"),
            run_prepared("", &[]),
            sync(),
        ]
        .concat(),
    );
    [b'1', b'2', b'G'].iter().for_each(|tag| {
        client.expect(*tag);
    });
    let reply = client.exchange(&[copy_data(b"5\n"), copy_done(), sync()].concat());
    assert_eq!(reply.tags, "CZ");
    assert_eq!(client.value("select sum(n) from t"), "5");
});

everywhere!(
    failed_copy_in_of_the_extended_protocol_skips_to_sync,
    |stage| {
        let mut client = client_with_table(stage);
        client.send(
            &[
                parse("", "copy t from stdin"),
                run_prepared("", &[]),
                flush(),
            ]
            .concat(),
        );
        [b'1', b'2', b'G'].iter().for_each(|tag| {
            client.expect(*tag);
        });
        let reply = client.exchange(&[copy_fail("no"), execute("", 0), sync()].concat());
        assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "57014"));
        assert_eq!(client.value("select count(*) from t"), "0");
    }
);

everywhere!(late_copy_data_after_a_server_error_is_ignored, |stage| {
    let mut client = client_with_table(stage);
    client.send(&query("copy t from stdin"));
    client.expect(b'G');
    let reply = client.exchange(&copy_data(b"not a number\n"));
    assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "22P02"));
    client.send(&[copy_data(b"1\n"), copy_data(b"2\n"), copy_done()].concat());
    assert_eq!(client.value("select count(*) from t"), "0");
    stage.database.wait_backends(0, "state <> 'idle'");
});

everywhere!(late_copy_data_does_not_reach_the_next_client, |stage| {
    let mut late = client_with_table(stage);
    let mut next = stage.client();
    late.send(&query("copy t from stdin"));
    late.expect(b'G');
    assert_eq!(late.exchange(&copy_data(b"not a number\n")).code(), "22P02");
    for n in 0..20 {
        late.send(&copy_data(b"1\n"));
        assert_eq!(next.value(&format!("select {n}")), n.to_string());
    }
    late.send(&copy_done());
    assert_eq!(
        (
            late.value("select 'late'").as_str(),
            next.value("select 'next'").as_str()
        ),
        ("late", "next")
    );
});

everywhere!(
    two_copies_in_one_query_are_served_one_after_the_other,
    |stage| {
        let mut client = client_with_table(stage);
        client.send(&query(
            "copy t from stdin; copy t to stdout; copy t from stdin",
        ));
        client.expect(b'G');
        client.send(&[copy_data(b"1\n"), copy_done()].concat());
        [b'C', b'H', b'd', b'c', b'C', b'G'].iter().for_each(|tag| {
            client.expect(*tag);
        });
        assert_eq!(
            client
                .exchange(&[copy_data(b"2\n"), copy_done()].concat())
                .tags,
            "CZ"
        );
        assert_eq!(client.value("select sum(n) from t"), "3");
    }
);

everywhere!(bulk_copy_goes_in_and_comes_back_unchanged, |stage| {
    const ROWS: usize = 400_000;
    let mut client = client_with_table(stage);
    client.send(&query("copy t from stdin"));
    client.expect(b'G');
    let lines: Vec<String> = (1..=ROWS).map(|n| format!("{n}\n")).collect();
    for chunk in lines.chunks(1000) {
        client.send(&copy_data(chunk.concat().as_bytes()));
    }
    assert_eq!(
        client.exchange(&copy_done()).complete,
        [format!("COPY {ROWS}")]
    );
    client.send(&query("copy t to stdout"));
    client.expect(b'H');
    for line in &lines {
        assert_eq!(client.expect(b'd').body, line.as_bytes());
    }
    client.expect(b'c');
    assert_eq!(client.reply().complete, [format!("COPY {ROWS}")]);
});

both_shards!(
    extended_copy_keeps_its_server_until_the_sync_behind_it,
    |shards| {
        // pool of 1: the Sync that came before the data is ignored, and the batch is open until the next
        let stage = Stage::pooled(Topology::new(shards).pool_size(1));
        let mut client = client_with_table(&stage);
        let mut other = stage.client();
        client.send(&extended("copy t from stdin", &[]));
        for tag in *b"12nG" {
            client.expect(tag);
        }
        client.send(&[copy_data(b"1\n"), copy_done(), flush()].concat());
        client.expect(b'C');
        other.send(&query("select count(*) from t"));
        wait_until("the other one waits", || {
            stage.pools(&stage.entry, "cl_waiting") == 1
        });
        client.send(&sync());
        assert_eq!(client.reply().tags, "Z");
        assert_eq!(other.reply().value(), "1", "the COPY is committed");
    }
);

everywhere!(
    extended_copy_that_fails_leaves_a_client_that_goes_on,
    |stage| {
        let mut client = client_with_table(stage);
        client.send(&extended("copy t from stdin", &[]));
        for tag in *b"12nG" {
            client.expect(tag);
        }
        let reply = client.exchange(&[copy_data(b"one\n"), copy_done(), sync()].concat());
        assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "22P02"));
        assert_eq!(client.value("select count(*) from t"), "0");
        assert_eq!(stage.client().value("select 'next'"), "next");
    }
);
