//! What no key says alone: faults in how settings go together.

use super::dialect::Dialect;
use super::document::dotted;
use super::keys::{Database, General, Peer, User};
use super::model::{AuthType, Config, SslMode, is_console};
use std::collections::BTreeSet;
use std::sync::Arc;
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
    let found = faults_but_tls(config).into_iter();
    found.chain(tls_faults(config)).collect()
}

/// Those of how TLS settings go together.
fn tls_faults(config: &Config) -> impl Iterator<Item = Fault> {
    let found = client_tls_faults(&config.general).into_iter();
    let found = found.chain(server_tls_faults(&config.general)).flatten();
    found.filter(|fault| counts(config, fault))
}

/// Whether a fault is one in the file's own dialect.
fn counts(config: &Config, fault: &Fault) -> bool {
    config.dialect == Dialect::Toml || fault.is_fatal_to_pgbouncer
}

/// Every such fault but those of how TLS settings go together.
pub(super) fn faults_but_tls(config: &Config) -> Vec<Fault> {
    let general = &config.general;
    let whole = [
        nobody_can_log_in(config),
        nowhere_to_listen(general),
        rules_nobody_reads(general),
        nobody_to_judge(general),
        nobody_to_vouch(general),
        lookup_in_the_console(config),
        too_little_memory(general),
    ];
    let cores = [core_named_twice(general), more_shards_than_cores(general)];
    let keepalive = [
        ("tcp_keepidle", general.tcp_keepidle),
        ("tcp_keepintvl", general.tcp_keepintvl),
    ];
    let keepalive = keepalive.map(|(name, span)| not_whole_seconds(name, span));
    let databases = config
        .databases
        .values()
        .flat_map(|database| {
            [
                password_without_user(database),
                own_lookup_in_the_console(database),
                nobody_to_be(config, database),
            ]
        })
        .flatten();
    let found = whole.into_iter().chain(cores).chain(keepalive).flatten();
    let peers = config
        .peers
        .values()
        .filter_map(|peer| peer_without_host(peer));
    let all = found.chain(databases).chain(peers);
    let all = all.chain(several_secrets(config));
    all.filter(|fault| counts(config, fault)).collect()
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
    let needs_secrets = matches!(
        general.auth_type,
        AuthType::Plain | AuthType::Md5 | AuthType::ScramSha256
    );
    let looks_up = |database: &Arc<Database>| database.auth_user.is_some();
    if !needs_secrets
        || general.auth_file.is_some()
        || !general.auth_user.is_empty()
        || config.databases.values().any(looks_up)
        || config.users.values().any(|user| has_secret(user))
    {
        return None;
    }
    let text = format!(
        "nobody could log in: {:?} needs a password in [users.NAME], an auth_file or an auth_user",
        general.auth_type.as_str()
    );
    let others = [
        "ringbouncer.auth_file",
        "ringbouncer.auth_user",
        "databases",
        "users",
    ];
    of_general("auth_type", &others, text).map(survivable)
}

/// The same, which PgBouncer starts with.
fn survivable(fault: Fault) -> Fault {
    Fault {
        is_fatal_to_pgbouncer: false,
        ..fault
    }
}

fn has_secret(user: &User) -> bool {
    user.password.is_some() || user.password_file.is_some() || !user.password_env.is_empty()
}

fn rules_nobody_reads(general: &General) -> Option<Fault> {
    let is_hba = general.auth_type == AuthType::Hba;
    if is_hba && general.auth_hba_file.is_none() {
        let text = "nobody could log in: \"hba\" needs an auth_hba_file";
        return of_general("auth_type", &["ringbouncer.auth_hba_file"], text).map(survivable);
    }
    None
}

fn nobody_to_judge(general: &General) -> Option<Fault> {
    let is_ldap = general.auth_type == AuthType::Ldap;
    if is_ldap && general.auth_ldap_options.is_empty() {
        let text = "nobody could log in: \"ldap\" needs auth_ldap_options";
        return of_general("auth_type", &["ringbouncer.auth_ldap_options"], text);
    }
    None
}

fn nobody_to_vouch(general: &General) -> Option<Fault> {
    let is_cert = general.auth_type == AuthType::Cert;
    if is_cert && general.client_tls_ca_file.is_none() {
        let text = "nobody could log in: \"cert\" needs a client_tls_ca_file that vouches for certificates";
        return of_general("auth_type", &["ringbouncer.client_tls_ca_file"], text);
    }
    if is_cert && general.client_tls_sslmode == SslMode::Disable {
        let text = "nobody could log in: \"cert\" needs a client_tls_sslmode that encrypts";
        return of_general("auth_type", &["ringbouncer.client_tls_sslmode"], text);
    }
    None
}

