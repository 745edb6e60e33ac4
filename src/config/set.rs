//! One setting of a configuration in force, changed by its text as SHOW CONFIG prints it (SET of the
//! console); and what of a configuration in force outlasts a reload.

use super::cross;
use super::dialect::Dialect;
use super::ini;
use super::keys::{GENERAL_KEYS, General, Key, Reload, Values};
use super::kind::Kind;
use super::model::Config;
use super::value::Value;
use toml::de::DeValue;

impl Config {
    /// This configuration with `name` of `[ringbouncer]` set to what `written` says, in the notation of its file. A
    /// setting that needs a restart keeps its value, though `written` must be one that it could have. `None` if there is
    /// no such setting, or it cannot have such a value. Whether TLS settings go together is not asked:
    /// [`Config::tls_fault`].
    pub fn with_setting(&self, name: &str, written: &str) -> Option<Config> {
        let mut config = self.clone();
        let is_ini = self.dialect == Dialect::Ini;
        if is_ini && ini::has_no_effect(name, written) {
            return Some(config);
        }
        let key = GENERAL_KEYS.iter().find(|key| key.name == name)?;
        let value = match is_ini {
            true => {
                let reading = ini::reading(key, written.trim()).ok()?;
                let remark = reading.remark.map(|remark| format!("{name}: {remark}"));
                config.remarks.extend(remark);
                reading.value
            }
            false => Some(notation(key, written)),
        };
        let value = match value {
            Some(toml) => self.checked(key, &toml)?,
            None => self.dialect.preset_value(key),
        };
        if key.reload == Reload::Restart {
            return Some(config);
        }
        let values = self.general.values().into_iter();
        let mut values: Values = values.map(|(key, value)| (key.name, value)).collect();
        values.insert(key.name, value);
        config.general = General::from_values(&mut values).ok()?;
        cross::faults_but_tls(&config).is_empty().then_some(config)
    }

    fn checked(&self, key: &Key, toml: &str) -> Option<Value> {
        let value = DeValue::parse(toml).ok()?;
        let dir = self.dialect.paths_start_at(&self.path);
        key.kind.check(value.get_ref(), dir).ok()
    }
}

impl Config {
    /// This configuration, but what needs a restart stays what it is in `old`, which is in force.
    pub fn keeping(mut self, old: &Config) -> Config {
        let values = self.general.values().into_iter();
        let mut values: Values = values.map(|(key, value)| (key.name, value)).collect();
        let in_force = old.general.values().into_iter();
        let stays = in_force.filter(|(key, _)| key.reload == Reload::Restart);
        values.extend(stays.map(|(key, value)| (key.name, value)));
        if let Ok(general) = General::from_values(&mut values) {
            self.general = general;
        }
        self
    }

    /// This configuration, which the next reload reads where `old`, which is in force, says, unless its own file says
    /// otherwise.
    pub fn following(mut self, old: &Config) -> Config {
        let conffile = &mut self.general.conffile;
        *conffile = conffile.take().or_else(|| old.general.conffile.clone());
        self
    }
}

