//! Metrics: columns of the same tables that SHOW has, latencies, and the ends of certificates, in Prometheus's
//! text format. Names that begin with `pgbouncer_` are those of prometheus-community's pgbouncer_exporter.

use super::office::Records;
use super::show;
use super::table::{Column, Row};
use crate::base::{Moment, memory};
use crate::net::CertificateFile;
use crate::stats::{Exposition, Kind, Label};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Everything there is to scrape, as things stand at `now`; asks no shard.
pub fn exposition(records: &dyn Records, now: Moment) -> String {
    let mut text = Exposition::default();
    process(&mut text, records);
    let lists = show::list_rows(records, now);
    put_lists(&mut text, &lists);
    for table in TABLES {
        table.put(&mut text, &(table.rows)(records, now));
    }
    latencies(&mut text, records);
    certificates(&mut text, records.certificates());
    text.into_text()
}

// ---- the process -----------------------------------------------------------------------------

fn process(text: &mut Exposition, records: &dyn Records) {
    use Kind::Gauge;
    let config = records.config();
    let general = &config.general;
    text.single("pgbouncer_up", Gauge, "1 while the pooler serves.", 1);
    let (name, help) = ("pgbouncer_version_info", "Name and version of the pooler.");
    text.family(name, Gauge, help);
    text.sample(name, &[("version", show::PROGRAM)], 1);
    text.single(
        "pgbouncer_config_max_client_connections",
        Gauge,
        "max_client_conn.",
        general.max_client_conn,
    );
    text.single(
        "pgbouncer_config_max_user_connections",
        Gauge,
        "max_user_connections; 0 is no limit.",
        general.max_user_connections,
    );
    memory::measure();
    text.single(
        "process_resident_memory_bytes",
        Gauge,
        "Memory of the process.",
        memory::used(),
    );
    text.single(
        "ringbouncer_memory_max_bytes",
        Gauge,
        "memory_max; 0 is no limit.",
        general.memory_max,
    );
}

/// Rows of SHOW LISTS by name, each with the metric's name behind `pgbouncer_` and its meaning.
const LISTS: [(&str, &str, &str); 11] = [
    ("databases", "databases", "Databases."),
    ("users", "users", "Users."),
    ("pools", "pools", "Pools."),
    ("free_clients", "free_clients", "Always 0."),
    ("used_clients", "used_clients", "Client connections."),
    (
        "login_clients",
        "login_clients",
        "Client connections that are logging in.",
    ),
    ("free_servers", "free_servers", "Always 0."),
    ("used_servers", "used_servers", "Server connections."),
    ("dns_names", "cached_dns_names", "Host names looked up."),
    ("dns_zones", "cached_dns_zones", "Always 0."),
    ("dns_queries", "in_flight_dns_queries", "Always 0."),
];

fn put_lists(text: &mut Exposition, rows: &[Row]) {
    let items: BTreeMap<String, f64> = rows
        .iter()
        .filter_map(|row| Some((row.first()?.to_string(), row.get(1)?.number()?)))
        .collect();
    for (list, name, help) in LISTS {
        if let Some(items) = items.get(list) {
            text.single(&format!("pgbouncer_{name}"), Kind::Gauge, help, items);
        }
    }
}

// ---- tables ----------------------------------------------------------------------------------

/// A table whose columns are metrics.
struct Table {
    columns: &'static [Column],
    rows: fn(&dyn Records, Moment) -> Vec<Row>,
    /// The columns that tell its rows apart, which are the labels.
    labels: &'static [&'static str],
    /// What stands before the metrics' names; all are given under each of them.
    prefixes: &'static [&'static str],
    metrics: &'static [Metric],
}

/// A column that counts, one in microseconds, or the sum of both.
struct Metric {
    kind: Kind,
    whole: Option<&'static str>,
    micros: Option<&'static str>,
    name: &'static str,
    help: &'static str,
}

const fn gauge(column: &'static str, name: &'static str, help: &'static str) -> Metric {
    Metric {
        kind: Kind::Gauge,
        whole: Some(column),
        micros: None,
        name,
        help,
    }
}

const fn count(column: &'static str, name: &'static str, help: &'static str) -> Metric {
    Metric {
        kind: Kind::Counter,
        ..gauge(column, name, help)
    }
}

const fn seconds(column: &'static str, name: &'static str, help: &'static str) -> Metric {
    Metric {
        kind: Kind::Counter,
        whole: None,
        micros: Some(column),
        name,
        help,
    }
}

