//! Values as SHOW CONFIG and the log of a reload print them: PgBouncer's notation, no secrets.

use super::dialect::Dialect;
use super::keys::{Key, Reload};
use super::kind::{Bare, Kind};
use super::model::Config;
use super::units::seconds_as_g;
use super::value::Value;

/// What stands for a secret.
const MASK: &str = "********";

/// The rows of SHOW CONFIG: key, value, default, changeable (`yes` if a reload applies a new
/// value), by name of key.
pub fn config_rows(config: &Config) -> Vec<[String; 4]> {
    let rows = config.general.values().into_iter().map(|(key, value)| {
        let changeable = if key.reload == Reload::Restart {
            "no"
        } else {
            "yes"
        };
        let preset = shown(key, &config.dialect.preset_value(key));
        let shown = match shown(key, &value) {
            // The file that is read again, as PgBouncer shows it.
            text if text.is_empty() && key.name == "conffile" && config.dialect == Dialect::Ini => {
                config.path.display().to_string()
            }
            text => text,
        };
        [key.name.to_owned(), shown, preset, changeable.to_owned()]
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort();
    rows
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
        let found = config_rows(&config).into_iter().find(|row| row[0] == name);
        found.map(Vec::from).unwrap_or_default()
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
        assert!(rows.is_sorted_by(|one, next| one[0] < next[0]));
        let general = keys().filter(|key| key.section == crate::config::Section::General);
        assert_eq!(rows.len(), general.count());
    }
}
