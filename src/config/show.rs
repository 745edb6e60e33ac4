//! Values as SHOW CONFIG and the log of a reload print them: PgBouncer's notation, no secrets.

use super::dialect::Dialect;
use super::ini::keeps_its_value;
use super::keys::{Key, Reload};
use super::kind::{Bare, Kind};
use super::model::Config;
use super::units::seconds_as_g;
use super::value::Value;

/// What stands for a secret.
const MASK: &str = "********";

/// PgBouncer's options that mean nothing here: name, default, and whether PgBouncer could change it.
const FOREIGN: [(&str, &str, bool); 5] = [
    ("dns_zone_check_period", "0", true),
    ("job_name", "pgbouncer", false),
    ("pkt_buf", "4096", false),
    ("resolv_conf", "", false),
    ("sbuf_loopcnt", "5", true),
];

/// A row of SHOW CONFIG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its key.
    pub key: &'static str,
    /// Its value; none where PgBouncer has a null.
    pub value: Option<String>,
    /// What it has while the file does not say, likewise.
    pub default: Option<String>,
    /// Whether a reload applies a new value.
    pub is_changeable: bool,
}

/// The rows of SHOW CONFIG, by name of key. With a file of PgBouncer's its options that mean nothing here are among
/// them, with their defaults.
pub fn config_rows(config: &Config) -> Vec<Setting> {
    let values = config.general.values().into_iter();
    let mut rows: Vec<_> = values
        .map(|(key, value)| row(config, key, &value))
        .collect();
    if config.dialect == Dialect::Ini {
        rows.extend(FOREIGN.map(|(key, default, is_changeable)| Setting {
            key,
            value: Some(default.to_owned()),
            default: Some(default.to_owned()),
            is_changeable,
        }));
    }
    rows.sort_by_key(|row| row.key);
    rows
}

fn row(config: &Config, key: &Key, value: &Value) -> Setting {
    let mut row = Setting {
        key: key.name,
        value: Some(shown(key, value)),
        default: Some(shown(key, &config.dialect.preset_value(key))),
        is_changeable: key.reload != Reload::Restart,
    };
    if config.dialect == Dialect::Ini {
        if keeps_its_value(key.name) {
            row.default = None;
            row.value = row.value.filter(|value| !value.is_empty());
        }
        match key.name {
            "conffile" if row.value.is_none() => {
                row.value = Some(config.path.display().to_string())
            }
            // As it is written, which the value is not.
            "unix_socket_mode" => row.default = Some("0777".to_owned()),
            _ => {}
        }
    }
    row
}

/// `value` in PgBouncer's notation: booleans as 0 and 1, spans of time as `%g` in the unit of a
/// bare number, sizes in bytes, file modes in decimal, lists with commas, nothing for unset.
pub(super) fn shown(key: &Key, value: &Value) -> String {
    match value {
        Value::Unset => String::new(),
        Value::Bool(on) => u8::from(*on).to_string(),
        Value::Int(number) => number.to_string(),
        Value::Duration(span) => {
            let seconds = span.as_secs_f64();
            let millis = matches!(
                key.kind,
                Kind::Duration {
                    bare: Bare::Millis,
                    ..
                }
            );
            if millis {
                span.as_millis().to_string()
            } else {
                seconds_as_g(seconds)
            }
        }
        Value::Text(text) => text.clone(),
        Value::List(entries) => entries.join(","),
        Value::Numbers(numbers) => numbers
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(","),
        Value::Secret(_) => MASK.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::keys;
    use std::path::Path;

    fn row(text: &str, name: &str) -> Vec<String> {
        let text = format!("ringbouncer.auth_type = \"trust\"\n{text}");
        let config = Config::parse(&text, Path::new("/etc/r.toml")).expect("valid");
        let found = config_rows(&config).into_iter().find(|row| row.key == name);
        let row = found.expect("a row");
        let is_changeable = if row.is_changeable { "yes" } else { "no" };
        let shown = [row.value.unwrap(), row.default.unwrap()];
        let [value, default] = shown;
        vec![row.key.to_owned(), value, default, is_changeable.to_owned()]
    }

    #[test]
    fn rows_print_like_pgbouncer() {
        let cases = [
            (
                "query_timeout = \"250ms\"",
                ["query_timeout", "0.25", "0", "yes"],
            ),
            ("", ["server_lifetime", "3600", "3600", "yes"]),
            (
                "log_connections = false",
                ["log_connections", "0", "1", "yes"],
            ),
            ("", ["unix_socket_mode", "511", "511", "no"]),
            ("", ["unix_socket_dir", "", "", "no"]),
            (
                "auth_file = \"users\"",
                ["auth_file", "/etc/users", "", "yes"],
            ),
            (
                "admin_users = [\"a\", \"b\"]",
                ["admin_users", "a,b", "", "yes"],
            ),
            (
                "tcp_user_timeout = \"3s\"",
                ["tcp_user_timeout", "3000", "0", "yes"],
            ),
            (
                "max_packet_size = \"4 MiB\"",
                ["max_packet_size", "4194304", "2147483647", "yes"],
            ),
            (
                "pool_mode = \"session\"",
                ["pool_mode", "session", "transaction", "yes"],
            ),
            ("cpus = [2, 3]", ["cpus", "2,3", "", "no"]),
        ];
        for (setting, expected) in cases {
            let text = if setting.is_empty() {
                String::new()
            } else {
                format!("ringbouncer.{setting}")
            };
            assert_eq!(row(&text, expected[0]), expected);
        }
    }

    #[test]
    fn rows_are_sorted_and_complete() {
        let rows = config_rows(&Config::default());
        assert!(rows.is_sorted_by(|one, next| one.key < next.key));
        let general = keys().filter(|key| key.section == crate::config::Section::General);
        assert_eq!(rows.len(), general.count());
    }
}
