#!/usr/bin/env bash
# Builds Ringbouncer, starts it in front of PostgreSQL, runs a short load through it and shows what it measured.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib.sh
. "$ROOT/scripts/lib.sh"

usage() {
    cat <<'TEXT'
Usage: scripts/quickstart.sh [OPTIONS]

Installs what is missing (PostgreSQL, a C compiler; Debian and Ubuntu), builds the release, starts a throw-away
PostgreSQL and Ringbouncer in front of it, runs pgbench through it, prints throughput, pools and latencies, and
leaves both running until Ctrl-C. Then everything is stopped and removed.

  --dsn DSN         use this PostgreSQL (postgres://user:password@host:port/dbname) instead of a throw-away one;
                    the load is then `SELECT 1` only: nothing is created, changed or read there
  --port PORT       port of Ringbouncer on 127.0.0.1 (default: a free one)
  --shards N        cores to use (default: Ringbouncer's own default)
  --duration SECS   length of each of the two load runs (default 10)
  --no-wait         stop after the report instead of waiting for Ctrl-C
  --help            this text

Environment: RINGBOUNCER_BIN runs this program instead of building one.
TEXT
}

DSN="" PORT=0 SHARDS="" DURATION=10 WAIT=yes
LOAD_CLIENTS=32 POOL_SIZE=20

parse_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --dsn | --port | --shards | --duration)
                [ $# -ge 2 ] || die "$1 needs a value"
                set_option "$1" "$2"
                shift
                ;;
            --no-wait) WAIT=no ;;
            --help | -h) usage && exit 0 ;;
            *) usage >&2 && die "unknown option $1" ;;
        esac
        shift
    done
}

set_option() {
    case $1 in
        --dsn) DSN=$2 ;;
        --port) PORT=$(number_within "$1" "$2" 0 65535) ;;
        --shards) SHARDS=$(number_within "$1" "$2" 1 1024) ;;
        --duration) DURATION=$(number_within "$1" "$2" 1 3600) ;;
    esac
}

