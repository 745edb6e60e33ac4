//! `config/reference.toml`: every key with its meaning, bounds, default and reload behaviour,
//! written from the table of keys.

use super::keys::{DATABASE_KEYS, GENERAL_KEYS, Key, PEER_KEYS, Preset, Section, USER_KEYS};

/// Longest line of the file, in characters.
const COLUMNS: usize = 100;

const HEAD: &str = r##"# Every setting of Ringbouncer. Written by `ringbouncer defaults`; do not edit, copy from it.
#
# A key that is missing has its default, so every key stands here behind a '#': lines that begin
# with "# " are words, lines that begin with "#" alone are settings to switch on.
# Durations: "250ms", "30 s", "5 min", "2h", "1d" (units ns, us, ms, s, min, h, d).
# Sizes: "8 KiB", "4 MiB", "1 GiB"; kB, MB and GB also count in 1024, as in postgresql.conf.
# Paths: a relative one starts at the directory of the configuration file.
# SIGHUP or RELOAD reads the file again and applies all of it, or none of it if anything is wrong.

[ringbouncer]
"##;

const DATABASES: &str = r##"
# ---- Databases ----------------------------------------------------------------------------------
# A table for each name that clients connect to. [databases."*"] answers for all other names. The
# names pgbouncer and ringbouncer are taken: they are the console.

#[databases.shop]
"##;

const USERS: &str = r##"
# ---- Users --------------------------------------------------------------------------------------
# A table for each user, besides those of auth_file. What a user sets goes before what the database
# sets, and that before [ringbouncer].

#[users.alice]
"##;

const PEERS: &str = r##"
# ---- Peers --------------------------------------------------------------------------------------
# A table for each other pooler, Ringbouncer or PgBouncer, behind the same address: a cancel request
# that arrives at the wrong one is passed on. The name is the other's peer_id; the own one may be
# listed and is left alone.

#[peers.2]
"##;

/// The text of `config/reference.toml`.
pub fn reference_toml() -> String {
    let parts = [HEAD.to_owned(), section(GENERAL_KEYS), DATABASES.to_owned()];
    let named = [section(DATABASE_KEYS), USERS.to_owned(), section(USER_KEYS)];
    let peers = [PEERS.to_owned(), section(PEER_KEYS)];
    parts.into_iter().chain(named).chain(peers).collect()
}

fn section(keys: &[Key]) -> String {
    let mut text = String::new();
    let mut group = "";
    for key in keys {
        if key.group != group && key.section == Section::General {
            text.push_str(&format!("\n# ---- {} {}\n", key.group, rule(key.group)));
        }
        group = key.group;
        text.push_str(&entry(key));
    }
    text
}

fn rule(title: &str) -> String {
    const LINE: usize = 91;
    "-".repeat(LINE.saturating_sub(title.len()))
}

fn entry(key: &Key) -> String {
    let (default, written) = match key.preset {
        Preset::Toml(written) => (written, written),
        Preset::Unset { means, example } => (means, example),
    };
    let allowed = format!("Allowed: {}.", key.kind.allowed());
    let facts = format!("Default: {default}. Reload: {}.", key.reload.describe());
    let words = [key.doc, &allowed, &facts].map(wrapped).concat();
    format!("\n{words}#{} = {written}\n", key.name)
}

/// `text` as comment lines.
pub(super) fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut line = "#".to_owned();
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > COLUMNS {
            lines.push_str(&format!("{line}\n"));
            line = "#".to_owned();
        }
        line.push_str(&format!(" {word}"));
    }
    format!("{lines}{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::{General, keys};
    use crate::config::{Config, PoolMode};
    use std::path::Path;

    const SHIPPED: &str = include_str!("../../config/reference.toml");

    /// The file with every setting switched on.
    fn switched_on() -> String {
        let lines = SHIPPED.lines().map(|line| match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
                setting
            }
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn shipped_file_is_in_step_with_the_table() {
        assert!(
            reference_toml() == SHIPPED,
            "config/reference.toml is old; run: ringbouncer defaults > config/reference.toml"
        );
    }

    #[test]
    fn switched_on_it_says_the_defaults() {
        let config = Config::parse(&switched_on(), Path::new("reference.toml")).expect("valid");
        assert_eq!(config.general, General::default());
        let shop = config.database("shop").expect("the example");
        assert_eq!(
            (shop.port, shop.pool_size, shop.pool_mode),
            (5432, Some(50), Some(PoolMode::Session))
        );
        assert!(config.users.contains_key("alice"));
    }

    #[test]
    fn every_key_stands_in_it_once() {
        let text = switched_on();
        for key in keys() {
            let start = format!("{} = ", key.name);
            let expected = keys().filter(|other| other.name == key.name).count();
            let found = text.lines().filter(|line| line.starts_with(&start)).count();
            assert_eq!(found, expected, "{}", key.name);
        }
    }

    #[test]
    fn lines_fit_the_width() {
        // A statement is not broken.
        let lines = SHIPPED.lines().filter(|line| !line.contains("SELECT"));
        let widest = lines.map(|line| line.chars().count()).max();
        assert!(widest <= Some(COLUMNS), "{widest:?}");
    }
}
