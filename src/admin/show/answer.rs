//! Which rows belong to which SHOW.

use super::{
    certificates, connections, counters, failures, internals, pools, settings, shards, statements,
};
use crate::admin::command::Show;
use crate::admin::filter::{Filter, Pick};
use crate::admin::office::{Access, ClientRow, Office, Records};
use crate::admin::table::{Row, Rows, Value};
use crate::base::{Moment, memory};
use crate::client::ClientState;
use crate::stats::PoolEntry;
use std::fmt::Write;
use std::sync::{Arc, PoisonError};

/// The rows of `show`, as things stand at `now`. Of clients and servers only those that `filter` wants are
/// gathered; for other tables it is left to the caller.
pub(in crate::admin) async fn rows(
    show: Show,
    filter: Option<&Arc<Filter>>,
    office: &dyn Office,
    access: Access,
    now: Moment,
) -> Rows {
    let records = office.records();
    match show {
        Show::Help => all(Vec::new()),
        Show::Version => one(vec![Value::text(settings::PROGRAM)]),
        Show::StatsTotals => all(total_rows(records)),
        Show::Stats | Show::StatsAverages | Show::Totals => all(averaged(show, records, now)),
        Show::Pools => all(pool_rows(records, now)),
        Show::Clients => {
            // PgBouncer's table has those in pools.
            let is_in = |client: &ClientRow| client.state != ClientState::Login;
            let wanted = office.clients(Pick::by(filter, connections::client).and(is_in));
            Box::new(wanted.await.into_iter().map(connections::client))
        }
        Show::Servers => {
            let wanted = office.servers(Pick::by(filter, connections::server));
            Box::new(wanted.await.into_iter().map(connections::server))
        }
        Show::Sockets => {
            let clients = office.clients(Pick::by(filter, |row| {
                connections::socket(connections::client(row))
            }));
            let clients = clients.await.into_iter().map(connections::client);
            let servers = office.servers(Pick::by(filter, |row| {
                connections::socket(connections::server(row))
            }));
            let servers = servers.await.into_iter().map(connections::server);
            Box::new(clients.chain(servers).map(connections::socket))
        }
        Show::ActiveSockets => {
            // A client that waits has its request in a buffer; what others have flows at once.
            let waits = |client: &ClientRow| client.state == ClientState::Waiting;
            let waiting = office.clients(Pick {
                keep: Arc::new(waits),
                limit: usize::MAX,
            });
            let waiting = waiting.await.into_iter();
            Box::new(waiting.map(connections::client).map(connections::socket))
        }
        Show::Fds => all(internals::fds(
            office.clients(Pick::all()).await,
            office.servers(Pick::all()).await,
        )),
        Show::State => all(internals::state(records.hold())),
        Show::Mem => {
            let shards = records.registry().shards();
            memory::measure();
            all(internals::mem(
                &records.config().general,
                shards,
                memory::used(),
            ))
        }
        Show::DnsHosts => all(internals::dns_hosts(records.hosts())),
        // Zones are not watched.
        Show::DnsZones => all(Vec::new()),
        Show::Peers => all(internals::peers(&records.config())),
        Show::PeerPools => all(internals::peer_pools(&records.config(), |id| {
            records.peer_load(id)
        })),
        Show::Databases => all(database_rows(records)),
        Show::Users => {
            let clients = records.client_counts().by_user;
            let (users, config, open) = (records.users(), records.config(), records.pools());
            all(pools::users(users, &config, &open, &clients))
        }
        Show::Config => all(settings::config(&records.config())),
        Show::Lists => all(list_rows(records, now)),
        Show::PreparedStatements => {
            let rows = office.statements().await;
            all(statements::statements(rows, access))
        }
        Show::Shards => all(shard_rows(records)),
        Show::Tls => Box::new(
            records
                .certificates()
                .into_iter()
                .map(certificates::certificate),
        ),
        Show::LoginFailures => all(failures::login_failures(records.login_failures(now))),
        Show::Latency => counters::latency(records.registry().pools()),
        Show::Variable(variable) => one(vec![Value::text(variable.value)]),
    }
}

