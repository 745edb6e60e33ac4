# shellcheck shell=bash
# What quickstart.sh, test.sh and flamegraph.sh share: talking to the user, installing packages, starting and
# stopping a throw-away PostgreSQL and Ringbouncer. Sourced, never run.
#
# Everything started here is stopped by its process id; nothing is ever killed by name.

BOLD="" RED="" PLAIN=""
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then BOLD=$'\033[1m' RED=$'\033[1;31m' PLAIN=$'\033[0m'; fi

say() { printf '%s==>%s %s\n' "$BOLD" "$PLAIN" "$*"; }
note() { printf '    %s\n' "$*"; }
die() {
    printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

# Runs a command as root: directly, or with sudo, which may ask for a password.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif has sudo; then
        note "needs root: sudo $*"
        sudo "$@"
    else
        die "root is needed for: $* (no sudo here; run that yourself, then start again)"
    fi
}

# Lets what is started from here lock so many MiB for its rings: Linux 6.14 and later count them against the user's limit.
need_lockable_memory() {
    local limit
    limit=$(ulimit -l)
    if [ "$limit" = unlimited ] || [ "$limit" -ge $(($1 * 1024)) ] || ulimit -l $(($1 * 1024)) 2>/dev/null; then return; fi
    [ "$(uname -r | awk -F. '{ print ($1 * 100 + $2 >= 614) }')" = 1 ] || return 0
    # Root in a container that may not raise it need not either.
    [ "$(id -u)" -ne 0 ] || return 0
    as_root prlimit --memlock=$(($1 * 1048576)) --pid $$
}

APT_LISTS_FRESH=no
# Installs Debian or Ubuntu packages, saying so.
apt_install() {
    has apt-get || die "please install $* (this script can install packages on Debian and Ubuntu only)"
    say "installing with apt: $*"
    if [ "$APT_LISTS_FRESH" = no ]; then
        as_root apt-get update -qq
        APT_LISTS_FRESH=yes
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

# Stops what a package that was just installed here has started: it would take a port that nobody has given it.
stop_service() {
    if [ -d /run/systemd/system ]; then
        as_root systemctl --quiet disable --now "$1" || note "could not stop $1"
    else
        # Without an init system nothing has been started.
        as_root service "$1" stop >/dev/null 2>&1 || true
    fi
}

# Puts the directory of the newest PostgreSQL server programs into PG_BIN; fails if there are none.
# Debian and Ubuntu keep initdb and postgres outside of PATH.
find_postgres() {
    local candidate
    PG_BIN=""
    while read -r candidate; do
        if [ -x "$candidate/initdb" ] && [ -x "$candidate/postgres" ] && [ -x "$candidate/pgbench" ]; then
            PG_BIN=$candidate
        fi
    done < <(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V)
    if [ -z "$PG_BIN" ] && has pg_config; then
        candidate=$(pg_config --bindir)
        [ -x "$candidate/initdb" ] && [ -x "$candidate/pgbench" ] && PG_BIN=$candidate
    fi
    [ -n "$PG_BIN" ]
}

need_postgres() {
    find_postgres && return
    note "PostgreSQL is missing; Debian's package also creates a cluster of its own, which is stopped again"
    apt_install postgresql postgresql-contrib
    stop_service postgresql
    find_postgres || die "PostgreSQL was installed, but initdb, postgres and pgbench are not in /usr/lib/postgresql/*/bin"
}

# Tests of what is PgBouncer's behaviour are run against it as well.
need_pgbouncer() {
    [ -x /usr/sbin/pgbouncer ] && return
    apt_install pgbouncer
    stop_service pgbouncer
}

# The crates compile C (mimalloc, the ring library under glommio, which runs configure and make).
need_c_compiler() {
    if ! has cc || ! has make; then
        apt_install build-essential
    fi
}

need_cargo() {
    has cargo && return
    if [ -x "$HOME/.cargo/bin/cargo" ]; then
        PATH="$HOME/.cargo/bin:$PATH"
        return
    fi
    die "cargo not found: install a Rust toolchain first, for instance from https://rustup.rs"
}

# PostgreSQL refuses to run as root, so root hands it to another user.
# DB_USER_PREFIX is the command prefix that changes to that user; DB_USER its name.
choose_db_user() {
    DB_USER=$(id -un)
    DB_USER_PREFIX=()
    [ "$(id -u)" -eq 0 ] || return 0
    DB_USER=nobody
    if id -u postgres >/dev/null 2>&1; then DB_USER=postgres; fi
    # setpriv replaces itself by the program, so that the process id we hold is the program's own.
    DB_USER_PREFIX=(setpriv "--reuid=$DB_USER" "--regid=$(id -g "$DB_USER")" --clear-groups --)
}

# Prints a TCP port of 127.0.0.1 nobody listens on, below the kernel's range for outgoing connections.
# Somebody may still take it first: whoever starts a server on it tries again with another.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 10000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
}

is_alive() { kill -0 "$1" 2>/dev/null; }

# await SECONDS PID COMMAND...: polls COMMAND until it succeeds; fails when PID has gone or time is up.
await() {
    local deadline=$((SECONDS + $1)) pid=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        is_alive "$pid" || return 1
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.05
    done
}

# stop_process PID SIGNAL...: sends each signal in turn until the process has gone, five seconds apart.
stop_process() {
    local pid=$1 signal deadline
    shift
    for signal in "$@"; do
        is_alive "$pid" || break
        kill "-$signal" "$pid" 2>/dev/null || true
        deadline=$((SECONDS + 5))
        while is_alive "$pid" && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.05; done
    done
    wait "$pid" 2>/dev/null || true
}

