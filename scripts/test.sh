#!/usr/bin/env bash
# Installs what the tests need and runs them, or some of them.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib.sh
. "$ROOT/scripts/lib.sh"
cd "$ROOT"

ALL_STEPS=(fmt clippy shell unit tidy loom sim steady fuzz it drivers jdbc pgx torture soak instructions loadtest)
DRIVERS=$ROOT/target/drivers
KEEP_GOING=no STEPS=()
export TORTURE_SECONDS=${TORTURE_SECONDS:-60} SOAK_SECONDS=${SOAK_SECONDS:-60}
FUZZ_SECONDS=${FUZZ_SECONDS:-3}

usage() {
    cat <<TEXT
Usage: scripts/test.sh [--keep-going] [STEP...]

Without STEP all of them, in this order; stops at the first failure unless told to keep going.

  fmt       cargo fmt --check
  clippy    cargo clippy, warnings are errors
  shell     shellcheck
  unit      unit and documentation tests
  tidy      the rules of the source tree
  loom      interleavings of the lock-free parts
  sim       the pool under simulation
  steady    no allocation in a conversation that runs
  fuzz      fuzz targets on their corpora and on mutations of them (FUZZ_SECONDS for each, default 3)
  it        the program against real PostgreSQL and scripted peers; what is claimed of PgBouncer as well is compared with
            the program RINGBOUNCER_PGBOUNCER (default: the distribution's), as far as its version has it
  drivers   psycopg, asyncpg, SQLAlchemy, Alembic, Django, node-postgres, psql and pgbench, with 1 and with 3 shards
  jdbc      pgjdbc, with 1 and with 3 shards; installs a JDK
  pgx       pgx (v4), with 1 and with 3 shards; installs Go
  torture   everything at once for TORTURE_SECONDS (default 60)
  soak      low and bursty load for SOAK_SECONDS (default 60)
  instructions
            instructions per transaction against benches/instructions.budget, counted by valgrind
  loadtest  a smoke run of the load test

What is missing is installed: PostgreSQL, PgBouncer, a C compiler, Python, Node.js, valgrind and shellcheck with apt (sudo if not root),
Python and Node packages under target/. A Rust toolchain must be there, unless apt has rustup.
TEXT
}

parse_arguments() {
    local known
    while [ $# -gt 0 ]; do
        known=" ${ALL_STEPS[*]} "
        case $1 in
            --help | -h) usage && exit 0 ;;
            --keep-going) KEEP_GOING=yes ;;
            -*) usage >&2 && die "unknown option $1" ;;
            *)
                [[ $known == *" $1 "* ]] || die "unknown step $1 (known: ${ALL_STEPS[*]})"
                STEPS+=("$1")
                ;;
        esac
        shift
    done
    if [ ${#STEPS[@]} -eq 0 ]; then STEPS=("${ALL_STEPS[@]}"); fi
}

# --- what the steps need -----------------------------------------------------------------------------------------

need_rust() {
    if ! has cargo && [ ! -x "$HOME/.cargo/bin/cargo" ] && apt-cache show rustup >/dev/null 2>&1; then
        apt_install rustup
        rustup default stable
    fi
    need_cargo
    need_c_compiler
}

need_component() {
    cargo "$1" --version >/dev/null 2>&1 && return
    has rustup || die "cargo $1 is missing and there is no rustup to install it"
    rustup component add "$2"
}

# Tests start an LDAP server of their own; the one that Debian's package may start is not used.
need_ldap() {
    { [ -x /usr/sbin/slapd ] || has slapd; } && has ldapsearch && return
    apt_install slapd ldap-utils
    stop_service slapd
}

need_shellcheck() { has shellcheck || apt_install shellcheck; }
need_valgrind() { has valgrind || apt_install valgrind; }

need_python() {
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then apt_install python3 python3-venv; fi
}

need_python_packages() {
    need_python
    local wanted=tests/drivers/requirements.txt installed=$DRIVERS/requirements.installed
    if cmp -s "$wanted" "$installed" && [ -x "$DRIVERS/venv/bin/pytest" ]; then return; fi
    note "Python packages into target/drivers/venv"
    rm -rf "$DRIVERS/venv"
    mkdir -p "$DRIVERS"
    python3 -m venv "$DRIVERS/venv"
    "$DRIVERS/venv/bin/pip" install -q --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$installed"
}

need_node_packages() {
    if ! has node || ! has npm; then apt_install nodejs npm; fi
    local lock=package-lock.json
    if cmp -s "tests/drivers/$lock" "$DRIVERS/node/installed-$lock"; then return; fi
    note "Node packages into target/drivers/node"
    mkdir -p "$DRIVERS/node"
    cp tests/drivers/package.json "tests/drivers/$lock" "$DRIVERS/node/"
    (cd "$DRIVERS/node" && npm ci --no-audit --no-fund --loglevel=error)
    cp "$DRIVERS/node/$lock" "$DRIVERS/node/installed-$lock"
}

# --- the steps ---------------------------------------------------------------------------------------------------

step_fmt() {
    need_component fmt rustfmt
    cargo fmt --check
    cargo fmt --check --manifest-path tests/fuzz/Cargo.toml
    cargo fmt --check --manifest-path loadtest/peers/Cargo.toml
}

step_clippy() {
    need_component clippy clippy
    cargo clippy --locked --all-targets -- -D warnings
    cargo clippy --locked --all-targets --manifest-path loadtest/peers/Cargo.toml --target-dir "$BUILT/peers" -- -D warnings
}

step_shell() {
    need_shellcheck
    shellcheck -x scripts/*.sh .ci/run
}

step_unit() {
    every_test_has_a_step
    cargo test --locked --lib --bins
    cargo test --locked --doc
}

# A test target that nobody runs proves nothing.
every_test_has_a_step() {
    local path name
    for path in tests/*.rs tests/*/main.rs; do
        name=${path#tests/}
        name=${name%/main.rs}
        name=${name%.rs}
        case $name in
            tidy | sim | steady | it | '*') ;;
            *) die "$path is run by no step of scripts/test.sh" ;;
        esac
    done
}

