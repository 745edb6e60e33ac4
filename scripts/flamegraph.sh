#!/usr/bin/env bash
# Records where the pooler spends its time under a pgbench load and draws it.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib.sh
. "$ROOT/scripts/lib.sh"

INFERNO_VERSION=0.12.8
CASE="" SECONDS_RECORDED=10 FREQUENCY=997 CALL_GRAPH=fp SHARDS=1 POOL_SIZE=20 OUT_DIR=$ROOT/flamegraphs

usage() {
    cat <<'TEXT'
Usage: scripts/flamegraph.sh CASE [OPTIONS]

CASE is PROTOCOL-CLIENTS, for instance simple-32, extended-100 or prepared-1000 (pgbench select-only), reconnect-CLIENTS
for a connection per transaction, or idle-CLIENTS for clients that are connected and silent. Writes flamegraphs/<date>-<commit>-<case>.svg and a note beside it.

  --seconds N        length of the recording (default 10)
  --shards N         cores of Ringbouncer (default 1)
  --frequency HZ     samples per second and core (default 997)
  --call-graph KIND  fp (default; the build gets frame pointers) or dwarf
  --out DIR          where to write (default flamegraphs/)

Environment: RINGBOUNCER_BIN profiles this program instead of building one (with frame pointers, please).
TEXT
}

parse_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h) usage && exit 0 ;;
            --seconds | --shards | --frequency | --call-graph | --out)
                [ $# -ge 2 ] || die "$1 needs a value"
                case $1 in
                    --seconds) SECONDS_RECORDED=$2 ;;
                    --shards) SHARDS=$2 ;;
                    --frequency) FREQUENCY=$2 ;;
                    --call-graph) CALL_GRAPH=$2 ;;
                    --out) OUT_DIR=$2 ;;
                esac
                shift
                ;;
            -*) usage >&2 && die "unknown option $1" ;;
            *) CASE=$1 ;;
        esac
        shift
    done
    [[ $CASE =~ ^(simple|extended|prepared|reconnect|idle)-([1-9][0-9]{0,4})$ ]] || { usage >&2 && die "CASE is missing or unknown: '$CASE'"; }
    PROTOCOL=${BASH_REMATCH[1]} CLIENTS=${BASH_REMATCH[2]}
    [[ $SECONDS_RECORDED$SHARDS$FREQUENCY =~ ^[0-9]+$ ]] || die "--seconds, --shards and --frequency want numbers"
}

need_perf() {
    if ! perf --version >/dev/null 2>&1; then
        if apt-cache show linux-perf >/dev/null 2>&1; then
            apt_install linux-perf
        else
            apt_install linux-tools-common linux-tools-generic
        fi
        perf --version >/dev/null 2>&1 || die "perf does not run here; it must fit the kernel $(uname -r)"
    fi
}

need_inferno() {
    INFERNO=$ROOT/target/tools/bin
    if [ ! -x "$INFERNO/inferno-flamegraph" ]; then
        say "building inferno $INFERNO_VERSION into target/tools"
        run_step cargo install inferno --version "$INFERNO_VERSION" --locked --root "$ROOT/target/tools" || die "cannot build inferno"
    fi
}

# The release profile has line tables; frame pointers make the stacks cheap to walk, the standard library's included as
# far as it has them.
build_with_frame_pointers() {
    BINARY=${RINGBOUNCER_BIN:-}
    [ -z "$BINARY" ] || return 0
    say "building Ringbouncer with frame pointers into target/flamegraph"
    run_step env RUSTFLAGS="-C force-frame-pointers=yes" cargo build --release --locked \
        --manifest-path "$ROOT/Cargo.toml" --target-dir "$ROOT/target/flamegraph" || die "the build failed"
    BINARY=$ROOT/target/flamegraph/release/ringbouncer
}

start_both() {
    make_work_dir flamegraph
    choose_db_user
    forget_libpq_environment
    # 1,000 clients do not fit into the usual 1,024 files.
    ulimit -n "$(ulimit -Hn)"
    say "starting PostgreSQL and Ringbouncer"
    start_postgres
    "$PG_BIN/pgbench" -h 127.0.0.1 -p "$PG_PORT" -U postgres -i -q -s 10 postgres >"$WORK_DIR/init.log" 2>&1 ||
        die "pgbench -i failed: $(tail -n 3 "$WORK_DIR/init.log")"
    cat >"$WORK_DIR/ringbouncer.toml" <<TOML
[ringbouncer]
listen_addr = "127.0.0.1"
listen_port = 0
pool_mode = "transaction"
default_pool_size = $POOL_SIZE
max_client_conn = $((CLIENTS + 100))
auth_type = "trust"

[databases.postgres]
host = "127.0.0.1"
port = $PG_PORT
dbname = "postgres"

[users.postgres]
TOML
    start_ringbouncer "$BINARY" "$WORK_DIR/ringbouncer.toml" "$SHARDS"
    note "$RB_READY"
    PROFILED_PID=$(ready_field pid)
    PROFILED_PID=${PROFILED_PID:-$RB_PID}
}

