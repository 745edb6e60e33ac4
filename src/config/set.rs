//! One setting of a configuration in force, changed by its text as SHOW CONFIG prints it (SET of the
//! console).

use super::cross;
use super::keys::{GENERAL_KEYS, General, Key, Reload, Values};
use super::kind::Kind;
use super::model::Config;
use toml::de::DeValue;

impl Config {
    /// This configuration with `name` of `[ringbouncer]` set to what `written` says. A setting that needs
    /// a restart keeps its value, though `written` must be one that it could have. `None` if there is no
    /// such setting, or it cannot have such a value. Whether TLS settings go together is not asked:
    /// [`General::tls_fault`].
    pub fn with_setting(&self, name: &str, written: &str) -> Option<Config> {
        let key = GENERAL_KEYS.iter().find(|key| key.name == name)?;
        let toml = notation(key, written);
        let value = DeValue::parse(&toml).ok()?;
        let dir = self.dialect.paths_start_at(&self.path);
        let checked = key.kind.check(value.get_ref(), dir).ok()?;
        let mut config = self.clone();
        if key.reload == Reload::Restart {
            return Some(config);
        }
        let values = self.general.values().into_iter();
        let mut values: Values = values.map(|(key, value)| (key.name, value)).collect();
        values.insert(key.name, checked);
        config.general = General::from_values(&mut values).ok()?;
        cross::faults_but_tls(&config).is_empty().then_some(config)
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
}

/// `written` in the notation of the file.
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

    #[test]
    fn what_needs_a_restart_stays() {
        assert_eq!(set("listen_port", "7").as_deref(), Some("6432"));
    }

    #[test]
    fn every_setting_takes_what_show_config_prints_of_it() {
        let config = config();
        for Setting {
            key: name, value, ..
        } in config_rows(&config)
        {
            let value = value.unwrap_or_default();
            let again = config.with_setting(name, &value);
            let is_octal = name == "unix_socket_mode";
            assert!(
                is_octal || again.as_ref() == Some(&config),
                "{name}={value}"
            );
        }
    }
}
