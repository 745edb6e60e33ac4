//! Simple and extended queries, pipelines, portals, sizes and pieces. Topology of `everywhere!`: see `support`.

use crate::support::wire::*;
use crate::support::*;

const HUGE: usize = 8 << 20;

everywhere!(simple_query_returns_its_rows, |stage| {
    let mut client = stage.client();
    let reply = client.query("select 1 as one, null as nothing union all select 2, 'x'");
    assert_eq!((reply.tags.as_str(), reply.status), ("TDDCZ", b'I'));
    assert_eq!(reply.columns, ["one", "nothing"]);
    assert_eq!(
        reply.rows,
        [
            [Some("1".into()), None],
            [Some("2".into()), Some("x".into())]
        ]
    );
    assert_eq!(reply.complete, ["SELECT 2"]);
});

everywhere!(several_statements_in_one_query_are_all_answered, |stage| {
    let mut client = stage.client();
    let reply =
        client.query("select 1; create table t(n int); insert into t values (7); select n from t");
    assert_eq!(reply.tags, "TDCCCTDCZ");
    assert_eq!(
        reply.complete,
        ["SELECT 1", "CREATE TABLE", "INSERT 0 1", "SELECT 1"]
    );
});

everywhere!(empty_query_is_answered_as_empty, |stage| {
    let mut client = stage.client();
    assert_eq!(client.query("").tags, "IZ");
    assert_eq!(client.query(" ; ").tags, "IZ");
    assert_eq!(client.exchange(&extended("", &[])).tags, "12nIZ");
});

everywhere!(extended_query_returns_its_rows, |stage| {
    let mut client = stage.client();
    let reply = client.exchange(&extended("select $1::int + 1", &["41"]));
    assert_eq!(
        (reply.tags.as_str(), reply.value().as_str()),
        ("12TDCZ", "42")
    );
});

everywhere!(lone_sync_is_answered, |stage| {
    let mut client = stage.client();
    assert_eq!(client.exchange(&sync()).tags, "Z");
    assert_eq!(client.exchange(&[sync(), sync()].concat()).tags, "Z");
    assert_eq!(client.reply().tags, "Z");
});

everywhere!(pipeline_of_many_syncs_is_answered_in_order, |stage| {
    let mut client = stage.client();
    let ask = |n: u32| extended("select $1::int", &[&n.to_string()]);
    client.send(&(0..200).flat_map(ask).collect::<Vec<u8>>());
    for n in 0..200 {
        let reply = client.reply();
        assert_eq!(
            (reply.tags.as_str(), reply.value()),
            ("12TDCZ", n.to_string())
        );
    }
});

everywhere!(pipeline_mixes_simple_and_extended_queries, |stage| {
    let mut client = stage.client();
    let first = [query("select 'a'"), extended("select 'b'", &[])].concat();
    client.send(&[first, query("select 1/0"), query("select 'c'")].concat());
    let replies: Vec<_> = (0..4).map(|_| client.reply()).collect();
    assert_eq!(
        replies
            .iter()
            .map(|reply| reply.value())
            .collect::<Vec<_>>(),
        ["a", "b", "", "c"]
    );
    assert_eq!(replies[2].code(), "22012");
});

everywhere!(flush_brings_answers_without_sync, |stage| {
    let mut client = stage.client();
    client.send(
        &[
            parse("", "select 'early'"),
            bind("", "", &[]),
            execute("", 0),
            flush(),
        ]
        .concat(),
    );
    client.expect(b'1');
    client.expect(b'2');
    assert_eq!(client.expect(b'D').values(), [Some("early".into())]);
    client.expect(b'C');
    assert_eq!(client.exchange(&sync()).tags, "Z");
});

everywhere!(parse_and_flush_alone_keep_the_conversation_open, |stage| {
    let mut client = stage.client();
    client.send(&[parse("", "select $1::text"), describe(b'S', ""), flush()].concat());
    ["1", "t", "T"].iter().for_each(|tag| {
        client.expect(tag.as_bytes()[0]);
    });
    let reply = client.exchange(&[run_prepared("", &["late"]), sync()].concat());
    assert_eq!(
        (reply.tags.as_str(), reply.value().as_str()),
        ("2DCZ", "late")
    );
});

everywhere!(portal_hands_out_its_rows_in_portions, |stage| {
    let mut client = stage.client();
    assert_eq!(client.query("begin").status, b'T');
    let open = [
        parse("", "select generate_series(1, 5)"),
        bind("cursor", "", &[]),
    ]
    .concat();
    let reply = client.exchange(&[open, execute("cursor", 2), sync()].concat());
    assert_eq!(reply.tags, "12DDsZ");
    let reply = client.exchange(&[execute("cursor", 2), sync()].concat());
    assert_eq!((reply.tags.as_str(), reply.value().as_str()), ("DDsZ", "3"));
    let reply = client.exchange(&[execute("cursor", 2), close(b'P', "cursor"), sync()].concat());
    assert_eq!(
        (reply.tags.as_str(), reply.value().as_str(), reply.status),
        ("DC3Z", "5", b'T')
    );
    assert_eq!(client.query("commit").status, b'I');
});