# The load outlasts the recording: one second to settle before, some seconds for perf to write after.
start_load() {
    local seconds=$((SECONDS_RECORDED + 30)) script=(-S)
    if [ "$PROTOCOL" = reconnect ]; then
        script=(-C -S)
    elif [ "$PROTOCOL" = idle ]; then
        # Everybody connects, asks once and then sleeps on the client's side (pgbench counts microseconds in 31 bits).
        printf '%s\n' 'SELECT 1;' '\sleep 1800 s' >"$WORK_DIR/idle.sql"
        script=(-f "$WORK_DIR/idle.sql")
    fi
    local protocol=$PROTOCOL
    case $protocol in reconnect | idle) protocol=simple ;; esac
    LOAD_COMMAND="pgbench -n -M $protocol -c $CLIENTS -j 2 -T $seconds ${script[*]##*\/}"
    setsid "$PG_BIN/pgbench" -n -M "$protocol" -c "$CLIENTS" -j "$((CLIENTS > 1 ? 2 : 1))" -T "$seconds" -P 1 \
        -h 127.0.0.1 -p "$RB_PORT" -U postgres "${script[@]}" postgres </dev/null >"$WORK_DIR/load.out" 2>"$WORK_DIR/load.err" &
    STEP_PID=$!
    await 60 "$STEP_PID" grep -q '^progress' "$WORK_DIR/load.err" || die "pgbench did not get going: $(tail -n 3 "$WORK_DIR/load.err")"
}

# Without a hardware counter (most virtual machines) the CPU clock has to do.
record() {
    EVENT=cycles
    perf stat -e cycles -x, true 2>&1 | grep -q '^[0-9]' || EVENT=cpu-clock
    if [ "$(id -u)" -ne 0 ] && [ "$(cat /proc/sys/kernel/perf_event_paranoid)" -gt 1 ]; then
        note "kernel.perf_event_paranoid forbids kernel stacks to normal users: only user space will be seen"
        EVENT=$EVENT:u
    fi
    local kind=$CALL_GRAPH
    if [ "$kind" = dwarf ]; then kind=dwarf,16384; fi
    RECORD_COMMAND="perf record -e $EVENT -F $FREQUENCY --call-graph $kind -p PID -- sleep $SECONDS_RECORDED"
    say "$RECORD_COMMAND"
    perf record -q -o "$WORK_DIR/perf.data" -e "$EVENT" -F "$FREQUENCY" --call-graph "$kind" -p "$PROFILED_PID" \
        -- sleep "$SECONDS_RECORDED" 2>"$WORK_DIR/perf.err" || die "perf record failed: $(tail -n 3 "$WORK_DIR/perf.err")"
    is_alive "$STEP_PID" || die "pgbench ended during the recording: $(tail -n 3 "$WORK_DIR/load.err")"
}

draw() {
    local commit name
    commit=$(git -C "$ROOT" rev-parse --short=10 HEAD)
    if [ -n "$(git -C "$ROOT" status --porcelain -uno)" ]; then commit+=-dirty; fi
    name=$(date -u +%Y-%m-%d)-$commit-$CASE
    mkdir -p "$OUT_DIR"
    perf script -i "$WORK_DIR/perf.data" >"$WORK_DIR/perf.txt" 2>"$WORK_DIR/perf.err"
    "$INFERNO/inferno-collapse-perf" <"$WORK_DIR/perf.txt" >"$WORK_DIR/stacks.txt" 2>>"$WORK_DIR/perf.err"
    # A sample starts at the left margin, its stack is indented.
    SAMPLES=$(grep -c '^[^[:space:]#]' "$WORK_DIR/perf.txt" || true)
    if [ "$SAMPLES" -eq 0 ]; then die "no samples: the pooler did nothing, or perf could not see it"; fi
    # Stacks are weighted by their period: nanoseconds of the CPU clock, or cycles.
    local unit=cycles
    if [[ $EVENT == cpu-clock* ]]; then unit=ns; fi
    "$INFERNO/inferno-flamegraph" --title "ringbouncer $CASE, $commit" --countname "$unit" <"$WORK_DIR/stacks.txt" >"$OUT_DIR/$name.svg"
    write_note "$OUT_DIR/$name" "$commit"
    say "wrote $OUT_DIR/$name.svg and $OUT_DIR/$name.md ($SAMPLES samples)"
    note "now open the picture and fill in \"What it shows\" in the note"
}

write_note() {
    local progress
    progress=$(grep '^progress' "$WORK_DIR/load.err" | tail -n 1 | cut -d, -f2-)
    cat >"$1.md" <<NOTE
# $CASE at $2

| | |
| --- | --- |
| picture | [$(basename "$1").svg]($(basename "$1").svg), $SAMPLES samples |
| command | \`scripts/flamegraph.sh $CASE --seconds $SECONDS_RECORDED --shards $SHARDS --frequency $FREQUENCY --call-graph $CALL_GRAPH\` |
| recorded with | \`$RECORD_COMMAND\` |
| load | \`$LOAD_COMMAND\`, last second:$progress |
| program | $("$BINARY" --version 2>/dev/null || echo unknown), $SHARDS shard(s) |
| server | $("$PG_BIN/postgres" --version), on the same machine |
| machine | $(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores |
| kernel | $(uname -r) |

## Configuration

\`\`\`toml
$(cat "$WORK_DIR/ringbouncer.toml")
\`\`\`

## What it shows

(to be filled in by whoever made it)
NOTE
}

parse_arguments "$@"
trap_signals
need_cargo
need_postgres
need_perf
need_inferno
build_with_frame_pointers
start_both
start_load
record
draw
