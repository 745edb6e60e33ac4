//! SHOW LOGIN_FAILURES: where failed logins came from. Not in PgBouncer.

use super::date::timestamp;
use crate::admin::office::FailureRow;
use crate::admin::table::{Column, Row, Value};

pub(in crate::admin) const LOGIN_FAILURES: &[Column] = &[
    Column::text("address"),
    Column::int8("recent"),
    Column::int8("total"),
    Column::int8("refused"),
    Column::text("last_failure"),
    Column::int4("blocked"),
];

/// Rows of SHOW LOGIN_FAILURES.
pub(super) fn login_failures(rows: Vec<FailureRow>) -> Vec<Row> {
    rows.into_iter().map(row).collect()
}

fn row(of: FailureRow) -> Row {
    let address = match of.address {
        std::net::IpAddr::V4(v4) => v4.to_string(),
        std::net::IpAddr::V6(network) => format!("{network}/64"),
    };
    vec![
        Value::text(address),
        Value::int8(u64::from(of.failures.recent)),
        Value::int8(of.failures.total),
        Value::int8(of.failures.refused),
        Value::text(timestamp(of.failures.last_unix_us)),
        Value::int4(u32::from(of.is_blocked)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::show::testing::printed;
    use crate::auth::{FailureLimit, LoginFailures};
    use crate::base::Moment;
    use std::time::Duration;

    #[test]
    fn row_says_who_failed_how_often_and_whether_it_is_refused() {
        let mut table = LoginFailures::default();
        let (now, window) = (Moment::default(), Duration::from_secs(60));
        let limit = FailureLimit { max: 1, window };
        table.failed("fd00::1".parse().unwrap(), now, 0, window);
        assert!(!table.allows("fd00::2".parse().unwrap(), now, limit));
        let rows = table.rows(now, limit).into_iter();
        let rows = rows.map(|(address, failures, is_blocked)| FailureRow {
            address,
            failures,
            is_blocked,
        });
        let line = printed(LOGIN_FAILURES, &login_failures(rows.collect())[0]);
        let want = ["fd00::/64", "1", "1", "1", "1970-01-01 00:00:00 UTC", "1"];
        let values = LOGIN_FAILURES.iter().zip(want);
        let want: Vec<_> = values
            .map(|(column, value)| format!("{}={value}", column.name))
            .collect();
        assert_eq!(line, want.join(" "));
    }
}