# A fresh directory that PostgreSQL's user can enter. Sets WORK_DIR.
make_work_dir() {
    WORK_DIR=$(mktemp -d "/tmp/ringbouncer-$1.XXXXXX")
    chmod 0755 "$WORK_DIR"
}

# Starts PostgreSQL in WORK_DIR/pg on a free port of 127.0.0.1, durability off, no password.
# Sets PG_PID and PG_PORT. The superuser is `postgres`.
start_postgres() {
    local dir=$WORK_DIR/pg attempt
    mkdir "$dir"
    [ "$(id -u)" -ne 0 ] || chown "$DB_USER" "$dir"
    (cd "$dir" && "${DB_USER_PREFIX[@]}" "$PG_BIN/initdb" -D "$dir/data" -U postgres -A trust \
        -E UTF8 --locale=C --no-sync) >"$WORK_DIR/initdb.log" 2>&1 ||
        die "initdb failed: $(tail -n 3 "$WORK_DIR/initdb.log")"
    for attempt in 1 2 3 4 5; do
        PG_PORT=$(free_port)
        # A session of its own: Ctrl-C in the terminal must reach this script only, which then stops things in order.
        (cd "$dir" && exec setsid "${DB_USER_PREFIX[@]}" "$PG_BIN/postgres" -D "$dir/data" -p "$PG_PORT" \
            -c listen_addresses=127.0.0.1 -c unix_socket_directories="$dir" -c max_connections=200 \
            -c fsync=off -c synchronous_commit=off -c full_page_writes=off) \
            </dev/null >"$WORK_DIR/postgres.log" 2>&1 &
        PG_PID=$!
        if await 30 "$PG_PID" "$PG_BIN/pg_isready" -q -h 127.0.0.1 -p "$PG_PORT"; then return; fi
        stop_process "$PG_PID" QUIT KILL
        PG_PID=""
        grep -q 'could not bind' "$WORK_DIR/postgres.log" || break
        note "port $PG_PORT was taken (attempt $attempt), trying another"
    done
    die "PostgreSQL did not start: $(tail -n 3 "$WORK_DIR/postgres.log")"
}

# start_ringbouncer BINARY CONFIG SHARDS: waits for the ready line.
# Sets RB_PID (the child), RB_READY (the line) and RB_PORT.
start_ringbouncer() {
    (exec setsid "$1" run "$2" ${3:+--shards "$3"}) \
        </dev/null >"$WORK_DIR/ringbouncer.out" 2>"$WORK_DIR/ringbouncer.log" &
    RB_PID=$!
    if ! await 30 "$RB_PID" grep -q '^ready ' "$WORK_DIR/ringbouncer.out"; then
        tail -n 20 "$WORK_DIR/ringbouncer.log" >&2
        die "Ringbouncer did not become ready"
    fi
    RB_READY=$(grep -m 1 '^ready ' "$WORK_DIR/ringbouncer.out")
    RB_PORT=$(ready_field tcp)
    RB_PORT=${RB_PORT##*:}
    [ -n "$RB_PORT" ] || die "no tcp= in the ready line: $RB_READY"
}

# ready_field NAME: prints the value of NAME=value in the ready line.
ready_field() { printf '%s\n' "$RB_READY" | tr ' ' '\n' | sed -n "s/^$1=//p"; }

# Runs a command as a process group of its own and waits for it, so that a signal to this script is acted on at
# once and can end the whole group. Sets STEP_PID while it runs.
run_step() {
    setsid "$@" </dev/null &
    STEP_PID=$!
    wait_for_step
}

# run_step_into FILE COMMAND...: the same, output to FILE.out and FILE.err. (Redirecting run_step itself would
# also swallow what the signal traps say while it runs.)
run_step_into() {
    local file=$1
    shift
    setsid "$@" </dev/null >"$file.out" 2>"$file.err" &
    STEP_PID=$!
    wait_for_step
}

wait_for_step() {
    local status=0
    wait "$STEP_PID" || status=$?
    STEP_PID=""
    return "$status"
}

PG_PID="" RB_PID="" STEP_PID="" WORK_DIR=""
# Stops what was started here, in order, and removes the work directory. Meant as the EXIT trap.
stop_everything() {
    trap '' INT TERM HUP
    if [ -n "$STEP_PID" ]; then
        kill -TERM -- "-$STEP_PID" 2>/dev/null || true
        wait "$STEP_PID" 2>/dev/null || true
    fi
    if [ -n "$RB_PID" ]; then stop_process "$RB_PID" INT QUIT KILL; fi
    if [ -n "$PG_PID" ]; then stop_process "$PG_PID" INT QUIT KILL; fi
    if [ -n "$WORK_DIR" ]; then rm -rf "$WORK_DIR"; fi
    STEP_PID="" RB_PID="" PG_PID="" WORK_DIR=""
}

# The user's own libpq settings (PGSERVICE, PGOPTIONS, ...) must not leak into what runs here.
forget_libpq_environment() {
    local name
    for name in "${!PG@}"; do
        case $name in PG_*) ;; *) unset "$name" ;; esac
    done
}

# Ends the script by its EXIT trap on the usual signals.
trap_signals() {
    trap stop_everything EXIT
    trap 'echo; say "interrupted, stopping"; exit 130' INT
    trap 'say "terminated, stopping"; exit 143' TERM HUP
}
