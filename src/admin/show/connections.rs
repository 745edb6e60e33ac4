//! SHOW CLIENTS and SHOW SERVERS.

use super::date::timestamp;
use crate::admin::office::{ClientRow, ServerRow};
use crate::admin::table::{Column, Row, Value};
use crate::net::{Endpoint, TlsLabel};
use crate::wire::Replication;
use std::sync::Arc;

pub(in crate::admin) const CONNECTIONS: &[Column] = &[
    Column::text("type"),
    Column::text("user"),
    Column::text("database"),
    Column::text("replication"),
    Column::text("state"),
    Column::text("addr"),
    Column::int4("port"),
    Column::text("local_addr"),
    Column::int4("local_port"),
    Column::text("connect_time"),
    Column::text("request_time"),
    Column::int4("wait"),
    Column::int4("wait_us"),
    Column::int4("close_needed"),
    Column::text("ptr"),
    Column::text("link"),
    Column::int4("remote_pid"),
    Column::text("tls"),
    Column::text("application_name"),
    Column::int4("prepared_statements"),
    Column::int4("id"),
];

pub(in crate::admin) const SOCKETS: &[Column] = &{
    let mut columns = [Column::int4("recv_pos"); CONNECTIONS.len() + BUFFERS.len()];
    let mut at = 0;
    while at < columns.len() {
        columns[at] = if at < CONNECTIONS.len() {
            CONNECTIONS[at]
        } else {
            BUFFERS[at - CONNECTIONS.len()]
        };
        at += 1;
    }
    columns
};

/// What PgBouncer tells of its packet buffers. Here buffers belong to nobody in particular: all 0.
const BUFFERS: [Column; 7] = [
    Column::int4("recv_pos"),
    Column::int4("pkt_pos"),
    Column::int4("pkt_remain"),
    Column::int4("send_pos"),
    Column::int4("send_remain"),
    Column::int4("pkt_avail"),
    Column::int4("send_avail"),
];

const MICROS_PER_SECOND: u64 = 1_000_000;

/// What clients and servers have in common.
struct Connection {
    kind: &'static str,
    user: Arc<str>,
    database: Arc<str>,
    replication: Replication,
    state: &'static str,
    remote: Endpoint,
    local: Endpoint,
    connected_unix_us: u64,
    requested_unix_us: u64,
    wait_us: u64,
    close_needed: bool,
    id: u64,
    link: Option<u64>,
    remote_pid: u32,
    tls: Option<TlsLabel>,
    application_name: Arc<str>,
    prepared_statements: usize,
}

/// A row of SHOW CLIENTS. Its `remote_pid` is the process of a client that came by the Unix socket.
pub(super) fn client(row: ClientRow) -> Row {
    let remote_pid = match row.remote {
        Endpoint::Process { pid, .. } => pid,
        Endpoint::Tcp(_) | Endpoint::Unix(_) => 0,
    };
    Connection {
        kind: "C",
        user: row.user,
        database: row.database,
        replication: row.replication,
        state: row.state.as_str(),
        remote: row.remote,
        local: row.local,
        connected_unix_us: row.connected_unix_us,
        requested_unix_us: row.requested_unix_us,
        wait_us: row.wait_us,
        close_needed: false,
        id: row.id,
        link: row.link,
        remote_pid,
        tls: row.tls,
        application_name: row.application_name,
        prepared_statements: row.prepared_statements,
    }
    .into_row()
}

/// A row of SHOW SERVERS.
pub(super) fn server(row: ServerRow) -> Row {
    Connection {
        kind: "S",
        user: row.user,
        database: row.database,
        replication: row.replication,
        state: row.state.as_str(),
        remote: row.remote,
        local: row.local,
        connected_unix_us: row.connected_unix_us,
        // One that was never linked counts from its start, as a client without a request does.
        requested_unix_us: row.requested_unix_us.max(row.connected_unix_us),
        wait_us: 0,
        close_needed: row.close_needed,
        id: row.id,
        link: row.link,
        remote_pid: row.remote_pid,
        tls: row.tls,
        application_name: row.application_name,
        prepared_statements: row.prepared_statements,
    }
    .into_row()
}

/// The row of a client or server as SHOW SOCKETS has it.
pub(super) fn socket(mut row: Row) -> Row {
    let prefix = match row.first() {
        Some(Value::Text(kind)) if kind == "C" => "cl_",
        _ => "sv_",
    };
    if let Some(Value::Text(state)) = row.get_mut(STATE_AT) {
        // PgBouncer has no idle clients here.
        let word = if prefix == "cl_" && *state == "idle" {
            "active"
        } else {
            &**state
        };
        *state = format!("{prefix}{word}").into();
    }
    row.resize(SOCKETS.len(), Value::int4(0));
    row
}

/// Where the state stands in a row.
const STATE_AT: usize = 4;

