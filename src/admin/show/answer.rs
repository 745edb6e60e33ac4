//! Which rows belong to which SHOW.

use super::{
    certificates, connections, counters, failures, internals, pools, settings, shards, statements,
};
use crate::admin::command::Show;
use crate::admin::filter::{Filter, Pick};
use crate::admin::office::{Access, ClientRow, Office};
use crate::admin::table::{Row, Rows, Value};
use crate::base::Moment;
use crate::client::ClientState;
use crate::stats::PoolEntry;
use std::collections::HashMap;
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
    match show {
        Show::Help => all(Vec::new()),
        Show::Version => one(vec![Value::text(settings::PROGRAM)]),
        Show::Stats | Show::StatsTotals | Show::StatsAverages | Show::Totals => {
            all(counted(show, office, now))
        }
        Show::Pools => all(pools::pools(
            &office.registry().pools(),
            &office.pools(),
            now,
        )),
        Show::Clients => {
            let wanted = office.clients(Pick::by(filter, connections::client));
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
        Show::State => all(internals::state(office.hold())),
        Show::Mem => {
            let shards = office.registry().shards();
            all(internals::mem(&office.config().general, shards))
        }
        Show::DnsHosts => all(internals::dns_hosts(office.hosts())),
        // Zones are not watched.
        Show::DnsZones => all(Vec::new()),
        Show::Peers => all(internals::peers(&office.config())),
        Show::PeerPools => all(internals::peer_pools(&office.config(), |id| {
            office.peer_load(id)
        })),
        Show::Databases => {
            let clients = office.client_counts().by_database;
            all(pools::databases(
                &office.config(),
                &office.pools(),
                &clients,
                |name| office.flags(name),
            ))
        }
        Show::Users => {
            let clients = office.client_counts().by_user;
            let (users, config, open) = (office.users(), office.config(), office.pools());
            all(pools::users(users, &config, &open, &clients))
        }
        Show::Config => all(settings::config(&office.config())),
        Show::Lists => all(lists(office)),
        Show::PreparedStatements => {
            let rows = office.statements().await;
            all(statements::statements(rows, access))
        }
        Show::Shards => {
            let depth = |shard| office.mailbox_depth(shard);
            all(shards::shards(office.registry().shards(), depth))
        }
        Show::Tls => Box::new(
            office
                .certificates()
                .into_iter()
                .map(certificates::certificate),
        ),
        Show::LoginFailures => all(failures::login_failures(office.login_failures())),
        Show::Latency => counters::latency(office.registry().pools()),
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

fn counted(show: Show, office: &dyn Office, now: Moment) -> Vec<Row> {
    let totals = office.registry().totals_by_database();
    let history = office.history().lock();
    let history = history.unwrap_or_else(PoisonError::into_inner);
    let averages = |name: &str, totals: &_| history.averages(now, name, totals);
    match show {
        Show::Stats => counters::stats(&totals, averages),
        Show::StatsTotals => counters::stats_totals(&totals),
        Show::StatsAverages => counters::stats_averages(&totals, averages),
        _ => counters::totals(&totals, &history.averages_of_all(now, &totals)),
    }
}

fn lists(office: &dyn Office) -> Vec<Row> {
    let (config, open, no_clients) = (office.config(), office.pools(), HashMap::new());
    let counted = office.registry().pools();
    let gauges = counted.iter().map(PoolEntry::gauges);
    let inside: u64 = gauges
        .map(|gauges| gauges.cl_active + gauges.cl_waiting)
        .sum();
    let shards = office.registry().shards().iter();
    let (clients, servers) = shards
        .map(|shard| (shard.clients.load(), shard.servers.load()))
        .fold((0, 0), |(clients, servers), more| {
            (clients + more.0, servers + more.1)
        });
    let number = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    pools::lists(&pools::Counts {
        peers: config.peers.len(),
        databases: pools::databases(&config, &open, &no_clients, |_| Default::default()).len(),
        users: pools::users(office.users(), &config, &open, &no_clients).len(),
        pools: pools::pools(&counted, &open, Moment::default()).len(),
        login_clients: number(clients.saturating_sub(inside)),
        used_clients: number(clients),
        used_servers: number(servers),
        dns_names: office.hosts().len(),
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
