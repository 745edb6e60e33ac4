//! The ordinary work of tokio-postgres: what a driver does besides logging in.

use std::thread;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt, pin_mut};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};

use crate::support::*;

async fn connect(stage: &Stage) -> Client {
    let connected = driver::connect(stage.address(), "postgres", "", &stage.entry).await;
    connected.unwrap()
}

/// A client on a fresh table `t(n int primary key)`.
async fn client_with_table(stage: &Stage) -> Client {
    stage.database.sql("create table t(n int primary key)");
    connect(stage).await
}

/// The rows of `t` as PostgreSQL itself has them.
fn rows(stage: &Stage) -> String {
    let sql = "select coalesce(string_agg(n::text, ' ' order by n), '') from t";
    stage.database.sql(sql).value()
}

#[track_caller]
fn assert_fails<T: std::fmt::Debug>(outcome: Result<T, Error>, code: &SqlState) {
    assert_eq!(outcome.unwrap_err().code(), Some(code));
}

async fn backend(client: &Client) -> i32 {
    let row = client.query_one("select pg_backend_pid()", &[]).await;
    row.unwrap().get(0)
}

/// A client in a transaction on this server, so that nobody else gets it.
async fn occupied(stage: &Stage, server: i32) -> Client {
    let mut holders = Vec::new();
    loop {
        let holder = connect(stage).await;
        holder.batch_execute("begin").await.unwrap();
        if backend(&holder).await == server {
            return holder;
        }
        // The others keep theirs until then, so that none is met twice.
        holders.push(holder);
    }
}

everywhere!(prepared_query_takes_its_parameters_on_any_server, |stage| {
    driver::block_on(async {
        let client = connect(stage).await;
        let sql = "select $1::int4 + 1, $2::text, $3::bytea, $4::int8 is null, pg_backend_pid()";
        let prepared = client.prepare(sql).await.unwrap();
        assert_eq!(
            prepared.params(),
            [Type::INT4, Type::TEXT, Type::BYTEA, Type::INT8]
        );
        let ask = async |n: i32| {
            let (text, bytes) = ("it's".repeat(n as usize), vec![0_u8, 0xff]);
            let row = client
                .query_one(&prepared, &[&n, &text, &bytes, &None::<i64>])
                .await
                .unwrap();
            assert_eq!(
                (row.get::<_, i32>(0), row.get::<_, &str>(1)),
                (n + 1, &*text)
            );
            assert_eq!((row.get::<_, &[u8]>(2), row.get(3)), (&bytes[..], true));
            row.get::<_, i32>(4)
        };
        let first = ask(1).await;
        if !stage.is_direct() {
            let _holder = occupied(stage, first).await;
            assert_ne!(ask(2).await, first, "the server is taken");
        }
        ask(10_000).await;
        let typed = client.query_typed("select $1 * 2", &[(&21_i32, Type::INT4)]);
        assert_eq!(typed.await.unwrap()[0].get::<_, i32>(0), 42);
    });
    stage.assert_no_leak();
});

everywhere!(pipelined_queries_get_their_own_answers, |stage| {
    driver::block_on(async {
        let client = &connect(stage).await;
        let divide = &client.prepare("select 840 / $1::int4").await.unwrap();
        let answers = join_all((0..8).cycle().take(400).map(|n: i32| async move {
            let row = client.query_one(divide, &[&n]).await;
            (n, row.map(|row| row.get::<_, i32>(0)))
        }));
        for (n, answer) in answers.await {
            if n == 0 {
                assert_fails(answer, &SqlState::DIVISION_BY_ZERO);
            } else {
                assert_eq!(answer.unwrap(), 840 / n);
            }
        }
    });
    stage.assert_no_leak();
});

everywhere!(transactions_commit_and_roll_back, |stage| {
    driver::block_on(async {
        let mut client = client_with_table(stage).await;
        let insert = client.prepare("insert into t values ($1)").await.unwrap();
        let committed = client.transaction().await.unwrap();
        assert_eq!(committed.execute(&insert, &[&1]).await.unwrap(), 1);
        assert_eq!(rows(stage), "");
        committed.commit().await.unwrap();
        let undone = client.transaction().await.unwrap();
        undone.execute(&insert, &[&2]).await.unwrap();
        undone.rollback().await.unwrap();
        let dropped = client.transaction().await.unwrap();
        dropped.execute(&insert, &[&3]).await.unwrap();
        drop(dropped);
        client.execute(&insert, &[&4]).await.unwrap();
        assert_eq!(rows(stage), "1 4");
    });
    stage.assert_no_leak();
});

everywhere!(savepoint_undoes_what_came_after_it, |stage| {
    driver::block_on(async {
        let mut client = client_with_table(stage).await;
        let mut outer = client.transaction().await.unwrap();
        outer
            .execute("insert into t values (1)", &[])
            .await
            .unwrap();
        let inner = outer.savepoint("halfway").await.unwrap();
        inner
            .execute("insert into t values (2)", &[])
            .await
            .unwrap();
        let again = inner.execute("insert into t values (1)", &[]).await;
        assert_fails(again, &SqlState::UNIQUE_VIOLATION);
        inner.rollback().await.unwrap();
        let kept = outer.transaction().await.unwrap();
        kept.execute("insert into t values (3)", &[]).await.unwrap();
        kept.commit().await.unwrap();
        outer.commit().await.unwrap();
        assert_eq!(rows(stage), "1 3");
    });
    stage.assert_no_leak();
});