/// `written`, as PgBouncer has it or not quite, in TOML.
fn notation(key: &Key, written: &str) -> String {
    let written = written.trim();
    let text = |text: &str| toml::Value::from(text).to_string();
    let is_number = !written.is_empty() && written.parse::<f64>().is_ok();
    match key.kind {
        Kind::Bool => match written.to_ascii_lowercase().as_str() {
            "1" | "on" | "yes" | "true" => "true".to_owned(),
            "0" | "off" | "no" | "false" => "false".to_owned(),
            _ => text(written),
        },
        Kind::List => {
            let entries = written.split(',').map(str::trim);
            let entries = entries.filter(|entry| !entry.is_empty()).map(text);
            format!("[{}]", entries.collect::<Vec<_>>().join(", "))
        }
        Kind::Numbers { .. } => format!("[{written}]"),
        Kind::Int { .. } | Kind::PowerOfTwo { .. } | Kind::Duration { .. } | Kind::Size { .. }
            if is_number =>
        {
            written.to_owned()
        }
        _ => text(written),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::show::{Setting, config_rows};
    use std::path::Path;

    fn config() -> Config {
        let text = "ringbouncer.auth_type = \"trust\"";
        Config::parse(text, Path::new("/etc/r.toml")).expect("valid")
    }

    /// The value that SHOW CONFIG has of a setting, once it has been set.
    fn set(name: &str, written: &str) -> Option<String> {
        let config = config().with_setting(name, written)?;
        let rows = config_rows(&config).into_iter();
        rows.into_iter().find(|row| row.key == name)?.value
    }

    #[test]
    fn what_needs_a_restart_stays_what_it_was() {
        let parse = |text: &str| {
            let text = format!("[ringbouncer]\nauth_type = \"trust\"\n{text}");
            Config::parse(&text, std::path::Path::new("x.toml")).unwrap()
        };
        let old = parse("listen_port = 1111\nquery_timeout = 1");
        let new = parse("listen_port = 2222\nquery_timeout = 2").keeping(&old);
        assert_eq!(new.general.listen_port, 1111);
        assert_eq!(new.general.query_timeout.as_secs(), 2);
        assert_eq!(parse("").keeping(&old).general.listen_port, 1111);
    }

    #[test]
    fn settings_take_pgbouncers_notation() {
        let table = [
            ("default_pool_size", "7", "7"),
            ("query_timeout", "2.5", "2.5"),
            ("query_timeout", "250ms", "0.25"),
            ("log_connections", "0", "0"),
            ("log_connections", "yes", "1"),
            ("admin_users", "a, b", "a,b"),
            ("admin_users", "", ""),
            ("pool_mode", "session", "session"),
            ("max_packet_size", "4096", "4096"),
            ("max_packet_size", "4 MiB", "4194304"),
            ("server_reset_query", "DISCARD \"ALL\"", "DISCARD \"ALL\""),
        ];
        for (name, written, value) in table {
            assert_eq!(
                set(name, written).as_deref(),
                Some(value),
                "{name}={written}"
            );
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (name, written) in [
            ("no_such_setting", "1"),
            ("default_pool_size", "abc"),
            ("default_pool_size", "-1"),
            ("default_pool_size", "[1]"),
            ("default_pool_size", "1\nx = 2"),
            ("pool_mode", "sesion"),
            ("log_connections", "2"),
            ("query_timeout", "nan"),
            ("query_timeout", "inf"),
            ("listen_port", "abc"),
            // Nobody could log in.
            ("auth_type", "md5"),
        ] {
            assert_eq!(set(name, written), None, "{name}={written}");
        }
    }

    /// The same where the file is PgBouncer's.
    fn set_in_ini(name: &str, written: &str) -> Option<String> {
        let config = Config::parse("[pgbouncer]", Path::new("p.ini")).expect("valid");
        let config = config.with_setting(name, written)?;
        let rows = config_rows(&config).into_iter();
        rows.into_iter().find(|row| row.key == name)?.value
    }

    #[test]
    fn settings_of_an_ini_take_what_its_lines_take() {
        for (name, written, value) in [
            ("admin_users", "a b,\tc", "a,b,c"),
            ("log_connections", "2", "1"),
            ("log_connections", "0", "0"),
            ("default_pool_size", "010", "8"),
            ("default_pool_size", "0x10", "16"),
            ("query_timeout", "1e2", "100"),
            ("pool_mode", "Transaction", "transaction"),
            ("client_tls_ciphers", "HIGH:MEDIUM", "HIGH"),
            ("client_tls_protocols", "", "secure"),
            ("listen_backlog", "0", "128"),
        ] {
            let shown = set_in_ini(name, written);
            assert_eq!(shown.as_deref(), Some(value), "{name}={written}");
        }
        for (name, written) in [
            ("log_connections", "yes"),
            ("default_pool_size", "many"),
            ("pkt_buf", "many"),
            ("no_such_setting", "1"),
        ] {
            assert_eq!(set_in_ini(name, written), None, "{name}={written}");
        }
    }

    #[test]
    fn option_of_an_ini_without_effect_can_be_set() {
        let config = Config::parse("[pgbouncer]", Path::new("p.ini")).expect("valid");
        for name in ["pkt_buf", "sbuf_loopcnt", "dns_zone_check_period"] {
            assert_eq!(config.with_setting(name, "3").as_ref(), Some(&config));
        }
        assert_eq!(self::config().with_setting("pkt_buf", "3"), None);
    }

    #[test]
    fn file_to_read_outlasts_a_file_that_names_none() {
        let parse = |text: &str| {
            let text = format!("[ringbouncer]\nauth_type = \"trust\"\n{text}");
            Config::parse(&text, Path::new("/etc/r.toml")).unwrap()
        };
        let conffile = |new: &str, old: &str| parse(new).following(&parse(old)).general.conffile;
        let (a, b) = ("conffile = \"/a\"", "conffile = \"/b\"");
        assert_eq!(conffile("", a).as_deref(), Some(Path::new("/a")));
        assert_eq!(conffile(b, a).as_deref(), Some(Path::new("/b")));
        assert_eq!(conffile("", ""), None);
    }

    #[test]
    fn what_needs_a_restart_stays() {
        assert_eq!(set("listen_port", "7").as_deref(), Some("6432"));
    }

    #[test]
    fn every_setting_takes_what_show_config_prints_of_it() {
        let ini = Config::parse("[pgbouncer]", Path::new("p.ini")).expect("valid");
        for config in [config(), ini] {
            for Setting {
                key: name, value, ..
            } in config_rows(&config)
            {
                let again = config.with_setting(name, &value.unwrap_or_default());
                let is_other = matches!(name, "unix_socket_mode" | "conffile");
                assert!(is_other || again.as_ref() == Some(&config), "{name}");
            }
        }
    }
}