everywhere!(error_in_mid_pipeline_skips_to_the_next_sync, |stage| {
    let mut client = stage.client();
    let good = [parse("", "select 'good'"), run_prepared("", &[])].concat();
    let bad = [parse("", "select 1/$1::int"), run_prepared("", &["0"])].concat();
    client.send(&[&good[..], &bad, &good, &sync(), &good, &sync()].concat());
    let reply = client.reply();
    assert_eq!(
        (reply.tags.as_str(), reply.code(), reply.status),
        ("12DC1EZ", "22012", b'I')
    );
    assert_eq!(client.reply().tags, "12DCZ");
    assert_eq!(client.value("select 'after'"), "after");
});

everywhere!(
    syntax_error_in_parse_leaves_the_connection_usable,
    |stage| {
        let mut client = stage.client();
        let reply = client.exchange(&extended("selec 1", &[]));
        assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "42601"));
        assert_eq!(client.exchange(&extended("select 1", &[])).value(), "1");
    }
);

everywhere!(
    unknown_portal_and_statement_are_errors_of_that_request_only,
    |stage| {
        let mut client = stage.client();
        assert_eq!(
            client
                .exchange(&[execute("nowhere", 0), sync()].concat())
                .code(),
            "34000"
        );
        assert_eq!(
            client
                .exchange(&[describe(b'P', "nowhere"), sync()].concat())
                .code(),
            "34000"
        );
        assert_eq!(client.value("select 1"), "1");
    }
);

everywhere!(query_text_larger_than_any_buffer_arrives, |stage| {
    let mut client = stage.client();
    let text = "y".repeat(HUGE);
    assert_eq!(
        client.value(&format!("select length('{text}')")),
        HUGE.to_string()
    );
    let reply = client.exchange(&extended("select length($1)", &[&text]));
    assert_eq!(reply.value(), HUGE.to_string());
});

everywhere!(row_larger_than_any_buffer_arrives, |stage| {
    let mut client = stage.client();
    let value = client.value(&format!("select repeat('x', {HUGE})"));
    assert!(value.len() == HUGE && value.bytes().all(|byte| byte == b'x'));
});

everywhere!(many_small_rows_arrive_in_order, |stage| {
    let mut client = stage.client();
    let reply = client.query("select generate_series(1, 100000)");
    let numbers = reply
        .rows
        .iter()
        .map(|row| row[0].as_deref().unwrap().parse::<usize>().unwrap());
    assert!(numbers.eq(1..=100_000));
});

everywhere!(session_in_one_byte_pieces_is_understood, |stage| {
    let mut client = Client::connect(stage.address());
    client.send_bytewise(&ssl_request());
    assert_eq!(client.read_byte(), b'N');
    let params = [("user", "postgres"), ("database", stage.entry.as_str())];
    client.send_bytewise(&startup(PROTOCOL_3_0, &params));
    assert_eq!(client.reply().status, b'I');
    client.send_bytewise(&query("select 'simple'"));
    assert_eq!(client.reply().value(), "simple");
    client.send_bytewise(&extended("select $1", &["extended"]));
    assert_eq!(client.reply().value(), "extended");
    client.send_bytewise(&[parse("named", "select $1::int"), sync()].concat());
    assert_eq!(client.reply().tags, "1Z");
    client.send_bytewise(&[run_prepared("named", &["7"]), sync()].concat());
    assert_eq!(client.reply().value(), "7");
});

everywhere!(messages_cut_at_every_byte_are_understood, |stage| {
    let mut client = stage.client();
    let request = [query("select 'q'"), extended("select $1", &["e"])].concat();
    for cut in 0..=request.len() {
        client.send(&request[..cut]);
        client.send(&request[cut..]);
        assert_eq!(
            (
                client.reply().value().as_str(),
                client.reply().value().as_str()
            ),
            ("q", "e")
        );
    }
});

both_shards!(reply_in_one_byte_pieces_is_relayed, |shards| {
    let server = FakeServer::start(|mut server| {
        if server.read_startup() {
            server.send_bytewise(&peer::Conversation::greeting());
            while server.next_request().is_some() {
                server.send_bytewise(&peer::Conversation::one_row("crumbs"));
            }
        }
    });
    let pooler = Pooler::start(&Topology::new(shards).database_at("fake", server.address, &[]));
    let mut client = Client::login(pooler.address, "fake");
    for _ in 0..20 {
        assert_eq!(client.value("select x"), "crumbs");
    }
});

everywhere!(notice_reaches_the_client, |stage| {
    let mut client = stage.client();
    let reply = client.query("do $$ begin raise notice 'look here'; end $$");
    assert_eq!(
        (reply.notices, reply.complete),
        (vec!["look here".into()], vec!["DO".into()])
    );
});

everywhere!(terminate_ends_the_connection, |stage| {
    let mut client = stage.client();
    assert_eq!(client.value("select 1"), "1");
    client.send(&terminate());
    client.expect_closed();
    stage.assert_no_leak();
});
