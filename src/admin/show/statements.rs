//! SHOW PREPARED_STATEMENTS: the statements that clients have prepared, the most used first.

use crate::admin::office::{Access, StatementRow};
use crate::admin::table::{Column, Row, Value};
use std::cmp::Reverse;

pub(in crate::admin) const PREPARED_STATEMENTS: &[Column] = &[
    Column::text("name"),
    Column::text("text"),
    Column::int8("bytes"),
    Column::int4("names"),
    Column::int8("hits"),
    Column::int8("misses"),
    Column::int8("evictions"),
];

/// The rows; texts, which may hold values, are for admins.
pub(super) fn statements(mut rows: Vec<StatementRow>, access: Access) -> Vec<Row> {
    rows.sort_by(|a, b| (Reverse(a.hits), &a.name).cmp(&(Reverse(b.hits), &b.name)));
    let rows = rows.into_iter().map(|row| {
        vec![
            Value::text(row.name),
            match access {
                Access::Admin => Value::text(row.text),
                Access::Stats => Value::Null,
            },
            Value::int8(row.bytes),
            Value::int4(row.names),
            Value::int8(row.hits),
            Value::int8(row.misses),
            Value::int8(row.evictions),
        ]
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::show::testing::printed;

    #[test]
    fn most_used_comes_first_and_its_text_is_for_admins() {
        let row = |name: &str, hits| StatementRow {
            name: name.to_owned(),
            text: "select 1".to_owned(),
            bytes: 170,
            names: 2,
            hits,
            misses: 3,
            evictions: 1,
        };
        let rows = || vec![row("rb_a", 5), row("rb_b", 9)];
        let lines = |access| {
            let rows = statements(rows(), access);
            rows.iter()
                .map(|row| printed(PREPARED_STATEMENTS, row))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            lines(Access::Admin)[0],
            "name=rb_b text=select 1 bytes=170 names=2 hits=9 misses=3 evictions=1"
        );
        assert!(lines(Access::Stats)[1].starts_with("name=rb_a text=~ bytes=170 "));
    }
}