impl Connection {
    fn into_row(self) -> Row {
        vec![
            Value::text(self.kind),
            Value::Shared(self.user),
            Value::Shared(self.database),
            Value::text(self.replication.as_str()),
            Value::text(self.state),
            Value::text(self.remote.address()),
            Value::int4(self.remote.port()),
            Value::text(self.local.address()),
            Value::int4(self.local.port()),
            Value::text(timestamp(self.connected_unix_us)),
            Value::text(timestamp(self.requested_unix_us)),
            Value::int4(self.wait_us / MICROS_PER_SECOND),
            Value::int4(self.wait_us % MICROS_PER_SECOND),
            Value::int4(i32::from(self.close_needed)),
            Value::text(pointer(self.id)),
            Value::text(self.link.map_or_else(String::new, pointer)),
            Value::int4(self.remote_pid),
            Value::text(self.tls.map_or_else(String::new, |tls| tls.to_string())),
            Value::Shared(self.application_name),
            Value::int4(self.prepared_statements),
            // Stays an int4, and nearly unique, after 2^31 connections; `ptr` has all of it.
            Value::int4(self.id & 0x7fff_ffff),
        ]
    }
}

/// What `ptr` and `link` are for is to join a client to its server; ids do that, addresses of
/// memory are nobody's business.
fn pointer(id: u64) -> String {
    format!("{id:#x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::show::testing::{assert_columns, client_row, printed};
    use crate::base::ShardId;
    use crate::client::ClientState;
    use crate::server::ServerState;

    #[test]
    fn columns_are_pgbouncers() {
        assert_columns(
            CONNECTIONS,
            "type t, user t, database t, replication t, state t, addr t, port i, local_addr t, \
             local_port i, connect_time t, request_time t, wait i, wait_us i, close_needed i, ptr t, \
             link t, remote_pid i, tls t, application_name t, prepared_statements i, id i",
        );
        let (same, more) = SOCKETS.split_at(CONNECTIONS.len());
        assert_eq!(same, CONNECTIONS);
        assert_columns(
            more,
            "recv_pos i, pkt_pos i, pkt_remain i, send_pos i, send_remain i, pkt_avail i, send_avail i",
        );
    }

    #[test]
    fn sockets_have_prefixed_states_and_empty_buffers() {
        assert_eq!(CONNECTIONS[STATE_AT].name, "state");
        let text = printed(SOCKETS, &socket(client(client_row())));
        assert!(text.contains(" state=cl_active "), "{text}");
        assert!(text.ends_with(" pkt_avail=0 send_avail=0"), "{text}");
        let idle = ClientRow {
            state: ClientState::Idle,
            ..client_row()
        };
        let text = printed(SOCKETS, &socket(client(idle)));
        assert!(text.contains(" state=cl_active "), "{text}");
    }

    #[test]
    fn linked_client_is_shown() {
        assert_eq!(
            printed(CONNECTIONS, &client(client_row())),
            "type=C user=ann database=shop replication=none state=active addr=10.0.0.1 port=40000 \
             local_addr=10.0.0.2 local_port=6432 connect_time=2026-11-23 06:53:48 UTC \
             request_time=2026-11-23 06:53:49 UTC wait=0 wait_us=0 close_needed=0 ptr=0x7 link=0x1a \
             remote_pid=0 tls= application_name=psql prepared_statements=3 id=7"
        );
    }

    #[test]
    fn waiting_time_is_split_into_seconds_and_the_rest() {
        let waiting = ClientRow {
            state: ClientState::Waiting,
            wait_us: 3_000_005,
            link: None,
            id: 0x1_8000_0001,
            ..client_row()
        };
        let text = printed(CONNECTIONS, &client(waiting));
        assert!(text.contains(" wait=3 wait_us=5 "), "{text}");
        assert!(text.contains(" ptr=0x180000001 link= "), "{text}");
        assert!(text.ends_with(" id=1"), "{text}");
    }

    #[test]
    fn server_over_a_unix_socket_is_shown() {
        let row = ServerRow {
            replication: Replication::Logical,
            shard: ShardId(1),
            id: 26,
            user: "ann".into(),
            database: "shop".into(),
            state: ServerState::BeingCanceled,
            remote: Endpoint::Unix("/run/.s.PGSQL.5432".into()),
            local: Endpoint::Unix("".into()),
            connected_unix_us: 1_795_416_828_000_000,
            requested_unix_us: 0,
            close_needed: true,
            link: Some(7),
            remote_pid: 4321,
            tls: None,
            application_name: "psql".into(),
            prepared_statements: 2,
        };
        assert_eq!(
            printed(CONNECTIONS, &server(row)),
            "type=S user=ann database=shop replication=logical state=being_canceled addr=unix port=5432 \
             local_addr=unix local_port=0 connect_time=2026-11-23 06:53:48 UTC \
             request_time=2026-11-23 06:53:48 UTC wait=0 wait_us=0 close_needed=1 ptr=0x1a link=0x7 \
             remote_pid=4321 tls= application_name=psql prepared_statements=2 id=26"
        );
    }
}
