//! SHOW POOLS, SHOW DATABASES, SHOW USERS, SHOW LISTS.

use crate::admin::office::{DatabaseFlags, PoolRow, UserRow};
use crate::admin::table::{Column, Row, Value};
use crate::base::Moment;
use crate::config::{CONSOLE, Config, Database, PoolMode};
use crate::stats::PoolEntry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

pub(in crate::admin) const POOLS: &[Column] = &[
    Column::text("database"),
    Column::text("user"),
    Column::int4("cl_active"),
    Column::int4("cl_waiting"),
    Column::int4("cl_active_cancel_req"),
    Column::int4("cl_waiting_cancel_req"),
    Column::int4("sv_active"),
    Column::int4("sv_active_cancel"),
    Column::int4("sv_being_canceled"),
    Column::int4("sv_idle"),
    Column::int4("sv_used"),
    Column::int4("sv_tested"),
    Column::int4("sv_login"),
    Column::int4("maxwait"),
    Column::int4("maxwait_us"),
    Column::text("pool_mode"),
    Column::text("load_balance_hosts"),
];

pub(in crate::admin) const DATABASES: &[Column] = &[
    Column::text("name"),
    Column::text("host"),
    Column::int4("port"),
    Column::text("database"),
    Column::text("force_user"),
    Column::int4("pool_size"),
    Column::int4("min_pool_size"),
    Column::int4("reserve_pool_size"),
    Column::int4("server_lifetime"),
    Column::text("pool_mode"),
    Column::text("load_balance_hosts"),
    Column::int4("max_connections"),
    Column::int4("current_connections"),
    Column::int4("max_client_connections"),
    Column::int4("current_client_connections"),
    Column::int4("paused"),
    Column::int4("disabled"),
];

pub(in crate::admin) const USERS: &[Column] = &[
    Column::text("name"),
    Column::text("pool_size"),
    Column::text("reserve_pool_size"),
    Column::text("pool_mode"),
    Column::int4("max_user_connections"),
    Column::int4("current_connections"),
    Column::int4("max_user_client_connections"),
    Column::int4("current_client_connections"),
];

pub(in crate::admin) const LISTS: &[Column] = &[Column::text("list"), Column::int4("items")];

/// What PgBouncer shows as the size of the console's pool.
const CONSOLE_POOL_SIZE: u32 = 2;
/// The entry that answers for every unknown name; not a database by itself.
const ANY_DATABASE: &str = "*";

/// How many of a thing there are, by name.
pub(super) type ByName = HashMap<Arc<str>, u32>;

// ---- pools -----------------------------------------------------------------------------------

/// Rows of SHOW POOLS: the counted pools that exist, and the console's.
pub(super) fn pools(counted: &[PoolEntry], existing: &[PoolRow], now: Moment) -> Vec<Row> {
    let key = |row: &PoolRow| (row.database.clone(), row.user.clone());
    let ways = existing
        .iter()
        .map(|row| (key(row), (row.mode, row.balance)));
    let ways: HashMap<_, _> = ways.collect();
    let rows = counted.iter().filter_map(|entry| {
        let ways = ways.get(&(entry.database.clone(), entry.user.clone()));
        let is_console = &*entry.database == CONSOLE && &*entry.user == CONSOLE;
        let consoles = is_console.then_some((PoolMode::Statement, None));
        let (mode, balance) = ways.copied().or(consoles)?;
        Some(pool(entry, mode, balance, now))
    });
    rows.collect()
}

fn pool(entry: &PoolEntry, mode: PoolMode, balance: Option<&'static str>, now: Moment) -> Row {
    let gauges = entry.gauges();
    let wait = now.since(entry.oldest_wait());
    vec![
        Value::Shared(entry.database.clone()),
        Value::Shared(entry.user.clone()),
        Value::int4(gauges.cl_active),
        Value::int4(gauges.cl_waiting),
        Value::int4(gauges.cl_active_cancel_req),
        Value::int4(gauges.cl_waiting_cancel_req),
        Value::int4(gauges.sv_active),
        Value::int4(gauges.sv_active_cancel),
        Value::int4(gauges.sv_being_canceled),
        Value::int4(gauges.sv_idle),
        Value::int4(gauges.sv_used),
        Value::int4(gauges.sv_tested),
        Value::int4(gauges.sv_login),
        Value::int4(wait.as_secs()),
        Value::int4(wait.subsec_micros()),
        Value::text(mode.as_str()),
        balance.map_or(Value::Null, Value::text),
    ]
}

// ---- databases -------------------------------------------------------------------------------