impl Table {
    fn put(&self, text: &mut Exposition, rows: &[Row]) {
        for prefix in self.prefixes {
            for metric in self.metrics {
                let name = format!("{prefix}{}", metric.name);
                text.family(&name, metric.kind, metric.help);
                for row in rows {
                    let values = self.labels.iter().map(|label| self.written(row, label));
                    let values: Vec<String> = values.collect();
                    let labels = self.labels.iter().zip(&values);
                    let labels: Vec<Label<'_>> =
                        labels.map(|(name, value)| (*name, &**value)).collect();
                    text.sample(&name, &labels, self.number(row, metric));
                }
            }
        }
    }

    fn number(&self, row: &Row, metric: &Metric) -> f64 {
        let of = |column: Option<&str>| {
            let value = column.and_then(|column| row.get(self.place(column)?));
            value.and_then(|value| value.number()).unwrap_or_default()
        };
        // A division, as a product with 0.000001 would be off in the last digit.
        of(metric.whole) + of(metric.micros) / 1e6
    }

    fn written(&self, row: &Row, column: &str) -> String {
        let value = self.place(column).and_then(|place| row.get(place));
        value.map(ToString::to_string).unwrap_or_default()
    }

    fn place(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|known| known.name == column)
    }
}

const TABLES: &[Table] = &[
    Table {
        columns: show::DATABASES,
        rows: |records, _| show::database_rows(records),
        labels: &[
            "name",
            "host",
            "port",
            "database",
            "force_user",
            "pool_mode",
        ],
        prefixes: &["pgbouncer_databases_"],
        metrics: DATABASES,
    },
    Table {
        columns: show::POOLS,
        rows: show::pool_rows,
        labels: &["database", "user"],
        prefixes: &["pgbouncer_pools_"],
        metrics: POOLS,
    },
    Table {
        columns: show::STATS_TOTALS,
        rows: |records, _| show::total_rows(records),
        labels: &["database"],
        // The exporter's older names, and those that it has now.
        prefixes: &["pgbouncer_stats_", "pgbouncer_stats_totals_"],
        metrics: STATS,
    },
    Table {
        columns: show::SHARDS,
        rows: |records, _| show::shard_rows(records),
        labels: &["shard"],
        prefixes: &["ringbouncer_shard_"],
        metrics: SHARDS,
    },
];

const DATABASES: &[Metric] = &[
    gauge(
        "pool_size",
        "pool_size",
        "Server connections that each pool may have; 0 is no limit.",
    ),
    gauge(
        "reserve_pool_size",
        "reserve_pool",
        "Server connections that each pool may have beyond that.",
    ),
    gauge(
        "max_connections",
        "max_connections",
        "Server connections that all its pools may have; 0 is no limit.",
    ),
    gauge(
        "current_connections",
        "current_connections",
        "Server connections that all its pools have.",
    ),
    gauge("paused", "paused", "1 if it is paused by itself."),
    gauge("disabled", "disabled", "1 if it is disabled."),
];

const POOLS: &[Metric] = &[
    gauge(
        "cl_active",
        "client_active_connections",
        "Clients that have a server, or are idle.",
    ),
    gauge(
        "cl_waiting",
        "client_waiting_connections",
        "Clients that wait for a server.",
    ),
    gauge(
        "cl_active_cancel_req",
        "client_active_cancel_connections",
        "Cancel requests that were passed on and wait for the answer.",
    ),
    gauge(
        "cl_waiting_cancel_req",
        "client_waiting_cancel_connections",
        "Cancel requests that were not passed on yet.",
    ),
    gauge(
        "sv_active",
        "server_active_connections",
        "Servers that a client has.",
    ),
    gauge(
        "sv_active_cancel",
        "server_active_cancel_connections",
        "Server connections that carry a cancel request.",
    ),
    gauge(
        "sv_being_canceled",
        "server_being_canceled_connections",
        "Servers kept back because a cancel request may still hit them.",
    ),
    gauge(
        "sv_idle",
        "server_idle_connections",
        "Servers ready for use.",
    ),
    gauge(
        "sv_used",
        "server_used_connections",
        "Servers to be checked before use.",
    ),
    gauge(
        "sv_tested",
        "server_testing_connections",
        "Servers that run the reset or the check query.",
    ),
    gauge(
        "sv_login",
        "server_login_connections",
        "Servers that are connecting or logging in.",
    ),
    Metric {
        micros: Some("maxwait_us"),
        ..gauge(
            "maxwait",
            "client_maxwait_seconds",
            "How long the first client in line has waited.",
        )
    },
];

