//! What no key says alone: faults in how settings go together.

use super::dialect::Dialect;
use super::document::dotted;
use super::keys::{Database, General, Peer};
use super::model::{AuthType, Config, SslMode};
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
    let tls = client_tls_faults(general)
        .into_iter()
        .chain(server_tls_faults(general));
    let found = whole
        .into_iter()
        .chain(cores)
        .chain(keepalive)
        .chain(tls)
        .flatten();
    let peers = config
        .peers
        .values()
        .filter_map(|peer| peer_without_host(peer));
    let all = found.chain(databases).chain(peers);
    let counts = |fault: &Fault| config.dialect == Dialect::Toml || fault.is_fatal_to_pgbouncer;
    all.filter(counts).collect()
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

fn client_tls_faults(general: &General) -> [Option<Fault>; 3] {
    let mode = general.client_tls_sslmode;
    let has_ca = general.client_tls_ca_file.is_some();
    let has_pair = general.client_tls_key_file.is_some() && general.client_tls_cert_file.is_some();
    let lacks_pair = mode > SslMode::Disable && !has_pair;
    let blame_mode = || {
        let text = format!(
            "{:?} needs client_tls_key_file and client_tls_cert_file",
            mode.as_str()
        );
        let others = [
            "ringbouncer.client_tls_key_file",
            "ringbouncer.client_tls_cert_file",
        ];
        of_general("client_tls_sslmode", &others, text)
    };
    [
        lacks_pair.then(blame_mode).flatten(),
        verifies_without_ca(mode, "client", has_ca),
        revokes_without_ca("client", general.client_tls_crl_file.is_some(), has_ca),
    ]
}

fn server_tls_faults(general: &General) -> [Option<Fault>; 3] {
    let (key, certificate) = (&general.server_tls_key_file, &general.server_tls_cert_file);
    let blame_half = || {
        let (blamed, other) = match key {
            Some(_) => ("server_tls_key_file", "server_tls_cert_file"),
            None => ("server_tls_cert_file", "server_tls_key_file"),
        };
        let text = format!("has no effect without {other}");
        of_general(blamed, &[&format!("ringbouncer.{other}")], text)
    };
    let has_ca = general.server_tls_ca_file.is_some();
    [
        (key.is_some() != certificate.is_some())
            .then(blame_half)
            .flatten(),
        verifies_without_ca(general.server_tls_sslmode, "server", has_ca),
        revokes_without_ca("server", general.server_tls_crl_file.is_some(), has_ca),
    ]
}

fn verifies_without_ca(mode: SslMode, side: &str, has_ca: bool) -> Option<Fault> {
    if mode < SslMode::VerifyCa || has_ca {
        return None;
    }
    let text = format!("{:?} needs {side}_tls_ca_file", mode.as_str());
    let other = format!("ringbouncer.{side}_tls_ca_file");
    of_general(&format!("{side}_tls_sslmode"), &[&other], text)
}

fn revokes_without_ca(side: &str, has_crl: bool, has_ca: bool) -> Option<Fault> {
    if !has_crl || has_ca {
        return None;
    }
    let other = format!("ringbouncer.{side}_tls_ca_file");
    let text = format!("has no effect without {side}_tls_ca_file");
    of_general(&format!("{side}_tls_crl_file"), &[&other], text)
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
    let host = peer.host.as_deref();
    if host.is_some_and(|host| !host.contains(',')) {
        return None;
    }
    let table = dotted(&["peers", &peer.id.to_string()]);
    Some(Fault {
        key: table.clone(),
        concerns: vec![table],
        text: "a peer needs one host".to_owned(),
        is_fatal_to_pgbouncer: true,
    })
}
