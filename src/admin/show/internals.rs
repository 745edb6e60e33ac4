//! SHOW STATE, and what PgBouncer shows of its inside: SHOW MEM, FDS, DNS_HOSTS, DNS_ZONES, PEERS,
//! PEER_POOLS. Their columns are PgBouncer's; where this program has nothing of the kind, a table is
//! empty or a value neutral.

use crate::admin::office::{ClientRow, Hold, PeerLoad, ServerRow};
use crate::admin::table::{Column, Row, Value};
use crate::config::{Config, General};
use crate::net::Endpoint;
use crate::stats::{ShardReading, ShardStats};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub(in crate::admin) const STATE: &[Column] = &[Column::text("key"), Column::text("value")];

pub(in crate::admin) const MEM: &[Column] = &[
    Column::text("name"),
    Column::int4("size"),
    Column::int4("used"),
    Column::int4("free"),
    Column::int4("memtotal"),
];

pub(in crate::admin) const DNS_HOSTS: &[Column] = &[
    Column::text("hostname"),
    Column::int8("ttl"),
    Column::text("addrs"),
];

pub(in crate::admin) const DNS_ZONES: &[Column] = &[
    Column::text("zonename"),
    Column::int8("serial"),
    Column::int4("count"),
];

pub(in crate::admin) const PEERS: &[Column] = &[
    Column::int4("peer_id"),
    Column::text("host"),
    Column::int4("port"),
    Column::int4("pool_size"),
];

pub(in crate::admin) const PEER_POOLS: &[Column] = &[
    Column::int4("peer_id"),
    Column::int4("cl_active_cancel_req"),
    Column::int4("cl_waiting_cancel_req"),
    Column::int4("sv_active_cancel"),
    Column::int4("sv_login"),
];

pub(in crate::admin) const FDS: &[Column] = &[
    Column::int4("fd"),
    Column::text("task"),
    Column::text("user"),
    Column::text("database"),
    Column::text("addr"),
    Column::int4("port"),
    Column::int8("cancel"),
    Column::int4("link"),
    Column::text("client_encoding"),
    Column::text("std_strings"),
    Column::text("datestyle"),
    Column::text("timezone"),
    Column::text("password"),
    Column::bytea("scram_client_key"),
    Column::bytea("scram_server_key"),
];

const KIB: u64 = 1024;

/// Rows of SHOW STATE.
pub(super) fn state(hold: Hold) -> Vec<Row> {
    let rows = [
        ("active", hold == Hold::None),
        ("paused", hold == Hold::Paused),
        ("suspended", hold == Hold::Suspended),
    ];
    let rows = rows.map(|(key, is_so)| {
        let value = if is_so { "yes" } else { "no" };
        vec![Value::text(key), Value::text(value)]
    });
    rows.into()
}

/// Rows of SHOW MEM: the receive buffers of all shards, under PgBouncer's name for its own, and the memory of the process, of
/// which `used` bytes are resident, in KiB.
pub(super) fn mem(general: &General, shards: &[Arc<ShardStats>], used: u64) -> Vec<Row> {
    let free: u64 = shards
        .iter()
        .map(|shard| ShardReading::from(&**shard).buffers_free)
        .sum();
    let all = u64::from(general.receive_buffers) * shards.len() as u64;
    let size = general.receive_buffer_bytes as u64;
    let left = (general.memory_max as u64).saturating_sub(used);
    vec![
        vec![
            Value::text("iobuf_cache"),
            Value::int4(size),
            Value::int4(all.saturating_sub(free)),
            Value::int4(free),
            Value::int4(all.saturating_mul(size)),
        ],
        vec![
            Value::text("process"),
            Value::int4(KIB),
            Value::int4(used / KIB),
            Value::int4(left / KIB),
            Value::int4(used.saturating_add(left)),
        ],
    ]
}

/// Rows of SHOW DNS_HOSTS; PgBouncer shows addresses with a port of 0. All names are looked up anew at fixed times, so no answer grows old.
pub(super) fn dns_hosts(hosts: Vec<(String, Vec<IpAddr>)>) -> Vec<Row> {
    let rows = hosts.into_iter().map(|(name, addresses)| {
        let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, 0));
        let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
        vec![
            Value::text(name),
            Value::int8(0),
            Value::text(addresses.join(",")),
        ]
    });
    rows.collect()
}

/// Rows of SHOW PEERS.
pub(super) fn peers(config: &Config) -> Vec<Row> {
    let rows = config.peers.values().map(|peer| {
        let size = peer.pool_size.unwrap_or(config.general.default_pool_size);
        vec![
            Value::int4(peer.id),
            peer.host.clone().map_or(Value::Null, Value::text),
            Value::int4(peer.port),
            Value::int4(size),
        ]
    });
    rows.collect()
}

/// Rows of SHOW PEER_POOLS: one for each peer. A request has a connection to the peer while it is on its way.
pub(super) fn peer_pools(config: &Config, load: impl Fn(u16) -> PeerLoad) -> Vec<Row> {
    let rows = config.peers.keys().map(|id| {
        let PeerLoad { active, waiting } = load(*id);
        vec![
            Value::int4(*id),
            Value::int4(active),
            Value::int4(waiting),
            Value::int4(active),
            Value::int4(0),
        ]
    });
    rows.collect()
}

