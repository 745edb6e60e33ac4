//! What the tests of all tables share.

use crate::admin::office::ClientRow;
use crate::admin::table::{Column, Row, Type, Value};
use crate::base::ShardId;
use crate::client::ClientState;
use crate::net::Endpoint;
use crate::wire::Replication;

/// Asserts that `columns` are those of `list`, written as PgBouncer's reference has them: names,
/// each with its type's letter, as in `database t, pool_size i`.
pub fn assert_columns(columns: &[Column], list: &str) {
    let letter = |column: &Column| match column.kind {
        Type::Text => 't',
        Type::Int4 => 'i',
        Type::Int8 => 'q',
        Type::Numeric => 'n',
        Type::Bytea => 'b',
    };
    let written = columns
        .iter()
        .map(|column| format!("{} {}", column.name, letter(column)));
    let written: Vec<_> = written.collect();
    let expected: Vec<_> = list.split(',').map(str::trim).collect();
    assert_eq!(written, expected);
}

/// Asserts that every row has a value of the right type for each column.
pub fn assert_fits(columns: &[Column], rows: &[Row]) {
    for row in rows {
        assert_eq!(row.len(), columns.len(), "{row:?}");
        for (column, value) in columns.iter().zip(row) {
            let fits = match value {
                Value::Null => true,
                Value::Text(_) | Value::Shared(_) => column.kind == Type::Text,
                Value::Int4(_) => column.kind == Type::Int4,
                Value::Int8(_) => column.kind == Type::Int8,
                Value::Numeric(_) => column.kind == Type::Numeric,
            };
            assert!(fits, "{} cannot be {value:?}", column.name);
        }
    }
}

/// The row as a person sees it: values by column, `~` for null.
pub fn printed(columns: &[Column], row: &Row) -> String {
    assert_fits(columns, std::slice::from_ref(row));
    let pairs = columns.iter().zip(row).map(|(column, value)| {
        let text = match value {
            Value::Null => "~".to_owned(),
            Value::Text(text) => text.to_string(),
            Value::Shared(text) => text.to_string(),
            Value::Int4(number) => number.to_string(),
            Value::Int8(number) => number.to_string(),
            Value::Numeric(number) => number.to_string(),
        };
        format!("{}={text}", column.name)
    });
    pairs.collect::<Vec<_>>().join(" ")
}

/// A client over TCP.
pub fn client_row() -> ClientRow {
    ClientRow {
        shard: ShardId(0),
        id: 7,
        user: "ann".into(),
        database: "shop".into(),
        replication: Replication::None,
        state: ClientState::Active,
        remote: Endpoint::Tcp("10.0.0.1:40000".parse().unwrap()),
        local: Endpoint::Tcp("10.0.0.2:6432".parse().unwrap()),
        connected_unix_us: 1_795_416_828_000_000,
        requested_unix_us: 1_795_416_829_999_999,
        wait_us: 0,
        link: Some(26),
        tls: None,
        application_name: "psql".into(),
        prepared_statements: 3,
    }
}