const STATS: &[Metric] = &[
    count(
        "server_assignment_count",
        "server_assignments_total",
        "Times a client was given a server.",
    ),
    count(
        "xact_count",
        "sql_transactions_pooled_total",
        "Transactions.",
    ),
    count("query_count", "queries_pooled_total", "Queries."),
    count(
        "bytes_received",
        "received_bytes_total",
        "Bytes from clients.",
    ),
    count("bytes_sent", "sent_bytes_total", "Bytes from servers."),
    seconds(
        "xact_time",
        "server_in_transaction_seconds_total",
        "Time spent in transactions.",
    ),
    seconds(
        "query_time",
        "queries_duration_seconds_total",
        "Time spent in queries.",
    ),
    seconds(
        "wait_time",
        "client_wait_seconds_total",
        "Time that clients waited for a server.",
    ),
    count(
        "client_parse_count",
        "client_parses_total",
        "Named statements prepared by clients.",
    ),
    count(
        "server_parse_count",
        "server_parses_total",
        "Named statements prepared on servers.",
    ),
    count(
        "bind_count",
        "binds_total",
        "Named statements bound by clients.",
    ),
];

const SHARDS: &[Metric] = &[
    gauge(
        "clients",
        "clients",
        "Client connections, those that are logging in included.",
    ),
    gauge("servers", "servers", "Server connections."),
    gauge(
        "load",
        "load_percent",
        "CPU time of the shard's thread over the last second, of one core.",
    ),
    seconds(
        "busy_us",
        "busy_seconds_total",
        "Time spent working, not waiting in the ring.",
    ),
    Metric {
        kind: Kind::Gauge,
        ..seconds(
            "longest_turn_us",
            "longest_turn_seconds",
            "The longest turn of its loop since the start.",
        )
    },
    count("accepted", "accepted_total", "Client sockets accepted."),
    count(
        "clients_in",
        "clients_in_total",
        "Client sockets taken over from another shard.",
    ),
    count(
        "clients_out",
        "clients_out_total",
        "Client sockets passed to another shard.",
    ),
    count("logins", "logins_total", "Clients that logged in."),
    count(
        "login_failures",
        "login_failures_total",
        "Clients refused before they were logged in, or lost.",
    ),
    count(
        "memory_refusals",
        "memory_refusals_total",
        "Clients refused or sent away for want of memory (memory_max).",
    ),
    count(
        "moves_in",
        "moves_in_total",
        "Clients that came from another shard between two transactions.",
    ),
    count(
        "moves_out",
        "moves_out_total",
        "Clients that went to another shard.",
    ),
    count(
        "handoffs_in",
        "handoffs_in_total",
        "Idle servers taken over from another shard.",
    ),
    count(
        "handoffs_out",
        "handoffs_out_total",
        "Idle servers handed to another shard.",
    ),
    count(
        "servers_opened",
        "servers_opened_total",
        "Server connections opened.",
    ),
    count(
        "server_failures",
        "server_failures_total",
        "Server connections that could not be opened.",
    ),
    gauge(
        "mailbox_depth",
        "mailbox_depth",
        "Messages that wait for the shard.",
    ),
    gauge(
        "mailbox_depth_max",
        "mailbox_depth_max",
        "The most messages that ever waited for it.",
    ),
    count(
        "mailbox_full",
        "mailbox_full_total",
        "Messages it could not send because a mailbox was full.",
    ),
    count("ring_enters", "ring_enters_total", "io_uring_enter calls."),
    count(
        "completions",
        "completions_total",
        "Completions reaped from the ring.",
    ),
    gauge("buffers_free", "buffers_free", "Receive buffers free."),
    count(
        "buffers_starved",
        "buffers_starved_total",
        "Receives that found no free buffer.",
    ),
    count(
        "heap_copies",
        "heap_copies_total",
        "Receive buffers copied because few were free.",
    ),
    count(
        "late_wakeups",
        "late_wakeups_total",
        "Times that work was found which it should have been woken for.",
    ),
];

// ---- latencies -------------------------------------------------------------------------------

fn latencies(text: &mut Exposition, records: &dyn Records) {
    let name = "ringbouncer_latency_seconds";
    let help = "How long queries, transactions, waits for a server and hand-offs of servers took.";
    text.family(name, Kind::Histogram, help);
    for pool in records.registry().pools() {
        for (kind, histogram) in show::KINDS {
            let labels = [
                ("database", &*pool.database),
                ("user", &*pool.user),
                ("kind", kind),
            ];
            text.histogram(name, &labels, &pool.steps(histogram));
        }
    }
}