/// Rows of SHOW FDS. Nobody takes connections over with it (that is what a rolling restart is for), so it
/// has neither descriptors nor secrets: no cancel keys, no passwords, no SCRAM keys.
pub(super) fn fds(clients: Vec<ClientRow>, servers: Vec<ServerRow>) -> Vec<Row> {
    let clients = clients
        .into_iter()
        .map(|row| fd("client", row.user, row.database, &row.remote, row.link));
    let servers = servers
        .into_iter()
        .map(|row| fd("server", row.user, row.database, &row.remote, row.link));
    clients.chain(servers).collect()
}

fn fd(
    task: &'static str,
    user: Arc<str>,
    database: Arc<str>,
    remote: &Endpoint,
    link: Option<u64>,
) -> Row {
    let mut row = vec![
        Value::int4(0),
        Value::text(task),
        Value::Shared(user),
        Value::Shared(database),
        Value::text(remote.address()),
        Value::int4(remote.port()),
        Value::int8(0),
        Value::int4(link.unwrap_or(0) & 0x7fff_ffff),
    ];
    row.resize(FDS.len(), Value::Null);
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::show::testing::{assert_columns, client_row, printed};
    use crate::stats::Registry;

    #[test]
    fn columns_are_pgbouncers() {
        assert_columns(STATE, "key t, value t");
        assert_columns(MEM, "name t, size i, used i, free i, memtotal i");
        assert_columns(DNS_HOSTS, "hostname t, ttl q, addrs t");
        assert_columns(DNS_ZONES, "zonename t, serial q, count i");
        assert_columns(PEERS, "peer_id i, host t, port i, pool_size i");
        assert_columns(
            PEER_POOLS,
            "peer_id i, cl_active_cancel_req i, cl_waiting_cancel_req i, sv_active_cancel i, sv_login i",
        );
        assert_columns(
            FDS,
            "fd i, task t, user t, database t, addr t, port i, cancel q, link i, client_encoding t, \
             std_strings t, datestyle t, timezone t, password t, scram_client_key b, \
             scram_server_key b",
        );
    }

    #[test]
    fn one_state_is_the_one() {
        let lines = |hold| {
            let rows = state(hold);
            let lines: Vec<_> = rows.iter().map(|row| printed(STATE, row)).collect();
            lines.join(" ")
        };
        let paused = "key=active value=no key=paused value=yes key=suspended value=no";
        assert_eq!(lines(Hold::Paused), paused);
        assert!(lines(Hold::None).starts_with("key=active value=yes "));
        assert!(lines(Hold::Suspended).ends_with("key=suspended value=yes"));
    }

    #[test]
    fn buffers_of_all_shards_are_summed() {
        let registry = Registry::new(2);
        registry.shard(ShardId(0)).buffers_free.set(100);
        registry.shard(ShardId(1)).buffers_free.set(512);
        let general = General {
            receive_buffers: 512,
            receive_buffer_bytes: 8192,
            ..General::default()
        };
        let rows = mem(&general, registry.shards(), 0);
        assert_eq!(
            printed(MEM, &rows[0]),
            "name=iobuf_cache size=8192 used=412 free=612 memtotal=8388608"
        );
    }

    #[test]
    fn memory_of_the_process_stands_beside_its_budget() {
        let line = |used, memory_max| {
            let general = General {
                memory_max,
                ..General::default()
            };
            printed(MEM, &mem(&general, &[], used)[1])
        };
        let used = 10 << 20;
        assert_eq!(
            line(used, 64 << 20),
            "name=process size=1024 used=10240 free=55296 memtotal=67108864"
        );
        assert_eq!(
            line(used, 0),
            "name=process size=1024 used=10240 free=0 memtotal=10485760"
        );
    }

    #[test]
    fn peers_are_those_of_the_configuration() {
        let text = "ringbouncer.auth_type = \"trust\"\n[peers.2]\nhost = \"/run/two\"";
        let config = Config::parse(text, std::path::Path::new("r.toml")).unwrap();
        let load = |id| PeerLoad {
            active: u32::from(id),
            waiting: 7,
        };
        let [peers, pools] = [peers(&config), peer_pools(&config, load)];
        let line = "peer_id=2 host=/run/two port=6432 pool_size=20";
        assert_eq!((peers.len(), printed(PEERS, &peers[0])), (1, line.into()));
        assert_eq!(
            printed(PEER_POOLS, &pools[0]),
            "peer_id=2 cl_active_cancel_req=2 cl_waiting_cancel_req=7 sv_active_cancel=2 sv_login=0"
        );
    }

    #[test]
    fn descriptors_come_without_secrets() {
        let rows = fds(vec![client_row()], Vec::new());
        assert_eq!(
            printed(FDS, &rows[0]),
            "fd=0 task=client user=ann database=shop addr=10.0.0.1 port=40000 cancel=0 link=26 \
             client_encoding=~ std_strings=~ datestyle=~ timezone=~ password=~ scram_client_key=~ \
             scram_server_key=~"
        );
    }

    #[test]
    fn addresses_of_a_name_stand_in_one_value() {
        let addresses = ["10.0.0.1", "::1"].map(|address| address.parse().unwrap());
        let rows = dns_hosts(vec![("db".to_owned(), addresses.into())]);
        assert_eq!(
            printed(DNS_HOSTS, &rows[0]),
            "hostname=db ttl=0 addrs=10.0.0.1:0,[::1]:0"
        );
    }

    use crate::base::ShardId;
}