/// The rest of SHOW HELP.
const COMMANDS: &str = "
\tSET key = arg
\tRELOAD
\tPAUSE [<db>]
\tRESUME [<db>]
\tSUSPEND
\tDISABLE <db>
\tENABLE <db>
\tRECONNECT [<db>]
\tKILL [<db>]
\tKILL_CLIENT <client_id>
\tSHUTDOWN
\tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS
\tWAIT_CLOSE [<db>]
";

/// What SHOW HELP says.
pub(in crate::admin) fn help() -> String {
    let names: Vec<&str> = Show::ALL.iter().map(|(name, _)| *name).collect();
    let mut text = String::new();
    let _ = write!(text, "\n\tSHOW {}", names.join("|"));
    text.push_str(COMMANDS);
    text
}

fn all(rows: Vec<Row>) -> Rows {
    Box::new(rows.into_iter())
}

fn one(row: Row) -> Rows {
    Box::new(std::iter::once(row))
}

/// Rows of SHOW STATS_TOTALS.
pub(in crate::admin) fn total_rows(records: &dyn Records) -> Vec<Row> {
    counters::stats_totals(&records.registry().totals_by_database())
}

fn averaged(show: Show, records: &dyn Records, now: Moment) -> Vec<Row> {
    let totals = records.registry().totals_by_database();
    let history = records.history().lock();
    let history = history.unwrap_or_else(PoisonError::into_inner);
    let averages = |name: &str, totals: &_| history.averages(now, name, totals);
    match show {
        Show::Stats => counters::stats(&totals, averages),
        Show::StatsAverages => counters::stats_averages(&totals, averages),
        _ => counters::totals(&totals, &history.averages_of_all(now, &totals)),
    }
}

/// Rows of SHOW POOLS.
pub(in crate::admin) fn pool_rows(records: &dyn Records, now: Moment) -> Vec<Row> {
    pools::pools(&records.registry().pools(), &records.pools(), now)
}

/// Rows of SHOW DATABASES.
pub(in crate::admin) fn database_rows(records: &dyn Records) -> Vec<Row> {
    let clients = records.client_counts().by_database;
    let (config, open) = (records.config(), records.pools());
    pools::databases(&config, &open, &clients, |name| records.flags(name))
}

/// Rows of SHOW SHARDS.
pub(in crate::admin) fn shard_rows(records: &dyn Records) -> Vec<Row> {
    let depth = |shard| records.mailbox_depth(shard);
    shards::shards(records.registry().shards(), depth)
}

/// Rows of SHOW LISTS.
pub(in crate::admin) fn list_rows(records: &dyn Records, now: Moment) -> Vec<Row> {
    let (config, open, clients) = (records.config(), records.pools(), records.client_counts());
    let counted = records.registry().pools();
    let gauges = counted.iter().map(PoolEntry::gauges);
    let inside: u64 = gauges
        .map(|gauges| gauges.cl_active + gauges.cl_waiting)
        .sum();
    let shards = records.registry().shards().iter();
    let (used_clients, used_servers) = shards
        .map(|shard| (shard.clients.load(), shard.servers.load()))
        .fold((0, 0), |(clients, servers), more| {
            (clients + more.0, servers + more.1)
        });
    let number = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    pools::lists(&pools::Counts {
        peers: config.peers.len(),
        databases: pools::databases(&config, &open, &clients.by_database, |_| Default::default())
            .len(),
        users: pools::users(records.users(), &config, &open, &clients.by_user).len(),
        pools: pools::pools(&counted, &open, now).len(),
        login_clients: number(used_clients.saturating_sub(inside)),
        used_clients: number(used_clients),
        used_servers: number(used_servers),
        dns_names: records.hosts().len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_table() {
        let text = help();
        assert!(text.starts_with("\n\tSHOW HELP|VERSION|STATS|"), "{text}");
        assert!(
            text.contains("|SHARDS|LOGIN_FAILURES|PREPARED_STATEMENTS|LATENCY|TLS\n"),
            "{text}"
        );
    }
}