fn lookup_in_the_console(config: &Config) -> Option<Fault> {
    is_console(&config.general.auth_dbname)
        .then(|| of_general("auth_dbname", &[], "the console cannot run auth_query"))
        .flatten()
}

fn nowhere_to_listen(general: &General) -> Option<Fault> {
    if !general.listen_addr.is_empty() || general.unix_socket_dir.is_some() {
        return None;
    }
    let text = "nowhere to listen: no address and no unix_socket_dir";
    of_general("listen_addr", &["ringbouncer.unix_socket_dir"], text)
}

/// Less than this is no use: two shards begin with 11 MB.
const MEMORY_MAX_LEAST: usize = 32 << 20;

fn too_little_memory(general: &General) -> Option<Fault> {
    if general.memory_max == 0 || general.memory_max >= MEMORY_MAX_LEAST {
        return None;
    }
    of_general("memory_max", &[], "must be 0 or at least 32 MiB")
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

impl Config {
    /// Why the TLS settings do not go together, if they do not: SET makes them one after the other.
    pub fn tls_fault(&self) -> Option<String> {
        let fault = tls_faults(self).next()?;
        Some(format!("{} {}", fault.key, fault.text))
    }
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
        of_general(blamed, &[&format!("ringbouncer.{other}")], text).map(survivable)
    };
    let has_ca = general.server_tls_ca_file.is_some();
    [
        (key.is_some() != certificate.is_some())
            .then(blame_half)
            .flatten(),
        // PgBouncer trusts those whom the system trusts.
        verifies_without_ca(general.server_tls_sslmode, "server", has_ca).map(survivable),
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
    let given = sources(
        database.password.is_some(),
        database.password_file.is_some(),
        !database.password_env.is_empty(),
    );
    let name = given.first().filter(|_| database.user.is_none())?;
    let table = dotted(&["databases", &database.name]);
    let text = "has no effect without user; passwords of users stand in [users.NAME]";
    Some(Fault {
        key: format!("{table}.{name}"),
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

/// The keys of a table that say where its secret is.
fn sources(password: bool, file: bool, variable: bool) -> Vec<&'static str> {
    let all = [
        ("password", password),
        ("password_file", file),
        ("password_env", variable),
    ];
    let given = all.into_iter().filter(|(_, is_given)| *is_given);
    given.map(|(name, _)| name).collect()
}

/// Which of two secrets counts should not have to be guessed.
fn several_secrets(config: &Config) -> Vec<Fault> {
    let databases = config.databases.values().map(|own| {
        let given = sources(
            own.password.is_some(),
            own.password_file.is_some(),
            !own.password_env.is_empty(),
        );
        (dotted(&["databases", &own.name]), given)
    });
    let users = config.users.values().map(|own| {
        let given = sources(
            own.password.is_some(),
            own.password_file.is_some(),
            !own.password_env.is_empty(),
        );
        (dotted(&["users", &own.name]), given)
    });
    let several = databases.chain(users).filter(|(_, given)| given.len() > 1);
    let fault = |(table, given): (String, Vec<&str>)| Fault {
        key: format!("{table}.{}", given.last().unwrap_or(&"password")),
        concerns: vec![table],
        text: format!("only one of {} can be given", given.join(", ")),
        is_fatal_to_pgbouncer: false,
    };
    several.map(fault).collect()
}

fn own_lookup_in_the_console(database: &Database) -> Option<Fault> {
    let name = database.auth_dbname.as_deref()?;
    if !is_console(name) {
        return None;
    }
    let table = dotted(&["databases", &database.name]);
    Some(Fault {
        key: format!("{table}.auth_dbname"),
        concerns: vec![table],
        text: "the console cannot run auth_query".to_owned(),
        is_fatal_to_pgbouncer: true,
    })
}

/// With `any` the client's name means nothing, so servers need a name of their own.
fn nobody_to_be(config: &Config, database: &Database) -> Option<Fault> {
    if config.general.auth_type != AuthType::Any || database.user.is_some() {
        return None;
    }
    let table = dotted(&["databases", &database.name]);
    Some(Fault {
        key: format!("{table}.user"),
        concerns: vec![table, "ringbouncer.auth_type".to_owned()],
        text: "is needed with auth_type \"any\", which does not tell clients apart".to_owned(),
        is_fatal_to_pgbouncer: false,
    })
}