step_tidy() { cargo test --locked --test tidy; }

# Each test ends when it has seen everything; what it may take at most is seconds, not a minute.
step_loom() {
    cargo clippy --locked --lib --tests --features loom -- -D warnings
    cargo test --locked --features loom --lib --no-run
    local explored
    explored=$(timeout 60 cargo test --locked --features loom --lib -- interleavings::) || { echo "$explored" && return 1; }
    grep -E '^test result: ok\. [1-9]' <<<"$explored" || die "no test named interleavings:: has run"
}

# It computes: optimized, as `cargo build` is.
step_sim() { cargo test --locked --profile dev --test sim; }
step_steady() { cargo test --locked --test steady; }

# Not --locked: the lock file of that package follows the pooler's own dependencies.
step_fuzz() {
    cargo run --manifest-path tests/fuzz/Cargo.toml --target-dir target --bin fuzz-smoke -- "$FUZZ_SECONDS"
}

step_it() {
    need_postgres
    need_pgbouncer
    need_ldap
    # Most of them wait, most of the time: two at once keep two cores busy for two fifths of it.
    cargo test --locked --test it -- --test-threads $((2 * $(nproc))) --skip torture:: --skip soak::
}

step_torture() { long_test torture; }
step_soak() { long_test soak; }

# A filter that matches nothing is a success for cargo; here it is not.
long_test() {
    need_postgres
    mkdir -p target
    if ! cargo test --locked --test it -- --nocapture "$1::" >"target/$1.log" 2>&1; then
        tail -n 100 "target/$1.log"
        note "the whole log is target/$1.log; what it complains of:"
        grep -A 12 'panicked at' "target/$1.log" || true
        return 1
    fi
    grep -E '^(test |Tally|TORTURE|SOAK)' "target/$1.log"
    grep -Eq '^test result: ok\. [1-9]' "target/$1.log" || die "no test named $1:: has run"
}

