//! What a new configuration changes, and when.

use super::document::dotted;
use super::keys::{Key, Reload, Section};
use super::model::Config;
use super::show::shown;
use super::value::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One setting that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Dotted path of the key; only the table's (`databases.shop`) if a whole table came or went.
    pub key: String,
    /// The value before, as SHOW CONFIG prints it; `None` if the table is new.
    pub old: Option<String>,
    /// The value from now on; `None` if the table is gone. Two secrets both show as a mask.
    pub new: Option<String>,
    /// When the new value holds.
    pub reload: Reload,
}

/// How the databases of two configurations differ, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatabaseChanges {
    /// Only in the new one.
    pub added: Vec<String>,
    /// Only in the old one.
    pub removed: Vec<String>,
    /// In both, but server connections made for the old one must not serve the new one: host, port,
    /// dbname or forced user differ.
    pub moved: Vec<String>,
}

/// Every setting that `new` changes: `[ringbouncer]` first, then databases, users, peers.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let general = [Section::General.name()];
    let mut changes = values_diff(&general, &old.general.values(), &new.general.values());
    let (old_databases, new_databases) = (rows(&old.databases), rows(&new.databases));
    changes.extend(tables_diff(
        Section::Database,
        &old_databases,
        &new_databases,
    ));
    let (old_users, new_users) = (rows(&old.users), rows(&new.users));
    changes.extend(tables_diff(Section::User, &old_users, &new_users));
    let (old_peers, new_peers) = (peer_rows(old), peer_rows(new));
    changes.extend(tables_diff(Section::Peer, &old_peers, &new_peers));
    changes
}

/// Which databases came, went, or now live elsewhere.
pub fn database_changes(old: &Config, new: &Config) -> DatabaseChanges {
    let only_in = |here: &Config, there: &Config| {
        let names = here
            .databases
            .keys()
            .filter(|name| !there.databases.contains_key(*name));
        names.cloned().collect()
    };
    let both = old
        .databases
        .iter()
        .filter_map(|(name, was)| Some((was, new.databases.get(name)?)));
    let moved = both
        .filter(|(was, is)| !was.same_server(is))
        .map(|(was, _)| was.name.clone());
    DatabaseChanges {
        added: only_in(new, old),
        removed: only_in(old, new),
        moved: moved.collect(),
    }
}

type Row = (&'static Key, Value);

trait Rows {
    fn rows(&self) -> Vec<Row>;
}

impl Rows for super::keys::Database {
    fn rows(&self) -> Vec<Row> {
        self.values()
    }
}

impl Rows for super::keys::User {
    fn rows(&self) -> Vec<Row> {
        self.values()
    }
}

/// Tables by name.
type Tables<N> = BTreeMap<N, Vec<Row>>;

fn peer_rows(config: &Config) -> Tables<String> {
    let peers = config.peers.iter();
    peers
        .map(|(id, peer)| (id.to_string(), peer.values()))
        .collect()
}

fn rows<T: Rows>(tables: &BTreeMap<String, Arc<T>>) -> Tables<&str> {
    tables
        .iter()
        .map(|(name, table)| (name.as_str(), table.rows()))
        .collect()
}

fn tables_diff<N: AsRef<str> + Ord>(
    section: Section,
    old: &Tables<N>,
    new: &Tables<N>,
) -> Vec<Change> {
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let changes = names.into_iter().map(|name| {
        let path = [section.name(), name.as_ref()];
        match (old.get(name), new.get(name)) {
            (Some(old), Some(new)) => values_diff(&path, old, new),
            (old, new) => vec![Change {
                key: dotted(&path),
                old: old.map(|_| "present".to_owned()),
                new: new.map(|_| "present".to_owned()),
                reload: Reload::Live,
            }],
        }
    });
    changes.flatten().collect()
}

fn values_diff(path: &[&str], old: &[Row], new: &[Row]) -> Vec<Change> {
    let pairs = old
        .iter()
        .zip(new)
        .filter(|((_, old), (_, new))| old != new);
    let changes = pairs.map(|((key, old), (_, new))| Change {
        key: dotted(&[path, &[key.name]].concat()),
        old: Some(shown(key, old)),
        new: Some(shown(key, new)),
        reload: key.reload,
    });
    changes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config(text: &str) -> Config {
        let text = format!("ringbouncer.auth_type = \"trust\"\n{text}");
        Config::parse(&text, Path::new("r.toml")).expect("valid")
    }

    fn change(key: &str, old: Option<&str>, new: Option<&str>, reload: Reload) -> Change {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Change {
            key: key.to_owned(),
            old: owned(old),
            new: owned(new),
            reload,
        }
    }

    #[test]
    fn equal_configurations_do_not_differ() {
        let config = config("[databases.a]\n[users.b]\npassword = \"x\"");
        assert_eq!(diff(&config, &config.clone()), []);
        assert_eq!(
            database_changes(&config, &config),
            DatabaseChanges::default()
        );
    }

    #[test]
    fn each_change_tells_when_it_holds_and_hides_secrets() {
        let old = config(
            "ringbouncer.shards = 1\nringbouncer.default_pool_size = 5\n[databases.gone]\n\
             [users.alice]\npassword = \"old\"",
        );
        let new = config(
            "ringbouncer.shards = 2\nringbouncer.default_pool_size = 6\n[databases.\"my.new\"]\n\
             [users.alice]\npassword = \"new\"",
        );
        let mask = Some("********");
        let expected = [
            change("ringbouncer.shards", Some("1"), Some("2"), Reload::Restart),
            change(
                "ringbouncer.default_pool_size",
                Some("5"),
                Some("6"),
                Reload::Live,
            ),
            change("databases.gone", Some("present"), None, Reload::Live),
            change("databases.\"my.new\"", None, Some("present"), Reload::Live),
            change("users.alice.password", mask, mask, Reload::NewConnections),
        ];
        assert_eq!(diff(&old, &new), expected);
    }

    #[test]
    fn database_moves_when_its_server_connections_no_longer_fit() {
        let old =
            config("[databases.a]\n[databases.b]\n[databases.c]\n[databases.d]\n[databases.e]");
        let new = config(
            "[databases.a]\nport = 1\n[databases.b]\ndbname = \"b\"\n[databases.c]\nuser = \"u\"\n\
             [databases.d]\npool_size = 3\n[databases.f]",
        );
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let expected = DatabaseChanges {
            added: names(&["f"]),
            removed: names(&["e"]),
            moved: names(&["a", "c"]),
        };
        assert_eq!(database_changes(&old, &new), expected);
    }
}