everywhere!(portal_gives_its_rows_in_portions, |stage| {
    driver::block_on(async {
        let mut client = connect(stage).await;
        let transaction = client.transaction().await.unwrap();
        let portal = transaction.bind("select generate_series(1, $1)", &[&5]);
        let portal = portal.await.unwrap();
        for portion in [&[1, 2][..], &[3, 4], &[5]] {
            let rows = transaction.query_portal(&portal, 2).await.unwrap();
            let values: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
            assert_eq!(values, portion);
        }
        transaction.commit().await.unwrap();
    });
    stage.assert_no_leak();
});

everywhere!(driver_recovers_from_every_error, |stage| {
    driver::block_on(async {
        let mut client = client_with_table(stage).await;
        assert_fails(client.prepare("selec").await, &SqlState::SYNTAX_ERROR);
        let divide = client.prepare("select 1 / $1::int4").await.unwrap();
        let by_zero = client.query(&divide, &[&0]).await;
        assert_fails(by_zero, &SqlState::DIVISION_BY_ZERO);
        let failed = client.transaction().await.unwrap();
        failed
            .batch_execute("insert into t values (1)")
            .await
            .unwrap();
        let by_zero = failed.query(&divide, &[&0]).await;
        assert_fails(by_zero, &SqlState::DIVISION_BY_ZERO);
        let late = failed.query(&divide, &[&1]).await;
        assert_fails(late, &SqlState::IN_FAILED_SQL_TRANSACTION);
        failed.rollback().await.unwrap();
        let row = client.query_one(&divide, &[&1]).await.unwrap();
        assert_eq!((row.get::<_, i32>(0), rows(stage).as_str()), (1, ""));
    });
    stage.assert_no_leak();
});

everywhere!(copy_carries_rows_in_and_out, |stage| {
    driver::block_on(async {
        let client = client_with_table(stage).await;
        let lines: Vec<String> = (0..50_000).map(|n| format!("{n}\n")).collect();
        let sink = client.copy_in("copy t from stdin").await.unwrap();
        pin_mut!(sink);
        for part in lines.chunks(999) {
            let part = part.concat().into_bytes();
            sink.send(Bytes::from(part)).await.unwrap();
        }
        assert_eq!(sink.finish().await.unwrap(), 50_000);
        {
            // Dropped before its end: it fails.
            let given_up = client.copy_in("copy t from stdin").await.unwrap();
            pin_mut!(given_up);
            given_up.send(Bytes::from_static(b"-1\n")).await.unwrap();
        }
        let doubled = client.copy_in("copy t from stdin").await.unwrap();
        pin_mut!(doubled);
        doubled.send(Bytes::from_static(b"7\n")).await.unwrap();
        assert_fails(doubled.finish().await, &SqlState::UNIQUE_VIOLATION);
        let stream = client.copy_out("copy (select * from t order by n) to stdout");
        let chunks = stream.await.unwrap().collect::<Vec<_>>().await;
        let copied: Vec<u8> = chunks.into_iter().flat_map(Result::unwrap).collect();
        assert_eq!(copied, lines.concat().into_bytes());
    });
    stage.assert_no_leak();
});

everywhere!(simple_query_runs_several_statements, |stage| {
    driver::block_on(async {
        let client = client_with_table(stage).await;
        let sql =
            "insert into t values (1), (2); select n from t order by n; delete from t where n = 1";
        let messages = client.simple_query(sql).await.unwrap();
        let shown = messages.iter().map(|message| match message {
            SimpleQueryMessage::Row(row) => format!("row {}", row.get("n").unwrap()),
            SimpleQueryMessage::CommandComplete(count) => format!("done {count}"),
            SimpleQueryMessage::RowDescription(columns) => columns[0].name().to_owned(),
            _ => panic!("{message:?}"),
        });
        let shown: Vec<String> = shown.collect();
        assert_eq!(shown, ["done 2", "n", "row 1", "row 2", "done 2", "done 1"]);
        let failed = client.simple_query("insert into t values (3); select 1/0; select 1");
        assert_fails(failed.await, &SqlState::DIVISION_BY_ZERO);
        client
            .batch_execute("begin; insert into t values (4); commit")
            .await
            .unwrap();
        assert_eq!(rows(stage), "2 4");
    });
    stage.assert_no_leak();
});

everywhere!(cancel_token_stops_its_clients_query, |stage| {
    thread::scope(|scope| {
        driver::block_on(async {
            let client = connect(stage).await;
            let token = client.cancel_token();
            scope.spawn(move || {
                let sleeps = "state = 'active' and query = 'select pg_sleep(600)'";
                stage.database.wait_backends(1, sleeps);
                driver::block_on(token.cancel_query(NoTls)).unwrap();
            });
            let slept = client.query("select pg_sleep(600)", &[]).await;
            assert_fails(slept, &SqlState::QUERY_CANCELED);
            let row = client.query_one("select 'alive'", &[]).await.unwrap();
            assert_eq!(row.get::<_, &str>(0), "alive");
        });
    });
    stage.assert_no_leak();
});