/// Rows of SHOW DATABASES: the configured ones, those that the `*` entry answers for and that have
/// a pool, and the console.
pub(super) fn databases(
    config: &Config,
    existing: &[PoolRow],
    clients: &ByName,
    flags: impl Fn(&str) -> DatabaseFlags,
) -> Vec<Row> {
    let pooled = existing.iter().map(|pool| &*pool.database);
    let configured = config.databases.keys().map(String::as_str);
    let names = configured
        .chain(pooled)
        .filter(|name| *name != ANY_DATABASE);
    let found = names.filter_map(|name| Some((name, config.database(name)?)));
    let rows = found.map(|(name, entry)| {
        let theirs = existing.iter().filter(|pool| &*pool.database == name);
        let counts = (theirs.map(|pool| pool.open).sum(), count(clients, name));
        (name, database(config, &entry, counts, flags(name)))
    });
    let mut rows: BTreeMap<&str, Row> = rows.collect();
    rows.insert(CONSOLE, console(config, count(clients, CONSOLE)));
    rows.into_values().collect()
}

/// How a database's list of hosts is used, if it has one.
pub fn balance(database: &Database) -> Option<&'static str> {
    let is_list = database.hosts().nth(1).is_some();
    is_list.then(|| database.load_balance_hosts.as_str())
}

fn database(
    config: &Config,
    database: &Database,
    (servers, clients): (u32, u32),
    flags: DatabaseFlags,
) -> Row {
    let general = &config.general;
    let mode = database.pool_mode.map(PoolMode::as_str);
    let reserve = database.reserve_pool_size;
    let reserve = reserve.unwrap_or(general.reserve_pool_size);
    vec![
        Value::text(database.name.clone()),
        Value::text(database.host.clone()),
        Value::int4(database.port),
        Value::text(database.server_dbname().to_owned()),
        database.user.clone().map_or(Value::Null, Value::text),
        Value::int4(database.pool_size.unwrap_or(general.default_pool_size)),
        Value::int4(config.min_pool_size(database)),
        Value::int4(reserve),
        seconds(config.server_lifetime(database)),
        mode.map_or(Value::Null, Value::text),
        balance(database).map_or(Value::Null, Value::text),
        Value::int4(config.db_connections_max(database)),
        Value::int4(servers),
        Value::int4(config.db_clients_max(database)),
        Value::int4(clients),
        Value::int4(i32::from(flags.is_paused)),
        Value::int4(i32::from(flags.is_disabled)),
    ]
}

fn console(config: &Config, clients: u32) -> Row {
    vec![
        Value::text(CONSOLE),
        Value::Null,
        Value::int4(config.general.listen_port),
        Value::text(CONSOLE),
        Value::text(CONSOLE),
        Value::int4(CONSOLE_POOL_SIZE),
        Value::int4(0),
        Value::int4(0),
        seconds(config.general.server_lifetime),
        Value::text(PoolMode::Statement.as_str()),
        Value::Null,
        Value::int4(0),
        Value::int4(0),
        Value::int4(0),
        Value::int4(clients),
        Value::int4(0),
        Value::int4(0),
    ]
}

fn seconds(span: Duration) -> Value {
    Value::int4(span.as_secs())
}

// ---- users -----------------------------------------------------------------------------------

/// Rows of SHOW USERS: those whom a file or a setting knows, those whom databases force on their servers, and
/// those whom auth_query has let in.
pub(super) fn users(
    known: Vec<UserRow>,
    config: &Config,
    existing: &[PoolRow],
    clients: &ByName,
) -> Vec<Row> {
    let forced = config
        .databases
        .values()
        .filter_map(|database| database.user.as_deref());
    let pooled = existing.iter().map(|pool| &*pool.user);
    let inside = clients.keys().map(|name| &**name);
    let others = forced.chain(pooled).chain(inside).map(|name| {
        let theirs = existing.iter().filter(|pool| &*pool.user == name);
        UserRow {
            name: name.to_owned(),
            current_connections: theirs.map(|pool| pool.open).sum(),
        }
    });
    let all = others.chain(known).map(|user| (user.name.clone(), user));
    let all: BTreeMap<String, UserRow> = all.collect();
    all.into_values()
        .map(|row| user(row, config, clients))
        .collect()
}

fn user(row: UserRow, config: &Config, clients: &ByName) -> Row {
    let settings = config.users.get(&row.name);
    let pool_size = settings.and_then(|user| user.pool_size);
    let reserve = settings.and_then(|user| user.reserve_pool_size);
    let size = |size: Option<u32>| size.map_or_else(String::new, |size| format!("{size:>9}"));
    let mode = settings
        .and_then(|user| user.pool_mode)
        .map(PoolMode::as_str);
    let counted = count(clients, &row.name);
    let connections_max = config.user_connections_max(&row.name);
    let clients_max = config.user_clients_max(&row.name);
    vec![
        Value::text(row.name),
        Value::text(size(pool_size)),
        Value::text(size(reserve)),
        mode.map_or(Value::Null, Value::text),
        Value::int4(connections_max),
        Value::int4(row.current_connections),
        Value::int4(clients_max),
        Value::int4(counted),
    ]
}

