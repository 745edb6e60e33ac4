//! What no key says alone: faults in how settings go together.

use super::document::dotted;
use super::keys::{Database, General, Peer};
use super::model::{AuthType, Config};
use std::collections::BTreeSet;
use std::time::Duration;

/// Settings that cannot hold together.
pub(super) struct Fault {
    /// The key to blame.
    pub(super) key: String,
    /// The keys, or tables of keys, that the verdict rests on.
    pub(super) concerns: Vec<String>,
    /// What is wrong.
    pub(super) text: String,
    /// Whether PgBouncer would not start with it either.
    pub(super) is_fatal_to_pgbouncer: bool,
}

/// Every such fault of `config`.
pub(super) fn faults(config: &Config) -> Vec<Fault> {
    let general = &config.general;
    let whole = [nobody_can_log_in(config), nowhere_to_listen(general)];
    let cores = [core_named_twice(general), more_shards_than_cores(general)];
    let keepalive = [
        ("tcp_keepidle", general.tcp_keepidle),
        ("tcp_keepintvl", general.tcp_keepintvl),
    ];
    let keepalive = keepalive.map(|(name, span)| not_whole_seconds(name, span));
    let databases = config
        .databases
        .values()
        .filter_map(|database| password_without_user(database));
    let found = whole.into_iter().chain(cores).chain(keepalive).flatten();
    let peers = config
        .peers
        .values()
        .filter_map(|peer| peer_without_host(peer));
    found.chain(databases).chain(peers).collect()
}

fn of_general(blamed: &str, others: &[&str], text: impl Into<String>) -> Option<Fault> {
    let key = format!("ringbouncer.{blamed}");
    let concerns = std::iter::once(key.clone()).chain(others.iter().map(|&key| key.to_owned()));
    Some(Fault {
        concerns: concerns.collect(),
        key,
        text: text.into(),
        is_fatal_to_pgbouncer: true,
    })
}

fn nobody_can_log_in(config: &Config) -> Option<Fault> {
    let general = &config.general;
    let asks = general.auth_type != AuthType::Trust;
    if !asks || general.auth_file.is_some() || config.users.values().any(|u| u.password.is_some()) {
        return None;
    }
    let text = format!(
        "nobody could log in: {:?} needs a password in [users.NAME], or an auth_file",
        general.auth_type.as_str()
    );
    let fault = of_general("auth_type", &["ringbouncer.auth_file", "users"], text)?;
    Some(Fault {
        is_fatal_to_pgbouncer: false,
        ..fault
    })
}

fn nowhere_to_listen(general: &General) -> Option<Fault> {
    if !general.listen_addr.is_empty() || general.unix_socket_dir.is_some() {
        return None;
    }
    let text = "nowhere to listen: no address and no unix_socket_dir";
    of_general("listen_addr", &["ringbouncer.unix_socket_dir"], text)
}

fn core_named_twice(general: &General) -> Option<Fault> {
    let mut named = BTreeSet::new();
    let twice = general.cpus.iter().find(|core| !named.insert(**core))?;
    of_general("cpus", &[], format!("core {twice} is named twice"))
}

fn more_shards_than_cores(general: &General) -> Option<Fault> {
    let cores = general.cpus.len();
    if cores == 0 || general.shards <= cores {
        return None;
    }
    let text = format!(
        "{} shards need as many cores, cpus names {cores}",
        general.shards
    );
    of_general("shards", &["ringbouncer.cpus"], text)
}

/// The kernel counts these in seconds; half a second would silently become its default.
fn not_whole_seconds(name: &str, span: Duration) -> Option<Fault> {
    if span.subsec_nanos() == 0 {
        return None;
    }
    of_general(name, &[], "must be whole seconds")
}

fn password_without_user(database: &Database) -> Option<Fault> {
    if database.password.is_none() || database.user.is_some() {
        return None;
    }
    let table = dotted(&["databases", &database.name]);
    let text = "has no effect without user; passwords of users stand in [users.NAME]";
    Some(Fault {
        key: format!("{table}.password"),
        concerns: vec![table],
        text: text.to_owned(),
        is_fatal_to_pgbouncer: false,
    })
}

fn peer_without_host(peer: &Peer) -> Option<Fault> {
    if peer.host.is_some() {
        return None;
    }
    let table = dotted(&["peers", &peer.id.to_string()]);
    Some(Fault {
        key: table.clone(),
        concerns: vec![table],
        text: "a peer needs a host".to_owned(),
        is_fatal_to_pgbouncer: true,
    })
}
