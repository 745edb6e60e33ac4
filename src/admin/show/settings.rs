//! SHOW CONFIG and SHOW VERSION.

use crate::admin::table::{Column, Row, Value};
use crate::config::{Config, config_rows};

/// The columns of what is no table.
pub(in crate::admin) const NONE: &[Column] = &[];

pub(in crate::admin) const VERSION: &[Column] = &[Column::text("version")];

pub(in crate::admin) const CONFIG: &[Column] = &[
    Column::text("key"),
    Column::text("value"),
    Column::text("default"),
    Column::text("changeable"),
];

/// Name and version of the program.
pub(in crate::admin) const PROGRAM: &str = concat!("Ringbouncer ", env!("CARGO_PKG_VERSION"));

/// Rows of SHOW CONFIG.
pub(super) fn config(config: &Config) -> Vec<Row> {
    let or_null = |text: Option<String>| text.map_or(Value::Null, Value::text);
    let rows = config_rows(config).into_iter();
    rows.map(|row| {
        let changeable = if row.is_changeable { "yes" } else { "no" };
        vec![
            Value::text(row.key),
            or_null(row.value),
            or_null(row.default),
            Value::text(changeable),
        ]
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::show::testing::{assert_columns, assert_fits, printed};

    #[test]
    fn columns_are_pgbouncers() {
        assert_columns(VERSION, "version t");
        assert_columns(CONFIG, "key t, value t, default t, changeable t");
    }

    #[test]
    fn settings_are_listed_by_name() {
        let rows = config(&Config::default());
        assert_fits(CONFIG, &rows);
        let lines: Vec<_> = rows.iter().map(|row| printed(CONFIG, row)).collect();
        assert!(lines.is_sorted());
        let line = "key=default_pool_size value=20 default=20 changeable=yes";
        assert!(lines.iter().any(|found| found == line), "{lines:?}");
    }

    #[test]
    fn version_is_the_packages() {
        assert!(PROGRAM.starts_with("Ringbouncer 0."));
    }
}