step_drivers() {
    need_postgres
    need_python_packages
    need_node_packages
    test_drivers drivers tests/drivers RINGBOUNCER_TEST_NODE_MODULES="$DRIVERS/node/node_modules"
}

step_jdbc() {
    need_postgres
    need_python_packages
    local jar=/usr/share/java/postgresql.jar
    if ! has javac || [ ! -e "$jar" ]; then apt_install default-jdk-headless libpostgresql-jdbc-java; fi
    test_drivers pgjdbc tests/drivers/test_jdbc.py RINGBOUNCER_TEST_JDBC_JAR="$jar"
}

step_pgx() {
    need_postgres
    need_python_packages
    # As a package of the distribution, with all that it is made of.
    local sources=/usr/share/gocode
    if ! has go || [ ! -d "$sources/src/github.com/jackc/pgx/v4" ]; then apt_install golang-go golang-github-jackc-pgx-v4-dev; fi
    mkdir -p "$DRIVERS"
    GO111MODULE=off GOPATH=$sources GOFLAGS='' go build -o "$DRIVERS/pgx" tests/drivers/pgx/main.go
    test_drivers pgx tests/drivers/test_pgx.py RINGBOUNCER_TEST_PGX="$DRIVERS/pgx"
}

# NAME WHAT VARIABLE=VALUE: pytest on WHAT, with 1 and with 3 shards.
test_drivers() {
    local name=$1 what=$2 shards
    cargo build --locked
    for shards in 1 3; do
        note "$name with $shards shard(s)"
        env "$3" RINGBOUNCER_BIN="${RINGBOUNCER_BIN:-$BUILT/debug/ringbouncer}" RINGBOUNCER_SHARDS=$shards \
            "$DRIVERS/venv/bin/pytest" "$what" -q
    done
}

step_instructions() {
    need_python
    need_valgrind
    cargo build --locked --release --example instructions
    python3 scripts/instructions.py "$BUILT/release/examples/instructions"
}

step_loadtest() {
    need_postgres
    need_python
    # Its numbers mean nothing, so nothing is optimized for it.
    cargo build --locked
    cargo test --locked --manifest-path loadtest/peers/Cargo.toml --target-dir "$BUILT/peers"
    cargo build --locked --manifest-path loadtest/peers/Cargo.toml --target-dir "$BUILT/peers"
    RINGBOUNCER_PEERS=${RINGBOUNCER_PEERS:-$BUILT/peers/debug} RINGBOUNCER_BIN=${RINGBOUNCER_BIN:-$BUILT/debug/ringbouncer} \
        python3 loadtest/run.py --quick --out target/loadtest/smoke
}

# --- running them ------------------------------------------------------------------------------------------------

REPORT="" FAILED=()

run_one() {
    local name=$1 started=$SECONDS status=0
    say "$name"
    # In a subshell of its own; and neither this nor run_one as a condition: there `set -e` would be off inside.
    set +e
    (
        set -e
        "step_$name"
    )
    status=$?
    set -e
    local took=$((SECONDS - started)) verdict=ok
    if [ "$status" -ne 0 ]; then
        verdict=FAILED
        FAILED+=("$name")
    fi
    REPORT+=$(printf '    %-12s %-6s %4d s' "$name" "$verdict" "$took")$'\n'
    say "$name: $verdict after $took s"
}

main() {
    parse_arguments "$@"
    need_rust
    # Many poolers at a time, some with 33 shards.
    need_lockable_memory 128
    BUILT=${CARGO_TARGET_DIR:-$ROOT/target}
    # Hundreds of clients do not fit into the usual 1,024 files.
    ulimit -n "$(ulimit -Hn)" || true
    local step
    for step in "${STEPS[@]}"; do
        run_one "$step"
        if [ ${#FAILED[@]} -gt 0 ] && [ "$KEEP_GOING" = no ]; then break; fi
    done
    say "in all $SECONDS s"
    printf '%s' "$REPORT"
    if [ ${#FAILED[@]} -gt 0 ]; then die "failed: ${FAILED[*]}"; fi
    say "all passed"
}

main "$@"