// ---- certificates ----------------------------------------------------------------------------

/// A sample's labels must be its own: of certificates of one file and subject, the first to expire stands for
/// all. A list of revoked ones without an end is left out.
fn certificates(text: &mut Exposition, files: Vec<CertificateFile>) {
    let mut first = BTreeMap::<(&str, PathBuf, String), CertificateFile>::new();
    for file in files.into_iter().filter(|file| file.not_after != 0) {
        let key = (file.key, file.path.clone(), file.subject.clone());
        let known = first.entry(key).or_insert_with(|| file.clone());
        known.not_after = known.not_after.min(file.not_after);
    }
    let mut put = |name: &str, help: &str, number: fn(&CertificateFile) -> i64| {
        text.family(name, Kind::Gauge, help);
        for file in first.values() {
            let path = file.path.display().to_string();
            let labels = [
                ("setting", file.key),
                ("file", &*path),
                ("subject", &*file.subject),
            ];
            text.sample(name, &labels, number(file));
        }
    };
    put(
        "ringbouncer_certificate_not_after_seconds",
        "When the certificate expires, in Unix time; of a revocation list, when the next one is due.",
        |file| file.not_after,
    );
    put(
        "ringbouncer_certificate_seconds_left",
        "Time until then; negative afterwards.",
        CertificateFile::seconds_left,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::table::Value;
    use std::collections::BTreeSet;

    #[test]
    fn every_column_that_is_named_exists() {
        for table in TABLES {
            let of_metrics = table.metrics.iter().flat_map(|m| [m.whole, m.micros]);
            for column in of_metrics.flatten().chain(table.labels.iter().copied()) {
                assert!(table.place(column).is_some(), "{column}");
            }
        }
    }

    #[test]
    fn no_name_is_used_twice() {
        let mut seen = BTreeSet::new();
        for table in TABLES {
            for prefix in table.prefixes {
                for metric in table.metrics {
                    let name = format!("{prefix}{}", metric.name);
                    assert_eq!(
                        metric.kind == Kind::Counter,
                        name.ends_with("_total"),
                        "{name}"
                    );
                    assert!(seen.insert(name.clone()), "{name}");
                }
            }
        }
    }

    #[test]
    fn row_becomes_one_sample_of_each_metric() {
        const COLUMNS: &[Column] = &[
            Column::text("database"),
            Column::numeric("xacts"),
            Column::int4("wait"),
            Column::int4("wait_us"),
        ];
        const METRICS: &[Metric] = &[
            count("xacts", "xacts_total", "Transactions."),
            Metric {
                micros: Some("wait_us"),
                ..gauge("wait", "wait_seconds", "Wait.")
            },
        ];
        let table = Table {
            columns: COLUMNS,
            rows: |_, _| Vec::new(),
            labels: &["database"],
            prefixes: &["a_", "b_"],
            metrics: METRICS,
        };
        let row = vec![
            Value::text("shop"),
            Value::numeric(7),
            Value::int4(2),
            Value::int4(13),
        ];
        let mut text = Exposition::default();
        table.put(&mut text, &[row]);
        let text = text.into_text();
        let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "a_xacts_total{database=\"shop\"} 7",
                "a_wait_seconds{database=\"shop\"} 2.000013",
                "b_xacts_total{database=\"shop\"} 7",
                "b_wait_seconds{database=\"shop\"} 2.000013",
            ]
        );
    }

    #[test]
    fn certificates_of_one_name_are_one_sample_with_the_first_end() {
        let file = |subject: &str, not_after| CertificateFile {
            key: "client_tls_ca_file",
            path: "/etc/ca".into(),
            subject: subject.to_owned(),
            not_before: 0,
            not_after,
        };
        let mut text = Exposition::default();
        let files = vec![
            file("CN=a", 30),
            file("CN=a", 20),
            file("CN=b", 40),
            file("CN=c", 0),
        ];
        certificates(&mut text, files);
        let text = text.into_text();
        let ends: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("ringbouncer_certificate_not_after_seconds{"))
            .collect();
        let line = |name: &str, end: i64| {
            format!(
                "ringbouncer_certificate_not_after_seconds{{setting=\"client_tls_ca_file\",file=\"/etc/ca\",subject=\"CN={name}\"}} {end}"
            )
        };
        assert_eq!(ends, [line("a", 20), line("b", 40)]);
    }
}