fn count(by_name: &ByName, name: &str) -> u32 {
    by_name.get(name).copied().unwrap_or(0)
}

// ---- lists -----------------------------------------------------------------------------------

/// What SHOW LISTS counts.
pub(super) struct Counts {
    pub(super) databases: usize,
    pub(super) peers: usize,
    pub(super) users: usize,
    pub(super) pools: usize,
    pub(super) login_clients: usize,
    pub(super) used_clients: usize,
    pub(super) used_servers: usize,
    pub(super) dns_names: usize,
}

/// Rows of SHOW LISTS. There are no lists of free clients and servers to count.
pub(super) fn lists(counts: &Counts) -> Vec<Row> {
    let rows = [
        ("databases", counts.databases),
        ("users", counts.users),
        ("peers", counts.peers),
        ("pools", counts.pools),
        ("peer_pools", counts.peers),
        ("free_clients", 0),
        ("used_clients", counts.used_clients),
        ("login_clients", counts.login_clients),
        ("free_servers", 0),
        ("used_servers", counts.used_servers),
        ("dns_names", counts.dns_names),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ];
    let rows = rows.map(|(list, items)| vec![Value::text(list), Value::int4(items)]);
    rows.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::show::testing::{assert_columns, assert_fits, printed};
    use crate::base::ShardId;
    use crate::config::LoadBalanceHosts;
    use crate::config::User;
    use crate::stats::Registry;

    fn existing(database: &str, user: &str, mode: PoolMode, open: u32) -> PoolRow {
        PoolRow {
            database: database.into(),
            user: user.into(),
            mode,
            open,
            limit: 20,
            balance: Some("disable"),
        }
    }

    fn entry(name: &str, user: Option<&str>) -> (String, Arc<Database>) {
        let database = Database {
            host: "db.example".to_owned(),
            load_balance_hosts: LoadBalanceHosts::RoundRobin,
            port: 5433,
            dbname: Some("stock".to_owned()),
            user: user.map(str::to_owned),
            pool_size: Some(5),
            min_pool_size: Some(2),
            reserve_pool_size: Some(3),
            max_db_connections: Some(9),
            max_db_client_connections: Some(90),
            pool_mode: Some(PoolMode::Session),
            ..Database::named(name)
        };
        (name.to_owned(), Arc::new(database))
    }

    #[test]
    fn columns_are_pgbouncers() {
        assert_columns(
            POOLS,
            "database t, user t, cl_active i, cl_waiting i, cl_active_cancel_req i, \
             cl_waiting_cancel_req i, sv_active i, sv_active_cancel i, sv_being_canceled i, sv_idle i, \
             sv_used i, sv_tested i, sv_login i, maxwait i, maxwait_us i, pool_mode t, \
             load_balance_hosts t",
        );
        assert_columns(
            DATABASES,
            "name t, host t, port i, database t, force_user t, pool_size i, min_pool_size i, \
             reserve_pool_size i, server_lifetime i, pool_mode t, load_balance_hosts t, \
             max_connections i, current_connections i, max_client_connections i, \
             current_client_connections i, paused i, disabled i",
        );
        assert_columns(
            USERS,
            "name t, pool_size t, reserve_pool_size t, pool_mode t, max_user_connections i, \
             current_connections i, max_user_client_connections i, current_client_connections i",
        );
        assert_columns(LISTS, "list t, items i");
    }

    #[test]
    fn pools_are_those_that_exist_and_the_consoles_with_the_longest_wait_of_all_shards() {
        let registry = Registry::new(2);
        for (shard, since) in [(0, 5_000_000_000), (1, 3_500_000_000)] {
            let stats = registry.pool(ShardId(shard), "shop", "ann");
            stats.cl_waiting.set(2);
            stats.sv_active.set(1);
            stats.oldest_wait.set(Moment::from_nanos(since));
        }
        registry
            .pool(ShardId(0), "pgbouncer", "pgbouncer")
            .cl_active
            .set(1);
        registry.pool(ShardId(0), "gone", "ann");
        let existing = [existing("shop", "ann", PoolMode::Transaction, 2)];
        let rows = pools(
            &registry.pools(),
            &existing,
            Moment::from_nanos(6_000_001_000),
        );
        let lines: Vec<_> = rows.iter().map(|row| printed(POOLS, row)).collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("database=pgbouncer user=pgbouncer cl_active=1 "));
        assert!(
            lines[0].ends_with("maxwait=0 maxwait_us=0 pool_mode=statement load_balance_hosts=~")
        );
        assert_eq!(
            lines[1],
            "database=shop user=ann cl_active=0 cl_waiting=4 cl_active_cancel_req=0 \
             cl_waiting_cancel_req=0 sv_active=2 sv_active_cancel=0 sv_being_canceled=0 sv_idle=0 \
             sv_used=0 sv_tested=0 sv_login=0 maxwait=2 maxwait_us=500001 pool_mode=transaction \
             load_balance_hosts=disable"
        );
    }

    #[test]
    fn databases_are_the_configured_the_pooled_and_the_console() {
        let config = Config {
            databases: [entry("shop", Some("app")), entry("*", None)].into(),
            ..Config::default()
        };
        let open = [
            existing("shop", "app", PoolMode::Session, 3),
            existing("other", "ann", PoolMode::Session, 1),
            existing("other", "bob", PoolMode::Session, 1),
        ];
        let clients = ByName::from([("shop".into(), 9), ("pgbouncer".into(), 1)]);
        let rows = databases(&config, &open, &clients, |_| DatabaseFlags::default());
        let lines: Vec<_> = rows.iter().map(|row| printed(DATABASES, row)).collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(
            lines[0]
                .starts_with("name=other host=db.example port=5433 database=stock force_user=~ ")
        );
        assert!(lines[0].contains(" current_connections=2 "), "{}", lines[0]);
        assert_eq!(
            lines[1],
            "name=pgbouncer host=~ port=6432 database=pgbouncer force_user=pgbouncer pool_size=2 \
             min_pool_size=0 reserve_pool_size=0 server_lifetime=3600 pool_mode=statement \
             load_balance_hosts=~ max_connections=0 current_connections=0 max_client_connections=0 \
             current_client_connections=1 paused=0 disabled=0"
        );
        assert_eq!(
            lines[2],
            "name=shop host=db.example port=5433 database=stock force_user=app pool_size=5 \
             min_pool_size=2 reserve_pool_size=3 server_lifetime=3600 pool_mode=session \
             load_balance_hosts=~ max_connections=9 current_connections=3 max_client_connections=90 \
             current_client_connections=9 paused=0 disabled=0"
        );
    }

    #[test]
    fn users_are_the_known_the_forced_the_pooled_and_those_inside() {
        let ann = User {
            pool_size: Some(30),
            reserve_pool_size: Some(4),
            max_user_connections: Some(8),
            max_user_client_connections: Some(80),
            pool_mode: Some(PoolMode::Statement),
            ..User::named("ann")
        };
        let config = Config {
            databases: [entry("shop", Some("app"))].into(),
            users: [("ann".to_owned(), Arc::new(ann))].into(),
            ..Config::default()
        };
        let known = ["ann", "bob"].map(|name| UserRow {
            name: name.to_owned(),
            current_connections: 4,
        });
        let open = [
            existing("shop", "app", PoolMode::Session, 3),
            existing("shop", "pooled", PoolMode::Session, 2),
        ];
        let clients = ByName::from([("bob".into(), 6), ("inside".into(), 1)]);
        let rows = users(known.into(), &config, &open, &clients);
        let lines: Vec<_> = rows.iter().map(|row| printed(USERS, row)).collect();
        assert_eq!(
            lines,
            [
                "name=ann pool_size=       30 reserve_pool_size=        4 pool_mode=statement \
                 max_user_connections=8 current_connections=4 max_user_client_connections=80 \
                 current_client_connections=0",
                "name=app pool_size= reserve_pool_size= pool_mode=~ max_user_connections=0 \
                 current_connections=3 max_user_client_connections=0 current_client_connections=0",
                "name=bob pool_size= reserve_pool_size= pool_mode=~ max_user_connections=0 \
                 current_connections=4 max_user_client_connections=0 current_client_connections=6",
                "name=inside pool_size= reserve_pool_size= pool_mode=~ max_user_connections=0 \
                 current_connections=0 max_user_client_connections=0 current_client_connections=1",
                "name=pooled pool_size= reserve_pool_size= pool_mode=~ max_user_connections=0 \
                 current_connections=2 max_user_client_connections=0 current_client_connections=0",
            ]
        );
    }

    #[test]
    fn lists_have_pgbouncers_rows() {
        let rows = lists(&Counts {
            databases: 1,
            peers: 8,
            users: 2,
            pools: 3,
            login_clients: 4,
            used_clients: 5,
            used_servers: 6,
            dns_names: 7,
        });
        assert_fits(LISTS, &rows);
        let lines: Vec<_> = rows.iter().map(|row| printed(LISTS, row)).collect();
        let expected = "databases=1 users=2 peers=8 pools=3 peer_pools=8 free_clients=0 used_clients=5 \
                        login_clients=4 free_servers=0 used_servers=6 dns_names=7 dns_zones=0 \
                        dns_queries=0 dns_pending=0";
        let expected = expected.split(' ').map(|pair| {
            let (list, items) = pair.split_once('=').unwrap();
            format!("list={list} items={items}")
        });
        assert_eq!(lines, expected.collect::<Vec<_>>());
    }
}