number_within() {
    if ! [[ $2 =~ ^[0-9]{1,9}$ ]] || ((10#$2 < $3 || 10#$2 > $4)); then
        die "$1 wants a number from $3 to $4, not '$2'"
    fi
    echo $((10#$2))
}

install_missing() {
    if [ -z "${RINGBOUNCER_BIN:-}" ]; then
        need_cargo
        need_c_compiler
    fi
    need_postgres
    need_lockable_memory "$(nproc)"
}

build_release() {
    BINARY=${RINGBOUNCER_BIN:-}
    if [ -n "$BINARY" ]; then
        say "using $BINARY (RINGBOUNCER_BIN), nothing is built"
        return
    fi
    say "building Ringbouncer (release; the first build takes a few minutes)"
    run_step cargo build --release --locked --manifest-path "$ROOT/Cargo.toml" || die "the build failed"
    BINARY=${CARGO_TARGET_DIR:-$ROOT/target}/release/ringbouncer
}

# Sets SERVER_HOST, SERVER_PORT, SERVER_DB, SERVER_USER, SERVER_PASSWORD.
use_throw_away_server() {
    choose_db_user
    forget_libpq_environment
    say "starting a throw-away PostgreSQL in $WORK_DIR/pg as user $DB_USER"
    start_postgres
    SERVER_HOST=127.0.0.1 SERVER_PORT=$PG_PORT SERVER_DB=quickstart SERVER_USER=postgres SERVER_PASSWORD=""
    "$PG_BIN/createdb" -h "$SERVER_HOST" -p "$SERVER_PORT" -U "$SERVER_USER" "$SERVER_DB"
    note "$("$PG_BIN/postgres" --version), port $PG_PORT, process $PG_PID"
}

# libpq takes the DSN apart, so that every form it knows works; only the password it will not tell.
use_existing_server() {
    say "asking the server of --dsn who it is (nothing is created or changed there)"
    local answer
    # shellcheck disable=SC2016
    answer=$(printf '%s\n' '\pset format unaligned' '\echo :HOST' '\echo :PORT' '\echo :DBNAME' '\echo :USER' \
        '\echo :SERVER_VERSION_NAME' | PGCONNECT_TIMEOUT=10 "$PG_BIN/psql" -XqAt "$DSN") ||
        die "cannot connect with the given DSN"
    { read -r SERVER_HOST && read -r SERVER_PORT && read -r SERVER_DB && read -r SERVER_USER && read -r VERSION; } \
        <<<"$answer" || die "cannot read the answer of psql"
    SERVER_PASSWORD=$(password_of_dsn "$DSN")
    forget_libpq_environment
    note "PostgreSQL $VERSION at $SERVER_HOST port $SERVER_PORT, database $SERVER_DB, user $SERVER_USER"
}

password_of_dsn() {
    local quoted="password[[:space:]]*=[[:space:]]*'(([^'\\\\]|\\\\.)*)'" bare='password[[:space:]]*=[[:space:]]*([^[:space:]&]+)'
    if [[ $1 =~ ^postgres(ql)?://[^:/@?]*:([^@/]*)@ ]]; then
        percent_decoded "${BASH_REMATCH[2]}"
    elif [[ $1 =~ ^postgres(ql)?://.*[?\&]password=([^\&]*) ]]; then
        percent_decoded "${BASH_REMATCH[2]}"
    elif [[ $1 =~ $quoted ]]; then
        printf '%s' "${BASH_REMATCH[1]}" | sed 's/\\\(.\)/\1/g'
    elif [[ $1 =~ $bare ]]; then
        printf '%s' "${BASH_REMATCH[1]}"
    else
        printf '%s' "${PGPASSWORD:-}"
    fi
}

# Backslashes stay as they are: only %XX is an escape in a URI.
percent_decoded() {
    local text=${1//\\/\\\\}
    printf '%b' "${text//%/\\x}"
}

# A TOML basic string: backslash and quote escaped, control characters refused.
toml_string() {
    if [[ $1 =~ [[:cntrl:]] ]]; then die "a control character in a connection setting"; fi
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

# Clients need the server's password when it has one: without it, every local user could pass through us.
write_config() {
    CONFIG=$WORK_DIR/ringbouncer.toml
    local auth=trust
    if [ -n "$SERVER_PASSWORD" ]; then auth=scram-sha-256; fi
    touch "$CONFIG"
    chmod 0600 "$CONFIG"
    {
        printf '[ringbouncer]\nlisten_addr = "127.0.0.1"\nlisten_port = %s\n' "$PORT"
        printf 'pool_mode = "transaction"\ndefault_pool_size = %s\nauth_type = "%s"\n' "$POOL_SIZE" "$auth"
        printf 'admin_users = [%s]\nstats_users = ["pgbouncer"]\n' "$(toml_string "$SERVER_USER")"
        printf '\n[databases.%s]\nhost = %s\nport = %s\ndbname = %s\n' "$(toml_string "$SERVER_DB")" \
            "$(toml_string "$SERVER_HOST")" "$SERVER_PORT" "$(toml_string "$SERVER_DB")"
        if [ "$auth" = trust ] && [ "$SERVER_USER" != pgbouncer ]; then printf '\n[users.pgbouncer]\n'; fi
        printf '\n[users.%s]\n' "$(toml_string "$SERVER_USER")"
        if [ -n "$SERVER_PASSWORD" ]; then printf 'password = %s\n' "$(toml_string "$SERVER_PASSWORD")"; fi
    } >"$CONFIG"
}

start_pooler() {
    say "starting Ringbouncer"
    start_ringbouncer "$BINARY" "$CONFIG" "$SHARDS"
    note "$RB_READY"
    export PGHOST=127.0.0.1 PGPORT=$RB_PORT PGUSER=$SERVER_USER PGDATABASE=$SERVER_DB PGCONNECT_TIMEOUT=10
    export PGSSLMODE=prefer
    if [ -n "$SERVER_PASSWORD" ]; then export PGPASSWORD=$SERVER_PASSWORD; fi
}

prepare_load() {
    if [ -n "$DSN" ]; then
        LOAD_NAME="SELECT 1"
        echo 'SELECT 1;' >"$WORK_DIR/select1.sql"
        LOAD=(-f "$WORK_DIR/select1.sql")
    else
        LOAD_NAME="pgbench select-only"
        LOAD=(-S)
        say "filling pgbench's tables through Ringbouncer (scale 1)"
        run_step_into "$WORK_DIR/init" "$PG_BIN/pgbench" -i -q -s 1 ||
            die "pgbench -i failed: $(tail -n 3 "$WORK_DIR/init.err")"
    fi
}

run_load() {
    local protocol
    for protocol in simple prepared; do
        say "$LOAD_NAME, protocol $protocol, $LOAD_CLIENTS clients over at most $POOL_SIZE server connections, $DURATION s"
        run_step_into "$WORK_DIR/load" "$PG_BIN/pgbench" -n -M "$protocol" -c "$LOAD_CLIENTS" -j 2 -T "$DURATION" \
            "${LOAD[@]}" || die "pgbench failed: $(tail -n 3 "$WORK_DIR/load.err")"
        grep -E '^(tps|latency average|number of transactions actually|number of failed)' "$WORK_DIR/load.out" |
            while read -r line; do note "$line"; done
    done
}

console() { run_step "$PG_BIN/psql" -X -d ringbouncer "$@"; }

report() {
    say "SHOW POOLS"
    console -x -c 'SHOW POOLS' || die "SHOW POOLS failed"
    say "SHOW LATENCY (microseconds, as measured inside Ringbouncer)"
    console -P pager=off -c 'SHOW LATENCY' || die "SHOW LATENCY failed"
}

invite() {
    local password=""
    if [ -n "$SERVER_PASSWORD" ]; then password="PGPASSWORD=... "; fi
    say "both are running; try from another terminal:"
    note "${password}psql -h 127.0.0.1 -p $RB_PORT -U $SERVER_USER $SERVER_DB"
    note "${password}psql -h 127.0.0.1 -p $RB_PORT -U $SERVER_USER ringbouncer -c 'SHOW STATS'"
    note "Ctrl-C stops everything and removes $WORK_DIR"
    # shellcheck disable=SC2086
    wait -n $RB_PID $PG_PID || true
    if kill -0 "$RB_PID" 2>/dev/null; then
        tail -n 5 "$WORK_DIR/postgres.log" >&2
        die "PostgreSQL has ended by itself; its last words are above"
    fi
    tail -n 5 "$WORK_DIR/ringbouncer.log" >&2
    die "Ringbouncer has ended by itself; its last words are above"
}

parse_arguments "$@"
trap_signals
install_missing
build_release
make_work_dir quickstart
if [ -n "$DSN" ]; then use_existing_server; else use_throw_away_server; fi
write_config
start_pooler
prepare_load
run_load
report
if [ "$WAIT" = yes ]; then invite; fi
say "done, stopping"
